"""Lists out of many items by a graph: planted vectors in clusters, one user at a time, one thread.

Usage: python tools/bench/serving/million.py [ITEMS]

Prints how long the graph takes to build and to open from its arrays, the times of a list of 10 without the
user's last 20 items, and how much of the exact lists it has.
"""

import sys
import time

import numpy as np
import torch

from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.queries import Queries
from trec_semid.search.ann import HnswConfig, IndexSearch
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.exact import ExactSearch
from trec_semid.search.retrieved import agreement

WIDTH, USERS, MASKED, LENGTH = 64, 2000, 20, 10


def planted(num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return item vectors in a thousand clusters, and users near some of the items."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, WIDTH, generator=generator)
    items = centres[torch.randint(1000, (num_items,), generator=generator)]
    items += 0.5 * torch.randn(num_items, WIDTH, generator=generator)
    users = items[torch.randint(num_items, (USERS,), generator=generator)]
    return items, users + 0.5 * torch.randn(USERS, WIDTH, generator=generator)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    num_items = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    items, users = planted(num_items)
    catalogue, penalties = Catalogue(num_items, 0, items, None, None), torch.zeros(num_items)
    start = time.process_time()
    built = IndexSearch(HnswConfig(), catalogue, penalties)
    print(f"{num_items:,} items: built in {time.process_time() - start:.0f} processor seconds", flush=True)
    arrays, start = built.arrays(), time.process_time()
    search = IndexSearch(HnswConfig(), catalogue, penalties, arrays)
    print(f"opened from arrays in {time.process_time() - start:.1f} processor seconds", flush=True)
    nothing, one = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    masked = torch.from_numpy(np.random.default_rng(0).integers(num_items, size=(USERS, MASKED)))
    ms, listed = [], []
    for user in range(USERS):
        own = UserItems(nothing, one, masked[user], one + MASKED)
        start = time.perf_counter()
        top = search.top_items([Queries(users[user : user + 1], None)], own, LENGTH)
        ms.append(1000 * (time.perf_counter() - start))
        listed.append(top.items)
    few = slice(0, 200)
    together = UserItems(nothing, one.repeat(200), masked[few].flatten(), one.repeat(200) + MASKED)
    exact = ExactSearch([catalogue], penalties).top_items([Queries(users[few], None)], together, LENGTH)
    share = float(agreement(torch.cat(listed)[few], exact.items).mean())
    p50, p99 = np.quantile(ms, [0.5, 0.99])
    print(f"list of {LENGTH}: p50 {p50:.2f}, p99 {p99:.2f} ms; recall of the exact {LENGTH}: {share:.4f}")


if __name__ == "__main__":
    main()
