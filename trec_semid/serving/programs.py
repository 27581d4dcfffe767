"""`torch.export` programs of a bundle, opened only where they hold no pickle and nothing that grows."""

import io
import logging
import platform
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from trec_semid.checkpoints.bundle_files import read_checked
from trec_semid.checkpoints.manifest import CompiledFacts, ProgramFacts
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join
from trec_semid.serving.graphs import GraphError, read_graph

_log = logging.getLogger(__name__)
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a pickle begins."""
_MOST_MEMBERS = 10_000


def read_program(bundle: str, facts: ProgramFacts, *, compiled: bool = False) -> Callable[..., Any]:
    """Return what calls a program of a bundle, with (...) inputs in their order.

    Args:
        bundle: folder on this machine.
        facts: of the program.
        compiled: whether its machine code is run where it is of this processor. That is code of whoever
            wrote the bundle: only of bundles that are trusted like a program that one installs.

    Raises:
        DataError: it is missing, not the one that was exported, or an archive that no export writes.
    """
    if compiled and (native := _compiled(bundle, facts.compiled)):
        return native
    content = read_checked(bundle, facts)
    uri = join(bundle, facts.file)
    _expect_harmless(content, uri)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return read_graph(archive)
    except GraphError as error:
        raise _refused(uri, f"not a program: {error}") from error


def _compiled(bundle: str, facts: CompiledFacts | None) -> Callable[..., Any] | None:
    """Return what calls machine code; None where there is none for this processor and this torch."""
    here = this_processor()
    if facts is None:
        return None
    if other := [name for name, value in here.items() if getattr(facts, name) != value]:
        told = ", ".join(f"{name} {getattr(facts, name)}, here {here[name]}" for name in other)
        _log.info("%s: the portable program runs instead: %s", facts.file, told)
        return None
    read_checked(bundle, facts)
    # torch documents it under this name; it takes 1.5 s of a processor to import.
    from torch._inductor import aoti_load_package

    try:
        native: Any = aoti_load_package(join(bundle, facts.file))
    except Exception as error:  # of a processor that says one thing and lacks another, say
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _log.warning("%s: the portable program runs instead: %s", facts.file, told)
        return None
    return native


def this_processor() -> dict[str, str]:
    """Return what compiled code is bound to: kind of machine, its vector instructions, torch's version."""
    return {
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
    }


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
