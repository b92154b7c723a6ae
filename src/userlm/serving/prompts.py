"""Whether a text is a prompt that quotes a conversation, instead of a turn of one.

Many harnesses send a chat model a single prompt: play the user, this is the conversation so far,
write what comes next. A user model takes messages one by one; it would answer such a prompt as if
the assistant had said it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CHECKED = 50_000
"""How many characters of a text are looked at: the notation of a transcript shows soon."""

_USERS = """
    user users human customer client caller student patient buyer shopper guest visitor tester
    you me nutzer benutzer kunde utilisateur usuario cliente utente пользователь 用户 ユーザー
"""
_ASSISTANTS = """
    assistant assistants ai bot chatbot agent model llm gpt chatgpt claude gemini support advisor
    operator tutor teacher doctor assistent ki assistente asistente ассистент 助手
    アシスタント
"""
_SIDES = {
    **dict.fromkeys(_USERS.split(), "user"),
    **dict.fromkeys(_ASSISTANTS.split(), "assistant"),
}

_LABEL = re.compile(
    # At the start of a line, perhaps with a number or a time, or after a bracket, quote or dash.
    r"(?:^[^a-z\n]{0,40}?|[\[\]<>(){}|\"'=:#*.,;/«_-]\s?)"
    r"(?:(?:the|ai|llm|simulated|virtual|human|customer|support|service) ){0,2}"
    r"([^\W\d_]\w{0,19})"
    # As in "User:", "[user]", "User 2:", "User (calm):", "UserMessage(", "user -", "user said".
    r"(?=[ \t]?[:：\[\]<>(){}|\"'*»→\t]|[ \t]*$| [\d–—-]"
    r"| (?:said|says|asked|answered|replied|wrote)\b)",
    re.IGNORECASE | re.MULTILINE,
)
"""A word where transcripts have the name of a role."""

_INLINE_LABEL = re.compile(r"(?:^|\s)(\w{1,20}):\s")
"""The same within a line, where more of them are needed: "User: hi Assistant: hello User: ..."."""

_QUOTED_TURN = re.compile(
    # {"role": "user", "content": ...}, Turn(role='user', content=...), - role: user
    r"\b(?:role|from|speaker|sender|author)[\\\"']{0,2}\s?[:=]\W{0,4}(?:\w+\.)?\w{1,20}\W{1,12}"
    r"(?:content|text|parts|message|value)\b"
    r"|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]"
)
"""What no answer has, so that one such turn is enough."""

_TALK = "(?:conversation|chat|dialog|dialogue|message|interaction|exchange|turn)s?"
_RECORD = "(?:history|conversation|transcript|dialog|dialogue|chat|messages|turns)"
_MACHINE = "(?:assistant|agent|bot|chatbot|ai|model)"
_SAID = "(?:message|response|reply|answer|turn|utterance)s?"
_HEADINGS = (
    rf"{_TALK}[ _-](?:so[ _-]far|history|log|transcript|until now|up to now)",
    r"(?:transcript|history) of (?:the|your|this|a) \w+",
    r"(?:here|below)\b[^\n.?!]{0,20}\b(?:conversation|chat|dialog|dialogue)",
    rf"(?:said|happened) so far|{_TALK} (?:is|was|goes) as follows",
    rf"(?:last|latest|previous|most recent) {_MACHINE}(?:['’]s)? {_SAID}",
    rf"{_MACHINE}(?:['’]s)? (?:last|latest|previous|most recent) {_SAID}",
    rf"{_MACHINE} (?:has )?just (?:said|asked|replied|responded|answered|wrote)",
)
_PREVIOUS = rf"(?:previous|prior|past|earlier|preceding|current|ongoing)[ _-]{_TALK}"
_HISTORY = re.compile(
    # With a colon later in the line, or at the end of the line.
    rf"\b(?:{'|'.join(_HEADINGS)})\b(?:[^\n.?!]{{0,60}}[:：]|[^\w\n]{{0,6}}$)"
    rf"|\b{_PREVIOUS}\b(?:[^\n.?!]{{0,60}}[:：])?[^\w\n]{{0,6}}$"
    # A line or a tag of its own, or a field.
    rf"|^[^\w\n]{{0,6}}(?:the )?{_RECORD}[^\w\n]{{0,6}}$"
    rf"|<(?:\w{{1,20}}_)?{_RECORD}>"
    rf"|[\"'](?:\w{{1,20}}_)?{_RECORD}[\"']\s?:",
    re.IGNORECASE | re.MULTILINE,
)
"""What announces the conversation so far."""

_EXAMPLE = re.compile(r"\bexamples?\b|\be\.g\.", re.IGNORECASE)

# A line that starts in lower case continues the sentence.
_SENTENCE_END = re.compile(r"[.!?:;]+|\n(?![ \t]*[a-z])")
_PERSON = "(?:user|customer|client|human|person|persona)(?:['’]s)?"
_PLAY = (
    r"(?:simulat(?:e|ing)|pretend|imagine|impersonat(?:e|ing)|act(?:ing)? as|play(?:ing)?|embody|"
    r"role-?play(?:ing)?|(?:take|assume|adopt)(?: on)? the role)"
)
_WRITE = "(?:write|generate|produce|compose|predict|output)"
_ANSWER = f"(?:{_WRITE}|respond|reply|answer|continue|speak)"
_TURN = "(?:message|turn|utterance|input|query|question|reply|response)"
_NEXT = "(?:next|first|opening|initial|following)"
_INSTRUCTIONS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^\W*you are (?:an? |the )?(?:simulated |real )?{_PERSON}\b",
        rf"\byou(?:r|['’]re)?\b.*\b{_PLAY}\b.*\b{_PERSON}\b",
        rf"^\W*(?:please |now ){{0,2}}{_PLAY}\b.*\b{_PERSON}",
        rf"\b{_ANSWER}\b.*\bas (?:the |an? |this )?(?:\w+ )?{_PERSON}\b",
        rf"\b{_ANSWER}\b.*\b{_NEXT}\b.*\b{_PERSON}\b",
        rf"\b{_WRITE}\b.*\b{_PERSON} (?:{_NEXT} )?{_TURN}\b",
        rf"\bwould (?:the |this )?{_PERSON} (?:say|write|ask|answer|reply|respond)\b",
    )
]
MAX_SENTENCE = 300
"""Characters; the patterns take time that grows with the square of it."""

MAX_OPENING = 200
"""Characters of an instruction to begin."""
_OPENING = re.compile(
    # Not "your first question", which an assistant may ask for.
    rf"\W*(?:please |now ){{0,2}}(?:{_WRITE}|create|give|send|say|ask|provide)"
    r" (?:me )?(?:an?|the|one)(?: \w+)? (?:first|initial|opening) (?:\w+ )?"
    r"(?:query|message|question|turn|utterance|input|prompt|request|line)\b[^?]*"
    r"|\W*(?:please |now ){0,2}(?:start|begin|open|initiate) (?:the|this)(?: \w+)?"
    rf" {_TALK}(?: now)?\W*",
    re.IGNORECASE,
)

_SIGNS = {
    "MLflow": re.compile(r"<last_response>|\brole-playing as a real user\b"),
    "deepeval": re.compile(r"\bsimulated_input\b"),
    "ADK": re.compile(r"</finished>|^# Conversation Plan\b", re.MULTILINE),
    "Giskard": re.compile(r"\bgoal_reached\b"),
    "Opik": re.compile(r"\A\s*System: .*\bpersona\b"),
}
"""What the prompts of harnesses with a bridge contain: names that their programs look for."""


def harness_of(prompt: str) -> str | None:
    """Return which harness sent a prompt; `None` if that is not known."""
    prompt = prompt[:MAX_CHECKED]
    return next((name for name, sign in _SIGNS.items() if sign.search(prompt)), None)


def is_prompt(text: str) -> bool:
    """Whether a text tells a model to play the user, or quotes a conversation."""
    text = text[:MAX_CHECKED]
    if _HISTORY.search(text) or _quoted_turns(text) >= 2:
        return True
    return any(map(_is_instruction, _SENTENCE_END.split(text)))


def asks_to_begin(text: str) -> bool:
    """Whether a text is an instruction to write the first message. Harnesses send it as the first
    turn, since a chat model wants one."""
    return len(text) <= MAX_OPENING and _OPENING.fullmatch(text) is not None


def quotes_conversation(system: str) -> bool:
    """Whether a system text quotes a conversation. Unlike `is_prompt`, this lets pass what a system
    text may have: instructions to play the user, a description of both sides, and examples."""
    system = system[:MAX_CHECKED]
    turns = _quoted_turns(system)
    if _HISTORY.search(system):
        return turns >= 2
    return turns >= 3 and not _EXAMPLE.search(system)


def _quoted_turns(text: str) -> int:
    """Return how many turns a text quotes; 0 unless they are of both sides."""
    turns = list(_QUOTED_TURN.finditer(text))
    if turns:
        return len(turns) + 1  # one is enough for two
    sides = list(_sides(_LABEL, text))
    inline = list(_sides(_INLINE_LABEL, text))
    if len(inline) > 2:
        sides += inline
    return len(sides) if len(set(sides)) == 2 else 0


def _sides(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """Yield whose turn each label of a text announces, `user` or `assistant`."""
    for match in pattern.finditer(text):
        name = match[1].lower().rstrip("_0123456789").removesuffix("message")
        if side := _SIDES.get(name):
            yield side


def _is_instruction(sentence: str) -> bool:
    """Whether a sentence tells a model to play the user or to write the user's turn."""
    sentence = " ".join(sentence[:MAX_SENTENCE].split())
    return any(pattern.search(sentence) for pattern in _INSTRUCTIONS)
