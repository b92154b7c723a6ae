"""What an assessment says, in sentences: in what a simulated user is like people, in what it is
not, and what would mend it.

No sentence says more than the interval of a distance carries. That 0 lies in it does not make a
user like people: the interval must also be short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from userlm.guard import Guard
from userlm.metrics import adherence, naturalness, ratings, two_sample
from userlm.metrics.termination import format_threshold
from userlm.stats import MIN_CLUSTERS

Record = Mapping[str, Any]
"""A measure in `results.json`, or all of that file."""

SMALL = 2.0
"""Points: if a whole interval is within so many, the difference does not count."""
WIDE = 20.0
"""Points: an interval that allows a larger difference does not show that there is none."""
CHANCE = 0.05
"""The share of 95 % intervals that miss the truth."""
ENOUGH = 30
"""People: a verdict on fewer is that too little is known."""
TELLING = 5
"""How many n-grams are named."""
TURN_LIMIT = 25
"""Words: the limit on turns of the paper's guard."""

RESPOND, SIMULATE = "respond", "simulate"
STAGES_OF_PEOPLE = (RESPOND, SIMULATE)
"""Stages that speak about the same things as people did; the first that has a measure counts.
After people's own turns user and people had the same before them. Whole conversations also depend
on the assistant and on the limit of turns."""

ALWAYS = ("user-role adherence", "intent adherence")
"""What people are taken to do always, who are not asked; a rule or a judge may tell."""
GIVEN = {
    **dict.fromkeys(ALWAYS, 100.0),
    **adherence.CEILINGS,
    ratings.NAME: ratings.CHANCE,
}
"""What is taken for people's, in percent, of measures that people are not asked for."""
NOT_COUNTED = (
    "robustness",  # the mean of two others
    "termination F1",  # people have none; it stands beside the end rate
    "termination AUROC",
    "longest verbatim overlap",  # grows with the number of turns
    two_sample.LENGTH_MATCHED,
    two_sample.FIRST_TURNS,
    two_sample.LATER_TURNS,
    naturalness.FIRST_TURNS,
)
"""Measures that say again what another one says, or that people cannot be compared in."""

WORDINGS = {
    "end rate": "in {} of turns",
    "questions": "in {} of turns",
    "requests": "in {} of turns",
    "thanks": "in {} of turns",
    "corrections": "in {} of turns",
    "lower-case start": "in {} of turns",
    "all lower-case": "in {} of turns",
    "end punctuation": "in {} of turns",
    "intent decomposition": "{} of its words are the intent's",
    "goal consistency": "{} of its words are the intent's, beyond another's",
    "reaction": "{} of its words are the answer's, beyond chance",
    "out of vocabulary": "{} of its words are never used by half of the people",
    "verbatim intent": "{} of its runs of three words",
    "self-repetition": "{} of its runs of three words",
    "MATTR": "{} of 50 words in a row are different",
    "HD-D": "{} of 42 random words are different",
    "two-sample AUROC": "an AUROC of {}",
    ratings.NAME: "it was taken for one in {} of ratings",
    "user-role adherence": "it keeps its role in {} of tests",
    "intent adherence": "it keeps its intent in {} of tests",
}
"""What the values of measures are of."""
PLAIN = {
    "end rate": "how often it ends",
    "turns per conversation": "length of conversations",
    "words per turn": "length of turns",
    "first-turn diversity": "variety of first turns",
    "intent decomposition": "words of its intent",
    "goal consistency": "words of its own intent alone",
    "reaction": "taking up the answer",
    "verbatim intent": "copying its intent",
    "self-repetition": "repeating itself",
    "verbatim overlap": "repeating its training logs",
    "lower-case start": "starting in lower case",
    "all lower-case": "writing without capitals",
    "end punctuation": "punctuation at the end",
    "out of vocabulary": "rare words",
    "MATTR": "different words in a row",
    "HD-D": "richness of vocabulary",
    "two-sample AUROC": "how easily it is told from people",
    "user-role adherence": "keeping its role",
    "intent adherence": "keeping its intent",
    "naturalness": "what a detector says",
    ratings.NAME: "what people say who see it beside a person",
}
"""Names of measures in plain words, where their own name is a term."""
UNITS = ("%", "words", "turns")
NO_INTERVAL = (
    "There is no interval: all people, or all simulated users, are alike in it"
)

CLAIMS = {
    "end rate": (
        "It ends conversations too early",
        "It ends conversations too late",
    ),
    "turns per conversation": (
        "Its conversations are {times} times as long as people's",
        "Its conversations are shorter than people's",
    ),
    "words per turn": (
        "Its turns are {times} times as long as people's",
        "Its turns are shorter than people's",
    ),
    "first-turn diversity": (
        "Its first turns vary more",
        "Its first turns are too much alike",
    ),
    "intent decomposition": (
        "It uses more of the intent's words",
        "It uses fewer of the intent's words",
    ),
    "goal consistency": (
        "It uses more words of its own intent alone",
        "It uses fewer words of its own intent alone",
    ),
    "reaction": (
        "It takes up more of the answer before",
        "It takes up less of the answer before",
    ),
    "verbatim intent": (
        "It copies its intent",
        "It uses less of its intent word by word",
    ),
    "self-repetition": ("It repeats itself", "It repeats itself less"),
    "verbatim overlap": (
        "It repeats longer pieces of its training logs",
        "It has less in common with its training logs",
    ),
    "questions": ("It asks more questions", "It asks fewer questions"),
    "requests": ("It makes more requests", "It makes fewer requests"),
    "thanks": ("It thanks more often", "It thanks less often"),
    "corrections": (
        "It corrects the answer more often",
        "It corrects the answer less often",
    ),
    "lower-case start": (
        "It starts more turns in lower case",
        "It starts fewer turns in lower case",
    ),
    "all lower-case": (
        "It writes more turns without a capital",
        "It writes fewer turns without a capital",
    ),
    "end punctuation": (
        "It ends more turns with punctuation",
        "It ends fewer turns with punctuation",
    ),
    "out of vocabulary": (
        "It uses more rare words",
        "It uses fewer rare words",
    ),
    "MATTR": (
        "Its words vary more from one to the next",
        "It uses the same words again and again",
    ),
    "HD-D": ("Its vocabulary is richer", "Its vocabulary is poorer"),
    "user-role adherence": ("", "It takes the assistant's role"),
    "intent adherence": (
        "",
        "It lets the assistant lead it away from its intent",
    ),
    ratings.NAME: ("", "People tell it from a person"),
    "naturalness": (
        "A detector takes more of its turns for a person's",
        "A detector takes fewer of its turns for a person's",
    ),
}
"""What it means that a user has more of a measure than people, and that it has less."""


SHOULD = ("adheres", "user")
"""What a user should do after a test item, as rules and judges call it."""
INSTEAD = {
    "ends": "It ends the conversation where the assistant has not answered it",
    "empty": "It says nothing where the assistant has not answered it",
    "other": "It drops its question where the assistant has not answered it",
}
"""What it does instead, where the claim about the measure does not say it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one measure says.

    Attributes:
        kind: `good`: no difference was found, and a large one is ruled out; `bad`: there is one;
            `unknown`: neither.
        sentence: what was found, in our own words.
        size, low, high: the distance from people and its interval, in points: percent; hundredths
            of what has no unit; of lengths, the difference in percent of the longer one.
        sure: whether the interval excludes that people have the same value.
        mend: what would mend it, where that is known, or what would tell what is unknown.
        told_by: of a classifier: n-grams of the user's turns, which may be any text.
        why: why it is unknown; it may quote any text.
        clusters: what its interval is over.
        needed: about how many of them would decide what is unknown, if there were too few.
    """

    kind: Literal["good", "bad", "unknown"]
    measure: str
    stage: str
    sentence: str
    size: float | None = None
    low: float | None = None
    high: float | None = None
    sure: bool = False
    mend: str = ""
    told_by: tuple[str, ...] = ()
    why: str = ""
    clusters: Literal["people", "items"] = "people"
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What an assessment says.

    Attributes:
        answer: whether the user is good enough, in one sentence.
        chance: what is good enough: as many differences as chance gives.
        talks: what is to be said of whole conversations, which are not counted; may be empty.
        findings: the bad ones first, the largest first; then the good ones, then the unknown ones.
    """

    answer: str
    chance: str
    talks: str
    findings: tuple[Finding, ...]

    def of_kind(self, kind: str) -> list[Finding]:
        """Return the findings of a kind."""
        return [one for one in self.findings if one.kind == kind]

    def record(self) -> dict[str, Any]:
        """Return it in the form of `results.json`."""
        findings = [
            {**asdict(one), "told_by": list(one.told_by)} for one in self.findings
        ]
        return {**asdict(self), "findings": findings}


class Points(NamedTuple):
    """A distance from people and its interval, as in `Finding`."""

    size: float
    low: float
    high: float


# --- all of it ------------------------------------------------------------------------------------


def conclude(results: Record, options: Record) -> Conclusion:
    """Return what an assessment says.

    Args:
        results: what `assess` writes to `results.json`.
        options: the options of its command.
    """
    found = [
        finding(stage, user, human, results, options)
        for stage, user, human in _counted(results)
    ]
    kinds = ("bad", "good", "unknown")
    found.sort(key=lambda one: (kinds.index(one.kind), -_weight(one)))
    intervals = sum(one.low is not None for one in found)
    answer = _answer(found, intervals, _people(results))
    chance = _chance(intervals)
    return Conclusion(answer, chance, _talks(results), tuple(found))


def _weight(finding: Finding) -> float:
    """Return how large a finding is. An AUROC lies between 0.5 and 1, so it counts twice."""
    size = abs(finding.size or 0)
    return 2 * size if finding.measure == two_sample.OVERALL else size


def _counted(results: Record) -> Iterator[tuple[str, Record, Record | None]]:
    """Yield stage, user and people of each measure once."""
    stages = results["measures"]
    seen = set(NOT_COUNTED)
    first = [stage for stage in STAGES_OF_PEOPLE if stage in stages]
    others = [stage for stage in stages if stage not in first]
    # What a judge says counts, and not the rule that it replaces; unless it could say nothing.
    others.sort(
        key=lambda stage: not (stage.startswith("judge-") and _known(stages[stage]))
    )
    for stage in [*first, *others]:
        for one in stages[stage]:
            user = one["user"]
            name = _base(user["name"])
            # A detector is needed, and need not be given.
            is_left_out = name == naturalness.ALL_TURNS and user["value"] is None
            if name not in seen and not is_left_out:
                seen.add(name)
                yield stage, user, one["human"]


def _known(compared: Sequence[Record]) -> bool:
    """Whether some value is known."""
    return any(one["user"]["value"] is not None for one in compared)


def _people(results: Record) -> int:
    """Return how many people the user was measured beside; 0 if that is not known."""
    counts = [0]
    for stage in STAGES_OF_PEOPLE:
        for one in results["measures"].get(stage, ()):
            distance = one["user"].get("distance") or {}
            counts.append(distance.get("clusters", 0))
    return max(counts)


def _answer(found: Sequence[Finding], intervals: int, people: int) -> str:
    count = dict.fromkeys(("good", "bad", "unknown"), 0)
    for one in found:
        count[one.kind] += 1
    if not found:
        return "It cannot be said: nothing was measured."
    good, bad = count["good"], count["bad"]
    measures = "1 measure" if len(found) == 1 else f"{len(found)} measures"
    counts = (
        f"of {measures}, {good} {_is(good)} like people, {bad} {_is(bad)} not, and "
        f"{count['unknown']} {_is(count['unknown'])} undecided."
    )
    if 0 < people < ENOUGH:
        some = "1 person" if people == 1 else f"{people} people"
        return f"Too little is known, from {some} ({ENOUGH} are a beginning): {counts}"
    differ = [one for one in found if one.kind == "bad"]
    if any(abs(one.size or 0) > WIDE for one in differ) or bad > _by_chance(intervals):
        return f"Not yet: {counts}"
    if count["unknown"] > good:
        return f"Too little is known: {counts}"
    return f"Nearly: {counts}" if differ else f"By what was measured, yes: {counts}"


def _by_chance(intervals: int) -> int:
    """Return about how many intervals show a difference by chance; at least 1."""
    return max(1, round(CHANCE * intervals))


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _chance(intervals: int) -> str:
    if not intervals:
        return "There is no interval, so nothing can be told from chance."
    most = _by_chance(intervals)
    differ = "differs" if most == 1 else "differ"
    return (
        "In brackets: the difference from people, with its 95 % interval. Good enough: at most "
        f"{most} of the {intervals} measures with an interval {differ}, as by chance, and none by "
        f"more than {WIDE:.0f} points (of percent)."
    )


def _talks(results: Record) -> str:
    """Say how many measures of whole conversations differ, if single turns were counted."""
    stages = results["measures"]
    if RESPOND not in stages:
        return ""
    sizes = {}
    count = 0
    for one in stages.get(SIMULATE, ()):
        user, human, distance = one["user"], one["human"], one["user"].get("distance")
        if user["name"] not in CLAIMS or user["name"] == "turns per conversation":
            continue
        if human and human["value"] is not None and distance:
            points = in_points(user, human["value"], distance)
            count += points is not None
            if points and judge(points, user["better"]) == "bad":
                sizes[user["name"]] = abs(points.size)
    if not sizes:
        return ""
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    differ = f"{len(sizes)} of {count} measures differ, most of all "
    if len(sizes) <= len(largest):
        differ = "it differs in "
    where = "In whole conversations, which the assistant shapes too"
    return f"{where}, {differ}{', '.join(map(in_words, largest))}."


# --- one measure ----------------------------------------------------------------------------------


def finding(
    stage: str, user: Record, human: Record | None, results: Record, options: Record
) -> Finding:
    """Return what one measure of a user, beside that of people, says; see `conclude`."""
    name = user["name"]
    of_people, distance = reference_of(user, human)
    if user["value"] is None or of_people is None or not distance:
        said = "It was not measured"
        if user["value"] is not None:
            said = "There is nothing to compare it with"
        return Finding("unknown", name, stage, said, why=_why(user, human))
    points = in_points(user, of_people, distance)
    clusters: Literal["people", "items"] = "items" if human is None else "people"
    count = distance["clusters"]
    if points is None:
        needed = MIN_CLUSTERS if count < MIN_CLUSTERS else None
        sentence = NO_INTERVAL if needed is None else f"Too few {clusters}: {count}"
        few = Finding("unknown", name, stage, sentence, clusters=clusters)
        return replace(few, needed=needed and _enough(needed, clusters))
    sentence = _numbers(user, of_people, distance, is_given=human is None)
    is_sure = points.low > 0 or points.high < 0
    kind = judge(points, user["better"])
    found = Finding(kind, name, stage, sentence, *points, is_sure, clusters=clusters)
    if kind == "unknown":
        return replace(found, needed=_enough(_needed(points, count), clusters))
    if name == "end rate":
        found = replace(found, sentence=sentence + _where_it_ends(results))
    if kind == "good":
        return found
    claim = _claim(name, points.size > 0, user["value"], of_people)
    if _base(name) in ALWAYS:
        claim = INSTEAD.get(_most_often(user), claim)
    if name == two_sample.OVERALL:
        claim = _told(user["value"], results["measures"][stage])
    return replace(
        found,
        sentence=f"{claim}: {found.sentence}",
        mend=_mend(name, points, of_people, results, options, _most_often(user)),
        told_by=told_by(user),
    )


def reference_of(
    user: Record, human: Record | None
) -> tuple[float | None, Record | None]:
    """Return the value of people and the distance from it, as far as they are known; `GIVEN`, if
    people are not measured."""
    if human is not None:
        return human["value"], user.get("distance")
    of_people = GIVEN.get(user["name"], GIVEN.get(_base(user["name"])))
    if of_people is None or user["value"] is None:
        return None, None
    ends = {key: user[key] for key in ("value", "low", "high")}
    less = {key: None if end is None else end - of_people for key, end in ends.items()}
    return of_people, {**less, "clusters": user.get("clusters", 0)}


def _base(name: str) -> str:
    """Return the name of a measure without how it is judged, as in "intent adherence (rule)"."""
    return name.partition(" (")[0]


def in_points(user: Record, human: float, distance: Record) -> Points | None:
    """Return a distance from people in points; `None` without an interval."""
    low = distance["low"]
    high = distance["high"]
    if distance["value"] is None or low is None or high is None:
        return None

    def scaled(apart: float) -> float:
        if user["unit"] == "%":
            return apart
        if not user["unit"]:
            return 100 * apart
        of_user = max(human + apart, 0.0)
        longer = max(of_user, human)
        return 100 * (of_user - human) / longer if longer else 0.0

    return Points(scaled(distance["value"]), scaled(low), scaled(high))


def judge(points: Points, better: str) -> Literal["good", "bad", "unknown"]:
    """Return whether a user is like people: `bad` if it differs, `good` if a large difference is
    ruled out. What is better than people's is not bad."""
    low, high = points.low, points.high
    if better == "higher":
        low, high = min(low, 0.0), min(high, 0.0)
    if better == "lower":
        low, high = max(low, 0.0), max(high, 0.0)
    reach = max(abs(low), abs(high))
    if (low > 0 or high < 0) and reach > SMALL:
        return "bad"
    return "good" if reach <= WIDE else "unknown"


def _why(user: Record, human: Record | None) -> str:
    if user["value"] is None:
        return str(user.get("why") or "nothing to measure")
    if human is None:
        return "there is no human reference beside it"
    return f"people have no value: {human.get('why') or 'nothing to measure'}"


def _enough(needed: int, clusters: str) -> int:
    """Return how many are needed at least: people, never fewer than a verdict needs."""
    return max(needed, ENOUGH) if clusters == "people" else needed


def _needed(points: Points, clusters: int) -> int:
    half = (points.high - points.low) / 2
    size = abs(points.size)
    # Then the interval no longer holds 0, or it ends before `WIDE`.
    enough = max(size, WIDE - size)
    needed = clusters * (half / enough) ** 2
    return 10 * math.ceil(max(needed, clusters + 1) / 10)


# --- in words -------------------------------------------------------------------------------------


def amount(value: float, unit: str) -> str:
    """Return a value with its unit."""
    digits = 2
    if unit:
        digits = 0 if abs(value) >= 10 else 1
    shown = round(value, digits) + 0.0  # no "-0.0"
    known = unit if unit in UNITS else ""  # another one may be any text
    return f"{shown:,.{digits}f} {known}".rstrip()


def _numbers(user: Record, human: float, distance: Record, is_given: bool) -> str:
    """Return the values and their difference; `is_given`: people's is not measured."""
    unit = user["unit"]
    ends = (distance["value"], distance["low"], distance["high"])
    digits = 1 if unit else 2
    # No "-0.0".
    size, least, most = (f"{round(end, digits) + 0.0:,.{digits}f}" for end in ends)
    points = " points" if unit == "%" else ""
    of_user = amount(user["value"], unit)
    of_people = amount(human, unit)
    wording = WORDINGS.get(_base(user["name"]), "{}")
    if wording.startswith("in "):
        of_people = f"in {of_people}"
    beside = f", people {of_people}"
    if is_given:
        beside = _given(user["name"], of_people)
    return f"{wording.format(of_user)}{beside} ({size}{points}, {least} to {most})"


def _given(name: str, value: str) -> str:
    """Say what is taken for people's, and why."""
    if name == ratings.NAME:
        return f"; if nobody could tell, in {value}"
    least = adherence.CEILINGS.get(name, 100.0) < 100
    most = ", the most that this rule finds" if least else ""
    return f"; people were not asked, and count as {value}{most}"


def _where_it_ends(results: Record) -> str:
    """Say how well the ends are where people's are, beside a user that always ends."""
    always = (results.get("ends") or {}).get("f1_of_always")
    for one in results["measures"].get(RESPOND, ()):
        f1 = one["user"]["value"]
        if one["user"]["name"] == "termination F1" and None not in (f1, always):
            return f"; F1 of ending where people did {f1:.0f} %, always ending {always:.0f} %"
    return ""


def in_words(name: str) -> str:
    """Return what a measure is, in plain words; its name where it is no term."""
    return PLAIN.get(_base(name), name)


def _claim(name: str, is_more: bool, value: float, human: float) -> str:
    more, less = CLAIMS.get(_base(name), ("", ""))
    claim = more if is_more else less
    if not claim:
        claim = "It has more than people" if is_more else "It has less than people"
    times = f"{value / human:,.1f}" if human else "many"
    return claim.format(times=times)


def _most_often(user: Record) -> str:
    """Return what a user did most often after test items, beside what it should do."""
    did = {label.lower(): n for label, n in user.get("outcomes", {}).items()}
    others = {label: n for label, n in did.items() if label not in SHOULD and n}
    return max(others, key=lambda label: others[label], default="")


def _told(value: float, compared: Sequence[Record]) -> str:
    """Say an AUROC as what it is: the share of pairs in which the simulated turn is found."""
    similar = ""
    for one in compared:
        matched = one["user"]["value"]
        if one["user"]["name"] == two_sample.LENGTH_MATCHED and matched is not None:
            similar = f"of similar length in {10 * matched:.1f}, "
    return (
        f"It is told from people in {10 * value:.1f} of 10 pairs of turns, one of each, by a "
        f"classifier that read others ({similar}by chance in 5)"
    )


def told_by(user: Record) -> tuple[str, ...]:
    """Return the n-grams that a user has more often than people, the most telling first."""
    ngrams = [one for one in user.get("ngrams", ()) if one["simulated"] > one["human"]]
    ngrams.sort(key=lambda one: one["human"] - one["simulated"])
    return tuple(one["text"] for one in ngrams[:TELLING])


# --- what would mend it ---------------------------------------------------------------------------

TO_KEEP = {
    "user-role adherence": "that it is the user",
    "intent adherence": "to ask until it is answered",
}
"""What a prompted user could be told."""
GUARDED = (
    "--guard paper, which helps in part (userlm-small keeps it in 61 instead of 48 % of tests) but "
    "never ends; a larger model may do more"
)
LARGER = (
    "no option does; a larger model may (the paper's, of 1 and 8 billion weights, keep role and "
    "intent in 91 to 95 % of its tests)"
)


def _mend(
    name: str,
    points: Points,
    human: float,
    results: Record,
    options: Record,
    did: str,
) -> str:
    """Return what would mend a difference; `did`: what the user did instead, after test items."""
    is_more = points.size > 0
    kind = str(options.get("user")).partition(":")[0]
    is_prompted = kind in ("prompted", "swapped")
    match _base(name), is_more:
        case "end rate", _:
            return _mend_ends(is_more, is_prompted, results, options)
        case "words per turn", True:
            most = max(TURN_LIMIT, round(2 * human))
            limit = f"--guard words=1-{most}, which samples longer turns again"
            if kind == "prompted" and not options.get("prompt"):
                return f"--prompt plain, which asks it to be brief, or {limit}"
            return limit
        case "self-repetition" | "verbatim intent", True:
            return "--guard no-repeat, which samples repeated turns again"
        case "intent decomposition", True:
            return "write intents that say less, with userlm intents --overwrite --writer MODEL"
        case ("user-role adherence" | "intent adherence") as test, False:
            if did == adherence.ENDS:
                return _mend_ends(True, is_prompted, results, options)
            if is_prompted:
                return f"say in its prompt {TO_KEEP[test]} (--prompt FILE)"
            if kind not in ("trained", "profile"):
                return ""
            is_intent = test == "intent adherence"
            is_guarded = "paper" in str(options.get("guard"))
            return GUARDED if is_intent and not is_guarded else LARGER
    return ""


def _mend_ends(
    is_early: bool, is_prompted: bool, results: Record, options: Record
) -> str:
    threshold = (results.get("ends") or {}).get("threshold")
    if threshold is not None:
        at = format_threshold(threshold)
        return f"--end-threshold {at}, which ends as often as people do"
    if not is_early and Guard.parse(options.get("guard") or "").no_end:
        return "leave no-end out of --guard"
    if is_prompted:
        return "say in its prompt when to end (--prompt FILE)"
    return ""
