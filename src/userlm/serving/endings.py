"""The stop phrase that a harness's prompt names: it looks for that to see the end.

Found are `###DONE###`, `</finished>`, `[END]`, `<STOP>`, and words in capitals within quotation
marks, in a sentence that tells the user to say them. Delimiters, placeholders, tags of the prompt
itself and words that are only emphasised are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from userlm.serving.prompts import MAX_CHECKED, MAX_SENTENCE

_NAME = r"[A-Za-z][A-Za-z0-9_ -]{0,38}"
_QUOTE = "[\"'`“”‘’«»]"
_CANDIDATE = re.compile(
    rf"(?P<marked>#{{2,6}} ?{_NAME}#{{2,6}}|</[A-Za-z][\w-]{{0,38}}>)"
    rf"|(?P<bracket>\[{_NAME}\]|<\|?{_NAME}\|?>|\{{\{{{_NAME}\}}\}})"
    rf"|(?<={_QUOTE})(?P<quoted>[A-Z][A-Z0-9]+(?:[ _-][A-Z0-9]+){{0,4}})(?=[.!]?{_QUOTE})"
)
_END_WORD = re.compile(
    r"(?<![a-z])(?:stop|end(?:ed|s|_?conversation|_?chat)?|done|exit|quit|over|finish(?:ed)?|"
    r"terminated?|termination|completed?|completion|bye|goodbye|leave|hang_?up|satisfied|"
    r"resolved|solved|closed?|success|achieved|reached)(?![a-z])",
    re.IGNORECASE,
)

_SAY_WORDS = (
    "say|write|output|reply|respond|generate|answer|emit|return|produce|send|use|include|append|"
    "type|print|add|put|finish|end|token|signal|marker|keyword|word|phrase|string|sequence"
)
_SAY = re.compile(rf"\b(?:{_SAY_WORDS})\b", re.IGNORECASE)
_SAY_JUST_BEFORE = re.compile(
    rf"\b(?:{_SAY_WORDS})(?:[ :]+(?:with|by|exactly|only|just|the|a|an|single|special|literal|"
    rf"text|message|{_SAY_WORDS}))*[\s:]*{_QUOTE}?$",
    re.IGNORECASE,
)
_DELIMITS = re.compile(r"\bbetween\b|[\[<#] ?(?:start|begin)", re.IGNORECASE)
_EXCEPT = re.compile(r"\b(?:until|unless|before|except|but|than)\b", re.IGNORECASE)
_NOT = re.compile(r"\b(?:never|not|don['’]t)\b[^,;]{0,30}$", re.IGNORECASE)

_TALK = (
    "(?:conversation|chat|dialog|dialogue|call|session|interaction|simulation|role-?play|exchange|"
    "discussion)"
)
_WISH = "(?:goal|task|need|request|issue|problem|objective|question|instruction|everything|plan)s?"
_OVER = "(?:over|end(?:s|ed)?|done|finish(?:ed)?|completed?|concluded?|stops?|terminated?|closed?)"
_GRANTED = (
    "(?:sati\\w+|met|achieved|reached|completed?|done|finished|fulfilled|resolved|answered|solved|"
    "accomplished|addressed)"
)
_ABOUT_THE_END = re.compile(
    r"\b(?:end|finish|conclud|terminat|stop|clos|leav|exit|quit)(?:e|ing|ping|s)?"
    rf"(?: \w+){{0,2}} {_TALK}\b"
    rf"|\b(?:end|completion|close) of (?:the |this |your )?{_TALK}\b"
    rf"|\b{_TALK}(?: \w+){{0,4}} {_OVER}\b"
    rf"|\b{_WISH}\b[^.,]{{0,40}}\b{_GRANTED}\b"
    r"|\b(?:when|once|if|after|as soon as)\b[^,]{0,40}"
    r"\b(?:done|finished|satisfied|happy|got (?:what|all|everything))\b"
    r"|\bnothing (?:more|else|left)\b|\bno (?:more|further|other) (?:question|request|need)"
    r"|\b(?:want|wish|decide|ready) to (?:end|stop|finish|leave|quit|exit)\b|\bhang up\b",
    re.IGNORECASE,
)

_BELOW_A_COLON = re.compile(r":[ \t]*\n\s*")
# A line that starts in lower case, or with what may be a stop phrase, continues the sentence.
_SENTENCE_END = re.compile(
    rf"(?<!\be\.g\.)(?<!\bi\.e\.)(?<=[.!?])\s+|\n(?![ \t]*(?:[a-z]|{_QUOTE}|#{{2,6}}\w|[\[<]))"
)


MOST_CANDIDATES = 300
"""How many of a prompt are looked at, each with the words around it; of those with a word for the
end as many again."""


def find_stop_phrase(
    given: str | None, configured: str | None, prompt: str
) -> tuple[str | None, list[str]]:
    """Return the stop phrase, and notes: `given` with the request (empty for none), else the one
    that the server was started with, else the one that the prompt names."""
    if given is not None:
        return given.strip() or None, []
    named = stop_phrase_in(prompt)
    if named in (None, configured):
        return configured, []
    if configured:
        return configured, [
            f"the stop phrase is {configured!r}, as the server was started with; the prompt seems "
            f"to name {named!r} (userlm.stop_phrase sets it)"
        ]
    return named, [f"the stop phrase is {named!r}, which the prompt names"]


def stop_phrase_in(prompt: str) -> str | None:
    """Return the text that a prompt tells the user to say at the end; `None` if it names none.

    If it names several, a word such as `STOP` or `DONE` comes first, then the earliest.
    """
    prompt = _BELOW_A_COLON.sub(": ", prompt[:MAX_CHECKED])
    candidates = list(_candidates(prompt))
    ends = [match for match in candidates if _END_WORD.search(match[0])]
    # A scenario may have hundreds of codes and tags before the phrase.
    looked_at = {*ends[:MOST_CANDIDATES], *candidates[:MOST_CANDIDATES]}
    found = [
        match[0]
        for match in candidates
        if match in looked_at and _is_named(match, prompt)
    ]
    return next(filter(_END_WORD.search, found), found[0] if found else None)


def _candidates(prompt: str) -> Iterator[re.Match[str]]:
    """Yield what may be a stop phrase in each sentence of the prompt."""
    for sentence in _SENTENCE_END.split(prompt):
        if not _DELIMITS.search(sentence):
            for match in _CANDIDATE.finditer(sentence):
                # Other words in brackets are placeholders.
                if not match["bracket"] or _END_WORD.search(match[0]):
                    yield match


def _is_named(match: re.Match[str], prompt: str) -> bool:
    """Whether the sentence of a candidate names it as a stop phrase."""
    sentence = match.string
    before = sentence[max(0, match.start() - MAX_SENTENCE) : match.start()]
    rest = f"{before} {sentence[match.end() :][:MAX_SENTENCE]}"
    if not _SAY.search(rest) or _is_tag(match[0], prompt):
        return False
    if _NOT.search(before) and not _EXCEPT.search(rest):
        return False
    is_end_word = _END_WORD.search(match[0])
    if is_end_word and not match["quoted"]:
        return True
    is_told = is_end_word or _SAY_JUST_BEFORE.search(before)
    return bool(is_told and _ABOUT_THE_END.search(rest))


def _is_tag(phrase: str, prompt: str) -> bool:
    """Whether a phrase opens or closes an element of the prompt itself."""
    if phrase[0] != "<":
        return False
    name = re.escape(phrase.strip("</>"))
    other = rf"<{name}[\s>]" if phrase[1] == "/" else f"</{name}>"
    return re.search(other, prompt) is not None
