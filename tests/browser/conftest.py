"""What the tests in a browser share: a page of Chromium that may reach nothing but this machine."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Route,
    expect,
    sync_playwright,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OURS = re.compile(r"(file|data|blob):|https?://(127\.0\.0\.1|localhost)[:/]")
TIMEOUT_MS = 60_000
"""Only a machine that is busy with other work needs so long."""
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = (shutil.which(name) for name in BROWSERS)
    path = next((path for path in found if path), None)
    if path is None:
        pytest.exit(
            "no browser: install Chromium (apt-get install chromium) or Google Chrome",
            1,
        )
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def faults() -> list[str]:
    """What went wrong in the pages of a test: its `page` fails unless it is empty at the end. A test
    that provokes an error takes it out."""
    return []


@pytest.fixture
def new_page(browser: Browser, faults: list[str]) -> Iterator[Callable[..., Page]]:
    """Returns a page; takes what `browser.new_context` takes, such as `viewport=PHONE` and
    `color_scheme="dark"`."""
    contexts: list[BrowserContext] = []

    def check(route: Route) -> None:
        if OURS.match(route.request.url):
            route.continue_()
            return
        faults.append(f"request to {route.request.url}")
        route.abort()

    def new(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        context.route("**/*", check)
        page = context.new_page()
        page.on("console", lambda message: note(message.type, message.text))
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        return page

    def note(kind: str, text: str) -> None:
        # Violations of the Content-Security-Policy are errors of the console.
        if kind == "error":
            faults.append(f"console: {text}")

    yield new
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    return new_page()


@pytest.fixture(scope="session")
def serious() -> Callable[[Page], list[str]]:
    """Returns axe-core's findings on a page that are serious or worse."""
    axe = Axe()

    def findings(page: Page) -> list[str]:
        found = axe.run(page).response["violations"]
        return [
            f"{each['id']}: {each['help']}: {node['html']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    return findings
