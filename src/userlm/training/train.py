"""Train on a tokenized dataset. `userlm train` runs this, in one process, or in many with
`accelerate launch` or `torchrun`.

One row holds a whole conversation, and the loss is on the target tokens: of every user turn the
header suffix, the content and the closing token, and the end. Rows are packed and do not attend to
each other (`models.attention`); logits are computed at the target tokens only. A step is the packed
rows of about `TrainingConfig.batch` samples. Its loss is the mean over all of its target tokens,
however they are packed or distributed, so one process and many learn the same.

While it runs it writes checkpoint/, to resume from, and model/: the best weights by validation
perplexity, else the last ones, as an ordinary Hugging Face folder (with LoRA: adapter/).
"""

from __future__ import annotations

import logging
import math
import random
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
from userlm.text import stable_hash
from userlm.training.checkpoints import (
    latest_checkpoint,
    resume,
    save,
    save_checkpoint,
)
from userlm.training.lora import has_adapter, load_adapter, merge, save_adapter
from userlm.training.prepare import TokenizedDataset
from userlm.types import InputError, ModelError

Pack = Sequence[Row]
BETAS = (0.9, 0.95)  # of AdamW
VALIDATIONS = 10  # in a run, by default


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train. The defaults are the paper's where it states them (slides), else ours.

    Attributes:
        epochs: passes over the data.
        steps: stop after this many steps; `None`: after `epochs`.
        batch: the minimum number of samples in an optimizer step; a conversation is never split.
        lr: the peak; the rate rises over `warmup` of the steps, then falls to a tenth along a
            cosine.
        clip: the maximum norm of the gradient.
        optimizer: as transformers' `TrainingArguments.optim` names it.
        average: the loss of a step is the mean over its target tokens, or over its samples, each
            with the mean over its own tokens.
        pack: tokens in one forward pass, unless one row alone is longer.
        gradient_checkpointing: compute activations twice and keep few of them.
        save_every: steps between two checkpoints to resume from.
        eval_every: steps between two validations; `None`: ten validations in all.
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
    eval_every: int | None = None
    patience: int | None = None
    seed: int = 0


class Stopped(Exception):
    """Raised if the run was asked to stop before its last step."""


def start(
    device: str, precision: str, log_with: str | None, folder: Path
) -> Accelerator:
    """Return the accelerator of this process, as `accelerate launch` or `torchrun` set it up.

    Args:
        device: `cpu`, or anything else for the device that accelerate chooses.
        precision: `bf16` (in the forward pass; weights stay float32) or `fp32`.
        log_with: `tensorboard`, `wandb`, `mlflow` or another tracker that accelerate knows.
    """
    # It would warn that tied weights are saved once, which is intended.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # accelerate uses the current device
    return Accelerator(
        cpu=device.startswith("cpu"),
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=log_with,
        project_dir=folder,
        # For accelerate each step is one backward pass, regardless of the launcher's options.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # The other processes wait while one tokenizes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )


def plan(dataset: TokenizedDataset, config: TrainingConfig) -> list[list[int]]:
    """Return the rows of every step, in order.

    They depend on the dataset and the config alone, so a resumed run continues with the same order.
    """
    _, first_row, row_count = np.unique(
        dataset.rows["conversation"], return_index=True, return_counts=True
    )
    samples = np.add.reduceat(dataset.rows["samples"], first_row).tolist()
    max_epochs = config.epochs if config.steps is None else math.inf
    max_steps = math.inf if config.steps is None else config.steps
    steps: list[list[int]] = []
    epoch = 0
    while samples and epoch < max_epochs and len(steps) < max_steps:
        order = list(range(len(samples)))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        step: list[int] = []
        samples_in_step = 0
        for i in order:
            step += range(first_row[i], first_row[i] + row_count[i])
            samples_in_step += samples[i]
            if samples_in_step >= config.batch:
                steps.append(step)
                step = []
                samples_in_step = 0
        if step:
            steps.append(step)
        epoch += 1
    return steps[: config.steps]


def packs(rows: Sequence[Row], budget: int, processes: int = 1) -> list[Pack]:
    """Return the rows in packs of about equal length, at most `budget` tokens each.

    Every process gets the same number of packs, so some may be empty.
    """
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
    """Train, and yield a log entry for each step: step, loss in nats, lr, norm of the gradient,
    conversations, samples, tokens, those with loss, and after a validation what `evaluate` returns.

    With `valid` the first entry is a validation before any training. If `folder` has a checkpoint,
    the run resumes from it: the entries continue after it, and the final weights are the same as
        without the interruption.

    Raises:
        Stopped: in every process, after a checkpoint, once `stopping` returned true in any of them.
        ModelError: if the loss is not finite (the last checkpoint is kept), or memory runs out
        (with advice).
    """
    model, optimizer = _prepare_training(local, config, accelerator)
    progress = resume(accelerator, folder, model, optimizer)
    valid_rows = [valid.row(i) for i in range(len(valid.rows))] if valid else []
    valid_packs = packs(valid_rows, config.pack, accelerator.num_processes)
    filler = _filler_pack(dataset)
    end = local.template().end
    eval_every = config.eval_every or max(1, len(steps) // VALIDATIONS)
    with document_masking(local.model):
        if valid_packs and progress.step == 0:
            with _explaining_memory(config, valid_rows):
                untrained = evaluate(model, valid_packs, filler, end, accelerator)
            yield {"step": 0, **untrained}
        for index in range(progress.step, len(steps)):
            if config.patience is not None and progress.waited >= config.patience:
                break
            step = index + 1
            is_last = step == len(steps)
            # For dropout; a resumed run draws the same numbers.
            torch.manual_seed(_seed(config, step, accelerator.process_index))
            rows = [dataset.row(i) for i in steps[index]]
            lr = config.lr * schedule(index, len(steps), config.warmup)
            loss, norm = _gradient(model, rows, filler, config, accelerator)
            figures = f"the loss is {loss} and its gradient's norm {norm}"
            _check_finite(loss + norm, figures, step, folder)
            _update(optimizer, lr, config)
            progress.step = step
            entry = {"step": step, "loss": loss, "lr": lr, "norm": norm}
            entry |= _counts(dataset, steps[index], rows)
            if valid_packs and (is_last or step % eval_every == 0):
                entry |= evaluate(model, valid_packs, filler, end, accelerator)
                perplexity = entry["valid_perplexity"]
                figures = f"the validation perplexity is {perplexity}"
                _check_finite(perplexity, figures, step, folder)
                if progress.is_better(perplexity):
                    write_weights(local, model, accelerator, folder)
            yield entry
            if stopping():
                accelerator.set_trigger()
            # Any process may have received the signal.
            stop = accelerator.check_trigger() and not is_last
            if stop or (step % config.save_every == 0 and not is_last):
                save_checkpoint(accelerator, folder, model, optimizer, progress)
            if stop:
                raise Stopped(f"stopped after step {step:,}")
        if progress.best == math.inf:  # without validation, the last weights are kept
            write_weights(local, model, accelerator, folder)
    model.eval()


def _prepare_training(
    local: LocalModel, config: TrainingConfig, accelerator: Accelerator
) -> Any:
    """The model and its optimizer, on the devices of the accelerator."""
    if has_adapter(local) and accelerator.distributed_type == DistributedType.FSDP:
        raise InputError(
            "LoRA trains a whole model on each device; launch it without FSDP"
        )
    set_seed(config.seed)
    if config.gradient_checkpointing:
        # The new name that the warning recommends is not in transformers 5.0.
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            local.model.gradient_checkpointing_enable({"use_reentrant": False})
    return accelerator.prepare(local.model, make_optimizer(local.model, config))


def _seed(config: TrainingConfig, step: int, process: int) -> int:
    return stable_hash(config.seed, step, process) % 2**63


def _gradient(
    model: Any,
    rows: Sequence[Row],
    filler: Pack,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Compute the gradients of the mean loss of all rows, over all processes; return that loss, and
    the norm of the gradient before it is clipped."""
    model.train()
    # One mean for the step: each pack's sum is divided by the target tokens (or samples) of all
    # packs of all processes, so it does not matter how rows are packed or distributed.
    if config.average == "sample":
        total = sum(len(row.spans) for row in rows)
    else:
        total = sum(sum(row.mask()) for row in rows)
    loss = torch.zeros((), device=accelerator.device)
    processes = accelerator.num_processes
    own = packs(rows, config.pack, processes)[accelerator.process_index :: processes]
    with _explaining_memory(config, rows):
        for number, pack in enumerate(own, 1):
            # Whole models exchange gradients once a step, after the last pack; sharded ones with
            # every pack, or each process would hold all gradients.
            defer_exchange = (
                accelerator.distributed_type in _REPLICATED and number < len(own)
            )
            with accelerator.no_sync(model) if defer_exchange else nullcontext():
                share = pack_loss(model, pack or filler, config.average) / total
                # Processes average their gradients, but the sum is needed. A filler row has weight
                # zero.
                accelerator.backward(share * (processes if pack else 0))
            if pack:
                loss += share.detach()
        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
    return float(accelerator.reduce(loss, "sum")), norm


def _update(optimizer: Any, lr: float, config: TrainingConfig) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    with _explaining_memory(config, []):
        # the first step allocates the optimizer's state
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


_REPLICATED = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def _filler_pack(dataset: TokenizedDataset) -> Pack:
    """Return the shortest row. A process with an empty pack computes it with weight zero, since all
    processes must take part in every forward and backward pass."""
    return [dataset.row(i) for i in dataset.rows["length"].argsort()[:1].tolist()]


def pack_loss(model: Any, pack: Pack, average: str = "token") -> torch.Tensor:
    """Return the loss (nats) of a pack's target tokens: their sum, or the sum over samples of each
    sample's mean."""
    logits, wanted = target_logits(model, [(row.ids, row.mask()) for row in pack])
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    if average == "token":
        return losses.sum()
    lengths = torch.tensor(
        [target.stop - target.start for row in pack for target in row.spans]
    )
    return losses @ (1 / lengths).repeat_interleave(lengths).to(losses)


@torch.no_grad()
def evaluate(
    model: Any,
    valid_packs: Sequence[Pack],
    filler: Pack,
    end: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return how well held-out conversations are predicted: the perplexity of the content of their
    turns, and the termination F1 in percent (`None` where it is undefined).

    The model ends where P(end) before a turn is above one half; a person ended where the end was
    observed.
    """
    model.eval()
    sums = torch.zeros(5, dtype=torch.float64)
    for pack in valid_packs[accelerator.process_index :: accelerator.num_processes]:
        logits, wanted = target_logits(
            model, [(row.ids, row.mask()) for row in pack or filler]
        )
        if not pack:
            continue
        logprobs = logits.float().log_softmax(-1)
        nll = -logprobs.gather(1, wanted[:, None])[:, 0].double().cpu()
        ended = (wanted == end).cpu()
        model_ends = (logprobs[:, end] > math.log(0.5)).cpu()
        content = torch.tensor(_is_content(pack))
        # The first token of each content: the end, if the person ended.
        first = content.clone()
        first[1:] &= ~content[:-1]
        text = content & ~ended
        actual = first & ended
        predicted = first & model_ends
        sums[0] += nll[text].sum()
        sums[1:] += torch.stack([text, actual, predicted, actual & predicted]).sum(1)
    sums = accelerator.reduce(sums.to(accelerator.device), "sum")
    loss, tokens, actual_ends, predicted_ends, found_ends = sums.tolist()
    f1 = None
    if actual_ends:
        f1 = 200 * found_ends / (actual_ends + predicted_ends)
    if not tokens:
        raise InputError(
            "the conversations to validate on have no text to predict; give others with --valid, "
            "or --valid-limit 0"
        )
    return {
        "valid_perplexity": math.exp(min(loss / tokens, 700)),
        "valid_termination_f1": f1,
    }


def _is_content(pack: Pack) -> list[bool]:
    """For each target token of a pack: is it content, and no header suffix or closing token?"""
    found: list[bool] = []
    for row in pack:
        masks = zip(row.mask(), row.mask(content_only=True), strict=True)
        found += [is_content for is_target, is_content in masks if is_target]
    return found


def make_optimizer(model: Any, config: TrainingConfig) -> Any:
    """Return AdamW without weight decay, or another optimizer by its name in transformers' trainer;
    those that need more than the weights, such as GaLore, do not work.

    Raises:
        InputError: for a name that transformers does not know, or whose library is missing.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == "adamw_torch":
        return torch.optim.AdamW(weights, lr=config.lr, betas=BETAS, weight_decay=0.0)
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    try:
        # Real `TrainingArguments` would reset accelerate's state during the run.
        arguments = SimpleNamespace(
            optim=OptimizerNames(config.optimizer),
            optim_args=None,
            learning_rate=config.lr,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=1e-8,
        )
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--optimizer {config.optimizer}: {reason}") from None
    return optimizer_class(weights, **options)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step (from 0): a linear rise, then a cosine
    down to a tenth."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def write_weights(
    local: LocalModel, model: Any, accelerator: Accelerator, folder: Path
) -> None:
    """Write the current weights: model/, or adapter/ for LoRA. Call it in every process."""
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        if has_adapter(local):
            save_adapter(local, folder / "adapter")
        else:
            half = accelerator.mixed_precision == "bf16"
            save(
                local,
                folder / "model",
                weights,
                torch.bfloat16 if half else torch.float32,
            )
    accelerator.wait_for_everyone()


def merge_best_adapter(local: LocalModel, folder: Path) -> None:
    """After the last step: merge the best adapter into an ordinary model/."""
    if has_adapter(local):
        load_adapter(local, folder / "adapter")
        save(merge(local), folder / "model")


def _counts(
    dataset: TokenizedDataset, step: Sequence[int], rows: Sequence[Row]
) -> dict[str, int]:
    return {
        "conversations": len(np.unique(dataset.rows["conversation"][step])),
        "samples": sum(len(row.spans) for row in rows),
        "tokens": sum(len(row.ids) for row in rows),
        "loss_tokens": sum(sum(row.mask()) for row in rows),
    }


def _check_finite(value: float, figures: str, step: int, folder: Path) -> None:
    """Raise `ModelError` with these figures if the value is not finite."""
    if math.isfinite(value):
        return
    checkpoint = latest_checkpoint(folder)
    state = (
        f"{checkpoint} holds the last good state"
        if checkpoint
        else "there is no checkpoint yet"
    )
    raise ModelError(f"{figures} at step {step}; {state}: try a lower --lr")


@contextmanager
def _explaining_memory(config: TrainingConfig, rows: Sequence[Row]) -> Iterator[None]:
    """Return advice on which option helps when memory runs out.

    Args:
        rows: the rows of the forward and backward pass; empty if the optimizer ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not (
            isinstance(error, torch.OutOfMemoryError)
            or "can't allocate memory" in str(error)
        ):
            raise
        longest = max((len(row.ids) for row in rows), default=0)
        if not rows:
            advice = (
                "weights, gradients and the optimizer's state do not fit: give --lora 16, or more "
                "devices"
            )
        elif config.pack > longest:
            advice = f"give --pack {max(config.pack // 2, 256)} (now {config.pack})"
        elif not config.gradient_checkpointing:
            advice = "give --gradient-checkpointing"
        else:
            advice = (
                f"a row of {longest} tokens alone is too much: give --lora 16, or a lower "
                "--max-tokens"
            )
        raise ModelError(f"out of memory; {advice}") from error
