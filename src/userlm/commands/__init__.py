"""The verbs, one plain function each: open a run, resolve addresses, call pure functions, save
results.

Every function can be called from Python as well as from the command line, and returns the contents
of `results.json`. If a verb is called again with the same folder, it continues where it stopped, or
prints that there is nothing left to do.
"""

from userlm.commands.chat import chat
from userlm.commands.clean import clean
from userlm.commands.import_ import import_
from userlm.commands.intents import intents
from userlm.commands.options import Results
from userlm.commands.ppl import ppl
from userlm.commands.report import report
from userlm.commands.respond import respond
from userlm.commands.score import score
from userlm.commands.serve import serve
from userlm.commands.simulate import simulate
from userlm.commands.train import train

__all__ = [
    "Results",
    "chat",
    "clean",
    "import_",
    "intents",
    "ppl",
    "report",
    "respond",
    "score",
    "serve",
    "simulate",
    "train",
]
