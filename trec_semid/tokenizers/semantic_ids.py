"""The item -> semantic ID map: `semantic_ids.parquet` and its array form."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.errors import DataError
from trec_semid.core.paths import arrow_filesystem, exists, join, make_folder

FILE = "semantic_ids.parquet"


@dataclass(frozen=True)
class SemanticIds:
    """Codes of every item, in row order.

    A code at position r lies in 0..sizes[r]-1; the reserved code sizes[r] says that the modality
    this position reads is missing for the item. Tables over position r therefore have sizes[r] + 1 rows.
    """

    item_ids: list[str]
    codes: np.ndarray[Any, np.dtype[np.int32]]
    """(N, R) int32."""
    sizes: tuple[int, ...]
    """Codebook size of each of the R positions."""

    @property
    def num_positions(self) -> int:
        """R, the length of the tuple."""
        return len(self.sizes)

    def checksum(self) -> str:
        """Return a sha256 over items, codebook sizes and codes: equal exactly when two maps are, in order."""
        digest = hashlib.sha256(json.dumps([self.item_ids, list(self.sizes)]).encode())
        digest.update(np.ascontiguousarray(self.codes, "<i4").tobytes())
        return digest.hexdigest()

    def save(self, uri: str) -> None:
        """Write `item_id` string, `codes` list<int32>; codebook sizes go into the file's metadata."""
        make_folder(uri.rpartition("/")[0] or ".")
        fs, inner = arrow_filesystem(uri)
        pq.write_table(self._table(), inner, filesystem=fs)

    def to_bytes(self) -> bytes:
        """Return what `save` writes."""
        sink = pa.BufferOutputStream()
        pq.write_table(self._table(), sink)
        return sink.getvalue().to_pybytes()

    def _table(self) -> pa.Table:
        flat = pa.array(self.codes.reshape(-1), pa.int32())
        offsets = pa.array(np.arange(len(self.codes) + 1, dtype=np.int32) * self.num_positions)
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, pa.string()),
                "codes": pa.ListArray.from_arrays(offsets, flat),
            }
        )
        return table.replace_schema_metadata({"codebook_sizes": ",".join(map(str, self.sizes))})

    @staticmethod
    def load(uri: str, item_ids: list[str] | None = None) -> "SemanticIds":
        """Read a map, and put it into the order of `item_ids` where given.

        Raises:
            DataError: no such file, other columns, codes outside their codebook, tuples of unequal
                length, duplicate items, or an item of `item_ids` without a semantic ID.
        """
        table = _read(uri)
        codes, sizes = _codes_array(table, uri)
        ids: list[str] = table["item_id"].to_pylist()
        positions = {item: row for row, item in enumerate(ids)}
        if len(positions) != len(ids):
            seen: set[str] = set()
            for row, item in enumerate(ids):
                if item in seen:
                    raise DataError("duplicate item", file=uri, row=row, field="item_id", value=item)
                seen.add(item)
        if item_ids is None:
            return SemanticIds(ids, codes, sizes)
        missing = next((item for item in item_ids if item not in positions), None)
        if missing is not None:
            remedy = "Tokenize the dataset that this job reads"
            raise DataError(
                "item has no semantic ID", file=uri, field="item_id", value=missing, remedy=remedy
            )
        order = np.fromiter((positions[item] for item in item_ids), np.int64, len(item_ids))
        return SemanticIds(list(item_ids), codes[order], sizes)


def semantic_ids_file(place: str) -> str:
    """Return the map's file that a config names: a finished run folder, or a `.parquet` file itself.

    Raises:
        DataError: the run is not finished.
    """
    return place if place.endswith(".parquet") else join(expect_finished(place), FILE)


def expect_finished(place: str) -> str:
    """Return a folder, whose tokenizer and map belong together where it has a map.

    A run marks its end with `metrics.json` and removes that mark first when it begins anew; a bundle is
    written whole. Without a mark tokenizer and map may be of two runs.

    Raises:
        DataError: the run is not finished.
    """
    has_mark = any(exists(join(place, mark)) for mark in ("metrics.json", "manifest.json"))
    if exists(join(place, FILE)) and not has_mark:
        raise DataError("not a finished run", file=place, remedy="Run it to its end: trec-semid tokenize")
    return place


def holds_same_codes(copy: str, original: str, began: str | None) -> bool:
    """Return whether `original` still says of a run's items what the run began with.

    Args:
        copy: the run's own file, whose codes are others by now where its tokenizer was tuned.
        original: what the run's config names.
        began: checksum of the codes it began with, from its `run.json`; where it has none, the copy counts.

    Raises:
        DataError: one of the two files is missing or damaged.
    """
    kept = SemanticIds.load(copy)
    now = SemanticIds.load(original)
    if set(kept.item_ids) - set(now.item_ids):
        return False
    return SemanticIds.load(original, kept.item_ids).checksum() == (began or kept.checksum())


def _read(uri: str) -> pa.Table:
    fs, inner = arrow_filesystem(uri)
    try:
        table = pq.read_table(inner, filesystem=fs)
    except FileNotFoundError:
        remedy = "Make one with: trec-semid tokenize CONFIG.toml"
        raise DataError("no such file", file=uri, remedy=remedy) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable Parquet file: {error}", file=uri) from None
    absent = {"item_id", "codes"} - set(table.column_names)
    if absent:
        raise DataError("missing column", file=uri, field=sorted(absent)[0])
    return table


def _codes_array(table: pa.Table, uri: str) -> tuple[np.ndarray[Any, np.dtype[np.int32]], tuple[int, ...]]:
    column = table["codes"].combine_chunks()
    lists = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    lengths = np.asarray(lists.value_lengths())
    if not len(lengths) or (lengths != lengths[0]).any():
        row = int(np.argmax(lengths != lengths[0])) if len(lengths) else None
        raise DataError("semantic IDs must all have the same length", file=uri, row=row, field="codes")
    codes = np.asarray(lists.flatten(), dtype=np.int32).reshape(len(lengths), -1)
    stated = (table.schema.metadata or {}).get(b"codebook_sizes")
    sizes = tuple(map(int, stated.decode().split(","))) if stated else tuple(int(c) + 1 for c in codes.max(0))
    outside = (codes < 0) | (codes > np.asarray(sizes))
    if outside.any():
        row, position = (int(index[0]) for index in np.nonzero(outside))
        value, limit = int(codes[row, position]), sizes[position]
        remedy = f"Position {position} has {limit} codes and {limit} as its 'missing' code"
        raise DataError(
            "code outside its codebook", file=uri, row=row, field="codes", value=value, remedy=remedy
        )
    return codes, sizes
