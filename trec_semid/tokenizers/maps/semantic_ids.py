"""The item -> semantic ID map: `semantic_ids.parquet` and its array form."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from trec_semid.core.arrays import Int32s
from trec_semid.core.errors import DataError
from trec_semid.core.ids import ids_as_json, rows_of
from trec_semid.core.paths import arrow_filesystem, exists, join, make_folder
from trec_semid.tokenizers.generations.manifest import GENERATION, Generation
from trec_semid.tokenizers.generations.store import resolve
from trec_semid.tokenizers.maps.code_files import ORIGIN_KEY, SEAL_KEY, SIZES_KEY, read_codes
from trec_semid.tokenizers.maps.origin import Origin

FILE = "semantic_ids.parquet"


@dataclass(frozen=True)
class SemanticIds:
    """Codes of every item, in row order.

    A code at position r lies in 0..sizes[r]-1; the reserved code sizes[r] says that the modality
    this position reads is missing for the item. Tables over position r therefore have sizes[r] + 1 rows.
    """

    item_ids: pa.Array
    """(N,) text, as `core.ids.id_array` has it: a list would hold a Python object for each item."""
    codes: Int32s
    """(N, R) int32."""
    sizes: tuple[int, ...]
    """Codebook size of each of the R positions."""
    origin: Origin | None = None
    """What they were computed from; None where nobody says."""
    generation: Generation | None = None
    """The generation of a store that they were read from; None of any other map."""

    @property
    def num_positions(self) -> int:
        """R, the length of the tuple."""
        return len(self.sizes)

    def checksum(self) -> str:
        """Return a sha256 over items, codebook sizes and codes: equal exactly when two maps are, in order."""
        digest = hashlib.sha256()
        for piece in (b"[", *ids_as_json(self.item_ids), b", ", json.dumps(self.sizes).encode(), b"]"):
            digest.update(piece)
        digest.update(np.ascontiguousarray(self.codes, "<i4").tobytes())
        return digest.hexdigest()

    def seal(self) -> str:
        """Return a sha256 over `checksum` and the origin: what a file of this map states of itself."""
        origin = self.origin.model_dump_json() if self.origin else ""
        return hashlib.sha256(f"{self.checksum()}\n{origin}".encode()).hexdigest()

    def save(self, uri: str) -> None:
        """Write `item_id` string, `codes` list<int32>; sizes, origin and seal go into the file's metadata."""
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
                "item_id": self.item_ids.cast(pa.string()),
                "codes": pa.ListArray.from_arrays(offsets, flat),
            }
        )
        metadata = {SIZES_KEY: ",".join(map(str, self.sizes)), SEAL_KEY: self.seal()}
        if self.origin:
            metadata[ORIGIN_KEY] = self.origin.model_dump_json()
        return table.replace_schema_metadata(metadata)

    @staticmethod
    def load(uri: str, item_ids: pa.Array | None = None) -> "SemanticIds":
        """Read a map, and put it into the order of (M,) `item_ids` where given.

        Raises:
            DataError: as `read_codes`, not what was written, or an item of `item_ids` without a semantic ID.
        """
        ids, codes, sizes, metadata = read_codes(uri)
        whole = SemanticIds(ids, codes, sizes, read_origin(metadata, uri))
        seal = metadata.get(SEAL_KEY, b"").decode(errors="replace")
        if (seal or whole.origin) and seal != whole.seal():
            remedy = "Copy it again from the run that wrote it, or tokenize again"
            raise DataError("damaged: its content is not what was written", file=uri, remedy=remedy)
        return whole if item_ids is None else whole.in_order(item_ids, uri)

    def in_order(self, item_ids: pa.Array, uri: str) -> "SemanticIds":
        """Return the codes of these items, in their order.

        Args:
            item_ids: (M,) some or all of the map's items.
            uri: where the map was read, for errors.

        Raises:
            DataError: one of them has no semantic ID.
        """
        rows = rows_of(item_ids, self.item_ids)
        if (rows < 0).any():
            absent = item_ids[int(np.argmax(rows < 0))].as_py()
            remedy = "Tokenize the dataset that this job reads"
            raise DataError("item has no semantic ID", file=uri, field="item_id", value=absent, remedy=remedy)
        return replace(self, item_ids=item_ids, codes=self.codes[rows])


def read_origin(metadata: Mapping[bytes, bytes], uri: str) -> Origin | None:
    """Return what a file's metadata say that its codes were computed from; None where they do not.

    Raises:
        DataError: what they say cannot be read.
    """
    text = metadata.get(ORIGIN_KEY)
    try:
        return None if text is None else Origin.model_validate_json(text)
    except ValidationError:
        remedy = "Copy it again from the run that wrote it, or tokenize again"
        raise DataError(
            "damaged: not a description of where codes come from", file=uri, remedy=remedy
        ) from None


def semantic_ids_file(place: str) -> str:
    """Return the map's file that a config names.

    A finished run folder, a bundle, a generation of a store (`store` or `store@7`), or a `.parquet` file.

    Raises:
        DataError: the run is not finished, or there is no such generation.
    """
    return place if place.endswith(".parquet") else join(expect_finished(place), FILE)


def expect_finished(place: str) -> str:
    """Return the folder that a place names, whose tokenizer and map belong together where it has a map.

    A run marks its end with `metrics.json` and removes that mark first when it begins anew; a bundle and a
    generation are written whole. Without a mark tokenizer and map may be of two runs.

    Raises:
        DataError: the run is not finished, or there is no such generation.
    """
    place = resolve(place)
    has_mark = any(exists(join(place, mark)) for mark in ("metrics.json", "manifest.json", GENERATION))
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
    own = SemanticIds.load(copy)
    now = SemanticIds.load(original)
    if (rows_of(own.item_ids, now.item_ids) < 0).any():
        return False
    return now.in_order(own.item_ids, original).checksum() == (began or own.checksum())
