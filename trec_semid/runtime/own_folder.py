"""The one way a verb gets a folder to write: asked for, locked, swept, and given back."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trec_semid.core.errors import DataError, SemidError
from trec_semid.core.processes import sweep_scratch
from trec_semid.runtime.disk import full_disk, full_disk_fault, wording_full_disk
from trec_semid.runtime.leftovers import sweep
from trec_semid.runtime.locks import FolderLock, cannot_lock, new_owner
from trec_semid.runtime.owners import Verb, check_owner, refuse_private

if TYPE_CHECKING:
    from trec_semid.runtime.ranks import Ranks  # imports torch

_log = logging.getLogger(__name__)


@contextmanager
def own_folder(
    folder: str,
    verb: Verb,
    ranks: "Ranks | None" = None,
    *,
    inputs: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> Iterator[None]:
    """Let no other process write a folder inside the block; all ranks make the same call.

    Rank 0 asks and locks, and every rank hears what came of it. Leftovers of killed processes are removed
    once the lock is held.

    Args:
        folder: where the verb writes.
        verb: who asks.
        ranks: this process among its peers; None where it is alone.
        inputs: raw data that is read whole, which the folder must not lie in.
        beside: runs that the folder may be, though another verb wrote them.

    Raises:
        DataError: the folder is another's, or the disk is full.
        LockError: another process writes there.
    """
    lock: FolderLock | None = None
    fault: SemidError | None = None
    if ranks is None or ranks.is_main:
        try:
            refuse_private(folder, ranks.world_size if ranks else 1)
            lock = _take(folder, verb, inputs, beside)
        except SemidError as error:
            fault = error
        except Exception as error:  # whatever it is, the other ranks wait for the verdict
            remedy = "See whether this place is there, and whether you may read and write it"
            fault = DataError(f"cannot be used: {error or type(error).__name__}", file=folder, remedy=remedy)
            fault.__cause__ = error
    try:
        if ranks is not None:
            fault = _heard(fault)
        if fault:
            raise fault
        with wording_full_disk(folder):
            yield
    finally:
        if lock:
            lock.release()


@contextmanager
def locked_folder(folder: str, verb: Verb) -> Iterator[None]:
    """Let no other process write a folder inside the block, whoever wrote it.

    Raises:
        LockError: another process writes there.
    """
    lock = FolderLock(folder, new_owner(verb))
    lock.take()
    try:
        yield
    finally:
        lock.release()


def _take(folder: str, verb: Verb, inputs: Sequence[str], beside: Sequence[str]) -> FolderLock | None:
    """Return the lock of a folder that is this verb's; None where nothing can be written anyway."""
    check_owner(folder, verb, inputs, beside)
    lock = FolderLock(folder, new_owner(verb))
    try:
        lock.take()
    except OSError as error:
        if cannot_lock(error):
            return None
        if full_disk_fault(error):
            raise full_disk(error, folder) from None
        raise DataError(f"cannot be locked: {error}", file=folder, remedy="Choose another folder") from None
    try:
        check_owner(folder, verb, inputs, beside)  # again: what was true before the lock may be no more
        removed = sweep(folder)
        sweep_scratch()
    except BaseException:
        lock.release()
        raise
    if removed:
        _log.info("%s: removed what an earlier process never finished: %s", folder, ", ".join(removed))
    return lock


def _heard(fault: SemidError | None) -> SemidError | None:
    from trec_semid.runtime.ranks import broadcast_object  # imports torch

    return broadcast_object(fault)
