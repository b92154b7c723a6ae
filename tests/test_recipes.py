"""The recipes in `recipes/`: on small files, or with a stand-in for `userlm` that notes how it is
called."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import typer
from fake_server import completion, serving

from userlm import cli
from userlm.commands.options import option_types
from userlm.commands.train import Train
from userlm.rows import read_conversations, to_record, write_conversations
from userlm.types import Conversation, Turn

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.mark.slow
def test_the_counts_of_wildchat_stand_beside_those_of_the_paper(tmp_path):
    """Three openings in English by one person, two in French, and a template of 101 copies by
    another."""

    def row(i: int, text: str, language: str, person: str) -> str:
        messages = [
            {
                "role": role,
                "content": words,
                "language": language,
                "turn_identifier": 2 * i,
            }
            for role, words in (("user", text), ("assistant", "Here you are."))
        ]
        named = {
            "hashed_ip": person,
            "country": "Chile",
            "language": language,
            "toxic": False,
            "redacted": False,
        }
        return json.dumps(
            {
                "conversation_hash": f"{i:032x}",
                "conversation": messages,
                "turn": 1,
                **named,
            }
        )

    template = "please act as a prompt generator for midjourney"
    openings = [(f"question number {i}", "English", "a") for i in range(3)]
    openings += [(f"question numéro {i}", "French", "a") for i in range(2)]
    openings += [(f"{template} {i}", "English", "b") for i in range(101)]
    logs = tmp_path / "logs.jsonl"
    logs.write_text(
        "".join(row(i, *opening) + "\n" for i, opening in enumerate(openings))
    )

    env = processes.on_path(tmp_path / "bin") | {"USERLM": str(tmp_path / "bin/userlm")}
    command = ["bash", RECIPES / "wildchat_counts.sh", logs, tmp_path / "runs"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()[1:]]
    # 106 less the French; of these the three that are no template, all of one person, whose draw
    # says train
    assert [(name, paper, ours) for name, paper, ours, _ in table[:3]] == [
        ("English", "478,498", "104"),
        ("after the template filter", "384,336", "3"),
        ("train", "343,951", "3"),
    ]
    # Each of them has a user turn and an end.
    assert table[5][:3] == ["train, samples", "1,047,930", "6"]


SCRIPTS = sorted(RECIPES.rglob("*.sh"))


@pytest.mark.parametrize(
    "script", SCRIPTS, ids=lambda path: str(path.relative_to(RECIPES))
)
def test_every_script_is_bash_and_can_be_run(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    "path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.parent.name
)
def test_every_configuration_holds_options_of_train(path):
    kinds = option_types(Train)
    assert cli.read_config(path, "train", kinds)["max_tokens"] == 2048


def test_the_configuration_for_four_gpus_is_one_that_accelerate_takes():
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(RECIPES / "userlm-8b/fsdp2.yaml"))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (
        "FSDP",
        4,
        "bf16",
    )
    assert config.fsdp_config["fsdp_version"] == 2
    # What it does not know it drops in silence.
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert known.keys() >= config.fsdp_config.keys()


STUB = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"
echo >> "$CALLS"
for word in "$@"; do
  [ "$last" = --out ] && out=$word
  last=$word
done
case " $* " in *" train "*) verb=train ;; *) verb=$1 ;; esac
mkdir -p "$out"
cp "$RESULTS/$verb.json" "$out/results.json"
printf '%s\\n' one two three four five > "$out/train.jsonl"
"""
"""Stands in for `userlm`: notes how it was called, and finishes at once with results of our own."""

TRAINED = {
    "conversations": 1500,
    "samples": 4000,
    "steps": 63,
    "untrained": {"valid_perplexity": 80.0},
    "best": {"valid_perplexity": 20.0, "valid_termination_f1": None},
    "throughput": {"hours": 0.25},
}
PERPLEXITY = {"name": "perplexity", "value": 20.0, "low": 18.5, "high": 21.25}
SCORED = {
    "without intent": [
        {**PERPLEXITY, "name": "bits per byte", "value": 1.0},
        PERPLEXITY,
    ],
    "with intent": [{"name": "perplexity", "value": 16.126, "low": None, "high": None}],
}


@pytest.fixture
def walk(tmp_path):
    """Walk through a script with a stand-in for `userlm`: what it printed, and how it called which
    verbs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/userlm").write_text(STUB)
    (tmp_path / "bin/userlm").chmod(0o755)
    (tmp_path / "bin/python").symlink_to(sys.executable)
    for verb in cli.VERBS:
        (tmp_path / f"{verb}.json").write_text(
            json.dumps({"train": TRAINED, "ppl": SCORED}.get(verb, {}))
        )

    def walked(script, *options, **variables):
        env = {
            "PATH": os.environ["PATH"],
            "USERLM": str(tmp_path / "bin/userlm"),
            "OUT": str(tmp_path / "runs"),
        }
        env |= {"CALLS": str(tmp_path / "calls"), "RESULTS": str(tmp_path), **variables}
        command = ["bash", RECIPES / script, *options]
        done = subprocess.run(
            command,
            env=env,
            cwd=RECIPES.parent,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        calls = [
            shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()
        ]
        (tmp_path / "calls").unlink()
        return done.stdout, calls

    return walked


def check(calls):
    """Every call has a verb and options that the command line knows; the verbs."""
    known = typer.main.get_command(cli.app).commands
    verbs = []
    for call in calls:
        verb, *rest = call[call.index("train") :] if "train" in call else call
        if "--config" in rest:
            at = rest.index("--config")
            assert Path(rest[at + 1]).is_file()
            del rest[at : at + 2]
        known[verb].make_context(verb, rest)
        verbs.append(verb)
    return verbs


ROAD = ["import", "clean", "intents", "train", "ppl", "report"]


def option(call, name):
    return call[call.index(name) + 1]


def test_userlm_1b_walks_the_whole_road_and_hands_options_to_train(walk):
    _, calls = walk(
        "userlm-1b/run.sh",
        "--steps",
        "3",
        INTENTS="--writer openai:gpt-4o --price 2.50/10 --budget 5",
    )
    assert check(calls) == ROAD
    assert calls[0][1] == "hf://datasets/allenai/WildChat-1M"
    assert option(calls[2], "--budget") == "5"
    assert option(calls[3], "--steps") == "3"
    assert option(calls[3], "--config").endswith("userlm-1b/train.toml")
    assert option(calls[4], "--model").endswith("runs/userlm-1b/train")


def test_userlm_8b_is_launched_on_several_gpus(walk, tmp_path):
    _, calls = walk("userlm-8b/run.sh", LAUNCH=f"{tmp_path / 'bin/userlm'} launch")
    assert check(calls) == ROAD
    assert calls[3][:2] == ["launch", "train"]
    assert option(calls[3], "--config").endswith("userlm-8b/train.toml")
    assert option(calls[4], "--model").endswith("runs/userlm-8b/train")
    written = (RECIPES / "userlm-8b/run.sh").read_text()
    assert "accelerate launch --config_file $here/fsdp2.yaml -m userlm" in written


def test_the_ablations_differ_in_one_thing_each_and_stand_in_one_table(walk):
    printed, calls = walk("ablations/run.sh", "--limit", "9", INSTRUCT="some/instruct")
    assert check(calls) == [*ROAD, "train", "ppl", "train", "ppl"]
    standard, without, instruct = (call for call in calls if call[0] == "train")
    end = standard.index("--out")
    assert without[: end + 1] == [*standard[:end], "--no-intent"]
    assert instruct[: end + 4] == [
        *standard[:end],
        "--base",
        "some/instruct",
        "--init",
        "instruct",
    ]
    assert printed.splitlines()[-4:] == [
        f"{'':26}       tested without intent          tested with intent",
        "standard                          20.00 [18.50, 21.25]                       16.13",
        "trained without intent            20.00 [18.50, 21.25]                       16.13",
        "from an instruct model            20.00 [18.50, 21.25]                       16.13",
    ]


def test_own_logs_must_be_given_and_may_be_cleaned_otherwise(walk):
    with pytest.raises(
        AssertionError, match="give the files or the folder of your logs"
    ):
        walk("own-logs/run.sh")
    _, calls = walk("own-logs/run.sh", LOGS="mine.jsonl")
    assert check(calls) == ROAD
    assert "--scrub" in calls[1]
    _, calls = walk("own-logs/run.sh", LOGS="mine.jsonl", CLEAN="--languages de")
    assert option(calls[1], "--languages") == "de" and "--scrub" not in calls[1]


def test_how_many_trains_on_more_and_more_and_says_what_each_step_gains(walk, tmp_path):
    # Leaves five conversations, as the stand-in writes them.
    walk("own-logs/run.sh", LOGS="mine.jsonl")
    printed, calls = walk("own-logs/how_many.sh", "--epochs", "2", LIMITS="2 4 5 100")
    assert check(calls) == ["train"] * 3
    # All of them once.
    assert [option(call, "--limit") for call in calls] == [
        "2",
        "4",
        "5",
    ]
    lines = (tmp_path / "runs/how-many/train.jsonl").read_text().split()
    assert sorted(lines) == ["five", "four", "one", "three", "two"] != lines
    # before training 80; then 20, which is 75 % less; then 20 again, which gains nothing
    assert [line.split() for line in printed.splitlines()[-5:]] == [
        "conversations samples steps perplexity gain termination F1 hours".split(),
        ["0", "0", "0", "80.00"],
        ["1,500", "4,000", "63", "20.00", "75.0", "%", "–", "0.25"],
        ["1,500", "4,000", "63", "20.00", "0.0", "%", "–", "0.25"],
        ["1,500", "4,000", "63", "20.00", "0.0", "%", "–", "0.25"],
    ]


def test_the_papers_table_has_ours_beside_theirs_and_doubts_where_they_are_due(
    walk, tmp_path
):
    models = "UserLM-1b=trained:mine mine-too=prompted:some/model"
    printed, calls = walk("table1_perplexity/run.sh", "--limit", "7", MODELS=models)
    assert check(calls) == ["import", "intents", *["ppl"] * 4]
    assert [option(call, "--model") for call in calls[2:]] == ["trained:mine"] * 2 + [
        "prompted:some/model"
    ] * 2
    table, footnote, _ = printed.split("\n\n")[-3:]
    ours, told = "20.00 [18.50, 21.25]", "16.13"
    assert table.splitlines()[-10:] == [
        "|  | WildChat, without intent: paper | WildChat, without intent: ours | WildChat, with "
        "intent: paper | "
        "WildChat, with intent: ours | PRISM, without intent: paper | PRISM, without intent: ours "
        "| "
        "PRISM, with intent: paper | PRISM, with intent: ours |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
        "| Llama3.2-1b-Instruct | 37.68 | – | 29.09 | – | 84.00 | – | 53.54 | – |",
        "| Llama3-8b-Instruct | 98.29 | – | 48.13 | – | 89.98 | – | 40.86 | – |",
        "| GPT-4o-mini \\* | 26.08 | – | 16.08 | – | 35.02 | – | 20.80 | – |",
        "| GPT-4o \\* | 26.19 | – | 21.40 | – | 40.25 | – | 36.29 | – |",
        "| USP-8b | 32.08 | – | 21.78 | – | 50.91 | – | 30.16 | – |",
        f"| UserLM-1b | 8.30 | {ours} | 7.78 | {told} | 18.58 | {ours} | 10.33 | {told} |",
        "| UserLM-8b | 5.60 | – | 4.33 | – | 14.92 | – | 7.42 | – |",
        f"| mine-too | – | {ours} | – | {told} | – | {ours} | – | {told} |",
    ]
    assert footnote.startswith(
        "\\* The rows are labelled as on the authors' slides. A closed chat model"
    )
    assert (tmp_path / "runs/table1_perplexity/table.md").read_text() == printed[
        printed.index("|  | Wild") :
    ]


def prism(i: int) -> dict[str, object]:
    """A row of PRISM: a person who asks twice, and takes the first answer each time."""
    history: list[dict[str, object]] = []
    for turn, asked in enumerate((f"how do i grow {FRUIT[i]}", "and in a pot")):
        history.append({"turn": turn, "role": "user", "content": asked})
        for k, chosen in enumerate((True, False)):
            said = f"Answer {k} about soil."
            row = {"turn": turn, "role": "model", "content": said, "score": 50}
            history.append({**row, "within_turn_id": k, "if_chosen": chosen})
    named = {"conversation_id": f"c{i}", "user_id": f"user{i}"}
    return {**named, "conversation_history": history}


FRUIT = ("lemons", "figs", "plums", "pears", "grapes", "kiwis")


def said_by_models(body, n=0):
    """A user that asks about soil, and a judge that finds that it stays a user."""
    if body["model"] == "user":
        return completion("which soil should i take", tokens_out=5)
    label = "USER" if "USER" in str(body["messages"]) else "ADHERES"
    return completion(json.dumps({"reason": "So it is.", "label": label}))


@pytest.mark.slow
def test_the_papers_table_of_six_measures_is_made_of_any_users_and_a_judge(tmp_path):
    rows = [json.dumps(prism(i)) for i in range(len(FRUIT))]
    (tmp_path / "prism.jsonl").write_text("\n".join(rows))
    (tmp_path / "script.txt").write_text("how do i grow it\nthanks")
    env = processes.on_path(tmp_path / "bin") | {
        "USERLM": str(tmp_path / "bin/userlm"),
        "OUT": str(tmp_path / "runs"),
        "PRISM": str(tmp_path / "prism.jsonl"),
        "OPENAI_API_KEY": "a-key",
    }
    with serving(said_by_models) as server:
        users = f"GPT-4o=prompted:{server.url}#user mine=script:{tmp_path}/script.txt"
        command = ["bash", RECIPES / "table2_intrinsic/run.sh", "--quick"]
        done = subprocess.run(
            [*command, "--judge", f"{server.url}#judge"],
            env=env | {"USERS": users},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "runs/table2_intrinsic/table.md").read_text()
    assert text in done.stdout
    table = {}
    for line in text.splitlines()[2:]:
        if line.startswith("| "):
            name, *cells = line[2:-2].split(" | ")
            table[name] = cells
    assert table["UserLM-8b"][::2] == "94.55 2.69 63.54 80.21 93.95 94.65".split()
    assert set(table["UserLM-8b"][1::2]) == {"–"}
    # All say the same first; and one of two turns of the script is where people end.
    assert table["GPT-4o"][1].startswith("0.00")
    assert table["mine"][0] == "–" and table["mine"][5] != "–"
    # The judge counts, and not the rule: by the rule nobody stays with the intent.
    assert (
        table["GPT-4o"][9].startswith("100.00") and table["GPT-4o"][11][:6] == "100.00"
    )
    assert table["humans"][0] == "94.01" and table["humans"][1] != "–"


@pytest.mark.slow
def test_users_on_tasks_stand_beside_the_figures_of_the_paper(tmp_path):
    """The 65 ids in small files of three public forms, two scripted users, and the oracle."""
    ids = (RECIPES / "table3_extrinsic/ids.txt").read_text().split()
    assert len(ids) == len(set(ids)) == 65
    assert sum(id.startswith("GSM8K/") for id in ids) == 20
    math = []
    code = []
    for number, id in enumerate(ids, 20):
        if id.startswith("GSM8K/"):
            shards = [{"shard": "how many apples?"}, {"shard": f"there are {number}"}]
            row = {"task_id": f"sharded-{id}", "task": "math", "shards": shards}
            question = f"There are {number} apples. How many?"
            math.append({**row, "question": question, "answer": f"#### {number}"})
        else:
            prompt = 'def f(a):\n    """Return a.\n    >>> f(1)\n    1\n    """\n'
            row = {"task_id": id, "prompt": prompt, "entry_point": "f"}
            tests = "def check(candidate):\n    assert candidate(1) == 1\n"
            row["canonical_solution"] = "    return a\n"
            code.append({**row, "test": tests})
    math.append({**math[0], "task_id": "sharded-GSM8K/1", "shards": []})  # of no use
    for name, rows in (("math", math), ("code", code)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "users_of_a_table.py").write_text(
        "import userlm\n"
        "def all_at_once(conversation: userlm.Conversation):\n"
        "    return conversation.intent\n"
        "def nothing(text):\n"
        "    return 'please help'\n"
    )
    users = "UserLM-8b=py:users_of_a_table:all_at_once mine=py:users_of_a_table:nothing"
    users += " single=single"
    env = processes.on_path(tmp_path / "bin") | {
        "USERLM": str(tmp_path / "bin/userlm"),
        "OUT": str(tmp_path / "runs"),
        "SOURCES": f"{tmp_path}/math.jsonl {tmp_path}/code.jsonl",
        "ROWS": users,
        "ASSISTANT": "oracle",
        "REPEATS": "1",
    }
    done = subprocess.run(
        ["bash", RECIPES / "table3_extrinsic/run.sh", "--unsafe-local"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    table = {}
    for line in done.stdout[done.stdout.index("| GPT-4o-mini") :].splitlines():
        if line.startswith("| "):
            name, *cells = line[2:-2].split(" | ")
            table[name] = cells
    theirs = "76.7 54.3 37.7 43.8 2.8 2.1–6.7 0.71 57.4".split()
    assert table["UserLM-8b"][::2] == theirs
    ours = table["UserLM-8b"][1::2]
    assert ours[0].startswith("100.0 [") and ours[7].startswith("100.0 [")
    assert (ours[3], ours[5]) == ("–", "1.0–1.0")  # no judge; all are solved at once
    assert set(table["GPT-4o"][1::2]) == {"–"}
    # Eight turns, and none says anything.
    assert table["mine"][1].startswith("0.0 [") and table["mine"][11] == "8.0–8.0"
    assert table["mine"][15].startswith("0.0 [")
    assert table["single"][15].startswith("100.0 [")


# --- the small models -----------------------------------------------------------------------------

TALK = [
    ("user", "hi there"),
    ("assistant", "Hello you."),
    ("user", "thanks a lot"),
    ("assistant", "Bye now."),
]


def logs_of_the_small_models(folder):
    """A run of `intents`: two good conversations of each source, and what is not to be learned
    from."""
    folder.mkdir()
    names = (
        "allenai/WildChat-1M",
        "chatbot_arena_conversations",
        "OpenAssistant/oasst1 train",
        "RasaHQ/STAR",
    )
    unseen = ("ShareGPT92K sample", "TREC iKAT topics")
    rude = [("user", "write an erotic story"), ("assistant", "No.")]
    for split in ("train", "valid", "test"):
        wanted = [(name, 2) for name in names] + [(name, 160) for name in unseen]
        rows = [
            Conversation(
                f"{name} {split}-{i}", said(TALK), meta={"source": f"{name} (copy)"}
            )
            for name, count in wanted
            for i in range(count)
        ]
        rows.append(Conversation("rude", said(rude), meta={"source": names[0]}))
        rows.append(
            Conversation(
                "rated", said(TALK), meta={"source": names[0], "toxicity": 0.4}
            )
        )
        write_conversations(folder / f"{split}.jsonl", rows)


def said(pairs):
    return tuple(Turn(role, text) for role, text in pairs)


def mix(run, out):
    return processes.completed([str(RECIPES / "tiny/mix.py")], run, out)


@pytest.mark.slow
def test_the_small_models_learn_what_licences_allow_and_nothing_toxic(tmp_path):
    logs_of_the_small_models(tmp_path / "run")
    done = mix(tmp_path / "run", tmp_path / "out")
    assert done.returncode == 0, done.stderr

    def read(name):
        return list(read_conversations(tmp_path / "out" / f"{name}.jsonl"))

    def arena(name):
        return [c for c in read(name) if c.id.startswith("chatbot_arena")]

    for side in ("user", "assistant", "both"):
        assert not {c.id for c in read(f"{side}/train")} & {"rude", "rated"}
        assert not [
            c for c in read(f"{side}/train") if c.id.startswith(("ShareGPT", "TREC"))
        ]
    # What the models of Chatbot Arena answered is context for a user, and learned by nobody.
    whole = [c for c in arena("user/train") if "told" not in c.id]
    assert [len(c.turns) for c in whole] == [4, 4]
    # First turns to assistants stand there twice more, each with words of it as its intent; "there"
    # says nothing.
    assert [
        (c.turns[0].text, len(c.turns), c.ended) for c in arena("user/train")[2:]
    ] == [("hi there", 1, False)] * 4
    assert all(c.intent.endswith(" hi.") for c in arena("user/train")[2:])
    assert arena("assistant/train") == []
    assert [[turn.role for turn in c.turns] for c in arena("both/train")] == [
        ["user"],
        ["user"],
    ]
    # The trees of OASST that were put together again are too noisy to measure on.
    assert not [c for c in read("people/test") if c.id.startswith("OpenAssistant")]
    assert len(read("people/test")) == 6
    assert len(read("chats/test")) == 150 and len(read("goals/test")) == 3 * 160
    counts = json.loads((tmp_path / "out/counts.json").read_text())
    assert counts["dropped"] == {"toxic": 6, "too noisy to measure on": 4}
    # Two conversations of five words of users from each of four sources. Three of these are talk
    # with AI, where the two words of the first turn are learned twice more: 54 of 64 words.
    assert "user: 84 % of the words" in done.stdout
    assert [row["words"] for row in counts["learned"]["user"]] == [18, 18, 18, 10]


def small_mix(run, out, held_out):
    return processes.completed([str(RECIPES / "small/mix.py")], run, out, held_out)


@pytest.mark.slow
def test_the_small_model_learns_nothing_that_is_held_out_or_opens_like_it(tmp_path):
    def logs(split, **firsts):
        """Conversations by id, each with its first turn."""
        intent = "You are a user chatting with an assistant language model to talk."
        rows = [
            Conversation(id, said([("user", first), *TALK[1:]]), intent, meta=meta)
            for id, (source, first) in firsts.items()
            for meta in [{"source": source}]
        ]
        (tmp_path / "run").mkdir(exist_ok=True)
        write_conversations(tmp_path / "run" / f"{split}.jsonl", rows)

    arena, wildchat = "chatbot_arena_conversations", "allenai/WildChat-1M"
    many = {f"a{i}": (arena, f"question number {i} on {i} trees") for i in range(103)}
    twin = (arena, "How tall is the tower of Pisa in Italy??")
    seen = {"w": (wildchat, "why is the sky blue"), "s": ("ShareGPT92K", "hm so what")}
    logs("train", twin=twin, long=(arena, "word " * 101), **many, **seen)
    logs("valid")
    logs("test", t=(arena, "how tall is the tower of pisa"), g=("TREC iKAT", "my diet"))
    fixed = tmp_path / "held_out.txt"
    done = small_mix(tmp_path / "run", tmp_path / "out", fixed)
    assert done.returncode == 0, done.stderr

    def read(name):
        return {c.id for c in read_conversations(tmp_path / "out" / f"{name}.jsonl")}

    learned = read("train") | read("valid")
    assert learned == set(many) and len(read("valid")) == 100
    held = {"people": "t", "goals": "g", "wildchat": "w", "chats": "s"}
    for name, id in held.items():
        assert read(f"{name}/test") == {id}
    # They stay held out whatever the split is, and must all be there.
    logs("train", t=(arena, "how tall is the tower of pisa"), **many, **seen)
    logs("test", g=("TREC iKAT", "my diet"))
    done = small_mix(tmp_path / "run", tmp_path / "out", fixed)
    assert done.returncode == 0, done.stderr
    assert "t" not in read("train") | read("valid") and read("people/test") == {"t"}
    logs("test")
    done = small_mix(tmp_path / "run", tmp_path / "out", fixed)
    assert done.returncode == 1
    assert "g, which held_out.txt holds out, is missing" in done.stderr


@pytest.mark.slow
def test_too_little_talk_with_assistants_is_refused(tmp_path):
    logs_of_the_small_models(tmp_path / "run")
    with (tmp_path / "run/train.jsonl").open("a", encoding="utf-8") as file:
        for i in range(10):
            row = Conversation(f"more-{i}", said(TALK), meta={"source": "RasaHQ/STAR"})
            file.write(json.dumps(to_record(row)) + "\n")
    done = mix(tmp_path / "run", tmp_path / "out")
    assert done.returncode == 1 and "must be at least half" in done.stderr


def test_a_source_that_the_recipe_does_not_know_is_named(tmp_path):
    logs_of_the_small_models(tmp_path / "run")
    row = Conversation("x", said(TALK), meta={"source": "my logs"})
    (tmp_path / "run/valid.jsonl").write_text(json.dumps(to_record(row)) + "\n")
    done = mix(tmp_path / "run", tmp_path / "out")
    assert (
        done.returncode == 1
        and "x is from 'my logs', which this recipe does not know" in done.stderr
    )


@pytest.mark.slow
def test_the_scaling_curve_has_a_point_for_each_model_that_was_measured(tmp_path):
    for name, weights, value in (("b", 134_515_008, 1.04), ("a", 2_928_960, 1.74)):
        measured = {"name": "bits per byte", "value": value, "low": None, "high": None}
        for path, content in (
            (f"curve/{name}/results.json", {"with intent": [measured]}),
            (f"{name}/run.json", {"options": {"base": f"model-{name}"}}),
            (f"{name}/results.json", {"parameters": weights}),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(json.dumps(content))
    drawing = tmp_path / "curve.svg"
    script = str(RECIPES / "small/curve.py")
    done = processes.completed([script], tmp_path, drawing)
    assert done.stdout.splitlines()[2:] == [
        "| model-a | 2,928,960 | 1.74 |",
        "| model-b | 134,515,008 | 1.04 |",
    ]
    assert drawing.read_text().count("<circle") == 2


@pytest.mark.slow
def test_a_step_of_reinforcement_learning_runs():
    script = str(RECIPES / "rl" / "grpo.py")
    begun = processes.Process([script], "0", "1", "2")
    out, err = begun.communicate(timeout=300)
    assert begun.returncode == 0, out + err
    assert re.search(r"seed 0, after 1 steps: mean reward [01]\.\d\d", out), out
