"""How long `userlm assess` takes, and how much its measures depend on the prompt of a user.

    python bench/assess.py scripted [--conversations 5000] [--seed 0]
    python bench/assess.py quick --reference runs/intents [--user trained:userlm-small]
                           [--assistant assistant-small]
    python bench/assess.py prompts --reference runs/intents [--model assistant-small] [--limit N]

`scripted`: a user with fixed lines and the clarifier, on generated conversations (`dialogues.py`):
nothing but the time of userlm itself, with a goal of 60 seconds for 5,000.
`quick`: `--quick` for a user model and an assistant, with a goal of 10 minutes.
`prompts`: an assistant model that plays the user by each of the three prompts in the box, `--quick`
without an assistant; each measure under each prompt, and how far the prompts are apart.

What is finished in `--out` is not repeated, and then not timed.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dialogues import made
from measuring import machine, table, verdict

from userlm.commands import Assess, User, UserSettings, assess
from userlm.rows import write_conversations

LINES = (
    "hello can you help me with something",
    "yes, and what about the other one?",
    "ok thanks bye",
)
SECONDS = {"scripted": 60, "quick": 600}
PROMPTS = {
    "prompted": ("prompted", None),
    "swapped": ("swapped", None),
    "plain": ("prompted", "plain"),
}
"""By name, the form of the user and its prompt."""


def scripted(arguments: argparse.Namespace) -> None:
    """Time a user without a model."""
    out = arguments.out / "scripted"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    logs = islice(made(2.39, arguments.seed), arguments.conversations)
    write_conversations(out / "people.jsonl", logs)
    (out / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    user = User(f"script:{out / 'lines.txt'}")
    timed(
        "scripted", Assess(user, out / "people.jsonl", "clarifier", out=out / "assess")
    )


def quick(arguments: argparse.Namespace) -> None:
    """Time `--quick` for a user model."""
    user = User(arguments.user)
    timed(
        "quick",
        Assess(
            user,
            arguments.reference,
            arguments.assistant,
            out=arguments.out / "quick",
            quick=True,
            seed=arguments.seed,
        ),
    )


def timed(name: str, options: Assess) -> None:
    """Run it, and print how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    assess(options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    goal = SECONDS[name]
    print(
        f"{verdict(wall < goal)}: {name}: {wall:.0f} s, {cpu:.0f} s of CPU (< {goal})"
    )


def prompts(arguments: argparse.Namespace) -> None:
    """Print each measure under each prompt."""
    found: dict[str, Any] = {}
    for name, (form, prompt) in PROMPTS.items():
        user = User(f"{form}:{arguments.model}", UserSettings(prompt=prompt))
        found[name] = assess(
            Assess(
                user,
                arguments.reference,
                out=arguments.out / f"prompt-{name}",
                quick=True,
                limit=arguments.limit,
                seed=arguments.seed,
            )
        )
    rows = {name: measured(results) for name, results in found.items()}
    lines = [line(measure, rows) for measure in rows["prompted"]]
    head = ("measure", *PROMPTS, "apart", "human")
    print(table(head, lines))


def measured(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The measures of single turns, user beside people, by name."""
    return {one["user"]["name"]: one for one in results["measures"]["respond"]}


def line(
    measure: str, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Sequence[str]:
    """A measure under each prompt, the largest difference between two of them, and people's."""
    values = [of[measure]["user"]["value"] for of in rows.values()]
    known = [value for value in values if value is not None]
    apart = max(known) - min(known) if len(known) > 1 else None
    human = rows["prompted"][measure]["human"]
    of_people = human["value"] if human else None
    return [measure, *map(shown, (*values, apart, of_people))]


def shown(value: float | None) -> str:
    """A number, or that there is none."""
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("scripted", "quick", "prompts"))
    parser.add_argument("--conversations", type=int, default=5000)
    parser.add_argument("--reference", type=Path, default=Path("runs/intents"))
    parser.add_argument("--user", default="trained:userlm-small")
    parser.add_argument("--assistant", default="assistant-small")
    parser.add_argument("--model", default="assistant-small")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-assess"))
    arguments = parser.parse_args()
    print(f"{machine()}; seed {arguments.seed}", flush=True)
    {"scripted": scripted, "quick": quick, "prompts": prompts}[arguments.part](
        arguments
    )


if __name__ == "__main__":
    main()
