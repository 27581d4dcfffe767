"""What the command line says when something goes wrong."""

import errno
import os
import sys
import traceback

from trec_semid.core.errors import SemidError
from trec_semid.runtime.disk import full_disk, full_disk_fault

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

PLACE_FAULTS = {
    errno.EROFS: "This place cannot be written: choose another with --set",
    errno.EACCES: "You may not use this place: choose another with --set",
}
"""What the operating system says of a place, which is no bug of ours: no traceback."""


def complain_of(error: BaseException) -> None:
    """Say what went wrong: a line where it was foreseen, else the traceback."""
    if isinstance(error, SemidError):
        complain(f"error: {error}")
        return
    full = full_disk_fault(error)
    if full:
        complain(f"error: {full_disk(full, '')}")
        return
    fault = PLACE_FAULTS.get(error.errno or 0) if isinstance(error, OSError) else None
    trace = "".join(traceback.format_exception(error)).rstrip()
    complain(f"error: {error}. {fault}." if fault else trace)


def complain(text: str) -> None:
    """Write to standard error, with the rank where there are several."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    where = f"rank {os.environ.get('RANK', '?')}: " if several else ""
    sys.stderr.write(f"{where}{text}\n")
    sys.stderr.flush()


def tell_torchrun(error: BaseException) -> None:
    """Leave the error where torchrun's summary of a failed launch looks for it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
