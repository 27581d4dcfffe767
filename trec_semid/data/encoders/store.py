"""Checks chunks of vectors and streams them into `content/<name>.npy` with their mask."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal, final

import numpy as np

from trec_semid.core.disk import full_disk, full_disk_fault
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, make_folder, open_file, write_bytes
from trec_semid.data.encoders.chunks import Array, Chunk, Items
from trec_semid.data.schema import ModalityFacts

Dtype = Literal["float16", "float32"]
_SHORTEST = 1e-18
"""Length below which the squares of a vector's float32 values vanish."""
_SAME = 1e-6
"""Vectors that differ by less, against the largest value of the first, differ by rounding alone."""


def store_content(
    name: str, chunks: Iterator[Chunk], items: Items, out: str, *, dtype: Dtype | None, source: str
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

    Raises:
        DataError: a value of a present row is not finite or does not fit float16, a row is too long or
            too short for float32, all present rows are equal up to rounding, no item has the content, or
            there is no room left to write it.
    """
    checks = _Checks(name, items)
    uri = join(make_folder(join(out, "content")), f"{name}.npy")
    masks: list[Array] = []
    file: IO[bytes] | None = None
    try:
        for chunk in _with_width(chunks):
            vectors = checks.pass_on(chunk, dtype or _kept(chunk.vectors))
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

    def __init__(self, name: str, items: Items) -> None:
        self.name, self.items = name, items
        self.num_rows = self.num_present = 0
        self._first: Array | None = None
        self._varies = False
        self._dim, self._dtype = 0, "float32"

    def pass_on(self, chunk: Chunk, dtype: Dtype) -> Array:
        """Return the checked vectors of the next chunk in `dtype`, zero where the content is missing."""
        present = chunk.present
        given = chunk.vectors if present.all() else np.where(present[:, None], chunk.vectors, 0)
        self._expect_finite(given, given, "not a finite number", "Mend the value, or mark it as missing")
        stored = given
        if given.dtype != dtype:
            with np.errstate(over="ignore"):
                stored = given.astype(dtype)
            remedy = 'Set dtype = "float32" for this content, or scale the vectors'
            self._expect_finite(stored, given, f"too large for {dtype}", remedy)
        self._expect_length(stored)
        self._watch(stored[present])
        self.num_rows += len(stored)
        self._dim, self._dtype = stored.shape[1], dtype
        return stored

    def finish(self) -> tuple[int, Dtype]:
        """Return width and type once all chunks passed."""
        if not self.num_present:
            remedy = f"Leave [content.{self.name}] out, or check its columns and files"
            raise self.items.fault("no item has this content", self.name, remedy=remedy)
        if self.num_present > 1 and not self._varies:
            problem = f"constant: the vectors of all {self.num_present:,} items are equal up to rounding"
            remedy = "Such content tells no items apart: check how it was made, or leave it out"
            raise self.items.fault(problem, self.name, remedy=remedy)
        assert self.num_rows == len(self.items.source_rows)
        return self._dim, "float16" if self._dtype == "float16" else "float32"

    def _watch(self, rows: Array) -> None:
        self.num_present += len(rows)
        if self._first is None and len(rows):
            self._first = rows[0].astype(np.float32)
        if not self._varies and self._first is not None and len(rows):
            scale = np.abs(self._first).max()
            self._varies = bool((np.abs(rows - self._first) > _SAME * scale).any())

    def _expect_length(self, vectors: Array) -> None:
        with np.errstate(over="ignore", under="ignore"):
            lengths = np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1)
        short = (lengths < _SHORTEST) & vectors.any(axis=1)  # zeros are decided about where they are read
        for bad, problem in ((~np.isfinite(lengths), "too long"), (short, "too short")):
            if bad.any():
                row = int(np.argmax(bad))
                length = float(np.linalg.norm(vectors[row].astype(np.float64)))
                raise self.items.fault(
                    f"a vector {problem} for 32-bit arithmetic: its length is {length:.3g}",
                    self.name,
                    item=self.num_rows + row,
                    remedy="Scale all vectors of this content by one factor",
                )

    def _expect_finite(self, vectors: Array, shown: Array, problem: str, remedy: str) -> None:
        finite = np.isfinite(vectors)
        if finite.all():
            return
        row, dim = (int(index) for index in np.argwhere(~finite)[0])
        raise self.items.fault(
            f"{problem} in dimension {dim}",
            self.name,
            item=self.num_rows + row,
            value=float(shown[row, dim]),
            remedy=remedy,
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


def _kept(vectors: Array) -> Dtype:
    return "float16" if vectors.dtype == np.float16 else "float32"


def npy_header(rows: int, vectors: Array) -> bytes:
    """Return the head of an `.npy` file of so many rows like these."""
    content = io.BytesIO()
    shape = (rows, vectors.shape[1])
    about = {"descr": vectors.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, about)
    return content.getvalue()


def _npy(array: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
