"""What runs inside the sandbox: the code under test, and the tests, each in a process of its own.

The text of this file is handed to a bare Python, so it uses the standard library alone. The process
of the tests says the verdict. The process of the code answers its requests, a line of JSON each:
only plain data crosses. Other objects stay where they are, and the tests get handles of them.
Nothing here calls a method of what came from the code, such as an `__eq__` of its own.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterable
from types import FunctionType, ModuleType

TYPE_CHECKING = False  # importing `typing` for it would double the time of a start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType, TracebackType
    from typing import Any, BinaryIO

    Encoder = Callable[[Any], Any]

LONGEST_LINE = 4 << 20
MOST_BYTES = 16 << 20
"""What the code may answer, in one line and altogether."""
MOST_ITEMS = 10_000
"""An iterator crosses as its first items."""
LONGEST_REASON = 300
START_SECONDS = 60
"""For the start of the process of the code, which a busy machine may delay."""
MODULE = 0
"""The number of the object with the names of the code."""
PLAIN_MODULES = ("builtins", "collections", "itertools")
SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}


# --- plain data as JSON ---------------------------------------------------------------------------


def encode(value: Any, keep: Encoder) -> Any:
    """Return plain data for JSON; of other objects, what `keep` makes of them."""
    kind = type(value)
    if kind.__module__ not in PLAIN_MODULES:
        return keep(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if abs(value) < 1 << 63 else {"int": f"{value:x}"}
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind.__name__ in SEQUENCES:
        return {kind.__name__: [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        pairs = [[encode(key, keep), encode(of, keep)] for key, of in value.items()]
        return {"dict": pairs}
    return _encode_rare(value, keep)


def _encode_rare(value: Any, keep: Encoder) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, type):
        known = vars(builtins).get(value.__name__) is value
        return {"type": value.__name__} if known else keep(value)
    if isinstance(value, Iterable):
        items = [item for _, item in zip(range(MOST_ITEMS), value, strict=False)]
        return {"iterator": encode(items, keep)}
    return keep(value)


def decode(data: Any, handle: Callable[[int], Any]) -> Any:
    """Return the value that was encoded."""
    if type(data) is list:
        return [decode(item, handle) for item in data]
    if type(data) is not dict:
        return data
    ((kind, content),) = data.items()
    if kind == "handle":
        return handle(content)
    if kind == "dict":
        return {decode(key, handle): decode(of, handle) for key, of in content}
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "type":
        return _builtin(content)
    items = [decode(item, handle) for item in content]
    if kind == "iterator":
        return iter(items)
    if kind in ("complex", "range"):
        return {"complex": complex, "range": range}[kind](*items)
    return SEQUENCES[kind](items)


def _builtin(name: Any) -> type:
    found = vars(builtins).get(name)
    if isinstance(found, type):
        return found
    raise ValueError(f"Python has no type {name!r}")


def line_of(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


# --- the process of the code ----------------------------------------------------------------------


class Code:
    """The code under test, which answers requests."""

    def __init__(self) -> None:
        module = sys.modules["answer"] = ModuleType("answer")
        self.names = vars(module)
        self.kept: list[Any] = [module]

    def keep(self, value: Any) -> Any:
        self.kept.append(value)
        return {"handle": len(self.kept) - 1}

    def answer(self, request: Any) -> Any:
        """Return what a request asks for, or the error that the code raised."""
        try:
            return {"value": encode(self._do(*request), self.keep)}
        except BaseException as error:
            known = [kind.__name__ for kind in type(error).__mro__]
            named = next(name for name in known if name in vars(builtins))
            message = str(error)[:LONGEST_REASON]
            if named != known[0]:
                message = f"{known[0]}: {message}"
            return {"error": named, "message": message}

    def _do(self, what: str, of: int, *content: Any) -> Any:
        if what == "run":
            for text in content:
                exec(compile(text, "answer", "exec"), self.names)
            return None
        target = self.kept[of]
        if what == "get":
            return getattr(target, *content)
        content = tuple(decode(item, self.kept.__getitem__) for item in content)
        if what == "set":
            return setattr(target, *content)
        args, kwargs = content
        return target(*args, **kwargs)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Run the code and answer requests until there are no more."""
    code = Code()
    answers.write(line_of("ready"))
    for request in requests:
        answers.write(line_of(code.answer(json.loads(request))))


# --- the process of the tests ---------------------------------------------------------------------


class Ended(BaseException):
    """The code answers no more. No `except Exception` of the tests catches it."""


class Unsuitable(BaseException):
    """The tests ask for what this sandbox cannot do."""


class Remote:
    """The process of the code, as the tests see it."""

    def __init__(
        self, requests: BinaryIO, answers: BinaryIO, verdict: BinaryIO
    ) -> None:
        self.requests, self.answers, self.verdict = requests, answers, verdict
        self.bytes = 0
        self.used = False
        self.ended: Ended | None = None

    def ask(self, what: str, of: int, *content: Any) -> Any:
        """Return the answer to a request, or raise what the code raised."""
        if self.ended:
            raise self.ended
        if what == "call":
            self.blame()
        try:
            self.requests.write(line_of([what, of, *content]))
        except OSError:
            raise self.end("the code ended its process") from None
        answer = self.read()
        try:
            if "error" not in answer:
                return decode(answer["value"], lambda number: Handle(self, number))
            name, message = answer["error"], str(answer["message"])
            kind = vars(builtins).get(name)
        except Exception:
            raise self.end("the answer of the code is no plain data") from None
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise kind(message)
        raise RuntimeError(f"{name}: {message}")

    def load(self, code: Sequence[str]) -> None:
        """Run the code, which then has names."""
        try:
            self.ask("run", MODULE, *code)
        except Exception as error:
            reason = f"the code cannot run: {_described(error)}"
            raise self.end(reason) from None

    def name(self, name: str) -> Any:
        """Return what the code calls so."""
        try:
            return self.ask("get", MODULE, name)
        except AttributeError:
            raise self.end(f"the code defines no {name!r}") from None

    def blame(self) -> None:
        """From here on, whatever fails is the fault of the code: no trick of it can make its tests
        look broken instead."""
        if not self.used:
            self.used = True
            self.verdict.write(line_of("used"))

    def read(self) -> Any:
        line = self.answers.readline(LONGEST_LINE)
        self.bytes += len(line)
        if not line:
            raise self.end("the code ended its process")
        if self.bytes > MOST_BYTES or not line.endswith(b"\n"):
            raise self.end("the code answered too much, or not to the end")
        try:
            return json.loads(line)
        except (ValueError, RecursionError, MemoryError):
            raise self.end("the answer of the code is no plain data") from None

    def end(self, reason: str) -> Ended:
        self.ended = Ended(reason)
        return self.ended


class Handle:
    """An object of the code. Calls and attributes are asked for; it equals only itself."""

    def __init__(self, remote: Remote, number: int) -> None:
        object.__setattr__(self, "_at", (remote, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        remote, number = _at(self)
        names = {"dict": [[name, _encoded(of)] for name, of in kwargs.items()]}
        return remote.ask("call", number, _encoded(list(args)), names)

    def __getattr__(self, name: str) -> Any:
        remote, number = _at(self)
        return remote.ask("get", number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        remote, number = _at(self)
        remote.ask("set", number, name, _encoded(value))


def _at(handle: Handle) -> tuple[Remote, int]:
    found: tuple[Remote, int] = object.__getattribute__(handle, "_at")
    return found


def _encoded(value: Any) -> Any:
    return encode(value, _number)


def _number(value: Any) -> Any:
    if type(value) is not Handle:
        kind = type(value).__name__
        raise Unsuitable(f"the tests hand a {kind} to the code: only plain data can be")
    return {"handle": _at(value)[1]}


class Names(dict[str, object]):
    """The global names of the tests. Their own come first, then those of Python and its library,
    and only then the code's: no name that the code defines changes what the tests mean."""

    def __init__(self, remote: Remote, tests: str) -> None:
        super().__init__(__name__="tests")
        self.remote = remote
        self.tests = tests

    def __missing__(self, name: str) -> Any:
        if name in vars(builtins):
            raise KeyError(name)
        # No module can be called: `copy(x)` is a function of the code.
        is_called = re.search(rf"(?<![\w.]){name}\s*\(", self.tests)
        if name in sys.stdlib_module_names and not is_called:
            return __import__(name)
        self.remote.blame()
        return self.remote.name(name)


def run_tests(remote: Remote, tests: str, entry_point: str | None, prompt: str) -> None:
    """Raise what failed."""
    names = Names(remote, tests)
    if entry_point:
        # Helpers of the prompt that tests use are not taken from the code, which may redefine them.
        exec(compile(prompt, "prompt", "exec"), names)
        names[entry_point] = remote.name(entry_point)
        if not callable(names[entry_point]):
            raise remote.end(f"{entry_point!r} is no function")
    exec(compile(tests, "tests", "exec"), names)
    check = names.get("check")
    if entry_point and isinstance(check, FunctionType):
        check(names[entry_point])
    for name, test in list(names.items()):
        if name.startswith("test") and isinstance(test, FunctionType):
            test()


def verdict_of(remote: Remote, job: dict[str, Any]) -> tuple[bool | None, str]:
    """Return whether the code passes, and the reason."""
    try:
        signal.alarm(START_SECONDS)
        try:
            remote.read()
        except Ended:
            return None, "the sandbox did not start"
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        remote.load(job["code"])
        run_tests(remote, job["tests"], job["entry_point"], job["prompt"])
    except (Ended, Unsuitable) as error:
        return (False if type(error) is Ended else None), str(error)
    except BaseException as error:
        found = _described(error) + _where(error.__traceback__, job["tests"])
        if not remote.used:
            return None, f"the tests cannot run: {found}"
        return False, f"failed: {found}"
    if remote.ended:
        return False, str(remote.ended)
    if not remote.used:
        return None, "the tests do not use the code"
    return True, "all tests pass"


def _described(error: BaseException) -> str:
    message = str(error)
    if not message:
        return type(error).__name__
    return f"{type(error).__name__}: {message}"


def _where(at: TracebackType | None, tests: str) -> str:
    """The line of the tests that failed."""
    found = ""
    lines = tests.splitlines()
    while at:
        if at.tb_frame.f_code.co_filename == "tests" and at.tb_lineno <= len(lines):
            found = f" at {lines[at.tb_lineno - 1].strip()!r}"
        at = at.tb_next
    return found


def judge(remote: Remote) -> None:
    """Run the tests of the job on standard input and write the verdict."""
    job = json.load(sys.stdin.buffer)

    def late(signum: int, frame: FrameType | None) -> None:
        raise remote.end(f"no result within {job['seconds']:g} seconds")

    signal.signal(signal.SIGALRM, late)
    passed, reason = verdict_of(remote, job)
    signal.setitimer(signal.ITIMER_REAL, 0)
    short = reason[:LONGEST_REASON]
    remote.verdict.write(line_of({"passed": passed, "reason": short}))


# --- both -----------------------------------------------------------------------------------------


def limit(seconds: int, memory: int, file_size: int) -> None:
    """Set limits for this process, which nothing in it can raise again."""
    most = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_STACK: 64 << 20,
    }
    if sys.platform == "linux":
        most |= {resource.RLIMIT_AS: memory, resource.RLIMIT_MEMLOCK: 0}
    for which, value in most.items():
        resource.setrlimit(which, (value, value))


def main(role: str, *numbers: str) -> None:
    seconds, memory, file_size, *fds = map(int, numbers)
    limit(seconds, memory, file_size)
    if role == "code":
        requested, answer = fds
        serve(os.fdopen(requested, "rb"), os.fdopen(answer, "wb", 0))
    else:
        request, answered, tell = fds
        told = os.fdopen(tell, "wb", 0)
        judge(Remote(os.fdopen(request, "wb", 0), os.fdopen(answered, "rb"), told))
    os._exit(0)  # at once: what the code left behind does not run


if __name__ == "__main__":
    main(*sys.argv[1:])
