"""Draw how well models of several sizes predict people, after the same training.

    python recipes/small/curve.py OUT [FILE]

OUT is the folder of run.sh: every training run in it that was measured in curve/ is a point. The
bits per byte with intent on held-out people are printed as a table; FILE (.svg), if it is given,
gets the drawing.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from findings import shown, table

from userlm.json_files import read_json
from userlm.metrics.controls import WITH

WIDTH, HEIGHT, MARGIN = 480, 280, 48
NAME = "bits per byte"

Point = tuple[str, int, float, float | None, float | None]
"""Name, weights, bits per byte, and its interval."""


def points(out: Path) -> list[Point]:
    found: list[Point] = []
    for results in sorted(out.glob("curve/*/results.json")):
        name = results.parent.name
        measured = next(m for m in read_json(results)[WITH] if m["name"] == NAME)
        manifest = read_json(out / name / "run.json")
        weights = read_json(out / name / "results.json")["parameters"]
        bounds = (measured["value"], measured["low"], measured["high"])
        found.append((manifest["options"]["base"], weights, *bounds))
    return sorted(found, key=lambda point: point[1])


def drawing(found: list[Point]) -> str:
    """Return an SVG: weights on a logarithmic axis, bits per byte with their intervals."""
    sizes = [math.log10(weights) for _, weights, *_ in found]
    bounds = [
        bound
        for _, _, value, low, high in found
        for bound in (low or value, high or value)
    ]
    left, right = min(sizes) - 0.3, max(sizes) + 0.3
    bottom, top = min(bounds) - 0.1, max(bounds) + 0.1

    def x(size: float) -> float:
        return MARGIN + (size - left) / (right - left) * (WIDTH - 2 * MARGIN)

    def y(value: float) -> float:
        return (
            HEIGHT - MARGIN - (value - bottom) / (top - bottom) * (HEIGHT - 2 * MARGIN)
        )

    floor = HEIGHT - MARGIN
    shapes = [
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{floor}" y2="{floor}" stroke="#444"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 20}">{NAME} of held-out people, with intent</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">weights</text>',
    ]
    for (name, weights, value, low, high), size in zip(found, sizes, strict=True):
        at, up = f"{x(size):.1f}", y(value)
        if low is not None and high is not None:
            ends = f'y1="{y(low):.1f}" y2="{y(high):.1f}"'
            shapes.append(f'<line x1="{at}" x2="{at}" {ends} stroke="#888"/>')
        number = f"{weights / 1e6:,.1f}M"
        shapes += [
            f'<circle cx="{at}" cy="{up:.1f}" r="4" fill="#1a5fb4"/>',
            f'<text x="{at}" y="{up - 10:.1f}" dx="8">{name}: {value:.2f}</text>',
            f'<text x="{at}" y="{floor + 18}" text-anchor="middle">{number}</text>',
        ]
    size_and_font = (
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size_and_font}>'
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def main(out: Path, file: Path | None) -> None:
    found = points(out)
    if not found:
        sys.exit(
            f"{out} has no user model that was measured; run findings.sh people first"
        )
    rows = [
        (name, f"{weights:,}", shown(*measured)) for name, weights, *measured in found
    ]
    print(table(("model", "weights", f"{NAME}, with intent"), rows))
    if file:
        file.write_text(drawing(found), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None)
