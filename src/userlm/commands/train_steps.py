"""The steps of `userlm train`, in their order. They import torch, so the command loads them late.

`options` are the options of the run, as in run.json.
"""

from __future__ import annotations

import random
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator

from userlm import inputs, loading
from userlm.address import HUB_ID, LocalSettings
from userlm.commands.options import recorded as as_mapping
from userlm.commands.steps import Results, count_total, finish, finished, open_run
from userlm.commands.train import Train
from userlm.data.language import language_code
from userlm.journal import Journal
from userlm.json_files import take, write_lines
from userlm.metrics.termination import always_ending_f1
from userlm.models.attention import check_document_masking
from userlm.models.local import LocalModel
from userlm.models.templates import MAX_ANSWER_TOKENS
from userlm.models.tokenization import load_tokenizer
from userlm.rows import read_conversations
from userlm.runs import Run
from userlm.show.terminal import console, progress_bar, track
from userlm.training import card
from userlm.training import train as training
from userlm.training.base import from_base, from_scratch, learn_tokenizer
from userlm.training.checkpoints import replacing_folder, tidy
from userlm.training.layers import freeze_below
from userlm.training.lora import with_lora
from userlm.training.prepare import TokenizedDataset, is_complete, load, prepare
from userlm.types import Conversation, InputError

Options = Mapping[str, Any]
Rows = dict[int, dict[str, Any]]
"""The rows of log.jsonl, by step."""


def run_training(path: Path, recorded: Train, accelerator: Accelerator) -> Results:
    """Start or resume the run in `out`: train on the conversations of `path`, write the results and
    the card."""
    out = recorded.out
    console.quiet = console.quiet or not accelerator.is_main_process
    sizes = {file: file.stat().st_size for file in (path, recorded.valid) if file}
    with accelerator.main_process_first():
        # only the main process writes; the others wait, then read
        run = _open(path, recorded) if accelerator.is_main_process else None
    if (out / "results.json").is_file():
        return dict(Run.read(out).results)
    options = as_mapping(recorded)
    with accelerator.main_process_first(), console.status("loading the model"):
        local, notes = _load(path, options, out / "tokenizer")
        # the template of a user model is read from there, now and wherever the model is used
        local.tokenizer.init_kwargs[MAX_ANSWER_TOKENS] = options["max_answer_tokens"]
        if options["max_tokens"] > local.context_length:
            options["max_tokens"] = local.context_length
            notes.append(
                f"rows are limited to the context length, {local.context_length} tokens"
            )
        check_document_masking(local.model, local.name, options["max_tokens"])
        local = _trainable(local, options)
    with accelerator.main_process_first():
        dataset, valid = _datasets(path, options, local, out)
        if run:
            run.check_inputs(sizes)
    notes += _check(path, options, dataset, valid)
    for note in notes:
        console.print(note)
    config = _config(recorded)
    results = {
        "parameters": local.model.num_parameters(),
        "trained_parameters": local.model.num_parameters(only_trainable=True),
        "pack": config.pack,
        "gradient_checkpointing": config.gradient_checkpointing,
        "processes": accelerator.num_processes,
        "device": _device_name(accelerator.device),
        "precision": options["precision"],
        "notes": notes,
    }
    steps = training.plan(dataset, config)
    tracked = {name: str(value) for name, value in options.items()}
    accelerator.init_trackers("userlm", tracked)
    rows = _train(local, dataset, valid, steps, config, accelerator, out)
    if run is None:
        return {}
    training.merge_best_adapter(local, out)
    results |= _results(rows, dataset, len(steps), options["intent"])
    results["max_tokens"] = options["max_tokens"]
    if valid and options["side"] == "user":
        results["always_ending_f1"] = _always_ending(valid, local.template().end)
    _write_results(run, recorded, options, results, rows)
    return results


def _open(path: Path, recorded: Train) -> Run:
    """Start, resume or read the run in `out`."""
    files = [file for file in (path, recorded.valid) if file]
    run = open_run("train", recorded, [*files, *inputs.files(recorded.base)])
    if finished(run, recorded):
        # the call that finished the training may have been killed before this step.
        tidy(recorded.out)
    return run


def _write_results(
    run: Run, recorded: Train, options: Options, results: Results, rows: Rows
) -> None:
    """Write the card, then the results, and show them."""
    results["throughput"] = card.throughput(
        rows.values(), results["device"], results["processes"], recorded.watts
    )
    _warn_if_nothing_was_learned(results)
    # Options that may change when the run is resumed are shown on the card only.
    shown = {
        "pack": results["pack"],
        "max_tokens": options["max_tokens"],
        "watts": recorded.watts,
        "region": recorded.region,
    }
    manifest = {**run.manifest, "options": {**run.manifest["options"], **shown}}
    run.path("model/README.md").write_text(
        card.render(manifest, results), encoding="utf-8"
    )
    finish(run, recorded, results)
    tidy(recorded.out)


def _config(options: Train) -> training.TrainingConfig:
    return training.TrainingConfig(
        epochs=options.epochs,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        optimizer=options.optimizer,
        average=options.loss,
        pack=options.pack,
        gradient_checkpointing=options.gradient_checkpointing,
        save_every=options.save_every,
        eval_every=options.eval_every,
        patience=options.patience,
        seed=options.seed,
    )


def _load(
    path: Path, options: Options, tokenizer: Path
) -> tuple[LocalModel, list[str]]:
    """The model to train, in float32 on the CPU, and notes on its control tokens.

    Args:
        tokenizer: the folder for the tokenizer of a new model, so that it is trained only once.
    """
    base = options["base"]
    side = options["side"]
    if base.startswith("scratch:"):
        width, layers, vocabulary = _scratch(base)
        if not tokenizer.is_dir():
            logs = islice(read_conversations(path), options["limit"])
            texts = (turn.text for conversation in logs for turn in conversation.turns)
            with replacing_folder(tokenizer) as partial:
                learn_tokenizer(texts, vocabulary, side).save_pretrained(partial)
        learned = load_tokenizer(str(tokenizer))
        return from_scratch(learned, width, layers, options["seed"], "cpu", side), []
    settings = LocalSettings(1, "cpu", "float32")
    loaded = loading.load_model(loading.checkpoint(base), settings)
    has_chat_template = bool(loaded.tokenizer.chat_template)
    is_instruct = options["init"] == "instruct"
    if is_instruct and not has_chat_template:
        raise InputError(
            f"--init instruct: {base} has no chat template, so it is not an instruct model"
        )
    local, changes = from_base(loaded, side)
    notes = list(changes)
    if notes and side == "user" and has_chat_template and not is_instruct:
        notes.append(
            f"{base} has a chat template; if it is an instruct model, a base model makes the "
            "better user model"
        )
    return local, notes


def _trainable(local: LocalModel, options: Options) -> LocalModel:
    """The model with what is trained: adapters, the upper layers, or all weights."""
    upper = options["trainable_layers"]
    if options["lora"]:
        base = options["base"]
        is_known = HUB_ID.fullmatch(base) and not Path(base).exists()
        return with_lora(
            local,
            options["lora"],
            options["seed"],
            trainable_layers=upper,
            base=base if is_known else None,
        )
    if upper:
        freeze_below(local, upper)
    return local


def _scratch(base: str) -> list[int]:
    """Width, layers and vocabulary of a new model."""
    match = re.fullmatch(r"scratch:(\d+)x(\d+)(?:x(\d+))?", base, re.ASCII)
    numbers = [int(number) for number in match.groups("4096")] if match else [0]
    if 0 in numbers or numbers[0] % 32:
        raise InputError(
            f"--base {base}: write scratch:WIDTHxLAYERS or scratch:WIDTHxLAYERSxVOCABULARY, "
            "such as scratch:128x4x4096; the width is a multiple of 32"
        )
    return numbers


def sample(
    conversations: Iterable[Conversation], most: int, seed: int
) -> Iterator[Conversation]:
    """Yield a sample of the conversations, in their order; sampled, since files are often sorted by
    source."""
    found = list(conversations)
    numbers = random.Random(seed).sample(range(len(found)), min(most, len(found)))
    for number in sorted(numbers):
        yield found[number]


def _datasets(
    path: Path, options: Options, local: LocalModel, out: Path
) -> tuple[TokenizedDataset, TokenizedDataset | None]:
    """The conversations to train on and to validate on, tokenized."""
    logs = islice(read_conversations(path), options["limit"])
    shown = track(logs, "tokenizing", count_total([path], options["limit"]))
    dataset = _tokenize(shown, options, local, out / "rows")
    if not options["valid"]:
        return dataset, None
    held_out = read_conversations(options["valid"])
    sampled = sample(held_out, options["valid_limit"], options["seed"])
    return dataset, _tokenize(sampled, options, local, out / "rows-valid")


def _tokenize(
    conversations: Iterable[Conversation],
    options: Options,
    local: LocalModel,
    folder: Path,
) -> TokenizedDataset:
    """Return the dataset of the folder; make it from the conversations if it is not complete."""
    if not is_complete(folder):
        prepare(
            conversations,
            local.template(),
            folder,
            options["max_tokens"],
            options["overlong"],
            local.encode_all,
            options["side"],
            options["intent"],
        )
    return load(folder)


def _check(
    path: Path,
    options: Options,
    dataset: TokenizedDataset,
    valid: TokenizedDataset | None,
) -> list[str]:
    """Print what the model does not train on, and return notes on the validation.

    Raises:
        InputError: if there is nothing to train on or to validate on.
    """
    none_fits = f"no turn to train on fits {options['max_tokens']} tokens"
    if not dataset.samples:
        raise InputError(f"{path}: nothing to train on: {none_fits}")
    if valid and not valid.samples:
        raise InputError(
            f"{options['valid']}: {none_fits}; give other conversations with --valid"
        )
    console.print(
        f"an epoch: {dataset.tokens:,} tokens, {dataset.loss_tokens:,} of them with loss"
    )
    total = dataset.conversations
    without_intent = dataset.without_system_turn if options["intent"] else 0
    if without_intent == total:
        raise InputError(
            f"{path}: no conversation has an intent; run `userlm intents` first, or give "
            "--no-intent"
        )
    counts = {
        f"of {total:,} conversations have no intent: trained without a system turn": without_intent,
        "conversations without a turn to train on are left out": dataset.without_user_turn,
        "samples do not fit --max-tokens and are left out": dataset.dropped,
    }
    for what, count in counts.items():
        if count:
            console.print(f"{count:,} {what}")
    if of := dataset.sample_counts:
        console.print(
            f"{of['all']:,} samples; --max-tokens {options['max_tokens']:,} leaves "
            f"{of['truncate']:,} with --overlong truncate, {of['drop']:,} with drop"
        )
    if valid is None:
        return ["no conversations to validate on: the last weights are kept"]
    if options["intent"] and valid.without_system_turn:
        count = valid.without_system_turn
        return [f"{count:,} of the conversations to validate on have no intent"]
    return []


def _train(
    local: LocalModel,
    dataset: TokenizedDataset,
    valid: TokenizedDataset | None,
    steps: list[list[int]],
    config: training.TrainingConfig,
    accelerator: Accelerator,
    out: Path,
) -> Rows:
    """Train, with progress shown and logged."""
    log = Journal(out / "log.jsonl") if accelerator.is_main_process else None
    rows: Rows = dict(log.read(_logged)) if log else {}
    latest: dict[str, Any] = {}
    try:
        with _stop_signals() as stopping, progress_bar() as progress:
            job = progress.add_task("training", total=len(steps))
            since = perf_counter()
            for entry in training.train(
                local, dataset, steps, config, out, accelerator, valid, stopping
            ):
                step = entry["step"]
                now = perf_counter()
                # the row of a step that was repeated after a kill.
                earlier = rows.get(step, {}).get("seconds", 0)
                rows[step] = {**entry, "seconds": round(earlier + now - since, 3)}
                since = now
                known = {
                    name: value for name, value in entry.items() if value is not None
                }
                accelerator.log(known, step)
                if log:
                    log.add(rows[step])
                latest.update(entry)
                progress.update(job, completed=step, description=_describe(latest))
    finally:
        accelerator.end_training()  # closes the trackers
    if log:
        log.close()
        write_lines(out / "log.jsonl", [rows[step] for step in sorted(rows)])
    return rows


def _logged(row: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The step of a row of log.jsonl, and the row. The row of step 0 is only a validation."""
    step = take(row, "step", int)
    take(row, "seconds", float)
    if step:
        take(row, "loss", float)
        for name in ("samples", "tokens", "loss_tokens"):
            take(row, name, int)
    return step, row


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Return a function that returns whether SIGTERM (which schedulers send) or Ctrl-C was
    received.

    A second signal kills the process. Once the training has stopped, the process exits with the
    usual code for the signal.
    """
    received: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    # only the main thread can set signal handlers.
    signals = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signals}

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in signals:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    except training.Stopped as error:
        # If this process received no signal, another one did.
        first = received[0] if received else int(signal.SIGTERM)
        # For Ctrl-C the command line prints the same message.
        if first == signal.SIGTERM:
            console.print(f"SIGTERM: {error}; the same command resumes it")
        raise SystemExit(128 + first) from None
    finally:
        for number in signals:
            signal.signal(number, before[number])


def _describe(latest: Mapping[str, Any]) -> str:
    """The text of the progress bar."""
    text = "training"
    if "loss" in latest:
        text += f", loss {latest['loss']:.3f}"
    if "valid_perplexity" in latest:
        text += f", validation perplexity {latest['valid_perplexity']:,.2f}"
    return text


def _results(
    rows: Rows, dataset: TokenizedDataset, planned: int, intent: bool
) -> Results:
    """Return the results of the run. `best` is the validation whose weights were kept."""
    steps = [row for row in rows.values() if "loss" in row]
    validated = [row for row in steps if "valid_perplexity" in row]
    best = min(validated, key=lambda row: row["valid_perplexity"], default=None)
    measured = ("valid_perplexity", "valid_termination_f1")
    languages: Counter[str] = Counter()
    for label, count in dataset.languages.items():
        languages[language_code(label)] += count
    return {
        "conversations": dataset.conversations,
        "without_intent": dataset.without_system_turn
        if intent
        else dataset.conversations,
        "samples": dataset.samples,
        "sample_counts": dict(dataset.sample_counts),
        "tokens": dataset.tokens,
        "loss_tokens": dataset.loss_tokens,
        "dropped": dataset.dropped,
        "without_user_turn": dataset.without_user_turn,
        "seen": sum(row["samples"] for row in steps),
        "seen_tokens": sum(row["tokens"] for row in steps),
        "seen_loss_tokens": sum(row["loss_tokens"] for row in steps),
        "steps": len(steps),
        "stopped_early": len(steps) < planned,
        "languages": dict(languages.most_common()),
        "loss": steps[-1]["loss"] if steps else None,
        "untrained": {name: rows[0][name] for name in measured} if 0 in rows else {},
        "best": {name: best[name] for name in ("step", *measured)} if best else None,
    }


def _always_ending(valid: TokenizedDataset, end: int) -> float | None:
    """Return the termination F1 of ending at every turn of the validation, in percent."""
    rows = [valid.row(i) for i in range(len(valid.rows))]
    ends = [row.ids[span.first] == end for row in rows for span in row.spans]
    return always_ending_f1(sum(ends), len(ends)) if any(ends) else None


def _warn_if_nothing_was_learned(results: Results) -> None:
    best = results["best"]
    if best and not best["valid_perplexity"] < results["untrained"]["valid_perplexity"]:
        warning = "held-out turns are predicted no better than before training: try another --lr"
        results["notes"].append(warning)
        console.print(warning, style="yellow")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
