"""The documentation: every link leads somewhere, every page is in the navigation and every snippet
runs, or says why it does not."""

import re
import runpy
import socket
import subprocess
from itertools import chain
from pathlib import Path

import processes
import pytest
import yaml

from userlm import assets
from userlm.metrics.catalog import METRICS
from userlm.serving.app import create_app, running
from userlm.serving.schema import ServerConfig
from userlm.types import Reply

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    chain(
        ROOT.glob("*.md"),
        DOCS.glob("*.md"),
        ROOT.glob("recipes/**/*.md"),
        ROOT.glob("examples/**/*.md"),
        ROOT.glob("src/userlm/assets/models/*/*.md"),
    )
)
FENCE = re.compile(r"^( *)(`{3,})(\w*)\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")


# --- links ----------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    text = CODE.sub("code", prose(page))
    inline = re.findall(r"\]\(<?([^)\s>]+)", text)
    return inline + re.findall(r'(?:src|srcset|href)="([^"\s]+)"', text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page: those that GitHub makes of its headings, and explicit ones."""
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', prose(page)))
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        same = sum(one == anchor or one.startswith(f"{anchor}-") for one in found)
        found.add(f"{anchor}-{same}" if anchor in found else anchor)
    return found


def broken(page: Path, link: str) -> str:
    """What is wrong with a link; empty if nothing is, or if it leads to another site."""
    if re.match(r"[a-z]+:", link):
        return ""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"{link}: no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return f"{link}: no such heading"
    if "--" in anchor or not anchor.isascii():
        return f"{link}: on the site this heading has another anchor"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    faults = filter(None, [broken(page, link) for link in links(page)])
    assert not list(faults)


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n## Same\n\n## Same\n\n[a](page.md#a-page) [b](page.md#same-1) "
        "[c](none.md) [d](#nowhere) `[e](code.md)` [f](https://example.org/none)\n\n"
        "```\n[g](fenced.md)\n```\n"
    )
    faults = [broken(page, link).partition(":")[0] for link in links(page)]
    assert faults == ["", "", "none.md", "#nowhere", ""]


# --- the site -------------------------------------------------------------------------------------


def pages_of(nav: list) -> list[str]:
    """The pages of a navigation, in order."""
    found = []
    for entry in nav:
        [inner] = entry.values()
        found += pages_of(inner) if isinstance(inner, list) else [inner]
    return found


def test_every_page_is_in_the_navigation_once():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages_of(site["nav"])) == sorted(
        page.name for page in DOCS.glob("*.md")
    )


def test_links_and_tables_are_adapted_to_the_site():
    for_site = runpy.run_path(str(DOCS / "site_pages.py"))["for_site"]
    page = "[a](../recipes/tiny/README.md#x), [b](data.md), ![c](show.png)"
    assert for_site(page, "https://example.org/it") == (
        "[a](https://example.org/it/blob/main/recipes/tiny/README.md#x), "
        "[b](data.md), ![c](show.png)"
    )
    assert for_site(r"| `<\|end\|>` | \|A\| |", "") == r"| `<|end|>` | \|A\| |"


def test_every_page_can_be_reached_by_links_from_the_first_one():
    """Who reads the pages on GitHub has no navigation."""
    reached: set[Path] = set()
    open_pages = {DOCS / "index.md"}
    while open_pages:
        page = open_pages.pop()
        reached.add(page)
        targets = {DOCS / link.partition("#")[0] for link in links(page)}
        open_pages |= targets & set(DOCS.glob("*.md")) - reached
    missing = {page.name for page in set(DOCS.glob("*.md")) - reached}
    assert not missing


def test_the_reference_of_python_is_up_to_date():
    script = runpy.run_path(str(DOCS / "reference.py"))
    written = (DOCS / "python.md").read_text(encoding="utf-8")
    assert written == script["python_reference"](), "run docs/reference.py"


def test_every_measure_is_defined():
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    table = page.partition("## Definitions")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    defined = set(first_cells)
    for cell in first_cells:
        defined.update(cell.split(", "))  # some have the same definition
    for metric in METRICS:
        assert metric.name + arrows[metric.better] in defined


# --- snippets -------------------------------------------------------------------------------------

NOT_RUN = re.compile(r"<!-- not run: \S.*? -->\n\Z")
NAMED = re.compile(r"^`([\w.]+)`:\n\n\Z", re.MULTILINE)
ELSEWHERE = {
    "cli.md",  # generated; the examples of the help are parsed by test_cli
    "test-my-chatbot.md",  # test_evaluate
    "forgetful-bot.md",  # test_forgetful_bot
    "serving.md",  # below
}
SMALLER = {
    "trained:userlm-small": "trained:userlm-tiny",
    "trained:runs/train": "trained:userlm-tiny",
    "--steps 20": "--steps 1",
    "--limit 10": "--limit 2",
    "--quick --out": "--quick --limit 5 --out",
}
"""What makes the snippets quick."""


def snippets(page: Path) -> list[tuple[str, str, str]]:
    """Each block of shell or Python: what stands before it, its language, its text."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for block in FENCE.finditer(text):
        if block[3] in ("sh", "python"):
            blocks.append((text[: block.start()], block[3], block[4]))
    return blocks


def to_run(page: Path) -> list[tuple[str, str, str]]:
    return [block for block in snippets(page) if not NOT_RUN.search(block[0])]


RUN = [
    page
    for page in sorted(DOCS.glob("*.md"))
    if to_run(page) and page.name not in ELSEWHERE
]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    """In order, in one folder with sample logs, and with tiny models."""
    monkeypatch.chdir(tmp_path)
    lines = assets.sample_logs().read_text(encoding="utf-8").splitlines()
    Path("my_logs.jsonl").write_text("\n".join(lines[:60]))
    env = processes.on_path(tmp_path / "bin")
    blocks = to_run(page)
    texts = "".join(text for _, _, text in blocks)
    if "runs/intents" in texts and "userlm import" not in texts:
        blocks.insert(0, ("", "sh", PREPARED))
    for before, language, text in blocks:
        for full, small in SMALLER.items():
            text = text.replace(full, small)
        if name := NAMED.search(before):
            Path(name[1]).write_text(text)
        elif language == "python":
            exec(text, {"__name__": "__main__"})
            assert capsys.readouterr().out.strip()
        else:
            command = ["bash", "-e", "-c", text]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]


PREPARED = """
userlm import my_logs.jsonl --out runs/import
userlm clean runs/import --shares 70/15/15 --out runs/clean
userlm intents runs/clean --out runs/intents
"""
"""What pages expect that begin with intents."""


@pytest.mark.parametrize("block", to_run(DOCS / "serving.md"))
def test_the_clients_of_a_served_user_run(block, capsys):
    class User:
        def reply(self, conversation):
            if len(conversation.user_turns) == 2:
                return Reply(stop="end")
            return Reply("plan a trip please")

    served = create_app(User(), ServerConfig(model_name="UserLM-8b"))
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        running(served, listening),
    ):
        here = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        exec(block[2].replace("http://127.0.0.1:8765/v1", here), {})
    assert capsys.readouterr().out.strip()
