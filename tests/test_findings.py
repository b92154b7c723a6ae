"""The tables of `recipes/small`, on small runs whose numbers are worked out by hand."""

import gzip
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_recipes import check, option

from userlm.json_files import write_lines
from userlm.metrics.scores import score_line
from userlm.rows import write_conversations
from userlm.types import Conversation, MeasureRow, Origin, Turn

SMALL = Path(__file__).resolve().parent.parent / "recipes/small"


@pytest.fixture(scope="module")
def findings() -> Any:
    spec = importlib.util.spec_from_file_location("findings", SMALL / "findings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(name, value, low=None, high=None, *, n=7, missing=0, why="", unit=""):
    counts = {"n": n, "missing": missing, "better": "lower", "unit": unit, "why": why}
    return {"name": name, "value": value, "low": low, "high": high, **counts}


def run(folder, results, **files):
    """A finished run; of its files, conversations or lines."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    for name, rows in files.items():
        write = write_conversations if name == "conversations" else write_lines
        write(folder / f"{name}.jsonl", rows)


def cells(text):
    """A table's rows by what stands in front."""
    rows = [
        line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows[2:]}


# --- perplexity -----------------------------------------------------------------------------------


def turns(column, told):
    """A line of scores.jsonl for each conversation of one turn: id, person, nats (`None`: a gap),
    tokens."""
    found = []
    for id, person, nats, tokens in told:
        sums = (nats, tokens, 9.0, 0.0, 0.0, 0.0, 0.0) if nats else None
        row = MeasureRow(f"{id}/0", person, sums, "" if sums else "gap")
        found.append(score_line(column, "perplexity", row))
    return found


def test_a_cell_is_what_the_run_found_and_a_gap_says_why_or_that_nothing_was_run(
    findings, tmp_path
):
    told = [
        measured("perplexity", 32.184, 27.481, 1037.6),
        measured("bits per byte", None, why="no words"),
    ]
    run(
        tmp_path / "ppl/goals/userlm-small",
        {"with intent": told, "without intent": [measured("perplexity", 1234.6)]},
    )
    table = cells(findings.of_models(tmp_path, "perplexity"))
    assert list(table) == list(findings.MODELS.values())
    # three columns of each source; large numbers have no decimals, an interval has those of its
    # value
    assert table["userlm-small"] == ["–"] * 9 + [
        "1,235",
        "32.18 [27.48, 1,037.60]",
        "–",
    ]
    assert table["userlm-tiny"] == ["–"] * 12
    assert (
        cells(findings.of_models(tmp_path, "bits per byte"))["userlm-small"][10]
        == "not measured: no words"
    )


def test_what_the_intent_changes_is_shown_by_part_and_under_each_control(
    findings, tmp_path
):
    own = [
        measured("perplexity ratio", 0.9, 0.85, 0.95),
        measured("human goals: perplexity ratio", 0.8, 0.75, 0.85),
        measured("human goals: perplexity ratio, outside the intent", 0.95, 0.9, 1.0),
    ]
    run(
        tmp_path / "ppl/people/userlm-small",
        {"with / without": own, "with / another's": own[:1]},
    )
    table = cells(findings.of_intents(tmp_path))
    assert table["held-out people, human goals"] == ["0.800 [0.750, 0.850]", "–", "–"]
    assert table["held-out people, human goals, outside the intent"] == [
        "0.950 [0.900, 1.000]",
        "–",
        "–",
    ]
    assert table["held-out people, all"] == [
        "0.900 [0.850, 0.950]",
        "–",
        "0.900 [0.850, 0.950]",
    ]
    assert table["iKAT, all human goals, later turns"] == ["–", "–", "–"]


def test_two_models_are_compared_on_the_turns_of_both_and_paired_by_person(
    findings, tmp_path
):
    """Nats and tokens of userlm: 2 of 2 and 90 of 10; of base: 4 of 2 and 100 of 10, and a turn
    that userlm lacks.

    Per token base is 1 nat worse for either person, so the ratio is exp(-12 / 12) = 0.368, though
    their perplexities are e and e ** 9. Told, userlm has 1 and 89: against the untold base exp(-14
    / 12) = 0.311. Two people give no interval.
    """
    mine, theirs = tmp_path / "ppl/people/userlm-small", tmp_path / "ppl/people/small"
    plain = [measured("perplexity", 2.0, n=2, missing=1)]
    untold = turns(
        "without intent",
        [("a", "ann", 2.0, 2.0), ("b", "bob", 90.0, 10.0), ("c", "cy", None, 0)],
    )
    told = turns(
        "with intent",
        [("a", "ann", 1.0, 2.0), ("b", "bob", 89.0, 10.0), ("c", "cy", None, 0)],
    )
    run(mine, {"without intent": plain}, scores=untold + told)
    other = [("a", "ann", 4.0, 2.0), ("b", "bob", 100.0, 10.0), ("c", "cy", 5.0, 1.0)]
    gaps = turns("with intent", [(id, person, None, 0) for id, person, _, _ in other])
    run(theirs, {"without intent": plain}, scores=turns("without intent", other) + gaps)
    pair = "userlm-small / SmolLM2 as a base model"
    row = cells(findings.of_training(tmp_path))[f"{pair}: held-out people"]
    assert row == ["0.368", "not measured: gap", "0.311"]
    assert cells(findings.of_training(tmp_path))[f"{pair}: iKAT"] == ["–"] * 3
    assert findings.turns_of(mine) == "2 turns of 2, 1 missing"


# --- talk -----------------------------------------------------------------------------------------


def answer(person, k, leaves, left, error=False):
    said = Conversation(
        f"{person}/{k}",
        user=person,
        origin=Origin(person, k, None if left else "go on", person_ended=left),
    )
    for _ in range(k):
        said = said.say("why?").say("So.")
    if error:
        return said.close("error", error="no room")
    return said.close("end") if leaves else said.say("and then?")


def test_ending_is_compared_with_always_and_never_on_the_turns_that_both_users_answered(
    findings, tmp_path
):
    """Bob's first turn counts for nobody, since the prompted user failed there. Of those that are
    left:

                    person   userlm   prompted   always   never
        ann 1       stays    stays    leaves     leaves   stays
        ann 2       stays    leaves   stays      leaves   stays
        ann 3       left     leaves   leaves     leaves   stays
        bob 2       left     leaves   stays      leaves   stays
        F1                   4/5      2/4        4/6      0

    Two people give no interval.
    """
    mine = [
        answer("ann", 1, False, False),
        answer("ann", 2, True, False),
        answer("ann", 3, True, True),
    ]
    mine += [answer("bob", 1, True, False), answer("bob", 2, True, True)]
    theirs = [
        answer("ann", 1, True, False),
        answer("ann", 2, False, False),
        answer("ann", 3, True, True),
    ]
    theirs += [
        answer("bob", 1, False, False, error=True),
        answer("bob", 2, False, True),
    ]
    first = answer("ann", 0, False, False)
    run(tmp_path / "respond-userlm", {}, conversations=[first, *mine])
    assert findings.of_endings(tmp_path) == "–"
    run(tmp_path / "respond-prompted", {}, conversations=[first, *theirs])
    text = findings.of_endings(tmp_path)
    assert cells(text) == {
        "userlm-small": ["80.00", ""],
        "assistant-small, prompted": ["50.00", "30.00"],
        "always ends": ["66.67", "13.33"],
        "never ends": ["0.00", "80.00"],
    }
    assert text.endswith(
        "4 turns of 2 people; at 2 of them the person ended the conversation."
    )


def test_users_stand_beside_people_and_their_gap_is_paired_by_task(findings, tmp_path):
    """The user model tells both facts of one task and one of two of the other, the prompted one
    nothing: 75 points apart; two tasks give no interval."""

    def task(id, *facts):
        shown = [{"text": fact} for fact in facts]
        return {
            "id": id,
            "intent": "You want a sum.",
            "facts": shown,
            "check": {"number": "5"},
        }

    write_lines(
        tmp_path / "tasks.jsonl",
        [
            task("pens", "A pen costs 3 coins.", "I buy 17 pens."),
            task("eggs", "There are 8 eggs.", "11 guests come."),
        ],
    )

    def talk(task, text):
        return Conversation(
            f"{task}#0", (Turn("user", text),), origin=Origin(task=task)
        )

    told = [
        talk("pens", "A pen costs 3 coins and I buy 17 pens."),
        talk("eggs", "There are 8 eggs."),
    ]
    run(tmp_path / "tasks-userlm", {}, conversations=told)
    run(
        tmp_path / "tasks-prompted",
        {},
        conversations=[talk("pens", "Hello."), talk("eggs", "Hello.")],
    )
    people = [measured("intent coverage", 90.0, 80.0, 100.0, n=2, missing=1, unit="%")]
    score = {"tasks-people": people, "human": [measured("words per turn", 9.25, n=4)]}
    run(tmp_path / "score", score)
    table = cells(findings.of_users(tmp_path))
    row = table["intent coverage, the package's tasks, with `oracle`"]
    assert row == [
        *["–"] * 4,
        "90.00 [80.00, 100.00], n 2 (1 missing)",
        "75.00",
    ]
    assert table["words per turn, after real prefixes"] == [
        *["–"] * 4,
        "9.25, n 4",
        "–",
    ]


def test_a_difference_from_people_counts_as_shown_where_its_interval_excludes_0(
    findings, tmp_path
):
    def compared(name, human, *distance):
        user = measured(name, 9.0)
        if distance:
            user["distance"] = dict(
                zip(("value", "low", "high"), distance, strict=True)
            )
        return {"user": user, "human": human and measured(name, human)}

    for user in findings.ASSESSED:
        turns = [
            compared("words", 4.0, 5.0, 2.0, 8.0),
            compared("thanks", 8.0, 1.0, -1.0, 3.0),
            compared("casing", 7.0, 2.0, None, None),
            compared("perplexity", None),
        ]
        talks = [compared("words", 11.0, -2.0, -3.0, -1.0)]
        measures = {"respond": turns, "simulate": talks}
        run(tmp_path / f"assess-{user}", {"measures": measures})
    rows = cells(findings.of_assessed(tmp_path))
    assert rows["words, single turns"] == ["4.00", *["5.00 [2.00, 8.00]"] * 5]
    assert rows["casing, single turns"] == ["7.00", *["2.00"] * 5]
    assert rows["words, whole conversations"][1] == "-2.00 [-3.00, -1.00]"
    assert rows["a difference is shown"] == ["", *["2 of 3"] * 5]
    assert len(rows) == 5


def test_the_page_of_a_folder_without_runs_has_all_tables_and_no_number(
    findings, tmp_path
):
    page = findings.page(tmp_path)
    assert page.count("## ") == 6
    found = [
        cell
        for line in page.splitlines()
        for cell in line.split(" | ")[1:]
        if line.startswith("| ")
    ]
    assert not [cell for cell in found if any(letter.isdigit() for letter in cell)]


# --- the script -----------------------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"
echo >> "$CALLS"
"""
"""Stands in for `userlm`: notes how it was called."""


@pytest.fixture
def walk(tmp_path):
    """Walk through the script beside models that look trained: what it did, and how it called
    `userlm`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/userlm").write_text(STUB)
    (tmp_path / "bin/userlm").chmod(0o755)
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    out = tmp_path / "runs"
    for name in ("with-intent", "no-intent"):
        run(out / name, {})
    for name in ("people", "wildchat", "chats", "goals"):
        (out / "data" / name).mkdir(parents=True)
        (out / "data" / name / "test.jsonl").write_text(
            "".join(f"{name} {i}\n" for i in range(9))
        )
    (tmp_path / "extrinsic").mkdir()
    row = {
        "id": "pens",
        "question": "What do pens cost?",
        "answer": "5",
        "shards": [{"shard": "A pen is 5."}],
    }
    (tmp_path / "extrinsic/gsm8k_train_shards.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(row).encode())
    )

    def walked(*parts, **variables):
        env = {
            "PATH": os.environ["PATH"],
            "USERLM": str(tmp_path / "bin/userlm"),
            "OUT": str(out),
        }
        env |= {"DATA": str(tmp_path), "CALLS": str(tmp_path / "calls"), **variables}
        command = ["bash", SMALL / "findings.sh", *parts]
        done = subprocess.run(
            command, env=env, cwd=SMALL, capture_output=True, text=True, timeout=300
        )
        calls = (
            (tmp_path / "calls").read_text().splitlines()
            if (tmp_path / "calls").exists()
            else []
        )
        return done, [shlex.split(call) for call in calls]

    return walked


def test_every_model_is_scored_on_every_source_in_its_form_and_a_prompted_one_on_fewer(
    walk, tmp_path
):
    done, calls = walk(
        "people", "wildchat", "chats", "goals", PEOPLE="8", UNSEEN="4", PROMPTED="5"
    )
    assert done.returncode == 0, done.stderr
    assert check(calls) == ["ppl"] * 24
    made = {tuple(option(call, "--out").split("/")[-2:]): call for call in calls}
    assert len(made) == 24
    forms = {
        model: option(made["people", model], "--model").partition(":")[0]
        for _, model in made
    }
    names = ("userlm-small", "with-intent", "no-intent", "userlm-tiny")
    trained = dict.fromkeys(names, "trained")
    assert forms == {**trained, "small": "base", "assistant-small": "prompted"}
    limits = {key: option(call, "--limit") for key, call in made.items()}
    assert limits["people", "small"] == "8" and limits["goals", "userlm-small"] == "4"
    assert limits["people", "assistant-small"] == "5"
    assert limits["goals", "assistant-small"] == "4"
    lines = (tmp_path / "runs/findings/people.jsonl").read_text().splitlines()
    assert lines != sorted(lines) == [f"people {i}" for i in range(9)]


def test_both_users_talk_to_the_same_and_everything_is_measured_together(
    walk, tmp_path
):
    done, calls = walk("talk", TALKS="5")
    assert done.returncode == 0, done.stderr
    verbs = check(calls)
    assert verbs == [
        *["respond", *["simulate"] * 3] * 4,
        "simulate",
        "simulate",
        "score",
    ]
    mine, theirs = calls[:4], calls[4:8]
    out = tmp_path / "runs"
    users = [
        {option(call, "--user") for call in calls[i : i + 4]} for i in (0, 4, 8, 12)
    ]
    assert users == [
        {"trained:userlm-small"},
        {"prompted:assistant-small"},
        {"swapped:assistant-small"},
        {"trained:userlm-tiny"},
    ]
    varied = {option(call, name) for call in calls[:16] for name in ("--user", "--out")}
    assert [[word for word in call if word not in varied] for call in mine] == [
        [word for word in call if word not in varied] for call in theirs
    ]
    folders = {option(call, "--out") for call in calls[:-1]}
    assert folders == {word for word in calls[-1] if word in folders}
    assert len((out / "findings/talks.jsonl").read_text().splitlines()) == 5
    ids = [
        json.loads(line)["id"]
        for line in (out / "findings/tasks.jsonl").read_text().splitlines()
    ]
    assert ids[-1] == "pens" and len(ids) == 13  # 12 come with the package


def test_five_users_are_assessed_on_the_same_people_with_the_same_options(
    walk, tmp_path
):
    done, calls = walk("assess")
    assert done.returncode == 0, done.stderr
    assert check(calls) == ["assess"] * 5
    varied = {option(call, name) for call in calls for name in ("--user", "--out")}
    same = {tuple(word for word in call if word not in varied) for call in calls}
    assert len(same) == 1 and len(varied) == 10
    said = (tmp_path / "runs/findings/constant.txt").read_text().splitlines()
    assert said == ["Can you tell me more?"] * 20


def test_a_model_whose_training_goes_on_is_not_measured(walk, tmp_path):
    (tmp_path / "runs/with-intent/results.json").unlink()
    done, calls = walk("people")
    assert (done.returncode, len(calls)) == (2, 1)
    wanted = "runs/with-intent is not trained; first: recipes/small/run.sh with-intent"
    assert wanted in done.stderr
    done, _ = walk("ppl")
    assert (done.returncode, done.stderr) == (
        2,
        "ppl: give people, wildchat, chats, goals, talk, ends, assess or table\n",
    )
