"""Users without a model beside a user: by hand, and wherever termination is shown."""

import json
from pathlib import Path

import pytest

from userlm import commands
from userlm.metrics.end_references import (
    ALL,
    ALWAYS,
    CHATS,
    GOODBYES,
    NEVER,
    TASKS,
    UNKNOWN,
    USER,
    EndComparison,
    compare,
    kind_of,
    says_goodbye,
)
from userlm.rows import write_conversations
from userlm.types import Conversation, Origin


def answer(
    id: str,
    person_ended: bool,
    *said: str,
    p_end: float | None = None,
    ends: bool = False,
    **meta: object,
) -> Conversation:
    """What a user answered after these turns, which the person spoke in turn with an assistant."""
    target = None if person_ended else "more"
    origin = Origin(id, len(said) // 2, target, person_ended=person_ended)
    prefix = Conversation(f"{id}/1", user=id, origin=origin, meta=meta)
    for text in said:
        prefix = prefix.say(text)
    known = {} if p_end is None else {"p_end": p_end}
    return prefix.close("end", end_meta=known) if ends else prefix.say("bye", known)


HELLO = ("hello", "What do you need?")
THANKS = ("thanks!", "Anything else?")
GOODBYE = ("that is all", "Have a nice day!")


def found(responses: list[Conversation]) -> dict[tuple[str, str], EndComparison]:
    return {(one.kind, one.user): one for one in compare(responses)}


def test_the_references_by_hand() -> None:
    # Five responses; the person ended at three, the user at two of them (TP 1, FP 1, FN 2), the
    # rule at three (TP 2, FP 1, FN 1). What the user says itself ("bye") tells the rule nothing.
    responses = [
        answer("a", True, *GOODBYE, p_end=0.9, ends=True),
        answer("b", True, *THANKS, p_end=0.2),
        answer("c", True, *HELLO, p_end=0.3),
        answer("d", False, *THANKS, p_end=0.8, ends=True),
        answer("e", False, *HELLO, p_end=0.1),
        answer("f", True, *THANKS).close("error", error="timed out"),
        answer("g", False, p_end=0.9, ends=True),  # a first turn: no row
    ]
    measured = found(responses)
    assert list(measured) == [
        (ALL, USER),
        (ALL, ALWAYS),
        (ALL, NEVER),
        (ALL, GOODBYES),
    ]
    for user, f1, auroc, end_rate in (
        # 2 / (2 + 1 + 2); .9 beats both, .2 and .3 beat .1: 4 of 6
        (USER, 200 / 5, 4 / 6, 40),
        # TP 3, FP 2
        (ALWAYS, 600 / 8, 0.5, 100),
        (NEVER, 0, 0.5, 0),
        # a and b beat e, and tie with d; c ties with e, loses to d: 2 x 1.5 + 0.5 of 6
        (GOODBYES, 400 / 6, 3.5 / 6, 60),
    ):
        one = measured[ALL, user]
        assert one.f1.value == pytest.approx(f1), user
        assert one.auroc.value == pytest.approx(auroc), user
        assert one.end_rate == pytest.approx(end_rate), user
        assert (one.f1.n, one.f1.missing, one.people, one.ended) == (5, 1, 5, 60)
    # There is nothing to estimate.
    assert measured[ALL, NEVER].f1.low is None
    assert measured[ALL, ALWAYS].auroc.low is None


def test_a_user_without_p_end_has_the_same_references() -> None:
    measured = found([answer("a", True, *THANKS), answer("b", False, *HELLO)])
    assert measured[ALL, USER].auroc.value is None
    assert measured[ALL, GOODBYES].f1.value == 100
    assert measured[ALL, GOODBYES].auroc.value == 1


def test_where_nobody_ended_no_f1_is_measured() -> None:
    for one in compare([answer("a", False, *HELLO), answer("b", False, *THANKS)]):
        assert one.f1.value is one.auroc.value is None
        assert one.f1.why == "the person ended at no answer"
        assert one.ended == 0
    assert compare([]) == []


def test_kinds_of_dialogue_are_told_apart_only_if_there_are_several() -> None:
    chat = answer("a", True, *HELLO, source="allenai/WildChat-1M")
    task = answer("b", True, *THANKS, source="MultiWOZ 2.1")
    other = answer("c", False, *HELLO)
    kinds = [one.kind for one in compare([other, task, chat])][::4]
    assert kinds == [ALL, CHATS, TASKS, UNKNOWN]
    assert {one.kind for one in compare([chat, chat])} == {ALL}
    assert {one.kind for one in compare([other])} == {ALL}
    measured = found([other, task, chat])
    assert measured[TASKS, GOODBYES].f1.value == 100
    assert measured[CHATS, GOODBYES].f1.value == 0


@pytest.mark.parametrize(
    ("meta", "kind"),
    [
        ({"source": "wildchat"}, CHATS),
        ({"source": "chatbot_arena_conversations (a sample)"}, CHATS),
        ({"source": "OpenAssistant/oasst1 validation"}, CHATS),
        ({"source": "RasaHQ/STAR"}, TASKS),
        ({"source": "google-research-datasets/dstc8-schema-guided-dialogue"}, TASKS),
        ({"source": "Taskmaster-4"}, TASKS),
        ({"source": "starship logs"}, UNKNOWN),
        ({"kind": "task", "source": "wildchat"}, TASKS),
        ({"kind": "chat"}, CHATS),
        ({"kind": "something"}, UNKNOWN),
        ({"kind": ["chat"], "source": 3}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_the_kind_is_what_the_log_states_else_what_is_known_of_its_source(
    meta: dict[str, object], kind: str
) -> None:
    assert kind_of(Conversation("c", meta=meta)) == kind


@pytest.mark.parametrize(
    ("user", "assistant", "ends"),
    [
        ("Thank you so much.", "You're welcome", True),
        ("thx", "ok", True),
        ("Good bye!", "ok", True),
        ("no", "Goodbye, and take care.", True),
        ("no", "Have a great trip!", True),
        ("no", "Thank you for calling. What is your name?", False),
        ("I am thankful for bytes", "ok", False),
        ("hello", "Have a look at this day plan", False),
    ],
)
def test_the_rule_by_its_words(user: str, assistant: str, ends: bool) -> None:
    earlier = Conversation("c").say("thanks, bye").say("Goodbye!")
    assert says_goodbye(earlier.say(user).say(assistant)) == ends


def test_an_answer_without_its_prefix_is_not_measured_by_a_rule() -> None:
    whole = answer("a", True, *HELLO, "more", "ok")
    bare = Conversation(whole.id, whole.turns[-1:], user="a", origin=whole.origin)
    measured = found([bare])
    assert measured[ALL, GOODBYES].f1.n == 0
    assert "its prefix is not in the file" in measured[ALL, GOODBYES].f1.rows[0].why


def test_references_are_in_results_terminal_page_and_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = tmp_path / "mine"
    run.mkdir()
    manifest = {"format": 2, "verb": "respond", "options": {"user": "prompted:m"}}
    (run / "run.json").write_text(json.dumps(manifest))
    (run / "results.json").write_text("{}")
    responses = []
    for i in range(3):
        responses += [
            answer(f"t{i}", True, *THANKS, kind="task"),
            answer(f"c{i}", i > 0, *HELLO, kind="chat"),
        ]
    write_conversations(run / "conversations.jsonl", responses)
    out = tmp_path / "score"
    results = commands.score(commands.Score([run], out=out))
    [first, *_] = kept = results["endings"]["mine"]["comparison"]
    assert len(kept) == 12
    assert (first["kind"], first["user"], first["f1"]["value"]) == (ALL, USER, 0)
    terminal = capsys.readouterr().out
    commands.report(commands.Report([out], tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text()
    markdown = (tmp_path / "report" / "report.md").read_text()
    for shown in (terminal, page, markdown):
        for text in ("always ends", "never ends", "goodbye rule", "no P(end)"):
            assert text in shown
    # The rule finds all three ends of tasks, and none of the two of chats.
    row = next(line for line in markdown.splitlines() if TASKS in line)
    assert "3 turns of 3 people, 100.0 % ends" in row
    rule = [line for line in markdown.splitlines() if "goodbye rule` |" in line]
    for line, f1 in zip(rule, ("75.0", "0.0", "100.0"), strict=True):
        assert f"| {f1} %" in line
