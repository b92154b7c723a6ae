"""From a turn of the user to an answer in the form of the OpenAI API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from userlm.serving.messages import TurnRequest
from userlm.serving.schema import (
    AssistantMessage,
    ChatCompletion,
    Choice,
    ChoiceInfo,
    ServerConfig,
    StreamOptions,
    Usage,
    too_long,
)
from userlm.text import named_type, stable_hash
from userlm.types import Conversation, ModelError, Reply, Speaker
from userlm.users import with_sampling


def sample(user: Speaker, turn: TurnRequest, number: int) -> tuple[int, Reply]:
    """Return the number, and the reply for one of `n` choices, whose seed comes from it. The first
    choice does not depend on `n`.

    Raises:
        ModelError: if there is no reply.
        RequestError: if the conversation does not fit the model.
    """
    speaker = with_sampling(
        user,
        seed=stable_hash(turn.seed, number) if number else turn.seed,
        temperature=turn.request.temperature,
        top_p=turn.request.top_p,
        max_tokens=turn.max_tokens,
    )
    return number, reply_of(speaker, turn.conversation)


def reply_of(speaker: Speaker, conversation: Conversation) -> Reply:
    """Return the reply of a speaker; see `sample` for what it raises."""
    reply = speaker.reply(conversation)
    if not isinstance(reply, Reply):
        raise TypeError(
            f"{type(speaker).__name__}.reply returned {named_type(reply)}; return "
            f"userlm.Reply(text)"
        )
    if reply.stop == "context":
        raise too_long()
    if reply.stop == "error" or not (reply.text or reply.stop):
        role = conversation.next_role
        raise ModelError(f"the {role} returned neither a text nor a reason to stop")
    return reply


def completion(
    samples: Sequence[tuple[int, Reply]], turn: TurnRequest, config: ServerConfig
) -> ChatCompletion:
    """Return the response of `/v1/chat/completions`, with the replies as choices: there may be
    fewer than were asked for. Their `index` is their place in the list, as OpenAI has it: with a
    gap, its own client fails to put the chunks of a stream together."""
    choices = []
    notes = list(turn.notes)
    if len(samples) < (turn.request.n or 1):
        notes.append(
            f"choices that failed are left out: {len(samples)} of {turn.request.n} came"
        )
    for i, (number, reply) in enumerate(samples):
        choices.append(_choice(i, number, reply, turn))
        if turn.stop_phrase and turn.stop_phrase in reply.text:
            notes.append(
                f"choices[{i}] contains the stop phrase in its own text; userlm.ended says whether "
                "the user ended the conversation"
            )
        if truncated := reply.meta.get("truncated_tokens"):
            notes.append(
                f"{truncated} tokens of the conversation did not fit the model's context length; "
                "the oldest were left out"
            )
    known = {
        "intent": turn.conversation.intent,
        "roles": turn.roles,
        "seed": turn.seed,
        "ignored": turn.ignored,
        "notes": list(dict.fromkeys(notes)),
    }
    return ChatCompletion(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=config.model_name,
        choices=choices,
        usage=_usage([reply for _, reply in samples]),
        userlm=choices[0].userlm.model_dump() | known,
    )


def _choice(index: int, number: int, reply: Reply, turn: TurnRequest) -> Choice:
    """Return a reply as a choice, its text cut before the first of the request's stop texts."""
    stop = turn.request.stop or []
    texts = [stop] if isinstance(stop, str) else stop
    found = [reply.text.find(text) for text in texts if text in reply.text]
    ended = reply.stop == "end"
    message = _message(reply.text[: min(found, default=None)], ended, turn)
    finish_reason = "tool_calls" if message.tool_calls else "stop"
    if reply.stop == "guard":
        finish_reason = "content_filter"
    elif reply.meta.get("cut") and not (found or ended or turn.form):
        finish_reason = "length"
    info = ChoiceInfo(
        sample=number,
        ended=ended,
        p_end=reply.meta.get("p_end"),
        stop=reply.stop,
        rejected=len(reply.meta.get("rejected", ())),
        violates=reply.meta.get("violates", []),
    )
    return Choice(
        index=index,
        message=message,
        finish_reason=finish_reason,
        userlm=info,
    )


def _message(words: str, ended: bool, turn: TurnRequest) -> AssistantMessage:
    """Return the message for what the user says, in the form that the request asks for. Where the
    form has no field for the end, the words have it."""
    form = turn.form
    if ended and not (form and form.end):
        if turn.stop_phrase:
            words = f"{words}\n{turn.stop_phrase}" if words else turn.stop_phrase
        words = words or turn.end_says
    if form is None:
        return AssistantMessage(content=words)
    filled = form.filled(words, ended)
    if form.tool is None:
        return AssistantMessage(content=filled)
    call = {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": form.tool, "arguments": filled},
    }
    return AssistantMessage(content=None, tool_calls=[call])


def _usage(replies: Sequence[Reply]) -> Usage | None:
    """Return the token counts of all drafts; `None` unless every reply has them."""
    try:
        read = sum(reply.meta["tokens_in"] for reply in replies)
        written = sum(reply.meta["tokens_out"] for reply in replies)
    except KeyError:
        return None
    return Usage(
        prompt_tokens=read,
        completion_tokens=written,
        total_tokens=read + written,
    )


def chunks(
    answer: ChatCompletion, options: StreamOptions | None
) -> list[dict[str, Any]]:
    """Return the answer in the chunks of a stream.

    The content is a single chunk, since the guard must check the whole text before it is sent.
    """
    include_usage = options and options.include_usage
    head = answer.model_dump(include={"id", "created", "model"})
    head["object"] = "chat.completion.chunk"
    if include_usage:
        head["usage"] = None
    chunks = []
    for choice in answer.choices:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if choice.message.content:
            deltas.append({"content": choice.message.content})
        if calls := choice.message.tool_calls:
            deltas.append({"tool_calls": [{"index": 0, **calls[0]}]})
        for delta in deltas:
            part = {"index": choice.index, "delta": delta, "finish_reason": None}
            chunks.append({**head, "choices": [part]})
        last = choice.model_dump(include={"index", "finish_reason", "userlm"})
        last["delta"] = {}
        chunks.append({**head, "choices": [last]})
    chunks[-1]["userlm"] = answer.userlm
    if include_usage:
        usage = answer.model_dump(include={"usage"})
        chunks.append({**head, "choices": [], **usage})
    return chunks
