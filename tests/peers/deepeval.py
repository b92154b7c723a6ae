# /// script
# requires-python = ">=3.11"
# dependencies = ["deepeval>=4.1", "userlm"]
# ///
"""deepeval's conversation simulator: its own user sends one prompt that quotes all, so it is
refused; the bridge takes its place."""

import peer
from deepeval.dataset import ConversationalGolden
from deepeval.models import GPTModel
from deepeval.simulator import ConversationSimulator
from deepeval.test_case import Turn

from userlm.bridges.deepeval import simulated_user

GOLDENS = [
    ConversationalGolden(scenario=scenario, expected_outcome="It is done.")
    for scenario in (peer.INTENT, "Cancel a flight")
]


async def agent(input: str) -> Turn:
    return Turn(role="assistant", content=peer.AGENT)


with peer.case("deepeval", "deepeval", "base URL") as case:
    model = GPTModel(peer.MODEL, base_url=peer.URL, api_key="none")
    simulator = ConversationSimulator(agent, simulator_model=model)
    try:
        simulator.simulate(GOLDENS, max_user_simulations=2)
    except Exception as error:
        case.note = type(error).__name__
    case.refused()

with peer.case("deepeval", "deepeval", "bridge") as case:
    simulator = ConversationSimulator(agent, **simulated_user(peer.USER))
    for done in simulator.simulate(GOLDENS, max_user_simulations=6):
        said = [turn.content for turn in done.turns if turn.role == "user"]
        assert said == peer.LINES, said
        assert done.turns[-1].role == "assistant"
    case.end_seen = True

peer.run_documented("deepeval")
