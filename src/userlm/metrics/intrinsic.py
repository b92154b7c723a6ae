"""What the user's own words and endings look like, beside nothing but the conversations themselves.

All of it applies to logs (the human row), to whole simulations and to the answers that
`simulate.respond` gives on real prefixes. Of an answer only what was added counts; the turns before
it are a person's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from userlm.stats import Array, auroc, f1_percent, jackknife, measure, percent, ratio
from userlm.text import content_words, intent_goal, words
from userlm.types import FAILED, Conversation, Measure, MeasureRow

# --- first turns ----------------------------------------------------------------------------------


def first_turn_diversity(conversations: Iterable[Conversation]) -> Measure:
    """How different the first turns are: 100 x the mean of 1 - |A & B| / |A | B| over all pairs of
    turns.

    A and B are the sets of lower-cased words of two turns, stop words kept (section 5.1 of the
    notes on the paper). A row's stats are (mean distance to all other first turns, 1). The interval
    is the jackknife over people or intents: a bootstrap would pair a turn with its own copy. Time
    grows with the square of the number of turns, memory does not.
    """
    keys, clusters, sets = [], [], []
    rows: list[MeasureRow] = []
    for conversation in conversations:
        if conversation.first_own_turn():
            continue  # an answer on a real prefix: its first turn is a person's
        first = next(iter(conversation.user_turns), None)
        types = sorted(set(words(first))) if first is not None else []
        if types:
            keys.append(conversation.id)
            clusters.append(_cluster(conversation))
            sets.append(types)
        else:
            why = "no words in the first turn" if first is not None else _silence(conversation)
            rows.append(MeasureRow(conversation.id, _cluster(conversation), None, why))
    if len(sets) == 1:
        rows.append(MeasureRow(keys[0], clusters[0], None, "no other first turn to compare with"))
        sets = []
    names = {name: i for i, name in enumerate(sorted(set(clusters)))}
    cluster_of = np.array([names[name] for name in clusters], dtype=np.intp)
    to_all, to_own = _distances(sets, cluster_of)
    rows += [
        MeasureRow(key, cluster, (float(total) / (len(sets) - 1), 1.0))
        for key, cluster, total in zip(keys, clusters, to_all, strict=False)
    ]
    found = measure("first-turn diversity", rows, percent, better="higher", unit="%", resamples=1)
    if not sets:
        return replace(found, low=None, high=None)

    # Leave a cluster out: its distances to everybody go. Those inside it are in that sum twice.
    count = np.bincount(cluster_of)
    left = to_all.sum() / 2 - np.bincount(cluster_of, to_all) + np.bincount(cluster_of, to_own) / 2
    others = len(sets) - count
    return _jackknifed(found, 100 * left, others * (others - 1) / 2, ceiling=100)


def _distances(sets: Sequence[Sequence[str]], cluster_of: NDArray[np.intp]) -> tuple[Array, Array]:
    """For each set the sum of its Jaccard distances to all others, and to those of its own
    cluster."""
    holders: dict[str, list[int]] = defaultdict(list)
    for i, types in enumerate(sets):
        for word in types:
            holders[word].append(i)
    postings = {word: np.array(items, dtype=np.intp) for word, items in holders.items()}
    sizes = np.array([len(types) for types in sets], dtype=np.float64)
    to_all, to_own = np.zeros(len(sets)), np.zeros(len(sets))
    for i, types in enumerate(sets):
        common = np.bincount(
            np.concatenate([postings[word] for word in types]), minlength=len(sets)
        )
        distance = 1 - common / (sizes[i] + sizes - common)  # 0 to itself
        to_all[i] = distance.sum()
        to_own[i] = distance[cluster_of == cluster_of[i]].sum()
    return to_all, to_own


# --- the intent in the turns ----------------------------------------------------------------------

Overlap = Callable[[list[str], list[str]], float]
"""From the content words of an intent and of a turn to a number."""


def intent_decomposition(conversations: Iterable[Conversation]) -> Measure:
    """How much of what a user says is the intent's own wording: 100 x the mean of |I & U| / |U|
    over turns.

    I and U are the sets of content words of the intent, its fixed opening left off, and of one user
    turn (section 5.2 of the notes on the paper, variant a). Lower is better: the intent is told in
    own words and bit by bit. Turns without content words cannot be measured.
    """
    return _decomposition(
        conversations, "intent decomposition", lambda i, u: _common(i, u) / len(set(u)), "%"
    )


def intent_decomposition_variants(conversations: Iterable[Conversation]) -> list[Measure]:
    """The other readings of that definition (section 5.2, b to f), to find the paper's by the human
    row.

    In order: the share of the intent |I & U| / |I|, Jaccard |I & U| / |I | U|, the number of common
    types, the number of the turn's tokens that the intent holds, and the main one on second and
    later turns alone.
    """
    kept = list(conversations)
    name = "intent decomposition"
    return [
        _decomposition(
            kept, f"{name}: share of intent", lambda i, u: _common(i, u) / len(set(i)), "%"
        ),
        _decomposition(kept, f"{name}: Jaccard", lambda i, u: _common(i, u) / len({*i, *u}), "%"),
        _decomposition(kept, f"{name}: types", _common, "words"),
        _decomposition(kept, f"{name}: tokens", lambda i, u: sum(word in i for word in u), "words"),
        _decomposition(
            kept, f"{name}: later turns", lambda i, u: _common(i, u) / len(set(u)), "%", first_k=1
        ),
    ]


def _decomposition(
    conversations: Iterable[Conversation], name: str, overlap: Overlap, unit: str, first_k: int = 0
) -> Measure:
    def stats(conversation: Conversation, text: str) -> tuple[float, ...] | str:
        if conversation.intent is None:
            return "no intent"
        intent, turn = content_words(intent_goal(conversation.intent)), content_words(text)
        if not intent or not turn:
            return f"no content words in the {'turn' if intent else 'intent'}"
        return overlap(intent, turn), 1.0

    rows = _turn_rows(conversations, stats, first_k)
    return measure(name, rows, percent if unit == "%" else ratio, better="lower", unit=unit)


def _common(intent: list[str], turn: list[str]) -> float:
    return float(len({*intent} & {*turn}))


# --- the ending -----------------------------------------------------------------------------------


def termination(responses: Iterable[Conversation]) -> Measure:
    """F1, in percent, of leaving at the right time: 2TP / (2TP + FP + FN), leaving being the
    positive.

    Args:
        responses: what `simulate.respond` made of the prefixes of samples. A first turn (k = 0)
            cannot be an ending and is not a row (section 5.3). No answer at all (`FAILED`) cannot
            be measured.

    A row's stats are (TP, FP, FN).
    """
    rows = []
    for key, cluster, response, why in _answers(responses):
        if why:
            rows.append(MeasureRow(key, cluster, None, why))
            continue
        leaves, left = response.stop == "end", _person_ended(response)
        rows.append(
            MeasureRow(
                key,
                cluster,
                (float(leaves and left), float(leaves and not left), float(left and not leaves)),
            )
        )
    return measure("termination F1", rows, f1_percent, better="higher", unit="%")


def termination_auroc(responses: Iterable[Conversation]) -> Measure:
    """How well P(end) tells real endings from other turns: the area under the ROC curve, 0 to 1.

    P(end) is the user's own, `meta["p_end"]` of its reply; a user that gives none cannot be
    measured. The rows are those of `termination`, their stats (P(end), 1 if the person left else
    0). The interval is the jackknife over people, because the measure is over pairs.
    """
    rows = []
    for key, cluster, response, why in _answers(responses):
        said_it = len(response.user_turns) > response.first_own_turn()
        reply = response.turns[-1].meta if said_it else response.meta.get("end_meta", {})
        p_end = reply.get("p_end")
        if why or p_end is None:
            rows.append(MeasureRow(key, cluster, None, why or "no P(end)"))
        else:
            rows.append(MeasureRow(key, cluster, (float(p_end), float(_person_ended(response)))))
    pairs = [(row.cluster, row.stats[0], row.stats[1]) for row in rows if row.stats]
    value = auroc([p for _, p, left in pairs if left], [p for _, p, left in pairs if not left])
    found = Measure("termination AUROC", value, None, None, tuple(rows), "higher")
    if value is None:
        return found

    names = {name: i for i, name in enumerate(sorted({name for name, _, _ in pairs}))}
    cluster_of = np.array([names[name] for name, _, _ in pairs])
    scores, ended = (
        np.array([p for _, p, _ in pairs]),
        np.array([bool(left) for _, _, left in pairs]),
    )
    positive, negative = np.bincount(cluster_of, ended), np.bincount(cluster_of, ~ended)
    wins = np.zeros(len(scores))  # of each item against all of the other kind; ties are half
    wins[ended] = _wins(scores[ended], scores[~ended])
    wins[~ended] = ended.sum() - _wins(scores[~ended], scores[ended])
    inside = np.zeros(len(names))  # pairs within one cluster are in both sums
    members: dict[int, list[int]] = defaultdict(list)
    for i, cluster in enumerate(cluster_of):
        members[int(cluster)].append(i)
    for c, items in members.items():
        inside[c] = _wins(scores[items][ended[items]], scores[items][~ended[items]]).sum()
    truncated_tokens = wins[ended].sum() - np.bincount(cluster_of, wins) + inside
    return _jackknifed(
        found, truncated_tokens, (ended.sum() - positive) * ((~ended).sum() - negative), ceiling=1
    )


def _wins(scores: Array, against: Array) -> Array:
    """How many of `against` each score beats, ties counting half."""
    ordered = np.sort(against)
    below, not_above = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return np.asarray((below + not_above) / 2)


def _answers(responses: Iterable[Conversation]) -> Iterator[tuple[str, str, Conversation, str]]:
    """Key, cluster, the answer, and why it cannot be measured if so; without those to k = 0."""
    for response in responses:
        origin = response.origin
        if origin is None or origin.person_ended is None:
            why = "not an answer on the prefix of a sample"
            yield response.id, _cluster(response), response, why
        elif origin.first_own_turn > 0:
            why = _failure(response) if response.stop in FAILED else ""
            yield response.id, response.user or str(origin.conversation), response, why


def _person_ended(response: Conversation) -> bool:
    return response.origin is not None and response.origin.person_ended is True


# --- plain counts ---------------------------------------------------------------------------------


def words_per_turn(conversations: Iterable[Conversation]) -> Measure:
    """Mean length of the user's turns, in words."""
    rows = _turn_rows(conversations, lambda _, text: (float(len(words(text))), 1.0))
    return measure("words per turn", rows, ratio, unit="words")


def turns_per_conversation(conversations: Iterable[Conversation]) -> Measure:
    """Mean number of user turns in a conversation.

    One that failed has no known length. One that came to the cap (`max_turns`) counts with the cap,
    so the figure of a simulation is only as long as it was allowed to be.
    """
    rows = []
    for conversation in conversations:
        why = _failure(conversation) if conversation.stop in FAILED else ""
        origin = conversation.origin
        if origin and (origin.person_ended is not None or origin.first_own_turn):
            why = "an answer on a prefix, not a conversation of its own"
        stats = None if why else (float(len(conversation.user_turns)), 1.0)
        rows.append(MeasureRow(conversation.id, _cluster(conversation), stats, why))
    return measure("turns per conversation", rows, ratio, unit="turns")


# --- shared ---------------------------------------------------------------------------------------


def _turn_rows(
    conversations: Iterable[Conversation],
    stats: Callable[[Conversation, str], tuple[float, ...] | str],
    first_k: int = 0,
) -> list[MeasureRow]:
    """A row for each turn of the user's own from the `first_k`-th on; `stats` gives them, or why
    not.

    A conversation that failed before it has one is a missing row; a user who leaves at once has no
    turns.
    """
    rows = []
    for conversation in conversations:
        cluster, start = _cluster(conversation), conversation.first_own_turn()
        own = conversation.user_turns
        if len(conversation.turns) >= 2 * start:  # else the prefix was taken off already
            own = own[start:]
        for k, text in enumerate(own, start):
            if k >= first_k:
                found = stats(conversation, text)
                measured, why = (None, found) if isinstance(found, str) else (found, "")
                rows.append(MeasureRow(f"{conversation.id}/{k}", cluster, measured, why))
        if not own and conversation.stop in FAILED and start >= first_k:
            rows.append(MeasureRow(conversation.id, cluster, None, _failure(conversation)))
    return rows


def _cluster(conversation: Conversation) -> str:
    """The person, else the intent, else the conversation (the log that it starts from)."""
    origin = conversation.origin
    started_from = origin.conversation if origin else None
    return conversation.user or conversation.intent or started_from or conversation.id


def _failure(conversation: Conversation) -> str:
    error = conversation.meta.get("error")
    return f"{conversation.stop}: {error}" if error else str(conversation.stop)


def _silence(conversation: Conversation) -> str:
    return f"no user turn ({_failure(conversation)})" if conversation.stop else "no user turn"


def _jackknifed(found: Measure, left: Array, pairs: Array, ceiling: float) -> Measure:
    """The measure with its jackknife interval, cut to what it can be; `left / pairs` leaves
    clusters out."""
    if found.value is None or len(left) < 2 or not pairs.all():
        return replace(found, low=None, high=None)
    low, high = jackknife(found.value, (left / pairs).tolist())
    return replace(found, low=max(low, 0.0), high=min(high, ceiling))
