"""The export for the Hugging Face hub, and the way back."""

import re
from dataclasses import replace

import polars as pl
import yaml

from userlm.data import hub, layouts
from userlm.rows import read_rows
from userlm.types import Conversation

INTENT = "You are a user chatting with an assistant language model to cook rice."
MANIFEST = {
    "verb": "clean",
    "options": {"seed": 0, "limit": None},
    "versions": {"userlm": "1.2.3"},
}


def talk(i, **fields):
    one = Conversation(f"c{i}", meta={"language": "en", "n": i}).say("hi").say("Hello!")
    return replace(one, **{"ended": i % 2 == 0, **fields})


def test_what_is_exported_is_imported_again(tmp_path):
    talks = [
        talk(0, intent=INTENT, user="ann@example.org"),
        talk(1, user="bob"),
        talk(2, user="ann@example.org"),
    ]
    counts = hub.export(
        tmp_path, {"train": talks[:2], "valid": [], "test": talks[2:]}, "x"
    )
    assert counts == {"train": 2, "test": 1}
    files = sorted((tmp_path / "data").iterdir())
    assert [file.name for file in files] == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]
    found = (
        one
        for file in files
        for one in layouts.find(read_rows(file), None, "x", layouts.Gathered())
    )
    back = [one.imported.conversation for one in found]
    # people are numbers now, in the order in which they come up: ann is 0, bob is 1
    people = {"ann@example.org": "person-x-0", "bob": "person-x-1"}
    expected = [
        replace(one, user=people[one.user]) for one in (talks[2], talks[0], talks[1])
    ]
    assert back == expected
    assert b"ann@" not in files[1].read_bytes()


def test_a_large_split_becomes_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ROWS", 2)
    (tmp_path / "data").mkdir()
    (
        tmp_path / "data" / "train-00007.parquet"
    ).touch()  # left by an attempt that was interrupted
    assert hub.export(tmp_path, {"conversations": map(talk, range(5))}, "x") == {
        "train": 5
    }
    files = sorted((tmp_path / "data").iterdir())
    assert [file.name for file in files] == [
        f"train-0000{i}-of-00003.parquet" for i in range(3)
    ]
    assert pl.scan_parquet(files).select("id").collect()["id"].to_list() == [
        f"c{i}" for i in range(5)
    ]


def test_the_card_says_what_is_inside_and_how_it_was_made(tmp_path):
    results = {
        "counts": {"in": 9, "dropped: language: zh": 2},
        "splits": {
            "train": {"conversations": 7, "people": 3, "user turns": 20, "samples": 25}
        },
        "lengths": {
            "words a user turn": {"mean": 7.25, "largest": 90.0},
            "words a first turn": None,
        },
        "languages": {"en": 6, "und": 1},
    }
    card = hub.card({"train": 7}, results, MANIFEST)
    front = card.split("---\n")[1]
    assert 'language:\n- "en"\ntask' in front
    assert "- n<1K" in front
    assert "  - split: train\n    path: data/train-*" in front
    assert "| train | 7 | 3 | 20 | 25 |" in card
    assert "| words a user turn | 7.25 | 90 |" in card
    assert "`userlm clean`, version 1.2.3; seed 0." in card
    assert "| dropped: language: zh | 2 |" in card
    assert not re.search(r"\bNone\b|limit", card.split("## Load")[0])


def test_the_card_shows_no_label_of_a_dropped_conversation_that_is_no_code():
    labels = (
        "<img src=x>](javascript:x)|\n# bob@example.com, by label",
        "klingon, by label",
        "en\nx, by label",
        "zh, by label, by label",
    )
    counts = {"in": 9, "dropped: language: zh, by label": 2}
    counts |= {f"dropped: language: {label}": 1 for label in labels}
    table = hub.card({"train": 1}, {"counts": counts}, MANIFEST).split("| counted")[1]
    assert table.split("\n\n")[0].splitlines()[2:] == [
        "| in | 9 |",
        "| dropped: language: zh, by label | 2 |",
        "| dropped: language: other | 4 |",
    ]


def test_a_card_without_figures_has_counts_alone():
    card = hub.card({"train": 1_500}, {"counts": {"in": 1500}}, MANIFEST)
    assert "| train | 1,500 |" in card
    assert "1K<n<10K" in card
    assert "language:" not in card


def test_the_languages_of_a_card_are_codes_and_norwegian_is_one_of_them():
    results = {
        "languages": {
            "en": 9,
            "no": 8,
            "fil": 7,
            "klingon": 6,
            "und": 5,
            "x:\n- y": 4,
            "EN": 3,
            "": 2,
        }
    }
    front = yaml.safe_load(hub.card({"train": 9}, results, MANIFEST).split("---\n")[1])
    assert front["language"] == ["en", "no", "fil"]


def test_a_card_without_splits_has_no_files():
    front = yaml.safe_load(
        hub.card({}, {"counts": {"in": 0}}, MANIFEST).split("---\n")[1]
    )
    assert front.keys() == {"task_categories", "tags", "size_categories"}


def test_a_card_names_the_model_and_neither_its_server_nor_a_file():
    options = {
        "writer": "http://10.0.0.5:8000/v1#gpt-x",
        "join": ["/home/ann/theirs.jsonl"],
        "seed": 0,
    }
    manifest = {**MANIFEST, "verb": "intents", "options": options}
    card = hub.card({"train": 1}, {"counts": {"in": 1}, "model": "gpt-x"}, manifest)
    assert "`userlm intents`, version 1.2.3; writer gpt-x, seed 0." in card
    assert "10.0.0.5" not in card and "/home/ann" not in card and "join" not in card


def test_what_a_user_model_is_told_is_exported_and_imported_again(tmp_path):
    told = talk(0, meta={"condition": "About the user: country Chile."})
    hub.export(tmp_path, {"train": [told]}, "x")
    (line,) = read_rows(tmp_path / "data/train-00000-of-00001.parquet")
    (found,) = layouts.find([line], None, "x", layouts.Gathered())
    assert found.imported.conversation == told
    assert found.imported.conversation.system == "About the user: country Chile."
