"""Everything in README that can be executed runs, with the tiny models in place of the small ones and the
released checkpoint; its links lead somewhere, here and on an index page."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import yaml

from userlm import assets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
REPOSITORY = PROJECT["urls"]["Repository"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def with_tiny_models(snippet: str) -> str:
    return re.sub(r"microsoft/UserLM-8b|userlm-small", "userlm-tiny", snippet)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which the commands of the three doors and of the tour ran, one after the other."""
    place = tmp_path_factory.mktemp("tour")
    shutil.copy(assets.sample_logs(), place / "my_logs.jsonl")
    for name in ("my_bot.py", "tables.toml"):
        shutil.copy(ROOT / "examples" / name, place)
    tour = with_tiny_models("\n".join(snippets("sh")))
    # with as many conversations and steps as README has it would take a minute
    for text, less in (
        ("--quick", "--quick --limit 6"),
        ("--limit 10", "--limit 2"),
        ("--steps 20 --batch 32", "--steps 3 --batch 8"),
        ("--model runs/train", "--model runs/train --limit 10"),
    ):
        assert text in tour
        tour = tour.replace(text, less)
    done = subprocess.run(
        ["bash", "-e", "-c", tour],
        cwd=place,
        env=processes.on_path(place / "bin"),
        stdin=subprocess.DEVNULL,  # nobody answers in the chat
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_the_doors_and_the_tour_end_with_an_answer_each(place):
    for verb in ("compare", "assess", "train"):
        assert (place / "runs" / verb / "results.json").is_file(), verb
    assert (place / "runs" / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python"))
def test_the_python_snippets_run(snippet, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(with_tiny_models(snippet), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.fixture
def on_an_index_page(monkeypatch) -> str:
    """README as the metadata of the package has it."""
    # hatchling is not installed here, only where a package is built
    interface = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["Readme"]()
    hook.root = str(ROOT)
    metadata = dict(PROJECT)
    hook.update(metadata)
    return metadata["readme"]["text"]


def test_on_an_index_page_readme_has_whole_addresses_alone(on_an_index_page):
    whole = [link for pair in LINK.findall(on_an_index_page) for link in pair if link]
    assert len(whole) == len(LINK.findall(README)) > 20
    assert all(link.startswith("https://") for link in whole)
    for link in whole:
        if link.startswith(f"{REPOSITORY}/"):
            kind, _, path = link.removeprefix(f"{REPOSITORY}/").partition("/main/")
            is_image = path.endswith(".png")
            assert kind == ("raw" if is_image else "blob")
            assert (ROOT / path.partition("#")[0]).exists()


def test_readme_and_citation_name_the_address_of_the_metadata():
    assert f"pip install git+{REPOSITORY}\n" in re.sub(" +#.*", "", README)
    assert CITATION["repository-code"] == REPOSITORY
    assert PROJECT["urls"]["Documentation"].startswith(REPOSITORY)


def test_the_citation_has_what_the_format_requires_and_names_the_paper():
    assert CITATION["cff-version"] == "1.2.0"
    assert all(CITATION[field] for field in ("message", "title", "authors"))
    assert CITATION["version"] == PROJECT["version"]
    [paper] = CITATION["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert paper["authors"][0]["family-names"] == "Naous"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_how_the_command_comes_to_be_there_is_told_by_readme_and_at_the_end_of_make_env():
    def steps(goal: str) -> list[str]:
        # Also below `make test`, which would say which folder it enters and leaves.
        made = ["make", "--no-print-directory", "--dry-run", goal]
        return subprocess.check_output(made, cwd=ROOT, text=True).splitlines()

    activate = ". .venv/bin/activate"
    assert README.index("make env ") < README.index(activate) < README.index("## What")
    assert activate in steps("env")[-1]
    assert not any(activate in step for step in steps("demo"))
