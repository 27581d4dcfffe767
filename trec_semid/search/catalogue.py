"""The catalogue as a model has it at one moment: what every item is scored by. Made, saved and loaded.

A folder of a catalogue:
    catalogue.json              signed: number of items, and rows, size and sha256 of every file
    rows-<first row>.safetensors    `vectors` and `codes` of so many consecutive items
    code_tables.safetensors     `code_tables`, where codes are predicted

Legend: N items of the catalogue, n items at hand, U listed items, R positions, K codes, D width.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, write_bytes
from trec_semid.runtime.fingerprints import read_signed, signed_json
from trec_semid.runtime.ranks import Ranks, barrier, gather_objects

if TYPE_CHECKING:  # a server lists catalogues where torchrec, which models need, is not installed
    from trec_semid.models.item_tokens import Listed
    from trec_semid.models.retrieval_model import RetrievalModel

DESCRIPTION = "catalogue.json"
_TABLES = "code_tables.safetensors"
_VERSION = 1
_CHUNK_ROWS = 65_536
"""Items whose vectors are computed at once."""
_FILE_ROWS = 1 << 20
"""Items of a file: reading some rows of a catalogue reads little more than these."""
_REMEDY = "Save the catalogue again"


class Catalogue(NamedTuple):
    """What items are scored by: vectors, codes, or both; all of it, or a stretch of its rows."""

    num_items: int
    """N of the whole catalogue."""
    first_row: int
    """Item row of the first of the n items that are here."""
    vectors: Tensor | None
    """(n, D); None where items are not scored by vectors."""
    codes: Tensor | None
    """(n, R); None where codes are not predicted."""
    code_tables: Tensor | None
    """(R, K + 1, D): rows of the codes, which a model compares its users with."""
    is_shared: bool = False
    """Whether this is a stretch, and other ranks hold the others: they are to be searched together."""

    @property
    def rows(self) -> slice:
        """The item rows that are here."""
        here = self.vectors if self.vectors is not None else self.codes
        return slice(self.first_row, self.first_row + (0 if here is None else len(here)))


def stretch_of(rank: int, world_size: int, num_items: int) -> slice:
    """Return the rows of a rank: all ranks' stretches, one after another, are the catalogue."""
    num_rows = -(-num_items // world_size)
    return slice(min(rank * num_rows, num_items), min((rank + 1) * num_rows, num_items))


def shortest_stretch(world_size: int, num_items: int) -> int:
    """Return how many items the rank with the fewest has, of those that have any."""
    stretches = (stretch_of(rank, world_size, num_items) for rank in range(world_size))
    return min((rows.stop - rows.start for rows in stretches if rows.stop > rows.start), default=0)


@torch.no_grad()
def build_catalogue(
    model: "RetrievalModel", listed: "Callable[[int, int], Listed]", num_items: int, ranks: Ranks
) -> Catalogue:
    """Return this rank's stretch of the catalogue as the model has it now; all ranks build it together.

    No rank ever holds the vectors of more than its stretch, and of one chunk while these are computed.

    Args:
        model: in evaluation mode.
        listed: gives the items from one row up to another.
        num_items: N.
        ranks: this process among its peers.
    """
    rows = stretch_of(ranks.rank, ranks.world_size, num_items)
    vectors: Tensor | None = None
    # Sharded tables want as many items of each rank at each look-up, so the last stretches, which are
    # shorter, begin with rows that belong to the one before.
    num_rows = -(-num_items // ranks.world_size)
    start = min(rows.start, num_items - num_rows)
    for first in range(start, start + num_rows, _CHUNK_ROWS) if model.has_item_vectors else ():
        tokens = model.items(listed(first, min(first + _CHUNK_ROWS, start + num_rows)))
        own = model.item_vectors(tokens)[max(rows.start - first, 0) :]
        if vectors is None:  # filled in place: chunks that are joined at the end take the memory twice
            vectors = own.new_empty((rows.stop - rows.start, own.shape[1]))
        at = max(first - rows.start, 0)
        vectors[at : at + len(own)] = own
    if vectors is not None:
        model.catalogue_facts = model.note_catalogue(vectors, rows)
    live = model.items.live if model.predicts_codes else None
    return Catalogue(
        num_items,
        rows.start,
        vectors,
        live.codes[rows] if live else None,
        live.tables() if live else None,
        is_shared=ranks.world_size > 1,
    )


def save_catalogue(folder: str, catalogue: Catalogue) -> None:
    """Write a catalogue; where ranks hold a stretch each, all of them write together.

    Args:
        folder: path or URI; what it holds of another catalogue is not read any more.
        catalogue: whole, or this rank's stretch.
    """
    firsts = range(catalogue.rows.start, catalogue.rows.stop, _FILE_ROWS)
    of_ranks = gather_objects([_write_rows(folder, catalogue, first) for first in firsts])
    # The description is last: `gather_objects` has waited for the files of all ranks, which it names.
    if catalogue.first_row == 0:
        tables = None
        if catalogue.code_tables is not None:
            tables = _write(folder, _TABLES, {"code_tables": catalogue.code_tables})
        described = {
            "version": _VERSION,
            "num_items": catalogue.num_items,
            "rows": [file for files in of_ranks for file in files],
            "code_tables": tables,
        }
        write_bytes(join(folder, DESCRIPTION), signed_json(described))
    barrier()


def load_catalogue(folder: str, rows: slice | None = None) -> Catalogue:
    """Read a catalogue, or some consecutive rows of it, onto the CPU.

    Args:
        folder: that `save_catalogue` wrote, with any number of ranks.
        rows: item rows from `start` up to `stop`; all where not given.

    Raises:
        DataError: no catalogue, rows that it does not have, or a file that is not what was written.
    """
    described = _described(folder)
    num_items = int(described["num_items"])
    rows = rows or slice(0, num_items)
    if not 0 <= rows.start <= rows.stop <= num_items:
        raise DataError(
            f"no rows {rows.start} to {rows.stop - 1}", file=folder, remedy=f"There are 0 to {num_items - 1}"
        )
    read: dict[str, Tensor] = {}
    for file in described["rows"]:
        first, last = int(file["first_row"]), int(file["first_row"]) + int(file["num_rows"])
        # No rows asked for: one file is read all the same, for the widths and types of what is empty.
        if first < max(rows.stop, rows.start + 1) and last > rows.start:
            own = slice(max(rows.start - first, 0), max(rows.stop - first, 0))
            for name, values in _read(folder, file).items():
                if name not in read:
                    read[name] = values.new_empty((rows.stop - rows.start, *values.shape[1:]))
                at = max(first - rows.start, 0)
                read[name][at : at + len(values[own])] = values[own]
    tables = described["code_tables"]
    return Catalogue(
        num_items,
        rows.start,
        read.get("vectors"),
        read.get("codes"),
        _read(folder, tables)["code_tables"] if tables else None,
    )


def _write_rows(folder: str, catalogue: Catalogue, first: int) -> dict[str, Any]:
    own = slice(first - catalogue.first_row, first - catalogue.first_row + _FILE_ROWS)
    tensors = {"vectors": catalogue.vectors, "codes": catalogue.codes}
    here = {name: values[own] for name, values in tensors.items() if values is not None}
    written = _write(folder, f"rows-{first:012d}.safetensors", here)
    return {**written, "first_row": first, "num_rows": len(next(iter(here.values())))}


def _write(folder: str, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    content = safetensors.torch.save({key: values.contiguous() for key, values in tensors.items()})
    write_bytes(join(folder, name), content)
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read(folder: str, file: dict[str, Any]) -> dict[str, Tensor]:
    place = join(folder, str(file["file"]))
    try:
        content = read_bytes(place)
    except FileNotFoundError:
        raise DataError("this file is missing", file=place, remedy=_REMEDY) from None
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        problem = "damaged: its content is not what was written (sha256 differs)"
        raise DataError(problem, file=place, remedy=_REMEDY)
    return safetensors.torch.load(content)


def _described(folder: str) -> dict[str, Any]:
    place = join(folder, DESCRIPTION)
    try:
        described = read_signed(read_bytes(place))
    except FileNotFoundError:
        raise DataError("no catalogue here", file=place, remedy=_REMEDY) from None
    except ValueError as error:
        raise DataError(f"damaged: {error}", file=place, remedy=_REMEDY) from None
    if described.get("version") != _VERSION:
        problem, value = "a catalogue of another version", described.get("version")
        raise DataError(problem, file=place, field="version", value=value, remedy=_REMEDY)
    return described
