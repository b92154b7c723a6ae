"""Why one conversation stays or goes, with what each step of `userlm clean` rests on. `--explain
ID` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from userlm.data import clean
from userlm.types import Conversation, InputError

Finding = tuple[str, str, str]
"""A step, what it says (`stays`, `goes`, `off`, or a split), and why."""


def explain(
    id: str, read: Callable[[str], Iterator[Conversation]], rules: clean.Rules
) -> list[Finding]:
    """What each step says about one conversation, as if the steps before had kept it (but for
    duplicates, which are sought among those that stay).

    Args:
        read: gives all conversations, each time that it is called; it is told what for.

    Raises:
        InputError: no conversation has this id.
    """
    it = _find(id, read)
    code = clean.language(it)
    label = it.meta.get("language")
    labelled = isinstance(label, str) and label.strip()
    by = f"its log says {label!r}" if labelled else "by py3langid, from the user turns"
    wanted = "all are kept" if rules.languages is None else f"kept: {', '.join(rules.languages)}"
    findings = [
        _finding("language", clean.foreign(code, rules.languages), f"{code}, {by}; {wanted}")
    ]
    flags = {
        name: it.meta[name] for name in ("toxic", "toxic_source", "redacted") if name in it.meta
    }
    said = (
        ", ".join(f"{name}: {value}" for name, value in flags.items())
        or "its log says nothing of it"
    )
    findings.append(_finding("flagged", clean.flagged(it), said, off=rules.flagged))
    findings.append(_template(it, read, rules))
    findings.append(_duplicate(it, read, rules))
    name = clean.person(it)
    draw = clean.draw(it, rules.seed) / 2**64
    known = "the user"
    if it.user is None:
        known = "itself, since nobody is named," if name == it.id else "its tree of replies"
    why = f"the draw of {known} {name!r} is {draw:.3f} (shares {rules.shares}, seed {rules.seed})"
    where: str = clean.split(it, rules.seed, rules.shares)
    if any(verdict == "goes" for _, verdict, _ in findings):
        where, why = "none", f"it goes; else {where}: {why}"
    return [*findings, ("split", where, why)]


def _find(id: str, read: Callable[[str], Iterator[Conversation]]) -> Conversation:
    others: list[str] = []
    for conversation in read("looking for it"):
        if conversation.id == id:
            return conversation
        if len(others) < 100_000:
            others.append(conversation.id)
    near = get_close_matches(id, others, 3, 0.5) or others[:3]
    raise InputError(
        f"no conversation has the id {id!r}; there are {', '.join(map(repr, near))} and others"
    )


def _finding(step: str, reason: str | None, why: str, off: bool = False) -> Finding:
    return step, "off" if off else "stays" if reason is None else "goes", why


def _fit(conversations: Iterable[Conversation], rules: clean.Rules) -> Iterator[Conversation]:
    return (c for c in conversations if rules.unfit(c, clean.language(c)) is None)


def _template(
    it: Conversation, read: Callable[[str], Iterator[Conversation]], rules: clean.Rules
) -> Finding:
    own = set(clean.own_ngrams(it, rules.ngram))
    if not own:
        return _finding("template", None, f"its first turn has fewer than {rules.ngram} words")
    counts: Counter[int] = Counter()
    if rules.unfit(it, clean.language(it)):
        counts.update(clean.own_ngrams(it, rules.ngram))
    for conversation in _fit(read("counting its n-grams"), rules):
        counts.update(key for key in clean.own_ngrams(conversation, rules.ngram) if key in own)
    text, count = clean.template(it, counts, rules.ngram) or ("", 0)
    limit, times = rules.template_limit, "time" if count == 1 else "times"
    why = f"its most frequent {rules.ngram}-gram occurs {count:,} {times} in first turns: {text!r}"
    if limit is None:
        return _finding("template", None, why, off=True)
    return _finding(
        "template", "template" if count > limit else None, f"{why}; the limit is {limit:,}"
    )


def _duplicate(
    it: Conversation, read: Callable[[str], Iterator[Conversation]], rules: clean.Rules
) -> Finding:
    if rules.duplicates == "keep":
        return _finding("duplicate", None, "duplicates are kept", off=True)
    ids: list[str] = []

    def noted() -> Iterator[Conversation]:
        for conversation in read("looking for duplicates"):
            ids.append(conversation.id)
            yield conversation

    with TemporaryDirectory() as folder:
        decisions = clean.decide(noted(), rules, Path(folder) / "ngrams")
    i = ids.index(it.id)
    copy_of = decisions.copies.get(i)
    if copy_of is None:
        goes_before = decisions.reasons[i] is not None
        why = "not asked: it goes before" if goes_before else "nothing that stays says the same"
        return _finding("duplicate", None, f"{why} ({rules.duplicates})", off=goes_before)
    return _finding(
        "duplicate", "duplicate", f"says the same as {copy_of!r}, which stays ({rules.duplicates})"
    )
