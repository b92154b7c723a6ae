"""Intents without a model: the default writer of `userlm intents`.

A cue word in the user's request determines the action, key phrases the subject. Such an intent
repeats more of the user's words than one written by a person or a language model.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain, islice

from userlm.data.intents import check
from userlm.data.language import LANGUAGES, language
from userlm.text import INTENT_PREFIX, content_words, words
from userlm.types import Conversation

READ = (
    5_000  # characters of a turn to read; requests come first, pasted text after them
)
TURNS = 200  # to read: each phrase is compared with each of them

_WRITE = r"\b(?:write|compose|draft|create|generate|make|tell|give)\b(?:\W+\w+){0,8}?\W"
_TEXTS = (
    "story|poem|letter|song|script|speech|post|report|joke|recipe|review|description"
)
_CODE = (
    r"\A.*?\b(python|javascript|typescript|java|php|sql|html|css|c\+\+|c#|matlab|lua|vba)(?!\w)|"
    r"```|^ *(?:def|import) |\b(?:cod(?:e|ing)|functions?(?! of)|regex|algorithm|api|json|git)\b"
)
_CUES = (
    (
        # Each round takes one whole word, so that a text is split in one way only.
        r"\A\W*(?:(?:hi|hello|hey|yo|there|how|are|you|good|\w+ing)\b\W*)+\Z",
        "have a casual chat",
    ),
    (rf"\btranslat.*to ({'|'.join(LANGUAGES)})\b", "have a text translated into {1}"),
    (r"\btranslat", "have a text translated"),
    (rf"{_WRITE}(essay|article|e-?mail|outline)s?\b", "have an {1} written about {0}"),
    (rf"{_WRITE}({_TEXTS})s?\b", "have a {1} written about {0}"),
    (
        rf"\A(?=.*\b(?:fix|debug|error|bug)).*?(?:{_CODE})",
        "fix a problem in {1} code for {0}",
    ),
    (_CODE, "get help with {1} code for {0}"),
    (r"\b(?:summar|tl;?dr|key points)", "have a text about {0} summarised"),
    (
        r"\b(?:(?:re|para)(?:write|phrase|word)|proofread|grammar)",
        "have a text about {0} improved",
    ),
    (
        r"\b(?:act as|pretend|role-?play)\b",
        "have the assistant play a part that involves {0}",
    ),
    (
        r"^\W*(?:(?:please|can you) )*(?:write|continue)\b",
        "have a text written about {0}",
    ),
    (r"\b(?:differences?|compare|versus|vs)\b", "compare {0}"),
    (
        r"\b(?:book|reserve|reservation|appointment|tickets?)\b",
        "make arrangements for {0}",
    ),
    (r"\b(?:plan|itinerary)\b", "get a plan for {0}"),
    (
        r"\b(?:recommend|suggest|ideas?|tips|looking for|find (?:me|an?))",
        "get suggestions for {0}",
    ),
    (
        r"\b(?:how (?:do|can|could|should) i|how to|should i|advice)\b",
        "get advice on {0}",
    ),
    (
        r"\b(?:solve|calculate|equation|how (?:many|much)|prove)\b",
        "work out a problem about {0}",
    ),
    (
        r"\b(?:explain|describe|teach|tell me|wh(?:at|o|y|en|ere|ich)|how)\b|\?",
        "learn about {0}",
    ),
    (r"^\W*(?:i|i'm|my|we)\b(?!.*\b(?:need|want|help)\b)", "talk about {0}"),
)
"""Patterns in the request and the goal for each; the first match counts. `{0}` is the subject,
`{1}` the group."""

_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\{[^{}]*\}", re.DOTALL)
# Numbers, addresses, code.
_DETAIL = re.compile(r"[\d\\/_=<>|@]|\w[.(]\w|[a-z][A-Z]|.{40}")
_SENTENCE_START = re.compile(r"(?:^|[.!?:|]\s*)[A-Z](?=[a-z])")
_LONE_OF = re.compile(r"(?<!\w )\bof\b|\bof\b(?! \w)")
_VERB = re.compile(
    r"\b(?:(?:to|[Ii]|you|we|they|can|would|please|let's) )+(?!an?\b|the\b)[a-z]+"
)
_WORD = r"\b(?!(?:an?|the)\b)\w++(?:['’-]\w++)*+"
_PHRASE = re.compile(
    rf"(?:\b(?:an?|the) )?{_WORD}(?: (?:of (?:the )?)?{_WORD}){{0,2}}(?! {_WORD})"
)


def extractive(conversation: Conversation) -> str | None:
    """Return an intent, or `None` if the user says no words. Only English intents have a
    subject."""
    spoken = (turn[:READ] for turn in conversation.user_turns if words(turn))
    said = list(islice(spoken, TURNS // 2))
    if not said:
        return None
    code = language(conversation)
    if code == "en":
        found = [_phrases(turn) for turn in said]
        request = next((place for place, phrases in enumerate(found) if phrases), 0)
        goal = _goal(said[request])
        phrases = _key_phrases(conversation, found[request:], goal)
        for count in range(len(phrases), -1, -1):
            # "a, b and c"
            subject = (
                " and ".join(", ".join(phrases[:count]).rsplit(", ", 1)) or "something"
            )
            intent = f"{INTENT_PREFIX}{goal.format(subject)}."
            if check(intent, conversation) is None:
                return intent
    names = {code: name for name, code in LANGUAGES.items() if code != "und"}
    what = f"in {names[code]}" if code in names else "with a question"
    return f"{INTENT_PREFIX}get help {what}."


def _goal(request: str) -> str:
    """Return the goal, with `{}` in place of the subject."""
    ends = f"{request[:400]} {request[-200:]}".replace("’", "'")
    for cue, goal in _CUES:
        if match := re.search(cue, ends, re.IGNORECASE | re.DOTALL | re.MULTILINE):
            return " ".join(goal.format("{}", *match.groups("")).split())
    return "get help with {}"


def _phrases(turn: str) -> list[str]:
    """Return phrases of up to three content words, each with its article."""
    text = _CODE_BLOCK.sub(" | ", turn).replace("\n", " | ")
    text = " ".join("|" if _DETAIL.search(token) else token for token in text.split())
    text = _SENTENCE_START.sub(lambda match: match[0].lower(), text)
    text = re.sub(_WORD, lambda word: _content(word[0]), _VERB.sub("|", text))
    text = _LONE_OF.sub("|", text)
    return _PHRASE.findall(text)[:20]


@lru_cache(100_000)
def _content(word: str) -> str:
    """Return the word, or `|` if it says nothing about the subject."""
    if word == "of":
        return word
    plain = _stems(word) <= _PLAIN or re.fullmatch(r"..?|.+(?<!mi)ly|..+[^e]ed", word)
    return "|" if plain else word


def _key_phrases(
    conversation: Conversation, found: list[list[str]], goal: str
) -> list[str]:
    """Return up to three phrases, in the order of the talk: those of the request and in the most
    turns, and names only where there is little else."""
    texts = [turn.text[:READ] for turn in conversation.turns[:TURNS]]
    spoken = [_stems(text) for text in texts]
    names = _stems(" ".join(re.findall(r"(?<=[a-z,] )[A-Z]\w+", " ".join(texts))))

    def score(phrase: str) -> float:
        stems = _stems(phrase)
        turns = sum(stems <= said for said in spoken)
        in_request = phrase in found[0]
        is_long = len(stems) > 1
        return min(turns, 3) + is_long + in_request - bool(stems & names)

    chosen: list[str] = []
    used = _stems(goal)
    said = list(chain(*found))
    for phrase in sorted(said, key=lambda p: score(p) + (p in found[0]), reverse=True):
        stems = _stems(phrase)
        if not used & stems and (score(phrase) >= 3 or not chosen):
            chosen.append(phrase)
            used |= stems
    return sorted(chosen[: 3 if len(found) > 3 else 2], key=said.index)


def _stems(text: str) -> set[str]:
    """Return the content words without endings: `works` and `working` are the same."""
    return {
        re.sub(r"(?:'s|ings?|(?<!e)ed|es|s|ly|e)$", "", word)
        for word in content_words(text)
    }


_PLAIN = _stems("""
able act add allow always amount another answer ask assistant back bad based believe best better
bug buy call care case change check class close come compare complete const continue correct
create current date day def describe detail difference different else end error even every example
explain far feel fell find first follow form format found free friendly full function generate
given going good got great happy hear hello help hey high hour idea import important improve
include int interest keep know known large last learn least leave left less line list live long
look lot love made main make many may mean mention message month much name never new next number
old one open option order paragraph people perfect person place plan play point possible problem
process provide put question read ready real reason recommend result return right run said say
script search second see send sentence set short show since size small solve something sound
specific start state stay step still stop style suggest sure take talk text thank thing think
though three time today tomorrow tonight topic total true try two type understand user using value
want way week well without word work written wrong yeah year yesterday
""")  # words that say nothing about the subject
