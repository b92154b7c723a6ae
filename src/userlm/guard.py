"""The guard: what a simulated user may not say. A draft that violates it is resampled.

Off by default. `PAPER` holds the four rules of the paper (its appendix on the extrinsic runs): a
first-word filter, no end, 3 to 25 words, and no verbatim repeat of an earlier turn or of the
intent. A trained user applies the first two while sampling; the others are checked on the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from userlm.text import has_words, intent_goal, ngrams, words
from userlm.types import FAILED, Conversation, InputError, Reply

ECHO = 8
"""A draft with this many consecutive words of an assistant turn is an echo of it."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules for a draft.

    Attributes:
        first_words: no draft may start with one of these, in exactly this spelling.
        no_end: the user may not end the conversation.
        min_words, max_words: the number of white-space separated words; `None`: any number.
        no_repeat: no draft may equal an earlier user turn or the intent, except for case and
            spaces.
        no_echo: no draft may contain `ECHO` consecutive words of an assistant turn, or be contained
            in one if it has at least half as many words.
        no_roles: no draft may continue with another speaker's turn: a line `assistant:`, a role
            name joined to the text, or a control token written as text.
        tries: the maximum number of drafts. A draft without text is always resampled.
        exhausted: what happens if no draft passes: `keep` the one with the fewest violations, or
            `stop` the conversation.
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
    def parse(cls, text: str) -> Guard:
        """Read a guard from comma-separated parts: `paper`, `first=I/You/Here`, `no-end`,
        `may-end`, `words=3-25`, `no-repeat`, `no-echo`, `no-roles`, `tries=8`, `exhausted=stop`.
        Later parts override earlier ones: `paper,may-end` is the guard of the paper, but the user
        may end the conversation.

        Raises:
            InputError: for an unknown part; the message lists the known ones.
        """
        guard = cls()
        for part in text.split(","):
            if part.strip():
                guard = _with_part(guard, part.strip())
        return guard


PAPER = Guard(
    first_words=("I", "You", "Here"),
    no_end=True,
    min_words=3,
    max_words=25,
    no_repeat=True,
)
"""The four guardrails of the paper, with its numbers."""

Rejected = tuple[Reply, tuple[str, ...]]
"""A draft and its violations."""


def first_accepted(
    guard: Guard, conversation: Conversation, draft: Callable[[int], Reply], tries: int
) -> Reply:
    """Return the first draft without a violation.

    Args:
        draft: returns the draft with this number, from 0.
        tries: the maximum number of drafts; 1 at temperature 0, where all drafts are the same.

    The reply's meta holds the `rejected` drafts, each with its text and its violations (`why`); the
    violations (`violates`) of a draft that was kept in spite of them; `exhausted`, if none was
    kept; `p_end` and `truncated_tokens`, the same for all drafts; and their token usage together.
    """
    rejected: list[Rejected] = []
    for n in range(max(1, min(tries, guard.tries))):
        reply = draft(n)
        if reply.stop in FAILED:
            return replace(reply, meta=_meta(reply, rejected))
        wrong = tuple(violations(guard, conversation, reply))
        if not wrong:
            return replace(reply, meta=_meta(reply, rejected))
        rejected.append((reply, wrong))
    return _exhausted(guard, rejected)


def _exhausted(guard: Guard, rejected: list[Rejected]) -> Reply:
    """The reply if every draft violates the guard."""
    with_text = [n for n, (reply, _) in enumerate(rejected) if has_words(reply.text)]
    if guard.exhausted == "stop" or not with_text:
        return Reply(stop="guard", meta=_meta(Reply(), rejected) | {"exhausted": True})
    best = min(with_text, key=lambda n: len(rejected[n][1]))
    kept, wrong = rejected.pop(best)
    meta = _meta(kept, rejected) | {"violates": list(wrong)}
    return Reply(kept.text, None if guard.no_end else kept.stop, meta)


def violations(guard: Guard, conversation: Conversation, reply: Reply) -> Iterator[str]:
    """Yield the violations of a draft, one short label each."""
    text = reply.text
    ends = reply.stop == "end"
    if ends and guard.no_end:
        yield "end"
    if not has_words(text):
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
    if guard.no_repeat and _repeats(text, conversation):
        yield "repeat"
    if guard.no_echo and _echoes(text, conversation):
        yield "echo"
    if guard.no_roles and _ROLES.search(text):
        yield "role"


def rates(metas: Iterable[Any]) -> dict[str, Any] | None:
    """Count how often the guard rejected a draft; `None` if it never did.

    Args:
        metas: the `meta` of user turns and of ends without text.

    Returns:
        The number of `turns`, of `drafts`, of `resampled` turns, of turns `kept` in spite of a
        violation, of conversations `stopped`, and of drafts with each violation (`why`).
    """
    counts = Counter(turns=0, drafts=0, resampled=0, kept=0, stopped=0)
    why: Counter[str] = Counter()
    for meta in metas:
        rejected = meta.get("rejected", ())
        stopped = bool(meta.get("exhausted"))
        counts["turns"] += 1
        counts["drafts"] += len(rejected) + int(not stopped)
        counts["resampled"] += len(rejected) > int(stopped)
        counts["kept"] += bool(meta.get("violates"))
        counts["stopped"] += stopped
        for draft in rejected:
            why.update(draft["why"])
        why.update(meta.get("violates", ()))
    return {**counts, "why": dict(why.most_common())} if why else None


def _meta(reply: Reply, rejected: list[Rejected]) -> dict[str, Any]:
    """Return the meta of a reply, including the drafts before it."""
    meta = dict(reply.meta)
    if not rejected:
        return meta
    first = rejected[0][0].meta
    for name in ("p_end", "truncated_tokens"):  # the same for all drafts
        if name in first:
            meta.setdefault(name, first[name])
    drafts = [reply, *(draft for draft, _ in rejected)]
    for name in ("tokens_in", "tokens_out"):
        counts = [draft.meta[name] for draft in drafts if name in draft.meta]
        if counts:
            meta[name] = sum(counts)
    meta["rejected"] = [
        {"text": draft.text, "why": list(wrong)} for draft, wrong in rejected
    ]
    return meta


def _repeats(text: str, conversation: Conversation) -> bool:
    intent = conversation.intent or ""
    earlier = (*conversation.user_turns, intent, intent_goal(intent))
    return _fold(text) in map(_fold, earlier)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _echoes(text: str, conversation: Conversation) -> bool:
    draft = words(text)
    n = min(ECHO, len(draft))
    if 2 * n < ECHO:
        return False
    draft_ngrams = set(ngrams(draft, n))
    return any(
        not draft_ngrams.isdisjoint(ngrams(words(turn.text), n))
        for turn in conversation.turns
        if turn.role == "assistant"
    )


_ROLES = re.compile(
    r"<\|\w+\|>"  # a control token written as text
    r"|^\W{0,3}(user|human|assistant|ai|system)\W{0,3}:"  # a line of a transcript
    r"|^[^\S\n]*(user|assistant|system)[^\S\n]*$"  # a header without its control tokens
    r"|(?<!\w)(?<!\s)(user|assistant|system)[^\S\n]*\n"  # a joined role name
    r"|[a-z](assistant)[^\S\n]*\n",
    re.IGNORECASE | re.MULTILINE,
)

_FLAGS = {
    "no-end": "no_end",
    "no-repeat": "no_repeat",
    "no-echo": "no_echo",
    "no-roles": "no_roles",
}
_KNOWN = ("paper", *_FLAGS, "may-end", "first=I/You/Here", "words=3-25", "tries=8")


def _bound(text: str) -> int | None:
    return int(text) if text else None


def _with_part(guard: Guard, part: str) -> Guard:
    """Return the guard with one more part of the specification."""
    if part == "paper":
        return replace(PAPER, tries=guard.tries, exhausted=guard.exhausted)
    if part == "may-end":
        return replace(guard, no_end=False)
    if part in _FLAGS:
        return replace(guard, **{_FLAGS[part]: True})  # type: ignore[arg-type]
    name, _, value = part.partition("=")
    match name:
        case "first" if re.fullmatch(r"\w+(/\w+)*", value):
            return replace(guard, first_words=tuple(value.split("/")))
        case "words" if found := re.fullmatch(r"(\d{0,9})-(\d{0,9})", value):
            low, high = map(_bound, found.groups())
            if low is None or high is None or low <= high:
                return replace(guard, min_words=low, max_words=high)
        case "tries" if re.fullmatch(r"[1-9]\d{0,3}", value):
            return replace(guard, tries=int(value))
        case "exhausted" if value == "keep" or value == "stop":
            return replace(guard, exhausted=value)  # type: ignore[arg-type]
    near = get_close_matches(part, _KNOWN, 1)
    hint = f"known are {', '.join(_KNOWN)} and exhausted=keep or =stop"
    if near:
        hint = f"did you mean {near[0]}?"
    raise InputError(f"--guard: {part!r} is not a known part of a guard; {hint}")
