"""Endpoints, through the real `openai` client, against a small local server."""

import json
import time
from base64 import b64encode, urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from email.utils import formatdate
from itertools import product
from urllib.parse import quote

import pytest
from fake_server import CUT, HANG, Said, completion, error, serving
from raw_server import sending

from userlm import loading
from userlm.assistants import ModelAssistant
from userlm.keys import _key_pattern, mask_key, mask_keys
from userlm.models import endpoint, http_client
from userlm.models.budget import PER_MESSAGE, Budget, Caps, Price
from userlm.models.call_cache import Answer, CallCache, answer_of
from userlm.models.endpoint import EndpointModel
from userlm.models.faults import come_back
from userlm.types import TOO_LONG, Conversation, ModelError, Sampling

KEY = "secret-key-of-a-test"
HI = [{"role": "user", "content": "hi"}]


def model(server, **options):
    return EndpointModel(
        "m", server.url, KEY, **{"timeout": 0.4, "pause": 0.001, **options}
    )


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, in seconds, without waiting."""
    slept = []
    monkeypatch.setattr(endpoint, "pause", slept.append)
    return slept


def test_an_assistant_at_an_address_is_asked_in_chat_form(monkeypatch):
    monkeypatch.setenv("USERLM_API_KEY", KEY)
    with serving([completion("Sure.")]) as server:
        assistant = loading.assistant(f"{server.url}#tiny", system="Be brief.")
        log = Conversation("a").say("hi").say("hello").say("help me")
        reply = assistant.reply(log)
    [(path, authorization, body)] = server.requests
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body["model"] == "tiny"
    assert [m["role"] for m in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert isinstance(body["seed"], int)
    assert reply.text == "Sure."
    assert (reply.meta["tokens_in"], reply.meta["tokens_out"]) == (
        9 + 2 + 5 + 7 + 4 * 4,
        2,
    )


def test_passing_faults_are_tried_again_and_counted():
    faults = [
        error(429),
        error(500),
        error(503),
        CUT,
        HANG,
        Said(body="{not json"),
        completion("  "),
    ]
    with serving([*faults, completion("ok")]) as server:
        out = model(server, retries=7).chat(HI, Sampling())
    assert out.text == "ok"
    assert out.faults == (
        "rate limited",
        "server error",
        "server error",
        "connection cut",
        "timed out",
        "broken answer",
        "empty answer",
    )
    # The last four may have been written, and so billed.
    assert out.possibly_billed == 4
    assert len(server.requests) == 8  # the client makes no tries of its own


def test_an_error_has_the_faults_of_each_try():
    with (
        serving([error(429), HANG, error(502, "bad gateway")]) as server,
        pytest.raises(ModelError) as caught,
    ):
        model(server, retries=2).chat(HI, Sampling())
    assert str(caught.value) == "m: the server failed: bad gateway (HTTP 502)"
    assert caught.value.faults == ("rate limited", "timed out", "server error")
    assert (
        caught.value.reason,
        caught.value.possibly_billed,
        caught.value.permanent,
    ) == (
        "server error",
        1,
        False,
    )


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(error(400, f"bad request with {KEY} in it"), id="refused"),
        pytest.param(Said(body="{not json"), id="broken JSON"),
        pytest.param(completion(""), id="empty"),
        pytest.param(completion(None), id="no content"),
        pytest.param(Said(body={"id": "1", "choices": []}), id="no choices"),
        pytest.param(Said(body={"detail": "not an answer at all"}), id="another shape"),
        pytest.param(Said(body="plain text"), id="plain text"),
        pytest.param(Said(body="<html>Welcome</html>"), id="a page"),
        pytest.param(Said(body=[]), id="an array"),
        pytest.param(Said(body="[" * 100_000), id="an array in an array, and so on"),
        pytest.param(Said(body={"choices": [{}]}), id="a choice without a message"),
        pytest.param(Said(body={"choices": {"a": 1}}), id="choices that are no list"),
        pytest.param(completion([{"type": "image"}]), id="parts without text"),
        pytest.param(completion(5), id="a number"),
        pytest.param(error(400, "x" * 295 + KEY), id="a key where the error is cut"),
        pytest.param(error(401, f"incorrect key: {KEY[:8]}****"), id="a masked key"),
        pytest.param(Said(500, f"<html>{KEY}</html>"), id="an error page"),
        pytest.param(Said(400, [KEY]), id="an error that is an array"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_model_and_never_shows_the_key(broken):
    with serving([broken] * 3) as server, pytest.raises(ModelError) as caught:
        ModelAssistant(model(server, retries=1)).reply(Conversation("a").say("hi"))
    assert KEY[:6] not in str(caught.value) and str(caught.value).startswith("m: ")


@pytest.mark.parametrize(
    "form",
    [
        KEY.upper(),
        KEY.title(),
        "".join(f"%{ord(c):02X}" for c in KEY),
        "".join(f"%25{ord(c):02x}" for c in KEY),
        KEY.replace("-", "%2d"),
        f"\\u0073{KEY[1:]}",
        "".join(f"\\\\u{ord(c):04X}" for c in KEY.upper()),
        KEY.replace("e", r"\x65").replace("-", "\\-"),
        KEY.replace("s", "&#115;").replace("-", "&amp;#x2D;"),
        KEY.encode().hex(),
    ],
)
def test_a_key_that_the_server_encoded_is_in_no_error_and_no_answer(form):
    with serving([error(400, f"no {form}!"), completion(f"my {form}!")]) as server:
        with pytest.raises(ModelError, match=r"no \[key\]!"):
            model(server).chat(HI, Sampling())
        assert model(server).chat(HI, Sampling()).text == "my [key]!"


@pytest.mark.parametrize("secret", ["sk-aB/3+cD?>~xyz0", KEY, f"{KEY}s", f"{KEY}to"])
def test_a_key_in_base64_is_masked_whatever_stands_around_it(secret):
    for before, after in product(("", "u", "u:", "Bearer "), ("", "\n", ", ok")):
        for encode in (b64encode, urlsafe_b64encode):
            coded = encode((before + secret + after).encode()).decode()
            left = mask_key(f"no {coded}!", secret)
            assert "[key]" in left and len(left) < len(before + after) * 4 / 3 + 18
            assert mask_key(coded.replace("/", "\\/"), secret) in left
            assert "[key]" in mask_key(quote(coded, safe=""), secret)


def test_of_a_key_that_begins_with_another_nothing_stays():
    keys = ["acme-prod", None, "acme-prod-9f8e7d6c5b4a"]
    assert mask_keys("bad acme-prod-9f8e7d6c5b4a of acme-prod", keys) == (
        "bad [key] of [key]"
    )


def test_a_long_key_is_masked_whole_and_costs_no_more_than_a_short_one():
    def seconds(key):
        begun = time.process_time()
        mask_key("none", key)
        return time.process_time() - begun

    long = "".join(f"k{n}-X" for n in range(400))
    assert seconds(long) < 4 * seconds(long[1:41])
    coded = b64encode(long.encode()).decode()
    said = f"no {long}, {coded}, {long.upper()}, {quote(coded)} and {long[:300]}..."
    left = "no [key], [key], [key], [key] and [key]..."
    assert mask_key(said, long) in (left, left.removesuffix("..."))
    words = f"{long[:40]} of {long}"
    assert mask_key(f"no {words}!", words) == "no [key]!"


def test_no_answer_waits_for_the_patterns_of_a_key():
    model = EndpointModel("m", "http://127.0.0.1:1", "a-key-that-none-has")
    before = _key_pattern.cache_info().misses
    assert model.masked("a-key-that-none-has") == "[key]"
    assert _key_pattern.cache_info().misses == before


def test_a_key_with_slashes_is_masked_as_json_writes_it():
    assert mask_key(r"x sk\/ab\/cdef x", "sk/ab/cdef") == "x [key] x"
    assert mask_key("abc/defg/hij***", "abc/defg/hijklmnop") == "[key]***"
    assert mask_key("none OLLAMA ollama", "ollama") == "none OLLAMA [key]"


@pytest.mark.parametrize(
    ("said", "reason", "words"),
    [
        (
            error(401),
            "key refused",
            "put the right one into the environment variable USERLM_API_KEY",
        ),
        (error(402, "top up"), "no credit", "top up"),
        (error(403, "not yours"), "not allowed", "not yours"),
        (
            error(404, "no model m"),
            "not found",
            "check the model's name, and that the URL ends in /v1",
        ),
        (
            error(429, "too little", code="insufficient_quota"),
            "no credit",
            "too little",
        ),
    ],
)
def test_an_error_that_all_calls_would_have_is_raised_at_once(said, reason, words):
    with serving([said]) as server, pytest.raises(ModelError, match=words) as caught:
        model(server).chat(HI, Sampling())
    assert (
        caught.value.reason,
        caught.value.permanent,
        caught.value.possibly_billed,
    ) == (
        reason,
        True,
        0,
    )


@pytest.mark.parametrize(
    "said",
    [
        completion(None, finish="content_filter"),
        error(400, "the prompt was filtered", code="content_filter"),
        Said(403, {"error": {"code": 403, "metadata": {"flagged_input": "..."}}}),
    ],
)
def test_an_answer_that_is_filtered_is_an_error_of_its_own_and_not_tried_again(said):
    with (
        serving([said]) as server,
        pytest.raises(ModelError, match=r"^m: refused: ") as caught,
    ):
        model(server).chat(HI, Sampling())
    assert (
        caught.value.reason,
        caught.value.permanent,
        caught.value.possibly_billed,
    ) == (
        "refused",
        False,
        1,
    )


@pytest.mark.parametrize(
    "said, text, thought, refused",
    [
        pytest.param(
            completion(None, refusal="I will not."), "I will not.", "", True, id="field"
        ),
        pytest.param(
            completion([{"type": "refusal", "refusal": "No."}]),
            "No.",
            "",
            False,
            id="a refusal in a part",
        ),
        pytest.param(
            completion("He took the", finish="content_filter"),
            "He took the",
            "",
            False,
            id="filtered at the end",
        ),
        pytest.param(
            completion(
                [
                    {"type": "thinking", "thinking": "Size?"},
                    {"type": "text", "text": "How large is it?"},
                    {"type": "image_url", "image_url": {"url": "data:"}},
                ]
            ),
            "How large is it?",
            "Size?",
            False,
            id="parts",
        ),
        pytest.param(
            completion("It says hi.</think>\n\nHi!"),
            "Hi!",
            "It says hi.",
            False,
            id="tag",
        ),
        pytest.param(
            completion("Hi!", reasoning="It says hi."),
            "Hi!",
            "It says hi.",
            False,
            id="a field of its own",
        ),
        pytest.param(
            completion(None, reasoning_content="It says"),
            "",
            "It says",
            False,
            id="all",
        ),
    ],
)
def test_what_was_said_is_the_answer_and_what_was_thought_stands_beside_it(
    said, text, thought, refused
):
    with serving([said]) as server:
        out = model(server).chat(HI, Sampling())
    assert (out.text, out.thought, out.refused) == (text, thought, refused)


def test_a_model_that_spends_all_tokens_on_reasoning_is_not_asked_again():
    said = completion(None, finish="length")
    with (
        serving([said]) as server,
        pytest.raises(ModelError, match="allow more") as caught,
    ):
        model(server).chat(HI, Sampling())
    assert caught.value.reason == "empty answer"


def test_an_empty_answer_is_asked_for_again_with_another_seed_and_not_at_temperature_0():
    with serving([completion(""), completion(""), completion("ok")]) as server:
        assert model(server).chat(HI, Sampling(seed=7)).text == "ok"
    seeds = [body["seed"] for body in server.bodies]
    assert seeds[0] == 7 and len(set(seeds)) == 3
    greedy = Sampling(temperature=0, seed=7)
    with (
        serving([completion(""), completion("ok")]) as server,
        pytest.raises(ModelError, match="the answer is empty"),
    ):
        model(server).chat(HI, greedy)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_an_error_of_the_model_and_costs_nothing():
    where = "no connection to http://127.0.0.1:9/v1; is it running"
    with pytest.raises(ModelError, match=where) as caught:
        EndpointModel("m", "http://127.0.0.1:9/v1", KEY, retries=1, pause=0.001).chat(
            HI, Sampling()
        )
    assert caught.value.faults == ("no connection",) * 2
    assert (caught.value.possibly_billed, caught.value.permanent) == (0, True)


def test_the_pause_is_what_the_server_asks_for_up_to_two_minutes(pauses):
    asked = [
        {"Retry-After": "7"},
        {"Retry-After": "2", "retry-after-ms": "300"},
        {"Retry-After": formatdate(time.time() + 45, usegmt=True)},
        {"Retry-After": formatdate(time.time() - 20, usegmt=True)},
        {"Retry-After": "120"},
        {"retry-after-ms": "120000", "Retry-After": "86400"},
    ]
    with serving(
        [*(error(429, headers=headers) for headers in asked), completion("ok")]
    ) as server:
        model(server, retries=len(asked)).chat(HI, Sampling())
    jitter = 0.1  # half of the last backoff, 0.001 * 2**5, at most
    # The test itself may take seconds.
    wanted = (
        (7, 7),
        (0.3, 0.3),
        (30, 45),
        (0, 0),
        (120, 120),
        (120, 120),
    )
    for slept, (least, most) in zip(pauses, wanted, strict=True):
        assert least <= slept <= most + jitter


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (429, {"Retry-After": "10800"}, "in 3 h 0 min: too many requests: no"),
        (503, {"retry-after-ms": "121000"}, "in 2 min: the server failed: no"),
        (429, {"Retry-After": formatdate(time.time() + 72 * 3600 - 60)}, "in 71 h"),
        (429, {"Retry-After": "1e18"}, "in more than a year: "),
    ],
)
def test_a_longer_wait_ends_the_call_at_once_and_says_when_to_come_back(
    status, headers, said, pauses
):
    with (
        serving([error(status, headers=headers)]) as server,
        pytest.raises(ModelError, match="the server asks to come back ") as caught,
    ):
        model(server).chat(HI, Sampling())
    assert said in str(caught.value)
    assert (caught.value.reason, caught.value.permanent) == ("long wait", True)
    assert pauses == [] and len(server.requests) == 1


def test_the_time_to_come_back_is_local_time():
    now = datetime(2030, 5, 6, 22, 30)
    assert come_back(5400, now) == (
        "the server asks to come back at 2030-05-07 00:00, in 1 h 30 min"
    )


BODY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(BODY, b" ", id="white space for ever"),
        pytest.param(BODY + b'{"choices": "', b"a", id="half a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", id="headers for ever"),
        pytest.param(b"H", b"", id="half a line"),
    ],
)
def test_a_whole_try_has_a_deadline_however_slowly_the_server_sends(first, then):
    with (
        sending(first, then) as url,
        pytest.raises(ModelError, match="in time") as caught,
    ):
        asked = EndpointModel("m", url, KEY, retries=1, timeout=0.2, pause=0.001)
        asked.chat(HI, Sampling())
    assert caught.value.faults == ("timed out", "timed out")
    assert caught.value.possibly_billed == 2


def test_all_tries_of_a_call_together_have_a_deadline(monkeypatch):
    monkeypatch.setattr(endpoint, "LONGEST_CALL", 0.5)
    monkeypatch.setattr(endpoint, "SHORTEST_TRY", 0.01)
    begun = time.monotonic()
    with (
        sending(BODY, b" ") as url,
        pytest.raises(ModelError, match="in time") as caught,
    ):
        EndpointModel("m", url, KEY, timeout=0.4, pause=0.001).chat(HI, Sampling())
    assert caught.value.faults == ("timed out", "timed out")
    assert time.monotonic() - begun < 5


def test_many_requests_at_once_share_few_clients(monkeypatch):
    monkeypatch.setattr(endpoint, "REQUESTS_PER_CLIENT", 3)
    said = replace(completion("ok"), hang=0.2)
    with serving(lambda body, n: said) as server, ThreadPoolExecutor(8) as pool:
        asked = model(server, timeout=5)
        answers = list(pool.map(lambda _: asked.chat(HI, Sampling()).text, range(24)))
    assert answers == ["ok"] * 24
    # Three clients have nine places.
    assert list(asked._in_flight.values()) == [0, 0, 0]


def test_an_endless_answer_is_read_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 10**5)
    with (
        sending(BODY, b"{" * 10**5) as url,
        pytest.raises(ModelError, match="longer than 100,000 bytes"),
    ):
        EndpointModel("m", url, KEY, retries=0).chat(HI, Sampling())


def test_an_answer_of_more_characters_than_the_allowed_tokens_have_is_asked_for_again():
    # The longest tokens have 128 characters.
    long, longest = completion("a" * 1281), completion("a" * 1280)
    with serving([long, longest]) as server:
        out = model(server).chat(HI, Sampling(max_tokens=10))
    assert (len(out.text), out.faults) == (1280, ("broken answer",))


def test_a_long_thought_is_cut_and_its_answer_kept():
    long_thought = completion("a", reasoning="a" * 1281, tokens_out=900)
    with serving([long_thought]) as server:
        out = model(server).chat(HI, Sampling(max_tokens=10))
    assert (out.text, len(out.thought), out.faults) == ("a", 1280, ())
    assert out.tokens_out == 900
    assert answer_of(out, Sampling(max_tokens=10)) == Answer("a")


@pytest.mark.parametrize("reason", ["length", "stop", "eos"])
def test_an_answer_that_was_cut_at_the_limit_says_so(reason):
    with serving([completion("There are", finish=reason)]) as server:
        reply = ModelAssistant(model(server)).reply(Conversation("c").say("hi"))
    assert reply.meta.get("cut", False) is (reason == "length")


def test_a_cut_intent_is_none():
    with serving([completion("You want", finish="length")]) as server:
        out = model(server).chat(HI, Sampling())
    assert answer_of(out, Sampling()) == Answer("You want", "cut off")


def test_what_a_server_counts_beyond_the_limit_is_counted_and_not_asked_for_again(
    tmp_path,
):
    endless = completion("a" * 2000, tokens_out=700)
    broken = completion("", tokens_out=40)
    broken.body["choices"] = []
    uncounted = completion("ok", tokens_out=0)
    uncounted.body["usage"]["total_tokens"] = 906  # 6 of them are of the request
    half_counted = completion("ok")
    half_counted.body["usage"] = {"completion_tokens": 900}
    half_counted.body = json.dumps(half_counted.body)
    cases = (
        (half_counted, 900),
        (endless, 700),
        (completion("", tokens_out=40), 40),
        (broken, 40),
        (uncounted, 900),
    )
    for n, (said, doubt) in enumerate(cases):
        budget = Budget(Caps(), tmp_path / f"{n}.jsonl")
        side = budget.side("writer")
        with serving(lambda body, _, said=said: said) as server:
            cache = CallCache(tmp_path / f"asked{n}.jsonl", model(server), side)
            cache.ask("a", 0, HI, Sampling(max_tokens=10))
        assert len(server.requests) == 1
        assert side.used["doubt_out"] == doubt


@pytest.mark.parametrize(
    "said",
    [
        completion(f"Bearer {KEY}", reasoning=KEY),
        completion([{"type": "text", "text": f"Bearer {KEY}"}], reasoning=f"{KEY}"),
    ],
)
def test_a_key_that_the_server_repeats_is_in_no_answer(said):
    with serving([said]) as server:
        out = model(server).chat(HI, Sampling())
    assert (out.text, out.thought) == ("Bearer [key]", "[key]")


def test_a_word_that_is_set_as_key_stays_in_answers():
    with serving([completion("Install ollama.")]) as server:
        asked = EndpointModel("m", server.url, "ollama")
        assert asked.chat(HI, Sampling()).text == "Install ollama."


def test_an_answer_without_usage_is_counted_at_its_most_and_that_is_said_once(recwarn):
    without = completion("ok")
    without.body["usage"] = None
    del (missing := completion("ok")).body["usage"]
    zeros = completion("ok")
    zeros.body["usage"] = {"prompt_tokens": 0, "completion_tokens": 0}
    answers = [without, missing, zeros]
    with serving(lambda body, n: answers[n]) as server:
        server.take = lambda *asked: server.reply(asked[-1], next(numbers))
        numbers = iter(range(3))
        asked = model(server)
        for _ in range(3):
            answer = asked.chat(HI, Sampling())
            assert (answer.text, answer.tokens_in, answer.tokens_out) == (
                "ok",
                None,
                None,
            )
    [note] = [str(each.message) for each in recwarn]
    assert note.startswith("m: the server does not say how many tokens")


def test_else_the_pause_doubles_and_is_never_the_same_for_all(pauses):
    asked = [{}, {"Retry-After": "soon"}, {"Retry-After": "-3"}, {"Retry-After": "nan"}]
    asked += [{"Retry-After": "inf"}]
    asked += [{"Retry-After": "Fri, 31 Dec 99999999999 23:59:59 GMT"}]
    with serving(
        [*(error(503, headers=headers) for headers in asked), completion("ok")]
    ) as server:
        model(server, retries=len(asked), pause=0.5).chat(HI, Sampling())
    for slept, wanted in zip(pauses, (0.5, 1, 2, 4, 8, 16), strict=True):
        assert wanted < slept < 1.5 * wanted


def unsupported(body, n):
    """A newer model: `max_completion_tokens`, and no temperature."""
    if "max_tokens" in body:
        said = (
            "Unsupported parameter: 'max_tokens' is not supported. Use "
            "'max_completion_tokens' "
            "instead."
        )
        return error(400, said, param="max_tokens", code="unsupported_parameter")
    if "temperature" in body:
        return error(
            400,
            "Unsupported value: 'temperature' does not support 0.5.",
            param="temperature",
        )
    return completion("ok")


def test_a_parameter_that_is_not_taken_is_left_out_from_then_on():
    with serving(unsupported) as server:
        asked = model(server, retries=0)
        first, second = (asked.chat(HI, Sampling(0.5, 0.9, 33)) for _ in range(2))
    assert (
        first.faults == ("max_tokens not taken", "temperature not taken")
        and first.possibly_billed == 0
    )
    assert second.faults == ()
    assert len(server.requests) == 4
    for body in server.bodies[2:]:
        assert body["max_completion_tokens"] == 33 and body["top_p"] == 0.9
        assert "max_tokens" not in body and "temperature" not in body


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "no"),
        error(400, "This response_format type is unavailable now"),
        error(400, "'json_schema' is not supported", param="response_format"),
        error(422, "Extra inputs are not permitted"),
    ],
)
def test_a_schema_that_is_not_taken_is_left_out_from_then_on(refusal):
    def reply(body, n):
        return refusal if "response_format" in body else completion("ok")

    asked = Sampling(schema={"type": "object"})
    with serving(reply) as server:
        chat = model(server, retries=0)
        first, second = (chat.chat(HI, asked) for _ in range(2))
    assert (first.faults, second.faults) == (("response_format not taken",), ())
    assert len(server.requests) == 3


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
def test_a_schema_is_kept_after_a_request_that_is_bad_without_it_too(code):
    answers = [error(400, "no", code=code), completion("ok")]
    asked = Sampling(schema={"type": "object"})
    with serving(answers) as server:
        chat = model(server, retries=0)
        with pytest.raises(ModelError) as caught:
            chat.chat(HI, asked)
        chat.chat(HI, asked)
    assert (caught.value.reason == TOO_LONG) == code.startswith("context")
    assert all("response_format" in body for body in server.bodies)


def test_two_parameters_that_do_not_go_together_leave_one():
    def reply(body, n):
        both = "temperature" in body and "top_p" in body
        return (
            error(400, "`temperature` and `top_p` cannot both be given")
            if both
            else completion("ok")
        )

    with serving(reply) as server:
        assert model(server).chat(HI, Sampling()).faults == ("top_p not taken",)


def test_a_value_that_is_out_of_range_is_not_left_out():
    said = error(400, "temperature must be at most 2", param="temperature")
    with (
        serving([said]) as server,
        pytest.raises(ModelError, match="temperature must be at most 2") as caught,
    ):
        model(server).chat(HI, Sampling(temperature=9))
    assert caught.value.reason == "bad request"


@pytest.mark.parametrize("said", [10**20, 2**31, True, 0, -1, 1.5, "7", None])
def test_a_number_of_tokens_that_can_be_none_is_unknown_and_the_answer_is_not_asked_for_again(
    said, tmp_path
):
    answer = completion("ok")
    answer.body["usage"]["completion_tokens"] = said
    with serving(lambda body, n: answer) as server:
        server.tokens_out = Counted()
        out = model(server).chat(HI, Sampling())
        # 2 letters, and 4 for the message.
        assert (out.text, out.tokens_in, out.tokens_out) == (
            "ok",
            6,
            None,
        )
        path = tmp_path / "asked.jsonl"
        price = Price.parse("2/10")

        def cached():
            budget = Budget(Caps(), tmp_path / "usage.jsonl")
            usage = budget.side("writer", price=price)
            return CallCache(path, model(server), usage), usage, budget

        first, usage, budget = cached()
        answered = first.ask("a", 0, HI, Sampling(max_tokens=50))
        first.close()
        again, usage_again, budget_again = cached()
        assert (
            again.ask("a", 0, HI, Sampling(max_tokens=50)) == answered == Answer("ok")
        )
    assert len(server.requests) == 2
    assert budget_again.spent == budget.spent
    assert usage_again.results() == usage.results()
    assert usage.results()["tokens_out"] is None
    assert budget.spent.dollars == price.of(2 + PER_MESSAGE, 50)  # its worst


def test_after_a_redirect_no_other_prompt_is_sent(tmp_path):
    usage = Budget(Caps(), tmp_path / "usage.jsonl").side("writer")
    with serving(
        lambda body, n: Said(302, headers={"Location": f"http://127.0.0.1:9/{n}"})
    ) as server:
        asked = model(server)
        for _ in range(3):
            with pytest.raises(ModelError, match="redirects to"):
                usage.call(9, 9, lambda: asked.chat(HI, Sampling()))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("usage", "tokens_out"),
    [
        # 6 tokens of the request, 2 of the answer, 900 of reasoning.
        ({"total_tokens": 908}, 902),
        ({"completion_tokens_details": {"reasoning_tokens": 900}}, 902),
        (
            {
                "total_tokens": 908,
                "completion_tokens_details": {"reasoning_tokens": 900},
            },
            902,
        ),
        # Reasoning that the 2 tokens may hold is among them.
        ({"completion_tokens_details": {"reasoning_tokens": 1}}, 2),
        ({"completion_tokens_details": [900]}, 2),
    ],
)
def test_reasoning_that_a_server_counts_beside_the_answer_is_billed(
    tmp_path, usage, tokens_out
):
    answer = completion("ok")
    answer.body["usage"] |= usage
    budget = Budget(Caps(), tmp_path / "usage.jsonl")
    price = Price.parse("2/10")
    side = budget.side("writer", price=price)
    with serving(lambda body, n: answer) as server:
        cache = CallCache(tmp_path / "asked.jsonl", model(server), side)
        # The answer itself is not longer than it may be.
        assert cache.ask("a", 0, HI, Sampling(max_tokens=50)) == Answer("ok")
    assert side.results()["tokens_out"] == tokens_out
    assert budget.spent.dollars == price.of(6, tokens_out)


def test_reasoning_beside_an_empty_answer_is_billed_too(tmp_path):
    empty = completion("", finish="length", tokens_out=0)
    empty.body["usage"]["total_tokens"] = 906
    budget = Budget(Caps(), tmp_path / "usage.jsonl")
    side = budget.side("writer")
    with serving(lambda body, n: empty) as server:
        cache = CallCache(tmp_path / "asked.jsonl", model(server), side)
        cache.ask("a", 0, HI, Sampling(max_tokens=50))
    assert side.used["doubt_out"] == 900  # all but those of the request


class Counted(int):
    """A count that is not checked."""

    def __add__(self, other):
        return self


def test_half_a_character_in_an_answer_is_replaced():
    # "\ud83d" is the first half of an emoji, as a server cuts it at its last token.
    with serving([completion("fine \ud83d"), completion("\ud83d\ude00")]) as server:
        asked = model(server)
        assert [asked.chat(HI, Sampling()).text for _ in range(2)] == [
            "fine \ufffd",
            "😀",
        ]
