"""`train`: from conversations with intents to a user model."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from typer import Argument, Option

from userlm import address
from userlm.commands.options import (
    Limit,
    MaxTokens,
    Out,
    Results,
    Seed,
    count_total,
    finished,
)
from userlm.data.language import language_code
from userlm.flip import render, render_document, swap_roles, transcript
from userlm.rows import read_conversations, read_json, write_lines
from userlm.runs import Journal, Run, conversations_file
from userlm.terminal import console, progress_bar, track
from userlm.training import card
from userlm.types import Conversation, InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from userlm.models.local import LocalModel
    from userlm.training.base import Side
    from userlm.training.prepare import TokenizedDataset

MACHINE, WATCHING = "Memory and speed", "Validation, checkpoints, logs"  # panels of the help
VALIDATIONS = 10  # of a run, unless --eval-every says otherwise


def train(
    data: Annotated[Path, Argument(help="Conversations with intents: a folder or a file.")] = Path(
        "runs/intents"
    ),
    base: Annotated[
        str,
        Option(
            help="A base model (folder or hub id), or scratch:WIDTHxLAYERS\\[xVOCABULARY] for a "
            "small new one."
        ),
    ] = "scratch:128x4x4096",
    out: Out = Path("runs/train"),
    steps: Annotated[
        int | None, Option(help="Optimizer steps; default: one pass over the data.", min=0)
    ] = None,
    epochs: Annotated[
        int, Option(help="Passes over the data, if no --steps are given.", min=1)
    ] = 1,
    batch: Annotated[int, Option(help="Samples in a step, at least.", min=1)] = 1024,
    lr: Annotated[float, Option(help="Peak learning rate.", min=0)] = 2e-5,
    optimizer: Annotated[
        str, Option(help="As transformers' trainer names it, such as adafactor.")
    ] = "adamw_torch",
    loss: Annotated[
        str, Option(help="Averaged per token or per sample.", metavar="token|sample")
    ] = "token",
    intent: Annotated[bool, Option(help="Train with the intent as system turn.")] = True,
    side: Annotated[
        str,
        Option(
            help="Whose words it learns. The others make baselines: an assistant, and a base "
            "model that reads "
            "plain text.",
            metavar="user|assistant|both",
        ),
    ] = "user",
    init: Annotated[
        str,
        Option(
            help="What --base is; people are predicted better from a base model.",
            metavar="base|instruct",
        ),
    ] = "base",
    lora: Annotated[
        int | None, Option(help="Train adapters of this rank instead of all weights.", min=1)
    ] = None,
    max_tokens: MaxTokens = 2048,
    overlong: Annotated[
        str,
        Option(
            help="Samples that are longer: shorten their context, or drop them.",
            metavar="shorten|drop",
        ),
    ] = "truncate",
    pack: Annotated[
        int,
        Option(
            help="Tokens in one forward pass; fewer need less memory.",
            min=16,
            rich_help_panel=MACHINE,
        ),
    ] = 8192,
    gradient_checkpointing: Annotated[
        bool,
        Option(
            "--gradient-checkpointing",
            help="Less memory, a third more time.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    precision: Annotated[
        str | None,
        Option(
            help="Of the forward pass; default: bf16 on a GPU.",
            metavar="bf16|fp32",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        Option(
            help="People to validate on; default: valid.jsonl beside the training data.",
            rich_help_panel=WATCHING,
        ),
    ] = None,
    valid_limit: Annotated[
        int,
        Option(
            help="Conversations to validate on, drawn by the seed; 0: none.",
            min=0,
            rich_help_panel=WATCHING,
        ),
    ] = 500,
    eval_every: Annotated[
        int | None,
        Option(
            help="Steps between two validations; default: ten in a run.",
            min=1,
            rich_help_panel=WATCHING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        Option(
            help="Stop after so many validations without a better perplexity.",
            min=1,
            rich_help_panel=WATCHING,
        ),
    ] = None,
    save_every: Annotated[
        int, Option(help="Steps between two checkpoints.", min=1, rich_help_panel=WATCHING)
    ] = 50,
    log_with: Annotated[
        str | None,
        Option(help="Also log to tensorboard, wandb, mlflow, ...", rich_help_panel=WATCHING),
    ] = None,
    watts: Annotated[
        float | None,
        Option(
            help="Power of one device, for the card; default: what is known of it.",
            min=0,
            rich_help_panel=WATCHING,
        ),
    ] = None,
    seed: Seed = 0,
    limit: Limit = None,
    device: Annotated[
        str | None,
        Option(
            help="Such as cuda or cpu; default: a GPU if there is one.", rich_help_panel=MACHINE
        ),
    ] = None,
) -> Results:
    """Train a user model on flipped dialogues and save it as a Hugging Face folder in model/.

    The weights with the best validation perplexity are kept. On several GPUs call `torchrun -m
    userlm train`, or `accelerate launch` with a configuration of FSDP2.
    """
    average = cast(Literal["token", "sample"], _one_of("--loss", loss, "token", "sample"))
    too_long = cast(
        Literal["truncate", "drop"], _one_of("--overlong", overlong, "truncate", "drop")
    )
    _one_of("--init", init, "base", "instruct")
    learned = cast("Side", _one_of("--side", side, "user", "assistant", "both"))
    intent = intent and learned == "user"  # nobody else is told one
    if not 0 <= lr < 1000:
        raise InputError(f"--lr {lr}: give a number such as 2e-5")
    path = conversations_file(data, "train")
    held_out = _valid_file(path, valid, valid_limit)
    if patience and not held_out:
        raise InputError("--patience needs people to validate on; give them with --valid")

    from userlm.models.attention import check_document_masking
    from userlm.models.local import usable_device
    from userlm.training import train as training
    from userlm.training.base import with_lora

    where = usable_device(device)
    precision = _one_of(
        "--precision", precision or ("fp32" if where == "cpu" else "bf16"), "bf16", "fp32"
    )
    accelerator = training.start(where, precision, _tracker(log_with), out)
    options: dict[str, Any] = {
        "base": base,
        "steps": steps,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
    }
    options |= {"optimizer": optimizer, "loss": loss, "intent": intent, "init": init, "lora": lora}
    options |= {} if learned == "user" else {"side": learned}
    options |= {"max_tokens": max_tokens, "overlong": overlong}
    options |= {
        "precision": precision,
        "valid": held_out,
        "valid_limit": valid_limit,
        "eval_every": eval_every,
    }
    options |= {"patience": patience, "seed": seed, "limit": limit}
    # What changes speed and memory alone is no part of them, so that a run can go on with less.
    means = {
        "pack": pack,
        "gradient_checkpointing": gradient_checkpointing,
        "processes": accelerator.num_processes,
    }
    main = accelerator.is_main_process  # one process writes; the others wait and find it written
    console.quiet = console.quiet or not main
    with accelerator.main_process_first():
        run = Run.open(out, "train", options, [path, *filter(None, [held_out])]) if main else None
        done = finished(run) if run else None
        if done:
            training.tidy(out)  # a kill may have come before the end of the last call
    if (out / "results.json").is_file():
        return done or read_json(out / "results.json")

    def read(file: Path, most: int | None) -> Iterator[Conversation]:
        found = islice(read_conversations(file), most)
        if learned != "user":
            return map(swap_roles if learned == "assistant" else Conversation.without_system, found)
        return found if intent else map(Conversation.without_system, found)

    with accelerator.main_process_first(), console.status("loading the model"):
        texts = (turn.text for conversation in read(path, limit) for turn in conversation.turns)
        local, notes = _load(base, init, learned, texts, out / "tokenizer", seed)
        if max_tokens > local.context_length:
            notes += (
                f"rows are cut to the model's context length of {local.context_length} tokens",
            )
            max_tokens = local.context_length
        check_document_masking(local.model, local.name, max_tokens)
    if not held_out:
        notes += ("nobody to validate on: the last weights are kept",)

    def people() -> Iterator[Conversation]:  # read when they are flipped, and only then
        if held_out:
            yield from _draw(read(held_out, None), valid_limit, seed)

    with accelerator.main_process_first():
        shown = track(read(path, limit), "flipping", count_total([path], limit))
        dataset = _flipped(shown, local, learned, out / "rows", max_tokens, too_long)
        tested = None
        if held_out:
            tested = _flipped(people(), local, learned, out / "rows-valid", max_tokens, too_long)
            if not tested.samples:
                raise InputError(
                    f"{held_out}: nothing to learn there fits; give others with --valid"
                )
            if intent and tested.without_system_turn:
                notes += (f"{tested.without_system_turn:,} of those to validate on have no intent",)
    for note in notes:
        console.print(note)
    _check_flips(dataset, path, intent, max_tokens)
    if lora:
        local = with_lora(local, lora, seed=seed)
    sizes = [(weight.numel(), weight.requires_grad) for weight in local.model.parameters()]
    weights = {
        "parameters": sum(n for n, _ in sizes),
        "trained_parameters": sum(n for n, yes in sizes if yes),
    }

    config = training.TrainingConfig(
        epochs=epochs, steps=steps, batch=batch, lr=lr, optimizer=optimizer, average=average
    )
    config = replace(config, pack=pack, gradient_checkpointing=gradient_checkpointing, seed=seed)
    plan = training.plan(dataset, config)
    often = eval_every or max(1, len(plan) // VALIDATIONS)
    config = replace(config, save_every=save_every, eval_every=often, patience=patience)
    if log_with:
        accelerator.init_trackers("userlm", {name: str(value) for name, value in options.items()})
    log = Journal(out / "log.jsonl") if main else None
    rows = {row["step"]: row for row in log.rows} if log else {}
    with (
        _tracking(accelerator),
        _stopping(training.Stopped) as asked_to_stop,
        progress_bar() as progress,
    ):
        job = progress.add_task("training", total=len(plan))
        since = perf_counter()
        for entry in training.train(
            local, dataset, plan, config, out, accelerator, tested, asked_to_stop
        ):
            step, seconds, since = entry["step"], perf_counter() - since, perf_counter()
            accelerator.log(
                {name: value for name, value in entry.items() if value is not None}, step
            )
            before = rows.get(step, {}).get(
                "seconds", 0
            )  # of a step that is done again after a kill
            rows[step] = entry | {"seconds": round(before + seconds, 3)}
            if log:
                log.add(rows[step])
            progress.update(job, completed=step, description=_describe(rows.values()))
    if log:
        log.close()
        write_lines(out / "log.jsonl", [rows[step] for step in sorted(rows)])
    if run is None:
        return {}
    training.finish(local, out)
    results = _results(rows, dataset, plan, intent) | weights | means | {"notes": list(notes)}
    results |= {"device": _device_name(accelerator.device), "precision": precision}
    results |= {
        "throughput": card.throughput(
            rows.values(), results["device"], accelerator.num_processes, watts
        )
    }
    if (
        results["best"]
        and not results["best"]["valid_perplexity"] < results["untrained"]["valid_perplexity"]
    ):
        results["notes"].append(
            "held-out turns are predicted no better than before training: try another --lr"
        )
        console.print(results["notes"][-1], style="yellow")
    manifest = {**run.manifest, "options": {**options, **means, "max_tokens": max_tokens}}
    (out / "model" / "README.md").write_text(card.render(manifest, results), encoding="utf-8")
    console.print(f"{results['seen']:,} samples in {results['steps']:,} steps: {out / 'model'}")
    run.finish(results)
    training.tidy(out)
    return results


def _one_of(option: str, value: str, *known: str) -> str:
    if value not in known:
        raise InputError(f"{option} {value}: give {' or '.join(known)}")
    return value


def _valid_file(path: Path, valid: Path | None, limit: int) -> Path | None:
    """The file of people to validate on, if there is one and it is wanted."""
    if not limit:
        return None
    if valid is not None:
        found = conversations_file(valid, "valid")
        if found.resolve() == path.resolve():
            raise InputError(
                f"--valid {valid}: these are the people to train on; give others, or "
                "--valid-limit 0"
            )
        return found
    if not path.name.startswith("train."):
        return None
    beside = path.with_name("valid" + path.name.removeprefix("train"))
    return beside if beside.is_file() and beside.stat().st_size else None


def _draw(conversations: Iterable[Conversation], most: int, seed: int) -> list[Conversation]:
    """Some of them, in their order: files go by source, and their beginnings are not like the
    rest."""
    found = list(conversations)
    return [
        found[i]
        for i in sorted(random.Random(seed).sample(range(len(found)), min(most, len(found))))
    ]


def _tracker(name: str | None) -> str | None:
    if name is None:
        return None
    from accelerate.tracking import get_available_trackers

    known = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "none is installed"
        raise InputError(
            f"--log-with {name}: it is not installed, or accelerate does not know it; {there}"
        )
    return name


def _load(
    base: str, init: str, side: Side, texts: Iterable[str], tokenizer: Path, seed: int
) -> tuple[LocalModel, tuple[str, ...]]:
    """The model to train, in float32 on the CPU, and what was done to its control tokens.

    Args:
        tokenizer: where that of a new model is kept, so that it is learned once.
    """
    import torch

    from userlm.models.local import LocalModel, load_tokenizer
    from userlm.training.base import from_base, from_scratch, learn_tokenizer, replacing_folder

    if base.startswith("scratch:"):
        width, layers, vocabulary = _scratch(base)
        if not tokenizer.is_dir():
            with replacing_folder(tokenizer) as partial:
                learn_tokenizer(texts, vocabulary, side).save_pretrained(partial)
        return from_scratch(load_tokenizer(str(tokenizer)), width, layers, seed, "cpu", side), ()
    loaded = LocalModel.load(address.checkpoint(base), "cpu", torch.float32)
    spoken = bool(loaded.tokenizer.chat_template)
    if init == "instruct" and not spoken:
        raise InputError(
            f"--init instruct: {base} has no chat template, so it is no instruct model"
        )
    local, notes = from_base(loaded, side)
    if side == "user" and spoken and init == "base" and notes:
        notes += (
            f"{base} has a chat template; if it is an instruct model, a base model makes the "
            "better user",
        )
    return local, notes


def _flipped(
    conversations: Iterable[Conversation],
    local: LocalModel,
    side: Side,
    folder: Path,
    max_tokens: int,
    overlong: Literal["truncate", "drop"],
) -> TokenizedDataset:
    from userlm.training import prepare

    if not prepare.is_complete(folder):
        spell = render
        if side == "both":
            conversations, spell = map(transcript, conversations), render_document
        prepare.prepare(
            conversations, local.template(), folder, max_tokens, overlong, local.encode_all, spell
        )
    return prepare.load(folder)


def _check_flips(dataset: TokenizedDataset, path: Path, intent: bool, max_tokens: int) -> None:
    """Say what cannot be learned from; raise `InputError` if nothing can."""
    if not dataset.samples:
        raise InputError(f"{path}: nothing to train on: no turn to learn fits {max_tokens} tokens")
    if intent and dataset.without_system_turn == dataset.conversations:
        raise InputError(
            f"{path}: no conversation has an intent; run `userlm intents` first, or give "
            "--no-intent"
        )
    if intent and dataset.without_system_turn:
        console.print(
            f"{dataset.without_system_turn:,} of {dataset.conversations:,} have no intent: trained without a "
            "system turn"
        )
    if dataset.without_user_turn:
        console.print(
            f"{dataset.without_user_turn:,} conversations without a turn to learn are left out"
        )
    if dataset.dropped:
        console.print(
            f"{dataset.dropped:,} samples do not fit {max_tokens} tokens and are left out"
        )


@contextmanager
def _stopping(stopped: type[Exception]) -> Iterator[Callable[[], bool]]:
    """Whether this process was asked to stop, by a scheduler (SIGTERM) or by Ctrl-C, once; a second
    time it dies.

    When it has stopped it ends as others expect of that signal.
    """
    asked: list[int] = []
    known = (signal.SIGTERM, signal.SIGINT)
    here = (
        threading.current_thread() is threading.main_thread()
    )  # Python lets no other set handlers
    before: dict[int, Any] = {number: signal.getsignal(number) for number in known}

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    for number in known if here else ():
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    except stopped as error:
        first = asked[0] if asked else signal.SIGTERM
        if first == signal.SIGTERM:  # the command line says the same of Ctrl-C
            console.print(f"SIGTERM: {error}; the same command takes it up again")
        raise SystemExit(128 + first) from None
    finally:
        for number in known if here else ():
            signal.signal(number, before[number])


@contextmanager
def _tracking(accelerator: Accelerator) -> Iterator[None]:
    """Close the trackers, however it ends."""
    try:
        yield
    finally:
        accelerator.end_training()


def _describe(rows: Iterable[Mapping[str, Any]]) -> str:
    said = "training"
    known = list(rows)
    losses = [row["loss"] for row in known if "loss" in row]
    tested = [row["valid_perplexity"] for row in known if "valid_perplexity" in row]
    if losses:
        said += f", loss {losses[-1]:.3f}"
    return f"{said}, validation perplexity {tested[-1]:,.2f}" if tested else said


def _results(
    rows: Mapping[int, Mapping[str, Any]],
    dataset: TokenizedDataset,
    plan: list[list[int]],
    intent: bool,
) -> Results:
    """What the run did and found. `best`: the entry whose weights were kept."""
    taken = [row for row in rows.values() if "loss" in row]
    tested = [row for row in taken if "valid_perplexity" in row]
    best = min(tested, key=lambda row: row["valid_perplexity"], default=None)
    languages: Counter[str] = Counter()
    for label, count in dataset.languages.items():
        languages[language_code(label)] += count
    return {
        "conversations": dataset.conversations,
        "without_intent": dataset.without_system_turn if intent else dataset.conversations,
        "samples": dataset.samples,
        "tokens": dataset.tokens,
        "dropped": dataset.dropped,
        "without_user_turn": dataset.without_user_turn,
        "seen": sum(row["samples"] for row in taken),
        "steps": len(taken),
        "stopped_early": len(taken) < len(plan),
        "languages": dict(languages.most_common()),
        "loss": taken[-1]["loss"] if taken else None,
        "untrained": {
            key: value for key, value in rows.get(0, {}).items() if key.startswith("valid_")
        },
        "best": {k: best[k] for k in ("step", "valid_perplexity", "valid_termination_f1")}
        if best
        else None,
    }


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _scratch(base: str) -> tuple[int, int, int]:
    parts = base.removeprefix("scratch:").split("x")
    plain = len(parts) in (2, 3) and all(
        part.isascii() and part.isdigit() and int(part) for part in parts
    )
    if not plain or int(parts[0]) % 32:
        raise InputError(
            f"--base {base}: write scratch:WIDTHxLAYERS or scratch:WIDTHxLAYERSxVOCABULARY, "
            "such as scratch:128x4x4096; the width is a multiple of 32"
        )
    width, layers, *vocabulary = map(int, parts)
    return width, layers, vocabulary[0] if vocabulary else 4096
