# /// script
# requires-python = ">=3.12,<3.13"
# dependencies = [
#   "rich", "tabulate", "fastapi", "uvicorn", "pandas", "psutil", "loguru", "docstring-parser",
#   "litellm>=1.80.15,<1.82.7", "tenacity", "deepdiff", "addict", "PyYAML", "toml",
#   "python-dotenv", "typer", "requests", "numpy", "httpx", "websockets",
# ]
# ///
"""tau2-bench: its orchestrator with its user simulator and an agent of ours, from a checkout that PEER_TAU2 names, since it is on no package
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

from tau2.agent.base_agent import HalfDuplexAgent
from tau2.data_model.message import AssistantMessage, ToolCall
from tau2.data_model.tasks import Task
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation
from tau2.orchestrator.orchestrator import Orchestrator
from tau2.registry import registry
from tau2.user.user_simulator import UserSimulator


class Agent(HalfDuplexAgent):
    """Makes the right calls of its tools once the user has spoken, then only talks."""

    def __init__(self, tools: list, domain_policy: str, task: Task) -> None:
        super().__init__(tools, domain_policy)
        self.task = task

    def get_init_state(self, message_history: list | None = None) -> list:
        return list(self.task.evaluation_criteria.actions)

    def generate_next_message(self, message, state: list):
        if not state:
            return AssistantMessage(role="assistant", content=peer.AGENT), state
        action = state.pop(0)
        call = ToolCall(
            id=action.action_id, name=action.name, arguments=action.arguments
        )
        return AssistantMessage(role="assistant", tool_calls=[call]), state


def first_task(domain: str) -> Task:
    return registry.get_tasks_loader(domain)(None)[0]


def its_user(task: Task, tools: list | None, url: str, **options) -> UserSimulator:
    options = {"api_base": url, "api_key": "none", "temperature": 0.0, **options}
    return UserSimulator(
        llm=f"openai/{peer.MODEL}",
        instructions=str(task.user_scenario),
        tools=tools,
        llm_args=options,
    )


def run(domain: str, url: str = peer.URL, **options) -> tuple[list[str], str, float]:
    """What the user says on the first task of a domain, why tau2 stopped, and the reward."""
    task = first_task(domain)
    environment = registry.get_env_constructor(domain)()
    agent = Agent(environment.get_tools(), environment.get_policy(), task)
    user = its_user(task, None, url, **options)
    done = Orchestrator(domain, agent, user, environment, task, max_steps=40).run()
    graded = evaluate_simulation(done, task, EvaluationType.ENV, False, domain)
    said = [each.content for each in done.messages if each.role == "user"]
    return said, str(done.termination_reason.value), graded.reward


for domain in ("mock", "retail"):
    with peer.case("tau2-bench", "litellm", f"base URL, {domain}") as case:
        case.version = VERSION
        case.stop_phrase = "###STOP###"
        said, stopped, reward = run(domain)
        assert said == [*peer.LINES, "###STOP###"], said
        assert reward == 1, reward
        case.end_seen = stopped == "user_stop"
        case.note = "its orchestrator; stop phrase and intent (`<scenario>`) are found in the prompt"

with peer.case("tau2-bench", "litellm", "base URL, telecom") as case:
    case.version = VERSION
    tools = registry.get_env_constructor("telecom")().get_user_tools()
    user = its_user(first_task("telecom"), tools, peer.URL)
    heard = AssistantMessage(role="assistant", content=peer.AGENT)
    try:
        user.generate_next_message(heard, user.get_init_state())
    except Exception as error:
        case.note = type(error).__name__
    case.refused("user_tools")

for ending in peer.endings("tau2-bench", "litellm"):
    ending.version = VERSION
    with ending:
        run("mock", ending.url, extra_body={"userlm": {"stop_phrase": ""}})
