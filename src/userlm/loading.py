"""Users, assistants and models, from their addresses; see `address`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import chdir
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4
from warnings import warn

from userlm import assets, judges, prompts
from userlm.address import (
    ASSISTANTS,
    CONTEXT_LENGTH,
    DEFAULT,
    DETECTORS,
    FILE,
    HUB_ID,
    MODELS,
    SCORED,
    USERS,
    Address,
    LocalSettings,
    check_server,
    check_url,
    is_here,
    parse,
)
from userlm.assistants import (
    MAX_ANSWER_TOKENS,
    Clarifier,
    ModelAssistant,
    Oracle,
    ReplayAssistant,
    Script,
)
from userlm.bots import TIMEOUT, Asked, Bot, python_bot, read_output
from userlm.detectors import JudgeDetector
from userlm.guard import Guard
from userlm.imports import check_code_may_run, find_object
from userlm.metrics.forms import Form, base_form, prompted_form, trained_form
from userlm.rows import read_conversations
from userlm.runs import conversations_file
from userlm.thought import SpeechOnly
from userlm.types import (
    Chat,
    Complete,
    Conversation,
    Detector,
    InputError,
    ModelWarning,
    Sampling,
    Score,
    Speaker,
    Task,
)
from userlm.users import (
    PLACES,
    Human,
    PromptedUser,
    ReplayUser,
    SinglePrompt,
    TrainedUser,
    typed,
    with_sampling,
)

if TYPE_CHECKING:
    from userlm.flip import Encode, Offsets, Template
    from userlm.models.endpoint import EndpointModel
    from userlm.models.local import LocalModel
    from userlm.models.served import ServedModel


PROMPTS = {"plain": "user_plain"}
"""The prompts in the box that a prompted user can have in place of that of its form, by their
names."""

CLOSE = 0.85
"""How similar a name is to one of ours at least, if that is meant: `small` to `smal`, not to
`t5-small`, which is on the hub."""

PYTHON_FILE = re.compile(r"(?:\./)?(.+)\.py(?::(.+))?")

API_MODEL = re.compile(r"(chatgpt-|claude-|gemini-|gpt-[3-9]|grok-|o[1-9](-|$)).*")
"""Names of models that only an API has, without the owner that a hub id of today has; a hub asked
for one answers after a minute of tries. (`gpt2` is on the hub.)"""

OPENAI_BASE_URL = "OPENAI_BASE_URL"
"""The environment variable with the server of `openai:NAME`, as for every use of that client."""
PANGRAM_URL = "PANGRAM_URL"
"""The environment variable with another address of Pangram's API, such as that of version 3,
https://text.api.pangram.com/v3."""
SERVER_TIMEOUT = "USERLM_TIMEOUT"
"""The environment variable with the seconds that a model on a server has for an answer."""
SERVER_KEY = "USERLM_API_KEY"
PANGRAM_KEY = "PANGRAM_API_KEY"
PANGRAM = "https://text.external-api.pangram.com/task"


def user(
    address: str | Address,
    *,
    seed: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    end_threshold: float | None = None,
    guard: Guard | str | None = None,
    local: LocalSettings = DEFAULT,
    tokenizer: str | None = None,
    prompt: str | None = None,
) -> Speaker:
    """Return the user at an address; raise an `InputError` that suggests what was meant.

    Args:
        temperature, top_p, end_threshold, guard: see `users.with_sampling`; by default each user's
            own. A text is read by `Guard.parse`.
        local: how a model on this machine runs.
        tokenizer: the tokenizer of a trained model on a server; by default the one with the model's
            name.
        prompt: the prompt of a prompted user: a file, or the name of one in the box; by default
            that of its form.
    """
    parts = parse(address)
    if not parts.kind:
        raise _no_kind(parts)
    if parts.kind not in USERS:
        raise _unknown(address, parts.kind, USERS, "user")
    if isinstance(guard, str):
        guard = Guard.parse(guard)  # fail before loading a model, which takes minutes
    is_trained = parts.form in ("trained", "profile")
    if tokenizer and not (is_trained and parts.url):
        raise InputError(
            f"--tokenizer {tokenizer}: {address} has its own; the option is for a trained model on "
            "a server"
        )
    instructions = prompt_text(prompt, parts)
    speaker: Speaker
    match parts.kind:
        case "trained" | "profile":
            speaker = (
                _served_user(parts, tokenizer)
                if parts.url
                else _local_user(parts, local)
            )
        case "prompted" | "swapped":
            model = chat_model(parts.model, local)
            is_swapped = parts.form == "swapped"
            speaker = PromptedUser(model, swapped=is_swapped, prompt=instructions)
        case "replay":
            speaker = ReplayUser(_log(parts.name))
        case "single":
            speaker = SinglePrompt()
        case _:
            speaker = _speaker(parts)
    speaker = _as_sampled_by_default(speaker, parts)
    speaker = with_sampling(
        speaker,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        end_threshold=end_threshold,
        guard=guard,
    )
    # A model splits its thoughts off, and people do not think in tags.
    has_split = isinstance(speaker, TrainedUser | PromptedUser | ReplayUser | Human)
    return speaker if has_split else SpeechOnly(speaker)


def prompt_text(prompt: str | None, address: Address) -> str | None:
    """Return the prompt for a user at an address, with its places; `None` if none is given.

    Args:
        prompt: a file, or one of `PROMPTS`.

    Raises:
        InputError: if the user is not prompted, or the prompt has not the places of its form.
    """
    if prompt is None:
        return None
    known = PLACES.get(address.form)
    if known is None:
        raise InputError(
            f"--prompt {prompt}: {address} has no prompt; the option is for prompted:MODEL and "
            "swapped:MODEL"
        )
    if prompt in PROMPTS:
        text = prompts.text(PROMPTS[prompt])
    else:
        try:
            text = Path(prompt).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            names = ", ".join(PROMPTS)
            raise InputError(
                f"--prompt {prompt}: cannot read this prompt ({error}); give a file, or {names}"
            ) from None
    found = prompts.PLACE.findall(text)
    wanted = ", ".join(f"{{{place}}}" for place in known)
    for place in known:
        if place not in found:
            raise InputError(
                f"{prompt}: the place {{{place}}} is missing; a prompt for {address.form}: has "
                f"{wanted}"
            )
    for place in found:
        if place not in known:
            raise InputError(
                f"{prompt}: {{{place}}} is no place of a prompt for {address.form}:, which has "
                f"{wanted}"
            )
    return text


def _as_sampled_by_default(speaker: Speaker, address: Address) -> Speaker:
    """The user or assistant with the sampling of a model of ours, if it is one."""
    own: Mapping[str, Any] = assets.SAMPLING.get(address.name, {})
    if own and isinstance(speaker, TrainedUser | PromptedUser | ModelAssistant):
        return replace(speaker, sampling=replace(speaker.sampling, **own))
    return speaker


def _local_user(address: Address, local: LocalSettings) -> TrainedUser:
    from userlm.models.templates import user_template

    model = local_model(address.model, local)
    template = user_template(model.tokenizer, model.encode, address.model, address.form)
    if warning := model.check_user(template):
        warn(warning, ModelWarning, stacklevel=2)
    return _trained_user(model, template, model.context_length)


def served_model(
    address: Address, tokenizer: str | None
) -> tuple[ServedModel, Template]:
    """Return a trained model on a server, which is not asked yet, and the format of its
    tokenizer."""
    from userlm.models.served import ServedModel
    from userlm.models.templates import user_template
    from userlm.models.tokenization import text_functions

    server = _server(address)  # without a name, there is no tokenizer either
    loaded = _server_tokenizer(address, tokenizer)
    name = f"{address.name} ({tokenizer})" if tokenizer else address.name
    form = address.form or "trained"
    template = user_template(loaded, text_functions(loaded)[0], name, form)
    return ServedModel(server, loaded), template


def _served_user(address: Address, tokenizer: str | None) -> TrainedUser:
    model, template = served_model(address, tokenizer)
    context_length = model.context_length()
    if context_length is None:
        context_length = CONTEXT_LENGTH
        warn(
            f"{address.model}: the server does not report the model's context length; "
            f"{CONTEXT_LENGTH} tokens are assumed",
            ModelWarning,
            stacklevel=2,
        )
    return _trained_user(model, template, context_length)


def _trained_user(
    model: Complete, template: Template, context_length: int
) -> TrainedUser:
    # Turns must leave room for their context.
    max_tokens = min(Sampling().max_tokens, context_length // 4)
    return TrainedUser(model, template, context_length, Sampling(max_tokens=max_tokens))


def _server_tokenizer(address: Address, tokenizer: str | None) -> Any:
    from userlm.models.tokenization import load_tokenizer

    try:
        return load_tokenizer(str(model_folder(tokenizer or address.name)))
    except InputError as error:
        if tokenizer:
            raise
        raise InputError(
            f"{address.model}: the tokenizer of this model is needed; give it with --tokenizer "
            f"({error})"
        ) from None


def assistant(
    address: str | Address,
    *,
    tasks: Iterable[Task] = (),
    seed: int = 0,
    system: str | None = None,
    max_tokens: int = MAX_ANSWER_TOKENS,
    local: LocalSettings = DEFAULT,
    run: str = "",
    timeout: float = TIMEOUT,
) -> Speaker:
    """Return the assistant at an address; raise an `InputError` that suggests what was meant.

    Args:
        tasks: the tasks that `oracle` answers from.
        system: a system prompt for a model, or a bot that takes messages.
        max_tokens: the maximum length of a model's answer.
        local: how a model on this machine runs.
        run: what distinguishes this run from others, for the sessions of a bot; by default, a
            random text.
        timeout: seconds for an answer of a bot.
    """
    parts = parse(address)
    match parts.kind:
        case "oracle":
            known = {task.id: task for task in tasks}
            if not known:
                raise InputError("`oracle` answers from tasks; give some with --tasks")
            return Oracle(known)
        case "clarifier":
            return Clarifier()
        case "replay":
            return SpeechOnly(ReplayAssistant(_log(parts.name)))
        case "human":
            return _speaker(parts)
        case "script":
            return SpeechOnly(_speaker(parts))
        case "py" | "cmd" | "bot":
            return SpeechOnly(_bot(parts, system, run, timeout))
    _check_python(parts)
    near = get_close_matches(parts.model, ASSISTANTS, 1)
    if near and not Path(parts.model).exists():
        raise InputError(
            f"{parts.model!r} is not an assistant; did you mean {near[0]}?"
        )
    model = chat_model(parts, local, ASSISTANTS)
    sampling = Sampling(top_p=1.0, max_tokens=max_tokens)
    speaker = ModelAssistant(model, system, sampling, seed)
    return _as_sampled_by_default(speaker, parts)


def _no_kind(address: Address) -> InputError:
    """Return the error of a user that is named without its kind."""
    _check_python(address)
    meant = f"write for instance trained:{address} or prompted:{address}"
    if API_MODEL.fullmatch(address.model):
        meant = f"did you mean prompted:openai:{address}?"
    return InputError(f"'{address}' names no kind of user; {meant}")


def _check_python(address: Address) -> None:
    """Raise `InputError` if a speaker is a file of Python, which is given by its module."""
    if found := PYTHON_FILE.fullmatch(address.model):
        file, name = found.groups(default="FUNCTION")
        # Modules are found from the current folder, so one elsewhere is named without its path.
        steps = Path(file).parts
        module = ".".join(steps) if all(map(str.isidentifier, steps)) else steps[-1]
        raise InputError(
            f"{address}: a file of Python; did you mean py:{module}:{name}?"
        )


def _speaker(address: Address) -> Speaker:
    """Return a speaker that can be user or assistant: a script, Python code or a person."""
    match address.scheme:
        case "script":
            return Script.read(address.name)
        case "py":
            return _bot(address)
    return Human(typed)


def _bot(
    address: Address,
    system: str | None = None,
    run: str = "",
    timeout: float = TIMEOUT,
) -> Bot:
    check_code_may_run(str(address))
    ask: Callable[[Asked], object]
    match address.scheme:
        case "py":
            # A module may leave the folder to which paths are relative.
            with chdir("."):
                try:
                    found = find_object(address.name)
                except InputError as error:
                    raise InputError(f"py:{error}") from None
                ask = python_bot(found, str(address), system is not None)
        case "cmd":
            from userlm.models.command import Command

            command = Command(address.name, timeout)

            def ask(asked: Asked) -> object:
                return read_output(command.ask(asked.messages, asked.session))
        case _:
            from userlm.models.own_endpoint import OwnEndpoint

            endpoint = OwnEndpoint(address.name, timeout)

            def ask(asked: Asked) -> object:
                return endpoint.ask(asked.messages, asked.session)

    return Bot(str(address), ask, system, run or uuid4().hex, timeout)


def chat_model(
    address: str | Address,
    local: LocalSettings = DEFAULT,
    also: tuple[str, ...] = (),
) -> Chat:
    """Return the chat model at an address; raise an `InputError` that suggests what was meant.

    `also` lists other kinds of address that the error may suggest.
    """
    parts = parse(address)
    match parts.kind:
        case "":
            return local_model(parts.model, local)
        case "script":
            return Script.read(parts.name)
        case "openai":
            return _openai(parts)
        case "http" | "https":
            return _server(parts)
    if "://" in parts.model:  # it may contain a password
        raise InputError(
            f"{parts.kind}://: this scheme is not supported; write http://HOST:PORT/v1#NAME"
        )
    raise _unknown(parts, parts.kind, (*MODELS, *also), "model")


def detector(
    address: str | Address,
    *,
    human_label: str | None = None,
    max_tokens: int = judges.MAX_TOKENS,
    local: LocalSettings = DEFAULT,
) -> Detector:
    """Return the detector at an address; raise an `InputError` that suggests what was meant.

    Args:
        human_label: the label of `classifier:MODEL` that means: written by a person.
        max_tokens: the maximum length of an answer of `judge:MODEL`.
        local: how a model on this machine runs.
    """
    parts = parse(address)
    if parts.kind not in DETECTORS:
        raise _unknown(address, parts.kind, DETECTORS, "detector")
    if human_label and parts.kind != "classifier":
        raise InputError(
            f"--human-label {human_label}: {address} has no labels; the option is for "
            "classifier:MODEL"
        )
    if parts.kind == "pangram":
        return _pangram(parts)
    if parts.kind == "judge":
        chat = chat_model(parts.model, local)
        prompt = judges.read_prompt("naturalness")
        return JudgeDetector(judges.Judge(chat, prompt, parts.short_name, max_tokens))
    from userlm.models.classifier import Classifier

    name = checkpoint(parts.model)
    return Classifier.load(name, human_label, local.device, local.dtype)


def _pangram(address: Address) -> Detector:
    """The detector of Pangram Labs. If PANGRAM_URL is set, it is said: the key goes there."""
    from userlm.models.pangram import Pangram

    if not os.environ.get(PANGRAM_KEY, "").strip():
        raise InputError(
            f"{address} needs a key; set the environment variable {PANGRAM_KEY}"
        )
    url = pangram_url()
    if url:
        warn(
            f"{address} is asked at {url}, since {PANGRAM_URL} is set",
            ModelWarning,
            stacklevel=2,
        )
    server, _, path = (url or PANGRAM).rstrip("/").rpartition("/")
    endpoint = _endpoint(str(address), server, PANGRAM_KEY, "x-api-key")
    model = "" if address.name == "pangram" else address.name
    return Pangram(endpoint, f"/{path}", model or "default")


def scorer(
    address: str | Address,
    *,
    tokenizer: str | None = None,
    workers: int = 16,
    local: LocalSettings = DEFAULT,
    prompt: str | None = None,
) -> tuple[Score, Form, int | None]:
    """Return the model at an address that scores texts, the format in which it reads a
    conversation, and its context length in tokens (`None` if unknown).

    It raises an `InputError` if the address is wrong or the model cannot score.

    Args:
        tokenizer: the tokenizer of a model on a server; by default the one with the model's name.
        workers: the number of concurrent requests to a server.
        local: how a model on this machine runs.
        prompt: the prompt of a prompted user; see `user`.
    """
    parts = parse(address)
    form = parts.form or "trained"
    instructions = prompt_text(prompt, parts)
    if parts.scheme == "openai":
        raise InputError(
            f"{address} cannot be scored: this API returns no log-probabilities of a prompt, and "
            f"they are never estimated; give a model on this machine, or one that vLLM serves "
            "(http://HOST:PORT/v1#NAME)"
        )
    for kind, known in ((form, SCORED), (parts.scheme, ("", *MODELS))):
        if kind not in known:
            raise _unknown(address, kind, (*SCORED, "http", "https"), "model to score")
    if parts.url:
        from userlm.models.prompt_logprobs import PromptLogprobs
        from userlm.models.tokenization import text_functions

        server = PromptLogprobs(_server(parts), workers)
        loaded = _server_tokenizer(parts, tokenizer)
        encode, offsets, _ = text_functions(loaded)
        shown = _form(form, parts.name, loaded, encode, offsets, instructions)
        return server, shown, None
    if tokenizer:
        raise InputError(
            f"--tokenizer {tokenizer}: {parts.model} has its own; the option is for a model on a "
            f"server"
        )
    model = local_model(parts.model, local)
    shown = _form(
        form, parts.model, model.tokenizer, model.encode, model.offsets, instructions
    )
    return model, shown, model.context_length


def _form(
    form: str,
    name: str,
    tokenizer: Any,
    encode: Encode,
    offsets: Offsets,
    instructions: str | None,
) -> Form:
    from userlm.models.templates import text_start, user_template
    from userlm.models.tokenization import chat_ids

    if form == "base":
        return base_form(encode, offsets, text_start(tokenizer))
    if form == "prompted":
        if not tokenizer.chat_template:
            raise InputError(
                f"{name} has no chat template, so it cannot be prompted; score it as base:{name}"
            )
        close = tokenizer.eos_token_id
        today = "26 Jul 2024"  # for templates with a date: the same rows every day
        chat = partial(chat_ids, tokenizer, encode, name=name, today=today)
        end = 0 if close is None else close
        return prompted_form(encode, offsets, chat, end, instructions)
    advice = f"score it as base:{name} or, if it chats, as prompted:{name}"
    return trained_form(user_template(tokenizer, encode, name, form, advice), offsets)


def local_model(name: str, local: LocalSettings = DEFAULT) -> LocalModel:
    """Return the model in a folder or with a hub id. It is loaded once and shared, so do not train
    it."""
    path = checkpoint(name)
    stamp = []
    for folder in model_folders(path):
        for file in sorted(folder.glob("*")):
            stat = file.stat()
            stamp.append((str(file), stat.st_mtime_ns, stat.st_size))
    return _load(path, local, tuple(stamp))


@cache
def _load(
    path: str, local: LocalSettings, stamp: tuple[tuple[str, int, int], ...]
) -> LocalModel:
    """Load a model; `stamp` changes if the weights in the same folders change."""
    return load_model(path, local)


def load_model(path: str, local: LocalSettings) -> LocalModel:
    """Return the model in a folder or with a hub id, or that of an adapter merged into its base
    model."""
    from userlm.models.adapters import check_base, merge, read_adapter
    from userlm.models.local import LocalModel
    from userlm.models.tokenization import load_tokenizer

    adapter = read_adapter(Path(path))
    if adapter is None:
        return LocalModel.load(path, local.device, local.dtype, batch=local.batch)
    folder = checkpoint(adapter.base)
    check_base(adapter, Path(folder))
    model = load_model(folder, local).model
    merge(model, adapter)
    return LocalModel(model, load_tokenizer(path), path, batch=local.batch)


def checkpoint(name: str) -> str:
    """Return the folder or hub id of a model; raise `InputError` if the name can be neither."""
    kind = parse(name).kind
    if kind and not Path(name).is_dir():
        what = "a model on this machine" if kind in MODELS else "a model"
        raise InputError(
            f"{name}: {what} is needed here: a folder, or a hub id such as microsoft/UserLM-8b"
        )
    folder = model_folder(name)
    if folder.is_dir():
        if not _has_model(folder):
            raise InputError(f"{name}: this folder has no model (no config.json)")
        return str(folder)
    if name in assets.SMALL:
        raise InputError(f"{name} is not here yet: run `userlm fetch small` first")
    near = get_close_matches(name, assets.NAMES, 1, CLOSE)
    if near:
        raise InputError(
            f"{name}: there is no such model here; did you mean {near[0]}?"
        )
    if API_MODEL.fullmatch(name):
        raise InputError(
            f"{name}: there is no such folder, and no hub has this model; did you mean "
            f"openai:{name}? (if it is not at OpenAI, {OPENAI_BASE_URL} says where)"
        )
    # A name in a folder that is here is a path; asking a hub for it would take a minute.
    in_a_folder_here = "/" in name and Path(name).expanduser().parent.is_dir()
    if in_a_folder_here or not HUB_ID.fullmatch(name) or FILE.search(name):
        raise InputError(
            f"{name}: there is no such folder, and it is not a hub id (owner/name)"
        )
    return name


def model_folder(name: str) -> Path:
    """Return the folder of this name, the `model/` in a training run, or that of a model with a
    name of ours, which may have to be fetched; that too where a folder of this name has no model.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError:
        raise InputError(
            f"{name}: there is no such home folder; write the full path"
        ) from None
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    is_ours = name in assets.NAMES and not _has_model(folder)
    return assets.model(name) if is_ours else folder


def _has_model(folder: Path) -> bool:
    configs = (folder / "config.json", folder / "adapter_config.json")
    return any(path.is_file() for path in configs)


def model_folders(name: str) -> list[Path]:
    """Return the folder of a model; for an adapter, followed by those of its base model."""
    folder = model_folder(name)
    if not (folder / "adapter_config.json").is_file():
        return [folder]
    from userlm.models.adapters import read_adapter  # loads torch

    adapter = read_adapter(folder)
    return [folder, *(model_folders(adapter.base) if adapter else ())]


def small_or_tiny(kind: str) -> str:
    """Return the name of the small model of this kind, such as `assistant`; if it is not here, that
    of the tiny one that steps in, and say so."""
    small = f"{kind}-small"
    # An adapter is in the package, but its base model may not be here.
    if model_folder(small).is_dir() and assets.small().is_dir():
        return small
    warn(
        f"{small} is not here, so {kind}-tiny steps in, a toy; `userlm fetch small` brings it",
        ModelWarning,
        stacklevel=2,
    )
    return f"{kind}-tiny"


def _server(address: Address) -> EndpointModel:
    """The model at `http://HOST:PORT/v1#NAME`."""
    check_server(address)
    return _endpoint(address.name, address.url, _key_variable(address.url))


_key_hosts: dict[str, str] = {}
"""The host that got the key in each environment variable: another one is another party."""


def _key_variable(url: str) -> str:
    """Return the environment variable with the key for a server: that of its host alone, or the one
    for all, which goes to one host besides this machine.

    Raises:
        InputError: if the key would go to a second host. Of two whose names differ in signs alone,
            the variables are the same.
    """
    host = (urlsplit(url).hostname or "").lower()
    own = f"{SERVER_KEY}_{re.sub('[^A-Z0-9]+', '_', host.upper())}"
    is_own = own in os.environ  # perhaps empty, for a server without a key
    variable = own if is_own else SERVER_KEY
    if key_in(variable) is None or (is_here(host) and not is_own):
        return variable
    first = _key_hosts.setdefault(variable, host)
    if host != first:
        advice = f"set {own} to the key of the latter (or to nothing, if it needs none)"
        if is_own:
            advice = "ask them in runs of their own"
        raise InputError(
            f"the key in {variable} would go to {first} and to {host}; {advice}"
        )
    return variable


def openai_base_url() -> str:
    """Return the URL in OPENAI_BASE_URL, which the `openai` client honours; see `_url_in`."""
    return _url_in(OPENAI_BASE_URL, "OPENAI_API_KEY")


def pangram_url() -> str:
    """Return the URL in PANGRAM_URL; see `_url_in`."""
    return _url_in(PANGRAM_URL, PANGRAM_KEY)


def _url_in(variable: str, key_variable: str) -> str:
    """Return the URL in an environment variable; empty if it is not set.

    Raises:
        InputError: if it is not a URL, or has secrets.
    """
    url = os.environ.get(variable, "").strip()
    try:
        if url:
            check_url(url, key_variable)
    except InputError as error:
        raise InputError(f"the environment variable {variable}: {error}") from None
    return url


def _openai(address: Address) -> EndpointModel:
    """The model at `openai:NAME`. If that is not at OpenAI, it is said: the key goes there."""
    url = openai_base_url()
    if url:
        warn(
            f"{address.model} is asked at {url}, since {OPENAI_BASE_URL} is set",
            ModelWarning,
            stacklevel=2,
        )
    return _endpoint(address.name, url or None, "OPENAI_API_KEY")


def _endpoint(
    name: str, url: str | None, variable: str, key_header: str = "Authorization"
) -> EndpointModel:
    from userlm.models.endpoint import EndpointModel

    key = key_in(variable)
    timeout = _timeout()
    if key is None and url is None:
        raise InputError(
            f"openai:{name} needs a key; set the environment variable {variable}"
        )
    return EndpointModel(
        name,
        url,
        key,
        timeout=timeout,
        timeout_setting=SERVER_TIMEOUT,
        key_variable=variable,
        key_header=key_header,
    )


def _timeout() -> float:
    """Return the seconds that a model on a server has for an answer; see `SERVER_TIMEOUT`."""
    given = os.environ.get(SERVER_TIMEOUT, "").strip()
    try:
        seconds = float(given or TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(
            f"the environment variable {SERVER_TIMEOUT} is {given!r}; give seconds, such as 600"
        )
    return seconds


def key_in(variable: str) -> str | None:
    """Return the key in an environment variable; `None` if there is none.

    Raises:
        InputError: if it can be no key.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the environment variable {variable} has characters that are not allowed in a key; "
            f"set it again"
        )
    return key or None


def _unknown(
    address: str | Address, kind: str, known: tuple[str, ...], what: str
) -> InputError:
    near = get_close_matches(kind, known, 1)
    hint = f"did you mean {near[0]}:?" if near else f"known are {', '.join(known)}"
    return InputError(f"{address}: {kind!r} is not a kind of {what}; {hint}")


def _log(path: str) -> dict[str, Conversation]:
    logs = read_conversations(conversations_file(Path(path)))
    return {conversation.id: conversation for conversation in logs}
