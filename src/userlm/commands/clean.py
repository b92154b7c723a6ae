"""`userlm clean`: filter conversations and split them by person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from userlm.commands.options import (
    Output,
    argument,
    check,
    hub_option,
    limit_option,
    option,
    option_types,
    out_folder,
    recorded,
    seed_option,
)
from userlm.commands.steps import (
    FEW,
    Results,
    count_total,
    finish,
    finished,
    in_order,
    open_run,
    write_hub,
)
from userlm.data import filters
from userlm.data.explain import explain
from userlm.manifest import file_hash
from userlm.rows import SPLITS, from_record, read_conversations, read_rows, to_record
from userlm.runs import FinishedRun, Outputs, Run, changed, conversations_file
from userlm.show.blocks import Quote, Table
from userlm.show.terminal import console, show, track
from userlm.types import Conversation, InputError


@dataclass(frozen=True, slots=True)
class Clean:
    """Filter conversations, with a reason for each drop, and split them 90/5/5 by person.

    $ userlm clean runs/import --duplicates near --scrub

    $ userlm clean --out runs/clean --explain conversation-17
    """

    logs: Path = argument(
        Path("runs/import"), "Imported conversations: a run folder or a file."
    )
    out: Path = out_folder("runs/clean")
    languages: str = option(
        "en", "Languages to keep, as comma-separated codes; 'all' keeps every language."
    )
    flagged: bool = option(False, "Keep conversations flagged as toxic or redacted.")
    templates: bool = option(False, "Keep conversations that begin with a template.")
    ngram: int = option(
        7,
        "Length of the word n-grams that the template filter counts.",
        min=1,
        max=100,
    )
    template_limit: int = option(
        100,
        "Drop a conversation if an n-gram of its first turn occurs more often than this.",
        min=0,
    )
    duplicates: Literal["keep", "exact", "near"] = option(
        "keep",
        "What to do with duplicates: keep, exact (drop exact duplicates), or near (drop "
        "near-duplicates too).",
    )
    similarity: float = option(
        0.7,
        "Minimum Jaccard similarity of the word 5-grams of two near-duplicates.",
        min=0.1,
        max=1,
    )
    scrub: bool = option(
        False,
        "Replace e-mail addresses, phone and card numbers, IP addresses and API keys by marks.",
    )
    shares: str = option(
        "90/5/5", "Shares of train, valid and test, in percent of the people."
    )
    hub: bool = hub_option()
    seed: int = seed_option()
    limit: int | None = limit_option()
    explain: str | None = option(
        None,
        "Only explain why the run in --out keeps or drops the conversation with this id.",
        recorded=False,
    )
    output: Output = Output()

    def rules(self) -> filters.Rules:
        """The rules of the filters and of the split."""
        return filters.Rules(
            languages=_languages(self.languages),
            flagged=self.flagged,
            ngram=self.ngram,
            template_limit=None if self.templates else self.template_limit,
            duplicates=self.duplicates,
            similarity=self.similarity,
            shares=_shares(self.shares),
            seed=self.seed,
        )


def clean(options: Clean) -> Results:
    """Filter and split the conversations, or explain what happens to one of them."""
    if options.explain is not None:
        return _explain(options, options.explain)
    path = conversations_file(options.logs)
    rules = options.rules()
    size = path.stat().st_size
    run = open_run("clean", options, [path])
    if done := finished(run, options):
        return done
    decisions = filters.decide(
        _read(path, options, "reading"), rules, run.path(".ngrams")
    )
    notes = _write(run, path, decisions, options.scrub)
    run.check_inputs({path: size})
    counts = _counts(decisions, notes)
    if not counts["out"]:
        raise InputError(
            f"all conversations were dropped; the reasons are in "
            f"{run.path('dropped.jsonl')}"
        )
    figures = decisions.figures
    if options.scrub:
        counts = _scrubbed(counts)
        labels = ("languages", "countries", "models")
        figures |= {name: dict(_scrubbed(figures[name])) for name in labels}
    _show_small(options, decisions.figures["splits"])
    results = {
        "counts": in_order(counts),
        **figures,
        "ngram_table": decisions.table,
    }
    if options.hub:
        write_hub(run, results)
    return finish(run, options, results)


def _read(path: Path, options: Clean, doing: str) -> Iterator[Conversation]:
    conversations = islice(read_conversations(path), options.limit)
    return track(conversations, doing, count_total([path], options.limit))


def _explain(options: Clean, id: str) -> Results:
    """Show why the run in the output folder keeps or drops a conversation."""
    run = Run.read(options.out)
    if run.verb != "clean":
        raise InputError(f"{run.folder} is a run of {run.verb!r}; give that of a clean")
    made = _as_made(run, options)
    defaults = recorded(Clean())
    for name, given in recorded(options).items():
        was = run.options[name]
        if given not in (defaults[name], was):
            raise InputError(
                f"--{name.replace('_', '-')} {given}: {run.folder} was made with {was}; leave the "
                "option out, or give another --out"
            )
    [(logs, contents)] = run.manifest["inputs"].items()  # checked by `_as_made`
    path = conversations_file(Path(logs))
    if options.logs != Clean().logs and conversations_file(options.logs) != path:
        raise InputError(f"{run.folder} was made from {path}, not from {options.logs}")
    if file_hash(path) != contents:
        raise InputError(f"{path} is not what it was when {run.folder} was made")
    findings = explain(id, partial(_read, path, made), made.rules())
    rows = [tuple(map(Quote, finding)) for finding in findings]
    show([Table(("step", "it", "because"), rows, title=id)])
    return {"id": id, "findings": findings}


def _as_made(run: FinishedRun, options: Clean) -> Clean:
    """Return the options with those that the run was made with; raise `InputError` if its run.json
    is damaged."""
    from pydantic import TypeAdapter, ValidationError  # heavy

    types = option_types(Clean)
    damaged = "" if len(run.manifest.get("inputs", {})) == 1 else "inputs"
    for name in recorded(options):
        try:
            value = run.options[name]
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except (LookupError, ValidationError):
            damaged = name
    if damaged:
        raise InputError(
            f"{run.path('run.json')}: {damaged!r} is damaged; clean again with another --out"
        )
    made = replace(options, **{name: run.options[name] for name in recorded(options)})
    try:
        check(made)
    except InputError as error:
        raise InputError(f"{run.path('run.json')}: {error}") from None
    return made


def _write(
    run: Run, path: Path, decisions: filters.Decisions, scrub: bool
) -> Counter[str]:
    """Write each conversation to its split or to dropped.jsonl; return how often each kind of
    personal data was scrubbed, or in how many conversations it was left."""
    from userlm.data import pii  # many patterns, which take long to compile

    outputs = Outputs(run, *(f"{split}.jsonl" for split in SPLITS), "dropped.jsonl")
    notes: Counter[str] = Counter()
    total = len(decisions.reasons)
    written = 0
    for line in track(islice(read_rows(path), total), "writing", total):
        if line.error:
            raise changed(path)
        record = line.row
        reason = decisions.reasons[written]
        if reason is not None:
            meta = {**(record.get("meta") or {}), "dropped": reason}
            if written in decisions.copies:
                meta["duplicate_of"] = decisions.copies[written]
            outputs.write("dropped.jsonl", {**record, "meta": meta})
        else:
            if scrub:
                conversation, found = pii.scrub(from_record(record))
                record = to_record(conversation)
                for kind, times in found.items():
                    notes[f"scrubbed {kind}"] += times
            elif kinds := pii.kinds_in(record):
                notes.update(
                    ["not scrubbed", *(f"not scrubbed, {kind}" for kind in kinds)]
                )
            split = SPLITS[decisions.splits[written]]
            outputs.write(f"{split}.jsonl", record)
        written += 1
    if written < total:
        raise changed(path)
    outputs.close()
    return notes


def _scrubbed(counts: Mapping[str, int]) -> Counter[str]:
    """Return the counts by their scrubbed names, which are texts of the log."""
    from userlm.data import pii

    scrubbed: Counter[str] = Counter()
    for name, count in counts.items():
        scrubbed[pii.scrub_text(name)[0]] += count
    return scrubbed


def _counts(decisions: filters.Decisions, notes: Counter[str]) -> Counter[str]:
    counts = Counter({"in": len(decisions.reasons), "out": 0})
    for reason in decisions.reasons:
        counts["out" if reason is None else f"dropped: {reason}"] += 1
        # All languages together: a label that is often wrong should be seen.
        if reason and (decided := re.fullmatch("(language): .*, (by .*)", reason)):
            counts[f"note: {decided[1]} {decided[2]}"] += 1
    for split, figures in decisions.figures["splits"].items():
        for what in ("conversations", "people", "samples"):
            counts[f"{split}: {what}"] = figures[what]
    for note, count in notes.items():
        counts[f"note: {note}"] = count
    return +counts


def _show_small(options: Clean, splits: Mapping[str, Mapping[str, int]]) -> None:
    """Say so if a split has hardly anything, though it has a share."""
    shares = dict(zip(SPLITS, _shares(options.shares), strict=True))
    small = [
        f"{split} {splits[split]['conversations']}"
        for split, share in shares.items()
        if share and splits[split]["conversations"] < FEW
    ]
    if small:
        people = sum(splits[split]["people"] for split in SPLITS)
        console.print(
            f"--shares {options.shares} of {people:,} people leave few conversations: "
            f"{', '.join(small)}; give more, other --shares or another --seed",
            style="yellow",
            soft_wrap=True,
        )


def _languages(languages: str) -> tuple[str, ...] | None:
    """Return the requested language codes; `None` means all."""
    asked = [code.strip() for code in languages.split(",") if code.strip()]
    if [code.lower() for code in asked] == ["all"]:
        return None
    if not asked:
        raise InputError("--languages: give codes such as en,de, or 'all'")
    return tuple(asked)


def _shares(shares: str) -> tuple[float, float, float]:
    parts = shares.split("/")
    if (
        not re.fullmatch("[0-9]{1,3}(/[0-9]{1,3}){2}", shares)
        or sum(map(int, parts)) != 100
    ):
        raise InputError(
            f"--shares {shares}: give three numbers that add up to 100, such as 90/5/5"
        )
    train, valid, test = (int(part) / 100 for part in parts)
    return train, valid, test
