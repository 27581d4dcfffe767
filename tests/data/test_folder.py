import errno
import hashlib

import pytest

from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, write_bytes
from trec_semid.data.folder import checksum, describe_files, writing


def test_checksum_changes_with_content_and_names_and_not_with_the_config():
    for name in ("a", "b/c", "config.toml", "dataset.json"):
        write_bytes(join("memory://sums", name), name.encode())
    first = checksum_of("memory://sums")
    lines = [f"{name}\n{hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("a", "b/c")]
    assert first == hashlib.sha256("".join(lines).encode()).hexdigest()
    write_bytes("memory://sums/config.toml", b"other")
    assert checksum_of("memory://sums") == first
    write_bytes("memory://sums/a", b"other")
    assert checksum_of("memory://sums") != first
    write_bytes("memory://sums/a", b"a")
    assert checksum_of("memory://sums") == first
    write_bytes("memory://sums/d", b"")
    assert checksum_of("memory://sums") != first


def checksum_of(folder):
    return checksum(describe_files(folder))


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "out: the disk is full; nothing was written"),
        (OSError("Error writing bytes to file. Detail: No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "out: cannot be written.*Permission denied"),
    ],
)
def test_failed_writes_are_worded(error, problem):
    with pytest.raises(DataError, match=problem), writing("out"):
        raise error
