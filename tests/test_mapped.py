"""Logs in no known layout, whose fields `--map` names, and tables."""

import csv
import gzip
import io
import json
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_tools_refusals_and_thoughts_of_messages_cut_nothing(tmp_path):
    calls = [{"type": "function", "function": {"name": "find", "arguments": "{}"}}]
    history = [
        {"who": "customer", "says": "Where is order 12?"},
        {"who": "agent", "says": None, "tool_calls": calls},
        {"who": "tool", "says": "in Rome"},
        {"who": "agent", "says": "In Rome.", "reasoning_content": "It says so."},
        {"who": "customer", "says": "Whose is it?", "text": "not what was said"},
        {"who": "agent", "says": "", "refusal": "I may not say."},
    ]
    row = json.dumps({"history": history})
    fields = "messages=history,role=who,text=says"
    [found] = imported(tmp_path, row, kind=".jsonl", map=fields)
    assert said(found) == [
        ("user", "Where is order 12?"),
        ("assistant", "In Rome."),
        ("user", "Whose is it?"),
        ("assistant", "I may not say."),
    ]
    assert found.ended
    assert found.meta["thought"] == "It says so."


def test_other_things_beside_a_message_are_no_calls_and_no_words(tmp_path):
    beside = {"tool_calls": 2, "refusal": "full_compliance", "thinking": True}
    talk = [{"who": "user", "says": "q"}, {"who": "bot", "says": "a", **beside}]
    fields = "messages=talk,role=who,text=says"
    [found] = imported(tmp_path, json.dumps({"talk": talk}), kind=".jsonl", map=fields)
    assert said(found) == [("user", "q"), ("assistant", "a")]
    assert found.ended and not found.meta


@pytest.mark.parametrize("gap", ["NULL", "null", "None", "<NA>", r"\N", "nan", ""])
def test_people_without_an_id_are_not_one_person(gap, tmp_path):
    rows = "".join(f"{n},customer,Hi,{gap}\n{n},agent,Hello,{gap}\n" for n in (1, 2))
    found = imported(tmp_path, "ticket,from,body,customer\n" + rows)
    assert [each.user for each in found] == [None, None]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (
            {"chat_messages": [{"sender": "human", "text": "hi"}]},
            "messages=chat_messages,role=sender,text=text",
        ),
        (
            {"n": 1, "request": {"body": {"messages": [{"role": "a", "content": ""}]}}},
            "messages=request.body.messages,role=role,text=content",
        ),
        ({"a.b": [{"role": "user", "content": "hi"}]}, None),
        (
            {
                "custom": [{"type": "text", "value": "x"}],
                "said": [{"author": 1, "body": ""}],
            },
            "messages=said,role=author,text=body",
        ),
        ({"list": [{"name": "x"}], "names": ["y"], "none": []}, None),
    ],
)
def test_a_map_of_the_messages_in_a_row_is_suggested(row, fields, tmp_path):
    with pytest.raises(InputError) as error:
        imported(tmp_path, json.dumps(row), kind=".jsonl", map=None, roles=None)
    assert (f"--map {fields}. " in str(error.value)) == (fields is not None)
    assert ("--map role=FIELD" in str(error.value)) == (fields is None)


@pytest.mark.parametrize(
    "answer",
    [
        {"response_body": {"choices": [{"message": {"content": "hello"}}]}},
        {"response": {"status_code": 200, "body": {"choices": [{"text": "hello"}]}}},
    ],
)
def test_the_answer_may_stand_in_the_body_of_a_response(answer, tmp_path):
    choice = (answer.get("response_body") or answer["response"]["body"])["choices"][0]
    fields = "messages=body.messages,role=role,text=content"
    rows = []
    for reason in ("stop", "length"):
        choice["finish_reason"] = reason
        request = {"messages": [{"role": "user", "content": f"hi, {reason}"}]}
        rows.append(json.dumps({"body": request, **answer}))
    found = imported(tmp_path, "\n".join(rows), kind=".jsonl", map=fields)
    assert [each.turns[1].text for each in found] == ["hello", "hello"]
    assert [bool(each.ended) for each in found] == [True, False]  # one was cut


def test_the_rest_of_an_answer_may_stand_in_the_body_of_a_response(tmp_path):
    asked = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "It is"},
    ]
    rest = {"type": "message", "role": "assistant", "stop_reason": "end_turn"}
    rest["content"] = [{"type": "text", "text": " 4."}]
    row = {"asked": asked, "response": {"status_code": 200, "body": rest}}
    fields = "messages=asked,role=role,text=content"
    [found] = imported(tmp_path, json.dumps(row), kind=".jsonl", map=fields)
    assert said(found) == [("user", "2 + 2?"), ("assistant", "It is 4.")]


def test_what_a_response_that_failed_has_in_its_body_is_no_answer(tmp_path):
    asked = [{"role": "user", "content": "hi"}]
    body = {"choices": [{"message": {"role": "assistant", "content": "busy"}}]}
    row = {"asked": asked, "response": {"status_code": 500, "body": body}}
    fields = "messages=asked,role=role,text=content"
    [found] = imported(tmp_path, json.dumps(row), kind=".jsonl", map=fields)
    assert said(found) == [("user", "hi")]
    assert counts(tmp_path)["note: answers not read"] == 1


@pytest.mark.parametrize("gap", ["NULL", r"\N", "<NA>", "nan", ""])
def test_a_row_without_a_text_is_no_turn(gap, tmp_path):
    rows = f"1,customer,Hi,\n1,customer,{gap},\n1,agent,None,\n"
    [found] = imported(tmp_path, "ticket,from,body,customer\n" + rows)
    assert said(found) == [("user", "Hi"), ("assistant", "None")]
    assert [line for _, line, _ in dropped(tmp_path)] == [3]


def test_an_id_of_which_digits_are_lost_is_none(tmp_path):
    ids = ("2.15471E+14", '"2,15471E+14"', "1.0")
    rows = "".join(f"{id},customer,Hi,\n" for id in ids)
    [found] = imported(tmp_path, "ticket,from,body,customer\n" + rows)
    assert found.id == "1"
    assert [line for _, line, _ in dropped(tmp_path)] == [2, 3]
    assert "digits are lost" in (tmp_path / "out" / "dropped.jsonl").read_text()


def test_it_is_counted_where_several_people_speak_under_one_id(tmp_path):
    shops = ("1,customer,Hi,c1\n1,agent,Hello,a1\n", "1,customer,Cancel it,c2\n")
    header = "ticket,from,body,customer\n"
    imported(tmp_path, *(header + rows for rows in shops))
    assert counts(tmp_path)["note: rows of several people"] == 1


@pytest.mark.parametrize("step", [1, -1])
def test_messages_of_a_row_are_in_the_order_of_their_times(step, tmp_path):
    list_ = [
        {"role": role, "text": text, "at": f"2024-05-01T09:0{minute}:00Z"}
        for role, text, minute in (
            ("user", "a", 1),
            ("assistant", "b", 2),
            ("user", "c", 2),
        )
    ]
    fields = "messages=data,role=role,text=text,time=at"
    row = json.dumps({"data": list_[::step]})
    [found] = imported(tmp_path, row, kind=".jsonl", map=fields)
    assert [text for _, text in said(found)] == ["a", "b", "c"]
    # If the newest are first, nobody knows which of one time is.
    assert counts(tmp_path).get("note: times not read", 0) == int(step < 0)


def test_messages_of_a_row_without_times_stay_and_it_is_counted(tmp_path):
    list_ = [{"role": "user", "text": "a", "at": 1}, {"role": "assistant", "text": "b"}]
    fields = "messages=data,role=role,text=text,time=at"
    imported(tmp_path, json.dumps({"data": list_}), kind=".jsonl", map=fields)
    assert counts(tmp_path)["note: times not read"] == 1


def test_roles_may_be_numbers_or_whether_a_bot_speaks(tmp_path):
    rows = [{"id": "1", "bot": bot, "text": "hi"} for bot in (False, True)]
    rows += [{"id": "2", "bot": bot, "text": "hi"} for bot in (0, 1.0)]
    text = "\n".join(map(json.dumps, rows))
    roles = "false=user,true=assistant,0=user,1=assistant"
    fields = "id=id,role=bot,text=text"
    found = imported(tmp_path, text, kind=".jsonl", map=fields, roles=roles)
    assert [[role for role, _ in said(each)] for each in found] == [
        ["user", "assistant"]
    ] * 2


def test_ids_of_parquet_may_be_decimals_and_bytes(tmp_path):
    ids = [Decimal("12"), UUID(int=1).bytes, b"ab"]
    for column, value in enumerate(ids):
        table = pl.DataFrame({"id": [value], "text": ["hi"], "role": ["user"]})
        table.write_parquet(tmp_path / f"{column}.parquet")
    files = [str(path) for path in sorted(tmp_path.glob("*.parquet"))]
    options = {"map": "id=id,role=role,text=text", "out": tmp_path / "out"}
    commands.import_(commands.Import(files, **options))
    found = read_conversations(tmp_path / "out" / "conversations.jsonl")
    assert [each.id for each in found] == ["12", str(UUID(int=1)), "6162"]


@pytest.mark.parametrize(
    "ids",
    [("12", "12.0"), ("12", '"12,0"'), ("2345678901234567", "2345678901234567.0")],
)
def test_a_number_in_a_column_with_gaps_is_the_same_person(ids, tmp_path):
    rows = "".join(f"{n},customer,Hi,{id}\n" for n, id in enumerate(ids))
    found = imported(tmp_path, "ticket,from,body,customer\n" + rows)
    assert [each.user for each in found] == [ids[0]] * 2


def test_exports_with_more_and_fewer_digits_of_a_second_overlap(tmp_path):
    times = ("09:01:00.123456+00:00", "09:01:00.123Z", "10:01:00+01:00")
    tables = [timed("a1").replace("2024-05-01", f"2024-05-01T{time}") for time in times]
    [found] = imported(tmp_path, *tables, map=f"{MAP},time=time")
    assert said(found) == [("user", "a")]


def test_columns_without_a_name_are_no_two_of_one_name(tmp_path):
    [found] = imported(tmp_path, "ticket,from,body,,,customer\n1,customer,Hi,,,c1\n")
    assert found.user == "c1"


def test_flags_and_labels_of_a_log_are_kept(tmp_path):
    table = "ticket,from,body,toxic,redacted,language\n1,customer,Hi,false,0,de\n"
    table += "1,agent,Hello,True,,de\n"
    [found] = imported(tmp_path, table, map="role=from,text=body,id=ticket")
    assert found.meta == {"toxic": True, "language": "de"}
    row = {"log": [{"role": "user", "text": "hi"}], "toxic": True, "redacted": 1.0}
    fields = "messages=log,role=role,text=text"
    (tmp_path / "2").mkdir()
    [found] = imported(tmp_path / "2", json.dumps(row), kind=".jsonl", map=fields)
    assert found.meta == {"toxic": True, "redacted": True}
    for n, flag in enumerate(("t", "yes", "1.0"), 3):
        (tmp_path / str(n)).mkdir()
        table = f"ticket,from,body,toxic\n1,user,Hi,{flag}\n"
        options = {"map": "role=from,text=body,id=ticket", "roles": None}
        [found] = imported(tmp_path / str(n), table, **options)
        assert found.meta == {"toxic": True}


def test_a_row_with_neither_author_nor_words_is_left_out_alone(tmp_path):
    rows = "1,customer,Hi,c1\n1,,,\n1,agent,Hello,\n2,customer,Hi,c2\n2,,Solved,\n"
    header = "ticket,from,body,customer\n"
    [found] = imported(tmp_path, header + rows)
    assert (found.id, len(found.turns), found.ended) == ("1", 2, True)
    assert "=system" in (tmp_path / "out" / "dropped.jsonl").read_text()
    (tmp_path / "2").mkdir()
    both = imported(tmp_path / "2", header + rows, roles=f"{ROLES},=system")
    assert [each.id for each in both] == ["1", "2"]
    assert both[1].meta == {"system": "Solved"}


def test_white_space_around_ids_is_none_of_them(tmp_path):
    rows = '1,customer,Hi,c1\n"1 ",agent,Hello,\n" 1",customer,Thanks,"c1 "\n'
    [found] = imported(tmp_path, "ticket,from,body,customer\n" + rows)
    assert (len(found.turns), found.user) == (3, "c1")


def test_a_guest_who_logs_in_is_the_person(tmp_path):
    header = "ticket,from,body,customer,goal\n"
    asked = "1,customer,Hi,,pay\n1,agent,Log in.,a9,\n1,customer,done,c1,\n"
    table = header + asked + "1,agent,Thanks,,\n"
    [found] = imported(tmp_path, table, map=f"{MAP},intent=goal")
    assert (found.user, found.intent) == ("c1", "pay")


def test_a_table_may_have_the_messages_as_json_in_a_column(tmp_path):
    table = 'talk\n"[{""who"": ""customer"", ""says"": ""hi""}]"\n'
    [found] = imported(tmp_path, table, map="messages=talk,role=who,text=says")
    assert (found.id, said(found)) == ("log0-2", [("user", "hi")])


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ({"output": {"role": "assistant", "content": "It comes."}}, True),
        ({"output": "It comes."}, True),
        (
            {"output": [{"role": "assistant", "content": "It comes."}], "status": "x"},
            True,
        ),
        (
            {
                "response": {
                    "choices": [{"text": "It comes.", "finish_reason": "length"}]
                }
            },
            False,
        ),
    ],
)
def test_the_answer_beside_mapped_messages_is_the_last_turn(answer, ended, tmp_path):
    asked = [{"who": "bot", "says": "Hello!"}, {"who": "customer", "says": "Where?"}]
    row = json.dumps({"id": "t1", "input": asked, "metadata": {"a": 1}, **answer})
    options = {"map": "messages=input,role=who,text=says,id=id", "kind": ".jsonl"}
    [found] = imported(tmp_path, row, **options)
    assert [text for _, text in said(found)] == ["Hello!", "Where?", "It comes."]
    assert found.ended is ended
    counts = read_json(tmp_path / "out" / "results.json")["counts"]
    assert counts["note: fields left out"] == 1 + ("status" in answer)  # the metadata


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
        (
            "7,robot,hi,\n",
            "no known role is called 'robot'; say which is who, such as --roles "
            "customer=user,agent=assistant,robot=assistant",
        ),
        (
            '7,Support $(id),hi,\n7,"a,b=c",hi,\n',
            "--roles 'customer=user,agent=assistant,Support $(id)=assistant' (or",
        ),
        (",customer,hi,\n", "no messages: field 'ticket' is missing"),
        ("7,customer\n", "has 2 values, and the header 4"),
        ('7,"cus"tomer,hi,\n', "is not CSV: ',' expected after '\"'"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_line(rows, error, tmp_path):
    rows = rows.replace("7", "9")
    imported(tmp_path, TICKETS.replace("8,agent,Done,\n", rows))
    dropped = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert error in json.loads(dropped[0])["error"]
    assert json.loads(dropped[0])["line"] == 6


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


def second(path: Path) -> Path:
    """Return a folder for another import."""
    path /= "second"
    path.mkdir()
    return path


def refusal(path: Path, *texts: str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        imported(path, *texts, **options)
    return str(caught.value)


def test_an_import_of_nothing_says_the_most_frequent_reason_on_one_line(tmp_path):
    rows = [*('{"messages": []}', '{"b\\nc": 1}'), '{"b\\nc": 2}']
    said = refusal(tmp_path, "\n".join(rows), kind=".jsonl", map=None, roles=None)
    assert "none of the 3 lines is a conversation; 2 of them: unknown layout: " in said
    assert "\n" not in said and len(said) < 300 + 200 + len(str(tmp_path))
    # Another attempt reads no line again, and says the same.
    again = refusal(tmp_path, "\n".join(rows), kind=".jsonl", map=None, roles=None)
    assert again == said


def test_rows_in_no_known_layout_are_told_of_the_map(tmp_path):
    said = refusal(tmp_path, TICKETS, map=None, roles=None)
    assert "the fields are body, customer, from, ticket" in said
    assert "--map role=FIELD,text=FIELD,id=FIELD" in said
    wide = "".join(f"a_long_name_of_a_column_{i}," for i in range(99))
    said = refusal(second(tmp_path), f"{wide}b\n{',' * 99}\n", map=None, roles=None)
    assert "--map role=FIELD,text=FIELD,id=FIELD" in said


def test_a_column_that_no_table_has_is_an_error_at_the_start(tmp_path):
    mapped = "role=form,text=body,id=ticket"
    said = refusal(tmp_path, TICKETS, TICKETS, map=mapped)
    assert said == (
        "--map role=form: no column is called 'form'; did you mean from? the columns are "
        "ticket, from, body, customer"
    )
    assert not (tmp_path / "out").exists()
    timed = refusal(tmp_path, TICKETS, map=f"{MAP},time=sent")
    assert "--map time=sent: no column is called 'sent'; the columns are" in timed
    # One of the tables may lack the column, and what is in a list of messages is no column.
    imported(tmp_path, TICKETS, "ticket,from,body\n9,customer,hi\n")


def test_roles_that_are_not_known_are_named_with_the_option_for_them(tmp_path):
    said = refusal(tmp_path, TICKETS.lower(), roles=None)
    assert "no known role is called 'customer', 'agent'; say which is who, " in said
    assert "--roles customer=user,agent=assistant" in said
    talk = {"talk": [{"who": "guest", "says": "hi"}, {"who": "bot", "says": "ho"}]}
    options = {"kind": ".jsonl", "roles": None}
    said = refusal(
        second(tmp_path),
        json.dumps(talk),
        map="messages=talk,role=who,text=says",
        **options,
    )
    assert "no known role is called 'guest'" in said and "--roles guest=user" in said


def test_a_role_that_a_known_layout_has_not_is_named_with_the_option_too(tmp_path):
    row = {"messages": [{"role": "customer", "content": "hi"}]}
    options = {"kind": ".jsonl", "map": None, "roles": None}
    said = refusal(tmp_path, json.dumps(row), **options)
    assert (
        "messages[0].role is 'customer'; --roles customer=user (or assistant)" in said
    )


def test_a_text_in_no_field_names_the_field(tmp_path):
    row = {"from": "customer", "body": "hi", "ticket": 7}
    mapped = "role=from,text=bdy,id=ticket"
    said = refusal(tmp_path, json.dumps(row), kind=".jsonl", map=mapped)
    assert "1 of them: empty turn: none of its rows has words in field 'bdy'" in said


def test_a_role_in_no_field_names_the_fields_there_are(tmp_path):
    talk = {"talk": [{"who": "customer", "says": "hi"}]}
    mapped = "messages=talk,role=hwo,text=says"
    said = refusal(tmp_path, json.dumps(talk), kind=".jsonl", map=mapped)
    assert "field 'hwo' is missing; there are who, says" in said


def test_a_field_of_times_without_a_time_is_told(tmp_path, capsys):
    imported(tmp_path, TICKETS, map=f"{MAP},time=body")
    assert "time=body: no value of this field is a time" in capsys.readouterr().err
    timed = TICKETS.replace("customer\n", "customer,at\n", 1)
    timed = timed.replace(",c1", ",c1,5").replace(",c2", ",c2,6").replace(",\n", ",,\n")
    imported(second(tmp_path), timed, map=f"{MAP},time=at")
    assert "no value of this field" not in capsys.readouterr().err


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


def test_quotes_that_two_people_wrote_are_text_if_import_is_told_so(tmp_path, capsys):
    rows = ['1,customer,"hello', "2,customer,hi", "2,agent,yes", '3,customer,bye"']
    table = (TICKET + "".join(f"{row},c\n" for row in rows)).replace(",", "\t")
    found = imported(tmp_path, table, kind=".tsv", quotes="text")
    texts = [said(each)[0] for each in found]
    assert texts == [("user", '"hello'), ("user", "hi"), ("user", 'bye"')]
    assert not dropped(tmp_path)
    more = table + "4\tcustomer\tso\tc\n"
    imported(tmp_path, more, kind=".tsv", out=tmp_path / "csv")
    shown = capsys.readouterr()
    notice = " ".join((shown.out + shown.err).split())
    assert "table, import it with --quotes text" in notice


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


TICKET = "ticket,from,body,customer\n"


def dropped(path: Path) -> list[tuple[str, int, str]]:
    """Return the file, the line and the reason of each row that was set aside."""
    text = (path / "out" / "dropped.jsonl").read_text()
    lines = map(json.loads, text.splitlines())
    return [(Path(each["file"]).name, each["line"], each["reason"]) for each in lines]


def counts(path: Path) -> dict[str, int]:
    """Return the counts of an import, in which each row is one of three."""
    found = read_json(path / "out" / "results.json")["counts"]
    lost = sum(n for name, n in found.items() if name.startswith("dropped: "))
    assert found["in"] == found["out"] + found.get("note: merged lines", 0) + lost
    assert len(dropped(path)) == lost
    return found


def test_a_row_without_words_is_left_out_alone(tmp_path):
    rows = "1,customer,a,c\n1,agent,b,\n1,agent, ,\n1,customer,c,c\n1,agent,d,\n"
    [found] = imported(tmp_path, TICKET + rows)
    assert "".join(text for _, text in said(found)) == "abcd"
    assert found.ended
    assert dropped(tmp_path) == [("log0.csv", 4, "empty turn")]
    assert counts(tmp_path)["note: merged lines"] == 3


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        ("1,agent,,\n", True),  # a change of status
        ("1,customer,,c\n", False),  # a picture
        ("1,customer,,c\n1,agent,,\n", False),
        ("1,customer,,c\n1,agent,nice,\n", True),
    ],
)
def test_a_person_who_sends_no_words_after_an_answer_did_not_end(last, ended, tmp_path):
    [found] = imported(tmp_path, TICKET + "1,customer,a,c\n1,agent,b,\n" + last)
    assert found.ended is ended
    counts(tmp_path)


def test_rows_of_other_sides_without_words_and_tickets_of_such_rows_are_set_aside(
    tmp_path,
):
    rows = "1,customer,a,c\n1,system,,\n2,customer,,c\n2,agent,,\n"
    [found] = imported(tmp_path, TICKET + rows)
    assert found.id == "1"
    reasons = [reason for _, _, reason in dropped(tmp_path)]
    assert reasons == ["empty turn"] * 3
    counts(tmp_path)


def of(letters: str, ticket: int = 1) -> str:
    """Return a file with a row for each letter, by the customer if it is a small one."""
    sides = {True: "customer", False: "agent"}
    rows = (f"{ticket},{sides[each.islower()]},{each},\n" for each in letters)
    return TICKET + "".join(rows)


@pytest.mark.parametrize(
    ("files", "kept", "repeated"),
    [
        (("aBcD", "aBcD"), "aBcD", [2, 3, 4, 5]),  # a copy
        (("aBcD", "cDeF"), "aBcDeF", [2, 3]),  # overlapping times
        (("aBcD", "DeF"), "aBcDeF", [2]),
        (("cDeF", "aBcD"), "aBcDeF", [4, 5]),  # the later one first
        (("cD", "aBcDeF"), "aBcDeF", [4, 5]),
        (("aBcDeF", "cD"), "aBcDeF", [2, 3]),
        (("aBcD", "cDeF", "eFgH"), "aBcDeFgH", [2, 3, 2, 3]),
        (("aBa", "cDa"), "aBacDa", []),  # says the same once more, later
        (("aBaB", "aBaBaB"), "aBaBaB", [2, 3, 4, 5]),
        (("aaB", "cD"), "aaBcD", []),
    ],
)
def test_rows_that_a_later_file_has_again_are_set_aside(
    files, kept, repeated, tmp_path
):
    [found] = imported(tmp_path, *map(of, files))
    assert "".join("".join(text.split()) for _, text in said(found)) == kept
    lines = [(line, reason) for _, line, reason in dropped(tmp_path)]
    assert lines == [(line, "duplicate row") for line in repeated]
    several = int(len(kept) > len(files[0]))
    assert counts(tmp_path).get("note: rows in several files", 0) == several


def test_equal_rows_of_other_tickets_or_with_other_columns_are_no_duplicates(tmp_path):
    later = of("aB", ticket=2) + "1,customer,a,someone else\n"
    first, second = imported(tmp_path, of("aB"), later)
    assert (len(first.turns), len(second.turns)) == (3, 2)
    assert not dropped(tmp_path)


def timed(rows: str, day: str = "2024-05-0") -> str:
    """Return a table of messages: `a1 B2` are two of the days 1 and 2, the first by the customer."""
    table = "ticket,from,body,customer,time\n"
    for letter, time in rows.split():
        side = "customer" if letter.islower() else "agent"
        table += f"1,{side},{letter},,{day}{time}\n"
    return table


def writtenin_order(path: Path, *files: str, **options: object) -> str:
    [found] = imported(path, *files, map=f"{MAP},time=time", **options)
    return "".join("".join(text.split()) for _, text in said(found))


@pytest.mark.parametrize(
    ("files", "kept", "repeated"),
    [
        (("a1 B2", "D4", "a1 B2 c3 D4"), "aBcD", 3),  # one has all rows of two others
        (("c3 D4", "a1 B2 c3"), "aBcD", 1),  # the newest file first
        (("e5 F6", "c3 D4 e5", "a1 B2 c3"), "aBcDeF", 2),
        (("c3", "a1 B2"), "aBc", 0),  # nothing in common
        (("D4 c3 B2", "B2 a1"), "aBcD", 1),  # the newest row first
        (("b1 c2", "a1 b1"), "abc", 1),  # of one time
        (("B1 a1 B1", "B1 a1"), "BaB", 2),
        (("a1 a1 B2", "a1 a1 a1 B2"), "aaaB", 3),  # as often as in one file
        (("a1 a1", "a1"), "aa", 1),
        (("a1 B2", "a3 B4"), "aBaB", 0),
    ],
)
def test_rows_with_a_time_are_in_its_order_and_each_is_kept_once(
    files, kept, repeated, tmp_path
):
    assert writtenin_order(tmp_path, *map(timed, files)) == kept
    assert [reason for _, _, reason in dropped(tmp_path)] == (
        ["duplicate row"] * repeated
    )
    assert "note: times not read" not in counts(tmp_path)


@pytest.mark.parametrize("fields", [MAP, f"{MAP},time=time"])
def test_a_message_of_several_lines_is_the_same_whoever_wrote_its_line_ends(
    fields, tmp_path
):
    table = timed("a1 B2 c3").replace(",a,", ',"Hi,\nI am late",')
    kinds = [table, table.replace("\n", "\r\n"), table.replace("\n", "\r\r\n")]
    [found] = imported(tmp_path, *kinds, map=fields)
    assert len(found.turns) == 3
    assert counts(tmp_path)["dropped: duplicate row"] == 6


@pytest.mark.parametrize("day", ["May ", "09:0", "9" * 400])
def test_times_that_cannot_be_read_still_tell_which_rows_are_equal(day, tmp_path):
    files = [timed(rows, day) for rows in ("a1 B2", "D4", "a1 B2 c3 D4")]
    assert writtenin_order(tmp_path, *files) == "aBcD"
    assert counts(tmp_path)["note: times not read"] == 1


@pytest.mark.parametrize(
    "times",
    [
        ("31122023", "31122023", "01012024", "01012024"),
        ("31.12", "31.12", "01.01", "02.01"),
        ("9.58", "9.59", "10.01", "0.05"),
        ("2359", "2359", "0001", "0002"),
        ("1_0", "1_1", "1_0", "1_2"),
    ],
)
def test_days_and_times_of_day_are_no_numbers_to_sort_by(times, tmp_path):
    rows = zip(("customer", "agent") * 2, "aBcD", times, strict=True)
    text = "".join(f"1,{who},{said},,{time}\n" for who, said, time in rows)
    assert writtenin_order(tmp_path, timed("") + text) == "aBcD"
    assert counts(tmp_path)["note: times not read"] == 1


def newest_first(tmp_path, *rows):
    text = "".join(f"{id},{who},{said},,{time}\n" for id, who, said, time in rows)
    found = imported(tmp_path, timed("") + text, map=f"{MAP},time=time")
    return ["".join(turn for _, turn in said(each)) for each in found]


def test_a_conversation_of_one_minute_is_turned_round_as_others_of_its_file_are(
    tmp_path,
):
    later, earlier = "2024-05-01 09:45", "2024-05-01 09:30"
    rows = [("2", "agent", "D", later), ("2", "customer", "c", later)]
    rows += [("1", "agent", "B", later), ("1", "customer", "a", earlier)]
    assert newest_first(tmp_path, *rows) == ["cD", "aB"]
    assert "note: times not read" not in counts(tmp_path)


def test_one_time_that_goes_back_turns_no_other_conversation_round(tmp_path):
    rows = [("1", "customer", "a", "2024-05-03"), ("1", "agent", "B", "2024-05-03")]
    rows += [("2", "customer", "c", "2024-05-04"), ("2", "agent", "D", "2024-05-03")]
    rows += [("3", "customer", "e", "2024-05-05"), ("3", "agent", "F", "2024-05-05")]
    assert newest_first(tmp_path, *rows) == ["aB", "Dc", "eF"]
    assert counts(tmp_path)["note: times not read"] == 2


def test_tickets_of_one_day_stay_as_they_are_where_the_newest_ticket_is_first(tmp_path):
    rows = [("2", "customer", "c", "2024-05-04"), ("2", "agent", "D", "2024-05-04")]
    rows += [("1", "customer", "a", "2024-05-03"), ("1", "agent", "B", "2024-05-03")]
    assert newest_first(tmp_path, *rows) == ["cD", "aB"]
    assert counts(tmp_path)["note: times not read"] == 2


def test_rows_without_a_time_are_compared_as_if_there_were_none(tmp_path):
    gap = timed("a1 B2").replace("2024-05-02", "")
    assert writtenin_order(tmp_path, gap, timed("c3") + "1,agent,D,,\n") == "aBcD"
    assert counts(tmp_path)["note: times not read"] == 1


@pytest.mark.parametrize(
    "times",
    [
        ("1714550400", "1714550400.5", "1714550401"),
        ("9.0", "10", "11"),
        ("2024-05-01 23:59:59 UTC", "2024-05-02T00:00:00Z", "2024-05-02 03:00+02:00"),
        ("2024-05-01", "2024-05-02 08:00", "2024-05-02T08:00:01.5"),
    ],
)
def test_times_are_numbers_or_dates(times, tmp_path):
    first, second, third = times
    text = f"1,agent,B,,{second}\n1,customer,c,,{third}\n1,customer,a,,{first}\n"
    assert writtenin_order(tmp_path, timed("") + text) == "aBc"


windows = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=4)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("aBcD"), st.integers(2, 8)), max_size=6),
    windows,
    st.permutations(range(5)),
    st.booleans(),
)
def test_of_any_exports_of_a_table_its_rows_are_made_again(
    rows, windows, order, are_reversed
):
    rows = sorted(rows, key=lambda row: row[1])
    lines = [f"{letter}{time}" for letter, time in rows]
    parts = [lines, *(lines[start : start + more] for start, more in windows)]
    if are_reversed:
        parts = [part[::-1] for part in parts]
    files = [timed(" ".join(parts[at])) for at in order if at < len(parts)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        greeting = timed("x1")
        found = writtenin_order(folder, greeting, *files)
        assert sorted(found) == sorted(["x", *(letter for letter, _ in rows)])
        assert counts(folder)["in"] == 1 + sum(map(len, parts))
        if len({time for _, time in rows}) == len(rows):
            assert found == "x" + "".join(letter for letter, _ in rows)


def test_many_equal_rows_are_compared_in_no_time(tmp_path):
    first, later = "a" * 5000, "a" * 4999 + "b"
    [found] = imported(tmp_path, of(first), of(later))
    assert len(said(found)[0][1].split()) == 5001


@pytest.mark.parametrize(("limit", "ended"), [(4, False), (8, False), (9, True)])
def test_no_end_is_observed_of_tickets_that_a_limit_may_have_cut(
    limit, ended, tmp_path
):
    rows = of("aB")[len(TICKET) :] + of("aB", 2)[len(TICKET) :]
    first, second = imported(tmp_path, TICKET + rows * 2, limit=limit)
    assert (first.ended, second.ended) == (ended, ended)


cells = st.sampled_from(("hi", "", "a\n1,agent,forged,c\n", '"', " ", "x,y;z", "\0"))
people = st.sampled_from(("customer", "agent", "robot", ""))
random_rows = st.tuples(st.sampled_from("123 "), people, cells, st.just("c"))


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(st.lists(random_rows, max_size=12), min_size=1, max_size=3))
def test_every_row_of_any_tables_is_written_or_set_aside_or_merged(files):
    texts = []
    for rows in files:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([TICKET.strip().split(","), *rows])
        texts.append(text.getvalue())
    with TemporaryDirectory() as name:
        folder = Path(name)
        greeting = TICKET + "0,customer,hello,c\n"
        found = imported(folder, greeting, *texts)
        assert counts(folder)["in"] == 1 + sum(map(len, files))
        assert ("assistant", "forged") not in [
            each for one in found for each in said(one)
        ]


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


def test_columns_may_have_dots_in_their_names(tmp_path):
    text = "ticket.id,message.from,message.body\n7,customer,hi\n7,agent,ho\n"
    fields = "role=message.from,text=message.body,id=ticket.id"
    [found] = imported(tmp_path, text, map=fields)
    assert said(found) == [("user", "hi"), ("assistant", "ho")]
    assert "note: fields left out" not in counts(tmp_path)


def test_a_column_without_a_name_is_no_field(tmp_path):
    """As pandas writes its index."""
    text = ",ticket,from,body\n0,7,customer,hi\n1,7,agent,ho\n"
    [found] = imported(tmp_path, text, map="role=from,text=body,id=ticket")
    assert (found.user, found.intent) == (None, None)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("12,1714555800", "12.0,1714555800.0"),
        ("12,2024-05-01 09:30:00", "12.0,2024-05-01T09:30"),
        ("12,2024-05-01T09:30:00Z", "12,2024-05-01 11:30+02:00"),
    ],
)
def test_rows_of_two_exports_may_be_written_in_other_ways(first, again, tmp_path):
    header = "ticket,from,body,customer,sent\n"
    texts = [f"{header}7,customer,hi,{each}\n" for each in (first, again)]
    [found] = imported(tmp_path, *texts, map=f"{MAP},time=sent")
    assert said(found) == [("user", "hi")]
    assert counts(tmp_path)["dropped: duplicate row"] == 1


def test_ids_of_two_exports_may_be_written_in_other_ways(tmp_path):
    header = "ticket,from,body\n"
    first = f"{header}7.0,customer,hi\n7.0,agent,ho\n,agent,so\n"
    second = f"{header}7,customer,hi\n7,agent,ho\n7,customer,well\n"
    [found] = imported(tmp_path, first, second, map="role=from,text=body,id=ticket")
    assert [text for _, text in said(found)] == ["hi", "ho", "well"]


def test_times_in_nanoseconds_are_as_exact_as_they_are(tmp_path):
    first = 1714550400_000_000_001
    text = f"1,agent,B,,{first + 1}\n1,customer,a,,{first}\n1,customer,c,,{first + 2}\n"
    assert writtenin_order(tmp_path, timed("") + text) == "aBc"


def test_a_column_of_dates_is_one_of_times(tmp_path):
    import datetime

    import polars as pl

    days = [datetime.date(2024, 5, day) for day in (2, 1)]
    rows = {"ticket": [1, 1], "from": ["agent", "customer"], "body": ["B", "a"]}
    pl.DataFrame({**rows, "sent": days}).write_parquet(tmp_path / "log.parquet")
    options = {"map": "role=from,text=body,id=ticket,time=sent", "roles": ROLES}
    files = [str(tmp_path / "log.parquet")]
    commands.import_(commands.Import(files, out=tmp_path / "out", **options))
    [found] = read_conversations(tmp_path / "out/conversations.jsonl")
    assert "".join(text for _, text in said(found)) == "aB"


def test_a_person_called_nan_is_one_and_a_gap_is_none(tmp_path):
    assert [each.user for each in imported(tmp_path, TICKETS.replace("c1", "Nan"))] == [
        "Nan",
        "c2",
    ]
    out = tmp_path / "gaps"
    imported(tmp_path, TICKETS.replace("c1", "nan"), out=out)
    assert next(read_conversations(out / "conversations.jsonl")).user is None


@pytest.mark.parametrize(
    ("field", "note", "seen"),
    [
        ("public", "false", "true"),
        ("private", "True", "False"),
        ("internal", "1", "0"),
        ("part_type", "note", "comment"),
    ],
)
def test_a_note_within_a_help_desk_was_not_said(field, note, seen, tmp_path):
    written = (
        ("customer", "Hi", seen),
        ("agent", "He again", note),
        ("agent", "Hello", seen),
    )
    rows = "".join(f"7,{who},{text},c1,{mark}\n" for who, text, mark in written)
    [found] = imported(tmp_path, f"ticket,from,body,customer,{field}\n{rows}")
    assert said(found) == [("user", "Hi"), ("assistant", "Hello")]
    assert found.meta["system"] == "He again"
