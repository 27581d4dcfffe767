import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.ranking import events_of, losses_of, rank_config, run_until, write_problem
from trec_semid.checkpoints.folder import complete_steps, step_folder
from trec_semid.core.errors import CheckpointError, ConfigError
from trec_semid.jobs.rank import run
from trec_semid.training import loop as training_loop

OFTEN = {"checkpoints": {"every_steps": 3}, "model": {"dropout": 0.3}}
OVERFITS = {
    "optimizers": {"dense": {"learning_rate": 0.2}, "tables": {"learning_rate": 1.0}},
    "train": {"max_epochs": 6, "patience": 6},
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return write_problem(str(tmp_path_factory.mktemp("resuming")))


@pytest.fixture(scope="module")
def whole(problem, tmp_path_factory):
    """Return the metrics of a run that was never stopped."""
    return run(rank_config(problem, str(tmp_path_factory.mktemp("whole") / "r"), **OFTEN)).metrics


@pytest.fixture(scope="module")
def stopped(problem, tmp_path_factory):
    """Return the folder of a run that was stopped in its second epoch, to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "r"
    with pytest.MonkeyPatch.context() as patch:
        run_until(patch, rank_config(problem, str(folder), **OFTEN), 13)
    return folder


@pytest.fixture
def says(caplog, monkeypatch):
    """Let the messages of the console reach this test."""
    monkeypatch.setattr("trec_semid.training.run.set_up_console", lambda ranks: None)
    caplog.set_level(logging.INFO, logger="trec_semid")
    logging.getLogger("trec_semid").propagate = True
    return lambda: caplog.text


def flip(path: Path, at: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 64
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "name", ["tensors/__0_0.distcp", "tensors/.metadata", "loop.json", "checkpoint.json"]
)
def test_a_damaged_newest_step_is_named_and_the_one_before_is_used(
    problem, stopped, whole, tmp_path, says, name
):
    folder = shutil.copytree(stopped, tmp_path / "r")
    assert complete_steps(f"{folder}/checkpoints") == [7, 9, 12]
    flip(folder / "checkpoints/step-12" / name)
    assert run(rank_config(problem, str(folder), **OFTEN)).metrics == whole
    (damaged, back) = events_of(folder, "damaged")
    assert damaged["step"] == 12
    assert f"step-12/{name}" in damaged["problem"]
    assert back["problem"] == "going back to step 9"
    assert damaged["problem"] in says()
    assert [event["step"] for event in events_of(folder, "resume")] == [9]


def test_where_no_step_is_sound_the_run_says_so_and_does_not_begin_anew(problem, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "r")
    for shard in folder.glob("checkpoints/*/tensors/*.distcp"):
        flip(shard)
    before = len(losses_of(str(folder)))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used(.*\n.*step-\d+/tensors){3}"):
        run(rank_config(problem, str(folder), **OFTEN))
    assert len(losses_of(str(folder))) == before


def test_a_step_to_resume_from_can_be_named(problem, stopped, whole, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "r")
    config = rank_config(problem, str(folder), **OFTEN, resume_from=9)
    assert run(config).metrics == whole
    assert [event["step"] for event in events_of(folder, "resume")] == [9]
    assert run(rank_config(problem, str(folder), **OFTEN)).metrics == whole
    assert [event["step"] for event in events_of(folder, "resume")] == [9], "the run is done"


def test_a_run_that_went_back_and_was_stopped_goes_on_where_it_was_stopped(
    problem, stopped, whole, tmp_path, monkeypatch
):
    folder = shutil.copytree(stopped, tmp_path / "r")
    config = rank_config(problem, str(folder), **OFTEN, resume_from=7)
    run_until(monkeypatch, config, 8)  # before a new step was complete: the later ones are still there
    assert complete_steps(f"{folder}/checkpoints") == [7, 9, 12]
    run_until(monkeypatch, config, 10)
    assert complete_steps(f"{folder}/checkpoints") == [7, 9]
    assert run(config).metrics == whole
    assert [event["step"] for event in events_of(folder, "resume")] == [7, 7, 9]


def test_a_step_that_is_not_there_or_damaged_is_refused_when_it_is_named(problem, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "r")
    with pytest.raises(CheckpointError, match=r"resume_from: .* no complete step 8\. It has: 7, 9, 12"):
        run(rank_config(problem, str(folder), **OFTEN, resume_from=8))
    flip(folder / "checkpoints/step-9/tensors/__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used(.*\n).*step-9"):
        run(rank_config(problem, str(folder), **OFTEN, resume_from=9))


def test_a_finished_run_goes_again_from_a_step_that_is_named(problem, tmp_path):
    config = rank_config(problem, str(tmp_path / "r"))
    expected = run(config).metrics
    back = rank_config(problem, config.run, resume_from=14)
    assert run(back).metrics == expected
    assert run(back).metrics == expected
    assert [event["step"] for event in events_of(config.run, "resume")] == [14]


def test_a_finished_run_keeps_its_result_where_it_cannot_go_on_as_asked(problem, tmp_path):
    folder = tmp_path / "r"
    result = run(rank_config(problem, str(folder), **OVERFITS)).metrics
    best, last = events_of(folder, "best")[-1]["step"], events_of(folder, "evaluate")[-1]["step"]
    assert best < last
    made = {name: (folder / name).read_bytes() for name in ("metrics.json", "run.json", "config.toml")}
    longer = {**OVERFITS, "train": {"max_epochs": 8, "patience": 8}}
    with pytest.raises(CheckpointError, match=r"resume_from: .* no complete step 5"):
        run(rank_config(problem, str(folder), **OVERFITS, resume_from=5))
    flip(folder / f"checkpoints/step-{best}/tensors/__0_0.distcp")
    with pytest.raises(CheckpointError, match=f"best step so far, {best} .*is lost"):
        run(rank_config(problem, str(folder), **longer))
    flip(folder / f"checkpoints/step-{last}/tensors/__0_0.distcp")
    shutil.rmtree(folder / f"checkpoints/step-{best}")
    with pytest.raises(CheckpointError):
        run(rank_config(problem, str(folder), **longer))
    assert {name: (folder / name).read_bytes() for name in made} == made
    assert run(rank_config(problem, str(folder), **OVERFITS)).metrics == result


@pytest.fixture(scope="module")
def overfitted(problem, tmp_path_factory):
    """Return the folder of a run stopped where an earlier step is the best, and that step."""
    folder = tmp_path_factory.mktemp("overfits") / "r"
    config = rank_config(problem, str(folder), **OVERFITS)
    with pytest.MonkeyPatch.context() as patch:
        run_until(patch, config, 36)
    values = {event["step"]: event["valid/auc"] for event in events_of(folder, "evaluate")}
    best = max(values, key=lambda step: values[step])
    assert best < 28, "the problem no longer overfits"
    assert complete_steps(f"{folder}/checkpoints") == sorted({best, 28, 35})
    return folder, best


@pytest.mark.parametrize("how", ["delete", "flip"])
def test_a_lost_best_step_is_told_at_once_and_selecting_anew_works_to_the_end(
    problem, overfitted, tmp_path, how, says
):
    folder, best = shutil.copytree(overfitted[0], tmp_path / "r"), overfitted[1]
    lost = folder / "checkpoints" / f"step-{best}"
    flip(lost / "tensors/__0_0.distcp") if how == "flip" else shutil.rmtree(lost)
    config = rank_config(problem, str(folder), **OVERFITS)
    with pytest.raises(CheckpointError, match=rf"best step so far, {best} \(auc .*is lost.*reselect"):
        run(config)
    assert not events_of(folder, "resume"), "nothing was trained first"
    again = rank_config(problem, str(folder), **OVERFITS, checkpoints={"lost_best": "reselect"})
    metrics = run(again).metrics
    assert "is forgotten" in says()
    events = [event for event in events_of(folder, "evaluate") if event["step"] >= 35]
    assert [event["step"] for event in events] == [
        35,
        35,
        42,
    ]  # step 35 is evaluated again: it may be the best
    assert metrics["valid/auc"] == pytest.approx(max(event["valid/auc"] for event in events), abs=1e-12)


def test_a_best_step_lost_while_training_went_on_is_told_before_anything_is_written(
    problem, overfitted, tmp_path, monkeypatch
):
    folder, best = shutil.copytree(overfitted[0], tmp_path / "r"), overfitted[1]
    plain = training_loop.train_steps

    def losing(*args: Any, **kwargs: Any) -> Any:
        yield from plain(*args, **kwargs)
        flip(folder / f"checkpoints/step-{best}/tensors/__0_0.distcp")

    monkeypatch.setattr(training_loop, "train_steps", losing)
    with pytest.raises(CheckpointError, match=r"the best step is lost.*same command again offers ways out"):
        run(rank_config(problem, str(folder), **OVERFITS))
    assert not (folder / "metrics.json").exists()


def test_more_epochs_go_on_from_the_end_of_a_finished_run(problem, tmp_path):
    folder = str(tmp_path / "r")
    changes = {"model": {"dropout": 0.3}}
    run(rank_config(problem, folder, train={"max_epochs": 2}, **changes))
    longer = run(rank_config(problem, folder, train={"max_epochs": 3}, **changes)).metrics
    assert (
        longer
        == run(rank_config(problem, str(tmp_path / "whole"), train={"max_epochs": 3}, **changes)).metrics
    )
    assert [event["step"] for event in events_of(folder, "resume")] == [14]
    with pytest.raises(ConfigError, match=r"train\.max_epochs: 3 there, 2 now \(it may grow, not shrink\)"):
        run(rank_config(problem, folder, train={"max_epochs": 2}, **changes))


def test_more_epochs_under_a_schedule_that_depends_on_them_are_another_run(problem, tmp_path, monkeypatch):
    cosine = {"optimizers": {"dense": {"schedule": "cosine"}}}
    run_until(monkeypatch, rank_config(problem, str(tmp_path / "r"), **cosine), 8)
    with pytest.raises(ConfigError, match=r"train\.max_epochs: 3 there, 5 now \(.*'cosine' depends on it\)"):
        run(rank_config(problem, str(tmp_path / "r"), **cosine, train={"max_epochs": 5}))


def test_more_epochs_after_patience_was_at_an_end_say_so_and_more_patience_goes_on(problem, tmp_path, says):
    folder = str(tmp_path / "r")
    impatient = {**OVERFITS, "train": {"max_epochs": 8, "patience": 2}}
    metrics = run(rank_config(problem, folder, **impatient)).metrics
    ended = events_of(folder, "evaluate")[-1]["step"]
    assert ended < 56
    more = {**OVERFITS, "train": {"max_epochs": 9, "patience": 2}}
    assert run(rank_config(problem, folder, **more)).metrics == metrics
    assert f"patience was at an end at step {ended}" in says()
    assert events_of(folder, "evaluate")[-1]["step"] == ended
    patient = {**OVERFITS, "train": {"max_epochs": 10, "patience": 3}}
    run(rank_config(problem, folder, **patient))
    assert events_of(folder, "evaluate")[-1]["step"] > ended


def test_more_patience_alone_goes_on_where_patience_ended_the_run_and_changes_nothing_else(
    problem, tmp_path, says
):
    of_patience = {n: {**OVERFITS, "train": {"max_epochs": 8, "patience": n}} for n in (1, 7, 8)}
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert run(rank_config(problem, one, **of_patience[1])).metrics
    ended = events_of(one, "evaluate")[-1]["step"]
    assert ended < 56
    longer = run(rank_config(problem, one, **of_patience[7])).metrics
    assert [event["step"] for event in events_of(one, "resume")] == [ended]
    assert longer == run(rank_config(problem, two, **of_patience[7])).metrics
    assert events_of(one, "evaluate")[-1]["step"] == 56  # the last epoch, not patience, has ended it
    for patience in (8, 1):
        says()
        assert run(rank_config(problem, one, **of_patience[patience])).metrics == longer
        assert "is already done" in says()
    assert len(events_of(one, "resume")) == 1


def test_more_epochs_without_a_checkpoint_left_are_refused_and_the_result_stays(problem, tmp_path):
    folder = tmp_path / "r"
    run(rank_config(problem, str(folder), train={"max_epochs": 1}))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot go on to 2 epochs"):
        run(rank_config(problem, str(folder), train={"max_epochs": 2}))
    assert (folder / "metrics.json").exists()


def test_a_run_that_has_begun_does_not_need_what_it_started_from(problem, stopped, tmp_path, monkeypatch):
    base = shutil.copytree(stopped, tmp_path / "base")
    config = rank_config(problem, str(tmp_path / "r"), start_from=f"{base}/checkpoints/step-12")
    run_until(monkeypatch, config, 8)
    shutil.rmtree(base)
    run(config)
    assert len(events_of(config.run, "resume")) == 1
    with pytest.raises(ConfigError, match=r"start_from: .* there, not set now"):
        run(rank_config(problem, config.run))


NEUTRAL = {
    "train": {"train": {"log_every_steps": 4, "evaluation_batch_size": 77, "patience": 9}},
    "checkpoints": {"checkpoints": {"every_steps": 5, "keep_last": 1, "in_background": True}},
    "sharding": {"sharding": {"tables": {"t_item_id": {"sharding_types": ["table_wise"]}}}},
}


@pytest.mark.parametrize("name", list(NEUTRAL))
def test_what_does_not_change_what_was_computed_may_change_on_resume(problem, stopped, whole, tmp_path, name):
    folder = shutil.copytree(stopped, tmp_path / "r")
    changes = dict(OFTEN)
    for key, value in NEUTRAL[name].items():
        changes[key] = {**changes.get(key, {}), **value}
    metrics = run(rank_config(problem, str(folder), **changes)).metrics
    assert metrics == pytest.approx(whole, abs=1e-6)
    assert len(events_of(folder, "resume")) == 1


@pytest.mark.parametrize("spelled", ["dotted", "slash", "uri"])
def test_a_run_is_the_same_however_its_path_and_its_datas_are_spelled(
    problem, stopped, whole, tmp_path, monkeypatch, spelled
):
    folder = shutil.copytree(stopped, tmp_path / "elsewhere/r")  # it began in another place already
    monkeypatch.chdir(tmp_path)
    data = os.path.relpath(problem["dataset"])
    name = {
        "dotted": "./elsewhere/../elsewhere/r",
        "slash": f"{folder}/",
        "uri": f"file://{folder}",
    }[spelled]
    metrics = run(rank_config({**problem, "dataset": data}, name, **OFTEN)).metrics
    assert metrics == whole
    assert len(events_of(folder, "resume")) == 1
    assert run(rank_config(problem, str(folder), **OFTEN)).metrics == whole
    assert len(events_of(folder, "resume")) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5}, "seed: 0 there, 5 now"),
        ({"train": {"batch_size": 125}}, "train.batch_size: 250 there, 125 now"),
        ({"history": {"max_len": 9}}, "history.max_len: 8 there, 9 now"),
        ({"representation": "semantic"}, 'representation: "both" there, "semantic" now'),
        ({"train": {"evaluate_every_steps": 3}}, "train.evaluate_every_steps: not set there, 3 now"),
        ({"train": {"select_by": "gauc"}}, 'train.select_by: "auc" there, "gauc" now'),
        ({"seed": 1, "tables": {"dim": 4}}, "seed: 0 there, 1 now; tables.dim: 8 there, 4 now"),
    ],
)
def test_what_makes_it_another_run_is_named_with_both_values(problem, stopped, changes, said):
    values = dict(OFTEN)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    made = (stopped / "run.json").read_bytes()
    with pytest.raises(ConfigError) as error:
        run(rank_config(problem, str(stopped), **values))
    assert f"holds a run of another config: {said}. Set another `run`" in str(error.value)
    assert (stopped / "run.json").read_bytes() == made


def test_a_step_saved_twice_is_resumed_from_its_last_save(problem, tmp_path, whole, monkeypatch):
    # every_steps meets an epoch's end: step 21 is saved, and saved again once it was evaluated.
    changes = {"checkpoints": {"every_steps": 7}, "model": {"dropout": 0.3}}
    config = rank_config(problem, str(tmp_path / "r"), **changes)
    assert run(config).metrics == whole
    place = step_folder(f"{config.run}/checkpoints", 21)
    assert place.endswith("step-21.1")
    assert {Path(place).name} == {path.name for path in Path(place).parent.glob("step-21*")}
