"""The end of a conversation, as harnesses see it: a stop phrase, or a text where there is none."""

import time

import pytest
from test_serve import ROME, read, say, serving, streamed

from userlm import Reply
from userlm.assistants import Script
from userlm.serving.endings import stop_phrase_in
from userlm.serving.schema import RequestError, ServerConfig

PLAY = "You play a customer of a bicycle shop. Be brief.\n"

NAMED = [
    ("Once your goal is met, write '###STOP###' to end the conversation.", "###STOP###"),
    ("- If all is settled, generate the '###DONE###' token.\n- If you are handed on, generate "
     "the '###TRANSFER###' token to show it.", "###DONE###"),
    ("- If you cannot go on, generate '###OFF-TOPIC###' to end the chat.\n"
     "- If your task is complete, generate '###STOP###' to end the chat.", "###STOP###"),
    ("When you have no further questions, reply with exactly ###END###", "###END###"),
    ("Output `</finished>` to show that the conversation with the shop is over.", "</finished>"),
    ("<scenario>A flat tyre.</scenario>\nSay </done> when everything is solved.", "</done>"),
    ("When you are satisfied, respond with [END] and nothing else.", "[END]"),
    ("If the shop refuses twice, write [STOP].", "[STOP]"),
    ("You may leave at any time: add [end of chat] to your last message.", "[end of chat]"),
    ("To end the call, output <END_OF_CALL>.", "<END_OF_CALL>"),
    ("If you want to stop, emit <|done|>.", "<|done|>"),
    ("When finished, produce {{END}}", "{{END}}"),
    ('Reply "TERMINATE" when the task has been completed.', "TERMINATE"),
    ("Say 'DONE' once the issue is resolved.", "DONE"),
    ("Type `EXIT` if you wish to leave the conversation.", "EXIT"),
    ("If there is nothing else that you need, answer with the single word “FINISHED”.", "FINISHED"),
    ("After your question has been answered, send 'CONVERSATION OVER'.", "CONVERSATION OVER"),
    ("When the goal is achieved,\nreply with 'GOAL_REACHED'.", "GOAL_REACHED"),
    ("Once you are happy with the plan, say only 'PINEAPPLE'.", "PINEAPPLE"),
    ("End the chat with the code word \"ZEBRA\".", "ZEBRA"),
    ("When your request is fulfilled, output only:\n\n###STOP###", "###STOP###"),
    ("At the end of the conversation, use a stop word, e.g. 'QUIT'.", "QUIT"),
    ("Do not say 'DONE' until the task is complete.", "DONE"),
    ("Never write anything but '###END###' after your problem is solved.", "###END###"),
    ("Reply with the next message.\nIf the conversation should end, reply\n\"STOP\"", "STOP"),
]  # fmt: skip

NOT_NAMED = [
    "Send the message of the user and just STOP.",
    "Do NOT answer for the shop. STOP when you are done.",
    "**NEVER** give up until the task is DONE.",
    "<scenario>\nYour chain broke.\n</scenario>\nEnd the conversation when it is mended.",
    "<goal>Say that you want to end the contract.</goal>",
    "<end>Finish the conversation politely.</end>",
    "Your story stands between [START] and [END]. Use it to reach your goal.",
    "###INSTRUCTIONS###\nEnd the conversation when your goal is met.",
    "### TASK ###\nSay what is wrong, until everything is solved.",
    "You are [NAME] from [CITY]. When you are done, say thanks to [AGENT].",
    "Give <ORDER_ID> and say goodbye when your request is fulfilled.",
    "Ask for the 'ECONOMY' fare, and end the conversation when it is booked.",
    "If the shop offers 'BASIC', say that it is not enough for your task to be done.",
    "Say that you want the 'VIP' ticket until your request is fulfilled.",
    "If the shop answers 'DONE', ask for the bill.",
    "Your parcel has been 'COMPLETE' for a week. Ask where it is.",
    "You got a text that says to reply 'STOP' for no more adverts; ask why.",
    "Do not say 'DONE' in this conversation, even if your task is complete.",
    "Write short messages (see [3]). End the chat after five of them.",
    "The user wants a refund. They are patient.",
    "Use the words 'TBD' and 'ASAP'. You are busy.",
    "Your goal is to finish the 'AIM' level of a game. Say how far you got.",
    ROME,
    "",
]  # fmt: skip


@pytest.mark.parametrize(("told", "phrase"), NAMED)
def test_a_prompt_that_names_its_stop_phrase_is_understood(told, phrase):
    for prompt in (told, PLAY + told, f"{PLAY}## The end\n{told}\nStay in your role."):
        assert stop_phrase_in(prompt) == phrase


@pytest.mark.parametrize("told", NOT_NAMED)
def test_capitals_tags_and_placeholders_are_no_stop_phrase(told):
    assert stop_phrase_in(told) is None
    assert stop_phrase_in(PLAY + told) is None


@pytest.mark.parametrize("code", ['"SKU{}"', "</sku{}>", "##sku{}##"])
def test_a_scenario_may_have_hundreds_of_codes_before_the_stop_phrase(code):
    items = "".join(f"- item {code.format(n)} costs 7 dollars\n" for n in range(400))
    told = "When your goal is satisfied, say '###STOP###' to end the conversation."
    assert stop_phrase_in(f"{PLAY}{items}{told}") == "###STOP###"


@pytest.mark.slow
def test_long_hostile_prompts_are_searched_in_no_time():
    parts = (
        "say [END] ",
        "say <END>. ",
        "'STOP' ",
        "say say ",
        "end the chat ",
        "not ",
        "when ",
    )
    for part in (*parts, "[END", "###A", "</a>", "<a>", '"AB" ', "if a goal, "):
        begun = time.process_time()
        stop_phrase_in("say " + part * (1_000_000 // len(part)))
        assert time.process_time() - begun < 1, part


class Leaves:
    """Ends the conversation with words, and once it has been answered, without."""

    def reply(self, conversation):
        is_first = len(conversation.turns) < 2
        return Reply("Thanks, bye." if is_first else "", "end")


ENDS = PLAY + "When your goal is met, reply with '###STOP###' to end the conversation."
STOPS = {"role": "system", "content": ENDS}
GREETING = say("Hello!", first="user")
LATER = say("Hello!", "My tyre is flat.", "Take a new one.")


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_prompt_names_is_said_after_the_last_words_or_alone(stream):
    with serving(Leaves()) as server:
        said = []
        for messages in (GREETING, LATER):
            answer = server.ask([STOPS, *messages], stream=stream)
            if stream:
                content, last, _ = streamed(answer)
                said.append((content, last.userlm["notes"]))
            else:
                content = answer.choices[0].message.content
                said.append((content, answer.userlm["notes"]))
    note = "the stop phrase is '###STOP###', which the prompt names"
    assert [content for content, _ in said] == [
        "Thanks, bye.\n###STOP###",
        "###STOP###",
    ]
    assert all(note in notes for _, notes in said)


def test_the_stop_phrase_of_the_request_wins_over_that_of_the_server_and_of_the_prompt():
    def phrase(configured=None, **options):
        body = {"model": "user", "messages": [STOPS, *GREETING], "userlm": options}
        found = read(body, Leaves(), ServerConfig(stop_phrase=configured))
        return found.stop_phrase, found.notes

    assert phrase()[0] == "###STOP###"
    assert phrase(stop_phrase="BYE")[0] == phrase("[x]", stop_phrase="BYE")[0] == "BYE"
    assert phrase("[x]", stop_phrase="")[0] is None
    configured, notes = phrase("[x]")
    assert configured == "[x]"
    assert "the prompt seems to name '###STOP###'" in " ".join(notes)
    assert phrase("###STOP###")[1] == phrase("###STOP###", stop_phrase="a")[1]


def test_a_harness_never_gets_an_empty_turn_at_the_end_and_other_callers_do():
    with serving(Leaves()) as server:
        assert server.ask(LATER).choices[0].message.content == "[end]"
        log = say("My tyre is flat.", "Take a new one.")
        assert server.ask(log).choices[0].message.content == ""
        assert server.ask(GREETING).choices[0].message.content == "Thanks, bye."
    with serving(Leaves(), end_says="Goodbye.") as server:
        assert server.ask(LATER).choices[0].message.content == "Goodbye."
    with serving(Leaves(), end_says="") as server:
        assert server.ask(LATER).choices[0].message.content == ""


@pytest.mark.parametrize("last", ["[end]", "bye\n[end]"])
def test_a_harness_that_goes_on_after_the_end_is_told_so(last):
    body = {"model": "user", "messages": say("Hi", last, "And?")}
    with pytest.raises(RequestError, match="--guard no-end") as refused:
        read(body, Script(["x"]), ServerConfig())
    assert refused.value.code == "conversation_over"


def test_a_harness_that_goes_on_after_the_stop_phrase_of_its_prompt_is_told_so():
    body = {"model": "user", "messages": [STOPS, *say("Hi", "bye\n###STOP###", "And?")]}
    with pytest.raises(RequestError) as refused:
        read(body, Script(["x"]), ServerConfig())
    assert refused.value.code == "conversation_over"
