"""Prompts of prompted users: those in the box, and those that people bring."""

from pathlib import Path

import pytest

from userlm import commands, inputs, loading
from userlm.address import parse
from userlm.commands.options import User, UserSettings
from userlm.rows import write_conversations
from userlm.text import END_TOKEN, INTENT_PREFIX
from userlm.types import Conversation, InputError, Turn
from userlm.users import NOTHING_SAID, PromptedUser, swapped_messages, user_prompt

OWN = "Want {goal}. Said {transcript}. Stop with {end}."


def saved(folder: Path, text: str) -> str:
    path = folder / "mine.md"
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(prompt: str | None, user: str = "prompted:script:answers.txt") -> str | None:
    return loading.prompt_text(prompt, parse(user))


def test_a_prompt_of_ones_own_has_goal_transcript_and_end_in_all_turns(tmp_path):
    text = read(saved(tmp_path, OWN + "\n"))
    goal = f"{INTENT_PREFIX}boil an egg."
    first = user_prompt(goal, (), text)
    assert first == f"Want boil an egg.. Said {NOTHING_SAID}. Stop with {END_TOKEN}."
    said = [Turn("user", "hi {goal}"), Turn("assistant", "{end}?")]
    later = user_prompt(goal, said, text)
    # What was said is not filled in itself.
    assert "Said <user>: hi {goal}\n<assistant>: {end}?. Stop" in later


def test_without_an_intent_the_paragraph_with_the_goal_is_left_out():
    text = "Be brief.\n\nWant {goal}.\n\nSaid {transcript}. Stop with {end}."
    shown = user_prompt(None, (), text)
    assert shown == f"Be brief.\n\nSaid {NOTHING_SAID}. Stop with {END_TOKEN}."


def test_a_prompt_for_swapped_roles_is_the_system_message(tmp_path):
    path = saved(tmp_path, "Want {goal}. Stop with {end}.")
    text = read(path, "swapped:script:answers.txt")
    system, *others = swapped_messages("tea", [Turn("user", "hi")], text)
    assert system["content"] == f"Want tea. Stop with {END_TOKEN}."
    assert [message["role"] for message in others] == ["user", "assistant"]


def test_the_plain_prompt_is_reached_by_its_name_and_is_short():
    text = read("plain")
    assert text and len(text) < 400
    shown = user_prompt("boil an egg", [Turn("user", "hello")], text)
    assert "boil an egg" in shown and "<user>: hello" in shown and END_TOKEN in shown


@pytest.mark.parametrize("place", ["goal", "transcript", "end"])
def test_a_missing_place_is_named_with_its_file(place, tmp_path):
    path = saved(tmp_path, OWN.replace(f"{{{place}}}", "something"))
    with pytest.raises(
        InputError, match=rf"mine\.md: the place {{{place}}} is missing"
    ):
        read(path)


def test_what_is_no_prompt_for_a_user_is_refused(tmp_path):
    path = saved(tmp_path, OWN + " {mood}")
    with pytest.raises(InputError, match=r"mine\.md: {mood} is no place of a prompt"):
        read(path)
    with pytest.raises(
        InputError, match=r"plain: {transcript} is no place .* swapped:"
    ):
        read("plain", "swapped:x")
    with pytest.raises(InputError, match="trained:x has no prompt"):
        read("plain", "trained:x")
    with pytest.raises(InputError, match=r"plane: cannot read this prompt .* or plain"):
        read("plane")
    (tmp_path / "mine.md").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"mine\.md: cannot read this prompt"):
        read(path)


def test_every_verb_with_a_user_takes_a_prompt(tmp_path):
    script = tmp_path / "answers.txt"
    script.write_text("hello")
    user = User(f"prompted:script:{script}", UserSettings(prompt=saved(tmp_path, OWN)))
    speaker = user.load()
    assert isinstance(speaker, PromptedUser) and speaker.prompt == OWN
    assert user.files == [script, tmp_path / "mine.md"]
    assert inputs.files(user.user, prompt="plain") == [script]


def test_a_changed_prompt_is_noticed_when_a_run_is_resumed(tmp_path):
    log = Conversation("a", (Turn("user", "hi"),), f"{INTENT_PREFIX}chat.")
    write_conversations(tmp_path / "logs.jsonl", [log])
    (tmp_path / "answers.txt").write_text("hello")
    path = saved(tmp_path, OWN)
    user = User(
        f"prompted:script:{tmp_path / 'answers.txt'}", UserSettings(prompt=path)
    )
    asked = commands.Respond(user, tmp_path / "logs.jsonl", tmp_path / "run")
    assert commands.respond(asked)["conversations"] == 1
    saved(tmp_path, f"{OWN} Be kind.")
    with pytest.raises(InputError, match=r"mine\.md changed"):
        commands.respond(asked)
