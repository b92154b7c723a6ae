# /// script
# requires-python = ">=3.11"
# dependencies = ["pydantic-ai-slim[openai]>=1"]
# ///
"""Pydantic AI: the user answers with a text, or with an object that has the end in a field."""

import peer
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.openai import OpenAIProvider


class Turn(BaseModel):
    message: str
    done: bool


def is_last(turn: Turn | str) -> bool:
    return turn == "[end]" or getattr(turn, "done", False)


def talk(output_type, url: str = peer.URL, is_last=is_last) -> list:
    provider = OpenAIProvider(base_url=url, api_key="none")
    model = OpenAIChatModel(peer.MODEL, provider=provider)
    user = Agent(model, system_prompt=peer.INTENT, output_type=output_type)
    history, said = None, []
    while len(said) < 10:
        done = user.run_sync(peer.AGENT, message_history=history)
        history = done.all_messages()
        said.append(done.output)
        if is_last(said[-1]):
            break
    return said


with peer.case("Pydantic AI", "pydantic-ai-slim", "base URL") as case:
    case.stop_phrase = "[end]"
    said = talk(str)
    assert said == [*peer.LINES, "[end]"], said
    case.end_seen = True
    case.note = peer.OWN_LOOP

for how, kind in {"answer tool": Turn, "`response_format`": NativeOutput(Turn)}.items():
    with peer.case("Pydantic AI", "pydantic-ai-slim", f"base URL, {how}") as case:
        said = talk(kind)
        assert [turn.message for turn in said[:3]] == peer.LINES, said
        assert said[3].done and len(said) == 4, said
        case.end_seen = True
        case.note = f"the end is the field `done`; {peer.OWN_LOOP}"

for ending in peer.endings("Pydantic AI", "pydantic-ai-slim"):
    with ending:
        talk(str, ending.url, is_last=lambda turn: False)
