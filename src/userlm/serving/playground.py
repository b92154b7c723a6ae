"""The pages of `userlm serve`: the playground at `/`, and the blind test at `/blind`.

The pages are files of the package. What they ask for are JSON calls at `/playground/NAME`, which
only pages of this very server may make (`access.check_own_page`). No call names a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from userlm.assistants import ModelAssistant
from userlm.guard import Guard
from userlm.json_files import dump, loads
from userlm.metrics.ratings import RatedUser
from userlm.rows import from_record, to_record
from userlm.serving.access import check_own_page, check_page
from userlm.serving.answers import reply_of
from userlm.serving.app import json_response, read_body, read_json
from userlm.serving.blind import BlindPair, name_of
from userlm.serving.messages import check_length, complete_intent_for
from userlm.serving.saved import Saved, version_of
from userlm.serving.schema import STRICT, RequestError, ServerConfig, field_error
from userlm.show.blocks import Block
from userlm.simulate import seen_by_assistant
from userlm.types import Conversation, InputError, Speaker
from userlm.users import PromptedUser, TrainedUser, with_sampling

USER, AGAINST, ASSISTANT = "user", "against", "assistant"
View = Callable[[Conversation], Sequence[Block]]

PAGES: Mapping[str, tuple[str, str]] = {
    "/": ("playground.html", "text/html"),
    "/blind": ("blind.html", "text/html"),
    "/playground.css": ("playground.css", "text/css"),
    "/playground.js": ("playground.js", "text/javascript"),
    "/blind.js": ("blind.js", "text/javascript"),
    "/shared.js": ("shared.js", "text/javascript"),
}
"""The files of the pages, in `assets/playground`, and what they are."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Playground:
    """What the pages can do.

    Attributes:
        speakers: who can speak, by role: the `user`, another one `against` it, an `assistant`.
        names: their names.
        guard: the guard of the user as a text; empty if it has none.
        intent: the intent that the page begins with.
        views: by role, what shows a conversation as its model sees it, for models that are here.
        pairs: those of the blind test; empty if there is none.
        rated: whose turns stand in them beside those of people.
    """

    speakers: Mapping[str, Speaker]
    names: Mapping[str, str]
    saved: Saved
    guard: str = ""
    intent: str = ""
    views: Mapping[str, View] = field(default_factory=dict)
    pairs: Sequence[BlindPair] = ()
    rated: RatedUser = field(default_factory=RatedUser)

    @cached_property
    def numbered(self) -> Mapping[str, tuple[int, BlindPair]]:
        """The pairs and their numbers, from 1, by their ids."""
        return {each.id: (n, each) for n, each in enumerate(self.pairs, 1)}

    @cached_property
    def test(self) -> str:
        """Names the pairs with their order and sides, which another `--seed` changes."""
        return name_of([each.shown() for each in self.pairs])


def add_pages(app: Starlette, play: Playground, config: ServerConfig) -> None:
    """Let a server also answer for the pages."""
    folder = files("userlm").joinpath("assets/playground")
    contents = {path: (folder / name).read_bytes() for path, (name, _) in PAGES.items()}

    async def page(request: Request) -> Response:
        check_page(request, config)
        path = request.url.path
        kind = f"{PAGES[path][1]}; charset=utf-8"
        return Response(contents[path], headers={**HEADERS, "Content-Type": kind})

    async def call(request: Request) -> Response:
        check_own_page(request, config)
        name = request.path_params["name"]
        if name not in CALLS:
            raise RequestError(404, f"there is no call {name!r}")
        body = await read_body(request, app.state.unfinished)
        job = partial(_answer, name, play, body)
        pools = {ASK: app.state.pool, VIEW: app.state.views}
        pool = pools.get(name, app.state.files)
        try:
            (found,) = await pool.results([job], request, config.key)
            return json_response(found)
        except OSError as error:
            if name in pools:
                raise
            where = error.filename or play.saved.folder
            why = f"{where}: {error.strerror or error}; nothing was saved"
            raise RequestError(507, why) from None

    app.router.routes += [Route(path, page) for path in PAGES]
    app.router.routes.append(Route("/playground/{name}", call, methods=["POST"]))


def _answer(name: str, play: Playground, body: bytes) -> Any:
    kind, function = CALLS[name]
    try:
        asked = kind.model_validate(read_json(body))
    except ValidationError as error:
        raise field_error(error) from None
    return function(play, asked)


# --- the playground -------------------------------------------------------------------------------


class Nothing(BaseModel):
    """A call without fields."""

    model_config = STRICT


class Talk(BaseModel):
    """A conversation, as in files of conversations."""

    model_config = STRICT
    conversation: dict[str, Any]

    @property
    def read(self) -> Conversation:
        """The conversation; raises `RequestError` if it is none, or one that is too long."""
        try:
            found = from_record(self.conversation)
        except ValueError as error:
            raise RequestError(400, f"conversation: {error}") from None
        check_length(found.system or "", found.turns)
        return found


class Save(Talk):
    """A call that saves a conversation, perhaps in place of the version that was loaded or saved
    before."""

    replaces: Annotated[str, Field(max_length=100)] = ""


class Ask(Talk):
    """A call for the next turn. What is `None` is as the server has it."""

    speaker: Literal["user", "against", "assistant"]
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    end_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    guard: Annotated[str, Field(max_length=2_000)] | None = None
    session: Annotated[str, Field(max_length=100)] = ""


class Look(Talk):
    """A call for the view of one of the users' models."""

    speaker: Literal["user", "against"]


class Named(BaseModel):
    """A call for a saved conversation."""

    model_config = STRICT
    id: str


def state(play: Playground, asked: Nothing) -> Any:
    """Return what the page begins with."""
    sampled = {}
    for role, speaker in play.speakers.items():
        if isinstance(speaker, TrainedUser | PromptedUser):
            sampling = speaker.sampling
            sampled[role] = {
                "temperature": sampling.temperature,
                "end_threshold": sampling.end_threshold,
            }
    return {
        "names": play.names,
        "sampling": sampled,
        "guard": play.guard,
        "intent": play.intent,
        "views": list(play.views),
        "folder": str(play.saved.folder),
        "pairs": len(play.pairs),
    }


def ask(play: Playground, asked: Ask) -> Any:
    """Return the next turn: its text, the reason to stop if there is one, its `meta`, and the
    intent if what was typed for it was completed."""
    speaker = _speaker(play, asked.speaker)
    conversation = asked.read
    given = intent = conversation.intent
    role = ASSISTANT if asked.speaker == ASSISTANT else USER
    if conversation.next_role != role:
        raise RequestError(400, f"it is not the {role}'s turn", "conversation")
    if role == ASSISTANT:
        conversation = seen_by_assistant(conversation)
        if isinstance(speaker, ModelAssistant):
            speaker = replace(speaker, seed=asked.seed)
        elif asked.session:  # a bot has one for each id
            conversation = replace(conversation, id=asked.session)
    else:
        if isinstance(speaker, TrainedUser) and not conversation.user_turns:
            intent = complete_intent_for(speaker, intent or "")[0] or None
            conversation = replace(conversation, intent=intent)
        speaker = with_sampling(
            speaker,
            seed=asked.seed,
            temperature=asked.temperature,
            end_threshold=asked.end_threshold,
            guard=None if asked.guard is None else _guard(play, asked.guard),
        )
    reply = reply_of(speaker, conversation)
    meta = loads(dump(dict(reply.meta)))  # code may have put anything into it
    found = {"text": reply.text, "stop": reply.stop, "meta": meta}
    if intent != given:
        found["intent"] = intent
    return found


def _guard(play: Playground, given: str) -> Guard:
    """Return the guard of the page; raise `InputError` if it asks for more drafts than usual, which
    may cost the server's owner something."""
    guard = Guard.parse(given)
    most = max(Guard().tries, Guard.parse(play.guard).tries)
    if guard.tries > most:
        raise InputError(
            f"tries={guard.tries}: at most {most} here; start the server with --guard tries=... "
            "for more"
        )
    return guard


def view(play: Playground, asked: Look) -> Any:
    """Return the conversation as a model sees it: blocks of `show` as JSON."""
    _speaker(play, asked.speaker)
    if asked.speaker not in play.views:
        raise RequestError(
            400, "only the tokens of a trained user on this machine are shown"
        )
    conversation = asked.read
    if not conversation.user_turns:
        raise RequestError(400, "there is nothing to see before the user's first turn")
    return [asdict(block) for block in play.views[asked.speaker](conversation)]


def save(play: Playground, asked: Save) -> Any:
    """Save the conversation in the run folder."""
    conversation = asked.read
    if not conversation.turns:
        raise RequestError(400, "there is nothing to save yet")
    talk = play.saved.save(conversation, asked.replaces)
    folder = str(play.saved.folder)
    return {"id": talk.id, "version": version_of(talk), "folder": folder}


def saved(play: Playground, asked: Nothing) -> Any:
    """Return what was saved, the latest first."""
    talks = reversed(play.saved.conversations())
    return [
        {"id": talk.id, "intent": talk.intent or "", "turns": len(talk.turns)}
        for talk in talks
    ]


def load(play: Playground, asked: Named) -> Any:
    """Return a saved conversation, with its version."""
    for talk in play.saved.conversations():
        if talk.id == asked.id:
            return {"conversation": to_record(talk), "version": version_of(talk)}
    raise RequestError(404, "this conversation is not in the folder any more")


def _speaker(play: Playground, role: str) -> Speaker:
    speaker = play.speakers.get(role)
    if speaker is None:
        option = "--against USER" if role == AGAINST else "--assistant MODEL"
        message = f"this server has no {role}; start it with {option}"
        raise RequestError(400, message, "speaker")
    return speaker


# --- the blind test -------------------------------------------------------------------------------


class Rater(BaseModel):
    """A call for the next pair of a rater."""

    model_config = STRICT
    rater: Annotated[str, Field(max_length=100)] = ""


class Rated(Rater):
    """A call with a rating: the test and the pair that were shown, and the side that looks like a
    person's."""

    test: str
    id: str
    side: Literal["left", "right"]
    answers: bool = False


def pair(play: Playground, asked: Rater) -> Any:
    """Return the first pair that a rater has not rated, or what they found if there is none."""
    if not play.pairs:
        raise RequestError(
            404,
            "this server has no blind test; start it with --blind RUN --reference LOGS",
        )
    own = _ratings_of(play, asked.rater)
    counts = {"of": len(play.pairs), "rated": len(own)}
    for id, (number, each) in play.numbered.items():
        if id not in own:
            named = {"test": play.test, "id": id, "pair": number}
            return {**named, **counts, **each.shown()}
    return {"pair": None, **counts, "taken": list(own.values()).count("model")}


def rate(play: Playground, asked: Rated) -> Any:
    """Write a rating down, and return the next pair."""
    if asked.test != play.test or asked.id not in play.numbered:
        raise RequestError(
            409,
            "the test was started anew with other pairs or sides, so this answer was not taken; "
            "look at the next pair",
            "test",
        )
    number, rated = play.numbered[asked.id]
    rating = rated.rating(number, asked.side, asked.rater, asked.answers)
    rating = replace(rating, user=play.rated.name, version=play.rated.version)
    if not play.saved.add(rating):
        raise RequestError(409, "you rated this pair already", "id")
    return pair(play, Rater(rater=asked.rater))


def _ratings_of(play: Playground, rater: str) -> dict[str, str]:
    """Return what a rater chose, by the ids of the pairs of this test."""
    found: dict[str, str] = {}
    for rating in play.saved.ratings():
        is_here = rating.shown in play.numbered and play.rated.may_be(rating.of)
        if rating.rater == rater and is_here:
            found[rating.shown] = rating.chosen
    return found


ASK, VIEW = "ask", "view"
CALLS: Mapping[str, tuple[type[BaseModel], Callable[[Playground, Any], Any]]] = {
    "state": (Nothing, state),
    ASK: (Ask, ask),
    VIEW: (Look, view),
    "save": (Save, save),
    "saved": (Nothing, saved),
    "load": (Named, load),
    "pair": (Rater, pair),
    "rate": (Rated, rate),
}
"""What the pages may call, by name: what it takes, and what answers it."""
