"""Print the paper's table of intrinsic measures with ours beside it, as Markdown.

    python recipes/table2_intrinsic/table.py FOLDER

FOLDER holds ROW, the runs of `userlm assess` of that row's user. A row that is not in the paper
comes below the paper's rows; "–" means not measured. Our human row is that of the first run.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = (
    "first-turn diversity",
    "intent decomposition",
    "termination F1",
    "naturalness",
    "user-role adherence",
    "intent adherence",
)
PAPER: Mapping[str, tuple[float | None, ...]] = {
    # as the authors' slides label the rows
    "Llama3.2-1b-Instruct": (81.36, 15.72, 3.47, 0.14, 77.55, 54.95),
    "Llama3-8b-Instruct": (81.31, 23.95, 3.51, 0.20, 63.25, 78.05),
    "GPT-4o-mini": (66.10, 9.66, 15.31, 0.04, 80.20, 88.70),
    "GPT-4o": (74.42, 7.68, 1.38, 3.31, 38.85, 70.95),
    "USP-8b": (94.37, 6.33, 21.31, 77.73, 98.05, 97.55),
    "UserLM-1b": (90.90, 3.07, 56.83, 78.96, 91.30, 93.55),
    "UserLM-8b": (94.55, 2.69, 63.54, 80.21, 93.95, 94.65),
    "humans": (94.01, 1.68, None, 90.15, None, None),
}
HUMANS = "humans"
NOTE = (
    "Paper: 2,000 items, without intervals. Ours: in brackets 95 % intervals over people, or over "
    "items for the two adherences. How the paper normalises intent decomposition is not known, so "
    "its column is not comparable with ours; naturalness depends on the detector, which each run's "
    "page names with its own error."
)


def measured(folder: Path, side: str) -> list[str]:
    """Return the measures of the user or of the people of a run, in the order of COLUMNS."""
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Mapping[str, Any]] = {}
    for compared in results.get("measures", {}).values():
        for one in compared:
            if one[side]:
                name, _, how = one[side]["name"].partition(" (")
                if name not in found or how == "judge)":  # rather than the rule
                    found[name] = one[side]
    return [shown(found[name]) if name in found else "–" for name in COLUMNS]


def shown(measure: Mapping[str, Any]) -> str:
    value, low, high = (measure[key] for key in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def table(folder: Path) -> str:
    """Return the table of the runs in a folder."""
    head = [""]
    for column in COLUMNS:
        head += [f"{column}: paper", f"{column}: ours"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    runs = sorted(path.name for path in folder.glob("*/"))
    people = measured(folder / runs[0], "human") if runs else ["–"] * len(COLUMNS)
    for row in [*PAPER, *(run for run in runs if run not in PAPER)]:
        ours = people if row == HUMANS else measured(folder / row, "user")
        line = [row]
        for theirs, mine in zip(
            PAPER.get(row, [None] * len(COLUMNS)), ours, strict=True
        ):
            line += ["–" if theirs is None else f"{theirs:.2f}", mine]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
