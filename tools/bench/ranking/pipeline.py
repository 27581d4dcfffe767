"""Training samples/s of a sharded ranker: plain, pipelined, compiled, and with values rounded between ranks.

    .venv/bin/torchrun --nproc-per-node 2 tools/bench/ranking/pipeline.py [--users N] [--items N] [--batch N]

All train the same PPNet on the same batches, its tables row-wise on all ranks: in the plain loop; by
torchrec's pipeline (`train.pipeline = "sparse_dist"`); with a compiled dense part (`train.compile`); with
rows and gradients that travel as bf16 (`[sharding.comms]`); and with all three. Batches lie in memory. Ids
are Zipf-like; every row has a full history. They take turns, so that a busy machine is busy for all; a
pipeline is filled and emptied in every turn, and a turn before the first compiles. The table has medians
over turns and, from least to largest, what turns said, by the clock and by the processor time of rank 0; a
ratio is that to the plain loop in the same turn.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any, NamedTuple

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--users", type=int, default=200_000)
PARSER.add_argument("--items", type=int, default=100_000)
PARSER.add_argument("--dim", type=int, default=32)
PARSER.add_argument("--history", type=int, default=20, help="history items of every row")
PARSER.add_argument("--codes", type=int, default=3, help="positions of the semantic ID")
PARSER.add_argument("--batch", type=int, default=2048, help="rows of a global batch")
PARSER.add_argument("--steps", type=int, default=20, help="steps in a turn")
PARSER.add_argument("--turns", type=int, default=9)
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from drawn_rows import describe, make_maker  # noqa: E402

from trec_semid.data.batches import RankingBatch  # noqa: E402
from trec_semid.data.features import Feature  # noqa: E402
from trec_semid.embeddings.collection import PooledTables  # noqa: E402
from trec_semid.embeddings.tables import TablesConfig  # noqa: E402
from trec_semid.models.ranker import Ranker, RankerWithLoss  # noqa: E402
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig  # noqa: E402
from trec_semid.runtime.ranks import Ranks, barrier, process_group  # noqa: E402
from trec_semid.sharding.constraints import ShardingConfig  # noqa: E402
from trec_semid.sharding.plan import plan_on_ranks  # noqa: E402
from trec_semid.training.optimizers import OptimizersConfig, Updates, build_updates  # noqa: E402
from trec_semid.training.passes import Passes, PipelineKind, Trained, build_passes  # noqa: E402
from trec_semid.training.placement import place_model  # noqa: E402
from trec_semid.training.ranking.compiled import compile_dense  # noqa: E402
from trec_semid.training.ranking.setup import table_specs  # noqa: E402
from trec_semid.training.steps import train_steps  # noqa: E402

NUM_BATCHES = 16


class Way(NamedTuple):
    """What a config says."""

    pipeline: PipelineKind = "plain"
    compiled: bool = False
    comms: str = "fp32"


WAYS = {
    "plain": Way(),
    "pipelined": Way("sparse_dist"),
    "compiled": Way(compiled=True),
    "bf16": Way(comms="bf16"),
    "all three": Way("sparse_dist", compiled=True, comms="bf16"),
}


class Speeds(NamedTuple):
    """Of one turn."""

    by_clock: float
    """Rows of global batches a second."""
    by_processor: float
    """The same a second of the processor of this rank."""


class Arm(NamedTuple):
    """A model that is trained in one way."""

    passes: Passes
    updates: Updates


def make_batches(features: tuple[Feature, ...], ranks: Ranks) -> list[RankingBatch]:
    """Return this rank's parts of global batches."""
    num_rows = NUM_BATCHES * OPTIONS.batch
    maker = make_maker(OPTIONS, features, num_rows)
    parts = np.arange(num_rows).reshape(NUM_BATCHES, OPTIONS.batch)
    return [maker.make_part(part, ranks.rank, ranks.world_size) for part in parts]


def build_arm(features: tuple[Feature, ...], ranks: Ranks, way: Way) -> Arm:
    """Place a model of its own, with the same weights as the others'."""
    tables = TablesConfig.model_validate({"dim": OPTIONS.dim})
    sparse = PooledTables(table_specs(features), tables, [f.name for f in features], device="meta")
    torch.manual_seed(0)
    dense = Ppnet(PpnetConfig.model_validate({}), features, OPTIONS.dim)
    model = RankerWithLoss(Ranker(sparse, dense), world_size=ranks.world_size)
    optimizers = OptimizersConfig()
    rules = {"t_*": {"sharding_types": ["row_wise"]}}
    sharding = ShardingConfig.model_validate(
        {"tables": rules, "comms": {"forward": way.comms, "backward": way.comms}}
    )
    plan = plan_on_ranks(
        model,
        ranks,
        sharding,
        batch_size=OPTIONS.batch // ranks.world_size,
        optimizer=optimizers.tables,
    )
    sharded = place_model(model, plan, ranks, optimizers.tables, std=tables.init_std, seed=0)
    updates = build_updates(sharded, optimizers, total_steps=10**6)
    if way.compiled:
        compile_dense(dense)
    return Arm(build_passes(way.pipeline, Trained(sharded, ranks)), updates)


def turn(arm: Arm, batches: list[RankingBatch], first: int) -> Speeds:
    """Train some steps, which ranks begin and end together."""
    chosen = (batches[(first + number) % len(batches)] for number in range(OPTIONS.steps))
    barrier()
    started, spent = time.perf_counter(), time.process_time()
    for _ in train_steps(arm.passes, arm.updates, chosen, steps_done=0):
        pass
    barrier()
    rows = OPTIONS.steps * OPTIONS.batch
    return Speeds(rows / (time.perf_counter() - started), rows / (time.process_time() - spent))


def main() -> None:
    """Run the contest and print its table on rank 0."""
    features = describe(OPTIONS)
    with process_group() as ranks:
        batches = make_batches(features, ranks)
        arms = {name: build_arm(features, ranks, way) for name, way in WAYS.items()}
        speeds: dict[str, list[Speeds]] = {name: [] for name in arms}
        for number in range(OPTIONS.turns + 1):
            for name, arm in arms.items():
                speed = turn(arm, batches, number * OPTIONS.steps)
                if number:
                    speeds[name].append(speed)
                else:  # one turn before does not count
                    arm.passes.trained.times.read()
        times = {name: arm.passes.trained.times.read() for name, arm in arms.items()}
        if ranks.is_main:
            tell(speeds, times, ranks)


def tell(speeds: dict[str, list[Speeds]], times: dict[str, dict[str, float]], ranks: Ranks) -> None:
    """Print the table, and write it where that is asked for."""
    print(
        f"{OPTIONS.users:,} users, {OPTIONS.items:,} items, dim {OPTIONS.dim}, batch {OPTIONS.batch:,}, "
        f"{ranks.world_size} ranks, {OPTIONS.turns} turns of {OPTIONS.steps} steps"
    )
    arms: dict[str, Any] = {}
    for name, turns in speeds.items():
        arms[name] = {"samples_per_s": spread([one.by_clock for one in turns])}
        for what in Speeds._fields:
            pairs = zip(turns, speeds["plain"], strict=True)
            arms[name][what] = spread([getattr(one, what) / getattr(plain, what) for one, plain in pairs])
        said = [
            f"{key} {one['mean']:,.2f} ({one['low']:,.2f} to {one['high']:,.2f})"
            for key, one in arms[name].items()
        ]
        print(f"{name:10}", "; ".join(said))
        print("          ", " ".join(f"{key} {value:.1f}" for key, value in times[name].items()))
    if OPTIONS.json:
        with open(OPTIONS.json, "w") as file:
            json.dump({"options": vars(OPTIONS), "ranks": ranks.world_size, "arms": arms}, file, indent=1)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and largest, as docs/results have them."""
    return {"mean": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    main()
