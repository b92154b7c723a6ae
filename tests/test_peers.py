"""What `make test-peers` runs and writes, without running it: that takes environments of its own."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from userlm.text import END_SAYS

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "peers"


@pytest.fixture(scope="module")
def run():
    path = list(sys.path)
    yield runpy.run_path(str(PEERS / "run.py"))
    sys.path[:] = path


def test_the_table_of_harnesses_is_that_of_the_last_runs(run):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for table in ("table", "endings_table"):
        assert run[table](run["kept"]()) in page, "run tests/peers/run.py --table"


def test_no_row_of_the_last_runs_failed(run):
    rows = run["kept"]()
    assert len({row["harness"] for row in rows if "seat" in row}) >= 10
    assert [row for row in rows if row["ok"] is False] == []


def test_every_row_is_of_a_script_that_says_what_it_needs(run):
    scripts = {path.stem: path for path in run["all_peers"]()}
    assert {row["peer"] for row in run["kept"]()} <= scripts.keys()
    for path in scripts.values():
        assert run["metadata"](path.read_text())["dependencies"]


def test_what_the_page_says_about_a_harness_is_run_by_its_script():
    page = (ROOT / "docs" / "harnesses.md").read_text(encoding="utf-8")
    names = re.findall(r"<!-- not run: tests/peers/(\w+).py runs it -->", page)
    assert len(names) >= 8
    for name in names:
        source = (PEERS / f"{name}.py").read_text()
        assert f'peer.run_documented("{name}")' in source


def test_a_peer_that_cannot_be_installed_is_a_row(run, monkeypatch, tmp_path):
    script = tmp_path / "none.py"
    script.write_text(
        '# /// script\n# dependencies = ["no-such-package-of-ours @ file:///no/such"]\n# ///\n'
        "with peer.case('None', 'none', 'base URL'):\n    pass\n"
    )
    monkeypatch.setitem(run["environment"].__globals__, "ENVIRONMENTS", tmp_path)
    monkeypatch.setitem(run["environment"].__globals__, "call", refuse)
    [row] = run["run"](script)
    assert row["ok"] is None
    assert row["note"] == "cannot be installed here: no such file"
    assert "not run" in run["table"]([row])


def test_a_peer_that_cannot_be_run_keeps_its_rows_and_says_from_when(
    run, monkeypatch, tmp_path, capsys
):
    of_run = run["keep"].__globals__
    monkeypatch.setitem(of_run, "ROWS", tmp_path / "rows.jsonl")
    monkeypatch.setitem(of_run, "commit_of", lambda row: "a1b2c3d")
    good = {
        "harness": "A",
        "version": "1",
        "how": "x",
        "seat": "",
        "ok": True,
        "note": "n",
    }
    bad = {"harness": "a", "seat": "", "ok": None, "note": "cannot be installed here"}
    assert run["keep"]("a", [bad]) == [{"peer": "a", **bad}]
    run["keep"]("a", [good])
    for _ in range(2):
        [row] = run["keep"]("a", [bad])
        assert row == {"peer": "a", **good, "kept": "a1b2c3d"}
        assert (
            "a: cannot be installed here; its rows of before" in capsys.readouterr().out
        )
    assert "| n (kept from a1b2c3d) |" in run["table"]([row])
    [row] = run["keep"]("a", [{**good, "ok": False}])
    assert "kept" not in row


def test_the_commit_of_a_row_is_the_one_that_wrote_it(run):
    commit = run["commit_of"]
    assert commit({"harness": "no such row"}) == "an unknown commit"
    committed = [row for row in run["kept"]() if row["peer"] == "datasets"]
    assert re.fullmatch("[0-9a-f]{7,}", commit(committed[0]))


def test_what_a_harness_does_at_the_end_is_shown_by_what_the_user_says(run):
    row = {"harness": "A", "version": "1", "ok": True}
    rows = [
        {**row, "says": "", "note": "stops"},
        {**row, "says": "[end]", "note": "x|y"},
    ]
    lines = run["endings_table"](rows).splitlines()
    assert lines[0] == '| harness | `--end-says ""` | `--end-says "[end]"` |'
    assert lines[2:] == [r"| A 1 | stops | x\|y |"]


def test_no_harness_misses_the_default_end(run):
    """Each asks for another turn and gets an error; with an empty turn, some do not."""
    rows = [row for row in run["kept"]() if "says" in row]
    by_default = [row["note"] for row in rows if row["says"] == END_SAYS]
    assert len(by_default) >= 10
    assert [note for note in by_default if "refused, fails" not in note] == []
    empty = [row["note"] for row in rows if row["says"] == ""]
    assert sum("goes on" in note for note in empty) == 2


def refuse(*command):
    import subprocess

    raise subprocess.CalledProcessError(1, command, "", "looking\nno such file\n")


def test_a_table_escapes_what_would_break_it(run):
    row = {"harness": "A|B", "seat": "log", "how": "x", "ok": False, "note": "a\nb"}
    line = run["table"]([row]).splitlines()[-1]
    assert line == r"| A\|B | x |  |  | log |  | failed: a b |"
    assert json.loads(json.dumps(row)) == row
