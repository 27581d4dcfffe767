"""Reads a bundle with numpy and pyarrow alone: this one file, which lies in every bundle, needs nothing else.

    from reader import Reader                        # beside manifest.json
    bundle = Reader("bundles/sasrec", verify=True)
    rows = bundle.items.rows_of(["i12", "i7"])       # -1 where an id is unknown
    vectors = bundle.tables["vectors"].rows(rows)    # (2, D) float32, decoded
    history = bundle.history("u3")                   # item ids, oldest first
    best = bundle.best(bundle.scores(query), 10)     # [(item id, score)]: exact, best first

Files stay on the disk and are mapped: opening reads the manifest, and looking a row up reads that row.
Tensors lie in safetensors files (https://github.com/huggingface/safetensors), whose header is checked here
before anything of it is believed.

Legend: n asked ids or rows, N rows of a table, D width, M vectors of a user.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSIONS = (2, 3)
_TYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U8": "|u1", "BOOL": "|b1"}
_MOST_HEADER_BYTES = 100_000_000
_ADDED, _FIRST_FACTOR, _SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MOST_SEEN = 1 << 17
"""Ids of a map that are remembered with their rows."""
_HASHED_AT_ONCE = 1 << 16
"""Ids whose bytes are gathered at once."""
_SCORED_AT_ONCE = 1 << 22
"""Numbers of a table that are decoded at once to be scored: 16 MiB."""
Array = np.ndarray[Any, np.dtype[Any]]


class BundleError(ValueError):
    """A file that is not what the manifest says, or not what its own header says."""


def map_tensors(path: str) -> dict[str, Array]:
    """Return the (...) arrays of a safetensors file by name, mapped into memory.

    Raises:
        BundleError: the header is none, or declares more than the file holds.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise BundleError(f"{path}: a header of {length:,} bytes in a file of {size:,}")
        try:
            header = json.loads(file.read(length))
            declared = {name: facts for name, facts in header.items() if name != "__metadata__"}
            return {name: _mapped(path, facts, 8 + length, size) for name, facts in declared.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise BundleError(f"{path}: not a safetensors file: {error}") from None


def _mapped(path: str, facts: Mapping[str, Any], start: int, size: int) -> Array:
    dtype, shape = np.dtype(_TYPES[facts["dtype"]]), tuple(facts["shape"])
    first, last = facts["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError("a size that is none")
    # Python's numbers do not wrap: a huge shape is seen here, before anything is made of it.
    if last - first != math.prod(shape) * dtype.itemsize or start + last > size:
        raise ValueError(f"shape {shape} of {dtype} does not lie in bytes {first} to {last}")
    if first == last:
        return np.zeros(shape, dtype)
    # Copied where it is written to, which nobody does: torch warns of memory that cannot be.
    return np.memmap(path, dtype, "c", start + first, shape)


def hash_ids(ids: pa.Array) -> Array:
    """Return (n,) uint64: a hash of the UTF-8 bytes of each id, of (n,) large_string without nulls.

    Bytes are taken eight by eight, filled up with zeros, h <- splitmix64(h ^ word), from the id's length on.
    """
    _, offset_bytes, text = ids.buffers()
    count, hashes = len(ids), np.zeros(len(ids), np.uint64)
    if not count:
        return hashes
    bounds = np.frombuffer(offset_bytes, np.int64)[ids.offset : ids.offset + count + 1]
    data = np.frombuffer(text, np.uint8) if text is not None else np.zeros(0, np.uint8)
    for start in range(0, count, _HASHED_AT_ONCE):
        here = bounds[start : start + _HASHED_AT_ONCE + 1]
        part = np.append(data[here[0] : here[-1]], np.zeros(8, np.uint8))
        hashes[start : start + _HASHED_AT_ONCE] = _hash_stretch(part, here - here[0])
    return hashes


def _hash_stretch(data: Array, bounds: Array) -> Array:
    lengths = np.diff(bounds)
    hashes = _splitmix64(lengths.astype(np.uint64))
    for first in range(0, int(lengths.max(initial=0)), 8):
        own = np.flatnonzero(lengths > first)
        left = np.minimum(lengths[own] - first, 8)
        words = data[(bounds[own] + first)[:, None] + np.arange(8)]
        words[np.arange(8) >= left[:, None]] = 0
        hashes[own] = _splitmix64(hashes[own] ^ words.view("<u8")[:, 0])
    return hashes


def _splitmix64(values: Array) -> Array:
    mixed = values + np.uint64(_ADDED)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_FIRST_FACTOR)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND_FACTOR)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def map_column(path: str, name: str) -> pa.Array:
    """Return the (n,) column of an Arrow IPC file, mapped into memory.

    Raises:
        BundleError: it is none, or has no such column.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
        column = table[name]
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BundleError(f"{path}: not an Arrow file with a column '{name}': {error}") from None


class IdMap:
    """Ids in the order of rows; rows of ids are found by hashes, and told apart by the ids themselves."""

    def __init__(self, ids_path: str, index_path: str) -> None:
        self.ids = map_column(ids_path, "id")
        index = map_tensors(index_path)
        # As plain arrays: a part of a mapped one takes longer to name than to read.
        self._hashes, self._rows = np.asarray(index["hashes"]), np.asarray(index["rows"])
        if not len(self.ids) == len(self._hashes) == len(self._rows):
            raise BundleError(f"{index_path}: another number of ids than {ids_path}")
        self._seen: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: Sequence[str] | pa.Array) -> Array:
        """Return (n,) int64 rows of (n,) ids; -1 of one that is not there."""
        if isinstance(ids, pa.Array):
            return self._looked_up(ids)
        # A request's ids come one by one from JSON and are mostly those of requests before: remembered,
        # 600 of them take 50 us, and 1 ms by their hashes.
        rows = [self._seen.get(each) for each in ids]
        new = [at for at, row in enumerate(rows) if row is None]
        if new:
            found = self._looked_up(pa.array([ids[at] for at in new], pa.large_string())).tolist()
            for at, row in zip(new, found, strict=True):
                rows[at] = row
            if len(self._seen) + len(new) > _MOST_SEEN:
                self._seen.clear()
            pairs = zip(new[:_MOST_SEEN], found[:_MOST_SEEN], strict=True)
            self._seen.update((ids[at], row) for at, row in pairs if row >= 0)
        return np.array(rows, np.int64)

    def _looked_up(self, asked: Any) -> Array:
        """Return (n,) rows of an Arrow array of ids."""
        found = np.full(len(asked), -1, np.int64)
        if not len(asked) or not len(self.ids):
            return found
        if asked.null_count or asked.type != pa.large_string():
            asked = pc.fill_null(asked.cast(pa.large_string()), "\0")
        hashes = hash_ids(asked)
        at, left = np.searchsorted(self._hashes, hashes), np.arange(len(asked))
        while len(left):  # once for almost all; again for those whose hash another id has too
            at, left = _within(at, left, self._hashes, hashes)
            rows = self._rows[at]
            pair = [self.ids.take(pa.array(rows)), asked.take(pa.array(left))]
            is_same = pc.call_function("equal", pair).to_numpy(False)
            found[left[is_same]] = rows[is_same]
            at, left = at[~is_same] + 1, left[~is_same]
        return found

    def ids_of(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of rows."""
        return self.ids.take(pa.array(np.asarray(list(rows), np.int64))).to_pylist()


def _within(at: Array, left: Array, hashes: Array, asked: Array) -> tuple[Array, Array]:
    """Return the places, and whose they are, that still hold the hash that is asked for."""
    inside = at < len(hashes)
    at, left = at[inside], left[inside]
    same = hashes[at] == asked[left]
    return at[same], left[same]


class Table:
    """Rows of vectors in shards, decoded as they are looked up."""

    def __init__(self, folder: str, facts: Mapping[str, Any]) -> None:
        self.name, self.num_rows, self.dim = facts["name"], facts["rows"], facts["dim"]
        self._dtype = facts["dtype"]
        shards = facts["shards"]
        mapped = [map_tensors(os.path.join(folder, shard["file"])) for shard in shards]
        self._parts = [{name: np.asarray(part) for name, part in parts.items()} for parts in mapped]
        self._firsts = np.array([shard["first_row"] for shard in shards], np.int64)
        sizes = [shard["num_rows"] for shard in shards]
        if np.append(self._firsts, self.num_rows).tolist() != [0, *np.cumsum(sizes).tolist()]:
            raise BundleError(f"table {self.name}: shards do not follow each other")
        for shard, part in zip(shards, self._parts, strict=True):
            self._expect(shard, part)

    def rows(self, rows: Array) -> Array:
        """Return (n, D) float32 of (n,) rows.

        Raises:
            BundleError: a row that the table does not have.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            told = f"rows are 0 to {self.num_rows - 1}, and {rows.min()} to {rows.max()} are asked for"
            raise BundleError(f"table {self.name}: {told}")
        if len(self._parts) == 1:
            return self._decode(self._parts[0], rows)
        vectors = np.empty((len(rows), self.dim), np.float32)
        shards = np.searchsorted(self._firsts, rows, side="right") - 1
        for shard in np.unique(shards):
            own = shards == shard
            vectors[own] = self._decode(self._parts[shard], rows[own] - self._firsts[shard])
        return vectors

    def stretch(self, first: int, last: int) -> Array:
        """Return (last - first, D) float32 of consecutive rows; a view of the file where it has them so."""
        shard = int(np.searchsorted(self._firsts, first, side="right")) - 1
        start = int(self._firsts[shard])
        if self._dtype == "fp32" and last - start <= len(self._parts[shard]["weight"]):
            return self._parts[shard]["weight"][first - start : last - start]
        return self.rows(np.arange(first, last))

    def _decode(self, part: Mapping[str, Array], rows: Array) -> Array:
        if self._dtype in ("fp32", "fp16"):
            return part["weight"][rows].astype(np.float32, copy=False)
        codes = part["codes"][rows]
        if self._dtype == "int4":
            halves = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
            codes = halves[:, : self.dim]
        return codes.astype(np.float32) * part["scale"][rows][:, None] + part["low"][rows][:, None]

    def _expect(self, shard: Mapping[str, Any], part: Mapping[str, Array]) -> None:
        number, width = shard["num_rows"], self.dim
        weight = {"fp32": (np.float32, width), "fp16": (np.float16, width)}
        codes = {"int8": (np.uint8, width), "int4": (np.uint8, -(-width // 2))}
        if self._dtype in weight:
            dtype, width = weight[self._dtype]
            wanted = {"weight": (dtype, (number, width))}
        else:
            dtype, width = codes[self._dtype]
            wanted = {"codes": (dtype, (number, width))}
            wanted |= dict.fromkeys(("scale", "low"), (np.float32, (number,)))
        have = {name: (values.dtype.type, values.shape) for name, values in part.items()}
        if have != wanted:
            raise BundleError(f"{shard['file']}: holds {have}, and the manifest says {wanted}")


class Ragged(NamedTuple):
    """Rows of unequal length; row i is values[offsets[i] : offsets[i + 1]]."""

    offsets: Array
    """(N + 1,) int64."""
    values: Array

    def of(self, row: int, most: int | None = None) -> Array:
        """Return the last values (n,) of a row."""
        first, last = int(self.offsets[row]), int(self.offsets[row + 1])
        return self.values[first if most is None else max(first, last - most) : last]


class Reader:
    """A bundle: ids, tables, histories; scores and lists by item vectors."""

    def __init__(self, folder: str, *, verify: bool = False) -> None:
        """Open a bundle.

        Args:
            folder: local one.
            verify: whether the content of every file is compared with the manifest, which reads all of it.

        Raises:
            BundleError: of another version, or not what was exported.
        """
        self.folder, self.manifest = folder, _manifest_of(folder, verify=verify)
        said = self.manifest
        self.items, self.users = self._ids(said["items"]), self._ids(said["users"])
        self.tables = {facts["name"]: Table(folder, facts) for facts in said["tables"]}
        self.histories: Ragged | None = None
        if said["histories"]:
            parts = map_tensors(self._path(said["histories"]))
            self.histories = Ragged(parts["offsets"], parts["items"])
        self.codes: Array | None = None
        if said["semantic_ids"]:
            self.codes = map_tensors(self._path(said["semantic_ids"]["rows"]))["codes"]

    def field(self, entity: str, name: str) -> tuple[IdMap, Ragged]:
        """Return the values of a side field, and the numbers (value + 1, 0 unknown) of its entity's rows."""
        for facts in self.manifest["fields"]:
            if (facts["entity"], facts["name"]) == (entity, name):
                column = map_tensors(self._path(facts["column"]))
                offsets = column.get("offsets", np.arange(len(column["values"]) + 1))
                return self._ids(facts["values"]), Ragged(offsets, column["values"])
        raise KeyError(f"{entity}s have no field '{name}'")

    def history(self, user: str, most: int | None = None) -> list[str]:
        """Return the ids of what a user did, oldest first; nothing of a user who is not there."""
        row = int(self.users.rows_of([user])[0])
        return [] if row < 0 or self.histories is None else self.items.ids_of(self.histories.of(row, most))

    def scores(self, query: Array, log_probs: Array | None = None, *, member: int = 0) -> Array:
        """Return (N,) float32 scores of all items: max over m of query_m . v + log p_m, less penalties.

        Args:
            query: (D,) or (M, D): what the user program says under `vectors`.
            log_probs: (M,) what it says under `interest_log_probs`.
            member: which model, of an ensemble.
        """
        facts = self.manifest["retriever"]
        vectors = self.tables[facts["members"][member]["vectors"]]
        queries, scores = np.atleast_2d(np.asarray(query, np.float32)), np.empty(len(self.items), np.float32)
        width = max(1, _SCORED_AT_ONCE // vectors.dim)
        for first in range(0, len(scores), width):
            last = min(first + width, len(scores))
            by_vector = vectors.stretch(first, last) @ queries.T
            by_vector = by_vector if log_probs is None else by_vector + log_probs
            scores[first:last] = by_vector.max(1)
        return scores - map_tensors(self._path(facts["items"]))["penalties"]

    def best(
        self,
        scores: Array,
        number: int,
        *,
        allowed: Sequence[str] | None = None,
        forbidden: Sequence[str] = (),
    ) -> list[tuple[str, float]]:
        """Return the best items that may be listed, by score and then by row, of (N,) scores."""
        may = np.full(len(scores), allowed is None)
        for ids, is_allowed in ((allowed or (), True), (forbidden, False)):
            rows = self.items.rows_of(ids)
            may[rows[rows >= 0]] = is_allowed
        rows = np.flatnonzero(may)
        order = rows[np.lexsort((rows, -scores[rows]))][:number]
        return list(zip(self.items.ids_of(order), scores[order].tolist(), strict=True))

    def _ids(self, facts: Mapping[str, Any]) -> IdMap:
        return IdMap(self._path(facts["ids"]), self._path(facts["index"]))

    def _path(self, facts: Mapping[str, Any]) -> str:
        return os.path.join(self.folder, facts["file"])


def _manifest_of(folder: str, *, verify: bool) -> dict[str, Any]:
    with open(os.path.join(folder, "manifest.json"), "rb") as file:
        content = file.read()
    with open(os.path.join(folder, "manifest.json.sha256"), "rb") as file:
        if file.read().split()[:1] != [hashlib.sha256(content).hexdigest().encode()]:
            raise BundleError(f"{folder}: the manifest is not the one that was exported")
    manifest: dict[str, Any] = json.loads(content)
    if manifest.get("schema_version") not in SCHEMA_VERSIONS:
        raise BundleError(f"{folder}: a bundle of version {manifest.get('schema_version')}")
    for facts in _files_in(manifest):
        name = facts["file"]
        if any(part in ("", ".", "..") for part in name.split("/")) or set("\\:\0") & set(name):
            raise BundleError(f"{name!r} is no path inside the bundle")
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or os.path.getsize(path) != facts["num_bytes"]:
            raise BundleError(f"{path}: missing, or of another size than was exported")
        if verify and _sha256(path) != facts["sha256"]:
            raise BundleError(f"{path}: not the file that was exported (its checksum differs)")
    return manifest


def _files_in(value: Any) -> Iterable[dict[str, Any]]:
    if isinstance(value, dict):
        if {"file", "num_bytes", "sha256"} <= value.keys():
            yield value
        for part in value.values():
            yield from _files_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _files_in(part)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
