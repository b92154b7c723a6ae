"""`userlm serve`: a simulated user that any client of the OpenAI API can call."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Literal

from userlm import address, loading
from userlm.address import Address
from userlm.commands.chat import EXAMPLE_INTENT
from userlm.commands.costs import (
    PRICE_OPTIONS,
    Limits,
    add_side,
    check_caps,
    counted,
    price_option,
    read_price,
)
from userlm.commands.options import (
    EMBEDDED_USER,
    LocalModels,
    User,
    check,
    option,
    rated_user,
)
from userlm.commands.show import describe
from userlm.commands.steps import conversations_in
from userlm.json_files import read_json
from userlm.metrics.ratings import RatedUser
from userlm.models.budget import Budget, CountedChat, Price
from userlm.rows import read_conversations
from userlm.runs import conversations_file
from userlm.show.blocks import Block, Text
from userlm.show.formats import plural
from userlm.show.terminal import console
from userlm.text import END_SAYS
from userlm.types import Conversation, InputError, Speaker
from userlm.users import TrainedUser

if TYPE_CHECKING:
    from userlm.serving.blind import BlindPair
    from userlm.serving.intent_writer import IntentWriter
    from userlm.serving.playground import Playground, View
    from userlm.serving.saved import Saved
    from userlm.serving.schema import ServerConfig

KEY = "USERLM_SERVE_KEY"
PAGES = "Pages"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve a simulated user through the OpenAI API: the completion is the user's next turn. The
    page at / lets you talk to the user; that at /blind tests whether people can tell it from a
    person.

    Ctrl-C stops it. If the environment variable USERLM_SERVE_KEY is set, clients must use it as
    their API key.

    $ userlm serve --user trained:microsoft/UserLM-8b --port 8765

    $ userlm serve --blind runs/respond --reference runs/intents
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
    intent_by: str | None = option(
        None,
        "Chat model that writes an intent for a system message without one: openai:NAME, "
        "http://HOST:PORT/v1#NAME, a folder or hub id. Default: the message is the intent.",
    )
    roles: Literal["auto", "log", "swapped"] = option(
        "auto",
        "Roles in requests. log: the simulated user has role user; swapped: it has role assistant; "
        "auto: detected from the last message.",
    )
    stop_phrase: str | None = option(
        None,
        "Text that marks the end when the user ends the conversation. Default: the one that the "
        "prompt of a harness names.",
    )
    end_says: str = option(
        END_SAYS,
        "What a harness gets when the user ends the conversation without a word, if there is no "
        "stop phrase.",
    )
    queue: int = option(
        256,
        "Maximum number of waiting replies; beyond that, clients get HTTP 429.",
        min=0,
    )
    seed: int | None = option(
        None, "Seed of requests without one. Default: a random one for each."
    )
    page: Literal["auto", "on", "off"] = option(
        "auto",
        "The playground at / and the blind test at /blind. auto: only if nobody but this machine "
        "can connect.",
        panel=PAGES,
    )
    assistant: str | None = option(
        None,
        "An assistant for the playground, so that you can play the user, or watch.",
        panel=PAGES,
    )
    against: str | None = option(
        None,
        "A second user for the playground, whose turns stand beside those of --user.",
        panel=PAGES,
    )
    out: Path = option(
        Path("runs/playground"),
        "Folder in which the pages save conversations and ratings.",
        panel=PAGES,
        recorded=False,
    )
    blind: Path | None = option(
        None,
        "Responses or simulated conversations for the blind test: the folder of a run, or a file.",
        panel=PAGES,
    )
    reference: Path | None = option(
        None,
        "The conversations of people that those of --blind start from: a file, or a folder with "
        "test.jsonl.",
        panel=PAGES,
    )
    models: LocalModels = LocalModels()
    user_price: str | None = price_option("--user-price", "the user's model")
    against_price: str | None = price_option("--against-price", "the second user's")
    price: str | None = price_option("--price", "the assistant's model")
    intent_price: str | None = price_option(
        "--intent-price", "the model of --intent-by"
    )
    limits: Limits = Limits()


def serve(options: Serve) -> None:
    """Serve until Ctrl-C."""
    check(options)
    served = options.user.with_embedded_defaults()
    host = options.host
    _check_no_person(options)
    from userlm.serving.app import create_app, running

    name = options.model_name or served.parsed.short_name
    key = loading.key_in(KEY)
    config = _config(options, name, key)
    # Fail before loading a model, which takes minutes.
    has_page = _has_page(options)
    pairs = _pairs(options)
    prices = _prices(options)
    budget = Budget(options.limits.caps, None)
    with _listen(host, options.port) as listening:
        loaded = _load(options, served)
        speakers = {
            role: counted(budget, role, parts, speaker, prices[role])
            for role, (parts, speaker) in loaded.items()
        }
        writer = _intent_writer(options, budget, prices["intent_by"])
        config = replace(config, intent_writer=writer)
        check_caps(budget.caps, bool(budget.sides))
        app = create_app(speakers["user"], config)
        if has_page:
            from userlm.serving.playground import add_pages

            play = _playground(options, served, speakers, loaded, name, pairs)
            add_pages(app, play, config)
        if key is None and not _is_loopback(host):
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
            url = f"http://{shown_host}:{listening.getsockname()[1]}/"
            _say_how_to_call(url, name, has_key=key is not None)
            _say_where_pages_are(url, options.page, has_page, bool(pairs))
            _wait(thread)
            console.print(
                "stopping; requests in progress are still answered, unless you press Ctrl-C again",
                style="dim",
            )


def _config(options: Serve, name: str, key: str | None) -> ServerConfig:
    from userlm.serving.schema import ServerConfig

    return ServerConfig(
        name,
        options.intent,
        options.roles,
        options.stop_phrase,
        options.seed,
        key,
        _own_hosts(options.host) if key is None else (),
        options.queue,
        options.models.batch,
        options.user.settings.temperature,
        options.end_says,
    )


def _intent_writer(
    options: Serve, budget: Budget, price: Price | None
) -> IntentWriter | None:
    """Return what writes the intents of --intent-by, with its calls counted."""
    if options.intent_by is None:
        return None
    from userlm.serving.intent_writer import IntentWriter

    writer = address.parse(options.intent_by)
    chat = loading.chat_model(writer, options.models.settings)
    side = add_side(budget, "intent_by", writer, price)
    return IntentWriter(writer.short_name, CountedChat(chat, side))


def _check_no_person(options: Serve) -> None:
    sides = {
        "user": options.user.user,
        "against": options.against,
        "assistant": options.assistant,
    }
    for name, given in sides.items():
        if given and address.parse(given).is_person:
            raise InputError(
                f"--{name} human: a person cannot be served; talk to an assistant yourself with "
                f"`userlm chat --role user`, or in the playground"
            )


def _prices(options: Serve) -> dict[str, Price | None]:
    """Return the prices of the models; raise `InputError` for a price of one who is not there."""
    given = {
        "user": (options.user.user, options.user_price),
        "against": (options.against, options.against_price),
        "assistant": (options.assistant, options.price),
        "intent_by": (options.intent_by, options.intent_price),
    }
    for name, (speaker, price) in given.items():
        if price and not speaker:
            flag = name.replace("_", "-")
            raise InputError(f"{PRICE_OPTIONS[name]}: there is no --{flag}")
    return {name: read_price(name, price) for name, (_, price) in given.items()}


def _load(options: Serve, served: User) -> dict[str, tuple[Address, Speaker]]:
    """Return the speakers and their addresses, by role."""
    found = {"user": (served.parsed, served.load(local=options.models))}
    if options.against:
        other = User(options.against).with_embedded_defaults()
        found["against"] = other.parsed, other.load(local=options.models)
    if options.assistant:
        parts = address.parse(options.assistant)
        assistant = loading.assistant(parts, local=options.models.settings)
        found["assistant"] = parts, assistant
    return found


def _say_how_to_call(url: str, name: str, has_key: bool) -> None:
    shown_key = f"os.environ[{KEY!r}]" if has_key else '"none"'
    console.print(
        f'OpenAI(base_url="{url}v1", api_key={shown_key}), model="{name}"; Ctrl-C stops it',
        soft_wrap=True,
    )


def _say_where_pages_are(url: str, page: str, has_page: bool, has_pairs: bool) -> None:
    if has_page:
        console.print(f"playground: {url}", soft_wrap=True)
    elif page == "auto":
        console.print(
            "no playground, since others can connect too; --page on serves it to them",
            style="dim",
        )
    if has_page and has_pairs:
        console.print(f"blind test: {url}blind", soft_wrap=True)


# --- the pages ------------------------------------------------------------------------------------


def _has_page(options: Serve) -> bool:
    """Return whether there are pages; raise `InputError` for options that are only for them."""
    if options.page == "on" or (options.page == "auto" and _is_loopback(options.host)):
        return True
    if options.assistant or options.against or options.blind:
        raise InputError(
            "--assistant, --against and --blind are for the pages, which are not served here; "
            "give --page on, or leave them out"
        )
    return False


def _playground(
    options: Serve,
    served: User,
    speakers: Mapping[str, Speaker],
    loaded: Mapping[str, tuple[Address, Speaker]],
    name: str,
    pairs: list[BlindPair],
) -> Playground:
    """Return what the pages can do."""
    from userlm.serving.playground import ASSISTANT, USER, Playground
    from userlm.serving.saved import Saved

    names = {USER: name}
    views: dict[str, View] = {}
    for role, (parts, speaker) in loaded.items():
        if role != USER:
            names[role] = parts.short_name if role == ASSISTANT else str(parts)
        if view := _view(speaker):  # of the model itself
            views[role] = view
    saved = Saved(options.out)
    rated = RatedUser()
    if options.blind:
        rated = _rated_user(conversations_file(options.blind))
        _show_nameless(saved, rated)
    intent = options.intent
    if intent is None and options.user.user == EMBEDDED_USER:
        intent = EXAMPLE_INTENT
    return Playground(
        speakers,
        names,
        saved,
        served.settings.guard or "",
        intent or "",
        views,
        pairs,
        rated,
    )


def _rated_user(path: Path) -> RatedUser:
    """Return whose conversations these are, if they are those of a run."""
    manifest = path.parent / "run.json"
    if path.name != "conversations.jsonl" or not manifest.is_file():
        return RatedUser()
    return rated_user(read_json(manifest))


def _show_nameless(saved: Saved, rated: RatedUser) -> None:
    """Say so if ratings cannot be told from those of another test, or of another user."""
    older = sum(not rating.shown for rating in saved.ratings())
    if older:
        console.print(
            f"{plural(older, 'rating')} in {saved.folder} do not say what was rated: an older "
            "version wrote them, so they do not count in this test",
            style="yellow",
        )
    if not rated.name:
        console.print(
            "--blind is not the folder of a run, so ratings will not say whose turns they are "
            "about; keep those of each user in an --out of its own",
            style="yellow",
        )


SHOWN_ROWS, SHOWN_TURNS = 3, 200
"""Of a long conversation, of what its model sees: each row may be a whole context."""


def _view(speaker: Speaker) -> View | None:
    """Return what shows a conversation as a model on this machine sees it."""
    if not isinstance(speaker, TrainedUser):
        return None
    from userlm.models.local import LocalModel

    if not isinstance(speaker.model, LocalModel):
        return None
    model, template = speaker.model, speaker.template
    max_tokens = speaker.context_length

    def view(conversation: Conversation) -> list[Block]:
        first = replace(conversation, turns=conversation.turns[:SHOWN_TURNS])
        blocks = describe(first, model, template, max_tokens, SHOWN_ROWS)
        if left_out := len(conversation.turns) - len(first.turns):
            blocks.append(Text(f"Not shown: {plural(left_out, 'later turn')}."))
        return blocks

    return view


def _pairs(options: Serve) -> list[BlindPair]:
    """Return the pairs of the blind test; raise `InputError` if only one side is given."""
    if options.blind is None and options.reference is None:
        return []
    if options.blind is None or options.reference is None:
        raise InputError("the blind test needs both --blind and --reference")
    from userlm.serving.blind import blind_pairs

    simulated = list(read_conversations(conversations_in(options.blind)))
    people = read_conversations(conversations_in(options.reference))
    logs = {one.id: one for one in people}
    pairs = blind_pairs(simulated, logs, options.seed or 0)
    if left_out := len(simulated) - len(pairs):
        console.print(
            f"the blind test leaves out {plural(left_out, 'conversation')}: they failed, start "
            "from none of --reference, or ended before there was a turn to show",
            style="yellow",
        )
    return pairs


# --- the server -----------------------------------------------------------------------------------


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
