"""Prompts that quote a conversation are refused; turns, whatever they look like, are not."""

import time

import openai
import pytest
from test_serve import read, say, serving, trained

from userlm.assistants import Script
from userlm.serving.prompts import is_prompt, quotes_conversation
from userlm.serving.schema import RequestError, ServerConfig
from userlm.text import INTENT_PREFIX

BIKE = INTENT_PREFIX + "mend a flat tyre."
LOG = "I have a flat tyre.", "Is it the front wheel?"
ONE = "{}: I have a flat tyre.\n{}: Is it the front wheel?"
FILLER = "Be polite and patient. " * 20

QUOTED = [
    # Lines with the name of a role.
    ONE.format("User", "Assistant"),
    ONE.format("user", "assistant") + "\nuser:",
    ONE.format("Human", "AI"),
    ONE.format("Customer", "Support agent"),
    ONE.format("**Customer**", "**Agent**"),
    ONE.format("- User", "- Bot"),
    ONE.format("1. USER", "2. ASSISTANT"),
    ONE.format("[09:15] client", "[09:16] chatbot"),
    ONE.format("2026-01-05 09:15:02 user", "2026-01-05 09:15:40 assistant"),
    ONE.format("Turn 1 (user)", "Turn 2 (assistant)"),
    ONE.format("Turn 1 - human", "Turn 2 - model"),
    ONE.format("User 1", "Assistant 1"),
    ONE.format("USER_1", "AI_1"),
    ONE.format("The user", "The AI assistant"),
    ONE.format("User (calm)", "Assistant (busy)"),
    ONE.format("> User", "> Assistant"),
    ONE.format("user >", "assistant >"),
    "user - I have a flat tyre.\nassistant - Is it the front wheel?",
    "user\tI have a flat tyre.\nassistant\tIs it the front wheel?",
    ONE.format('"user"', '"assistant"'),
    ONE.format("You said", "ChatGPT said"),
    ONE.format("Benutzer", "Assistent"),
    "用户：我的轮胎没气了。\n助手：是前轮吗？",
    "You: I have a flat tyre.\n\nAgent: Is it the front wheel?\n\nYou:",
    "System: You play a cyclist.\nUser: I have a flat tyre.\nAssistant: Front wheel?",
    "User said I have a flat tyre.\nAssistant said is it the front wheel?",
    # Within one line.
    "User: I have a flat tyre. Assistant: Is it the front wheel? User:",
    "user: I have a flat tyre / assistant: is it the front wheel? / user: yes",
    # In brackets, as headings, as tags.
    "[USER]\nI have a flat tyre.\n[ASSISTANT]\nIs it the front wheel?",
    "[user] I have a flat tyre.\n[assistant] Is it the front wheel?",
    "## User\nI have a flat tyre.\n\n## Assistant\nIs it the front wheel?",
    "### Human:\nI have a flat tyre.\n### Assistant:\nIs it the front wheel?",
    "--- user ---\nI have a flat tyre.\n--- assistant ---\nIs it the front wheel?",
    "| user | I have a flat tyre. |\n| assistant | Is it the front wheel? |",
    "<user>I have a flat tyre.</user><assistant>Is it the front wheel?</assistant>",
    '<turn speaker="user">Flat tyre.</turn><turn speaker="assistant">Front?</turn>',
    "User\nI have a flat tyre.\n\nAssistant\nIs it the front wheel?",
    "<|im_start|>user\nI have a flat tyre.<|im_end|>",
    "[INST] I have a flat tyre. [/INST] Is it the front wheel?",
    # As data.
    '[{"role": "user", "content": "Flat tyre."}]',
    '[\n  {\n    "role": "assistant",\n    "content": "Which wheel?"\n  }\n]',
    "[{'role': 'user', 'content': 'Flat tyre.'}]",
    '{\\"role\\": \\"user\\", \\"content\\": \\"Flat tyre.\\"}',
    '[{"content": "Flat.", "role": "user"}, {"content": "Which?", "role": "agent"}]',
    '[{"from": "human", "value": "Flat tyre."}]',
    '[{"user": "Flat tyre."}, {"assistant": "Which wheel?"}]',
    '[["user", "Flat tyre."], ["assistant", "Which wheel?"]]',
    "[Turn(role='user', content='Flat tyre.')]",
    "[HumanMessage(content='Flat.'), AIMessage(content='Which wheel?')]",
    "- role: user\n  content: Flat tyre.\n- role: assistant\n  content: Which wheel?",
    # Announced.
    "Conversation so far:\n- Flat tyre.\n- Which wheel?",
    "Here is the chat history between you and the shop:\nFlat tyre.\nWhich wheel?",
    "# Conversation History\n\nFlat tyre.\n\nWhich wheel?",
    "**Previous messages**\nFlat tyre.\nWhich wheel?",
    "<conversation_history>\nFlat tyre.\n</conversation_history>",
    "<history>\n</history>\nWhat do you say?",
    "Below is a transcript of the conversation:\n\nFlat tyre.\nWhich wheel?",
    '{"mood": "calm", "history": [["Flat tyre.", "Which wheel?"]]}',
    "Dialogue:\nSpeaker 1: Flat tyre.\nSpeaker 2: Which wheel?",
    "This is what was said so far: flat tyre, which wheel.",
    "The assistant's last message:\nWhich wheel?",
    "Last agent message: Which wheel?",
    # Told to play the user.
    BIKE,
    "You are the customer in this conversation. The shop asks which wheel.",
    "Imagine you are a client of a bicycle shop.",
    "Take on the role of the user.",
    "You are a simulated user with this persona: calm.",
    "Now write the next\nmessage of the customer.",
    "What would the customer say to that?",
    "Continue as the user.",
    "You are simulating a customer of a bicycle shop. Say what you want.",
    "Pretend you are a user of an LLM app and start a conversation.",
    "You are role-playing as a real user. Begin with a short opening message.",
    "Your task is to act as the customer.",
    "Generate the next user message.",
    "Write the user's next reply, and nothing else.",
    "Respond as the customer would, in one short message.",
    "Given the above, produce the next utterance of the client.",
]


@pytest.mark.parametrize("text", QUOTED)
def test_a_prompt_that_quotes_a_conversation_is_refused(text):
    for prompt in (text, f"{FILLER}\n\n{text}\n\n{FILLER}"):
        for messages in (
            [{"role": "user", "content": prompt}],
            [{"role": "system", "content": BIKE}, {"role": "user", "content": prompt}],
            [{"role": "user", "content": "Hi"}, {"role": "user", "content": prompt}],
        ):
            error = refused(messages, intent=BIKE)
            assert (error.status, error.code) == (400, "quoted_conversation")
            assert error.param == f"messages[{len(messages) - 1}].content"
            assert "send the intent as the system message" in error.message


TURNS = [
    "Hi!",
    "Hello, how can I help you today?",
    "Welcome to the bicycle shop. I am an AI assistant: ask me anything!",
    "Hi, I'm your support agent. What can I do for you, dear customer?",
    "Good morning. Please write your first question below.",
    "You are talking to an assistant. A human agent can take over at any time.",
    "Your chat history is kept for thirty days.",
    "Hello! Note: the user manual is at https://example.org/user: read it first.",
    "Before we begin, tell me:\n- Name:\n- Email:\n- Order:",
    "I can see your order history: two tyres and a pump.",
    "Our conversation is recorded. You may stop at any time.",
    "Here is the code that you asked for:\n```python\nuser = get_user()\n```",
    "```json\n{\"name\": \"Ann\", \"role\": \"customer\"}\n```\nIs this your account?",
    "Q: How long does a repair take?\nA: One day.",
    "Let's play a game. I think of a number, and you guess it.",
    "Continuing our earlier chat: did the new router arrive?",
    "The assistant just restarted: please ask again.",
    "for user in users:\n    print(user)\nmodel = load()",
    "My role is to help you with the next step of your application.",
    "Please write your first question.",
    "Send the first message to start, or ask: what is a tyre?",
    "Open the chat window at the top.",
]  # fmt: skip


@pytest.mark.parametrize("text", TURNS)
def test_a_first_message_of_the_assistant_is_a_turn(text):
    system = {"role": "system", "content": BIKE}
    for messages in (
        [{"role": "user", "content": text}],
        [system, {"role": "user", "content": text}],
        [system, {"role": "assistant", "content": text}],
    ):
        assert accepted(messages)[-1].text == text


BEGIN = [
    "Please write an opening message for this chat. No other text.",
    "Generate an initial query to begin a conversation from your instructions.",
    "Write the first message of the customer.",
    "Say the very first line.",
    "Start the conversation.",
    "(Begin the chat now!)",
]


@pytest.mark.parametrize("text", BEGIN)
def test_an_instruction_to_begin_is_no_turn_of_the_assistant(text):
    system = {"role": "system", "content": BIKE}
    body = {"model": "user", "messages": [system, {"role": "user", "content": text}]}
    found = read(body, Script(["x"]), ServerConfig())
    assert found.conversation.turns == ()
    assert found.roles == "swapped"
    assert "messages[1] was left out: it asks for the first turn" in found.notes
    later = [system, *say(text, "my tyre is flat", "Which?", first="user")]
    assert [turn.text for turn in accepted(later)] == ["my tyre is flat", "Which?"]


@pytest.mark.parametrize("text", QUOTED)
def test_in_a_list_of_turns_an_answer_may_quote_what_it_likes(text):
    for first in ("user", "assistant"):
        messages = say("show me how a chat looks", text, first=first)
        assert accepted(messages)[-1].text == text
        assert len(accepted(say("hi", text, "and?", "So.", first=first))) == 4


@pytest.mark.parametrize("intent", [BIKE, ""])
def test_whoever_sends_the_intent_apart_knows_what_a_turn_is(intent):
    body = {"model": "user", "userlm": {"intent": intent}}
    for text in (QUOTED[0], FILLER * 10):
        messages = [{"role": "user", "content": text}]
        found = read({**body, "messages": messages}, Script(["x"]), ServerConfig())
        assert found.conversation.turns[0].text == text


def test_a_long_message_without_any_intent_is_refused():
    long = "word " * 81
    assert "is long and comes without an intent" in refused(say(long)).message
    assert accepted(say("word " * 80))
    assert "without an intent" in refused(say("请描述你的问题。" * 51)).message
    assert accepted(say(long), intent=BIKE)
    assert accepted([{"role": "system", "content": BIKE}, *say(long)])
    assert accepted(say("hi", long))


THREE = ONE.format("User", "Assistant") + "\nUser: No, the other one."


@pytest.mark.parametrize(
    ("system", "quoted"),
    [
        ("You play a customer. Write the next message of the user.", False),
        ("You simulate a user. Use the conversation history.", False),
        ("Customer: Ann, 34, calm.\nAgent: a bicycle shop.\nGoal: a new tyre.", False),
        (f"You play a customer. An example:\n{THREE}", False),
        (f"You play a customer.\n{THREE}", True),
        (f"You play a customer. Conversation so far:\n{THREE}", True),
        (f"Examples are above. Conversation so far:\n{THREE}", True),
        (f"Chat history:\n{ONE.format('Human', 'AI')}", True),
        ('Continue. [{"role": "assistant", "content": "Which wheel?"}]', False),
        (
            'Continue. [{"role": "user", "content": "Flat."}, '
            '{"role": "assistant", "content": "Which wheel?"}]',
            True,
        ),
    ],
)
def test_a_system_message_may_describe_the_user_but_not_quote_the_turns(system, quoted):
    assert quotes_conversation(system) is quoted
    told = {"role": "system", "content": system}
    for messages in ([told], [told, *say("Go on.")]):
        if quoted:
            error = refused(messages)
            assert error.code == "quoted_conversation"
            assert error.param == "messages[0].content"
        else:
            accepted(messages)
    assert accepted([told, *say(*LOG)])


def test_long_hostile_texts_take_no_time():
    hostile = ("you ", "write next ", "\n", "# ", '"role" ', "chat history ", "user ")
    begun = time.process_time()
    for part in hostile:
        text = part * (1_000_000 // len(part))
        is_prompt(text)
        quotes_conversation(text)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("text", "bridge"),
    [
        (
            "Now write the next message of the customer, as {'simulated_input': ...}",
            "deepeval",
        ),
        (
            "Conversation so far:\n<last_response>\nWhich wheel?\n</last_response>",
            "mlflow",
        ),
        (f"{QUOTED[0]}\nOutput `</finished>` when the conversation is over.", "adk"),
        (f"{QUOTED[0]}\nSet goal_reached once your tyre is mended.", "giskard"),
        (f"System: You have the following persona: calm.\n{QUOTED[0]}", "opik"),
        (QUOTED[0], None),
    ],
)
def test_a_refusal_names_the_bridge_that_serves(text, bridge):
    message = refused([{"role": "user", "content": text}], intent=BIKE).message
    assert "docs/harnesses.md" in message
    assert (f"userlm.bridges.{bridge} " in message) is (bridge is not None)


def test_the_client_reads_what_to_send_instead(tiny):
    with (
        serving(trained(tiny)) as server,
        pytest.raises(openai.BadRequestError, match="each turn as a message") as error,
    ):
        server.ask(say(f"{FILLER}\n{QUOTED[0]}"))
    assert error.value.code == "quoted_conversation"


def accepted(messages, intent=None):
    """The turns that are found in the messages of a request."""
    body = {"model": "user", "messages": messages}
    config = ServerConfig(intent=intent)
    return read(body, Script(["x"]), config).conversation.turns or messages


def refused(messages, intent=None):
    with pytest.raises(RequestError) as error:
        accepted(messages, intent)
    return error.value
