"""An intent without a model: the offline stand-in of `userlm intents`.

It is written from cues in what the user says first (what is to be done) and key phrases of all that
they say (about what). It gives more words of the user away than a person or a language model would,
and is to be named as a stand-in wherever its sentences are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from userlm.data.clean import LANGUAGES, language
from userlm.data.intents import check
from userlm.text import INTENT_PREFIX, content_words, words
from userlm.types import Conversation


def extractive(conversation: Conversation) -> str | None:
    """An intent from cues and key phrases; `None` when the user says no word at all.

    Key phrases are sought in English only; other languages get a sentence that names the language.
    """
    said = [turn for turn in conversation.user_turns if words(turn)]
    if not said:
        return None
    code = language(conversation)
    if code != "en":
        name = {code: name for name, code in LANGUAGES.items() if code != "und"}.get(code)
        return (
            f"{INTENT_PREFIX}get help in {name}."
            if name
            else f"{INTENT_PREFIX}get help with a question."
        )
    texts = [_DETAILS.sub(" | ", _LONG.sub(" | ", turn[:LOOKED_AT])) for turn in said]
    names = _names(conversation)
    found = [_phrases(text, names) for text in texts]
    request = next((i for i, phrases in enumerate(found) if phrases), 0)
    action, taken = _action(said[request], texts[request], bool(found[request]))
    phrases = _key_phrases(conversation, found, request, taken)
    for count in range(len(phrases), -1, -1):
        intent = f"{INTENT_PREFIX}{action.say(phrases[:count])}."
        if check(intent, conversation) is None:
            return intent
    return f"{INTENT_PREFIX}get help with a question."


# --- what is to be done ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Action:
    """`about` has a place for the subject; `bare` is for when there is none."""

    about: str
    bare: str

    def say(self, phrases: list[str]) -> str:
        if not phrases:
            return self.bare
        *most, last = phrases
        return self.about.format(f"{', '.join(most)} and {last}" if most else last)


_KINDS = (
    "short story|story|poem|haiku|essay|article|email|letter|cover "
    "letter|song|rap|lyrics|script|speech|blog post|"
    "report|resume|joke|recipe|review|tweet|product "
    "description|description|dialogue|scene|fanfic|screenplay|"
    "limerick|novel|book|outline|quiz|prompt|headline|title|slogan|bio|introduction|conclusion|post|caption"
)
_PROGRAMMING = {
    "python": "Python",
    "javascript": "JavaScript",
    "typescript": "TypeScript",
    "java": "Java",
    "c++": "C++",
    "c#": "C#",
    "php": "PHP",
    "sql": "SQL",
    "html": "HTML",
    "css": "CSS",
    "bash": "Bash",
    "rust": "Rust",
    "kotlin": "Kotlin",
    "swift": "Swift",
    "matlab": "MATLAB",
    "latex": "LaTeX",
    "excel": "Excel",
    "numpy": "Python",
    "pandas": "Python",
    "pytorch": "Python",
    "tensorflow": "Python",
    "react": "React",
    "lua": "Lua",
    "luau": "Lua",
    "vba": "VBA",
    "powershell": "PowerShell",
}
_ALSO_ENGLISH = frozenset(("bash", "excel", "java", "latex", "react", "rust", "swift"))
_CODE_WORDS = frozenset(
    (
        "code coding program programming def elif return import class self int str print null none "
        "true"
    ).split()
) | frozenset(_PROGRAMMING)
_CODE = re.compile(
    r"```|^\s*(?:def|class|import|from \w+ import|#include|public|function|const|let|var) |"
    r"\b(?:code|coding|functions?(?! of\b)|(?:python|shell|bash|batch) "
    r"script|regex|regexp|compile[rs]?|"
    r"algorithm|programming|api|json|dataframe|"
    r"stack trace|traceback|unit tests?|git|docker|linux|codebase)\b",
    re.MULTILINE,
)
_CUES: tuple[tuple[re.Pattern[str], _Action], ...] = tuple(
    (re.compile(pattern), _Action(about, bare))
    for pattern, about, bare in (
        (
            r"\b(?:summar(?:y|i[sz]e|ies)|tl;?dr|key points|main points)\b",
            "have a text about {} summarised",
            "have a text summarised",
        ),
        (
            r"\b(?:rewrite|rephrase|paraphrase|proofread|reword|grammar|shorten|improve "
            r"(?:this|my|the)|"
            r"edit (?:this|my|the)|correct (?:this|my|the)|sounds? better)\b",
            "have a text about {} improved",
            "have a text improved",
        ),
        (
            r"\b(?:act as|pretend|role-?play|imagine (?:that )?you|i want you to be|"
            r"you are (?:an?|now|going to be))\b",
            "have the assistant play a part that involves {}",
            "have the assistant play a part",
        ),
        (
            r"\b(?:difference|differences|compare|comparison|versus|vs)\b",
            "compare {}",
            "compare a few things",
        ),
        (
            r"(?:\b(?:to|you|please)|^)\W*(?:book|reserve|order|buy|purchase|rent|schedule)\b|"
            r"\b(?:reservation|booking|appointment|tickets?)\b",
            "make arrangements that involve {}",
            "make some arrangements",
        ),
        (
            r"\b(?:could|can|may) i (?:please )?(?:have|get)\b|\bi(?:'d| would) like (?!to\b)|"
            r"\bi(?:'ll| will) (?:have|take|get)\b",
            "ask for {}",
            "ask for something",
        ),
        (r"\b(?:plan|planning|itinerary|roadmap)\b", "get a plan for {}", "get help with a plan"),
        (
            r"\b(?:recommend|recommendations?|suggest|suggestions?|ideas?|tips|looking for|find "
            r"(?:me|a|an|some)|"
            r"search for|brainstorm)\b",
            "get suggestions for {}",
            "get some suggestions",
        ),
        (
            r"\b(?:how (?:do|can|could|should|would) (?:i|we|you|one)|how to|should i|advice|what "
            r"should i)\b",
            "get advice on {}",
            "get some advice",
        ),
        (
            r"\b(?:solve|calculate|compute|equation|how many|how "
            r"much|probability|prove|integral)\b",
            "work out a problem about {}",
            "work out a problem",
        ),
        (
            r"\b(?:list|name (?:some|a few|\d+|two|three|five|ten)|examples?)\b",
            "get examples of {}",
            "get a few examples",
        ),
        (
            r"\b(?:do you (?:think|like|believe|feel|prefer|enjoy)|"
            r"your (?:opinion|favou?rite|view|thoughts))\b",
            "exchange views on {}",
            "exchange views",
        ),
        (
            r"\b(?:explain|describe|tell me "
            r"(?:about|more)|teach|what|what's|whats|who|why|when|where|which|how|"
            r"define|meaning)\b|\?|^\W*(?:is|are|was|were|does|do|did|has|have|can|could|will|would)\b(?! you\b)",
            "learn about {}",
            "get a question answered",
        ),
        (
            r"^\W*(?:i|i'm|i've|im|my|we|our)\b(?!.*\b(?:need|want|help|like to)\b)",
            "talk about {}",
            "have a talk",
        ),
    )
)
_HELP = _Action("get help with {}", "get help with a question")
_GREETING = re.compile(
    r"^\W*(?:hi|hello|hey|yo|sup|good (?:morning|evening|afternoon)|greetings|how are you)\b", re.I
)
_KIND = re.compile(
    rf"\b(?:write|compose|draft|create|generate|make|tell|give|continue|produce|craft)\b(?:\W+\w+){{0,8}}?\W+({_KINDS})s?\b"
)
_WRITE = re.compile(
    r"^\W*(?:(?:can|could|would) you |please |help me )*(?:to )?(?:write|compose|draft|continue)\b"
)
_TRANSLATE = re.compile(r"\btranslat(?:e|ion|ing)\b")
_BROKEN = re.compile(
    r"\b(?:fix|debug|error|errors|bug|bugs|exception|traceback|not work(?:ing)?|doesn'?t "
    r"work|isn'?t working|"
    r"wrong|fails?|failing|problem)\b"
)


def _action(turn: str, text: str, says_something: bool) -> tuple[_Action, frozenset[str]]:
    """What the user wants done, and the words that this already says. `text` is the turn without
    details.

    Only the beginning and the end of a long turn are read: what lies between is mostly pasted.
    """
    lowered = text.lower().replace("’", "'").split(" ")
    ends = " ".join(lowered if len(lowered) < 100 else [*lowered[:60], "\n", *lowered[-30:]])
    if not says_something and _GREETING.search(text):
        return _Action("have a casual chat about {}", "have a casual chat"), frozenset()
    if _TRANSLATE.search(ends):
        into = [
            name
            for name in re.findall(r"\b(?:in)?to (\w+)", ends)
            if name.capitalize() in LANGUAGES
        ]
        target = f" into {into[0].capitalize()}" if into else ""
        return _Action(
            f"have a text translated{target}", f"have a text translated{target}"
        ), frozenset()
    is_code = bool(_CODE.search(ends) or _CODE.search(turn[:400]))
    tokens = re.findall(r"[a-z]+(?:\+\+|#)?", ends)
    names = [
        _PROGRAMMING[t] for t in tokens if t in _PROGRAMMING and (is_code or t not in _ALSO_ENGLISH)
    ]
    if kind := _KIND.search(ends):
        noun = kind[1]
        article = "" if noun == "lyrics" else "an " if noun[0] in "aeiou" else "a "
        return _Action(
            f"have {article}{noun} written about {{}}", f"have {article}{noun} written"
        ), frozenset(noun.split())
    if names or is_code:
        code = f"{names[0]} code" if names else "code"
        used = _CODE_WORDS
        if _BROKEN.search(ends):
            return _Action(
                f"fix a problem in {code} for {{}}", f"fix a problem in {code}"
            ), used | {
                "bug",
                "error",
            }
        return _Action(f"get help with {code} for {{}}", f"get help with {code}"), used
    for cue, action in _CUES[
        :3
    ]:  # summarise, improve, play a part: said of a text, whatever is in it
        if cue.search(ends):
            return action, frozenset({"summary", "grammar"})
    if _WRITE.search(ends):
        return _Action("have a text written about {}", "have a text written"), frozenset()
    return next((action for cue, action in _CUES[3:] if cue.search(ends)), _HELP), frozenset()


# --- about what -----------------------------------------------------------------------------------

LOOKED_AT = 20_000  # characters of a turn: what somebody is after stands before that
_LONG = re.compile(
    r"\S{80,}"
)  # pasted data; `_DETAILS` would take time in the square of its length
_DETAILS = re.compile(
    # code, addresses
    r"```.*?(?:```|\Z)|`[^`\n]*`|<[^>\n]{1,80}>|\{[^{}]*\}|https?://\S+|www\.\S+|\S+@\S+|"
    r"\S*[\\/_=<>|]\S*|\b[\w-]+\.[A-Za-z]\w{0,4}\b|"  # paths, names in code, names of files
    r"\b[a-z]+[A-Z]\w*|\b[A-Z][a-z]+[A-Z]\w*|\S*\d\S*",  # camelCase, all that has a digit
    re.DOTALL,
)
_CLAUSE = re.compile(r"[^\w\s'’-]+|\n+|\s-+\s|_")
_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_VOWEL = re.compile(r"(?!uni(?!n|m)|use|usu|eu|one\b)[aeiou]|hour|honest", re.IGNORECASE)
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'’-]+")
_BEFORE_VERB = frozenset(
    (
        "to i you we they can could should would will shall must don't do does did please let's "
        "let "
        "i'd i'll"
    ).split()
)
_READ = 400
_PLAIN = frozenset(
    """
    able about above absolutely according across act actual actually add added again ago agree ai allow
    allowed allows almost alone along already alright also although always amazing among amount another
    answer answers anybody anymore anyone anything anyway anywhere apart appear applied apply applying
    appreciate april area around arrive arrives arriving ask asked asking asks assign assigned assist
    assistance assistant assume ate attached august available avoid aware away awesome awful back bad
    badly based basic basically became become becomes began begin beginning begun behind believe best
    better big bit blame book booking born bot both bought break brief briefly bring bro broke brought
    build building buy bye call called came cannot care carry case catch caught cause certain certainly
    change changed changes chat chatbot chatgpt cheap check choose clear clearly close collect combine
    come comes coming compare compared complete completely confirm confirmed confirming consider
    considering consist consisting consists consiting contain containing contains context continue convert
    cool correct correctly correspond corresponds could couple cover create created creating current
    currently cute day days dear december decide deep define definitely deliver depend depends describe
    detail detailed details determine didnt die died difference differences different difficult directly
    discover discovered discovering discuss does doesnt doing done dont dr dude due each early easily easy
    eat eating eight either elaborate eleven else end ends english enjoy enough ensure enter entered
    especially essentially etc even ever every everybody everyone everything exact exactly example
    examples exist expand expect expensive explain explained explanation extremely fact fairly fall famous
    far fast favorite favourite february feel feels fell few fifteen fifty fill final finally find finding
    fine finish first five fix fixed fly follow following follows forget form format forty found four
    fourteen free friday friendly full fully fun gave general generally generate generic gets getting
    given gives giving glad goes going gone gonna good goodbye got gotten grab great grow guess guy guys
    haha half handle happen happened happening happens happy hard hasnt hate havent hear heard hello help
    helped helpful helping helps hence hey hi high highly hit hmm hold hope hour hours however huge
    hundred idea ideas identify im imagine important improve include included includes including
    incredible indeed indicate indicates inside instead interested interesting introduce introduced
    involve isnt issue itinerary january join july june keep keeps kept killed kind kindly kinds knew know
    knowing known knows large largest last late lately later latest lead learn least leave leaves leaving
    left less let lets letter level like liked likely likes line lines list listed little live located lol
    long longer look looked looking looks lose lost lot lots love loved low made main mainly major make
    makes making manage many march match matter maximum may maybe me mean meaning means meant mention
    mentioned message met might mind mine minimum minute minutes miss missing mix model moderate
    moderately moment monday mondays month months more morning most mostly move mr mrs much multiple must
    name named names near nearby necessary need needed needing needs negative neither never new next nice
    night nine nobody none normal not note nothing november number numbers object occur occurs october
    often oh ok okay old one ones open option options order others otherwise outside overall own owned
    owns paid paragraph paragraphs paraphrase particular parts passage past pay people perfect perhaps
    permit permits permitted person pick piece place places please plus pm point points positive possible
    possibly potential prefer preferably preference preferred preparing pretend pretty previous previously
    prior probably problem problems proceed process produce produced producing proper properly provide
    provided provides providing pull push put question questions quick quickly quite raise ran reach read
    reading ready real really reason reasons receive recently recommend recommendation recommendations
    refer regarding regards related relevant remember replace reply request require required reservation
    reserve respond response rest result results return returns rewrite right running said same saturday
    save saw say saying says search searching second section see seeing seem seems seen sell send sense
    sent sentence sentences september serve served set seven several shall share short show showing shown
    shows similar simple simply since single sir sit situation six size sleep small sold solve solved
    somebody somehow someone something sometimes somewhat somewhere soon sorry sound sounds speak special
    specific specifically spend spent spoke stand stands start started starting state statement stay steal
    step steps still stolen stood stop stuff style suggest suggestion suggestions summarise summarize
    sunday super suppose supposed sure take taken takes taking talk talking targeting task taught teach
    tell ten term terms text texts thank thanks that thats themselves thing things think thinking third
    thirteen thirty thought thoughts thousand three threw throughout throw thursday till time times title
    today together told tomorrow tonight took top topic topics total totally touch toward towards
    translate treat tried tries true try trying tuesday turn twelve twenty two type types typical
    typically understand understanding unfortunately unique unless unlike upon upto use used useful user
    uses using usual usually value values various verified verify via view visit visited visiting wait
    waiting wanna want wanted wants wasnt watch watching way ways wear wearing wednesday week weekend
    weeks welcome well went whatever whats whenever whether whole whose wide willing win wish within
    without won wonder wonderful wondering wont word words work worked working works worth wow write
    writing written wrong wrote yeah year years yep yes yesterday yet youre zero
    """.split()
)


@dataclass(frozen=True, slots=True)
class _Phrase:
    """Up to three words as they are to be spelled; `article` is the one that the user put before
    them."""

    words: tuple[str, ...]
    article: str
    is_verb: bool

    @property
    def text(self) -> str:
        """With the article, if any."""
        article = "an" if self.article == "a" and _VOWEL.match(self.words[0]) else self.article
        return " ".join((article, *self.words) if article else self.words)


def _names(conversation: Conversation) -> frozenset[str]:
    """Words that someone spells with a capital in the middle of a sentence."""
    return frozenset(
        name for turn in conversation.turns for name in _NAME.findall(turn.text[:4000])
    )


def _phrases(text: str, names: frozenset[str]) -> list[_Phrase]:
    """Runs of content words, in order; of a longer run its last three."""
    found: list[_Phrase] = []
    for clause in _CLAUSE.split(text):
        tokens = _TOKEN.findall(clause)[:_READ]
        if not tokens:
            continue
        if tokens[0][1:].islower() and tokens[0] not in names:
            tokens[0] = tokens[0].lower()
        content = set(content_words(" ".join(tokens)))
        start = 0
        for end, token in enumerate([*tokens, ""]):
            if _is_content(token, content):
                continue
            if start < end:
                found.append(_phrase(tokens, start, end))
            start = end + 1
    return found


def _phrase(tokens: list[str], start: int, end: int) -> _Phrase:
    before = [token.lower() for token in tokens[max(0, start - 2) : start]]
    is_verb = bool(before) and before[-1].replace("’", "'") in _BEFORE_VERB
    if is_verb and end - start > 1:
        return _Phrase(tuple(tokens[max(start + 1, end - 3) : end]), "", False)
    article = next((word for word in reversed(before) if word in ("a", "an", "the")), "")
    kept = tuple(tokens[max(start, end - 3) : end])
    plural = kept[-1].endswith("s") and not kept[-1].endswith("ss")
    return _Phrase(
        kept,
        "" if is_verb or (article != "the" and plural) else article.replace("an", "a"),
        is_verb,
    )


def _is_content(token: str, content: set[str]) -> bool:
    plain = token.lower().replace("’", "'")
    return plain in content and len(plain) > 2 and plain not in _PLAIN and not _is_adverb(plain)


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and word not in (
        "family",
        "supply",
        "assembly",
        "italy",
        "monopoly",
        "anomaly",
    )


def _key_phrases(
    conversation: Conversation, found: list[list[_Phrase]], request: int, taken: frozenset[str]
) -> list[str]:
    """One from the request, and up to two more: said in several turns, taken up by the assistant,
    no names."""
    turns_with = Counter(
        stem
        for phrases in found
        for stem in {_stem(word) for phrase in phrases for word in phrase.words}
    )
    answers = (turn.text[:2000] for turn in conversation.turns if turn.role == "assistant")
    answered = {_stem(word) for answer in answers for word in words(answer)}
    scores: dict[_Phrase, float] = {}
    for number, phrases in enumerate(found[:10]):
        for place, phrase in enumerate(phrases[:40]):
            stems = [_stem(word) for word in phrase.words]
            if taken & set(stems):
                continue
            recurring = sum(min(turns_with[stem], 3) for stem in stems) / len(stems)
            echoed = sum(stem in answered for stem in stems) / len(stems)
            early = 1.2 - place / len(phrases) if number == request else 0.0
            length = (0.0, 0.6, 0.4)[len(stems) - 1]
            names = sum(word[0].isupper() for word in phrase.words) / len(stems)
            participle = len(stems) == 1 and stems[0].endswith(("ed", "ing"))
            score = (
                recurring
                + echoed
                + early
                + length
                - (0.9 if len(stems) == 1 else 0.6) * names
                - 0.9 * phrase.is_verb
                - 0.6 * participle
            )
            scores[phrase] = max(score, scores.get(phrase, 0.0))
    ranked = sorted(scores, key=lambda phrase: -scores[phrase])
    asked = [phrase for phrase in ranked if phrase in set(found[request])]
    chosen = (asked or ranked)[:1]
    for phrase in ranked:
        if len(chosen) >= (3 if len(found) > 3 else 2):
            break
        used = {_stem(word) for earlier in chosen for word in earlier.words}
        close = scores[phrase] >= 0.6 * scores[chosen[0]]
        if close and not phrase.is_verb and not used & {_stem(word) for word in phrase.words}:
            chosen.append(phrase)
    return [phrase.text for phrase in chosen]


def _stem(word: str) -> str:
    """Singular and plural in one form; good enough to see that two phrases speak of the same."""
    lowered = word.lower().replace("’", "'").removesuffix("'s")
    return lowered if lowered.endswith("ss") else lowered.removesuffix("s")
