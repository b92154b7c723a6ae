"""What `make test-peers` runs and writes, without running it: that takes environments of its own."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "peers"


@pytest.fixture(scope="module")
def run():
    path = list(sys.path)
    yield runpy.run_path(str(PEERS / "run.py"))
    sys.path[:] = path


def test_the_table_of_harnesses_is_that_of_the_last_runs(run):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert run["table"](run["kept"]()) in page, "run tests/peers/run.py --table"


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


def refuse(*command):
    import subprocess

    raise subprocess.CalledProcessError(1, command, "", "looking\nno such file\n")


def test_a_table_escapes_what_would_break_it(run):
    row = {"harness": "A|B", "seat": "log", "how": "x", "ok": False, "note": "a\nb"}
    line = run["table"]([row]).splitlines()[-1]
    assert line == r"| A\|B | x |  |  | log |  | failed: a b |"
    assert json.loads(json.dumps(row)) == row
