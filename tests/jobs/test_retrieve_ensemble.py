import shutil

import pytest

from tests.datasets import describe_again
from tests.jobs.retrieving import retrieve_config
from tests.jobs.test_rank_finetune import side_by_side, write_problem
from tests.ranks import run_ranks
from trec_semid.core.errors import ConfigError
from trec_semid.jobs.retrieve import run

SEVERAL = {"kind": "comirec", "num_interests": 3, "dropout": 0.0}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    problem = side_by_side(write_problem(str(tmp_path_factory.mktemp("members"))))
    folder = tmp_path_factory.mktemp("runs")
    # One state a user in the first, several interests in the second.
    for number, changes in enumerate(({}, {"model": SEVERAL, "loss": {"code_weight": 0.0}})):
        run(retrieve_config(problem, str(folder / str(number)), train={"max_epochs": 2}, **changes))
    return problem, [str(folder / "0"), str(folder / "1")]


def ensemble_of(problem, folder, runs, **changes):
    return retrieve_config(
        {"dataset": problem["dataset"]}, str(folder), model={"kind": "ensemble", "runs": runs}, **changes
    )


def test_a_run_with_itself_is_the_run(members, tmp_path):
    problem, (first, _) = members
    alone = run(retrieve_config(problem, first, train={"max_epochs": 2})).metrics
    twice = run(ensemble_of(problem, tmp_path / "twice", [first, first])).metrics
    # Which items no list can hold is said of one model's vectors.
    alone = {key: value for key, value in alone.items() if not key.startswith("all/hidden")}
    assert twice == pytest.approx(alone, abs=1e-6)


def test_two_runs_score_together_in_any_order(members, tmp_path):
    problem, runs = members
    found = [
        run(ensemble_of(problem, tmp_path / name, order)).metrics
        for name, order in (("ab", runs), ("ba", runs[::-1]))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    alone = run(retrieve_config(problem, runs[0], train={"max_epochs": 2})).metrics
    assert any(abs(found[0][key] - value) > 1e-6 for key, value in alone.items())


def test_a_run_of_data_that_was_made_anew_is_refused(tmp_path):
    problem = write_problem(str(tmp_path))
    first = str(tmp_path / "r")
    run(retrieve_config(problem, first, train={"max_epochs": 1}))
    describe_again(str(tmp_path / "data"), checksum="f" * 64)
    with pytest.raises(ConfigError, match=r"was trained on other data or codes than are there now"):
        run(ensemble_of(problem, tmp_path / "both", [first, first]))


def test_runs_that_cannot_score_together_are_refused_by_name(members, tmp_path):
    problem, runs = members
    with pytest.raises(ConfigError, match=r"nowhere is not a finished run"):
        run(ensemble_of(problem, tmp_path / "r", [runs[0], "nowhere"]))
    popular = str(tmp_path / "popular")
    run(retrieve_config({"dataset": problem["dataset"]}, popular, model={"kind": "popularity"}))
    with pytest.raises(ConfigError, match=r"popular is popularity, which does not score"):
        run(ensemble_of(problem, tmp_path / "r2", [runs[0], popular]))
    with pytest.raises(ConfigError, match=r"reads other histories"):
        run(ensemble_of(problem, tmp_path / "r3", runs, sequences={"max_len": 5}))
    bare = tmp_path / "bare"
    shutil.copytree(runs[0], bare)
    shutil.rmtree(bare / "checkpoints")
    with pytest.raises(ConfigError, match=r"bare has no checkpoint left"):
        run(ensemble_of(problem, tmp_path / "r4", [runs[0], str(bare)]))
    assert not any((tmp_path / name).exists() for name in ("r", "r2", "r3", "r4"))


@pytest.mark.ranks
def test_two_ranks_ask_finished_runs_as_one_does(members, tmp_path):
    problem, runs = members
    changes = {"model": {"kind": "ensemble", "runs": runs}, "evaluation": {"unseen_penalty": 3.0}}
    problem = {"dataset": problem["dataset"]}
    one, two = (
        run_ranks(metrics_of, number, problem, str(tmp_path / str(number)), changes)[0] for number in (1, 2)
    )
    assert one == pytest.approx(two, abs=1e-6)
    plain = run(ensemble_of(problem, tmp_path / "plain", runs)).metrics
    assert any(abs(plain[key] - value) > 1e-6 for key, value in one.items())


def metrics_of(problem, folder, changes):
    return run(retrieve_config(problem, folder, **changes)).metrics
