"""Addresses: how users, assistants and models are named on the command line.

    users       trained:MODEL  profile:MODEL  prompted:MODEL  swapped:MODEL
                replay:FILE  script:FILE  human  py:MODULE:NAME
    assistants  MODEL  oracle  clarifier  replay:FILE  script:FILE  human  py:MODULE:NAME
    models      a folder or hub id  userlm-tiny, assistant-tiny, base-tiny (embedded)
                openai:NAME  http://HOST:PORT/v1#NAME  script:FILE
    to score    MODEL or trained:MODEL  profile:MODEL  base:MODEL  prompted:MODEL,
                here or at http://HOST:PORT/v1#NAME

`trained:microsoft/UserLM-8b` is the released checkpoint; `profile:wangkevin02/USP` takes the intent
as a profile. `prompted:` and `swapped:` are the two forms in which an assistant is asked to play
the user. Keys come from the environment: OPENAI_API_KEY for `openai:`, USERLM_API_KEY for a server
at a URL; they are not written anywhere.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from warnings import warn

from userlm import assets
from userlm.assistants import Clarifier, ModelAssistant, Oracle, ReplayAssistant, Script
from userlm.guard import Guard
from userlm.metrics.forms import Form, base_form, prompted_form, trained_form
from userlm.rows import read_conversations
from userlm.types import (
    Chat,
    Complete,
    Conversation,
    InputError,
    ModelWarning,
    Sampling,
    Score,
    Speaker,
    Task,
)
from userlm.users import Human, PromptedUser, ReplayUser, TrainedUser, with_sampling

if TYPE_CHECKING:
    from userlm.flip import Encode, Offsets, Template
    from userlm.models.endpoint import EndpointModel
    from userlm.models.local import LocalModel

USERS = ("trained", "profile", "prompted", "swapped", "replay", "script", "human", "py")
ASSISTANTS = ("oracle", "clarifier", "replay", "script", "human", "py")
MODELS = ("openai", "http", "https", "script")
FORMS = ("trained", "profile", "base", "prompted")

BATCH = 32
"""Conversations that a model on this machine serves at once, at most."""

CONTEXT_LENGTH = 8192
"""Tokens, for a model whose server does not tell; that of microsoft/UserLM-8b."""

Ask = Callable[[Conversation], str | None]


def user(
    address: str,
    *,
    seed: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    end_threshold: float | None = None,
    guard: Guard | str | None = None,
    batch: int = BATCH,
    tokenizer: str | None = None,
    ask: Ask | None = None,
) -> Speaker:
    """The user at an address.

    Args:
        temperature, top_p, end_threshold, guard: see `users.with_sampling`; by default each user's
            own. A text is read as a guard by `Guard.parse`.
        tokenizer: of a trained model on a server; by default what has the model's name.
        batch: how many conversations a model on this machine serves at once.
        ask: how a `human` is asked; by default a prompt in the terminal.

    Raises:
        InputError: if the address is wrong; it says what was meant.
    """
    scheme, rest = _split(address, USERS, "user")
    if isinstance(guard, str):
        guard = Guard.parse(guard)  # before minutes go into loading a model
    if scheme == "human":
        return Human(ask or _ask)
    _need(rest, address, "user")
    if tokenizer and not (scheme in ("trained", "profile") and _is_server(rest)):
        raise InputError(
            f"--tokenizer {tokenizer}: {address} brings its own; it is for a trained model on a "
            "server"
        )
    speaker: Speaker
    if scheme in ("trained", "profile"):
        speaker = (
            _served_user(rest, scheme, tokenizer)
            if _is_server(rest)
            else _local_user(rest, scheme, batch)
        )
    elif scheme in ("prompted", "swapped"):
        speaker = PromptedUser(chat_model(rest, batch=batch), swapped=scheme == "swapped")
    elif scheme == "replay":
        speaker = ReplayUser(_log(rest))
    else:
        speaker = Script(_lines(rest)) if scheme == "script" else _python(rest)
    return with_sampling(
        speaker,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        end_threshold=end_threshold,
        guard=guard,
    )


def _local_user(name: str, form: str, batch: int) -> TrainedUser:
    from userlm.models.templates import user_template

    model = local_model(name, batch=batch)
    template = user_template(model.tokenizer, model.encode, name, form)
    if warning := model.check_user(template):
        warn(warning, ModelWarning, stacklevel=2)
    return _trained_user(model, template, model.context_length)


def _served_user(place: str, form: str, tokenizer: str | None) -> TrainedUser:
    from userlm.models.local import text_functions
    from userlm.models.served import ServedModel
    from userlm.models.templates import user_template

    words, served = _server_tokenizer(place, tokenizer), place.partition("#")[2]
    name = f"{served} ({tokenizer})" if tokenizer else served
    template = user_template(words, text_functions(words)[0], name, form)
    model = ServedModel(_server(place), words)
    context_length = model.context_length()
    if context_length is None:
        assumed = (
            f"{place}: the server does not tell the model's "
            "context_length; "
            f"{CONTEXT_LENGTH} tokens are assumed"
        )
        warn(assumed, ModelWarning, stacklevel=2)
    return _trained_user(model, template, context_length or CONTEXT_LENGTH)


def _trained_user(model: Complete, template: Template, context_length: int) -> TrainedUser:
    longest = min(
        Sampling().max_tokens, context_length // 4
    )  # a small context_length needs room for the context
    return TrainedUser(model, template, context_length, Sampling(max_tokens=longest))


def _server_tokenizer(place: str, tokenizer: str | None) -> Any:
    from userlm.models.local import load_tokenizer

    try:
        return load_tokenizer(str(_model_folder(tokenizer or place.partition("#")[2])))
    except InputError as error:
        if tokenizer:
            raise
        raise InputError(
            f"{place}: its tokenizer is needed here; give it with --tokenizer ({error})"
        ) from None


def _is_server(place: str) -> bool:
    return (_scheme(place) or "") in ("http", "https")


def assistant(
    address: str,
    *,
    tasks: Iterable[Task] = (),
    seed: int = 0,
    system: str | None = None,
    batch: int = BATCH,
    ask: Ask | None = None,
) -> Speaker:
    """The assistant at an address.

    Args:
        tasks: what `oracle` may answer from.
        system: a system prompt for a model.
        batch: how many conversations a model on this machine serves at once.

    Raises:
        InputError: if the address is wrong; it says what was meant.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "oracle":
        known = {task.id: task for task in tasks}
        if not known:
            raise InputError("the assistant `oracle` answers from tasks; give some with --tasks")
        return Oracle(known)
    if scheme == "clarifier":
        return Clarifier()
    if scheme == "human":
        return Human(ask or _ask)
    if scheme == "replay":
        return ReplayAssistant(_log(rest))
    if scheme == "script":
        return Script(_lines(rest))
    if scheme == "py":
        return _python(rest)
    if not Path(address).exists() and (near := get_close_matches(address, ASSISTANTS, 1)):
        raise InputError(f"{address!r} is no assistant; did you mean {near[0]}?")
    return ModelAssistant(chat_model(address, ASSISTANTS, batch), system=system, seed=seed)


def chat_model(address: str, also: tuple[str, ...] = (), batch: int = BATCH) -> Chat:
    """The chat model at an address.

    Raises:
        InputError: if the address is wrong; it says what was meant.
    """
    scheme = _scheme(address)
    if scheme is None:
        return local_model(address, batch=batch)
    rest = address.partition(":")[2]
    if scheme == "script":
        return Script(_lines(rest))
    if scheme == "openai":
        return _endpoint(rest, None, "OPENAI_API_KEY")
    if scheme in ("http", "https"):
        return _server(address)
    if "://" in address:  # it may hold a password
        raise InputError(
            f"{scheme}://: no model is reached by that; write http://HOST:PORT/v1#NAME"
        )
    raise _unknown(address, scheme, (*MODELS, *also), "model")


def scorer(
    address: str, *, tokenizer: str | None = None, workers: int = 16, device: str | None = None
) -> tuple[Score, Form, int | None]:
    """The model at an address as one that scores texts, how it is shown a conversation, and its
    context_length in tokens (`None`: not known).

    Args:
        tokenizer: of a model on a server; by default what has the model's name.
        workers: rows at once, on a server.
        device: of a model on this machine.

    Raises:
        InputError: if the address is wrong, or its model cannot score; it says what was meant.
    """
    scheme, colon, rest = address.partition(":")
    form, place = (scheme, rest) if colon and scheme in FORMS else (FORMS[0], address)
    _need(place, address, "model")
    scheme = _scheme(place) or ""
    if scheme == "openai":
        raise InputError(
            f"{address} is not scorable: this API gives no log-probabilities of a prompt, and "
            "they are never "
            "estimated; give a model on this machine, or one that vLLM serves "
            "(http://HOST:PORT/v1#NAME)"
        )
    if _is_server(place):
        from userlm.models.local import text_functions
        from userlm.models.prompt_logprobs import PromptLogprobs

        server, name = _server(place), place.partition("#")[2]
        words = _server_tokenizer(place, tokenizer)
        encode, offsets, _ = text_functions(words)
        return PromptLogprobs(server, workers), _form(form, name, words, encode, offsets), None
    if scheme and scheme not in MODELS:
        raise _unknown(address, scheme, (*FORMS, "http", "https"), "model to score")
    if tokenizer:
        raise InputError(
            f"--tokenizer {tokenizer}: {place} brings its own; it is for a model on a server"
        )
    model = local_model(place, device)
    return (
        model,
        _form(form, place, model.tokenizer, model.encode, model.offsets),
        model.context_length,
    )


def _form(form: str, name: str, tokenizer: Any, encode: Encode, offsets: Offsets) -> Form:
    from userlm.models.local import chat_ids
    from userlm.models.templates import user_template

    if form == "base":
        return base_form(encode, offsets, tokenizer.bos_token_id)
    if form == "prompted":
        if not tokenizer.chat_template:
            raise InputError(
                f"{name} has no chat template, so it cannot be prompted; score it as base:{name}"
            )
        close = tokenizer.eos_token_id
        chat = partial(
            chat_ids, tokenizer, encode, name=name, today="26 Jul 2024"
        )  # the same rows every day
        return prompted_form(encode, offsets, chat, 0 if close is None else close)
    advice = f"score it as base:{name} or, if it chats, as prompted:{name}"
    return trained_form(user_template(tokenizer, encode, name, form, advice), offsets)


def files(address: str) -> list[Path]:
    """The files on this machine whose contents an address stands for: logs, scripts, weights."""
    place = model_place(address)
    scheme, colon, rest = place.partition(":")
    if colon and scheme in ("replay", "script"):
        return [Path(rest)]
    return sorted(_model_folder(place).glob("*.safetensors"))


def model_place(address: str) -> str:
    """Where its model is: the address without the `trained:`, `prompted:` or the like in front."""
    scheme, colon, rest = address.partition(":")
    return rest if colon and scheme in (*FORMS, "swapped") else address


def local_model(name: str, device: str | None = None, batch: int = BATCH) -> LocalModel:
    """The local model in a folder or with a hub id; the same weights are loaded once. It is not to
    be trained."""
    path = checkpoint(name)
    folder = Path(path)
    stats = (
        [(file.name, file.stat()) for file in sorted(folder.iterdir())] if folder.is_dir() else []
    )
    return _load(
        path, device, batch, tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats)
    )


@cache
def _load(
    path: str, device: str | None, batch: int, stamp: tuple[tuple[str, int, int], ...]
) -> LocalModel:
    """`stamp` tells the weights of today from those that stood in the same folder before."""
    from userlm.models.local import LocalModel

    return LocalModel.load(path, device, batch=batch)


def checkpoint(name: str) -> str:
    """The folder or hub id that a name stands for; the folder of a training run stands for its
    `model/`.

    Raises:
        InputError: if it can be neither.
    """
    if (scheme := _scheme(name)) is not None:
        what = "a model on this machine" if scheme in MODELS else "a model"
        raise InputError(
            f"{name}: {what} is wanted here: a folder, or a hub id such as microsoft/UserLM-8b"
        )
    folder = _model_folder(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{name}: this folder holds no model (no config.json)")
    elif not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
        raise InputError(f"{name}: there is no such folder, and it is no hub id (owner/name)")
    return str(folder) if folder.is_dir() else name


def _model_folder(name: str) -> Path:
    """The folder of that name, `model/` in it if it is the folder of a training run, or an embedded
    model's."""
    folder = Path(name).expanduser()
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    return assets.model(name) if name in assets.MODELS and not folder.exists() else folder


def _server(address: str) -> EndpointModel:
    """The model at `http://HOST:PORT/v1#NAME`."""
    url, _, name = address.partition("#")
    _check_url(url)
    if not name:
        raise InputError(f"{address}: which model? write {url.rstrip('/')}#NAME")
    return _endpoint(name, url, "USERLM_API_KEY")


def _endpoint(name: str, url: str | None, variable: str) -> EndpointModel:
    from userlm.models.endpoint import EndpointModel

    key = os.environ.get(variable, "").strip()
    if not key and url is None:
        raise InputError(f"openai:{name} needs a key; set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the environment variable {variable} holds characters that no key has; set it anew"
        )
    return EndpointModel(name, url, key or None)


def _check_url(url: str) -> None:
    """Raise `InputError` for a URL that is none, or that must not be written down in a run
    folder."""
    if "@" in url or "?" in url:
        raise InputError(
            "a URL with a password or a query is not taken; put the key into USERLM_API_KEY"
        )
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname and parts.hostname.isascii())
        fine = named and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        fine = False
    if not fine:
        raise InputError(f"{url} is no URL of a server; write http://HOST:PORT/v1#NAME")


def _split(address: str, known: tuple[str, ...], what: str) -> tuple[str, str]:
    scheme, colon, rest = address.partition(":")
    if scheme not in known:
        if not colon:
            raise InputError(
                f"{address!r} names no kind of {what}; write for instance trained:{address} or "
                f"prompted:{address}"
            )
        raise _unknown(address, scheme, known, what)
    return scheme, rest


def _scheme(address: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+_-]+):", address)
    return match[1] if match else None


def _unknown(address: str, scheme: str, known: tuple[str, ...], what: str) -> InputError:
    near = get_close_matches(scheme, known, 1)
    hint = f"did you mean {near[0]}:?" if near else f"there are {', '.join(known)}"
    return InputError(f"{address}: {scheme!r} is no kind of {what}; {hint}")


def _need(rest: str, address: str, what: str) -> None:
    if not rest:
        raise InputError(
            f"{address}: say which after the colon, for instance {address.rstrip(':')}:NAME "
            f"({what})"
        )


def _log(path: str) -> dict[str, Conversation]:
    return {conversation.id: conversation for conversation in read_conversations(path)}


def _lines(path: str) -> list[str]:
    try:
        lines = [
            line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the script: {error}") from None
    if not lines:
        raise InputError(f"{path} is empty; a script has one turn a line")
    return lines


def _python(rest: str) -> Speaker:
    module, colon, name = rest.partition(":")
    if not colon:
        raise InputError(f"py:{rest}: write py:MODULE:NAME, where NAME() gives a speaker")
    sys.path.insert(0, "") if "" not in sys.path else None
    try:
        made: Speaker = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"py:{rest}: {error}") from None
    if not callable(getattr(made, "reply", None)):
        raise InputError(
            f"py:{rest}: {name}() gave a {type(made).__name__}, which has no method "
            "reply(conversation)"
        )
    return made


def _ask(conversation: Conversation) -> str | None:
    """Ask in the terminal; an empty line or Ctrl-D leaves."""
    if not conversation.turns and conversation.system:
        print(f"\n{conversation.system}", file=sys.stderr)
    if conversation.turns:
        print(f"\n{conversation.turns[-1].role}: {conversation.turns[-1].text}", file=sys.stderr)
    try:
        return input(f"{conversation.next_role}> ").strip() or None
    except EOFError:
        return None
