"""Which measure tells which wrong user from people.

    python bench/controls.py FILE [FILE ...] [--seed 0]

FILE holds conversations of people with intents: held-out ones, such as
runs/small/mix/people/test.jsonl of recipes/small. Each control of `metrics.control_users` is made
of them. Prints how far each measure is from people, with its 95 % interval; bold where that is on
one side of 0 (of measures with a better side, on the worse one). The exit code is 1 if a control is
told by no measure.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measuring import table

from userlm.metrics.control_users import CONTROLS, is_caught, matrix
from userlm.metrics.intrinsic import cluster_name
from userlm.rows import read_conversations
from userlm.stats import Estimate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    people = [one for file in args.files for one in read_conversations(file)]
    people = [one for one in people if one.user_turns]
    clusters = len(set(map(cluster_name, people)))
    turns = sum(len(one.user_turns) for one in people)
    print(f"{len(people):,} conversations, {turns:,} turns, {clusters} clusters\n")
    found = matrix(people, args.seed)
    metrics = list(next(iter(found.values())))
    lines = []
    for metric in metrics:
        cells = [_cell(metric, distances[metric]) for distances in found.values()]
        lines.append([metric, *cells])
    print(table(["measure", *found], lines))
    missed = []
    for control in CONTROLS:
        caught = [name for name in metrics if is_caught(name, found[control][name])]
        if not caught:
            missed.append(control)
    if missed:
        sys.exit(f"no measure tells these from people: {', '.join(missed)}")


def _cell(metric: str, distance: Estimate) -> str:
    value, low, high, _ = distance
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:+.2f}"
    shown = f"{value:+.2f} [{low:.2f}, {high:.2f}]"
    return f"**{shown}**" if is_caught(metric, distance) else shown


if __name__ == "__main__":
    main()
