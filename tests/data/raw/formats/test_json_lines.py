import gzip
import json
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.raw.columns import Where, as_ids, as_numbers
from trec_semid.data.raw.entities import collect_entities
from trec_semid.data.raw.formats import json_lines
from trec_semid.data.raw.formats.chunks import FileConfig
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.data.raw.times import as_times


def read(path, columns=("u",), **how):
    return list(read_chunks(FileConfig(path=str(path), **how), columns, work="test"))


def rows(path, columns=("u",), **how):
    return pa.concat_tables([chunk.table for chunk in read(path, columns, **how)]).to_pylist()


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson.gz", "t.JSONL.GZ"])
@pytest.mark.parametrize("columns", [["u", "r", "tags", "live"], None])
def test_values_keep_their_types(tmp_path, name, columns):
    lines = b'{"u": 1, "r": 3, "tags": ["a"], "live": true}\n\n{"u": 2, "r": 3.5, "tags": [], "live": null}\n'
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.lower().endswith("gz") else lines)
    assert rows(tmp_path / name, columns) == [
        {"u": 1, "r": 3.0, "tags": ["a"], "live": True},
        {"u": 2, "r": 3.5, "tags": [], "live": None},
    ]


def test_text_that_looks_like_a_time_or_a_number_stays_text(tmp_path):
    values = ["2014-07-23", "2014-07-23 10:00:00", "1", "1e3", "true", "[1]", "{}"]
    assert [row["u"] for row in rows(write(tmp_path / "t.jsonl", *({"u": v} for v in values)))] == values


@pytest.mark.parametrize("block", [8, 1 << 24])
def test_whole_numbers_and_text_may_mix_as_ids_do(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", block)
    write(tmp_path / "t.jsonl", {"u": 1}, {"u": "x"}, {"u": 2**64}, {"u": 2})
    where = Where([(0, "t", 1, None)], "u")
    ids = [as_ids(chunk.table["u"], where).to_pylist() for chunk in read(tmp_path / "t.jsonl")]
    assert list(chain.from_iterable(ids)) == ["1", "x", "18446744073709551616", "2"]
    items = collect_entities(read(tmp_path / "t.jsonl"), "u", "item")
    assert items.ids.to_pylist() == ["1", "x", "18446744073709551616", "2"]
    write(tmp_path / "more.jsonl", *({"id": n, "u": u} for n, u in enumerate([1, "x", 3])))
    items = collect_entities(read(tmp_path / "more.jsonl", ["id", "u"]), "id", "item")
    assert items.column("u")[0].to_pylist() == ["1", "x", "3"]


@pytest.mark.parametrize("block", [8, 1 << 24])
@pytest.mark.parametrize(
    ("values", "row", "problem"),
    [
        ([["red", "blue"], "green"], 2, r"text where other lines hold lists of text \(got '\"green\"'\)"),
        (["green", ["red"]], 2, r"lists of text where other lines hold text \(got '\[\"red\"\]'\)"),
        ([None, 1, True], 3, r"true or false where other lines hold whole numbers \(got 'true'\)"),
        (["x", True], 2, r"true or false where other lines hold text"),
        ([True, "x"], 2, r"text where other lines hold true or false"),
        ([2.5, "x"], 2, r"text where other lines hold numbers"),
        (["x", 2.5], 2, r"numbers where other lines hold text"),
        ([1, {"a": 1}], 2, r"an object where a value is expected \(got '\{\"a\": 1\}'\)"),
        ([{"a": 1}], 1, r"an object where a value is expected"),
        ([{}], 1, r"an object where a value is expected"),
        ([["a"], [["b"]]], 2, r"a list inside a list"),
        ([["a"], [{"b": 1}]], 2, r"an object where a value is expected"),
        ([["a"], ["b", True]], 2, r"true or false where other lines hold|lists of true or false"),
        ([[1], ["x", 2.5]], 2, r"lists of numbers where other lines hold lists of text"),
        (["x", "\ud800"], 2, r"text that is no Unicode: half of a surrogate pair"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_line_field_and_value(
    tmp_path, monkeypatch, values, row, problem, block
):
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", block)
    write(tmp_path / "t.jsonl", "", *({"u": value} for value in values))
    with pytest.raises(
        DataError, match=rf"t\.jsonl, row {row + 1}, field 'u': {problem}.*Write values of one type"
    ):
        read(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("values", "block"),
    [
        ([0.5, 2**53 + 1], 8),
        ([0.5, 2**53 + 1], 1 << 24),
        ([2**53 + 1, 0.5], 1 << 24),
        ([[0.5], [1, 2**64 + 1]], 1 << 24),
    ],
)
def test_a_whole_number_that_no_float_says_is_not_rounded_for_numbers_with_fractions(
    tmp_path, monkeypatch, values, block
):
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", block)
    write(tmp_path / "t.jsonl", *({"u": value} for value in values))
    with pytest.raises(DataError, match=r"t\.jsonl, row [12], field 'u': a whole number of more digits"):
        read(tmp_path / "t.jsonl")


def test_large_floats_and_whole_numbers_that_floats_say_exactly_are_read(tmp_path):
    write(tmp_path / "t.jsonl", '{"u": 0.5}', '{"u": 9007199254740994}', '{"u": 1e300}')
    assert rows(tmp_path / "t.jsonl") == [{"u": 0.5}, {"u": 2.0**53 + 2}, {"u": 1e300}]


@pytest.mark.parametrize(
    "other", ["18446744073709551616", "1" * 5000, "NaN", "[1]", '{"a": [{}]}', '"x"', "true", "1.5"]
)
def test_what_nobody_maps_may_be_anything(tmp_path, other):
    lines = ['{"u": "a", "x": 1}', f'{{"u": "b", "x": {other}}}']
    assert rows(write(tmp_path / "t.jsonl", *lines)) == [{"u": "a"}, {"u": "b"}]
    # A mixture in a column that is read takes the slow way, in which the same holds.
    lines = ['{"u": 1, "x": 1}', f'{{"u": "b", "x": {other}}}']
    assert rows(write(tmp_path / "t.jsonl", *lines)) == [{"u": "1"}, {"u": "b"}]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "1" * 5000])
def test_numbers_that_are_none_are_refused_by_their_line(tmp_path, value):
    write(tmp_path / "t.jsonl", '{"u": 1.5}', f'{{"u": {value}}}')
    (chunk,) = read(tmp_path / "t.jsonl")
    with pytest.raises(DataError, match=r"t\.jsonl, row 2, field 'u': not a finite number"):
        as_numbers(chunk.table["u"], Where(chunk.origins, "u"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"u":', "not JSON"),
        ("[1]", "not a JSON object"),
        ("1", "not a JSON object"),
        ('{"u": 1} {"u": 2}', "not JSON: Extra data"),
        ('{"u": 1},', "not JSON: Extra data"),
        ('{"u": 1, "u": 2}', "the key 'u' stands there twice"),
        ('{"u": "\0"}', "not JSON: Invalid control character"),
        ('\ufeff{"u": 1}', "not JSON"),
        ('{"u": ' + "[" * 100_000, "not JSON"),
        ('{"u": "\udcff"}', "bytes that are no text in 'utf-8'"),
    ],
)
@pytest.mark.parametrize("block", [8, 1 << 24])
def test_a_bad_line_is_named_by_its_line_blank_ones_counted(tmp_path, monkeypatch, line, problem, block):
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", block)
    (tmp_path / "t.jsonl").write_bytes(
        f'\n{{"u": 1}}\n\n{line}\n{{"u": 2}}\n'.encode(errors="surrogateescape")
    )
    with pytest.raises(DataError, match=rf"t\.jsonl, row 4.*{problem}"):
        read(tmp_path / "t.jsonl")


def test_an_object_over_two_lines_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"u": 1}\n{"u":\n2}\n')
    with pytest.raises(DataError, match=r"row 2: not JSON"):
        read(tmp_path / "t.jsonl")


@pytest.mark.parametrize("key", ["late", "schlüssel", 'quo"te', "back\\slash", "ключ"])
@pytest.mark.parametrize("ascii", [True, False])
def test_keys_that_only_late_lines_have_are_columns_too(tmp_path, key, ascii):
    lines = ['{"u": 1}'] * 2500 + [json.dumps({"u": 2, key: "x"}, ensure_ascii=ascii), '{"u": 3}']
    read_back = rows(write(tmp_path / "t.jsonl", *lines), ["u", key])
    assert len(read_back) == 2502
    assert read_back[-2:] == [{"u": 2, key: "x"}, {"u": 3, key: None}]
    with pytest.raises(DataError, match=r"field 'usr': no such column. Map one of: u"):
        rows(tmp_path / "t.jsonl", ["usr"])


def test_a_key_with_a_nul_character_is_refused(tmp_path):
    write(tmp_path / "t.jsonl", {"a\0": 1})
    with pytest.raises(DataError, match=r"t.jsonl: a key holds a NUL character: '.*x00'"):
        read(tmp_path / "t.jsonl", None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_other_encodings_are_read_where_the_config_names_them(tmp_path, encoding):
    (tmp_path / "t.jsonl").write_bytes('{"u": "é"}\n'.encode(encoding))
    assert rows(tmp_path / "t.jsonl", encoding=encoding) == [{"u": "é"}]


def test_utf_16_read_as_utf_8_names_the_remedy(tmp_path):
    (tmp_path / "t.jsonl").write_bytes('{"u": "é"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match=r'Set encoding = "utf-16"'):
        read(tmp_path / "t.jsonl")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=4)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)


def kinds_of(values):
    """Return the kinds among values: an oracle that knows nothing of the reader's table."""
    names = {bool: "bool", int: "int", float: "float", str: "text"}
    return {names[type(value)] for value in values if value is not None}


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.integers(1, 40), st.booleans())
def test_any_column_is_read_value_by_value_or_refused(tmp_path_factory, values, block, uniform):
    if uniform:
        values = [value for value in values if type(value) is type(values[0])] or [None]
    path = write(tmp_path_factory.getbasetemp() / "kinds.jsonl", *({"u": value} for value in values))
    there = [value for value in values if value is not None]
    are_lists = {isinstance(value, list) for value in there}
    flat = [each for value in there for each in (value if isinstance(value, list) else [value])]
    fits = not any(isinstance(value, dict) for value in flat) and len(are_lists) <= 1
    fits = fits and kinds_of(flat) in (
        set(),
        {"bool"},
        {"int"},
        {"float"},
        {"text"},
        {"int", "float"},
        {"int", "text"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_BLOCK_BYTES", block)
        if not fits:
            with pytest.raises(DataError, match=r"kinds\.jsonl, row \d, field 'u'"):
                read(path)
            return
        got = [row["u"] for chunk in read(path) for row in chunk.table.to_pylist()]

    def plain(value):
        if isinstance(value, list):
            return [plain(each) for each in value]
        return value if value is None or isinstance(value, bool | str) else float(value)

    def same(mine, theirs):
        if isinstance(mine, list):
            return len(mine) == len(theirs) and all(map(same, mine, theirs))
        return mine == theirs or str(mine) == theirs or plain(mine) == plain(theirs)

    assert len(got) == len(values)
    assert all(map(same, values, got))


FAULTY = {
    "ids that are lists": ("user", [["a"], ["b"]]),
    "ids that are true or false": ("user", [True, False]),
    "ids that are fractions": ("user", [1.5, 2.5]),
    "ids that are objects": ("user", [{"a": 1}, {"a": 2}]),
    "an id that is missing": ("user", ["a", None]),
    "an id that is empty": ("user", ["a", ""]),
    "numbers that are text": ("rating", ["1.5", "good"]),
    "numbers that are true or false": ("rating", [True, False]),
    "numbers that are lists": ("rating", [[1.5], [2.5]]),
    "times that are missing": ("time", [1_000_000_000, None]),
    "times that are lists": ("time", [[1_000_000_000], [1_000_000_001]]),
}
IN_TEXT = {
    "an id that is missing", "an id that is empty", "numbers that are text", "numbers that are true or false",
    "times that are missing",
}  # fmt: skip


CASES = [
    (name, fault)
    for name in ("t.parquet", "t.jsonl", "t.csv")
    for fault in FAULTY
    if name != "t.csv" or fault in IN_TEXT
]


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_all_formats_refuse_the_same_faults_by_file_and_field(tmp_path, name, fault):
    field, values = FAULTY[fault]
    table = pa.table({field: values, "other": ["x", "y"]})
    if name == "t.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "t.jsonl":
        write(tmp_path / name, *table.to_pylist())
    else:
        cells = ["" if value is None else str(value) for value in values]
        (tmp_path / name).write_text(f"{field},other\n" + "".join(f"{cell},x\n" for cell in cells))
    consume = {"user": as_ids, "rating": as_numbers, "time": partial(as_times, unit="s")}[field]

    def read_column():
        for chunk in read(tmp_path / name, [field]):
            consume(chunk.table[field], Where(chunk.origins, field))

    with pytest.raises(DataError, match=rf"{name}.*field '{field}'"):
        read_column()
