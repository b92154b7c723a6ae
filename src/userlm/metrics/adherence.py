"""Whether a user stays a user, and stays with what they want, where an answer leaves it open.

Both tests are of the paper (sections 5.5 and 5.6 of the notes on it); `items` describes them. They
are measured on responses to items, by rules that need no judge. Intervals are over items.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from userlm.items import Kind, item_of, kind_of, reply_to
from userlm.metrics.intrinsic import failure
from userlm.stats import PERCENT, Array, Statistic, measure, percent
from userlm.text import content_words, has_words, ngrams, words
from userlm.types import FAILED, Conversation, Measure, MeasureRow

Conversations = Iterable[Conversation]

ADHERES = "adheres"
ANSWERS = "answers"
ACCEPTS = "accepts"
OTHER = "other"
ENDS = "ends"
EMPTY = "empty"
"""What a user does. Only `ADHERES` counts as adhering; `OTHER` (neither the question nor the
suggestion), `ENDS` and `EMPTY` are counted apart beside it."""

NO_REPLY = "no reply to the item"

NAMES: Mapping[Kind, str] = {
    "role": "user-role adherence",
    "intent": "intent adherence (rule)",
}
"""The names of the measures of the two tests."""
ROBUSTNESS = "robustness"
CEILINGS = {NAMES["role"]: 100.0, NAMES["intent"]: 87.0}
"""What a user who always adheres gets, in percent: the rule of intent adherence finds 52 of 60
replies that do (`bench/intent_replies.jsonl`)."""


class Outcome(NamedTuple):
    """What a user did, one of the above, and how it shows."""

    label: str
    why: str


def outcomes(responses: Conversations, kind: Kind) -> dict[str, int]:
    """Return how often users did what, most often first; failed responses do not count."""
    counts: Counter[str] = Counter()
    for response in responses:
        if kind_of(response) == kind and (label := outcome(response).label):
            counts[label] += 1
    return dict(counts.most_common())


def outcome(response: Conversation) -> Outcome:
    """Return what a user did after an item; no label, and why, if that is not known."""
    reply = reply_to(response)
    if response.stop == "guard":  # by default only turns without words are no turns
        return Outcome(EMPTY, "no draft passes the guard")
    if response.stop in FAILED:
        return Outcome("", failure(response))
    if reply is None:
        if response.stop == "end":
            return Outcome(ENDS, "ends the conversation")
        return Outcome("", NO_REPLY)
    if not has_words(reply):
        return Outcome(EMPTY, "says nothing")
    if kind_of(response) == "role":
        return after_choices(reply, response.meta["choices"])
    question = response.user_turns[0]
    return after_suggestion(reply, question, response.meta["suggestion"])


# --- the user's role ------------------------------------------------------------------------------


def after_choices(reply: str, choices: Iterable[str]) -> Outcome:
    """Return whether a reply answers a multiple-choice question, which is the assistant's role: it
    names one or two of the choices. Who names none, or repeats the choices, does not answer.

    A choice is named if its words are in the reply, in a row; case and punctuation do not matter.
    One that is a part of another one that is named ("bank", "bank account") does not count.
    """
    found = [choice for choice in choices if _contains(reply, choice)]
    named = []
    for choice in found:
        if not any(_contains(other, choice) for other in found if other != choice):
            named.append(choice)
    if not named:
        return Outcome(ADHERES, "names no choice")
    label = ANSWERS if len(named) in (1, 2) else ADHERES
    return Outcome(label, f"names {', '.join(named)}")


def _contains(text: str, name: str) -> bool:
    if not name.isascii() and name.casefold() in text.casefold():
        return True  # there may be no spaces between words
    wanted = tuple(words(name))
    return wanted in ngrams(words(text), len(wanted))


# --- the user's intent ----------------------------------------------------------------------------

STEM = 5
"""Letters: words that begin alike count as the same, such as `invented` and `inventor`."""
OF_QUESTION = 0.3
OF_SUGGESTION = 0.2
"""The shares of the content words of the question, and of the suggestion, that a reply must have.
Chosen on one half of `bench/intent_replies.jsonl`; `bench/adherence.py` measures both."""

_INSISTS = re.compile(
    r"\bi (just |only )?(asked|meant|mean|wanted)\b|\b(want|need) to know\b"
    r"|\b(my|the) question\b|\b(just|only) (tell|give|answer)\b|\bnot what i\b|\bthough\Z"
)
_DECLINES = re.compile(
    r"\b(no|nope|nah|not|never|dont|don't|bye|goodbye|thanks anyway)\b"
)
_AGREES = re.compile(
    r"\A((haha|lol|oh|whoa|wow|mmm|well|ok) )*"
    r"(ye+s+|yeah|yep|yup|sure|ok|okay|alright|fine|go ahead|please do|do it|sounds|great|cool|"
    r"interesting|why not|lets|let's|absolutely|of course|i like|i'd love|i would love|"
    r"(that's |that is )?a? ?(good|nice) idea)\b"
)


def after_suggestion(reply: str, question: str, suggestion: str) -> Outcome:
    """Return whether a reply repeats or rephrases the question, or asks for its answer in other
    words; accepts the suggestion; or does something else.

    The rule compares content words, and knows some English words of insisting, declining and
    agreeing. Words of both the question and the suggestion are those of the question.
    """
    said = _stems(reply)
    asked = _stems(question)
    of_question = _share(asked, said)
    of_suggestion = _share(_stems(suggestion) - asked, said)
    plain = " ".join(words(reply))
    # A question may have no content words, such as "what is it". "Why not" repeats no "why".
    if words(question) and _contains(reply, question) and not _AGREES.search(plain):
        return Outcome(ADHERES, "repeats the question")
    if _INSISTS.search(plain):
        return Outcome(ADHERES, "insists on the question")
    if of_question >= max(OF_QUESTION, of_suggestion):
        return Outcome(ADHERES, "repeats words of the question")
    if _DECLINES.search(plain):
        return Outcome(OTHER, "declines, or says goodbye")
    if of_suggestion >= OF_SUGGESTION:
        return Outcome(ACCEPTS, "repeats words of the suggestion")
    if _AGREES.search(plain):
        return Outcome(ACCEPTS, "agrees")
    return Outcome(OTHER, "neither the question nor the suggestion")


def _stems(text: str) -> set[str]:
    return {word[:STEM] for word in content_words(text)}


def _share(of: set[str], said: set[str]) -> float:
    return len(of & said) / len(of) if of else 0.0


# --- measures -------------------------------------------------------------------------------------


def user_role_adherence(responses: Conversations) -> Measure:
    """Return the percentage of replies to items of the kind `role` that leave the answer to the
    assistant."""
    return measure(_rows(responses, "role"), PERCENT)


def intent_adherence(responses: Conversations) -> Measure:
    """Return the percentage of replies to items of the kind `intent` that stay with the question,
    by the rule of `after_suggestion`."""
    return measure(_rows(responses, "intent"), PERCENT)


def _mean_percent(sums: Array) -> Array:
    return (percent(sums[..., :2]) + percent(sums[..., 2:])) / 2


MEAN_OF_BOTH = Statistic(_mean_percent, 0, 100)


def robustness(responses: Conversations) -> Measure:
    """Return the mean of `user_role_adherence` and `intent_adherence`; there is none without items
    of both kinds. A row's stats are those of its kind, and zeros for the other."""
    kept = list(responses)
    rows = [_moved(row, "role", before=0) for row in _rows(kept, "role")]
    rows += [_moved(row, "intent", before=2) for row in _rows(kept, "intent")]
    return measure(rows, MEAN_OF_BOTH)


def _moved(row: MeasureRow, kind: Kind, before: int) -> MeasureRow:
    """Return a row with stats of both kinds; items of two kinds may have one id."""
    if row.stats is None:
        return row
    stats = (0.0,) * before + row.stats + (0.0,) * (2 - before)
    return MeasureRow(row.key, f"{kind} {row.cluster}", stats, row.why)


def _rows(responses: Conversations, kind: Kind) -> list[MeasureRow]:
    """Return a row for each response to an item of this kind: what the user did is its `why`."""
    rows = []
    for response in responses:
        if kind_of(response) != kind:
            continue
        label, why = outcome(response)
        stats = (float(label == ADHERES), 1.0) if label else None
        rows.append(MeasureRow(response.id, item_of(response), stats, why))
    return rows
