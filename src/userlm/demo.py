"""`userlm demo`: every stage on small models, sample logs and sample tasks, in minutes on a CPU and
without a model hub.

It runs the verbs of `commands` one after the other, each in its own folder under `--out`. Finished
stages are not repeated, so an interrupted demo continues where it stopped.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from warnings import warn

from rich.text import Text

from userlm import address, assets, loading
from userlm.commands import (
    Clean,
    Fetch,
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
    fetch,
    import_,
    intents,
    ppl,
    report,
    respond,
    score,
    simulate,
    train,
)
from userlm.commands.options import EMBEDDED_USER, option
from userlm.commands.steps import unshown
from userlm.show.blocks import Transcripts
from userlm.show.terminal import console, show
from userlm.types import ModelError, ModelWarning

SMALL_ASSISTANT = "assistant-small"
TALKS = 8  # conversations of a user
PROMPTED = 3  # of a prompted one
TURNS = 3
ANSWER = 48  # tokens
PREFIXES = 10  # conversations whose next turns, and ends, are asked for


@dataclass(frozen=True, slots=True)
class Demo:
    """Let a user model, a prompted one and replayed people talk to an assistant, train a tiny user
    model, and measure all of them, in a few minutes on a CPU.

    $ userlm demo

    $ userlm demo --user trained:runs/train --assistant openai:gpt-4o-mini
    """

    user: str = option(EMBEDDED_USER, "The simulated user.")
    assistant: str = option(
        SMALL_ASSISTANT, "The assistant; it is also prompted to play a user."
    )
    base: str = option("userlm-tiny", "The model that is trained on the sample logs.")
    out: Path = option(Path("runs/demo"), "Output folder of the demo's runs.")


def demo(options: Demo) -> Results:
    """Run the stages and show what they found."""
    out = options.out
    # Small models are faster on one thread for each process.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    people = out / "intents" / "test.jsonl"
    users, assistant = _speakers(options, people)

    _say("1/5  simulate: the same intents, three kinds of user, one assistant")
    with unshown():  # the conversations come first
        import_(Import([str(assets.sample_logs())], out / "import"))
        clean(Clean(out / "import", out / "clean", template_limit=5, shares="80/5/15"))
        # The logs contain hand-written intents.
        intents(Intents(out / "clean", out / "intents"))
        intents(Intents(out / "clean", out / "intents-extractive", overwrite=True))
        talks = [out / name for name in users]
        for folder, user in zip(talks, users.values(), strict=True):
            few = user.parsed.is_prompted  # its turns are long, and so take long
            simulate(
                Simulate(
                    user,
                    assistant,
                    people,
                    out=folder,
                    max_turns=TURNS,
                    max_answer_tokens=ANSWER,
                    limit=PROMPTED if few else TALKS,
                )
            )
    _show_beside_each_other(talks)

    _say("2/5  simulate: who tells what a task needs? The assistant here is a stub")
    on_tasks = _on_tasks(users)
    tasks = str(assets.sample_tasks())
    for name, user in on_tasks.items():
        simulate(
            Simulate(user, "oracle", tasks=tasks, out=out / name, max_turns=TURNS + 1)
        )

    _say("3/5  train: tune a tiny user model on what the people of the logs said")
    # Train on extractive intents, which contain words of the first turn. Without these, a model
    # this small forgets that its turns depend on the intent.
    logs = out / "intents-extractive"
    train(Train(logs, options.base, out / "tuned", epochs=3, batch=32, lr=2e-4))
    for when, model in (("before", options.base), ("after", str(out / "tuned"))):
        ppl(Ppl(people, model, out / f"ppl-{when}"))

    _say("4/5  score: simulated users and people, by the same functions")
    user = next(iter(users.values()))
    respond(Respond(user, people, out / "respond", limit=PREFIXES))
    folders = [*talks, *(out / name for name in on_tasks), out / "respond"]
    score(Score(folders, people, tasks, out=out / "score"))

    _say("5/5  report")
    stages = ("import", "clean", "intents", "intents-extractive", "tuned")
    measured = (out / "ppl-before", out / "ppl-after", *folders, out / "score")
    written = report(
        Report([*(out / stage for stage in stages), *measured], out / "report")
    )
    _say_what_next(user, str(written["html"]))
    return written


def _speakers(options: Demo, people: Path) -> tuple[dict[str, User], str]:
    """Return the users, by the names of their runs, and the assistant. Models of ours that are
    missing are fetched; if they cannot be had, the tiny ones step in."""
    wanted = (options.user, options.assistant)
    if any(model in wanted for model in (EMBEDDED_USER, SMALL_ASSISTANT)):
        try:
            fetch(Fetch())
        except ModelError as error:
            warn(str(error), ModelWarning, stacklevel=2)
    assistant = options.assistant
    if assistant == SMALL_ASSISTANT:
        assistant = loading.small_or_tiny("assistant")
    users = {"user": User(options.user).with_embedded_defaults()}
    if address.parse(assistant).is_model:
        users["prompted"] = User(f"prompted:{assistant}")
    users["people"] = User(f"replay:{people}")
    return users, assistant


def _on_tasks(users: dict[str, User]) -> dict[str, User]:
    """Return the users that talk about the sample tasks, by the names of their runs. People did so
    in logs of their own."""
    replayed = User(f"replay:{assets.sample_task_logs()}")
    return {"user-tasks": users["user"], "people-tasks": replayed}


def _say_what_next(user: User, page: str) -> None:
    command = "userlm" if shutil.which("userlm") else sys.argv[0]
    console.print(
        "A few conversations and small models: this shows how the stages fit together, it is not "
        "a result.\n"
        f"Talk to the user:  {command} chat --user {user.user}\n"
        f"Open the report:   {page}"
    )


def _say(text: str) -> None:
    console.rule(Text(text, style="bold"), align="left")


def _show_beside_each_other(folders: list[Path]) -> None:
    """Print one conversation of each run about the same intent: the first in which the user of the
    first run speaks twice."""
    from userlm.show.finished import read_run  # heavy: pydantic
    from userlm.show.transcripts import transcript

    runs = [read_run(folder, TALKS) for folder in folders]
    by_id = [{talk.id: talk for talk in run.talks[0].shown} for run in runs]
    shared = [talk for id, talk in by_id[0].items() if all(id in it for it in by_id)]
    shown = max(shared, key=lambda talk: min(len(talk.user_turns), 2)).id
    for run, talks in zip(runs, by_id, strict=True):
        talk = talks[shown]
        console.print(run.name, style="bold")
        show([Transcripts([transcript(talk)], 1, "")])
