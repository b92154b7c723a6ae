"""Files of the package: sample logs, sample tasks, a scripted user, and small models.

    sample_logs.jsonl       raw logs as `userlm import` reads them, with problems added for
                            `userlm clean`; each row has its `intent`
    sample_tasks.jsonl      6 math and 6 Python tasks; `meta.solution` of a Python task passes its
                            tests
    sample_task_logs.jsonl  what a person said about each of these tasks; a few omitted a fact
    sample_script.txt       what a scripted user says, one turn per line
    models/                 three small models that recipes/tiny trained on real conversations,
                            each with its card

The samples were written for this project.
"""

from pathlib import Path

_HERE = Path(__file__).parent

MODELS = ("userlm-tiny", "assistant-tiny", "base-tiny")
"""The names of the small models, which work wherever a model name is expected: a user model, an
assistant, and the base model of both. For demos and tests."""


def model(name: str) -> Path:
    """The folder of one of `MODELS`, in the format of transformers."""
    return _HERE / "models" / name


def sample_logs() -> Path:
    """The sample logs: one conversation per row, as messages of the OpenAI API; a few lines are
    invalid on purpose."""
    return _HERE / "sample_logs.jsonl"


def sample_tasks() -> Path:
    """The sample tasks, for `tasks.read_tasks`."""
    return _HERE / "sample_tasks.jsonl"


def sample_task_logs() -> Path:
    """Conversations about the sample tasks, with the ids of the tasks, to replay with another
    assistant."""
    return _HERE / "sample_task_logs.jsonl"


def sample_script() -> Path:
    """The turns of a user who says the same regardless of the assistant's answers."""
    return _HERE / "sample_script.txt"
