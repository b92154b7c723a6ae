"""`userlm check`: what a server lacks for a trained user is named, with what to do."""

import json

import pytest
import torch
from fake_completions import continuing, llama_cpp
from fake_server import Said, error, serving

from userlm import loading
from userlm.commands import Check, check
from userlm.types import InputError, ModelError

USER = "userlm-tiny"


@pytest.fixture(scope="module")
def model():
    return loading.local_model(USER)


@pytest.fixture(scope="module")
def logits(model):
    def logits(ids):
        with torch.inference_mode():
            return model.model(torch.tensor([ids])).logits[0, -1].tolist()

    return logits


@pytest.fixture
def server(model, logits):
    return lambda **options: serving(
        continuing(logits, model.tokenizer.decode, **options)
    )


def checked(served, capsys):
    """The points of a server, by name; and whether the command failed."""
    failed = False
    try:
        check(Check(f"{served.url}#m", tokenizer=USER, json=True))
    except ModelError:
        failed = True
    points = json.loads(capsys.readouterr().out)["points"]
    return {point["what"]: point for point in points}, failed


def test_a_server_like_vllm_has_all_that_a_user_needs(server, capsys):
    with server(context_length=700) as served:
        points, failed = checked(served, capsys)
    assert not failed and all(point["ok"] for point in points.values())
    assert points["server"]["said"] == "/v1/completions, 700 tokens"


def test_a_server_like_sglang_has_too(server, capsys):
    lacks = ("logprob_token_ids",)
    with server(matched=True, lacks=lacks) as served:
        points, failed = checked(served, capsys)
    assert not failed, points


@pytest.mark.filterwarnings("ignore::userlm.types.ModelWarning")
def test_llama_cpp_has_too_and_an_end_that_it_does_not_know_is_said(
    model, logits, capsys
):
    template = model.template()
    eog = (template.close,)
    with serving(llama_cpp(logits, model.tokenizer.decode, eog=eog)) as served:
        points, failed = checked(served, capsys)
    assert not failed and points["server"]["said"].startswith("/completion of llama")
    assert "does not know token" in points["stops at the end token"]["said"]
    assert "does not know" not in points["stops at the closing token"]["said"]


@pytest.mark.parametrize(
    ("options", "what", "said"),
    [
        ({"lacks": ("usage",)}, "takes token ids", "does not count the tokens"),
        ({"bos": (0,)}, "takes token ids", "the server adds a token"),
        ({"bans": False}, "bans tokens", "sampled a token that `logit_bias` bans"),
        ({"lacks": ("logit_bias",)}, "bans tokens", "forced by `logit_bias`"),
        ({"lacks": ("stop_token_ids",)}, "stops at the end", "did not stop there"),
        ({"processed": True}, "shows P(end)", "--logprobs-mode raw_logprobs"),
        ({"lacks": ("logprobs",)}, "shows P(end)", "no log-probabilities"),
        ({"lacks": ("return_token_ids",)}, "names the ids", "--end-threshold"),
    ],
)
@pytest.mark.filterwarnings("ignore::userlm.types.ModelWarning")
def test_what_a_server_lacks_is_named(server, capsys, options, what, said):
    with server(**options) as served:
        points, failed = checked(served, capsys)
    [point] = [point for name, point in points.items() if name.startswith(what)]
    assert failed and point["ok"] is False and said in point["said"]


def test_without_ids_nothing_else_is_tried_and_ollama_is_named(capsys):
    def reply(body, n):
        return error(400, "type string") if body else Said(body={"version": "0.12"})

    with serving(reply) as served:
        points, failed = checked(served, capsys)
    _, ids, *others = points.values()
    assert failed and "the server is Ollama" in ids["said"]
    assert others and all(point["ok"] is None for point in others)


@pytest.mark.parametrize(
    ("words", "said"),
    [("Sure! I can help you", "as an assistant would"), ("", "it says ''")],
)
def test_a_model_that_is_no_user_where_the_user_should_speak_is_noticed(
    model, capsys, words, said
):
    """It says the same words after any header, over and over, and never ends."""
    template = model.template()
    ids = model.encode(words) or [template.close]

    def logits(before):
        values = [-60.0] * len(model.tokenizer)
        last = before[-1]
        at = ids.index(last) + 1 if last in ids else 0
        values[ids[at % len(ids)]] = 0
        return values

    with serving(continuing(logits, model.tokenizer.decode)) as served:
        points, failed = checked(served, capsys)
    assert failed and said in points["continues the user's turn"]["said"]


def test_no_server_is_an_error_and_no_point(monkeypatch):
    monkeypatch.setattr("userlm.models.endpoint.time.sleep", lambda seconds: None)
    with pytest.raises(ModelError, match="no connection"):
        check(Check("http://127.0.0.1:9/v1#m", tokenizer=USER))


def test_a_server_without_the_name_of_a_model_is_asked_for_it():
    with pytest.raises(InputError, match="which model\\? write http://h:1/v1#NAME"):
        check(Check("http://h:1/v1"))


@pytest.mark.parametrize(
    "wrong", ["userlm-tiny", "openai:gpt", "prompted:http://a/v1#m"]
)
def test_only_a_trained_user_on_a_server_is_checked(wrong):
    with pytest.raises(InputError, match="give a trained user on a server"):
        check(Check(wrong))
