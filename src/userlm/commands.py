"""The verbs, one plain function each: open a run, resolve addresses, call pure functions, write down.

Every function can be called from Python just as from the command line, and returns what `results.json` holds.
A verb called again on the same folder goes on where it stopped, or says that there is nothing left to do.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from typer import Argument, Option

from userlm import address, flip
from userlm.data import clean as cleaning
from userlm.data import intents as writing
from userlm.data import sources
from userlm.metrics import extrinsic, intrinsic, perplexity
from userlm.simulate import converse, never, respond_all
from userlm.simulate import simulate as simulate_all
from userlm.store import (
    SPLITS,
    Journal,
    Outputs,
    Recorded,
    Run,
    count_lines,
    dumps,
    measure_record,
    read_conversations,
    read_rows,
    replacing,
    to_record,
    verb_of,
    write_conversations,
    write_lines,
)
from userlm.tasks import read_tasks, solved, task_of
from userlm.terminal import console, progress_bar, show_counts, show_measures, show_turn, track
from userlm.types import Conversation, InputError, Measure, MeasureRow, Task, without_run

Results = dict[str, Any]
COMMIT_EVERY = 2000  # lines between two commits of a stage that streams

Out = Annotated[Path, Option(help="Folder of this run.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Limit = Annotated[int | None, Option(help="Use only the first so many.", min=1, max=2**31)]
Workers = Annotated[int, Option(help="How many conversations at once.", min=1)]
Temperature = Annotated[float | None, Option(help="Of the user's draws; 0 is greedy. Default: each user's own.")]
TopP = Annotated[float | None, Option(help="Nucleus of the user's draws. Default: each user's own.")]
MaxTokens = Annotated[int, Option(help="Longest row, in tokens; longer ones are shortened from the left.", min=16)]


# --- data ------------------------------------------------------------------------------------------------


def import_(
    logs: Annotated[list[Path], Argument(help="Files (.jsonl, .jsonl.gz, .parquet) or folders of them.")],
    out: Out = Path("runs/import"),
    source: Annotated[
        str | None,
        Option(help=f"Layout of the logs: {', '.join(sources.SOURCES)}. Default: guessed line by line."),
    ] = None,
    strict: Annotated[bool, Option(help="Stop at the first bad line instead of setting it aside.")] = False,
    limit: Limit = None,
) -> Results:
    """Read raw logs into conversations. Bad lines are set aside in dropped.jsonl with the reason."""
    if source is not None and source not in sources.SOURCES:
        raise InputError(f"--source {source}: unknown layout; there are {', '.join(sources.SOURCES)}")
    files = _log_files(logs)
    run = Run.open(out, "import", {"source": source, "strict": strict, "limit": limit}, files)
    if done := _finished(run):
        return done
    outputs = Outputs(run, "conversations.jsonl", "dropped.jsonl")
    counts = Counter(outputs.state.get("counts", {}))
    begin = (outputs.state.get("file", 0), outputs.state.get("line", 0))
    seen = {line.row["id"] for line in read_rows(run.path("conversations.jsonl"), may_be_empty=True)}
    lines = ((i, file, line) for i, file in enumerate(files) for line in read_rows(file))
    names = _unique_names(files)
    for i, file, line in track(islice(lines, limit), "importing", _total(files, limit)):
        if (i, line.number) <= begin:
            continue
        counts["in"] += 1
        try:
            if line.error:
                raise sources.Rejected(line.reason, f"the line {line.error}")
            imported = sources.convert(line.row, source, f"{names[i]}-{line.number}")
            conversation = imported.conversation
            if conversation.id in seen:
                raise sources.Rejected("duplicate id", f"the id {conversation.id!r} was used before")
        except sources.Rejected as error:
            if strict:
                raise InputError(f"{file}, line {line.number}: {error}") from None
            counts[f"dropped: {error.reason}"] += 1
            where = {"file": str(file), "line": line.number, "reason": error.reason, "error": str(error)}
            outputs.write("dropped.jsonl", where | ({"raw": line.raw} if line.error else {"row": line.row}))
        else:
            seen.add(conversation.id)
            counts["out"] += 1
            for note, count in imported.notes.items():
                counts[f"note: {note}"] += count
            outputs.write("conversations.jsonl", to_record(conversation))
        if counts["in"] % COMMIT_EVERY == 0:
            outputs.commit({"file": i, "line": line.number, "counts": counts})
    if not counts["out"]:
        show_counts(str(run.folder), counts)
        raise InputError(
            f"none of the {counts['in']} lines is a conversation; {run.path('dropped.jsonl')} says why"
        )
    return _finish_counts(run, outputs, counts)


def clean(
    logs: Annotated[Path, Argument(help="Imported conversations: a run folder or a file.")] = Path("runs/import"),
    out: Out = Path("runs/clean"),
    languages: Annotated[str, Option(help="Languages to keep, comma-separated codes; 'all' keeps all.")] = "en",
    flagged: Annotated[bool, Option(help="Keep conversations flagged as toxic or redacted.")] = False,
    ngram: Annotated[int, Option(help="Length of the template filter's word n-grams.", min=1)] = 7,
    template_limit: Annotated[
        int, Option(help="Drop a conversation whose first turn has an n-gram that occurs more often.", min=0)
    ] = 100,
    shares: Annotated[str, Option(help="Shares of train, valid and test, in percent of the people.")] = "90/5/5",
    seed: Seed = 0,
    limit: Limit = None,
) -> Results:
    """Filter conversations, each drop with a reason, and split them 90/5/5 by person."""
    path = _conversations_file(logs)
    parts = _shares(shares)
    options = {"languages": languages, "flagged": flagged, "ngram": ngram, "template_limit": template_limit}
    run = Run.open(out, "clean", {**options, "shares": shares, "seed": seed, "limit": limit}, [path])
    if done := _finished(run):
        return done
    wanted = None if languages == "all" else tuple(code.strip() for code in languages.split(","))

    def unfit(conversation: Conversation) -> str | None:
        return cleaning.foreign(conversation, wanted) or (None if flagged else cleaning.flagged(conversation))

    def read() -> Iterator[Conversation]:
        return islice(read_conversations(path), limit)

    total = _total([path], limit)
    table = cleaning.count_ngrams(
        (c for c in track(read(), "counting n-grams", total) if not unfit(c)), ngram, above=template_limit
    )
    outputs = Outputs(run, *(f"{split}.jsonl" for split in SPLITS), "dropped.jsonl")
    counts = Counter(outputs.state.get("counts", {}))
    for number, conversation in enumerate(track(read(), "cleaning", total), 1):
        if number <= outputs.state.get("line", 0):
            continue
        counts["in"] += 1
        if reason := unfit(conversation) or cleaning.template(conversation, table, ngram, template_limit):
            counts[f"dropped: {reason}"] += 1
            dropped = replace(conversation, meta={**conversation.meta, "dropped": reason})
            outputs.write("dropped.jsonl", to_record(dropped))
        else:
            split = cleaning.split(conversation, seed, parts)
            counts["out"] += 1
            counts[f"{split}: conversations"] += 1
            counts[f"{split}: samples"] += sum(1 for _ in flip.samples(conversation))
            outputs.write(f"{split}.jsonl", to_record(conversation))
        if number % COMMIT_EVERY == 0:
            outputs.commit({"line": number, "counts": counts})
    return _finish_counts(run, outputs, counts)


def intents(
    data: Annotated[Path, Argument(help="Conversations: the folder of `clean`, or a file.")] = Path("runs/clean"),
    out: Out = Path("runs/intents"),
    overwrite: Annotated[bool, Option(help="Write a new intent where there is one already.")] = False,
    limit: Limit = None,
) -> Results:
    """Give each conversation an intent: one generic sentence on what the user is after.

    The writer is extractive: it picks key phrases from the user's turns. It is an offline stand-in for a
    language model, and its intents are marked as such.
    """
    paths = _split_files(data)
    run = Run.open(out, "intents", {"overwrite": overwrite, "limit": limit}, paths.values())
    if done := _finished(run):
        return done
    counts: Counter[str] = Counter()
    leaks: list[float | None] = []

    def write(conversation: Conversation) -> Conversation:
        counts["in"] += 1
        if conversation.intent is not None and not overwrite:
            counts["note: had an intent"] += 1
            leaks.append(writing.leakage(conversation.intent, conversation))
            return conversation
        intent = writing.extractive(conversation)
        if intent is not None and (reason := writing.check(intent, conversation)):
            counts[f"note: no intent, {reason}"] += 1
            intent = None
        elif intent is None:
            counts["note: no intent, nothing to say"] += 1
        else:
            counts["out"] += 1
            leaks.append(writing.leakage(intent, conversation))
        meta = {**conversation.meta, "intent_by": "extractive"} if intent else conversation.meta
        return replace(conversation, intent=intent, meta=meta)

    for name, path in paths.items():
        found = read_conversations(path, may_be_empty=True)  # few people: nobody in a split
        conversations = track(islice(found, limit), f"intents for {name}", _total([path], limit))
        write_conversations(run.path(f"{name}.jsonl"), map(write, conversations))
    known = [leak for leak in leaks if leak is not None]
    leakage = sum(known) / len(known) if known else None
    written = counts["out"] > 0
    show_counts("intents (written by the extractive stand-in)" if written else "intents", counts)
    if leakage is not None:
        console.print(f" share of a first turn's content words found in its intent: {leakage:.2f}")
    return run.finish({"counts": _sorted(counts), "leakage": leakage})


# --- training and perplexity -----------------------------------------------------------------------------


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

    path = _conversations_file(data, "train")
    options = {"base": base, "steps": steps, "epochs": epochs, "batch": batch, "lr": lr}
    options |= {"max_tokens": max_tokens, "intent": intent, "save_every": save_every}
    run = Run.open(out, "train", {**options, "seed": seed, "limit": limit}, [path])
    if done := _finished(run):
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
    path = _conversations_file(data, "test")
    options = {"model": model, "max_tokens": max_tokens, "limit": limit, "seed": seed}
    run = Run.open(out, "ppl", options, [path, *address.files(model)])
    title = f"user turns of {path.name} under {model}"
    if done := _finished(run):
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
    results = run.finish(_measure_results(columns, {}))
    show_measures(title, results)
    return results


# --- conversations ---------------------------------------------------------------------------------------


def respond(
    data: Annotated[Path, Argument(help="Real conversations: a folder (its test.jsonl) or a file.")],
    user: Annotated[
        str, Option(help="trained:MODEL, prompted:MODEL, replay:FILE, script:FILE or py:MODULE:NAME.")
    ],
    out: Out = Path("runs/respond"),
    first: Annotated[bool, Option(help="Also ask for first turns, where nothing was said yet.")] = True,
    temperature: Temperature = None,
    top_p: TopP = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 16,
) -> Results:
    """Ask a user for one turn after every prefix of real conversations: what would it say, or would it leave?"""
    path = _conversations_file(data, "test")
    options = {"user": user, "first": first, "temperature": temperature, "top_p": top_p}
    run = Run.open(out, "respond", {**options, "limit": limit, "seed": seed}, [path, *address.files(user)])
    if done := _finished_without_errors(run):
        return done
    prefixes = [
        sample.prefix
        for conversation in islice(read_conversations(path), limit)
        for sample in flip.samples(conversation)
        if first or sample.k
    ]
    _need_intents(user, prefixes, path)
    speaker = address.user(user, seed=seed, temperature=temperature, top_p=top_p)
    journal = Journal(run.path("turns.jsonl"))
    answered = respond_all(Recorded(speaker, journal), prefixes, workers)
    return _collect(run, prefixes, answered, journal, "responding")


def simulate(
    user: Annotated[
        str, Option(help="trained:MODEL, prompted:MODEL, replay:FILE, script:FILE or py:MODULE:NAME.")
    ],
    assistant: Annotated[
        str,
        Option(help="A chat model (folder, hub id, openai:NAME, URL#NAME), oracle, clarifier, replay:FILE, ..."),
    ],
    seeds: Annotated[Path | None, Option(help="Conversations whose intents to start from.")] = None,
    tasks: Annotated[Path | None, Option(help="Tasks to start from instead (.jsonl).")] = None,
    out: Out = Path("runs/simulate"),
    repeats: Annotated[int, Option(help="Conversations for each intent or task.", min=1)] = 1,
    keep_turns: Annotated[
        int, Option(help="Keep this many logged turns of each seed and go on there.", min=0)
    ] = 0,
    max_turns: Annotated[int, Option(help="User turns at most.", min=1)] = 10,
    system: Annotated[str | None, Option(help="System prompt of an assistant that is a model.")] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    limit: Limit = None,
    seed: Seed = 0,
    workers: Workers = 16,
) -> Results:
    """Let a user talk to an assistant, many times. With tasks, a conversation stops when its task is solved."""
    if (seeds is None) == (tasks is None):
        raise InputError("give either --seeds (conversations with intents) or --tasks, and not both")
    path = _conversations_file(seeds, "test") if seeds else tasks
    assert path is not None
    options: dict[str, Any] = {
        "user": user,
        "assistant": assistant,
        "repeats": repeats,
        "keep_turns": keep_turns,
    }
    options |= {"max_turns": max_turns, "system": system, "temperature": temperature, "top_p": top_p}
    inputs = [path, *address.files(user), *address.files(assistant)]
    run = Run.open(out, "simulate", {**options, "limit": limit, "seed": seed}, inputs)
    if done := _finished_without_errors(run):
        return done
    known: dict[str, Task] = {}
    if tasks:
        known = {task.id: task for task in read_tasks(path)[:limit]}
        starts = [_from_task(task, repeat) for task in known.values() for repeat in range(repeats)]
    else:
        logged = islice(read_conversations(path), limit)
        starts = [_from_log(log, repeat, keep_turns) for log in logged for repeat in range(repeats)]

    def until(conversation: Conversation) -> str | None:
        task = known.get(str(conversation.meta.get("task")))
        return solved(task)(conversation) if task else never(conversation)

    _need_intents(user, starts, path)
    user_side = address.user(user, seed=seed, temperature=temperature, top_p=top_p)
    assistant_side = address.assistant(assistant, tasks=known.values(), seed=seed, system=system)
    journal = Journal(run.path("turns.jsonl"))
    ended = simulate_all(
        Recorded(user_side, journal), Recorded(assistant_side, journal), starts, max_turns, until, workers
    )
    return _collect(run, starts, ended, journal, "simulating")


def chat(
    user: Annotated[
        str | None, Option(help="Who talks to you: trained:MODEL, prompted:MODEL, script:FILE, ...")
    ] = None,
    assistant: Annotated[str | None, Option(help="Who answers you, with --seat user.")] = None,
    seat: Annotated[str, Option(help="Yours: assistant, or user.")] = "assistant",
    intent: Annotated[str | None, Option(help="What the user is after, one sentence.")] = None,
    save: Annotated[Path | None, Option(help="Append the conversation to this file (.jsonl).")] = None,
    max_turns: Annotated[int, Option(help="User turns at most.", min=1)] = 20,
    seed: Seed = 0,
) -> Results:
    """You are the assistant, and a simulated user talks to you; or the other way round.

    An empty line leaves; /info tells what is known about the last turn: P(end), drafts, tokens.
    """
    if seat not in ("assistant", "user"):
        raise InputError(f"--seat {seat}: your seat is 'assistant' or 'user'")
    other = user if seat == "assistant" else assistant
    if other is None:
        wanted = "--user trained:MODEL" if seat == "assistant" else "--assistant MODEL"
        raise InputError(f"who is in the other seat? give {wanted}")
    if seat == "assistant" and other.startswith("prompted:") and intent is None:
        raise InputError("a prompted user needs to know what it is after; give --intent")
    if save and save.suffix != ".jsonl":
        raise InputError(f"--save {save}: conversations are saved as lines of a .jsonl file")
    you = _Seat(seat)
    if seat == "assistant":
        user_side, assistant_side = address.user(other, seed=seed), address.assistant("human", ask=you.ask)
    else:
        user_side, assistant_side = address.user("human", ask=you.ask), address.assistant(other, seed=seed)
    saved = save.open("a", encoding="utf-8") if save else None  # before the talk, not after it
    start = Conversation(f"chat-{seed}", intent=intent)
    ended = converse(user_side, assistant_side, start, max_turns, until=you.watch)
    leaves = ended.next_role
    if len(ended.turns) > len(you.seen.turns):  # last words, said with a stop
        leaves = ended.turns[-1].role
        you.watch(ended)
    why = {"end": "left", "error": f"could not answer: {ended.meta.get('error')}"}.get(
        ended.stop or "", ended.stop
    )
    console.print(f"{'you' if leaves == seat else f'the {leaves}'} {why}", style="dim")
    record = to_record(replace(ended, id=f"chat-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))
    if saved:
        with saved:
            saved.write(dumps(record) + "\n")
    return record


class _Seat:
    """Somebody in the terminal, on one side of a conversation that they see as it grows."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.seen = Conversation()

    def watch(self, conversation: Conversation) -> str | None:
        """Show what the other side just said; it is no reason to stop."""
        self.seen = conversation
        turn = conversation.turns[-1]
        if turn.role != self.role:
            show_turn(turn)
        return None

    def ask(self, conversation: Conversation) -> str | None:
        """A line of theirs; `None` leaves."""
        while True:
            try:
                text = console.input(Text(f"{self.role} (you)> ", style="bold")).strip()
            except (EOFError, KeyboardInterrupt):
                return None
            if text != "/info":
                return text or None
            known = dict(self.seen.turns[-1].meta) if self.seen.turns else {}
            console.print(dumps(known) if known else "nothing is known about it", style="dim")


# --- scores ----------------------------------------------------------------------------------------------


def score(
    runs: Annotated[list[Path], Argument(help="Folders of `simulate` and `respond`.")],
    human: Annotated[Path | None, Option(help="Real conversations for the human row: a folder or a file.")] = None,
    tasks: Annotated[Path | None, Option(help="The tasks that were talked about (.jsonl).")] = None,
    out: Out = Path("runs/score"),
) -> Results:
    """Measure simulated users, and real people with the same functions. Intervals are over people or intents."""
    inputs = {run.name: _conversations_file(run) for run in runs}
    if len(inputs) < len(runs) or (human and "human" in inputs):
        raise InputError("two rows would have the same name (runs are named by their folders); rename one folder")
    people = _conversations_file(human, "test") if human else None
    extra = [path for path in (people, tasks) if path]
    run = Run.open(out, "score", {"human": people, "tasks": tasks}, [*inputs.values(), *extra])
    if done := _finished(run):
        show_measures("measures", done)
        return done
    known = {task.id: task for task in read_tasks(tasks)} if tasks else {}
    columns: dict[str, dict[str, Measure]] = {}
    stand_ins: dict[str, str] = {}
    for name, path in track(list(inputs.items()), "scoring", len(inputs)):
        conversations = list(read_conversations(path))
        asked = verb_of(path.parent) == "respond"
        found = _of_responses(conversations) if asked else _of_simulations(conversations, known)
        columns[name] = {m.name: m for m in found}
        stand_ins[name] = _stand_ins(conversations)
    if people:
        logs = [replace(log, meta=without_run(log.meta)) for log in read_conversations(people)]
        columns["human"] = {m.name: m for m in _of_people(logs)}
    write_lines(run.path("scores.jsonl"), _score_lines(columns))
    results = run.finish(_measure_results(columns, stand_ins))
    show_measures("measures", results)
    return results


def _of_people(conversations: Sequence[Conversation]) -> list[Measure]:
    return [
        intrinsic.first_turn_diversity(conversations),
        intrinsic.intent_decomposition(conversations),
        intrinsic.words_per_turn(conversations),
        intrinsic.turns_per_conversation(conversations),
    ]


def _of_simulations(conversations: Sequence[Conversation], tasks: Mapping[str, Task]) -> list[Measure]:
    measures = _of_people(conversations)
    if any(task_of(conversation, tasks) for conversation in conversations):
        measures.append(extrinsic.intent_coverage(conversations, tasks))
        measures.append(extrinsic.assistant_score(conversations, tasks))
    return measures


def _of_responses(responses: Sequence[Conversation]) -> list[Measure]:
    return [
        intrinsic.first_turn_diversity([response for response in responses if response.meta["own_from"] == 0]),
        intrinsic.intent_decomposition(responses),
        intrinsic.words_per_turn(responses),
        intrinsic.termination(responses),
        intrinsic.termination_auroc(responses),
    ]


def _score_lines(columns: Mapping[str, Mapping[str, Measure]]) -> Iterator[dict[str, Any]]:
    for name, measures in columns.items():
        for measure in measures.values():
            for row in measure.rows:
                line = {"run": name, "measure": measure.name, "key": row.key, "stats": row.stats}
                yield line | ({"why": row.why} if row.why else {})


def _measure_results(columns: Mapping[str, Mapping[str, Measure]], stand_ins: Mapping[str, str]) -> Results:
    return {
        name: [measure_record(m) | {"stand_in": stand_ins.get(name, "")} for m in measures.values()]
        for name, measures in columns.items()
    }


def _stand_ins(conversations: Iterable[Conversation]) -> str:
    """Which stand-ins speak in the conversations."""
    spoke = {turn.meta["stand_in"] for c in conversations for turn in c.turns if "stand_in" in turn.meta}
    return ", ".join(sorted(spoke))


def report(
    runs: Annotated[list[Path], Argument(help="Finished run folders, of any verb.")],
    out: Annotated[Path, Option(help="Folder for report.html and report.md.")] = Path("runs/report"),
) -> Results:
    """One page from finished runs: figures with intervals, plots, transcripts, and how it was made."""
    from userlm import report as page

    found = [page.read_run(run) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    written = {"html": out / "report.html", "md": out / "report.md"}
    for kind, text in (("html", page.html(found)), ("md", page.markdown(found))):
        with replacing(written[kind]) as partial:
            partial.write_text(text, encoding="utf-8")
    console.print(f"report: {written['html']}")
    return {kind: str(path) for kind, path in written.items()}


# --- files and folders -----------------------------------------------------------------------------------


def _log_files(paths: Iterable[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".parquet")))
            if not inside:
                raise InputError(f"{path} holds no .jsonl, .jsonl.gz or .parquet file")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist; give log files or folders of them")
    return files


def _conversations_file(path: Path, split: str = "test") -> Path:
    """The conversations of a run folder (`conversations.jsonl`, else those of the split), or the file itself."""
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path} does not exist; give a run folder or a file of conversations")
        return path
    if (path / "run.json").is_file() and not (path / "results.json").is_file():
        raise InputError(f"{path} is not complete; run its command again first")
    for name in ("conversations.jsonl", f"{split}.jsonl"):
        if (path / name).is_file():
            if not (path / name).stat().st_size:
                raise InputError(
                    f"{path / name} holds no conversation (few people?); give another file or --shares"
                )
            return path / name
    raise InputError(f"{path} holds neither conversations.jsonl nor {split}.jsonl; give the folder of a run")


def _split_files(path: Path) -> dict[str, Path]:
    splits = {split: path / f"{split}.jsonl" for split in SPLITS if (path / f"{split}.jsonl").is_file()}
    return splits or {"conversations": _conversations_file(path)}


def _unique_names(files: Sequence[Path]) -> list[str]:
    """For each file a name that no other has, for the ids of rows that carry none."""
    stems = [re.sub(r"\.(jsonl|jsonl\.gz|parquet)$", "", file.name) for file in files]
    return [stem if stems.count(stem) == 1 else f"{i}:{stem}" for i, stem in enumerate(stems)]


def _total(files: Sequence[Path], limit: int | None) -> int | None:
    counted = count_lines(files)
    return limit if counted is None else min(counted, limit or counted)


def _shares(shares: str) -> tuple[float, float, float]:
    parts = shares.split("/")
    if len(parts) != 3 or not all(part.isdigit() for part in parts) or sum(map(int, parts)) != 100:
        raise InputError(f"--shares {shares}: write three numbers that add up to 100, such as 90/5/5")
    train, valid, test = (int(part) / 100 for part in parts)
    return train, valid, test


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


# --- conversations: where they begin and how they are collected --------------------------------------------


def _from_task(task: Task, repeat: int) -> Conversation:
    return Conversation(f"{task.id}#{repeat}", intent=task.intent, meta={"task": task.id, "repeat": repeat})


def _from_log(log: Conversation, repeat: int, keep_turns: int) -> Conversation:
    """A seed; `own_from` in its meta says which user turn will be the first that is not the person's."""
    kept = sum(turn.role == "user" for turn in log.turns[:keep_turns])
    own = {"own_from": kept} if kept else {}
    return replace(
        log,
        id=f"{log.id}#{repeat}",
        turns=tuple(replace(turn, meta={}) for turn in log.turns[:keep_turns]),
        stop=None,
        ended=False,
        meta={**without_run(log.meta), "conversation": log.id, "repeat": repeat, **own},
    )


def _collect(
    run: Run, starts: Sequence[Conversation], ended: Iterator[Conversation], journal: Journal, doing: str
) -> Results:
    """Write conversations down as they end; in the finished files they stand in the order of their starts."""
    order = {start.id: i for i, start in enumerate(starts)}
    path = run.path("conversations.jsonl")
    path.unlink(missing_ok=True)
    so_far = Journal(path)
    stops: Counter[str] = Counter()
    conversations = []
    for conversation in track(ended, doing, len(starts)):
        so_far.add(to_record(conversation))
        stops[conversation.stop or "answered"] += 1
        conversations.append(conversation)
    journal.close(order=lambda row: (order[row["id"]], row["n"]))
    so_far.close()
    conversations.sort(key=lambda conversation: order[conversation.id])
    write_conversations(path, conversations)
    used = [turn.meta for conversation in conversations for turn in conversation.turns]
    used += [conversation.meta["last"] for conversation in conversations if "last" in conversation.meta]
    results = {
        "conversations": len(conversations),
        "stops": _sorted(stops),
        "tokens_in": sum(meta.get("tokens_in", 0) for meta in used),
        "tokens_out": sum(meta.get("tokens_out", 0) for meta in used),
    }
    shown = ", ".join(f"{count} {stop}" for stop, count in stops.most_common())
    console.print(f"{len(conversations)} conversations ({shown}): {path}")
    if stand_ins := _stand_ins(conversations):
        console.print(f"no language model answered here: {stand_ins} is a stand-in", style="dim")
    if errors := [c.meta["error"] for c in conversations if c.stop == "error"]:
        again = "the same command tries these again"
        console.print(f"{len(errors)} ended in an error ({again}), the first: {errors[0]}", style="yellow")
    return run.finish(results)


def _finished(run: Run) -> Results | None:
    if (results := run.results) is not None:
        console.print(f"{run.folder} is complete already; nothing to do", style="dim")
    return results


def _finished_without_errors(run: Run) -> Results | None:
    """A run of which some conversations ended in an error is taken up again; what was answered stays."""
    if run.results and run.results["stops"].get("error"):
        run.path("results.json").unlink()
    return _finished(run)


def _need_intents(user: str, starts: Sequence[Conversation], path: Path) -> None:
    without = sum(start.intent is None for start in starts)
    if user.startswith("prompted:") and without:
        raise InputError(
            f"{path}: {without} of {len(starts)} conversations have no intent, and a prompted user needs one; "
            "run `userlm intents` first"
        )


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _finish_counts(run: Run, outputs: Outputs, counts: Counter[str]) -> Results:
    outputs.close()
    show_counts(str(run.folder), counts)
    return run.finish({"counts": _sorted(counts)})
