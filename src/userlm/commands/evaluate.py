"""`userlm evaluate`: which of several assistants does tasks better, with which users.

    cells/ASSISTANT--USER/          a run of `simulate`
    cells/ASSISTANT--USER/score/    the run of `score` on it
    cells/ASSISTANT--single/        the same with all of a task said in one prompt

The id of a conversation, `task#repeat`, and the seed decide all that is random, so conversations
with the same id can be compared between cells. A cell that is finished is not run again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userlm import address, inputs, loading
from userlm.address import ASSISTANTS
from userlm.bots import TIMEOUT
from userlm.commands.conversing import has_errors
from userlm.commands.costs import (
    Limits,
    check_price,
    price_option,
    read_price,
)
from userlm.commands.grading import TASKS_HELP, Grading, tasks_inputs
from userlm.commands.options import (
    EMBEDDED_USER,
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
from userlm.json_files import read_json
from userlm.manifest import file_hash
from userlm.metrics import catalog
from userlm.models.budget import Amount, Caps, spent
from userlm.runs import Run
from userlm.show.terminal import console
from userlm.tasks import read_tasks
from userlm.types import InputError, ModelError

CELLS, SCORE = "cells", "score"
"""The folders of cells in that of the run, and of the score in that of a cell."""
SINGLE = "single"
"""The address and the name of the user who says everything in one prompt."""
CONTROLS = ("oracle", "clarifier")
"""The assistants of `--controls`: no gate holds for them."""
KEPT = ("turns per conversation",)
"""Measures that are kept of a cell, beside those of its tasks."""


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
    user_price: str | None = price_option("--user-price", "the users' models")
    price: str | None = price_option("--price", "the assistants' models")
    limits: Limits = Limits()
    failures: Failures = Failures(max_failed=0.0)
    output: Output = Output()


@dataclass(frozen=True, slots=True)
class Cell:
    """An assistant and a user, and the folder of their conversations."""

    assistant: str
    user: User
    folder: Path

    @property
    def calls_user(self) -> bool:
        """Whether the user is a model, whose calls are counted."""
        return bool(self.user.parsed.form)

    @property
    def calls_assistant(self) -> bool:
        """Whether the assistant is one."""
        return _is_model(self.assistant)


def evaluate(options: Evaluate) -> Results:
    """Run all cells and show their scores; raise `ModelError` if conversations ended in an error.
    The same command tries these again."""
    tasks = read_tasks(options.tasks)[: options.limit]
    cells = list(_cells(options))
    files, stamps = tasks_inputs(options.tasks, tasks)
    files += read_system(options.system).files
    for cell in cells:
        files += [*cell.user.files, *inputs.files(cell.assistant)]
        stamps |= inputs.stamps(cell.user.parsed, cell.assistant)
    run = open_run("evaluate", options, dict.fromkeys(files), stamps)
    results = finished(run, options, _is_unfinished)
    if results is None:
        _check_before_paying(options, cells)
        run.unfinish()
        results = _run_all(run, options, cells)
    for cell in results["cells"]:
        stops = Counter(cell["stops"])
        where = f"{cell['assistant']} with {cell['user']}: "
        if cell["failed"] and not stops:
            raise ModelError(f"{where}{cell['failed']}")
        options.failures.check(stops["error"], stops.total(), where)
    return results


def _is_unfinished(results: Results) -> bool:
    """Whether the same command has something to try again."""
    return any(cell["failed"] or has_errors(cell) for cell in results["cells"])


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
    for assistant, first in zip(assistants, assistant_names, strict=True):
        for user, second in zip(users, user_names, strict=True):
            yield Cell(assistant, user, folders / f"{first}--{second}")


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


def _is_model(assistant: str) -> bool:
    return address.parse(assistant).kind not in ASSISTANTS


def _check_before_paying(options: Evaluate, cells: Sequence[Cell]) -> None:
    """Raise `InputError` for what would only be found once conversations were paid for."""
    caps = options.limits.caps
    sides: dict[str, list[address.Address]] = {"user": [], "assistant": []}
    for user in dict.fromkeys(cell.user for cell in cells):
        user.load(options.seed, options.models)
        if user.parsed.form:
            sides["user"].append(user.parsed)
    for assistant in dict.fromkeys(cell.assistant for cell in cells):
        parts = address.parse(assistant)
        if assistant != "oracle":
            _load(options, parts)
        if _is_model(assistant):
            sides["assistant"].append(parts)
    texts = {"user": options.user_price, "assistant": options.price}
    for side, models in sides.items():
        price = read_price(side, texts[side])
        if price and not models:
            raise InputError(f"a price of the {side}s, of which none is a model")
        for parts in models:
            check_price(caps, side, parts, price)
    if options.grading.judge:
        judge = address.parse(options.grading.judge)
        loading.chat_model(judge, options.models.settings)
        price = read_price("judge", options.grading.judge_price)
        check_price(caps, "judge", judge, price, "--judge-price")
    is_called = any(sides.values()) or options.grading.judge is not None
    if caps != Caps() and not is_called:
        raise InputError(
            "--max-calls, --max-tokens-total and --budget are for models; none is called here"
        )


def _load(options: Evaluate, parts: address.Address) -> None:
    system = read_system(options.system).text
    local = options.models.settings
    loading.assistant(parts, seed=options.seed, system=system, local=local)


# --- running them ---------------------------------------------------------------------------------


def _run_all(run: Run, options: Evaluate, cells: Sequence[Cell]) -> Results:
    """Run all cells. One that fails does not stop the others."""
    found = []
    for number, cell in enumerate(cells, 1):
        console.print(
            f"{cell.assistant} with {cell.user.user} ({number} of {len(cells)})",
            style="bold",
            markup=False,
            soft_wrap=True,
        )
        failed = ""
        with unshown():
            try:
                _simulate(options, cell, _limits_of(options, cells, cell.folder))
                place = cell.folder / SCORE
                _score(options, cell, _limits_of(options, cells, place))
            except ModelError as error:
                failed = str(error)
                console.print(f"failed: {error}", style="yellow", markup=False)
        found.append(_result(run, cell, failed))
    results = {"cells": found}
    return finish(run, options, results, _is_unfinished(results))


def _simulate(options: Evaluate, cell: Cell, limits: Limits) -> None:
    is_called = cell.calls_user or cell.calls_assistant
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
            limit=options.limit,
            seed=options.seed,
            workers=options.workers,
            models=options.models,
            user_price=options.user_price if cell.calls_user else None,
            price=options.price if cell.calls_assistant else None,
            limits=limits if is_called else Limits(),
        )
    )


def _score(options: Evaluate, cell: Cell, limits: Limits) -> None:
    """Score a cell; anew if conversations were tried again since. The judge is not asked again what
    it answered."""
    place = cell.folder / SCORE
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
            output=Output(force=_is_stale(place)),
        )
    )


def _is_stale(place: Path) -> bool:
    """Whether a score is not that of the conversations in its cell."""
    if not (place / "run.json").is_file():
        return False
    path = place.parent / "conversations.jsonl"
    scored: Mapping[str, str] = read_json(place / "run.json")["inputs"]
    return scored.get(str(path)) != file_hash(path)


def _limits_of(options: Evaluate, cells: Sequence[Cell], place: Path) -> Limits:
    """Return the limits of one run: what all others leave of those of the whole."""
    prices = {
        "user": read_price("user", options.user_price),
        "assistant": read_price("assistant", options.price),
        "judge": read_price("judge", options.grading.judge_price),
    }
    used = Amount()
    for cell in cells:
        for folder in (cell.folder, cell.folder / SCORE):
            if folder != place:
                used += spent(folder / "usage.jsonl", prices)
    return options.limits.less(used)


def _result(run: Run, cell: Cell, failed: str) -> dict[str, Any]:
    """Return what a cell found: how its conversations stopped, and the measures of its tasks."""
    talked = cell.folder / "results.json"
    scored = cell.folder / SCORE / "results.json"
    stops = read_json(talked)["stops"] if talked.is_file() else {}
    measures = []
    if scored.is_file():
        measures = read_json(scored)[cell.folder.name]
    return {
        "assistant": cell.assistant,
        "user": cell.user.user,
        "folder": str(cell.folder.relative_to(run.folder)),
        "stops": stops,
        "measures": [one for one in measures if _is_kept(one["name"])],
        "failed": failed,
    }


def _is_kept(name: str) -> bool:
    return name in KEPT or catalog.metric_of(name).family == catalog.TASKS
