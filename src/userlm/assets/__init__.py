"""The embedded default: sample logs, sample tasks and a scripted user, written for this project;
small models.

sample_logs.jsonl       raw logs as `userlm import` reads them, with trouble planted for `userlm clean`;
                        `intent` is hand-written
sample_tasks.jsonl      6 math and 6 Python tasks; `meta.solution` of a Python task passes its tests
sample_task_logs.jsonl  what a person said about each of these tasks; a few forgot something
sample_script.txt       what a scripted user says, a line a turn
models/                 three small models that recipes/tiny trained on real conversations; each has a card
"""

from pathlib import Path

_HERE = Path(__file__).parent

MODELS = ("userlm-tiny", "assistant-tiny", "base-tiny")
"""The small models, by the names that stand for them wherever a model is named: one that plays the
user, one that answers, and the base model of both. For demos and tests."""


def model(name: str) -> Path:
    """The folder of one of `MODELS`, as transformers reads it."""
    return _HERE / "models" / name


def sample_logs() -> Path:
    """The sample logs: a row a conversation, in the layout of OpenAI's messages; a few lines are
    broken."""
    return _HERE / "sample_logs.jsonl"


def sample_tasks() -> Path:
    """The sample tasks, for `tasks.read_tasks`."""
    return _HERE / "sample_tasks.jsonl"


def sample_task_logs() -> Path:
    """Conversations on the sample tasks, with the tasks' ids, to replay against another
    assistant."""
    return _HERE / "sample_task_logs.jsonl"


def sample_script() -> Path:
    """The turns of a user who says the same whatever they are asked."""
    return _HERE / "sample_script.txt"
