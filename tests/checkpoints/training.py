"""A short training whose every source of state a checkpoint has to hold: tables, AdamW, rate, dropout."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from tests.sharding.models import BAGS, TinyModel, global_batch, my_part
from trec_semid.checkpoints.placements import FUSED, REPLICATED
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable, named_tensors
from trec_semid.runtime.ranks import Ranks
from trec_semid.sharding.apply import dense_parameters, replicated_table_optimizer, shard_model
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.sharding.tables import find_tables, table_shards

OPTIMIZER = SparseOptimizerConfig(learning_rate=0.1)


class Setup(NamedTuple):
    trainable: Trainable
    schedule: LambdaLR


def set_up(
    ranks: Ranks,
    *,
    bags: str = "row_wise",
    codes: str = "table_wise",
    seed: int = 1,
    optimizer: SparseOptimizerConfig = OPTIMIZER,
) -> Setup:
    rules = ShardingConfig.model_validate(
        {
            "tables": {
                "t_[ui]*": {"sharding_types": [bags], "min_column_dim": 8},
                "t_code": {"sharding_types": [codes]},
            }
        }
    )
    model = TinyModel()
    plan = plan_on_ranks(model, ranks, rules, batch_size=5, optimizer=optimizer)
    sharded = shard_model(model, plan, ranks, optimizer)
    initialise_tables(sharded, std=0.3, seed=seed)
    dense = torch.optim.AdamW(list(dense_parameters(sharded).values()), lr=0.05, weight_decay=0.1, fused=True)
    schedule = LambdaLR(dense, lambda step: 0.8**step)
    optimizers: dict[str, Any] = {FUSED: sharded.fused_optimizer, "dense": dense}
    if replicated := replicated_table_optimizer(sharded, optimizer):
        optimizers[REPLICATED] = replicated
    return Setup(Trainable(sharded, optimizers), schedule)


def train(setup: Setup, ranks: Ranks, start: int, stop: int, *, dropout: float = 0.3) -> list[float]:
    losses: list[float] = []
    model = setup.trainable.model
    # The fused optimizer has updated its tables inside backward.
    stepped = [one for name, one in setup.trainable.optimizers.items() if name != FUSED]
    for step in range(start, stop):
        batch = global_batch(step)
        mine, weights = my_part(batch, ranks.rank, ranks.world_size)
        logits = functional.dropout(model(mine.keyed_jagged(BAGS), mine.keyed_jagged(("code",))), dropout)
        total = functional.binary_cross_entropy_with_logits(logits, mine.labels, weights, reduction="sum")
        loss = total * ranks.world_size / len(batch.labels)
        for optimizer in stepped:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in stepped:
            optimizer.step()
        setup.schedule.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(whole.item())
    return losses


def contents(setup: Setup) -> dict[str, Any]:
    """This rank's parts of every table, the dense weights, and the rate of the moment."""
    model = setup.trainable.model
    weights = model.state_dict()
    return {
        "tables": {
            table.name: [(r, c, part.numpy().copy()) for r, c, part in table_shards(weights[table.key])]
            for table in find_tables(model)
        },
        "dense": torch.cat([p.detach().flatten() for p in dense_parameters(model).values()]).numpy().copy(),
        "rate": setup.trainable.optimizers["dense"].param_groups[0]["lr"],
    }


def save_checkpoint(folder: str, step: int, trainable: Trainable, **more: Any) -> None:
    """Save one step and return when it is complete."""
    CheckpointWriter(folder).save(step, trainable, **{"loop": {}, **more})


def small(width: int = 4, *, steps: int = 0, seed: int = 0) -> Trainable:
    """Return an unsharded model and its optimizer after a few steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return Trainable(model, {"dense": optimizer})


def assert_same(left: Trainable, right: Trainable) -> None:
    """Compare every tensor of two trainables, bit for bit."""
    one, other = named_tensors(left), named_tensors(right)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)
