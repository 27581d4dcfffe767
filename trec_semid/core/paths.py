"""One door to every file: local paths and fsspec URIs (`file://`, `memory://`, `s3://`) through iopath."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem
from iopath.common.file_io import PathHandler, PathManager

from trec_semid.core.errors import ConfigError


class FsspecHandler(PathHandler):
    """iopath handler of plain paths and of every scheme that fsspec knows."""

    def _get_supported_prefixes(self) -> list[str]:
        return [""]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        fs, inner = filesystem(path)
        if isinstance(fs, LocalFileSystem):
            return open(inner, mode, encoding=None if "b" in mode else "utf-8")
        opened: Any = fs.open(inner, mode)
        return opened

    def _exists(self, path: str, **kwargs: Any) -> bool:
        fs, inner = filesystem(path)
        return fs.exists(inner)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        fs, inner = filesystem(path)
        return fs.isfile(inner)

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        fs, inner = filesystem(path)
        return fs.isdir(inner)

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        fs, inner = filesystem(path)
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(inner, detail=False))

    def _mkdirs(self, path: str, **kwargs: Any) -> None:
        fs, inner = filesystem(path)
        fs.makedirs(inner, exist_ok=True)

    def _rm(self, path: str, **kwargs: Any) -> None:
        fs, inner = filesystem(path)
        fs.rm(inner)

    def _mv(self, src_path: str, dst_path: str, **kwargs: Any) -> bool:
        fs, source = filesystem(src_path)
        _, target = filesystem(dst_path)
        fs.mv(source, target, recursive=True)
        return True

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        fs, inner = filesystem(path)
        if isinstance(fs, LocalFileSystem):
            return inner
        target = os.path.join(tempfile.mkdtemp(prefix="trec-semid-"), inner.rsplit("/", 1)[-1])
        fs.get(inner, target)
        return target


PATHS = PathManager()
"""What opens, lists and looks for every file here; hand it to libraries that speak iopath.

Arrow's readers and DCP's checkpoints stream through the same fsspec file systems by `filesystem`.
"""
PATHS.register_handler(FsspecHandler())


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of a path or URI, and the path inside it.

    Raises:
        ConfigError: the scheme needs a package that is not installed.
    """
    try:
        return fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        scheme = uri.partition("://")[0]
        remedy = 'pip install "trec-semid[s3]"' if scheme == "s3" else "install the package it names"
        raise ConfigError(f"{uri}: no file system for '{scheme}://': {error}. Remedy: {remedy}.") from None


def arrow_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the same place for pyarrow's readers and writers."""
    fs, inner = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return pafs.LocalFileSystem(), inner
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), inner


def is_local(uri: str) -> bool:
    """Return whether the path lies on a local disk."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def join(uri: str, *parts: str) -> str:
    """Join path parts below a path or URI; an empty path is the current folder."""
    scheme, separator, path = uri.rpartition("://")
    inner = "/".join(part.strip("/") for part in parts)
    if not path.strip("/"):  # a root, or nothing
        return f"{scheme}{separator}{path[:1]}{inner}"
    return f"{scheme}{separator}{path.rstrip('/')}/{inner}"


def parent_of(uri: str) -> str:
    """Return the folder that a path or URI lies in; the root of a store is its own parent."""
    scheme, separator, path = uri.rstrip("/").rpartition("://")
    parent, slash, _ = path.rpartition("/")
    return f"{scheme}{separator}{parent or slash}" or "."


def open_file(uri: str, mode: str = "rb") -> IO[Any]:
    """Open a path or URI."""
    return PATHS.open(uri, mode)


def exists(uri: str) -> bool:
    """Return whether a file or folder is there."""
    return PATHS.exists(uri)


def is_folder(uri: str) -> bool:
    """Return whether a folder is there."""
    return PATHS.isdir(uri)


def list_folder(uri: str) -> list[str]:
    """Return the sorted names in a folder; empty when there is none."""
    return PATHS.ls(uri) if PATHS.isdir(uri) else []


def find_files(uri: str) -> list[str]:
    """Return every file below a folder, as paths relative to it, sorted."""
    fs, inner = filesystem(uri)
    root = inner.rstrip("/") + "/"
    return sorted(str(name).removeprefix(root) for name in fs.find(inner))


def make_folder(uri: str) -> str:
    """Make a folder with its parents and return its path."""
    PATHS.mkdirs(uri)
    return uri


def remove(uri: str) -> None:
    """Remove a file or a folder with all that is in it; nothing there is fine."""
    fs, inner = filesystem(uri)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


def move(source: str, target: str) -> None:
    """Move a file or folder; on a local disk this is one atomic rename."""
    fs, source_inner = filesystem(source)
    _, target_inner = filesystem(target)
    if isinstance(fs, LocalFileSystem):
        os.replace(source_inner, target_inner)
    else:
        fs.mv(source_inner, target_inner, recursive=True)


def read_bytes(uri: str) -> bytes:
    """Return a whole file."""
    with open_file(uri, "rb") as file:
        return file.read()


def write_bytes(uri: str, content: bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    make_folder(parent_of(uri))
    partial = f"{uri}.partial-{uuid.uuid4().hex[:8]}"
    try:
        with open_file(partial, "wb") as file:
            file.write(content)
            if is_local(uri):
                file.flush()
                os.fsync(file.fileno())  # else a power cut can leave the new name with no content
        move(partial, uri)
    except BaseException:
        remove(partial)
        raise


@contextmanager
def staged_folder(uri: str) -> Iterator[str]:
    """Yield a folder beside `uri` to write into; it becomes `uri` on success and vanishes on error.

    An existing folder at `uri` is replaced only after everything was written, and comes back when the
    replacing itself fails.
    """
    staging = f"{uri.rstrip('/')}.partial-{uuid.uuid4().hex[:8]}"
    make_folder(staging)
    try:
        yield staging
        _replace_folder(staging, uri)
    except BaseException:
        remove(staging)
        raise


def _replace_folder(staging: str, uri: str) -> None:
    if not is_local(uri):
        remove(uri)
        move(staging, uri)
        return
    old = f"{staging}-old"
    if exists(uri):
        move(uri, old)
    try:
        move(staging, uri)
    except BaseException:
        if exists(old):
            move(old, uri)
        raise
    remove(old)


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Yield a path on a local disk that holds the file's content, for readers that need a real file."""
    fs, inner = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        yield inner
        return
    scratch = tempfile.mkdtemp(prefix="trec-semid-")
    try:
        target = os.path.join(scratch, inner.rstrip("/").rsplit("/", 1)[-1])
        fs.get(inner, target, recursive=fs.isdir(inner))
        yield target
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
