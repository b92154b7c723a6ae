"""What is sent to a server, and how much of its answer is read."""

import gzip
from base64 import b64encode
from typing import Any

import pytest
from fake_server import Said, completion, error, serving
from raw_server import sending

from userlm.models import http_client
from userlm.models.endpoint import EndpointModel
from userlm.models.http_client import header_secrets
from userlm.types import InputError, ModelError, Sampling

KEY = "secret-key-of-a-test"


def ask(url: str, **options: Any) -> str:
    asked = EndpointModel("m", url, KEY, pause=0.001, **options)
    return asked.chat([{"role": "user", "content": "hi"}], Sampling()).text


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def test_a_server_on_this_machine_is_asked_without_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving([completion("ok")] * 2) as server, serving([]) as proxy:
        for name in PROXIES:
            monkeypatch.setenv(name, proxy.url)
        assert ask(server.url) == "ok"
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
        assert ask(server.url) == "ok"
    assert not proxy.requests


@pytest.mark.parametrize(
    ("proxy", "how"),
    [
        ("socks5://127.0.0.1:1", "install the package socksio"),
        ("htp://127.0.0.1:1", "give http://HOST:PORT"),
        ("http://me:pass/word@127.0.0.1:1", "give http://HOST:PORT"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    proxy: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(
        InputError, match=f"proxy in ALL_PROXY cannot .*{how}"
    ) as caught:
        EndpointModel("m", "http://model.invalid/v1", KEY)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_error_names_the_place(status: int) -> None:
    with serving([completion("ok")]) as other:
        place = f"{other.url}/chat/completions"
        with (
            serving([Said(status, headers={"Location": place})]) as server,
            pytest.raises(ModelError, match=f"redirects to {place}") as caught,
        ):
            ask(server.url)
    assert (len(server.requests), len(other.requests)) == (1, 0)
    assert (caught.value.reason, caught.value.permanent) == ("redirected", True)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/v2/chat", "/v2/chat"),
        ("http://[::1", "another address"),
        ("//", "another address"),
        ("?key=a-secret", "another address"),
        (f"/{KEY}", "/[key]"),
        (f"/%73{KEY[1:]}/v1", "/[key]/v1"),
        ("https://me:a-secret@h:8/v1?key=a-secret#a-secret", "https://h:8/v1"),
        ("https://a@b@h/v1;x", "https://h/v1;x"),
    ],
)
def test_of_the_place_only_scheme_host_and_path_are_named_and_never_the_key(
    place: str, shown: str
) -> None:
    with (
        serving([Said(307, headers={"Location": place})]) as server,
        pytest.raises(ModelError) as caught,
    ):
        ask(server.url)
    assert f"redirects to {shown} (" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "sent"), [("USERLM_API_KEY", False), ("OPENAI_API_KEY", True)]
)
def test_what_is_meant_for_openai_goes_to_no_other_server(
    variable: str, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "OPENAI_ORG_ID": "an-organization",
        "OPENAI_PROJECT_ID": "a-project",
        "OPENAI_CUSTOM_HEADERS": "X-Secret: a-header\nUser-Agent: an-agent",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with serving([completion("ok")]) as server:
        assert ask(server.url, key_variable=variable) == "ok"
    [headers] = server.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    for value in ("an-organization", "a-project", "a-header", "an-agent"):
        assert (value in headers.values()) is sent


def test_the_key_of_a_gateway_is_masked_in_errors_and_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = "X-Gateway-Token: Bearer gw-98765432\nX-Title: a-shop-of-shoes"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", headers)
    told = "gw-98765432 of a-shop-of-shoes"
    with serving([completion(told), error(400, told)]) as server:
        said = ask(server.url, key_variable="OPENAI_API_KEY")
        assert said == "[key] of a-shop-of-shoes"
        with pytest.raises(ModelError, match=r"\[key\] of a-shop") as caught:
            ask(server.url, key_variable="OPENAI_API_KEY")
    assert "gw-9876" not in str(caught.value)


def test_a_header_of_the_environment_does_not_replace_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "authorization: Bearer another")
    with serving([completion("ok")]) as server:
        ask(server.url)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "another" not in str(server.headers)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 600])
def test_of_an_endless_error_only_the_beginning_is_read(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_ERROR_BYTES", 1000)
    start = f"HTTP/1.1 {status} No\r\n\r\n".encode()
    with (
        sending(start, b"no" * 10**4) as url,
        pytest.raises(ModelError, match=rf"\(HTTP {status}\)"),
    ):
        ask(url, retries=0)


@pytest.mark.parametrize("status", [200, 500])
def test_a_compressed_body_is_not_unpacked(status: int) -> None:
    bomb = gzip.compress(gzip.compress(bytes(10**9 // 64)))
    start = f"HTTP/1.1 {status} X\r\nContent-Encoding: gzip, gzip\r\n"
    start += f"Content-Length: {len(bomb)}\r\n\r\n"
    with sending(start.encode() + bomb, b"") as url, pytest.raises(ModelError):
        ask(url, retries=0)


def test_an_answer_that_is_compressed_all_the_same_is_named() -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}"
    with (
        sending(start, b"") as url,
        pytest.raises(ModelError, match=r"compressed \(br\), which was not asked for"),
    ):
        ask(url, retries=0)


def test_no_compression_is_asked_for() -> None:
    with serving([completion("ok")]) as server:
        ask(server.url)
    assert server.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("header", "secrets"),
    [
        ("X-Api-Key: correct-horse-battery", ["correct-horse-battery"]),
        ("Authorization: Bearer my-master-key", ["my-master-key"]),
        (
            "Authorization: Token token=abcdefghijklmnopq",
            ["token=abcdefghijklmnopq", "abcdefghijklmnopq"],
        ),
        # The value of a key is one whole, whatever characters are in it.
        ("X-Api-Key: a1,b2|c3=d4{e5}", ["a1,b2|c3=d4{e5}"]),
        ("X-Api-Key-V2: a1;b2'c3\"d4", ["a1;b2'c3\"d4"]),
        ("X-Api-Key: a1 b2 c3 d4", ["a1 b2 c3 d4"]),
        ("Authorization: Bearer a1,b2|c3", ["a1,b2|c3"]),
        ("Cookie: lang=english,german; sid=a1,b2|c3=d4; a=b1,c2|d3", ["a1,b2|c3=d4"]),
        ("Cookie: sess=s3cr3tAB; session_0=s3cr3tCC", ["s3cr3tAB", "s3cr3tCC"]),
        (
            "Cookie: session_id=s3cr3tAB; auth.token.1=s3cr3tCC",
            ["s3cr3tAB", "s3cr3tCC"],
        ),
        ("X-Api-Key: a1,b2|c3,me@example.com:d4,e5|f6", ["a1,b2|c3,", ":d4,e5|f6"]),
        ("X-Api-Key: customer service", []),
        ("X-Api-Key: abcdef123:ghijk456", ["abcdef123:ghijk456"]),
        ("Cookie: sid=s3cr3tAB; lang=english", ["s3cr3tAB"]),
        ("Cookie: home=https://shop.example.com/; seen=2024-01-15", []),
        ("X-Session-Channel: customer-service", []),
        ("X-Api-Key-Version: 2024-05-01", []),
        ("X-Token: customer", []),
        ("X-Language: correct-horse-battery", []),
    ],
)
def test_what_looks_like_a_key_in_a_header_is_found(header, secrets):
    assert header_secrets(*header.split(": ", 1)) == secrets


def test_a_password_with_any_characters_in_basic_is_found():
    coded = b64encode(b"jane:a1,b2|c3=d4").decode()
    assert "a1,b2|c3=d4" in header_secrets("Authorization", f"Basic {coded}")
