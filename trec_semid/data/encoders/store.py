"""Checks chunks of vectors and streams them into `content/<name>.npy` with their mask."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal, final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, make_folder, open_file, write_bytes
from trec_semid.data.encoders.chunks import Chunk, Items
from trec_semid.data.encoders.narrow import narrow
from trec_semid.data.schema import ModalityFacts
from trec_semid.runtime.disk import full_disk, full_disk_fault

Dtype = Literal["float16", "float32"]
ONE_LINE_OF_VECTORS = (
    'For numbers such as prices set kind = "attributes" and name their columns under numbers; '
    "else check how the vectors were computed"
)


def store_content(
    name: str,
    chunks: Iterator[Chunk],
    items: Items,
    out: str,
    *,
    dtype: Dtype | None,
    source: str,
    one_line_remedy: str = ONE_LINE_OF_VECTORS,
) -> ModalityFacts:
    """Write one modality's vectors and mask, chunk by chunk, and return its facts.

    Rows of items without the content are written as zeros.

    Args:
        name: the modality.
        chunks: vectors of all items, in row order.
        items: the items; their `file` is what errors name.
        out: the dataset folder.
        dtype: None keeps float16 and makes float32 of other floats.
        source: what the facts say about where the vectors come from.
        one_line_remedy: the remedy where all vectors are multiples of one.

    Raises:
        DataError: a value of a present row is not finite, a present row is zeros, all present rows are
            multiples of one up to rounding, no item has the content, or there is no room left to write it.
    """
    checks = _Checks(name, items, one_line_remedy)
    uri = join(make_folder(join(out, "content")), f"{name}.npy")
    masks: list[Array] = []
    file: IO[bytes] | None = None
    try:
        for chunk in _with_width(chunks):
            vectors = checks.pass_on(chunk, dtype or _stored_dtype(chunk.vectors))
            with disk_faults(uri):
                file = file or _start(uri, len(items.source_rows), vectors)
                file.write(np.ascontiguousarray(vectors).data)
            masks.append(chunk.present)
    finally:
        with disk_faults(uri):
            if file:
                file.close()
    dim, stored = checks.finish()
    with disk_faults(uri):
        write_bytes(join(out, "content", f"{name}.mask.npy"), _npy(np.concatenate(masks)))
    return ModalityFacts(dim=dim, dtype=stored, present=checks.num_present, source=source)


@final
class _Checks:
    """What must hold over all chunks of one modality."""

    def __init__(self, name: str, items: Items, one_line_remedy: str) -> None:
        self.name, self.items, self._one_line_remedy = name, items, one_line_remedy
        self.num_rows = self.num_present = 0
        self._first: Array | None = None
        self._varies = False
        self._dim, self._dtype = 0, "float32"

    def pass_on(self, chunk: Chunk, dtype: Dtype) -> Array:
        """Return the checked vectors of the next chunk in `dtype`, zero where the content is missing."""
        present = chunk.present
        given = chunk.vectors if present.all() else np.where(present[:, None], chunk.vectors, 0)
        self._expect_finite(given)
        stored = narrow(given, dtype)
        self._expect_direction(stored, present)
        self._watch(stored[present], is_half=np.float16 in (given.dtype, stored.dtype))
        self.num_rows += len(stored)
        self._dim, self._dtype = stored.shape[1], dtype
        return stored

    def finish(self) -> tuple[int, Dtype]:
        """Return width and type once all chunks passed."""
        if not self.num_present:
            remedy = f"Leave [content.{self.name}] out, or check its columns and files"
            raise self.items.fault("no item has this content", self.name, remedy=remedy)
        if self.num_present > 1 and not self._varies:
            problem = (
                f"tells no items apart: the vectors of all {self.num_present:,} items are multiples of one, "
                "up to rounding, and only the direction of a vector counts"
            )
            remedy = f"{self._one_line_remedy}, or leave [content.{self.name}] out"
            raise self.items.fault(problem, self.name, remedy=remedy)
        assert self.num_rows == len(self.items.source_rows)
        return self._dim, "float16" if self._dtype == "float16" else "float32"

    def _watch(self, rows: Array, *, is_half: bool) -> None:
        self.num_present += len(rows)
        if self._varies or not len(rows):
            return
        import torch

        from trec_semid.layers.unit_length import direction_tolerance, off_line, unit_length  # imports torch

        self._first = rows[:1].astype(np.float32) if self._first is None else self._first
        first, units = (
            unit_length(torch.from_numpy(part)) for part in (self._first, rows.astype(np.float32))
        )
        self._varies = bool((off_line(units, first) > direction_tolerance(is_half=is_half)).any())

    def _expect_direction(self, vectors: Array, present: Array) -> None:
        zeros = present & ~vectors.any(axis=1)
        if zeros.any():
            problem, remedy = "a vector of zeros, which has no direction", "Mark it as missing"
            raise self.items.fault(
                problem, self.name, item=self.num_rows + int(np.argmax(zeros)), remedy=remedy
            )

    def _expect_finite(self, vectors: Array) -> None:
        finite = np.isfinite(vectors)
        if finite.all():
            return
        row, dim = (int(index) for index in np.argwhere(~finite)[0])
        raise self.items.fault(
            f"not a finite number in dimension {dim}",
            self.name,
            item=self.num_rows + row,
            value=float(vectors[row, dim]),
            remedy="Mend the value, or mark it as missing",
        )


def _with_width(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Give chunks in which no item has the content, and that so know no width, that of the others."""
    width = waiting = 0
    for chunk in chunks:
        rows, dim = chunk.vectors.shape
        width = width or dim
        if not width:
            waiting += rows
            continue
        if waiting:
            yield Chunk(np.zeros((waiting, width), chunk.vectors.dtype), np.zeros(waiting, bool))
            waiting = 0
        yield chunk if dim else Chunk(np.zeros((rows, width), chunk.vectors.dtype), chunk.present)


@contextmanager
def disk_faults(uri: str) -> Iterator[None]:
    """Word what can go wrong while vectors are written.

    Raises:
        DataError: the disk is full, or the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if full_disk_fault(error):
            raise full_disk(error, uri) from error
        remedy = "Free some space, or write to another disk"
        raise DataError(f"cannot write the vectors: {error}", file=uri, remedy=remedy) from error


def _start(uri: str, rows: int, vectors: Array) -> IO[bytes]:
    file = open_file(uri, "wb")
    file.write(npy_header(rows, vectors))
    return file


def _stored_dtype(vectors: Array) -> Dtype:
    return "float16" if vectors.dtype == np.float16 else "float32"


def npy_header(rows: int, vectors: Array) -> bytes:
    """Return the head of an `.npy` file of so many rows like these, (n, D)."""
    content = io.BytesIO()
    shape = (rows, vectors.shape[1])
    about = {"descr": vectors.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, about)
    return content.getvalue()


def _npy(array: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
