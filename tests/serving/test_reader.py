"""The reader that lies in every bundle: ids, tables and files that are not what they say."""

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.checkpoints.manifest import TableType
from trec_semid.serving import reader
from trec_semid.serving.reader import BundleError, IdMap, Table, hash_ids, map_tensors
from trec_semid.serving.writing.ids import write_ids
from trec_semid.serving.writing.tables import TableRows, write_tables

WORD = 2**64


def splitmix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def hash_of(text: str) -> int:
    content = text.encode()
    value = splitmix(len(content))
    for at in range(0, len(content), 8):
        value = splitmix(value ^ int.from_bytes(content[at : at + 8].ljust(8, b"\0"), "little"))
    return value


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=30), st.integers(0, 5))
def test_hashes_are_those_of_the_bytes_one_by_one(ids: list[str], skipped: int):
    column = pa.array(["x" * 9] * skipped + ids, pa.large_string()).slice(
        skipped
    )  # offsets do not begin at 0
    assert hash_ids(column).tolist() == [hash_of(text) for text in ids]


def test_rows_of_ids_are_found_whatever_their_order_and_others_are_not(tmp_path: Path):
    rng = np.random.default_rng(0)
    ids = [f"item-{number}" for number in rng.permutation(70_000)] + ["", "é", "日本語" * 9]
    write_ids(str(tmp_path), "ids", pa.array(ids))
    known = IdMap(f"{tmp_path}/ids.arrow", f"{tmp_path}/ids.index.safetensors")
    asked = [*rng.choice(len(ids), 500).tolist(), len(ids) - 1, len(ids) - 2, len(ids) - 3]
    found = known.rows_of([ids[row] for row in asked] + ["item--1", "item-70000", "É"])
    assert found.tolist() == [*asked, -1, -1, -1]
    assert known.ids_of([3, 3, 0]) == [ids[3], ids[3], ids[0]]
    assert known.rows_of([]).tolist() == []


def test_ids_of_one_hash_are_told_apart_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def three_hashes(ids: Any) -> Any:
        return np.array([len(text) % 3 for text in ids.to_pylist()], np.uint64)

    monkeypatch.setattr(reader, "hash_ids", three_hashes)
    monkeypatch.setattr("trec_semid.serving.writing.ids.hash_ids", three_hashes)
    ids = [f"{'x' * (number % 7)}{number}" for number in range(200)]
    write_ids(str(tmp_path), "ids", pa.array(ids))
    known = IdMap(f"{tmp_path}/ids.arrow", f"{tmp_path}/ids.index.safetensors")
    assert known.rows_of([*ids, "nothing", "xxxx"]).tolist() == [*range(200), -1, -1]


def rows_of(whole: torch.Tensor, kind: TableType) -> TableRows:
    return TableRows("t", len(whole), kind, lambda first, last: whole[first:last])


@pytest.mark.parametrize(("kind", "levels"), [("fp32", 0), ("fp16", 0), ("int8", 255), ("int4", 15)])
@pytest.mark.parametrize("width", [7, 8])
def test_a_table_comes_back_in_shards(tmp_path: Path, kind: TableType, levels: int, width: int):
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(50, width, generator=generator)
    whole[11] = 0.25  # a row without spread
    (facts,) = write_tables(str(tmp_path), [rows_of(whole, kind)], shard_rows=16)
    assert [shard.num_rows for shard in facts.shards] == [16, 16, 16, 2]
    table = Table(str(tmp_path), facts.model_dump())
    rows = np.array([49, 0, 16, 15, 11, 11])
    expected = whole[rows].numpy()
    if kind in ("fp32", "fp16"):
        wanted = expected.astype(np.float16 if kind == "fp16" else np.float32)
        np.testing.assert_array_equal(table.rows(rows), wanted)
    else:
        step = (expected.max(1) - expected.min(1)) / levels
        assert (np.abs(table.rows(rows) - expected).max(1) <= step / 2 + 1e-6).all()
    np.testing.assert_array_equal(table.stretch(14, 33), table.rows(np.arange(14, 33)))
    np.testing.assert_array_equal(table.stretch(17, 30), table.rows(np.arange(17, 30)))
    for wrong in (-1, 50, 2**40):
        with pytest.raises(BundleError, match="rows are 0 to 49"):
            table.rows(np.array([wrong]))


def test_reading_a_row_reads_that_row_alone(tmp_path: Path):
    (facts,) = write_tables(str(tmp_path), [rows_of(torch.zeros(100, 4), "fp32")], shard_rows=100)
    table = Table(str(tmp_path), facts.model_dump())
    memory: Any = table.stretch(0, 100)
    while isinstance(memory, np.ndarray):
        memory = memory.base
    assert isinstance(memory, mmap.mmap)


def header(**changes: Any) -> bytes:
    facts = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}
    text = json.dumps({"weight": facts}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


BROKEN = {
    "nothing": b"",
    "a header longer than the file": (2**62).to_bytes(8, "little") + b"{}",
    "no json": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a huge shape": header(shape=[2**40, 2**40]),
    "a shape that wraps to 24 bytes": header(shape=[2**62, 2**62 + 6]),
    "a huge range": header(shape=[2**40], data_offsets=[0, 2**42]),
    "a negative size": header(shape=[-2, -3]),
    "a size that is no number": header(shape=[2, "3"]),
    "a boolean size": header(shape=[True, 6]),
    "a range that begins before": header(data_offsets=[-24, 0]),
    "another type": header(dtype="F8_E4M3"),
    "a type that is a list": header(dtype=["F32"]),
    "no shape": (b"\x10" + bytes(7) + b'{"w":{"dtype":1}}'[:16]),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_file_that_declares_what_it_does_not_hold_is_refused_before_memory_is_asked_for(
    tmp_path: Path, kind: str
):
    place = tmp_path / "broken.safetensors"
    place.write_bytes(BROKEN[kind])
    with pytest.raises(BundleError):
        map_tensors(str(place))


def test_what_safetensors_writes_is_mapped_as_it_reads_it(tmp_path: Path):
    arrays: dict[str, Any] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([], np.int64),
        "c": np.array([7], np.uint64),
    }
    (tmp_path / "x").write_bytes(safetensors.numpy.save(arrays, metadata={"made": "here"}))
    mapped = map_tensors(str(tmp_path / "x"))
    assert mapped.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(mapped[name], values)
        assert mapped[name].dtype == values.dtype


def test_ids_that_are_remembered_have_the_rows_of_those_that_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reader, "_MOST_SEEN", 7)
    ids = [f"i{number}" for number in range(50)]
    facts = write_ids(str(tmp_path), "ids", pa.array(ids))
    known: Any = IdMap(str(tmp_path / facts.ids.file), str(tmp_path / facts.index.file))
    rng = np.random.default_rng(0)
    for size in (0, 1, 3, 5, 30, 4, 1, 60):
        asked = [f"i{number}" for number in rng.integers(-9, 60, size)]
        expected = [ids.index(each) if each in ids else -1 for each in asked]
        for given_as in (asked, pa.array(asked, pa.string())):
            assert known.rows_of(given_as).tolist() == expected
        assert len(known._seen) <= 7
