"""METRICS: each described once, and seen wherever results are."""

import pytest

from userlm import commands
from userlm.json_files import write_lines
from userlm.metrics import catalog
from userlm.metrics.catalog import METRICS, Metric
from userlm.rows import write_conversations
from userlm.stats import MEAN, measure, measure_row
from userlm.types import Conversation, InputError


def test_unit_and_direction_of_the_metrics_of_the_paper_and_of_termination():
    found = {metric.name: (metric.better, metric.unit) for metric in METRICS}
    assert (
        found.items()
        >= {
            "perplexity": ("lower", ""),
            "bits per byte": ("lower", ""),
            "perplexity ratio": ("lower", ""),
            "human goals: perplexity ratio": ("lower", ""),
            "termination F1": ("higher", "%"),
            "termination AUROC": ("higher", ""),
            "first-turn diversity": ("higher", "%"),
            "intent decomposition": ("neither", "%"),
            "goal consistency": ("neither", "%"),
            "intent coverage": ("higher", "%"),
            "assistant score": ("higher", "%"),
            "turns per conversation": ("neither", "turns"),
            "words per turn": ("neither", "words"),
        }.items()
    )
    assert all(metric.about.endswith(".") for metric in METRICS)


def test_a_metric_is_added_in_one_place(monkeypatch, tmp_path, capsys):
    """One description more, and it stands in results.json, terminal, page and Markdown."""

    def questions(conversations):
        rows = []
        for conversation in conversations:
            count = sum("?" in text for text in conversation.user_turns)
            rows.append(measure_row(conversation.id, conversation.id, (count, 1.0)))
        return measure(rows, MEAN)

    toy = Metric(
        "questions asked",
        "Mean number of user turns with a question mark.",
        "conversations",
        "neither",
        "turns",
        questions,
    )
    monkeypatch.setattr(catalog, "METRICS", (toy, *METRICS))
    talks = [
        Conversation("a").say("rice?").say("Boil it.").say("long?").say("Yes."),
        Conversation("b").say("hello").say("Hi."),
    ]
    write_conversations(tmp_path / "talks.jsonl", talks)
    out = tmp_path / "score"
    results = commands.score(commands.Score([tmp_path / "talks.jsonl"], out=out))
    [first, *_] = results["talks.jsonl"]
    assert (first["name"], first["value"], first["unit"]) == (
        "questions asked",
        1,
        "turns",
    )
    assert "questions asked" in capsys.readouterr().out
    commands.report(commands.Report([out], tmp_path / "report"))
    for page in ("report.html", "report.md"):
        assert "questions asked" in (tmp_path / "report" / page).read_text()
    assert toy.about in (tmp_path / "report" / "report.html").read_text()


def test_what_a_judge_says_of_tasks_stands_with_the_other_measures_of_tasks():
    assert catalog.family_of("intent coverage (judge)") == catalog.TASKS


def test_a_stop_that_is_no_text_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "talks.jsonl"
    turn = {"role": "user", "text": "hi"}
    write_lines(path, [{"id": "a", "turns": [turn], "stop": {"why": "end"}}])
    with pytest.raises(InputError, match="line 1: field 'stop' must be a str"):
        commands.score(commands.Score([path], out=tmp_path / "score"))
