"""A full disk says so in many ways, through many libraries; here in one."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from trec_semid.core.errors import DataError, SemidError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXT = re.compile(
    r"no space left|disk quota exceeded|file too large|PytorchStreamWriter failed writing"
    r"|enforce fail at inline_container|QuotaExceeded|XMinioStorageFull|insufficient storage",
    re.IGNORECASE,
)

_WORDED = re.compile(r"disk is full|quota is used up|ulimit -f")


def full_disk_fault(error: BaseException) -> BaseException | None:
    """Return the error, of those that led to this one, that says that a disk is full; None where none does.

    A quota that is used up and a file that may not grow (`ulimit -f`) are full disks as well.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if (isinstance(one, OSError) and one.errno in _FULL) or _TEXT.search(str(one)):
            return one
        parts = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        failures = getattr(one, "failures", None)  # torch.distributed.checkpoint: rank -> (error, trace)
        wrapped = [pair[0] for pair in failures.values()] if isinstance(failures, dict) else []
        waiting += [each for each in (*parts, *wrapped, one.__cause__, one.__context__) if each is not None]
    return None


def full_disk(error: BaseException, place: str, outcome: str = "") -> DataError:
    """Return a full disk in words.

    Args:
        error: what `full_disk_fault` returned.
        place: what was being written.
        outcome: what became of it, as `nothing was written`.
    """
    file = getattr(error, "filename", None)
    at = str(file) if file else place
    what = "the disk is full"
    if getattr(error, "errno", None) == errno.EDQUOT:
        what = "the disk is full: your quota is used up"
    if getattr(error, "errno", None) == errno.EFBIG or "too large" in str(error).lower():
        what = "the disk is full, or a file may not grow further (ulimit -f)"
    remedy = "Free some space, then run the same command again; or choose another folder"
    if at.startswith(tempfile.gettempdir() + "/trec-semid-"):
        remedy = "Free some space there, or set TMPDIR to another disk; then run the same command again"
    return DataError(what + (f"; {outcome}" if outcome else ""), file=at, remedy=remedy)


@contextmanager
def wording_full_disk(place: str, outcome: str = "") -> Iterator[None]:
    """Word a full disk, however it shows; what else goes wrong passes as it is.

    Raises:
        DataError: a disk is full.
    """
    try:
        yield
    except BaseException as error:
        is_worded = isinstance(error, SemidError) and _WORDED.search(str(error))
        if is_worded or isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        fault = full_disk_fault(error)
        if fault is None:
            raise
        raise full_disk(fault, place, outcome) from None
