"""The embedded default, written for this project: sample logs, sample tasks, a scripted user.

sample_logs.jsonl       raw logs as `userlm import` reads them, with trouble planted for `userlm clean`;
                        `intent` is hand-written
sample_tasks.jsonl      6 math and 6 Python tasks; `meta.solution` of a Python task passes its tests
sample_task_logs.jsonl  what a person said about each of these tasks; a few forgot something
sample_script.txt       what a scripted user says, a line a turn
"""

from pathlib import Path

_HERE = Path(__file__).parent


def sample_logs() -> Path:
    """The sample logs: a row a conversation, in the layout of OpenAI's messages; a few lines are broken."""
    return _HERE / "sample_logs.jsonl"


def sample_tasks() -> Path:
    """The sample tasks, for `tasks.read_tasks`."""
    return _HERE / "sample_tasks.jsonl"


def sample_task_logs() -> Path:
    """Conversations on the sample tasks, with the tasks' ids, to replay against another assistant."""
    return _HERE / "sample_task_logs.jsonl"


def sample_script() -> Path:
    """The turns of a user who says the same whatever they are asked."""
    return _HERE / "sample_script.txt"
