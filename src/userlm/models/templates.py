"""How a checkpoint spells a dialogue, found from the checkpoint itself.

    microsoft/UserLM-8b, ours   Llama-3's headers, one newline behind each, no BOS, `<|endconversation|>`
    SFTuser (Llama-3)           the same with two newlines, a BOS, and white space trimmed
    SFTuser (Qwen2.5)           ChatML, the user's turn left open, `<|endconversation|>`
    OSim, Ditto (Qwen3)         ChatML, roles swapped: the person speaks as the assistant; no token for the end
    USP                         Llama-3's headers, two newlines, a BOS, a profile; no token for the end

What is found is compared, id for id, with what the checkpoint's own chat template spells. A
checkpoint that fits none of them is refused, since a wrong newline is enough to make a user model
speak like something else.

Where leaving has no token of its own, it is a turn that is closed before a word was said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from userlm import flip
from userlm.flip import Encode, Ids, Template, userlm_template
from userlm.text import END_TOKEN
from userlm.types import Conversation, InputError, Message

HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = ("<|im_start|>", "<|im_end|>")

SWAPPED = re.compile(r"\b(osim|ditto)(\b|\d)|odyssim", re.IGNORECASE)
"""In the names of checkpoints that play the person as the assistant. Their tokens are those of any
Qwen3."""

PROFILE = (
    "You are engaging in a conversation with an AI assistant. Your profile is: \n{}\n You can say "
    "anything you "
    "want, either based on the profile or something brand new."
)
"""What USP was trained to read around a profile (wangkevin02/USP, MIT): a part of its format, to
the letter."""

PROBE = Conversation("probe", intent="be S").say("u").say("a")


def user_template(
    tokenizer: Any, encode: Encode, name: str, form: str = "trained", advice: str = ""
) -> Template:
    """How a user model spells a dialogue, in its `trained` or `profile` form.

    Args:
        encode: text to ids, control tokens never among them.
        name: of the checkpoint.
        advice: what else can be done with a model that is none.

    Raises:
        InputError: if it is no user model; says why, and what to do.
    """
    try:
        return (
            profile_template(tokenizer, encode)
            if form == "profile"
            else recognise(tokenizer, encode, name)
        )
    except ValueError as error:
        trains = (
            f"train one from it (`userlm train --base {name}`) or have it "
            "prompted "
            f"(`prompted:{name}`)"
        )
        what = "profile model" if form == "profile" else "user model"
        raise InputError(f"{name}: {error}, so it is no {what}; {advice or trains}") from None


def recognise(tokenizer: Any, encode: Encode, name: str = "") -> Template:
    """The template of a user model.

    Args:
        encode: text to ids, control tokens never among them.
        name: of the checkpoint; it is all that tells OSim and Ditto from the assistant that they
            began as.

    Raises:
        ValueError: if it is none that is known; says why.
    """
    known = added_ids(tokenizer)
    if known.keys() >= {*HEADERS, END_TOKEN}:
        header_suffix, start, trim = _llama_spelling(tokenizer)
        template = userlm_template(
            encode, known.get, special_ids(tokenizer), header_suffix, start, trim
        )
    elif known.keys() >= {*HEADERS} and _opens_user(tokenizer):
        raise ValueError(
            f"it has no {END_TOKEN} token but opens a user turn, as USP does (profile:{name})"
        )
    elif known.keys() >= {*CHATML}:
        swapped = END_TOKEN not in known
        if swapped and not SWAPPED.search(name.replace("_", "-")):
            raise ValueError(
                f"its tokenizer has no {END_TOKEN} token (an OSim or Ditto checkpoint has none, "
                "and is known by "
                "`osim` or `ditto` in its name)"
            )
        template = _chatml(tokenizer, encode, known, swapped)
    else:
        return userlm_template(encode, known.get, special_ids(tokenizer))  # says what is missing
    _compare(tokenizer, template)
    return template


def profile_template(tokenizer: Any, encode: Encode) -> Template:
    """The template of USP: the intent, or a profile, inside its sentence on profiles.

    Raises:
        ValueError: if the tokenizer lacks a token of it, or the checkpoint spells a dialogue
            otherwise.
    """
    known = added_ids(tokenizer)
    missing = [token for token in HEADERS if token not in known]
    if missing or tokenizer.bos_token_id is None:
        raise ValueError(f"its tokenizer lacks {missing[0] if missing else 'a BOS'}")
    opens, shuts, close = (known[token] for token in HEADERS)
    headers = {role: (opens, *encode(role), shuts) for role in ("system", "user", "assistant")}
    stops = special_ids(tokenizer) | {close}
    start = (int(tokenizer.bos_token_id),)
    template = Template(
        encode, headers, "\n\n", close, close, stops, start, system_text=PROFILE, trim=True
    )
    if tokenizer.chat_template and not _opens_user(tokenizer):
        raise ValueError("its chat template opens no user turn, as that of a profile model does")
    _compare(tokenizer, template)
    return template


def _chatml(tokenizer: Any, encode: Encode, known: Mapping[str, int], swapped: bool) -> Template:
    opens, close = (known[token] for token in CHATML)
    speaker = {"system": "system", "user": "user", "assistant": "assistant"}
    if swapped:
        speaker |= {"user": "assistant", "assistant": "user"}
    headers = {role: (opens, *encode(spoken)) for role, spoken in speaker.items()}
    stops = special_ids(tokenizer) | {close}
    separator = tuple(encode("\n"))
    if not swapped:
        end = known[END_TOKEN]
        return Template(
            encode, headers, "\n", close, end, stops | {end}, separator=separator, trim=True
        )
    if "<think>" in known:  # a empty_thought that begins all the same is no turn
        stops |= {known["<think>"]}
    opened = _spell(tokenizer, [{"role": "user", "content": "a"}], opens=True) or ""
    empty_thought = opened.rpartition("<|im_start|>assistant\n")[2] if "<think>" in opened else ""
    thinks = (
        tuple(tokenizer.encode(empty_thought, add_special_tokens=False)) if empty_thought else ()
    )
    return Template(
        encode, headers, "\n", close, close, stops, separator=separator, empty_thought=thinks
    )


def _llama_spelling(tokenizer: Any) -> tuple[str, Ids, bool]:
    """Lead, start and trim, from what the chat template does to a turn; those of UserLM without
    one."""
    spelled = _spell(tokenizer, [{"role": "user", "content": " u "}])
    if spelled is None:
        return "\n", (), False
    found = re.match(
        r"(.*?)<\|start_header_id\|>user<\|end_header_id\|>(\n*)( ?)u\3<\|eot_id\|>",
        spelled,
        re.DOTALL,
    )
    known = added_ids(tokenizer)
    if not found or (found[1] and found[1] not in known):
        raise ValueError("its chat template spells a user turn in a way that is not known here")
    return found[2], (known[found[1]],) if found[1] else (), not found[3]


def _compare(tokenizer: Any, template: Template) -> None:
    """Raise `ValueError` if the checkpoint's own chat template spells the probe otherwise."""
    swaps = template.headers["assistant"][1:] == tuple(template.encode("user"))
    role = (
        {"user": "assistant", "assistant": "user"}
        if swaps
        else {"user": "user", "assistant": "assistant"}
    )
    probe = PROBE
    system = {"role": "system", "content": template.system_text.replace("{}", str(PROBE.system))}
    messages = [{"role": role[turn.role], "content": turn.text} for turn in PROBE.turns]
    spelled = _spell(tokenizer, [system, *messages])
    if spelled is None and tokenizer.chat_template:  # it refuses a system message
        spelled, probe = _spell(tokenizer, messages), replace(PROBE, intent=None)
    if spelled is None:
        return
    theirs = tokenizer.encode(spelled, add_special_tokens=False)
    ours = flip.prompt(probe, template)
    closed = ours[: len(ours) - len(template.generation_prompt())]
    left_open = (*closed, *template.headers["user"])
    if tuple(theirs) not in (closed, left_open):
        raise ValueError(
            "its chat template spells a dialogue otherwise than any user model that is known here: "
            f"{tokenizer.decode(theirs)!r} instead of {tokenizer.decode(closed)!r}"
        )


def _opens_user(tokenizer: Any) -> bool:
    spelled = _spell(
        tokenizer,
        [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}],
        opens=True,
    )
    return bool(spelled and re.search(r"<\|start_header_id\|>user<\|end_header_id\|>\s*$", spelled))


def _spell(tokenizer: Any, messages: Sequence[Message], opens: bool = False) -> str | None:
    """The text that the chat template makes of the messages; `None` if there is none or it refuses
    them.

    Args:
        opens: whether a turn is to be opened at the end.
    """
    if not tokenizer.chat_template:
        return None
    shown = [dict(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                shown, tokenize=False, add_generation_prompt=opens, enable_thinking=False
            )
        )
    except TemplateError:
        return None


def added_ids(tokenizer: Any) -> dict[str, int]:
    """The tokens that were added to a tokenizer's vocabulary, and their ids."""
    return {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}


def special_ids(tokenizer: Any) -> frozenset[int]:
    """All that a tokenizer calls special."""
    return frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The added tokens that are in nobody's text: all but those that are mere white space."""
    return special_ids(tokenizer) | {
        id for text, id in added_ids(tokenizer).items() if text.strip()
    }


def decode_content(tokenizer: Any, ids: Iterable[int], unsaid: frozenset[int]) -> str:
    """The text of ids that were drawn, `control_ids` left out: a control token is nobody's words."""
    said = [id for id in ids if id not in unsaid]
    return str(tokenizer.decode(said, clean_up_tokenization_spaces=False))
