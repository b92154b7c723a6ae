"""The language of a conversation, as an ISO 639 code."""

from __future__ import annotations

from functools import lru_cache

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
_MIN_PROBABILITY = 0.5
_MAX_CHARACTERS = 4000


@lru_cache(maxsize=1024)
def language_code(label: str) -> str:
    """Return the code: `en` for `English`, `en`, `en-US` and `EN`; a name not in `LANGUAGES` is
    returned unchanged."""
    label = "".join(letter for letter in label if letter.isprintable())
    label = label.strip().lower()
    code, _, _ = label.replace("_", "-").partition("-")
    return _CODES.get(label) or code or "und"


def language(conversation: Conversation) -> str:
    """Return the language that the log states, else the one that py3langid finds in the user turns.

    Only a probability above 0.5 counts: below it, a short text in ASCII letters counts as English
    ("numpy variance" is not Malagasy), and anything else is `und`.
    """
    label = conversation.meta.get("language")
    if isinstance(label, str) and label.strip():
        return language_code(label)
    text = "\n".join(conversation.user_turns)[:_MAX_CHARACTERS]
    code, probability = _identifier().classify(text)
    if probability >= _MIN_PROBABILITY:
        return str(code)
    letters = [letter for letter in text if letter.isalpha()]
    ascii_letters = sum(letter.isascii() for letter in letters)
    return "en" if ascii_letters > len(letters) / 2 else "und"


@lru_cache(maxsize=1)
def _identifier():  # type: ignore[no-untyped-def]
    # Its model takes a moment to load.
    from py3langid.langid import (
        MODEL_FILE,
        LanguageIdentifier,
    )

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
