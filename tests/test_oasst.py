"""Trees of replies become conversations, one for each path that has words of a user of its own."""

from typing import Any

import numpy as np
import pytest

from userlm.data.layouts import Gathered, find, oasst
from userlm.data.layouts.common import NOTES, assemble
from userlm.data.layouts.fields import REASONS
from userlm.data.split import person
from userlm.data.summary import Summary
from userlm.flip import samples
from userlm.lines import Line
from userlm.types import Origin


def say(name: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A message; the first letter of its name says who wrote it."""
    role = {"p": "prompter", "a": "assistant"}[name[0]]
    return {
        "message_id": name,
        "text": f"text of {name}",
        "role": role,
        "lang": "en",
        "replies": replies,
        **more,
    }


def tree(prompt: Any, **more: Any) -> dict[str, Any]:
    return {
        "message_tree_id": "t1",
        "tree_state": "ready_for_export",
        "prompt": listed(prompt),
        **more,
    }


def listed(message: Any) -> Any:
    """As JSON gives it, with lists and not tuples."""
    if isinstance(message, dict) and isinstance(message.get("replies"), tuple):
        return {**message, "replies": [listed(reply) for reply in message["replies"]]}
    return message


def flat(
    message: dict[str, Any], parent: str | None = None, tree_id: str = "t1"
) -> list[dict[str, Any]]:
    """The messages of a tree, each a row."""
    own = {key: value for key, value in message.items() if key != "replies"}
    below = [
        row
        for reply in message["replies"]
        for row in flat(reply, message["message_id"], tree_id)
    ]
    return [{**own, "parent_id": parent, "message_tree_id": tree_id}, *below]


def read(*rows: dict[str, Any]):
    gathered = Gathered()
    lines = [Line(i, row) for i, row in enumerate(rows, 1)]
    return [*find(lines, None, "log", gathered), *gathered.found()]


def paths(*rows: dict[str, Any]) -> list[str]:
    """Each conversation as the names of its messages."""
    said = [f.imported.conversation for f in read(*rows) if f.imported]
    return [
        " ".join(turn.text.removeprefix("text of ") for turn in c.turns) for c in said
    ]


#        p1
#       /  \
#     a1    a2          a2 is ranked first
#    /  \     \
#  p2    p3    p4
#  |
#  a3
BUSHY = say(
    "p1",
    say("a1", say("p2", say("a3")), say("p3"), rank=1),
    say("a2", say("p4"), rank=0),
    user_id="u1",
)


def test_each_path_to_a_leaf_is_a_conversation_and_the_best_ranked_reply_comes_first():
    assert paths(tree(BUSHY)) == ["p1 a2 p4", "p1 a1 p2 a3", "p1 a1 p3"]


def test_a_turn_that_paths_share_is_learned_and_counted_once():
    first, second, third = (f.imported.conversation for f in read(tree(BUSHY)))
    assert first.origin is None
    assert second.origin == third.origin == Origin("t1/p4", first_own_turn=1)
    learned = [
        sample.target for path in (first, second, third) for sample in samples(path)
    ]
    assert learned == [f"text of {name}" for name in ("p1", "p4", "p2", "p3")]
    assert [turn.text for turn in next(samples(third)).context] == [
        "text of p1",
        "text of a1",
    ]
    summary = Summary()
    for path in (first, second, third):
        summary.add(path, person=1, language="en")
    figures = summary.figures({"train": np.ones(3, dtype=np.bool_)})
    # Three words each: "text of p1".
    assert figures["splits"]["train"]["user turns"] == 4
    assert figures["splits"]["train"]["samples"] == 4
    assert figures["lengths"]["user turns a conversation"]["mean"] == 2
    assert figures["lengths"]["words a first turn"]["largest"] == 3


def test_a_longer_path_shares_the_turns_of_the_path_that_it_left_last():
    #   p1 - a1 - p2 - a2 - p3
    #                    \
    #                     p4 - a4 - p5
    deep = say(
        "p1",
        say(
            "a1",
            say("p2", say("a2", say("p3"), say("p4", say("a4", say("p5"))))),
        ),
    )
    first, second = (f.imported.conversation for f in read(tree(deep)))
    assert first.origin is None
    assert second.origin == Origin("t1/p3", first_own_turn=2)
    assert [sample.k for sample in samples(second)] == [2, 3]


def test_messages_of_a_person_in_a_row_are_own_words_if_one_of_them_is():
    # Both paths begin with p1; in the second it is a part of the turn "p1 p2".
    _, second = (
        f.imported.conversation
        for f in read(tree(say("p1", say("a1"), say("p2", say("a2")))))
    )
    assert second.user_turns == ("text of p1\n\ntext of p2",)
    assert second.first_own_turn == 0


def test_replies_of_the_same_rank_or_of_none_come_as_they_stand_and_after_the_ranked():
    ranks = {"a1": None, "a2": 1, "a3": 1, "a4": 0, "a5": None}
    replies = [
        say(name, say(name.replace("a", "p")), rank=rank)
        for name, rank in ranks.items()
    ]
    ends = [path.split()[-1] for path in paths(tree(say("p0", *replies)))]
    assert ends == ["p4", "p2", "p3", "p1", "p5"]


def test_a_path_that_adds_no_words_of_a_user_is_left_out_and_counted():
    # Four answers to p1, one of which goes on: the best one is kept, and the one that goes on.
    prompt = say(
        "p1",
        say("a1", rank=0),
        say("a2", rank=1),
        say("a3", say("p2"), rank=2),
        say("a4", rank=3),
    )
    (best, longer) = read(tree(prompt))
    assert paths(tree(prompt)) == ["p1 a1", "p1 a3 p2"]
    assert best.imported.notes == {"paths left out": 2}
    assert longer.imported.notes == {}


def test_all_paths_of_a_tree_are_of_the_author_of_its_prompt_and_none_has_an_observed_ending():
    prompt = say(
        "p1",
        say("a1", say("p2", say("a2"), user_id="u2"), user_id="u3"),
        say("a3"),
        user_id="u1",
    )
    found = [f.imported.conversation for f in read(tree(prompt))]
    assert [(c.id, c.user, c.ended) for c in found] == [("t1/a2", "u1", False)]
    assert found[0].meta == {"source": "oasst", "tree": "t1", "language": "en"}
    nameless = [f.imported.conversation for f in read(tree({**BUSHY, "user_id": None}))]
    assert {person(c) for c in nameless} == {"oasst/t1"}


def test_a_deleted_message_cuts_its_path():
    prompt = say(
        "p1",
        say("a1", say("p2", say("a2"), deleted=True)),
        say("a3", say("p3"), deleted=True),
    )
    assert paths(tree(prompt)) == ["p1 a1"]


def test_a_message_without_words_cuts_its_path_and_is_counted():
    prompt = say(
        "p1", say("a1", say("p2", text=" \u200b")), say("a2", say("p3"), text=None)
    )
    (one,) = read(tree(prompt))
    assert one.imported.notes == {"cut at an empty turn": 2}
    assert [turn.text for turn in one.imported.conversation.turns] == [
        "text of p1",
        "text of a1",
    ]


def test_a_prompt_alone_is_a_conversation_of_one_turn():
    assert paths(tree(say("p1"))) == ["p1"]


def test_messages_on_lines_of_their_own_give_the_same_as_their_tree():
    rows = flat(BUSHY)
    (first, *others) = read(*reversed(rows))
    whole = read(tree(BUSHY))
    # The order of lines is another, and with it that of replies without a rank; here only p2 and p3
    # have none.
    assert sorted(paths(*reversed(rows))) == sorted(paths(tree(BUSHY)))
    assert [f.imported for f in read(*rows)][1:] == [f.imported for f in whole][1:]
    assert {f.line.number for f in (first, *others)} == {1}
    # Seven lines, one of which gives the conversations.
    assert first.imported.notes == {"merged lines": 6}


def test_trees_whose_messages_lie_mixed_are_told_apart():
    one, two = flat(say("p1", say("a1"))), flat(say("p1", say("a2")), tree_id="t2")
    found = read(
        one[0], two[1], {"messages": [{"role": "user", "content": "x"}]}, two[0], one[1]
    )
    assert [(f.line.number, f.imported.conversation.id) for f in found] == [
        (3, "log-3"),
        (1, "t1/a1"),
        (2, "t2/a2"),
    ]


def test_the_messages_of_a_tree_may_lie_in_several_files():
    rows = flat(BUSHY)
    for cut in range(len(rows) + 1):
        gathered = Gathered()
        for name, part in (("one", rows[:cut]), ("two", rows[cut:])):
            assert (
                list(
                    find(
                        [Line(i, row) for i, row in enumerate(part, 1)],
                        None,
                        name,
                        gathered,
                    )
                )
                == []
            )
        found = list(gathered.found())
        assert [f.imported for f in found] == [f.imported for f in read(*rows)]
        assert {(f.file, f.line.number) for f in found} == {
            ("one" if cut else "two", 1)
        }


def test_a_message_that_is_rejected_is_kept_whole_and_says_in_which_file_it_stands():
    lost = {**flat(say("a9"))[0], "parent_id": "nowhere", "text": "a word of its own"}
    gathered = Gathered()
    for name, rows in (
        ("one", flat(say("p1"))),
        ("two", [lost, flat(say("p1", text="again"))[0]]),
    ):
        assert (
            list(
                find(
                    [Line(i, row) for i, row in enumerate(rows, 1)],
                    None,
                    name,
                    gathered,
                )
            )
            == []
        )
    kept, twice, orphan = sorted(
        gathered.found(), key=lambda f: f.rejected.reason if f.rejected else ""
    )
    assert [turn.text for turn in kept.imported.conversation.turns] == ["text of p1"]
    assert (orphan.file, orphan.line.number, orphan.rejected.reason) == (
        "two",
        1,
        "orphan",
    )
    assert orphan.line.row == lost
    assert (twice.file, twice.line.row["text"]) == ("two", "again")
    assert "used on line 1 of one" in str(twice.rejected)


def test_every_line_gives_conversations_or_is_rejected_or_is_merged():
    rows = [
        *flat(BUSHY),
        *flat(say("p1", say("a1"), deleted=True), tree_id="gone"),
        {**flat(say("a9"))[0], "parent_id": "nowhere"},
        {**flat(say("p9"))[0], "parent_id": "a9"},
        {**flat(say("p7"))[0], "parent_id": "a7"},
        {**flat(say("a7"))[0], "parent_id": "p7"},
        flat(say("p1"))[0],
        {**flat(say("p8"))[0], "role": "narrator"},
    ]
    found = read(*rows)
    rejected = {f.line.number: f.rejected for f in found if f.rejected}
    lines = {f.line.number for f in found if f.imported}
    merged = sum(f.imported.notes.get("merged lines", 0) for f in found if f.imported)
    assert len(lines) + len(rejected) + merged == len(rows) == 15
    assert {line: error.reason for line, error in rejected.items()} == {
        8: "deleted",
        9: "deleted",
        10: "orphan",
        11: "orphan",
        12: "orphan",
        13: "orphan",
        14: "duplicate id",
        15: "unknown role",
    }
    assert "'nowhere' is not in the tree" in str(rejected[10])
    assert "leads to no prompt" in str(rejected[11]) and "cycle" in str(rejected[12])
    assert "used on line 1" in str(rejected[14])
    assert "'role' is 'narrator'" in str(rejected[15])
    assert {error.reason for error in rejected.values()} <= set(REASONS)
    assert {note for f in found if f.imported for note in f.imported.notes} <= set(
        NOTES
    )


def test_a_deep_thread_is_one_path():
    rows = []
    for i in range(3000):
        row = flat(say(f"{'pa'[i % 2]}{i}"))[0]
        rows.append({**row, "parent_id": f"{'ap'[i % 2]}{i - 1}" if i else None})
    (one,) = read(*rows)
    assert len(one.imported.conversation.turns) == 3000


def chain(length: int, replies: int) -> list[dict[str, Any]]:
    """Messages on lines of their own: one below the other, and replies to the last."""
    rows = []
    for i in range(length + replies):
        row = flat(say(f"{'pa'[min(i, length) % 2]}{i}", text="hi"))[0]
        above = min(i, length) - 1
        rows.append({**row, "parent_id": f"{'pa'[above % 2]}{above}" if i else None})
    return rows


def nested(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as a tree on one line."""
    messages = {row["message_id"]: {**row, "replies": []} for row in rows}
    for row in rows[1:]:
        messages[row["parent_id"]]["replies"].append(messages[row["message_id"]])
    return tree(messages["p0"])


def test_a_tree_that_would_unfold_to_far_more_than_it_is_is_set_aside():
    # 40 paths of 41 messages each from 80 messages: 20 times; 80 of 81 from 160 messages: 40 times.
    assert len(paths(*chain(40, 40))) == len(paths(nested(chain(40, 40)))) == 40
    rows = chain(80, 80)
    assert [f.rejected.reason for f in read(*rows)] == ["too long"] * 160
    (whole,) = read(nested(rows))
    assert "80 paths of tree 't1'" in str(whole.rejected)
    # 100 paths of 3 messages, but a long one is in each.
    rows = chain(2, 100)
    rows[0]["text"] = "x" * 10_000
    assert {f.rejected.reason for f in read(*rows)} == {"too long"}
    rows = [{**row, "message_tree_id": "x" * 10_000} for row in chain(2, 100)]
    assert read(*rows)[0].rejected.reason == "too long"


def test_the_paths_of_a_tree_are_made_one_by_one(monkeypatch):
    made = []

    def count(*arguments: Any, **named: Any) -> Any:
        made.append(named["id"])
        return assemble(*arguments, **named)

    monkeypatch.setattr(oasst, "assemble", count)
    found = find([Line(1, nested(chain(40, 40)))], None, "log", Gathered())
    assert next(found).imported.conversation.id == "t1/p40"
    assert made == ["t1/p40"]


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        (tree(None), "no messages", "'prompt'"),
        (tree("hi"), "wrong type", "prompt: it must be an object"),
        (tree(say("a1")), "no user turn", "'role' is not prompter"),
        (tree(say("p1", text=" ")), "empty turn", "'text'"),
        (tree(say("p1", deleted=True)), "deleted", "'p1'"),
        (
            tree(say("p1", {**say("a1"), "role": "user"})),
            "unknown role",
            "prompt.replies[0]: field 'role' is 'user'",
        ),
        (
            tree(say("p1", say("a1", say("p2", text=3)))),
            "wrong type",
            "prompt.replies[0].replies[0]: field 'text'",
        ),
        (
            tree(say("p1", say("a1", message_id=None))),
            "wrong type",
            "prompt.replies[0]: field 'message_id'",
        ),
        (
            tree(say("p1", say("a1", lang=[]))),
            "wrong type",
            "prompt.replies[0]: field 'lang'",
        ),
        (tree(say("p1", user_id={})), "wrong type", "prompt: field 'user_id'"),
        (
            tree(say("p1", say("a1", replies="x"))),
            "wrong type",
            "prompt.replies[0].replies must be a list",
        ),
        (tree(say("p1"), message_tree_id=["t"]), "wrong type", "'message_tree_id'"),
        (
            {"message_id": "p1", "text": "x", "role": "prompter"},
            "wrong type",
            "'message_tree_id'",
        ),
        (
            {"message_tree_id": "t", "text": "x", "role": "prompter"},
            "wrong type",
            "'message_id'",
        ),
    ],
)
def test_what_is_broken_is_rejected_and_named(row, reason, named):
    (one,) = read(row)
    assert one.rejected.reason == reason
    assert named in str(one.rejected)
