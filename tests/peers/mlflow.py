# /// script
# requires-python = ">=3.11"
# dependencies = ["mlflow>=3.10", "litellm>=1.60", "userlm"]
# ///
"""MLflow's conversation simulator: its own user sends one prompt that quotes all, so it is refused;
the bridge takes its place."""

import os

import peer

os.environ["OPENAI_API_BASE"] = os.environ["OPENAI_BASE_URL"] = peer.AGENT_URL

import mlflow
from mlflow.genai.simulators import ConversationSimulator

from userlm.bridges.mlflow import simulated_user

mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("peer")


def simulate(**options) -> tuple[list[str], list[list[str]]]:
    """What was heard in all conversations in order, and in each that has traces."""
    heard = []

    def predict_fn(input, **others):
        heard.append(input[-1]["content"])
        return peer.AGENT

    cases = [{"goal": peer.GOAL}, {"goal": "cancel a flight"}]
    simulator = ConversationSimulator(cases, max_turns=6, **options)
    return heard, simulator.simulate(predict_fn)


with peer.case("MLflow", "mlflow", "base URL") as case:
    os.environ["OPENAI_API_BASE"] = os.environ["OPENAI_BASE_URL"] = peer.URL
    try:
        heard, _ = simulate(user_model=f"openai:/{peer.MODEL}")
    except Exception as error:  # no conversation has a trace
        heard = []
        case.note = type(error).__name__
    assert not heard
    case.refused()

with peer.case("MLflow", "mlflow", "bridge") as case:
    os.environ["OPENAI_API_BASE"] = os.environ["OPENAI_BASE_URL"] = peer.AGENT_URL
    heard, traces = simulate(
        user_model="openai:/any", user_agent_class=simulated_user(peer.USER)
    )
    assert sorted(heard) == sorted(peer.LINES * 2), heard
    assert [len(each) for each in traces] == [3, 3]
    case.end_seen = True
    case.note = "the end is an error in MLflow's log; its `user_model` checks the goal"

peer.run_documented("mlflow")
