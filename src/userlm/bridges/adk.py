"""Users in the evaluation of Google's Agent Development Kit.

Importing this module registers them; a `UserSimulatorProvider` with a `UserConfig` provides them.
"""

from __future__ import annotations

from typing import Literal

from userlm.bridges import Talk, needs

with needs("google-adk[eval]>=2.0"):
    from google.adk.evaluation.conversation_scenarios import ConversationScenario
    from google.adk.evaluation.simulation.user_simulator import (
        BaseUserSimulatorConfig,
        NextUserMessage,
        Status,
        UserSimulator,
        register_user_simulator,
    )
    from google.adk.events.event import Event
    from google.genai import types


class UserConfig(BaseUserSimulatorConfig):
    """The address of a user, or the URL of a served one."""

    type: Literal["userlm"] = "userlm"
    user: str


class SimulatedUser(UserSimulator):
    """A user of this package; the conversation plan is the intent."""

    def __init__(
        self, *, config: UserConfig, conversation_scenario: ConversationScenario
    ) -> None:
        super().__init__(config, config_type=UserConfig)
        self.talk = Talk(config.user, conversation_scenario.conversation_plan)

    async def get_next_user_message(self, events: list[Event]) -> NextUserMessage:
        """Return the next turn, or that the user ended."""
        said = await self.talk.say_async(map(_message, events))
        if said is None:
            return NextUserMessage(status=Status.STOP_SIGNAL_DETECTED)
        content = types.Content(role="user", parts=[types.Part(text=said)])
        return NextUserMessage(status=Status.SUCCESS, user_message=content)


def _message(event: Event) -> dict[str, str]:
    role = "user" if event.author == "user" else "assistant"
    parts = (event.content and event.content.parts) or []
    return {"role": role, "content": "".join(part.text or "" for part in parts)}


register_user_simulator(UserConfig, SimulatedUser)
