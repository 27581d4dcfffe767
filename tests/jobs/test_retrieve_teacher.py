"""A retriever learns the lists of finished runs besides, and is asked without them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.jobs.ranking import losses_of, write_problem
from tests.jobs.retrieving import retrieve_config
from tests.ranks import run_ranks
from trec_semid.core.errors import CheckpointError, ConfigError
from trec_semid.jobs import evaluate, export
from trec_semid.jobs.evaluate import EvaluateConfig
from trec_semid.jobs.export import ExportConfig
from trec_semid.jobs.retrieve import RetrieveConfig, run
from trec_semid.runtime.ranks import process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.exact import mean_scores
from trec_semid.training.retrieval.finished import members_named, place_finished
from trec_semid.training.retrieval.inputs import read_inputs
from trec_semid.training.retrieval.teaching import events_read, soft_targets
from trec_semid.training.steps import StepReport, train_steps

SEVERAL = {"kind": "comirec", "num_interests": 3, "dropout": 0.0}
ITEMS_ALONE = {"code_weight": 0.0}


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """Return a problem, and two finished runs: one state a user in the first, interests in the second."""
    problem = write_problem(str(tmp_path_factory.mktemp("problem")))
    folder = tmp_path_factory.mktemp("teachers")
    for number, changes in enumerate(({}, {"model": SEVERAL, "loss": {"code_weight": 0.0}})):
        run(retrieve_config(problem, str(folder / str(number)), train={"max_epochs": 2}, **changes))
    return problem, [str(folder / "0"), str(folder / "1")]


def student(problem: dict[str, Any], folder: Path | str, runs: list[str], **changes: Any) -> RetrieveConfig:
    """Return the config of a student over items, whose losses say what the teacher's weigh."""
    loss = {**ITEMS_ALONE, "teacher": {"runs": runs, "top": 7, "weight": 2.0, **changes.pop("teacher", {})}}
    return retrieve_config(problem, str(folder), loss={**loss, **changes.pop("loss", {})}, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation": {"masks_history": False}, "loss": {"negatives": "seen"}},
        {"sequences": {"rows": "sliding"}, "window": 3},
        {"sequences": {"augment": {"crop_prob": 0.5}, "max_len": 12}},
    ],
    ids=["plain", "of all items of training", "sliding", "cropped"],
)
def test_lists_are_the_best_of_the_mean_of_scores_by_hand(
    changes: dict[str, Any], taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path
):
    """Each event's history is asked for alone, all items are scored, and Python sorts them."""
    problem, runs = taught_by
    config = student(problem, tmp_path / "student", runs, teacher={"temperature": 2.0}, **changes)
    data = read_inputs(config).data
    with process_group() as ranks:
        soft = soft_targets(config, data, RunFolder(config.run, "retrieve"), ranks)
        assert soft is not None
        placed = [
            place_finished(member, RunFolder(str(tmp_path / str(number)), "retrieve"), ranks)
            for number, member in enumerate(members_named(runs, {}))
        ]
        for each in placed:
            each.model.eval()
        read = events_read(data.sequences, config)
        listable = set(data.negatives(config.loss.negatives).tolist())
        items = data.sequences.items
        user_of = np.repeat(np.arange(data.num_users), np.diff(data.sequences.starts))
        with torch.no_grad():
            for at in range(0, len(read.events), 37):
                event = int(read.events[at])
                asked = [each.asked.queries(read.histories, np.array([at])) for each in placed]
                catalogues = [each.asked.catalogue() for each in placed]
                scores = mean_scores(catalogues, asked, None)(slice(0, data.num_items))[0].tolist()
                before = [int(items[e]) for e in range(event + 1) if user_of[e] == user_of[event]]
                history, _ = read.histories.take(np.array([at]))
                assert history.tolist() == before[-12:]
                barred = set(before) if config.evaluation.masks_history else set()
                order = sorted(listable - barred, key=lambda item: (-scores[item], item))[:7]
                assert soft.items[event].tolist() == order
                wanted = torch.tensor([scores[item] / 2.0 for item in order]).softmax(0)
                assert soft.shares[event] == pytest.approx(wanted.numpy(), abs=1e-3)
    unread = np.setdiff1d(np.arange(len(items)), read.events)
    assert (soft.items[unread] == -1).all()


def test_every_place_of_every_row_has_a_list(taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path):
    problem, _ = taught_by
    for number, sequences in enumerate(
        ({}, {"rows": "last"}, {"rows": "sliding"}, {"max_len": 3}, {"augment": {"crop_prob": 1.0}})
    ):
        config = student(problem, tmp_path / str(number), ["r"], sequences=sequences)
        data = read_inputs_without(config)
        read = set(events_read(data.sequences, config).events.tolist())
        rows = data.sequences.training_rows(config.sequences, 1)
        for start, length in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True):
            first = length - 2 if sequences.get("rows") == "sliding" else 0
            assert set(range(start + first, start + length - 1)) <= read


def read_inputs_without(config):
    return read_inputs(
        config.model_copy(update={"loss": config.loss.model_copy(update={"teacher": None})})
    ).data


@pytest.mark.parametrize("kind", ["sasrec", "comirec", "codes"])
def test_a_student_of_every_kind_comes_nearer_to_its_teacher(
    kind: str, taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path
):
    """The share of a teacher's lists in a student's, over all events of training, against one untaught."""
    problem, runs = taught_by
    changes: dict[str, Any] = {"train": {"max_epochs": 6, "patience": 6}}
    loss: dict[str, Any] = {}
    if kind == "comirec":
        changes["model"] = SEVERAL
    if kind == "codes":
        loss = {"item_weight": 0.0, "code_weight": 1.0, "code_share": 1.0}
    taught = student(problem, tmp_path / "taught", runs, teacher={"weight": 5.0}, loss=loss, **changes)
    alone = retrieve_config(problem, str(tmp_path / "alone"), loss={**(loss or ITEMS_ALONE)}, **changes)
    shares: list[float] = []
    with process_group() as ranks:
        data = read_inputs(taught).data
        lists = {"teacher": runs}
        for config in (taught, alone):
            run(config)
            lists[config.run] = [config.run]
        listed = {
            name: soft_targets(
                student(problem, tmp_path / "asked", members),
                data,
                RunFolder(str(tmp_path / name), "retrieve"),
                ranks,
            )
            for name, members in lists.items()
        }
    theirs = listed["teacher"]
    assert theirs is not None
    has_list = theirs.items[:, 0] >= 0
    for config in (taught, alone):
        own = listed[config.run]
        assert own is not None
        is_shared = (own.items[has_list][:, :, None] == theirs.items[has_list][:, None, :]).any(2)
        shares.append(float(is_shared.mean()))
    assert shares[0] > shares[1] + 0.05


def test_a_stopped_student_goes_on_as_if_it_had_not_stopped_and_is_asked_without_its_teacher(
    taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    problem, runs = taught_by
    teacher = tmp_path / "teacher"
    shutil.copytree(runs[0], teacher)
    changes: dict[str, Any] = {"train": {"max_epochs": 3}, "checkpoints": {"every_steps": 2}}
    config = student(problem, tmp_path / "whole", [str(teacher)], **changes)
    whole = run(config).metrics
    stopped = student(problem, tmp_path / "stopped", [str(teacher)], **changes)
    with monkeypatch.context() as patch:
        patch.setattr("trec_semid.training.loop.train_steps", _ends_after(5))
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    (teacher / "metrics.json").write_text((teacher / "metrics.json").read_text() + " ")
    with pytest.raises(CheckpointError, match="teacher"):
        run(stopped)
    (teacher / "metrics.json").write_text((teacher / "metrics.json").read_text()[:-1])
    assert run(stopped).metrics == whole
    shutil.rmtree(teacher)
    asked = EvaluateConfig.model_validate({"runs": [config.run], "run": str(tmp_path / "asked")})
    again = evaluate.run(asked)
    assert again.metrics["test/ndcg@10"] == pytest.approx(whole["test/ndcg@10"], abs=1e-6)
    export.run(ExportConfig.model_validate({"run": config.run, "out": str(tmp_path / "bundle")}))


def _ends_after(steps: int) -> Callable[..., Iterator[StepReport]]:
    def ending(*given: Any, **more: Any) -> Iterator[StepReport]:
        for report in train_steps(*given, **more):
            yield report
            if report.step == steps:
                raise KeyboardInterrupt

    return ending


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"kind": "tiger"}, "loss": {"item_weight": 0.0, "code_weight": 1.0},
          "sequences": {"rows": "sliding"}, "evaluation": {"beam_width": 10}}, "has no losses over lists"),
        ({"model": {"kind": "gemirec"}}, "model.kind = 'gemirec' has no losses over lists"),
        ({"finetune": {}}, r"codes move with \[finetune\]"),
        ({"test_then_train": True}, "knows nothing of the day"),
        ({"teacher": {"top": 1}}, "greater than or equal to 2"),
        ({"teacher": {"runs": []}}, "at least 1 item"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_refused_by_name(
    changes: dict[str, Any], said: str, taught_by: tuple[dict[str, Any], list[str]]
):
    problem, runs = taught_by
    with pytest.raises(ValueError, match=said):
        student(problem, "r", runs, **changes)


def test_teachers_that_are_none_are_refused_before_anything_is_written(
    taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path
):
    problem, runs = taught_by
    with pytest.raises(ConfigError, match=r"loss\.teacher\.runs: nowhere is not a finished run"):
        run(student(problem, tmp_path / "r", [runs[0], "nowhere"]))
    with pytest.raises(ConfigError, match=r"loss\.teacher\.runs: .* reads other histories"):
        run(student(problem, tmp_path / "r", runs, sequences={"max_len": 5}))
    popular = str(tmp_path / "popular")
    run(retrieve_config({"dataset": problem["dataset"]}, popular, model={"kind": "popularity"}))
    with pytest.raises(ConfigError, match=r"popular is popularity, which does not score"):
        run(student(problem, tmp_path / "r", [popular]))
    assert not (tmp_path / "r").exists()


@pytest.mark.ranks
def test_two_ranks_are_taught_as_one(taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path):
    problem, runs = taught_by
    one, two = (
        run_ranks(taught_on_ranks, number, problem, str(tmp_path / str(number)), runs)[0] for number in (1, 2)
    )
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=2e-2)


def taught_on_ranks(problem: dict[str, Any], folder: str, runs: list[str]) -> dict[str, Any]:
    rules = {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}
    metrics = run(student(problem, folder, runs, sharding=rules)).metrics
    return {"metrics": metrics, "losses": losses_of(folder)}
