"""`userlm tasks`, grading in `simulate` and `score`, and the page about them."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
from fake_server import Said, completion, error, serving

from userlm import assets
from userlm.commands import (
    Evaluate,
    Limits,
    Respond,
    Score,
    Simulate,
    User,
    evaluate,
    respond,
    score,
    simulate,
)
from userlm.commands.grading import Grading
from userlm.commands.options import Output
from userlm.commands.tasks import Tasks, tasks
from userlm.json_files import read_json, write_lines
from userlm.models import call_cache
from userlm.rows import read_conversations, read_rows
from userlm.tasks import read_tasks
from userlm.types import RIGHT, InputError, ModelError, TestsCheck, Verdict

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "test-my-chatbot.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def row(id: str, **fields: object) -> dict[str, object]:
    return {"id": id, "goal": "know it", **fields}


def flat(text: str) -> str:
    return " ".join(text.split())


# --- check ----------------------------------------------------------------------------------------


def test_check_shows_each_family_and_the_first_task_and_what_the_tasks_need(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = ["It is red.", {"text": "It is old.", "required": False}]
    write_lines(
        here / "t.jsonl",
        [
            row("a", family="cars", facts=facts, check={"contains": "yes"}),
            row(
                "b",
                family="cars",
                facts=["It is red."],
                check={"rubric": "It is kind."},
            ),
            row("c", check={"tests": "assert f()"}),
            row("d"),
        ],
    )
    assert tasks(Tasks("check", "t.jsonl")) == {"tasks": 4}
    shown = flat(capfd.readouterr().out)
    assert "cars 2 1 rules, 1 rubric 3 2" in shown
    assert "none 2 1 tests, 1 without 0 0" in shown
    assert "to know it. It is red. It is old." in shown
    assert "fact (not required): It is old." in shown
    assert "An answer is right if: it contains 'yes'" in shown
    for what in ("need a judge", "run code", "have no check", "do not say which facts"):
        assert f"1 of 4 tasks {what}" in shown


def test_the_sample_tasks_have_a_name_unless_a_file_or_a_folder_has_it(
    here: Path,
) -> None:
    assert tasks(Tasks("check", "sample")) == {"tasks": 12}
    assert read_tasks("sample") == read_tasks(assets.sample_tasks())
    (here / "sample").mkdir()
    with pytest.raises(InputError, match="sample"):
        read_tasks("sample")


def test_check_lists_every_mistake_and_fails(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "my_checks_of_tasks.py").write_text(
        "right = 1\ndef short(text):\n    return True\n"
    )
    rows = [
        row("a", check={"number": "x"}),
        row("b", check={"py": "my_checks_of_tasks:gone"}),
        row("c", check={"py": "my_checks_of_tasks:right"}),
        row("d", check={"py": "no_such_module_x:right"}),
        row("d2", check={"number": 1}),
        row("d2", check={"number": 1}),
        row("e", check={"py": "my_checks_of_tasks:short"}),
    ]
    write_lines(here / "t.jsonl", rows)
    with pytest.raises(InputError, match="6 of 7 tasks cannot be used"):
        tasks(Tasks("check", "t.jsonl"))
    shown = flat("".join(capfd.readouterr()))
    for line in (
        "t.jsonl, line 1: check.number is 'x'",
        "line 2: check.py: my_checks_of_tasks:gone: cannot be imported (AttributeError",
        "line 3: check.py: my_checks_of_tasks:right is no function",
        "line 4: check.py: no_such_module_x:right: cannot be imported",
        "line 6: id 'd2' is used twice; t.jsonl, line 5 has it",
        "short is called with the text of the answer and the conversation: too many pos",
    ):
        assert line in shown


def test_check_asks_a_bot_once_and_shows_what_is_found_in_its_answer_or_why_nothing_is(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lines(here / "t.jsonl", [row("a", facts=["It is red."]), row("b")])
    (here / "bot_to_check.py").write_text(
        "def calls(text):\n"
        "    call = {'name': 'look', 'arguments': {'n': 1}}\n"
        "    return {'text': text.upper(), 'tool_calls': [call]}\n"
        "def talks(text):\n    return 'so'\n"
        "def fails(text):\n    raise ValueError('no way')\n"
    )
    tasks(Tasks("check", "t.jsonl", "py:bot_to_check:calls"))
    shown = flat(capfd.readouterr().out)
    assert "py:bot_to_check:calls is asked: know it. It is red." in shown
    assert "Its text: KNOW IT. IT IS RED." in shown
    assert 'Its tool calls: [{"name":"look","arguments":{"n":1}}]' in shown
    tasks(Tasks("check", "t.jsonl", "py:bot_to_check:talks"))
    assert "Its text: so Its tool calls: none" in flat(capfd.readouterr().out)
    with pytest.raises(ModelError, match="line 7: ValueError: no way"):
        tasks(Tasks("check", "t.jsonl", "py:bot_to_check:fails"))
    with pytest.raises(InputError, match="--assistant is for userlm tasks check"):
        tasks(Tasks("facts", "t.jsonl", "py:bot_to_check:talks"))


@pytest.mark.parametrize(
    "options",
    [
        {"limits": Limits(max_calls=0)},
        {"limits": Limits(max_tokens_total=0)},
        {"limits": Limits(budget=0.0)},
        {"price": "2.50/10"},
    ],
)
def test_check_refuses_limits_since_it_counts_no_call(
    here: Path, options: dict[str, Any]
) -> None:
    write_lines(here / "t.jsonl", [row("a")])
    with pytest.raises(InputError, match="are for userlm tasks facts"):
        tasks(Tasks("check", "t.jsonl", "py:no_such_bot:x", **options))


# --- facts ----------------------------------------------------------------------------------------


def judging(body: dict[str, object], n: int) -> Said:
    """A judge that takes only facts with digits as required, and every answer as right."""
    [message] = body["messages"]  # type: ignore[misc]
    asked = message["content"]
    label = "RIGHT"
    if "NOT REQUIRED" in asked:
        fact = asked.rpartition("The fact:")[2]
        needed = re.search(r"\d", fact.partition("Reply with")[0])
        label = "REQUIRED" if needed else "NOT REQUIRED"
    if "NOT SAID" in asked:
        label = "SAID"
    if "ATTEMPT, TALK" in asked:
        label = "ATTEMPT"
    if "ADDS, KEEPS" in asked:
        label = "KEEPS"
        if "and?" in asked.rpartition("The message to judge:")[2]:
            label = "ADDS"
    return completion(json.dumps({"reason": "[and?] is more", "label": label}))


def test_a_judge_marks_once_which_facts_are_required_and_keeps_marks_of_the_file(
    here: Path,
) -> None:
    own = [{"text": "It is red.", "required": False}]
    rows = [
        row("a", facts=["It costs 3 coins.", "It is red."], check={"number": 3}),
        row("b", facts=own),
        row("c", facts=["It is red."]),
        row("d"),
    ]
    write_lines(here / "t.jsonl", rows)
    with serving(judging) as server:
        options = Tasks(
            "facts", "t.jsonl", judge=f"{server.url}/v1#judge", out=here / "out"
        )
        results = tasks(options)
        asked = len(server.bodies)
        assert tasks(options) == results
        assert len(server.bodies) == asked == 3
    a, b, c, d = read_tasks(here / "out")
    assert [fact.required for fact in a.facts] == [True, False]
    assert [task.marked for task in (a, b, c, d)] == [
        "judge",
        "file",
        "default",  # or it would have no required fact
        "default",
    ]
    assert not b.facts[0].required and c.facts[0].required
    assert results["required"] == 2


def test_a_judge_that_cannot_be_read_marks_nothing_and_is_asked_again(
    here: Path,
) -> None:
    write_lines(here / "t.jsonl", [row("a", facts=["It costs 3 coins."])])
    (here / "judge.txt").write_text("perhaps\n")
    options = Tasks("facts", "t.jsonl", judge="script:judge.txt", out=here / "out")
    for _ in range(2):
        with pytest.raises(ModelError, match="1 of 1 facts have no mark"):
            tasks(options)
    [task] = read_tasks(here / "out")
    assert task.marked == "default"


def test_another_judge_marks_anew_in_the_same_folder_with_force(here: Path) -> None:
    write_lines(here / "t.jsonl", [row("a", facts=["It costs 3 coins."])])
    for label in ("REQUIRED", "perhaps"):
        (here / f"{label}.txt").write_text(f"{label}\n")
    options = Tasks("facts", "t.jsonl", judge="script:REQUIRED.txt", out=here / "out")
    assert tasks(options)["marked"] == {"judge": 1}
    again = replace(options, judge="script:perhaps.txt", output=Output(force=True))
    with pytest.raises(ModelError, match="1 of 1 facts have no mark"):
        tasks(again)


def test_marking_without_a_judge_and_a_judge_without_marking_are_mistakes(
    here: Path,
) -> None:
    write_lines(here / "t.jsonl", [row("a")])
    with pytest.raises(InputError, match="needs a --judge"):
        tasks(Tasks("facts", "t.jsonl"))
    with pytest.raises(InputError, match="userlm tasks facts"):
        tasks(Tasks("check", "t.jsonl", judge="openai:gpt-4o"))


# --- simulate and score ---------------------------------------------------------------------------


def run(here: Path, name: str = "sim") -> Path:
    (here / "lines.txt").write_text("hi\nand?\n")
    (here / "bot_of_tasks.py").write_text("def answer(text):\n    return 'It is 3.'\n")
    options = Simulate(
        User("script:lines.txt"),
        "py:bot_of_tasks:answer",
        tasks="t.jsonl",
        out=here / name,
    )
    simulate(options)
    return here / name


def measured(folder: Path, column: str = "sim") -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in read_json(folder / "results.json")[column]}


def test_a_conversation_stops_where_its_check_holds_and_goes_on_where_a_judge_is_needed(
    here: Path,
) -> None:
    (here / "check_of_a_run.py").write_text(
        "def right(text, conversation):\n    return 'It' in text\n"
    )
    rows = [
        row("number", check={"number": 3}),
        row("rule", check={"contains": "IT IS"}),
        row("function", check={"py": "check_of_a_run:right"}),
        row("other", check={"number": 4}),
        row("rubric", check={"rubric": "It is kind."}),
        row("none"),
    ]
    write_lines(here / "t.jsonl", rows)
    folder = run(here)
    stops = {
        one.origin.task: one.stop  # type: ignore[union-attr]
        for one in read_conversations(folder / "conversations.jsonl")
    }
    assert stops == {
        **dict.fromkeys(("number", "rule", "function"), "solved"),
        **dict.fromkeys(("other", "rubric", "none"), "end"),
    }
    # the code that checks is an input of the run
    assert "check_of_a_run.py" in str(read_json(folder / "run.json")["inputs"])
    score(Score([folder], tasks="t.jsonl", out=here / "scored"))
    found = measured(here / "scored")["assistant score"]
    assert (found["value"], found["n"], found["missing"]) == (75, 4, 2)
    grades = {
        line.row["task"]: line.row for line in read_rows(here / "scored/grades.jsonl")
    }
    assert grades["number"]["solved"] is True and grades["number"]["turn"] == 0
    assert grades["other"]["reason"] == "3, not 4"
    assert grades["rubric"]["reason"] == "not graded: needs a judge"
    assert grades["none"]["reason"] == "not graded: the task has no check"


def test_a_score_names_the_option_of_the_price_of_its_judge(here: Path) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"rubric": "It is polite."})])
    graded = Score(
        [run(here)],
        tasks="t.jsonl",
        grading=Grading(judge="http://localhost:1/v1#m"),
        limits=Limits(budget=1.0),
    )
    with pytest.raises(InputError, match="give --judge-price IN/OUT"):
        score(graded)


def test_a_run_whose_tasks_need_calls_of_tools_and_has_none_says_so_and_where_to_look(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lines(here / "t.jsonl", [row("a", check=[{"tool": "refund"}]), row("b")])
    folder = run(here)
    line = "sim: the checks of 1 task need a call of a tool, and no answer about them"
    assert line in flat(capfd.readouterr().err)
    score(Score([folder], tasks="t.jsonl", out=here / "scored"))
    assert line in flat(capfd.readouterr().err)
    (here / "bot_with_calls.py").write_text(
        "def answer(text):\n"
        "    return {'text': 'so', 'tool_calls': [{'name': 'other', 'arguments': {}}]}\n"
    )
    options = Simulate(
        User("script:lines.txt"),
        "py:bot_with_calls:answer",
        tasks="t.jsonl",
        out=here / "calls",
    )
    simulate(options)
    score(Score([here / "calls"], tasks="t.jsonl", out=here / "scored2"))
    assert "need a call of a tool" not in flat(capfd.readouterr().err)


def test_a_run_of_the_oracle_says_how_many_tasks_it_has_no_answer_to(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("a", check={"matches": "z{3}"}),
        row("b", check={"contains": "It is 3."}),
        row("c"),
    ]
    write_lines(here / "t.jsonl", rows)
    (here / "lines.txt").write_text("hi\n")
    user = User("script:lines.txt")
    simulate(Simulate(user, "oracle", tasks="t.jsonl", out=here / "sim"))
    assert "oracle: it has no answer to 1 of 3 tasks" in flat(capfd.readouterr().err)
    stops = [
        one.stop for one in read_conversations(here / "sim" / "conversations.jsonl")
    ]
    assert stops == ["end", "solved", "end"]


def test_a_score_of_a_run_with_tasks_says_what_is_missing_without_them(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"number": 3})])
    folder = run(here)
    score(Score([folder], out=here / "scored"))
    shown = flat(capfd.readouterr().err)
    assert "sim has conversations about tasks: for the assistant score, give" in shown
    assert "with --tasks (inputs of the run: t.jsonl, " in shown
    score(Score([folder], tasks="t.jsonl", out=here / "scored2"))
    assert "has conversations about tasks" not in flat(capfd.readouterr().err)


def test_a_function_that_cannot_be_imported_stops_a_run_before_it_begins(
    here: Path,
) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"py": "no_such_module_y:right"})])
    with pytest.raises(InputError, match="no_such_module_y:right: cannot be imported"):
        run(here)
    assert not (here / "sim").exists()


def test_a_judge_grades_rubrics_and_is_not_asked_again_after_a_kill(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("a", family="x", check={"rubric": "It is kind."}),
        row("b", family="y", check={"number": 4}),
    ]
    write_lines(here / "t.jsonl", rows)
    folder = run(here)
    with serving(judging) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        options = Score([folder], tasks="t.jsonl", out=here / "scored", grading=grading)
        score(options)
        asked = len(server.bodies)
        (here / "scored" / "results.json").unlink()
        score(options)
        assert len(server.bodies) == asked
    found = measured(here / "scored")["assistant score"]
    assert (found["value"], found["missing"]) == (50, 0)
    families = {one["name"]: one["value"] for one in found["families"]}  # type: ignore[attr-defined]
    assert families == {"x": 100, "y": 0}
    by_family = flat(capfd.readouterr().out).rpartition("By family of tasks")[2]
    assert "assistant score x 100.00% (n 1) assistant score y 0.00% (n 1)" in by_family


def test_a_judge_also_says_which_facts_were_said_and_how_far_the_words_agree(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    facts = ["It costs 3 coins.", "Hi!"]
    write_lines(here / "t.jsonl", [row("a", facts=facts, check={"number": 4})])
    folder = run(here)  # the user says "hi" and "and?", and the judge that all was said
    with serving(judging) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        score(Score([folder], tasks="t.jsonl", out=here / "scored", grading=grading))
    found = measured(here / "scored")
    assert found["intent coverage"]["value"] == 50
    assert found["intent coverage (judge)"]["value"] == 100
    lines = [line.row for line in read_rows(here / "scored" / "facts.jsonl")]
    assert [(one["fact"], one["judge"], one["user"]) for one in lines] == [
        ("It costs 3 coins.", "SAID", []),
        ("Hi!", "SAID", [0]),
    ]
    assert "agree on 50.0 % of 2 facts" in flat(capfd.readouterr().err)


def test_it_is_kept_who_told_which_fact_when_and_which_turn_adds_a_demand(
    here: Path,
) -> None:
    facts = ["Hi!", {"text": "It is 3.", "required": False}]
    write_lines(here / "t.jsonl", [row("a", facts=facts, check={"number": 4})])
    folder = run(here)  # the user says "hi" and "and?", the assistant "It is 3."
    with serving(judging) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        score(Score([folder], tasks="t.jsonl", out=here / "scored", grading=grading))
    told = [line.row for line in read_rows(here / "scored" / "facts.jsonl")]
    assert [(one["fact"], one["user"], one["assistant"]) for one in told] == [
        ("Hi!", [0], []),
        ("It is 3.", [], [0, 1]),
    ]
    added = [line.row for line in read_rows(here / "scored" / "added.jsonl")]
    assert [(one["turn"], one["label"], one["demand"]) for one in added] == [
        (0, "KEEPS", None),
        (1, "ADDS", "and?"),
    ]
    found = measured(here / "scored")
    assert found["adds demands"]["value"] == 100
    assert found["skips other facts"]["value"] == 100
    assert found["turn variance"]["value"] is None


def test_another_judge_is_asked_anew_in_the_same_folder_with_force(here: Path) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"rubric": "It is kind."})])
    for label in ("RIGHT", "WRONG"):
        (here / f"{label}.txt").write_text(f"{label}\n")
    options = Score([run(here)], tasks="t.jsonl", out=here / "scored")
    for label, value in (("RIGHT", 100), ("WRONG", 0)):
        grading = Grading(judge=f"script:{label}.txt")
        score(replace(options, grading=grading, output=Output(force=True)))
        assert measured(here / "scored")["assistant score"]["value"] == value
    (here / "WRONG.txt").write_text("RIGHT\n")
    with pytest.raises(InputError, match=r"WRONG\.txt"):
        score(replace(options, grading=grading))


def test_a_judge_that_did_not_answer_fails_the_score_and_is_asked_again(
    here: Path,
) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"rubric": "It is kind."})])
    is_open = False

    def opening(body: dict[str, object], n: int) -> Said:
        return judging(body, n) if is_open else error(401)

    with serving(opening) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        out = here / "scored"
        options = Score([run(here)], tasks="t.jsonl", out=out, grading=grading)
        for _ in range(2):
            with pytest.raises(ModelError, match="3 of 3 verdicts are missing"):
                score(options)
        is_open = True
        score(options)
    found = measured(here / "scored")["assistant score"]
    assert (found["value"], found["missing"]) == (100, 0)


@pytest.mark.parametrize("share", [2, 1])
def test_a_judge_that_only_thinks_is_not_asked_again_and_may_get_more_tokens(
    share: int, here: Path
) -> None:
    rows = [row(f"t{i}", check={"rubric": "It is kind."}) for i in range(2)]
    write_lines(here / "t.jsonl", rows)

    def thinking(body: dict[str, object], n: int) -> Said:
        if n % share or body["max_tokens"] == 2000:
            return judging(body, n)
        return completion("", reasoning="Is it kind?", finish="length", tokens_out=300)

    with serving(thinking) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        out = here / "scored"
        options = Score(
            [run(here)], tasks="t.jsonl", out=out, grading=grading, workers=1
        )
        for _ in range(2):
            if share == 1:  # all of them
                with pytest.raises(
                    ModelError, match=r"(\d) of \1 verdicts are missing"
                ):
                    score(options)
            else:
                score(options)
            assert len(server.bodies) == 4
        more = replace(grading, judge_tokens=2000)
        score(replace(options, grading=more))
        # Those that it answered are not paid for again.
        again = server.bodies[4:]
        assert len(again) == {2: 2, 1: 3}[share]
        assert all(body["max_tokens"] == 2000 for body in again)
    assert measured(here / "scored")["assistant score"]["missing"] == 0


def test_a_judge_of_whom_nothing_can_be_used_is_not_asked_for_ever(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_cache, "UNUSABLE", 3)
    rows = [row(f"t{i}", check={"rubric": f"It is kind {i}."}) for i in range(9)]
    write_lines(here / "t.jsonl", rows)
    with serving(lambda body, n: completion("It is fine, I think.")) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        out = here / "scored"
        options = Score(
            [run(here)], tasks="t.jsonl", out=out, grading=grading, workers=1
        )
        with pytest.raises(ModelError, match=r"(\d+) of \1 verdicts are missing"):
            score(options)
        assert len(server.bodies) == 3
    assert "none of the first 3 answers" in (out / "grades.jsonl").read_text()


def test_a_judge_is_not_asked_about_responses_which_have_no_outcome(here: Path) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"rubric": "It is kind."})])
    responses = Respond(User("script:lines.txt"), run(here) / "conversations.jsonl")
    respond(replace(responses, out=here / "responses"))
    with serving(judging) as server:
        grading = Grading(judge=f"{server.url}/v1#judge")
        options = Score([here / "responses"], tasks="t.jsonl", grading=grading)
        score(replace(options, out=here / "scored"))
        assert server.bodies == []


def test_code_that_had_no_sandbox_is_graded_by_the_same_command_once_there_is_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Passing:
        def run(self, check: TestsCheck, code: str, /) -> Verdict:
            return Verdict(RIGHT, "passed")

    def none(unsafe_local: bool) -> object:
        raise InputError("there is no sandbox")

    write_lines(here / "t.jsonl", [row("a", check={"tests": "assert f()"})])
    (here / "coder_of_tasks.py").write_text(
        "def bot(text):\n    return '```\\ndef f():\\n    return 1\\n```'\n"
    )
    (here / "lines.txt").write_text("hi\n")
    options = Evaluate(
        ["py:coder_of_tasks:bot"], "t.jsonl", ["script:lines.txt"], single=False
    )
    monkeypatch.setattr("userlm.commands.grading.find", none)
    for _ in range(2):
        [cell] = evaluate(options)["cells"]
        assert "needs a sandbox" in cell["measures"][-2]["why"]
    monkeypatch.setattr("userlm.commands.grading.find", lambda unsafe_local: Passing())
    [cell] = evaluate(options)["cells"]
    found = {one["name"]: one["value"] for one in cell["measures"]}
    assert found["assistant score"] == 100


def test_a_score_of_tasks_shows_these_and_of_the_rest_the_titles_but_with_details(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"number": 3})])
    folder = run(here)
    capfd.readouterr()
    options = Score([folder], tasks="t.jsonl", out=here / "scored")
    score(options)
    shown = flat(capfd.readouterr().out)
    assert "assistant score" in shown and "MATTR" not in shown
    assert "How it writes: --details" in shown
    score(replace(options, output=Output(details=True)))
    assert "MATTR" in capfd.readouterr().out
    score(Score([folder], out=here / "scored2"))
    assert "MATTR" in capfd.readouterr().out


def test_tasks_that_no_conversation_is_about_are_said(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"number": 3})])
    folder = run(here)
    write_lines(here / "other.jsonl", [row("b", check={"number": 3})])
    score(Score([folder], tasks="other.jsonl", out=here / "scored"))
    assert "no conversation is about one of these tasks" in flat(capfd.readouterr().err)


def test_a_limit_for_a_judge_without_one_is_a_mistake(here: Path) -> None:
    write_lines(here / "t.jsonl", [row("a", check={"number": 3})])
    folder = run(here)
    grading = Grading(judge_price="1/1")
    with pytest.raises(InputError, match="for a --judge; give one"):
        score(Score([folder], tasks="t.jsonl", out=here / "scored", grading=grading))


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tasks_of_the_page_are_checked_run_and_scored(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page.partition("\n## Your tasks")[2]
    said = {
        "parcel": ["where is my parcel?", "4471, it should have come on monday"],
        "refund": ["my lamp arrived broken, order 5820"],
        "candles": ["how much are 12 candles?", "one is 2.50, 10 percent off for ten"],
        "driver": ["your driver shouted at me on tuesday evening"],
        "hours": ["until when are you open?"],
    }
    people = []
    for id, texts in said.items():
        turns = []
        for text in texts:
            turns.append({"role": "user", "text": text})
            turns.append({"role": "assistant", "text": "ok"})
        people.append({"id": id, "turns": turns, "ended": True})
    write_lines(tmp_path / "people.jsonl", people)
    tour = "\n".join(SHELL.findall(section))
    with serving(judging) as server:

        def offline(text: str) -> str:
            text = text.replace("trained:userlm-small", "replay:people.jsonl")
            return text.replace("openai:gpt-4o", f"{server.url}/v1#judge")

        for name, text in FILE.findall(section):
            (tmp_path / name).write_text(offline(text))
        done = subprocess.run(
            ["bash", "-e", "-c", offline(tour)],
            cwd=tmp_path,
            env=processes.on_path(tmp_path / "bin"),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr + done.stdout
    marked = read_tasks(tmp_path / "runs" / "tasks")
    assert {task.id for task in marked if task.marked == "judge"} == {
        "parcel",
        "candles",
    }
    results = read_json(tmp_path / "runs" / "compared" / "results.json")
    scores = {}
    for column in ("helper", "shrug"):
        found = {one["name"]: one for one in results[column]}
        scores[column] = found["assistant score"]["value"]
        assert found["intent coverage"]["n"] == 4
    # the judge of this test finds every answer to the complaint right
    assert scores == {"helper": 100, "shrug": 20}
    stops = [
        one.stop
        for one in read_conversations(tmp_path / "runs/helper/conversations.jsonl")
    ]
    assert stops.count("solved") == 4
