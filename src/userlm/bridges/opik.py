"""Users in Opik's `run_simulation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from userlm.bridges import Talk, UserEnded, needs
from userlm.types import Speaker

with needs("opik>=1.9"):
    from opik import simulation


class SimulatedUser(simulation.SimulatedUser):
    """A user of this package; the persona is the intent."""

    def __init__(self, persona: str, user: str | Speaker) -> None:
        self.persona = persona
        self.user = user
        self.heard: list[dict[str, str]] = []
        self.talk = Talk(user, persona)

    def generate_response(self, conversation_history: list[dict[str, str]]) -> str:
        """Return the next turn; raise `UserEnded` at the end."""
        if not conversation_history:
            self.talk = Talk(self.user, self.persona)
        self.heard = conversation_history
        said = self.talk.say(conversation_history)
        if said is None:
            raise UserEnded
        return said


def run_simulation(
    app: Callable[..., Any], user_simulator: SimulatedUser, **options: Any
) -> dict[str, Any]:
    """Do what Opik's `run_simulation` does, until the user ends the conversation: Opik itself goes
    on until `max_turns`."""
    options = {"thread_id": str(uuid4()), "project_name": None, **options}
    try:
        done = simulation.run_simulation(app, user_simulator, **options)
    except UserEnded:
        names = ("thread_id", "project_name")
        done = {name: options[name] for name in names}
        done["conversation_history"] = user_simulator.heard
    return dict(done)
