"""What a served user costs: drafts that nobody waits for, and limits on the calls of a server."""

import importlib
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import fake_server
import openai
import pytest
from fake_server import completion, error
from flat import flat
from playing import Page, while_serving

from userlm import InputError, ModelError, loading
from userlm.models.budget import (
    GIVE_UP,
    TRIES,
    Budget,
    Caps,
    CountedChat,
    max_tokens_in,
    pause,
    while_wanted,
)
from userlm.models.endpoint import EndpointModel
from userlm.serving import app as app_module
from userlm.text import INTENT_PREFIX
from userlm.types import Completion, Sampling
from userlm.users import user_prompt

command = importlib.import_module("userlm.commands.serve")

ROME = INTENT_PREFIX + "plan a trip to Rome."
BODY = {"model": "m", "messages": [{"role": "system", "content": ROME}]}
ASK = {"conversation": {"id": "x", "turns": [], "intent": ROME}, "speaker": "user"}
WORST = TRIES * (
    max_tokens_in([{"role": "user", "content": user_prompt(ROME, ())}]) + 200
)
NEVER = "words=500-600,tries=40,exhausted=stop"
"""A guard that no draft passes."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Endpoints with next to no pauses between tries."""

    def endpoint(name, url, variable):
        return EndpointModel(name, url, None, timeout=20, pause=0.01)

    monkeypatch.setattr(loading, "_endpoint", endpoint)


def until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def paid(monkeypatch, ask, reply=None, **options):
    """The requests to a paid model while `ask(app, page, model)` asks a user that it plays."""
    slow = replace(completion("to Rome please"), hang=0.1)
    reply = reply or (lambda body, n: slow)
    with fake_server.serving(reply) as model, monkeypatch.context() as patched:
        while_serving(
            patched,
            lambda app, port: ask(app, Page(port), model),
            user=f"prompted:{model.url}#m",
            **options,
        )
        yield model.requests


def client(page):
    return openai.OpenAI(base_url=f"{page.url}v1", api_key="none", max_retries=2)


def next_turn(page):
    return client(page).chat.completions.create(**BODY)


@contextmanager
def calling(page, path, body):
    """A client that has sent its request, and leaves at the end of the context."""
    sent = json.dumps(body)
    head = {
        "Host": f"127.0.0.1:{page.port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(sent)),
        **page.origin,
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items())]
    with socket.create_connection(("127.0.0.1", page.port)) as caller:
        caller.sendall(("\r\n".join(lines) + "\r\n\r\n" + sent).encode())
        yield caller


@pytest.mark.parametrize(
    ("path", "body"), [("/playground/ask", ASK), ("/v1/chat/completions", BODY)]
)
def test_no_draft_is_begun_for_a_client_that_has_left(path, body, monkeypatch):
    def leave(app, page, model):
        with calling(page, path, body):
            until(lambda: len(model.requests) == 2)
        until(lambda: app.state.pool.in_flight == 0)

    with paid(monkeypatch, leave, guard=NEVER) as requests:
        assert 2 <= len(requests) <= 4


@pytest.mark.parametrize(
    "behind", [b"\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 200_000]
)
def test_no_draft_is_begun_for_a_client_that_sent_more_than_its_request_and_left(
    behind, monkeypatch
):
    def leave(app, page, model):
        with calling(page, "/v1/chat/completions", BODY) as caller:
            until(lambda: len(model.requests) == 1)
            caller.sendall(behind)
            time.sleep(0.1)
        until(lambda: app.state.pool.in_flight == 0)

    with paid(monkeypatch, leave, guard=NEVER) as requests:
        assert len(requests) <= 5


@pytest.mark.parametrize("size", [1, 200_000])
def test_nothing_is_asked_for_a_client_that_left_while_its_request_was_parsed(
    size, monkeypatch
):
    """A connection is not read while more of it than 64 KB waits, so its end shows later."""
    parse, sample = app_module._parse, app_module.sample
    sampled = []
    begun, left, parsed = threading.Event(), threading.Event(), threading.Event()

    def slow_parse(*given):
        begun.set()
        left.wait(20)
        time.sleep(0.2)
        try:
            return parse(*given)
        finally:
            parsed.set()

    def leave(app, page, model):
        path = "/v1/chat/completions"
        with calling(page, path, {**BODY, "x": "x" * size}):
            begun.wait(20)
        left.set()
        parsed.wait(20)
        next_turn(page)  # is asked for after what was submitted before

    def counted_sample(*given):
        sampled.append(1)
        return sample(*given)

    monkeypatch.setattr(app_module, "_parse", slow_parse)
    monkeypatch.setattr(app_module, "sample", counted_sample)
    with paid(monkeypatch, leave) as requests:
        assert len(sampled) == len(requests) == 1


def test_a_server_that_stops_begins_no_draft_and_says_so(monkeypatch):
    said = []

    def stop(app, page, model):
        asking = threading.Thread(target=lambda: said.append(page.call("ask", ASK)))
        asking.start()
        until(lambda: len(model.requests) == 2)
        app.state.pool.close()
        asking.join()

    with paid(monkeypatch, stop, guard=NEVER) as requests:
        assert said == ["503: the server is shutting down"]
        assert 2 <= len(requests) <= 4


@pytest.mark.parametrize(
    "fault", [error(429), error(503), error(400, "unknown parameter: seed")]
)
def test_a_caller_who_left_is_not_asked_for_again_after_any_fault(fault):
    """Whether the fault may have been billed, or the next request differs, changes nothing."""
    there = [True]

    def reply(body, n):
        there.clear()
        return fault

    with (
        fake_server.serving(reply) as model,
        while_wanted(lambda: bool(there)),
        pytest.raises(ModelError, match="nobody waits"),
    ):
        asked = EndpointModel("m", model.url, None, pause=0.001)
        asked.chat([{"role": "user", "content": "hi"}], Sampling(seed=1))
    assert len(model.requests) == 1


def test_no_request_is_made_for_a_caller_who_left_before_the_first():
    """As one that waited while another thread tested the server."""
    with (
        fake_server.serving(lambda body, n: error(400)) as model,
        while_wanted(lambda: False),
        pytest.raises(ModelError, match="nobody waits"),
    ):
        asked = EndpointModel("m", model.url, None, pause=0.001)
        asked.chat([{"role": "user", "content": "hi"}], Sampling(seed=1))
    assert not model.requests


def test_a_call_that_nobody_waited_for_any_more_is_not_counted():
    budget = Budget(Caps(calls=1), None)
    side = budget.side("user")
    with fake_server.serving(lambda body, n: completion("hi")) as model:
        chat = CountedChat(EndpointModel("m", model.url, None), side)
        asked = [{"role": "user", "content": "hi"}], Sampling(seed=1)
        # It is wanted until it is counted, as if it had waited since.
        with (
            while_wanted(lambda: not budget.spent.calls),
            pytest.raises(ModelError, match="nobody waits"),
        ):
            chat.chat(*asked)
        assert not model.requests and not side.used["calls"]
        assert chat.chat(*asked).text == "hi"


def test_a_pause_between_two_requests_ends_when_the_caller_leaves():
    begun = time.monotonic()
    until = begun + 0.2
    with (
        while_wanted(lambda: time.monotonic() < until),
        pytest.raises(ModelError, match="nobody waits"),
    ):
        pause(60)
    assert time.monotonic() - begun < 10


def test_no_call_is_made_for_a_caller_who_left_while_it_waited_for_the_budget():
    side = Budget(Caps(tokens=30), None).side("user")
    looks, called, failed = [], [], []

    def is_wanted():
        looks.append(1)
        return len(looks) == 1

    def wait():
        with while_wanted(is_wanted):
            try:
                side.call(10, 10, lambda: called.append(1) or Completion("hi"))
            except ModelError as caught:
                failed.append(str(caught))

    def fail():
        waits.start()
        until(lambda: looks)
        raise ModelError("no connection")  # it took nothing, so the other is allowed

    waits = threading.Thread(target=wait)
    with pytest.raises(ModelError, match="no connection"):
        side.call(10, 10, fail)
    waits.join()
    assert not called and failed == ["nobody waits for the answer any more"]


def test_a_page_may_not_ask_for_more_drafts_than_usual_or_than_the_server_allows(
    monkeypatch,
):
    found = []

    def ask(app, page, model):
        for tries in (9, 41, 5):
            guard = f"words=500-600,tries={tries},exhausted=stop"
            found.append(page.call("ask", {**ASK, "guard": guard}))

    def at_once(body, n):
        return completion("to Rome please")

    with paid(monkeypatch, ask, at_once) as requests:
        assert "tries=9: at most 8 here" in found[0]
        assert "tries=41: at most 8 here" in found[1]
        assert found[2]["stop"] == "guard" and len(requests) == 5
    found.clear()
    with paid(monkeypatch, ask, at_once, guard=NEVER) as requests:
        assert "tries=41: at most 40 here" in found[1]
        assert len(requests) == 9 + 5


@pytest.mark.parametrize(
    ("limit", "calls"),
    [
        ({"max_calls": 2}, 2),
        ({"max_tokens_total": WORST + 10}, 1),
        ({"budget": (WORST + 10) / 1e6, "user_price": "1/1"}, 1),
    ],
)
def test_once_a_limit_is_reached_callers_hear_it_and_nothing_is_called(
    limit, calls, monkeypatch
):
    """A call counts at its worst case until it is answered: all tries, each with all tokens."""
    found = []

    def ask(app, page, model):
        for _ in range(calls + 1):
            try:
                next_turn(page)
            except openai.RateLimitError as caught:
                found.append(caught)
        found.append(page.call("ask", ASK))

    with paid(monkeypatch, ask, **limit) as requests:
        refused, page_says = found
        assert refused.code == "insufficient_quota"
        option = "--" + next(iter(limit)).replace("_", "-")
        assert f"cap reached: {option}" in refused.message
        assert "a smaller one may be answered" in refused.message
        assert page_says.startswith("429: cap reached")
        assert len(requests) == calls


def test_a_request_for_which_too_little_is_left_stops_no_smaller_one(monkeypatch):
    found = []

    def ask(app, page, model):
        next_turn(page)
        with pytest.raises(openai.RateLimitError, match="cap reached"):
            next_turn(page)
        found.append(client(page).chat.completions.create(**BODY, max_tokens=1))

    with paid(monkeypatch, ask, max_tokens_total=WORST + 10) as requests:
        assert found[0].choices and len(requests) == 2


def test_choices_that_were_paid_for_are_given_though_others_failed(monkeypatch):
    found = []

    def ask(app, page, model):
        found.append(client(page).chat.completions.create(**BODY, n=4))
        with pytest.raises(openai.RateLimitError, match="cap reached"):
            client(page).chat.completions.create(**BODY, n=2)

    with paid(monkeypatch, ask, max_calls=3) as requests:
        assert len(found[0].choices) == len(requests) == 3
        assert [choice.index for choice in found[0].choices] == [0, 1, 2]
        note = "choices that failed are left out: 3 of 4 came"
        assert note in found[0].userlm["notes"]


def test_a_choice_behind_one_that_failed_stays_the_sample_that_it_is(monkeypatch):
    """The client of OpenAI joins the chunks of a stream by `index`, which has no gaps."""
    asked = {**BODY, "seed": 7, "n": 3}
    failing = []
    found = []

    def reply(body, n):
        seed = body["seed"]
        return error(400) if seed in failing else completion(f"to Rome {seed}")

    def ask(app, page, model):
        chat = client(page).chat.completions
        whole = chat.create(**asked)
        second = whole.choices[1].message.content
        failing.append(int(second.split()[-1]))
        with chat.stream(**asked) as stream:
            streamed = stream.get_final_completion()
        found.extend((whole, chat.create(**asked), streamed))

    with paid(monkeypatch, ask, reply):
        whole, *others = found
        samples = [whole.choices[0], whole.choices[2]]
        for answer in others:
            assert [choice.index for choice in answer.choices] == [0, 1]
            said = [choice.message.content for choice in answer.choices]
            assert said == [choice.message.content for choice in samples]
        assert [choice.userlm["sample"] for choice in others[0].choices] == [0, 2]


def test_the_calls_of_all_speakers_of_the_page_are_limited_together(monkeypatch):
    found = []

    def ask(app, page, model):
        asked = {**ASK, "speaker": "against"}
        found.extend(page.call("ask", given) for given in (ASK, asked))
        talk = {**ASK["conversation"], "turns": [{"role": "user", "text": "hi"}]}
        asked = {"conversation": talk, "speaker": "assistant"}
        found.append(page.call("ask", asked))

    with fake_server.serving(lambda body, n: completion("to Rome")) as model:
        while_serving(
            monkeypatch,
            lambda app, port: ask(app, Page(port), model),
            user=f"prompted:{model.url}#m",
            against=f"swapped:{model.url}#m",
            assistant=f"{model.url}#m",
            max_calls=2,
        )
    assert [isinstance(one, str) for one in found] == [False, False, True]
    assert found[2].startswith("429: cap reached: --max-calls 2")


def test_a_server_goes_on_after_its_model_was_down(monkeypatch):
    found = []

    def ask(app, page, model):
        for _ in range(GIVE_UP):
            with pytest.raises(openai.InternalServerError, match="the model failed"):
                next_turn(page)
        found.append(next_turn(page).choices[0].message.content)

    def down_at_first(body, n):
        return error(401) if n < GIVE_UP else completion("to Rome")

    with paid(monkeypatch, ask, down_at_first):
        assert found == ["to Rome"]


def test_a_budget_without_a_journal_counts_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget = Budget(Caps(calls=5), None)
    side = budget.side("user")
    side.call(10, 5, lambda: Completion("hi", tokens_in=3, tokens_out=2))
    assert (budget.spent.calls, budget.spent.tokens) == (1, 5)
    assert budget.finish(["user"])["usage"]["user"]["calls"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"price": "1/1"}, "--price: there is no --assistant"),
        ({"against_price": "1/1"}, "--against-price: there is no --against"),
        ({"user_price": "1"}, "--user-price 1: give US dollars"),
        (
            {"user": "prompted:http://127.0.0.1:9/v1#m", "budget": 1.0},
            "give --user-price",
        ),
        ({"max_calls": 5}, "none is called here"),
    ],
)
def test_limits_and_prices_that_say_nothing_are_refused(options, why, tmp_path):
    (tmp_path / "lines.txt").write_text("hi\n")
    given = {"user": f"script:{tmp_path / 'lines.txt'}", "port": 0, **options}
    with pytest.raises(InputError, match=why):
        command.serve(flat(command.Serve, **given))
