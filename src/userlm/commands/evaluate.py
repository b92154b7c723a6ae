"""`userlm evaluate`: which of several assistants does tasks better, with which users.

    cells/ASSISTANT--USER/          a run of `simulate`
    cells/ASSISTANT--USER/score/    the run of `score` on it
    cells/ASSISTANT--single/        the same with all of a task said in one prompt
    cells/ASSISTANT--USER--replay/  the user's turns again, without what the task does not demand

The id of a conversation, `task#repeat`, and the seed decide all that is random, so conversations
with the same id can be compared between cells. A cell that is finished is not run again.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from userlm import address, inputs, loading
from userlm.bots import TIMEOUT
from userlm.commands.conversing import has_errors
from userlm.commands.costs import (
    JUDGE_PRICE,
    Limits,
    check_caps,
    check_judge,
    check_price,
    read_price,
)
from userlm.commands.grading import (
    TASKS_HELP,
    Grading,
    find_sandbox,
    standing,
    tasks_inputs,
)
from userlm.commands.options import (
    COSTS,
    EMBEDDED_USER,
    OUTPUT,
    Failures,
    LocalModels,
    Output,
    User,
    UserSettings,
    limit_option,
    max_answer_tokens_option,
    option,
    out_folder,
    read_system,
    seed_option,
    workers_option,
)
from userlm.commands.score import Score, score
from userlm.commands.simulate import Simulate, simulate
from userlm.commands.steps import Results, finish, finished, open_run, unshown
from userlm.grading import NO_SANDBOX
from userlm.json_files import read_json, write_lines
from userlm.metrics import catalog
from userlm.metrics.extrinsic import ADDS
from userlm.metrics.gate import GATED, Gate
from userlm.models.budget import Amount, spent
from userlm.rows import read_conversations, read_rows, write_conversations
from userlm.runs import CELLS, Run, discard, is_stale, rename_input, take_over
from userlm.show.formats import plural
from userlm.show.terminal import console
from userlm.stats import MIN_CLUSTERS
from userlm.tasks import read_tasks
from userlm.text import has_words
from userlm.types import (
    Conversation,
    InputError,
    ModelError,
    RubricCheck,
    Task,
    Turn,
)

SCORE = "score"
"""The folder of the score in that of a cell."""
SINGLE = "single"
"""The address and the name of the user who says everything in one prompt."""
TALKS = "conversations.jsonl"
TURNS = "turns.jsonl"
WITHOUT_ADDED = "without-added.jsonl"
"""The conversations of a cell, their turns as they were answered, and the conversations without
added demands."""
AGAIN = "--replay"
REPLAYED = ", without added demands"
"""End the folder and the name of a user whose turns are said again without these."""
CONTROLS = ("oracle", "clarifier")
"""The assistants of `--controls`."""
KEPT = ("turns per conversation",)
"""Measures that are kept of a cell, beside those of its tasks."""


def _prices_option(flag: str, of: str) -> Any:
    return option(
        (),
        f"US dollars per million input and output tokens of the {of}s' models, such as 2.50/10: "
        f"one for all, or one for each {of} that is a model, in their order.",
        flag=flag,
        metavar="IN/OUT",
        panel=COSTS,
        recorded=False,
    )


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Have users talk with assistants about the same tasks, each assistant with each user, and say
    how many tasks are solved.

    Each assistant is also given every task in one prompt. The limits hold for all calls together.

    $ userlm evaluate --assistant py:mybot:old --assistant py:mybot:new --tasks tasks.toml

    $ userlm evaluate --assistant openai:gpt-4o --user trained:microsoft/UserLM-8b
    --user prompted:openai:gpt-4o --tasks tasks.toml --repeats 10 --fail-under score=0.7
    """

    assistant: list[str] = option(
        ...,
        "A chat model, or your bot, as for `simulate`. Repeat it for each assistant.",
    )
    tasks: str = option(..., TASKS_HELP, recorded=False)
    user: list[str] = option(
        (EMBEDDED_USER,), "A user, as for `simulate`. Repeat it for each user."
    )
    settings: UserSettings = UserSettings()
    out: Path = out_folder("runs/evaluate")
    repeats: int = option(1, "Number of conversations about each task.", min=1)
    single: bool = option(
        True, "Also give each assistant the whole task in a single prompt."
    )
    replay: bool = option(
        False,
        "Also say the users' turns to the assistant again, without demands that are not in the "
        "task, by the judge: what these cost. Needs --judge.",
        flag="--replay",
    )
    controls: bool = option(
        False,
        "Also evaluate oracle, the most that a user allows, and clarifier, which solves nothing.",
        flag="--controls",
    )
    max_turns: int = option(10, "Maximum number of user turns.", min=1)
    system: str | None = option(
        None, "System prompt for the assistants: a file, or a text of several words."
    )
    greeting: str | None = option(
        None, "What the assistants say first, before the user."
    )
    max_answer_tokens: int = max_answer_tokens_option()
    answer_timeout: float = option(
        TIMEOUT,
        "Seconds for an answer of cmd:, bot: or an async py:.",
        min=0.1,
        recorded=False,
    )
    limit: int | None = limit_option()
    seed: int = seed_option()
    workers: int = workers_option()
    grading: Grading = Grading()
    models: LocalModels = LocalModels()
    user_price: list[str] = _prices_option("--user-price", "user")
    price: list[str] = _prices_option("--price", "assistant")
    limits: Limits = Limits()
    fail_under: list[str] = option(
        (),
        "Fail (exit code 1) if an assistant's score is less with a user: score=0.7 for the lower "
        "end of its 95 % interval, score=0.7:value for the value; or coverage=0.7. What --controls "
        "and --single add does not count.",
        panel=OUTPUT,
        recorded=False,
    )
    failures: Failures = Failures(max_failed=0.0)
    output: Output = Output()


@dataclass(frozen=True, slots=True)
class Cell:
    """An assistant and a user, and the folder of their conversations.

    Attributes:
        price, user_price: those of their models, if known.
        replayed: the cell whose turns are said again, if the user does that.
    """

    assistant: str
    user: User
    folder: Path
    price: str | None = None
    user_price: str | None = None
    replayed: Cell | None = None

    @property
    def shown_user(self) -> str:
        """The user in tables and messages."""
        if self.replayed:
            return f"{self.replayed.user.user}{REPLAYED}"
        return self.user.user

    @property
    def calls_models(self) -> bool:
        """Whether there are calls of models, which are counted."""
        return self.user.parsed.is_model or address.parse(self.assistant).is_model


def evaluate(options: Evaluate) -> Results:
    """Run all cells and show their scores; raise `ModelError` if conversations ended in an error,
    which the same command tries again, or if a gate fails."""
    gates = list(map(Gate.parse, options.fail_under))
    if options.replay and not options.grading.judge:
        raise InputError("--replay needs a --judge, who says what users demand")
    tasks = read_tasks(options.tasks)[: options.limit]
    cells = list(_cells(options))
    files, stamps = tasks_inputs(options.tasks, tasks)
    files += read_system(options.system).files
    for cell in cells:
        files += inputs.files(cell.assistant)
        files += () if cell.replayed else cell.user.files
        stamps |= inputs.stamps(cell.user.parsed, cell.assistant)
    run = open_run("evaluate", options, dict.fromkeys(files), stamps)
    results = finished(run, options, partial(_is_unfinished, options, tasks))
    if results is None:
        _check_before_paying(options, cells)
        _check_grades(options, gates, tasks)
        run.unfinish()
        results = _run_all(run, options, tasks, cells)
    for cell in results["cells"]:
        stops = Counter(cell["stops"])
        where = f"{_named(cell)}: "
        if cell["failed"]:
            raise ModelError(f"{where}{cell['failed']}")
        options.failures.check(stops["error"], stops.total(), where)
    _check_gates(options, gates, results)
    if len(cells) > 1:
        console.print(f"which is better: userlm compare {run.folder}", style="dim")
    return results


def _check_gates(options: Evaluate, gates: Sequence[Gate], results: Results) -> None:
    """Raise `ModelError` if a gate fails, or conversations have no grade; it names all that do."""
    wrong = []
    for cell in results["cells"]:
        # Those that were not asked for by name stand beside the others, and pass whatever they do.
        is_single = cell["user"] == SINGLE and SINGLE not in options.user
        is_control = cell["assistant"] in {*CONTROLS} - {*options.assistant}
        if is_control or is_single or cell["user"].endswith(REPLAYED):
            continue
        measured = {one["name"]: one for one in cell["measures"]}
        for gate in gates:
            one = measured[GATED[gate.name]]
            if gate.name == "score":
                total = one["n"] + one["missing"]
                where = f"{_named(cell)}: "
                options.failures.check(
                    one["missing"], total, where, how=f"have no grade ({one['why']})"
                )
            if why := gate.failure(one["value"], one["low"], one["n"]):
                wrong.append(f"{_named(cell)}: {why}")
    if wrong:
        raise ModelError("\n".join(wrong))


def _named(cell: Results) -> str:
    return f"{cell['assistant']} with {cell['user']}"


def _is_unfinished(options: Evaluate, tasks: Sequence[Task], results: Results) -> bool:
    """Whether the same command has something to try again, or code to run that had no sandbox."""
    cells = results["cells"]
    if any(cell["failed"] or has_errors(cell) for cell in cells):
        return True
    reasons = {one.get("why") for cell in cells for one in cell["measures"]}
    unsafe_local = options.grading.unsafe_local
    return NO_SANDBOX in reasons and find_sandbox(tasks, unsafe_local) is not None


# --- cells ----------------------------------------------------------------------------------------


def _cells(options: Evaluate) -> Iterator[Cell]:
    """Yield the cells, those of an assistant one after the other."""
    assistants = list(dict.fromkeys(options.assistant))
    if options.controls:
        assistants += [name for name in CONTROLS if name not in assistants]
    users = [
        User(name, options.settings).with_embedded_defaults()
        for name in dict.fromkeys(options.user)
    ]
    if options.single and SINGLE not in options.user:
        users.append(User(SINGLE))
    folders = Path(options.out, CELLS)
    assistant_names = slugs(assistants)
    user_names = slugs([user.user for user in users])
    models = [each for each in assistants if address.parse(each).is_model]
    prices = _prices(options.price, models, "--price")
    models = [user.user for user in users if user.parsed.is_model]
    user_prices = _prices(options.user_price, models, "--user-price")
    for assistant, first in zip(assistants, assistant_names, strict=True):
        for user, second in zip(users, user_names, strict=True):
            folder = folders / f"{first}--{second}"
            price = prices.get(assistant)
            cell = Cell(assistant, user, folder, price, user_prices.get(user.user))
            yield cell
            if options.replay and user.user != SINGLE:
                again = User(f"replay:{folder / WITHOUT_ADDED}")
                place = folders / f"{folder.name}{AGAIN}"
                yield Cell(assistant, again, place, price, replayed=cell)


def _prices(
    given: Sequence[str], models: Sequence[str], flag: str
) -> Mapping[str, str]:
    """Return the price of each model."""
    if not given:
        return {}
    if not models or len(given) not in (1, len(models)):
        raise InputError(
            f"{flag}: {plural(len(given), 'price')} and {plural(len(models), 'model')}; give one "
            "price for all, or one for each in their order"
        )
    each = given if len(given) > 1 else list(given) * len(models)
    return dict(zip(models, each, strict=True))


LONGEST_NAME = 60


def slugs(addresses: Iterable[str]) -> list[str]:
    """Return a name for a file for each address, each another one: letters, digits and dots with
    single hyphens between them."""
    taken: set[str] = set()
    names = []
    for text in addresses:
        words = re.sub(r"[^A-Za-z0-9.]+", "-", text)[-LONGEST_NAME:]
        name = base = words.strip("-.") or "x"
        number = 1
        while name.lower() in taken:  # some file systems ignore case
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _check_before_paying(options: Evaluate, cells: Sequence[Cell]) -> None:
    """Raise `InputError` for what would only be found once conversations were paid for."""
    caps = options.limits.caps
    for cell in cells:
        if cell.replayed:
            continue
        cell.user.load(options.seed, options.models)
        if cell.user.parsed.is_model:
            price = read_price("user", cell.user_price)
            check_price(caps, "user", cell.user.parsed, price)
        parts = address.parse(cell.assistant)
        if cell.assistant != "oracle":
            _load(options, parts)
        if parts.is_model:
            check_price(caps, "assistant", parts, read_price("assistant", cell.price))
    given = options.grading
    check_judge(caps, given.judge, given.judge_price, options.models.settings)
    is_called = bool(given.judge) or any(cell.calls_models for cell in cells)
    check_caps(caps, is_called)


def _check_grades(
    options: Evaluate, gates: Sequence[Gate], tasks: Sequence[Task]
) -> None:
    """Raise `InputError` if a gate cannot be passed, whatever the conversations are, and print how
    many tasks will have no grade."""
    is_by_score = any(gate.name == "score" for gate in gates)
    if any(gate.end == "low" for gate in gates) and len(tasks) < MIN_CLUSTERS:
        raise InputError(
            f"--fail-under: {plural(len(tasks), 'task')} have no interval, whose lower end must be "
            f"that; give {MIN_CLUSTERS} or more, or say score=0.7:value"
        )
    ungraded = sum(isinstance(task.check, RubricCheck) for task in tasks)
    if options.grading.judge or not ungraded:
        return
    why = f"{ungraded:,} of {plural(len(tasks), 'task')} have a rubric, which needs a --judge"
    if is_by_score and ungraded > options.failures.max_failed * len(tasks):
        raise InputError(f"{why}, and --fail-under needs their grades")
    console.print(
        f"{why}; without one they have no grade. The same command with a --judge grades them",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )


def _load(options: Evaluate, parts: address.Address) -> None:
    system = read_system(options.system).text
    local = options.models.settings
    loading.assistant(parts, seed=options.seed, system=system, local=local)


# --- running them ---------------------------------------------------------------------------------


def _run_all(
    run: Run, options: Evaluate, tasks: Sequence[Task], cells: Sequence[Cell]
) -> Results:
    """Run all cells. One that fails does not stop the others."""
    found = []
    for number, cell in enumerate(cells, 1):
        console.print(
            f"{cell.assistant} with {cell.shown_user} ({number} of {len(cells)})",
            style="bold",
            markup=False,
            soft_wrap=True,
        )
        failed = ""
        with unshown():
            try:
                if cell.replayed:
                    write_without_added(cell.replayed.folder)
                _simulate(options, cell, _limits_of(options, cells, cell.folder))
                if options.grading.judge:
                    _put_in_place(cell.folder, options.grading.judge)
                place = cell.folder / SCORE
                _score(options, cell, _limits_of(options, cells, place))
            except ModelError as error:
                failed = str(error)
                console.print(f"failed: {error}", style="yellow", markup=False)
        found.append(_result(run, cell, failed))
    used = _spent(options, cells)
    spent_in_all = {
        "calls": used.calls,
        "tokens": used.tokens,
        "dollars": float(used.dollars),
    }
    results = {"cells": found, "spent": spent_in_all}
    return finish(run, options, results, _is_unfinished(options, tasks, results))


def _simulate(options: Evaluate, cell: Cell, limits: Limits) -> None:
    if cell.replayed:
        said = cell.replayed.folder / WITHOUT_ADDED
        rename_input(cell.folder, said)
        if is_stale(cell.folder, said):
            # `--force` would also forget what was answered, and what that cost.
            forget_changed(cell.folder / TURNS, said)
            take_over(cell.folder, said)
    simulate(
        Simulate(
            cell.user,
            cell.assistant,
            tasks=options.tasks,
            out=cell.folder,
            repeats=options.repeats,
            max_turns=options.max_turns,
            system=options.system,
            greeting=options.greeting,
            max_answer_tokens=options.max_answer_tokens,
            answer_timeout=options.answer_timeout,
            unsafe_local=options.grading.unsafe_local,
            limit=options.limit,
            seed=options.seed,
            workers=options.workers,
            models=options.models,
            user_price=cell.user_price,
            price=cell.price,
            limits=limits if cell.calls_models else Limits(),
        )
    )


def _score(options: Evaluate, cell: Cell, limits: Limits) -> None:
    """Score a cell; anew if conversations were tried again since. The judge is not asked again what
    it answered."""
    place = cell.folder / SCORE
    talks = cell.folder / TALKS
    rename_input(place, talks)
    if is_stale(place, talks):
        # `--force` would also forget what the judge has answered.
        take_over(place, talks)
    is_judged = options.grading.judge is not None
    score(
        Score(
            [cell.folder],
            tasks=options.tasks,
            out=place,
            grading=options.grading,
            workers=options.workers,
            models=options.models,
            limits=limits if is_judged else Limits(),
        )
    )


def _put_in_place(cell: Path, judge: str) -> None:
    """Put what this judge has scored before, if anything, in place of what another one has, which
    was paid for and stays aside."""
    place = cell / SCORE
    if (place / "run.json").is_file() and (last := _judge_of(place)) != judge:
        if last is None:
            discard(place)  # nothing was paid for, and a judge is another input
        else:
            numbers = (
                int(path.name.removeprefix(f"{SCORE}-")) for path in _aside(cell)
            )
            place.rename(cell / f"{SCORE}-{max(numbers, default=0) + 1}")
    if not place.exists():
        earlier = (path for path in _aside(cell) if _judge_of(path) == judge)
        if found := next(earlier, None):
            found.rename(place)


def _judge_of(score: Path) -> str | None:
    judge: str | None = read_json(score / "run.json")["options"].get("judge")
    return judge


def _aside(cell: Path) -> list[Path]:
    """Return the folders of judges that were asked before the one in place."""
    return [*cell.glob(f"{SCORE}-[0-9]*")]


def _limits_of(options: Evaluate, cells: Sequence[Cell], place: Path) -> Limits:
    """Return the limits of one run: what all others leave of those of the whole."""
    return options.limits.less(_spent(options, cells, place))


def _spent(options: Evaluate, cells: Sequence[Cell], but: Path | None = None) -> Amount:
    """Return what all calls used, but for those of one run. Judges that were asked before another
    one count at its price."""
    used = Amount()
    for cell in cells:
        prices = {
            "user": read_price("user", cell.user_price),
            "assistant": read_price("assistant", cell.price),
            "judge": read_price("judge", options.grading.judge_price, JUDGE_PRICE),
        }
        for folder in (cell.folder, cell.folder / SCORE, *_aside(cell.folder)):
            if folder != but:
                used += spent(folder / "usage.jsonl", prices)
    return used


def _result(run: Run, cell: Cell, failed: str) -> dict[str, Any]:
    """Return what a cell found: how its conversations stopped, and the measures of its tasks."""
    talked = cell.folder / "results.json"
    scored = cell.folder / SCORE / "results.json"
    results = read_json(talked) if talked.is_file() else {}
    measures = []
    if scored.is_file():
        measures = read_json(scored)[cell.folder.name]
    return {
        "assistant": cell.assistant,
        "user": cell.shown_user,
        "folder": str(cell.folder.relative_to(run.folder)),
        "stops": results.get("stops", {}),
        "cut": results.get("cut", {}),
        "measures": [one for one in measures if _is_kept(one["name"])],
        "failed": failed,
    }


def _is_kept(name: str) -> bool:
    return name in KEPT or catalog.metric_of(name).family == catalog.TASKS


# --- what added demands cost ----------------------------------------------------------------------


def forget_changed(turns: Path, said: Path) -> None:
    """Leave out of recorded turns the conversations whose user says something else now."""
    now = {talk.id: talk.user_turns for talk in read_conversations(said)}
    before: defaultdict[str, dict[int, str]] = defaultdict(dict)
    found = read_rows(turns, may_be_empty=True) if turns.is_file() else ()
    rows = [line.row for line in found if line.row]
    for row in rows:
        if row["role"] == "user":
            before[row["id"]][row["n"]] = row["text"]

    def is_same(id: str) -> bool:
        texts = (*now.get(id, ()), "")  # the end has no text
        recorded = [text for _, text in sorted(before[id].items())]
        return recorded == list(texts[: len(recorded)])

    same = set(filter(is_same, list(before)))
    write_lines(turns, (row for row in rows if row["id"] in same))


def write_without_added(cell: Path) -> None:
    """Write the conversations of a cell without the demands that the judge found to be added: the
    words that it quotes, or the whole turn. A conversation of which nothing would be left stays as
    it is.

    Raises:
        ModelError: if the judge did not score the cell.
    """
    judged = cell / SCORE / "added.jsonl"
    if not judged.is_file():
        raise ModelError(f"{cell} was not judged, so no demands are known")
    demands: dict[tuple[str, int], str | None] = {}
    for line in read_rows(judged):
        row = line.row
        if row["label"] == ADDS:
            demands[row["conversation"], row["turn"]] = row["demand"]
    talks = read_conversations(cell / TALKS)
    write_conversations(
        cell / WITHOUT_ADDED, (without_added(talk, demands) for talk in talks)
    )


def without_added(
    conversation: Conversation, demands: Mapping[tuple[str, int], str | None]
) -> Conversation:
    """Return the conversation without demands.

    Args:
        demands: by the id of a conversation and the number of a user turn, its words that demand
            something; `None` for all of them.
    """
    kept: list[Turn] = []
    number = -1
    is_dropped = False
    for turn in conversation.turns:
        if turn.role == "user":
            number += 1
            if (conversation.id, number) in demands:
                words = demands[conversation.id, number] or turn.text
                rest = standing(words).sub("", turn.text, count=1).strip()
                turn = replace(turn, text=rest)
            is_dropped = not has_words(turn.text)
        if not is_dropped:  # nor the answer to a turn that is
            kept.append(turn)
    has_user = any(turn.role == "user" for turn in kept)
    return replace(conversation, turns=tuple(kept)) if has_user else conversation
