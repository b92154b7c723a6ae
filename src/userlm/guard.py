"""Guardrails: what a simulated user may not say, and the drafts that were drawn again for it.

Off by default. `PAPER` holds the four of the paper (its appendix on the extrinsic runs): a first-word filter, no
leaving, 3 to 25 words, and no verbatim repeat of an earlier turn or of the intent. A trained user applies the
first two where its tokens are drawn; what else is wrong with a draft shows in its text, and it is drawn again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from userlm.text import intent_goal, ngrams, words
from userlm.types import FAILED, Conversation, InputError, Reply

ECHO = 8
"""Words in a row of an assistant's turn that make a draft an echo of it."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What a draft must be like.

    Attributes:
        first_words: with which none may begin, in exactly this spelling, letters and digits alone.
        no_end: the user may not leave.
        min_words, max_words: words are what white space separates; `None`: any number.
        no_repeat: none may equal an earlier user turn or the intent, but for case and white space.
        no_echo: none may hold `ECHO` words in a row of an assistant's turn, nor lie whole in one if it has half as
            many.
        no_roles: none may go on with somebody else's turn: a line `assistant:`, a role's name run into the text,
            or a spelled control token.
        tries: drafts in all. A draft without words is always drawn again.
        exhausted: what happens when none will do: `keep` the one with least wrong, or `stop` the conversation.
    """

    first_words: tuple[str, ...] = ()
    no_end: bool = False
    min_words: int | None = None
    max_words: int | None = None
    no_repeat: bool = False
    no_echo: bool = False
    no_roles: bool = False
    tries: int = 8
    exhausted: Literal["keep", "stop"] = "keep"

    @classmethod
    def read(cls, text: str) -> Guard:
        """From parts with commas between them: `paper`, `first=I/You/Here`, `no-end`, `words=3-25`, `no-repeat`,
        `no-echo`, `no-roles`, `tries=8`, `exhausted=stop`. Later parts win.

        Raises:
            InputError: for anything else; it says what there is.
        """
        guard = cls()
        for part in filter(None, (part.strip() for part in text.split(","))):
            guard = _with(guard, part)
        return guard


PAPER = Guard(first_words=("I", "You", "Here"), no_end=True, min_words=3, max_words=25, no_repeat=True)
"""The four guardrails of the paper, with its numbers."""


def guarded(guard: Guard, conversation: Conversation, draft: Callable[[int], Reply], tries: int) -> Reply:
    """The first draft in which the guard finds nothing wrong.

    Args:
        draft: gives the draft of a number, from 0.
        tries: how many drafts can differ; at temperature 0 that is one.

    The reply's meta holds the `rejected` drafts, each with its text and what is wrong with it, what `violates` the
    guard in a draft that was kept all the same, `exhausted` if none was, and the tokens of all drafts together.
    """
    drafts: list[tuple[Reply, tuple[str, ...]]] = []
    for n in range(max(1, min(tries, guard.tries))):
        reply = draft(n)
        wrong = () if reply.stop in FAILED else tuple(violations(guard, conversation, reply))
        if not wrong:
            return replace(reply, meta=_meta(reply, drafts))
        drafts.append((reply, wrong))
    sayable = [n for n, (reply, _) in enumerate(drafts) if reply.text]
    if guard.exhausted == "stop" or not sayable:
        return Reply(stop="guard", meta=_meta(Reply(), drafts) | {"exhausted": True})
    best = min(sayable, key=lambda n: len(drafts[n][1]))
    reply, wrong = drafts.pop(best)
    meta = _meta(reply, drafts) | {"violates": list(wrong)}
    return Reply(reply.text, None if guard.no_end else reply.stop, meta)


def violations(guard: Guard, conversation: Conversation, reply: Reply) -> Iterator[str]:
    """What is wrong with a draft, a word or two each."""
    text, ends = reply.text, reply.stop == "end"
    if ends and guard.no_end:
        yield "end"
    if not text:
        if not ends:
            yield "empty"
        return
    first = re.match(r"\W*(\w+)", text)
    if first and first[1] in guard.first_words:
        yield "first word"
    count = len(text.split())
    if guard.min_words is not None and count < guard.min_words and not ends:
        yield "too short"
    if guard.max_words is not None and count > guard.max_words:
        yield "too long"
    told = conversation.intent or ""
    if guard.no_repeat and _folded(text) in {*map(_folded, (*conversation.user_turns, told, intent_goal(told)))}:
        yield "repeat"
    if guard.no_echo and _echoes(text, conversation):
        yield "echo"
    if guard.no_roles and _ROLES.search(text):
        yield "role"


def rates(metas: Iterable[Any]) -> dict[str, Any] | None:
    """How often a guard stepped in, from the `meta` of user turns (and of endings without words); `None`: never.

    The number of `turns`, of `drafts`, of turns `redrawn`, of drafts with each fault (`why`), of turns `kept`
    that violate it all the same, and of those `stopped` at.
    """
    turns = drafts = redrawn = kept = stopped = 0
    why: Counter[str] = Counter()
    for meta in metas:
        rejected = meta.get("rejected", ())
        turns += 1
        drafts += len(rejected) + ("exhausted" not in meta)
        redrawn += len(rejected) > ("exhausted" in meta)
        kept += "violates" in meta
        stopped += "exhausted" in meta
        why.update(reason for draft in rejected for reason in draft["why"])
        why.update(meta.get("violates", ()))
    if not why:
        return None
    counts = {"turns": turns, "drafts": drafts, "redrawn": redrawn, "kept": kept, "stopped": stopped}
    return counts | {"why": dict(why.most_common())}


def _meta(reply: Reply, rejected: list[tuple[Reply, tuple[str, ...]]]) -> dict[str, Any]:
    """What is known of a reply, and of the drafts before it."""
    if not rejected:
        return dict(reply.meta)
    first = rejected[0][0].meta
    meta = {name: first[name] for name in ("p_end", "left_out") if name in first} | dict(reply.meta)
    for name in ("tokens_in", "tokens_out"):
        counts = [draft.meta[name] for draft in (reply, *(draft for draft, _ in rejected)) if name in draft.meta]
        if counts:
            meta[name] = sum(counts)
    return meta | {"rejected": [{"text": draft.text, "why": list(wrong)} for draft, wrong in rejected]}


def _echoes(text: str, conversation: Conversation) -> bool:
    said = words(text)
    for turn in conversation.turns:
        if turn.role == "assistant":
            heard = words(turn.text)
            n = min(ECHO, len(said))
            if 2 * n >= ECHO and not {*ngrams(said, n)}.isdisjoint(ngrams(heard, n)):
                return True
    return False


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


_ROLES = re.compile(
    r"<\|\w+\|>"  # a control token, spelled
    r"|^\W{0,3}(user|human|assistant|ai|system)\W{0,3}:"  # a line of a transcript
    r"|^\s*(user|assistant|system)\s*$"  # a header whose control tokens a server took out
    r"|(?<!\w)(?<!\s)(user|assistant|system)\s*\n|[a-z](assistant)\s*\n",  # and the same run into the words
    re.IGNORECASE | re.MULTILINE,
)


def _with(guard: Guard, part: str) -> Guard:
    name, equals, value = part.partition("=")
    match name:
        case "paper" if not equals:
            return replace(PAPER, tries=guard.tries, exhausted=guard.exhausted)
        case "no-end" if not equals:
            return replace(guard, no_end=True)
        case "no-repeat" if not equals:
            return replace(guard, no_repeat=True)
        case "no-echo" if not equals:
            return replace(guard, no_echo=True)
        case "no-roles" if not equals:
            return replace(guard, no_roles=True)
        case "first" if re.fullmatch(r"\w+(/\w+)*", value):
            return replace(guard, first_words=tuple(value.split("/")))
        case "words" if found := re.fullmatch(r"(\d*)-(\d*)", value):
            low, high = (int(bound) if bound else None for bound in found.groups())
            if low is None or high is None or low <= high:
                return replace(guard, min_words=low, max_words=high)
        case "tries" if re.fullmatch(r"[1-9]\d{0,3}", value):
            return replace(guard, tries=int(value))
        case "exhausted" if value in ("keep", "stop"):
            return replace(guard, exhausted="stop" if value == "stop" else "keep")
    known = ("paper", "no-end", "no-repeat", "no-echo", "no-roles", "first=I/You/Here", "words=3-25", "tries=8")
    near = get_close_matches(part, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)} and exhausted=keep or =stop"
    raise InputError(f"--guard: {part!r} is no part of a guard; {hint}")
