"""Scores of a split's rows, and metrics of them over all ranks."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from trec_semid.core.arrays import Array
from trec_semid.data.ranking.loader import BatchMaker, evaluation_batches
from trec_semid.evaluation.ranking import Named, RankAccumulator
from trec_semid.runtime.ranks import Ranks, leave_if_asked
from trec_semid.training.steps import plain_arguments


class Scored(NamedTuple):
    """Some rows of this rank. n rows."""

    rows: Array
    """(n,) int64: positions in the split."""
    scores: Array
    """(n,) float32: probability of label 1."""


def predict(model: nn.Module, maker: BatchMaker, *, batch_size: int, ranks: Ranks) -> Iterator[Scored]:
    """Yield the scores of this rank's part of a split; all ranks run it to the end.

    Args:
        model: a `RankerWithLoss`, sharded or not.
        maker: gives the split and the protocol of its histories.
        batch_size: rows of a global batch.
        ranks: this process among its peers.
    """
    model.eval()
    batches = evaluation_batches(maker, batch_size=batch_size, rank=ranks.rank, world_size=ranks.world_size)
    for on_host in batches:
        leave_if_asked()
        batch = on_host.to(ranks.device, non_blocking=True)
        with torch.no_grad():
            output = model(*plain_arguments(batch, 0).positional)
        is_real = on_host.rows.numpy() >= 0
        scores = torch.sigmoid(output.logits).float().cpu().numpy()
        yield Scored(on_host.rows.numpy()[is_real], scores[is_real])


def evaluate(model: nn.Module, maker: BatchMaker, *, batch_size: int, ranks: Ranks) -> Named:
    """Return metrics and counts of a split over all ranks, without strata, the same on each rank."""
    accumulator = RankAccumulator()
    for rows, scores in predict(model, maker, batch_size=batch_size, ranks=ranks):
        accumulator.update(scores, maker.rows.labels[rows], maker.rows.users[rows])
    return accumulator.result()
