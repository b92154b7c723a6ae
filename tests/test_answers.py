"""The answer beside the messages of a call, in whatever form it was logged."""

import json
import random
from typing import Any

import pytest

from userlm.data.layouts.messages import convert

WORDS = [f"word {n} of it" for n in range(1000)]
ALIKE = ["yes", "no", "hi"]
JSON = ['{"a": 1}', "[1, 2]", '{"role": "user"}', '[{"text": "t", "of": "me"}]', "why?"]
LANGCHAIN = {"user": "human", "assistant": "ai", "system": "system"}

Row = dict[str, Any]
Said = list[tuple[str, str]]


def message(role: str, text: str, form: str) -> Row:
    if form == "parts":
        return {"role": role, "content": [{"type": "text", "text": text}]}
    if form == "gemini":
        return {"role": role.replace("assistant", "model"), "parts": [{"text": text}]}
    if form == "langchain":
        return {"type": LANGCHAIN[role], "content": text}
    return {"role": role, "content": text}


def chunks(text: str) -> list[Row]:
    size = max(1, len(text) // 3)
    deltas = [{"content": text[i : i + size]} for i in range(0, len(text), size)]
    choices = [{"index": 0, "delta": delta} for delta in [*deltas, {}]]
    choices[-1]["finish_reason"] = "stop"
    return [{"object": "chat.completion.chunk", "choices": [one]} for one in choices]


def returned(form: str, kind: str, asked: Said, text: str) -> Any:
    """What an API returned, or what a logger made of it."""
    answer = message("assistant", text, form)
    thread = [message(role, said, form) for role, said in asked]
    stream = chunks(text)
    plain = message("assistant", text, "plain")
    match kind:
        case "messages":
            return [answer]
        case "thread":
            return [*thread, answer]
        case "state":
            return {"messages": [*thread, answer]}
        case "last":
            return [thread[-1], answer]
        case "choices":
            return {"choices": [{"message": plain, "finish_reason": "stop"}]}
        case "candidates":
            content = message("assistant", text, "gemini")
            return {"candidates": [{"content": content, "finishReason": "STOP"}]}
        case "output":
            thought = {"type": "reasoning", "summary": []}
            return {
                "object": "response",
                "output": [thought, {"type": "message", **plain}],
            }
        case "chunks":
            return stream
        case "events":
            data = [f"data: {json.dumps(one)}\n\n" for one in stream]
            return "".join([*data, "data: [DONE]\n"])
        case "field":
            return {"text": text}
        case "message":
            return answer
    return text


KINDS = (
    "text",
    "message",
    "messages",
    "thread",
    "state",
    "last",
    "choices",
    "candidates",
)
KINDS += ("output", "chunks", "events", "field")
OF_TEXTS = ("text", "events", "field")


@pytest.mark.parametrize("texts", [WORDS, ALIKE, JSON])
def test_whatever_its_form_it_is_the_last_turn_and_nothing_is_doubled(texts):
    for seed in range(600):
        draw = random.Random(seed)
        roles = ["user", "assistant"] * draw.choice([0, 0, 1, 2]) + ["user"]
        asked = [(role, draw.choice(texts)) for role in roles]
        text, kind = draw.choice(texts), draw.choice(KINDS)
        form = draw.choice(["plain", "parts"])
        messages = [message(role, said, form) for role, said in asked]
        if draw.random() < 0.4:
            messages.insert(0, message("system", "Be brief.", form))
        form = draw.choice(["plain", "parts", "gemini", "langchain"])
        answer = returned(form, kind, asked, text)
        if kind not in OF_TEXTS and draw.random() < 0.5:
            answer = json.dumps(answer)
        row = {"messages": messages, draw.choice(["response", "output"]): answer}
        found = convert(row).conversation
        said = [(turn.role, turn.text) for turn in found.turns]
        assert said == [*asked, ("assistant", text)], (seed, row)
        assert found.ended
