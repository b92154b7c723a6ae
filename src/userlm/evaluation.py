"""`userlm.evaluate`: test a bot in three lines of Python, such as in pytest. It writes no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from userlm import loading
from userlm.bots import Bot, python_bot
from userlm.grading import Grader, solved_until
from userlm.judges import GradingJudge
from userlm.metrics import extrinsic
from userlm.metrics.gate import Gate
from userlm.simulate import parallel, simulate
from userlm.tasks import by_id, from_tasks, read_tasks, task_of
from userlm.thought import SpeechOnly
from userlm.types import Conversation, Grade, Measure, Speaker, Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What became of the conversations of `evaluate`.

    Attributes:
        conversations: all of them, in order.
        grades: by the id of a conversation, whether its task was solved.
        measure: the assistant score, in percent.
    """

    conversations: Sequence[Conversation]
    grades: dict[str, Grade]
    measure: Measure

    @property
    def score(self) -> float | None:
        """The share of the graded conversations in which the bot solved the task; `None` if none
        was graded."""
        return _share(self.measure.value)

    @property
    def low(self) -> float | None:
        """The lower end of its 95 % interval over tasks; `None` below five tasks."""
        return _share(self.measure.low)

    @property
    def high(self) -> float | None:
        """The upper end."""
        return _share(self.measure.high)

    @property
    def failed(self) -> list[Conversation]:
        """The conversations that ended in an error, which is in their `meta["error"]`."""
        return [one for one in self.conversations if one.stop == "error"]

    def check(self, score: float, end: Literal["low", "value"] = "low") -> None:
        """Raise `AssertionError` if the lower end of the interval (or the value) of the score is
        less than a share, or a conversation ended in an error or has no grade."""
        if failed := self.failed:
            raise AssertionError(
                f"{len(failed)} of {len(self.conversations)} conversations ended in an error, the "
                f"first: {failed[0].meta['error']}"
            )
        ungraded = [one.reason for one in self.grades.values() if one.solved is None]
        if ungraded:
            raise AssertionError(
                f"{len(ungraded)} of {len(self.conversations)} conversations have no grade, the "
                f"first: {ungraded[0]}"
            )
        found = self.measure
        why = Gate("score", score, end).failure(found.value, found.low, found.n)
        if why:
            raise AssertionError(why)


def evaluate(
    bot: str | Callable[..., Any] | Speaker,
    tasks: str | Path | Sequence[Task],
    user: str | Callable[..., Any] | Speaker | None = None,
    *,
    repeats: int = 1,
    max_turns: int = 10,
    judge: str | None = None,
    seed: int = 0,
    workers: int = 16,
) -> Evaluation:
    """Have a user talk with a bot about tasks, and grade what it answers.

    Args:
        bot: a function, an object (docs/test-my-chatbot.md says what it may take and return), or an
            address, as on the command line.
        tasks: tasks, or the file of them.
        user: the same for the user; by default the small one of the package.
        repeats: the number of conversations about each task.
        max_turns: the maximum number of user turns.
        judge: a chat model that grades by rubrics, by its address.

    Raises:
        InputError: for what is wrong in the tasks or an address.
    """
    # Heavy, and not needed to import the package.
    from userlm.commands.grading import find_sandbox
    from userlm.commands.options import EMBEDDED_USER, User

    about = read_tasks(tasks) if isinstance(tasks, str | Path) else list(tasks)
    known = by_id(about)
    chat = loading.chat_model(judge) if judge else None
    grader = Grader(GradingJudge(chat) if chat else None, find_sandbox(about))
    if user is None or isinstance(user, str):
        speaker = User(user or EMBEDDED_USER).with_embedded_defaults().load(seed)
    else:
        speaker = _speaker(user)
    if isinstance(bot, str):
        assistant = loading.assistant(bot, tasks=about, seed=seed)
    else:
        assistant = _speaker(bot)

    until = solved_until(grader, about)
    starts = list(from_tasks(about, repeats))
    stopped = simulate(speaker, assistant, starts, max_turns, until, workers)
    talks = {one.id: one for one in stopped}
    conversations = [talks[start.id] for start in starts]

    def grade(conversation: Conversation) -> tuple[str, Grade]:
        task = task_of(conversation, known)
        assert task
        return conversation.id, grader.grade(task, conversation)

    ended = [one for one in conversations if one.stop != "error"]
    grades = dict(parallel(grade, ended, workers))
    measure = extrinsic.assistant_score(conversations, extrinsic.Graded(known, grades))
    return Evaluation(conversations, grades, measure)


def _speaker(given: Any) -> Speaker:
    name = getattr(given, "__name__", type(given).__name__)
    return SpeechOnly(Bot(name, python_bot(given, name), run=uuid4().hex))


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
