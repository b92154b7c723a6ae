"""Users in MLflow's conversation simulator (`mlflow.genai.simulators`).

MLflow has no way to say that the user ended, but stops when the user's turn fails. So the end of a
conversation is an error in its log.
"""

from __future__ import annotations

from typing import Any

from userlm.bridges import Talk, UserEnded, needs
from userlm.types import Speaker

with needs("mlflow>=3.10"):
    from mlflow.genai.simulators import BaseSimulatedUserAgent, SimulatorContext


def simulated_user(user: str | Speaker) -> type[BaseSimulatedUserAgent]:
    """Return the `user_agent_class` of a `ConversationSimulator`. The goal of a test case is the
    intent; MLflow asks its `user_model` only whether that is achieved."""

    class SimulatedUser(BaseSimulatedUserAgent):
        talk: Talk | None = None

        def __init__(self, model: str | None = None, **inference_params: Any) -> None:
            """Take no model: MLflow's default would need one."""

        def generate_message(self, context: SimulatorContext) -> str:
            self.talk = self.talk or Talk(user, context.goal)
            said = self.talk.say(context.conversation_history)
            if said is None:
                raise UserEnded
            return said

    return SimulatedUser
