# /// script
# requires-python = ">=3.11"
# dependencies = ["inspect-ai>=0.3.100", "openai>=2", "userlm"]
# ///
"""Inspect: the served user as a model role, and the bridge's model and solver."""

import inspect_ai
import peer
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, get_model
from inspect_ai.solver import solver

from userlm.bridges.inspect import conversation


def said_in(task: Task, user: object) -> list[str]:
    agent = get_model("openai-api/agent/any", base_url=peer.AGENT_URL, api_key="none")
    [log] = inspect_ai.eval(
        task, model=agent, model_roles={"user": user}, display="none", log_dir="logs"
    )
    if log.status != "success":
        raise RuntimeError(log.error)
    messages = log.samples[0].messages
    return [each.text for each in messages if each.role == "user"]


@solver
def swapped(stop_phrase: str | None):
    """The loop of a harness whose user is a chat model."""

    async def solve(state, generate):
        user = get_model(role="user")
        state.messages = [ChatMessageSystem(content=peer.INTENT)]
        state.messages.append(ChatMessageUser(content=peer.GREETING))
        while len(state.messages) < 20:
            output = await user.generate(state.messages)
            if stop_phrase and stop_phrase in output.completion:
                break
            state.messages += [output.message, ChatMessageUser(content=peer.AGENT)]
        return state

    return solve


def served(url: str):
    return get_model(f"openai-api/served/{peer.MODEL}", base_url=url, api_key="none")


SAMPLES = [Sample(input=peer.INTENT)]

with peer.case("Inspect", "inspect-ai", "base URL") as case:
    said_in(Task(dataset=SAMPLES, solver=swapped("[end]")), served(peer.URL))
    assert len(case.calls) == 4, len(case.calls)
    case.end_seen = True
    case.stop_phrase = "[end]"
    case.note = f"as a model role; {peer.OWN_LOOP} (a solver)"

with peer.case("Inspect", "inspect-ai", "bridge, in this process") as case:
    said = said_in(Task(dataset=SAMPLES, solver=conversation()), f"userlm/{peer.USER}")
    assert said == peer.LINES, said
    case.end_seen = True
    case.note = '`--model-role user=userlm/ADDRESS`, `output.metadata["ended"]`'

with peer.case("Inspect", "inspect-ai", "bridge, served user") as case:
    said = said_in(Task(dataset=SAMPLES, solver=conversation()), f"userlm/{peer.URL}")
    assert said == peer.LINES, said
    case.end_seen = True

for ending in peer.endings("Inspect", "inspect-ai"):
    with ending:
        said_in(Task(dataset=SAMPLES, solver=swapped(None)), served(ending.url))

peer.run_documented("inspect_ai")
