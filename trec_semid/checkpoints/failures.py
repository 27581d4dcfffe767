"""What went wrong while a checkpoint was written or read, in words that say what to do."""

import errno

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from trec_semid.runtime.disk import full_disk_fault
from trec_semid.runtime.stopping import is_interruption

FAILURES = (Exception, CheckpointException)
"""What a failed save or load raises: torch's `CheckpointException` is a `BaseException`."""
_FULL = {
    errno.EDQUOT: "the disk is full: your quota is used up. Free some space",
    errno.EFBIG: (
        "the disk is full, or a file may not grow further (ulimit -f). Free some space, or raise the limit"
    ),
}
_NO_WAY = {
    errno.EROFS: "the file system is read-only. Write to another place",
    errno.EACCES: "no permission to write there. Write to another place",
}


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line without a full stop; a fault of the disk by its name."""
    if isinstance(error, CheckpointException):
        each = {text: rank for rank, (one, _) in reversed(error.failures.items()) if (text := reason(one))}
        several = dist.is_initialized() and dist.get_world_size() > 1
        return "; ".join(f"rank {rank}: {text}" if several else text for text, rank in each.items())
    full = full_disk_fault(error)
    if full is not None:
        return _FULL.get(getattr(full, "errno", None) or 0, "the disk is full. Free some space")
    if isinstance(error, OSError) and error.errno in _NO_WAY:
        return _NO_WAY[error.errno]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def expect_not_stopped(error: BaseException) -> None:
    """Raise what ends this process, such as Ctrl-C, which would be taken for a failure of the checkpoint."""
    if is_interruption(error):
        raise error
    if isinstance(error, CheckpointException):
        one, _ = error.failures.get(dist.get_rank() if dist.is_initialized() else 0, (None, None))
        if one is not None and (not isinstance(one, FAILURES) or is_interruption(one)):
            raise one
