"""Runs in the formats of others: the rows, what is left out, and where they come from."""

import gzip
import json
import socket
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from zipfile import ZipFile

import polars as pl
import pytest
from flat import flat

from userlm import commands
from userlm.data.layouts import Gathered, convert, find
from userlm.exports import lineage, protobuf, spans
from userlm.exports.training import Talk
from userlm.json_files import read_json, write_json, write_lines
from userlm.lines import Line
from userlm.manifest import file_hash
from userlm.rows import read_conversations, write_conversations
from userlm.text import END_TOKEN
from userlm.types import Conversation, InputError, ModelError, Origin, Turn

INTENT = "You are a user chatting with an assistant language model to plan a trip."
HOSTILE = "a\u2028b\x00c \U0001f600 </s><|im_end|> \"'{}\\ \n{{x}} \ud800"


def talk(id="a#0", *texts, **fields):
    conversation = Conversation(id, intent=INTENT, **fields)
    for text in texts or ("hi", "hello", "bye?", "bye"):
        conversation = conversation.say(text, {"thought": "SECRET", "p_end": 0.5})
    return conversation


def ended(id="a#0", *texts, stop="end", **fields):
    return talk(id, *texts, **fields).close(stop)


def exported(tmp_path, form, *conversations, side="assistant", name="talks", **options):
    path = tmp_path / f"{name}.jsonl"
    write_conversations(path, conversations)
    ending = {"inspect": "eval", "parquet": "parquet"}.get(form, "jsonl")
    out = tmp_path / f"out.{ending}"
    options = {"runs": [path], "as_": form, "out": out, "for_": side, **options}
    results = commands.export(flat(commands.Export, **options))
    return out, results


def rows(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


# --- golden rows ----------------------------------------------------------------------------------


def test_messages_are_the_words_alone_up_to_the_last_answer(tmp_path):
    out, results = exported(tmp_path, "messages", ended(), talk("b", "x", "y", "z"))
    first, second = rows(out)
    assert first == {
        "id": "a#0",
        "run": first["run"],
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "bye?"},
            {"role": "assistant", "content": "bye"},
        ],
        "intent": INTENT,
        "ended": True,
    }
    assert [one["content"] for one in second["messages"]] == ["x", "y"]
    assert "SECRET" not in out.read_text() and results["rows"] == 2


def test_for_a_user_model_roles_are_swapped_and_an_observed_end_is_its_last_message(
    tmp_path,
):
    cut = ended("b", "x", "y", stop="max_turns")
    out, _ = exported(tmp_path, "messages", ended("a", "x", "y"), cut, side="user")
    first, second = rows(out)
    begin = [
        {"role": "system", "content": INTENT},
        {"role": "assistant", "content": "x"},
    ]
    end = [
        {"role": "user", "content": "y"},
        {"role": "assistant", "content": END_TOKEN},
    ]
    assert first["messages"] == begin + end
    assert second["messages"] == begin


def test_each_own_turn_is_a_completion_once(tmp_path):
    # The first exchange is that of a log, which another row has.
    continued = ended(origin=Origin("log", first_own_turn=1))
    out, _ = exported(tmp_path, "prompt-completion", continued)
    (row,) = rows(out)
    assert [one["content"] for one in row["prompt"]] == ["hi", "hello", "bye?"]
    assert row["completion"] == [{"role": "assistant", "content": "bye"}]
    out, _ = exported(
        tmp_path, "prompt-completion", ended("a", "x", "y"), side="user", force=True
    )
    assert [row["completion"][0]["content"] for row in rows(out)] == ["x", END_TOKEN]


def test_a_first_turn_without_an_intent_has_no_prompt_and_no_row(tmp_path):
    plain = ended("a", "x", "y").without_system()
    out, _ = exported(tmp_path, "prompt-completion", plain, side="user")
    assert [row["completion"][0]["content"] for row in rows(out)] == [END_TOKEN]


@pytest.mark.parametrize("stop", ["error", "guard", "context"])
def test_failed_conversations_are_left_out_and_counted(tmp_path, stop):
    failed = talk("b").close(stop)
    out, results = exported(tmp_path, "messages", ended(), failed)
    assert results["counts"] == {"conversations": 1, f"left out: stopped by {stop}": 1}
    out, _ = exported(
        tmp_path, "messages", ended(), failed, keep_failed=True, force=True
    )
    assert len(rows(out)) == 2


def test_a_turn_that_says_the_end_token_is_not_for_user_models(tmp_path):
    liar = ended("b", f"I say {END_TOKEN}", "ok")
    _, results = exported(tmp_path, "messages", ended(), liar, side="user")
    assert results["rows"] == 1 and len(results["counts"]) == 2


def test_responses_have_no_answer_to_train_on(tmp_path):
    response = talk("a/1", "x", "y", "z", origin=Origin("a", first_own_turn=1))
    with pytest.raises(InputError, match="no turn of the assistant of its own: 1"):
        exported(tmp_path, "messages", response)
    assert not (tmp_path / "out.jsonl").exists()


# --- preferences ----------------------------------------------------------------------------------


def about(id, *texts, stop):
    task, _, repeat = id.partition("#")
    return ended(id, *texts, stop=stop, origin=Origin(task=task, repeat=int(repeat)))


def test_a_pair_is_two_answers_to_the_same_prompt(tmp_path):
    out, results = exported(
        tmp_path,
        "dpo",
        about("t#0", "q", "which?", "one", "4", stop="solved"),
        about("t#1", "q", "which?", "one", "5", stop="max_turns"),
        about("u#0", "q", "4", stop="solved"),
        about("u#1", "Q", "4", stop="end"),
        about("v#0", "q", "4", stop="solved"),
        about("w#0", "q", "4", stop="end"),
    )
    (row,) = rows(out)
    run = row["run"]
    assert row == {
        "id": "t#0",
        "run": run,
        "rejected_id": "t#1",
        "rejected_run": run,
        "task": "t",
        "prompt": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "which?"},
            {"role": "user", "content": "one"},
        ],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
    }
    counts = results["counts"]
    assert counts["conversations that differ first in a turn of the user"] == 2
    assert counts["tasks that were solved in all of their graded conversations"] == 1
    assert counts["tasks that were solved in none of their graded conversations"] == 1


def test_without_a_pair_it_is_said_what_one_needs(tmp_path):
    with pytest.raises(InputError, match="one solved and one not"):
        exported(tmp_path, "dpo", about("t#0", "q", "4", stop="solved"))


def test_grades_of_a_score_decide_what_was_solved(tmp_path):
    run = tmp_path / "sim"
    run.mkdir()
    talks = [about(f"t#{i}", "q", f"{i}", stop="max_turns") for i in range(3)]
    write_conversations(run / "conversations.jsonl", talks)
    scored = tmp_path / "scored"
    scored.mkdir()
    file = run / "conversations.jsonl"
    for folder, inputs in ((run, {}), (scored, {str(file): file_hash(file)})):
        manifest = {"format": 2, "verb": "x", "options": {}, "inputs": inputs}
        write_json(folder / "run.json", manifest)
        write_json(folder / "results.json", {"sim": []} if inputs else {})
    grades = [
        {"run": "sim", "conversation": f"t#{i}", "solved": solved, "reason": "r"}
        for i, solved in enumerate([True, False, None])
    ]
    write_lines(scored / "grades.jsonl", grades)
    out = tmp_path / "out.jsonl"
    options = {"runs": [run], "as_": "dpo", "out": out, "scores": scored}
    commands.export(flat(commands.Export, **options))
    assert [(row["id"], row["rejected_id"]) for row in rows(out)] == [("t#0", "t#1")]
    # Those of another run of this name, or of what it was before, are not taken.
    write_conversations(file, [about("t#0", "q", "none", stop="max_turns")])
    scored.rename(run / "score")
    for scores in (run / "score", None):
        options = {"runs": [run], "as_": "parquet", "out": tmp_path / "out.parquet"}
        with pytest.raises(
            InputError, match="is about other conversations than those in"
        ):
            commands.export(flat(commands.Export, **options, scores=scores))


# --- read back ------------------------------------------------------------------------------------


def spoken(conversation):
    return [(turn.role, turn.text) for turn in conversation.turns]


@pytest.mark.parametrize("form", ["messages", "sharegpt"])
@pytest.mark.parametrize("stop", ["end", "max_turns"])
def test_import_reads_rows_back(tmp_path, form, stop):
    given = ended("a#0", HOSTILE, "y " + HOSTILE, stop=stop)
    out, _ = exported(tmp_path, form, given)
    back = convert(rows(out)[0], None, "x").conversation
    assert (back.id, spoken(back), back.ended) == ("a#0", spoken(given), given.ended)


def test_import_reads_spans_back(tmp_path):
    given = [
        ended("a#0", HOSTILE, "y"),
        ended("b", "x", "y", stop="max_turns"),
        talk("c", "x", "y", "last words"),
        Conversation("d", (Turn("assistant", "greeting"), *talk("d").turns)),
    ]
    out, _ = exported(tmp_path, "otel", *given)
    gathered = Gathered()
    lines = [Line(i, row) for i, row in enumerate(rows(out), 1)]
    assert list(find(lines, None, "log", gathered)) == []
    back = [one.imported.conversation for one in gathered.found()]
    for one, log in zip(back, given, strict=True):
        assert (one.id, spoken(one), one.intent) == (log.id, spoken(log), log.intent)
        assert one.ended == log.ended
    assert "SECRET" not in out.read_text()


def test_parquet_and_inspect_have_every_conversation(tmp_path):
    solved = about("t#1", HOSTILE, "4", stop="solved")
    other = ended("plain")
    out, _ = exported(tmp_path, "parquet", solved, other)
    table = pl.read_parquet(out).to_dicts()
    assert [row["id"] for row in table] == ["t#1", "plain"]
    assert table[0]["messages"][0]["content"] == solved.turns[0].text
    assert [row["solved"] for row in table] == [True, None]
    out, _ = exported(tmp_path, "inspect", solved, other)
    with ZipFile(out) as archive:
        header = json.loads(archive.read("header.json"))
        sample = json.loads(archive.read("samples/t_epoch_2.json"))
        assert len(json.loads(archive.read("summaries.json"))) == 2
    (score,) = header["results"]["scores"]
    assert score["metrics"]["accuracy"]["value"] == 1.0 and score["scored_samples"] == 1
    assert sample["scores"]["solved"]["value"] == "C"
    assert sample["scores"]["solved"]["answer"] == "4"
    assert sample["messages"][1] == {"role": "assistant", "content": "4"}


def test_a_table_is_made_of_batches_in_order_and_leaves_nothing_else(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("userlm.exports.table._BATCH", 1)  # byte: a row each
    talks = [ended(f"x{n}", HOSTILE, str(n)) for n in range(12)]
    out, _ = exported(tmp_path, "parquet", *talks)
    found = pl.read_parquet(out).to_dicts()
    assert [row["id"] for row in found] == [talk.id for talk in talks]
    assert [row["messages"][1]["content"] for row in found] == [*map(str, range(12))]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"talks.jsonl", out.name, f"{out.name}.lineage.json"}


def test_no_id_of_a_log_leads_out_of_the_folder_into_which_a_log_of_inspect_is_unpacked(
    tmp_path,
):
    ids = ["../../x", "..", "a/../../../x", "..\\x", "a..b/c", "a\0b"]
    out, _ = exported(tmp_path, "inspect", *(ended(id) for id in ids))
    with ZipFile(out) as archive:
        names = [name for name in archive.namelist() if name.startswith("samples/")]
        samples = [json.loads(archive.read(name)) for name in names]
    assert names == [f"samples/{sample['id']}_epoch_1.json" for sample in samples]
    wanted = ["__/__/x", "..", "a/__/__/__/x", "__\\x", "a..b/c", "a__b"]
    assert [sample["id"] for sample in samples] == wanted
    assert [sample["metadata"]["conversation"] for sample in samples] == ids


def test_ids_that_become_one_name_are_conversations_of_their_own(tmp_path):
    ids = ["../../x", "../__/x", "__/../x", "__/__/x"]
    out, _ = exported(tmp_path, "inspect", *(ended(id) for id in ids))
    with ZipFile(out) as archive:
        names = [name for name in archive.namelist() if name.startswith("samples/")]
        samples = [json.loads(archive.read(name)) for name in names]
    assert len(set(names)) == 4
    assert [sample["metadata"]["conversation"] for sample in samples] == ids


def test_the_viewer_of_inspect_is_told_when_a_log_was_made_and_its_repeats(tmp_path):
    out, _ = exported(
        tmp_path, "inspect", about("t#1", "x", "4", stop="end"), ended("plain")
    )
    with ZipFile(out) as archive:
        header = json.loads(archive.read("header.json"))
    stats = header["stats"]
    assert stats["started_at"] == stats["completed_at"] == header["eval"]["created"]
    assert header["eval"]["config"] == {"epochs": 2}


def test_lists_of_traces_show_the_first_and_the_last_turn(tmp_path):
    out, _ = exported(tmp_path, "otel", ended())
    (resource,) = rows(out)[0]["resourceSpans"]
    root = resource["scopeSpans"][0]["spans"][0]
    said = {each["key"]: each["value"] for each in root["attributes"]}
    assert said["input.value"] == {"stringValue": "hi"}
    assert said["output.value"] == {"stringValue": "bye"}


def test_ids_of_several_files_do_not_collide(tmp_path):
    second = tmp_path / "second.jsonl"
    write_conversations(second, [ended("a#0", "x", "y")])
    runs = [tmp_path / "talks.jsonl", second]
    out, _ = exported(tmp_path, "messages", ended("a#0"), runs=runs)
    first, other = rows(out)
    assert first["id"] == f"{first['run']}:a#0" != other["id"]
    assert set(read_json(tmp_path / "out.jsonl.lineage.json")["runs"]) == {
        first["run"],
        other["run"],
    }


# --- sending --------------------------------------------------------------------------------------


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.path, self.headers["x-key"], body))
        status, kind, answer, *place = self.server.answer
        self.send_response(status)
        for value in place:
            self.send_header("Location", value)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@contextmanager
def receiving(*answer):
    """A server that gives this answer: status, content type, body, and where it redirects to."""
    with HTTPServer(("127.0.0.1", 0), _Receiver) as server:
        server.got, server.answer = [], answer
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.got
        server.shutdown()


PROTOBUF, JSON = "application/x-protobuf", "application/json"


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (PROTOBUF, b""),
        (f"{PROTOBUF}; charset=utf-8", b"\x0a\x04\x12\x02hi"),  # a warning
        ("", b""),
        (JSON, b"{}"),
        (JSON, b'{"partialSuccess": {"rejectedSpans": "0", "errorMessage": ""}}'),
    ],
)
def test_spans_are_sent_in_protobuf_with_the_headers_of_the_environment(
    kind, answer, tmp_path, monkeypatch
):
    monkeypatch.setenv(protobuf.HEADERS, "x-key=a%20b,y=z")
    with receiving(200, kind, answer) as (to, got):
        _, results = exported(tmp_path, "otel", ended(), ended("b"), out=None, to=to)
    ((path, key, body),) = got
    assert (path, key, results["rows"]) == ("/v1/traces", "a b", 2)
    assert body.count(b"gen_ai.output.messages") == 6 and b"SECRET" not in body


@pytest.mark.parametrize(
    ("kind", "answer", "why"),
    [
        (
            "text/html",
            b"<html>sign in</html>",
            r"its answer \(text/html\) is none of OTLP's",
        ),
        ("text/html", b"", "none of OTLP's"),
        ("", b"ok", r"\(without a type\) is none of OTLP's"),
        (JSON, b"[]", "none of OTLP's"),
        (JSON, b"[" * 60_000, "recursion"),
        (PROTOBUF, b"<html>sign in</html>", "its answer cannot be read"),
        (PROTOBUF, b"\x0a\x09", "its answer cannot be read"),
        # Field 1: its field 1 is 99, the spans that were rejected, and 2 says why.
        (PROTOBUF, b"\x0a\x0c\x08\x63\x12\x08no quota", r"no quota \(0 were taken"),
        (PROTOBUF, b"\x0a\x02\x08\x01", r"\(5 were taken\)"),
        (
            JSON,
            b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "no a-secret-key"}}',
            r"no \[key\] \(4 were taken\)",
        ),
    ],
)
def test_an_answer_counts_only_if_it_says_that_all_spans_were_taken(
    kind, answer, why, tmp_path, monkeypatch
):
    monkeypatch.setenv(protobuf.HEADERS, "x-key=a-secret-key")
    with (
        receiving(200, kind, answer) as (to, _),
        pytest.raises(ModelError, match=f"did not take the spans: .*{why}"),
    ):
        exported(tmp_path, "otel", ended(), ended("b"), out=None, to=to)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_gets_neither_key_nor_spans(status, tmp_path, monkeypatch):
    monkeypatch.setenv(protobuf.HEADERS, "x-key=a-secret-key")
    with (
        receiving(200, PROTOBUF, b"") as (other, got),
        receiving(status, "", b"", f"{other}/v1/traces?a=b") as (to, _),
        pytest.raises(ModelError, match=f"it redirects to {other}/v1/traces;"),
    ):
        exported(tmp_path, "otel", ended(), out=None, to=to)
    assert not got


def test_what_a_server_took_before_it_failed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(protobuf, "_REQUEST_BYTES", 1)
    answers = iter([(0, ""), (1, "full")])
    monkeypatch.setattr(protobuf, "_post", lambda url, body: ("", b""))
    monkeypatch.setattr(protobuf, "_rejected", lambda *answer: next(answers))
    with pytest.raises(ModelError, match=r"full \(5 were taken\)"):
        exported(tmp_path, "otel", ended(), ended("b"), out=None, to="http://h")


def test_a_server_that_is_not_there_is_the_error_of_a_model(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        to = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ModelError, match="did not take the spans"):
            exported(tmp_path, "otel", ended(), out=None, to=to)


def test_the_bytes_of_a_span_are_those_of_its_fields():
    # Field 5, text of 1 byte; 6, a number; 7 and 8, eight bytes; 9, a pair of key and value.
    span = {
        "traceId": "01",
        "spanId": "02",
        "name": "n",
        "kind": 3,
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "258",
        "attributes": [{"key": "k", "value": {"boolValue": True}}],
    }
    one = {"resource": {"attributes": []}, "scopeSpans": []}
    one["scopeSpans"] = [{"scope": {"name": "s"}, "spans": [span]}]
    inner = (
        b"\x0a\x01\x01\x12\x01\x02\x22\x00\x2a\x01n\x30\x03"
        b"\x39\x01\0\0\0\0\0\0\0\x41\x02\x01\0\0\0\0\0\0\x4a\x07\x0a\x01k\x12\x02\x10\x01"
    )
    scope = b"\x0a\x03\x0a\x01s\x12" + bytes([len(inner)]) + inner
    resource = b"\x0a\x00\x12" + bytes([len(scope)]) + scope
    wanted = b"\x0a" + bytes([len(resource)]) + resource
    assert protobuf.encode({"resourceSpans": [one]}) == wanted


# --- where they come from -------------------------------------------------------------------------


def test_the_lineage_says_who_spoke_and_under_what_licence(tmp_path):
    run = tmp_path / "sim"
    run.mkdir()
    logged = ended(meta={"source": "wildchat"})
    write_conversations(run / "conversations.jsonl", [logged])
    options = {
        "user": "trained:userlm-small",
        "seed": 7,
        "system": "PRIVATE",
        "assistant": "http://10.0.0.9:8000/v1#llama",
    }
    inputs = {"/home/alice/logs/test.jsonl": "ab12", "OPENAI_BASE_URL": "http://x/v1"}
    manifest = {"format": 2, "verb": "simulate", "options": options, "inputs": inputs}
    write_json(run / "run.json", {**manifest, "versions": {"userlm": "1"}})
    write_json(run / "results.json", {})
    out = tmp_path / "out.jsonl"
    commands.export(flat(commands.Export, runs=[run], as_="messages", out=out))
    found = read_json(tmp_path / "out.jsonl.lineage.json")
    ((key, of_run),) = found["runs"].items()
    assert rows(out)[0]["run"] == key == f"sim@{of_run['sha256'][:12]}"
    assert (of_run["user"], of_run["assistant"]) == (
        "trained:userlm-small",
        "http#llama",
    )
    assert of_run["licenses"]["user"] == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_license": "apache-2.0",
    }
    assert of_run["options"] == {"seed": 7} and of_run["inputs"] == {
        "logs/test.jsonl": "ab12"
    }
    assert found["logs"] == {"wildchat": {"conversations": 1, "license": "ODC-BY"}}
    manifest["verb"], manifest["inputs"] = "import", {**inputs, "/b/test.jsonl": "cd34"}
    write_json(run / "run.json", manifest)
    (source,) = lineage.find([run])
    assert source.lineage["inputs"] == {"test.jsonl": "ab12", "test.jsonl (2)": "cd34"}
    text = (tmp_path / "out.jsonl.lineage.json").read_text()
    for private in ("alice", "10.0.0.9", "PRIVATE", str(tmp_path)):
        assert private not in text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("cmd:python bot.py --key sk-1", "cmd"),
        ("replay:/home/alice/log.jsonl", "replay:log.jsonl"),
        ("trained:/home/alice/runs/train", "trained:runs/train"),
        ("prompted:https://h/v1#m/n", "prompted:https#m/n"),
        ("trained:microsoft/UserLM-8b", "trained:microsoft/UserLM-8b"),
        ("openai:gpt-4o", "openai:gpt-4o"),
        ("py:mod:name", "py:mod:name"),
        ("oracle", "oracle"),
    ],
)
def test_an_address_is_shown_without_folders_hosts_and_arguments(address, shown):
    assert lineage.shown(address) == shown


# --- what is refused ------------------------------------------------------------------------------


def test_a_file_that_is_there_is_kept(tmp_path):
    out, _ = exported(tmp_path, "messages", ended())
    before = out.read_bytes()
    with pytest.raises(InputError, match="give --force"):
        exported(tmp_path, "messages", talk("b"))
    with pytest.raises(InputError, match=r"talks\.jsonl, line 1"):
        (tmp_path / "bad").mkdir()
        bad = tmp_path / "bad" / "talks.jsonl"
        bad.write_text('{"id": 1}\n')
        exported(tmp_path, "messages", ended(), runs=[bad], force=True)
    assert out.read_bytes() == before


def test_the_conversations_are_not_written_over(tmp_path):
    path = tmp_path / "talks.jsonl"
    with pytest.raises(InputError, match="is what is exported"):
        exported(tmp_path, "messages", ended(), out=path, force=True)
    assert [each.id for each in read_conversations(path)] == ["a#0"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"as_": "dpo", "for_": "user"}, "--for user is for messages"),
        ({"as_": "parquet"}, "parquet is written to .parquet"),
        ({"as_": "messages", "to": "http://x"}, "--to is for --as otel"),
        ({"as_": "otel", "to": "http://u:p@x"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"as_": "otel", "out": None}, "give --out"),
        ({"as_": "xml"}, "--as xml: give messages or"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, options, said):
    options = {"runs": [tmp_path], "out": tmp_path / "out.jsonl", **options}
    with pytest.raises(InputError, match=said):
        commands.export(flat(commands.Export, **options))


@pytest.mark.parametrize(
    "form",
    ["messages", "prompt-completion", "dpo", "otel", "inspect", "sharegpt", "parquet"],
)
def test_an_empty_run_gives_no_file(tmp_path, form):
    with pytest.raises(InputError, match="nothing to export"):
        exported(tmp_path, form)
    assert [path.name for path in tmp_path.iterdir()] == ["talks.jsonl"]


def test_of_a_run_with_splits_one_file_is_given(tmp_path):
    write_json(tmp_path / "run.json", {"format": 2, "options": {}, "verb": "clean"})
    write_json(tmp_path / "results.json", {})
    for split in ("train", "test"):
        write_conversations(tmp_path / f"{split}.jsonl", [ended()])
    with pytest.raises(InputError, match="say which, such as"):
        lineage.find([tmp_path])


def test_a_packed_file_holds_the_same_rows(tmp_path):
    exported(tmp_path, "messages", ended(), out=tmp_path / "out.jsonl.gz")
    with gzip.open(tmp_path / "out.jsonl.gz") as file:
        assert json.loads(file.read())["id"] == "a#0"


def test_the_same_conversation_is_the_same_trace(tmp_path):
    path = tmp_path / "a.jsonl"
    write_conversations(path, [ended()])
    (source,) = lineage.find([path])
    (one,) = read_conversations(path)
    assert spans.export(Talk(source, one)) == spans.export(Talk(source, one))


def test_options_that_are_keywords_of_python_can_stand_in_a_configuration(tmp_path):
    from userlm.cli import read_config
    from userlm.commands.options import option_types

    config = Path(tmp_path, "c.toml")
    config.write_text('[export]\nas = "dpo"\nfor = "user"\n')
    found = read_config(config, "export", option_types(commands.Export))
    assert found == {"as_": "dpo", "for_": "user"}


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path, monkeypatch):
    command = sys.modules["userlm.commands.export"]
    write = command._write

    def writes_beside_another(options, path, selected):
        options.out.write_text("theirs")
        return write(options, path, selected)

    monkeypatch.setattr(command, "_write", writes_beside_another)
    with pytest.raises(InputError, match="is there already"):
        exported(tmp_path, "messages", ended())
    assert (tmp_path / "out.jsonl").read_text() == "theirs"
    assert not list(tmp_path.glob("*.lineage.json"))
