"""Train a user model on flipped dialogues. `userlm train` runs this.

One row holds a whole conversation, and the loss is on what the user says: every user turn, its closing token,
and the ending. The loss of a step is the mean over its target tokens. Full-parameter, AdamW, cosine schedule;
weights are float32, and on a GPU the forward pass is computed in bfloat16.

Reads train.jsonl; writes log.jsonl (a line a step), checkpoint/ while it runs, and model/ at the end: an
ordinary Hugging Face folder.
"""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from userlm.flip import Row, Template, render
from userlm.models.local import LocalModel, usable_device
from userlm.text import END_TOKEN
from userlm.types import Conversation, InputError, ModelError

CONTROLS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}<|start_header_id|>user<|end_header_id|>"
)
"""What plain transformers and vLLM will spell: that of microsoft/UserLM-8b, a user turn always open at the end."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the paper's where it says (slides), else ours.

    Attributes:
        epochs: passes over the data.
        steps: stop after this many steps; `None`: when the epochs are over.
        batch: samples in an optimizer step, at least; a conversation is never split.
        lr: the peak; it rises over `warmup` of the steps and falls to a tenth along a cosine.
        max_tokens: the length of a row.
        save_every: steps between two checkpoints to resume from.
    """

    epochs: int = 1
    steps: int | None = None
    batch: int = 1024
    lr: float = 2e-5
    warmup: float = 0.03
    max_tokens: int = 2048
    clip: float = 1.0
    save_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Flips:
    """Flipped conversations: for each the rows that it gives; and what did not fit."""

    rows: tuple[tuple[Row, ...], ...]
    samples: int
    dropped: int


def flip_all(conversations: Iterable[Conversation], template: Template, max_tokens: int) -> Flips:
    """Flip every conversation once."""
    flipped = [render(conversation, template, max_tokens) for conversation in conversations]
    kept = tuple(flips.rows for flips in flipped if flips.rows)
    samples = sum(len(row.targets) for rows in kept for row in rows)
    return Flips(kept, samples, sum(len(flips.dropped) for flips in flipped))


def plan(flips: Flips, recipe: Recipe) -> list[list[Row]]:
    """The rows of every step, in order. It depends on the seed alone, so a resumed run goes on with the same."""
    steps: list[list[Row]] = []
    epoch = 0
    while flips.rows and (epoch < recipe.epochs if recipe.steps is None else len(steps) < recipe.steps):
        order = list(range(len(flips.rows)))
        random.Random(f"{recipe.seed}/{epoch}").shuffle(order)
        batch: list[Row] = []
        for i in order:
            batch += flips.rows[i]
            if sum(len(row.targets) for row in batch) >= recipe.batch:
                steps.append(batch)
                batch = []
        if batch:
            steps.append(batch)
        epoch += 1
    return steps if recipe.steps is None else steps[: recipe.steps]


def train(local: LocalModel, steps: Sequence[list[Row]], recipe: Recipe, folder: Path) -> Iterator[dict[str, Any]]:
    """Train in place, a log entry a step: step, loss (nats a target token), lr, tokens, samples.

    A checkpoint in `folder` is taken up: the entries go on behind it, and the weights end the same as those of
    an uninterrupted run.

    Raises:
        ModelError: if the loss is no longer a number; the last checkpoint stays.
    """
    model = local.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0)
    done = 0
    if saved := latest_checkpoint(folder):
        state = torch.load(saved / "optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    model.train()
    for step in range(done, len(steps)):
        batch = steps[step]
        lr = recipe.lr * schedule(step, len(steps), recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        targets = sum(sum(row.mask()) for row in batch)
        loss = 0.0
        for row in batch:
            part = row_loss(model, row) / targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} at step {step + 1}; {folder}/checkpoint holds the last good state: "
                "try a lower --lr"
            )
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens, samples = sum(len(row.ids) for row in batch), sum(len(row.targets) for row in batch)
        yield {"step": step + 1, "loss": loss, "lr": lr, "tokens": tokens, "samples": samples}
        if (step + 1) % recipe.save_every == 0 and step + 1 < len(steps):
            save_checkpoint(local, optimizer, step + 1, folder)
    model.eval()


def row_loss(model: Any, row: Row) -> torch.Tensor:
    """The summed loss (nats) of a row's targets. Logits are computed where there is a target, and only there."""
    ids = torch.tensor([row.ids], device=model.device)
    index = torch.tensor([i for i, wanted in enumerate(row.mask()) if wanted], device=model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=index - 1).logits[0]
    return F.cross_entropy(logits.float(), ids[0, index], reduction="sum")


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step: a linear rise, then a cosine down to a tenth."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    along = (step - rise) / max(1, steps - rise)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * along))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from; its predecessor, if a crash left two."""
    found = [path for path in (folder / "checkpoint", folder / "checkpoint.old") if path.is_dir()]
    return found[0] if found else None


def save_checkpoint(local: LocalModel, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Write weights, tokenizer and optimizer, all or nothing."""
    new, old, partial = (folder / name for name in ("checkpoint", "checkpoint.old", "checkpoint.partial"))
    for leftover in (partial, old):
        if new.is_dir() or leftover is partial:
            shutil.rmtree(leftover, ignore_errors=True)
    save(local, partial)
    torch.save({"optimizer": optimizer.state_dict(), "step": step}, partial / "optimizer.pt")
    if new.is_dir():
        new.rename(old)
    partial.rename(new)
    shutil.rmtree(old, ignore_errors=True)


def drop_checkpoints(folder: Path) -> None:
    """Remove them, when there is nothing left to resume."""
    for path in folder.glob("checkpoint*"):
        shutil.rmtree(path)


def save(local: LocalModel, folder: Path) -> None:
    """An ordinary Hugging Face folder that plain transformers and vLLM spell right."""
    template = local.template()
    local.tokenizer.chat_template = CHAT_TEMPLATE
    local.model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=0.8,
        eos_token_id=[template.close, template.end],
        pad_token_id=template.close,
    )
    local.model.config.eos_token_id = template.close
    for place in ("is_local", "local_files_only"):  # where it was loaded from is no property of it
        local.tokenizer.init_kwargs.pop(place, None)
    try:
        local.model.save_pretrained(folder)
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        raise
    local.tokenizer.save_pretrained(folder)


def from_base(local: LocalModel) -> LocalModel:
    """A base model with an end token: added where it is missing, its rows begun as copies of the closing
    token's, and the vocabulary padded to a multiple of 64, since other sizes break sharding.

    Raises:
        InputError: if the tokenizer has no Llama-3 control tokens.
    """
    tokenizer, model = local.tokenizer, local.model
    known = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    if missing := [token for token in CONTROLS[2:] if token not in known]:
        raise InputError(
            f"{local.name}: its tokenizer has no {', '.join(missing)}; only Llama-3 tokenizers can be trained "
            "so far (such as meta-llama/Llama-3.2-1B)"
        )
    if END_TOKEN in known:
        return local
    tokenizer.add_tokens([END_TOKEN])
    end, close = tokenizer.convert_tokens_to_ids(END_TOKEN), known["<|eot_id|>"]
    if end >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight[end] = embedding.weight[close]
    return LocalModel(model, tokenizer, local.name)


def from_scratch(
    texts: Iterable[str], width: int, layers: int, vocabulary: int, seed: int, device: str | None = None
) -> LocalModel:
    """A small Llama with random weights, and a byte-level BPE tokenizer learned from the texts.

    For tests, demos and studies of the method; a user model worth talking to starts from a real base model.

    Args:
        width: hidden size, a multiple of 32.
        vocabulary: at most this many tokens, control tokens among them.
    """
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    controls = [*CONTROLS, END_TOKEN]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=CONTROLS[0], eos_token=CONTROLS[4], pad_token=CONTROLS[1]
    )
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
    return LocalModel(LlamaForCausalLM(config).to(usable_device(device)), tokenizer, "scratch")
