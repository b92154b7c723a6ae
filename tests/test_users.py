"""The users: what each sees of a conversation and makes of it."""

from dataclasses import dataclass, field

import pytest

from userlm.flip import prompt
from userlm.guard import Guard
from userlm.text import INTENT_PREFIX
from userlm.types import Completion, Conversation, InputError, ModelError, Sampling
from userlm.users import Human, PromptedUser, ReplayUser, TrainedUser


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


def test_a_trained_user_is_asked_with_a_user_turn_open_and_stops_at_every_control_token(tiny, slides):
    user = trained(tiny, Completion("ok then", stop_id=tiny.template().close, p_end=0.25))
    reply = user.reply(slides)
    [(ids, sampling)] = user.model.asked
    assert ids == prompt(slides, user.template)
    assert sampling.stop_ids == user.template.stop_ids and sampling.end_id == user.template.end
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
    assert (reply.text, reply.meta["rejected"]) == ("hm", [{"text": "", "why": ["empty"]}])
    seeds = [sampling.seed for _, sampling in user.model.asked]
    assert seeds[0] != seeds[1]
    assert trained(tiny, *[empty] * 3, guard=Guard(tries=3)).reply(slides).stop == "guard"


def test_a_reply_cut_at_max_tokens_is_marked(tiny, slides):
    assert trained(tiny, Completion("and then", stop_id=None)).reply(slides).meta["cut"] is True


def test_a_conversation_whose_intent_does_not_fit_stops_for_context(tiny):
    user = trained(tiny, window=80, sampling=Sampling(max_tokens=20))
    assert user.reply(Conversation(intent="word " * 200)).stop == "context"


def test_the_seed_of_a_reply_depends_on_run_conversation_and_turn_alone(tiny, slides):
    def seed(run, conversation):
        user = trained(tiny, Completion("x", stop_id=1), seed=run)
        user.reply(conversation)
        return user.model.asked[0][1].seed

    other = Conversation("other", slides.turns, slides.intent)
    seeds = [seed(0, slides), seed(1, slides), seed(0, other), seed(0, Conversation("slides", slides.turns[:2]))]
    assert len(set(seeds)) == 4
    assert seed(0, slides) == seeds[0]


def test_a_prompted_user_gets_one_message_with_the_goal_and_later_the_transcript(slides):
    chat = Writes([Completion("hi there"), Completion("<user>: and now?")])
    user = PromptedUser(chat)
    assert user.reply(Conversation("a", intent=f"{INTENT_PREFIX}plan a trip.")).text == "hi there"
    assert user.reply(slides).text == "and now?"
    (first, _), (later, _) = chat.asked
    assert [message["role"] for message in first + later] == ["user", "user"]
    assert "from it: plan a trip." in first[0]["content"] and "====" not in first[0]["content"]
    assert "<assistant>: That helps.\n====" in later[0]["content"]
    assert "<|endconversation|>" not in first[0]["content"]


def test_a_prompted_user_leaves_with_the_marker_and_words_before_it_are_said(slides):
    answers = [Completion("<|endconversation|>"), Completion("thanks <|endconversation|>")]
    user = PromptedUser(Writes(answers))
    left, thanked = user.reply(slides), user.reply(slides)
    assert (left.text, left.stop) == ("", "end")
    assert (thanked.text, thanked.stop) == ("thanks", "end")


def test_a_transcript_that_contains_a_place_of_the_prompt_does_not_fill_it():
    chat = Writes([Completion("x")])
    log = Conversation("a", intent="the goal").say("what is {goal} and {end}?").say("{transcript}")
    PromptedUser(chat).reply(log)
    text = chat.asked[0][0][0]["content"]
    assert "what is {goal} and {end}?" in text and text.count("the goal") == 1


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
    assert Human(lambda conversation: None).reply(Conversation()).stop == "end"
