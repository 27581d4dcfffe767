"""A stopped run goes on where tables are placed otherwise, on another number of ranks."""

import pytest

from tests.jobs.ranking import about, losses_of, rank_config, run_until, write_problem
from tests.ranks import run_ranks
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.jobs.rank import RankConfig, run

PLANS = ("row_wise", "data_parallel")


def config_of(problem, folder: str, plan: str) -> RankConfig:
    rules = {"tables": {"t_*": {"sharding_types": [plan]}}}
    return rank_config(problem, folder, sharding=rules, checkpoints={"every_steps": 1})


def goes_on(config: RankConfig) -> dict[str, float]:
    return run(config).metrics


@pytest.mark.ranks
@pytest.mark.parametrize(("before", "now"), [PLANS, PLANS[::-1]])
@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered.*:UserWarning")
def test_a_run_goes_on_with_copies_of_tables_that_were_split_and_the_reverse(
    tmp_path, monkeypatch, before, now
):
    problem = write_problem(str(tmp_path))
    whole = config_of(problem, str(tmp_path / "whole"), before)
    never_stopped = run(whole).metrics
    run_until(monkeypatch, config_of(problem, str(tmp_path / "moved"), before), 4)
    moved = run_ranks(goes_on, 2, config_of(problem, str(tmp_path / "moved"), now))
    assert moved[0] == moved[1] == about(never_stopped)
    assert losses_of(str(tmp_path / "moved")) == pytest.approx(losses_of(str(tmp_path / "whole")), rel=1e-4)
    scores = [read_predictions(str(tmp_path / name), "test").score for name in ("moved", "whole")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
