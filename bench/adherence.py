"""User-role and intent adherence: how often the rule of intent adherence is right, and what users
that are known to be wrong get.

    python bench/adherence.py [RUN ...]

`bench/intent_replies.jsonl` has replies to the test items of the package, labelled by hand: some
that were written, with their labels, before the rule, and those of userlm-small (`userlm respond`
on the items, seed 0). The rule was chosen on the replies to items with an odd number; those to the
others are held out. A RUN is a folder of `userlm respond` on test
items of both kinds; those with one name before the last dot, such as `none.0` and `none.1`, are
seeds of one user. Each user is compared with that of the first RUN on the same items.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import table

from userlm import assets
from userlm.metrics import adherence
from userlm.metrics.agreement import Labelled, agreement
from userlm.metrics.control_users import ITEM_USERS, asked
from userlm.rows import read_conversations, read_rows
from userlm.runs import conversations_file
from userlm.stats import PERCENT, Estimate, difference
from userlm.types import Conversation, Measure

REPLIES = Path(__file__).parent / "intent_replies.jsonl"


def main() -> None:
    items = {one.id: one for one in read_conversations(assets.intent_items())}
    rows = [line.row for line in read_rows(REPLIES)]
    halves = {
        "chosen on": [row for row in rows if _is_odd(row)],
        "held out": [row for row in rows if not _is_odd(row)],
    }
    lines = []
    for half, of_half in halves.items():
        for by in ("written", "userlm-small", "all"):
            of = [row for row in of_half if by in (row["by"], "all")]
            lines.append([half, by, str(len(of)), *_agreement(items, of)])
    head = ["half", "replies", "n", "three labels agree", "kappa"]
    head += ["adheres or not agrees", "kappa", "adhere by hand", "by the rule"]
    print(table(head, lines))
    embedded = [*read_conversations(assets.role_items()), *items.values()]
    users = {name: asked(embedded, user) for name, user in ITEM_USERS.items()}
    runs: dict[str, list[Conversation]] = {}
    for folder in map(Path, sys.argv[1:]):
        replies = read_conversations(conversations_file(folder))
        runs.setdefault(folder.stem, []).extend(replies)
    users |= runs
    measures = (
        adherence.user_role_adherence,
        adherence.intent_adherence,
        adherence.robustness,
    )
    lines = []
    for name, responses in users.items():
        cells = [_shown(measure(responses), 1) for measure in measures]
        lines.append([name, *cells])
    print(table(["user", *adherence.NAMES.values(), adherence.ROBUSTNESS], lines))
    first, *others = runs or [""]
    lines = []
    for name in others:
        cells = []
        for measure in measures[:2]:
            apart = difference(measure(runs[name]), measure(runs[first]), PERCENT)
            cells.append(_shown(apart, 1))
        lines.append([name, *cells])
    if others:
        print(table([f"less {first}", *adherence.NAMES.values()], lines))


def _is_odd(row: dict[str, Any]) -> bool:
    return int(row["item"].removeprefix("intent-")) % 2 == 1


def _agreement(
    items: dict[str, Conversation], rows: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """Yield the cells of a line: agreement and kappa with three labels and with two, and the share
    that adheres."""
    labelled = []
    for row in rows:
        item = items[row["item"]]
        question, suggestion = item.turns[0].text, item.meta["suggestion"]
        label = adherence.after_suggestion(row["reply"], question, suggestion).label
        labelled.append(Labelled(row["reply"], item.id, label, row["label"]))
    for kept in (labelled, [_adheres_or_not(one) for one in labelled]):
        share, kappa = agreement(kept)
        yield from (_shown(share, 0), _shown(kappa, 2))
    for given in ([one.hand for one in labelled], [one.label for one in labelled]):
        yield f"{100 * given.count(adherence.ADHERES) / len(given):.0f}"


def _adheres_or_not(one: Labelled) -> Labelled:
    label = str(one.label == adherence.ADHERES)
    return Labelled(one.key, one.cluster, label, str(one.hand == adherence.ADHERES))


def _shown(found: Measure | Estimate, digits: int) -> str:
    if found.value is None:
        return "-"
    shown = f"{found.value:.{digits}f}"
    if found.low is None or found.high is None:
        return shown
    return f"{shown} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


if __name__ == "__main__":
    main()
