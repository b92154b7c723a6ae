"""Whether a server can be used for a trained user, point by point."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from userlm import flip
from userlm.flip import Template
from userlm.models.endpoint import USE_VLLM
from userlm.models.flavours import UNKNOWN_END, Answer
from userlm.models.local import MIN_END_PROBABILITY, PROBE_DIALOGUES
from userlm.models.served import ServedModel, why_no_p_end
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, ModelError, Sampling

MAX_TOKENS = 24
"""Length of the turns that are looked at."""
ASSISTANT = re.compile(
    r"(sure[,!.]|certainly|of course|absolutely|great question|here('s| is| are) |as an ai|hello!"
    r"|hi!|i'm (sorry|happy|glad) to|you're welcome)|.*(how (can|may) i (help|assist)|i can help)",
    re.IGNORECASE | re.DOTALL,
)
"""How assistants begin their turns, and users hardly ever do."""


@dataclass(frozen=True, slots=True)
class Check:
    """One point.

    Attributes:
        ok: `None` if it was not tried, since an earlier point failed.
        said: what was seen, and what to do about it.
    """

    what: str
    ok: bool | None
    said: str = ""


class _Failed(Exception):
    """A point is not as it should be."""


def check_server(model: ServedModel, template: Template) -> Iterator[Check]:
    """Yield each point when it is known.

    Args:
        template: that of the model which should be served.

    Raises:
        ModelError: if there is no server.
    """
    length = model.context_length()
    shown = "no context length reported" if length is None else f"{length} tokens"
    yield Check("server", True, f"{model.api}, {shown}")
    points = _Points(model, template)
    failed = False
    for what, look in points.all().items():
        if failed:
            yield Check(what, None)
            continue
        try:
            yield Check(what, True, look())
        except (_Failed, InputError, ModelError) as error:
            # Without ids nothing else can be seen; other points do not depend on each other.
            failed = look == points.takes_ids
            said = (model.text_only() if failed else "") or str(error)
            yield Check(what, False, said)


class _Points:
    """The points, each a function that returns what it saw, or raises an error that says what to
    do."""

    def __init__(self, model: ServedModel, template: Template) -> None:
        self._model = model
        self._template = template
        self._ids = flip.prompt(_dialogue(0, 1), template)
        self._sampling = Sampling(
            temperature=0, max_tokens=1, stop_ids=template.stop_ids, end_id=template.end
        )
        self._other = next(id for id in count() if id not in template.stop_ids)

    def all(self) -> dict[str, Callable[[], str]]:
        """Return each point with its name."""
        template = self._template
        stops = {
            f"stops at the {name} token": partial(self._stops, id)
            for name, id in (("closing", template.close), ("end", template.end))
        }
        return {
            "takes token ids and counts them": self.takes_ids,
            "bans tokens (logit_bias)": self._bans,
            **stops,
            "shows P(end)": self._p_end,
            "names the ids that it samples": self._names_ids,
            "continues the user's turn": self._user_turn,
        }

    def takes_ids(self) -> str:
        """One token, with nothing forced."""
        self._model.ask(self._ids, self._sampling)
        return f"{len(self._ids)} of {len(self._ids)}"

    def _bans(self) -> str:
        forced = self._forced(self._other)
        if forced.ids not in (None, [self._other]) or forced.finish == "stop":
            raise _Failed(
                f"token {self._other} was forced by `logit_bias`, and the server sampled "
                f"{forced.ids or forced.stop_id}; {USE_VLLM}"
            )
        free = self._model.ask(self._ids, self._sampling)
        most_likely = free.ids[0] if free.ids else free.stop_id
        if most_likely is not None:
            banned = replace(self._sampling, banned_ids=frozenset((most_likely,)))
            self._model.ask(self._ids, banned)
        return ""

    def _stops(self, id: int) -> str:
        answer = self._forced(id)
        if answer.finish != "stop" or answer.stop_id != id:
            raise _Failed(
                f"token {id} was forced by `logit_bias`, and the server did not stop there, or "
                f"does not say that it did; {USE_VLLM}"
            )
        return UNKNOWN_END.format(id) if answer.runs_on else f"token {id}"

    def _p_end(self) -> str:
        ended = self._forced(self._template.end)
        if why := why_no_p_end(ended, self._forced(self._other)):
            raise _Failed(why)
        return f"{ended.p_first:.2g} after the first exchange"

    def _names_ids(self) -> str:
        if self._forced(self._other).ids is None:
            raise _Failed(
                "turns are taken from its text, and --end-threshold and first words in a guard "
                "cannot be used; vLLM returns ids from 0.10.2 on"
            )
        return ""

    def _user_turn(self) -> str:
        """The most probable words of the user, and P(end) after goodbyes."""
        sampling = replace(self._sampling, max_tokens=MAX_TOKENS)
        said = []
        ends = []
        for n in range(len(PROBE_DIALOGUES)):
            opening, goodbye = (
                self._model.complete(
                    flip.prompt(_dialogue(n, k), self._template), sampling
                )
                for k in (0, 2)
            )
            said.append(opening.text.strip())
            ends.append(goodbye.p_end)
        shown = " and ".join(repr(text) for text in said)
        known = [p_end for p_end in ends if p_end is not None]
        why = ""
        if any(map(ASSISTANT.match, said)):
            why = f"where the user speaks it says {shown}, as an assistant would"
        elif not all(said):
            why = f"where the user opens a conversation it says {shown}"
        elif known and max(known) < MIN_END_PROBABILITY:
            why = f"even after a goodbye P(end) is {max(known):.0e} at most"
        if why:
            raise _Failed(
                f"{why}; is a user model served, and is the tokenizer that of this model?"
            )
        after = f"; P(end) after a goodbye {max(known):.2g}" if known else ""
        return f"its first words are {shown}{after}"

    def _forced(self, id: int) -> Answer:
        return self._model.ask(self._ids, self._sampling, id)


def _dialogue(n: int, exchanges: int) -> Conversation:
    """The beginning of a dialogue of `PROBE_DIALOGUES`."""
    goal, *said = PROBE_DIALOGUES[n]
    talk = Conversation("check", intent=INTENT_PREFIX + goal)
    for user, assistant in said[:exchanges]:
        talk = talk.say(user).say(assistant)
    return talk
