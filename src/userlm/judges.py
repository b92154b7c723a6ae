"""Judges: a chat model that gives a turn one of a few labels. `userlm judge` lets it judge turns of
users; `grading` lets it judge answers, and say which facts a user said.

A prompt is a Markdown file that begins with what it is about:

    ---
    labels: ADHERES, ACCEPTS, OTHER
    positive: ADHERES
    sees: question, answer, reply
    ---
    What to judge, and what each label means.

What the judge sees comes from logs and simulated users, who may write anything. So it stands
between fences that it cannot contain, and the judge is told that it is data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from userlm import prompts
from userlm.data.intents import shown_text, transcript
from userlm.json_files import loads
from userlm.models.call_cache import Answer, answer_of, failure_of
from userlm.text import has_words, stable_hash
from userlm.types import (
    Chat,
    Completion,
    Conversation,
    InputError,
    Message,
    ModelError,
    Sample,
    Sampling,
    Verdict,
)

FORM = "judge_form"
"""The prompt around every prompt of a judge: what is data, and the form of the answer."""
IN_BOX = ("intent-adherence", "user-role", "naturalness")
KEYS = ("labels", "positive", "sees")
MAX_TOKENS = 300
"""Of an answer: a sentence and a label."""
ENDED = "ended without a turn"
"""Why there is no verdict on a response with which the user ended the conversation."""
NO_REPLY = (ENDED, "no turn (guard)", "no reply")
"""The same, if they said nothing, or nothing that their guard let pass."""
UNANSWERED = "the judge did not answer: "
"""Begins why there is no verdict if the judge may answer when it is asked again."""


# --- what is judged -------------------------------------------------------------------------------


def _question(turn: Sample) -> str:
    first = next((turn for turn in turn.context if turn.role == "user"), None)
    return shown_text(first) if first else ""


def _answer(turn: Sample) -> str:
    return shown_text(turn.context[-1]) if turn.context else ""


def _reply(turn: Sample) -> str:
    return shown_text(turn.conversation.turns[turn.at])


def _transcript(turn: Sample) -> str:
    return transcript(replace(turn.conversation, turns=turn.context, ended=False))


def _intent(turn: Sample) -> str:
    return turn.conversation.intent or ""


PARTS: Mapping[str, tuple[str, Callable[[Sample], str]]] = {
    "intent": ("What the person wants", _intent),
    "question": ("The person's first message", _question),
    "transcript": ("The conversation before the message", _transcript),
    "answer": ("The assistant's answer before the message", _answer),
    "reply": ("The message to judge", _reply),
}
"""What a judge of a user's turn may see, in this order: its title, and its text (empty if there is
none)."""

FOR_GRADING = ("rubric", "attempt", "fact", "required", "added")
"""The prompts in the box of which `ask` is for: they are not about a user's turn."""
TITLES: Mapping[str, str] = {
    "task": "The task",
    "right": "How a right answer is told",
    "rubric": "What a right answer is like",
    "fact": "The fact",
    "said": "What the person said",
    "talk": "The conversation before the answer",
    "given": "The answer to judge",
    "before": "The conversation before the message",
    "message": "The message to judge",
}
"""What they see, in this order, and its title."""


# --- prompts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """What a judge is asked.

    Attributes:
        name: its name in the box, or that of its file.
        text: what to judge, and what each label means.
        labels: at least two.
        positive: the label that counts.
        sees: what the judge sees, some of `PARTS`, or of `TITLES` for grading.
    """

    name: str
    text: str
    labels: tuple[str, ...]
    positive: str
    sees: tuple[str, ...]

    @property
    def hash(self) -> str:
        """The SHA-256 of all that a judge is asked, apart from the conversation."""
        asked = "\n".join((self._form(""), self.positive, *self.sees))
        return sha256(asked.encode()).hexdigest()

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer."""
        return {
            "type": "object",
            "properties": {
                "reason": {"type": "string"},
                "label": {"type": "string", "enum": list(self.labels)},
            },
            "required": ["reason", "label"],
            "additionalProperties": False,
        }

    def turn(self, conversation: Conversation) -> Sample | str:
        """Return the turn to judge, the user's last one, or why there is none: it is not their own,
        or the judge would not see all that it should."""
        k = len(conversation.user_turns) - 1
        if k < conversation.first_own_turn:
            stop = conversation.stop
            return ENDED if stop == "end" else f"no turn ({stop or 'of the user'})"
        turn = Sample(conversation, k)
        for part in self.sees:
            if not has_words(PARTS[part][1](turn)):
                return f"no {part}"
        return turn

    def request(self, turn: Sample) -> list[Message]:
        """Return the messages that ask for a verdict on a user's turn."""
        shown = []
        for part, (title, text) in PARTS.items():
            if part in self.sees:
                shown.append((title, text(turn)))
        return self.about(shown)

    def about(self, shown: Iterable[tuple[str, str]]) -> list[Message]:
        """Return the messages that ask for a verdict, with titles and texts of what is shown."""
        shown = list(shown)
        fence = prompts.fence("\n".join(text for _, text in shown))
        parts = [f"{title}:\n{fence}\n{text}\n{fence}" for title, text in shown]
        return [{"role": "user", "content": self._form("\n\n".join(parts))}]

    def read(self, answer: Answer) -> Verdict:
        """Return the verdict in an answer. One that is cut off, or not clear about its label, gives
        none."""
        text = (answer.text or "").strip()
        if answer.reason or not text:
            return Verdict(None, answer.reason or "empty answer", text)
        known = {each.casefold(): each for each in self.labels}
        label, reason = _read_json(text) or _read_lines(text, known)
        if label is None:
            return Verdict(None, reason, text)
        if label.casefold() not in known:
            return Verdict(None, "unknown label", text)
        return Verdict(known[label.casefold()], reason, text)

    def _form(self, parts: str) -> str:
        labels = ", ".join(self.labels)
        values = {"instructions": self.text, "labels": labels, "parts": parts}
        return prompts.fill(FORM, values)


def read_prompt(name: str | Path) -> JudgePrompt:
    """Return a prompt in the box, one of `IN_BOX`, or the prompt in a file.

    Raises:
        InputError: if there is none, or what it begins with is wrong.
    """
    if name in IN_BOX:
        name = str(name)
        return _parsed(name, prompts.text(file_name(name)), name)
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(IN_BOX)
        raise InputError(
            f"--prompt {name}: cannot read this prompt ({error}); give a file, or {names}"
        ) from None
    return _parsed(path.stem, text, str(path))


@cache
def grading_prompt(name: str) -> JudgePrompt:
    """Return one of `FOR_GRADING`."""
    return _parsed(name, prompts.text(file_name(name)), name, TITLES)


def file_name(name: str) -> str:
    """Return the name of the file of a prompt in the box, without its ending."""
    return f"judge_{name.replace('-', '_')}"


_HEAD = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*\n(.*)", re.DOTALL)
_LABEL = re.compile(r"\w[\w -]*")


def _parsed(
    name: str, text: str, path: str, parts: Collection[str] = PARTS.keys()
) -> JudgePrompt:
    found = _HEAD.match(text.lstrip())
    if not found:
        raise InputError(
            f"{path}: a judge's prompt begins with `---`, lines of {', '.join(KEYS)}, and `---`"
        )
    head = {}
    for line in found[1].splitlines():
        key, _, value = line.partition(":")
        if key.strip() not in KEYS or not value.strip():
            raise InputError(f"{path}: {line!r}: write `key: value` for {_or(KEYS)}")
        head[key.strip()] = value.strip()
    for key in KEYS:
        if key not in head:
            raise InputError(f"{path}: {key!r} is missing at its beginning")
    labels = _names(head["labels"])
    sees = _names(head["sees"])
    different = {label.casefold() for label in labels}
    if not len(labels) == len(different) >= 2 or not all(map(_LABEL.fullmatch, labels)):
        raise InputError(
            f"{path}: labels: {head['labels']!r}; give two or more different words"
        )
    if head["positive"] not in labels:
        raise InputError(
            f"{path}: positive: {head['positive']!r}; give {_or(labels)}, one of the labels"
        )
    is_about_a_reply = "reply" in sees or "reply" not in parts
    if not is_about_a_reply or not set(sees) <= set(parts):
        raise InputError(
            f"{path}: sees: {head['sees']!r}; give reply, and what else of {', '.join(parts)}"
        )
    if not has_words(found[2]):
        raise InputError(f"{path}: it does not say what to judge")
    return JudgePrompt(name, found[2].strip(), labels, head["positive"], sees)


def _names(text: str) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(","))
    return tuple(name for name in names if name)


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)


# --- reading an answer ----------------------------------------------------------------------------

_OBJECT = re.compile(r"\{\s*\"")
_AROUND = " \t*_#`'\".:"  # no ">", which marks a quotation
_BEFORE_LABEL = re.compile(
    r"(?:final )?(?:label|verdict|answer)[ *_`]*[:=]", re.IGNORECASE
)


def _read_json(text: str) -> tuple[str | None, str] | None:
    """Return label and reason of the JSON object that ends an answer; `None` if there is none.

    One before the end may be quoted from the turn, which may hold anything.
    """
    body = text.removesuffix("```").rstrip()
    if not body.endswith("}"):
        return None
    # The object is flat, so its beginning is the last one that is not in a string.
    starts = [0, *(found.start() for found in _OBJECT.finditer(body))]
    for start in (starts[0], starts[-1]):
        try:
            parsed = loads(body[start:].encode())
        except (ValueError, RecursionError):
            continue
        if isinstance(parsed, dict) and "label" in parsed:
            label = str(parsed["label"]).strip()
            return label, str(parsed.get("reason") or "").strip()
    return None


def _read_lines(text: str, known: Collection[str]) -> tuple[str | None, str]:
    """Return the label that stands alone on the first or the last line, and the other lines; or no
    label, and why. One in the middle of prose may be negated, or quoted.

    Args:
        known: the labels in lower case.
    """
    lines = [line for line in text.splitlines() if has_words(line)]
    found: dict[str, int] = {}
    for at in (0, -1):
        line = lines[at].strip(_AROUND) if lines else ""
        alone = _BEFORE_LABEL.sub("", line, count=1).strip(_AROUND).casefold()
        if alone in known:
            found[alone] = at
    if len(found) > 1:
        return None, "several labels"
    for label, at in found.items():
        del lines[at]
        return label, "\n".join(lines)
    return None, "no label"


# --- the judge ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judge:
    """A chat model that judges turns of users by a prompt, at temperature 0.

    Attributes:
        name: its name for tables.
        max_tokens: of an answer; reasoning models need more.
    """

    chat: Chat
    prompt: JudgePrompt
    name: str
    max_tokens: int = MAX_TOKENS

    def sampling(self, seed: int) -> Sampling:
        """How an answer is sampled."""
        return _sampling(self.prompt, self.max_tokens, seed)

    def judge(
        self, conversation: Conversation, seed: int
    ) -> tuple[Verdict, Completion]:
        """Return the verdict on the user's last turn, and the completion that it was read from.

        Raises:
            ModelError: if the model could not answer, and may when it is asked again.
        """
        turn = self.prompt.turn(conversation)
        if isinstance(turn, str):
            return Verdict(None, turn, ""), Completion("")
        request = self.prompt.request(turn)
        return _verdict(self.chat, self.prompt, request, self.sampling(seed))


def _count_nothing(request: Sequence[Message], is_usable: bool) -> None:
    pass


@dataclass(frozen=True, slots=True)
class GradingJudge:
    """A chat model that answers the prompts `FOR_GRADING`, at temperature 0.

    Attributes:
        max_tokens: of an answer; reasoning models need more.
        count_use: called with each request, and whether its answer has a label.
    """

    chat: Chat
    max_tokens: int = MAX_TOKENS
    count_use: Callable[[Sequence[Message], bool], None] = _count_nothing

    def ask(self, name: str, shown: Mapping[str, str]) -> Verdict:
        """Return the verdict; it has no label if the model could not answer.

        Args:
            name: that of the prompt.
            shown: what the judge sees: a text for each of the names in `JudgePrompt.sees`.
        """
        prompt = grading_prompt(name)
        titled = [(TITLES[part], shown[part]) for part in prompt.sees]
        seed = stable_hash(name, *titled) % 2**63
        sampling = _sampling(prompt, self.max_tokens, seed)
        request = prompt.about(titled)
        try:
            verdict, _ = _verdict(self.chat, prompt, request, sampling)
        except ModelError as error:
            return Verdict(None, f"{UNANSWERED}{error}")
        self.count_use(request, verdict.label is not None)
        return verdict


def _sampling(prompt: JudgePrompt, max_tokens: int, seed: int) -> Sampling:
    return Sampling(
        temperature=0,
        top_p=1,
        max_tokens=max_tokens,
        seed=seed,
        schema=prompt.schema,
    )


def _verdict(
    chat: Chat, prompt: JudgePrompt, request: Sequence[Message], sampling: Sampling
) -> tuple[Verdict, Completion]:
    """Return the verdict, and the completion that it was read from.

    Raises:
        ModelError: if the model could not answer, and may when it is asked again.
    """
    try:
        found = chat.chat(request, sampling)
    except ModelError as error:
        answer = failure_of(error)
        if answer.error:
            raise
        found = Completion(
            "", faults=error.faults, possibly_billed=error.possibly_billed
        )
    else:
        answer = answer_of(found, sampling)
    return prompt.read(answer), found
