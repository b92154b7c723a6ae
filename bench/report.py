"""How long the report takes to open in a browser, and how smoothly its conversations scroll.

    python bench/report.py [CONVERSATIONS]

Writes two runs of `simulate` with so many generated conversations in all (10,000 if it is not
said; words by Zipf's law; seeded), makes their report, and opens the file in headless Chromium
five times, each a fresh browser; medians. Opened: until the list and the first conversation are
drawn. Frames: while the list scrolls from the first to the last conversation in 4 s; late ones
take over 50 ms. Found: from a word in the search box to the new list, with its wait for a next key.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from measuring import machine, table
from playwright.sync_api import Page, sync_playwright

from userlm.commands import Report, report

RUNS = ("old-bot", "new-bot")
TURNS = (1, 6)
WORDS = {"user": (4, 30), "assistant": (40, 160)}
VOCABULARY = 20_000
TIMES = 5
SIZES = ({"width": 1280, "height": 900}, {"width": 390, "height": 844})
DRAWN = "document.querySelector('.reading .turn') !== null"
FRAMES = """async seconds => {
  const list = document.querySelector(".list");
  const whole = list.scrollHeight - list.clientHeight;
  const begin = performance.now();
  const frames = [];
  let last = begin;
  while (last - begin < seconds * 1000) {
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
    list.scrollTop = whole * Math.min(1, (now - begin) / (seconds * 1000));
  }
  return frames.slice(1);
}"""
FOUND = """async word => {
  const field = document.querySelector(".tools [name=find]");
  const count = document.querySelector(".count");
  const before = count.textContent;
  field.value = word;
  const begin = performance.now();
  field.dispatchEvent(new Event("input", { bubbles: true }));
  while (count.textContent === before) await new Promise(done => setTimeout(done, 5));
  return performance.now() - begin;
}"""


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = [_write(root / name, count // len(RUNS), name) for name in RUNS]
        begin = perf_counter()
        written = report(Report(runs, root / "report"))
        seconds = perf_counter() - begin
        page = Path(str(written["html"]))
        size = page.stat().st_size / 1e6
        print(machine())
        print(f"{count:,} conversations: made in {seconds:.1f} s, {size:.1f} MB\n")
        print(table(["width", *MEASURED], list(_measured(page))))


MEASURED = (
    "opened, s",
    "frames a second",
    "longest frame, ms",
    "late frames",
    "found, s",
)


def _measured(page: Path) -> Iterator[list[str]]:
    with sync_playwright() as playwright:
        for size in SIZES:
            found = []
            for _ in range(TIMES):
                browser = playwright.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox"]
                )
                found.append(_once(browser.new_page(viewport=size), page))
                browser.close()
            middle = [median(column) for column in zip(*found, strict=True)]
            shown = [f"{middle[0]:.2f}", f"{middle[1]:.0f}", f"{middle[2]:.0f}"]
            yield [str(size["width"]), *shown, f"{middle[3]:.1f} %", f"{middle[4]:.2f}"]


def _once(page: Page, path: Path) -> list[float]:
    begin = perf_counter()
    page.goto(path.as_uri())
    page.wait_for_function(DRAWN)
    opened = perf_counter() - begin
    frames: list[float] = page.evaluate(FRAMES, 4)
    late = sum(frame > 50 for frame in frames)
    found = page.evaluate(FOUND, "w77 ")
    rate = 1000 * len(frames) / sum(frames)
    return [opened, rate, max(frames), 100 * late / len(frames), found / 1000]


def _write(folder: Path, count: int, name: str) -> Path:
    """Write a finished run of `simulate`."""
    folder.mkdir()
    options = {"user": "trained:userlm-small", "assistant": name, "max_turns": TURNS[1]}
    manifest = {"format": 2, "verb": "simulate", "options": options, "inputs": {}}
    (folder / "run.json").write_text(json.dumps(manifest))
    draw = random.Random(name)
    weights = [1 / rank for rank in range(1, VOCABULARY + 1)]
    words = [f"w{rank}" for rank in range(VOCABULARY)]
    with (folder / "conversations.jsonl").open("w") as file:
        for i in range(count):
            file.write(json.dumps(_talk(i, draw, words, weights)) + "\n")
    results = {"stops": {"end": count}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def _talk(
    i: int, draw: random.Random, words: list[str], weights: list[float]
) -> dict[str, Any]:
    def said(role: str) -> dict[str, Any]:
        text = " ".join(draw.choices(words, weights, k=draw.randint(*WORDS[role])))
        return {"role": role, "text": text, "meta": {"p_end": draw.random()}}

    turns = [said(role) for _ in range(draw.randint(*TURNS)) for role in WORDS]
    intent = f"You are a user chatting with an assistant language model to {turns[0]['text']}"
    return {
        "id": f"t{i}#0",
        "intent": intent,
        "stop": "end",
        "ended": True,
        "turns": turns,
    }


if __name__ == "__main__":
    main()
