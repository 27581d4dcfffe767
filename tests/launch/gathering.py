"""What `torchrun` starts in a test: ranks that come together, say who they are, and check that all did."""

import os

from trec_semid.runtime.logs import say
from trec_semid.runtime.ranks import gather_objects, process_group


def main() -> None:
    """Join the group that the launcher describes; every rank says what it has heard of all."""
    with process_group() as ranks:
        threads = os.environ.get("OMP_NUM_THREADS")
        heard = gather_objects((ranks.rank, ranks.local_rank, threads))
        say(f"{ranks.rank} of {ranks.world_size}: {heard}")


if __name__ == "__main__":
    main()
