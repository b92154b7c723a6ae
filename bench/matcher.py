"""How often the lexical matcher of facts is wrong, by the share of content words that it requires.

    python bench/matcher.py ../shared/data/extrinsic/gsm8k_train_shards.jsonl.gz

Each row is a GSM8K question with the same question split into facts (as in Lost in Conversation).
`missed`: facts that are not found in their own question. `made up`: last facts that are found in
the other facts.
"""

import sys

from userlm import facts as matcher
from userlm.rows import read_rows

rows = [line.row for line in read_rows(sys.argv[1])]
print("share   missed   made up")
for share in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9):
    matcher.SHARE = share
    found = []
    made_up = []
    for row in rows:
        facts = [shard["shard"] for shard in row["shards"]]
        found += [matcher.said(fact, [row["question"]]) for fact in facts]
        if len(facts) > 1:
            made_up.append(matcher.said(facts[-1], facts[:-1]))
    print(
        f"{share:5.2f} {1 - sum(found) / len(found):8.1%} {sum(made_up) / len(made_up):9.1%}"
    )
