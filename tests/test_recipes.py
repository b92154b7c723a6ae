"""The recipes in `recipes/` that a small file is enough for."""

import json
import os
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def test_the_counts_of_wildchat_stand_beside_those_of_the_paper(tmp_path):
    """Three openings in English by one person, two in French, and a template of 101 copies by another."""

    def row(i: int, text: str, language: str, person: str) -> str:
        messages = [
            {"role": role, "content": words, "language": language, "turn_identifier": 2 * i}
            for role, words in (("user", text), ("assistant", "Here you are."))
        ]
        named = {"hashed_ip": person, "country": "Chile", "language": language, "toxic": False, "redacted": False}
        return json.dumps({"conversation_hash": f"{i:032x}", "conversation": messages, "turn": 1, **named})

    template = "please act as a prompt generator for midjourney"
    openings = [(f"question number {i}", "English", "a") for i in range(3)]
    openings += [(f"question numéro {i}", "French", "a") for i in range(2)]
    openings += [(f"{template} {i}", "English", "b") for i in range(101)]
    logs = tmp_path / "logs.jsonl"
    logs.write_text("".join(row(i, *opening) + "\n" for i, opening in enumerate(openings)))

    env = os.environ | {"USERLM": str(Path(sys.executable).with_name("userlm"))}
    command = ["bash", RECIPES / "wildchat_counts.sh", logs, tmp_path / "runs"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    table = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()[1:]]
    # 106 less the French; of these the three that are no template, all of one person, whose draw says train
    assert [(name, paper, ours) for name, paper, ours, _ in table[:3]] == [
        ("English", "478,498", "104"),
        ("after the template filter", "384,336", "3"),
        ("train", "343,951", "3"),
    ]
