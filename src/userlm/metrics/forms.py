"""The formats in which a model gets a conversation to predict its user turns. `userlm ppl` scores
all three forms.

    trained    a user model, in its own template (`flip`): the only form with end tokens
    base       a base model, as the plain text of a transcript
    prompted   a chat model, as an instruction to write the user's next message, which is scored as
               its answer

The content to predict is the same in all of them; the text around it differs. A row that is too
long is truncated in the same order everywhere: first the oldest exchanges are dropped, then the
middle of the last answer, but never the content.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from userlm.flip import (
    Encode,
    Offsets,
    Rendered,
    Row,
    TargetSpan,
    Template,
    render,
    samples,
    transcript,
    transcript_template,
)
from userlm.types import Conversation, Message, Sample, Turn
from userlm.users import user_prompt

Chat = Callable[[Sequence[Message]], list[int]]
"""Messages to ids that end with the header of the assistant's answer."""
Ask = Callable[[str | None, Sequence[Turn]], list[int]]
"""The same for the goal of a prompted user, and the turns so far."""


@dataclass(frozen=True, slots=True)
class Form:
    """One of the three forms.

    Attributes:
        rows: returns the rows of a conversation, given the maximum row length in tokens.
        header_suffix: the text before the content of a turn, encoded together with it.
        offsets: returns the offsets of a text's tokens, encoded as in a turn.
        ends: whether closing tokens and end tokens are scored too.
    """

    rows: Callable[[Conversation, int], Rendered]
    header_suffix: str
    offsets: Offsets
    ends: bool = False


def trained_form(template: Template, offsets: Offsets) -> Form:
    """Return the form of a user model: its own template."""
    return Form(
        lambda conversation, max_tokens: render(conversation, template, max_tokens),
        template.header_suffix,
        offsets,
        ends=True,
    )


def base_form(encode: Encode, offsets: Offsets, bos: int | None) -> Form:
    """Return the form of a base model: a transcript, see `flip.transcript_template`.

    Args:
        bos: the id of the BOS; `None` if the model has none.
    """
    start = () if bos is None else (bos,)
    template = transcript_template(encode, start, end=encode("\n")[-1])

    def rows(conversation: Conversation, max_tokens: int) -> Rendered:
        return render(transcript(conversation), template, max_tokens)

    return Form(rows, " ", offsets)


def prompted_form(
    encode: Encode,
    offsets: Offsets,
    chat: Chat,
    close: int,
    instructions: str | None = None,
) -> Form:
    """Return the form of a chat model: the prompt of `users.PromptedUser` as the only message, with
    a row for each user turn.

    Args:
        close: the id that closes an answer; it is not scored.
        instructions: those of the user, in place of ours; see `users.user_prompt`.
    """

    def ask(goal: str | None, turns: Sequence[Turn]) -> list[int]:
        content = user_prompt(goal, turns, instructions)
        return chat([{"role": "user", "content": content}])

    def rows(conversation: Conversation, max_tokens: int) -> Rendered:
        found: list[Row] = []
        dropped: list[int] = []
        for sample in samples(replace(conversation, ended=False)):
            content = encode(sample.target or "")
            prompt = _truncated_prompt(sample, ask, max_tokens - len(content) - 1)
            if prompt is None:
                dropped.append(sample.k)
                continue
            ids = (*prompt, *content, close)
            start = len(prompt)
            target = TargetSpan(sample.k, start, start, len(ids))
            found.append(Row(ids, (target,)))
        return Rendered(tuple(found), tuple(dropped))

    return Form(rows, "", offsets)


def _truncated_prompt(sample: Sample, ask: Ask, room: int) -> list[int] | None:
    """Return the prompt for a turn in at most `room` tokens; `None` if that is impossible."""
    turns = sample.context

    def prompt(turns: Sequence[Turn]) -> list[int]:
        return ask(sample.conversation.system, turns)

    def fits(turns: Sequence[Turn]) -> bool:
        return len(prompt(turns)) <= room

    if fits(turns):
        return prompt(turns)
    if not turns:
        return None
    last = len(turns) - 1
    first_exchange = len(turns) % 2  # 1 if there is a greeting before it
    starts = sorted({*range(first_exchange, last, 2), last})
    # A later start gives a shorter prompt: find the first start that fits by bisection.
    found = bisect_left(starts, True, key=lambda start: fits(turns[start:]))
    if found < len(starts):
        return prompt(turns[starts[found] :])
    # Not even the last answer fits: find the smallest size of it that is too long by bisection.
    shorter = partial(_cut_middle, turns[last])
    sizes = range(len(turns[last].text))
    too_long = bisect_left(sizes, True, key=lambda size: not fits([shorter(size)]))
    kept = too_long - 1
    return prompt([shorter(kept)]) if kept > 1 else None


def _cut_middle(turn: Turn, size: int) -> Turn:
    """Return the turn with only its first and last characters, `size` in total."""
    left = (size + 1) // 2
    right = len(turn.text) - size // 2
    return replace(turn, text=turn.text[:left] + turn.text[right:])
