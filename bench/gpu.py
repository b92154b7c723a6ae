"""What a GPU gives, in a few minutes: one table, and one JSON file. `gpu.sh` runs it.

    bench/gpu.sh [--minutes 8] [--parts attention,train-1b,...] [--out FILE] [--seed 0] [--tiny]

All models are Llamas with random weights, in bfloat16. The parts, in this order:

- attention: packed rows against each row alone in float32, logits and gradients, with and without a
  sliding window. They may be off at most twice as much as each row alone in bfloat16. The same for
  the engine's cache, which falls back to another mode if it is off.
- train-1b, train-8b: one epoch and step of full fine-tuning on generated conversations, in the
  shapes of Llama-3.2-1B and Llama-3-8B. Optimizer and pack are the largest that fit into the free
  memory. MFU is 6 operations a weight and token, with causal attention, and the head at the targets
  alone; recomputation does not count.
- trl-1b, trl-8b: the same with TRL's SFTTrainer, packed, if it is installed.
- turns-1b, turns-8b: user turns a second of the model card's loop (one conversation at a time, the
  whole prompt each turn) and of the engine at 1, 8 and 32; see `runtime.py`.
- vllm-1b: the same with vLLM, if it is installed. Conversations take turns together there.

Each part runs in its own process for a limited time, and each result is in the file as soon as it
is measured: a part that fails, takes too long or is stopped by Ctrl-C loses nothing. What a part
printed is in the file's .log.

`--tiny` runs the same code with a tiny model, also without a GPU; its figures mean nothing. The
parts of TRL and vLLM have not been run on a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import dialogues
import epoch
import runtime
from measuring import device_name, machine
from parts import Part, Result, Skipped, run_parts, shown, succeeded
from train import fitting

from userlm.json_files import read_json, write_json
from userlm.rows import write_conversations

CONVERSATIONS = {"1b": 256, "8b": 64, "tiny": 3}
VOCABULARY = 128_256
AT_ONCE = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Run:
    """What a part is told.

    Attributes:
        size: 1b or 8b; with `tiny` the model is tiny all the same.
        results: those of the parts before.
    """

    size: str
    tiny: bool
    device: str
    seed: int
    results: dict[str, list[Result]]

    @property
    def shape(self) -> str:
        return "tiny" if self.tiny else self.size

    @property
    def vocabulary(self) -> int:
        return 1000 if self.tiny else VOCABULARY


# --- attention ------------------------------------------------------------------------------------


def attention(run: Run) -> Iterator[Result]:
    """Compare packed rows with single ones in float32, then try the engine."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

    size, longest = (16, 40) if run.tiny else (64, 1500)
    lengths = (2, 7, longest // 3, longest // 2, longest)
    sizes = {
        "vocab_size": 1000,
        "hidden_size": 8 * size,
        "intermediate_size": 16 * size,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(run.seed)
    rows = [
        (torch.randint(1000, (length,)).tolist(), [False] + [True] * (length - 1))
        for length in lengths
    ]
    configs = {
        "Llama": LlamaConfig(**sizes),
        "sliding window": MistralConfig(**sizes, sliding_window=longest // 8),
    }
    for name, config in configs.items():
        half = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        half.to(run.device)
        exact = deepcopy(half).float()
        expected = _learned(exact, rows, packed=False)
        for kind, model in (("bfloat16", half), ("autocast", exact)):
            autocast = kind == "autocast"
            packed = _learned(model, rows, True, autocast)
            alone = _learned(model, rows, False, autocast)
            yield _compared(f"{name}, {kind}", run.device, expected, packed, alone)
        if name == "Llama":
            yield _engine(half.eval())


def _learned(
    model: Any, rows: Any, packed: bool, autocast: bool = False
) -> tuple[Any, Any]:
    """The logits at all targets, and the gradient of the sum of their losses."""
    import torch
    import torch.nn.functional as F

    from userlm.models.attention import document_masking, target_logits

    model.zero_grad(set_to_none=True)
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=autocast)
    with half, document_masking(model) if packed else nullcontext():
        packs = [rows] if packed else [[row] for row in rows]
        pairs = [target_logits(model, pack, packed) for pack in packs]
        logits = torch.cat([logits for logits, _ in pairs]).float()
        wanted = torch.cat([tokens for _, tokens in pairs])
        F.cross_entropy(logits, wanted, reduction="sum").backward()
    gradients = [weight.grad.float().flatten() for weight in model.parameters()]
    return logits.detach(), torch.cat(gradients)


def _compared(name: str, device: str, expected: Any, packed: Any, alone: Any) -> Result:
    """How far both are off, relative to the norm of what is expected."""
    from userlm.models.attention import _varlen

    varlen = _varlen is not None and device != "cpu"
    kernel = "variable-length flash attention" if varlen else "loop over the rows"
    off, usual = (
        [
            float((found - true).norm() / true.norm())
            for found, true in zip(pair, expected, strict=True)
        ]
        for pair in (packed, alone)
    )
    equal = all(a <= 2 * b + 1e-6 for a, b in zip(off, usual, strict=True))
    note = (
        f"{kernel}: logits {off[0]:.2%} off, gradients {off[1]:.2%}; rows alone "
        f"{usual[0]:.2%}, {usual[1]:.2%}"
    )
    return {"measured": name, "note": note, "equal": equal, "off": off, "alone": usual}


def _engine(model: Any) -> Result:
    """The mode that the engine chooses after its own test of the cache."""
    from userlm.models.engine import Engine
    from userlm.types import Sampling

    engine = Engine(model, "bench", 256, 8)
    engine.complete(range(20), Sampling(temperature=0, max_tokens=4))
    engine.stop()
    equal = engine.mode == "kv_cache"
    return {"measured": "engine", "note": f"mode {engine.mode}", "equal": equal}


# --- training -------------------------------------------------------------------------------------


def training(run: Run) -> Iterator[Result]:
    """Train with userlm."""
    yield one_epoch(run, epoch.OURS, "userlm")


def trl(run: Run) -> Iterator[Result]:
    """Train with TRL, and compare with userlm."""
    has_flash = run.device != "cpu" and find_spec("flash_attn")
    kernel = "flash_attention_2" if has_flash else "sdpa"
    found = one_epoch(run, epoch.TRL_PACKED, f"TRL packed, {kernel}", kernel)
    if not has_flash:
        found["note"] += "; without flash-attn, which needs a GPU and its package"
    for ours in run.results.get(f"train-{run.size}", []):
        if ours["sizes"] == found["sizes"]:
            off = abs(found["loss"] / ours["loss"] - 1)
            found["equal"] = off < (1e-4 if run.device == "cpu" else 1e-2)
            times = ours["rate"] / found["rate"]
            found["note"] += f"; userlm is {times:.2f} times as fast"
    yield found


def one_epoch(
    run: Run, variant: epoch.Variant, name: str, kernel: str = "sdpa"
) -> Result:
    """Train one epoch of generated conversations."""
    optimizer, pack = "adamw_torch", 1024
    if not run.tiny:
        optimizer, pack = epoch.affordable(run.shape, free_memory())
    count = CONVERSATIONS[run.shape]
    most = min(pack, 2048)
    spelled = list(islice(dialogues.made(2.39, run.seed), 4 if run.tiny else 64))
    tokenizer = dialogues.speller(spelled, min(run.vocabulary, 8192))
    stream = fitting(dialogues.made(2.39, run.seed), tokenizer, most)
    pairs = list(islice(stream, count))
    tokens = sum(len(row.ids) for _, row in pairs)
    with tempfile.TemporaryDirectory(prefix="userlm-bench-") as folder:
        tokenizer.save_pretrained(f"{folder}/tokenizer")
        conversations = (conversation for conversation, _ in pairs)
        write_conversations(f"{folder}/conversations.jsonl", conversations)
        job = epoch.Job(
            *(variant, folder, run.shape, run.vocabulary, run.seed, 1, pack, most),
            *(run.device, optimizer, kernel, False, True, run.size == "8b"),
        )
        ran = epoch.run(job)
    peak = epoch.peak_flops(ran.device)
    sizes = {
        "conversations": count,
        "tokens": tokens,
        "pack": pack,
        "max_tokens": most,
        "optimizer": optimizer,
        "checkpointing": run.size == "8b",
        "vocabulary": run.vocabulary,
    }
    note = f"{optimizer}, pack {pack:,}, loss {ran.before:.4f}"
    return {
        "measured": name,
        "rate": tokens / ran.wall,
        "unit": "tokens",
        "mfu": peak and ran.useful / ran.wall / peak,
        "peak_gb": ran.memory / 1e3,
        "note": note if peak else f"{note}; peak of this device unknown, so no MFU",
        "loss": ran.before,
        "seconds": ran.wall,
        "sizes": sizes,
    }


def free_memory() -> float:
    """In bytes."""
    import torch

    return float(torch.cuda.mem_get_info()[0])


# --- turns ----------------------------------------------------------------------------------------


def turns(run: Run) -> Iterator[Result]:
    """Let the model card's loop and the engine generate the same turns."""
    if not run.tiny:
        need, free = 2 * epoch.WEIGHTS[run.shape] + epoch.OTHER, free_memory()
        if need > free:
            raise Skipped(f"needs {need / 1e9:.0f} GB, and {free / 1e9:.0f} are free")
    job = runtime.Job(run.shape, run.vocabulary, run.seed, run.device, 0.0, ())
    model = runtime.load(job)
    card: list[list[int]] = []
    for name, at_once in (("model card", 1), *(("userlm", n) for n in AT_ONCE)):
        talks = _talks(run, at_once)
        ran = runtime.cost(model, replace(job, talks=talks), name, at_once)
        said = list(chain(*ran.said))
        card = card or said
        same = sum(a == b for a, b in zip(said, card, strict=True))
        yield {
            **_turn_rate(f"{name}, {at_once} at once", ran.turns, ran.usage.wall),
            "peak_gb": ran.usage.memory / 1e3,
            "note": f"{same} of {len(said)} turns as the model card's",
            "sizes": {"conversations": len(talks), "vocabulary": run.vocabulary},
        }


def vllm(run: Run) -> Iterator[Result]:
    """Generate as many tokens by vLLM, with weights of its own."""
    # In this process, so that it ends with it.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    def ask(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        how = {"temperature": 0, "ignore_eos": True, "detokenize": False}
        sampling = [SamplingParams(max_tokens=length, **how) for length in lengths]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = model.generate(asked, sampling, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    with tempfile.TemporaryDirectory(prefix="userlm-bench-") as folder:
        dialogues.llama_config(run.shape, run.vocabulary).save_pretrained(folder)
        model = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=runtime.CONTEXT_LENGTH,
            seed=run.seed,
        )
        for at_once in AT_ONCE:
            talks = _talks(run, at_once)
            runtime.in_step(talks[:2], 2, ask)  # warm up
            model.reset_prefix_cache()  # which has prompts from before
            begun = time.perf_counter()
            said = runtime.in_step(talks, at_once, ask)
            seconds = time.perf_counter() - begun
            yield _turn_rate(f"vLLM, {at_once} at once", sum(map(len, said)), seconds)


def _talks(run: Run, at_once: int) -> tuple[runtime.Talk, ...]:
    count, turns = max(at_once, runtime.CYCLE), 1 if run.tiny else 2
    return runtime.talks(count, turns, run.vocabulary, run.seed, run.tiny)


def _turn_rate(name: str, turns: int, seconds: float) -> Result:
    rate = turns / seconds
    return {"measured": name, "rate": rate, "unit": "turns", "seconds": seconds}


# --- all of it ------------------------------------------------------------------------------------


def begin(
    measure: Callable[[Run], Iterator[Result]], size: str, out: Path
) -> Iterator[Result]:
    """Measure in a size, on the GPU if there is one; note the device."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    record = read_json(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not record["tiny"]:
        raise Skipped("torch finds no GPU; --tiny tries every part without one")
    record |= {"device": device_name(device), "cuda": torch.version.cuda}
    if device != "cpu":
        record["free_gb"] = free_memory() / 1e9
    write_json(out, record)
    parts = record["parts"].items()
    results = {name: found.get("results", []) for name, found in parts}
    return measure(Run(size, record["tiny"], device, record["seed"], results))


PARTS = {
    "attention": Part(partial(begin, attention, "1b"), 0.15),
    "train-1b": Part(partial(begin, training, "1b"), 0.2),
    "trl-1b": Part(partial(begin, trl, "1b"), 0.2, "trl"),
    "turns-1b": Part(partial(begin, turns, "1b"), 0.25),
    "vllm-1b": Part(partial(begin, vllm, "1b"), 0.3, "vllm"),
    "train-8b": Part(partial(begin, training, "8b"), 0.2),
    "trl-8b": Part(partial(begin, trl, "8b"), 0.2, "trl"),
    "turns-8b": Part(partial(begin, turns, "8b"), 0.25),
}


def main() -> int:
    """Measure, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all")
    stamp = time.strftime("gpu-%Y%m%d-%H%M%S.json", time.gmtime())
    parser.add_argument("--out", type=Path, default=Path(stamp), help="the JSON file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a dry run, also on a CPU")
    args = parser.parse_args()
    names = args.parts.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"--parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    where = machine("accelerate", "trl", "datasets", "vllm", "flash_attn")
    write_json(args.out, {**vars(args), "machine": where, "parts": {}})
    args.out.with_suffix(".log").write_text("", encoding="utf-8")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stopped = False
    try:
        run_parts({name: PARTS[name] for name in names}, args.out, args.minutes)
    except KeyboardInterrupt:
        stopped = True
    record = read_json(args.out)
    device = record.get("device", "no device")
    print(f"{device}; {where}; seed {args.seed}\n\n{shown(record)}")
    if args.tiny:
        print("\nA dry run at tiny size: its figures mean nothing.")
    print(f"\nAll of it is in {args.out}; what the parts printed is in its .log.")
    if stopped:
        return 130
    return int(not succeeded(record))


if __name__ == "__main__":
    sys.exit(main())
