"""From a base model to one that can learn to be a user, and from there to a folder. `userlm train`
runs this.

`from_base` sees to it that tokenizer and model have the control tokens of `flip.py`, with rows fit
to be trained; `from_scratch` makes a small model with random weights; `with_lora` trains a few
weights beside frozen ones; `save` writes an ordinary Hugging Face folder.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from userlm.flip import transcript_template, userlm_template
from userlm.models.local import LocalModel, text_functions, usable_device
from userlm.models.templates import added_ids, special_ids
from userlm.text import END_TOKEN
from userlm.types import OTHER_ROLE, InputError

HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
CLOSE = "<|eot_id|>"
USED = (*HEADERS, CLOSE, END_TOKEN)
"""The control tokens that the template uses."""

CONTROLS = ("<|begin_of_text|>", "<|end_of_text|>", *HEADERS, CLOSE)

RESERVED = "<|reserved_special_token_0|>"
"""In the place of the end token, in the tokenizer of a model that is no user model."""

Side = Literal["user", "assistant", "both"]
"""Whose words a model learns. `both`: plain text, as a base model learns it."""

_TURNS = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
)
CHAT_TEMPLATE = _TURNS + "<|start_header_id|>user<|end_header_id|>"
"""What plain transformers and vLLM will spell: that of microsoft/UserLM-8b, a user turn always open
at the end."""

ASSISTANT_TEMPLATE = (
    _TURNS
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
"""The same turns for an assistant, in the order that chat models have."""

_RESERVED = re.compile(
    r"\W*(reserved|unused|extra|place.?holder|dummy|control|special)\D*\d+\D*", re.IGNORECASE
)
"""Tokens that families keep for others to use: `<|reserved_special_token_0|>` (Llama-3),
`<unused0>` (Gemma), `<|extra_0|>` (Qwen), `[unused0]`, `<|placeholder1|>` (Phi-3), `[control_8]`,
`<SPECIAL_20>` (Mistral)."""

_UNTRAINED = 0.02
"""A row is taken as untrained if it lies this near, in median norms of the rows of words, to zero
or to the mean of the reserved tokens' rows.

Why these two: a token that never occurs gets no gradient as an input, so weight decay takes its row
to zero (Llama-3's input embeddings). As an output, also with tied weights, it gets from the softmax
the same push as every other token that never occurs, so all their rows become one (Land and
Bartolo, 2024). What decay leaves of their beginnings is far below this share, and so is rounding to
bfloat16 (0.4 %). A row that was tuned, even briefly, as in an instruct model, lies outside, and so
does every row of a model with random weights: nothing to mend there."""

_ADAPTER = "adapter_model.safetensors"


def from_base(local: LocalModel, side: Side = "user") -> tuple[LocalModel, tuple[str, ...]]:
    """The model, changed in place, with all control tokens that a side needs; and a sentence on
    each change.

    A missing token takes the place of a reserved one, else a spare row of the model, else a new
    row. Rows that are
    new or untrained are begun: `<|eot_id|>` as a copy of the end of a text, the end token as a copy
    of `<|eot_id|>`, the headers as the mean of all words. Trained rows stay, so nothing happens to
    a user model.

    Args:
        side: whose words it is to learn. An assistant needs no end token, and plain text no control
            token at all.

    Raises:
        InputError: for a model without an output layer, or a tokenizer that cannot spell the
            template.
    """
    tokenizer, model = local.tokenizer, local.model
    if model.get_output_embeddings() is None:
        raise InputError(
            f"{local.name}: this architecture ({model.config.model_type}) has no output layer "
            "over a vocabulary; "
            "give a causal language model"
        )
    rows = model.get_input_embeddings().num_embeddings
    known = added_ids(tokenizer)
    if side != "user" and END_TOKEN in known:
        raise InputError(
            f"{local.name}: it has a user model's {END_TOKEN} token; train the other sides from "
            "what it began from"
        )
    used = {"user": USED, "assistant": (*HEADERS, CLOSE), "both": ()}[side]
    missing = [token for token in used if token not in known]
    reserved = _reserved(tokenizer, rows)
    renamed = dict(zip(missing, reserved, strict=False))
    said = [
        f"{token} takes the place of {old}, id {reserved[old]}" for token, old in renamed.items()
    ]
    if renamed:
        renamed_to = {old: token for token, old in renamed.items()}
        tokenizer = _rename(tokenizer, renamed_to)
        if (now := added_ids(tokenizer)) != {
            renamed_to.get(old, old): id for old, id in known.items()
        }:
            moved = sorted(token for token in renamed if now.get(token) != reserved[renamed[token]])
            raise InputError(
                f"{local.name}: its vocabulary holds {', '.join(moved) or 'a control token'} as "
                "an ordinary word, "
                "so no reserved token can take that name; give a model with another tokenizer"
            )
    if added := [token for token in missing if token not in renamed]:
        tokenizer.add_tokens(
            [AddedToken(token, special=token != END_TOKEN, normalized=False) for token in added]
        )
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in added}
        where = "in spare rows of the model"
        if (last := max(ids.values())) >= rows:
            # Sizes that are no multiple of 64 break sharding.
            model.resize_token_embeddings(last + 1, pad_to_multiple_of=64, mean_resizing=False)
            grown = model.get_input_embeddings().num_embeddings
            where = f"for which the vocabulary grew from {rows} to {grown} rows"
        said.append(f"{', '.join(f'{token} ({id})' for token, id in ids.items())}: added, {where}")
    ready = _spelling(model, tokenizer, local.name, side)
    if side == "both":
        return ready, ()
    if side == "user" and not missing:
        ready = local
    _check_spelling(ready, side)
    unused = [id for old, id in reserved.items() if old not in renamed.values()]
    return ready, (*said, *_begin_rows(ready, used, missing, unused, rows))


def _spelling(model: Any, tokenizer: Any, name: str, side: Side) -> LocalModel:
    """The model, with the template of a side in place of its own."""
    encode = text_functions(tokenizer)[0]
    if side == "both":
        tokenizer.chat_template = None  # no turn of it is trained
        start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{name}: its tokenizer has no token for the end of a text (eos_token)"
            )
        return LocalModel(
            model,
            tokenizer,
            name,
            template=transcript_template(encode, start, tokenizer.eos_token_id),
        )
    # A base model's own may spell a dialogue otherwise.
    tokenizer.chat_template = CHAT_TEMPLATE if side == "user" else ASSISTANT_TEMPLATE
    if side == "user":
        return LocalModel(model, tokenizer, name)
    ids = added_ids(tokenizer)
    ids.setdefault(END_TOKEN, ids[CLOSE])  # it never leaves
    template = userlm_template(encode, ids.get, special_ids(tokenizer)).with_roles_swapped()
    return LocalModel(model, tokenizer, name, template=template)


def _flag(spelled: str) -> str:
    """A tokenizer.json with the control tokens special, all but the end token: as in
    microsoft/UserLM-8b, decoded text shows that the user left."""
    parts = json.loads(spelled)
    for token in parts["added_tokens"]:
        if token["content"] in USED:
            token["special"] = token["content"] != END_TOKEN
    return json.dumps(parts)


def _reserved(tokenizer: Any, rows: int) -> dict[str, int]:
    """The reserved tokens that nobody has taken into use and that have a row, by id."""
    uses = f"{tokenizer.chat_template} {list(tokenizer.special_tokens_map.values())}"
    free = {
        token: id
        for token, id in added_ids(tokenizer).items()
        if _RESERVED.fullmatch(token) and token not in uses
    }
    return {token: id for token, id in sorted(free.items(), key=lambda item: item[1]) if id < rows}


def _rename(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """The tokenizer with other names for some of its added tokens; all ids stay."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.json"):
            text = file.read_text(encoding="utf-8")
            for old, new in names.items():  # quoted, as JSON has it, so that no longer name is hit
                text = text.replace(json.dumps(old, ensure_ascii=False), json.dumps(new))
            file.write_text(
                _flag(text) if file.name == "tokenizer.json" else text, encoding="utf-8"
            )
        renamed = type(tokenizer).from_pretrained(folder)
    renamed.name_or_path = tokenizer.name_or_path
    return renamed


def _check_spelling(local: LocalModel, side: Side) -> None:
    """Plain transformers must spell a conversation with the ids that are trained."""
    said = [("system", "a b"), ("user", "c d"), ("assistant", "e f")]
    template = local.template()
    roles = {
        "system": "system",
        **(OTHER_ROLE if side == "assistant" else {role: role for role in OTHER_ROLE}),
    }
    ours = [*(id for role, text in said for id in template.turn(roles[role], text))]
    ours += template.headers["user"] if side == "user" else template.generation_prompt()
    theirs = local.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in said],
        add_generation_prompt=True,
        return_dict=False,
    )
    if list(theirs) != ours:
        raise InputError(
            f"{local.name}: its tokenizer spells words behind a control token otherwise than "
            "alone, so a trained "
            "model would be prompted with ids that it never saw; give a model with another "
            "tokenizer"
        )


@torch.no_grad()
def _begin_rows(
    local: LocalModel, used: Sequence[str], missing: Collection[str], unused: list[int], rows: int
) -> list[str]:
    """Begin the rows of missing and of untrained control tokens, and all from `rows` on; say what
    was done."""
    model, tokenizer = local.model, local.tokenizer
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    bias = [] if outputs.bias is None else [outputs.bias]
    if outputs.weight is inputs.weight:
        tables = {"embeddings": [inputs.weight, *bias]}
    else:
        tables = {"input embeddings": [inputs.weight], "output layer": [outputs.weight, *bias]}
    known = added_ids(tokenizer)
    names = [
        name for name in dict.fromkeys((*used, tokenizer.eos_token, CONTROLS[1])) if name in known
    ]
    words = sorted(
        id for id in set(tokenizer.get_vocab().values()) - set(known.values()) if id < rows
    )
    begun: dict[tuple[str, str], list[str]] = {}
    for place, parts in tables.items():
        means = [part[words].mean(0, dtype=torch.float32).to(part.dtype) for part in parts]
        for part, mean in zip(parts, means, strict=True):
            part[rows:] = mean  # what pads the vocabulary too: as unlikely as a word
        untrained = _untrained(parts[0], [known[name] for name in names], words, unused)
        fresh = {name for name, yes in zip(names, untrained, strict=True) if yes or name in missing}
        text_end = next((name for name in names if name not in used and name not in fresh), None)
        origins = {CLOSE: text_end, END_TOKEN: CLOSE}
        for name in (name for name in used if name in fresh):
            origin = origins.get(name)
            for part, mean in zip(parts, means, strict=True):
                part[known[name]] = mean if origin is None else part[known[origin]]
            start = "the mean of all words" if origin is None else f"a copy of {origin}"
            begun.setdefault((name, start), []).append(place)
    return [
        f"{name} begins as {start} in the {' and the '.join(places)}"
        + ("" if name in missing else ", where its row was untrained")
        for (name, start), places in begun.items()
    ]


def _untrained(
    weight: torch.Tensor, ids: list[int], words: list[int], unused: list[int]
) -> list[bool]:
    near = _UNTRAINED * torch.linalg.vector_norm(weight[words], dim=1, dtype=torch.float32).median()
    rows = weight[ids].float()
    away = rows.norm(dim=1)
    if unused:
        away = away.minimum((rows - weight[unused].float().mean(0)).norm(dim=1))
    return [bool(yes) for yes in away < near]


def learn_tokenizer(
    texts: Iterable[str], vocabulary: int, side: Side = "user"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most so many tokens, control tokens among them.

    Args:
        side: for a user the end token is one of them; for others, as in Llama-3, a reserved one
            that can become it. What stops an answer or a user's turn is the closing token; a plain
            text has an end of its own.
    """
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*CONTROLS, END_TOKEN if side == "user" else RESERVED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    spelled = Tokenizer.from_str(_flag(bpe.to_str()))
    eos = CONTROLS[1] if side == "both" else CLOSE
    return PreTrainedTokenizerFast(
        tokenizer_object=spelled, bos_token=CONTROLS[0], eos_token=eos, pad_token=CONTROLS[1]
    )


def from_scratch(
    tokenizer: PreTrainedTokenizerFast,
    width: int,
    layers: int,
    seed: int,
    device: str | None = None,
    side: Side = "user",
) -> LocalModel:
    """A small Llama with random weights.

    For tests, demos and studies of the method; a user model worth talking to starts from a real
    base model.

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
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _spelling(LlamaForCausalLM(config).to(usable_device(device)), tokenizer, "scratch", side)


def with_lora(
    local: LocalModel, rank: int, alpha: float | None = None, seed: int = 0
) -> LocalModel:
    """The model frozen, with what is trained beside it, in float32: low-rank adapters on all linear
    layers (Hu et al., 2022), and the control tokens' rows in the input embeddings and the output
    layer.

    Without those rows a base model could not learn to open, close and end: they are all but
    untrained in it.

    Args:
        alpha: adapters count alpha / rank times; by default 2 x rank (Biderman et al., 2024).
        seed: of the adapters' random half. The other half is zero: at first nothing changes.

    Raises:
        InputError: if peft is not installed, or the output layer has a bias.
    """
    peft, model = _peft(), local.model
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs.bias is not None:  # peft's layer of trained rows leaves it out
        raise InputError(
            f"{local.name}: its output layer has a bias, which LoRA cannot keep; train all weights"
        )
    template = local.template()
    spoken = {*template.headers["user"], template.close, template.end}
    ids = sorted(spoken & set(added_ids(local.tokenizer).values()))
    trained = (inputs,) if outputs.weight is inputs.weight else (inputs, outputs)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear",
        trainable_token_indices={
            name: ids for name, module in model.named_modules() if module in trained
        },
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # of names that transformers 6 drops
        adapted = peft.get_peft_model(model, config)
    config.base_model_name_or_path = None  # a folder of this machine
    return LocalModel(adapted, local.tokenizer, local.name, template=template)


def has_adapter(local: LocalModel) -> bool:
    """Whether it comes from `with_lora`."""
    return any(".lora_A." in name for name, _ in local.model.named_parameters())


def save_adapter(
    local: LocalModel, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write what `with_lora` trains, as peft has it. `state_dict`, `folder`: as in `save`."""
    weights = _peft().get_peft_model_state_dict(local.model, state_dict)
    with replacing_folder(folder) as partial, full_disk(folder):
        save_file(
            {name: weight.contiguous() for name, weight in weights.items()}, partial / _ADAPTER
        )
        local.model.peft_config["default"].save_pretrained(partial)


def load_adapter(local: LocalModel, folder: Path) -> None:
    """Take back what `save_adapter` wrote, in place, so that optimizers go on with the same
    parameters.

    Raises:
        InputError: if it was written from another model or another rank.
    """
    peft = _peft()
    restore(folder)
    weights, now = load_file(folder / _ADAPTER), peft.get_peft_model_state_dict(local.model)
    shapes, wanted = (
        {name: weight.shape for name, weight in found.items()} for found in (weights, now)
    )
    if shapes != wanted:
        raise InputError(
            f"{folder}: this adapter is of another base model or rank; give another folder"
        )
    peft.set_peft_model_state_dict(local.model, weights)


def merge(local: LocalModel) -> LocalModel:
    """The model of `with_lora` as an ordinary one with the same logits; it takes over the
    weights."""
    return LocalModel(
        local.model.merge_and_unload(), local.tokenizer, local.name, template=local.template()
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"LoRA needs the library peft ({error}): pip install 'userlm[lora]'"
        ) from None
    return peft


def save(
    local: LocalModel,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """An ordinary Hugging Face folder that plain transformers and vLLM spell right, in place of an
    older one.

    Args:
        folder: written beside, and renamed when it is whole; see `restore`.
        state_dict: the weights, where the model holds only a share of them; by default the model's
            own.
        dtype: to write floating-point weights in; by default as they are.

    Raises:
        OSError: such as ENOSPC for a full disk; an older folder stays.
    """
    model, tokenizer, template = local.model, local.tokenizer, local.template()
    added = added_ids(tokenizer).values()  # a line of plain text is closed by a word like others
    stops = [id for id in dict.fromkeys((template.close, template.end)) if id in added]
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=0.8, eos_token_id=stops, pad_token_id=stops[0]
    )
    model.config.eos_token_id = stops[0]
    for place in ("is_local", "local_files_only"):  # where it was loaded from is no property of it
        tokenizer.init_kwargs.pop(place, None)
    own = model.state_dict(keep_vars=True)
    written: dict[
        int, torch.Tensor
    ] = {}  # by parameter: tied weights stay one tensor, which is written once
    for name, weight in (state_dict or own).items():
        if id(own[name]) not in written:
            written[id(own[name])] = _cast(weight.detach(), dtype)
    weights = {name: written[id(own[name])] for name in (state_dict or own)}
    with replacing_folder(folder) as partial, full_disk(folder):
        model.save_pretrained(partial, state_dict=weights)
        if dtype is not None:
            model.config.dtype = dtype
            model.config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        written_as = (
            partial / "tokenizer_config.json"
        )  # by the name that transformers before 5 knows as well
        text = written_as.read_text(encoding="utf-8")
        written_as.write_text(
            text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8"
        )


def _cast(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or dtype == weight.dtype or not weight.is_floating_point():
        return weight
    return weight.to("cpu", dtype)  # a second copy of the weights may not fit the GPU


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside, which takes the place of `folder` when all went well."""
    partial, old = (folder.with_name(f"{folder.name}.{kind}") for kind in ("partial", "old"))
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            if old.exists():
                shutil.rmtree(old)
            folder.rename(old)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    """Put the older folder back, if a kill came between the two renames of `replacing_folder`."""
    old = folder.with_name(f"{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """safetensors and torch say in words of their own that a disk is full."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if "os error 28" not in str(error) and shutil.disk_usage(folder.parent).free > 2**20:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
