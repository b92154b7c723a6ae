"""The users: what each sees of a conversation and makes of it."""

from dataclasses import dataclass, field, replace

import pytest

from userlm import users
from userlm.flip import prompt
from userlm.guard import PAPER, Guard
from userlm.text import INTENT_PREFIX
from userlm.types import (
    Completion,
    Conversation,
    InputError,
    ModelError,
    ModelWarning,
    Sampling,
    Turn,
)
from userlm.users import Human, PromptedUser, ReplayUser, TrainedUser, with_sampling


@dataclass
class Writes:
    """Gives prepared completions, and keeps what it was asked."""

    completions: list
    asked: list = field(default_factory=list)

    def complete(self, ids, sampling):
        self.asked.append((tuple(ids), sampling))
        return self.completions[len(self.asked) - 1]

    def chat(self, messages, sampling):
        self.asked.append((messages, sampling))
        return self.completions[len(self.asked) - 1]


def trained(tiny, *completions, **fields):
    return TrainedUser(Writes(list(completions)), tiny.template(), **fields)


def test_a_trained_user_is_asked_with_a_user_turn_open_and_stops_at_every_control_token(
    tiny, slides
):
    user = trained(
        tiny, Completion("ok then", stop_id=tiny.template().close, p_end=0.25)
    )
    reply = user.reply(slides)
    [(ids, sampling)] = user.model.asked
    assert ids == prompt(slides, user.template)
    assert (
        sampling.stop_ids == user.template.stop_ids
        and sampling.end_id == user.template.end
    )
    assert (reply.text, reply.stop, reply.meta["p_end"]) == ("ok then", None, 0.25)


def test_only_the_end_token_ends_it_and_words_before_it_are_kept(tiny, slides):
    template = tiny.template()
    texts = Completion("<|endconversation|> is a token", stop_id=template.close)
    assert trained(tiny, texts).reply(slides).stop is None
    both = trained(tiny, Completion("thanks", stop_id=template.end)).reply(slides)
    assert (both.text, both.stop) == ("thanks", "end")


def test_an_empty_turn_is_drawn_again_and_given_up_after_some_tries(tiny, slides):
    empty, words = (
        Completion(" \n", stop_id=tiny.template().close),
        Completion("hm", stop_id=tiny.template().close),
    )
    user = trained(tiny, empty, words)
    reply = user.reply(slides)
    assert (reply.text, reply.meta["rejected"]) == (
        "hm",
        [{"text": "", "why": ["empty"]}],
    )
    seeds = [sampling.seed for _, sampling in user.model.asked]
    assert seeds[0] != seeds[1]
    assert (
        trained(tiny, *[empty] * 3, guard=Guard(tries=3)).reply(slides).stop == "guard"
    )


def test_a_reply_cut_at_max_tokens_is_marked(tiny, slides):
    assert (
        trained(tiny, Completion("and then", stop_id=None)).reply(slides).meta["cut"]
        is True
    )


def test_a_conversation_whose_intent_does_not_fit_stops_for_context(tiny):
    user = trained(tiny, context_length=80, sampling=Sampling(max_tokens=20))
    assert user.reply(Conversation(intent="word " * 200)).stop == "context"


def test_what_did_not_fit_the_window_is_counted(tiny):
    talk = (
        Conversation("a", intent="x")
        .say("one")
        .say("word " * 60)
        .say("two")
        .say("short")
    )
    whole = len(prompt(talk, tiny.template()))
    user = trained(
        tiny,
        Completion("ok", stop_id=1),
        context_length=whole + 19,
        sampling=Sampling(max_tokens=20),
    )
    reply = user.reply(talk)
    [(ids, _)] = user.model.asked
    assert reply.meta["truncated_tokens"] == whole - len(ids) > 60  # the first exchange
    assert (
        "truncated_tokens"
        not in trained(tiny, Completion("ok", stop_id=1), context_length=whole + 256)
        .reply(talk)
        .meta
    )


def test_a_guard_forbids_tokens_where_they_are_drawn_and_redraws_with_another_seed(
    llama3_template, slides
):
    close, end = llama3_template.close, llama3_template.end
    drawn = [Completion("no", close), Completion("and how much sugar is fine", close)]
    user = TrainedUser(Writes(drawn), llama3_template, guard=PAPER)
    assert user.reply(slides).text == "and how much sugar is fine"
    (_, first), (_, second) = user.model.asked
    assert first.banned_ids == {end} and first.seed != second.seed
    # Llama-3's ids of "I", " I", "You", " You", "Here" and " Here"
    assert first.banned_first == {40, 358, 2675, 1472, 8586, 5810}


def test_where_leaving_is_a_turn_closed_at_once_a_guard_forbids_that_at_the_first_token_alone(
    tiny, slides
):
    template = replace(tiny.template(), end=tiny.template().close)
    user = TrainedUser(
        Writes([Completion("and then what", template.close)]), template, guard=PAPER
    )
    assert user.reply(slides).text == "and then what"
    [(_, sampling)] = user.model.asked
    assert (
        sampling.banned_ids == frozenset() and template.close in sampling.banned_first
    )


def test_greedy_drafts_are_not_drawn_twice(tiny, slides):
    user = trained(
        tiny, Completion("no", 1), guard=PAPER, sampling=Sampling(temperature=0)
    )
    assert user.reply(slides).meta["violates"] == ["too short"]
    assert len(user.model.asked) == 1


def test_a_user_whose_turn_it_is_not_says_so(tiny, slides):
    waiting = Conversation("w", slides.turns[:1], slides.intent)
    for user in (trained(tiny), PromptedUser(Writes([]))):
        with pytest.raises(
            InputError, match="'w' ends with a user turn; add the assistant's answer"
        ):
            user.reply(waiting)


def test_numbers_that_cannot_be_are_refused(tiny):
    with pytest.raises(InputError, match="end_threshold 30: give a probability"):
        Sampling(end_threshold=30)
    with pytest.raises(InputError, match="max_tokens 99 of a context length of 99"):
        trained(tiny, context_length=99, sampling=Sampling(max_tokens=99))


def test_a_prompted_user_is_told_who_it_is_beside_what_it_wants(slides):
    chat = Writes([Completion("hm")])
    PromptedUser(chat).reply(replace(slides, meta={"condition": "You are in a hurry."}))
    assert "You are in a hurry." in chat.asked[0][0][0]["content"]


def test_a_word_that_is_several_tokens_bans_none_of_them(tiny):
    # Too few texts to be one token in this tokenizer.
    assert tiny.template().first_token_ids(["Here"]) == frozenset()
    assert len(tiny.template().first_token_ids(["I"])) == 1


def test_an_end_by_threshold_is_left_to_where_p_end_is_known_and_contradicts_a_guard_against_leaving(
    tiny, slides
):
    left = Completion("", stop_id=tiny.template().end, p_end=0.4)
    user = with_sampling(trained(tiny, left), end_threshold=0.3)
    assert user.reply(slides).stop == "end"
    assert user.model.asked[0][1].end_threshold == 0.3
    said = with_sampling(
        trained(tiny, Completion("bye then", stop_id=tiny.template().end, p_end=0.1)),
        end_threshold=0.3,
    )
    reply = said.reply(slides)  # an end behind words is not one by P(end)
    assert (reply.text, reply.stop) == ("bye then", None)
    with pytest.raises(InputError, match="no-end never lets the user end"):
        with_sampling(user, guard=PAPER)


def test_tuning_leaves_the_rest_as_it_is_and_says_what_it_cannot_do(tiny):
    user = trained(tiny, sampling=Sampling(top_p=0.5, max_tokens=9), seed=3)
    changed = with_sampling(user, temperature=0.5)
    assert (
        changed.sampling.temperature,
        changed.sampling.top_p,
        changed.sampling.max_tokens,
    ) == (
        0.5,
        0.5,
        9,
    )
    assert (changed.seed, changed.model) == (3, user.model)
    assert with_sampling(user, seed=0).seed == 0
    replay = ReplayUser({})
    assert with_sampling(replay, temperature=0.1) is replay
    with pytest.raises(InputError, match="only for users with a model"):
        with_sampling(replay, guard=PAPER)
    with pytest.raises(InputError, match="a prompted user has none"):
        with_sampling(PromptedUser(Writes([])), end_threshold=0.5)


def test_the_seed_of_a_reply_depends_on_run_conversation_and_turn_alone(tiny, slides):
    def seed(run, conversation):
        user = trained(tiny, Completion("x", stop_id=1), seed=run)
        user.reply(conversation)
        return user.model.asked[0][1].seed

    other = Conversation("other", slides.turns, slides.intent)
    seeds = [
        seed(0, slides),
        seed(1, slides),
        seed(0, other),
        seed(0, Conversation("slides", slides.turns[:2])),
    ]
    assert len(set(seeds)) == 4
    assert seed(0, slides) == seeds[0]


def test_a_prompted_user_gets_one_message_with_the_goal_and_later_the_transcript(
    slides,
):
    chat = Writes([Completion("hi there"), Completion("<user>: and now?")])
    user = PromptedUser(chat)
    assert (
        user.reply(Conversation("a", intent=f"{INTENT_PREFIX}plan a trip.")).text
        == "hi there"
    )
    assert user.reply(slides).text == "and now?"
    (first, _), (later, _) = chat.asked
    assert [message["role"] for message in first + later] == ["user", "user"]
    assert (
        "from it: plan a trip." in first[0]["content"]
        and "====" not in first[0]["content"]
    )
    assert "<assistant>: That helps.\n====" in later[0]["content"]
    assert "<|endconversation|>" not in first[0]["content"]


def test_a_prompted_user_leaves_with_the_marker_and_words_before_it_are_said(slides):
    answers = [
        Completion("<|endconversation|>"),
        Completion("thanks <|endconversation|>"),
    ]
    user = PromptedUser(Writes(answers))
    left, thanked = user.reply(slides), user.reply(slides)
    assert (left.text, left.stop) == ("", "end")
    assert (thanked.text, thanked.stop) == ("thanks", "end")


def test_a_transcript_that_contains_a_place_of_the_prompt_does_not_fill_it():
    chat = Writes([Completion("x")])
    log = (
        Conversation("a", intent="the goal")
        .say("what is {goal} and {end}?")
        .say("{transcript}")
    )
    PromptedUser(chat).reply(log)
    text = chat.asked[0][0][0]["content"]
    assert "what is {goal} and {end}?" in text and text.count("the goal") == 1


def test_the_second_prompted_form_swaps_the_roles_and_is_spoken_to_first(slides):
    chat = Writes(
        [
            Completion("hi there"),
            Completion("and now?"),
            Completion(" <|endconversation|>"),
        ]
    )
    user = PromptedUser(chat, swapped=True)
    assert (
        user.reply(Conversation("a", intent=f"{INTENT_PREFIX}plan a trip.")).text
        == "hi there"
    )
    assert user.reply(slides).text == "and now?"
    greeted = Conversation("b", (Turn("assistant", "How can I help?"),), intent="x")
    assert user.reply(greeted).stop == "end"
    first, later, opened = (messages for messages, _ in chat.asked)
    assert [m["role"] for m in first] == ["system", "user"]
    assert "What you want from it: plan a trip.\n" in first[0]["content"]
    said = [(m["role"], m["content"]) for m in later[2:]]
    assert (
        said[:2]
        == [("assistant", slides.turns[0].text), ("user", slides.turns[1].text)]
        and len(said) == 6
    )
    assert [(m["role"], m["content"]) for m in opened[1:]] == [
        ("user", "How can I help?")
    ]


def test_a_prompted_user_is_redrawn_by_its_text_alone(slides):
    chat = Writes(
        [
            Completion("I see, thanks"),
            Completion("<|endconversation|>"),
            Completion("so what about salt"),
        ]
    )
    reply = PromptedUser(chat, guard=PAPER).reply(slides)
    assert reply.text == "so what about salt"
    assert [draft["why"] for draft in reply.meta["rejected"]] == [
        ["first word"],
        ["end"],
    ]


def test_a_prompted_user_without_an_intent_says_what_is_missing():
    with pytest.raises(InputError, match="'a' has no intent"):
        PromptedUser(Writes([])).reply(Conversation("a"))


def test_a_replayed_person_says_what_they_said_and_leaves_where_they_left(slides):
    user = ReplayUser({"slides": slides})
    said = Conversation("slides#3", meta={"conversation": "slides"})
    for text in slides.user_turns:
        assert user.reply(said).text == text
        said = said.say(text).say("something else")
    assert user.reply(said).stop == "end"
    with pytest.raises(ModelError, match="no conversation 'other'"):
        user.reply(Conversation("other"))


def test_a_person_at_the_keyboard_leaves_by_saying_nothing():
    assert Human(lambda conversation: "hello").reply(Conversation()).text == "hello"
    leaves = Human(lambda conversation: None)
    assert leaves.reply(Conversation()).stop == "end"
    with pytest.raises(ModelError, match="who answered left"):
        leaves.reply(Conversation().say("hello"))


def test_a_goal_alone_in_a_conversation_warns_and_stays(tiny):
    user = TrainedUser(
        tiny, tiny.template(), tiny.context_length, Sampling(max_tokens=4)
    )
    users._warn_of_goals.cache_clear()
    with pytest.warns(ModelWarning, match="put these words before the goal") as warned:
        for goal in ("plan a trip", "buy milk"):
            user.reply(Conversation(intent=goal))
    assert len(warned) == 1
