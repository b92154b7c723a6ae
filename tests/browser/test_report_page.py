"""The report in a browser."""

from pathlib import Path

import pytest

from userlm import assets
from userlm.commands import Report, Score, Simulate, User, report, score, simulate


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


def test_the_report_opens_without_a_request_or_an_error(page, demo_report):
    page.goto(demo_report.as_uri())
    assert "model report" in page.title()
    assert page.locator("section").count() > 2
