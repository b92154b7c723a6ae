"""`train`: from conversations with intents to a user model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from userlm.commands.options import (
    Output,
    argument,
    device_option,
    limit_option,
    max_tokens_option,
    option,
    out_folder,
    seed_option,
)
from userlm.commands.steps import Results
from userlm.flip import MIN_ANSWER_TOKENS
from userlm.runs import conversations_file
from userlm.types import InputError

# Headings of the help.
SPEED = "Memory and speed"
VALIDATION = "Validation, checkpoints, logs"

_speed = partial(option, panel=SPEED, recorded=False)
_validation = partial(option, panel=VALIDATION)


@dataclass(frozen=True, slots=True)
class Train:
    """Train a user model on conversations and save it as a Hugging Face folder in model/.

    The weights with the best validation perplexity are kept. For several GPUs use `torchrun -m
    userlm train`, or `accelerate launch` with an FSDP2 configuration.

    $ userlm train runs/intents --base meta-llama/Llama-3.2-1B

    $ userlm train runs/intents --base userlm-tiny --batch 32 --lr 2e-4 --epochs 3
    """

    data: Path = argument(
        Path("runs/intents"), "Conversations with intents: a folder or a file."
    )
    base: str = option(
        "scratch:128x4x4096",
        "A base model (folder, hub id or small), or scratch:WIDTHxLAYERS\\[xVOCABULARY] for a new "
        "one.",
    )
    out: Path = out_folder("runs/train")
    steps: int | None = option(
        None, "Number of optimizer steps; default: as many as --epochs needs.", min=0
    )
    epochs: int = option(
        1, "Number of passes over the data; ignored with --steps.", min=1
    )
    batch: int = option(1024, "Minimum number of samples in a step.", min=1)
    lr: float = option(2e-5, "Peak learning rate.", min=0, max=1000)
    optimizer: str = option(
        "adamw_torch",
        "Optimizer, by its name in the Trainer of transformers, such as adafactor.",
    )
    loss: Literal["token", "sample"] = option(
        "token", "Average the loss over tokens or over samples."
    )
    intent: bool = option(True, "Train with the intent as the system turn.")
    side: Literal["user", "assistant", "both"] = option(
        "user",
        "Whose turns to train on. assistant and both train baselines: an assistant, and a base "
        "model on plain text.",
    )
    init: Literal["base", "instruct"] = option(
        "base",
        "The kind of model that --base is; base models make better user models.",
    )
    lora: int | None = option(
        None, "Train adapters of this rank instead of all weights.", min=1
    )
    trainable_layers: int | None = option(
        None,
        "Train only this many upper layers; faster and smaller. Default: all.",
        min=1,
    )
    max_tokens: int = max_tokens_option()
    max_answer_tokens: int | None = option(
        None,
        "Cut longer answers of the assistant to this many tokens: their middle is left out. The "
        "model then always reads answers so.",
        min=MIN_ANSWER_TOKENS,
    )
    overlong: Literal["truncate", "drop"] = option(
        "truncate",
        "What to do with longer samples: truncate their context, or drop them.",
    )
    seed: int = seed_option()
    limit: int | None = limit_option()
    pack: int = _speed(
        8192,
        "Number of tokens in one forward pass; fewer need less memory.",
        min=16,
    )
    gradient_checkpointing: bool = _speed(
        False,
        "Use less memory; takes about a third more time.",
        flag="--gradient-checkpointing",
    )
    precision: Literal["bf16", "fp32"] | None = _speed(
        None,
        "Precision of the forward pass; default: bf16 on a GPU. A CPU without bfloat16 "
        "instructions is many times slower with it.",
        recorded=True,
    )
    device: str | None = device_option(SPEED)
    valid: Path | None = _validation(
        None,
        "Held-out conversations; default: valid.jsonl next to the training data.",
    )
    valid_limit: int = _validation(
        500,
        "Maximum number of conversations to validate on, sampled with the seed; 0: no validation.",
        min=0,
    )
    eval_every: int | None = _validation(
        None,
        "Steps between two validations; default: ten validations per run.",
        min=1,
    )
    patience: int | None = _validation(
        None,
        "Stop after this many validations without a better perplexity.",
        min=1,
    )
    save_every: int = _validation(
        50,
        "Steps between two checkpoints.",
        min=1,
        recorded=False,
    )
    log_with: str | None = _validation(
        None,
        "Also log to tensorboard, wandb, mlflow, ...",
        recorded=False,
    )
    watts: float | None = _validation(
        None,
        "Power of one device in watts, for the model card; default: the maximum power of a known "
        "GPU.",
        min=0,
        recorded=False,
    )
    region: str | None = _validation(
        None,
        "Where the devices are, such as a country, for the model card.",
        recorded=False,
    )
    output: Output = Output()


def train(options: Train) -> Results:
    """Train a model, or resume its training."""
    path = conversations_file(options.data, "train")
    held_out = _valid_file(path, options.valid, options.valid_limit)
    if options.patience and not held_out:
        raise InputError(
            "--patience needs conversations to validate on; give them with --valid"
        )
    if options.max_answer_tokens and options.side != "user":
        raise InputError(
            "--max-answer-tokens: only a user model does not learn the answers; leave it out with "
            f"--side {options.side}"
        )

    from userlm.commands import train_steps
    from userlm.models.local import usable_device
    from userlm.training.train import start

    device = usable_device(options.device)
    precision = options.precision or ("fp32" if device == "cpu" else "bf16")
    resolved = replace(
        options,
        precision=precision,
        valid=held_out,
        # Only user models have a system turn.
        intent=options.intent and options.side == "user",
    )
    tracker = _tracker(options.log_with)
    accelerator = start(device, precision, tracker, options.out)
    return train_steps.run_training(path, resolved, accelerator)


def _valid_file(path: Path, valid: Path | None, limit: int) -> Path | None:
    """Return the file to validate on: `valid` if it is given, else valid.jsonl next to the training
    data."""
    if not limit:
        return None
    if valid is not None:
        found = conversations_file(valid, "valid")
        if found.resolve() == path.resolve():
            raise InputError(
                f"--valid {valid}: these are the conversations to train on; give others, or "
                "--valid-limit 0"
            )
        return found
    if not path.name.startswith("train."):
        return None
    beside = path.with_name("valid" + path.name.removeprefix("train"))
    return beside if beside.is_file() and beside.stat().st_size else None


def _tracker(name: str | None) -> str | None:
    """Return the name of the tracker; raise `InputError` if it cannot be used."""
    if name is None:
        return None
    from accelerate.tracking import get_available_trackers

    known = [str(tracker) for tracker in get_available_trackers()]
    if name not in known:
        raise InputError(
            f"--log-with {name}: it is not installed, or accelerate does not know it; installed: "
            f"{', '.join(known) or 'none'}"
        )
    return name
