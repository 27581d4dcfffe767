"""Scores of validation and test rows by the best weights: predictions on disk, and metrics of them."""

from torch import nn

from trec_semid.data.histories import Protocol
from trec_semid.data.schema import Split
from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.ranking import Named, RankAccumulator
from trec_semid.evaluation.strata import Strata, strata_of_counts
from trec_semid.runtime.logs import working
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.training.finetune.finetuning import distinct_items
from trec_semid.training.ranking.predict import predict
from trec_semid.training.ranking.setup import RankConfig, RankInputs


def write_predictions(
    model: nn.Module, config: RankConfig, inputs: RankInputs, folder: RunFolder, ranks: Ranks
) -> Named:
    """Score valid and test under both protocols; return metrics over all ranks.

    Args:
        model: a placed `RankerWithLoss` with the best weights.
        config: of the run.
        inputs: what it was trained on.
        folder: where predictions are written.
        ranks: this process among its peers; all of them score together.
    """
    users, items = inputs.data.train_counts()
    strata = strata_of_counts(items, users)
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        online, frozen = _score(model, config, inputs, folder, ranks, split=split, strata=strata)
        metrics |= {f"{split}/{name}": value for name, value in online[0].items()}
        metrics |= {f"{split}-frozen/{name}": value for name, value in frozen[0].items()}
        counts |= {f"{split}/{name}": value for name, value in online[1].items()}
    return metrics, counts


def _score(
    model: nn.Module,
    config: RankConfig,
    inputs: RankInputs,
    folder: RunFolder,
    ranks: Ranks,
    *,
    split: Split,
    strata: Strata,
) -> tuple[Named, Named]:
    batch_size = config.train.evaluation_batch_size
    protocols: tuple[Protocol, ...] = ("online", "frozen")
    items = distinct_items(config.finetune)
    makers = [inputs.data.batch_maker(split, protocol, distinct_items=items) for protocol in protocols]
    online, frozen = (predict(model, maker, batch_size=batch_size, ranks=ranks) for maker in makers)
    rows = makers[0].rows
    accumulators = RankAccumulator(strata), RankAccumulator(strata)
    with (
        PredictionWriter(
            folder.uri, split, rank=ranks.rank, world_size=ranks.world_size, num_rows=len(rows.labels)
        ) as writer,
        working(f"score {split}", len(rows.labels), shown=ranks.is_main) as work,
    ):
        for with_all, with_train in zip(online, frozen, strict=True):
            chosen = with_all.rows
            work.advance(len(chosen) * ranks.world_size)
            label, user, item = rows.labels[chosen], rows.users[chosen], rows.items[chosen]
            writer.write(
                row=chosen,
                user_row=user,
                item_row=item,
                label=label,
                score=with_all.scores,
                score_frozen=with_train.scores,
            )
            for accumulator, scores in zip(accumulators, (with_all.scores, with_train.scores), strict=True):
                accumulator.update(scores, label, user, item)
    return accumulators[0].result(), accumulators[1].result()
