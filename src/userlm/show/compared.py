"""Which assistant is better, and why: what `compare` found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from userlm.metrics import catalog
from userlm.show.blocks import (
    Block,
    Group,
    Line,
    Quote,
    Row,
    Section,
    Small,
    Table,
    Text,
    Transcripts,
    Value,
    interval,
)
from userlm.show.finished import Finished
from userlm.show.formats import number, plural
from userlm.show.measures import measured
from userlm.show.results import Difference, Measured, Place, Within, WorstTask
from userlm.show.transcripts import transcript

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
COST = "How many points less is solved in conversations than when all is said at once."
VARIES = (
    "Shares of the variance of one conversation’s result: which task it is, which user, how this "
    "user does on this task, and the repeat."
)
NEEDED = "So many tasks show a difference of so many points in 4 of 5 runs."


def section(runs: Sequence[Finished]) -> Section:
    """Return the section that says which assistant is better."""
    groups = []
    for run in runs:
        if run.verb == "compare":
            groups.append(Group(list(_blocks(run)), Quote(run.name, NAME)))
    title = "Which assistant is better?"
    return Section("compared", "Comparison", title, groups)


def failed(runs: Sequence[Finished]) -> Section:
    """Return the section with conversations in which the worst tasks were not solved."""
    groups = []
    for run in runs:
        if run.verb == "compare" and run.transcripts:
            shown = [transcript(talk, run) for talk in run.transcripts]
            path = f"{run.folder}/failed.jsonl"
            talks = Transcripts(shown, run.total, path)
            groups.append(Group([talks], Quote(run.name, NAME)))
    title = "Where conversations went wrong"
    return Section("failed", title, title, groups, search=True, where="details")


def _blocks(run: Finished) -> Iterator[Block]:
    found = run.results
    answer = _answer(found)
    yield Text(answer, "answer")
    yield Text(PAIRED)
    yield from _scores(found)
    yield from _differences(found, "assistants", "Between assistants")
    if found["users"]:
        yield from _differences(found, "users", "Between users")
        if not found["human"]:
            yield Text(LOWER)
    yield from _single(found)
    yield from _human(found)
    yield from _failure(found)
    yield from _worst(found)
    yield from _spread(found)


# --- the first sentence ---------------------------------------------------------------------------


def _answer(found: Mapping[str, Any]) -> Line:
    """Say which of the first two assistants is better or, if there is but one, with which user it
    solves more."""
    of_score = [one for one in found["assistants"] if one["measure"] == SCORE]
    if of_score:
        first = of_score[0]
        users: Line = (" with these users (", _listed(first["with"]), "; ")
        return (*_better(first), users, _sizes(found), ")", _unpaired(first), ".")
    of_score = [one for one in found["users"] if one["measure"] == SCORE]
    if not of_score:
        return "No two runs have the same user or the same assistant."
    first = of_score[0]
    a, b = Quote(first["a"], NAME), Quote(first["b"], NAME)
    value = first["value"] or 0.0
    more = "more" if value > 0 else "less"
    start: Line = ("With ", a, ", ", _listed(first["with"]), " solves ")
    points = f"{number(abs(value), 1)} points{_ends(first, value < 0)} {more} than "
    return (start, points, "with ", b, f" ({_sizes(found)})", _unpaired(first), ".")


def _better(one: Difference) -> Sequence[Line]:
    value, low, high = one["value"], one["low"], one["high"]
    a, b = Quote(one["a"], NAME), Quote(one["b"], NAME)
    if value is None:
        return ("Whether ", a, " or ", b, " is better could not be measured")
    is_less = value < 0
    if is_less:
        a, b = b, a
    points = f"{number(abs(value), 1)} points{_ends(one, is_less)}"
    if low is None or high is None:
        return (a, " solves ", points, " more than ", b, ", too few tasks to be sure,")
    if low <= 0 <= high:
        return (
            a,
            " and ",
            b,
            " cannot be told apart: the first solves ",
            points,
            " more",
        )
    return (a, " is better than ", b, f" by {points}")


def _ends(one: Difference, is_turned: bool) -> str:
    low, high = one["low"], one["high"]
    if low is None or high is None:
        return ""
    if is_turned:
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


def _scores(found: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the score of each assistant with each user, of all conversations and of those where the
    user said all that is required."""
    assistants = dict.fromkeys(cell["assistant"] for cell in found["cells"])
    users = dict.fromkeys(cell["user"] for cell in found["cells"])
    all_talks = {}
    covered = {}
    for cell in found["cells"]:
        place = (cell["assistant"], cell["user"])
        measures = {one["name"]: one for one in cell["measures"]}
        all_talks[place] = measures[SCORE]
        covered[place] = cell["covered"]
    head: Row = ("assistant", *(Quote(user, NAME) for user in users))
    for title, scores in ((SCORE.capitalize(), all_talks), (COVERED, covered)):
        rows: list[Row] = []
        for assistant in assistants:
            cells = [_score(scores.get((assistant, user))) for user in users]
            rows.append((Quote(assistant, NAME), *cells))
        yield Table(head, rows, "", title)


def _score(one: Measured | None) -> Line:
    if one is None or one["value"] is None:
        return NOTHING
    counted = f"n {one['n']:,}"
    if one["missing"]:
        counted += f", {one['missing']:,} missing"
    return (measured(one, 1), Small(counted))


def _differences(found: Mapping[str, Any], key: str, title: str) -> Iterator[Block]:
    """Yield the differences in the score from the first one; the others, those with one user (or
    assistant) alone and those in other measures are folded."""
    scores: list[Row] = []
    others: list[Row] = []
    widest: dict[tuple[str, str], int] = {}
    for one in found[key]:
        pair = (one["a"], one["b"])
        widest.setdefault(pair, len(one["with"]))
        names = (Quote(one["a"], NAME), " − ", Quote(one["b"], NAME))
        beside = (names, _listed(one["with"]))
        tasks = plural(one["clusters"], "task")
        is_score = one["measure"] == SCORE
        if (
            is_score
            and one["a"] == found[key][0]["a"]
            and len(one["with"]) == widest[pair]
        ):
            scores.append((*beside, _estimate(one), tasks))
        else:
            unit = "" if is_score else one["unit"]
            apart = _estimate(one, unit, 1 if is_score else 2)
            others.append((*beside, Quote(one["measure"], NAME), apart, tasks))
    if scores:
        yield Table(("difference", "with", "points", "of"), scores, "", title)
    if others:
        table = Table(("difference", "with", "measure", "", "of"), others, "")
        yield Group([table], f"{title}: all differences", look="fold")


def _estimate(one: Mapping[str, Any], unit: str = "", digits: int = 1) -> Line:
    if one["value"] is None:
        return NOTHING
    ends = interval(one["low"], one["high"], digits)
    shown = f" {unit}" if unit and unit != "%" else ""
    return (Value(one["value"], digits), shown, ends)


def _single(found: Mapping[str, Any]) -> Iterator[Table]:
    rows: list[Row] = []
    for one in found["single"]:
        names = (Quote(one["assistant"], NAME), Quote(one["user"], NAME))
        rows.append((*names, measured(one["single"], 1), _estimate(one)))
    if rows:
        head = ("assistant", "user", "single prompt", "lost, points")
        title = "The cost of being talked to"
        yield Table(head, rows, "", title, COST)


def _human(found: Mapping[str, Any]) -> Iterator[Table]:
    rows: list[Row] = []
    for one in found["human"]:
        counted: list[Line] = [f"{one['n']:,} {one['of']}"]
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
    did = SAID.get(one["measure"]) or Quote(one["measure"], NAME)
    share = f"{one['with']:,} of {one['of']:,}"
    tasks = plural(one["clusters"], "task")
    return (Quote(one["assistant"], NAME), did, _estimate(one), share, tasks)


def _worst(found: Mapping[str, Any]) -> Iterator[Block]:
    if tasks := found["worst"]:
        names = list(dict.fromkeys(name for one in tasks for name in one["scores"]))
        heads: list[Line] = [Quote(name, NAME) for name in names]
        head: Row = ("task", *heads, "not solved in")
        rows = [_worst_row(one, names) for one in tasks]
        yield Table(head, rows[:OPEN], "", "The hardest tasks, with the score of each")
        if rows[OPEN:]:
            yield Group([Table(head, rows[OPEN:], "")], "More of these", look="fold")


def _worst_row(one: WorstTask, names: Sequence[str]) -> Row:
    name: list[Line] = [Quote(one["task"], NAME)]
    if one["family"]:
        name.append(Small(Quote(one["family"], NAME)))
    scores: list[Line] = []
    for assistant in names:
        score = one["scores"].get(assistant)
        scores.append(NOTHING if score is None else Value(score, 0))
    return (tuple(name), *scores, Quote(", ".join(_places(one["failed"])), 600))


def _places(failed: Sequence[Place]) -> Iterator[str]:
    """Yield each run once, with the ids of its conversations."""
    ids: dict[str, list[str]] = {}
    for place in failed:
        ids.setdefault(place["folder"], []).append(place["id"])
    for folder, own in ids.items():
        yield f"{folder}: {' '.join(own)}"


def _spread(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yield where scores vary, and how many tasks it would take."""
    parts = ("task", "user", "both", "repeat")
    rows: list[Row] = []
    for one in found["variance"]:
        total = sum(one[part] or 0.0 for part in parts)
        if not total:
            continue
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
        heads = ("to see", *(f"tasks × {repeat}" for repeat in repeats))
        title = "How many tasks it takes to tell the first two apart"
        yield Table(heads, counts, "table", title, NEEDED)
