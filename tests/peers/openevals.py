# /// script
# requires-python = ">=3.11"
# dependencies = ["openevals>=0.1", "langchain-openai>=1"]
# ///
"""openevals' multi-turn simulation."""

import peer
from langchain_openai import ChatOpenAI
from openevals.simulators import create_llm_simulated_user, run_multiturn_simulation


def app(inputs, *, thread_id: str, **others) -> dict:
    return {"role": "assistant", "content": peer.AGENT}


def ended(trajectory, *, turn_counter: int, **others) -> bool:
    last = [each["content"] for each in trajectory if each["role"] == "user"][-1]
    return "[end]" in last


def talk(url: str, ended=None) -> list[str]:
    """What the user says."""
    client = ChatOpenAI(model=peer.MODEL, base_url=url, api_key="none")
    done = run_multiturn_simulation(
        app=app,
        user=create_llm_simulated_user(system=peer.INTENT, client=client),
        max_turns=8,
        stopping_condition=ended,
    )
    return [each["content"] for each in done["trajectory"] if each["role"] == "user"]


with peer.case("openevals", "openevals", "base URL") as case:
    case.stop_phrase = "[end]"
    said = talk(peer.URL, ended)
    assert said == [*peer.LINES, "[end]"], said
    case.end_seen = True
    assert "it asks for the first turn" in str(case.values("answer", "userlm", "notes"))
    case.note = (
        "its instruction to begin is left out; the end by a `stopping_condition`, after the agent "
        "answered `[end]`"
    )

for ending in peer.endings("openevals", "openevals"):
    with ending:
        talk(ending.url)
