"""The scripts in examples/, with the tiny models in place of the small ones."""

import socket
from pathlib import Path

import processes
import pytest

from userlm import assets
from userlm.assistants import Script
from userlm.serving.app import create_app, running
from userlm.serving.schema import ServerConfig

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for path in EXAMPLES.iterdir():
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for kind in ("userlm", "assistant"):
            text = text.replace(f"{kind}-small", f"{kind}-tiny")
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def output(folder: Path, *command: str) -> str:
    """What a script prints, of whose command line the first part is its name, or -m and a module."""
    run = list(command[:2]) if command[0] == "-m" else [str(folder / command[0])]
    begun = processes.Process(run, *command[len(run) :], cwd=folder, COLUMNS="100")
    out, err = begun.communicate(timeout=300)
    assert begun.returncode == 0, out + err
    return out + err


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_first_turns_has_three_for_each_goal(folder):
    assert output(folder, "first_turns.py").count("\n- ") == 9


def test_the_version_that_remembers_is_found_to_be_better(folder):
    said = " ".join(output(folder, "two_versions.py").split())
    assert "py:my_bot:new is better than py:my_bot:old by" in said


def test_the_gate_in_pytest_passes_the_bot(folder):
    assert "1 passed" in output(folder, "-m", "pytest", "test_my_bot.py")


def test_a_simulator_without_a_model_is_told_from_people(folder):
    assert "Is curious good enough?\nNot yet" in output(folder, "my_simulator.py")


def test_training_on_logs_ends_with_a_first_turn(folder):
    logs = assets.sample_logs().read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(logs[:80]), encoding="utf-8")
    # a model that has learned nothing yet is made in no time
    assert output(folder, "train_on_logs.py", "few.jsonl", "scratch:32x1x600").strip()
    assert (folder / "runs/train_on_logs/train/model/README.md").is_file()


def test_a_client_of_openai_talks_to_a_served_user(folder):
    served = create_app(Script(["plan a trip", "in may"]), ServerConfig("script"))
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        running(served, listening),
    ):
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        said = output(folder, "openai_client.py", url)
    assert "user: plan a trip\nuser: in may\n(the user ended the conversation)" in said


def test_turns_stand_beside_each_other_with_the_facts_that_they_tell(folder):
    (folder / "told.txt").write_text(
        "It is called names.\nOnly whole numbers from 1 to 9 count, and the others are left out.\n"
    )
    said = output(
        folder,
        *("side_by_side.py", "--user", "script:told.txt", "--assistant", "clarifier"),
        *("--user", "trained:userlm-tiny"),
    )
    assert "script:told.txt" in said and "trained:userlm-tiny" in said
    assert "[1]" in said and "[2]" in said
