"""Training samples/s of our sharded ranker step beside the same model on plain `torch.nn.EmbeddingBag`.

    .venv/bin/python tools/bench/ranking/ranker.py [--users N] [--items N] [--dim D] [--history N] [--batch N]

Both train the same PPNet on the same batches. Ours: tables in a sharded collection on one rank, updated
by fused row-wise Adagrad inside backward, and the loss read in every step. Plain: one
`nn.EmbeddingBag(sparse=True)` a table, updated by `torch.optim.Adagrad`, which keeps one number per weight
where row-wise keeps one per row. Dense parameters: fused AdamW in both. Ids are Zipf-like; every row has
a full history. The two take turns, so that a busy machine is busy for both; the table shows medians over
turns. The last line is the loader alone: batches made of arrays in memory, in one thread.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--users", type=int, default=1_000_000)
PARSER.add_argument("--items", type=int, default=500_000)
PARSER.add_argument("--dim", type=int, default=16)
PARSER.add_argument("--history", type=int, default=50, help="history items of every row")
PARSER.add_argument("--codes", type=int, default=4, help="positions of the semantic ID; 0 leaves codes out")
PARSER.add_argument("--batch", type=int, default=4096)
PARSER.add_argument("--steps", type=int, default=5, help="steps in a turn")
PARSER.add_argument("--turns", type=int, default=7)
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # read when torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from drawn_rows import describe, make_maker  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from trec_semid.data.batches import RankingBatch  # noqa: E402
from trec_semid.data.features import Feature  # noqa: E402
from trec_semid.data.ranking.batch_maker import BatchMaker  # noqa: E402
from trec_semid.embeddings.collection import PooledTables  # noqa: E402
from trec_semid.embeddings.tables import TablesConfig  # noqa: E402
from trec_semid.models.ranker import Ranker, RankerWithLoss  # noqa: E402
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig  # noqa: E402
from trec_semid.runtime.ranks import Ranks, process_group  # noqa: E402
from trec_semid.sharding.apply import shard_model  # noqa: E402
from trec_semid.sharding.constraints import ShardingConfig, TableRule  # noqa: E402
from trec_semid.sharding.initialise import initialise_tables  # noqa: E402
from trec_semid.sharding.plan import plan_on_ranks  # noqa: E402
from trec_semid.training.optimizers import OptimizersConfig, build_dense_optimizer, build_updates  # noqa: E402
from trec_semid.training.passes import PlainPasses, Trained  # noqa: E402
from trec_semid.training.ranking.setup import table_specs  # noqa: E402
from trec_semid.training.steps import train_steps  # noqa: E402

Step = Callable[[RankingBatch], float]


def build_dense(features: tuple[Feature, ...]) -> Ppnet:
    """Return the same dense part each time it is called."""
    torch.manual_seed(0)
    return Ppnet(PpnetConfig.model_validate({}), features, OPTIONS.dim)


def our_step(features: tuple[Feature, ...], ranks: Ranks) -> Step:
    """Return the step of this package."""
    tables = TablesConfig.model_validate({"dim": OPTIONS.dim})
    sparse = PooledTables(table_specs(features), tables, [f.name for f in features], device="meta")
    model = RankerWithLoss(Ranker(sparse, build_dense(features)), world_size=1)
    optimizers = OptimizersConfig()
    rules = ShardingConfig(tables={"t_*": TableRule(sharding_types=["table_wise"])})
    plan = plan_on_ranks(model, ranks, rules, batch_size=OPTIONS.batch, optimizer=optimizers.tables)
    sharded = shard_model(model, plan, ranks, optimizers.tables)
    initialise_tables(sharded, std=tables.init_std, seed=0)
    updates = build_updates(sharded, optimizers, total_steps=10**6)

    passes = PlainPasses(Trained(sharded, ranks))

    def step(batch: RankingBatch) -> float:
        return next(train_steps(passes, updates, [batch], steps_done=0)).loss.item()

    return step


class PlainRanker(nn.Module):
    """The same ranker on `nn.EmbeddingBag`."""

    def __init__(self, features: tuple[Feature, ...]) -> None:
        super().__init__()
        self.features, self.dense = features, build_dense(features)
        sizes = {feature.table: feature.num_rows for feature in features}
        self.tables = nn.ModuleDict(
            {
                name: nn.EmbeddingBag(rows, OPTIONS.dim, mode="mean", sparse=True)
                for name, rows in sizes.items()
            }
        )
        for table in self.tables.values():
            nn.init.normal_(cast(Tensor, table.weight), std=0.01)

    def forward(self, values: list[Tensor], offsets: list[Tensor]) -> Tensor:
        """Return the logits."""
        parts = zip(self.features, values, offsets, strict=True)
        return self.dense(torch.cat([self.tables[f.table](ids, starts) for f, ids, starts in parts], 1))


def plain_step(features: tuple[Feature, ...]) -> Step:
    """Return the step of plain torch."""
    model = PlainRanker(features)
    optimizers = OptimizersConfig()
    sparse = torch.optim.Adagrad(model.tables.parameters(), lr=optimizers.tables.learning_rate)
    group = {"params": list(model.dense.parameters()), "weight_decay": optimizers.dense.weight_decay}
    dense = build_dense_optimizer([group], optimizers.dense)

    def step(batch: RankingBatch) -> float:
        lengths = batch.features.lengths.long().view(len(features), -1)
        values = list(batch.features.values.split(lengths.sum(1).tolist()))
        loss = functional.binary_cross_entropy_with_logits(
            model(values, list(lengths.cumsum(1) - lengths)), batch.labels
        )
        sparse.zero_grad()
        dense.zero_grad()
        loss.backward()
        sparse.step()
        dense.step()
        return loss.item()

    return step


def take_turns(steps: dict[str, Step], batches: list[RankingBatch]) -> dict[str, list[float]]:
    """Time each contestant turn by turn and return samples/s of each turn; one turn before does not count."""
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(OPTIONS.turns + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for number in range(OPTIONS.steps):
                step(batches[(turn * OPTIONS.steps + number) % len(batches)])
            elapsed_s = time.perf_counter() - started
            speeds[name] += [OPTIONS.steps * OPTIONS.batch / elapsed_s] if turn else []
    return speeds


def time_loader(maker: BatchMaker) -> list[float]:
    """Return rows/s of making batches."""
    rows, speeds = np.random.default_rng(1).permutation(64 * OPTIONS.batch), []
    for turn in range(OPTIONS.turns):
        started = time.perf_counter()
        for number in range(OPTIONS.steps):
            at = (turn * OPTIONS.steps + number) % 64 * OPTIONS.batch
            maker.make(rows[at : at + OPTIONS.batch], OPTIONS.batch)
        speeds.append(OPTIONS.steps * OPTIONS.batch / (time.perf_counter() - started))
    return speeds


def main() -> None:
    """Run the contest and print its table."""
    features = describe(OPTIONS)
    maker = make_maker(OPTIONS, features, 64 * OPTIONS.batch)
    batches = [
        maker.make(np.arange(start, start + OPTIONS.batch), OPTIONS.batch)
        for start in range(0, 16 * OPTIONS.batch, OPTIONS.batch)
    ]
    with process_group() as ranks:
        steps = {"ours": our_step(features, ranks), "nn.EmbeddingBag": plain_step(features)}
        speeds = take_turns(steps, batches)
    speeds["loader alone"] = time_loader(maker)
    result: dict[str, Any] = {"options": vars(OPTIONS), "samples_per_s": {}}
    ids = batches[0].features.values.numel() / OPTIONS.batch
    print(
        f"{OPTIONS.users:,} users, {OPTIONS.items:,} items, dim {OPTIONS.dim}, {ids:.0f} ids a row,", end=" "
    )
    print(
        f"batch {OPTIONS.batch:,}, {OPTIONS.threads} threads, {OPTIONS.turns} turns of {OPTIONS.steps} steps"
    )
    for name, values in speeds.items():
        median = statistics.median(values)
        result["samples_per_s"][name] = {"median": median, "min": min(values), "max": max(values)}
        print(f"{name:16} {median:12,.0f} samples/s   ({min(values):,.0f} to {max(values):,.0f})")
    ratios = [ours / plain for ours, plain in zip(speeds["ours"], speeds["nn.EmbeddingBag"], strict=True)]
    result["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    print(f"ours / plain     {statistics.median(ratios):12.2f}             ", end="")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})")
    if OPTIONS.json:
        with open(OPTIONS.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
