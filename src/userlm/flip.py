"""Turn a conversation inside out: from a dialogue to the tokens that a user model learns from.

Here, and nowhere else, a dialogue becomes token ids. A conversation of K user turns gives K + 1 samples, the
last of which is "the user leaves" (`samples`). Attention is causal, so one row that holds the whole
conversation trains exactly the predictions of its samples one by one, at a fraction of their cost (`render`).

The format is that of microsoft/UserLM-8b: after each header one newline, no BOS, and at the end of a prompt
always an open user turn:

    <|start_header_id|>system<|end_header_id|>\\n{intent}<|eot_id|>
    <|start_header_id|>user<|end_header_id|>\\n{what the user says}<|eot_id|> ...
    <|start_header_id|>user<|end_header_id|>\\n<|endconversation|><|eot_id|>

(shown on three lines; there is nothing between `<|eot_id|>` and the next header).

The other two models of a study are trained by the same code: an assistant learns the same dialogues with their
sides exchanged (`exchange`), a base model learns them as plain text (`transcript`, `document`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from userlm.text import END_TOKEN
from userlm.types import Conversation, Role, Sample

Ids = tuple[int, ...]
Encode = Callable[[str], list[int]]
"""Text to ids."""
EncodeAll = Callable[[Sequence[str]], list[list[int]]]
"""Many texts to ids."""
Spans = Callable[[str], list[tuple[int, int]]]
"""Text to where its tokens stand in it: for each the first character and the one after the last."""


def samples(conversation: Conversation) -> Iterator[Sample]:
    """All that a user model can learn from a conversation: its K user turns and, if observed, the ending."""
    for k in range(len(conversation.user_turns) + conversation.ended):
        yield Sample(conversation, k)


OTHER_SIDE: Mapping[str, Role] = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True, slots=True)
class Template:
    """How a dialogue is spelled in token ids, for training, generation and scoring alike.

    Attributes:
        encode: text to ids; never gives a control token, whatever the text contains.
        headers: for `system`, `user` and `assistant` the ids that open a turn.
        lead: the text between a header and the words, encoded together with them.
        close: the id that closes a turn.
        end: the id that a user says to leave.
        stop_ids: ids at which a reply is over: `close`, `end` and every other control token.
        start: ids in front of every row, such as the BOS that other families want; UserLM has none.
        gap: ids between one turn and the next.
        thought: ids behind the lead of an open turn, such as the empty thought of a model that could think.
        told: what the system turn says, around the intent (or profile) that stands for its `{}`.
        trim: whether white space around the words of a turn is left off.
    """

    encode: Encode
    headers: Mapping[str, Ids]
    lead: str
    close: int
    end: int
    stop_ids: frozenset[int]
    start: Ids = ()
    gap: Ids = ()
    thought: Ids = ()
    told: str = "{}"
    trim: bool = False

    def turn(self, role: str, text: str) -> Ids:
        """A whole turn."""
        words = text.strip() if self.trim else text
        return (*self.headers[role], *self.encode(self.lead + words), self.close, *self.gap)

    def leave(self) -> Ids:
        """A whole user turn in which the user leaves."""
        closed = () if self.end == self.close else (self.close,)
        return (*self.headers["user"], *self.encode(self.lead), self.end, *closed, *self.gap)

    def open(self) -> Ids:
        """The beginning of a user turn, up to where its words go. P(end) is read right behind it."""
        return (*self.headers["user"], *self.encode(self.lead), *self.thought)

    def exchanged(self) -> Template:
        """The same spelling for the assistant's side of dialogues whose sides are exchanged; it does not leave."""
        headers = {role: self.headers[OTHER_SIDE.get(role, role)] for role in self.headers}
        return replace(self, headers=headers, end=self.close)

    def beginnings(self, words: Sequence[str]) -> frozenset[int]:
        """The ids that are one of these words, with or without a space before it, where a turn's words begin.

        A word of several ids has none here: its first alone begins other words, too.
        """
        lead = self.encode(self.lead)
        spelled = [self.encode(self.lead + space + word) for word in words for space in ("", " ")]
        return frozenset(ids[-1] for ids in spelled if ids[:-1] == lead)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a row holds what the user says as the k-th turn.

    `ids[start:stop]` is what is trained: the lead, the words (or the end token) and the closing token.
    `ids[first:stop - 1]` are the words, or the end token, alone: what perplexity counts.
    """

    k: int
    start: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids with what is to be predicted in them."""

    ids: Ids
    targets: tuple[Target, ...]

    def mask(self, words_only: bool = False) -> list[bool]:
        """True where a token is to be predicted; with `words_only` without leads and closing tokens."""
        mask = [False] * len(self.ids)
        for target in self.targets:
            start, stop = (target.first, target.stop - 1) if words_only else (target.start, target.stop)
            mask[start:stop] = [True] * (stop - start)
        return mask


@dataclass(frozen=True, slots=True)
class Flipped:
    """The rows of a conversation, and the `k` of the samples for which no room could be made."""

    rows: tuple[Row, ...]
    dropped: tuple[int, ...] = ()


def render(
    conversation: Conversation,
    template: Template,
    max_tokens: int | None = None,
    long: Literal["shorten", "drop"] = "shorten",
) -> Flipped:
    """All samples of a conversation, each exactly once, in as few rows as can be.

    The first row holds the conversation from its beginning for as long as it fits. Each sample beyond that
    gets a row of its own, shortened by `shorten`. Every turn is encoded once.

    Args:
        max_tokens: the length of a row, in tokens; `None`: no limit.
        long: what becomes of the samples that do not fit whole.
    """
    head = _head(conversation, template)
    turns = [template.turn(turn.role, turn.text) for turn in conversation.turns]
    said = {sample.at: sample.k for sample in samples(conversation)}
    if conversation.ended:
        turns.append(template.leave())

    rows: list[Row] = []
    dropped: list[int] = []
    ids, targets, whole = list(head), [], True
    for at, turn in enumerate(turns):
        whole = whole and (max_tokens is None or len(ids) + len(turn) <= max_tokens)
        if whole:
            if at in said:
                targets.append(_target(template, said[at], len(ids), turn))
            ids += turn
        elif at in said and max_tokens is not None:
            room = max_tokens - len(turn)
            context = shorten(head, turns[:at], template, room) if long == "shorten" else None
            if context is None:
                dropped.append(said[at])
            else:
                rows.append(Row((*context, *turn), (_target(template, said[at], len(context), turn),)))
    if targets:
        stop = targets[-1].stop  # what follows the last target teaches nothing
        rows.insert(0, Row(tuple(ids[:stop]), tuple(targets)))
    return Flipped(tuple(rows), tuple(dropped))


def exchange(conversation: Conversation) -> Conversation:
    """Its sides exchanged: what it has of a user is the assistant's then, who is told nothing and never leaves."""
    turns = tuple(replace(turn, role=OTHER_SIDE[turn.role]) for turn in conversation.turns)
    return replace(untold(conversation), turns=turns, ended=False)


def untold(conversation: Conversation) -> Conversation:
    """The same conversation, nothing said of what the user is after, nor of who it is."""
    meta = {name: value for name, value in conversation.meta.items() if name != "condition"}
    return replace(conversation, intent=None, meta=meta)


def transcript(conversation: Conversation) -> Conversation:
    """For `transcript_template`: a space behind a speaker's colon, encoded with the word as it is in texts."""
    turns = tuple(replace(turn, text=" " + turn.text) for turn in conversation.turns)
    return replace(conversation, turns=turns, ended=False)


def document(
    conversation: Conversation,
    template: Template,
    max_tokens: int | None = None,
    long: Literal["shorten", "drop"] = "shorten",
) -> Flipped:
    """A conversation as a text of which every token is predicted: plain language modelling.

    A text that is too long goes on in a next row, which begins with the last token of the one before; with `drop`
    its first row alone is kept.
    """
    turns = (template.turn(turn.role, turn.text) for turn in conversation.turns)
    ids = (*_head(conversation, template), *(id for turn in turns for id in turn), template.end)
    step = len(ids) if max_tokens is None else max_tokens - 1
    rows = [ids[start : start + step + 1] for start in range(0, len(ids) - 1, step)]
    kept = rows if long == "shorten" else rows[:1]
    targets = [(Target(k, 1, 1, len(row)),) for k, row in enumerate(kept)]
    return Flipped(tuple(map(Row, kept, targets)), tuple(range(len(kept), len(rows))))


def prompt(conversation: Conversation, template: Template) -> Ids:
    """The ids after which a model takes the user's next turn."""
    turns = (token for turn in conversation.turns for token in template.turn(turn.role, turn.text))
    return (*_head(conversation, template), *turns, *template.open())


def fit(conversation: Conversation, template: Template, max_tokens: int) -> tuple[Ids | None, int]:
    """`prompt` in at most so many tokens, shortened exactly as in training, and how many tokens were left out.

    The ids are `None` if no room can be made for them.
    """
    head, opening = _head(conversation, template), template.open()
    turns = [template.turn(turn.role, turn.text) for turn in conversation.turns]
    context = shorten(head, turns, template, max_tokens - len(opening))
    if context is None:
        return None, 0
    return (*context, *opening), len(head) + sum(map(len, turns)) - len(context)


def shorten(head: Ids, turns: list[Ids], template: Template, room: int) -> Ids | None:
    """The intent and the latest turns in at most `room` tokens; never cut on the right.

    Drops the oldest exchanges, a user turn and its answer together; if the last answer alone is still too
    long, its middle is cut; if the intent itself does not fit, there is no answer: `None`.
    """
    room -= len(head)
    if room < 0:
        return None
    last_answer = max(len(turns) - 1, 0)
    exchanges = range(len(turns) % 2, len(turns), 2)  # an opening greeting goes first, alone
    rest = list(accumulate(map(len, reversed(turns)), initial=0))[::-1]  # tokens of a turn and all behind it
    for start in sorted({0, *exchanges, last_answer}):
        if rest[start] <= room:
            return (*head, *(token for turn in turns[start:] for token in turn))
    last = turns[-1]
    opening = len(template.headers["assistant"]) + 1
    spare = room - opening - 1 - len(template.gap)
    if spare < 2:
        return None
    closed = len(last) - 1 - len(template.gap)
    words = last[opening:closed]
    left, right = (spare + 1) // 2, spare // 2
    return (*head, *last[:opening], *words[:left], *words[len(words) - right :], *last[closed:])


def _head(conversation: Conversation, template: Template) -> Ids:
    told = conversation.system
    if told is None:
        return template.start
    return (*template.start, *template.turn("system", template.told.replace("{}", told)))


def _target(template: Template, k: int, start: int, turn: Ids) -> Target:
    header = start + len(template.headers["user"])
    return Target(k, header, header + len(template.encode(template.lead)), start + len(turn) - len(template.gap))


def userlm_template(
    encode: Encode,
    token_id: Callable[[str], int | None],
    special_ids: frozenset[int],
    lead: str = "\n",
    start: Ids = (),
    trim: bool = False,
) -> Template:
    """The format of microsoft/UserLM-8b in the ids of one tokenizer.

    Args:
        encode: text to ids, control tokens never among them.
        token_id: the id of a control token; `None` if the tokenizer has no such token.
        special_ids: all that the tokenizer calls special.
        lead, start, trim: see `Template`; others who train on Llama-3's tokens differ in them.

    Raises:
        ValueError: names the tokens that are missing.
    """
    opens, shuts, close, end = (
        token_id(token) for token in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", END_TOKEN)
    )
    if opens is None or shuts is None or close is None:
        raise ValueError("its tokenizer lacks <|start_header_id|>, <|end_header_id|> or <|eot_id|>")
    if end is None:
        raise ValueError(f"its tokenizer has no {END_TOKEN} token")
    headers = {role: (opens, *encode(role), shuts) for role in ("system", "user", "assistant")}
    return Template(encode, headers, lead, close, end, special_ids | {close, end}, start, trim=trim)


def transcript_template(encode: Encode, start: Ids, end: int) -> Template:
    """A dialogue as the plain text that a base model may have read many of: the intent on the first line, then
    `User: ...` and `Assistant: ...`, each on a line. See `transcript`.

    Args:
        start: what a text begins with.
        end: the id behind a text.
    """
    newline = encode("\n")[-1]
    headers = {"system": (), "user": tuple(encode("User:")), "assistant": tuple(encode("Assistant:"))}
    return Template(encode, headers, "", newline, end, frozenset((newline, end)), start)
