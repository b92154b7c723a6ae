"""A log of Inspect (`.eval`), as `inspect view` and `read_eval_log` read it: an archive with a file
for each conversation. It is written without Inspect, so that neither has to be installed for the
other.

Source: github.com/UKGovernmentBEIS/inspect_ai, `EvalLog` and its recorder, version 2 of the format.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from userlm.exports.lineage import Source
from userlm.exports.training import Talk, task_of
from userlm.json_files import dump
from userlm.types import messages_of

_CORRECT, _INCORRECT = "C", "I"
_SHORT = 500  # characters of the input in the list of samples
_NO_NAME = re.compile(r"(?<![^/\\])\.\.(?=[/\\])|\0")
"""What leads out of a folder, or ends a name, where somebody unpacks the archive."""


def write(path: Path, talks: Iterable[Talk], sources: Iterable[Source]) -> int:
    """Write the log and return how many conversations it has. Samples are named after their tasks;
    repeats are epochs."""
    sources = list(sources)
    begin: dict[str, Any] = {"version": 2, "eval": _spec(sources), "plan": {}}
    names: set[int] = set()  # hashes: there may be many
    epochs = 1
    outcomes: Counter[str] = Counter()
    with (
        TemporaryFile(dir=path.parent) as summaries,
        ZipFile(path, "w", ZIP_DEFLATED) as archive,
    ):
        archive.writestr("_journal/start.json", dump(begin))
        for talk in talks:
            id, epoch = _name(talk)
            if hash((id, epoch)) in names:  # `a` beside `a#0`
                id, epoch = _safe(f"{talk.source.key}:{talk.conversation.id}"), 1
            while hash((id, epoch)) in names:  # other ids became this name
                id += "_"
            summaries.write(b"," if names else b"[")
            names.add(hash((id, epoch)))
            epochs = max(epochs, epoch)
            sample = _sample(talk, id, epoch)
            archive.writestr(f"samples/{id}_epoch_{epoch}.json", dump(sample))
            summaries.write(dump(_summary(sample)))
            if "scores" in sample:
                outcomes[sample["scores"]["solved"]["value"]] += 1
        summaries.write(b"]" if names else b"[]")
        summaries.seek(0)
        with archive.open("summaries.json", "w", force_zip64=True) as whole:
            shutil.copyfileobj(summaries, whole)
        begin["eval"]["dataset"]["samples"] = len(names)
        begin["eval"]["config"] = {"epochs": epochs}
        when = begin["eval"]["created"]  # no run records how long it took
        end = {
            "status": "success",
            "results": _results(len(names), outcomes),
            "stats": {"started_at": when, "completed_at": when},
        }
        archive.writestr("header.json", dump({**begin, **end}))
    return len(names)


def _summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the list of samples has of one."""
    kept = ("id", "epoch", "target", "metadata", "scores")
    return {
        **{key: sample[key] for key in kept if key in sample},
        "input": sample["input"][:_SHORT],
        "completed": True,
        "message_count": len(sample["messages"]),
    }


def _spec(sources: list[Source]) -> dict[str, Any]:
    keys = " ".join(source.key for source in sources)
    id = blake2b(keys.encode(), digest_size=11).hexdigest()
    when = max(source.path.stat().st_mtime for source in sources)
    users, assistants = (
        _one(names) for names in zip(*(s.speakers for s in sources), strict=True)
    )
    seed = [source.lineage.get("options", {}).get("seed") for source in sources]
    return {
        "eval_id": id,
        "run_id": id,
        "task_id": id,
        "created": datetime.fromtimestamp(when, UTC).isoformat(),
        "task": "userlm",
        "task_args": {"user": users, "seeds": seed},
        "dataset": {"name": keys},
        "model": assistants,
        "config": {},
        "metadata": {"lineage": {source.key: source.lineage for source in sources}},
    }


def _one(names: Iterable[str]) -> str:
    return ", ".join(sorted({name or "not known" for name in names}))


def _name(talk: Talk) -> tuple[str, int]:
    """Return the id of a sample, and the number of its epoch."""
    conversation = talk.conversation
    origin = conversation.origin
    id, epoch = conversation.id, 1
    if origin and id.endswith(suffix := f"#{origin.repeat}"):
        id, epoch = id.removesuffix(suffix), origin.repeat + 1
    return _safe(f"{talk.source.prefix}{id}"), epoch


def _safe(id: str) -> str:
    """Return an id as the name of an entry of the archive, which readers make from it."""
    return _NO_NAME.sub("__", id)


def _sample(talk: Talk, id: str, epoch: int) -> dict[str, Any]:
    conversation = talk.conversation
    answers = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    sample: dict[str, Any] = {
        "id": id,
        "epoch": epoch,
        "input": conversation.intent or conversation.turns[0].text,
        "target": "",
        "messages": messages_of(conversation.turns),
        "output": _output(talk.source.speakers[1], answers),
        "metadata": _about(talk),
    }
    solved = talk.source.solved(conversation)
    if solved is not None:
        value = _CORRECT if solved else _INCORRECT
        reason = talk.source.reasons.get(conversation.id, "")
        answer = answers[-1] if answers else None
        score = {"value": value, "answer": answer, "explanation": reason}
        sample["scores"] = {"solved": score}
    return sample


def _output(model: str, answers: list[str]) -> dict[str, Any]:
    if not answers:
        return {}
    message = {"role": "assistant", "content": answers[-1]}
    choice = {"message": message, "stop_reason": "stop"}
    return {"model": model, "choices": [choice], "completion": answers[-1]}


def _about(talk: Talk) -> Mapping[str, Any]:
    conversation = talk.conversation
    about = {
        "conversation": conversation.id,
        "run": talk.source.key,
        "task": task_of(conversation) or None,
        "stop": conversation.stop,
        "ended": conversation.ended,
    }
    return {name: value for name, value in about.items() if value is not None}


def _results(total: int, outcomes: Counter[str]) -> dict[str, Any]:
    results: dict[str, Any] = {"total_samples": total, "completed_samples": total}
    if scored := outcomes.total():
        accuracy = {"name": "accuracy", "value": outcomes[_CORRECT] / scored}
        score = {
            "name": "solved",
            "scorer": "solved",
            "metrics": {"accuracy": accuracy},
        }
        counts = {"scored_samples": scored, "unscored_samples": total - scored}
        results["scores"] = [score | counts]
    return results
