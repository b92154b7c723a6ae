"""What a model only thought is no speech."""

import time
from dataclasses import replace

import pytest

from userlm import loading
from userlm.assistants import ModelAssistant
from userlm.rows import write_conversations
from userlm.thought import SpeechOnly, open_thought, split_thought
from userlm.types import Completion, Conversation, ModelError, Reply, Sampling
from userlm.users import PromptedUser


@pytest.mark.parametrize(
    "text, said, thought",
    [
        ("hi there", "hi there", ""),
        ("  as it is \n", "  as it is \n", ""),
        ("<think>Greet.</think>\n\nhi", "hi", "Greet."),
        ("<think>\n\n</think>\n\nhi", "hi", ""),
        ("Greet.\n</think>\nhi", "hi", "Greet."),
        ("<think>Is it time for", "", "Is it time for"),
        # cut off in its thought, unless the tag is only spoken about
        ("hi\n <think>And now", "hi", "And now"),
        ("<think>a</think> <think>And now", "", "a\n\nAnd now"),
        ("use the <think> tag to think", "use the <think> tag to think", ""),
        ("b</think>use the <think> tag", "use the <think> tag", "b"),
        ("close it: </think>.", "close it: </think>.", ""),
        ("a </think>, then b", "a </think>, then b", ""),
        ('Write "</think>" there', 'Write "</think>" there', ""),
        ("a</think>... well", "... well", "a"),
        ('a\n</think>"Hi," he said', '"Hi," he said', "a"),
        ("</think>.", ".", ""),
        ("a <think>b</think> c <think>d</think> e", "a\n\nc\n\ne", "b\n\nd"),
        ("<think>a <think>b</think> c", "c", "a <think>b"),
        ("a</think>b</think>c", "c", "a\n\nb"),
        ("<THINK>a</Think>b", "b", "a"),
        ("<thinking>a</thinking>b", "b", "a"),
        ("<reasoning>a</reasoning>b", "b", "a"),
        ("[THINK]a[/THINK]b", "b", "a"),
        ("◁think▷a◁/think▷b", "b", "a"),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", "b", "a"),
        ("<|think|>a<|/think|>b", "b", "a"),
        ("<unused94>thought\na<unused95>b", "b", "a"),
        ("<think>a</ think>b", "b", "a"),
        ("a</ think>b", "b", "a"),
        ("&lt;think&gt;a&lt;/think&gt;b &lt;i&gt;", "b &lt;i&gt;", "a"),
        ("as &lt;think&gt; and &", "as &lt;think&gt; and &", ""),
        # gpt-oss, with its special tokens and without
        (
            "<|start|>assistant<|channel|>analysis<|message|>a<|end|>"
            "<|start|>assistant<|channel|>final<|message|>b<|return|>",
            "b",
            "a",
        ),
        ("analysisHm.assistantfinalYes.", "Yes.", "Hm."),
        ("analysis of what assistants say", "analysis of what assistants say", ""),
        ("My analysis: assistantfinal", "My analysis: assistantfinal", ""),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final "
            "<|constrain|>json<|message|>{}",
            "{}",
            "a",
        ),
        # cut off in its thought, and what only looks like it
        ("analysisWe need to", "", "We need to"),
        ("analysisThe user wants X so I", "", "The user wants X so I"),
        ("analysisResult = run(x)", "analysisResult = run(x)", ""),
        ("analysis We need to", "analysis We need to", ""),
        ("<|inner_prefix|>a<|inner_suffix|>b", "b", "a"),
        (
            "Here is my thought process:\na\n\nHere is my response:\nb",
            "b",
            "a",
        ),
        ("Here is my thought process: a", "Here is my thought process: a", ""),
        # as programs for chats store it
        (
            '<details type="reasoning" done="true" duration="5">\n<summary>s</summary>\n'
            "> a\n</details>\nb <details>c</details>",
            "b <details>c</details>",
            "<summary>s</summary>\n> a",
        ),
        ("<details>c</details>", "<details>c</details>", ""),
        (":::thinking\na\n:::\nb\n:::note\nc\n:::", "b\n:::note\nc\n:::", "a"),
        # tags around what was said
        (
            "<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>b"
            "<|end_of_solution|>",
            "b",
            "a",
        ),
        (
            "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>",
            "b",
            "a",
        ),
        ("<think>a</think>b<|end|>", "b", "a"),
        ("<think>a</think>\n<answer>\nb\n</answer>", "b", "a"),
        ("<Thought>a</Thought><Output>b", "b", "a"),
        ("<think>a</think><answer>b</answer> c", "<answer>b</answer> c", "a"),
        ("<answer>b</answer>", "<answer>b</answer>", ""),
        ("<longcat_think>a</longcat_think>b", "b", "a"),
        # quoted
        ("Write `<think>` first.", "Write `<think>` first.", ""),
        ("```\n<think>a</think>\n```", "```\n<think>a</think>\n```", ""),
        ("<think>half `of</think>it `</think>` is", "it `</think>` is", "half `of"),
        ("<think>```py\nx = 1</think>so", "so", "```py\nx = 1"),
        ("a thought < think > b", "a thought < think > b", ""),
        ("<think >a</think\n>b", "b", "a"),
        ("<antThinking>a</antThinking>b", "b", "a"),
        # a fence that began in the thought quotes nothing
        (
            "so ```python to start\n</think>\nHere:\n```python\nx\n```",
            "Here:\n```python\nx\n```",
            "so ```python to start",
        ),
        (
            "```py\nx\n</think>\nHere:\n```py\ny\n```",
            "Here:\n```py\ny\n```",
            "```py\nx",
        ),
        ("I`ll do it <think>a</think> that`s it", "I`ll do it\n\nthat`s it", "a"),
        ("```\n~~~\n<think>a</think>b\n~~~", "```\n~~~\n<think>a</think>b\n~~~", ""),
        ("```\nx\n~~~\n<think>a</think>b", "```\nx\n~~~\n\nb", "a"),
    ],
)
def test_speech_and_thought_are_split(text, said, thought):
    assert split_thought(text) == (said, thought)
    assert split_thought(said) == (said, "")


def test_a_long_text_is_split_in_linear_time():
    for part in (
        "<think>a</think>b",
        "```",
        "`",
        "`a``b```c",
        "<think>",
        "</think>",
        "a <think> ",
        "```a\n",
        "```a\n</think>\n",
        "\n~~~a\nb\n",
        '<details type="reasoning">',
        '<details type="reasoning" ',
        ":::thinking\n",
        "Here is my thought process:",
        "analysis",
        "<answer>",
        "</answer> ",
    ):
        since = time.process_time()
        split_thought("<think>a</think>" + part * (200_000 // len(part)) + "</think>")
        split_thought(part * (200_000 // len(part)) + "\n```")
        assert time.process_time() - since < 5, part


@pytest.mark.parametrize(
    "prompt, tag",
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<think> is a tag<|im_start|>assistant\n", ""),
    ],
)
def test_a_prompt_may_open_the_thought(prompt, tag):
    assert open_thought(prompt) == tag


class Says:
    """A chat model with these answers, in order; it notes the seeds."""

    def __init__(self, *texts):
        self.texts = list(texts)
        self.seeds = []

    def chat(self, messages, sampling):
        self.seeds.append(sampling.seed)
        return Completion(self.texts.pop(0))


ASKED = Conversation("a", intent="plan a garden").say("hi").say("How large is it?")
MARKER = "<|endconversation|>"


def test_an_end_marker_in_a_thought_ends_nothing():
    says = Says(f"<think>Time for {MARKER}? No.</think>it is 20 m2")
    reply = PromptedUser(says).reply(ASKED)
    assert (reply.text, reply.stop) == ("it is 20 m2", None)
    assert reply.meta["thought"] == f"Time for {MARKER}? No."


def test_an_answer_that_is_all_thought_is_sampled_again_with_another_seed():
    says = Says(f"<think>Is it time for {MARKER}", "<think>Hm</think>", "20 m2")
    assert PromptedUser(says).reply(ASKED).text == "20 m2"
    assert len(set(says.seeds)) == 3


@pytest.mark.parametrize(("unknown", "total"), [(False, 30), (True, None)])
def test_the_tokens_of_samples_that_were_all_thought_are_counted(unknown, total):
    says = Says(*["<think>Hm</think>"] * 2, "20 m2")
    chat = says.chat

    def counted(messages, sampling):
        is_known = says.seeds or not unknown
        tokens = 10 if is_known else None
        return replace(chat(messages, sampling), tokens_in=tokens, tokens_out=5)

    says.chat = counted
    meta = PromptedUser(says).reply(ASKED).meta
    assert (meta.get("tokens_in"), meta["tokens_out"]) == (total, 15)


@pytest.mark.parametrize("temperature, tries", [(1.0, 3), (0.0, 1)])
def test_a_model_that_only_thinks_is_an_error_that_says_so(temperature, tries):
    says = Says(*["<think>Let me see"] * 3)
    assistant = ModelAssistant(says, sampling=Sampling(temperature))
    with pytest.raises(ModelError, match="only thought and said nothing") as caught:
        assistant.reply(Conversation("a").say("hi"))
    assert caught.value.reason == "only thought" and len(says.seeds) == tries


def test_a_thought_is_not_sent_back_as_history():
    says = Says("<think>Size?</think>How large is it?")
    conversation = Conversation("a").say("hi")
    reply = ModelAssistant(says).reply(conversation)
    assert reply.text == "How large is it?" and reply.meta["thought"] == "Size?"


class Python:
    def __init__(self, reply):
        self._reply = reply

    def reply(self, conversation):
        return self._reply


def test_python_code_that_thinks_aloud_is_understood():
    said = SpeechOnly(Python(Reply("<think>hm</think>yes", meta={"x": 1}))).reply(ASKED)
    assert said == Reply("yes", meta={"x": 1, "thought": "hm"})
    ended = SpeechOnly(Python(Reply("<think>done", "end"))).reply(ASKED)
    assert ended == Reply("", "end", {"thought": "done"})
    empty = SpeechOnly(Python(Reply("<think>\n</think>yes"))).reply(ASKED)
    assert empty == Reply("yes")
    with pytest.raises(ModelError, match="only thought"):
        SpeechOnly(Python(Reply("<think>done"))).reply(ASKED)


@pytest.mark.parametrize("side", [loading.user, loading.assistant])
def test_a_script_that_thinks_aloud_is_understood(side, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("<think>hm</think>yes")
    start = Conversation("a")
    if side is loading.assistant:
        start = start.say("hi")
    reply = side(f"script:{path}").reply(start)
    assert (reply.text, dict(reply.meta)) == ("yes", {"thought": "hm"})
    found = loading.chat_model(f"script:{path}").chat([], Sampling())
    assert (found.text, found.thought) == ("yes", "hm")


def test_of_a_replayed_log_the_assistant_thinks_in_tags_and_the_person_does_not(
    tmp_path,
):
    path = tmp_path / "log.jsonl"
    said = "<think>hm</think>yes"
    write_conversations(path, [Conversation("a").say(said).say(said)])
    asked = Conversation("a")
    assert loading.user(f"replay:{path}").reply(asked).text == said
    reply = loading.assistant(f"replay:{path}").reply(asked.say(said))
    assert (reply.text, dict(reply.meta)) == ("yes", {"thought": "hm"})
