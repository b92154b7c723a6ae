"""What training did: its loss, its samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from userlm.show.blocks import (
    Block,
    Chart,
    Figure,
    Group,
    Part,
    Point,
    Quote,
    Row,
    Section,
    Series,
    Table,
    Value,
)
from userlm.show.finished import Finished
from userlm.show.formats import axis, plain, plural

CURVE_POINTS = 240  # points; a longer log is averaged


def section(runs: Sequence[Finished], colours: Mapping[str, str]) -> Section:
    figures = []
    trained = [run for run in runs if run.verb == "train"]
    for run in trained:
        note = tuple(_training_note(run))
        figures.append(
            Figure(Quote(run.name, 60), note, loss_chart(run), colours[run.name])
        )
    averaged = any(len(run.log) > CURVE_POINTS for run in trained)
    intro = "Long logs are averaged over neighbouring steps." if averaged else ""
    blocks: list[Block] = [Group(figures, look="plots")] if figures else []
    blocks += _sample_counts(trained)
    return Section("training", "Training", "Training", blocks, intro)


def _sample_counts(trained: Sequence[Finished]) -> Iterator[Table]:
    """Yield the numbers of samples before and after the limit on tokens, under both policies."""
    rows: list[Row] = []
    for run in trained:
        if counts := run.results.get("sample_counts"):
            limit = run.results.get("max_tokens") or 0
            cells = [f"{counts[key]:,}" for key in ("all", "truncate", "drop")]
            rows.append((Quote(run.name, 60), *cells, f"{limit:,}"))
    if rows:
        head = ("run", "in all", "truncate", "drop", "--max-tokens")
        note = "What --max-tokens leaves with --overlong truncate, and with drop."
        yield Table(head, rows, "table", "Samples", note)


def _training_note(run: Finished) -> Iterator[Part]:
    yield "base "
    yield Quote(str(run.options.get("base")))
    for noun in ("parameter", "sample", "token", "loss token", "step"):
        count = run.results.get(f"{noun}s".replace(" ", "_"))
        if count is not None:
            yield f" · {plural(count, noun)}"
    values = {"final loss": run.results.get("loss")}
    for key, when in (("untrained", "before"), ("best", "best")):
        evaluated = run.results.get(key) or {}
        values[f"validation perplexity {when}"] = evaluated.get("valid_perplexity")
    for name, value in values.items():
        if value is not None:
            yield f" · {name} "
            yield Value(value)
    if len(run.log) < 2:
        yield " · fewer than two steps: no curve"


def loss_chart(run: Finished) -> Chart | None:
    """Return the loss by step; `None` if there is no curve."""
    if len(run.log) < 2:
        return None
    points = thin(run.log, CURVE_POINTS)
    losses = [loss for _, loss in points]
    first_step, first_loss = run.log[0]
    last_step, last_loss = run.log[-1]
    told = f"{first_loss:.2f} at step {first_step}, {last_loss:.2f} at {last_step}"
    return Chart(
        f"Training loss of {plain(run.name)}: {told}",
        axis("optimizer step", min(0, first_step), max(1, last_step), 4),
        axis("loss, nats per target token", min(losses), max(losses), 4),
        [Series(points)],
        [Point(*points[0]), Point(*points[-1])],
    )


def thin(log: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` points; if there are more, neighbours are averaged."""
    size = math.ceil(len(log) / most)
    points = []
    for start in range(0, len(log), size):
        steps, losses = zip(*log[start : start + size], strict=True)
        points.append((fmean(steps), fmean(losses)))
    return points
