"""`torch.export` programs of a bundle, opened only where they hold no pickle and nothing that grows."""

import io
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from trec_semid.checkpoints.manifest import FileFacts, read_checked
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a pickle begins."""
_MOST_MEMBERS = 10_000


def read_program(bundle: str, facts: FileFacts) -> Callable[..., Any]:
    """Return what calls a program of a bundle.

    Raises:
        DataError: it is missing, not the one that was exported, or an archive that no export writes.
    """
    content = read_checked(bundle, facts)
    uri = join(bundle, facts.file)
    _expect_harmless(content, uri)
    try:
        module: Any = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise _refused(uri, f"not a program: {str(error).splitlines()[:1]}") from error
    return module


def _expect_harmless(content: bytes, uri: str) -> None:
    """Refuse archives that grow when they are opened, and such as hold a pickle.

    Raises:
        DataError: says which.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise _refused(uri, f"an archive of {len(members):,} files")
            grown = sum(member.file_size for member in members)
            # Exports store their members as they are; what is packed could be any size.
            if grown > len(content) or any(member.compress_type for member in members):
                raise _refused(uri, f"a packed archive of {grown:,} bytes in {len(content):,}")
            for member in members:
                with archive.open(member) as file:
                    begin = file.read(4)
                if begin[:2] in _PICKLES or begin == b"PK\x03\x04":
                    raise _refused(uri, f"'{member.filename}' is a pickle, or an archive of its own")
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise _refused(uri, f"not an archive: {error}") from error


def _refused(uri: str, problem: str) -> DataError:
    return DataError(f"no program that this opens: {problem}", file=uri, remedy="Export it again")
