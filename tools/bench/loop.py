"""A ranker step with the tokenizer in the loop beside the frozen step, and beside its own matrix products.

    .venv/bin/python tools/bench/loop.py [--codebook K] [--history N] [--recent N] [--batch N] [--dim D]
    .venv/bin/python tools/bench/loop.py --codebook 3000 --history 128 --batch 512 --threads 2

Frozen: the plain ranker over codes from the map. In the loop: content from its sharded half-precision
table, MMQ codes of every distinct item, the soft index over all K codes, reconstruction anchors. Floor:
the matrix products of the in-the-loop step alone, forward and backward, on numbers that lie ready. Items
are Zipf-like; every row has a full history. The three take turns; the table shows medians over turns, and
by how much resident memory grows in its turn at most, what it keeps from the first step included (Linux).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--items", type=int, default=50_000)
PARSER.add_argument("--users", type=int, default=100_000)
PARSER.add_argument("--content", type=int, default=256, help="width of each of the two modalities")
PARSER.add_argument("--codebook", type=int, default=100)
PARSER.add_argument("--dim", type=int, default=64, help="width of tables and of latents")
PARSER.add_argument("--history", type=int, default=20)
PARSER.add_argument("--recent", type=int, help="live history items of a row; all where not given")
PARSER.add_argument("--batch", type=int, default=1024)
PARSER.add_argument("--steps", type=int, default=2, help="steps in a turn")
PARSER.add_argument("--turns", type=int, default=5)
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(OPTIONS.threads)  # read when torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from resident import peak_mib, resident_mib, restart_peak  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from trec_semid.data.batches import RankingBatch  # noqa: E402
from trec_semid.data.features import Feature, Sources  # noqa: E402
from trec_semid.data.ragged import Ragged  # noqa: E402
from trec_semid.data.ranking.batch_maker import BatchMaker, DistinctItems  # noqa: E402
from trec_semid.data.ranking.rows import RankingRows  # noqa: E402
from trec_semid.embeddings.code_tables import CodeTable, CodeTables  # noqa: E402
from trec_semid.embeddings.collection import PooledTables  # noqa: E402
from trec_semid.embeddings.content_tables import ContentTables  # noqa: E402
from trec_semid.embeddings.tables import TablesConfig  # noqa: E402
from trec_semid.models.in_the_loop import (  # noqa: E402
    CODE_ROLES,
    FinetuneConfig,
    RankerInTheLoop,
    RankerInTheLoopWithLoss,
)
from trec_semid.models.live_codes import LiveCodes  # noqa: E402
from trec_semid.models.ranker import Ranker, RankerWithLoss  # noqa: E402
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig  # noqa: E402
from trec_semid.runtime.ranks import Ranks, process_group  # noqa: E402
from trec_semid.sharding.apply import shard_frozen, shard_model  # noqa: E402
from trec_semid.sharding.constraints import ShardingConfig, TableRule  # noqa: E402
from trec_semid.sharding.initialise import initialise_tables  # noqa: E402
from trec_semid.sharding.plan import plan_on_ranks  # noqa: E402
from trec_semid.tokenizers.inputs.contents import ItemContents, Standardised  # noqa: E402
from trec_semid.tokenizers.mmq_published import PublishedMmq as Mmq  # noqa: E402
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig as MmqConfig  # noqa: E402
from trec_semid.training.optimizers import OptimizersConfig, build_updates  # noqa: E402
from trec_semid.training.passes import Arguments, PlainPasses, Trained, plain_arguments  # noqa: E402
from trec_semid.training.placement import fill_content  # noqa: E402
from trec_semid.training.ranking.setup import table_specs  # noqa: E402
from trec_semid.training.steps import train_steps  # noqa: E402

POSITIONS = 6
RULES = ShardingConfig(tables={"t_*": TableRule(sharding_types=["table_wise"])})
Step = Callable[[int], Any]


def describe() -> tuple[Feature, ...]:
    """Return user, codes and pooled history codes."""
    rows = OPTIONS.codebook + 1
    return (
        Feature("user_id", "user", "t_user_id", OPTIONS.users),
        *(Feature(f"item_code_{r}", "item_code", f"t_code_{r}", rows, r) for r in range(POSITIONS)),
        *(Feature(f"history_code_{r}", "history_code", f"t_code_{r}", rows, r) for r in range(POSITIONS)),
    )


def make_batches(features: tuple[Feature, ...], codes: np.ndarray, *, live: bool) -> list[RankingBatch]:
    """Draw a few batches; the same rows for both contestants."""
    rng = np.random.default_rng(0)
    num_rows = 4 * OPTIONS.batch
    events = (OPTIONS.items * rng.random(max(4 * num_rows, 100_000)) ** 3).astype(np.int64)
    starts = rng.integers(0, len(events) - OPTIONS.history, num_rows)
    rows = RankingRows(
        rng.integers(0, OPTIONS.users, num_rows),
        (OPTIONS.items * rng.random(num_rows) ** 3).astype(np.int64),
        (rng.random(num_rows) < 0.3).astype(np.float32),
        Ragged(starts, np.full(num_rows, OPTIONS.history), events),
    )
    distinct = DistinctItems(OPTIONS.recent) if live else None
    maker = BatchMaker(rows, features, Sources({}, codes), distinct_items=distinct)
    return [
        maker.make(np.arange(start, start + OPTIONS.batch), OPTIONS.batch)
        for start in range(0, num_rows, OPTIONS.batch)
    ]


def build_tokenizer(catalogue: ItemContents) -> Mmq:
    """Return MMQ with random weights, which cost what learnt ones do."""
    torch.manual_seed(1)
    config = MmqConfig(codebook_size=OPTIONS.codebook, latent_dim=OPTIONS.dim)
    tokenizer = Mmq(config, catalogue.dims)
    tokenizer.standardiser.fit(catalogue, np.arange(min(catalogue.num_items, 10_000)))
    return tokenizer


def stepper(model: Any, updates: Any, batches: list[RankingBatch], ranks: Ranks, arguments: Any) -> Step:
    """Return a function that trains on batch number n."""
    passes = PlainPasses(Trained(model, ranks, arguments))

    def step(number: int) -> None:
        batch = batches[number % len(batches)]
        next(train_steps(passes, updates, [batch], steps_done=0))

    return step


def frozen_step(features: tuple[Feature, ...], codes: np.ndarray, ranks: Ranks) -> Step:
    """Return the plain ranker's step."""
    tables, optimizers = TablesConfig.model_validate({"dim": OPTIONS.dim}), OptimizersConfig()
    sparse = PooledTables(table_specs(features), tables, [f.name for f in features], device="meta")
    torch.manual_seed(0)
    dense = Ppnet(PpnetConfig.model_validate({}), features, OPTIONS.dim)
    model = RankerWithLoss(Ranker(sparse, dense), world_size=1)
    plan = plan_on_ranks(model, ranks, RULES, batch_size=OPTIONS.batch, optimizer=optimizers.tables)
    sharded = shard_model(model, plan, ranks, optimizers.tables)
    initialise_tables(sharded, std=tables.init_std, seed=0)
    updates = build_updates(sharded, optimizers, total_steps=10**6)
    return stepper(sharded, updates, make_batches(features, codes, live=False), ranks, plain_arguments)


def loop_step(
    features: tuple[Feature, ...], codes: np.ndarray, catalogue: ItemContents, tokenizer: Mmq, ranks: Ranks
) -> tuple[Step, list[RankingBatch]]:
    """Return the step with everything in the loop, and its batches."""
    tables, optimizers = TablesConfig.model_validate({"dim": OPTIONS.dim}), OptimizersConfig()
    pooled = tuple(feature for feature in features if feature.role not in CODE_ROLES)
    sparse = PooledTables(table_specs(pooled), tables, [f.name for f in pooled], device="meta")
    code_tables = [CodeTable(f"t_code_{r}", OPTIONS.codebook + 1) for r in range(POSITIONS)]
    torch.manual_seed(0)
    live = LiveCodes(
        CodeTables(code_tables, OPTIONS.dim, device="meta"), torch.from_numpy(codes).short(), tokenizer
    )
    dense = Ppnet(PpnetConfig.model_validate({}), features, OPTIONS.dim)
    ranker = RankerInTheLoop(sparse, live, dense, features)
    model = RankerInTheLoopWithLoss(ranker, FinetuneConfig.model_validate({}), world_size=1)
    plan = plan_on_ranks(model, ranks, RULES, batch_size=OPTIONS.batch, optimizer=optimizers.tables)
    sharded = shard_model(model, plan, ranks, optimizers.tables, skips_parameters=True)
    initialise_tables(sharded, std=tables.init_std, seed=0)
    updates = build_updates(sharded, optimizers, total_steps=10**6, own_rates={"tokenizer": 1e-4})
    content: nn.Module = ContentTables(catalogue.dims, catalogue.num_items, device="meta")
    where = plan_on_ranks(content, ranks, RULES, batch_size=OPTIONS.batch, optimizer=optimizers.tables)
    content = shard_frozen(content, where, ranks)
    fill_content(content, catalogue, tokenizer.standardiser)

    def arguments(batch: RankingBatch, step: int) -> Arguments:
        plain = plain_arguments(batch, step)
        assert batch.items is not None
        return Arguments((*plain.positional, Standardised(*content(batch.items.rows))), {})

    batches = make_batches(features, codes, live=True)
    return stepper(sharded, updates, batches, ranks, arguments), batches


def floor_step(features: tuple[Feature, ...], tokenizer: Mmq, batches: list[RankingBatch]) -> Step:
    """Return the matrix products of the in-the-loop step: forward, and both gradients of each."""
    dense = Ppnet(PpnetConfig.model_validate({}), features, OPTIONS.dim)
    of_batch = [_products_of(dense, tokenizer, batch) for batch in batches]

    def step(number: int) -> None:
        with torch.no_grad():
            for left, right in of_batch[number % len(batches)]:
                torch.matmul(left, right)

    return step


def _products_of(dense: nn.Module, tokenizer: Mmq, batch: RankingBatch) -> list[tuple[Tensor, Tensor]]:
    """Return the factors of every matrix product of a step; chunks of the soft index share theirs."""
    items = batch.items
    assert items is not None
    num_items = len(items.rows)
    # Every live item looks up rows of the code tables; targets look up codewords as well, for the anchors.
    found = [pair for count in (num_items, items.num_targets) for pair in _lookup_products(count)]
    sized = [(w, batch.labels.shape[0]) for w in dense.parameters()]
    for name, weight in tokenizer.named_parameters():
        sized += [(weight, items.num_targets if "decoder" in name else num_items)] * (name != "codebooks")
    for weight, count in sized:
        if weight.dim() >= 2:  # y = x W, dx = dy W^T, dW = x^T dy
            of = weight.detach()
            x, y = (torch.randn(*of.shape[:-2], count, width) for width in of.shape[-2:])
            found += [(x, of), (y, of.mT), (x.mT, y)]
    return found


def _lookup_products(count: int, at_once: int = 512) -> list[tuple[Tensor, Tensor]]:
    """Return the factors of a soft lookup of so many items: scores, scores again, and three gradients."""
    keys, values = (torch.randn(POSITIONS, OPTIONS.codebook, OPTIONS.dim) for _ in range(2))
    found: list[tuple[Tensor, Tensor]] = []
    for rows, times in ((at_once, count // at_once), (count % at_once, 1)):
        queries, grad = (torch.randn(POSITIONS, rows, OPTIONS.dim) for _ in range(2))
        scores = torch.randn(POSITIONS, rows, OPTIONS.codebook)
        products = [(queries, keys.mT)] * 2 + [(grad, values.mT), (scores, keys), (scores.mT, queries)]
        found += products * (times if rows else 0)
    return found


def take_turns(steps: dict[str, Step]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return seconds a step of each contestant's turns, and its peak [MiB]; the first turn is not timed."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0.0)
    for turn in range(OPTIONS.turns + 1):
        for name, step in steps.items():
            restart_peak()
            before = resident_mib()
            started = time.perf_counter()
            for number in range(OPTIONS.steps):
                step(turn * OPTIONS.steps + number)
            spent[name] += [(time.perf_counter() - started) / OPTIONS.steps] if turn else []
            peaks[name] = max(peaks[name], peak_mib() - before)
    return spent, peaks


def main() -> None:
    """Run the contest and print its table."""
    rng = np.random.default_rng(0)
    vectors = {
        name: rng.normal(size=(OPTIONS.items, OPTIONS.content)).astype(np.float16)
        for name in ("text", "vision")
    }
    catalogue = ItemContents(vectors, {name: np.ones(OPTIONS.items, bool) for name in vectors})
    codes = rng.integers(0, OPTIONS.codebook, (OPTIONS.items, POSITIONS), np.int32)
    features, tokenizer = describe(), build_tokenizer(catalogue)
    with process_group() as ranks:
        live, batches = loop_step(features, codes, catalogue, tokenizer, ranks)
        steps = {
            "frozen": frozen_step(features, codes, ranks),
            "in the loop": live,
            "matrix products": floor_step(features, tokenizer, batches),
        }
        spent, peaks = take_turns(steps)
    items, recent = batches[0].items, "all" if OPTIONS.recent is None else OPTIONS.recent
    assert items is not None
    distinct = len(items.rows)
    print(
        f"codebook {OPTIONS.codebook:,}, {POSITIONS} codes, width {OPTIONS.dim}, history {OPTIONS.history} "
        f"({recent} live), batch {OPTIONS.batch:,}: {distinct:,} distinct live items, "
        f"{items.num_targets:,} targets; {OPTIONS.threads} threads, {OPTIONS.turns} turns of "
        f"{OPTIONS.steps} steps"
    )
    for name, seconds in spent.items():
        span = f"({min(seconds) * 1e3:,.0f} to {max(seconds) * 1e3:,.0f})"
        middle = statistics.median(seconds) * 1e3
        print(f"{name:<18} {middle:9,.0f} ms a step   {span}   peak +{peaks[name]:,.0f} MiB")
    for other in ("frozen", "matrix products"):
        ratios = [a / b for a, b in zip(spent["in the loop"], spent[other], strict=True)]
        span = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"in the loop / {other:<15} {statistics.median(ratios):.2f}   {span}")
    if OPTIONS.json:
        with open(OPTIONS.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(OPTIONS), "seconds": spent, "peak_mib": peaks}, file, indent=1)


if __name__ == "__main__":
    main()
