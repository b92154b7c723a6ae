"""What might people ask first? Three first turns for each of a few goals.

python first_turns.py
"""

import userlm

PREFIX = "You are a user chatting with an assistant language model to "
GOALS = (
    "plan a trip to Rome.",
    "find out why a loaf of bread does not rise.",
    "write a polite letter about a noisy neighbour.",
)

for goal in GOALS:
    print(f"\n{goal}")
    for seed in range(3):
        user = userlm.user("trained:userlm-small", seed=seed)  # loaded once
        reply = user.reply(userlm.Conversation(intent=PREFIX + goal))
        print(f"- {reply.text}")
