"""Logs in no known layout, whose fields `--map` names, and tables."""

import gzip
import json
from pathlib import Path

import pytest

from userlm import commands
from userlm.json_files import read_json
from userlm.rows import read_conversations, read_rows
from userlm.types import Conversation, InputError

TICKETS = """ticket,from,body,customer
7,customer,"Where is
my order?",c1
8,Customer,Cancel it,c2
7,agent,It arrives tomorrow,
8,agent,Done,
"""
MAP = "role=from,text=body,id=ticket,user=customer"
ROLES = "customer=user,agent=assistant"


def imported(path: Path, *texts: str, **options: object) -> list[Conversation]:
    files = []
    for number, text in enumerate(texts):
        file = path / f"log{number}{options.pop('kind', '.csv')}"
        file.write_text(text)
        files.append(str(file))
    given = {"map": MAP, "roles": ROLES, "out": path / "out", **options}
    commands.import_(commands.Import(files, **given))
    return list(read_conversations(path / "out" / "conversations.jsonl"))


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in conversation.turns]


def test_rows_that_are_messages_become_conversations_by_their_id(tmp_path):
    first, second = imported(tmp_path, TICKETS)
    assert (first.id, first.user, first.ended) == ("7", "c1", True)
    assert said(first) == [
        ("user", "Where is\nmy order?"),
        ("assistant", "It arrives tomorrow"),
    ]
    assert (second.id, second.user) == ("8", "c2")
    counts = read_json(tmp_path / "out" / "results.json")["counts"]
    assert (counts["in"], counts["out"], counts["note: merged lines"]) == (4, 2, 2)


def test_messages_of_a_conversation_may_lie_in_several_files(tmp_path):
    header, more = "ticket,from,body,customer\n", "7,customer,Thanks,c1\n"
    first, _ = imported(tmp_path, TICKETS, header + more)
    assert said(first)[-1] == ("user", "Thanks")


def test_a_ticket_that_begins_like_another_is_a_ticket_of_its_own(tmp_path):
    greeting = "{0},customer,hi,c1\n{0},agent,Hello! How can I help?,\n"
    more = "8,customer,where is my order,c1\n8,agent,soon,\n"
    table = "ticket,from,body,customer\n" + greeting.format(7) + greeting.format(8)
    tickets = imported(tmp_path, table + more + greeting.format(9))
    assert [(each.id, len(each.turns)) for each in tickets] == [
        ("7", 2),
        ("8", 4),
        ("9", 2),
    ]


def test_a_list_of_messages_is_found_at_a_path(tmp_path):
    lines = [
        {"who": "customer", "says": {"text": "[1]"}},
        {"who": "bot", "says": {"text": "ok"}},
    ]
    row = {"talk": {"lines": lines}, "goal": "buy", "key": 5}
    fields = "messages=talk.lines,role=who,text=says.text,id=key,intent=goal"
    [found] = imported(tmp_path, json.dumps(row), kind=".jsonl", map=fields)
    assert said(found) == [("user", "[1]"), ("assistant", "ok")]
    assert (found.id, found.intent) == ("5", "buy")


def test_a_table_may_have_the_messages_as_json_in_a_column(tmp_path):
    table = 'talk\n"[{""who"": ""customer"", ""says"": ""hi""}]"\n'
    [found] = imported(tmp_path, table, map="messages=talk,role=who,text=says")
    assert (found.id, said(found)) == ("log0-2", [("user", "hi")])


def test_messages_as_json_with_a_field_twice_are_set_aside(tmp_path):
    message = '{""who"": ""customer"", ""says"": ""hi""'
    table = f'talk\n"[{message}}}]"\n"[{message}, ""says"": ""ho""}}]"\n'
    [found] = imported(tmp_path, table, map="messages=talk,role=who,text=says")
    assert found.id == "log0-2"
    dropped = json.loads((tmp_path / "out" / "dropped.jsonl").read_text())
    assert (dropped["line"], dropped["reason"]) == (3, "wrong type")


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ("7,robot,hi,\n", "unknown role: line[6].role is 'robot'"),
        (",customer,hi,\n", "no messages: field 'ticket' is missing"),
        ("7,customer\n", "has 2 values, and the header 4"),
        ('7,"cus"tomer,hi,\n', "is not CSV: ',' expected after '\"'"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_line(rows, error, tmp_path):
    rows = rows.replace("7", "9")
    imported(tmp_path, TICKETS.replace("8,agent,Done,\n", rows))
    dropped = (tmp_path / "out" / "dropped.jsonl").read_text()
    assert error in json.loads(dropped)["error"]
    assert json.loads(dropped)["line"] == 6


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"map": "role"}, "--map role: write NAME=VALUE"),
        ({"map": "role=a,text=b,who=c"}, "'who' is none of role, text, messages"),
        ({"map": "role=a,id=c"}, "which field is the text? add text=FIELD"),
        ({"map": "role=a,text=b"}, "add id=FIELD if each row is a message"),
        ({"roles": "agent=bot"}, "'agent' is one of user, assistant, system, tool"),
        ({"map": None}, "--roles is for --map"),
        ({"source": "messages"}, "give --source, a known layout, or --map"),
    ],
)
def test_a_map_that_cannot_be_read_is_refused(options, problem, tmp_path):
    with pytest.raises(InputError) as caught:
        imported(tmp_path, TICKETS, **options)
    assert problem in str(caught.value)


def rows(path: Path) -> list[dict[str, str]]:
    return [line.row for line in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id,say\n1,hi\n"),
        ("a.csv", "\ufeffid; say\r\n1;hi\r\n\r\n"),
        ("a.csv", "id\tsay\n1\thi"),
        ("a.tsv", "id\tsay\n1\thi\n"),
    ],
)
def test_tables_are_separated_by_commas_semicolons_or_tabs(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert rows(tmp_path / name) == [{"id": "1", "say": "hi"}]


def test_a_table_may_be_packed(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id,say\n1,hi\n"))
    assert rows(tmp_path / "a.csv.gz") == [{"id": "1", "say": "hi"}]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"id,say\n1,caf\xe9\n", "a.csv, line 2 is not UTF-8; save the file"),
        (b"id,say,id\n1,2,3\n", "two columns of the name 'id'; rename one"),
        (b"id,say\n", "a.csv has no lines"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(raw, problem, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(InputError, match=problem):
        rows(tmp_path / "a.csv")


def test_of_a_conversation_that_is_dropped_no_row_is_lost(tmp_path):
    rows = "9,customer,hi,c\n9,agent,yes,\n9,robot,rate us,\n"
    imported(tmp_path, TICKETS.replace("8,agent,Done,\n", rows + "8,agent,Done,\n"))
    dropped = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    rows = [json.loads(line)["row"]["body"] for line in dropped]
    assert rows == ["hi", "yes", "rate us"]
    counts = json.loads((tmp_path / "out" / "results.json").read_text())["counts"]
    others = counts["note: merged lines"] + counts["dropped: unknown role"]
    assert counts["in"] == counts["out"] + others


def test_an_id_of_a_column_with_gaps_is_the_number_and_a_gap_is_none(tmp_path):
    table = (
        "key,from,body,who\n4,customer,hi,7\n4.0,agent,yes,NaN\n5.0,customer,ho,nan\n"
    )
    fields = "role=from,text=body,id=key,user=who"
    found = imported(tmp_path, table, map=fields)
    assert [(each.id, each.user, len(each.turns)) for each in found] == [
        ("4", "7", 2),
        ("5", None, 1),
    ]


def test_a_folder_of_logs_does_not_mean_the_tables_beside_them_but_a_pattern_may(
    tmp_path,
):
    from userlm.data.files import find

    for name in ("a.csv", "b.csv", "c.jsonl"):
        (tmp_path / name).touch()
    assert [file.path.name for file in find([tmp_path])] == ["c.jsonl"]
    tables = find([tmp_path / "*.csv"])
    assert [file.path.name for file in tables] == ["a.csv", "b.csv"]
