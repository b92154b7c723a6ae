"""Users as models of Inspect (`userlm/ADDRESS`), and a solver in which one talks to the model that
is evaluated. The package's entry point `inspect_ai` registers both."""

from __future__ import annotations

from asyncio import to_thread

from userlm.bridges import intent_of, needs, next_turn
from userlm.types import OTHER_ROLE

with needs("inspect-ai>=0.3.100"):
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageSystem,
        ChatMessageUser,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        get_model,
        modelapi,
    )
    from inspect_ai.solver import Generate, Solver, TaskState, solver
    from inspect_ai.tool import ToolChoice, ToolInfo


@modelapi(name="userlm")
class SimulatedUser(ModelAPI):
    """A user by address, or by the URL of a served one (`userlm/http://127.0.0.1:8765/v1`)."""

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Return the next turn of the user, whose end is `metadata["ended"]`."""
        system = [message.text for message in input if message.role == "system"]
        spoken = [message for message in input if message.role in OTHER_ROLE]
        swapped = bool(spoken) and spoken[-1].role == "user"
        history = [
            {
                "role": OTHER_ROLE[each.role] if swapped else each.role,
                "content": each.text,
            }
            for each in spoken
        ]
        said, ended = await to_thread(
            next_turn, self.model_name, history, "\n\n".join(system)
        )
        output = ModelOutput.from_content(f"userlm/{self.model_name}", said)
        output.metadata = {"ended": ended}
        return output


@solver
def conversation(max_turns: int = 10) -> Solver:
    """Let the model with the role `user` talk to the evaluated one until it ends the conversation.
    The input of a sample is the intent."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        user = get_model(role="user", required=True)
        intent = ChatMessageSystem(content=intent_of(state.input_text))
        state.messages = [each for each in state.messages if each.role == "system"]
        for _ in range(max_turns):
            spoken = [each for each in state.messages if each.role in OTHER_ROLE]
            output = await user.generate([intent, *spoken])
            if not output.completion:
                break
            state.messages.append(ChatMessageUser(content=output.completion))
            state = await generate(state)
            # A model that says no words leaves nothing to answer.
            if (output.metadata or {}).get("ended") or not state.output.completion:
                break
        return state

    return solve
