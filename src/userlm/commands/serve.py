"""`userlm serve`: a simulated user that any client of the OpenAI API can call."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from time import sleep
from typing import Literal

from userlm.commands.options import (
    EMBEDDED_USER,
    LocalModels,
    User,
    check,
    option,
)
from userlm.show.terminal import console
from userlm.types import InputError

KEY = "USERLM_SERVE_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve a simulated user through the OpenAI API: the completion is the user's next turn.

    Ctrl-C stops it. If the environment variable USERLM_SERVE_KEY is set, clients must use it as
    their API key.

    $ userlm serve --user trained:microsoft/UserLM-8b --port 8765
    """

    user: User = User(EMBEDDED_USER)
    model_name: str | None = option(
        None, "Model name in the API. Default: the end of the address."
    )
    host: str = option(
        "127.0.0.1", "Host to listen on; by default only this machine can connect."
    )
    port: int = option(
        8765, "Port to listen on; 0 chooses a free one.", min=0, max=65535
    )
    intent: str | None = option(None, "Intent for requests without one.")
    roles: Literal["auto", "log", "swapped"] = option(
        "auto",
        "Roles in requests. log: the simulated user has role user; swapped: it has role assistant; "
        "auto: detected from the last message.",
    )
    stop_phrase: str | None = option(
        None,
        "Text that marks the end when the user ends the conversation, such as \\[end].",
    )
    queue: int = option(
        256,
        "Maximum number of waiting replies; beyond that, clients get HTTP 429.",
        min=0,
    )
    seed: int | None = option(
        None, "Seed of requests without one. Default: a random one for each."
    )
    models: LocalModels = LocalModels()


def serve(options: Serve) -> None:
    """Serve until Ctrl-C."""
    check(options)
    served = options.user.with_embedded_defaults()
    user = served.parsed
    host = options.host
    if user.is_person:
        raise InputError(
            "--user human: a person cannot be served; talk to an assistant yourself with "
            "`userlm chat --role user`"
        )
    from userlm.serving.app import create_app, running
    from userlm.serving.schema import ServerConfig

    name = options.model_name or user.short_name
    key = _key()
    is_open = key is None and not _is_loopback(host)
    hosts = _own_hosts(host) if key is None else ()
    config = ServerConfig(
        name,
        options.intent,
        options.roles,
        options.stop_phrase,
        options.seed,
        key,
        hosts,
        options.queue,
        options.models.batch,
    )
    # Fail before loading a model, which takes minutes.
    with _listen(host, options.port) as listening:
        app = create_app(served.load(local=options.models), config)
        if is_open:
            console.print(
                f"warning: anyone who can reach {host} can use this server; set the environment "
                f"variable {KEY}",
                style="yellow",
            )
        # A shell that starts it in the background ignores SIGINT.
        for request_to_stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(request_to_stop, signal.default_int_handler)
        with running(app, listening) as thread:
            shown_host = f"[{host}]" if ":" in host else host
            shown_key = f"os.environ[{KEY!r}]" if key else '"none"'
            console.print(
                f'OpenAI(base_url="http://{shown_host}:{listening.getsockname()[1]}/v1", '
                f'api_key={shown_key}), model="{name}"; Ctrl-C stops it',
                soft_wrap=True,
            )
            _wait(thread)
            console.print(
                "stopping; requests in progress are still answered, unless you press Ctrl-C again",
                style="dim",
            )


def _wait(thread: threading.Thread) -> None:
    """Wait until the server ends or Ctrl-C."""
    with suppress(KeyboardInterrupt):
        # Not join: if interrupted, it would mark the thread as finished.
        while thread.is_alive():
            sleep(0.5)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else None
        ) or "this is not a host"
        raise InputError(
            f"cannot listen on --host {host} --port {port}: {reason}; choose another, or --port 0 "
            f"for a free one"
        ) from None


def _own_hosts(host: str) -> tuple[str, ...]:
    """Return the names of a server without a key, beside the address that a client connects to: a
    page of another site may give its own name that address (DNS rebinding)."""
    return (host.lower(), *LOOPBACK)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key() -> str | None:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the environment variable {KEY} has characters that are not allowed in a key; set it "
            f"again"
        )
    return key or None
