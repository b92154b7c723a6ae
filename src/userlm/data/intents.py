"""What a user was after, in one generic sentence. `userlm intents` runs this.

The form is that of the paper: "You are a user chatting with an assistant language model to ...",
one sentence, the overall goal and no details, nothing copied. `write` has any chat model write it;
the offline stand-in is in `extractive`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from userlm.prompts import fill
from userlm.text import INTENT_PREFIX, content_words, intent_goal, ngrams, words
from userlm.types import Conversation, Message, Turn

MAX_WORDS = 60
COPIED = 7


# --- what an intent must be -----------------------------------------------------------------------


def check(intent: str, conversation: Conversation) -> str | None:
    """Why an intent is not in form: `prefix`, `no goal`, `not one sentence`, `too long`, `copied
    words`.

    `too long`: more than 60 words in all. `copied words`: 7 words in a row of its goal stand in a
        user turn.
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
    mine = set(ngrams(words(goal), COPIED))
    for turn in conversation.user_turns if mine else ():
        if any(gram in mine for gram in ngrams(words(turn), COPIED)):
            return "copied words"
    return None


def leakage(intent: str, conversation: Conversation) -> float | None:
    """Share (0 to 1) of the content words of the first user turn, each counted once, that the goal
    says.

    `None` without a user turn or without content words in it.
    """
    first = set(content_words(next(iter(conversation.user_turns), "")))
    return len(first & set(content_words(intent_goal(intent)))) / len(first) if first else None


_SENTENCE_END = re.compile(
    r"(?<!\b[A-Za-z])(?<!\be\.g)(?<!\bi\.e)(?<!\b[DMS]r)(?<!\bM[rs]s)(?<!\bSt)(?<!\bNo)(?<!\bvs)(?<!\betc)"
    r"(?<!\bapprox)[.!?][\"')\]]*\s+\S"
)


# --- having it written ----------------------------------------------------------------------------

USER_TURN, ASSISTANT_TURN, TRANSCRIPT = 4_000, 2_000, 24_000
"""Characters of a conversation that are shown at most; so the cost of an intent is bounded."""

Ask = Callable[[int, Sequence[Message]], tuple[str | None, str]]
"""The number of the try and the messages; an answer and what is wrong with it (empty: nothing), or
`None` and why there is none."""


def write(conversation: Conversation, ask: Ask, tries: int = 2) -> tuple[str | None, str]:
    """An intent that passes `check`, or `None` and why there is none.

    Args:
        tries: how often to ask; what is wrong with one sentence is said when the next is asked for.
    """
    reason = "nothing to say"
    if not any(turn.strip() for turn in conversation.user_turns):
        return None, reason
    messages = request(conversation)
    for number in range(tries):
        text, reason = ask(number, messages)
        if text is None:
            return None, reason
        intent = tidy(text)
        if not (reason := reason or check(intent, conversation) or ""):
            return intent, ""
        again = fill("intent_again", {"prefix": INTENT_PREFIX.strip(), "reason": reason})
        messages = [
            *messages,
            {"role": "assistant", "content": text},
            {"role": "user", "content": again},
        ]
    return None, reason


def request(conversation: Conversation) -> list[Message]:
    """What a model is asked first."""
    shown, fence = transcript(conversation), "===="
    while fence in shown:  # nobody closes it from inside
        fence += "="
    values = {"prefix": INTENT_PREFIX.strip(), "transcript": shown, "fence": fence}
    return [{"role": "user", "content": fill("intent", values)}]


def transcript(conversation: Conversation) -> str:
    """The conversation as text, long turns cut in their middle, and a long conversation in its
    own."""
    shown = [_line(turn) for turn in conversation.turns]
    if sum(map(len, shown)) <= TRANSCRIPT:
        return "\n".join(shown)
    room, first, last = TRANSCRIPT, 0, len(shown)
    while first < last:  # from both ends, the beginning first: what somebody is after is said there
        at_front = first <= len(shown) - last
        room -= len(shown[first if at_front else last - 1])
        if room < 0:
            break
        first, last = (first + 1, last) if at_front else (first, last - 1)
    return "\n".join([*shown[:first], f"[... {last - first} turns left out ...]", *shown[last:]])


def _line(turn: Turn) -> str:
    limit = USER_TURN if turn.role == "user" else ASSISTANT_TURN
    text = turn.text
    if (rest := len(text) - limit) > 0:
        text = f"{text[: limit // 2]} [... {rest} characters left out ...] {text[-limit // 2 :]}"
    return f"<{turn.role}>: {text}"


def tidy(text: str) -> str:
    """A model's answer as one line that ends in a full stop, without what is put around a sentence:
    thoughts, a label, quotation marks."""
    text = " ".join(_THOUGHTS.sub("", text).split())
    text = _unquoted(_LABEL.sub("", _unquoted(text), count=1)).rstrip(" ,;:")
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _unquoted(text: str) -> str:
    """Without quotation marks around all of it, a full stop after them or not."""
    while (body := text.rstrip(".!?")) and len(body) > 1 and _QUOTES.get(body[0]) == body[-1]:
        text = body[1:-1] + text[len(body) :]
    return text


_QUOTES = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "“": "”", "‘": "’", "«": "»"}
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_LABEL = re.compile(
    r"^[*_#\s]*(?:the |user'?s? )*(?:intent|summary|sentence|answer)[ \w]{0,12}[*_]*:[*_\s]*", re.I
)
