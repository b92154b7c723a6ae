"""The measures of `assess`: what its stages found, beside people."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from userlm.commands.assess_stages import (
    ANSWERED,
    DETECT,
    JUDGED,
    PPL,
    REFERENCE,
    RESPOND,
    SCORE,
    is_complete,
)
from userlm.commands.judge import positive_share
from userlm.commands.score import ENDINGS, HUMAN, Score, score
from userlm.commands.steps import Results
from userlm.items import KINDS
from userlm.json_files import read_json
from userlm.manifest import file_hash
from userlm.metrics import adherence, catalog, naturalness
from userlm.metrics import ratings as blind_test
from userlm.metrics.end_references import ALWAYS
from userlm.metrics.ratings import RatedUser
from userlm.rows import read_conversations
from userlm.runs import Run, measure_record
from userlm.show.terminal import console, part_of_run
from userlm.types import Conversation, InputError, Measure

RATINGS = "ratings"
ROBUSTNESS = "robustness"
"""The keys of the ratings of people and of the mean of both tests, beside the stages."""
NO_DETECTOR = "no --detector was given; the two-sample AUROC needs none"
PERPLEXITY = ("perplexity", "perplexity ratio")
"""The measures of `ppl` that are shown; the others are in its folder."""


def rated(path: Path | None, user: RatedUser) -> Results | None:
    """Return the measure of the ratings of this user by people, by how many of them, how many
    ratings of others were left out, and the hash of the file; `None` if there is none.

    Raises:
        InputError: if all are of others.
    """
    if path is None:
        return None
    ratings = blind_test.read_ratings(path)
    own = [each for each in ratings if user.may_be(each.of)]
    left_out = len(ratings) - len(own)
    if left_out:
        names = {each.user for each in ratings if each not in own}
        of = " and ".join(sorted(name for name in names if name != user.name))
        if not of:
            of = f"{user.name} as it was with other files"
        whose = f"of {path} are not of {user.name}, but of {of}"
        if not own:
            raise InputError(
                f"--ratings: all {left_out} {whose}; give those of a blind test of this user"
            )
        console.print(
            f"{left_out} of {len(ratings)} ratings {whose}; they are left out",
            style="yellow",
        )
    nameless = sum(not each.user for each in own)
    if nameless:
        console.print(
            f"{nameless} of {len(ratings)} ratings of {path} do not say whose turns were rated (an "
            f"older version wrote them, or --blind was no run); they count as those of "
            f"{user.name}: take those of other users out of the file",
            style="yellow",
        )
    metric = catalog.metric_of(blind_test.NAME)
    measured = metric.described(blind_test.taken_for_person(own))
    return {
        "measure": measure_record(measured),
        "raters": len({rating.rater for rating in own}),
        "left_out": left_out,
        "file": file_hash(path),
    }


def score_answers(run: Run, talked: Iterable[str], trained_on: Path | None) -> Results:
    """Score, anew at each attempt: what was tried again since the last one has changed."""
    shutil.rmtree(run.path(SCORE), ignore_errors=True)
    runs = [run.path(name) for name in talked]
    with part_of_run(SCORE):
        return score(
            Score(
                runs,
                run.path(REFERENCE),
                trained_on=trained_on,
                out=run.path(SCORE),
            )
        )


def measures_of(
    run: Run,
    scores: Results,
    detected: Results | None,
    ratings: Results | None,
    has_detector: bool,
) -> dict[str, list[Results]]:
    """Return the measures by stage, each of the user with that of people.

    Args:
        scores, detected, ratings: the results of `score` and `detect`, and of `rated`.
    """
    measures = _beside_people(scores) | _robustness(run, scores) | _judged(run)
    if ratings:
        measures[RATINGS] = [{"user": ratings["measure"], "human": None}]
    if measures:
        measures[DETECT] = _naturalness(detected, has_detector)
    return measures


def _beside_people(scores: Results) -> dict[str, list[Results]]:
    """Return each measure of the user, with its distance, beside people's, by stage."""
    human = {record["name"]: record for record in scores.get(HUMAN, ())}
    found: dict[str, list[Results]] = {}
    for stage in ANSWERED:
        if stage in scores:
            found[stage] = [
                {
                    "user": record,
                    "human": record.get("human", human.get(record["name"])),
                }
                for record in scores[stage]
            ]
    return found


def _robustness(run: Run, scores: Results) -> dict[str, list[Results]]:
    """Return the mean of both tests as a measure of a stage of its own, if both were scored."""
    if not set(KINDS) <= scores.keys():
        return {}
    replies: list[Conversation] = []
    for kind in KINDS:
        replies += read_conversations(run.path(f"{kind}/conversations.jsonl"))
    measured = catalog.metric_of(adherence.ROBUSTNESS).measure(replies, {})
    return {ROBUSTNESS: [{"user": measure_record(measured), "human": None}]}


def _judged(run: Run) -> dict[str, list[Results]]:
    """Return what the judge says of the replies to test items, beside the measures by the rules."""
    found = {}
    for kind, name in JUDGED.items():
        if is_complete(run, name):
            share = positive_share(read_json(run.path(f"{name}/results.json")))
            test = adherence.NAMES[kind].removesuffix(" (rule)")
            record = {**share, "name": f"{test}{catalog.JUDGED}"}
            found[name] = [{"user": record, "human": None}]
    return found


def _naturalness(detected: Results | None, has_detector: bool) -> list[Results]:
    """Return how natural the user's turns are beside people's, or why that is not known."""
    if detected:
        return [
            {"user": one["user"], "human": one["human"]} for one in detected["measures"]
        ]
    why = "the detector did not answer" if has_detector else NO_DETECTOR
    metric = catalog.metric_of(naturalness.ALL_TURNS)
    unknown = metric.described(Measure("", None, None, None, (), why=why))
    return [{"user": measure_record(unknown), "human": None}]


def ends_of(scores: Results) -> dict[str, Any] | None:
    """Return the threshold at which the user ends as often as people do, if there is one, and the
    F1 of always ending on the same turns."""
    endings = scores.get(ENDINGS, {}).get(RESPOND)
    if endings is None:
        return None
    equal = endings["equal"]
    always = [one for one in endings["comparison"] if one["user"] == ALWAYS]
    return {
        "threshold": equal["threshold"] if equal else None,
        "f1_of_always": always[0]["f1"]["value"] if always else None,
    }


def perplexity_of(run: Run) -> dict[str, Any]:
    """Return the perplexity of each column of `ppl`, and the ratios of two of them."""
    if not is_complete(run, PPL):
        return {}
    columns = read_json(run.path(f"{PPL}/results.json"))
    found = {}
    for column, records in columns.items():
        if column not in ("usage", "caps"):
            found[column] = next(one for one in records if one["name"] in PERPLEXITY)
    return found
