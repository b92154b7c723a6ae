"""What the report begins with: its title, its sentences, its warnings; and what is in it of many
conversations."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import (
    LOG,
    TALK,
    Reader,
    data_of,
    html_page,
    markdown_page,
    measured,
    write,
)

from userlm.json_files import read_json, write_json, write_lines
from userlm.lines import Line, parse_line
from userlm.manifest import file_hash
from userlm.metrics.scores import score_line
from userlm.show import html, noted, story
from userlm.show.finished import Finished, read_run, read_runs
from userlm.show.formats import called
from userlm.show.transcripts import anchor
from userlm.types import InputError, MeasureRow

SCORE = {"name": "assistant score", "better": "higher", "unit": "%"}
COVERAGE = {"name": "intent coverage", "better": "higher", "unit": "%"}


def with_options(folder: Path, **options: Any) -> Path:
    path = folder / "run.json"
    manifest = json.loads(path.read_text())
    manifest["options"] |= options
    path.write_text(json.dumps(manifest))
    return folder


def heading(page: str) -> str:
    return page.partition("<h1>")[2].partition("</h1>")[0]


def found(page: str) -> str:
    inside = page.partition('<section id="found">')[2].partition("</section>")[0]
    return " ".join("".join(Reader(inside).text).split())


def cell(assistant: str, user: str, solved: float, said: float) -> dict[str, Any]:
    measures = [
        measured(solved, 40.0, 80.0, clusters=20, **SCORE),
        measured(said, 50.0, 90.0, clusters=20, **COVERAGE),
    ]
    return {
        "assistant": assistant,
        "user": user,
        "folder": f"cells/{assistant}--{user}".replace(":", "-"),
        "stops": {"end": 20},
        "measures": measures,
        "failed": "",
    }


def evaluated(root: Path, *cells: dict[str, Any]) -> Path:
    spent = {"calls": 0, "tokens": 0, "dollars": 0}
    return write(root, "grid", "evaluate", {"cells": list(cells), "spent": spent})


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("trained:runs/small/userlm", "userlm"),
        ("trained:microsoft/UserLM-8b", "UserLM-8b"),
        ("prompted:openai:gpt-4o-mini", "gpt-4o-mini (prompted)"),
        ("http://localhost:8000/v1#llama", "llama"),
        ("replay:logs/test.jsonl", "people (replayed)"),
        ("oracle", "oracle"),
        ("trained:", ""),
    ],
)
def test_a_user_is_called_what_people_call_it(address: str, name: str) -> None:
    assert called(address) == name


def test_the_title_says_what_was_tested_with_whom(tmp_path: Path) -> None:
    user = "trained:userlm-small"
    run = evaluated(
        tmp_path, cell("old", user, 60.0, 70.0), cell("new", user, 70.0, 70.0)
    )
    page = html_page([read_run(run)])
    assert heading(page) == "old or new, with userlm-small"
    assert "<title>old or new, with userlm-small</title>" in page
    assert "# `old` or `new`, with `userlm-small`" in markdown_page([read_run(run)])


def test_the_title_of_scored_users_names_them_and_the_people(tmp_path: Path) -> None:
    stops = {"stops": {"end": 1}}
    runs = [
        write(tmp_path, "sim", "simulate", stops, conversations=[TALK]),
        write(
            tmp_path, "score", "score", {"human": [measured(1.0, 0.5, 2.0)]}, scores=[]
        ),
    ]
    assert heading(html_page(read_runs(runs))) == "m beside people"
    assert heading(html_page(read_runs(runs[:1]))) == "m, with clarifier"


def test_a_score_of_what_a_run_was_before_is_not_shown_beside_it(
    tmp_path: Path,
) -> None:
    sim = write(
        tmp_path, "sim", "simulate", {"stops": {"end": 1}}, conversations=[TALK]
    )
    score = write(
        tmp_path, "score", "score", {"sim": [measured(1.0, 0.5, 2.0)]}, scores=[]
    )
    path = sim / "conversations.jsonl"
    for was, is_now in ((file_hash(path), True), ("another", False)):
        manifest = read_json(score / "run.json")
        write_json(score / "run.json", {**manifest, "inputs": {str(path): was}})
        if is_now:
            assert len(read_runs([sim, score])) == 2
        else:
            with pytest.raises(InputError, match="other conversations than those in"):
                read_runs([sim, score])


def test_a_score_of_two_runs_of_one_name_is_about_them_wherever_it_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stops = {"stops": {"end": 1}}
    talks = [[TALK], [{**TALK, "id": "other"}]]
    runs = [
        write(tmp_path, f"{side}/sim", "simulate", stops, conversations=said)
        for side, said in zip("ab", talks, strict=True)
    ]
    measures = {"a/sim": [measured(1, 0, 2)], "b/sim": [measured(2, 1, 3)]}
    score = write(tmp_path, "score", "score", measures, scores=[])
    # It was run in a/.
    named = ("sim/conversations.jsonl", "../b/sim/conversations.jsonl")
    hashes = [file_hash(run / "conversations.jsonl") for run in runs]
    manifest = read_json(score / "run.json")
    inputs = dict(zip(named, hashes, strict=True))
    write_json(score / "run.json", {**manifest, "inputs": inputs})
    assert len(read_runs([score, *runs])) == 3
    inputs = dict(zip(named, reversed(hashes), strict=True))
    write_json(score / "run.json", {**manifest, "inputs": inputs})
    with pytest.raises(InputError, match="other conversations than those in"):
        read_runs([score, *runs])


def about(score: Path, *runs: Path) -> Path:
    """A run of `score`, of what these runs have."""
    manifest = read_json(score / "run.json")
    files = [run / "conversations.jsonl" for run in runs]
    inputs = {str(path): file_hash(path) for path in files}
    write_json(score / "run.json", {**manifest, "inputs": inputs})
    return score


def test_each_cell_of_a_grid_has_a_sentence_and_a_row_in_two_figures(
    tmp_path: Path,
) -> None:
    run = evaluated(tmp_path, cell("old", "trained:m", 60.0, 70.5))
    page = html_page([read_run(run)])
    assert (
        "old with m solved 60.0 % [40.0, 80.0] of 20 tasks; the user said 70.5 % [50.0, 90.0] of "
        "the required facts." in found(page)
    )
    figures = page.partition('<section id="figures">')[2].partition("</section>")[0]
    assert figures.count('class="panel"') == 2 and "old with m" in figures


def trained(root: Path, before: float, after: float) -> Path:
    results = {
        "conversations": 140,
        "samples": 488,
        "untrained": {"valid_perplexity": before},
        "best": {"valid_perplexity": after},
    }
    return with_options(
        write(root, "tuned", "train", results, log=LOG), base="userlm-tiny"
    )


def test_one_unfinished_conversation_is_counted_in_words_that_fit_any_number(
    tmp_path: Path,
) -> None:
    stops = {"stops": {"error": 1}}
    run = write(tmp_path, "e4", "simulate", stops, conversations=[TALK])
    [line] = [one for one in story.cautions([read_run(run)]) if "unfinished" in one[1]]
    assert line[1] == ": conversations unfinished by an error or a cap: 1 of 1."


def test_what_an_intent_helps_is_said_with_its_interval(tmp_path: Path) -> None:
    ratio = measured(0.78, 0.7, 0.98, name="perplexity ratio")
    run = write(tmp_path, "ppl", "ppl", {"with / without": [ratio]}, scores=[])
    page = html_page([read_run(with_options(run, model="userlm-tiny"))])
    assert (
        "The intent multiplies the perplexity of userlm-tiny by 0.78 [0.70, 0.98]."
        in found(page)
    )


def test_the_gain_of_training_is_said_and_also_if_there_is_none(tmp_path: Path) -> None:
    page = html_page([read_run(trained(tmp_path / "a", 400.0, 300.0))])
    # 300 is 100/400 = 25 % below 400.
    assert (
        "Training userlm-tiny on 140 conversations lowered the perplexity of turns it did not see: "
        "from 400.0 to 300.0 at its best validation, 25 % lower." in found(page)
    )
    page = html_page([read_run(trained(tmp_path / "b", 400.0, 500.0))])
    assert "did not lower the perplexity" in found(page)
    assert "25 % higher" in found(page)


def predicted(root: Path, name: str, model: str, losses: list[float]) -> Path:
    """A run of `ppl` on six people with one token each: the perplexity is e to the mean loss."""
    rows = [
        score_line(
            "with intent", "perplexity", MeasureRow(f"{i}/0", f"p{i}", (loss, 1.0))
        )
        for i, loss in enumerate(losses)
    ]
    value = {2.0: 7.39, 1.0: 2.72}[sum(losses) / len(losses)]
    results = {"with intent": [measured(value, 1.0, 9.0)]}
    return with_options(write(root, name, "ppl", results, scores=rows), model=model)


def test_a_trained_model_is_paired_with_its_base_on_the_same_people(
    tmp_path: Path,
) -> None:
    runs = read_runs(
        [
            trained(tmp_path, 400.0, 300.0),
            predicted(tmp_path, "before", "userlm-tiny", [2.0] * 5 + [2.0]),
            predicted(
                tmp_path, "after", "runs/tuned", [1.1, 0.9, 1.0, 1.05, 0.95, 1.0]
            ),
        ]
    )
    # e - e^2 = 2.718 - 7.389 = -4.671
    text = found(html_page(runs))
    assert (
        "On the turns of 6 people, with intent: perplexity 7.4 before and 2.7 after"
        in text
    )
    assert "a difference of -4.7 [" in text and "which may be chance" not in text
    manifest = {**runs[-1].manifest, "inputs": {"logs.jsonl": "decaf"}}
    others = replace(runs[-1], manifest=manifest)
    assert "before and" not in found(html_page([*runs[:-1], others]))


def test_the_people_of_a_run_are_those_of_its_intents_tasks_or_log() -> None:
    def run(verb: str, **manifest: object) -> Finished:
        manifest["inputs"] = {"user.py": "1", "in/test.jsonl": "2"}
        return Finished("a", Path("a"), verb, manifest, {})

    assert run("simulate", people="2").people == "2"
    assert run("respond").people == "1"
    older = run("simulate")
    assert older.people is None and older.may_be_paired(run("simulate", people="2"))
    assert not run("respond").may_be_paired(run("respond", people="2"))


def test_test_items_are_paired_by_their_own_files(tmp_path: Path) -> None:
    def run(people: str, items: str) -> Finished:
        manifest = {"people": people, "items": {"role": items}}
        return Finished("a", tmp_path, "assess", manifest, {})

    one = run("1", "a")
    for other, is_same in ((run("2", "a"), True), (run("1", "b"), False)):
        assert one.may_be_paired(other, "role") is is_same
        assert one.may_be_paired(other, "respond") is not is_same


def test_a_few_conversations_and_those_at_the_limit_are_warned_of(
    tmp_path: Path,
) -> None:
    limited = TALK | {"stop": "max_turns", "ended": False}
    runs = [
        with_options(
            write(
                tmp_path,
                "sim",
                "simulate",
                {"stops": {"max_turns": 1}},
                conversations=[limited],
            ),
            max_turns=1,
        ),
        write(
            tmp_path, "score", "score", {"human": [measured(1.0, 0.5, 2.0)]}, scores=[]
        ),
    ]
    page = html_page(read_runs(runs))
    assert "Few conversations: sim 1. Take this as a try, not as a result." in page
    assert "Stopped at the limit of turns: sim 1 of 1." in page
    many = [limited | {"id": f"t{i}"} for i in range(story.FEW)]
    (tmp_path / "sim/conversations.jsonl").write_text(
        "".join(json.dumps(talk) + "\n" for talk in many)
    )
    assert "Few conversations" not in html_page(read_runs(runs))


def scored(root: Path) -> list[Finished]:
    """A run of which a score graded the one conversation, found its facts, and classified it."""
    sim = write(root, "sim", "simulate", {"stops": {"end": 1}}, conversations=[TALK])
    rows = [
        score_line("sim", "two-sample AUROC", MeasureRow("a#0/0", "p", (0.25, 1.0))),
        score_line("sim", "two-sample AUROC", MeasureRow("a#0/1", "p", (0.75, 1.0))),
        score_line(
            "sim", "two-sample AUROC", MeasureRow("human: a#0/0", "p", (9.0, 0.0))
        ),
    ]
    where = {"run": "sim", "conversation": "a#0"}
    grades = [where | {"solved": False, "reason": "3, not 360"}]
    facts = [
        where | {"fact": "It is rye.", "required": True, "user": [0]},
        where | {"fact": "It is cold.", "required": True, "user": []},
        where | {"fact": "It is odd.", "required": False, "user": []},
    ]
    score = write(root, "score", "score", {}, scores=rows, grades=grades, facts=facts)
    return read_runs([sim, score])


def test_of_a_score_only_the_lines_that_are_shown_one_by_one_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two folders of one user: nothing is compared. A measure of both, of 50 rows each.
    runs = [
        write(tmp_path, "sim", "simulate", {"stops": {"end": 1}}, conversations=[TALK]),
        write(tmp_path, "respond", "respond", {"stops": {}}, conversations=[]),
    ]
    columns = {
        name: [measured(1.0, None, None, name="questions")]
        for name in ("sim", "respond")
    }
    runs.append(about(write(tmp_path, "score", "score", columns), *runs))
    found = MeasureRow("a#0/0", "p", (1.0, 1.0))
    lines = [score_line("sim", "questions", found)] * 50
    lines += [score_line("respond", "questions", found)] * 50
    lines.append(score_line("sim", "two-sample AUROC", found))
    lines.append(score_line("sim", "questions", MeasureRow("b", "p", None, "gone")))
    write_lines(runs[-1] / "scores.jsonl", lines)
    parsed: list[bytes] = []

    def count(number: int, raw: bytes) -> Line:
        parsed.append(raw)
        return parse_line(number, raw)

    monkeypatch.setattr(noted, "parse_line", count)
    *_, score = read_runs(runs)
    assert len(parsed) == 2
    assert score.missing == {("sim", "questions"): {"gone": 1}}
    assert score.notes["sim", "a#0"].log_odds == [1.0]
    assert not score.rows


def test_the_rows_of_two_users_that_can_be_compared_are_read(tmp_path: Path) -> None:
    names = ("one", "two")
    runs = [
        write(tmp_path, name, "simulate", {"stops": {}}, conversations=[])
        for name in names
    ]
    columns = {name: [measured(1.0, None, None, name="questions")] for name in names}
    found = MeasureRow("a", "p", (1.0, 1.0))
    lines = [score_line(name, "questions", found) for name in names]
    score = write(tmp_path, "score", "score", columns, scores=lines)
    runs.append(about(score, *runs))
    *_, score = read_runs(runs)
    assert set(score.rows) == {("one", "questions"), ("two", "questions")}


def test_a_conversation_has_its_verdict_its_facts_and_how_human_it_is(
    tmp_path: Path,
) -> None:
    page = html_page(scored(tmp_path))
    [talk] = data_of(page)["talks"]
    assert talk["solved"] is False and talk["human"] == -0.5
    assert talk["turns"][0]["facts"] == [["says", ["It is rye."]]]
    assert ["verdict", ["3, not 360"]] in talk["facts"]
    assert ["never said", ["It is cold."]] in talk["facts"]
    text = markdown_page(scored(tmp_path / "again"))
    assert "`says`: `It is rye.`" in text and "`verdict`: `3, not 360`" in text


def test_the_anchor_of_a_conversation_depends_on_its_run_and_id_alone(
    tmp_path: Path,
) -> None:
    page = html_page(scored(tmp_path))
    assert data_of(page)["talks"][0]["anchor"] == anchor("sim", "a#0") == "c-sim-a%230"
    assert 'id="c-sim-a%230"' in page
    assert anchor("r", '"><p id=x>\ud800') == "c-r-%22%3E%3Cp%20id%3Dx%3E%3F"


def test_conversations_of_a_cell_and_of_an_assessment_are_on_the_page(
    tmp_path: Path,
) -> None:
    run = evaluated(tmp_path, cell("old", "trained:m", 60.0, 70.0))
    inside = run / "cells/old--trained-m"
    inside.mkdir(parents=True)
    (inside / "conversations.jsonl").write_text(json.dumps(TALK) + "\n")
    [talk] = data_of(html_page([read_run(run)]))["talks"]
    assert talk["anchor"] == anchor("old--trained-m", "a#0")


def test_what_does_not_fit_a_page_is_left_out_and_the_page_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "PAGE_CHARACTERS", 2_000)
    runs = []
    for name, count in (("one", 2), ("two", 9)):
        talks = [TALK | {"id": f"{name}-{i}"} for i in range(count)]
        runs.append(
            read_run(
                write(tmp_path, name, "simulate", {"stops": {}}, conversations=talks), 9
            )
        )
    page = html_page(runs)
    own = [talk["id"] for talk in data_of(page)["talks"]]
    # The second run gets its half, and what the first one leaves.
    assert own[:1] == ["one-0"] and "two-0" in own and len(own) < 11
    kept = sum(id.startswith("two") for id in own)
    path = tmp_path / "two/conversations.jsonl"
    assert (
        f"the first {kept} of 9 conversations are in this page; all of them are in {path}"
        in page
    )
