import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.jobs.ranking import rank_config, write_problem
from trec_semid.core.errors import TrainingError
from trec_semid.data.ranking.source import Asked
from trec_semid.embeddings.tables import initial_rows
from trec_semid.runtime.ranks import process_group
from trec_semid.sharding.apply import shard_model
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.training.finite import StepLosses
from trec_semid.training.optimizers import DenseOptimizerConfig, OptimizersConfig, build_updates, rate_factor
from trec_semid.training.passes import PlainPasses, Trained
from trec_semid.training.ranking.setup import build_model, read_inputs, table_specs
from trec_semid.training.steps import train_steps

STEPS = 6


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory):
    config = rank_config(write_problem(str(tmp_path_factory.mktemp("steps"))), "unused")
    inputs = read_inputs(config)
    return config, inputs, list(inputs.data.training(Asked(250), seed=0).batches())[:STEPS]


def by_hand(setting: Any, clip_norm: float | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The whole training in plain torch: embedding_bag, row-wise Adagrad written out, AdamW, mean loss."""
    config, inputs, batches = setting
    features = inputs.data.features
    dense = build_model(config, features, world_size=1).ranker.dense
    tables = {
        spec.name: initial_rows(spec.name, 8, 0, spec.num_rows, std=config.tables.init_std, seed=config.seed)
        for spec in table_specs(features)
    }
    sums = {name: torch.zeros(len(table)) for name, table in tables.items()}
    adamw = torch.optim.AdamW(dense.parameters(), lr=0.01, weight_decay=config.optimizers.dense.weight_decay)
    losses = []
    for batch in batches:
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        num_rows, at, columns = len(batch.labels), 0, []
        for number, feature in enumerate(features):
            lengths = batch.features.lengths[number * num_rows : (number + 1) * num_rows].long()
            ids = batch.features.values[at : at + int(lengths.sum())]
            at += len(ids)
            offsets = lengths.cumsum(0) - lengths
            columns.append(functional.embedding_bag(ids, leaves[feature.table], offsets, mode="mean"))
        loss = functional.binary_cross_entropy_with_logits(dense(torch.cat(columns, 1)), batch.labels)
        adamw.zero_grad()
        loss.backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(dense.parameters(), clip_norm)
        adamw.step()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            sums[name] += leaf.grad.pow(2).mean(1)
            tables[name] = tables[name] - 0.1 * leaf.grad / (sums[name].sqrt() + 1e-8)[:, None]
        losses.append(loss.item())
    return losses, tables


def by_the_loop(
    setting: Any,
    batches: Any = None,
    *,
    tables: Any = None,
    accumulate: int = 1,
    precision: torch.dtype = torch.float32,
    **changes: Any,
):
    config, inputs, own = setting
    with process_group() as ranks:
        model = build_model(config, inputs.data.features, world_size=1)
        optimizers = tables or config.optimizers.tables
        plan = plan_on_ranks(model, ranks, config.sharding, batch_size=250, optimizer=optimizers)
        sharded = shard_model(model, plan, ranks, optimizers)
        initialise_tables(sharded, std=config.tables.init_std, seed=config.seed)
        dense = config.optimizers.dense.model_copy(update=changes)
        updates = build_updates(sharded, OptimizersConfig(dense=dense, tables=optimizers), total_steps=100)
        passes = PlainPasses(Trained(sharded, ranks, precision=precision))
        reports = list(train_steps(passes, updates, batches or own, steps_done=3, accumulate=accumulate))
        weights = {
            name: value.local_shards()[0].tensor.clone() if hasattr(value, "local_shards") else value
            for name, value in sharded.state_dict().items()
        }
    return reports, weights


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_the_sharded_loop_equals_the_training_written_out_in_plain_torch(
    setting: Any, clip_norm: float | None
):
    losses, tables = by_hand(setting, clip_norm)
    reports, weights = by_the_loop(setting, clip_norm=clip_norm)
    assert [report.loss.item() for report in reports] == pytest.approx(losses, rel=1e-5)
    assert [report.step for report in reports] == [4, 5, 6, 7, 8, 9]
    for name, table in tables.items():
        found = weights[f"ranker.sparse.tables.embedding_bags.{name}.weight"]
        torch.testing.assert_close(found, table, rtol=1e-3, atol=2e-5)


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
def test_batches_of_a_step_add_up_to_one_of_their_rows(setting: Any):
    """Adam's tables are replicated, so that nothing is updated before the step's last batch."""
    _, inputs, batches = setting
    maker, adam = (
        inputs.data.maker_of(inputs.data.rows("train", "frozen")),
        SparseOptimizerConfig.model_validate({"kind": "adam"}),
    )
    # Parts of unlike size: the mean is over rows, not over batches.
    parts = [
        maker.make(rows, len(rows))
        for batch in batches
        for rows in np.split(batch.rows.numpy(), [len(batch.rows) // 4])
    ]
    whole, weights = by_the_loop(setting, tables=adam)
    split, found = by_the_loop(setting, parts, tables=adam, accumulate=2)
    losses = [[one.loss.item() for one in reports] for reports in (split, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert [(report.step, report.num_rows) for report in split] == [
        (report.step, report.num_rows) for report in whole
    ]
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=2e-5)


def test_lower_precision_trains_alike_and_leaves_weights_in_float32(setting: Any):
    whole, _ = by_the_loop(setting)
    lower, weights = by_the_loop(setting, precision=torch.bfloat16)
    losses = np.array([[one.loss.item() for one in reports] for reports in (whole, lower)])
    assert (losses[0] != losses[1]).any()
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert all(weight.dtype == torch.float32 for weight in weights.values() if weight.is_floating_point())


def test_a_loss_that_is_not_finite_is_named_by_its_step_when_losses_are_read(setting: Any):
    _, _, batches = setting
    broken = batches[1]._replace(labels=batches[1].labels.clone().fill_(math.nan))
    reports, _ = by_the_loop(setting, [batches[0], broken, batches[2]])
    losses = StepLosses()
    losses.add(reports[0])
    assert losses.read() == [(reports[0].loss.item(), 250)]
    assert losses.read() == []
    for report in reports[1:]:
        losses.add(report)
    with pytest.raises(TrainingError, match="step 5: the loss is nan"):
        losses.read()


def test_warm_up_grows_in_equal_steps_and_cosine_falls_to_zero():
    config = DenseOptimizerConfig(warmup_steps=4, schedule="cosine")
    factors = [rate_factor(step, config, 12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0)
    assert np.all(np.diff(factors[4:]) < 0)


def test_a_constant_rate_stays():
    assert [rate_factor(step, DenseOptimizerConfig(), 10) for step in (0, 5, 50)] == [1, 1, 1]
