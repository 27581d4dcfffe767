import torch

from trec_semid.embeddings.collection import PooledTables, keyed_jagged
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.models.ranker import DenseRanker, Ranker, RankerWithLoss


class SumOfColumns(DenseRanker):
    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        return embedded.sum(1)


def ranker(world_size: int) -> RankerWithLoss:
    torch.manual_seed(0)
    tables = PooledTables([TableSpec("t_a", 5, ("a",))], TablesConfig(dim=4), ["a"])
    return RankerWithLoss(Ranker(tables, SumOfColumns()), world_size=world_size)


def ids(*rows: int):
    return keyed_jagged(["a"], torch.tensor(rows), torch.ones(len(rows), dtype=torch.int32))


LABELS = torch.tensor([1.0, 0.0, 1.0])


def test_the_loss_is_the_mean_cross_entropy():
    model = ranker(1)
    output = model(ids(1, 2, 4), LABELS, torch.ones(3), 3)
    probability = torch.sigmoid(output.logits)
    expected = -(LABELS * probability.log() + (1 - LABELS) * (1 - probability).log()).mean()
    torch.testing.assert_close(output.loss, expected)
    assert not output.logits.requires_grad


def test_the_mean_over_ranks_is_the_mean_over_the_global_batch_when_parts_differ_in_size():
    whole = ranker(1)(ids(1, 2, 4), LABELS, torch.ones(3), 3).loss
    model = ranker(2)
    first = model(ids(1, 2), LABELS[:2], torch.ones(2), 3).loss
    second = model(ids(4, 0), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), 3).loss
    torch.testing.assert_close((first + second) / 2, whole)
