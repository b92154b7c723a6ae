"""Select what the tiny models learn from, and which people are held out.

    python recipes/tiny/mix.py RUN OUT

RUN is a run of `userlm intents` over the sources below. OUT gets a folder for each side (user,
assistant, both), each with train.jsonl and valid.jsonl; echo/, synthetic conversations that teach
to copy words; people/test.jsonl, held out; and two sources that no model learns from,
chats/test.jsonl (with generated intents) and goals/test.jsonl (with goals that people wrote). The
numbers of conversations, and the share of words to learn from talk with AI assistants, are printed
and stored in counts.json.

Models learn only from data whose licence allows it. From Chatbot Arena that is what people said,
and not the answers of models (CC-BY-NC): these are context for a user model and left out for the
others.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from userlm.flip import swap_roles
from userlm.rows import read_conversations, write_conversations
from userlm.text import INTENT_PREFIX, content_words
from userlm.types import Conversation, Turn

SEED = 0


@dataclass(frozen=True)
class Source:
    """Where conversations come from.

    Attributes:
        name: the start of `meta.source`.
        licence: the licence of what is learned.
        ai: whether people talk to an AI assistant, and not to other people who play one.
        answers: whether an assistant may and should learn from its answers.
        text: whether all of it may be learned as plain text; otherwise only the first prompts.
        most: the most conversations to learn from; `None`: all.
        split: whether it may be held out; a source may be too noisy to measure on.
    """

    name: str
    licence: str
    ai: bool
    answers: bool = False
    text: bool = True
    most: int | None = None
    split: bool = True


SOURCES = (
    Source("allenai/WildChat-1M", "ODC-BY-1.0", ai=True, answers=True),
    Source("chatbot_arena_conversations", "CC-BY-4.0 (prompts)", ai=True, text=False),
    Source(
        "OpenAssistant/oasst1 train", "Apache-2.0", ai=True, answers=True, split=False
    ),
    Source("OpenAssistant/oasst1 validation", "Apache-2.0", ai=True, answers=True),
    # Answers of weak models of 2022.
    Source("stanford-crfm/halie", "Apache-2.0", ai=True),
    Source("clinicalml/realhumaneval", "CC0-1.0", ai=True, answers=True),
    Source("RasaHQ/STAR", "MIT", ai=False, answers=True, most=1600),
    Source("MultiWOZ 2.1", "CC-BY-4.0 / Apache-2.0", ai=False, answers=True),
)
UNSEEN = {"ShareGPT92K": "chats", "TREC iKAT": "goals"}
CHATS = 150  # the number of conversations in chats

# From a few million tokens a model of this size never learns to copy a word from its context: no
# first turn would be about its intent. Conversations that repeat short phrases teach that in
# minutes.
ECHOES = {"train": 30_000, "valid": 200}
# The same with real text: each first turn to an assistant is repeated this often, with an intent
# that contains words of it.
TOLD = 2
ACTIONS = (
    "get help with",
    "learn about",
    "talk about",
    "have something written about",
    "find out about",
)

# Sources without labels for toxic turns still hold some. One such word drops a whole conversation.
# This is crude and loses harmless ones (a nurse's question), which costs little here.
TOXIC = re.compile(
    r"\b(?:f+u+c+k\w*|motherf\w*|shit\w*|bullshit|cunts?|whores?|sluts?\w*|bitch\w*|bastards?|ass-?holes?|dick(?:s|head)?"
    r"|cocks?|pussy|pussies|tits|boobs?|breasts?|nipples?|penis\w*|vagina\w*|clitor\w*|genital\w*|cum(?:s|ming|shot)?"
    r"|orgasm\w*|erotic\w*|erect(?:ion|ions)|porn\w*|nsfw|hentai|masturbat\w*|blow-?jobs?|anal|anus|horny|naked|nudes?"
    r"|nudity|sex|sexy|sexual\w*|sexist|kink\w*|fetish\w*|bdsm|bondage|incest\w*|rap(?:e[ds]?|ing|ists?)|molest\w*"
    r"|pa?edophil\w*|lolita|nigg\w*|negro\w*|fag(?:s|got\w*)?|retard(?:s|ed)?|trann(?:y|ies)|kikes?|chinks?|spics?"
    r"|nazis?|hitler|genocid\w*|holocaust|racists?|suicid\w*"
    r"|kill (?:my|your|him|her)sel\w+|self-harm\w*|murder\w*"
    r"|terroris\w*|bombs?|meth|cocaine|heroin|jailbreak\w*|dan mode|torture\w*|behead\w*|gore)\b",
    re.IGNORECASE,
)


def source_of(conversation: Conversation) -> Source | None:
    name = str(conversation.meta.get("source", ""))
    return next((source for source in SOURCES if name.startswith(source.name)), None)


def toxic(conversation: Conversation) -> bool:
    score = conversation.meta.get("toxicity")
    return (isinstance(score, float) and score > 0.1) or any(
        TOXIC.search(turn.text) for turn in conversation.turns
    )


def both(conversation: Conversation, source: Source) -> Conversation:
    """Return what may be learned as plain text: all turns, or only the first prompt."""
    return (
        conversation
        if source.text
        else replace(conversation, turns=conversation.turns[:1], ended=False)
    )


def main(run: Path, out: Path) -> None:
    dropped: Counter[str] = Counter()
    taken: dict[str, list[tuple[Conversation, Source]]] = {
        "train": [],
        "valid": [],
        "test": [],
    }
    unseen: dict[str, list[Conversation]] = {name: [] for name in UNSEEN.values()}
    for split in taken:
        for conversation in read_conversations(run / f"{split}.jsonl"):
            name, source = (
                str(conversation.meta.get("source", "")),
                source_of(conversation),
            )
            if where := next(
                (where for prefix, where in UNSEEN.items() if name.startswith(prefix)),
                None,
            ):
                unseen[where].append(conversation)
            elif source is None:
                sys.exit(
                    f"{run}: {conversation.id} is from {name!r}, which this recipe does not know"
                )
            elif toxic(conversation):
                dropped["toxic"] += 1
            elif split != "train" and not source.split:
                dropped["too noisy to measure on"] += 1
            else:
                taken[split].append((conversation, source))
    for split in ("train", "valid"):
        taken[split] = list(fewer(taken[split]))
    rows = {
        "user": {
            "train": [c for c, _ in taken["train"]]
            + [again for c, s in taken["train"] if s.ai for again in told(c)],
            "valid": [c for c, _ in taken["valid"]],
        },
        "assistant": {
            split: [c for c, s in taken[split] if s.answers]
            for split in ("train", "valid")
        },
        "both": {
            split: [both(c, s) for c, s in taken[split]] for split in ("train", "valid")
        },
        "people": {"test": [c for c, _ in taken["test"]]},
        "goals": {"test": unseen["goals"]},
        "chats": {"test": random.Random(SEED).sample(unseen["chats"], CHATS)},
    }
    counts = {"dropped": dict(dropped), "learned": {}, "held out": {}}
    for folder, splits in rows.items():
        for split, conversations in splits.items():
            (out / folder).mkdir(parents=True, exist_ok=True)
            write_conversations(out / folder / f"{split}.jsonl", conversations)
    for split, count in ECHOES.items():
        (out / "echo").mkdir(exist_ok=True)
        echoes = echo([c for c, _ in taken["train"]], split, count)
        write_conversations(out / "echo" / f"{split}.jsonl", echoes)
    for side in ("user", "assistant", "both"):
        counts["learned"][side] = table = learned(side, rows[side]["train"])
        share = sum(row["words"] for row in table if row["ai"]) / sum(
            row["words"] for row in table
        )
        print(
            f"{side}: {100 * share:.0f} % of the words to learn are from talk with AI assistants"
        )
        for row in table:
            print(
                f"  {row['source']:34}{row['conversations']:6,} conversations{row['words']:10,} "
                "words"
            )
        if share < 0.5:
            sys.exit("talk with AI assistants must be at least half of the words")
    for name in ("people", "goals", "chats"):
        held = rows[name]["test"]
        counts["held out"][name] = dict(
            Counter(str(c.meta.get("source")) for c in held)
        )
    print(f"dropped: {dict(dropped)}")
    (out / "counts.json").write_text(
        json.dumps(counts, indent=1) + "\n", encoding="utf-8"
    )


def fewer(
    taken: list[tuple[Conversation, Source]],
) -> Iterator[tuple[Conversation, Source]]:
    """Yield at most `most` conversations of each source, sampled with the seed, in their order."""
    for source in SOURCES:
        mine = [pair for pair in taken if pair[1] is source]
        most = len(mine) if source.most is None else min(source.most, len(mine))
        yield from (
            mine[i] for i in sorted(random.Random(SEED).sample(range(len(mine)), most))
        )


def told(conversation: Conversation) -> Iterator[Conversation]:
    """Yield the first turn again, with intents that contain words of it."""
    first = conversation.turns[0]
    for k in range(TOLD):
        drawn = random.Random(f"{SEED}/{conversation.id}/{k}")
        known = list(dict.fromkeys(content_words(first.text[:1000])))
        if first.role == "user" and known:
            *most, last = drawn.sample(known, drawn.randint(1, min(5, len(known))))
            about = f"{', '.join(most)} and {last}" if most else last
            intent = f"{INTENT_PREFIX}{drawn.choice(ACTIONS)} {about}."
            yield Conversation(
                f"{conversation.id}/told-{k}",
                (first,),
                intent,
                conversation.user,
                meta=conversation.meta,
            )


def echo(
    conversations: list[Conversation], split: str, count: int
) -> Iterator[Conversation]:
    """Yield synthetic conversations of short phrases that people said, each turn in another order
    and most phrases repeated."""
    drawn = random.Random(f"{SEED}/{split}")
    said = [
        words for c in conversations for turn in c.user_turns if (words := turn.split())
    ]

    def scrap() -> str:
        words, length = drawn.choice(said), drawn.randint(1, 4)
        start = drawn.randrange(max(1, len(words) - length + 1))
        return " ".join(words[start : start + length])[:60]

    for i in range(count):
        scraps = [scrap() for _ in range(drawn.randint(3, 8))]
        turns = [
            scraps,
            *(
                drawn.sample(scraps, drawn.randint(2, len(scraps)))
                for _ in range(drawn.randint(2, 5))
            ),
        ]
        roles = ("user", "assistant")
        said_again = tuple(
            Turn(roles[k % 2], ", ".join(turn)) for k, turn in enumerate(turns)
        )
        yield Conversation(f"echo-{i}", said_again)


def learned(side: str, conversations: list[Conversation]) -> list[dict[str, object]]:
    """Count what is to be learned, by source: words of the side, and conversations with any."""
    words, count = Counter[str](), Counter[str]()
    for conversation in conversations:
        source = source_of(conversation)
        assert source is not None
        seen = swap_roles(conversation) if side == "assistant" else conversation
        said = [turn.text for turn in seen.turns] if side == "both" else seen.user_turns
        words[source.name] += sum(len(text.split()) for text in said)
        count[source.name] += bool(said)
    return [
        {
            "source": s.name,
            "licence": s.licence,
            "ai": s.ai,
            "conversations": count[s.name],
            "words": words[s.name],
        }
        for s in SOURCES
        if count[s.name]
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
