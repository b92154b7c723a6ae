"""`show`: one conversation as a user model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from userlm import loading
from userlm.address import LocalSettings
from userlm.commands.options import (
    Dtype,
    argument,
    check,
    device_option,
    dtype_option,
    max_tokens_option,
    option,
)
from userlm.commands.steps import check_page, write_page
from userlm.flip import Row, Template, render
from userlm.rows import read_conversations
from userlm.runs import split_files
from userlm.show.blocks import (
    Block,
    Group,
    Line,
    Page,
    Quote,
    Section,
    Table,
    Text,
    Token,
    Tokens,
    Value,
)
from userlm.show.formats import plural
from userlm.show.terminal import console
from userlm.show.terminal import show as print_blocks
from userlm.text import END_TOKEN
from userlm.types import Conversation, InputError

if TYPE_CHECKING:
    from userlm.models.local import LocalModel

SMALL = "userlm-small"
MAX_IDS = 100_000  # of a file, among which similar ids are searched

LEGEND = (
    "Read from left to right. The model is trained on the marked tokens: of each user turn the "
    "header suffix, the content and the closing token, and the end. Everything before a token is "
    "what the model knows when it predicts it."
)


@dataclass(frozen=True, slots=True)
class Show:
    """Show one conversation as a user model sees it: its tokens, the system turn, what is trained,
    what does not fit, and P(end) before each turn.

    $ userlm show log-026 --data runs/intents

    $ userlm show log-026 --data runs/intents --model runs/train --page log-026.html
    """

    id: str = argument(..., "The id of the conversation.")
    data: Path = option(
        Path("runs/intents"), "Conversations: the folder of a run, or a file."
    )
    model: str = option(SMALL, "A user model: a folder, a training run or a hub id.")
    max_tokens: int = max_tokens_option()
    page: Path | None = option(None, "Also write it as an HTML page to this file.")
    device: str | None = device_option()
    dtype: Dtype | None = dtype_option()


def show(options: Show) -> Page:
    """Print the conversation, and write it as a page."""
    from userlm.models.templates import user_template

    check(options)
    if options.page:
        check_page(options.page, "--page")
    conversation = find(options.data, options.id)
    settings = LocalSettings(device=options.device, dtype=options.dtype)
    with console.status("loading the model"):
        is_small = options.model == SMALL
        name = loading.small_or_tiny("userlm") if is_small else options.model
        model = loading.local_model(name, settings)
        template = user_template(model.tokenizer, model.encode, name)
    max_tokens = min(options.max_tokens, model.context_length)
    asked = Text(("P(end) and perplexity are those of ", Quote(name, 100), "."))
    blocks = [asked, *describe(conversation, model, template, max_tokens)]
    print_blocks(blocks)
    title = f"{conversation.id} as {name} sees it"
    page = Page(title, "", (), [Section("rows", "Rows", "Rows", blocks)])
    if options.page:
        from userlm.show import html

        write_page(options.page, html.render(page))
        console.print(f"page: {options.page}")
    return page


def find(data: Path, id: str) -> Conversation:
    """Return the conversation with this id. Raises `InputError` that names similar ids."""
    others: list[str] = []
    for path in split_files(data).values():
        for conversation in read_conversations(path, may_be_empty=True):
            if conversation.id == id:
                return conversation
            if len(others) < MAX_IDS:
                others.append(conversation.id)
    near = get_close_matches(id, others, 3, 0.5) or others[:3]
    known = ", ".join(map(repr, near))
    raise InputError(f"{data} has no conversation {id!r}; it has {known} and others")


def describe(
    conversation: Conversation,
    model: LocalModel,
    template: Template,
    max_tokens: int,
    most: int | None = None,
) -> list[Block]:
    """Return the rows of the conversation, at most so many, each as tokens and a table of its
    samples."""
    rendered = render(conversation, template, max_tokens)
    [whole] = render(conversation, template).rows or (Row((), ()),)
    start_of = {span.k: span.start for span in whole.spans}
    system = conversation.system
    blocks: list[Block] = [Text(LEGEND)]
    if system is None:
        blocks.append(Text("It has no system turn, since it has no intent."))
    head = len(template.row_start(conversation))
    for number, row in enumerate(rendered.rows[:most], 1):
        left_out = start_of[row.spans[0].k] - row.spans[0].start
        title = f"Row {number}: {plural(len(row.ids), 'token')}"
        if left_out:
            title += f"; {plural(left_out, 'token')} before did not fit"
        tokens = Tokens(_tokens(row, model, template, head))
        samples = _samples(conversation, row, model, template)
        blocks.append(Group([tokens, samples], title))
    if others := rendered.rows[len(rendered.rows[:most]) :]:
        blocks.append(Text(f"Not shown: {plural(len(others), 'more row')}."))
    for k in rendered.dropped[:most]:
        name = _name(conversation, k)
        blocks.append(Text(f"{name} does not fit {max_tokens:,} tokens: left out."))
    return blocks


def _tokens(row: Row, model: LocalModel, template: Template, head: int) -> list[Token]:
    """Return each token with its kind.

    Args:
        head: how many tokens come before the first turn.
    """
    is_trained = row.mask()
    is_content = row.mask(content_only=True)
    tokens = []
    for at, id in enumerate(row.ids):
        kind = "system" if at < head else "context"
        if is_trained[at]:
            kind = "content" if is_content[at] else "trained"
        if id in template.stop_ids and not is_trained[at]:
            kind = "control"
        tokens.append(Token(model.tokenizer.decode([id]), kind))
    return tokens


def _samples(
    conversation: Conversation, row: Row, model: LocalModel, template: Template
) -> Table:
    """Return a line for each sample: how probable the end was before it, and how well the model
    predicts what the person said."""
    chances = _p_end(row, model, template)
    [logprobs] = model.score([(row.ids, row.mask(content_only=True))])
    used = 0
    rows: list[Sequence[Line]] = []
    for span, chance in zip(row.spans, chances, strict=True):
        length = span.stop - 1 - span.first
        own = logprobs[used : used + length]
        used += length
        perplexity = Value(exp(-sum(own) / length), 2) if length else ""
        name = Quote(_name(conversation, span.k))
        rows.append((name, f"{length:,}", Value(chance, 3), perplexity))
    head = ("sample", "tokens", "P(end) before it", "perplexity")
    return Table(head, rows, "table")


def _p_end(row: Row, model: LocalModel, template: Template) -> list[float]:
    """Return the probability of the end token in place of each target's content."""
    begins = {span.first for span in row.spans}
    mask = [at in begins for at in range(len(row.ids))]
    [logprobs] = model.score([(row.ids, mask)], instead=template.end)
    return list(map(exp, logprobs))


def _name(conversation: Conversation, k: int) -> str:
    said = conversation.user_turns
    return f"user turn {k + 1}" if k < len(said) else END_TOKEN
