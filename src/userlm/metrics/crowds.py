"""Properties of the turns of a crowd of users, to set beside those of people.

None of them has a better side: simulated users are good where they are like people. The patterns
are of English, and read only the surface; they are the same for both crowds.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np

from userlm.metrics.intrinsic import (
    Conversations,
    OwnTurn,
    cluster_name,
    conversation_row,
    failure,
    own_turns,
    turn_rows,
)
from userlm.stats import (
    PERCENT,
    SIGNED_PERCENT,
    Array,
    Found,
    interval,
    measure,
)
from userlm.text import content_words, intent_goal, ngrams, stable_hash, words
from userlm.types import FAILED, Conversation, Measure

WINDOW = 50
"""Words in a window of MATTR (Covington and McFall, 2010)."""
DRAWS = 42
"""Words in a sample of HD-D (McCarthy and Jarvis, 2007)."""
RUN = 3
"""Words in a run that counts as repeated."""

THANKS = re.compile(r"\b(thanks|thank|thankyou|thx|cheers)\b")
_QUESTION = re.compile(
    r"\?(?=\W*(\s|\Z))|\A\W*(what|what's|whats|how|why|when|where|who|whom|whose|which)\b"
)
_REQUEST = re.compile(
    r"\A\W*((please|pls|ok|okay|now|then|and|also|so)\W+)*"
    r"(add|answer|change|check|compare|complete|continue|convert|correct|create|describe|do|"
    r"explain|find|fix|generate|give|help|improve|let|list|make|provide|recommend|remove|rewrite|"
    r"rephrase|show|solve|suggest|summarise|summarize|tell|translate|try|use|write)\b"
    r"|\bplease\b|\b(can|could|would|will) (you|u)\b"
    r"|\bi( want|'d like| would like| need|'m looking| am looking)\b"
)
_CORRECTION = re.compile(
    r"\A\W*(no|nope|wrong|incorrect|not)\b|\bi (meant|mean|said|asked)\b|\bnot what i\b"
    r"|\b(that|this|it)('s| is) (not|wrong|incorrect)\b|\bisn't (right|correct|what)\b"
    r"|\byou (forgot|missed|misunderstood|didn't|did not|are wrong|made a mistake)\b"
    r"|\b(does|did|do)(n't| not) work\b|\b(actually|instead)\b|\btry again\b"
)
_END_MARK = re.compile(r"[.?!…。？！][\"'”’)\]*]*\s*\Z")

# --- shares of turns ------------------------------------------------------------------------------


def questions(conversations: Conversations) -> Measure:
    """Return the share of turns with a question mark, or that begin with a question word."""
    return _matching(conversations, _QUESTION)


def requests(conversations: Conversations) -> Measure:
    """Return the share of turns that ask for something: "please", "can you", "I want", or a first
    word such as "write"."""
    return _matching(conversations, _REQUEST)


def thanks(conversations: Conversations) -> Measure:
    """Return the share of turns that thank."""
    return _matching(conversations, THANKS)


def corrections(conversations: Conversations) -> Measure:
    """Return the share of turns after an answer that correct it: "no", "I meant", "try again"."""

    def corrects(turn: OwnTurn) -> bool | str:
        if not turn.k:
            return "no answer before the first turn"
        return bool(_CORRECTION.search(_plain(turn.text)))

    return _share(conversations, corrects)


def lower_case_start(conversations: Conversations) -> Measure:
    """Return the share of turns whose first letter is small."""

    def starts_small(turn: OwnTurn) -> bool | str:
        for character in turn.text:
            if character.islower() or character.isupper():
                return character.islower()
        return "no letters that have a case"

    return _share(conversations, starts_small)


def all_lower_case(conversations: Conversations) -> Measure:
    """Return the share of turns without a capital letter."""

    def is_small(turn: OwnTurn) -> bool | str:
        if turn.text.lower() == turn.text.upper():
            return "no letters that have a case"
        return turn.text.islower()

    return _share(conversations, is_small)


def end_punctuation(conversations: Conversations) -> Measure:
    """Return the share of turns whose last character ends a sentence."""
    return _share(conversations, lambda turn: bool(_END_MARK.search(turn.text)))


def _matching(conversations: Conversations, pattern: re.Pattern[str]) -> Measure:
    return _share(conversations, lambda turn: bool(pattern.search(_plain(turn.text))))


def _share(
    conversations: Conversations, has: Callable[[OwnTurn], bool | str]
) -> Measure:
    """Return the share of turns that have a property; `has` may return why that is not known."""

    def stats(turn: OwnTurn) -> Found:
        found = has(turn)
        return found if isinstance(found, str) else (float(found), 1.0)

    return measure(turn_rows(conversations, stats), PERCENT)


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")


# --- what a turn takes up -------------------------------------------------------------------------


def reaction(conversations: Conversations) -> Measure:
    """Return how much more a turn shares with the answer before it than with the answers in other
    conversations at the same place: 100 x the mean over turns of |A & U| / |U| less the mean of
    |B & U| / |U| over all B.

    U, A and B are the sets of content words of the turn, of the answer before it, and of another
    cluster's answer before the turn of the same number. Users who do not read what they answer to
    have about 0.
    """
    in_all: dict[int, Counter[str]] = defaultdict(Counter)
    in_own: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    answers: Counter[int | tuple[str, int]] = Counter()
    kept = list(conversations)
    for conversation in kept:
        cluster = cluster_name(conversation)
        for turn in own_turns(conversation):
            if answer := _answer(turn):
                in_all[turn.k].update(answer)
                in_own[cluster, turn.k].update(answer)
                answers.update([turn.k, (cluster, turn.k)])

    def stats(turn: OwnTurn) -> Found:
        said = set(content_words(turn.text))
        answer = _answer(turn)
        own = cluster_name(turn.conversation), turn.k
        others = answers[turn.k] - answers[own]
        if not turn.k:
            return "no answer before the first turn"
        if not said or not answer:
            return "no content words in the turn or in the answer"
        if not others:
            return "no other person's answer at this place to compare with"
        common = sum(in_all[turn.k][word] - in_own[own][word] for word in said)
        return (len(said & answer) - common / others) / len(said), 1.0

    return measure(turn_rows(kept, stats), SIGNED_PERCENT)


def _answer(turn: OwnTurn) -> set[str]:
    """Return the content words of the answer before a turn; none before the first."""
    return set(content_words(turn.before[-1].text)) if turn.k and turn.before else set()


def verbatim_intent(conversations: Conversations) -> Measure:
    """Return the share of a turn's runs of three words that the intent has too. The beginning and
    the end of turn and intent count as words, so the intent word by word has 100."""

    def stats(turn: OwnTurn) -> Found:
        if turn.conversation.intent is None:
            return "no intent"
        intent = _runs(intent_goal(turn.conversation.intent))
        return _repeated(_runs(intent_goal(turn.text)), intent)

    return measure(turn_rows(conversations, stats), PERCENT)


def self_repetition(conversations: Conversations) -> Measure:
    """Return the share of a turn's runs of three words that an earlier user turn of the
    conversation has too, counted as in `verbatim_intent`: a turn said again has 100."""

    def stats(turn: OwnTurn) -> Found:
        if not turn.k:
            return "no turn before the first"
        earlier: set[tuple[str, ...]] = set()
        for before in turn.before:
            if before.role == "user":
                earlier |= _runs(before.text)
        if not earlier:
            return "no words in the turns before"
        return _repeated(_runs(turn.text), earlier)

    return measure(turn_rows(conversations, stats), PERCENT)


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs of three words of a text, with its two ends as words."""
    return set(ngrams(["", *words(text), ""], RUN))


def _repeated(said: set[tuple[str, ...]], known: set[tuple[str, ...]]) -> Found:
    if not said:
        return "no words in the turn"
    return len(said & known) / len(said), 1.0


# --- the vocabulary -------------------------------------------------------------------------------


def out_of_vocabulary(
    conversations: Conversations, reference: Conversations
) -> Measure:
    """Return the share of a turn's words that people do not use: 100 x the mean over turns.

    People use a word if somebody in one half of the human reference says it. A person of the
    reference, and a user simulated for that person, is measured with the other half, so both have
    the same chance. Words with digits do not count.
    """
    people = list(reference)
    half_of = halves(map(cluster_name, people))
    vocabulary: tuple[set[str], set[str]] = (set(), set())
    for person in people:
        for turn in own_turns(person):
            vocabulary[half_of[cluster_name(person)]].update(words(turn.text))

    def stats(turn: OwnTurn) -> Found:
        cluster = cluster_name(turn.conversation)
        known = vocabulary[1 - half_of.get(cluster, stable_hash(cluster) % 2)]
        said = [word for word in words(turn.text) if not _has_digit(word)]
        if not said:
            return "no words in the turn"
        if not known:
            return "no other person in the human reference"
        return sum(word not in known for word in said) / len(said), 1.0

    return measure(turn_rows(conversations, stats), PERCENT)


def halves(clusters: Iterable[str], salt: str = "") -> dict[str, int]:
    """Return for each cluster one of two halves, 0 or 1, of equal size: the same in every process;
    another salt divides them independently."""
    ordered = sorted(set(clusters), key=lambda one: (stable_hash(salt, one), one))
    return {cluster: place % 2 for place, cluster in enumerate(ordered)}


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


def mattr(conversations: Conversations) -> Measure:
    """Return the moving-average type-token ratio in percent: the mean share of different words in
    all windows of `WINDOW` words (Covington and McFall, 2010).

    The windows run over the turns of all conversations in the order of their ids; each belongs to
    the conversation that it starts in.
    """
    kept = sorted(conversations, key=lambda conversation: conversation.id)
    said = [_own_words(conversation) for conversation in kept]
    ratios = _type_token_ratios([word for own in said for word in own])
    rows = []
    start = 0
    for conversation, own in zip(kept, said, strict=True):
        found = ratios[start : start + len(own)]
        start += len(own)
        if len(found):
            rows.append(
                conversation_row(conversation, (float(found.sum()), float(len(found))))
            )
        elif own:
            why = f"no window of {WINDOW} words starts here"
            rows.append(conversation_row(conversation, why))
        elif conversation.stop in FAILED:
            rows.append(conversation_row(conversation, failure(conversation)))
    return measure(rows, PERCENT)


def _type_token_ratios(said: Sequence[str]) -> Array:
    """Return the share of different words in each window."""
    counts = Counter(said[:WINDOW])
    types = [len(counts)] if len(said) >= WINDOW else []
    for leaving, entering in zip(said, said[WINDOW:], strict=False):
        counts[leaving] -= 1
        if not counts[leaving]:
            del counts[leaving]
        counts[entering] += 1
        types.append(len(counts))
    return np.array(types, dtype=float) / WINDOW


def hd_d(conversations: Conversations) -> Measure:
    """Return HD-D in percent: the expected share of different words in `DRAWS` words drawn without
    replacement from all turns (McCarthy and Jarvis, 2007).

    A row's stats are the words and the different words of a conversation; a cluster is left out by
    its words.
    """
    rows = []
    counts: Counter[str] = Counter()
    counts_of: dict[str, Counter[str]] = defaultdict(Counter)
    for conversation in conversations:
        own = Counter(_own_words(conversation))
        if own:
            found: Found = (float(own.total()), float(len(own)))
            rows.append(conversation_row(conversation, found))
            counts.update(own)
            counts_of[cluster_name(conversation)].update(own)
        elif conversation.stop in FAILED:
            rows.append(conversation_row(conversation, failure(conversation)))
    if counts.total() < DRAWS:
        why = f"fewer than {DRAWS} words in all turns" if counts else ""
        return Measure("", None, None, None, tuple(rows), why=why)
    value, *left_out = _expected_types(counts, counts_of.values())
    low, high = interval(value, left_out, 0, 100)
    return Measure("", value, low, high, tuple(rows))


def _expected_types(
    counts: Counter[str], clusters: Iterable[Counter[str]]
) -> list[float]:
    """Return HD-D of all words, and without those of each cluster; not a number if too few are
    left."""
    sizes = np.bincount(list(counts.values()))  # how many words occur so often
    left_out = [Counter[str](), *clusters]
    found = [np.nan] * len(left_out)
    totals = [own.total() for own in left_out]
    # Clusters with the same number of words have the same chances, so these are computed once.
    for total, places in groupby(np.argsort(totals), totals.__getitem__):
        left = counts.total() - total
        if left < DRAWS:
            continue
        chances = _chances(left, len(sizes) - 1)
        drawn = chances.tolist()  # whose items are read faster
        of_all = float((sizes * chances).sum())
        for place in places:
            expected = of_all
            for word, count in left_out[place].items():
                expected += drawn[counts[word] - count] - drawn[counts[word]]
            found[place] = 100 * expected / DRAWS
    return found


def _chances(total: int, most: int) -> Array:
    """Return the probability that a word is among `DRAWS` of `total` words, for a word that occurs
    0 to `most` times."""
    others = np.arange(total, total - most, -1)
    missed = np.cumprod(np.maximum(others - DRAWS, 0) / np.maximum(others, 1))
    return np.concatenate([[0.0], 1 - missed])


def _own_words(conversation: Conversation) -> list[str]:
    return [word for turn in own_turns(conversation) for word in words(turn.text)]
