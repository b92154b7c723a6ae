"""`userlm respond` and `simulate`: what they cost, caps that hold, and servers and processes that
die."""

import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from http.server import ThreadingHTTPServer
from pathlib import Path

import fake_server
import processes
import pytest
from fake_server import CUT, Said, completion, error, serving
from flat import flat
from processes import Process

from userlm import commands, loading
from userlm.assistants import Script
from userlm.commands.options import Failures
from userlm.json_files import read_json
from userlm.models.budget import WORDLESS
from userlm.models.endpoint import EndpointModel
from userlm.rows import read_conversations, read_starts, write_conversations
from userlm.show.finished import read_run
from userlm.text import END_TOKEN, INTENT_PREFIX
from userlm.types import Conversation, InputError, ModelError, Reply

ROOT = Path(__file__).resolve().parent.parent


def talk(body, n=0, hang: float = 0) -> Said:
    """What `user` or `assistant` says: it depends on nothing but what it is asked, and on the
    seed."""
    asked = json.dumps([body["messages"], body["seed"]])
    digest = sha256(asked.encode()).hexdigest()
    if body["model"] == "user" and digest[0] in "012":
        return replace(completion(END_TOKEN, tokens_out=1), hang=hang)
    return replace(completion(f"{body['model']} {digest[:8]}", tokens_out=5), hang=hang)


def seeds(path: Path, count: int) -> Path:
    write_conversations(
        path,
        (
            Conversation(f"s{i}", intent=f"{INTENT_PREFIX}cook {i}.")
            for i in range(count)
        ),
    )
    return path


@pytest.fixture
def quick(monkeypatch):
    """Endpoints with next to no pauses between tries."""

    def endpoint(name, url, variable):
        return EndpointModel(name, url, "a-key", timeout=20, pause=0.01)

    monkeypatch.setattr(loading, "_endpoint", endpoint)


def between(server, tmp_path, out="sim", count=6, **options):
    """A simulation of which both sides are at the server."""
    path = seeds(tmp_path / "seeds.jsonl", count)
    both = {
        "user": f"prompted:{server.url}#user",
        "assistant": f"{server.url}#assistant",
        "max_turns": 3,
    }
    return commands.simulate(
        flat(commands.Simulate, intents=path, out=tmp_path / out, **{**both, **options})
    )


def bill(server, side: str, price: str) -> Decimal:
    """What the server counted for a side, in dollars."""
    token_in, token_out = map(Decimal, price.split("/"))
    bodies = [body for body in server.bodies if body["model"] == side]
    tokens_in = sum(
        len(m["content"].encode()) + 4 for body in bodies for m in body["messages"]
    )
    tokens_out = sum(talk(body).body["usage"]["completion_tokens"] for body in bodies)
    return (tokens_in * token_in + tokens_out * token_out) / 10**6


# --- what it may cost, and what it did ------------------------------------------------------------


def test_what_is_to_come_is_said_before_the_first_call_and_what_was_used_after_the_last(
    quick, tmp_path, capfd
):
    with serving(talk) as server:
        results = between(server, tmp_path, user_price="2/8", price="1/4")
    said = " ".join("".join(capfd.readouterr()).split())
    # 6 conversations of 3 exchanges: 18 calls a side, of at most 200 tokens a turn, and of 1,000.
    assert f"user prompted:{server.url}#user: 18 calls, about " in said
    assert "tokens in and at most 3,600 out, about $0.0" in said
    # An assistant reads 50 tokens, then 400, then 750: 6 * 1,200 in; with 18,000 out at $4 a
    # million: $0.079.
    wanted = "18 calls, about 7,200 tokens in and at most 18,000 out, about $0.08"
    assert f"assistant {server.url}#assistant: {wanted}" in said
    for side, price in (("user", "2/8"), ("assistant", "1/4")):
        used = results["usage"][side]
        assert (
            used["calls"]
            == used["drafts"]
            == sum(body["model"] == side for body in server.bodies)
        )
        assert used["cost"] == pytest.approx(float(bill(server, side, price)), abs=1e-6)
        assert (used["possibly_billed"], used["price"]) == (0, price)
        counts = f"{used['calls']} {used['tokens_in']:,} {used['tokens_out']:,} ${used['cost']:,.4f}"
        assert counts in said
    total = [
        sum(used[name] for used in results["usage"].values())
        for name in ("tokens_in", "tokens_out")
    ]
    assert (
        total
        == [results["tokens_in"], results["tokens_out"]]
        == [server.tokens_in, server.tokens_out]
    )
    assert results["caps"] == {
        "max_calls": None,
        "max_tokens_total": None,
        "budget": None,
    }


def test_what_was_answered_before_is_not_to_come(quick, tmp_path, capfd):
    with serving(talk) as server:
        between(server, tmp_path, max_calls=10)
        answered = len((tmp_path / "sim/turns.jsonl").read_text().splitlines())
        assert answered == len(server.requests) == 10
        capfd.readouterr()
        between(server, tmp_path, max_calls=10)
        said = " ".join("".join(capfd.readouterr()).split())
        assert len(server.requests) == 10
    ended = [
        c.stop == "end"
        for c in read_conversations(tmp_path / "sim/conversations.jsonl")
    ]
    turns = [
        json.loads(line)
        for line in (tmp_path / "sim/turns.jsonl").read_text().splitlines()
    ]
    over = {turn["id"] for turn in turns if turn.get("stop")}
    assert sum(ended) == len(over)
    for side in ("user", "assistant"):
        left = 3 * (6 - len(over)) - sum(
            turn["role"] == side for turn in turns if turn["id"] not in over
        )
        assert f"#{side}: {left} calls" in said
    assert (
        "before this: 10 calls, " in said
        and "--max-calls 10 may stop the run earlier" in said
    )


@pytest.mark.parametrize(
    "cap",
    [{"max_calls": 11}, {"max_tokens_total": 25_000}, {"budget": 0.04}],
    ids=lambda cap: next(iter(cap)),
)
def test_a_cap_is_never_passed_and_the_same_command_with_a_higher_one_goes_on(
    cap, quick, tmp_path, capfd
):
    prices = {"user_price": "2/8", "price": "1/4"}
    with serving(talk) as server:
        whole = between(server, tmp_path, "whole", **prices)
        calls = len(server.requests)
    (name, most), option = (
        next(iter(cap.items())),
        f"--{next(iter(cap)).replace('_', '-')}",
    )
    with serving(talk) as server:
        with suppress(ModelError):  # if no conversation came to its end before the cap
            between(server, tmp_path, **prices, **cap, workers=4)
        first = read_json(tmp_path / "sim/results.json")
        asked = len(server.requests)
        assert 0 < asked < calls
        took = {
            "max_calls": asked,
            "max_tokens_total": server.tokens_in + server.tokens_out,
        }
        took["budget"] = bill(server, "user", "2/8") + bill(server, "assistant", "1/4")
        assert took[name] <= most
        waiting = first["stops"]["error"]
        said = " ".join("".join(capfd.readouterr()).split())
        assert (
            f"cap reached: {option} {most} does not cover the worst case of another call; {waiting} conv"
            in said
        )
        assert "ended in an error" not in said and first["caps"][name] == most
        assert (
            option.strip("-").replace("-", "_")
            not in read_json(tmp_path / "sim/run.json")["options"]
        )
        last = between(server, tmp_path, **prices, **{name: 1000 * most})
        assert len(server.requests) == calls  # nothing was asked twice
    assert (last["stops"], last["tokens_in"]) == (whole["stops"], whole["tokens_in"])
    assert last["usage"]["user"]["cost"] == whole["usage"]["user"]["cost"]
    for file in ("conversations.jsonl", "turns.jsonl"):
        assert (tmp_path / "sim" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()


def test_a_server_that_asks_to_come_back_in_hours_ends_the_run_which_goes_on_later(
    quick, tmp_path, capfd
):
    with serving(talk) as server:
        between(server, tmp_path, "whole", workers=2)
        calls = len(server.requests)
    later = error(429, "quota", headers={"Retry-After": "10800"})
    with serving(lambda body, n: talk(body) if n < 8 else later) as server:
        # A worker that gets most of the processor may complete a conversation before.
        with pytest.raises(
            ModelError, match=r"[56] of 6 conversations ended in an err"
        ):
            between(server, tmp_path, workers=2, max_failed=0.5)
        assert 8 < len(server.requests) <= 8 + 2  # once for each worker at most
        said = " ".join("".join(capfd.readouterr()).split())
        assert "the server asks to come back at " in said and "in 3 h 0 min" in said
        server.requests.clear()
        server.reply = talk
        last = between(server, tmp_path, workers=2)
        assert len(server.requests) == calls - 8
    assert last["stops"].get("error") is None
    name = "conversations.jsonl"
    assert (tmp_path / "sim" / name).read_bytes() == (
        tmp_path / "whole" / name
    ).read_bytes()


@pytest.mark.parametrize(
    "refusal",
    [
        error(401),
        error(403, "not yours"),
        error(404, "no such model"),
        Said(body={"error": {"message": "top up"}}),
    ],
)
def test_an_assistant_that_will_never_answer_ends_the_run_before_more_user_turns_are_paid_for(
    refusal, quick, tmp_path, capfd
):
    def answer(body, n):
        return completion("hello") if body["model"] == "user" else refusal

    with serving(answer) as server:
        with pytest.raises(ModelError, match="40 of 40 conversations ended in an err"):
            between(server, tmp_path, count=40, workers=2)
        assert Counter(body["model"] for body in server.bodies)["user"] <= 3 + 3
    assert "40 of 40 ended in an error (the same command" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"budget": 1.0},
            r"--budget needs the price of the tokens of http.*; give --price IN/OUT",
        ),
        (
            {"budget": float("nan"), "price": "1/1"},
            r"--budget nan: give a number, 0 to 1e\+09",
        ),
        ({"price": "1"}, "--price 1: give US dollars per million"),
        ({"user_price": "one"}, "--user-price one: give US dollars per million"),
        (
            {"user_price": "1/1"},
            r"--user-price: script:.* calls no model; leave the option out",
        ),
        (
            {"assistant": "clarifier", "max_calls": 3},
            "--max-calls, .* are for models; none is called here",
        ),
    ],
)
def test_caps_and_prices_that_say_nothing_are_refused(options, said, quick, tmp_path):
    (tmp_path / "lines.txt").write_text("hi\n")
    path = seeds(tmp_path / "seeds.jsonl", 2)
    with serving([]) as server, pytest.raises(InputError, match=said):
        sides = {
            "user": f"script:{tmp_path}/lines.txt",
            "assistant": f"{server.url}#assistant",
        } | options
        commands.simulate(
            flat(commands.Simulate, intents=path, out=tmp_path / "sim", **sides)
        )
    assert not (tmp_path / "sim/conversations.jsonl").exists()


def test_where_no_model_speaks_nothing_is_said_of_costs(tmp_path, capfd):
    (tmp_path / "lines.txt").write_text("hi\n")
    path = seeds(tmp_path / "seeds.jsonl", 2)
    results = commands.simulate(
        commands.Simulate(
            commands.User(f"script:{tmp_path}/lines.txt"),
            "clarifier",
            intents=path,
            out=tmp_path / "sim",
        )
    )
    assert (
        results["usage"] == {"user": None, "assistant": None}
        and results["guard"] is None
    )
    assert "calls" not in capfd.readouterr().err
    assert not (tmp_path / "sim/usage.jsonl").exists()


def test_drafts_that_a_guard_rejects_are_counted_and_their_rates_recorded(
    quick, tmp_path
):
    logs = (Conversation(f"c{i}", intent="x").say("hi").say("hello") for i in range(4))
    write_conversations(tmp_path / "logs.jsonl", logs)

    def short(body, n):
        return completion(
            "one two" if body["seed"] % 2 else "one two three", tokens_out=3
        )

    with serving(short) as server:
        user = f"prompted:{server.url}#user"
        results = commands.respond(
            commands.Respond(
                commands.User(user, commands.UserSettings(guard="words=3-9,tries=2")),
                tmp_path / "logs.jsonl",
                out=tmp_path / "out",
                user_price="1/1",
            )
        )
        odd = [body["seed"] % 2 for body in server.bodies]
    rates, used = results["guard"], results["usage"]["user"]
    # One prefix each: no ending.
    assert (rates["turns"], rates["drafts"], used["calls"]) == (
        4,
        len(odd),
        len(odd),
    )
    assert rates["why"] == {"too short": sum(odd)} and sum(odd) > 0
    assert list(results["usage"]) == ["user"]
    assert (used["tokens_in"], used["tokens_out"]) == (server.tokens_in, 3 * len(odd))


@pytest.mark.parametrize("verb", ["respond", "simulate"])
def test_a_run_without_a_turn_fails_whenever_it_is_looked_at(verb, quick, tmp_path):
    talks = [Conversation(f"c{i}", intent="x") for i in range(6)]
    if verb == "respond":
        talks = [talk.say("hi").say("hello") for talk in talks]
    write_conversations(tmp_path / "talks.jsonl", talks)
    sides = {"assistant": "clarifier", "intents": tmp_path / "talks.jsonl"}
    if verb == "respond":
        sides = {"data": tmp_path / "talks.jsonl"}
    with serving(lambda body, n: completion("too short")) as server:
        sides |= {"user": f"prompted:{server.url}#user", "out": tmp_path / "out"}
        guard = "words=50-,tries=2,exhausted=stop"
        for _ in range(2):
            with pytest.raises(ModelError, match=r"6 of 6 .* or without a turn"):
                run_of(verb, **sides, guard=guard)
        assert len(server.requests) == 6 * 2


def test_only_the_whole_run_fails_for_what_the_guard_ended(quick, tmp_path):
    talks = [Conversation(f"c{i}", intent="x").say("hi").say("no") for i in range(6)]
    write_conversations(tmp_path / "talks.jsonl", talks)
    parts = [tmp_path / "1", tmp_path / "2"]
    with serving(lambda body, n: completion("too short")) as server:
        given = {"data": tmp_path / "talks.jsonl", "user": f"prompted:{server.url}#u"}
        given["guard"] = "words=50-,tries=2,exhausted=stop"
        for out in parts:
            part = run_of("respond", **given, out=out, part=f"{out.name}/2")
            assert part["silent"] == part["stops"]["guard"] > 0
        with pytest.raises(ModelError, match=r"6 of 6 .* or without a turn"):
            commands.merge(commands.Merge(parts, tmp_path / "whole"))


def run_of(verb: str, **options):
    if verb == "respond":
        return commands.respond(flat(commands.Respond, **options))
    return commands.simulate(flat(commands.Simulate, **options))


# --- servers that die -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 12])
def test_a_user_whose_answers_are_only_a_label_is_not_paid_for_the_whole_run_which_fails(
    count, quick, tmp_path
):
    """The label is taken off what a prompted user says, which leaves nothing."""
    with serving(lambda body, n: completion("<user>: ", tokens_out=2)) as server:
        with pytest.raises(ModelError, match="ended in an error or without a turn"):
            between(server, tmp_path, count=count, workers=1)
        assert len(server.requests) == min(WORDLESS, 8 * count)
        if count > 1:
            server.reply = talk
            between(server, tmp_path, count=count)


def test_a_server_that_goes_away_in_mid_conversation_and_comes_back_costs_nothing_but_time(
    quick, tmp_path
):
    with serving(talk) as server:
        whole = between(server, tmp_path, "whole", count=3)
    away = [Said(status=503, body="{}"), CUT, error(429), error(500)]

    def falters(body, n):
        return away[n % 4] if 5 <= n < 15 else talk(body)

    with serving(falters) as server:
        results = between(server, tmp_path, count=3, user_price="1/1")
    assert results["stops"] == whole["stops"]
    for file in ("conversations.jsonl", "turns.jsonl"):
        assert (tmp_path / "sim" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while_is_waited_for(tmp_path, monkeypatch):
    class AtOnePort(ThreadingHTTPServer):
        port = 0

        def __init__(self, address, handler):
            super().__init__((address[0], AtOnePort.port), handler)

    def patient(name, url, variable):
        return EndpointModel(name, url, None, pause=0.1)  # 3 seconds in all

    monkeypatch.setattr(loading, "_endpoint", patient)
    monkeypatch.setattr(fake_server, "ThreadingHTTPServer", AtOnePort)
    results = []
    with serving(talk) as server:
        AtOnePort.port = int(server.url.split(":")[2].removesuffix("/v1"))
        whole = between(server, tmp_path, "whole", count=8, workers=2)
    with serving(lambda body, n: talk(body, hang=0.02)) as server:
        runs = threading.Thread(
            target=lambda: results.append(between(server, tmp_path, count=8, workers=2))
        )
        runs.start()
        while len(server.requests) < 5:
            time.sleep(0.005)
    time.sleep(0.3)  # nobody listens there
    before = len(server.requests)
    with serving(talk) as again:
        runs.join(20)
    assert results[0]["stops"] == whole["stops"] and "error" not in whole["stops"]
    assert before >= 5 and len(again.requests) >= 5
    for file in ("conversations.jsonl", "turns.jsonl"):
        assert (tmp_path / "sim" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()


# --- processes that die ---------------------------------------------------------------------------


def start(*arguments: object, cwd: Path, fresh: bool = False) -> Process:
    return (processes.fresh if fresh else processes.userlm)(
        *arguments, cwd=cwd, COLUMNS="300"
    )


def finish(process) -> str:
    """What it printed."""
    said, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return said + told


def kill_at(process, turns: Path, lines: int) -> None:
    """SIGKILL, as soon as so many turns were answered."""
    while not (turns.is_file() and turns.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


WORKERS = 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "scripted", [False, True], ids=["both at the server", "a scripted user"]
)
def test_a_simulation_killed_in_the_middle_goes_on_where_it_was_and_pays_for_nothing_twice(
    scripted, tmp_path
):
    count = 60
    seeds(tmp_path / "seeds.jsonl", count)
    (tmp_path / "lines.txt").write_text("first\nsecond\n")
    with serving(lambda body, n: talk(body, hang=0.01)) as server:
        user = "script:lines.txt" if scripted else f"prompted:{server.url}#user"
        command = [
            "simulate",
            "--user",
            user,
            "--assistant",
            f"{server.url}#assistant",
            "--intents",
            "seeds.jsonl",
        ]
        command += ["--max-turns", 2, "--workers", WORKERS, "--seed", 7]
        finish(start(*command, "--out", "whole", cwd=tmp_path, fresh=True))
        needed = Counter(json.dumps(body) for body in server.bodies)
        assert len(needed) == needed.total() > count  # each is asked once
        server.requests.clear()
        turns = tmp_path / "killed/turns.jsonl"
        kill_at(
            start(*command, "--out", "killed", cwd=tmp_path), turns, len(needed) // 3
        )
        time.sleep(0.1)
        assert 0 < len(server.requests) < len(needed)
        finish(start(*command, "--out", "killed", cwd=tmp_path))
        asked = Counter(json.dumps(body) for body in server.bodies)
    assert set(asked) == set(needed) and max(asked.values()) <= 2
    twice = asked.total() - needed.total()
    assert twice <= WORKERS
    for file in ("conversations.jsonl", "turns.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()
    over = read_conversations(tmp_path / "killed/conversations.jsonl")
    assert [c.id for c in over] == [f"s{i}#0" for i in range(count)]
    used = [
        side
        for side in read_json(tmp_path / "killed/results.json")["usage"].values()
        if side
    ]
    # One may have been killed before it was sent.
    assert sum(side["calls"] for side in used) >= asked.total()
    assert sum(side["drafts"] for side in used) >= needed.total()


@pytest.mark.slow
def test_keys_reach_no_file_and_no_output_even_if_the_server_says_them(
    tmp_path, monkeypatch, capfd
):
    keys = {
        "OPENAI_API_KEY": "sk-never-to-be-seen-0123456789",
        "USERLM_API_KEY": "hidden-4711-4712",
    }

    def tells(body, n):
        """Every kind of error with a key in it, and now and then an answer."""
        said = f"you sent {keys['USERLM_API_KEY' if body['model'] == 'user' else 'OPENAI_API_KEY']}"
        kinds = [
            error(400, said),
            error(401, said),
            error(403, said),
            error(404, said),
            error(429, said),
        ]
        kinds += [
            error(500, said),
            Said(body=f"{{ {said}"),
            Said(body=f"<html>{said}"),
            Said(body={"error": said}),
        ]
        if "cook 0." in body["messages"][0]["content"]:
            return kinds[0]  # of the first error that is shown
        return kinds[n % 20] if n % 20 < len(kinds) else talk(body)

    def endpoint(name, url, variable):
        return EndpointModel(name, server.url, os.environ[variable], pause=0.001)

    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(loading, "_endpoint", endpoint)
    path = seeds(tmp_path / "seeds.jsonl", 60)
    with serving(tells) as server:
        sides = commands.User(f"prompted:{server.url}#user"), "openai:assistant"
        results = commands.simulate(
            commands.Simulate(
                *sides, intents=path, out=tmp_path / "sim", max_turns=2, price="1/1"
            )
        )
        sent = {authorization for _, authorization, _ in server.requests}
    assert sent == {f"Bearer {key}" for key in keys.values()}
    assert results["stops"]["error"] > 10
    shown = "".join(capfd.readouterr())
    written = "".join(
        file.read_text() for file in (tmp_path / "sim").rglob("*") if file.is_file()
    )
    assert "you sent [key]" in written and "you sent [key]" in shown
    for key in keys.values():
        assert key not in written + shown


@pytest.mark.slow
def test_a_simulation_by_a_model_here_is_the_same_to_the_bit_after_a_kill_if_it_serves_one_at_a_time(
    tiny, tmp_path
):
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.tokenizer.save_pretrained(tmp_path / "tiny")
    config = read_json(tmp_path / "tiny/config.json")
    # Turns of 60.
    (tmp_path / "tiny/config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 240})
    )
    path = seeds(tmp_path / "seeds.jsonl", 10)
    options = {"intents": path, "max_turns": 2, "workers": 4, "seed": 3}
    options["models"] = commands.LocalModels(batch=1)
    whole = commands.simulate(
        commands.Simulate(
            commands.User(f"trained:{tmp_path}/tiny"),
            "clarifier",
            out=tmp_path / "whole",
            **options,
        )
    )
    command = [
        "simulate",
        "--user",
        f"trained:{tmp_path}/tiny",
        "--assistant",
        "clarifier",
        "--intents",
        path,
    ]
    command += [
        "--max-turns",
        2,
        "--workers",
        4,
        "--batch",
        1,
        "--seed",
        3,
        "--out",
        "killed",
    ]
    kill_at(start(*command, cwd=tmp_path), tmp_path / "killed/turns.jsonl", 10)
    results = commands.simulate(
        commands.Simulate(
            commands.User(f"trained:{tmp_path}/tiny"),
            "clarifier",
            out=tmp_path / "killed",
            **options,
        )
    )
    for file in ("conversations.jsonl", "turns.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (
            tmp_path / "whole" / file
        ).read_bytes()
    used = whole["usage"]["user"]
    assert (
        used["calls"] == used["drafts"] and used["tokens_in"] == whole["tokens_in"] > 0
    )
    assert used["drafts"] <= results["usage"]["user"]["drafts"] <= used["drafts"] + 4


@pytest.mark.slow
def test_ctrl_c_says_how_many_calls_may_be_billed_and_they_count_at_their_worst_from_then_on(
    tmp_path,
):
    seeds(tmp_path / "seeds.jsonl", 9)
    with serving(lambda body, n: Said(hang=60, cut=True)) as server:
        command = [
            "simulate",
            "--user",
            f"prompted:{server.url}#user",
            "--assistant",
            "clarifier",
        ]
        command += ["--intents", "seeds.jsonl", "--out", "sim", "--workers", 4]
        process = start(*command, cwd=tmp_path)
        while len(server.requests) < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert (
        process.returncode == 130
        and "4 calls were in flight; they may be billed" in told
    )
    begun = [
        json.loads(line)["used"]
        for line in (tmp_path / "sim/usage.jsonl").read_text().splitlines()
    ]
    assert [used["possibly_billed"] for used in begun] == [
        6
    ] * 4  # one call, and five tries more


# --- small print ----------------------------------------------------------------------------------


def test_caps_without_a_model_are_refused_and_leave_the_folder_free(tmp_path):
    path, out = seeds(tmp_path / "seeds.jsonl", 2), tmp_path / "out"
    (tmp_path / "lines.txt").write_text("hi\n")
    script = commands.User(f"script:{tmp_path / 'lines.txt'}")
    with pytest.raises(InputError, match="are for models; none is called here"):
        commands.simulate(
            commands.Simulate(
                script,
                "clarifier",
                intents=path,
                out=out,
                limits=commands.Limits(max_calls=3),
            )
        )
    assert (
        commands.simulate(
            commands.Simulate(script, "clarifier", intents=path, out=out, max_turns=2)
        )["conversations"]
        == 2
    )


def test_somebody_at_the_keyboard_has_one_conversation_at_a_time_and_is_told_the_intent(
    tmp_path, monkeypatch, capsys
):
    path = seeds(tmp_path / "seeds.jsonl", 3)
    lines = iter(f"line {i}" for i in range(6))
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    commands.simulate(
        commands.Simulate(
            commands.User("human"),
            "clarifier",
            intents=path,
            out=tmp_path / "out",
            max_turns=2,
        )
    )
    said = [
        talk.user_turns
        for talk in read_conversations(tmp_path / "out" / "conversations.jsonl")
    ]
    assert said == [("line 0", "line 1"), ("line 2", "line 3"), ("line 4", "line 5")]
    assert f"{INTENT_PREFIX}cook 0." in capsys.readouterr().err


def test_what_tunes_a_simulated_user_is_refused_where_you_are_the_user():
    with pytest.raises(InputError, match="here you are the user"):
        commands.chat(
            flat(commands.Chat, assistant="clarifier", role="user", guard="paper")
        )


# --- failure that must not look like success ------------------------------------------------------


def replayed(tmp_path: Path, verb: str, known: int, **options):
    """Five conversations with a side that knows only the first ones."""
    logs = []
    for i in range(5):
        log = Conversation(f"c{i}", intent=f"{INTENT_PREFIX}cook {i}.")
        logs.append(log.say("hi there").say("ok").close("end"))
    path = tmp_path / "logs.jsonl"
    answers = tmp_path / f"{known}.jsonl"
    write_conversations(path, logs)
    write_conversations(answers, logs[:known] or [Conversation("x").say("a").say("b")])
    out = tmp_path / "out"
    if verb == "respond":
        user = f"replay:{answers}"
        return commands.respond(
            flat(commands.Respond, data=path, user=user, out=out, **options)
        )
    (tmp_path / "lines.txt").write_text("hello\n")
    sides = {"user": f"script:{tmp_path / 'lines.txt'}"}
    sides["assistant"] = f"replay:{answers}"
    options = {"intents": path, "out": out, **sides, **options}
    return commands.simulate(flat(commands.Simulate, **options))


@pytest.mark.parametrize("verb", ["respond", "simulate"])
def test_a_run_in_which_every_conversation_failed_is_a_failure(verb, tmp_path, capfd):
    total = (
        10 if verb == "respond" else 5
    )  # a response before each turn, and at the end
    said = rf"{total} of {total} conversations ended in an error$"
    with pytest.raises(ModelError, match=said):
        replayed(tmp_path, verb, 0)
    shown = capfd.readouterr()
    assert f"{total} of {total} ended in an error" in shown.err
    assert shown.err.index("ended in an error") < shown.err.index("out:")
    assert read_json(tmp_path / "out" / "results.json")["stops"] == {"error": total}
    with pytest.raises(ModelError, match=said):  # again: they are tried again
        replayed(tmp_path, verb, 0)


def test_the_share_of_conversations_that_may_fail_can_be_given(tmp_path):
    # Three of five fail: a share of 0.6.
    for out, most in (("a", 1.0), ("b", 0.6)):
        (tmp_path / out).mkdir()
        replayed(tmp_path / out, "simulate", 2, max_failed=most)
    said = "3 of 5 conversations ended in an error: more than --max-failed 0.59"
    with pytest.raises(ModelError, match=said):
        replayed(tmp_path / "a", "simulate", 2, max_failed=0.59)
    with pytest.raises(InputError, match=r"--max-failed 1\.5: give a number, 0 to 1"):
        replayed(tmp_path / "b", "simulate", 2, max_failed=1.5)


@pytest.mark.parametrize("verb", ["respond", "simulate"])
def test_a_mistake_in_an_option_leaves_a_run_with_failures_as_it_was(verb, tmp_path):
    replayed(tmp_path, verb, 3)
    before = (tmp_path / "out" / "results.json").read_bytes()
    with pytest.raises(InputError, match="none is called here"):
        replayed(tmp_path, verb, 3, max_calls=5)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    replayed(tmp_path, verb, 3)


def test_a_score_of_a_run_that_failed_is_a_failure_too_whenever_it_is_made(
    tmp_path, capfd
):
    with pytest.raises(ModelError):
        replayed(tmp_path, "simulate", 0)
    runs = flat(commands.Score, runs=[tmp_path / "out"], out=tmp_path / "score")
    for _ in range(2):
        capfd.readouterr()
        with pytest.raises(ModelError, match="out: 5 of 5 conversations ended in an"):
            commands.score(runs)
        first = capfd.readouterr().err.splitlines()[0]
        assert first == "out: 5 of 5 conversations ended in an error"
    replayed(tmp_path, "simulate", 4, force=True)
    again = flat(commands.Score, runs=[tmp_path / "out"], out=tmp_path / "again")
    assert commands.score(again)["out"]
    with pytest.raises(ModelError, match=r"1 of 5 .*: more than --max-failed 0.1"):
        commands.score(replace(again, failures=Failures(0.1)))


def test_a_chat_whose_model_fails_is_saved_and_is_a_failure(tmp_path, monkeypatch):
    write_conversations(tmp_path / "log.jsonl", [Conversation("x").say("a").say("b")])
    saved = tmp_path / "chat.jsonl"
    monkeypatch.setattr("builtins.input", lambda *_: "hello")
    options = {"role": "user", "assistant": f"replay:{tmp_path / 'log.jsonl'}"}
    with pytest.raises(ModelError, match=r"the assistant could not answer: .*'chat-0'"):
        commands.chat(flat(commands.Chat, save=saved, **options))
    [kept] = read_conversations(saved)
    assert (kept.user_turns, kept.stop) == (("hello",), "error")


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_chat_is_saved_after_a_line_without_a_line_break(end, tmp_path, monkeypatch):
    saved = tmp_path / "chat.jsonl"
    typed = iter(["a", ""])
    monkeypatch.setattr("builtins.input", lambda *_: next(typed))
    write_conversations(saved, [Conversation("x").say("hi").say("ho")])
    saved.write_text(saved.read_text().strip() + end)
    commands.chat(flat(commands.Chat, save=saved, role="user", assistant="clarifier"))
    assert [c.turns[0].text for c in read_conversations(saved)] == ["hi", "a"]
    assert saved.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "ending", [KeyboardInterrupt, InputError("no such key"), OSError("full")]
)
def test_a_chat_is_saved_whatever_ends_it(ending, tmp_path, monkeypatch):
    class Breaks:
        def reply(self, conversation):
            if len(conversation.turns) > 1:
                raise ending
            return Reply("hi")

    saved = tmp_path / "chat.jsonl"
    monkeypatch.setattr("builtins.input", lambda *_: "hello")
    monkeypatch.setattr(loading, "assistant", lambda *_, **__: Breaks())
    with pytest.raises(type(ending) if isinstance(ending, Exception) else ending):
        commands.chat(flat(commands.Chat, save=saved, role="user"))
    [kept] = read_conversations(saved)
    assert [turn.text for turn in kept.turns] == ["hello", "hi", "hello"]
    assert (kept.stop, kept.ended) == (None, False)


def test_logs_without_a_turn_to_take_are_refused(tmp_path):
    path = tmp_path / "logs.jsonl"
    write_conversations(path, [Conversation("a").say("hi")])
    (tmp_path / "lines.txt").write_text("hello\n")
    options = {"user": f"script:{tmp_path / 'lines.txt'}", "out": tmp_path / "out"}
    with pytest.raises(InputError, match=r"logs\.jsonl: in no conversation is there a"):
        commands.respond(flat(commands.Respond, data=path, first=False, **options))
    assert commands.respond(flat(commands.Respond, data=path, **options))


def test_a_damaged_file_costs_no_answer_if_what_the_error_says_is_done(tmp_path, quick):
    with serving(talk) as server:
        whole = between(server, tmp_path)
        asked = len(server.requests)
        folder = tmp_path / "sim"
        results, talks = folder / "results.json", folder / "conversations.jsonl"

        results.write_bytes(b"")  # the power was cut
        with pytest.raises(InputError, match=r"results\.json .* delete that file"):
            between(server, tmp_path)
        results.unlink()
        assert between(server, tmp_path) == whole

        talks.write_bytes(b"{")
        with pytest.raises(InputError, match=r"delete that file and results\.json"):
            read_run(folder)
        talks.unlink()
        with pytest.raises(InputError, match=r"missing; delete results\.json"):
            read_run(folder)
        results.unlink()
        assert between(server, tmp_path) == whole
        assert read_run(folder)
    assert len(server.requests) == asked


def test_an_intent_or_a_turn_in_a_text_ends_at_a_line_break_alone(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("plan\u2028a trip\x85\n\r\nbuy it\r\n")
    assert [start.intent for start in read_starts(path)] == [
        "plan\u2028a trip",
        "buy it",
    ]
    assert Script.read(str(path)).lines == ["plan\u2028a trip\x85", "buy it"]


def test_goals_alone_in_a_file_of_intents_are_completed_for_a_trained_user(
    tiny, tmp_path, capfd
):
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.tokenizer.save_pretrained(tmp_path / "tiny")
    text = tmp_path / "intents.txt"
    text.write_text("plan a trip to Rome\nYou are Anna.\n")
    stored = tmp_path / "stored.jsonl"
    write_conversations(stored, [Conversation("s", intent="plan a trip to Rome")])
    intents = {}
    for user in (f"trained:{tmp_path}/tiny", "single"):
        for path in (text, stored):
            out = tmp_path / f"{user[:6]}-{path.stem}"
            sides = {"user": user, "assistant": "clarifier", "max_turns": 1}
            commands.simulate(flat(commands.Simulate, intents=path, out=out, **sides))
            made = read_conversations(out / "conversations.jsonl")
            intents[out.name] = [one.intent for one in made]
    whole = f"{INTENT_PREFIX}plan a trip to Rome."
    bare = "plan a trip to Rome"
    assert intents == {
        "traine-intents": [whole, "You are Anna."],
        "traine-stored": [bare],
        "single-intents": [bare, "You are Anna."],
        "single-stored": [bare],
    }
    said = capfd.readouterr().err
    assert f"in 1 of 2 intents: the intent was completed: '{whole}'" in said
    assert said.count("1 of 2 intents: the intent does not begin as in training") == 1


def test_a_trained_user_without_an_intent_is_said_to_have_no_goal(
    tiny, tmp_path, capfd
):
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.tokenizer.save_pretrained(tmp_path / "tiny")
    path = tmp_path / "logs.jsonl"
    talk = Conversation("a").say("hi").say("yes?")
    write_conversations(
        path, [talk, replace(talk, id="b", intent=f"{INTENT_PREFIX}eat.")]
    )
    for user, times in ((f"trained:{tmp_path}/tiny", 1), (f"replay:{path}", 0)):
        sides = {"user": user, "assistant": "clarifier", "max_turns": 1}
        commands.simulate(
            flat(commands.Simulate, intents=path, out=tmp_path / user[:6], **sides)
        )
        said = capfd.readouterr().err
        assert (
            said.count("1 of 2 starts have no intent, so the user has no goal") == times
        )
