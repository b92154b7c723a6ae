"""Options, described once: a frozen dataclass for each verb, and groups that several verbs share.

The class makes the options of the command line (`command`), of a configuration file
(`option_types`) and of run.json (`recorded`), and an instance is the argument of the verb's
function. `commands/clean.py` is an example. A field whose type is a dataclass is a group: on the
command line and in run.json its options stand beside the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import partial
from itertools import chain
from math import inf, isfinite
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeGuard,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

from userlm import address, inputs, loading
from userlm.assistants import MAX_ANSWER_TOKENS
from userlm.guard import Guard
from userlm.metrics.ratings import RatedUser
from userlm.parts import Part
from userlm.text import has_words, stable_hash
from userlm.types import InputError, ModelError, Speaker

T = TypeVar("T")
Dtype = Literal["float32", "bfloat16", "float16"]

EMBEDDED_USER = "trained:userlm-small"
EMBEDDED_GUARD = "no-repeat"  # a model this small repeats itself

BEHIND_USER = "behind user"
"""The key of run.json for the names of the inputs that its user rests on."""

MAX_TEMPERATURE = 100
"""Every token is as good as equally likely there."""

# Headings of the help.
SAMPLING = "How the user is sampled"
MODELS = "Models on this machine"
COSTS = "Costs"
PARTS = "Several machines"
OUTPUT = "Output"


# --- one option -----------------------------------------------------------------------------------


def option(
    default: Any,
    help: str,
    *,
    flag: str = "",
    min: float | None = None,
    max: float | None = None,
    metavar: str | None = None,
    panel: str | None = None,
    recorded: bool = True,
) -> Any:
    """Return the field of an option.

    Args:
        default: `...` for a required option.
        flag: its flag, if that is not the name of the field.
        panel: the heading of the help under which it stands.
        recorded: whether it identifies a run. The same recorded options resume a run; others may
            change.
    """
    flags = [flag] if flag else []
    shown = typer.Option(
        *flags, help=help, min=min, max=max, metavar=metavar, rich_help_panel=panel
    )
    return _field(default, shown, recorded)


def argument(default: Any, help: str) -> Any:
    """Return the field of a positional argument. Files are recorded as inputs, not as options."""
    return _field(default, typer.Argument(help=help), recorded=False)


def _field(default: Any, shown: Any, recorded: bool) -> Any:
    given = MISSING if default is ... else default
    return field(default=given, metadata={"shown": shown, "recorded": recorded})


def out_folder(default: str) -> Any:
    """Return the field of the output folder."""
    return option(Path(default), "Output folder of this run.", recorded=False)


def seed_option() -> Any:
    """Return the field of the seed."""
    return option(0, "Random seed.")


def max_answer_tokens_option() -> Any:
    """Return the field of the maximum length of an assistant's answers."""
    return option(
        MAX_ANSWER_TOKENS,
        "Maximum length of an answer of the assistant in tokens, if it is a model.",
        min=1,
    )


def limit_option() -> Any:
    """Return the field of a limit on the input."""
    return option(None, "Use only the first LIMIT items.", min=1, max=2**31)


def workers_option(what: str = "conversations") -> Any:
    """Return the field of the number of threads."""
    return option(16, f"Number of concurrent {what}.", min=1, recorded=False)


def device_option(panel: str = MODELS) -> Any:
    """Return the field of the device."""
    return option(
        None,
        "Device, such as cuda or cpu; default: a GPU if there is one.",
        panel=panel,
        recorded=False,
    )


def dtype_option() -> Any:
    """Return the field of the precision of weights."""
    return option(
        None,
        "Precision of the weights; default: bfloat16 on a GPU, float32 on a CPU.",
        panel=MODELS,
    )


def hub_option() -> Any:
    """Return the field of `--hub`."""
    return option(False, "Also write hub/: parquet files and a dataset card.")


def max_tokens_option() -> Any:
    """Return the field of the maximum length of a row."""
    return option(
        2048,
        "Maximum row length in tokens; longer rows lose their oldest turns.",
        min=16,
    )


@dataclass(frozen=True, slots=True)
class System:
    """A system prompt, and the file that it is from."""

    text: str | None = None
    files: tuple[Path, ...] = ()


def read_system(given: str | None) -> System:
    """Return the system prompt that `--system` gives: the text of a file, or a text.

    Raises:
        InputError: if there is no such file. A text has several words.
    """
    if given is None or not has_words(given):
        return System(given)
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # it is too long for a name
        is_file = False
    if not is_file and len(given.split()) > 1:
        return System(given)
    try:
        return System(path.read_text(encoding="utf-8").strip(), (path,))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--system {given}: cannot read this file ({error}); a text that is no file has "
            "several words"
        ) from None


# --- a class of options ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Described:
    """One option of a class or its groups.

    Attributes:
        shown: how the command line shows it; see `typer.Option`.
        default: `MISSING` if it is required.
    """

    name: str
    type: Any
    shown: Any
    default: Any

    @property
    def label(self) -> str:
        """Its name on the command line."""
        if isinstance(self.shown, typer.models.ArgumentInfo):
            return self.name
        name = self.name.rstrip("_").replace("_", "-")  # `as_`, since `as` is no name
        flags = self.shown.param_decls or [f"--{name}"]
        return str(flags[0])

    @property
    def low(self) -> float:
        """The lowest number that it may be."""
        return -inf if self.shown.min is None else self.shown.min

    @property
    def high(self) -> float:
        """The highest number that it may be."""
        return inf if self.shown.max is None else self.shown.max


def described(options: type, group: Any = None) -> Iterator[Described]:
    """Yield the options of a class, and of its groups in their places.

    Args:
        group: the instance whose values are the defaults, if it is a group that has them.
    """
    types = get_type_hints(options)
    for each in fields(options):
        default = each.default if group is None else getattr(group, each.name)
        if is_group(types[each.name]):
            given = None if default is MISSING else default
            yield from described(types[each.name], given)
        else:
            if "shown" not in each.metadata:
                raise TypeError(
                    f"{options.__name__}.{each.name}: describe it with option() or argument()"
                )
            shown = each.metadata["shown"]
            yield Described(each.name, types[each.name], shown, default)


def is_group(kind: Any) -> TypeGuard[type]:
    """Return whether a type is a group of options."""
    return is_dataclass(kind)


def option_types(options: type) -> dict[str, Any]:
    """Return the type of each option, by name."""
    return {each.name: each.type for each in described(options)}


def command(options: type[T], run: Callable[[T], Any]) -> Callable[..., Any]:
    """Return the function that Typer makes a command of: it has a parameter for each option."""
    parameters = []
    for each in _checked(options):
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        parameters.append(
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[each.type, each.shown],
            )
        )

    def call(**values: Any) -> Any:
        return run(build(options, values))

    vars(call)["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _checked(options: type) -> list[Described]:
    """Return the options of a class; raise `TypeError` for a mistake in its fields."""
    found: dict[str, Described] = {}
    for each in described(options):
        where = f"{options.__name__}.{each.name}"
        if each.name in found:
            raise TypeError(f"{where}: one of its groups has this option too")
        choices = _choices(each.type)
        if choices and each.default not in (*choices, None, MISSING, ...):
            raise TypeError(f"{where}: its default is not one of {', '.join(choices)}")
        if each.type is bool and not isinstance(each.default, bool):
            raise TypeError(f"{where}: its default is neither True nor False")
        found[each.name] = each
    return list(found.values())


def description(options: type) -> str:
    """Return the docstring of a verb's options, each paragraph on one line: the terminal wraps it
    to its own width. Paragraphs that begin with `$` are examples."""
    paragraphs = (options.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def build(options: Any, values: Mapping[str, Any]) -> Any:
    """Return the options with these values, by name."""
    types = get_type_hints(options)
    own = {}
    for each in fields(options):
        kind = types[each.name]
        own[each.name] = build(kind, values) if is_group(kind) else values[each.name]
    return options(**own)


def recorded(options: Any) -> dict[str, Any]:
    """Return the options that identify a run, by name."""
    found: dict[str, Any] = {}
    for each in fields(options):
        value = getattr(options, each.name)
        if is_dataclass(value):
            found |= recorded(value)
        elif each.metadata["recorded"]:
            found[each.name] = value
    return found


def given(options: Any) -> dict[str, Any]:
    """Return all options, by name."""
    return {each.name: each.default for each in described(type(options), options)}


def rebuilt(options: type[T], values: Mapping[str, Any]) -> T:
    """Return the options with these values, read from JSON, by name."""
    typed = {}
    for each in described(options):
        value = values[each.name]
        if _is_path(each.type) and isinstance(value, str):
            value = Path(value)
        elif _is_path(each.type) and isinstance(value, list):
            value = [Path(item) for item in value]
        typed[each.name] = value
    rebuilt_options: T = build(options, typed)
    return rebuilt_options


def _is_path(kind: Any) -> bool:
    """Whether a type is that of a path, of several, or of one that may be missing."""
    return kind is Path or any(map(_is_path, get_args(kind)))


def check(options: Any) -> None:
    """Raise `InputError` for a value that is none of the choices, or out of range. The command line
    has checked it already; calls from Python have not."""
    for each in described(type(options), options):
        check_value(each, each.default)


def check_value(option: Described, value: Any) -> None:
    """Raise `InputError` if an option may not have this value; see `check`."""
    choices = _choices(option.type)
    if choices and value not in (*choices, None):
        known = " or ".join(choices)
        raise InputError(f"{option.label} {value}: give {known}")
    if not isinstance(value, int | float):
        return
    if not (option.low <= value <= option.high and isfinite(value)):
        wanted = f", {option.low:g} to {option.high:g}"
        if option.high == inf:
            wanted = f", {option.low:g} or more"
        if option.low == -inf:
            wanted = ""
        raise InputError(f"{option.label} {value}: give a number{wanted}")


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the values of `Literal[...]` or `Literal[...] | None`; empty for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(chain.from_iterable(map(_choices, get_args(kind))))


# --- groups ---------------------------------------------------------------------------------------


_output = partial(option, False, panel=OUTPUT, recorded=False)
_sampling = partial(option, None, panel=SAMPLING)


@dataclass(frozen=True, slots=True)
class Output:
    """What is shown of a run, and whether it begins anew."""

    details: bool = _output("Also show the long tables.", flag="--details")
    force: bool = _output(
        "Delete what an earlier run left in the output folder, and begin anew. The same command "
        "resumes a run that it began so.",
        flag="--force",
    )


@dataclass(frozen=True, slots=True)
class Failures:
    """How many conversations may fail before the whole run does."""

    max_failed: float = option(
        1.0,
        "Maximum share of conversations that may end in an error, or get no intent. If it is more, "
        "or all of them, the exit code is 1.",
        min=0,
        max=1,
        panel=OUTPUT,
        recorded=False,
    )

    def check(
        self,
        failed: int,
        total: int,
        where: str = "",
        what: str = "conversations",
        how: str = "ended in an error",
    ) -> None:
        """Raise `ModelError` if too many of the conversations, or of `what`, failed; `how`."""
        found = f"{where}{failed:,} of {total:,} {what} {how}"
        if failed and failed >= total:
            raise ModelError(found)
        if failed > self.max_failed * total:
            raise ModelError(f"{found}: more than --max-failed {self.max_failed:g}")


@dataclass(frozen=True, slots=True)
class Parts:
    """The share of the input that a run takes, and where the shares are run."""

    part: str | None = option(
        None,
        "Take only part I of N, such as 1/4, by a hash of the id; `userlm merge` makes one run of "
        "all parts. --limit counts before the parts are cut; limits on costs hold for each part.",
        metavar="I/N",
        panel=PARTS,
    )
    on: Literal["ray"] | None = option(
        None,
        "Run all parts on a cluster, and merge them: ray is the one at RAY_ADDRESS, else this "
        "machine. Limits on costs are divided among the parts.",
        panel=PARTS,
        recorded=False,
    )
    parts: int = option(
        4,
        "Number of parts, with --on.",
        min=1,
        max=100_000,
        panel=PARTS,
        recorded=False,
    )
    gpus: float = option(
        0,
        "GPUs for each part, with --on; 0.5: two parts share one.",
        min=0,
        max=1000,
        panel=PARTS,
        recorded=False,
    )

    @property
    def share(self) -> Part:
        """The part; of one if none is given."""
        return Part() if self.part is None else Part.parse(self.part)


@dataclass(frozen=True, slots=True)
class LocalModels:
    """How models on this machine run."""

    batch: int = option(
        address.BATCH,
        "Batch size of a local model, in conversations; 1 gives bit-exact results.",
        min=1,
        panel=MODELS,
    )
    device: str | None = device_option()
    dtype: Dtype | None = dtype_option()

    @property
    def settings(self) -> address.LocalSettings:
        """The settings of local models."""
        return address.LocalSettings(self.batch, self.device, self.dtype)


@dataclass(frozen=True, slots=True)
class UserSettings:
    """How users are sampled; see `loading.user`."""

    temperature: float | None = _sampling(
        "Temperature of the user; 0 is greedy. Default: depends on the user.",
        min=0,
        max=MAX_TEMPERATURE,
    )
    top_p: float | None = _sampling(
        "Top-p of the user. Default: depends on the user.", min=0, max=1
    )
    end_threshold: float | None = _sampling(
        "End the conversation if and only if P(end) is at least this. Default: end when the end "
        "token is sampled.",
        min=0,
        max=1,
    )
    guard: str | None = _sampling(
        "Rules for drafts; a draft that breaks one is resampled. Either paper, or comma-separated: "
        "no-end, words=3-25, no-repeat, ...; paper,may-end lets the user end."
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer of a trained user on a server. Default: the model's name as hub id.",
    )
    prompt: str | None = option(
        None,
        "Prompt of a prompted user: plain, or a file with the places {goal}, {transcript} and "
        "{end} (swapped: has no {transcript}). Default: that of its form.",
        panel=SAMPLING,
    )


@dataclass(frozen=True, slots=True)
class User:
    """Which user, and how it is sampled."""

    user: str = option(
        ...,
        "trained:MODEL, profile:, prompted: or swapped:MODEL, replay:FILE, script:FILE or "
        "py:MODULE:NAME.",
    )
    settings: UserSettings = UserSettings()

    def load(self, seed: int = 0, local: LocalModels | None = None) -> Speaker:
        """The user."""
        given = self.settings
        return loading.user(
            self.user,
            seed=seed,
            temperature=given.temperature,
            top_p=given.top_p,
            end_threshold=given.end_threshold,
            guard=given.guard,
            local=(local or LocalModels()).settings,
            tokenizer=given.tokenizer,
            prompt=given.prompt,
        )

    def with_embedded_defaults(self) -> User:
        """This user; the embedded one with its guard and, if its base model is not here, the tiny
        one."""
        if self.user != EMBEDDED_USER:
            return self
        name = loading.small_or_tiny("userlm")
        guard = self.settings.guard or EMBEDDED_GUARD
        return User(f"trained:{name}", replace(self.settings, guard=guard))

    @property
    def files(self) -> list[Path]:
        """The local files that it rests on."""
        return inputs.files(self.parsed, self.settings.tokenizer, self.settings.prompt)

    @property
    def behind(self) -> list[str]:
        """The names of the inputs that it rests on."""
        return [*map(str, self.files), *inputs.stamps(self.parsed)]

    @property
    def parsed(self) -> address.Address:
        """The parts of its address."""
        return address.parse(self.user)


def rated_user(manifest: Mapping[str, Any]) -> RatedUser:
    """Return the user of a run by its run.json: address and options, and a hash of what they mean
    if the files that it rests on are known: these by their contents, wherever they are."""
    try:
        user = rebuilt(User, manifest["options"])
        # Another run may have had others than there are now.
        names = manifest.get(BEHIND_USER) or user.behind
    except KeyError:  # the run has no user
        return RatedUser()
    except (InputError, OSError, ValueError):  # the model is not here
        names = [""]
    given = recorded(user.settings)
    given = {name: value for name, value in given.items() if value is not None}
    options = [f"--{name.replace('_', '-')} {given[name]}" for name in given]
    shown = " ".join((str(user.parsed), *options))
    known = manifest["inputs"]
    are_named = isinstance(names, list)  # else it is damaged
    contents = [known.get(str(name)) for name in names] if are_named else [None]
    if not contents or None in contents:
        return RatedUser(shown)
    meant: dict[str, Any] = {"user": _called(user.parsed)}
    for name, value in given.items():
        if name == "guard":
            meant[name] = Guard.parse(value)
        elif str(Path(str(value))) not in names:  # else its contents are there
            meant[name] = value
    return RatedUser(shown, f"{stable_hash(meant, *contents):016x}")


def _called(user: address.Address) -> str:
    """Return what an address says of a user besides the contents of its files."""
    is_only_files = user.scheme in ("", "replay", "script") and inputs.files(user)
    return f"{user.form}:{user.scheme}" if is_only_files else str(user)
