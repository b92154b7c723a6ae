"""The page of the bot that forgets, as it stands, without the model."""

import re
import subprocess
from pathlib import Path

import processes
import pytest

from userlm.json_files import read_json
from userlm.rows import read_rows

PAGE = Path(__file__).parent.parent / "docs" / "forgetful-bot.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)```", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_simulated_users_find_the_flaw_that_single_prompts_do_not(
    tmp_path: Path,
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, text in FILE.findall(page):
        (tmp_path / name).write_text(text)
    tour = "\n".join(SHELL.findall(page)).replace(" --user trained:userlm-small", "")
    done = subprocess.run(
        ["bash", "-e", "-c", tour],
        cwd=tmp_path,
        env=processes.on_path(tmp_path / "bin"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    cells = read_json(tmp_path / "runs/booking/results.json")["cells"]
    scores = {}
    for cell in cells:
        [score] = [
            one["value"] for one in cell["measures"] if one["name"] == "assistant score"
        ]
        bot = cell["assistant"].rpartition(":")[2]
        scores[bot, cell["user"].rpartition(":")[2]] = score
    assert scores == {
        ("remembers", "single"): 100,
        ("forgets", "single"): 100,
        ("remembers", "one_a_turn"): 100,
        ("forgets", "one_a_turn"): 0,
    }
    first = " ".join(done.stdout.split())
    assert "py:booking:remembers is better than py:booking:forgets by 100.0" in first
    # the user says everything again, and the bot asks again
    folder = tmp_path / "runs/booking/cells/py-booking-forgets--py-patient-one-a-turn"
    told = [line.row["user"] for line in read_rows(folder / "score/facts.jsonl")]
    assert {tuple(turns) for turns in told} == {(0, 3), (1, 4), (2, 5)}
