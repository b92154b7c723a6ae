"""A classifier as a detector: a small random one that can be computed by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from userlm import loading
from userlm.types import InputError

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "yo", "certainly", "sep")


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    given = {"model_max_length": 8, "pad_token": "[PAD]", **options}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **given,
    )


def config(**options: Any) -> BertConfig:
    given: dict[str, Any] = {"id2label": {0: "machine", 1: "person"}, **options}
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
        initializer_range=1.0,  # so that each token matters
        label2id={name: i for i, name in given["id2label"].items()},
        **given,
    )


def save(folder: Path, model: Any, words: Any = None) -> str:
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return f"classifier:{folder}"


@pytest.fixture
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(config()).eval()


@torch.inference_mode()
def by_hand(model: Any, *ids: int) -> float:
    logits = model(torch.tensor([ids])).logits[0]
    return float(logits.softmax(0)[1])


def test_the_probability_is_that_of_the_named_label_alone_or_in_a_batch(
    tmp_path, model
):
    place = save(tmp_path / "m", model)
    detector = loading.detector(place, human_label="person")
    texts = ["yo", "certainly certainly yo"]
    expected = [by_hand(model, 2, 4, 3), by_hand(model, 2, 5, 5, 4, 3)]
    found = [one.p_human for one in detector.detect(texts)]
    assert found == pytest.approx(expected, abs=1e-6)
    [alone] = detector.detect(texts[:1])
    assert alone.p_human == pytest.approx(expected[0], abs=1e-6)
    [other] = loading.detector(place, human_label="machine").detect(["yo"])
    assert other.p_human == pytest.approx(1 - expected[0], abs=1e-6)


def test_a_label_that_is_not_named_or_not_there_is_told_which_there_are(
    tmp_path, model
):
    place = save(tmp_path / "m", model)
    with pytest.raises(InputError, match="has the labels machine, person; give"):
        loading.detector(place)
    with pytest.raises(InputError, match=r"--human-label human: .* machine, person"):
        loading.detector(place, human_label="human")


def test_a_model_without_a_trained_head_is_refused_and_not_filled_with_random_numbers(
    tmp_path,
):
    place = save(tmp_path / "m", BertModel(config()))
    with pytest.raises(
        InputError, match=r"load a classifier .* its weights lack classifier"
    ):
        loading.detector(place, human_label="person")


def test_a_model_with_one_label_is_refused(tmp_path):
    single = BertForSequenceClassification(config(id2label={0: "score"}))
    with pytest.raises(InputError, match="has the label score only"):
        loading.detector(save(tmp_path / "m", single), human_label="score")


def test_control_tokens_in_a_text_are_read_as_characters(tmp_path, model):
    place = save(tmp_path / "m", model)
    [found] = loading.detector(place, human_label="person").detect(["[SEP]"])
    # three words that are not known: "[", "SEP", "]"
    assert found.p_human == pytest.approx(by_hand(model, 2, 1, 1, 1, 3), abs=1e-6)


def test_a_long_text_is_cut_to_what_the_model_can_read(tmp_path, model):
    place = save(tmp_path / "m", model)
    [found] = loading.detector(place, human_label="person").detect(["yo " * 50])
    assert found.p_human == pytest.approx(by_hand(model, 2, *[4] * 6, 3), abs=1e-6)
    unlimited = save(tmp_path / "n", model, tokenizer(model_max_length=None))
    [found] = loading.detector(unlimited, human_label="person").detect(["yo " * 50])
    assert found.p_human == pytest.approx(by_hand(model, 2, *[4] * 8, 3), abs=1e-6)


def test_texts_of_a_model_without_padding_are_read_one_by_one(tmp_path, model):
    place = save(tmp_path / "m", model, tokenizer(pad_token=None))
    found = loading.detector(place, human_label="person").detect(["yo", "yo yo"])
    assert found[0].p_human == pytest.approx(by_hand(model, 2, 4, 3), abs=1e-6)


def test_labels_that_do_not_exclude_each_other_have_a_probability_each(tmp_path):
    torch.manual_seed(0)
    many = BertForSequenceClassification(
        config(problem_type="multi_label_classification")
    ).eval()
    place = save(tmp_path / "m", many)
    [found] = loading.detector(place, human_label="person").detect(["yo"])
    with torch.inference_mode():
        logits = many(torch.tensor([[2, 4, 3]])).logits[0]
    assert found.p_human == pytest.approx(float(logits[1].sigmoid()), abs=1e-6)


def test_no_number_is_none_with_a_reason(tmp_path, model):
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    place = save(tmp_path / "m", model)
    [found] = loading.detector(place, human_label="person").detect(["yo"])
    assert (found.p_human, found.why) == (None, "the model gives no number")


def test_a_folder_without_a_model_or_with_a_damaged_one_is_bad_input(tmp_path, model):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no model"):
        loading.detector(f"classifier:{tmp_path / 'empty'}", human_label="x")
    place = save(tmp_path / "m", model)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot load"):
        loading.detector(place, human_label="person")
