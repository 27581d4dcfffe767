"""Evaluation of full-catalogue retrieval in bounded memory, beside plain ways in numpy and torch.

    .venv/bin/python tools/bench/retrieval_eval.py [--users N] [--items N] [--width N] [--batch N]

Scores are dot products of user and item vectors; every user has one target and a history of 50 items,
which are masked. Ours ranks the target among all items (`locate_targets`, lists of 100) and feeds the
accumulator of the metrics. The peers get a sample of the users: one sorts whole lists with `numpy.argsort`,
the other takes `torch.topk` of the scores of all items and counts what is above the target. Ranks on the
sample are compared; they may differ where products of another shape are rounded differently.
Peak memory is the process's own, as the kernel has it, before the peer runs. Processor seconds tell more
than wall seconds on a machine that does other things as well.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--users", type=int, default=2_000)
PARSER.add_argument("--items", type=int, default=100_000)
PARSER.add_argument("--width", type=int, default=64)
PARSER.add_argument("--batch", type=int, help="users at once; as many as have their scores kept by default")
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--sample-users", type=int, default=100, help="users that the peer gets")
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # read when the packages are imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from trec_semid.evaluation.retrieval import RetrievalAccumulator  # noqa: E402
from trec_semid.metrics.target_positions import KEPT_SCORES, UserItems, locate_targets  # noqa: E402

HISTORY = 50
T = TypeVar("T")


class Vectors:
    """Users and items, and how long their products took."""

    def __init__(self, num_users: int, num_items: int, width: int) -> None:
        torch.manual_seed(0)
        self.users, self.items = torch.randn(num_users, width), torch.randn(num_items, width)
        self.targets = torch.randint(num_items, (num_users,))
        self.histories = torch.randint(num_items, (num_users, HISTORY))
        self.processor_s = 0.0

    def scores(self, users: Tensor, chunk: slice) -> Tensor:
        """Return the products of some users with a chunk of items."""
        started = time.process_time()
        scores = users @ self.items[chunk].T
        self.processor_s += time.process_time() - started
        return scores


def ours(vectors: Vectors, batch: int) -> Tensor:
    """Rank every user's target and feed the metrics; returns the ranks."""
    accumulator, ranks = RetrievalAccumulator(None, len(vectors.items)), []
    for users in torch.arange(len(vectors.users)).split(batch):
        ones = torch.ones(len(users), dtype=torch.int64)
        given = UserItems(vectors.targets[users], ones, vectors.histories[users].flatten(), ones * HISTORY)
        own = vectors.users[users]
        found = locate_targets(lambda chunk, own=own: vectors.scores(own, chunk), given, len(vectors.items))
        accumulator.update(users, ones, vectors.targets[users], found.positions, found.top_items)
        ranks.append(found.positions)
    accumulator.result()
    return torch.cat(ranks)


def numpy_argsort(vectors: Vectors, num_users: int) -> list[int]:
    """Sort the whole list of some users."""
    users, items = vectors.users[:num_users].numpy(), vectors.items.numpy()
    ranks: list[int] = []
    for part in np.array_split(np.arange(num_users), max(1, num_users // 20)):
        scores = users[part] @ items.T
        out = vectors.histories[part].numpy()
        own = vectors.targets[part].numpy()
        kept = np.take_along_axis(scores, own[:, None], 1)
        np.put_along_axis(scores, out, -np.inf, 1)
        np.put_along_axis(scores, own[:, None], kept, 1)
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks += (1 + np.argmax(order == own[:, None], axis=1)).tolist()
    return ranks


def dense_torch(vectors: Vectors, num_users: int) -> list[int]:
    """Score all items at once, `torch.topk` for the lists, and count; no order of ties."""
    ranks: list[int] = []
    for users in torch.arange(num_users).split(20):
        scores = vectors.users[users] @ vectors.items.T
        own = scores.gather(1, vectors.targets[users, None])
        scores.scatter_(1, vectors.histories[users], -torch.inf)
        scores.scatter_(1, vectors.targets[users, None], own)
        scores.topk(100)
        ranks += (1 + (scores > own).sum(1)).tolist()
    return ranks


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """Return what `work` returns, and the wall and processor seconds it took."""
    wall, processor = time.perf_counter(), time.process_time()
    return work(), time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    vectors = Vectors(OPTIONS.users, OPTIONS.items, OPTIONS.width)
    batch = OPTIONS.batch or min(256, max(1, KEPT_SCORES // OPTIONS.items))
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ranks, wall_s, processor_s = timed(lambda: ours(vectors, batch))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    products = vectors.processor_s / processor_s
    sample = min(OPTIONS.sample_users, OPTIONS.users)
    contestants = {"ours": (OPTIONS.users, wall_s, processor_s)}
    different: dict[str, int] = {}
    for name, peer in (("numpy argsort", numpy_argsort), ("torch topk and count", dense_torch)):
        found, *seconds = timed(lambda peer=peer: peer(vectors, sample))
        contestants[name] = sample, *seconds
        different[name] = int((ranks[:sample] != torch.tensor(found)).sum())
    print(f"{OPTIONS.users:,} users x {OPTIONS.items:,} items, width {OPTIONS.width}, {batch} users at once,")
    print(f"{OPTIONS.threads} threads; of {sample} ranks differ by rounding: {different};")
    print(f"{products:.0%} of our processor time are the products;")
    print(f"peak memory {peak_mib:,.0f} MiB, {peak_mib - before_mib:,.0f} above what is held before")
    heads = "users | wall s | processor s | users/s (wall) | users/s (processor) | ns a score"
    print(f"| contestant | {heads} | processor, ours = 1 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (users, wall, processor) in contestants.items():
        cells = f"{users:,} | {wall:.1f} | {processor:.1f} | {users / wall:,.1f} | {users / processor:,.1f}"
        ratio = processor / users * OPTIONS.users / processor_s
        print(f"| {name} | {cells} | {processor / users / OPTIONS.items * 1e9:.1f} | {ratio:.1f} |")
    if OPTIONS.json:
        numbers = {"products": products, "peak_mib": peak_mib, "above_start_mib": peak_mib - before_mib}
        numbers |= {"different": different, "contestants": contestants}
        with open(OPTIONS.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(OPTIONS), **numbers}, file, indent=1)


if __name__ == "__main__":
    main()
