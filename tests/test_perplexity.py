"""Perplexity: what a model is shown, which tokens count, what an intent changes, and `userlm ppl`
as a whole."""

import importlib
import json
import math
import re
import time
from dataclasses import replace

import pytest
import torch
import typer
from typer.testing import CliRunner

from userlm import loading
from userlm.commands.options import LocalModels, command
from userlm.flip import Template, prompt, render
from userlm.metrics.controls import (
    GENERATED,
    HUMAN,
    OTHER,
    OTHERS,
    OWN,
    SPECIFIC,
    WITH,
    WITHOUT,
    figures,
    other_intents,
    ratios,
)
from userlm.metrics.forms import base_form, prompted_form, trained_form
from userlm.metrics.perplexity import (
    CLOSED,
    NLL,
    OUTSIDE,
    TOKENS,
    bits_per_byte,
    measures,
    perplexity,
    score_turns,
    unscored,
)
from userlm.models.local import LocalModel
from userlm.prompts import fill
from userlm.rows import write_conversations
from userlm.show.claims import claims
from userlm.text import END_TOKEN, INTENT_PREFIX
from userlm.types import (
    Completion,
    Conversation,
    InputError,
    MeasureRow,
    ModelError,
    Turn,
)
from userlm.users import PromptedUser, user_prompt

verb = importlib.import_module("userlm.commands.ppl")  # `commands.ppl` is the function


def talk(
    *said: str, id: str = "a", intent: str | None = None, ended: bool = False, **more
) -> Conversation:
    turns = tuple(
        Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(said)
    )
    return Conversation(id, turns, intent, ended=ended, **more)


# A tokenizer of letters: an id is the letter's number, so a row can be read. Control tokens are
# below 10.
HEADERS = {"system": (2,), "user": (3,), "assistant": (4,)}


def encode(text):
    return [ord(letter) for letter in text]


def offsets(text):
    return [(i, i + 1) for i in range(len(text))]


def read(ids):
    return "".join(chr(id) if id >= 10 else f"<{id}>" for id in ids)


LETTERS = trained_form(
    Template(encode, HEADERS, "\n", close=5, end=6, stop_ids=frozenset((5, 6))), offsets
)
BASE = base_form(encode, offsets, bos=1)


def chat(messages):
    return [3, *encode(messages[0]["content"]), 5, 4]


PROMPTED = prompted_form(encode, offsets, chat, close=5)


class Even:
    """A model for which every token costs a nat, the end of a turn two, and leaving three."""

    def __init__(self):
        self.rows = []

    def score(self, rows):
        self.rows += rows
        costs = {5: 2.0, 6: 3.0}
        return [
            [
                -costs.get(id, 1.0)
                for id, wanted in zip(ids, mask, strict=True)
                if wanted
            ]
            for ids, mask in rows
        ]


# --- what a model is shown ------------------------------------------------------------------------


def test_a_user_model_is_shown_its_own_tokens_and_words_and_endings_are_scored():
    model = Even()
    score_turns([(talk("hi", "yes?", "bye", "ok", ended=True), "cook")], model, LETTERS)
    [(ids, mask)] = model.rows
    assert (
        read(ids)
        == "<2>\ncook<5><3>\nhi<5><4>\nyes?<5><3>\nbye<5><4>\nok<5><3>\n<6><5>"
    )
    assert (
        read(id for id, wanted in zip(ids, mask, strict=True) if wanted)
        == "hi<5>bye<5><6><5>"
    )


def test_a_base_model_is_shown_a_transcript_and_only_words_are_scored():
    model = Even()
    score_turns(
        [(talk("hi", "yes?", "bye", "ok", ended=True), "Cook rice.")], model, BASE
    )
    [(ids, mask)] = model.rows
    assert read(ids) == "<1>Cook rice.\nUser: hi\nAssistant: yes?\nUser: bye\n"
    assert read(id for id, wanted in zip(ids, mask, strict=True) if wanted) == " hi bye"
    model = Even()
    score_turns([(talk("hi"), None)], model, base_form(encode, offsets, None))
    assert read(model.rows[0][0]) == "User: hi\n"  # neither a BOS nor an intent


def test_a_chat_model_is_asked_for_each_user_turn_as_a_prompted_user_is():
    model = Even()
    log = talk("hi", "yes?", "bye", ended=False)
    score_turns([(log, INTENT_PREFIX + "cook rice.")], model, PROMPTED)
    first, second = (read(ids) for ids, _ in model.rows)
    assert first == "<3>" + fill("user_first", {"goal": "cook rice."}) + "<5><4>hi<5>"
    values = {
        "goal": "cook rice.",
        "end": END_TOKEN,
        "transcript": "<user>: hi\n<assistant>: yes?",
    }
    assert second == "<3>" + fill("user_next", values) + "<5><4>bye<5>"
    scored = [
        read(id for id, wanted in zip(ids, mask, strict=True) if wanted)
        for ids, mask in model.rows
    ]
    assert scored == ["hi", "bye"]


@pytest.mark.parametrize("said", [(), ("hi", "Hello {goal}.\n\nHow can I help?")])
def test_the_prompt_that_is_scored_is_the_one_that_a_prompted_user_gets(said):
    asked = []

    class Listens:
        def chat(self, messages, sampling):
            asked.append(messages[0]["content"])
            return Completion("x")

    log = talk(
        *said,
        intent=INTENT_PREFIX + "cook {transcript}",
        meta={"condition": "Writes curtly."},
    )
    PromptedUser(Listens()).reply(log)
    assert user_prompt(log.system, log.turns) == asked[0]


def test_a_prompt_of_ones_own_stands_before_the_turns_that_are_scored():
    own = prompted_form(encode, offsets, chat, 5, "Want {goal}.\n{transcript}\n{end}")
    log = talk("hi", "Hello", "bye", intent=INTENT_PREFIX + "cook")
    first, second = (read(row.ids) for row in own.rows(log, 2048).rows)
    assert first == f"<3>Want cook.\n(nothing yet)\n{END_TOKEN}<5><4>hi<5>"
    assert second.startswith("<3>Want cook.\n<user>: hi\n<assistant>: Hello\n")


def test_without_an_intent_a_prompted_user_is_not_told_what_it_wants():
    turns = talk("hi", "What you want from it: {goal}").turns
    told, untold = (user_prompt(goal, turns).split("\n\n") for goal in ("cook", None))
    assert [paragraph for paragraph in told if paragraph not in untold] == [
        "What you want from it: cook"
    ]
    assert len(untold) == len(
        told
    ) - 1 and "<assistant>: What you want from it: {goal}" in "\n\n".join(untold)


def test_a_transcript_in_a_prompt_loses_its_oldest_exchanges_and_then_the_middle_of_the_last_answer():
    log = talk("one", "a" * 50, "two", "b" * 50, "three")
    fixed = len(chat([{"content": user_prompt(None, [Turn("user", "")])}])) - len(
        "<user>: "
    )
    last, both = (
        len("<user>: two\n<assistant>: " + "b" * 50),
        len("<user>: one\n<assistant>: " + "a" * 50) + 1,
    )

    def transcript(length):
        flipped = PROMPTED.rows(log, length)
        if 2 in flipped.dropped:
            return None
        [row] = [row for row in flipped.rows if row.spans[0].k == 2]
        assert len(row.ids) <= length and read(row.ids).endswith("<5><4>three<5>")
        return read(row.ids).partition("====\n")[2].partition("\n====")[0]

    whole = fixed + both + last + len("three") + 1
    assert transcript(whole).startswith("<user>: one\n") and transcript(whole).endswith(
        "b" * 50
    )
    assert transcript(whole - 1) == "<user>: two\n<assistant>: " + "b" * 50
    assert transcript(whole - both) == "<user>: two\n<assistant>: " + "b" * 50
    assert transcript(whole - both - 1) == "<assistant>: " + "b" * 50
    # 12 for `<user>: two` and its line feed go, and one letter out of the middle
    assert transcript(whole - both - 13) == "<assistant>: " + "b" * 49
    assert transcript(whole - both - 12 - 48) == "<assistant>: bb"
    assert transcript(whole - both - 12 - 49) is None
    assert PROMPTED.rows(log, 10).dropped == (0, 1, 2)


# --- which tokens count ---------------------------------------------------------------------------


def test_the_sums_of_a_turn_by_hand():
    log = talk("hi", "yes?", "bye", "ok", intent="x", user="p", ended=True)
    [rows] = score_turns([(log, None)], Even(), LETTERS)
    # `hi`: 2 letters of a nat each, 2 bytes; all outside the intent; closed for 2 nats. The ending:
    # 3 + 2 nats.
    assert rows == [
        MeasureRow("a/0", "p", (2.0, 2.0, 2.0, 2.0, 2.0, 4.0, 3.0)),
        MeasureRow("a/1", "p", (3.0, 3.0, 3.0, 3.0, 3.0, 5.0, 4.0)),
        MeasureRow("a/end", "p", (0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 2.0)),
    ]
    [rows] = score_turns([(log, None)], Even(), BASE)
    # the space in front is encoded with the word, so it is a token; it is no byte of the turn
    assert [row.stats for row in rows] == [
        (3.0, 3.0, 2.0, 3.0, 3.0, 0.0, 0.0),
        (4.0, 4.0, 3.0, 4.0, 4.0, 0.0, 0.0),
    ]


def test_bytes_are_of_utf_8_and_a_conversation_without_a_person_is_its_own():
    [[row]] = score_turns([(talk("né", id="b"), None)], Even(), LETTERS)
    assert row == MeasureRow("b/0", "b", (2.0, 2.0, 3.0, 0.0, 0.0, 4.0, 3.0))


def test_a_token_is_inside_the_intent_when_it_touches_one_of_its_words():
    intent = INTENT_PREFIX + "cook rice; don't stop."
    [[row]] = score_turns(
        [(talk("COOK ricey? Don’t a-b", intent=intent), None)], Even(), LETTERS
    )
    # inside: COOK (4), Don’t (5) and `a`, which stands in "You are a user"; outside: ` ricey? `
    # (8), a space, `-b`
    assert row.stats[:2] == (21.0, 21.0)
    assert row.stats[OUTSIDE] == (11.0, 11.0)

    def in_twos(text):
        return [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]

    def encode_in_twos(text):
        return [100 + i for i in range(len(in_twos(text)))]

    twos = trained_form(
        Template(encode_in_twos, HEADERS, "\n", 5, 6, frozenset()), in_twos
    )
    [[row]] = score_turns([(talk("I cook it", intent="to cook"), None)], Even(), twos)
    # `\nI| c|oo|k |it`: the lead's token is none of the words; ` c`, `oo` and `k ` touch `cook`,
    # `it` does not
    assert row.stats[:2] == (4.0, 4.0)
    assert row.stats[OUTSIDE] == (1.0, 1.0)


def test_what_cannot_be_measured_is_missing_with_its_reason():
    class Broken(Even):
        def score(self, rows):
            return [[math.nan] * sum(mask) for _, mask in rows]

    [rows] = score_turns([(talk("hi", "yes?", ""), None)], Even(), LETTERS)
    assert [(row.stats is None, row.why) for row in rows] == [
        (False, ""),
        (True, "no words"),
    ]
    [[row]] = score_turns([(talk("hi"), None)], Broken(), LETTERS)
    assert (row.stats, row.why) == (None, "not a number")
    log = talk("hi", "yes?", "x" * 30, ended=False)
    [rows] = score_turns([(log, None)], Even(), LETTERS, max_tokens=20)
    assert [(row.key, row.why) for row in rows] == [
        ("a/0", ""),
        ("a/1", "does not fit 20 tokens"),
    ]


def test_a_long_conversation_that_is_not_scored_takes_linear_time():
    turns = (Turn("user", "a"), Turn("assistant", "b")) * 20_000
    begun = time.process_time()
    rows = unscored(Conversation("c", turns), "no")
    assert (rows[0].key, rows[-1].key, len(rows)) == ("c/0", "c/19999", 20_000)
    assert time.process_time() - begun < 3  # it was 25 s


def test_the_loss_is_that_of_transformers_on_the_same_labels(tiny, slides):
    """Perplexity is exp of the loss that transformers gives when the labels are the words of the
    user's turns."""
    form = trained_form(tiny.template(), tiny.offsets)
    [rows] = score_turns([(slides, slides.intent)], tiny, form)
    [row] = render(slides, tiny.template()).rows
    labels = [
        id if wanted else -100
        for id, wanted in zip(row.ids, row.mask(content_only=True), strict=True)
    ]
    last = row.spans[-1]
    # The ending has no words.
    labels[last.first : last.stop] = [-100] * (last.stop - last.first)
    with torch.no_grad():
        theirs = tiny.model(
            input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])
        ).loss
    assert measures(rows)[0].value == pytest.approx(math.exp(float(theirs)), rel=1e-5)


def test_each_form_is_scored_as_a_plain_forward_pass_of_its_row(tiny, slides):
    form = trained_form(tiny.template(), tiny.offsets)
    [rows] = score_turns([(slides, None)], tiny, form)
    for k, said in enumerate(slides.user_turns):
        so_far = replace(slides, turns=slides.turns[: 2 * k], intent=None, ended=False)
        before, after = (
            list(prompt(so_far, tiny.template())),
            tiny.encode("\n" + said)[1:],
        )
        assert rows[k].stats[:2] == pytest.approx(
            (nll(tiny, before, after), len(after)), abs=1e-4
        )
    form = base_form(tiny.encode, tiny.offsets, tiny.tokenizer.bos_token_id)
    [rows] = score_turns([(slides, slides.intent)], tiny, form)
    before = [tiny.tokenizer.bos_token_id, *tiny.encode(slides.intent + "\nUser:")]
    after = tiny.encode(" " + slides.turns[0].text)
    assert rows[0].stats[:2] == pytest.approx(
        (nll(tiny, before, after), len(after)), abs=1e-4
    )


def nll(local, before, after):
    with torch.no_grad():
        logprobs = local.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return -sum(
        float(logprobs[len(before) + i - 1, word]) for i, word in enumerate(after)
    )


# --- figures --------------------------------------------------------------------------------------


def row(key, nll, tokens, person="p", outside=(0.0, 0.0), ended=(0.0, 0.0)):
    return MeasureRow(key, person, (nll, tokens, 2 * tokens, *outside, *ended))


def values(found):
    return {m.name: m.value for m in found}


def test_every_figure_of_a_column_by_hand():
    rows = [
        row("a/0", 4.0, 2.0, outside=(1.0, 1.0), ended=(5.0, 3.0)),
        row("a/1", 2.0, 2.0, outside=(2.0, 2.0), ended=(3.0, 3.0)),
        MeasureRow("a/end", "p", (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0)),
        row("b/0", 6.0, 2.0, outside=(0.0, 0.0), ended=(7.0, 3.0)),
        MeasureRow("b/1", "p", None, "does not fit 20 tokens"),
    ]
    found = {m.name: m for m in measures(rows)}
    assert values(measures(rows)) == pytest.approx(
        {
            "perplexity": math.exp(12 / 6),
            "perplexity, first turns": math.exp(10 / 4),
            "perplexity, later turns": math.exp(2 / 2),
            "perplexity, outside the intent": math.exp(3 / 3),
            "perplexity, + end tokens": math.exp((5 + 3 + 1 + 7) / (3 + 3 + 2 + 3)),
            "perplexity, mean of conversations": (math.exp(6 / 4) + math.exp(6 / 2))
            / 2,
            "bits per byte": 12 / math.log(2) / 12,  # two bytes a token
        }
    )
    counts = {name: (m.n, m.missing) for name, m in found.items()}
    assert counts["perplexity"] == (3, 1) and counts["perplexity, + end tokens"] == (
        4,
        1,
    )
    # B/0 holds no word that the intent does not.
    assert counts["perplexity, outside the intent"] == (
        2,
        2,
    )
    assert counts["perplexity, mean of conversations"] == (2, 0)
    assert found["perplexity"].low is None  # one person: no interval


def test_a_model_without_end_tokens_has_no_figure_for_them():
    ended = next(
        m for m in measures([row("a/0", 4.0, 2.0)]) if m.name.endswith("end tokens")
    )
    assert (ended.value, ended.missing, ended.rows[0].why) == (None, 1, "no end tokens")


def test_a_ratio_is_over_the_turns_that_both_columns_have_and_its_interval_is_over_people():
    """Everybody is about 0.1 nats a token better with the intent, however hard they are to predict,
    so the interval of the ratio is narrow; those of the two perplexities are wide and overlap."""
    hard = [0.5 + i % 10 for i in range(20)]
    before = [row(f"{i}/0", 10 * nats, 10.0, f"p{i}") for i, nats in enumerate(hard)]
    after = [
        row(f"{i}/0", 10 * nats - (0.9 if i % 2 else 1.1), 10.0, f"p{i}")
        for i, nats in enumerate(hard)
    ]
    after[0] = MeasureRow("0/0", "p0", None, "no intent")
    ratio = ratios(after, before)[0]
    assert ratio.name == "perplexity ratio"
    # 10 of the 19 people gain 0.9 nats in 10 tokens, 9 gain 1.1
    assert ratio.value == pytest.approx(math.exp(-(10 * 0.9 + 9 * 1.1) / 190))
    assert 0.89 < ratio.low < ratio.value < ratio.high < 0.92
    assert (ratio.n, ratio.missing, ratio.rows[0].why) == (19, 1, "no intent")
    assert perplexity(before).low < perplexity(after[1:]).high


def test_goals_of_people_are_apart_from_intents_that_were_drawn_and_so_is_each_source():
    logs = [
        talk(
            "hi",
            id="a",
            intent="x",
            user="p1",
            meta={"intent_by": "human", "source": "star"},
        ),
        talk(
            "hi",
            id="b",
            intent="y",
            user="p2",
            meta={"intent_by": "gpt-4o", "source": "star"},
        ),
        talk("hi", id="c", user="p3", meta={"source": "wild"}),
    ]
    without = [
        row("a/0", 1.0, 1.0, "p1"),
        row("b/0", 2.0, 1.0, "p2"),
        row("c/0", 3.0, 1.0, "p3"),
    ]
    told = [
        row("a/0", 0.5, 1.0, "p1"),
        row("b/0", 2.5, 1.0, "p2"),
        MeasureRow("c/0", "p3", None, "no intent"),
    ]
    found = {
        column: values(of)
        for column, of in figures({WITHOUT: without, WITH: told}, logs).items()
    }
    assert list(found) == [WITHOUT, WITH, OWN]
    assert found[WITHOUT]["perplexity"] == pytest.approx(math.exp(6 / 3))
    assert found[WITHOUT][f"{HUMAN}: perplexity"] == pytest.approx(math.exp(1))
    assert found[WITH][f"{GENERATED}: perplexity"] == pytest.approx(math.exp(2.5))
    assert found[OWN]["perplexity ratio"] == pytest.approx(math.exp((3 - 3) / 2))
    assert found[OWN][f"{HUMAN}: perplexity ratio"] == pytest.approx(math.exp(-0.5))
    assert found[OWN][f"{GENERATED}: perplexity ratio"] == pytest.approx(math.exp(0.5))
    assert found[WITHOUT]["source star: perplexity"] == pytest.approx(math.exp(3 / 2))
    assert found[OWN]["source wild: perplexity ratio"] is None
    # Of a source the first figure alone.
    assert "source star: bits per byte" not in found[WITHOUT]


# --- another's intent -----------------------------------------------------------------------------


def test_everybody_gets_the_intent_of_another_person_in_other_words_and_from_the_same_source():
    logs = [
        talk(
            "hi",
            id=f"{i}",
            intent=f"do {i % 7}",
            user=f"p{i % 11}",
            meta={"source": f"s{i % 2}"},
        )
        for i in range(60)
    ]
    by_id = {log.id: log for log in logs}
    taken = other_intents(logs, seed=0)
    assert taken.keys() == by_id.keys()
    for id, intent in taken.items():
        givers = [
            log for log in logs if log.intent == intent and log.user != by_id[id].user
        ]
        assert any(log.meta["source"] == by_id[id].meta["source"] for log in givers)
        assert intent != by_id[id].intent
    assert other_intents(logs, seed=0) == taken != other_intents(logs, seed=1)


def test_in_a_circle_of_different_people_every_intent_is_used_once():
    logs = [talk("hi", id=f"{i}", intent=f"do {i}") for i in range(50)]
    assert sorted(other_intents(logs, seed=3).values()) == sorted(
        log.intent for log in logs
    )


def test_an_intent_comes_from_another_source_only_where_the_own_has_none():
    logs = [
        talk("hi", id=f"{i}", intent=f"do {i}", meta={"source": "many"})
        for i in range(5)
    ]
    alone = talk("hi", id="alone", intent="sing", meta={"source": "one"})
    taken = other_intents([*logs, alone], seed=0)
    assert taken["alone"].startswith("do ") and "sing" not in taken.values()


def test_where_nobody_else_wants_anything_else_there_is_no_other_intent():
    assert (
        other_intents(
            [talk("hi", id=str(i), intent=f"do {i}", user="p") for i in range(3)], 0
        )
        == {}
    )
    assert (
        other_intents([talk("hi", id=str(i), intent="cook") for i in range(3)], 0) == {}
    )
    two = [
        talk("hi", id="a", intent="x", user="p"),
        talk("hi", id="b", intent="y", user="p"),
    ]
    taken = other_intents(
        [*two, talk("hi", id="c", intent="x", user="q"), talk("hi", id="d")], 0
    )
    # `a` could have taken only the same words from `c`.
    assert taken == {
        "b": "x",
        "c": "y",
    }


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A saved user model."""
    path = tmp_path_factory.mktemp("model")
    tiny.model.save_pretrained(path)
    tiny.tokenizer.save_pretrained(path)
    return path


LOGS = [
    talk(
        "how do i sort a list",
        "Use sorted.",
        "thanks",
        id="a",
        intent="sort a list",
        user="p1",
    ),
    talk(
        "plan a trip to rome",
        "Three days?",
        "yes",
        "Done.",
        id="b",
        intent="plan",
        user="p2",
        ended=True,
    ),
    talk("help me write a letter", id="c", user="p3"),
    talk("and a poem", id="d", intent="write", user="p3", meta={"intent_by": "human"}),
]


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_conversations("logs.jsonl", LOGS)
    return tmp_path / "logs.jsonl"


class Faulty:
    """A model that counts what it is asked, and fails when `fails` says so."""

    def __init__(self, model, fails=lambda rows: None):
        self.model, self.fails, self.calls, self.rows = model, fails, 0, []

    def score(self, rows):
        self.calls += 1
        if error := self.fails(rows):
            raise error
        self.rows += [tuple(ids) for ids, _ in rows]
        return self.model.score(rows)


def stub(monkeypatch, model, form):
    monkeypatch.setattr(loading, "scorer", lambda *_, **__: (model, form, None))


def figures_of(results):
    return {
        column: {record["name"]: record for record in records}
        for column, records in results.items()
    }


def test_the_verb_scores_all_columns_of_many_conversations_in_one_call(
    logs, tiny, folder, monkeypatch
):
    model = Faulty(tiny)
    stub(monkeypatch, model, trained_form(tiny.template(), tiny.offsets))
    found = figures_of(verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out")))
    assert list(found) == [WITHOUT, WITH, OTHER, OWN, OTHERS, SPECIFIC]
    # 4 without, and 3 with an intent, of each kind; none is too long for a row
    assert (model.calls, len(model.rows)) == (1, 4 + 3 + 3)
    main = {
        column: records.get("perplexity") or records["perplexity ratio"]
        for column, records in found.items()
    }
    assert [(record["n"], record["missing"]) for record in main.values()] == [
        (6, 0),
        *[(5, 1)] * 5,
    ]
    assert main[WITH]["why"] == "no intent"
    [rows] = score_turns(
        [(LOGS[3], "write")], tiny, trained_form(tiny.template(), tiny.offsets)
    )
    assert found[WITH][f"{HUMAN}: perplexity"]["value"] == pytest.approx(
        perplexity(rows).value
    )
    lines = [
        json.loads(line)
        for line in (logs.parent / "out" / "scores.jsonl").read_text().splitlines()
    ]
    assert [(line["key"], line["column"]) for line in lines[:7]] == [
        ("a/0", WITHOUT),
        ("a/1", WITHOUT),
        ("a/0", WITH),
        ("a/1", WITH),
        ("a/0", OTHER),
        ("a/1", OTHER),
        ("b/0", WITHOUT),
    ]
    assert lines[-2] == {
        "column": WITH,
        "metric": "perplexity",
        "key": "d/0",
        "cluster": "p3",
        "stats": list(rows[0].stats),
        "why": "",
    }


def test_an_address_alone_leads_to_the_same_figures_and_the_table_says_what_holds(
    logs, folder
):
    app = typer.Typer()
    app.command()(command(verb.Ppl, verb.ppl))
    wide = {"COLUMNS": "200"}
    done = CliRunner().invoke(
        app,
        ["logs.jsonl", "--model", str(folder), "--out", "out", "--no-controls"],
        env=wide,
    )
    assert done.exit_code == 0, done.output
    assert "/ without" in done.stdout and OTHER not in done.stdout
    # One person: no interval.
    assert f"{HUMAN}: the intent helps: not known" in done.stdout
    shown = re.sub(r" +\n", "\n", done.stdout)
    assert "1 person\n" in shown and "1 missing\n" in shown
    found = figures_of(json.loads((logs.parent / "out" / "results.json").read_text()))
    local = LocalModel.load(str(folder), "cpu")
    asked = [(log, None) for log in LOGS]
    rows = [
        row
        for rows in score_turns(
            asked, local, trained_form(local.template(), local.offsets)
        )
        for row in rows
    ]
    said = [row for row in rows if not row.key.endswith("/end")]
    assert found[WITHOUT]["perplexity"]["value"] == pytest.approx(
        perplexity(said).value, rel=1e-5
    )
    assert found[WITHOUT]["bits per byte"]["value"] == pytest.approx(
        bits_per_byte(said).value, rel=1e-5
    )
    again = CliRunner().invoke(
        app,
        ["logs.jsonl", "--model", str(folder), "--out", "out", "--no-controls"],
        env=wide,
    )
    assert again.exit_code == 0 and again.stdout == done.stdout


def test_a_run_that_was_stopped_goes_on_where_it_was_and_asks_nothing_twice(
    logs, tiny, folder, monkeypatch
):
    one = LocalModels(batch=1)
    form = trained_form(tiny.template(), tiny.offsets)
    whole = Faulty(tiny)
    stub(monkeypatch, whole, form)
    verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "whole", models=one))
    first = Faulty(tiny, lambda rows: KeyboardInterrupt() if first.calls == 3 else None)
    stub(monkeypatch, first, form)
    with pytest.raises(KeyboardInterrupt):
        verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out", models=one))
    scores = logs.parent / "out" / "scores.jsonl"
    kept = scores.read_bytes().splitlines(keepends=True)
    # Two conversations in three columns: two turns each, and the end of the second.
    assert len(kept) == (2 + 3) * 3
    scores.write_bytes(b"".join(kept[:-1]) + kept[-1][:20])  # the last line torn
    second = Faulty(tiny)
    stub(monkeypatch, second, form)
    verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out", models=one))
    torn = [row for row in first.rows if row in second.rows]
    assert len(torn) == 1 and sorted([*first.rows, *second.rows]) == sorted(
        [*whole.rows, *torn]
    )
    for name in ("scores.jsonl", "results.json"):
        assert (logs.parent / "out" / name).read_bytes() == (
            logs.parent / "whole" / name
        ).read_bytes()


def test_a_conversation_on_which_the_model_fails_is_missing_and_tried_again_by_the_same_command(
    logs, tiny, folder, monkeypatch, capsys
):
    form = trained_form(tiny.template(), tiny.offsets)
    mark = tuple(tiny.encode("\nhelp me write a letter"))

    def fails(rows):
        has_it = any(
            mark == tuple(ids)[i : i + len(mark)]
            for ids, _ in rows
            for i in range(len(ids))
        )
        return ModelError("m: too slow", "timed out") if has_it else None

    stub(monkeypatch, Faulty(tiny, fails), form)
    found = figures_of(verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out")))
    without = found[WITHOUT]["perplexity"]
    assert (without["n"], without["missing"], without["why"]) == (5, 1, "timed out")
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "1 of 4 ended in an error (the same command tries these again), the first: m: too slow"
        in said
    )
    healthy = Faulty(tiny)
    stub(monkeypatch, healthy, form)
    found = figures_of(verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out")))
    assert (found[WITHOUT]["perplexity"]["n"], len(healthy.rows)) == (6, 1)
    # Six turns and an end in three columns.
    assert len((logs.parent / "out" / "scores.jsonl").read_text().splitlines()) == 7 * 3


@pytest.mark.parametrize(("permanent", "calls"), [(True, 1), (False, 1 + verb.GIVE_UP)])
def test_a_model_that_fails_on_everything_ends_the_run(
    logs, tiny, folder, monkeypatch, permanent, calls
):
    model = Faulty(
        tiny,
        lambda rows: ModelError(
            "m: no connection", "no connection", permanent=permanent
        ),
    )
    stub(monkeypatch, model, trained_form(tiny.template(), tiny.offsets))
    with pytest.raises(ModelError, match="no connection"):
        verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out"))
    assert model.calls == calls and not (logs.parent / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("low", "high", "helps", "harms"),
    [
        (0.90, 0.95, "yes", "no"),
        (1.05, 1.10, "no", "yes"),
        (0.90, 1.10, "not clear", "not clear"),
        (None, None, "not known", "not known"),
    ],
)
def test_a_claim_holds_when_the_whole_interval_is_on_its_side(low, high, helps, harms):
    record = {"value": 1.0, "low": low, "high": high}
    names = [
        f"{HUMAN}: perplexity ratio{part}"
        for part in ("", ", later turns", ", outside the intent")
    ]
    found = {column: dict.fromkeys(names, record) for column in (OWN, OTHERS, SPECIFIC)}
    assert claims(found, HUMAN) == [
        f"the intent helps: {helps}",
        f"on later turns: {helps}",
        f"on words outside the intent: {helps}",
        f"another's intent is worse than none: {harms}",
        f"the person's own intent is better than another's: {helps}",
    ]


def test_nothing_to_predict_is_said_before_the_model_is_loaded(tmp_path, monkeypatch):
    write_conversations(
        tmp_path / "logs.jsonl",
        [Conversation("a", (Turn("assistant", "Hello!"),), "x")],
    )
    monkeypatch.setattr(loading, "scorer", None)
    with pytest.raises(InputError, match="no conversation has a user turn"):
        verb.ppl(verb.Ppl(tmp_path / "logs.jsonl", "m", tmp_path / "out"))


def test_without_any_intent_the_other_columns_are_missing_and_not_zero(
    tmp_path, tiny, folder, monkeypatch, capsys
):
    write_conversations(tmp_path / "logs.jsonl", [log.without_system() for log in LOGS])
    model = Faulty(tiny)
    stub(monkeypatch, model, trained_form(tiny.template(), tiny.offsets))
    found = figures_of(
        verb.ppl(verb.Ppl(tmp_path / "logs.jsonl", str(folder), tmp_path / "out"))
    )
    assert len(model.rows) == 4
    for column, name in (
        (WITH, "perplexity"),
        (OTHER, "perplexity"),
        (OWN, "perplexity ratio"),
    ):
        assert (found[column][name]["value"], found[column][name]["why"]) == (
            None,
            "no intent",
        )
    said = capsys.readouterr()
    assert "4 of 4 have no intent" in said.err and "not measured" in said.out


def test_figures_can_be_computed_again_from_the_lines_of_a_run(
    logs, tiny, folder, monkeypatch
):
    stub(monkeypatch, tiny, trained_form(tiny.template(), tiny.offsets))
    found = figures_of(verb.ppl(verb.Ppl(logs, str(folder), logs.parent / "out")))
    lines = [
        json.loads(line)
        for line in (logs.parent / "out" / "scores.jsonl").read_text().splitlines()
    ]
    turns = [
        line["stats"] for line in lines if line["column"] == WITH and line["stats"]
    ]
    for columns, name in ((CLOSED, "+ end tokens"), (OUTSIDE, "outside the intent")):
        pairs = [stats[columns] for stats in turns]
        by_hand = math.exp(
            sum(pair[NLL] for pair in pairs) / sum(pair[TOKENS] for pair in pairs)
        )
        assert found[WITH][f"perplexity, {name}"]["value"] == pytest.approx(by_hand)
