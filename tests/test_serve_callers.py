"""Who may call a server, and callers who take their time, open many connections, or send nonsense."""

import http.client
import importlib
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import processes
import pytest
from playing import while_serving
from test_serve import Gated, Served, say, serving, until

from userlm.assistants import Script
from userlm.commands.serve import _own_hosts
from userlm.serving import connections

command = importlib.import_module("userlm.commands.serve")

OURS = ("127.0.0.1", "localhost", "::1")
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": "user", "messages": say("a", "b")}).encode()


@pytest.fixture(scope="module")
def guarded():
    with serving(Script(["hi"]), hosts=OURS) as server:
        yield server


def raw(server, request, seconds=10, address="127.0.0.1"):
    """The first line of the answer to these bytes; empty if the connection was closed without."""
    with socket.create_connection((address, server.port), seconds) as caller:
        caller.sendall(request)
        try:
            return caller.recv(65536).partition(b"\r\n")[0].decode()
        except ConnectionResetError:
            return ""


def status(server, *headers, target=b"/v1/models", version=b"1.1", address="127.0.0.1"):
    lines = [b"GET %s HTTP/%s" % (target, version), *headers, b"Connection: close"]
    line = raw(server, b"\r\n".join(lines) + b"\r\n\r\n", address=address)
    return int(line.split()[1])


# --- host names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1",
        b"127.0.0.1:8765",
        b"localhost",
        b"LocalHost:1",
        b"[::1]",
        b"[::1]:65535",
        b" localhost ",
    ],
)
def test_a_server_of_this_machine_answers_under_its_own_names(guarded, host):
    assert status(guarded, b"Host:" + host) == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:80",
        b"EVIL.EXAMPLE",
        b"",
        b" ",
        b":8765",
        b"a{b.evil.example",
        b"a}b.evil.example",
        b'a"b.evil.example',
        b"a`b.evil.example",
        b"a_b.evil.example",
        b"a b",
        b"evil.example\\@localhost",
        b"evil.example@localhost",
        b"localhost@evil.example",
        b"user:localhost@evil.example",
        b"localhost.",
        b"localhost.evil.example",
        b"evil-localhost",
        b"xlocalhost",
        b"localhost:",
        b"localhost:80:80",
        b"localhost:x",
        b"localhost:123456",
        b"localhost:-1",
        b"localhost:\xb2",
        b"localhost/",
        b"localhost#",
        b"localhost?",
        b"localhost,evil.example",
        b"localhost evil.example",
        b"http://localhost",
        b"loc\xe4lhost",
        b"::1",
        b"[::1",
        b"::1]",
        b"[::1].evil.example",
        b"[localhost]",
        b"[127.0.0.1]",
        b"[::ffff:127.0.0.1]",
        b"127.1",
        b"127.0.0.1.",
        b"127.0.0.1.evil.example",
        b"0.0.0.0",
        b"2130706433",
        b"null",
    ],
)
def test_under_any_other_name_it_does_not(guarded, host):
    assert status(guarded, b"Host:" + host) == 403


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b"Host: localhost", b"Host: localhost"],
        [b"Host: localhost", b"Host: evil.example"],
        [b"Host: localhost\0"],
        [b"Host : localhost"],
        [b"X-Forwarded-Host: localhost"],
    ],
)
def test_a_name_that_is_missing_or_there_twice_is_no_name(guarded, headers):
    assert status(guarded, *headers) in (400, 403)
    assert status(guarded, *headers, version=b"1.0") in (400, 403)


@pytest.mark.parametrize(
    "target", [b"http://evil.example/v1/models", b"http://localhost/v1/models", b"*"]
)
def test_a_target_that_names_a_host_is_no_path(guarded, target):
    assert status(guarded, b"Host: localhost", target=target) == 404


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (b"http://localhost:3000", 200),
        (b"https://127.0.0.1", 200),
        (b"http://[::1]:8765", 200),
        (b"http://evil.example", 403),
        (b"http://localhost.evil.example", 403),
        (b"http://localhost@evil.example", 403),
        (b"null", 403),
        (b"", 403),
        (b"file://", 403),
        (b"chrome-extension://localhost", 403),
        (b"localhost", 403),
    ],
)
def test_only_pages_of_this_machine_may_call(guarded, origin, expected):
    found = status(guarded, b"Host: localhost", b"Origin: " + origin)
    assert found == expected


@pytest.mark.parametrize(
    ("host", "called"),
    [("Gpu-Box", b"gpu-box:8765"), ("fd00::1", b"[fd00::1]"), ("::1", b"[::1]")],
)
def test_the_host_that_was_given_is_a_name_of_the_server(host, called):
    with serving(Script(["hi"]), hosts=_own_hosts(host)) as server:
        assert status(server, b"Host: " + called) == 200
        assert status(server, b"Host: " + called, b"Origin: http://" + called) == 200
        refused = server.post(b"", "/v1/models", "GET", Host="evil.example")[2]
        assert "use 127.0.0.1 as the host name" in refused


@pytest.mark.parametrize(
    ("key", "evil"), [("", [403, 403, 403]), ("k", [401, 401, 401])]
)
def test_a_server_of_every_address_answers_under_no_name_of_other_sites(
    key, evil, tmp_path, monkeypatch
):
    (tmp_path / "lines.txt").write_text("hi\n", encoding="utf-8")
    monkeypatch.setenv(command.KEY, key)
    found = []

    def ask(served, port):
        server = Served(f"http://127.0.0.2:{port}/v1", served)
        for headers in (
            [b"Host: evil.example"],
            [b"Host: evil.example", b"Origin: http://evil.example"],
            [b"Host: 127.0.0.2", b"Origin: http://evil.example"],
            [b"Host: 127.0.0.2", b"Origin: http://127.0.0.2"],
            [b"Host: localhost"],
        ):
            found.append(status(server, *headers, address="127.0.0.2"))

    user = f"script:{tmp_path / 'lines.txt'}"
    while_serving(monkeypatch, ask, user=user, host="0.0.0.0")
    assert found == [*evil, *([401, 401] if key else [200, 200])]


def test_with_a_key_any_name_will_do_and_health_is_open_to_all(guarded):
    assert status(guarded, b"Host: evil.example", target=b"/health") == 200
    with serving(Script(["hi"]), key="k") as server:
        asked = b"Host: any.example", b"Origin: http://any.example"
        assert status(server, *asked, b"Authorization: Bearer k") == 200
        assert status(server, *asked) == 401


# --- callers who take their time ------------------------------------------------------------------


def is_closed(caller):
    """Whether the server has closed a connection."""
    try:
        return caller.recv(65536) == b""
    except ConnectionResetError:
        return True


def drip(caller, data, seconds):
    """Send bytes one by one; whether the server closed the connection meanwhile."""
    begun = time.monotonic()
    for i in range(len(data)):
        try:
            caller.sendall(data[i : i + 1])
        except OSError:
            return True
        time.sleep(0.02)
        if time.monotonic() - begun > seconds:
            return False
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"POST /v1/chat",
        HEAD,
        HEAD + b"Content-Length: 1000\r\n\r\n",
        HEAD + b"Content-Length: 1000\r\n\r\n" + BODY,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        # Answered before the body has come.
        b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
    ],
)
def test_a_request_that_does_not_end_is_cut_and_nothing_is_logged(
    begin, monkeypatch, capfd
):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.4)
    with serving(Script(["hi"])) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, 5) as waits:
            waits.sendall(begin)
            while not is_closed(waits):
                pass
        if begin:
            with socket.create_connection(address, 5) as drips:
                drips.sendall(begin)
                assert drip(drips, b"x" * 500, seconds=5)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "half", [b"POST /v1/chat", HEAD + b"Content-Length: 1000\r\n\r\n" + BODY]
)
@pytest.mark.parametrize("whole", [1, 2])
def test_a_request_that_begins_before_the_last_answer_has_the_same_time(
    half, whole, monkeypatch
):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.4)
    with (
        serving(Script(["hi"])) as server,
        socket.create_connection(("127.0.0.1", server.port), 5) as caller,
    ):
        caller.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * whole + half)
        answers = b""
        while part := caller.recv(65536):
            answers += part
    assert answers.count(b"200 OK") == whole


def test_unfinished_bodies_have_a_limit_together_and_the_largest_is_given_up(
    monkeypatch,
):
    monkeypatch.setattr("userlm.serving.app.MAX_UNFINISHED_BYTES", 50_000)
    begin = HEAD + b"Content-Length: 40000\r\n\r\n"
    with serving(Script(["hi"])) as server:
        address = ("127.0.0.1", server.port)
        callers = [socket.create_connection(address, 5) for _ in range(3)]
        small, large, last = callers
        for caller, size in ((small, 9_000), (large, 30_000), (last, 20_000)):
            caller.sendall(begin + b" " * size)  # 9 + 30 + 20 is more than 50
            time.sleep(0.1)
        large.sendall(b" ")
        assert large.recv(65536).startswith(b"HTTP/1.1 503")
        for caller, size in ((last, 20_000), (small, 9_000)):
            caller.sendall(BODY + b" " * (40_000 - size - len(BODY)))
            time.sleep(0.1)
            assert caller.recv(65536).startswith(b"HTTP/1.1 200")
        for caller in callers:
            caller.close()


def test_a_body_in_many_tiny_chunks_is_refused_and_one_in_ordinary_chunks_is_not(capfd):
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    tiny, ordinary = b"1\r\n \r\n", b"80\r\n%s\r\n" % (b" " * 128)
    end = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    with serving(Script(["hi"])) as server:
        whole = HEAD + chunked + ordinary * 5_000 + end
        assert raw(server, whole).startswith("HTTP/1.1 200")
        # Many short requests on one connection are counted one by one.
        with socket.create_connection(("127.0.0.1", server.port), 5) as caller:
            caller.sendall((HEAD + chunked + tiny * 800 + end) * 3)
            answers = b""
            while answers.count(b"200 OK") < 3:
                answers += caller.recv(65536)
        assert raw(server, HEAD + chunked + tiny * 1_500).startswith("HTTP/1.1 400")
        # Answered before the body has come.
        for body in (tiny * 1_500, b"no chunk\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), 5) as caller:
                caller.sendall(b"POST /no HTTP/1.1\r\nHost: x\r\n" + chunked)
                assert caller.recv(65536).startswith(b"HTTP/1.1 404")
                caller.sendall(body)
                while not is_closed(caller):
                    pass
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
def test_a_client_that_waits_for_its_answer_or_between_two_requests_is_not_cut(
    monkeypatch,
):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    user = Gated(threading.Event())
    with serving(user) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        headers = {"Content-Type": "application/json"}
        client.request("POST", "/v1/chat/completions", BODY, headers)
        time.sleep(1.3)
        user.gate.set()
        assert json.loads(client.getresponse().read())["choices"]
        time.sleep(1.3)
        client.request("POST", "/v1/chat/completions", BODY, headers)
        assert client.getresponse().status == 200
        client.close()


@pytest.mark.slow
def test_a_client_that_does_not_take_its_answer_is_cut(monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with serving(Script(["long " * 2_000_000])) as server:
        caller.connect(("127.0.0.1", server.port))
        caller.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        time.sleep(0.3)
        until(lambda: server.pool.in_flight == 0)
        # Leaving the context waits for answers that are being sent.
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    caller.close()


@pytest.mark.parametrize(
    "half", [b"POST /v1", HEAD, HEAD + b"Content-Length: 99\r\n\r\n{"]
)
def test_half_a_request_does_not_keep_the_server_from_stopping(half):
    with serving(Script(["hi"])) as server:
        caller = socket.create_connection(("127.0.0.1", server.port))
        caller.sendall(half)
        assert raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    caller.close()


@pytest.mark.slow
def test_a_new_client_takes_the_place_of_one_that_owes_its_request(monkeypatch):
    monkeypatch.setattr("userlm.serving.app.MAX_CONNECTIONS", 8)
    user = Gated(threading.Event())
    with serving(user, batch=1, queue=1) as server:
        address = ("127.0.0.1", server.port)
        asked = socket.create_connection(address)
        asked.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        until(lambda: user.begun == 1)
        kept = http.client.HTTPConnection(*address)
        kept.request("GET", "/health")
        kept.getresponse().read()
        half = [socket.create_connection(address) for _ in range(20)]
        for caller in half:
            caller.sendall(b"GET / HTTP/1.1\r\nX:")
        for _ in range(3):
            answer = raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer == "HTTP/1.1 200 OK"
        # Those that are kept open and those that are being answered stay.
        kept.request("GET", "/health")
        assert kept.getresponse().status == 200
        user.gate.set()
        assert asked.recv(65536).startswith(b"HTTP/1.1 200")
        for caller in (asked, kept, *half):
            caller.close()


NONSENSE = [
    b"\0" * 100,
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: -1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"A" * 100_000,
]


def test_requests_that_are_no_http_fill_no_log(guarded, capfd):
    for request in NONSENSE:
        assert raw(guarded, request).split()[1:2] in ([], ["400"], ["404"], ["431"])
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
def test_idle_connections_beyond_the_open_files_lock_nobody_out(tmp_path):
    (tmp_path / "lines.txt").write_text("hi\n", encoding="utf-8")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
        "from userlm.cli import main; main()"
    )
    options = ["serve", "--user", "script:lines.txt", "--port", "0"]
    run = processes.Process(["-c", code], *options, cwd=tmp_path, USERLM_SERVE_KEY="")
    try:
        port = int(re.search(r":(\d+)/v1", run.stderr.readline())[1])

        def call(_):
            caller = socket.create_connection(("127.0.0.1", port), 60)
            caller.sendall(b"POST / HTTP/1.1\r\nX:")
            return caller

        # At once: one that the full queue of the system drops tries again after a second or two.
        with ThreadPoolExecutor(64) as pool:
            idle = list(pool.map(call, range(300)))
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        client.request("GET", "/health")
        assert client.getresponse().status == 200
        run.send_signal(signal.SIGTERM)
        _, err = run.communicate(timeout=10)
    finally:
        run.kill()
    for caller in idle:
        caller.close()
    assert run.returncode == 0 and "system resource" not in err
