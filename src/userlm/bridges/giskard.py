"""Users in the scenarios of Giskard (`giskard-checks`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from userlm.bridges import Talk, needs

with needs("giskard-checks>=1.0"):
    from giskard.checks import Trace
    from giskard.checks.core.input_generator import InputGenerator


@InputGenerator.register("userlm")
class SimulatedUser(InputGenerator):  # type: ignore[type-arg]
    """The `inputs` of an interaction: a user of this package, by address or URL.

    Attributes:
        goal: the intent.
        max_steps: the most turns.
    """

    user: str
    goal: str
    max_steps: int = 10

    async def __call__(
        self, trace: Trace[Any, Any], input_type: type | None = None
    ) -> AsyncGenerator[str, Trace[Any, Any]]:
        """Yield turns until the user ends the conversation."""
        talk = Talk(self.user, self.goal)
        for _ in range(self.max_steps):
            history = []
            for each in trace.interactions:
                history.append({"role": "user", "content": str(each.inputs)})
                history.append({"role": "assistant", "content": str(each.outputs)})
            said = await talk.say_async(history)
            if said is None:
                return
            trace = yield said
