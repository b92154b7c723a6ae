"""`userlm chat`: what is typed is said or is a command, and what was said is kept."""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from flat import flat

from userlm import commands, loading
from userlm.bots import Bot
from userlm.rows import read_conversations
from userlm.text import INTENT_PREFIX
from userlm.thought import SpeechOnly
from userlm.types import Completion, Conversation, ModelError, Reply
from userlm.users import PromptedUser


class Lines:
    """Says numbered lines in either role; ends where it is told to."""

    def __init__(self, *ends: int) -> None:
        self.calls: list[Conversation] = []
        self.ends = ends

    def reply(self, conversation: Conversation) -> Reply:
        self.calls.append(conversation)
        n = len(self.calls)
        if n in self.ends:
            return Reply(stop="end", meta={"p_end": 0.75})
        return Reply(f"line {n}", meta={"p_end": n / 100})


@pytest.fixture
def talk(monkeypatch, tmp_path):
    """Hold a chat with a speaker; return what was shown, with its record as `talk.record`."""
    monkeypatch.chdir(tmp_path)

    def hold(other, *typed: str, role: str = "assistant", **options) -> str:
        lines = iter(typed)

        def read(*_):
            for line in lines:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", read)
        for side in ("user", "assistant"):
            monkeypatch.setattr(loading, side, lambda *_, **__: other)
        given = {"user": "py:some:user", "assistant": "py:some:bot", "role": role}
        hold.record = commands.chat(flat(commands.Chat, **given, **options))
        return hold.shown()

    hold.shown = lambda: ""
    return hold


@pytest.fixture
def shown(talk, capfd):
    talk.shown = lambda: capfd.readouterr().err
    return talk


def said(talk) -> list[str]:
    return [turn["text"] for turn in talk.record["turns"]]


def test_a_chat_begins_with_who_plays_whom_the_intent_and_how_to_leave(shown):
    begin = " ".join(shown(Lines(), intent="plan a trip.").split())
    assert begin.startswith(
        "You are the assistant; the other side is py:some:user. The user's intent: "
        f"{INTENT_PREFIX}plan a trip. /help shows the commands. An empty line or /quit leaves."
    )
    begin = " ".join(shown(Lines(), role="user", intent="You want rice.").split())
    assert begin.startswith(
        "You are the user; the other side is py:some:bot. Your intent, which the assistant does "
        "not see: You want rice. /help"
    )


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_no_command_is_sent_and_two_slashes_say_a_text_with_one(role, shown):
    other = Lines()
    typed = ("/help", "/hlp me", "/etc/hosts", "/info", "/", "/intent")
    printed = shown(other, *typed, "//etc/hosts is full", "/quit", "hi", role=role)
    assert "/again" in printed and "/hlp is no command, so nothing was sent" in printed
    spoken = [text for text in said(shown) if not text.startswith("line")]
    assert spoken == ["/etc/hosts is full"]
    seen = {turn.text for call in other.calls for turn in call.turns}
    assert not seen.intersection(typed)


def test_another_turn_of_the_other_side_takes_the_place_of_its_last_one(shown):
    printed = shown(Lines(), "/again", "hi", "/again", role="user")
    assert said(shown) == ["hi", "line 2"]
    assert "has not said anything yet" in printed
    other = Lines()
    shown(other, "a", "/again", "b")
    assert said(shown) == ["line 1", "a", "line 3", "b", "line 4"]
    assert [turn.text for turn in other.calls[2].turns] == ["line 1", "a"]


def test_a_model_is_sampled_again_with_another_seed(talk):
    seeds = []

    class Chat:
        def chat(self, messages, sampling):
            seeds.append(sampling.seed)
            return Completion("hi")

    talk(PromptedUser(Chat()), "/again", "/again", intent="You want rice.")
    assert len(set(seeds)) == len(seeds) == 3


def test_an_end_of_the_other_side_can_be_sampled_again_and_counts_no_more(talk):
    talk(Lines(2), "a", "/again", "b", "/quit")
    assert said(talk) == ["line 1", "a", "line 3", "b", "line 4"]
    assert not {"stop", "ended", "meta"}.intersection(talk.record)
    talk(Lines(2), "a", "not said")
    assert said(talk) == ["line 1", "a"] and talk.record["ended"]


def test_the_limit_of_turns_holds_when_a_turn_is_sampled_again(shown):
    printed = shown(Lines(), "a", "/again", "/again", "b", max_turns=1)
    assert said(shown) == ["line 1", "a"] and shown.record["stop"] == "max_turns"
    assert "the user reached the limit of 1 turn\n" in printed
    printed = shown(Lines(), "a", "/again", "b", role="user", max_turns=1)
    assert said(shown) == ["a", "line 2"] and "you reached the limit" in printed


def test_a_failed_answer_can_be_asked_for_again(talk, tmp_path):
    class Fails(Lines):
        def reply(self, conversation):
            if not self.calls:
                self.calls.append(conversation)
                raise ModelError("the server is away")
            return super().reply(conversation)

    talk(Fails(), "hi", "/again", role="user")
    assert said(talk) == ["hi", "line 2"] and talk.record["stop"] == "end"
    with pytest.raises(ModelError, match="assistant could not answer: the server is"):
        talk(Fails(), "hi", role="user")


def test_a_bot_that_keeps_state_answers_again_in_a_new_session(shown):
    heard = defaultdict(list)

    def bot(asked):
        heard[asked.session].append(asked.text)
        return f"{len(heard[asked.session])} heard"

    speaker = SpeechOnly(Bot("py:some:bot", bot))  # as `loading.assistant` returns it
    printed = shown(speaker, "hi", "/again", "bye", role="user")
    assert said(shown) == ["hi", "1 heard", "bye", "2 heard"]
    assert [*heard.values()] == [["hi"], ["hi", "bye"]]
    assert "a new session" in printed


def test_another_intent_begins_another_conversation_and_the_one_before_is_saved(talk):
    other = Lines()
    save = Path("c.jsonl")
    talk(other, "a", "/intent cook rice.", "b", intent="You want tea.", save=save)
    first, second = read_conversations(save)
    assert (first.intent, second.intent) == (
        "You want tea.",
        INTENT_PREFIX + "cook rice.",
    )
    assert [turn.text for turn in first.turns] == ["line 1", "a", "line 2"]
    assert [turn.text for turn in second.turns] == ["line 3", "b", "line 4"]
    assert other.calls[0].id != other.calls[2].id and not other.calls[2].turns


def test_a_profile_is_no_intent_and_gets_no_opening_words(monkeypatch, talk):
    monkeypatch.setattr(sys.modules["userlm.commands.chat"], "EMBEDDED_USER", "x")
    other = Lines()
    monkeypatch.setattr(loading, "user", lambda *_, **__: other)
    talk(other, "/intent cook rice.", role="user")
    assert talk.record["intent"] == INTENT_PREFIX + "cook rice."
    options = flat(commands.Chat, user="profile:some/model", intent="cook rice.")
    assert commands.chat(options)["intent"] == "cook rice."


def test_a_persona_is_no_goal_and_a_trained_user_gets_it_with_a_note(
    monkeypatch, capfd
):
    monkeypatch.setattr(loading, "user", lambda *_, **__: Lines())
    monkeypatch.setattr("builtins.input", lambda *_: "/quit")
    options = flat(commands.Chat, user="trained:some/model", intent="She is a nurse.")
    assert commands.chat(options)["intent"] == "She is a nurse."
    assert "the intent does not begin as in training" in capfd.readouterr().err


def test_only_a_user_who_leaves_ends_the_conversation(shown):
    assert "you left the conversation" in shown(Lines(), "a", "/quit")
    assert "stop" not in shown.record
    assert "you ended the conversation" in shown(Lines(), "a", "/quit", role="user")
    assert shown.record["stop"] == "end"


def test_a_chat_that_cannot_be_saved_is_shown_as_its_line(talk, capfd):
    save = Path("gone/c.jsonl")
    save.parent.mkdir()

    class Removing:
        def reply(self, conversation):
            shutil.rmtree(save.parent)
            return Reply("hello")

    with pytest.raises(FileNotFoundError):
        talk(Removing(), "hi", save=save, role="user")
    printed = "".join(capfd.readouterr())
    assert '"text":"hi"' in printed and '"text":"hello"' in printed


def test_a_chat_is_never_saved_through_a_link(shown, tmp_path):
    Path("chat.jsonl").symlink_to(tmp_path / "other")
    assert "chat.jsonl is a link, which is not followed" in shown(Lines(), "/save", "a")
    assert not (tmp_path / "other").exists()


def test_a_chat_can_be_saved_once_it_is_worth_it_and_says_where(shown, tmp_path):
    typed = ("/save no/such.jsonl", "/save c.txt", "/save ~nobody.jsonl", "/save", "a")
    printed = " ".join(shown(Lines(), *typed).split())
    assert "~nobody.jsonl: there is no such place; write the full path" in printed
    assert "no/such.jsonl: No such file or directory" in printed
    assert "c.txt: conversations are saved as lines of a file; give one that" in printed
    assert "will be saved in chat.jsonl when you leave" in printed
    assert printed.endswith("saved in chat.jsonl (3 turns)")
    [kept] = read_conversations(tmp_path / "chat.jsonl")
    assert len(kept.turns) == 3
    assert shown(Lines(), "a").endswith(
        "not saved (3 turns); --save FILE or /save does that\n"
    )


def test_a_chat_without_a_turn_leaves_no_line(talk):
    talk(Lines(), "/quit", role="user", save=Path("c.jsonl"))
    assert Path("c.jsonl").read_text() == ""


def test_details_are_those_of_the_other_side_and_of_its_end(shown):
    assert '{"p_end":0.01}' in shown(Lines(), "/info")
    assert '{"p_end":0.75}' in shown(Lines(2), "a", "/info")
    assert "there are no details" in shown(Lines(), "/info", role="user")


def test_hostile_text_of_either_side_reaches_no_terminal_raw(shown):
    hostile = "\x1b]0;title\x07\x1b[2J"

    class Hostile:
        def reply(self, conversation):
            return Reply(hostile, "end", {"p_end": hostile})

    typed = (f"/{hostile}", f"/intent {hostile}", f"/save {hostile}", "/info", "a")
    printed = shown(Hostile(), *typed, intent=hostile)
    assert "⟨U+001B⟩[2J" in printed
    assert not re.search("[\x00-\x09\x0b-\x1f]", printed)


def test_a_chat_without_standard_input_is_left_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    talk = commands.chat(flat(commands.Chat, role="user", assistant="clarifier"))
    assert talk["turns"] == []
