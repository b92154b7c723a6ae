"""Split what a model thought from what it said.

Reasoning models think before they answer: in a field of its own, or between tags in the text. A
thought is not speech: nobody hears it, it ends no conversation, and it solves no task. So it is
split off once, where an answer enters, and kept in the `meta` of the turn.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from userlm.text import has_words, stable_hash
from userlm.types import (
    Chat,
    Completion,
    Conversation,
    Message,
    ModelError,
    Reply,
    Sampling,
    Speaker,
    Turn,
)

Spoken = TypeVar("Spoken", Reply, Turn)

TRIES = 3
"""How often an answer is sampled until it is more than a thought."""

_NAMES = (
    *("think", "thinking", "thought", "thoughts", "reasoning", "seed:think"),
    *("antthinking", "scratchpad", "reflection", "longcat_think"),
    *("thought_process", "inner_monologue"),
)
PAIRS = (
    *((f"<{name}>", f"</{name}>") for name in _NAMES),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|think|>", "<|/think|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    (
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
"""The tags around a thought in the text of known model families."""

TAGS = frozenset(tag for pair in PAIRS for tag in pair)
_BEGINNINGS = tuple(tag.lower().removesuffix("<|message|>").rstrip(">") for tag in TAGS)
_FIRST = frozenset(tag[0] for tag in TAGS) | {"&"}


def _may_hold_tag(text: str) -> bool:
    if not any(first in text for first in _FIRST):
        return False
    lowered = text.lower().replace("&lt;", "<").replace("</ ", "</")
    return any(tag in lowered for tag in _BEGINNINGS)


def _pattern(tag: str) -> str:
    """The pattern of a tag; there may be white space before its end, a blank after a slash, and the
    format of what gpt-oss says."""
    end = r"\s*>" if tag[-1] == ">" else ""
    start = re.escape(tag.removesuffix(">")).replace("</", "</ ?")
    return start.replace(r"\|>final", r"\|>final(?:\s*<\|constrain\|>\w+)?") + end


_OPENING = "|".join(_pattern(opens) for opens, _ in PAIRS)
_CLOSING = "|".join(_pattern(closes) for _, closes in PAIRS)
# A fence with two lines, from the second of which on it may end. Backticks around words may be
# apostrophes.
_CODE = (
    r"^[ \t]*(?P<fence>```|~~~)[^\n]*\n[^\n]*\n"
    r"|(?<!`)(?P<ticks>`{1,2})[^`\s]+(?P=ticks)"
)
# A sentence about a tag goes on behind it, or it is quoted.
_ABOUT_IT = re.compile(r"[.,](?=\s|\Z)")
_QUOTES = ('""', "''", "“”", "‘’", "()")
_FENCE_END = re.compile(r"^[ \t]*(```|~~~)[ \t]*$", re.MULTILINE)
_IN_THOUGHT = re.compile(f"(?P<closes>{_CLOSING})", re.IGNORECASE)
_IN_SPEECH = re.compile(
    f"(?P<opens>{_OPENING})|(?P<closes>{_CLOSING})|(?P<code>{_CODE})",
    re.IGNORECASE | re.MULTILINE,
)
_ANY = re.compile(f"{_OPENING}|(?P<closes>{_CLOSING})", re.IGNORECASE)
_ESCAPED = re.compile(rf"&lt;(/ ?)?({'|'.join(_NAMES)})&gt;", re.IGNORECASE)
# gpt-oss without its special tokens, and Granite.
_NAKED = re.compile(
    "analysis(.*?)assistantfinal"
    r"|\s*Here(?:'s| is) my thought process:(.*?)Here(?:'s| is) my response:",
    re.DOTALL,
)
_NAKED_CUT = re.compile(r"analysis(?=[A-Za-z][a-z'’]*[,.:]? \w)")  # analysisWe need
# What Open WebUI and LibreChat store. A thought ends before another may begin: linear time.
_STORED = re.compile(
    r'<details\b[^<>]{0,200}type="reasoning"[^<>]{0,200}>((?:(?!<details\b).)*?)</details>'
    r"|^:::thinking\n((?:(?!^:::).)*)^:::[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
# What some models put around their speech, once they have thought.
_AROUND_SPEECH = re.compile(
    r"\A\s*<\|(?:begin_of_solution|START_RESPONSE)\|>"
    r"|<\|(?:end_of_solution|END_RESPONSE|return|end)\|>\s*\Z"
)
_ANSWER = re.compile(
    r"<(answer|response|output)>((?:(?!</\1>).)*)(?:</\1>)?\Z",
    re.DOTALL | re.IGNORECASE,
)
_ENDS_OPEN = re.compile(rf"(?P<opens>{_OPENING})\s*$", re.IGNORECASE)


def split_thought(text: str) -> tuple[str, str]:
    """Return what a model said, and what it only thought; a text without tags is all speech.

    A thought that is not closed goes on to the end: the model was cut off in it; but within a line,
    such a tag is only spoken about. One that is not opened goes back to the start: many chat
    templates open it in the prompt. Tags in a quoted piece of code do not count, except one that
    closes what nothing opened: then the fence was thought.
    """
    if naked := _NAKED.match(text):
        return text[naked.end() :].strip(), naked[naked.lastindex or 0].strip()
    if cut := _NAKED_CUT.match(text):
        return "", text[cut.end() :].strip()
    given = text
    if 'type="reasoning"' in text or ":::thinking" in text:
        text = _STORED.sub(r"<think>\1\2</think>", text)
    if not _may_hold_tag(text):
        return given, ""  # as nearly all texts; the search below takes much longer
    text = _ESCAPED.sub(r"<\1\2>", text)  # as in HTML
    said: list[str] = []
    thought: list[str] = []
    start = 0
    is_thought = False
    for tag in _tags(text):
        if tag.lastgroup == "closes" and not is_thought:
            thought += said  # nothing opened it: all before it was thought
            said = []
            is_thought = True
        (thought if is_thought else said).append(text[start : tag.start()])
        is_thought = tag.lastgroup == "opens"
        start = tag.end()
    if not start:
        return given, ""
    (thought if is_thought else said).append(text[start:])
    speech = _AROUND_SPEECH.sub("", _joined(said)).strip()
    if tagged := _ANSWER.match(speech):
        speech = tagged[2].strip()
    return speech, _joined(thought)


def spoken(found: Completion) -> Completion:
    """Return the completion with the thoughts in its text split off."""
    speech, thought = split_thought(found.text)
    return replace(found, text=speech, thought=_joined((found.thought, thought)))


def without_thought(said: Spoken) -> Spoken:
    """Return a turn or a reply with the thoughts in its text added to that in `meta`; itself if it
    has none."""
    speech, thought = split_thought(said.text)
    if speech == said.text:
        return said
    thoughts = _joined((str(said.meta.get("thought") or ""), thought))
    meta = {**said.meta, "thought": thoughts} if thoughts else said.meta
    return replace(said, text=speech, meta=meta)


def open_thought(prompt: str) -> str:
    """Return the tag at the end of a prompt that opens the thought of the answer; empty if there is
    none."""
    found = _ENDS_OPEN.search(prompt)
    return found["opens"] if found else ""


def sample_speech(
    chat: Chat, messages: Sequence[Message], sampling: Sampling
) -> Completion:
    """Return the model's answer. One that is all thought is sampled again, with another seed; the
    token counts are those of all samples.

    Raises:
        ModelError: if every sample is all thought.
    """
    # At temperature 0 every sample is the same.
    tries = TRIES if sampling.temperature else 1
    samples: list[Completion] = []
    for n in range(tries):
        found = spoken(chat.chat(messages, reseeded(sampling, n)))
        samples.append(found)
        if has_words(found.text) or not found.thought:
            return replace(
                found,
                tokens_in=_sum([each.tokens_in for each in samples]),
                tokens_out=_sum([each.tokens_out for each in samples]),
            )
    raise only_thought()


def _sum(counts: Sequence[int | None]) -> int | None:
    """Return the sum of token counts; `None` if one is unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def reseeded(sampling: Sampling, n: int) -> Sampling:
    """Return the sampling with another seed, for the `n`-th repetition of a call; 0 is the first
    call."""
    if not n or sampling.seed is None:
        return sampling
    return replace(sampling, seed=stable_hash(sampling.seed, n) % 2**63)


def only_thought() -> ModelError:
    """The error for an answer without speech."""
    return ModelError(
        "the model only thought and said nothing; allow it more tokens, or turn its thinking off",
        "only thought",
    )


@dataclass(frozen=True, slots=True)
class SpeechOnly:
    """A speaker whose thoughts are split off, for one that does not do so itself."""

    speaker: Speaker

    def reply(self, conversation: Conversation, /) -> Reply:
        """Return the speaker's reply, with what it thought in the meta."""
        reply = self.speaker.reply(conversation)
        if not isinstance(reply, Reply) or not isinstance(reply.text, str):
            return reply  # the conversation loop says what is wrong
        said = without_thought(reply)
        if said is not reply and not said.text and said.stop is None:
            raise only_thought()
        return said


def _tags(text: str) -> Iterator[re.Match[str]]:
    """Yield the tags that count, in order. A thought may hold half of a piece of code, so in it
    only the tag that closes it is looked for."""
    at = spoken_from = 0
    pattern = _IN_SPEECH
    may_close = True
    fence_ends = _fence_ends(text)
    while found := pattern.search(text, at):
        before = at
        at = found.end()
        if found.lastgroup == "code" and found["fence"]:
            ends = fence_ends[found["fence"]]
            number = bisect(ends, at)
            if number == len(ends):
                at = found.end("fence")  # it is never closed
                continue
            at = ends[number]
            inner = _ANY.search(text, found.start(), at)
            if inner is None or inner.lastgroup != "closes":
                continue
            found = inner
            at = found.end()
        is_unopened = found.lastgroup == "closes" and pattern is _IN_SPEECH
        if is_unopened and _is_spoken_about(text, found):
            continue
        if found.lastgroup == "opens" and may_close:
            may_close = _IN_THOUGHT.search(text, at) is not None
        if found.lastgroup == "opens" and not may_close:
            # Only what comes after the match before is looked at, so that it takes linear time.
            _, newline, line = text[before : found.start()].rpartition("\n")
            goes_on = before > spoken_from and not newline
            if goes_on or line.strip():
                continue
        if found.lastgroup in ("opens", "closes"):
            spoken_from = at
            pattern = _IN_THOUGHT if found.lastgroup == "opens" else _IN_SPEECH
            yield found


def _is_spoken_about(text: str, tag: re.Match[str]) -> bool:
    """Return whether a sentence names a tag that closes what nothing opened."""
    before, after = text[: tag.start()][-1:], text[tag.end() : tag.end() + 1]
    is_in_line = before not in ("", "\n")
    goes_on = _ABOUT_IT.match(text, tag.end()) is not None
    return is_in_line and (goes_on or before + after in _QUOTES)


def _fence_ends(text: str) -> dict[str, list[int]]:
    """Return where the lines end that may close a fence, by the fence."""
    ends: dict[str, list[int]] = {"```": [], "~~~": []}
    for line in _FENCE_END.finditer(text):
        ends[line[1]].append(line.end())
    return ends


def _joined(parts: Sequence[str]) -> str:
    stripped = (part.strip() for part in parts)
    return "\n\n".join(part for part in stripped if part)
