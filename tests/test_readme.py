"""Every snippet of the README runs. The embedded user model stands in for the released
checkpoint."""

import re
import subprocess
from pathlib import Path

import processes
import pytest

from userlm import assets

pytestmark = pytest.mark.slow
README = Path(__file__).resolve().parent.parent / "README.md"


def snippets(language: str) -> list[str]:
    return re.findall(
        rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which the shell tour was walked."""
    place = tmp_path_factory.mktemp("tour")
    (place / "my_logs.jsonl").write_bytes(assets.sample_logs().read_bytes())
    [tour] = snippets("sh")
    env = processes.on_path(place / "bin")
    done = subprocess.run(
        ["bash", "-e", "-c", tour],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return place


def test_the_shell_tour_ends_with_a_report(place):
    assert (place / "runs" / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("snippet", snippets("python"))
def test_the_python_snippets_run(snippet, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert (
        "microsoft/UserLM-8b" in snippet or "runs/" in snippet or "samples" in snippet
    )
    exec(
        snippet.replace("microsoft/UserLM-8b", "userlm-tiny"), {"__name__": "__main__"}
    )
    assert capsys.readouterr().out.strip()
