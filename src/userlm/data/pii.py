"""Personal data in conversations, replaced by marks. `userlm clean --scrub` runs this.

What is replaced, and what is kept because it does not identify a person:

    <EMAIL>  addresses under any ending; not `user@host`, `@decorator`, `x@w.shape`,
             `y@theta.to(device)`, `git@github.com` or `git@host:owner/project`
    <PHONE>  +CC and 00CC numbers, national ones that begin with 0 or an area code in brackets and
             have separators, those of the US; others, and plain digits, only after a word such as
             "phone", or after "their number is" if they begin with 0 or are American; no dates
             with a time, and none after "order", "ticket" and the like; a tab is between two
             cells of a table, not within a number
    <CARD>   numbers of a known issuer whose check digit is right; not any long number, nor plain
             digits that touch a letter
    <IP>     addresses of one host on the internet; not private, local and network addresses, not
             versions: after "version" or `Chrome/` and those such as 28.0.0.137, without "IP", a
             port or the like, and short ones such as 1.2.3.4
    <KEY>    API keys (OpenAI, AWS with the secret after its name, GitHub, GitLab, Google, Hugging
             Face, Slack, Stripe and others), JWTs, PEM private keys, also without their end,
             tokens after "Bearer", user and password in a URL; what stands after "password" and
             `api_key=`, "token" and the like; not `sk-your-key-goes-here`, code that takes the
             secret from elsewhere, and a password that is one word

Spaces that do not break, other dashes and fullwidth digits and letters count as the usual ones;
characters without width are skipped. Characters may be escaped as in JSON (`\\n`, `\\u0040`) and
Markdown (`\\_`), and an @ or + as in URLs and HTML (`%40`, `&#64;`). A word before a number may be
the key of its field. Numbers at the beginning of a user turn are phone numbers if a sentence at the
end of the turn before asks for one; not dates, nor what the answer calls an order or the like. If a
number or a call is only mentioned there, those that begin with 0 or are American are.

These are patterns: they cannot find names and postal addresses. Marks that are already in a log,
such as WildChat's <PRESIDIO_ANONYMIZED_PHONE_NUMBER>, stay as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import Any

from userlm.data.characters import Places, end_of, hides, plain, shown_text
from userlm.data.pii_patterns import (
    ASKING,
    BEFORE_NUMBER,
    CUED,
    MENTIONED,
    NAMED,
    NUMBERS,
    SENTENCE_END,
    SIX_DIGITS,
    Form,
    asks_for_phone,
    is_other,
)
from userlm.types import Conversation

MARKS = ("email", "phone", "card", "ip", "key")
"""The kinds of data, for counting. A mark is the kind in capitals between angle brackets."""

# keys of `meta` that are kept: which conversations are for one split
_KEPT = frozenset(("tree",))
_PASSES = 8
"""At most, so that no text takes quadratic time. Nearly all take two; `_follower` spares a list the
others."""
_LONGEST = 1_000
"""Characters. An address has fewer; a longer key is found in the next pass."""
_REACH = 8
_QUESTION, _ANSWER = 200, 200
"""Characters at the end of a turn that may ask for a number, and of the next that may give it."""
_CAMEL = re.compile("(?<=[a-z])(?=[A-Z])")
_Span = tuple[str, int, int]
"""A kind, the first character, and the place after the last."""


def scrub(conversation: Conversation) -> tuple[Conversation, dict[str, int]]:
    """Return the conversation with marks for personal data, and how often each kind was replaced.

    Turns, the intent, the target of a response and every text, integer and key in `meta`, at any
    depth, are scrubbed: a system prompt, a goal, a rejected draft. The id, the person (`user`), the
    id of the log, and in `meta` the tree of replies are kept, since splits and intervals need
    them. So a log that uses e-mail addresses as user ids keeps those.
    """
    kept = {key: value for key, value in conversation.meta.items() if key in _KEPT}
    meta = {**conversation.meta, **dict.fromkeys(kept)}
    origin = conversation.origin
    counts: Counter[str] = Counter()
    turns = []
    before = ""
    for turn in conversation.turns:
        text = _scrub_turn(turn.role, turn.text, before, counts)
        turns.append(replace(turn, text=text, meta=_scrub(turn.meta, counts)))
        before = turn.text
    scrubbed = replace(
        conversation,
        turns=tuple(turns),
        intent=_scrub(conversation.intent, counts),
        meta=_scrub(meta, counts) | kept,
        origin=origin and replace(origin, target=_scrub(origin.target, counts)),
    )
    return (scrubbed, dict(counts)) if counts else (conversation, {})


def kinds_in(record: Mapping[str, Any]) -> set[str]:
    """Return the kinds that `scrub` would replace in the conversation of a record of `rows`."""
    meta = record.get("meta") or {}
    counts: Counter[str] = Counter()
    _scrub({key: value for key, value in meta.items() if key not in _KEPT}, counts)
    _scrub(record.get("intent"), counts)
    _scrub((record.get("origin") or {}).get("target"), counts)
    before = ""
    for turn in record["turns"]:
        _scrub_turn(turn["role"], turn["text"], before, counts)
        _scrub(turn.get("meta"), counts)
        before = turn["text"]
    return set(counts)


def scrub_text(text: str) -> tuple[str, dict[str, int]]:
    """Return the text with marks, and how often each kind was replaced.

    Scrubbing a text twice changes nothing more.
    """
    counts: Counter[str] = Counter()
    return _scrub(text, counts), dict(counts)


def _scrub(value: Any, counts: Counter[str], key: str = "") -> Any:
    """Return a JSON value with all texts, integers and keys in it scrubbed; `key` is its own."""
    if isinstance(value, dict):
        return _scrub_object(value, counts)
    if isinstance(value, list | tuple):
        return [_scrub(inner, counts, key) for inner in value]
    if isinstance(value, int):
        digits = str(value)
        scrubbed = _scrub(digits, counts, key)
        return value if scrubbed == digits else scrubbed
    return _scrub_behind(key, value, counts) if isinstance(value, str) else value


def _scrub_turn(role: str, text: str, before: str, counts: Counter[str]) -> str:
    """Return the text of a turn scrubbed. The turn before may have asked the user for a phone
    number, which stands near the beginning then."""
    text = _scrub_string(text, counts)
    announced = _asked(before) if role == "user" else ""
    if not announced:
        return text
    found = (at.start() for at in BEFORE_NUMBER.finditer(text) if not is_other(at))
    starts = [*takewhile(lambda start: start < _ANSWER, found), len(text)]
    numbers = (text[start:end] for start, end in pairwise(starts))
    scrubbed = (_scrub_behind(announced, number, counts) for number in numbers)
    return text[: starts[0]] + "".join(scrubbed)


def _asked(before: str) -> str:
    """Return what the end of a turn announces about the numbers of the next.

    After a sentence that asks for a phone number, perhaps among other things, all are "phone"
    numbers. After one that merely mentions a number or a call, and nothing else that has a number,
    those in the form of a national one are.
    """
    sentences = SENTENCE_END.split(before[-_QUESTION:])
    asking = [each for each in sentences if ASKING.search(each)] or sentences[-1:]
    if asks_for_phone(asking):
        return "phone"
    asked = " ".join(asking)
    return "my number" if MENTIONED.search(asked) and not NAMED.search(asked) else ""


def _scrub_behind(key: str, text: str, counts: Counter[str]) -> str:
    """Return the text of a field scrubbed; the name of the field may announce a number."""
    if key:
        names = dict.fromkeys((key, _CAMEL.sub("_", key)))
        announced = f"{' '.join(names)}: "
        found: Counter[str] = Counter()
        scrubbed = _scrub_string(announced + text, found)
        if scrubbed.startswith(announced):
            counts.update(found)
            return scrubbed.removeprefix(announced)
    return _scrub_string(text, counts)


def _scrub_string(text: str, counts: Counter[str]) -> str:
    for _ in range(_PASSES):
        before = text
        # as the keys of `meta` are, which come again and again
        is_short = len(text) <= 40
        forms = (_known_candidates if is_short else _candidates)(text)
        for form in forms:
            text = _replace(text, form, forms, counts)
        if text == before:  # else a mark may have freed what is beside it
            break
    return text


def _scrub_object(value: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Return a JSON object with its keys and values scrubbed; keys that become the same are
    numbered."""
    scrubbed: dict[str, Any] = {}
    for key, inner in value.items():
        name = mark = _scrub(key, counts)
        same = 1
        while name in scrubbed:
            same += 1
            name = f"{mark} {same}"
        scrubbed[name] = _scrub(inner, counts, mark)
    return scrubbed


def _replace(text: str, form: Form, forms: Sequence[Form], counts: Counter[str]) -> str:
    """Return the text with marks for what has this form, and for each `_follower` of it."""
    if hides(text):
        shown, places = shown_text(text)
        text = _marked(text, places, _spans(plain(shown), form, forms), counts)
    spans = _spans(plain(text), form, forms)
    return _marked(text, range(len(text)), spans, counts)


def _marked(
    text: str, places: Places | range, spans: Iterator[_Span], counts: Counter[str]
) -> str:
    """Return the text with marks; `places` has those of the characters that `spans` count."""
    parts = []
    end = 0
    for kind, first, after in spans:
        counts[kind] += 1
        parts += [text[end : places[first]], f"<{kind.upper()}>"]
        end = end_of(text, places[after - 1])
    return "".join(parts) + text[end:]


def _spans(shown: str, form: Form, forms: Sequence[Form]) -> Iterator[_Span]:
    after = 0
    for match in form.pattern.finditer(shown):
        if match.start() < after or (form.real and not form.real(match)):
            continue
        span: _Span | None = (form.kind, *form.span(match))
        while span:
            yield span
            after = span[2]
            span = _follower(shown, span, forms)


def _follower(shown: str, span: _Span, forms: Sequence[Form]) -> _Span | None:
    """Return what directly follows a place that gets a mark, if it only matches with the mark
    before it.

    A pattern looks back on two characters before its match, or on "<PHONE> or at ".
    """
    kind, _, after = span
    mark = f"<{kind.upper()}>"
    piece = mark + shown[after : after + _LONGEST]
    moved = after - len(mark)
    for at in range(len(mark), len(mark) + _REACH):
        for form in forms:
            match = form.matches(piece, at)
            is_whole = match and match.end() < len(piece)
            if match and is_whole and not form.matches(shown, at + moved):
                first, end = form.span(match)
                return form.kind, first + moved, end + moved
    return None


def _candidates(text: str) -> list[Form]:
    """Return the patterns that may match the text, by a quick search; most texts have none."""
    if hides(text):
        text, _ = shown_text(text)
    text = plain(text)
    lower = text.lower()
    forms = list(dict.fromkeys(form for cue, form in CUED if cue in lower))
    return forms + NUMBERS if SIX_DIGITS.search(text) else forms


_known_candidates = lru_cache(10_000)(_candidates)
