"""A trained user on a server that continues token ids: it is the same user, and some servers are
refused."""

import math
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from fake_completions import continuing
from fake_server import CUT, Said, error, serving

from userlm.flip import prompt
from userlm.guard import Guard
from userlm.models.endpoint import EndpointModel
from userlm.models.served import ServedModel
from userlm.types import Conversation, InputError, ModelError, Sampling
from userlm.users import TrainedUser

KEY = "secret-key-of-a-test"
ASK = 3
"""Calls before the first completion: for the context length, and two for what the server offers."""


@pytest.fixture(scope="module")
def template(tiny):
    return tiny.template()


@pytest.fixture(scope="module")
def ids(template):
    return prompt(
        Conversation("a", intent="sort a list").say("sort").say("How?"), template
    )


@pytest.fixture(scope="module")
def first(template):
    """What the model of these tests may say first, each with probability 1/4, beside the end."""
    return [template.encode("\n" + word)[1] for word in ("plan", "thanks", "how")]


@pytest.fixture(scope="module")
def server(tiny, template, ids, first):
    """Serves a model: behind `ids` one of `first` or the end, equally often; then "plan" or
    "thanks", each three times as often as the closing token; then the closing token."""
    plan, thanks, _ = first

    def logits(before):
        values = [-60.0] * len(tiny.tokenizer)
        weights = [
            dict.fromkeys((*first, template.end), 1),
            {plan: 3, thanks: 3, template.close: 1},
        ]
        behind = len(before) - len(ids)
        for id, weight in (
            weights[max(behind, 0)] if behind < 2 else {template.close: 1}
        ).items():
            values[id] = math.log(weight)
        return values

    return lambda **options: serving(
        continuing(logits, tiny.tokenizer.decode, **options)
    )


@pytest.fixture
def asked(template):
    return Sampling(
        stop_ids=template.stop_ids, end_id=template.end, max_tokens=9, seed=1, top_p=1.0
    )


def served_model(served, tiny, **options):
    return ServedModel(
        EndpointModel("m", served.url, KEY, **{"pause": 0.001, **options}),
        tiny.tokenizer,
    )


# --- the same user as on this machine -------------------------------------------------------------


def test_a_trained_user_says_there_what_it_says_here(tiny, template):
    """At temperature 0, behind each prefix, with the model itself behind the server."""

    def logits(ids):
        return tiny.model(torch.tensor([ids])).logits[0, -1].tolist()

    log = (
        Conversation("a", intent="sort a list")
        .say("how do i sort")
        .say("so")
        .say("thanks")
        .say("welcome")
    )
    prefixes = [replace(log, turns=log.turns[:n]) for n in (0, 2, 4)]
    greedy = Sampling(temperature=0, max_tokens=8)
    with (
        torch.inference_mode(),
        serving(continuing(logits, tiny.tokenizer.decode)) as served,
    ):
        for guard in (Guard(), Guard(first_words=("how",), no_end=True, tries=1)):
            users = [
                TrainedUser(it, template, 256, greedy, guard=guard)
                for it in (tiny, served_model(served, tiny))
            ]
            for prefix in prefixes:
                here, there = (user.reply(prefix) for user in users)
                assert (there.text, there.stop) == (here.text, here.stop)
                assert there.meta["p_end"] == pytest.approx(
                    here.meta["p_end"], rel=1e-4
                )
                assert there.meta.get("cut") == here.meta.get("cut")
        assert prompt(prefixes[1], template) in [
            tuple(body.get("prompt", ())) for body in served.bodies
        ]


def test_nothing_is_left_to_the_generation_config_of_the_server(
    server, tiny, asked, ids, template, first
):
    with server() as served:
        model = served_model(served, tiny)
        model.complete(
            ids,
            replace(asked, temperature=0.7, top_p=0.9, banned_ids=frozenset(first[:2])),
        )
    body = served.bodies[ASK]
    wanted = {
        "prompt": [*ids],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "seed": 1,
        "stop_token_ids": sorted(template.stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": False,
        "logit_bias": {str(id): -100 for id in first[:2]},
    }
    assert {name: body[name] for name in wanted} == wanted


def test_the_stop_id_and_the_usage_come_with_the_text(
    server, tiny, asked, ids, template, first
):
    with server() as served:
        model = served_model(served, tiny)
        left = model.complete(ids, replace(asked, banned_ids=frozenset(first)))
        assert (left.text, left.stop_id, left.tokens_in, left.tokens_out) == (
            "",
            template.end,
            len(ids),
            1,
        )
        only = frozenset((*first[:2], template.end, template.close))
        said = model.complete(ids, replace(asked, banned_ids=only, max_tokens=1))
        assert (said.text, said.stop_id, said.tokens_out) == ("how", None, 1)
        closed = model.complete(
            ids, replace(asked, banned_ids=frozenset((*first[1:], template.end)))
        )
        assert (
            closed.text == "plan" * (closed.tokens_out - 1)
            and closed.stop_id == template.close
        )
        assert model.notes == ()


@pytest.mark.parametrize(
    "lacks", [(), ("logprob_token_ids",), ("return_token_ids",), ("stop_reason",)]
)
def test_p_end_is_that_of_before_all_bans_whatever_else_the_server_lacks(
    server, tiny, asked, ids, lacks, first
):
    """The end is one of four that are equally probable: 1/4, greedy or not, banned or not."""
    with server(lacks=lacks, eos=4) as served:
        model = served_model(served, tiny)
        for bans in (frozenset(), frozenset((asked.end_id, first[0]))):
            for temperature in (0, 0.3, 1):
                out = model.complete(
                    ids, replace(asked, banned_ids=bans, temperature=temperature)
                )
                assert out.p_end == pytest.approx(1 / 4, rel=1e-6)
                assert out.stop_id is not None
        calls = len(served.bodies) - ASK
        again = lacks == ("logprob_token_ids",)
        assert 6 <= calls <= 12 if again else calls == 6


def test_the_end_is_taken_at_a_probability_and_not_sampled_below_it(
    server, tiny, asked, ids
):
    """P(end) is 1/4."""
    with server() as served:
        model = served_model(served, tiny)
        out = model.complete(ids, replace(asked, end_threshold=0.24))
        assert (out.text, out.stop_id, out.p_end) == (
            "",
            asked.end_id,
            pytest.approx(1 / 4),
        )
        assert (out.tokens_in, out.tokens_out) == (len(ids), 1)
        drawn = [
            model.complete(ids, replace(asked, end_threshold=0.26, seed=seed))
            for seed in range(40)
        ]
    assert all(out.text and out.stop_id != asked.end_id for out in drawn)
    assert all(out.p_end == pytest.approx(1 / 4) for out in drawn)
    assert all(out.tokens_in == 2 * len(ids) + 1 for out in drawn)


@pytest.mark.slow
def test_a_ban_at_the_first_position_leaves_the_later_ones_alone(
    server, tiny, asked, ids, first, template
):
    """Without "plan" and the end at first: "thanks" or "how", 1/2 each; behind it "plan" 3/7,
    "thanks" 3/7 or
    nothing 1/7. Of 350 draws of two tokens: 75 of each of four, 25 of each of two. Chi-squared, of
    5 degrees of freedom, is below 20.5 but once in a thousand times; where one chance draws both
    tokens it is in the hundreds.
    """
    plan = first[0]
    sampling = replace(
        asked, banned_first=frozenset((plan, template.end)), max_tokens=2
    )
    with server() as served:
        model = served_model(served, tiny)
        with ThreadPoolExecutor(8) as pool:
            drawn = Counter(
                pool.map(
                    lambda seed: model.complete(ids, replace(sampling, seed=seed)).text,
                    range(350),
                )
            )
        again = Counter(
            model.complete(ids, replace(sampling, seed=seed)).text for seed in range(20)
        )
        assert again == Counter(
            model.complete(ids, replace(sampling, seed=seed)).text for seed in range(20)
        )
    expected = {
        begun + then: 75 for begun in ("thanks", "how") for then in ("plan", "thanks")
    }
    expected |= {"thanks": 25, "how": 25}
    assert {body["max_tokens"] for body in served.bodies[ASK:]} == {1}
    assert drawn.keys() == expected.keys()
    assert (
        sum((drawn[text] - count) ** 2 / count for text, count in expected.items())
        < 20.5
    )


def test_top_p_counts_what_a_ban_leaves(server, tiny, asked, ids, first, template):
    """Without two of four a nucleus of 0.6 holds both that are left, without three the last."""
    with server() as served:
        model = served_model(served, tiny)

        def begun(*banned):
            bans = replace(
                asked, top_p=0.6, max_tokens=1, banned_first=frozenset(banned)
            )
            return {
                model.complete(ids, replace(bans, seed=seed)).text for seed in range(30)
            }

        assert begun(first[0], template.end) == {"thanks", "how"}
        assert begun(*first[:2], template.end) == {"how"}


def test_no_added_token_is_in_the_text(tiny, template, ids, first, asked):
    """Neither one that closes nothing, nor one that the server spells."""
    word = template.encode("\n")[0]
    said = [first[0], 2, first[1], template.close]

    def logits(before):
        values = [-60.0] * len(tiny.tokenizer)
        values[said[len(before) - len(ids)] if len(before) >= len(ids) else word] = 0.0
        return values

    assert tiny.tokenizer.decode([2]).startswith("<|")
    some = replace(asked, stop_ids=frozenset((template.close, template.end)))
    for lacks in ((), ("return_token_ids",)):
        with serving(continuing(logits, tiny.tokenizer.decode, lacks=lacks)) as served:
            out = served_model(served, tiny).complete(ids, some)
        assert (out.text, out.stop_id) == ("planthanks", template.close)


# --- what a server cannot do ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"bos": (0,)},
            "32 token ids were sent, and the server counted 33: the server adds a token",
        ),
        ({"lacks": ("usage",)}, "does not count the tokens of a prompt"),
        (
            {"lacks": ("stop_token_ids",)},
            r"made to sample the end token \(5\) .*did not stop there",
        ),
        (
            {"lacks": ("logit_bias",)},
            r"made to sample the end token \(5\) .*did not stop there",
        ),
        (
            {"lacks": ("return_token_ids", "stop_reason")},
            "does not say which token ended",
        ),
        (
            {"lacks": ("return_token_ids", "ignore_eos"), "eos": 5},
            "does not say which token ended",
        ),
        (
            {"refuses": ("stop_token_ids",)},
            "stop_token_ids: Extra inputs are not permitted.*serve the model with",
        ),
    ],
)
def test_a_server_that_cannot_be_held_right_is_refused_before_anything_is_sampled(
    server, tiny, asked, ids, options, said
):
    with server(**options) as served:
        model = served_model(served, tiny)
        with pytest.raises(
            InputError, match=f"m: not usable as a trained user: .*{said}"
        ):
            model.complete(ids * 2, asked)
    assert all(body.get("max_tokens", 1) == 1 for body in served.bodies)


def test_a_server_that_only_chats_is_refused(tiny, asked, ids):
    with serving(lambda body, n: error(404, f"no such path {KEY}")) as served:
        with pytest.raises(
            InputError, match=r"m: not usable .*no such model or path.*vLLM"
        ) as caught:
            served_model(served, tiny).complete(ids, asked)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (
            {"refuses": ("logprobs",)},
            "the server gives no log-probabilities, so P(end) is unknown",
        ),
        (
            {"lacks": ("logprobs",)},
            "the server gives no log-probabilities, so P(end) is unknown",
        ),
        (
            {"processed": True},
            "the server's log-probabilities are those after a ban, so P(end) is unknown; "
            "start vLLM with "
            "--logprobs-mode raw_logprobs",
        ),
    ],
)
def test_an_unknown_p_end_is_none_and_said(server, tiny, asked, ids, options, note):
    with server(**options) as served:
        model = served_model(served, tiny)
        out = model.complete(ids, asked)
        assert out.p_end is None and out.stop_id is not None
        assert model.notes == (note,)
        with pytest.raises(
            InputError, match=re.escape(f"--end-threshold needs P(end): {note}")
        ):
            model.complete(ids, replace(asked, end_threshold=0.5))


def test_without_token_ids_nothing_is_banned_at_the_first_position_alone(
    server, tiny, asked, ids, first
):
    with server(lacks=("return_token_ids",)) as served:
        model = served_model(served, tiny)
        assert model.complete(
            ids,
            replace(
                asked, banned_first=frozenset(first[:1]), banned_ids=frozenset(first)
            ),
        )
        assert model.notes == (
            "the server returns no token ids, so turns are taken from its text",
        )
        for more in ({"banned_first": frozenset(first)}, {"end_threshold": 0.5}):
            with pytest.raises(InputError, match=r"m: .*first position only.*0\.10\.2"):
                model.complete(ids, replace(asked, **more))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bans": False}, "sampled a token that `logit_bias` bans"),
        (
            {"most": 1, "context_length": 99},
            "stopped after 1 tokens, and 9 were allowed.*--generation-config vllm",
        ),
        ({"goes_on": 2}, "continues after a token of `stop_token_ids`"),
    ],
)
def test_what_shows_only_later_ends_one_turn_and_never_a_run(
    server, tiny, asked, ids, first, template, options, said
):
    bans = frozenset((template.end, first[2]))
    with server(**options) as served, pytest.raises(ModelError, match=said):
        model = served_model(served, tiny, retries=1)
        for seed in range(20):
            model.complete(ids, replace(asked, banned_ids=bans, seed=seed))


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"token_ids": [5] * 10}, id="ids"),
        pytest.param({"text": "a" * (9 * 128 + 1)}, id="text"),
    ],
)
def test_a_turn_of_more_tokens_than_were_allowed_is_asked_for_again(
    server, tiny, asked, ids, more
):
    with server() as served:
        reply = served.reply
        undisturbed = served_model(served, tiny).complete(ids, asked)
        served.requests.clear()
        served.reply = changed_at(reply, ASK, more)
        out = served_model(served, tiny).complete(ids, asked)
    assert out.faults == ("broken answer",)
    assert out.text == undisturbed.text


def test_a_count_of_more_tokens_than_were_allowed_is_not_believed(
    server, tiny, asked, ids
):
    with server() as served:
        usage = {"prompt_tokens": len(ids), "completion_tokens": 10}
        served.reply = broken_usage(served.reply, usage)
        with pytest.raises(ModelError, match="more than the 9 tokens"):
            served_model(served, tiny, retries=1).complete(ids, asked)


@pytest.mark.parametrize("id", [-1, 2**31, 10**30])
def test_a_number_that_can_be_no_token_is_none(server, tiny, asked, ids, id):
    with server() as served:
        served.reply = changed_at(served.reply, ASK, {"token_ids": [id]})
        out = served_model(served, tiny).complete(ids, asked)
    assert out.faults == ("broken answer",)


@pytest.mark.parametrize("value", [-(10**400), -1e308, 10**400])
def test_a_log_probability_of_any_size_ends_no_run(server, tiny, asked, ids, value):
    top = {"logprobs": {"top_logprobs": [{f"token_id:{asked.end_id}": value}]}}
    with server() as served:
        served.reply = changed_at(served.reply, ASK, top)
        p_end = served_model(served, tiny).complete(ids, asked).p_end
    if value < 0:
        assert p_end == 0
    else:  # impossible, so it is asked for again: the end is one of four tokens
        assert p_end == pytest.approx(1 / 4)


def test_a_key_that_the_server_repeats_is_in_no_turn(server, tiny, asked, ids):
    with server(lacks=("return_token_ids",)) as served:
        served.reply = changed_at(served.reply, ASK, {"text": f"I say {KEY}"})
        out = served_model(served, tiny).complete(ids, asked)
    assert out.text == "I say [key]"


def changed_at(reply, at, fields):
    """The `at`-th request is answered with other fields in its choice."""

    def changed(body, n):
        said = reply(body, n)
        if n == at:
            said.body["choices"][0] |= fields
        return said

    return changed


def broken_usage(reply, usage):
    """All answers after those that find out what is offered have this usage."""

    def broken(body, n):
        said = reply(body, n)
        if n >= ASK:
            said.body["usage"] = usage
        return said

    return broken


def test_what_the_server_offers_is_found_out_once(server, tiny, asked, ids):
    with server() as served:
        model = served_model(served, tiny)
        with ThreadPoolExecutor(8) as pool:
            out = set(pool.map(lambda _: model.complete(ids, asked), range(16)))
    assert len(out) == 1
    assert len(served.bodies) == ASK + 16
    assert [len(body.get("prompt", ())) for body in served.bodies[:ASK]] == [0, 32, 32]


def test_all_who_wait_for_the_test_of_a_server_have_its_failure(
    server, tiny, asked, ids
):
    everyone_asks = threading.Barrier(8)

    class Lock:
        held = threading.Lock()

        def __enter__(self):
            with suppress(threading.BrokenBarrierError):
                everyone_asks.wait()
            self.held.acquire()

        def __exit__(self, *_):
            self.held.release()

    with server() as served:
        model = served_model(served, tiny, retries=0)
        model._lock = Lock()
        find_support, tests = model._find_support, []
        model._find_support = lambda *args: tests.append(args) or find_support(*args)

        def complete(_):
            with pytest.raises(ModelError) as caught:
                model.complete(ids, asked)
            return str(caught.value), caught.value.reason

        reply, served.reply = served.reply, lambda body, n: error(503)
        with ThreadPoolExecutor(8) as pool:
            said = set(pool.map(complete, range(8)))
        assert len(said) == 1 and len(tests) == 1
        served.reply = reply
        everyone_asks.abort()
        assert model.complete(ids, asked) and len(tests) == 2


# --- context lengths and faults -------------------------------------------------------------------


def test_the_context_length_is_what_the_server_says_and_bounds_the_tokens(
    server, tiny, asked, ids
):
    with server(context_length=len(ids) + 2) as served:
        model = served_model(served, tiny)
        assert model.context_length() == len(ids) + 2
        model.complete(ids, asked)
        assert served.bodies[-1]["max_tokens"] == 2
        calls = len(served.bodies)
        for more in (2, 3):
            with pytest.raises(
                ModelError,
                match=f"{len(ids) + more} tokens do not fit the server's context length",
            ) as caught:
                model.complete([*ids, *ids[:more]], asked)
            assert (caught.value.reason, caught.value.permanent) == ("too long", False)
        assert len(served.bodies) == calls
    with server() as served:
        assert served_model(served, tiny).context_length() is None
    with serving([error(404)]) as served:
        assert served_model(served, tiny).context_length() is None
    with serving([Said(body="<html>hello</html>")]) as served:
        assert served_model(served, tiny).context_length() is None
    with (
        serving([error(503), error(503)]) as served,
        pytest.raises(ModelError, match="server failed"),
    ):
        served_model(served, tiny, retries=1).context_length()


def broken_at(reply, faults):
    """Some requests are answered otherwise: for `n: said` the n-th behind those that find out what
    is offered."""
    return lambda body, n: faults.get(n - ASK) or reply(body, n)


def test_a_server_that_goes_away_and_comes_back_says_the_same(server, tiny, asked, ids):
    aborted = {
        "choices": [{"index": 0, "text": "so", "finish_reason": "abort"}],
        "usage": None,
    }
    faults = dict(
        enumerate(
            [
                error(503),
                error(429),
                CUT,
                Said(body="{not"),
                Said(body=[]),
                Said(body=aborted),
            ]
        )
    )
    with server() as served:
        reply = served.reply
        undisturbed = served_model(served, tiny).complete(ids, asked)
        served.requests.clear()
        served.reply = broken_at(reply, faults)
        out = served_model(served, tiny, retries=6).complete(ids, asked)
    assert out.faults == (
        "server error",
        "rate limited",
        "connection cut",
        *["broken answer"] * 3,
    )
    assert out.possibly_billed == 4
    assert replace(out, faults=(), possibly_billed=0) == undisturbed


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize(
    "odd",
    [
        {"usage": None},
        {"usage": {"prompt_tokens": 7, "completion_tokens": 1}},
        {"choices": []},
        {"choices": None},
        {"_fields_set": 1},
    ],
)
def test_one_odd_answer_is_asked_for_again_before_and_after_the_server_was_found_fit(
    server, tiny, asked, ids, odd, n
):
    with server() as served:
        reply = served.reply
        undisturbed = served_model(served, tiny).complete(ids, asked)
        served.requests.clear()

        def once(body, number):
            said = reply(body, number)
            if number == n:
                said.body |= odd
            return said

        served.reply = once
        model = served_model(served, tiny)
        for _ in range(3):
            out = model.complete(ids, asked)
            assert replace(out, faults=(), possibly_billed=0) == undisturbed


def test_a_turn_that_fails_half_way_tells_of_the_call_that_was_answered(
    server, tiny, asked, ids, first
):
    """Of four tries one was answered and another cut: two that may be billed."""
    with server() as served:
        served.reply = broken_at(served.reply, {0: error(429), 2: CUT, 3: error(500)})
        model = served_model(served, tiny, retries=1)
        with pytest.raises(ModelError) as caught:
            model.complete(
                ids, replace(asked, banned_first=frozenset((*first[:2], asked.end_id)))
            )
    assert caught.value.faults == ("rate limited", "connection cut", "server error")
    assert (caught.value.reason, caught.value.possibly_billed) == ("server error", 2)


def test_an_answer_that_lacks_what_others_had_is_no_turn(server, tiny, asked, ids):
    with server() as served:
        reply = served.reply

        def without(name):
            def answer(body, n):
                said = reply(body, n)
                if n >= ASK:
                    said.body["choices"][0][name] = None
                return said

            return answer

        for name in ("token_ids", "logprobs"):
            served.requests.clear()
            served.reply = without(name)
            with pytest.raises(ModelError, match="left out"):
                served_model(served, tiny).complete(ids, asked)


def test_stop_ids_are_needed(server, tiny, asked, ids):
    with server() as served, pytest.raises(ValueError, match="stop_ids"):
        served_model(served, tiny).complete(ids, replace(asked, stop_ids=frozenset()))
