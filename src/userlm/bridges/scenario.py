"""Users in the scripts of Scenario (`langwatch-scenario`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from userlm.bridges import Talk, needs
from userlm.text import END_SAYS
from userlm.types import Speaker

with needs("langwatch-scenario>=0.7"):
    import scenario


class SimulatedUser(scenario.AgentAdapter):
    """A user of this package; the description of the scenario is the intent.

    In place of `scenario.proceed()`, a script has the step `talk()`, which is over when the user
    ended the conversation. What follows says whether the run succeeded, such as `scenario.judge()`.
    """

    role = scenario.AgentRole.USER

    def __init__(self, user: str | Speaker) -> None:
        self.user = user

    async def call(self, input: scenario.AgentInput) -> str:
        """Return the next turn in a script without `talk()`."""
        goal = input.scenario_state.description
        said = await Talk(self.user, goal, input.thread_id).say_async(input.messages)
        return said or END_SAYS

    def talk(self, max_turns: int = 10) -> Callable[[Any], Awaitable[None]]:
        """Return the step of a script in which user and agent talk until the user ends."""

        async def step(state: Any) -> None:
            talk = Talk(self.user, state.description, state.thread_id)
            for _ in range(max_turns):
                said = await talk.say_async(state.messages)
                if said is None:
                    return
                for part in (scenario.user(said), scenario.agent()):
                    if isawaitable(done := part(state)):
                        await done

        return step
