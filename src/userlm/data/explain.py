"""Why one conversation is kept or dropped, and what each step of `userlm clean` found, for
`--explain ID`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from userlm.data import filters
from userlm.data.filters import Rules
from userlm.data.language import language
from userlm.data.ngrams import own_ngrams
from userlm.data.split import person, person_hash, split
from userlm.types import Conversation, InputError

Finding = tuple[str, str, str]
"""A step, its verdict (`kept`, `dropped`, `off`, or a split), and the reason."""

Read = Callable[[str], Iterator[Conversation]]
"""Returns all conversations each time it is called; the argument says what they are read for, for
the progress bar."""

_MAX_IDS = 100_000  # limit of the ids to search for similar ones


def explain(id: str, read: Read, rules: Rules) -> list[Finding]:
    """Return what each step says about one conversation, as if the earlier steps had kept it (but
    duplicates are only searched among conversations that are kept).

    Raises:
        InputError: no conversation has this id.
    """
    index, conversation = _find(id, read)
    code = language(conversation)
    findings = []
    for each in filters.FILTERS:
        if each is filters.TEMPLATE:
            dropped, why = _template(conversation, read, rules)
        elif each in (filters.EXACT, filters.NEAR):
            if not each.is_on(rules):
                continue
            dropped, why = _duplicate(index, read, rules)
        else:
            dropped = bool(
                each.reason and each.reason(conversation, code, rules) is not None
            )
            why = each.about
            if each.evidence:
                why = each.evidence(conversation, code, rules)
        verdict = "dropped" if dropped else "kept"
        findings.append((each.name, verdict if each.is_on(rules) else "off", why))
    where, why = _split(conversation, rules)
    if any(verdict == "dropped" for _, verdict, _ in findings):
        where, why = "none", f"it is dropped; otherwise {where}: {why}"
    return [*findings, ("split", where, why)]


def _find(id: str, read: Read) -> tuple[int, Conversation]:
    """Return the conversation and its index."""
    others: list[str] = []
    for index, conversation in enumerate(read("looking for it")):
        if conversation.id == id:
            return index, conversation
        if index < _MAX_IDS:
            others.append(conversation.id)
    near = get_close_matches(id, others, 3, 0.5) or others[:3]
    known = ", ".join(map(repr, near))
    raise InputError(f"no conversation has the id {id!r}; there are {known} and others")


def _template(conversation: Conversation, read: Read, rules: Rules) -> tuple[bool, str]:
    """Return whether it is a template, as if no other filter dropped it, and why."""
    n, limit = rules.ngram, rules.template_limit
    own = own_ngrams(conversation, n)
    if not own:
        return False, f"its first turn has fewer than {n} words"
    counts: Counter[int] = Counter()
    if rules.reason(conversation, language(conversation)):
        counts.update(own)  # it is not among the counted conversations
    wanted = set(own)
    for other in read("counting its n-grams"):
        if rules.reason(other, language(other)) is None:
            counts.update(key for key in own_ngrams(other, n) if key in wanted)
    text, count = filters.template(conversation, counts, n) or ("", 0)
    times = "time" if count == 1 else "times"
    why = (
        f"its most frequent {n}-gram occurs {count:,} {times} in first turns: {text!r}"
    )
    if limit is None:
        return False, why
    return count > limit, f"{why}; the limit is {limit:,}"


def _duplicate(index: int, read: Read, rules: Rules) -> tuple[bool, str]:
    """Return whether it repeats a conversation that is kept, and why."""
    with TemporaryDirectory() as folder:
        conversations = read("looking for duplicates")
        decisions = filters.decide(conversations, rules, Path(folder) / "ngrams")
    if index in decisions.copies:
        original = decisions.copies[index]
        return True, f"the user says the same as in {original!r}, which is kept"
    if decisions.reasons[index] is not None:
        return False, "not checked: an earlier step drops it"
    return False, "no kept conversation is the same"


def _split(conversation: Conversation, rules: Rules) -> tuple[str, str]:
    name = person(conversation)
    whose = "the user"
    if conversation.user is None:
        whose = "its tree of replies, or the conversation of which it is a piece,"
        if name == conversation.id:
            whose = "itself (its user is not named)"
    position = person_hash(conversation, rules.seed) / 2**64
    settings = f"shares {rules.shares}, seed {rules.seed}"
    why = f"{whose} {name!r} has position {position:.3f} ({settings})"
    return split(conversation, rules.seed, rules.shares), why
