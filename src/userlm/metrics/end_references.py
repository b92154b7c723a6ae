"""Users without a model that end conversations, to read the termination of a user beside.

On many logs always ending has a high F1, and a word list tells the ends of bookings, where people
say goodbye, better than a model. So the same responses are measured as if such users had given
them, and by kind of dialogue, since people end chats and bookings differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from userlm.metrics.crowds import THANKS
from userlm.metrics.intrinsic import termination, termination_auroc
from userlm.metrics.visible_features import predicted
from userlm.stats import FN, FP, TP
from userlm.text import words
from userlm.types import FAILED, Conversation, Measure

USER = "this user"
ALWAYS = "always ends"
NEVER = "never ends"
GOODBYES = "goodbye rule"
VISIBLE = "visible features"

ALL = "all"
CHATS = "chats with AI assistants"
TASKS = "tasks and bookings"
UNKNOWN = "unknown kind"
KINDS = {"chat": CHATS, "task": TASKS}
"""The values of `meta["kind"]`."""

_CHAT_SOURCES = re.compile(
    r"wildchat|lmsys|arena|oasst|sharegpt|prism|halie|realhumaneval|hh-rlhf|ikat",
    re.IGNORECASE,
)
_TASK_SOURCES = re.compile(
    r"multiwoz|schema-guided|\bsgd\b|taskmaster|\bstar\b", re.IGNORECASE
)
_GOODBYE = re.compile(
    r"\b(bye|goodbye|good bye|farewell|see you|take care|"
    r"have an? (\w+ )?(day|evening|night|time|trip|stay|weekend|meal|one)|enjoy your)\b"
)


@dataclass(frozen=True, slots=True)
class EndComparison:
    """How one user ends on the responses of one kind of dialogue; shares in percent.

    Attributes:
        kind: `ALL`, or a kind of dialogue.
        user: `USER`, or one without a model.
        people: the number of people behind the responses.
        ended: the share at which the person ended.
        end_rate: the share at which this user ends.
        f1: see `intrinsic.termination`.
        auroc: see `intrinsic.termination_auroc`; the P(end) of a rule is 0 or 1.
    """

    kind: str
    user: str
    people: int
    ended: float | None
    end_rate: float | None
    f1: Measure
    auroc: Measure


def kind_of(conversation: Conversation) -> str:
    """Return the kind of dialogue: what `meta["kind"]` says (`chat` or `task`), else what is known
    of the public set that `meta["source"]` names."""
    stated = KINDS.get(str(conversation.meta.get("kind")))
    source = str(conversation.meta.get("source"))
    if stated:
        return stated
    if _TASK_SOURCES.search(source):
        return TASKS
    return CHATS if _CHAT_SOURCES.search(source) else UNKNOWN


def says_goodbye(prefix: Conversation) -> bool:
    """Return whether the last turn of the assistant says goodbye, or that of the user says goodbye
    or thanks: by a short list of English words."""
    last = {turn.role: " ".join(words(turn.text)) for turn in prefix.turns}
    user = last.get("user", "")
    said = _GOODBYE.search(user) or THANKS.search(user)
    return bool(said or _GOODBYE.search(last.get("assistant", "")))


REFERENCES: Mapping[str, Callable[[Conversation], bool]] = {
    ALWAYS: lambda prefix: True,
    NEVER: lambda prefix: False,
    GOODBYES: says_goodbye,
}
"""Whether each user without a model ends after a prefix."""


def compare(responses: Sequence[Conversation]) -> list[EndComparison]:
    """Return how the user that gave these responses ends, and how those without a model would: on
    all of them, and by kind of dialogue if there are several."""
    groups = {ALL: list(responses)}
    for response in responses:
        groups.setdefault(kind_of(response), []).append(response)
    if len(groups) == 2:
        groups = {ALL: groups[ALL]}
    found = []
    for kind in (ALL, CHATS, TASKS, UNKNOWN):
        if of_kind := groups.get(kind):
            found.append(_measured(kind, USER, of_kind))
            prefixes = [(response, _prefix(response)) for response in of_kind]
            for name, ends in REFERENCES.items():
                as_if = [_as_if(*pair, ends) for pair in prefixes]
                found.append(_measured(kind, name, as_if))
            if by_features := _by_features(of_kind):
                found.append(_measured(kind, VISIBLE, by_features))
    return found


def _by_features(responses: Sequence[Conversation]) -> list[Conversation]:
    """Return the responses as the regression of `visible_features` would give them; none if there
    are too few people."""
    rows = {row.key: row for row in termination(responses).rows if row.stats}
    counted = [one for one in responses if one.id in rows]
    prefixes = [prefix for one in counted if (prefix := _prefix(one))]
    if not counted or len(prefixes) < len(counted):
        return []
    ended = [bool(one.origin and one.origin.person_ended) for one in counted]
    ends = predicted(prefixes, ended, [rows[one.id].cluster for one in counted])
    if ends is None:
        return []
    pairs = zip(prefixes, ends, strict=True)
    return [_decided(prefix, p_end, decided) for prefix, (p_end, decided) in pairs]


def _as_if(
    response: Conversation,
    prefix: Conversation | None,
    ends: Callable[[Conversation], bool],
) -> Conversation:
    """Return the response as a user who ends by this rule would give it. What failed stays as it
    is, so that all users have the same responses."""
    if response.origin is None or response.stop in FAILED:
        return response
    if prefix is None:
        return response.close("error", error="its prefix is not in the file")
    decided = ends(prefix)
    return _decided(prefix, float(decided), decided)


def _prefix(response: Conversation) -> Conversation | None:
    """Return what was said before the user's own turn; `None` if the file does not have it."""
    before = response.first_own_turn
    spoke = len(response.user_turns) > before
    turns = response.turns[:-1] if spoke else response.turns
    prefix = replace(response, turns=turns)
    return prefix if len(prefix.user_turns) >= before else None


def _decided(prefix: Conversation, p_end: float, ends: bool) -> Conversation:
    """Return the prefix with the decision of a user without a model."""
    meta = {**prefix.meta, "end_meta": {"p_end": p_end}}
    return replace(prefix, stop="end" if ends else None, meta=meta)


def _measured(kind: str, user: str, responses: Sequence[Conversation]) -> EndComparison:
    f1 = termination(responses)
    auroc = termination_auroc(responses)
    # What holds by construction has no interval: F1 of never ending, AUROC of a constant.
    if user == NEVER:
        f1 = replace(f1, low=None, high=None)
    if user in (ALWAYS, NEVER):
        auroc = replace(auroc, low=None, high=None)
    counts = np.zeros(3)
    for row in f1.rows:
        counts += row.stats or 0
    share_of_ends = share_of_people = None
    if f1.n:
        share_of_ends = 100 * float(counts[TP] + counts[FP]) / f1.n
        share_of_people = 100 * float(counts[TP] + counts[FN]) / f1.n
    people = {row.cluster for row in f1.rows if row.stats}
    return EndComparison(
        kind, user, len(people), share_of_people, share_of_ends, f1, auroc
    )
