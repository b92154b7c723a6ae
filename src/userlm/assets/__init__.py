"""Files of the package: sample logs, sample tasks, a scripted user, test items, and small models.

    sample_logs.jsonl       raw logs as `userlm import` reads them, with problems added for
                            `userlm clean`; each row has its `intent`
    sample_tasks.jsonl      6 math and 6 Python tasks; `meta.solution` of a Python task passes its
                            tests
    sample_task_logs.jsonl  what a person said about each of these tasks; a few omitted a fact
    sample_script.txt       what a scripted user says, one turn per line
    role_items.jsonl        60 test items of user-role adherence, and
    intent_items.jsonl      60 of intent adherence (`items`)
    playground/             the pages of `userlm serve`
    models/                 small models that were trained on real conversations, each with its
                            card: userlm-tiny and assistant-tiny by recipes/tiny, and userlm-small,
                            an adapter, by recipes/small

The samples were written for this project. The base model of userlm-small comes from the package
index and is kept in the user's cache (`models.small`).
"""

import os
from pathlib import Path

_HERE = Path(__file__).parent

TINY = ("userlm-tiny", "assistant-tiny")
"""A user model and an assistant, for tests and for learning how things work."""

MODELS = ("userlm-small", *TINY)
"""The names of the models in the package, which work wherever a model name is expected."""

SMALL = ("small", "assistant-small")
"""The names of the small model, as a base model and as an assistant. `userlm fetch small` brings
it."""

SMALL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub id of the model that it was made from."""
NAMES = (*MODELS, *SMALL)

SAMPLING = {
    "userlm-small": {"temperature": 0.8},
    "userlm-tiny": {"temperature": 0.6},
    "assistant-small": {"temperature": 0.7, "top_p": 0.9},
}
"""How the turns of a model are sampled unless something else is asked for: models this small ramble
at temperature 1."""


def model(name: str) -> Path:
    """The folder of one of `NAMES`, in the format of transformers."""
    return small() if name in SMALL else _HERE / "models" / name


def small() -> Path:
    """The folder of the small model, in USERLM_CACHE or the user's cache; it may not be there yet.
    A change of its bytes gets another folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "userlm")
    cache = Path(os.environ.get("USERLM_CACHE") or caches)
    return cache.expanduser() / "smollm2-135m-instruct-1"


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


def role_items() -> Path:
    """The items that test whether a user stays a user; see `items`."""
    return _HERE / "role_items.jsonl"


def intent_items() -> Path:
    """The items that test whether a user stays with its intent; see `items`."""
    return _HERE / "intent_items.jsonl"
