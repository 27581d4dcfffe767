"""Delimited text against a slow state machine that knows RFC 4180 and nothing of the reader."""

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trec_semid.core.errors import DataError
from trec_semid.data.raw.formats import delimited
from trec_semid.data.raw.formats.chunks import FileConfig, locate
from trec_semid.data.raw.formats.rows import Layout, end_of_row
from trec_semid.data.raw.formats.streams import read_chunks

HEADER = "u,i,note"
MARK = "\ufeff"


def read(path, columns=("u", "i", "note"), **how):
    chunks = list(read_chunks(FileConfig(path=str(path), **how), columns, work="test"))
    return [tuple(row.values()) for chunk in chunks for row in chunk.table.to_pylist()]


class RefusedError(Exception):
    """The oracle's verdict."""


def parse_strictly(text):  # noqa: C901, PLR0912, PLR0915 - a state machine in one place
    """Return the rows of a table, character by character.

    Raises:
        RefusedError: anything that RFC 4180 does not allow, or a row of another length than the first.
    """
    if "\0" in text:
        raise RefusedError
    rows, row, field, state, ends, start = [], [], "", "begin", set(), True
    text = text.removeprefix(MARK)
    at = 0
    while at < len(text):
        char = text[at]
        two = text[at : at + 2]
        if state == "inside":
            if char == '"':
                state = "after"
            else:
                field += char
        elif char == '"' and state == "after":
            field, state = field + '"', "inside"
        elif char == '"' and state == "begin":
            state = "inside"
        elif char == ",":
            row, field, state = [*row, field], "", "begin"
        elif char == "\n" or two == "\r\n":
            at += len(two) - 1 if char == "\r" else 0
            ends.add(char)
            rows.append(None if not row and state == "begin" else [*row, field])
            row, field, state = [], "", "begin"
            at, start = at + 1, True
            continue
        elif char in '"\r' or state == "after" or (start and char == MARK):
            raise RefusedError
        else:
            field, state = field + char, "plain"
        at, start = at + 1, False
    if state == "inside" or len(ends) > 1:
        raise RefusedError
    if row or state != "begin":
        rows.append([*row, field])
    filled = [row for row in rows if row is not None]
    filled_lines = [",".join(row).split("\n") for row in filled]
    if any(
        len(lines) >= 3 and all(line.count(",") == len(filled[0]) - 1 for line in lines)
        for lines in filled_lines
    ):
        raise RefusedError
    if not filled or any(len(row) != len(filled[0]) or row == filled[0] for row in filled[1:]):
        raise RefusedError
    return filled


def written(rows, end):
    def cell(text, quoted):
        needs = quoted or any(mark in text for mark in ',"\r\n') or text.startswith(MARK)
        return '"' + text.replace('"', '""') + '"' if needs else text

    return HEADER + end + "".join(",".join(cell(*each) for each in row) + end for row in rows)


CELL = st.tuples(st.text('ab,"\n\r \t\x1fé☃\ufeff', max_size=5), st.booleans())
ROWS = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=5)
ENDS = st.sampled_from(["\n", "\r\n"])


@settings(max_examples=150, deadline=None)
@given(ROWS, ENDS, st.integers(4, 60))
def test_every_table_reads_back_however_it_is_cut(tmp_path_factory, rows, end, block):
    path = tmp_path_factory.getbasetemp() / "t.csv"
    path.write_bytes(written(rows, end).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_BLOCK_BYTES", block)
        patch.setattr(delimited, "_HEAD_BYTES", block)
        try:
            texts = read(path)
        except DataError as refused:  # fields that look like rows are taken for a quote that is missing
            assume("a quoted field that holds whole rows" not in str(refused))
            raise
        assert texts == [tuple(text for text, _ in row) for row in rows]


@settings(max_examples=400, deadline=None)
@given(
    ROWS,
    ENDS,
    st.integers(4, 60),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(
        ['"', '"x', 'x"', ",", "\n", "\r", "\r\n", "\0", MARK, "", "\n" + MARK, "\n" + HEADER + "\n"]
    ),
    st.integers(0, 2),
)
def test_a_planted_fault_is_refused_or_reads_as_rfc_4180_says(  # noqa: PLR0917 - drawn
    tmp_path_factory, rows, end, block, place, planted, replaced
):
    text = written(rows, end)
    at = int(place * len(text))
    text = text[:at] + planted + text[at + replaced :]
    path = tmp_path_factory.getbasetemp() / "t.csv"
    path.write_bytes(text.encode())
    try:
        header, *expected = parse_strictly(text)
        if header != HEADER.split(",") or not expected:
            raise RefusedError
    except RefusedError:
        expected = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_BLOCK_BYTES", block)
        patch.setattr(delimited, "_HEAD_BYTES", block)
        if expected is None:
            with pytest.raises(DataError, match=r"t\.csv"):
                read(path)
        else:
            assert read(path) == [tuple(row) for row in expected]


FAULTS = {
    "an unclosed quote before a quoted field": ('b,2,"red shoes\nc,3,"blue"\n', 2, "a quote is not closed"),
    "an unclosed quote to the end": ('b,2,"red shoes\nc,3,x\n', 2, "a quote is not closed"),
    "an unclosed quote in the last row": ('b,2,"red', 2, "a quote is not closed"),
    "an unclosed first field": ('"b,2,x\nc,3,"y"\n', 2, "a quote is not closed"),
    "a quote inside a plain field": ('b,2,5" disk\n', 2, "a quote inside a field"),
    "a quote after a blank": ('b,2, "x"\n', 2, "a quote inside a field"),
    "text after a closing quote": ('b,2,"x" y\n', 2, "text after a closing quote"),
    "too few fields": ("b,2,x\nc,3\n", 3, "has 2 fields where 3 columns are named"),
    "too many fields": ('b,2,x\nc,3,"x,y",z\n', 3, "has 4 fields where 3 columns are named"),
    "a NUL character": ("b,2,x\0\n", 2, "a NUL character"),
    "a stray carriage return": ("b,2,x\ry\n", 2, "a carriage return without a line feed"),
    "a carriage return at the end": ("b,2,x\r", 2, "a carriage return without a line feed"),
    "another line end": ("b,2,x\r\nc,3,y\n", 2, "a row that ends otherwise than the first"),
    "no text of the encoding": ("b,2,\udcff\n", 2, "no text in 'utf-8'"),
    "a byte order mark inside": ("b,2,x\n\ufeffc,3,y\n", 3, "a byte order mark inside the file"),
    "the header again": ('b,2,x\nu,"i",note\nc,3,y\n', 3, "the column names stand where values"),
    "a row that is too long": ("b,2,x\nc,3," + "x" * 300 + "\n", 3, "a row of more than 0 MiB"),
    "a quote that is never closed": (
        'b,2,x\nc,3,"' + "x\n" * 150 + "\n",
        3,
        "more than 0 MiB: a quote may not",
    ),
}


@pytest.mark.parametrize("columns", [["u"], ["u", "i", "note"], None])
@pytest.mark.parametrize("block", [16, 1 << 24])
@pytest.mark.parametrize("name", FAULTS)
def test_malformed_text_is_refused_by_its_row_in_whatever_column(tmp_path, monkeypatch, name, block, columns):
    text, row, problem = FAULTS[name]
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", block)
    if "0 MiB" in problem:
        monkeypatch.setattr(delimited, "_BLOCK_BYTES", 16)
        monkeypatch.setattr("trec_semid.data.raw.formats.blocks.LONGEST_ROW_BYTES", 200)
    (tmp_path / "t.csv").write_bytes(f'{HEADER}\na,1,"x\ny"\n{text}'.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"t\.csv, row {row}: .*{problem}"):
        read(tmp_path / "t.csv", columns)


@pytest.mark.parametrize("swallowed", [0, 1, 2, 50])
def test_rows_between_two_quotes_of_which_one_is_missing_are_refused(tmp_path, swallowed):
    inside = "".join(f"b{n},{n},x\n" for n in range(swallowed))
    (tmp_path / "t.csv").write_text(f'{HEADER}\na,1,x\na,2,"red shoes\n{inside}c,3,blue shoes"\nd,4,x\n')
    with pytest.raises(DataError, match=r"row 2: a quoted field that holds whole rows"):
        read(tmp_path / "t.csv", ["u"])


def test_text_over_several_lines_with_as_many_commas_as_a_row_is_text_where_rows_hold_numbers(tmp_path):
    note = "not bad\nfine, if dear, and heavy\nsturdy, red, loud"
    rows = [("a", "1", note), ("b", "2", "x"), ("c", "3.5", "first\nsecond, 1, third")]
    (tmp_path / "t.csv").write_text(written([[(text, False) for text in row] for row in rows], "\n"))
    assert read(tmp_path / "t.csv") == rows


def test_a_row_that_never_ends_is_seen_in_one_pass():
    data = b'a,1,"' + b"x\n" * 500_000
    began = time.process_time()
    assert end_of_row(data, Layout(b",", quoted=True, encoding="utf-8")) == len(data)
    assert end_of_row(data + b'"\nb,2,x\n', Layout(b",", quoted=True, encoding="utf-8")) == len(data) + 2
    assert time.process_time() - began < 2  # a pass for each line takes half a minute


def test_text_over_several_lines_may_hold_commas(tmp_path):
    note = "one, two, three\nfour, five\nsix, seven, eight\n"
    (tmp_path / "t.csv").write_text(f'{HEADER}\na,1,"{note}"\n\nb,2,x\n')
    assert read(tmp_path / "t.csv") == [("a", "1", note), ("b", "2", "x")]


def test_a_fault_of_the_header_is_said_to_be_there(tmp_path):
    (tmp_path / "t.csv").write_text('u,i,no"te\na,1,x\n')
    with pytest.raises(DataError, match=r"t\.csv: in the header line: a quote inside a field"):
        read(tmp_path / "t.csv")


def test_a_row_number_counts_quoted_lines_once_and_blank_lines_too(tmp_path):
    (tmp_path / "t.csv").write_text(f'\n{HEADER}\na,1,"x\n\ny"\n\nb,2\n')
    with pytest.raises(DataError, match=r"row 3: has 2 fields"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_no_character_is_lost_at_any_offset_around_a_block_edge(tmp_path, monkeypatch, quoted, end):
    cells = [(f"u{n}", f"i{n}", f"one{end}two {n}" if quoted else f"one two {n}") for n in range(8)]
    lines = [f'{u},{i},"{note}"' if quoted else f"{u},{i},{note}" for u, i, note in cells]
    (tmp_path / "t.csv").write_bytes((end.join([HEADER, *lines]) + end).encode())
    for block in range(1, 140):
        monkeypatch.setattr(delimited, "_BLOCK_BYTES", block)
        assert read(tmp_path / "t.csv") == cells


def test_quotes_are_plain_text_where_the_config_says_so(tmp_path):
    (tmp_path / "t.csv").write_text(f'{HEADER}\na,1,5" disk\nb,2,"x" y\n')
    assert [row[2] for row in read(tmp_path / "t.csv", quoted=False)] == ['5" disk', '"x" y']


def test_long_separators_are_text_inside_quotes(tmp_path):
    (tmp_path / "t.csv").write_text('u::i::note\na::1::"x::y"\nb::2::z\n')
    assert read(tmp_path / "t.csv", separator="::") == [("a", "1", "x::y"), ("b", "2", "z")]
    (tmp_path / "t.csv").write_text("u::i::note\na::1::x\nb::2::\x1f\n")
    with pytest.raises(DataError, match=r"row 2: the control character U\+001F"):
        read(tmp_path / "t.csv", separator="::")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "utf-7"]
)
@pytest.mark.parametrize("block", [3, 1 << 24])
def test_encodings_with_and_without_a_byte_order_mark(tmp_path, monkeypatch, encoding, block):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", block)
    (tmp_path / "t.csv").write_bytes(f"{HEADER}\nä,1,é\nb,2,x\n".encode(encoding))
    assert read(tmp_path / "t.csv", encoding=encoding) == [("ä", "1", "é"), ("b", "2", "x")]


@pytest.mark.parametrize(
    ("encoding", "content", "problem"),
    [
        (
            "utf-16",
            f"{HEADER}\na,1,é\nb,2,c".encode("utf-16") + b"\0",
            r"row 2: bytes that are no text in 'utf-16'",
        ),
        (
            "cp1252",
            f"{HEADER}\na,1,x\nb,2,".encode() + b"\x81\n",
            r"row 2: bytes that are no text in 'cp1252'",
        ),
        ("ascii", f"{HEADER}\na,1,é\n".encode(), r"row 1: bytes that are no text in 'ascii'"),
        ("utf-8", HEADER.encode("utf-16"), r'byte order mark of utf-16.*Set encoding = "utf-16"'),
        ("utf-8", HEADER.encode("utf-32"), r'byte order mark of utf-32.*Set encoding = "utf-32"'),
        ("latin-1", HEADER.encode("utf-16"), r'byte order mark of utf-16.*Set encoding = "utf-16"'),
        ("utf-8", f"{HEADER}\na,1,x\n".encode("utf-16-le"), r"header line: a NUL character.*set encoding"),
    ],
)
def test_bytes_of_another_encoding_are_refused_by_row_or_by_their_mark(tmp_path, encoding, content, problem):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read(tmp_path / "t.csv", encoding=encoding)


@pytest.mark.parametrize(
    "encoding",
    ["zip", "zlib", "bz2", "hex", "rot13", "base64", "uu", "idna", "punycode", "undefined", "klingon"],
)
def test_codecs_that_are_no_encodings_of_text_files_are_refused_in_the_config(encoding):
    with pytest.raises(ValidationError, match=r"encoding.*common ones are utf-8"):
        FileConfig(path="t.csv", encoding=encoding)


def test_a_header_in_the_config_beside_one_in_the_file_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text(f"{HEADER}\na,1,x\n")
    with pytest.raises(DataError, match=r"row 1: the column names stand.*Leave the row out, or header"):
        read(tmp_path / "t.csv", header=["u", "i", "note"])


def test_a_value_that_is_a_column_name_is_no_header(tmp_path):
    (tmp_path / "t.csv").write_text(f"{HEADER}\nu,1,note\n")
    assert read(tmp_path / "t.csv", ["u"]) == [("u",)]


def test_rows_of_a_refused_value_are_named_in_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", 12)
    (tmp_path / "t.csv").write_text(f'{HEADER}\n\n"a\nb",1,x\n\nc,2,y\n')
    chunks = list(read_chunks(FileConfig(path=str(tmp_path / "t.csv")), ["u"], work="test"))
    assert [locate(chunk.origins, 0)[1] for chunk in chunks] == [2, 4]
