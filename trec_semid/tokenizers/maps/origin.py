"""What semantic IDs were computed from: the dataset by name, and its content by item id."""

import hashlib
import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.config import Config
from trec_semid.core.ids import in_id_order
from trec_semid.tokenizers.inputs.contents import ItemContents

_CHUNK_ROWS = 8192


class Origin(Config):
    """Where codes come from; equal content has equal checksums, whatever the order of its items."""

    dataset: str
    """Its name, for messages."""
    dataset_checksum: str
    content: dict[str, str]
    """`content_checksum` of every modality that the tokenizer read."""


class Named(NamedTuple):
    """A dataset as messages name it."""

    name: str
    checksum: str

    def __str__(self) -> str:
        """Return both, the checksum in short."""
        return f"'{self.name}' (checksum {self.checksum[:12]})"


def origin_of(dataset: Named, item_ids: pa.Array, catalogue: ItemContents) -> Origin:
    """Describe what a tokenizer read, of (N,) ids."""
    content = {name: content_checksum(name, item_ids, catalogue) for name in catalogue.dims}
    return Origin(dataset=dataset.name, dataset_checksum=dataset.checksum, content=content)


def content_checksum(
    modality: str, item_ids: pa.Array, catalogue: ItemContents, rows: Ints | None = None
) -> str:
    """Return a sha256 over items in the order of their ids, each with its vector, or without one.

    Vectors count as float32 numbers, so the same ones stored as float16 are the same content.

    Args:
        modality: of the catalogue.
        item_ids: (N,) of the catalogue's rows.
        catalogue: vectors (N, dim) of every modality.
        rows: (n,) of the items that count; all of them where not given.
    """
    order = in_id_order(item_ids) if rows is None else rows[in_id_order(item_ids.take(pa.array(rows)))]
    vectors: Array = catalogue.vectors[modality]
    digest = hashlib.sha256(json.dumps([len(order), vectors.shape[1]]).encode())
    for start in range(0, len(order), _CHUNK_ROWS):
        rows = order[start : start + _CHUNK_ROWS]
        present = np.asarray(catalogue.present[modality][rows], bool)
        digest.update(json.dumps(item_ids.take(pa.array(rows)).to_pylist()).encode())
        digest.update(present.tobytes())
        digest.update(np.ascontiguousarray(vectors[rows][present], "<f4").tobytes())
    return digest.hexdigest()
