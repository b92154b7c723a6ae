"""`/v1/responses`: the same turns in the form of OpenAI's newer API, text only.

A request is translated into one of `/v1/chat/completions`, and its answer back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from userlm.serving.schema import ChatCompletion, ChatRequest, RequestError

_STATE = ("previous_response_id", "conversation", "background", "prompt")
"""Fields for what is kept at the server."""


def as_chat(body: object) -> object:
    """Return the body of the same request to `/v1/chat/completions`; what is no request is found
    there.

    Raises:
        RequestError: for a request that continues one before it.
    """
    if not isinstance(body, dict):
        return body
    for name in _STATE:
        if body.get(name):
            raise _not_kept(name, name)
    asked = body.get("input")
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if isinstance(items, list):
        items = [_message(i, item) for i, item in enumerate(items)]
        if body.get(
            "instructions"
        ):  # last, so that the numbers of the others are those of input
            items.append({"role": "system", "content": body["instructions"]})
    left_out = ("input", "instructions", "text", "max_output_tokens", "n")
    chat = {name: value for name, value in body.items() if name not in left_out}
    chat |= {"messages": items, "max_completion_tokens": body.get("max_output_tokens")}
    if isinstance(tools := body.get("tools"), list):
        chat["tools"] = [_tool(tool) for tool in tools]
    chat["tool_choice"] = _tool(body.get("tool_choice"))
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict):
        chat["response_format"] = {"type": form.get("type"), "json_schema": form}
        if form.get("type") != "json_schema":
            del chat["response_format"]["json_schema"]
    return chat


def _not_kept(where: str, param: str) -> RequestError:
    message = (
        f"{where}: this server keeps nothing; send the whole conversation as input"
    )
    return RequestError(400, message, param)


def _message(i: int, item: Any) -> Any:
    """Return an item of the input as a message. Reasoning and results of tools are not heard."""
    if not isinstance(item, dict) or "role" in item:
        return item
    kind = item.get("type")
    if kind == "item_reference":
        raise _not_kept(f"messages[{i}] is a reference", f"messages[{i}]")
    if kind == "function_call":
        return {"role": "assistant", "tool_calls": [{"function": item}]}
    return {"role": "tool"} if isinstance(kind, str) and kind != "message" else item


def _tool(tool: Any) -> Any:
    """Return a function, whose fields stand beside its type, as in a chat request."""
    is_function = isinstance(tool, dict) and tool.get("type") == "function"
    return {"function": tool} if is_function else tool


_OWN_NAMES = (
    (r"\bmessages(?=\[| is |$)", "input"),
    (r"\bmax_completion_tokens\b", "max_output_tokens"),
    (r"\bresponse_format\b(?:\.json_schema)?", "text.format"),
    (r"(?<=\])\.function\b", ""),
)
"""The fields of a chat request as patterns, and their names here."""


def in_its_words(error: RequestError) -> RequestError:
    """Return an error about the fields of a chat request as one about those of this one."""
    param = error.param and _renamed(error.param)
    return replace(error, message=_renamed(error.message), param=param)


def _renamed(text: str) -> str:
    for name, own in _OWN_NAMES:
        text = re.sub(name, own, text)
    return text


def response(answer: ChatCompletion, asked: ChatRequest) -> dict[str, Any]:
    """Return the answer as a response; it has one item, a message or a call of the answer tool."""
    [choice, *_] = answer.choices
    done = (
        "incomplete"
        if choice.finish_reason in ("length", "content_filter")
        else "completed"
    )
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    reason = reasons.get(choice.finish_reason)
    item: dict[str, Any]
    if calls := choice.message.tool_calls:
        function = calls[0]["function"]
        item = {"type": "function_call", "call_id": calls[0]["id"], **function}
    else:
        part: dict[str, Any] = {
            "type": "output_text",
            "text": choice.message.content,
            "annotations": [],
        }
        item = {"type": "message", "role": "assistant", "content": [part]}
    item |= {"id": answer.id.replace("chatcmpl", "msg"), "status": done}
    notes = [_renamed(note) for note in answer.userlm["notes"]]
    usage = answer.usage
    return {
        "id": answer.id.replace("chatcmpl", "resp"),
        "object": "response",
        "created_at": answer.created,
        "status": done,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": [item],
        "parallel_tool_calls": False,
        "temperature": asked.temperature,
        "tool_choice": "auto",
        "tools": [],
        "top_p": asked.top_p,
        "usage": usage
        and {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
        "userlm": {**answer.userlm, "notes": notes},
    }


def events(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream of a response; its text is a single piece."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    found: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    [item] = answer["output"]
    at = {"item_id": item["id"], "output_index": 0}
    empty = {**item, "status": "in_progress"}
    if item["type"] == "message":
        [part] = item["content"]
        inside = {**at, "content_index": 0}
        text = {**inside, "logprobs": []}
        nothing = {**part, "text": ""}
        middle = [
            {"type": "response.content_part.added", **inside, "part": nothing},
            {"type": "response.output_text.delta", **text, "delta": part["text"]},
            {"type": "response.output_text.done", **text, "text": part["text"]},
            {"type": "response.content_part.done", **inside, "part": part},
        ]
        empty["content"] = []
    else:
        arguments = item["arguments"]
        kind = "response.function_call_arguments"
        middle = [
            {"type": f"{kind}.delta", **at, "delta": arguments},
            {
                "type": f"{kind}.done",
                **at,
                "name": item["name"],
                "arguments": arguments,
            },
        ]
        empty["arguments"] = ""
    added = {"type": "response.output_item.added", "output_index": 0, "item": empty}
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    last = {"type": f"response.{answer['status']}", "response": answer}
    for number, event in enumerate([*found, added, *middle, done, last]):
        yield {**event, "sequence_number": number}
