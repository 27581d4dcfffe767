import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.loop_problem import (
    CODES,
    DIM,
    NUM_ITEMS,
    Part,
    build,
    catalogue,
    content_of,
    features,
    global_batch,
    my_part,
    scored_by_hand,
    tokenizer,
)
from tests.ranks import run_ranks
from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.content_tables import ContentTables
from trec_semid.embeddings.tables import TablesConfig, TableSpec, initial_rows
from trec_semid.models.in_the_loop import RankerInTheLoopWithLoss
from trec_semid.models.ranker import Ranker
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.sharding.apply import dense_parameters, replicated_table_optimizer, shard_frozen, shard_model
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.optimizer import SparseOptimizerConfig
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.sharding.tables import find_tables, table_shards
from trec_semid.tokenizers.inputs.contents import Standardised
from trec_semid.training.finite import means_over_ranks
from trec_semid.training.placement import fill_content

STD, SEED, RATE, STEPS = 0.3, 5, 0.2, 3
ADAGRAD = SparseOptimizerConfig(kind="row_wise_adagrad", learning_rate=0.1)
PLANS = ("row_wise", "table_wise", "column_wise")


def table_rows() -> dict[str, int]:
    return {table.name: table.rows for table in find_tables(build())}


def keyed(part: Part):
    return keyed_jagged(
        list(part.ids),
        torch.cat([values for values, _ in part.ids.values()]),
        torch.cat([lengths for _, lengths in part.ids.values()]).int(),
    )


def with_weights(model: RankerInTheLoopWithLoss) -> RankerInTheLoopWithLoss:
    weights = dict(model.named_parameters())
    for table in find_tables(model):
        with torch.no_grad():
            weights[table.key].copy_(initial_rows(table.name, DIM, 0, table.rows, std=STD, seed=SEED))
    return model


def optimizer_of(plan: str) -> SparseOptimizerConfig:
    # Row-wise Adagrad under column-wise placement is another optimizer: plain SGD has no state to differ in.
    return SparseOptimizerConfig(kind="sgd", learning_rate=0.1) if plan == "column_wise" else ADAGRAD


def train_by_hand(optimizer: SparseOptimizerConfig) -> dict[str, Any]:
    """Three steps, all on plain tensors: dense gradients, update rules written out."""
    model = build("cpu").ranker
    trained = [*model.live.tokenizer.parameters(), *model.dense.parameters()]
    tables = {
        name: initial_rows(name, DIM, 0, rows, std=STD, seed=SEED) for name, rows in table_rows().items()
    }
    state = {name: torch.zeros(len(weight), 1) for name, weight in tables.items()}
    losses, gradients = [], {}
    for step in range(STEPS):
        leaves = {name: weight.clone().requires_grad_() for name, weight in tables.items()}
        loss, _ = scored_by_hand(leaves, model.live.tokenizer, model.dense, global_batch(step))
        for parameter in trained:
            parameter.grad = None
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {
                name: weight.grad.clone()
                for name, weight in model.live.tokenizer.named_parameters()
                if weight.grad is not None
            }
        for name, leaf in leaves.items():
            grad = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
            if optimizer.kind == "row_wise_adagrad":
                state[name] += grad.square().mean(1, keepdim=True)
                grad = grad / (state[name].sqrt() + optimizer.eps)
            tables[name] = tables[name] - optimizer.learning_rate * grad
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.sub_(RATE * parameter.grad)
    return {"losses": losses, "tables": tables, "gradients": gradients, "trained": trained}


def train_sharded(ranks: Ranks, placed: str) -> dict[str, Any]:
    optimizer = optimizer_of(placed)
    rules = ShardingConfig.model_validate(
        {"tables": {"t_*": {"sharding_types": [placed], "min_column_dim": 4}}}
    )
    model = build(world_size=ranks.world_size)
    plan = plan_on_ranks(model, ranks, rules, batch_size=5, optimizer=optimizer)
    sharded = shard_model(model, plan, ranks, optimizer, skips_parameters=True)
    initialise_tables(sharded, std=STD, seed=SEED)
    items = catalogue()
    content = ContentTables(items.dims, items.num_items, device="meta")
    content_plan = plan_on_ranks(content, ranks, rules, batch_size=5, optimizer=optimizer)
    content = shard_frozen(content, content_plan, ranks)
    fill_content(content, items, tokenizer().standardiser)
    before = checksum(content)
    dense = torch.optim.SGD(list(dense_parameters(sharded).values()), lr=RATE)
    replicas = replicated_table_optimizer(sharded, optimizer)
    losses: list[float] = []
    gradients: dict[str, Any] = {}
    for step in range(-1, STEPS):
        # The step before the first is one of the warm-up: no content, and the weights are put back after it.
        batch = global_batch(max(step, 0))
        part = my_part(batch, ranks.rank, ranks.world_size)
        contents = Standardised(*content(part.items.rows)) if step >= 0 else None
        output = sharded(keyed(part), part.labels, part.weights, len(batch.labels), part.items, contents)
        sharded.zero_grad(set_to_none=True)
        if step < 0:
            (output.loss * 0.0).backward()
            continue
        output.loss.backward()
        if step == 0:
            gradients = {
                name.partition("tokenizer.")[2]: weight.grad.numpy().copy()
                for name, weight in sharded.named_parameters()
                if "tokenizer." in name and weight.grad is not None
            }
        dense.step()
        if replicas:
            replicas.step()
        losses.append(means_over_ranks(output.loss.detach().reshape(1))[0])
    weights = sharded.state_dict()
    facts = {
        "losses": losses,
        "gradients": gradients,
        "tables": {
            table.name: [
                (row, column, part.numpy().copy()) for row, column, part in table_shards(weights[table.key])
            ]
            for table in find_tables(sharded)
        },
        "dense": {name: p.detach().numpy().copy() for name, p in dense_parameters(sharded).items()},
    }
    if ranks.world_size == 2:
        keep_training(sharded, content, dense, ranks, steps=100 if placed == PLANS[0] else 10)
    return {**facts, "content": (before, checksum(content))}


def keep_training(
    sharded: torch.nn.Module,
    content: torch.nn.Module,
    dense: torch.optim.Optimizer,
    ranks: Ranks,
    *,
    steps: int,
) -> None:
    """Go on for many steps: what nothing trains has to stand for longer than three."""
    batch = global_batch(0)
    part = my_part(batch, ranks.rank, ranks.world_size)
    for _ in range(steps):
        contents = Standardised(*content(part.items.rows))
        output = sharded(keyed(part), part.labels, part.weights, len(batch.labels), part.items, contents)
        sharded.zero_grad(set_to_none=True)
        output.loss.backward()
        dense.step()


def checksum(content: torch.nn.Module) -> list[str]:
    weights = content.state_dict()
    parts = [part for table in find_tables(content) for _, _, part in table_shards(weights[table.key])]
    return [hashlib.sha256(part.contiguous().numpy().tobytes()).hexdigest() for part in parts]


def everything() -> dict[str, Any]:
    with process_group() as ranks:
        return {placed: train_sharded(ranks, placed) for placed in PLANS}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(everything, 2)


@pytest.fixture(scope="module")
def four_ranks() -> list[dict[str, Any]]:
    return run_ranks(everything, 4)


@pytest.fixture(scope="module")
def one_rank() -> list[dict[str, Any]]:
    return [everything()]


@pytest.mark.ranks
@pytest.mark.parametrize("placed", PLANS)
@pytest.mark.parametrize("world", ["one_rank", "two_ranks", "four_ranks"])
def test_loss_tokenizer_gradient_and_table_updates_equal_the_dense_reference(
    placed: str, world: str, request: pytest.FixtureRequest
):
    ranks: list[dict[str, Any]] = request.getfixturevalue(world)
    wanted = train_by_hand(optimizer_of(placed))
    for facts in (one[placed] for one in ranks):
        np.testing.assert_allclose(facts["losses"], wanted["losses"], atol=1e-6, rtol=0)
        assert set(facts["gradients"]) == set(wanted["gradients"])
        for name, gradient in wanted["gradients"].items():
            np.testing.assert_allclose(facts["gradients"][name], gradient.numpy(), atol=1e-6, rtol=0)
            assert gradient.abs().max() > 0
    for name, table in wanted["tables"].items():
        whole = np.full(table.shape, np.nan, np.float32)
        for facts in (one[placed] for one in ranks):
            for row, column, part in facts["tables"][name]:
                whole[row : row + part.shape[0], column : column + part.shape[1]] = part
        np.testing.assert_allclose(whole, table.numpy(), atol=2e-6, rtol=0)


@pytest.mark.ranks
@pytest.mark.parametrize("placed", PLANS)
def test_nothing_trains_the_content(placed: str, two_ranks: list[dict[str, Any]]):
    for facts in (one[placed] for one in two_ranks):
        before, after = facts["content"]
        assert before == after
    digests = [digest for one in two_ranks for digest in one[placed]["content"][0]]
    assert len(set(digests)) > 1


def test_with_the_codes_of_the_map_it_is_the_plain_ranker():
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, CODES + 1, (NUM_ITEMS, 5)).astype(np.int16))
    model = with_weights(build("cpu", codes=codes))
    described = features(5)
    names = dict.fromkeys(feature.table for feature in described)
    specs = [
        TableSpec(name, rows, tuple(f.name for f in described if f.table == name))
        for name, rows in ((name, table_rows()[name]) for name in names)
    ]
    plain = Ranker(
        PooledTables(specs, TablesConfig(dim=DIM), [f.name for f in described]), model.ranker.dense
    )
    with torch.no_grad():
        for table, weight in ((t, dict(plain.named_parameters())[t.key]) for t in find_tables(plain)):
            weight.copy_(initial_rows(table.name, DIM, 0, table.rows, std=STD, seed=SEED))
    for num_recent in (0, 2, None):
        batch = global_batch(0)
        part = my_part(batch, 0, 1, num_recent=num_recent)
        ids = dict(part.ids)
        for r in range(5):
            target, history = part.ids["item_id"], part.ids["history_item"]
            ids[f"item_code_{r}"] = (codes[target[0], r].long(), target[1])
            ids[f"history_code_{r}"] = (codes[history[0], r].long(), history[1])
        expected = plain(keyed(part._replace(ids=ids)))
        logits = model(keyed(part), part.labels, part.weights, 9, part.items).logits
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
        assert logits.std() > 1e-3


def test_older_history_reads_the_map_and_recent_history_the_content():
    model = with_weights(build("cpu"))
    batch = global_batch(0)
    whole = my_part(batch, 0, 1)
    contents = contents_of(whole)
    live = model(keyed(whole), whole.labels, whole.weights, 9, whole.items, contents)
    # A map that agrees with the live codes makes the split into recent and older irrelevant.
    with torch.no_grad():
        model.ranker.live.codes[whole.items.rows] = live.codes.short()
    part = my_part(batch, 0, 1, num_recent=1)
    assert len(part.items.older)
    contents = contents_of(part)
    split = model(keyed(part), part.labels, part.weights, 9, part.items, contents)
    torch.testing.assert_close(split.logits, live.logits)
    # A map that disagrees does not reach targets and recent history, but older history it does.
    with torch.no_grad():
        model.ranker.live.codes.fill_(0)
    torch.testing.assert_close(
        model(keyed(whole), whole.labels, whole.weights, 9, whole.items, contents_of(whole)).logits,
        live.logits,
    )
    assert not torch.allclose(
        model(keyed(part), part.labels, part.weights, 9, part.items, contents).logits, live.logits
    )


def contents_of(part: Part) -> Standardised:
    return content_of(part.items.rows.numpy())


def test_items_without_a_modality_get_its_missing_code():
    model = with_weights(build("cpu"))
    part = my_part(global_batch(0), 0, 1)
    output = model(keyed(part), part.labels, part.weights, 9, part.items, contents_of(part))
    missing = ~torch.from_numpy(catalogue().present["vision"][part.items.rows.numpy()])
    assert missing.any()
    assert torch.equal(output.codes[:, 3:] == CODES, missing.unsqueeze(1).expand(-1, 2))
    assert (output.codes[:, :3] < CODES).all()
