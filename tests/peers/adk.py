# /// script
# requires-python = ">=3.11"
# dependencies = ["google-adk[eval]>=2.0", "litellm>=1.60", "userlm"]
# ///
"""The user simulation of Google's ADK: its own user sends one prompt that quotes all, so it is
refused; the bridge takes its place."""

import asyncio

import peer
from google.adk.evaluation.conversation_scenarios import ConversationScenario
from google.adk.evaluation.eval_case import EvalCase
from google.adk.evaluation.simulation.llm_backed_user_simulator import (
    LlmBackedUserSimulatorConfig,
)
from google.adk.evaluation.simulation.user_simulator import Status
from google.adk.evaluation.simulation.user_simulator_provider import (
    UserSimulatorProvider,
)
from google.adk.events.event import Event
from google.adk.models.lite_llm import LiteLlm
from google.adk.models.registry import LLMRegistry
from google.genai import types

from userlm.bridges.adk import UserConfig


def event(author: str, text: str) -> Event:
    content = types.Content(role=author, parts=[types.Part(text=text)])
    return Event(author=author, content=content)


async def talk(config) -> tuple[list[str], Status]:
    """What the user says, and the status at the end."""
    scenario = ConversationScenario(starting_prompt="hi", conversation_plan=peer.INTENT)
    case = EvalCase(eval_id="1", conversation_scenario=scenario)
    simulator = UserSimulatorProvider(config).provide(case)
    said, events = [], []
    while len(said) < 10:
        message = await simulator.get_next_user_message(events)
        if message.user_message is None:
            return said, message.status
        said.append(message.user_message.parts[0].text)
        events += [event("user", said[-1]), event("agent", peer.AGENT)]
    return said, Status.SUCCESS


class Served(LiteLlm):
    def __init__(self, model: str, **options) -> None:
        super().__init__(model=model, api_base=peer.URL, api_key="none")

    @staticmethod
    def supported_models() -> list[str]:
        return ["openai/.*"]


LLMRegistry.register(Served)

with peer.case("Google ADK", "google-adk", "base URL") as case:
    case.stop_phrase = "</finished>"
    config = LlmBackedUserSimulatorConfig(model=f"openai/{peer.MODEL}")
    try:
        asyncio.run(talk(config))
    except Exception as error:
        case.note = type(error).__name__
    case.refused()

with peer.case("Google ADK", "google-adk", "bridge") as case:
    said, status = asyncio.run(talk(UserConfig(user=peer.USER)))
    assert said == peer.LINES, said
    assert status == Status.STOP_SIGNAL_DETECTED, status
    case.end_seen = True
    case.note = "the user speaks first, not `starting_prompt`"

peer.run_documented("adk")
