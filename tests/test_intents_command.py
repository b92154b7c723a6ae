"""`userlm intents`: whoever writes them, however often it is interrupted, whatever the server
does."""

import asyncio
import json
import re
import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fake_server import CUT, Said, completion, error, serving
from flat import flat
from processes import Process

from userlm import commands, loading
from userlm.commands.options import Failures
from userlm.json_files import read_json
from userlm.models import call_cache, http_client
from userlm.models.endpoint import EndpointModel
from userlm.rows import read_conversations, write_conversations
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, ModelError, Turn

GOOD = INTENT_PREFIX + "learn about some things."
LATE = "Late"
"""The header of an answer that comes too late for a client that is `impatient`."""
TOO_LATE = Said(headers={LATE: "yes"})
PRICE = "2.5/10"


def log(i: int, said: str = "", **meta) -> Conversation:
    turns = (Turn("user", f"tell me of number-{i}: {said}"), Turn("assistant", "Well."))
    return Conversation(
        f"c{i}", turns, user=f"p{i}", ended=True, meta={"language": "en", **meta}
    )


def number(body) -> int:
    """Which conversation a request is about."""
    return int(re.search(r"number-(\d+)", body["messages"][0]["content"])[1])


def good(body, n=0) -> Said:
    """A sentence of its own for each conversation."""
    return completion(
        f"{INTENT_PREFIX}learn about thing {number(body)}.", tokens_out=12
    )


class Faults:
    """Every way to fail, once for each conversation; then the right answer, or one that is asked
    for again."""

    def __init__(self, late: Said = TOO_LATE) -> None:
        self.seen: Counter[tuple[int, int]] = Counter()
        self.kinds = [
            error(429, headers={"Retry-After": "0"}),
            error(500),
            late,
            CUT,
            Said(body="{not json"),
            completion(""),
            None,
        ]

    def __call__(self, body, n) -> Said:
        i, again = number(body), len(body["messages"]) > 1
        self.seen[i, again] += 1
        if i % 11 == 10:
            return completion(None, refusal="I will not.")
        if self.seen[i, again] == 1 and (fault := self.kinds[i % 7]) and not again:
            return fault
        return (
            good(body)
            if again or i % 7 < 5
            else completion("The user wants things.", tokens_out=5)
        )


def endpoints(monkeypatch, timeout: float) -> None:
    """Endpoints with next to no pauses between tries."""

    def endpoint(name, url, variable):
        return EndpointModel(name, url, "a-key", timeout=timeout, pause=0.01)

    monkeypatch.setattr(loading, "_endpoint", endpoint)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A machine that is busy is no timeout."""
    endpoints(monkeypatch, timeout=20)


@pytest.fixture
def impatient(monkeypatch):
    """What the server says decides what is late, and no clock: a busy machine would have others."""
    read, timeout = http_client._read, asyncio.timeout
    deadline: ContextVar[asyncio.Timeout] = ContextVar("deadline")

    def known_timeout(seconds):
        deadline.set(timeout(seconds))
        return deadline.get()

    async def read_in_time(response):
        if LATE in response.headers:
            deadline.get().reschedule(0)
            await asyncio.sleep(60)
        await read(response)

    monkeypatch.setattr(asyncio, "timeout", known_timeout)
    monkeypatch.setattr(http_client, "_read", read_in_time)


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "logs.jsonl", [log(i) for i in range(60)])


def write(path: Path, conversations) -> Path:
    write_conversations(path, conversations)
    return path


def read(folder: Path, name: str = "conversations") -> list[Conversation]:
    return list(read_conversations(folder / f"{name}.jsonl"))


def billed(server) -> Decimal:
    """In dollars, at `PRICE`."""
    return (server.tokens_in * Decimal("2.5") + server.tokens_out * 10) / 1_000_000


# --- a model writes -------------------------------------------------------------------------------


def test_a_model_writes_an_intent_for_every_conversation_of_every_split(tmp_path):
    for split, first in (("train", 0), ("valid", 10), ("test", 20)):
        write(
            tmp_path / "clean" / f"{split}.jsonl",
            [log(i) for i in range(first, first + 10)],
        )
    with serving(good) as server:
        results = commands.intents(
            commands.Intents(
                tmp_path / "clean",
                out=tmp_path / "out",
                writer=f"{server.url}#gpt-x",
                price=PRICE,
            )
        )
    for split, first in (("train", 0), ("valid", 10), ("test", 20)):
        found = read(tmp_path / "out", split)
        assert [c.intent for c in found] == [
            f"{INTENT_PREFIX}learn about thing {first + i}." for i in range(10)
        ]
        assert {c.meta["intent_by"] for c in found} == {"gpt-x"}
    assert results["counts"] == {"in": 30, "note: written": 30, "out": 30}
    usage = results["usage"]["writer"]
    assert (usage["calls"], usage["possibly_billed"], usage["tokens_out"]) == (
        30,
        0,
        360,
    )
    assert usage["tokens_in"] == server.tokens_in and usage["cost"] == pytest.approx(
        float(billed(server))
    )
    assert results["faults"] == {} and results["failed"] == 0
    assert len({body["seed"] for body in server.bodies}) == 30
    assert {(body["temperature"], body["max_tokens"]) for body in server.bodies} == {
        (0.7, 120)
    }
    assert results == read_json(tmp_path / "out" / "results.json")


def test_splits_that_are_made_anew_meanwhile_are_not_mixed(tmp_path):
    for i, split in enumerate(("train", "test")):
        write(tmp_path / "clean" / f"{split}.jsonl", [log(i)])

    def made_anew(body):
        write(tmp_path / "clean/test.jsonl", [log(2)])
        return good(body)

    with serving(lambda body, n: made_anew(body)) as server:
        options = commands.Intents(
            tmp_path / "clean", out=tmp_path / "out", writer=f"{server.url}#m"
        )
        with pytest.raises(InputError, match=r"test\.jsonl changed while it was read"):
            commands.intents(options)
    assert not (tmp_path / "out/results.json").exists()


def test_leakage_is_shown_for_each_writer_by_its_own(tmp_path, data):
    first = log(1000, intent="x")
    rows = [
        log(0, "volcanoes"),
        log(1, "volcanoes lava"),
        Conversation("g", first.turns, GOOD, meta={}),
    ]
    write(tmp_path / "three.jsonl", rows)
    with serving(
        lambda body, n: completion(INTENT_PREFIX + "learn about volcanoes.")
    ) as server:
        results = commands.intents(
            commands.Intents(
                tmp_path / "three.jsonl", out=tmp_path / "out", writer=f"{server.url}#m"
            )
        )
    # Content words: number, 0, volcanoes; and number, 1, volcanoes, lava. Of them volcanoes: 1/3
    # and 1/4.
    assert results["writers"]["m"] == {
        "n": 2,
        "measured": 2,
        "leakage": pytest.approx(7 / 24),
        "quartiles": pytest.approx([1 / 4 + 1 / 48, 7 / 24, 1 / 4 + 3 / 48]),
    }
    # It came with the log, which does not say by whom.
    assert results["writers"]["the logs"]["n"] == 1


def test_all_faults_are_survived_counted_and_shown(tmp_path, data, capsys, impatient):
    with serving(Faults()) as server:
        results = commands.intents(
            commands.Intents(
                data, out=tmp_path / "out", writer=f"{server.url}#m", price=PRICE
            )
        )
    refused = {10, 21, 32, 43, 54}
    for i, conversation in enumerate(read(tmp_path / "out")):
        assert (conversation.intent is None) == (i in refused)
        assert ("intent_by" in conversation.meta) == (i not in refused)
    assert results["counts"] == {
        "in": 60,
        "note: no intent, refused": 5,
        "note: written": 55,
        "out": 55,
    }
    # Of 0 to 59, 9 leave 0, 1, 2 or 3 when divided by 7, and 8 leave 4, 5 or 6; less those that are
    # refused at once, which is an answer: 21 (0), 43 (1), 10 and 54 (3 and 5), 32 (4).
    assert results["faults"] == {
        "broken answer": 7,
        "connection cut": 8,
        "empty answer": 7,
        "rate limited": 8,
        "server error": 8,
        "timed out": 9,
    }
    assert results["usage"]["writer"]["possibly_billed"] == 7 + 8 + 7 + 9
    assert Decimal(str(results["usage"]["writer"]["cost"])) >= billed(server)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert (
        "no intent, refused 5" in shown
        and "rate limited 8" in shown
        and "timed out 9" in shown
    )
    assert "a-key" not in shown and "a-key" not in "".join(
        path.read_text() for path in (tmp_path / "out").iterdir() if path.name[0] != "."
    )


def test_a_sentence_that_stays_out_of_form_is_counted_by_its_reason(tmp_path, data):
    def answer(body, n):
        return good(body) if number(body) == 0 else completion("The user wants things.")

    with serving(answer) as server:
        results = commands.intents(
            commands.Intents(
                data, out=tmp_path / "out", writer=f"{server.url}#m", tries=3, limit=4
            )
        )
    counts = {"in": 4, "note: no intent, prefix": 3, "note: written": 1, "out": 1}
    assert results["counts"] == counts
    assert len(server.requests) == 1 + 3 * 3


@pytest.mark.parametrize(
    "said",
    [
        completion("The user wants things."),
        completion("The user wants", finish="length"),
        completion(None, finish="content_filter"),
    ],
)
def test_a_writer_of_whom_nothing_can_be_used_is_a_failure_and_is_not_paid_for_long(
    said, tmp_path, data, monkeypatch
):
    monkeypatch.setattr(call_cache, "UNUSABLE", 5)
    with serving(lambda body, n: said) as server:
        options = commands.Intents(
            data, out=tmp_path / "out", writer=f"{server.url}#m", workers=1
        )
        with pytest.raises(ModelError, match="60 of 60 conversations got no intent"):
            commands.intents(options)
        asked = len(server.requests)
        assert asked <= 5 * 2
        assert read_json(tmp_path / "out" / "results.json")["counts"]["in"] == 60
        server.reply = lambda body, n: good(body)
        counts = commands.intents(options)["counts"]
    assert len(server.requests) == asked + 60 - 5
    assert counts["note: written"] == 60 - 5


def test_too_many_answers_out_of_form_are_a_failure_whenever_the_run_is_looked_at(
    tmp_path, data
):
    def answer(body, n):
        return good(body) if number(body) % 2 else completion("The user wants things.")

    with serving(answer) as server:
        writer = f"{server.url}#m"
        options = commands.Intents(data, out=tmp_path / "out", writer=writer)
        commands.intents(options)
        strict = replace(options, failures=Failures(max_failed=0.4))
        with pytest.raises(
            ModelError, match=r"30 of 60 .* more than --max-failed 0\.4"
        ):
            commands.intents(strict)


@pytest.mark.slow
def test_failed_calls_are_made_again_by_the_same_command_and_answered_ones_are_not(
    tmp_path, data, capsys
):
    broken = True

    def reply(body, n):
        return (
            error(503, "overloaded")
            if broken and number(body) % 10 == 3
            else good(body)
        )

    with serving(reply) as server:

        def run():
            return commands.intents(
                commands.Intents(data, out=tmp_path / "out", writer=f"{server.url}#m")
            )

        first = run()
        assert (
            first["counts"]["note: no intent, call failed: server error"]
            == first["failed"]
            == 6
        )
        assert "6 of 60 ended in an error" in capsys.readouterr().err
        broken = False
        before = len(server.requests)
        second = run()
        assert sorted(map(number, server.bodies[before:])) == [3, 13, 23, 33, 43, 53]
        assert (
            second["counts"] == {"in": 60, "note: written": 60, "out": 60}
            and second["failed"] == 0
        )
        assert run() == second and len(server.requests) == before + 6
        assert "complete already" in " ".join(capsys.readouterr().err.split())


def test_a_run_in_which_no_intent_could_be_written_is_a_failure(tmp_path, data, capsys):
    with serving(lambda body, n: error(400)) as server:
        options = commands.Intents(
            data, out=tmp_path / "out", writer=f"{server.url}#m", limit=2
        )
        with pytest.raises(ModelError, match=r"(\d+) of \1 conversations got no int"):
            commands.intents(options)
        assert " ended in an error" in capsys.readouterr().err
        assert read_json(tmp_path / "out" / "results.json")["failed"] > 1


def test_a_wrong_key_or_model_ends_the_run_at_once(tmp_path, data):
    with (
        serving(lambda body, n: error(401)) as server,
        pytest.raises(ModelError, match="USERLM_API_KEY"),
    ):
        commands.intents(
            commands.Intents(
                data, out=tmp_path / "out", writer=f"{server.url}#m", workers=4
            )
        )
    # Three in a row, and those of the other threads.
    assert 3 <= len(server.requests) <= 3 + 3
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_key_that_ends_in_a_line_break_is_sent_without_it_and_written_nowhere(
    tmp_path, data, monkeypatch, capsys
):
    monkeypatch.undo()
    monkeypatch.setenv("USERLM_API_KEY", "secret-key\r\n")
    with serving(good) as server:
        results = commands.intents(
            commands.Intents(
                data, out=tmp_path / "out", writer=f"{server.url}#m", limit=4
            )
        )
    assert {authorization for _, authorization, _ in server.requests} == {
        "Bearer secret-key"
    }
    assert (
        results["counts"]["note: written"],
        results["faults"],
        len(server.requests),
    ) == (
        4,
        {},
        4,
    )
    assert "secret" not in "".join(capsys.readouterr())
    assert not [
        path for path in (tmp_path / "out").iterdir() if "secret" in path.read_text()
    ]


@pytest.mark.parametrize("by", ["http://127.0.0.1:1/v1#m", "openai:m"])
def test_a_key_that_no_header_can_hold_is_refused_and_written_nowhere(
    by, tmp_path, data, monkeypatch
):
    monkeypatch.undo()
    for variable in ("USERLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, "secret\nkey")
    with pytest.raises(
        InputError, match="has characters that are not allowed in a key"
    ) as caught:
        commands.intents(commands.Intents(data, out=tmp_path / "out", writer=by))
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out/asked.jsonl").exists()
    assert not [
        path for path in (tmp_path / "out").glob("*") if "secret" in path.read_text()
    ]


def test_half_a_character_in_an_answer_is_the_same_live_and_in_the_journal(
    tmp_path, data
):
    def reply(body, n):
        # "\ud83d" is the first half of an emoji, as a server cuts it at its last token
        if len(body["messages"]) == 1:
            return completion("The user wants \ud83d things.")
        return completion(f"{INTENT_PREFIX}learn about \ud83d things.")

    with serving(reply) as server:

        def run():
            return commands.intents(
                commands.Intents(
                    data, out=tmp_path / "out", writer=f"{server.url}#m", limit=3
                )
            )

        first = run()
        assert (
            first["counts"] == {"in": 3, "note: written": 3, "out": 3}
            and first["faults"] == {}
        )
        assert [
            body["messages"][1]["content"]
            for body in server.bodies
            if len(body["messages"]) > 1
        ] == ["The user wants \ufffd things."] * 3
        live = (tmp_path / "out/conversations.jsonl").read_bytes()
        assert {c.intent for c in read(tmp_path / "out")} == {
            f"{INTENT_PREFIX}learn about \ufffd things."
        }
        for name in (
            "results.json",
            "conversations.jsonl",
        ):
            # as if it had been killed before the end
            (tmp_path / "out" / name).unlink()
        assert run() == first
        assert len(server.requests) == 6
    assert (tmp_path / "out/conversations.jsonl").read_bytes() == live


def test_the_estimate_is_shown_before_the_first_call(tmp_path, data, capsys):
    shown_before = []

    def reply(body, n):
        shown_before.append(capsys.readouterr().err)
        return good(body)

    with serving(reply) as server:
        commands.intents(
            commands.Intents(
                data,
                out=tmp_path / "out",
                writer=f"{server.url}#m",
                workers=1,
                price=PRICE,
                limits=commands.Limits(budget=0.1),
            )
        )
    size = len(server.bodies[0]["messages"][0]["content"].encode()) + 1
    # 0 to 9 have one digit, the other 50 two.
    tokens_in, tokens_out = (60 * size - 10) // 4, 60 * 120
    cost = (tokens_in * 2.5 + tokens_out * 10) / 1e6
    assert cost > 0.1
    shown = " ".join(shown_before[0].split())
    assert "60 intents to write; estimate, with one call each:" in shown
    assert (
        f"#m: 60 calls, about {tokens_in:,} tokens in and at most {tokens_out:,} out, about "
        f"${cost:.2f}" in shown
    )
    assert "--budget 0.1 may stop the run earlier" in shown


# --- a budget -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"budget": -1.0, "price": PRICE},
        {"budget": float("nan"), "price": PRICE},
        {"price": "cheap"},
        {"writer": "http://me:secret@127.0.0.1:1/v1#m"},
        {"writer": "http://me:secret@127.0.0.1:1/v1"},
        {"writer": "HTTP://me:secret@127.0.0.1:1/v1#m"},
        {"writer": "foo://me:secret@127.0.0.1#m"},
        {"writer": "http:/me:secret@127.0.0.1:1/v1#m"},
        {"condition": " ,,"},
        {"condition": ""},
    ],
)
def test_options_that_make_no_sense_are_input_errors_that_leave_nothing_behind(
    options, tmp_path, data, monkeypatch
):
    monkeypatch.undo()
    with pytest.raises(InputError) as caught:
        commands.intents(
            flat(commands.Intents, data=data, out=tmp_path / "out", **options)
        )
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_budget_needs_the_price_of_a_model_on_a_server_and_a_model(tmp_path, data):
    with pytest.raises(InputError, match="--budget needs the price"):
        commands.intents(
            flat(
                commands.Intents,
                data=data,
                out=tmp_path / "out",
                writer="http://127.0.0.1:1/v1#m",
                budget=1.0,
            )
        )
    with pytest.raises(InputError, match="are for models; none is called here"):
        commands.intents(
            flat(commands.Intents, data=data, out=tmp_path / "out", max_calls=3)
        )


def test_a_run_whose_budget_is_spent_goes_on_with_a_higher_one(tmp_path, data, capsys):
    with serving(good) as server:

        def run(**limits):
            return commands.intents(
                commands.Intents(
                    data,
                    out=tmp_path / "out",
                    writer=f"{server.url}#m",
                    price=PRICE,
                    limits=commands.Limits(**limits),
                )
            )

        first = run(budget=0.3)
        assert 0 < billed(server) <= Decimal("0.3")
        n = first["counts"]["out"]
        assert first["counts"]["note: no intent, cap reached"] == 60 - n > 0
        said = " ".join(capsys.readouterr().err.split())
        assert "Run the same command with a higher limit to continue" in said
        second = run(budget=0.3, max_calls=n + 5)
        assert second["counts"]["out"] == n + 0 == len(server.requests)
        last = run(budget=9.0)
        assert last["counts"]["out"] == 60 == len(server.requests)
        assert last["usage"]["writer"]["calls"] == 60


def test_the_budget_is_never_passed_by_what_the_server_bills_whatever_fails(
    tmp_path, data, impatient
):
    budget = Decimal("0.6")
    with serving(Faults()) as server:
        results = commands.intents(
            commands.Intents(
                data,
                out=tmp_path / "out",
                writer=f"{server.url}#m",
                price=PRICE,
                limits=commands.Limits(budget=0.6),
            )
        )
    assert billed(server) <= Decimal(str(results["usage"]["writer"]["cost"])) <= budget
    assert results["counts"]["note: no intent, cap reached"] > 0  # so it mattered
    assert billed(server) > budget / 2  # and was used


# --- killed ---------------------------------------------------------------------------------------

DRIVER = """
import sys
from pathlib import Path
from userlm import commands, loading
from userlm.models.endpoint import EndpointModel
loading._endpoint = lambda name, url, key: EndpointModel(name, url, "a-key", timeout=1, pause=0.01)
data, out, by, price, budget = sys.argv[1:]
commands.intents(commands.Intents(Path(data), out=Path(out), writer=by, price=price, limits=commands.Limits(float(budget) if budget else None)))
"""


def kill_in_the_middle(server, data, out, budget="", after=20) -> None:
    """Run it in a process of its own, and SIGKILL that after so many more requests."""
    driver = data.with_name("driver.py")
    driver.write_text(DRIVER)
    before = len(server.requests)
    process = Process([str(driver)], data, out, f"{server.url}#m", PRICE, budget)
    deadline = time.monotonic() + 120
    while len(server.requests) < before + after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    arrived = -1
    while arrived != (arrived := len(server.requests)):
        # what it had sent is still being accepted
        time.sleep(0.3)


def slowly(body, n) -> Said:
    """So that there is a middle; some need a second call."""
    wrong = number(body) % 5 == 4 and len(body["messages"]) == 1
    said = completion("The user wants things.", tokens_out=5) if wrong else good(body)
    return replace(said, hang=0.05)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_files_and_asks_nothing_twice(
    tmp_path, data
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with serving(slowly) as server:
        by = f"{server.url}#m"
        undisturbed = commands.intents(
            commands.Intents(data, out=whole, writer=by, price=PRICE)
        )
        calls = len(server.requests)
        assert calls == 60 + 12
        kill_in_the_middle(server, data, killed)
        lines = [
            json.loads(line)
            for line in (killed / "asked.jsonl").read_text().splitlines()
        ]
        answered = {(row["id"], row["try"]) for row in lines}
        booked = (killed / "usage.jsonl").read_text().splitlines()
        lost = sum(json.loads(line)["used"].get("open", 0) for line in booked)
        assert answered and lost and not (killed / "results.json").exists()
        before = len(server.requests)
        results = commands.intents(
            commands.Intents(data, out=killed, writer=by, price=PRICE)
        )
    again = {
        (f"c{number(body)}", len(body["messages"]) // 2)
        for body in server.bodies[before:]
    }
    assert not again & answered
    assert len(server.requests) - before == len(again) == calls - len(answered)
    name = "conversations.jsonl"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert {**results, "usage": 0, "faults": 0} == {
        **undisturbed,
        "usage": 0,
        "faults": 0,
    }
    assert results["faults"] == {"in flight when stopped": lost}
    assert Decimal(str(results["usage"]["writer"]["cost"])) >= billed(server) - Decimal(
        str(undisturbed["usage"]["writer"]["cost"])
    )


@pytest.mark.slow
def test_the_budget_holds_over_kills_and_faults(tmp_path, data):
    out = tmp_path / "out"
    with serving(Faults(late=Said(hang=0.7, cut=True))) as server:
        kill_in_the_middle(server, data, out, budget="1.5")
        results = commands.intents(
            commands.Intents(
                data,
                out=out,
                writer=f"{server.url}#m",
                price=PRICE,
                limits=commands.Limits(budget=1.5),
            )
        )
    assert (
        billed(server)
        <= Decimal(str(results["usage"]["writer"]["cost"]))
        <= Decimal("1.5")
    )
    assert results["faults"]["in flight when stopped"] > 0
    assert results["counts"]["out"] > 0


# --- intents that nobody has to write -------------------------------------------------------------


def joined(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join(
            (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
        )
    )
    return path


def test_an_intent_that_is_there_comes_before_joined_ones_these_before_goals_and_these_before_written_ones(
    tmp_path,
):
    there = Conversation(
        "c0", log(0).turns, "Mine.", meta={"goal": "A goal.", "intent_by": "gpt-y"}
    )
    rows = [
        there,
        log(1, goal="A goal."),
        log(2, goal=" Book\na  table. "),
        log(3),
        log(4, goal=""),
        log(5, goal=7),
    ]
    data = write(tmp_path / "logs.jsonl", rows)
    extra = joined(
        tmp_path / "extra.jsonl",
        {"id": "c0", "intent": "Theirs."},
        {"id": "c1", "intent": "Theirs."},
    )
    with serving(good) as server:
        by = f"{server.url}#m"
        results = commands.intents(
            commands.Intents(data, out=tmp_path / "a", writer=by, join=[extra])
        )
        assert sorted(map(number, server.bodies)) == [3, 4, 5]
        written = [f"{INTENT_PREFIX}learn about thing {i}." for i in range(6)]
        said = [(c.intent, c.meta["intent_by"]) for c in read(tmp_path / "a")]
        assert said == [
            ("Mine.", "gpt-y"),
            ("Theirs.", "joined"),
            ("Book a table.", "human"),
            *((text, "m") for text in written[3:]),
        ]
        assert results["counts"] == {
            "in": 6,
            "note: had an intent": 1,
            "note: human goal": 1,
            "note: joined": 1,
            "note: written": 3,
            "out": 6,
        }
        assert {by: writer["n"] for by, writer in results["writers"].items()} == {
            "gpt-y": 1,
            "human": 1,
            "joined": 1,
            "m": 3,
        }
        commands.intents(
            commands.Intents(
                data, out=tmp_path / "b", writer=by, join=[extra], overwrite=True
            )
        )
        assert [c.meta["intent_by"] for c in read(tmp_path / "b")] == [
            "joined",
            "joined",
            "human",
            "m",
            "m",
            "m",
        ]
        commands.intents(
            commands.Intents(
                data, out=tmp_path / "c", writer=by, overwrite=True, goals=False
            )
        )
        assert [c.intent for c in read(tmp_path / "c")] == written


def test_a_goal_that_is_a_page_long_or_a_mere_name_is_not_taken_and_counted(tmp_path):
    goals = ("go " + "x" * 1998, "go " + "x" * 1997, "sum_product", "Rome hotels")
    data = write(
        tmp_path / "logs.jsonl", [log(i, goal=goal) for i, goal in enumerate(goals)]
    )
    results = commands.intents(commands.Intents(data, out=tmp_path / "out"))
    assert results["counts"]["note: human goal not taken, too long"] == 1
    assert results["counts"]["note: human goal not taken, one word"] == 1
    assert [c.meta["intent_by"] for c in read(tmp_path / "out")] == [
        "extractive",
        "human",
        "extractive",
        "human",
    ]


def test_joined_rows_are_matched_by_id_or_by_the_hash_of_wildchat_and_the_others_counted(
    tmp_path,
):
    hashed, other = "a" * 32, "b" * 32
    turns = log(0).turns
    data = write(
        tmp_path / "logs.jsonl",
        [Conversation(f"{hashed}-17", turns), Conversation(f"{other}-3", turns)],
    )
    one = joined(
        tmp_path / "1.jsonl",
        {"id": hashed, "intent": " One. "},
        "",
        {"id": hashed, "intent": "Again."},
    )
    two = joined(
        tmp_path / "2.jsonl",
        {"id": f"{other}-3", "intent": "Two."},
        {"id": "nobody", "intent": "Three."},
        {"id": "e", "intent": " "},
        {"id": "n", "intent": None},
    )
    results = commands.intents(
        commands.Intents(data, out=tmp_path / "out", join=[one, two])
    )
    assert [(c.intent, c.meta["intent_by"]) for c in read(tmp_path / "out")] == [
        ("One.", "joined"),
        ("Two.", "joined"),
    ]
    assert results["counts"] == {
        "in": 2,
        "note: joined": 2,
        "note: joined file, duplicate id": 1,
        "note: joined file, empty intent": 2,
        "note: joined file, unknown id": 1,
        "out": 2,
    }


@pytest.mark.parametrize("by", ["model", "joined"])
def test_two_files_with_the_same_id_are_refused_before_the_first_call(tmp_path, by):
    for split in ("train", "test"):
        write(tmp_path / "data" / f"{split}.jsonl", [log(1, split)])
    extra = joined(tmp_path / "extra.jsonl", {"id": "c1", "intent": "x"})
    with serving(good) as server:
        options = {"writer": f"{server.url}#m"} if by == "model" else {"join": [extra]}
        with pytest.raises(
            InputError, match=r"test\.jsonl: id .* is in .*train\.jsonl"
        ):
            commands.intents(
                flat(
                    commands.Intents,
                    data=tmp_path / "data",
                    out=tmp_path / "out",
                    **options,
                )
            )
    assert not list(tmp_path.glob("out/t*.jsonl"))


def test_a_joined_id_may_be_a_number_as_in_a_table(tmp_path):
    data = write(tmp_path / "logs.jsonl", [Conversation("12", log(0).turns)])
    file = joined(tmp_path / "j.jsonl", {"id": 12.0, "intent": "Cook rice."})
    commands.intents(commands.Intents(data, out=tmp_path / "out", join=[file]))
    [found] = read(tmp_path / "out")
    assert (found.intent, found.meta["intent_by"]) == ("Cook rice.", "joined")


def test_a_joined_intent_on_several_lines_becomes_one_line(tmp_path, data):
    file = joined(
        tmp_path / "j.jsonl",
        {"id": "c0", "intent": " Cook rice,\n\tthen\r\nbeans.\n"},
        {"id": "c1", "intent": "\n"},
    )
    results = commands.intents(
        commands.Intents(data, out=tmp_path / "out", join=[file], limit=2)
    )
    assert read(tmp_path / "out")[0].intent == "Cook rice, then beans."
    assert results["counts"]["note: joined file, empty intent"] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{oops", r"2\.jsonl, line 2: is not JSON"),
        ({"intent": "x"}, r"2\.jsonl, line 2: field 'id' is missing"),
        (
            {"id": "x", "intent": ["y"]},
            r"2\.jsonl, line 2: field 'intent' must be a str, not list",
        ),
        (
            {"id": [5], "intent": "y"},
            r"2\.jsonl, line 2: wrong type: field 'id' must be a text, not list",
        ),
    ],
)
def test_a_joined_line_that_is_none_is_an_input_error_that_names_it(
    row, said, tmp_path, data
):
    file = joined(tmp_path / "2.jsonl", {"id": "c0", "intent": "x"}, row)
    with pytest.raises(InputError, match=said):
        commands.intents(commands.Intents(data, out=tmp_path / "out", join=[file]))


def test_joined_rows_can_be_parquet(tmp_path, data):
    import polars as pl

    pl.DataFrame({"id": ["c1", "c2"], "intent": ["One.", None]}).write_parquet(
        tmp_path / "j.parquet"
    )
    results = commands.intents(
        commands.Intents(data, out=tmp_path / "out", join=[tmp_path / "j.parquet"])
    )
    assert read(tmp_path / "out")[1].intent == "One."
    assert (
        results["counts"]["note: joined"],
        results["counts"]["note: joined file, empty intent"],
    ) == (1, 1)


def test_the_stand_in_is_the_default_and_named_as_such(tmp_path, data, capsys):
    rows = [
        *read_conversations(data),
        Conversation("silent", (Turn("user", "..."),), meta={"intent_by": "old"}),
    ]
    results = commands.intents(
        commands.Intents(write(tmp_path / "more.jsonl", rows), out=tmp_path / "out")
    )
    assert results["counts"] == {
        "in": 61,
        "note: no intent, nothing to say": 1,
        "note: written": 60,
        "out": 60,
    }
    assert set(results["writers"]) == {"extractive"} and "usage" not in results
    assert "No language model wrote these" in capsys.readouterr().out
    found = read(tmp_path / "out")
    assert all(c.meta["intent_by"] == "extractive" for c in found[:60])
    assert "intent_by" not in found[60].meta  # nobody wrote it


def test_a_script_writes_like_any_model(tmp_path, data):
    (tmp_path / "lines.txt").write_text(f"nonsense\n{GOOD}\n")
    results = commands.intents(
        commands.Intents(
            data,
            out=tmp_path / "out",
            writer=f"script:{tmp_path / 'lines.txt'}",
            price=PRICE,
        )
    )
    assert (
        results["counts"]["note: written"] == 60
        and results["usage"]["writer"]["calls"] == 120
    )
    assert results["usage"]["writer"]["tokens_in"] is None  # a script counts none
    assert {c.meta["intent_by"] for c in read(tmp_path / "out")} == {"lines.txt"}
