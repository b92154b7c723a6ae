"""Intents: what a user wants, in one generic sentence. `userlm intents` runs this.

The form is that of the paper: "You are a user chatting with an assistant language model to ...",
one sentence with the overall goal, no details and nothing copied. `write` lets any chat model write
it; `extractive` is the baseline without a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from userlm.prompts import fence, fill
from userlm.text import INTENT_PREFIX, content_words, intent_goal, ngrams, words
from userlm.types import Conversation, Message, Turn

NOTHING = "nothing to say"
"""The reason for no intent where the user says nothing."""
MAX_WORDS = 60
COPIED = 7

# --- what an intent must be -----------------------------------------------------------------------

_SENTENCE_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\be\.g)(?<!\bi\.e)(?<!\b[DMS]r)(?<!\bM[rs]s)(?<!\bSt)(?<!\bNo)(?<!\bvs)(?<!\betc)"
    r"(?<!\bapprox)[.!?][\"')\]]*\s+\S"
)


def check(intent: str, conversation: Conversation) -> str | None:
    """Return what is wrong with an intent, or `None`.

    The result is one of `prefix`, `no goal`, `not one sentence`, `too long`, `copied words`.

    `too long`: more than 60 words in all. `copied words`: a user turn contains 7 consecutive words
        of its goal.
    """
    if not intent.startswith(INTENT_PREFIX):
        return "prefix"
    goal = intent_goal(intent)
    if not words(goal):
        return "no goal"
    if not goal.endswith((".", "!", "?")) or _SENTENCE_END.search(goal) or "\n" in goal:
        return "not one sentence"
    if len(words(intent)) > MAX_WORDS:
        return "too long"
    goal_ngrams = set(ngrams(words(goal), COPIED))
    for turn in conversation.user_turns:
        if not goal_ngrams.isdisjoint(ngrams(words(turn), COPIED)):
            return "copied words"
    return None


def leakage(intent: str, conversation: Conversation) -> float | None:
    """Return the share (0 to 1) of the content words of the first user turn that the goal repeats.

    `None` without a user turn or without content words in it.
    """
    first = next(iter(conversation.user_turns), "")
    said = set(content_words(first))
    if not said:
        return None
    return len(said.intersection(content_words(intent_goal(intent)))) / len(said)


# --- intents by a model ---------------------------------------------------------------------------

USER_TURN = 4_000
ASSISTANT_TURN = 2_000
TRANSCRIPT = 24_000
"""Maximum number of characters shown to the model (per user turn, assistant turn, and in all),
which limits the cost."""

Ask = Callable[[int, Sequence[Message]], tuple[str | None, str]]
"""Takes the number of the attempt and the messages. Returns an answer and what is wrong with it
(empty if nothing), or `None` and the reason why there is no answer."""


def write(
    conversation: Conversation, ask: Ask, tries: int = 2
) -> tuple[str | None, str]:
    """Return an intent that passes `check`, or `None` and why there is none.

    Args:
        tries: the number of attempts; after a failed one, the model is told what was wrong.
    """
    if not any(turn.strip() for turn in conversation.user_turns):
        return None, NOTHING
    return write_after(request(conversation), conversation, ask, tries)


def write_after(
    messages: Sequence[Message], conversation: Conversation, ask: Ask, tries: int
) -> tuple[str | None, str]:
    """Return the intent that a model writes after these messages; see `write`."""
    reason = NOTHING
    prefix = INTENT_PREFIX.strip()
    for number in range(tries):
        text, reason = ask(number, messages)
        if text is None:
            return None, reason
        intent = tidy(text)
        reason = reason or check(intent, conversation) or ""
        if not reason:
            return intent, ""
        again = fill("intent_again", {"prefix": prefix, "reason": reason})
        messages = [
            *messages,
            {"role": "assistant", "content": text},
            {"role": "user", "content": again},
        ]
    return None, reason


def request(conversation: Conversation) -> list[Message]:
    """Return the messages that ask a model for an intent."""
    shown = transcript(conversation)
    values = {
        "prefix": INTENT_PREFIX.strip(),
        "transcript": shown,
        "fence": fence(shown),
    }
    return [{"role": "user", "content": fill("intent", values)}]


def description_request(description: str) -> list[Message]:
    """Return the messages that ask a model for the intent in the prompt of a harness."""
    shown = _shortened(description, TRANSCRIPT)
    values = {
        "prefix": INTENT_PREFIX.strip(),
        "description": shown,
        "fence": fence(shown),
    }
    return [{"role": "user", "content": fill("harness_intent", values)}]


def transcript(conversation: Conversation) -> str:
    """Return the conversation as text; the middle of long turns and conversations is left out."""
    lines = [_line(turn) for turn in conversation.turns]
    if sum(map(len, lines)) <= TRANSCRIPT:
        return "\n".join(lines)
    room = TRANSCRIPT
    start: list[str] = []
    end: list[str] = []
    # Keep turns from both ends, the start first, since users say there what they want.
    while lines:
        at_start = len(start) <= len(end)
        line = lines[0] if at_start else lines[-1]
        room -= len(line)
        if room < 0:
            break
        if at_start:
            start.append(lines.pop(0))
        else:
            end.append(lines.pop())
    return "\n".join([*start, f"[... {len(lines)} turns left out ...]", *end[::-1]])


def _line(turn: Turn) -> str:
    return f"<{turn.role}>: {shown_text(turn)}"


def shown_text(turn: Turn) -> str:
    """Return the text of a turn; the middle of a long one is left out."""
    limit = USER_TURN if turn.role == "user" else ASSISTANT_TURN
    return _shortened(turn.text, limit)


def _shortened(text: str, limit: int) -> str:
    excess = len(text) - limit
    if excess <= 0:
        return text
    half = limit // 2
    start = text[:half]
    end = text[-half:]
    return f"{start} [... {excess} characters left out ...] {end}"


# --- cleaning a model's answer --------------------------------------------------------------------

_QUOTES = dict(zip("'\"`*_“‘«", "'\"`*_”’»", strict=True))
_LABEL = re.compile(
    r"^[*_#\s]*(?:the |user'?s? )*(?:intent|summary|sentence|answer)[ \w]{0,12}[*_]*:[*_\s]*",
    re.I,
)


def tidy(text: str) -> str:
    """Return a model's answer as one sentence, without label and quotation marks."""
    text = " ".join(text.split())
    text = _LABEL.sub("", _unquoted(text), count=1)
    text = _unquoted(text).rstrip(" ,;:")
    if text and not text.endswith((".", "!", "?")):
        text += "."
    return text


def _unquoted(text: str) -> str:
    """Return the text without quotation marks around it, which a full stop may follow."""
    body = text.rstrip(".!?")
    while len(body) > 1 and _QUOTES.get(body[0]) == body[-1]:
        text = body[1:-1] + text[len(body) :]
        body = text.rstrip(".!?")
    return text
