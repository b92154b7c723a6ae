"""`userlm evaluate` and `userlm.evaluate`: grids of assistants and users on tasks, and gates."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import completion, serving

import userlm
from userlm.commands import (
    Compare,
    Evaluate,
    Limits,
    LocalModels,
    Report,
    User,
    UserSettings,
    compare,
    evaluate,
    report,
)
from userlm.commands.evaluate import slugs, without_added
from userlm.commands.grading import Grading, _demand
from userlm.commands.options import Failures, Output
from userlm.json_files import read_json, write_lines
from userlm.metrics.gate import Gate
from userlm.rows import read_conversations
from userlm.stats import PERCENT, measure, measure_row
from userlm.types import (
    RIGHT,
    Conversation,
    InputError,
    ModelError,
    Reply,
    TestsCheck,
    Verdict,
)

COLOURS = ("red", "blue", "green", "black", "white")
BOTS = '''
from pathlib import Path

def knows(text):
    """Right about every colour that is named in this turn."""
    for colour in ("red", "blue", "green", "black", "white"):
        if colour in text:
            return f"It is {colour} then."
    return "Which colour?"

def asks(text):
    return "Which colour?"

def breaks(text):
    if Path("broken").exists():
        raise RuntimeError("out of paint")
    return knows(text)

def counts(text):
    with open("asked.txt", "a") as file:
        file.write("x")
    return knows(text)
'''
USERS = """
import userlm

def slow(conversation: userlm.Conversation):
    if not conversation.user_turns:
        return "I want to paint"
    if len(conversation.user_turns) == 1:
        return conversation.intent.rpartition(" ")[2]
    return userlm.Reply(stop="end")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bots_of_a_grid.py").write_text(BOTS)
    (tmp_path / "users_of_a_grid.py").write_text(USERS)
    rows = []
    for colour in COLOURS:
        check = {"contains": f"it is {colour}"}
        intent = f"to paint it {colour}"
        rows.append({"id": colour, "intent": intent, "facts": [colour], "check": check})
    write_lines(tmp_path / "t.jsonl", rows)
    return tmp_path


def grid(*bots: str, **options: object) -> Evaluate:
    given = {"tasks": "t.jsonl", "user": ["py:users_of_a_grid:slow"], **options}
    return Evaluate([f"py:bots_of_a_grid:{bot}" for bot in bots], **given)  # type: ignore[arg-type]


def scores(results: dict[str, object]) -> dict[tuple[str, str], float]:
    found = {}
    for cell in results["cells"]:  # type: ignore[attr-defined]
        by_name = {one["name"]: one for one in cell["measures"]}
        names = cell["assistant"].rpartition(":")[2], cell["user"].rpartition(":")[2]
        found[names] = by_name["assistant score"]["value"]
    return found


# --- the grid -------------------------------------------------------------------------------------


def test_each_assistant_talks_with_each_user_and_gets_each_task_in_one_prompt(
    here: Path,
) -> None:
    results = evaluate(grid("knows", "asks", repeats=2, controls=True))
    assert scores(results) == {
        ("knows", "slow"): 100,
        ("knows", "single"): 100,
        ("asks", "slow"): 0,
        ("asks", "single"): 0,
        ("oracle", "slow"): 100,
        ("oracle", "single"): 100,
        ("clarifier", "slow"): 0,
        ("clarifier", "single"): 0,
    }
    cell = here / "runs/evaluate/cells/py-bots-of-a-grid-knows--py-users-of-a-grid-slow"
    talks = list(read_conversations(cell / "conversations.jsonl"))
    assert [one.id for one in talks] == [f"{c}#{k}" for c in COLOURS for k in (0, 1)]
    assert {one.stop for one in talks} == {"solved"}
    assert {one.user_turns for one in talks if one.id.startswith("red")} == {
        ("I want to paint", "red")
    }
    single = cell.parent / "py-bots-of-a-grid-asks--single"
    [first, *_] = read_conversations(single / "conversations.jsonl")
    assert (first.user_turns, first.stop) == (("to paint it red",), "end")
    assert (cell / "score" / "grades.jsonl").is_file()


def test_a_finished_cell_is_not_run_again_and_errors_are_tried_again(
    here: Path,
) -> None:
    (here / "broken").touch()
    options = grid("counts", "breaks", single=False)
    with pytest.raises(
        ModelError, match=r"breaks with .*: 5 of 5 .* ended in an error"
    ):
        evaluate(options)
    asked = (here / "asked.txt").read_text()
    (here / "broken").unlink()
    assert scores(evaluate(options)) == {
        ("counts", "slow"): 100,
        ("breaks", "slow"): 100,
    }
    assert (here / "asked.txt").read_text() == asked


def test_conversations_that_are_tried_again_are_scored_again(here: Path) -> None:
    (here / "bots_of_half_a_grid.py").write_text(
        "from bots_of_a_grid import *\n"
        "def half(text):\n"
        "    if 'red' in text and Path('broken').exists():\n"
        "        raise RuntimeError('out of red')\n"
        "    return knows(text)\n"
    )
    (here / "broken").touch()
    options = Evaluate(
        ["py:bots_of_half_a_grid:half"],
        tasks="t.jsonl",
        user=["py:users_of_a_grid:slow"],
        single=False,
    )
    with pytest.raises(ModelError, match="1 of 5 conversations ended in an error"):
        evaluate(options)
    results = read_json(here / "runs/evaluate/results.json")
    [cell] = results["cells"]
    assert cell["stops"] == {"error": 1, "solved": 4}
    (here / "broken").unlink()
    [cell] = evaluate(options)["cells"]
    found = {one["name"]: one for one in cell["measures"]}
    assert (found["assistant score"]["n"], found["assistant score"]["missing"]) == (
        5,
        0,
    )


def test_a_run_is_begun_anew_by_force_alone(here: Path) -> None:
    evaluate(grid("asks"))
    with pytest.raises(
        InputError, match=r"other options \(repeats=1 there, repeats=2 now"
    ):
        evaluate(grid("asks", repeats=2))
    [cell, _] = evaluate(grid("asks", repeats=2, output=Output(force=True)))["cells"]
    assert cell["stops"] == {"end": 10}
    assert not (here / "runs/evaluate/.replaced").exists()


def test_code_that_may_run_without_a_sandbox_also_stops_a_conversation(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(unsafe_local: bool) -> object:
        if not unsafe_local:
            raise InputError("there is no sandbox")
        return Passing()

    class Passing:
        def run(self, check: TestsCheck, code: str, /) -> Verdict:
            return Verdict(RIGHT, "passed")

    monkeypatch.setattr("userlm.commands.grading.find", found)
    write_lines(
        here / "t.jsonl", [{"id": "a", "goal": "x", "check": {"tests": "assert f()"}}]
    )
    (here / "says.txt").write_text("hello\nand?\n")
    (here / "coder_of_a_grid.py").write_text(
        "def bot(text):\n    return '```python\\ndef f():\\n    return 1\\n```'\n"
    )
    options = Evaluate(
        ["py:coder_of_a_grid:bot"],
        tasks="t.jsonl",
        user=["script:says.txt"],
        single=False,
        grading=Grading(unsafe_local=True),
    )
    [cell] = evaluate(options)["cells"]
    assert cell["stops"] == {"solved": 1}


def test_limits_hold_for_all_cells_together(here: Path) -> None:
    """Each of two cells needs five calls: five conversations of one answer."""

    def answer(body: dict[str, object], n: int):  # type: ignore[no-untyped-def]
        return completion("It is red then.")

    with serving(answer) as server:
        models = [f"{server.url}#one", f"{server.url}#two"]
        options = Evaluate(
            models,
            tasks="t.jsonl",
            user=["single"],
            workers=1,
            limits=Limits(max_calls=8),
        )
        with pytest.raises(ModelError, match="#two with single: 2 of 5 conversations"):
            evaluate(options)
        assert len(server.bodies) == 8
        evaluate(replace(options, limits=Limits(max_calls=10)))
        assert len(server.bodies) == 10


def test_a_single_prompt_is_estimated_as_one_call(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda body, n: completion("It is red then.")) as server:
        model = f"{server.url}#one"
        limits = Limits(max_calls=5)
        evaluate(Evaluate([model], tasks="t.jsonl", user=["single"], limits=limits))
    shown = capfd.readouterr().err
    assert "#one: 5 calls" in shown
    assert "may stop the run earlier" not in shown


def test_each_model_has_its_own_price(here: Path) -> None:
    with serving(lambda body, n: completion("It is red then.")) as server:
        models = [f"{server.url}#one", f"{server.url}#two"]
        options = Evaluate(
            models, tasks="t.jsonl", user=["single"], price=["1000/0", "0/0"]
        )
        evaluate(options)
        costs = [
            read_json(path)["usage"]["assistant"]["cost"]
            for path in sorted(here.glob("runs/evaluate/cells/*/results.json"))
        ]
        assert costs[0] > 0 and costs[1] == 0
        report(Report([here / "runs/evaluate"], here / "page"))
        page = (here / "page/report.md").read_text()
        total = rf"10 calls of models, \d+ tokens, \${costs[0]:.2f}\."
        assert re.search(total, page)
        three = Evaluate(models, tasks="t.jsonl", price=["1/1"] * 3)
        with pytest.raises(InputError, match="--price: 3 prices and 2 models"):
            evaluate(three)
    with pytest.raises(InputError, match="--price: 1 price and 0 models"):
        evaluate(grid("asks", price=["1/1"]))


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_answers_that_were_cut_are_counted_and_the_report_says_so(
    finish: str, here: Path
) -> None:
    def answer(body: dict[str, object], n: int):  # type: ignore[no-untyped-def]
        return completion("It could be", finish=finish if n % 2 else "stop")

    with serving(answer) as server:
        cut = Evaluate([f"{server.url}#one"], tasks="t.jsonl", user=["single"])
        [cell] = evaluate(cut)["cells"]
    assert cell["cut"] == {"assistant": len(COLOURS) // 2}
    assert evaluate(grid("asks", out=Path("whole")))["cells"][0]["cut"] == {}
    report(Report([Path("runs/evaluate"), Path("whole")], here / "page"))
    page = " ".join((here / "page/report.md").read_text().split())
    assert page.count("Cut before the end") == 1
    assert "`evaluate`: 2 assistant turns, by their maximum length (" in page


def test_a_limit_without_a_model_and_a_price_that_is_needed_are_mistakes(
    here: Path,
) -> None:
    with pytest.raises(InputError, match="are for models; none is called here"):
        evaluate(grid("asks", limits=Limits(max_calls=1)))
    with pytest.raises(InputError, match="--judge-price is for the judge"):
        evaluate(grid("asks", grading=Grading(judge_price="1/1")))
    judged = Grading(judge="http://localhost:1/v1#m")
    with pytest.raises(InputError, match="--judge-price x: give US dollars"):
        evaluate(grid("asks", grading=replace(judged, judge_price="x")))
    with pytest.raises(InputError, match="give --judge-price IN/OUT"):
        evaluate(grid("asks", grading=judged, limits=Limits(budget=1.0)))
    with pytest.raises(InputError, match="--budget needs the price of the tokens"):
        evaluate(
            Evaluate(
                ["http://localhost:1/v1#one"],
                tasks="t.jsonl",
                user=["single"],
                limits=Limits(budget=1.0),
            )
        )
    assert not (here / "runs/evaluate/cells").exists()


def test_the_judge_is_not_asked_again_what_it_has_answered(here: Path) -> None:
    rows = [
        {"id": str(i), "goal": f"x{i}", "check": {"rubric": "Kind."}} for i in range(2)
    ]
    write_lines(here / "t.jsonl", rows)
    (here / "broken").touch()

    def judging(body: dict[str, object], n: int):  # type: ignore[no-untyped-def]
        return completion(json.dumps({"reason": "so", "label": "RIGHT"}))

    (here / "bots_of_a_judge.py").write_text(
        "from pathlib import Path\n"
        "seen = []\n"
        "def bot(text, session):\n"
        "    seen.append(session)\n"
        "    if len(set(seen)) == 2 and Path('broken').exists():\n"
        "        raise RuntimeError('tired')\n"
        "    return 'Sure.'\n"
    )
    with serving(judging) as server:
        options = Evaluate(
            ["py:bots_of_a_judge:bot"],
            tasks="t.jsonl",
            user=["single"],
            workers=1,
            grading=Grading(judge=f"{server.url}#judge"),
        )
        with pytest.raises(ModelError, match="1 of 2 conversations"):
            evaluate(options)
        before = len(server.bodies)
        (here / "broken").unlink()
        [cell] = evaluate(options)["cells"]
        assert cell["stops"] == {"end": 2}
        assert len(server.bodies) == 2 * before


def test_a_judge_that_is_given_later_only_grades(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": str(i), "goal": f"x{i}", "check": {"rubric": f"Kind{i}."}}
        for i in range(2)
    ]
    write_lines(here / "t.jsonl", rows)
    (here / "says.txt").write_text("hello\n")
    options = grid("counts", user=["script:says.txt"])
    evaluate(options)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "2 of 2 tasks have a rubric, which needs a --judge; without one" in said
    asked = (here / "asked.txt").read_text()

    def judging(body: dict[str, object], n: int):  # type: ignore[no-untyped-def]
        if "Kind1" in str(body) and body["max_tokens"] == 300:
            return completion("", reasoning="Hm", tokens_out=300, finish="length")
        return completion(json.dumps({"reason": "so", "label": "RIGHT"}))

    with serving(judging) as server:
        judged = Grading(judge=f"{server.url}#judge")
        # A mistake costs nothing, and another judge may follow one that was wrong.
        with pytest.raises(InputError, match="give --judge-price"):
            evaluate(replace(options, grading=judged, limits=Limits(budget=1.0)))
        assert (here / "runs/evaluate/results.json").is_file()
        with pytest.raises(ModelError, match="4 of 4 verdicts are missing"):
            evaluate(replace(options, grading=Grading(judge="script:says.txt")))
        [cell, _] = evaluate(replace(options, grading=judged))["cells"]
        scored = {one["name"]: one for one in cell["measures"]}["assistant score"]
        assert (scored["n"], scored["missing"]) == (1, 1)
        before = len(server.bodies)
        evaluate(replace(options, grading=judged))
        assert len(server.bodies) == before
        longer = replace(judged, judge_tokens=4000)
        [cell, _] = evaluate(replace(options, grading=longer))["cells"]
        scored = {one["name"]: one for one in cell["measures"]}["assistant score"]
        assert (scored["n"], scored["missing"]) == (2, 0)
        again = server.bodies[before:]
        assert again and all("Kind1" in str(body) for body in again)
        with pytest.raises(
            InputError, match="judge_tokens=4000 there, judge_tokens=300"
        ):
            evaluate(replace(options, grading=judged))
    assert (here / "asked.txt").read_text() == asked


def test_caps_hold_for_all_judges_together_and_one_that_comes_back_is_not_paid_again(
    here: Path,
) -> None:
    rows = [{"id": "a", "goal": "x", "check": {"rubric": "Kind."}}]
    write_lines(here / "t.jsonl", rows)
    (here / "says.txt").write_text("hello\n")
    options = grid("counts", user=["script:says.txt"])

    def judging(body: dict[str, object], n: int):  # type: ignore[no-untyped-def]
        return completion(json.dumps({"reason": "so", "label": "RIGHT"}))

    with serving(judging) as server:
        judges = {name: Grading(judge=f"{server.url}#{name}") for name in "ab"}
        by_a = replace(options, grading=judges["a"])
        [first, _] = evaluate(by_a)["cells"]
        calls = len(server.bodies)
        assert calls == 4  # of the answer and of each turn of the user
        by_b = replace(options, grading=judges["b"])
        with pytest.raises(ModelError, match="2 of 2 verdicts are missing"):
            evaluate(replace(by_b, limits=Limits(max_calls=calls + 1)))
        assert len(server.bodies) == calls + 1
        results = evaluate(by_b)
        assert len(server.bodies) == 2 * calls == results["spent"]["calls"]
        for again in (by_a, by_b):
            results = evaluate(again)
            assert results["cells"][0]["measures"] == first["measures"]
            assert len(server.bodies) == 2 * calls == results["spent"]["calls"]


def test_a_gate_that_nothing_can_pass_is_refused_before_the_first_call(
    here: Path,
) -> None:
    for gate in ("score=0.5", "coverage=0.5:low"):
        with pytest.raises(InputError, match="4 tasks have no interval"):
            evaluate(grid("asks", fail_under=[gate], limit=4))
    assert not (here / "runs/evaluate/cells").exists()


@pytest.mark.slow
def test_two_assistants_get_the_same_first_turns_of_a_sampled_user(here: Path) -> None:
    """The seed of a turn does not depend on who answers."""
    options = grid(
        "asks",
        "knows",
        user=["trained:userlm-tiny"],
        single=False,
        repeats=2,
        max_turns=1,
        limit=2,
        models=LocalModels(batch=1, device="cpu"),
    )
    evaluate(options)
    first, second = (
        [talk.user_turns for talk in read_conversations(path)]
        for path in sorted(here.glob("runs/evaluate/cells/*/conversations.jsonl"))
    )
    assert first == second
    assert len(set(first)) > 1  # repeats differ


def test_names_of_cells_are_different_also_where_case_is_ignored() -> None:
    assert slugs(["py:a:b", "py-a-b", "PY:A:B", "http://h:1/v1#m", "::", "/"]) == [
        "py-a-b",
        "py-a-b-2",
        "PY-A-B-3",
        "http-h-1-v1-m",
        "x",
        "x-2",
    ]


def test_a_single_prompt_is_the_intent_and_needs_one() -> None:
    single = userlm.user("single")
    asked = Conversation(
        intent="You are a user chatting with an assistant language model to go."
    )
    assert single.reply(asked) == Reply("go.")
    assert single.reply(asked.say("go.").say("ok")) == Reply(stop="end")
    with pytest.raises(InputError, match="has no intent"):
        single.reply(Conversation())


def test_a_guard_may_let_the_user_end() -> None:
    guard = userlm.Guard.parse("paper,may-end")
    assert not guard.no_end and guard.max_words == 25
    assert User("u", UserSettings(guard="paper")).settings.guard == "paper"


# --- what added demands cost ---


def test_demands_that_were_added_are_cut_out_of_turns_and_whole_turns_are_left_out() -> (
    None
):
    talk = Conversation("a")
    for text in ("paint it", "which?", "red, in oil", "No oil.", "in  oil!", "No."):
        talk = talk.say(text)
    demands = {("a", 1): ", in oil", ("a", 2): None, ("b", 0): None}
    found = without_added(talk, demands)
    assert [turn.text for turn in found.turns] == [
        "paint it",
        "which?",
        "red",
        "No oil.",
    ]
    assert without_added(talk, {}) == talk
    everything = {("a", number): None for number in range(3)}
    assert without_added(talk, everything) == talk  # there is nothing to say


OIL = """
from pathlib import Path
import userlm
from bots_of_a_grid import knows

def user(conversation: userlm.Conversation):
    if conversation.user_turns:
        return userlm.Reply(stop="end")
    return conversation.intent + " in oil"

def bot(text):
    with open("asked.txt", "a") as file:
        file.write(text + "\\n")
    if "red" in text and Path("broken").exists():
        raise RuntimeError("out of red")
    return "No oil." if "oil" in text else knows(text)
"""


def judging_oil(body: dict[str, object], n: int):  # type: ignore[no-untyped-def]
    [message] = body["messages"]  # type: ignore[misc]
    label, reason = "SAID", "so"
    if "ADDS" in message["content"]:
        said = message["content"].rpartition("next message")[2]
        label = "ADDS" if "in oil" in said else "KEEPS"
        reason = "[ in oil] is new"
    return completion(json.dumps({"reason": reason, "label": label}))


def replaying(judge: str) -> Evaluate:
    """A bot that has no oil, and a user who wants it, which no task does."""
    return Evaluate(
        ["py:oil_of_a_grid:bot"],
        tasks="t.jsonl",
        user=["py:oil_of_a_grid:user"],
        single=False,
        replay=True,
        grading=Grading(judge=f"{judge}#judge"),
    )


def test_of_a_replay_only_what_is_new_is_asked_again_and_all_that_was_asked_is_counted(
    here: Path,
) -> None:
    (here / "oil_of_a_grid.py").write_text(OIL)
    (here / "broken").touch()
    with serving(judging_oil) as server:
        options = replaying(server.url)
        for _ in range(3):  # red fails in both cells, however often it is tried
            with pytest.raises(ModelError, match="1 of 5 conversations"):
                evaluate(options)
        (here / "broken").unlink()
        results = evaluate(options)
        replayed = [
            text
            for text in (here / "asked.txt").read_text().splitlines()
            if "oil" not in text
        ]
        assert len([text for text in replayed if "red" not in text]) == 4
        assert results["spent"]["calls"] == len(server.bodies)
    assert scores(results)["bot", "user, without added demands"] == 100


def test_a_grid_goes_on_under_another_name_of_its_folder(here: Path) -> None:
    (here / "oil_of_a_grid.py").write_text(OIL)
    with serving(judging_oil) as server:
        options = replaying(server.url)
        results = evaluate(options)
        asked = (here / "asked.txt").read_text(), len(server.bodies)
        (here / "runs/evaluate").rename(here / "moved")
        for out in ("moved", here / "moved", "./moved", "moved"):
            for path in (here / "moved").rglob("results.json"):
                path.unlink()
            assert evaluate(replace(options, out=Path(out))) == results
        assert asked == ((here / "asked.txt").read_text(), len(server.bodies))


def test_a_demand_is_words_of_the_turn_and_no_part_of_another_word() -> None:
    text = "My order is 4471. Please send 1 lamp in 14 days, and a pen."
    for reason in ("A demand [1].", "It [a] adds.", "[my order] is no demand here."):
        assert _demand(reason, text) is None
    demand = _demand("As [1] says: [send 1 lamp in 14 days, ].", text)
    talk = Conversation("a#0", intent="x").say(text).say("ok")
    found = without_added(talk, {("a#0", 0): demand}).user_turns
    assert found == ("My order is 4471. Please and a pen.",)
    assert _demand("[send 1 lamp in 1]", text) is None


@pytest.mark.parametrize(
    ("text", "demand", "rest"),
    [
        ("Cancel order 4471. Hurry!", "Hurry!", "Cancel order 4471."),
        ("请取消订单4471,也要一盏灯。", "也要一盏灯", "请取消订单4471,。"),
        ("İptal et, hızlı ol", "hızlı ol", "İptal et,"),
    ],
)
def test_a_demand_may_be_one_word_in_any_script(
    text: str, demand: str, rest: str
) -> None:
    assert _demand(f"It adds [{demand}].", text) == demand
    talk = Conversation("a#0", intent="x").say(text).say("ok")
    assert without_added(talk, {("a#0", 0): demand}).user_turns == (rest,)


def test_turns_are_said_again_without_added_demands_where_these_made_a_bot_fail(
    here: Path,
) -> None:
    """The user wants oil, which the task does not, and the bot has none."""
    (here / "oil_of_a_grid.py").write_text(OIL)
    with serving(judging_oil) as server:
        options = replaying(server.url)
        results = evaluate(options)
        asked = len(server.bodies)
        (here / "runs/evaluate/results.json").unlink()
        assert evaluate(options) == results
        assert len(server.bodies) == asked
    assert scores(results) == {
        ("bot", "user"): 0,
        ("bot", "user, without added demands"): 100,
    }
    [cost] = compare(Compare([here / "runs/evaluate"]))["added"]
    assert (cost["user"], cost["value"]) == ("py:oil_of_a_grid:user", 100)
    with pytest.raises(InputError, match="--replay needs a --judge"):
        evaluate(grid("asks", replay=True))


# --- gates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "value", "low", "why"),
    [
        ("score=0.7", 80.0, 70.0, ""),
        (
            "score=0.7",
            80.0,
            69.9,
            "the score of 9 conversations is 80.0 %, and may be as low",
        ),
        ("score=0.7:low", 80.0, None, "fewer than 5 tasks have no interval"),
        ("score=.7:value", 70.0, None, ""),
        (
            "coverage=1:value",
            99.0,
            None,
            "coverage of 9 conversations is 99.0 %, less than",
        ),
        ("score=0:value", None, None, "the score was not measured"),
    ],
)
def test_a_gate_is_on_the_lower_end_or_on_the_value(
    gate: str, value: float | None, low: float | None, why: str
) -> None:
    found = Gate.parse(gate).failure(value, low, 9)
    assert why in found and bool(found) == bool(why)


@pytest.mark.parametrize(
    "text", ["0.7", "score=70", "score=1.5", "turns=1", "score=.7:high"]
)
def test_what_is_no_gate_is_a_mistake(text: str) -> None:
    with pytest.raises(InputError, match=r"write score=0.7"):
        Gate.parse(text)


def test_a_gate_names_each_assistant_that_fails_and_asks_nobody_again(
    here: Path,
) -> None:
    options = grid("counts", "asks", controls=True, fail_under=["score=0.2"])
    with pytest.raises(ModelError) as raised:
        evaluate(options)
    [line] = str(raised.value).splitlines()  # neither controls nor single prompts
    assert line.startswith("py:bots_of_a_grid:asks with py:users_of_a_grid:slow: ")
    asked = (here / "asked.txt").read_text()
    evaluate(grid("counts", "asks", controls=True))
    with pytest.raises(ModelError):
        evaluate(options)
    assert (here / "asked.txt").read_text() == asked


@pytest.mark.parametrize(("bot", "user"), [("asks", "single"), ("clarifier", "slow")])
def test_a_gate_holds_for_a_stub_or_a_single_prompt_that_was_asked_for_by_name(
    here: Path, bot: str, user: str
) -> None:
    options = Evaluate(
        [bot if bot == "clarifier" else f"py:bots_of_a_grid:{bot}"],
        tasks="t.jsonl",
        user=[user if user == "single" else f"py:users_of_a_grid:{user}"],
        fail_under=["score=0.5:value"],
    )
    with pytest.raises(ModelError, match=r"is 0.0 %, less than 50 %"):
        evaluate(options)


def test_a_gate_fails_where_conversations_have_no_grade(here: Path) -> None:
    rows = [
        {"id": str(i), "goal": "x", "check": {"contains": "colour"}} for i in range(9)
    ]
    rows.append({"id": "9", "goal": "x", "check": {"rubric": "It is kind."}})
    write_lines(here / "t.jsonl", rows)
    options = grid("asks", user=["script:says.txt"], fail_under=["score=0.5"])
    (here / "says.txt").write_text("hello\n")
    with pytest.raises(InputError, match="1 of 10 tasks have a rubric, which needs a"):
        evaluate(options)
    assert not (here / "runs/evaluate/cells").exists()
    evaluate(grid("asks", user=["script:says.txt"]))
    with pytest.raises(ModelError, match=r"1 of 10 .* have no grade .*needs a judge"):
        evaluate(options)
    evaluate(
        grid(
            "asks",
            user=["script:says.txt"],
            fail_under=["score=0.5"],
            failures=Failures(0.1),
        )
    )


def test_the_lower_ends_on_the_page_are_those_of_today() -> None:
    page = (Path(__file__).parent.parent / "docs/test-my-chatbot.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \| ([\d.]+) % \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for tasks, *ends in rows:
        for share, end in zip((1, 0.9), ends, strict=True):
            total = int(tasks)
            solved = [float(i < share * total) for i in range(total)]
            scored = [
                measure_row(str(i), str(i), (x, 1.0)) for i, x in enumerate(solved)
            ]
            assert f"{measure(scored, PERCENT).low:.1f}" == end


# --- in Python ------------------------------------------------------------------------------------


def bot(text: str) -> str:
    return f"It is {text}."


def slow(conversation: Conversation) -> str | Reply:
    if not conversation.user_turns:
        return "I want to paint"
    return str(conversation.intent).rpartition(" ")[2]


def test_a_bot_is_tested_in_three_lines(here: Path) -> None:
    found = userlm.evaluate(bot, "t.jsonl", slow, repeats=2, max_turns=3)
    assert (found.score, found.failed, len(found.conversations)) == (1, [], 10)
    assert found.low is not None and 0 < found.low < 1 == found.high
    found.check(score=0.2)
    with pytest.raises(AssertionError, match="may be as low as"):
        found.check(score=0.99)
    found.check(score=1, end="value")
    assert not (here / "runs").exists()


def test_in_python_a_user_has_the_same_defaults_by_its_name_as_on_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded user is small and repeats itself, so it has a guard."""
    loaded = []

    def load(asked: User, *_: object) -> object:
        loaded.append(asked.settings.guard)
        return userlm.user("single")

    monkeypatch.setattr(User, "load", load)
    for user in (None, "trained:userlm-small"):
        userlm.evaluate(bot, "t.jsonl", user)
    assert loaded == ["no-repeat"] * 2


def test_in_python_errors_and_missing_grades_fail_the_check(here: Path) -> None:
    def tired(text: str) -> str:
        raise ValueError("I am tired")

    found = userlm.evaluate(tired, "t.jsonl", slow)
    assert (found.score, len(found.failed)) == (None, 5)
    with pytest.raises(AssertionError, match=r"5 of 5 .* error, the first: .*tired"):
        found.check(score=0)
    tasks = [userlm.Task("a", "i")]
    found = userlm.evaluate("clarifier", tasks, "single")
    with pytest.raises(AssertionError, match=r"1 of 1 .* no grade, .* has no check"):
        found.check(score=0, end="value")
