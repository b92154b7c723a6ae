"""What runs inside the sandbox: the code under test, and the tests, each in a process of its own.

The text of this file is handed to a bare Python, so it uses the standard library alone. The process
of the tests says the verdict. The process of the code answers its requests, a line of JSON each:
only plain data crosses. Other objects stay where they are, and the tests get handles of them.
Nothing here calls a method of what came from the code, such as an `__eq__` of its own.
"""

from __future__ import annotations

import builtins
import os
import select
import sys
import time
from _collections_abc import Iterable

# What else this could import, such as json, signal or typing, takes as long as a whole start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any

    Job = tuple[list[str], str, str | None, str, float]
    Number = Callable[[Any], int]
    Object = Callable[[int], Any]

LONGEST_MESSAGE = 4 << 20
MOST_BYTES = 16 << 20
"""What the code may answer, at once and altogether."""
MOST_ITEMS = 10_000
"""An iterator crosses as its first items."""
LONGEST_REASON = 300
START_SECONDS = 60.0
"""For the start of the process of the code, which a busy machine may delay."""
STARTED = b"started"
USED = b"used"
"""What the process of the tests says before the verdict: the code is there; it is used. If nothing
more is said, whatever came last has failed."""
MODULE = 0
"""The number of the object with the names of the code."""
PLAIN_MODULES = ("builtins", "collections", "itertools")

Function: Any = type(lambda: None)
Module = type(sys)


# --- plain data as text ---------------------------------------------------------------------------
#
# A letter for the kind, then a number, a name or a length in hexadecimal up to `;`, then the
# content: `l2;i-1f;s3;abc` is [-31, "abc"].

CONSTANTS: dict[str, Any] = {"N": None, "T": True, "F": False}
COLLECTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "e": set,
    "z": frozenset,
    "d": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
    "r": lambda items: range(*items),
    "c": lambda items: complex(*items),
    "a": iter,
}


def encode(value: Any, number: Number) -> str:
    """Return plain data as text; of another object, the number that it is given."""
    kind = type(value)
    if kind.__module__ not in PLAIN_MODULES:
        return f"h{number(value):x};"
    if value is None or kind is bool:
        return str(value)[0]
    if kind is int:
        return f"i{value:x};"
    if kind is float:
        return f"f{value!r};"
    if kind is str:
        return f"s{len(value):x};{value}"
    if kind in (bytes, bytearray):
        return f"b{2 * len(value):x};{value.hex()}"
    if isinstance(value, type):
        name = value.__name__
        known = vars(builtins).get(name) is value
        return f"y{name};" if known else f"h{number(value):x};"
    letter, items = _items(value)
    if not letter:
        return f"h{number(value):x};"
    content = [encode(item, number) for item in items]
    return f"{letter}{len(content):x};{''.join(content)}"


def _items(value: Any) -> tuple[str, Iterable[Any]]:
    """The letter and the items of a collection; no letter if it is none."""
    kind = type(value)
    for letter, known in (("l", list), ("t", tuple), ("e", set), ("z", frozenset)):
        if kind is known:
            return letter, value
    if isinstance(value, dict):  # also those of `collections`
        return "d", [each for pair in value.items() for each in pair]
    if kind is range:
        return "r", (value.start, value.stop, value.step)
    if kind is complex:
        return "c", (value.real, value.imag)
    if isinstance(value, Iterable):
        first = zip(range(MOST_ITEMS), value, strict=False)
        return "a", [item for _, item in first]
    return "", ()


def decode(text: str, object: Object) -> Any:
    """Return the value that was encoded.

    Raises:
        Exception: of some kind, if that is not how values are encoded.
    """
    value, end = _decode(text, 0, object)
    if end != len(text):
        raise ValueError("there is more than a value")
    return value


def _decode(text: str, at: int, object: Object) -> tuple[Any, int]:
    """Return the value at a place of the text, and where it ends."""
    kind = text[at]
    if kind in CONSTANTS:
        return CONSTANTS[kind], at + 1
    end = text.index(";", at)
    head = text[at + 1 : end]
    end += 1
    if kind == "i":
        return int(head, 16), end
    if kind == "f":
        return float(head), end
    if kind == "y":
        return _builtin(head), end
    if kind == "h":
        return object(int(head, 16)), end
    size = int(head, 16)
    if not 0 <= size <= len(text) - end:
        raise ValueError("this is longer than the text")
    if kind in "sb":
        content = text[end : end + size]
        return (content if kind == "s" else bytes.fromhex(content)), end + size
    items = []
    for _ in range(size):
        item, end = _decode(text, end, object)
        items.append(item)
    return COLLECTIONS[kind](items), end


def _builtin(name: str) -> type:
    found = vars(builtins)[name]
    if isinstance(found, type):
        return found
    raise ValueError(f"{name} is no type")


# --- messages -------------------------------------------------------------------------------------


class TooMuch(Exception):
    """The other side sends more than it may."""


class Line:
    """Sends and receives texts: four bytes of length, then the text."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self.received = 0

    def send(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        content = len(content).to_bytes(4, "big") + content
        while content:
            content = content[os.write(self.write, content) :]

    def receive(self, end: float = 0.0) -> str:
        """Return the next text.

        Args:
            end: the time to wait for it; 0: for ever.

        Raises:
            EOFError: the other side has ended.
            TimeoutError: it sent nothing until then.
        """
        size = int.from_bytes(self._bytes(4, end), "big")
        self.received += size
        if size > LONGEST_MESSAGE or self.received > MOST_BYTES:
            raise TooMuch
        return self._bytes(size, end).decode("utf-8", "surrogatepass")

    def _bytes(self, size: int, end: float) -> bytes:
        parts = []
        while size:
            if end:
                left = max(0.0, end - time.monotonic())
                if not select.select([self.read], [], [], left)[0]:
                    raise TimeoutError
            part = os.read(self.read, size)
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


# --- the process of the code ----------------------------------------------------------------------


class Code:
    """The code under test, which answers requests."""

    def __init__(self) -> None:
        module = sys.modules["answer"] = Module("answer")
        self.names = vars(module)
        self.kept: list[Any] = [module]

    def keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def answer(self, request: str) -> str:
        """Return what a request asks for, or the error that the code raised."""
        try:
            done = self._do(*decode(request, self.kept.__getitem__))
            return encode((True, done), self.keep)
        except BaseException as error:
            known = [kind.__name__ for kind in type(error).__mro__]
            named = next(name for name in known if name in vars(builtins))
            message = str(error)[:LONGEST_REASON]
            if named != known[0]:
                message = f"{known[0]}: {message}"
            return encode((False, named, message), self.keep)

    def _do(self, what: str, *content: Any) -> Any:
        if what == "run":
            for text in content:
                exec(compile(text, "answer", "exec"), self.names)
            return None
        if what == "get":
            return getattr(*content)
        if what == "set":
            return setattr(*content)
        target, args, kwargs = content
        return target(*args, **kwargs)


def serve(line: Line) -> None:
    """Run the code and answer requests until there are no more."""
    code = Code()
    line.send("ready")
    while True:
        try:
            request = line.receive()
        except EOFError:
            return
        line.received = 0  # the tests may say as much as they want
        line.send(code.answer(request))


# --- the process of the tests ---------------------------------------------------------------------


class Ended(BaseException):
    """The code answers no more. No `except Exception` of the tests catches it."""


class Unsuitable(BaseException):
    """The tests ask for what this sandbox cannot do."""


class Remote:
    """The process of the code, as the tests see it.

    Attributes:
        end: when it must have answered.
        verdict: where to say that the code is used.
    """

    def __init__(self, line: Line, verdict: int) -> None:
        self.line, self.verdict = line, verdict
        self.end = time.monotonic() + START_SECONDS
        self.used = False
        self.ended: Ended | None = None

    def ask(self, what: str, *content: Any) -> Any:
        """Return the answer to a request, or raise what the code raised."""
        if self.ended:
            raise self.ended
        request = encode((what, *content), _number)
        self._say(USED)  # its answer may be made to be read for ever
        try:
            return self._answer(request)
        finally:
            self._say(STARTED)

    def _answer(self, request: str) -> Any:
        answer = self.exchange(request)
        try:
            good, value, *message = decode(answer, lambda number: Handle(self, number))
            if good:
                return value
            kind = vars(builtins).get(value)
            text = str(*message)
        except Exception:
            raise self.over("the answer of the code is no plain data") from None
        # Those would end a `map` or `zip` of the tests as if there were no more to compare.
        is_end = kind in (StopIteration, StopAsyncIteration)
        if isinstance(kind, type) and issubclass(kind, Exception) and not is_end:
            raise kind(text)
        raise RuntimeError(f"{value}: {text}")

    def exchange(self, request: str = "") -> str:
        """Send a request, if there is one, and return the answer."""
        try:
            if request:
                self.line.send(request)
            return self.line.receive(self.end)
        except TimeoutError:
            raise self.over("the code took too long") from None
        except TooMuch:
            raise self.over("the code answered too much") from None
        except (EOFError, OSError):
            raise self.over("the code ended its process") from None
        except (ValueError, MemoryError):
            raise self.over("the answer of the code is no plain data") from None

    def load(self, code: Sequence[str]) -> None:
        """Run the code, which then has names."""
        try:
            self.ask("run", *code)
        except Exception as error:
            reason = f"the code cannot run: {_described(error)}"
            raise self.over(reason) from None

    def name(self, name: str) -> Any:
        """Return what the code calls so."""
        try:
            return self.ask("get", Handle(self, MODULE), name)
        except Exception:
            raise self.over(f"the code defines no {name!r}") from None

    def use(self) -> Remote:
        """From here on, whatever fails is the fault of the code: no trick of it can make its tests
        look broken instead."""
        self._say(USED)
        self.used = True
        return self

    def _say(self, word: bytes) -> None:
        if not self.used:
            os.write(self.verdict, word + b"\n")

    def over(self, reason: str) -> Ended:
        self.ended = Ended(reason)
        return self.ended


class Handle:
    """An object of the code. Calls and attributes are asked for; it equals only itself."""

    def __init__(self, remote: Remote, number: int) -> None:
        object.__setattr__(self, "_at", (remote, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _at(self)[0].use().ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return _at(self)[0].use().ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _at(self)[0].use().ask("set", self, name, value)


def _at(handle: Handle) -> tuple[Remote, int]:
    found: tuple[Remote, int] = object.__getattribute__(handle, "_at")
    return found


def _number(value: Any) -> int:
    if type(value) is not Handle:
        kind = type(value).__name__
        raise Unsuitable(f"the tests hand a {kind} to the code: only plain data can be")
    return _at(value)[1]


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
        if name in sys.stdlib_module_names and not _is_called(name, self.tests):
            return __import__(name)
        return self.remote.use().name(name)


def _is_called(name: str, tests: str) -> bool:
    """Whether tests call what has this name: then it is no module."""
    import re

    return re.search(rf"(?<![\w.]){name}\s*\(", tests) is not None


def run_tests(remote: Remote, tests: str, entry_point: str | None, prompt: str) -> None:
    """Raise what failed."""
    names = Names(remote, tests)
    if entry_point:
        # Helpers of the prompt that tests use are not taken from the code, which may redefine them.
        exec(compile(prompt, "prompt", "exec"), names)
        names[entry_point] = remote.name(entry_point)
        if type(names[entry_point]) is not Handle:
            remote.use()  # a built-in type crosses, and is called here
        if not callable(names[entry_point]):
            raise remote.over(f"{entry_point!r} is no function")
    exec(compile(tests, "tests", "exec"), names)
    check = names.get("check")
    if entry_point and isinstance(check, Function):
        check(names[entry_point])
    for name, test in list(names.items()):
        # One with parameters is a helper, which the tests call themselves.
        if name.startswith("test") and isinstance(test, Function) and not _needs(test):
            test()


def _needs(function: Any) -> bool:
    """Whether a function cannot be called without arguments."""
    code = function.__code__
    given = len(function.__defaults__ or ()) + len(function.__kwdefaults__ or ())
    wanted: int = code.co_argcount + code.co_kwonlyargcount
    return wanted > given


def verdict_of(remote: Remote, job: Job) -> tuple[bool | None, str]:
    """Return whether the code passes, and the reason."""
    code, tests, entry_point, prompt, seconds = job
    try:
        try:
            remote.exchange()
        except Ended:
            return None, "the sandbox did not start"
        remote._say(STARTED)
        remote.end = time.monotonic() + seconds
        remote.load(code)
        run_tests(remote, tests, entry_point, prompt)
    except (Ended, Unsuitable) as error:
        return (False if type(error) is Ended else None), str(error)
    except BaseException as error:
        found = _described(error) + _where(error.__traceback__, tests)
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
    """Run the tests of the job on standard input and write the verdict: `T`, `F` or `N`, and the
    reason."""
    text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    passed, reason = verdict_of(remote, decode(text, _number))
    line = str(passed)[0] + reason[:LONGEST_REASON].replace("\n", " ")
    os.write(remote.verdict, line.encode("utf-8", "replace"))


# --- both -----------------------------------------------------------------------------------------


def limit(seconds: int, memory: int, file_size: int) -> None:
    """Set limits for this process, which nothing in it can raise again."""
    import resource  # Windows has none

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
    read, write, *others = fds
    line = Line(read, write)
    if role == "code":
        serve(line)
    else:
        judge(Remote(line, *others))
    os._exit(0)  # at once: what the code left behind does not run


if __name__ == "__main__":
    main(*sys.argv[1:])
