"""Train a user on my logs, and ask it for a first turn.

    python train_on_logs.py [LOGS [BASE]]

LOGS: files in any layout that docs/data.md lists; by default those of the package. BASE: the model
to start from. `userlm-tiny` learns in a minute and shows how it goes; `small` (SmolLM2-135M) talks.
"""

import sys
from pathlib import Path

import userlm
from userlm import assets
from userlm.commands import (
    Clean,
    Import,
    Intents,
    Train,
    clean,
    import_,
    intents,
    train,
)

logs = sys.argv[1] if len(sys.argv) > 1 else str(assets.sample_logs())
base = sys.argv[2] if len(sys.argv) > 2 else "userlm-tiny"
runs = Path("runs/train_on_logs")

import_(Import([logs], runs / "import"))
clean(Clean(runs / "import", runs / "clean", scrub=True))  # e-mail addresses and so on
intents(
    Intents(runs / "clean", runs / "intents")
)  # extractive; a model writes better ones
train(Train(runs / "intents", base, runs / "train", epochs=3, batch=32, lr=2e-4))

user = userlm.user(f"trained:{runs / 'train'}", temperature=0.8)
goal = (
    "You are a user chatting with an assistant language model to plan a trip to Rome."
)
print(user.reply(userlm.Conversation(intent=goal)).text)
