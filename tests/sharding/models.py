"""A small model with every kind of table, its batches, and its hand-written unsharded twin."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trec_semid.embeddings.tables import initial_rows
from trec_semid.sharding.optimizer import SparseOptimizerConfig

DIM = 16
ROWS = {"t_user": 37, "t_item": 53, "t_code": 11}
FEATURES = {"t_user": ("user",), "t_item": ("item", "history"), "t_code": ("code",)}
BAGS = ("user", "item", "history")
STEPS = 3


class TinyModel(nn.Module):
    """Pooled tables for user, item and history, a sequence table for codes, and a linear layer."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        bags = [
            EmbeddingBagConfig(
                name=name,
                num_embeddings=ROWS[name],
                embedding_dim=DIM,
                feature_names=list(FEATURES[name]),
                pooling=PoolingType.MEAN if name == "t_item" else PoolingType.SUM,
            )
            for name in ("t_user", "t_item")
        ]
        codes = EmbeddingConfig(
            name="t_code", num_embeddings=ROWS["t_code"], embedding_dim=DIM, feature_names=["code"]
        )
        self.bags = EmbeddingBagCollection(bags, device=torch.device(device))
        self.codes = EmbeddingCollection([codes], device=torch.device(device))
        self.out = nn.Linear(4 * DIM, 1)
        with torch.no_grad():
            self.out.weight.copy_(torch.linspace(-1, 1, 4 * DIM)[None])
            self.out.bias.fill_(0.1)

    def forward(self, bags: KeyedJaggedTensor, codes: KeyedJaggedTensor) -> Tensor:
        pooled = self.bags(bags)
        sequence = self.codes(codes)
        pooled = pooled.wait() if hasattr(pooled, "wait") else pooled
        sequence = sequence.wait() if hasattr(sequence, "wait") else sequence
        parts = [pooled[feature] for feature in BAGS] + [sequence["code"].values()]
        return self.out(torch.cat(parts, 1)).squeeze(1)


class Rows(NamedTuple):
    """One global batch: ids per row and feature, and labels."""

    ids: dict[str, list[list[int]]]
    labels: Tensor

    def keyed_jagged(self, features: tuple[str, ...]) -> KeyedJaggedTensor:
        lists = [row for feature in features for row in self.ids[feature]]
        return KeyedJaggedTensor(
            keys=list(features),
            values=torch.tensor([i for row in lists for i in row], dtype=torch.int64),
            lengths=torch.tensor([len(row) for row in lists], dtype=torch.int32),
        )


def global_batch(step: int, num_rows: int = 9) -> Rows:
    """Rows with the same ids several times, across rows and inside one history; some histories empty."""
    draw = torch.Generator().manual_seed(step)

    def ids(limit: int, count: int) -> list[int]:
        return torch.randint(limit, (count,), generator=draw).tolist()

    histories = [ids(6, row % 4) for row in range(num_rows)]
    return Rows(
        {
            "user": [ids(5, 1) for _ in range(num_rows)],
            "item": [ids(53, 1) for _ in range(num_rows)],
            "history": [[0, 0, *history] if row == 1 else history for row, history in enumerate(histories)],
            "code": [ids(11, 1) for _ in range(num_rows)],
        },
        torch.randint(2, (num_rows,), generator=draw).float(),
    )


class Part(NamedTuple):
    """One rank's rows, as many as on every other rank: zero weight marks those that only fill up."""

    rows: Rows
    weights: Tensor


def my_part(batch: Rows, rank: int, world_size: int) -> Part:
    """Real rows spread unequally, so an average of the ranks' averages would be wrong."""
    size = -(-len(batch.labels) // world_size)
    mine = list(range(rank * size, min((rank + 1) * size, len(batch.labels))))
    filled = mine + [0] * (size - len(mine))
    rows = Rows({name: [lists[i] for i in filled] for name, lists in batch.ids.items()}, batch.labels[filled])
    return Part(rows, torch.tensor([1.0] * len(mine) + [0.0] * (size - len(mine))))


class Trained(NamedTuple):
    """What training leaves: losses before each update, tables, dense weights."""

    losses: list[float]
    tables: dict[str, Tensor]
    dense: Tensor


def train_by_hand(optimizer: SparseOptimizerConfig, *, std: float, seed: int, steps: int = STEPS) -> Trained:
    """The whole training on plain tensors, without torchrec: dense gradients, update rules written out."""
    tables = {name: initial_rows(name, DIM, 0, rows, std=std, seed=seed) for name, rows in ROWS.items()}
    state = {name: torch.zeros_like(weight) for name, weight in tables.items()}
    weight, bias = torch.linspace(-1, 1, 4 * DIM)[None], torch.tensor([0.1])
    losses: list[float] = []
    for step in range(steps):
        batch = global_batch(step)
        leaves = [value.clone().requires_grad_() for value in (*tables.values(), weight, bias)]
        inputs = dict(zip(tables, leaves, strict=False))
        columns = [
            torch.stack([inputs["t_user"][ids].sum(0) for ids in batch.ids["user"]]),
            torch.stack([_mean(inputs["t_item"], ids) for ids in batch.ids["item"]]),
            torch.stack([_mean(inputs["t_item"], ids) for ids in batch.ids["history"]]),
            torch.stack([inputs["t_code"][ids][0] for ids in batch.ids["code"]]),
        ]
        logits = torch.cat(columns, 1) @ leaves[-2].T + leaves[-1]
        loss = functional.binary_cross_entropy_with_logits(logits.squeeze(1), batch.labels)
        loss.backward()
        losses.append(loss.item())
        for name, leaf in inputs.items():
            assert leaf.grad is not None
            tables[name] = _updated(tables[name], leaf.grad, state[name], optimizer)
        weight = weight - 0.5 * leaves[-2].grad
        bias = bias - 0.5 * leaves[-1].grad
    return Trained(losses, tables, torch.cat([weight[0], bias]))


def _mean(table: Tensor, ids: list[int]) -> Tensor:
    return table[ids].mean(0) if ids else torch.zeros(DIM)


def _updated(weight: Tensor, grad: Tensor, state: Tensor, optimizer: SparseOptimizerConfig) -> Tensor:
    rate = optimizer.learning_rate
    if optimizer.kind == "sgd":
        return weight - rate * grad
    state += (grad**2).mean(1, keepdim=True) if optimizer.kind == "row_wise_adagrad" else grad**2
    return weight - rate * grad / (state.sqrt() + optimizer.eps)
