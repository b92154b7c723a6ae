"""The demo: how it puts the verbs together. `make demo` runs them."""

import pytest

from userlm import demo
from userlm.types import ModelError, ModelWarning

VERBS = ("import_", "clean", "intents", "simulate", "train", "ppl", "respond", "score")


@pytest.fixture
def stages(monkeypatch):
    """The options of every verb that the demo calls, in order; nothing is run."""
    found = []

    def report(options):
        found.append(options)
        return {"html": "report.html"}

    for verb in VERBS:
        monkeypatch.setattr(demo, verb, found.append)
    monkeypatch.setattr(demo, "report", report)
    monkeypatch.setattr(demo, "fetch", lambda options: None)
    monkeypatch.setattr(demo, "_show_beside_each_other", lambda folders: None)
    return found


def test_each_stage_has_a_folder_of_its_own_and_the_report_is_of_them(stages, tmp_path):
    demo.demo(demo.Demo(user="script:x", assistant="script:y", out=tmp_path))
    *before, last = stages
    folders = [options.out for options in before]
    assert len(set(folders)) == len(folders) > 10
    assert {folder.parent for folder in [*folders, last.out]} == {tmp_path}
    assert set(last.runs) <= set(folders)


def test_it_runs_on_the_models_that_are_given(stages, tmp_path):
    demo.demo(demo.Demo("trained:mine", "openai:bot", "my-base", tmp_path))
    users = {o.user.user for o in stages if isinstance(o, demo.Simulate)}
    assert {"trained:mine", "prompted:openai:bot"} < users
    assert {o.base for o in stages if isinstance(o, demo.Train)} == {"my-base"}


def test_the_tiny_models_step_in_where_the_small_one_cannot_be_had(
    stages, tmp_path, monkeypatch
):
    def fail(options):
        raise ModelError("no index")

    monkeypatch.setattr(demo, "fetch", fail)
    with pytest.warns(ModelWarning) as told:
        demo.demo(demo.Demo(out=tmp_path))
    assert "no index" in str(told[0].message)
    first = next(o for o in stages if isinstance(o, demo.Simulate))
    assert (first.user.user, first.assistant) == (
        "trained:userlm-tiny",
        "assistant-tiny",
    )
