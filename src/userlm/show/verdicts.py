"""The verdict on a user: sentences on how it is like people, and its row in the paper's table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from userlm.metrics import catalog
from userlm.metrics.verdict import WIDE, Conclusion, Finding, conclude, in_words
from userlm.show.blocks import (
    MISSING,
    Block,
    Group,
    Line,
    Quote,
    Row,
    Section,
    Small,
    Table,
    Text,
    Value,
    interval,
)
from userlm.show.data import dropped
from userlm.show.finished import STAGES, Finished
from userlm.show.formats import called, plural
from userlm.show.published import MEASURES, NOT_ASKED, NOTE, ROWS
from userlm.show.results import Measured

OPEN = 3
"""How many of the largest differences are shown at once, so that the verdict fits on a screen."""
KINDS = {"bad": "not like people", "good": "like people", "unknown": "undecided"}
LOOKS = {"bad": "c1", "good": "c2", "unknown": "human"}
SHAPES = {"bad": "circle", "good": "diamond", "unknown": "square"}
"""Name, colour and shape of each kind of finding."""

PLACE = "It was put in a person's place at every turn of"
TOLD = ", and told in a sentence what they wanted, the intent. "
INCOMPLETE = (
    " is incomplete: some of it ended in an error, or was not begun because of a limit, and counts "
    "as missing; the same command tries it again, with a higher limit if that was the reason."
)
LIKE = f"Like people (the interval holds 0, not {WIDE:.0f} points), or better: "
OPTION = re.compile(r"((?:userlm \w+ )?--[^,;)]+)")
"""What is to be typed, in a remedy."""
REST = "No option mends {}; another user, or one trained on these people, may."


def sentences(runs: Sequence[Finished]) -> Iterator[Block]:
    """Yield whether the users of `assess` runs are good enough, and why."""
    for run in runs:
        if run.verb == "assess":
            title = ("Is ", Quote(called(user_of(run)), 60), " good enough?")
            yield Group(list(_verdict(run)), title)


def section(runs: Sequence[Finished]) -> Section:
    """Return the section with what each measure of a user says, in words."""
    groups = []
    for run in runs:
        if run.verb == "assess" and (found := concluded(run).findings):
            head = ("measure", "is", "what was found")
            table = Table(head, list(_rows(found)), "findings")
            groups.append(Group([table], Quote(user_of(run), 60), look="fold"))
    title = "All measures in words"
    return Section("verdict", "In words", title, groups, where="details")


def user_of(run: Finished) -> str:
    """Return the address of the user of an assessment."""
    return str(run.options.get("user"))


def concluded(run: Finished) -> Conclusion:
    """Return what an assessment says; older results get the same sentences as new ones."""
    return conclude(run.results, run.options)


def _verdict(run: Finished) -> Iterator[Block]:
    conclusion = concluded(run)
    yield Text(conclusion.answer, "answer")
    counts = run.results["counts"]
    people = plural(counts.get("out", 0), "real conversation")
    why = "; ".join(f"{why}, {count:,}" for why, count in dropped(counts))
    left_out: Line = ""
    if why:
        left_out = (f" ({counts['in']:,} were read; left out: ", Quote(why, 400), ")")
    yield Text((f"{PLACE} {people}", left_out, TOLD, conclusion.chance))
    bad = conclusion.of_kind("bad")
    if bad:
        yield Text(
            "Not like people (the interval leaves out 0), the largest difference first:",
            "lead",
        )
    for i, one in enumerate(bad[:OPEN], 1):
        yield _sentence(i, one)
    if more := bad[OPEN:]:
        yield Text(f"Also: {', '.join(map(_claim, more))}.", "finding")
    yield from mends(bad)
    if good := conclusion.of_kind("good"):
        yield Text((LIKE, _names(good), "."), "finding")
    if unknown := conclusion.of_kind("unknown"):
        line = (
            "Undecided: ",
            _names(unknown),
            ".",
            _needed(unknown),
        )
        yield Text(line, "finding")
    if conclusion.talks:
        yield Text(conclusion.talks, "finding")
    for stage, why in run.results["failed"].items():
        yield Text((Quote(stage, 60), " failed: ", Quote(why, 400), "."))
    for stage in run.results["incomplete"]:
        what = f" ({STAGES[stage]})" if stage in STAGES else ""
        yield Text((Quote(stage, 60), what, INCOMPLETE))


def _sentence(number: int, finding: Finding) -> Text:
    parts: list[Line] = [f"{number}. {finding.sentence}."]
    if finding.told_by:
        ngrams = " ".join(f"“{shown_ngram(text)}”" for text in finding.told_by)
        parts += [
            " Characters that give it away (␣ is a space): ",
            Quote(ngrams, 200),
            ".",
        ]
    parts.append(Small(Quote(finding.measure, 60)))
    return Text(tuple(parts), "finding")


def _claim(finding: Finding) -> str:
    """Return what a sentence says, without its numbers."""
    claim = finding.sentence.partition(":")[0]
    return claim[0].lower() + claim[1:]


def mends(findings: Sequence[Finding]) -> Iterator[Text]:
    """Yield each known remedy once, with what it is for, and that the rest has none."""
    claims: dict[str, list[str]] = {}
    for one in findings:
        if one.mend:
            claims.setdefault(one.mend, []).append(_claim(one))
    for mend in sorted(claims, key=lambda mend: not OPTION.search(mend)):
        before = f"To mend that {' and that '.join(claims[mend])}: "
        run_it = "run it with " if mend.startswith("--") else ""
        parts: list[Line] = list(OPTION.split(mend))
        parts[1::2] = [Quote(option, 100, "mend") for option in OPTION.findall(mend)]
        yield Text((before, run_it, *parts, "."), "finding")
    if any(not one.mend for one in findings):
        yield Text(REST.format("the rest" if claims else "this"), "finding")


def shown_ngram(text: str) -> str:
    """Return an n-gram with its spaces visible."""
    return text.replace(" ", "␣")


def _names(findings: Sequence[Finding]) -> Quote:
    return Quote(", ".join(in_words(one.measure) for one in findings), 2000)


def _needed(findings: Sequence[Finding]) -> str:
    """Say how many people would decide what is unknown: the first of it, and all."""
    needed = []
    for one in findings:
        if one.needed and one.clusters == "people":
            needed.append(one.needed)
    if not needed:
        return ""
    least, most = min(needed), max(needed)
    if least == most:
        return f" Deciding it takes at least {most:,} people."
    return f" Deciding it takes at least {least:,} people, all of it {most:,}."


def _rows(findings: Sequence[Finding]) -> Iterator[Row]:
    for one in findings:
        why: list[Line] = []
        if one.mend and one.kind != "bad":
            why.append(f"; {one.mend}")
        if one.needed:
            why.append(f"; at least {one.needed:,} {one.clusters} would be needed")
        if one.why:
            why += ["; ", Quote(one.why, 200)]
        plain = Quote(in_words(one.measure), 60)
        about = (Quote(one.measure, 60), ": ", catalog.about(one.measure))
        yield (plain, Small(about)), KINDS[one.kind], (one.sentence, *why)


# --- the paper's table ----------------------------------------------------------------------------


def published(runs: Sequence[Finished]) -> Section:
    """Return the section with the paper's table, and a row of each user and of the people here."""
    rows: list[Row] = []
    for one in ROWS:
        cells: list[Line] = []
        for name, figure in zip(MEASURES, one.figures, strict=True):
            is_given = name in one.not_asked
            note = Small(NOT_ASKED) if is_given else ""
            cells.append("–" if figure is None else (Value(figure, 1), note))
        rows.append(((one.name, Small("published")), *cells))
    own = []
    for run in runs:
        if run.verb == "assess":
            own += list(_own_rows(run))
    blocks = [Table(("", *MEASURES), [*rows, *own], "fixed measures", note=NOTE)]
    title = "Beside the users and people of the paper “Flipping the Dialogue”"
    return Section(
        "published", "The paper", title, blocks if own else [], where="details"
    )


def _own_rows(run: Finished) -> Iterator[Row]:
    for side, label in (("user", user_of(run)), ("human", "people of these logs")):
        found: dict[str, Measured] = {}
        for compared in run.results["measures"].values():
            for one in compared:
                if one[side]:
                    found.setdefault(one["user"]["name"], one[side])
        absent = MISSING if side == "user" else "–"
        cells = [_cell(found.get(name), absent) for name in MEASURES]
        yield (Quote(label, 40, "c0" if side == "user" else "human"), *cells)


def _cell(one: Measured | None, absent: str) -> Line:
    if one is None:
        return absent
    if one["value"] is None:
        return MISSING
    return (Value(one["value"], 1), interval(one["low"], one["high"], 1))
