"""Writes what a bundle knows of ids, fields and histories; `serving.reader` maps it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import safetensors.numpy

from trec_semid.checkpoints.bundle_files import write_file
from trec_semid.checkpoints.manifest import FieldFacts, FileFacts, IdMapFacts
from trec_semid.core.arrays import Array
from trec_semid.core.ids import id_array
from trec_semid.data.ragged import ragged_from_arrow
from trec_semid.data.schema import Dataset
from trec_semid.data.schema import FieldFacts as SchemaField
from trec_semid.serving.reader import hash_ids


def write_ids(bundle: str, name: str, ids: pa.Array | pa.ChunkedArray) -> IdMapFacts:
    """Write (n,) ids in the order of rows, and the index by which rows are found."""
    column = id_array(ids)
    hashes = hash_ids(column)
    order = np.argsort(hashes, kind="stable")
    index = write_arrays(bundle, f"{name}.index.safetensors", {"hashes": hashes[order], "rows": order})
    return IdMapFacts(
        num_ids=len(column), ids=write_arrow(bundle, f"{name}.arrow", pa.table({"id": column})), index=index
    )


def write_arrow(bundle: str, name: str, table: pa.Table) -> FileFacts:
    """Write a table as one batch of an Arrow IPC file, which a reader maps."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=max(1, table.num_rows))
    return write_file(bundle, name, sink.getvalue().to_pybytes())


def write_arrays(bundle: str, name: str, arrays: Mapping[str, Array]) -> FileFacts:
    """Write arrays (...) as a safetensors file."""
    kept = {key: np.ascontiguousarray(values) for key, values in arrays.items()}
    return write_file(bundle, name, safetensors.numpy.save(kept))


def write_fields(bundle: str, dataset: Dataset) -> tuple[FieldFacts, ...]:
    """Write every side field of items and users: numbers by row, and the values that they stand for."""
    facts = dataset.facts
    fields: list[FieldFacts] = []
    of_entities: tuple[tuple[Literal["user", "item"], dict[str, SchemaField]], ...] = (
        ("user", facts.user_fields),
        ("item", facts.item_fields),
    )
    for entity, of_entity in of_entities:
        for name, known in of_entity.items():
            table = dataset.users([name]) if entity == "user" else dataset.items([name])
            column = ragged_from_arrow(table[name])
            values, lengths = column.take(np.arange(len(column.lengths)))
            arrays: dict[str, Array] = {"values": values.astype(np.int32)}
            if known.is_list:
                arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            at = f"fields/{entity}_{name}"
            vocabulary = dataset.vocabulary(f"{entity}_{name}")
            fields.append(
                FieldFacts(
                    name=name,
                    entity=entity,
                    kind=known.kind,
                    size=known.size,
                    column=write_arrays(bundle, f"{at}.safetensors", arrays),
                    values=write_ids(bundle, f"ids/{at}", vocabulary[1:]),
                    edges=dataset.edges(f"{entity}_{name}") if known.kind == "number" else None,
                )
            )
    return tuple(fields)


def write_readable(bundle: str, dataset: Dataset) -> FileFacts | None:
    """Write the columns of items that are for people, such as titles; None where there are none."""
    table = dataset.items()
    named = [
        name for name in table.column_names if name not in ("item_id", "row", *dataset.facts.item_fields)
    ]
    if not named:
        return None
    columns: dict[str, Any] = {name: table[name].cast(pa.large_string()) for name in named}
    return write_arrow(bundle, "items/readable.arrow", pa.table(columns))


def write_histories(bundle: str, users: Array, items: Array, num_users: int) -> FileFacts:
    """Write what users did.

    Args:
        bundle: folder.
        users: (E,) user rows of events, in the order of these.
        items: (E,) item rows.
        num_users: U.
    """
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=num_users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return write_arrays(
        bundle, "histories.safetensors", {"offsets": offsets, "items": items[order].astype(np.int32)}
    )
