"""A file that is created only where there is none: what the history of a store rests on."""

import ctypes
import errno
import os

from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, filesystem, is_local, partial_name, read_bytes, remove, write_synced

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_REPLACE, _HERE = 1, -100
"""Of Linux's renameat2: RENAME_NOREPLACE and AT_FDCWD."""


def create_bytes(uri: str, content: bytes) -> None:
    """Write a whole file where there is none: of several processes at once, one succeeds.

    Args:
        uri: the file.
        content: no other process writes just the same: where it is there, this process has written it, and
            only the answer of the store was lost.

    Raises:
        FileExistsError: there is one.
        DataError: the disk cannot create a file only where there is none.
    """
    fs, inner = filesystem(uri)
    partial = partial_name(uri)
    try:
        if is_local(uri):
            write_synced(partial, content)
            _name(filesystem(partial)[1], inner, uri)
        else:
            fs.pipe_file(inner, content, mode="create")
    except OSError as error:  # each store says in its own words that the name is taken
        if not exists(uri):
            raise
        if read_bytes(uri) != content:
            raise FileExistsError(f"{uri} is there already") from error
    finally:
        remove(partial)


def _name(partial: str, path: str, uri: str) -> None:
    """Give a whole file its name, unless that is taken: a plain rename would replace a file of that name."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # FAT and many network disks have no hard links, and some of them a rename that replaces nothing.
        fault = _rename(partial, path)
        if fault == errno.EEXIST:
            raise FileExistsError(fault, os.strerror(fault), path) from None
        if fault:
            raise DataError(
                "this disk has no hard links, so two processes that publish at once could not be told apart",
                file=uri,
                remedy="Put the store on a Linux disk, NFS or an object store",
            ) from None


def _rename(source: str, target: str) -> int:
    """Rename where the name is free; return the error number, 0 where it was done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return errno.ENOSYS
    done = rename(_HERE, os.fsencode(source), _HERE, os.fsencode(target), _NO_REPLACE) == 0
    return 0 if done else ctypes.get_errno()
