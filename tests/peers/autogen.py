# /// script
# requires-python = ">=3.11"
# dependencies = ["autogen-agentchat>=0.6", "autogen-ext[openai]>=0.6"]
# ///
"""AutoGen: the user is an agent of a team."""

import asyncio

import peer
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TextMentionTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "family": "unknown",
    "structured_output": False,
}
PROMPT = f'{peer.INTENT} Reply "TERMINATE" when the task is completed.'


def model(name: str, url: str) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=name, base_url=url, api_key="none", model_info=INFO
    )


async def talk(url: str, prompt: str) -> list[str]:
    user = AssistantAgent("user", model(peer.MODEL, url), system_message=prompt)
    agent = AssistantAgent("agent", model("agent", peer.AGENT_URL))
    ends = TextMentionTermination("TERMINATE", sources=["user"])
    team = RoundRobinGroupChat([user, agent], termination_condition=ends, max_turns=12)
    done = await team.run(task=peer.GREETING)
    return [each.content for each in done.messages if each.source == "user"][1:]


with peer.case("AutoGen", "autogen-agentchat", "base URL") as case:
    case.stop_phrase = "TERMINATE"
    said = asyncio.run(talk(peer.URL, PROMPT))
    assert said == [*peer.LINES, "TERMINATE"], said
    case.end_seen = True
    case.note = "the stop phrase is in the prompt"

for ending in peer.endings("AutoGen", "autogen-agentchat"):
    with ending:
        asyncio.run(talk(ending.url, peer.INTENT))
