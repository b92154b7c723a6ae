# /// script
# requires-python = ">=3.11"
# dependencies = ["openai-agents>=0.2"]
# ///
"""The OpenAI Agents SDK: the user is an agent, through either API."""

import asyncio

import peer
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)
PROMPT = f"{peer.INTENT} When you have what you want, reply with ###DONE###."


async def talk(model) -> list[str]:
    user = Agent(name="user", instructions=PROMPT, model=model)
    history, said = [{"role": "user", "content": peer.GREETING}], []
    while len(said) < 10:
        done = await Runner.run(user, history)
        said.append(done.final_output)
        if "###DONE###" in said[-1]:
            break
        history = [*done.to_input_list(), {"role": "user", "content": peer.AGENT}]
    return said


for name, model in {
    "Chat Completions": OpenAIChatCompletionsModel,
    "Responses": OpenAIResponsesModel,
}.items():
    with peer.case("OpenAI Agents SDK", "openai-agents", f"base URL, {name}") as case:
        case.stop_phrase = "###DONE###"
        client = AsyncOpenAI(base_url=peer.URL, api_key="none")
        said = asyncio.run(talk(model(peer.MODEL, client)))
        assert said == [*peer.LINES, "###DONE###"], said
        case.end_seen = True
        case.note = f"the stop phrase is in the prompt; {peer.OWN_LOOP}"
