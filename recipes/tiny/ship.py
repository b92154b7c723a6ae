"""Copy the two models of a finished run into the package, each with its card.

    python recipes/tiny/ship.py RUN [FOLDER]

RUN is the folder of recipes/tiny/run.sh; FOLDER, by default, that of the tiny models.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userlm import assets
from userlm.flip import Overlong
from userlm.json_files import read_json
from userlm.models.local import LocalModel
from userlm.rows import read_conversations, read_rows
from userlm.runs import Run
from userlm.training.base import from_base
from userlm.training.card import uses
from userlm.training.prepare import Side, training_rows, training_view

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cards import table, validations


@dataclass(frozen=True)
class Model:
    """A model that is shipped.

    Attributes:
        name: the name of its folder.
        side: whose turns it learned.
        stages: its training runs in order; the first starts from `base`.
        base: the name of that on the card.
    """

    name: str
    side: Side
    stages: tuple[str, ...]
    base: str = "base-tiny"


MODELS = (
    Model("userlm-tiny", "user", ("userlm",)),
    Model("assistant-tiny", "assistant", ("assistant",)),
)
LARGEST = 16 * 2**20  # the most bytes of weights
LONGEST = 1024  # the most tokens of a row

WHAT = {
    "userlm-tiny": "It plays the **user**: given an intent, it says what a person might say next, "
    "or ends the conversation (`<|endconversation|>`). The template is that of "
    "microsoft/UserLM-8b.",
    "assistant-tiny": "It plays the assistant, badly: a partner for `userlm-tiny` where there is "
    "no real one.",
}

CALL = {
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

{what} {parameters:,} weights, a plain Llama, trained from scratch on real conversations by
`recipes/tiny` of userlm. No other model was involved, except for the assistants whose answers are
in the logs.

**For demos and tests. For real work train a real base model.** It knows only English, a few
thousand words of it, and little about the world; what it says about people, places, medicine or law
is noise. Do not use it to judge anybody.

```
{call}
```

Plain transformers loads it: `AutoModelForCausalLM.from_pretrained(FOLDER)`.

## What it learned from

{data}

Words and tokens are those that were learned{side}. Talk with AI assistants is {share:.0f} % of
these tokens. Left out: conversations that contain one of a list of toxic words or are rated toxic
({toxic:,} in all, including held-out ones), near-duplicates, languages other than English. From
Chatbot Arena only what people typed was learned, since the answers are CC-BY-NC; {arena}. E-mail
addresses, phone and card numbers, IP addresses and keys were replaced by marks; names were not. The
people behind these logs are mostly crowd workers and enthusiasts.

{intents}## How it was trained

{training}

On {host}. Its region and power were not recorded, so the CO2 is not known.

{curve}

Perplexity is per token, over {tested} of {people} held-out conversations.

{uses}
## Licence

The weights are under Apache-2.0. The licences of the data require attribution: WildChat
(ODC-BY-1.0), Chatbot Arena conversations (LMSYS, prompts CC-BY-4.0), OpenAssistant OASST1
(Apache-2.0), HALIE (Stanford CRFM, Apache-2.0), RealHumanEval (CC0-1.0), STAR (Rasa, MIT), MultiWOZ
2.1 (CC-BY-4.0 and Apache-2.0)."""


ENDS = """Most of these ends are goodbyes in bookings. On chats of WildChat, Chatbot
Arena, RealHumanEval and ShareGPT always ending has a higher F1 than this model."""

INTENTS = """Each conversation has an intent as its system turn: for HALIE's quiz and talks, STAR
and MultiWOZ the goal that people were given or wrote, for the others an intent from userlm's
extractive baseline. The first turns to AI assistants are repeated twice, alone, each time with an
intent that contains words of them: this teaches that turns are about the intent. They are counted
as conversations above.

"""


def main(run: Path, folder: Path) -> None:
    counts = read_json(run / "data" / "counts.json")
    for it in MODELS:
        model = run / it.stages[-1] / "model"
        if (size := (model / "model.safetensors").stat().st_size) > LARGEST:
            sys.exit(
                f"{model}: {size:,} bytes are more than {LARGEST:,}: give a smaller SIZE"
            )
        to = folder / it.name
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(model, to, copy_function=shutil.copyfile)
        (to / "README.md").write_text(card(it, run, counts), encoding="utf-8")
        print(f"{to}: {size:,} bytes of weights")


def card(it: Model, run: Path, counts: dict[str, Any]) -> str:
    runs = [Run.read(run / stage) for stage in it.stages]
    manifests = [one.manifest for one in runs]
    results = [one.results for one in runs]
    logs = [
        [line.row for line in read_rows(run / stage / "log.jsonl")]
        for stage in it.stages
    ]
    read = [sum(row["tokens"] for row in log if "loss" in row) for log in logs]
    passes = [
        tokens / found["tokens"] for tokens, found in zip(read, results, strict=True)
    ]
    real = sum(passes)
    tokens = learned_tokens(
        run / it.stages[-1] / "model", it.side, run / "data" / it.side / "train.jsonl"
    )
    rows, total, ai = [], 0, 0
    for source in counts["learned"][it.side]:
        learned = round(
            real
            * sum(n for name, n in tokens.items() if name.startswith(source["source"]))
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
    begun = [it.base, *it.stages][: len(it.stages)]
    training = [
        ("initialized from", *begun),
        ("passes", *(f"{n:.2f}" for n in passes)),
        ("steps", *(found["steps"] for found in results)),
        (
            "samples in a step, at least",
            *(manifest["options"]["batch"] for manifest in manifests),
        ),
        ("tokens read", *read),
        ("peak learning rate", *(manifest["options"]["lr"] for manifest in manifests)),
        (
            "longest row, tokens",
            *(manifest["options"]["max_tokens"] for manifest in manifests),
        ),
        ("seed", *(manifest["options"]["seed"] for manifest in manifests)),
        ("kept weights: step", *(found["best"]["step"] for found in results)),
        ("hours", *(f"{found['throughput']['hours']:.2f}" for found in results)),
    ]
    last, versions = manifests[-1], manifests[-1]["versions"]
    host = f"{last['host']}, bfloat16 mixed precision"
    shown = [curve(log) for log in logs]
    return CARD.format(
        name=it.name,
        what=WHAT[it.name],
        parameters=results[-1]["parameters"],
        call=CALL[it.name],
        data=table(
            (
                "source",
                "licence",
                "people talk to",
                "conversations",
                "words",
                "tokens learned",
            ),
            rows,
        ),
        side={
            "user": ": what users say, and when they end the conversation",
            "assistant": ": what assistants say",
        }[it.side],
        share=100 * ai / total,
        toxic=counts["dropped"]["toxic"],
        arena={
            "user": "these are in the context only",
            "assistant": "none of it was learned here",
        }[it.side],
        intents=INTENTS if it.side == "user" else "",
        training=table(("", *it.stages), training),
        host=f"{host}; torch {versions['torch']}, transformers {versions['transformers']}",
        curve="\n\n".join(
            f"`{stage}`:\n\n{drawn}"
            for stage, drawn in zip(it.stages, shown, strict=True)
        ),
        tested={
            "user": "the turns of users",
            "assistant": "the turns of assistants",
        }[it.side],
        people=count(run / "data" / it.side / "valid.jsonl"),
        uses=uses(it.side, "English.", has_base=False),
    )


def learned_tokens(model: Path, side: Side, data: Path) -> Counter[str]:
    """Return the number of tokens that one pass over the data learns, by source."""
    local, _ = from_base(LocalModel.load(str(model), "cpu"), side)
    template, found = local.template(), Counter[str]()
    overlong: Overlong = "truncate" if side == "both" else "drop"
    for conversation in read_conversations(data):
        view = training_view(conversation, side)
        rendered = training_rows(view, template, side, LONGEST, overlong)
        targets = (target for row in rendered.rows for target in row.spans)
        found[str(conversation.meta.get("source"))] += sum(
            target.stop - target.start for target in targets
        )
    return found


def curve(log: Sequence[dict[str, Any]]) -> str:
    """Return a table of the validations of a run."""
    rows = []
    for entry, loss in validations(log):
        f1 = entry["valid_termination_f1"]
        shown = "–" if f1 is None else f"{f1:.1f}"
        perplexity = f"{entry['valid_perplexity']:,.1f}"
        rows.append((f"{entry['step']:,}", loss, perplexity, shown))
    head = (
        "step",
        "mean training loss since, nats",
        "validation perplexity",
        "termination F1, %",
    )
    if all(row[-1] == "–" for row in rows):
        return table(head[:-1], [row[:-1] for row in rows])
    return f"{table(head, rows)}\n\n{ENDS}"


def count(path: Path) -> int:
    return sum(1 for _ in path.open(encoding="utf-8"))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(
        Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else assets.model("")
    )
