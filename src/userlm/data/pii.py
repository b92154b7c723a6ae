"""Personal data in conversations, replaced by marks. `userlm clean --scrub` runs this.

What goes, and what stays because it leads to nobody:

    <EMAIL>  addresses; not `user@host`, `@decorator`, `x@w.shape` or `git@github.com:owner/project`
    <PHONE>  +CC numbers, national ones with separators, bare digits only right after a word such as "phone"
    <CARD>   numbers of a known issuer whose check digit is right; not any long number
    <IP>     addresses of one host on the internet; not private, local and network addresses, not versions
             (after "version" or `Chrome/`, and short ones such as 1.2.3.4)
    <KEY>    what services give out (OpenAI, AWS, GitHub, GitLab, Google, Hugging Face, Slack, Stripe), JWTs,
             PEM private keys, tokens after "Bearer", user and password in a URL; not
             `sk-your-key-goes-here`

These are patterns: names and postal addresses are beyond them. Marks that a log brings along, such
as WildChat's <PRESIDIO_ANONYMIZED_PHONE_NUMBER>, stay as they are.
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
"""What is counted. A mark is its kind in capitals between angle brackets."""

_KEPT = frozenset(
    ("source", "tree", "conversation", "timestamp")
)  # of `meta`: whose it is and when, no texts


def scrub(conversation: Conversation) -> tuple[Conversation, dict[str, int]]:
    """The conversation with personal data replaced by marks, and how often each kind was.

    Turns, the intent and every text in `meta`, however deep, are scrubbed: a system prompt, a goal,
    a rejected draft. The id, the person (`user`), and in `meta` the source, the tree of replies and
    the id of the log stay, since splits and intervals need them: a log that names people by their
    e-mail addresses keeps those.
    """
    turns = conversation.turns
    meta = {key: value for key, value in conversation.meta.items() if key not in _KEPT}
    aside = [conversation.intent, meta, *(turn.meta for turn in turns if turn.meta)]
    if not _candidates("\n".join([*(turn.text for turn in turns), *_texts(aside)])):
        return conversation, {}
    counts: Counter[str] = Counter()
    scrubbed = replace(
        conversation,
        turns=tuple(
            replace(t, text=_scrub(t.text, counts), meta=_scrub(t.meta, counts)) for t in turns
        ),
        intent=_scrub(conversation.intent, counts),
        meta={**conversation.meta, **_scrub(meta, counts)},
    )
    return (scrubbed, dict(counts)) if counts else (conversation, {})


def scrub_text(text: str) -> tuple[str, dict[str, int]]:
    """The text with marks, and how often each kind was replaced. What was scrubbed comes back as it
    is."""
    counts: Counter[str] = Counter()
    return _scrub(text, counts), dict(counts)


def _scrub(value: Any, counts: Counter[str]) -> Any:
    """A text, or all texts in an object of JSON."""
    if isinstance(value, dict):
        return {key: _scrub(inner, counts) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub(inner, counts) for inner in value]
    if not isinstance(value, str):
        return value
    before = None
    while (
        value != before
    ):  # a mark can free what was not to be seen beside the thing that it replaces
        before = value
        for form in _candidates(value):
            value = form.replace(value, counts)
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


# --- the forms ------------------------------------------------------------------------------------
# -------------------------------------------------------------------------------------------  A
# pattern that begins with a literal or with a class of few characters is searched several times as
# fast as one that begins with a look-behind, so what may not stand before a match is asked after
# its first character. Repetitions are bounded, possessive, or can begin in one place of a run only:
# no text takes quadratic time.


@dataclass(frozen=True, slots=True)
class _Form:
    """One way in which a kind is written. `real` says whether a match of the pattern is one."""

    kind: str
    pattern: re.Pattern[str]
    real: Callable[[re.Match[str]], bool]

    def replace(self, text: str, counts: Counter[str]) -> str:
        def mark(match: re.Match[str]) -> str:
            if not self.real(match):
                return match[0]
            counts[self.kind] += 1
            return f"<{self.kind.upper()}>"

        return self.pattern.sub(mark, text)


def _candidates(text: str) -> list[_Form]:
    """The forms that the text could hold, by what is quickly found: for most texts there are
    none."""
    forms = [form for cue, form in _CUED if cue in text]
    return forms + _NUMBERS if _SIX_DIGITS.search(text) else forms


def _form(
    kind: str, pattern: str, real: Callable[[re.Match[str]], bool] = lambda match: True
) -> _Form:
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
    (?i: [a-z]{2} | com | org | net | edu | gov | mil | int | info | biz | name | pro | app | dev | xyz | tech
    | online | site | store | shop | cloud | club | live | email | agency | group | world | today | media )
    (?![A-Za-z0-9(])
"""


def _holds_code(match: re.Match[str]) -> bool:
    """A PEM block with something in it: documentation writes three dots there."""
    return re.search(r"[A-Za-z0-9+/]{30}", match[0]) is not None


_CUED = (
    ("PRIVATE KEY", _form("key", _PEM, _holds_code)),
    ("sk-", _form("key", r"sk- (?<![A-Za-z0-9]...) (?=[A-Za-z_-]{0,40}[0-9]) [\w-]{20,}")),
    ("k_live_", _form("key", r"[rs]k_live_ (?<![A-Za-z0-9].{8}) [A-Za-z0-9]{16,}")),
    ("AKIA", _form("key", r"AKIA (?<![A-Za-z0-9].{4}) [A-Z0-9]{16} (?![A-Za-z0-9])")),
    ("ghp_", _form("key", r"ghp_ (?<![A-Za-z0-9].{4}) [A-Za-z0-9]{30,}")),
    ("gho_", _form("key", r"gho_ (?<![A-Za-z0-9].{4}) [A-Za-z0-9]{30,}")),
    ("github_pat_", _form("key", r"github_pat_ \w{22,}")),
    ("glpat-", _form("key", r"glpat- [\w-]{20,}")),
    ("AIza", _form("key", r"AIza (?<![A-Za-z0-9].{4}) [\w-]{35}")),
    (
        "xox",
        _form(
            "key", r"xox (?<![A-Za-z0-9]...) [abeoprs]- (?=[A-Za-z-]{0,20}[0-9]) [A-Za-z0-9-]{10,}"
        ),
    ),
    ("hf_", _form("key", r"hf_ (?<![A-Za-z0-9]...) [A-Za-z0-9]{20,}")),
    ("eyJ", _form("key", _JWT)),
    ("earer ", _form("key", _BEARER)),
    ("://", _form("key", _PASSWORD)),
    ("@", _form("email", _EMAIL)),  # after the keys: a password in a URL looks like one
)
"""What stands in every text that holds the form, and the form."""


# --- numbers --------------------------------------------------------------------------------------

_SIX_DIGITS = re.compile(r"[0-9](?:[ .():-]{0,2}[0-9A-Fa-f]){5}")  # to the base of 16, for IPv6

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
    """A number of an issuer (ISO/IEC 7812) whose check digit is right: Luhn's algorithm, US patent
    2950048."""
    digits = re.sub(r"[ -]", "", match[0])
    once, twice = map(int, digits[-1::-2]), (2 * int(digit) for digit in digits[-2::-2])
    return (sum(once) + sum(sum(divmod(n, 10)) for n in twice)) % 10 == 0 and bool(
        _ISSUED.fullmatch(digits)
    )


_IPV4 = r"[0-9] (?<![\w.].) [0-9]{0,2} (?:\.[0-9]{1,3}){3} (?!\w|\.[0-9])"
_IPV6 = r"""
    [23] (?<![\w:.].) [0-9A-Fa-f]{3}  # 2000::/3 is all that was given out so far
    (?: ::?[0-9A-Fa-f]{1,4} ){1,7} (?!\w|:[\w:])
"""
_NOBODY = tuple(
    IPv4Network(
        network
    )  # this network, private, shared, loopback, link-local, multicast and reserved
    for network in (
        "0.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 "
        "169.254.0.0/16 224.0.0.0/3"
    ).split()
)
_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|versions?|release|build|firmware|section)\b[.:]?\s?|\w/|[=~<>]=\s?)\Z"
)


def _is_host(match: re.Match[str]) -> bool:
    """One host on the internet; the networks of examples (RFC 5737) count, as people write them for
    real ones.

    Five digits or fewer are one address in 12,000, and almost always a version.
    """
    short, network = len(match[0]) < len("1.2.3.456"), match[0].endswith(".0")
    if short or network or ".0.0." in match[0] or _precedes(_VERSION, match):
        return False
    try:
        address = IPv4Address(match[0])
    except AddressValueError:
        return False
    return not any(address in nobody for nobody in _NOBODY)


def _is_host6(match: re.Match[str]) -> bool:
    try:
        return bool(IPv6Address(match[0]))
    except AddressValueError:
        return False


_BEFORE = r"(?<![\w.+/-].) (?<![0-9],.)"
_AFTER = r"(?![\w-]|\.[0-9]|[ ]?=)"
_INTERNATIONAL = (
    rf"\+ {_BEFORE} (?![0-9]{{4}}-[0-9]{{2}}-) [1-9] (?: [ .()-]{{0,2}} [0-9] ){{9,14}} {_AFTER}"
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


def _follows_phone(match: re.Match[str]) -> bool:
    """At least seven digits right after "phone", "call me at" and the like; no date, no list of
    single digits."""
    groups = [len(group) for group in re.findall(r"[0-9]+", match[0])]
    date = len(groups) == 3 and max(groups) == 4 and sum(groups) <= 8
    return sum(groups) >= 7 and not date and 1 not in groups[1:] and _precedes(_PHONE, match)


def _precedes(words: re.Pattern[str], match: re.Match[str]) -> bool:
    return words.search(match.string, max(0, match.start() - 40), match.start()) is not None


_NUMBERS = [
    _form("card", _CARD, _is_card),  # before the phones: they would take a part of it
    _form("ip", _IPV4, _is_host),
    _form("ip", _IPV6, _is_host6),
    _form("phone", _INTERNATIONAL),
    _form("phone", _DASHED),
    _form("phone", _AREA, _is_national),
    _form("phone", _DIGITS, _follows_phone),
]
"""Forms that hold six digits or more."""
