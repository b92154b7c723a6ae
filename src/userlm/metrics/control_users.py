"""Crowds of users that are known to be wrong, made of people's conversations: a measure is worth
its place if it tells some of them from people. `bench/controls.py` has the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random

from userlm import items
from userlm.metrics import catalog, two_sample
from userlm.metrics.intrinsic import cluster_name
from userlm.stats import Estimate
from userlm.text import intent_goal
from userlm.types import Conversation, Measure

People = Sequence[Conversation]
Control = Callable[[People, Random], list[Conversation]]

CONSTANT = "Can you tell me more?"
LIMIT = 20
"""User turns of a conversation that never ends."""

HUMANS = "humans against humans"


def turns_shuffled(people: People, rng: Random) -> list[Conversation]:
    """Each turn is anybody's turn, at any place."""
    turns = [text for person in people for text in person.user_turns]
    rng.shuffle(turns)
    left = iter(turns)
    return [_with(person, [next(left) for _ in person.user_turns]) for person in people]


def words_shuffled(people: People, rng: Random) -> list[Conversation]:
    """The words of each turn are in another order."""

    def shuffled(text: str) -> str:
        said = text.split()
        return " ".join(rng.sample(said, len(said)))

    found = []
    for person in people:
        found.append(_with(person, list(map(shuffled, person.user_turns))))
    return found


def another_side(people: People, rng: Random) -> list[Conversation]:
    """Each conversation has the turns of another person, who talked about as long."""
    order = rng.sample(people, len(people))
    order.sort(key=lambda person: len(person.user_turns))
    found = []
    for place, person in enumerate(order):
        others = [*order[place + 1 :], *order[:place][::-1]]
        mine = cluster_name(person)
        giver = next((one for one in others if cluster_name(one) != mine), person)
        found.append(_with(person, giver.user_turns))
    return found


def assistant_turns(people: People, rng: Random) -> list[Conversation]:
    """The user says what the assistant would answer."""
    found = []
    for person in people:
        answers = [turn.text for turn in person.turns if turn.role == "assistant"]
        greeted = bool(person.turns) and person.turns[0].role == "assistant"
        found.append(_with(person, answers[int(greeted) :]))
    return found


def intent_verbatim(people: People, rng: Random) -> list[Conversation]:
    """Each turn is the intent, word by word."""
    found = []
    for person in people:
        if person.intent is not None:
            said = [intent_goal(person.intent)] * len(person.user_turns)
            found.append(_with(person, said))
    return found


def constant_turn(people: People, rng: Random) -> list[Conversation]:
    """Each turn is the same."""
    return [_with(person, [CONSTANT] * len(person.user_turns)) for person in people]


def never_ends(people: People, rng: Random) -> list[Conversation]:
    """Each person goes on with the turns of others, up to `LIMIT`."""
    found = []
    for person in people:
        talk = replace(person, ended=False)
        while len(talk.user_turns) < LIMIT:
            for turn in rng.choice(people).turns:
                if turn.role == talk.next_role and len(talk.user_turns) < LIMIT:
                    talk = talk.say(turn.text)
        found.append(talk)
    return found


def ends_at_once(people: People, rng: Random) -> list[Conversation]:
    """Each person says one turn, and has an answer to it if there is one."""
    found = [_with(person, person.user_turns[:1]) for person in people]
    return [replace(one, ended=one.next_role == "user") for one in found]


CONTROLS: Mapping[str, Control] = {
    "turns shuffled": turns_shuffled,
    "words shuffled": words_shuffled,
    "another's side": another_side,
    "assistant turns": assistant_turns,
    "intent verbatim": intent_verbatim,
    "constant turn": constant_turn,
    "never ends": never_ends,
    "ends at once": ends_at_once,
}


# --- test items -----------------------------------------------------------------------------------


def answers(item: Conversation) -> str | None:
    """Names the first choice; of an item without choices, answers something."""
    choices = item.meta.get("choices")
    return str(choices[0]) if choices else "It was eleven."


def accepts(item: Conversation) -> str | None:
    """Takes up whatever is suggested."""
    return f"Yes, {item.meta.get('suggestion', 'please')}!"


def repeats(item: Conversation) -> str | None:
    """Says the question again."""
    return item.turns[0].text


def says_the_same(item: Conversation) -> str | None:
    """Says the same to everything."""
    return CONSTANT


def leaves(item: Conversation) -> str | None:
    """Ends at once."""
    return None


ITEM_USERS: Mapping[str, Callable[[Conversation], str | None]] = {
    "answers": answers,
    "accepts the suggestion": accepts,
    "repeats the question": repeats,
    "constant turn": says_the_same,
    "ends at once": leaves,
}
"""Users that are known to be wrong, by what they say to a test item; `None` is an end."""


def asked(
    given: Iterable[Conversation], user: Callable[[Conversation], str | None]
) -> list[Conversation]:
    """Return the responses of such a user to test items."""
    found = []
    for item in given:
        said = user(item)
        start = items.prefix(item)
        found.append(start.close("end") if said is None else start.say(said))
    return found


# --- the matrix -----------------------------------------------------------------------------------


def _with(person: Conversation, said: Sequence[str]) -> Conversation:
    """Return the conversation with these user turns, as far as both go."""
    left = iter(said)
    turns = []
    for turn in person.turns:
        if turn.role == "user":
            text = next(left, None)
            if text is None:
                break
            turn = replace(turn, text=text)
        turns.append(turn)
    is_whole = len(turns) == len(person.turns)
    return replace(person, turns=tuple(turns), ended=person.ended and is_whole)


def matrix(people: People, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Return for each control how far each measure is from people, by control and metric. Humans
    against humans, one half of the people against the other, come first."""
    one, other = two_sample.two_sides(people)
    found = {HUMANS: _distances(one, other, all_measures(other, other))}
    human = all_measures(people, people)
    for name, control in CONTROLS.items():
        crowd = control(people, Random(seed))
        found[name] = _distances(crowd, people, human)
    return found


def all_measures(crowd: People, people: People) -> list[Measure]:
    """Return all measures of a crowd that need no model; those of people, if it is the people
    themselves."""
    metrics = [
        metric
        for metric in catalog.METRICS
        if metric.function and metric.needs in ("any", "conversations", "reference")
    ]
    beside: dict[catalog.Needs, People] = {"reference": people}
    found = [metric.measure(crowd, beside) for metric in metrics]
    if crowd is people:
        return found + two_sample.floor(people)
    return found + two_sample.compare(crowd, people)[0]


def _distances(
    crowd: People, people: People, human: Sequence[Measure]
) -> dict[str, Estimate]:
    pairs = zip(all_measures(crowd, people), human, strict=True)
    return {
        found.name: catalog.metric_of(found.name).distance(found, reference)
        for found, reference in pairs
    }


def is_caught(metric: str, distance: Estimate) -> bool:
    """Return whether the interval of a distance is on one side of 0: the worse one, if the metric
    has one. Real turns of the people themselves, at wrong places, are told from theirs less often
    than other people's are."""
    low = distance.low
    high = distance.high
    if low is None or high is None:
        return False
    match catalog.metric_of(metric).better:
        case "lower":
            return low > 0
        case "higher":
            return high < 0
    return low > 0 or high < 0
