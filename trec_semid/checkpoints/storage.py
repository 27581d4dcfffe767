"""torch.distributed.checkpoint's readers and writers for any path or URI."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.checkpoint._fsspec_filesystem import (  # torch offers fsspec under no public name
    FsspecReader,
    FsspecWriter,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import filesystem, is_local


def storage_writer(uri: str) -> StorageWriter:
    """Return the writer for a folder.

    Raises:
        CheckpointError: several ranks are to share memory that each has for itself.
    """
    if is_local(uri):
        return FileSystemWriter(filesystem(uri)[1])
    if uri.startswith("memory://") and dist.is_initialized() and dist.get_world_size() > 1:
        raise CheckpointError(f"{uri}: memory:// is private to a process. Save several ranks to a disk.")
    return FsspecWriter(uri, sync_files=False)


def storage_reader(uri: str) -> StorageReader:
    """Return the reader for a folder."""
    return FileSystemReader(filesystem(uri)[1]) if is_local(uri) else FsspecReader(uri)


@contextmanager
def alone_without_warning() -> Iterator[None]:
    """Keep torch from warning that a single process saves or loads without a process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
