"""Parts of an input (`--part`), and the one run that `userlm merge` makes of them."""

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from scripted_speakers import tasks

from userlm import assets, commands
from userlm.commands import (
    Assess,
    Import,
    Intents,
    LocalModels,
    Merge,
    Ppl,
    Respond,
    Simulate,
    User,
    UserSettings,
    on_ray,
)
from userlm.commands.merge import IN_PARTS, merge
from userlm.commands.options import Output, Parts
from userlm.json_files import read_json, write_json, write_lines
from userlm.parts import Part
from userlm.rows import read_conversations, write_conversations
from userlm.show.finished import read_run
from userlm.text import INTENT_PREFIX
from userlm.types import Conversation, InputError, ModelError, Reply, Turn

SCRIPTED = f"py:{__name__}:says"
LOCAL = LocalModels(batch=1, device="cpu", dtype="float32")
TINY = User("trained:userlm-tiny", UserSettings(guard="no-repeat"))


def says(conversation: Conversation) -> Reply:
    """A user who says two things, and whose model fails on one conversation."""
    if conversation.id.startswith("c3"):
        raise ModelError("it is tired")
    said = len(conversation.user_turns)
    return Reply(f"what about {said}?") if said < 2 else Reply(stop="end")


def log(i: int) -> Conversation:
    turns = (
        Turn("user", f"how long do {i} eggs take"),
        Turn("assistant", "Ten minutes."),
        Turn("user", "and soft ones?"),
        Turn("assistant", "Six."),
    )
    meta = {"source": f"set {i % 2}"}
    intent = f"{INTENT_PREFIX}cook {i} eggs."
    return Conversation(f"c{i}", turns, intent, f"p{i}", ended=i % 3 == 0, meta=meta)


def logs(folder: Path, count: int = 9) -> Path:
    path = folder / "logs.jsonl"
    if not path.exists():
        write_conversations(path, map(log, range(count)))
    return path


def first(count: int, items: Path, path: Path) -> Path:
    with items.open() as lines:
        path.write_text("".join(islice(lines, count)))
    return path


def shards(folder: Path) -> list[str]:
    """Files of logs: with an id that is in two of them, a history that goes on in another one, pieces
    of a conversation in two of them, paths of a tree in two of them, and lines that are dropped."""

    def chat(id, *said, **more):
        turns = [
            {"role": ("user", "assistant")[at % 2], "content": text}
            for at, text in enumerate(said)
        ]
        return {"id": id, "messages": turns, **more}

    def piece(id, *said):
        turns = [
            {"from": ("human", "gpt")[at % 2], "value": text}
            for at, text in enumerate(said)
        ]
        return {"id": id, "conversations": turns}

    files = [
        [
            chat("a", "hi there", "hello"),
            {"nothing": 1},
            chat("b", "what is this", "x"),
        ],
        [chat("g1", "one", "1", user="p"), piece("QWJhYvA_0", "first", "1")],
        [chat("c", "how are you", "fine"), chat("a", "hi again", "yes")],
        [chat("g2", "one", "1", "two", "2", "three", "3", user="p")],
        [piece("QWJhYvA_2", "second", "2"), chat("a", "once more", "no")],
        [chat("d", "who is it", "me"), chat("d", "who is that", "you")],
    ]
    for at, rows in enumerate(files):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"shard{at}.jsonl").write_text(lines)
    return [str(folder / f"shard{at}.jsonl") for at in range(len(files))]


def tasks_file(folder: Path) -> str:
    path = folder / "tasks.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in tasks(7)))
    return str(path)


def joins(folder: Path) -> list[Path]:
    path = folder / "joins.jsonl"
    rows = [{"id": "c1", "intent": "boil an egg"}, {"id": "nobody", "intent": "fly"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [path]


def script(folder: Path) -> str:
    path = folder / "script.txt"
    path.write_text(f"{INTENT_PREFIX}boil something.")
    return f"script:{path}"


def tiny(folder: Path) -> User:
    """The embedded user, whose turns have at most 60 tokens: a quarter of what it can read."""
    place = folder / "tiny"
    shutil.copytree(assets.model("userlm-tiny"), place, dirs_exist_ok=True)
    config = read_json(place / "config.json")
    write_json(place / "config.json", config | {"max_position_embeddings": 240})
    return User(f"trained:{place}", TINY.settings)


VERBS = {
    "import": lambda here: Import(shards(here)),
    "intents": lambda here: Intents(logs(here), overwrite=True, join=joins(here)),
    "intents by a model": lambda here: Intents(
        logs(here), overwrite=True, writer=script(here), workers=1
    ),
    "respond, scripted": lambda here: Respond(User(SCRIPTED), logs(here), limit=8),
    "respond, tiny": lambda here: Respond(tiny(here), logs(here, 5), models=LOCAL),
    "simulate, scripted": lambda here: Simulate(
        User(SCRIPTED), "clarifier", logs(here), repeats=2
    ),
    "simulate, tiny": lambda here: Simulate(
        tiny(here), "clarifier", logs(here, 4), models=LOCAL, max_turns=2
    ),
    "simulate tasks": lambda here: Simulate(
        User("py:scripted_speakers:forgetful"),
        "py:scripted_speakers:guesses",
        tasks=tasks_file(here),
        repeats=2,
    ),
    "ppl": lambda here: Ppl(logs(here), "userlm-tiny", models=LOCAL, limit=8),
    "assess": lambda here: Assess(
        User(SCRIPTED), logs(here), assistant="clarifier", quick=True
    ),
    "assess, tiny": lambda here: Assess(
        TINY,
        logs(here, 5),
        models=LOCAL,
        quick=True,
        workers=1,
        role_items=first(4, assets.role_items(), here / "role.jsonl"),
        intent_items=first(4, assets.intent_items(), here / "intent.jsonl"),
    ),
}


def run(options, out: Path, **several):
    verb = next(run for kind, run in IN_PARTS.values() if kind is type(options))
    return verb(replace(options, out=out, several=Parts(**several)))


def parts(options, folder: Path, of: int = 3) -> list[Path]:
    """The folders of all parts, the last one first."""
    outs = []
    for number in range(of, 0, -1):
        outs.append(folder / f"{number}")
        run(options, outs[-1], part=f"{number}/{of}")
    return outs


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run, without what differs by time or name of the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(".") and "/." not in name:
            found[name] = path.read_bytes().replace(str(folder).encode(), b"OUT")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_parts_that_are_merged_are_the_one_run_byte_for_byte(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = VERBS[name](tmp_path)
    ways = (tmp_path / "one/run", tmp_path / "several/run")
    run(options, ways[0])
    merge(Merge(parts(options, tmp_path), ways[1]))
    whole, merged = map(contents, ways)
    assert whole.keys() == merged.keys()
    for file in whole:
        assert merged[file] == whole[file], file


def test_a_part_is_a_stable_share_and_every_id_has_one():
    assert [Part(number, 3).has("c1") for number in (1, 2, 3)].count(True) == 1
    # the even ones of the 8 bytes of blake2b of "part", 0x1f and the id
    assert [id for id in "0123456789" if Part(1, 2).has(id)] == list("03467")


@pytest.mark.parametrize(
    "bad", ["0/4", "5/4", "4", "1/0", "a/b", "1/4/2", "-1/4", "1/9999999", ""]
)
def test_a_part_that_there_is_not_is_an_error_that_names_it(bad, tmp_path):
    with pytest.raises(InputError, match="--part"):
        run(Intents(logs(tmp_path)), tmp_path / "out", part=bad)


def test_a_part_without_anything_is_complete_and_merged(tmp_path):
    options = Respond(User(SCRIPTED), logs(tmp_path, 1))
    run(options, tmp_path / "whole")
    outs = parts(options, tmp_path)
    assert sorted(len(list(responses(out))) for out in outs) == [0, 0, 3]
    merge(Merge(outs, tmp_path / "merged"))
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def responses(folder: Path):
    return read_conversations(folder / "conversations.jsonl", may_be_empty=True)


@pytest.mark.parametrize("verb", ["intents", "ppl", "import", "simulate, scripted"])
def test_a_part_of_each_verb_may_be_empty(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if verb == "import":
        options = Import(shards(tmp_path)[:1])
    else:
        logs(tmp_path, 1)
        options = VERBS[verb](tmp_path)
    run(options, tmp_path / "whole")
    merge(Merge(parts(options, tmp_path), tmp_path / "merged"))
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


@pytest.fixture
def three(tmp_path):
    """Three parts, and what they are parts of."""
    options = Respond(User(SCRIPTED), logs(tmp_path))
    return options, sorted(parts(options, tmp_path))


def refused(folders: list[Path], said: str) -> None:
    with pytest.raises(InputError, match=said):
        merge(Merge(folders, folders[0].parent / "merged"))


def test_a_missing_part_is_named(three):
    _, (first, _, third) = three
    refused([first, third], "missing: part 2/3")


def test_a_report_of_a_part_of_assess_says_how_to_merge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *_ = parts(VERBS["assess"](tmp_path), tmp_path)
    with pytest.raises(
        InputError, match=f"merge the parts first: userlm merge {first}"
    ):
        read_run(first)


def test_a_part_that_is_given_twice_is_named(three, tmp_path):
    _, (first, second, third) = three
    shutil.copytree(second, tmp_path / "copy")
    refused([first, second, third, tmp_path / "copy"], "2 and .*copy are both part 2/3")


def test_an_unfinished_part_is_named(three):
    _, folders = three
    (folders[1] / "results.json").unlink()
    refused(folders, f"{folders[1]} is not finished")


def test_a_run_of_the_whole_input_is_no_part(three, tmp_path):
    options, folders = three
    run(options, tmp_path / "whole")
    refused([*folders, tmp_path / "whole"], "whole is a run of the whole input")


def test_parts_of_another_division_are_named(three, tmp_path):
    options, (first, second, _) = three
    run(options, tmp_path / "other", part="3/4")
    refused([first, second, tmp_path / "other"], "1 is part 1/3 and .*other part 3/4")


def test_parts_with_other_options_are_named(three, tmp_path):
    options, (first, second, _) = three
    run(replace(options, seed=1), tmp_path / "other", part="3/3")
    refused([first, second, tmp_path / "other"], "other options .*seed=0 and seed=1")


def test_parts_of_two_verbs_are_named(three, tmp_path):
    _, (first, second, _) = three
    run(Import(shards(tmp_path)), tmp_path / "other", part="3/3")
    refused([first, second, tmp_path / "other"], "other verb .*respond.*import")


def test_parts_of_other_inputs_are_named(three, tmp_path):
    options, (first, second, _) = three
    write_conversations(options.data, map(log, range(8)))
    run(options, tmp_path / "other", part="3/3")
    refused([first, second, tmp_path / "other"], "other inputs .*logs.jsonl")


def test_inputs_that_changed_since_are_named(three):
    options, folders = three
    write_conversations(options.data, map(log, range(8)))
    refused(folders, "is of other inputs than there are now .*logs.jsonl")


def test_parts_by_other_versions_are_named(three):
    _, folders = three
    made = read_json(folders[2] / "run.json")
    made["versions"]["torch"] = "1.0"
    write_json(folders[2] / "run.json", made)
    refused(folders, "other versions .*torch")


def test_a_part_that_was_copied_in_part_is_named(three):
    _, three = three
    rows = three[0] / "conversations.jsonl"
    *kept, _ = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(kept))
    refused(three, "has other rows than when it was finished .conversations.jsonl.")


def test_no_part_is_replaced_by_the_run_of_all(three):
    _, three = three
    out = three[0]
    with pytest.raises(InputError, match="--force would delete"):
        merge(Merge(three, out, Output(force=True)))
    assert (out / "conversations.jsonl").is_file()


def test_usage_and_limits_are_sums(tmp_path):
    options = Intents(
        logs(tmp_path), overwrite=True, writer=script(tmp_path), price="1/2"
    )
    whole = run(options, tmp_path / "whole")
    limited = replace(options, limits=commands.Limits(max_calls=50, budget=0.1))
    merged = merge(Merge(parts(limited, tmp_path), tmp_path / "merged"))
    assert merged["usage"] == whole["usage"]
    assert merged["caps"] == {"max_calls": 150, "max_tokens_total": None, "budget": 0.3}


def test_parts_with_other_prices_are_named(tmp_path):
    options = Intents(
        logs(tmp_path), overwrite=True, writer=script(tmp_path), price="1/2"
    )
    first, second = parts(options, tmp_path, of=2)
    shutil.rmtree(second)
    run(replace(options, price="1/3"), second, part="1/2")
    refused([first, second], "other prices of the writer .1/2, 1/3.")


def test_the_merged_run_goes_on_with_what_failed(tmp_path, monkeypatch):
    options = Respond(User(SCRIPTED), logs(tmp_path))
    merged = merge(Merge(parts(options, tmp_path), tmp_path / "merged"))
    assert merged["stops"]["error"] == 3
    monkeypatch.setattr(f"{__name__}.says", lambda conversation: Reply("once more"))
    went_on = run(options, tmp_path / "merged")
    assert "error" not in went_on["stops"]
    again = merge(Merge([tmp_path / f"{n}" for n in (1, 2, 3)], tmp_path / "merged"))
    assert again["stops"] == went_on["stops"]


def test_parts_that_were_mended_since_are_not_what_was_merged(tmp_path, monkeypatch):
    options = Respond(User(SCRIPTED), logs(tmp_path))
    both = Merge(parts(options, tmp_path), tmp_path / "merged")
    assert merge(both)["stops"]["error"] == 3
    monkeypatch.setattr(f"{__name__}.says", lambda conversation: Reply("once more"))
    parts(options, tmp_path)
    with pytest.raises(InputError, match="--force merges anew"):
        merge(both)
    # One that could not begin has merged nothing.
    (tmp_path / "logs.jsonl").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="does not exist"):
        merge(replace(both, output=Output(force=True)))
    (tmp_path / "elsewhere").rename(tmp_path / "logs.jsonl")
    with pytest.raises(InputError, match="--force merges anew"):
        merge(both)
    # A file that somebody put there is no row of the part.
    (tmp_path / "1/notes.jsonl").write_text("{}\n")
    assert "error" not in merge(replace(both, output=Output(force=True)))["stops"]
    (tmp_path / "1/notes.jsonl").unlink()
    assert "error" not in merge(both)["stops"]


def test_merging_again_tries_what_failed_again(tmp_path, monkeypatch):
    options = Merge(
        parts(Respond(User(SCRIPTED), logs(tmp_path)), tmp_path), tmp_path / "merged"
    )
    again = replace(options, run_bots=True)
    assert merge(options)["stops"]["error"] == 3
    assert merge(again)["stops"]["error"] == 3
    monkeypatch.setattr(f"{__name__}.says", lambda conversation: Reply("once more"))
    assert "error" not in merge(again)["stops"]
    assert "error" not in merge(options)["stops"]  # which runs nothing


def test_merging_again_runs_no_bot_that_only_the_parts_name(tmp_path):
    ran = tmp_path / "ran"
    intents = tmp_path / "intents.txt"
    intents.write_text("".join(f"buy {i}\n" for i in range(8)))
    script = tmp_path / "lines.txt"
    script.write_text("hello\n")
    bot = f"cmd:sh -c 'touch {ran}'"  # which says nothing
    options = Simulate(User(f"script:{script}"), bot, intents, max_turns=1)
    folders = []
    for part in ("1/2", "2/2"):
        out = tmp_path / part[0]
        with pytest.raises(ModelError, match="ended in an error"):
            run(options, out, part=part)
        folders.append(out)
    ran.unlink()
    merged = Merge(folders, tmp_path / "merged")
    with pytest.raises(ModelError, match="ended in an error"):
        merge(merged)
    with pytest.raises(InputError, match=r"needs cmd:sh .* give --run-bots if"):
        merge(merged)
    assert not ran.exists()
    with pytest.raises(ModelError, match="ended in an error"):
        merge(replace(merged, run_bots=True))
    assert ran.exists()


CHECKS = {
    "py": "code_of_the_parts:check",
    "tests": "assert f(2) == 4",
}
"""Checks that run code: a module that the tasks name, and the answers."""


@pytest.mark.parametrize("kind", CHECKS)
def test_merging_runs_no_check_and_no_answer_that_only_the_parts_name(
    kind, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n"
    Path("code_of_the_parts.py").write_text(
        f"{code}def check(text, conversation):\n    return False\n"
    )
    Path("lines.txt").write_text("write f\n")
    tasks = (
        {"id": f"t{i}", "intent": "f", "check": {kind: CHECKS[kind]}} for i in range(8)
    )
    write_lines(Path("tasks.jsonl"), tasks)
    log = Conversation("t0#0", intent="f").say("write f")
    write_conversations(
        Path("log.jsonl"), [log.say(f"```python\ndef f(x):\n    {code}```")]
    )
    options = Simulate(
        User("script:lines.txt"),
        "replay:log.jsonl",  # which knows one of the tasks, so the others fail
        tasks="tasks.jsonl",
        max_turns=1,
        unsafe_local=kind == "tests",
    )
    folders = []
    for part in ("1/2", "2/2"):
        folders.append(Path(part[0]))
        with suppress(ModelError):
            run(options, folders[-1], part=part)
    assert ran.exists()
    ran.unlink()
    sys.modules.pop("code_of_the_parts", None)
    merged = Merge(folders, Path("merged"))
    assert merge(merged)["stops"]["error"] == 7
    with pytest.raises(InputError, match=r"what failed needs .*; give --run-bots if"):
        merge(merged)
    assert not ran.exists()
    assert merge(replace(merged, run_bots=True))["stops"]["error"] == 7


def test_where_nothing_failed_a_check_is_not_needed_to_merge_again(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("another_code_of_parts.py").write_text("def check(text, conversation): ...\n")
    Path("lines.txt").write_text("write f\n")
    check = {"py": "another_code_of_parts:check"}
    tasks = ({"id": f"t{i}", "intent": "f", "check": check} for i in range(8))
    write_lines(Path("tasks.jsonl"), tasks)
    user = User("script:lines.txt")
    options = Simulate(user, "script:lines.txt", tasks="tasks.jsonl", max_turns=1)
    for part in ("1/2", "2/2"):
        run(options, Path(part[0]), part=part)
    sys.modules.pop("another_code_of_parts", None)
    found = merge(Merge([Path("1"), Path("2")], Path("merged")))
    assert merge(Merge([Path("1"), Path("2")], Path("merged"))) == found
    assert "another_code_of_parts" not in sys.modules


def test_a_complete_run_of_something_else_is_not_taken_for_the_merged_one(tmp_path):
    options = Respond(User(SCRIPTED), logs(tmp_path))
    run(replace(options, limit=2), tmp_path / "merged")
    with pytest.raises(InputError, match="merged are of runs with other options"):
        merge(Merge(parts(options, tmp_path), tmp_path / "merged"))


def test_without_ray_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = Respond(User(SCRIPTED), logs(tmp_path))
    with pytest.raises(InputError, match=r"pip install 'userlm\[ray\]'"):
        run(options, tmp_path / "out", on="ray")
    with pytest.raises(InputError, match="leave --part out"):
        run(options, tmp_path / "out", on="ray", part="1/2")


def test_parts_on_a_cluster_divide_the_limits_and_are_no_more_together(tmp_path):
    limits = commands.Limits(max_calls=10, budget=1.0)
    options = Respond(User(SCRIPTED), logs(tmp_path), limits=limits)
    of_three = [on_ray.of_part(options, Part(number, 3)) for number in (1, 2, 3)]
    assert [one.limits.max_calls for one in of_three] == [3, 3, 3]
    assert [one.limits.budget for one in of_three] == [0.333333] * 3
    assert [one.several.part for one in of_three] == ["1/3", "2/3", "3/3"]
    assert len({one.out for one in of_three}) == 3


def test_a_line_that_its_part_dropped_is_kept_if_one_run_keeps_it(
    tmp_path, monkeypatch
):
    """The third file goes on with the first, and is dropped only beside the second."""
    monkeypatch.chdir(tmp_path)
    said = (["one", "1"], ["other", "2"], ["one", "1", "two", "2"])
    names = [f"{n}.jsonl" for n in range(50)]
    first = next(name for name in names if Part(1, 2).has(name))
    others = [name for name in names if Part(2, 2).has(name)][:2]
    for name, texts in zip([first, *others], said, strict=True):
        turns = [
            {"role": ("user", "assistant")[at % 2], "content": text}
            for at, text in enumerate(texts)
        ]
        Path(name).write_text(json.dumps({"id": "x", "messages": turns}))
    options = Import([first, *others])
    ways = (tmp_path / "one/run", tmp_path / "several/run")
    run(options, ways[0])
    merge(Merge(parts(options, tmp_path, of=2), ways[1]))
    assert contents(ways[0]) == contents(ways[1])
    [kept] = read_conversations(ways[1] / "conversations.jsonl")
    assert kept.turns[-1].text == "2"


def test_an_import_of_parts_refuses_what_it_would_tear_apart(tmp_path):
    span = tmp_path / "a.jsonl"
    span.write_text('{"chat": "x", "who": "user", "said": "hello"}\n')
    options = Import([str(span)], map="id=chat,role=who,text=said")
    with pytest.raises(InputError, match="may be in another part"):
        run(options, tmp_path / "out", part="1/1")
    with pytest.raises(InputError, match="--limit counts the lines"):
        run(Import([str(span)], limit=2), tmp_path / "out", part="1/1")
