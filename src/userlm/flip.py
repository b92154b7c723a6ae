"""Flip a dialogue to the user's side and tokenize it: the one place where text becomes ids.

A conversation of K user turns gives K + 1 samples; the last one is "the user ends the conversation"
(`samples`). Attention is causal, so one row that holds the whole conversation trains exactly the
same predictions as its samples one by one, at a fraction of the cost (`render`).

The format is that of microsoft/UserLM-8b: one newline after each header, no BOS, and a prompt
always ends with an open user turn:

    <|start_header_id|>system<|end_header_id|>\\n{intent}<|eot_id|>
    <|start_header_id|>user<|end_header_id|>\\n{text of the turn}<|eot_id|> ...
    <|start_header_id|>user<|end_header_id|>\\n<|endconversation|><|eot_id|>

(shown on three lines; there is nothing between `<|eot_id|>` and the next header).
`models.templates` finds the formats of other checkpoints.

The same code trains the two baselines: an assistant on dialogues with swapped roles (`swap_roles`),
and a base model on plain text (`transcript`, `render_document`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from userlm.text import END_TOKEN
from userlm.types import OTHER_ROLE, Conversation, Sample

Ids = tuple[int, ...]
Encode = Callable[[str], list[int]]
"""Text to ids."""
EncodeAll = Callable[[Sequence[str]], list[list[int]]]
"""Many texts to ids."""
Offsets = Callable[[str], list[tuple[int, int]]]
"""Text to the offsets of its tokens: the first character, and the one after the last."""
Overlong = Literal["truncate", "drop"]
"""What to do with a sample that does not fit a row: truncate its context, or drop it."""

CUT_MARK = " …"
"""Takes the place of the middle of an answer that is longer than `Template.max_answer_tokens`. The
next word brings its own space."""
MIN_ANSWER_TOKENS = 8
"""The mark takes up to four tokens, one for each byte; a beginning and an end stay beside it."""


def samples(conversation: Conversation) -> Iterator[Sample]:
    """Yield all that a user model can learn from a conversation: each user turn of its own, and the
    end if it was observed."""
    for k in range(conversation.first_own_turn, len(conversation.user_turns)):
        yield Sample(conversation, k)
    if conversation.ended:
        yield Sample(conversation, len(conversation.user_turns))


@dataclass(frozen=True, slots=True)
class Template:
    """How a dialogue is tokenized, for training, generation and scoring alike.

    Some user models (USP, OSim, Ditto) have no end token: `end == close`, and a turn that is closed
    without content is an end.

    Attributes:
        encode: text to ids; never returns a control token, whatever the text contains.
        headers: the ids that open a turn, for `system`, `user` and `assistant`.
        header_suffix: the text between a header and the content, encoded together with the content.
        close: the id that closes a turn.
        end: the id that a user generates to end the conversation.
        stop_ids: ids that end a reply: `close`, `end` and every other control token.
        bos: ids at the start of every row; UserLM has none.
        separator: ids between one turn and the next.
        empty_thought: ids between the header suffix and a turn to be generated, such as the empty
            thought of a model that can think. Turns that are given do not have it.
        system_text: the content of the system turn; the intent (or profile) replaces its `{}`.
        trim: whether white space around the content of a turn is removed.
        max_answer_tokens: the maximum number of tokens in the content of an assistant's turn. A
            longer one is cut in its middle (`cut_middle`); `None`: answers are whole.
    """

    encode: Encode
    headers: Mapping[str, Ids]
    header_suffix: str
    close: int
    end: int
    stop_ids: frozenset[int]
    bos: Ids = ()
    separator: Ids = ()
    empty_thought: Ids = ()
    system_text: str = "{}"
    trim: bool = False
    max_answer_tokens: int | None = None

    @property
    def has_profile(self) -> bool:
        """Whether the model was trained on who the user is, and not on an intent (USP)."""
        return self.system_text != "{}"

    def prefix(self, role: str) -> Ids:
        """The ids before the content of a turn: header and header suffix."""
        return (*self.headers[role], *self.encode(self.header_suffix))

    def turn(self, role: str, text: str) -> Ids:
        """The ids of a whole turn."""
        content = text.strip() if self.trim else text
        body = self.encode(self.header_suffix + content)
        ids = (*self.headers[role], *body, self.close, *self.separator)
        if role != "assistant" or self.max_answer_tokens is None:
            return ids
        return self.cut_middle(ids, self.max_answer_tokens) or ids

    def cut_middle(self, turn: Ids, size: int) -> Ids | None:
        """Return an assistant turn with at most `size` tokens of content: its start and its end,
        with `CUT_MARK` between them in a model that knows it (`max_answer_tokens`). `None` if that
        leaves no start or no end."""
        content_start = len(self.prefix("assistant"))
        content_stop = len(turn) - 1 - len(self.separator)
        if content_stop - content_start <= size:
            return turn
        mark = [] if self.max_answer_tokens is None else self.encode(CUT_MARK)
        kept = size - len(mark)
        if kept < 2:
            return None
        left = content_start + (kept + 1) // 2
        right = content_stop - kept // 2
        return (*turn[:left], *mark, *turn[right:])

    def row_start(self, conversation: Conversation) -> Ids:
        """The ids at the start of a row: the BOS and the system turn, if there are any."""
        system = conversation.system
        if system is None:
            return self.bos
        return (
            *self.bos,
            *self.turn("system", self.system_text.replace("{}", system)),
        )

    def end_turn(self) -> Ids:
        """The ids of a whole user turn that ends the conversation."""
        end = (self.end,) if self.end == self.close else (self.end, self.close)
        return (*self.prefix("user"), *end, *self.separator)

    def generation_prompt(self) -> Ids:
        """The ids that open a user turn, up to its content. P(end) is read at the next position."""
        return (*self.prefix("user"), *self.empty_thought)

    def with_roles_swapped(self) -> Template:
        """Return the same format for the assistant's side of `swap_roles`, without an end token."""
        headers = {
            role: self.headers[OTHER_ROLE.get(role, role)] for role in self.headers
        }
        return replace(self, headers=headers, end=self.close)

    def first_token_ids(self, words: Sequence[str]) -> frozenset[int]:
        """Return the ids of these words at the start of a turn, with or without a leading space.

        A word of several tokens is skipped, since its first token also begins other words.
        """
        suffix = self.encode(self.header_suffix)
        found = set()
        for word in words:
            for variant in (word, f" {word}"):
                ids = self.encode(self.header_suffix + variant)
                if ids[:-1] == suffix:
                    found.add(ids[-1])
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class TargetSpan:
    """The place of sample `k`, a user turn or the end, in a row.

    `ids[start:stop]` are the target tokens: header suffix, content (or end token), closing token.
    `ids[first:stop - 1]` is the content, or the end token, alone: what perplexity counts. For an
    end without an end token (`end == close`) that is empty.
    """

    k: int
    start: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, and one span for each sample in them."""

    ids: Ids
    spans: tuple[TargetSpan, ...]

    def mask(self, content_only: bool = False) -> list[bool]:
        """True where a token is to be predicted; `content_only` leaves out header suffixes and
        closing tokens."""
        mask = [False] * len(self.ids)
        for span in self.spans:
            start, stop = span.start, span.stop
            if content_only:
                start, stop = span.first, span.stop - 1
            mask[start:stop] = [True] * (stop - start)
        return mask


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rows of a conversation, and the `k` of the samples that do not fit."""

    rows: tuple[Row, ...]
    dropped: tuple[int, ...] = ()


def render(
    conversation: Conversation,
    template: Template,
    max_tokens: int | None = None,
    overlong: Overlong = "truncate",
) -> Rendered:
    """Tokenize all samples of a conversation, each exactly once, in as few rows as possible.

    The first row holds the conversation from its start for as long as it fits. Each later sample
    gets a row of its own, with a context that `truncate` shortens. Every turn is encoded once.

    Args:
        max_tokens: the length of a row, in tokens; `None`: no limit.
        overlong: what happens to the samples that do not fit whole.
    """
    head = template.row_start(conversation)
    turns = [template.turn(turn.role, turn.text) for turn in conversation.turns]
    if conversation.ended:
        turns.append(template.end_turn())
    sample_at = {sample.at: sample.k for sample in samples(conversation)}

    whole_ids = list(head)
    whole_spans: list[TargetSpan] = []
    single_rows: list[Row] = []
    dropped: list[int] = []
    fits = True
    for at, turn in enumerate(turns):
        fits = fits and (max_tokens is None or len(whole_ids) + len(turn) <= max_tokens)
        k = sample_at.get(at)
        if fits:
            if k is not None:
                whole_spans.append(_span(template, k, len(whole_ids), turn))
            whole_ids += turn
        elif k is not None and max_tokens is not None:
            context = None
            if overlong == "truncate":
                room = max_tokens - len(turn)
                context = truncate(head, turns, template, room, at)
            if context is None:
                dropped.append(k)
            else:
                span = _span(template, k, len(context), turn)
                single_rows.append(Row((*context, *turn), (span,)))
    if not whole_spans:
        return Rendered(tuple(single_rows), tuple(dropped))
    last_trained = whole_spans[-1].stop  # ids after the last target are not trained
    whole = Row(tuple(whole_ids[:last_trained]), tuple(whole_spans))
    return Rendered((whole, *single_rows), tuple(dropped))


def swap_roles(conversation: Conversation) -> Conversation:
    """Return the conversation with the assistant in the user's role, for training an assistant.

    It has no system turn and no end, since both belong to the user.
    """
    turns = tuple(
        replace(turn, role=OTHER_ROLE[turn.role]) for turn in conversation.turns
    )
    swapped = replace(conversation.without_system(), turns=turns, ended=False)
    if swapped.origin is None:
        return swapped
    # The answer before the user's first own turn may be another than in the log.
    first_own_turn = max(swapped.first_own_turn - 1, 0)
    origin = replace(swapped.origin, first_own_turn=first_own_turn)
    return replace(swapped, origin=origin)


def transcript(conversation: Conversation) -> Conversation:
    """Return the conversation for `transcript_template`: with a space before each turn's text, as
    it follows the speaker's colon in plain text."""
    turns = tuple(replace(turn, text=" " + turn.text) for turn in conversation.turns)
    return replace(conversation, turns=turns, ended=False)


def render_document(
    conversation: Conversation,
    template: Template,
    max_tokens: int | None = None,
    overlong: Overlong = "truncate",
) -> Rendered:
    """Tokenize a conversation as plain text in which every token is predicted (language modelling).

    A long text continues in further rows, each of which starts with the last token of the row
    before; with `overlong="drop"` only the first row is kept.
    """
    ids = [*template.row_start(conversation)]
    for turn in conversation.turns:
        ids += template.turn(turn.role, turn.text)
    ids.append(template.end)
    predicted_per_row = len(ids) if max_tokens is None else max_tokens - 1
    rows = []
    for k, start in enumerate(range(0, len(ids) - 1, predicted_per_row)):
        row = ids[start : start + predicted_per_row + 1]
        rows.append(Row(tuple(row), (TargetSpan(k, 1, 1, len(row)),)))
    if overlong == "drop":
        return Rendered(tuple(rows[:1]), tuple(range(1, len(rows))))
    return Rendered(tuple(rows))


def prompt(conversation: Conversation, template: Template) -> Ids:
    """Return the prompt ids for the user's next turn."""
    ids = [*template.row_start(conversation)]
    for turn in conversation.turns:
        ids += template.turn(turn.role, turn.text)
    return (*ids, *template.generation_prompt())


def fit_prompt(
    conversation: Conversation, template: Template, max_tokens: int
) -> tuple[Ids | None, int]:
    """Return `prompt` in at most `max_tokens` tokens, truncated as in training, and the number of
    tokens that were left out. The ids are `None` if the prompt cannot be shortened enough."""
    head = template.row_start(conversation)
    opening = template.generation_prompt()
    turns = [template.turn(turn.role, turn.text) for turn in conversation.turns]
    context = truncate(head, turns, template, max_tokens - len(opening))
    if context is None:
        return None, 0
    truncated_tokens = len(head) + sum(map(len, turns)) - len(context)
    return (*context, *opening), truncated_tokens


def truncate(
    head: Ids,
    turns: Sequence[Ids],
    template: Template,
    max_tokens: int,
    end: int | None = None,
) -> Ids | None:
    """Return the system turn and the latest turns before turn `end`, by default all, in at most
    `max_tokens` tokens, or `None`.

    The oldest exchanges are dropped first, each a user turn with its answer; an opening greeting is
    dropped alone. If the last answer alone is too long, its middle is cut. The system turn is never
    cut.
    """
    room = max_tokens - len(head)
    if room < 0:
        return None
    end = len(turns) if end is None else end
    if end == 0:
        return head
    first = first_that_fits(end, lambda i: len(turns[i]), room)
    if first < end:
        return (*head, *chain.from_iterable(turns[first:end]))
    around = len(template.prefix("assistant")) + 1 + len(template.separator)
    cut = template.cut_middle(turns[end - 1], room - around)
    return None if cut is None else (*head, *cut)


def first_that_fits(count: int, length: Callable[[int], int], room: int) -> int:
    """Return from which of `count` turns on the latest exchanges fit into the room, else the last
    answer; `count` if nothing does. It only asks for the length of those that fit."""
    first = count
    for i in reversed(range(count)):
        room -= length(i)
        if room < 0:
            break
        is_exchange = (count - i) % 2 == 0  # from here to the end
        if is_exchange or i in (0, count - 1):
            first = i
    return first


def _span(template: Template, k: int, start: int, turn: Ids) -> TargetSpan:
    """The span of a user turn whose first id is `row[start]`."""
    trained_start = start + len(template.headers["user"])
    content_start = start + len(template.prefix("user"))
    return TargetSpan(
        k, trained_start, content_start, start + len(turn) - len(template.separator)
    )


def userlm_template(
    encode: Encode,
    token_id: Callable[[str], int | None],
    special_ids: frozenset[int],
    header_suffix: str = "\n",
    bos: Ids = (),
    trim: bool = False,
) -> Template:
    """The format of microsoft/UserLM-8b in the ids of one tokenizer.

    Args:
        encode: text to ids, never control tokens.
        token_id: the id of a control token; `None` if the tokenizer has no such token.
        special_ids: all tokens that the tokenizer calls special.
        header_suffix, bos, trim: see `Template`; other models on Llama-3's tokens differ in them.

    Raises:
        ValueError: if tokens are missing; the message names them.
    """
    open_header, close_header, close = map(
        token_id, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    )
    if open_header is None or close_header is None or close is None:
        raise ValueError(
            "its tokenizer lacks <|start_header_id|>, <|end_header_id|> or <|eot_id|>"
        )
    end = token_id(END_TOKEN)
    if end is None:
        raise ValueError(f"its tokenizer has no {END_TOKEN} token")
    return Template(
        encode=encode,
        headers={
            role: (open_header, *encode(role), close_header)
            for role in ("system", "user", "assistant")
        },
        header_suffix=header_suffix,
        close=close,
        end=end,
        stop_ids=special_ids | {close, end},
        bos=bos,
        trim=trim,
    )


def transcript_template(encode: Encode, bos: Ids, end: int) -> Template:
    """The format of a dialogue as plain text, like the transcripts that base models were trained
    on: the intent on the first line, then `User: ...` and `Assistant: ...`, each on a line. See
        `transcript`.

    Args:
        bos: ids at the start of a text.
        end: the id at the end of a text.
    """
    newline = encode("\n")[-1]
    return Template(
        encode=encode,
        headers={
            "system": (),
            "user": tuple(encode("User:")),
            "assistant": tuple(encode("Assistant:")),
        },
        header_suffix="",
        close=newline,
        end=end,
        stop_ids=frozenset((newline, end)),
        bos=bos,
    )
