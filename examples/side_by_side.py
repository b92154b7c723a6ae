"""What several users say about the same goal, turn by turn beside each other.

    python side_by_side.py                         # the task in digits.toml
    python side_by_side.py --goal "plan a trip to Rome."
    python side_by_side.py --user prompted:openai:gpt-4o-mini \
        --user trained:microsoft/UserLM-8b --assistant openai:gpt-4o-mini

Behind a turn stand the numbers of the facts that it tells: it has their words.
"""

from argparse import ArgumentParser
from itertools import zip_longest
from pathlib import Path

from rich.table import Table

import userlm
from userlm.facts import told_in
from userlm.show.formats import cut
from userlm.show.terminal import open_terminal
from userlm.tasks import read_tasks

PREFIX = "You are a user chatting with an assistant language model to "
TASKS = Path(__file__).with_name("digits.toml")
SHOWN = 240  # characters of a turn
BASELINE_AND_USER = ["prompted:assistant-small", "trained:userlm-small"]

parser = ArgumentParser()
parser.add_argument("--user", action="append", default=[])
parser.add_argument("--assistant", default="assistant-small")
parser.add_argument("--goal", help="in place of the task")
parser.add_argument("--turns", type=int, default=2)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--answer-tokens", type=int, default=48)
options = parser.parse_args()

[task] = read_tasks(TASKS)
intent = PREFIX + options.goal if options.goal else task.intent
facts = () if options.goal else task.facts
seed, tokens = options.seed, options.answer_tokens
assistant = userlm.assistant(options.assistant, seed=seed, max_tokens=tokens)
table = Table(title=intent, title_justify="left", show_lines=True)
columns = []
for address in options.user or BASELINE_AND_USER:
    user = userlm.user(address, seed=seed)
    start = userlm.Conversation("side-by-side", intent=intent)
    talk = userlm.converse(user, assistant, start, options.turns)
    told = told_in(facts, talk.user_turns)
    said = []
    for at, turn in enumerate(talk.turns):
        own = [n for n, turns in enumerate(told, 1) if at // 2 in turns]
        mark = f" {own}" if own and turn.role == "user" else ""
        said.append(f"{turn.role}: {cut(turn.text, SHOWN)}{mark}")
    columns.append([*said, "(the user ends)"] if talk.stop == "end" else said)
    table.add_column(address)
for row in zip_longest(*columns, fillvalue=""):
    table.add_row(*row)
open_terminal().print(table)
