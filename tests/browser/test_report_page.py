"""The report in a browser."""

import re
from pathlib import Path

import pytest
from conftest import PHONE
from playwright.sync_api import Page, expect
from test_report import HOSTILE, SECTIONS, hostile_folders

from userlm import assets
from userlm.commands import Report, Score, Simulate, User, report, score, simulate

ROWS = ".row-of-list"


@pytest.fixture(scope="session")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on simulations as in `userlm demo`, without a model: people who are replayed."""
    out = tmp_path_factory.mktemp("demo")
    logs = assets.sample_task_logs()
    tasks = str(assets.sample_tasks())
    people = User(f"replay:{logs}")
    simulate(Simulate(people, "oracle", tasks=tasks, out=out / "people", max_turns=4))
    script = User(f"script:{assets.sample_script()}")
    simulate(Simulate(script, "oracle", tasks=tasks, out=out / "script", max_turns=4))
    runs = [out / "people", out / "script"]
    score(Score(runs, logs, tasks, out=out / "score"))
    written = report(Report([*runs, out / "score"], out / "report"))
    return Path(written["html"])


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile")
    written = report(Report(hostile_folders(out), out / "report"))
    return Path(written["html"])


def chosen(page: Page) -> str:
    return page.locator(f"{ROWS}[aria-selected=true] .gist").inner_text()


def shown(page: Page) -> int:
    found = re.match(r"([\d,]+) of", page.locator(".count").inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def test_the_report_opens_without_a_request_or_an_error(page, demo_report, serious):
    page.goto(demo_report.as_uri())
    assert "sample_script" in page.title()
    assert page.locator("section").first.get_attribute("id") == "found"
    assert shown(page) == 24
    assert serious(page) == []


def test_conversations_are_found_filtered_and_sorted(page, demo_report):
    page.goto(demo_report.as_uri())
    page.locator("[name=run]").select_option(label="people")
    expect(page.locator(".count")).to_have_text(re.compile("^12 of 24"))
    page.locator("[name=solved]").select_option(label="solved")
    solved = shown(page)
    page.locator("[name=solved]").select_option(label="not solved")
    assert 0 < solved < 12 and shown(page) + solved <= 12
    page.locator("[name=solved]").select_option(label="all")
    page.locator("[name=order]").select_option(label="longest first")
    turns = [
        int(text.partition(" ")[0])
        for text in page.locator(f"{ROWS} small").all_inner_texts()
    ]
    assert turns == sorted(turns, reverse=True) and len(set(turns)) > 1
    page.locator("[name=find]").fill("eggs")
    expect(page.locator(".count")).to_have_text(re.compile("^1 of 24"))
    page.locator("[name=find]").fill("no such words")
    expect(page.locator(".count")).to_have_text(re.compile("^0 of 24"))


def test_a_transcript_is_read_by_keyboard_and_has_a_link(page, demo_report):
    page.goto(demo_report.as_uri())
    first = chosen(page)
    page.get_by_role("listbox").focus()
    page.keyboard.press("ArrowDown")
    assert chosen(page) != first
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className") == "reading"
    last = page.locator(".reading").inner_text()
    link = page.url
    assert "#c-script-" in link
    page.goto("about:blank")
    page.goto(link)
    assert page.locator(".reading").inner_text() == last


def test_two_runs_of_one_task_stand_side_by_side(page, demo_report):
    page.goto(demo_report.as_uri())
    page.locator("[name=beside]").select_option(label="script")
    names = page.locator(".reading .side").all_inner_texts()
    assert names == ["people", "script"]


def test_a_turn_says_which_facts_it_tells_and_the_end_says_the_verdict(
    page, demo_report
):
    page.goto(demo_report.as_uri())
    page.locator("[name=run]").select_option(label="people")
    text = page.locator(".reading").inner_text()
    assert "says:" in text and "task:" in text


def test_without_the_script_the_first_conversations_of_each_run_are_there(
    new_page, demo_report
):
    page = new_page(java_script_enabled=False)
    page.goto(demo_report.as_uri())
    assert not page.locator(".viewer").is_visible()
    assert page.locator(".first .talk").count() == 6
    assert page.locator(".first .talk").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone(new_page, demo_report, scheme, serious):
    page = new_page(viewport=PHONE, color_scheme=scheme)
    page.goto(demo_report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    clipped = page.evaluate(
        """() => [...document.querySelectorAll(".scroll")]
          .filter(box => box.offsetParent && box.scrollWidth > box.clientWidth + 1)
          .map(box => box.textContent.slice(0, 80))"""
    )
    assert clipped == []
    assert serious(page) == []


def test_paper_has_the_first_conversations_and_no_controls(page, demo_report):
    page.goto(demo_report.as_uri())
    page.emulate_media(media="print")
    assert not page.locator(".viewer").is_visible()
    assert page.locator(".first .talk").first.is_visible()


def test_hostile_conversations_stay_text_in_the_list_and_in_every_transcript(
    page, hostile_report
):
    page.goto(hostile_report.as_uri())
    title = page.title()
    seen = ""
    page.get_by_role("listbox").focus()
    page.keyboard.press("Home")
    for _ in range(shown(page)):
        seen += page.locator(".reading").text_content()
        page.keyboard.press("ArrowDown")
    for payload in (*HOSTILE[:9], HOSTILE[14]):
        assert payload in seen, payload[:60]
    assert "U+2028" in seen and "U+202E ×" in seen
    assert page.locator("#pwned").count() == 0
    assert page.locator("img, link, base, iframe, animate").count() == 0
    assert page.title() == title != "pwned"
    sections = page.locator("main > section")
    assert [one.get_attribute("id") for one in sections.all()] == SECTIONS
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_hostile_text_does_not_widen_a_phone(new_page, hostile_report):
    page = new_page(viewport=PHONE)
    page.goto(hostile_report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
