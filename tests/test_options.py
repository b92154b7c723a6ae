"""Options: described once, for the command line, configuration files, run.json and Python."""

import math
import runpy
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest
import typer
from flat import flat
from typer.testing import CliRunner

from userlm import cli, commands
from userlm.commands.options import (
    Output,
    check,
    check_value,
    command,
    described,
    option,
    option_types,
    recorded,
)
from userlm.json_files import read_json
from userlm.rows import write_conversations
from userlm.types import Conversation, InputError, ModelError, Turn

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Paint:
    colour: Literal["red", "blue"] = option("red", "The colour.")
    coats: int = option(2, "How many coats.", min=1, max=5, recorded=False)


@dataclass(frozen=True, slots=True)
class Build:
    name: str = option(..., "The name of the house.")
    walls: Paint = Paint("blue")
    dry_run: bool = option(False, "Only say what would be done.", flag="--dry-run")


def test_a_group_stands_beside_the_other_options_and_gives_its_defaults():
    assert [each.name for each in described(Build)] == [
        "name",
        "colour",
        "coats",
        "dry_run",
    ]
    assert [each.label for each in described(Build)][-2:] == ["--coats", "--dry-run"]
    assert option_types(Build)["coats"] is int
    app = typer.Typer()
    made = []
    app.command()(command(Build, made.append))
    for arguments, wanted in (
        (["--name", "a"], Build("a")),
        (["--name", "a", "--colour", "red"], Build("a", Paint("red"))),
        (["--name", "a", "--coats", "3"], Build("a", Paint("blue", 3))),
        (["--name", "a", "--dry-run"], Build("a", dry_run=True)),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert made.pop() == wanted
    assert CliRunner().invoke(app, []).exit_code == 2


def test_only_what_identifies_a_run_is_recorded():
    assert recorded(Build("a")) == {"name": "a", "colour": "blue", "dry_run": False}


@pytest.mark.parametrize(
    ("paint", "said"),
    [
        (Paint("green"), "--colour green: give red or blue"),
        (Paint(coats=0), "--coats 0: give a number, 1 to 5"),
        (Paint(coats=float("nan")), "--coats nan: give a number, 1 to 5"),
        (
            commands.UserSettings(temperature=math.inf),
            "--temperature inf: give a number",
        ),
        (
            commands.UserSettings(temperature=math.nan),
            "--temperature nan: give a number",
        ),
        (
            commands.UserSettings(temperature=-1.0),
            "--temperature -1.0: give a number, 0 to",
        ),
        (commands.UserSettings(top_p=1.5), "--top-p 1.5: give a number, 0 to 1"),
        (
            commands.Train(Path("d"), base="b", watts=math.inf),
            "--watts inf: give a number",
        ),
        (commands.LocalModels(batch=0), "--batch 0: give a number, 1 or more"),
        (commands.LocalModels(dtype="int8"), "--dtype int8: give float32 or bfloat16"),
    ],
)
def test_a_wrong_value_from_python_is_the_error_that_names_the_option(paint, said):
    with pytest.raises(InputError, match=said):
        check(paint)


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_number_of_any_verb_may_be_infinite_or_none(verb, value):
    options, _ = cli.VERBS[verb]
    for each in described(options):
        if float in (each.type, *get_args(each.type)):
            with pytest.raises(
                InputError, match=f"{each.label} {value}: give a number"
            ):
                check_value(each, value)


def test_every_field_of_every_verb_is_an_option_or_a_group():
    for verb, (options, _) in cli.VERBS.items():
        names = [each.name for each in described(options)]
        assert len(names) == len(set(names)), verb
        assert len(fields(options)) <= len(names)


def test_the_reference_of_the_command_line_is_that_of_today():
    script = runpy.run_path(str(ROOT / "docs/reference.py"))
    written = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert written == script["reference"](), "run: .venv/bin/python docs/reference.py"


# --- begin anew -----------------------------------------------------------------------------------


def logs(path: Path, count: int) -> Path:
    said = (Turn("user", "hello there"), Turn("assistant", "hi"))
    write_conversations(path, (Conversation(f"c{i}", said) for i in range(count)))
    return path


def test_force_begins_anew_where_another_run_was(tmp_path):
    path = logs(tmp_path / "logs.jsonl", 3)
    out = tmp_path / "out"
    commands.import_(commands.Import([str(path)], out))
    (out / "notes").mkdir()
    with pytest.raises(InputError, match="other options"):
        commands.import_(commands.Import([str(path)], out, limit=2))
    found = commands.import_(
        flat(commands.Import, logs=[str(path)], out=out, limit=2, force=True)
    )
    assert found["counts"]["out"] == 2
    assert read_json(out / "run.json")["options"]["limit"] == 2
    assert (out / "notes").is_dir()  # only what a run writes is deleted
    assert not (out / ".replaced").exists()


def test_a_run_that_force_replaces_is_kept_until_the_new_one_is_complete(tmp_path):
    path = logs(tmp_path / "logs.jsonl", 3)
    out = tmp_path / "out"
    commands.import_(commands.Import([str(path)], out))
    whole = (out / "conversations.jsonl").read_bytes()
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for _ in range(2):
        with pytest.raises(InputError):
            commands.import_(
                flat(commands.Import, logs=[str(empty)], out=out, force=True)
            )
        assert (out / ".replaced" / "conversations.jsonl").read_bytes() == whole
    commands.import_(flat(commands.Import, logs=[str(path)], out=out, force=True))
    assert not (out / ".replaced").exists()
    assert (out / "conversations.jsonl").read_bytes() == whole


def test_force_deletes_no_folder_that_is_no_run_and_nothing_that_it_reads(tmp_path):
    path = logs(tmp_path / "logs.jsonl", 3)
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("three years of work")
    with pytest.raises(InputError, match="is not a run folder"):
        commands.import_(flat(commands.Import, logs=[str(path)], out=out, force=True))
    assert (out / "thesis.txt").exists()
    (out / "run.json").write_text('{"tool": "other"}')
    with pytest.raises(InputError, match="is not that of a run"):
        commands.import_(flat(commands.Import, logs=[str(path)], out=out, force=True))
    assert (out / "thesis.txt").exists()
    run = tmp_path / "run"
    commands.import_(commands.Import([str(path)], run))
    with pytest.raises(
        InputError, match=r"--force would delete .*conversations\.jsonl"
    ):
        commands.clean(flat(commands.Clean, logs=run, out=run, force=True))
    assert (run / "conversations.jsonl").exists()


def test_force_moves_only_what_the_run_there_wrote(tmp_path):
    path = logs(tmp_path / "logs.jsonl", 3)
    out = tmp_path / "out"
    commands.import_(commands.Import([str(path)], out))
    own = ("report.html", "scores.jsonl", "train.jsonl", "model", "wandb")
    for name in own:
        (out / name).write_text("mine")
    (out / "model.old").write_text("mine")
    again = flat(commands.Import, logs=[str(path)], out=out, limit=2, force=True)
    assert commands.import_(again)["counts"]["out"] == 2
    for name in (*own, "model.old"):
        assert (out / name).read_text() == "mine"
    before = (out / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"overwrite .*train\.jsonl, .* did not write"):
        commands.clean(flat(commands.Clean, logs=path, out=out, force=True))
    assert (out / "run.json").read_bytes() == before
    assert not (out / ".replaced").exists()


def test_force_refuses_an_input_that_lies_in_the_folder_or_is_a_link_there(tmp_path):
    path = logs(tmp_path / "logs.jsonl", 3)
    out = tmp_path / "out"
    commands.import_(commands.Import([str(path)], out))
    link = out / "dropped.jsonl"
    link.unlink()
    link.symlink_to(path)
    beside = tmp_path / "beside"
    beside.symlink_to(out)
    for name in (link, beside / "dropped.jsonl", out / "conversations.jsonl"):
        given = [str(name), str(path)]
        with pytest.raises(InputError, match=r"--force (would|may) delete|is a link"):
            commands.import_(flat(commands.Import, logs=given, out=out, force=True))
        assert name.exists()


def test_a_run_that_failed_deletes_nothing_of_the_run_that_it_replaces(tmp_path):
    path = logs(tmp_path / "logs.jsonl", 3)
    lines = tmp_path / "lines.txt"
    lines.write_text("hi there\n")
    empty = tmp_path / "other.jsonl"
    write_conversations(empty, [Conversation("other", (Turn("user", "hello"),))])
    options = {"user": f"script:{lines}", "intents": path, "out": tmp_path / "out"}
    commands.simulate(flat(commands.Simulate, assistant=f"script:{lines}", **options))
    whole = (tmp_path / "out/conversations.jsonl").read_bytes()
    with pytest.raises(ModelError, match="3 of 3 conversations ended in an error"):
        commands.simulate(
            flat(commands.Simulate, assistant=f"replay:{empty}", force=True, **options)
        )
    kept = tmp_path / "out/.replaced/conversations.jsonl"
    assert kept.read_bytes() == whole


@pytest.mark.parametrize(
    "name, kind, default, said",
    [
        ("shout", bool, False, "describe it with option"),
        ("shout", bool, option("no", "Shout."), "neither True nor False"),
        ("how", Literal["loud", "low"], option("so", "How."), "not one of loud, low"),
        ("details", bool, option(False, "All."), "one of its groups has this option"),
    ],
)
def test_a_mistake_in_the_fields_of_a_verb_is_named(name, kind, default, said):
    shown = ("shown", Output, field(default_factory=Output))
    verb = make_dataclass("Verb", [(name, kind, default), shown])
    with pytest.raises(TypeError, match=rf"Verb\.{name}: .*{said}"):
        command(verb, print)
