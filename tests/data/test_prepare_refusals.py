import json
import os
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.raw_tables import ITEMS, LOG, T0, USERS, config, write
from trec_semid.core.errors import DataError, SemidError
from trec_semid.data.prepare import prepare_dataset

BAD = {
    "missing column": ({"log": LOG.replace("rating", "stars")}, r"log.csv, field 'rating': no such column"),
    "wrong type": (
        {"log": LOG + "u1,i1,abc,1000001100\n"},
        r"log.csv, row 61, field 'rating': not a number \(got 'abc'\)",
    ),
    "nan rating": ({"log": LOG + "u1,i1,NaN,1000001100\n"}, r"row 61, field 'rating': not a finite number"),
    "infinite rating": ({"log": LOG + "u1,i1,-inf,1000001100\n"}, r"row 61.*not a finite number"),
    "huge rating": ({"log": LOG + "u1,i1,1e300,1000001100\n"}, r"row 61, field 'rating': too large"),
    "one class": (
        {"log": "user,item,rating,time\n" + "".join(f"u{n % 5},i1,5,{T0 + n}\n" for n in range(60))},
        r"log.csv, field 'label': every one of 60 labels is positive under 'rating > 3'",
    ),
    "missing rating": (
        {"log": LOG + "u1,i1,,1000001100\n"},
        r"row 61, field 'rating': the rating is missing",
    ),
    "missing user": ({"log": LOG + ",i1,3,1000001100\n"}, r"row 61, field 'user': the id is missing"),
    "duplicate items": (
        {"items": ITEMS + "i2,again,a,2000,1\n"},
        r"items.csv, row 11.*duplicate item id.*'i2'",
    ),
    "duplicate users": ({"users": USERS + "u0,F\n"}, r"users.csv, row 6.*duplicate user id.*'u0'"),
    "unknown item": ({"log": LOG + "u1,zzz,3,1000001100\n"}, r"log.csv, row 61, field 'item'.*'zzz'.*drop"),
    "unknown user": ({"log": LOG + "zzz,i1,3,1000001100\n"}, r"log.csv, row 61, field 'user'.*'zzz'.*drop"),
    "negative time": ({"log": LOG + "u1,i1,3,-5\n"}, r"row 61, field 'time': negative time"),
    "milliseconds": ({"log": LOG + "u1,i1,3,1500000000000\n"}, r"row 61.*timestamp_unit = \"ms\""),
    "empty log": ({"log": "user,item,rating,time\n"}, r"log.csv: no rows"),
    "empty file": ({"log": ""}, r"log.csv"),
    "empty items": ({"items": ""}, r"items.csv"),
    "short row": ({"log": LOG + "u1,i1\n"}, r"log.csv, row 61: has 2 fields where 4"),
    "unclosed quote": (
        {"items": ITEMS.replace("item,title,", "item,note,title,").replace("\ni", '\ni,"red shoes,', 3)},
        r"items.csv, row 1: a quote is not closed",
    ),
    "quote in a column that nobody maps": (
        {
            "log": LOG.replace("\n", ",plain\n")
            .replace("time,plain", "time,note")
            .replace(",plain\n", ',"red shoes\n', 1)
        },
        r"log.csv, row 1: a quote is not closed",
    ),
    "bad year": ({"items": ITEMS + "i10,T,a,soon,1\n"}, r"items.csv, row 11, field 'year': not a number"),
    "empty split": (
        {"log": "user,item,rating,time\nu1,i1,3,1000000005\nu2,i2,3,1000000005\n"},
        r"log.csv, field 'split': split 'train' is empty",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, fault):
    files, problem = BAD[fault]
    write(tmp_path, **files)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DataError, match=problem) as refusal:
        prepare_dataset(config(tmp_path))
    assert refusal.value.exit_code == 2
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"out: the disk is full; nothing was written"):
        prepare_dataset(config(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.startswith("out")]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk_is_named_and_leaves_nothing(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        rng = np.random.default_rng(0)
        ids = rng.permutation(40_000)
        pq.write_table(
            pa.table({"user": ids, "item": ids[::-1], "rating": ids % 5, "time": ids + T0}),
            tmp_path / "log.parquet",
        )
        table = {"path": str(tmp_path / "log.parquet"), "user": "user", "item": "item", "timestamp": "time"}
        made = config(
            tmp_path,
            out=str(small / "out"),
            source={"kind": "tables", "interactions": table},
            items={},
            users={},
            label={"kind": "all_positive"},
        )
        with pytest.raises(DataError, match="the disk is full"):
            prepare_dataset(made)
        assert not os.listdir(small)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_mutated_tables_are_prepared_or_refused_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    texts = {"log": LOG, "items": ITEMS, "users": USERS}
    which = data.draw(st.sampled_from(sorted(texts)))
    content = bytearray(texts[which].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 5))
        new = data.draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b",", b"\n", b'"', b"-1", b"1e99", b"nan"]))
        )
        content[at : at + cut] = new
    write(folder, **{which: bytes(content)})
    try:
        facts = prepare_dataset(config(folder))
    except SemidError:
        assert sorted(os.listdir(folder)) == ["items.csv", "log.csv", "users.csv"]
    else:
        assert json.loads((folder / "out/dataset.json").read_text())["checksum"] == facts.checksum
