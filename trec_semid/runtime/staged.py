"""A folder that all ranks write together: it takes its place when all of them are done, or vanishes."""

from collections.abc import Iterator
from contextlib import contextmanager

from trec_semid.core.paths import remove, staged_folder
from trec_semid.runtime.ranks import Ranks, barrier, broadcast_object, tell_ranks


@contextmanager
def staged_by_ranks(uri: str, mark: str, ranks: Ranks) -> Iterator[str]:
    """Yield the same folder on every rank, to write into; it becomes `uri`, or vanishes where a rank fails.

    All ranks have to be done with it when rank 0 leaves the block.

    Args:
        uri: the folder.
        mark: file in it that says that it is complete.
        ranks: this process among its peers.
    """
    if ranks.is_main:
        with staged_folder(uri, mark, in_place=False) as staging, _telling_first():
            broadcast_object(staging)
            yield staging
    else:
        staging: str = broadcast_object(None)
        try:
            with _telling_first():
                yield staging
        except BaseException:
            # Rank 0 may have removed it before the last file of this rank was written, which made it anew.
            remove(staging)
            raise
    barrier()


@contextmanager
def _telling_first() -> Iterator[None]:
    """Let other ranks hear of an error before their folder goes: else they would fail at that."""
    try:
        yield
    except BaseException as error:
        tell_ranks(error)
        raise
