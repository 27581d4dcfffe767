"""What the rows of a run's tables stand for: ids of items and users, and values of side fields.

A run that starts from these weights on another dataset takes rows over by what they stand for.
"""

from collections.abc import Iterable
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from trec_semid.checkpoints.mapped import RowMap
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.ids import id_array, rows_of
from trec_semid.core.paths import arrow_filesystem, exists, join, make_folder, read_bytes, remove, write_bytes
from trec_semid.data.features import Feature
from trec_semid.data.schema import Dataset
from trec_semid.runtime.fingerprints import Fingerprint, fingerprints, read_signed, signed_json, verify

FOLDER, DESCRIPTION = "rows", "rows.json"
_REMEDY = "Start from a run that has its rows, or on the dataset that it was trained on"


class KnownRows(Config):
    """`rows/rows.json`."""

    schema_version: Literal[1] = 1
    dataset: str
    dataset_checksum: str
    files: dict[str, Fingerprint]


def kind_of_rows(feature: Feature) -> str | None:
    """Return what the rows of a feature's table stand for, as the file is called; None for codes."""
    if feature.role in ("user", "item", "history"):
        return "users" if feature.role == "user" else "items"
    return feature.name if feature.role in ("user_field", "item_field") else None


def write_known_rows(run: str, dataset: Dataset) -> None:
    """Write `rows/` of a run folder, unless it is there and of this dataset."""
    folder, facts = join(run, FOLDER), dataset.facts
    if _checksum_of(folder) == facts.checksum:
        return
    # It goes first and is written last: whoever is cut off in between leaves no description, not a wrong one.
    remove(join(folder, DESCRIPTION))
    kinds = ["items", "users"]
    kinds += [f"item_{name}" for name in facts.item_fields] + [f"user_{name}" for name in facts.user_fields]
    make_folder(folder)
    for kind in kinds:
        fs, inner = arrow_filesystem(join(folder, f"{kind}.parquet"))
        pq.write_table(pa.table({"value": _values(dataset, kind)}), inner, filesystem=fs)
    files = fingerprints(folder, [f"{kind}.parquet" for kind in kinds])
    known = KnownRows(dataset=facts.name, dataset_checksum=facts.checksum, files=files)
    write_bytes(join(folder, DESCRIPTION), signed_json(known.model_dump(mode="json")))


def _checksum_of(folder: str) -> str | None:
    place = join(folder, DESCRIPTION)
    try:
        return str(read_signed(read_bytes(place)).get("dataset_checksum")) if exists(place) else None
    except ValueError:
        return None  # damaged: written anew


def read_known_rows(run: str) -> KnownRows:
    """Read and check what a run says of its rows; in a process group every rank must call this.

    Raises:
        DataError: it says nothing, or a file is damaged.
    """
    place = join(run, FOLDER, DESCRIPTION)
    try:
        known = KnownRows.model_validate(read_signed(read_bytes(place)))
    except FileNotFoundError:
        problem = "start_from: the run does not say which items and users the rows of its tables stand for"
        raise DataError(problem, file=place, remedy=_REMEDY) from None
    except (ValidationError, ValueError) as error:
        raise DataError(f"damaged: {str(error).splitlines()[0]}", file=place, remedy=_REMEDY) from None
    verify(join(run, FOLDER), known.files, remedy=_REMEDY)
    return known


def map_rows(run: str, known: KnownRows, dataset: Dataset, kinds: Iterable[str]) -> dict[str, RowMap]:
    """Return which rows of the run's tables the rows of a dataset take over, for each kind.

    Raises:
        DataError: the run has no such rows, as of a side field that its dataset did not have.
    """
    maps: dict[str, RowMap] = {}
    for kind in kinds:
        name = f"{kind}.parquet"
        if name not in known.files:
            named = kind.replace("_", " field ")
            problem = f"start_from: the dataset of that run, '{known.dataset}', has no {named}"
            raise DataError(problem, file=join(run, FOLDER, DESCRIPTION), remedy=_REMEDY)
        fs, inner = arrow_filesystem(join(run, FOLDER, name))
        before = pq.read_table(inner, filesystem=fs)["value"]
        maps[kind] = _map(before, _values(dataset, kind), is_field=kind not in ("items", "users"))
    return maps


def _map(before: Any, now: Any, *, is_field: bool) -> RowMap:
    old = rows_of(id_array(now), id_array(before))
    if is_field and len(old):
        old[0] = 0  # missing or unknown, whatever it is called
    return RowMap(old, len(before))


def _values(dataset: Dataset, kind: str) -> Any:
    """Return (rows,) text in row order: ids, or the values of a side field, the missing one first."""
    if kind == "items":
        return dataset.items(["item_id"])["item_id"]
    if kind == "users":
        return dataset.users(["user_id"])["user_id"]
    return dataset.vocabulary(kind)
