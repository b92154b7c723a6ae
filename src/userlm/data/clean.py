"""Which conversations to keep, and who learns from them. `userlm clean` runs this.

Each filter takes a conversation and gives its reason to drop it, or `None`. The method is that of "Flipping
the Dialogue" (arXiv 2510.06552): English only, no template prompts, and a split by people.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from userlm.text import stable_hash
from userlm.types import Conversation, InputError

# --- language --------------------------------------------------------------------------------------------

_TABLE = """
    af Afrikaans sq Albanian am Amharic ar Arabic hy Armenian az Azerbaijani eu Basque be Belarusian
    bn Bengali nb Bokmal bs Bosnian bg Bulgarian ca Catalan zh Chinese hr Croatian cs Czech da Danish
    nl Dutch en English eo Esperanto et Estonian fi Finnish fr French gl Galician lg Ganda ka Georgian
    de German el Greek gu Gujarati he Hebrew hi Hindi hu Hungarian is Icelandic id Indonesian ga Irish
    it Italian ja Japanese kk Kazakh ko Korean la Latin lv Latvian lt Lithuanian mk Macedonian ms Malay
    mi Maori mr Marathi mn Mongolian no Norwegian nn Nynorsk fa Persian pl Polish pt Portuguese
    pa Punjabi ro Romanian ru Russian sr Serbian sn Shona sk Slovak sl Slovene so Somali st Sotho
    es Spanish sw Swahili sv Swedish tl Tagalog ta Tamil te Telugu th Thai ts Tsonga tn Tswana
    tr Turkish uk Ukrainian ur Urdu uz Uzbek vi Vietnamese cy Welsh xh Xhosa yo Yoruba zu Zulu
    und Nolang und Unknown
""".split()
LANGUAGES = dict(zip(_TABLE[1::2], _TABLE[::2], strict=True))
"""English names of languages, as WildChat and LMSYS write them, to ISO 639 codes; `und`: undetermined."""

_CODES = {name.lower(): code for name, code in LANGUAGES.items()}
_SURE = 0.5
_ENOUGH = 4000


def language_code(label: str) -> str:
    """`English`, `en`, `en-US` and `EN` are all `en`; a name that is not in `LANGUAGES` stays as it is."""
    label = label.strip().lower()
    return _CODES.get(label) or label.replace("_", "-").partition("-")[0] or "und"


def language(conversation: Conversation) -> str:
    """The language as an ISO code: what the log says, else what py3langid says about the user's turns.

    Only a probability above 0.5 counts: below it, a short text in ASCII letters is taken for English
    ("numpy variance" is not Malagasy), and anything else is `und`.
    """
    label = conversation.meta.get("language")
    if isinstance(label, str) and label.strip():
        return language_code(label)
    text = "\n".join(conversation.user_turns)[:_ENOUGH]
    code, probability = _identify(text)
    if probability >= _SURE:
        return code
    letters = [letter for letter in text if letter.isalpha()]
    ascii_letters = sum(letter.isascii() for letter in letters)
    return "en" if letters and ascii_letters > len(letters) / 2 else "und"


def foreign(conversation: Conversation, languages: Collection[str] | None = ("en",)) -> str | None:
    """`language: zh` for one that is not in the languages wanted (codes or names); `None` wants them all."""
    if languages is None:
        return None
    code = language(conversation)
    return None if code in {language_code(wanted) for wanted in languages} else f"language: {code}"


def _identify(text: str) -> tuple[str, float]:
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


@lru_cache(maxsize=1)
def _identifier():  # type: ignore[no-untyped-def]
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes a moment to unpack

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


# --- what the log says about itself ----------------------------------------------------------------------


def flagged(conversation: Conversation, *, toxic: bool = True, redacted: bool = True) -> str | None:
    """`toxic` or `redacted`, where the log says so. `toxic_source`: a log made of nothing else."""
    meta = conversation.meta
    if toxic and (meta.get("toxic") is True or meta.get("toxic_source") is True):
        return "toxic"
    return "redacted" if redacted and meta.get("redacted") is True else None


# --- template prompts ------------------------------------------------------------------------------------


def count_ngrams(conversations: Iterable[Conversation], n: int = 7, above: int = 0) -> dict[int, int]:
    """How often each n-gram stands in the first user turns of all conversations: 64-bit hash to count.

    Words are what lies between white space, lower-cased; an n-gram counts as often as it stands in a text.
    Only counts greater than `above` are given: with `above` at the limit of `template`, a corpus costs
    8 bytes a word while it is read and next to nothing afterwards. Hashes are the same in every process.
    """
    hashes = array("Q")
    for conversation in conversations:
        hashes.frombytes(_ngram_hashes(_opening(conversation), n).tobytes())
    found, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    often = counts > above
    return dict(zip(found[often].tolist(), counts[often].tolist(), strict=True))


def template(conversation: Conversation, table: Mapping[int, int], n: int = 7, limit: int = 100) -> str | None:
    """`template prompt`, if any n-gram of the first user turn has a count above `limit` in `count_ngrams`.

    All conversations of a template go, not all but one. A text of fewer than `n` words never does. The method
    is the paper's; the limit of 100 is that of the one re-implementation that is public.
    """
    hashes = _ngram_hashes(_opening(conversation), n).tolist()
    return "template prompt" if any(table.get(key, 0) > limit for key in hashes) else None


def _opening(conversation: Conversation) -> list[str]:
    first = next(iter(conversation.user_turns), "")
    return first.lower().split()


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return stable_hash(word)


def _ngram_hashes(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """The sum of the words' hashes, each times an odd number for its place, modulo 2^64: as a whole text is
    done at once, millions of n-grams take seconds."""
    if n < 1:
        raise InputError(f"n-grams of {n} words: give n >= 1")
    count = max(len(words) - n + 1, 0)
    hashes = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    total = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        total += hashes[place : place + count] * np.uint64(stable_hash("place", place) | 1)
    return total


# --- splits ----------------------------------------------------------------------------------------------


def person(conversation: Conversation) -> str:
    """Whom a conversation belongs to, for splits: the user, else its tree of replies, else itself alone."""
    if conversation.user is not None:
        return conversation.user
    tree = conversation.meta.get("tree")
    return conversation.id if tree is None else f"{conversation.meta.get('source', '')}/{tree}"


def split(
    conversation: Conversation, seed: int = 0, shares: tuple[float, float, float] = (0.90, 0.05, 0.05)
) -> Literal["train", "valid", "test"]:
    """Where a conversation goes: one draw for each person, so nobody is in two splits.

    The draw is a hash of seed and person, not a shuffle: it needs no pass over the logs, and when logs are
    added nobody moves from one split to another. The price is that the shares hold on average, in each
    country as in all, and not to the person. WildChat's people are addresses in a country, as in the paper.

    Args:
        shares: of people, for train, valid and test; they sum to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise InputError(f"shares {shares}: give three numbers from 0 to 1 that sum to 1")
    draw = stable_hash(seed, person(conversation)) / 2**64
    if draw < shares[0]:
        return "train"
    return "valid" if draw < shares[0] + shares[1] else "test"
