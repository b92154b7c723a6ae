"""Budgets whose caps are never passed, and usage that survives a crash."""

import json
import random
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from userlm.models.budget import (
    GIVE_UP,
    PER_MESSAGE,
    Amount,
    Budget,
    Caps,
    CountedChat,
    CountedComplete,
    Price,
    _are_alike,
    count_request,
)
from userlm.types import Completion, InputError, ModelError, Sampling

ASK = [{"role": "user", "content": "hello"}]
IN = 5 + PER_MESSAGE  # 5 bytes, so at most 505 tokens
SAMPLING = Sampling(max_tokens=50)
PRICE = Price(Decimal(2), Decimal(10))
OK = Completion("ok", tokens_in=20, tokens_out=5)


class Model:
    """Answers with what stands in `script`, then with `OK`; it is its own count of calls."""

    def __init__(self, *script):
        self.script, self.asked = list(script), 0

    def chat(self, messages, sampling):
        self.asked += 1
        said = self.script.pop(0) if self.script else OK
        if isinstance(said, Exception):
            raise said
        return said

    def complete(self, ids, sampling):
        return self.chat((), sampling)


def counted(path, model, caps=None, tries=1, price=None, side="user"):
    budget = Budget(caps or Caps(), path)
    usage = budget.side(side, price=price, tries=tries)
    return CountedChat(model, usage), usage, budget


def test_the_first_cap_that_is_passed_is_named_and_what_just_reaches_it_passes_none():
    caps = Caps(calls=2, tokens=100, dollars=Decimal("0.5"))
    assert caps.passed(Amount(2, 100, Decimal("0.5"))) == ""
    assert caps.passed(Amount(3, 101, Decimal(1))) == "--max-calls 2"
    assert caps.passed(Amount(2, 101, Decimal(1))) == "--max-tokens-total 100"
    assert caps.passed(Amount(2, 100, Decimal("0.51"))) == "--budget 0.5"
    assert Caps().passed(Amount(10**9, 10**12, Decimal(10**9))) == ""


def test_a_price_that_is_none_is_said_with_its_option():
    with pytest.raises(InputError, match=r"^--user-price x: give US dollars"):
        Price.parse("x", "--user-price")


def test_a_call_waits_only_while_a_call_in_flight_may_give_something_back(tmp_path):
    budget = Budget(Caps(calls=2), tmp_path / "u")
    side, one = budget.side("user"), Counter(calls=1)
    budget.reserve(side, Counter(calls=2))
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(budget.reserve, side, one)
        time.sleep(0.05)
        assert not waits.done()
        # The first is over, and needed one of two.
        budget.settle(side, one, Counter(calls=2))
        waits.result(5)
        assert budget.spent == Amount(calls=2)
        budget.settle(side, one, one)
        # No call could give anything back.
        with pytest.raises(ModelError, match=r"^cap reached: --max-calls 2$"):
            pool.submit(budget.reserve, side, one).result(5)


def test_a_stopped_budget_gives_nothing_and_no_call_waits(tmp_path):
    budget = Budget(Caps(calls=1), tmp_path / "u")
    side, one = budget.side("user"), Counter(calls=1)
    budget.reserve(side, one)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(budget.reserve, side, one)
        time.sleep(0.05)
        assert budget.stop("stopped") == 1
        with pytest.raises(ModelError, match=r"^stopped$"):
            waits.result(5)
    assert budget.stop("another reason") == 1
    with pytest.raises(ModelError, match=r"^stopped$"):
        budget.reserve(side, Counter())


def test_what_a_call_used_is_counted(tmp_path):
    model = Model(
        OK,
        Completion("no usage"),
        Completion("ok", tokens_in=20, tokens_out=5, possibly_billed=1),
        ModelError("m: late", possibly_billed=3),
    )
    chat, usage, budget = counted(tmp_path / "u", model, tries=3, price=PRICE)
    for _ in range(3):
        chat.chat(ASK, SAMPLING)
    with pytest.raises(ModelError, match="late"):
        chat.chat(ASK, SAMPLING)
    # At their worst: the answer without usage, the possibly_billed try before the third, the three
    # of the fourth.
    tokens_in, tokens_out = 20 + 20 + 5 * IN, 5 + 5 + 5 * 50
    dollars = (2 * tokens_in + 10 * tokens_out) / Decimal(10**6)
    assert budget.spent == Amount(4, tokens_in + tokens_out, dollars)
    assert usage.results() == {
        "calls": 4,
        "drafts": 3,
        "tokens_in": 40,
        "tokens_out": 10,
        "possibly_billed": 4,
        "cost": float(dollars),
        "price": "2/10",
    }


def test_usage_that_was_not_counted_or_priced_is_unknown(tmp_path):
    chat, usage, _ = counted(tmp_path / "u", Model(Completion("no usage")))
    chat.chat(ASK, SAMPLING)
    found = usage.results()
    assert (found["tokens_in"], found["tokens_out"], found["cost"]) == (
        None,
        None,
        None,
    )


def test_token_ids_are_bounded_by_their_number(tmp_path):
    class Asks:
        def complete(self, ids, sampling):
            # Reserved: three tries.
            assert budget.spent == Amount(1, 3 * (4 + 50), Decimal(0))
            return OK

    budget = Budget(Caps(), tmp_path / "u")
    CountedComplete(Asks(), budget.side("user", tries=3)).complete([1, 2, 3], SAMPLING)
    assert budget.spent == Amount(1, 25)


def test_what_was_used_survives_and_calls_in_flight_when_it_was_killed_count_at_their_worst(
    tmp_path,
):
    path = tmp_path / "usage.jsonl"
    chat, usage, budget = counted(
        path, Model(ModelError("late", possibly_billed=1)), tries=2, price=PRICE
    )
    with pytest.raises(ModelError):
        chat.chat(ASK, SAMPLING)
    chat.chat(ASK, SAMPLING)
    spent, used = budget.spent, usage.results()
    _, again, budget = counted(path, Model(), tries=2, price=PRICE)
    assert (budget.spent, again.results()) == (spent, used)
    _, other, _ = counted(path, Model(), side="assistant")
    assert other.results()["calls"] == 0
    first = path.read_text().splitlines()[0]  # of a call that began
    # Another one did, and then the process died.
    path.write_text(path.read_text() + first + "\n" + first[:20])
    _, again, budget = counted(path, Model(), tries=2, price=PRICE)
    assert budget.spent == spent + Amount(1, 2 * (IN + 50), 2 * PRICE.of(IN, 50))
    assert again.results()["possibly_billed"] == used["possibly_billed"] + 2
    results = budget.finish(["user", "assistant"])
    assert results["usage"] == {"user": again.results(), "assistant": None}
    # One line that says as much.
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["side"] == "user"
    _, summed, _ = counted(path, Model(), tries=2, price=PRICE)
    assert summed.results() == again.results()


@pytest.mark.parametrize(
    ("caps", "reached"),
    [
        (Caps(calls=60), "--max-calls 60"),
        (Caps(tokens=60 * 3 * (IN + 50)), "--max-tokens-total 99900"),
        (Caps(dollars=60 * 3 * PRICE.of(IN, 50)), "--budget 0.27180"),
    ],
)
def test_many_threads_together_never_pass_a_cap_and_use_most_of_it(
    caps, reached, tmp_path
):
    draw, billed = random.Random(0), []

    class Costly:
        def chat(self, messages, sampling):
            possibly_billed = draw.choice((0, 0, 1, 2))
            time.sleep(0.0005)
            tokens = draw.choice(((20, 5), (IN, 50)))  # now and then as much as can be
            dollars = possibly_billed * PRICE.of(IN, 50) + PRICE.of(*tokens)
            billed.append(Amount(1, possibly_billed * (IN + 50) + sum(tokens), dollars))
            return Completion(
                "ok",
                tokens_in=tokens[0],
                tokens_out=tokens[1],
                possibly_billed=possibly_billed,
            )

    chat, _, budget = counted(tmp_path / "u", Costly(), caps, tries=3, price=PRICE)

    def ask(_):
        try:
            return chat.chat(ASK, SAMPLING).text
        except ModelError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(ask, range(400)))
    total = sum(billed, Amount())
    assert total == budget.spent and caps.passed(total) == ""
    worst = Amount(1, 3 * (IN + 50), 3 * PRICE.of(IN, 50))
    # Nothing was left undone while there was room for it.
    assert caps.passed(total + worst) == reached
    assert set(said) == {"ok", f"cap reached: {reached}"} and said.count("ok") == len(
        billed
    )


def test_after_a_cap_was_reached_no_call_begins_not_even_a_small_one(tmp_path):
    model = Model()
    # After the first call 502 of 527 tokens are left.
    chat, _, _ = counted(tmp_path / "u", model, Caps(tokens=25 + PER_MESSAGE + 2))
    chat.chat([{"role": "user", "content": ""}], Sampling(max_tokens=1))
    for content in ("hello", ""):  # the second would fit
        with pytest.raises(ModelError, match=r"^cap reached: --max-tokens-total 527$"):
            chat.chat([{"role": "user", "content": content}], Sampling(max_tokens=1))
    assert model.asked == 1


def test_a_call_that_no_cap_could_cover_ends_alone(tmp_path):
    model = Model()
    chat, _, _ = counted(tmp_path / "u", model, Caps(tokens=1000))
    with pytest.raises(ModelError, match=r"^cap reached: --max-tokens-total 1000$"):
        chat.chat([{"role": "user", "content": "x" * 500}], Sampling(max_tokens=1))
    assert chat.chat(ASK, SAMPLING) == OK


def test_each_request_of_a_call_is_counted_and_the_first_one_with_the_call(tmp_path):
    class Asks:
        def chat(self, messages, sampling):
            for _ in range(len(messages)):
                count_request()
                made.append(1)
            return OK

    made: list[int] = []
    chat, _, budget = counted(tmp_path / "u", Asks(), Caps(calls=4), tries=3)
    chat.chat(ASK, SAMPLING)
    assert budget.spent.calls == 1 == len(made)
    chat.chat(ASK * 2, SAMPLING)
    assert budget.spent.calls == 3 == len(made)
    with pytest.raises(ModelError, match=r"^cap reached: --max-calls 4$"):
        chat.chat(ASK * 3, SAMPLING)
    assert budget.spent.calls == 4 == len(made)
    count_request()  # outside of a counted call nothing is counted
    _, _, again = counted(tmp_path / "u", Asks())
    assert again.spent.calls == 4


@pytest.mark.parametrize("reason", ["no credit", "long wait"])
def test_a_server_that_will_answer_no_call_ends_the_run(reason, tmp_path):
    model = Model(ModelError("m: come back at 12:00", reason, permanent=True))
    chat, _, _ = counted(tmp_path / "u", model)
    for _ in range(3):
        with pytest.raises(ModelError, match=r"^m: come back at 12:00$"):
            chat.chat(ASK, SAMPLING)
    assert model.asked == 1
    # The same command later goes on.
    again, _, _ = counted(tmp_path / "u", model)
    assert again.chat(ASK, SAMPLING) == OK


def test_two_sides_share_one_budget(tmp_path):
    budget = Budget(Caps(calls=3), tmp_path / "u")
    sides = [CountedChat(Model(), budget.side(side)) for side in ("user", "assistant")]
    for chat in (*sides, sides[0]):
        chat.chat(ASK, SAMPLING)
    with pytest.raises(ModelError, match="cap reached: --max-calls 3"):
        sides[1].chat(ASK, SAMPLING)
    assert [chat.side.results()["calls"] for chat in sides] == [2, 1]


def test_a_call_that_breaks_in_another_way_leaves_no_call_waiting(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Breaks:
        def chat(self, messages, sampling):
            begun.set()
            go_on.wait(5)
            raise RuntimeError("not what a model may raise")

    chat, _, budget = counted(tmp_path / "u", Breaks(), Caps(calls=1))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(chat.chat, ASK, SAMPLING)
        begun.wait(5)
        second = pool.submit(chat.chat, ASK, SAMPLING)
        go_on.set()
        with pytest.raises(RuntimeError):
            first.result(5)
        with pytest.raises(ModelError, match="cap reached"):
            second.result(5)
    assert budget.spent.calls == 1


def test_a_call_that_is_refused_before_anything_is_sent_costs_nothing(tmp_path):
    class Refuses:
        def chat(self, messages, sampling):
            raise InputError("the server has no such setting")

    chat, _, budget = counted(tmp_path / "u", Refuses(), Caps(calls=1))
    for _ in range(3):
        with pytest.raises(InputError):
            chat.chat(ASK, SAMPLING)
    assert budget.spent == Amount()


def test_a_call_that_no_other_can_make_room_for_does_not_wait(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Waits:
        def chat(self, messages, sampling):
            begun.set()
            go_on.wait(5)
            return Completion("hi", tokens_in=1, tokens_out=1)

    budget = Budget(Caps(tokens=3_000), None)
    side = budget.side("user")
    small, large = Sampling(max_tokens=100), Sampling(max_tokens=2_900)
    chat = CountedChat(Waits(), side)
    with ThreadPoolExecutor(2) as pool:
        go_on.set()
        for _ in range(50):
            pool.submit(chat.chat, ASK, small).result(5)
        go_on.clear()
        begun.clear()
        first = pool.submit(chat.chat, ASK, small)
        begun.wait(5)
        with pytest.raises(ModelError, match="cap reached"):
            pool.submit(chat.chat, ASK, large).result(5)
        assert not first.done()
        go_on.set()
        first.result(5)


def test_errors_of_other_threads_are_noted_while_the_latest_are_compared():
    class Noted(str):
        def __bool__(self):
            latest.append("")
            return True

    latest = deque([Noted("not allowed")] * (GIVE_UP - 1), GIVE_UP)
    assert not _are_alike(latest)
    latest.extend(["not allowed"] * GIVE_UP)
    assert _are_alike(latest)
