"""How a model is shown a conversation whose user turns it is to predict. `userlm ppl` scores all
three forms.

    trained    a user model, in the tokens that it learned (`flip`): the only one that has end tokens
    base       a base model, as the plain text of a transcript
    prompted   a chat model, as an instruction to write the user's next message, which is scored as its answer

The words to predict are the same in all of them; what stands around them differs. A row that is too
long is
shortened in the same order everywhere: the oldest exchanges go first, then the middle of the last
answer; never the words.
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
    Target,
    Template,
    render,
    samples,
    transcript,
    transcript_template,
)
from userlm.types import Conversation, Message, Sample, Turn
from userlm.users import user_prompt

Chat = Callable[[Sequence[Message]], list[int]]
"""Messages to ids, a turn of the assistant open at the end."""


@dataclass(frozen=True, slots=True)
class Form:
    """One of the three.

    Attributes:
        rows: a conversation, with or without an intent, in rows of at most so many tokens.
        header_suffix: the text in front of a turn's words, encoded together with them.
        offsets: where the tokens of a text stand, encoded as turns are.
        ends: whether the tokens that close a turn, and those of the ending, are to be scored, too.
    """

    rows: Callable[[Conversation, int], Rendered]
    header_suffix: str
    offsets: Offsets
    ends: bool = False


def trained_form(template: Template, offsets: Offsets) -> Form:
    """A user model in its own tokens."""
    return Form(
        lambda conversation, longest: render(conversation, template, longest),
        template.header_suffix,
        offsets,
        True,
    )


def base_form(encode: Encode, offsets: Offsets, bos: int | None) -> Form:
    """A transcript as a base model may have read many, see `flip.transcript_template`.

    Args:
        bos: what the model's texts begin with; `None`: nothing.
    """
    template = transcript_template(encode, () if bos is None else (bos,), encode("\n")[-1])

    def rows(conversation: Conversation, longest: int) -> Rendered:
        return render(transcript(conversation), template, longest)

    return Form(rows, " ", offsets)


def prompted_form(encode: Encode, offsets: Offsets, chat: Chat, close: int) -> Form:
    """The prompt of `users.PromptedUser` as the only message, a row for each user turn.

    Args:
        close: the id that closes an answer; it is not scored.
    """

    def rows(conversation: Conversation, longest: int) -> Rendered:
        found: list[Row] = []
        dropped: list[int] = []
        for sample in samples(replace(conversation, ended=False)):
            words = encode(sample.target or "")
            prompt = _fitting(sample, chat, longest - len(words) - 1)
            if prompt is None:
                dropped.append(sample.k)
                continue
            ids, at = (*prompt, *words, close), len(prompt)
            found.append(Row(ids, (Target(sample.k, at, at, len(ids)),)))
        return Rendered(tuple(found), tuple(dropped))

    return Form(rows, "", offsets)


def _fitting(sample: Sample, chat: Chat, room: int) -> list[int] | None:
    """The prompt for a turn in at most `room` tokens; `None` if that cannot be."""
    turns = sample.context

    def ids(turns: Sequence[Turn]) -> list[int]:
        return chat([{"role": "user", "content": user_prompt(sample.conversation.system, turns)}])

    def is_too_long(turns: Sequence[Turn]) -> bool:
        return len(ids(turns)) > room

    if len(whole := ids(turns)) <= room or not turns:
        return whole if len(whole) <= room else None
    last = len(turns) - 1
    starts = sorted({*range(len(turns) % 2, last, 2), last})
    kept = bisect_left(starts, True, key=lambda start: not is_too_long(turns[start:]))
    if kept < len(starts):
        return ids(turns[starts[kept] :])
    answer = turns[last]
    shorter = partial(_cut_middle, answer)
    fitting = (
        bisect_left(range(len(answer.text)), True, key=lambda size: is_too_long([shorter(size)]))
        - 1
    )
    return ids([shorter(fitting)]) if fitting > 1 else None


def _cut_middle(turn: Turn, size: int) -> Turn:
    """The turn with only its first and last characters, `size` together."""
    return replace(
        turn, text=turn.text[: (size + 1) // 2] + turn.text[len(turn.text) - size // 2 :]
    )
