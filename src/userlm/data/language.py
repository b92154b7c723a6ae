"""The language of a conversation, as an ISO 639 code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from heapq import nlargest
from math import inf, log

from userlm.types import Conversation

_TABLE = """
    af Afrikaans sq Albanian am Amharic ar Arabic hy Armenian az Azerbaijani eu Basque
    be Belarusian bn Bengali nb Bokmal bs Bosnian bg Bulgarian ca Catalan zh Chinese hr Croatian
    cs Czech da Danish nl Dutch en English eo Esperanto et Estonian fi Finnish fr French
    gl Galician lg Ganda ka Georgian de German el Greek gu Gujarati he Hebrew hi Hindi
    hu Hungarian is Icelandic id Indonesian ga Irish it Italian ja Japanese kk Kazakh ko Korean
    la Latin lv Latvian lt Lithuanian mk Macedonian ms Malay mi Maori mr Marathi mn Mongolian
    no Norwegian nn Nynorsk fa Persian pl Polish pt Portuguese pa Punjabi ro Romanian ru Russian
    sr Serbian sn Shona sk Slovak sl Slovene so Somali st Sotho es Spanish sw Swahili sv Swedish
    tl Tagalog ta Tamil te Telugu th Thai ts Tsonga tn Tswana tr Turkish uk Ukrainian ur Urdu
    uz Uzbek vi Vietnamese cy Welsh xh Xhosa yo Yoruba zu Zulu und Nolang und Unknown
""".split()
LANGUAGES = dict(zip(_TABLE[1::2], _TABLE[::2], strict=True))
"""English names of languages, as WildChat and LMSYS write them, to codes; `und`: undetermined."""

_CODES = {name.lower(): code for name, code in LANGUAGES.items()}


@lru_cache(maxsize=1024)
def language_code(label: str) -> str:
    """Return the code: `en` for `English`, `en`, `en-US` and `EN`; a name not in `LANGUAGES` is
    returned unchanged."""
    label = "".join(letter for letter in label if letter.isprintable())
    label = label.strip().lower()
    code, _, _ = label.replace("_", "-").partition("-")
    return _CODES.get(label) or code or "und"


def label_of(conversation: Conversation) -> str:
    """Return the code of the language that the log states; `und` if it states none."""
    label = conversation.meta.get("language")
    code = language_code(label) if isinstance(label, str) else "und"
    return "und" if code == _NO_LANGUAGE else code


def language(conversation: Conversation) -> str:
    """Return the language of the user; `und` if there are neither letters nor a label.

    The label of the log and the words of the user are weighed against each other, as odds: a label
    is often wrong about short turns ("continue" is not Italian), and so is an identifier. If that
    leaves a doubt, the answers of the assistant count too.
    """
    label = label_of(conversation)
    turns = conversation.user_turns
    first_turn, _ = _main_script(_prose(turns[:1]))
    if label != "und" and _at_first_sight(first_turn, label) == label:
        return label
    text, is_latin = _main_script(_prose(turns))
    if code := _at_first_sight(text, label):
        return code
    if not is_latin and label in _OTHER_SCRIPTS:
        return label
    scores = _scores(text, is_latin)
    if label != "und":
        if label not in scores:
            return label  # no letters, or a language that the identifier does not know
        scores[label] += _LABEL
    if not _is_sure(scores):
        answers = [turn.text for turn in conversation.turns if turn.role == "assistant"]
        if answered := _scores(*_main_script(_prose(answers))):
            answer = max(answered, key=answered.__getitem__)
            scores[answer] = scores.get(answer, 0) + _ANSWER
    return max(scores, key=scores.__getitem__, default="und")


# --- evidence -------------------------------------------------------------------------------------

# How much each piece of evidence is worth, in logarithms of odds. These are round numbers, tried on
# logs of real users.
_LABEL = log(50)
_ANSWER = log(20)
_COMMON_WORD = log(100)
_ACCENTED_WORD = log(10)  # against English
_SURE = log(10)  # what the first must be ahead of the second

_LETTERS = 10  # the identifier is sure too early, so that its word counts less about a shorter text
_NO_LANGUAGE = "zxx"

_SHARES = {"en": 0.5} | dict.fromkeys(
    "zh ru fr es de pt it tr ar ko ja vi pl id nl uk fa sv cs he".split(), 0.02
)
"""About how often users write in a language; WildChat has these numbers, roughly."""
_LOG_SHARES = {code: log(share) for code, share in _SHARES.items()}
_RARE = log(0.002)

COMMON_WORDS = {
    "cs": "ahoj jsem není jak jaký",
    "de": "hallo guten der das und ist ein eine wie ich nicht mit für kannst bitte auf wer",
    "en": "the of and are to with this that you your my what how who why can could would please "
    "write give make tell explain translate does not from hello thanks was were they there which "
    "about should",
    "es": "hola holi una como qué cómo cuál quién cuanto eres gracias puedes español por",
    "fr": "bonjour salut est les une qui vous moi quel quelle comment ça va pour dans merci stp",
    "id": "halo apa yang dan untuk saya dengan adalah buatkan bagaimana",
    "it": "ciao che il della sono cosa quale grazie puoi perché",
    "nl": "hallo hoe het een wat ik voor niet kun",
    "pl": "cześć jest się jak czy dla oraz",
    "pt": "olá ola oi uma como você voce não qual faça obrigado apenas",
    "ro": "bună este pentru cum și",
    "sv": "hej och är det att jag",
    "tr": "merhaba bir ve için nasıl nedir",
    "vi": "chào là gì tôi cho",
}
"""A few of the most frequent words of the languages in Latin letters: the identifier counts
sequences of bytes, which says little about a greeting."""
_COMMON = {code: frozenset(words.split()) for code, words in COMMON_WORDS.items()}

_OTHER_SCRIPTS = frozenset(
    "am ar be bg bn el fa gu he hi hy ja ka kk ko mk mn mr pa ru sr ta te th uk ur yue zh".split()
)
"""Languages that are not written in Latin letters: there, labels are right."""

_NO_PROSE = re.compile(
    r"```[\s\S]*?(?:```|\Z)"  # code in fences
    r"|^.{0,100}(?:[;{}]|\):)[ \t\r]*$"  # a line that ends as code does
    r"|https?://\S+",
    re.MULTILINE,
)
_WORD = re.compile(r"[^\W\d_]+")
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+")
_PART = 200  # characters of the beginning, and of the end, of each turn
_MAX_TEXT = 1000  # characters in all


def _prose(turns: Sequence[str]) -> str:
    """Return the beginning and the end of each turn, without code and URLs, if there is more.
    People ask before or after what they paste."""
    texts = []
    for turn in turns:
        texts.append(turn[:_PART])
        texts.append(turn[_PART:][-_PART:])
    text = "\n".join(texts)[:_MAX_TEXT]
    prose = _NO_PROSE.sub(" ", text)
    return prose if _WORD.search(prose) else text


def _at_first_sight(text: str, label: str) -> str | None:
    """Return the only language of which a text has common words, if these are enough. This saves
    the time of the identifier."""
    words = set(_WORD.findall(text.lower()))
    found = {code: len(words & common) for code, common in _COMMON.items()}
    found = {code: count for code, count in found.items() if count}
    if len(found) != 1:
        return None
    [(code, count)] = found.items()
    return code if count >= (2 if code == label else 4) else None


def _scores(text: str, is_latin: bool) -> dict[str, float]:
    """Return the score of each language that the text may be in; empty if it has no letters."""
    words = set(_WORD.findall(text.lower()))
    if not words:
        return {}
    trust = min(len("".join(words)) / _LETTERS, 1)
    scores = {}
    for code, probability in _identifier().rank(text):
        share = _LOG_SHARES.get(code, _RARE)
        scores[code] = share + trust * log(max(probability, 1e-30))
    del scores[_NO_LANGUAGE]
    for code, common in _COMMON.items():
        scores[code] += _COMMON_WORD * len(words & common)
    if not is_latin:
        scores["en"] = -inf
    accented = [word for word in words if not word.isascii()]
    scores["en"] -= _ACCENTED_WORD * min(len(accented), 2)  # more may be a quotation
    return scores


def _main_script(text: str) -> tuple[str, bool]:
    """Return the text, and whether it is in Latin letters. If much of it is in others, they are
    what the user writes in: the rest is names, code and quotations, and is left out."""
    if text.isascii():
        return text, True
    letters = "".join(_WORD.findall(text))
    others = _LATIN_WORD.sub("", letters)
    # Asian scripts need a letter for a syllable or a word.
    weight = sum(3 if letter >= "\u2e80" else 1 for letter in others)
    if 2 * weight <= len(letters) - len(others):
        return text, True
    return _LATIN_WORD.sub(" ", text), False


def _is_sure(scores: Mapping[str, float]) -> bool:
    first, second = nlargest(2, scores.values()) or (0, 0)
    return first - second > _SURE


@lru_cache(maxsize=1)
def _identifier():  # type: ignore[no-untyped-def]
    # Its model takes a moment to load.
    from py3langid.langid import (
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
