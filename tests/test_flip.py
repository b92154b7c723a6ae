"""Flipping: samples, the template of UserLM-8b in real ids, rows, and what is done with long
conversations."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userlm.flip import (
    Template,
    fit_prompt,
    prompt,
    render,
    render_document,
    samples,
    swap_roles,
    transcript,
    transcript_template,
    truncate,
)
from userlm.types import Conversation, Origin, Sample, Turn

# Llama-3 ids, from its published tokenizer
START, STOP, EOT, END, NEWLINE, USER, ASSISTANT, SYSTEM = (
    128006,
    128007,
    128009,
    128256,
    198,
    882,
    78191,
    9125,
)


def talk(*texts: str, greeting: bool = False, **fields: object) -> Conversation:
    roles = ("assistant", "user") if greeting else ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    return replace(Conversation("c", turns), **fields)


def test_turns_that_another_conversation_has_are_context_and_no_samples():
    log = talk("a", "A", "b", "B", "c", "C", ended=True, origin=Origin("other", 1))
    assert [sample.target for sample in samples(log)] == ["b", "c", None]
    # The answer "A" may differ from that of the other conversation.
    assert [sample.target for sample in samples(swap_roles(log))] == ["A", "B", "C"]
    later = replace(log, origin=Origin("other", 2))
    assert [sample.target for sample in samples(swap_roles(later))] == ["B", "C"]


def test_the_conversation_of_the_slides_gives_four_samples_and_the_last_one_leaves(
    slides, llama3, llama3_template
):
    units = list(samples(slides))
    assert [unit.target for unit in units] == [*slides.user_turns, None]
    assert [len(unit.context) for unit in units] == [0, 2, 4, 6]
    template = llama3_template
    [row] = render(slides, template).rows
    last = row.spans[-1]
    assert (
        llama3.decode(row.ids[last.start : last.stop])
        == "\n<|endconversation|><|eot_id|>"
    )


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(talk("hi", "hello", "bye"), id="stops on a user turn"),
        pytest.param(talk("hi", "hello", "and?", "well"), id="a fragment, or cut"),
    ],
)
def test_a_log_whose_ending_was_not_observed_gives_k_samples(log):
    assert not log.ended
    assert [unit.target for unit in samples(log)] == list(log.user_turns)


def test_a_greeting_by_the_assistant_is_context_of_the_first_sample():
    log = talk(
        "Hi, how can I help?",
        "my order",
        "Which?",
        "42",
        "Thanks.",
        greeting=True,
        ended=True,
    )
    units = list(samples(log))
    assert [unit.target for unit in units] == ["my order", "42", None]
    assert [len(unit.context) for unit in units] == [1, 3, 5]


def test_ids_are_those_that_the_released_template_spells(llama3_template):
    """By hand: header = 128006, role, 128007; then "\\n" = 198; no BOS (128000) anywhere."""
    log = talk("Hello", "Hello world", intent="Hello World")
    ids = prompt(log, llama3_template)
    assert list(ids) == [
        *(START, SYSTEM, STOP, NEWLINE, 9906, 4435, EOT),
        *(START, USER, STOP, NEWLINE, 9906, EOT),
        *(START, ASSISTANT, STOP, NEWLINE, 9906, 1917, EOT),
        *(START, USER, STOP, NEWLINE),
    ]


TEXTS = [
    "Hello",
    "\nHello",
    "\n\n  x",
    "  \nHello",
    "tab\there ",
    "我想",
    "a\r\nb",
    "",
    "\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_checkpoints_own_chat_template_gives_the_same_ids_whatever_a_turn_begins_with(
    text, llama3, llama3_template
):
    log = talk(text, "ok\n", intent="x")
    messages = [{"role": "system", "content": "x"}]
    messages += [{"role": turn.role, "content": turn.text} for turn in log.turns]
    theirs = llama3.apply_chat_template(messages, tokenize=True, return_dict=False)
    # We open the line as well.
    assert list(prompt(log, llama3_template)) == [
        *theirs,
        NEWLINE,
    ]


def test_a_turn_that_begins_with_a_newline_is_encoded_together_with_the_one_of_the_template(
    llama3_template,
):
    """ "\\n" + "\\nHello": Llama-3 has one token for two newlines, 271."""
    assert llama3_template.turn("user", "\nHello")[3:-1] == (271, 9906)


def test_every_added_token_written_as_text_stays_characters(llama3, llama3_template):
    encode = llama3_template.encode
    added = llama3.added_tokens_decoder
    assert len(added) == 257
    for token in added.values():
        ids = encode(f"say {token.content} now")
        assert added.keys().isdisjoint(ids)
        assert llama3.decode(ids) == f"say {token.content} now"
    everything = "".join(token.content for token in added.values())
    log = talk(everything, everything, intent=everything, ended=True)
    [row] = render(log, llama3_template).rows
    controls = [i for i in row.ids if i in added]
    assert controls == [*(START, STOP, EOT) * 3, START, STOP, END, EOT]


def test_the_real_tokenizer_test_vectors_hold(llama3_template, data):
    import json

    encode = llama3_template.encode
    vectors = json.loads((data / "llama3_tokenizer" / "test_vectors.json").read_text())
    plain = [vector for vector in vectors if "<|" not in vector["text"]]
    assert len(plain) > 30
    for vector in plain:
        assert encode(vector["text"]) == vector["ids"], vector["text"]


def test_the_prefix_of_a_sample_keeps_the_task_of_the_run_that_it_continues():
    log = talk("hi", "hello", origin=Origin(task="m", repeat=2))
    [first, *_] = [sample.prefix for sample in samples(log)]
    assert first.origin == Origin(log.id, 0, "hi", person_ended=False, task="m")


def test_the_mask_is_on_what_the_user_says_and_the_end(tiny, slides):
    template = tiny.template()
    [row] = render(slides, template).rows
    spoken = [i for i, wanted in zip(row.ids, row.mask(), strict=True) if wanted]
    expected = []
    for text in slides.user_turns:
        expected += [*template.encode("\n" + text), template.close]
    assert spoken == [*expected, *template.encode("\n"), template.end, template.close]
    words = [
        i
        for i, wanted in zip(row.ids, row.mask(content_only=True), strict=True)
        if wanted
    ]
    said = [i for text in slides.user_turns for i in template.encode("\n" + text)[1:]]
    assert words == [*said, template.end]


def test_a_prompt_is_the_beginning_of_the_row_up_to_the_target(tiny, slides):
    template = tiny.template()
    [row] = render(slides, template).rows
    for sample, target in zip(samples(slides), row.spans, strict=True):
        assert prompt(sample.prefix, template) == row.ids[: target.first]


def test_a_long_conversation_gives_each_sample_exactly_once_and_keeps_intent_and_target_whole(
    tiny,
):
    template = tiny.template()
    log = talk(
        *(f"turn {i} " + "word " * 20 for i in range(12)), intent="plan", ended=True
    )
    for limit in (120, 200, 333, 700):
        flipped = render(log, template, limit)
        assert sorted(t.k for row in flipped.rows for t in row.spans) == list(range(7))
        head = template.turn("system", "plan")
        for row in flipped.rows:
            assert len(row.ids) <= limit
            assert row.ids[: len(head)] == head
            for target in row.spans:
                said = log.user_turns[target.k] if target.k < 6 else None
                whole = template.turn("user", said) if said else template.end_turn()
                assert row.ids[target.stop - len(whole) : target.stop] == whole


def test_the_oldest_exchanges_go_first_in_pairs_then_the_middle_of_the_last_answer(
    tiny,
):
    template = tiny.template()
    log = talk("one", "A", "two", "B", "three", "C " * 30, "four")
    spelled = [template.turn(turn.role, turn.text) for turn in log.turns]
    whole = len(spelled[6])

    def context(room: int) -> tuple[int, ...]:
        [*_, row] = render(log, template, room + whole).rows
        assert [t.k for t in row.spans][-1] == 3
        return row.ids[: len(row.ids) - whole]

    flat = [sum(spelled[start:6], ()) for start in (2, 4, 5)]
    assert context(len(flat[0])) == flat[0]  # without the first exchange
    assert context(len(flat[0]) - 1) == flat[1]  # without the second too
    assert context(len(flat[1]) - 1) == flat[2]  # the last answer alone
    cut = context(len(flat[2]) - 7)
    assert len(cut) == len(flat[2]) - 7
    assert cut[:10] == flat[2][:10] and cut[-10:] == flat[2][-10:]


def by_character(**fields: object) -> Template:
    """A token for each character; the headers are 1, 2 and 3, and a turn closes with 4."""
    return Template(
        encode=lambda text: [*map(ord, text)],
        headers={"system": (1,), "user": (2,), "assistant": (3,)},
        close=4,
        end=5,
        stop_ids=frozenset({4, 5}),
        **{"header_suffix": "\n", **fields},
    )


def answer(template: Template, text: str) -> str:
    """The content of an assistant's turn of this text."""
    header = len(template.prefix("assistant"))
    ids = template.turn("assistant", text)
    assert ids[:header] == template.prefix("assistant") and ids[-1] == 4
    return "".join(map(chr, ids[header:-1]))


def test_a_long_answer_keeps_its_beginning_and_its_end():
    """Nine tokens: two are the mark, so seven are left, four at the beginning and three at the
    end."""
    template = by_character(max_answer_tokens=9)
    assert answer(template, "abcdefghijklmnop") == "abcd …nop"
    assert answer(template, "abcdefghij") == "abcd …hij"
    assert answer(template, "abcdefghi") == "abcdefghi"
    spaced = by_character(max_answer_tokens=9, header_suffix="\n\n")
    assert answer(spaced, "abcdefghij") == "abcd …hij"
    assert template.turn("user", "abcdefghijklmnop")[2:-1] == (
        *map(ord, "abcdefghijklmnop"),
    )
    assert answer(by_character(), "abcdefghijklmnop") == "abcdefghijklmnop"


def test_an_answer_that_was_cut_is_cut_further_around_its_mark():
    """Two for the header, one closes: of 9 tokens 6 are content. The mark takes two."""
    template = by_character(max_answer_tokens=9)
    turn = template.turn("assistant", "abcdefghijklmnop")
    assert truncate((), [turn], template, 9) == (3, 10, *map(ord, "ab …op"), 4)
    assert truncate((), [turn], template, 6) is None


@pytest.mark.slow
def test_a_conversation_of_thousands_of_turns_is_tokenized_in_linear_time():
    log = talk(*["a", "b"] * 8000, ended=True)
    begun = time.process_time()
    rendered = render(log, by_character(), 100)
    assert sum(len(row.spans) for row in rendered.rows) == 8001
    assert time.process_time() - begun < 3  # it was 5 s


@pytest.mark.parametrize("suffix", ["", "\n", "\n\n"])
def test_the_middle_of_the_last_answer_is_that_of_its_content_alone(suffix):
    template = by_character(header_suffix=suffix)
    turn = template.turn("assistant", "abcdefgh")
    room = len(template.prefix("assistant")) + len("abgh") + 1
    cut = truncate((), [turn], template, room)
    assert cut == (*template.prefix("assistant"), *map(ord, "abgh"), 4)


def test_a_prompt_has_its_answers_cut_as_in_the_row(tiny):
    template = replace(tiny.template(), max_answer_tokens=12)
    long = "first " + "word " * 40 + "last."
    log = talk("one", long, "two", "B", "three", long, intent="x", ended=True)
    [row] = render(log, template).rows
    assert len(row.ids) < len(prompt(log, tiny.template())) - 200
    for sample, target in zip(samples(log), row.spans, strict=True):
        assert prompt(sample.prefix, template) == row.ids[: target.first]
        assert fit_prompt(sample.prefix, template, 200)[0] == row.ids[: target.first]
    for limit in (70, 90, 120):
        for row in render(log, template, limit).rows:
            for target in row.spans:
                prefix = Sample(log, target.k).prefix
                room = target.first if len(row.spans) == 1 else len(row.ids)
                assert fit_prompt(prefix, template, room)[0] == row.ids[: target.first]


def test_what_cannot_fit_is_dropped_and_said(tiny):
    log = talk("word " * 200, "fine", "ok", "bye", ended=True)
    flipped = render(log, tiny.template(), 60)
    assert flipped.dropped == (0,)
    assert sorted(t.k for row in flipped.rows for t in row.spans) == [1, 2]


def test_a_prompt_too_long_is_shortened_as_in_training_and_none_when_the_intent_alone_does_not_fit(
    tiny,
):
    template = tiny.template()
    log = talk("one " * 30, "A " * 30, "two", "B", intent="x")
    room = 60
    ids, truncated_tokens = fit_prompt(log, template, room)
    assert len(ids) <= room
    assert ids == prompt(replace(log, turns=log.turns[2:]), template)
    assert truncated_tokens == len(prompt(log, template)) - len(ids)
    assert fit_prompt(talk(intent="word " * 100), template, room) == (None, 0)


turns = st.lists(st.text(max_size=30), min_size=1, max_size=9)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    texts=turns,
    greeting=st.booleans(),
    limit=st.integers(20, 160),
    intent=st.none() | st.text(max_size=10),
)
def test_no_sample_is_lost_or_doubled_whatever_is_said(
    tiny, texts, greeting, limit, intent
):
    log = talk(*texts, greeting=greeting, intent=intent)
    log = replace(log, ended=log.next_role == "user")
    flipped = render(log, tiny.template(), limit)
    ks = sorted(
        [t.k for row in flipped.rows for t in row.spans] + list(flipped.dropped)
    )
    assert ks == list(range(len(log.user_turns) + log.ended))
    assert all(len(row.ids) <= limit for row in flipped.rows)


def test_a_sample_knows_what_came_before_and_a_prefix_can_be_answered(slides):
    prefix = Sample(slides, 1).prefix
    assert prefix.id == "slides/1" and prefix.next_role == "user"
    assert (
        prefix.origin.target == slides.user_turns[1]
        and prefix.origin.conversation == "slides"
    )


def test_what_is_known_of_the_person_stands_in_the_system_turn(llama3, llama3_template):
    plain, told = (
        talk("hi", intent="Do it."),
        talk("hi", intent="Do it.", meta={"condition": "The user is 30."}),
    )
    assert plain.system == "Do it."
    assert told.system == "Do it. The user is 30."
    assert replace(told, intent=None).system == "The user is 30."
    assert talk("hi", meta={"condition": 7}).system is None
    [row] = render(told, llama3_template).rows
    start = (
        "<|start_header_id|>system<|end_header_id|>\nDo it. The user is 30.<|eot_id|>"
    )
    assert llama3.decode(row.ids).startswith(start)
    assert llama3.decode(prompt(told, llama3_template)).startswith(start)


# --- the other sides ------------------------------------------------------------------------------


def test_an_exchanged_dialogue_has_its_roles_swapped_and_neither_intent_nor_ending(
    slides,
):
    other = swap_roles(slides)
    assert [turn.role for turn in other.turns] == ["assistant", "user"] * 3
    assert [turn.text for turn in other.turns] == [turn.text for turn in slides.turns]
    assert (other.system, other.ended, other.id, other.user) == (
        None,
        False,
        slides.id,
        slides.user,
    )
    assert swap_roles(other).turns == slides.turns


def test_an_assistant_is_told_neither_the_intent_nor_who_the_user_is(slides):
    known = replace(slides, meta={"condition": "You are terse.", "source": "logs"})
    assert known.system == f"{slides.intent} You are terse."
    assert swap_roles(known).system is None and swap_roles(known).meta == {
        "source": "logs"
    }


def test_the_loss_of_an_exchanged_dialogue_is_on_what_the_assistant_says_and_on_nothing_else(
    tiny, slides
):
    """The ids are those of the dialogue as it was: what is exchanged twice is what it was
    before."""
    template = tiny.template()
    [row] = render(swap_roles(slides), template.with_roles_swapped()).rows
    assert list(row.ids) == [
        id for turn in slides.turns for id in template.turn(turn.role, turn.text)
    ]
    answers = [turn.text for turn in slides.turns if turn.role == "assistant"]
    spoken = [id for id, wanted in zip(row.ids, row.mask(), strict=True) if wanted]
    assert spoken == [
        id for text in answers for id in (*template.encode("\n" + text), template.close)
    ]
    words = [
        id
        for id, wanted in zip(row.ids, row.mask(content_only=True), strict=True)
        if wanted
    ]
    assert words == [id for text in answers for id in template.encode("\n" + text)[1:]]
    assert template.with_roles_swapped().end == template.close  # it never leaves


@pytest.mark.parametrize(
    ("log", "answers"),
    [
        (
            talk("Hi, how can I help?", "my order", "Which?", "42", greeting=True),
            ["Hi, how can I help?", "Which?"],
        ),
        (talk("my order", "Which?", "42"), ["Which?"]),
    ],
)
def test_an_assistant_learns_its_greeting_and_nothing_stands_behind_its_last_words(
    tiny, log, answers
):
    template = tiny.template()
    [row] = render(swap_roles(log), template.with_roles_swapped()).rows
    header = len(template.headers["assistant"])
    learned = [row.ids[target.start - header : target.stop] for target in row.spans]
    assert learned == [template.turn("assistant", text) for text in answers]
    assert [target.k for target in row.spans] == list(range(len(answers)))
    assert row.spans[-1].stop == len(row.ids)


PLAIN = transcript_template(
    lambda text: [ord(letter) for letter in text], bos=(1,), end=0
)
"""A token a letter; 1 begins a text, 0 ends it."""


def test_a_document_is_a_line_for_the_intent_and_for_each_turn_between_the_tokens_of_a_text():
    log = talk("hi", "yo\nso", intent="Be brief.", ended=True)
    [row] = render_document(transcript(log), PLAIN).rows
    assert row.ids == (1, *map(ord, "Be brief.\nUser: hi\nAssistant: yo\nso\n"), 0)
    assert row.mask() == [False] + [True] * (len(row.ids) - 1)


@settings(max_examples=60)
@given(
    texts=turns,
    greeting=st.booleans(),
    limit=st.integers(2, 50),
    intent=st.none() | st.text(max_size=10),
)
def test_every_token_of_a_document_but_the_first_is_predicted_exactly_once(
    texts, greeting, limit, intent
):
    log = transcript(talk(*texts, greeting=greeting, intent=intent))
    [whole] = render_document(log, PLAIN).rows
    assert whole.ids[0] == 1 and whole.ids[-1] == 0
    flipped = render_document(log, PLAIN, limit)
    predicted = [
        id
        for row in flipped.rows
        for id, wanted in zip(row.ids, row.mask(), strict=True)
        if wanted
    ]
    assert predicted == list(whole.ids[1:]) and not flipped.dropped
    for row, following in zip(flipped.rows, flipped.rows[1:], strict=False):
        assert len(row.ids) == limit and following.ids[0] == row.ids[-1]
    assert 2 <= len(flipped.rows[-1].ids) <= limit
    cut = render_document(log, PLAIN, limit, "drop")
    assert cut.rows == flipped.rows[:1] and cut.dropped == tuple(
        range(1, len(flipped.rows))
    )


def test_a_text_that_begins_with_no_token_of_its_own_is_predicted_from_its_second():
    [row] = render_document(transcript(talk("hi")), replace(PLAIN, bos=())).rows
    assert (
        row.ids == (*map(ord, "User: hi\n"), 0) and row.mask() == [False] + [True] * 9
    )
