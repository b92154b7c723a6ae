"""`userlm demo`: every stage on the embedded models, logs and tasks, in minutes on a CPU, without
a network.

It runs the verbs of `commands` one after the other, each in its own folder under `--out`. Finished
stages are not repeated, so an interrupted demo continues where it stopped.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.text import Text

from userlm import assets
from userlm.commands import (
    Clean,
    Import,
    Intents,
    Ppl,
    Report,
    Respond,
    Results,
    Score,
    Simulate,
    Train,
    User,
    clean,
    import_,
    intents,
    ppl,
    report,
    respond,
    score,
    simulate,
    train,
)
from userlm.commands.options import option
from userlm.show.blocks import Transcripts
from userlm.show.terminal import console, show

BASE, ASSISTANT = "userlm-tiny", "assistant-tiny"


@dataclass(frozen=True, slots=True)
class Demo:
    """Run every stage in a few minutes: train the embedded user model on the sample logs, and
    measure it.

    $ userlm demo
    """

    out: Path = option(Path("runs/demo"), "Output folder of the demo's runs.")


def demo(options: Demo) -> Results:
    """Run the stages and show what they found."""
    out = options.out
    # A model this small is faster on one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    people = out / "intents" / "test.jsonl"
    users = {"before": BASE, "after": str(out / "tuned")}

    _say("1/7  import, clean, intents: raw logs to conversations, by person")
    import_(Import([str(assets.sample_logs())], out / "import"))
    clean(Clean(out / "import", out / "clean", template_limit=5, shares="80/5/15"))
    # The logs contain hand-written intents.
    intents(Intents(out / "clean", out / "intents"))
    intents(Intents(out / "clean", out / "intents-extractive", overwrite=True))

    _say("2/7  train: tune a small user model on what these users say")
    # Train on extractive intents, which contain words of the first turn. Without these, a model
    # this small forgets that its turns depend on the intent.
    train(
        Train(
            out / "intents-extractive", BASE, out / "tuned", epochs=3, batch=32, lr=2e-4
        )
    )

    _say("3/7  ppl: how well does it predict people it has not seen, before and after?")
    for when, model in users.items():
        ppl(Ppl(people, model, out / f"ppl-{when}"))

    _say(
        "4/7  simulate: the user model, replayed people and a script talk to a small assistant and "
        "to a stub"
    )
    # A model this small rambles at temperature 1.
    tuned = User(f"trained:{users['after']}", temperature=0.6)
    runs = _simulations(tuned, people)
    for name, simulation in runs.items():
        simulate(replace(simulation, out=out / name))
    for name in ("tuned-assistant", "replayed-assistant", "replayed-oracle"):
        _show_conversation(out / name)

    _say(
        "5/7  respond: its next turn after each real prefix, or its end, before and after"
    )
    for when, model in users.items():
        respond(Respond(User(f"trained:{model}"), people, out / f"respond-{when}"))

    _say("6/7  score: simulated users and people, by the same functions")
    folders = [out / run for run in (*runs, "respond-before", "respond-after")]
    score(Score(folders, people, assets.sample_tasks(), out / "score"))

    _say("7/7  report")
    stages = ("import", "clean", "intents", "intents-extractive", "tuned")
    measured = (out / "ppl-before", out / "ppl-after", *folders, out / "score")
    written = report(
        Report([*(out / stage for stage in stages), *measured], out / "report")
    )
    _say_what_next(tuned, str(written["html"]))
    return written


def _say_what_next(user: User, page: str) -> None:
    command = "userlm" if shutil.which("userlm") else sys.argv[0]
    console.print(
        "The user and the assistant are models of 3 million weights and the oracle is a stub: this "
        "shows how the stages fit together, it is not a result.\n"
        f"Talk to the user:  {command} chat --user {user.user}\n"
        f"Open the report:   {page}"
    )


def _simulations(tuned: User, people: Path) -> dict[str, Simulate]:
    """Return the simulations of the demo, by the names of their folders."""
    tasks = assets.sample_tasks()
    replayed = User(f"replay:{people}")
    teller = User(f"replay:{assets.sample_task_logs()}")
    script = User(f"script:{assets.sample_script()}")
    return {
        "tuned-assistant": Simulate(tuned, ASSISTANT, intents=people, max_turns=5),
        "replayed-assistant": Simulate(replayed, ASSISTANT, intents=people),
        "tuned-oracle": Simulate(tuned, "oracle", tasks=tasks, max_turns=5),
        "replayed-oracle": Simulate(teller, "oracle", tasks=tasks),
        "scripted-oracle": Simulate(script, "oracle", tasks=tasks),
    }


def _say(text: str) -> None:
    console.rule(Text(text, style="bold"), align="left")


def _show_conversation(folder: Path) -> None:
    """Print the first conversation of a run in which the user says something twice."""
    from userlm.show.finished import read_run  # heavy: pydantic
    from userlm.show.transcripts import transcript

    run = read_run(folder)
    talk = next(talk for talk in run.transcripts if len(talk.turns) > 2)
    console.print(run.name, style="bold")
    show([Transcripts([transcript(talk, run)], run.total, "")])
