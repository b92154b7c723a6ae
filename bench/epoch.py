"""One epoch of training, by userlm or by TRL's SFTTrainer: what `train.py` and `gpu.py` measure."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import dialogues
from measuring import device_name, measured
from parts import Skipped

from userlm.flip import Ids, Row, TargetSpan, render
from userlm.rows import read_conversations
from userlm.types import Conversation

# FLOP/s, dense bfloat16, by data sheet; the first whose name a device's name begins with.
PEAK = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 80GB HBM3": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "GeForce RTX 4090": 165e12,
}
WEIGHTS = {"1b": 1.24e9, "8b": 8.03e9}
# Bytes a token in training, the 8B shape with checkpointing; as in the recipes.
ACTIVATIONS = {"1b": 2.1e6, "8b": 0.8e6}
# Bytes a weight: itself and its gradient in float32, its copy in bfloat16, the optimizer's state.
OPTIMIZERS = {"adamw_torch": 18, "adafactor": 10}
PACKS = (8192, 4096, 2048)
OTHER = 4e9  # bytes for logits, or for the keys and values of turns
MARKED = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' }}"
    "{% if m.role == 'user' %}{% generation %}{{ '\n' + m.content + '<|eot_id|>' }}{% "
    "endgeneration %}"
    "{% else %}{{ '\n' + m.content + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>user<|end_header_id|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train.

    Attributes:
        samples: one row per sample; otherwise one row per conversation.
        small: packs of `SMALL` tokens.
        goal, gpu_goal: how many times as fast userlm should be; `None`: no goal.
    """

    name: str
    ours: bool = False
    samples: bool = False
    by_length: bool = False
    packed: bool = False
    small: bool = False
    goal: float | None = None
    gpu_goal: float | None = None


SMALL = 2048
OURS = Variant("userlm", ours=True, packed=True)
OURS_SMALL = Variant("userlm, packs of 2,048", ours=True, packed=True, small=True)
TRL_PACKED = Variant("TRL, one row, packed", packed=True, gpu_goal=1.0)
PEERS = (
    OURS_SMALL,
    Variant("TRL, K + 1 rows", samples=True, goal=6.0, gpu_goal=3.0),
    Variant("TRL, K + 1 rows, by length", samples=True, by_length=True),
    Variant("TRL, one row", goal=3.0),
    Variant("TRL, one row, by length", by_length=True, goal=1.7),
    TRL_PACKED,
    Variant("TRL, one row, packs of 2,048", packed=True, small=True),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one variant, in its own process."""

    variant: Variant
    folder: str  # with conversations.jsonl and tokenizer/
    shape: str
    vocabulary: int
    seed: int
    rows: int  # at once, padded
    pack: int
    max_tokens: int
    device: str
    optimizer: str
    attention: str
    judged: bool  # whether to compute the loss after the epoch
    warm: bool = False  # whether to load all kernels before the epoch
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run cost and learned. Losses in nats a target token, over all targets.

    Attributes:
        memory: peak MB minus what was in use before; on a GPU all that was allocated.
        computed: tokens that went through the model, including padding.
        useful: FLOPs of the epoch by `useful_flops`.
    """

    cpu: float
    wall: float
    memory: float
    computed: int
    targets: int
    before: float
    after: float | None
    steps: int
    useful: float
    device: str


def run(job: Job) -> Ran:
    """Train once."""
    import torch

    from userlm.models.tokenization import load_tokenizer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = load_tokenizer(f"{job.folder}/tokenizer")
    model = dialogues.llama(job.shape, job.vocabulary, job.seed, job.device)
    computed = 0

    def count(module: Any, args: Any, options: dict[str, Any]) -> None:
        nonlocal computed
        computed += options["input_ids"].numel()

    model.model.register_forward_pre_hook(count, with_kwargs=True)
    conversations = list(read_conversations(f"{job.folder}/conversations.jsonl"))
    rows = whole_rows(conversations, tokenizer)
    if job.warm:
        warm_up(model, min(rows, key=lambda row: len(row.ids)))
        computed = 0
    begin = ours if job.variant.ours else theirs
    train, targets = begin(job, model, tokenizer, conversations)
    with measured(job.device) as usage:
        loss, steps = train()
    through = computed
    after = judge(model, rows) if job.judged else None
    useful = useful_flops(model, rows)
    return Ran(
        usage.cpu,
        usage.wall,
        usage.memory,
        through,
        targets,
        loss,
        after,
        steps,
        useful,
        device_name(job.device),
    )


def warm_up(model: Any, row: Row) -> None:
    """Compute the gradient of a row in bfloat16, and forget it."""
    import torch

    from userlm.models.attention import document_masking
    from userlm.training.train import pack_loss

    with (
        torch.autocast(model.device.type, torch.bfloat16),
        document_masking(model),
    ):
        pack_loss(model, [row]).backward()
    model.zero_grad(set_to_none=True)


Train = Callable[[], tuple[float, int]]
"""Runs one epoch; returns the loss before the step and the number of optimizer steps."""


def ours(
    job: Job, model: Any, tokenizer: Any, conversations: list[Conversation]
) -> tuple[Train, int]:
    """Prepare training with userlm; return it and the number of tokens it trains on."""
    from userlm.models.local import LocalModel
    from userlm.training.prepare import prepare
    from userlm.training.train import TrainingConfig, plan, start, train

    folder = Path(job.folder)
    local = LocalModel(model, tokenizer, "bench")
    dataset = prepare(
        conversations, local.template(), folder / "dataset", job.max_tokens
    )
    config = TrainingConfig(
        batch=dataset.samples,
        pack=SMALL if job.variant.small else job.pack,
        optimizer=job.optimizer,
        gradient_checkpointing=job.checkpointing,
        seed=job.seed,
    )
    accelerator = start(
        job.device, "fp32" if job.device == "cpu" else "bf16", None, folder
    )
    steps = plan(dataset, config)

    def epoch() -> tuple[float, int]:
        entries = list(
            islice(
                train(local, dataset, steps, config, folder, accelerator), len(steps)
            )
        )
        return float(entries[0]["loss"]), len(entries)

    return epoch, int((dataset.targets["stop"] - dataset.targets["start"]).sum())


def theirs(
    job: Job, model: Any, tokenizer: Any, conversations: list[Conversation]
) -> tuple[Train, int]:
    """Prepare TRL's SFTTrainer; return it and the number of tokens it trains on."""
    from datasets import Dataset

    variant = job.variant
    if variant.samples:
        rows = whole_rows(conversations, tokenizer)
        columns = labelled(
            (row.ids[: target.stop], (target,)) for row in rows for target in row.spans
        )
    else:
        columns = {
            "messages": [messages(conversation) for conversation in conversations]
        }
    tokenizer.chat_template = MARKED
    if variant.packed and job.device != "cpu":
        model.set_attn_implementation(job.attention)
    trainer = sft(
        model,
        tokenizer,
        Dataset.from_dict(columns),
        f"{job.folder}/trl",
        assistant_only_loss=not variant.samples,
        max_length=job.pack if variant.packed and not variant.small else job.max_tokens,
        packing=variant.packed,
        per_device_train_batch_size=1 if variant.packed else job.rows,
        gradient_accumulation_steps=10**6,  # the whole epoch in one step
        train_sampling_strategy="group_by_length" if variant.by_length else "random",
        bf16=job.device != "cpu",
        use_cpu=job.device == "cpu",
        seed=job.seed,
        optim=job.optimizer,
        adam_beta2=0.95,
        learning_rate=2e-5,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        gradient_checkpointing=job.checkpointing,
    )

    def epoch() -> tuple[float, int]:
        out = trainer.train()
        return out.training_loss, out.global_step

    return epoch, sum(
        label != -100 for labels in trainer.train_dataset["labels"] for label in labels
    )


def sft(model: Any, tokenizer: Any, rows: Any, folder: str, **options: Any) -> Any:
    """An SFTTrainer that prints and writes nothing."""
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    quiet = {
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = SFTConfig(output_dir=folder, **quiet, **options)
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def labelled(parts: Iterable[tuple[Ids, Sequence[TargetSpan]]]) -> dict[str, list[Any]]:
    """Columns of tokenized rows, with labels at the targets; `stops`: where the targets end."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "stops": []}
    for ids, targets in parts:
        labels = [-100] * len(ids)
        for target in targets:
            labels[target.start : target.stop] = ids[target.start : target.stop]
        columns["input_ids"].append(list(ids))
        columns["labels"].append(labels)
        columns["stops"].append([target.stop for target in targets])
    return columns


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """The conversation as messages for TRL, up to the last target; the end is a user message with
    the end token."""
    from userlm.text import END_TOKEN

    said = (
        [{"role": "system", "content": conversation.system}]
        if conversation.system
        else []
    )
    said += [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    if conversation.ended:
        return [*said, {"role": "user", "content": END_TOKEN}]
    return said if conversation.next_role == "assistant" else said[:-1]


def whole_rows(conversations: Sequence[Conversation], tokenizer: Any) -> list[Row]:
    """One untruncated row per conversation."""
    from userlm.models.templates import recognise
    from userlm.models.tokenization import text_encoder

    template = recognise(tokenizer, text_encoder(tokenizer))
    return [
        row
        for conversation in conversations
        for row in render(conversation, template).rows
    ]


def judge(model: Any, rows: Sequence[Row]) -> float:
    """The loss after the step by plain transformers, row by row, to compare all variants."""
    import torch
    import torch.nn.functional as F

    model.eval()
    total, targets = 0.0, 0
    for row in rows:
        ids, mask = (
            torch.tensor([row.ids], device=model.device),
            torch.tensor(row.mask(), device=model.device),
        )
        with torch.inference_mode():
            logits = model(
                input_ids=ids, use_cache=False, logits_to_keep=mask.nonzero()[:, 0] - 1
            ).logits[0]
            total += float(
                F.cross_entropy(logits.float(), ids[0, mask], reduction="sum")
            )
        targets += int(mask.sum())
    return total / targets


def useful_flops(model: Any, rows: Sequence[Row]) -> float:
    """FLOPs to learn the rows, forward and backward: 6 per weight and token in the layers (6ND), 6
    per weight of the head and target, and causal attention. Padding, other logits and recomputation
    are not counted."""
    config = model.config
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    tokens, targets = (
        sum(len(row.ids) for row in rows),
        sum(sum(row.mask()) for row in rows),
    )
    attention = (
        6
        * config.num_hidden_layers
        * config.hidden_size
        * sum(len(row.ids) ** 2 for row in rows)
    )
    return float(
        6 * layers * tokens
        + 6 * config.hidden_size * config.vocab_size * targets
        + attention
    )


def peak_flops(device: str) -> float | None:
    """FLOP/s of a device by its name, if `PEAK` has it; part of a device (MIG) has less."""
    name = device.removeprefix("NVIDIA ")
    found = (flops for known, flops in PEAK.items() if name.startswith(known))
    return None if "MIG" in name else next(found, None)


def affordable(shape: str, free: float) -> tuple[str, int]:
    """The optimizer and the pack for which so many bytes should be enough on a GPU.

    Raises:
        Skipped: if there are none.
    """
    for optimizer, pack in product(OPTIMIZERS, PACKS):
        weights = OPTIMIZERS[optimizer] * WEIGHTS[shape]
        need = weights + pack * ACTIVATIONS[shape] + OTHER
        if need <= free:
            return optimizer, pack
    raise Skipped(f"needs {need / 1e9:.0f} GB, and {free / 1e9:.0f} are free")
