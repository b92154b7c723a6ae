"""Measures of the user's turns and ends that need only the conversations.

They apply to logs (the human reference), to simulations, and to responses: what `simulate.respond`
adds to real prefixes. Only the added turn of a response counts, since a person wrote the turns
before it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from userlm.stats import (
    F1,
    MEAN,
    PERCENT,
    SIGNED_PERCENT,
    Array,
    Estimate,
    Found,
    auroc_estimate,
    measure,
    measure_row,
    numbered,
    pair_estimate,
)
from userlm.text import content_words, intent_goal, words
from userlm.types import FAILED, Conversation, Measure, MeasureRow, Turn

Conversations = Iterable[Conversation]

FREQUENT = 64
"""How many words are compared in all pairs of first turns."""
CELLS = 1 << 17
"""Pairs that are compared at once."""

NO_END = "the person ended at no answer"
EVERY_END = "the person ended at every answer"

# --- first turns ----------------------------------------------------------------------------------


def first_turn_diversity(conversations: Conversations) -> Measure:
    """Return 100 x the mean of 1 - |A & B| / |A | B| over all pairs of first turns.

    A and B are the sets of lower-cased words of two turns, stop words kept (section 5.1 of the
    notes on the paper). A row's stats are (mean distance to all other first turns, 1). The interval
    is over people or intents. Time, but not memory, grows with the square of the number of turns.
    """
    rows: list[MeasureRow] = []
    kept: list[Conversation] = []
    word_sets: list[set[str]] = []
    for conversation in conversations:
        if conversation.first_own_turn:
            continue  # a response to a later prefix: a person wrote its first turn
        word_set = _first_words(conversation)
        if isinstance(word_set, str):
            rows.append(conversation_row(conversation, word_set))
        else:
            kept.append(conversation)
            word_sets.append(word_set)
    if len(kept) == 1:
        rows.append(conversation_row(kept.pop(), "no other first turn to compare with"))
        word_sets.clear()

    if not kept:
        return measure(rows, PERCENT)
    clusters = [cluster_name(conversation) for conversation in kept]
    to_all, estimated = diversity_estimate(word_sets, clusters)
    others = len(kept) - 1
    for conversation, total in zip(kept, to_all, strict=True):
        rows.append(conversation_row(conversation, (float(total) / others, 1.0)))
    value, low, high, _ = estimated
    return Measure("", value, low, high, tuple(rows))


def diversity_estimate(
    word_sets: Sequence[set[str]], clusters: Sequence[str]
) -> tuple[Array, Estimate]:
    """Return for each set the sum of its Jaccard distances to all others, and their mean in percent
    with its interval over clusters."""
    names, cluster_of = numbered(clusters)
    to_all = jaccard_distances(word_sets)
    members: list[list[set[str]]] = [[] for _ in names]
    for word_set, cluster in zip(word_sets, cluster_of, strict=True):
        members[cluster].append(word_set)
    # The sums count each pair twice.
    inside = np.array([jaccard_distances(own).sum() / 2 for own in members])
    sets = len(word_sets)
    left = sets - np.bincount(cluster_of, minlength=len(names))
    pairs = np.array([sets * (sets - 1), *(left * (left - 1))]) / 2
    return to_all, pair_estimate(to_all, inside, cluster_of, pairs, most=100)


def _first_words(conversation: Conversation) -> set[str] | str:
    """Return the set of words of the first user turn, or the reason why there are none."""
    if conversation.user_turns:
        return set(words(conversation.user_turns[0])) or "no words in the first turn"
    if conversation.stop:
        return f"no user turn ({failure(conversation)})"
    return "no user turn"


def jaccard_distances(word_sets: Sequence[set[str]]) -> Array:
    """Return for each set the sum of its Jaccard distances to all others."""
    total = np.full(len(word_sets), len(word_sets) - 1.0)
    if len(word_sets) < 2:
        return total
    sizes = np.array([float(len(word_set)) for word_set in word_sets])
    for start, common in _common_words(word_sets):
        stop = start + len(common)
        similarity = common / (sizes[start:stop, None] + sizes[start:] - common)
        # A pair inside the block counts once, and none with itself.
        similarity[:, : len(common)] = np.triu(similarity[:, : len(common)], 1)
        total[start:stop] -= similarity.sum(axis=1)
        total[start:] -= similarity.sum(axis=0)
    return total


def _common_words(word_sets: Sequence[set[str]]) -> Iterator[tuple[int, Array]]:
    """Yield how many words sets have in common, in blocks: the number of the block's first set, and
    a row for each set of the block, with a column for the first one and each after it.

    Frequent words are counted by a product of matrices. For the others an index maps each word to
    the sets that have it, so that only shared words cost time.
    """
    sets = len(word_sets)
    held = Counter(word for word_set in word_sets for word in word_set)
    numbers = {word: i for i, (word, _) in enumerate(held.most_common())}
    word = np.array([numbers[word] for word_set in word_sets for word in word_set])
    owner = np.repeat(np.arange(sets), [len(word_set) for word_set in word_sets])
    is_frequent = word < FREQUENT
    has = np.zeros((sets, FREQUENT), dtype=np.float32)
    has[owner[is_frequent], word[is_frequent]] = 1

    word, owner = word[~is_frequent], owner[~is_frequent]
    by_word = np.argsort(word, kind="stable")
    holders = owner[by_word]
    place = np.empty(len(word), dtype=np.intp)  # of each entry, in `holders`
    place[by_word] = np.arange(len(word))
    after = np.cumsum(np.bincount(word))[word] - place - 1  # its word's later holders
    rows = max(1, CELLS // sets)
    for start in range(0, sets, rows):
        stop = min(start + rows, sets)
        block = slice(*np.searchsorted(owner, [start, stop]))
        many = after[block]
        skipped = np.repeat(place[block] + 1 - (np.cumsum(many) - many), many)
        column = holders[np.arange(len(skipped)) + skipped] - start
        row = np.repeat(owner[block] - start, many)
        width = sets - start
        cells = np.bincount(row * width + column, minlength=(stop - start) * width)
        frequent = has[start:stop] @ has[start:].T
        yield start, cells.reshape(stop - start, width) + frequent


# --- the intent in the turns ----------------------------------------------------------------------


def intent_decomposition(conversations: Conversations) -> Measure:
    """Return the share of a user's words that are also in the intent: 100 x the mean of
    |I & U| / |U| over turns.

    I and U are the sets of content words of the intent and of one user turn, both without the fixed
    opening of intents (section 5.2 of the notes on the paper, variant a). The paper says that lower
    is better, but nonsense has 0; what counts is the distance from people, and `goal_consistency`.
    Turns without content words cannot be measured.
    """
    return measure(turn_rows(conversations, _share_in_intent), PERCENT)


def goal_consistency(conversations: Conversations) -> Measure:
    """Return how much more a user's turns overlap with their own intent than with other people's:
    100 x the mean over turns of |I & U| / |U| less the mean of |J & U| / |U| over all J.

    I and U are as in `intent_decomposition`; the J are the other intents in the data, each counted
    once, except those of the same cluster. The overlap is the share of the turn, since the other
    shares depend on the length of an intent: those of others may be longer. Nonsense, a constant
    turn and other people's turns have about 0, and the intent word by word nearly 100.
    """
    kept = list(conversations)
    content: dict[str, frozenset[str]] = {}
    own_intents: dict[str, set[str]] = defaultdict(set)
    for conversation in kept:
        intent = conversation.intent
        if intent is not None and intent not in content:
            content[intent] = frozenset(content_words(intent_goal(intent)))
        if intent is not None and content[intent]:
            own_intents[cluster_name(conversation)].add(intent)
    # In how many intents each word is, since |J & U| summed over J is that summed over U.
    in_all = Counter(word for intent in content.values() for word in intent)
    in_own: dict[str, Counter[str]] = defaultdict(Counter)
    for cluster, intents in own_intents.items():
        for intent in intents:
            in_own[cluster].update(content[intent])
    intents_in_all = sum(map(bool, content.values()))

    def stats(turn: OwnTurn) -> Found:
        own = _share_in_intent(turn)
        cluster = cluster_name(turn.conversation)
        others = intents_in_all - len(own_intents[cluster])
        if isinstance(own, str):
            return own
        if not others:
            return "no other person's intent to compare with"
        said = set(content_words(intent_goal(turn.text)))
        common = sum(in_all[word] - in_own[cluster][word] for word in said)
        return own[0] - common / len(said) / others, 1.0

    return measure(turn_rows(kept, stats), SIGNED_PERCENT)


def _share_in_intent(turn: OwnTurn) -> Found:
    """Return the share of the content words of a turn that are in the intent of its conversation.

    A user may say the intent with its fixed opening, which counts on neither side.
    """
    if turn.conversation.intent is None:
        return "no intent"
    intent = set(content_words(intent_goal(turn.conversation.intent)))
    said = set(content_words(intent_goal(turn.text)))
    if not intent:
        return "no content words in the intent"
    if not said:
        return "no content words in the turn"
    return len(intent & said) / len(said), 1.0


# --- the end --------------------------------------------------------------------------------------


def termination(responses: Conversations) -> Measure:
    """Return the F1, in percent, of ending at the right turn: 2TP / (2TP + FP + FN), where ending
    is the positive.

    Args:
        responses: the results of `simulate.respond` on prefixes of samples. A first turn (k = 0)
            cannot be an end and is not a row (section 5.3). A response that failed (`FAILED`)
            cannot be measured.

    A row's stats are (TP, FP, FN). Without a person who ended there is nothing to find.
    """

    def stats(response: Conversation, person_ended: bool) -> Found:
        ended = response.stop == "end"
        true_positive = ended and person_ended
        false_positive = ended and not person_ended
        false_negative = person_ended and not ended
        return float(true_positive), float(false_positive), float(false_negative)

    found = measure(_response_rows(responses, stats), F1)
    if found.value is None and found.n:
        return replace(found, why=NO_END)
    return found


def why_one_kind(ended: Sequence[bool]) -> str:
    """Return why ends cannot be told from other turns, if there is only one of the two; empty if
    there are both, or no turns."""
    if not ended or len(set(ended)) > 1:
        return ""
    return EVERY_END if ended[0] else NO_END


def termination_auroc(responses: Conversations) -> Measure:
    """Return the area under the ROC curve of P(end), 0 to 1: how well it separates real ends from
    other turns.

    P(end) is `meta["p_end"]` of the user's reply; a user without it cannot be measured. The rows
    are those of `termination`, with the stats (P(end), 1 if the person ended else 0). The interval
    is over people.
    """

    def stats(response: Conversation, person_ended: bool) -> Found:
        spoke = len(response.user_turns) > response.first_own_turn
        reply = response.turns[-1].meta if spoke else response.meta.get("end_meta", {})
        if reply.get("p_end") is None:
            return "no P(end)"
        return float(reply["p_end"]), float(person_ended)

    rows = _response_rows(responses, stats)
    measured = [row for row in rows if row.stats]
    p_end, person_ended = np.array([row.stats for row in measured]).reshape(-1, 2).T
    ended = person_ended == 1
    if ended.all() or not ended.any():
        why = why_one_kind(ended.tolist())
        return Measure("", None, None, None, tuple(rows), why=why)
    _, cluster_of = numbered([row.cluster for row in measured])
    value, low, high, _ = auroc_estimate(p_end, ended, cluster_of)
    return Measure("", value, low, high, tuple(rows))


def end_rate(conversations: Conversations) -> Measure:
    """Return the share of turns after the first at which the user ends the conversation instead, in
    percent. It is the same of whole conversations, logged or simulated, and of responses."""
    rows = []
    for conversation in conversations:
        origin = conversation.origin
        stop = conversation.stop
        ended = conversation.ended if stop is None else stop == "end"
        taken = sum(turn.k > 0 for turn in own_turns(conversation))
        is_response = origin is not None and origin.person_ended is not None
        if is_response and not conversation.first_own_turn:
            continue  # the first turn cannot be an end
        found: Found = (float(ended), float(taken + ended))
        if conversation.stop in FAILED:
            found = failure(conversation)
        elif is_response:
            found = (float(ended), 1.0)
        elif not conversation.user_turns or not (ended or taken):
            found = "no turn after the first"
        rows.append(conversation_row(conversation, found))
    return measure(rows, PERCENT)


# --- plain counts ---------------------------------------------------------------------------------


def words_per_turn(conversations: Conversations) -> Measure:
    """Return the mean length of the user's turns, in words."""
    rows = turn_rows(conversations, lambda turn: (float(len(words(turn.text))), 1.0))
    return measure(rows, MEAN)


def turns_per_conversation(conversations: Conversations) -> Measure:
    """Return the mean number of user turns in a conversation.

    A failed conversation has no known length. One that reached the limit (`max_turns`) counts with
    the limit, so the value depends on the limit.
    """
    return measure([_length(one) for one in conversations], MEAN)


def _length(conversation: Conversation) -> MeasureRow:
    origin = conversation.origin
    found: Found = (float(len(conversation.user_turns)), 1.0)
    if origin and (origin.person_ended is not None or origin.first_own_turn):
        found = "a response to a prefix, not a whole conversation"
    elif conversation.stop in FAILED:
        found = failure(conversation)
    return conversation_row(conversation, found)


# --- shared ---------------------------------------------------------------------------------------


class OwnTurn(NamedTuple):
    """A turn of the user that is not from a log it continues.

    Attributes:
        k: its number among the user turns, from 0.
        before: the turns before it; none if the file does not have them.
    """

    conversation: Conversation
    k: int
    text: str
    before: Sequence[Turn]


def own_turns(conversation: Conversation) -> list[OwnTurn]:
    """Return the user's own turns."""
    turns = conversation.turns
    start = conversation.first_own_turn
    places = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if len(turns) >= 2 * start:
        # otherwise the prefix was removed already
        places = places[start:]
    found = []
    for k, i in enumerate(places, start):
        found.append(OwnTurn(conversation, k, turns[i].text, turns[:i]))
    return found


def turn_rows(
    conversations: Conversations, stats: Callable[[OwnTurn], Found]
) -> list[MeasureRow]:
    """Return a row for each of the user's own turns. `stats` returns the numbers of a turn, or the
    reason why there are none.

    A conversation that failed before the user's first own turn is a missing row; a user that ends
    immediately has no turns.
    """
    rows = []
    for conversation in conversations:
        own = own_turns(conversation)
        for turn in own:
            rows.append(conversation_row(conversation, stats(turn), f"/{turn.k}"))
        if not own and conversation.stop in FAILED:
            rows.append(conversation_row(conversation, failure(conversation)))
    return rows


def _response_rows(
    responses: Conversations, stats: Callable[[Conversation, bool], Found]
) -> list[MeasureRow]:
    """A row for each response to a prefix after the first turn."""
    rows = []
    for response in responses:
        origin = response.origin
        if origin is None or origin.person_ended is None:
            rows.append(
                conversation_row(response, "not a response to the prefix of a sample")
            )
        elif origin.first_own_turn > 0:
            cluster = response.user or str(origin.conversation)
            if response.stop in FAILED:
                found: Found = failure(response)
            else:
                found = stats(response, origin.person_ended)
            rows.append(measure_row(response.id, cluster, found))
    return rows


def conversation_row(
    conversation: Conversation, found: Found, turn: str = ""
) -> MeasureRow:
    """Return the row of a conversation, or of a turn of it."""
    return measure_row(conversation.id + turn, cluster_name(conversation), found)


def cluster_name(conversation: Conversation) -> str:
    """Return the cluster: the person, else the intent, else the conversation (the log that it
    starts from)."""
    origin = conversation.origin
    log = origin.conversation if origin else None
    return conversation.user or conversation.intent or log or conversation.id


def failure(conversation: Conversation) -> str:
    """Return how a conversation failed."""
    error = conversation.meta.get("error")
    return f"{conversation.stop}: {error}" if error else str(conversation.stop)
