"""The model `userlm-small`, by the Python of this checkout, which has torch.

local_user.py weights FOLDER    write its weights in float32, and its tokenizer
local_user.py compare URL       print what it says here and at a server, as JSON
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import userlm
from userlm import loading
from userlm.address import LocalSettings
from userlm.types import Conversation, Sampling
from userlm.users import TrainedUser

MODEL = "userlm-small"
ON_CPU = LocalSettings(batch=1, device="cpu", dtype="float32")
OPENING = "You are a user chatting with an assistant language model to "
TALKS = (
    ("plan a trip to Rome.",),
    ("sort a list of names.",),
    ("find a recipe for lentil soup.",),
    ("write a poem about rain.",),
    ("understand photosynthesis.",),
    ("plan a trip to Rome.", "where should i go in rome", "Visit the Forum."),
    ("sort a list of names.", "how do i sort names in python", "Use sorted(names)."),
    (
        *("find a recipe for lentil soup.", "lentil soup recipe", "Boil lentils."),
        *("thanks, that is all, bye", "You're welcome! Goodbye!"),
    ),
    ("understand photosynthesis.", "what is it", "Plants make sugar from light."),
)
"""A goal, and what was said, in turns."""


def weights(folder: Path) -> None:
    """Write what a converter needs."""
    from safetensors.torch import save_file

    model = loading.local_model(MODEL, ON_CPU)
    tensors = {
        name: tensor.clone()
        for name, tensor in model.model.state_dict().items()
        if name != "lm_head.weight"  # it is tied
    }
    save_file(tensors, folder / "model.safetensors")
    model.model.config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def compare(url: str) -> None:
    """Print a row for each talk: what is said here and there, how it ends, and P(end)."""
    here = loading.user(f"trained:{MODEL}", local=ON_CPU)
    there = loading.user(f"trained:{url}#{MODEL}")
    assert isinstance(here, TrainedUser) and isinstance(there, TrainedUser)
    rows = []
    for goal, *said in TALKS:
        talk = Conversation(goal, intent=OPENING + goal)
        for text in said:
            talk = talk.say(text)
        pair = []
        for user in (here, there):
            greedy = Sampling(temperature=0, max_tokens=24)
            reply = replace(user, sampling=greedy).reply(talk)
            pair.append((reply.text, reply.stop, reply.meta["p_end"]))
        rows.append(pair)
    print(json.dumps(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error", userlm.ModelWarning)
    verb, argument = sys.argv[1:]
    weights(Path(argument)) if verb == "weights" else compare(argument)
