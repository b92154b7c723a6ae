"""Personal data in conversations, replaced by marks. `userlm clean --scrub` runs this.

What is replaced, and what is kept because it does not identify a person:

    <EMAIL>  addresses; not `user@host`, `@decorator`, `x@w.shape` or `git@github.com:owner/project`
    <PHONE>  +CC numbers, national ones with separators, plain digits only right after a word such
    as "phone" <CARD>   numbers of a known issuer whose check digit is right; not any long number
    <IP>     addresses of one host on the internet; not private, local and network addresses, not
             versions (after "version" or `Chrome/`, and short ones such as 1.2.3.4)
    <KEY>    API keys (OpenAI, AWS, GitHub, GitLab, Google, Hugging Face, Slack, Stripe), JWTs, PEM
             private keys, tokens after "Bearer", user and password in a URL; not
             `sk-your-key-goes-here`

These are patterns: they cannot find names and postal addresses. Marks that are already in a log,
such as WildChat's <PRESIDIO_ANONYMIZED_PHONE_NUMBER>, stay as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address
from typing import Any

from userlm.types import Conversation

MARKS = ("email", "phone", "card", "ip", "key")
"""The kinds of data, for counting. A mark is the kind in capitals between angle brackets."""

# keys of `meta` that are kept: whose it is and when
_KEPT = frozenset(("source", "tree", "timestamp"))


def scrub(conversation: Conversation) -> tuple[Conversation, dict[str, int]]:
    """Return the conversation with marks for personal data, and how often each kind was replaced.

    Turns, the intent, the target of a response and every text in `meta`, at any depth, are
    scrubbed: a system prompt, a goal, a rejected draft. The id, the person (`user`), the id of the
    log, and in `meta` the source and the tree of replies are kept, since splits and intervals need
    them. So a log that uses e-mail addresses as user ids keeps those.
    """
    meta = {key: value for key, value in conversation.meta.items() if key not in _KEPT}
    origin = conversation.origin
    parts = [
        conversation.intent,
        origin and origin.target,
        meta,
        [[turn.text, turn.meta] for turn in conversation.turns],
    ]
    if not _candidates("\n".join(_texts(parts))):  # most have nothing to replace
        return conversation, {}
    counts: Counter[str] = Counter()
    turns = []
    for turn in conversation.turns:
        text = _scrub(turn.text, counts)
        turns.append(replace(turn, text=text, meta=_scrub(turn.meta, counts)))
    scrubbed = replace(
        conversation,
        turns=tuple(turns),
        intent=_scrub(conversation.intent, counts),
        meta={**conversation.meta, **_scrub(meta, counts)},
        origin=origin and replace(origin, target=_scrub(origin.target, counts)),
    )
    return (scrubbed, dict(counts)) if counts else (conversation, {})


def scrub_text(text: str) -> tuple[str, dict[str, int]]:
    """Return the text with marks, and how often each kind was replaced.

    Scrubbing a text twice changes nothing more.
    """
    counts: Counter[str] = Counter()
    return _scrub(text, counts), dict(counts)


def _scrub(value: Any, counts: Counter[str]) -> Any:
    """Return a JSON value with all texts in it scrubbed."""
    if isinstance(value, dict):
        return {key: _scrub(inner, counts) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub(inner, counts) for inner in value]
    if not isinstance(value, str):
        return value
    before = None
    while value != before:  # after a replacement, the text next to it may match too
        before = value
        for form in _candidates(value):
            value = form.replace(value, counts)
    return value


def _texts(value: Any) -> Iterator[str]:
    """Return all texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


# --- patterns -------------------------------------------------------------------------------------

# The look-behind comes after the first character of a pattern: the search is several times as fast
# if a pattern begins with a literal or a small character class than with a look-behind. Repetitions
# are bounded, possessive, or can begin at only one position of a run, so that no text takes
# quadratic time.


Check = Callable[[re.Match[str]], bool]


@dataclass(frozen=True, slots=True)
class _Form:
    """A pattern for one kind of data.

    Attributes:
        real: a check whether a match is such data; `None` if every match is.
    """

    kind: str
    pattern: re.Pattern[str]
    real: Check | None

    def replace(self, text: str, counts: Counter[str]) -> str:
        def mark(match: re.Match[str]) -> str:
            if self.real and not self.real(match):
                return match[0]
            counts[self.kind] += 1
            return f"<{self.kind.upper()}>"

        return self.pattern.sub(mark, text)


def _candidates(text: str) -> list[_Form]:
    """Return the patterns that may match the text, by a quick search; most texts have none."""
    forms = [form for cue, form in _CUED if cue in text]
    return forms + _NUMBERS if _SIX_DIGITS.search(text) else forms


def _form(kind: str, pattern: str, real: Check | None = None) -> _Form:
    return _Form(kind, re.compile(pattern, re.VERBOSE | re.ASCII), real)


# --- keys and e-mail addresses --------------------------------------------------------------------

_PEM = r"""
    -----BEGIN[ ](?:[A-Z0-9]{1,10}[ ]){0,3}PRIVATE[ ]KEY(?:[ ]BLOCK)?-----
    (?: [^-]++ | -(?!----) )*+
    -----END[ ][A-Z0-9 ]{1,40}-----
"""
_JWT = r"eyJ (?<![\w-]...) [\w-]{8,} \.eyJ[\w-]{8,} (?:\.[\w-]*)?"
_BEARER = r"(?<=[Bb]earer[ ]) (?=[A-Za-z._~+/=-]{0,40}[0-9]) [A-Za-z0-9._~+/=-]{16,}"
_PASSWORD = r"""(?<=://) [^\s/:@<>{}\[\]"']{1,64} : [^\s/@<>{}\[\]"']{1,128} (?=@)"""
_EMAIL = r"""
    (?<![A-Za-z0-9._%+-]) (?!git@) [A-Za-z0-9._%+-]{1,64} @ (?:[A-Za-z0-9-]{1,63}\.){1,8}
    (?i: [a-z]{2} | com | org | net | edu | gov | mil | int | info | biz | name | pro | app | dev
    | xyz | tech | online | site | store | shop | cloud | club | live | email | agency | group
    | world | today | media )
    (?![A-Za-z0-9(])
"""


def _holds_code(match: re.Match[str]) -> bool:
    """Return whether a PEM block has content; documentation writes three dots instead."""
    return re.search(r"[A-Za-z0-9+/]{30}", match[0]) is not None


_KEYS = {
    "sk-": r"sk- (?<![A-Za-z0-9]...) (?=[A-Za-z_-]{0,40}[0-9]) [\w-]{20,}",
    "k_live_": r"[rs]k_live_ (?<![A-Za-z0-9].{8}) [A-Za-z0-9]{16,}",
    "AKIA": r"AKIA (?<![A-Za-z0-9].{4}) [A-Z0-9]{16} (?![A-Za-z0-9])",
    "ghp_": r"ghp_ (?<![A-Za-z0-9].{4}) [A-Za-z0-9]{30,}",
    "gho_": r"gho_ (?<![A-Za-z0-9].{4}) [A-Za-z0-9]{30,}",
    "github_pat_": r"github_pat_ \w{22,}",
    "glpat-": r"glpat- [\w-]{20,}",
    "AIza": r"AIza (?<![A-Za-z0-9].{4}) [\w-]{35}",
    "xox": r"xox (?<![A-Za-z0-9]...) [abeoprs]- (?=[A-Za-z-]{0,20}[0-9]) [A-Za-z0-9-]{10,}",
    "hf_": r"hf_ (?<![A-Za-z0-9]...) [A-Za-z0-9]{20,}",
    "eyJ": _JWT,
    "earer ": _BEARER,
    "://": _PASSWORD,
}
_CUED = [
    ("PRIVATE KEY", _form("key", _PEM, _holds_code)),
    *((cue, _form("key", pattern)) for cue, pattern in _KEYS.items()),
    ("@", _form("email", _EMAIL)),  # after the keys: a password in a URL looks like one
]
"""A text that every match contains, and the pattern."""


# --- numbers --------------------------------------------------------------------------------------

# To the base of 16, for IPv6.
_SIX_DIGITS = re.compile(r"[0-9](?:[ .():-]{0,2}[0-9A-Fa-f]){5}")

_CARD = r"""
    [0-9] (?<![\w.+-].)
    (?: [0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?
    | [0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}
    | [0-9]{12,18} )
    (?![\w-]|\.[0-9])
"""
_ISSUED = re.compile(
    r"4[0-9]{12}(?:[0-9]{3}){0,2}"  # Visa
    r"|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[68][0-9])[0-9]{11}"  # Diners
    r"|(?:6011|65[0-9]{2}|64[4-9][0-9]|35(?:2[89]|[3-8][0-9]))[0-9]{12}"  # Discover, JCB
    r"|62[0-9]{14,17}"  # UnionPay
)


def _is_card(match: re.Match[str]) -> bool:
    """Return whether it is a card number of a known issuer (ISO/IEC 7812) with a valid check digit.

    The check is Luhn's algorithm (US patent 2950048): every second digit from the right is doubled.
    """
    digits = re.sub(r"[ -]", "", match[0])
    total = 0
    for i, digit in enumerate(reversed(digits)):
        tens, ones = divmod(int(digit) * (1 + i % 2), 10)
        total += tens + ones
    return total % 10 == 0 and _ISSUED.fullmatch(digits) is not None


_IPV4 = r"[0-9] (?<![\w.].) [0-9]{0,2} (?:\.[0-9]{1,3}){3} (?!\w|\.[0-9])"
_IPV6 = r"""
    [23] (?<![\w:.].) [0-9A-Fa-f]{3}  # 2000::/3 is all that was given out so far
    (?: ::?[0-9A-Fa-f]{1,4} ){1,7} (?!\w|:[\w:])
"""
# This network, private (three), shared by a provider's customers, loopback, link-local, multicast
# and reserved.
_NOT_PUBLIC = [
    IPv4Network(network)
    for network in """
    0.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8
    169.254.0.0/16 224.0.0.0/3
    """.split()
]
_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|versions?|release|build|firmware|section)\b[.:]?\s?|\w/|[=~<>]=\s?)\Z"
)


def _is_host(match: re.Match[str]) -> bool:
    """Return whether it is one host on the internet.

    The networks for documentation (RFC 5737) count, since logs use them like real addresses. With
    five digits or fewer (one address in 12,000) it is almost always a version number.
    """
    text = match[0]
    if len(text) < len("1.2.3.456") or text.endswith(".0") or ".0.0." in text:
        return False
    if _follows(_VERSION, match):
        return False
    try:
        address = IPv4Address(text)
    except AddressValueError:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def _is_host6(match: re.Match[str]) -> bool:
    try:
        IPv6Address(match[0])
    except AddressValueError:
        return False
    return True


_BEFORE = r"(?<![\w.+/-].) (?<![0-9],.)"
_AFTER = r"(?![\w-]|\.[0-9]|[ ]?=)"
_INTERNATIONAL = (
    rf"\+ {_BEFORE} (?![0-9]{{4}}-[0-9]{{2}}-) [1-9] (?: [ .()-]{{0,2}} "
    rf"[0-9] "
    rf"){{9,14}} {_AFTER}"
)
_DASHED = rf"""
    [0-9] {_BEFORE}
    (?: [0-9]{{2}}([.-])[0-9]{{3}}\1[0-9]{{4}}  # 415-555-0132
    | (?<=1)([.-])[0-9]{{3}}\2[0-9]{{3}}\2[0-9]{{4}}  # 1-415-555-0132
    | (?<=1)[3-9][0-9]-[0-9]{{4}}-[0-9]{{4}} )  # 138-1234-5678
    {_AFTER}
"""
_AREA = rf"""
    [(0] {_BEFORE}
    (?: (?<=0)[1-9][0-9]{{1,3}}[ -]  # 020 7946 0958
    | (?<=\()(?:0[1-9][0-9]{{1,3}}|[0-9]{{2,3}})\)[ .-]? )  # (415) 555-0132
    [0-9]{{3,5}}[ .-]?[0-9]{{3,4}} {_AFTER}
"""
_DIGITS = r"""
    [+(0-9] (?<![\w.+-].) (?: (?<=\()\+?[0-9]{1,5}\) | (?<=\+)[0-9] | (?<=[0-9]) )
    (?: [ .()-]{0,2} [0-9] ){5,14} (?!\w|\.[0-9])
"""
_PHONE = re.compile(
    r"""\b (?:(?:tele|cell|mobile)?[ ]?phone|call|tel|whatsapp|mobile|cell|fax
        |(?:contact|reach)\s(?=number|no\b|at\b|on\b|me|us|him|her|them)) s?
    (?:[\s_:.,*`="'#-]*(?:number|num|no|nr|is|was|at|me|us|him|her|them|on|or|the|my|your|our))*
    [\s_:.,*`="'#-]{1,5} \(? \Z""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)


def _is_national(match: re.Match[str]) -> bool:
    return 10 <= len(re.findall(r"[0-9]", match[0])) <= 11


def _is_announced(match: re.Match[str]) -> bool:
    """Return whether it is seven digits or more after "phone", "call me at" and the like.

    A date or a list of single digits does not count.
    """
    groups = [len(group) for group in re.findall(r"[0-9]+", match[0])]
    digits = sum(groups)
    is_date = len(groups) == 3 and max(groups) == 4 and digits <= 8
    is_list = 1 in groups[1:]
    return digits >= 7 and not is_date and not is_list and _follows(_PHONE, match)


def _follows(words: re.Pattern[str], match: re.Match[str]) -> bool:
    start = match.start()
    return words.search(match.string, max(0, start - 40), start) is not None


_NUMBERS = [
    # Before the phone numbers, which would match a part of it.
    _form("card", _CARD, _is_card),
    _form("ip", _IPV4, _is_host),
    _form("ip", _IPV6, _is_host6),
    _form("phone", _INTERNATIONAL),
    _form("phone", _DASHED),
    _form("phone", _AREA, _is_national),
    _form("phone", _DIGITS, _is_announced),
]
"""Patterns with six digits or more."""
