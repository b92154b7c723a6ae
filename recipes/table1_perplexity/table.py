"""Print the paper's table of perplexities with ours beside it, as Markdown.

    python recipes/table1_perplexity/table.py FOLDER

FOLDER holds ROW/wildchat and ROW/prism, the runs of `userlm ppl` on that row's model. A row that is
not in the paper comes below the paper's rows; "–" means not run.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tables import markdown, shown

DATA = {"wildchat": "WildChat", "prism": "PRISM"}
COLUMNS = [
    (data, intent) for data in DATA for intent in ("without intent", "with intent")
]
PAPER = {  # as the authors' slides label the rows; values in the order of COLUMNS
    "Llama3.2-1b-Instruct": (37.68, 29.09, 84.00, 53.54),
    "Llama3-8b-Instruct": (98.29, 48.13, 89.98, 40.86),
    "GPT-4o-mini": (26.08, 16.08, 35.02, 20.80),
    "GPT-4o": (26.19, 21.40, 40.25, 36.29),
    "USP-8b": (32.08, 21.78, 50.91, 30.16),
    "UserLM-1b": (8.30, 7.78, 18.58, 10.33),
    "UserLM-8b": (5.60, 4.33, 14.92, 7.42),
}
DOUBTFUL = ("GPT-4o-mini", "GPT-4o")
FOOTNOTE = (
    "\\* The rows are labelled as on the authors' slides. A closed chat model does not return the "
    "probability of a given text, so these two labels are probably wrong. A reader of the paper "
    "labels the first four rows Llama3.2-1b-Base, Llama3-8b-Base, Llama3.2-1b-Instruct and "
    "Llama3-8b-Instruct, in this order."
)
NOTE = (
    "Ours: token-weighted, over the content of real user turns only; in brackets 95 % intervals "
    "over people. How the paper weights, truncates and counts is not known. Perplexities of "
    "different tokenizers cannot be compared; bits per byte, in the results.json of the runs, can."
)


def measured(folder: Path) -> list[str]:
    """Return the perplexities of a model, in the order of COLUMNS."""
    cells = []
    for data, intent in COLUMNS:
        path = folder / data / "results.json"
        found = (
            json.loads(path.read_text(encoding="utf-8"))[intent]
            if path.is_file()
            else []
        )
        by_name = {measure["name"]: shown(measure) for measure in found}
        cells.append(by_name.get("perplexity", "–"))
    return cells


def table(folder: Path) -> str:
    """Return the table of the runs in a folder."""
    head = [""]
    for data, intent in COLUMNS:
        head += [f"{DATA[data]}, {intent}: paper", f"{DATA[data]}, {intent}: ours"]
    lines = []
    runs = sorted(path.name for path in folder.glob("*/"))
    for row in [*PAPER, *(run for run in runs if run not in PAPER)]:
        theirs = (
            [f"{value:.2f}" for value in PAPER[row]]
            if row in PAPER
            else ["–"] * len(COLUMNS)
        )
        line = [f"{row} \\*" if row in DOUBTFUL else row]
        for paper, ours in zip(theirs, measured(folder / row), strict=True):
            line += [paper, ours]
        lines.append(line)
    return "\n\n".join([markdown(head, lines), FOOTNOTE, NOTE])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
