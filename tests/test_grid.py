"""A grid of users and assistants whose ranking follows from how they are made."""

from typing import Any

import pytest
import scripted_speakers
from scripted_speakers import SCORES

from userlm.commands import Compare, Evaluate, compare, evaluate
from userlm.json_files import read_json, write_lines

ASSISTANTS = ["waits", "guesses", "asks"]


def address(name: str) -> str:
    return f"py:scripted_speakers:{name}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `compare` finds in the grid."""
    folder = tmp_path_factory.mktemp("grid")
    write_lines(folder / "tasks.jsonl", scripted_speakers.tasks(24))
    evaluate(
        Evaluate(
            list(map(address, ASSISTANTS)),
            str(folder / "tasks.jsonl"),
            list(map(address, SCORES)),
            out=folder / "grid",
            repeats=4,
            single=False,
        )
    )
    compare(Compare([folder / "grid"], out=folder / "compared"))
    results: dict[str, Any] = read_json(folder / "compared" / "results.json")
    return results


def measured(found: dict[str, Any], user: str, assistant: str) -> dict[str, Any]:
    for cell in found["cells"]:
        if (cell["user"], cell["assistant"]) == (address(user), address(assistant)):
            return {one["name"]: one for one in cell["measures"]}
    raise AssertionError(f"no cell of {assistant} with {user}")


@pytest.mark.slow
def test_the_score_of_each_cell_is_the_one_it_was_made_for(
    found: dict[str, Any],
) -> None:
    for user, of_assistants in SCORES.items():
        for assistant, truth in of_assistants.items():
            one = measured(found, user, assistant)["assistant score"]
            assert one["low"] <= truth <= one["high"], (user, assistant, one)
            if truth in (0, 100):
                assert one["value"] == truth


def name(address: str) -> str:
    return address.rpartition(":")[2]


def scores(found: dict[str, Any], between: str) -> list[dict[str, Any]]:
    return [one for one in found[between] if one["measure"] == "assistant score"]


@pytest.mark.slow
def test_the_ranking_is_the_one_that_the_assistants_were_made_for(
    found: dict[str, Any],
) -> None:
    pairs = [(name(one["a"]), name(one["b"])) for one in found["assistants"]]
    assert list(dict.fromkeys(pairs)) == [
        ("waits", "guesses"),
        ("waits", "asks"),
        ("guesses", "asks"),
    ]
    for one in scores(found, "assistants"):
        a, b, users = name(one["a"]), name(one["b"]), list(map(name, one["with"]))
        truth = sum(SCORES[user][a] - SCORES[user][b] for user in users) / len(users)
        assert one["low"] <= truth <= one["high"], (a, b, users)
        # which is better is sure wherever one is
        assert (one["low"] > 0) == (truth > 0), (a, b, users)


@pytest.mark.slow
def test_the_difference_between_users_is_the_one_that_they_were_made_for(
    found: dict[str, Any],
) -> None:
    compared = scores(found, "users")
    assert len(compared) == 12  # three pairs, with each assistant and with all
    for one in compared:
        a, b, others = name(one["a"]), name(one["b"]), list(map(name, one["with"]))
        truth = sum(SCORES[a][o] - SCORES[b][o] for o in others) / len(others)
        assert one["low"] <= truth <= one["high"], (a, b, others)


@pytest.mark.slow
def test_users_tell_as_much_as_they_were_made_to(found: dict[str, Any]) -> None:
    # With an assistant that solves nothing, each user says all that it is going to say; the green
    # packs are never mentioned.
    for user, coverage, turns in (
        ("at_once", 100, 2),
        ("one_by_one", 100, 2),
        ("forgetful", 75, 2),
    ):
        one = measured(found, user, "asks")
        said = one["intent coverage"]
        assert said["low"] <= coverage <= said["high"]
        assert one["fewest turns"]["value"] == one["most turns"]["value"] == turns
        assert one["turn variance"]["value"] == 0
        assert one["skips other facts"]["value"] == 100
        assert one["repeats required facts"]["value"] == 0
    assert measured(found, "one_by_one", "asks")["unigram difference"]["value"] == 0
    assert measured(found, "forgetful", "asks")["unigram difference"]["value"] > 0.2
