"""Finished run folders as one page: `html` for a browser, `markdown` for a diff or a mail.

`userlm report` writes what these functions give. They read run.json, results.json and the line
files beside them, and change nothing. The same folders give the same page, byte for byte: there is
no clock in it.

What people and models said is hostile here. It is escaped wherever it stands; characters that turn
the direction of a line around or cannot be seen are shown by their number; each turn is a direction
of its own; a long one is cut. The page may load nothing and run nothing but its own few lines (see
its Content-Security-Policy).
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from userlm.flip import samples
from userlm.metrics.termination import (
    RULES,
    Bin,
    EndCalibration,
    EndRule,
    ThresholdSweep,
    format_threshold,
)
from userlm.rows import SPLITS, from_record, read_json, read_rows
from userlm.text import END_TOKEN, intent_goal, words
from userlm.types import FAILED, STOPS, Conversation, InputError

T = TypeVar("T")

SHOWN = 20
"""Transcripts of a run that the page shows; the Markdown shows `SHOWN_MARKDOWN`."""
SHOWN_MARKDOWN = 3
FIRST, MOST = 2_000, 20_000
"""Characters of a turn: so many stand open, so many are in the page; the rest stays in the run
folder."""
REASONS, NAMES, NAME = 12, 10, 160
"""Reasons that a table lists before it sums up the rest; languages, countries, models and writers;
characters of a name."""
POINTS = 240
"""Points of a curve; a longer log is averaged down to as many."""

TURN_BINS = (*map(str, range(10)), "10+")
WORD_BINS = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128–255", "256+")
HUMAN = "human"
STEPS = ("language", "toxic", "redacted", "template prompt", "duplicate", "near-duplicate")
"""The order in which `clean` asks for reasons: a conversation goes by the first that it gives."""

STOP_WORDS = {
    "end": "the user left",
    "max_turns": "the cap on user turns",
    "context": "no longer fits the model",
    "guard": "no acceptable draft",
    "error": "a model could not answer",
    "solved": "the task was done",
    "answered": "the user said something",
}
NOTES = {
    "perplexity": "Of real user turns under the model, by token. Compares only models with one "
    "tokenizer.",
    "bits per byte": "The same surprise by byte of text, so that it compares models with any "
    "tokenizer.",
    "perplexity ratio": "What knowing the intent does, on the same turns: below 1 it helps. "
    "Somebody else's "
    "intent is the control.",
    "human goals: perplexity "
    "ratio": "The same where people wrote down their goals themselves: no intent was "
    "drawn from the words to predict.",
    "first-turn diversity": "How different the first turns are: mean Jaccard distance of their "
    "words.",
    "intent decomposition": "Share of a turn’s content words that are the intent’s own wording.",
    "words per turn": "Mean length of a user turn.",
    "turns per conversation": "Mean number of user turns; one that came to the cap counts with "
    "the cap.",
    "termination F1": "Leaving when the person left, and only then, on prefixes of real "
    "conversations.",
    "termination AUROC": "How well P(end) tells real endings from other turns; 0.5 is chance.",
    "intent coverage": "Share of the required facts that the user said (matched by words, without "
    "a judge).",
    "assistant score": "Share of the conversations in which the assistant solved the task.",
}
MEASURES = (
    "perplexity",
    "bits per byte",
    "perplexity ratio",
    "human goals: perplexity ratio",
    "termination F1",
    "termination AUROC",
    "first-turn diversity",
    "intent decomposition",
    "intent coverage",
    "assistant score",
    "turns per conversation",
    "words per turn",
)  # the order in which they are shown; others come after


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A measure as `results.json` holds it; see `types.Measure`."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int
    better: str
    unit: str
    why: str = ""


@dataclass(frozen=True)
class Missing:
    """So many items of a measure could not be measured, for one reason."""

    column: str
    measure: str
    why: str
    count: int


@dataclass(frozen=True)
class Spread:
    """How many conversations fall into each of `TURN_BINS`, and user turns into each of
    `WORD_BINS`."""

    turns: tuple[int, ...]
    words: tuple[int, ...]
    failed: int = 0  # conversations without a known length


Counts = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Stage:
    """What came into a stage, what went out, what was dropped and why, and what else it counted."""

    unit: str
    came: int | None
    went: int | None
    dropped: int
    reasons: Counts
    notes: Counts


@dataclass(frozen=True)
class Resampled:
    """How often a guard stepped in, as `guard.rates` counts it."""

    turns: int
    drafts: int
    resampled: int
    kept: int
    stopped: int
    why: Counts


Entry = tuple[str, Markup, tuple[str, ...]]


@dataclass(frozen=True)
class Sheet:
    """A small table of the data report, or a sentence of it, or both.

    Attributes:
        kind: its place on the page.
        head: of the columns; the first heads the names.
        rows: a name, a drawing or nothing, and a figure for each other column.
        note: what stands below, in our words.
    """

    kind: str
    title: str
    head: tuple[str, ...] = ()
    rows: tuple[Entry, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Finished:
    """A run that is complete, as much of it as the page shows.

    Attributes:
        name: of its folder; it heads columns and sections.
        columns: measures by column: the runs that were scored, or with and without intent.
        log: step and loss of a training run.
        transcripts: the first `SHOWN` conversations of a simulation.
        total: how many it holds.
        spread: lengths of what its users said; of people, for the data stages.
        stubs: what in it is only a stand-in for a model.
        endings: by column, how the endings of a user can be tuned, and what to know of the run.
        resampled: what a guard did in it.
        stage: what data went through in it.
        sheets: what `clean` and `intents` say of the data.
    """

    name: str
    folder: Path
    verb: str
    manifest: Mapping[str, Any]
    results: Mapping[str, Any]
    columns: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()
    endings: Mapping[str, tuple[EndCalibration, str]] = field(default_factory=dict)
    resampled: Resampled | None = None
    log: tuple[tuple[int, float], ...] = ()
    transcripts: tuple[Conversation, ...] = ()
    total: int = 0
    spread: Spread | None = None
    stubs: tuple[str, ...] = ()
    stage: Stage | None = None
    sheets: tuple[Sheet, ...] = ()

    @property
    def of_people(self) -> bool:
        """Whether the conversations in it are logs."""
        return self.verb in ("clean", "intents")


def read_run(folder: str | Path) -> Finished:
    """What the page needs of a finished run; line files are read as streams.

    Raises:
        InputError: for a folder that is no finished run, or a file in it that is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder; give the folders of finished runs, such as runs/score"
        )
    if not (folder / "run.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/run.json"))
        hint = (
            f"give those in it, such as {folder / inside[0]}"
            if inside
            else "give the folder of a run"
        )
        raise InputError(f"{folder} holds no run.json, so it is no run; {hint}")
    manifest = read_json(folder / "run.json")
    if not isinstance(manifest.get("options", {}), dict):
        raise InputError(f"{folder / 'run.json'}: 'options' is damaged; leave the folder out")
    if not (folder / "results.json").is_file():
        verb = manifest.get("verb")
        raise InputError(
            f"{folder} is not finished; run its command again (userlm {verb}), or leave it out"
        )
    results = read_json(folder / "results.json")
    verb = str(manifest.get("verb"))
    run = Finished(folder.resolve().name, folder, verb, manifest, results)
    if verb in ("import", "clean", "intents"):
        stage = _held(run, "counts", _stage) if "counts" in results else None
        sheets = tuple(
            _held(run, key, build) for key, build in SHEETS if results.get(key, {}) != {}
        )
        run = replace(run, stage=stage, sheets=sheets)
        return _with_people(run) if run.of_people else run
    if verb == "train":
        return replace(
            run, log=tuple(_log(folder / "log.jsonl")), stage=_held(run, "samples", _trained)
        )
    if verb in ("ppl", "score"):
        # Once a run could be called "endings", and a list of measures stood there.
        tuned = verb == "score" and isinstance(results.get("endings", []), Mapping)
        names = [name for name in results if not (tuned and name == "endings")]
        columns = {name: _held(run, name, partial(_figures, name)) for name in names}
        endings = _held(run, "endings", _endings) if tuned else {}
        return replace(run, columns=columns, endings=endings, missing=tuple(_missing(folder, verb)))
    if verb in ("simulate", "respond"):
        resampled = _held(run, "guard", _redrawn) if results.get("guard") is not None else None
        return _with_conversations(replace(run, resampled=resampled))
    raise InputError(f"{folder} is a run of {verb!r}, which has no place in a report; leave it out")


def _held(run: Finished, key: str, build: Callable[[Mapping[str, Any]], T]) -> T:
    """What is built from the results of a run, of which `key` is the part that may be damaged."""
    try:
        return build(run.results)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        where = f"{run.folder / 'results.json'}: {key!r} is damaged ({error!r})"
        raise InputError(f"{where}; delete that file and run the command again") from None


def _figures(column: str, results: Mapping[str, Any]) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            name=str(one["name"]),
            value=_finite(one["value"]),
            low=_finite(one["low"]),
            high=_finite(one["high"]),
            n=int(one["n"]),
            missing=int(one["missing"]),
            better=str(one["better"]),
            unit=str(one["unit"]),
            why=str(one.get("why") or "nothing to measure"),
        )
        for one in results[column]
        if not str(one["name"]).startswith("source ")  # many; `userlm ppl` shows them
    )


def _endings(results: Mapping[str, Any]) -> dict[str, tuple[EndCalibration, str]]:
    return {name: (_tuned(part), str(part["note"])) for name, part in results["endings"].items()}


def _tuned(part: Mapping[str, Any]) -> EndCalibration:
    found = EndCalibration(_count(part["n"]), _count(part["missing"]), str(part["why"]))
    if part["best"] is None:
        return found
    columns = [
        [_amount(value, 100) for value in part["sweep"][f.name]] for f in fields(ThresholdSweep)
    ]
    points = list(zip(*columns, strict=True))
    if len(points) < 2 or not all(0 < above < 1 for above, *_ in points):
        raise ValueError("a curve needs two thresholds, above 0 and below 1")
    return replace(
        found,
        people=_count(part["people"]),
        ended=_amount(part["ended"], 100),
        now=_leaving(part["now"]),
        best=_leaving(part["best"]),
        equal=_leaving(part["equal"]),
        sweep=ThresholdSweep(*map(tuple, columns)),
        ece=_amount(part["ece"], 1),
        bins=tuple(
            Bin(_count(b["n"]), _amount(b["p_end"], 1), _amount(b["ended"], 1))
            for b in part["bins"]
        ),
    )


def _leaving(one: Mapping[str, Any]) -> EndRule:
    above = None if one["threshold"] is None else _amount(one["threshold"], 1)
    if above in (0, 1):
        raise ValueError(f"{above} is no threshold")
    early, late, leaves, f1 = (
        _amount(one[share], 100) for share in ("premature", "missed", "end_rate", "f1")
    )
    return EndRule(above, early, late, leaves, f1, _finite(one["low"]), _finite(one["high"]))


def _redrawn(results: Mapping[str, Any]) -> Resampled:
    guard = results["guard"]
    turns, drafts, resampled = (_count(guard[name]) for name in ("turns", "drafts", "resampled"))
    kept, stopped = _count(guard["kept"]), _count(guard["stopped"])
    why = _head(_by_count((name, _count(count)) for name, count in guard["why"].items()))
    return Resampled(turns, drafts, resampled, kept, stopped, why)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{_cut(repr(value), 60)} is no count")
    return value


def _amount(value: Any, most: float = math.inf) -> float:
    found = _finite(value)
    if found is None or isinstance(value, bool) or not 0 <= found <= most:
        raise ValueError(f"{_cut(repr(value), 60)} is no amount")
    return found


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a line file of a finished run: it must be there, it may be empty, no line may be
    damaged."""
    if not path.is_file():
        raise InputError(f"{path} is missing; delete the folder and run its command again")
    for line in read_rows(path, may_be_empty=True):
        if line.error:
            raise InputError(
                f"{path}, line {line.number}: {line.error}; delete the folder and run it again"
            )
        yield line.row


def _conversations(path: Path) -> Iterator[Conversation]:
    for number, row in enumerate(_rows(path), 1):
        try:
            yield from_record(row)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: {error}; delete the folder and run it again"
            ) from None


def _log(path: Path) -> Iterator[tuple[int, float]]:
    for row in _rows(path):
        step, loss = row.get("step"), _finite(row.get("loss"))
        if isinstance(step, int) and loss is not None:
            yield step, loss


def _missing(folder: Path, verb: str) -> Iterator[Missing]:
    """How many items of `scores.jsonl` could not be measured, by column, metric and reason."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for line in _rows(folder / "scores.jsonl"):
        is_end = verb == "ppl" and str(line.get("key")).endswith("/end")
        if line.get("stats") is None and not is_end:
            why = str(line.get("why") or "no reason given")
            counts[str(line.get("column")), str(line.get("metric")), why] += 1
    for (column, measure, why), count in counts.items():
        yield Missing(column, measure, why, count)


def _with_people(run: Finished) -> Finished:
    path = run.folder / "test.jsonl"
    if not path.is_file():  # `intents` of a single file
        path = run.folder / "conversations.jsonl"
    lengths, extractive, example = _Lengths(), False, None
    for conversation in _conversations(path):
        lengths.add(conversation, conversation.user_turns)
        extractive |= conversation.meta.get("intent_by") == "extractive"
        if example is None and conversation.ended and 2 <= len(conversation.user_turns) <= 4:
            example = conversation
    sheets = run.sheets if example is None else (*run.sheets, _flipped(example))
    stubs = ("intents: extractive",) if extractive else ()
    return replace(run, spread=lengths.spread(), stubs=stubs, sheets=sheets)


def _turns(count: int) -> str:
    return f"{count} turn{'s' if count != 1 else ''}"


def _flipped(conversation: Conversation) -> Sheet:
    """One conversation as the samples that a user model learns from."""
    system = conversation.system
    rows = [(system, Markup(""), ("it is told this",))] if system else []
    for sample in samples(conversation):
        told = ["that"] * bool(system) + [_turns(len(sample.context))] * bool(sample.context)
        rows.append(
            (
                sample.target or END_TOKEN,
                Markup(""),
                (f"it says this, given {' and '.join(told) or 'nothing'}",),
            )
        )
    note = (
        "One of the conversations, as the samples that a user model learns from. The last "
        "one: "
        "the user leaves."
    )
    return Sheet(
        "samples", "A conversation, flipped", ("turn", "of the user model"), tuple(rows), note
    )


def _with_conversations(run: Finished) -> Finished:
    """Only what the simulated user said is counted, not the logged turns that it was given."""
    kept: list[Conversation] = []
    lengths, stubs, total = _Lengths(), set(), 0
    asked = run.verb == "respond"
    for conversation in _conversations(run.folder / "conversations.jsonl"):
        total += 1
        if conversation.meta.get("intent_by") == "extractive":
            stubs.add("intents: extractive")
        if not asked:  # the prefix of a response is a log
            stubs |= {
                f"assistant: {t.meta['stub']}" for t in conversation.turns if t.meta.get("stub")
            }
        own = conversation.user_turns[conversation.first_own_turn() :]
        lengths.add(conversation, own, counted=not asked)
        if not asked and len(kept) < SHOWN:
            kept.append(conversation)
    return replace(
        run,
        transcripts=tuple(kept),
        total=total,
        spread=lengths.spread(),
        stubs=tuple(sorted(stubs)),
    )


def _kept_turns(run: Finished) -> int:
    kept = run.manifest.get("options", {}).get("keep_turns")
    return kept if isinstance(kept, int) else 0


class _Lengths:
    """Counts lengths as conversations go by, so that none has to be kept."""

    def __init__(self) -> None:
        self._turns, self._words = [0] * len(TURN_BINS), [0] * len(WORD_BINS)
        self._failed = 0

    def add(self, conversation: Conversation, said: Iterable[str], counted: bool = True) -> None:
        for text in said:
            self._words[word_bin(len(words(text)))] += 1
        if counted and conversation.stop in FAILED:
            self._failed += 1
        elif counted:
            self._turns[min(len(conversation.user_turns), len(TURN_BINS) - 1)] += 1

    def spread(self) -> Spread:
        return Spread(tuple(self._turns), tuple(self._words), self._failed)


def word_bin(count: int) -> int:
    """The index in `WORD_BINS` of a turn of so many words: the bins double in width."""
    return min(count.bit_length(), len(WORD_BINS) - 1)


# --- text that is not to be trusted ---------------------------------------------------------------

# Controls but tab and newline; direction marks, embeddings, overrides and isolates; what has no
# width and joins nothing; line separators; lone surrogates, which no file can hold; tag characters.
_ODD = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_ODD_RUN = re.compile(f"([{_ODD}])\\1*")


def plain(text: object) -> str:
    """The text with every odd character written out, `⟨U+202E⟩`, and a run of one as `⟨U+202E
    ×9⟩`."""
    return _ODD_RUN.sub(lambda run: f"⟨{_spelled(run)}⟩", _lines(text))


def visible(text: object) -> Markup:
    """The same as HTML: escaped, odd characters set apart from a text that spells them."""
    safe = str(escape(_lines(text)))
    return Markup(_ODD_RUN.sub(lambda run: f'<span class="odd">{_spelled(run)}</span>', safe))


def _lines(text: object) -> str:
    return str(text).replace("\r\n", "\n").replace("\r", "\n")


def _spelled(run: re.Match[str]) -> str:
    times = f" ×{len(run[0]):,}" if len(run[0]) > 1 else ""
    return f"U+{ord(run[1]):04X}{times}"


def code(text: object, cell: bool = False) -> str:
    """A code span of Markdown, in which nothing is markup. In a cell of a table even its pipes are
    escaped."""
    line = " ".join(plain(text).split()) or " "
    line = line.replace("|", "\\|") if cell else line
    ticks = "`" * (_longest(line) + 1)
    pad = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def fenced(text: object) -> str:
    """A code block of Markdown, whose fence is longer than any in the text."""
    inside = plain(text)
    fence = "`" * max(3, _longest(inside) + 1)
    return f"{fence}text\n{inside}\n{fence}"


def _longest(text: str) -> int:
    return max((len(ticks) for ticks in re.findall("`+", text)), default=0)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


# --- numbers and drawings -------------------------------------------------------------------------


def number(value: float) -> str:
    """As the terminal shows it: two decimals."""
    return f"{value:,.2f}" if abs(value) < 10_000 else f"{value:,.0f}"


def _short(value: float) -> str:
    """Without decimals where there are none."""
    return f"{value:,.0f}" if value == int(value) else number(value)


def _percent(part: float, whole: float) -> str:
    """One decimal, more where it would be a zero that is none."""
    share = 100 * part / whole if whole else 0
    return f"{share:.1g} %" if 0 < share < 0.05 else f"{share:.1f} %"


def probability(value: float) -> str:
    """Three decimals, but never a zero that is none."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in steps of 1, 2 or 5 x 10^k from below `low` to above `high`, about `count`
    steps."""
    if high <= low:
        half = abs(low) / 10 or 0.5
        low, high = low - half, high + half
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, digits) for i in range(first, last + 1)]


def scale(value: float, domain: tuple[float, float], pixels: tuple[float, float]) -> float:
    """Where a value stands between two pixels, to a tenth of one."""
    share = (value - domain[0]) / (domain[1] - domain[0])
    return round(pixels[0] + share * (pixels[1] - pixels[0]), 1)


def _tick(value: float) -> str:
    return f"{value:,g}" if abs(value) < 1e6 else f"{value:.0e}"


STRIP = (6.0, 314.0)  # where the scale of a strip begins and ends, of 320 pixels


def strip(figure: Figure, domain: tuple[float, float], mark: str, human: float | None) -> Markup:
    """One row of a dot-and-whisker plot: the interval as a line, the value as a mark, people as a
    rule.

    It is hidden from screen readers: value and interval stand in words beside it.
    """
    if figure.value is None:
        return Markup("")
    at = scale(figure.value, domain, STRIP)
    parts = [f'<line class="track" x1="{STRIP[0]}" x2="{STRIP[1]}" y1="8" y2="8"/>']
    if human is not None:
        x = scale(human, domain, STRIP)
        parts.append(f'<line class="people" x1="{x}" x2="{x}" y1="0" y2="16"/>')
    if figure.low is not None and figure.high is not None:
        x1, x2 = (scale(end, domain, STRIP) for end in (figure.low, figure.high))
        parts.append(f'<path class="whisker" d="M{x1} 4V12M{x1} 8H{x2}M{x2} 4V12"/>')
    parts.append(_mark(mark, at, 8))
    return _svg(320, 16, "strip", parts)


def _mark(kind: str, x: float, y: float, look: str = "mark") -> str:
    """A shape as well as a colour for each run, so that no one has to tell colours apart."""
    if kind == "circle":
        return f'<circle class="{look}" cx="{x}" cy="{y}" r="4.5"/>'
    half = 5.5 if kind == "diamond" else 4.2
    points = {
        "diamond": f"M{x} {y - half}l{half} {half}l-{half} {half}l-{half} -{half}z",
        "square": f"M{x - half:.1f} {y - half:.1f}h{2 * half}v{2 * half}h-{2 * half}z",
        "triangle": f"M{x} {y - 5.2:.1f}l5.2 9.4h-10.4z",
    }
    return f'<path class="{look}" d="{points[kind]}"/>'


def axis(at: Sequence[float], unit: str) -> Markup:
    """The scale under the strips: numbers and, where there is room, the unit."""
    domain = (at[0], at[-1])
    parts = []
    for i, value in enumerate(at):
        x = scale(value, domain, STRIP)
        anchor = "start" if i == 0 else "end" if i == len(at) - 1 else "middle"
        x_text = {"start": 0, "end": 320}.get(anchor, x)
        shown = f"{_tick(value)}{unit}" if unit == "%" else _tick(value)
        parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="0" y2="4"/>')
        parts.append(f'<text x="{x_text}" y="15" text-anchor="{anchor}">{shown}</text>')
    return _svg(320, 18, "axis", parts)


def share_bar(part: int, lost: int, whole: int) -> Markup:
    """A part of a whole, and beside it what it lost last. Hidden from screen readers: the figures
    stand beside."""
    left, before = (
        100 * min(max(count, 0) / whole, 1) if whole else 0 for count in (part, part + lost)
    )
    bar = f'<rect class="bar" width="{left:.2f}%" height="100%"/>'
    gone = (
        f'<rect class="lost" x="{left:.2f}%" width="{before - left:.2f}%" height="100%"/>'
        if lost
        else ""
    )
    return Markup(f'<svg class="share-bar" aria-hidden="true">{bar}{gone}</svg>')


def bars(
    label: str,
    bins: Sequence[str],
    counts: Sequence[int],
    people: Sequence[int] | None,
    top: float,
    unit: str,
) -> Markup:
    """Shares in percent as bars, and those of people as a stepped outline over them.

    Args:
        label: what a screen reader says first.
        top: of the scale, in percent; one for all drawings that stand side by side.
        unit: of the bins, the label of the axis.
    """
    left, right, floor, roof = 34.0, 314.0, 126.0, 16.0
    width = (right - left) / len(bins)
    parts = [f'<text class="unit" x="{left}" y="9">% of all</text>']
    for value in ticks(0, top, 4):
        if value <= top:
            y = scale(value, (0, top), (floor, roof))
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(
                f'<text x="{left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(value)}</text>'
            )
    shares = _shares(counts)
    for i, share in enumerate(shares):
        x, y = left + i * width, scale(share, (0, top), (floor, roof))
        if share:
            high = round(floor - y, 1)
            parts.append(
                f'<rect class="bar" x="{x + 1.5:.1f}" y="{y}" width="{width - 3:.1f}" '
                f'height="{high}"/>'
            )
        if i % 2 == 0:  # all of them would touch
            parts.append(
                f'<text x="{x + width / 2:.1f}" y="140" text-anchor="middle">{bins[i]}</text>'
            )
    if people is not None:
        path = f"M{left} {floor}"
        for i, share in enumerate(_shares(people)):
            path += f"V{scale(share, (0, top), (floor, roof))}H{left + (i + 1) * width:.1f}"
        parts.append(f'<path class="outline" d="{path}V{floor}"/>')
    parts.append(f'<line class="base" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<text class="unit" x="{right}" y="156" text-anchor="end">{unit}</text>')
    said = ", ".join(
        f"{name}: {share:.0f} %" for name, share in zip(bins, shares, strict=True) if share
    )
    return _svg(320, 160, "plot", parts, f"{label}, by {unit}. {said}")


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [100 * count / total if total else 0.0 for count in counts]


def curve(name: str, log: Sequence[tuple[int, float]]) -> Markup:
    """The loss of a training run over its steps."""
    left, right, floor, roof = 34.0, 310.0, 156.0, 18.0
    points = thin(log, POINTS)
    at_x = ticks(min(0.0, log[0][0]), max(1.0, log[-1][0]), 4)
    at_y = ticks(min(loss for _, loss in points), max(loss for _, loss in points), 4)
    across, up = (at_x[0], at_x[-1]), (at_y[0], at_y[-1])
    parts = [f'<text class="unit" x="{left}" y="10">loss, nats per target token</text>']
    for value in at_y:
        y = scale(value, up, (floor, roof))
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(value)}</text>'
        )
    for value in at_x:
        x = scale(value, across, (left, right))
        parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{_tick(value)}</text>')
    places = [
        (scale(step, across, (left, right)), scale(loss, up, (floor, roof)))
        for step, loss in points
    ]
    parts.append(f'<line class="base" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<path class="line" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
    parts += [f'<circle class="mark" cx="{x}" cy="{y}" r="3"/>' for x, y in {places[0], places[-1]}]
    parts.append(f'<text class="unit" x="{right}" y="186" text-anchor="end">optimizer step</text>')
    said = (
        f"Training loss of {plain(name)}: {log[0][1]:.2f} at step "
        f"{log[0][0]}, "
        f"{log[-1][1]:.2f} at {log[-1][0]}"
    )
    return _svg(320, 190, "plot", parts, said)


RULE_MARKS = {"now": "circle", "best": "diamond", "equal": "square"}
ROUND = (0.5, 0.01, 0.99, 0.1, 0.9, 0.001, 0.999, 0.0001, 0.9999, 0.00001, 0.99999)
"""Thresholds that are written under a curve where there is room, the first first."""
IN_FIGURES = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
"""Those at which the Markdown says what the curve shows."""


def dial(name: str, endings: EndCalibration) -> Markup:
    """How often a user leaves too early and stays too long, by the threshold; beside it, what it
    does now."""
    curve, left, right, now_at, floor, roof = endings.sweep, 34.0, 276.0, 302.0, 156.0, 18.0
    assert curve is not None
    domain = _moving(endings)

    def across(above: float) -> float:
        return scale(_log_odds(above), domain, (left, right))

    parts: list[str] = []
    written: list[float] = []
    for x, kind, said in (
        (left, "line", "leaves too early"),
        (150.0, "line dashed", "stays too long"),
    ):
        parts.append(
            f'<path class="{kind}" d="M{x} 6h22"/><text class="unit" x="{x + 27}" '
            f'y="10">{said}</text>'
        )
    for share in ticks(0, 100, 5):
        y = scale(share, (0, 100), (floor, roof))
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        shown = f"{_tick(share)}{'%' if share == 100 else ''}"
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{shown}</text>')
    for above in ROUND:
        x = across(above)
        if left <= x <= right and all(abs(x - other) > 40 for other in written):
            written.append(x)
            parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 4}"/>')
            parts.append(
                f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{format_threshold(above)}</text>'
            )
    for shares, kind in ((curve.premature, "line"), (curve.missed, "line dashed")):
        places = (
            f"{across(above)} {scale(share, (0, 100), (floor, roof))}"
            for above, share in zip(curve.threshold, shares, strict=True)
            if left <= across(above) <= right
        )
        parts.append(f'<path class="{kind}" d="M{"L".join(places)}"/>')
    for rule in ("now", "equal", "best"):
        one = getattr(endings, rule)
        x = now_at if one.threshold is None else across(one.threshold)
        for share, look in ((one.premature, "mark"), (one.missed, "mark open")):
            parts.append(_mark(RULE_MARKS[rule], x, scale(share, (0, 100), (floor, roof)), look))
    parts.append(f'<text x="{now_at}" y="{floor + 16}" text-anchor="middle">now</text>')
    parts.append(f'<line class="base" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(
        f'<text class="unit" x="{right}" y="186" text-anchor="end">leaves when P(end) is at '
        "least</text>"
    )
    said = "; ".join(
        f"{shown}{f' ({format_threshold(one.threshold)})' if one.threshold else ''}: {one.premature:.0f} % and "
        f"{one.missed:.0f} %"
        for shown, one in ((shown, getattr(endings, rule)) for rule, shown in RULES.items())
    )
    return _svg(
        320,
        190,
        "plot",
        parts,
        f"{plain(name)} leaves too early and stays too long, by threshold. {said}",
    )


def reliability(name: str, bins: Sequence[Bin]) -> Markup:
    """P(end) against how often the person left; a true one lies on the diagonal."""
    left, right, floor, roof = 34.0, 310.0, 156.0, 18.0
    parts = [f'<text class="unit" x="{left}" y="10">share of turns at which the person left</text>']
    for value in ticks(0, 1, 5):
        x, y = scale(value, (0, 1), (left, right)), scale(value, (0, 1), (floor, roof))
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_tick(value)}</text>'
        )
        parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{_tick(value)}</text>')
    parts.append(f'<path class="people" d="M{left} {floor}L{right} {roof}"/>')
    parts.append(f'<line class="base" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    places = [
        (scale(b.p_end, (0, 1), (left, right)), scale(b.ended, (0, 1), (floor, roof))) for b in bins
    ]
    parts.append(f'<path class="line" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
    parts += [_mark("circle", x, y) for x, y in places]
    parts.append(
        f'<text class="unit" x="{right}" y="186" text-anchor="end">mean P(end) of each bin</text>'
    )
    said = ", ".join(f"{b.p_end:.2f}: {b.ended:.2f}" for b in bins)
    return _svg(
        320, 190, "plot", parts, f"{plain(name)}: P(end) and how often the person left. {said}"
    )


def _moving(endings: EndCalibration) -> tuple[float, float]:
    """The log odds between which the curve is not level; the suggestions lie between them."""
    assert endings.sweep is not None and endings.best is not None and endings.equal is not None
    curve = endings.sweep
    points = list(zip(curve.threshold, curve.premature, curve.missed, strict=True))
    ends = [above for a, b in pairwise(points) if a[1:] != b[1:] for above in (a[0], b[0])]
    ends += [one.threshold for one in (endings.best, endings.equal) if one.threshold is not None]
    low, high = _log_odds(min(ends)), _log_odds(max(ends))
    return (low, high) if low < high else (low - 1, high + 1)


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def thin(log: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means of neighbours, when there are more."""
    size = math.ceil(len(log) / most)
    groups = [log[i : i + size] for i in range(0, len(log), size)]
    return [
        (sum(s for s, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _svg(width: int, height: int, kind: str, parts: Iterable[str], label: str = "") -> Markup:
    said = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" {said}>{"".join(parts)}</svg>'
    )


# --- what is on the page --------------------------------------------------------------------------

SHAPES = ("circle", "square", "triangle")
COLOURS = 6


@dataclass(frozen=True)
class Column:
    """One thing that was measured: a scored run, people, or a model with or without intents.

    Attributes:
        label: what heads it; no two columns have the same.
        ink: a class of the page: `human`, or a colour.
        mark: a shape.
    """

    label: str
    figures: Mapping[str, Figure]
    ink: str
    mark: str
    note: str = ""

    @property
    def human(self) -> bool:
        return self.ink == HUMAN


@dataclass(frozen=True)
class Panel:
    """One measure: its figures in all columns, on one scale."""

    name: str
    better: str
    note: str
    rows: tuple[tuple[Column, Figure, str, Markup], ...]  # the string: why there is no value
    axis: Markup


@dataclass(frozen=True)
class Histogram:
    """One drawing of a distribution."""

    label: str
    ink: str
    note: str
    drawing: Markup


@dataclass(frozen=True)
class Dial:
    """How the endings of one user can be tuned, drawn.

    Attributes:
        rows: how a rule is called, its mark, and what leaving by it does.
        note: what to know of the run that was scored.
        curve, reliability: drawings; nothing, where there is nothing to suggest.
    """

    label: str
    ink: str
    endings: EndCalibration
    note: str
    rows: tuple[tuple[str, Markup, EndRule], ...]
    curve: Markup
    reliability: Markup


def html(runs: Sequence[Finished]) -> str:
    """The page, complete in itself. Raises `InputError` when there are no runs."""
    page = _template().render(
        _view(runs), stop_words=STOP_WORDS, first_shown=FIRST, most_shown=MOST
    )
    return page.encode("utf-8", "replace").decode()


@cache
def _template() -> Template:
    source = files("userlm").joinpath("assets/report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters.update(
        {
            "num": _data,
            "prob": lambda value: _data(value, probability(value)),
            "json": _short_json,
            "share": lambda value: _data(value, f"{value:.1f}"),
            "spelled": format_threshold,
            "percent": _percent,
            "cut": _cut,
            "goal": intent_goal,
            "opening": lambda text: text[:FIRST],
            "rest": lambda text: text[FIRST:MOST],
        }
    )
    return environment.from_string(source, globals={"csp": _policy(source)})


def _safe(value: Any) -> Any:
    """What the template places, unless it is markup of ours."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(source: str) -> Markup:
    """Nothing may be loaded; the one style and the one script of the page are known by their
    hashes."""
    hashes = {}
    for name in ("style", "script"):
        inside = source.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
        hashes[name] = b64encode(sha256(inside.encode()).digest()).decode()
    rules = f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'"
    return Markup(f"default-src 'none'; {rules}; base-uri 'none'; form-action 'none'")


def _data(value: float, shown: str = "") -> Markup:
    """A number that says in the page's source exactly what it is."""
    return Markup('<data value="{}">{}</data>').format(repr(value), shown or number(value))


def _short_json(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _cut(shown, 600)


def _view(runs: Sequence[Finished]) -> dict[str, Any]:
    """Everything that the template places."""
    if not runs:
        raise InputError("no runs given; give the folders of finished runs, such as runs/score")
    runs = _distinct(runs)
    inks = _inks(runs)
    columns = _columns(runs, inks)
    missing = [(run, one) for run in runs for one in run.missing]
    return {
        "runs": runs,
        "summary": _summary(runs),
        "stubs": _stubs(runs),
        "columns": columns,
        "panels": _panels(columns),
        "tables": _tables(columns),
        "stages": [(run, run.stage) for run in runs if run.stage],
        "trained": [(run, inks[run.name], _curve(run)) for run in runs if run.verb == "train"],
        "averaged": any(len(run.log) > POINTS for run in runs),
        "turns": _histograms(runs, inks, "turns", TURN_BINS, "user turns in a conversation"),
        "words": _histograms(runs, inks, "words", WORD_BINS, "words in a user turn"),
        "stops": _stops(runs),
        "dials": _dials(runs, inks),
        "guards": [(run, run.resampled) for run in runs if run.resampled],
        "simulated": [
            (run, inks[run.name], [_transcript(c, run) for c in run.transcripts])
            for run in runs
            if run.verb == "simulate"
        ],
        "missing": _grouped(missing),
        "manifests": [(run, _manifest(run)) for run in runs],
    }


def _distinct(runs: Sequence[Finished]) -> list[Finished]:
    """The runs, each with a name of its own: two folders may be called the same."""
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.name] += 1
        named.append(
            run if seen[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})")
        )
    return named


def _inks(runs: Sequence[Finished]) -> dict[str, str]:
    """A colour for each run and each scored column; people have that of the text. Training runs,
    perplexities and conversations are never in one drawing, so each of them begins with the first
    colour."""
    inks = {run.name: HUMAN for run in runs if run.of_people} | {HUMAN: HUMAN}
    scored = [name for run in runs if run.verb == "score" for name in run.columns]
    speaking = [run.name for run in runs if run.verb in ("simulate", "respond")]
    families = [[run.name for run in runs if run.verb == verb] for verb in ("train", "ppl")]
    for family in (*families, [*scored, *speaking]):
        inks |= {name: f"c{i % COLOURS}" for i, name in enumerate(_ordered(family))}
    return inks


def _ordered(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name != HUMAN]


def _columns(runs: Sequence[Finished], inks: Mapping[str, str]) -> list[Column]:
    """What was measured, people last."""
    stubs = {run.name: run.stubs for run in runs if run.verb == "simulate"}
    found: dict[str, Column] = {}
    for run in runs:
        for i, (name, figures) in enumerate(run.columns.items()):
            by_name = {figure.name: figure for figure in figures}
            if run.verb == "ppl":
                label, ink = f"{run.name} · {name}", inks[run.name]
                mark = SHAPES[i % len(SHAPES)]
            else:
                label, ink = name, inks[name]
                mark = "diamond" if ink == HUMAN else SHAPES[int(ink[1:]) % len(SHAPES)]
                if label in found and found[label].figures == by_name:
                    continue
                if label in found:
                    label = f"{name} ({run.name})"
            kinds = stubs.get(name, ()) if run.verb == "score" else ()
            note = ", ".join(
                k.removeprefix("assistant: ") for k in kinds if k.startswith("assistant: ")
            )
            found[label] = Column(label, by_name, ink, mark, note)
    return sorted(found.values(), key=lambda column: column.human)


def _names(columns: Sequence[Column]) -> list[str]:
    """The measures in their order, those that this file does not know last."""
    names = dict.fromkeys(name for column in columns for name in column.figures)
    return sorted(
        names, key=lambda name: MEASURES.index(name) if name in MEASURES else len(MEASURES)
    )


def _tables(columns: Sequence[Column]) -> list[tuple[list[Column], list[str]]]:
    """Columns that share measures, and those measures: one table each, so that no table is mostly
    empty."""
    tables: list[tuple[list[Column], set[str]]] = []
    for column in columns:
        names = set(column.figures)
        touching = [table for table in tables if table[1] & names]
        merged = (
            [c for table in touching for c in table[0]],
            set().union(*(t[1] for t in touching)),
        )
        tables = [table for table in tables if table not in touching]
        tables.append(([*merged[0], column], merged[1] | names))
    return [(found, _names(found)) for found, _ in tables]


def _panels(columns: Sequence[Column]) -> list[Panel]:
    """A drawing for each measure, but for the variants of perplexity, which stand in the table."""
    panels = []
    for name in _names(columns):
        if name not in MEASURES and ("perplexity" in name or ": " in name):
            continue
        having = [(column, column.figures[name]) for column in columns if name in column.figures]
        ends = [end for _, f in having for end in (f.value, f.low, f.high) if end is not None]
        at = ticks(min(ends), max(ends)) if ends else []
        domain = (at[0], at[-1]) if at else (0.0, 1.0)
        human = next((figure.value for column, figure in having if column.human), None)
        rows = []
        for column, figure in having:
            why = figure.why if figure.value is None else ""
            rows.append((column, figure, why, strip(figure, domain, column.mark, human)))
        first = having[0][1]
        scale_below = axis(at, first.unit) if at else Markup("")
        panels.append(Panel(name, first.better, NOTES.get(name, ""), tuple(rows), scale_below))
    return panels


def _summary(runs: Sequence[Finished]) -> str:
    """`2 import, 1 clean`, in the order in which data flows."""
    order = ("import", "clean", "intents", "train", "ppl", "respond", "simulate", "score")
    counts = Counter(run.verb for run in runs)
    return ", ".join(f"{counts[verb]} {verb}" for verb in order if counts[verb])


def _stubs(runs: Sequence[Finished]) -> list[tuple[str, list[str]]]:
    """Each stand-in with the runs that it is in."""
    kinds = sorted({kind for run in runs for kind in run.stubs})
    return [(kind, [run.name for run in runs if kind in run.stubs]) for kind in kinds]


def _histograms(
    runs: Sequence[Finished], inks: Mapping[str, str], what: str, bins: Sequence[str], unit: str
) -> list[Histogram]:
    """People once for each different set of them, then each run with the first set as an
    outline."""
    people: dict[tuple[int, ...], Finished] = {}
    speakers = []
    for run in sorted(
        runs, key=lambda run: run.verb != "intents"
    ):  # intents hold what clean holds, and say more
        counts = _counts(run, what)
        if counts and run.of_people:
            people.setdefault(counts, run)
    for run in runs:
        counts = _counts(run, what)
        if counts and not run.of_people:
            speakers.append((run, counts))
    shown = [(run, counts) for counts, run in people.items()] + speakers
    outline = next(iter(people), None)
    highest = max((share for _, counts in shown for share in _shares(counts)), default=0.0)
    top = ticks(0, highest, 4)[-1]
    drawn = []
    for run, counts in shown:
        of = "conversations" if what == "turns" else "user turns"
        note = f"{sum(counts):,} {of}"
        if what == "turns" and run.spread and run.spread.failed:
            note += f"; {run.spread.failed:,} that failed have no known length"
        if what == "turns" and (cap := run.manifest.get("options", {}).get("max_turns")):
            note += f"; cap {cap}"
        label = f"people ({run.name})" if run.of_people else run.name
        over = None if run.of_people else outline
        drawing = bars(f"{plain(label)}, {note}", bins, counts, over, top, unit)
        drawn.append(Histogram(label, inks[run.name], note, drawing))
    return drawn


def _counts(run: Finished, what: str) -> tuple[int, ...]:
    """The counts of a run that has any."""
    counts = () if run.spread is None else run.spread.turns if what == "turns" else run.spread.words
    return counts if sum(counts) else ()


def _curve(run: Finished) -> Markup:
    """The curve of a log that has at least two steps."""
    return curve(run.name, run.log) if len(run.log) > 1 else Markup("")


def _stops(runs: Sequence[Finished]) -> tuple[list[str], list[tuple[Finished, dict[str, int]]]]:
    """The reasons that occur, and for each run how often."""
    rows = [
        (run, dict(run.results.get("stops") or {}))
        for run in runs
        if run.verb in ("simulate", "respond")
    ]
    seen = {stop for _, stops in rows for stop in stops}
    return [
        stop for stop in (*STOPS, "answered", *sorted(seen - {*STOPS, "answered"})) if stop in seen
    ], rows


def _dials(runs: Sequence[Finished], inks: Mapping[str, str]) -> list[Dial]:
    found: dict[str, Dial] = {}
    for run in runs:
        for name, (endings, note) in run.endings.items():
            if name in found and (found[name].endings, found[name].note) == (endings, note):
                continue
            label = f"{name} ({run.name})" if name in found else name
            tuned = endings.best is not None
            rules = [
                (said, _key(RULE_MARKS[rule]), getattr(endings, rule))
                for rule, said in RULES.items()
            ]
            found[label] = Dial(
                label,
                inks.get(name, "c0"),
                endings,
                note,
                tuple(rules) if tuned else (),
                dial(label, endings) if tuned else Markup(""),
                reliability(label, endings.bins) if tuned else Markup(""),
            )
    return list(found.values())


def _key(mark: str) -> Markup:
    return _svg(12, 12, "key-mark", [_mark(mark, 6, 6)])


def _grouped(missing: Iterable[tuple[Finished, Missing]]) -> list[tuple[str, str, int, Counts]]:
    """Column, measure, how many, and the reasons, the most frequent first."""
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for run, one in missing:
        groups.setdefault((f"{run.name} · {one.column}", one.measure), []).append(
            (one.why, one.count)
        )
    listed = []
    for (what, measure), reasons in groups.items():
        ordered = _by_count(reasons)
        listed.append((what, measure, sum(count for _, count in ordered), _head(ordered)))
    return listed


# --- what the data went through -------------------------------------------------------------------


def _stage(results: Mapping[str, Any]) -> Stage:
    """Of `import`, `clean` or `intents`; what the table of splits shows is not said twice."""
    counts = {name: _count(count) for name, count in results["counts"].items()}
    came, went = counts.pop("in", None), counts.pop("out", None)
    drops = {name: count for name, count in counts.items() if name.startswith("dropped: ")}
    told = (
        *drops,
        *(name for name in counts if "splits" in results and name.partition(":")[0] in SPLITS),
    )
    notes = tuple(
        (name.removeprefix("note: "), count)
        for name, count in sorted(counts.items())
        if name not in told
    )
    reasons = _head(
        _by_count((name.removeprefix("dropped: "), count) for name, count in drops.items())
    )
    return Stage("conversations", came, went, sum(drops.values()), reasons, notes)


def _trained(results: Mapping[str, Any]) -> Stage:
    conversations, samples, dropped = (
        _count(results.get(key) or 0) for key in ("conversations", "samples", "dropped")
    )
    reasons = (("does not fit the model", dropped),) if dropped else ()
    return Stage(
        "samples", samples + dropped, samples, dropped, reasons, (("conversations", conversations),)
    )


def _by_count(counts: Iterable[tuple[str, int]]) -> Counts:
    return tuple(sorted(counts, key=lambda item: (-item[1], item[0])))


def _head(counts: Counts, most: int = REASONS, others: str = "more reasons") -> Counts:
    """The first of them, and how many more there are if it is more than one."""
    rest = counts[most:] if len(counts) > most + 1 else ()
    return (
        (*counts[:most], (f"{len(rest)} {others}", sum(count for _, count in rest)))
        if rest
        else counts
    )


def _survivors(results: Mapping[str, Any]) -> Sheet:
    """What each step of `clean` left; all languages are one step."""
    counts = results["counts"]
    came, went = counts.get("in", 0), counts.get("out", 0)
    drops: Counter[str] = Counter()
    for name, count in counts.items():
        if name.startswith("dropped: "):
            drops[name.split(": ")[1]] += count
    in_order = tuple((step, drops.pop(step)) for step in STEPS if step in drops) + _by_count(
        drops.items()
    )
    rows, left = [("in", share_bar(came, 0, came), ("", f"{came:,}", _percent(came, came)))], came
    for step, dropped in _head(in_order):
        left -= dropped
        rows.append(
            (
                step,
                share_bar(left, dropped, came),
                (f"{dropped:,}", f"{left:,}", _percent(left, came)),
            )
        )
    rows.append(("out", share_bar(went, 0, came), ("", f"{went:,}", _percent(went, came))))
    return Sheet("survivors", "Survivors", ("step", "dropped", "left", "of all"), tuple(rows))


def _splits(results: Mapping[str, Any]) -> Sheet:
    splits = {
        name: Counter({what: _count(count) for what, count in figures.items()})
        for name, figures in results["splits"].items()
    }
    head = tuple(dict.fromkeys(what for figures in splits.values() for what in figures))
    everything: Counter[str] = sum(splits.values(), Counter())
    return Sheet(
        "splits",
        "Splits, by person",
        ("split", *head),
        tuple(
            (name, Markup(""), tuple(f"{figures[what]:,}" for what in head))
            for name, figures in (*splits.items(), ("all", everything))
        ),
        "Samples are what flipping gives: one a user turn, and one for leaving where a person was "
        "seen to leave.",
    )


def _lengths(results: Mapping[str, Any]) -> Sheet:
    found = {
        name: None if spread is None else {of: _amount(value) for of, value in spread.items()}
        for name, spread in results["lengths"].items()
    }
    head = tuple(dict.fromkeys(of for spread in found.values() if spread for of in spread)) or (
        "mean",
    )
    return Sheet(
        "lengths",
        "Lengths, in all splits",
        ("", *head),
        tuple(
            (name, Markup(""), tuple(_short(spread[of]) if spread else "none" for of in head))
            for name, spread in found.items()
        ),
        "The percentages are quantiles: so many are no longer than this. Words are what lies "
        "between spaces.",
    )


def _people(results: Mapping[str, Any]) -> Sheet:
    people = results["people"]
    known, theirs = _count(people["known"]), _count(people["conversations of known people"])
    note = (
        "Where a log does not say who speaks, a conversation, or a tree of them, is a "
        "person "
        "of its own."
    )
    if known:
        spread, share = (
            people["conversations a person"],
            _amount(people["share of the heaviest 1 %"], 1),
        )
        mean, median, largest = (_short(_amount(spread[of])) for of in ("mean", "50 %", "largest"))
        each = f"{mean} each on average, {median} in the median, {largest} at most"
        heaviest = f"The heaviest 1 % of them have {_percent(share, 1)} of those."
        note = f"Known people: {known:,}, with {theirs:,} conversations: {each}. {heaviest} {note}"
    return Sheet("people", "People", note=note)


def _ngram_table(results: Mapping[str, Any]) -> Sheet:
    table = results["ngram_table"]
    ngrams, counted = _count(table["n-grams"]), _count(table["counted one by one"])
    note = (
        f"Of {ngrams:,} n-grams in first turns, {counted:,} different ones had to be "
        "counted "
        "one by one"
    )
    disk, memory = (_count(table[f"bytes {where}"]) / 1e6 for where in ("on disk", "in memory"))
    note += f": {memory:,.1f} MB of memory and, meanwhile, {disk:,.1f} MB on the disk."
    return Sheet("ngrams", "Template filter", note=note)


def _mix(key: str, by: str, results: Mapping[str, Any]) -> Sheet:
    """The most frequent languages, countries or models."""
    counts = _by_count((name, _count(count)) for name, count in results[key].items())
    shown, total = _head(counts, NAMES, "others"), sum(count for _, count in counts)
    largest = max((count for _, count in shown), default=0)
    rows = ((name, share_bar(n, 0, largest), (f"{n:,}", _percent(n, total))) for name, n in shown)
    return Sheet("mix", f"Conversations by {by}", (by, "number", "of all"), tuple(rows))


def _writers(results: Mapping[str, Any]) -> Sheet:
    """Who wrote intents, and how much of a first turn they give away."""
    writers = results["writers"]
    ordered = _by_count((name, _count(writer["n"])) for name, writer in writers.items())
    rows: list[Entry] = []
    for name, n in _head(ordered, NAMES, "others"):
        drawing, cells = _leakage(writers[name]) if name in writers else (Markup(""), ("",) * 5)
        label = f"{name}, a stand-in" if name == "extractive" else name
        rows.append((label, drawing, (f"{n:,}", *cells)))
    return Sheet(
        "writers",
        "Leakage of intents, by writer",
        ("writer", "intents", "measured", "mean", "25 %", "50 %", "75 %"),
        tuple(rows),
        "Leakage is the share of a first turn’s content words that its intent gives away: 0 is "
        "none, 1 all.",
    )


def _leakage(writer: Mapping[str, Any]) -> tuple[Markup, tuple[str, ...]]:
    measured = _count(writer["measured"])
    if writer["leakage"] is None:
        return Markup(""), (f"{measured:,}", "not measured", "", "", "")
    mean, first, median, third = (
        _amount(share, 1) for share in (writer["leakage"], *writer["quartiles"])
    )
    figure = Figure("leakage", mean, first, third, measured, 0, "", "")
    shares = (number(share) for share in (mean, first, median, third))
    return strip(figure, (0, 1), "circle", None), (f"{measured:,}", *shares)


def _usage(results: Mapping[str, Any]) -> Sheet:
    usage = results["usage"]
    tokens = (
        None if usage[key] is None else _count(usage[key]) for key in ("tokens_in", "tokens_out")
    )
    cost = "not known" if usage["cost"] is None else f"${_amount(usage['cost']):,.4f}"
    cells = (
        f"{_count(usage['calls']):,}",
        *("not known" if count is None else f"{count:,}" for count in tokens),
        cost,
        f"{_count(usage['possibly_billed']):,}",
    )
    head = ("model", "calls", "tokens in", "tokens out", "cost", "in doubt")
    note = (
        "In doubt are tries without a usable answer that may have been billed; the cost "
        "holds "
        "them at their worst."
    )
    return Sheet("usage", "Calls", head, ((str(results["model"]), Markup(""), cells),), note)


def _faults(results: Mapping[str, Any]) -> Sheet:
    counts = _by_count((name, _count(count)) for name, count in results["faults"].items())
    rows = tuple(
        (name, Markup(""), (f"{count:,}",)) for name, count in _head(counts, NAMES, "others")
    )
    return Sheet("faults", "Faults that were met", ("fault", "times"), rows)


SHEETS: tuple[tuple[str, Callable[[Mapping[str, Any]], Sheet]], ...] = (
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
"""What is shown of which part of results.json, in the order of the page."""


# --- transcripts ----------------------------------------------------------------------------------

USAGE = ("tokens_in", "tokens_out")
ABOUT = ("task", "error", "facts", "verdict")
"""What is shown of a conversation's `meta`. The rest was copied from a log and is about a
person."""


@dataclass(frozen=True)
class Said:
    """A turn and what is known about it."""

    role: str
    label: str
    text: str
    p_end: float | None
    marks: tuple[str, ...]
    facts: tuple[tuple[str, Any], ...]
    rejected: tuple[tuple[str, str], ...] = ()  # drafts, and what was wrong with them


@dataclass(frozen=True)
class Transcript:
    """A conversation as it is shown; `ending` is what the user's last, wordless answer was."""

    conversation: Conversation
    turns: tuple[Said, ...]
    about: tuple[tuple[str, Any], ...]
    ending: Said


def _transcript(conversation: Conversation, run: Finished) -> Transcript:
    turns, k = [], {"user": 0, "assistant": 0}
    for i, turn in enumerate(conversation.turns):
        k[turn.role] += 1
        said = _said(turn.role, f"{turn.role} {k[turn.role]}", turn.text, turn.meta)
        logged = ("from the log",) if i < _kept_turns(run) else ()
        turns.append(replace(said, marks=(*logged, *said.marks)))
    last = conversation.meta.get("end_meta")
    ending = _said("end", conversation.stop or "", "", last if isinstance(last, Mapping) else {})
    about = tuple((key, conversation.meta[key]) for key in ABOUT if key in conversation.meta)
    return Transcript(conversation, tuple(turns), about, ending)


def _said(role: str, label: str, text: str, meta: Mapping[str, Any]) -> Said:
    marks = []
    if empty := meta.get("empty_drafts"):
        marks.append(f"{empty} empty draft{'s' if empty != 1 else ''} before")
    rejected = _rejected(meta.get("rejected"))
    if violates := meta.get("violates"):
        marks.append(f"kept, though {_listed(violates)}")
    if type(truncated_tokens := meta.get("truncated_tokens")) is int:
        marks.append(
            f"{truncated_tokens:,} token{'s' if truncated_tokens != 1 else ''} before did not fit"
        )
    if meta.get("cut"):
        marks.append("cut at the most tokens")
    if meta.get("stub"):
        marks.append(f"{meta['stub']}, a stand-in")
    known = {"p_end", "empty_drafts", "cut", "stub", "violates", "exhausted", *USAGE}
    known |= {"rejected"} if rejected else set()
    known |= {"truncated_tokens"} if type(truncated_tokens) is int else set()
    return Said(
        role,
        label,
        text,
        _finite(meta.get("p_end")),
        tuple(marks),
        tuple((key, value) for key, value in meta.items() if key not in known),
        rejected,
    )


def _rejected(drafts: Any) -> tuple[tuple[str, str], ...]:
    """Text and reasons of each draft; nothing if it is not what `guard.guarded` writes."""
    if not isinstance(drafts, list) or not all(
        isinstance(d, Mapping) and {"text", "why"} <= {*d} for d in drafts
    ):
        return ()
    return tuple((str(draft["text"]), _listed(draft["why"])) for draft in drafts)


def _listed(reasons: Any) -> str:
    return ", ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)


def _manifest(run: Finished) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Options, inputs and surroundings of a run, in groups."""
    groups = []
    for name in ("options", "inputs", "prompts", "versions"):
        values = run.manifest.get(name)
        groups.append((name, list(values.items()) if isinstance(values, dict) else []))
    rest = [(key, value) for key, value in run.manifest.items() if not isinstance(value, dict)]
    return [("run", rest), *groups]


# --- markdown -------------------------------------------------------------------------------------

_ARROWS = {"higher": " ↑", "lower": " ↓"}


def markdown(runs: Sequence[Finished]) -> str:
    """The same without drawings, for a mail or a diff: nothing that was said in a run becomes
    markup."""
    view = _view(runs)
    number_of = len(view["runs"])
    parts = [
        "# User model report",
        f"{number_of} finished run{'s' if number_of != 1 else ''}: {view['summary']}.",
    ]
    for kind, names in view["stubs"]:
        parts.append(
            f"**Stand-in**, {code(kind)}, in {', '.join(map(code, names))}: not the work of a "
            "model."
        )
    columns, stages = view["columns"], view["stages"]
    if columns:
        parts += ["## Measures", "Value, 95 % interval, number measured."]
        for shown, names in view["tables"]:
            head = ["measure", *(code(column.label, cell=True) for column in shown)]
            rows = [[_arrowed(name, shown), *(_cell(one, name) for one in shown)] for name in names]
            parts.append(_table(head, rows))
    if stages:
        head = ["run", "verb", "unit", "in", "out", "dropped", "reasons", "notes"]
        rows = [
            [
                code(run.name, cell=True),
                code(run.verb, cell=True),
                stage.unit,
                *(
                    "" if count is None else f"{count:,}"
                    for count in (stage.came, stage.went, stage.dropped)
                ),
                *(_reasons(listed) for listed in (stage.reasons, stage.notes)),
            ]
            for run, stage in stages
        ]
        parts += ["## Data", _table(head, rows)]
    for run, _ in stages:
        for sheet in run.sheets:
            parts.append(f"### {sheet.title}: {code(run.name)}")
            if sheet.rows:
                head = [code(name, cell=True) if name else "" for name in sheet.head]
                parts.append(
                    _table(
                        head,
                        (
                            [code(_cut(name, NAME), cell=True), *cells]
                            for name, _, cells in sheet.rows
                        ),
                    )
                )
            if sheet.note:
                parts.append(sheet.note)
    kinds, stops = view["stops"]
    if stops:
        rows = [
            [code(run.name, cell=True), *(f"{found.get(k, 0):,}" for k in kinds)]
            for run, found in stops
        ]
        parts += [
            "## How they ended",
            _table(["run", *(code(kind, cell=True) for kind in kinds)], rows),
        ]
    if view["guards"]:
        head = [
            "run",
            "turns",
            "drafts",
            "drawn again",
            "kept all the same",
            "stopped",
            "what was wrong",
        ]
        rows = [
            [
                code(run.name, cell=True),
                *(
                    f"{count:,}"
                    for count in (one.turns, one.drafts, one.resampled, one.kept, one.stopped)
                ),
                _reasons(one.why),
            ]
            for run, one in view["guards"]
        ]
        parts += ["## What the guard drew again", _table(head, rows)]
    if view["dials"]:
        parts.append("## When to leave")
        for one in view["dials"]:
            parts += _tuning(one)
    if view["missing"]:
        rows = [
            [code(column, cell=True), code(measure, cell=True), f"{total:,}", _reasons(reasons)]
            for column, measure, total, reasons in view["missing"]
        ]
        parts += ["## Not measured", _table(["what", "measure", "items", "reasons"], rows)]
    for run, _, transcripts in view["simulated"]:
        shown = transcripts[:SHOWN_MARKDOWN]
        parts += [f"## Conversations of {code(run.name)}", f"{len(shown)} of {run.total:,}."]
        for transcript in shown:
            parts += _told(transcript)
    parts.append("## Manifest")
    for run, groups in view["manifests"]:
        rows = [
            [code(group, cell=True), code(key, cell=True), code(_short_json(value), cell=True)]
            for group, items in groups
            for key, value in items
        ]
        parts += [f"### {code(run.name)}", _table(["", "name", "value"], rows)]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "replace").decode()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _arrowed(name: str, columns: Sequence[Column]) -> str:
    better = next(column.figures[name].better for column in columns if name in column.figures)
    return (name if name in MEASURES else code(name, cell=True)) + _ARROWS.get(better, "")


def _cell(column: Column, name: str) -> str:
    figure = column.figures.get(name)
    if figure is None:
        return ""
    counted = f"n {figure.n:,}" + (f", {figure.missing:,} missing" if figure.missing else "")
    if figure.value is None:
        return f"not measured: {code(figure.why, cell=True)}; {counted}"
    unit = figure.unit if figure.unit == "%" else ""
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f" ({number(figure.low)} to {number(figure.high)})"
    return f"{number(figure.value)}{unit}{interval}; {counted}"


def _reasons(reasons: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{code(_cut(why, 200), cell=True)} {count:,}" for why, count in reasons)


def _tuning(one: Dial) -> Iterator[str]:
    endings = one.endings
    yield f"### {code(one.label)}"
    if endings.sweep is None or endings.ended is None or endings.ece is None:
        yield f"No threshold to suggest: {code(endings.why)}."
        return
    answers = (
        f"{endings.n:,} turns of {endings.people:,} people, who left at "
        f"{endings.ended:.1f} "
        "% of them"
    )
    yield (
        f"{answers}; {endings.missing:,} without P(end). Expected calibration "
        "error "
        f"{endings.ece:.3f}."
    )
    if one.note:
        yield code(one.note)
    rows = [
        [
            said,
            format_threshold(leaving.threshold) if leaving.threshold else "",
            *_in_percent(leaving),
            _f1(leaving),
        ]
        for said, _, leaving in one.rows
    ]
    yield _table(
        ["", "--end-threshold", "leaves too early", "stays too long", "leaves", "F1"], rows
    )
    curve = endings.sweep
    at = [i for i, above in enumerate(curve.threshold) if above in IN_FIGURES]
    shown = (
        ("leaves too early", curve.premature),
        ("stays too long", curve.missed),
        ("leaves", curve.end_rate),
    )
    rows = [
        [said, *(f"{values[i]:.1f} %" for i in at)] for said, values in (*shown, ("F1", curve.f1))
    ]
    yield _table(["--end-threshold", *(format_threshold(curve.threshold[i]) for i in at)], rows)
    bins = [[f"{b.n:,}", code(probability(b.p_end)), f"{b.ended:.3f}"] for b in endings.bins]
    yield _table(["turns", "mean P(end)", "share that left"], bins)


def _in_percent(leaving: EndRule) -> list[str]:
    return [f"{share:.1f} %" for share in (leaving.premature, leaving.missed, leaving.end_rate)]


def _f1(leaving: EndRule) -> str:
    between = (
        ""
        if leaving.low is None or leaving.high is None
        else f" ({leaving.low:.1f} to {leaving.high:.1f})"
    )
    return f"{leaving.f1:.1f} %{between}"


def _told(transcript: Transcript) -> Iterator[str]:
    conversation = transcript.conversation
    yield f"### {code(_cut(conversation.id, 80))}"
    if conversation.intent:
        yield f"Intent: {code(_cut(conversation.intent, 400))}"
    for said in transcript.turns:
        aside = "" if said.p_end is None else f"; P(end) {code(probability(said.p_end))}"
        marks = "".join(f"; {code(mark)}" for mark in said.marks)
        yield f"**{said.label}**{aside}{marks}"
        yield fenced(_cut(said.text, FIRST))
        for key, value in said.facts:
            yield f"{code(key)}: {code(_short_json(value))}"
        yield from _drafts(said)
    ending = transcript.ending
    aside = "" if ending.p_end is None else f"; P(end) {code(probability(ending.p_end))}"
    why = STOP_WORDS.get(ending.label, "it has no stop reason")
    yield f"*{why}*{aside}" + "".join(f"; {code(mark)}" for mark in ending.marks)
    yield from _drafts(ending)
    for key, value in transcript.about:
        yield f"{code(key)}: {code(_short_json(value))}"


def _drafts(said: Said) -> Iterator[str]:
    for text, why in said.rejected:
        yield f"rejected ({code(_cut(why, NAME))}): {code(_cut(text, NAME))}"
