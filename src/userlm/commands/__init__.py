"""The verbs, one plain function each: open a run, resolve addresses, call pure functions, write
down.

Every function can be called from Python just as from the command line, and returns what
`results.json` holds. A verb called again on the same folder goes on where it stopped, or says that
there is nothing left to do.
"""

from userlm.commands.data import clean, import_
from userlm.commands.predicting import ppl
from userlm.commands.scores import report, score
from userlm.commands.serving import serve
from userlm.commands.shared import Results
from userlm.commands.talks import chat, respond, simulate
from userlm.commands.train import train
from userlm.commands.writing import intents

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
