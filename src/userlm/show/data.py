"""The data report of `clean` and `intents`, as small tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from userlm.data.filters import FILTERS
from userlm.flip import samples
from userlm.show.blocks import Bar, Line, Quote, Row, Strip, Table
from userlm.show.formats import number, percent, plural, short_number
from userlm.show.results import Counts, Data, Lengths, NgramTable, People, Usage, Writer
from userlm.text import END_TOKEN
from userlm.types import Conversation

Ranking: TypeAlias = list[tuple[str, int]]

MAX_REASONS = 12
MAX_NAMES = 10  # languages, countries, models, writers


def by_count(counts: Iterable[tuple[str, int]]) -> Ranking:
    """Return the counts, the highest first."""
    return sorted(counts, key=lambda item: (-item[1], item[0]))


def first_ones(counts: Ranking, limit: int, others: str) -> Ranking:
    """Return the first `limit` counts and the sum of the rest, if the rest is more than one."""
    rest = counts[limit:]
    if len(rest) < 2:
        return counts
    return [*counts[:limit], (f"{len(rest)} {others}", sum(count for _, count in rest))]


def most_frequent(counts: Mapping[str, int]) -> Ranking:
    """Return the `MAX_NAMES` highest counts, the highest first, and the sum of the others."""
    return first_ones(by_count(counts.items()), MAX_NAMES, "others")


def dropped(counts: Counts) -> Ranking:
    """Return why conversations were dropped, and how many."""
    reasons = [item for item in counts.items() if item[0].startswith("dropped: ")]
    return by_count((name.removeprefix("dropped: "), count) for name, count in reasons)


def unscrubbed(counts: Counts) -> Line:
    """Return how many conversations of `clean` have what looks like personal data, and which kinds;
    empty if none has, or all was scrubbed."""
    name = "note: not scrubbed"
    if not counts.get(name):
        return ""
    kinds = []
    for kind, count in counts.items():
        if kind.startswith(f"{name}, "):
            kinds.append(f"{kind.removeprefix(f'{name}, ')} in {count:,}")
    found = plural(counts[name], "conversation")
    return (f"what looks like it in {found} (", Quote(", ".join(kinds)), ")")


def _survivors(counts: Counts) -> Table:
    """How many conversations each step of `clean` kept; all languages are one step."""
    incoming = counts.get("in", 0)
    by_step = Counter({each.name: 0 for each in FILTERS})
    for reason, count in dropped(counts):
        by_step[reason.partition(": ")[0]] += count
    steps = [(step, lost) for step, lost in by_step.items() if lost]
    left = incoming
    shown = [("in", 0, left)]
    for step, lost in first_ones(steps, MAX_REASONS, "more reasons"):
        left -= lost
        shown.append((step, lost, left))
    shown.append(("out", 0, counts.get("out", 0)))
    rows = []
    for step, lost, left in shown:
        cells = (f"{lost:,}" if lost else "", f"{left:,}", percent(left, incoming))
        rows.append((Quote(step), *cells))
    bars = [Bar(left, lost, incoming) for _, lost, left in shown]
    head = ("step", "dropped", "left", "of all")
    return Table(
        head, rows, "table survivors", "Survivors", drawings=bars, details=True
    )


def _splits(splits: Mapping[str, Counts]) -> Table:
    total: Counter[str] = Counter()
    for counts in splits.values():
        total.update(counts)
    rows: list[Row] = []
    for name, counts in {**splits, "all": total}.items():
        rows.append((Quote(name), *(f"{counts.get(what, 0):,}" for what in total)))
    note = (
        "Samples are what the user model learns from: one for each user turn, and one for the end "
        "where it was observed. `train` says how many of them --max-tokens leaves."
    )
    names = [Quote(what, 40) for what in total]
    return Table(("split", *names), rows, "table splits", "Splits, by person", note)


def _lengths(lengths: Lengths) -> Table:
    spreads = [spread for spread in lengths.values() if spread]
    # All rows have the same statistics.
    names = list(spreads[0]) if spreads else ["mean"]
    rows: list[Row] = []
    for what, spread in lengths.items():
        cells = ["none"] * len(names)
        if spread:
            cells = [short_number(value) for value in spread.values()]
        rows.append((Quote(what), *cells))
    note = (
        "The percentages are quantiles: 90 % of the values are not above the 90 % quantile. Words "
        "are separated by spaces."
    )
    quoted = [Quote(name, 40) for name in names]
    return Table(
        ("", *quoted),
        rows,
        "table lengths",
        "Lengths, in all splits",
        note,
        details=True,
    )


def _people(people: People) -> Table:
    note = (
        "If a log does not name the user, each conversation (or tree of conversations) counts as a "
        "separate person."
    )
    each = people["conversations a person"]
    if people["known"] and each:
        conversations = people["conversations of known people"]
        share = people["share of the heaviest 1 %"] or 0
        note = (
            f"Known people: {people['known']:,}, with {conversations:,} conversations: "
            f"{short_number(each['mean'])} each on average, {short_number(each['50 %'])} in the "
            f"median, {short_number(each['largest'])} at most. The most active 1 % of them have "
            f"{percent(share, 1)} of those. {note}"
        )
    return Table((), (), "table", "People", note, details=True)


def _ngram_table(table: NgramTable) -> Table:
    note = (
        f"First turns hold {table['n-grams']:,} n-grams; {table['counted one by one']:,} distinct "
        f"ones had to be counted one by one, with {table['bytes in memory'] / 1e6:,.1f} MB of "
        f"memory "
        f"and, meanwhile, {table['bytes on disk'] / 1e6:,.1f} MB on the disk."
    )
    return Table((), (), "table", "Template filter", note, details=True)


def _mix(what: str, found: Counts) -> Table:
    """The most frequent languages, countries or models."""
    total = sum(found.values())
    shown = most_frequent(found)
    largest = max((count for _, count in shown), default=0)
    rows = [(Quote(name), f"{count:,}", percent(count, total)) for name, count in shown]
    bars = [Bar(count, 0, largest) for _, count in shown]
    head = (what, "number", "of all")
    return Table(
        head, rows, "table mix", f"Conversations by {what}", drawings=bars, details=True
    )


def _writers(writers: Mapping[str, Writer]) -> Table:
    counts = {name: writer["n"] for name, writer in writers.items()}
    rows = []
    strips = []
    for name, n in most_frequent(counts):
        writer = writers.get(name)
        cells, strip = _leakage(writer) if writer else (("",) * 5, None)
        label = f"{name}, without a model" if name == "extractive" else name
        rows.append((Quote(label), f"{n:,}", *cells))
        strips.append(strip)
    title = (
        "Leakage of intents, by writer: the share of a first turn’s content words that its intent "
        "contains, from 0 to 1"
    )
    head = ("writer", "intents", "measured", "mean", "25 %", "50 %", "75 %")
    return Table(head, rows, "table writers", title, drawings=strips)


def _leakage(writer: Writer) -> tuple[Row, Strip | None]:
    mean = writer["leakage"]
    measured = f"{writer['measured']:,}"
    if mean is None or writer["quartiles"] is None:
        return (measured, "not measured", "", "", ""), None
    first, median, third = writer["quartiles"]
    shares = map(number, (mean, first, median, third))
    return (measured, *shares), Strip(mean, first, third, (0, 1), "circle")


def usage_table(models: Mapping[str, Usage]) -> Table:
    """Return what the calls of each model used, by its name."""
    rows: list[Row] = []
    for name, usage in models.items():
        cells = [f"{usage['calls']:,}"]
        for tokens in (usage["tokens_in"], usage["tokens_out"]):
            cells.append("not known" if tokens is None else f"{tokens:,}")
        cells.append("not known" if usage["cost"] is None else f"${usage['cost']:,.4f}")
        rows.append((Quote(name), *cells, f"{usage['possibly_billed']:,}"))
    note = (
        "Possibly billed are tries without a usable answer; the cost counts each of them at its "
        "maximum."
    )
    head = ("model", "calls", "tokens in", "tokens out", "cost", "possibly billed")
    return Table(head, rows, "table usage", "Calls", note)


def _faults(faults: Counts) -> Table:
    rows = [(Quote(name), f"{count:,}") for name, count in most_frequent(faults)]
    return Table(("fault", "times"), rows, "table", "Faults of calls")


TABLES: Sequence[tuple[str, Callable[[Any], Table]]] = (
    ("splits", _splits),
    ("lengths", _lengths),
    ("people", _people),
    ("ngram_table", _ngram_table),
    ("languages", partial(_mix, "language")),
    ("countries", partial(_mix, "country")),
    ("models", partial(_mix, "model")),
    ("writers", _writers),
    ("faults", _faults),
)
"""The key of the results for each table, in the order of the page."""


def tables(results: Data) -> Iterator[Table]:
    """Yield the tables of the keys that the results have."""
    if "splits" in results:
        yield _survivors(results.get("counts", {}))
    parts: Mapping[str, Any] = results
    for key, build in TABLES:
        if key in parts:
            yield build(parts[key])


def samples_table(conversation: Conversation) -> Table:
    """Return one conversation as the samples that a user model learns from."""
    system = conversation.system
    rows = [(Quote(system), "it is given as the system turn")] if system else []
    for sample in samples(conversation):
        given = ["the system turn"] if system else []
        if sample.context:
            given.append(plural(len(sample.context), "turn"))
        told = " and ".join(given) or "nothing"
        rows.append((Quote(sample.target or END_TOKEN), f"it says this, given {told}"))
    note = (
        "What a user model learns from one of the conversations; in the last sample the user ends "
        "it."
    )
    head = ("turn", "of the user model")
    return Table(
        head, rows, "table samples", "A conversation as samples", note, details=True
    )
