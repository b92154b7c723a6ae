"""Users in deepeval's `ConversationSimulator`."""

from __future__ import annotations

from typing import Any

from userlm.bridges import Talk, needs
from userlm.types import Speaker

with needs("deepeval>=4.1"):
    from deepeval.dataset import ConversationalGolden
    from deepeval.simulator.controller import end, proceed
    from deepeval.simulator.simulation_graph import SimulationNode
    from deepeval.test_case import Turn


def simulated_user(user: str | Speaker) -> dict[str, Any]:
    """Return the arguments of a `ConversationSimulator`. The scenario of a golden is the intent.

    The controller is asked before each turn whether to go on, so it is there that the user takes
    its turn; the node hands that over.
    """
    talks: dict[str, Talk] = {}
    said: dict[str, str] = {}

    async def controller(
        golden: ConversationalGolden, turns: list[Turn], thread_id: str
    ) -> Any:
        talk = talks.setdefault(thread_id, Talk(user, golden.scenario))
        history = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = await talk.say_async(history)
        if text is None:
            del talks[thread_id]
            return end(reason="the user ended the conversation")
        said[thread_id] = text
        return proceed()

    def node(thread_id: str) -> str:
        return said.pop(thread_id)

    return {
        "simulation_graph": SimulationNode(node),
        "stopping_controller": controller,
    }
