"""Which assistant is better, and why: what `compare` found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from userlm.metrics import catalog
from userlm.show.blocks import (
    Block,
    Group,
    Line,
    Link,
    Quote,
    Row,
    Section,
    Small,
    Table,
    Text,
    Value,
    interval,
)
from userlm.show.finished import Finished
from userlm.show.formats import called, number, plural
from userlm.show.measures import measured
from userlm.show.results import Difference, Measured, Place, Within, WorstTask
from userlm.show.transcripts import anchor

SCORE = "assistant score"
NAME = 60
NOTHING = "–"
OPEN = 3
"""How many of the worst tasks are shown at once, so that all of it fits on a screen."""

PAIRED = (
    "Differences are in the same conversations: same tasks, same seeds. Intervals of 95 % are over "
    "tasks and hold for these users; each is of one pair alone, so of many pairs some miss."
)
LOWER = (
    "Lower is not better: a user with lower scores need not be closer to people. To see that, give "
    "--human-scores."
)
COVERED = f"{SCORE.capitalize()} where the user said all required facts"
WITHIN = (
    "In points, among conversations about the same task. What goes with failure need not cause it: "
    "a conversation that fails goes on longer, and gives the user more turns to repeat and to add."
)
COST = "The cost of being talked to: points less than with a single prompt"
ADDED = "What added demands cost: points more when the same turns are said without them"
VARIES = (
    "Shares of the variance of one conversation’s result: which task it is, which user, how this "
    "user does on this task, and the repeat."
)
NEEDED = "So many tasks show a difference of so many points in 4 of 5 runs."


def answers(runs: Sequence[Finished]) -> Iterator[Text]:
    """Yield which assistant is better, and where it costs most to be talked to."""
    for run in runs:
        if run.verb == "compare":
            if answer := _answer(run.results):
                yield Text(answer, "answer")
            known = [one for one in run.results["single"] if one["value"] is not None]
            if known:
                most = max(known, key=lambda one: abs(one["value"]))
                yield Text(_cost(most), "finding")
            yield Text(PAIRED)


def _cost(one: Mapping[str, Any]) -> Line:
    assistant, user = (Quote(called(one[side]), NAME) for side in ("assistant", "user"))
    points = (number(one["value"], 1), interval(one["low"], one["high"], 1))
    names = ("Being talked to by ", user, " costs ", assistant, " ")
    return (*names, *points, " points, beside a single prompt.")


def section(runs: Sequence[Finished]) -> Section:
    """Return the section with all that was compared."""
    comparisons = [run for run in runs if run.verb == "compare"]
    groups = []
    for run in comparisons:
        name = Quote(run.name, NAME) if len(comparisons) > 1 else ""
        groups.append(Group(list(_blocks(run)), name))
    title = "The assistants side by side"
    return Section("compared", "Comparison", title, groups)


def _blocks(run: Finished) -> Iterator[Block]:
    found = run.results
    yield from _scores(found)
    yield from _differences(found, "assistants")
    if found["users"]:
        yield from _differences(found, "users")
        if not found["human"]:
            yield Text(LOWER)
    yield from _costs(found)
    yield from _human(found)
    yield from _failure(found)
    yield from _worst(run)
    yield from _spread(found)


# --- the first sentence ---------------------------------------------------------------------------


def _answer(found: Mapping[str, Any]) -> Line:
    """Say which of the first two assistants is better. If there is but one: how much it solves
    beside a stub, or with which user more is solved; nothing if only the cost of being talked to
    is known."""
    real = found["real"]
    assistants, users = (
        [one for one in found[key] if one["measure"] == SCORE]
        for key in ("assistants", "users")
    )
    for one in assistants:
        if one["a"] in real and one["b"] in real:
            return (_better(one), *_with(found, one, "these users"))
    for one in assistants:
        if one["a"] in real:
            return (_beside_stub(one), *_with(found, one, "these users"))
    for one in users:
        return (_more_with(one), *_with(found, one, "this assistant"))
    if any(one["value"] is not None for one in found["single"]):
        return ""
    return "Nothing can be compared: no user or assistant has graded conversations in two runs."


def _with(found: Mapping[str, Any], one: Difference, beside: str) -> tuple[Line, ...]:
    sizes = f"; {_sizes(found)})"
    told = (_listed(one["with"]), sizes, _unpaired(one), _unsure(one))
    return (f" with {beside} (", *told, ".")


def _better(one: Difference) -> Line:
    low, high = one["low"], one["high"]
    a, b = _names(one)
    is_clear = low is not None and high is not None and not low <= 0 <= high
    if is_clear:
        return (a, " is better than ", b, f" by {_points(one)}")
    if _unsure(one):
        return (a, f" solves {_points(one)} more than ", b)
    return (
        a,
        " and ",
        b,
        f" cannot be told apart: the first solves {_points(one)} more",
    )


def _beside_stub(one: Difference) -> Line:
    a, b = (Quote(one[side], NAME) for side in ("a", "b"))
    word = "less" if _is_turned(one) else "more"
    return (a, f" solves {_points(one)} {word} than the stub ", b)


def _more_with(one: Difference) -> Line:
    a, b = _names(one)
    return ("With ", a, f", {_points(one)} more is solved than with ", b)


def _names(one: Difference) -> tuple[Quote, Quote]:
    """The two sides, first the one that solves more."""
    a, b = (Quote(one[side], NAME) for side in ("a", "b"))
    return (b, a) if _is_turned(one) else (a, b)


def _points(one: Difference) -> str:
    return f"{number(abs(one['value'] or 0.0), 1)} points{_ends(one)}"


def _is_turned(one: Difference) -> bool:
    return (one["value"] or 0.0) < 0


def _unsure(one: Difference) -> str:
    return ": too few tasks for an interval" if one["low"] is None else ""


def _ends(one: Difference) -> str:
    low, high = one["low"], one["high"]
    if low is None or high is None:
        return ""
    if _is_turned(one):
        low, high = -high, -low
    return f" [{number(low, 1)}, {number(high, 1)}]"


def _listed(names: Sequence[str]) -> Quote:
    *most, last = names
    return Quote(f"{', '.join(most)} and {last}" if most else last, 200)


def _sizes(found: Mapping[str, Any]) -> str:
    cell = found["cells"][0]
    repeats = max(one["repeats"] for one in found["cells"])
    return f"{plural(cell['tasks'], 'task')} × {repeats:,}"


def _unpaired(one: Difference) -> str:
    count = one["unpaired"]
    left_out = f"{plural(count, 'conversation')} left out, measured on one side alone"
    return f" ({left_out})" if count else ""


# --- tables ---------------------------------------------------------------------------------------


def _scores(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the score of each assistant with each user: of all conversations and, folded, of those
    where the user said all that is required."""
    all_talks = {}
    covered = {}
    for cell in found["cells"]:
        place = (cell["assistant"], cell["user"])
        measures = {one["name"]: one for one in cell["measures"]}
        all_talks[place] = _score(measures[SCORE])
        covered[place] = (_score(cell["covered"]), Small(f"n {cell['covered']['n']:,}"))
    yield from _matrix(all_talks, SCORE.capitalize())
    yield Group(list(_matrix(covered)), COVERED, look="fold")


def _score(one: Measured) -> Line:
    if not one["n"] and not one["missing"]:
        return NOTHING
    missing = f"{one['missing']:,} missing" if one["missing"] else ""
    return (measured(one, 1), Small(missing))


def _matrix(
    cells: Mapping[tuple[str, str], Line], title: str = "", note: str = ""
) -> Iterator[Table]:
    """Yield a table with a row for each assistant and a column for each user."""
    assistants = dict.fromkeys(assistant for assistant, _ in cells)
    users = dict.fromkeys(user for _, user in cells)
    rows: list[Row] = []
    for assistant in assistants:
        of_users = [cells.get((assistant, user), NOTHING) for user in users]
        rows.append((Quote(assistant, NAME), *of_users))
    head: Row = ("assistant", *(Quote(user, NAME) for user in users))
    if rows:
        yield Table(head, rows, "", title, note)


def _differences(found: Mapping[str, Any], key: str) -> Iterator[Block]:
    """Yield the differences in the score from the first one, with all of the others; and folded all
    differences."""
    first: list[Row] = []
    rows: list[Row] = []
    for one in found[key]:
        names = (Quote(one["a"], NAME), " − ", Quote(one["b"], NAME))
        is_score = one["measure"] == SCORE
        digits, unit = (1, "") if is_score else (2, one["unit"])
        apart = _estimate(one, unit, digits)
        tasks = plural(one["clusters"], "task")
        rows.append(
            (names, _listed(one["with"]), Quote(one["measure"], NAME), apart, tasks)
        )
        is_widest = one["with"] == found[key][0]["with"]
        if is_score and is_widest and one["a"] == found[key][0]["a"]:
            first.append((names, apart, tasks))
    if len(first) > 1 or (key == "users" and first):
        head = ("difference", "points", "of")
        yield Table(head, first, "", f"Between {key}")
    if rows:
        table = Table(("difference", "with", "measure", "", "of"), rows, "")
        yield Group([table], f"All differences between {key}", look="fold")


def _estimate(one: Mapping[str, Any], unit: str = "", digits: int = 1) -> Line:
    if one["value"] is None:
        return NOTHING
    ends = interval(one["low"], one["high"], digits)
    shown = f" {unit}" if unit and unit != "%" else ""
    return (Value(one["value"], digits), shown, ends)


def _costs(found: Mapping[str, Any]) -> Iterator[Table]:
    """Yield what it costs to be talked to, and what demands cost that are not in the task."""
    for key, title in (("single", COST), ("added", ADDED)):
        cells = {}
        for one in found[key]:
            cells[one["assistant"], one["user"]] = _estimate(one)
        yield from _matrix(cells, title)


def _human(found: Mapping[str, Any]) -> Iterator[Table]:
    rows: list[Row] = []
    for one in found["human"]:
        clusters = plural(one["clusters"], one["of"].removesuffix("s"))
        counted: list[Line] = [clusters]
        if one["n"] > one["clusters"]:
            counted.append(Small(f"{one['n']:,} scores"))
        if one["missing"]:
            counted.append(Small(f"{one['missing']:,} missing"))
        digits = 1 if one["measure"].startswith("mean") else 2
        name = Quote(one["measure"], NAME)
        estimate = _estimate(one, digits=digits)
        rows.append((Quote(one["user"], NAME), name, estimate, tuple(counted)))
    if rows:
        note = "Ranks agree from −1 to 1; errors are in points, simulated − human."
        head = ("user", "measure", "", "of")
        yield Table(head, rows, "", "Beside scores with people", note)


def _failure(found: Mapping[str, Any]) -> Iterator[Block]:
    rows: list[Row] = []
    for one in found["failure"]:
        if one["value"] is not None:
            rows.append(_within(one))
    if rows:
        head = ("assistant", "if the user …", "points", "conversations", "of")
        yield Table(head, rows, "", "What goes with failure", WITHIN)


SAID = {
    "intent coverage": "leaves out a required fact",
    f"intent coverage{catalog.JUDGED}": "leaves out a required fact, by a judge",
}


def _within(one: Within) -> Row:
    did = Quote(SAID.get(one["measure"], one["measure"]), NAME)
    share = f"{one['with']:,} of {one['of']:,}"
    tasks = plural(one["clusters"], "task")
    return (Quote(one["assistant"], NAME), did, _estimate(one), share, tasks)


def _worst(run: Finished) -> Iterator[Block]:
    if tasks := run.results["worst"]:
        names = list(dict.fromkeys(name for one in tasks for name in one["scores"]))
        heads: list[Line] = [Quote(name, NAME) for name in names]
        head: Row = ("task", *heads, "not solved in")
        rows = []
        places: list[Row] = []
        shown = {(talks.name, talk.id) for talks in run.talks for talk in talks.shown}
        for one in tasks:
            rows.append((*_worst_row(one, names), _conversations(shown, one["failed"])))
            for folder, own in _by_folder(one["failed"]).items():
                talks = _conversations(shown, own)
                places.append((Quote(one["task"], NAME), Quote(folder), talks))
        yield Table(head, rows[:OPEN], "", "The hardest tasks, with the score of each")
        path = Quote(f"{run.folder}/failed.jsonl")
        yield Text(("These conversations: ", path))
        more = [Table(head, rows[OPEN:], ""), Table(("task", "run", "in"), places, "")]
        yield Group(more, "More of these, and where they are", look="fold")


def _conversations(shown: set[tuple[str, str]], places: Sequence[Place]) -> Line:
    """Return the ids of conversations, with links to those that are shown, which are known by their
    run and id."""
    links = {}
    for place in places:
        name, id = Path(place["folder"]).name, place["id"]
        if (name, id) in shown:
            links[id] = Link(Quote(id, NAME), anchor(name, id))
    ids = dict.fromkeys(place["id"] for place in places)
    parts: list[Line] = [links.get(id) or Quote(id, NAME) for id in ids]
    spaced = [part for one in parts for part in (one, " ")]
    return tuple(spaced[:-1])


def _worst_row(one: WorstTask, names: Sequence[str]) -> Row:
    name: list[Line] = [Quote(one["task"], NAME)]
    if one["family"]:
        name.append(Small(Quote(one["family"], NAME)))
    scores: list[Line] = []
    for assistant in names:
        score = one["scores"].get(assistant)
        scores.append(NOTHING if score is None else Value(score, 0))
    return (tuple(name), *scores)


def _by_folder(failed: Sequence[Place]) -> dict[str, list[Place]]:
    """The conversations of each run."""
    places: dict[str, list[Place]] = {}
    for place in failed:
        places.setdefault(place["folder"], []).append(place)
    return places


def _spread(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yield where scores vary, and how many tasks it would take."""
    parts = ("task", "user", "both", "repeat")
    rows: list[Row] = []
    for one in found["variance"]:
        total = sum(one[part] or 0.0 for part in parts)
        if not total or sum(one[part] is not None for part in parts) == 1:
            continue  # with one user and no repeats, nothing is split
        cells: list[Line] = []
        for part in parts:
            is_known = one[part] is not None
            cells.append(Value(100 * one[part] / total, 0) if is_known else NOTHING)
        rows.append((Quote(one["assistant"], NAME), *cells))
    if rows:
        head = ("assistant", "task, %", "user, %", "user and task, %", "repeat, %")
        yield Table(head, rows, "", "Where scores vary", VARIES)
    if needed := found["needed"]:
        repeats = list(dict.fromkeys(one["repeats"] for one in needed))
        by_points: dict[int, list[Line]] = {}
        for one in needed:
            known = NOTHING if one["tasks"] is None else f"{one['tasks']:,}"
            by_points.setdefault(one["points"], []).append(known)
        counts = [(f"{points} points", *tasks) for points, tasks in by_points.items()]
        heads = ("to see", *(f"with {plural(one, 'repeat')}" for one in repeats))
        title = "Tasks that it takes to tell the first two apart"
        yield Table(heads, counts, "table", title, NEEDED)
