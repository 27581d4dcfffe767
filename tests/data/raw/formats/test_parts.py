import json
import os
import uuid
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.core.paths import filesystem, join, remove, write_bytes
from trec_semid.data.raw.formats.chunks import FileConfig
from trec_semid.data.raw.formats.parts import find_inputs
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.data.raw.inputs import describe_inputs, have_changed

NULL = "__HIVE_DEFAULT_PARTITION__"


@pytest.fixture(scope="module")
def bucket():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("parts")
        yield "s3://parts"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "disk":
        yield str(tmp_path / "log")
        return
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
        return
    folder = f"memory://parts-{uuid.uuid4().hex}"
    yield folder
    remove(folder)


def write(root, **files):
    for name, text in files.items():
        write_bytes(join(root, name), text.encode() if isinstance(text, str) else text)


def put(root, names, text="a\n{}\n"):
    for number, name in enumerate(names):
        write_bytes(join(root, name), text.format(number).encode())


def read(path, columns=None, **how):
    chunks = list(read_chunks(FileConfig(path=str(path), **how), columns, work="test"))
    return [row for chunk in chunks for row in chunk.table.to_pylist()]


def names(root, path=None):
    inner = filesystem(root)[1].rstrip("/") + "/"
    return [filesystem(file)[1].removeprefix(inner) for file in find_inputs(path or root)]


def test_folders_are_read_with_all_their_subfolders_sorted_by_path(root):
    put(root, ["b.csv", "deep/er/x.csv", "a.csv", "deep/y.csv"])
    assert names(root) == ["a.csv", "b.csv", "deep/er/x.csv", "deep/y.csv"]
    assert read(root) == [{"a": "2"}, {"a": "0"}, {"a": "1"}, {"a": "3"}]


def test_marks_of_other_programs_are_left_out_at_any_depth(root):
    put(
        root,
        ["a.csv", "_SUCCESS", ".hidden.csv", "_temporary/x.csv", ".git/y.csv", "sub/_meta.csv", "sub/b.csv"],
    )
    assert names(root) == ["a.csv", "sub/b.csv"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv"]),
        ("*", ["a.csv", "day=1/b.csv", "day=2/c.csv", "day=2/more/d.csv"]),
        ("day=*", ["day=1/b.csv", "day=2/c.csv", "day=2/more/d.csv"]),
        ("day=2*", ["day=2/c.csv", "day=2/more/d.csv"]),
        ("**/*.csv", ["a.csv", "day=1/b.csv", "day=2/c.csv", "day=2/more/d.csv"]),
        ("day=?/*.csv", ["day=1/b.csv", "day=2/c.csv"]),
    ],
)
def test_patterns_may_match_folders_which_are_read_whole(root, pattern, expected):
    put(root, ["a.csv", "_SUCCESS", "day=1/b.csv", "day=2/c.csv", "day=2/more/d.csv", "day=2/_x.csv"])
    if expected[0] != "a.csv" or expected == ["a.csv"]:
        assert names(root, join(root, pattern)) == expected
    else:
        with pytest.raises(DataError, match=r"lies in other partition folders"):
            find_inputs(join(root, pattern))


def test_keys_that_stand_for_folders_are_no_files(bucket):
    root = f"{bucket}/{uuid.uuid4().hex}"
    put(root, ["day=1/x.csv"])
    for name in ("", "day=1/", "day=2/"):
        fsspec.filesystem("s3").pipe_file(f"{root}/{name}", b"")
    fsspec.filesystem("s3").invalidate_cache()
    assert names(root) == ["day=1/x.csv"]


def test_links_that_go_round_in_circles_are_followed_once(tmp_path):
    put(str(tmp_path), ["sub/a.csv"])
    os.symlink(tmp_path, tmp_path / "sub/again")
    os.symlink(tmp_path / "sub/a.csv", tmp_path / "b.csv")
    (tmp_path / "elsewhere").mkdir()
    assert names(str(tmp_path)) == ["b.csv", "sub/a.csv"]


def test_partition_folders_are_columns_of_text(root):
    put(
        root,
        ["day=2024-01-02/kind=a%20b%3D/x.csv", f"day=2024-01-01/kind={NULL}/x.csv", "day=01/kind=/y.csv"],
    )
    expected = [
        {"a": "2", "day": "01", "kind": ""},
        {"a": "1", "day": "2024-01-01", "kind": None},
        {"a": "0", "day": "2024-01-02", "kind": "a b="},
    ]
    assert read(root) == expected
    assert read(root, ["kind", "a"]) == [{"kind": row["kind"], "a": row["a"]} for row in expected]
    assert read(root, ["day"]) == [{"day": row["day"]} for row in expected]
    assert read(join(root, "day=2*")) == [expected[1], expected[2]]
    with pytest.raises(DataError, match=r"field 'dya': no such column"):
        read(root, ["dya"])


@settings(max_examples=40, deadline=None)
@given(
    key=st.text(min_size=1, max_size=4),
    values=st.lists(st.text(max_size=4), min_size=1, max_size=3, unique=True),
)
def test_any_text_comes_back_from_the_name_of_a_folder(key, values):
    root = f"memory://parts-{uuid.uuid4().hex}"
    try:
        folders = [f"{quote('k' + key, safe='')}={quote(value, safe='')}" for value in values]
    except UnicodeEncodeError:
        return
    put(root, [f"{folder}/x.csv" for folder in folders])
    got = read(root)
    remove(root)
    assert sorted((row["k" + key], row["a"]) for row in got) == sorted(
        (value, str(n)) for n, value in enumerate(values)
    )


def table_bytes(form, values, kind=None):
    table = pa.table({"a": pa.array(["x"] * len(values)), "day": pa.array(values, kind)})
    if form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return sink.getvalue().to_pybytes()
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    return ("a,day\n" + "".join(f"x,{value}\n" for value in values)).encode()


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("columns", [None, ["a"], ["day", "a"]])
def test_a_partition_that_is_a_column_of_the_file_too_must_say_the_same(root, form, columns):
    for number in (1, 2):
        write_bytes(join(root, f"day={number}/x.{form}"), table_bytes(form, [number, number]))
    assert [str(row.get("day", "-")) for row in read(root, columns)] == (
        ["-"] * 4 if columns == ["a"] else ["1", "1", "2", "2"]
    )
    write_bytes(join(root, f"day=2/x.{form}"), table_bytes(form, [2, 3]))
    with pytest.raises(
        DataError, match=rf"day=2/x.{form}, row 2, field 'day': another value.*got '?3'?.*says '2'"
    ):
        read(root, columns)


def test_partitions_agree_whatever_the_type_of_the_column(tmp_path):
    for folder, values, kind in [
        ("01", [1], pa.int8()), ("-5", [-5], pa.int64()), ("2024-01-02", [19724], pa.date32()),
        (NULL, [None], pa.string()), ("x", ["x"], pa.string()), ("99999999999999999999", ["9" * 20], None),
    ]:  # fmt: skip
        path = f"{tmp_path}/{uuid.uuid4().hex}"
        write_bytes(f"{path}/day={folder}/x.parquet", table_bytes("parquet", values, kind))
        assert len(read(path)) == 1
    write_bytes(f"{tmp_path}/no/day={NULL}/x.parquet", table_bytes("parquet", ["x"]))
    with pytest.raises(DataError, match=r"row 1, field 'day': another value.*says None"):
        read(tmp_path / "no")


def test_files_outside_the_partition_folders_of_the_others_are_refused(root):
    put(root, ["day=1/x.csv", "x.csv"])
    with pytest.raises(
        DataError, match=r"x.csv: lies in other partition folders than .*day=1/x.csv \(got 'none'\)"
    ):
        read(root)


@pytest.mark.parametrize("other", ["b.parquet", "deep/b.jsonl", "b.tsv.gz"])
def test_files_of_two_formats_in_one_folder_are_refused_by_name(root, other):
    put(root, ["a.csv", other])
    with pytest.raises(DataError, match=rf"{other}: \w+ beside csv \(.*a.csv\).*pattern"):
        read(root)


def test_a_file_of_no_format_in_a_folder_is_refused_by_name(root):
    put(root, ["a.csv", "deep/README.txt"])
    with pytest.raises(DataError, match=r"README.txt: unknown file format"):
        read(root)


@pytest.mark.parametrize("packing", ["zst", "bz2", "xz", "zip", "lz4", "7z"])
def test_packed_files_are_refused_with_the_remedy(root, packing):
    put(root, [f"a.csv.{packing}"])
    with pytest.raises(DataError, match=rf"a.csv.{packing}: packed as .{packing}.*with gzip"):
        read(root)
    with pytest.raises(DataError, match=r"with gzip"):
        read(root, format="csv")


def test_changes_below_a_folder_are_noticed(root):
    put(root, ["day=1/x.csv", "day=2/x.csv"])
    described = describe_inputs([root])
    assert len(described) == 2
    assert not have_changed(described, [root])
    put(root, ["day=2/more/x.csv"])
    assert have_changed(described, [root]), "a file came in a subfolder"
    remove(join(root, "day=2/more"))
    assert not have_changed(described, [root])
    write_bytes(join(root, "day=3/x.csv"), b"a\n1\n")
    remove(join(root, "day=2"))
    assert have_changed(described, [root]), "a folder has another name, its file the same content"
