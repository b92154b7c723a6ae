"""Train a user model on flipped dialogues. `userlm train` runs this, on one process or, by
`accelerate launch` or `torchrun`, on many.

One row holds a whole conversation, and the loss is on what the user says: every user turn, its
closing token, and the ending. Rows are packed end to end without seeing each other
(`models.packed`), and logits are computed at the targets only. A step is the packed rows of about
`TrainingConfig.batch` samples; its loss is the mean over all of its targets, however they are
packed or dealt to processes, so one process and many learn the same.

Reads flipped conversations (`prepare`); writes checkpoint/ while it runs, to resume from, and
model/: the best weights by validation perplexity, or the last ones, as an ordinary Hugging Face
folder (LoRA: adapter/ beside it).
"""

from __future__ import annotations

import logging
import math
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, GradientAccumulationPlugin, set_seed

from userlm.flip import Row
from userlm.models.attention import balanced_bins, document_masking, target_logits
from userlm.models.local import LocalModel
from userlm.training.base import (
    full_disk,
    has_adapter,
    load_adapter,
    merge,
    replacing_folder,
    restore,
    save,
    save_adapter,
)
from userlm.training.prepare import TokenizedDataset
from userlm.types import InputError, ModelError

Pack = Sequence[Row]
BETAS = (0.9, 0.95)  # of AdamW


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train. The defaults are the paper's where it says (slides), else ours.

    Attributes:
        epochs: passes over the data.
        steps: stop after this many steps; `None`: when the epochs are over.
        batch: samples in an optimizer step, at least; a conversation is never split.
        lr: the peak; it rises over `warmup` of the steps and falls to a tenth along a cosine.
        optimizer: as transformers' `TrainingArguments.optim` names them.
        average: the loss of a step is the mean over its target tokens, or over its samples, each
            with the mean over its own tokens.
        pack: tokens in one forward pass, unless one row alone is longer.
        gradient_checkpointing: compute activations twice and keep few of them.
        save_every: steps between two checkpoints to resume from.
        eval_every: steps between two validations.
        patience: stop after this many validations without a better perplexity; `None`: never.
    """

    epochs: int = 1
    steps: int | None = None
    batch: int = 1024
    lr: float = 2e-5
    warmup: float = 0.03
    clip: float = 1.0
    optimizer: str = "adamw_torch"
    average: Literal["token", "sample"] = "token"
    pack: int = 8192
    gradient_checkpointing: bool = False
    save_every: int = 50
    eval_every: int = 50
    patience: int | None = None
    seed: int = 0


class Stopped(Exception):
    """A run was asked to stop before its end."""


def start(device: str, precision: str, log_with: str | None, folder: Path) -> Accelerator:
    """This process's share of the accelerator, as `accelerate launch` or `torchrun` set it up.

    Args:
        device: `cpu`, or anything else for what accelerate finds.
        precision: `bf16` (the forward pass; weights stay float32) or `fp32`.
        log_with: `tensorboard`, `wandb`, `mlflow` or another tracker that accelerate knows.
    """
    logging.getLogger("accelerate.utils.other").setLevel(
        logging.ERROR
    )  # tied weights are meant to be saved once
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # accelerate takes the current one
    return Accelerator(
        cpu=device.startswith("cpu"),
        mixed_precision={"bf16": "bf16", "fp32": "no"}[precision],
        log_with=log_with,
        project_dir=folder,
        # A step is one backward pass to accelerate; its launcher may have been told otherwise.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=6))
        ],  # others wait while one prepares
    )


def plan(dataset: TokenizedDataset, config: TrainingConfig) -> list[list[int]]:
    """The rows of every step, in order. It depends on the seed alone, so a resumed run goes on with
    the same."""
    _, first, count = np.unique(dataset.rows[:, 0], return_index=True, return_counts=True)
    upto = np.append(dataset.rows[:, 3], dataset.samples)  # the samples before each row
    samples = (upto[first + count] - upto[first]).tolist()
    steps: list[list[int]] = []
    epoch = 0
    while samples and (
        epoch < config.epochs if config.steps is None else len(steps) < config.steps
    ):
        order = list(range(len(samples)))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        rows: list[int] = []
        held = 0
        for i in order:
            rows += range(first[i], first[i] + count[i])
            held += samples[i]
            if held >= config.batch:
                steps.append(rows)
                rows, held = [], 0
        if rows:
            steps.append(rows)
        epoch += 1
    return steps if config.steps is None else steps[: config.steps]


def packs(rows: Sequence[Row], budget: int, processes: int = 1) -> list[Pack]:
    """The rows in packs of about as many tokens each, at most `budget`; as many for every process,
    some empty."""
    bins = balanced_bins([len(row.ids) for row in rows], budget, processes)
    return [[rows[i] for i in bin] for bin in bins]


def train(
    local: LocalModel,
    dataset: TokenizedDataset,
    steps: Sequence[Sequence[int]],
    config: TrainingConfig,
    folder: Path,
    accelerator: Accelerator,
    valid: TokenizedDataset | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """Train, a log entry a step: step, loss in nats, lr, norm of the gradient, conversations,
    samples, tokens, and after a validation what `evaluate` found. With `valid` the first entry is a
    validation before any training.

    A checkpoint in `folder` is taken up: the entries go on behind it, and the weights end the same
    as those of an uninterrupted run.

    Raises:
        Stopped: in every process, with a checkpoint written, once `stopping` said so in any of
            them.
        ModelError: if the loss is no longer a number (the last checkpoint stays) or memory runs out
            (with advice).
    """
    if has_adapter(local) and accelerator.distributed_type == DistributedType.FSDP:
        raise InputError("LoRA trains a whole model on each device; launch it without FSDP")
    set_seed(config.seed)
    if config.gradient_checkpointing:
        with warnings.catch_warnings(
            action="ignore", category=FutureWarning
        ):  # its new name is not in 5.0
            local.model.gradient_checkpointing_enable({"use_reentrant": False})
    model, optimizer = accelerator.prepare(local.model, make_optimizer(local.model, config))
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if accelerator.is_main_process:
        for name in ("checkpoint", "model", "adapter"):
            restore(folder / name)
    accelerator.wait_for_everyone()
    resumed = latest_checkpoint(folder)
    if resumed:
        accelerator.load_state(str(resumed))
    people = [] if valid is None else [valid.row(i) for i in range(len(valid.rows))]
    tested = packs(people, config.pack, accelerator.num_processes)
    spare = _spare_pack(dataset)
    end = local.template().end
    with document_masking(local.model):
        if tested and not resumed:
            with _explaining_memory(config, people):
                before = evaluate(model, tested, spare, end, accelerator)
            yield {"step": 0, **before}
        for step in range(progress.step, len(steps)):
            if config.patience is not None and progress.waited >= config.patience:
                break
            rows = [dataset.row(i) for i in steps[step]]
            lr = config.lr * schedule(step, len(steps), config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            model.train()
            with _explaining_memory(config, rows):
                loss = _backward(model, rows, spare, config, accelerator)
                norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
            if not math.isfinite(loss + norm):
                raise ModelError(
                    f"the loss is {loss} and the norm of its gradient {norm} at step {step + 1}; "
                    f"{_last_good(folder)}: try a lower --lr"
                )
            with _explaining_memory(config, []):  # the first step makes the optimizer's state
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step = step + 1
            entry = {
                "step": step + 1,
                "loss": loss,
                "lr": lr,
                "norm": norm,
                **_counts(dataset, steps[step], rows),
            }
            if tested and (progress.step % config.eval_every == 0 or progress.step == len(steps)):
                entry |= evaluate(model, tested, spare, end, accelerator)
                if not math.isfinite(entry["valid_perplexity"]):
                    raise ModelError(
                        f"the validation perplexity is {entry['valid_perplexity']} at step "
                        f"{step + 1}; "
                        f"{_last_good(folder)}: try a lower --lr"
                    )
                if progress.is_better(entry["valid_perplexity"]):
                    keep(local, model, accelerator, folder)
            yield entry
            stop = _any(stopping(), accelerator) and progress.step < len(steps)
            if stop or (progress.step % config.save_every == 0 and progress.step < len(steps)):
                save_checkpoint(accelerator, folder)
            if stop:
                raise Stopped(f"stopped after step {progress.step:,}")
        if progress.best == math.inf:  # nothing was compared: the last weights are the ones
            keep(local, model, accelerator, folder)
    model.eval()


def _backward(
    model: Any, rows: Sequence[Row], spare: Pack, config: TrainingConfig, accelerator: Accelerator
) -> float:
    """Gradients of the mean loss of all rows, whichever process holds them; that loss.

    Processes average their gradients, so each counts its share times their number.
    """
    whole = sum(_weight(row, config.average) for row in rows)
    loss = torch.zeros((), device=accelerator.device)
    mine = packs(rows, config.pack, accelerator.num_processes)[
        accelerator.process_index :: accelerator.num_processes
    ]
    for i, pack in enumerate(mine):
        # Gradients travel once a step; sharded ones with every pack, or each process would hold
        # them whole.
        alone = accelerator.distributed_type in _REPLICATED and i + 1 < len(mine)
        with accelerator.no_sync(model) if alone else nullcontext():
            part = pack_loss(model, pack or spare, config.average) / whole
            accelerator.backward(part * (accelerator.num_processes if pack else 0))
        if pack:
            loss += part.detach()
    return float(accelerator.reduce(loss, "sum"))


_REPLICATED = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def pack_loss(model: Any, pack: Pack, average: str = "token") -> torch.Tensor:
    """The loss (nats) of a pack's targets, summed over tokens, or over samples each with its mean
    over tokens."""
    logits, wanted = target_logits(model, [(row.ids, row.mask()) for row in pack])
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    if average == "token":
        return losses.sum()
    lengths = torch.tensor([target.stop - target.start for row in pack for target in row.targets])
    return losses @ (1 / lengths).repeat_interleave(lengths).to(losses)


def _weight(row: Row, average: str) -> int:
    """How much a row counts in the mean."""
    return (
        len(row.targets)
        if average == "sample"
        else sum(target.stop - target.start for target in row.targets)
    )


@torch.no_grad()
def evaluate(
    model: Any, tested: Sequence[Pack], spare: Pack, end: int, accelerator: Accelerator
) -> dict[str, Any]:
    """How well held-out people are predicted: perplexity of the words of their turns, termination
    F1 in percent.

    The model leaves where P(end) before a turn is above one half; a person left where the ending
    was observed.
    """
    model.eval()
    sums = torch.zeros(5, dtype=torch.float64)  # NLL in nats, words; endings right, made up, missed
    for pack in tested[accelerator.process_index :: accelerator.num_processes]:
        logits, wanted = target_logits(model, [(row.ids, row.mask()) for row in pack or spare])
        if not pack:
            continue
        # what stands where among the targets' tokens: 0 a lead or closing token, 1 a word, 2 the
        # first word
        lengths = [(t.first - t.start, t.stop - 1 - t.first) for row in pack for t in row.targets]
        place = torch.tensor(
            [p for lead, n in lengths for p in [0] * lead + [2] * (n > 0) + [1] * (n - 1) + [0]]
        )
        logprobs = logits.float().log_softmax(-1)
        nll = -logprobs.gather(1, wanted[:, None])[:, 0].double().cpu()
        left, leaves = (wanted == end).cpu(), (logprobs[:, end] > math.log(0.5)).cpu()
        words, first = (place > 0) & ~left, place == 2
        sums[0] += nll[words].sum()
        counts = (words, first & left & leaves, first & ~left & leaves, first & left & ~leaves)
        sums[1:] += torch.tensor([int(count.sum()) for count in counts])
    loss, words_, right, made_up, missed = accelerator.reduce(
        sums.to(accelerator.device), "sum"
    ).tolist()
    if not words_:
        raise InputError(
            "the people to validate on say no word; give others with --valid, or --valid-limit 0"
        )
    f1 = 200 * right / (2 * right + made_up + missed) if right + missed else None
    return {"valid_perplexity": math.exp(min(loss / words_, 700)), "valid_termination_f1": f1}


def make_optimizer(model: Any, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW without weight decay, or another by its name in transformers' trainer; those that need
    more than the weights, such as GaLore, do not work.

    Raises:
        InputError: for a name that it does not know, or whose library is missing.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == "adamw_torch":
        return torch.optim.AdamW(weights, lr=config.lr, betas=BETAS, weight_decay=0.0)
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    try:
        # real `TrainingArguments` would take accelerate's state away from under the run
        asked = SimpleNamespace(
            optim=OptimizerNames(config.optimizer),
            optim_args=None,
            learning_rate=config.lr,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=1e-8,
        )
        kind, options = Trainer.get_optimizer_cls_and_kwargs(asked)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--optimizer {config.optimizer}: {reason}") from None
    made: torch.optim.Optimizer = kind(weights, **options)
    return made


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step: a linear rise, then a cosine down to a
    tenth."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    along = (step - rise) / max(1, steps - rise)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * along))


# --- what is kept ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Progress:
    """How far a run is: steps done, the best validation perplexity, validations since. Part of a
    checkpoint."""

    step: int = 0
    best: float = math.inf
    waited: int = 0

    def is_better(self, perplexity: float) -> bool:
        """Note a validation: is it the best so far?"""
        better = perplexity < self.best
        self.best, self.waited = (perplexity, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.best, self.waited = state["step"], state["best"], state["waited"]


def keep(local: LocalModel, model: Any, accelerator: Accelerator, folder: Path) -> None:
    """Write the weights as they are now: model/, or adapter/ for LoRA. Every process takes part."""
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        if has_adapter(local):
            save_adapter(local, folder / "adapter")
        else:
            half = accelerator.mixed_precision == "bf16"
            save(local, folder / "model", weights, torch.bfloat16 if half else torch.float32)
    accelerator.wait_for_everyone()


def finish(local: LocalModel, folder: Path) -> None:
    """After the last step: an adapter, the best one, becomes part of an ordinary model/."""
    if has_adapter(local):
        load_adapter(local, folder / "adapter")
        save(merge(local), folder / "model")


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from, if there is one."""
    checkpoint = folder / "checkpoint"
    return checkpoint if checkpoint.is_dir() else None


def save_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Write weights, optimizer and progress, all or nothing. Every process takes part."""
    new = folder / "checkpoint"
    with replacing_folder(new) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        with full_disk(new):
            accelerator.save_state(str(new.with_name("checkpoint.partial")))
        accelerator.wait_for_everyone()


def tidy(folder: Path) -> None:
    """Remove what a run that is complete does not need: what it would resume from, and what a kill
    left."""
    names = ("checkpoint*", "model.*", "adapter.*", "rows", "rows-valid", "tokenizer*")
    for path in (path for name in names for path in folder.glob(name)):
        shutil.rmtree(path)


# --- small things ---------------------------------------------------------------------------------


def _counts(dataset: TokenizedDataset, step: Sequence[int], rows: Sequence[Row]) -> dict[str, int]:
    return {
        "conversations": len(set(dataset.rows[step, 0].tolist())),
        "samples": sum(len(row.targets) for row in rows),
        "tokens": sum(len(row.ids) for row in rows),
    }


def _spare_pack(dataset: TokenizedDataset) -> Pack:
    """The shortest row: what a process computes, for nothing, when its pack is empty and others
    wait for it."""
    return [dataset.row(int(dataset.rows[:, 2].argmin()))] if len(dataset.rows) else []


def _any(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it is true in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(
        accelerator.reduce(torch.tensor(int(flag), device=accelerator.device), "sum").item()
    )


def _last_good(folder: Path) -> str:
    if checkpoint := latest_checkpoint(folder):
        return f"{checkpoint} holds the last good state"
    return "there is no checkpoint yet"


@contextmanager
def _explaining_memory(config: TrainingConfig, rows: Sequence[Row]) -> Iterator[None]:
    """Advice when memory runs out.

    Args:
        rows: of the step whose forward and backward pass this is; none where the optimizer takes
            memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        longest = max((len(row.ids) for row in rows), default=0)
        if not rows:
            advice = (
                "weights, gradients and the optimizer's state do not fit: give --lora 16, "
                "or "
                "more devices"
            )
        elif config.pack > longest:
            advice = f"give --pack {max(config.pack // 2, 256)} (now {config.pack})"
        elif not config.gradient_checkpointing:
            advice = "give --gradient-checkpointing"
        else:
            advice = (
                f"a row of {longest} tokens alone is too much: give --lora 16, or a "
                "lower "
                "--max-tokens"
            )
        raise ModelError(f"out of memory; {advice}") from error
