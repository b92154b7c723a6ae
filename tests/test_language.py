"""Which language a conversation is in: its label and its words are weighed."""

import pytest

from userlm.data.language import label_of, language, language_code
from userlm.types import Conversation, Turn


def said(*texts: str, label: str | None = None) -> Conversation:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    return Conversation("c", turns, meta={} if label is None else {"language": label})


@pytest.mark.parametrize(
    ("label", "code"),
    [
        ("English", "en"),
        ("en", "en"),
        ("en-US", "en"),
        ("EN_gb", "en"),
        ("Chinese", "zh"),
        ("Nolang", "und"),
        ("", "und"),
    ],
)
def test_names_and_codes_of_a_language_are_the_same(label, code):
    assert language_code(label) == code
    assert label_of(said("hi", label=label)) == code


SHORT = {
    "en": [
        "hi",
        "ok",
        "continue",
        "numpy variance",
        "for loop in python",
        "tell me a joke",
        "say hola in Spanish",
        "What does 你好 mean?",
        "naïve Bayes vs logistic regression",
        "fix this\n```python\ndef größe(straße): return für(nicht, das)\n```",
    ],
    "es": ["hola", "¿qué tal?", "Hola, me llamo Ana", "dime un chiste por favor"],
    "fr": ["Bonjour", "salut ça va", "c'est qui le roi de France"],
    "de": ["Guten Morgen", "wie geht es dir", "Was ist ein Igel?"],
    "it": ["ciao caro", "Buongiorno, che tempo fa a Roma"],
    "pt": ["oi", "você fala português?", "olá tudo bem"],
    "tr": ["merhaba", "nasılsın"],
    "pl": ["cześć", "jak się masz"],
    "ru": ["привет", "как дела", "Кто такой Gerald Durrell и где он жил?"],
    "zh": [
        "你好",
        "在 ubuntu22.04 上如何安装 docker? error: No such file or directory",
    ],
    "ja": ["こんにちは"],
    "da": ["skriv et digt om havet"],
    "fi": ["kirjoita runo merestä"],
    "hr": ["napisi pjesmu o moru"],
    "nl": ["Hoe gaat het met je?"],
    "sw": ["andika shairi kuhusu bahari"],
    "tl": ["sumulat ka ng tula tungkol sa dagat"],
    "ko": ["안녕"],
}


@pytest.mark.parametrize("code", SHORT)
def test_a_short_text_is_enough(code):
    for text in SHORT[code]:
        assert (language(said(text)), text) == (code, text)


def test_what_holds_no_language_is_undetermined_unless_somebody_answers():
    assert language(said("12 + 7 = ?")) == "und"
    assert language(said("")) == language(said()) == "und"
    assert language(said("12 + 7 = ?", "The sum of 12 and 7 is 19.")) == "en"
    assert language(said("12 + 7 = ?", "La somme de 12 et 7 est 19.")) == "fr"
    assert language(said("12 + 7 = ?", label="Spanish")) == "es"


def test_a_label_that_the_words_contradict_is_not_believed():
    long = (
        "Please answer only my following question, and update the schema if you must."
    )
    for label in ("it", "Danish", "Tagalog", "xx"):
        assert language(said("continue", "Sure.", long, label=label)) == "en"
    assert language(said("你好，请问你是谁？", label="English")) == "zh"
    french = "Je voudrais savoir comment on fait une bonne soupe aux légumes."
    assert language(said(french, label="English")) == "fr"


def test_where_the_words_say_little_the_label_and_the_answer_decide():
    answer = "Sure, here is the rest of the essay about the history of the city."
    assert language(said("continue", label="it")) == "it"
    assert language(said("continue", answer, label="it")) == "en"
    italiano = "Certo, ecco il resto del tema sulla storia della città."
    assert language(said("continue", italiano, label="it")) == "it"
    assert language(said("Hallo", "Hello! How can I help you today?")) == "en"
    assert language(said("Hallo", "Hallo! Wie kann ich Ihnen heute helfen?")) == "de"


def test_a_question_behind_pasted_code_counts():
    code = "import gpu from gpu; const size = new Size(width, height);\n" * 40
    assert language(said(code + "почему этот код не работает?")) == "ru"
    assert language(said("почему этот код не работает?\n" + code)) == "ru"
    assert language(said(code + "why does this not work?")) == "en"


def test_a_quotation_in_another_language_is_not_the_users():
    text = "Translate this for my cv please: Responsável pela análise de crédito"
    assert language(said(text)) == "en"
