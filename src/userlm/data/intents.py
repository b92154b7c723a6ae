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


# --- intents in a person's words ------------------------------------------------------------------

_VERBS = """
    add apply arrange ask assemble bake brainstorm build buy calculate cancel choose compare
    complain compose confirm convert cook create debug decide delete describe determine discover
    discuss draw edit explain explore extend find finish fix generate get go have identify implement
    improve install invent know learn locate make mend modify negotiate obtain organise organize pay
    practise prepare proofread prove publish rebook receive recover reduce refactor register remove
    rename renew repair replace reschedule reserve reset resolve restore retrieve revise rewrite
    select sell send settle shorten simplify solve submit subscribe summarise summarize translate
    troubleshoot understand unsubscribe verify write
""".split()
_NOUNS_TOO = """
    book change chat check claim clean complete correct design download draft estimate exchange file
    format list move open order outline paint pick plan practice purchase rent report request
    research return review save schedule search set share sketch sort study switch take talk test
    track train transfer travel turn update upgrade visit watch work
""".split()
"""Verbs that are also nouns or adjectives: before an article or the like they are surely verbs."""
_GOAL = re.compile(
    # No name, as in "to Rome".
    r"to\s+(?!(?:an?|the|my|your|our|his|her|its|their|th[aeio]\w+|who\w*|me|you|us|it|all)\b)[a-z]\w"
    rf"|(?:{'|'.join(_VERBS)})\b"
    rf"|(?:{'|'.join(_NOUNS_TOO)})\s+(?:an?|the|my|our|your|some|this|these|me|it|about|for|up|out)\b"
)
_LONGEST_GOAL = 500  # characters
_TO_A_SIMULATOR = re.compile(
    r"\b(?:you|users?|persona|role|next (?:message|turn|reply))\b", re.IGNORECASE
)
"""What a prompt says that tells a model how to play somebody."""


def complete_intent(intent: str) -> tuple[str, str]:
    """Return an intent in a person's words in the form that user models are trained on, and a note
    of what was done, or is left to do; empty if the intent has that form.

    What is surely a goal alone, one sentence that begins with a verb or "to", is put after the
    opening. A persona or any other text stays as it is. Intents of logs are never completed: a
    model may have been trained on another form.
    """
    if is_goal(intent):
        whole = with_opening(intent)
        whole += "" if whole.endswith((".", "!", "?")) else "."
        return whole, f"the intent was completed: {whole!r}"
    count = len(intent.split())
    if count > MAX_WORDS:
        problem = f"has {count} words"
    elif intent and intent_goal(intent) == intent:
        problem = "does not begin as in training"
    else:
        return intent, ""
    return intent, (
        f"the intent {problem}: user models are trained on one sentence, {INTENT_PREFIX!r} and "
        "what is wanted; give such a sentence"
    )


def is_goal(text: str) -> bool:
    """Return whether a text is surely a goal without the opening, such as `plan a trip to Rome`."""
    text = text.strip()
    return (
        len(text) <= _LONGEST_GOAL  # no regular expression sees the prompt of a harness
        and _GOAL.match(text[:1].lower() + text[1:]) is not None
        and not ("\n" in text or _SENTENCE_END.search(text))
        and not _TO_A_SIMULATOR.search(text)
        and len(words(with_opening(text))) <= MAX_WORDS
    )


def with_opening(goal: str) -> str:
    """Return a goal after the fixed opening words."""
    goal = re.sub(r"\A\s*to\s+", "", goal, flags=re.IGNORECASE).strip()
    return INTENT_PREFIX + in_sentence(goal)


def in_sentence(text: str) -> str:
    """Return a text as it is written within a sentence: its first letter is small, if that is not
    "I" or of an acronym."""
    is_word = text[1:2].islower()
    return text[:1].lower() + text[1:] if is_word else text


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
