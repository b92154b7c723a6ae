"""Generate logs of pseudo-words in the exact layout of WildChat-1M. `bench/data.py` runs this.

    python bench/wildchat_like.py 50000 logs [--seed 0] [--jsonl]

It writes shards of 25,000 rows, parquet with row groups of 1,000, as the `datasets` library writes
them; or the same rows as one file of JSON lines. Each shard has its own seed, so a large corpus
starts with a small one. As in WildChat are the number of turns (2.05 on average, a heavy tail),
words in a turn (log-normal), Zipf words of four scripts, languages, people (many with one
conversation, a few with thousands), long prompts that repeat with small changes, flags, repeated
answers, empty turns and repeated rows.
"""

import argparse
import hashlib
import json
import shutil
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import orjson
import polars as pl
from words import Ints, texts

SHARD = 25_000
# 20 to 8,000 of 500,000 rows; 16 % in all.
TEMPLATE_RATES = np.geomspace(4e-5, 1.6e-2, 60)
# Fmt: skip.
LANGUAGES = {  # shares of rows without a template; with a template all are English: 57 % in all
    "English": 0.49,
    "Chinese": 0.19,
    "Russian": 0.13,
    "French": 0.04,
    "Spanish": 0.04,
    "German": 0.03,
    "Portuguese": 0.03,
    "Nolang": 0.02,
    "Arabic": 0.015,
    "Latin": 0.015,
}
COUNTRIES = (
    "United States",
    "Russia",
    "China",
    "Hong Kong",
    "United Kingdom",
    "Germany",
    "France",
    "Japan",
    None,
)
STATES = (
    "California",
    "Moscow",
    "Guangdong",
    "Central and Western District",
    "England",
    "Bavaria",
    None,
)
MODELS = (
    "gpt-3.5-turbo-0301",
    "gpt-3.5-turbo-0613",
    "gpt-4-0314",
    "gpt-4-1106-preview",
)
ACCEPTED = ("en-US,en;q=0.9", "zh-CN,zh;q=0.9", "ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7")
AGENTS = tuple(
    f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 "
    "Safari/537.36"
    for system in (
        "Windows NT 10.0; Win64; x64",
        "Macintosh; Intel Mac OS X 10_15_7",
        "X11; Linux x86_64",
    )
    for version in range(108, 122)
)
# Fmt: skip.
MODERATED = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
DETOXIFIED = (
    "identity_attack",
    "insult",
    "obscene",
    "severe_toxicity",
    "sexual_explicit",
    "threat",
    "toxicity",
)
# 9 April 2023 and 13 months, in microseconds.
BEGIN, SPAN = (
    1_681_000_000_000_000,
    34_000_000_000_000,
)


# --- long prompts ---------------------------------------------------------------------------------


@cache
def templates() -> list[list[str]]:
    """The long prompts that repeat, in three parts; the words between the parts differ."""
    rng = np.random.default_rng(1)
    found = [
        text.split(" ")
        for text in texts(rng, rng.integers(30, 300, len(TEMPLATE_RATES)))
    ]
    return [
        [" ".join(part) for part in np.array_split(np.array(words, dtype=object), 3)]
        for words in found
    ]


# --- rows -----------------------------------------------------------------------------------------


def shard(seed: int, number: int) -> pl.DataFrame:
    """The rows of one shard."""
    rng, n = np.random.default_rng((seed, number)), SHARD
    tail = np.where(rng.random(n) < 0.01, rng.pareto(1.2, n) * 10, 0).astype(int)
    exchanges = np.minimum(rng.geometric(1 / 1.8, n) + tail, 200)
    template = np.searchsorted(np.cumsum(TEMPLATE_RATES), rng.random(n))
    language = rng.choice(len(LANGUAGES), n, p=list(LANGUAGES.values()))
    language[template < len(TEMPLATE_RATES)] = 0
    # People: p(rank) falls as (rank + 60)^-1.3. The heaviest has one row in 200, most have one or
    # two.
    person = np.minimum(60 * (rng.random(n) ** (-1 / 0.3) - 1), 1e15).astype(int)
    toxic, redacted = rng.random(n) < 0.1, rng.random(n) < 0.03

    contents = _contents(rng, exchanges, language, template)
    firsts = 2 * (np.cumsum(exchanges) - exchanges)
    for i in firsts[redacted]:
        contents[i] = f"<PRESIDIO_ANONYMIZED_PERSON> {contents[i]}"
    for i in firsts[rng.random(n) < 0.001]:
        contents[i + rng.integers(2)] = ""
    again = np.where(
        rng.random(n) < 0.01, (rng.random(n) * np.arange(n)).astype(int), np.arange(n)
    )
    contents = [
        text
        for i in again
        for text in contents[firsts[i] : firsts[i] + 2 * exchanges[i]]
    ]
    exchanges, language = exchanges[again], language[again]

    rows = pl.DataFrame(
        {
            "row": np.arange(n),
            "model": _one_of(MODELS, rng.integers(4, size=n)),
            "timestamp": BEGIN + rng.integers(SPAN, size=n) // 1_000_000 * 1_000_000,
            "turn": exchanges,
            "language": _one_of(tuple(LANGUAGES), language),
            "toxic": toxic,
            "redacted": redacted,
            "state": _one_of(STATES, person % 7),
            "country": _one_of(COUNTRIES, person % 67 % 9),
            "hashed_ip": [hashlib.sha256(b"person %d" % i).hexdigest() for i in person],
            "accept-language": _one_of(ACCEPTED, person % 3),
            "user-agent": _one_of(AGENTS, person % 41),
        }
    )
    rows = rows.with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")),
        header=pl.struct("accept-language", "user-agent"),
    )
    items = _items(rng, rows[np.repeat(np.arange(n), 2 * exchanges)], contents)
    rows = rows.join(
        items.group_by("row", maintain_order=True).agg(pl.exclude("row")), on="row"
    )
    hashes = [_hash(conversation) for conversation in rows["conversation"].to_list()]
    rows = rows.with_columns(pl.Series("conversation_hash", hashes)).select(
        *(
            "conversation_hash",
            "model",
            "timestamp",
            "conversation",
            "turn",
            "language",
            "openai_moderation",
        ),
        *(
            "detoxify_moderation",
            "toxic",
            "redacted",
            "state",
            "country",
            "hashed_ip",
            "header",
        ),
    )
    twice = np.where(
        rng.random(n) < 0.002, (rng.random(n) * np.arange(n)).astype(int), np.arange(n)
    )
    return rows[twice]


def _contents(
    rng: np.random.Generator, exchanges: Ints, language: Ints, template: Ints
) -> list[str]:
    """The turns of user and assistant, conversation after conversation."""
    spoken = np.repeat(language, exchanges)
    contents = np.empty(2 * len(spoken), dtype=object)
    for code, name in enumerate(LANGUAGES):
        (where,) = np.nonzero(spoken == code)
        for side, median, spread, most in ((0, 25, 1.3, 4000), (1, 200, 0.7, 2500)):
            lengths = np.clip(
                rng.lognormal(np.log(median), spread, len(where)), 1, most
            ).astype(int)
            contents[2 * where + side] = texts(rng, lengths, name)
    firsts = 2 * (np.cumsum(exchanges) - exchanges)
    for i in np.nonzero(template < len(TEMPLATE_RATES))[0]:
        begin, middle, end = templates()[template[i]]
        one, two = texts(rng, rng.integers(1, 4, 2))
        contents[firsts[i]] = " ".join(
            (begin, one, middle, two, end, contents[firsts[i]])
        )
    found: list[str] = contents.tolist()
    return found


def _items(
    rng: np.random.Generator, rows: pl.DataFrame, contents: list[str]
) -> pl.DataFrame:
    """For each turn its row, the turn itself, and its two moderation results."""
    n = len(rows)
    user = pl.Series(np.arange(n) % 2 == 0)
    first = user & (rows["row"] != rows["row"].shift(1)).fill_null(True)
    # An older version of the API, which had no underscores.
    older = pl.Series(rng.random(n) < 0.5)
    scores = {name: rng.random(n) ** 12 for name in MODERATED}
    aliases = {
        name.replace("/", "_").replace("-", "_"): name
        for name in MODERATED
        if "/" in name or "-" in name
    }
    moderation = pl.DataFrame(scores).with_columns(
        pl.when(~older).then(pl.col(name)).alias(alias)
        for alias, name in aliases.items()
    )
    turns = rows.with_columns(
        *(
            pl.when(user).then(pl.col(name)).alias(name)
            for name in ("country", "state", "hashed_ip", "header")
        ),
        *((first & pl.col(name)).alias(name) for name in ("toxic", "redacted")),
        pl.when(~user).then("timestamp").alias("timestamp"),
        pl.Series("content", contents),
        pl.Series("turn_identifier", np.repeat(rng.integers(1 << 40, size=n // 2), 2)),
        pl.when(user).then(pl.lit("user")).otherwise(pl.lit("assistant")).alias("role"),
    )
    return pl.DataFrame(
        {
            "row": rows["row"],
            "conversation": turns.select(
                *(
                    "content",
                    "country",
                    "hashed_ip",
                    "header",
                    "language",
                    "redacted",
                    "role",
                    "state",
                ),
                *("timestamp", "toxic", "turn_identifier"),
            ).to_struct(),
            "openai_moderation": pl.DataFrame(
                {
                    "categories": moderation.select(pl.all() > 0.9).to_struct(),
                    "category_scores": moderation.to_struct(),
                    "flagged": turns["toxic"],
                }
            ).to_struct(),
            "detoxify_moderation": pl.DataFrame(
                {name: rng.random(n) ** 12 for name in DETOXIFIED}
            ).to_struct(),
        }
    )


def _one_of(names: tuple[str | None, ...], picked: Ints) -> pl.Series:
    return pl.Series(names)[picked]


def _hash(conversation: list[dict[str, str]]) -> str:
    said = [{"content": turn["content"], "role": turn["role"]} for turn in conversation]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


# --- files ----------------------------------------------------------------------------------------


def write(number: int, rows: int, folder: Path, seed: int, jsonl: bool) -> Path:
    """Write shard `number` of a corpus of `rows` rows."""
    frame = shard(seed, number).head(rows - number * SHARD)
    path = (
        folder
        / f"train-{number:05d}-of-{-(-rows // SHARD):05d}.{'jsonl' if jsonl else 'parquet'}"
    )
    if jsonl:
        with path.open("wb") as file:
            file.writelines(
                orjson.dumps(row) + b"\n" for row in frame.iter_rows(named=True)
            )
    else:
        frame.write_parquet(path, compression="snappy", row_group_size=1000)
    return path


def main() -> None:
    """Write the rows, with two processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="one file of JSON lines, not shards of parquet",
    )
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    one = partial(
        write, rows=args.rows, folder=args.folder, seed=args.seed, jsonl=args.jsonl
    )
    with get_context("spawn").Pool(2) as pool:
        paths = pool.map(one, range(-(-args.rows // SHARD)), chunksize=1)
    if args.jsonl:
        with (args.folder / "train.jsonl").open("wb") as whole:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
                path.unlink()


if __name__ == "__main__":
    main()
