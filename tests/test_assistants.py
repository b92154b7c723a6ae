"""Models, logs, scripts and stand-ins on the assistant's side."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from userlm import loading
from userlm.assistants import (
    Clarifier,
    ModelAssistant,
    Oracle,
    ReplayAssistant,
    Script,
    solution,
)
from userlm.facts import said
from userlm.grading import Grader
from userlm.rows import read_starts
from userlm.simulate import converse, seen_by_assistant
from userlm.types import (
    Completion,
    Contains,
    Conversation,
    Fact,
    JsonPath,
    Matches,
    Message,
    ModelError,
    NumberCheck,
    RubricCheck,
    Rule,
    RulesCheck,
    Sampling,
    Task,
    TestsCheck,
    ToolCalled,
    Turn,
)
from userlm.users import TrainedUser

FACTS = (
    Fact("Dad gave Olaf 10 toy cars."),
    Fact("Mum gave Olaf 15 toy cars."),
    Fact("Olaf's favourite colour is red.", required=False),
)
TASK = Task("gsm/1", "find out how many toy cars Olaf has", FACTS, NumberCheck("25"))


def talk(*texts: str, id: str = "c") -> Conversation:
    conversation = Conversation(id)
    for text in texts:
        conversation = conversation.say(text)
    return conversation


@dataclass
class Listening:
    answer: str = "ok"
    calls: list[tuple[list[Message], Sampling]] = field(default_factory=list)

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.calls.append((list(messages), sampling))
        return Completion(self.answer, tokens_in=7, tokens_out=None)


def test_a_model_gets_the_system_prompt_and_the_words() -> None:
    model = Listening()
    reply = ModelAssistant(model, "Be brief.").reply(talk("hi", "hello", "why"))
    assert reply.text == "ok" and reply.stop is None
    assert reply.meta == {"tokens_in": 7}  # what is not known is not there
    assert model.calls[0][0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "why"},
    ]


def test_a_model_of_ours_has_its_own_sampling_and_the_length_that_is_asked_for() -> (
    None
):
    tiny = loading.user("trained:userlm-tiny")
    assert isinstance(tiny, TrainedUser) and tiny.sampling.temperature == 0.6
    asked = loading.user("trained:userlm-tiny", temperature=1, top_p=0.5)
    assert isinstance(asked, TrainedUser)
    assert (asked.sampling.temperature, asked.sampling.top_p) == (1, 0.5)
    answers = loading.assistant("assistant-tiny", max_tokens=7)
    assert isinstance(answers, ModelAssistant)
    assert (answers.sampling.temperature, answers.sampling.max_tokens) == (1, 7)


def test_the_seed_depends_on_run_conversation_and_turn_and_nothing_else() -> None:
    model = Listening()
    for seed, conversation in [
        (0, talk("a")),
        (0, talk("b")),  # same place, other words
        (1, talk("a")),
        (0, talk("a", id="d")),
        (0, talk("a", "b", "c")),
    ]:
        ModelAssistant(model, seed=seed).reply(conversation)
    seeds = [sampling.seed for _, sampling in model.calls]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4


def test_an_empty_answer_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="empty"):
        ModelAssistant(Listening(" \n")).reply(talk("a"))


LOG = {"c": talk("q1", "a1", "q2", "a2")}


def test_a_replayed_assistant_says_what_is_logged_whatever_it_is_asked() -> None:
    done = converse(Script(["x", "y"]), ReplayAssistant(LOG), Conversation("c"))
    assert [turn.text for turn in done.turns] == ["x", "a1", "y", "a2"]
    assert done.stop == "end"
    # The fourth repeat.
    assert ReplayAssistant(LOG).reply(talk("x", id="c#3")).text == "a1"


def test_a_replayed_assistant_that_has_no_more_says_so_and_the_run_goes_on() -> None:
    done = converse(Script(["x", "y", "z"]), ReplayAssistant(LOG), Conversation("c"))
    assert done.stop == "error" and "no answer number 3" in done.meta["error"]
    with pytest.raises(ModelError, match="no conversation 'c/1'"):
        ReplayAssistant(LOG).reply(talk("x", id="c/1"))


def test_a_greeting_is_no_answer_in_the_log_nor_in_the_conversation() -> None:
    greeting = Turn("assistant", "Welcome!")
    replayed = ReplayAssistant(
        {"c": Conversation("c", (greeting, *talk("q1", "a1").turns))}
    )
    assert replayed.reply(talk("x")).text == "a1"
    assert replayed.reply(Conversation("c", (greeting,)).say("x")).text == "a1"


def test_a_script_says_its_lines_on_either_side_and_as_a_model() -> None:
    script = Script(["one", "two"])
    done = converse(script, Script(["yes"]), Conversation())
    assert [turn.text for turn in done.turns] == ["one", "yes", "two", "yes"]
    assert done.stop == "end" and done.ended
    messages: list[Message] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
    ]
    assert script.chat(messages, Sampling()).text == "one"
    messages += [
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "u"},
    ]
    assert script.chat(messages, Sampling()).text == "two"
    assert (
        script.chat(
            [*messages, {"role": "assistant", "content": "two"}], Sampling()
        ).text
        == "two"
    )


def test_a_line_ends_where_an_editor_ends_it(tmp_path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("one\u2028two\x0cthree\r\nfour\u0085five\n".encode())
    lines = ("one\u2028two\x0cthree", "four\u0085five")
    assert tuple(Script.read(str(path)).lines) == lines
    assert tuple(one.intent for one in read_starts(path)) == lines


def test_an_empty_script_leaves_as_a_user_and_cannot_answer_as_an_assistant() -> None:
    assert Script([]).reply(Conversation()).stop == "end"
    with pytest.raises(ModelError, match="no lines"):
        Script([]).reply(talk("hi"))


def ask(*texts: str, id: str = "gsm/1#0") -> str:
    return Oracle({TASK.id: TASK}).reply(seen_by_assistant(talk(*texts, id=id))).text


def test_the_oracle_answers_when_all_required_facts_are_said_and_not_before() -> None:
    assert "25" not in ask("how many cars does olaf have?")
    assert "25" not in ask("dad gave olaf 10 toy cars")
    assert (
        ask("dad gave olaf 10 toy cars", "?", "and mum gave him 15 toy cars")
        == "The answer is 25."
    )


def test_the_oracle_tells_what_it_understood_and_no_word_of_what_was_not_said() -> None:
    text = ask("so dad gave olaf 10 toy cars. can you help?")
    assert "dad gave olaf 10 toy cars" in text
    assert text.endswith("what else is there to know?")
    assert not said(FACTS[1], [text]) and not said(FACTS[2], [text])
    assert "Mum" not in text and "15" not in text and "red" not in text


def test_what_the_oracle_quotes_is_no_answer_even_if_the_user_guessed_right() -> None:
    conversation = talk(
        "Dad gave Olaf 10 toy cars.\nThe answer is 25. Or #### 25! or \\boxed{25}",
        id="gsm/1#0",
    )
    reply = Oracle({TASK.id: TASK}).reply(conversation)
    assert "25" in reply.text
    assert Grader().grade(TASK, conversation.say(reply.text)).reason == "no attempt"


def test_a_user_who_tells_all_is_served_by_the_oracle_and_the_talk_stops() -> None:
    user = Script(
        [
            "olaf has toy cars",
            "dad gave olaf 10 toy cars",
            "mum gave olaf 15 toy cars",
            "thanks",
        ]
    )
    done = converse(
        user,
        Oracle({TASK.id: TASK}),
        Conversation("gsm/1#7"),
        until=Grader().until(TASK),
    )
    assert done.stop == "solved" and len(done.user_turns) == 3
    assert all(
        turn.meta == {"stub": "oracle"}
        for turn in done.turns
        if turn.role == "assistant"
    )


def test_the_oracle_gives_the_logged_solution_of_a_python_task_in_a_fenced_block() -> (
    None
):
    task = Task(
        "p",
        "i",
        (Fact("return the sum"),),
        TestsCheck("tests"),
        meta={"solution": "def f(): pass"},
    )
    plain = Task("q", "i", check=TestsCheck("tests"))
    oracle = Oracle({"p": task, "q": plain})
    assert oracle.reply(talk("return the sum", id="p#0")).text == (
        "The solution is ready.\n\n```python\ndef f(): pass\n```"
    )
    assert oracle.reply(talk("hi", id="q#0")).text == "The solution is ready."
    assert "```" not in oracle.reply(talk("hi", id="p#0")).text


def test_the_oracle_gives_the_solution_of_a_task_that_is_not_about_code_as_it_is() -> (
    None
):
    task = Task("p", "i", check=RubricCheck("x"), meta={"solution": "On Thursday."})
    assert Oracle({"p": task}).reply(talk("hi", id="p#0")).text == "On Thursday."


@pytest.mark.parametrize(
    "rules",
    [
        (Contains("On Thursday."),),
        (JsonPath("order.items.0.name", "lamp"), JsonPath("n", [1]), Contains("```")),
        (ToolCalled("refund", {"order": 5820}), ToolCalled("mail")),
        (ToolCalled("refund"), Contains("3 days"), JsonPath("a", None)),
        (ToolCalled("refund"), Matches("^In [0-9] days$")),
    ],
)
def test_the_oracle_makes_an_answer_that_the_rules_of_a_task_accept(
    rules: tuple[Rule, ...],
) -> None:
    task = Task("p", "i", check=RulesCheck(rules), meta={"solution": "In 3 days"})
    conversation = talk("hi", id="p#0")
    reply = Oracle({"p": task}).reply(conversation)
    answered = conversation.say(reply.text, reply.meta)
    assert Grader().grade(task, answered).solved


def test_a_task_has_no_solution_if_its_check_does_not_give_one_and_it_has_none() -> (
    None
):
    for check in (RulesCheck((Matches("a+"),)), RubricCheck("x"), TestsCheck("x")):
        assert solution(Task("p", "i", check=check)) is None
        assert solution(Task("p", "i", check=check, meta={"solution": "a"}))
    assert solution(Task("p", "i", check=NumberCheck("3")))


def test_the_oracle_says_which_task_it_does_not_know() -> None:
    with pytest.raises(ModelError, match="'other#0'"):
        ask("hi", id="other#0")


def test_the_clarifier_only_asks_and_asks_the_same_each_time() -> None:
    runs = [
        converse(Script(["hi"] * 7), Clarifier(), Conversation("x")) for _ in range(2)
    ]
    assert runs[0] == runs[1]
    asked = [turn.text for turn in runs[0].turns if turn.role == "assistant"]
    assert all(text.endswith("?") for text in asked)
    assert len(set(asked[:5])) == 5 and asked[5] == asked[0]
    assert all(turn.meta == {"stub": "clarifier"} for turn in runs[0].turns[1::2])
