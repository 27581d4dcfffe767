"""Writes a planted world as raw tables, row by row in a stream, with the truth beside them.

interactions/part-*.parquet   user_id, item_id (int32), label (0 or 1), timestamp [s]; one event a second,
                              so that event i of the files is the event of order i
items.parquet, users.parquet  item_id, user_id
text.npy, vision.npy          (N, dim) float32
truth.json                    the config, bits of every kind of factor, AUC that no ranker can beat
truth/items.parquet           item_id, and each kind's factors as a list of -1 and +1
truth/users.parquet           user_id, and each kind's preferences as a list
truth/events/part-*.parquet   probability, probability_without_synergy; row by row with the interactions
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trec_semid.core.arrays import Array
from trec_semid.core.config import config_checksum
from trec_semid.core.errors import DataError
from trec_semid.core.paths import (
    arrow_filesystem,
    exists,
    is_folder,
    join,
    list_folder,
    make_folder,
    open_file,
    read_bytes,
    staged_folder,
    write_bytes,
)
from trec_semid.data.encoders.store import npy_header
from trec_semid.data.folder import write_table, writing
from trec_semid.data.synthetic.truth import Ceilings, information
from trec_semid.data.synthetic.world import SyntheticConfig, World
from trec_semid.runtime.logs import working

FIRST_TIME_S = 1_577_836_800
"""2020-01-01."""
_TRUTH = "truth.json"
_FILES = ("interactions", "items.parquet", "users.parquet", "text.npy", "vision.npy", "truth", _TRUTH)
_ROWS_A_FILE = 1 << 23
_ITEMS_AT_ONCE = 1 << 14
_EVENTS = pa.schema(
    [("user_id", pa.int32()), ("item_id", pa.int32()), ("label", pa.int8()), ("timestamp", pa.int64())]
)
_PROBABILITIES = pa.schema([("probability", pa.float32()), ("probability_without_synergy", pa.float32())])


def is_written(config: SyntheticConfig) -> bool:
    """Return whether the folder holds this very world.

    Raises:
        DataError: it holds something else, which would be lost with the world that is drawn in its place.
    """
    place, remedy = join(config.folder, _TRUTH), "Choose another source.folder, or remove it"
    if not exists(place):
        if is_folder(config.folder) and list_folder(config.folder):
            raise DataError("there is something else than a planted world", file=config.folder, remedy=remedy)
        return False
    if json.loads(read_bytes(place)).get("config_checksum") == _checksum(config):
        return True
    strange = [name for name in list_folder(config.folder) if name not in _FILES and name[0] != "."]
    if strange:
        problem = f"there is more than a planted world ('{strange[0]}'), which would be lost"
        raise DataError(problem, file=config.folder, remedy=remedy)
    return False


def write_world(config: SyntheticConfig, *, chunk_rows: int = 1 << 16) -> dict[str, Any]:
    """Write all files, or none.

    Memory: the world's factors and preferences, and one chunk of rows, whatever `num_events`.

    Args:
        config: the world.
        chunk_rows: events drawn at a time; the files' content does not depend on it, only how it is
            grouped.

    Returns:
        The content of `truth.json`.

    Raises:
        DataError: the disk is full or the place cannot be written.
    """
    with writing(config.folder), staged_folder(config.folder, _TRUTH) as folder:
        world = World(config)
        _write_entities(folder, world)
        for modality in ("text", "vision"):
            _write_content(folder, world, modality)
        ceilings = _write_events(folder, world, chunk_rows)
        truth = {
            "config": config.model_dump(mode="json", exclude={"folder"}),
            "config_checksum": _checksum(config),
            "information_bits": {kind: bits._asdict() for kind, bits in information(config).items()},
            "events": ceilings.num_events,
            "positives": ceilings.num_positives,
            **ceilings.result(),
        }
        write_bytes(join(folder, _TRUTH), (json.dumps(truth, indent=1) + "\n").encode())
    return truth


def _checksum(config: SyntheticConfig) -> str:
    return config_checksum(config.model_copy(update={"folder": ""}))


def _write_entities(folder: str, world: World) -> None:
    counts, factors = world.config.factors, world.factors
    item_ids = pa.array(np.arange(world.config.num_items, dtype=np.int32))
    user_ids = pa.array(np.arange(world.config.num_users, dtype=np.int32))
    kinds = {**factors._asdict(), "synergy": factors.synergy}
    shown = {name: _lists(values, pa.int8()) for name, values in kinds.items()}
    ends = np.cumsum([counts.text, counts.vision, counts.redundant])
    parts = np.split(world.preferences, ends, axis=1)
    named = zip(("text", "vision", "redundant", "synergy"), parts, strict=True)
    truth_columns = {name: _lists(values, pa.float32()) for name, values in named}
    write_table(folder, "items.parquet", pa.table({"item_id": item_ids}))
    write_table(folder, "users.parquet", pa.table({"user_id": user_ids}))
    write_table(folder, "truth/items.parquet", pa.table({"item_id": item_ids, **shown}))
    write_table(folder, "truth/users.parquet", pa.table({"user_id": user_ids, **truth_columns}))


def _lists(values: Array, kind: pa.DataType) -> pa.Array:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(values).ravel(), kind))


def _write_content(folder: str, world: World, modality: Any) -> None:
    num_items = world.config.num_items
    with (
        open_file(join(folder, f"{modality}.npy"), "wb") as file,
        working(f"draw {modality}", num_items) as work,
    ):
        for start in range(0, num_items, _ITEMS_AT_ONCE):
            vectors = world.content(start, min(start + _ITEMS_AT_ONCE, num_items), modality)
            if start == 0:
                file.write(npy_header(num_items, vectors))
            file.write(np.ascontiguousarray(vectors).data)
            work.advance(len(vectors))


def _write_events(folder: str, world: World, chunk_rows: int) -> Ceilings:
    num_events, ceilings = world.config.num_events, Ceilings()
    with working("draw events", num_events) as work:
        for part, first in enumerate(range(0, num_events, _ROWS_A_FILE)):
            last = min(first + _ROWS_A_FILE, num_events)
            name = f"part-{part:05d}.parquet"
            with (
                _writer(join(folder, "interactions", name), _EVENTS) as events,
                _writer(join(folder, "truth/events", name), _PROBABILITIES) as truths,
            ):
                for start in range(first, last, chunk_rows):
                    drawn = world.events(start, min(start + chunk_rows, last))
                    times = FIRST_TIME_S + np.arange(start, start + len(drawn.users), dtype=np.int64)
                    columns = [drawn.users, drawn.items, drawn.labels, times]
                    events.write_batch(pa.record_batch([pa.array(c) for c in columns], schema=_EVENTS))
                    columns = [drawn.probability, drawn.without_synergy]
                    truths.write_batch(pa.record_batch([pa.array(c) for c in columns], schema=_PROBABILITIES))
                    ceilings.add(drawn)
                    work.advance(len(times))
    return ceilings


@contextmanager
def _writer(uri: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    make_folder(uri.rpartition("/")[0])
    fs, inner = arrow_filesystem(uri)
    packed: Any = {"timestamp": "DELTA_BINARY_PACKED"} if "timestamp" in schema.names else None
    with pq.ParquetWriter(
        inner, schema, filesystem=fs, use_dictionary=False, column_encoding=packed
    ) as writer:
        yield writer
