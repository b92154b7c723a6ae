"""`serve`: a simulated user behind an address that any client of the OpenAI API can call."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import suppress
from ipaddress import ip_address
from time import sleep
from typing import Annotated

from typer import Option

from userlm import address
from userlm.commands.options import (
    EMBEDDED_USER,
    Batch,
    EndThreshold,
    GuardSpec,
    Temperature,
    TopP,
    UserTokenizer,
)
from userlm.terminal import console
from userlm.types import InputError

KEY = "USERLM_SERVE_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    user: Annotated[
        str,
        Option(
            help="trained:MODEL, profile:, prompted: or swapped:MODEL, replay:FILE, script:FILE "
            "or py:MODULE:NAME."
        ),
    ] = EMBEDDED_USER,
    model_name: Annotated[
        str | None, Option(help="Under which clients ask for it. Default: the end of the address.")
    ] = None,
    host: Annotated[
        str, Option(help="Where to listen; by default this machine alone can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="0 takes a free one.", min=0, max=65535)] = 8765,
    intent: Annotated[
        str | None, Option(help="What the user is after, where a request does not say.")
    ] = None,
    roles: Annotated[
        str,
        Option(
            help="log: as they were; flipped: the user is the client's model; auto: by the last "
            "message."
        ),
    ] = "auto",
    stop_phrase: Annotated[
        str | None, Option(help="What is said when the user leaves, such as \\[end].")
    ] = None,
    queue: Annotated[
        int, Option(help="Replies that may wait; beyond that, clients are sent away (429).", min=0)
    ] = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    end_threshold: EndThreshold = None,
    guard: GuardSpec = None,
    seed: Annotated[
        int | None, Option(help="Of requests that bring none. Default: another one for each.")
    ] = None,
    batch: Batch = address.BATCH,
    tokenizer: UserTokenizer = None,
) -> None:
    """Serve a user to clients of the OpenAI API: the answer is the user's next turn. Ctrl-C stops
    it.

    If the environment variable USERLM_SERVE_KEY is set, clients must give it as their key.
    """
    if user.partition(":")[0] == "human":
        raise InputError(
            "--user human: a person cannot be served; `userlm chat --role user` has a seat for one"
        )
    from userlm.serve import Terms, app, running

    name = model_name or re.split(r"[/#:]", user.rstrip("/"))[-1]
    key = _key()
    hosts = LOOPBACK if key is None and _loopback(host) else ()
    terms = Terms(name, intent, roles, stop_phrase, seed, key, hosts, queue, batch)
    with _listen(host, port) as listening:  # before minutes go into loading a model
        speaker = address.user(
            user,
            temperature=temperature,
            top_p=top_p,
            end_threshold=end_threshold,
            guard=guard,
            batch=batch,
            tokenizer=tokenizer,
        )
        served = app(speaker, terms)
        if key is None and not _loopback(host):
            console.print(
                f"warning: anyone who can reach {host} can use this; set the environment variable "
                f"{KEY}",
                style="yellow",
            )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/v1"
        given = f"os.environ[{KEY!r}]" if key else '"none"'
        for request_to_stop in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # the first is ignored in a shell's background
            signal.signal(request_to_stop, signal.default_int_handler)
        with running(served, listening) as thread:
            console.print(
                f'OpenAI(base_url="{url}", api_key={given}), model="{name}"; Ctrl-C stops it',
                soft_wrap=True,
            )
            with suppress(KeyboardInterrupt):
                while thread.is_alive():  # a join that is interrupted takes the thread for dead
                    sleep(0.5)
            console.print(
                "stopping; what was begun is still answered, unless you press Ctrl-C again",
                style="dim",
            )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "this is no host"
        raise InputError(
            f"cannot listen on --host {host} --port {port}: {reason}; give another, or --port 0 "
            "for a free one"
        ) from None


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key() -> str | None:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the environment variable {KEY} holds characters that no key has; set it anew"
        )
    return key or None
