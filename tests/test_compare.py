"""`userlm compare` over a grid whose outcome is known by construction."""

import json
import random
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from fake_server import completion, serving
from flat import flat
from test_damaged import damage

from userlm import commands
from userlm.commands import Compare, Evaluate, Export, Score, Simulate, User
from userlm.commands.compare import read_human_scores
from userlm.json_files import read_json, write_json, write_lines
from userlm.rows import read_rows
from userlm.show import html, markdown
from userlm.show.finished import read_run
from userlm.show.page import describe
from userlm.types import Conversation, InputError, Reply

PATIENT, HASTY = "py:test_compare:patient", "py:test_compare:hasty"
AT_ONCE, ONE_BY_ONE = "py:test_compare:AtOnce", "py:test_compare:OneByOne"
SCORE = "assistant score"


def numbers(text: str) -> list[int]:
    return list(map(int, re.findall(r"[0-9]+", text)))


def patient(messages: list) -> str:
    """Answers once it knows both prices."""
    said = " ".join(one["content"] for one in messages if one["role"] == "user")
    return f"It is {sum(numbers(said))}." if len(numbers(said)) > 1 else "And pears?"


def hasty(text: str) -> str:
    """Answers from the last message alone."""
    return f"It is {sum(numbers(text))}."


class AtOnce:
    """Says both facts in one turn."""

    def reply(self, conversation: Conversation) -> Reply:
        if conversation.user_turns:
            return Reply(stop="end")
        return Reply(" ".join(re.findall(r"[A-Z]\w+ cost \d+", conversation.intent)))


class OneByOne:
    """Says a fact a turn. In the second conversation about an odd task it forgets the last one."""

    def reply(self, conversation: Conversation) -> Reply:
        facts = re.findall(r"[A-Z]\w+ cost \d+ dollars\.", conversation.intent or "")
        task, _, repeat = conversation.id.partition("#")
        known = facts[:1] if int(task[1:]) % 2 and int(repeat) % 2 else facts
        said = len(conversation.user_turns)
        return Reply(known[said]) if said < len(known) else Reply(stop="end")


def task(i: int) -> dict:
    apples, pears = 10 + i, 20 + 2 * i
    return {
        "id": f"t{i}",
        "goal": "find out what apples and pears cost together",
        "facts": [f"Apples cost {apples} dollars.", f"Pears cost {pears} dollars."],
        "check": {"number": apples + pears},
        "family": "odd" if i % 2 else "even",
    }


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    write_lines(folder / "tasks.jsonl", map(task, range(6)))
    commands.evaluate(
        flat(
            Evaluate,
            assistant=[PATIENT, HASTY],
            user=[AT_ONCE, ONE_BY_ONE],
            tasks=str(folder / "tasks.jsonl"),
            controls=True,
            repeats=2,
            max_turns=3,
            out=folder / "grid",
        )
    )
    return folder / "grid"


@pytest.fixture(scope="module")
def compared(grid: Path) -> Path:
    commands.compare(Compare([grid], out=grid.parent / "compared"))
    return grid.parent / "compared"


def run(folder: Path, assistant: str, **options) -> Path:
    """A run of `simulate`."""
    tasks = options.pop("tasks", folder / "tasks.jsonl")
    if not tasks.is_file():
        write_lines(tasks, map(task, range(6)))
    out = folder / options.pop("name")
    user = User(options.pop("user", ONE_BY_ONE))
    commands.simulate(Simulate(user, assistant, tasks=str(tasks), out=out, **options))
    return out


def score(folder: Path, *runs: Path, name: str = "score") -> Path:
    tasks = str(folder / "tasks.jsonl")
    commands.score(Score(list(runs), tasks=tasks, out=folder / name))
    return folder / name


def text(folder: Path) -> str:
    """The page of a run as Markdown, without line breaks."""
    return " ".join(markdown.render(describe([read_run(folder)])).split())


# --- a grid ---------------------------------------------------------------------------------------


def test_the_first_sentence_says_who_is_better_by_how_much_with_whom(compared) -> None:
    # Of the even tasks patient solves all, hasty those with AtOnce: 50 points apart. Of the odd
    # ones patient solves 3 of 4, hasty 2: 25 points. The mean of three of each is 37.5.
    found = text(compared)
    assert f"`{PATIENT}` is better than `{HASTY}` by 37.5 points [" in found
    assert f"with these users (`{AT_ONCE} and {ONE_BY_ONE}`; 6 tasks × 2)." in found
    first = read_json(compared / "results.json")["assistants"][0]
    assert (first["a"], first["b"], first["measure"]) == (PATIENT, HASTY, SCORE)
    assert first["with"] == [AT_ONCE, ONE_BY_ONE]
    assert (first["value"], first["clusters"]) == (37.5, 6)
    assert 0 < first["low"] < 37.5 < first["high"]


def test_the_scores_are_those_of_the_construction(compared) -> None:
    results = read_json(compared / "results.json")
    scores = {}
    for cell in results["cells"]:
        measures = {one["name"]: one["value"] for one in cell["measures"]}
        scores[cell["assistant"], cell["user"]] = measures[SCORE]
    assert scores == {
        (PATIENT, AT_ONCE): 100,
        (PATIENT, ONE_BY_ONE): 75,
        (PATIENT, "single"): 100,
        (HASTY, AT_ONCE): 100,
        (HASTY, ONE_BY_ONE): 0,
        (HASTY, "single"): 100,
        ("oracle", AT_ONCE): 100,
        ("oracle", ONE_BY_ONE): 75,
        ("oracle", "single"): 100,
        ("clarifier", AT_ONCE): 0,
        ("clarifier", ONE_BY_ONE): 0,
        ("clarifier", "single"): 0,
    }


def test_the_controls_are_not_the_assistants_that_the_first_sentence_is_about(
    compared,
) -> None:
    pairs = read_json(compared / "results.json")["assistants"]
    order = list(dict.fromkeys((one["a"], one["b"]) for one in pairs))
    assert order[0] == (PATIENT, HASTY)
    assert order[-1] == ("oracle", "clarifier")


def test_the_cost_of_being_talked_to_stands_beside_the_single_prompt(compared) -> None:
    found = read_json(compared / "results.json")["single"]
    lost = {(one["assistant"], one["user"]): one["value"] for one in found}
    assert lost == {
        (PATIENT, AT_ONCE): 0,
        (PATIENT, ONE_BY_ONE): 25,
        (HASTY, AT_ONCE): 0,
        (HASTY, ONE_BY_ONE): 100,
    }


def test_what_goes_with_failure_is_found_inside_the_tasks(compared) -> None:
    found = {
        one["measure"]: one
        for one in read_json(compared / "results.json")["failure"]
        if one["assistant"] == PATIENT
    }
    # Only the odd tasks with OneByOne have both kinds: with the fact it is solved, else not.
    left_out = found["intent coverage"]
    assert (left_out["value"], left_out["clusters"], left_out["with"]) == (-100, 3, 3)
    spread = found["spreads required facts"]
    assert (spread["value"], spread["with"], spread["of"]) == (100, 9, 24)
    covered = {
        (cell["assistant"], cell["user"]): cell["covered"]
        for cell in read_json(compared / "results.json")["cells"]
    }
    assert covered[PATIENT, ONE_BY_ONE]["value"] == 100
    assert covered[PATIENT, ONE_BY_ONE]["n"] == 9


def test_the_hardest_tasks_come_first_with_conversations_to_read(compared) -> None:
    worst = read_json(compared / "results.json")["worst"]
    assert [one["task"] for one in worst] == ["t1", "t3", "t5", "t0", "t2", "t4"]
    assert worst[0]["scores"] == {PATIENT: 75, HASTY: 50}
    assert worst[0]["family"] == "odd"
    places = [(one["assistant"], one["user"], one["id"]) for one in worst[0]["failed"]]
    assert places == [
        (PATIENT, ONE_BY_ONE, "t1#1"),
        (HASTY, ONE_BY_ONE, "t1#0"),
        (HASTY, ONE_BY_ONE, "t1#1"),
    ]
    talks = [line.row for line in read_rows(compared / "failed.jsonl")]
    assert [one["id"] for one in talks[:3]] == ["t1#1", "t1#0", "t1#1"]
    assert talks[1]["meta"]["verdict"] == "22, not 33"


def test_each_conversation_that_is_listed_is_linked_to_where_the_page_has_it(
    compared,
) -> None:
    page = html.render(describe([read_run(compared)]))
    links = set(re.findall(r'href="#(c-[^"]+)"', page))
    # Patient fails in three conversations with OneByOne, hasty in all twelve.
    assert len(links) == 15
    for link in links:
        assert f'"anchor":"{link}"' in page.replace('": "', '":"')
    assert '"solved":false' in page
    assert "Apples cost 11 dollars." in page
    assert "failed.jsonl" in text(compared)


def test_the_variance_of_a_score_is_split_and_tells_how_many_tasks_it_takes(
    compared,
) -> None:
    results = read_json(compared / "results.json")
    hasty_one = next(one for one in results["variance"] if one["assistant"] == HASTY)
    # It solves everything with one user and nothing with the other: half of (100 - 0)^2.
    assert (hasty_one["user"], hasty_one["task"], hasty_one["repeat"]) == (5000, 0, 0)
    assert {one["points"] for one in results["needed"]} == {5, 10, 20}
    needed = [one["tasks"] for one in results["needed"] if one["repeats"] == 2]
    assert needed == sorted(needed, reverse=True)


def test_users_are_compared_with_a_warning_that_lower_is_not_better(compared) -> None:
    [pooled] = [
        one
        for one in read_json(compared / "results.json")["users"]
        if one["measure"] == SCORE and len(one["with"]) == 2
    ]
    # Patient solves 25 points more with AtOnce, hasty 100.
    assert (pooled["a"], pooled["value"]) == (AT_ONCE, 62.5)
    assert "Lower is not better" in text(compared)


def test_the_terminal_shows_it_on_one_screen(compared, capsys) -> None:
    folder = compared.parent
    commands.compare(Compare([folder / "grid"], out=compared))
    shown = capsys.readouterr().out
    assert "is better than" in shown
    assert "went wrong" not in shown
    assert shown.count("\n") < 70


def test_a_grid_that_was_moved_can_still_be_compared(grid, tmp_path) -> None:
    shutil.copytree(grid, tmp_path / "moved")
    before = read_json(grid.parent / "compared" / "results.json")["assistants"]
    results = commands.compare(Compare([tmp_path / "moved"], out=tmp_path / "out"))
    assert results["assistants"] == before
    assert str(tmp_path) in results["cells"][0]["folder"]


def test_a_cell_that_failed_is_named_and_not_left_out(grid, tmp_path) -> None:
    shutil.copytree(grid, tmp_path / "grid")
    shutil.rmtree(next((tmp_path / "grid" / "cells").glob("*hasty--*AtOnce")) / "score")
    with pytest.raises(InputError, match="hasty--py-test-compare-AtOnce has no scores"):
        commands.compare(Compare([tmp_path / "grid"], out=tmp_path / "out"))


def test_single_prompts_alone_are_compared_as_any_user_is(tmp_path) -> None:
    runs = [
        run(tmp_path, one, name=one[-5:], user="single") for one in (PATIENT, HASTY)
    ]
    results = commands.compare(Compare([score(tmp_path, *runs)], out=tmp_path / "out"))
    assert results["assistants"][0]["with"] == ["single"]
    assert results["single"] == []


def test_what_was_not_graded_is_not_measured_and_not_zero(tmp_path) -> None:
    rows = [{**task(i), "check": {"rubric": "It is right."}} for i in range(6)]
    write_lines(tmp_path / "tasks.jsonl", rows)
    runs = [run(tmp_path, one, name=one[-5:]) for one in (PATIENT, HASTY)]
    results = commands.compare(Compare([score(tmp_path, *runs)], out=tmp_path / "out"))
    assert SCORE not in {one["measure"] for one in results["assistants"]}
    found = text(tmp_path / "out")
    assert "Nothing can be compared" in found
    assert "not measured: `not graded: needs a judge` (6 missing)" in found


def test_the_page_of_a_grid_has_all_measures_of_each_cell_also_by_family(grid) -> None:
    # OneByOne tells a fact a turn and forgets the last one in half of the odd conversations.
    found = text(grid)
    row = rf"`{PATIENT}` \| `{ONE_BY_ONE}` \| `spreads required facts` \| ([^|]*)\|([^|]*)\|([^|]*)\|"
    [values] = re.findall(row, found)
    assert [value.split("%")[0].strip() for value in values] == [
        "75.00",
        "100.00",
        "50.00",
    ]
    assert "| all tasks | `even` | `odd` |" in found


# --- runs -----------------------------------------------------------------------------------------


def test_the_same_bot_before_and_after_a_change_is_named_by_its_folders(
    tmp_path,
) -> None:
    before = run(tmp_path, PATIENT, name="before")
    after = run(tmp_path, PATIENT, name="after")
    scored = score(tmp_path, before, after)
    results = commands.compare(Compare([scored], out=tmp_path / "out"))
    names = [cell["assistant"] for cell in results["cells"]]
    assert names == [f"{PATIENT} (before)", f"{PATIENT} (after)"]
    assert results["assistants"][0]["value"] == 0
    assert "cannot be told apart" in text(tmp_path / "out")


def test_two_grids_before_and_after_a_change_are_compared_with_all_of_their_users(
    grid, tmp_path
) -> None:
    for name in ("before", "after"):
        shutil.copytree(grid, tmp_path / name)
    grids = [tmp_path / "before", tmp_path / "after"]
    results = commands.compare(Compare(grids, out=tmp_path / "out"))
    first = results["assistants"][0]
    assert {first["a"], first["b"]} == {f"{PATIENT} (before)", f"{PATIENT} (after)"}
    assert (first["value"], first["with"]) == (0, [AT_ONCE, ONE_BY_ONE])
    last = results["assistants"][-1]
    assert last["b"].startswith("clarifier (")


def test_one_assistant_with_two_users_is_compared_by_its_users(tmp_path) -> None:
    fast = run(tmp_path, PATIENT, name="fast", user=AT_ONCE)
    slow = run(tmp_path, PATIENT, name="slow")
    scored = score(tmp_path, fast, slow)
    results = commands.compare(Compare([scored], out=tmp_path / "out"))
    assert results["assistants"] == []
    found = text(tmp_path / "out")
    assert f"With `{AT_ONCE}`, 0.0 points [" in found
    assert f"more is solved than with `{ONE_BY_ONE}` with this assistant" in found


def test_a_stub_is_what_one_bot_stands_beside_and_not_its_rival(tmp_path) -> None:
    runs = [run(tmp_path, one, name=one[-5:], repeats=2) for one in (HASTY, "oracle")]
    results = commands.compare(Compare([score(tmp_path, *runs)], out=tmp_path / "out"))
    # The oracle solves all of the even tasks and half of the odd ones.
    found = text(tmp_path / "out")
    assert f"`{HASTY}` solves 75.0 points [" in found
    assert f"less than the stub `oracle` with these users (`{ONE_BY_ONE}`;" in found
    assert results["needed"] == []


def test_users_are_compared_by_a_stub_where_there_is_no_other_assistant(
    tmp_path,
) -> None:
    runs = [
        run(tmp_path, "oracle", name=one[-8:], user=one)
        for one in (AT_ONCE, ONE_BY_ONE)
    ]
    commands.compare(Compare([score(tmp_path, *runs)], out=tmp_path / "out"))
    assert f"With `{AT_ONCE}`, 0.0 points" in text(tmp_path / "out")


def test_one_bot_with_one_user_is_compared_with_its_single_prompts(tmp_path) -> None:
    runs = [
        run(tmp_path, HASTY, name=one[-6:], user=one) for one in (ONE_BY_ONE, "single")
    ]
    commands.compare(Compare([score(tmp_path, *runs)], out=tmp_path / "out"))
    found = text(tmp_path / "out")
    assert "Being talked to by `OneByOne` costs `hasty` 100.0 (" in found
    assert " points, beside a single prompt." in found
    assert "Nothing can be compared" not in found


def test_where_scores_vary_is_not_said_where_nothing_can_be_split(tmp_path) -> None:
    runs = [run(tmp_path, one, name=one[-5:]) for one in (PATIENT, HASTY)]
    half = [{**task(i), "check": {"number": 30 + 3 * (i % 2)}} for i in range(6)]
    write_lines(tmp_path / "tasks.jsonl", half)
    results = commands.compare(Compare([score(tmp_path, *runs)], out=tmp_path / "out"))
    assert any(one["task"] for one in results["variance"])
    assert "Where scores vary" not in text(tmp_path / "out")


def test_below_five_tasks_it_says_that_there_is_no_interval(tmp_path) -> None:
    first = run(tmp_path, PATIENT, name="first", limit=4)
    second = run(tmp_path, HASTY, name="second", limit=4)
    scored = score(tmp_path, first, second)
    commands.compare(Compare([scored], out=tmp_path / "out"))
    found = text(tmp_path / "out")
    assert f"`{PATIENT}` solves 100.0 points more than `{HASTY}` with these" in found
    assert "4 tasks × 1): too few tasks for an interval." in found


def test_users_of_one_address_are_told_apart_by_what_differs(tmp_path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("Apples cost 10 dollars.\n")
    runs = []
    for guard in ("no-repeat", "no-end"):
        user = User(f"prompted:script:{lines}", commands.UserSettings(guard=guard))
        write_lines(tmp_path / "tasks.jsonl", map(task, range(6)))
        tasks = str(tmp_path / "tasks.jsonl")
        out = tmp_path / guard
        commands.simulate(Simulate(user, PATIENT, tasks=tasks, out=out, max_turns=2))
        runs.append(out)
    scored = score(tmp_path, *runs)
    results = commands.compare(Compare([scored], out=tmp_path / "out"))
    names = [cell["user"] for cell in results["cells"]]
    assert names == [
        f"prompted:script:{lines} (guard={name})" for name in ("no-repeat", "no-end")
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed differs (0 and 1)"),
        ({"max_turns": 4}, "max_turns differs (10 and 4)"),
        ({"limit": 5}, "only one of them has the task 't5'"),
    ],
)
def test_what_is_not_paired_is_refused_with_what_differs(
    tmp_path, changed, message
) -> None:
    first = run(tmp_path, PATIENT, name="first")
    second = run(tmp_path, HASTY, name="second", **changed)
    scored = score(tmp_path, first, second)
    with pytest.raises(InputError, match=re.escape(message)):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_the_same_ids_with_other_intents_are_other_tasks(tmp_path) -> None:
    first = run(tmp_path, PATIENT, name="first")
    changed = [{**task(i), "goal": "find out the sum"} for i in range(6)]
    write_lines(tmp_path / "other.jsonl", changed)
    second = run(tmp_path, HASTY, name="second", tasks=tmp_path / "other.jsonl")
    scored = score(tmp_path, first, second)
    with pytest.raises(InputError, match="the intents of 't0' differ"):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_runs_that_were_graded_in_other_ways_are_refused(tmp_path) -> None:
    first = run(tmp_path, PATIENT, name="first")
    second = run(tmp_path, HASTY, name="second")
    one = score(tmp_path, first, name="one")
    rows = [{**task(i), "check": {"number": 1}} for i in range(6)]
    write_lines(tmp_path / "tasks.jsonl", rows)
    two = score(tmp_path, second, name="two")
    with pytest.raises(InputError, match="tasks differs"):
        commands.compare(Compare([one, two], out=tmp_path / "out"))


@pytest.mark.parametrize("changed", ["tasks", "code"])
def test_what_graded_is_compared_however_the_file_of_tasks_is_named(
    tmp_path, monkeypatch, changed
) -> None:
    monkeypatch.chdir(tmp_path)
    code = Path(f"checks_that_{changed}_change.py")  # no module is imported twice
    code.write_text("def is_right(answer, talk):\n    return True\n")
    check = {"py": f"{code.stem}:is_right"}
    rows = [{**task(i), "check": check} for i in range(6)]
    write_lines(Path("tasks.jsonl"), rows)
    talks = [run(tmp_path, one, name=one[-5:]) for one in (PATIENT, HASTY)]
    people = "people.jsonl"
    talk = {"id": "p", "turns": [{"role": "user", "text": "What are pears?"}]}
    write_lines(Path(people), [talk])

    def scored(talk: Path, name: str, **options) -> Path:
        tasks = "./tasks.jsonl"
        commands.score(Score([talk], tasks=tasks, out=Path(name), **options))
        return Path(name)

    one, two = scored(talks[0], "one"), scored(talks[1], "two", human=Path(people))
    commands.compare(Compare([one, two], out=Path("same")))
    if changed == "tasks":
        write_lines(Path("tasks.jsonl"), map(task, range(6)))
    else:
        code.write_text("def is_right(answer, talk):\n    return False\n")
    three = scored(talks[1], "three")
    with pytest.raises(InputError, match="tasks differs"):
        commands.compare(Compare([one, three], out=Path("out")))


def test_a_user_whose_file_changed_is_no_user_that_two_assistants_share(
    tmp_path,
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("Apples cost 10 dollars. Pears cost 20 dollars.\n")
    user = f"script:{lines}"
    first = run(tmp_path, PATIENT, user=user, name="first")
    lines.write_text("hello\n")
    second = run(tmp_path, HASTY, user=user, name="second")
    scored = score(tmp_path, first, second)
    with pytest.raises(InputError, match=r"lines\.txt is another user in each"):
        commands.compare(Compare([scored], out=tmp_path / "out"))


@pytest.mark.parametrize("changed", ["server", "import"])
def test_a_user_is_another_one_by_what_it_rested_on_when_it_was_run(
    tmp_path, monkeypatch, changed
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "user_of_two_runs.py"
    module.write_text("def reply(text):\n    return 'hello'\n")
    user = f"py:{module.stem}:reply"
    with serving(lambda body, n: completion("hello")) as server:
        if changed == "server":
            user = "prompted:openai:m"
            monkeypatch.setenv("OPENAI_API_KEY", "k")
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        first = run(tmp_path, PATIENT, user=user, name="first")
        if changed == "server":
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/")
        else:
            (tmp_path / "helper_of_a_user.py").write_text("")
            module.write_text(f"import helper_of_a_user\n{module.read_text()}")
        second = run(tmp_path, HASTY, user=user, name="second")
    scored = score(tmp_path, first, second)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    module.unlink()
    with pytest.raises(InputError, match="is another user in each"):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_conversations_that_other_checks_ended_are_not_compared(tmp_path) -> None:
    first = run(tmp_path, PATIENT, name="first")
    rows = [{**task(i), "check": {"number": 1}} for i in range(6)]
    write_lines(tmp_path / "tasks.jsonl", rows)
    second = run(tmp_path, HASTY, name="second")
    scored = score(tmp_path, first, second)
    with pytest.raises(InputError, match="which may have ended conversations"):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_conversations_that_changed_since_they_were_scored_are_refused(
    tmp_path,
) -> None:
    runs = [run(tmp_path, one, name=one[-5:]) for one in (PATIENT, HASTY)]
    scored = score(tmp_path, *runs)
    with (runs[0] / "conversations.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="is about other conversations than those in"):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_a_run_that_got_the_name_of_another_one_does_not_get_its_scores(
    tmp_path,
) -> None:
    old, new = (run(tmp_path, PATIENT, name="old"), run(tmp_path, HASTY, name="new"))
    scored = score(tmp_path, old, new)
    shutil.rmtree(old)
    shutil.copytree(new, old)
    with pytest.raises(InputError, match="is about other conversations than those in"):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_what_has_no_scores_of_tasks_is_refused_with_what_to_do(tmp_path) -> None:
    first = run(tmp_path, PATIENT, name="first")
    with pytest.raises(InputError, match=r"run `userlm score .*first --tasks FILE`"):
        commands.compare(Compare([first], out=tmp_path / "out"))
    commands.score(Score([first], out=tmp_path / "without"))
    with pytest.raises(InputError, match="run `score` with --tasks"):
        commands.compare(Compare([tmp_path / "without"], out=tmp_path / "out"))
    alone = score(tmp_path, first)
    with pytest.raises(InputError, match="one run to compare; give two or more"):
        commands.compare(Compare([alone], out=tmp_path / "out"))
    with pytest.raises(InputError, match="is given 2 times"):
        commands.compare(Compare([alone, alone], out=tmp_path / "out"))


# --- beside people --------------------------------------------------------------------------------


def test_each_user_is_measured_by_scores_with_people(grid, tmp_path) -> None:
    # With people patient solves 80 %, hasty 30 %. OneByOne has 75 and 0: 5 and 30 off.
    people = tmp_path / "people.csv"
    people.write_text(f"assistant,score\n{PATIENT},80\n{HASTY},30\n")
    results = commands.compare(Compare([grid], people, out=tmp_path / "out"))
    found = {(one["user"], one["measure"]): one for one in results["human"]}
    assert found[ONE_BY_ONE, "mean absolute error"]["value"] == 17.5
    assert found[ONE_BY_ONE, "mean difference"]["value"] == -17.5
    assert found[ONE_BY_ONE, "Kendall's tau"]["value"] == 1
    assert found[AT_ONCE, "Kendall's tau"]["value"] is None, "both are at 100 %"
    assert found["single", "mean difference"]["value"] == 45
    # Of all assistants together, controls left out, t0 has 50 % with OneByOne, and t1 25 %.
    write_lines(
        tmp_path / "tasks.jsonl", [{"task": f"t{i}", "score": 20} for i in (0, 1)]
    )
    compare = Compare([grid], tmp_path / "tasks.jsonl", out=tmp_path / "by-task")
    found = {
        (one["user"], one["measure"]): one for one in commands.compare(compare)["human"]
    }
    assert found[ONE_BY_ONE, "mean difference"]["value"] == 17.5
    assert "Lower is not better" not in text(tmp_path / "out")


def test_scores_of_tasks_give_the_agreement_an_interval(grid, tmp_path) -> None:
    people = tmp_path / "people.jsonl"
    rows = []
    for i in range(6):
        odd = {"assistant": PATIENT, "task": f"t{i}", "score": 40 if i % 2 else 90}
        rows.append(odd)
    write_lines(people, rows)
    results = commands.compare(Compare([grid], people, out=tmp_path / "out"))
    found = {(one["user"], one["measure"]): one for one in results["human"]}
    tau = found[ONE_BY_ONE, "Kendall's tau"]
    assert (tau["value"], tau["clusters"], tau["of"]) == (1, 6, "tasks")
    assert tau["low"] is not None


def test_scores_of_tasks_count_as_many_as_there_are_tasks(grid, tmp_path) -> None:
    people = tmp_path / "people.jsonl"
    rows = []
    for i in range(6):
        for score, bot in enumerate((HASTY, PATIENT)):
            rows.append({"assistant": bot, "task": f"t{i}", "score": 50 * score + i})
    write_lines(people, rows)
    commands.compare(Compare([grid], people, out=tmp_path / "out"))
    assert "6 tasks (12 scores)" in text(tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"assistant": "a"}, "line 1: field 'score' is None"),
        ({"assistant": "a", "score": "good"}, "field 'score' is 'good'"),
        ({"assistant": "a", "score": 101}, "it must be a percentage, 0 to 100"),
        ({"assistant": "a", "score": "nan"}, "it must be a percentage, 0 to 100"),
        ({"score": 1}, "give one or both"),
        ({"task": "a", "score": 0.7}, "give them in percent: 70, not 0.7"),
    ],
)
def test_scores_with_people_that_cannot_be_read_are_named(
    tmp_path, row, message
) -> None:
    write_lines(tmp_path / "people.jsonl", [row])
    with pytest.raises(InputError, match=re.escape(message)):
        read_human_scores(tmp_path / "people.jsonl")


def test_scores_of_what_was_not_run_are_refused(grid, tmp_path) -> None:
    people = tmp_path / "people.jsonl"
    for row, message in (
        ({"assistant": "other", "score": 1}, "no assistant is 'other'; there are"),
        ({"task": "t99", "score": 1}, "no task is 't99'"),
    ):
        write_lines(people, [row])
        with pytest.raises(InputError, match=re.escape(message)):
            commands.compare(Compare([grid], people, out=tmp_path / "out"))


# --- what is shown --------------------------------------------------------------------------------


def test_damaged_results_are_one_sentence(compared, tmp_path) -> None:
    shutil.copytree(compared, tmp_path / "copy")
    results = read_json(compared / "results.json")
    write_json(tmp_path / "copy" / "results.json", {**results, "worst": [{"task": 1}]})
    with pytest.raises(InputError, match="'worst' is damaged"):
        read_run(tmp_path / "copy")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"user": 123}, "'user' is damaged"),
        ({"user": None}, "'user' is damaged"),
        ({"assistant": ["a"]}, "'assistant' is damaged"),
        ({"prompt": 5}, "'prompt' is damaged"),
        ({"user": "trained:" + "b" * 5000}, "there is one run to compare"),
    ],
)
def test_an_odd_user_in_a_run_of_somebody_else_is_one_sentence(
    tmp_path, options, problem
) -> None:
    first = run(tmp_path, PATIENT, name="first")
    scored = score(tmp_path, first)
    manifest = read_json(first / "run.json")
    made = {**manifest, "options": {**manifest["options"], **options}}
    del made["behind user"]
    write_json(first / "run.json", made)
    with pytest.raises(InputError, match=problem):
        commands.compare(Compare([scored], out=tmp_path / "out"))


def test_odd_names_of_what_is_behind_a_user_and_odd_turns_of_facts_are_no_internal_errors(
    grid, tmp_path
) -> None:
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    for path in copy.glob("cells/*/run.json"):
        write_json(path, {**read_json(path), "behind user": -1})
    commands.compare(Compare([copy], out=tmp_path / "out"))
    [first, *_] = sorted(copy.glob("cells/*/score/facts.jsonl"))
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    write_lines(first, [{**row, "user": [[]]} for row in rows])
    with pytest.raises(InputError, match=r"facts\.jsonl, line 1: field 'user'"):
        read_run(copy)


@pytest.mark.slow
def test_whatever_is_damaged_in_a_comparison_or_a_score_is_one_sentence(
    grid, compared, tmp_path
) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        copy = tmp_path / f"compared{seed}"
        shutil.copytree(compared, copy)
        damage(copy, draw)
        with suppress(InputError):
            page = describe([read_run(copy)])
            html.render(page)
            markdown.render(page)
    for seed in range(5):
        draw = random.Random(seed)
        copy = tmp_path / f"grid{seed}"
        shutil.copytree(grid, copy)
        damage(draw.choice(sorted((copy / "cells").iterdir())) / "score", draw)
        with suppress(InputError):
            commands.compare(Compare([copy], out=tmp_path / f"out{seed}"))


@pytest.mark.parametrize("place", ["{root}/private", "../private"])
def test_a_grid_of_somebody_else_shows_no_conversations_from_elsewhere(
    grid, tmp_path, place
) -> None:
    copy = tmp_path / "grid"
    shutil.copytree(grid, copy)
    run(tmp_path, PATIENT, user=AT_ONCE, name="private")
    results = read_json(copy / "results.json")
    for cell in results["cells"]:
        cell["folder"] = place.format(root=tmp_path)
    write_json(copy / "results.json", results)
    assert read_run(copy).talks == []
    exported = flat(Export, runs=[copy], as_="messages", out=tmp_path / "out.jsonl")
    with pytest.raises(InputError, match="cells/private does not exist"):
        commands.export(exported)


def test_names_from_files_reach_no_page_as_markup(compared, tmp_path) -> None:
    shutil.copytree(compared, tmp_path / "copy")
    raw = json.dumps(read_json(compared / "results.json"))
    hostile = "<script>alert(1)</script>\\u202e|"
    (tmp_path / "copy" / "results.json").write_text(raw.replace(HASTY, hostile))
    page = html.render(describe([read_run(tmp_path / "copy")]))
    assert "<script>alert(1)" not in page
    assert "\u202e" not in page
    assert "\u202e" not in markdown.render(describe([read_run(tmp_path / "copy")]))
