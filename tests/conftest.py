"""What the tests share."""

import gc
import os
import signal
from pathlib import Path
from typing import Any

# Models this small lose time to threads waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# In a shell's background Ctrl-C is ignored, by all processes that are begun from there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# While all is loaded nothing is given up, and later nothing of it: see `pytest_collection_finish`.
gc.disable()

import pytest
from hypothesis import settings

from userlm import assets
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, Turn

# A machine that is busy with something else makes no test wrong.
settings.register_profile("userlm", deadline=None)
settings.load_profile("userlm")

ROOT = Path(__file__).resolve().parent.parent

# No test depends on what lies in the user's cache but those that ask for `small_model`. A worker
# of xdist inherits the variables.
SMALL = Path(os.environ.setdefault("USERLM_SMALL", str(assets.small())))
os.environ["USERLM_CACHE"] = str(ROOT / "no-cache")
# Nor does one need to trust a server: to load all certificates takes each client 20 ms.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(ROOT / "no-certificates")
NO_SANDBOX = "no sandbox"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real conversations; it is not part of the repository."""
    folder = Path(os.environ.get("USERLM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set USERLM_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def sandbox() -> Any:
    """A sandbox that isolates. Where there can be none, its tests are skipped, and fail under
    USERLM_REQUIRE_SANDBOX=1."""
    from userlm.sandbox.finding import find

    try:
        return find()
    except InputError as error:
        if os.environ.get("USERLM_REQUIRE_SANDBOX") == "1":
            pytest.fail(f"USERLM_REQUIRE_SANDBOX=1, and {error}")
        pytest.skip(f"{NO_SANDBOX}: {error}")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say that tests of the sandbox were skipped, and why: they should not be forgotten."""
    skipped = [one.longrepr[-1] for one in terminalreporter.stats.get("skipped", ())]
    reasons = [reason for reason in skipped if NO_SANDBOX in reason]
    if reasons:
        terminalreporter.write_line(f"{len(reasons)} tests: {reasons[0]}")


@pytest.fixture(scope="session")
def llama3(data: Path) -> Any:
    """The real Llama-3 tokenizer with the end token of microsoft/UserLM-8b: id 128256, not
    special."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    reserved = [f"<|reserved_special_token_{i}|>" for i in range(251)]
    controls = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *reserved[:2],
        "<|finetune_right_pad_id|>",
        reserved[2],
    ]
    controls += [
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ]
    controls += reserved[3 : 256 - len(controls) + 3]
    file = str(data / "llama3_tokenizer" / "tokenizer.model")
    backend = TikTokenConverter(file, extra_special_tokens=controls).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )
    tokenizer.add_tokens(["<|endconversation|>"])
    # The template of the released checkpoint, as its users describe it: one newline after a header,
    # no BOS, and a user turn left open whatever is asked for.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' + '\n' + "
        "m.content "
        "+ '<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>user<|end_header_id|>' }}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def small_model() -> Any:
    """The small model that `userlm fetch small` brings. Not to be trained: it is shared."""
    if not SMALL.is_dir():
        pytest.skip("no small model: run `userlm fetch small`")
    from userlm.models.local import LocalModel

    return LocalModel.load(str(SMALL), "cpu", "float32")


@pytest.fixture(scope="session")
def llama3_template(llama3: Any) -> Any:
    from userlm.models.templates import recognise
    from userlm.models.tokenization import text_encoder

    return recognise(llama3, text_encoder(llama3))


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A random Llama of two layers with a small tokenizer of its own. Not to be trained: it is
    shared."""
    from userlm.training.base import from_scratch, learn_tokenizer

    texts = [
        "how do i sort a list in python?",
        "plan me a trip to rome please",
        "thanks, that helps a lot",
    ]
    return from_scratch(
        learn_tokenizer(texts, 400), width=64, layers=2, seed=0, device="cpu"
    )


@pytest.fixture(scope="session")
def slides() -> Conversation:
    """Three exchanges on medicine and weight, the shape of the conversation in the paper's
    slides."""
    said = [
        "is it ok to take allertine for weeks",
        "Usually not.",
        "and does it make me gain weight",
    ]
    said += ["It can.", "so less sugar then?", "That helps."]
    turns = tuple(
        Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(said)
    )
    intent = INTENT_PREFIX + "learn how a drug and diet affect weight."
    return Conversation("slides", turns, intent, user="p1", ended=True)
