"""Put the small models of a finished run where the package finds them, each with its card.

    python recipes/tiny/ship.py RUN [FOLDER]

RUN is the folder of recipes/tiny/run.sh. FOLDER is that of the embedded models by default.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userlm import assets
from userlm.flip import render, render_document, swap_roles, transcript
from userlm.models.local import LocalModel
from userlm.rows import read_conversations, read_json, read_rows
from userlm.training.base import Side, from_base


@dataclass(frozen=True)
class Model:
    """A model that is shipped.

    Attributes:
        name: of the folder.
        side: whose words it learned.
        stages: the runs of training that led to it, one after the other; the first begins from
            `base`.
        base: what that is called on the card.
    """

    name: str
    side: Side
    stages: tuple[str, ...]
    base: str = "base-tiny"


MODELS = (
    Model("base-tiny", "both", ("base-1", "base-2", "base"), "random weights"),
    Model("userlm-tiny", "user", ("userlm",)),
    Model("assistant-tiny", "assistant", ("assistant",)),
)
ECHO = "base-2"  # learned from data/echo
LARGEST = 16 * 2**20  # bytes of weights
LONGEST = 1024  # tokens of a row

WHAT = {
    "base-tiny": "A base model: it continues plain text of the form `User: ...` and `Assistant: "
    "...`, a line "
    "each. The two others began from it.",
    "userlm-tiny": "It plays the **user**: told what a user is after, it says what a person might "
    "say next, or "
    "leaves (`<|endconversation|>`). The template is that of microsoft/UserLM-8b.",
    "assistant-tiny": "It plays the assistant, badly: a partner for `userlm-tiny` where no real "
    "one is at hand.",
}

CALL = {
    "base-tiny": "userlm ppl logs.jsonl --model base:base-tiny",
    "userlm-tiny": "userlm chat --user trained:userlm-tiny",
    "assistant-tiny": "userlm simulate --user trained:userlm-tiny --assistant assistant-tiny "
    "--intents logs.jsonl",
}

CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
language:
- en
tags:
- userlm
- user-simulation
---

# {name}

{what} {parameters:,} weights, a plain Llama, trained from scratch on real conversations by `recipes/tiny` of
userlm; no other model went in but for the answers of assistants that the logs hold.

**For demos and tests. For real work train on a real base model.** It knows English alone, a few thousand
words of it, and little of the world; what it says of people, places, medicine or law is noise. It is no judge
of anybody.

```
{call}
```

Plain transformers loads it: `AutoModelForCausalLM.from_pretrained(FOLDER)`.

## What it learned from

{data}

Words and tokens are those that were learned{side}. Talk with AI assistants is {share:.0f} % of these tokens.
Left out: conversations that hold one of a list of toxic words or are rated toxic ({toxic:,} of all, held-out
ones among them), near-duplicates, languages other than English. Of Chatbot Arena only what people typed was
learned, since the answers are CC-BY-NC; {arena}. E-mail addresses, phone and card numbers, IP addresses and
keys were replaced by marks before; names were not. The people behind these logs are mostly crowd workers and
enthusiasts.

{intents}{echoes}## How it was trained

{training}

On {machine}.

{curve}

Perplexity is that of {tested} of {people} held-out conversations, by tokens.

## Licence

The weights are under Apache-2.0. The data asks to be named: WildChat (ODC-BY-1.0), Chatbot Arena
conversations (LMSYS, prompts CC-BY-4.0), OpenAssistant OASST1 (Apache-2.0), HALIE (Stanford CRFM,
Apache-2.0), RealHumanEval (CC0-1.0), STAR (Rasa, MIT), MultiWOZ 2.1 (CC-BY-4.0 and Apache-2.0)."""


INTENTS = """Each conversation has an intent as its system turn: for HALIE's quiz and talks, STAR and MultiWOZ the
goal that people were given or wrote, for the others one drawn by userlm's extractive stand-in. The first turns to
assistants stand there twice more, alone, each time with an intent that names words of it: so it learns that what
is said has to do with the intent. They are counted as conversations above.

"""

ECHOES = """Echoes are made-up talks in which scraps of what people typed are said again in another order. From a
few million tokens a model of this size does not learn to take up a word that it was told; from echoes it does.

"""


def main(run: Path, folder: Path) -> None:
    counts = read_json(run / "data" / "counts.json")
    for it in MODELS:
        model = run / it.stages[-1] / "model"
        if (size := (model / "model.safetensors").stat().st_size) > LARGEST:
            sys.exit(f"{model}: {size:,} bytes are more than {LARGEST:,}: give a smaller SIZE")
        to = folder / it.name
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(model, to, copy_function=shutil.copyfile)
        (to / "README.md").write_text(card(it, run, counts), encoding="utf-8")
        print(f"{to}: {size:,} bytes of weights")


def card(it: Model, run: Path, counts: dict[str, Any]) -> str:
    manifests = [read_json(run / stage / "run.json") for stage in it.stages]
    results = [read_json(run / stage / "results.json") for stage in it.stages]
    logs = [[line.row for line in read_rows(run / stage / "log.jsonl")] for stage in it.stages]
    read = [sum(row["tokens"] for row in log if "loss" in row) for log in logs]
    passes = [tokens / found["tokens"] for tokens, found in zip(read, results, strict=True)]
    real = sum(n for stage, n in zip(it.stages, passes, strict=True) if stage != ECHO)
    tokens = learned_tokens(
        run / it.stages[-1] / "model", it.side, run / "data" / it.side / "train.jsonl"
    )
    rows, total, ai = [], 0, 0
    for source in counts["learned"][it.side]:
        learned = round(
            real * sum(n for name, n in tokens.items() if name.startswith(source["source"]))
        )
        total, ai = total + learned, ai + learned * source["ai"]
        talks = "an AI assistant" if source["ai"] else "a person"
        rows.append(
            (
                source["source"],
                source["licence"],
                talks,
                source["conversations"],
                source["words"],
                learned,
            )
        )
    for stage, n, found in zip(it.stages, read, results, strict=True):
        if stage == ECHO:
            total += n
            rows.append(("made-up echoes", "–", "nobody", found["conversations"], "–", n))
    begun = [it.base, *it.stages][: len(it.stages)]
    training = [
        ("begun from", *begun),
        (
            "learned from",
            *("made-up echoes" if stage == ECHO else "the logs" for stage in it.stages),
        ),
        ("passes", *(f"{n:.2f}" for n in passes)),
        ("steps", *(found["steps"] for found in results)),
        ("samples in a step, at least", *(manifest["options"]["batch"] for manifest in manifests)),
        ("tokens read", *read),
        ("peak learning rate", *(manifest["options"]["lr"] for manifest in manifests)),
        ("longest row, tokens", *(manifest["options"]["max_tokens"] for manifest in manifests)),
        ("seed", *(manifest["options"]["seed"] for manifest in manifests)),
        ("kept: the weights of step", *(found["best"]["step"] for found in results)),
        ("hours", *(f"{found['throughput']['hours']:.2f}" for found in results)),
    ]
    last, versions = manifests[-1], manifests[-1]["versions"]
    machine = f"{last['machine']}, bfloat16 mixed precision"
    shown = [curve(log) for log in logs]
    return CARD.format(
        name=it.name,
        what=WHAT[it.name],
        parameters=results[-1]["parameters"],
        call=CALL[it.name],
        data=table(
            ("source", "licence", "people talk to", "conversations", "words", "tokens learned"),
            rows,
        ),
        side={
            "user": ": what users say, and their leaving",
            "assistant": ": what assistants say",
            "both": "",
        }[it.side],
        share=100 * ai / total,
        toxic=counts["dropped"]["toxic"],
        arena={
            "user": "those stand in the context",
            "assistant": "none of it was learned here",
            "both": "here the first prompt of each conversation",
        }[it.side],
        intents=INTENTS if it.side == "user" else "",
        echoes=ECHOES if ECHO in it.stages else "",
        training=table(("", *it.stages), training),
        machine=f"{machine}; torch {versions['torch']}, transformers {versions['transformers']}",
        curve="\n\n".join(
            f"`{stage}`:\n\n{drawn}" for stage, drawn in zip(it.stages, shown, strict=True)
        ),
        tested={
            "user": "the words of users",
            "assistant": "the words of assistants",
            "both": "all tokens",
        }[it.side],
        people=count(run / "data" / it.side / "valid.jsonl"),
    )


def learned_tokens(model: Path, side: Side, data: Path) -> Counter[str]:
    """By source, how many tokens a pass over the data learns."""
    local, _ = from_base(LocalModel.load(str(model), "cpu"), side)
    template, found = local.template(), Counter[str]()
    for conversation in read_conversations(data):
        if side == "both":
            flipped = render_document(transcript(conversation.without_system()), template, LONGEST)
        else:
            seen = swap_roles(conversation) if side == "assistant" else conversation
            flipped = render(seen, template, LONGEST, "drop")
        targets = (target for row in flipped.rows for target in row.targets)
        found[str(conversation.meta.get("source"))] += sum(
            target.stop - target.start for target in targets
        )
    return found


def curve(log: Sequence[dict[str, Any]]) -> str:
    """The validations of a run, with the mean loss of the steps up to each."""
    rows, losses = [], []
    for entry in log:
        losses += [entry["loss"]] if "loss" in entry else []
        if "valid_perplexity" in entry:
            loss = f"{sum(losses) / len(losses):.3f}" if losses else "–"
            f1 = entry["valid_termination_f1"]
            shown = "–" if f1 is None else f"{f1:.1f}"
            rows.append((f"{entry['step']:,}", loss, f"{entry['valid_perplexity']:,.1f}", shown))
            losses = []
    head = ("step", "mean training loss since, nats", "validation perplexity", "termination F1, %")
    if all(row[-1] == "–" for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    shown = ([f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *shown]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def count(path: Path) -> int:
    return sum(1 for _ in path.open(encoding="utf-8"))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else assets.model(""))
