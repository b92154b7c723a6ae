"""`userlm train`: what it takes, what it leaves, and what it says when it cannot."""

import json
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors.torch import load_file

from userlm import commands, loading
from userlm.commands import train_steps
from userlm.flip import (
    prompt,
    render,
    render_document,
    samples,
    swap_roles,
    transcript,
    transcript_template,
)
from userlm.models.local import LocalModel
from userlm.models.templates import user_template
from userlm.models.tokenization import load_tokenizer, text_encoder
from userlm.rows import write_conversations
from userlm.text import INTENT_PREFIX
from userlm.training.prepare import load
from userlm.types import Conversation, InputError, Turn

SCRATCH: dict[str, Any] = {
    "base": "scratch:32x1x500",
    "steps": 4,
    "batch": 8,
    "lr": 3e-3,
    "device": "cpu",
}


def talk(i: int, intent: bool = True) -> Conversation:
    told = f"{INTENT_PREFIX}learn about number {i}." if intent else None
    asked = Conversation(
        f"c{i}", intent=told, user=f"p{i}", meta={"language": "English"}
    )
    return (
        asked.say(f"what is {i} good for?")
        .say("Counting.")
        .say("thx")
        .say("Bye.")
        .close("end")
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder of twelve conversations to learn from and four to validate on."""
    write_conversations(tmp_path / "logs" / "train.jsonl", [talk(i) for i in range(12)])
    write_conversations(
        tmp_path / "logs" / "valid.jsonl", [talk(i) for i in range(20, 24)]
    )
    return tmp_path / "logs"


def test_it_validates_on_the_people_beside_and_keeps_the_best_weights(logs, tmp_path):
    found = commands.train(
        commands.Train(logs, out=tmp_path / "run", eval_every=2, **SCRATCH)
    )
    log = [
        json.loads(line)
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in log if "valid_perplexity" in row] == [0, 2, 4]
    assert found["untrained"]["valid_perplexity"] == log[0]["valid_perplexity"]
    assert found["best"]["valid_perplexity"] == min(
        row["valid_perplexity"] for row in log[1:] if row["step"] % 2 == 0
    )
    assert (found["samples"], found["conversations"], found["languages"]) == (
        36,
        12,
        {"en": 12},
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [".lock", "log.jsonl", "model", "results.json", "run.json"]
    )
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "36" in card and str(tmp_path) not in card
    again = commands.train(
        commands.Train(logs, out=tmp_path / "run", eval_every=2, **SCRATCH)
    )
    assert again == found


def test_people_to_validate_on_that_change_meanwhile_are_an_error(
    logs, tmp_path, monkeypatch
):
    from userlm.commands import train_steps

    prepare = train_steps.prepare

    def prepared(*arguments):
        write_conversations(logs / "valid.jsonl", [talk(i) for i in range(12)])
        return prepare(*arguments)

    monkeypatch.setattr(train_steps, "prepare", prepared)
    with pytest.raises(InputError, match=r"valid\.jsonl changed while it was read"):
        commands.train(commands.Train(logs, out=tmp_path / "run", **SCRATCH))


def test_people_to_validate_on_are_sampled_from_all_of_the_file():
    from userlm.commands.train_steps import sample

    people = [talk(i) for i in range(100)]
    sampled = list(sample(people, 10, seed=0))
    assert len(sampled) == 10 and sampled != people[:10]
    assert (
        sampled == list(sample(people, 10, seed=0)) != list(sample(people, 10, seed=1))
    )
    assert list(sample(people, 500, seed=0)) == people


def test_lora_leaves_an_adapter_and_an_ordinary_model(logs, tmp_path):
    pytest.importorskip("peft")
    commands.train(commands.Train(logs, out=tmp_path / "base", **SCRATCH))
    found = commands.train(
        commands.Train(
            logs,
            out=tmp_path / "lora",
            lora=2,
            **{**SCRATCH, "base": str(tmp_path / "base")},
        )
    )
    assert 0 < found["trained_parameters"] < found["parameters"] / 3
    assert (tmp_path / "lora" / "adapter" / "adapter_config.json").is_file()
    model = LocalModel.load(str(tmp_path / "lora" / "model"), "cpu").model
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (
        f"of {found['parameters']:,}"
        in (tmp_path / "lora" / "model" / "README.md").read_text()
    )


def test_answers_are_cut_in_training_and_wherever_the_model_is_used(
    logs, tmp_path, monkeypatch
):
    """Of 8 tokens 4 are the mark, a space and the three bytes of its dots: two are left at each
    end."""
    monkeypatch.setattr(train_steps, "tidy", lambda folder: None)  # keeps the rows
    answer = "a b c d e f g h i j k l"  # a token for each letter with its space
    log = Conversation("c", intent="x").say("hi").say(answer).say("thx").say(answer)
    log = log.close("end")
    write_conversations(logs / "train.jsonl", [log])
    run = tmp_path / "run"
    found = commands.train(
        commands.Train(logs, out=run, max_answer_tokens=8, **SCRATCH)
    )
    row = load(run / "rows").row(0)
    assert (found["tokens"], found["seen_tokens"]) == (len(row.ids), 4 * len(row.ids))
    assert found["loss_tokens"] == sum(row.mask())
    assert found["seen_loss_tokens"] == 4 * found["loss_tokens"]
    options = json.loads((run / "run.json").read_text())["options"]
    assert options["max_answer_tokens"] == 8
    assert "at most 8 tokens" in (run / "model" / "README.md").read_text()

    user = loading.user(f"trained:{run}")
    content = user.template.encode("\na b … k l")[1:]
    assert len(content) == 8 and tuple(content) in windows(row.ids, 8)
    prompts = [prompt(sample.prefix, user.template) for sample in samples(log)]
    assert prompts == [row.ids[: span.first] for span in row.spans]
    _, form, _ = loading.scorer(f"trained:{run}")
    assert form.rows(log, 512).rows == (row,)
    # a user model on a server is known by its tokenizer
    tokenizer = load_tokenizer(str(run / "model"))
    served = user_template(tokenizer, text_encoder(tokenizer), "served")
    assert render(log, served).rows == (row,)
    # the option alone decides for the next training
    again = {**SCRATCH, "base": str(run)}
    commands.train(commands.Train(logs, out=tmp_path / "whole", **again))
    assert len(load(tmp_path / "whole" / "rows").row(0).ids) == len(row.ids) + 2 * 4

    config = run / "model" / "tokenizer_config.json"
    text = config.read_text()
    config.write_text(text.replace('"max_answer_tokens": 8', '"max_answer_tokens": 7'))
    with pytest.raises(InputError, match=r"max_answer_tokens in its .* is 7; give"):
        loading.user(f"trained:{run}")


def windows(ids: Sequence[int], size: int) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + size]) for i in range(len(ids))}


def test_the_upper_layers_are_trained_alone_and_the_card_says_so(logs, tmp_path):
    two = {**SCRATCH, "base": "scratch:32x2x500"}
    begun = commands.train(
        commands.Train(logs, out=tmp_path / "a", **two | {"steps": 0})
    )
    found = commands.train(
        commands.Train(logs, out=tmp_path / "b", trainable_layers=1, **two)
    )
    layer = 4 * 32 * 32 + 3 * 32 * 88 + 2 * 32
    assert begun["trained_parameters"] - found["trained_parameters"] == layer
    card = (tmp_path / "b" / "model" / "README.md").read_text()
    assert "| trainable_layers | 1 |" in card
    before, after = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab"
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if ".layers.0." in name}


def test_logs_without_intents_leave_a_clear_choice(tmp_path):
    write_conversations(
        tmp_path / "train.jsonl", [talk(i, intent=False) for i in range(4)]
    )
    with pytest.raises(
        InputError,
        match=r"no conversation has an intent.*`userlm intents` first.*--no-intent",
    ):
        commands.train(
            commands.Train(tmp_path / "train.jsonl", out=tmp_path / "run", **SCRATCH)
        )
    assert (
        commands.train(
            commands.Train(
                tmp_path / "train.jsonl", out=tmp_path / "free", intent=False, **SCRATCH
            )
        )["steps"]
        == 4
    )


def test_without_intent_no_system_turn_is_trained_even_if_the_data_has_conditions(
    logs, tmp_path
):
    asked = [talk(i) for i in range(4)]
    told = [
        replace(c, meta={**c.meta, "condition": "The user is in a hurry."})
        for c in asked
    ]
    write_conversations(tmp_path / "told.jsonl", told)
    options = {**SCRATCH, "valid": logs}
    found = commands.train(
        commands.Train(
            tmp_path / "told.jsonl", out=tmp_path / "run", intent=False, **options
        )
    )
    template = LocalModel.load(str(tmp_path / "run" / "model"), "cpu").template()
    header = template.headers["user"]
    rows = [render(c.without_system(), template).rows[0] for c in told]
    assert all(row.ids[: len(header)] == header for row in rows)
    assert found["tokens"] == sum(len(row.ids) for row in rows)
    assert (found["conversations"], found["without_intent"]) == (4, 4)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| intent | False |" in card
    assert re.search(r"with an intent \| 0 \|", card)
    with_intent = commands.train(
        commands.Train(tmp_path / "told.jsonl", out=tmp_path / "with", **options)
    )
    systems = sum(len(template.turn("system", c.system)) for c in told)
    assert with_intent["tokens"] == found["tokens"] + systems


def test_the_card_says_what_each_file_was_for_and_whose_figure_the_power_is(
    logs, tmp_path
):
    commands.train(commands.Train(logs, out=tmp_path / "run", watts=200, **SCRATCH))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert (
        "| `train.jsonl` | training |" in card
        and "| `valid.jsonl` | validation |" in card
    )
    assert re.search(r"200 W .*as (was )?given", card, re.DOTALL)


def test_people_to_validate_on_must_say_something(logs, tmp_path):
    greeting = Conversation(
        "greeting", turns=(Turn("assistant", "How can I help?"),), intent=talk(0).intent
    )
    write_conversations(tmp_path / "others.jsonl", [greeting])
    with pytest.raises(
        InputError,
        match=r"others.jsonl: no turn to train on fits 2048 tokens; .*--valid",
    ):
        commands.train(
            commands.Train(
                logs, out=tmp_path / "run", valid=tmp_path / "others.jsonl", **SCRATCH
            )
        )


def test_a_model_that_got_worse_is_said_to_have(logs, tmp_path):
    found = commands.train(
        commands.Train(logs, out=tmp_path / "run", **{**SCRATCH, "lr": 5.0, "steps": 2})
    )
    assert any("no better than before" in note for note in found["notes"])
    assert (
        "no better than before"
        in (tmp_path / "run" / "model" / "README.md").read_text()
    )


def test_what_cannot_be_learned_from_is_counted(tmp_path, capsys):
    greeting = Conversation(
        "greeting", turns=(Turn("assistant", "How can I help?"),), intent=talk(0).intent
    )
    long = (
        Conversation("long", intent=talk(1).intent)
        .say("word " * 400)
        .say("Yes?")
        .close("end")
    )
    write_conversations(
        tmp_path / "train.jsonl", [talk(0), greeting, talk(1, intent=False), long]
    )
    found = commands.train(
        commands.Train(
            tmp_path / "train.jsonl", out=tmp_path / "run", max_tokens=200, **SCRATCH
        )
    )
    assert (
        found["conversations"],
        found["without_user_turn"],
        found["without_intent"],
    ) == (
        3,
        1,
        1,
    )
    # Of the long one the leaving is left.
    assert found["dropped"] == 1 and found["samples"] == 3 + 3 + 1
    assert found["sample_counts"] == {"all": 8, "truncate": 7, "drop": 6}
    shown = capsys.readouterr()
    before = (
        "8 samples; --max-tokens 200 leaves 7 with --overlong truncate, 6 with drop"
    )
    assert before in " ".join(shown.err.split())
    assert "in all 8 truncate 7 drop 6" in " ".join(shown.out.split())
    commands.report(commands.Report([tmp_path / "run"], tmp_path / "report"))
    assert "| `run` | 8 | 7 | 6 | 200 |" in (tmp_path / "report/report.md").read_text()
    found = commands.train(
        commands.Train(
            tmp_path / "train.jsonl",
            out=tmp_path / "drop",
            max_tokens=200,
            overlong="drop",
            **SCRATCH,
        )
    )
    assert found["dropped"] == 2 and found["samples"] == 6
    assert found["sample_counts"] == {"all": 8, "truncate": 7, "drop": 6}


def test_a_run_can_go_on_with_smaller_packs(logs, tmp_path, monkeypatch):
    """Memory ran out in a step: the same run is taken up with the advice that was given."""
    import torch

    from userlm.training import train as training
    from userlm.types import ModelError

    whole, calls = training.pack_loss, []

    def none_left(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments)

    options = {**SCRATCH, "save_every": 1, "valid_limit": 0}
    monkeypatch.setattr(training, "pack_loss", none_left)
    with pytest.raises(ModelError, match=r"out of memory; give --pack 4096"):
        commands.train(commands.Train(logs, out=tmp_path / "run", **options))
    assert (
        commands.train(
            commands.Train(logs, out=tmp_path / "run", pack=4096, **options)
        )["steps"]
        == 4
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "word"}, "--loss word: give token or sample"),
        ({"overlong": "cut"}, "--overlong cut: give truncate or drop"),
        ({"init": "chat"}, "--init chat: give base or instruct"),
        ({"side": "system"}, "--side system: give user or assistant or both"),
        ({"precision": "fp8"}, "--precision fp8: give bf16 or fp32"),
        ({"log_with": "paper"}, "--log-with paper: it is not installed"),
        ({"valid": Path("nowhere")}, "nowhere does not exist"),
        ({"optimizer": "adamwx"}, "--optimizer adamwx"),
        ({"lr": -1.0}, "--lr -1.0: give a number"),
        ({"trainable_layers": 2}, "--trainable-layers 2: give at most 1"),
        ({"lora": 2, "trainable_layers": 2}, "--trainable-layers 2: give at most 1"),
        ({"max_answer_tokens": 7}, "--max-answer-tokens 7: give a number"),
        ({"max_answer_tokens": 8, "side": "both"}, "leave it out with --side both"),
        (
            {"patience": 1, "valid_limit": 0},
            "--patience needs conversations to validate on",
        ),
        (
            {"valid": Path("logs/train.jsonl")},
            "these are the conversations to train on",
        ),
    ],
)
def test_a_wrong_option_says_what_can_be_given(
    logs, tmp_path, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        commands.train(
            commands.Train(logs, out=tmp_path / "run", **{**SCRATCH, **options})
        )


def test_a_base_model_is_no_instruct_model(logs, tmp_path):
    from userlm.training.base import from_scratch, learn_tokenizer

    words = learn_tokenizer(["what is it good for?"], 400, "both")
    local = from_scratch(words, width=32, layers=1, seed=0, side="both")
    local.model.save_pretrained(tmp_path / "plain")
    local.tokenizer.save_pretrained(tmp_path / "plain")
    plain = {**SCRATCH, "base": str(tmp_path / "plain")}
    with pytest.raises(
        InputError, match=r"--init instruct: .*plain has no chat template"
    ):
        commands.train(
            commands.Train(logs, out=tmp_path / "run", init="instruct", **plain)
        )
    assert (
        commands.train(commands.Train(logs, out=tmp_path / "fine", **plain))["steps"]
        == 4
    )


@pytest.mark.slow
def test_a_base_model_an_assistant_and_a_user_are_trained_one_from_the_other(
    logs, tmp_path
):
    """12 conversations of 2 user turns, 2 answers and an ending; the user alone is told their
    intents."""
    folders = {side: tmp_path / side for side in ("both", "assistant", "user")}
    both = commands.train(
        commands.Train(logs, out=folders["both"], side="both", **SCRATCH)
    )
    assistant = commands.train(
        commands.Train(
            logs,
            out=folders["assistant"],
            side="assistant",
            **{**SCRATCH, "base": str(folders["both"])},
        )
    )
    user = commands.train(
        commands.Train(
            logs,
            out=folders["user"],
            init="instruct",
            **{**SCRATCH, "base": str(folders["assistant"])},
        )
    )
    assert [found["samples"] for found in (both, assistant, user)] == [12, 24, 36]
    assert [found["without_intent"] for found in (both, assistant, user)] == [12, 12, 0]
    assert (
        both["best"]["valid_termination_f1"] is None
        and assistant["best"]["valid_termination_f1"] is None
    )
    assert user["best"]["valid_termination_f1"] is not None
    # Two turns and an end each: 2 x 1 / (1 + 3).
    assert user["always_ending_f1"] == 50
    card = (folders["user"] / "model" / "README.md").read_text()
    assert "Always ending, which needs no model, has a termination F1 of 50 %." in card
    assert (
        user["notes"][0]
        == "<|endconversation|> takes the place of <|reserved_special_token_0|>, id 5"
    )

    # Its tokenizer spells text as that of all three.
    local = LocalModel.load(str(folders["user"] / "model"), "cpu")
    talks = [replace(talk(i), intent=None) for i in range(12)]
    text, answers = (
        transcript_template(local.encode, (0,), 1),
        local.template().with_roles_swapped(),
    )
    texts = [render_document(transcript(said), text).rows[0] for said in talks]
    assert both["tokens"] == sum(len(row.ids) for row in texts)
    assert assistant["tokens"] == sum(
        len(render(swap_roles(said), answers).rows[0].ids) for said in talks
    )

    options = {
        side: json.loads((folder / "run.json").read_text())["options"]
        for side, folder in folders.items()
    }
    assert [options[side].get("side") for side in folders] == [
        "both",
        "assistant",
        "user",
    ]
    assert [options[side]["intent"] for side in folders] == [False, False, True]
    cards = {
        side: (folder / "model" / "README.md").read_text()
        for side, folder in folders.items()
    }
    assert [side for side in cards if "A user language model" in cards[side]] == [
        "user"
    ]


@pytest.mark.parametrize("side", ["assistant", "both"])
def test_logs_without_intents_are_enough_for_the_other_sides(tmp_path, side):
    write_conversations(
        tmp_path / "train.jsonl", [talk(i, intent=False) for i in range(4)]
    )
    assert (
        commands.train(
            commands.Train(
                tmp_path / "train.jsonl", out=tmp_path / "run", side=side, **SCRATCH
            )
        )["steps"]
        == 4
    )


@pytest.mark.slow
def test_a_scheduler_that_stops_it_finds_a_checkpoint_and_the_same_command_goes_on(
    logs, tmp_path
):
    options = [
        "--base",
        "scratch:32x1x500",
        "--steps",
        "200",
        "--batch",
        "8",
        "--lr",
        "3e-3",
        "--device",
        "cpu",
    ]
    command = ["train", logs, *options, "--out", tmp_path / "stopped"]
    process = processes.userlm(*command)
    log = tmp_path / "stopped" / "log.jsonl"
    until = time.monotonic() + 300
    while (
        not (log.is_file() and log.read_bytes().count(b"\n") > 3)
        and time.monotonic() < until
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 143 and "SIGTERM: stopped after step" in said, said
    assert (tmp_path / "stopped" / "checkpoint").is_dir()
    again = processes.userlm(*command)
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 0, said
    commands.train(
        commands.Train(logs, out=tmp_path / "whole", **{**SCRATCH, "steps": 200})
    )
    first, second = (
        tmp_path / name / "model" / "model.safetensors" for name in ("whole", "stopped")
    )
    assert first.read_bytes() == second.read_bytes()
