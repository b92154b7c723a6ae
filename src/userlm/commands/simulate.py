"""`userlm simulate`: conversations between a simulated user and an assistant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from userlm import address, inputs, loading
from userlm.assistants import solution
from userlm.bots import TIMEOUT
from userlm.commands.conversing import (
    calls_to_come,
    checked,
    collect,
    find_places,
    has_errors,
    merged,
)
from userlm.commands.costs import (
    Limits,
    check_caps,
    counted,
    estimate_conversations,
    price_option,
    read_price,
)
from userlm.commands.grading import (
    TASKS_HELP,
    check_functions,
    checks_calls,
    find_sandbox,
    show_uncalled,
    tasks_inputs,
    unsafe_local_option,
)
from userlm.commands.options import (
    BEHIND_USER,
    Failures,
    LocalModels,
    Output,
    Parts,
    System,
    User,
    limit_option,
    max_answer_tokens_option,
    option,
    out_folder,
    read_system,
    seed_option,
    workers_option,
)
from userlm.commands.parts import in_parts
from userlm.commands.steps import (
    PEOPLE,
    TASK_FILES,
    Results,
    conversations_in,
    finished,
    open_run,
)
from userlm.data.intents import complete_intent
from userlm.grading import Grader, solved_until
from userlm.journal import Answers, Journal, Recorded
from userlm.manifest import file_hash
from userlm.models.budget import Budget, Price
from userlm.rows import has_only_intents, read_conversations, read_starts
from userlm.runs import FinishedRun, Run
from userlm.show.formats import plural
from userlm.show.terminal import console
from userlm.simulate import simulate as simulate_all
from userlm.tasks import by_id, from_tasks, read_tasks, task_of
from userlm.text import has_words
from userlm.types import (
    Conversation,
    InputError,
    Origin,
    Role,
    Speaker,
    Task,
    Turn,
    without_outcome,
)


@dataclass(frozen=True, slots=True)
class Simulate:
    """Simulate conversations of a user and an assistant; with tasks, each stops once its task is
    solved, if no judge is needed to tell.

    $ userlm simulate --user trained:runs/train --assistant openai:gpt-4o-mini
    --intents runs/intents

    $ userlm simulate --user prompted:openai:gpt-4o --assistant oracle --tasks tasks.jsonl
    """

    user: User
    assistant: str = option(
        ...,
        "A chat model (folder, hub id, openai:NAME, URL#NAME), oracle, clarifier, replay:FILE, "
        "...; or your bot: py:MODULE:NAME, cmd:COMMAND, bot:FILE.toml.",
    )
    intents: Path | None = option(
        None,
        "Conversations with intents to start from: a file, or a folder with test.jsonl; or "
        'intents alone: {"intent": ...} a line, or a .txt file with one a line.',
        recorded=False,
    )
    tasks: str | None = option(
        None, f"{TASKS_HELP}. It starts from these instead.", recorded=False
    )
    out: Path = out_folder("runs/simulate")
    repeats: int = option(1, "Number of conversations for each intent or task.", min=1)
    keep_turns: int = option(
        0, "Number of turns to keep from each logged conversation.", min=0
    )
    max_turns: int = option(10, "Maximum number of user turns.", min=1)
    system: str | None = option(
        None,
        "System prompt for the assistant, if it is a model or takes messages: a file, or a text of "
        "several words.",
    )
    greeting: str | None = option(
        None, "What the assistant says first, before the user; it is not asked for it."
    )
    max_answer_tokens: int = max_answer_tokens_option()
    answer_timeout: float = option(
        TIMEOUT,
        "Seconds for an answer of cmd:, bot: or an async py:. A function that is not async cannot "
        "be stopped.",
        min=0.1,
        recorded=False,
    )
    unsafe_local: bool = unsafe_local_option()
    limit: int | None = limit_option()
    seed: int = seed_option()
    workers: int = workers_option(
        "conversations. A py: bot is called from as many threads at once; 1: from one alone"
    )
    models: LocalModels = LocalModels()
    user_price: str | None = price_option("--user-price", "the user's model")
    price: str | None = price_option("--price", "the assistant's model")
    limits: Limits = Limits()
    several: Parts = Parts()
    failures: Failures = Failures()
    output: Output = Output()


@in_parts
def simulate(options: Simulate, parts: Sequence[FinishedRun] = ()) -> Results:
    """Simulate the conversations and write them."""
    user = options.user.parsed
    assistant = address.parse(options.assistant)
    _check_greeting(options.greeting)
    prices = {
        "user": read_price("user", options.user_price),
        "assistant": read_price("assistant", options.price),
    }
    path = _starts_file(options.intents, options.tasks)
    tasks = read_tasks(options.tasks)[: options.limit] if options.tasks else []
    # A run that is complete, and the parts of one, may need no function that checks.
    is_complete = (options.out / "results.json").is_file()
    is_needed = not (parts or is_complete)
    task_files, stamps = tasks_inputs(options.tasks, tasks, is_needed)
    system = read_system(options.system)
    files = [*task_files, *options.user.files, *inputs.files(assistant), *system.files]
    if options.intents:
        files.append(path)
    stamps |= inputs.stamps(user, assistant)
    notes: Results = {BEHIND_USER: options.user.behind}
    if options.intents:
        notes[PEOPLE] = file_hash(path)
    elif task_files:
        notes[PEOPLE] = notes[TASK_FILES] = file_hash(*task_files)
    run = open_run("simulate", options, files, stamps, parts=parts, notes=notes)
    if done := finished(run, options, has_errors):
        return checked(options, done)

    if not parts:
        check_functions(tasks)
    starts = partial(_starts, options, path, tasks)
    if _completes_intents(options, path):
        _show_completed_intents(path, options.limit)
    is_part = options.several.part is not None
    places = find_places(options.user, starts(), path, may_be_empty=is_part)
    if parts:
        return merged(run, options, places, parts, ("user", "assistant"))
    if assistant.kind == "oracle":
        _show_unsolvable(tasks)
    budget = Budget(options.limits.caps, run.path("usage.jsonl"))
    speakers = _speakers(options, run, budget, tasks, system, prices)
    check_caps(budget.caps, bool(budget.sides))
    turns = Journal(run.path("turns.jsonl"))
    answers = Answers(turns)
    turns_expected = 1 if user.kind == "single" else options.max_turns
    estimate_conversations(
        budget,
        speakers,
        starts(),
        lambda start: calls_to_come(start, answers, turns_expected),
    )
    grader = Grader(sandbox=find_sandbox(tasks, options.unsafe_local))
    by_hand = user.is_person or assistant.is_person
    stopped = simulate_all(
        Recorded(speakers["user"], answers),
        Recorded(speakers["assistant"], answers),
        starts(),
        options.max_turns,
        solved_until(grader, tasks),
        # Only one conversation can use the keyboard.
        1 if by_hand else options.workers,
    )
    shown = "" if by_hand else "simulating"  # a bar would be drawn over what is typed
    results = collect(run, options, places, stopped, turns, budget, speakers, shown)
    _show_uncalled(run, tasks)
    return results


def _speakers(
    options: Simulate,
    run: Run,
    budget: Budget,
    tasks: Sequence[Task],
    system: System,
    prices: Mapping[str, Price | None],
) -> dict[Role, Speaker]:
    """Return the user and the assistant, whose calls the budget counts."""
    address_of = {
        "user": options.user.parsed,
        "assistant": address.parse(options.assistant),
    }
    loaded: dict[Role, Speaker] = {
        "user": options.user.load(options.seed, options.models),
        "assistant": loading.assistant(
            address_of["assistant"],
            tasks=tasks,
            seed=options.seed,
            system=system.text,
            max_tokens=options.max_answer_tokens,
            local=options.models.settings,
            run=run.nonce,
            timeout=options.answer_timeout,
        ),
    }
    return {
        role: counted(budget, role, address_of[role], speaker, prices[role])
        for role, speaker in loaded.items()
    }


def _show_uncalled(run: Run, tasks: Sequence[Task]) -> None:
    """Say so if tasks are checked for calls of tools, and no answer has one."""
    if not any(map(checks_calls, tasks)):
        return
    known = by_id(tasks)
    made = read_conversations(run.path("conversations.jsonl"))
    show_uncalled(str(run.folder), ((task_of(one, known), one) for one in made))


def _starts(
    options: Simulate, path: Path, tasks: Sequence[Task]
) -> Iterator[Conversation]:
    """Yield the beginnings of conversations, by the tasks if there are any, else by the logs."""
    share = options.several.share
    if options.tasks:
        own = [task for task in tasks if share.has(task.id)]
        ungreeted = from_tasks(own, options.repeats)
    else:
        every: Iterator[Conversation] = islice(read_starts(path), options.limit)
        if _completes_intents(options, path):
            every = map(_with_whole_intent, every)
        logs = (log for log in every if share.has(log.id))
        ungreeted = _from_logs(logs, options.repeats, options.keep_turns)
    return (_greeted(start, options.greeting) for start in ungreeted)


def _completes_intents(options: Simulate, path: Path) -> bool:
    """Whether the intents are the words of a person, for a user that is trained on whole ones."""
    is_trained = options.user.parsed.form == "trained"
    return bool(options.intents) and is_trained and has_only_intents(path)


def _with_whole_intent(start: Conversation) -> Conversation:
    return replace(start, intent=complete_intent(start.intent or "")[0])


def _show_completed_intents(path: Path, limit: int | None) -> None:
    """Print how many intents were completed, and how many have another form all the same."""
    given = [start.intent or "" for start in islice(read_starts(path), limit)]
    found = [(intent, *complete_intent(intent)) for intent in given]
    changed = [note for intent, whole, note in found if whole != intent]
    others = [note for intent, whole, note in found if note and whole == intent]
    for notes in filter(None, (changed, others)):
        console.print(
            f"{path}, in {len(notes):,} of {plural(len(given), 'intent')}: {notes[0]}",
            style="yellow",
            soft_wrap=True,
        )


def _starts_file(intents: Path | None, tasks: str | None) -> Path:
    if intents and not tasks:
        return conversations_in(intents)
    if tasks and not intents:
        return Path(tasks)
    raise InputError(
        "give either --intents (conversations with intents) or --tasks, and not both"
    )


def _check_greeting(greeting: str | None) -> None:
    if greeting is not None and not has_words(greeting):
        raise InputError("--greeting is empty; give what the assistant says first")


def _greeted(start: Conversation, greeting: str | None) -> Conversation:
    """Return a start in which the assistant has said something, if nothing was said before."""
    if greeting is None or start.turns:
        return start
    return replace(start, turns=(Turn("assistant", greeting),))


def _show_unsolvable(tasks: Sequence[Task]) -> None:
    """Print how many tasks the oracle cannot solve, whatever the user says."""
    unsolvable = sum(1 for task in tasks if task.check and not solution(task))
    if unsolvable:
        console.print(
            f"oracle: it has no answer to {unsolvable:,} of {plural(len(tasks), 'task')}, which no "
            'user can help; give them meta = { solution = "…" }, a right answer',
            style="yellow",
            soft_wrap=True,
        )


def _from_logs(
    logs: Iterable[Conversation], repeats: int, keep_turns: int
) -> Iterator[Conversation]:
    """Return a conversation that starts with the first turns of a log and its intent."""
    for log in logs:
        kept = tuple(replace(turn, meta={}) for turn in log.turns[:keep_turns])
        kept_user_turns = sum(turn.role == "user" for turn in kept)
        for repeat in range(repeats):
            yield replace(
                log,
                id=f"{log.id}#{repeat}",
                turns=kept,
                stop=None,
                ended=False,
                meta=without_outcome(log.meta),
                origin=Origin(
                    log.id,
                    kept_user_turns,
                    repeat=repeat,
                    task=log.origin.task if log.origin else None,
                ),
            )
