"""Conversations with simulated users, as other harnesses write them.

tau2       results of tau2-bench: a file with `simulations` (and the `tasks` of them), or a file for
           each simulation
promptfoo  results of promptfoo with its simulated user: a file with `results`, or a result a line

Only words become turns; calls of tools, of the user too, go to `meta`. The marks with which a user
ends (`###STOP###`) are no words: they are an observed end, if nothing else is said with them.
`meta["solved"]` is what the harness says of the task, and the goal of the user is kept as
`meta["goal"]`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from userlm.data.layouts.common import Imported, Layout, assemble, read_messages
from userlm.data.layouts.fields import Rejected, Row, id_of, list_of, need, plain_number
from userlm.json_files import at_path, dump, dumps
from userlm.lines import Line, bad_line, make_line
from userlm.text import has_words, stable_hash
from userlm.types import Origin

_MARKS = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
_SOLVED = 1.0  # reward
_VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_MOST = 30
"""How many times as long as its file the results in it may be, since each gets its task: a small
packed file could fill the disk."""
_LONGEST_GOAL = 20_000  # characters, if it has variables
_MOST_COMPARED = 1 << 20
"""Comparisons of results with tests; the settings of further results are not known."""
_MAX_TURNS = 10  # of promptfoo, if nothing else is set
_TASK, _DOMAIN, _SETTINGS, _REPEATS = "task", "domain", "userSettings", "repeats"
"""The fields in which a row gets what stands elsewhere in its file: its task and domain (tau2), the
possible settings of its user and the number of repeats (promptfoo)."""


_Settings = dict[str, Any]
LISTS = frozenset(("simulations", "results"))
"""The fields of which a file of results has one."""


def unpacked(line: Line) -> Iterator[Line]:
    """Yield the line, or for a whole file of results one for each conversation. It is a bad line if
    it has none, or if with their tasks and settings they would be much longer than the file."""
    row = line.row
    simulations = row.get("simulations")
    results = at_path(row, "results.results", None)
    if isinstance(simulations, list):
        found, name = _simulations(row, simulations), "simulations"
    elif isinstance(results, list):
        found, name = _results(row, results), "results.results"
    else:
        yield line
        return
    if not found:
        problem = f"has an empty list {name!r}"
        yield bad_line(line.number, dump(row), "no messages", problem)
    size = 0
    most = _MOST * len(dump(row))
    for one in found:
        size += len(dump(one))
        if size > most:
            problem = f"has results that are more than {_MOST} times as long, each with its task"
            yield bad_line(line.number, dump(row), "too long", problem)
            return
    for one in found:
        yield make_line(line.number, one)


def _simulations(row: Row, simulations: list[Any]) -> list[Any]:
    tasks = {str(one["id"]): one for one in _objects(row.get("tasks")) if "id" in one}
    domain = at_path(row, "info.environment_info.domain_name", None)
    found = []
    for one in simulations:
        if isinstance(one, dict):
            task = tasks.get(str(one.get("task_id")))
            one = {_DOMAIN: domain, **one, _TASK: task}
        found.append(one)
    return found


def _results(row: Row, results: list[Any]) -> list[Any]:
    repeats = at_path(row, "runtimeOptions.repeat", 1)
    tests = _Tests(row.get("config"))
    found = []
    for one in results:
        if isinstance(one, dict):
            one = {**one, _SETTINGS: tests.settings(one), _REPEATS: repeats}
        found.append(one)
    return found


class _Tests:
    """The settings of the user in the tests of a file of results, found by their variables."""

    def __init__(self, config: Any) -> None:
        default = at_path(config, "defaultTest.provider", {})
        self._of: dict[frozenset[bytes], list[_Settings]] = {}
        for test in _objects(at_path(config, "tests", None)):
            variables = at_path(test, "vars", {})
            if isinstance(variables, dict):
                user = test.get("provider") or default
                one = _settings(at_path(user, "config", user))
                # A list stands for a test of each of its values.
                variables = {
                    name: value
                    for name, value in variables.items()
                    if not isinstance(value, list)
                }
                one["instructions"] = _with_variables(one["instructions"], variables)
                items = _items(variables)
                self._of[items] = _differing([*self._of.get(items, []), one])
        # By the rarest variable: a thousand results of a thousand tests take no time.
        counts = Counter(item for items in self._of for item in items)
        self._compared = 0
        self._by_rarest = defaultdict[bytes | None, list[frozenset[bytes]]](list)
        for items in self._of:
            rarest = min(items, key=lambda item: (counts[item], item), default=None)
            self._by_rarest[rarest].append(items)

    def settings(self, result: Mapping[str, Any]) -> list[_Settings]:
        """Return the settings in the tests that a result may be of: those whose variables it has.
        The result itself names only the provider."""
        given = at_path(result, "testCase.vars", {})
        if not isinstance(given, dict):
            return []
        items = _items(given)
        found: list[_Settings] = []
        for item in [None, *sorted(items & self._by_rarest.keys())]:
            for needed in self._by_rarest.get(item, []):
                self._compared += 1
                if self._compared > _MOST_COMPARED:
                    return [_settings(None)]
                if needed <= items:
                    found = _differing([*found, *self._of[needed]])
        return found


def _settings(user: Any) -> _Settings:
    """Return those settings of a user of promptfoo that are used here; `None` if they stand in
    another file."""
    is_named = isinstance(user, str) and user.startswith("promptfoo:")
    if not (isinstance(user, dict) or is_named):
        return {"maxTurns": None, "instructions": None}
    raw = at_path(user, "rawInstructions", "{{instructions}}")
    return {
        "maxTurns": at_path(user, "maxTurns", _MAX_TURNS),
        "instructions": at_path(user, "instructions", raw),
    }


def _differing(settings: Sequence[_Settings]) -> list[_Settings]:
    """Return the first of these settings, and if any differ another that differs wherever any
    does: that is all one needs to know what is the same in all of them."""
    first, *others = settings
    second = {
        name: next((one[name] for one in others if one[name] != value), value)
        for name, value in first.items()
    }
    return [first] if second == first else [first, second]


def _items(variables: Mapping[str, Any]) -> frozenset[bytes]:
    return frozenset(dump([name, value]) for name, value in variables.items())


def _objects(found: Any) -> list[dict[str, Any]]:
    items = found if isinstance(found, list) else []
    return [item for item in items if isinstance(item, dict)]


def tau2(row: Row) -> Imported:
    """Return the conversation of a simulation."""
    if row.get("messages") is None and row.get("ticks"):
        raise Rejected("no messages", "it is spoken (ticks); only texts are read")
    given = list_of(row, "messages")
    said = [_spoken(message) for message in given]
    reward = plain_number(at_path(row, "reward_info.reward", None))
    if not isinstance(reward, int | float) or isinstance(reward, bool):
        reward = None
    reason = row.get("termination_reason")
    return _conversation(
        said,
        id=id_of(row, "id"),
        task="/".join(filter(None, (id_of(row, _DOMAIN), id_of(row, "task_id")))),
        repeat=plain_number(row.get("trial")),
        ends=reason == "user_stop",
        meta={
            "source": "tau2",
            "goal": _goal(at_path(row, "task.user_scenario.instructions", None)),
            "solved": None if reward is None else reward >= _SOLVED,
            "reward": reward,
            "termination": reason if isinstance(reason, str) else None,
        },
    )


def _spoken(message: Any) -> Any:
    """Return a message; of audio, what was to be said, since its content is no text."""
    if isinstance(message, dict) and message.get("is_audio"):
        return {**message, "content": message.get("audio_script_gold")}
    return message


def _goal(instructions: Any) -> str | None:
    if isinstance(instructions, Mapping):
        instructions = instructions.get("reason_for_call")
    return instructions if isinstance(instructions, str) else None


def promptfoo(row: Row) -> Imported:
    """Return the conversation of a result. Where the user stopped, there are fewer turns than it
    might have taken."""
    kept = [row, at_path(row, "response", {})]
    given = _first_at(kept, "metadata.messages")
    if given is None:
        why = (
            row.get("error") or "only results of promptfoo:simulated-user have messages"
        )
        raise Rejected("no messages", str(why))
    said = list_of({"messages": given}, "messages")
    test = at_path(row, "testCase", {})
    variables = at_path(test, "vars", row.get("vars"))
    own = at_path(test, "provider.config", None)
    found = row.get(_SETTINGS)
    given = [own] if own else found if isinstance(found, list) else []
    settings = [_settings(each) for each in given]
    most = _shared([each["maxTurns"] for each in settings])
    texts = [each["instructions"] for each in settings or [_settings({})]]
    goal = _shared([_filled(text, variables) for text in texts])
    opening = at_path(variables, "initialMessages", [])
    is_opened = isinstance(opening, list) and said[: len(opening)] == opening
    earlier = _user_turns(opening) if is_opened else 0
    solved = row.get("success")
    ends = isinstance(most, int) and _user_turns(said) - earlier < most
    stop = _first_at(kept, "metadata.stop")
    if isinstance(stop, str):  # of our own bridge, which has settings of its own
        ends = stop == "end"
    return _conversation(
        said,
        id=id_of(row, "id"),
        task=_test_id(row, test),
        repeat=None,
        ends=ends,
        earlier=earlier,
        meta={
            "source": "promptfoo",
            "goal": goal,
            "solved": solved if isinstance(solved, bool) else None,
            "model": id_of({"id": at_path(row, "provider.id", None)}, "id") or None,
        },
    )


def _first_at(objects: list[Any], path: str) -> Any:
    """Return what the first of these objects has at a path; `None` if none has anything."""
    found = (at_path(one, path, None) for one in objects)
    return next((value for value in found if value is not None), None)


def _shared(values: list[Any]) -> Any:
    """Return the value, if it is the same everywhere."""
    is_known = values and all(value == values[0] for value in values)
    return values[0] if is_known else None


def _filled(instructions: Any, variables: Any) -> str | None:
    """Return what the user is told, with the variables of the test in their places; `None` if it is
    computed otherwise."""
    filled = _with_variables(instructions, variables)
    is_computed = not isinstance(filled, str) or "{{" in filled or "{%" in filled
    return None if is_computed else filled


def _with_variables(text: Any, variables: Any) -> Any:
    """Return a text with its variables; `None` if it would be too long: a variable may stand in it
    thousands of times."""
    if not isinstance(text, str):
        return text
    values: dict[str, str] = {}
    size = len(text)
    for at in _VARIABLE.finditer(text):
        if at[1] not in values:
            values[at[1]] = str(at_path(variables, at[1], at[0]))
        size += len(values[at[1]])
        if size > _LONGEST_GOAL:
            return None
    return _VARIABLE.sub(lambda at: values[at[1]], text)


def _user_turns(messages: list[Any]) -> int:
    return sum(isinstance(one, dict) and one.get("role") == "user" for one in messages)


def _test_id(row: Row, test: Any) -> str:
    """Return the same id for repeats of a test, which have numbers of their own. Of tests without
    variables nothing but the number tells which is which."""
    if at_path(test, "vars", None):
        return f"{stable_hash(dumps(test)):016x}"
    number, repeats = (plain_number(row.get(name)) for name in ("testIdx", _REPEATS))
    if isinstance(number, int) and isinstance(repeats, int) and repeats > 0:
        return str(number // repeats)
    return id_of(row, "testIdx")


def _conversation(
    said: list[Any],
    *,
    id: str,
    task: str,
    repeat: Any,
    ends: bool,
    meta: dict[str, Any],
    earlier: int = 0,
) -> Imported:
    kept = []
    for i, message in enumerate(said):
        message = need(message, dict, f"messages[{i}]")
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            text = _unmarked(content)
            if (
                not has_words(text)
                and text != content
                and not message.get("tool_calls")
            ):
                continue  # it is the end, and nothing is said
            message = {**message, "content": text}
        kept.append(message)
    if not kept:
        raise Rejected("no user turn", "the user ends before anything is said")
    messages = read_messages(enumerate(kept), "messages")
    found = assemble(messages, id=id, meta=meta, whole=ends)
    repeat = repeat if isinstance(repeat, int) and repeat >= 0 else 0
    origin = Origin(first_own_turn=earlier, task=task or None, repeat=repeat)
    return replace(found, conversation=replace(found.conversation, origin=origin))


def _unmarked(text: str) -> str:
    for mark in _MARKS:
        if mark in text:
            text = text.replace(mark, "").strip()
    return text


_SIMULATION = {"task_id", "termination_reason"}
TAU2_LAYOUT = Layout(
    "tau2", [{"messages", *_SIMULATION}, {"ticks", *_SIMULATION}], tau2
)
PROMPTFOO_LAYOUT = Layout("promptfoo", [{"testIdx", "promptIdx", "vars"}], promptfoo)
