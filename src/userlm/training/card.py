"""The card of a trained model: the facts of its run, rendered with assets/card.md.j2.

`userlm train` writes it as model/README.md. The card has names of files, but never folders of the
host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from userlm import assets
from userlm.flip import CUT_MARK
from userlm.text import END_TOKEN, INTENT_PREFIX

KG_CO2_PER_KWH = 0.473
"""World average of electricity in 2024, over its life cycle (Ember, Global Electricity Review
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
"""Maximum power of a whole board according to the maker's data sheet. The key is the driver's name
for the board without the maker: two boards with one chip may differ by half. Other devices, such as
a slice of a board, have no known power."""

OPTIONS = (
    "base side init lora trainable_layers steps epochs batch lr optimizer loss intent max_tokens "
    "max_answer_tokens overlong pack patience seed"
).split()
"""The options of the run that the card lists."""


def throughput(
    rows: Iterable[Mapping[str, Any]], device: str, processes: int, watts: float | None
) -> dict[str, Any]:
    """Return speed, time, energy and CO2 of a training, from its log.

    Unknown values are `None`. The hours include validations and checkpoints;
    the speeds are those of the steps alone.

    Args:
        rows: of log.jsonl; every row has `seconds`, those of steps also `tokens` and
            `conversations`.
        device: its name, as torch reports it.
        processes: the number of processes, with one device each.
        watts: the power of one device; by default from `WATTS`. The rest of the host and its
            cooling are not counted.
    """
    rows = list(rows)
    steps = [row for row in rows if "tokens" in row]
    hours = sum(row["seconds"] for row in rows) / 3600
    seconds = sum(row["seconds"] for row in steps)

    def per_second(name: str) -> float | None:
        return sum(row[name] for row in steps) / seconds if seconds else None

    if watts is None:
        watts = WATTS.get(re.sub(r"^((NVIDIA|Tesla|GeForce) )+", "", device))
    kwh = None if watts is None else hours * processes * watts / 1000
    return {
        "hours": hours,
        "tokens_per_second": per_second("tokens"),
        "conversations_per_second": per_second("conversations"),
        "device_hours": hours * processes,
        "watts": watts,
        "kwh": kwh,
        "kg_co2": None if kwh is None else kwh * KG_CO2_PER_KWH,
    }


def render(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return the card (README.md) of a finished training."""
    return _render("card.md.j2", facts(manifest, results))


def uses(side: str, languages: str, *, has_base: bool) -> str:
    """Return the sections of a card on uses, risks and guards.

    Args:
        side: whose turns the model learned, or `both`.
        languages: a sentence on the languages of its data.
        has_base: whether it was trained from a language model.
    """
    given = {"side": side, "languages": languages, "has_base": has_base}
    return _render("uses.md.j2", given)


def _render(name: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure"] = _figure
    source = files(assets).joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(source).render(values)


def facts(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for the card: the results of the run, and text that depends on its options.

    Args:
        manifest: the contents of run.json.
        results: the contents of results.json, with `throughput`. `languages` (codes with
            counts) is optional.
    """
    options = manifest["options"]
    base = options["base"]
    source = assets.SMALL_ID if base in assets.SMALL else base
    name = "random weights" if base.startswith("scratch:") else Path(source).name
    side = options.get("side", "user")
    codes = _codes(results.get("languages", {}))
    languages = "Those of the logs; they were not recorded."
    if codes:
        languages = f"According to the labels in the logs: {', '.join(codes)}."
    processes, device = results["processes"], results["device"]
    return {
        **results,
        "side": side,
        "uses": uses(side, languages, has_base=not base.startswith("scratch:")),
        "hardware": f"{processes} x {device}" if processes > 1 else device,
        "region": options.get("region"),
        "base": name,
        "base_model": source if _is_hub_id(source) else None,
        "languages": codes,
        "files": _files(manifest),
        "options": _options(options) | {"precision": results["precision"]},
        "notes": [note.replace(base, Path(base).name) for note in results["notes"]],
        "versions": manifest["versions"],
        "measured": _measured(results["untrained"], results["best"]),
        "valid_limit": options["valid_limit"],
        "always_ending_f1": results.get("always_ending_f1"),
        "given_watts": options.get("watts"),
        "kg_co2_per_kwh": KG_CO2_PER_KWH,
        "intent_prefix": INTENT_PREFIX,
        "end_token": END_TOKEN,
        "cut_mark": CUT_MARK.strip(),
    }


def _is_hub_id(base: str) -> bool:
    """Whether a base model came from the Hub.

    Its name can be an id, and it is neither a local folder nor a name of ours.
    """
    is_id = re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", base)
    return bool(is_id) and not Path(base).is_dir() and base not in assets.NAMES


def _codes(languages: Iterable[str]) -> list[str]:
    known = [
        code for code in languages if re.fullmatch("[a-z]{2,3}", code) and code != "und"
    ]
    return known[:20]


def _files(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The files of conversations, by name only; a resumed run has `inputs` as a list of pairs. The
    files of the base model are inputs, too."""
    base = manifest["options"]["base"]
    folder = Path(base).expanduser()
    if base in assets.NAMES and not folder.exists():
        folder = assets.model(base)
    found = []
    for path, sha256 in dict(manifest["inputs"]).items():
        if Path(path).is_relative_to(folder):
            continue
        use = "validation" if path == manifest["options"].get("valid") else "training"
        found.append({"name": Path(path).name, "use": use, "sha256": sha256})
    return found


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that apply and were set; the base model without its folder."""
    shown = {name: options.get(name) for name in OPTIONS}
    base = options["base"]
    if not (base.startswith("scratch:") or _is_hub_id(base)):
        shown["base"] = Path(base).name
    if options.get("side", "user") != "user":  # only user models use intents
        del shown["intent"]
    if shown["steps"] is not None:
        del shown["epochs"]
    return {name: value for name, value in shown.items() if value is not None}


def _measured(
    untrained: Mapping[str, Any], best: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The columns of the table of validations; empty if there was no validation."""
    if best is not None:
        return {
            "before training": untrained,
            f"these weights (step {best['step']:,})": best,
        }
    return {"before training": untrained} if untrained else {}


def _figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "not known"
    return (f"{value:,.0f}" if value >= 1000 else f"{value:.3g}") + unit
