"""What the scripts of peers share: where the served user is, what was recorded, and a row a case.

`run.py` sets the environment that this reads. A script imports nothing else of the tests.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from traceback import format_exception_only

from recorder import AGENT_SAYS

URL = os.environ["PEER_URL"]
"""The base URL of the served user. What goes through it is recorded."""
AGENT_URL = os.environ["PEER_AGENT_URL"]
"""The base URL of an agent under test, or any other chat model: it always says `AGENT`."""
MODEL = os.environ["PEER_MODEL"]
"""The name of the served user. The agent answers to any name."""
RECORD = Path(os.environ["PEER_RECORD"])

AGENT = AGENT_SAYS
GREETING = "Hi! How can I help you?"
GOAL = "move a flight to Friday"
INTENT = f"You are a user chatting with an assistant language model to {GOAL}."
SCRIPT = Path(__file__).parent.with_name("user.txt")
LINES = SCRIPT.read_text().splitlines()
"""What the served user says, turn by turn, before it ends the conversation."""
USER = f"script:{SCRIPT}"
"""The same user as an address, for bridges."""


OWN_LOOP = "the loop that sees the end is one's own"
"""A note for libraries that call a model and run no conversation."""


@dataclass
class Case:
    """One way in which a harness was used.

    Attributes:
        end_seen: whether the harness noticed that the user ended, or could be told in its own terms;
            `None` if there was no end.
        stop_phrase: what the harness looks for in the user's words, if it looks for anything.
        version: that of the package, if this is not one of Python.
        note: what else a reader of the table should know.
    """

    end_seen: bool | None = None
    stop_phrase: str = ""
    version: str = ""
    note: str = ""
    start: int = field(default_factory=lambda: len(recorded()))

    @property
    def calls(self) -> list[dict]:
        """The requests to the served user since the case began, with their answers."""
        return recorded()[self.start :]

    def refused(self, code: str = "quoted_conversation") -> None:
        """Check that the server refused all requests, and take what it said as the note."""
        assert self.calls, "nothing was asked"
        said = [call["answer"].get("error", {}).get("message") for call in self.calls]
        assert all(said), "the server answered"
        codes = self.values("answer", "error", "code")
        assert codes == [code], codes
        self.end_seen = None
        after = f" ({self.note})" if self.note else ""
        reason, _, advice = said[0].rpartition("; ")
        shown = advice if code == "quoted_conversation" else reason
        self.note = f"refused{after}: {shown}"

    def values(self, side: str, *path: str) -> list[object]:
        """The different values at a path in the requests (`body`) or answers (`answer`)."""
        found = []
        for call in self.calls:
            value = call[side]
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None and value not in found:
                found.append(value)
        return found


def endings(harness: str, package: str) -> Iterator["Ending"]:
    """Yield each way in which a user may end without a word, for a harness whose prompt names no
    stop phrase."""
    for number, says in enumerate(json.loads(os.environ["PEER_ENDINGS"]), 1):
        yield Ending(harness, package, number, says)


@dataclass
class Ending:
    """A context in which a harness runs a conversation of more turns than the user has. It prints a
    row that says what the harness did when the user ended."""

    harness: str
    package: str
    number: int
    says: str
    version: str = ""

    @property
    def url(self) -> str:
        """The base URL of a user that ends so."""
        return f"{URL.removesuffix('/v1')}/ending{self.number}/v1"

    def __enter__(self) -> "Ending":
        self.start = len(recorded())
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> bool:
        calls = recorded()[self.start :]
        ended = [(call["answer"].get("userlm") or {}).get("ended") for call in calls]
        row = {
            "harness": self.harness,
            "version": self.version or version(self.package),
            "says": self.says,
            "ok": True in ended,
            "note": "the user did not end",
        }
        if row["ok"]:
            row["note"] = _after_end(calls[ended.index(True) + 1 :], kind)
        print("", json.dumps(row), sep="\n", flush=True)
        return kind is None or issubclass(kind, Exception)


def _after_end(calls: list[dict], error: type | None) -> str:
    """Say what a harness did after the user ended: its further requests, and its error.

    A request whose history has the last turn is refused. So an answered one has dropped it.
    """
    answered = sum(call["status"] == 200 for call in calls)
    did = []
    if answered:
        did.append(f"drops the turn and asks again ({answered}×)")
    if answered < len(calls):
        did.append("its next request is refused")
    if error:
        did.append(f"fails (`{error.__name__}`)")
    else:
        did.append("goes on" if calls else "stops")
    return ", ".join(did)


def run_documented(name: str) -> None:
    """Run what docs/harnesses.md says about a harness, with the user of these tests."""
    page = (Path(__file__).parents[3] / "docs" / "harnesses.md").read_text()
    marker = f"<!-- not run: tests/peers/{name}.py runs it -->\n```python\n"
    code = page.split(marker)[1].split("```")[0]
    exec(code.replace("trained:userlm-small", USER), {"__name__": "__main__"})


def recorded() -> list[dict]:
    return [json.loads(line) for line in RECORD.read_text().splitlines()]


@contextmanager
def case(harness: str, package: str, how: str) -> Iterator[Case]:
    """Run one case and print its row. An error makes the row a failed one."""
    one = Case()
    error = ""
    try:
        yield one
    except Exception as caught:
        error = format_exception_only(caught)[-1].strip()[:400]
    row = {
        "harness": harness,
        "version": one.version or (package and version(package)),
        "how": how,
        "stop_phrase": one.stop_phrase,
        "temperature": _shown(one.values("body", "temperature")),
        "seat": _shown(one.values("answer", "userlm", "roles")),
        "end_seen": one.end_seen,
        "ok": not error,
        "note": error or one.note,
    }
    print("", json.dumps(row), sep="\n", flush=True)


def _shown(values: list[object]) -> str:
    return ", ".join(map(str, values))
