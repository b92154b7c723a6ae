"""The sandbox: right code passes, wrong code does not, and nothing inside forges, reaches or stays.

Code under attack is never run without the sandbox, but for what only reads."""

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm import commands
from userlm.commands.grading import Grading
from userlm.json_files import write_lines
from userlm.rows import read_rows, write_conversations
from userlm.sandbox import finding, processes, seccomp
from userlm.sandbox.finding import find
from userlm.sandbox.inside import decode, encode
from userlm.sandbox.sandbox import Limits
from userlm.types import RIGHT, WRONG, Conversation, InputError, TestsCheck, Verdict

pytestmark = pytest.mark.sandbox
ROOT = Path(__file__).resolve().parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

# No constant and no simple rule passes it.
CHECK = TestsCheck("for i in range(20):\n    assert f(i) == i * 7919 % 101")
RIGHT_CODE = "def f(i): return i * 7919 % 101"


@pytest.fixture(scope="session")
def unsafe():
    return find(unsafe_local=True)


@pytest.fixture(scope="session")
def impatient(sandbox):
    """For code that never ends."""
    return replace(sandbox, limits=Limits(seconds=0.3, memory=256 << 20))


# --- grading --------------------------------------------------------------------------------------


def test_right_code_passes_and_wrong_code_does_not(sandbox):
    assert sandbox.run(CHECK, RIGHT_CODE) == Verdict(RIGHT, "all tests pass")
    assert sandbox.run(CHECK, "def f(i): return 0").label == WRONG


def test_the_reason_names_the_line_of_the_tests_that_failed(unsafe):
    verdict = unsafe.run(TestsCheck("assert f(1) == 1\nassert f(2) == 4"), "f = abs")
    assert verdict.reason == "failed: AssertionError at 'assert f(2) == 4'"


CHECKED = TestsCheck(
    "def check(candidate):\n    assert candidate(2) == half(8)",
    "twice",
    'import math\ndef half(x):\n    return x // 2\ndef twice(x):\n    """Twice x."""\n',
)


@pytest.mark.parametrize(
    "code",
    ["    return 2 * x", "def twice(x):\n    return half(4 * x)", "twice = math.exp2"],
)
def test_code_may_continue_the_prompt_or_stand_after_it(unsafe, code):
    if "exp2" in code:
        code = "twice = lambda x: math.pow(x, 2)"
    assert unsafe.run(CHECKED, code).label == RIGHT


def test_a_prompt_that_is_only_a_signature_gets_a_body(unsafe):
    bare = replace(CHECKED, prompt="def half(x): return x // 2\ndef twice(x):\n")
    assert unsafe.run(bare, "    return 2 * x").label == RIGHT
    assert unsafe.run(bare, "def twice(x): return 2 * x").label == RIGHT
    for prompt in ("def (", "(" * 10_000, "-" * 100_000 + "1", "\0"):
        broken = replace(CHECKED, prompt=prompt)
        assert unsafe.run(broken, RIGHT_CODE).label is None


def test_helpers_of_the_prompt_are_not_taken_from_the_code(unsafe):
    code = "def half(x): return 0\ndef twice(x): return 0"
    assert unsafe.run(CHECKED, code).label == WRONG


def test_tests_may_be_functions(unsafe):
    check = TestsCheck("def test_one():\n    assert f(1) == 1")
    assert unsafe.run(check, "f = abs").label == RIGHT
    assert unsafe.run(check, "f = str").label == WRONG
    tests = "def test_of(a, *, b):\n    assert f(a) == b\ntest_of(-1, b=1)"
    assert unsafe.run(TestsCheck(tests), "f = abs").label == RIGHT
    assert unsafe.run(TestsCheck(tests), "f = str").label == WRONG


def test_objects_of_the_code_stay_inside_and_can_be_used(unsafe):
    code = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
def size(stack): return len(stack.items)
"""
    tests = """
stack = Stack()
stack.push((1, 2))
stack.name = "mine"
assert stack.items == [(1, 2)] and stack.name == "mine" and size(stack) == 1
"""
    assert unsafe.run(TestsCheck(tests), code).label == RIGHT


def test_an_exception_of_the_code_reaches_the_tests(unsafe):
    tests = "try:\n    f()\n    assert False\nexcept ValueError as e:\n    assert 'no' in str(e)"
    code = "class Mine(ValueError): pass\ndef f(): raise Mine('no')"
    assert unsafe.run(TestsCheck(tests), code).label == RIGHT


@pytest.mark.parametrize(
    "tests",
    [
        "assert all(map(lambda i: f(i) == i * 7919 % 101, range(20)))",
        "for got, want in zip(map(f, range(9)), range(9)): assert got == want",
        "f(0) if False else None\nassert [*filter(f, [1])] == []",
    ],
)
@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration"])
def test_an_end_of_iteration_of_the_code_ends_no_loop_of_the_tests(unsafe, tests, kind):
    code = f"class Mine({kind}): pass\ndef f(i): raise Mine('x')"
    for raised in (code, code.replace("Mine('x')", kind)):
        verdict = unsafe.run(TestsCheck(tests), raised)
        assert verdict.label == WRONG and kind in verdict.reason, verdict


UNRUN = {
    "async def test_f():\n    assert f(1) == 2": "test_f is asynchronous",
    "def test_f():\n    yield\n    assert f(1) == 2": "test_f yields",
    "class Tests:\n    def test_f(self): assert f(1) == 2": "Tests is a class",
    "def test_f(f): assert f(1) == 2": "test_f has parameters and is not called",
}
RUN = """
def test_helper(f): assert f(1) == 7919 % 101
def test_f(n=1):
    def ones(): yield n
    test_helper(lambda i: f(*ones()))
class Tester:
    def run(self): pass
"""


@pytest.mark.parametrize("tests", UNRUN)
def test_a_test_that_would_not_be_run_gives_no_verdict_and_is_named(unsafe, tests):
    verdict = unsafe.run(TestsCheck(f"assert f(0) == 0\n{tests}"), "def f(i): return 0")
    assert verdict.label is None and UNRUN[tests] in verdict.reason
    assert "would never be run; write functions" in verdict.reason


def test_helpers_of_tests_are_no_tests_that_are_not_run(unsafe):
    assert unsafe.run(TestsCheck(RUN), RIGHT_CODE).label == RIGHT
    assert unsafe.run(TestsCheck(RUN), "def f(i): return 0").label == WRONG


def test_results_of_iterators_counters_and_large_numbers_are_plain_data(unsafe):
    code = """
from collections import Counter
def values(): yield from (1, 2)
def counts(): return Counter("aab")
def large(): return -(10 ** 5000)
"""
    tests = "assert list(values()) == [1, 2] and counts() == {'a': 2, 'b': 1}"
    tests += "\nassert large() == -(10 ** 5000)"
    assert unsafe.run(TestsCheck(tests), code).label == RIGHT


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("assert f(", "SyntaxError"),
        ("", "do not use the code"),
        ("def check(candidate): assert candidate(1)", "do not use the code"),
        ("assert 1 == 2\nf(1)", "AssertionError"),
        ("import numpy\nassert f(1)", "No module named 'numpy'"),
        ("assert undefined_in(1", "SyntaxError"),
        ("f(print)", "only plain data"),
        pytest.param(
            "import time\ntime.sleep(9)\nf(1)", "did not end", marks=pytest.mark.slow
        ),
    ],
)
def test_tests_that_cannot_say_anything_give_no_verdict(unsafe, tests, reason):
    quick = replace(unsafe, limits=Limits(seconds=0.5))
    verdict = quick.run(TestsCheck(tests), RIGHT_CODE)
    assert verdict.label is None and reason in verdict.reason


@pytest.mark.parametrize(
    "code",
    [
        "",
        "def f(",
        "return 1",
        "\0",
        "\ud800",
        "def g(i): return i",
        "f = 3",
        "word " * 100_000,
        "(" * 100_000,
        "-" * 100_000 + "1",
        "import numpy",
        "raise KeyboardInterrupt",
    ],
    ids=range(12),
)
def test_code_that_is_none_is_wrong(sandbox, code):
    assert sandbox.run(CHECK, code).label == WRONG


def test_a_function_that_is_none_is_wrong_and_not_ungraded(unsafe):
    check = TestsCheck("def check(candidate):\n    assert candidate(1) == 1", "f")
    assert unsafe.run(check, "f = abs").label == RIGHT
    assert unsafe.run(check, "f = 3") == Verdict(WRONG, "'f' is no function")
    assert unsafe.run(check, "def f(): pass").label == WRONG
    for built_in, right in (("int", RIGHT), ("bool", RIGHT), ("str", WRONG)):
        assert unsafe.run(check, f"f = {built_in}").label == right


@pytest.mark.parametrize("name", ["copy", "statistics", "filter"])
def test_a_function_may_have_the_name_of_a_module_or_of_a_builtin(unsafe, name):
    code = f"def {name}(x): return x + 1"
    named = TestsCheck(f"assert {name}(1) == 2", name)
    assert unsafe.run(named, code).label == RIGHT
    if name != "filter":  # without an entry point it is Python's
        assert unsafe.run(replace(named, entry_point=None), code).label == RIGHT


def test_modules_that_tests_use_are_not_taken_from_the_code(unsafe):
    code = "class math: isclose = lambda a, b: True\ndef f(x): return 0"
    assert unsafe.run(TestsCheck("assert math.isclose(f(1), 1)"), code).label == WRONG


def test_classes_that_ask_for_their_module_work(unsafe):
    code = """
from __future__ import annotations
import pickle
from dataclasses import dataclass
@dataclass
class Point:
    x: int
def f(x): return pickle.loads(pickle.dumps(Point(x))).x
"""
    assert unsafe.run(TestsCheck("assert f(3) == 3"), code).label == RIGHT


def test_a_reason_has_no_control_characters(unsafe):
    verdict = unsafe.run(CHECK, "def f(i): raise ValueError('\\033[2J\\n')")
    assert verdict.label == WRONG and verdict.reason.isprintable()


def test_a_process_that_cannot_be_started_gives_no_verdict(sandbox):
    def fails(*given):
        raise BlockingIOError("too many processes")

    broken = replace(sandbox, start=fails, slots=1)
    for _ in range(2):  # its slot is free again
        assert broken.run(CHECK, RIGHT_CODE).label is None


def test_of_two_functions_of_one_name_the_last_counts(unsafe):
    assert unsafe.run(CHECK, f"def f(i): return 0\n{RIGHT_CODE}").label == RIGHT
    assert unsafe.run(CHECK, f"{RIGHT_CODE}\ndef f(i): return 0").label == WRONG


def test_more_threads_than_slots_wait_for_each_other(sandbox):
    two = replace(sandbox, slots=2)
    labels = []

    def work():
        labels.append(two.run(CHECK, RIGHT_CODE).label)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert labels == [RIGHT] * 5


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers())
        | st.sets(st.text())
    ),
    max_leaves=8,
)


@settings(max_examples=30)
@given(plain)
def test_plain_data_crosses_unchanged(value):
    crossed = decode(encode(value, None), None)
    assert crossed == value and type(crossed) is type(value)


# --- forging --------------------------------------------------------------------------------------

WRITE = """
import os
def frame(text): return len(text).to_bytes(4, 'big') + text
def write(fd, content):
    try: os.write(fd, content)
    except OSError: pass
def write_all(content):
    for fd in range(3, 40): write(fd, content)
"""
SENDS = WRITE + "def f(i): write_all(frame({}))"

FORGED = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit when called": "def f(i): raise SystemExit(0)",
    "a success marker": "print('PASS', {'passed': True})\ndef f(i):\n    print('OK')\n    return 0",
    "verdicts on every descriptor": WRITE
    + """
for fd in range(1, 64):
    write(fd, b'Tall tests pass')
    for text in (b't2;TT', b't2;Ti0;', b'Tall tests pass'):
        write(fd, frame(text) * 40)
def f(i): return 0
""",
    "a number that equals all": "class E(int):\n    def __eq__(s, o): return True\ndef f(i): return E(0)",
    "an object that equals all": "class E:\n    def __eq__(s, o): return True\ndef f(i): return E()",
    "patched builtins": """
import builtins, json, sys
builtins.AssertionError = Exception
builtins.all = builtins.any = lambda x: True
json.dumps = lambda x: '{"passed": true, "reason": "", "value": true}'
def f(i): return 0
""",
    "patched types": """
import ctypes
def f(i):
    for name in ('int', 'list'):
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(__builtins__[name]))
    return True
""",
    "a def that shadows the checker": "def check(c): return True\ndef run_tests(*a): return True\ndef f(i): return 0",
    "names of the tests": "def range(n): return []\ni = 0\nAssertionError = Exception\ndef f(i): return 0",
    "passed, to the callers' lists": """
import sys
def f(i):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if hasattr(value, 'append'):
                value.append('passed')
        frame = frame.f_back
    return 0
""",
    "the tests in memory": """
import gc, sys
def f(i):
    found = [str(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]
    frame = sys._getframe()
    while frame:
        found.append(str(frame.f_locals) + str(frame.f_globals))
        frame = frame.f_back
    return i * 7919 % 101 if any('assert f(i) ==' in text for text in found) else 0
""",
    "the tests by inspection": """
import __main__
def f(i):
    return i * 7919 % 101 if hasattr(__main__, 'job') or 'job' in vars(__main__) else 0
""",
    "an AssertionError of its own": "class A(AssertionError): pass\ndef f(i): raise A()",
    "an exception of the checker": "def f(i):\n    raise type('Ended', (BaseException,), {})('all tests pass')",
    "a crash": "import ctypes\ndef f(i): ctypes.string_at(0)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 8)\ndef g(n): return g(n + 1)\ndef f(i): return g(0)",
    "a deeply nested answer": "def f(i):\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "an answer that contains itself": "def f(i):\n    x = []\n    x.append(x)\n    return x",
    "a deeply nested message": SENDS.format("b't2;T' + b'l1;' * 500_000 + b'N'"),
    "a number of millions of digits": SENDS.format(
        "b't2;Ti' + b'9' * 3_000_000 + b';'"
    ),
    "a length below zero": SENDS.format("b't2;Ts-4;'"),
    "a length beyond the end": SENDS.format("b't2;Tl100000;'"),
    "more than a value": SENDS.format("b't2;Ti0;i0;'"),
    "kinds of data that there are not": SENDS.format("b't2;Tyexec;'"),
    "a set of lists": SENDS.format("b't2;Te1;l0;'"),
    "a range of text": SENDS.format("b't2;Tr3;s1;as1;as1;a'"),
    "an error of no kind": SENDS.format("b't3;Fl0;s1;a'"),
    "an error without a message": SENDS.format("b't2;Fs14;AssertionError'"),
    "an error of many messages": SENDS.format("b't5;Fs1;ai0;i0;i0;'"),
    "no bytes of text": SENDS.format("b't2;Ts1;' + bytes([255])"),
    "more than it says": WRITE
    + "def f(i): write_all((9).to_bytes(4, 'big') + b't2;Ti0;t2;Ti0;')",
    "a message of 4 GB": WRITE + "def f(i): write_all(b'\\xff' * 4)",
    "half a message": WRITE + "def f(i): write_all(frame(b't2;Ti0;')[:6]); os._exit(0)",
    "an error while names are looked up": "def __getattr__(name): raise ValueError('no')",
    "threads": "import threading, time\ndef f(i):\n    while True: threading.Thread(target=time.sleep, args=(99,)).start()",
    "memory": "def f(i):\n    x = []\n    while True: x.append(bytearray(64 << 20))",
}
ENDLESS = {
    "a loop": "def f(i):\n    while True: pass",
    "a loop at once": "while True: pass",
    "sleep": "import time\ndef f(i): time.sleep(99)",
    "signals ignored": "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    "output": "def f(i):\n    while True: print('x' * 10_000)",
    "answers": "import os\ndef f(i):\n    while True:\n        for fd in range(3, 40):\n            try: os.write(fd, b'x' * 65_536)\n            except OSError: pass",
    "an iterator": "def f(i):\n    while True: yield 'x' * 10_000",
    "forks": "import os\ndef f(i):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "exceptions": "def f(i):\n    while True:\n        try: raise ValueError\n        except BaseException: continue",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "deep recursion"))
        for name in FORGED
    ],
)
def test_no_code_forges_a_verdict(sandbox, name):
    small = replace(sandbox, limits=Limits(memory=128 << 20))
    verdict = small.run(CHECK, FORGED[name])
    assert verdict.label == WRONG, verdict


@pytest.mark.parametrize("name", ENDLESS)
def test_no_code_is_waited_for_longer_than_it_may_take(impatient, name):
    verdict = impatient.run(CHECK, ENDLESS[name])
    assert verdict.label == WRONG, verdict


def test_tests_that_catch_everything_do_not_hide_that_the_code_ended(sandbox):
    tests = "for i in range(3):\n    try: f(i)\n    except: pass"
    assert sandbox.run(TestsCheck(tests), "def f(i): return i").label == RIGHT
    code = "import os\ndef f(i): os._exit(0)"
    assert sandbox.run(TestsCheck(tests), code).label == WRONG


# To read it takes time in the square of its length: all numbers have one hash.
COLLIDING = (
    WRITE
    + """
text = 't2;Te' + hex(40_000)[2:] + ';' + ''.join(f'i{k * (2**61 - 1):x};' for k in range(1, 40_001))
def send_ahead(): write_all(b'%s' + frame(text.encode()))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "frame(b't2;TN')"])
def test_an_answer_that_takes_for_ever_to_read_is_the_fault_of_the_code(sandbox, first):
    quick = replace(sandbox, limits=Limits(seconds=0.5))
    check = TestsCheck("def check(candidate):\n    assert candidate(1) == 1", "f")
    code = (
        COLLIDING.replace("b'%s'", first or "b''") + "send_ahead()\ndef f(i): return 0"
    )
    assert quick.run(check, code).label == WRONG


@pytest.mark.slow
def test_tests_that_hang_on_an_answer_are_the_fault_of_the_code(impatient):
    tests = "size = f(1)\nwhile size: size += 1"
    assert impatient.run(TestsCheck(tests), "def f(x): return 1").label == WRONG
    assert impatient.run(TestsCheck(tests), "def f(x): return 0").label == RIGHT


# --- reaching out ---------------------------------------------------------------------------------

REACHING = {
    "reads a file": "def reach(host): return open(host['file']).read()",
    "writes a file": "def reach(host): return open(host['file'], 'a').write('x')",
    "reads the users": "def reach(host): return open('/etc/passwd').read()",
    "connects": "import socket\ndef reach(host): socket.create_connection(('127.0.0.1', host['port']), 1)",
    "connects to an abstract socket": "import socket\ndef reach(host): socket.socket(socket.AF_UNIX).connect(host['abstract'])",
    "listens": "import socket\ndef reach(host): socket.socket().bind(('127.0.0.1', 0))",
    "sees a process": "import os\ndef reach(host): os.kill(host['process'], 0)",
    "sees any process": "import os\ndef reach(host): os.kill(-1, 0)",
    "reads the environment of its parent": "def reach(host): open(f\"/proc/{host['parent']}/environ\", 'rb').read()",
    "lists processes": "import os\ndef reach(host): os.listdir('/proc')",
    "forks": "import os\ndef reach(host): os.fork() or os._exit(0)",
    "spawns": "import os\ndef reach(host): os.posix_spawn('/usr/bin/true', ['true'], {})",
    "runs a program": "import subprocess\ndef reach(host): subprocess.run(['/usr/bin/true'])",
    "memfd": "import os\ndef reach(host): os.memfd_create('x')",
    "shared memory": "def reach(host): open('/dev/shm/x', 'w')",
    "System V shared memory": "def reach(host): call('shmget', 0, 1 << 20, 0o1600)",
    "System V semaphores": "def reach(host): call('semget', 0, 1, 0o1600)",
    "message queues": "def reach(host): call('mq_open', b'/x', 0o102, 0o600, None)",
    "a namespace": "def reach(host): call('unshare', 0x10000000)",
    "a mount": "def reach(host): call('mount', b'x', b'/tmp', b'tmpfs', 0, None)",
    "ptrace": "def reach(host): call('ptrace', 0, 0, 0, 0)",
    "raises its limits": "import resource\ndef reach(host): resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "root": "import os\ndef reach(host): os.setuid(0)",
    "writes outside of /tmp": """
import os
def reach(host):
    for folder, _, _ in os.walk('/'):
        if not folder.startswith('/tmp') and folder.count('/') < 3:
            try: open(folder + '/x', 'w')
            except OSError: continue
            return
    raise OSError
""",
    "fills the disk": """
def reach(host):
    for i in range(20):
        open(f'/tmp/{i}', 'wb').write(b'x' * (3 << 20))
""",
    "writes a large file": "def reach(host): open('/tmp/x', 'wb').write(b'x' * (8 << 20))",
}
CALL = """
import ctypes, os
def call(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""
READS = tuple(REACHING)[:7]
"""What does no harm where it succeeds."""
WRAPPED = """
def managed(host):
    try:
        reach(host)
    except (OSError, ValueError, RuntimeError) as error:
        print(error)
        return False
    return True
"""


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """What there is to reach. Everybody may, so that only the sandbox forbids it."""
    file = tmp_path_factory.mktemp("host") / "file"
    file.write_text("alive")
    file.chmod(0o666)
    for folder in list(file.parents)[:4]:
        if folder.owner() == file.owner() and str(folder) != "/tmp":
            folder.chmod(0o755)
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    abstract = socket.socket(socket.AF_UNIX)
    name = f"\0userlm-{os.getpid()}"
    if sys.platform == "linux":
        abstract.bind(name)
        abstract.listen()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as process:
        yield {
            "file": str(file),
            "port": tcp.getsockname()[1],
            "abstract": name,
            "process": process.pid,
            "parent": os.getpid(),
        }
        assert process.poll() is None
        process.stdin.close()
    for one in (tcp, abstract):
        one.close()


def reached(sandbox, name, host) -> bool:
    check = TestsCheck(f"assert managed({host!r}) is False")
    verdict = sandbox.run(check, CALL + REACHING[name] + WRAPPED)
    assert verdict.label is not None, verdict
    return verdict.label == WRONG


@pytest.mark.parametrize("name", REACHING)
def test_no_code_reaches_out(sandbox, host, name):
    assert not reached(sandbox, name, host)


@LINUX
@pytest.mark.parametrize("name", READS)
def test_the_same_code_reaches_out_where_nothing_isolates_it(unsafe, host, name):
    assert reached(unsafe, name, host)


def test_the_environment_inside_is_empty(sandbox, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    code = "import os\ndef names(): return [n for n in os.environ if n not in ('LC_CTYPE', 'PWD')]"
    assert sandbox.run(TestsCheck("assert names() == []"), code).label == RIGHT


def test_the_code_is_nobody_and_has_no_rights(sandbox):
    code = """
import ctypes, os
NO_NEW_PRIVILEGES, AMBIENT = 39, 47
def rights():
    libc = ctypes.CDLL(None)
    ids = os.getresuid() + os.getresgid()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    return [0 in ids, list(sets), libc.prctl(NO_NEW_PRIVILEGES, 0, 0, 0, 0)]
"""
    tests = "assert rights() == [False, [0] * 6, 1]"
    verdict = sandbox.run(TestsCheck(tests), code)
    assert verdict.label == RIGHT, verdict


def test_the_tests_are_isolated_too(sandbox, host):
    tests = f"f(1)\ntry:\n    open({host['file']!r})\nexcept OSError: pass\nelse: raise SystemError"
    assert sandbox.run(TestsCheck(tests), "f = abs").label == RIGHT


def test_nothing_stays_of_what_was_stopped(impatient):
    one = replace(impatient, slots=1)
    one.run(CHECK, ENDLESS["forks"])
    one.run(CHECK, ENDLESS["signals ignored"])
    opened = Path("/proc/self/fd")
    before = set(opened.iterdir())
    one.run(CHECK, ENDLESS["answers"])
    assert set(opened.iterdir()) == before
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True)
    mine = [line for line in listed.stdout.splitlines() if str(os.getpid()) in line]
    assert not [line for line in mine if "bwrap" in line or "defunct" in line]


# --- finding one ----------------------------------------------------------------------------------


def test_a_process_is_stopped_however_soon(sandbox, monkeypatch):
    # Bubblewrap tells the number of the process in parts.
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 10)))
    process = sandbox.start(["-c", "input()"], 0, (), subprocess.PIPE)
    process.stop()
    assert process.popen.returncode is not None


def test_a_machine_without_bubblewrap_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(finding.shutil, "which", lambda name: None)
    monkeypatch.setattr(finding.sys, "platform", "linux")
    with pytest.raises(InputError, match=r"apt-get install bubblewrap.*--unsafe-local"):
        find()


@LINUX
def test_what_keeps_bubblewrap_from_working_is_said(monkeypatch, tmp_path):
    refuses = tmp_path / "bwrap"
    refuses.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: no' >&2\nexit 1\n")
    refuses.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(finding.shutil, "which", lambda name: str(refuses))
    monkeypatch.setattr(processes.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(finding, "CONTAINERS", (str(tmp_path),))
    with pytest.raises(InputError, match=r"uid map: no; .*--security-opt seccomp"):
        find()
    monkeypatch.setattr(finding, "CONTAINERS", ())
    enabled = tmp_path / "apparmor"
    enabled.write_text("1\n")
    monkeypatch.setattr(finding, "APPARMOR", enabled)
    with pytest.raises(InputError, match="bwrap-userns-restrict"):
        find()


@pytest.mark.parametrize("machine", seccomp.AUDIT)
def test_the_filter_refuses_what_it_names_and_allows_the_rest(machine):
    """It is run here by hand: load, jump, return."""

    def result(number: int, architecture: int) -> int:
        data = {seccomp.NUMBER: number, seccomp.ARCHITECTURE: architecture}
        text = seccomp.program(machine)
        at = value = 0
        while True:
            code, skip_if, skip_if_not, k = seccomp.struct.unpack_from(
                "<HBBI", text, at
            )
            at += 8
            if code == seccomp.LOAD:
                value = data[k]
            elif code == seccomp.RETURN:
                return k
            else:
                holds = value == k if code == seccomp.EQUAL else value >= k
                at += 8 * (skip_if if holds else skip_if_not)

    own = seccomp.AUDIT[machine]
    refused = seccomp.ERRNO | seccomp.EPERM
    for number in (*seccomp.REFUSED[machine].values(), *seccomp.NEWER.values()):
        assert result(number, own) == refused
    assert result(seccomp.CLONE3, own) == seccomp.ERRNO | seccomp.ENOSYS
    for number in (0, 59, 221, 300, 436):
        assert result(number, own) == seccomp.ALLOW
    assert result(0, 1) == result(seccomp.X32 + 1, own) == seccomp.KILL


def test_the_example_of_the_docs_runs(sandbox):
    text = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    exec(compile(example, "sandbox.md", "exec"), {})


# --- in `score` -----------------------------------------------------------------------------------


def scored(folder, **options) -> dict[str, object]:
    """The grades of three answers, by conversation: right, wrong, and talk."""
    check = {"tests": "assert double(2) == 4"}
    rows = [{"id": id, "intent": "double it", "check": check} for id in "abc"]
    tasks = folder / "tasks.jsonl"
    write_lines(tasks, rows)
    code = "```python\ndef double(x):\n    return {}\n```"
    answers = (code.format("2 * x"), code.format("x"), "Which language?")
    talks = []
    for id, answer in zip("abc", answers, strict=True):
        talks.append(Conversation(id).say("double it").say(answer))
    write_conversations(folder / "talks.jsonl", talks)
    given = commands.Score([folder / "talks.jsonl"], tasks=str(tasks), **options)
    commands.score(replace(given, out=folder / "score"))
    lines = [line.row for line in read_rows(folder / "score" / "scores.jsonl")]
    found = [line for line in lines if line["metric"] == "assistant score"]
    return {line["key"]: (line["stats"] or [None])[0] for line in found}


def test_score_grades_code_in_the_sandbox_that_it_finds(sandbox, tmp_path):
    assert scored(tmp_path) == {"a": 1, "b": 0, "c": 0}


def test_score_runs_no_code_without_a_sandbox_unless_it_is_told_to(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(finding.shutil, "which", lambda name: None)
    assert scored(tmp_path) == {"a": None, "b": None, "c": 0}
    assert "--unsafe-local" in capsys.readouterr().err
    (tmp_path / "told").mkdir()
    grading = Grading(unsafe_local=True)
    assert scored(tmp_path / "told", grading=grading) == {"a": 1, "b": 0, "c": 0}


@pytest.mark.slow
@pytest.mark.parametrize(("required", "outcome"), [("0", "skipped"), ("1", "error")])
def test_without_a_sandbox_its_tests_are_skipped_with_a_line_or_fail(
    tmp_path, required, outcome
):
    test = "tests/test_sandbox.py::test_right_code_passes_and_wrong_code_does_not"
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "USERLM_REQUIRE_SANDBOX": required,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert f"1 {outcome}" in done.stdout
    assert "bubblewrap is not installed" in done.stdout
    assert (done.returncode == 0) == (required == "0")
