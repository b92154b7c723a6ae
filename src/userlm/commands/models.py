"""`train` and `ppl`: a user model, and how well it predicts people."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from userlm import address
from userlm.commands.shared import (
    Limit,
    MaxTokens,
    Out,
    Results,
    Seed,
    conversations_file,
    finished,
    measure_results,
)
from userlm.metrics import perplexity
from userlm.store import (
    Journal,
    Run,
    read_conversations,
)
from userlm.terminal import console, progress_bar, show_measures, track
from userlm.types import InputError, MeasureRow


def train(
    data: Annotated[Path, Argument(help="Conversations with intents: a folder or a file.")] = Path("runs/intents"),
    base: Annotated[
        str,
        Option(help="A base model (folder or hub id), or scratch:WIDTHxLAYERS[xVOCABULARY] for a small new one."),
    ] = "scratch:128x4x4096",
    out: Out = Path("runs/train"),
    steps: Annotated[int | None, Option(help="Optimizer steps; default: one pass over the data.", min=0)] = None,
    epochs: Annotated[int, Option(help="Passes over the data, if no --steps are given.", min=1)] = 1,
    batch: Annotated[int, Option(help="Samples in a step, at least.", min=1)] = 1024,
    lr: Annotated[float, Option(help="Peak learning rate.", min=0)] = 2e-5,
    max_tokens: MaxTokens = 2048,
    intent: Annotated[bool, Option(help="Train with the intent as system turn.")] = True,
    save_every: Annotated[int, Option(help="Steps between two checkpoints.", min=1)] = 50,
    seed: Seed = 0,
    limit: Limit = None,
    device: Annotated[str | None, Option(help="Such as cuda or cpu; default: a GPU if there is one.")] = None,
) -> Results:
    """Train a user model on flipped dialogues, all weights, and save it as a Hugging Face folder in model/."""
    import torch

    from userlm import train as training
    from userlm.models.local import LocalModel

    path = conversations_file(data, "train")
    options = {"base": base, "steps": steps, "epochs": epochs, "batch": batch, "lr": lr}
    options |= {"max_tokens": max_tokens, "intent": intent, "save_every": save_every}
    run = Run.open(out, "train", {**options, "seed": seed, "limit": limit}, [path])
    if done := finished(run):
        return done
    conversations = list(islice(read_conversations(path), limit))
    without = sum(conversation.intent is None for conversation in conversations)
    if intent and without == len(conversations):
        raise InputError(f"{path}: no conversation has an intent; run `userlm intents` first, or give --no-intent")
    if intent and without:
        console.print(f"{without:,} of {len(conversations):,} have no intent: trained without a system turn")
    if not intent:
        conversations = [perplexity.without_intent(conversation) for conversation in conversations]
    if not math.isfinite(lr):
        raise InputError(f"--lr {lr}: give a number")
    saved = training.latest_checkpoint(run.folder)
    with console.status("loading the model"):
        if saved:
            local = LocalModel.load(str(saved), device, torch.float32)
        elif base.startswith("scratch:"):
            width, layers, vocabulary = _scratch(base)
            texts = (turn.text for conversation in conversations for turn in conversation.turns)
            local = training.from_scratch(texts, width, layers, vocabulary, seed, device)
        else:
            local = training.from_base(LocalModel.load(address.checkpoint(base), device, torch.float32))
    if max_tokens > local.window:
        console.print(f"rows are cut to the model's window of {local.window} tokens")
        max_tokens = local.window
    template = local.template()
    flips = training.flip_all(track(conversations, "flipping"), template, max_tokens)
    if not flips.samples:
        raise InputError(f"{path}: nothing to train on: no user turn fits {max_tokens} tokens")
    recipe = training.Recipe(
        epochs=epochs,
        steps=steps,
        batch=batch,
        lr=lr,
        max_tokens=max_tokens,
        save_every=save_every,
        seed=seed,
    )
    plan = training.plan(flips, recipe)
    log = Journal(run.path("log.jsonl"))
    logged = {row["step"] for row in log.rows}
    entry = log.rows[-1] if log.rows else {}
    with progress_bar() as progress:
        job = progress.add_task("training", total=len(plan))
        for entry in training.train(local, plan, recipe, run.folder):
            if entry["step"] not in logged:
                log.add(entry)
            progress.update(job, completed=entry["step"], description=f"training, loss {entry['loss']:.3f}")
    log.close(order=lambda row: row["step"])
    training.save(local, run.path("model"))
    results = {
        "conversations": len(conversations),
        "without_intent": without if intent else len(conversations),
        "samples": flips.samples,
        "dropped": flips.dropped,
        "seen": sum(len(row.targets) for step in plan for row in step),
        "steps": len(plan),
        "parameters": sum(p.numel() for p in local.model.parameters()),
        "loss": entry.get("loss"),
        "device": str(local.model.device),
    }
    console.print(f"{results['seen']:,} samples in {len(plan)} steps: {run.path('model')}")
    run.finish(results)
    training.drop_checkpoints(run.folder)
    return results


def ppl(
    data: Annotated[Path, Argument(help="Conversations: a folder (its test.jsonl) or a file.")],
    model: Annotated[str, Option(help="A user model: folder, training run or hub id.")],
    out: Out = Path("runs/ppl"),
    max_tokens: MaxTokens = 2048,
    limit: Limit = None,
    seed: Seed = 0,
) -> Results:
    """Perplexity of real user turns, with and without intent, with intervals over people."""
    path = conversations_file(data, "test")
    options = {"model": model, "max_tokens": max_tokens, "limit": limit, "seed": seed}
    run = Run.open(out, "ppl", options, [path, *address.files(model)])
    title = f"user turns of {path.name} under {model}"
    if done := finished(run):
        show_measures(title, done)
        return done
    conversations = list(islice(read_conversations(path), limit))
    local = address.local_model(model.removeprefix("trained:"))
    template = local.template()
    journal = Journal(run.path("scores.jsonl"))
    order = {conversation.id: i for i, conversation in enumerate(conversations)}
    scored = {(row["id"], row["intent"]): row["rows"] for row in journal.rows}
    rows: dict[bool, list[MeasureRow]] = {True: [], False: []}
    for conversation in track(conversations, "scoring", len(conversations)):
        for intent, view in ((False, perplexity.without_intent(conversation)), (True, conversation)):
            if (conversation.id, intent) not in scored:
                if intent and conversation.intent is None:
                    turns = range(len(conversation.user_turns))
                    person = conversation.user or conversation.id
                    found = [MeasureRow(f"{conversation.id}/{k}", person, None, "no intent") for k in turns]
                else:
                    found = list(perplexity.score_turns(view, local, template, min(max_tokens, local.window)))
                plain = [[row.key, row.cluster, row.stats, row.why] for row in found]
                journal.add({"id": conversation.id, "intent": intent, "rows": plain})
                scored[conversation.id, intent] = plain
            for key, cluster, stats, why in scored[conversation.id, intent]:
                rows[intent].append(MeasureRow(key, cluster, tuple(stats) if stats else None, why))
    journal.close(order=lambda row: (order[row["id"]], row["intent"]))
    columns = {
        label: {m.name: m for m in (perplexity.perplexity(rows[intent]), perplexity.bits_per_byte(rows[intent]))}
        for label, intent in (("without intent", False), ("with intent", True))
    }
    results = run.finish(measure_results(columns, {}))
    show_measures(title, results)
    return results


def _scratch(base: str) -> tuple[int, int, int]:
    parts = base.removeprefix("scratch:").split("x")
    plain = len(parts) in (2, 3) and all(part.isascii() and part.isdigit() and int(part) for part in parts)
    if not plain or int(parts[0]) % 32:
        raise InputError(
            f"--base {base}: write scratch:WIDTHxLAYERS or scratch:WIDTHxLAYERSxVOCABULARY, "
            "such as scratch:128x4x4096; the width is a multiple of 32"
        )
    width, layers, *vocabulary = map(int, parts)
    return width, layers, vocabulary[0] if vocabulary else 4096
