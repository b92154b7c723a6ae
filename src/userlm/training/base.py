"""Prepare a base model for training. `userlm train` runs this.

`from_base` gives its tokenizer and weights the control tokens of `flip.py`; `from_scratch` makes a
small model with random weights, `learn_tokenizer` the tokenizer for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from userlm.flip import transcript_template, userlm_template
from userlm.models.local import LocalModel, usable_device
from userlm.models.templates import CHATML, added_ids, special_ids, text_start
from userlm.models.tokenization import text_functions
from userlm.text import END_TOKEN
from userlm.training.prepare import Side
from userlm.types import OTHER_ROLE, InputError

CLOSE = "<|eot_id|>"
TURN_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", CLOSE)
CONTROL_TOKENS = (*TURN_TOKENS, END_TOKEN)
"""The control tokens of a user model's template."""
NEEDED = {"user": CONTROL_TOKENS, "assistant": TURN_TOKENS, "both": ()}
"""The control tokens that each side needs: an assistant never ends, plain text has no turns. A user
model from a base with ChatML has its turns instead."""

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"

RESERVED = "<|reserved_special_token_0|>"
"""Takes the place of the end token in the tokenizer of a model that is not a user model."""

_TURNS = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
)
CHAT_TEMPLATE = _TURNS + "<|start_header_id|>user<|end_header_id|>"
"""The chat template for plain transformers and vLLM, that of microsoft/UserLM-8b: it always ends by
opening a user turn."""
CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}<|im_start|>user"
)
"""The same for a base model with ChatML, whose turns it knows already."""

ASSISTANT_TEMPLATE = (
    _TURNS
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
"""The same turns for an assistant, as chat models have them."""

_RESERVED = re.compile(
    r"\W*(reserved|unused|extra|place.?holder|dummy|control|special)\D*\d+\D*",
    re.IGNORECASE,
)
"""Reserved tokens of model families: `<|reserved_special_token_0|>` (Llama-3),
`<unused0>` (Gemma), `<|extra_0|>` (Qwen), `[unused0]`, `<|placeholder1|>` (Phi-3), `[control_8]`,
`<SPECIAL_20>` (Mistral)."""

_UNTRAINED = 0.02
"""A row counts as untrained if its distance to zero, or to the mean of the reserved tokens' rows,
is below this share of the median norm of ordinary tokens' rows.

Why these two: a token that never occurs gets no gradient as an input, so weight decay takes its row
to zero (Llama-3's input embeddings). As an output, also with tied weights, it gets from the softmax
the same push as every other token that never occurs, so all their rows become one (Land and
Bartolo, 2024). What decay leaves of the initial rows is far below this share, and so is rounding to
bfloat16 (0.4 %). A row that was tuned, even briefly, as in an instruct model, is farther away, and
so is every row of a model with random weights: nothing needs repair there."""


def from_base(
    local: LocalModel, side: Side = "user"
) -> tuple[LocalModel, tuple[str, ...]]:
    """Return the model, changed in place, with all control tokens that a side needs, and a sentence
    on each change.

    A missing token replaces a reserved one, else it takes a spare row of the model, else a new row.
    New or untrained rows are initialized: `<|eot_id|>` as a copy of the end of a text, the
    end token as a copy of `<|eot_id|>`, the headers as the mean of all ordinary tokens. Trained
    rows stay, so a user model does not change at all.

    Raises:
        InputError: for a model without an output layer, or a tokenizer that encodes text after a
            control token differently than on its own.
    """
    tokenizer = local.tokenizer
    model = local.model
    known = added_ids(tokenizer)
    if model.get_output_embeddings() is None:
        raise InputError(
            f"{local.name}: this architecture ({model.config.model_type}) has no output layer over "
            "a vocabulary; give a causal language model"
        )
    if side != "user" and END_TOKEN in known:
        raise InputError(
            f"{local.name}: it has a user model's {END_TOKEN} token; train the other sides "
            "from the model that it was trained from"
        )
    old_rows = model.get_input_embeddings().num_embeddings
    needed = _needed(tokenizer, side)
    missing = [token for token in needed if token not in known]
    reserved = _reserved(tokenizer, old_rows)
    if not reserved and len(tokenizer) + len(missing) > old_rows:
        reserved = _never_seen(model, tokenizer)
    replaced = dict(zip(reserved, missing, strict=False))
    notes = [
        f"{token} takes the place of {old}, id {reserved[old]}"
        for old, token in replaced.items()
    ]
    if replaced:
        tokenizer = _rename(tokenizer, replaced, local.name)
    if added := missing[len(replaced) :]:
        notes.append(_add_tokens(model, tokenizer, added))
    ready = _with_template(model, tokenizer, local.name, side)
    if side == "both":
        return ready, ()
    if side == "user" and not missing:
        ready = local
    _check_chat_template(ready, side)
    unused = [id for token, id in reserved.items() if token not in replaced]
    begun = _initialize_rows(ready, needed, missing, unused, old_rows)
    return ready, (*notes, *begun)


def _needed(tokenizer: Any, side: Side) -> tuple[str, ...]:
    """The control tokens of a side. A chat template with ChatML shows that the model has seen its
    turns, the user's among them."""
    if side == "user" and CHATML[0] in str(tokenizer.chat_template):
        return (*CHATML, END_TOKEN)
    return NEEDED[side]


def _reserved(tokenizer: Any, rows: int) -> dict[str, int]:
    """The reserved tokens, by id, that are not in use."""
    unused = _unused(tokenizer, rows).items()
    return {token: id for token, id in unused if _RESERVED.fullmatch(token)}


def _never_seen(model: Any, tokenizer: Any) -> dict[str, int]:
    """The added tokens, by id, that never occurred in training: their rows became one, see
    `_UNTRAINED`. So are the tokens for code of SmolLM2."""
    weight = model.get_input_embeddings().weight.detach().float()
    unused = _unused(tokenizer, len(weight))
    rows = weight[list(unused.values())]
    near = torch.cdist(rows, rows) < _UNTRAINED * weight.norm(dim=1).median()
    has_twin = (near.sum(1) > 1).tolist()  # each is near itself
    pairs = zip(unused.items(), has_twin, strict=True)
    return {token: id for (token, id), is_twin in pairs if is_twin}


def _unused(tokenizer: Any, rows: int) -> dict[str, int]:
    """The added tokens, by id, that neither the tokenizer nor its chat template uses, and that have
    a row in the model."""
    in_use = f"{tokenizer.chat_template} {list(tokenizer.special_tokens_map.values())}"
    added = sorted(added_ids(tokenizer).items(), key=itemgetter(1))
    return {token: id for token, id in added if id < rows and token not in in_use}


def _rename(tokenizer: Any, names: Mapping[str, str], model_name: str) -> Any:
    """The tokenizer with new names for some of its added tokens; all ids stay."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.json"):
            text = file.read_text(encoding="utf-8")
            for (
                old,
                new,
            ) in names.items():  # with the quotes, so that no longer name is changed
                text = text.replace(
                    json.dumps(old, ensure_ascii=False), json.dumps(new)
                )
            if file.name == "tokenizer.json":
                text = _mark_special(text)
            file.write_text(text, encoding="utf-8")
        renamed = type(tokenizer).from_pretrained(folder, trust_remote_code=False)
    renamed.name_or_path = tokenizer.name_or_path
    wanted = {names.get(token, token): id for token, id in added_ids(tokenizer).items()}
    found = added_ids(renamed)
    if found != wanted:
        moved = [new for new in sorted(names.values()) if found.get(new) != wanted[new]]
        raise InputError(
            f"{model_name}: its vocabulary holds {', '.join(moved) or 'a control token'} as an "
            f"ordinary word, so no reserved token can get that name; give a model with another "
            "tokenizer"
        )
    return renamed


def _mark_special(text: str) -> str:
    """A tokenizer.json in which all control tokens but the end token are special: decoded text
    shows that the user ended, as with microsoft/UserLM-8b."""
    tokenizer = json.loads(text)
    for token in tokenizer["added_tokens"]:
        if token["content"] in CONTROL_TOKENS:
            token["special"] = token["content"] != END_TOKEN
    return json.dumps(tokenizer)


def _add_tokens(model: Any, tokenizer: Any, names: Sequence[str]) -> str:
    """Add control tokens to tokenizer and model; return a sentence on where their rows are."""
    tokenizer.add_tokens(
        [
            AddedToken(name, special=name != END_TOKEN, normalized=False)
            for name in names
        ]
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    rows = model.get_input_embeddings().num_embeddings
    needed = max(ids.values()) + 1
    where = "in spare rows of the model"
    if needed > rows:
        # Sizes that are no multiple of 64 cannot be sharded.
        model.resize_token_embeddings(
            needed, pad_to_multiple_of=64, mean_resizing=False
        )
        grown = model.get_input_embeddings().num_embeddings
        where = f"for which the vocabulary grew from {rows} to {grown} rows"
    tokens = ", ".join(f"{name} ({id})" for name, id in ids.items())
    return f"{tokens}: added, {where}"


def _with_template(model: Any, tokenizer: Any, name: str, side: Side) -> LocalModel:
    """Return the model with the template of a side, since its own template may have a different
    format."""
    encode = text_functions(tokenizer)[0]
    if side == "user":
        is_chatml = CHATML[0] in _needed(tokenizer, side)
        tokenizer.chat_template = CHATML_TEMPLATE if is_chatml else CHAT_TEMPLATE
        return LocalModel(model, tokenizer, name)
    if side == "assistant":
        tokenizer.chat_template = ASSISTANT_TEMPLATE
        ids = added_ids(tokenizer)
        ids.setdefault(END_TOKEN, ids[CLOSE])  # an assistant never ends
        template = userlm_template(
            encode, ids.get, special_ids(tokenizer)
        ).with_roles_swapped()
    else:
        tokenizer.chat_template = None  # it is not trained on an assistant's turns
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{name}: its tokenizer has no token for the end of a text (eos_token)"
            )
        begin = text_start(tokenizer)
        start = () if begin is None else (begin,)
        template = transcript_template(encode, start, tokenizer.eos_token_id)
    return LocalModel(model, tokenizer, name, template=template)


def _check_chat_template(local: LocalModel, side: Side) -> None:
    """Plain transformers must render a conversation to the ids that are trained."""
    turns = {"system": "a b", "user": "c d", "assistant": "e f"}
    template = local.template()
    role_of = OTHER_ROLE if side == "assistant" else {}
    ours: list[int] = []
    for role, text in turns.items():
        ours += template.turn(role_of.get(role, role), text)
    ours += template.headers["user"] if side == "user" else template.generation_prompt()
    theirs = local.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns.items()],
        add_generation_prompt=True,
        return_dict=False,
    )
    if list(theirs) != ours:
        raise InputError(
            f"{local.name}: its tokenizer encodes text after a control token differently than on "
            "its own, so a trained model would be prompted with ids that it never saw; give a "
            "model with another tokenizer"
        )


@torch.no_grad()
def _initialize_rows(
    local: LocalModel,
    needed: Sequence[str],
    missing: list[str],
    unused: list[int],
    old_rows: int,
) -> list[str]:
    """Initialize the rows of missing and untrained control tokens, and all rows from `old_rows` on.

    Returns a sentence on each control token whose row changed.
    """
    tokenizer = local.tokenizer
    added = added_ids(tokenizer)
    tokens = (*needed, tokenizer.eos_token, END_OF_TEXT)
    ids = {token: added[token] for token in tokens if token in added}
    ordinary = set(tokenizer.get_vocab().values()) - set(added.values())
    words = sorted(id for id in ordinary if id < old_rows)
    places: dict[tuple[str, str], list[str]] = {}
    for place, tensors in _vocabulary_layers(local.model).items():
        fresh = _untrained(tensors[0], ids, words, unused).union(missing)
        text_ends = [
            token for token in ids if token not in needed and token not in fresh
        ]
        text_end = next(iter(text_ends), None)
        close = CHATML[1] if CHATML[1] in needed else CLOSE
        sources = {close: text_end, END_TOKEN: close}
        changed = [token for token in needed if token in fresh]
        for tensor in tensors:
            mean = tensor[words].mean(0, dtype=torch.float32).to(tensor.dtype)
            tensor[old_rows:] = (
                mean  # also padding rows, which become as improbable as an ordinary token
            )
            for token in changed:
                source = sources.get(token)
                tensor[ids[token]] = tensor[ids[source]] if source else mean
        for token in changed:
            source = sources.get(token)
            value = f"a copy of {source}" if source else "the mean of all words"
            places.setdefault((token, value), []).append(place)
    notes = []
    for (token, value), where in places.items():
        why = "" if token in missing else ", where its row was untrained"
        notes.append(
            f"{token} is initialized as {value} in the {' and the '.join(where)}{why}"
        )
    return notes


def _vocabulary_layers(model: Any) -> dict[str, list[torch.Tensor]]:
    """The tensors with a row for each token, by the layer that they belong to."""
    inputs = model.get_input_embeddings()
    outputs = model.get_output_embeddings()
    bias = [] if outputs.bias is None else [outputs.bias]
    if outputs.weight is inputs.weight:
        return {"embeddings": [inputs.weight, *bias]}
    return {
        "input embeddings": [inputs.weight],
        "output layer": [outputs.weight, *bias],
    }


def _untrained(
    weight: torch.Tensor, ids: Mapping[str, int], words: list[int], unused: list[int]
) -> set[str]:
    """The tokens among `ids` whose rows are untrained, see `_UNTRAINED`."""
    norms = weight[words].float().norm(dim=1)
    rows = weight[list(ids.values())].float()
    distance = rows.norm(dim=1)
    if unused:
        reserved_mean = weight[unused].float().mean(0)
        distance = distance.minimum((rows - reserved_mean).norm(dim=1))
    is_near = (distance < _UNTRAINED * norms.median()).tolist()
    return {token for token, near in zip(ids, is_near, strict=True) if near}


def learn_tokenizer(
    texts: Iterable[str], vocabulary: int, side: Side = "user"
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most `vocabulary` tokens, including control tokens.

    Args:
        side: a user tokenizer has the end token; the others have, as in Llama-3, a reserved token
            that can become it. Turns stop at the closing token, plain text at the end of a text.
    """
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end = END_TOKEN if side == "user" else RESERVED
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN_OF_TEXT, END_OF_TEXT, *TURN_TOKENS, end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_mark_special(bpe.to_str())),
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TEXT if side == "both" else CLOSE,
        pad_token=END_OF_TEXT,
    )


def from_scratch(
    tokenizer: PreTrainedTokenizerFast,
    width: int,
    layers: int,
    seed: int,
    device: str | None = None,
    side: Side = "user",
) -> LocalModel:
    """Return a small Llama with random weights.

    It is for tests, demos and studies of the method; a useful user model starts from a real base
    model.

    Args:
        width: hidden size, a multiple of 32.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).to(usable_device(device))
    return _with_template(model, tokenizer, "scratch", side)
