"""Grading."""

from __future__ import annotations

from userlm.final_answer import final_number
from userlm.simulate import Until
from userlm.types import Conversation, NumberCheck, Task

NOT_GRADED = "not graded: needs a sandbox"
"""Why a `python` task has no grade: nothing here runs code that a model wrote."""


def grade_math(text: str, answer: str) -> bool | None:
    """Return whether this assistant turn has the right number; `None` if it has none, which is no
    attempt.

    Compared as decimals: `$100.00` is `100`, and not `1`.

    Raises:
        ValueError: if the reference answer has no number.
    """
    wanted = final_number(answer)
    if wanted is None:
        raise ValueError(f"the answer {answer!r} has no number")
    given = final_number(text)
    return None if given is None else given == wanted


def grade(task: Task, conversation: Conversation) -> tuple[bool | None, str]:
    """Return whether the task was solved, and the reason; `None` if it cannot be graded.

    Any right assistant turn solves a math task, as in Lost in Conversation.
    """
    if not isinstance(task.check, NumberCheck):
        return None, NOT_GRADED
    answer = task.check.answer
    answers = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    grades = [grade_math(text, answer) for text in answers]
    if True in grades:
        return True, f"right in answer {grades.index(True) + 1}"
    return False, "wrong" if False in grades else "no attempt"


def solved(task: Task) -> Until:
    """Return the function that stops a simulation with `"solved"` when the assistant gives the
    right answer."""

    def until(conversation: Conversation) -> str | None:
        if (
            not isinstance(task.check, NumberCheck)
            or not conversation.turns
            or conversation.next_role == "assistant"
        ):
            return None
        return (
            "solved"
            if grade_math(conversation.turns[-1].text, task.check.answer)
            else None
        )

    return until
