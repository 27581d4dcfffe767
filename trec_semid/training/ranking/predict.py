"""Scores of evaluation rows by rankers: yielded, measured over all ranks, and written as predictions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from trec_semid.core.arrays import Array
from trec_semid.data.batches import RankingBatch
from trec_semid.data.histories import Protocol
from trec_semid.data.ranking.batch_maker import DistinctItems
from trec_semid.data.ranking.source import Asked, RankingSource
from trec_semid.data.schema import Split
from trec_semid.evaluation.predictions import PREDICTION_SCHEMA, PredictionWriter
from trec_semid.evaluation.ranking import Named, RankAccumulator
from trec_semid.evaluation.strata import Strata
from trec_semid.runtime.logs import working
from trec_semid.runtime.ranks import Ranks, leave_if_asked
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.passes import plain_arguments

_COLUMNS: dict[Protocol, str] = {"online": "score", "frozen": "score_frozen"}
_SUFFIXES: dict[Protocol, str] = {"online": "", "frozen": "-frozen"}
"""Of the split's name in keys of metrics."""


class Scored(NamedTuple):
    """Some rows of this rank. n rows."""

    rows: Array
    """(n,) int64: positions in the split."""
    scores: Array
    """(n,) float32: probability of label 1."""
    labels: Array
    """(n,) float32."""
    users: Array
    """(n,) user rows."""
    items: Array
    """(n,) item rows."""


class Scorer(NamedTuple):
    """A placed ranker, and the data as it reads them."""

    model: nn.Module
    """A `RankerWithLoss` with the weights that count."""
    data: RankingSource
    items: DistinctItems | None
    """What its batches bring beside features."""


class Scoring(NamedTuple):
    """What is scored, and how."""

    batch_size: int
    """Rows of a global batch."""
    strata: Strata
    splits: tuple[Split, ...] = ("valid", "test")
    protocols: tuple[Protocol, ...] = ("online", "frozen")
    """What rows' histories hold: all events before, or training events only."""


def predict(model: nn.Module, batches: Iterator[RankingBatch], ranks: Ranks) -> Iterator[Scored]:
    """Yield the scores of this rank's part of a split; all ranks run it to the end.

    Args:
        model: a `RankerWithLoss`, sharded or not.
        batches: of the split, as many on every rank.
        ranks: this process among its peers.
    """
    model.eval()
    for on_host in batches:
        leave_if_asked()
        batch = on_host.to(ranks.device, non_blocking=True)
        with torch.no_grad():
            output = model(*plain_arguments(batch, 0).positional)
        # Rows of -1 fill batches up and are not in the split.
        is_real = on_host.rows.numpy() >= 0
        scores = torch.sigmoid(output.logits).float().cpu().numpy()
        rows, labels = on_host.rows.numpy()[is_real], on_host.labels.numpy()[is_real]
        yield Scored(rows, scores[is_real], labels, *on_host.of)


def evaluate(model: nn.Module, batches: Iterator[RankingBatch], ranks: Ranks) -> Named:
    """Return metrics and counts of a split over all ranks, without strata, the same on each rank."""
    accumulator = RankAccumulator()
    for scored in predict(model, batches, ranks):
        accumulator.update(scored.scores, scored.labels, scored.users)
    return accumulator.result()


def write_predictions(scorers: Sequence[Scorer], scoring: Scoring, folder: RunFolder, ranks: Ranks) -> Named:
    """Score splits and write the scores; return metrics over all ranks.

    score(row) = mean over scorers of the probability that each gives.

    Args:
        scorers: one ranker, or several that score together, of the same dataset.
        scoring: what is scored.
        folder: where predictions are written.
        ranks: this process among its peers; all of them score together.
    """
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    for split in scoring.splits:
        results = _write_split(scorers, scoring, folder, ranks, split)
        for protocol, (values, _) in zip(scoring.protocols, results, strict=True):
            metrics |= {f"{split}{_SUFFIXES[protocol]}/{name}": value for name, value in values.items()}
        counts |= {f"{split}/{name}": value for name, value in results[0][1].items()}
    return metrics, counts


def _write_split(
    scorers: Sequence[Scorer], scoring: Scoring, folder: RunFolder, ranks: Ranks, split: Split
) -> list[Named]:
    """Return metrics and counts of a split by each protocol."""
    num_rows = scorers[0].data.num_rows(split)
    left_out = {column for protocol, column in _COLUMNS.items() if protocol not in scoring.protocols}
    accumulators = [RankAccumulator(scoring.strata) for _ in scoring.protocols]
    with (
        PredictionWriter(
            folder.uri,
            split,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_rows=num_rows,
            schema=pa.schema([field for field in PREDICTION_SCHEMA if field.name not in left_out]),
        ) as writer,
        working(f"score {split}", num_rows, shown=ranks.is_main) as work,
    ):
        by_protocol = [_scores(scorers, scoring, ranks, split, protocol) for protocol in scoring.protocols]
        # Side by side, not one protocol after the other: a row's scores stand in one line of the file.
        for scored in zip(*by_protocol, strict=True):
            chosen, _, label, user, item = scored[0]
            work.advance(len(chosen) * ranks.world_size)
            columns: dict[str, Array] = {}
            for protocol, accumulator, each in zip(scoring.protocols, accumulators, scored, strict=True):
                columns[_COLUMNS[protocol]] = each.scores
                accumulator.update(each.scores, label, user, item)
            writer.write(row=chosen, user_row=user, item_row=item, label=label, **columns)
    return [accumulator.result() for accumulator in accumulators]


def _scores(
    scorers: Sequence[Scorer], scoring: Scoring, ranks: Ranks, split: Split, protocol: Protocol
) -> Iterator[Scored]:
    """Yield the mean of all scorers' probabilities; every scorer sees the rows in the same batches."""
    each = [
        predict(
            scorer.model,
            scorer.data.evaluation(
                split, protocol, Asked(scoring.batch_size, ranks.rank, ranks.world_size, scorer.items)
            ),
            ranks,
        )
        for scorer in scorers
    ]
    for parts in zip(*each, strict=True):
        scores = parts[0].scores if len(parts) == 1 else np.mean([part.scores for part in parts], axis=0)
        yield parts[0]._replace(scores=scores)
