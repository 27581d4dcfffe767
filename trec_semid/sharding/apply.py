"""A model and a plan become torchrec's DistributedModelParallel."""

import torch
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_in_backward,  # pyright: ignore[reportPrivateUsage]
)
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel

from trec_semid.core.errors import PlanError
from trec_semid.runtime.ranks import Ranks
from trec_semid.sharding.comms import build_codecs
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import TablePlan
from trec_semid.sharding.tables import find_tables, table_sharders, table_weights, without_library_warnings


def shard_model(
    model: nn.Module,
    plan: TablePlan,
    ranks: Ranks,
    optimizer: SparseOptimizerConfig,
    *,
    skips_parameters: bool = False,
) -> DistributedModelParallel:
    """Place the tables of a model as planned and replicate the rest.

    Gradients are averaged over ranks, those of tables as well as those of dense parameters, so a rank's
    loss has to be `world_size / global_batch_size * sum of its rows' losses` to train on the mean over the
    global batch. Row-wise exchange wants equally many rows on every rank: fill up with rows of zero weight.
    Sharded tables are updated inside backward; their weights come out newly drawn, whatever
    they were before. Replicated tables are not updated: see `replicated_tables`.

    Args:
        model: the unsharded model, tables on `meta` or on CPU; it is taken apart in place.
        plan: for as many ranks as there are.
        ranks: this process among its peers.
        optimizer: of the tables.
        skips_parameters: whether some steps leave dense parameters without a gradient.

    Raises:
        PlanError: the plan is for another number of ranks or for other tables, or its placement has no such
            optimizer.
    """
    _check_plan(model, plan, ranks)
    _check_optimizer(plan, optimizer)
    # A switch of the whole process: gradients of tables are then divided by the number of ranks, as those of
    # dense parameters are.
    set_gradient_division(True)
    for weight in table_weights(model).values():
        # One call each: the library changes the keyword arguments it is given.
        apply_in_backward(optimizer.torch_class, [weight], optimizer.arguments())
    codecs = build_codecs(plan.comms, plan.batch_size * ranks.world_size)
    with without_library_warnings():
        sharded = DistributedModelParallel(
            model,
            device=ranks.device,
            plan=plan.sharding_plan,
            sharders=table_sharders(codecs and codecs.registry),
            # A static graph may not leave out parameters in some steps; looking for unused ones costs time in
            # every step.
            data_parallel_wrapper=DefaultDataParallelWrapper(
                static_graph=not skips_parameters, find_unused_parameters=skips_parameters
            ),
        )
    if codecs:
        codecs.follow(sharded)
    return sharded


def shard_frozen(model: nn.Module, plan: TablePlan, ranks: Ranks) -> DistributedModelParallel:
    """Place tables that nothing trains: no optimizer state, and a rate of 0 should a gradient come by.

    Args:
        model: whose forward makes no gradient; tables on `meta` or on CPU.
        plan: for as many ranks as there are.
        ranks: this process among its peers.
    """
    _check_plan(model, plan, ranks)
    for weight in table_weights(model).values():
        apply_in_backward(torch.optim.SGD, [weight], {"lr": 0.0})
    with without_library_warnings():
        sharded = DistributedModelParallel(
            model, device=ranks.device, plan=plan.sharding_plan, sharders=table_sharders()
        )
    # The library moves what is not a table only where it wraps parameters, of which there are none.
    for module in sharded.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device.type != ranks.device.type:
                setattr(module, name, buffer.to(ranks.device))
    return sharded


def dense_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are no table, by name: what the dense optimizer is for."""
    tables = {table.key for table in find_tables(model)}
    return {name: weight for name, weight in model.named_parameters() if name not in tables}


def replicated_tables(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Return the tables placed data_parallel, whose in-backward optimizer torchrec drops silently."""
    tables = {table.key for table in find_tables(model)}
    return {
        name: weight
        for name, weight in model.named_parameters()
        if name in tables and not hasattr(weight, "_in_backward_optimizers")
    }


def replicated_table_optimizer(
    model: DistributedModelParallel, optimizer: SparseOptimizerConfig
) -> torch.optim.Optimizer | None:
    """Return an optimizer that updates replicated tables as the fused one would; None when there are none.

    Adam is the exception: here every row moves in every step, the fused one (GPU) moves rows that were read.

    It is stepped like any optimizer, after backward.
    """
    weights = list(replicated_tables(model).values())
    return optimizer.torch_class(weights, **optimizer.arguments()) if weights else None


def _check_plan(model: nn.Module, plan: TablePlan, ranks: Ranks) -> None:
    if plan.cluster.world_size != ranks.world_size:
        raise PlanError(
            f"the plan is for {plan.cluster.world_size} ranks and {ranks.world_size} are running "
            f"({get_local_size()} on this node). Plan again for this number of ranks."
        )
    have = {(table.name, table.rows, table.dim) for table in find_tables(model)}
    planned = {(table.name, table.rows, table.dim) for table in plan.tables}
    if have != planned:
        named = ", ".join(f"{name} ({rows:,} x {dim})" for name, rows, dim in sorted(have ^ planned)[:6])
        raise PlanError(f"plan and model do not have the same tables; they differ in: {named}. Plan again.")


def _check_optimizer(plan: TablePlan, optimizer: SparseOptimizerConfig) -> None:
    if not optimizer.is_replicated_only(plan.cluster.device):
        return
    others = [table.name for table in plan.tables if table.sharding_type != "data_parallel"]
    if others:
        raise PlanError(
            f"optimizers.tables.kind = '{optimizer.kind}' runs on CPU for data_parallel tables alone, and "
            f"'{others[0]}' is placed otherwise. Take its sharding rule away, or use adagrad."
        )
