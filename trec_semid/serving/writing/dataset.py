"""What every bundle holds of a dataset and of a run, whatever its model."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from trec_semid.checkpoints.bundle_files import write_file
from trec_semid.checkpoints.manifest import FileFacts, MapFacts
from trec_semid.core.arrays import Array
from trec_semid.core.paths import join, read_bytes
from trec_semid.data.schema import Dataset
from trec_semid.serving import reader
from trec_semid.serving.writing.ids import (
    write_arrays,
    write_fields,
    write_histories,
    write_ids,
    write_readable,
)
from trec_semid.tokenizers.generations.manifest import ReadGeneration
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds

READER = "reader.py"


class KnownEvents(NamedTuple):
    """What users have done, for histories."""

    users: Array
    """(E,) user rows, in the order of events."""
    items: Array
    """(E,) item rows."""


def write_dataset(folder: str, dataset: Dataset, events: KnownEvents | None) -> dict[str, Any]:
    """Write ids, fields and histories; return what the manifest says of them.

    Args:
        folder: of the bundle.
        dataset: that the run was trained on.
        events: of users' histories; None leaves them out.
    """
    histories = None
    if events is not None:
        histories = write_histories(folder, events.users, events.items, dataset.facts.num_users)
    return {
        "dataset": dataset.facts.name,
        "dataset_checksum": dataset.facts.checksum,
        "items": write_ids(folder, "ids/items", dataset.item_ids),
        "users": write_ids(folder, "ids/users", dataset.users(["user_id"])["user_id"]),
        "fields": write_fields(folder, dataset),
        "readable": write_readable(folder, dataset),
        "histories": histories,
    }


def write_map(folder: str, content: bytes, ids: SemanticIds, read: ReadGeneration | None) -> MapFacts:
    """Write the item -> code map of a model.

    Args:
        folder: of the bundle.
        content: of the map's file.
        ids: the same in the order of the dataset's items.
        read: the generation that it is.
    """
    known = write_file(folder, FILE, content)
    rows = write_arrays(folder, "items/codes.safetensors", {"codes": ids.codes})
    return MapFacts(
        **known.model_dump(), checksum=ids.checksum(), sizes=ids.sizes, generation=read, rows=rows
    )


def write_files(folder: str, contents: Mapping[str, bytes]) -> tuple[FileFacts, ...]:
    """Write files under their names."""
    return tuple(write_file(folder, name, content) for name, content in contents.items())


def write_reader(folder: str) -> FileFacts:
    """Write the reader that needs nothing of this package, which is a file of it."""
    place = os.path.abspath(reader.__file__)
    return write_file(folder, READER, read_bytes(join(os.path.dirname(place), READER)))
