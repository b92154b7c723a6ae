"""A gate for my bot in pytest: most simulated users must get their table.

pytest test_my_bot.py
"""

from my_bot import new, one_fact_a_turn

import userlm


def test_most_users_get_their_table():
    # with user="trained:userlm-small" a model talks to the bot; a run of it takes longer
    found = userlm.evaluate(new, "tables.toml", user=one_fact_a_turn)
    found.check(
        score=0.7, end="value"
    )  # the lower end of its interval needs more tasks
