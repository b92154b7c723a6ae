"""Files of conversations, and the run folder with what it survives."""

import gzip
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count

import polars as pl
import processes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userlm import json_files
from userlm import rows as rows_module
from userlm.journal import Answers, Journal, Recorded
from userlm.json_files import dumps, read_json, replacing, write_json
from userlm.lines import MOST_VALUES
from userlm.rows import (
    from_record,
    read_conversations,
    read_rows,
    to_record,
    write_conversations,
)
from userlm.runs import Outputs, Run, conversations_file, split_files
from userlm.types import Conversation, InputError, ModelError, Origin, Reply, Turn

ODD = 'tab\t quote " line\u2028 emoji 😀 <|eot_id|> \x00 end'


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.parquet"])
def test_conversations_come_back_as_they_were(name, tmp_path):
    logs = [
        Conversation(
            "a",
            (Turn("user", ODD, {"p_end": 0.5}), Turn("assistant", "b")),
            "x",
            "p",
            "end",
            True,
            {"k": [1]},
        ),
        Conversation("b", (Turn("assistant", "hi"), Turn("user", "c"))),
        Conversation("c"),
    ]
    assert write_conversations(tmp_path / name, logs) == 3
    assert list(read_conversations(tmp_path / name)) == logs


@given(st.lists(st.text(), max_size=4), st.none() | st.text())
def test_any_text_survives_the_record(texts, intent):
    log = Conversation("a", intent=intent or None)
    for text in texts:
        log = log.say(text)
    assert from_record(json.loads(json.dumps(to_record(log)))) == log


def test_the_same_conversations_give_the_same_bytes(tmp_path):
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_conversations(tmp_path / name, [Conversation("a").say(ODD)])
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (
        tmp_path / "two.jsonl.gz"
    ).read_bytes()


GOOD = '{"id": "a", "turns": [{"role": "user", "text": "hi"}]}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 2: is not JSON (column 1"),
        ("[1]", "line 2: is an array, not a JSON object"),
        ("null", "line 2: is null, not a JSON object"),
        ('{"turns": []}', "line 2: field 'id' is missing"),
        ('{"id": "b"}', "line 2: field 'turns' is missing"),
        (
            '{"id": "b", "turns": [{"role": "user", "text": "x", "meta": 1}]}',
            "field 'turns[0].meta' must be a dict",
        ),
        ("1" * 5000, "line 2: is not JSON"),
        ('{"id": 5, "turns": []}', "line 2: field 'id' must be a str, not int"),
        ('{"id": "b", "turns": ["hi"]}', "line 2: turns[0] is not an object"),
        (
            '{"id": "b", "turns": [{"role": "user"}]}',
            "line 2: field 'turns[0].text' is missing",
        ),
        (
            '{"id": "b", "turns": [{"role": "bot", "text": "x"}]}',
            "line 2: turns[0].role is 'bot'",
        ),
        (
            '{"id": "b", "messages": []}',
            "'messages'; if this is a log, run `userlm import`",
        ),
        (GOOD.strip(), "line 2: id 'a' was already used on line 1"),
    ],
)
def test_a_bad_line_is_named_with_its_field(line, said, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(InputError) as caught:
        list(read_conversations(path))
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "plain.jsonl.gz").write_text("not gzip")
    whole = gzip.compress((GOOD * 1000).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hurt.jsonl.gz").write_bytes(whole[:60] + b"\xff" * 30 + whole[90:])
    (tmp_path / "table.xls").write_text("a,b")
    (tmp_path / "bad.parquet").write_text("no parquet here")
    said = {
        "missing.jsonl": "does not exist",
        "empty.jsonl": "is empty",
        "blank.jsonl": "has no lines",
        "plain.jsonl.gz": "is not a gzip file",
        "cut.jsonl.gz": "is cut short or damaged after line",
        "hurt.jsonl.gz": "is cut short or damaged",
        "table.xls": "its kind is unknown",
        "bad.parquet": "is not a readable parquet file",
        ".": "is a folder",
    }
    for name, words in said.items():
        with pytest.raises(InputError) as caught:
            list(read_rows(tmp_path / name))
        assert words in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_line_that_is_not_utf8_is_kept_in_a_readable_form(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(GOOD.encode() + b'{"id": "\xff"}\n')
    good, bad = read_rows(tmp_path / "c.jsonl")
    assert good.row["id"] == "a"
    assert (bad.number, bad.reason, bad.raw) == (2, "not UTF-8", '{"id": "\\xff"}')


ORIGIN = Origin("log", 2, "and then?", person_ended=False, repeat=3, task="t")


def test_where_a_conversation_comes_from_is_written_and_read(tmp_path):
    talks = [
        Conversation("a", origin=ORIGIN).say("hi").say("yes?").say("rice"),
        Conversation("b", origin=Origin()),
        Conversation("c"),
    ]
    for kind in ("jsonl", "parquet"):
        write_conversations(tmp_path / f"c.{kind}", talks)
        assert list(read_conversations(tmp_path / f"c.{kind}")) == talks
    assert "origin" not in to_record(talks[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"origin": {"log": "a"}}, "unknown field 'origin.log'"),
        ({"origin": {"repeat": "2"}}, "field 'origin.repeat' must be a int, not str"),
        ({"origin": {"repeat": -1}}, "origin.repeat is -1; it must be a small number"),
        ({"origin": {"repeat": 2**63}}, "it must be a small number"),
        ({"origin": {"first_own_turn": -1}}, "first_own_turn is -1; .* from 0 to 0"),
        ({"origin": {"first_own_turn": 1}}, "first_own_turn is 1; .* from 0 to 0"),
        (
            {"meta": {"own_from": 1}},
            "an older version of userlm wrote this conversation",
        ),
        (
            {"meta": {"conversation": "a", "repeat": 0}},
            "an older version of userlm wrote this",
        ),
    ],
)
def test_an_origin_that_cannot_be_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        from_record({"id": "a", "turns": [], **change})


def test_parquet_of_version_0_1_which_had_no_origin_is_read(tmp_path):
    talk = Conversation(
        "a", (Turn("user", "hi", {"n": 1}),), "cook", "ann", meta={"n": 2}
    )
    write_conversations(tmp_path / "now.parquet", [talk])
    pl.read_parquet(tmp_path / "now.parquet").drop("origin").write_parquet(
        tmp_path / "then.parquet"
    )
    assert list(read_conversations(tmp_path / "then.parquet")) == [talk]


def test_a_json_file_that_is_rewritten_while_others_are_read_is_read_whole(tmp_path):
    (tmp_path / "a.json").write_text('[{"id": 1}]')
    rows = read_rows(tmp_path / "a.json", upto=11)
    (tmp_path / "a.json").write_text('[{"id": 1}, {"id": 2}]')
    assert [line.row["id"] for line in rows] == [1, 2]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    [line] = read_rows(tmp_path / "c.jsonl")
    assert line.row["id"] == "a"


def test_what_no_file_can_hold_is_replaced_in_a_json_file(tmp_path):
    write_json(tmp_path / "results.json", {"languages": {"half \ud800": 1}})
    assert read_json(tmp_path / "results.json") == {"languages": {"half \ufffd": 1}}


def test_what_no_file_can_hold_is_replaced_when_it_is_said(tmp_path):
    log = Conversation("a\ud800").say("hi \ud83d there").say("joined \ud83d\ude00")
    assert log.id == "a\ufffd"
    assert Conversation(meta={"condition": "half \ud800"}).system == "half \ufffd"
    assert [turn.text for turn in log.turns] == ["hi \ufffd there", "joined 😀"]
    for name in ("c.jsonl", "c.parquet"):
        write_conversations(tmp_path / name, [log])
        assert list(read_conversations(tmp_path / name)) == [log]


def test_a_user_or_an_intent_without_a_letter_is_none():
    record = {
        "id": "a",
        "turns": [{"role": "user", "text": "hi"}],
        "user": "",
        "intent": "",
    }
    assert from_record(record) == Conversation("a").say("hi")


def test_a_file_in_utf16_is_told_how_to_become_utf8(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "c.jsonl").write_bytes(("\ufeff" + GOOD).encode(encoding))
        with pytest.raises(
            InputError, match=r"c\.jsonl is UTF-16; .*iconv -f UTF-16 -t UTF-8"
        ):
            list(read_rows(tmp_path / "c.jsonl"))


def nested(levels):
    """A row that is so many levels deep, as JSON."""
    lists = levels - 1
    return f'{{"id": "{levels}", "deep": {"[" * lists}{"]" * lists}}}'


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.json.gz"])
def test_a_row_that_is_nested_too_deep_is_set_aside_and_those_beside_it_are_read(
    name, tmp_path
):
    depths = (200, 201, 250, 600, 990, 3)
    rows = [nested(levels) for levels in depths]
    text = ("\n".join(rows) if name == "c.jsonl" else f"[{','.join(rows)}]").encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    found = list(read_rows(tmp_path / name))
    assert [line.reason for line in found] == ["", *["nested too deep"] * 4, ""]
    assert [line.row.get("id") for line in found] == ["200", *[None] * 4, "3"]
    assert "more than 200 levels deep" in found[1].error
    # Written again.
    assert [json.loads(dumps(line.row)) for line in found] == [
        line.row for line in found
    ]


def test_a_row_that_is_nested_too_deep_is_set_aside_by_the_slow_reader_too(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(json_files, "orjson", None)
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(nested, (200, 250, 600, 50_000, 3))))
    found = list(read_rows(path))
    assert [line.reason for line in found] == ["", *["nested too deep"] * 3, ""]


OURS = {
    "id": "b",
    "turns": [{"role": "user", "text": "hi", "meta": None}],
    "meta": "{}",
    "ended": False,
}


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"meta": "{oops"}, "has a field 'meta' or 'origin' that is not JSON"),
        ({"meta": "[" * 100_000}, "has a field 'meta' or 'origin' that is not JSON"),
        (
            {"turns": [{"role": "user", "text": "hi", "meta": "oops"}]},
            "has a field 'meta' or 'origin' that is not JSON",
        ),
        ({"turns": [None]}, "turns[0] is not an object"),
    ],
)
def test_a_flaw_in_parquet_of_our_own_is_named(flaw, said, tmp_path):
    rows = [{**OURS, "id": "a"}, {**OURS, **flaw}, {**OURS, "id": "c"}]
    pl.DataFrame(
        rows, schema=rows_module._parquet_columns(), strict=False
    ).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError) as caught:
        list(read_conversations(tmp_path / "c.parquet"))
    assert str(caught.value) == f"{tmp_path / 'c.parquet'}, line 2: {said}"
    assert [line.row.get("id") for line in read_rows(tmp_path / "c.parquet")][::2] == [
        "a",
        "c",
    ]


def test_a_parquet_file_whose_rows_share_a_text_does_not_fill_the_disk(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(rows_module, "_MOST", 1 << 20)
    shared = pl.Series(["x" * 10_000] * 1_000, dtype=pl.Categorical)
    path = tmp_path / "c.parquet"
    pl.DataFrame({"id": range(1_000), "shared": shared}).write_parquet(path)
    assert path.stat().st_size < 9_000
    with pytest.raises(InputError, match="unpacks to more than 1,000 times its size"):
        list(read_rows(path))
    pl.DataFrame({"id": range(50), "shared": shared[:50]}).write_parquet(path)
    assert len(list(read_rows(path))) == 50


def test_a_parquet_file_of_another_shape_is_read_as_rows(tmp_path):
    import polars as pl

    pl.DataFrame(
        {"id": ["a"], "turns": [[{"role": "user", "text": "x"}]], "ended": [False]}
    ).write_parquet(tmp_path / "c.parquet")
    [line] = read_rows(tmp_path / "c.parquet")
    assert line.row["turns"] == [{"role": "user", "text": "x"}]


@pytest.mark.parametrize(
    "user",
    ["prompted:http://u:secret@h/v1#m", "http://u:secret@h", "HTTP:u:secret@h#m"],
)
def test_a_password_in_an_option_is_not_written_down(user, tmp_path):
    with pytest.raises(InputError, match="a URL with a password is refused") as caught:
        Run.open(tmp_path / "run", "simulate", {"user": user})
    assert "secret" not in str(caught.value) and not (tmp_path / "run").exists()
    Run.open(
        tmp_path / "run",
        "simulate",
        {"user": "http://h/v1#a@b", "tasks": "mail@home.jsonl"},
    )


def test_inputs_in_another_order_are_another_run(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    Run.open(tmp_path / "run", "import", {}, [tmp_path / "a", tmp_path / "b"]).path(
        "x"
    ).touch()
    with pytest.raises(InputError, match="other inputs"):
        Run.open(tmp_path / "run", "import", {}, [tmp_path / "b", tmp_path / "a"])


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    run = Run.open(tmp_path / "run", "import", {})
    code = f"from userlm.runs import Run; Run.open({str(tmp_path / 'run')!r}, 'import', {{}})"
    other = processes.completed(["-c", code])
    assert "another process is working" in other.stderr
    del run
    assert processes.completed(["-c", code]).returncode == 0


def test_who_comes_while_another_process_works_in_a_folder_changes_nothing_there(
    tmp_path,
):
    folder = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from userlm.runs import Run\n"
        f"run = Run.open({str(folder)!r}, 'import', {{'seed': 0}})\n"
        "print('open', flush=True); sys.stdin.readline()"
    )
    working = processes.Process(["-c", code])
    assert working.stdout.readline() == "open\n"
    for begun in (
        False,
        True,
    ):
        # with its options alone the folder may be begun anew, but not by others
        if begun:
            (folder / "conversations.jsonl").touch()
        before = (folder / "run.json").read_bytes()
        with pytest.raises(InputError, match="another process is working in"):
            Run.open(folder, "import", {"seed": 1})
        assert (folder / "run.json").read_bytes() == before
    working.communicate("\n", timeout=300)


def test_a_run_is_taken_up_again_only_as_the_same_run(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(GOOD)
    run = Run.open(tmp_path / "run", "clean", {"seed": 0}, [log])
    run.path("something").touch()
    assert Run.open(tmp_path / "run", "clean", {"seed": 0}, [log]).results is None
    with pytest.raises(
        InputError,
        match=r"other options \(seed=0 there, seed=1 now\); choose another --out",
    ):
        Run.open(tmp_path / "run", "clean", {"seed": 1}, [log])
    log.write_text(GOOD * 2)
    with pytest.raises(InputError, match="other inputs"):
        Run.open(tmp_path / "run", "clean", {"seed": 0}, [log])
    with pytest.raises(InputError, match=r"no\.jsonl does not exist"):
        Run.open(tmp_path / "other", "clean", {}, [tmp_path / "no.jsonl"])


@pytest.mark.parametrize("made", [{}, {"format": 1}, {"format": 3}])
def test_a_run_folder_of_another_version_is_refused_in_one_sentence(made, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    manifest = {"verb": "intents", "options": {}, "inputs": {}} | made
    (folder / "run.json").write_text(json.dumps(manifest))
    (folder / "results.json").write_text("{}")
    (folder / "conversations.jsonl").write_text(GOOD)
    before = contents(folder)
    for attempt in (
        lambda: Run.open(folder, "intents", {}),
        lambda: Run.read(folder),
        lambda: conversations_file(folder),
        lambda: split_files(folder),
    ):
        with pytest.raises(
            InputError, match="was written by another version of userlm"
        ) as caught:
            attempt()
        assert "run its command again with another --out" in str(caught.value)
    assert contents(folder) == before | (
        {".lock": b""} if ".lock" in contents(folder) else {}
    )


def test_a_finished_run_is_read_and_nothing_else_is(tmp_path):
    run = Run.open(tmp_path / "run", "clean", {"seed": 0})
    with pytest.raises(
        InputError, match=r"is not finished; run its command again \(userlm clean\)"
    ):
        Run.read(run.folder)
    run.finish({"counts": {"in": 1}})
    found = Run.read(run.folder)
    assert (found.verb, found.options, found.results) == (
        "clean",
        {"seed": 0},
        run.results,
    )
    with pytest.raises(
        InputError,
        match=r"has no run\.json, so it is not a run; give the run folders in it",
    ):
        Run.read(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        Run.read(tmp_path / "nowhere")


def contents(folder):
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


def test_a_folder_that_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not a run folder"):
        Run.open(tmp_path, "clean", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(
    "name",
    ["turns.jsonl", "run.json", "hub/README.md", "model", ".replaced", ".lock", "gone"],
)
def test_a_run_folder_with_a_link_is_refused_and_what_it_points_to_stays(
    name, anew, tmp_path
):
    folder, mine = tmp_path / "run", tmp_path / "mine"
    Run.open(folder, "simulate", {}).path("hub").mkdir()
    mine.mkdir()
    (mine / "run.json").write_bytes((folder / "run.json").read_bytes())
    before = contents(mine)
    target = mine if name in ("model", ".replaced") else mine / "run.json"
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "nothing" if name == "gone" else target)
    with pytest.raises(InputError, match=f"{name} is a link.*delete it, or choose"):
        Run.open(folder, "simulate", {}, anew=anew)
    assert contents(mine) == before
    assert not (tmp_path / "nothing").exists()


def test_links_of_a_tracker_are_no_reason_to_refuse_a_run(tmp_path):
    folder = tmp_path / "run"
    Run.open(folder, "train", {}).path("wandb/run-1").mkdir(parents=True)
    (folder / "wandb/latest-run").symlink_to("run-1")
    assert Run.open(folder, "train", {}).results is None


@pytest.mark.parametrize("name", ["cells", "cells/a", "cells/a/conversations.jsonl"])
def test_a_link_that_leads_out_of_a_finished_run_is_not_followed(name, tmp_path):
    mine, folder, named = tmp_path / "mine", tmp_path / "run", tmp_path / "latest"
    Run.open(mine, "simulate", {}).finish({})
    (mine / "conversations.jsonl").write_text("{}\n")
    run = Run.open(folder, "evaluate", {})
    run.finish({})
    link = folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(mine / "conversations.jsonl" if link.suffix else mine)
    named.symlink_to(folder)
    for place in (folder, named):
        with pytest.raises(InputError, match=f"{name} is a link that leads out of"):
            Run.read(place)
        with pytest.raises(InputError, match=f"{name} is a link that leads out of"):
            conversations_file(place)


def test_links_that_stay_in_a_finished_run_or_are_of_its_model_are_no_reason_to_refuse_it(
    tmp_path,
):
    folder, named = tmp_path / "run", tmp_path / "latest"
    Run.open(folder, "train", {}).finish({})
    (folder / "log.jsonl").symlink_to("progress.json")
    (folder / "model").symlink_to(tmp_path / "elsewhere")
    (folder / "wandb").mkdir()
    (folder / "wandb/debug.log").symlink_to(tmp_path / "cache/debug.log")
    named.symlink_to(folder)
    assert Run.read(named).verb == "train"


def test_a_file_is_not_written_through_a_link_beside_it(tmp_path):
    mine, path = tmp_path / "mine", tmp_path / "out/report.md"
    mine.write_text("mine")
    path.parent.mkdir()
    (path.parent / f".report.md.{os.getpid()}.partial").symlink_to(mine)
    path.symlink_to(mine)
    with replacing(path) as partial:
        partial.write_text("report")
    assert (mine.read_text(), path.read_text()) == ("mine", "report")
    assert not path.is_symlink()


class Killed(BaseException):
    pass


@contextmanager
def killed_after(changes: int) -> Iterator[None]:
    """Let so many files and folders be moved, deleted or made, and end before the next."""
    left = iter(range(changes))

    def dying(change):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise Killed
            return change(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        yield


OLD = {"said": "old"}
WRITTEN = ("turns.jsonl", "usage.jsonl", "conversations.jsonl")


def simulated(folder, text, anew=True):
    run = Run.open(folder, "simulate", {"said": text}, anew=anew)
    for name in WRITTEN:
        run.path(name).write_text(text)
    return run


def is_replaced(folder):
    return (folder / "results.json").exists() and Run.read(folder).options != OLD


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("attempts", [0, 1])
def test_force_goes_on_after_a_kill_at_any_point(is_complete, attempts, tmp_path):
    for changes in count():
        folder = tmp_path / str(changes)
        old = simulated(folder, "old", anew=False)
        if is_complete:
            old.finish({})
        (folder / "notes").write_text("mine")
        for _ in range(attempts):
            simulated(folder, "attempt")
        was_killed = False
        try:
            with killed_after(changes):
                simulated(folder, "new").finish({"said": "new"})
        except Killed:
            was_killed = True
            if not is_replaced(folder):
                for name in WRITTEN:
                    kept = [folder / name, folder / ".replaced" / name]
                    assert "old" in [path.read_text() for path in kept if path.exists()]
        begun = list(folder.glob(".replaced/*"))
        if begun and not (folder / "results.json").exists():
            with pytest.raises(InputError, match=r"give --force again|other options"):
                Run.open(folder, "simulate", OLD)
        simulated(folder, "new").finish({})
        left = {*WRITTEN, "notes", "run.json", "results.json", ".lock"}
        assert set(contents(folder)) == left
        assert contents(folder)["turns.jsonl"] == b"new"
        assert not (folder / ".replaced").exists()
        if not was_killed:
            break
    assert changes > len(WRITTEN)


def exported(folder, hub, anew=True):
    run = Run.open(folder, "clean", {"hub": hub, "anew": anew}, anew=anew)
    if hub:
        run.path("hub/data").mkdir(parents=True)
        run.path("hub/data/train.parquet").write_text("rows")
        run.path("hub/README.md").write_text("card")
    run.finish({})


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("was_hub", [False, True])
def test_force_moves_what_was_exported_and_nothing_else_in_its_folder(
    was_hub, hub, tmp_path
):
    exported(tmp_path, was_hub, anew=False)
    (tmp_path / "hub/.git").mkdir(parents=True)
    (tmp_path / "hub/notes.md").write_text("mine")
    exported(tmp_path, hub)
    files = {"hub/data", "hub/data/train.parquet", "hub/README.md"} if hub else set()
    mine = {"hub", "hub/.git", "hub/notes.md"}
    assert names(tmp_path) == {"run.json", "results.json", ".lock", *mine, *files}


@pytest.mark.parametrize(
    ("verb", "own", "option"),
    [
        ("clean", "hub/data", "hub"),
        ("clean", "hub/README.md", "hub"),
        ("train", "adapter", "lora"),
        ("train", "rows-valid", "valid"),
    ],
)
def test_force_neither_deletes_nor_overwrites_what_no_option_asked_for(
    verb, own, option, tmp_path
):
    Run.open(tmp_path, verb, {}).finish({})
    (tmp_path / own).mkdir(parents=True)
    Run.open(tmp_path, verb, {"seed": 1}, anew=True).finish({})
    assert (tmp_path / own).is_dir()
    with pytest.raises(InputError, match=f"would overwrite .*{own}, which the run"):
        Run.open(tmp_path, verb, {option: "1"}, anew=True)
    assert Run.read(tmp_path).options == {"seed": 1}


@pytest.mark.parametrize("was_there", [True, False])
def test_the_same_command_with_force_resumes_what_it_began(was_there, tmp_path):
    if was_there:
        simulated(tmp_path / "run", "old", anew=False).finish({})

    def forced(text):
        return Run.open(tmp_path / "run", "simulate", {"said": text}, anew=True)

    turns = simulated(tmp_path / "run", "new").path("turns.jsonl")
    assert forced("new").path("turns.jsonl").read_text() == "new"
    forced("other")  # another run is replaced
    assert not turns.exists()
    simulated(tmp_path / "run", "other").finish({})
    forced("other")  # and so is a complete one
    assert not turns.exists()


@pytest.mark.parametrize("was_there", [True, False])
def test_force_deletes_no_run_with_results_before_another_is_complete(
    was_there, tmp_path
):
    folder = tmp_path / "run"
    if was_there:
        simulated(folder, "old", anew=False).finish({})
    simulated(folder, "new").finish({"failed": 1}, has_failures=True)
    assert Run.open(folder, "simulate", {"said": "new"}, anew=True).results
    if was_there:
        with pytest.raises(InputError, match=r"replaced the run before it"):
            simulated(folder, "other")
        assert (folder / ".replaced/turns.jsonl").read_text() == "old"
        assert (folder / "turns.jsonl").read_text() == "new"
        shutil.rmtree(folder / ".replaced")
    simulated(folder, "other")
    assert (folder / ".replaced/turns.jsonl").read_text() == "new"


def test_a_run_that_got_no_further_than_its_options_can_be_begun_with_others(tmp_path):
    Run.open(tmp_path / "run", "simulate", {"user": "traned:x"})
    assert Run.open(tmp_path / "run", "simulate", {"user": "trained:x"}).manifest[
        "options"
    ] == {"user": "trained:x"}


def test_what_was_not_committed_is_cut_off(tmp_path):
    run = Run.open(tmp_path / "run", "import", {})
    outputs = Outputs(run, "a", "b")
    outputs.write("a", {"n": 1})
    outputs.commit({"line": 1})
    outputs.write("a", {"n": 2})
    outputs.write("b", {"n": 2})
    for file in outputs._files.values():
        file.flush()  # as a crash may leave it
    again = Outputs(run, "a", "b")
    assert again.state == {"line": 1}
    assert (run.path("a").read_text(), run.path("b").read_text()) == ('{"n":1}\n', "")
    again.write("b", {"n": 3})
    again.close()
    assert run.path("b").read_text() == '{"n":3}\n'
    assert not run.path("progress.json").exists()


def test_a_torn_line_of_a_journal_is_cut_off_and_the_whole_ones_kept(tmp_path):
    path = tmp_path / "turns.jsonl"
    path.write_text('{"n":1}\n{"n":2}\n{"n": 3')
    journal = Journal(path)
    assert list(journal.read(dict)) == [{"n": 1}, {"n": 2}]
    journal.add({"n": 0})
    journal.close(order=lambda row: row["n"])
    assert path.read_text() == '{"n":0}\n{"n":1}\n{"n":2}\n'


def test_a_last_line_without_a_newline_is_kept_if_it_is_whole(tmp_path):
    path = tmp_path / "turns.jsonl"
    path.write_text('{"n":1}\n{"n":2}')
    journal = Journal(path)
    assert list(journal.read(dict)) == [{"n": 1}, {"n": 2}]
    journal.add({"n": 3})
    assert path.read_text() == '{"n":1}\n{"n":2}\n{"n":3}\n'


def test_two_processes_that_replace_one_file_write_files_of_their_own(tmp_path):
    path = tmp_path / "rows"
    other = subprocess.Popen(["sleep", "60"])
    theirs = tmp_path / f".rows.{other.pid}.partial"
    theirs.write_text("half")
    with replacing(path) as partial:
        partial.write_text("mine")
    assert (path.read_text(), theirs.read_text()) == ("mine", "half")
    other.kill()
    other.wait()
    (parts := tmp_path / f"{theirs.name}.parts").mkdir()
    (parts / "0.parquet").write_text("half")
    (notes := tmp_path / ".rows.my.partial.notes").write_text("mine")
    with replacing(path) as partial:
        partial.write_text("mine again")
    assert {each.name for each in tmp_path.iterdir()} == {"rows", notes.name}


def test_a_line_that_the_full_disk_cuts_off_is_none(tmp_path):
    path = tmp_path / "turns.jsonl"
    journal = Journal(path)
    journal.add({"n": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match=r"turns\.jsonl"):
            journal.add({"text": "a" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == '{"n":1}\n'
    journal.add({"n": 2})
    assert list(Journal(path).read(dict)) == [{"n": 1}, {"n": 2}]


def test_an_answer_of_any_number_of_commas_is_no_damage(tmp_path):
    path = tmp_path / "turns.jsonl"
    rows = [{"text": "1," * (MOST_VALUES + 1)}, {"text": "ok"}]
    journal = Journal(path)
    for row in rows:
        journal.add(row)
    journal.close()
    assert list(Journal(path).read(dict)) == rows


def test_a_journal_refuses_what_it_could_not_read_again_and_goes_on(tmp_path):
    deep = {}
    for _ in range(200):
        deep = {"a": deep}
    journal = Journal(tmp_path / "turns.jsonl")
    for row in ({"n": 1}, {"n": 2, "meta": deep}, {"n": [1], 3: 4}):
        try:
            journal.add(row)
        except ModelError as error:
            assert row["n"] == 2 and "nested more than 200 levels deep" in str(error)
    journal.close(order=lambda row: str(row["n"]))
    rows = list(Journal(journal.path).read(dict))
    assert rows == [{"n": 1}, {"n": [1], "3": 4}]


def test_a_reply_whose_conversation_could_not_be_read_is_not_recorded(tmp_path):
    """In turns.jsonl its `meta` is one level deep, in conversations.jsonl three."""
    deep = {}
    for _ in range(198):
        deep = {"a": deep}

    class Speaks:
        def reply(self, conversation):
            return Reply("hi", meta=deep)

    speaker = Recorded(Speaks(), Answers(Journal(tmp_path / "turns.jsonl")))
    with pytest.raises(ModelError, match="nested more than 100 levels deep"):
        speaker.reply(Conversation("a"))
    assert (tmp_path / "turns.jsonl").read_bytes() == b""


def test_a_journal_damaged_in_the_middle_is_left_as_it_is_and_named(tmp_path):
    path = tmp_path / "turns.jsonl"
    path.write_text('{"id":"a"}\n{"id":\n{"id":"c"}\n')
    with pytest.raises(InputError, match=r"turns\.jsonl, line 2 is damaged"):
        Journal(path)
    assert path.read_text().count("\n") == 3


def test_an_answer_without_words_or_a_stop_is_no_answer_and_is_asked_for_again(
    tmp_path,
):
    class Recovers:
        said = iter(("", " \u200b", "here i am"))

        def reply(self, conversation):
            return Reply(next(self.said))

    speaker = Recovers()
    for expected in ("", " \u200b", "here i am", "here i am"):
        journal = Journal(tmp_path / "turns.jsonl")
        assert (
            Recorded(speaker, Answers(journal)).reply(Conversation("a")).text
            == expected
        )
        journal.close()


def test_what_was_answered_is_not_asked_again(tmp_path):
    class Counts:
        calls = 0

        def reply(self, conversation):
            self.calls += 1
            if self.calls == 2:
                raise ModelError("down")
            return Reply("hi", stop="end", meta={"p_end": 0.5})

    speaker, log = Counts(), Conversation("a")
    first = Recorded(speaker, Answers(Journal(tmp_path / "t.jsonl"))).reply(log)
    again = Recorded(speaker, Answers(Journal(tmp_path / "t.jsonl")))
    assert again.reply(log) == first == Reply("hi", "end", {"p_end": 0.5})
    assert speaker.calls == 1
    with pytest.raises(ModelError):
        again.reply(Conversation("b"))  # an error is no answer: it is asked again
    assert again.reply(Conversation("b")).text == "hi"


def test_an_array_and_an_object_in_a_json_file_are_rows(tmp_path):
    array, one = tmp_path / "a.json", tmp_path / "b.json.gz"
    array.write_text('[{"id": 1}, 7, {"id": 2}]')
    one.write_bytes(gzip.compress(b'{"resourceSpans": []}'))
    found = list(read_rows(array))
    assert [line.row for line in found] == [{"id": 1}, {}, {"id": 2}]
    assert (found[1].reason, found[1].raw, found[1].number) == ("not an object", "7", 2)
    assert [line.row for line in read_rows(one)] == [{"resourceSpans": []}]
    array.write_text('[{"id": 1}')
    with pytest.raises(InputError, match=r"a\.json is cut short or damaged; download"):
        list(read_rows(array))
    array.write_text("{oops")
    with pytest.raises(InputError, match=r"a\.json is not JSON"):
        list(read_rows(array))


def test_of_a_file_with_blank_lines_that_grows_no_more_is_read(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("\n" * 40 + '{"id": "a"}\n{"id": "b"}\n')
    rows = read_rows(path)
    found = [next(rows).row["id"]]
    with path.open("a") as file:
        file.write('{"id": "c"}\n')
    assert found + [line.row["id"] for line in rows] == ["a", "b"]


def test_of_a_file_that_grows_what_it_held_in_the_beginning_is_read(tmp_path):
    path = tmp_path / "log.jsonl"
    for tail, rows in (
        ("", 3),
        ('{"n": 3}', 4),
        ('{"n": 3', 3),
    ):
        # the last line: none, whole, half written
        path.write_text("".join(f'{{"n": {n}}}\n' for n in range(3)) + tail)
        lines = read_rows(path)
        first = next(lines)
        with path.open("a") as file:
            file.write('}\n{"n": 9}\n' if tail.endswith("3") else '\n{"n": 9}\n')
        assert [line.row["n"] for line in (first, *lines)] == list(range(rows))


def test_what_the_fast_reader_refuses_is_read_by_the_slow_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": NaN}\n{"a": "\\ud800"}\n{"a": }\n')
    lines = list(read_rows(path))
    assert lines[0].row == {"a": None}  # which is how a missing number is written
    assert lines[1].row["a"] == "\ud800"
    assert "column 7" in lines[2].error


def test_lines_are_the_same_with_and_without_the_fast_writer(monkeypatch):
    values = [
        {"a": 1, "b": [1.5, None, True]},
        {"é": "\u2028 \n"},
        {"t": datetime(2024, 1, 2, tzinfo=UTC)},
        {},
    ]
    fast = [dumps(value) for value in values]
    monkeypatch.setattr(json_files, "orjson", None)
    assert [dumps(value) for value in values] == fast
    assert fast[0] == '{"a":1,"b":[1.5,null,true]}'
    assert dumps({"a": "\ud800"}) == '{"a":"\ufffd"}'


def test_columns_that_nobody_reads_are_left_out(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"id": ["a", "b"], "large": ["x", "y"]}).write_parquet(path)
    assert [
        line.row
        for line in read_rows(path, unread=lambda columns: set(columns) - {"id"})
    ] == [
        {"id": "a"},
        {"id": "b"},
    ]


def test_an_input_that_is_no_file_is_told_by_its_stamp(tmp_path):
    def begin(stamp):
        run = Run.open(tmp_path / "r", "import", {}, [], {"s3://b/x.jsonl": stamp})
        run.path("conversations.jsonl").touch()
        return run.manifest["inputs"]

    assert dict(begin("etag 1")) == {"s3://b/x.jsonl": "etag 1"}
    begin("etag 1")
    with pytest.raises(InputError, match=r"s3://b/x\.jsonl changed"):
        begin("etag 2")


def test_no_option_holds_a_key_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("USERLM_API_KEY", "s3cret-of-a-server")
    with pytest.raises(InputError, match="holds the key in USERLM_API_KEY") as caught:
        Run.open(tmp_path / "r", "v", {"assistant": "cmd:bot --key s3cret-of-a-server"})
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("USERLM_API_KEY", "s3cret\\of-a-'server")
    with pytest.raises(InputError, match="holds the key in USERLM_API_KEY"):
        Run.open(tmp_path / "r", "v", {"assistant": ["cmd:bot s3cret\\of-a-'server"]})
    assert not (tmp_path / "r").exists()
