# /// script
# requires-python = ">=3.11"
# dependencies = ["langwatch-scenario>=0.7", "userlm"]
# ///
"""Scenario: its own user against the server, and the bridge, which ends the run."""

import asyncio
import os

import peer

os.environ["OPENAI_API_BASE"] = os.environ["OPENAI_BASE_URL"] = peer.URL

import scenario

from userlm.bridges.scenario import SimulatedUser


class Agent(scenario.AgentAdapter):
    async def call(self, input: scenario.AgentInput) -> str:
        return peer.AGENT


def run(agents: list, script: list, **options) -> scenario.ScenarioResult:
    return asyncio.run(
        scenario.run(
            name="peer",
            description=peer.INTENT,
            agents=[Agent(), *agents],
            script=script,
            **options,
        )
    )


def said_in(done: scenario.ScenarioResult) -> list[str]:
    return [each["content"] for each in done.messages if each["role"] == "user"]


def its_own(url: str) -> scenario.UserSimulatorAgent:
    return scenario.UserSimulatorAgent(
        model=f"openai/{peer.MODEL}", api_base=url, api_key="none"
    )


with peer.case("Scenario", "langwatch-scenario", "base URL") as case:
    try:
        run([its_own(peer.URL)], [scenario.proceed()], max_turns=6)
    except Exception as error:
        assert "the user ended the conversation" in str(error)
    said = [call["answer"]["choices"][0] for call in case.calls[:4]]
    assert [each["message"]["content"] for each in said] == [*peer.LINES, "[end]"]
    case.end_seen = len(case.calls) == 4
    case.note = (
        "it looks for no stop phrase, so its next request is refused: use the bridge"
    )

with peer.case("Scenario", "langwatch-scenario", "bridge") as case:
    user = SimulatedUser(peer.USER)
    done = run([user], [user.talk(), scenario.succeed("the user is done")])
    assert said_in(done) == peer.LINES, said_in(done)
    assert done.success
    case.end_seen = True
    case.note = "the script goes on, for instance with `scenario.judge()`"

for ending in peer.endings("Scenario", "langwatch-scenario"):
    with ending:
        run([its_own(ending.url)], [scenario.proceed()], max_turns=8)

peer.run_documented("scenario")
