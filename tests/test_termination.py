"""Thresholds on P(end), calibrated on what people did: by hand, by counting one by one, and through
`score`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from userlm import commands
from userlm.metrics.intrinsic import termination, termination_auroc
from userlm.metrics.termination import (
    THRESHOLDS,
    EndCalibration,
    calibrate,
    calibration_error,
    format_threshold,
    reliability,
)
from userlm.rows import write_conversations
from userlm.types import Conversation, InputError, Origin


def answer(
    person: str, k: int, p_end: float | None, person_ended: bool, ends: bool = False
) -> Conversation:
    """What a user answered after `k` turns of a person who ended there, or went on."""
    origin = Origin(
        person, k, None if person_ended else "more", person_ended=person_ended
    )
    prefix = Conversation(f"{person}/{k}", user=person, origin=origin)
    for i in range(k):
        prefix = prefix.say(f"turn {i}").say("ok")
    known = {} if p_end is None else {"p_end": p_end}
    return prefix.close("end", end_meta=known) if ends else prefix.say("words", known)


def tuned(answers: list[Conversation], low: float | None = None) -> EndCalibration:
    """`low`: an interval of the AUROC that the answers need not carry."""
    auroc = termination_auroc(answers)
    if low is not None:
        auroc = replace(auroc, low=low, high=1.0)
    return calibrate(termination(answers), auroc)


FEW = [
    answer("ann", 0, 0.99, False, ends=True),  # a first turn: no row
    answer("ann", 1, 0.3, False),
    answer("ann", 2, 0.9, True, ends=True),
    answer("bob", 1, 0.2, False),
    answer("bob", 2, 0.6, True),
    answer("cy", 1, 0.7, False, ends=True),
    answer("cy", 2, 0.4, True),
]
QUIET = [answer(name, k, 0.1, False) for name in ("dan", "eve", "fay") for k in (1, 2)]
PEOPLE = [*FEW, *QUIET]
"""Six people; three of twelve turns are ends, so always ending has an F1 of 6 / 15 = 40 %. Of the
27 pairs of an end and another turn P(end) orders all but two: AUROC 0.93."""


def test_thresholds_are_in_order_and_are_typed_as_they_are_meant() -> None:
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS))
    assert all(
        0 < threshold < 1 and float(format_threshold(threshold)) == threshold
        for threshold in THRESHOLDS
    )
    assert [format_threshold(THRESHOLDS[i]) for i in (0, 1, 30, 31, -1)] == [
        "0.000001",
        "0.0000015",
        "0.1",
        "0.11",
        "0.999999",
    ]


def test_the_threshold_sweep_by_hand() -> None:
    # People ended at .9, .6 and .4 and went on at .3, .2, .7 and six times at .1; the user ends at
    # P(end) >= threshold.
    sweep = tuned(PEOPLE).sweep
    assert sweep is not None
    at = {threshold: i for i, threshold in enumerate(sweep.threshold)}
    third = 100 / 3
    ninth = 100 / 9
    for threshold, premature, missed, f1 in [
        (0.1, 100, 0, 600 / 15),  # TP 3, FP 9
        (0.2, 3 * ninth, 0, 600 / 9),  # FP 3: .3, .2 and .7
        (0.21, 2 * ninth, 0, 600 / 8),  # FP 2: .3 and .7
        (0.4, ninth, 0, 600 / 7),  # FP 1: .7
        (0.41, ninth, third, 400 / 6),  # goes on at .4
        (0.7, ninth, 2 * third, 200 / 5),
        (0.71, 0, 2 * third, 200 / 4),
        (0.95, 0, 100, 0),
    ]:
        found = [
            getattr(sweep, name)[at[threshold]]
            for name in ("premature", "missed", "f1")
        ]
        assert found == pytest.approx([premature, missed, f1]), threshold
    assert sweep.end_rate[at[0.41]] == 25  # .9, .6 and .7 of twelve


def test_a_threshold_is_judged_on_people_it_was_not_chosen_on() -> None:
    found = tuned(PEOPLE, low=0.6)
    assert found.best is not None and found.equal is not None
    # All: F1 is highest from .31 to .40, and of these ten the middle one is .35. Without ann it is
    # so from .21 to .40: .30, and by that she is left at .9 (TP) and at .3 (FP). Without bob from
    # .31 to .40: .35; .6 is TP, .2 is TN. Without cy from .31 to .60: .45; .4 is FN, .7 is FP.
    # Without dan, eve or fay: .35, and their six are TN. TP 2, FP 2, FN 1, TN 7: F1 = 4 / 7, though
    # on all together .35 has 6 / 7.
    best = found.best
    assert best.threshold == 0.35
    assert (best.premature, best.missed, best.end_rate) == pytest.approx(
        (200 / 9, 100 / 3, 400 / 12)
    )
    assert best.f1 == pytest.approx(400 / 7)
    assert (best.low, best.high) == (
        None,
        None,
    )  # of three people: the others had no ends
    # As many premature as missed: FP = FN from .41 to .60, the middle one is .50. Without ann the
    # same: .50; TP, TN. Without bob .41 to .70: .55; TP, TN. Without cy .31 to .60: .45; FN, FP.
    equal = found.equal
    assert equal.threshold == 0.5
    assert (equal.premature, equal.missed, equal.end_rate, equal.f1) == pytest.approx(
        (100 / 9, 100 / 3, 25, 400 / 6)
    )


def test_what_the_user_does_now_is_its_termination_f1() -> None:
    found, f1 = tuned(PEOPLE, low=0.6), termination(PEOPLE)
    assert found.now is not None and found.now.threshold is None
    # It ends at ann's .9 (TP) and cy's .7 (FP): TP 1, FP 1, FN 2, TN 8.
    assert (found.now.premature, found.now.missed, found.now.end_rate) == pytest.approx(
        (100 / 9, 200 / 3, 200 / 12)
    )
    assert (found.now.f1, found.now.low, found.now.high) == (f1.value, f1.low, f1.high)
    assert f1.value == pytest.approx(40)
    assert (found.n, found.missing, found.people, found.ended, found.why) == (
        12,
        0,
        6,
        25,
        "",
    )


@pytest.mark.slow
def test_every_point_and_both_suggestions_agree_with_counting_one_by_one() -> None:
    rng = np.random.default_rng(0)
    lefts = rng.random(240) < 0.3
    chances = rng.beta(0.3 + 0.9 * lefts, 0.6)
    chances[:20] = 0.35  # ties, on a threshold
    people = [f"p{i % 9}" for i in range(240)]
    found = tuned(
        [
            answer(w, 1, float(p), bool(e))
            for w, p, e in zip(people, chances, lefts, strict=True)
        ]
    )

    def counted(threshold: float, of: set[str]) -> tuple[int, int, int, int]:
        judged = [
            (p >= threshold, e)
            for w, p, e in zip(people, chances, lefts, strict=True)
            if w in of
        ]
        return tuple(
            judged.count(kind)
            for kind in ((True, True), (True, False), (False, True), (False, False))
        )

    def f1(tp: int, fp: int, fn: int, _: int) -> float:
        return 200 * tp / (2 * tp + fp + fn)

    def chosen(loss: Any, of: set[str]) -> float:
        losses = [loss(*counted(threshold, of)) for threshold in THRESHOLDS]
        least = [
            t for t, one in zip(THRESHOLDS, losses, strict=True) if one == min(losses)
        ]
        return least[(len(least) - 1) // 2]

    everybody = set(people)
    assert found.sweep is not None
    for i, threshold in enumerate(THRESHOLDS):
        tp, fp, fn, tn = counted(threshold, everybody)
        expected = [
            100 * fp / (fp + tn),
            100 * fn / (tp + fn),
            100 * (tp + fp) / 240,
            f1(tp, fp, fn, tn),
        ]
        sweep = found.sweep
        assert [
            sweep.premature[i],
            sweep.missed[i],
            sweep.end_rate[i],
            sweep.f1[i],
        ] == pytest.approx(expected)
    for suggested, loss in (
        (found.best, lambda *c: -f1(*c)),
        (found.equal, lambda tp, fp, fn, tn: abs(fp - fn)),
    ):
        assert suggested is not None and suggested.threshold == chosen(loss, everybody)
        parts = [
            counted(chosen(loss, everybody - {person}), {person})
            for person in sorted(everybody)
        ]
        assert suggested.f1 == pytest.approx(f1(*map(sum, zip(*parts, strict=True))))


def test_reliability_and_calibration_error_by_hand() -> None:
    # Six at .1 of which one left, four at .8 of which three did; equal P(end) are in one bin, so
    # there are two. .6 x |.1 - 1/6| + .4 x |.8 - .75| = .04 + .02
    bins = reliability(
        np.array([0.8] * 4 + [0.1] * 6),
        np.array([True, True, False, True, False, True] + [False] * 4),
    )
    assert [(one.n, one.p_end, one.ended) for one in bins] == [
        (6, pytest.approx(0.1), pytest.approx(1 / 6)),
        (4, pytest.approx(0.8), 0.75),
    ]
    assert calibration_error(bins) == pytest.approx(0.06)
    # Twenty different ones: ten bins of two neighbours. Three: a bin each.
    bins = reliability(np.arange(20)[::-1] / 20, np.arange(20) < 10)
    assert [one.n for one in bins] == [2] * 10
    assert [one.p_end for one in bins] == pytest.approx(
        [0.025 + i / 10 for i in range(10)]
    )
    assert [one.ended for one in bins] == [0] * 5 + [1] * 5
    assert [
        one.n for one in reliability(np.array([0.1, 0.2, 0.3]), np.array([True] * 3))
    ] == [
        1,
        1,
        1,
    ]


def test_what_cannot_be_calibrated_says_why_and_is_counted() -> None:
    silent = [answer("ann", 1, None, True), answer("bob", 1, None, False)]
    assert tuned(silent) == EndCalibration(0, 2, "no P(end)")
    assert tuned([answer("ann", 0, 0.5, False)]) == EndCalibration(
        0, 0, "no response after a first turn"
    )
    failed = answer("dan", 1, 0.5, True).close("error", error="timed out")
    some = tuned([*PEOPLE, *silent, failed])
    assert (some.n, some.missing, some.best) == (12, 3, tuned(PEOPLE).best)
    for left, why in (
        (True, "the person ended at every answer"),
        (False, "the person ended at no answer"),
    ):
        found = tuned([answer("ann", 1, 0.5, left), answer("bob", 1, 0.25, left)])
        assert (found.best, found.why, found.n) == (None, why, 2)
        assert found.ece == pytest.approx(
            abs(0.375 - left) if not left else (0.5 + 0.75) / 2
        )
    alone = tuned([answer("ann", 1, 0.5, False), answer("ann", 2, 0.75, True)])
    assert (alone.best, alone.why) == (
        None,
        "only one person, but a threshold must be checked on another",
    )


def test_a_p_end_that_is_chance_suggests_no_threshold() -> None:
    rng = np.random.default_rng(0)
    people = [f"p{i // 3}" for i in range(600)]
    found = tuned(
        [answer(name, 1, rng.random(), rng.random() < 0.35) for name in people]
    )
    assert (found.best, found.equal) == (None, None)
    assert "AUROC" in found.why and "is not above 0.5" in found.why
    # What was measured is kept.
    assert found.now is not None and found.sweep is not None
    unknown = calibrate(
        termination(PEOPLE), replace(termination_auroc(PEOPLE), low=None, high=None)
    )
    assert (unknown.best, unknown.equal) == (None, None)
    assert (
        unknown.why
        == "the AUROC of P(end) has no interval, so it may be that of chance"
    )
    # An interval that begins at 0.5 does not exclude it.
    assert tuned(PEOPLE, low=0.5).best is None
    assert tuned(PEOPLE, low=0.51).best is not None


def test_a_threshold_that_means_always_end_is_not_suggested() -> None:
    # Ten people end ten times at .6; each goes on once, five of them at .6, five at .2. From .21 to
    # .60 the user ends at 105 of 110 turns = 95.5 %, with an F1 of 200 / 205, above the 200 / 210
    # of always ending; AUROC .75.
    answers = []
    for i in range(10):
        answers += [answer(f"p{i}", k, 0.6, True) for k in range(1, 11)]
        answers.append(answer(f"p{i}", 11, 0.6 if i < 5 else 0.2, False))
    found = tuned(answers, low=0.6)
    assert (found.best, found.equal) == (None, None)
    assert (
        found.why == "the best one ends at 95.5 % of all turns, which is nearly always"
    )


def test_a_threshold_no_better_than_always_ending_is_not_suggested() -> None:
    # As above, without the quiet ones: 4 / 7 on people it was not chosen on, and 6 / 9 by always
    # ending.
    found = tuned(FEW, low=0.6)
    assert (found.best, found.equal) == (None, None)
    assert found.why == (
        "on people it was not chosen on, the best threshold has an F1 of 57.1 %, which is not above "
        "the 66.7 % of always ending"
    )


def test_the_equal_rate_is_left_out_if_always_ending_is_better() -> None:
    # Each person ends at .9 six times and at .5 four times, and goes on at .9 four times, at .5
    # twice and at .1 four times. Up to .5: TP 10, FP 6, F1 20 / 26. Up to .9: TP 6, FP 4, FN 4, as
    # often as people, F1 12 / 20. Always ending: 20 / 30.
    chances = {True: [0.9] * 6 + [0.5] * 4, False: [0.9] * 4 + [0.5] * 2 + [0.1] * 4}
    answers = []
    for person in "abcdef":
        for ended, at in chances.items():
            answers += [answer(person, 1, p_end, ended) for p_end in at]
    found = tuned(answers, low=0.6)
    assert found.best is not None and found.best.f1 == pytest.approx(2000 / 26)
    assert (found.equal, found.why) == (None, "")


# --- through `score` ------------------------------------------------------------------------------


def responded(
    root: Path, name: str, answers: list[Conversation], **options: Any
) -> Path:
    """A finished run of `respond`."""
    folder = root / name
    folder.mkdir()
    manifest = {
        "format": 2,
        "verb": "respond",
        "options": {"user": "trained:m"} | options,
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    (folder / "results.json").write_text("{}")
    write_conversations(folder / "conversations.jsonl", answers)
    return folder


def test_score_keeps_the_sweep_beside_the_measures_and_shows_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # As many people that the AUROC is above 0.5 beyond doubt.
    crowd = [
        replace(one, id=f"{i}{one.id}", user=f"{i}{one.user}")
        for i in range(3)
        for one in PEOPLE
    ]
    run = responded(tmp_path, "mine", crowd)
    results = commands.score(commands.Score([run], out=tmp_path / "score"))
    assert json.loads(json.dumps(results)) == json.loads(
        (tmp_path / "score" / "results.json").read_text()
    )
    kept = results["endings"]["mine"]
    assert kept["best"]["threshold"] == 0.35 and kept["best"]["f1"] == pytest.approx(
        1800 / 21
    )
    assert (
        len(kept["sweep"]["threshold"])
        == len(kept["sweep"]["missed"])
        == len(THRESHOLDS)
    )
    assert (kept["user"], kept["note"], len(kept["bins"])) == ("trained:m", "", 6)
    shown = capsys.readouterr().out
    assert "36 turns of 18 people, who ended the conversation at 25.0 %" in shown
    advice = (
        "To end by one: --user trained:m --end-threshold 0.35 or 0.5; F1 is 40.0 % now"
    )
    assert advice in " ".join(shown.split())
    assert "best F1" not in shown
    details = commands.Output(details=True)
    commands.score(commands.Score([run], out=tmp_path / "score", output=details))
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert "…" not in shown
    best = ["best", "F1", "0.35", "11.1", "%", "0.0", "%", "33.3", "%", "85.7", "%"]
    assert best in [row[: len(best)] for row in rows]
    now = ["now", "11.1", "%", "66.7", "%", "16.7", "%", "40.0", "%"]
    assert now in [row[: len(now)] for row in rows]
    commands.score(commands.Score([run], out=tmp_path / "score"))
    # And again, from what is kept.
    assert "--end-threshold 0.35" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (
            {"end_threshold": 0.25},
            "made with --end-threshold 0.25, so 'now' is that threshold",
        ),
        ({"end_threshold": 0.0}, "made with --end-threshold 0.0, so"),
        (
            {"guard": "paper"},
            "made with --guard paper, so 'now' is a user that may not end",
        ),
        ({"guard": "words=3-25,no-repeat"}, ""),
        ({}, ""),
    ],
)
def test_score_says_when_the_scored_run_did_not_sample_its_ends(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    note: str,
) -> None:
    results = commands.score(
        commands.Score(
            [responded(tmp_path, "mine", PEOPLE, **options)], out=tmp_path / "score"
        )
    )
    kept = results["endings"]["mine"]["note"]
    assert note in kept and bool(note) == bool(kept)
    assert note in " ".join(capsys.readouterr().out.split())


def test_a_user_without_p_end_has_no_threshold_and_a_simulation_no_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompted = responded(
        tmp_path,
        "prompted",
        [answer("ann", 1, None, True), answer("bob", 1, None, False)],
    )
    results = commands.score(commands.Score([prompted], out=tmp_path / "score"))
    assert results["endings"]["prompted"]["best"] is None
    assert "No threshold to suggest: no P(end)." in capsys.readouterr().out
    talk = tmp_path / "talks.jsonl"
    write_conversations(
        talk, [Conversation("a", user="ann").say("hi").say("ok").close("end")]
    )
    assert set(commands.score(commands.Score([talk], out=tmp_path / "other"))) == {
        "talks.jsonl"
    }


def test_a_run_that_is_called_endings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no run can be called 'endings'.*rename the folder"
    ):
        commands.score(
            commands.Score(
                [responded(tmp_path, "endings", PEOPLE)], out=tmp_path / "score"
            )
        )
