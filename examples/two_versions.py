"""Is the new version of my bot better? Both talk with the same users about the same tasks.

    python two_versions.py

The last lines give the answer; runs/two_versions has every conversation and its grade.
"""

from pathlib import Path

from userlm.commands import Compare, Evaluate, compare, evaluate

BOTS = ["py:my_bot:new", "py:my_bot:old"]
USERS = ["trained:userlm-small", "py:my_bot:one_fact_a_turn"]
TALKS = Path("runs/two_versions/talks")

evaluate(Evaluate(BOTS, "tables.toml", USERS, out=TALKS, repeats=2, max_turns=4))
compare(Compare([TALKS], out=TALKS.with_name("compared")))
