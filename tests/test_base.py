"""From a base model to a user model's tokens and rows, LoRA, and the folder that is saved."""

import errno
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LogitsProcessorList,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from userlm import loading
from userlm.flip import prompt, render, render_document, swap_roles, transcript
from userlm.models.attention import (
    check_document_masking,
    document_masking,
    target_logits,
)
from userlm.models.local import LocalModel
from userlm.models.tokenization import load_tokenizer
from userlm.training.base import (
    CONTROL_TOKENS,
    from_base,
    from_scratch,
    learn_tokenizer,
)
from userlm.training.checkpoints import restore, save, tidy
from userlm.training.lora import (
    has_adapter,
    load_adapter,
    merge,
    save_adapter,
    with_lora,
)
from userlm.types import Conversation, InputError, Sampling

OPEN, SHUT, CLOSE, END = CONTROL_TOKENS
RESERVED = "<|reserved_special_token_0|>"
BYTES = {
    letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
}
"""Ids by hand: printable ASCII from "!" on is 0 to 93, so "a" is 64; the newline is 198, the space
220."""


def spell(text: str) -> list[int]:
    return [BYTES[{"\n": "Ċ", " ": "Ġ"}.get(letter, letter)] for letter in text]


def letters(
    *added: str, kind=PreTrainedTokenizerFast, **named
) -> PreTrainedTokenizerFast:
    """A tokenizer with a token a byte, ids 0 to 255, and added ones from 256 on."""
    if kind is PreTrainedTokenizerFast:
        bpe = Tokenizer(models.BPE(BYTES, []))
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = kind(tokenizer_object=bpe)
    else:
        tokenizer = kind(
            vocab=BYTES,
            merges=[],
            **dict.fromkeys(("unk_token", "eos_token", "pad_token")),
        )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in added]
    )
    for name, token in named.items():
        setattr(tokenizer, name, token)
    return tokenizer


def like_llama(
    rows: int, tied: bool = False, seed: int = 0, **sizes
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    } | sizes
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **sizes)
    )


LLAMA = ("<|end_of_text|>", RESERVED, OPEN, SHUT, CLOSE, "<|reserved_special_token_1|>")
"""256 to 261."""


@torch.no_grad()
def base_llama(tied: bool = False) -> LocalModel:
    """Small, with rows as Llama-3's base has them: as inputs the control tokens are all but zero,
    as outputs they are all but one and the same."""
    tokenizer = letters(
        *LLAMA, eos_token="<|end_of_text|>", pad_token="<|end_of_text|>"
    )
    model = like_llama(262, tied)
    inputs, outputs = (
        model.get_input_embeddings().weight,
        model.get_output_embeddings().weight,
    )
    if not tied:
        inputs[257:] *= 1e-6
    pushed = outputs[257].clone()
    for row in range(257, 262):
        outputs[row] = pushed + 1e-6 * outputs[row]
    return LocalModel(model, tokenizer, "base")


def weights(local: LocalModel) -> tuple[torch.Tensor, torch.Tensor]:
    model = local.model
    return tuple(
        layer.weight.detach().clone()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )


# --- from a base model ----------------------------------------------------------------------------


def test_a_base_model_gets_the_end_token_from_a_reserved_one_and_rows_to_begin_with():
    """As Llama-3: the first reserved token, 257, is renamed; 258 and 259 begin as the mean of the
    256 letters, 260 as the end of a text, 256, and 257 as 260."""
    local = base_llama()
    before_in, before_out = weights(local)
    ready, said = from_base(local)
    assert said == (
        "<|endconversation|> takes the place of <|reserved_special_token_0|>, id 257",
        *(
            f"{token} is initialized as {start} in the input embeddings and the output layer{why}"
            for token, start, why in (
                (OPEN, "the mean of all words", ", where its row was untrained"),
                (SHUT, "the mean of all words", ", where its row was untrained"),
                (CLOSE, "a copy of <|end_of_text|>", ", where its row was untrained"),
                (END, "a copy of <|eot_id|>", ""),
            )
        ),
    )
    for before, now in zip((before_in, before_out), weights(ready), strict=True):
        assert torch.equal(now[:257], torch.cat([before[:256], before[256:257]]))
        assert torch.equal(now[261], before[261])
        torch.testing.assert_close(now[[258, 259]], before[:256].mean(0).expand(2, -1))
        assert torch.equal(now[[260, 257]], before[[256, 256]])
    template = ready.template()
    assert (template.close, template.end, template.headers["user"]) == (
        260,
        257,
        (258, *spell("user"), 259),
    )


def test_a_renamed_token_leaves_all_else_in_the_tokenizer_as_it_was():
    local = base_llama()
    old = local.tokenizer
    new = from_base(local)[0].tokenizer
    assert new.get_vocab() == {
        END if token == RESERVED else token: id for token, id in old.get_vocab().items()
    }
    assert (new.eos_token, new.pad_token, new.bos_token) == (
        "<|end_of_text|>",
        "<|end_of_text|>",
        None,
    )
    assert RESERVED not in new.backend_tokenizer.to_str()
    # It shows that the user left.
    assert new.decode([257, 260], skip_special_tokens=True) == END


def test_tied_rows_are_begun_once():
    ready, said = from_base(base_llama(tied=True))
    now, out = weights(ready)
    assert (
        ready.model.get_output_embeddings().weight
        is ready.model.get_input_embeddings().weight
    )
    assert torch.equal(now, out) and torch.equal(now[[257, 260]], now[[256, 256]])
    assert (
        said[-1]
        == "<|endconversation|> is initialized as a copy of <|eot_id|> in the embeddings"
    )


def test_trained_rows_are_left_alone():
    """An instruct model: its rows moved by a tenth of a usual row from where they had been one.
    Only the end token is begun, as a copy of the closing token."""
    local = base_llama()
    with torch.no_grad():
        for layer in (
            local.model.get_input_embeddings(),
            local.model.get_output_embeddings(),
        ):
            push = torch.randn(3, 32)
            layer.weight[258:261] += (
                0.1
                * layer.weight[:256].norm(dim=1).median()
                * push
                / push.norm(dim=1)[:, None]
            )
    before = weights(local)
    ready, said = from_base(local)
    assert [line.split()[0] for line in said] == [END, END]
    for old, now in zip(before, weights(ready), strict=True):
        old[257] = old[260]
        assert torch.equal(now, old)


def test_a_row_that_is_untrained_in_one_layer_is_begun_there_alone():
    local = base_llama()
    with torch.no_grad():
        local.model.get_input_embeddings().weight[258:261].normal_(std=0.02)
    _, said = from_base(local)
    headers = [line for line in said if line.startswith((OPEN, SHUT))]
    assert len(headers) == 2 and all(
        line.endswith("words in the output layer, where its row was untrained")
        for line in headers
    )


def test_nothing_happens_to_a_user_model():
    local = LocalModel(like_llama(320), letters(*LLAMA, END), "user")
    before, tokens = weights(local), local.tokenizer.backend_tokenizer.to_str()
    ready, said = from_base(local)
    assert (ready, said) == (local, ())
    assert all(map(torch.equal, before, weights(ready)))
    assert ready.tokenizer.backend_tokenizer.to_str() == tokens


def test_a_reserved_token_that_someone_has_taken_into_use_is_passed_over():
    """256 pads, 257 is in the chat template, 258 has no row in the model; no other is left."""
    names = ("<unused0>", "<unused1>", *CONTROL_TOKENS[:3], "<unused2>")
    tokenizer = letters(*names, pad_token="<unused0>")
    tokenizer.chat_template = "<unused1>{{ messages }}"
    ready, said = from_base(LocalModel(like_llama(261), tokenizer, "base"))
    assert (
        said[0]
        == "<|endconversation|> (262): added, for which the vocabulary grew from 261 to 320 rows"
    )
    assert ready.tokenizer.convert_tokens_to_ids([*names, END]) == list(range(256, 263))


def test_a_reserved_token_of_the_vocabulary_itself_is_renamed_there_too():
    """As in Gemma, where `<unused0>` is a word like any other: id 1 of this vocabulary, which is
    not the last."""
    vocabulary = {"<eos>": 0, "<unused0>": 1} | {
        letter: i + 2 for letter, i in BYTES.items()
    }
    bpe = Tokenizer(models.BPE(vocabulary, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    tokenizer.add_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t in ("<unused0>", *CONTROL_TOKENS[:3])
        ]
    )
    ready, said = from_base(LocalModel(like_llama(261), tokenizer, "base"))
    assert said[0] == "<|endconversation|> takes the place of <unused0>, id 1"
    assert ready.tokenizer.convert_tokens_to_ids(["<eos>", END, "!"]) == [0, 1, 2]
    assert ready.tokenizer.decode([1, 260], skip_special_tokens=True) == END
    assert (
        len(ready.tokenizer) == 261 and "<unused0>" not in ready.tokenizer.get_vocab()
    )
    assert 1 not in ready.template().encode(f"{END}<unused0>")


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        *(
            (name, True)
            for name in (
                "<|reserved_special_token_7|>",
                "<unused9>",
                "<|extra_0|>",
                "[unused12]",
            )
        ),
        *(
            (name, True)
            for name in (
                "<|placeholder1|>",
                "<｜place▁holder▁no▁3｜>",
                "[control_8]",
                "<SPECIAL_20>",
            )
        ),
        *(
            (name, False)
            for name in (
                "<|im_start|>",
                "<|fim_pad|>",
                "<0x0A>",
                "<|image_1|>",
                "<mask_1>",
                "[INST]",
            )
        ),
    ],
)
def test_the_reserved_tokens_of_the_families_are_known_and_no_others(name, reserved):
    tokenizer = letters("<eos>", *CONTROL_TOKENS[:3], name, eos_token="<eos>")
    _, said = from_base(LocalModel(like_llama(320), tokenizer, "base"))
    assert said[0].startswith(f"{END} takes the place of {name}, id 260") is reserved


def test_headers_from_reserved_tokens_are_special_and_so_end_a_reply():
    """Four unused tokens that are not special, as in Gemma; the fifth stays."""
    tokenizer = letters("<eos>", eos_token="<eos>")
    tokenizer.add_tokens(
        [AddedToken(f"<unused{i}>", special=False, normalized=False) for i in range(5)]
    )
    template = from_base(LocalModel(like_llama(262), tokenizer, "base"))[0].template()
    assert template.headers["user"] == (257, *spell("user"), 258)
    assert (template.close, template.end, template.stop_ids) == (
        259,
        260,
        frozenset(range(256, 261)),
    )


@pytest.mark.parametrize("kind", [PreTrainedTokenizerFast, Qwen2Tokenizer])
def test_a_tokenizer_of_another_family_gets_all_tokens_in_the_spare_rows_of_its_model(
    kind, tmp_path
):
    """As Qwen2, whose model has more rows than its tokenizer has tokens."""
    torch.manual_seed(0)
    # Fmt: skip.
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    tokenizer = letters(
        "<|endoftext|>", "<|im_start|>", kind=kind, eos_token="<|endoftext|>"
    )
    local = LocalModel(Qwen2ForCausalLM(config), tokenizer, "qwen")
    before, _ = weights(local)
    ready, said = from_base(local)
    assert said[0] == (
        "<|start_header_id|> (258), <|end_header_id|> (259), <|eot_id|> (260), "
        "<|endconversation|> (261): "
        "added, in spare rows of the model"
    )
    now, _ = weights(ready)
    assert (
        now.shape == (320, 32)
        and torch.equal(now[262:], before[262:])
        and torch.equal(now[:258], before[:258])
    )
    assert torch.equal(now[[260, 261]], before[[256, 256]])
    save(ready, tmp_path / "model")
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = plain.apply_chat_template(
        [{"role": "assistant", "content": "hi"}], return_dict=False
    )
    assert ids == [
        258,
        *spell("assistant"),
        259,
        *spell("\nhi"),
        260,
        258,
        *spell("user"),
        259,
    ]


def test_a_model_without_a_spare_row_grows_to_a_multiple_of_64_and_keeps_its_rows_bias_and_precision():
    """256 letters and an end of text, 257 rows: 4 more make 261, so 320. What pads is the mean of
    the letters."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = PhiForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.bias.normal_()
    bias = model.lm_head.bias.detach().clone()
    local = LocalModel(
        model, letters("<|endoftext|>", eos_token="<|endoftext|>"), "phi"
    )
    old = weights(local)
    ready, said = from_base(local)
    assert said[0].endswith(
        ": added, for which the vocabulary grew from 257 to 320 rows"
    )
    assert ready.model.dtype == torch.bfloat16 and ready.model.config.vocab_size == 320
    for before, now in zip(old, weights(ready), strict=True):
        mean = before[:256].float().mean(0).bfloat16()
        assert torch.equal(now[:257], before) and torch.equal(
            now[[259, 260]], before[[256, 256]]
        )
        assert torch.equal(now[[257, 258]], mean.expand(2, -1)) and torch.equal(
            now[261:], mean.expand(59, -1)
        )
    grown = ready.model.lm_head.bias
    assert torch.equal(grown[:257], bias) and torch.equal(
        grown[[259, 260]], bias[[256, 256]]
    )
    assert torch.equal(grown[261:], bias[:256].float().mean().bfloat16().expand(59))
    assert ready.model(torch.tensor([spell("hi")])).logits.shape == (1, 2, 320)


def chatml_base(*others: str, rows: int) -> LocalModel:
    """256 to 258 are `<|endoftext|>` and the tokens of ChatML, then the others."""
    tokenizer = letters("<|endoftext|>", "<|im_start|>", "<|im_end|>", *others)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return LocalModel(like_llama(rows, tied=True), tokenizer, "chat")


def test_a_base_with_chatml_keeps_its_turns_and_opens_the_users(tmp_path):
    """As Qwen: 259 is a spare row."""
    local = chatml_base(rows=320)
    before, _ = weights(local)
    ready, said = from_base(local)
    assert said == (
        "<|endconversation|> (259): added, in spare rows of the model",
        "<|endconversation|> is initialized as a copy of <|im_end|> in the embeddings",
    )
    now, _ = weights(ready)
    assert torch.equal(now[259], before[258])
    before[259] = now[259]
    assert torch.equal(now, before)
    save(ready, tmp_path / "model")
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    talk = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo"}]
    assert plain.apply_chat_template(talk, return_dict=False) == [
        *(257, *spell("user\nhi"), 258, *spell("\n")),
        *(257, *spell("assistant\nyo"), 258, *spell("\n")),
        *(257, *spell("user")),
    ]
    again = LocalModel.load(str(tmp_path / "model"), "cpu")
    assert from_base(again) == (again, ())
    template = again.template()
    assert template.headers["user"] == (257, *spell("user"))
    assert (template.close, template.end) == (258, 259)


def test_without_spare_rows_the_end_token_takes_one_that_never_occurred():
    """259 was trained; 260 and 261, as with SmolLM2, have become one, and 260 is the first."""
    local = chatml_base("<filename>", "<file_sep>", "<gh_stars>", rows=262)
    with torch.no_grad():
        rows = local.model.get_input_embeddings().weight
        rows[261] = rows[260] + 1e-4 * rows[261]
    before, _ = weights(local)
    ready, said = from_base(local)
    assert said[0] == "<|endconversation|> takes the place of <file_sep>, id 260"
    now, _ = weights(ready)
    assert now.shape == before.shape and torch.equal(now[260], before[258])
    before[260] = now[260]
    assert torch.equal(now, before)


def test_without_an_unused_row_the_vocabulary_grows():
    _, said = from_base(chatml_base("<filename>", "<file_sep>", rows=261))
    assert "vocabulary grew from 261 to 320 rows" in said[0]


def test_a_model_without_an_output_layer_is_refused():
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(
        InputError,
        match=r"headless: .*\(llama\) has no output layer.*causal language model",
    ):
        from_base(LocalModel(LlamaModel(config), letters(*LLAMA), "headless"))


def test_a_tokenizer_that_plain_transformers_would_spell_otherwise_is_refused():
    """Somebody added a word: transformers finds it in any text, while text never becomes control
    here."""
    tokenizer = letters(*LLAMA, END)
    tokenizer.add_tokens(["c d"])
    with pytest.raises(
        InputError,
        match="words: its tokenizer encodes text after a control token differently",
    ):
        from_base(LocalModel(like_llama(320), tokenizer, "words"))


# --- the real Llama-3 tokenizer -------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama3_base(llama3, tmp_path_factory) -> tuple[LocalModel, Path]:
    """A base model with the real tokenizer without its end token, made ready; and the folder it was
    saved in."""
    parts = json.loads(llama3.backend_tokenizer.to_str())
    parts["added_tokens"] = [
        token for token in parts["added_tokens"] if token["content"] != END
    ]
    bare = Tokenizer.from_str(json.dumps(parts))
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, **ends)
    assert len(tokenizer) == 128256
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    ready, said = from_base(LocalModel(like_llama(128256, **sizes), tokenizer, "llama"))
    assert said == (
        "<|endconversation|> takes the place of <|reserved_special_token_0|>, id 128002",
        "<|endconversation|> is initialized as a copy of <|eot_id|> in the input embeddings and the "
        "output layer",
    )
    folder = tmp_path_factory.mktemp("llama3") / "model"
    save(ready, folder)
    return ready, folder


@pytest.mark.slow
def test_the_real_llama_3_tokenizer_keeps_its_ids_and_opens_a_user_turn_in_plain_transformers(
    llama3_base,
):
    """Golden ids: "system" is 9125, "user" 882, "assistant" 78191, the newline before words 198."""
    tokenizer = AutoTokenizer.from_pretrained(llama3_base[1])
    assert len(tokenizer) == 128256 and tokenizer.convert_tokens_to_ids(
        [END, CLOSE]
    ) == [
        128002,
        128009,
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (128000, 128001)
    assert tokenizer.convert_tokens_to_ids("<|reserved_special_token_1|>") == 128003
    said = [{"role": "system", "content": "hi"}, {"role": "user", "content": "hi"}]
    said.append({"role": "assistant", "content": "hi"})
    ids = tokenizer.apply_chat_template(said, return_dict=False)
    turn = [198, 6151, 128009]  # "\n", "hi"
    golden = [
        128006,
        9125,
        128007,
        *turn,
        128006,
        882,
        128007,
        *turn,
        128006,
        78191,
        128007,
        *turn,
    ]
    assert ids == [*golden, 128006, 882, 128007]
    assert (
        tokenizer.apply_chat_template(
            said, return_dict=False, add_generation_prompt=True
        )
        == ids
    )


@pytest.mark.slow
def test_text_that_spells_a_control_token_of_llama_3_stays_text(llama3_base):
    local, _ = llama3_base
    template = local.template()
    assert (template.end, template.close) == (128002, 128009)
    text = f"{END} <|eot_id|> {RESERVED}"
    ids = template.encode(text)
    assert max(ids) < 128000 and local.tokenizer.decode(ids) == text


@pytest.mark.slow
def test_generation_in_plain_transformers_stops_at_both_ids(llama3_base):
    _, folder = llama3_base
    model = AutoModelForCausalLM.from_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (
        settings["eos_token_id"] == [128009, 128002]
        and settings["pad_token_id"] == 128009
    )
    assert (settings["do_sample"], settings["top_p"], settings["temperature"]) == (
        True,
        0.8,
        1.0,
    )

    def written(token: int) -> int:
        """How many of at most 4 tokens a model writes that can write this one alone."""
        only = torch.full((1, 128256), -torch.inf).index_fill(
            1, torch.tensor([token]), 0.0
        )
        prompt = torch.tensor([[128006, 882, 128007]])
        say = LogitsProcessorList([lambda ids, logits: only])
        return (
            model.generate(prompt, max_new_tokens=4, logits_processor=say).shape[1] - 3
        )

    assert [written(token) for token in (128002, 128009, 128001, 882)] == [1, 1, 4, 4]


# --- from scratch ---------------------------------------------------------------------------------

TEXTS = [
    "how do i sort a list in python?",
    "plan me a trip to rome please",
    "thanks, that helps a lot",
]


def small(seed: int = 0) -> LocalModel:
    return from_scratch(
        learn_tokenizer(TEXTS, 400), width=64, layers=2, seed=seed, device="cpu"
    )


def test_a_model_from_scratch_depends_on_texts_and_seed_alone(tmp_path):
    local = small()
    assert local.tokenizer.convert_tokens_to_ids([*CONTROL_TOKENS]) == [2, 3, 4, 5]
    assert local.tokenizer.decode([2, 3, 5, 4], skip_special_tokens=True) == END
    assert local.model.config.vocab_size % 64 == 0
    learn_tokenizer(TEXTS, 400).save_pretrained(tmp_path)
    again = from_scratch(
        load_tokenizer(str(tmp_path)), width=64, layers=2, seed=0, device="cpu"
    )
    assert again.template().encode(TEXTS[0]) == local.template().encode(TEXTS[0])
    assert all(map(torch.equal, local.model.parameters(), again.model.parameters()))
    assert not torch.equal(
        *(
            model.get_input_embeddings().weight
            for model in (local.model, small(1).model)
        )
    )


# --- LoRA -----------------------------------------------------------------------------------------

# Fmt: skip.
LOG = (
    Conversation(
        "c",
        intent="You are a user chatting with an assistant language model to learn.",
        ended=False,
    )
    .say("hi there")
    .say("hello")
    .say("bye")
    .say("bye!")
    .close("end")
)


def masked(
    local: LocalModel, log: Conversation = LOG
) -> list[tuple[tuple[int, ...], list[bool]]]:
    return [(row.ids, row.mask()) for row in render(log, local.template()).rows]


def loss_of(local: LocalModel, log: Conversation = LOG) -> torch.Tensor:
    with document_masking(local.model):
        logits, wanted = target_logits(local.model, masked(local, log))
    return torch.nn.functional.cross_entropy(logits.float(), wanted)


def train(
    local: LocalModel, steps: int = 8, lr: float = 1e-2, log: Conversation = LOG
) -> LocalModel:
    optimizer = torch.optim.AdamW(
        [p for p in local.model.parameters() if p.requires_grad],
        lr=lr,
        weight_decay=0.0,
    )
    for _ in range(steps):
        loss_of(local, log).backward()
        optimizer.step()
        optimizer.zero_grad()
    return local


@torch.no_grad()
def end_probability(local: LocalModel) -> float:
    """Where the user leaves: at the token before the last."""
    [(ids, _)] = masked(local)
    end = local.template().end
    assert ids[-2] == end
    return float(local.model(torch.tensor([ids[:-2]])).logits[0, -1].softmax(-1)[end])


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(torch.tensor([[*range(60, 100), 257, 258, 259, 260]])).logits


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_the_rows_of_control_tokens_and_merges_into_an_ordinary_model(
    tied, tmp_path
):
    ready, _ = from_base(base_llama(tied))
    before, plain = weights(ready), logits_of(ready.model)
    local = with_lora(ready, rank=4)
    assert has_adapter(local) and not has_adapter(base_llama())
    assert torch.equal(logits_of(local.model), plain)  # at first nothing changes
    linear = {
        name.split(".")[-4]
        for name, p in local.model.named_parameters()
        if p.requires_grad and "_A" in name
    }
    assert linear == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    first = end_probability(local)
    train(local)
    assert end_probability(local) > 2 * first
    adapted = logits_of(local.model)
    assert (adapted - plain).abs().max() > 0.01
    merged = merge(local)
    assert type(merged.model) is LlamaForCausalLM and not has_adapter(merged)
    torch.testing.assert_close(logits_of(merged.model), adapted, rtol=1e-4, atol=1e-5)
    for old, now in zip(before, weights(merged), strict=True):
        changed = (old != now).any(1).nonzero()[:, 0].tolist()
        assert changed == [257, 258, 259, 260]
    save(merged, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(loaded), logits_of(merged.model))
    assert (
        "lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")
    ) is not tied


def test_lora_packs_rows_and_learns_the_same_with_gradient_checkpointing():
    losses = []
    for checkpointing in (False, True):
        local = with_lora(from_base(base_llama())[0], rank=4)
        check_document_masking(local.model, "adapted", 64)
        assert (local.model.dtype, local.model.device.type) == (torch.float32, "cpu")
        if checkpointing:
            local.model.gradient_checkpointing_enable({"use_reentrant": False})
        local.model.train()
        losses.append(loss_of(train(local, steps=3)).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_half_precision_model_gets_adapters_in_full_precision():
    ready, _ = from_base(base_llama())
    local = with_lora(LocalModel(ready.model.bfloat16(), ready.tokenizer), rank=4)
    assert local.model.dtype == torch.bfloat16
    assert {p.dtype for p in local.model.parameters() if p.requires_grad} == {
        torch.float32
    }
    first = loss_of(local).item()
    assert loss_of(train(local)).item() < first
    assert merge(local).model.dtype == torch.bfloat16


def test_an_adapter_is_taken_back_in_place_and_known_to_plain_peft(tmp_path):
    from peft import PeftModel

    local = with_lora(from_base(base_llama())[0], rank=4)
    train(local, steps=2)
    best = logits_of(local.model)
    save_adapter(local, tmp_path / "adapter")
    held = [p for p in local.model.parameters() if p.requires_grad]
    train(local, steps=2)
    assert not torch.allclose(logits_of(local.model), best)
    # Where a kill between the two renames leaves it.
    (tmp_path / "adapter").rename(tmp_path / "adapter.old")
    load_adapter(local, tmp_path / "adapter")
    assert torch.equal(logits_of(local.model), best)
    now = [p for p in local.model.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(held, now, strict=True))
    plain = PeftModel.from_pretrained(
        from_base(base_llama())[0].model, tmp_path / "adapter"
    )
    assert torch.equal(logits_of(plain), best)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    saved = load_tokenizer(str(tmp_path / "adapter"))
    assert saved.get_vocab() == local.tokenizer.get_vocab()


def test_an_adapter_of_another_rank_is_refused(tmp_path):
    save_adapter(with_lora(small(), rank=4), tmp_path / "adapter")
    with pytest.raises(
        InputError, match=r"adapter: this adapter belongs to another base model or rank"
    ):
        load_adapter(with_lora(small(), rank=8), tmp_path / "adapter")


def test_adapters_begin_the_same_with_the_same_seed():
    def begin(seed):
        return torch.cat(
            [p.flatten() for p in with_lora(small(), 4, seed=seed).model.parameters()]
        )

    assert torch.equal(begin(0), begin(0)) and not torch.equal(begin(0), begin(1))


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'userlm\[lora\]'"):
        with_lora(small(), rank=4)


def test_lora_refuses_an_output_layer_with_a_bias():
    config = PhiConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(InputError, match="phi: its output layer has a bias"):
        with_lora(
            LocalModel(PhiForCausalLM(config), letters(*LLAMA, END), "phi"), rank=4
        )


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_learned_by_heart_is_said_by_plain_transformers_from_the_saved_folder(
    tmp_path,
):
    local = train(small(), steps=150, lr=3e-3)
    save(local, tmp_path / "model")
    folder = tmp_path / "model"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )
    messages = [{"role": "system", "content": LOG.intent}]

    def say() -> str:
        ids = tokenizer.apply_chat_template(
            messages, return_tensors="pt", return_dict=False
        )
        return tokenizer.decode(
            model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
        )

    assert say() == "\nhi there<|eot_id|>"  # it writes the newline itself
    for turn in LOG.turns:
        messages.append({"role": turn.role, "content": turn.text})
    assert say() == f"\n{END}"
    again = LocalModel.load(str(folder), "cpu")
    assert again.template().end == local.template().end
    assert from_base(again) == (again, ())  # and can be trained on


def test_no_path_of_this_machine_is_saved_and_older_libraries_know_the_tokenizer(
    tmp_path,
):
    save(small(), tmp_path / "base")
    ready, _ = from_base(LocalModel.load(str(tmp_path / "base"), "cpu"))
    save(ready, tmp_path / "model")
    files = list((tmp_path / "model").iterdir())
    assert len(files) == 6
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & settings.keys()


@pytest.mark.parametrize("gathered", [False, True])
def test_weights_are_saved_in_the_precision_asked_for_and_tied_ones_once(
    gathered, tmp_path
):
    """Gathered from several processes, the two tied entries are two tensors."""
    local = small()
    given = (
        {name: weight + 1 for name, weight in local.model.state_dict().items()}
        if gathered
        else None
    )
    save(local, tmp_path / "model", given, torch.bfloat16)
    written = load_file(tmp_path / "model" / "model.safetensors")
    wanted = given or local.model.state_dict()
    assert wanted.keys() - written.keys() == {"lm_head.weight"}
    assert all(
        torch.equal(weight, wanted[name].bfloat16()) for name, weight in written.items()
    )
    assert local.model.dtype == torch.float32
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text())["dtype"]
        == "bfloat16"
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_complete_training_keeps_what_it_did_not_write(tmp_path):
    mine = {"model.bak", "checkpoint-notes", "adapter.zip", "tokenizers"}
    for name in mine - {"adapter.zip"}:
        (tmp_path / name).mkdir()
    (tmp_path / "adapter.zip").touch()
    for name in ("checkpoint", "checkpoint.old", "tokenizer.partial", "rows", "model"):
        (tmp_path / name).mkdir()
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "model"}


def test_a_folder_that_could_not_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    local = small()
    save(local, tmp_path / "model")
    first = load_file(tmp_path / "model" / "model.safetensors")

    def full(*_, **__):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    with torch.no_grad():
        local.model.lm_head.weight += 1
    monkeypatch.setattr(local.model, "save_pretrained", full)
    with pytest.raises(OSError) as caught:
        save(local, tmp_path / "model")
    assert (caught.value.errno, caught.value.filename) == (
        errno.ENOSPC,
        str(tmp_path / "model"),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    kept = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(first[name], kept[name]) for name in first)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_saving_leaves_a_whole_folder_and_the_next_save_heals_it(
    renames, tmp_path, monkeypatch
):
    """Killed before the first rename the older folder stands in its place, between the two it
    stands beside."""
    local, folder = small(), tmp_path / "model"
    save(local, folder)
    older = local.model.lm_head.weight.detach().clone()
    done = []
    rename = Path.rename

    def killed(path, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(path, target)

    with torch.no_grad():
        local.model.lm_head.weight += 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        # A kill cleans nothing up.
        patch.setattr(
            "userlm.training.checkpoints.shutil.rmtree", lambda *_, **__: None
        )
        with pytest.raises(KeyboardInterrupt):
            save(local, folder)
    assert folder.exists() is (renames == 0)
    assert folder.with_name("model.partial").is_dir()
    restore(folder)
    assert torch.equal(LocalModel.load(str(folder), "cpu").model.lm_head.weight, older)
    save(local, folder)
    assert torch.equal(
        LocalModel.load(str(folder), "cpu").model.lm_head.weight,
        local.model.lm_head.weight,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_was_trained_again_in_the_same_folder_is_loaded_again(tmp_path):
    save(small(), tmp_path / "model")
    first = loading.local_model(str(tmp_path / "model"))
    assert loading.local_model(str(tmp_path / "model")) is first
    with torch.no_grad():
        for weight in first.model.parameters():
            weight.zero_()
    save(first, tmp_path / "model")
    again = loading.local_model(str(tmp_path / "model"))
    assert again is not first and not next(again.model.parameters()).any()


def test_words_are_spelled_as_behind_a_header_where_a_tokenizer_puts_a_space_before_the_first():
    """As those of Llama-2 and Mistral do: alone `hi` is `▁hi`, behind a control token `hi`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {
        letter: i for i, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz\n<|>_")
    }
    bpe = Tokenizer(models.BPE({**letters, "</s>": len(letters)}, []))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    local = LocalModel(
        LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)), tokenizer, "metaspace"
    )
    assert local.tokenizer.encode("hi", add_special_tokens=False) == [
        letters[c] for c in "▁hi"
    ]
    assert local.encode("hi") == [letters[c] for c in "hi"] and local.encode("a b") == [
        letters[c] for c in "a▁b"
    ]
    ready, _ = from_base(local)  # it compares with what plain transformers spells
    assert ready.template().turn("user", "hi")[-4:-1] == tuple(
        letters[c] for c in "\nhi"
    )


# --- the other sides ------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": "hi there"}]


def test_an_assistant_gets_its_rows_begun_and_leaves_the_reserved_tokens_to_others():
    """The rows of 258 to 260 as for a user; 257 stays what it was, for the end token of a user."""
    local = base_llama()
    before, tokens = weights(local), local.tokenizer.get_vocab()
    ready, said = from_base(local, "assistant")
    assert [line.split(" is initialized as ")[0] for line in said] == [
        OPEN,
        SHUT,
        CLOSE,
    ]
    assert ready.tokenizer.get_vocab() == tokens and RESERVED in tokens
    for old, now in zip(before, weights(ready), strict=True):
        assert torch.equal(now[[257, 261]], old[[257, 261]]) and torch.equal(
            now[260], old[256]
        )
        torch.testing.assert_close(now[[258, 259]], old[:256].mean(0).expand(2, -1))
    template = ready.template()
    assert template.headers["user"] == (258, *spell("assistant"), 259)
    assert template.headers["assistant"] == (258, *spell("user"), 259)
    assert (template.close, template.end) == (260, 260)


def test_plain_text_needs_nothing_of_a_model_but_an_end_of_texts():
    local = base_llama()
    before = weights(local)
    ready, said = from_base(local, "both")
    assert said == () and all(map(torch.equal, before, weights(ready)))
    [row] = render_document(transcript(Conversation().say("hi")), ready.template()).rows
    assert row.ids == (*spell("User: hi\n"), 256)
    with pytest.raises(
        InputError, match=r"endless: its tokenizer has no token for the end of a text"
    ):
        from_base(LocalModel(like_llama(320), letters(*LLAMA), "endless"), "both")


@pytest.mark.parametrize("side", ["assistant", "both"])
def test_a_user_begins_from_a_saved_model_of_another_side_with_its_reserved_token(
    side, tmp_path
):
    """An assistant's headers and closing token have rows already; a base model's are begun now."""
    save(from_base(base_llama(), side)[0], tmp_path / "model")
    local = LocalModel.load(str(tmp_path / "model"), "cpu")
    before = weights(local)
    ready, said = from_base(local)
    assert said[0] == f"{END} takes the place of {RESERVED}, id 257"
    begun = [END] if side == "assistant" else [OPEN, SHUT, CLOSE, END]
    assert [line.split(" is initialized as ")[0] for line in said[1:]] == begun
    for old, now in zip(before, weights(ready), strict=True):
        assert torch.equal(now[257], now[260]) and torch.equal(now[260], old[256])
        assert not torch.equal(now[257], old[257])
    template = ready.template()
    assert (template.end, template.close, template.headers["user"]) == (
        257,
        260,
        (258, *spell("user"), 259),
    )
    ids = ready.tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_dict=False
    )
    # The chat template is the user's, too.
    assert ids[-6:] == [
        258,
        *spell("user"),
        259,
    ]


def test_a_tokenizer_learned_for_others_keeps_a_token_for_the_user():
    vocabularies = {
        side: learn_tokenizer(TEXTS, 400, side).get_vocab()
        for side in ("user", "assistant", "both")
    }
    assert vocabularies["assistant"] == vocabularies["both"]
    assert vocabularies["assistant"] == {
        RESERVED if token == END else token: id
        for token, id in vocabularies["user"].items()
    }
    assert learn_tokenizer(TEXTS, 400, "assistant").eos_token == CLOSE
    assert learn_tokenizer(TEXTS, 400, "both").eos_token == "<|end_of_text|>"


@pytest.fixture(scope="module")
def assistant_folder(tmp_path_factory) -> Path:
    """An assistant that learned by heart what the other side says in LOG."""
    words = learn_tokenizer(TEXTS, 400, "assistant")
    local = from_scratch(
        words, width=64, layers=2, seed=0, device="cpu", side="assistant"
    )
    folder = tmp_path_factory.mktemp("assistant") / "model"
    save(train(local, steps=60, lr=3e-3, log=swap_roles(LOG)), folder)
    return folder


def test_a_saved_assistant_is_prompted_in_plain_transformers_with_the_ids_that_are_trained(
    tmp_path,
):
    ready, _ = from_base(base_llama(), "assistant")
    save(ready, tmp_path / "model")
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = plain.apply_chat_template(
        ASKED, add_generation_prompt=True, return_dict=False
    )
    asked = [258, *spell("user"), 259, *spell("\nhi there"), 260]
    assert ids == [*asked, 258, *spell("assistant"), 259, *spell("\n")]
    assert plain.apply_chat_template(ASKED, return_dict=False) == asked
    row = render(swap_roles(LOG), ready.template()).rows[0]
    assert row.ids[: row.spans[0].first] == tuple(ids)
    assert prompt(
        swap_roles(Conversation().say("hi there")), ready.template()
    ) == tuple(ids)
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == ([260], 260)


def test_an_assistant_says_what_it_learned_by_heart_as_a_chat_model_and_in_plain_transformers(
    assistant_folder,
):
    said = loading.chat_model(str(assistant_folder)).chat(
        ASKED, Sampling(temperature=0, max_tokens=20)
    )
    tokenizer = AutoTokenizer.from_pretrained(assistant_folder)
    assert (said.text, said.stop_id) == (
        "hello",
        tokenizer.convert_tokens_to_ids(CLOSE),
    )
    model = AutoModelForCausalLM.from_pretrained(assistant_folder)
    ids = tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    drawn = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
    assert tokenizer.decode(drawn) == f"hello{CLOSE}"


def test_an_assistant_is_no_user_model_and_says_what_can_be_done_with_it(
    assistant_folder,
):
    wanted = (
        r"model: its tokenizer has no <\|endconversation\|> token, so it is not a user "
        r"model; "
        r"train one from it"
    )
    with pytest.raises(InputError, match=wanted):
        loading.user(f"trained:{assistant_folder}")


def test_a_saved_base_model_has_no_chat_template_and_is_scored_in_the_ids_that_it_learned(
    tmp_path,
):
    words = learn_tokenizer(TEXTS, 400, "both")
    local = from_scratch(words, width=64, layers=2, seed=0, device="cpu", side="both")
    save(local, tmp_path / "model")
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (
        plain.chat_template is None
        and not (tmp_path / "model" / "chat_template.jinja").exists()
    )
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    # <|end_of_text|>.
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (
        [1],
        1,
    )
    [learned] = render_document(transcript(LOG), local.template()).rows
    assert learned.ids[0] == 0 and learned.ids[-1] == 1
    model, form, _ = loading.scorer(f"base:{tmp_path / 'model'}")
    [row] = form.rows(LOG, 400).rows
    assert row.ids == learned.ids[: len(row.ids)] and plain.decode(row.ids).endswith(
        "Assistant: hello\nUser: bye\n"
    )
    [scores] = model.score([(learned.ids, learned.mask())])
    ids = torch.tensor([learned.ids])
    assert -sum(scores) / len(scores) == pytest.approx(
        local.model(ids, labels=ids).loss.item(), rel=1e-4
    )
    # as somebody in plain transformers would write it
    said = "<|begin_of_text|>User: hi there\nAssistant: hello\n"
    log = Conversation().say("hi there").say("hello")
    assert (*plain.encode(said, add_special_tokens=False), 1) == render_document(
        transcript(log), local.template()
    ).rows[0].ids
    with pytest.raises(InputError, match="so it is not a user model"):
        loading.scorer(f"trained:{tmp_path / 'model'}")


def test_lora_trains_an_assistants_words_and_leaves_the_reserved_row_alone(tmp_path):
    ready, _ = from_base(base_llama(), "assistant")
    before = weights(ready)
    local = with_lora(ready, rank=4)
    first = loss_of(local, swap_roles(LOG)).item()
    assert loss_of(train(local, log=swap_roles(LOG)), swap_roles(LOG)).item() < first
    merged = merge(local)
    for old, now in zip(before, weights(merged), strict=True):
        assert (old != now).any(1).nonzero()[:, 0].tolist() == [258, 259, 260]
    save(merged, tmp_path / "model")
    spelled = AutoTokenizer.from_pretrained(tmp_path / "model").apply_chat_template(
        ASKED, add_generation_prompt=True, tokenize=False
    )
    assert spelled.endswith(f"{OPEN}assistant{SHUT}\n")


def test_lora_on_plain_text_trains_the_row_of_its_end_alone():
    ready, _ = from_base(base_llama(), "both")
    local = with_lora(ready, rank=4)
    assert local.model.peft_config["default"].trainable_token_indices == {
        "model.embed_tokens": [256],
        "lm_head": [256],
    }


@pytest.mark.parametrize("side", ["assistant", "both"])
def test_what_learned_to_leave_is_not_made_into_another_side(side):
    with pytest.raises(
        InputError, match=r"scratch: it has a user model's <\|endconversation\|> token"
    ):
        from_base(small(), side)


def test_a_base_model_of_an_instruct_model_keeps_no_chat_template(tmp_path):
    local = base_llama()
    local.tokenizer.chat_template = "{{ messages }}"
    ready, _ = from_base(local, "both")
    save(ready, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template is None
