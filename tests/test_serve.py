"""A user as a server, seen by the real `openai` client and by callers who are worse."""

import http.client
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import openai
import pytest
from flat import flat
from typer.testing import CliRunner

from userlm import Conversation, InputError, ModelError, Reply, Turn, cli, loading
from userlm.assistants import Script
from userlm.guard import Guard
from userlm.serving import app as server_module
from userlm.serving import messages as messages_module
from userlm.serving.app import create_app, running
from userlm.serving.intents import find_intent
from userlm.serving.messages import find_roles, turn_request
from userlm.serving.schema import Message, RequestError, ServerConfig, parse_request
from userlm.text import INTENT_PREFIX
from userlm.types import Completion, Sampling
from userlm.users import PromptedUser, ReplayUser, TrainedUser

command = importlib.import_module("userlm.commands.serve")

ROME = INTENT_PREFIX + "plan a trip to Rome."
PAGE = (Path(__file__).resolve().parent.parent / "docs" / "serving.md").read_text(
    encoding="utf-8"
)


class Served:
    """A running server, and ways to call it."""

    def __init__(self, url, served):
        self.url, self.pool = url, served.state.pool
        self.port = int(url.rpartition(":")[2].partition("/")[0])
        self._client = self.client()

    def client(self, **options):
        return openai.OpenAI(
            **{"base_url": self.url, "api_key": "none", "max_retries": 0, **options}
        )

    def ask(
        self, messages=({"role": "system", "content": ROME},), client=None, **options
    ):
        create = (client or self._client).chat.completions.create
        return create(**{"model": "user", "messages": list(messages), **options})

    def post(self, body, path="/v1/chat/completions", method="POST", **headers):
        """Status, headers and body of any request at all."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(
            method, path, data, {"Content-Type": "application/json", **headers}
        )
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, answer.headers, text


@contextmanager
def serving(user, **config):
    served = create_app(user, ServerConfig(**config))
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        running(served, listening),
    ):
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", served)


def trained(tiny, max_tokens=8, **options):
    return TrainedUser(
        tiny,
        tiny.template(),
        tiny.context_length,
        Sampling(max_tokens=max_tokens),
        **options,
    )


@pytest.fixture(scope="module")
def script():
    with serving(Script(["plan a trip please", "in may"])) as server:
        yield server


@pytest.fixture(scope="module")
def small(tiny):
    with serving(trained(tiny), batch=4) as server:
        yield server


def say(*texts, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def streamed(chunks):
    """Content, the last chunk that has a choice, and all chunks."""
    chunks = list(chunks)
    content = "".join(
        chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
    )
    return content, [chunk for chunk in chunks if chunk.choices][-1], chunks


def read_messages(messages, roles, stop_phrase):
    """The system text, the turns, the form found and the notes."""
    parsed = [Message.model_validate(message) for message in messages]
    found = find_roles(parsed, roles)
    system, notes = messages_module.read_system(parsed)
    turns, more = messages_module.read_turns(parsed, found, (stop_phrase or "",))
    return system, turns, found, notes + more


def read(body, user, config):
    """What a request asks for."""
    return turn_request(parse_request(body, config.model_name), user, config)


# --- conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_holds_a_conversation_and_sees_its_end(script, stream, swapped):
    mine, theirs = ("user", "assistant") if swapped else ("assistant", "user")
    messages = [{"role": "system", "content": ROME}]
    said = []
    for _ in range(5):
        if stream:
            content, last, _ = streamed(script.ask(messages, stream=True))
            ended, known = last.userlm["ended"], last.userlm
        else:
            answer = script.ask(messages)
            content, ended, known = (
                answer.choices[0].message.content,
                answer.userlm["ended"],
                answer.userlm,
            )
            assert answer.choices[0].userlm["ended"] is ended
        said.append((content, ended))
        assert known["roles"] == ("swapped" if swapped and len(messages) > 1 else "log")
        assert known["intent"] == ROME
        if ended:
            break
        messages += [
            {"role": theirs, "content": content},
            {"role": mine, "content": "And then?"},
        ]
    last = "[end]" if swapped else ""
    assert said == [("plan a trip please", False), ("in may", False), (last, True)]


def test_a_conversation_is_the_same_to_the_user_whichever_way_its_roles_are_held(small):
    texts = ("how do i sort a list", "Use sorted().", "thanks", "Gladly.")
    log = small.ask(say(*texts), seed=3)
    swapped = small.ask(say(*texts, first="assistant"), seed=3)
    assert log.userlm["roles"] == "log" and swapped.userlm["roles"] == "swapped"
    assert log.choices[0].message.content == swapped.choices[0].message.content
    assert log.userlm["p_end"] == swapped.userlm["p_end"] > 0


def test_a_greeting_may_come_first_in_either_form():
    for messages in (say("Hi!", first="assistant"), say("Hi!")):
        _, turns, _, _ = read_messages(messages, "auto", None)
        assert turns == [Turn("assistant", "Hi!")]


def test_the_same_seed_draws_the_same_and_the_first_choice_whatever_their_number(small):
    one, three, again = (
        small.ask(seed=5),
        small.ask(seed=5, n=3),
        small.ask(seed=5, n=3),
    )
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert texts[0] == one.choices[0].message.content
    assert len(set(texts)) == 3
    free = {small.ask().choices[0].message.content for _ in range(3)}
    assert len(free) > 1
    known = small.ask()
    assert small.ask(seed=known.userlm["seed"]).choices == known.choices


def test_the_seed_of_the_server_is_that_of_requests_without(tiny):
    with serving(trained(tiny), seed=5) as server:
        assert (
            server.ask().choices
            == server.ask(seed=5).choices
            != server.ask(seed=6).choices
        )


def test_temperature_and_top_p_reach_the_draw(small):
    greedy = {
        small.ask(temperature=0, seed=seed).choices[0].message.content
        for seed in range(3)
    }
    narrow = {
        small.ask(top_p=0, seed=seed).choices[0].message.content for seed in range(3)
    }
    assert greedy == narrow and len(greedy) == 1


def test_a_turn_that_is_cut_at_max_tokens_says_length_and_usage_counts(small):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = small.ask(seed=1, **{name: 2})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2 and answer.usage.prompt_tokens > 10
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2
    three = small.ask(seed=1, max_tokens=2, n=3).usage
    assert (
        three.completion_tokens == 6
        and three.prompt_tokens == 3 * answer.usage.prompt_tokens
    )
    assert not answer.userlm["notes"]


def test_more_tokens_than_leave_room_for_the_conversation_are_not_given_and_it_is_noted(
    tiny,
):
    asked = read(
        {
            "model": "user",
            "messages": say("a", "b"),
            "max_tokens": 10**6,
            "userlm": {"intent": ROME},
        },
        trained(tiny),
        ServerConfig(),
    )
    assert asked.max_tokens == max(8, tiny.context_length // 4)
    assert any("max_tokens" in note for note in asked.notes)


def test_stop_texts_cut_the_words(script):
    answer = script.ask(stop=["please", " trip"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "plan a",
        "stop",
    )
    assert (
        script.ask(stop="nothing like it").choices[0].message.content
        == "plan a trip please"
    )


def test_chunks_are_those_of_the_api_with_the_usage_last_when_asked_for(small):
    whole = small.ask(seed=4, n=2)
    _, last, chunks = streamed(
        small.ask(seed=4, n=2, stream=True, stream_options={"include_usage": True})
    )
    for i in (0, 1):
        mine = [
            chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == i
        ]
        assert [choice.delta.role for choice in mine] == ["assistant", None, None]
        assert mine[1].delta.content == whole.choices[i].message.content
        assert [choice.finish_reason for choice in mine] == [
            None,
            None,
            whole.choices[i].finish_reason,
        ]
        assert mine[-1].userlm == whole.choices[i].userlm
    assert last.userlm == whole.userlm
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    _, _, without = streamed(small.ask(seed=4, n=2, stream=True))
    assert len(without) == len(chunks) - 1


def test_no_answer_waits_for_a_receipt_of_its_first_half(script):
    """40 ms each, on a connection that is kept, where the socket collects small writes."""

    def seconds():
        begun = time.perf_counter()
        script.ask()
        return time.perf_counter() - begun

    # Were it to wait, none of them would be so fast; on a busy machine one is, sooner or later.
    assert any(seconds() < 0.03 for _ in range(200))


def test_words_travel_as_they_are_and_no_client_takes_them_for_the_end_of_a_line():
    odd = (
        "two\nlines\r\n, \u2028 a separator, \x85, \x0b, 訳して 🙂 \ud83d, data: [DONE]"
    )
    with serving(Script([odd])) as server:
        whole = odd.replace("\ud83d", "\ufffd")
        assert server.ask().choices[0].message.content == whole
        assert streamed(server.ask(stream=True))[0] == whole
        _, _, raw = server.post(
            {"model": "user", "messages": [{"role": "system", "content": "x"}]}
        )
        assert "訳して" in raw and not {"\u2028", "\x85"} & set(raw)


class Leaves:
    """Says goodbye and leaves at once, or without a word after two turns."""

    def reply(self, conversation):
        return (
            Reply(stop="end")
            if conversation.turns
            else Reply("never mind, bye", "end", {"p_end": 0.75})
        )


def test_a_leaving_user_says_the_stop_phrase_after_the_last_words_or_alone():
    with serving(Leaves(), stop_phrase="[end]") as server:
        words, alone = server.ask(), server.ask(say("hi", "Hello!"))
        assert words.choices[0].message.content == "never mind, bye\n[end]"
        assert (words.userlm["ended"], words.userlm["p_end"], words.userlm["stop"]) == (
            True,
            0.75,
            "end",
        )
        assert (alone.choices[0].message.content, alone.userlm["p_end"]) == (
            "[end]",
            None,
        )
        assert streamed(server.ask(stream=True))[0] == "never mind, bye\n[end]"
    with serving(Leaves()) as server:
        assert server.ask().choices[0].message.content == "never mind, bye"
        assert server.ask(say("hi", "Hello!")).choices[0].message.content == ""


def test_a_user_who_says_the_stop_phrase_without_leaving_has_not_left_and_it_is_noted():
    with serving(Script(["what does [end] mean?"]), stop_phrase="[end]") as server:
        answer = server.ask()
        assert not answer.userlm["ended"] and "choices[0]" in answer.userlm["notes"][-1]


@pytest.mark.parametrize("last", ["", " \n", "[end]", "thanks\n[end]"])
def test_nobody_is_there_to_go_on_after_the_end(last):
    with pytest.raises(RequestError) as refused:
        read_messages(say("hi", "Hello!", last, "Bye."), "auto", "[end]")
    assert (refused.value.code, refused.value.param) == (
        "conversation_over",
        "messages[2].content",
    )
    assert "messages[2]" in str(refused.value) and "--guard no-end" in str(
        refused.value
    )


def test_p_end_above_a_threshold_ends_the_conversation_of_a_model(tiny):
    user = replace(trained(tiny), sampling=Sampling(max_tokens=8, end_threshold=1e-9))
    with serving(user) as server:
        answer = server.ask()
    assert answer.userlm["ended"] and answer.choices[0].message.content == ""
    assert 1e-9 < answer.userlm["p_end"] < 0.1


def test_what_the_guard_did_is_told(tiny):
    long = trained(tiny, guard=Guard(max_words=0, tries=3))
    with serving(long) as server:
        kept = server.ask(seed=1)
    assert kept.userlm["rejected"] == 2 and kept.userlm["violates"] == ["too long"]
    assert kept.choices[0].finish_reason == "length"
    with serving(
        replace(long, guard=Guard(max_words=0, tries=3, exhausted="stop"))
    ) as server:
        none = server.ask(seed=1)
    assert (none.userlm["rejected"], none.userlm["stop"], none.userlm["ended"]) == (
        3,
        "guard",
        False,
    )
    assert (none.choices[0].message.content, none.choices[0].finish_reason) == (
        "",
        "content_filter",
    )


# --- roles and intents ----------------------------------------------------------------------------


def test_roles_that_are_set_must_fit_and_the_error_says_what_to_do(script):
    log, swapped = say("hi", "Hello!"), say("hi", "Hello!", first="assistant")
    assert (
        script.ask(log, extra_body={"userlm": {"roles": "log"}}).userlm["roles"]
        == "log"
    )
    assert (
        script.ask(swapped, extra_body={"userlm": {"roles": "swapped"}}).userlm["roles"]
        == "swapped"
    )
    for messages, roles, other in (
        (log, "swapped", "log"),
        (swapped, "log", "swapped"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            script.ask(messages, extra_body={"userlm": {"roles": roles}})
        assert error.value.param == "messages[1].role"
        assert "messages[1]" in str(
            error.value
        ) and f"userlm.roles to '{other}'" in str(error.value)
    with serving(Script(["x"]), roles="swapped") as server:
        with pytest.raises(openai.BadRequestError, match="simulated user"):
            server.ask(log)
        assert (
            server.ask(log, extra_body={"userlm": {"roles": "log"}}).userlm["roles"]
            == "log"
        )


def test_neighbours_of_one_side_are_joined_and_it_is_noted():
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "anyone?"},
        *say("", first="assistant"),
    ]
    system, turns, roles, notes = read_messages(messages, "auto", None)
    assert (system, roles) == ("", "log")
    assert turns == [Turn("user", "hi\n\nanyone?"), Turn("assistant", "")]
    assert [note.split()[0] for note in notes] == ["messages[1]", "messages[2]"]


def test_of_thousands_of_notes_on_messages_the_first_are_given():
    messages = [*say("a", "b")[:1] * 3_000, *say("b", first="assistant")]
    turn = read({"model": "user", "messages": messages}, Script(["hi"]), ServerConfig())
    assert "2,899 more notes on messages are left out" in turn.notes
    assert len(turn.notes) < 110


IMAGE = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="},
}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}


@pytest.mark.parametrize(
    ("message", "said", "left_out"),
    [
        ({"content": "Here."}, "Here.", 0),
        ({"content": ["Here."]}, "Here.", 0),
        ({"content": [{"type": "text", "text": "Here."}, IMAGE, SOUND]}, "Here.", 2),
        ({"content": [{"type": "output_text", "text": "Here."}]}, "Here.", 0),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": "Be kind.", "signature": "c2ln"},
                    {"type": "text", "text": "Here."},
                    {"type": "tool_use", "id": "t1", "name": "search", "input": {}},
                    {"type": "text", "text": "And there."},
                ]
            },
            "Here.\n\nAnd there.",
            2,
        ),
        ({"content": [{"type": "refusal", "refusal": "I cannot."}]}, "I cannot.", 0),
        ({"content": None, "refusal": "I cannot.", "audio": None}, "I cannot.", 0),
        ({"content": "", "refusal": "I cannot."}, "I cannot.", 0),
        ({"content": [], "refusal": "I cannot."}, "I cannot.", 0),
        ({"content": [IMAGE]}, "", 1),
        ({"content": None, "tool_calls": None}, "", 0),
    ],
)
def test_what_was_shown_is_the_turn(message, said, left_out):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "bob"},
        {"role": "assistant", **message},
    ]
    _, turns, _, notes = read_messages(messages, "auto", None)
    assert turns == [Turn("user", "hi"), Turn("assistant", said)]
    skipped = [note for note in notes if "left out" in note]
    assert skipped == [
        f"messages[1]: parts that are not text were left out ({left_out})"
    ] * bool(left_out)


@pytest.mark.parametrize("swapped", [False, True], ids=["log", "swapped"])
def test_what_the_assistant_thought_is_left_out_and_noted(swapped):
    them, us = ("user", "assistant") if swapped else ("assistant", "user")
    messages = [
        {"role": us, "content": "why does it print </think> then"},
        {"role": them, "content": "<think>A tag.</think>It is a bug."},
    ]
    _, turns, _, notes = read_messages(messages, "auto", None)
    assert [turn.text for turn in turns] == [messages[0]["content"], "It is a bug."]
    assert notes == ["messages[1]: what the assistant thought was left out"]


LONG = "Play a customer. Be brief.\n\n"
ROME_ON_LINES = ROME.replace("age model", "age\n   model").replace(
    "trip to", "trip\nto"
)
FIX_A_BUG = INTENT_PREFIX + "fix e.g. a v2.5 bug."


@pytest.mark.parametrize(
    ("given", "system", "otherwise", "intent"),
    [
        ("mine", ROME, "other", "mine"),
        ("", ROME, "other", None),
        (None, ROME, "other", ROME),
        (None, "", "other", "other"),
        (None, "", None, None),
        (None, "Buy milk.", "other", "Buy milk."),
        (None, f"{LONG}Task: {ROME} Never say more.", None, ROME),
        (None, f"{LONG}{ROME}\nNever say more.", None, ROME),
        (None, f'{LONG}"{ROME}" is your task.', None, ROME),
        (None, f"{LONG}- {ROME[:-1]}\n- Be brief.", None, ROME[:-1]),
        (None, f"{LONG}{ROME[:-1]}\n\nbe brief.", None, ROME[:-1]),
        (None, LONG + ROME_ON_LINES, None, ROME),
        (None, f"{FIX_A_BUG} Go!", None, FIX_A_BUG),
        (None, INTENT_PREFIX + "meet J. Doe. Go!", None, INTENT_PREFIX + "meet J. Doe."),
        (None, INTENT_PREFIX + "go? Yes.", None, INTENT_PREFIX + "go?"),
    ],
)  # fmt: skip
def test_the_intent_is_found_in_a_long_system_message(given, system, otherwise, intent):
    assert find_intent(given, system, otherwise)[0] == intent


def test_an_intent_is_found_before_a_newline_and_a_hostile_text_takes_no_time():
    held = f"You play a customer.\n\n{INTENT_PREFIX}plan a trip to Rome\n"
    assert find_intent(None, held, None)[0] == f"{INTENT_PREFIX}plan a trip to Rome"
    begun = time.process_time()
    find_intent(None, f"{INTENT_PREFIX}x " * 2000 + "\n ", None)
    assert time.process_time() - begun < 2  # it was minutes


def test_under_another_name_a_server_of_this_machine_is_not_reached():
    with serving(Script(["hi"]), hosts=("127.0.0.1", "localhost", "::1")) as server:
        for host, status in (
            ("evil.example:80", 403),
            ("localhost:1", 200),
            ("[::1]:1", 200),
            ("127.0.0.1", 200),
        ):
            assert server.post(b"", "/v1/models", "GET", Host=host)[0] == status, host


def test_a_model_is_found_by_its_name_and_no_other():
    with serving(Script(["hi"]), model_name="a/b") as server:
        assert server.client().models.retrieve("a/b").id == "a/b"
        with pytest.raises(openai.NotFoundError, match="there is no model 'c'"):
            server.client().models.retrieve("c")


def test_a_model_that_failed_is_not_asked_again_by_the_client():
    class Fails:
        asked = 0

        def reply(self, conversation):
            self.asked += 1
            raise ModelError("down")

    user = Fails()
    with (
        serving(user) as server,
        pytest.raises(openai.InternalServerError, match="the model failed: down"),
    ):
        server.ask(client=server.client(max_retries=2))
    assert user.asked == 1


def test_what_is_not_used_of_a_system_message_is_noted():
    assert find_intent(None, ROME, None)[1] == []
    assert (
        "only the sentence with the intent was used"
        in find_intent(None, f"{LONG}{ROME}", None)[1][0]
    )
    assert "userlm.intent" in find_intent("mine", ROME, None)[1][0]
    assert "2 intents" in find_intent(None, f"{ROME} {INTENT_PREFIX}eat.", None)[1][0]
    assert "no intent" in find_intent(None, "", None)[1][0]


def test_a_text_far_beyond_the_trained_range_warns_and_says_how_to_send_the_intent(
    small, script, tiny
):
    long = "You are a customer of a shop. " * 11  # 77 words
    for server, warned in (
        (small, 1),
        (script, 0),
    ):
        # a script does not go by its intent
        for messages in (
            [{"role": "system", "content": long}],
            [{"role": "developer", "content": long}],
        ):
            notes = server.ask(messages).userlm["notes"]
            assert (
                sum("77 words" in note and INTENT_PREFIX in note for note in notes)
                == warned
            )
    short = small.ask(
        [{"role": "system", "content": long}], extra_body={"userlm": {"intent": ROME}}
    )
    assert short.userlm["intent"] == ROME and not any(
        "words" in note for note in short.userlm["notes"]
    )
    profiled = replace(
        trained(tiny),
        template=replace(tiny.template(), system_text="This is who you are: {}"),
    )
    body = {"model": "user", "messages": [{"role": "system", "content": long}]}
    assert read(body, profiled, ServerConfig()).notes == ()  # a profile is long


def test_a_prompted_user_must_know_what_it_is_after(tmp_path):
    class Chat:
        def chat(self, messages, sampling):
            return Completion(f"seen {len(messages)}, T {sampling.temperature}")

    with serving(PromptedUser(Chat(), swapped=True)) as server:
        with pytest.raises(openai.BadRequestError, match="send userlm"):
            server.ask(say("hi", "Hello!"))
        answer = server.ask(temperature=0.5)
        assert answer.choices[0].message.content == "seen 2, T 0.5"
        assert answer.usage is None and answer.userlm["ignored"] == []


def test_a_replayed_person_is_found_by_the_id_of_the_request():
    log = Conversation("c7").say("hi").say("Hello!").say("bye")
    with serving(ReplayUser({"c7": log})) as server:
        found = server.ask(say("hi", "Hello!"), extra_body={"userlm": {"id": "c7"}})
        assert found.choices[0].message.content == "bye"
        with pytest.raises(
            openai.InternalServerError, match="has no conversation"
        ) as error:
            server.ask(say("hi", "Hello!"))
        assert error.value.status_code == 503


TAU = "Play a customer.\n\n<scenario>\nYour tyre is flat.\n</scenario>\nBe brief."


@pytest.mark.parametrize(
    ("system", "intent"),
    [
        (TAU, "Your tyre is flat."),
        (f"<goal>Test the shop.</goal>\n{TAU}", "Your tyre is flat."),
        ("Play a customer. <Goal>A new tyre</Goal> <task>Ask.</task>", "A new tyre"),
        ("<task>Buy a tyre.</task>", "Buy a tyre."),
        ("<goal> </goal><task>Buy a tyre.", "<goal> </goal><task>Buy a tyre."),
        (f"<goal>{ROME} In May.</goal>", ROME),
    ],
)
def test_the_intent_is_the_scenario_goal_or_task_of_a_prompt(system, intent):
    found, notes = find_intent(None, system, None)
    assert found == intent
    assert intent in (system, ROME) or "of the system message" in " ".join(notes)


def test_a_million_open_tags_take_no_time():
    begun = time.process_time()
    find_intent(None, "<goal><task><scenario>" * 40_000, None)
    assert time.process_time() - begun < 2


def test_two_turns_of_the_user_in_a_row_are_a_warning_for_a_harness():
    two = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "My tyre is flat."},
        {"role": "assistant", "content": "Which wheel?"},
        {"role": "user", "content": "The front one."},
    ]
    _, _, roles, notes = read_messages(two, "auto", None)
    assert roles == "swapped" and notes[0].startswith("warning: messages[2]")
    assert "userlm.roles to 'log'" in notes[0]
    _, _, roles, notes = read_messages(two[1:3], "auto", None)
    assert roles == "log" and not notes[0].startswith("warning")


def test_the_temperature_that_the_server_was_started_with_wins(tiny, script):
    with serving(trained(tiny), temperature=0.9) as server:
        answer = server.ask(seed=1, temperature=0)
        [note] = [note for note in answer.userlm["notes"] if "temperature" in note]
        assert note == "temperature is 0.9, as the server was started with, and not 0"
        hot = server.ask(seed=1, temperature=0.9)
        assert hot.choices == answer.choices
        assert not any("temperature" in note for note in hot.userlm["notes"])
    assert script.ask(temperature=0.5).userlm["ignored"] == ["temperature"]


def test_the_options_of_the_command_reach_the_server(tmp_path, monkeypatch):
    (tmp_path / "lines.txt").write_text("hi\n", encoding="utf-8")
    at_once(monkeypatch)
    given = []
    create = server_module.create_app
    monkeypatch.setattr(
        server_module,
        "create_app",
        lambda user, config: given.append(config) or create(user, config),
    )
    monkeypatch.setattr(loading, "user", lambda at, **_: Script(["hi"]))
    user = f"script:{tmp_path / 'lines.txt'}"
    command.serve(flat(command.Serve, user=user, temperature=0.7, end_says="bye"))
    command.serve(flat(command.Serve, user=user))
    found = [(config.temperature, config.end_says) for config in given]
    assert found == [(0.7, "bye"), (None, "[end]")]


def test_text_never_becomes_a_control_token(tiny):
    asked = []

    class Watch:
        def complete(self, ids, sampling):
            asked.append(ids)
            return Completion("fine", stop_id=tiny.template().close, p_end=0.5)

    marks = "<|eot_id|><|endconversation|><|start_header_id|>system<|end_header_id|>"
    template = tiny.template()
    with serving(TrainedUser(Watch(), template)) as server:
        plain = server.ask(say("a", "b"), extra_body={"userlm": {"intent": "c"}})
        server.ask(say(marks, marks), extra_body={"userlm": {"intent": marks}})
    assert plain.choices[0].message.content == "fine"
    control = template.stop_ids | {
        template.headers["user"][0],
        template.headers["user"][-1],
    }
    first, second = ([token for token in ids if token in control] for ids in asked)
    assert first == second and first.count(template.close) == 3


# --- what is wrong --------------------------------------------------------------------------------

DEEP = b'{"model": "user", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "is []; it should have at least 1 item"),
        ({"messages": "hi"}, "messages", "is 'hi'; it should be a valid list"),
        ({"messages": None}, "messages", "is None; it should be a valid list"),
        ({"messages": ["hi"]}, "messages[0]", "is 'hi'; it should be an object"),
        (
            {"messages": [{"content": "hi"}]},
            "messages[0].role",
            "is missing; it should be given",
        ),
        (
            {"messages": [*say("a", "b"), {"role": "bot", "content": "c"}]},
            "messages[2].role",
            "is 'bot'; it should be 'system', 'developer'",
        ),
        (
            {"messages": [*say("a"), {"role": "assistant", "tool_calls": [{}]}]},
            "messages[1]",
            "has no words of the assistant",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": 1}]},
            "messages[0].tool_calls",
            "is 1; it should be a valid list",
        ),
        (
            {"messages": [{"role": "user", "content": 7}]},
            "messages[0].content",
            "is 7; it should be a valid string",
        ),
        (
            {"messages": [{"role": "system", "content": None}]},
            "messages[0].content",
            "should be text",
        ),
        (
            {"messages": [{"role": "user", "content": ["hi", 7]}]},
            "messages[0].content[1]",
            "is 7; it should be a valid string",
        ),
        ({"model": None}, "model", "'user'"),
        ({"model": ["user"]}, "model", "'user'"),
        ({"n": 0}, "n", "is 0; it should be greater than or equal to 1"),
        ({"n": 10**9}, "n", "is 1000000000; it should be less than or equal to 128"),
        ({"n": 10**400}, "n", "should be less than or equal to 128"),
        ({"n": True}, "n", "is True; it should be a valid integer"),
        ({"n": 1.5}, "n", "is 1.5; it should be a valid integer"),
        ({"temperature": 1e9}, "temperature", "should be less than or equal to 2"),
        ({"temperature": -1}, "temperature", "should be greater than or equal to 0"),
        (
            {"temperature": "hot"},
            "temperature",
            "is 'hot'; it should be a valid number",
        ),
        (
            {"temperature": False},
            "temperature",
            "is False; it should be a valid number",
        ),
        ({"top_p": 1.1}, "top_p", "is 1.1; it should be less than or equal to 1"),
        ({"top_p": {}}, "top_p", "is {}; it should be a valid number"),
        (
            {"max_tokens": 0},
            "max_tokens",
            "is 0; it should be greater than or equal to 1",
        ),
        ({"max_completion_tokens": -3}, "max_completion_tokens", "is -3"),
        ({"seed": 2**70}, "seed", f"should be less than or equal to {2**64 - 1}"),
        ({"seed": "a"}, "seed", "is 'a'; it should be a valid integer"),
        ({"stop": ""}, "stop", "is ''; it should have at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "it should have at most 16 texts"),
        ({"stop": ["a", 1]}, "stop[1]", "is 1; it should be a valid string"),
        (
            {"stop": ["a", ""]},
            "stop[1]",
            "is ''; it should have at least 1 character",
        ),
        ({"stop": 3}, "stop", "is 3; it should be a valid string"),
        ({"stream": "yes"}, "stream", "is 'yes'; it should be a valid boolean"),
        ({"stream_options": []}, "stream_options", "an object"),
        (
            {"stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "is 1; it should be a valid boolean",
        ),
        ({"tools": [7]}, "tools[0]", "is 7; it should be an object"),
        ({"tool_choice": "must"}, "tool_choice", "is 'must'; it should be"),
        ({"tool_choice": {"name": "f"}}, "tool_choice.function", "is missing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
        ({"userlm": "swapped"}, "userlm", "an object"),
        ({"userlm": {"role": "log"}}, "userlm", "intent, roles, id"),
        (
            {"userlm": {"roles": "upside down"}},
            "userlm.roles",
            "should be 'auto', 'log' or 'swapped'",
        ),
        (
            {"userlm": {"intent": 4}},
            "userlm.intent",
            "is 4; it should be a valid string",
        ),
        ({"userlm": {"id": []}}, "userlm.id", "is []; it should be a valid string"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(script, small, change, param, words):
    for server in (script, small):
        status, _, text = server.post(
            {"model": "user", "messages": say("a", "b"), **change}
        )
        error = json.loads(text)["error"]
        assert status == 400
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"] and param.split(".")[-1] in error["message"]
        assert server.pool.in_flight == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"model": "user", "messages": [{"role": "system", "content": "x"}], "temperature": NaN}',
        b'{"model": "user", "messages": [{"role": "system", "content": "x"}], "seed": -Infinity}',
        b'{"model": "user", "temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"n": ' + b"9" * 5000 + b"}",
        DEEP,
        b'{"model": "user", "messages": [{"role": "user", "content": '
        + b"[" * 500
        + b"]" * 500
        + b"}]}",
    ],
    ids=lambda body: body[:20],
)
def test_a_body_that_is_no_request_is_a_400(script, body):
    status, _, text = script.post(body)
    assert status == 400 and json.loads(text)["error"]["message"]


@pytest.mark.slow
def test_a_million_wrong_items_cost_no_more_than_one(script):
    wrong = (
        {"stop": [1] * 1_000_000},
        {"messages": ["hi"] * 500_000},
        {"userlm": {str(i): 1 for i in range(40_000)}},
        {"messages": [{"role": "user", "content": [1] * 1_000_000}]},
    )
    for change in wrong:
        begun = time.process_time()
        status, _, text = script.post(
            {"model": "user", "messages": say("a", "b"), **change}
        )
        message = json.loads(text)["error"]["message"]
        assert status == 400 and "it should" in message and len(message) < 300
        # 8 to 20 s, if each of them were reported.
        assert time.process_time() - begun < 6


def test_what_a_request_is_can_be_read_without_loading_a_model():
    heavy = "{'torch', 'starlette', 'openai'}"
    code = f"import sys, userlm.serving.schema; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.slow
def test_lone_surrogates_and_long_texts_do_no_harm(small):
    half = json.dumps(
        {
            "model": "user",
            "messages": say("a \ud83d", "b"),
            "\ud800": 1,
            "userlm": {"intent": "\udfff"},
        }
    )
    status, _, text = small.post(half.encode())
    known = json.loads(text)["userlm"]
    assert (
        status == 200 and known["intent"] == "\ufffd" and known["ignored"] == ["\ufffd"]
    )
    status, _, text = small.post(
        {"model": "user", "messages": say("hi " * 50_000, "yes " * 50_000)}
    )
    assert status == 200 and any(
        "did not fit" in note for note in json.loads(text)["userlm"]["notes"]
    )
    status, _, text = small.post({"model": "\ud800", "messages": []})
    assert status == 404 and json.loads(text)["error"]["code"] == "model_not_found"


def test_an_intent_that_does_not_fit_the_window_is_a_clear_400(small):
    with pytest.raises(openai.BadRequestError, match="do not fit") as error:
        small.ask([{"role": "system", "content": "word " * 20_000}])
    assert error.value.code == "context_length_exceeded"


def test_another_model_another_path_and_another_method_are_told_what_there_is(script):
    with pytest.raises(openai.NotFoundError, match="this server has 'user'") as error:
        script.ask(model="gpt-4o")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    for path in ("/chat/completions", "/v1/completions", "/"):
        status, _, text = script.post({}, path)
        assert (
            status == 404
            and "/v1/chat/completions" in json.loads(text)["error"]["message"]
        )
    status, headers, text = script.post({}, method="GET")
    assert (
        status == 405
        and headers["Allow"] == "POST"
        and "no GET here" in json.loads(text)["error"]["message"]
    )
    assert [model.id for model in script.client().models.list()] == ["user"]
    status, _, text = script.post(b"", "/health", "GET")
    assert status == 200 and json.loads(text) == {
        "status": "ok",
        "in_flight": 0,
        "room": 288,
    }


def test_a_page_in_a_browser_cannot_send_what_is_answered(script):
    body = {"model": "user", "messages": say("a", "b")}
    assert script.post(body)[0] == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert script.post(body, **{"Content-Type": kind})[0] == 415


def test_a_body_that_is_too_large_is_a_413_and_the_client_hears_it(script, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_BODY_BYTES", 1_000_000)
    with pytest.raises(openai.APIStatusError, match="1,000,000 bytes") as error:
        script.ask(say("a" * 12_000_000, "b"))
    assert error.value.status_code == 413
    assert script.ask(say("a" * 900_000, "b")).choices


def test_a_request_that_waits_holds_its_conversation_and_no_more():
    body = {"model": "user", "messages": say("a", "b"), "x": [[]] * 9, "n": 2}
    turn = read({**body, "seed": 7}, Script(["hi"]), ServerConfig())
    assert [each.text for each in turn.conversation.turns] == ["a", "b"]
    assert (turn.request.messages, turn.request.model_extra) == ([], {})
    assert (turn.request.n, turn.seed, turn.ignored) == (2, 7, ("seed", "x"))


@pytest.mark.parametrize("part", ["{}", '{"text": "", "type": "text"}'])
def test_a_request_of_a_million_parts_is_refused_at_once(part, script):
    many = b",".join([part.encode()] * (4_000_000 // (len(part) + 1)))
    body = (
        b'{"model": "user", "messages": [{"role": "assistant", "content": [%s]}]}'
        % many
    )
    begun = time.process_time()
    status, _, text = script.post(body)
    assert (status, "more than 50,000 objects and fields" in text) == (413, True)
    assert time.process_time() - begun < 5  # it was half a minute
    parts = [{"type": "text", "text": "hello"}] * 10_000
    said = {"role": "assistant", "content": parts}
    assert script.ask([{"role": "user", "content": "hi"}, said]).choices


def test_fields_that_mean_nothing_here_are_ignored_and_named(script, small):
    more = {
        "frequency_penalty": 0.5,
        "functions": [{"name": "f"}],
        "logprobs": True,
        "tools": [],
    }
    more |= {"presence_penalty": 0, "temperature": 0.5}
    played, scripted = (
        server.ask(seed=2, **more).userlm["ignored"] for server in (small, script)
    )
    assert played == ["frequency_penalty", "functions", "logprobs"]
    assert scripted == [*played, "seed", "temperature"]


# --- faults, load and keys ------------------------------------------------------------------------

KEY = "sk-very-secret-0451"


@dataclass
class Gated:
    """Speaks when it is let; counts who came in."""

    gate: threading.Event
    begun: int = 0

    def reply(self, conversation):
        self.begun += 1
        assert self.gate.wait(30)
        return Reply("at last")


def until(true, seconds=60.0):
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


@pytest.mark.slow
def test_a_full_queue_sends_away_with_retry_after_and_openai_comes_back():
    user = Gated(threading.Event())
    with serving(user, batch=1, queue=1) as server, ThreadPoolExecutor(4) as threads:
        first = threads.submit(server.ask)
        until(lambda: user.begun == 1)
        second = threads.submit(server.ask)
        until(lambda: server.pool.in_flight == 2)
        status, headers, text = server.post(
            {"model": "user", "messages": say("a", "b")}
        )
        assert (status, headers["Retry-After"]) == (429, "1")
        # Fmt: skip.
        assert json.loads(text)["error"] | {"message": ""} == {
            "message": "",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        patient = threads.submit(server.ask, client=server.client(max_retries=3))
        with pytest.raises(openai.BadRequestError, match="at most 2"):
            server.ask(n=3)  # never has room
        with pytest.raises(openai.RateLimitError):
            server.ask(n=2)
        user.gate.set()
        assert [
            one.result().choices[0].message.content for one in (first, second, patient)
        ] == ["at last"] * 3
        assert server.pool.in_flight == 0


def test_a_caller_who_goes_away_gives_up_its_place_and_harms_nobody(capfd):
    user = Gated(threading.Event())
    body = json.dumps({"model": "user", "messages": say("a", "b")}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving(user, batch=1, queue=4) as server, ThreadPoolExecutor(2) as threads:
        first = threads.submit(server.ask)
        until(lambda: user.begun == 1)
        for part in (
            len(body),
            len(body) // 2,
        ):
            # having asked, and in the middle of it
            caller = socket.create_connection(("127.0.0.1", server.port))
            caller.sendall(
                head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:part]
            )
            if part == len(body):
                until(lambda: server.pool.in_flight == 2)
            caller.close()
        until(lambda: server.pool.in_flight == 1)
        user.gate.set()
        assert first.result().choices[0].message.content == "at last"
        assert server.ask().choices and user.begun == 2
        user.gate.clear()
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            caller.sendall(
                head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            )
            until(lambda: user.begun == 3)
        for _ in range(3):  # nor does the server wait for a draw that nobody wants
            assert server.post(b"", "/health", "GET")[0] == 200
            time.sleep(0.05)
        user.gate.set()
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
def test_sixty_four_clients_at_once_each_get_their_own_answer(tiny):
    class Echo:
        def reply(self, conversation):
            return Reply(f"{conversation.intent} after {conversation.turns[-1].text}")

    def talk(server, client, i):
        told = {"role": "system", "content": f"want {i}"}
        for turn in range(3):
            answer = server.ask([told, *say("x", f"{i}.{turn}")], client=client)
            assert answer.choices[0].message.content == f"want {i} after {i}.{turn}"
        return i

    with serving(Echo(), batch=8) as server, ThreadPoolExecutor(64) as threads:
        client = server.client()
        assert list(threads.map(lambda i: talk(server, client, i), range(64))) == list(
            range(64)
        )
    with serving(trained(tiny, 2)) as server, ThreadPoolExecutor(64) as threads:
        client = server.client()
        answers = threads.map(lambda i: server.ask(client=client, seed=i), range(64))
        assert all(answer.choices[0].finish_reason for answer in answers)


class Fails:
    """In the way that the intent says; it has seen the key."""

    def reply(self, conversation):
        if conversation.intent == "model":
            raise ModelError(f"no answer with {KEY}")
        if conversation.intent == "input":
            raise InputError(f"{KEY} is no input")
        if conversation.intent == "silent":
            return Reply()
        if conversation.intent == "odd":
            return "just text"
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        "Bearer \xfc",
    ],
)
def test_without_the_key_nobody_is_answered(given):
    with serving(Script(["hi"]), key=KEY) as server:
        headers = {} if given is None else {"Authorization": given}
        for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
            status, sent, text = server.post(b"{}", path, method, **headers)
            assert (
                status == 401
                and sent["WWW-Authenticate"] == "Bearer"
                and KEY not in text
            )
            assert json.loads(text)["error"]["code"] == "invalid_api_key"


def test_the_key_opens_and_stands_in_no_error_and_no_log(capfd):
    with serving(Fails(), key=KEY) as server:
        client = server.client(api_key=KEY)
        assert client.models.list().data
        texts = []
        for how, status in (
            ("model", 503),
            ("input", 400),
            ("silent", 503),
            ("odd", 500),
            ("bug", 500),
        ):
            with pytest.raises(openai.APIStatusError) as error:
                server.ask([{"role": "system", "content": how}], client=client)
            assert error.value.status_code == status
            assert set(error.value.body) == {"message", "type", "param", "code"}
            texts.append(error.value.response.text)
        with pytest.raises(openai.AuthenticationError) as refused:
            server.ask()
        texts.append(refused.value.response.text)
        assert server.post(b"{}", f"/{KEY}", Authorization=f"Bearer {KEY}")[0] == 404
        assert "[key]" in texts[0] and "[key]" in texts[1]
        assert "Traceback" not in "".join(texts) and "a bug" not in "".join(texts)
        assert KEY not in "".join(texts) + repr(ServerConfig(key=KEY))
    logged = "".join(capfd.readouterr())
    assert "a bug" in logged and KEY not in logged


def test_at_the_end_who_waits_is_told_and_who_is_being_answered_is_answered():
    user = Gated(threading.Event())
    with ThreadPoolExecutor(2) as threads:
        with serving(user, batch=1) as server:
            first = threads.submit(server.ask)
            until(lambda: user.begun == 1)
            second = threads.submit(server.ask)
            until(lambda: server.pool.in_flight == 2)
            threading.Timer(0.5, user.gate.set).start()
        assert first.result().choices[0].message.content == "at last"
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            second.result()
    with serving(user) as server:
        server.pool.close()
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            server.ask()


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c_and_never_shows_the_key(tmp_path):
    (tmp_path / "lines.txt").write_text("plan a trip\n", encoding="utf-8")
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "userlm",
            "serve",
            "--user",
            "script:lines.txt",
            "--port",
            "0",
        ],
        cwd=tmp_path,
        env={**os.environ, command.KEY: KEY},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = run.stderr.readline()
        url = re.search(r'base_url="(http://127\.0\.0\.1:\d+/v1)"', line)[1]
        client = openai.OpenAI(base_url=url, api_key=KEY)
        [model] = client.models.list()
        answer = client.chat.completions.create(
            model=model.id, messages=[{"role": "system", "content": ROME}]
        )
        assert (model.id, answer.choices[0].message.content) == (
            "lines.txt",
            "plan a trip",
        )
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    finally:
        run.kill()
    assert run.returncode == 0 and not out
    assert (
        "warning" not in line + err and KEY not in line + err and "Traceback" not in err
    )


def test_a_port_that_is_taken_is_a_clear_error(tmp_path):
    (tmp_path / "lines.txt").write_text("hi\n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: .*in use.*--port 0"):
            command.serve(
                flat(command.Serve, user=f"script:{tmp_path / 'lines.txt'}", port=port)
            )
    with pytest.raises(InputError, match="--host"):
        command.serve(
            flat(
                command.Serve,
                user=f"script:{tmp_path / 'lines.txt'}",
                host="no.such.host.invalid",
                port=0,
            )
        )


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("127.0.0.1", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("0.0.0.0", KEY, False),
    ],
)
def test_listening_to_everybody_without_a_key_warns(
    host, key, warned, tmp_path, monkeypatch, capsys
):
    (tmp_path / "lines.txt").write_text("hi\n", encoding="utf-8")
    monkeypatch.setenv(command.KEY, key)
    at_once(monkeypatch)
    command.serve(
        flat(command.Serve, user=f"script:{tmp_path / 'lines.txt'}", host=host)
    )
    shown = capsys.readouterr().err
    assert ("warning" in shown) is warned and (command.KEY in shown) is (
        warned or bool(key)
    )
    assert ("[::]:" in shown) is (host == "::") and KEY not in shown


def at_once(monkeypatch):
    """A server that is asked to stop before it begins, at no port."""

    @contextmanager
    def not_running(served, listening):
        yield threading.Thread()

    monkeypatch.setattr(server_module, "running", not_running)
    monkeypatch.setattr(
        command, "_listen", lambda host, port: socket.create_server(("127.0.0.1", 0))
    )
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"roles": "both"}, "--roles both"),
        ({"stop_phrase": " "}, "--stop-phrase"),
        ({"guard": "no-begin"}, "--guard"),
        ({"user": "human"}, "cannot be served"),
        ({"user": "scrip:x"}, "script:"),
    ],
)
def test_a_command_that_cannot_work_says_why(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        command.serve(
            flat(command.Serve, **{"user": "script:nothing", "port": 0, **options})
        )


def test_a_key_that_is_none_is_refused_unseen(monkeypatch):
    monkeypatch.setenv(command.KEY, "s\x07cret")
    with pytest.raises(InputError, match="set it again") as error:
        command.serve(flat(command.Serve, user="script:nothing", port=0))
    assert "cret" not in str(error.value)


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tiny):
    with serving(trained(tiny), model_name="UserLM-8b") as server:
        yield lambda block: block.replace(
            "http://127.0.0.1:8765/v1", server.url
        ).replace("http://127.0.0.1:8765", server.url.removesuffix("/v1"))


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_python_of_the_page_runs(block, page, capsys):
    exec(page(block), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    # Without a seed a random model may, once in a while, end at once.
    assert (
        shown.startswith(("user: ", "The user ended"))
        or "ended: " in shown
        or shown == f"swapped - {FRIDAY}\n"
    )


FRIDAY = INTENT_PREFIX + "move a flight to Friday."


@pytest.mark.parametrize("block", re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
def test_the_shell_of_the_page_runs(block, page, monkeypatch):
    if block.startswith("userlm serve"):
        given = []
        at_once(monkeypatch)
        monkeypatch.setattr(
            loading, "user", lambda at, **_: given.append(at) or Script(["hi"])
        )
        done = CliRunner().invoke(cli.app, block.split()[1:])
        assert done.exit_code == 0 and given == ["trained:microsoft/UserLM-8b"]
        assert (
            'base_url="http://127.0.0.1:' in done.stderr
            and 'model="UserLM-8b"' in done.stderr
        )
    elif shutil.which("curl"):
        done = subprocess.run(
            ["bash", "-e", "-c", page(block)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (
            '"roles":"log"' in done.stdout
            and '"data":[{"id":"UserLM-8b"' in done.stdout
        )
        assert '"status":"ok"' in done.stdout
