"""`rank` over streamed rows: the same run as over rows in memory, stopped and resumed, and on two ranks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.data.ranking.test_streamed import with_rows
from tests.jobs.ranking import about, losses_of, rank_config, run_until, write_codes
from tests.ranks import run_ranks
from trec_semid.core.errors import DataError
from trec_semid.data.batches import RankingBatch
from trec_semid.data.epochs import EpochBatches
from trec_semid.data.ranking.batch_maker import BatchMaker
from trec_semid.data.ranking.source import Asked
from trec_semid.data.ranking.streamed import StreamedData
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.jobs.evaluate import EvaluateConfig
from trec_semid.jobs.evaluate import run as evaluate
from trec_semid.jobs.rank import run
from trec_semid.training.ranking.setup import RankConfig, read_inputs


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("streamed"))
    with_rows(f"{folder}/data", history={"max_len": 8}, rows_per_group=100, rows_per_file=450)
    return write_codes(folder)


def streamed(problem: dict[str, Any], folder: Any, window: int) -> RankConfig:
    return rank_config(
        problem,
        str(folder),
        stream={"window": window},
        train={"max_epochs": 2},
        checkpoints={"every_steps": 3},
    )


def test_where_one_window_holds_all_rows_a_run_is_that_over_rows_in_memory(problem, tmp_path):
    ours = run(streamed(problem, tmp_path / "ours", 100)).metrics
    theirs = run(rank_config(problem, str(tmp_path / "theirs"), train={"max_epochs": 2})).metrics
    assert ours == theirs
    for split in ("valid", "test"):
        one, other = (read_predictions(str(tmp_path / name), split) for name in ("ours", "theirs"))
        assert all((left == right).all() for left, right in zip(one, other, strict=True))
    asked = {"runs": [str(tmp_path / "ours")], "run": str(tmp_path / "asked")}
    assert evaluate(EvaluateConfig.model_validate(asked)).metrics == pytest.approx(ours, rel=1e-6)


def test_a_stopped_run_over_small_windows_goes_on_as_if_it_had_not_stopped(problem, tmp_path, monkeypatch):
    whole = run(streamed(problem, tmp_path / "whole", 2)).metrics
    stopped = streamed(problem, tmp_path / "stopped", 2)
    run_until(monkeypatch, stopped, 5)
    assert run(stopped).metrics == whole


def on_rank(config: RankConfig) -> dict[str, float]:
    return run(config).metrics


class Together(EpochBatches[RankingBatch]):
    """Batches of one rank that hold the rows of two in each step."""

    def __init__(self, ranks: list[EpochBatches[RankingBatch]], maker: BatchMaker) -> None:
        self._ranks, self._maker = ranks, maker

    @property
    def steps_per_epoch(self) -> int:
        return self._ranks[0].steps_per_epoch

    def make_epoch(self, first_step: int) -> Iterator[RankingBatch]:
        for parts in zip(*(rank.batches() for rank in self._ranks), strict=True):
            rows = np.concatenate([part.rows[part.rows >= 0].numpy() for part in parts])
            yield self._maker.make(rows, len(rows))


@pytest.mark.ranks
def test_two_ranks_train_as_one_on_the_rows_of_both(problem, tmp_path, monkeypatch):
    one, other = run_ranks(on_rank, 2, streamed(problem, tmp_path / "two", 2))
    assert one == other
    of_ranks = StreamedData.training

    def together(data: StreamedData, asked: Asked, seed: int) -> EpochBatches[RankingBatch]:
        ranks = [of_ranks(data, asked._replace(rank=rank, world_size=2), seed) for rank in range(2)]
        whole = read_inputs(rank_config(problem, "unused")).data
        return Together(ranks, whole.maker_of(whole.rows("train", "frozen")))

    monkeypatch.setattr(StreamedData, "training", together)
    alone = run(streamed(problem, tmp_path / "alone", 2)).metrics
    assert losses_of(str(tmp_path / "two")) == pytest.approx(losses_of(str(tmp_path / "alone")), rel=2e-5)
    assert one == about(alone)
    ours, theirs = (read_predictions(str(tmp_path / name), "test") for name in ("two", "alone"))
    assert ours.row.tolist() == theirs.row.tolist() == list(range(210))
    assert ours.score == pytest.approx(theirs.score, rel=1e-4)


def test_histories_that_rows_do_not_have_are_refused(problem, tmp_path):
    asked = rank_config(problem, str(tmp_path / "r"), stream={}, history={"max_len": 9})
    with pytest.raises(DataError, match="max_len = 8"):
        run(asked)
