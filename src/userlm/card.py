"""The card of a trained model, and what its training took. `userlm train` writes the card as
model/README.md.

`pace` counts what log.jsonl holds; `write` tells what run.json and results.json hold. The card
names files, never the folders of a machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userlm import assets
from userlm.text import END_TOKEN, INTENT_PREFIX

KG_CO2_PER_KWH = 0.473
"""Of the world's electricity in 2024, over its whole life cycle (Ember, Global Electricity Review
2025)."""

WATTS = {
    "B200": 1000,
    "H200": 700,
    "H200 NVL": 600,
    "H100 80GB HBM3": 700,
    "H100 NVL": 400,
    "H100 PCIe": 350,
    "A100-SXM4-80GB": 400,
    "A100-SXM4-40GB": 400,
    "A100 80GB PCIe": 300,
    "A100-PCIE-40GB": 250,
    "V100-SXM2-32GB": 300,
    "V100-SXM2-16GB": 300,
    "V100-PCIE-32GB": 250,
    "V100-PCIE-16GB": 250,
    "L40S": 350,
    "L40": 300,
    "L4": 72,
    "A40": 300,
    "A10": 150,
    "A10G": 300,
    "T4": 70,
    "RTX 6000 Ada Generation": 300,
    "RTX A6000": 300,
    "RTX A5000": 230,
    "RTX 5090": 575,
    "RTX 4090": 450,
    "RTX 3090": 350,
}
"""The most that a whole board draws, from its maker's data sheet, by the name that its driver gives
without the maker's: two boards of one chip may differ by half. What is not here, such as a slice of
a board, is not known."""


def pace(
    rows: Iterable[Mapping[str, Any]], device: str, processes: int, watts: float | None
) -> dict[str, Any]:
    """What a training took, by its log: hours (validations and checkpoints among them), tokens and
    conversations a second, hours of all devices, kWh, and kg of CO2 equivalents. What cannot be
    known is `None`.

    Args:
        rows: of log.jsonl; every row has `seconds`, those of steps have `tokens` and
            `conversations`.
        device: its name, as torch tells it.
        processes: one device each.
        watts: of one device; by default what `WATTS` has. Not counted: the rest of the machine, and
            its cooling.
    """
    rows = list(rows)
    hours = sum(row["seconds"] for row in rows) / 3600
    steps = [row for row in rows if "tokens" in row]
    seconds = sum(row["seconds"] for row in steps)
    tokens, conversations = (
        sum(row[name] for row in steps) for name in ("tokens", "conversations")
    )
    if watts is None:
        watts = WATTS.get(re.sub(r"^((NVIDIA|Tesla|GeForce) )+", "", device))
    kwh = None if watts is None else hours * processes * watts / 1000
    return {
        "hours": hours,
        "tokens_per_second": tokens / seconds if seconds else None,
        "conversations_per_second": conversations / seconds if seconds else None,
        "device_hours": hours * processes,
        "watts": watts,
        "kwh": kwh,
        "kg_co2": None if kwh is None else kwh * KG_CO2_PER_KWH,
    }


def write(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The card (README.md) of a finished training: what the model is, how to call it, how it was
    made, what to mind.

    Args:
        manifest: of the run, as in run.json.
        results: of the run, as in results.json, with `pace`. If it has `languages`, codes with
            counts, the card names them; else it says that they are not known.
    """
    given = manifest["options"]
    side = _SIDES[given.get("side", "user")]
    parts = [
        "\n".join(_front(given["base"], side, results)),
        side.what.format(base=_base(given["base"])),
        side.call,
        "## What it learned from",
        *_data(manifest, side, results),
        "## How it was trained",
        *_training(manifest, side, results),
        f"## How well it predicts {side.predicted}",
        *_measured(given, side, results),
        "## What it took",
        *_took(given, results),
        _MIND.format(uses=side.uses.strip("\n"), languages=_languages(results)),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _base(base: str) -> str:
    """The base model without the folders that it lies in."""
    return "random weights" if base.startswith("scratch:") else Path(base).name


def _front(base: str, side: _Side, results: Mapping[str, Any]) -> Iterator[str]:
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    if _is_hub_id(base):
        yield f"base_model: {base}"
    if codes := _codes(results):
        yield "language:"
        yield from (f'- "{code}"' for code in codes)  # a bare `no` is false in YAML
    yield from ("tags:", *(f"- {tag}" for tag in side.tags))
    if kg := results["pace"]["kg_co2"]:
        yield from (
            "co2_eq_emissions:",
            f"  emissions: {1000 * kg:.4g}",
            "  source: power of the boards x hours",
        )
    yield "---"


def _is_hub_id(base: str) -> bool:
    """Whether a base model came from the Hub: by its name, and since it is neither a folder here
    nor embedded."""
    named = re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", base)
    return bool(named) and not Path(base).is_dir() and base not in assets.MODELS


def _codes(results: Mapping[str, Any]) -> list[str]:
    known = results.get("languages", {})
    return [code for code in known if re.fullmatch("[a-z]{2,3}", code) and code != "und"][:20]


@dataclass(frozen=True, slots=True)
class _Side:
    """What the card says of a model that learned one side, or both.

    Attributes:
        what, call, uses: parts of the card; `what` has a `{base}`.
        tags: of the head.
        counts: the rows of the table on the data, by their names in the results.
        learned: what the loss is on.
        predicted: what it is measured on, where it was held out.
        words: what perplexity is over.
        leaves: whether it is measured where the model leaves.
    """

    what: str
    call: str
    uses: str
    tags: tuple[str, ...]
    counts: Mapping[str, str]
    learned: str
    predicted: str
    words: str
    leaves: bool = False


_WHAT_USER = """
# A user language model, from {base}

This model plays the **user** in a conversation with an AI assistant. Given what a user is after (the intent, as
the system turn) and the conversation so far, it says what a person might say next, or leaves. It was trained with
userlm on the user's side of conversations, after *Flipping the Dialogue* (arXiv 2510.06552). It is no assistant.
"""

_CALL_USER = f"""
## Call it

With userlm, which spells the conversation, knows both ids that stop a turn, and reads P(end) where it belongs:

```python
import userlm

user = userlm.user("trained:OWNER/NAME")
talk = userlm.Conversation(intent="{INTENT_PREFIX}plan a trip to Rome.")
talk = talk.say(user.reply(talk).text)
talk = talk.say("Gladly! When do you want to go?")
reply = user.reply(talk)
print(reply.text, reply.stop == "end", reply.meta["p_end"])
```

With transformers alone:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("OWNER/NAME")
model = AutoModelForCausalLM.from_pretrained("OWNER/NAME")
messages = [{{"role": "system", "content": "{INTENT_PREFIX}plan a trip to Rome."}}]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
stops = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "{END_TOKEN}"])
drawn = model.generate(
    **inputs, do_sample=True, temperature=1.0, top_p=0.8, max_new_tokens=128, eos_token_id=stops
)
said = drawn[0, inputs["input_ids"].shape[1] :].tolist()
print("the user leaves" if stops[1] in said else tokenizer.decode(said, skip_special_tokens=True).strip())
```

With vLLM: `vllm serve OWNER/NAME`, then its chat endpoint. Its completions endpoint may put a BOS in front.

- The chat template always opens a *user* turn at the end, whatever is asked for. So the last message is the system
  turn or the assistant's, never the user's.
- The template ends without a newline, and the model begins with one: strip it. There is no BOS.
- Two ids stop a turn: `<|eot_id|>` closes it, `{END_TOKEN}` means that the user leaves. Drop what comes after.
- The system turn is one generic sentence that begins "{INTENT_PREFIX.strip()}". Without it
  the model talks about what people talk about.
"""

_USES_USER = """
**For** testing and comparing assistants against users who are vague, change course and leave; studying how people
talk to assistants; drafting scenarios.

**Not for** answering questions: what it says is a user's guess, checked by nobody. Nor for passing as a person to
people, filling surveys or forums, deceiving. Nor for deciding about people, or in place of a study with them: it
shows what is likely in its logs, not what somebody thinks.

**Prompt injection.** It reads what the assistant says and may obey it: drop its goal, answer, leave. The intent is
a wish, not a guard. In plain transformers or vLLM a text that spells a control token becomes one; userlm keeps it
text.
"""

_WHAT_ASSISTANT = """
# An assistant, from {base}

This model plays the **assistant**: given a conversation, it says what the assistants of its logs might answer. It
was trained with userlm (`--side assistant`) for studies of user models. It is no user model.
"""

_CALL_ASSISTANT = """
## Call it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("OWNER/NAME")
model = AutoModelForCausalLM.from_pretrained("OWNER/NAME")
messages = [{"role": "user", "content": "Where should I eat in Rome?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
drawn = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(drawn[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

It stops at `<|eot_id|>`. It has never read a system turn. userlm takes it wherever it takes an assistant:
`userlm chat --role user --assistant OWNER/NAME`.
"""

_WHAT_BOTH = """
# A base language model, from {base}

This model continues **plain text**. It was trained with userlm (`--side both`) on all words of conversations, for
studies of user models: they begin from it. It is neither a user model nor an assistant.
"""

_CALL_BOTH = """
## Call it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("OWNER/NAME")
model = AutoModelForCausalLM.from_pretrained("OWNER/NAME")
text = (tokenizer.bos_token or "") + "User: Where should I eat in Rome?\\nAssistant:"
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
drawn = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(drawn[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

It has no chat template: a turn is a line that begins with `User: ` or `Assistant: `, and behind the last line the
text ends. userlm scores it as `base:OWNER/NAME` and trains from it (`userlm train --base OWNER/NAME`).
"""

_USES_OTHER = """
**For** studies of user models, which begin from it or are compared with it.

**Not for** answers that anybody relies on: nobody checked what it says.
"""

_SIDES = {
    "user": _Side(
        _WHAT_USER,
        _CALL_USER,
        _USES_USER,
        tags=("userlm", "user-simulation"),
        counts={
            "conversations": "conversations",
            "with_intent": "of these with an intent",
            "without_intent": "without an intent, and so without a system turn",
            "samples": "samples: user turns and observed endings",
            "tokens": "tokens, what the assistant said among them",
            "dropped": "samples dropped: too long",
            "without_user_turn": "conversations dropped: no user turn",
        },
        learned="what the user says and on the ending",
        predicted="people",
        words="the words of user turns",
        leaves=True,
    ),
    "assistant": _Side(
        _WHAT_ASSISTANT,
        _CALL_ASSISTANT,
        _USES_OTHER,
        tags=("userlm",),
        counts={
            "conversations": "conversations",
            "samples": "samples: the assistant's turns",
            "tokens": "tokens, what the user said among them",
            "dropped": "samples dropped: too long",
            "without_user_turn": "conversations dropped: the assistant says nothing",
        },
        learned="what the assistant says",
        predicted="answers",
        words="the words of the assistant's turns",
    ),
    "both": _Side(
        _WHAT_BOTH,
        _CALL_BOTH,
        _USES_OTHER,
        tags=("userlm",),
        counts={
            "conversations": "conversations",
            "samples": "samples: rows of text, several of a long conversation",
            "tokens": "tokens",
            "dropped": "samples dropped: too long",
            "without_user_turn": "conversations dropped: no user turn",
        },
        learned="every token of the text",
        predicted="conversations",
        words="all words of both sides, the names of the speakers among them,",
    ),
}


def _data(manifest: Mapping[str, Any], side: _Side, results: Mapping[str, Any]) -> Iterator[str]:
    held_out, inputs = manifest["options"].get("valid"), dict(manifest["inputs"]).items()
    use = {path: "validation" if path == held_out else "training" for path, _ in inputs}
    yield _table(
        ["file", "for", "SHA-256"],
        ((f"`{Path(path).name}`", use[path], sha) for path, sha in inputs),
    )
    found = {**results, "with_intent": results["conversations"] - results["without_intent"]}
    yield _table(["", "number"], ((name, f"{found[key]:,}") for key, name in side.counts.items()))


_TOLD = (
    "base side init lora steps epochs batch lr optimizer loss intent max_tokens long "
    "pack "
    "patience seed"
).split()


def _training(
    manifest: Mapping[str, Any], side: _Side, results: Mapping[str, Any]
) -> Iterator[str]:
    given = manifest["options"]["base"]
    plain = given.startswith("scratch:") or _is_hub_id(given)
    options = {name: manifest["options"].get(name) for name in _TOLD}
    options |= {"base": given if plain else _base(given), "precision": results["precision"]}
    trained, weights = results["trained_parameters"], results["parameters"]
    what = f"{weights:,} weights" if trained == weights else f"{trained:,} of {weights:,} weights"
    early = ", stopped early" if results["stopped_early"] else ""
    yield (
        f"{what}, {results['steps']:,} steps{early}, {results['seen']:,} samples seen. The loss "
        "is on "
        f"{side.learned}. The learning rate rises over 3 % of the steps and falls to a tenth "
        "along a cosine."
    )
    if options["steps"] is not None:
        del options["epochs"]
    if "with_intent" not in side.counts:  # nobody else is told one
        del options["intent"]
    yield _table(
        ["option", ""], ((name, str(value)) for name, value in options.items() if value is not None)
    )
    if notes := results["notes"]:
        yield "\n".join(f"- {note.replace(given, _base(given))}" for note in notes)
    versions = manifest["versions"].items()
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions) + "."


def _measured(options: Mapping[str, Any], side: _Side, results: Mapping[str, Any]) -> Iterator[str]:
    before, best = results["untrained"], results["best"]
    if not before and best is None:
        yield (
            "Nobody was held out, so nothing was measured. These are the weights of the last step."
        )
        return
    columns = {"before training": before}
    if best is not None:
        columns[f"these weights (step {best['step']:,})"] = best
    rows = {"perplexity": ("valid_perplexity", "")}
    rows |= {"termination F1": ("valid_termination_f1", " %")} if side.leaves else {}
    yield _table(
        [f"on held-out {side.predicted}", *columns],
        (
            [name, *(_shown(c.get(key), unit) for c in columns.values())]
            for name, (key, unit) in rows.items()
        ),
    )
    yield (
        f"On at most {options['valid_limit']:,} conversations; the best of several validations, "
        "so a little too "
        f"good. Perplexity is over {side.words} and depends on the tokenizer."
        + " The model leaves where P(end) is above one half."
        * side.leaves
    )


def _took(options: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    pace, count = results["pace"], results["processes"]
    rows = {
        "device": results["device"] if count == 1 else f"{count} x {results['device']}",
        "hours": _shown(pace["hours"]),
        "hours of all devices": _shown(pace["device_hours"]),
        "tokens a second": _shown(pace["tokens_per_second"]),
        "conversations a second": _shown(pace["conversations_per_second"]),
        "energy": _shown(pace["kwh"], " kWh"),
        "CO2 equivalents": _shown(pace["kg_co2"], " kg"),
    }
    yield _table(["", ""], rows.items())
    if pace["watts"] is not None:
        why = "the most that such a board draws" if options.get("watts") is None else "as was given"
        yield (
            f"Energy is an assumption: {_shown(pace['watts'])} W a device all the time, {why}; "
            "nothing for the "
            f"rest of the machine and its cooling. CO2 too: {KG_CO2_PER_KWH} kg a kWh, the "
            "world's average of "
            "2024 (Ember, Global Electricity Review 2025)."
        )


_MIND = """
## Mind

{uses}

**Languages.** {languages} In any other it speaks as well as its base model, at best.

**Bias.** It talks as those do who are in its logs, the frequent ones most. Whoever is rare there is missing or a
cliché here. Their tone, errors and prejudices were learned with their words.

**Privacy.** It learned from what people wrote and may repeat it word for word: names, addresses, secrets.
Filters find patterns, not everything. Publish it only if the people in the logs agreed to that, and try before
what it gives away.

**Licence.** Those of the base model and of the logs hold here too. Add `license` to the head of this file, and
`language` if it is missing, before you publish.
"""


def _languages(results: Mapping[str, Any]) -> str:
    codes = _codes(results)
    return (
        f"By the logs' own labels: {', '.join(codes)}."
        if codes
        else "Those of the logs; they were not recorded."
    )


def _shown(value: float | None, unit: str = "") -> str:
    if value is None:
        return "not known"
    return (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}") + unit


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
