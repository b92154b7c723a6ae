"""`train`: from conversations with intents to a user model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from userlm.commands.options import Limit, MaxTokens, Out, Results, Seed
from userlm.runs import conversations_file
from userlm.types import InputError

SPEED = "Memory and speed"  # panels of the help
VALIDATION = "Validation, checkpoints, logs"


def train(
    data: Annotated[
        Path, Argument(help="Conversations with intents: a folder or a file.")
    ] = Path("runs/intents"),
    base: Annotated[
        str,
        Option(
            help="A base model (folder or hub id), or scratch:WIDTHxLAYERS\\[xVOCABULARY] for a "
            "small new model."
        ),
    ] = "scratch:128x4x4096",
    out: Out = Path("runs/train"),
    steps: Annotated[
        int | None,
        Option(
            help="Number of optimizer steps; default: as many as --epochs needs.", min=0
        ),
    ] = None,
    epochs: Annotated[
        int, Option(help="Number of passes over the data; ignored with --steps.", min=1)
    ] = 1,
    batch: Annotated[
        int, Option(help="Minimum number of samples in a step.", min=1)
    ] = 1024,
    lr: Annotated[float, Option(help="Peak learning rate.", min=0)] = 2e-5,
    optimizer: Annotated[
        str,
        Option(
            help="Optimizer, by its name in the Trainer of transformers, such as "
            "adafactor."
        ),
    ] = "adamw_torch",
    loss: Annotated[
        str,
        Option(
            help="Average the loss over tokens or over samples.", metavar="token|sample"
        ),
    ] = "token",
    intent: Annotated[
        bool, Option(help="Train with the intent as the system turn.")
    ] = True,
    side: Annotated[
        str,
        Option(
            help="Whose turns to train on. assistant and both train baselines: an assistant, and a "
            "base model on plain text.",
            metavar="user|assistant|both",
        ),
    ] = "user",
    init: Annotated[
        str,
        Option(
            help="The kind of model that --base is; base models make better user models.",
            metavar="base|instruct",
        ),
    ] = "base",
    lora: Annotated[
        int | None,
        Option(help="Train adapters of this rank instead of all weights.", min=1),
    ] = None,
    max_tokens: MaxTokens = 2048,
    overlong: Annotated[
        str,
        Option(
            help="What to do with longer samples: truncate their context, or drop them.",
            metavar="truncate|drop",
        ),
    ] = "truncate",
    pack: Annotated[
        int,
        Option(
            help="Number of tokens in one forward pass; fewer need less memory.",
            min=16,
            rich_help_panel=SPEED,
        ),
    ] = 8192,
    gradient_checkpointing: Annotated[
        bool,
        Option(
            "--gradient-checkpointing",
            help="Use less memory; takes about a third more time.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    precision: Annotated[
        str | None,
        Option(
            help="Precision of the forward pass; default: bf16 on a GPU.",
            metavar="bf16|fp32",
            rich_help_panel=SPEED,
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        Option(
            help="Held-out conversations; default: valid.jsonl next to the training data.",
            rich_help_panel=VALIDATION,
        ),
    ] = None,
    valid_limit: Annotated[
        int,
        Option(
            help="Maximum number of conversations to validate on, sampled with the seed; 0: no "
            "validation.",
            min=0,
            rich_help_panel=VALIDATION,
        ),
    ] = 500,
    eval_every: Annotated[
        int | None,
        Option(
            help="Steps between two validations; default: ten validations per run.",
            min=1,
            rich_help_panel=VALIDATION,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        Option(
            help="Stop after this many validations without a better perplexity.",
            min=1,
            rich_help_panel=VALIDATION,
        ),
    ] = None,
    save_every: Annotated[
        int,
        Option(
            help="Steps between two checkpoints.", min=1, rich_help_panel=VALIDATION
        ),
    ] = 50,
    log_with: Annotated[
        str | None,
        Option(
            help="Also log to tensorboard, wandb, mlflow, ...",
            rich_help_panel=VALIDATION,
        ),
    ] = None,
    watts: Annotated[
        float | None,
        Option(
            help="Power of one device in watts, for the model card; default: the maximum power of "
            "a known GPU.",
            min=0,
            rich_help_panel=VALIDATION,
        ),
    ] = None,
    seed: Seed = 0,
    limit: Limit = None,
    device: Annotated[
        str | None,
        Option(
            help="Device, such as cuda or cpu; default: a GPU if there is one.",
            rich_help_panel=SPEED,
        ),
    ] = None,
) -> Results:
    """Train a user model on conversations and save it as a Hugging Face folder in model/.

    The weights with the best validation perplexity are kept. For several GPUs use `torchrun -m
    userlm train`, or `accelerate launch` with an FSDP2 configuration.
    """
    _one_of("--init", init, "base", "instruct")
    _one_of("--side", side, "user", "assistant", "both")
    _one_of("--overlong", overlong, "truncate", "drop")
    average = _one_of("--loss", loss, "token", "sample")
    if not 0 <= lr < 1000:
        raise InputError(f"--lr {lr}: give a number such as 2e-5")
    path = conversations_file(data, "train")
    held_out = _valid_file(path, valid, valid_limit)
    if patience and not held_out:
        raise InputError(
            "--patience needs conversations to validate on; give them with --valid"
        )

    from userlm.commands import train_steps
    from userlm.models.local import usable_device
    from userlm.training.train import TrainingConfig, start

    device = usable_device(device)
    precision = precision or ("fp32" if device == "cpu" else "bf16")
    _one_of("--precision", precision, "bf16", "fp32")
    options = {
        "base": base,
        "steps": steps,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "optimizer": optimizer,
        "loss": loss,
        "intent": intent and side == "user",  # only user models have a system turn
        "init": init,
        "lora": lora,
        "max_tokens": max_tokens,
        "overlong": overlong,
        "precision": precision,
        "valid": held_out,
        "valid_limit": valid_limit,
        "eval_every": eval_every,
        "patience": patience,
        "seed": seed,
        "limit": limit,
    }
    if side != "user":
        options["side"] = side
    config = TrainingConfig(
        epochs=epochs,
        steps=steps,
        batch=batch,
        lr=lr,
        optimizer=optimizer,
        average=average,
        pack=pack,
        gradient_checkpointing=gradient_checkpointing,
        save_every=save_every,
        eval_every=eval_every,
        patience=patience,
        seed=seed,
    )
    accelerator = start(device, precision, _tracker(log_with), out)
    return train_steps.run_training(path, options, config, accelerator, out, watts)


def _one_of(option: str, value: str, *known: str) -> Any:
    if value not in known:
        raise InputError(f"{option} {value}: give {' or '.join(known)}")
    return value


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
