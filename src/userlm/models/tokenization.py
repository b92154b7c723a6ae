"""The tokenizer of a checkpoint: how it is loaded, and how text and messages become ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from userlm.flip import Encode, EncodeAll, Offsets
from userlm.models.engine import first_line
from userlm.types import InputError, Message, ModelError

LONG_TEXT = 10_000
"""Characters above which tokenizing takes milliseconds."""


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer in a folder or with a hub id; raise `InputError` if it cannot be
    loaded."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: cannot load a tokenizer from there: {load_problem(error)}"
        ) from None
    except Exception as error:  # for a damaged file transformers raises any kind
        raise damaged(name, "its tokenizer", error) from error


def damaged(name: str, what: str, error: Exception) -> InputError:
    """Return the error for a file of a model that cannot be read."""
    kind = type(error).__name__
    return InputError(
        f"{name}: cannot load {what}: {kind}: {first_line(error)}; is a file damaged?"
    )


def load_problem(error: Exception) -> str:
    """Return why a model or a tokenizer could not be loaded, on one line."""
    if "custom code" in str(error):  # transformers advises to run it
        return (
            "it needs Python code that lies beside it, which is never run; give a model that "
            "transformers knows"
        )
    return first_line(error)


def text_encoder(tokenizer: Any) -> Encode:
    """Return the first of `text_functions`."""
    return text_functions(tokenizer)[0]


def text_functions(tokenizer: Any) -> tuple[Encode, Offsets, EncodeAll]:
    """Return three functions: a text to its ids, a text to the offsets of its tokens, and many
    texts to their ids, on all cores. None returns the id of an added token, so text never becomes a
    control token.

    `split_special_tokens` is not enough: it lets added tokens through that are not registered as
    special, such as the end token of UserLM-8b. So the tokenizer is built again without any.

    Raises:
        InputError: for a tokenizer that has no fast version, or that still returns added tokens.
    """
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise InputError(f"{name}: its tokenizer has no fast version (tokenizer.json)")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token["content"] for token in parts["added_tokens"]}
    parts.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    _prepend_no_space(parts["pre_tokenizer"])
    bare = Tokenizer.from_str(json.dumps(parts))

    def encode(text: str) -> list[int]:
        if len(text) > LONG_TEXT:
            # Unlike the method for one text, that for many lets other threads run meanwhile.
            return encode_all([text])[0]
        return list(bare.encode(text, add_special_tokens=False).ids)

    def offsets(text: str) -> list[tuple[int, int]]:
        return list(bare.encode(text, add_special_tokens=False).offsets)

    def encode_all(texts: Sequence[str]) -> list[list[int]]:
        encodings = bare.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    for content in added.values():
        if not added.keys().isdisjoint(encode(content)):
            raise InputError(
                f"{name}: its tokenizer turns the text {content!r} into a control token even with "
                f"control tokens turned off; it cannot be used safely"
            )
    return encode, offsets, encode_all


def _prepend_no_space(pre_tokenizer: Any) -> None:
    """Make a tokenizer add no space before the start of a text. Some (Llama-2, Mistral) add one at
    the start of a row, but content is never there, since a header comes before it."""
    if pre_tokenizer is None:
        return
    for part in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"


TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, TypeError, ValueError, LookupError),
    *(AttributeError, MemoryError, RecursionError),
)
"""What a chat template may raise: it is code of others. jinja's sandbox refuses loops of more than
100,000, but not loops in loops."""


def chat_ids(
    tokenizer: Any,
    encode: Encode,
    messages: Sequence[Message],
    name: str,
    today: str | None = None,
) -> list[int]:
    """Return the ids of messages in the tokenizer's own chat template, with an open assistant turn
    at the end.

    Args:
        encode: see `text_encoder`.
        name: the name of the model, for errors.
        today: the date, for a template that states it; by default that of the host.

    Raises:
        InputError: if there is no chat template.
        ModelError: if the template refuses the messages, for example because it has no system role.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{name} has no chat template: a base model cannot chat; give a chat model"
        )
    # Content that contains the text of a control token must stay text. So the template is rendered
    # with placeholders for the contents, which are encoded separately.
    controls = [token.content for token in tokenizer.added_tokens_decoder.values()]
    contents = [message["content"] for message in messages]
    marks: list[str] = []
    if any(control in content for content in contents for control in controls):
        marks = [f"\ue000{i}\ue001" for i in range(len(contents))]
    rendered = [dict(message) for message in messages]
    for message, mark in zip(rendered, marks, strict=False):
        message["content"] = mark
    # the name of the date in the templates of Llama-3.1 and later
    options: dict[str, Any] = {"date_string": today} if today else {}
    # two names for the same in the templates of models that can also answer at once
    options |= {"enable_thinking": False, "thinking": False}
    try:
        rest = tokenizer.apply_chat_template(
            rendered, tokenize=False, add_generation_prompt=True, **options
        )
    except TEMPLATE_ERRORS as error:
        raise ModelError(
            f"{name}: its chat template refuses these messages: {error} (if it has no system "
            "role, use `prompted:` and no --system)"
        ) from None
    ids: list[int] = []
    for content, mark in zip(contents, marks, strict=False):
        before, found, rest = rest.partition(mark)
        if not found:
            raise ModelError(
                f"{name}: its chat template leaves out a message or changes their order"
            )
        ids += tokenizer.encode(before, add_special_tokens=False)
        ids += encode(content)
    return [*ids, *tokenizer.encode(rest, add_special_tokens=False)]
