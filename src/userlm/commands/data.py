"""`import` and `clean`: from raw logs to conversations that were filtered and split by person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from userlm.commands.options import (
    Hub,
    Limit,
    Out,
    Results,
    Seed,
    count_total,
    finished,
    in_order,
    write_hub,
)
from userlm.data import clean as cleaning
from userlm.data import files, pii, sources
from userlm.data.explain import explain as explain_one
from userlm.rows import KINDS, SPLITS, Line, from_record, read_conversations, read_rows, to_record
from userlm.runs import Outputs, Run, conversations_file
from userlm.terminal import console, show_counts, show_findings, track
from userlm.types import Conversation, InputError

COMMIT_EVERY = 5000  # conversations between two commits of `import`


def import_(
    logs: Annotated[
        list[str],
        Argument(
            help=f"Files ({', '.join(KINDS)}), folders, globs, hf://datasets/OWNER/NAME, or other "
            "URLs."
        ),
    ],
    out: Out = Path("runs/import"),
    source: Annotated[
        str | None,
        Option(
            help=f"Layout of the logs: {', '.join(sources.SOURCES)}. Default: guessed line by line."
        ),
    ] = None,
    strict: Annotated[
        bool, Option(help="Stop at the first bad line instead of setting it aside.")
    ] = False,
    limit: Limit = None,
) -> Results:
    """Read raw logs into conversations. Bad lines are set aside in dropped.jsonl with the
    reason."""
    if source is not None and source not in sources.SOURCES:
        raise InputError(
            f"--source {source}: unknown layout; there are {', '.join(sources.SOURCES)}"
        )
    found = [
        file
        for file in files.find(logs)
        if not (file.path and out.resolve() in file.path.resolve().parents)
    ]
    if not found:
        raise InputError(f"all logs lie in {out}, where the results go; choose another --out")
    here = [file.path for file in found if file.path]
    stamps = {file.name: file.stamp for file in found if not file.path}
    sizes = {path: path.stat().st_size for path in here}
    run = Run.open(
        out, "import", {"source": source, "strict": strict, "limit": limit}, here, stamps
    )
    if done := finished(run):
        return done
    outputs = Outputs(run, "conversations.jsonl", "dropped.jsonl")
    state = outputs.state or {"file": 0, "items": 0, "lines": 0, "gathered": {}, "counts": {}}
    counts, read = Counter(state["counts"]), state["lines"]
    again = state[
        "gathered"
    ]  # how many lines of which files are gathered: another attempt reads them anew
    names, gathered = _unique_names(found), sources.Gathered()
    shown = {name: file.name for name, file in zip(names, found, strict=True)}
    # an id is remembered by its hash: 64 bits tell many millions of them apart
    seen = {
        hash(line.row["id"])
        for line in read_rows(run.path("conversations.jsonl"), may_be_empty=True)
    }

    def commit(file: int, items: int) -> None:
        outputs.commit(
            {"file": file, "items": items, "lines": read, "gathered": again, "counts": counts}
        )

    def keep(items: Iterable[sources.Found], i: int) -> None:
        """Write down what stands in a file, or last of all what was gathered, but for what was
        written before."""
        for number, item in enumerate(items, 1):
            if (i, number) <= (state["file"], state["items"]):
                continue
            where = {"file": shown[item.file], "line": item.line.number}
            rejected = _enter(item, where, outputs, seen, counts)
            if strict and rejected:
                raise InputError(f"{where['file']}, line {where['line']}: {rejected}")
            if number % COMMIT_EVERY == 0:
                commit(i, number)

    for i, (file, name) in enumerate(zip(found, names, strict=True)):
        before = i < state["file"]
        if before:
            if name not in again:
                continue
            most = again[name]
        else:
            most = None if limit is None else limit - read
            if most == 0:
                break
        with files.local(file, run.path(".copies")) as path:
            size = sizes.get(path, path.stat().st_size)
            rows = islice(read_rows(path, len(found) > 1, _unread, size), most)
            doing = f"importing {file.name.rpartition('/')[2]}"
            lines = _Counted(track(rows, doing, count_total([path], most)))
            keep(sources.find(lines, source, name, gathered), i)
            if (now := path.stat().st_size) < size:
                raise InputError(
                    f"{file.name} was cut short while it was read; import it into another --out"
                )
        if before:
            continue
        if not lines.count:
            counts["note: empty files"] += 1
        if now > size:
            counts["note: files that grew while they were read"] += 1
        if name in gathered.files:
            again[name] = lines.count
        read += lines.count
        commit(i + 1, 0)
    keep(gathered.found(), len(found))
    if (copies := run.path(".copies")).is_dir():
        copies.rmdir()
    counts["in"] = read
    if not counts["out"]:
        show_counts(str(run.folder), counts)
        raise InputError(
            f"none of the {read} lines is a conversation; {run.path('dropped.jsonl')} says why"
        )
    outputs.close()
    show_counts(str(run.folder), counts)
    if grew := counts["note: files that grew while they were read"]:
        console.print(
            f"{grew} grew while read: what came later is not in; import again into another --out"
        )
    return run.finish({"counts": in_order(counts)})


def clean(
    logs: Annotated[Path, Argument(help="Imported conversations: a run folder or a file.")] = Path(
        "runs/import"
    ),
    out: Out = Path("runs/clean"),
    languages: Annotated[
        str, Option(help="Languages to keep, comma-separated codes; 'all' keeps all.")
    ] = "en",
    flagged: Annotated[
        bool, Option(help="Keep conversations flagged as toxic or redacted.")
    ] = False,
    templates: Annotated[
        bool, Option(help="Keep conversations that begin with a template.")
    ] = False,
    ngram: Annotated[
        int, Option(help="Length of the template filter's word n-grams.", min=1, max=100)
    ] = 7,
    template_limit: Annotated[
        int,
        Option(
            help="Drop a conversation whose first turn has an n-gram that occurs more often.", min=0
        ),
    ] = 100,
    duplicates: Annotated[
        str,
        Option(
            help="What a user said before, word for word (exact) or nearly (near): keep, exact or "
            "near."
        ),
    ] = "keep",
    similarity: Annotated[
        float, Option(help="Share of common word 5-grams from which two are near.", min=0.1, max=1)
    ] = 0.7,
    scrub: Annotated[
        bool, Option(help="Replace e-mails, phones, cards, IP addresses and keys by marks.")
    ] = False,
    shares: Annotated[
        str, Option(help="Shares of train, valid and test, in percent of the people.")
    ] = "90/5/5",
    hub: Hub = False,
    seed: Seed = 0,
    limit: Limit = None,
    explain: Annotated[
        str | None, Option(help="Only say why the conversation of this id stays or goes.")
    ] = None,
) -> Results:
    """Filter conversations, each drop with a reason, and split them 90/5/5 by person."""
    path = conversations_file(logs)
    if duplicates not in cleaning.DUPLICATES:
        raise InputError(f"--duplicates {duplicates}: give one of {', '.join(cleaning.DUPLICATES)}")
    rules = cleaning.Rules(
        languages=_languages(languages),
        flagged=flagged,
        ngram=ngram,
        template_limit=None if templates else template_limit,
        duplicates=duplicates,
        similarity=similarity,
        shares=_shares(shares),
        seed=seed,
    )

    def read(doing: str) -> Iterator[Conversation]:
        return track(islice(read_conversations(path), limit), doing, count_total([path], limit))

    if explain is not None:
        findings = explain_one(explain, read, rules)
        show_findings(explain, findings)
        return {"id": explain, "findings": findings}
    options: dict[str, Any] = {
        "languages": languages,
        "flagged": flagged,
        "templates": templates,
        "ngram": ngram,
    }
    options |= {
        "template_limit": template_limit,
        "duplicates": duplicates,
        "similarity": similarity,
    }
    options |= {"scrub": scrub, "shares": shares, "hub": hub, "seed": seed, "limit": limit}
    size = path.stat().st_size
    run = Run.open(out, "clean", options, [path])
    if done := finished(run):
        return done
    decisions = cleaning.decide(read("reading"), rules, run.path(".ngrams"))
    outputs = Outputs(run, *(f"{split}.jsonl" for split in SPLITS), "dropped.jsonl")
    scrubbed: Counter[str] = Counter()
    rows = track(islice(read_rows(path), len(decisions.reasons)), "writing", len(decisions.reasons))
    changed = InputError(
        f"{path} was cut short while it was read; run the command again with another --out"
    )
    i = -1
    for i, (line, reason) in enumerate(zip(rows, decisions.reasons, strict=False)):
        if line.error:
            raise changed
        if reason is not None:
            why = {"dropped": reason} | (
                {"duplicate_of": decisions.copies[i]} if i in decisions.copies else {}
            )
            outputs.write(
                "dropped.jsonl", {**line.row, "meta": {**(line.row.get("meta") or {}), **why}}
            )
            continue
        record = line.row
        if scrub:
            conversation, found = pii.scrub(from_record(record))
            scrubbed.update(found)
            record = to_record(conversation)
        outputs.write(f"{SPLITS[decisions.splits[i]]}.jsonl", record)
    if i + 1 < len(decisions.reasons) or path.stat().st_size < size:
        raise changed
    outputs.close()
    counts = _counts(decisions, scrubbed)
    show_counts(str(run.folder), counts)
    if not counts["out"]:
        raise InputError(f"no conversation stays; {run.path('dropped.jsonl')} says why")
    results = {"counts": in_order(counts), **decisions.figures, "ngram_table": decisions.table}
    if hub:
        write_hub(run, results)
    return run.finish(results)


def _counts(decisions: cleaning.Decisions, scrubbed: Counter[str]) -> Counter[str]:
    reasons = Counter(reason for reason in decisions.reasons if reason is not None)
    splits = decisions.figures["splits"]
    counts = Counter({f"dropped: {reason}": count for reason, count in reasons.items()})
    counts["in"] = len(decisions.reasons)
    counts["out"] = len(decisions.reasons) - reasons.total()
    for split, figures in splits.items():
        counts |= {
            f"{split}: {what}": figures[what] for what in ("conversations", "people", "samples")
        }
    return counts + Counter({f"note: scrubbed {kind}": count for kind, count in scrubbed.items()})


class _Counted:
    """Lines, and how many of them were taken."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines, self.count = lines, 0

    def __iter__(self) -> Iterator[Line]:
        for line in self._lines:
            self.count += 1
            yield line


def _unread(columns: Collection[str]) -> Collection[str]:
    """Large columns of WildChat that say nothing which `toxic` does not."""
    return (
        {"openai_moderation", "detoxify_moderation", "header"} & set(columns)
        if "toxic" in columns
        else ()
    )


def _enter(
    item: sources.Found,
    where: dict[str, Any],
    outputs: Outputs,
    seen: set[int],
    counts: Counter[str],
) -> sources.Rejected | None:
    """Write a conversation down if its id is new, else that it was rejected; say so."""
    line, imported, rejected = item.line, item.imported, item.rejected
    record: dict[str, Any] = {}
    if imported is not None:
        name, record = imported.conversation.id, to_record(imported.conversation)
        for note, times in imported.notes.items():
            counts[f"note: {note}"] += times
        if hash(name) not in seen:
            seen.add(hash(name))
            counts["out"] += 1
            outputs.write("conversations.jsonl", record)
            return None
        rejected = sources.Rejected("duplicate id", f"the id {name!r} was used before")
    assert rejected is not None
    counts[f"dropped: {rejected.reason}"] += 1
    what = {"raw": line.raw} if line.error else {"row": line.row or record}
    outputs.write(
        "dropped.jsonl", where | {"reason": rejected.reason, "error": str(rejected)} | what
    )
    return rejected


def _unique_names(found: Sequence[files.LogFile]) -> list[str]:
    """For each file a name that no other has, for the ids of rows that carry none."""
    names = [file.name.rpartition("/")[2] for file in found]
    stems = [
        next(name.removesuffix(kind) for kind in KINDS if name.endswith(kind)) for name in names
    ]
    return [stem if stems.count(stem) == 1 else f"{i}:{stem}" for i, stem in enumerate(stems)]


def _languages(languages: str) -> tuple[str, ...] | None:
    """The codes that were asked for; `None`: all."""
    asked = [code.strip() for code in languages.split(",") if code.strip()]
    if [code.lower() for code in asked] == ["all"]:
        return None
    if not asked:
        raise InputError("--languages: give codes such as en,de, or 'all'")
    return tuple(asked)


def _shares(shares: str) -> tuple[float, float, float]:
    parts = shares.split("/")
    if not re.fullmatch("[0-9]{1,3}(/[0-9]{1,3}){2}", shares) or sum(map(int, parts)) != 100:
        raise InputError(
            f"--shares {shares}: write three numbers that add up to 100, such as 90/5/5"
        )
    train, valid, test = (int(part) / 100 for part in parts)
    return train, valid, test
