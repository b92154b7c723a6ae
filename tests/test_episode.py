"""A conversation from the assistant's side, and what trainers make of it."""

import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType

import pytest

import userlm
from userlm.bridges.trl import SimulatedUser
from userlm.episode import TRIES, Episode
from userlm.grading import Grader
from userlm.simulate import converse
from userlm.types import (
    Conversation,
    Fact,
    InputError,
    ModelError,
    NumberCheck,
    Reply,
    RulesCheck,
    Task,
    ToolCalled,
)
from userlm.users import with_sampling

FACTS = (Fact("There are 4 boxes."), Fact("Each holds 3 eggs."))
TASK = Task("eggs", "You are a user ...", FACTS, NumberCheck("12"))
END = Reply(stop="end")


@dataclass
class Says:
    """Says its lines in order, and keeps what it was asked about."""

    lines: list
    asked: list = field(default_factory=list)

    def reply(self, conversation):
        self.asked.append(conversation)
        line = self.lines[len(conversation.user_turns)]
        if isinstance(line, Exception):
            raise line
        return line if isinstance(line, Reply) else Reply(line)


def begun(*lines, task=TASK, **options) -> Episode:
    episode = Episode(Says(list(lines)), task, **options)
    assert episode.reset()
    return episode


def test_an_episode_gives_the_users_turns_and_one_reward_at_the_end():
    episode = begun("There are 4 boxes.", "3 eggs in each.", END)
    assert episode.facts_told == [True, False]
    assert episode.step("How many in each?") == ("3 eggs in each.", False, 0.0)
    assert episode.facts_told == [True, True]
    assert episode.step("Let me see.") == ("", True, 0.0)
    assert (episode.conversation.stop, episode.conversation.ended) == ("end", True)


def test_the_right_answer_ends_it_with_reward_1():
    episode = begun("hi", "more", "even more")
    assert episode.step("The answer is 11.") == ("more", False, 0.0)
    assert episode.step("The answer is 12.") == ("", True, 1.0)
    assert episode.conversation.stop == "solved"


def test_it_ends_as_the_conversation_loop_does():
    user = Says(["a", "b", "c", "d"])
    episode = Episode(user, TASK, max_turns=3)
    said = [episode.reset()]
    while not episode.done:
        text, _, _ = episode.step(f"re {said[-1]}")
        said += [text] if text else []
    until = Grader().until(TASK)
    echo = lambda talk: Reply(f"re {talk.turns[-1].text}")  # noqa: E731
    assistant = type("Echo", (), {"reply": staticmethod(echo)})()
    looped = converse(user, assistant, user.asked[0], 3, until)
    assert episode.conversation == looped
    assert (said, looped.stop) == (["a", "b", "c"], "max_turns")


def test_last_words_of_the_user_come_with_the_end():
    episode = begun("hi", Reply("thanks, bye", "end"))
    assert episode.step("hello") == ("thanks, bye", True, 0.0)


def test_a_step_after_the_end_or_before_the_first_turn_is_an_error():
    with pytest.raises(InputError, match="not begun"):
        Episode(Says(["hi"]), TASK).step("hello")
    episode = begun("hi", END)
    episode.step("hello")
    with pytest.raises(InputError, match=r"over \(end\)"):
        episode.step("hello?")
    assert episode.reset() == "hi"


def test_a_failing_user_has_no_reward_and_a_wordless_answer_has_one():
    failing = begun("hi", ModelError("no server"))
    assert failing.step("hello") == ("", True, None)
    for nothing in ("", " \n", "<think>what do they want</think>"):
        episode = begun("hi", "more")
        assert episode.step(nothing) == ("", True, 0.0)


def test_a_user_without_a_first_turn_is_asked_again_and_then_is_an_error():
    class Late(Says):
        def reply(self, conversation):
            return super().reply(conversation) if "/2" in conversation.id else END

    episode = Episode(Late(["hi"]), TASK)
    assert episode.reset(5) == "hi"
    assert episode.conversation.id == "eggs#5/2"
    never = Says([Reply("bye", "end")])
    with pytest.raises(ModelError, match="ended the conversation eggs#0"):
        Episode(never, TASK).reset()
    assert len(never.asked) == TRIES
    with pytest.raises(ModelError, match="no server"):
        Episode(Says([ModelError("no server")]), TASK).reset()


def test_thoughts_of_the_assistant_are_not_heard_and_solve_nothing():
    episode = begun("hi", "more")
    episode.step("<think>it is 12</think>Tell me more.")
    assert episode.messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Tell me more."},
        {"role": "user", "content": "more"},
    ]
    assert episode.conversation.turns[1].meta["thought"] == "it is 12"
    assert not episode.done


def test_calls_of_tools_reach_the_check():
    task = Task("t", "", check=RulesCheck((ToolCalled("book"),)))
    episode = begun("hi", "more", task=task)
    calls = [{"name": "book", "arguments": {}}]
    assert episode.step(Reply("Done.", meta={"tool_calls": calls}))[1:] == (True, 1.0)


def test_a_reward_of_ones_own_sees_the_whole_conversation():
    def questions(talk: Conversation) -> float:
        answers = [turn.text for turn in talk.turns if turn.role == "assistant"]
        return sum(text.endswith("?") for text in answers) / len(answers)

    task = Task("chat", "You are a user ...")
    episode = begun("hi", "more", "more", END, task=task, reward=questions)
    assert [episode.step(text)[2] for text in ("what?", "why?", "ok")] == [0, 0, 2 / 3]
    with pytest.raises(InputError, match="no check"):
        Episode(Says([]), task)


@pytest.mark.slow
def test_episodes_share_a_user_and_a_seed_gives_the_same_turns():
    user = with_sampling(userlm.user("trained:userlm-tiny", seed=1), max_tokens=16)
    one, two = Episode(user, TASK), Episode(user, TASK)

    def said(episode, seed):
        return episode.reset(seed), episode.step("How can I help?")

    first = said(one, 3)
    assert said(two, 3) == first == said(one, 3)
    assert len({one.reset(seed) for seed in range(4)}) > 1


# --- the bridges ----------------------------------------------------------------------------------


def test_trl_speaks_through_a_tool_and_is_scored_when_it_stops():
    user = Says(["hi", "3 in each", END])
    environment = SimulatedUser(lambda name: Episode(user, {"eggs": TASK}[name]))
    assert environment.reset(task="eggs", seed=1, prompt=[]) == "hi"
    assert user.asked[-1].id == "eggs#1"
    assert environment.say("How many?") == "3 in each"
    assert environment.get_reward() == 0.0
    assert environment.say("The answer is 12.") == "(The conversation is over.)"
    assert environment.get_reward() == 1.0
    with pytest.raises(InputError, match="over"):
        environment.say("Anything else?")


@pytest.fixture
def skyrl(monkeypatch):
    """The bridge, with a stand-in for the base class of the package."""

    class BaseTextEnv:
        def __init__(self):
            self.turns = 0
            self.max_turns = 1

    names = ("skyrl_gym", "skyrl_gym.envs", "skyrl_gym.envs.base_text_env")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].BaseTextEnv = BaseTextEnv
    monkeypatch.delitem(sys.modules, "userlm.bridges.skyrl", raising=False)
    yield importlib.import_module("userlm.bridges.skyrl")
    sys.modules.pop("userlm.bridges.skyrl", None)


def test_skyrl_gets_observations_a_reward_and_the_reason_of_the_end(skyrl):
    user = Says(["hi", "3 in each"])
    environment = skyrl.UserEnv(
        extras={"task": "eggs", "seed": 2}, episode=lambda name: Episode(user, TASK)
    )
    system = {"role": "system", "content": "Help."}
    first = {"role": "user", "content": "hi"}
    assert environment.init([system]) == ([system, first], {})
    assert user.asked[-1].id == "eggs#2"
    assert environment.step("How many?") == {
        "observations": [{"role": "user", "content": "3 in each"}],
        "reward": 0.0,
        "done": False,
        "metadata": {"stop": None},
    }
    over = environment.step("The answer is 12.")
    assert (over["observations"], over["reward"], over["done"]) == ([], 1.0, True)
    assert over["metadata"] == {"stop": "solved"}


def test_skyrl_takes_no_prompt_that_speaks_before_the_user_and_no_unknown_reward(skyrl):
    user = Says(["hi", ModelError("no server")])
    environment = skyrl.UserEnv(
        extras={"task": "eggs"}, episode=lambda name: Episode(user, TASK)
    )
    with pytest.raises(InputError, match="speaks first"):
        environment.init([{"role": "user", "content": "hello"}])
    environment.init([])
    with pytest.raises(ModelError, match="no server"):
        environment.step("hello")
