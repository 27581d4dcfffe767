"""torch.distributed.checkpoint's readers and writers for any path or URI; writers hash what they write."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint._fsspec_filesystem import (  # torch offers fsspec under no public name
    FileSystem as FsspecFileSystem,
)
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
    _StorageWriterTransforms,  # pyright: ignore[reportPrivateUsage] - no public name says how to write
)
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, WriteResult
from torch.futures import Future

from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import filesystem, is_local
from trec_semid.runtime.fingerprints import Fingerprint
from trec_semid.runtime.stopping import interruption_in

_LARGE_BYTES = 1 << 20
"""A piece at least this large is hashed in a thread of its own."""
_SMALL_BYTES = 1 << 16
"""A tensor smaller than this is put together in memory."""


class _HashingStream(io.IOBase):
    """A stream to write to that hashes what goes through it, large pieces while they are written."""

    def __init__(self, raw: Any, on_fault: Callable[[OSError], None]) -> None:
        self._raw, self._on_fault = raw, on_fault
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self._beside = ThreadPoolExecutor(1, "checkpoint-sha256")

    def write(self, content: Any) -> int:
        """Write, and take the bytes into the checksum."""
        size = memoryview(content).nbytes
        # Hashing frees the GIL, so a large piece is hashed while it is written.
        hashed = self._beside.submit(self._digest.update, content) if size >= _LARGE_BYTES else None
        try:
            written = self._raw.write(content)
        except OSError as error:
            self._on_fault(error)
            raise
        finally:
            if hashed:
                hashed.result()  # the memory is torch's: it may change after this call
            else:
                self._digest.update(content)
        self._num_bytes += size
        return written

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._num_bytes

    def flush(self) -> None:
        """Hand what was written on to the file below."""
        if not self._raw.closed:
            self._raw.flush()

    def fileno(self) -> int:
        """Return the number of the file below, by which torch syncs to the disk what was written so far."""
        self.flush()
        return self._raw.fileno()

    def close(self) -> None:
        """Close the file and end the thread that hashes."""
        self._beside.shutdown()
        self._raw.close()
        super().close()

    def fingerprint(self) -> Fingerprint:
        """Return what went through."""
        return Fingerprint(bytes=self._num_bytes, sha256=self._digest.hexdigest())


class _Piece:
    """A small tensor on its way to a stream: torch writes it in 40 parts, which arrive as one."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._held = stream, io.BytesIO()
        self.write = self._held.write

    def flush(self) -> None:
        """Do nothing: it is not whole yet."""

    def close(self) -> None:
        """Write it."""
        self._stream.write(self._held.getvalue())


class _InPieces(_StorageWriterTransforms):
    """How torch hands tensors on: the many small ones of a model each as one piece."""

    def transform_save_stream(self, write_item: WriteItem, raw_stream: Any) -> tuple[Any, list[str]]:
        """Return what a tensor is written to, and that it is not changed on its way."""
        tensor = write_item.tensor_data
        if tensor and tensor.size.numel() * tensor.properties.dtype.itemsize < _SMALL_BYTES:
            return _Piece(raw_stream), []
        return super().transform_save_stream(write_item, raw_stream)


class _HashingFiles:
    """The file system of a torch writer; notes what is written, and the first fault of the disk.

    torch words a fault of the disk as one of its own zip file.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.written: dict[str, Fingerprint] = {}
        """By file name."""
        self.fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any]:
        """Open a file; one that is written is hashed."""
        try:
            with self._inner.create_stream(path, mode) as raw, _HashingStream(raw, self._note) as stream:
                yield stream
            self.written[_name_of(path)] = stream.fingerprint()
        except OSError as error:
            self._note(error)
            raise

    def _note(self, fault: OSError) -> None:
        self.fault = self.fault or fault

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Give a written file its last name."""
        self._inner.rename(path, new_path)
        # torch writes its metadata under a passing name; the marker has to list the last one.
        self.written[_name_of(new_path)] = self.written.pop(_name_of(path))


class HashingWriter(FileSystemWriter):
    """torch's writer that knows size and sha256 of every file it wrote, and says what the disk said."""

    def __init__(self, uri: str) -> None:
        on_disk = is_local(uri)
        place = filesystem(uri)[1] if on_disk else uri
        super().__init__(place, sync_files=on_disk)
        inner = FileSystem() if on_disk else FsspecFileSystem()
        self.path = inner.init_path(place)
        self.files = _HashingFiles(inner)
        self.transforms = _InPieces()
        self.fs = self.files  # pyright: ignore[reportAttributeAccessIssue] - it passes on what it lacks

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files."""
        with self._plain_faults():
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write what tells readers which file holds what."""
        with self._plain_faults():
            super().finish(metadata, results)

    @contextmanager
    def _plain_faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # torch fails to close the zip file that an interruption broke into, and says that instead.
            plain = self.files.fault or interruption_in(error)
            if plain is None or error is plain:
                raise
            raise plain from error


def storage_writer(uri: str) -> HashingWriter:
    """Return the writer for a folder.

    Raises:
        CheckpointError: several ranks are to share memory that each has for itself.
    """
    if uri.startswith("memory://") and not is_alone():
        raise CheckpointError(f"{uri}: memory:// is private to a process. Save several ranks to a disk.")
    return HashingWriter(uri)


def storage_reader(uri: str) -> StorageReader:
    """Return the reader for a folder."""
    return FileSystemReader(filesystem(uri)[1]) if is_local(uri) else FsspecReader(uri)


def is_alone() -> bool:
    """Say whether there is no other rank, to which torch would have to send pickled plans."""
    return not dist.is_initialized() or dist.get_world_size() == 1


@contextmanager
def alone_without_warning() -> Iterator[None]:
    """Keep torch from warning that a single process saves or loads without other ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _name_of(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).rsplit("/", 1)[-1]
