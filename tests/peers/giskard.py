# /// script
# requires-python = ">=3.12,!=3.12.1"
# dependencies = ["giskard-checks>=1.0", "openai>=1.60", "userlm"]
# ///
"""Giskard's scenarios: its own user sends one prompt that quotes all, so it is refused; the bridge
takes its place."""

import asyncio
import os

import peer

os.environ["OPENAI_BASE_URL"] = peer.URL

from giskard.agents import Generator
from giskard.checks import Scenario, UserSimulator, set_default_generator

from userlm.bridges.giskard import SimulatedUser


def heard_from(user) -> list[str]:
    scenario = Scenario("peer").interact(inputs=user, outputs=lambda inputs: peer.AGENT)
    done = asyncio.run(scenario.run())
    return [each.inputs for each in done.final_trace.interactions]


with peer.case("Giskard", "giskard-checks", "base URL") as case:
    set_default_generator(Generator(model=f"openai/{peer.MODEL}"))
    try:
        heard_from(UserSimulator(persona=peer.INTENT))
    except Exception as error:
        case.note = type(error).__name__
    case.refused()

with peer.case("Giskard", "giskard-checks", "bridge") as case:
    said = heard_from(SimulatedUser(user=peer.USER, goal=peer.GOAL))
    assert said == peer.LINES, said
    case.end_seen = True

peer.run_documented("giskard")
