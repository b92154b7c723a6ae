"""A trained user on llama.cpp's server and on SGLang: it is the same user as on vLLM."""

import math
from dataclasses import replace

import pytest
import torch
from fake_completions import continuing, llama_cpp
from fake_server import Said, error, serving

from userlm import loading
from userlm.guard import Guard
from userlm.models.endpoint import EndpointModel
from userlm.models.served import ServedModel
from userlm.types import Conversation, InputError, ModelError, Sampling
from userlm.users import TrainedUser

KEY = "secret-key-of-a-test"


@pytest.fixture(scope="module")
def template(tiny):
    return tiny.template()


@pytest.fixture(scope="module")
def logits(tiny):
    def logits(ids):
        with torch.inference_mode():
            return tiny.model(torch.tensor([ids])).logits[0, -1].tolist()

    return logits


@pytest.fixture(scope="module")
def fair(tiny, template):
    """After each prefix the end or the closing token, each with probability 1/2."""

    def logits(ids):
        values = [-60.0] * len(tiny.tokenizer)
        values[template.end] = values[template.close] = math.log(1 / 2)
        return values

    return logits


@pytest.fixture
def asked(template):
    return Sampling(
        stop_ids=template.stop_ids, end_id=template.end, max_tokens=9, seed=1, top_p=1.0
    )


def served_model(served, tiny, **options):
    endpoint = EndpointModel("m", served.url, KEY, **{"pause": 0.001, **options})
    return ServedModel(endpoint, tiny.tokenizer)


LOG = (
    Conversation("a", intent="sort a list")
    .say("how do i sort")
    .say("so")
    .say("thanks")
    .say("welcome")
)


@pytest.mark.parametrize("kind", ["llama.cpp", "llama.cpp, end unknown", "SGLang"])
@pytest.mark.filterwarnings("ignore::userlm.types.ModelWarning")
def test_a_trained_user_says_there_what_it_says_here(tiny, template, logits, kind):
    decode = tiny.tokenizer.decode
    if kind == "SGLang":
        reply = continuing(logits, decode, matched=True, lacks=("logprob_token_ids",))
    else:
        ends = (template.close, template.end)
        eog = ends[:1] if "unknown" in kind else ends
        reply = llama_cpp(logits, decode, eog=eog)
    greedy = Sampling(temperature=0, max_tokens=6)
    with serving(reply) as served:
        for guard in (Guard(), Guard(first_words=("how",), no_end=True, tries=1)):
            here, there = (
                TrainedUser(it, template, 256, greedy, guard=guard)
                for it in (tiny, served_model(served, tiny))
            )
            for n in (0, 2, 4):
                prefix = replace(LOG, turns=LOG.turns[:n])
                wanted, got = here.reply(prefix), there.reply(prefix)
                assert (got.text, got.stop) == (wanted.text, wanted.stop)
                p_end = wanted.meta["p_end"]
                assert got.meta["p_end"] == pytest.approx(p_end, rel=1e-4)
                assert got.meta.get("cut") == wanted.meta.get("cut")


def test_an_end_that_is_the_last_allowed_token_of_sglang_is_an_end(
    tiny, template, fair, asked
):
    """Its reason is `length` there."""
    reply = continuing(
        fair, tiny.tokenizer.decode, matched=True, lacks=("logprob_token_ids",)
    )
    with serving(reply) as served:
        model = served_model(served, tiny)
        one = replace(asked, max_tokens=1)
        drawn = {
            model.complete([7, 8], replace(one, seed=n)).stop_id for n in range(20)
        }
    assert drawn == {template.end, template.close}


def test_an_sglang_that_returns_no_ids_is_refused(tiny, fair, asked):
    lacks = ("return_token_ids", "logprob_token_ids")
    reply = continuing(fair, tiny.tokenizer.decode, matched=True, lacks=lacks)
    with (
        serving(reply) as served,
        pytest.raises(InputError, match="did not stop there"),
    ):
        served_model(served, tiny).complete([7, 8], asked)


def test_llama_cpp_is_asked_at_its_own_path_with_ids_and_no_other_sampler(
    tiny, template, fair, asked
):
    with serving(
        llama_cpp(fair, tiny.tokenizer.decode, eog=(template.close, template.end))
    ) as served:
        model = served_model(served, tiny)
        assert model.context_length() == 512
        banned = replace(
            asked, banned_ids=frozenset((template.end,)), temperature=0.7, top_p=0.9
        )
        out = model.complete([7, 8], banned)
        assert out.stop_id == template.close
        # P(end) is that before the ban
        assert out.p_end == pytest.approx(1 / 2)
        assert model.notes == ()
    paths = [path for path, _, _ in served.requests]
    assert set(paths) == {"/v1/models", "/props", "/completion"}
    wanted = {
        "prompt": [7, 8],
        "n_predict": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "samplers": ["temperature", "top_p"],
        "mirostat": 0,
        "seed": 1,
        "return_tokens": True,
        "n_probs": 0,
        "logit_bias": [[template.end, -100]],
    }
    sent = served.bodies[-2]
    assert {name: sent[name] for name in wanted} == wanted
    # The usage counts the second call, too, which forced the end.
    assert (out.tokens_in, out.tokens_out) == (4, 2)


def test_what_llama_cpp_writes_behind_an_end_that_it_does_not_know_is_cut_and_said(
    tiny, template, fair, asked
):
    only_end = replace(asked, banned_ids=frozenset((template.close,)))
    reply = llama_cpp(fair, tiny.tokenizer.decode, eog=(template.close,))
    with (
        serving(reply) as served,
        pytest.warns(match=rf"does not know token {template.end} as an end"),
    ):
        model = served_model(served, tiny)
        out = model.complete([7, 8], only_end)
    assert (out.text, out.stop_id) == ("", template.end)
    assert len(model.notes) == 1


def test_p_end_of_after_a_ban_is_none_on_llama_cpp_too(tiny, template, fair, asked):
    eog = (template.close, template.end)
    reply = llama_cpp(fair, tiny.tokenizer.decode, eog=eog, processed=True)
    with serving(reply) as served, pytest.warns(match="P\\(end\\) is unknown"):
        assert served_model(served, tiny).complete([7, 8], asked).p_end is None


@pytest.mark.parametrize(
    "odd",
    [
        {"tokens_evaluated": 3},
        {"tokens": None},
        {"tokens": ["a"]},
        {"content": None},
        {"stop_type": "none"},
        {"tokens_predicted": 99},
    ],
)
def test_an_odd_answer_of_llama_cpp_is_asked_for_again(
    tiny, template, fair, asked, odd
):
    eog = (template.close, template.end)
    with serving(llama_cpp(fair, tiny.tokenizer.decode, eog=eog)) as served:
        reply = served.reply
        undisturbed = served_model(served, tiny).complete([7, 8], asked)
        served.requests.clear()

        def changed(body, n):
            said = reply(body, n)
            if n == 4:
                said.body |= odd
            return said

        served.reply = changed
        out = served_model(served, tiny).complete([7, 8], asked)
    assert out.faults == ("broken answer",)
    assert replace(out, faults=(), possibly_billed=0) == undisturbed


def test_a_context_length_of_llama_cpp_bounds_the_tokens(tiny, template, fair, asked):
    eog = (template.close, template.end)
    reply = llama_cpp(fair, tiny.tokenizer.decode, eog=eog, context_length=4)
    with serving(reply) as served:
        model = served_model(served, tiny)
        model.complete([7, 8], asked)
        assert served.bodies[-2]["n_predict"] == 2
        with pytest.raises(ModelError, match="5 tokens do not fit"):
            model.complete([7] * 5, asked)


@pytest.mark.parametrize(
    ("about", "name", "status", "refusal"),
    [
        (
            {"version": "0.12.11"},
            "Ollama",
            400,
            "json: cannot unmarshal array into Go struct field .prompt of type string",
        ),
        (
            {"model_id": "m", "max_input_tokens": 9},
            "text-generation-inference",
            422,
            "data did not match any variant of untagged enum PromptDeserializer",
        ),
    ],
)
def test_a_server_of_strings_is_refused_with_its_name_and_the_reason(
    tiny, asked, about, name, status, refusal
):
    """As their sources have it: what they take, and what they say to a list of numbers."""

    def reply(body, n):
        return error(status, refusal) if body else Said(body=about)

    with (
        serving(reply) as served,
        pytest.raises(InputError, match=f"the server is {name}, which takes .*as text"),
    ):
        served_model(served, tiny).complete([7, 8], asked)


def test_perplexity_over_llama_cpp_is_refused(tiny, template, fair):
    """Its server knows no `prompt_logprobs` and no `echo`."""
    said = {"choices": [{"text": "a", "logprobs": {"content": []}}], "usage": {}}
    from userlm.models.prompt_logprobs import PromptLogprobs

    with serving(lambda body, n: Said(body=said)) as served:
        scorer = PromptLogprobs(EndpointModel("m", served.url, KEY))
        with pytest.raises(InputError, match="no log-probabilities of a prompt"):
            scorer.score([([1, 2, 3], [False, True, True])])


def test_a_user_at_a_url_gets_the_context_length_of_llama_cpp(tiny, template, fair):
    eog = (template.close, template.end)
    with serving(llama_cpp(fair, tiny.tokenizer.decode, eog=eog)) as served:
        user = loading.user(f"trained:{served.url}#any", tokenizer="userlm-tiny")
        assert user.context_length == 512
