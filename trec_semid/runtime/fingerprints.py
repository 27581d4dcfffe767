"""Files as they were written, by size and sha256, and whether they are still the same."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import NonNegativeInt

from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import (
    exists,
    filesystem,
    find_files,
    is_local,
    join,
    open_file,
    read_bytes,
    write_bytes,
)
from trec_semid.runtime.logs import working

Verify = Literal["once", "always"]
"""Whether contents of a folder are read once, until a file of it is written anew, or each time."""
STAMP = ".verified.json"
"""In a folder whose contents were verified: sizes and times of its files then."""
_BLOCK_BYTES = 1 << 23
_SETTLED_NS = 2 * 10**9
"""A file written later than this before it was read is not stamped: another write could bear that time."""
_UNSIGNED = "0" * 64


class Fingerprint(Config):
    """What tells whether a file is the one that was written."""

    bytes: NonNegativeInt
    sha256: str


def fingerprint(uri: str) -> Fingerprint:
    """Read a file and return its size and sha256."""
    digest, size = hashlib.sha256(), 0
    with open_file(uri) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return Fingerprint(bytes=size, sha256=digest.hexdigest())


def fingerprints(folder: str, names: Iterable[str] | None = None) -> dict[str, Fingerprint]:
    """Return the fingerprints of files of a folder, by their path in it; of all `data_files` if not named."""
    return {
        name: fingerprint(join(folder, name)) for name in (data_files(folder) if names is None else names)
    }


def data_files(folder: str) -> list[str]:
    """Return every file below a folder that is neither hidden nor a part of an unfinished write."""
    return [name for name in find_files(folder) if not _is_aside(name)]


def _is_aside(name: str) -> bool:
    return ".partial-" in name or any(part.startswith(".") for part in name.split("/"))


def check_files(
    folder: str,
    expected: Mapping[str, Fingerprint],
    *,
    remedy: str,
    may_have: Iterable[str] | None = (),
) -> None:
    """Check that every file is there with its size, and no other; contents are not read.

    Args:
        folder: path or URI.
        expected: files by their path in the folder.
        remedy: what to do about damage.
        may_have: files that may be there besides; None allows any.

    Raises:
        DataError: names the first file that is missing, of another size, or not listed.
    """
    sizes = _sizes(folder)
    for name, known in expected.items():
        place = join(folder, name)
        if name not in sizes:
            raise DataError("this file is missing", file=place, remedy=remedy)
        if sizes[name] != known.bytes:
            problem = f"damaged: it has {sizes[name]:,} bytes, and {known.bytes:,} were written"
            raise DataError(problem, file=place, remedy=remedy)
    if may_have is not None:
        strange = [name for name in sizes if name not in {*expected, *may_have} and not _is_aside(name)]
        if strange:
            problem = "this file does not belong here"
            raise DataError(problem, file=join(folder, sorted(strange)[0]), remedy=f"Remove it. Or: {remedy}")


def verify(
    folder: str,
    expected: Mapping[str, Fingerprint],
    *,
    remedy: str,
    mode: Verify = "always",
    alone: bool = False,
) -> None:
    """Check the contents of files against their fingerprints; in a process group every rank must call this.

    The ranks share the files, and all raise the same error. With `once`, a folder on a local disk gets a
    stamp, and is not read again while no file changes size or times; where no stamp can be written, or on
    an object store, contents are read each time. With `alone`, this rank reads all and no other need call.

    Raises:
        DataError: a file is missing or is not what was written; names it.
    """
    if alone:
        _verify(folder, expected, (0, 1), remedy, mode)
        return
    # Slow, and readers of data do without.
    from trec_semid.runtime.ranks import broadcast_object, gather_objects, place_among_ranks

    _verify(
        folder, expected, place_among_ranks(), remedy, mode, broadcast=broadcast_object, gather=gather_objects
    )


def _verify(
    folder: str,
    expected: Mapping[str, Fingerprint],
    place: tuple[int, int],
    remedy: str,
    mode: Verify,
    *,
    broadcast: Callable[[Any], Any] = lambda value: value,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> None:
    rank, num_ranks = place
    # Rank 0 decides for all: another rank could see the stamp that it writes in the end.
    settled = broadcast(rank == 0 and mode == "once" and _is_stamped(folder, expected))
    if settled:
        return
    before = _states(folder, expected) if rank == 0 and mode == "once" else None
    # Largest first and dealt out in turn, so that ranks read about equally many bytes.
    by_size = sorted(expected, key=lambda name: (-expected[name].bytes, name))
    problem = _first_problem(folder, expected, by_size[rank::num_ranks], shown=rank == 0)
    problems = sorted(each for each in gather(problem) if each is not None)
    if problems:
        file, told = problems[0]
        raise DataError(told, file=file, remedy=remedy)
    if before is not None:
        _stamp(folder, expected, before)


def _first_problem(
    folder: str, expected: Mapping[str, Fingerprint], names: list[str], *, shown: bool
) -> tuple[str, str] | None:
    """Return the first file that is not as expected, and how; None where all are."""
    with working("verify [bytes]", sum(expected[name].bytes for name in names), shown=shown) as work:
        for name in names:
            place = join(folder, name)
            try:
                now = fingerprint(place)
            except FileNotFoundError:
                return place, "this file is missing"
            except OSError as error:
                return place, f"cannot be read: {error}"
            if (now.bytes, now.sha256) != (expected[name].bytes, expected[name].sha256):
                return place, "damaged: its content is not what was written (sha256 differs)"
            work.advance(now.bytes)
    return None


def _sizes(folder: str) -> dict[str, int]:
    fs, inner = filesystem(folder)
    root = inner.rstrip("/") + "/"
    listed: Any = fs.find(inner, detail=True)
    return {str(name).removeprefix(root): int(about["size"]) for name, about in listed.items()}


def _states(folder: str, expected: Mapping[str, Fingerprint]) -> dict[str, list[int]] | None:
    """Return what changes when a file is written: size and times [ns]; None where that is not known."""
    if not is_local(folder):
        return None
    states: dict[str, list[int]] = {}
    for name in expected:
        try:
            about = os.stat(filesystem(join(folder, name))[1])
        except OSError:
            return None
        states[name] = [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return states


def _is_stamped(folder: str, expected: Mapping[str, Fingerprint]) -> bool:
    states = _states(folder, expected)
    if states is None or not exists(join(folder, STAMP)):
        return False
    try:
        stamp = json.loads(read_bytes(join(folder, STAMP)))
    except (OSError, ValueError):
        return False
    return stamp == _stamp_of(expected, states)


def _stamp(folder: str, expected: Mapping[str, Fingerprint], states: dict[str, list[int]]) -> None:
    # A file that was written while it was read may have been seen half old, half new: no stamp then.
    newest = max((max(times) for _, *times in states.values()), default=0)
    if newest > time.time_ns() - _SETTLED_NS or _states(folder, expected) != states:
        return
    try:
        write_bytes(join(folder, STAMP), json.dumps(_stamp_of(expected, states)).encode())
    except OSError:
        return  # a folder that cannot be written to is read again next time


def _stamp_of(expected: Mapping[str, Fingerprint], states: dict[str, list[int]]) -> dict[str, Any]:
    known = json.dumps({name: each.model_dump() for name, each in expected.items()}, sort_keys=True)
    return {"of": hashlib.sha256(known.encode()).hexdigest(), "files": states}


def signed_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON whose last key, `sha256`, is the sha256 of the whole text with 64 zeros in that place."""
    text = json.dumps({**content, "sha256": _UNSIGNED}, indent=1, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    # From the right: other values may hold 64 zeros as well, but `sha256` is the last key.
    head, _, tail = text.rpartition(_UNSIGNED)
    return f"{head}{digest}{tail}".encode()


def read_signed(content: bytes) -> dict[str, Any]:
    """Return what `signed_json` was given.

    Raises:
        ValueError: not JSON, not signed, or not what was signed.
    """
    values = json.loads(content)
    signature = values.pop("sha256", None) if isinstance(values, dict) else None
    if not isinstance(signature, str) or len(signature) != len(_UNSIGNED):
        raise ValueError("it does not state its own sha256")
    head, _, tail = content.rpartition(signature.encode())
    if hashlib.sha256(head + _UNSIGNED.encode() + tail).hexdigest() != signature:
        raise ValueError("its content is not what was written (sha256 differs)")
    return values
