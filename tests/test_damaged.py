"""Run folders that something damaged: whatever stands in their files, they are read, or one sentence
names the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from test_report import folders

from userlm import commands
from userlm.commands.options import User
from userlm.commands.steps import show_run
from userlm.journal import Answers, Journal
from userlm.json_files import read_json, write_json
from userlm.models.budget import Budget, Caps
from userlm.models.call_cache import CallCache
from userlm.rows import write_conversations
from userlm.show import html, markdown
from userlm.show.finished import read_run
from userlm.show.page import describe
from userlm.types import Conversation, InputError

DEEP: Any = 1
for _ in range(150):
    DEEP = [DEEP]
VALUES = (None, True, 0, -1, 0.5, 1e308, nan, inf, 10**400, "", "x", "5", [], {}, [1])
VALUES = (*VALUES, {"a": 1}, [[None]], "\x1b[2J[red]\ud800", DEEP)
WHOLE = (b"", b"null", b"[]", b"{}", b"\xff\x00", b"[" * 9999, b"9" * 5000, b'{"a"')


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside a JSON value."""
    if way:
        yield way
    inside = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inside = enumerate(value)
    for key, item in inside:
        yield from places(item, (*way, key))


def damaged(value: Any, draw: random.Random) -> Any:
    """The value with one part of it changed or left out."""
    ways = list(places(value))
    if not ways:
        return draw.choice(VALUES)
    *way, key = draw.choice(ways)
    parent = value
    for step in way:
        parent = parent[step]
    kind = draw.random()
    if kind < 0.2:
        del parent[key]
    elif kind < 0.3:
        parent[key] = [parent[key]]
    else:
        parent[key] = draw.choice(VALUES)
    return value


def damage(folder: Path, draw: random.Random) -> None:
    """Change one file of a run."""
    path = draw.choice(sorted(folder.iterdir()))
    lines = path.read_bytes().splitlines()
    if draw.random() < 0.1:
        path.write_bytes(draw.choice(WHOLE))
    elif path.suffix == ".json":
        changed = damaged(json.loads(path.read_bytes()), draw)
        path.write_text(json.dumps(changed))
    elif lines:
        i = draw.randrange(len(lines))
        lines[i] = json.dumps(damaged(json.loads(lines[i]), draw)).encode()
        path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_run_is_shown_and_scored_or_its_file_is_named(
    seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    whole = folders(tmp_path / "whole")
    for i in range(10):
        folder = tmp_path / str(i) / draw.choice(whole).name
        shutil.copytree(tmp_path / "whole" / folder.name, folder)
        damage(folder, draw)
        try:
            page = describe([read_run(folder)])
            html.render(page)
            markdown.render(page)
            show_run(folder, details=True)
            if folder.name in ("sim", "respond"):
                commands.score(commands.Score([folder], out=tmp_path / f"score-{i}"))
        except InputError as error:
            assert folder.name in str(error), error


@pytest.mark.parametrize("step", ["one", 10**400, -1, None])
def test_a_step_that_cannot_be_is_named(step: Any, tmp_path: Path) -> None:
    train = next(folder for folder in folders(tmp_path) if folder.name == "train")
    with (train / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 5.5}) + "\n")
    with pytest.raises(InputError, match=r"log\.jsonl, line 4: field 'step' "):
        read_run(train)


def test_the_names_of_stubs_may_be_anything(tmp_path: Path) -> None:
    sim = next(folder for folder in folders(tmp_path) if folder.name == "sim")
    talk = json.loads((sim / "conversations.jsonl").read_text())
    talk["turns"][1]["meta"]["stub"] = 0.5
    (sim / "conversations.jsonl").write_text(
        "".join(json.dumps(talk | {"id": id}) + "\n" for id in "ab")
    )
    assert commands.score(commands.Score([sim], out=tmp_path / "scored"))["sim"]


@pytest.mark.parametrize("option", ["keep_turns", "max_turns"])
def test_a_number_of_turns_that_is_none_is_named(option: str, tmp_path: Path) -> None:
    sim = next(folder for folder in folders(tmp_path) if folder.name == "sim")
    manifest = read_json(sim / "run.json")
    manifest["options"][option] = ["2"]
    write_json(sim / "run.json", manifest)
    with pytest.raises(InputError, match=rf"run\.json: '{option}' is damaged"):
        read_run(sim)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": ["a"]}, "field 'id' must be a str, not list"),
        ({"n": "one"}, "field 'n' must be a int, not str"),
        ({"text": 5}, "field 'text' must be a str, not int"),
        ({"meta": [1]}, "field 'meta' must be a dict, not list"),
        ({"stop": {}}, "field 'stop' must be a str, not dict"),
    ],
)
def test_a_damaged_answer_is_named_when_a_run_is_resumed(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "turns.jsonl"
    good = {"id": "a", "n": 0, "role": "user", "text": "hi"}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(InputError, match=rf"turns\.jsonl, line 2 is damaged: {said}; "):
        Answers(Journal(path))


def test_damaged_usage_and_calls_are_named_when_a_run_is_resumed(
    tmp_path: Path,
) -> None:
    usage = tmp_path / "usage.jsonl"
    usage.write_text('{"side":"writer","used":{"calls":"5"}}\n')
    with pytest.raises(InputError, match=r"usage\.jsonl, line 1 is damaged: .*'calls'"):
        Budget(Caps(), usage).side("writer")
    side = Budget(Caps(), tmp_path / "none.jsonl").side("writer")
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        '{"id":"a","try":0,"text":"x","reason":"","error":"","faults":1}\n'
    )
    with pytest.raises(
        InputError, match=r"asked\.jsonl, line 1 is damaged: .*'faults'"
    ):
        CallCache(asked, None, side)  # type: ignore[arg-type]


@pytest.fixture
def simulated(tmp_path: Path) -> commands.Simulate:
    """The options of a simulation that is complete."""
    write_conversations(tmp_path / "logs.jsonl", [Conversation("a", intent="i")])
    (tmp_path / "lines.txt").write_text("hi\n")
    options = commands.Simulate(
        User(f"script:{tmp_path / 'lines.txt'}"),
        "clarifier",
        intents=tmp_path / "logs.jsonl",
        out=tmp_path / "out",
    )
    commands.simulate(options)
    return options


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("results.json", "stops", 5, r"results\.json: 'stops' is damaged"),
        ("results.json", "usage", [1], r"results\.json: 'usage' is damaged"),
        ("run.json", "inputs", 5, "has a run with other inputs"),
        ("run.json", "options", None, "has a run with other options"),
    ],
)
def test_a_complete_run_that_is_damaged_is_named_by_the_same_command(
    simulated: commands.Simulate, file: str, key: str, value: Any, said: str
) -> None:
    path = simulated.out / file
    write_json(path, read_json(path) | {key: value})
    with pytest.raises(InputError, match=said):
        commands.simulate(simulated)


def test_a_line_of_a_conversation_that_is_not_there_changes_nothing_in_a_resumed_run(
    simulated: commands.Simulate,
) -> None:
    turns = simulated.out / "turns.jsonl"
    kept = turns.read_text()
    turns.write_text('{"id":"gone","n":0,"role":"user","text":"x"}\n' + kept)
    (simulated.out / "results.json").unlink()
    commands.simulate(simulated)
    assert turns.read_text().splitlines()[:-1] == kept.splitlines()


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("options", {}, "'.*' is damaged"),
        ("options.ngram", "7", "'ngram' is damaged"),
        ("options.ngram", -7, "--ngram -7: give a number"),
        ("options.languages", None, "'languages' is damaged"),
        ("inputs", {}, "'inputs' is damaged"),
        ("inputs", [], "'inputs' is damaged"),
    ],
)
def test_a_damaged_clean_is_named_by_explain(
    part: str, value: Any, said: str, tmp_path: Path
) -> None:
    log = (
        Conversation("a", user="p").say("Tell me about the rivers of Spain.").say("Ok.")
    )
    write_conversations(tmp_path / "logs.jsonl", [log])
    out = tmp_path / "clean"
    commands.clean(commands.Clean(tmp_path / "logs.jsonl", languages="all", out=out))
    manifest = read_json(out / "run.json")
    group, _, name = part.partition(".")
    if name:
        manifest[group][name] = value
    else:
        manifest[group] = value
    write_json(out / "run.json", manifest)
    with pytest.raises(InputError, match=rf"run\.json: {said}"):
        commands.clean(commands.Clean(out=out, explain="a"))
