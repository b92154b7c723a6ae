"""What the benches of training and scoring share: conversations of realistic lengths, and a model.

    python bench/dialogues.py [--k 1.73,2.39,2.7] [--conversations 2000] [--seed 0]

prints the lengths of the conversations. The number of user turns is geometric with mean K. In the
paper K + 1 is the number of samples divided by that of conversations, so K is between 1.73 and
2.39. Numbers of tokens are log-normal: a user turn has a median of 28 and a mean of 48, an answer
260 and 320; an intent has 40. Every end was observed. The texts are random, from
`words.py`.

Real conversations are read from the folder that the environment variable USERLM_DATA names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from words import texts

from userlm.data.layouts import convert
from userlm.data.layouts.common import Rejected
from userlm.rows import read_rows
from userlm.types import Conversation, Turn

SHARD = 500  # conversations that share a seed, so that a large corpus starts with a small one
MOST_TURNS = 16
USER, ASSISTANT = (28, 1.05, 1500), (260, 0.65, 1200)  # tokens: median, spread, maximum
TOKENS_A_WORD = 1.86  # of random words, with the tokenizer of `speller`
# Files of USERLM_DATA in which people talk to a general assistant.
REAL = ("wildchat", "chatbot_arena", "sharegpt_sample")

LLAMA = {  # hidden size, feed-forward size, layers, heads, key-value heads
    "tiny": (64, 176, 2, 2, 1),
    "10m": (256, 704, 8, 8, 4),
    "32m": (512, 1408, 8, 8, 4),
    "1b": (2048, 8192, 16, 32, 8),  # Llama-3.2-1B
    "8b": (4096, 14336, 32, 32, 8),  # Llama-3-8B
}


def made(k: float, seed: int) -> Iterator[Conversation]:
    """Yield generated conversations, endlessly, with `k` user turns on average."""
    number = 0
    while True:
        rng = np.random.default_rng((seed, number // SHARD))
        exchanges = np.minimum(rng.geometric(1 / k, SHARD), MOST_TURNS)
        intents = texts(rng, _words(np.maximum(rng.normal(40, 10, SHARD), 12)))
        sides = [
            np.clip(rng.lognormal(np.log(median), spread, exchanges.sum()), 1, most)
            for median, spread, most in (USER, ASSISTANT)
        ]
        said = iter(texts(rng, _words(np.stack(sides, axis=1).ravel())))
        for intent, length in zip(intents, 2 * exchanges, strict=True):
            roles = ("user", "assistant") * MOST_TURNS
            turns = tuple(
                Turn(role, text)
                for role, text in zip(roles, islice(said, int(length)), strict=False)
            )
            yield Conversation(
                str(number), turns, intent, f"person {number}", ended=True
            )
            number += 1


def _words(tokens: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(np.rint(tokens / TOKENS_A_WORD), 1).astype(np.int64)


def real(name: str, seed: int) -> list[Conversation]:
    """The conversations of a file of USERLM_DATA that have a user turn, shuffled; none if there is
    no such file."""
    folder = os.environ.get("USERLM_DATA")
    path = Path(folder, f"{name}.jsonl.gz") if folder else None
    found = []
    for line in read_rows(path) if path and path.is_file() else ():
        try:
            conversation = convert(
                line.row, "messages", f"{name}-{line.number}"
            ).conversation
        except Rejected:  # `userlm import` would count it
            continue
        if conversation.user_turns:
            found.append(conversation)
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def speller(conversations: list[Conversation], vocabulary: int = 8192) -> Any:
    """A byte-pair tokenizer trained on the conversations, with control tokens."""
    from userlm.training.base import learn_tokenizer

    return learn_tokenizer(
        (turn.text for found in conversations for turn in found.turns), vocabulary
    )


def llama_config(shape: str, vocabulary: int) -> Any:
    """The configuration of a Llama. Embeddings of large vocabularies are tied."""
    from transformers import LlamaConfig

    width, within, layers, heads, groups = LLAMA[shape]
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=within,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=8192,
        tie_word_embeddings=shape != "8b" and vocabulary > 50_000,
    )


def llama(
    shape: str,
    vocabulary: int,
    seed: int,
    device: str = "cpu",
    dtype: str = "float32",
) -> Any:
    """A Llama with random weights, the same for the same seed."""
    import torch
    from transformers import AutoModelForCausalLM

    config = llama_config(shape, vocabulary)
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def main() -> None:
    """Print the lengths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--k", default="1.73,2.39,2.7", help="user turns on average, comma-separated"
    )
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    count = args.conversations
    for k in map(float, args.k.split(",")):
        conversations = list(islice(made(k, args.seed), count))
        tokenizer = speller(conversations[:500])
        turns = [turn for conversation in conversations for turn in conversation.turns]
        print(
            f"\n{count:,} conversations, {len(turns) / 2 / count:.2f} user turns each (goal: {k})"
        )
        intents = [conversation.intent or "" for conversation in conversations]
        user, answers = (
            [turn.text for turn in turns if turn.role == role]
            for role in ("user", "assistant")
        )
        for name, said in (
            ("intent", intents),
            ("user turn", user),
            ("answer", answers),
        ):
            lengths = [len(ids) for ids in tokenizer(said)["input_ids"]]
            mean, (half, most) = np.mean(lengths), np.percentile(lengths, (50, 95))
            print(
                f"tokens, {name}: mean {mean:.0f}, median {half:.0f}, 95 % up to {most:.0f}"
            )


if __name__ == "__main__":
    main()
