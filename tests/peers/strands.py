# /// script
# requires-python = ">=3.11"
# dependencies = ["strands-agents[openai]>=1", "strands-agents-evals>=0.1"]
# ///
"""Strands Evals: its actor answers with an object that says whether to stop."""

import peer
from strands.models.openai import OpenAIModel
from strands_evals import ActorSimulator
from strands_evals.types.simulation import ActorProfile

model = OpenAIModel(
    client_args={"base_url": peer.URL, "api_key": "none"}, model_id=peer.MODEL
)

with peer.case("Strands Evals", "strands-agents-evals", "base URL") as case:
    profile = ActorProfile(traits={}, context=peer.INTENT, actor_goal=peer.GOAL)
    user = ActorSimulator(
        actor_profile=profile,
        initial_query=peer.LINES[0],
        system_prompt_template=f"{peer.INTENT} {{actor_profile}}",
        model=model,
        max_turns=8,
    )
    said = [peer.LINES[0]]
    while user.has_next() and len(said) < 9:
        turn = user.act(peer.AGENT).structured_output
        said.append(turn.message)
    assert said[:3] == peer.LINES, said
    case.end_seen = len(said) <= 4
    case.note = "the end is the field `stop`"
