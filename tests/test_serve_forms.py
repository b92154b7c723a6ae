"""Tools, and answers in the form that a request asks for."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from test_serve import read, say, serving, streamed

from userlm import Reply
from userlm.assistants import Script
from userlm.serving import app, forms
from userlm.serving.schema import RequestError, ServerConfig

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
MAYBE = {"anyOf": [TEXT, {"type": "null"}], "default": None}
BLOCK = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": TEXT},
    "required": ["type", "text"],
}
IMAGE = {
    "type": "object",
    "properties": {"type": {"const": "image"}, "url": TEXT},
    "required": ["type", "url"],
}
BEDROCK = {
    "type": "object",
    "properties": {"text": TEXT, "toolUse": {"type": "object"}},
}
SAY = {"message": TEXT, "stop": FLAG}
SYSTEM = {"role": "system", "content": "You play a customer of a bicycle shop."}
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {}}}


def schema(properties, required=None, **more):
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, **more}


def tool(properties, name="say", **more):
    function = {"name": name, "parameters": schema(properties, **more)}
    return {"type": "function", "function": function}


def format(properties, **more):
    inside = {"name": "turn", "schema": schema(properties, **more)}
    return {"type": "json_schema", "json_schema": inside}


def refused(**options):
    body = {"model": "user", "messages": [SYSTEM, *say("Hi!")], **options}
    with pytest.raises(RequestError) as error:
        read(body, Script(["x"]), ServerConfig())
    assert error.value.status == 400
    return error.value


class Leaves:
    """Says a word, then ends the conversation with words, then without."""

    def reply(self, conversation):
        said = len(conversation.user_turns)
        return Reply(("A tyre.", "Bye.", "")[said], "end" if said else None)


@pytest.fixture(scope="module")
def server():
    with serving(Leaves()) as served:
        yield served


def three(server, **options):
    """What the user says in each of three turns, with the whole answers; their form is kept."""
    messages = [SYSTEM, *say("Hi!")]
    answers = []
    for said in ("a", "b", "c"):
        answers.append(server.ask(messages, **options))
        messages += [
            {"role": "assistant", "content": said},
            {"role": "user", "content": "And?"},
        ]
    return answers


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "more", "turns"),
    [
        (SAY, {}, [("A tyre.", False), ("Bye.", True), ("", True)]),
        ({"stop": FLAG, "message": MAYBE}, {}, [("A tyre.", False), ("Bye.", True), (None, True)]),
        ({"stop": FLAG, "message": {"type": "array", "items": TEXT}}, {},
         [(["A tyre."], False), (["Bye."], True), ([], True)]),
        ({"stop": FLAG, "message": {"type": "array", "items": TEXT, "minItems": 1}}, {},
         [(["A tyre."], False), (["Bye."], True), (["[end]"], True)]),
    ],
)  # fmt: skip
def test_the_words_fill_the_text_field_and_the_end_its_boolean(
    server, properties, more, turns
):
    answers = three(server, response_format=format(properties, **more))
    found = [json.loads(answer.choices[0].message.content) for answer in answers]
    assert [(each["message"], each["stop"]) for each in found] == turns


@pytest.mark.parametrize(
    ("properties", "filled"),
    [
        ({"simulated_input": TEXT}, {"simulated_input": "Bye."}),
        ({"text": TEXT, "done": FLAG}, {"text": "Bye.", "done": True}),
        ({"utterance": TEXT, "is_finished": FLAG}, {"utterance": "Bye.", "is_finished": True}),
        ({"userMessage": TEXT, "goalReached": FLAG}, {"userMessage": "Bye.", "goalReached": True}),
        ({"said": TEXT, "ended": FLAG, "polite": FLAG, "tone": {"enum": ["dry"]}}, None),
        ({"said": TEXT, "ended": FLAG, "tone": {"enum": ["dry"]}},
         {"said": "Bye.", "ended": True, "tone": "dry"}),
        ({"reasoning": TEXT, **SAY, "stop_reason": MAYBE},
         {"reasoning": "", "message": "Bye.", "stop": True, "stop_reason": None}),
        ({**SAY, "kind": {"const": "turn"}, "language": {"type": "string", "default": "en"}},
         {"message": "Bye.", "stop": True, "kind": "turn", "language": "en"}),
        ({"message": {"type": ["string", "null"]}, "score": {"type": ["number", "null"]}},
         {"message": "Bye.", "score": None}),
        ({"message": {"$ref": "#/$defs/Words"}, "stop": {"$ref": "#/$defs/Flag"}},
         {"message": "Bye.", "stop": True}),
        ({"reasoning": TEXT, "stop": FLAG, "stop_reason": MAYBE,
          "message": {"type": ["array", "null"], "items": {}}},
         {"reasoning": "", "stop": True, "stop_reason": None, "message": "Bye."}),
        ({"message": {"type": "array", "items": TEXT}, "stop": FLAG},
         {"message": ["Bye."], "stop": True}),
        ({"content": {"type": "array", "items": BLOCK}, "stop": FLAG},
         {"content": [{"type": "text", "text": "Bye."}], "stop": True}),
        ({"content": {"anyOf": [{"type": "array", "items": {"anyOf": [IMAGE, BLOCK]}},
                                {"type": "null"}]}},
         {"content": [{"type": "text", "text": "Bye."}]}),
        ({"message": {"type": "array", "items": BEDROCK}}, {"message": [{"text": "Bye."}]}),
        ({"message": {"type": ["array", "null"], "items": BEDROCK}}, {"message": "Bye."}),
        ({"message": TEXT, "query": TEXT}, None),
    ],
)  # fmt: skip
def test_a_form_is_filled_with_what_is_known_or_refused(server, properties, filled):
    asked = format(properties, **{"$defs": {"Words": TEXT, "Flag": FLAG}})
    messages = [SYSTEM, *say("Hi!", "A tyre.", "And?")]
    if filled is None:
        with pytest.raises(openai.BadRequestError, match="a user has nothing for"):
            server.ask(messages, response_format=asked)
    else:
        answer = server.ask(messages, response_format=asked)
        assert json.loads(answer.choices[0].message.content) == filled


def test_a_field_that_is_not_required_is_left_out(server):
    asked = format({**SAY, "mood": TEXT}, required=["message"])
    answer = server.ask([SYSTEM, *say("Hi!")], response_format=asked)
    found = json.loads(answer.choices[0].message.content)
    assert found == {"message": "A tyre.", "stop": False}


def test_a_text_that_must_not_be_empty_is_not(server):
    asked = format({"message": {**TEXT, "minLength": 1}, "stop": FLAG})
    messages = [SYSTEM, *say("Hi!", "a", "And?", "b", "And?")]
    answer = server.ask(messages, response_format=asked)
    found = json.loads(answer.choices[0].message.content)
    assert found == {"message": "[end]", "stop": True}


LOOP = {"$defs": {"A": {"$ref": "#/$defs/A"}}}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (format({"first": TEXT, "second": TEXT}), "no field that is clearly for"),
        (format({"stop": FLAG}), "no field that is clearly for"),
        (format({"message": {"type": "array", "items": IMAGE}}), "no field that is clearly for"),
        (format({"message": {"type": "array", "items": TEXT, "minItems": 2}}),
         "no field that is clearly for"),
        (format({"message": {**TEXT, "maxLength": 9}}), "no field that is clearly for"),
        (format({"message": {**TEXT, "enum": ["a", "b"]}}), "no field that is clearly for"),
        (format({"message": {"$ref": "#/$defs/A"}}, **LOOP), "no field that is clearly for"),
        (format({"message": {"$ref": "#/nowhere"}}), "no field that is clearly for"),
        (format({**SAY, "score": {"type": "integer"}}), "nothing for the required score"),
        (format({**SAY, "a": FLAG, "b": schema(SAY)}), "nothing for the required a, b"),
        (format(SAY, required=["message", "who"]), "nothing for the required who"),
        (format(SAY, required=["message", {}, 5]), "nothing for the required {}, 5"),
        (format(SAY, anyOf=[{}]), "no plain object"),
        ({"type": "json_schema"}, "no plain object"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, "no plain object"),
        ({"type": "json_schema", "json_schema": {"schema": TEXT}}, "no plain object"),
        ({"type": "json_object"}, "use json_schema, with a text field"),
    ],
)  # fmt: skip
def test_a_form_that_no_user_can_fill_is_a_400_that_says_why(asked, words):
    error = refused(response_format=asked)
    assert words in error.message and error.param == "response_format"


def test_plain_text_is_asked_for_by_name_too(server):
    answer = server.ask([SYSTEM, *say("Hi!")], response_format={"type": "text"})
    assert answer.choices[0].message.content == "A tyre."


def test_the_turns_of_the_user_are_read_in_the_same_form():
    def turns(*said):
        asked = {"messages": say(*said), "response_format": format(SAY)}
        found = read({"model": "user", **asked}, Script(["x"]), ServerConfig())
        return [turn.text for turn in found.conversation.turns]

    mine = json.dumps({"message": "A tyre.", "stop": False})
    assert turns("Hi!", mine, "And?") == ["Hi!", "A tyre.", "And?"]
    assert turns("Hi!", "{ as it is", "And?") == ["Hi!", "{ as it is", "And?"]
    with pytest.raises(RequestError) as error:
        turns("Hi!", json.dumps({"message": "Bye.", "stop": True}), "And?")
    assert error.value.code == "conversation_over"


def test_a_turn_in_a_list_is_read_as_its_words():
    asked = format({"message": {"type": "array", "items": BLOCK}})
    mine = json.dumps({"message": [{"type": "text", "text": "A tyre."}]})
    body = {
        "model": "user",
        "messages": say("Hi!", mine, "And?"),
        "response_format": asked,
    }
    found = read(body, Script(["x"]), ServerConfig())
    assert found.conversation.turns[1].text == "A tyre."


ODD = [
    {"type": "array", "items": {"properties": 1, "type": "object"}},
    {"type": "array", "items": {"properties": {"text": TEXT, "type": {"enum": 3}}}},
    {"type": "array", "items": {"properties": {"text": TEXT}, "required": [{}]}},
    {"type": ["array", "null"], "minItems": "x", "items": [TEXT]},
]


@pytest.mark.parametrize("field", ODD)
def test_a_list_that_is_no_schema_is_refused_or_takes_a_text(field):
    body = {
        "model": "user",
        "messages": say("Hi!"),
        "response_format": format({"message": field}),
    }
    try:
        form = read(body, Script(["x"]), ServerConfig()).form
    except RequestError as error:
        assert error.status == 400
    else:
        assert json.loads(form.filled("A tyre.", False)) == {"message": "A tyre."}


# --- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", "auto", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_takes_what_the_user_says_is_called(server, choice, stream):
    tools = [tool(SAY), SEARCH]
    if choice == "named":
        choice = {"type": "function", "function": {"name": "say"}}
    messages = [SYSTEM, *say("Hi!", "A tyre.", "And?")]
    answer = server.ask(messages, tools=tools, tool_choice=choice, stream=stream)
    if stream:
        _, last, all_chunks = streamed(answer)
        deltas = [chunk.choices[0].delta for chunk in all_chunks]
        [[call]] = [delta.tool_calls for delta in deltas if delta.tool_calls]
        finish_reason = last.choices[0].finish_reason
    else:
        [call] = answer.choices[0].message.tool_calls
        finish_reason = answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert (call.function.name, finish_reason) == ("say", "tool_calls")
    assert json.loads(call.function.arguments) == {"message": "Bye.", "stop": True}


def test_the_calls_of_the_answer_tool_are_what_the_user_said():
    words = json.dumps({"message": "A tyre.", "stop": False})
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "say", "arguments": words},
    }
    messages = [
        *say("Hi!"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sent"},
        {"role": "user", "content": "And?"},
    ]
    body = {"model": "user", "messages": messages, "tools": [tool(SAY)]}
    found = read(body, Script(["x"]), ServerConfig())
    assert [turn.text for turn in found.conversation.turns] == [
        "Hi!",
        "A tyre.",
        "And?",
    ]


def test_tools_that_need_not_be_used_are_left_out_and_noted(server):
    for choice in (None, "auto", "none"):
        given = {"tool_choice": choice} if choice else {}
        answer = server.ask([SYSTEM, *say("Hi!")], tools=[SEARCH], **given)
        assert answer.choices[0].message.content == "A tyre."
        assert answer.userlm["ignored"] == ["tools"]
        assert (
            "tools were left out (1): a simulated user only talks"
            in answer.userlm["notes"]
        )


def test_a_tool_without_parameters_is_left_out_too(server):
    nothing = {"type": "function", "function": {"name": "ping", "parameters": None}}
    answer = server.ask([SYSTEM, *say("Hi!")], tools=[nothing])
    assert answer.choices[0].message.content == "A tyre."


def test_a_user_hears_no_calls_of_tools_and_no_results():
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    messages = [
        {"role": "user", "content": "My tyre is flat."},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "3 tyres"},
        {"role": "assistant", "content": "We have three.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": None},
    ]
    body = {"model": "user", "messages": messages, "userlm": {"intent": "x"}}
    found = read(body, Script(["x"]), ServerConfig())
    assert [turn.text for turn in found.conversation.turns] == [
        "My tyre is flat.",
        "We have three.",
    ]
    assert found.notes == (
        "calls of tools and their results were left out (3): a user hears words",
    )
    body["messages"] = messages[:3]
    with pytest.raises(RequestError, match="no words of the assistant"):
        read(body, Script(["x"]), ServerConfig())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"tools": [SEARCH, SEARCH], "tool_choice": "required"},
            "one of several tools",
        ),
        ({"tools": [SEARCH], "tool_choice": "required"}, "no plain object"),
        (
            {"tools": [SEARCH], "tool_choice": {"function": {"name": "f"}}},
            "the tool 'f'",
        ),
        ({"tools": [], "tool_choice": "required"}, "tool_choice requires"),
        (
            {
                "tools": [SEARCH],
                "messages": [
                    {
                        "role": "system",
                        "content": "You have tools to test your line with.",
                    },
                    *say("Hi!"),
                ],
            },
            "the prompt tells the user to use tools",
        ),
    ],
)
def test_tools_that_the_user_would_have_to_use_are_refused(options, words):
    error = refused(**options)
    assert words in error.message and error.param == "tools"


# --- size -----------------------------------------------------------------------------------------

MANY = {f"a{i}": 0 for i in range(2_000)}


@pytest.mark.parametrize(
    "large",
    [
        {"x": {**MANY, "anyOf": [0] * 2_000}},
        {"x": {**MANY, "type": ["string"] * 2_000}},
        {f"p{i}": {"$ref": "#/properties/x"} for i in range(2_000)} | {"x": MANY},
    ],
)
def test_alternatives_and_references_are_not_copied_without_limit(large, monkeypatch):
    copied = []

    def counted(self, schema, other):
        copied.append(len(schema) + len(other))
        return merged(self, schema, other)

    merged = forms._Root.merged
    monkeypatch.setattr(forms._Root, "merged", counted)
    error = refused(response_format=format({**SAY, **large}, required=[]))
    assert "references and alternatives make it too large" in error.message
    assert sum(copied) < 2 * forms.MAX_COPIED


def test_a_schema_that_is_long_is_not_read():
    long = {"type": "string", "description": "x" * forms.MAX_SCHEMA}
    error = refused(response_format=format({**SAY, "x": long}))
    assert "its schema has more than 100,000 characters" in error.message


def test_a_tool_that_is_too_long_is_left_out_as_others_are(server):
    long = tool({**SAY, "x": {"description": "x" * forms.MAX_SCHEMA}})
    answer = server.ask([SYSTEM, *say("Hi!")], tools=[long])
    assert answer.choices[0].message.content == "A tyre."
    assert "tools were left out (1)" in answer.userlm["notes"][0]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (
            {"response_format": format({**SAY, "x": {"default": '"' * 4_000}})},
            "response_format",
        ),
        ({"tools": [tool(SAY, name="n" * 2_000)]}, "tools[0].function.name"),
        ({"userlm": {"stop_phrase": "s" * 2_000}}, "userlm.stop_phrase"),
    ],
)
def test_what_each_choice_repeats_of_the_request_is_short(options, param):
    error = refused(n=128, **options)
    assert error.param == param
    assert "characters" in error.message and len(error.message) < 400


def test_others_are_answered_while_an_answer_is_written(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(*given):
        begun.set()
        assert go_on.wait(20)
        return completion(*given)

    completion = app.completion
    monkeypatch.setattr(app, "completion", slow)
    with serving(Leaves()) as served, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(served.ask, [SYSTEM, *say("Hi!")])
        assert begun.wait(20)
        try:
            assert served.client(timeout=5).models.list().data
        finally:
            go_on.set()
        assert asked.result().choices[0].message.content == "A tyre."
