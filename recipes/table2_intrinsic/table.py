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

from userlm.show.published import PAPER

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tables import markdown, shown

COLUMNS = (
    "first-turn diversity",
    "intent decomposition",
    "termination F1",
    "naturalness",
    "user-role adherence",
    "intent adherence",
)
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


def table(folder: Path) -> str:
    """Return the table of the runs in a folder."""
    head = [""]
    for column in COLUMNS:
        head += [f"{column}: paper", f"{column}: ours"]
    lines = []
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
    return f"{markdown(head, lines)}\n\n{NOTE}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
