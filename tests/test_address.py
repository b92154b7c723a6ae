"""Addresses: what they name, and the errors if they name nothing."""

import time
import warnings
from dataclasses import replace

import pytest
from fake_server import completion, serving

from userlm import address, assets, inputs, loading
from userlm.address import LocalSettings, is_here, parse
from userlm.assistants import Clarifier, Oracle, Script
from userlm.rows import write_conversations
from userlm.types import (
    Conversation,
    Fact,
    InputError,
    ModelError,
    ModelWarning,
    NumberCheck,
    Reply,
    Sampling,
    Task,
)
from userlm.users import ReplayUser


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("traned:x", "'traned' is not a kind of user; did you mean trained:?"),
        ("microsoft/UserLM-8b", "write for instance trained:microsoft/UserLM-8b"),
        ("trained:", "say which after the colon"),
        ("trained:./nowhere", "there is no such folder, and it is not a hub id"),
        ("trained:openai:gpt-4o", "a model on this machine is needed here"),
        ("trained:userlm-smal", "no such model here; did you mean userlm-small?"),
        ("prompted:asistant-tiny", "did you mean assistant-tiny?"),
        (
            "prompted:opnai:gpt-4o",
            "'opnai' is not a kind of model; did you mean openai:?",
        ),
        (
            "prompted:http://localhost:8000/v1",
            "which model? write http://localhost:8000/v1#NAME",
        ),
        ("replay:nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("script:nowhere.txt", "nowhere.txt: cannot read the script"),
        ("py:nowhere:make", "No module named 'nowhere'"),
        ("py:json", "py:json: write MODULE:NAME"),
        ("py:json:laods", "has no attribute 'laods'); did you mean loads?"),
        ("gpt-4o", "did you mean prompted:openai:gpt-4o?"),
        ("prompted:gpt-4o", "did you mean openai:gpt-4o?"),
        ("prompted:claude-sonnet-4-5", "did you mean openai:claude-sonnet-4-5?"),
        ("trained:o3-mini", "no hub has this model"),
        ("my_sim.py", "a file of Python; did you mean py:my_sim:FUNCTION?"),
    ],
)
def test_a_wrong_address_says_what_was_meant(wrong, hint):
    with pytest.raises(InputError) as caught:
        loading.user(wrong)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("file", "meant"),
    [
        ("desk_bot.py", "py:desk_bot:FUNCTION"),
        ("./bots/desk_bot.py:answer", "py:bots.desk_bot:answer"),
        ("/home/me/desk_bot.py", "py:desk_bot:FUNCTION"),
    ],
)
def test_a_python_file_as_an_assistant_is_told_how_it_is_written(file, meant):
    with pytest.raises(InputError) as caught:
        loading.assistant(file)
    assert str(caught.value) == f"{file}: a file of Python; did you mean {meant}?"


def test_hub_ids_that_look_like_models_of_an_api_are_hub_ids():
    for name in ("gpt2", "openai/gpt-oss-20b", "o1ai/x", "openai-gpt"):
        assert loading.checkpoint(name) == name


@pytest.mark.parametrize(
    "wrong",
    [
        "http://me:secret@localhost/v1#m",
        "http://localhost/v1?key=secret#m",
        "http://me:secret@localhost/v1",  # and no model
    ],
)
def test_a_url_that_would_put_a_secret_into_a_run_folder_is_refused(wrong):
    with pytest.raises(InputError, match="put the key into USERLM_API_KEY") as caught:
        loading.assistant(wrong)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", ["HTTP://me:secret@localhost/v1#m", "foo://me:secret@localhost#m"]
)
def test_a_scheme_that_leads_to_no_model_is_refused_without_what_may_be_secret(wrong):
    with pytest.raises(InputError, match="write http://HOST:PORT/v1#NAME") as caught:
        loading.chat_model(wrong)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        "http://[::1#m",
        "http://münchen/v1#m",
        "http:///v1#m",
        "http://localhost:port/v1#m",
        "http://localhost:99999/v1#m",
        "http://local\thost/v1#m",
    ],
)
def test_a_url_that_is_none_says_how_it_is_written(wrong):
    with pytest.raises(
        InputError, match="is not the URL of a server; write http://HOST:PORT/v1#NAME"
    ):
        loading.chat_model(wrong)


@pytest.mark.parametrize("tail", ["\r", "\n", "\r\n", " "])
def test_white_space_around_a_key_is_stripped(tail, monkeypatch):
    monkeypatch.setenv("USERLM_API_KEY", f"{tail}secret-key{tail}")
    with serving([completion("ok")]) as server:
        loading.chat_model(f"{server.url}#m").chat(
            [{"role": "user", "content": "hi"}], Sampling()
        )
    assert [authorization for _, authorization, _ in server.requests] == [
        "Bearer secret-key"
    ]
    monkeypatch.setenv("OPENAI_API_KEY", tail)
    with pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"):
        loading.chat_model("openai:gpt-4o")


@pytest.mark.parametrize(
    "key",
    [
        "secret\rkey",
        "secret\nkey",
        "secret\x07key",
        "secret\x7fkey",
        "sécret",
        "secret\u200b",
    ],
)
def test_a_key_with_characters_that_no_key_has_is_refused_and_not_shown(
    key, monkeypatch
):
    for variable, model in (
        ("USERLM_API_KEY", "http://localhost/v1#m"),
        ("OPENAI_API_KEY", "openai:gpt-4o"),
    ):
        monkeypatch.setenv(variable, key)
        with pytest.raises(
            InputError, match=f"the environment variable {variable} has characters"
        ) as caught:
            loading.chat_model(model)
        assert "cret" not in str(caught.value) and key not in repr(caught.value)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (
            "openai:gpt-4o",
            "openai:gpt-4o cannot be scored: this API returns no log-probabilities of a prompt",
        ),
        ("prompted:openai:gpt-4o", "cannot be scored"),
        ("base:", "say which after the colon"),
        ("bass:x", "'bass' is not a kind of model to score; did you mean base:?"),
        ("trained:script:x", "a model on this machine is needed here"),
        ("base:./nowhere", "there is no such folder, and it is not a hub id"),
        (
            "http://localhost:8000/v1",
            "which model? write http://localhost:8000/v1#NAME",
        ),
        ("base:http://me:secret@localhost/v1#m", "put the key into USERLM_API_KEY"),
    ],
)
def test_a_wrong_address_of_a_model_to_score_says_what_was_meant(wrong, hint):
    with pytest.raises(InputError) as caught:
        loading.scorer(wrong)
    assert hint in str(caught.value) and "secret" not in str(caught.value)


def test_a_model_is_scored_in_the_form_of_its_address_and_a_bare_name_is_a_user_model(
    tiny, tmp_path, monkeypatch
):
    tiny.model.save_pretrained(tmp_path)
    monkeypatch.setattr(tiny.tokenizer, "chat_template", None)
    tiny.tokenizer.save_pretrained(tmp_path)
    for place, lead, ends in (
        (f"{tmp_path}", "\n", True),
        (f"base:{tmp_path}", " ", False),
    ):
        model, form, window = loading.scorer(place)
        assert (form.header_suffix, form.ends, window) == (
            lead,
            ends,
            tiny.context_length,
        )
        assert model.score([([7, 8], [False, True])]) == tiny.score(
            [([7, 8], [False, True])]
        )
    with pytest.raises(
        InputError,
        match=f"{tmp_path} has no chat template, .* score it as base:{tmp_path}",
    ):
        loading.scorer(f"prompted:{tmp_path}")
    with pytest.raises(InputError, match=f"{tmp_path} has its own"):
        loading.scorer(f"{tmp_path}", tokenizer=str(tmp_path))


def test_a_base_model_is_no_user_model_and_the_error_says_how_to_score_it(
    tiny, tmp_path
):
    import json

    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    parts["added_tokens"] = [
        token
        for token in parts["added_tokens"]
        if token["content"] != "<|endconversation|>"
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(
        InputError, match=f"is not a user model; score it as base:{tmp_path} or"
    ):
        loading.scorer(str(tmp_path))
    assert not loading.scorer(f"base:{tmp_path}")[1].ends


def test_a_misspelt_assistant_is_recognised():
    with pytest.raises(InputError, match="did you mean oracle"):
        loading.assistant("orcale")


def test_temperature_alone_changes_nothing_else(tmp_path):
    (tmp_path / "lines.txt").write_text("hi\n")
    plain = loading.user(f"prompted:script:{tmp_path}/lines.txt")
    warm = loading.user(f"prompted:script:{tmp_path}/lines.txt", temperature=0.5)
    assert warm.sampling == replace(plain.sampling, temperature=0.5)


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"):
        loading.assistant("openai:gpt-4o")


def test_a_folder_without_a_model_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"has no model \(no config.json\)"):
        loading.user(f"trained:{tmp_path}")


def test_users_and_assistants_are_found(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("hi\n\nbye\n")
    write_conversations(
        tmp_path / "log.jsonl", [Conversation("a").say("hi").say("hello")]
    )
    (tmp_path / "mine_abc.py").write_text(
        "from userlm.types import Reply\nclass U:\n  def reply(self, c): return "
        "Reply('mine')\nmake = U\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(loading.user("replay:log.jsonl"), ReplayUser)
    assert isinstance(loading.user("script:lines.txt").speaker, Script)
    assert loading.user("py:mine_abc:make").reply(Conversation()) == Reply("mine")
    assert (
        loading.assistant("replay:log.jsonl").reply(Conversation("a").say("hi")).text
        == "hello"
    )
    assert isinstance(loading.assistant("clarifier"), Clarifier)
    tasks = [Task("t", "x", (Fact("y"),), NumberCheck("1"))]
    assert isinstance(loading.assistant("oracle", tasks=tasks), Oracle)
    with pytest.raises(InputError, match="--tasks"):
        loading.assistant("oracle")


def test_a_human_is_asked(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "typed")
    for speaker in (loading.user("human"), loading.assistant("human")):
        assert speaker.reply(Conversation()).text == "typed"


@pytest.mark.parametrize(
    ("text", "form", "scheme", "url", "name"),
    [
        ("microsoft/UserLM-8b", "", "", "", "microsoft/UserLM-8b"),
        ("trained:runs/train", "trained", "", "", "runs/train"),
        ("prompted:openai:gpt-4o", "prompted", "openai", "", "gpt-4o"),
        ("trained:http://h:80/v1#a/b", "trained", "http", "http://h:80/v1", "a/b"),
        ("replay:log.jsonl", "", "replay", "", "log.jsonl"),
        ("py:module:name", "", "py", "", "module:name"),
        ("human", "", "human", "", "human"),
        ("C:/models/user", "", "", "", "C:/models/user"),
    ],
)
def test_an_address_has_a_form_a_scheme_a_url_and_a_name(text, form, scheme, url, name):
    found = address.parse(text)
    assert (found.form, found.scheme, found.url, found.name) == (
        form,
        scheme,
        url,
        name,
    )
    assert found.kind == (form or scheme) and found.model == text.removeprefix(
        f"{form}:"
    )


@pytest.mark.parametrize(
    "name",
    [
        "/no/model",
        "./model",
        "~/model",
        "a/b/c",
        "model.safetensors",
        "runs/model.gguf",
    ],
)
def test_a_path_that_does_not_exist_fails_before_the_hub_is_asked(name):
    with pytest.raises(
        InputError, match="there is no such folder, and it is not a hub id"
    ):
        loading.checkpoint(name)
    for on_the_hub in ("Qwen/Qwen2.5-0.5B", "t5-small"):
        assert loading.checkpoint(on_the_hub) == on_the_hub


def test_a_folder_may_have_the_name_of_a_user_that_needs_none():
    found = address.parse("trained:oracle")
    assert (found.form, found.model, found.scheme) == ("trained", "oracle", "")
    assert address.parse("oracle").scheme == "oracle"


@pytest.mark.parametrize(
    ("address", "is_model"),
    [
        ("trained:a", True),
        ("prompted:script:a", True),
        ("openai:a", True),
        ("a/b", True),
        *((f"{kind}:a", False) for kind in ("replay", "script", "py", "cmd", "bot")),
        *((kind, False) for kind in ("human", "single", "oracle", "clarifier")),
    ],
)
def test_calls_of_users_and_assistants_that_are_models_are_counted(address, is_model):
    assert parse(address).is_model is is_model


def test_a_model_folder_may_be_called_oracle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oracle").mkdir()
    (tmp_path / "oracle" / "config.json").write_text("{}")
    assert loading.checkpoint("oracle") == "oracle"
    with pytest.raises(InputError, match="clarifier: a model is needed here"):
        loading.checkpoint("clarifier")


def test_a_name_in_a_folder_that_is_here_is_never_sought_at_a_hub(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="runs/typo: there is no such folder"):
        loading.checkpoint("runs/typo")
    assert loading.checkpoint("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("host", "is_so"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST.", "app.localhost")),
        *((host, True) for host in ("127.0.0.1", "127.1", "0.0.0.0", "::1")),
        *((host, True) for host in ("::ffff:127.0.0.1", "2130706433", "0x7f.1")),
        *((host, False) for host in ("example.org", "127.0.0.1.example.org")),
        *((host, False) for host in ("localhost.example.org", "mylocalhost")),
        ("127.0.0.1 example.org", False),
        *((host, False) for host in ("10.1", "192.168.0.1", "::2", "")),
    ],
)
def test_this_machine_has_many_names(host, is_so):
    assert is_here(host) is is_so


# --- where openai: is asked ------------------------------------------------------------------------


@pytest.fixture
def openai_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_openai_is_asked_where_the_environment_says_and_that_is_said(
    openai_key, monkeypatch
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loading.chat_model("openai:m").url == "https://api.openai.com/v1/"
        monkeypatch.setenv("OPENAI_BASE_URL", " ")
        assert loading.chat_model("openai:m").url == "https://api.openai.com/v1/"
    with serving([completion("ok")]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.warns(
            ModelWarning, match=f"openai:m is asked at {server.url}, since"
        ):
            model = loading.chat_model("openai:m")
        assert model.chat([{"role": "user", "content": "hi"}], Sampling()).text == "ok"
    assert server.requests[0][:2] == ("/v1/chat/completions", "Bearer a-key")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:pw@h/v1", "put the key into OPENAI_API_KEY"),
        ("https://h/v1?key=k", "put the key into OPENAI_API_KEY"),
        ("h/v1", "is not the URL of a server"),
        ("ftp://h/v1", "is not the URL of a server"),
        ("http://", "is not the URL of a server"),
    ],
)
def test_a_wrong_openai_base_url_is_named(openai_key, monkeypatch, url, said):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    for use in (loading.chat_model, inputs.stamps):  # before it can be recorded
        with pytest.raises(InputError, match=f"OPENAI_BASE_URL: .*{said}"):
            use("openai:m")


# --- an address as a value ------------------------------------------------------------------------


def test_what_callers_ask_of_an_address_is_asked_of_its_value():
    parsed = {
        text: parse(text)
        for text in (
            "trained:runs/train",
            "prompted:openai:gpt-4o",
            "swapped:http://h:1/v1#org/m",
            "human",
            "py:module:name",
            "meta-llama/Llama-3.2-1B",
        )
    }
    assert [str(one) for one in parsed.values()] == list(parsed)
    assert [one.is_prompted for one in parsed.values()] == [0, 1, 1, 0, 0, 0]
    assert [one.is_person for one in parsed.values()] == [0, 0, 0, 1, 0, 0]
    assert [one.is_code for one in parsed.values()] == [0, 0, 0, 0, 1, 0]
    assert [one.is_remote for one in parsed.values()] == [0, 1, 1, 0, 1, 0]
    names = [one.short_name for one in parsed.values()]
    assert names == ["train", "gpt-4o", "m", "human", "name", "Llama-3.2-1B"]
    assert parse(parsed["human"]) is parsed["human"]


@pytest.mark.parametrize(
    "name",
    ["./typo", "../typo", "~/typo", "/typo", "runs/typo", "C:\\typo", "typo.gguf"],
)
@pytest.mark.parametrize(
    "load",
    [
        lambda name: loading.user(f"trained:{name}"),
        lambda name: loading.user(f"prompted:{name}"),
        loading.assistant,
        loading.chat_model,
        loading.scorer,
        loading.checkpoint,
    ],
)
def test_a_path_that_is_not_there_fails_at_once(load, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    begun = time.monotonic()
    with pytest.raises(InputError):
        load(name)
    assert time.monotonic() - begun < 20


def test_how_a_local_model_runs_is_handed_on(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "userlm.models.local.LocalModel.load",
        lambda path, device, dtype, batch: asked.append((device, dtype, batch)),
    )
    settings = LocalSettings(batch=3, device="cpu", dtype="float16")
    (tmp_path / "config.json").write_text("{}")
    loading.local_model(str(tmp_path), settings)
    assert asked == [("cpu", "float16", 3)]


def test_a_folder_of_ones_own_does_not_hide_a_model_of_ours(tmp_path, monkeypatch):
    (tmp_path / "userlm-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert loading.checkpoint("userlm-tiny") == str(assets.model("userlm-tiny"))
    (tmp_path / "userlm-tiny/config.json").write_text("{}")
    assert loading.checkpoint("userlm-tiny") == "userlm-tiny"


def test_one_key_goes_to_one_host_besides_this_machine(monkeypatch):
    monkeypatch.setattr(loading, "_key_hosts", {})
    monkeypatch.setenv("USERLM_API_KEY", "secret-key-of-a-test")

    def key_of(url: str) -> str | None:
        return loading.assistant(f"{url}#m").chat._key

    for _ in range(2):
        assert key_of("https://paid.example/v1") == "secret-key-of-a-test"
        for here in ("localhost", "127.0.0.1:8000", "127.1.2.3", "0.0.0.0:8000"):
            assert key_of(f"http://{here}/v1") == "secret-key-of-a-test"
        for other in ("bot.strangers-2.example", "10.0.0.7:8000", "127.0.0.1.example"):
            with pytest.raises(InputError, match=r"would go to paid\.example and to "):
                key_of(f"http://{other}/v1")
    monkeypatch.setenv("USERLM_API_KEY_BOT_STRANGERS_2_EXAMPLE", "")
    monkeypatch.setenv("USERLM_API_KEY_10_0_0_7", "another-key-of-a-test")
    assert key_of("http://bot.strangers-2.example/v1") is None
    assert key_of("http://10.0.0.7:8000/v1") == "another-key-of-a-test"
    with pytest.raises(
        InputError, match=r"_10_0_0_7 would go to 10\.0\.0\.7 and to 10-0"
    ):
        key_of("http://10-0.0.7/v1")
    monkeypatch.delenv("USERLM_API_KEY")
    monkeypatch.delenv("USERLM_API_KEY_BOT_STRANGERS_2_EXAMPLE")
    assert key_of("http://bot.strangers-2.example/v1") is None


def test_a_slow_server_may_be_given_more_time(monkeypatch):
    slow = replace(completion("hello"), hang=0.3)
    with serving(lambda body, n: slow) as server:
        address = f"{server.url}#m"
        monkeypatch.setenv("USERLM_TIMEOUT", " 0.05 ")
        late = loading.chat_model(address)
        late._retries = 0
        with pytest.raises(ModelError, match=r"0.05 seconds; USERLM_TIMEOUT allows"):
            late.chat([{"role": "user", "content": "hi"}], Sampling())
        monkeypatch.setenv("USERLM_TIMEOUT", "20")
        given = loading.chat_model(address)
        assert (
            given.chat([{"role": "user", "content": "hi"}], Sampling()).text == "hello"
        )


@pytest.mark.parametrize("wrong", ["0", "-1", "inf", "nan", "ten", "5 min"])
def test_a_timeout_that_is_none_is_named(wrong, monkeypatch):
    monkeypatch.setenv("USERLM_TIMEOUT", wrong)
    with pytest.raises(InputError, match="USERLM_TIMEOUT is"):
        loading.chat_model("http://localhost:1/v1#m")
