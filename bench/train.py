"""How fast training is compared with TRL's SFTTrainer, whether it learns the same, and what
samples TRL's defaults lose.

    python bench/train.py [--sets made:8192:24,made:128256:6,real:8192:12] [--k 2.39] [--repeats 5]
                          [--seed 0] [--only speed,endings,preparation] [--quick]

It needs TRL, which this package does not install (`pip install trl==1.16.0`), and Linux. Real
conversations are those of USERLM_DATA; without it their sets are left out, with a message.

**Speed.** Every variant trains the same Llama (10 M weights, random, float32) for one epoch on the
same conversations of at most 2,048 tokens, with AdamW, lr 2e-5, gradients clipped at norm 1, no
gradient checkpointing, and one optimizer step, so all of them take the same step. Only the epoch is
timed, after tokenization. Each run has its own process; its memory is the peak during the epoch
minus what was in use before. Variants take turns, round after round; ratios are taken within a
round. The peers are TRL's own code:

- K + 1 rows: one row per sample, tokenized and labelled beforehand (TRL's prompts cannot be empty,
  as that of a first turn without an intent is). Padded, 4 rows at once, in random order or by
  length.
- one row: one row per conversation, as messages, with `assistant_only_loss` and a chat template
  that marks the user's turns.
- packed: the same, with `packing` by its strategy `bfd`, in packs as large as ours or of 2,048
  tokens. It is meant for flash attention; on a CPU, its packs cost a mask over all their tokens.

On a CPU, TRL's head computes the logits of all tokens, in tiles; on a GPU only those of targets.
Each loss must agree with ours to 1e-4, before and after the step, over the same number of targets;
otherwise the difference is printed, and the exit code is 1. A missed goal is printed as missed.

**Endings.** How many samples and ends TRL keeps with its default `max_length` and with 2,048,
compared with userlm.

**Preparation.** Seconds and memory to read and tokenize 1,000 to 100,000 conversations.

With `--device cuda --shape 1b` (or 8b: userlm alone) the epoch is computed in bfloat16; tokens a
second, MFU and the hours for the paper's run are shown, and losses need to agree only to 1e-2. THIS
PART HAS NOT BEEN RUN: no GPU was available.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dialogues

from userlm.flip import Ids, Row, TargetSpan, render
from userlm.rows import read_conversations, write_conversations
from userlm.types import Conversation

PAPER = 384_336  # conversations; 1,047,930 samples
# FLOP/s, dense bfloat16, by data sheet.
PEAK = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100-SXM": 312e12}
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
PEERS = (
    OURS_SMALL,
    Variant("TRL, K + 1 rows", samples=True, goal=6.0, gpu_goal=3.0),
    Variant("TRL, K + 1 rows, by length", samples=True, by_length=True),
    Variant("TRL, one row", goal=3.0),
    Variant("TRL, one row, by length", by_length=True, goal=1.7),
    Variant("TRL, one row, packed", packed=True, gpu_goal=1.0),
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


# --- one run --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Usage:
    """Seconds and MB of the block inside `measured`."""

    cpu: float = 0.0
    wall: float = 0.0
    memory: float = 0.0


@contextmanager
def measured(device: str = "cpu") -> Iterator[Usage]:
    """Measure wall and CPU seconds of this process, and its peak memory minus that at the start."""
    import torch

    usage, gpu = Usage(), device != "cpu"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    begun, wall, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    yield usage
    if gpu:
        torch.cuda.synchronize()
    usage.cpu, usage.wall = time.process_time() - cpu, time.perf_counter() - wall
    usage.memory = (
        torch.cuda.max_memory_allocated() / 1e6 if gpu else _status("VmHWM") - begun
    )


def _status(name: str) -> float:
    """A size of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {name}")


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
    begin = ours if job.variant.ours else theirs
    train, targets = begin(job, model, tokenizer, conversations)
    with measured(job.device) as usage:
        loss, steps = train()
    rows, through = whole_rows(conversations, tokenizer), computed
    after = judge(model, rows) if job.judged else None
    name = torch.cuda.get_device_name() if job.device != "cpu" else "cpu"
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
        name,
    )


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
        gradient_checkpointing=job.shape == "8b",
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
        optim="adamw_torch",
        adam_beta2=0.95,
        learning_rate=2e-5,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        gradient_checkpointing=False,
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


# --- speed ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Set:
    """The conversations that every variant trains on; `source:vocabulary:conversations` on the
    command line."""

    source: str
    vocabulary: int
    conversations: int


def sets_of(text: str) -> list[Set]:
    """The sets given on the command line."""
    parts = [one.split(":") for one in text.split(",")]
    return [
        Set(source, int(vocabulary), int(conversations))
        for source, vocabulary, conversations in parts
    ]


def gather(source: str, k: float, seed: int) -> tuple[Iterator[Conversation], Any]:
    """Conversations of a source, `made` or `real`, and a tokenizer trained on some of them."""
    if source == "made":
        return dialogues.made(k, seed), dialogues.speller(
            list(islice(dialogues.made(k, seed), 500))
        )
    found = [
        conversation
        for name in dialogues.REAL
        for conversation in dialogues.real(name, seed)
    ]
    random.Random(seed).shuffle(found)
    return iter(found), dialogues.speller(found[:1000]) if found else None


def fitting(
    conversations: Iterator[Conversation], tokenizer: Any, most: int
) -> Iterator[tuple[Conversation, Row]]:
    """Yield the conversations that fit into one row, with that row."""
    from userlm.models.templates import recognise
    from userlm.models.tokenization import text_encoder

    template = recognise(tokenizer, text_encoder(tokenizer))
    for conversation in conversations:
        if len((row := render(conversation, template).rows[0]).ids) <= most:
            yield conversation, row


def speed(
    one: Set,
    base: Job,
    k: float,
    many: int,
    repeats: int,
    peers: Sequence[Variant],
    alone: Alone,
) -> bool:
    """Measure and print a table; return whether all variants agree."""
    stream, tokenizer = gather(one.source, k, base.seed)
    if tokenizer is None:
        print(
            f"\n{one.source} conversations are left out: set USERLM_DATA to their folder"
        )
        return True
    pairs = list(
        islice(
            fitting(stream, tokenizer, base.max_tokens), max(many, one.conversations)
        )
    )
    among = [row for _, row in pairs]
    folder = Path(base.folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_conversations(
        folder / "conversations.jsonl",
        (found for found, _ in pairs[: one.conversations]),
    )

    runs: dict[Variant, list[Ran]] = {variant: [] for variant in (OURS, *peers)}
    job = replace(base, vocabulary=max(one.vocabulary, len(tokenizer)))
    for round in range(repeats):
        for variant, found in runs.items():
            print(
                f"{one.source}, round {round + 1}: {variant.name}",
                file=sys.stderr,
                flush=True,
            )
            found.append(alone(run, replace(job, variant=variant, judged=round == 0)))
    print(
        f"\n{one.source} conversations; Llama {job.shape}, vocabulary {job.vocabulary:,}; "
        f"{repeats} rounds"
    )
    return show_speed(runs, among[: one.conversations], among, base)


def show_speed(
    runs: dict[Variant, list[Ran]], rows: Sequence[Row], among: Sequence[Row], base: Job
) -> bool:
    """Print a table and whether goals are met; return whether all variants agree.

    Args:
        rows: that were trained.
        among: many more of the kind, for what padding would cost there.
    """
    gpu, tokens, more = (
        base.device != "cpu",
        sum(len(row.ids) for row in rows),
        sum(len(row.ids) for row in among),
    )
    samples, targets = (
        sum(len(row.spans) for row in rows),
        sum(sum(row.mask()) for row in rows),
    )
    print(
        f"{len(rows)} of them, {samples / len(rows):.2f} samples and {tokens / len(rows):.0f} "
        "tokens each, "
        f"{targets / tokens:.1%} of the tokens targets\n"
    )
    lines = []
    for variant, found in runs.items():
        pairs = list(zip(found, runs[OURS], strict=True))
        ratios = sorted(
            _seconds(peer, gpu) / _seconds(mine, gpu) for peer, mine in pairs
        )
        cpu, wall = (
            statistics.median(getattr(ran, name) for ran in found)
            for name in ("cpu", "wall")
        )
        lines.append(
            [
                variant.name,
                f"{found[0].computed / tokens:.2f}",
                f"{padded(among, variant, base) / more:.2f}",
                f"{cpu:.2f}",
                f"{wall:.2f}",
                f"{len(rows) / cpu:.2f}",
                f"{len(rows) / wall:.2f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                f"{statistics.median(peer.wall / mine.wall for peer, mine in pairs):.2f}",
                f"{statistics.median(ran.memory for ran in found):,.0f}",
                f"{found[0].targets:,}",
                f"{found[0].before:.6f}",
                f"{found[0].after:.6f}",
            ]
        )
    head = [
        "",
        "tokens computed",
        f"of {len(among):,}",
        "CPU s",
        "wall s",
        "conversations / CPU s",
        "/ s",
    ]
    print(
        table(
            [
                *head,
                "userlm faster by",
                "by wall",
                "peak MB",
                "targets",
                "loss",
                "after the step",
            ],
            lines,
        )
    )
    print(
        f"\nTokens computed: relative to the {tokens:,} of the conversations; beside it with the "
        f"padding of {len(among):,} conversations, where rows by length differ less. Medians, and "
        "(minimum-maximum). On a CPU, TRL's head computes the logits of all tokens; this matters "
        "more with a larger vocabulary or a smaller model."
    )
    agree = [agrees(variant, runs, 1e-2 if gpu else 1e-4) for variant in runs]
    for variant in runs:
        if not variant.ours:
            said(variant, runs, gpu)
    if gpu:
        print(on_gpu(runs[OURS], rows))
    return all(agree)


def _seconds(ran: Ran, gpu: bool) -> float:
    return ran.wall if gpu else ran.cpu


def padded(rows: Sequence[Row], variant: Variant, base: Job) -> int:
    """The number of tokens that go through the model, padding included, in the variant's order."""
    if variant.packed:
        return sum(len(row.ids) for row in rows)
    lengths = [
        n
        for row in rows
        for n in ([t.stop for t in row.spans] if variant.samples else [len(row.ids)])
    ]
    random.Random(base.seed).shuffle(lengths)
    if variant.by_length:
        lengths.sort(reverse=True)
    batches = [lengths[i : i + base.rows] for i in range(0, len(lengths), base.rows)]
    return sum(max(batch) * len(batch) for batch in batches)


def agrees(variant: Variant, runs: dict[Variant, list[Ran]], tolerance: float) -> bool:
    """Return whether it trains on as many targets as userlm, with the same loss; print if not."""
    mine, theirs = runs[OURS][0], runs[variant]
    off = [abs(ran.before / mine.before - 1) for ran in theirs]
    off += [abs((theirs[0].after or math.nan) / (mine.after or math.nan) - 1)]
    if (
        {ran.targets for ran in theirs} == {mine.targets}
        and {ran.steps for ran in theirs} == {1}
        and max(off) < tolerance
    ):
        return True
    print(
        f"DOES NOT AGREE: {variant.name} trains on {theirs[0].targets:,} targets in "
        f"{theirs[0].steps} steps, userlm on {mine.targets:,} in {mine.steps}; their losses differ "
        f"by up to {max(off):.1e}, relative"
    )
    return False


def said(variant: Variant, runs: dict[Variant, list[Ran]], gpu: bool) -> None:
    """Print whether the goals for a peer are met: userlm is faster, and needs less memory with as
    many tokens at once."""
    goal = variant.gpu_goal if gpu else variant.goal
    pairs = zip(runs[variant], runs[OURS], strict=True)
    ratio = statistics.median(
        _seconds(peer, gpu) / _seconds(mine, gpu) for peer, mine in pairs
    )
    if goal is not None:
        print(
            f"{verdict(ratio >= goal)}: {variant.name}: {ratio:.2f} times as fast (goal {goal})"
        )
    if not variant.samples:
        pairs = zip(
            runs[variant], runs[OURS_SMALL if variant.small else OURS], strict=True
        )
        less = statistics.median(mine.memory / peer.memory for peer, mine in pairs)
        print(
            f"{verdict(less < 1)}: {variant.name}: {less:.2f} of its peak memory (goal: below 1)"
        )


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def on_gpu(runs: Sequence[Ran], rows: Sequence[Row]) -> str:
    """Describe the throughput on a GPU, and how long the paper's run would take."""
    seconds, tokens = (
        statistics.median(ran.wall for ran in runs),
        sum(len(row.ids) for row in rows),
    )
    peak = next(
        (
            flops
            for name, flops in PEAK.items()
            if runs[0].device.removeprefix("NVIDIA ").startswith(name)
        ),
        None,
    )
    mfu = (
        f"{runs[0].useful / seconds / peak:.1%}"
        if peak
        else "unknown (peak of this device)"
    )
    hours = PAPER / len(rows) * seconds / 3600
    memory = statistics.median(ran.memory for ran in runs) / 1e3
    return (
        f"\n{runs[0].device}: {tokens / seconds:,.0f} tokens/s, MFU {mfu} (goal 40 %; "
        "recomputation, padding and unused logits not counted), "
        f"{memory:.1f} GB for full fine-tuning; {hours:.1f} hours for {PAPER:,} such conversations"
    )


# --- endings --------------------------------------------------------------------------------------


def endings(
    conversations: Sequence[Conversation], tokenizer: Any, lengths: Sequence[int]
) -> list[list[str]]:
    """Return the lines of the table: lost samples and ends, for each length of a row."""
    return [_endings(conversations, tokenizer, most) for most in lengths]


def _endings(
    conversations: Sequence[Conversation], tokenizer: Any, most: int
) -> list[str]:
    from datasets import Dataset

    from userlm.models.templates import recognise
    from userlm.models.tokenization import text_encoder

    template = recognise(tokenizer, text_encoder(tokenizer))
    rows = [
        row
        for conversation in conversations
        for row in render(conversation, template).rows
    ]
    samples, ended = (
        sum(len(row.spans) for row in rows),
        sum(one.ended for one in conversations),
    )
    whole, kept = [], []
    for parts in (
        [(row.ids[: target.stop], (target,)) for row in rows for target in row.spans],
        [(row.ids, row.spans) for row in rows],
    ):
        options = {
            "max_length": most,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
        }
        model, told = (
            dialogues.llama("tiny", len(tokenizer), 0),
            Dataset.from_dict(labelled(parts)),
        )
        left = sft(
            model, tokenizer, told, tempfile.gettempdir(), **options
        ).train_dataset
        labels, stops = list(left["labels"]), list(left["stops"])
        whole.append(
            sum(stop <= len(labels[i]) for i in range(len(labels)) for stop in stops[i])
        )
        kept.append(sum(template.end in row for row in labels))
    mine = [
        row
        for conversation in conversations
        for row in render(conversation, template, most).rows
    ]
    whole.append(sum(len(row.spans) for row in mine))
    kept.append(
        sum(
            row.ids[target.first] == template.end
            for row in mine
            for target in row.spans
        )
    )
    lost = [f"{1 - found / samples:.1%}" for found in whole]
    missed = [f"{1 - found / ended:.1%}" if ended else "" for found in kept]
    return [f"{most:,}", f"{samples:,}", *lost, f"{ended:,}", *missed]


def show_endings(count: int, seed: int, alone: Alone) -> None:
    """Print lost samples and ends for generated conversations at three K, and for real ones."""
    from trl import SFTConfig

    default = SFTConfig.__dataclass_fields__["max_length"].default
    found = {
        f"made, K = {k}": list(islice(dialogues.made(k, seed), count))
        for k in (1.73, 2.39, 2.7)
    }
    found |= {name: dialogues.real(name, seed)[:count] for name in dialogues.REAL}
    lines = []
    for name, conversations in found.items():
        if not conversations:
            print(f"\n{name} is left out: set USERLM_DATA to its folder")
            continue
        print(f"endings: {name}", file=sys.stderr, flush=True)
        tokenizer = dialogues.speller(
            conversations, 8192 if name.startswith("made") else 32_768
        )
        lines += [
            [name, *line]
            for line in alone(endings, conversations, tokenizer, (default, 2048))
        ]
    sides = ("TRL, K + 1 rows", "TRL, one row", "userlm")
    print(
        f"\nSamples and ends that are cut or lost; TRL's default max_length is {default:,}\n"
    )
    print(
        table(
            ["conversations", "max_length", "samples", *sides, "endings", *sides], lines
        )
    )
    print(
        "\nTokenizers: 8,192 byte pairs for generated conversations, 32,768 for real ones, trained "
        "on them."
    )


# --- preparation ----------------------------------------------------------------------------------


def prepared(folder: str, count: int) -> tuple[Usage, int]:
    """Read and tokenize conversations; return the cost and the number of tokens."""
    from userlm.models.local import LocalModel
    from userlm.models.tokenization import load_tokenizer
    from userlm.training.prepare import prepare

    tokenizer = load_tokenizer(f"{folder}/tokenizer")
    local = LocalModel(dialogues.llama("tiny", len(tokenizer), 0), tokenizer, "bench")
    conversations = islice(read_conversations(f"{folder}/conversations.jsonl"), count)
    with measured() as usage:
        dataset = prepare(
            conversations,
            local.template(),
            Path(folder, f"dataset-{count}"),
            encode_all=local.encode_all,
        )
    return usage, dataset.tokens


def show_preparation(sizes: Sequence[int], k: float, base: Job, alone: Alone) -> None:
    """Print seconds and memory by size."""
    stream, tokenizer = gather("made", k, base.seed)
    tokenizer.save_pretrained(f"{base.folder}/tokenizer")
    write_conversations(
        f"{base.folder}/conversations.jsonl", islice(stream, max(sizes))
    )
    lines, first = [], 0.0
    for size in sizes:
        print(f"preparation: {size:,}", file=sys.stderr, flush=True)
        usage, tokens = alone(prepared, base.folder, size)
        first = first or usage.wall / size
        each = usage.wall / size / first
        lines.append(
            [
                f"{size:,}",
                f"{tokens:,}",
                f"{usage.wall:.1f}",
                f"{usage.cpu:.1f}",
                f"{size / usage.wall:,.0f}",
                f"{each:.2f}",
                f"{usage.memory:,.0f}",
            ]
        )
    head = [
        "conversations",
        "tokens",
        "wall s",
        "CPU s",
        "a second",
        "time each, relative to the first",
        "peak MB",
    ]
    print(f"\nRead from JSON lines and tokenized (K = {k})\n\n{table(head, lines)}")


# --- all of it ------------------------------------------------------------------------------------

Alone = Callable[..., Any]
"""Calls a function with its arguments in a fresh process."""


def in_fresh_processes() -> Alone:
    """Return a function that runs another in a new process. The processes fork from one that has
    imported the large modules and started no threads, as Arrow would."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["userlm.training.train", "transformers.trainer", "transformers.models.llama"]
    )

    def alone(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(function, *arguments).result()

    return alone


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers aligned to the right."""
    widths = [max(map(len, cells)) for cells in zip(head, *lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in (head, rule, *lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def machine(*packages: str) -> str:
    """The machine and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("userlm", "torch", "transformers", *packages)
    )
    threads, load = os.environ["OMP_NUM_THREADS"], os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB, "
        f"Python {platform.python_version()}, {versions}; {threads} thread(s), load {load:.1f}"
    )


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets",
        help="source:vocabulary:conversations, comma-separated; source: made or real",
    )
    parser.add_argument(
        "--k",
        type=float,
        default=2.39,
        help="user turns of a generated conversation, on average",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="speed,endings,preparation", help="parts, comma-separated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="every path once, with a tiny model"
    )
    parser.add_argument("--rows", type=int, default=4, help="in a padded batch")
    parser.add_argument(
        "--pack", type=int, default=8192, help="tokens in a pack of userlm"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="10m", choices=("10m", "1b", "8b"))
    parser.add_argument(
        "--optimizer", default="adamw_torch", help="for userlm; see `userlm train`"
    )
    parser.add_argument(
        "--attention", default="flash_attention_2", help="for TRL, packed on a GPU"
    )
    args = parser.parse_args()
    if not find_spec("trl"):
        sys.exit(
            "this bench needs TRL, which is not installed: pip install trl==1.16.0"
        )
    gpu = args.device != "cpu"
    sets = args.sets or (
        "made:128256:512" if gpu else "made:8192:24,made:128256:6,real:8192:12"
    )
    shape, parts, repeats = args.shape, args.only.split(","), args.repeats
    if args.quick:
        sets, shape, repeats = args.sets or "made:8192:2", "tiny", 1
    sizes, many = (
        ((100, 200, 400), 20) if args.quick else ((1000, 10_000, 100_000), 2000)
    )
    print(f"{machine('trl', 'accelerate', 'datasets')}; seed {args.seed}", flush=True)
    if args.quick:
        print("--quick: a tiny model and a few conversations; the goals do not apply")
    if gpu:
        print(
            "--device cuda HAD NOT BEEN RUN when this was written: check that the figures make "
            "sense"
        )

    alone, agree = in_fresh_processes(), True
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="userlm-bench-") as folder:
            base = Job(
                *(OURS, folder, shape, 0, args.seed, args.rows, args.pack, 2048),
                *(args.device, args.optimizer, args.attention, False),
            )
            if part == "endings":
                show_endings(many, args.seed, alone)
            elif part == "preparation":
                show_preparation(sizes, args.k, base, alone)
            else:
                for one in sets_of(sets):
                    peers = [
                        variant
                        for variant in PEERS
                        if shape != "8b" and not (gpu and variant.small)
                    ]
                    agree &= speed(one, base, args.k, many, repeats, peers, alone)
    if not agree:
        sys.exit("the losses do not agree: see above")


if __name__ == "__main__":
    main()
