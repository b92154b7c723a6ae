"""Transcripts: every turn with the details from its `meta`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from userlm.show.blocks import (
    Facts,
    Line,
    Pair,
    Quote,
    Said,
    Transcript,
    Transcripts,
)
from userlm.show.formats import called, json_text, plural
from userlm.show.noted import Noted, Talks
from userlm.show.results import finite
from userlm.text import intent_goal
from userlm.types import Conversation, Turn

STOPS = {
    "end": "the user ended the conversation",
    "max_turns": "the limit on user turns",
    "context": "the conversation no longer fits the model",
    "guard": "no acceptable draft",
    "error": "a model or a bot failed",
    "solved": "the task was solved",
    "answered": "the user said something",
}
ANCHOR = 200
"""Characters of a run's name and an id that tell a conversation from others."""
SHOWN_META = ("error", "facts", "verdict")
"""Keys of a conversation's `meta` that are shown. The others come from a log and may be
personal."""

HIDDEN = {
    "p_end",
    "empty_drafts",
    "cut",
    "stub",
    "violates",
    "exhausted",
    "tokens_in",
    "tokens_out",
}
"""The keys of a turn's `meta` that are not shown, or shown in another form."""


def anchor(run: str, id: str) -> str:
    """Return where a link to a conversation of a run points: the name of the run's folder and the
    id, in characters that any page and link can hold."""
    return "c-" + quote(f"{run}-{id}"[:ANCHOR], safe="", errors="replace")


def transcripts(talks: Talks, name: str, keep_turns: int = 0) -> Transcripts:
    """Return conversations under the name of their run on this page.

    Args:
        keep_turns: how many turns of each are from a log.
    """
    shown = []
    for talk in talks.shown:
        one = transcript(talk, keep_turns, talks.noted(talk))
        shown.append(replace(one, anchor=anchor(name, talk.id)))
    about: Line = "held in the playground"
    if talks.user:
        assistant = Quote(called(talks.assistant), 60)
        about = (Quote(called(talks.user), 60), " talks to ", assistant)
    return Transcripts(shown, talks.total, talks.path, name, about)


def transcript(
    conversation: Conversation, keep_turns: int = 0, noted: Noted | None = None
) -> Transcript:
    """Return one conversation."""
    known = noted or Noted()
    count: Counter[str] = Counter()
    turns = []
    for i, turn in enumerate(conversation.turns):
        said = _said(
            turn.role, f"{turn.role} {count[turn.role] + 1}", turn.text, turn.meta
        )
        if i < keep_turns:
            said = replace(said, marks=[Quote("from the log"), *said.marks])
        if turn.role == "user" and (told := known.said.get(count["user"])):
            said = replace(said, facts=[("says", told), *said.facts])
        count[turn.role] += 1
        turns.append(said)
    facts = {
        name: value for name, value in conversation.meta.items() if name in SHOWN_META
    }
    if conversation.origin and conversation.origin.task is not None:
        facts = {"task": conversation.origin.task, **facts}
    if known.verdict:
        facts["verdict"] = known.verdict
    if known.unsaid:
        facts["never said"] = known.unsaid
    stop = conversation.stop or "no stop"
    ending = _ending(conversation)
    drafts = sum(len(said.rejected) for said in (*turns, ending))
    return Transcript(
        conversation.id,
        intent_goal(conversation.intent or "no intent"),
        f"{plural(len(conversation.user_turns), 'user turn')} · {stop}",
        conversation.intent or "",
        turns,
        ending,
        _facts(facts),
        stop=stop,
        solved=True if stop == "solved" else known.solved,
        rejected=drafts,
        human=known.human,
    )


def pair(person: Conversation, talk: Conversation) -> Pair:
    """Return a conversation of a simulated user beside the person's that it starts from: a response
    beside what the person said in its place, a whole conversation beside the whole other one."""
    origin = talk.origin
    own = talk.first_own_turn
    is_response = origin is not None and origin.person_ended is not None
    start = 2 * own + (person.turns[:1] != () and person.turns[0].role == "assistant")
    stop = start + 1 if is_response else None
    ending = _said("end", "end", "the person wrote no more", {})
    of_person = _labelled(person.turns[start:stop])
    if origin and (origin.person_ended or (not is_response and person.ended)):
        of_person.append(ending)
    of_user = _labelled(talk.turns[start:])
    if talk.stop or not is_response:
        of_user.append(_ending(talk))
    return Pair(
        talk.id,
        intent_goal(talk.intent or "no intent"),
        _labelled(talk.turns[:start]),
        of_person,
        of_user,
    )


def _labelled(turns: Sequence[Turn]) -> list[Said]:
    return [_said(turn.role, turn.role, turn.text, turn.meta) for turn in turns]


def _ending(conversation: Conversation) -> Said:
    meta = conversation.meta.get("end_meta")
    stop = conversation.stop or "no stop reason"
    why = STOPS.get(stop, "it was not recorded")
    if stop == "end" and conversation.turns and conversation.turns[-1].role == "user":
        why += ", with the turn above"
    return _said("end", stop, why, meta if isinstance(meta, Mapping) else {})


def _said(role: str, label: str, text: str, meta: Mapping[str, Any]) -> Said:
    hidden = set(HIDDEN)
    marks = []
    if empty := meta.get("empty_drafts"):
        noun = "empty draft" if empty == 1 else "empty drafts"
        marks.append(f"{empty} {noun} before")
    if violates := meta.get("violates"):
        marks.append(f"kept, though {_joined(violates)}")
    truncated = meta.get("truncated_tokens")
    if type(truncated) is int:
        hidden.add("truncated_tokens")
        marks.append(f"{plural(truncated, 'token')} before did not fit")
    if meta.get("cut"):
        marks.append("cut at the token limit")
    rejected = _rejected(meta.get("rejected"))
    if rejected:
        hidden.add("rejected")
    quoted = [Quote(mark, 60) for mark in marks]
    if stub := meta.get("stub"):
        quoted.append(Quote(f"{stub}, a stub", 60, "badge"))
    rest = {name: value for name, value in meta.items() if name not in hidden}
    return Said(
        role, label, text, finite(meta.get("p_end")), quoted, _facts(rest), rejected
    )


def _facts(meta: Mapping[str, Any]) -> Facts:
    facts = []
    for name, value in meta.items():
        values = value if isinstance(value, list) and value else [value]
        facts.append((name, [json_text(one) for one in values]))
    return facts


def _rejected(drafts: Any) -> list[tuple[str, str]]:
    """Text and reasons of each draft, if `guard.guarded` wrote them."""
    try:
        return [(str(draft["text"]), _joined(draft["why"])) for draft in drafts]
    except (KeyError, TypeError):
        return []


def _joined(reasons: Any) -> str:
    return ", ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
