# /// script
# requires-python = ">=3.12,<3.13"
# dependencies = [
#   "rich", "tabulate", "fastapi", "uvicorn", "pandas", "psutil", "loguru", "docstring-parser",
#   "litellm>=1.80.15,<1.82.7", "tenacity", "deepdiff", "addict", "PyYAML", "toml",
#   "python-dotenv", "typer", "requests", "numpy", "httpx", "websockets",
# ]
# ///
"""The user simulator of tau2-bench, from a checkout that PEER_TAU2 names, since it is on no package
index (the `tau2` there is another program)."""

import json
import os
import sys
import tomllib
from pathlib import Path

import peer

if "PEER_TAU2" not in os.environ:
    note = "it is on no package index; set PEER_TAU2 to a checkout of its repository"
    sys.exit(
        print(
            json.dumps({"harness": "tau2-bench", "seat": "", "ok": None, "note": note})
        )
    )

CHECKOUT = Path(os.environ["PEER_TAU2"])
VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
os.environ["TAU2_DATA_DIR"] = str(CHECKOUT / "data")
sys.path.insert(0, str(CHECKOUT / "src"))

from tau2.data_model.message import AssistantMessage
from tau2.registry import registry
from tau2.user.user_simulator import UserSimulator


def talk(domain: str, tools: list | None) -> tuple[list[str], bool]:
    """What the user says on the first task of a domain, and whether tau2 saw the end."""
    task = registry.get_tasks_loader(domain)(None)[0]
    options = {"api_base": peer.URL, "api_key": "none", "temperature": 0.0}
    user = UserSimulator(
        llm=f"openai/{peer.MODEL}",
        instructions=str(task.user_scenario),
        tools=tools,
        llm_args=options,
    )
    state = user.get_init_state()
    said = []
    while len(said) < 8:
        heard = AssistantMessage(role="assistant", content=peer.AGENT)
        message, state = user.generate_next_message(heard, state)
        said.append(message.content)
        if user.is_stop(message):
            return said, True
    return said, False


with peer.case("tau2-bench", "litellm", "base URL, airline") as case:
    case.version = VERSION
    case.stop_phrase = "###STOP###"
    said, case.end_seen = talk("airline", None)
    assert said == [*peer.LINES, "###STOP###"], said
    case.note = "the stop phrase and the intent (`<scenario>`) are found in the prompt"

with peer.case("tau2-bench", "litellm", "base URL, telecom") as case:
    case.version = VERSION
    environment = registry.get_env_constructor("telecom")()
    try:
        talk("telecom", environment.get_user_tools())
    except Exception as error:
        case.note = type(error).__name__
    case.refused("user_tools")
