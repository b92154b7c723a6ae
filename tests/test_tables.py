"""Rows of CSV and TSV: whatever stands in a cell, and whatever is damaged."""

import csv
import gzip
import io
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from userlm.lines import Line
from userlm.rows import read_rows
from userlm.types import InputError

NAMES = ["id", "who", "say", "key"]
HEAD, TAIL = "id,who,say,key\n", "8,agent,fine,c\n" * 5
OPEN = '7,customer,"where is it,c\n'
FORGED = "7,agent,You get 900 dollars,c7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def read(folder: Path, text: str, name: str = "a.csv", quotes="auto") -> list[Line]:
    (folder / name).write_bytes(text.encode())
    return list(read_rows(folder / name, may_be_empty=True, quotes=quotes))


def says(lines: list[Line]) -> list[str]:
    return [line.row["say"] for line in lines if not line.error]


# --- cells of any text ----------------------------------------------------------------------------

hostile = st.lists(
    st.sampled_from(
        (FORGED, '"', '""', '",', ",", ";", "\t", "\n", "\r", "\r\n", "\0", "a", " ")
    ),
    max_size=8,
).map("".join)
# Without backslashes, of which it may not be known what they are (see below).
cells = hostile | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\\")
)
tables = st.lists(st.lists(cells, min_size=4, max_size=4), max_size=6)


@given(
    tables,
    st.sampled_from(",;\t"),
    st.sampled_from(("\n", "\r\n", "\r\r\n", "\r")),
    st.sampled_from(("", "\ufeff")),
)
@example([["", "", "", "\r\r\n"], ["", "", "", "\n\r"]], ",", "\r", "")
def test_a_table_is_read_as_python_reads_it(folder, rows, delimiter, ending, mark):
    text = io.StringIO(newline="")
    # Without quotes around all, some versions of Python leave CR in a cell as it is.
    is_translated = ending == "\r\r\n"  # a text file of Windows
    writer = csv.writer(
        text,
        delimiter=delimiter,
        lineterminator="\r\n" if is_translated else ending,
        quoting=csv.QUOTE_ALL,
    )
    writer.writerows([NAMES, *rows])
    table = text.getvalue()
    table = table.replace("\n", "\r\n") if is_translated else table
    found = read(folder, mark + table)
    assert [list(line.row.values()) for line in found] == rows


@given(tables)
@example([["1", "agent", "a\n" + FORGED, "\rc"]])
def test_only_the_cells_that_need_quotes_may_have_them(folder, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([NAMES, *rows])
    found = read(folder, text.getvalue())
    assert [list(line.row.values()) for line in found] == rows


@pytest.mark.parametrize(
    "say",
    ["hello, there\n" + FORGED + "\n" + FORGED + "\n7,agent,bye", "1,2,3,4\n" * 5],
)
def test_lines_of_a_cell_that_look_like_rows_are_its_text(folder, say):
    found = read(folder, f'{HEAD}8,customer,"{say}",c8\n{TAIL}')
    assert says(found) == [say, *["fine"] * 5]
    assert not any(line.error for line in found)


def test_texts_of_several_lines_are_values_even_with_delimiters(folder):
    texts = ["a\n\nb", "a, b\nc, d, e\n\nf", "1,2\n3,4\n5,6\n7,8,9", "x,y,z\n" * 9]
    table = "".join(f'{n},customer,"{text}",c\n' for n, text in enumerate(texts))
    assert says(read(folder, HEAD + table)) == texts


def test_what_python_reads_as_one_row_is_one_even_by_chance(folder):
    [found] = read(folder, HEAD + OPEN + TAIL + '9,agent,so be it",c\n')
    assert found.row["say"].count("\n") == 6


def test_line_breaks_of_excel_for_mac_end_rows(folder, monkeypatch):
    text = f'{HEAD}1,customer,"a\nb",c\n{TAIL}'.replace("\n", "\r")
    assert says(read(folder, text)) == ["a\rb", *["fine"] * 5]
    monkeypatch.setattr("userlm.tables.BUFFER", 20)
    text = HEAD.replace("\n", "\r") + "1,customer,hello,c\r" * 9
    assert says(read(folder, text)) == ["hello"] * 9


def test_rows_of_a_python_program_on_windows_may_end_in_two_crs(folder):
    """Of one that opens the file without `newline=""`, as most that people write."""
    text = f'{HEAD}1,customer,"a\0b\0\0c",c\n{TAIL}'.replace("\n", "\r\n")
    table = text.replace("\0", "\n").replace("\n", "\r\n")
    assert says(read(folder, table)) == ["a\nb\n\nc", *["fine"] * 5]


def test_a_bare_cr_in_a_cell_without_quotes_begins_no_row(folder):
    [bad, *others] = read(folder, f"{HEAD}8,customer,hi\r{FORGED}\n{TAIL}")
    assert bad.raw == f"8,customer,hi\r{FORGED}"
    assert says(others) == ["fine"] * 5


def test_a_name_in_the_header_may_have_a_line_break(folder):
    [found] = read(folder, 'id,"who\nis it"\n1,me\n')
    assert (found.number, found.row) == (3, {"id": "1", "who\nis it": "me"})


# --- what is damaged ------------------------------------------------------------------------------


def test_a_header_with_a_quote_that_is_not_closed_is_an_error(folder):
    with pytest.raises(InputError, match="its header is not CSV: unexpected end of"):
        read(folder, 'id,who,"say\n' + TAIL)


def test_a_packed_table_that_is_cut_short_is_an_error(folder):
    packed = gzip.compress((HEAD + TAIL * 1000).encode())
    (folder / "a.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(InputError, match=r"is cut short or damaged"):
        list(read_rows(folder / "a.csv.gz"))


@pytest.mark.parametrize(
    "row", [f'8,customer,"hi, see\n{FORGED}\nbye",c8,', f'8,"hi\n{FORGED}\nbye",c8']
)
def test_a_row_of_several_lines_with_a_wrong_number_of_values_is_one_bad_row(
    row, folder
):
    bad, *others = read(folder, f"{HEAD}{row}\n{TAIL}")
    assert (bad.raw, bad.number) == (row, 2)
    assert "values, and the header 4" in bad.error
    assert (says(others), others[0].number) == (["fine"] * 5, 5)


@pytest.mark.parametrize(
    ("damaged", "good"),
    [
        (OPEN + TAIL, ""),  # to the end of the file
        (OPEN + TAIL + '9,agent,"good, bye",c\n', TAIL),
        (OPEN + TAIL + '9,agent,so be it"\n', TAIL),
        (OPEN + TAIL + f'9,customer,"hello, there\n{FORGED}\nbye",c\n', TAIL),
        (OPEN + TAIL + f'9,customer,"\n{FORGED}\nbye",c\n', TAIL),
        (OPEN + TAIL + f'9,customer,"""so"", he\n{FORGED}\nbye",c\n', TAIL),
        (f'9,customer,"he said "hi"\n{FORGED}\nbye",c\n', TAIL),
        (f'9,customer,"hello\na 5" pipe\n{FORGED}\nbye",c\n', TAIL),
        ('7,customer,"a 5" pipe",c\n', TAIL),
        ('7,customer,"a 5" and a 6" pipe",c\n', TAIL),
        ('7,"cus"tomer,hi,c\n', TAIL),
        ('7,customer,"Hello" is what, I said,c\n', TAIL),
    ],
)
def test_what_may_be_within_a_quote_that_is_not_closed_is_set_aside(
    damaged, good, folder
):
    found = read(folder, HEAD + "6,agent,hi,c\n" + damaged + good)
    bad = [line for line in found if line.error]
    assert "".join(line.raw + "\n" for line in bad) == damaged
    assert bad[0].number == 3
    assert says(found) == ["hi", *["fine"] * good.count("\n")]
    if len(bad) > 1:
        assert "a quote in it is not closed" in bad[0].error
        assert bad[1].error.endswith("a quote that line 3 opens and does not close")


@given(st.text(st.sampled_from('a",\n'), max_size=40))
def test_no_line_is_lost_whatever_the_quotes_are(folder, text):
    lines = [f"L{number}:{line}" for number, line in enumerate(text.split("\n"), 1)]
    found = read(folder, HEAD + "\n".join(lines))
    kept = "\n".join("\n".join([line.raw, *line.row.values()]) for line in found)
    assert [kept.count(f"L{n}:") for n, _ in enumerate(lines, 1)] == [1] * len(lines)


long_or_short = st.lists(st.booleans(), min_size=4, max_size=4)


@given(st.lists(long_or_short, min_size=1, max_size=6), st.data())
def test_a_quote_too_many_or_too_few_makes_no_row_of_a_text(folder, rows, data):
    said = f'hello "you", there\n{FORGED}\n{FORGED}\nbye'
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([said if is_long else "a" for is_long in row] for row in rows)
    table = text.getvalue()
    places = list(re.finditer('\\ba(?=[,\n])|(?<=bye)"', table))
    place = data.draw(st.sampled_from(places))
    damaged = '"a' if place[0] == "a" else ""
    found = read(folder, HEAD + table[: place.start()] + damaged + table[place.end() :])
    assert FORGED.split(",") not in [list(line.row.values()) for line in found]


def test_quotes_of_two_texts_of_a_tsv_swallow_no_rows_between_them(folder):
    said = ['"hello', "not a word", 'bye"', "well"]
    table = "".join(f"{n}\ta\t{text}\tc\n" for n, text in enumerate(said))
    found = read(folder, HEAD.replace(",", "\t") + table, "a.tsv")
    assert [line.raw for line in found if line.error] == table.splitlines()[:3]
    assert says(found) == ["well"]
    assert "quote at the beginning of a value" in found[0].error
    [found] = read(folder, HEAD.replace(",", "\t") + '1\ta\tb\t"hi\nyou"\n', "a.tsv")
    assert found.row["key"] == "hi\nyou"


def test_texts_that_end_in_backslashes_are_read_at_once(folder):
    table = "".join(f'{n},a,",x\\"",",c\n' for n in range(8_000))
    begun = time.process_time()
    assert says(read(folder, HEAD + table)) == [',x\\",'] * 8_000
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("delimiter", ["\t", ";"])
@pytest.mark.parametrize("between", ["1\ta\tnot a word\tc\n", "more\n1\ta\tx\tc\td\n"])
def test_rows_between_two_quotes_are_noticed_whatever_else_is_there(
    folder, delimiter, between
):
    table = f'{HEAD}0,a,"hello,c\n{between}2,a,bye",c\n3,a,well,c\n'
    table = table.replace(",", delimiter).replace("\t", delimiter)
    found = read(folder, table, "a.csv")
    assert says(found) == ["well"]
    assert all(line.error for line in found[:-1])


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_quotes_that_are_text_enclose_nothing(folder, name):
    said = ['"hello', '"', 'bye"', '"so"', 'a "b" c', 'C:\\"', "a\rb", "", " x"]
    rows = [[str(n), "", text, text] for n, text in enumerate(said)]
    table = "".join("\t".join(row) + "\n" for row in [NAMES, *rows])
    found = read(folder, table + "\n9\ta\n" + '9\tb\tc\td"', name, "text")
    assert [list(line.row.values()) for line in found if not line.error] == [
        *rows,
        ["9", "b", "c", 'd"'],
    ]
    [bad] = [line for line in found if line.error]
    assert (bad.number, bad.raw) == (len(rows) + 3, "9\ta")
    assert bad.error == "has 2 values, and the header 4"


plain = st.text(
    st.sampled_from('a",;\\ \r') | st.characters(exclude_categories=["Cs"]), max_size=9
).map(lambda text: re.sub("[\t\n]", "", text).strip("\r"))
plain = plain.filter(lambda text: text not in (r"\N", "NULL"))


@given(st.lists(st.lists(plain, min_size=4, max_size=4), max_size=6))
def test_any_text_without_tabs_and_line_breaks_is_read_where_quotes_are_text(
    folder, rows
):
    table = "".join("\t".join(row) + "\n" for row in [NAMES, *rows])
    found = read(folder, table, quotes="text")
    assert [list(line.row.values()) for line in found] == rows


@pytest.mark.parametrize(
    ("quotes", "missing"),
    [("text", {r"\N", "NULL"}), ("backslash", {r"\N"}), ("csv", {r"\N"})],
)
def test_what_databases_write_for_a_missing_value_is_none(folder, quotes, missing):
    values = [r"\N", "NULL", "null", r"\N!", "x"]
    table = HEAD + "".join(f"1,{value},b,c\n" for value in values)
    found = [line.row["who"] for line in read(folder, table, quotes=quotes)]
    assert found == ["" if value in missing else value for value in values]


@pytest.mark.parametrize("half", ["9,customer,I do not want", '9,customer,"I do not'])
def test_a_row_that_was_being_written_when_reading_began_is_left_out(folder, half):
    path = folder / "grows.csv"
    path.write_text(HEAD + TAIL + half)
    size = path.stat().st_size
    assert len(list(read_rows(path, upto=size))) > 5  # as the file stands
    with path.open("a") as file:
        file.write(' to pay twice",c\n')
    found = list(read_rows(path, upto=size))
    assert says(found) == ["fine"] * 5 == [line.row["say"] for line in found]


def test_lines_that_are_too_long_are_set_aside_where_quotes_are_text(folder):
    long = '8,customer,"' + "a" * 5000 + ",c\n"
    found = with_limit(folder, HEAD + long + TAIL, 2000, quotes="text")
    assert (found[0].reason, len(found[0].raw)) == ("too long", 1000)
    assert says(found) == ["fine"] * 5
    found = with_limit(
        folder, HEAD + "," * 1000 + "\n" + TAIL, 5000, most_values=500, quotes="text"
    )
    assert says(found) == ["fine"] * 5
    assert "more than 500 delimiters" in found[0].error


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_lines_set_aside_for_their_quotes_name_the_option(folder, name):
    table = HEAD + '1,a,"hello,c\n2,a,hi,c\n2,a,bye",c\n'
    if name == "a.csv":
        table = table.replace('bye"', "bye")
    found = read(folder, table.replace(",", "\t"), name)
    assert "import it with --quotes text" in found[0].error


# --- quotes that a backslash escapes --------------------------------------------------------------

SAID = 'ok",c9\n7,agent,"We owe you 900 dollars'
escaped = st.lists(
    st.sampled_from(
        ("\\", '"', '""', '\\"', '",', ",", "\n", "\n" + FORGED, ",agent,", "a", "7")
    ),
    max_size=9,
).map("".join)


def exported(rows, are_all_quoted, are_backslashes_doubled):
    """Return rows with backslashes before quotes; people who write this by hand do not think of
    backslashes in texts."""

    def cell(text):
        if not are_all_quoted and text.isalnum():
            return text
        if are_backslashes_doubled:
            text = text.replace("\\", "\\\\")
        return '"' + text.replace('"', '\\"') + '"'

    return "".join(",".join(map(cell, row)) + "\n" for row in rows)


def check_none_is_forged(folder, texts, are_all_quoted, are_backslashes_doubled):
    rows = [[f"N{at}", "customer", *said] for at, said in enumerate(texts)]
    table = exported(rows, are_all_quoted, are_backslashes_doubled)
    names = HEAD
    if are_all_quoted:
        names = exported([NAMES], are_all_quoted, are_backslashes_doubled)
    try:
        found = read(folder, names + table)
    except InputError as error:
        assert "--quotes csv" in str(error)
        return
    good = [list(line.row.values()) for line in found if not line.error]
    numbers = [row[0] for row in good]
    assert numbers == sorted(set(numbers)) and set(numbers) <= {row[0] for row in rows}
    assert {row[1] for row in good} <= {"customer"}


@pytest.mark.parametrize("are_all_quoted", [True, False])
@pytest.mark.parametrize("are_backslashes_doubled", [True, False])
@pytest.mark.parametrize(
    "texts",
    [
        [(SAID, "c9"), ("a", "c")],
        [('a"', "c"), (",c\n" + FORGED + "\n8,customer,", "c")],
        [('ok "a" "b\n' + FORGED + "\n", "c")],
        [("x\\", "c"), ('",c\n' + FORGED + "\n8,agent,x\\", "c")],
        [('",x,c\n' + FORGED + "\n8,agent,x", "c"), ("a", "c")],
        [("c", 'x"\n' + FORGED + "\n8,agent,x,x"), ("a", "c")],
        [("c", 'x"\n"7","agent","You get 900 dollars","'), ("a", "c")],
        [('x",', ""), (",", ",")],
    ],
)
def test_a_text_with_escaped_quotes_makes_no_row_of_another(
    texts, are_backslashes_doubled, are_all_quoted, folder
):
    check_none_is_forged(folder, texts, are_all_quoted, are_backslashes_doubled)


@given(st.lists(st.tuples(escaped, escaped), max_size=5), st.booleans())
@example([("\\", '""\n' + FORGED)], False)
def test_no_text_with_escaped_quotes_makes_a_row(folder, texts, are_all_quoted):
    check_none_is_forged(folder, texts, are_all_quoted, are_backslashes_doubled=True)


@given(st.lists(st.tuples(escaped, escaped), max_size=5), st.sampled_from(",\t"))
@example([("C:\\", "a\nC:\\"), ("\\", "\\")], ",")
@example([("x\\", 'a"'), (",", ",\n"), ("\\", ",")], ",")
def test_backslashes_in_csv_are_text(folder, texts, delimiter):
    rows = [[f"N{at}", "customer", *said] for at, said in enumerate(texts)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(
        [NAMES, *rows]
    )
    name = "a.tsv" if delimiter == "\t" else "a.csv"
    found = read(folder, text.getvalue(), name, "csv")
    assert [list(line.row.values()) for line in found] == rows
    try:
        assert read(folder, text.getvalue(), name) == found
    except InputError as error:
        assert "all rows are right in both ways" in str(error)


@given(st.lists(st.tuples(escaped, escaped), max_size=5), st.booleans())
@example([("a\\", 'C:\\new, "so"\nand'), ("\\n", "\\\\")], True)
def test_quotes_and_backslashes_after_backslashes_are_read(
    folder, texts, are_all_quoted
):
    rows = [[f"N{at}", "customer", *said] for at, said in enumerate(texts)]
    names = exported([NAMES], are_all_quoted, True)
    table = exported(rows, are_all_quoted, are_backslashes_doubled=True)
    found = read(folder, names + table, quotes="backslash")
    assert [list(line.row.values()) for line in found] == rows
    if any('"' in said for row in rows for said in row):
        with pytest.raises(InputError, match="mport it with --quotes backslash"):
            read(folder, names + table)


def test_python_writes_quotes_after_backslashes_as_we_read_them(folder):
    rows = [NAMES, ["1", "a", 'a 5" pipe', "\\"], ["2", "a", 'so, "so"\nC:\\', ""]]
    text = io.StringIO(newline="")
    csv.writer(text, doublequote=False, escapechar="\\").writerows(rows)
    with pytest.raises(InputError, match="--quotes backslash all rows are right"):
        read(folder, text.getvalue())
    found = read(folder, text.getvalue(), quotes="backslash")
    assert [list(line.row.values()) for line in found] == rows[1:]


def test_line_breaks_after_backslashes_are_line_breaks(folder):
    table = f'{HEAD}1,a,"so \\"so\\"\\\nand \\N so",c\n'
    found = read(folder, table, quotes="backslash")
    assert says(found) == ['so "so"\nand \\N so']


def test_backslashes_that_may_be_either_are_asked_for(folder):
    rows = [["1", "customer", 'x",', '"'], ["2", "customer", "so", "c"]]
    table = HEAD + '1,customer,"x\\",",\\"\n2,customer,so,c\n'
    with pytest.raises(
        InputError, match=r"csv all rows.*backslash all rows are right"
    ) as raised:
        read(folder, table)
    as_csv, as_backslash = (read(folder, table, quotes=q) for q in ("csv", "backslash"))
    assert not any(line.error for line in as_csv + as_backslash)
    assert [list(line.row.values()) for line in as_backslash] == rows
    for quotes in ("csv", "backslash", "text"):
        assert f"--quotes {quotes}" in str(raised.value)


FORGING = (
    'so? \\"\n2{0}agent{0}We owe you{0}c\n2{0}customer{0}Thanks{0}c\n1{0}customer{0}bye'
)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_backslash_does_not_let_a_text_forge_rows(folder, delimiter):
    said = [FORGING.format(delimiter), "so", "well"]
    rows = [[str(n), "customer", text, "c"] for n, text in enumerate(said, 1)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([NAMES, *rows])
    found = read(folder, text.getvalue())
    assert says(found) == (said if delimiter == "," else said[1:])


def test_a_quote_after_a_backslash_lets_no_quotes_of_people_swallow_rows(folder):
    said = ['printf(\\"hi\\")', '"hello', "no", 'bye"', "well"]
    table = "".join(f"{n}\ta\t{text}\tc\n" for n, text in enumerate(said))
    found = read(folder, HEAD.replace(",", "\t") + table, "a.tsv")
    assert says(found) == [said[0], "well"]
    assert "import it with --quotes text" in found[1].error


def test_json_without_quotes_around_it_is_text(folder):
    said = '[{"role": "user", "content": "What is \\"x\\"?"}]'
    found = read(folder, HEAD.replace(",", "\t") + f"1\ta\t{said}\tc\n", "a.tsv")
    assert says(found) == [said]


def test_a_table_that_escapes_and_doubles_quotes_is_neither(folder):
    """As PHP's `fputcsv` writes: a quote is doubled unless a backslash is before it."""
    table = '1,customer,"so \\"x\\" so",c\n1,agent,"a ""full"" refund",c\n'
    with pytest.raises(
        InputError, match="line 3 is not CSV: a quote in a value has no"
    ):
        read(folder, HEAD + table)
    found = read(folder, HEAD + table, quotes="backslash")
    assert says(found) == ['so "x" so']
    assert found[1].raw == '1,agent,"a ""full"" refund",c'


def test_a_row_of_too_many_backslashes_is_set_aside(folder):
    said = f'8,customer,"{"a" + chr(92) * 1000}",c\n'
    found = with_limit(
        folder, HEAD + said + TAIL, 5000, most_values=500, quotes="backslash"
    )
    assert says(found) == ["fine"] * 5


def test_a_header_of_many_columns_takes_no_time(folder):
    begun = time.process_time()
    read(folder, ",".join(map(str, range(40_000))) + "\n")
    assert time.process_time() - begun < 2  # it was 15 s


def test_a_damaged_table_with_backslashes_before_quotes_is_asked_for(folder):
    table = f'{HEAD}9,a,"so ""\\"" so",c\n9,a\n{TAIL}'
    with pytest.raises(InputError, match=r"line 3 has 2 values.*line 2 is not CSV"):
        read(folder, table)
    found = read(folder, table, quotes="csv")
    assert says(found) == ['so "\\" so', *["fine"] * 5]
    found = read(folder, f'{HEAD}9,a,"so \\"so\\"",c\n9,a\n{TAIL}', quotes="backslash")
    assert says(found) == ['so "so"', *["fine"] * 5]


@pytest.mark.parametrize(
    "say",
    [
        "it is in C:\\dir\\, or not",
        'say \\"hi\\", then, go',
        '{"path": "C:\\\\", "said": "a \\"b\\""}',
        'a\n"C:\\"\nb',
        "in C:\\dir\\",
    ],
)
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_backslashes_of_paths_and_json_are_text(folder, say, quoting):
    text = io.StringIO(newline="")
    rows = [NAMES, ["9", "customer", say, ""], ["9", "agent", "so, so", "c"]]
    csv.writer(text, quoting=quoting).writerows(rows + rows[1:])
    assert says(read(folder, text.getvalue())) == [say, "so, so"] * 2


# --- what is too long -----------------------------------------------------------------------------


def with_limit(folder, text, longest, **limits):
    (folder / "long.csv").write_text(text)
    return list(read_rows(folder / "long.csv", longest=longest, **limits))


@pytest.mark.parametrize(
    ("value", "lost"),
    [
        ("a" * 5000, 1),
        ('"a, ' + "a" * 5000 + '"', 1),
        ('"a, ' + "a" * 5000 + "\n" + FORGED + '\nbye"', 3),
        ('"a\n' + "a" * 5000 + "\n" + FORGED + '\nbye"', 4),
        ('"so" a' + "a" * 5000 + "\n" + FORGED + '\nbye"', 3),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r"])
def test_a_line_that_is_too_long_is_set_aside_with_its_beginning(
    folder, value, lost, ending, monkeypatch
):
    monkeypatch.setattr("userlm.tables.BUFFER", 100)
    text = f"{HEAD}8,customer,{value},c\n{TAIL}".replace("\n", ending)
    found = with_limit(folder, text, 2000)
    bad = [line for line in found if line.error]
    assert (says(found), len(bad)) == (["fine"] * 5, lost)
    [long] = [line for line in bad if line.reason == "too long"]
    assert len(long.raw) == 1000
    assert "bytes long; the longest that is read is 2,000" in long.error


def test_a_quote_that_is_not_closed_holds_few_lines(folder):
    text = f'{HEAD}8,customer,"' + "a\n" * 100_000 + 'bye",c\n' + TAIL
    found = with_limit(folder, text, 100_000)
    assert says(found) == ["fine"] * 5
    assert "it goes on for more than 100,000 bytes" in found[0].error


def test_a_row_of_too_many_values_is_set_aside(folder):
    found = with_limit(folder, HEAD + "," * 1000 + "\n" + TAIL, 5000, most_values=500)
    assert says(found) == ["fine"] * 5
    assert "more than 500 delimiters" in found[0].error


def test_a_line_break_of_mac_beside_a_quote_that_is_not_doubled_is_set_aside(folder):
    found = read(folder, f'{HEAD}7,customer,"a 5" pipe\rand more",c\n{TAIL}')
    assert found[0].raw == '7,customer,"a 5" pipe\rand more",c'
