"""Training: what is learned, from which tokens, and that a resumed run ends the same."""

import json
import math
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from userlm.flip import render, samples
from userlm.models.attention import document_masking, target_logits
from userlm.models.local import LocalModel
from userlm.text import INTENT_PREFIX
from userlm.training import checkpoints
from userlm.training import train as training
from userlm.training.base import from_scratch, learn_tokenizer
from userlm.training.layers import freeze_below
from userlm.training.prepare import TokenizedDataset, prepare
from userlm.training.train import (
    TrainingConfig,
    evaluate,
    pack_loss,
    packs,
    plan,
    schedule,
    start,
    train,
    write_weights,
)
from userlm.types import Conversation, InputError, ModelError, Sampling
from userlm.users import TrainedUser


def small(conversations: Sequence[Conversation], seed: int = 0) -> LocalModel:
    texts = [turn.text for conversation in conversations for turn in conversation.turns]
    intents = [conversation.intent or "" for conversation in conversations]
    return from_scratch(
        learn_tokenizer([*texts, *intents], 500), width=64, layers=2, seed=seed
    )


def accelerator(folder: Path) -> Any:
    return start("cpu", "fp32", None, folder)


def flip(
    conversations: Sequence[Conversation],
    local: LocalModel,
    folder: Path,
    max_tokens: int = 512,
) -> TokenizedDataset:
    return prepare(conversations, local.template(), folder / "rows", max_tokens)


def fit(
    local: LocalModel,
    dataset: TokenizedDataset,
    config: TrainingConfig,
    folder: Path,
    valid: TokenizedDataset | None = None,
) -> Any:
    return train(
        local,
        dataset,
        plan(dataset, config),
        config,
        folder,
        accelerator(folder),
        valid,
    )


@pytest.fixture(scope="module")
def logs() -> list[Conversation]:
    """Twenty conversations of two or three user turns, each on a subject of its own."""
    subjects = (
        "cats rome jazz tea rain chess bread trains maps owls salt kites moss ferns "
        "glass "
        "wool mud ink fog oak"
    )
    found = []
    for i, subject in enumerate(subjects.split()):
        talk = Conversation(
            f"c{i}", intent=f"{INTENT_PREFIX}learn about {subject}.", user=f"p{i}"
        )
        talk = talk.say(f"tell me about {subject} pls").say(f"{subject} are nice.")
        talk = talk.say(f"more on {subject}?").say("That is all.")
        if i % 2:
            talk = talk.say(f"who likes {subject}").say("Many do.")
        found.append(talk.close("end"))
    return found


@pytest.fixture(scope="module")
def trained(logs, tmp_path_factory) -> tuple[LocalModel, list[dict[str, Any]]]:
    local, folder = small(logs), tmp_path_factory.mktemp("trained")
    dataset = flip(logs, local, folder)
    config = TrainingConfig(
        steps=200, batch=35, lr=1.2e-2, save_every=1000, eval_every=1000
    )
    return local, list(fit(local, dataset, config, folder, dataset))


# --- what is learned ------------------------------------------------------------------------------


@pytest.mark.slow
def test_twenty_conversations_are_learned_by_heart_and_end_where_they_ended(
    trained, logs
):
    local, log = trained
    assert log[-1]["loss"] < 0.05
    user = TrainedUser(local, local.template(), sampling=Sampling(temperature=0))
    for talk in logs:
        said = Conversation(talk.id, intent=talk.intent)
        for turn in talk.turns:
            if turn.role == "user":
                reply = user.reply(said)
                assert (reply.text, reply.stop) == (turn.text, None)
            said = said.say(turn.text)
        last = user.reply(said)
        assert (last.text, last.stop) == ("", "end")
        assert last.meta["p_end"] > 0.9


@pytest.mark.slow
def test_a_validation_before_and_after_shows_that_words_and_endings_were_learned(
    trained,
):
    before, after = trained[1][0], trained[1][-1]
    assert before["step"] == 0 and "loss" not in before
    assert before["valid_perplexity"] > 100 and after["valid_perplexity"] < 1.1
    assert before["valid_termination_f1"] == 0 and after["valid_termination_f1"] == 100


@pytest.mark.slow
def test_the_probability_of_the_end_token_rises_where_people_leave(trained, logs):
    def p_end(local):
        user = TrainedUser(local, local.template(), sampling=Sampling(temperature=0))
        return (
            user.reply(logs[0]).meta["p_end"]
            if logs[0].stop is None
            else user.reply(replace(logs[0], stop=None)).meta["p_end"]
        )

    assert p_end(small(logs)) < 0.05 and p_end(trained[0]) > 0.9


@pytest.mark.slow
def test_a_validation_counts_words_and_endings_as_they_are(trained, logs, tmp_path):
    """By hand: the words' NLL from a plain forward pass. The model knows where these two ended, so
    one is told to have ended earlier, where the model goes on, and one not to have ended: one
    ending missed, none made up."""
    local, _ = trained
    template = local.template()
    cut = replace(logs[1], turns=logs[1].turns[:2])
    dataset = flip([cut, replace(logs[0], ended=False)], local, tmp_path)
    rows = [dataset.row(i) for i in range(len(dataset.rows))]
    with document_masking(local.model):
        found = evaluate(
            local.model, packs(rows, 512), rows[:1], template.end, accelerator(tmp_path)
        )
    total = count = 0.0
    for row in rows:
        logprobs = (
            local.model(torch.tensor([row.ids])).logits[0].log_softmax(-1).detach()
        )
        for target in row.spans:
            for at in range(target.first, target.stop - 1):
                if row.ids[at] != template.end:
                    total, count = (
                        total - float(logprobs[at - 1, row.ids[at]]),
                        count + 1,
                    )
    assert found["valid_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["valid_termination_f1"] == 0


@pytest.mark.slow
def test_termination_f1_counts_endings_found_made_up_and_missed(
    trained, logs, tmp_path
):
    """The model leaves after the last exchange. One ended there (right), one is said to have gone
    on instead (made up), one is said to have ended earlier (missed): F1 = 2 / (2 + 1 + 1)."""
    local, _ = trained
    right = logs[0]
    made_up = replace(logs[2], ended=False, stop=None).say("one more thing")
    missed = replace(logs[4], turns=logs[4].turns[:2])
    dataset = flip([right, made_up, missed], local, tmp_path)
    rows = [dataset.row(i) for i in range(len(dataset.rows))]
    with document_masking(local.model):
        found = evaluate(
            local.model,
            packs(rows, 512),
            rows[:1],
            local.template().end,
            accelerator(tmp_path),
        )
    assert found["valid_termination_f1"] == pytest.approx(50)


# --- from which tokens ----------------------------------------------------------------------------


def test_one_row_teaches_what_its_samples_teach_one_by_one(tiny, slides):
    """K + 1 samples, each the row up to its own target with a loss on that target alone, against
    the one row."""
    template = tiny.template()
    [row] = render(slides, template).rows
    assert len(row.spans) == len(list(samples(slides))) == 4

    def gradient(losses):
        tiny.model.zero_grad()
        sum(losses).backward()
        return torch.cat([weight.grad.flatten() for weight in tiny.model.parameters()])

    def alone(target):
        ids = torch.tensor([row.ids[: target.stop]])
        labels = torch.full_like(ids, -100)
        labels[0, target.start :] = ids[0, target.start :]
        # Transformers' own.
        return tiny.model(input_ids=ids, labels=labels).loss * (
            target.stop - target.start
        )

    with document_masking(tiny.model):
        together = pack_loss(tiny.model, [row])
        whole = gradient([together])
    apart = [alone(target) for target in row.spans]
    assert together.item() == pytest.approx(
        sum(loss.item() for loss in apart), rel=1e-6
    )
    torch.testing.assert_close(whole, gradient(apart), rtol=1e-4, atol=1e-5)


def test_rows_that_were_cut_teach_what_their_samples_teach(tiny, slides):
    """With room for 160 tokens there are several rows; each target's loss is that of its own
    shortened context."""
    rows = render(slides, tiny.template(), 160).rows
    assert len(rows) > 1
    with document_masking(tiny.model):
        together = pack_loss(tiny.model, rows)
    total = 0.0
    for row in rows:
        logprobs = tiny.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        total -= sum(
            logprobs[i - 1, row.ids[i]].item()
            for t in row.spans
            for i in range(t.start, t.stop)
        )
    assert together.item() == pytest.approx(total, rel=1e-6)


def test_a_loss_per_sample_counts_short_turns_as_much_as_long_ones(tiny, slides):
    [row] = render(slides, tiny.template()).rows
    with document_masking(tiny.model), torch.no_grad():
        logits, wanted = target_logits(tiny.model, [(row.ids, row.mask())])
        losses = torch.nn.functional.cross_entropy(
            logits, wanted, reduction="none"
        ).tolist()
        per_sample = pack_loss(tiny.model, [row], "sample").item()
    expected, at = 0.0, 0
    for target in row.spans:
        length = target.stop - target.start
        expected += sum(losses[at : at + length]) / length
        at += length
    assert per_sample == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_loss_of_a_step_is_the_mean_over_its_tokens_or_over_its_samples(
    tiny, logs, tmp_path
):
    """All conversations in one step, in one pack and in several; by hand from the sums of the
    rows."""
    dataset = flip(logs, tiny, tmp_path)
    rows = [dataset.row(i) for i in range(len(dataset.rows))]
    with document_masking(tiny.model), torch.no_grad():
        sums = {
            average: sum(pack_loss(tiny.model, [row], average).item() for row in rows)
            for average in AVERAGES
        }
    counts = {
        "token": sum(sum(row.mask()) for row in rows),
        "sample": sum(len(row.spans) for row in rows),
    }
    for average in AVERAGES:
        for budget in (64, 4096):
            config = TrainingConfig(
                steps=1, batch=1000, lr=0.0, average=average, pack=budget
            )
            folder = tmp_path / f"{average}-{budget}"
            [entry] = fit(tiny, dataset, config, folder)
            assert entry["loss"] == pytest.approx(
                sums[average] / counts[average], rel=1e-5
            )


AVERAGES = ("token", "sample")


def test_packing_changes_nothing(logs, tmp_path):
    """Packs of one row against packs of many: the same losses, and the same weights up to the last
    bits."""
    ends = []
    for budget in (16, 4096):
        local = small(logs)
        folder = tmp_path / str(budget)
        dataset = flip(logs, local, folder)
        config = TrainingConfig(steps=4, batch=30, lr=1e-3, pack=budget)
        log = list(fit(local, dataset, config, folder))
        ends.append((local.model.state_dict(), [entry["loss"] for entry in log]))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    for name, weight in ends[0][0].items():
        torch.testing.assert_close(weight, ends[1][0][name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(logs, tmp_path):
    losses = []
    for checkpointing in (False, True):
        local, folder = small(logs), tmp_path / str(checkpointing)
        config = TrainingConfig(
            steps=3, batch=30, lr=1e-3, gradient_checkpointing=checkpointing
        )
        losses.append(
            [e["loss"] for e in fit(local, flip(logs, local, folder), config, folder)]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_splits_no_conversation_and_uses_each_once_an_epoch(
    tiny, logs, tmp_path
):
    """Twenty conversations of 3 and 4 samples: 70 samples, in steps of 20 or a little more."""
    dataset = flip(logs, tiny, tmp_path)
    assert (dataset.samples, dataset.dropped) == (70, 0)
    steps = plan(dataset, TrainingConfig(epochs=2, batch=20))
    counts = [sum(len(dataset.row(i).spans) for i in step) for step in steps]
    assert all(20 <= count <= 23 for count in counts[:3]) and sum(counts) == 140
    rows = [i for step in steps for i in step]
    assert sorted(rows) == sorted([*range(20), *range(20)])
    assert sorted(rows[:20]) == list(range(20))
    assert (
        plan(dataset, TrainingConfig(epochs=2, batch=20))
        == steps
        != plan(dataset, TrainingConfig(epochs=2, batch=20, seed=1))
    )


def test_the_rows_of_a_conversation_that_was_cut_stay_in_one_step(tiny, logs, tmp_path):
    dataset = flip(logs, tiny, tmp_path, max_tokens=110)
    assert len(dataset.rows) > dataset.conversations
    conversation = dataset.rows["conversation"]
    of = [
        {int(conversation[i]) for i in step}
        for step in plan(dataset, TrainingConfig(batch=10))
    ]
    assert sum(map(len, of)) == dataset.conversations


def test_no_rows_make_an_empty_plan_and_no_steps_leave_the_model_as_it_is(
    tiny, logs, tmp_path
):
    assert (
        plan(prepare([], tiny.template(), tmp_path / "none"), TrainingConfig(steps=5))
        == []
    )
    assert plan(flip(logs, tiny, tmp_path), TrainingConfig(steps=0)) == []


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    """100 steps, 10 of them warm-up: 0.1, 0.2, ... 1.0; half way along the cosine 0.55; at its end
    0.1."""
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert schedule(55, 100, 0.1) == pytest.approx(0.55)
    assert schedule(100, 100, 0.1) == pytest.approx(0.1)


# --- many processes, interruptions, faults --------------------------------------------------------

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from userlm.models.local import LocalModel
from userlm.training.prepare import load
from userlm.training.train import TrainingConfig, Stopped, plan, start, train

folder, begun, kill_at, sharded = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "sharded"
accelerator = start("cpu", "fp32", None, folder)
if sharded:  # accelerate offers FSDP2 on accelerators alone; torch has it on CPUs, too
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        state_dict_type="SHARDED_STATE_DICT",
    )
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    assert accelerator.is_fsdp2
local, dataset = LocalModel.load(begun, "cpu"), load(folder.parent / "rows")
# two rows a step in packs of one: of three packs one is empty now and then
config = TrainingConfig(steps=6, batch=6, lr=1e-3, pack=64, save_every=2, eval_every=2)
losses = {}
stopping = lambda: sys.argv[4] == "second stops" and accelerator.process_index == 1 and 3 in losses
try:
    for entry in train(local, dataset, plan(dataset, config), config, folder, accelerator, dataset, stopping):
        if entry["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        losses[entry["step"]] = entry.get("loss")
except Stopped as stopped:
    print(stopped)
if sharded:
    assert {type(weight).__name__ for weight in local.model.parameters()} == {"DTensor"}
if accelerator.is_main_process:
    print(json.dumps(losses), flush=True)
accelerator.end_training()
sys.stdout.flush()
if accelerator.num_processes > 1:
    os._exit(0)  # as `userlm train` does: a thread of the process group may abort Python's own end
"""


@pytest.fixture(scope="module")
def begun(logs, tmp_path_factory) -> Path:
    """A folder with the weights and rows from which several processes train; and what one of them
    makes of it. The best weights are the last, of step 6."""
    folder = tmp_path_factory.mktemp("begun")
    local = small(logs)
    flip(logs, local, folder)
    training.save(local, folder / "start")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "whole").mkdir()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setattr(
            sys,
            "argv",
            ["script.py", *map(str, (folder / "whole", folder / "start", -1, ""))],
        )
        runpy.run_path(str(folder / "script.py"))
    assert json.loads(said.getvalue()).keys() == set("0123456")
    return folder


def run(
    begun: Path, name: str, count: int = 1, kill_at: int = -1, how: str = ""
) -> subprocess.CompletedProcess[str]:
    (begun / name).mkdir(exist_ok=True)
    command = [
        str(begun / "script.py"),
        str(begun / name),
        str(begun / "start"),
        str(kill_at),
        how,
    ]
    env = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": str(how == "sharded").lower()}
    if how == "replicated":
        # by torchrun; the others with the environment that it would give them
        launch = ["--standalone", "--nproc-per-node", "2", *command]
        torchrun = processes.Process(["-m", "torch.distributed.run"], *launch, **env)
        said = torchrun.communicate()
        return subprocess.CompletedProcess(launch, torchrun.returncode, *said)
    if count > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            env |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1]),
            }
        env |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [
        {"RANK": str(i), "LOCAL_RANK": str(i)} if count > 1 else {}
        for i in range(count)
    ]
    running = [
        processes.Process(command[:1], *command[1:], **env, **rank) for rank in ranks
    ]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(processes.Process.communicate, running))
    code = next((process.returncode for process in running if process.returncode), 0)
    return subprocess.CompletedProcess(
        command, code, *map("".join, zip(*said, strict=True))
    )


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_processes_learn_what_one_learns(begun, how):
    done = run(begun, how, count=2, how=how)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights_in(begun / "whole"), weights_in(begun / how)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_when_one_process_is_asked_to_stop_all_do(begun):
    done = run(begun, "stopped", count=2, how="second stops")
    assert done.stdout.count("stopped after step 3") == 2, done.stderr[-3000:]
    assert (begun / "stopped" / "checkpoint").is_dir()


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(begun):
    killed = run(begun, "killed", kill_at=5)
    assert killed.returncode == -signal.SIGKILL
    assert (begun / "killed" / "checkpoint").is_dir()  # of step 4: step 5 is lost
    done = run(begun, "killed")
    assert json.loads(done.stdout).keys() == {"5", "6"}, done.stderr[-3000:]
    for name, weight in weights_in(begun / "whole").items():
        assert torch.equal(weights_in(begun / "killed")[name], weight), name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "sharded"])
def test_two_processes_that_were_killed_end_with_the_weights_of_one(begun, how):
    name = f"killed two {how}"
    killed = run(begun, name, count=2, kill_at=5, how=how)
    assert killed.returncode == -signal.SIGKILL
    done = run(begun, name, count=2, how=how)
    assert json.loads(done.stdout).keys() == {"5", "6"}, done.stderr[-3000:]
    for key, weight in weights_in(begun / "whole").items():
        torch.testing.assert_close(
            weights_in(begun / name)[key], weight, rtol=1e-5, atol=1e-5
        )


def run_until(
    local: LocalModel,
    dataset: TokenizedDataset,
    config: TrainingConfig,
    folder: Path,
    last: int,
) -> list[int]:
    """Train, and stop after a step with a checkpoint; return the steps."""
    seen: list[int] = []
    steps = plan(dataset, config)
    entries = train(
        local,
        dataset,
        steps,
        config,
        folder,
        accelerator(folder),
        stopping=lambda: seen[-1:] == [last],
    )
    with pytest.raises(training.Stopped, match=f"after step {last}"):
        for entry in entries:
            seen.append(entry["step"])  # one by one: the run looks at it in between
    return seen


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor"])
def test_a_resumed_run_drops_out_the_same_and_goes_on_with_the_same_moments(
    logs, tmp_path, optimizer
):
    def dropping(local: LocalModel) -> LocalModel:
        local.model.get_input_embeddings().register_forward_hook(
            lambda module, _, out: torch.dropout(out, 0.5, module.training)
        )
        return local

    dataset = flip(logs, small(logs), tmp_path)
    config = TrainingConfig(steps=4, batch=20, lr=1e-2, optimizer=optimizer)
    list(fit(dropping(small(logs)), dataset, config, tmp_path / "whole"))
    run_until(dropping(small(logs)), dataset, config, tmp_path / "halves", 2)
    torch.rand(3)  # what is drawn between the halves changes nothing
    list(fit(dropping(small(logs)), dataset, config, tmp_path / "halves"))
    for name, weight in weights_in(tmp_path / "whole").items():
        assert torch.equal(weights_in(tmp_path / "halves")[name], weight), name


class Pickled:
    """Makes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_holds_tensors_and_json_and_nothing_else_is_loaded(logs, tmp_path):
    dataset = flip(logs, small(logs), tmp_path)
    config = TrainingConfig(steps=2, batch=20)
    run_until(small(logs), dataset, config, tmp_path, 1)
    checkpoint = tmp_path / "checkpoint"
    names = {"weights.safetensors", "optimizer.safetensors", "state.json"}
    assert {path.name for path in checkpoint.iterdir()} == names
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"):
        torch.save(Pickled(tmp_path / "ran"), checkpoint / name)
    list(fit(small(logs), dataset, config, tmp_path))
    (checkpoint / "state.json").unlink()  # as older versions wrote it
    with pytest.raises(InputError, match=r"another version of userlm.*another --out"):
        list(fit(small(logs), dataset, config, tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("weights.safetensors", b"", None),
        ("optimizer.safetensors", None, None),
        ("state.json", b"{", b"["),
        ("state.json", b'"step": 1,', b'"step": "one",'),
        ("state.json", b'"waited": 0,', b""),
        ("state.json", b'"tied": {', b'"tied": {"a": "b",'),
        ("state.json", b'"optimizer": {', b'"optimizer": [], "x": {'),
    ],
)
def test_a_damaged_checkpoint_is_named(logs, tmp_path, name, old, new):
    dataset = flip(logs, small(logs), tmp_path)
    config = TrainingConfig(steps=2, batch=20)
    run_until(small(logs), dataset, config, tmp_path, 1)
    path = tmp_path / "checkpoint" / name
    if old is None:
        path.unlink()
    elif new is None:
        path.write_bytes(path.read_bytes()[:-10])
    else:
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(InputError, match=r"checkpoint"):
        list(fit(small(logs), dataset, config, tmp_path))


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_goes_on_from_it(
    logs, tmp_path
):
    local = small(logs)
    dataset = flip(logs, local, tmp_path)
    config = TrainingConfig(steps=6, batch=20, lr=1e-3)
    seen = run_until(local, dataset, config, tmp_path, 3)
    assert (
        seen == [1, 2, 3]
        and (tmp_path / "checkpoint").is_dir()
        and not (tmp_path / "model").exists()
    )
    again = [entry["step"] for entry in fit(small(logs), dataset, config, tmp_path)]
    assert again == [4, 5, 6] and (tmp_path / "model").is_dir()


def test_a_run_with_frozen_layers_goes_on_with_the_same_weights(logs, tmp_path):
    def frozen() -> LocalModel:
        local = small(logs)
        freeze_below(local, 1)
        return local

    config = TrainingConfig(steps=4, batch=20, lr=1e-3)
    ends = []
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        dataset = flip(logs, small(logs), folder)
        if folder.name == "stopped":
            run_until(frozen(), dataset, config, folder, 2)
        list(fit(frozen(), dataset, config, folder))
        ends.append(load_file(folder / "model" / "model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_best_weights_are_kept_and_a_run_that_gets_no_better_stops(
    logs, tmp_path, monkeypatch
):
    """Perplexities 50 before, then 9, 7, 8, 8: the second weights are kept, and after two worse
    ones it stops."""
    found = iter([50.0, 9.0, 7.0, 8.0, 8.0])
    monkeypatch.setattr(
        training,
        "evaluate",
        lambda *_: {"valid_perplexity": next(found), "valid_termination_f1": None},
    )
    local = small(logs)
    dataset = flip(logs, local, tmp_path)
    config = TrainingConfig(steps=20, batch=20, lr=1e-2, eval_every=1, patience=2)
    weights = {}
    for entry in fit(local, dataset, config, tmp_path, dataset):
        weights[entry["step"]] = (
            local.model.get_input_embeddings().weight.detach().clone()
        )
    assert list(weights) == [0, 1, 2, 3, 4]
    kept = (
        LocalModel.load(str(tmp_path / "model"), "cpu")
        .model.get_input_embeddings()
        .weight
    )
    assert torch.equal(kept, weights[2]) and not torch.equal(kept, weights[4])


def test_the_best_so_far_and_the_patience_left_survive_an_interruption(
    logs, tmp_path, monkeypatch
):
    """Perplexities 50 before, then 9, 7, 8; after a stop 8: the patience of two is over, the
    weights of 7 stay."""
    found = iter([50.0, 9.0, 7.0, 8.0, 8.0])
    monkeypatch.setattr(
        training,
        "evaluate",
        lambda *_: {"valid_perplexity": next(found), "valid_termination_f1": None},
    )
    local = small(logs)
    dataset = flip(logs, local, tmp_path)
    config = TrainingConfig(steps=20, batch=20, lr=1e-2, eval_every=1, patience=2)
    kept, seen = {}, []

    def run_on(local, stop_at):
        steps = plan(dataset, config)
        entries = train(
            local,
            dataset,
            steps,
            config,
            tmp_path,
            accelerator(tmp_path),
            dataset,
            lambda: seen[-1:] == [stop_at],
        )
        for entry in entries:
            seen.append(entry["step"])  # one by one: the run looks at it in between
            kept[entry["step"]] = (
                local.model.get_input_embeddings().weight.detach().clone()
            )

    with pytest.raises(training.Stopped):
        run_on(local, 3)
    run_on(small(logs), None)
    assert seen == [0, 1, 2, 3, 4]
    best = (
        LocalModel.load(str(tmp_path / "model"), "cpu")
        .model.get_input_embeddings()
        .weight
    )
    assert torch.equal(best, kept[2])


def test_a_loss_that_is_no_number_stops_the_run_and_says_where_the_last_good_state_is(
    logs, tmp_path
):
    local = small(logs)
    dataset = flip(logs, local, tmp_path)
    config = TrainingConfig(steps=5, batch=20, save_every=2)
    entries = fit(local, dataset, config, tmp_path)
    assert [next(entries)["step"] for _ in range(3)] == [1, 2, 3]
    with torch.no_grad():
        local.model.lm_head.weight[:] = float("nan")
    with pytest.raises(
        ModelError,
        match=r"loss is nan .* at step 4; .*checkpoint holds the last good state.*--lr",
    ):
        next(entries)


def test_memory_that_runs_out_names_the_flag_that_helps(logs, tmp_path, monkeypatch):
    def none_left(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    local = small(logs)
    dataset = flip(logs, local, tmp_path)
    length = max(len(dataset.row(i).ids) for i in range(20))
    with monkeypatch.context() as patched:
        patched.setattr(training, "pack_loss", none_left)
        for config, flag in (
            (TrainingConfig(batch=100, pack=4096), "--pack 2048"),
            (TrainingConfig(batch=100, pack=length), "--gradient-checkpointing"),
            (
                TrainingConfig(batch=100, pack=length, gradient_checkpointing=True),
                "--max-tokens",
            ),
        ):
            with pytest.raises(ModelError, match=f"out of memory; .*{flag}"):
                list(fit(small(logs), dataset, config, tmp_path))
    monkeypatch.setattr(torch.optim.AdamW, "step", none_left)
    with pytest.raises(ModelError, match=r"out of memory; .*--lora"):
        list(fit(small(logs), dataset, TrainingConfig(), tmp_path))


def test_another_optimizer_trains(logs, tmp_path):
    local = small(logs)
    config = TrainingConfig(steps=3, batch=20, lr=1e-2, optimizer="adafactor")
    losses = [
        entry["loss"]
        for entry in fit(local, flip(logs, local, tmp_path), config, tmp_path)
    ]
    assert losses[2] < losses[0]


def test_an_optimizer_is_named_as_transformers_names_it(tiny):
    made = training.make_optimizer(
        tiny.model, TrainingConfig(optimizer="adafactor", lr=1e-3)
    )
    assert type(made).__name__ == "Adafactor" and made.param_groups[0]["lr"] == 1e-3
    with pytest.raises(InputError, match=r"--optimizer adamwx: .*adafactor"):
        training.make_optimizer(tiny.model, TrainingConfig(optimizer="adamwx"))


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(logs, tmp_path, monkeypatch):
    local = small(logs)
    dataset = flip(logs, local, tmp_path)
    entries = fit(
        local, dataset, TrainingConfig(steps=5, batch=20, save_every=1), tmp_path
    )
    next(entries), next(entries)
    good = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Free())
    with pytest.raises(OSError, match="No space left"):
        next(entries)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == good


class Free:
    free = 0


def test_weights_can_be_kept_at_any_time(logs, tmp_path):
    local = small(logs)
    for _ in range(2):
        write_weights(local, local.model, accelerator(tmp_path), tmp_path)
    assert (
        LocalModel.load(str(tmp_path / "model")).template().end == local.template().end
    )
