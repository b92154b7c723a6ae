"""What a user says word by word as in the logs that it was trained on."""

from pathlib import Path

import processes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crowds import says
from test_intrinsic import Says, talk

from userlm import commands
from userlm.metrics.memorization import (
    longest_runs,
    longest_verbatim_overlap,
    training_turns,
    verbatim_overlap,
)
from userlm.rows import write_conversations
from userlm.simulate import respond
from userlm.text import words
from userlm.types import Conversation, InputError, Reply, Sample

TRAINING = [says("Bake a cake for me", "and a pie"), talk("x", "hi", "Bake bread now.")]


def test_the_longest_run_is_in_one_user_turn_of_training() -> None:
    training = training_turns(TRAINING)
    texts = {
        "please bake a CAKE, for us": 4,  # bake a cake for
        "for me and a pie": 3,  # and a pie; not across two turns
        "bake bread now": 1,  # an assistant said that
        "nothing known": 0,
        "": 0,
        "a cake and a pie": 3,
        "a cake for me": 4,  # to the end of the turn
    }
    assert longest_runs(list(texts), training) == list(texts.values())
    assert longest_runs(["bake"], training_turns([])) == [0]
    assert longest_runs([], training) == []


TURNS = st.lists(st.text("abc ", max_size=14), max_size=6)


@given(TURNS, TURNS)
@settings(max_examples=150)
def test_the_longest_runs_are_those_of_a_search_one_by_one(
    texts: list[str], known: list[str]
) -> None:
    def spaced(text: str) -> str:
        return " ".join(text.replace(" ", ""))

    def longest(text: str) -> int:
        said = words(spaced(text))
        best = 0
        for start in range(len(said)):
            for end in range(start + 1, len(said) + 1):
                run = f" {' '.join(said[start:end])} "
                if any(run in f" {' '.join(words(spaced(turn)))} " for turn in known):
                    best = max(best, end - start)
        return best

    training = training_turns(says(spaced(turn)) for turn in known)
    found = longest_runs([spaced(text) for text in texts], training)
    assert found == [longest(text) for text in texts]


def test_overlap_is_the_mean_and_the_largest_of_the_own_turns() -> None:
    training = training_turns(TRAINING)
    log = says("bake a cake", "what", user="p")
    response = respond(Says(Reply("and a pie")), Sample(log, 1).prefix)
    failed = Conversation("f").close("error", error="timed out")
    crowd = [response, says("a pie", "xyz", id="d"), failed]
    found = verbatim_overlap(crowd, training)
    # 3 words of the response, not those of the person before it; 2 and 0 of the other
    assert [row.stats for row in found.rows] == [(3, 1), (2, 1), (0, 1), None]
    assert found.value == pytest.approx(5 / 3)
    longest = longest_verbatim_overlap(crowd, training)
    assert (longest.value, longest.low, longest.n, longest.missing) == (3, None, 3, 1)
    assert longest_verbatim_overlap([], training).value is None


def test_score_shows_the_overlap_with_the_training_logs_beside_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [says(f"some cake number {i}", id=str(i), user=str(i)) for i in range(9)]
    users = [says(f"bake a cake {i}", id=str(i), user=str(i)) for i in range(9)]
    write_conversations(tmp_path / "people.jsonl", people)
    write_conversations(tmp_path / "users.jsonl", users)
    write_conversations(tmp_path / "train.jsonl", TRAINING)
    options = commands.Score(
        [tmp_path / "users.jsonl"],
        human=tmp_path / "people.jsonl",
        trained_on=tmp_path / "train.jsonl",
        out=tmp_path / "score",
    )
    results = commands.score(options)
    found, humans = (
        {one["name"]: one["value"] for one in results[column]}
        for column in ("users.jsonl", "human")
    )
    assert (found["verbatim overlap"], humans["verbatim overlap"]) == (3, 1)
    assert found["longest verbatim overlap"] == 3
    assert "verbatim overlap" in capsys.readouterr().out
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match=r"train\.jsonl does not exist"):
        commands.score(options)


@pytest.mark.slow
def test_the_recipe_prints_the_user_beside_the_person(tmp_path: Path) -> None:
    log = says("hello", "some cake", user="p")
    response = respond(Says(Reply("and a pie")), Sample(log, 1).prefix)
    (tmp_path / "run").mkdir()
    write_conversations(tmp_path / "run" / "conversations.jsonl", [response])
    write_conversations(tmp_path / "train.jsonl", TRAINING)
    script = Path(__file__).parent.parent / "recipes" / "small" / "memorized.py"
    arguments = (tmp_path / "train.jsonl", tmp_path / "run")
    done = processes.completed([str(script)], *arguments)
    assert done.returncode == 0, done.stderr
    assert "the user    mean 3.00" in done.stdout
    assert "the person  mean 1.00" in done.stdout
    assert "3 words: 'and a pie'" in done.stdout
