"""The embedded sample data imports, has the trouble that was planted in it, and is well-formed
otherwise."""

from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import pytest

from userlm.assets import sample_logs, sample_task_logs, sample_tasks
from userlm.data import filters, intents
from userlm.data.extractive import extractive
from userlm.data.language import language
from userlm.data.layouts import convert
from userlm.data.layouts.common import Imported
from userlm.data.layouts.fields import Rejected
from userlm.data.split import split
from userlm.facts import said
from userlm.grading import Grader
from userlm.rows import read_conversations, read_rows
from userlm.tasks import read_tasks
from userlm.text import words
from userlm.types import RIGHT, WRONG, Conversation, NumberCheck, Task, TestsCheck

TASKS = read_tasks(sample_tasks())
MATH = [task for task in TASKS if task.family == "math"]
PYTHON = [task for task in TASKS if task.family == "python"]


@cache
def imported() -> tuple[tuple[Imported, ...], Counter[str]]:
    """What comes out of the logs, and how many lines did not, by reason."""
    kept: dict[str, Imported] = {}
    dropped: Counter[str] = Counter()
    for line in read_rows(sample_logs()):
        if line.error:
            dropped[line.reason] += 1
            continue
        try:
            one = convert(line.row, None, f"line {line.number}")
        except Rejected as rejected:
            dropped[rejected.reason] += 1
            continue
        if one.conversation.id in kept:
            dropped["duplicate id"] += 1
        else:
            kept[one.conversation.id] = one
    return tuple(kept.values()), dropped


def conversations() -> list[Conversation]:
    return [one.conversation for one in imported()[0]]


def survivors() -> list[Conversation]:
    """What `userlm clean --template-limit 5` keeps."""
    return [
        c
        for c, reason in zip(conversations(), reasons(template_limit=5), strict=True)
        if reason is None
    ]


def reasons(**rules) -> list[str | None]:
    with TemporaryDirectory() as folder:
        return filters.decide(
            conversations(), filters.Rules(**rules), Path(folder) / "ngrams"
        ).reasons


def foreign(conversation: Conversation) -> str | None:
    return filters.foreign(conversation, language(conversation), filters.Rules())


def flagged(conversation: Conversation) -> str | None:
    return filters.Rules(languages=None).reason(conversation, "")


def test_every_kind_of_malformed_line_is_there_once():
    kept, dropped = imported()
    assert dropped == {
        "not JSON": 1,
        "not an object": 1,
        "unknown role": 1,
        "empty turn": 1,
        "duplicate id": 1,
    }
    assert len(kept) == 233


def test_every_kind_of_mending_is_needed():
    notes = sum((Counter(one.notes) for one in imported()[0]), Counter())
    assert notes == {
        "joined turns": 1,
        "opening assistant turn": 1,
        "system to meta": 1,
        "tool to meta": 2,  # the call and its result
    }


def test_cleaning_finds_what_was_planted():
    languages = Counter(foreign(c) for c in conversations())
    assert languages == {
        None: 227,
        **{f"{code}, by label": 1 for code in ("de", "es", "zh")},
        **{f"{code}, by identifier": 1 for code in ("fr", "pt", "ja")},
    }
    assert Counter(flagged(c) for c in conversations()) == {
        None: 230,
        "toxic": 2,
        "redacted": 1,
    }
    assert len(survivors()) == 227 - 3 - 8


def test_a_foreign_row_has_no_label_or_the_right_one():
    labels = Counter(c.meta.get("language") for c in conversations() if foreign(c))
    assert labels == {"German": 1, "Spanish": 1, "Chinese": 1, None: 3}
    # So that English has to be told from its text.
    assert sum("language" not in c.meta for c in survivors()) >= 20


def test_the_usual_template_limit_keeps_the_template():
    assert "template prompt" in reasons(template_limit=5)
    assert "template prompt" not in reasons()


def test_first_turns_repeat_only_where_it_was_planted():
    fit = [c for c in conversations() if not foreign(c)]
    kept = {c.id for c in survivors()} | {c.id for c in fit if flagged(c)}
    openings = [(c.id in kept, set(words(c.user_turns[0]))) for c in fit]
    alike = Counter(
        (one_kept, other_kept)
        for (one_kept, one), (other_kept, other) in combinations(openings, 2)
        if len(one & other) > 0.5 * len(one | other)
    )
    assert alike == {(False, False): 8 * 7 // 2, (True, True): 4}


def test_every_english_row_has_an_intent_in_form():
    for conversation in (c for c in conversations() if not foreign(c)):
        assert conversation.intent is not None, conversation.id
        assert intents.check(conversation.intent, conversation) is None, (
            conversation.intent
        )
        assert len(words(conversation.intent)) <= 40
    assert all(c.intent is None for c in conversations() if foreign(c))
    assert len({c.intent for c in survivors()}) == len(survivors())


def test_hand_written_intents_tell_less_than_extractive_ones():
    by_hand, by_cues = [], []
    for conversation in survivors():
        first = intents.leakage(conversation.intent or "", conversation)
        second = intents.leakage(extractive(conversation) or "", conversation)
        if first is not None and second is not None:
            by_hand.append(first)
            by_cues.append(second)
    assert mean(by_hand) < 0.1 < mean(by_cues)


def test_turns_and_people_are_spread_as_in_real_logs():
    kept = survivors()
    turns = [len(c.user_turns) for c in kept]
    assert 2.3 <= mean(turns) <= 2.8
    assert median(turns) == 2
    assert (min(turns), max(turns)) == (1, 8)
    lengths = [len(words(text)) for c in kept for text in c.user_turns]
    assert 6 <= median(lengths) <= 12
    assert max(lengths) > 100
    people = Counter(c.user for c in kept)
    assert len(people) == 46
    assert 8 <= max(people.values()) <= 12
    assert len({c.meta["country"] for c in kept}) >= 20
    assert sum(not c.ended for c in kept) == 7


def test_each_split_has_people_in_it():
    people = {
        name: {c.user for c in survivors() if split(c) == name}
        for name in ("train", "valid", "test")
    }
    assert len(people["valid"]) >= 2
    assert len(people["test"]) >= 2


def test_there_are_six_tasks_of_each_family():
    assert (len(MATH), len(PYTHON), len(TASKS)) == (6, 6, 12)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_each_fact_says_itself_and_the_intent_says_what_is_required(task: Task):
    assert all(said(fact, [fact.text]) for fact in task.facts)
    assert [fact.required for fact in task.facts] == [
        said(fact, [task.intent]) for fact in task.facts
    ]
    assert 3 <= sum(fact.required for fact in task.facts) <= 6
    assert any(not fact.required for fact in task.facts)


# Worked by hand: (26*7-8-24)/12 = 12.5, full ones 12; (30-2)*14+65; (340-85)/30 = 8.5 weeks, so 9;
# 120-30+18-33+66; 200-192/32*27.50; (150-60-12)/13.
@pytest.mark.parametrize(
    ("task", "answer"), list(zip(MATH, (12, 457, 9, 141, 35, 6), strict=True)), ids=str
)
def test_math_answers_are_right(task: Task, answer: int):
    assert isinstance(task.check, NumberCheck)
    for given, label in ((answer, RIGHT), (answer + 1, WRONG)):
        said_by = Conversation().say(task.intent).say(f"The answer is {given}.")
        verdict = Grader().answer(task.check, said_by.turns[-1], said_by)
        assert verdict.label == label


@pytest.mark.parametrize("task", PYTHON, ids=lambda task: task.id)
def test_python_solutions_pass_their_tests(task: Task):
    assert isinstance(task.check, TestsCheck)
    names: dict[str, object] = {}
    exec(task.meta["solution"], names)
    exec(task.check.tests, names)
    assert task.meta["function"] in task.intent
    names[task.meta["function"]] = lambda *_: None  # the tests can fail
    with pytest.raises(AssertionError):
        exec(task.check.tests, names)


def test_people_talked_about_every_task_and_most_said_what_it_takes() -> None:
    logs = {log.id: log for log in read_conversations(sample_task_logs())}
    tasks = {task.id: task for task in read_tasks(sample_tasks())}
    assert list(logs) == list(tasks)
    told = {
        name: all(
            said(fact, log.user_turns) for fact in tasks[name].facts if fact.required
        )
        for name, log in logs.items()
    }
    forgot = [name for name, whole in told.items() if not whole]
    assert forgot == ["math-paint", "python-initials", "python-wordcount"]
