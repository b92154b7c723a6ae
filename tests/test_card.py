"""The card of a trained model, and what its training took."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from userlm import assets
from userlm.guard import Guard
from userlm.training import card

SHA = "ab" * 32
OPTIONS = {
    "base": "meta-llama/Llama-3.2-1B",
    "lr": 2e-5,
    "batch": 1024,
    "lora": None,
    "valid": "/home/ann/runs/intents/valid.jsonl",
    "valid_limit": 500,
    "watts": None,
    "seed": 0,
}
MANIFEST = {
    "verb": "train",
    "options": OPTIONS,
    "inputs": {
        "/home/ann/runs/intents/train.jsonl": SHA,
        "/home/ann/runs/intents/valid.jsonl": SHA[::-1],
    },
    "versions": {"python": "3.11.7", "userlm": "1.2.3"},
}
# Step 0 is a validation. Two steps of 1,800 s: 3,600 s; with the validation 4,500 s, which is 1.25 h.
LOG = [
    {"step": 0, "valid_perplexity": 90.0, "seconds": 900.0},
    {
        "step": 1,
        "loss": 4.0,
        "tokens": 36_000,
        "conversations": 300,
        "samples": 1024,
        "seconds": 1800.0,
    },
    {
        "step": 2,
        "loss": 3.0,
        "tokens": 36_000,
        "conversations": 420,
        "samples": 1030,
        "seconds": 1800.0,
    },
]
RESULTS = {
    "conversations": 720,
    "without_intent": 20,
    "samples": 2054,
    "tokens": 72_000,
    "loss_tokens": 9_500,
    "dropped": 3,
    "without_user_turn": 1,
    "seen": 2054,
    "seen_tokens": 72_000,
    "seen_loss_tokens": 9_500,
    "steps": 2,
    "stopped_early": False,
    "parameters": 1_235_814_400,
    "trained_parameters": 1_235_814_400,
    "loss": 3.0,
    "untrained": {"valid_perplexity": 90.0, "valid_termination_f1": 0.0},
    "best": {"step": 2, "valid_perplexity": 8.125, "valid_termination_f1": None},
    "device": "NVIDIA H100 80GB HBM3",
    "notes": [
        "<|endconversation|> takes the name and the id 128002 of <|reserved_special_token_0|>"
    ],
    "precision": "bf16",
    "processes": 4,
    "throughput": card.throughput(LOG, "NVIDIA H100 80GB HBM3", 4, None),
}


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_what_a_training_took_is_counted_from_its_log():
    took = card.throughput(LOG, "NVIDIA H100 80GB HBM3", 4, None)
    assert took == pytest.approx(
        {
            "hours": 1.25,
            "tokens_per_second": 20.0,  # 72,000 tokens in 3,600 s of steps
            "conversations_per_second": 0.2,  # 720 in 3,600 s
            "device_hours": 5.0,  # 4 devices
            "watts": 700,
            "kwh": 3.5,  # 5 h x 0.7 kW
            "kg_co2": 1.6555,  # 3.5 x 0.473
        }
    )


@pytest.mark.parametrize(
    ("device", "watts"),
    [
        ("NVIDIA H100 PCIe", 350),
        ("NVIDIA GeForce RTX 4090", 450),
        ("Tesla T4", 70),
        ("Tesla V100-SXM2-16GB", 300),
        ("NVIDIA RTX A6000", 300),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_only_a_whole_board_that_is_known_has_a_power(device, watts):
    assert card.throughput(LOG, device, 1, None)["watts"] == watts


def test_a_device_that_is_not_known_has_no_energy_unless_its_power_is_given():
    took = card.throughput(LOG, "cpu", 1, None)
    assert (took["hours"], took["kwh"], took["kg_co2"]) == (1.25, None, None)
    # 1.25 h x 0.2 kW.
    assert card.throughput(LOG, "cpu", 1, 200.0)["kwh"] == pytest.approx(0.25)


def test_a_training_without_a_step_has_no_speed():
    took = card.throughput(LOG[:1], "cpu", 1, None)
    assert (
        took["hours"],
        took["tokens_per_second"],
        took["conversations_per_second"],
    ) == (
        0.25,
        None,
        None,
    )
    assert card.throughput([], "cpu", 1, None)["hours"] == 0


def test_the_card_tells_data_configuration_metrics_and_cost():
    text = card.render(MANIFEST, RESULTS)
    assert front(text)["base_model"] == "meta-llama/Llama-3.2-1B"
    assert front(text)["library_name"] == "transformers"
    assert front(text)["pipeline_tag"] == "text-generation"
    # Grams: 1,655.5, to four digits.
    assert front(text)["co2_eq_emissions"]["emissions"] == 1656
    assert {"license", "language"}.isdisjoint(front(text))
    for line in (
        "# A user language model, from Llama-3.2-1B",
        f"| `train.jsonl` | training | {SHA} |",
        f"| `valid.jsonl` | validation | {SHA[::-1]} |",
        "| conversations with an intent | 700 |",
        "| samples dropped: too long | 3 |",
        "1,235,814,400 parameters, 2 steps, 2,054 samples seen.",
        "Their rows have 72,000 tokens, 9,500 of them with loss.",
        "| tokens with loss | 9,500 |",
        "| lr | 2e-05 |",
        "- <|endconversation|> takes the name and the id 128002 of <|reserved_special_token_0|>",
        "Versions: python 3.11.7, userlm 1.2.3.",
        "| on held-out humans | before training | these weights (step 2) |",
        "| perplexity | 90 | 8.12 |",
        "| termination F1 | 0 % | not known |",
        "| device | 4 x NVIDIA H100 80GB HBM3 |",
        "| CO2 equivalents | 1.66 kg |",
    ):
        assert f"\n{line}" in text, line
    assert "700 W per device at all times,\nthe maximum power of such a board" in text
    assert "0.473 kg per kWh" in text
    assert "| lora |" not in text  # an option that was not given


def test_the_card_says_how_answers_were_cut_and_how_to_cut_them():
    assert "longer ones kept" not in card.render(MANIFEST, RESULTS)
    cut = {**MANIFEST, "options": {**OPTIONS, "max_answer_tokens": 64}}
    text = card.render(cut, RESULTS)
    assert "an answer had at most 64 tokens; longer ones kept" in text
    assert 'end, with "…" between them' in text and "| max_answer_tokens | 64 |" in text


def test_a_resumed_run_has_the_same_card():
    resumed = {
        **MANIFEST,
        "inputs": [list(pair) for pair in MANIFEST["inputs"].items()],
    }
    assert card.render(resumed, RESULTS) == card.render(MANIFEST, RESULTS)


def test_the_card_names_no_folder_of_the_host():
    base = "/home/ann/models/Llama-3.2-1B"
    notes = [f"{base} has a chat template"]
    text = card.render(
        {**MANIFEST, "options": {**OPTIONS, "base": base}}, {**RESULTS, "notes": notes}
    )
    assert "ann" not in re.split(r"\W+", text)
    assert "base_model" not in front(text)
    assert "\n| base | Llama-3.2-1B |" in text
    assert "\n- Llama-3.2-1B has a chat template" in text


def test_a_folder_whose_name_could_be_a_hub_id_is_not_taken_for_one(
    tmp_path, monkeypatch
):
    (tmp_path / "meta-llama/Llama-3.2-1B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front(card.render(MANIFEST, RESULTS))


def test_the_fetched_base_is_named_as_on_the_hub():
    results = {**RESULTS, "notes": ["a small vocabulary"]}
    options = {**OPTIONS, "base": "small"}
    text = card.render({**MANIFEST, "options": options}, results)
    assert front(text)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "# A user language model, from SmolLM2-135M-Instruct" in text
    assert "a small vocabulary" in text


def test_a_model_from_scratch_has_no_base_model():
    text = card.render(
        {**MANIFEST, "options": {**OPTIONS, "base": "scratch:64x2x1000"}}, RESULTS
    )
    assert "base_model" not in front(text)
    assert "# A user language model, from random weights" in text
    assert "\n| base | scratch:64x2x1000 |" in text


def test_what_was_not_measured_is_said():
    took = card.throughput(LOG, "cpu", 1, None)
    nothing = {
        "untrained": {},
        "best": None,
        "throughput": took,
        "device": "cpu",
        "processes": 1,
    }
    text = card.render(MANIFEST, RESULTS | nothing)
    assert "No conversations were held out, so nothing was measured." in text
    assert "| CO2 equivalents | not known |" in text
    assert "co2_eq_emissions" not in front(text)
    assert "Ember" not in text
    assert not re.search(r"\bNone\b|\bnan\b", text)


def test_a_model_that_was_not_trained_has_the_figures_of_its_beginning():
    text = card.render(MANIFEST, RESULTS | {"best": None, "steps": 0, "seen": 0})
    assert (
        "\n| on held-out humans | before training |\n| --- | --- |\n| perplexity | 90 |\n"
        in text
    )


def test_the_card_of_adapters_says_how_few_weights_were_trained():
    text = card.render(
        MANIFEST, RESULTS | {"trained_parameters": 11_280_512, "stopped_early": True}
    )
    assert (
        "\n11,280,512 of 1,235,814,400 parameters, 2 steps, stopped early, 2,054 samples seen."
        in text
    )


def test_a_power_that_was_given_is_said_to_be():
    watts = {"throughput": card.throughput(LOG, "cpu", 1, 200.0)}
    text = card.render(
        {**MANIFEST, "options": {**OPTIONS, "watts": 200.0}}, RESULTS | watts
    )
    assert "200 W per device at all times,\nas given" in text


def test_languages_are_told_where_they_are_known_and_norwegian_is_one_of_them():
    text = card.render(
        MANIFEST, RESULTS | {"languages": {"en": 9, "no": 3, "und": 2, "klingon": 1}}
    )
    assert front(text)["language"] == ["en", "no"]
    assert "According to the labels in the logs: en, no." in text
    assert "they were not recorded" in card.render(MANIFEST, RESULTS)


def of_side(side):
    """The card of a model that learned another side; it is told no intent, and termination is not measured."""
    best = {"step": 2, "valid_perplexity": 8.125, "valid_termination_f1": None}
    options = {**OPTIONS, "side": side, "intent": False, "region": "Norway"}
    return card.render(
        {**MANIFEST, "options": options},
        {**RESULTS, "without_intent": 720, "best": best},
    )


@pytest.mark.parametrize(
    ("side", "lines"),
    [
        (
            "assistant",
            [
                "# An assistant, from Llama-3.2-1B",
                "| side | assistant |",
                "| samples: assistant turns | 2,054 |",
                "| on held-out answers | before training | these weights (step 2) |",
            ],
        ),
        (
            "both",
            [
                "# A base language model, from Llama-3.2-1B",
                "| side | both |",
                "| samples: rows of text, more than one for a long conversation | 2,054 |",
                "| on held-out conversations | before training | these weights (step 2) |",
            ],
        ),
    ],
)
def test_the_card_of_another_side_claims_no_user_model_and_names_its_figures_for_what_they_are(
    side, lines
):
    text = of_side(side)
    for line in (*lines, "| perplexity | 90 | 8.12 |"):
        assert f"\n{line}\n" in text, line
    assert front(text)["tags"] == ["userlm"]
    over = {
        "assistant": "assistant turns",
        "both": "both sides, including the speakers' names",
    }
    learned = {"assistant": "assistant turns", "both": "every token of the text"}
    assert (
        f"It is over the content of\n{over[side]}." in text
        and f"The loss is on {learned[side]}." in text
    )
    for claim in (
        "A user language model",
        "termination",
        "P(end)",
        "ends the conversation",
        "intent",
        "not known",
        "{",
        "None",
    ):
        assert claim not in re.sub(r"```.*?```", "", text, flags=re.DOTALL), claim


SECTIONS = (
    "**Direct use.**",
    "**Downstream use.**",
    "**Out of scope.**",
    "**Bias.**",
    "**Privacy.**",
    "**Languages.**",
)
OF_USERS = (
    "**Role drift.**",
    "**Invented requirements.**",
    "**Prompt injection.**",
    "## Recommended guards",
)


def test_a_card_says_what_a_model_is_for_and_what_may_go_wrong():
    user = card.render(MANIFEST, RESULTS)
    assert all(f"\n{section}" in user for section in (*SECTIONS, *OF_USERS))
    for side in ("assistant", "both"):
        text = of_side(side)
        assert all(f"\n{section}" in text for section in SECTIONS)
        assert not any(section in text for section in OF_USERS)


def test_guards_that_a_card_recommends_can_be_given():
    text = card.uses("user", "English.", has_base=True)
    given = re.findall(r"`(?:--guard )?((?:paper|no-repeat|exhausted)[^`]*)`", text)
    assert len(given) == 4
    assert all(Guard.parse(guard) != Guard() for guard in given)


def test_a_base_model_is_named_only_where_there_is_one():
    assert "its base model" in card.uses("user", "English.", has_base=True)
    assert "base model" not in card.uses("user", "English.", has_base=False)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("userlm-small", "user"),
        ("userlm-tiny", "user"),
        ("assistant-tiny", "assistant"),
    ],
)
def test_the_cards_of_the_embedded_models_have_the_same_sections(name, side):
    text = (assets.model(name) / "README.md").read_text()
    assert card.uses(side, "English.", has_base=name == "userlm-small") in text
    assert "the CO2 is not known" in text and "hours" in text


# What the hub knows (huggingface.co/docs/hub/model-cards); other fields are ignored there.
FIELDS = {"library_name": str, "pipeline_tag": str, "license": str, "base_model": str}
LISTS = ("tags", "language")
EMISSIONS = {
    "emissions": (int, float),
    "source": str,
    "training_type": str,
    "geographical_location": str,
    "hardware_used": str,
}


@pytest.mark.parametrize("name", ["", "userlm-small", "userlm-tiny", "assistant-tiny"])
def test_the_metadata_of_a_card_are_those_of_the_hub(name):
    options = {**OPTIONS, "region": 'Nord-"Trøndelag": no'}
    results = {**RESULTS, "languages": {"en": 9, "no": 1}}
    text = card.render({**MANIFEST, "options": options}, results)
    if name:
        text = (assets.model(name) / "README.md").read_text()
    found = front(text)
    assert ModelCard(text).data.to_dict() == found
    emissions = found.pop("co2_eq_emissions", {})
    for field, kind in {key: FIELDS.get(key, list) for key in found}.items():
        assert isinstance(found[field], kind) and field in (*FIELDS, *LISTS), field
    assert all(re.fullmatch("[a-z]{2,3}", code) for code in found["language"])
    assert all(isinstance(emissions[key], EMISSIONS[key]) for key in emissions)
    if not name:
        assert emissions["geographical_location"] == options["region"]
        assert emissions["hardware_used"] == "4 x NVIDIA H100 80GB HBM3"
        assert emissions["training_type"] == "fine-tuning"
        assert '\n| region | Nord-"Trøndelag": no |' in text


@pytest.fixture(scope="module")
def trained():
    """Models of our own, one of each side, since saving sets their generation."""
    from userlm.training.base import from_scratch, learn_tokenizer

    def scratch(side):
        words = learn_tokenizer(["plan me a trip to rome please"], 300, side)
        return from_scratch(words, 32, 1, seed=0, device="cpu", side=side)

    return {side: scratch(side) for side in ("user", "assistant", "both")}


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory):
    from userlm.training.checkpoints import save

    folder = tmp_path_factory.mktemp("card")
    for side, local in trained.items():
        save(local, folder / side)
    return {side: folder / side for side in trained}


def run_call(text, number, folder):
    calls = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(calls[number].replace("OWNER/NAME", str(folder)), {"__name__": "__main__"})
    return len(calls)


@pytest.mark.parametrize("number", [0, 1])
def test_the_calls_on_the_card_run(number, folders, capsys):
    assert run_call(card.render(MANIFEST, RESULTS), number, folders["user"]) == 2
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("side", ["assistant", "both"])
def test_the_call_on_the_card_of_another_side_runs(side, folders, capsys):
    assert run_call(of_side(side), 0, folders[side]) == 1
    assert capsys.readouterr().out.strip()


def test_the_call_in_transformers_sees_the_ids_that_userlm_spells(trained, folders):
    from transformers import AutoTokenizer

    from userlm import flip
    from userlm.types import Conversation

    tokenizer = AutoTokenizer.from_pretrained(folders["user"])
    talk = Conversation(intent="be brief").say("hi").say("Hello!")
    said = [("system", "be brief"), ("user", "hi"), ("assistant", "Hello!")]
    messages = [{"role": role, "content": text} for role, text in said]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    user = trained["user"]
    # The newline is the model's to say.
    assert (*ids, *user.encode("\n")) == flip.prompt(talk, user.template())
