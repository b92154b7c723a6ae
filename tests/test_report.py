"""The page from finished run folders: its numbers, its drawings, and that nothing in a transcript
runs."""

import html as html_library
import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import userlm
from userlm.manifest import file_hash
from userlm.metrics.scores import score_line
from userlm.show import (
    charts,
    finished,
    formats,
    html,
    markdown,
    measures,
    thresholds,
    training,
)
from userlm.show import page as report
from userlm.show.blocks import Line, Quote, Strip, Table
from userlm.show.finished import Finished
from userlm.text import INTENT_PREFIX
from userlm.types import InputError, MeasureRow

FIGURE = {"name": "perplexity", "n": 3, "missing": 1, "better": "lower", "unit": ""}
TALK = {
    "id": "a#0",
    "intent": "You are a user chatting with an assistant language model to bake bread.",
    "stop": "end",
    "ended": True,
    "turns": [
        {
            "role": "user",
            "text": "how do i bake bread",
            "meta": {"p_end": 0.0123, "empty_drafts": 2, "cut": True},
        },
        {"role": "assistant", "text": "Say more.", "meta": {"stub": "clarifier"}},
    ],
    "meta": {
        "intent_by": "extractive",
        "country": "Atlantis",
        "end_meta": {"p_end": 0.75, "empty_drafts": 1},
    },
}
LOG = [{"step": 1, "loss": 7.25}, {"step": 2, "loss": 6.5}, {"step": 3, "loss": 6.125}]


def write(
    root: Path,
    name: str,
    verb: str,
    results: dict[str, Any],
    **lines: list[dict[str, Any]],
) -> Path:
    """A finished run: its line files are named without their suffix."""
    folder = root / name
    folder.mkdir(parents=True)
    manifest = {
        "format": 2,
        "verb": verb,
        "options": {
            "user": "trained:m",
            "assistant": "clarifier",
            "base": "scratch:64x2",
            "seed": 7,
        },
        "inputs": {"logs.jsonl": "c0ffee"},
        "versions": {"python": "3.11.7"},
        "git": "abc1234",
        "host": "x86_64, 2 cores",
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    for file, rows in lines.items():
        (folder / f"{file}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def measured(
    value: float | None, low: float | None, high: float | None, **other: Any
) -> dict[str, Any]:
    return FIGURE | {"value": value, "low": low, "high": high} | other


def folders(root: Path) -> list[Path]:
    """A run of each verb."""
    log = {key: TALK[key] for key in ("id", "intent", "turns", "ended")} | {
        "meta": {"intent_by": "extractive"}
    }
    answer = TALK | {
        "id": "a/1",
        "origin": {"conversation": "a", "first_own_turn": 1, "person_ended": True},
        "meta": {"end_meta": {}},
    }
    said = {
        "id": "a/0",
        "turns": TALK["turns"][:1],
        "origin": {"conversation": "a", "target": "hello", "person_ended": False},
    }
    f1 = measured(41.5, 30.25, 52.75, name="termination F1", better="higher", unit="%")
    silent = measured(
        None,
        None,
        None,
        name="termination AUROC",
        n=0,
        missing=2,
        better="higher",
        why="no P(end)",
    )
    words = measured(
        12.125, 10.5, 13.75, name="words per turn", better="neither", unit="words"
    )
    scores = [
        score_line("sim", "termination AUROC", MeasureRow(k, "p", None, "no P(end)"))
        for k in "ab"
    ]
    ppl = [
        score_line("with intent", "perplexity", row)
        for row in (
            MeasureRow("a/0", "p", (3.0, 2.0, 9.0)),
            MeasureRow("a/1", "p", None, "no intent"),
            MeasureRow("a/end", "p", None, "no intent"),  # an end is not counted
        )
    ]
    counts = {
        "in": 9,
        "out": 6,
        "dropped: language: fr": 2,
        "dropped: template": 1,
        "note: fields left out": 4,
    }
    stops = {"conversations": 1, "stops": {"end": 1}, "tokens_in": 0, "tokens_out": 0}
    trained = {
        "conversations": 3,
        "samples": 8,
        "dropped": 1,
        "steps": 3,
        "parameters": 1000,
        "loss": 6.125,
    }
    columns = {
        "without intent": [measured(487.07, 447.5, 519.125)],
        "with intent": [measured(480.5, 440.0, 510.0)],
    }
    return [
        write(root, "import", "import", {"counts": counts}, conversations=[log]),
        write(root, "clean", "clean", {"counts": counts}, test=[log]),
        write(
            root,
            "intents",
            "intents",
            {"counts": {"in": 9, "out": 9}, "leakage": 0.5},
            test=[log],
        ),
        write(root, "train", "train", trained, log=LOG),
        write(root, "ppl", "ppl", columns, scores=ppl),
        write(root, "respond", "respond", stops, conversations=[said, answer]),
        write(root, "sim", "simulate", stops, conversations=[TALK]),
        write(
            root,
            "score",
            "score",
            {
                "sim": [one | {"stub": "clarifier"} for one in (f1, silent, words)],
                "human": [words],
            },
            scores=scores,
        ),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    return [
        finished.read_run(folder) for folder in folders(tmp_path_factory.mktemp("runs"))
    ]


def html_page(runs: Sequence[Finished]) -> str:
    return html.render(report.describe(runs))


def markdown_page(runs: Sequence[Finished]) -> str:
    return markdown.render(report.describe(runs))


def data_of(page: str) -> Any:
    """The conversations in a page, as its script reads them."""
    return json.loads(page.partition('class="data">')[2].partition("</script>")[0])


class Reader(HTMLParser):
    """Elements and text of a page, as a browser's parser would take them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# --- numbers and drawings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        # (1037 - 447) / 5 = 118, so steps of 200; 400 is the last below 447, 1200 the first above
        # 1037.
        (447, 1037, 5, [400, 600, 800, 1000, 1200]),
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),  # 0.2 exactly, no 0.6000000000000001
        (0, 80, 4, [0, 20, 40, 60, 80]),  # the ends are round already: nothing is added
        (
            5,
            5,
            5,
            [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6],
        ),  # 5 +- 0.5: a width of 1, steps of 0.2, outward
        (-3, 3, 3, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_span_the_values(
    low: float, high: float, count: int, expected: list[float]
) -> None:
    assert formats.ticks(low, high, count) == expected


def test_a_scale_maps_ends_to_ends_and_can_be_turned_around() -> None:
    assert charts.scale(0, (0, 10), (6, 314)) == 6
    assert charts.scale(10, (0, 10), (6, 314)) == 314
    assert charts.scale(2.5, (0, 10), (100, 0)) == 75  # a quarter of the way up


def test_words_fall_into_bins_that_double() -> None:
    # 0 | 1 | 2-3 | 4-7 | ... | 128-255 | 256+
    assert [finished.word_bin(n) for n in (0, 1, 2, 3, 4, 7, 8, 255, 256, 99999)] == [
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        8,
        9,
        9,
    ]


def test_numbers_are_shown_as_in_the_terminal() -> None:
    assert [formats.number(x) for x in (487.0696, 1029.8589, 0.0, 12345.6, -0.5)] == [
        "487.07",
        "1,029.86",
        "0.00",
        "12,346",
        "-0.50",
    ]
    assert [formats.number(p, 3) for p in (0.0, 0.0001, 0.0054, 1.0)] == [
        "0.000",
        "<0.001",
        "0.005",
        "1.000",
    ]


def test_a_strip_draws_value_interval_and_people_on_its_scale() -> None:
    # domain 0..100 on pixels 6..314, 3.08 pixels for each percent: 50 -> 160, 25 -> 83, 75 -> 237
    drawn = charts.draw(Strip(50.0, 25.0, 75.0, (0, 100), "circle", 25.0))
    assert 'cx="160.0"' in drawn and "M83.0 4V12M83.0 8H237.0M237.0 4V12" in drawn
    assert '<line class="reference" x1="83.0" x2="83.0"' in drawn


def test_bars_have_the_height_of_their_share_and_tell_it_in_words() -> None:
    # 3 of 4 are 75 %: on a scale to 100 % from pixel 126 up to 16, that is 82.5 high, from 43.5
    drawn = charts.draw(
        report.histogram("sim", "turns", ("0", "1"), (25, 75), (100, 0), 100)
    )
    assert 'y="43.5"' in drawn and 'height="82.5"' in drawn
    assert 'aria-label="sim, by turns. 0: 25 %, 1: 75 %"' in drawn
    outline = "M34.0 126.0L34.0 16.0L174.0 16.0L174.0 126.0L314.0 126.0L314.0 126.0"
    assert f'd="{outline}"' in drawn  # humans: all in the first bin


def test_a_long_log_is_averaged_over_neighbours() -> None:
    assert training.thin([(1, 4.0), (2, 2.0), (3, 1.0)], 2) == [(1.5, 3.0), (3.0, 1.0)]
    assert training.thin([(1, 4.0), (2, 2.0)], 2) == [(1.0, 4.0), (2.0, 2.0)]


# --- what is on the page --------------------------------------------------------------------------


def test_every_number_on_the_page_stands_in_a_file_of_the_runs(
    runs: list[Finished],
) -> None:
    page = html_page(runs)
    known: set[float] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                collect(item)
        elif isinstance(value, (int, float)):
            known.add(float(value))

    for run in runs:
        collect(json.loads((run.folder / "results.json").read_text()))
    chances = {0.0123, 0.75}  # P(end) of the first turn and of the ending
    # What a story derives from these numbers has no `data` element.
    shown = re.findall(r'<data value="([^"]+)">([^<]+)</data>', page)
    values = {float(value) for value, _ in shown}
    assert values <= known | chances and chances <= values
    for value, text in shown:
        digits = (3,) if float(value) in chances else (1, 2)
        rounded = [formats.number(float(value), each) for each in digits]
        assert html_library.unescape(text) in rounded
    for value in (487.07, 447.5, 519.125, 41.5, 30.25, 52.75, 12.125, 6.125):
        assert value in values


def test_the_same_runs_give_the_same_page_and_reading_changes_nothing(
    tmp_path: Path,
) -> None:
    made = folders(tmp_path)
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    first, second = ([finished.read_run(folder) for folder in made] for _ in range(2))
    assert html_page(first) == html_page(second)
    assert markdown_page(first) == markdown_page(second)
    after = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert after == before


@pytest.mark.slow
def test_any_mix_of_runs_gives_a_page_with_just_their_sections(
    runs: list[Finished],
) -> None:
    sections = {
        "figures": {"train", "ppl"},
        "measures": {"ppl", "score"},
        "training": {"train"},
        "data": {"import", "clean", "intents", "train"},
        "endings": {"simulate", "respond"},
        "lengths": {"clean", "intents", "simulate", "respond"},
        "conversations": {"simulate"},
        "missing": {"ppl", "score"},
        "manifest": {run.verb for run in runs},
    }
    mixes = [mix for size in range(1, 9) for mix in combinations(runs, size)]
    for mix in mixes:
        page, verbs = html_page(mix), {run.verb for run in mix}
        markdown_page(mix)
        found = set(re.findall(r'<section id="(\w+)">', page))
        assert found - {"found"} == {
            name for name, of in sections.items() if of & verbs
        }, verbs
        links = set(re.findall(r'href="#(\w+)"', page))
        assert links == set(re.findall(r'<section id="(\w+)">', page))


def test_two_runs_with_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    stops = {"stops": {"end": 1}}
    made = [
        write(tmp_path / side, "sim", "simulate", stops, conversations=[TALK])
        for side in "ab"
    ]
    page = html_page([finished.read_run(folder) for folder in made])
    assert "sim (2)" in page


def test_an_equal_human_row_is_shown_once_and_another_under_its_own_name(
    tmp_path: Path,
) -> None:
    human, other = (
        [measured(value, 1.0, 2.0, name="words per turn")] for value in (1.5, 1.75)
    )
    first = write(tmp_path, "s1", "score", {"sim": human, "human": human}, scores=[])
    same = write(tmp_path, "s2", "score", {"sim2": human, "human": human}, scores=[])
    differs = write(tmp_path, "s3", "score", {"human": other}, scores=[])
    runs = [finished.read_run(folder) for folder in (first, same, differs)]
    labels = [
        column.label for column in measures.columns_of(runs, measures.colours_of(runs))
    ]
    assert labels == ["sim", "sim2", "human", "human (s3)"]


def test_stubs_are_labelled_wherever_their_figures_stand(runs: list[Finished]) -> None:
    page = html_page(runs)
    assert 'sim: <span class="badge">assistant: clarifier</span>' in page
    assert 'intents, sim: <span class="badge">intents: extractive</span>' in page
    assert '<span class="badge">clarifier, a stub</span>' in page  # beside the turn
    assert "Without a model" in markdown_page(runs)
    models = [run for run in runs if run.verb in ("train", "ppl")]
    assert "badge" not in html_page(models).partition("</style>")[2]


def test_variants_of_perplexity_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    results = {
        "with intent": [measured(8.5, 8.0, 9.0), measured(9.5, 9.0, 9.75, name="x: y")]
    }
    runs = [finished.read_run(write(tmp_path, "ppl", "ppl", results, scores=[]))]
    page, text = html_page(runs), markdown_page(runs)
    folded = page.partition("<summary>Variants of perplexity</summary>")[2].partition(
        "</details>"
    )
    assert '<data value="9.5">' in folded[0] and '<data value="9.5">' not in folded[2]
    assert '<data value="8.5">' not in folded[0]
    assert (
        "### Variants of perplexity" in text
        and "| `x: y` ↓ | 9.50 (9.00 to 9.75)" in text
    )


def test_what_was_not_measured_is_listed_with_its_reasons(runs: list[Finished]) -> None:
    page, text = html_page(runs), markdown_page(runs)
    assert (
        "not measured: no P(end)" in page
        and "<span>no intent&nbsp;<b>1</b></span>" in page
    )
    columns = measures.columns_of(runs, measures.colours_of(runs))
    panels = {panel.title.text: panel for panel in measures.panels(columns)}
    assert [row.strip for row in panels["termination AUROC"].rows] == [None], (
        "nothing is drawn"
    )
    assert "| `score · sim` | `termination AUROC` | 2 | `no P(end)` 2 |" in text
    assert "| `ppl · with intent` | `perplexity` | 1 | `no intent` 1 |" in text


def test_a_transcript_shows_what_is_known_about_each_turn_and_nothing_about_the_person(
    runs: list[Finished],
) -> None:
    page, text = html_page(runs), markdown_page(runs)
    for said in (
        "2 empty drafts before",
        "1 empty draft before",
        "cut at the token limit",
        "the user ended the conversation",
    ):
        assert said in page
    assert (
        'P(end) <data value="0.0123">0.012</data>' in page
        and 'P(end) <data value="0.75">0.750</data>' in page
    )
    assert (
        "**user 1**; P(end) `0.012`; `2 empty drafts before`; `cut at the token limit`"
        in text
    )
    assert "Atlantis" not in page and "Atlantis" not in text


def test_only_the_first_conversations_are_shown_and_the_page_says_so(
    tmp_path: Path,
) -> None:
    talks = [TALK | {"id": f"talk-{i}"} for i in range(finished.TRANSCRIPTS + 5)]
    run = finished.read_run(
        write(tmp_path, "sim", "simulate", {"stops": {"end": 8}}, conversations=talks)
    )
    page = html_page([run])
    assert [talk["id"] for talk in data_of(page)["talks"]] == [
        "talk-0",
        "talk-1",
        "talk-2",
    ]
    assert f"the first {finished.TRANSCRIPTS} of {len(talks)} conversations" in page
    assert f"3 of {len(talks)}." in markdown_page([run])


def test_turns_that_were_given_are_marked_and_not_counted_as_simulated(
    tmp_path: Path,
) -> None:
    folder = write(
        tmp_path,
        "sim",
        "simulate",
        {"stops": {"end": 1}},
        conversations=[TALK | {"origin": {"first_own_turn": 1}}],
    )
    manifest = json.loads((folder / "run.json").read_text())
    manifest["options"]["keep_turns"] = 1
    (folder / "run.json").write_text(json.dumps(manifest))
    run = finished.read_run(folder)
    assert run.lengths is not None and sum(run.lengths.words) == 0
    assert "from the log" in html_page([run])


def test_failed_conversations_have_no_length_and_are_counted(tmp_path: Path) -> None:
    failed = TALK | {"id": "b", "stop": "error", "ended": False}
    run = finished.read_run(
        write(tmp_path, "sim", "simulate", {"stops": {}}, conversations=[TALK, failed])
    )
    assert (
        run.lengths is not None
        and sum(run.lengths.turns) == 1
        and len(run.lengths.failed) == 1
    )
    assert "1 failed ones have no known length" in html_page([run])


def test_the_manifest_holds_options_inputs_prompts_and_versions(
    runs: list[Finished],
) -> None:
    run = runs[6]
    prompted = Finished(
        **{
            **vars(run),
            "manifest": {**run.manifest, "prompts": {"user_first.md": "beef01"}},
        }
    )
    page = html_page([prompted])
    for value in (
        "c0ffee",
        "beef01",
        "user_first.md",
        "abc1234",
        "3.11.7",
        "x86_64, 2 cores",
    ):
        assert value in page
    assert "none recorded" in html_page([run])


def test_a_value_that_is_no_number_is_shown_as_not_measured(tmp_path: Path) -> None:
    results = {"human": [measured(float("nan"), None, float("inf"))]}
    page = html_page(
        [finished.read_run(write(tmp_path, "score", "score", results, scores=[]))]
    )
    assert "not measured" in page and "nan" not in page.partition("</style>")[2]


# --- when users leave, and what a guard did -------------------------------------------------------


def leaving(above: float | None, *shares: float) -> dict[str, Any]:
    return {"threshold": above} | dict(
        zip(
            ("premature", "missed", "end_rate", "f1", "low", "high"),
            shares,
            strict=True,
        )
    )


TUNED: dict[str, Any] = {
    "n": 1234,
    "missing": 5,
    "why": "",
    "people": 77,
    "ended": 37.55,
    "now": leaving(None, 10.0, 90.0, 8.0, 12.5, 5.25, 20.5),
    "best": leaving(0.5, 21.0, 33.0, 40.0, 60.5, 55.25, 65.5),
    "equal": leaving(0.9, 1.0, 98.0, 2.0, 3.5, 1.25, 4.5),
    "sweep": {
        "threshold": [0.01, 0.05, 0.1, 0.5, 0.9, 0.99],
        "premature": [80.0, 80.0, 80.0, 20.0, 0.0, 0.0],
        "missed": [0.0, 0.0, 0.0, 30.0, 100.0, 100.0],
        "end_rate": [85.0, 85.0, 85.0, 41.0, 0.0, 0.0],
        "f1": [50.0, 50.0, 50.0, 61.0, 0.0, 0.0],
    },
    "ece": 0.125,
    "bins": [
        {"n": 617, "p_end": 0.0001, "ended": 0.25},
        {"n": 617, "p_end": 0.75, "ended": 0.5},
    ],
    "user": "trained:m",
    "note": "made with --end-threshold 0.25, so 'now' is that threshold",
}
SILENT = {
    "n": 0,
    "missing": 9,
    "why": "no P(end)",
    "best": None,
    "user": "prompted:m",
    "note": "",
}
GUARDED = {
    "turns": 40,
    "drafts": 50,
    "resampled": 6,
    "kept": 2,
    "stopped": 1,
    "why": {"too long": 7, "echo": 3},
}


def scored(root: Path, endings: Any, name: str = "score") -> Finished:
    words = [measured(12.125, 10.5, 13.75, name="words per turn")]
    return finished.read_run(
        write(root, name, "score", {"asked": words, "endings": endings}, scores=[])
    )


def test_a_threshold_sweep_draws_both_curves_where_they_move_and_marks_what_is_suggested(
    tmp_path: Path,
) -> None:
    sweep = scored(tmp_path, {"asked": TUNED}).endings["asked"]
    drawn = charts.draw(thresholds.curve_chart("asked", sweep))
    # It moves from .1 to .9, which are as far from .5 in log odds: pixels 34, 155 and 276. Shares
    # from pixel 156 (none) to 18 (100 %), 1.38 each: 80 % at 45.6, 20 % at 128.4, 30 % at 114.6.
    assert '<path class="line" d="M34.0 45.6L155.0 128.4L276.0 156.0"/>' in drawn
    assert '<path class="line dashed" d="M34.0 156.0L155.0 114.6L276.0 18.0"/>' in drawn
    # The marks of the best F1 stand at .5 and its own 21 and 33 %: 127.0 and 110.5, each 5.5 high.
    # That of the equal rate at .9 and 1 %: 154.6, 4.2 high; those of now beside the curve, at 10
    # and 90 %.
    for mark in (
        '<path class="mark" d="M155.0 121.5l',
        '<path class="mark open" d="M155.0 105.0l',
        '<path class="mark" d="M271.8 150.4h',
        '<circle class="mark" cx="302.0" cy="142.2"',
        '<circle class="mark open" cx="302.0" cy="31.8"',
    ):
        assert mark in drawn, mark
    assert re.findall(r">(0\.[0-9]+)</text>", drawn) == ["0.5", "0.1", "0.9"]
    assert (
        "now: 10 % and 90 %; best F1 (0.5): 21 % and 33 %; equal rate (0.9): 1 % and 98 %"
        in drawn
    )


def test_a_curve_that_never_moves_is_drawn_all_the_same(tmp_path: Path) -> None:
    curve = {
        key: [0.25, 0.75] if key == "threshold" else [20.0, 20.0]
        for key in TUNED["sweep"]
    }
    run = scored(tmp_path, {"asked": TUNED | {"equal": TUNED["best"], "sweep": curve}})
    # Around the one suggestion, .5, from an e-th of its odds to e times those.
    assert thresholds.domain(run.endings["asked"]) == (-1, 1)
    drawn = charts.draw(thresholds.curve_chart("asked", run.endings["asked"]))
    assert "NaN" not in html_page([run]) and "nan" not in drawn


def test_reliability_draws_each_bin_against_the_diagonal(tmp_path: Path) -> None:
    sweep = scored(tmp_path, {"asked": TUNED}).endings["asked"]
    # .75 is 207 of the 276 pixels from 34, and a half is 69 of the 138 from 156 up; .25 is 34.5 up
    drawn = charts.draw(thresholds.calibration_chart("asked", sweep))
    marks = re.findall(r'<circle class="mark" cx="([0-9.]+)" cy="([0-9.]+)"', drawn)
    assert marks == [("34.0", "121.5"), ("241.0", "87.0")]
    assert (
        'd="M34.0 121.5L241.0 87.0"' in drawn
        and '<path class="reference" d="M34.0 156.0L310.0 18.0"/>' in drawn
    )


def test_the_figures_of_leaving_are_those_of_the_file_on_the_page_and_in_the_markdown(
    tmp_path: Path,
) -> None:
    run = scored(tmp_path, {"asked": TUNED, "silent": SILENT})
    page, text = html_page([run]), markdown_page([run])
    for share in (
        10.0,
        90.0,
        8.0,
        12.5,
        5.25,
        20.5,
        21.0,
        33.0,
        60.5,
        65.5,
        98.0,
        4.5,
        37.55,
    ):
        assert f'<data value="{share}">{share:.1f}</data>' in page
    told = " ".join("".join(Reader(page).text).split())
    assert (
        "1,234 turns of 77 people (5 more have no P(end)), who ended the conversation at 37.5 % of them."
        in told
    )
    assert "Note: made with --end-threshold 0.25, so 'now' is that threshold." in told
    assert "expected calibration error 0.125" in told
    assert "No threshold to suggest: no P(end)." in told
    assert "1,234 turns of 77 people (5 more have no P(end)), who ended the" in text
    assert "the conversation at 37.5 % of them." in text
    assert "| now |  | 10.0 % | 90.0 % | 8.0 % | 12.5 % (5.2 to 20.5) |" in text
    assert (
        "| best F1 | 0.5 | 21.0 % | 33.0 % | 40.0 % | 60.5 % (55.2 to 65.5) |" in text
    )
    assert "| --end-threshold | 0.01 | 0.1 | 0.5 | 0.9 | 0.99 |" in text
    assert "| missed end | 0.0 % | 0.0 % | 30.0 % | 100.0 % | 100.0 % |" in text
    assert "| 617 | `<0.001` | 0.250 |" in text
    assert "No threshold to suggest: `no P(end)`." in text


def test_endings_of_two_scores_are_told_apart_and_shown_once(tmp_path: Path) -> None:
    first, same = (scored(tmp_path, {"asked": TUNED}, name) for name in ("s1", "s2"))
    other = scored(tmp_path, {"asked": TUNED | {"n": 9}}, "s3")
    assert [
        group.title.text
        for group in thresholds.section([first, same, other], {}).blocks
    ] == [
        "asked",
        "asked (s3)",
    ]


def test_older_results_have_no_endings_and_perhaps_a_run_of_that_name(
    tmp_path: Path,
) -> None:
    words = [measured(12.125, 10.5, 13.75, name="words per turn")]
    older = finished.read_run(write(tmp_path, "s1", "score", {"sim": words}, scores=[]))
    named = finished.read_run(
        write(tmp_path, "s2", "score", {"endings": words}, scores=[])
    )
    assert (list(older.columns), list(named.columns)) == (["sim"], ["endings"])
    page = html_page([older, named])
    assert (
        'id="thresholds"' not in page
        and 'id="guard"' not in page
        and "When to end a conversation" not in markdown_page([older])
    )


def test_the_rates_of_a_guard_are_shown_for_each_run_that_has_them(
    tmp_path: Path,
) -> None:
    stops = {"stops": {"end": 1}}
    guarded = write(
        tmp_path,
        "guarded",
        "simulate",
        stops | {"guard": GUARDED},
        conversations=[TALK],
    )
    open_ = write(
        tmp_path, "open", "respond", stops | {"guard": None}, conversations=[TALK]
    )
    runs = [finished.read_run(folder) for folder in (guarded, open_)]
    page, text = html_page(runs), markdown_page(runs)
    section = " ".join(
        "".join(
            Reader(
                page.partition('<section id="guard">')[2].partition("</section>")[0]
            ).text
        ).split()
    )
    # 50 drafts for 40 turns are 1.25 each; 6, 2 and 1 of 40 are 15, 5 and 2.5 %
    assert "guardedsimulate 40 1.25 50 in all 15.0 % 6 5.0 % 2 2.5 % 1".replace(
        " ", ""
    ) in section.replace(" ", "")
    assert (
        "too long 7; echo 3" in section.replace("\xa0", " ") and "open" not in section
    )
    assert (
        "| `guarded` (simulate) | 40 | 1.25 (50 in all) | 15.0 % (6) | 5.0 % (2) | 2.5 % (1) | "
        "`too long` 7, `echo` 3 |"
    ) in text


def test_rejected_drafts_stand_beside_their_turn(tmp_path: Path) -> None:
    rejected = [
        {"text": "<b>no", "why": ["too long", "echo"]},
        {"text": "", "why": ["empty"]},
    ]
    known = {
        "p_end": 0.5,
        "rejected": rejected,
        "violates": ["repeat"],
        "truncated_tokens": 1200,
        "cut": True,
    }
    turns = [
        {"role": "user", "text": "hello", "meta": known},
        {"role": "assistant", "text": "ok"},
    ]
    last = {"rejected": rejected[:1], "exhausted": True, "truncated_tokens": "many"}
    talk = TALK | {
        "turns": turns,
        "stop": "guard",
        "ended": False,
        "meta": {"end_meta": last},
    }
    run = finished.read_run(
        write(tmp_path, "sim", "simulate", {"stops": {}}, conversations=[talk])
    )
    page, text = html_page([run]), markdown_page([run])
    assert (
        "<summary>2 drafts rejected</summary>" in page
        and "<summary>1 draft rejected</summary>" in page
    )
    assert 'too long, echo:</span> <bdi dir="auto">&lt;b&gt;no</bdi>' in page
    assert 'empty:</span> <bdi dir="auto">no text</bdi>' in page
    for mark in (
        "kept, though repeat",
        "1,200 tokens before did not fit",
        "cut at the token limit",
    ):
        assert f"<div>{mark}</div>" in page and f"`{mark}`" in text
    # Beside the turn, and beside the ending.
    assert text.count("rejected (`too long, echo`): `<b>no`") == 2
    assert "rejected (`empty`): ` `" not in text
    # What is no count is shown as it is.
    assert page.count("exhausted") == 0 and "truncated_tokens:" in page.replace(
        "\n", ""
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"n": "3"},
        {"why": None, "best": 3},
        {"now": None},
        {"equal": TUNED["equal"] | {"premature": 101.0}},
        {"best": TUNED["best"] | {"threshold": 1}},
        {"sweep": None},
        {"sweep": TUNED["sweep"] | {"missed": [0.0]}},
        {"sweep": {key: values[:1] for key, values in TUNED["sweep"].items()}},
        {"sweep": TUNED["sweep"] | {"threshold": [0, 0.05, 0.1, 0.5, 0.9, 0.99]}},
        {"bins": [{"n": 1, "p_end": 2.0, "ended": 0.5}]},
        {"ece": float("nan")},
    ],
)
def test_damaged_endings_are_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"score/results.json: 'endings' is damaged .*delete that file"
    ):
        scored(tmp_path, {"asked": TUNED | damage})


def test_a_damaged_guard_is_named(tmp_path: Path) -> None:
    for i, guard in enumerate(
        ({"turns": 3}, GUARDED | {"why": {"echo": -1}}, GUARDED | {"kept": 0.5}, [3])
    ):
        folder = write(
            tmp_path, f"sim{i}", "simulate", {"guard": guard}, conversations=[]
        )
        with pytest.raises(
            InputError, match=r"results.json: 'guard' is damaged .*delete that file"
        ):
            finished.read_run(folder)


# --- the data report ------------------------------------------------------------------------------

SPREAD = {
    "mean": 2.5,
    "10 %": 1.0,
    "50 %": 2.0,
    "90 %": 7.0,
    "99 %": 41.0,
    "largest": 1200.0,
}
CLEANED: dict[str, Any] = {
    "counts": {
        "dropped: language: fr": 2,
        "dropped: language: zh": 1,
        "dropped: template prompt": 1,
        "dropped: toxic": 2,
        "in": 10,
        "note: scrubbed phone": 5,
        "out": 4,
        "test: conversations": 1,
        "train: conversations": 3,
        "train: people": 2,
        "train: samples": 1234,
    },
    "splits": {
        "train": {"conversations": 3, "people": 2, "user turns": 1231, "samples": 1234},
        "valid": {"conversations": 0, "people": 0, "user turns": 0, "samples": 0},
        "test": {"conversations": 1, "people": 1, "user turns": 2, "samples": 3},
    },
    "lengths": {"user turns a conversation": SPREAD, "characters an answer": None},
    "people": {
        "known": 2,
        "conversations of known people": 3,
        "conversations a person": SPREAD | {"mean": 1.5},
        "share of the heaviest 1 %": 0.6667,
    },
    "languages": {"en": 4},
    "countries": {"not known": 2999, "Atlantis": 1},
    "models": {f"model {i:02}": 40 - i for i in range(13)},
    "ngram_table": {
        "n-grams": 41234567,
        "counted one by one": 812,
        "bytes on disk": 8 * 41234567,
        "bytes in memory": 16_777_216 + 812 * 16,
    },
}
WRITTEN: dict[str, Any] = {
    "counts": {"in": 9, "out": 9},
    "writers": {
        "extractive": {
            "n": 6,
            "measured": 5,
            "leakage": 0.375,
            "quartiles": [0.25, 0.5, 0.75],
        },
        "m-mini": {
            "n": 7000,
            "measured": 7000,
            "leakage": 0.125,
            "quartiles": [0.0, 0.0, 0.25],
        },
        "human": {"n": 1, "measured": 0, "leakage": None, "quartiles": None},
    },
    "usage": {
        "writer": {
            "calls": 7100,
            "possibly_billed": 3,
            "tokens_in": 8000000,
            "tokens_out": None,
            "cost": 1.23456,
        },
    },
    "faults": {"timeout": 2, "http 429": 31},
    "failed": 0,
}


def data_run(root: Path, verb: str, results: dict[str, Any]) -> Finished:
    return finished.read_run(write(root, verb, verb, results, test=[]))


def tables(run: Finished) -> dict[str, Table]:
    return {table.title: table for table in run.tables}


def text_of(line: Line) -> str:
    """A line of a small table, which holds one part."""
    assert isinstance(line, (str, Quote))
    return line if isinstance(line, str) else line.text


def cells(table: Table) -> list[list[str]]:
    return [[text_of(line) for line in row] for row in table.rows]


def drawn(table: Table, row: int) -> str:
    drawing = table.drawings[row]
    return "" if drawing is None else charts.draw(drawing)


def test_survivors_are_counted_down_in_the_order_in_which_clean_asks(
    tmp_path: Path,
) -> None:
    shown = tables(data_run(tmp_path, "clean", CLEANED))["Survivors"]
    assert cells(shown) == [
        ["in", "", "10", "100.0 %"],
        ["language", "3", "7", "70.0 %"],  # 2 French and 1 Chinese: 10 - 3
        ["toxic", "2", "5", "50.0 %"],
        ["template prompt", "1", "4", "40.0 %"],
        ["out", "", "4", "40.0 %"],
    ]
    toxic = drawn(shown, 2)
    assert (
        '<rect class="bar" width="50.00%"' in toxic
        and 'x="50.00%" width="20.00%"' in toxic
    )
    assert "lost" not in drawn(shown, 0)


def test_a_reason_that_is_not_known_comes_last_and_of_nothing_there_is_no_share(
    tmp_path: Path,
) -> None:
    # A count of zero is not written.
    counts = {
        "in": 3,
        "dropped: too odd": 2,
        "dropped: near-duplicate": 1,
    }
    shown = tables(data_run(tmp_path, "clean", CLEANED | {"counts": counts}))[
        "Survivors"
    ]
    assert [name for name, *_ in cells(shown)] == [
        "in",
        "near-duplicate",
        "too odd",
        "out",
    ]
    assert cells(shown)[-1] == ["out", "", "0", "0.0 %"]
    nothing = data_run(tmp_path / "empty", "clean", CLEANED | {"counts": {}})
    assert cells(tables(nothing)["Survivors"]) == [
        ["in", "", "0", "0.0 %"],
        ["out", "", "0", "0.0 %"],
    ]


def test_splits_are_summed_and_not_said_twice(tmp_path: Path) -> None:
    run = data_run(tmp_path, "clean", CLEANED)
    splits = tables(run)["Splits, by person"]
    assert tuple(map(text_of, splits.head)) == (
        "split",
        "conversations",
        "people",
        "user turns",
        "samples",
    )
    assert cells(splits) == [
        ["train", "3", "2", "1,231", "1,234"],
        ["valid", "0", "0", "0", "0"],
        ["test", "1", "1", "2", "3"],
        ["all", "4", "3", "1,233", "1,237"],
    ]
    assert run.stage is not None and list(run.stage.notes) == [("scrubbed phone", 5)]
    older = data_run(tmp_path / "older", "clean", {"counts": CLEANED["counts"]})
    assert list(older.tables) == []
    assert older.stage is not None and ("train: samples", 1234) in older.stage.notes
    assert '<div class="tables' not in html_page([older])


def test_lengths_people_and_the_template_filter_are_told_in_figures_and_words(
    tmp_path: Path,
) -> None:
    shown = tables(data_run(tmp_path, "clean", CLEANED))
    assert tuple(map(text_of, shown["Lengths, in all splits"].head)) == (
        "",
        "mean",
        "10 %",
        "50 %",
        "90 %",
        "99 %",
        "largest",
    )
    assert cells(shown["Lengths, in all splits"]) == [
        ["user turns a conversation", "2.50", "1", "2", "7", "41", "1,200"],
        ["characters an answer", *["none"] * 6],
    ]
    assert shown["People"].note.startswith(
        "Known people: 2, with 3 conversations: 1.50 each on average, 2 in the median, 1,200 at "
        "most. "
        "The most active 1 % of them have 66.7 % of those."
    )
    assert (
        "41,234,567 n-grams" in shown["Template filter"].note
        and " 812 " in shown["Template filter"].note
    )
    # 8 * 41,234,567 = 329,876,536 bytes; 16,777,216 + 12,992 = 16,790,208
    assert (
        "16.8 MB of memory and, meanwhile, 329.9 MB on the disk"
        in shown["Template filter"].note
    )
    unknown = {
        "known": 0,
        "conversations of known people": 0,
        "conversations a person": None,
    }
    kept = CLEANED | {
        "people": unknown | {"share of the heaviest 1 %": None},
        "ngram_table": {},
    }
    shown = tables(data_run(tmp_path / "kept", "clean", kept))
    assert shown["People"].note.startswith("If a log does not name the user")
    assert "Template filter" not in shown  # templates were kept, nothing was counted


def test_the_ten_most_frequent_names_are_shown_and_the_rest_is_summed(
    tmp_path: Path,
) -> None:
    shown = tables(data_run(tmp_path, "clean", CLEANED))
    # 40 + 39 + ... + 28 = 442; the three that are left out: 30 + 29 + 28 = 87, which is 19.7 %
    rows = cells(shown["Conversations by model"])
    assert rows[0] == ["model 00", "40", "9.0 %"] and rows[9] == [
        "model 09",
        "31",
        "7.0 %",
    ]
    assert rows[10:] == [["3 others", "87", "19.7 %"]]
    # the longest bar is that of the largest count: the others' 87; 40 / 87 = 45.98 %
    assert 'width="45.98%"' in drawn(shown["Conversations by model"], 0)
    # 1 of 3000 is 0.03 %, not 0.0 %
    assert cells(shown["Conversations by country"])[1] == ["Atlantis", "1", "0.03 %"]
    eleven = data_run(
        tmp_path / "eleven",
        "clean",
        CLEANED | {"models": {str(i): 1 for i in range(11)}},
    )
    # "1 others" would take the same room.
    assert len(tables(eleven)["Conversations by model"].rows) == 11


def test_leakage_stands_beside_its_writer_with_what_was_paid_and_met(
    tmp_path: Path,
) -> None:
    run = data_run(tmp_path, "intents", WRITTEN)
    shown = tables(run)
    title = (
        "Leakage of intents, by writer: the share of a first turn’s content words that its intent "
        "contains, from 0 to 1"
    )
    writers = shown[title]
    assert cells(writers) == [
        ["m-mini", "7,000", "7,000", "0.12", "0.00", "0.00", "0.25"],
        ["extractive, without a model", "6", "5", "0.38", "0.25", "0.50", "0.75"],
        ["human", "1", "0", "not measured", "", "", ""],
    ]
    # from 0 to 1 on pixels 6 to 314: 0.25 -> 83, 0.375 -> 121.5, 0.75 -> 237
    assert 'cx="121.5"' in drawn(
        writers, 1
    ) and "M83.0 4V12M83.0 8H237.0M237.0 4V12" in drawn(writers, 1)
    assert drawn(writers, 2) == ""
    [calls] = report._usage([run]).blocks
    assert cells(calls) == [
        ["intents: writer None", "7,100", "8,000,000", "not known", "$1.2346", "3"]
    ]
    assert cells(shown["Faults of calls"]) == [["http 429", "31"], ["timeout", "2"]]
    page, text = html_page([run]), markdown_page([run])
    assert title in page and "$1.2346" in page
    assert (
        "| `extractive, without a model` | 6 | 5 | 0.38 | 0.25 | 0.50 | 0.75 |" in text
    )
    offline = data_run(
        tmp_path / "offline", "intents", {"counts": {}, "writers": WRITTEN["writers"]}
    )
    assert list(tables(offline)) == [title]


def test_one_conversation_is_shown_as_the_samples_that_it_gives(tmp_path: Path) -> None:
    said = [
        ("user", "rice?"),
        ("assistant", "Boil it."),
        ("user", "thx"),
        ("assistant", "Bye."),
    ]
    turns = [{"role": role, "text": text} for role, text in said]
    talk = {"id": "c", "turns": turns, "intent": f"{INTENT_PREFIX}cook rice."}
    talks = [talk, {**talk, "id": "shown", "ended": True}]
    write(tmp_path, "clean", "clean", {"counts": {}}, test=talks)
    [table] = finished.read_run(tmp_path / "clean").tables
    assert cells(table) == [
        [f"{INTENT_PREFIX}cook rice.", "it is given as the system turn"],
        ["rice?", "it says this, given the system turn"],
        ["thx", "it says this, given the system turn and 2 turns"],
        ["<|endconversation|>", "it says this, given the system turn and 4 turns"],
    ]
    write(tmp_path, "none", "clean", {"counts": {}}, test=talks[:1])
    assert list(finished.read_run(tmp_path / "none").tables) == []


def test_the_page_and_the_markdown_hold_every_figure_of_the_data_report(
    tmp_path: Path,
) -> None:
    runs = [
        data_run(tmp_path, "clean", CLEANED),
        data_run(tmp_path, "intents", WRITTEN),
    ]
    page, text = html_page(runs), markdown_page(runs)
    told = "".join(Reader(page).text)
    for run in runs:
        assert run.tables
        for table in run.tables:
            under = text.partition(f"### `{run.name}`\n")[2]
            assert table.title in told and f"#### {table.title}\n" in under
            assert table.note in told and table.note in text
            for name, *found in cells(table):
                assert f"| {' | '.join([f'`{name}`', *found])} |" in text
                assert re.search(
                    rf"<th>{name}</th>.*{''.join(f'<td class=.n. data-label=[^>]*>{re.escape(c)}</td>' for c in found)}",
                    page,
                )


@pytest.mark.parametrize(
    ("verb", "key", "value"),
    [
        ("clean", "counts", {"in": "9"}),
        ("clean", "counts", ["in"]),
        ("clean", "splits", None),
        ("clean", "splits", {"train": 3}),
        ("clean", "splits", {"train": {"people": 1.5}}),
        ("clean", "splits", {"train": {"people": True}}),
        ("clean", "lengths", {"words": [1, 2]}),
        ("clean", "lengths", {"words": {"mean": float("nan")}}),
        ("clean", "lengths", {"words": {"mean": 10**400}}),
        ("clean", "lengths", {"words": SPREAD, "turns": {"mean": 1.0}}),
        ("clean", "people", 3),
        ("clean", "people", {"known": 2}),
        ("clean", "people", CLEANED["people"] | {"conversations a person": None}),
        ("clean", "people", CLEANED["people"] | {"share of the heaviest 1 %": 66}),
        ("clean", "languages", {"en": -1}),
        ("clean", "countries", {"Atlantis": 10**400}),
        ("clean", "models", ["m"]),
        ("clean", "ngram_table", {"n-grams": 3}),
        ("intents", "writers", {"m": 3}),
        (
            "intents",
            "writers",
            {"m": {"n": 3, "measured": 3, "leakage": 0.5, "quartiles": [0.5]}},
        ),
        (
            "intents",
            "writers",
            {"m": {"n": 3, "measured": 3, "leakage": 7, "quartiles": [0, 0, 0]}},
        ),
        ("intents", "usage", {"writer": {"calls": 3}}),
        (
            "intents",
            "usage",
            {"writer": WRITTEN["usage"]["writer"] | {"cost": "1.23"}},
        ),
        ("intents", "faults", {"timeout": "often"}),
    ],
)
def test_a_damaged_part_of_the_data_report_is_named(
    tmp_path: Path, verb: str, key: str, value: Any
) -> None:
    results = (CLEANED if verb == "clean" else WRITTEN) | {key: value}
    with pytest.raises(
        InputError, match=rf"{verb}/results.json: '{key}' is damaged .*delete that file"
    ):
        data_run(tmp_path, verb, results)


# --- errors ---------------------------------------------------------------------------------------


def test_a_folder_that_is_no_finished_run_is_refused_with_what_to_do(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        InputError, match="is not a folder; give the folder of a finished run"
    ):
        finished.read_run(tmp_path / "nowhere")
    made = write(tmp_path, "train", "train", {}, log=[])
    with pytest.raises(
        InputError,
        match=r"has no run.json.*give the run folders in it, such as .*train",
    ):
        finished.read_run(tmp_path)
    (made / "results.json").unlink()
    with pytest.raises(
        InputError, match=r"is not finished; run its command again \(userlm train\)"
    ):
        finished.read_run(made)
    with pytest.raises(InputError, match="no runs given"):
        html_page([])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", "{", "cannot be read"),
        ("results.json", "[]", "is not a JSON object"),
        ("results.json", '{"sim": [{"name": "x"}]}', "'sim' is damaged"),
        ("results.json", '{"sim": 3}', "'sim' is damaged"),
        (
            "run.json",
            '{"format": 2, "verb": "bake", "options": {}}',
            "which a report cannot show",
        ),
        (
            "run.json",
            '{"format": 2, "verb": "score", "options": 0}',
            r"run\.json: 'options' is damaged; leave the folder out",
        ),
        ("scores.jsonl", "{torn\n", "line 1"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, file: str, content: str, said: str
) -> None:
    folder = write(tmp_path, "score", "score", {}, scores=[])
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=said):
        finished.read_run(folder)


def test_a_missing_or_damaged_line_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "sim", "simulate", {"stops": {}})
    with pytest.raises(InputError, match=r"conversations.jsonl is missing"):
        finished.read_run(folder)
    (folder / "conversations.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(
        InputError, match=r"conversations.jsonl, line 1: field 'turns' is missing"
    ):
        finished.read_run(folder)


# --- hostile input --------------------------------------------------------------------------------

SECTIONS = (
    "found figures pairs conversations verdict published assess measures thresholds lengths "
    "training data endings guard usage unmeasured missing manifest"
).split()
OWN = "document.title='pwned';document.body.insertAdjacentHTML('beforeend','<p id=pwned>')"
HOSTILE = [
    f"<script>{OWN}</script>",
    f"</div></details></section></main></body></html><script>{OWN}</script>",
    f'<img src=x onerror="{OWN}"><a href="javascript:{OWN}">x</a><details open ontoggle="{OWN}">',
    f'<svg onload="{OWN}"><animate '
    f'onbegin="{OWN}"/><foreignObject><script>{OWN}</script></foreignObject></svg>',
    "<style>body{display:none}</style></style><link rel=stylesheet href=//evil.example/x.css><p "
    "id=pwned>",
    "</textarea></title></script><!-- <base href=//evil.example/> <meta http-equiv=refresh "
    "content=0;url=//x>",
    "{{ 7*7 }} {% raw %} {{ csp }} {# gone #} ${7*7} <%= 7*7 %>",
    '" \' > autofocus onfocus=alert(1) x="',
    "&lt;p id=pwned&gt; &#60;p id=pwned&#62; \\u003cp id=pwned\\u003e",
    "abc\u202egnp.exe\u2066isolated\u2069\u200f left-over \u202d",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f c1\x9f feed\x0c back\x08 lone\ud800end "
    "tag\U000e0041",
    "z\u0300\u0301\u0302\u0303\u0304\u0305" * 200,
    "x" * 1_000_000,
    "\u202e" * 1_000_000,
    "```\n</pre>\n~~~\n| a | b |\n[link](javascript:1) ![i](http://evil.example/i) <b>bold</b> "
    "http://evil.example",
    f"line\u2028paragraph\u2029]}}]}}</script><script>{OWN}</script><!-- <script> \\u003c/script>",
    "__proto__",
]


def hostile_folders(root: Path) -> list[Path]:
    """Every payload as turn, id, intent, meta and reason, and one in the names of folders and
    columns."""
    turns = [
        {
            "role": "assistant" if i % 2 else "user",
            "text": text,
            "meta": {
                "stub": text[:400],
                "rejected": [text[:400], {"deep": text[:400]}]
                if i % 3
                else [{"text": text, "why": [text]}],
                "violates": [text[:400]],
                text[:300]: text[:400],
            },
        }
        for i, text in enumerate(HOSTILE)
    ]
    talks: list[dict[str, Any]] = [
        {
            "id": "all",
            "turns": turns,
            "stop": "max_turns",
            "meta": {"error": HOSTILE[2]},
        }
    ]
    talks += [
        {
            "id": f"{i} {text[:2000]}",
            "intent": text,
            "turns": [],
            "stop": "error",
            "meta": {"error": text},
        }
        for i, text in enumerate(HOSTILE)
    ]
    name = "<p id=pwned>`|\u202e{{7}}"
    ended: dict[str, Any] = {"stops": {text[:300]: 1 for text in HOSTILE}}
    ended["guard"] = GUARDED | {"why": {text[:300]: 1 for text in HOSTILE}}
    sim = write(root, name, "simulate", ended, conversations=talks)
    endings = {
        text[:3000]: TUNED | {"note": text[:3000], "n": i}
        for i, text in enumerate(HOSTILE[:4])
    }
    figure = measured(
        1.5, 1.0, 2.0, name=HOSTILE[2], unit=HOSTILE[0], better=HOSTILE[7]
    )
    rule = {"kind": HOSTILE[1], "user": HOSTILE[2], "people": 7, "ended": 5.0}
    rule |= {"end_rate": 5.0, "f1": figure, "auroc": figure}
    endings[HOSTILE[0]] |= {"comparison": [rule]}
    endings |= {text[:3000]: SILENT | {"why": text[:3000]} for text in HOSTILE[4:]}
    manifest = json.loads((sim / "run.json").read_text())
    manifest["options"] = {
        "user": HOSTILE[0],
        "assistant": HOSTILE[3],
        HOSTILE[8]: HOSTILE[1],
    }
    (sim / "run.json").write_text(json.dumps(manifest))
    gone = measured(None, None, None, name=HOSTILE[4], n=0, why=HOSTILE[0])
    scores = [
        score_line(name, HOSTILE[4], MeasureRow("k", "p", None, t[:9000]))
        for t in HOSTILE
    ]
    counts = {f"dropped: {text[:300]}": 1 for text in HOSTILE} | {"in": 20, "out": 5}
    counts |= {"note: not scrubbed": 2}
    counts |= {f"note: not scrubbed, {text[:300]}": 1 for text in HOSTILE}
    names = {text[:3000]: 9 - i % 9 for i, text in enumerate(HOSTILE)}
    cleaned = CLEANED | {
        "counts": counts,
        "languages": names,
        "countries": names,
        "models": names,
    }
    cleaned |= {
        "splits": {HOSTILE[0]: {HOSTILE[3]: 1}},
        "lengths": {HOSTILE[1]: {HOSTILE[2]: 1.0}},
    }
    assess = write(root, "assess", "assess", hostile_assessment(counts))
    manifest["verb"] = "assess"
    (assess / "run.json").write_text(json.dumps(manifest))
    drawn = [
        talk | {"id": str(i), "origin": {"conversation": talk["id"]}}
        for i, talk in enumerate(talks)
    ]
    files = {"reference": talks, "simulate/conversations": drawn}
    (assess / "simulate").mkdir()
    for file, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (assess / f"{file}.jsonl").write_text(lines)
    writer = WRITTEN["writers"]["extractive"]
    written = WRITTEN | {
        "writers": dict.fromkeys(names, writer),
        "faults": names,
    }
    score = write(
        root,
        "score",
        "score",
        {name: [figure, gone], HOSTILE[0]: [figure], "endings": endings},
        scores=scores,
    )
    scored = json.loads((score / "run.json").read_text())
    scored["inputs"] = {"sim": file_hash(sim / "conversations.jsonl")}
    (score / "run.json").write_text(json.dumps(scored))
    return [
        sim,
        score,
        write(root, "clean", "clean", cleaned, test=talks[:1]),
        write(root, "intents", "intents", written, test=talks[:1]),
        assess,
        write(
            root, name + "2", "train", {"loss": 1.0, "steps": 2, "samples": 3}, log=LOG
        ),
    ]


def hostile_assessment(counts: dict[str, int]) -> dict[str, Any]:
    """Every payload as name, unit and reason of a measure, as n-gram, stage and reason of a
    stage."""
    apart = {"value": 20.0, "low": 10.0, "high": 30.0, "clusters": 9}
    ngrams = [{"text": text[:50], "simulated": 9.0, "human": 1.0} for text in HOSTILE]
    rows = []
    for text in HOSTILE:
        known = {"name": text[:300], "unit": text[:300], "better": text[:300]}
        user = measured(1.5, 1.0, 2.0, distance=apart, **known)
        rows.append({"user": user, "human": measured(1.0, 0.5, 1.5, **known)})
        gone = measured(None, None, None, name=f"gone {text[:300]}", why=text[:300])
        rows.append({"user": gone, "human": None})
    told = measured(0.9, 0.8, 1.0, name="two-sample AUROC", better="lower")
    told |= {"distance": apart, "ngrams": ngrams}
    rows.append({"user": told, "human": measured(0.5, 0.4, 0.6, name="")})
    return {
        "counts": counts,
        "measures": {"respond": rows, HOSTILE[0]: rows[:3]},
        "perplexity": {HOSTILE[1]: measured(2.0, 1.0, 3.0, unit=HOSTILE[3])},
        "left_out": {HOSTILE[2]: HOSTILE[3]},
        "failed": {HOSTILE[4]: HOSTILE[0]},
        "incomplete": [HOSTILE[14]],
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Finished]:
    return [
        finished.read_run(folder)
        for folder in hostile_folders(tmp_path_factory.mktemp("hostile"))
    ]


def test_odd_characters_are_spelled_out_and_ordinary_ones_left_alone() -> None:
    assert (
        formats.plain("a\u202eb\x00\x00\x00\tc\r\nd") == "a⟨U+202E⟩b⟨U+0000 ×3⟩\tc\nd"
    )
    assert html.visible("<b>\u202e&") == '&lt;b&gt;<span class="odd">U+202E</span>&amp;'
    kept = "café שלום नमस्ते 👩\u200d🔬 العربية 日本語"
    assert formats.plain(kept) == kept


def test_markdown_code_holds_whatever_it_is_given() -> None:
    assert markdown.code("a") == "`a`"
    assert markdown.code("a`b``c") == "```a`b``c```"
    assert markdown.code("`a") == "`` `a ``"
    assert markdown.code("a|b\nc", cell=True) == "`a\\|b c`"
    assert markdown.code("") != "``"
    assert markdown.fenced("x\n````\ny") == "`````text\nx\n````\ny\n`````"


def test_what_only_a_screen_needs_is_hidden_on_paper_and_no_rule_stands_twice():
    style = (Path(finished.__file__).parent.parent / "assets/report.html").read_text()
    style = style.partition("</style>")[0]
    paper = style.partition("@media print")[2]
    assert "nav, .viewer { display: none; }" in paper
    assert ".browsing .first { display: block; }" in paper
    assert style.count(".sides {") == 1


def test_hostile_text_adds_no_element_attribute_or_script_to_the_page(
    hostile: list[Finished],
) -> None:
    page = html_page(hostile)
    read = Reader(page)
    template = Path(userlm.__file__).with_name("assets") / "report.html"
    sources = [template, Path(html.__file__), Path(charts.__file__)]
    ours = "".join(path.read_text() for path in sources)
    allowed = set(re.findall(r"<([a-z][a-z0-9]*)", ours))
    assert {tag for tag, _ in read.tags} - allowed == set()
    scripts = [attributes for tag, attributes in read.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "class": "data"}, {}]
    assert sum(tag == "style" for tag, _ in read.tags) == 1
    names = {name for _, attributes in read.tags for name in attributes}
    assert not {
        name
        for name in names
        if name.startswith("on") or name in ("src", "style", "srcdoc", "action")
    }
    assert {a["href"] for t, a in read.tags if t == "a"} <= {
        f"#{name}" for name in SECTIONS
    }
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page
    )
    assert "{{ 7*7 }} {% raw %}" in page
    assert [a["id"] for t, a in read.tags if t == "section"] == SECTIONS
    assert (
        sum(attributes.get("class") == "talk" for _, attributes in read.tags)
        == 2 * html.FIRST + finished.PAIRS
    )
    # Two turns of a million characters are in there, cut.
    assert len(page) < 1_000_000
    assert "<" not in page.partition('class="data">')[2].partition("</script>")[0]
    assert "1,000,000 characters" in page
    assert page.rstrip().endswith("</html>")


def test_the_policy_lets_nothing_in_but_the_style_and_script_of_the_page(
    hostile: list[Finished],
) -> None:
    page = html_page(hostile)
    policy = next(
        a["content"]
        for t, a in Reader(page).tags
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    hashes = {}
    for name in ("style", "script"):
        inside = re.search(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        assert inside is not None
        hashes[name] = b64encode(sha256(inside[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src "
        f"'sha256-{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_hostile_text_stays_in_the_code_of_the_markdown(
    hostile: list[Finished],
) -> None:
    """What is left of the page without its code blocks and code spans holds none of it, and no row
    is broken."""
    text = markdown_page(hostile).removeprefix(formats.MARK)
    outside, fence = [], ""
    for line in text.splitlines():
        if fence:
            fence = "" if line == fence else fence
        elif opened := re.fullmatch("(`{3,})text", line):
            fence = opened[1]
        else:
            outside.append(line)
    assert fence == ""
    rows: list[list[int]] = [[]]
    for line in outside:
        bare = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", line)
        assert not re.search(r"[<>\[\]{}`]|://|pwned", bare), bare[:200]
        if line.startswith("|"):
            rows[-1].append(len(re.findall(r"(?<!\\)\|", line)))
        elif rows[-1]:
            rows.append([])
    assert len(rows) > 4
    for table in rows:
        assert len(set(table)) <= 1, "each row has as many cells as its head"
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )


def dumped(page: Path, profile: Path) -> str:
    """The page's elements, after its scripts ran in a real browser."""
    found = (
        shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")
    )
    browser = next((path for path in found if path), None)
    if browser is None:
        pytest.skip(
            "no chromium, chromium-browser or google-chrome on the PATH: nothing was tried in a "
            "browser"
        )
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --dump-dom --virtual-time-budget=2000"
    done = subprocess.run(
        [browser, *options.split(), f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        timeout=90,
        check=True,
    )
    return done.stdout.decode()


@pytest.mark.slow
def test_nothing_in_a_transcript_runs_or_breaks_the_page_in_a_real_browser(
    hostile: list[Finished], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text(html_page(hostile), encoding="utf-8")
    read = Reader(dumped(page, tmp_path / "profile"))
    title = re.search("<title>.*</title>", page.read_text())
    assert title and title[0] in html_page(hostile)
    assert "pwned" not in read.text
    assert not [
        attributes for _, attributes in read.tags if attributes.get("id") == "pwned"
    ]
    assert not [
        tag
        for tag, _ in read.tags
        if tag in ("img", "link", "base", "iframe", "foreignobject", "animate")
    ]
    viewer = next(
        attributes for _, attributes in read.tags if attributes.get("class") == "viewer"
    )
    assert "hidden" not in viewer, "the page's own script was not run"
    text = "".join(read.text)
    for payload in (*HOSTILE[:9], HOSTILE[14]):
        assert payload in text, payload[:60]
    assert "U+202E ×1,000,000" in text or "U+202E ×2,000" in text
    sections = [attributes["id"] for tag, attributes in read.tags if tag == "section"]
    assert sections == SECTIONS


@pytest.mark.slow
def test_the_check_in_the_browser_would_see_a_script_that_runs(tmp_path: Path) -> None:
    page = tmp_path / "open.html"
    page.write_text(
        f"<!doctype html><title>t</title><body>{HOSTILE[2]}", encoding="utf-8"
    )
    read = Reader(dumped(page, tmp_path / "profile"))
    assert [
        attributes for _, attributes in read.tags if attributes.get("id") == "pwned"
    ]
    assert "pwned" in read.text
