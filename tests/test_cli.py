"""The command line as a person meets it: whole runs, wrong input, and runs that are killed."""

import gzip
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import typer
from fake_server import Said, serving
from processes import Process
from test_oasst import flat, say
from test_otel import TALK, sdk
from test_otel import call as called

import userlm as userlm_package
from userlm import cli, commands
from userlm.commands.options import description
from userlm.data import filters, layouts
from userlm.rows import read_conversations, write_conversations
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError


def start(*arguments: object, cwd: Path, fresh: bool = False) -> Process:
    begin = processes.fresh if fresh else processes.userlm
    path = os.pathsep.join(filter(None, (str(cwd), os.environ.get("PYTHONPATH"))))
    return begin(*arguments, cwd=cwd, COLUMNS="200", PYTHONPATH=path)


def userlm(*arguments: object, cwd: Path, code: int = 0, fresh: bool = False) -> str:
    """Run a verb; what it printed."""
    process = start(*arguments, cwd=cwd, fresh=fresh)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out + err


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def learned(folder: Path) -> dict[str, Any]:
    """What a training left, without how long it took."""
    found: dict[str, Any] = contents(folder)
    del found["model/README.md"]
    found["results.json"] = {**json.loads(found["results.json"]), "throughput": {}}
    log = [json.loads(line) for line in found["log.jsonl"].splitlines()]
    found["log.jsonl"] = [{**row, "seconds": 0} for row in log]
    return found


def rows(count: int) -> list[dict]:
    """Small logs: each third person says the same thing, and some rows are bad."""
    made = []
    for i in range(count):
        asked = {
            "role": "user",
            "content": f"how do i cook rice number {i} please, my friend {i % 3} asked",
        }
        messages = [asked, {"role": "assistant", "content": "With water."}] * (
            1 + i % 3
        )
        if i % 50 == 7:
            messages = [{"role": "narrator", "content": "once"}]
        made.append(
            {
                "id": f"r{i}",
                "user_id": f"p{i % 150}",
                "language": "en",
                "messages": messages,
            }
        )
    return made


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    path = tmp_path / "logs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(400)))
    return path


@pytest.mark.slow
def test_the_whole_road_from_logs_to_measures(logs, tmp_path):
    def call(*arguments, code=0):
        return userlm(*arguments, cwd=tmp_path, code=code)

    assert "unknown role" in call("import", logs, "--out", "imported")
    call("clean", "imported", "--out", "cleaned")
    call("intents", "cleaned", "--out", "withintents")
    scratch = [
        "--base",
        "scratch:32x1x600",
        "--steps",
        3,
        "--batch",
        8,
        "--limit",
        20,
        "--lr",
        1e-3,
    ]
    call("train", "withintents", *scratch, "--out", "trained")
    shown = call(
        "ppl", "withintents", "--model", "trained", "--out", "ppl", "--limit", 5
    )
    assert "perplexity" in shown and "with intent" in shown
    tasks = tmp_path / "tasks.jsonl"
    facts = [{"text": "there are 48 clips"}]
    task = {"id": "t", "intent": "x", "facts": facts, "check": {"number": "48"}}
    tasks.write_text(json.dumps(task) + "\n")
    (tmp_path / "lines.txt").write_text("hi\nthere are 48 clips\n")
    oracle = ["--assistant", "oracle", "--tasks", tasks, "--repeats", 2]
    call("simulate", "--user", "script:lines.txt", *oracle, "--out", "sim")
    call(
        "respond",
        "withintents",
        "--user",
        "trained:trained",
        "--out",
        "responded",
        "--limit",
        3,
        "--temperature",
        1,
    )
    seeds = ["--intents", "withintents", "--limit", 3]
    call(
        "simulate",
        "--user",
        "replay:withintents/test.jsonl",
        "--assistant",
        "clarifier",
        *seeds,
        "--out",
        "replayed",
    )
    shown = call(
        "score",
        "sim",
        "responded",
        "replayed",
        "--human",
        "withintents",
        "--tasks",
        tasks,
        "--out",
        "scored",
    )
    assert "assistant score" in shown and "human" in shown
    solved = list(read_conversations(tmp_path / "sim" / "conversations.jsonl"))
    assert [(c.id, c.stop, len(c.user_turns)) for c in solved] == [
        ("t#0", "solved", 2),
        ("t#1", "solved", 2),
    ]
    results = json.loads((tmp_path / "scored" / "results.json").read_text())
    assert set(results) == {"sim", "responded", "replayed", "human", "endings"}
    assert set(results["endings"]) == {"responded"}
    score = next(m for m in results["sim"] if m["name"] == "assistant score")
    assert (score["value"], score["n"], score["missing"]) == (100.0, 2, 0)
    # Replaying people against another assistant gives the people's own turns.
    human = {
        c.id: c for c in read_conversations(tmp_path / "withintents" / "test.jsonl")
    }
    for conversation in read_conversations(
        tmp_path / "replayed" / "conversations.jsonl"
    ):
        assert (
            conversation.user_turns
            == human[conversation.origin.conversation].user_turns
        )
    assert "complete already" in call(
        "simulate", "--user", "script:lines.txt", *oracle, "--out", "sim"
    )


@pytest.mark.slow
def test_training_in_two_halves_is_one_run(logs, tmp_path, monkeypatch):
    def call(*arguments, code=0):
        return userlm(*arguments, cwd=tmp_path, code=code)

    call("import", logs, "--out", "in")
    options = [
        "--base",
        "scratch:32x1x600",
        "--steps",
        30,
        "--batch",
        8,
        "--save-every",
        1,
        "--no-intent",
    ]
    monkeypatch.chdir(tmp_path)
    scratch = {
        "base": "scratch:32x1x600",
        "steps": 30,
        "batch": 8,
        "save_every": 1,
        "intent": False,
    }
    commands.train(commands.Train(Path("in"), **scratch, out=Path("whole")))
    process = start("train", "in", *options, "--out", "killed", cwd=tmp_path)
    kill_when(process, lambda: (tmp_path / "killed" / "checkpoint").is_dir())
    call("train", "in", *options, "--out", "killed")
    assert learned(tmp_path / "killed") == learned(tmp_path / "whole")


def kill_when(process: Process, ready) -> None:
    """SIGKILL it as soon as `ready()`; it must still have been running."""
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


KILLED = """
import os, signal, sys
from userlm import cli
from userlm import runs as runs_module
from userlm.data import layouts

sys.modules["userlm.commands.import_"].COMMIT_EVERY = 1
when, read, commit, count = sys.argv.pop(), layouts.find, runs_module.Outputs.commit, [0]

def find(*arguments):
    count[0] += when == "the second file"
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*arguments)

def committed(outputs, state):
    commit(outputs, state)
    if when == "what was gathered" and state["file"] == 2 and state["items"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)

layouts.find, runs_module.Outputs.commit = find, committed
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 4])
def test_what_lies_in_several_files_is_one_conversation_however_often_the_import_is_killed(
    limit, tmp_path
):
    orphan = {**flat(say("a9"))[0], "parent_id": "nowhere", "text": "a word of its own"}
    prompt, answer = flat(say("p1", say("a1")))
    files = {
        "mon": [rows(1)[0], sdk(called(*TALK[:2], conversation="c1")), prompt],
        "tue": [sdk(called(*TALK[:4], conversation="c1")), answer, orphan, rows(2)[1]],
    }
    logs = []
    for name, held in files.items():
        logs.append(str(tmp_path / f"{name}.jsonl"))
        Path(logs[-1]).write_text("".join(json.dumps(row) + "\n" for row in held))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    counts = commands.import_(commands.Import(logs, out=whole, limit=limit))["counts"]
    said = {
        c.id: [turn.text for turn in c.turns]
        for c in read_conversations(whole / "conversations.jsonl")
    }
    if limit is None:
        assert list(said) == ["r0", "r1", "t1/a1", "c1"]
        assert (said["t1/a1"], said["c1"]) == (["text of p1", "text of a1"], TALK[:4])
        [dropped] = map(json.loads, (whole / "dropped.jsonl").read_text().splitlines())
        assert (dropped["file"], dropped["line"], dropped["reason"]) == (
            logs[1],
            3,
            "orphan",
        )
        assert dropped["row"]["text"] == "a word of its own"
        # 7 lines: 4 gave a conversation each, 1 is an orphan, and 2 went into what stands on
        # another
        assert (
            counts["in"],
            counts["out"],
            counts["dropped: orphan"],
            counts["note: merged lines"],
        ) == (
            7,
            4,
            1,
            2,
        )
    # of the second file the first line alone: the longer history is there, the answer in the tree
    # is not
    else:
        assert said == {"r0": said["r0"], "t1/p1": ["text of p1"], "c1": TALK[:4]}
        assert (counts["in"], counts["note: merged lines"]) == (4, 1)
    options = ["--limit", str(limit)] if limit else []
    for when in ("the second file", "what was gathered"):
        command = ["import", *logs, "--out", str(killed), *options, when]
        done = processes.completed(["-c", KILLED], *command, cwd=tmp_path)
        assert done.returncode == -signal.SIGKILL, done.stderr
        progress = json.loads((killed / "progress.json").read_text())["state"]
        assert (progress["file"], progress["items"]) == (
            (1, 0) if when == "the second file" else (2, 1)
        )
    commands.import_(commands.Import(logs, out=killed, limit=limit))
    assert contents(killed) == contents(whole)


SLOW = """
import time
from pathlib import Path
from userlm.text import stable_hash
from userlm.types import Reply

class Slow:
    def reply(self, conversation):
        key = f"{conversation.id} {len(conversation.turns)}"
        with Path("asked.txt").open("a") as file:
            file.write(key + "\\n")
        time.sleep(0.01)
        if len(conversation.turns) >= 6:
            return Reply(stop="end", meta={"p_end": 0.9})
        return Reply(f"word {stable_hash(key) % 1000}", meta={"p_end": 0.1})
"""


@pytest.mark.slow
def test_a_simulation_killed_in_the_middle_ends_with_the_same_files_and_asks_nothing_twice(
    tmp_path,
):
    (tmp_path / "slow_user_xyz.py").write_text(SLOW)
    seeds = [
        Conversation(f"s{i}", intent=INTENT_PREFIX + "cook.", user=f"p{i}")
        for i in range(60)
    ]
    write_conversations(tmp_path / "seeds.jsonl", seeds)
    command = [
        "simulate",
        "--user",
        "py:slow_user_xyz:Slow",
        "--assistant",
        "clarifier",
        "--intents",
        "seeds.jsonl",
    ]
    userlm(*command, "--out", "whole", cwd=tmp_path, fresh=True)
    asked = tmp_path / "asked.txt"
    assert len(asked.read_text().splitlines()) == 60 * 4
    asked.unlink()
    turns = tmp_path / "killed" / "turns.jsonl"
    for lines in (50, 150):
        process = start(*command, "--out", "killed", cwd=tmp_path)
        kill_when(
            process,
            lambda n=lines: turns.is_file() and turns.read_bytes().count(b"\n") > n,
        )
    userlm(*command, "--out", "killed", cwd=tmp_path)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    calls = asked.read_text().splitlines()
    # Asked, but killed before the answer came: at most one a worker.
    lost = len(calls) - len(set(calls))
    assert len(set(calls)) == 60 * 4 and lost <= 2 * 16


def test_the_help_of_a_verb_breaks_no_sentence_where_the_code_does():
    for name, (options, _) in cli.VERBS.items():
        paragraphs = description(options).split("\n\n")
        assert not any("\n" in paragraph for paragraph in paragraphs), name


def test_every_verb_has_an_example_that_the_command_line_understands():
    known = typer.main.get_command(cli.app).commands
    for name, (options, _) in cli.VERBS.items():
        paragraphs = description(options).split("\n\n")
        examples = [part for part in paragraphs if part.startswith("$ ")]
        assert 1 <= len(examples) <= 2, name
        for example in examples:
            _, program, verb, *arguments = shlex.split(example)
            assert (program, verb) == ("userlm", name)
            known[verb].make_context(verb, arguments)


def test_the_version_is_shown(tmp_path):
    assert (
        userlm("--version", cwd=tmp_path).strip()
        == f"userlm {userlm_package.__version__}"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nothing.jsonl"], "nothing.jsonl does not exist"),
        (["import", "empty.jsonl"], "empty.jsonl is empty"),
        (["import", "cut.jsonl.gz"], "cut.jsonl.gz is cut short or damaged after line"),
        (["import", "."], "holds no .jsonl"),
        (["import", "bad.jsonl", "--strict"], "bad.jsonl, line 2: "),
        (["import", "logs.jsonl", "--source", "wldchat"], "wldchat"),
        (["clean", "logs.jsonl"], "logs.jsonl, line 1: unknown field 'language'"),
        (
            ["train", "plain.jsonl"],
            "plain.jsonl: no conversation has an intent; run `userlm intents`",
        ),
        (
            ["train", "plain.jsonl", "--no-intent", "--base", "scratch:33x1"],
            "the width is a multiple of 32",
        ),
        (
            ["train", "plain.jsonl", "--no-intent", "--base", "./nowhere"],
            "./nowhere: there is no such folder",
        ),
        (
            ["ppl", "plain.jsonl", "--model", "nowhere/at/all"],
            "nowhere/at/all: there is no such folder",
        ),
        (
            [
                "simulate",
                "--user",
                "traned:x",
                "--assistant",
                "clarifier",
                "--intents",
                "plain.jsonl",
            ],
            "did you mean",
        ),
        (
            ["simulate", "--user", "script:x", "--assistant", "clarifier"],
            "give either --intents",
        ),
        (
            [
                "simulate",
                "--user",
                "script:x",
                "--assistant",
                "oracle",
                "--tasks",
                "no.jsonl",
            ],
            "no.jsonl does not",
        ),
        (["score", "nowhere"], "nowhere does not exist"),
        (
            ["clean", "plain.jsonl", "--config", "wrong.toml"],
            "wrong.toml, line 2: 'langages' is not a known option",
        ),
        (
            ["clean", "plain.jsonl", "--config", "broken.toml"],
            "broken.toml is not TOML",
        ),
        (["clean", "plain.jsonl", "--config", "no.toml"], "no.toml: cannot read"),
        (
            ["clean", "plain.jsonl", "--out", "thesis"],
            "thesis exists and is not a run folder",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence_and_exit_code_2(arguments, said, tmp_path):
    import gzip

    good = (
        json.dumps(
            {
                "id": "a",
                "language": "en",
                "messages": [{"role": "user", "content": "hi"}],
            }
        )
        + "\n"
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    (tmp_path / "logs.jsonl").write_text(good)
    (tmp_path / "bad.jsonl").write_text(good + "{oops\n")
    (tmp_path / "empty.jsonl").touch()
    packed = gzip.compress(os.urandom(100).hex().encode() + (good * 5000).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) * 3 // 4])
    write_conversations(
        tmp_path / "plain.jsonl", [Conversation("a").say("hi").say("hello")]
    )
    (tmp_path / "wrong.toml").write_text('ngram = 5\nlangages = "en"\n')
    (tmp_path / "broken.toml").write_text("ngram = \n")
    if arguments == ["import", "."]:
        arguments = ["import", "thesis"]
    shown = userlm(*arguments, cwd=tmp_path, code=2)
    assert said in shown
    assert "Traceback" not in shown
    lines = [line for line in shown.splitlines() if line.startswith("userlm:")]
    assert len(lines) == 1


def test_bad_lines_are_set_aside_with_their_reason_and_the_rest_goes_on(tmp_path):
    good = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    bad = {
        "not JSON": b"{oops",
        "not UTF-8": b'{"id": "\xff"}',
        "not an object": b"[1, 2]",
        "unknown role": json.dumps(
            {"id": "n", "messages": [{"role": "narrator", "content": "x"}]}
        ).encode(),
        "empty turn": json.dumps(
            {"id": "e", "messages": [{"role": "user", "content": " "}, good[1]]}
        ).encode(),
        "duplicate id": json.dumps({"id": "a", "messages": good}).encode(),
    }
    (tmp_path / "logs.jsonl").write_bytes(
        json.dumps({"id": "a", "messages": good}).encode()
        + b"\n"
        + b"\n".join(bad.values())
        + b"\n"
        + json.dumps({"id": "b", "messages": [good[0], good[0], good[1]]}).encode()
        + b"\n"
    )
    userlm("import", "logs.jsonl", "--out", "out", cwd=tmp_path)
    dropped = [
        json.loads(line)
        for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    ]
    assert [row["reason"] for row in dropped] == list(bad)
    assert [row["line"] for row in dropped] == list(range(2, 8))
    counts = json.loads((tmp_path / "out" / "results.json").read_text())["counts"]
    assert (counts["in"], counts["out"]) == (8, 2)
    assert counts["note: joined turns"] == 1
    kept = list(read_conversations(tmp_path / "out" / "conversations.jsonl"))
    assert [c.id for c in kept] == ["a", "b"] and kept[1].user_turns == ("hi\n\nhi",)


def test_options_can_come_from_a_file_and_the_command_line_wins(tmp_path):
    write_conversations(
        tmp_path / "c.jsonl", [Conversation("a").say("hi").say("hello")]
    )
    (tmp_path / "c.toml").write_text(
        'languages = "all"\n[clean]\nseed = 7\ntemplate-limit = 3\n[train]\nlr = 1\n'
    )
    userlm(
        "clean",
        "c.jsonl",
        "--config",
        "c.toml",
        "--seed",
        8,
        "--out",
        "out",
        cwd=tmp_path,
    )
    options = json.loads((tmp_path / "out" / "run.json").read_text())["options"]
    assert (options["languages"], options["seed"], options["template_limit"]) == (
        "all",
        8,
        3,
    )


def chat(*arguments: str, typed: str, cwd: Path) -> str:
    process = processes.userlm("chat", *arguments, cwd=cwd)
    out, err = process.communicate(typed, timeout=300)
    assert process.returncode == 0, err
    return out + err


def test_a_simulated_user_talks_to_you_and_the_chat_is_saved(tmp_path):
    (tmp_path / "lines.txt").write_text("hello there\nthanks [bold]\n")
    shown = chat(
        "--user",
        "script:lines.txt",
        "--save",
        "c.jsonl",
        typed="hi\nbye\n",
        cwd=tmp_path,
    )
    assert (
        "hello there" in shown
        and "thanks [bold]" in shown
        and "the user ended the conversation" in shown
    )
    [saved] = read_conversations(tmp_path / "c.jsonl")
    assert [turn.text for turn in saved.turns] == [
        "hello there",
        "hi",
        "thanks [bold]",
        "bye",
    ]
    assert saved.stop == "end"


def test_you_can_take_the_users_seat_and_ask_what_is_known_of_a_turn(tmp_path):
    shown = chat(
        "--role",
        "user",
        "--assistant",
        "clarifier",
        typed="hi\n/info\n\n",
        cwd=tmp_path,
    )
    assert (
        "assistant (clarifier, a stub)> " in shown
        and '"stub":"clarifier"' in shown
        and "you ended the conversation" in shown
    )


def test_rows_without_ids_in_files_of_one_stem_are_all_kept(tmp_path):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    for name in ("logs.2024-01", "logs.2024-02"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"messages": messages}) + "\n"
        )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "logs.2024-01.jsonl").write_text(
        json.dumps({"messages": messages}) + "\n"
    )
    userlm(
        "import",
        "logs.2024-01.jsonl",
        "logs.2024-02.jsonl",
        "sub",
        "--out",
        "out",
        cwd=tmp_path,
    )
    kept = [c.id for c in read_conversations(tmp_path / "out" / "conversations.jsonl")]
    assert kept == ["0:logs.2024-01-1", "logs.2024-02-1", "2:logs.2024-01-1"]


def talk(i: int) -> dict:
    asked = {"role": "user", "content": f"how do i cook rice for {i} people"}
    return {
        "id": f"r{i}",
        "messages": [asked, {"role": "assistant", "content": "With water."}],
        "language": "en",
    }


def lay(path: Path, *held: object) -> Path:
    """A file of such rows, or of JSON that is written already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(
            (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in held
        )
    )
    return path


@pytest.mark.parametrize("day", ["", "day/"])  # directly in the folder, or below it
def test_what_an_import_writes_into_its_own_folder_is_no_log(day, tmp_path, capsys):
    lay(tmp_path / f"logs/{day}a.jsonl", talk(0), "oops")
    lay(tmp_path / "logs/out-of-date/b.jsonl", talk(1)) if day else None
    out = tmp_path / "logs/out"
    first = commands.import_(commands.Import([str(tmp_path / "logs")], out=out))
    assert first["counts"] == {
        "dropped: not JSON": 1,
        "in": 2 + bool(day),
        "out": 1 + bool(day),
    }
    before = contents(out)
    capsys.readouterr()
    for again in (
        tmp_path / "logs",
        tmp_path / "logs" / ".",
        tmp_path / "logs/out/../../logs",
    ):
        assert (
            commands.import_(
                commands.Import([str(tmp_path / "logs")], out=again / "out")
            )
            == first
        )
        assert "complete already" in " ".join(capsys.readouterr().err.split())
    assert contents(out) == before
    assert [Path(name).name for name in json.loads(before["run.json"])["inputs"]] == [
        "a.jsonl",
        "b.jsonl",
    ][: 1 + bool(day)]
    with pytest.raises(
        InputError, match=r"all logs are inside .*out, the output folder"
    ):
        commands.import_(commands.Import([str(out / "conversations.jsonl")], out=out))


def test_what_was_mended_is_counted_even_if_the_id_was_used_before(tmp_path):
    spans = [sdk(called(*TALK[:n], conversation="r0")) for n in (2, 4)]
    lay(tmp_path / "logs.jsonl", talk(0), *spans)
    counts = commands.import_(
        commands.Import([str(tmp_path / "logs.jsonl")], out=tmp_path / "out")
    )["counts"]
    # 3 lines: one gave a conversation; of the two spans one was merged, and their conversation was
    # dropped
    assert counts == {
        "in": 3,
        "out": 1,
        "dropped: duplicate id": 1,
        **{f"note: merged {x}": 1 for x in ("lines", "spans")},
    }


def test_an_empty_file_among_others_is_counted_and_alone_it_is_an_error(tmp_path):
    for i, held in enumerate(([], [talk(0)], [], [talk(1)])):
        lay(tmp_path / f"logs/{i}.jsonl", *held)
    lay(tmp_path / "logs/4.jsonl", "", " ")
    (tmp_path / "logs/5.jsonl.gz").write_bytes(gzip.compress(b""))
    found = commands.import_(
        commands.Import([str(tmp_path / "logs")], out=tmp_path / "out")
    )
    assert found["counts"] == {"in": 2, "note: empty files": 4, "out": 2}
    with pytest.raises(InputError, match=r"0\.jsonl is empty"):
        commands.import_(
            commands.Import([str(tmp_path / "logs/0.jsonl")], out=tmp_path / "alone")
        )


def test_a_log_that_is_cut_short_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    path = lay(tmp_path / "logs.jsonl", *map(talk, range(2000)))
    read, size = layouts.find, path.stat().st_size

    def find(*arguments):
        for i, found in enumerate(read(*arguments)):
            if not i:
                os.truncate(path, size * 3 // 4)
            yield found

    monkeypatch.setattr(layouts, "find", find)
    with pytest.raises(
        InputError,
        match=r"logs\.jsonl was cut short while it was read; import it into another",
    ):
        commands.import_(commands.Import([str(path)], out=tmp_path / "out"))
    assert not (tmp_path / "out/results.json").exists()


def between(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Have `clean` find its conversations changed when it reads them for the second time."""
    decide = filters.decide

    def decided(*arguments):
        decisions = decide(*arguments)
        change()
        return decisions

    monkeypatch.setattr(filters, "decide", decided)


def test_of_conversations_that_grow_between_two_readings_those_that_were_there_are_taken(
    tmp_path, monkeypatch
):
    path = tmp_path / "c.jsonl"
    write_conversations(
        path, (Conversation(f"c{i}").say(f"say {i}").say("ok") for i in range(50))
    )
    more = (
        '{"id": "latecomer", "turns": [{"role": "user", "text": "hi"}]}\n{"id": "torn'
    )
    between(monkeypatch, lambda: path.write_text(path.read_text() + more))
    results = commands.clean(
        commands.Clean(path, out=tmp_path / "out", languages="all")
    )
    assert (results["counts"]["in"], results["counts"]["out"]) == (50, 50)
    assert b"latecomer" not in b"".join(contents(tmp_path / "out").values())


@pytest.mark.parametrize("change", ["cut", "replaced", "rewritten and longer"])
def test_conversations_that_change_between_two_readings_are_an_error(
    change, tmp_path, monkeypatch
):
    path = tmp_path / "c.jsonl"
    write_conversations(
        path, (Conversation(f"c{i}").say(f"say {i}").say("ok") for i in range(50))
    )

    def alter():
        if change == "cut":
            os.truncate(path, 1000)
        elif change == "replaced":
            other = tmp_path / "other"
            other.write_text(path.read_text().replace("say", "sag"))
            other.replace(path)
        else:
            path.write_text(path.read_text().replace("say", "sag") * 2)

    between(monkeypatch, alter)
    with pytest.raises(
        InputError,
        match=r"c\.jsonl changed while it was read; run the command again",
    ):
        commands.clean(commands.Clean(path, out=tmp_path / "out"))
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize("scrub", [False, True])
def test_conversations_that_are_cut_short_in_the_second_reading_are_an_error(
    scrub, tmp_path, monkeypatch
):
    path = tmp_path / "c.jsonl"
    write_conversations(
        path,
        (Conversation(f"c{i}").say(f"say {i} " * 9).say("ok") for i in range(2000)),
    )
    command = sys.modules["userlm.commands.clean"]
    read = command.read_rows

    def cut(*arguments):
        for i, line in enumerate(read(*arguments)):
            if not i:
                os.truncate(path, 200_000)
            yield line

    monkeypatch.setattr(command, "read_rows", cut)
    with pytest.raises(
        InputError,
        match=r"c\.jsonl changed while it was read; run the command again",
    ):
        commands.clean(commands.Clean(path, out=tmp_path / "out", scrub=scrub))
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"shares": "9²/5/5"},
            "--shares 9²/5/5: give three numbers that add up to 100",
        ),
        ({"shares": "90/5/٥"}, "--shares 90/5/٥: give three numbers"),
        ({"shares": " 90/5/5"}, "give three numbers"),
        ({"languages": ""}, "--languages: give codes such as en,de, or 'all'"),
        ({"languages": " ,"}, "--languages: give codes such as en,de, or 'all'"),
    ],
)
def test_options_of_clean_that_make_no_sense_are_input_errors_that_leave_nothing_behind(
    options, said, tmp_path
):
    write_conversations(
        tmp_path / "c.jsonl", [Conversation("a").say("hi").say("hello")]
    )
    with pytest.raises(InputError) as caught:
        commands.clean(
            commands.Clean(tmp_path / "c.jsonl", out=tmp_path / "out", **options)
        )
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_where_no_conversation_stays_it_is_an_error_that_says_where_the_reasons_are(
    tmp_path,
):
    log = Conversation("a", meta={"language": "French"}).say("bonjour").say("salut")
    write_conversations(tmp_path / "c.jsonl", [log])
    dropped = tmp_path / "out/dropped.jsonl"
    for _ in range(2):  # the same command says the same again
        with pytest.raises(InputError) as caught:
            commands.clean(commands.Clean(tmp_path / "c.jsonl", out=tmp_path / "out"))
        assert (
            str(caught.value)
            == f"all conversations were dropped; the reasons are in {dropped}"
        )
        assert [c.meta["dropped"] for c in read_conversations(dropped)] == [
            "language: fr, by label"
        ]
        assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize("name", ["logs.jsonl", "logs.json"])
def test_rows_that_are_nested_too_deep_are_set_aside_and_what_stays_can_be_scrubbed(
    name, tmp_path
):
    # A row, its `meta`, and lists in it; as much as is read must also be written, and searched for
    # addresses.
    turns = '[{"role": "user", "text": "mail ann@example.org"}, {"role": "assistant", "text": "ok"}]'
    lists = {
        levels: "[" * (levels - 2) + '"bob@example.org"' + "]" * (levels - 2)
        for levels in (200, 250, 600, 990)
    }
    held = [
        f'{{"id": "{levels}", "turns": {turns}, "meta": {{"x": {deep}}}}}'
        for levels, deep in lists.items()
    ]
    lay(tmp_path / name, *([f"[{', '.join(held)}]"] if name == "logs.json" else held))
    counts = commands.import_(
        commands.Import([str(tmp_path / name)], out=tmp_path / "in")
    )["counts"]
    assert counts == {"dropped: nested too deep": 3, "in": 4, "out": 1}
    results = commands.clean(
        commands.Clean(
            tmp_path / "in",
            out=tmp_path / "out",
            scrub=True,
            shares="100/0/0",
            languages="all",
        )
    )
    assert results["counts"]["note: scrubbed email"] == 2
    assert "example.org" not in (tmp_path / "out/train.jsonl").read_text()
    deep = lay(tmp_path / "deep.jsonl", held[1])
    with pytest.raises(
        InputError, match=r"deep\.jsonl, line 1: is nested more than 200 levels deep"
    ):
        commands.clean(commands.Clean(deep, out=tmp_path / "deep", scrub=True))


def test_a_file_of_which_nothing_can_be_imported_is_an_error(tmp_path):
    (tmp_path / "array.jsonl").write_text("[\n{\n}\n]\n")
    assert "none of the 1 lines is a conversation" in userlm(
        "import", "array.jsonl", cwd=tmp_path, code=2
    )


FAILS = """
from pathlib import Path
from userlm.types import ModelError, Reply

class Fails:
    def reply(self, conversation):
        with Path("asked.txt").open("a") as file:
            file.write(conversation.id + "\\n")
        if conversation.id == "s1#0" and not Path("mended").exists():
            raise ModelError("down [/INST] [red]")
        return Reply("fine")
"""


def test_conversations_that_ended_in_an_error_are_tried_again_by_the_same_command(
    tmp_path,
):
    (tmp_path / "fails_abc.py").write_text(FAILS)
    (tmp_path / "lines.txt").write_text("hi\n")
    write_conversations(
        tmp_path / "seeds.jsonl", [Conversation("s0"), Conversation("s1")]
    )
    command = [
        "simulate",
        "--user",
        "script:lines.txt",
        "--assistant",
        "py:fails_abc:Fails",
    ]
    command += ["--intents", "seeds.jsonl", "--out", "sim"]
    assert "down [/INST] [red]" in userlm(*command, cwd=tmp_path)
    stops = [
        c.stop for c in read_conversations(tmp_path / "sim" / "conversations.jsonl")
    ]
    assert stops == ["end", "error"]
    (tmp_path / "mended").touch()
    userlm(*command, cwd=tmp_path)
    stops = [
        c.stop for c in read_conversations(tmp_path / "sim" / "conversations.jsonl")
    ]
    assert stops == ["end", "end"]
    assert sorted((tmp_path / "asked.txt").read_text().split()) == [
        "s0#0",
        "s1#0",
        "s1#0",
    ]
    assert "complete already" in userlm(*command, cwd=tmp_path)


def test_ctrl_c_stops_soon_and_says_how_to_go_on(tmp_path):
    (tmp_path / "slow_user_xyz.py").write_text(SLOW.replace("0.01", "0.5"))
    seeds = [Conversation(f"s{i}", intent="x") for i in range(40)]
    write_conversations(tmp_path / "seeds.jsonl", seeds)
    command = [
        "simulate",
        "--user",
        "py:slow_user_xyz:Slow",
        "--assistant",
        "clarifier",
        "--intents",
        "seeds.jsonl",
    ]
    process = start(*command, cwd=tmp_path)
    asked = tmp_path / "asked.txt"
    while not asked.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; the same command resumes it" in err
    # The calls in flight, and no second round of turns.
    assert len(asked.read_text().splitlines()) <= 32


def test_ctrl_c_stops_soon_when_a_server_hangs_and_says_what_may_be_billed(tmp_path):
    write_conversations(
        tmp_path / "c.jsonl",
        (Conversation(f"c{i}").say("hi there").say("ok") for i in range(9)),
    )
    with serving(lambda body, n: Said(hang=60, cut=True)) as server:
        process = start(
            "intents",
            "c.jsonl",
            "--writer",
            f"{server.url}#m",
            "--workers",
            4,
            "--out",
            "out",
            cwd=tmp_path,
        )
        while len(server.requests) < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, err = process.communicate(timeout=30)
    # It takes no second, and nowhere near the minute of the server.
    assert time.monotonic() - begun < 10
    assert process.returncode == 130
    assert "4 calls were in flight; they may be billed" in err
    assert (
        "userlm: stopped; the same command resumes it" in err and "Traceback" not in err
    )
    # Begun, and not answered.
    assert len((tmp_path / "out/usage.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "out/asked.jsonl").read_text() == ""


def test_logged_turns_that_were_kept_are_not_scored_as_the_users_own(tmp_path):
    log = (
        Conversation("a", intent="x", user="p")
        .say("one two three four")
        .say("ok")
        .say("more")
        .say("ok")
    )
    write_conversations(tmp_path / "seeds.jsonl", [log])
    (tmp_path / "lines.txt").write_text("first\nsecond\nword\nword\n")
    command = [
        "simulate",
        "--user",
        "script:lines.txt",
        "--assistant",
        "clarifier",
        "--intents",
        "seeds.jsonl",
    ]
    userlm(*command, "--keep-turns", 4, "--max-turns", 4, "--out", "sim", cwd=tmp_path)
    userlm("score", "sim", "--out", "score", cwd=tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / "score" / "scores.jsonl").read_text().splitlines()
    ]
    counted = [line["stats"] for line in lines if line["metric"] == "words per turn"]
    assert counted == [[1.0, 1.0], [1.0, 1.0]]


def test_a_prompted_user_without_intents_is_refused_before_the_first_call(tmp_path):
    write_conversations(
        tmp_path / "seeds.jsonl", [Conversation("a", intent="x"), Conversation("b")]
    )
    (tmp_path / "lines.txt").write_text("hi\n")
    command = [
        "simulate",
        "--user",
        "prompted:script:lines.txt",
        "--assistant",
        "clarifier",
    ]
    shown = userlm(*command, "--intents", "seeds.jsonl", cwd=tmp_path, code=2)
    assert "seeds.jsonl: 1 of 2 conversations have no intent" in shown


def test_a_run_is_not_taken_up_with_another_script_or_other_weights(tmp_path):
    write_conversations(tmp_path / "seeds.jsonl", [Conversation("a", intent="x")])
    (tmp_path / "lines.txt").write_text("hi\n")
    command = [
        "simulate",
        "--user",
        "script:lines.txt",
        "--assistant",
        "clarifier",
        "--intents",
        "seeds.jsonl",
    ]
    userlm(*command, "--out", "sim", cwd=tmp_path)
    (tmp_path / "lines.txt").write_text("hello\n")
    assert "lines.txt changed" in userlm(*command, "--out", "sim", cwd=tmp_path, code=2)


def test_a_simulation_can_be_the_seed_of_another_and_passes_nothing_on(tmp_path):
    log = (
        Conversation("a", intent="x", user="p")
        .say("one two three four")
        .say("ok")
        .say("more")
        .say("ok")
    )
    write_conversations(tmp_path / "seeds.jsonl", [log])
    (tmp_path / "lines.txt").write_text("first\nsecond\n")
    command = ["simulate", "--user", "script:lines.txt", "--assistant", "clarifier"]
    userlm(
        *command,
        "--intents",
        "seeds.jsonl",
        "--keep-turns",
        2,
        "--out",
        "kept",
        cwd=tmp_path,
    )
    userlm(*command, "--intents", "kept", "--out", "again", cwd=tmp_path)
    [again] = read_conversations(tmp_path / "again" / "conversations.jsonl")
    assert again.user_turns == ("first", "second") and again.first_own_turn == 0
    shown = userlm("score", "again", "--out", "score", cwd=tmp_path)
    assert "turns per conversation" in shown
    results = json.loads((tmp_path / "score" / "results.json").read_text())["again"]
    assert (
        next(m["value"] for m in results if m["name"] == "turns per conversation") == 2
    )


def test_what_could_not_be_measured_does_not_push_the_names_out_of_a_narrow_table(
    tmp_path, monkeypatch, capsys
):
    from userlm.show.measures import Column, blocks
    from userlm.show.terminal import show

    monkeypatch.setenv("COLUMNS", "80")
    why = "a response to a prefix, not a whole conversation of its own, and more words than fit"
    record = {
        "name": "turns per conversation",
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
    }
    record |= {
        "missing": 5,
        "better": "neither",
        "unit": "turns",
        "why": why,
        "stub": "oracle",
    }
    column = Column(
        "a-run-with-a-name", {record["name"]: record}, "c0", "circle", "oracle"
    )
    for details in (False, True):
        show(blocks([column]), details)
        shown = capsys.readouterr().out
        assert "turns per conversation" in shown and "a-run-with-a-name" in shown
        assert "not measured" in shown
    assert "oracle stub" in shown


@pytest.mark.parametrize("runs", [2, 7, 20])
def test_measures_of_many_runs_fit_a_narrow_terminal_each_beside_the_humans(
    runs, monkeypatch, capsys
):
    from userlm.show.measures import HUMAN, Column, blocks
    from userlm.show.terminal import show

    monkeypatch.setenv("COLUMNS", "80")

    def column(name, colour, value):
        record = {"name": "words per turn", "value": value, "low": 1.0, "high": 99.0}
        record |= {"n": 5, "missing": 0, "better": "neither", "unit": "words"}
        return Column(name, {"words per turn": record}, colour, "circle")

    columns = [column(f"a-long-name-{i}", "c0", 10.25 + i) for i in range(runs)]
    show(blocks([*columns, column(HUMAN, HUMAN, 77.75)]), details=False)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    for i in range(runs):
        assert f"{10.25 + i:.2f}" in shown
    tables = shown.count("measure")
    assert shown.count("77.75") == shown.count("human") == tables
    assert (tables == 1) == (runs == 2) == ("1.00 to 99.00" in shown)
    assert ("--details" in shown) == (runs > 2)


def test_last_words_of_a_simulated_user_are_theirs(tmp_path):
    (tmp_path / "bye.txt").write_text("bye then <|endconversation|>\n")
    shown = chat(
        "--user", "prompted:script:bye.txt", "--intent", "x", typed="", cwd=tmp_path
    )
    assert "user> bye then" in shown and "the user ended the conversation" in shown


def test_ctrl_c_in_a_chat_leaves_and_saves_what_was_said(tmp_path):
    command = [
        "chat",
        "--role",
        "user",
        "--assistant",
        "clarifier",
        "--save",
        "c.jsonl",
    ]
    process = processes.userlm(*command, cwd=tmp_path)
    process.stdin.write("hello\n")
    process.stdin.flush()
    shown = ""
    while not shown.endswith("bit more about that?\n"):  # it answered, and asks again
        shown += process.stderr.read(1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    [saved] = read_conversations(tmp_path / "c.jsonl")
    assert saved.user_turns == ("hello",)
