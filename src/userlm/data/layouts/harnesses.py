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

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from userlm.data.layouts.common import Imported, Layout, assemble, read_messages
from userlm.data.layouts.fields import Rejected, Row, id_of, list_of, need, plain_number
from userlm.json_files import at_path
from userlm.lines import Line, make_line
from userlm.text import has_words
from userlm.types import Origin

_MARKS = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
_SOLVED = 1.0  # reward
_MAX_TURNS = 10  # of promptfoo, if nothing else is set
_TASK = "task"
"""The field in which a simulation gets its task, which stands elsewhere in the file."""


def unpacked(line: Line) -> Iterator[Line]:
    """Yield the line, or for a whole file of results one for each conversation."""
    row = line.row
    if isinstance(row.get("simulations"), list):
        tasks = {
            str(one["id"]): one for one in _objects(row.get("tasks")) if "id" in one
        }
        for one in row["simulations"]:
            if isinstance(one, dict):
                task = tasks.get(str(one.get("task_id")))
                one = {**one, _TASK: task} if task else one
            yield make_line(line.number, one)
    elif isinstance(results := at_path(row, "results.results", None), list):
        for one in results:
            yield make_line(line.number, one)
    else:
        yield line


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
    reason = row.get("termination_reason")
    return _conversation(
        said,
        id=id_of(row, "id"),
        task=id_of(row, "task_id"),
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
    given = at_path(row, "metadata.messages", None)
    if given is None:
        given = at_path(row, "response.metadata.messages", None)
    if given is None:
        why = (
            row.get("error") or "only results of promptfoo:simulated-user have messages"
        )
        raise Rejected("no messages", str(why))
    said = list_of({"messages": given}, "messages")
    config = at_path(row, "testCase.provider.config", {})
    goal = at_path(config, "instructions", at_path(row, "vars.instructions", None))
    most = plain_number(at_path(config, "maxTurns", _MAX_TURNS))
    turns = sum(isinstance(one, dict) and one.get("role") == "user" for one in said)
    solved = row.get("success")
    return _conversation(
        said,
        id=id_of(row, "id"),
        task=id_of(row, "testIdx"),
        repeat=None,
        ends=isinstance(most, int) and turns < most,
        meta={
            "source": "promptfoo",
            "goal": goal if isinstance(goal, str) else None,
            "solved": solved if isinstance(solved, bool) else None,
            "model": id_of(at_path(row, "provider", {}), "id") or None,
        },
    )


def _conversation(
    said: list[Any],
    *,
    id: str,
    task: str,
    repeat: Any,
    ends: bool,
    meta: dict[str, Any],
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
    origin = Origin(task=task or None, repeat=repeat)
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
