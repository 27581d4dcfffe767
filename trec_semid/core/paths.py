"""One door to every file: local paths and fsspec URIs (`file://`, `memory://`, `s3://`) through iopath."""

import atexit
import ctypes
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

import fsspec
import pyarrow.fs as pafs
from fsspec.config import conf as fsspec_settings
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from iopath.common.file_io import PathHandler, PathManager

from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.processes import scratch_folder, scratch_prefix

_FLAT = {"s3", "gs", "abfs", "az"}
"""Schemes of object stores: no folders, no renames."""
for _scheme in _FLAT:
    # Listings that a file system remembers miss what another process writes.
    fsspec_settings.setdefault(_scheme, {}).setdefault("use_listings_cache", False)
_REMOVALS = 20
"""How often a folder that others still write to is removed anew."""
_EXCHANGE, _HERE = 2, -100
"""Of Linux's renameat2: RENAME_EXCHANGE and AT_FDCWD."""


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
        found = [str(name).rstrip("/") for name in fs.ls(inner, detail=False)]
        # What is listed by its own name is a file.
        return sorted(name.rpartition("/")[2] for name in found if name != inner.rstrip("/"))

    def _mkdirs(self, path: str, **kwargs: Any) -> None:
        fs, inner = filesystem(path)
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if not protocols & _FLAT:  # there are no folders there: s3fs would make a bucket out of a typo
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
        scratch = tempfile.mkdtemp(prefix=scratch_prefix())
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        target = os.path.join(scratch, inner.rsplit("/", 1)[-1])
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


def is_private(uri: str) -> bool:
    """Return whether only this process can see a place."""
    return isinstance(filesystem(uri)[0], MemoryFileSystem)


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
    with suppress(FileNotFoundError, NotADirectoryError):
        return PATHS.ls(uri)
    return []


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
    for is_last in (False,) * _REMOVALS + (True,):
        try:
            if fs.exists(inner):
                fs.rm(inner, recursive=True)
        except FileNotFoundError:
            # Another process removes it as well; object stores say so without an errno.
            if is_last:
                raise
        except OSError as error:
            # Another process has put a file into a folder that was empty just now.
            if is_last or error.errno != errno.ENOTEMPTY:
                raise
        else:
            return


def move(source: str, target: str) -> None:
    """Move a file or folder; on a local disk this is one atomic rename, elsewhere object after object."""
    fs, source_inner = filesystem(source)
    if isinstance(fs, LocalFileSystem):
        os.replace(source_inner, filesystem(target)[1])
        return
    if fs.isfile(source_inner):
        _copy_object(source, target)
    else:
        for name in find_files(source):
            _copy_object(join(source, name), join(target, name))
    remove(source)


def read_bytes(uri: str) -> bytes:
    """Return a whole file."""
    with open_file(uri, "rb") as file:
        return file.read()


def write_bytes(uri: str, content: bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part.

    Raises:
        DataError: another process removed what was being written.
    """
    write_files(parent_of(uri), {uri.rsplit("/", 1)[-1]: content})


def write_files(folder: str, files: Mapping[str, bytes]) -> None:
    """Write files that belong together; on a disk none takes its place before all are written.

    Raises:
        DataError: another process removed what was being written.
    """
    make_folder(folder)
    if not is_local(folder):
        for name, content in files.items():
            fs, inner = filesystem(join(folder, name))
            fs.pipe_file(inner, content)  # an object appears whole
        return
    partials = {name: partial_name(join(folder, name)) for name in files}
    try:
        for name, content in files.items():
            write_synced(partials[name], content)
        for name, partial in partials.items():
            with not_removed(partial):
                move(partial, join(folder, name))
    except BaseException:
        for partial in partials.values():
            remove(partial)
        raise


def write_synced(uri: str, content: bytes) -> None:
    """Write a file to the disk itself: else a power cut can leave its name with no content."""
    with open_file(uri, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def partial_name(uri: str) -> str:
    """Return a name beside a file or folder, to write it under until it is whole; `leftovers` knows it."""
    return f"{uri.rstrip('/')}.partial-{uuid.uuid4().hex[:8]}"


@contextmanager
def not_removed(partial: str) -> Iterator[None]:
    """Word that a file or folder which is being written is gone.

    Raises:
        DataError: it is.
    """
    try:
        yield
    except FileNotFoundError:
        # It is still there, so what is missing is something else.
        if exists(partial):
            raise
        remedy = "Is a second one at work in this folder, or did someone tidy up? Run again, alone"
        raise DataError("removed while it was being written", file=partial, remedy=remedy) from None


@contextmanager
def staged_folder(uri: str, mark: str | None = None, *, in_place: bool = True) -> Iterator[str]:
    """Yield a folder to write into; it becomes `uri` on success and vanishes on error.

    An existing folder at `uri` is replaced only after everything was written, and comes back when the
    replacing itself fails. Object stores cannot rename: there a new folder is written in place, and one
    that replaces another is copied object by object. Either way `mark` comes last and goes first.

    Args:
        uri: the folder.
        mark: file in it that says that it is complete.
        in_place: a new folder on an object store is seen at `uri` while it is written; False copies it there.
    """
    uri = uri.rstrip("/")
    in_place = in_place and not is_local(uri) and not find_files(uri)
    staging = uri if in_place else partial_name(uri)
    if in_place:
        # A writer that is killed leaves this note, which tells that the folder is not whole.
        write_bytes(unfinished_note(uri), (mark or "").encode())
    else:
        make_folder(staging)
    try:
        yield staging
        with not_removed(staging):
            if in_place:
                remove(unfinished_note(uri))
            elif is_local(uri):
                _replace_folder(staging, uri)
            else:
                _copy_over(staging, uri, mark)
    except BaseException:
        remove(staging)
        if in_place:
            remove(unfinished_note(uri))
        raise


def unfinished_note(uri: str) -> str:
    """Return where it says that a folder on an object store is not whole; the note names its mark."""
    return join(parent_of(uri), f".{uri.rstrip('/').rsplit('/', 1)[-1]}.unfinished")


def _copy_over(staging: str, uri: str, mark: str | None) -> None:
    """Put a folder's objects in place of another's; without a mark nobody takes the mixture for whole."""
    new = find_files(staging)
    if mark:
        write_bytes(unfinished_note(uri), mark.encode())
        remove(join(uri, mark))
    # The mark last: until it is there, readers do not take the folder for whole.
    for name in sorted(new, key=lambda name: name == mark):
        _copy_object(join(staging, name), join(uri, name))
    for name in find_files(uri):
        if name not in new:
            remove(join(uri, name))
    remove(unfinished_note(uri))
    remove(staging)


def _copy_object(source: str, target: str) -> None:
    fs, inner = filesystem(source)
    make_folder(parent_of(target))
    fs.cp_file(inner, filesystem(target)[1])


def _replace_folder(staging: str, uri: str) -> None:
    if not exists(uri):
        move(staging, uri)
        return
    # After the swap, the staging name holds the old folder.
    if _exchange(staging, uri):
        remove(staging)
        return
    old = f"{staging}-old"
    move(uri, old)
    try:
        move(staging, uri)
    except BaseException:
        if exists(old):
            move(old, uri)
        raise
    remove(old)


def _exchange(one: str, other: str) -> bool:
    """Swap two local folders in one step, where the system can; there is no moment without either."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = [os.fsencode(filesystem(uri)[1]) for uri in (one, other)]
    return rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


@contextmanager
def shared_copy(uri: str) -> Iterator[str]:
    """Yield a place that holds the same and that other processes can see: itself wherever they can."""
    if not is_private(uri):
        yield uri
        return
    with local_copy(uri) as copy:
        yield copy


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Yield a path on a local disk that holds the file's content, for readers that need a real file."""
    fs, inner = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        yield inner
        return
    with scratch_folder() as scratch:
        target = os.path.join(scratch, inner.rstrip("/").rsplit("/", 1)[-1])
        fs.get(inner, target, recursive=fs.isdir(inner))
        yield target
