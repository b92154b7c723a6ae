"""Addresses: the names of users, assistants and models on the command line.

    users       trained:MODEL  profile:MODEL  prompted:MODEL  swapped:MODEL
                replay:FILE  script:FILE  human  single  py:MODULE:NAME
    assistants  MODEL  oracle  clarifier  replay:FILE  script:FILE  human
                py:MODULE:NAME  cmd:COMMAND  bot:FILE.toml
    models      a folder or hub id  userlm-small, userlm-tiny, assistant-tiny (embedded)
                small, assistant-small (fetched)
                openai:NAME  http://HOST:PORT/v1#NAME  script:FILE
    detectors   pangram  pangram:MODEL  classifier:MODEL  judge:MODEL
    to score    MODEL or trained:MODEL  profile:MODEL  base:MODEL  prompted:MODEL,
                here or at http://HOST:PORT/v1#NAME

`trained:microsoft/UserLM-8b` is the released checkpoint; `profile:wangkevin02/USP` takes the intent
as a profile. `prompted:` and `swapped:` are two prompts that ask an assistant to play the user.
Keys come from the environment: OPENAI_API_KEY for `openai:`, PANGRAM_API_KEY for `pangram`,
USERLM_API_KEY for a server at a URL, or USERLM_API_KEY_HOST_NAME for that of one host; they are not
written anywhere. `openai:` is asked at
OPENAI_BASE_URL, if that is set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from socket import inet_aton
from urllib.parse import urlsplit

from userlm.types import InputError

USERS = (
    *("trained", "profile", "prompted", "swapped"),
    *("replay", "script", "human", "single", "py"),
)
BOTS = ("py", "cmd", "bot")
"""Code of others: a Python function or object, a command, a server with JSON of its own."""
ASSISTANTS = (
    *("oracle", "clarifier", "replay", "script", "human"),
    *BOTS,
)
MODELS = ("openai", "http", "https", "script")
SCORED = ("trained", "profile", "base", "prompted")
DETECTORS = ("pangram", "classifier", "judge")
FORMS = (*SCORED, "swapped", "classifier", "judge")
WITHOUT_NAME = ("human", "single", "oracle", "clarifier", "pangram")

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+_-]+):(.+)", re.DOTALL)
HUB_ID = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")
FILE = re.compile(r"\.(bin|gguf|gz|json|jsonl|parquet|pt|py|safetensors|toml|txt|zip)$")
"""File extensions of names that would otherwise look like hub ids."""

BATCH = 32
"""Default batch size of a local model, in conversations."""

CONTEXT_LENGTH = 8192
"""Context length in tokens that is assumed if a server does not report it; that of
microsoft/UserLM-8b."""


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an address.

    Attributes:
        form: how a model is used, one of `FORMS`; empty if the address does not say it.
        model: the address without the form.
        scheme: how the model or speaker is reached, such as `openai`, `http`, `replay` or `human`;
            empty for a folder or hub id.
        url: the URL of the server, if the scheme is `http` or `https`.
        name: the rest: the name of the model on its server, a folder, hub id, file, command, or
            MODULE:NAME.
    """

    form: str
    model: str
    scheme: str
    url: str
    name: str

    @property
    def kind(self) -> str:
        """The word before the first colon; empty for a plain folder or hub id."""
        return self.form or self.scheme

    def __str__(self) -> str:
        return f"{self.form}:{self.model}" if self.form else self.model

    @property
    def is_remote(self) -> bool:
        """Whether the model is, or (for a bot) may be, on a server."""
        return self.scheme in ("openai", "http", "https", "pangram", *BOTS)

    @property
    def is_model(self) -> bool:
        """Whether a user or an assistant is a model, whose calls are counted."""
        return bool(self.form) or self.kind not in (*ASSISTANTS, "single")

    @property
    def is_prompted(self) -> bool:
        """Whether it is a user that needs an intent."""
        return self.form in ("prompted", "swapped")

    @property
    def is_person(self) -> bool:
        """Whether a person at the keyboard speaks, so only one conversation at a time is
        possible."""
        return self.kind == "human"

    @property
    def is_code(self) -> bool:
        """Whether code of others speaks, whose calls cannot be counted."""
        return self.kind in BOTS

    @property
    def short_name(self) -> str:
        """The name of the model without path and URL."""
        return re.split(r"[/#:]", self.name.rstrip("/"))[-1]


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How a model on this machine runs.

    Attributes:
        batch: how many conversations it serves at once.
        device: such as `cuda` or `cpu`; by default a GPU if there is one.
        dtype: the precision of its weights, by its name in torch; by default bfloat16 on a GPU and
            float32 on a CPU.
    """

    batch: int = BATCH
    device: str | None = None
    dtype: str | None = None


DEFAULT = LocalSettings()


def parse(text: str | Address) -> Address:
    """Split an address into its parts; raise `InputError` if nothing follows its colon."""
    if isinstance(text, Address):
        return text
    if text.endswith(":"):
        raise InputError(f"{text} say which after the colon, for instance {text}NAME")
    form, _, model = text.partition(":")
    if form not in FORMS or not model:
        form = ""
        model = text
    scheme = ""
    name = model
    if found := SCHEME.fullmatch(model):
        scheme, name = found.groups()
    elif model in WITHOUT_NAME and not form:
        scheme = model
    url = ""
    if scheme in ("http", "https"):
        url, _, name = model.partition("#")
    return Address(form, model, scheme, url, name)


def check_server(address: Address) -> None:
    """Raise `InputError` if `http://HOST:PORT/v1#NAME` is wrong, or has secrets that must not be
    written to a run folder."""
    url = address.url
    if _LATE_HOST.search(address.name):  # a # in the password
        url = address.model
    check_url(url, "USERLM_API_KEY")
    if not address.name:
        raise InputError(
            f"{address.model}: which model? write {address.url.rstrip('/')}#NAME (a bot with JSON "
            "of its own is bot:FILE.toml)"
        )


_LATE_HOST = re.compile(r"@[^/]*/v\d")


def is_here(host: str) -> bool:
    """Return whether a host is this machine. A name may begin as an address does, and an address
    may be short, as `127.1`."""
    try:
        address = ip_address(host)
    except ValueError:
        name = host.lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            # It reads no further than to a space.
            address = ip_address(inet_aton("".join(name.split())))
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def check_url(url: str, variable: str) -> None:
    """Raise `InputError` if it is not a URL, or has secrets that must not be written to a run
    folder.

    Args:
        variable: the environment variable of the key, for the message.
    """
    if "@" in url or "?" in url:
        raise InputError(
            f"a URL with a password or a query is not accepted; put the key into {variable}"
        )
    try:
        parts = urlsplit(url)
        is_http = parts.scheme.lower() in ("http", "https")
        has_host = is_http and bool(parts.hostname and parts.hostname.isascii())
        is_fine = has_host and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        is_fine = False
    if not is_fine:
        raise InputError(
            f"{url} is not the URL of a server; write http://HOST:PORT/v1#NAME"
        )


def place(address: str) -> str:
    """Return scheme, host and path of an address: the rest may hold secrets."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "another address"
    host = parts.netloc.rpartition("@")[2]
    return (
        parts._replace(netloc=host, query="", fragment="").geturl() or "another address"
    )
