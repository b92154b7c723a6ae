"""The model `userlm-small`, by the Python of this checkout, which has torch.

local_user.py weights FOLDER    write its weights in float32, and its tokenizer
local_user.py compare URL       print what it says here and at a server, as JSON
local_user.py tokens URL FOLDER print its next tokens here, from the weights in a folder, and at a
                                server, as JSON
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from transformers import AutoModelForCausalLM

import userlm
from userlm import flip, loading
from userlm.address import LocalSettings
from userlm.models.templates import user_template
from userlm.models.tokenization import load_tokenizer, text_functions
from userlm.types import Conversation, Sampling
from userlm.users import TrainedUser

MODEL = "userlm-small"
ON_CPU = LocalSettings(batch=1, device="cpu", dtype="float32")
MOST_TOKENS = 24
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


def talks() -> list[Conversation]:
    """Return the conversations that the user goes on with."""
    found = []
    for goal, *said in TALKS:
        talk = Conversation(goal, intent=OPENING + goal)
        for text in said:
            talk = talk.say(text)
        found.append(talk)
    return found


def compare(url: str) -> None:
    """Print a row for each talk: what is said here and there, how it ends, and P(end)."""
    here = loading.user(f"trained:{MODEL}", local=ON_CPU)
    there = loading.user(f"trained:{url}#{MODEL}")
    assert isinstance(here, TrainedUser) and isinstance(there, TrainedUser)
    rows = []
    for talk in talks():
        pair = []
        for user in (here, there):
            greedy = Sampling(temperature=0, max_tokens=MOST_TOKENS)
            reply = replace(user, sampling=greedy).reply(talk)
            pair.append((reply.text, reply.stop, reply.meta["p_end"]))
        rows.append(pair)
    print(json.dumps(rows))


@torch.inference_mode()
def tokens(url: str, folder: str) -> None:
    """Print a row for each token of the most probable turns here: whether it is the most probable
    one there, and by how much the log-probability of that one differs."""
    tokenizer = load_tokenizer(folder)
    template = user_template(tokenizer, text_functions(tokenizer)[0], folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for talk in talks():
        ids = [*flip.prompt(talk, template)]
        for _ in range(MOST_TOKENS):
            logits = model(torch.tensor([ids])).logits[0, -1]
            here = torch.log_softmax(logits.double(), dim=-1)
            there = most_probable(url, ids)
            off = abs(float(here[there["id"]]) - there["logprob"])
            ids.append(int(here.argmax()))
            rows.append((there["id"] == ids[-1], off))
            if ids[-1] in template.stop_ids:
                break
    print(json.dumps(rows))


def most_probable(url: str, ids: list[int]) -> dict:
    """Return the most probable next token at llama.cpp's server, and its log-probability."""
    body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": 1}
    request = Request(
        f"{url}/completion",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request) as answer:
        return json.load(answer)["completion_probabilities"][0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error", userlm.ModelWarning)
    match sys.argv[1:]:
        case ["weights", folder]:
            weights(Path(folder))
        case ["compare", url]:
            compare(url)
        case ["tokens", url, folder]:
            tokens(url, folder)
