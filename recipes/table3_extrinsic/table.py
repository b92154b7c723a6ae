"""Print the paper's table of users on tasks with ours beside it, as Markdown.

    python recipes/table3_extrinsic/table.py FOLDER

FOLDER holds ROW, the grids of `userlm evaluate` of that row's user. A row that is not in the paper
comes below the paper's rows; "–" means not measured.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tables import markdown, shown

COLUMNS = {
    "intent coverage": "intent coverage",
    "% repeat required": "repeats required facts",
    "% skip non-required": "skips other facts",
    "% add demands": "adds demands",
    "turn variance": "turn variance",
    "turn range": "",
    "unigram difference": "unigram difference",
    "assistant score": "assistant score",
}
"""The columns of the paper, and the names of our measures."""
RANGE = ("fewest turns", "most turns")

PAPER: Mapping[str, tuple[str, ...]] = {
    "GPT-4o-mini": ("86.6", "31.8", "10.9", "9.5", "0.9", "3.7–5.7", "0.43", "73.2"),
    "GPT-4o": ("84.7", "9.4", "14.6", "1.1", "0.6", "4.0–5.4", "0.40", "74.6"),
    "UserLM-8b": ("76.7", "54.3", "37.7", "43.8", "2.8", "2.1–6.7", "0.71", "57.4"),
}
"""The authors' slides, with their names of rows."""
NOTE = (
    "Paper: 65 tasks, 10 conversations each, GPT-4o as the assistant, without intervals; a judge "
    "labelled what users said. Ours: other tasks of the same sets, in brackets 95 % intervals over "
    "tasks; coverage is by a judge if there was one, repeats and skips are by a rule of words. So "
    "compare the order of rows rather than figures. A lower score of the assistant is no better "
    "estimate of how it does with people: nobody has measured that here."
)


def measured(folder: Path) -> list[str]:
    """Return the measures of the user of a grid, in the order of COLUMNS."""
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, Mapping[str, Any]] = {}
    for cell in results.get("cells", ()):  # there is one
        found = {one["name"]: one for one in cell["measures"]}
    lines = []
    for column, name in COLUMNS.items():
        if column == "turn range":
            ends = [found[end]["value"] for end in RANGE if end in found]
            known = [f"{end:.1f}" for end in ends if end is not None]
            lines.append("–".join(known) or "–")
        else:
            judged = found.get(f"{name} (judge)", found.get(name))
            is_share = judged is not None and judged["unit"] == "%"
            lines.append(shown(judged, 1 if is_share else 2))
    return lines


def table(folder: Path) -> str:
    """Return the table of the grids in a folder."""
    head = [""]
    for column in COLUMNS:
        head += [f"{column}: paper", "ours"]
    lines = []
    runs = sorted(path.parent.name for path in folder.glob("*/cells"))
    for row in [*PAPER, *(run for run in runs if run not in PAPER)]:
        line = [row]
        theirs = PAPER.get(row, ("–",) * len(COLUMNS))
        for paper, ours in zip(theirs, measured(folder / row), strict=True):
            line += [paper, ours]
        lines.append(line)
    return f"{markdown(head, lines)}\n\n{NOTE}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
