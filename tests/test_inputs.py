"""What a run depends on behind its addresses."""

import os
from pathlib import Path

import pytest

from userlm import Conversation, inputs, loading, prompts
from userlm.json_files import write_json
from userlm.rows import write_conversations
from userlm.runs import Run
from userlm.types import InputError

MODEL = (
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, and files that are none of it; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in (*MODEL, "README.md", ".lock"):
        Path(name).write_text(name)
    templates = Path("additional_chat_templates")
    templates.mkdir()
    (templates / "tools.jinja").write_text("x")
    return tmp_path


def names(address, tokenizer=None):
    return [path.name for path in inputs.files(address, tokenizer)]


@pytest.mark.parametrize("form", ["", "base:", "trained:", "prompted:", "swapped:"])
def test_a_model_rests_on_weights_configuration_tokenizer_and_templates(folder, form):
    assert names(f"{form}{folder}") == ["tools.jinja", *MODEL]


def test_a_model_on_a_server_rests_on_its_tokenizer_here(folder):
    url = "trained:http://h/v1#owner/model"
    assert names(url) == []
    assert names(url, str(folder)) == ["tools.jinja", *MODEL]
    assert "tokenizer.json" in names("trained:http://h/v1#userlm-tiny")
    # A run that is called as the model, such as the one that asks it.
    run = folder / "gpt"
    run.mkdir()
    (run / "results.json").write_text("{}")
    assert names("http://h/v1#gpt") == []


def test_a_log_a_script_or_a_module_is_its_file_and_a_hub_id_is_none(folder):
    assert inputs.files("replay:logs.jsonl") == [Path("logs.jsonl")]
    assert inputs.files("prompted:script:lines.txt") == [Path("lines.txt")]
    assert names("owner/model") == names("human") == names("openai:gpt-x") == []
    Path("speakers.py").write_text("raise SystemExit")
    package = Path("spoken/inner")
    package.mkdir(parents=True)
    for file in ("spoken/__init__.py", "spoken/words.py", "spoken/inner/more.py"):
        Path(file).write_text("raise SystemExit")
    assert names("py:speakers:Speaker") == ["speakers.py"]
    assert names("py:spoken:Speaker") == ["__init__.py", "words.py"]
    assert names("py:spoken.words:Speaker") == ["words.py"]
    assert names("py:spoken.inner.more:Speaker") == ["more.py"]
    Path("spoken/__init__.py").rename(
        "loose.py"
    )  # no package, but a folder all the same
    assert names("py:spoken.words:Speaker") == ["words.py"]
    for none in ("py:nowhere_at_all:X", "py:spoken.none:X", "py:sys:X", "py::X"):
        assert names(none) == []


CODE = {
    "bot.py": "import helper, json, os.path\nfrom kit.tools import use\ndef answer(t): ...",
    "helper.py": "def late():\n    from . import nothing\n    import deep.er.words as w",
    "deep/__init__.py": "",
    "deep/er/__init__.py": "from . import same\nfrom ..up import x",
    "deep/er/same.py": "",
    "deep/er/words.py": "import bot",
    "deep/up.py": "from ...... import far",
    "kit/tools.py": "this is no Python",
    "kit/other.py": "",
    "json.py.txt": "",
}


def test_code_rests_on_the_code_beside_it_that_it_imports_and_on_no_other(folder):
    for name, text in CODE.items():
        path = Path("app", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    used = {name for name in CODE if name not in ("kit/other.py", "json.py.txt")}
    os.chdir("app")
    for address in ("py:bot:answer", "cmd:python -m bot", "cmd:python bot.py --fast"):
        found = [Path(path).resolve() for path in inputs.files(address)]
        assert len(found) == len(set(found))
        assert {str(path.relative_to(Path.cwd())) for path in found} == used, address
    os.chdir("..")
    assert "helper.py" in names("cmd:python app/bot.py")
    assert names(f"cmd:cat app/helper.py '{'Be brief. ' * 99}'")[:1] == ["helper.py"]
    # What is installed imports much, and has a version.
    assert names("py:pytest:main") == ["__init__.py", "__main__.py"]


@pytest.mark.parametrize("changed", [*MODEL, "additional_chat_templates/tools.jinja"])
def test_a_run_is_not_resumed_with_another_model(folder, changed):
    def begin():
        return Run.open(folder / "out", "respond", {}, inputs.files(str(folder)))

    begin().path("turns.jsonl").touch()
    begin()
    Path(changed).write_text("another")
    with pytest.raises(InputError, match=f"{changed} changed now"):
        begin()


@pytest.mark.parametrize("changed", MODEL)
def test_a_run_with_an_adapter_is_not_resumed_with_another_base_model(folder, changed):
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(folder),
        "lora_alpha": 2,
        "r": 2,
    }
    (folder / "adapter").mkdir()
    write_json(folder / "adapter" / "adapter_config.json", config)

    def begin():
        return Run.open(folder / "out", "respond", {}, inputs.files("trained:adapter"))

    begin().path("turns.jsonl").touch()
    begin()
    Path(changed).write_text("another")
    with pytest.raises(InputError, match=f"{changed} changed now"):
        begin()


def test_where_openai_is_asked_belongs_to_a_run_that_asks_it(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert inputs.stamps("openai:gpt-x", "clarifier") == {}
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert inputs.stamps("human", "userlm-tiny", "http://h/v1#m") == {}
    found = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    assert inputs.stamps("human", "openai:gpt-x") == found
    assert found.items() <= inputs.stamps("human", "prompted:openai:gpt-x").items()


@pytest.mark.parametrize("form", ["prompted", "swapped"])
def test_a_run_is_not_resumed_with_other_prompts_of_a_prompted_user(
    form, tmp_path, monkeypatch
):
    def begin():
        stamps = inputs.stamps(f"{form}:http://h/v1#m")
        return Run.open(tmp_path / "out", "respond", {}, stamps=stamps)

    begin().path("turns.jsonl").touch()
    begin()
    monkeypatch.setattr(prompts, "hashes", lambda beginning: {"user_first.md": "new"})
    with pytest.raises(InputError, match=r"user_first\.md"):
        begin()
    assert inputs.stamps("trained:http://h/v1#m", "clarifier") == {}


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/v1?api_key=SECRET#m",
        "trained:http://127.0.0.1:9/v1?api_key=SECRET#m",
        "prompted:http://bob:SEC#RET@h/v1#m",
    ],
)
def test_a_url_with_a_secret_is_refused_before_it_is_recorded(address):
    with pytest.raises(InputError, match="not accepted") as caught:
        inputs.files(address)
    assert "SEC" not in str(caught.value)


def test_a_name_of_a_model_may_have_an_at_sign():
    assert inputs.files("http://127.0.0.1:9/v1#@cf/meta/llama") == []


def test_a_folder_to_replay_is_that_of_a_run(tmp_path):
    talk = Conversation("c").say("hi").say("yes?")
    write_conversations(tmp_path / "test.jsonl", [talk])
    address = f"replay:{tmp_path}"
    assert loading.user(address).reply(Conversation("c")).text == "hi"
    asked = Conversation("c").say("hi")
    assert loading.assistant(address).reply(asked).text == "yes?"
    assert inputs.files(address) == [tmp_path / "test.jsonl"]
    with pytest.raises(InputError, match="does not exist; give a run folder or a file"):
        loading.user(f"replay:{tmp_path}/no")
