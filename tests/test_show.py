"""`userlm show`: a conversation as a user model sees it."""

import html as html_library
import re
from dataclasses import replace

import pytest
from flat import flat

from userlm import commands, loading
from userlm.commands.options import EMBEDDED_USER
from userlm.commands.show import describe
from userlm.flip import render, samples
from userlm.models.budget import while_wanted
from userlm.rows import write_conversations
from userlm.show.blocks import Group, Tokens
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, ModelError, Turn

LOG = Conversation(
    "tea",
    (
        Turn("user", "how do i make tea <|endconversation|>"),
        Turn("assistant", "Boil water & pour it over the leaves."),
        Turn("user", "how long"),
        Turn("assistant", "Four minutes."),
    ),
    intent=f"{INTENT_PREFIX}make <b>tea</b>.",
    ended=True,
)


@pytest.fixture(scope="module")
def user():
    return loading.user("trained:userlm-tiny", temperature=0.0)


def groups(log, user, max_tokens):
    blocks = describe(log, user.model, user.template, max_tokens)
    return [block for block in blocks if isinstance(block, Group)]


def test_the_tokens_and_their_kinds_are_those_of_the_row(user):
    [group] = groups(LOG, user, 2048)
    tokens, table = group.blocks
    assert isinstance(tokens, Tokens)
    [row] = render(LOG, user.template).rows
    text = user.model.tokenizer.decode(list(row.ids))
    assert "".join(token.text for token in tokens.tokens) == text
    kinds = [token.kind for token in tokens.tokens]
    content = [kind == "content" for kind in kinds]
    assert content == row.mask(content_only=True)
    trained = [kind in ("content", "trained") for kind in kinds]
    assert trained == row.mask()
    head = len(user.template.row_start(LOG))
    assert set(kinds[:head]) == {"system", "control"}
    assert [row[0].text for row in table.rows] == [
        "user turn 1",
        "user turn 2",
        "<|endconversation|>",
    ]


def test_p_end_is_what_the_user_reports_when_it_is_asked_there(user):
    [group] = groups(LOG, user, 2048)
    _, table = group.blocks
    for row, sample in zip(table.rows, samples(LOG), strict=True):
        asked = user.reply(sample.prefix).meta["p_end"]
        assert row[2].value == pytest.approx(asked, abs=1e-5)


def test_a_row_is_read_twice_however_many_turns_it_has(user, monkeypatch):
    read = []
    score = user.model.score

    def counted(rows, **options):
        read.extend(len(ids) for ids, _ in rows)
        return score(rows, **options)

    monkeypatch.setattr(user.model, "score", counted)
    long = replace(LOG, turns=LOG.turns[:2] * 40)
    groups(long, user, 2048)
    [row] = render(long, user.template).rows
    assert sum(read) == 2 * len(row.ids)


def test_nothing_is_scored_for_a_caller_who_left(user):
    with while_wanted(lambda: False), pytest.raises(ModelError, match="nobody waits"):
        groups(LOG, user, 2048)


def test_what_does_not_fit_is_said(user):
    whole = render(LOG, user.template).rows[0]
    first, *others = groups(LOG, user, len(whole.ids) - 4)
    assert "did not fit" not in first.title
    assert re.search(
        r"Row 2: \d+ tokens; \d+ tokens before did not fit", others[0].title
    )
    blocks = describe(LOG, user.model, user.template, 16)
    assert blocks[-1].line.endswith("does not fit 16 tokens: left out.")


def test_it_is_printed_and_written_as_a_page_that_no_text_can_break(tmp_path, capsys):
    write_conversations(tmp_path / "logs.jsonl", [LOG])
    page = tmp_path / "tea.html"
    options = flat(
        commands.Show,
        id="tea",
        data=tmp_path / "logs.jsonl",
        model="userlm-tiny",
        page=page,
    )
    commands.show(options)
    shown = " ".join(capsys.readouterr().out.split())
    assert "how do i make tea" in shown and "P(end) before it" in shown
    assert "P(end) and perplexity are those of userlm-tiny." in shown
    written = page.read_text()
    assert "<b>" not in written.partition("Row 1")[2].partition("</div>")[0]
    spans = re.findall(r'<span class="content">([^<]*)</span>', written)
    said = html_library.unescape("".join(spans))
    assert said.startswith("how do i make tea <|endconversation|>how long")


def test_pages_overwrite_pages_and_no_other_file(tmp_path):
    log, run, out = tmp_path / "logs.jsonl", tmp_path / "run", tmp_path / "out"
    write_conversations(log, [LOG])
    commands.import_(commands.Import([str(log)], run))
    page = out / "tea.html"
    shown = flat(commands.Show, id="tea", data=log, model="userlm-tiny", page=page)
    written = [page, out / "report.html", out / "report.md"]
    for _ in range(2):
        commands.show(shown)
        commands.report(commands.Report([run], out))
    pages = [path.read_text() for path in written]
    for path, text in zip(written, pages, strict=True):
        path.write_text("<!doctype html>\nmy own page")
        with pytest.raises(
            InputError, match=f"{path.name} is no page that userlm wrote"
        ):
            if path is page:
                commands.show(shown)
            else:
                commands.report(commands.Report([run], out))
        assert path.read_text() == "<!doctype html>\nmy own page"
        path.write_text(text)
    assert [path.read_text() for path in written] == pages


def test_it_shows_the_model_that_is_the_default_user_or_what_steps_in_for_it(
    tmp_path, capsys, monkeypatch
):
    assert f"trained:{flat(commands.Show, id='tea').model}" == EMBEDDED_USER
    monkeypatch.setattr(loading, "small_or_tiny", lambda kind: f"{kind}-tiny")
    write_conversations(tmp_path / "logs.jsonl", [LOG])
    commands.show(flat(commands.Show, id="tea", data=tmp_path / "logs.jsonl"))
    assert "those of userlm-tiny." in capsys.readouterr().out


def test_an_id_that_is_not_there_gets_near_ones(tmp_path):
    write_conversations(tmp_path / "logs.jsonl", [LOG])
    with pytest.raises(InputError, match="no conversation 'teas'; it has 'tea'"):
        commands.show(flat(commands.Show, id="teas", data=tmp_path / "logs.jsonl"))
