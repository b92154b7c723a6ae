# /// script
# requires-python = ">=3.11"
# dependencies = ["opik>=1.9", "userlm"]
# ///
"""Opik's simulation: its own user sends one prompt that quotes all, so it is refused; the bridge
takes its place."""

import os

import peer

os.environ["OPENAI_API_BASE"] = os.environ["OPENAI_BASE_URL"] = peer.URL

from opik.simulation import SimulatedUser, run_simulation

from userlm.bridges import opik


def agent(message: str, *, thread_id: str, **others) -> dict[str, str]:
    return {"role": "assistant", "content": peer.AGENT}


with peer.case("Opik", "opik", "base URL") as case:
    user = SimulatedUser(persona=peer.INTENT, model=f"openai/{peer.MODEL}")
    done = run_simulation(app=agent, user_simulator=user, max_turns=1)
    case.note = f"it goes on with {done['conversation_history'][0]['content'][:40]!r}"
    case.refused()

with peer.case("Opik", "opik", "bridge") as case:
    user = opik.SimulatedUser(peer.GOAL, peer.USER)
    for _ in range(2):
        done = opik.run_simulation(agent, user, max_turns=8)
        turns = done["conversation_history"]
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        assert said == peer.LINES, said
    case.end_seen = True
    case.note = (
        "`run_simulation` of the bridge, since Opik's own ends at `max_turns` alone"
    )

peer.run_documented("opik")
