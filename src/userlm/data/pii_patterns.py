"""What personal data looks like, for `pii`: patterns, and checks whether a match is such data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address

# The look-behind comes after the first character of a pattern: the search is several times as fast
# if a pattern begins with a literal or a small character class than with a look-behind. Repetitions
# are bounded, possessive, or can begin at only one position of a run, so that no text takes
# quadratic time.

Check = Callable[[re.Match[str]], bool]


@dataclass(frozen=True, slots=True)
class Form:
    """A pattern for one kind of data, which is its group `value` if it has one, else the match.

    Attributes:
        real: a check whether a match is such data; `None` if every match is.
    """

    kind: str
    pattern: re.Pattern[str]
    real: Check | None

    def matches(self, shown: str, at: int) -> re.Match[str] | None:
        """Return what the text has at a place, if it is such data."""
        match = self.pattern.match(shown, at)
        return match if match and (not self.real or self.real(match)) else None

    def span(self, match: re.Match[str]) -> tuple[int, int]:
        """Return where the data of a match begins and ends."""
        return match.span("value" if "value" in self.pattern.groupindex else 0)


def _form(kind: str, pattern: str, real: Check | None = None) -> Form:
    return Form(kind, re.compile(pattern, re.VERBOSE | re.ASCII), real)


# --- keys and e-mail addresses --------------------------------------------------------------------

_PEM = r"""
    -----BEGIN[ ](?:[A-Z0-9]{1,10}[ ]){0,3}PRIVATE[ ]KEY(?:[ ]BLOCK)?-----
    (?: (?: [^-]++ | -(?!----) )*+ -----END[ ][A-Z0-9 ]{1,40}-----
    | (?: (?:\s|\\[nr])*+ (?: [A-Z][A-Za-z-]{1,20}:[ ][^\n\\]{1,80}
        | [A-Za-z0-9+/=]{30,}+ ) )*+  # without its end: headers and lines of code
      (?: (?:\s|\\[nr])++ [A-Za-z0-9+/=]++ (?=\W*\Z) )? )  # and the line that was cut
"""
_JWT = r"eyJ (?<![\w-]...) [\w-]{8,} \.eyJ[\w-]{8,} (?:\.[\w-]*)?"
_SPACES = " | ".join(rf"(?<=bearer[ ]{{{count}}})" for count in range(1, 5))
_BEARER = rf"""
    (?i: {_SPACES} )
    (?=[A-Za-z._~+/=-]{{0,40}}[0-9]) [A-Za-z0-9._~+/=-]{{16,}}
"""
_SECRET = r"[A-Za-z0-9+/] (?<![A-Za-z0-9+/].) [A-Za-z0-9+/]{39} (?![A-Za-z0-9+/=])"
_SECRET_NAME = re.compile(r"(?i)secret_?access_?key\W{1,6}\Z")  # of AWS
# To the last @: a password may hold one, but not the query behind a port.
_PASSWORD = r"""
    (?<=://) [^\s/:@<>{}\[\]"']{0,64} : (?![0-9]{1,5}[?]) [^\s/<>{}\[\]"']{1,128} (?=@)
"""
# The letters of scripts that put spaces between words; Chinese stands next to an address.
_LETTERS = "A-Za-zÀ-ÖØ-öø-ʯ\u0300-\u036fͰ-ԯḀ-ỿ"
# Any word may be the ending of an address by now, but for those that code, units of systemd, images
# and the own network have behind the last dot.
_NO_ENDING = r"""
    (?: shape | size | dtype | ndim | device | data | grad | weight | bias | values? | array
    | matrix | real | imag | index | columns | service | socket | timer | target | mount
    | png | jpe?g | gif | svg | txt | json | local | localdomain | internal | lan )
    (?![A-Za-z0-9])
"""
_ENDING = rf"""
    (?i: xn--[a-z0-9-]{{2,59}} | [Ͱ-ԯ]{{2,24}} (?![Ͱ-ԯ]) | com | org | net | edu | gov | mil
    | (?: info | biz | online | shop | store | site | app | dev | cloud | tech ) (?!\()
    | (?: [a-z]{{2}} (?<!\.(?-i:mT))
          (?! (?<=\.to|\.mm|\.mv|\.eq|\.ge|\.gt|\.le|\.lt|\.ne) \( )  # methods
        | (?!{_NO_ENDING}) (?-i: [a-z]{{3,24}} | [A-Z]{{3,24}} ) (?! [(\[] | _[a-z0-9] )
      ) (?-i: (?! \.(?: [a-z_] | T\b ) ) ) )  # x@w.to.T, but not the next sentence
    (?![A-Za-z0-9])
"""
_EMAIL = rf"""
    (?<![{_LETTERS}0-9._%+-])
    (?! (?<=\\) [nrt]@ )  # a decorator on the next line of a JSON string
    (?! git@ (?: (?:github|gitlab|bitbucket)\. | [A-Za-z0-9.-]{{1,250}}[:/][\w~/] ) | this@ )
    (?: (?:[{_LETTERS}0-9._%+-]{{1,30}}[._-])? [DdLlMmNnOo]' )?  # john.o'brien@, but not b'john@
    [{_LETTERS}0-9._%+-]{{1,64}} @
    (?! self\. | v?[0-9]{{1,5}}\.[0-9] | [1-4]x\. )  # x@self.w, of a version, images at 2x
    (?:[{_LETTERS}0-9-]{{1,63}}\.){{1,8}} {_ENDING}
"""


def _is_secret(match: re.Match[str]) -> bool:
    return _follows(_SECRET_NAME, match)


def _holds_code(match: re.Match[str]) -> bool:
    """Return whether a PEM block has content; documentation writes three dots instead."""
    return re.search(r"[A-Za-z0-9+/]{30}", match[0]) is not None


# Between the name of a secret and its value: a colon or an equals sign, or words.
_IS = r"""
    ["'`*]{0,3} (?: (?:[ ]for[ ][\w'.@-]{1,40})? (?:[ ]\([^()\n]{1,40}\))?
    \s{0,3} (?: [:：] | :?=>? ) (?!=) \s{0,3}
    | (?: [ ](?:for|to|of) (?:[ ][\w'.-]{1,20}){1,4}? )? [ ](?:is|was|ist|lautet|es|est)[ :]{1,3} )
    ["'`]{0,2}
"""
_NAMED_PASSWORD = rf"""
    (?: (?i: passw(?:or)?d | passwort | kennwort | passcode | passphrase | pwd | mot[ ]de[ ]passe
        | (?<![a-z])(?:pw|pass) (?=["']?[ ]?[:=]) )
      | [Cc]ontraseña | 密码 | [Пп]ароль | [Ss]enha | [Hh]as[łl]o | [Ww]achtwoord
      | パスワード ) [0-9]?
    (?: {_IS} | (?<=--password)[ ] | [ ]-[ ] )
    (?P<value> (?<=["']) [^\s"'`\\]{{4,128}} (?=["'])
      | (?: [^\s"'`<>,;&\\] | \\(?![nrtu\\"']) | &(?![\w-]{{1,30}}=) ){{3,127}}
        [^\s"'`<>,;&.:?)\]}}\\] )
"""
_PASSWORD_CUES = (
    *("pass", "kennwort", "pwd", "pw", "mot de passe"),
    *(
        "contraseña",
        "密码",
        "пароль",
        "senha",
        "haslo",
        "hasło",
        "wachtwoord",
        "パスワード",
    ),
)
_NAMED_TOKEN = rf"""
    (?i: (?:api|access|account|auth|private|secret)[ _-]?key | secret
      | (?<!publickey)(?<!page)(?<!page_)token ) {_IS}
    (?P<value> (?<=["'`]) [^\s"'`<>\\]{{12,}}+ | [A-Za-z0-9._~+/=-]{{12,}}+ )
"""
_AUTHORIZATION = r"""
    (?i:authorization) ["'`]? [ ]?[:=][ ]? ["'`]? (?i:basic|token)[ ]
    (?P<value> (?=[a-z]{0,40}[A-Z0-9]) [A-Za-z0-9+/]{8,}={0,2} )
"""
_CODE = re.compile(
    r"""[\w.]*[(\[] | [$%]?[{(<]  # a call, and what is filled in
    | \$[A-Z_] | [a-z_]\w*(?:\.[A-Za-z_]\w*)+\Z | [a-z]+_passw(?:or)?d[0-9]*\Z  # variables
    | ~?/ | [A-Z]:\\ | 0x  # paths, addresses
    | [a-z]+\| | x: | [0-9]{1,3}(?:-[0-9]{1,3})?\Z
    | (?:base64|md5|sha[0-9]+|utf-?8|bcrypt|argon2)(?:-[a-z]+)?\Z
    | [A-Z0-9]+(?:_[A-Z0-9]+)+\Z | (?i:.{0,20}(?:your|xxx|\.\.\.))""",  # placeholders
    re.VERBOSE,
)


_PASS = re.compile(r"(?i)pass[^a-z]")


def _is_password(match: re.Match[str]) -> bool:
    """Return whether it has a digit, or a sign between letters, and is no code.

    So a password that is one word stays: "password: string" is written more often.
    """
    value = match["value"]
    is_odd = re.search(r"[0-9]|\w[!@#$%^&*]\w", value)
    # `pass: 1234, fail: 2` counts tests.
    is_count = _PASS.match(match[0]) and not re.search("[A-Za-z]", value)
    return is_odd is not None and not is_count and not _CODE.match(value)


def _is_token(match: re.Match[str]) -> bool:
    """Return whether it has a letter and two digits, and is no code."""
    value = match["value"]
    is_call = match.string[match.end() : match.end() + 1] in tuple("([{<")
    is_mixed = re.search("[A-Za-z]", value) and len(re.findall("[0-9]", value)) > 1
    return bool(is_mixed) and not is_call and not _CODE.match(value)


_AFTER_PASSWORD = _form("key", _NAMED_PASSWORD, _is_password)
_AFTER_TOKEN = _form("key", _NAMED_TOKEN, _is_token)
# Databricks, DigitalOcean, Docker, Figma, Grafana, Groq, Linear, Notion, NVIDIA, Perplexity, PyPI,
# Replicate, Shopify, Stripe's webhooks, Supabase, Tavily, xAI
_PREFIXES = """
    dapi dop_v1_ dckr_pat_ figd_ glsa_ gsk_ lin_api_ ntn_ nvapi- pplx- pypi- r8_ shpat_ shpca_
    shppa_ shpss_ whsec_ sbp_ tvly- xai-
""".split()
_KEYS = {
    "sk-": r"""sk- (?<![A-Za-z0-9]...) (?:
        (?=[A-Za-z_-]{0,40}[0-9]) [\w-]{20,}
        | (?:[a-z]{2,8}-)? (?!(.)\1{3}) [A-Za-z0-9]{32,} [\w-]* )""",  # sk-xxxx… is no key
    "k_live_": r"[rs]k_live_ (?<![A-Za-z0-9].{8}) [A-Za-z0-9]{16,}",
    "k_test_": r"[rs]k_test_ (?<![A-Za-z0-9].{8}) [A-Za-z0-9]{16,}",
    "akia": r"AKIA (?<![A-Za-z0-9].{4}) [A-Z0-9]{16} (?![A-Za-z0-9])",
    "asia": r"ASIA (?<![A-Za-z0-9].{4}) [A-Z0-9]{16} (?![A-Za-z0-9])",
    **{
        f"gh{kind}_": rf"gh{kind}_ (?<![A-Za-z0-9].{{4}}) [A-Za-z0-9]{{30,}}"
        for kind in "pousr"
    },
    "github_pat_": r"github_pat_ \w{22,}",
    "glpat-": r"glpat- [\w-]{20,}",
    "aiza": r"AIza (?<![A-Za-z0-9].{4}) [\w-]{35}",
    "xox": r"xox (?<![A-Za-z0-9]...) [a-eoprs]- (?=[A-Za-z-]{0,20}[0-9]) [A-Za-z0-9-]{10,}",
    "xapp-": r"xapp- (?<![A-Za-z0-9].{5}) (?=[A-Za-z-]{0,20}[0-9]) [A-Za-z0-9-]{10,}",
    "hooks.slack.com": r"hooks\.slack\.com/services/ [A-Z0-9]{8,}/[A-Z0-9]{8,}/[A-Za-z0-9]{16,}",
    "/api/webhooks/": r"/api/webhooks/ [0-9]{15,20} / [\w-]{40,}",  # Discord
    "sig=": r"[?&] sig= [A-Za-z0-9%+/]{40,}=?",  # Azure
    "npm_": r"npm_ (?<![A-Za-z0-9].{4}) [A-Za-z0-9]{30,}",
    "hf_": r"hf_ (?<![A-Za-z0-9]...) [A-Za-z0-9]{20,}",
    "sg.": r"SG\. (?<![A-Za-z0-9]...) [\w-]{16,}\.[\w-]{16,}",  # SendGrid
    "hvs.": r"hvs\. (?<![A-Za-z0-9].{4}) [\w-]{24,}",  # Vault
    "ya29.": r"ya29\. [\w-]{20,}",  # OAuth of Google
    "gocspx-": r"GOCSPX- [\w-]{20,}",
    ":aa": r"[0-9] (?<!\w.) [0-9]{7,9} :AA[\w-]{33}",  # Telegram
    **{
        prefix: rf"{prefix} (?<![A-Za-z0-9].{{{len(prefix)}}})"
        r" (?=[A-Za-z_-]{0,40}[0-9]) [\w-]{20,}"
        for prefix in _PREFIXES
    },
    "eyj": _JWT,
    "earer ": _BEARER,
    "://": _PASSWORD,
    "authorization": _AUTHORIZATION,
}
CUED = [
    ("private key", _form("key", _PEM, _holds_code)),
    *((cue, _form("key", pattern)) for cue, pattern in _KEYS.items()),
    *((cue, _form("key", _SECRET, _is_secret)) for cue in ("access_key", "accesskey")),
    *((cue, _AFTER_PASSWORD) for cue in _PASSWORD_CUES),
    *((cue, _AFTER_TOKEN) for cue in ("key", "secret", "token")),
    ("@", _form("email", _EMAIL)),  # after the keys: a password in a URL looks like one
]
"""A text in lower case that every match contains, and the pattern."""


# --- numbers --------------------------------------------------------------------------------------

# To the base of 16, for IPv6; of which the shortest have fewer, as 2a02::1.
SIX_DIGITS = re.compile(
    r"[0-9](?:[ .():-]{0,4}[0-9A-Fa-f]){5}|[23][0-9A-Fa-f]{3}::[0-9A-Fa-f]"
)

# A number in groups may touch a word, one without may follow an underscore. Other digits beside it
# would make it a longer number.
_CARD = r"""
    [0-9] (?<![0-9.+-].)
    (?: [0-9]{3} ([ .-]|[ ]{2}) [0-9]{4} \1 [0-9]{4} \1 (?:[0-9]{4}(?:\1[0-9]{3})?|[0-9]{2})
      | [0-9]{3} ([ .-]|[ ]{2}) [0-9]{6} \2 [0-9]{4,5} ) (?! [0-9-] | \.[0-9] )
    | [0-9] (?: (?<![\w.+-].) | (?<=[A-Za-z]_.) ) [0-9]{12,18} (?! [\w-] | \.[0-9] )
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
    digits = re.sub(r"[ .-]", "", match[0])
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
_ADDRESS = re.compile(
    r"(?i)(?:\b(?:ip|inet|host|localhost|address|ping|ssh)|\.(?:com|org))\W{1,3}\Z"
)
_PORT = re.compile(":[0-9]{2,5}(?![0-9])")
_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|versions?|release|build|firmware|section)\b[.:]?\s?|\w/|[=~<>]=\s?)\Z"
)


def _is_host(match: re.Match[str]) -> bool:
    """Return whether it is one host on the internet.

    The networks for documentation (RFC 5737) count, since logs use them like real addresses. With
    five digits or fewer (one address in 12,000) it is almost always a version number. So is one
    after a name and a slash or with two zeros within, if no word before it and no port say that it
    is an address: `Chrome/98.0.47.102`, but `db-1/203.0.113.77:5432`.
    """
    text = match[0]
    if len(text) < len("1.2.3.456") or text.endswith(".0"):
        return False
    has_port = _PORT.match(match.string, match.end()) is not None
    is_named = has_port or _follows(_ADDRESS, match)
    if not is_named and (".0.0." in text or _follows(_VERSION, match)):
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


# A slash or plus may follow a mark, as in a list, and an underscore emphasize it in Markdown.
_BEFORE_PLUS = r"(?<![\w.+-].) (?<![0-9],.)"
_BEFORE = r"""
    (?: (?<![\w.+/-].) | (?<=>[/+].) | (?<=_.) (?<![^\s_*(]_.) ) (?<![0-9],.)
"""
# Behind an extension. A hyphen may end what is said.
_AFTER = r"""
    (?: [Xx][0-9]{1,6} )?+ (?! [A-Za-z0-9] | _[A-Za-z0-9] | -(?!\s) | \.[0-9] | [ ]?= )
"""
_INTERNATIONAL = (
    rf"\+ {_BEFORE_PLUS} (?![0-9]{{4}}-[0-9]{{2}}-) [1-9] "
    rf"(?: (?: \)[ ]{{2}} | [ .()/-]{{0,2}} ) [0-9] ){{9,14}} {_AFTER}"
)
_DASHED = rf"""
    [0-9] {_BEFORE}
    (?: [0-9]{{2}}([.-])[0-9]{{3}}\1[0-9]{{4}}  # 415-555-0132
    | (?<=1)([.-])[0-9]{{3}}\2[0-9]{{3}}\2[0-9]{{4}}  # 1-415-555-0132
    | (?<=1) -?\([0-9]{{3}}\)[ .-]?[0-9]{{3}}[.-][0-9]{{4}}  # 1(415)555-0132
    | (?<=1)[3-9][0-9]-[0-9]{{4}}-[0-9]{{4}} )  # 138-1234-5678
    {_AFTER}
"""
# A group beside it would make it a list of numbers.
_ALONE = r"(?<![0-9][ /].)"
_END = rf"{_AFTER} (?! [ /][0-9] | :[0-9]{{1,2}}(?! [0-9] | [ ./(-]{{1,3}}[0-9]) )"  # a time
_SPACED = rf"""
    \+ {_BEFORE} [1-9][0-9]{{0,2}} (?: [ .-] | [ ]?(?=\() )  # +1 (415) 555 - 0132
    (?: \([0-9]{{2,4}}\) | [0-9]{{2,4}} ) (?: [ ]?-[ ]? | [ .] )?
    [0-9]{{3,4}} [ ]-[ ] [0-9]{{4}} {_END}
    | \+ {_BEFORE} [1-9][0-9]{{0,2}} [ ] (?:\(0\)[ ]?)? [1-9][0-9]{{1,4}} [ ]-[ ]
      [0-9]{{5,8}} {_END}  # +49 (0) 30 - 1234567
"""
_GAP = r"(?: [ ]?[/-][ ]? | [ .] )"
_NATIONAL = rf"""
    0 {_BEFORE} {_ALONE} [1-9][0-9]{{0,4}} (?: {_GAP}[0-9]{{2,8}} ){{1,4}} {_END}  # 020 7946 0958
    | [(] {_BEFORE} (?: 0[1-9][0-9]{{1,3}} | [0-9]{{2,3}} ) \)  # (415) 555-0132
      (?: [ ]-[ ] | [ .-]? )
      (?: [0-9]{{3,5}}[ .-]?[0-9]{{3,4}} | [0-9]{{3}}[ ]-[ ][0-9]{{4}}
        | [0-9]{{3}}-[0-9]{{2}}-[0-9]{{2}} ) {_AFTER}
    | 8 {_BEFORE} {_ALONE} [ -] \(?[0-9]{{3}}\)? [ -]?[0-9]{{3}}-[0-9]{{2}}-[0-9]{{2}} {_END}
    | [1-9] {_BEFORE} {_ALONE} [0-9][ ]9[0-9]{{4}}-[0-9]{{4}} {_END}  # 11 98765-4321
"""
_ABROAD = rf"""
    (?: 0 {_BEFORE} {_ALONE} | [(] {_BEFORE} 0 ) 0[ ]?
    [1-9] (?: [0-9]{{0,2}} \)? | [0-9]{{3,6}}(?=[ ]) )  # (0044) 20 ..., 0049171 1234567
    (?: {_GAP} (?: \(0\)[ ]? | (?!0) )
      [0-9]{{1,12}} (?: {_GAP}[0-9]{{2,8}} ){{0,4}}  # 0044 20 7946 0958
    | [0-9]{{9,11}} ) {_END}  # 00447911123456
"""
_DIGITS = r"""
    [+(0-9] (?<![\w.+-].) (?: (?<=\()\+?[0-9]{1,5}\) | (?<=\+)[0-9] | (?<=[0-9]) )
    (?: [ .()/-]{0,2} [0-9] ){5,14} (?: [Xx][0-9]{1,6} )?+ (?!\w|\.[0-9])
"""
_LINK = r"""(?:[\s_:.,*`="'#()-]*
    (?:number|num|no|nr|is|was|will|be|should|now|at|me|us|him|her|them|on|or|to|from|the|my|your
    |our|of|in|if|a|s|via|file|account|new|old|back|used|work|home|office|cell|le|el))*"""
_OF = r"(?: \s(?:for|of|to) (?:\s[\w'&.-]{1,20}){1,5}? \s(?:is|was|are) )?"  # "for La Tasca is"
_THEM = r"(?:me|us|him|her|them)\b"
_PHONE = re.compile(
    rf"""<PHONE> (?: [\s,;/]{{1,3}} (?:(?:home|work|office)[\s:]{{1,2}})?
        | [ ]or[ ](?:at[ ])? | [ ](?:to|and)[ ] ) \Z  # a list of them
    | \b wa\.me/ \Z
    | (?: (?<![^\W_]) (?:(?:tele|cell|mobile)?[ ]?phone|call|tel|whatsapp|mobile|cell(?!s)|fax
        |(?:telefon|handy|mobil|ruf)nummer|telefon[eo]?|celular|cellulare
        |(?:contact|reach)\s(?=number|no\b|at\b|on\b|{_THEM})|(?:text|ring)\s(?={_THEM})
        |contact(?=:)|(?:mob|ph|cel)(?=\.|:|\s?no\b)|portable(?=\sest\b)
        |(?:mon|mi|meu|meine|mio)\s(?:num[eé]ro|n[uú]mero|nummer)
        |(?:ll[aá]m|chiam|appel)[\w-]{{1,12}}(?=\s(?:al|au)\b)
        ) s? | tel[eé]fono | m[oó]vil | t[eé]l[eé]phone | тел(?:ефон)? )
        (?:\s(?:è|é|(?:es|est|ist|lautet|al|au)\b))?
    {_LINK} {_OF} [\s_:.,*`="'#：)-]{{1,5}} \(? \Z
    | (?: 电话 | 電話 | 手机 | 手機 | 携帯 | 전화 | 휴대폰 )  # scripts without spaces
      (?: 号码 | 號碼 | 番号 | 번호 | 号 )? [\s_:.,*`="'#：是为為は는은-]{{0,5}} \(? \Z""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_NUMBER = re.compile(
    rf"""(?: \b (?:(?P<any>the|its)|my|your|his|her|their|our|\w+[ ]?'s|contact|phone|home|work
        |office|direct|best|new|old) \s n(?:umber|o) (?:\s(?:there|to\scall))?
        {_OF} (?:\sfor\s{_THEM})? (?:\s(?:is|was|will\sbe|(?:has\s)?changed\sto|to))?
      | \bnumber\sto\s(?:call|text|ring) | \b(?:calling|texting|ringing)(?:\s(?:you|me))?\sfrom
      | \b(?:sms\sto|office|unter(?:\sder\snummer)?|au|mich\san|mob|ph)
      | \b (?:reach|reached|reachable|call|hold\sof) (?:\s[\w'&.-]{{1,20}}){{0,4}}? \s(?:at|on) )
    [\s:,-]{{1,8}} \(? \Z""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
"""What is before a number of another kind too, such as that of an account; a phone number then
begins with 0, or is American."""
_IS_A_PHONE = re.compile(
    r"\s(?:is|was)\s(?:my|his|her|our|their)\s(?:(?:new|old|work|home|direct)\s)?"
    r"(?:(?:tele)?phone|mobile|cell|contact|whatsapp|number)\b(?!['’])",
    re.IGNORECASE,
)
_THING = r"""
    (?: order | ticket | invoice | booking | reservation | reference | ref | tracking
    | (?:case|part|article|claim) (?= [ ]?(?:number|no\b|nr\b|id\b|[#]) )
    | parcel | shipment | policy | serial | imei | iban | isbn | item | product | sku
    | build | error | (?<!area[ ])(?<!country[ ])code | rma | transaction | receipt
    | bestellung | pedido | commande | ordine
    | (?:bestell|auftrags|kunden|rechnungs|vertrags)nummer
    | (?:customer|client|account|member|membership|store|confirmation|contract|tax)[ ]
      (?:number|no|nr|id) )
"""
_OTHER = re.compile(
    rf"""(?<![^\W_]) (?! contract ) {_THING}
    [ \t#:=_"'-]{{1,3}}
    (?: (?:number|no\.?|nr\.?|num|id|code|is|was) [ \t#:=_"'-]{{1,3}} ){{0,3}} \Z""",
    re.IGNORECASE | re.VERBOSE,
)
"""What is before the number of something else, which may look like a phone number. A "contract
number" is often the misspelled "contact number"."""
# What a sentence asks for. "By phone" and "restart your phone" ask for no number, "which number is
# on the box" for another one.
_PHONE_NUMBER = r"""
    \b (?:(?:tele|cell|mobile\s)?phone|mobile|cell|contact|call-?\s?back|whatsapp|tel\.?|fax)
    \s (?: number | no\b | nr\b | [#] )
"""
_YOUR_PHONE = r"""
    (?: \A\W* | [,:;]\s | \b (?: what(?:['’]s|\sis) | have | me | us | share | enter | type
        | provide | send | confirm | need | leave | and | or ) \s )
    (?:(?:your|an?)\s)? (?:(?:tele)?phone|mobile|cell|whatsapp)
    (?= \W*\Z | \s?[,.?:;] | \s(?:and|or|so|please|to)\b )
"""
_YOUR_NUMBER = r"""
    \b (?: (?:your|their|his|her)\snumber \b (?! \s(?:of|in|on|one)\b )
    | number\s (?:\w+\s){0,4} (?:reach|call|text|ring|contact) ) \b
"""
_WHICH_NUMBER = r"""
    \b (?:on|at|from|to) \s (?:what|which) \s number \b
    | \b (?:what|which) \s number \b (?! \s(?:of|is\son)\b ) [^.!?]{0,40}? \b
      (?:call|calling|text|ring|reach|contact|send|sent|code|booking|account|best|good|right|use) \b
"""
_TO_CALL_YOU = r"""
    \b (?: how | where | when | way\sto | (?<!what\s)(?:can|may|could|shall)
        | (?:like|want)\s\w+\sto )
    \s [^.!?]{0,40}? (?:reach|call|ring|text|contact|phone|touch\swith)\syou \b
    (?! \s(?: by(?!\sphone) | mrs? | a\s(?:taxi|cab) )\b )
"""
_ELSEWHERE = r"""
    (?<![^\W_]) (?: telefon[eo]? | telefono | cellulare | celular | tel[eé]fono | tél[eé]phone
        | m[oó]vil | телефон | (?:telefon|handy|mobil|ruf)(?:nummer|nr\.?) | telefoonnummer
        | telefonisch | (?:sie|dich)\s[^.!?]{0,30}?(?:erreichen|anrufen)
        | vous\s(?:joindre|rappeler)
        | (?:quel|qu[eé]|su|che|suo|ihre|welcher)\s(?:num[eé]ro|n[uú]mero|nummer)(?!\s(?:de|di)\b)
        | tel(?=[.:]) ) s? (?![^\W_])
    | 电话 | 電話 | 手机 | 手機 | 携帯 | 전화
"""
_ASKED = re.compile(
    "|".join(
        (
            *(_PHONE_NUMBER, _YOUR_PHONE, _YOUR_NUMBER, _WHICH_NUMBER, _TO_CALL_YOU),
            _ELSEWHERE,
        )
    ),
    re.IGNORECASE | re.VERBOSE,
)
_A_PHONE = re.compile(
    r"\b(?:(?:tele|cell\s?|mobile\s)?phone|mobile|cell|whatsapp)s?\b", re.IGNORECASE
)
_NO_NUMBER = re.compile(
    r"""\b (?: (?:by|over|via|per|on) (?:\s(?:the|your))?
        | (?:order|bought|buy|restart|reboot|reset|charg|updat|unlock|deliver|return)\w*
          (?:\s(?:the|your|a|this|new)){0,2} ) \s (?:cell|mobile)?\s?phone\b
    | \b the \s (?:cell|mobile)?\s?phone\b (?! \s(?: on\sfile | or | and | for | you | we )\b )
    | \b (?:is|does|about|of) \s your \s phone\b (?! \s?[?:] )
    | phone \s (?: case | model | support | line | screen | app | store | plan | charger | call
        | do\b | was\b | online | worth | numbers )
    | mobile \s (?: data | app | plan )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Where a phone is a thing and no number."""


def asks_for_phone(asking: Sequence[str]) -> bool:
    """Return whether sentences that ask for something ask for a phone number: one does by its
    words, or names a phone while nothing else is named that has a number."""
    if any(map(_ASKED.search, asking)):
        return True
    asked = " ".join(asking)
    is_named = _A_PHONE.search(_NO_NUMBER.sub(" ", asked)) is not None
    return is_named and not NAMED.search(asked)


MENTIONED = re.compile(
    r"\b(?:number|your\snumbers|nummer|num[eé]ro|n[uú]mero|mobile|cell|(?:tele)?phone|sms|contact"
    r"|(?:shall|should|can|may|could)\s[^.!?]{0,20}?(?:call|text|ring)|numbers\s(?:of|for)"
    r"|(?:call|text|ring|reach)\s(?:you|me|us|back|them|him|her)|(?:a|by)\s(?:call|text))\b",
    re.IGNORECASE,
)
"""What may ask for one, unless something else is `NAMED` that has a number."""
NAMED = re.compile(
    rf"""\b (?: {_THING} (?:s|ed)? | id | ean | photo | picture | log | statement | help
    | how\s(?:much|many) | what\s\w+\sI\scall | number\s(?:is|was|of|on|comes|does|did) ) \b""",
    re.IGNORECASE | re.VERBOSE,
)
SENTENCE_END = re.compile(r"(?<=[.!?。？！])\s+(?=[^\W\da-z]|\()")
ASKING = re.compile(
    r"""[?？:：] | \b(?:please|tell|give|share|enter|type|provide|send|need|leave|confirm|bitte
        |por[ ]favor|veuillez)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""What asks for anything."""
BEFORE_NUMBER = re.compile(r"(?<![\w+(./:-])(?<!\d[ .)/-])(?<!\d\)[ ])(?=[+(]*\d)")
"""Where a number begins in a text, which may have several."""
_GERMAN_MOBILE = re.compile("01[567]")
_AMERICAN = re.compile("(?:1 ?)?[2-9][0-9]{2} ?[2-9][0-9]{2} ?[0-9]{4}")
# Five pairs with the same separator are a French phone number, not a date.
_DATE = re.compile(
    r"[0-3]?[0-9]([./ -])[0-3]?[0-9]\1(?:19|20)?[0-9]{2}(?![0-9]|\1)"
    r"|(?:19|20)[0-9]{2}([./-])[01]?[0-9]\2[0-3]?[0-9](?![0-9]|\2)"
    r"|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?![0-9])"
    # From half past nine to five, 0930-1700.
    r"|(?:[01][0-9]|2[0-3])(?:00|15|30|45)-(?:[01][0-9]|2[0-3])(?:00|15|30|45)\Z"
)
_IN_ORDER = "01234567890123456789"


def _groups(match: re.Match[str]) -> list[str]:
    """Return the groups of digits, without an extension."""
    return re.findall(r"[0-9]+", re.split("[Xx]", match[0])[0])


def is_other(match: re.Match[str]) -> bool:
    """Return whether a word before it says that it is the number of an order or the like."""
    return _follows(_OTHER, match)


def _is_dashed(match: re.Match[str]) -> bool:
    return not is_other(match)


def _is_national(match: re.Match[str]) -> bool:
    """Return whether it has as many digits as a phone number, and is no date and no list."""
    groups = _groups(match)
    digits = "".join(groups)
    is_indonesian = re.match("08[1-9][0-9]", groups[0])
    is_long = is_indonesian or _GERMAN_MOBILE.match(digits)
    longest = 12 if is_long else 11
    is_even = len(set(map(len, groups))) == 1
    is_drawn = groups == sorted(groups) and groups[-1] < "60"  # as in a lottery
    is_padded = all(group.startswith("0") for group in groups)
    is_list = (is_even and (is_drawn or is_padded)) or match[0].count("/") > 1
    is_date = _DATE.match(match[0]) is not None
    if is_date or is_list or _follows(_VERSION, match) or is_other(match):
        return False
    return 10 <= len(digits) <= longest


def _is_abroad(match: re.Match[str]) -> bool:
    digits = "".join(_groups(match))
    return 11 <= len(digits) <= 15 and digits[2:] not in _IN_ORDER


def _is_announced(match: re.Match[str]) -> bool:
    """Return whether it is seven digits or more after "phone", "call me at" and the like.

    A date, a list of single digits or a decimal number does not count. After "their number is" and
    the like it must have the form of a national number, with 0 or of the US.
    """
    groups = [len(group) for group in _groups(match)]
    digits = "".join(_groups(match))
    is_date = _DATE.match(match[0]) is not None
    is_list = 1 in groups[1:]
    is_decimal = re.fullmatch(r"[0-9]\.[0-9]+", match[0]) is not None
    if len(digits) < 7 or is_date or is_list or is_decimal:
        return False
    if _follows(_PHONE, match) or _IS_A_PHONE.match(match.string, match.end()):
        return True
    longest = 12 if _GERMAN_MOBILE.match(digits) else 11
    if not 10 <= len(digits) <= longest or digits in _IN_ORDER:
        return False
    number = _before(_NUMBER, match)
    is_american = _AMERICAN.fullmatch(match[0]) is not None
    if number and number["any"] and len(groups) == 1:
        is_american = False  # "the number 2147483647"
    is_national = is_american or re.match("0[1-9]", digits) is not None
    return is_national and number is not None


def _follows(words: re.Pattern[str], match: re.Match[str]) -> bool:
    return _before(words, match) is not None


def _before(words: re.Pattern[str], match: re.Match[str]) -> re.Match[str] | None:
    start = match.start()
    return words.search(match.string, max(0, start - 60), start)


NUMBERS = [
    # Before the phone numbers, which would match a part of it.
    _form("card", _CARD, _is_card),
    _form("ip", _IPV4, _is_host),
    _form("ip", _IPV6, _is_host6),
    _form("phone", _INTERNATIONAL),
    _form("phone", _SPACED),
    _form("phone", _DASHED, _is_dashed),
    _form("phone", _NATIONAL, _is_national),
    _form("phone", _ABROAD, _is_abroad),
    _form("phone", _DIGITS, _is_announced),
]
"""Patterns with six digits or more."""
