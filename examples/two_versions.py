"""Is the new version of my bot better? Both talk with the same users about the same tasks.

    python two_versions.py

The last lines give the answer; runs/evaluate has every conversation and its grade.
"""

from userlm.commands import Compare, Evaluate, compare, evaluate

BOTS = ["py:my_bot:new", "py:my_bot:old"]
USERS = ["trained:userlm-small", "py:my_bot:one_fact_a_turn"]

evaluate(Evaluate(BOTS, "tables.toml", USERS, repeats=2, max_turns=4))
compare(Compare(["runs/evaluate"]))
