"""Whether a user model behind vLLM generates the same turns as the same folder on this machine.

    vllm serve FOLDER --served-model-name NAME --dtype float32
    python bench/vllm_turns.py FOLDER http://HOST:PORT/v1#NAME CONVERSATIONS
                               [--first 20] [--draws 400] [--seed 0]

CONVERSATIONS is a file of conversations with intents. For each prefix of the first of them it
compares the turn at temperature 0: plain, under a guard (no end, and none of the most likely first
words), and with an end threshold. Then it samples with the same seed twice. Then it samples one and
two tokens at temperature 1 and top_p 0.8, and compares them with the exact distribution, with and
without bans at the first position.

The server has to compute in float32; otherwise the last bits differ, and sometimes a token with
them. vLLM converts float32 weights to bfloat16 unless told not to. If anything differs, the exit
code is 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from userlm.flip import prompt, samples
from userlm.guard import Guard
from userlm.models.endpoint import EndpointModel
from userlm.models.local import LocalModel
from userlm.models.served import ServedModel
from userlm.rows import read_conversations
from userlm.types import Conversation, Reply, Sampling
from userlm.users import TrainedUser

WORKERS = 4
P_END = 1e-4
"""P(end) may differ by this much."""

Said = tuple[str, int | None]
"""A sample: the text and the id that ended it."""


def replies(user: TrainedUser, prefixes: Sequence[Conversation]) -> list[Reply]:
    """Return the next turn of each prefix, a few at once."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(user.reply, prefixes))


def compare(
    what: str, here: TrainedUser, there: TrainedUser, prefixes: Sequence[Conversation]
) -> tuple[list[Reply], int]:
    """Return the local turns, and how many differ on the server."""
    ours, theirs = replies(here, prefixes), replies(there, prefixes)
    pairs = list(zip(ours, theirs, strict=True))
    texts = sum(a.text != b.text for a, b in pairs)
    stops = sum(
        a.stop != b.stop or a.meta.get("cut") != b.meta.get("cut") for a, b in pairs
    )
    asked = [
        (a.meta["p_end"], b.meta["p_end"]) for a, b in pairs if a.stop != "context"
    ]
    worst = max(abs(a - b) for a, b in asked)
    off = sum(abs(a - b) > P_END for a, b in asked)
    ends = sum(reply.stop == "end" for reply in ours)
    print(
        f"{what}: {len(pairs)} turns, {ends} of them end: {texts} different texts, {stops} "
        f"different stops, P(end) differs by at most {worst:.1e}"
    )
    for a, b in islice(((a, b) for a, b in pairs if a.text != b.text), 3):
        print(f"    here  {a.text[:100]!r}\n    there {b.text[:100]!r}")
    return ours, texts + stops + off


@torch.inference_mode()
def exact(
    local: LocalModel, ids: Sequence[int], sampling: Sampling
) -> dict[Said, float]:
    """The exact probability of everything that can be sampled in `max_tokens` tokens."""
    found: defaultdict[Said, float] = defaultdict(float)
    rows: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for position in range(sampling.max_tokens):
        longer = []
        batch = torch.tensor([[*ids, *drawn] for drawn, _ in rows])
        for (drawn, before), logits in zip(
            rows, local.model(batch).logits[:, -1].float(), strict=True
        ):
            banned = sampling.banned_ids | (
                frozenset() if position else sampling.banned_first
            )
            logits[list(banned)] = -torch.inf
            ordered, tokens = torch.softmax(logits / sampling.temperature, -1).sort(
                descending=True
            )
            kept = int((ordered.cumsum(0) - ordered < sampling.top_p).sum())
            nucleus = ordered[:kept] / ordered[:kept].sum()
            for token, probability in zip(
                tokens[:kept].tolist(), nucleus.tolist(), strict=True
            ):
                if token in sampling.stop_ids:
                    found[local.tokenizer.decode(drawn), token] += before * probability
                else:
                    longer.append(((*drawn, token), before * probability))
        rows = longer
    for drawn, probability in rows:
        found[local.tokenizer.decode(drawn), None] += probability
    return dict(found)


def fits(drawn: Counter[Said], expected: dict[Said, float]) -> tuple[float, int]:
    """The p-value of a chi-squared test, and the number of impossible samples."""
    counts: list[tuple[int, float]] = []
    seen, wanted = 0, 0.0
    for said in sorted(expected, key=lambda said: (-expected[said], said[0])):
        seen, wanted = seen + drawn[said], wanted + expected[said] * drawn.total()
        if wanted >= 5:  # otherwise together with the next
            counts.append((seen, wanted))
            seen, wanted = 0, 0.0
    chi = sum((seen - wanted) ** 2 / wanted for seen, wanted in counts)
    p = torch.special.gammaincc(
        torch.tensor((len(counts) - 1) / 2), torch.tensor(chi / 2)
    )
    return float(p), sum(count for said, count in drawn.items() if said not in expected)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("address")
    parser.add_argument("conversations")
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    local = LocalModel.load(asked.folder, "cpu")
    template = local.template()
    url, _, name = asked.address.partition("#")
    server = ServedModel(EndpointModel(name, url, None), local.tokenizer)
    window = min(local.context_length, server.context_length() or local.context_length)
    greedy = Sampling(temperature=0, max_tokens=min(256, window // 4))
    here, there = (
        TrainedUser(model, template, window, greedy, asked.seed)
        for model in (local, server)
    )

    conversations = islice(read_conversations(asked.conversations), asked.first)
    prefixes = [
        sample.prefix
        for conversation in conversations
        for sample in samples(conversation)
    ]
    plain, wrong = compare("plain", here, there, prefixes)
    print(f"    window {server.context_length()}; notes {server.notes}")

    liked = Counter(
        reply.text.split()[0].strip(",.?!") for reply in plain if reply.text
    ).most_common(3)
    guard = Guard(no_end=True, first_words=tuple(word for word, _ in liked), tries=1)
    what = f"no end, no {'/'.join(guard.first_words)}"
    wrong += compare(
        what, replace(here, guard=guard), replace(there, guard=guard), prefixes
    )[1]

    known = sorted(reply.meta["p_end"] for reply in plain if reply.stop != "context")
    for above in (statistics.median(known), known[len(known) // 4]):
        above += P_END  # between two values of P(end), so that rounding does not decide
        leaving = replace(greedy, end_threshold=above)
        wrong += compare(
            f"end threshold {above:.4f}",
            replace(here, sampling=leaving),
            replace(there, sampling=leaving),
            prefixes,
        )[1]

    drawing = replace(there, sampling=replace(greedy, temperature=1.0))
    some = prefixes[: asked.first]
    first, again, other = (
        replies(replace(drawing, seed=seed), some) for seed in (1, 1, 2)
    )
    unlike = sum(
        a.text != b.text or a.stop != b.stop for a, b in zip(first, again, strict=True)
    )
    others = sum(a.text != b.text for a, b in zip(first, other, strict=True))
    print(
        f"seeds: of {len(some)} turns {unlike} differ with the same seed, {others} with another"
    )
    wrong += unlike

    words = template.first_token_ids(guard.first_words)
    base = Sampling(stop_ids=template.stop_ids, end_id=template.end)
    for tokens in (1, 2):
        for what, bans in (
            ("as it is", frozenset[int]()),
            ("first words banned", words | {template.end}),
        ):
            values = []
            for conversation in prefixes[:3]:
                sampling = replace(base, max_tokens=tokens, banned_first=bans)
                ids = prompt(conversation, template)

                def draw(
                    seed: int, ids: Sequence[int] = ids, sampling: Sampling = sampling
                ) -> Said:
                    out = server.complete(ids, replace(sampling, seed=seed))
                    return out.text, out.stop_id

                with ThreadPoolExecutor(WORKERS) as pool:
                    drawn = Counter(pool.map(draw, range(asked.draws)))
                p, impossible = fits(drawn, exact(local, ids, sampling))
                values.append(f"p {p:.3f}, {impossible} impossible")
                wrong += p < 1e-3 or impossible
            print(
                f"{asked.draws} draws of {tokens} token(s), {what}: {'; '.join(values)}"
            )
    print("all agree" if not wrong else f"{wrong} differ")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
