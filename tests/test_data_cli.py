"""`import`, `clean` and `intents` as commands: remote logs, options, hurt files, and machines that
fail.

What each part does on its own is tested beside it; here it is seen from the command to the files of
the run.
"""

import gzip
import importlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import test_files

from userlm import commands
from userlm import rows as rows_module
from userlm.cli import main
from userlm.data import hub as exporting
from userlm.data import layouts
from userlm.flip import render, samples, userlm_template
from userlm.json_files import read_json
from userlm.lines import MOST_VALUES
from userlm.rows import read_conversations, write_conversations
from userlm.runs import Outputs
from userlm.text import END_TOKEN
from userlm.types import Conversation, InputError, Turn

# The fixtures: a Hub on this machine, and fsspec's file system in memory.
hub = test_files.hub
memory = test_files.memory

Command = Callable[..., str]


@pytest.fixture
def userlm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run a verb in this process, in the folder of the test; what it printed, white space
    collapsed.

    Anything that `main` does not make a sentence of is raised, and fails the test.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["userlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as over:
            main()
        shown = " ".join("".join(capsys.readouterr()).split())
        assert (over.value.code or 0) == code, shown
        return shown

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def jsonl(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def message(role: str | None, content: str | None) -> dict[str, str | None]:
    return {"role": role, "content": content}


def asked(text: str, **fields: object) -> dict[str, Any]:
    """A log in the layout of OpenAI's messages."""
    return {
        "messages": [message("user", text), message("assistant", "Well.")],
        "language": "en",
        **fields,
    }


def log(id: str, text: str, user: str | None = None, **meta: object) -> Conversation:
    turns = Turn("user", text), Turn("assistant", "Well.")
    return Conversation(
        id, turns, user=user, ended=True, meta={"language": "English", **meta}
    )


def test_a_quote_that_costs_all_lines_after_it_is_said_on_the_terminal(
    userlm, tmp_path
):
    rows = ["who\tsays\tid", "user\thi\t1", 'user\t"so\t2', *["user\thi\t3"] * 9]
    Path("logs.tsv").write_text("\n".join(rows))
    shown = userlm(
        *("import", "logs.tsv", "--map", "role=who,text=says,id=id", "--out", "out")
    )
    assert "10 lines set aside as not CSV" in shown
    first, *others = rows_of(tmp_path / "out/dropped.jsonl")
    assert first["line"] == 3
    assert all("a quote that line 3 opens" in each["error"] for each in others)


# --- logs from elsewhere --------------------------------------------------------------------------


def test_logs_in_any_file_system_become_the_conversations_of_the_same_files_here(
    memory, userlm, tmp_path
):
    files = {
        "a.jsonl": jsonl([asked("boil rice", id="r1"), {"x": 1}, asked("no id here")]),
        "b.jsonl.gz": gzip.compress(
            jsonl([asked("bake bread"), asked("again", id="r1")])
        ),
    }
    (tmp_path / "here").mkdir()
    for name, held in files.items():
        memory.pipe(f"/there/{name}", held)
        (tmp_path / "here" / name).write_bytes(held)
    memory.pipe("/there/notes.txt", b"no log")
    userlm("import", "here", "--out", "local")
    userlm("import", "memory://there", "--out", "remote")
    local, remote = contents(tmp_path / "local"), contents(tmp_path / "remote")
    assert [row["id"] for row in rows_of(tmp_path / "remote/conversations.jsonl")] == [
        "r1",
        "a-3",
        "b-1",
    ]
    assert remote["conversations.jsonl"] == local["conversations.jsonl"]
    assert remote["results.json"] == local["results.json"]
    assert remote.keys() == local.keys()  # nothing is left of the copies
    dropped = rows_of(tmp_path / "remote/dropped.jsonl")
    where = [(row["file"], row["line"], row["reason"]) for row in dropped]
    assert where == [
        ("memory://there/a.jsonl", 2, "unknown layout"),
        ("memory://there/b.jsonl.gz", 2, "duplicate id"),
    ]
    assert "remote is complete already" in userlm(
        "import", "memory://there", "--out", "remote"
    )
    assert contents(tmp_path / "remote") == remote
    memory.pipe("/there/a.jsonl", jsonl([asked("other words")]))
    shown = userlm("import", "memory://there", "--out", "remote", code=2)
    assert "memory://there/a.jsonl changed now); choose another --out" in shown


def test_a_copy_that_a_killed_import_left_keeps_no_other_from_its_end(
    memory, userlm, tmp_path
):
    memory.pipe("/b.jsonl", jsonl([asked("hi")]))
    copies = tmp_path / "out" / ".copies"
    copies.mkdir(parents=True)
    (copies / "0123.jsonl").write_bytes(b"of another file")
    userlm("import", "memory://b.jsonl", "--out", "out", "--force")
    assert (tmp_path / "out/results.json").is_file() and not copies.exists()


def test_a_remote_file_that_cannot_be_had_stops_the_import_which_goes_on_there(
    memory, userlm, tmp_path, monkeypatch
):
    for name in ("a", "b", "c"):
        memory.pipe(
            f"/logs/{name}.jsonl", jsonl(asked(f"{name} {i}") for i in range(3))
        )
    copies, copy, shut = [], type(memory).get_file, {"/logs/b.jsonl"}

    def get_file(self: object, path: str, to: str) -> None:
        copies.append(path)
        if path in shut:
            raise PermissionError("shut")
        copy(self, path, to)

    monkeypatch.setattr(type(memory), "get_file", get_file)
    shown = userlm("import", "memory://logs", "--out", "out", code=2)
    assert (
        "memory://logs/b.jsonl may not be read" in shown
        and "then run the same command again" in shown
    )
    assert not (tmp_path / "out/results.json").exists()
    shut.clear()
    copies.clear()
    userlm("import", "memory://logs", "--out", "out")
    assert copies == ["/logs/b.jsonl", "/logs/c.jsonl"]  # the first was done
    ids = [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")]
    assert ids == [f"{name}-{i}" for name in "abc" for i in (1, 2, 3)]


IMPORT = """
from userlm.cli import main
from userlm.data import files
files.PAUSES = (0.0,)
main()
"""


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_imported_and_nothing_of_the_copies_stays(
    hub, monkeypatch, tmp_path
):
    host, counts = hub
    parts = []
    for part in (0, 1):
        talks = [asked(f"part {part}, row {i}", id=f"{part}{i}") for i in range(3)]
        pl.DataFrame(talks).write_parquet(tmp_path / "part.parquet")
        parts.append((tmp_path / "part.parquet").read_bytes())
    held = {f"data/train-0000{i}.parquet": part for i, part in enumerate(parts)}
    monkeypatch.setitem(
        test_files.SETS, "team/talks", {"README.md": b"", "same.jsonl": b"{}", **held}
    )
    known = {
        "HF_ENDPOINT": host,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
    }

    def run() -> str:
        command = [
            sys.executable,
            "-c",
            IMPORT,
            "import",
            "hf://datasets/team/talks",
            "--out",
            "out",
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **known},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    run()
    out = tmp_path / "out"
    assert [row["id"] for row in rows_of(out / "conversations.jsonl")] == [
        "00",
        "01",
        "02",
        "10",
        "11",
        "12",
    ]
    assert set(contents(out)) == {
        ".lock",
        "conversations.jsonl",
        "dropped.jsonl",
        "results.json",
        "run.json",
    }
    inputs = read_json(out / "run.json")["inputs"]
    assert list(inputs) == [f"hf://datasets/team/talks/{name}" for name in held]
    before = dict(counts)
    assert "complete already" in run()
    # Each file was had once, after the server had been busy.
    assert counts == before == dict.fromkeys(held, 2)


# --- conversations in several rows ----------------------------------------------------------------


@pytest.mark.parametrize("id", ["call-{}", "always the same"])
def test_calls_with_their_history_become_one_conversation_and_each_line_is_counted(
    id, userlm, tmp_path
):
    said = [message("user", "why?"), message("assistant", "So.")] * 3
    rows = [{"id": id.format(n), "user": "p1", "messages": said[:n]} for n in (2, 4, 6)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows[:2]))
    (tmp_path / "b.jsonl").write_bytes(jsonl([rows[2], asked("boil rice", id="r")]))
    userlm("import", "a.jsonl", "b.jsonl", "--out", "out")
    found = read_conversations(tmp_path / "out/conversations.jsonl")
    assert [(c.id, len(c.turns), c.ended) for c in found] == [
        (id.format(6), 6, True),
        ("r", 2, True),
    ]
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert counts == {"in": 4, "out": 2, "note: merged lines": 2}
    assert rows_of(tmp_path / "out/dropped.jsonl") == []


def test_pieces_of_sharegpt_in_several_files_are_joined(userlm, tmp_path):
    def piece(number: int) -> dict[str, Any]:
        exchange = [("human", f"ask {number}"), ("gpt", f"answer {number}")]
        values = [{"from": who, "value": text} for who, text in exchange]
        return {"id": f"QWJhYvA_{number}", "conversations": values}

    (tmp_path / "a.jsonl").write_bytes(jsonl([piece(2), piece(0)]))
    (tmp_path / "b.jsonl").write_bytes(jsonl([piece(4)]))
    userlm("import", "a.jsonl", "b.jsonl", "--out", "out")
    (whole,) = read_conversations(tmp_path / "out/conversations.jsonl")
    assert whole.user_turns == ("ask 0", "ask 2", "ask 4")
    assert whole.ended
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert counts == {"in": 3, "out": 1, "note: merged lines": 2}


def test_a_conversation_that_was_imported_can_be_read_however_many_commas_it_has(
    userlm, tmp_path
):
    table = "sum these: " + "1," * (MOST_VALUES // 2 + 1)
    exchange = [{"from": "human", "value": table}, {"from": "gpt", "value": "no"}]
    ids = ["QWJhYvA_0", "QWJhYvA_2"]
    pieces = [{"id": id, "conversations": exchange} for id in ids]
    (tmp_path / "a.jsonl").write_bytes(jsonl(pieces))
    texts = [[{"role": "user", "content": table + table}]]
    pl.DataFrame({"id": ["b"], "messages": texts}).write_parquet(tmp_path / "b.parquet")
    userlm("import", "a.jsonl", "b.parquet", "--out", "out")
    found = list(read_conversations(tmp_path / "out/conversations.jsonl"))
    assert [each.id for each in found] == ["QWJhYvA_2", "b"]


def test_short_lines_that_are_dropped_do_not_fill_the_disk(
    userlm, tmp_path, monkeypatch
):
    module = importlib.import_module("userlm.commands.import_")
    monkeypatch.setattr(module, "MOST_LISTED", 3)
    raw = jsonl([{}, asked("hi"), {}, {}, {}, {"messages": []}])
    (tmp_path / "a.jsonl").write_bytes(raw)
    userlm("import", "a.jsonl", "--out", "out")
    dropped = rows_of(tmp_path / "out/dropped.jsonl")
    assert [row["line"] for row in dropped] == [1, 3, 4]
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert counts == {
        "in": 6,
        "out": 1,
        "dropped: unknown layout": 4,
        "dropped: no messages": 1,
        module.UNLISTED: 2,
    }


def test_an_import_is_not_resumed_on_a_damaged_file(userlm, tmp_path, monkeypatch):
    row = {"id": "a", "messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.jsonl").write_bytes(jsonl([row]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "close", full)
        userlm("import", "a.jsonl", "--out", "out", code=1)
    written = tmp_path / "out/conversations.jsonl"
    written.write_bytes(written.read_bytes().replace(b"{", b"[", 1))
    said = userlm("import", "a.jsonl", "--out", "out", code=2)
    assert "conversations.jsonl, line 1: is not JSON" in said and "--force" in said


# --- clean ----------------------------------------------------------------------------------------


def test_what_is_scrubbed_is_marked_in_the_files_and_counted(userlm, tmp_path):
    logs = [
        log("a", "mail ann@example.org or bob@example.org", user="p"),
        log("b", "my phone is +1 415 555 0132, my mail too: ann@example.org", user="q"),
        log("c", "nothing to hide", user="r", goal="write to carl@example.org"),
        log("d", "dora@example.org", user="s", toxic=True),  # goes, and is not counted
    ]
    write_conversations(tmp_path / "logs.jsonl", logs)
    userlm("clean", "logs.jsonl", "--scrub", "--shares", "100/0/0", "--out", "out")
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert (counts["note: scrubbed email"], counts["note: scrubbed phone"]) == (4, 1)
    assert [name for name in counts if name.startswith("note:")] == [
        "note: scrubbed email",
        "note: scrubbed phone",
    ]
    a, b, c = read_conversations(tmp_path / "out/train.jsonl")
    assert a.user_turns == ("mail <EMAIL> or <EMAIL>",)
    assert b.user_turns == ("my phone is <PHONE>, my mail too: <EMAIL>",)
    assert c.meta["goal"] == "write to <EMAIL>"
    assert (a.user, b.user, c.user) == ("p", "q", "r")


def test_labels_of_the_log_are_scrubbed_in_the_results_and_counted_together(
    userlm, tmp_path
):
    logs = [
        log(
            f"c{n}",
            f"question {n}",
            user=f"p{n}",
            country=f"Chile, {name}@example.org",
            model=f"{name}@example.org",
            language=f"mail {name}@example.org",
        )
        for n, name in enumerate(("ann", "bob"))
    ]
    write_conversations(tmp_path / "logs.jsonl", logs)
    options = ["--scrub", "--hub", "--shares", "100/0/0", "--languages"]
    shown = userlm("clean", "logs.jsonl", *options, "all", "--out", "out")
    results = read_json(tmp_path / "out/results.json")
    assert results["countries"] == {"Chile, <EMAIL>": 2}
    assert results["models"] == {"<EMAIL>": 2}
    logs.append(
        log(
            "d",
            "wie backt man einen kuchen und was braucht man dazu?",
            language="German",
        )
    )
    write_conversations(tmp_path / "logs.jsonl", logs)
    shown += userlm("clean", "logs.jsonl", *options, "de", "--out", "out2")
    written = ("results.json", "hub/README.md")
    texts = [
        shown,
        *(p.read_text() for name in written for p in tmp_path.glob(f"*/{name}")),
    ]
    assert len(texts) == 5
    assert not any("example.org" in text for text in texts)


def test_what_is_not_scrubbed_is_said(userlm, tmp_path):
    logs = [
        log("a", "mail ann@example.org or bob@example.org", user="p"),
        log("b", "my phone is +1 415 555 0132, my mail too: ann@example.org", user="q"),
        log("c", "nothing to hide", user="r"),
        log("d", "dora@example.org", user="s", toxic=True),  # goes, and is not counted
    ]
    write_conversations(tmp_path / "logs.jsonl", logs)
    options = ["clean", "logs.jsonl", "--shares", "100/0/0"]
    for _ in range(2):  # when it is complete already, too
        shown = " ".join(userlm(*options, "--out", "out").split())
        assert (
            "Personal data: out keeps what looks like it in 2 conversations "
            "(email in 2, phone in 1); clean again with --scrub." in shown
        )
    assert "ann@example.org" in (tmp_path / "out/train.jsonl").read_text()
    assert "Personal data" not in userlm(*options, "--scrub", "--out", "scrubbed")


def test_a_line_that_is_too_long_is_dropped_and_its_beginning_and_length_are_kept(
    userlm, tmp_path
):
    short, long = (asked("say " + "x" * size) for size in (10, 1 << 20))
    (tmp_path / "logs.jsonl").write_bytes(jsonl([short, long, asked("say more")]))
    userlm("import", "logs.jsonl", "--max-line", 1, "--out", "out")
    [row] = rows_of(tmp_path / "out/dropped.jsonl")
    length = len(jsonl([long])) - 1
    assert (row["line"], row["reason"]) == (2, "too long")
    assert (
        f"{length:,} bytes long; the longest that is read is 1,048,576" in row["error"]
    )
    assert row["raw"] == jsonl([long]).decode()[:1000]
    assert len(rows_of(tmp_path / "out/conversations.jsonl")) == 2


def test_languages_that_labels_dropped_and_those_that_the_identifier_dropped_are_counted(
    userlm, tmp_path
):
    text = "Bonjour, comment faire une bonne soupe aux légumes ?"
    labels = ["French", "French", "English", None]
    logs = [log("en", "how do I make a good soup of this")]
    for i, label in enumerate(labels):
        logs.append(log(f"c{i}", text, **({"language": label} if label else {})))
    write_conversations(tmp_path / "logs.jsonl", logs)
    userlm("clean", "logs.jsonl", "--out", "out")
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert counts["dropped: language: fr, by label"] == 2
    assert counts["dropped: language: fr, by identifier"] == 2
    assert counts["note: language by label"] == 2
    assert counts["note: language by identifier"] == 2


WORDS = (
    "rice bread soup salt oven pan knife plate lemon apple honey flour water sugar "
    "onion "
    "pepper bean"
).split()


def shingles(conversation: Conversation) -> set[tuple[str, ...]]:
    words = " ".join(conversation.user_turns).lower().split()
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def similarity(one: Conversation, other: Conversation) -> float:
    mine, theirs = shingles(one), shingles(other)
    return len(mine & theirs) / len(mine | theirs)


@pytest.mark.parametrize(
    ("how", "reason"), [("exact", "duplicate"), ("near", "near-duplicate")]
)
def test_nobody_in_test_says_what_somebody_in_train_says(how, reason, userlm, tmp_path):
    # 30 texts of 40 words, each said by 6 people; if `near`, in 3 versions that differ in the last
    # word. That word stands in one 5-gram of 36: two versions have 35 of 37 in common, 0.946. Texts
    # drawn alone have next to none.
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=39)) for _ in range(30)]
    logs = [
        log(
            f"{i}-{n}",
            f"{text} {n // 2 if how == 'near' else 'end'}",
            user=f"person-{i}-{n}",
        )
        for i, text in enumerate(texts)
        for n in range(6)
    ]
    draw.shuffle(logs)
    write_conversations(tmp_path / "logs.jsonl", logs)

    def overlap(folder: Path) -> int:
        """How many in test are like somebody in train."""
        train, test = (
            list(read_conversations(folder / f"{name}.jsonl"))
            for name in ("train", "test")
        )
        return sum(
            any(similarity(one, other) >= 0.7 for other in train) for one in test
        )

    options = ["--shares", "50/0/50", "--templates"]
    userlm("clean", "logs.jsonl", *options, "--out", "kept")
    assert overlap(tmp_path / "kept") > 50
    userlm("clean", "logs.jsonl", *options, "--duplicates", how, "--out", "out")
    assert overlap(tmp_path / "out") == 0
    train, test = (
        {c.id for c in read_conversations(tmp_path / f"out/{name}.jsonl")}
        for name in ("train", "test")
    )
    assert len(train | test) == 30 and test <= {
        c.id for c in read_conversations(tmp_path / "kept/test.jsonl")
    }
    dropped = list(read_conversations(tmp_path / "out/dropped.jsonl"))
    assert {c.meta["dropped"] for c in dropped} == {reason} and len(dropped) == 150
    for one in dropped:
        stays = one.meta["duplicate_of"]
        assert stays in train | test and stays.split("-")[0] == one.id.split("-")[0]
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert (counts["in"], counts["out"], counts[f"dropped: {reason}"]) == (180, 30, 150)


def test_a_split_that_gets_next_to_nothing_is_said_and_so_is_the_file_of_a_folder(
    userlm, tmp_path
):
    lines = [log(f"c{i}", f"how do {i} eggs boil", user=f"p{i % 2}") for i in range(12)]
    write_conversations(tmp_path / "logs.jsonl", [*lines, log("t", "hi", user="p8")])
    said = userlm("clean", "logs.jsonl", "--shares", "70/15/15", "--seed", 3)
    splits = read_json(tmp_path / "runs/clean/results.json")["splits"]
    few = [f"{name} {one['conversations']}" for name, one in splits.items()]
    few = [one for one in few if int(one.split()[1]) < 5]
    assert few and f"leave few conversations: {', '.join(few)};" in said
    assert "few conversations" not in userlm(
        "clean", "logs.jsonl", "--shares", "100/0/0", "--out", "all"
    )
    split = tmp_path / "split"
    split.mkdir()
    write_conversations(split / "train.jsonl", lines[1:])
    write_conversations(split / "test.jsonl", lines[:1])
    command = ["respond", "--user", "replay:split", "--out"]
    said = userlm(*command, "folder", "split")
    assert (
        "split means split/test.jsonl, which has only 1 conversation; another" in said
    )
    assert "means" not in userlm(*command, "file", "split/test.jsonl")


EXPLAINED = [
    log("first", "how long does rice take on a small stove", user="ann"),
    log("copy", "How long does rice take  on a small stove", user="bob"),
    log("fr", "bonjour", language="French"),
    log("bad", "hello you", toxic=True),
    log("cut", "hello NAME_1", redacted=True),
    *(log(f"t{i}", f"write me a very short poem about {i}") for i in range(5)),
]


@pytest.mark.slow
def test_explain_says_of_every_conversation_what_clean_did_with_it(userlm, tmp_path):
    write_conversations(tmp_path / "logs.jsonl", EXPLAINED)
    options = [
        "logs.jsonl",
        "--template-limit",
        4,
        "--duplicates",
        "exact",
        "--shares",
        "100/0/0",
    ]
    userlm("clean", *options, "--out", "out")
    reasons = {
        c.id: c.meta["dropped"]
        for c in read_conversations(tmp_path / "out/dropped.jsonl")
    }
    assert reasons == {
        "copy": "duplicate",
        "fr": "language: fr, by label",
        "bad": "toxic",
        "cut": "redacted",
        **{f"t{i}": "template prompt" for i in range(5)},
    }
    why = {
        "duplicate": "duplicate dropped the user says the same as in 'first', which is kept",
        "language: fr, by label": "language dropped fr, its log says 'French'; kept: en",
        "toxic": "toxic dropped toxic: True",
        "redacted": "redacted dropped redacted: True",
        # 7 words up to the number
        "template prompt": "template prompt dropped its most frequent 7-gram occurs 5 times in first turns: "
        "'write me a very short poem about'; the limit is 4",
    }
    before = contents(tmp_path)
    for one in EXPLAINED:
        shown = userlm("clean", "--out", "out", "--explain", one.id)
        assert one.id in shown
        if one.id in reasons:
            assert (
                why[reasons[one.id]] in shown
                and " none it is dropped; otherwise train: " in shown
            )
        else:
            assert (
                " dropped " not in shown
                and "split train the user 'ann' has position 0." in shown
            )
    shown = userlm("clean", "--out", "out", "--explain", "furst", code=2)
    assert "no conversation has the id 'furst'; there are 'first'" in shown
    wrong = ["--out", "out", "--shares", "90/5/5", "--seed", 3, "--explain", "fr"]
    shown = userlm("clean", *wrong, code=2)
    assert "--seed 3: out was made with 0; leave the option out" in shown
    shown = userlm("clean", "other.jsonl", "--out", "out", "--explain", "fr", code=2)
    assert "other.jsonl" in shown
    shown = userlm("clean", "--out", "nowhere", "--explain", "fr", code=2)
    assert "nowhere is not a folder" in shown
    assert contents(tmp_path) == before  # it is only said
    with (tmp_path / "logs.jsonl").open("a") as file:
        file.write("\n")
    shown = userlm("clean", "--out", "out", "--explain", "fr", code=2)
    assert "logs.jsonl is not what it was" in shown


@pytest.mark.slow
def test_explain_says_in_which_split_the_run_put_a_conversation(userlm, tmp_path):
    logs = [log(f"c{i}", f"question number {i}", user=f"p{i}") for i in range(12)]
    write_conversations(tmp_path / "logs.jsonl", logs)
    options = ["--shares", "40/30/30", "--seed", 5, "--out", "out"]
    userlm("clean", "logs.jsonl", *options)
    for split in ("train", "valid", "test"):
        kept = list(read_conversations(tmp_path / f"out/{split}.jsonl"))
        assert kept
        for one in kept:
            shown = userlm("clean", "--out", "out", "--explain", one.id)
            assert f"split {split} " in shown


def test_explain_knows_near_duplicates_and_filters_that_are_off(userlm, tmp_path):
    text = "please tell me how to cook a good soup of beans and onions for ten hungry people"
    logs = [
        log("one", f"{text} today", user="ann"),
        log("two", f"{text} tonight", user="bob"),
        *EXPLAINED[2:],
    ]
    write_conversations(tmp_path / "logs.jsonl", logs)
    options = ["logs.jsonl", "--duplicates", "near", "--shares", "100/0/0"]
    userlm("clean", *options, "--out", "near")
    assert (
        "near-duplicate dropped the user says the same as in 'one', which is kept"
        in userlm("clean", "--out", "near", "--explain", "two")
    )
    off = ["--templates", "--flagged", "--languages", "all", "--out", "off"]
    userlm("clean", *options, *off)
    shown = userlm("clean", "--out", "off", "--explain", "t1")
    assert (
        "template prompt off its most frequent 7-gram occurs 5 times" in shown
        and "toxic off" in shown
    )
    assert (
        "kept en, its log says 'English'; all are kept" in shown
        and " dropped " not in shown
    )


# --- the export for the Hub, and conditions -------------------------------------------------------


def test_the_hub_folders_of_clean_and_intents_hold_the_splits_and_nobody_s_name(
    userlm, tmp_path
):
    names = [
        "Ann Onymous <ann@example.org>",
        "bob.builder",
        "Carla-17",
        "dora",
        "emil@example.org",
    ]
    rows = [
        asked(f"how do i cook rice for {i} people", id=f"r{i}", user_id=names[i % 5])
        for i in range(12)
    ]
    rows += [asked("nobody asks", id="r12")]
    (tmp_path / "logs.jsonl").write_bytes(jsonl(rows))
    userlm("import", "logs.jsonl", "--out", "in")
    userlm("clean", "in", "--hub", "--shares", "50/0/50", "--out", "clean")
    userlm("intents", "clean", "--hub", "--out", "intents")
    exports: set[str] = set()
    for run in ("clean", "intents"):
        found, people = Counter[str](), dict[str, str]()
        for ours, theirs in (("train", "train"), ("test", "test")):
            talks = list(read_conversations(tmp_path / run / f"{ours}.jsonl"))
            assert talks
            frame = pl.read_parquet(tmp_path / run / f"hub/data/{theirs}-*.parquet")
            assert frame["id"].to_list() == [c.id for c in talks]
            assert frame["intent"].to_list() == [c.intent for c in talks]
            said = [
                [(turn["role"], turn["content"]) for turn in turns]
                for turns in frame["messages"].to_list()
            ]
            assert said == [[(turn.role, turn.text) for turn in c.turns] for c in talks]
            for talk, number in zip(talks, frame["user"].to_list(), strict=True):
                if talk.user is None:
                    assert number is None
                else:
                    assert people.setdefault(talk.user, number) == number
            found[theirs] += len(frame)
            shown = json.dumps(frame.to_dicts())
            assert not [
                name for name in names if name in shown or name.split()[0] in shown
            ]
        assert sorted(people) == sorted(names)
        [export] = {each.rpartition("-")[0] for each in people.values()}
        assert sorted(people.values()) == [f"{export}-{i}" for i in range(5)]
        exports.add(export)
        card = (tmp_path / run / "hub/README.md").read_text()
        assert (
            all(f"| {split} | {n} |" in card for split, n in found.items())
            and found.total() == 13
        )
        assert not [name for name in names if name in card]
        assert sorted(path.name for path in (tmp_path / run / "hub").iterdir()) == [
            "README.md",
            "data",
        ]
    assert len(exports) == 2  # a person of one is nobody of the other
    assert (
        None
        not in pl.read_parquet(tmp_path / "intents/hub/data/*.parquet")[
            "intent"
        ].to_list()
    )


def test_intents_of_a_file_are_exported_too(userlm, tmp_path):
    write_conversations(
        tmp_path / "logs.jsonl",
        [log("a", "how do i cook rice"), log("b", "how do i bake bread")],
    )
    userlm("intents", "logs.jsonl", "--hub", "--out", "out")
    frame = pl.read_parquet(tmp_path / "out/hub/data/train-00000-of-00001.parquet")
    assert frame["id"].to_list() == ["a", "b"] and None not in frame["intent"].to_list()


def test_the_card_tells_nobody_where_files_lie_on_this_machine(userlm, tmp_path):
    write_conversations(
        tmp_path / "split/train.jsonl", [log("a", "how do i cook rice")]
    )
    (tmp_path / "theirs.jsonl").write_bytes(jsonl([{"id": "a", "intent": "Cook."}]))
    (tmp_path / "lines.txt").write_text("nothing\n")
    by = f"script:{tmp_path / 'lines.txt'}"
    userlm(
        "intents",
        "split",
        "--join",
        tmp_path / "theirs.jsonl",
        "--writer",
        by,
        "--hub",
        "--out",
        "out",
    )
    assert str(tmp_path) not in (tmp_path / "out/hub/README.md").read_text()


LETTERS = userlm_template(
    lambda text: [ord(letter) for letter in text],
    {
        "<|start_header_id|>": -1,
        "<|end_header_id|>": -2,
        "<|eot_id|>": -3,
        END_TOKEN: -4,
    }.get,
    frozenset((-1, -2, -3, -4)),
)
"""A tokenizer whose tokens are letters."""


def test_a_condition_stands_in_meta_and_in_the_system_turn_of_what_is_learnt(
    userlm, tmp_path
):
    logs = [
        log("all", "how do i cook rice on a stove", country="Chile"),
        log("some", "how do i bake bread in an oven", country="none", model="m"),
        log("none", "how do i boil an egg in a pan", language=None),
    ]
    write_conversations(tmp_path / "logs.jsonl", logs)
    userlm("intents", "logs.jsonl", "--condition", "language,country", "--out", "out")
    found = {c.id: c for c in read_conversations(tmp_path / "out/conversations.jsonl")}
    assert {id: c.meta.get("condition") for id, c in found.items()} == {
        "all": "About the user: language English, country Chile.",
        "some": "About the user: language English.",
        "none": None,
    }
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert (
        counts["note: condition, language known"] == 2
        and counts["note: condition, country known"] == 1
    )
    for one in found.values():
        assert one.intent and len(list(samples(one))) == 2  # the turn and the ending
        [row] = render(one, LETTERS).rows
        system = "".join(
            chr(token) for token in row.ids[: row.ids.index(-3)] if token > 0
        )
        told = one.meta.get("condition")
        assert system == "system\n" + one.intent + (f" {told}" if told else "")
    userlm("intents", "out", "--condition", "model,sex", "--out", "again")
    again = {
        c.id: c for c in read_conversations(tmp_path / "again/conversations.jsonl")
    }
    assert [c.meta.get("condition") for c in again.values()] == [
        None,
        "About the user: model m.",
        None,
    ]
    assert [c.intent for c in again.values()] == [c.intent for c in found.values()]
    assert "no log has these fields: sex" in userlm(
        "intents", "logs.jsonl", "--condition", "sex", "--out", "nobody"
    )


# --- hurt parquet ---------------------------------------------------------------------------------


def parquet(
    path: Path, columns: dict[str, Any], schema: dict[str, Any] | None = None
) -> bytes:
    pl.DataFrame(columns, schema=schema, strict=False).write_parquet(path)
    return path.read_bytes()


USER, ASSISTANT = (
    message("user", "how do i cook rice"),
    message("assistant", "With water."),
)
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def test_rows_of_parquet_that_are_no_conversation_are_set_aside_with_their_reason(
    userlm, tmp_path
):
    logs = tmp_path / "logs"
    logs.mkdir()
    parquet(logs / "a_columns.parquet", {"id": ["x"], "words": ["how do i cook rice"]})
    parquet(logs / "b_text.parquet", {"id": ["x"], "messages": ["user: hi"]})
    parquet(logs / "c_numbers.parquet", {"id": ["x"], "messages": [[1, 2]]})
    parquet(logs / "d_id.parquet", {"id": [[1]], "messages": [[USER, ASSISTANT]]})
    turns = [
        None,
        [],
        [None],
        [USER, None],
        [message(None, "x")],
        [message("user", None), ASSISTANT],
        [USER, ASSISTANT],
    ]
    parquet(
        logs / "e_nulls.parquet",
        {"id": list("tuvwxyz"), "messages": turns},
        {"id": pl.String, "messages": MESSAGES},
    )
    talks = [[USER, None], [USER, ASSISTANT], [USER, ASSISTANT], None]
    wild = {
        "conversation_hash": list("abcd"),
        "conversation": talks,
        "toxic": [0, 1, None, None],
        "country": [None] * 4,
    }
    parquet(
        logs / "f_wild.parquet",
        wild,
        dict(zip(wild, (pl.String, MESSAGES, pl.Int8, pl.Null), strict=True)),
    )
    odd = {
        "x": [b"\xff\x00"],
        "t": [timedelta(days=1)],
        "n": [float("nan")],
        "d": [datetime(2024, 1, 2)],
    }
    parquet(logs / "g_odd.parquet", odd)
    userlm("import", "logs", "--out", "out")
    dropped = rows_of(tmp_path / "out/dropped.jsonl")
    assert [
        (Path(row["file"]).stem, row["line"], row["reason"]) for row in dropped
    ] == [
        ("a_columns", 1, "unknown layout"),
        ("b_text", 1, "wrong type"),
        ("c_numbers", 1, "wrong type"),
        ("d_id", 1, "wrong type"),
        ("e_nulls", 1, "no messages"),
        ("e_nulls", 2, "no messages"),
        ("e_nulls", 3, "wrong type"),
        ("e_nulls", 4, "wrong type"),
        ("e_nulls", 5, "unknown role"),
        ("e_nulls", 6, "empty turn"),
        ("f_wild", 1, "wrong type"),
        ("f_wild", 2, "wrong type"),
        ("f_wild", 4, "no messages"),
        ("g_odd", 1, "unknown layout"),
    ]
    errors = [row["error"] for row in dropped]
    assert (
        "'messages' must be a list, not str" in errors[1]
        and "messages[0] must be an object, not int" in errors[2]
    )
    assert (
        "'id' must be a text, not list" in errors[3]
        and "messages[1] must be an object, not NoneType" in errors[7]
    )
    assert "'toxic' must be true or false, not int" in errors[11]
    assert dropped[0]["row"] == {"id": "x", "words": "how do i cook rice"}
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert [c.id for c in read_conversations(tmp_path / "out/conversations.jsonl")] == [
        "z",
        "c",
    ]
    assert (counts["in"], counts["out"]) == (16, 2) and counts[
        "dropped: wrong type"
    ] == 7


def hurt(name: str, folder: Path) -> Path:
    """A parquet file with something wrong with all of it."""
    path = folder / f"{name}.parquet"
    whole = parquet(
        path,
        {"id": [f"r{i}" for i in range(500)], "messages": [[USER, ASSISTANT]] * 500},
    )
    if name == "rowless":
        parquet(path, {"id": [], "turns": []}, {"id": pl.String, "turns": MESSAGES})
    else:
        held = {
            "empty": b"",
            "other": b'{"id": "a"}\n' * 50,
            "half": whole[: len(whole) // 2],
            "short": whole[:-1],
            "behead": whole[20:],
            "pages": whole[:200] + b"\xff" * 100 + whole[300:],
        }
        path.write_bytes(held[name])
    return path


HURT = {
    "empty": "empty.parquet is empty; give a file with one conversation per line",
    "other": "other.parquet is not a readable parquet file: ",
    "half": "half.parquet is not a readable parquet file: ",
    "short": "short.parquet is not a readable parquet file: ",
    "behead": "behead.parquet is not a readable parquet file: ",
    "pages": "pages.parquet is not a readable parquet file: ",
    "rowless": "rowless.parquet has no ",
}


@pytest.mark.parametrize("name", HURT)
@pytest.mark.parametrize("verb", ["import", "clean", "intents"])
def test_a_parquet_file_that_cannot_be_read_is_named_in_one_sentence(
    verb, name, userlm, tmp_path
):
    path = hurt(name, tmp_path)
    shown = userlm(verb, path.name, "--out", "out", code=2)
    assert HURT[name] in shown and shown.count("userlm:") == 1
    assert not (tmp_path / "out/results.json").exists()


def test_a_row_of_parquet_that_is_too_long_is_set_aside_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    """By hand: a text is 8 bytes and its letters, any other value 8, a null 4, and a list or an
    object 8 and what it holds."""
    path = tmp_path / "a.parquet"
    turns = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    turn = {"role": "user", "content": "hi"}  # 8 + 8 + 4 + 8 + 2 = 30
    columns = {
        "id": ["a", "bb", None, "d"],  # 9, 10, 4, 9
        "messages": [[turn], [turn] * 3, [None], None],  # 38, 98, 8 + 4 + 4 + 4, 4
        "score": [[1.0, None], [2.0, 3.0], [0.0, 1.0], None],  # 20, 24, 24, 4 + 8
        "raw": [b"x", b"", None, b"xyz"],  # 9, 8, 4, 11
        "kind": ["go", "stay", "go", None],  # 10, 12, 10, 4
    }
    kinds = (
        pl.String,
        turns,
        pl.Array(pl.Float64, 2),
        pl.Binary,
        pl.Enum(["go", "stay"]),
    )
    parquet(path, columns, dict(zip(columns, kinds, strict=True)))
    sizes = [86, 152, 62]
    for number, size in enumerate(sizes):
        for longest, is_kept in ((size, True), (size - 1, False)):
            line = list(rows_module.read_rows(path, longest=longest))[number]
            assert bool(line.row) == is_kept
            if not is_kept:
                assert line.reason == "too long" and f"is {size} bytes" in line.error


def test_parquet_is_unpacked_in_parts_of_a_bounded_size(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    texts = [f"{i}" + "ab" * 50_000 for i in range(6)]
    frame = pl.DataFrame({"id": list("abcdef"), "text": texts})
    monkeypatch.setattr(rows_module, "_PART", 250_000)  # two texts
    wanted = {6: [(0, 2), (2, 2), (4, 2)], 1: [(0, 2), (2, 2), (4, 2)], 5: None}
    for size, parts in wanted.items():
        frame.write_parquet(path, row_group_size=size)
        groups = rows_module._row_groups(path)
        assert sum(rows for rows, _ in groups) == 6 and len(groups) == -(-6 // size)
        assert 600_000 < sum(size for _, size in groups) < 602_000
        assert parts is None or list(rows_module._parts(path)) == parts
        rows = [line.row["text"] for line in rows_module.read_rows(path)]
        assert rows == texts


def test_equal_values_that_take_no_bytes_in_parquet_count_as_what_they_take_unpacked(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"id": [""] * 10_000, "list": [[None] * 3] * 10_000})
    frame.write_parquet(path, row_group_size=10_000)
    assert path.stat().st_size < 10_000
    ((rows, size),) = rows_module._row_groups(path)
    assert rows == 10_000 and size > 16 * 4 * rows
    monkeypatch.setattr(rows_module, "_PART", size // 10)
    assert len(list(rows_module._parts(path))) >= 10
    assert sum(1 for _ in rows_module.read_rows(path)) == 10_000


def test_parquet_that_would_fill_the_memory_or_has_no_end_is_refused(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.parquet"
    parquet(path, {"id": ["a"], "messages": [[USER, ASSISTANT]]})
    whole = path.read_bytes()
    for end in (
        b"",
        b"\x19",
        b"\x18\x0fa",
        b"\x1c" * 5000,
        b"\x49\x1c\x36\x01\x16\x02\x00",
    ):
        path.write_bytes(b"PAR1" + end + len(end).to_bytes(4, "little") + b"PAR1")
        with pytest.raises(InputError, match="its end is damaged"):
            rows_module._row_groups(path)
    path.write_bytes(whole)
    monkeypatch.setattr(rows_module, "_LARGEST_GROUP", 100)
    with pytest.raises(InputError, match="smaller ones"):
        list(rows_module.read_rows(path))


def test_a_parquet_file_with_fewer_rows_than_it_says_is_damaged(
    userlm, tmp_path, monkeypatch
):
    parquet(tmp_path / "a.parquet", {"id": ["a"], "messages": [[USER, ASSISTANT]]})
    monkeypatch.setattr(rows_module, "_count_parquet", lambda path: 300)
    shown = userlm("import", "a.parquet", "--out", "out", code=2)
    damage = "a.parquet is damaged: it has 1 rows, but says that it has 300"
    assert damage in " ".join(shown.split())
    assert not (tmp_path / "out/results.json").exists()


TURN = {"role": "user", "text": "how do i cook rice", "meta": None}
OURS: dict[str, dict[str, Any]] = {
    "no turns": {"turns": None},
    "a number for meta": {"meta": "7"},
    "a number for the meta of a turn": {"turns": [{**TURN, "meta": "7"}]},
    "no role": {"turns": [{**TURN, "role": None}]},
    "no text": {"turns": [{**TURN, "text": None}]},
    "a null turn": {"turns": [None]},
    "meta that is no JSON": {"meta": "{oops"},
    "meta of a turn that is no JSON": {"turns": [{**TURN, "meta": "oops"}]},
    "meta that is nested too deep": {"meta": "[" * 100_000},
}


@pytest.mark.parametrize("flaw", OURS)
def test_a_flaw_in_parquet_of_our_own_is_set_aside_by_import_and_named_by_the_others(
    flaw, userlm, tmp_path
):
    good = {
        "id": "a",
        "turns": [TURN],
        "intent": None,
        "user": None,
        "stop": None,
        "ended": False,
        "meta": "{}",
        "origin": None,
    }
    rows = [good, {**good, "id": "b", **OURS[flaw]}, {**good, "id": "c"}]
    columns = {name: [row[name] for row in rows] for name in good}
    parquet(tmp_path / "c.parquet", columns, rows_module._parquet_columns())
    for verb in ("clean", "intents"):
        shown = userlm(verb, "c.parquet", "--out", verb, code=2)
        assert "userlm: c.parquet, line 2: " in shown
        assert not (tmp_path / verb / "results.json").exists()
    userlm("import", "c.parquet", "--out", "in")
    assert [c.id for c in read_conversations(tmp_path / "in/conversations.jsonl")] == [
        "a",
        "c",
    ]
    assert [row["line"] for row in rows_of(tmp_path / "in/dropped.jsonl")] == [2]


def test_parquet_with_brackets_in_its_name_is_read(userlm, tmp_path):
    parquet(tmp_path / "day[1].parquet", {"id": ["a"], "messages": [[USER, ASSISTANT]]})
    userlm("import", "day[1].parquet", "--out", "out")
    assert [c.id for c in read_conversations(tmp_path / "out/conversations.jsonl")] == [
        "a"
    ]


def test_bytes_over_which_polars_panics_are_an_unreadable_file(
    userlm, tmp_path, monkeypatch
):
    def panic(*_: object, **__: object) -> None:
        raise pl.exceptions.PanicException(
            "called `Option::unwrap()` on a `None` value"
        )

    parquet(tmp_path / "a.parquet", {"id": ["a"], "messages": [[USER, ASSISTANT]]})
    monkeypatch.setattr(pl, "scan_parquet", panic)
    shown = userlm("import", "a.parquet", "--out", "out", code=2)
    assert (
        "a.parquet is not a readable parquet file: called `Option::unwrap()`" in shown
    )


# --- files that grow ------------------------------------------------------------------------------


def growing(
    read: Callable[..., Iterator[Any]], path: Path, more: bytes
) -> Callable[..., Iterator[Any]]:
    """The same reader; when the first time something was read, there is more in the file."""
    pending = [more]

    def grow(*arguments: Any, **options: Any) -> Iterator[Any]:
        for item in read(*arguments, **options):
            if pending:
                with path.open("ab") as file:
                    file.write(pending.pop())
            yield item

    return grow


@pytest.mark.parametrize("name", ["logs.jsonl", "logs.jsonl.gz"])
def test_of_a_log_that_grows_the_rows_that_it_held_are_imported_and_it_is_said(
    name, userlm, tmp_path, monkeypatch
):
    pack = gzip.compress if name.endswith("gz") else bytes
    path = tmp_path / name
    first, later = (
        jsonl(asked(f"say {i}", id=f"r{i}") for i in part)
        for part in (range(300), range(300, 400))
    )
    path.write_bytes(pack(first))
    monkeypatch.setattr(layouts, "find", growing(layouts.find, path, pack(later)))
    shown = userlm("import", name, "--out", "out")
    assert (
        "1 grew while they were read: the new lines are missing; import again into another --out"
        in shown
    )
    results = read_json(tmp_path / "out/results.json")
    assert results["counts"] == {
        "in": 300,
        "note: files that grew while they were read": 1,
        "out": 300,
    }
    ids = [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")]
    assert ids == [f"r{i}" for i in range(300)]
    assert f"{name} changed now); choose another --out" in userlm(
        "import", name, "--out", "out", code=2
    )
    shown = userlm("import", name, "--out", "again")  # as it was told
    assert "grew" not in shown
    assert len(rows_of(tmp_path / "again/conversations.jsonl")) == 400


def test_of_logs_that_grow_before_their_turn_the_rows_that_they_held_are_imported(
    userlm, tmp_path, monkeypatch
):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([asked(f"say {name}", id=name)]))
    later = jsonl([asked("say more", id="c")])
    # When a was read.
    monkeypatch.setattr(
        layouts, "find", growing(layouts.find, tmp_path / "b.jsonl", later)
    )
    userlm("import", "a.jsonl", "b.jsonl", "--out", "out")
    assert [row["id"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == [
        "a",
        "b",
    ]
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert counts == {
        "in": 2,
        "note: files that grew while they were read": 1,
        "out": 2,
    }


def test_a_line_that_was_half_written_when_the_import_began_is_no_bad_line(
    userlm, tmp_path, monkeypatch
):
    path = tmp_path / "logs.jsonl"
    whole = jsonl(asked(f"say {i}", id=f"r{i}") for i in range(4))
    path.write_bytes(whole[:-30])
    monkeypatch.setattr(layouts, "find", growing(layouts.find, path, whole[-30:]))
    userlm("import", "logs.jsonl", "--out", "out")
    counts = read_json(tmp_path / "out/results.json")["counts"]
    assert counts == {
        "in": 3,
        "note: files that grew while they were read": 1,
        "out": 3,
    }


@pytest.mark.parametrize(
    ("verb", "module"), [("clean", "clean"), ("intents", "intents")]
)
def test_of_conversations_that_grow_those_that_were_there_are_taken(
    verb, module, userlm, tmp_path, monkeypatch
):
    logs = [log(f"c{i}", f"how do i cook rice for {i} people") for i in range(300)]
    write_conversations(tmp_path / "logs.jsonl", logs)
    userlm(verb, "logs.jsonl", "--out", "still")
    write_conversations(
        tmp_path / "more.jsonl", [log(f"d{i}", f"and {i} more") for i in range(9)]
    )
    more = (tmp_path / "more.jsonl").read_bytes()
    reader = growing(read_conversations, tmp_path / "logs.jsonl", more)
    monkeypatch.setattr(
        sys.modules[f"userlm.commands.{module}"], "read_conversations", reader
    )
    userlm(verb, "logs.jsonl", "--out", "grown")
    still, grown = contents(tmp_path / "still"), contents(tmp_path / "grown")
    assert grown == still and (tmp_path / "logs.jsonl").read_bytes().endswith(more)


# --- machines that fail ---------------------------------------------------------------------------

# A process that runs verbs in children of its own: what takes a second to load is loaded once. In a
# child every step on the disk is counted. At the step `kill` it is killed (half of what is being
# written is on the disk then); after `room` bytes the disk is full.
DRIVER = """
import contextlib, errno, gc, io, json, os, signal, sys
import numpy.ma, rensa
from userlm import cli
from userlm import runs as runs_module
from userlm.data import language, pii
from userlm.show import page

language._identifier()  # half a second
sys.modules["userlm.commands.import_"].COMMIT_EVERY = 40
runs_module.environment = lambda: {"versions": {}}
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.truncate"}
steps = written = 0
plain = io.open

def step():
    global steps
    if steps == task["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)
    steps += 1

def ours(path):
    return str(path).startswith(task["out"] + "/")

class File(io.FileIO):
    def write(self, block):
        global written
        block = bytes(block)
        if steps == task["kill"]:
            super().write(block[: len(block) // 2])
        step()
        room = len(block) if task["room"] is None else task["room"] - written
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = super().write(block[:room])
        written += done
        return done

def opened(path, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
    if not ours(path) or not set(mode) & set("wa+"):
        return plain(path, mode, buffering, encoding, errors, newline, **more)
    raw = File(path, mode.replace("b", ""))
    if not buffering:
        return raw
    file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

def hook(event, arguments):
    if event in STEPS and ours(arguments[0]):
        step()

sys.argv = ["userlm", "import", ""]  # an error, but all is loaded
with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
    cli.main()
gc.freeze()  # a collection in a child would copy all of it
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(task["folder"])
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = ["userlm", *task["arguments"], "--out", task["out"]]
        io.open = opened
        sys.addaudithook(hook)
        try:
            cli.main()
        except SystemExit as over:
            code = over.code or 0
        with plain("counts.json", "w") as file:
            json.dump([steps, written], file)
        gc.collect()  # a file that nobody closed complains here
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # to take apart all that was loaded takes long
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: its exit code (-9: killed), what it said, its steps on the disk, bytes
    written."""

    code: int
    said: str
    steps: int = 0
    written: int = 0


Machine = Callable[..., Outcome]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    command, pipe = [sys.executable, "-c", DRIVER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as driver:
        assert driver.stdin and driver.stdout
        to, back = driver.stdin, driver.stdout

        def run(
            folder: Path,
            arguments: list[str],
            out: str,
            kill: int | None = None,
            room: int | None = None,
        ) -> Outcome:
            task = {
                "folder": str(folder),
                "arguments": arguments,
                "out": out,
                "kill": kill,
                "room": room,
            }
            print(json.dumps(task), file=to, flush=True)
            code = int(back.readline())
            said = (folder / "said.txt").read_text()
            if code == -signal.SIGKILL:
                return Outcome(code, said)
            return Outcome(
                code, said, *json.loads((folder / "counts.json").read_text())
            )

        yield run
        to.close()


VERBS = {
    "import": ["import", "logs", "more.json"],
    "clean": [
        "clean",
        "c.jsonl",
        "--scrub",
        "--duplicates",
        "exact",
        "--template-limit",
        "20",
    ],
    "intents": ["intents", "split", "--condition", "country"],
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something to do for each of the verbs, with all that they drop, join, mark and leave out."""
    folder = tmp_path_factory.mktemp("ground")
    rows = [
        asked(
            f"how do i cook rice number {i} please",
            id=f"r{i % 270}",
            user_id=f"p{i % 50}",
        )
        for i in range(300)
    ]
    # The next calls, with the history before them.
    next_exchange = [message("user", "and then?"), message("assistant", "Eat.")]
    for i in range(0, 30, 3):
        history = [*rows[i]["messages"], *next_exchange]
        rows.append({**rows[i], "id": f"next-{i}", "messages": history})
    rows[7]["messages"] = [message("narrator", "once")]
    trees = [
        {"message_tree_id": f"t{i}", "text": f"how do i bake bread {i}", "lang": "en"}
        for i in range(60)
    ]
    prompts = [
        {**t, "message_id": f"p{i}", "parent_id": None, "role": "prompter"}
        for i, t in enumerate(trees)
    ]
    replies = [
        {**t, "message_id": f"a{i}", "parent_id": f"p{i}", "role": "assistant"}
        for i, t in enumerate(trees)
    ]
    (folder / "logs").mkdir()
    (folder / "logs/a.jsonl").write_bytes(
        jsonl([*prompts, *replies[:30], *rows[:140]]) + b"{oops\n"
    )
    (folder / "logs/b.jsonl.gz").write_bytes(
        gzip.compress(jsonl([*rows[140:], *replies[30:]]))
    )
    (folder / "more.json").write_text(
        json.dumps([asked(f"bake {i} breads") for i in range(50)])
    )
    draw = random.Random(0)

    def talk(i: int) -> Conversation:
        text = " ".join(draw.choices(WORDS, k=12)) + (
            " mail me at ann@example.org" if i % 5 == 0 else ""
        )
        text = ("draw a picture of a cat that is " if i % 4 == 0 else "") + (
            "the same" if i % 7 == 0 else text
        )
        return log(f"c{i}", text, user=f"p{i % 90}", country="Chile", toxic=i % 11 == 0)

    talks = [talk(i) for i in range(400)]
    write_conversations(folder / "c.jsonl", talks)
    (folder / "split").mkdir()
    for name, part in (("train", talks[:80]), ("valid", []), ("test", talks[80:100])):
        write_conversations(folder / f"split/{name}.jsonl", part)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_any_step_and_run_again_it_ends_with_the_same_files(
    verb, machine, ground
):
    whole = machine(ground, VERBS[verb], f"{verb}-whole")
    assert whole.code == 0, whole.said
    wanted = contents(ground / f"{verb}-whole")
    draw = random.Random(verb)
    assert whole.steps > 15
    for n, moment in enumerate(draw.sample(range(whole.steps), 5)):
        out = f"{verb}-killed-{n}"
        assert machine(ground, VERBS[verb], out, kill=moment).code == -signal.SIGKILL
        if (ground / out / "results.json").exists():  # which says that it is complete
            assert contents(ground / out) == wanted
        # And perhaps once more.
        again = machine(ground, VERBS[verb], out, kill=draw.randrange(whole.steps))
        assert again.code in (0, -signal.SIGKILL), again.said
        last = machine(ground, VERBS[verb], out)
        assert last.code == 0, last.said
        assert contents(ground / out) == wanted, moment


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_said_with_the_file_and_with_space_the_same_command_ends_with_the_same_files(
    verb, machine, ground
):
    whole = machine(ground, VERBS[verb], f"{verb}-wide")
    assert whole.code == 0, whole.said
    some = random.Random(verb).sample(range(1, whole.written), 5)
    for n, room in enumerate([0, *sorted(some), whole.written - 1]):
        out = f"{verb}-full-{n}"
        full = machine(ground, VERBS[verb], out, room=room)
        assert full.code == 1, full.said
        [line] = [
            line for line in full.said.splitlines() if line.startswith("userlm: ")
        ]
        assert line.startswith(f"userlm: {out}/") and line.endswith(
            ": No space left on device; free some space, then run the same command again"
        )
        assert "Traceback" not in full.said and "Exception ignored" not in full.said
        assert not (ground / out / "results.json").exists()
        assert not list((ground / out).glob(".*.partial"))
        again = machine(ground, VERBS[verb], out)
        assert again.code == 0, again.said
        assert contents(ground / out) == contents(ground / f"{verb}-wide"), room


@pytest.mark.slow
def test_the_n_grams_do_not_stay_on_a_full_disk(machine, ground):
    written = machine(ground, VERBS["clean"], "clean-roomy").written
    for n, room in enumerate(range(0, written, written // 8)):
        out = f"clean-narrow-{n}"
        assert machine(ground, VERBS["clean"], out, room=room).code == 1
        assert not (ground / out / ".ngrams").exists()


@pytest.mark.slow
def test_answers_that_were_paid_for_are_kept_when_the_disk_is_full(machine, ground):
    (ground / "lines.txt").write_text(
        "You are a user chatting with an assistant language model to cook.\n"
    )
    command = ["intents", "split", "--writer", "script:lines.txt", "--workers", "1"]
    whole = machine(ground, command, "paid-whole")
    asked = rows_of(ground / "paid-whole/asked.jsonl")
    assert len(asked) == 100
    for n, room in enumerate(
        (whole.written // 4, whole.written // 2, whole.written - 1)
    ):
        out = f"paid-{n}"
        full = machine(ground, command, out, room=room)
        assert (
            full.code == 1 and "No space left on device; free some space" in full.said
        )
        assert "Traceback" not in full.said
        kept = [
            json.loads(line)
            for line in (ground / out / "asked.jsonl").read_bytes().split(b"\n")[:-1]
        ]
        assert machine(ground, command, out).code == 0
        for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
            assert (ground / out / name).read_bytes() == (
                ground / "paid-whole" / name
            ).read_bytes()
        calls = Counter(
            (row["id"], row["try"]) for row in rows_of(ground / out / "asked.jsonl")
        )
        # Nothing that was answered is asked again.
        assert len(calls) == 100 and set(calls.values()) == {1}
        assert 0 < len(kept) <= 100


def test_an_export_that_cannot_be_written_is_said_and_the_same_command_goes_on(
    userlm, tmp_path, monkeypatch
):
    resource = pytest.importorskip("resource")
    write_conversations(
        tmp_path / "logs.jsonl",
        [log(f"c{i}", f"say {i}", user=f"p{i}") for i in range(50)],
    )
    export, limits = exporting.export, resource.getrlimit(resource.RLIMIT_FSIZE)

    def cramped(*arguments: Any) -> dict[str, int]:
        """The kernel refuses whatever makes a file longer than 100 bytes; unlike a full disk, for
        this process."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            return export(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    userlm("clean", "logs.jsonl", "--hub", "--out", "whole")
    monkeypatch.setattr(exporting, "export", cramped)
    shown = userlm("clean", "logs.jsonl", "--hub", "--out", "out", code=1)
    assert "userlm: out/hub/data/train-00000.parquet: File too large" in shown
    assert not (tmp_path / "out/results.json").exists()
    monkeypatch.setattr(exporting, "export", export)
    userlm("clean", "logs.jsonl", "--hub", "--out", "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_row_that_is_dropped_owns_no_turn_of_its_tree(tmp_path):
    def path(id, *said):
        roles = ("user", "assistant") * len(said)
        turns = [{"role": r, "content": t} for r, t in zip(roles, said, strict=False)]
        return {"id": id, "tree": "t", "messages": turns}

    rows = [path("a", "hi", "yes"), path("a", "why", "no"), path("b", "why", "so")]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    commands.import_(commands.Import([str(log)], tmp_path / "out"))
    found = read_conversations(tmp_path / "out" / "conversations.jsonl")
    assert [(one.id, one.origin) for one in found] == [("a", None), ("b", None)]


def test_calls_of_one_id_with_the_last_messages_are_one_conversation(
    userlm: Command, tmp_path: Path
) -> None:
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": f"{n}"} for n in range(20)
    ]
    calls = [turns[max(0, n - 6) : n] for n in range(2, 21, 2)]
    # Two more that go on from the middle, of which no other call has the end.
    again = [[*turns[4:10], turns[0], turns[n]] for n in (3, 5)]
    lines = [json.dumps({"id": "a", "messages": each}) for each in calls + again]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    userlm("import", "log.jsonl", "--out", "out")
    found = list(read_conversations(tmp_path / "out/conversations.jsonl"))
    assert [(each.id, len(each.turns), each.ended) for each in found] == [
        ("a", 20, True),
    ]
    assert len((tmp_path / "out/dropped.jsonl").read_text().splitlines()) == 2


def test_calls_of_one_id_that_are_not_joined_have_own_ids_and_no_end(
    userlm: Command, tmp_path: Path
) -> None:
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": f"{n}"} for n in range(22)
    ]
    lines = [
        json.dumps({"id": "a", "messages": turns[slice(*at)]})
        for at in ((0, 20), (16, 22))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    userlm("import", "log.jsonl", "--out", "out")
    found = list(read_conversations(tmp_path / "out/conversations.jsonl"))
    assert [(each.id, each.ended, each.meta["tree"]) for each in found] == [
        ("a", False, "a"),
        ("a/2", False, "a"),
    ]
    userlm("clean", "out", "--languages", "all", "--out", "clean")
