"""The verbs, one plain function each: open a run, resolve addresses, call pure functions, write
down.

Every function can be called from Python just as from the command line, and returns what
`results.json` holds. A verb called again on the same folder goes on where it stopped, or says that
there is nothing left to do.
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
from userlm.commands.training import train

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
