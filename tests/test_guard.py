"""Guardrails: what is wrong with a draft, which one is said, and what is kept of the others."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm.guard import PAPER, Guard, first_accepted, rates, violations
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, Reply

TALK = (
    Conversation("t", intent=f"{INTENT_PREFIX}learn how to bake bread at home.")
    .say("How do I bake  bread?")
    .say(
        "Mix flour, water, salt and yeast, then let the dough rest for at least two hours."
    )
)


def wrong(text: str, guard: Guard = PAPER, stop: str | None = None) -> list[str]:
    return list(violations(guard, TALK, Reply(text, stop)))


def drafts(guard: Guard, *texts: str, tries: int = 99) -> Reply:
    replies = [
        Reply(text, meta={"p_end": 0.5, "tokens_in": 10, "tokens_out": len(text)})
        for text in texts
    ]
    return first_accepted(guard, TALK, replies.__getitem__, tries)


def test_the_paper_bans_three_first_words_in_their_spelling():
    assert wrong("I want to know more") == ["first word"]
    assert wrong("I'm not so sure about that") == ["first word"]
    assert wrong("“You said two hours or so") == ["first word"]
    assert (
        wrong("Icing on top of it?")
        == wrong("i want to know more")
        == wrong("what would I do next")
        == []
    )


def test_the_paper_wants_three_to_twenty_five_words_between_white_space():
    assert wrong("ok then") == ["too short"]
    assert wrong("ok then - fine") == []
    assert wrong("word " * 25) == []
    assert wrong("word " * 26) == ["too long"]


def test_an_earlier_turn_and_the_intent_are_not_repeated_whatever_case_and_space():
    assert wrong("how do i bake bread?") == ["repeat"]
    assert wrong("Learn how to bake\nbread at home.") == ["repeat"]
    assert wrong(
        f"{INTENT_PREFIX}learn how to bake bread at home.", Guard(no_repeat=True)
    ) == ["repeat"]
    assert wrong("how do i bake bread then?") == []


def test_leaving_is_wrong_only_if_the_guard_forbids_it_and_silence_always_is():
    assert wrong("", stop="end") == ["end"]
    assert wrong("", Guard(), stop="end") == []
    # Last words may be few.
    assert wrong("bye", replace(PAPER, no_end=False), stop="end") == []
    assert wrong("", Guard()) == wrong("") == ["empty"]
    assert wrong("\u200b ", Guard()) == ["empty"]


def test_an_echo_holds_eight_words_in_a_row_or_lies_whole_in_an_assistants_turn():
    guard = Guard(no_echo=True)
    assert wrong("so flour water salt and yeast then let the dough rest", guard) == [
        "echo"
    ]
    assert wrong("at least two hours", guard) == ["echo"]
    assert wrong("two hours", guard) == []
    # Seven in a row.
    assert wrong("so flour water salt and yeast then let it rest", guard) == []
    assert wrong("how do i bake bread", guard) == []  # the user's own


def test_a_draft_that_goes_on_with_somebody_elses_turn_is_seen():
    guard = Guard(no_roles=True)
    for text in (
        "fine\nassistant: Sure!",
        "<user>: fine",
        "AI: Hello",
        "fineassistant\n\nSure!",
        "ok<|eot_id|>",
    ):
        assert wrong(text, guard) == ["role"], text
    for text in (
        "assistant\n\nSure!",
        "ok\nassistant\nSure!",
        "who is it?\nuser\nme",
        "(fine)assistant\nSure",
    ):
        assert wrong(text, guard) == ["role"], text
    for text in (
        "is a user: field needed?",
        "my assistant\nsaid so",
        "what is an ai system",
        "a superuser\nto linux",
    ):
        assert wrong(text, guard) == [], text


def test_the_first_good_draft_is_said_and_the_rejected_ones_are_kept_beside_it():
    reply = drafts(PAPER, "I want bread now", "no", "and how long does it rest")
    assert reply.text == "and how long does it rest"
    assert reply.meta["rejected"] == [
        {"text": "I want bread now", "why": ["first word"]},
        {"text": "no", "why": ["too short"]},
    ]
    # 3 x 10 tokens in; 16 + 2 + 25 out
    assert (reply.meta["tokens_in"], reply.meta["tokens_out"], reply.meta["p_end"]) == (
        30,
        43,
        0.5,
    )
    assert "violates" not in reply.meta


def test_a_good_first_draft_leaves_no_trace_of_the_guard():
    assert drafts(PAPER, "and how long does it rest").meta == {
        "p_end": 0.5,
        "tokens_in": 10,
        "tokens_out": 25,
    }


def test_when_no_try_is_left_the_draft_with_least_wrong_is_said_and_marked():
    guard = replace(PAPER, tries=3)
    reply = drafts(guard, "I do", "hm", "I will", "a fourth would have been good")
    assert (reply.text, reply.stop, reply.meta["violates"]) == (
        "hm",
        None,
        ["too short"],
    )
    assert [draft["text"] for draft in reply.meta["rejected"]] == ["I do", "I will"]


def test_when_no_try_is_left_the_conversation_stops_if_that_is_asked_for():
    reply = drafts(replace(PAPER, tries=2, exhausted="stop"), "I do", "I will")
    assert (reply.text, reply.stop) == ("", "guard")
    assert len(reply.meta["rejected"]) == 2 and reply.meta["tokens_out"] == 10


def test_a_user_who_only_wants_to_leave_cannot_be_kept_and_one_with_last_words_stays():
    def leaves(text: str) -> Reply:
        return first_accepted(
            replace(PAPER, tries=2), TALK, lambda n: Reply(text, "end"), 99
        )

    assert leaves("").stop == "guard"
    kept = leaves("that is all, thanks")
    assert (kept.text, kept.stop, kept.meta["violates"]) == (
        "that is all, thanks",
        None,
        ["end"],
    )


def test_greedy_drafts_are_all_alike_so_there_is_one():
    reply = drafts(PAPER, "no", "never drawn at all", tries=1)
    assert (reply.text, reply.meta["violates"]) == ("no", ["too short"])
    assert "rejected" not in reply.meta


def test_a_conversation_that_does_not_fit_is_not_drawn_again():
    assert first_accepted(PAPER, TALK, lambda n: Reply(stop="context"), 9) == Reply(
        stop="context"
    )


def test_rates_count_turns_drafts_and_reasons():
    reply = drafts(PAPER, "I want bread now", "I", "and how long does it rest")
    kept = drafts(replace(PAPER, tries=2), "I do", "no")
    metas = [reply.meta, {}, kept.meta]
    # drafts: 3 + 1 + 2. Reasons: "first word" of all but "no"; "too short" of "I", "I do" and "no".
    why = {"first word": 3, "too short": 3}
    assert rates(metas) == {
        "turns": 3,
        "drafts": 6,
        "resampled": 2,
        "kept": 1,
        "stopped": 0,
        "why": why,
    }
    assert rates([{}, {}]) is None


def test_a_conversation_stopped_by_the_guard_counts_its_drafts_and_no_turn_said():
    stopped = drafts(replace(PAPER, tries=2, exhausted="stop"), "I do", "no")
    # "I do": first word and too short; "no": too short
    why = {"too short": 2, "first word": 1}
    counts = {"turns": 1, "drafts": 2, "resampled": 1, "kept": 0, "stopped": 1}
    assert rates([stopped.meta]) == counts | {"why": why}


def test_a_guard_is_read_from_its_parts_and_later_parts_win():
    assert Guard.parse("paper") == PAPER
    assert Guard.parse("paper, words=-40,tries=12") == replace(
        PAPER, min_words=None, max_words=40, tries=12
    )
    assert Guard.parse("tries=3,exhausted=stop,paper") == replace(
        PAPER, tries=3, exhausted="stop"
    )
    assert Guard.parse(
        "first=Sure/Certainly,no-echo,no-roles,no-end,no-repeat"
    ) == Guard(
        ("Sure", "Certainly"), no_end=True, no_repeat=True, no_echo=True, no_roles=True
    )
    assert Guard.parse("") == Guard()


@pytest.mark.parametrize(
    "text",
    [
        "papper",
        "words=25-3",
        "words=few",
        f"words={'1' * 5_000}-",
        "tries=0",
        "no-end=1",
        "exhausted=run",
        "x",
    ],
)
def test_what_is_no_part_of_a_guard_is_named(text: str):
    with pytest.raises(InputError, match=f"'{text}' is not a known part of a guard"):
        Guard.parse(text)


@settings(max_examples=200)
@given(
    st.lists(st.text(max_size=60), min_size=1, max_size=6),
    st.integers(1, 6),
    st.sampled_from(("keep", "stop")),
)
def test_whatever_is_drawn_what_is_said_obeys_the_guard_or_is_marked(
    texts: list[str], tries: int, exhausted: str
):
    guard = replace(
        PAPER, tries=tries, no_echo=True, no_roles=True, exhausted=exhausted
    )
    reply = first_accepted(
        guard, TALK, lambda n: Reply(texts[n % len(texts)].strip()), 99
    )
    if reply.stop == "guard":
        assert not reply.text
    else:
        assert list(violations(guard, TALK, reply)) == reply.meta.get("violates", [])
    said = reply.stop != "guard"
    assert len(reply.meta.get("rejected", ())) + said <= tries


def test_what_is_known_of_a_rejected_draft_is_not_told_of_the_one_that_is_said():
    replies = [
        Reply(
            "word " * 30,
            meta={"p_end": 0.5, "truncated_tokens": 7, "cut": True, "tokens_out": 30},
        ),
        Reply(
            "three good words",
            meta={"p_end": 0.5, "truncated_tokens": 7, "tokens_out": 4},
        ),
    ]
    meta = first_accepted(PAPER, TALK, replies.__getitem__, 9).meta
    assert "cut" not in meta and (
        meta["p_end"],
        meta["truncated_tokens"],
        meta["tokens_out"],
    ) == (
        0.5,
        7,
        34,
    )


def test_a_kept_draft_still_leaves_where_leaving_is_allowed():
    guard = Guard(max_words=2, tries=2)
    kept = first_accepted(guard, TALK, lambda n: Reply("thanks a lot, bye", "end"), 99)
    assert (kept.text, kept.stop, kept.meta["violates"]) == (
        "thanks a lot, bye",
        "end",
        ["too long"],
    )
