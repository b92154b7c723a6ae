"""What a reader should know first: what the runs are about, what was found and how sure that is,
and the few figures that carry it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from userlm.metrics.adherence import CEILINGS
from userlm.metrics.controls import OWN
from userlm.metrics.verdict import Conclusion, conclude
from userlm.show import assessed, compared, differences, evaluated, measures, verdicts
from userlm.show.blocks import (
    Block,
    Figure,
    Group,
    Line,
    Panel,
    Panels,
    Part,
    Quote,
    Section,
    Text,
    Value,
    Where,
    interval,
)
from userlm.show.finished import HUMAN, SPEAKING, Finished
from userlm.show.formats import called, number, plural
from userlm.show.measures import Column
from userlm.show.results import Measured
from userlm.show.training import loss_chart
from userlm.stats import PERPLEXITY, Estimate, difference
from userlm.types import Measure

Runs = Sequence[Finished]
Columns = Sequence[Column]
Concluded: TypeAlias = tuple[str, Conclusion]
"""A user, and what its measures say."""

FIGURES = 5
NAMES = 3
"""How many names a title has."""
FEW = 30
"""Conversations: fewer of them are a try."""
HARDEST = 2
"""How many differences from people are told of each user, if there is no assessment."""
DATA = {"import": "imported", "clean": "cleaned", "intents": "with intents"}
SCORE, COVERAGE = evaluated.SCORE, evaluated.COVERAGE
KEY = (SCORE, COVERAGE, "perplexity", "two-sample AUROC", "termination F1", "end rate")
"""Measures that are drawn, beside those in which users differ most from people."""


# --- what it is about -----------------------------------------------------------------------------


def title(runs: Runs) -> Line:
    """Return what the runs are about."""
    for verb, about in (
        ("compare", _about_cells),
        ("evaluate", _about_cells),
        ("assess", _about_assessments),
    ):
        if own := [run for run in runs if run.verb == verb]:
            return about(own)
    users = [run.user for run in runs if _talks(run)]
    if users:
        return _about_users(runs, users)
    for run in runs:
        if run.verb == "train":
            count = plural(run.results.get("conversations") or 0, "conversation")
            return (_called(str(run.options.get("base"))), f", trained on {count}")
    models = [str(run.options.get("model")) for run in runs if run.verb == "ppl"]
    if models:
        return ("How well ", *_listed(models, "and"), " predicts people")
    return _about_data(runs)


def _called(address: str) -> Quote:
    return Quote(called(address), 60)


def _listed(addresses: Iterable[str], word: str) -> Iterator[Part]:
    """Yield the different names, the last one after the word; many are counted."""
    names = list(dict.fromkeys(map(called, addresses)))
    if len(names) > NAMES:
        yield f"{len(names)} "
        yield {"or": "assistants", "and": "users"}[word]
        return
    for i, name in enumerate(names):
        is_last = i == len(names) - 1
        joint = f" {word} " if is_last else ", "
        yield joint if i else ""
        yield Quote(name, 60)


def _about_cells(runs: Runs) -> Line:
    cells = [cell for run in runs for cell in run.results["cells"]]
    assistants = [cell["assistant"] for cell in cells]
    users = [cell["user"] for cell in cells]
    return (*_listed(assistants, "or"), ", with ", *_listed(users, "and"))


def _about_assessments(runs: Runs) -> Line:
    people = max(run.results["counts"].get("out", 0) for run in runs)
    users = _listed((verdicts.user_of(run) for run in runs), "and")
    return (*users, f" against people, in {plural(people, 'conversation')}")


def _talks(run: Finished) -> bool:
    return run.verb in SPEAKING


def _about_users(runs: Runs, users: Sequence[str]) -> Line:
    simulated = [user for user in users if not user.startswith("replay:")]
    names = tuple(_listed(simulated or users, "and"))
    if any(HUMAN in run.columns for run in runs) and simulated:
        return (*names, " beside people")
    assistants = [
        str(run.options["assistant"]) for run in runs if run.options.get("assistant")
    ]
    if assistants:
        return (*names, ", with ", *_listed(assistants, "or"))
    return names


def _about_data(runs: Runs) -> Line:
    counts = [run.stage.outgoing for run in runs if run.verb in DATA and run.stage]
    known = [count for count in counts if count is not None]
    done = [
        done for verb, done in DATA.items() if any(run.verb == verb for run in runs)
    ]
    if known and done:
        return f"{plural(known[-1], 'conversation')}, {' and '.join(done)}"
    return "User model report"


# --- what was found -------------------------------------------------------------------------------


def section(runs: Runs, concluded: Sequence[Concluded]) -> Section:
    """Return the section with what was found and how sure it is. The terminal shows what it says of
    assessments and comparisons: the tables of other runs fit on a screen."""
    blocks = [
        *compared.answers(runs),
        *_cells(runs),
        *differences.sentences(runs),
        *verdicts.sentences(runs),
        *_likeness(concluded),
        *_tasks(runs),
        *_gain(runs),
        *_intents(runs),
        *_of_data(runs),
    ]
    verbs = {run.verb for run in runs}
    where: Where = "everywhere" if verbs & {"assess", "compare"} else "page"
    return Section("found", "What was found", "What was found", blocks, where=where)


def figures(
    runs: Runs,
    concluded: Sequence[Concluded],
    columns: Columns,
    colours: Mapping[str, str],
) -> Section:
    """Return the section with the few figures that carry what was found."""
    drawn = list(_panels(runs, concluded, columns))[:FIGURES]
    curves = list(_curves(runs, colours))[: FIGURES - len(drawn)]
    blocks: list[Block] = [Panels(drawn)] if drawn else []
    if curves:
        blocks.append(Group(curves, look="plots"))
    labels = dict.fromkeys(row.label.text for panel in drawn for row in panel.rows)
    intro = tuple(measures.asked(runs, labels))
    title = "The figures behind it"
    return Section("figures", "Figures", title, blocks, intro, where="page")


def _cells(runs: Runs) -> Iterator[Text]:
    """Yield a sentence for each assistant with each user of `evaluate`."""
    if any(run.verb == "compare" for run in runs):
        return
    for run in runs:
        for cell in run.results["cells"] if run.verb == "evaluate" else ():
            found = {one["name"]: one for one in cell["measures"]}
            names: Line = (_called(cell["assistant"]), " with ", _called(cell["user"]))
            if SCORE not in found or found[SCORE]["value"] is None:
                why = cell["failed"] or "no conversation has a grade"
                yield Text((names, ": not measured, ", Quote(why, 200), "."), "finding")
                continue
            said: Line = "."
            if (told := found.get(COVERAGE)) and told["value"] is not None:
                said = ("; the user said ", _share(told), " of the required facts.")
            tasks = plural(found[SCORE].get("clusters", 0), "task")
            solved = (" solved ", _share(found[SCORE]), f" of {tasks}")
            yield Text((names, solved, said), "finding")


def _share(one: Measured) -> Line:
    return (Value(one["value"] or 0.0, 1), " %", interval(one["low"], one["high"], 1))


def users(runs: Runs) -> Iterator[Concluded]:
    """Yield each user that was scored beside people, with what its measures say. What it said to a
    stub counts for nothing here."""
    if any(run.verb == "assess" for run in runs):
        return
    talking = {run.name: run for run in runs if _talks(run)}
    stages: dict[str, dict[str, list[dict[str, Any]]]] = {}
    options: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        people = run.columns.get(HUMAN, {})
        for name, column in run.columns.items() if run.verb == "score" else ():
            talks = talking.get(name)
            if talks is None or any(one.get("stub") for one in column.values()):
                continue
            user = talks.user
            options.setdefault(user, talks.options)
            rows = stages.setdefault(user, {}).setdefault(talks.verb, [])
            for one in column.values():
                human = people.get(one["name"])
                if human or one["name"] in CEILINGS:
                    rows.append({"user": one, "human": human})
    for user, measured in stages.items():
        if any(measured.values()):
            yield user, conclude({"measures": measured}, options[user])


def _likeness(concluded: Sequence[Concluded]) -> Iterator[Text]:
    """Yield whether users are like people, of which the first one is the subject. People beside
    themselves are left out: what they differ in is chance, or comes from other conversations."""
    simulated = [one for one in concluded if not one[0].startswith("replay:")]
    for i, (user, conclusion) in enumerate(simulated):
        if i:
            yield Text(("And ", _called(user), "? ", conclusion.answer), "finding")
        else:
            question = ("Is ", _called(user), " like people? ")
            yield Text((*question, conclusion.answer), "answer")
        worse = conclusion.of_kind("bad")
        for one in worse[:HARDEST]:
            yield Text(f"{one.sentence}.", "finding")
        left = len(worse) - HARDEST
        if left > 0:
            yield Text(f"And {left:,} more, in the tables below.", "finding")


def _tasks(runs: Runs) -> Iterator[Text]:
    """Yield how much users said of what their tasks need, and how many were solved."""
    names = {run.name: run.user for run in runs if _talks(run)}
    for name, what in (
        (COVERAGE, "Said of the facts that a task needs: "),
        (SCORE, "Tasks solved: "),
    ):
        known: list[Line] = []
        for run in runs:
            for column, found in run.columns.items() if run.verb == "score" else ():
                one = found.get(name)
                if one and one["value"] is not None:
                    joint = "; " if known else ""
                    user = _called(names.get(column, column))
                    left = (
                        f" ({one['missing']:,} not measured)" if one["missing"] else ""
                    )
                    known.append((joint, user, " ", _share(one), left))
        if known:
            yield Text((what, *known, "."), "finding")


def _gain(runs: Runs) -> Iterator[Text]:
    """Yield what training gained over the model that it began with."""
    for run in runs:
        if run.verb != "train":
            continue
        before, after = (
            (run.results.get(key) or {}).get("valid_perplexity")
            for key in ("untrained", "best")
        )
        base = _called(str(run.options.get("base")))
        count = plural(run.results.get("conversations") or 0, "conversation")
        if before is not None and after is not None:
            did = "lowered" if after < before else "did not lower"
            yield Text(
                (
                    (
                        "Training ",
                        base,
                        f" on {count} {did} the perplexity of turns it did not see: ",
                    ),
                    ("from ", Value(before, 1), " to ", Value(after, 1)),
                    f" at its best validation, {_change(before, after)}.",
                ),
                "answer",
            )
        yield from _beside_base(run, runs)


def _change(before: float, after: float) -> str:
    share = 100 * abs(after - before) / before if before else 0.0
    return f"{share:.0f} % {'lower' if after < before else 'higher'}"


def _beside_base(trained: Finished, runs: Runs) -> Iterator[Text]:
    """Yield how much better a trained model predicts the people of `ppl` than its base, in each
    system text that both were given."""
    measured = {
        called(str(run.options.get("model"))): run for run in runs if run.verb == "ppl"
    }
    tuned = measured.get(trained.name)
    base = measured.get(called(str(trained.options.get("base"))))
    if tuned is None or base is None or not tuned.may_be_paired(base):
        return
    for column in ("with intent", "without intent"):
        if (column, "perplexity") in tuned.rows and (column, "perplexity") in base.rows:
            after, before = (
                Measure("", None, None, None, run.rows[column, "perplexity"])
                for run in (tuned, base)
            )
            found = difference(after, before, PERPLEXITY)
            values = [
                run.columns[column]["perplexity"]["value"] for run in (base, tuned)
            ]
            if found.value is not None and None not in values:
                yield Text((*_told(column, values, found),), "finding")
                return


def _told(
    column: str, values: Sequence[float | None], found: Estimate
) -> Iterator[Part]:
    before, after = (value or 0.0 for value in values)
    yield f"On the turns of {found.clusters:,} people, {column}: perplexity "
    yield Value(before, 1)
    yield " before and "
    yield Value(after, 1)
    yield " after training, a difference of "
    yield number(found.value or 0.0, 1)
    yield interval(found.low, found.high, 1)
    low, high = found.low, found.high
    if low is None or high is None or low <= 0 <= high:
        yield ", which may be chance"
    yield "."


def _intents(runs: Runs) -> Iterator[Text]:
    """Yield how much an intent helps to predict what people say."""
    told: list[Line] = []
    for run in runs:
        found = run.columns.get(OWN, {}).get("perplexity ratio")
        if run.verb == "ppl" and found and found["value"] is not None:
            ends = interval(found["low"], found["high"])
            model = _called(str(run.options.get("model")))
            ratio = (" of ", model, " by ", Value(found["value"]), ends)
            told.append(("; " if told else "", *ratio))
    if told:
        yield Text(("The intent multiplies the perplexity", *told, "."), "finding")


def _of_data(runs: Runs) -> Iterator[Text]:
    """Yield what became of logs, where there is nothing else to tell."""
    if {run.verb for run in runs} - DATA.keys():
        return
    for run in runs:
        if (stage := run.stage) and stage.outgoing is not None and stage.incoming:
            kept = f"{stage.outgoing:,} of {plural(stage.incoming, 'conversation')} are left"
            yield Text((Quote(run.name, 60), f": {kept}."), "finding")


# --- what to know before it is believed -----------------------------------------------------------


def cautions(runs: Runs) -> Iterator[Line]:
    """Yield what makes the results less than they seem."""
    few = []
    limited = []
    for run in runs:
        for talks in run.talks if run.verb in ("simulate", "evaluate") else ():
            if talks.total < FEW:
                few.append(f"{talks.name} {talks.total:,}")
        stops: Counter[str] = Counter(run.results.get("stops") or {})
        if run.verb == "simulate" and 2 * stops["max_turns"] > stops.total():
            limited.append(f"{run.name} {stops['max_turns']:,} of {stops.total():,}")
    if few and any(run.verb in ("score", "evaluate") for run in runs):
        names = Quote(", ".join(few), 300)
        yield ("Few conversations: ", names, ". Take this as a try, not as a result.")
    if limited:
        names = Quote(", ".join(limited), 300)
        why = ". How long these are and how they end says little."
        yield ("Stopped at the limit of turns: ", names, why)
    for run in runs:
        stops = Counter(run.results.get("stops") or {})
        name = Quote(run.name, 60)
        if errors := stops["error"]:
            counted = f"{errors:,} of {stops.total():,}"
            yield (name, f": conversations unfinished by an error or a cap: {counted}.")
        if warning := run.results.get("warning"):
            yield (name, ": ", Quote(warning, 400), ".")


# --- figures --------------------------------------------------------------------------------------


def _panels(
    runs: Runs, concluded: Sequence[Concluded], columns: Columns
) -> Iterator[Panel]:
    """Yield the figures that carry what was found, the most important one first."""
    yield from _of_cells(runs)
    yield from assessed.largest(runs)
    telling = Counter(
        one.measure for _, found in concluded for one in found.of_kind("bad")[:HARDEST]
    )
    names = (*KEY[:2], *(name for name, _ in telling.most_common(2)), *KEY[2:])
    for name in dict.fromkeys(names):
        known = []
        for column in columns:
            is_apt = name in (SCORE, COVERAGE) or not column.stub
            one = column.measures.get(name)
            if is_apt and one and one["value"] is not None:
                known.append(column)
        if len(known) > 1:
            yield measures.panel(name, known, is_brief=True)


def _of_cells(runs: Runs) -> Iterator[Panel]:
    """Yield the score of each assistant with each user, and how much these said."""
    is_compared = any(run.verb == "compare" for run in runs)
    verb = "compare" if is_compared else "evaluate"
    cells = [cell for run in runs if run.verb == verb for cell in run.results["cells"]]
    users = list(dict.fromkeys(cell["user"] for cell in cells))
    columns = []
    for cell in cells:
        found = {one["name"]: one for one in cell["measures"]}
        label = f"{called(cell['assistant'])} with {called(cell['user'])}"
        look = f"c{users.index(cell['user']) % measures.COLOURS}"
        columns.append(Column(label, found, look, measures.MARKS[look]))
    for name in (SCORE, COVERAGE):
        known = [column for column in columns if name in column.measures]
        if any(column.measures[name]["value"] is not None for column in known):
            yield measures.panel(name, known, is_brief=True)


def _curves(runs: Runs, colours: Mapping[str, str]) -> Iterator[Figure]:
    for run in runs:
        if run.verb == "train" and (chart := loss_chart(run)):
            yield Figure(
                (Quote(run.name, 60), ": training loss"), "", chart, colours[run.name]
            )
