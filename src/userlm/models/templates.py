"""Detect the dialogue format of a checkpoint from its tokenizer and chat template.

    microsoft/UserLM-8b, ours   Llama-3's headers, one newline each, no BOS, `<|endconversation|>`
    SFTuser (Llama-3)           the same with two newlines, a BOS, and white space trimmed
    SFTuser (Qwen2.5)           ChatML, the user's turn left open, `<|endconversation|>`
    OSim, Ditto (Qwen3)         ChatML, roles swapped: the person is the assistant; no end token
    USP                         Llama-3's headers, two newlines, a BOS, a profile; no end token

The detected format is compared, id for id, with the output of the checkpoint's own chat template. A
checkpoint in an unknown format is refused, since a single wrong newline can change how a user model
writes.

Without an end token, an empty turn is the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from userlm import flip
from userlm.flip import MIN_ANSWER_TOKENS, Encode, Ids, Template, userlm_template
from userlm.models.tokenization import TEMPLATE_ERRORS
from userlm.text import END_TOKEN
from userlm.thought import TAGS
from userlm.types import Conversation, InputError, Message, messages_of

HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = ("<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant")

SWAPPED = re.compile(r"\b(osim|ditto)(\b|\d)|odyssim", re.IGNORECASE)
"""Parts of the names of checkpoints in which the assistant role plays the person. They have the
same tokens as any Qwen3."""

PROFILE = (
    "You are engaging in a conversation with an AI assistant. Your profile is: \n{}\n You can say "
    "anything you want, either based on the profile or something brand new."
)
"""The exact system text that USP was trained with, around a profile (wangkevin02/USP, MIT)."""

MAX_ANSWER_TOKENS = "max_answer_tokens"
"""Where tokenizer_config.json has `Template.max_answer_tokens`. A model on a server is known by its
tokenizer alone, so the file is that of the tokenizer."""

PROBE = Conversation("probe", intent="be S").say("u").say("a")


def text_start(tokenizer: Any) -> int | None:
    """Return the id that begins plain text; `None` if the model has none.

    That is the BOS. Chat models of SmolLM2 have the opening of a turn there, and their base models
    `<|endoftext|>`.
    """
    bos: int | None = tokenizer.bos_token_id
    if tokenizer.bos_token == CHATML[0]:
        bos = added_ids(tokenizer).get("<|endoftext|>")
    return bos


def user_template(
    tokenizer: Any, encode: Encode, name: str, form: str = "trained", advice: str = ""
) -> Template:
    """The template of a user model in its `trained` or `profile` form.

    Args:
        encode: text to ids, never control tokens.
        name: the name of the checkpoint.
        advice: what else can be done with a model that is not a user model.

    Raises:
        InputError: if it is not a user model; the message says why, and what to do.
    """
    kind = "user model"
    try:
        if form == "profile":
            kind = "profile model"
            template = profile_template(tokenizer, encode)
        else:
            template = recognise(tokenizer, encode, name)
    except ValueError as error:
        advice = advice or (
            f"train one from it (`userlm train --base {name}`) or prompt it (`prompted:{name}`)"
        )
        raise InputError(f"{name}: {error}, so it is not a {kind}; {advice}") from None
    return replace(template, max_answer_tokens=_max_answer_tokens(tokenizer, name))


def _max_answer_tokens(tokenizer: Any, name: str) -> int | None:
    limit = tokenizer.init_kwargs.get(MAX_ANSWER_TOKENS)
    if limit is None or (isinstance(limit, int) and limit >= MIN_ANSWER_TOKENS):
        return limit
    raise InputError(
        f"{name}: {MAX_ANSWER_TOKENS} in its tokenizer_config.json is {limit!r}; give the number "
        f"of tokens to which answers were cut in training, at least {MIN_ANSWER_TOKENS}"
    )


def recognise(tokenizer: Any, encode: Encode, name: str = "") -> Template:
    """The template of a user model.

    Args:
        encode: text to ids, never control tokens.
        name: the name of the checkpoint. Only the name distinguishes OSim and Ditto from the
            assistant that they were trained from.

    Raises:
        ValueError: if its format is unknown; the message says why.
    """
    known = added_ids(tokenizer)
    if known.keys() >= {*HEADERS, END_TOKEN}:
        template = _llama(tokenizer, encode, known)
    elif known.keys() >= {*HEADERS} and _opens_user_turn(tokenizer):
        raise ValueError(
            f"it has no {END_TOKEN} token but opens a user turn, as USP does (try profile:{name})"
        )
    elif known.keys() >= {*CHATML}:
        if END_TOKEN not in known and not SWAPPED.search(name.replace("_", "-")):
            raise ValueError(
                f"its tokenizer has no {END_TOKEN} token (an OSim or Ditto checkpoint has none, "
                "and is known by `osim` or `ditto` in its name)"
            )
        template = _chatml(tokenizer, encode, known)
    else:
        # Says what is missing.
        return userlm_template(encode, known.get, special_ids(tokenizer))
    _check(tokenizer, template)
    return template


def profile_template(tokenizer: Any, encode: Encode) -> Template:
    """The template of USP: the intent, or a profile, inside its sentence about profiles.

    Raises:
        ValueError: if the tokenizer lacks one of its tokens, or the format differs.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError("its tokenizer lacks a BOS")
    known = added_ids(tokenizer)
    close = known.get("<|eot_id|>")
    tokens = {**known, END_TOKEN: close}
    bos = (int(tokenizer.bos_token_id),)
    template = userlm_template(
        encode, tokens.get, special_ids(tokenizer), "\n\n", bos, trim=True
    )
    template = replace(template, system_text=PROFILE)
    if tokenizer.chat_template and not _opens_user_turn(tokenizer):
        raise ValueError(
            "its chat template does not open a user turn, as that of a profile model would"
        )
    _check(tokenizer, template)
    return template


def _llama(tokenizer: Any, encode: Encode, known: Mapping[str, int]) -> Template:
    """Return UserLM's template, with the header suffix, BOS and trimming of the checkpoint's chat
    template."""
    special = special_ids(tokenizer)
    rendered = _render(tokenizer, [{"role": "user", "content": " u "}])
    if rendered is None:
        return userlm_template(encode, known.get, special)
    turn = re.match(
        r"(?P<bos>.*?)<\|start_header_id\|>user<\|end_header_id\|>(?P<suffix>\n*)(?P<space> ?)u"
        r"(?P=space)<\|eot_id\|>",
        rendered,
        re.DOTALL,
    )
    if not turn or (turn["bos"] and turn["bos"] not in known):
        raise ValueError("its chat template renders a user turn in an unknown format")
    bos: Ids = (known[turn["bos"]],) if turn["bos"] else ()
    trim = not turn["space"]
    return userlm_template(encode, known.get, special, turn["suffix"], bos, trim)


def _chatml(tokenizer: Any, encode: Encode, known: Mapping[str, int]) -> Template:
    """The template of SFTuser on Qwen; without an end token that of OSim and Ditto."""
    start, close = (known[token] for token in CHATML)
    end = known.get(END_TOKEN, close)
    template = Template(
        encode=encode,
        headers={role: (start, *encode(role)) for role in ROLES},
        header_suffix="\n",
        close=close,
        end=end,
        stop_ids=special_ids(tokenizer) | {close, end},
        separator=tuple(encode("\n")),
        trim=END_TOKEN in known,
    )
    if END_TOKEN in known:
        return template
    opened = _render(tokenizer, [{"role": "user", "content": "a"}], opens=True) or ""
    empty_thought = ""
    if "<think>" in opened:
        empty_thought = opened.rpartition("<|im_start|>assistant\n")[2]
    return replace(
        template.with_roles_swapped(),
        # a turn that still starts with a thought is ended
        stop_ids=template.stop_ids | {known.get("<think>", close)},
        empty_thought=tuple(tokenizer.encode(empty_thought, add_special_tokens=False)),
    )


def _check(tokenizer: Any, template: Template) -> None:
    """Raise `ValueError` if the checkpoint's own chat template renders the probe differently."""
    probe = PROBE
    turns = probe.turns
    if template.headers["assistant"][1:] == tuple(template.encode("user")):
        turns = flip.swap_roles(probe).turns
    messages = messages_of(turns)
    system = template.system_text.replace("{}", str(probe.system))
    rendered = _render(tokenizer, [{"role": "system", "content": system}, *messages])
    if rendered is None and tokenizer.chat_template:  # it refuses a system message
        probe = probe.without_system()
        rendered = _render(tokenizer, messages)
    if rendered is None:
        return
    theirs = tuple(tokenizer.encode(rendered, add_special_tokens=False))
    ours = flip.prompt(probe, template)
    closed = ours[: len(ours) - len(template.generation_prompt())]
    if theirs not in (closed, (*closed, *template.headers["user"])):
        raise ValueError(
            "its chat template renders a dialogue in a different format from the known user "
            f"models: {tokenizer.decode(theirs)!r} instead of {tokenizer.decode(closed)!r}"
        )


def _opens_user_turn(tokenizer: Any) -> bool:
    """Whether the generation prompt of the chat template opens a turn of the user."""
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    rendered = _render(tokenizer, messages, opens=True)
    opened = r"<\|start_header_id\|>user<\|end_header_id\|>\s*$"
    return bool(rendered and re.search(opened, rendered))


def _render(
    tokenizer: Any, messages: Sequence[Message], opens: bool = False
) -> str | None:
    """Return the messages as rendered by the chat template; `None` if there is none or it refuses
    them.

    Args:
        opens: whether a generation prompt follows.
    """
    if not tokenizer.chat_template:
        return None
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=opens,
            enable_thinking=False,
        )
    except TEMPLATE_ERRORS:
        return None
    return str(rendered)


def added_ids(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that were added to a tokenizer's vocabulary, and their ids."""
    return {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of all tokens that a tokenizer calls special."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(id for id, token in added if token.special)


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that are never content: special tokens, and all other added tokens except
    white space and the tags around a thought."""
    added = added_ids(tokenizer).items()
    others = {id for text, id in added if text.strip()}
    return (special_ids(tokenizer) | others) - thought_ids(tokenizer)


def thought_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of the added tokens that begin or end a thought."""
    added = added_ids(tokenizer).items()
    return frozenset(id for text, id in added if text in TAGS)


def decode_content(
    tokenizer: Any, ids: Iterable[int], control_ids: frozenset[int]
) -> str:
    """The text of sampled ids without control tokens."""
    content = [id for id in ids if id not in control_ids]
    return str(tokenizer.decode(content, clean_up_tokenization_spaces=False))
