"""Conversations as they are shown: every turn with what is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from userlm.show.blocks import Badge, Line, Quote, Said, Transcript
from userlm.show.finished import Finished
from userlm.show.formats import finite, json_text, plural
from userlm.text import intent_goal
from userlm.types import Conversation

STOPS = {
    "end": "the user ended the conversation",
    "max_turns": "the limit on user turns",
    "context": "no longer fits the model",
    "guard": "no acceptable draft",
    "error": "a model could not answer",
    "solved": "the task was solved",
    "answered": "the user said something",
}
SHOWN_META = ("task", "error", "facts", "verdict")
"""What is shown of a conversation's `meta`. The rest comes from a log and is about a person."""

Facts = tuple[tuple[str, tuple[str, ...]], ...]


def transcript(conversation: Conversation, run: Finished) -> Transcript:
    """Return one conversation of a run."""
    kept = run.options.get("keep_turns")
    logged_turns = kept if isinstance(kept, int) else 0
    numbers = {"user": 0, "assistant": 0}
    turns = []
    for i, turn in enumerate(conversation.turns):
        numbers[turn.role] += 1
        said = _said(turn.role, f"{turn.role} {numbers[turn.role]}", turn.text, turn.meta)
        if i < logged_turns:
            said = replace(said, marks=(Quote("from the log"), *said.marks))
        turns.append(said)
    user_turns = plural(len(conversation.user_turns), "user turn")
    return Transcript(
        id=conversation.id,
        title=intent_goal(conversation.intent or "no intent"),
        outcome=f"{user_turns} · {conversation.stop or 'no stop'}",
        intent=conversation.intent or "",
        turns=tuple(turns),
        ending=_ending(conversation),
        facts=_facts(conversation.meta, SHOWN_META),
    )


def _ending(conversation: Conversation) -> Said:
    meta = conversation.meta.get("end_meta")
    stop = conversation.stop or "no stop reason"
    why = STOPS.get(stop, "it was not recorded")
    turns = conversation.turns
    if stop == "end" and turns and turns[-1].role == "user":
        why += ", with the turn above"
    return _said("end", stop, why, meta if isinstance(meta, Mapping) else {})


def _said(role: str, label: str, text: str, meta: Mapping[str, Any]) -> Said:
    hidden = {"p_end", "empty_drafts", "cut", "stub", "violates", "exhausted"}
    hidden |= {"tokens_in", "tokens_out"}
    marks: list[Line] = []
    if empty := meta.get("empty_drafts"):
        marks.append(Quote(f"{empty} empty draft{'s' if empty != 1 else ''} before", 60))
    rejected = _rejected(meta.get("rejected"))
    if rejected:
        hidden.add("rejected")
    if violates := meta.get("violates"):
        marks.append(Quote(f"kept, though {_joined(violates)}", 60))
    truncated = meta.get("truncated_tokens")
    if type(truncated) is int:
        hidden.add("truncated_tokens")
        marks.append(Quote(f"{plural(truncated, 'token')} before did not fit"))
    if meta.get("cut"):
        marks.append(Quote("cut at the token limit"))
    if meta.get("stub"):
        marks.append(Badge(f"{meta['stub']}, a stub"))
    facts = _facts(meta, [name for name in meta if name not in hidden])
    return Said(role, label, text, finite(meta.get("p_end")), tuple(marks), facts, rejected)


def _facts(meta: Mapping[str, Any], names: Iterable[str]) -> Facts:
    facts = []
    for name in names:
        if name in meta:
            value = meta[name]
            values = value if isinstance(value, list) and value else [value]
            facts.append((name, tuple(map(json_text, values))))
    return tuple(facts)


def _rejected(drafts: Any) -> tuple[tuple[str, str], ...]:
    """Text and reasons of each draft, if `guard.guarded` wrote them."""
    if not isinstance(drafts, list):
        return ()
    if not all(isinstance(draft, Mapping) and {"text", "why"} <= draft.keys() for draft in drafts):
        return ()
    return tuple((str(draft["text"]), _joined(draft["why"])) for draft in drafts)


def _joined(reasons: Any) -> str:
    return ", ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
