"""Intents without a model: the default writer of `userlm intents`.

The words with which somebody asks ("can you tell me about", "how do I") determine the goal, the
words after them are its subject; where nobody asks for anything, key phrases are. Such an intent
repeats more of the user's words than one written by a person or a language model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice

from userlm.data.intents import check, in_sentence
from userlm.data.language import LANGUAGES, language
from userlm.text import INTENT_PREFIX, content_words, words
from userlm.types import Conversation

READ = (
    5_000  # characters of a turn to read; requests come first, pasted text after them
)
TURNS = 200  # to read: each phrase is compared with each of them
SENTENCES = 12  # of a turn to look for a request in
SUBJECT = 6  # words; with a seventh it would often be copied
CANDIDATES = 50  # goals, each of which is compared with the whole conversation

_PEOPLE = "i|we|you|u|one|people|someone|somebody|they"
_QUESTION = "what|who|whom|whose|where|when|which|why|how"
_AUXILIARY = (
    "is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|should|may|might|must|"
    "isn't|aren't|don't|doesn't|didn't|cannot|can't|won't"
)
_SHOW = (
    "tell|teach|show|give|explain|describe|define|elaborate|inform|talk|discuss|speak|"
    "know|learn|think"
)
_MAKE = "write|create|generate|make|compose|draft|draw|design|build|develop|craft|come up with"
_CHANGE = (
    "continue|correct|debug|fix|improve|paraphrase|proofread|rephrase|review|rewrite|shorten|simplify|"
    "summari[sz]e|translate"
)
_DO = (
    "activate|add|analyse|analyze|answer|arrange|book|calculate|cancel|change|"
    "check|choose|classify|close|code|complete|compute|connect|convert|count|"
    "deactivate|delete|evaluate|exchange|expand|extend|extract|fill|format|guess|"
    "help|identify|implement|install|invent|log in|modify|open|optimise|optimize|"
    "order|organi[sz]e|outline|pick|plan|play|predict|prepare|prove|rank|rate|"
    "refactor|refund|remove|rename|repeat|replace|reset|return|reverse|role-?play|"
    "run|say|ship|sign up|simulate|solve|sort|spell|split|stop|test|track|turn|"
    "unsubscribe|update|upgrade|use|verify"
)
_LEAD = re.compile(
    r"\W*(?:(?:hi|hello|hey|yo|dear|ok|okay|so|well|now|then|please|pls|plz|thanks|thank you|great|"
    r"also|and|but|yes|no|actually|just|maybe|kindly|there|chatgpt|assistant|"
    r"how are you(?: today| doing)?|good (?:morning|evening|afternoon)|"
    r"(?:can|could|would|will) (?:you|u)|(?:i (?:want|need|would like)|i'd like) you to|"
    r"help me(?: to| with)?|try to|"
    r"(?:do|did) you (?:know|remember|understand)(?: about| of)?|"
    r"are you (?:aware|familiar|able)(?: of| with| to)?|"
    r"i(?:'m| am| was)? wonder(?:ing)?(?: about| if)?|"
    r"(?:(?:i (?:want|need|would like)|i'd like) to (?:know|understand|learn)|tell me|"
    r"explain(?: to me)?|show me|teach me|let me know|i don'?t (?:know|understand)|any idea)"
    rf"(?: about)?(?=\W+(?:{_QUESTION})\b))\b\W*){{1,6}}",
    re.IGNORECASE,
)
"""What comes before the request itself."""

_FORMS = [
    (re.compile(pattern, re.IGNORECASE), goal)
    for pattern, goal in (
        (rf"(?:.{{0,60}}?\b)?how (?:to|\w+ (?:{_PEOPLE}))\s+", "find out how to {}"),
        (r"(?:can|may|should|could) (?:i|we)\s+", "find out how to {}"),
        (r"(?:what.{1,20})?differences? between\s+|compare\s+", "compare {}"),
        (r"(?:what|how) about\s+", "learn about {}"),
        (r"how many\s+", "find out the number of {}"),
        (r"how (\w+) (?:is|are|was|were)\s+(?!there\b)", "find out how {1} {0} is"),
        (
            r"how long (?:do|does|did|will|would) it takes? (?:for|to)\s+",
            "find out how long it takes to {}",
        ),
        (
            rf"how (much|long|far|often) (?:(?:{_AUXILIARY})\s+)?",
            "find out how {1} {0}",
        ),
        (
            rf"(why|when|where|how) (?:{_AUXILIARY}) ({_PEOPLE}|it|he|she)\s+",
            "learn {1} {2} {0}",
        ),
        (
            r"(what|which|who|where) (?:should|to|can|do|could|would) (?:i|we)\s+",
            "get advice on {1} to {0}",
        ),
        (
            rf"(?:{_QUESTION})(?:'?s| (?:{_AUXILIARY}))(?: there| you)?\s+"
            r"(?:know |think |mean by |call )?(?:about |of )?",
            "learn about {}",
        ),
        (r"(what|who|whose|which|why|how)\s+", "learn {1} {0}"),
        (r"is it (\w+) (to|for|that|if)\s+", "learn whether it is {1} {2} {0}"),
        (r"(?:tell|give)\s+(?:me |us )?(?=(?:an?|some|another|the)\b)", "hear {}"),
        (r"(?:suggest|recommend)(?: me| us)?\s+", "get suggestions for {}"),
        (
            r"(?:give|show|provide|find|get|send|name|list|share|offer)(?: me| us)?(?: with)?\s+",
            "get {}",
        ),
        (
            rf"(?:let'?s |i want to |i'd like to )?(?:{_SHOW})\s+(?:to |with )?(?:me |us )?"
            r"(?:more |all |something |everything |a bit |a little )?(?:about |on )?",
            "learn about {}",
        ),
        (
            r"(?:act as|pretend (?:to be|(?:that )?you are)|imagine (?:that )?you are|you are)"
            r"(?: (?:if|though) you (?:are|were))?\s+",
            "have the assistant play {}",
        ),
        (
            rf"(?:(?:in|for|as|using|with) .{{0,60}}?\b)?({_MAKE}|{_CHANGE}|{_DO})\s+"
            r"(?:(?:for )?(?:me|us)\s+)?",
            "have the assistant {1} {0}",
        ),
        (
            rf"(?:do|can|will) you (?=(?:still |also )?(?:{_DO}|{_MAKE})\b)",
            "ask if it is possible to {}",
        ),
        (
            rf"(?:{_AUXILIARY})(?: there| you(?: (?:think|know|like|have|believe|"
            r"accept|offer|sell|support|provide|carry|stock|take))?"
            r"(?: about| of| that)?)?\s+",
            "learn about {}",
        ),
        (
            r"(?:i )?have (?:an?|some|another) (?:\w+ )?questions?"
            r" (?:about|on|regarding|concerning|for)\s+",
            "learn about {}",
        ),
        (
            r"(?:i(?:'m| am) (?:looking|searching) for|(?:i )?(?:want|need)|i(?:'d| would) like"
            r"(?: some)?(?: help (?:on|for|with))?)\s+(?!to\b)",
            "get {}",
        ),
        (
            r"(?:i (?:want|need|have|wish|plan|hope|would like)|i'd like|"
            r"i(?:'m| am) (?:trying|planning|going)) to\s+",
            "get help to {}",
        ),
    )
]
"""How somebody asks and the goal for it; the first that matches and has a subject counts. `{}` is
the subject, `{1}` and `{2}` are the groups."""
_NO_TOPIC = re.compile(
    rf"(?:hear|have the assistant (?:{_MAKE}|{_CHANGE})) "
    r"(?!.*\b(?:about|of|for|on|to)\b)(?:\S+ ?){1,4}"
)
"""Goals that do not say what a text is about."""
_STATEMENT = re.compile(r"(?:i|i'(?:m|ve)|im|we|we'(?:re|ve)|my|our)\b", re.IGNORECASE)
"""How a sentence begins in which somebody tells of themselves."""
_AGREES = re.compile(r"\bthey (am|is|was)\b")
_NO_SUBJECT = re.compile(
    rf"(?:{_PEOPLE}|it|he|she|this|that|these|those|my|our|your|\w+'(?:m|ve|re|s)|if|in|on|at|to|for|from|"
    r"with|as|by|of|not)\b",
    re.IGNORECASE,
)
"""How a turn does not begin that is all subject."""

_CLAUSE = (
    r"that|who|whom|whose|because|since|if|when|where|wherein|whereby|while|so|but|or|then|please|without|"
    r"such|based|i|you|we|they|he|she|"
    rf"and (?=(?:i|you|we|it|then|{_QUESTION}|{_SHOW}|{_MAKE}|{_DO}|{_CHANGE})\b)"
)
# `(?<!\s)` and `++`: a long run of spaces or marks is tried once, not from each of its places.
_MARK = r"(?<![^\w\s'#+&%$-])[^\w\s'#+&%$-]++(?=\s|\Z)|(?<!\s)\s++[\"“(\[<-]"
_ENDS = re.compile(rf"(?<!\s)\s++(?:{_CLAUSE})\b|{_MARK}", re.IGNORECASE)
_ENDS_OR_VERB = re.compile(
    rf"(?<!\s)\s++(?:(?:{_CLAUSE}|which|{_AUXILIARY}|be|means?|called|come)\b|work(?=\W*\Z|\s+(?:in|on)\b))"
    rf"|{_MARK}",
    re.IGNORECASE,
)
"""Where a subject ends; in a question its verb comes after it."""
_DANGLING = re.compile(
    r"\s+(?:of|for|in|on|at|to|from|by|with|about|into|between|like|as|than|against|after|before|during|"
    r"over|under|using|and|the|an?|my|their|very|most|more|each|every|this|these|those|some|any|its|his|"
    r"her|not|all|do|does|did|can|could|will|would|should)\Z",
    re.IGNORECASE,
)
_NO_NOUN = re.compile(r"(?:it|he|she|not)\b", re.IGNORECASE)
_UNFINISHED = re.compile(
    r"\s+(?:to \w+|\w+(?:al|ic|ous|ive|able|ible|ful|less|ish|ern|ary))\Z"
)
"""What a subject that was cut off does not end with: an infinitive or an adjective."""
_ADVERBS = re.compile(
    r"\b(?:actually|basically|currently|exactly|really|so|too|usually|still|also|even|just|ever|always)\s+",
    re.IGNORECASE,
)
_THIRD_PERSON = {
    **dict.fromkeys(("i", "we"), "they"),
    **dict.fromkeys(("i'm", "im", "we're"), "they are"),
    **dict.fromkeys(("i've", "we've"), "they have"),
    **dict.fromkeys(("me", "us"), "them"),
    **dict.fromkeys(("my", "our"), "their"),
    **dict.fromkeys(("you", "u"), "the assistant"),
    **dict.fromkeys(("myself", "ourselves"), "themselves"),
    "your": "the assistant's",
}

_GREETING = re.compile(
    # Each round takes one whole word, so that a text is split in one way only.
    r"\W*(?:(?:hi|hello|hey|yo|there|how|hows|how's|are|is|it|you|good|what's|up|\w+ing)\b\W*)+\Z",
    re.IGNORECASE,
)
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\{[^{}]*\}", re.DOTALL)
# Numbers, addresses, code.
_DETAIL = re.compile(r"[\d\\/_=<>|@*]|\w[.(]\w|[a-z][A-Z]|.{40}")
_SENTENCE_START = re.compile(r"(?:^|[.!?:|]\s*)[A-Z](?=[a-z])")
_LONE_OF = re.compile(r"(?<!\w )\bof\b|\bof\b(?! \w)")
_VERB = re.compile(
    r"\b(?:(?:to|[Ii]|you|we|they|can|would|please|let's) )++(?!an?\b|the\b)[a-z]+"
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
        for goal in islice(_goals(conversation, said), CANDIDATES):
            intent = f"{INTENT_PREFIX}{goal}."
            if check(intent, conversation) is None:
                return intent
        greets = all(_GREETING.fullmatch(turn) for turn in said)
        return f"{INTENT_PREFIX}{'have a casual chat' if greets else 'get help with something'}."
    names = {code: name for name, code in LANGUAGES.items() if code != "und"}
    what = f"in {names[code]}" if code in names else "with a question"
    return f"{INTENT_PREFIX}get help {what}."


def _goals(conversation: Conversation, said: list[str]) -> Iterator[str]:
    """Yield goals of the first turn that has any, then of the next."""
    found = [_phrases(turn) for turn in said]
    for place, turn in enumerate(said):
        if _GREETING.fullmatch(turn):
            continue
        requests = [_request(sentence) for sentence in _sentences(turn)]
        phrases = _key_phrases(conversation, found[place:]) if found[place] else []
        for goal in chain.from_iterable(map(_asked, requests)):
            others = (p for p in found[place] if not _stems(p) & _stems(goal))
            topics = [phrase for phrase in others if " " in phrase]
            if topics and _NO_TOPIC.fullmatch(goal):
                yield f"{goal} about {topics[0]}"
            yield goal
        for request in filter(_STATEMENT.match, requests):
            if subject := _subject(request, _ENDS, SUBJECT):
                yield f"tell the assistant that {_AGREES.sub(_agreed, subject)}"
        if len(requests) == 1 and not _NO_SUBJECT.match(requests[0]):
            subject = _subject(requests[0], _ENDS, SUBJECT)
            if subject and len(words(turn)) <= SUBJECT:
                yield f"get help with {in_sentence(subject)}"
        if any(" " in phrase for phrase in phrases):
            phrases = [phrase for phrase in phrases if " " in phrase]
        for count in range(len(phrases), 0, -1):
            # "a, b and c"
            both = " and ".join(", ".join(phrases[:count]).rsplit(", ", 1))
            yield f"get help with {both}"


def _sentences(turn: str) -> list[str]:
    text = _CODE_BLOCK.sub(". ", turn).replace("’", "'")
    return re.split(r"(?<=[.?!])\s+|\n+|:\s", text)[:SENTENCES]


def _request(sentence: str) -> str:
    """Return a sentence without greetings and "can you please"."""
    lead = _LEAD.match(sentence)
    return sentence[lead.end() if lead else 0 :].strip(" \t\"'“”*#,-[](")


def _asked(request: str) -> Iterator[str]:
    for form, goal in _FORMS:
        if match := form.match(request):
            groups = [_third_person(group.lower()) for group in match.groups("")]
            # Only the verb of the goal's own question is not one of its subject.
            ends = _ENDS if goal.startswith("learn {1} {0}") else _ENDS_OR_VERB
            for most in (SUBJECT, SUBJECT - 1, SUBJECT // 2):
                if subject := _subject(request[match.end() :], ends, most):
                    yield goal.format(subject, *groups)
            return


def _subject(text: str, ends: re.Pattern[str], most: int) -> str | None:
    """Return at most so many words of the beginning of a text, to where its clause ends; `None` if
    they say nothing."""
    end = ends.search(text := _ADVERBS.sub("", text))
    clause = text[: end.start() if end else len(text)].split()
    clause = [word for word in clause if not _DETAIL.search(word)]
    taken = clause[:most]
    subject = " ".join(map(_third_person, taken)).strip(" '\"”.,!?#")
    if len(taken) < len(clause):
        subject = _UNFINISHED.sub("", subject)
    while (shorter := _DANGLING.sub("", subject)) != subject:
        subject = shorter
    stems = _stems(subject)
    says_something = (
        subject.startswith("their ")
        or len(stems) > 2
        or any(len(stem) > 1 for stem in stems - _PLAIN)
    )
    return subject if says_something and not _NO_NOUN.match(subject) else None


def _agreed(match: re.Match[str]) -> str:
    return "they were" if match[1] == "was" else "they are"


def _third_person(word: str) -> str:
    return _THIRD_PERSON.get(word.lower(), word)


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


def _key_phrases(conversation: Conversation, found: list[list[str]]) -> list[str]:
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
    used: set[str] = set()
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
able act add allow always amount another answer around ask assistant back bad based believe best
better bug buy call care case change check class close come compare complete const continue correct
create current date day def describe detail difference different else end error even every example
explain far feel fell find first follow form format found free friendly full function generate
given going good got great happy hear hello help hey high hour idea import important improve
include int interest keep know known large last learn least leave left less line list live long
look lot love made main make many may mean mention message month much name never new next number
old one open option paragraph people perfect person place plan play point possible problem
process provide put question read ready real reason recommend result return right run said say
script search second see send sentence set short show since size small solve something sound
specific start state stay step still stop style suggest sure take talk text thank thing think
though three time today tomorrow tonight topic total true try two type understand user using value
want way week well without word work written wrong yeah year yesterday
""")  # words that say nothing about the subject
