"""Intents that a chat model writes from the prompts of harnesses (`--intent-by`)."""

import importlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal

import openai
import pytest
from fake_server import completion
from fake_server import serving as chat_server
from flat import flat
from test_serve import ROME, read, say, serving, trained

from userlm import ModelError, Reply
from userlm.models.budget import Budget, Caps, CountedChat, while_wanted
from userlm.serving.intent_writer import IntentWriter
from userlm.serving.schema import ServerConfig
from userlm.text import INTENT_PREFIX
from userlm.types import Completion, InputError

command = importlib.import_module("userlm.commands.serve")

TYRE = INTENT_PREFIX + "get a bicycle mended."
PERSONA = "You are Marta, 58, short of time. Your tyre is flat. Be rude.\nSay ###STOP### at the end."
HALF = f"{PERSONA} \ud83d"
LONG = "Order 4471 came without its gloves. " * 12


class Writer:
    """A chat model that says what it is given, and what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def chat(self, messages, sampling):
        self.asked.append(messages)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer)


class Heard:
    """A user that keeps its intents."""

    def __init__(self):
        self.intents = []

    def reply(self, conversation):
        self.intents.append(conversation.intent)
        return Reply("hi")


def asked(writer, *prompts, kept=100, **options):
    """The intents with which a user is asked for a turn in each of the prompts, and the last
    answer."""
    user = Heard()
    with serving(user, intent_writer=IntentWriter("w", writer, kept)) as server:
        for prompt in prompts:
            messages = [{"role": "system", "content": prompt}, *say("Hello!")]
            answer = server.ask(messages, **options)
    return user.intents, answer


def test_a_persona_becomes_an_intent_which_is_written_once():
    writer = Writer(f'Sentence: "{TYRE}"')
    intents, answer = asked(writer, PERSONA, PERSONA)
    assert intents == [TYRE, TYRE]
    [[message]] = writer.asked
    assert PERSONA in message["content"]
    assert answer.userlm["intent"] == TYRE
    assert (
        "the intent was written by w from the system message" in answer.userlm["notes"]
    )
    assert any("###STOP###" in note for note in answer.userlm["notes"])


@pytest.mark.parametrize(
    ("prompt", "intent"),
    [
        (f"Be rude. {ROME} Never stop.", ROME),
        ("Be rude. <goal>mend a tyre</goal>", "mend a tyre"),
    ],
)
def test_an_intent_and_a_short_tag_need_no_model(prompt, intent):
    writer = Writer(TYRE)
    assert asked(writer, prompt)[0] == [intent]
    assert writer.asked == []


def test_the_intent_of_a_request_needs_no_model():
    writer = Writer(TYRE)
    body = {"userlm": {"intent": "mend a tyre"}}
    assert asked(writer, PERSONA, extra_body=body)[0] == ["mend a tyre"]
    assert writer.asked == []


def test_a_long_scenario_is_what_the_model_reads_without_the_rules_around_it():
    writer = Writer(TYRE)
    intents, _ = asked(writer, f"Never swear.\n<scenario>{LONG}</scenario>")
    assert intents == [TYRE]
    [[message]] = writer.asked
    assert LONG.strip() in message["content"]
    assert "swear" not in message["content"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", lambda half: {"messages": [half]}),
        ("chat/completions", lambda half: {"messages": [half | {"content": [HALF]}]}),
        ("responses", lambda half: {"instructions": half["content"], "input": []}),
    ],
)
def test_half_an_emoji_in_a_prompt_does_no_harm(path, body):
    writer = Writer(TYRE)
    side = Budget(Caps(), None).side("writer")
    half = {"role": "system", "content": HALF}
    counted = IntentWriter("w", CountedChat(writer, side))
    with serving(Heard(), intent_writer=counted) as server:
        sent = {"model": "user", **body(half)}
        status, _, text = server.post(sent, f"/v1/{path}")
    assert status == 200, text
    [[message]] = writer.asked
    assert f"{PERSONA} \ufffd" in message["content"]


def test_an_answer_in_another_form_is_asked_for_again():
    writer = Writer("She wants her tyre mended.", TYRE)
    assert asked(writer, PERSONA)[0] == [TYRE]
    first, second = writer.asked
    assert second[:1] == first
    assert "prefix" in second[-1]["content"]


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        ("She wants her tyre mended.", 502, "wrote no intent for this prompt .prefix"),
        (ModelError("it is down"), 503, "failed: it is down"),
    ],
)
def test_without_an_intent_there_is_no_turn_and_the_next_request_tries_again(
    answer, status, why
):
    writer = Writer(answer)
    user = Heard()
    with serving(user, intent_writer=IntentWriter("w", writer)) as server:
        messages = [{"role": "system", "content": PERSONA}]
        for _ in range(2):
            with pytest.raises(openai.APIStatusError, match=why) as error:
                server.ask(messages)
            assert error.value.status_code == status
            assert error.value.code == "intent_failed"
            assert error.value.response.headers["x-should-retry"] == "false"
        writer.answers = [TYRE]
        assert server.ask(messages).userlm["intent"] == TYRE
    assert user.intents == [TYRE]


def test_what_is_refused_is_not_asked_about():
    writer = Writer(TYRE)
    with pytest.raises(openai.BadRequestError):
        asked(writer, "You play a user.\nUser: hi\nAssistant: hello\nUser: bye")
    assert writer.asked == []


def test_conversations_with_the_same_prompt_at_once_have_one_intent():
    begun, answers = threading.Event(), threading.Event()

    class Slow(Writer):
        def chat(self, messages, sampling):
            begun.set()
            answers.wait(10)
            return super().chat(messages, sampling)

    model = Slow(TYRE, ROME)
    writer = IntentWriter("w", model)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(writer.write(PERSONA)))
        for _ in range(4)
    ]
    threads[0].start()
    begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    answers.set()
    for thread in threads:
        thread.join()
    assert found == [TYRE] * 4
    assert len(model.asked) == 1


def test_the_intents_that_were_not_asked_for_longest_are_dropped():
    writer = Writer(TYRE)
    asked(writer, "one", "two", "one", "three", "one", "two", kept=2)
    assert len(writer.asked) == 4  # one, two, three, and two again


def test_the_command_asks_a_model_by_its_address_and_counts_its_calls():
    with chat_server(lambda body, count: completion(TYRE)) as server:
        by = f"{server.url}#writer"
        options = flat(command.Serve, user="single", intent_by=by)
        budget = Budget(Caps(calls=1), None)
        writer = command._intent_writer(options, budget, None)
        assert writer.name == "writer"
        with serving(Heard(), intent_writer=writer) as served:
            messages = [{"role": "system", "content": PERSONA}]
            for _ in range(2):
                assert served.ask(messages).userlm["intent"] == TYRE
            messages = [{"role": "system", "content": "You are Otto."}]
            with pytest.raises(openai.RateLimitError, match="--max-calls 1") as error:
                served.ask(messages)
    assert error.value.code == "insufficient_quota"
    assert budget.spent.calls == 1


def test_the_price_of_intents_is_for_a_model_that_writes_them():
    options = flat(command.Serve, intent_price="1/2")
    with pytest.raises(InputError, match="--intent-price: there is no --intent-by"):
        command._prices(options)
    options = flat(command.Serve, intent_by="http://127.0.0.1:9/v1#m")
    budget = Budget(Caps(dollars=Decimal(1)), None)
    with pytest.raises(InputError, match="give --intent-price IN/OUT"):
        command._intent_writer(options, budget, None)


@pytest.mark.parametrize("others", [0, 1])
def test_an_intent_is_asked_for_again_only_while_somebody_waits_for_it(others):
    """Its first client leaves while the model writes what is no intent."""
    side = Budget(Caps(), None).side("intent_by")
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(Writer):
        def chat(self, messages, sampling):
            begun.set()
            assert goes_on.wait(20)
            return super().chat(messages, sampling)

    writer = IntentWriter("w", CountedChat(Slow("She wants it mended.", TYRE), side))
    is_there = [True]

    def first():
        with while_wanted(lambda: bool(is_there)):
            return writer.write(PERSONA)

    with ThreadPoolExecutor() as pool:
        written = pool.submit(first)
        assert begun.wait(20)
        waiting = [pool.submit(writer.write, PERSONA) for _ in range(others)]
        while len(*writer._callers.values()) <= others:
            time.sleep(0.01)
        is_there.clear()
        goes_on.set()
        if others:
            assert {each.result() for each in (written, *waiting)} == {TYRE}
        else:
            with pytest.raises(ModelError, match="nobody waits") as error:
                written.result()
            assert error.value.reason == "stopped"
    assert side.used["calls"] == 1 + others and not writer._callers


GOAL = "Get a refund for a lamp"
WHOLE = INTENT_PREFIX + "get a refund for a lamp."


@pytest.mark.parametrize("way", ["system", "userlm", "--intent"])
def test_a_goal_alone_gets_the_opening_wherever_it_comes_from_and_a_note_says_so(
    tiny, way
):
    messages = say("Hello!")
    if way == "system":
        messages.insert(0, {"role": "system", "content": GOAL})
    body = {"model": "user", "messages": messages, "seed": 1}
    if way == "userlm":
        body["userlm"] = {"intent": GOAL}
    config = ServerConfig(intent=GOAL) if way == "--intent" else ServerConfig()
    user = trained(tiny)
    turn = read(body, user, config)
    assert turn.conversation.intent == WHOLE
    assert any(WHOLE in note for note in turn.notes)
    profiled = replace(
        user, template=replace(user.template, system_text="Who you are: {}")
    )
    for other in (profiled, Heard()):
        assert read(body, other, config).conversation.intent == GOAL


@pytest.mark.parametrize(
    "persona",
    [
        "You are Anna, 40. Your lamp arrived broken.",
        "Write the next message of the user.",
        "I need a new tyre",
    ],
)
def test_a_persona_stays_as_it_is_with_advice(tiny, persona):
    body = {"model": "user", "messages": [{"role": "system", "content": persona}]}
    turn = read(body, trained(tiny), ServerConfig())
    assert turn.conversation.intent == persona
    [note] = turn.notes
    assert "does not begin as in training" in note and "--intent-by" in note
