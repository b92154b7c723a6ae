"""What `clean` and `intents` report of the data, as small tables.

Each function gets the results of a run and raises what `checks.checked` raises if they are damaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypedDict

from userlm.flip import samples
from userlm.show.blocks import Bar, Counts, Line, Quote, Strip, Table
from userlm.show.checks import Share, checked
from userlm.show.formats import number, percent, plural, short_number
from userlm.text import END_TOKEN
from userlm.types import Conversation

MAX_REASONS = 12
MAX_NAMES = 10  # languages, countries, models, writers
STEPS = ("language", "toxic", "redacted", "template prompt", "duplicate", "near-duplicate")
"""The order in which `clean` looks for reasons; the first one found drops a conversation."""

Results = Mapping[str, Any]
Row = tuple[Line, ...]


def by_count(counts: Iterable[tuple[str, int]]) -> Counts:
    """Return the counts, the highest first."""
    return tuple(sorted(counts, key=lambda item: (-item[1], item[0])))


def first_ones(counts: Counts, limit: int, others: str) -> Counts:
    """Return the first `limit` counts and the sum of the rest, if the rest is more than one."""
    rest = counts[limit:]
    if len(rest) < 2:
        return counts
    return (*counts[:limit], (f"{len(rest)} {others}", sum(count for _, count in rest)))


def dropped(counts: Mapping[str, int]) -> Counts:
    """Return why conversations were dropped, and how many."""
    prefix = "dropped: "
    reasons = [name for name in counts if name.startswith(prefix)]
    return by_count((name.removeprefix(prefix), counts[name]) for name in reasons)


def _survivors(results: Results) -> Table:
    """What each step of `clean` left; all languages are one step."""
    counts = results["counts"]
    incoming = counts.get("in", 0)
    outgoing = counts.get("out", 0)
    by_step: Counter[str] = Counter()
    for reason, count in dropped(counts):
        by_step[reason.split(": ")[0]] += count
    known = tuple((step, by_step.pop(step)) for step in STEPS if step in by_step)
    steps = first_ones((*known, *by_count(by_step.items())), MAX_REASONS, "more reasons")

    left = incoming
    rows: list[Row] = [(Quote("in"), "", f"{incoming:,}", percent(incoming, incoming))]
    bars = [Bar(incoming, 0, incoming)]
    for step, lost in steps:
        left -= lost
        rows.append((Quote(step), f"{lost:,}", f"{left:,}", percent(left, incoming)))
        bars.append(Bar(left, lost, incoming))
    rows.append((Quote("out"), "", f"{outgoing:,}", percent(outgoing, incoming)))
    bars.append(Bar(outgoing, 0, incoming))
    return Table(
        title="Survivors",
        head=("step", "dropped", "left", "of all"),
        rows=tuple(rows),
        drawings=tuple(bars),
        look="table survivors",
    )


def _splits(results: Results) -> Table:
    splits: dict[str, dict[str, int]] = checked(results["splits"], dict[str, dict[str, int]])
    everything: Counter[str] = Counter()
    for counts in splits.values():
        everything.update(counts)
    rows: list[Row] = []
    for name, counts in (*splits.items(), ("all", everything)):
        cells = [f"{counts.get(what, 0):,}" for what in everything]
        rows.append((Quote(name), *cells))
    return Table(
        title="Splits, by person",
        head=("split", *(Quote(what, 40) for what in everything)),
        rows=tuple(rows),
        note="Samples are what the user model learns from: one for each user turn, and one for "
        "the end where it was observed.",
        look="table splits",
    )


def _lengths(results: Results) -> Table:
    kind = dict[str, dict[str, float] | None]
    lengths: dict[str, dict[str, float] | None] = checked(results["lengths"], kind)
    names = dict.fromkeys(name for spread in lengths.values() if spread for name in spread)
    head = tuple(names) or ("mean",)
    rows: list[Row] = []
    for what, spread in lengths.items():
        cells = [short_number(spread[name]) if spread else "none" for name in head]
        rows.append((Quote(what), *cells))
    return Table(
        title="Lengths, in all splits",
        head=("", *(Quote(name, 40) for name in head)),
        rows=tuple(rows),
        note="The percentages are quantiles: 90 % of the values are not above the 90 % quantile. "
        "Words are separated by spaces.",
        look="table lengths",
    )


People = TypedDict(
    "People",
    {
        "known": int,
        "conversations of known people": int,
        "conversations a person": dict[str, float] | None,
        "share of the heaviest 1 %": Share | None,
    },
)


def _people(results: Results) -> Table:
    people: People = checked(results["people"], People)
    note = (
        "Where a log does not say who speaks, each conversation, or tree of conversations, counts "
        "as a person of its own."
    )
    if people["known"]:
        conversations = people["conversations of known people"]
        each: dict[str, float] = checked(people["conversations a person"], dict[str, float])
        share: float = checked(people["share of the heaviest 1 %"], Share)
        mean, median, largest = (short_number(each[name]) for name in ("mean", "50 %", "largest"))
        note = (
            f"Known people: {people['known']:,}, with {conversations:,} conversations: {mean} each "
            f"on average, {median} in the median, {largest} at most. The heaviest 1 % of them have "
            f"{percent(share, 1)} of those. {note}"
        )
    return Table(title="People", note=note, look="table")


NgramTable = TypedDict(
    "NgramTable",
    {"n-grams": int, "counted one by one": int, "bytes on disk": int, "bytes in memory": int},
)


def _ngram_table(results: Results) -> Table:
    table: NgramTable = checked(results["ngram_table"], NgramTable)
    memory = table["bytes in memory"] / 1e6
    disk = table["bytes on disk"] / 1e6
    note = (
        f"First turns hold {table['n-grams']:,} n-grams; {table['counted one by one']:,} different "
        f"ones had to be counted one by one, in {memory:,.1f} MB of memory and, meanwhile, "
        f"{disk:,.1f} MB on the disk."
    )
    return Table(title="Template filter", note=note, look="table")


def _mix(key: str, what: str, results: Results) -> Table:
    """The most frequent languages, countries or models."""
    found: dict[str, int] = checked(results[key], dict[str, int])
    total = sum(found.values())
    shown = first_ones(by_count(found.items()), MAX_NAMES, "others")
    largest = max((count for _, count in shown), default=0)
    return Table(
        title=f"Conversations by {what}",
        head=(what, "number", "of all"),
        rows=tuple((Quote(name), f"{count:,}", percent(count, total)) for name, count in shown),
        drawings=tuple(Bar(count, 0, largest) for _, count in shown),
        look="table mix",
    )


class Writer(TypedDict):
    """The intents of one writer, and how much of a first turn they give away."""

    n: int
    measured: int
    leakage: Share | None
    quartiles: list[Share] | None


def _writers(results: Results) -> Table:
    writers: dict[str, Writer] = checked(results["writers"], dict[str, Writer])
    counts = by_count((name, writer["n"]) for name, writer in writers.items())
    rows: list[Row] = []
    strips: list[Strip | None] = []
    for name, n in first_ones(counts, MAX_NAMES, "others"):
        cells, strip = _leakage(writers[name]) if name in writers else (("",) * 5, None)
        label = f"{name}, without a model" if name == "extractive" else name
        rows.append((Quote(label), f"{n:,}", *cells))
        strips.append(strip)
    return Table(
        title="Leakage of intents, by writer",
        head=("writer", "intents", "measured", "mean", "25 %", "50 %", "75 %"),
        rows=tuple(rows),
        note="Leakage is the share of a first turn’s content words that its intent gives away: 0 "
        "is none, 1 all.",
        drawings=tuple(strips),
        look="table writers",
    )


def _leakage(writer: Writer) -> tuple[Row, Strip | None]:
    mean = writer["leakage"]
    measured = f"{writer['measured']:,}"
    if mean is None:
        return (measured, "not measured", "", "", ""), None
    first, median, third = checked(writer["quartiles"], list[Share])
    shares = [number(share) for share in (mean, first, median, third)]
    return (measured, *shares), Strip(mean, first, third, (0, 1), "circle")


class Usage(TypedDict):
    """What the calls to a writer took."""

    calls: int
    possibly_billed: int
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None


def _usage(results: Results) -> Table:
    usage: Usage = checked(results["usage"], Usage)

    def known(value: float | None, form: str) -> str:
        return "not known" if value is None else form.format(value)

    cells = (
        f"{usage['calls']:,}",
        known(usage["tokens_in"], "{:,}"),
        known(usage["tokens_out"], "{:,}"),
        known(usage["cost"], "${:,.4f}"),
        f"{usage['possibly_billed']:,}",
    )
    return Table(
        title="Calls",
        head=("model", "calls", "tokens in", "tokens out", "cost", "possibly billed"),
        rows=((Quote(str(results["model"])), *cells),),
        note="Possibly billed are tries without a usable answer; the cost counts each of them at "
        "the most that it can have cost.",
        look="table usage",
    )


def _faults(results: Results) -> Table:
    faults: dict[str, int] = checked(results["faults"], dict[str, int])
    shown = first_ones(by_count(faults.items()), MAX_NAMES, "others")
    rows = tuple((Quote(name), f"{count:,}") for name, count in shown)
    return Table(title="Faults of calls", head=("fault", "times"), rows=rows, look="table")


TABLES: tuple[tuple[str, Callable[[Results], Table]], ...] = (
    ("splits", _survivors),
    ("splits", _splits),
    ("lengths", _lengths),
    ("people", _people),
    ("ngram_table", _ngram_table),
    ("languages", partial(_mix, "languages", "language")),
    ("countries", partial(_mix, "countries", "country")),
    ("models", partial(_mix, "models", "model")),
    ("writers", _writers),
    ("usage", _usage),
    ("faults", _faults),
)
"""Which key of the results is shown as which table, in the order of the page."""


def samples_table(conversation: Conversation) -> Table:
    """Return one conversation as the samples that a user model learns from."""
    rows: list[Row] = []
    if conversation.system:
        rows.append((Quote(conversation.system), "it is given as the system turn"))
    for sample in samples(conversation):
        given = ["the system turn"] if conversation.system else []
        if sample.context:
            given.append(plural(len(sample.context), "turn"))
        told = " and ".join(given) or "nothing"
        rows.append((Quote(sample.target or END_TOKEN), f"it says this, given {told}"))
    return Table(
        title="A conversation as samples",
        head=("turn", "of the user model"),
        rows=tuple(rows),
        note="What a user model learns from one of the conversations; in the last sample the user "
        "ends it.",
        look="table samples",
    )
