"""Conversations that a log holds in several rows are put together."""

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm.data.joining import Joining, SharedTurns
from userlm.data.layouts import convert
from userlm.data.split import split
from userlm.types import Conversation, Origin, Turn

TALK = ("why is it red", "iron", "and the moon?", "dust", "thanks", "any time")


def log(
    id: str, *texts: str, user: str | None = None, ended: bool = True, **meta: Any
) -> Conversation:
    """A conversation whose user begins; `ended` counts only after an answer."""
    roles = ("user", "assistant") * len(texts)
    turns = tuple(map(Turn, roles, texts))
    return Conversation(
        id, turns, user=user, ended=ended and not len(turns) % 2, meta=meta
    )


def joined(*logs: Conversation) -> list[Conversation]:
    joining = Joining()
    for conversation in logs:
        joining.add(conversation)
    plan = joining.plan(iter(logs))
    found = list(plan.apply(lambda: logs))
    assert len(found) == len(logs) - plan.merged
    return found


def ids(*logs: Conversation) -> list[str]:
    return [conversation.id for conversation in joined(*logs)]


# --- a row for each call --------------------------------------------------------------------------


def test_calls_with_their_history_are_the_longest_of_them_in_any_order():
    calls = [log(f"call{n}", *TALK[:n], user="p") for n in (2, 4, 6)]
    for order in (calls, calls[::-1], [calls[1], calls[2], calls[0]]):
        assert joined(*order) == [calls[2]]
    nameless = [replace(call, user=None) for call in calls]
    assert joined(*nameless) == [nameless[2]]


def test_calls_that_hold_only_the_request_are_joined_too():
    calls = [log(f"call{n}", *TALK[:n]) for n in (1, 3, 5)]
    assert joined(*calls) == [calls[2]]


def test_a_call_that_waits_for_a_tool_is_a_part_of_the_one_with_the_answer():
    waits = log("a", "why is it red", "Let me look.", ended=False)
    answers = log("b", "why is it red", "Let me look.\n\niron")
    assert ids(waits, answers) == ["b"]
    assert ids(waits, replace(waits, id="again")) == ["a", "again"]


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=4, max_size=12), st.data())
def test_of_one_id_whatever_was_logged_first_is_an_earlier_call(sides, data):
    said = [
        {"role": "user" if is_user else "assistant", "content": f"{n}"}
        for n, is_user in enumerate((True, *sides))
    ]
    count = data.draw(st.integers(1, len(said) - 1))
    rows = ({"id": "a", "user": "p", "messages": each} for each in (said[:count], said))
    early, late = (convert(row, None, "x").conversation for row in rows)
    joining = Joining()
    place = joining.add(early)
    assert joining.are_one(late, place)
    joining.add(late, place)
    plan = joining.plan([early, late])
    assert list(plan.apply(lambda: [early, late])) == [late]


@pytest.mark.parametrize("said", [2, 3])
def test_a_side_that_went_on_after_a_call_was_logged_did_not_end_there(said):
    whole = [*TALK[: said - 1], f"{TALK[said - 1]}\n\nAre you there?"]
    early, late = log("a", *TALK[:said], user="p"), log("b", *whole, user="p")
    assert ids(early, late) == ids(late, early) == ["b"]
    other = log("b", *TALK[: said - 1], TALK[said - 1] + "s", user="p")
    assert ids(early, other) == ["a", "b"]
    more = log("b", *whole, *TALK[said:], user="p")
    joining = Joining()
    place = joining.add(replace(early, id="b"))
    assert joining.are_one(late, place) and joining.are_one(more, place)
    assert joining.are_one(other, place) is (said == 2)  # the answer was made again


def test_a_call_before_which_the_user_had_said_less_is_another_conversation():
    first = log("a", "hi", "Let me", user="p", ended=False)
    for texts in (("hi\n\nthere", "Let me look"), ("hi\n\nthere",)):
        assert ids(first, log("b", *texts, user="p")) == ["a", "b"]


def test_of_one_id_a_guest_who_logs_in_goes_on():
    guest = log("a", *TALK[:2])
    known = [log("a", *TALK[:n], user="p") for n in (4, 6)]
    joining = Joining()
    place = None
    for row in (guest, *known):
        assert place is None or joining.are_one(row, place)
        place = joining.add(row, place)
    plan = joining.plan([guest, *known])
    assert list(plan.apply(lambda: [guest, *known])) == [known[-1]]
    assert ids(replace(guest, id="other"), *known) == ["other", "a"]


def test_an_answer_that_no_other_call_repeats_is_kept():
    cut = log("a", "why is it red", "rust", user="p", ended=False)
    for other in (log("b", *TALK[:2], user="p"), log("b", *TALK[:4], user="p")):
        assert ids(cut, other) == ["a", "b"]
        assert ids(other, cut) == ["b", "a"]
        begun = replace(cut, turns=(cut.turns[0], Turn("assistant", " ir")))
        assert ids(begun, cut, other) == ["a", "b"]


def test_of_one_id_a_shorter_row_does_not_take_the_place_of_a_longer_one():
    long = log("a", "why?", "Let me see.\n\nIron.", user="p")
    for short in (
        log("a", "why?", "Let me see.", user="p"),
        log("a", "why?", user="p"),
    ):
        joining = Joining()
        place = joining.add(long)
        assert not joining.are_one(short, place)
        assert joining.are_one(long, joining.add(short))


def test_of_one_id_an_answer_that_was_made_again_takes_the_place_of_the_first():
    rows = [
        log("a", *TALK[:2], user="p"),
        log("a", TALK[0], "rust", user="p"),
        log("a", TALK[0], "rust", *TALK[2:4], user="p"),
    ]
    joining = Joining()
    place = None
    for row in rows:
        assert place is None or joining.are_one(row, place)
        place = joining.add(row, place)
    assert list(joining.plan(rows).apply(lambda: rows)) == rows[-1:]
    for other in (rows[-1], rows[0], log("a", TALK[0], "rust", "and?", user="p")):
        assert not joining.are_one(other, place)


def test_a_greeting_that_got_no_answer_is_not_the_beginning_of_every_other_conversation():
    greeting = log("a", "hello", user="p")
    long = log("b", "hello", "hello, who is there?", *TALK, user="p")
    assert ids(greeting, long) == ["a", "b"]


def test_white_space_around_a_turn_makes_no_difference():
    assert ids(log("a", "why is it red", " iron\n"), log("b", *TALK)) == ["b"]


def test_line_ends_within_a_turn_make_no_difference():
    early = log("a", "hi\r\nthere\r\n\r\nyou", "yes?", user="p")
    late = log("b", "hi\nthere\n\nyou", "yes?", "nothing", "bye", user="p")
    assert ids(early, late) == ["b"]


def test_another_person_another_answer_or_another_question_is_another_conversation():
    first = log("a", *TALK[:2], user="p")
    for other in (
        log("b", *TALK, user="q"),
        log("b", *TALK),
        log("b", TALK[0], "rust", *TALK[2:], user="p"),
        log("b", "why is it blue", *TALK[1:], user="p"),
    ):
        assert ids(first, other) == ["a", "b"]


def test_the_same_conversation_twice_is_a_duplicate_and_not_a_history():
    assert ids(log("a", *TALK), log("b", *TALK)) == ["a", "b"]


def test_strangers_in_a_set_of_whole_conversations_are_not_one_person():
    for source in ("lmsys", "arena", "allenai/WildChat-1M"):
        logs = [log(f"{n}", *TALK[:n], source=source) for n in (2, 4)]
        assert ids(*logs) == ["2", "4"]
    known = [log(f"{n}", *TALK[:n], user="ip/Peru", source="wildchat") for n in (2, 4)]
    assert ids(*known) == ["4"]


def test_what_was_put_together_before_or_comes_from_a_run_is_left_alone():
    spans = [log(f"{n}", *TALK[:n], user="p", source="otel") for n in (2, 4)]
    assert ids(*spans) == ["2", "4"]
    run = [replace(log(f"{n}", *TALK[:n]), stop="end") for n in (2, 4)]
    assert ids(*run) == ["2", "4"]


def test_thousands_of_calls_with_answers_of_all_lengths_are_compared_with_few():
    waits = [log(f"a{n}", "hi", "x" * n, ended=False) for n in range(1, 4000)]
    others = [log(f"b{n}", "hi", f"y{n}", "and?", "z") for n in range(4000)]
    begun = time.process_time()
    assert len(joined(*waits, *others)) == 7999
    assert time.process_time() - begun < 3  # it was 5 s


def test_thousands_of_rows_that_go_on_from_one_long_answer_are_compared_once():
    waits = [log(f"a{n}", "hi", "x" * n, ended=False) for n in range(1, 2000)]
    others = [log(f"b{n}", "hi", "y" * 2000, f"and {n}?", "z") for n in range(1000)]
    begun = time.process_time()
    assert len(joined(*waits, *others)) == 2999
    assert time.process_time() - begun < 1.5  # it was 4 s


# --- a row for each call, with the last messages ---------------------------------------------------


def calls(length: int, most: int, user: str | None = "p") -> list[Conversation]:
    """The calls of one conversation, each with its last turns alone."""
    texts = [f"turn {n}" for n in range(length)]
    ends = range(2, length + 1, 2)
    return [log(f"call{n}", *texts[max(0, n - most) : n], user=user) for n in ends]


@pytest.mark.parametrize("most", [6, 8, 10])
@pytest.mark.parametrize("step", [1, -1])
def test_calls_with_the_last_messages_are_one_conversation(most, step):
    [found] = joined(*calls(20, most)[::step])
    assert [turn.text for turn in found.turns] == [f"turn {n}" for n in range(20)]
    assert (found.ended, found.user) == (True, "p")


def test_calls_with_the_last_messages_of_several_people_are_kept_apart():
    mixed = [
        each for n in range(10) for each in (calls(20, 6)[n], calls(20, 6, "q")[n])
    ]
    mixed = [replace(each, id=f"{n}") for n, each in enumerate(mixed)]
    assert [len(each.turns) for each in joined(*mixed)] == [20, 20]
    nameless = calls(20, 6, None)
    assert joined(*nameless) == nameless[2:]


def test_a_greeting_makes_no_two_conversations_of_a_person_one():
    hello = ("Hi", "Hello! How can I help you?")
    monday = log("a", "and now?", "so", *hello, user="guest")
    friday = log("b", *hello, "I want a refund", "Done.", user="guest")
    assert ids(monday, friday) == ["a", "b"]


def test_a_call_goes_on_from_the_one_that_shares_most_with_it():
    own = calls(12, 8)
    end = [turn.text for turn in own[-1].turns[:4]]
    other = log("other", "so?", "so", *end, user="p")
    assert [len(each.turns) for each in joined(other, *own)] == [6, 12]


def test_what_is_said_of_one_call_holds_for_the_conversation():
    first, second = calls(10, 8)[-2:]
    first = replace(first, meta={"toxic": True, "language": "de"})
    second = replace(second, meta={"toxic": False, "language": "en", "redacted": True})
    [found] = joined(first, second)
    assert found.meta == {"toxic": True, "language": "en", "redacted": True}


@pytest.mark.parametrize("flag", [1, "true", "t", "1.0"])
def test_a_flag_of_a_table_holds_too(flag):
    rows = [
        log("1", *TALK[:2], user="p", toxic=flag),
        log("2", *TALK, user="p", toxic=0),
    ]
    [found] = joined(*rows)
    assert found.meta == {"toxic": True}


def test_what_is_said_of_an_earlier_call_holds_for_the_whole_history():
    rows = [log(f"{n}", *TALK[:n], user="p") for n in (2, 4, 6)]
    rows[0] = replace(rows[0], intent="learn", meta={"toxic": True, "model": "x"})
    rows[1] = replace(rows[1], meta={"redacted": True})
    [found] = joined(*rows)
    assert (found.intent, found.meta) == ("learn", {"toxic": True, "redacted": True})


def test_the_intent_of_a_stranger_with_the_same_greeting_is_no_intent_of_another():
    first = replace(log("a", *TALK[:2]), intent="book a flight")
    [found] = joined(first, log("b", *TALK[:4]))
    assert (found.id, found.intent) == ("b", None)


def test_of_strangers_with_the_same_greeting_each_keeps_its_own_intent_and_flags():
    first = log("a", *TALK[:2], toxic=True), log("a", *TALK[:2], "and a?", "yes")
    second = log("b", *TALK[:2], redacted=True), log("b", *TALK[:2], "and b?", "no")
    rows = [replace(first[0], intent="learn"), first[1], *second]
    found = {each.id: each for each in joined(*rows, log("c", *TALK[:3]))}
    assert {id: each.intent for id, each in found.items()} == {
        "a": "learn",
        "b": None,
        "c": None,
    }
    assert {id: set(each.meta) for id, each in found.items()} == {
        "a": {"toxic"},
        "b": {"redacted"},
        "c": set(),
    }


def test_where_calls_have_the_id_of_their_conversation_no_other_id_takes_what_is_said():
    first = [
        replace(log("a", *TALK[:2], user="p", toxic=True), intent="learn"),
        log("a", *TALK[:2], "and a?", "yes", user="p"),
    ]
    other = [log("b", *TALK[:2], user="p"), log("b", *TALK[:2], "b?", "no", user="p")]
    joining, places, rows = Joining(), {}, [*first, *other]
    for row in rows:
        places[row.id] = joining.add(row, places.get(row.id))
    found = {each.id: each for each in joining.plan(rows).apply(lambda: rows)}
    assert (found["a"].intent, found["a"].meta) == ("learn", {"toxic": True})
    assert (found["b"].intent, found["b"].meta) == (None, {})


def test_what_is_said_of_the_first_call_holds_for_a_long_conversation():
    first = replace(log("1", TALK[0], user="p", toxic=True), intent="learn")
    rows = [first, *(log(f"{n}", *TALK[:n], user="p") for n in (3, 5))]
    [found] = joined(*rows)
    assert (found.intent, found.meta) == ("learn", {"toxic": True})


@pytest.mark.parametrize(
    "first",
    [
        log("a", *TALK[:2], toxic=True),  # a guest
        log("a", TALK[0], user="p", toxic=True),
        log("a", TALK[0], "rust", user="p", toxic=True),  # made again
    ],
)
def test_of_one_id_what_is_said_of_a_call_holds_for_all(first):
    rows = [replace(first, intent="learn"), log("a", *TALK, user="p")]
    joining = Joining()
    place = None
    for row in rows:
        place = joining.add(row, place)
    [found] = joining.plan(rows).apply(lambda: rows)
    assert (found.intent, found.meta, found.user) == ("learn", {"toxic": True}, "p")


def test_a_call_of_an_unknown_person_that_is_left_out_leaves_its_flags():
    [found] = joined(log("1", *TALK[:4], toxic=True), log("2", *TALK, toxic=False))
    assert (found.id, found.meta) == ("2", {"toxic": True})


def test_the_calls_of_each_person_may_go_another_way():
    rows = [*calls(20, 6), *calls(12, 6, "q")[::-1]]
    rows = [replace(each, id=f"{n}") for n, each in enumerate(rows)]
    assert [len(each.turns) for each in joined(*rows)] == [20, 12]


def test_rows_of_strangers_are_whole_though_an_address_is_known():
    rows = [replace(each, meta={"source": "wildchat"}) for each in calls(20, 6)]
    assert joined(*rows) == rows[2:]


def test_thousands_of_calls_that_share_their_turns_are_joined_at_once():
    turns = ("hi", "hello", "well?", "well")
    rows = [log(f"{n}", *turns, *turns, user="p") for n in range(5_000)]
    begun = time.process_time()
    assert len(joined(*rows)) == 1
    assert time.process_time() - begun < 5


# --- pieces of ShareGPT ---------------------------------------------------------------------------


def piece(id: str, *texts: str, **more: Any) -> Conversation:
    return log(id, *texts, source="sharegpt", **more)


def test_pieces_are_joined_in_the_order_of_their_numbers():
    pieces = [
        piece("QWJhYvA_0", *TALK[:2]),
        piece("QWJhYvA_2", *TALK[2:4]),
        piece("QWJhYvA_4", *TALK[4:]),
    ]
    other = piece("sharegpt-9kXd3Ls_0", "hi", "hello")
    whole = piece("QWJhYvA_4", *TALK)
    assert joined(*pieces, other) == [whole, other]
    assert joined(pieces[2], other, pieces[0], pieces[1]) == [other, whole]
    open_end = replace(pieces[2], ended=False)
    assert joined(*pieces[:2], open_end) == [replace(whole, ended=False)]


def test_of_pieces_with_a_gap_only_the_last_may_have_ended_and_all_are_in_one_split():
    shares = (0.4, 0.3, 0.3)
    splits = set()
    for name in map(str, range(20)):
        name = f"Qx{name:0>3}Ab"
        # The messages from 4 to 9 are missing.
        pieces = [
            piece(f"{name}_0", *TALK[:2]),
            piece(f"{name}_2", *TALK[2:4]),
            piece(f"{name}_10", *TALK[4:]),
        ]
        found = joined(*pieces)
        assert [(c.id, len(c.turns), c.ended) for c in found] == [
            (f"{name}_2", 4, False),
            (f"{name}_10", 2, True),
        ]
        (where,) = {split(conversation, shares=shares) for conversation in found}
        splits.add(where)
    assert splits == {"train", "valid", "test"}


def test_a_piece_that_was_cut_is_followed_by_a_gap():
    cut = piece("QWJhYvA_0", *TALK[:3])
    found = joined(
        cut, piece("QWJhYvA_3", "so", "yes"), piece("QWJhYvA_6", "and", "no")
    )
    assert [(c.id, c.ended) for c in found] == [
        ("QWJhYvA_0", False),
        ("QWJhYvA_3", False),
        ("QWJhYvA_6", True),
    ]


def test_numbers_that_count_conversations_make_no_pieces():
    logs = [piece(f"QWJhYvA_{n}", f"question {n}", "answer") for n in range(3)]
    assert joined(*logs) == logs
    # Prompts without answers would not even overlap.
    prompts = [piece(f"QWJhYvA_{n}", f"question {n}") for n in range(3)]
    assert joined(*prompts) == prompts
    # The second was no conversation, but the numbers of others in the log overlap.
    of_two = [logs[0], logs[2]]
    others = [piece(f"9kXd3Ls_{n}", f"question {n}", "answer") for n in range(2)]
    assert joined(*of_two, *others) == [*of_two, *others]
    other_log = [replace(each, meta={"source": "sharegpt_b"}) for each in others]
    assert len(joined(*of_two, *other_log)) == 3


def test_pieces_are_joined_only_where_all_speaks_for_sharegpt():
    """A counter may miss a number, such as that of a conversation that was set aside."""
    texts = [TALK[:2], TALK[2:4], TALK[4:]]

    def pieces(name: str, source: str, user: str | None = None) -> list[Conversation]:
        parts = enumerate(texts)
        return [log(f"{name}_{2 * n}", *t, source=source, user=user) for n, t in parts]

    assert len(joined(*pieces("sharegpt-QWJhYvA", "ShareGPT92K"))) == 1
    for name in ("alice", "session", "Session", "user001", "u-user001", "QWJhYvAb"):
        assert len(joined(*pieces(name, "sharegpt"))) == 3
    assert len(joined(*pieces("QWJhYvA", "app"))) == 3
    assert len(joined(*pieces("QWJhYvA", "sharegpt", user="p"))) == 3
    days = [piece("day_20260101", "hi", "yes"), piece("day_20260201", "so", "no")]
    assert joined(*days) == days


def test_calls_with_numbers_are_calls_and_no_pieces():
    assert ids(log("x_0", *TALK[:2]), log("x_2", *TALK[:4])) == ["x_2"]


# --- paths of a tree ------------------------------------------------------------------------------


def test_paths_of_a_tree_own_the_turns_that_no_earlier_path_has():
    shared = SharedTurns()

    def owned(id: str, *texts: str, tree: str | None = "t1") -> Origin | None:
        meta = {} if tree is None else {"tree": tree}
        return shared.owned(log(id, *texts, ended=False, **meta)).origin

    assert owned("a", *TALK) is None
    # The first question and its answer are the same; another answer is no longer the same talk.
    assert owned("b", *TALK[:2], "and mars?", "rust") == Origin("a", 1)
    assert owned("c", TALK[0], "rust", *TALK[2:]) == Origin("a", 1)
    assert owned("d", *TALK[:2], "and mars?", "no", "why") == Origin("b", 2)
    assert owned("e", *TALK[:2]) == Origin("a", 1)
    assert owned("f", *TALK, tree="t2") is None
    assert owned("g", *TALK, tree=None) is None
