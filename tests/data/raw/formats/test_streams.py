import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError, SemidError
from trec_semid.core.paths import write_bytes
from trec_semid.data.raw.formats.chunks import FileConfig, locate
from trec_semid.data.raw.formats.streams import read_chunks

ROWS = [{"u": "é1", "i": "a, b", "r": "3.5"}, {"u": "2", "i": 'say "x"', "r": ""}]


def read(path, columns=("u", "i", "r"), **how):
    chunks = list(read_chunks(FileConfig(path=str(path), **how), columns, work="test"))
    return pa.concat_tables([chunk.table for chunk in chunks]).to_pylist()


def write_csv(path, separator=",", encoding="utf-8"):
    lines = [separator.join(ROWS[0])]
    lines += [separator.join('"' + v.replace('"', '""') + '"' for v in row.values()) for row in ROWS]
    content = ("\n".join(lines) + "\n").encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz"])
def test_delimited_text_comes_as_text(tmp_path, name):
    write_csv(tmp_path / name, "\t" if "tsv" in name else ",")
    assert read(tmp_path / name) == ROWS


def test_encoding_separator_and_header_are_said_not_guessed(tmp_path):
    write_csv(tmp_path / "t.txt", ";", "latin-1")
    assert read(tmp_path / "t.txt", format="csv", separator=";", encoding="latin-1") == ROWS
    (tmp_path / "plain.csv").write_text("1,x\n2,y\n")
    assert read(tmp_path / "plain.csv", ["b"], header=["a", "b"]) == [{"b": "x"}, {"b": "y"}]
    with pytest.raises(DataError, match=r"t.txt: unknown file format.*set format"):
        read(tmp_path / "t.txt")


@pytest.mark.parametrize("name", ["t.CSV.GZ", "T.Csv.Gz", "t.TSV", "t.JSONL", "t.PARQUET"])
def test_names_are_understood_in_upper_case(tmp_path, name):
    if name.endswith("PARQUET"):
        pq.write_table(pa.table({"u": ["x"]}), tmp_path / name)
    else:
        content = b'{"u": "x"}\n' if "JSON" in name else b"u\nx\n"
        (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    assert read(tmp_path / name, ["u"]) == [{"u": "x"}]


def test_several_gzip_members_and_zeros_after_them_are_one_file(tmp_path):
    members = [gzip.compress(part) for part in (b"a,b\n1,", b"2\n", b"", b"3,4\n")]
    (tmp_path / "t.csv.gz").write_bytes(b"".join(members) + b"\0" * 512)
    assert read(tmp_path / "t.csv.gz", None) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(b"a\n1\n", mtime=0), r"not text but a gzip file. Name it .gz"),
        (b"PAR1\0\0", r"not text but a parquet file.*format = .parquet"),
        (b"\x28\xb5\x2f\xfd\0", r"not text but a zstd file. Unpack it"),
        (b"PK\x03\x04\0", r"not text but a zip file. Unpack it"),
        (lzma.compress(b"a\n1\n"), r"not text but a xz file. Unpack it"),
        (bz2.compress(b"a\n1\n"), r"not text but a bzip2 file. Unpack it"),
    ],
)
def test_what_is_packed_and_does_not_say_so_is_refused_with_the_remedy(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read(tmp_path / name, ["a"])


def test_null_values_are_those_of_the_config(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nNA,\nNULL,x\n")
    assert read(tmp_path / "t.csv", None, null_values=["NA"]) == [
        {"a": None, "b": ""},
        {"a": "NULL", "b": "x"},
    ]


def test_separators_of_several_characters_are_found_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("trec_semid.data.raw.formats.delimited._BLOCK_BYTES", 5)
    (tmp_path / "r.dat").write_text("1::2:3::5\n10::a: b::6\n")
    rows = read(tmp_path / "r.dat", None, format="csv", separator="::", header=["a", "b", "c"], quoted=False)
    assert rows == [{"a": "1", "b": "2:3", "c": "5"}, {"a": "10", "b": "a: b", "c": "6"}]


def test_parquet_keeps_its_types_and_reads_only_what_is_asked(tmp_path):
    pq.write_table(pa.table({"u": [1, 2], "x": [[0.5], []], "y": ["a", "b"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", ["x", "u"]) == [{"x": [0.5], "u": 1}, {"x": [], "u": 2}]


def test_folders_and_patterns_read_their_files_by_name(tmp_path):
    for part in (1, 0):
        (tmp_path / f"part-{part}.csv").write_text(f"a\n{part}\n")
    (tmp_path / "_SUCCESS").write_text("")
    assert read(tmp_path, None) == [{"a": "0"}, {"a": "1"}]
    assert read(tmp_path / "part-*.csv", None) == [{"a": "0"}, {"a": "1"}]
    with pytest.raises(DataError, match=r"no such file"):
        read(tmp_path / "other-*.csv", None)


def test_files_behind_uris_are_read_too():
    write_bytes("memory://raw/part-0.csv", b"a\n1\n")
    write_bytes("memory://raw/part-1.csv.gz", gzip.compress(b"a\n2\n"))
    assert read("memory://raw", None) == [{"a": "1"}, {"a": "2"}]
    assert read("memory://raw/part-*.csv", None) == [{"a": "1"}]


def test_chunks_say_where_their_rows_are(tmp_path, monkeypatch):
    monkeypatch.setattr("trec_semid.data.raw.formats.delimited._BLOCK_BYTES", 8)
    (tmp_path / "t.csv").write_text("a\n" + "".join(f"{row}\n" for row in range(1, 20)))
    for chunk in read_chunks(FileConfig(path=str(tmp_path / "t.csv")), None, work="test"):
        assert chunk.table["a"].to_pylist()[0] == str(chunk.first_row)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.csv", b"a,b\n1,2\n3\n", r"t.csv, row 2: has 1 fields where 2 columns are named"),
        ("t.csv", b"a,b\n1,2\n3,\xff\n", r"t.csv, row 2: .*utf-8"),
        ("t.csv", b"", r"t.csv"),
        ("t.csv", b"a,b\n", r"t.csv: no rows"),
        ("t.csv", b"a,a\n1,2\n", r"t.csv, field 'a': two columns of one name"),
        ("t.csv", b"a\n1\n", r"t.csv, field 'b': no such column. Map one of: a"),
        (
            "t.csv.gz",
            gzip.compress(b"a,b\n1,2\n", mtime=0) + b"garbage",
            r"truncated or damaged gzip.*Not a gzipped file",
        ),
        (
            "t.csv.gz",
            gzip.compress(b"a,b\n1,2\n" * 1000, mtime=0)[:-20],
            r"t.csv.gz: truncated or damaged gzip",
        ),
        ("t.csv.gz", b"a,b\n1,2\n", r"t.csv.gz: truncated or damaged gzip"),
        ("t.jsonl", b'{"a":1,"b":2}\n{"a":\n', r"t.jsonl, row 2: not JSON"),
        ("t.jsonl", b'{"a":1,"b":2}\n[1]\n', r"t.jsonl, row 2: not a JSON object"),
        ("t.jsonl.gz", gzip.compress(b'{"a":1,"b":2}\n' * 1000, mtime=0)[:-20], r"truncated or damaged gzip"),
        ("t.parquet", b"PAR1 and no more", r"t.parquet: cannot be read: .*write or download it again"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read(tmp_path / name, ["a", "b"])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "t.jsonl", "t.jsonl.gz"])
@pytest.mark.parametrize("num_rows", [2, 3000])
def test_a_column_that_is_nowhere_is_refused_in_every_format(tmp_path, name, num_rows):
    table = pa.table({"user": [f"u{n}" for n in range(num_rows)], "item": ["i"] * num_rows})
    if name == "t.parquet":
        pq.write_table(table, tmp_path / name)
    elif ".jsonl" in name:
        content = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    else:
        separator = "\t" if name == "t.tsv" else ","
        lines = [separator.join(row.values()) for row in table.to_pylist()]
        (tmp_path / name).write_text("\n".join([separator.join(table.column_names), *lines]))
    with pytest.raises(DataError, match=rf"{name}, field 'usr': no such column. Map one of: user, item"):
        read(tmp_path / name, ["usr", "item"])


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("t.jsonl", '{"a": "1"}\n\n\n{"a": "2"}\n  \n{"a": "3"}\n', 6),
        ("t.csv", "a,b\n1,x\n\n\n2,y\n\n3,z\n", 6),
        ("t.csv", "a,b\n1,x\n2,y\n3,z\n\n", 3),
    ],
)
def test_blank_lines_count_where_a_row_is_named(tmp_path, name, content, row):
    (tmp_path / name).write_text(content)
    (chunk,) = read_chunks(FileConfig(path=str(tmp_path / name)), ["a"], work="test")
    assert chunk.table["a"].to_pylist() == ["1", "2", "3"]
    assert locate(chunk.origins, 2) == (str(tmp_path / name), row)


def test_a_bad_line_below_blank_ones_is_named_by_its_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('\n{"a": 1}\n\n{"a":\n')
    with pytest.raises(DataError, match="row 4: not JSON"):
        read(tmp_path / "t.jsonl", ["a"])


def test_parquet_text_that_is_no_utf8_is_refused(tmp_path):
    wrong = pa.array([b"\x80", b"x"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"a": wrong}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet: cannot be read"):
        read(tmp_path / "t.parquet", ["a"])


def test_truncated_parquet_is_refused(tmp_path):
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot be read"):
        read(tmp_path / "t.parquet", ["a"])


def refusal(path, columns):
    """Say why the file is refused, or its name; anything but a SemidError goes up."""
    try:
        read(path, columns)
    except SemidError as error:
        return str(error)
    return path.name


@pytest.mark.parametrize("content", ["null", "null\n", "\n null\n{}", '{"a": 1}\nnull', '{"a": 1}\n\tnull\n'])
@pytest.mark.parametrize("columns", [None, ["a"]])
def test_a_line_that_is_null_is_refused(tmp_path, content, columns):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"t\.jsonl"):
        read(tmp_path / "t.jsonl", columns)


BYTES = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet='a,b"\n\r\t1 {}[]:\\', max_size=100).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda c: st.lists(c) | st.dictionaries(st.text(max_size=3), c),
    ).map(lambda v: json.dumps(v).encode()),
)


@settings(max_examples=150, deadline=None)
@given(
    BYTES,
    st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.csv.gz", "t.jsonl.gz", "t.parquet"]),
    st.booleans(),
    st.sampled_from([None, ["a"], ["a", "b"]]),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, name, packed, columns):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(gzip.compress(content) if packed else content)
    assert name in refusal(path, columns)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_parquet_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "t.parquet"
    pq.write_table(pa.table({"a": ["x", "y"] * 50, "b": list(range(100))}), path, compression="none")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert "t.parquet" in refusal(path, ["a", "b"])
