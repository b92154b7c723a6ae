"""Is my own simulator like people? Measure it beside the people of a log, and open the report.

    python my_simulator.py [LOGS]

A simulator is a function of the conversation so far; what it returns is the user's next turn.
"""

import sys
from pathlib import Path

import userlm
from userlm import assets
from userlm.commands import (
    Assess,
    Clean,
    Import,
    Intents,
    User,
    assess,
    clean,
    import_,
    intents,
)


def curious(conversation: userlm.Conversation) -> userlm.Reply:
    """Says its goal, asks for more twice, and leaves."""
    assert conversation.intent
    said = len(conversation.user_turns)
    if said == 0:
        goal = conversation.intent.partition(" language model to ")[2]
        return userlm.Reply(f"I want to {goal}")
    if said < 3:
        return userlm.Reply("Can you tell me more?")
    return userlm.Reply("", stop="end")


if __name__ == "__main__":
    logs = sys.argv[1] if len(sys.argv) > 1 else str(assets.sample_logs())
    runs = Path("runs/my_simulator")
    import_(Import([logs], runs / "import"))
    # Nobody trains on these people, so all of them are in the test split.
    clean(Clean(runs / "import", runs / "clean", shares="0/0/100"))
    intents(Intents(runs / "clean", runs / "intents"))  # without a model: extractive
    people = runs / "intents"
    assess(
        Assess(User("py:my_simulator:curious"), people, out=runs / "assess", quick=True)
    )
