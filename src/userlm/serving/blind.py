"""The blind test: a person's conversation beside a simulated one, in random order, and which of
them people take for the person's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from userlm.json_files import dumps
from userlm.metrics.ratings import Rating
from userlm.show.blocks import Said
from userlm.show.transcripts import pair as side_by_side
from userlm.text import stable_hash
from userlm.types import FAILED, Conversation, InputError

LEFT, RIGHT = "left", "right"
ENDS = "(ends the conversation here)"


@dataclass(frozen=True, slots=True)
class BlindPair:
    """Two conversations to tell apart, as role and text of each turn.

    Attributes:
        before: the turns that both have before them.
        human, model: the turns of the person's conversation and of the simulated one after these.
        human_side: `left` or `right`.
    """

    id_human: str
    id_model: str
    intent: str
    before: Sequence[tuple[str, str]]
    human: Sequence[tuple[str, str]]
    model: Sequence[tuple[str, str]]
    human_side: str

    @property
    def id(self) -> str:
        """Names what is to be seen, whichever side it is on."""
        ids = self.id_human, self.id_model
        return name_of([ids, self.intent, self.before, self.human, self.model])

    def shown(self) -> dict[str, Any]:
        """Return what a rater sees, which does not say which side is whose."""
        sides = [self.human, self.model]
        if self.human_side == RIGHT:
            sides.reverse()
        left, right = sides
        return {
            "intent": self.intent,
            "before": self.before,
            LEFT: left,
            RIGHT: right,
        }

    def rating(self, number: int, side: str, rater: str, answers: bool) -> Rating:
        """Return the rating of someone who took one side for the person's."""
        chosen: Any = "human" if side == self.human_side else "model"
        ids = self.id_human, self.id_model
        return Rating(number, *ids, chosen, rater, answers, self.id)


def name_of(value: object) -> str:
    """Return a short name of a JSON value, the same for equal ones."""
    return f"{stable_hash(dumps(value)):016x}"


def blind_pairs(
    simulated: Iterable[Conversation], logs: Mapping[str, Conversation], seed: int
) -> list[BlindPair]:
    """Return the pairs in random order: each simulated conversation, or response, beside the log
    that it starts from.

    Raises:
        InputError: if there is none.
    """
    found = list(_pairs(simulated, logs, Random(seed)))
    if not found:
        raise InputError(
            "--blind: none of its conversations starts from one of --reference; give the folder of "
            "`userlm respond` or `simulate`, and as --reference the conversations that it had"
        )
    Random(seed).shuffle(found)
    return found


def _pairs(
    simulated: Iterable[Conversation], logs: Mapping[str, Conversation], sides: Random
) -> Iterator[BlindPair]:
    for talk in simulated:
        log = logs.get(talk.origin.conversation or "") if talk.origin else None
        if log is None or talk.stop in FAILED:
            continue
        both = side_by_side(log, talk)
        human, model = _alike(both.person, both.user)
        if human and model:
            yield BlindPair(
                log.id,
                talk.id,
                talk.intent or "",
                _texts(both.before),
                human,
                model,
                sides.choice((LEFT, RIGHT)),
            )


def _alike(
    person: Sequence[Said], user: Sequence[Said]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return two sides with as many turns of the user and without a reason to stop, which would
    give one away. Of single turns, an end is one of the things that can be said."""
    if len(person) == len(user) == 1:
        return _texts(person), _texts(user)
    sides = [[said for said in side if said.role != "end"] for side in (person, user)]
    most = min(sum(said.role == "user" for said in side) for side in sides)
    human, model = (_texts(_with_user_turns(side, most)) for side in sides)
    return human, model


def _with_user_turns(turns: Sequence[Said], most: int) -> list[Said]:
    """Return the turns up to this many of the user."""
    kept: list[Said] = []
    count = 0
    for said in turns:
        count += said.role == "user"
        if count > most or (count == most and said.role != "user"):
            break
        kept.append(said)
    return kept


def _texts(turns: Iterable[Said]) -> list[tuple[str, str]]:
    """Return role and text, and nothing that only a model has, such as P(end)."""
    return [
        (said.role, ENDS if said.role == "end" else said.text.strip()) for said in turns
    ]
