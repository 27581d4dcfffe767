"""Tensors of a checkpoint a stretch of rows at a time: memory is that of a stretch, however large a piece is.

torch.distributed.checkpoint reads a saved piece whole for any part of it, and what one process saves of a
table is one piece. So torch is asked where the numbers lie, and only those of the rows are read.

Legend: N rows of a saved tensor, n of a stretch.
"""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Self, final

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # torch documents it under this name
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view  # pyright: ignore[reportPrivateUsage]

from trec_semid.checkpoints.failures import FAILURES, expect_not_stopped, reason
from trec_semid.checkpoints.folder import TENSORS, step_fault, step_folder
from trec_semid.checkpoints.storage import storage_reader
from trec_semid.core.arrays import Ints
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import join, local_copy, open_file

_NEAR_BYTES = 1 << 16
"""To read so many bytes that nobody asks for takes less time than to begin anew behind them."""
_MOST_BYTES = 1 << 24
"""Read at once where rows are picked."""


@final
class SavedTensors:
    """The tensors of a complete step by name, read in stretches, without a model or a process group."""

    def __init__(self, folder: str, step: int, prefix: str) -> None:
        """Look what there is; every file is checked by its sha256 first.

        Args:
            folder: of checkpoints.
            step: a complete one.
            prefix: of the names, as `model/`; they are asked for without it.

        Raises:
            CheckpointError: a file is damaged.
        """
        if fault := step_fault(folder, step):
            raise CheckpointError(fault)
        self._open(join(step_folder(folder, step), TENSORS), prefix)

    @classmethod
    def of_tensors(cls, at: str, prefix: str) -> Self:
        """Return the tensors of a folder that torch.distributed.checkpoint wrote; no file is checked."""
        saved = cls.__new__(cls)
        saved._open(at, prefix)
        return saved

    def _open(self, at: str, prefix: str) -> None:
        self._at, self._prefix = at, prefix
        self._pieces: dict[MetadataIndex, _Piece] = {}
        self._copies: dict[str, str] = {}
        self._scratch = ExitStack()
        weakref.finalize(self, self._scratch.close)
        try:
            self._metadata: Any = storage_reader(self._at).read_metadata()
        except FAILURES as error:  # a pickle: whatever another version of torch makes of it
            expect_not_stopped(error)
            raise self._failed(error) from error

    @property
    def names(self) -> list[str]:
        """Of all tensors under the prefix."""
        found = (
            name
            for name, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        )
        return [name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._metadata.state_dict_metadata[self._prefix + name].size)

    def whole(self, name: str) -> Tensor:
        """Return a tensor (...)."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return (n, ...) consecutive rows of a tensor, from one up to another."""
        with self._reading() as files:
            return self._rows(name, first, last, files)

    def _rows(self, name: str, first: int, last: int, files: "_Files") -> Tensor:
        entry = self._metadata.state_dict_metadata[self._prefix + name]
        shape = list(entry.size)
        if shape:
            shape[0] = last - first
        rows = torch.empty(shape, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            self._fill(rows, first, self._piece(name, chunk), files)
        return rows

    def some(self, name: str, rows: Ints) -> Tensor:
        """Return (n, ...) rows of a tensor, of (n,) row numbers; those between near ones are read as well.

        A file is opened once. One that is not on a local disk is copied there at first, as reading here and
        there in it takes a request each; the copy stays as long as this does.
        """
        near, most = (max(1, size // max(1, self._row_bytes(name))) for size in (_NEAR_BYTES, _MOST_BYTES))
        distinct, inverse = np.unique(rows, return_inverse=True)
        breaks = np.flatnonzero((np.diff(distinct) > near) | (np.diff(distinct // most) > 0)) + 1
        parts: list[Tensor] = []
        with self._reading(self._local) as files:
            for own in np.split(distinct, breaks) if len(distinct) else ():
                read = self._rows(name, int(own[0]), int(own[-1]) + 1, files)
                parts.append(read if len(read) == len(own) else read[torch.from_numpy(own - own[0])])
        kept = torch.cat(parts) if parts else self.rows(name, 0, 0)
        return kept[torch.from_numpy(inverse.reshape(-1))]

    @contextmanager
    def _reading(self, place: Callable[[str], str] = str) -> Iterator["_Files"]:
        """Yield what opens files, where `place` says that they lie, until the block ends."""
        try:
            with ExitStack() as opened:
                yield _Files(place, opened)
        except FAILURES as error:
            expect_not_stopped(error)
            raise self._failed(error) from error

    def _local(self, file: str) -> str:
        """Return where a file lies on a local disk."""
        if file not in self._copies:
            self._copies[file] = self._scratch.enter_context(local_copy(file))
        return self._copies[file]

    def _row_bytes(self, name: str) -> int:
        entry = self._metadata.state_dict_metadata[self._prefix + name]
        return entry.properties.dtype.itemsize * math.prod(entry.size[1:])

    def _fill(self, rows: Tensor, first: int, piece: "_Piece", files: "_Files") -> None:
        """Put what a piece has of consecutive rows (n, ...), which begin at `first`, into its place."""
        begin, into = 0, rows
        if rows.dim():
            begin = max(first, piece.starts[0])
            end = min(first + len(rows), piece.starts[0] + piece.sizes[0])
            if begin >= end:
                return
            into = rows[begin - first : end - first]
            for dim in range(1, rows.dim()):
                into = into.narrow(dim, piece.starts[dim], piece.sizes[dim])
            begin -= piece.starts[0]
        # A piece of some columns is read beside its place.
        read = into if into.is_contiguous() else torch.empty_like(into, memory_format=torch.contiguous_format)
        row_bytes = read.element_size() * math.prod(piece.sizes[1:])
        _read_into(read, piece.file, files.opened(piece.file), piece.offset + begin * row_bytes)
        if read is not into:
            into.copy_(read)

    def _piece(self, name: str, chunk: Any) -> "_Piece":
        """Return where the numbers of a saved piece lie: torch reads all but them."""
        index = MetadataIndex(self._prefix + name, chunk.offsets)
        if index not in self._pieces:
            stored = self._metadata.storage_data[index]
            file = join(self._at, stored.relative_path)
            with open_file(file) as file_of_piece, FakeTensorMode():
                opened: Any = file_of_piece
                view: Any = _create_file_view(opened, stored.offset, stored.length)
                shell: Tensor = torch.load(view, map_location="cpu", weights_only=True)
            if list(shell.shape) != list(chunk.sizes) or not shell.is_contiguous():
                raise CheckpointError(f"{file}: a piece of '{name}' is not the one that was saved.")
            at: Any = shell.untyped_storage()
            offset = stored.offset + at._checkpoint_offset + shell.storage_offset() * shell.element_size()
            self._pieces[index] = _Piece(file, offset, tuple(chunk.offsets), tuple(chunk.sizes))
        return self._pieces[index]

    def _failed(self, error: BaseException) -> CheckpointError:
        return CheckpointError(f"{self._at}: not readable: {reason(error)}. Load another step.")


class _Piece(NamedTuple):
    """Where a rank's part of a tensor lies."""

    file: str
    offset: int
    """Of its first number in the file [bytes]; the others follow it, row by row."""
    starts: tuple[int, ...]
    """Of its first number in the tensor."""
    sizes: tuple[int, ...]


@final
class _Files:
    """Files that are open, each once."""

    def __init__(self, place: Callable[[str], str], stack: ExitStack) -> None:
        self._place, self._stack = place, stack
        self._opened: dict[str, Any] = {}

    def opened(self, file: str) -> Any:
        """Return a file; it is closed with the stack."""
        if file not in self._opened:
            self._opened[file] = self._stack.enter_context(open_file(self._place(file)))
        return self._opened[file]


def _read_into(rows: Tensor, file: str, opened: Any, offset: int) -> None:
    """Read (...) contiguous numbers that lie at some place of an open file, from there on."""
    content = rows.flatten().view(torch.uint8).numpy().data
    opened.seek(offset)
    done = 0
    while done < len(content):
        part = opened.readinto(content[done:])
        if not part:
            raise OSError(f"{file} ends too early")
        done += part
