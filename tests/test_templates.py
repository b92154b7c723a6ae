"""The format that a checkpoint was trained with, found from its tokenizer and chat template.

The chat templates here are written for the tests; they render what those of the released
checkpoints render.
"""

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from userlm.flip import fit_prompt, prompt, render
from userlm.models.templates import profile_template, recognise
from userlm.models.tokenization import chat_ids, text_encoder
from userlm.types import Completion, Conversation, ModelError
from userlm.users import TrainedUser

END = "<|endconversation|>"
LLAMA = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

LLAMA_TURNS = (
    "{%% for m in messages %%}{%% if loop.first %%}%s{%% endif %%}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>%s"
    "{{ m.content%s }}<|eot_id|>{%% endfor %%}"
)
USERLM = LLAMA_TURNS % ("", "\n", "") + "<|start_header_id|>user<|end_header_id|>"
SFT_LLAMA = LLAMA_TURNS % ("<|begin_of_text|>", "\n\n", " | trim") + (
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
USP = SFT_LLAMA.replace(">assistant<", ">user<")
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou "
    "help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)

TALK = Conversation("t", intent="You are a user").say(" hi \n").say("Hello there.")


def tokenizer(
    special: list[str],
    plain: list[str],
    chat_template: str | None,
    bos: str | None = None,
):
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos)
    made.add_tokens(special, special_tokens=True)
    made.add_tokens(plain)
    made.chat_template = chat_template
    return made


def found(
    special: list[str],
    plain: list[str],
    chat_template: str | None,
    name: str = "a/b",
    bos: str | None = None,
):
    made = tokenizer(special, plain, chat_template, bos)
    return made, recognise(made, text_encoder(made), name)


def decoded(made, ids) -> str:
    return made.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def test_userlm_has_one_newline_no_bos_and_leaves_white_space_alone():
    for chat_template in (USERLM, None):
        made, template = found(LLAMA, [END], chat_template)
        assert decoded(made, prompt(TALK, template)) == (
            "<|start_header_id|>system<|end_header_id|>\nYou are a user<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n hi \n<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\nHello there.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n"
        )
        assert {decoded(made, [i]) for i in template.stop_ids} == {*LLAMA, END}


def test_sftuser_on_llama_has_a_bos_two_newlines_and_trims():
    made, template = found([*LLAMA, END], [], SFT_LLAMA)
    assert decoded(made, prompt(TALK, template)) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a user<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello there.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )


def test_sftuser_on_qwen_opens_the_users_turn_where_its_own_template_opens_the_assistants():
    made, template = found([*QWEN, END], [], CHATML)
    assert decoded(made, prompt(TALK, template)) == (
        "<|im_start|>system\nYou are a user<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nHello there.<|im_end|>\n<|im_start|>user\n"
    )
    assert (decoded(made, [template.close]), decoded(made, [template.end])) == (
        "<|im_end|>",
        END,
    )


@pytest.mark.parametrize(
    "name",
    [
        "cmu-lti/osim-8b",
        "models--x--Ditto-8B/snapshots/1",
        "x/my_osim_4b",
        "osim8b",
        "m (./Ditto-8B)",
    ],
)
def test_osim_and_ditto_play_the_person_as_the_assistant_and_do_not_think(name):
    made, template = found(QWEN, ["<think>", "</think>"], THINKING, name)
    assert decoded(made, prompt(TALK, template)) == (
        "<|im_start|>system\nYou are a user<|im_end|>\n<|im_start|>assistant\n hi \n<|im_end|>\n"
        "<|im_start|>user\nHello there.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert template.end == template.close
    assert "<think>" in {decoded(made, [i]) for i in template.stop_ids}
    assert (
        recognise(tokenizer(QWEN, [], CHATML), text_encoder(made), name).empty_thought
        == ()
    )


def test_usp_gets_its_profile_inside_its_own_sentence_and_is_told_apart_from_userlm():
    made = tokenizer(LLAMA, [], USP, bos="<|begin_of_text|>")
    template = profile_template(made, text_encoder(made))
    assert decoded(made, prompt(TALK, template)) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are engaging in a conversation with an AI assistant. Your profile is: \nYou are a "
        "user\n "
        "You can say anything you want, either based on the profile or something brand "
        "new.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello there.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )
    with pytest.raises(
        ValueError, match=r"opens a user turn, as USP does \(try profile:a/b\)"
    ):
        recognise(made, text_encoder(made), "a/b")


@pytest.mark.parametrize(
    ("special", "chat_template", "why"),
    [
        (LLAMA, SFT_LLAMA, "no <|endconversation|> token"),  # an instruct model
        (
            QWEN,
            THINKING,
            "no <|endconversation|> token \\(an OSim or Ditto checkpoint has none",
        ),
        (["<s>", "</s>"], None, "lacks <|start_header_id|>"),
        (
            [*LLAMA, END],
            USERLM.replace("{{ m.role }}", "{{ m.role | upper }}"),
            "a user turn in an unknown format",
        ),
        (
            [*LLAMA, END],
            USERLM.replace("<|eot_id|>{%", "<|eot_id|>\n{%"),
            "renders a dialogue in a different format",
        ),
        (
            [*QWEN, END],
            CHATML.replace("{{ m.role }}\n", "{{ m.role }}\n\n"),
            "renders a dialogue in a different format",
        ),
    ],
)
def test_what_is_not_known_is_refused_and_says_why(special, chat_template, why):
    made = tokenizer(special, [], chat_template)
    with pytest.raises(ValueError, match=why.replace("|", "\\|")):
        recognise(made, text_encoder(made), "meta/some-model")


def test_a_template_that_refuses_system_messages_is_compared_without_one():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    made = tokenizer([*LLAMA, END], [], refusing + USERLM)
    recognise(made, text_encoder(made))
    for wrong in (USERLM.replace("<|eot_id|>{%", "<|eot_id|>\n{%"), "{{ 1 }}" + USERLM):
        made = tokenizer([*LLAMA, END], [], refusing + wrong)
        with pytest.raises(ValueError, match="renders"):
            recognise(made, text_encoder(made))


def test_a_row_closes_once_where_leaving_is_closing():
    made = tokenizer(LLAMA, [], USP, bos="<|begin_of_text|>")
    [row] = render(TALK.close("end"), profile_template(made, text_encoder(made))).rows
    assert decoded(made, row.ids).endswith("user<|end_header_id|>\n\n<|eot_id|>")
    assert not decoded(made, row.ids).endswith("<|eot_id|><|eot_id|>")


def test_a_profile_needs_the_tokens_of_usp_and_an_open_user_turn():
    for special, chat_template, why in (
        (QWEN, None, "lacks"),
        (LLAMA, SFT_LLAMA, "does not open a user turn"),
    ):
        made = tokenizer(special, [], chat_template, bos=special[0])
        with pytest.raises(ValueError, match=why):
            profile_template(made, text_encoder(made))


def test_where_leaving_has_no_token_a_turn_closed_before_a_word_is_one():
    made = tokenizer(LLAMA, [], USP, bos="<|begin_of_text|>")
    template = profile_template(made, text_encoder(made))

    class Says:
        def __init__(self, text):
            self.text = text

        def complete(self, ids, sampling):
            assert sampling.end_id == template.close
            return Completion(self.text, stop_id=template.close, p_end=0.125)

    left = TrainedUser(Says(""), template).reply(TALK)
    assert (left.text, left.stop, left.meta["p_end"]) == ("", "end", 0.125)
    assert TrainedUser(Says("hm"), template).reply(TALK).stop is None


def test_rows_of_chatml_are_shortened_and_masked_without_the_newline_between_turns():
    made, template = found([*QWEN, END], [], CHATML)
    talk = TALK.say("ok").say("word " * 30).close("end")
    [row] = render(talk, template).rows
    said = [decoded(made, row.ids[target.start : target.stop]) for target in row.spans]
    assert said == ["\nhi<|im_end|>", "\nok<|im_end|>", f"\n{END}<|im_end|>"]
    words = [
        decoded(made, row.ids[target.first : target.stop - 1]) for target in row.spans
    ]
    assert words == ["hi", "ok", END]

    whole = prompt(talk, template)
    ids, truncated_tokens = fit_prompt(talk, template, len(whole) - 1)
    assert truncated_tokens == len(whole) - len(ids)
    assert decoded(made, ids).startswith(
        "<|im_start|>system\nYou are a user<|im_end|>\n<|im_start|>user\nok<|im_end|>\n"
    )
    ids, _ = fit_prompt(talk, template, 90)
    assert len(ids) == 90 and decoded(made, ids).count("word") < 30
    assert decoded(made, ids).endswith("word<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(
    "broken",
    [
        "{% for i in range(10**12) %}a{% endfor %}",  # jinja's sandbox refuses it
        "{{ 'a' * 10**13 }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
    ],
)
def test_a_chat_template_that_fails_is_an_error_that_names_the_model(broken):
    made = tokenizer([*LLAMA, END], [], broken)
    asked = [{"role": "user", "content": "hi"}]
    with pytest.raises(ModelError, match="a/b: its chat template refuses"):
        chat_ids(made, text_encoder(made), asked, "a/b")
    recognise(made, text_encoder(made))  # its tokens decide
