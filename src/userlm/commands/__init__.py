"""The verbs. Each is a frozen dataclass of options and a plain function of it: `train(Train(...))`.

A verb opens a run, resolves addresses, calls pure functions and saves results. It returns the
contents of `results.json`. If it is called again with the same folder, it continues where it
stopped, or prints that there is nothing left to do.
"""

from collections.abc import Callable
from typing import Any

from userlm.commands.assess import Assess, assess
from userlm.commands.chat import Chat, chat
from userlm.commands.check import Check, check
from userlm.commands.clean import Clean, clean
from userlm.commands.compare import Compare, compare
from userlm.commands.costs import Limits
from userlm.commands.detect import Detect, detect
from userlm.commands.evaluate import Evaluate, evaluate
from userlm.commands.export import Export, export
from userlm.commands.fetch import Fetch, fetch
from userlm.commands.import_ import Import, import_
from userlm.commands.intents import Intents, intents
from userlm.commands.judge import Judge, judge
from userlm.commands.merge import Merge, merge
from userlm.commands.options import LocalModels, Output, User, UserSettings
from userlm.commands.ppl import Ppl, ppl
from userlm.commands.report import Report, report
from userlm.commands.respond import Respond, respond
from userlm.commands.score import Score, score
from userlm.commands.serve import Serve, serve
from userlm.commands.show import Show, show
from userlm.commands.simulate import Simulate, simulate
from userlm.commands.steps import Results
from userlm.commands.tasks import Tasks, tasks
from userlm.commands.train import Train, train

VERBS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "import": (Import, import_),
    "clean": (Clean, clean),
    "intents": (Intents, intents),
    "fetch": (Fetch, fetch),
    "train": (Train, train),
    "ppl": (Ppl, ppl),
    "respond": (Respond, respond),
    "tasks": (Tasks, tasks),
    "simulate": (Simulate, simulate),
    "score": (Score, score),
    "evaluate": (Evaluate, evaluate),
    "compare": (Compare, compare),
    "judge": (Judge, judge),
    "detect": (Detect, detect),
    "assess": (Assess, assess),
    "merge": (Merge, merge),
    "export": (Export, export),
    "report": (Report, report),
    "show": (Show, show),
    "chat": (Chat, chat),
    "serve": (Serve, serve),
    "check": (Check, check),
}
"""The options and the function of each verb, in the order of the help."""

__all__ = [
    "VERBS",
    "Assess",
    "Chat",
    "Check",
    "Clean",
    "Compare",
    "Detect",
    "Evaluate",
    "Export",
    "Fetch",
    "Import",
    "Intents",
    "Judge",
    "Limits",
    "LocalModels",
    "Merge",
    "Output",
    "Ppl",
    "Report",
    "Respond",
    "Results",
    "Score",
    "Serve",
    "Show",
    "Simulate",
    "Tasks",
    "Train",
    "User",
    "UserSettings",
    "assess",
    "chat",
    "check",
    "clean",
    "compare",
    "detect",
    "evaluate",
    "export",
    "fetch",
    "import_",
    "intents",
    "judge",
    "merge",
    "ppl",
    "report",
    "respond",
    "score",
    "serve",
    "show",
    "simulate",
    "tasks",
    "train",
]
