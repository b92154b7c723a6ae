"""What is a row in a text file, whatever its name says."""

import gzip
import json
import random

import pytest

from userlm import lines as lines_module
from userlm.rows import read_rows
from userlm.types import InputError

ROWS = [
    {"id": 1, "text": 'a, "b" [c] {d} \\'},
    {"id": 2, "inner": {"list": [1, [2]]}},
    {"id": 3},
]


def rows_in(path, content, **options):
    """The lines of a file with this content, which is packed if the name says so."""
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return list(read_rows(path, **options))


FORMS = {
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines without the last end": "\n".join(map(json.dumps, ROWS)),
    "lines of Windows": "".join(json.dumps(row) + "\r\n" for row in ROWS),
    "an array on one line": json.dumps(ROWS),
    "an array for people": json.dumps(ROWS, indent=2) + "\n\n",
    "an array with a row on each line": "\n["
    + ",\n".join(map(json.dumps, ROWS))
    + "\n]",
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_the_content_says_how_rows_stand_and_not_the_name(form, name, tmp_path):
    found = rows_in(tmp_path / name, FORMS[form])
    assert [line.row for line in found] == ROWS
    assert {line.error for line in found} == {""}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_one_row(indent, name, tmp_path):
    [line] = rows_in(tmp_path / name, json.dumps(ROWS[1], indent=indent))
    assert (line.row, line.number) == (ROWS[1], 1)


def test_a_byte_order_mark_counts_nowhere(tmp_path):
    # files that were written on Windows and joined
    text = "\ufeff" + '\ufeff{"id": 1}\n\ufeff\n\ufeff{"id": 2}\n'
    found = rows_in(tmp_path / "a.jsonl", text.removeprefix("\ufeff"))
    assert [(line.number, line.row) for line in found] == [
        (1, {"id": 1}),
        (3, {"id": 2}),
    ]
    for text in ('\ufeff[{"id": 1}]', '\ufeff\n{"id": 1}', '\ufeff{\n"id": 1}'):
        [line] = rows_in(tmp_path / "a.json", text)
        assert line.row == {"id": 1}


def test_a_bad_item_of_an_array_is_set_aside_as_a_bad_line_is(tmp_path):
    found = rows_in(
        tmp_path / "a.json", b'[{"id": 1}, {"id": 2 "x"}, "\xff", {"id": 3}, ]'
    )
    assert [line.reason for line in found] == ["", "not JSON", "not UTF-8", ""]
    assert found[1].raw == '{"id": 2 "x"}'
    assert found[3].row == {"id": 3}
    # Lines whose first one is an array are lines, and text after an array is no row.
    found = rows_in(tmp_path / "a.jsonl", '[1, 2]\n{"id": 1}\n')
    assert [line.reason for line in found] == ["not an object", ""]
    found = rows_in(tmp_path / "a.json", '[\n{"id": 1}\n]\noops')
    assert [line.reason for line in found] == ["", "not JSON"]


def test_a_file_without_json_is_named_and_said_what_to_do(tmp_path):
    with pytest.raises(
        InputError, match=r"a\.json is not JSON; .* rename it to \.jsonl"
    ):
        rows_in(tmp_path / "a.json", "<html>\n")
    with pytest.raises(
        InputError, match=r"a\.json is cut short or damaged after line 1;"
    ):
        rows_in(tmp_path / "a.json", '[{"id": 1}, {"id": ')


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_is_too_long_is_set_aside_and_the_rest_is_read(name, tmp_path):
    # 2000 bytes are allowed: {"t": "..."} adds 9 to its text.
    sizes = (1991, 1992, 5_000_000, 1)
    text = "".join(json.dumps({"t": "x" * size}) + "\n" for size in sizes)
    found = rows_in(tmp_path / name, text, longest=2000)
    assert [line.reason for line in found] == ["", "too long", "too long", ""]
    assert [line.number for line in found] == [1, 2, 3, 4]
    assert "is 2,001 bytes long" in found[1].error
    assert "is 5,000,009 bytes long" in found[2].error
    assert found[2].raw == '{"t": "' + "x" * 993  # the first thousand
    assert [line.reason for line in rows_in(tmp_path / name, text)] == [""] * 4


def test_an_item_that_is_too_long_is_set_aside_and_the_rest_is_read(tmp_path):
    items = [{"t": "x" * size} for size in (1991, 1992, 5_000_000, 1)]
    found = rows_in(tmp_path / "a.json.gz", json.dumps(items), longest=2000)
    assert [line.reason for line in found] == ["", "too long", "too long", ""]
    assert "is 5,000,009 bytes long" in found[2].error
    assert found[2].raw.startswith('{"t": "xxx') and len(found[2].raw) <= 1000


def test_a_line_of_many_packed_bytes_needs_no_memory(tmp_path, monkeypatch):
    """The bytes that are asked for at once stay below the limit, whatever the line holds."""
    asked = []
    plain = gzip.GzipFile.readline

    def readline(self, size=-1):
        asked.append(size)
        return plain(self, size)

    monkeypatch.setattr(gzip.GzipFile, "readline", readline)
    zeros = b'{"id": 1}\n' + bytes(20_000_000) + b'\n{"id": 2}\n'
    found = rows_in(tmp_path / "a.jsonl.gz", zeros, longest=1 << 20)
    assert [line.reason for line in found] == ["", "too long", ""]
    assert min(asked) > 0 and max(asked) <= (1 << 20) + 1


def test_blanks_after_an_object_are_not_held_and_what_is_too_long_is_set_aside(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(lines_module, "BUFFER", 64)
    path = tmp_path / "a.json"
    text = json.dumps({"id": "a", "text": "x" * 100}, indent=1)
    length = len(text)
    path.write_text(text + " \n" * 5000)
    (line,) = read_rows(path, longest=length)
    assert line.row["id"] == "a"
    (line,) = read_rows(path, longest=length - 1)
    assert line.reason == "too long" and f"is {length} bytes long" in line.error


def test_an_array_is_the_same_wherever_a_block_ends(tmp_path, monkeypatch):
    draw = random.Random(0)
    pieces = ['"', "\\", "[", "]", "{", "}", ",", "é", "\n", "x"]
    rows = [{"t": "".join(draw.choices(pieces, k=9)), "u": [{}]} for _ in range(40)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
    for size in (2, 3, 7, 64):
        monkeypatch.setattr(lines_module, "BUFFER", size)
        assert [line.row for line in read_rows(tmp_path / "a.json")] == rows


def test_a_missing_number_is_no_value(tmp_path):
    text = '{"a": NaN, "b": [Infinity, {"c": -Infinity}], "d": 1.5}\n'
    [line] = rows_in(tmp_path / "a.jsonl", text)
    assert line.row == {"a": None, "b": [None, {"c": None}], "d": 1.5}


@pytest.mark.parametrize(
    "first", ["[12:00] log opened", "[INFO] [1] x", '[{"role": "user"}], "id": 0}']
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_a_bad_first_line_with_a_bracket_costs_only_itself(first, name, tmp_path):
    found = rows_in(tmp_path / name, f"{first}\n{FORMS['lines']}")
    assert [line.reason for line in found] == ["not JSON", "", "", ""]
    assert [line.row for line in found[1:]] == ROWS


@pytest.mark.parametrize("extra", ["}", "}}", "]", "]}"])
def test_a_bracket_too_many_in_an_item_of_an_array_costs_only_that_item(
    extra, tmp_path
):
    rows = [*map(json.dumps, [*ROWS, *ROWS])]
    rows[1] += extra
    found = rows_in(tmp_path / "a.json", f"[{', '.join(rows)}]")
    good = [line.row for line in found if not line.error]
    assert good[0] == ROWS[0] and good[-4:] == [*ROWS[2:], *ROWS]
    assert len(found) <= 7


@pytest.mark.parametrize("end", [" x", "\n;", "[]\n"])
def test_text_behind_an_array_costs_no_item(end, tmp_path):
    found = rows_in(tmp_path / "a.json", json.dumps(ROWS) + end)
    assert [line.row for line in found[:3]] == ROWS


@pytest.mark.parametrize(
    "many",
    ["[" + "[]," * 50 + "1]", '{"a": [' + "{}," * 50 + "1]}", "[" + "5," * 99 + "5]"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_a_row_of_so_many_values_that_they_would_fill_the_memory_is_set_aside(
    many, name, tmp_path
):
    text = json.dumps({"id": 1, "text": ",[" * 10 + "long " * 100})
    rows = (text, many, text)
    content = "\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]"
    found = rows_in(tmp_path / name, content, most_values=90)
    assert [line.reason for line in found] == ["", "too many values", ""]
    assert found[1].raw == many


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ('{"id": 1, "messages": [{"a": 1}], "messages": [2]}', "messages"),
        ('{"id": 1, "body": "first", "body": "second"}', "body"),
        ('{"id": 1, "a": [{"content": "x", "role": "y", "content": "z"}]}', "content"),
        (r'{"id": 1, "a": "\u0022\u0022", "\u0061": "x"}', "a"),
    ],
)
def test_a_row_with_a_field_twice_is_set_aside_since_one_would_be_lost(
    row, name, tmp_path
):
    [found] = rows_in(tmp_path / "a.jsonl", row)
    assert (found.row, found.raw) == ({}, row)
    assert found.error == f"has the field {name!r} twice"


@pytest.mark.parametrize(
    "row",
    [
        '{"messages": [{"messages": [1]}, "\\"messages\\": []"], "id": 2}',
        '{"id": 2, "a": [{"b": NaN}, {"b": 1}], "text": "\\u0022b\\u0022:"}',
        '{"id": 2, "id": 2}',  # nothing is lost
    ],
)
def test_a_name_may_occur_in_several_objects_and_in_texts(row, tmp_path):
    [found] = rows_in(tmp_path / "a.jsonl", row)
    assert found.row["id"] == 2 and not found.error


def test_numbers_of_more_than_64_bits_stay_apart_however_they_are_aligned(tmp_path):
    huge = 12345678901234567890120
    content = "".join(f'{{"id":{" " * 40}{huge + n}}}\n' for n in range(3))
    found = rows_in(tmp_path / "a.jsonl", content)
    assert [line.row["id"] for line in found] == [huge, huge + 1, huge + 2]
