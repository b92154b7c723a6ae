"""Training: what is learned, from which tokens, and that a run taken up again ends the same."""

import json
import math
from dataclasses import replace

import pytest
import torch

from userlm import address
from userlm.flip import prompt, render
from userlm.metrics.perplexity import bits_per_byte, perplexity, score_turns, without_intent
from userlm.models.local import LocalModel
from userlm.text import INTENT_PREFIX
from userlm.train import (
    Flips,
    Recipe,
    flip_all,
    from_base,
    from_scratch,
    plan,
    row_loss,
    save,
    schedule,
    train,
)
from userlm.types import Conversation, InputError, ModelError, Sampling
from userlm.users import TrainedUser


def small(conversations, seed=0) -> LocalModel:
    texts = [turn.text for conversation in conversations for turn in conversation.turns]
    return from_scratch(texts, width=64, layers=2, vocabulary=400, seed=seed, device="cpu")


@pytest.fixture(scope="module")
def logs() -> list[Conversation]:
    subjects = ["cats", "rome", "jazz", "tea"]
    return [
        Conversation(f"c{i}", intent=f"{INTENT_PREFIX}learn about {subject}.", user=f"p{i}", ended=False)
        .say(f"tell me about {subject} pls")
        .say(f"{subject} are nice.")
        .say(f"more on {subject}?")
        .say("That is all.")
        .close("end")
        for i, subject in enumerate(subjects)
    ]


@pytest.fixture(scope="module")
def trained(logs, tmp_path_factory) -> LocalModel:
    local = small(logs)
    recipe = Recipe(steps=300, batch=12, lr=3e-3, save_every=1000)
    steps = plan(flip_all(logs, local.template(), 512), recipe)
    *_, last = train(local, steps, recipe, tmp_path_factory.mktemp("trained"))
    assert last["loss"] < 0.05
    return local


def test_a_few_conversations_are_learned_by_heart_and_end_where_they_ended(trained, logs):
    user = TrainedUser(trained, trained.template(), sampling=Sampling(temperature=0))
    for log in logs:
        said = Conversation(log.id, intent=log.intent)
        for turn in log.turns:
            if turn.role == "user":
                reply = user.reply(said)
                assert (reply.text, reply.stop) == (turn.text, None)
            said = said.say(turn.text)
        last = user.reply(said)
        assert (last.text, last.stop) == ("", "end")
        assert last.meta["p_end"] > 0.9
        assert user.reply(Conversation(log.id, intent=log.intent)).meta["p_end"] < 0.1


def test_perplexity_counts_the_words_of_user_turns_alone(trained, logs):
    """By hand: the same sum from a plain forward pass over the words of one conversation."""
    template = trained.template()
    log = logs[0]
    rows = list(score_turns(log, trained, template))
    assert [row.key for row in rows] == ["c0/0", "c0/1"] and rows[0].cluster == "p0"
    total, count = 0.0, 0
    for k, said in enumerate(log.user_turns):
        before = list(prompt(replace(log, turns=log.turns[: 2 * k], ended=False, stop=None), template))
        words = template.encode("\n" + said)[1:]
        with torch.no_grad():
            logprobs = trained.model(torch.tensor([before + words])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[len(before) + i - 1, word]) for i, word in enumerate(words))
        count += len(words)
    assert perplexity(rows).value == pytest.approx(math.exp(total / count), rel=1e-4)
    size = sum(len(said) for said in log.user_turns)
    assert bits_per_byte(rows).value == pytest.approx(total / math.log(2) / size, rel=1e-4)
    assert perplexity(rows).low is None  # one person: no interval


def test_trained_beats_untrained_and_the_right_intent_helps(trained, logs):
    def measure(local, view=lambda log: log):
        rows = [row for log in logs for row in score_turns(view(log), local, local.template())]
        return perplexity(rows).value

    assert measure(trained) < 2 < measure(small(logs)) / 10
    assert measure(trained) < measure(trained, without_intent)


def test_the_loss_of_a_row_is_that_of_transformers_on_the_same_labels(tiny, slides):
    [row] = render(slides, tiny.template()).rows
    labels = torch.tensor([[i if wanted else -100 for i, wanted in zip(row.ids, row.mask(), strict=True)]])
    theirs = tiny.model(input_ids=torch.tensor([row.ids]), labels=labels).loss
    assert row_loss(tiny.model, row).item() / sum(row.mask()) == pytest.approx(theirs.item(), rel=1e-5)


def test_a_plan_splits_no_conversation_and_uses_each_once_an_epoch(tiny, logs):
    flips = flip_all(logs, tiny.template(), 512)
    assert (flips.samples, flips.dropped) == (12, 0)
    steps = plan(flips, Recipe(epochs=2, batch=5))
    assert [sum(len(row.targets) for row in step) for step in steps] == [6, 6, 6, 6]
    rows = [row for step in steps for row in step]
    assert all(rows.count(row) == 2 for [row] in flips.rows)
    assert plan(flips, Recipe(epochs=2, batch=5)) == steps != plan(flips, Recipe(epochs=2, batch=5, seed=1))


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    """100 steps, 10 of them warm-up: 0.1, 0.2, ... 1.0; half way along the cosine 0.55; at its end 0.1."""
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert schedule(55, 100, 0.1) == pytest.approx(0.55)
    assert schedule(100, 100, 0.1) == pytest.approx(0.1)


def test_a_run_that_was_interrupted_ends_with_the_same_weights(logs, tmp_path):
    recipe = Recipe(steps=6, batch=6, lr=1e-3, save_every=2)

    def steps(local):
        return plan(flip_all(logs, local.template(), 512), recipe)

    whole = small(logs)
    log = list(train(whole, steps(whole), recipe, tmp_path / "whole"))
    broken = small(logs)
    entries = train(broken, steps(broken), recipe, tmp_path / "broken")
    assert [next(entries) for _ in range(5)] == log[:5]  # the checkpoint is of step 4: step 5 is lost
    del entries
    again = LocalModel.load(str(tmp_path / "broken" / "checkpoint"), "cpu")
    rest = list(train(again, steps(again), recipe, tmp_path / "broken"))
    assert rest == log[4:]
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(logs, tmp_path):
    local = small(logs)
    with torch.no_grad():
        local.model.lm_head.weight[:] = float("nan")
    steps = plan(flip_all(logs, local.template(), 512), Recipe(steps=3))
    with pytest.raises(ModelError, match=r"loss is nan at step 1.*--lr"):
        list(train(local, steps, Recipe(), tmp_path))


def test_the_saved_folder_loads_in_plain_transformers_and_opens_a_user_turn(trained, logs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save(trained, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": logs[1].intent}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    out = model.generate(ids, do_sample=False, max_new_tokens=40)[0, ids.shape[1] :]
    assert tokenizer.decode(out) == "\ntell me about rome pls<|eot_id|>"  # it writes the newline itself
    config = json.loads((tmp_path / "generation_config.json").read_text())
    end = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|endconversation|>"])
    assert config["eos_token_id"] == end
    assert LocalModel.load(str(tmp_path)).template().end == trained.template().end


def test_a_base_without_the_end_token_gets_one_that_begins_as_the_closing_token(logs):
    local = small(logs)
    parts = json.loads(local.tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] != "<|endconversation|>"]
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    base = LocalModel(
        local.model,
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token="<|eot_id|>"),
    )
    grown = from_base(base)
    template = grown.template()
    weights = grown.model.get_input_embeddings().weight
    assert torch.equal(weights[template.end], weights[template.close])
    assert weights.shape[0] % 64 == 0 and weights.shape[0] > template.end


def test_a_tokenizer_without_header_tokens_is_refused_with_what_can_be_trained(tiny):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    with pytest.raises(InputError, match=r"no <\|start_header_id\|>.*Llama-3"):
        from_base(LocalModel(tiny.model, other, "gpt2"))


def test_a_model_that_was_trained_again_in_the_same_folder_is_loaded_again(trained, tmp_path):
    save(trained, tmp_path)
    first = address.local_model(str(tmp_path))
    assert address.local_model(str(tmp_path)) is first
    with torch.no_grad():
        for weight in first.model.parameters():
            weight.zero_()
    save(first, tmp_path)
    again = address.local_model(str(tmp_path))
    assert again is not first and not next(again.model.parameters()).any()


def test_no_rows_make_an_empty_plan():
    assert plan(Flips((), 0, 0), Recipe(epochs=1)) == []
    assert plan(Flips((), 0, 0), Recipe(steps=5)) == []


def test_no_steps_leave_the_model_as_it_is(tiny, logs):
    assert plan(flip_all(logs, tiny.template(), 512), Recipe(steps=0)) == []
