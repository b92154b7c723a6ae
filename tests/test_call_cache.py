"""Answers that are paid for once, and a budget that is never passed."""

import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from decimal import Decimal

import pytest

from userlm.models.budget import PER_MESSAGE, WORDLESS, Budget, Caps, Price
from userlm.models.call_cache import Answer, CallCache
from userlm.models.shared_calls import SharedCalls
from userlm.types import Completion, InputError, ModelError, Sampling

ASK = [{"role": "user", "content": "hello"}]  # 5 bytes, so at most 5 + 500 tokens
SAMPLING = Sampling(max_tokens=50)
PRICE = Price(Decimal(2), Decimal(10))
WORST = PRICE.of(5 + PER_MESSAGE, 50)


class Model:
    """Answers with what stands in `script`, and remembers how often it was asked."""

    def __init__(self, *script):
        self.script, self.asked = list(script), 0

    def chat(self, messages, sampling):
        self.asked += 1
        said = (
            self.script.pop(0)
            if self.script
            else Completion("ok", tokens_in=20, tokens_out=5)
        )
        if isinstance(said, Exception):
            raise said
        return said


def cached(path, model, tries=1, price=None, budget=None):
    """The cache, its usage and the budget; the journal of the usage stands beside its own."""
    limit = Budget(Caps(dollars=budget), path.with_name(f"{path.name}-usage"))
    usage = limit.side("writer", price=price, tries=tries)
    return CallCache(path, model, usage), usage, limit


def test_a_price_is_in_dollars_for_a_million_tokens():
    # 1,000 in at 2.50 a million: 0.0025; 200 out at 10 a million: 0.002.
    assert Price.parse("2.50/10").of(1000, 200) == Decimal("0.0045")


@pytest.mark.parametrize(
    "text", ["2.5", "a/b", "1/2/3", "-1/2", "nan/1", "1/inf", "/", "1e25/1", "1/1e6"]
)
def test_a_price_that_is_none_is_said_so(text):
    with pytest.raises(InputError, match=r"such as 2\.50/10"):
        Price.parse(text)


def test_the_worst_case_of_a_call():
    # 505 tokens in at 2: 1010 millionths; 50 out at 10: 500 millionths.
    assert PRICE.of(5 + PER_MESSAGE, 50) == WORST == Decimal("0.00151")


def test_what_was_answered_is_not_asked_again(tmp_path):
    path, model = (
        tmp_path / "asked.jsonl",
        Model(Completion("one", tokens_in=20, tokens_out=5)),
    )
    call_cache, _, _ = cached(path, model, price=PRICE)
    assert call_cache.ask("a", 0, ASK, SAMPLING) == Answer("one")
    call_cache.close()
    again, usage, budget = cached(path, model, price=PRICE)
    assert again.answered("a") and not again.answered("b")
    assert again.ask("a", 0, ASK, SAMPLING) == Answer("one")
    assert model.asked == 1
    # A second call about it is another one.
    assert again.ask("a", 1, ASK, SAMPLING) == Answer("ok")
    assert model.asked == 2
    # Twice 20 in at 2 and 5 out at 10: 2 * (40 + 50) millionths.
    assert budget.spent.dollars == Decimal("0.00018")
    assert usage.results() == {
        "calls": 2,
        "drafts": 2,
        "possibly_billed": 0,
        "tokens_in": 40,
        "tokens_out": 10,
        "cost": 0.00018,
        "price": "2/10",
    }


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_asked_by_many_at_once_is_paid_once(fails, tmp_path):
    """Who waited for a call that failed asks again."""
    gate = threading.Barrier(4)
    script = [ModelError("busy", "rate limited")] if fails else []
    model = Model(*script)

    def slow(messages, sampling):
        time.sleep(0.05)
        return Model.chat(model, messages, sampling)

    model.chat = slow
    cache, usage, _ = cached(tmp_path / "asked.jsonl", model)

    def ask(_):
        gate.wait()
        return cache.ask("a", 0, ASK, SAMPLING).text

    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(ask, range(4)))
    assert said.count("ok") == 4 - fails
    assert model.asked == usage.used["calls"] == 1 + fails
    cache.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_question_is_forgotten_once_it_is_answered(fails):
    class Question:
        pass

    def call():
        if fails:
            raise ModelError("busy")
        return "yes"

    question = Question()
    remembered = weakref.ref(question)
    shared = SharedCalls()
    with pytest.raises(ModelError) if fails else nullcontext():
        assert shared.result(question, call) == ("yes", True)
    del question
    gc.collect()
    assert remembered() is None


def test_a_refusal_is_an_answer_and_a_failure_is_none(tmp_path):
    path = tmp_path / "asked.jsonl"
    model = Model(
        ModelError("m: no", "refused", possibly_billed=1),
        ModelError("m: cut", "connection cut"),
    )
    call_cache, _, _ = cached(path, model)
    assert call_cache.ask("a", 0, ASK, SAMPLING) == Answer(None, "refused")
    assert call_cache.ask("b", 0, ASK, SAMPLING) == Answer(
        None, "connection cut", "m: cut"
    )
    call_cache.close()
    again, _, _ = cached(path, model)
    assert again.ask("a", 0, ASK, SAMPLING) == Answer(None, "refused")
    assert again.ask("b", 0, ASK, SAMPLING) == Answer("ok")
    assert model.asked == 3


def test_an_answer_as_long_as_it_may_be_is_cut_off(tmp_path):
    model = Model(Completion("You are", tokens_in=20, tokens_out=50))
    call_cache, _, _ = cached(tmp_path / "a", model)
    assert call_cache.ask("a", 0, ASK, SAMPLING) == Answer("You are", "cut off")


def test_what_was_not_reported_is_booked_at_its_worst(tmp_path):
    path = tmp_path / "asked.jsonl"
    model = Model(
        Completion("no usage"),
        Completion(
            "ok",
            tokens_in=20,
            tokens_out=5,
            faults=("timed out", "rate limited"),
            possibly_billed=1,
        ),
        ModelError(
            "m: late", "timed out", faults=("timed out",) * 3, possibly_billed=3
        ),
    )
    call_cache, usage, budget = cached(path, model, tries=3, price=PRICE)
    for name in "abc":
        call_cache.ask(name, 0, ASK, SAMPLING)
    wanted = WORST + (PRICE.of(20, 5) + WORST) + 3 * WORST
    assert budget.spent.dollars == wanted
    call_cache.close()
    again, usage_again, budget = cached(path, model, tries=3, price=PRICE)
    assert budget.spent.dollars == wanted
    assert usage_again.results() == usage.results()
    assert again.faults == call_cache.faults == {"timed out": 4, "rate limited": 1}
    assert usage.results()["possibly_billed"] == 4


def test_calls_in_flight_when_it_was_killed_are_booked_in_full(tmp_path):
    path = tmp_path / "asked.jsonl"
    call_cache, _, _ = cached(path, Model(), tries=2, price=PRICE)
    call_cache.ask("a", 0, ASK, SAMPLING)
    # Killed twice: after a call began, and in the middle of a line.
    journal = path.with_name("asked.jsonl-usage")
    begun, _ = journal.read_text().splitlines()
    with journal.open("a") as file:
        file.write(f"{begun}\n{begun}\n{begun[:20]}")
    with path.open("a") as file:
        file.write('{"id": "c", "try": 0, "te')
    call_cache, usage, budget = cached(path, Model(), tries=2, price=PRICE)
    assert budget.spent.dollars == 2 * 2 * WORST + PRICE.of(20, 5)
    assert call_cache.faults == {"in flight when stopped": 2}
    assert usage.results()["possibly_billed"] == 4
    assert call_cache.answered("a") and not call_cache.answered("c")


def test_a_journal_of_another_version_is_refused(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"id": "a", "try": 0, "bound": [505, 50]}\n')
    with pytest.raises(InputError, match=r"another version of userlm; .*another --out"):
        cached(path, Model())


def test_an_answer_is_written_before_its_call_is_settled(tmp_path):
    """So a kill in between repeats no answered call."""
    path = tmp_path / "asked.jsonl"
    call_cache, _, budget = cached(path, Model(), price=PRICE)
    written = []
    book = budget._book

    def watch(side, change):
        written.append(path.read_text().count("\n"))
        book(side, change)

    budget._book = watch
    call_cache.ask("a", 0, ASK, SAMPLING)
    assert written == [0, 1]


def test_a_call_whose_worst_case_is_not_covered_is_not_made(tmp_path):
    model = Model()
    budget = 2 * WORST - Decimal("0.000001")
    call_cache, _, _ = cached(tmp_path / "a", model, 2, PRICE, budget)
    refused = call_cache.ask("a", 0, ASK, SAMPLING)
    assert (refused.text, refused.reason) == (None, "cap")
    assert refused.error.startswith("cap reached: --budget 0.003019")
    call_cache, _, _ = cached(tmp_path / "b", model, 2, PRICE, 2 * WORST)
    assert call_cache.ask("a", 0, ASK, SAMPLING) == Answer("ok")
    assert call_cache.ask("b", 0, ASK, SAMPLING).reason == "cap"
    assert model.asked == 1
    # What was not asked is asked when there is money again.
    call_cache, _, _ = cached(tmp_path / "b", model, 2, PRICE, 4 * WORST)
    assert call_cache.ask("b", 0, ASK, SAMPLING) == Answer("ok")


def test_many_threads_together_never_pass_the_budget_and_use_most_of_it(tmp_path):
    draw = random.Random(0)
    billed: list[Decimal] = []

    class Costly:
        def chat(self, messages, sampling):
            possibly_billed = draw.choice((0, 0, 0, 1, 2))
            tokens = draw.choice(((20, 5), (105, 50)))  # now and then as much as can be
            billed.append(possibly_billed * WORST + PRICE.of(*tokens))
            time.sleep(0.0005)
            return Completion(
                "ok",
                tokens_in=tokens[0],
                tokens_out=tokens[1],
                possibly_billed=possibly_billed,
            )

    budget = 100 * WORST
    call_cache, _, limit = cached(tmp_path / "a", Costly(), 3, PRICE, budget)
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda i: call_cache.ask(str(i), 0, ASK, SAMPLING), range(400))
        )
    spent = limit.spent.dollars
    assert sum(billed) == spent <= budget
    # Nothing was left undone while there was money for it.
    assert budget - spent < 3 * WORST
    done = sum(answer.text == "ok" for answer in answers)
    assert done == len(billed) and "cap" in [answer.reason for answer in answers]


def test_after_a_stop_no_call_begins_and_none_waits(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def chat(self, messages, sampling):
            begun.set()
            go_on.wait(5)
            return Completion("ok", tokens_in=20, tokens_out=5)

    call_cache, _, limit = cached(tmp_path / "a", Slow(), price=PRICE, budget=WORST)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call_cache.ask, "a", 0, ASK, SAMPLING)
        begun.wait(5)
        # Waits for what the first leaves.
        second = pool.submit(call_cache.ask, "b", 0, ASK, SAMPLING)
        limit.stop("stopped")
        assert second.result(5).reason == "stopped"
        go_on.set()
        assert first.result(5) == Answer("ok")


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        pytest.param(
            [ModelError("m: key", "key refused", permanent=True)] * 5,
            3,
            id="a refused key",
        ),
        pytest.param(
            [ModelError("m: bad", "bad request")] * 5, 3, id="nothing was ever taken"
        ),
        pytest.param(
            [ModelError("m: slow", "timed out")] * 5, 3, id="none was in time"
        ),
        pytest.param(
            [Completion("ok"), *[ModelError("m: slow", "timed out")] * 4],
            None,
            id="passing failures",
        ),
        pytest.param(
            [ModelError(f"m: {i} tokens", "bad request") for i in range(5)],
            None,
            id="not alike",
        ),
        pytest.param(
            [
                ModelError(f"m: no, id {i}", "not allowed", permanent=True)
                for i in range(5)
            ],
            3,
            id="each refusal has an id",
        ),
        pytest.param(
            [Completion("ok"), *[ModelError("m: bad", "bad request")] * 4],
            None,
            id="some are taken",
        ),
        pytest.param(
            [Completion("ok"), *[ModelError("m: key", permanent=True)] * 4],
            4,
            id="a key that expires",
        ),
    ],
)
def test_when_every_other_call_would_fail_alike_no_more_are_made(
    script, asked, tmp_path
):
    model = Model(*script)
    call_cache, _, _ = cached(tmp_path / "a", model)
    if asked:
        with pytest.raises(ModelError, match="3 consecutive calls"):
            for i in range(5):
                call_cache.ask(str(i), 0, ASK, SAMPLING)
        assert model.asked == asked
    else:
        assert len([call_cache.ask(str(i), 0, ASK, SAMPLING) for i in range(5)]) == 5


EMPTY = ModelError("m: the answer is empty", "empty answer", possibly_billed=1)
THOUGHT = Completion("", tokens_in=20, tokens_out=50, thought="Hmm, so")


@pytest.mark.parametrize("said", [EMPTY, THOUGHT])
def test_a_model_that_only_thinks_is_not_paid_for_the_whole_run_nor_twice(
    said, tmp_path
):
    path, model = tmp_path / "asked.jsonl", Model(*[said] * 50)

    def ask(n):
        call_cache, _, _ = cached(path, model)
        answers = [call_cache.ask(str(i), 0, ASK, SAMPLING) for i in range(n)]
        call_cache.close()
        return answers

    answers = ask(50)
    assert model.asked == WORDLESS
    # An answer, which is final, and none to try again.
    assert [answer.error for answer in answers[:WORDLESS]] == [""] * WORDLESS
    assert {answer.text for answer in answers} == {None}
    assert {answer.reason for answer in answers[WORDLESS:]} == {"stopped"}
    assert "--max-tokens" in answers[-1].error
    assert ask(WORDLESS) == answers[:WORDLESS]
    assert model.asked == WORDLESS


def test_a_model_that_answers_at_times_is_asked_on(tmp_path):
    nearly = [EMPTY, THOUGHT] * 4 + [ModelError("m: slow", "timed out"), EMPTY]
    model = Model(*nearly, Completion("ok"), *nearly)
    call_cache, _, _ = cached(tmp_path / "a", model)
    for i in range(25):
        assert call_cache.ask(str(i), 0, ASK, SAMPLING).reason != "stopped"
    assert model.asked == 25
