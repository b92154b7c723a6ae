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
second, MFU and the hours for the paper's run are shown, and losses need to agree only to 1e-2. This
part has not been run.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import dialogues
from epoch import (
    OURS,
    OURS_SMALL,
    PEERS,
    Job,
    Ran,
    Variant,
    labelled,
    peak_flops,
    run,
    sft,
)
from measuring import (
    Alone,
    Usage,
    in_fresh_processes,
    machine,
    measured,
    table,
    verdict,
)

from userlm.flip import Row, render
from userlm.rows import read_conversations, write_conversations
from userlm.types import Conversation

PAPER = 384_336  # conversations; 1,047,930 samples

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


def on_gpu(runs: Sequence[Ran], rows: Sequence[Row]) -> str:
    """Describe the throughput on a GPU, and how long the paper's run would take."""
    seconds, tokens = (
        statistics.median(ran.wall for ran in runs),
        sum(len(row.ids) for row in rows),
    )
    peak = peak_flops(runs[0].device)
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
    parser.add_argument("--optimizer", default="adamw_torch", help="see `userlm train`")
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
                checkpointing=shape == "8b",
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
