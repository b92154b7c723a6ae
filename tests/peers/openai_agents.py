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


async def talk(api, url: str = peer.URL, prompt: str = PROMPT) -> list[str]:
    model = api(peer.MODEL, AsyncOpenAI(base_url=url, api_key="none"))
    user = Agent(name="user", instructions=prompt, model=model)
    history, said = [{"role": "user", "content": peer.GREETING}], []
    while len(said) < 10:
        done = await Runner.run(user, history)
        said.append(done.final_output)
        if "###DONE###" in said[-1]:
            break
        history = [*done.to_input_list(), {"role": "user", "content": peer.AGENT}]
    return said


APIS = {
    "Chat Completions": OpenAIChatCompletionsModel,
    "Responses": OpenAIResponsesModel,
}

for name, api in APIS.items():
    with peer.case("OpenAI Agents SDK", "openai-agents", f"base URL, {name}") as case:
        case.stop_phrase = "###DONE###"
        said = asyncio.run(talk(api))
        assert said == [*peer.LINES, "###DONE###"], said
        case.end_seen = True
        case.note = f"the stop phrase is in the prompt; {peer.OWN_LOOP}"

for name, api in APIS.items():
    for ending in peer.endings(f"OpenAI Agents SDK, {name}", "openai-agents"):
        with ending:
            asyncio.run(talk(api, ending.url, peer.INTENT))
