"""A retriever learns the lists of finished runs besides, and is asked without them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.jobs.ranking import losses_of, write_problem
from tests.jobs.retrieving import STILL, retrieve_config
from tests.ranks import run_ranks
from trec_semid.core.errors import CheckpointError, ConfigError
from trec_semid.data.retrieval.loader import SequenceLoader
from trec_semid.data.retrieval.soft_targets import SoftTargets
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
                assert soft.items[soft.rows[event]].tolist() == order
                wanted = torch.tensor([scores[item] / 2.0 for item in order]).softmax(0)
                assert soft.shares[soft.rows[event]] == pytest.approx(wanted.numpy(), abs=1e-3)
    unread = np.setdiff1d(np.arange(len(items)), read.events)
    assert (soft.rows[unread] == -1).all()


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(
    "sequences",
    [
        {},
        {"rows": "last"},
        {"rows": "sliding"},
        {"max_len": 3},
        {"augment": {"crop_prob": 0.7, "crop_share": 0.3, "shuffle_prob": 0.5}},
        {"rows": "sliding", "max_len": 5, "augment": {"crop_prob": 1.0, "crop_share": 0.3}},
    ],
    ids=["dense", "last", "sliding", "short", "varied", "varied sliding"],
)
def test_every_place_of_every_batch_has_a_list(
    sequences: dict[str, Any], window: int, taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path
):
    """Batches of three epochs are made; a place that no list is for ends them with an error."""
    problem, _ = taught_by
    config = student(problem, tmp_path / "r", ["r"], sequences=sequences, window=window)
    data = read_inputs_without(config)
    events = events_read(data.sequences, config).events
    rows = np.full(len(data.sequences.items), -1, np.int32)
    rows[events] = np.arange(len(events))
    soft = SoftTargets(rows, np.zeros((len(events), 2), np.int32), np.full((len(events), 2), 0.5, np.float16))
    maker = data.maker(
        num_targets=window, listed=np.arange(data.num_items), sampled=None, negatives="all", soft=soft
    )
    loader = SequenceLoader(maker, batch_size=25, seed=0, rank=0, world_size=1)
    seen = 0
    for _ in range(3):
        for batch in loader.batches():
            assert batch.places.soft_shares is not None
            assert batch.places.soft_shares.sum(1).tolist() == pytest.approx([1.0] * batch.global_size)
            seen += batch.global_size
    assert seen > 100


def read_inputs_without(config):
    return read_inputs(
        config.model_copy(update={"loss": config.loss.model_copy(update={"teacher": None})})
    ).data


@pytest.mark.parametrize("kind", ["sasrec", "comirec", "codes", "drawn", "heterrec"])
def test_a_student_of_every_kind_comes_nearer_to_its_teacher(
    kind: str, taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path
):
    """The share of a teacher's lists in a student's, over all events of training, against one untaught."""
    problem, runs = taught_by
    changes: dict[str, Any] = {"train": {"max_epochs": 6, "patience": 6}}
    loss: dict[str, Any] = {}
    if kind == "comirec":
        changes["model"] = SEVERAL
    if kind == "drawn":
        changes["sampled"] = {"num_sampled": 8}
    if kind == "heterrec":
        changes["model"] = {"kind": "heterrec", "tokens": STILL, "items": STILL, "dropout": 0.0}
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
    for config in (taught, alone):
        own = listed[config.run]
        assert own is not None
        assert (own.rows == theirs.rows).all()
        is_shared = (own.items[:, :, None] == theirs.items[:, None, :]).any(2)
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
    assert run(config).metrics == whole
    with pytest.raises(ConfigError, match=r"loss\.teacher\.runs: .*teacher is not a finished run"):
        run(student(problem, tmp_path / "another", [str(teacher)], **changes))
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
        ({"teacher": {"runs": ["a", "b", "a/"]}}, "named twice"),
        ({"teacher": {"runs": ["a/checkpoints/step-3"]}}, "is a step: name the run"),
        ({"loss": {"code_weight": 1.0, "code_heads": "chained"},
          "evaluation": {"beam_width": 10, "candidates": 10}}, "asked anew for every item"),
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
    data = {"dataset": problem["dataset"]}
    models = {"popular": {"kind": "popularity"}, "both": {"kind": "ensemble", "runs": runs}}
    for name, model in models.items():
        run(retrieve_config(data, str(tmp_path / name), model=model))
    with pytest.raises(ConfigError, match=r"popular is popularity, which does not score"):
        run(student(problem, tmp_path / "r", [str(tmp_path / "popular")]))
    with pytest.raises(ConfigError, match=r"both is ensemble, .* Name its runs instead"):
        run(student(problem, tmp_path / "r", [str(tmp_path / "both")]))
    assert not (tmp_path / "r").exists()


@pytest.mark.ranks
def test_two_ranks_are_taught_as_one(taught_by: tuple[dict[str, Any], list[str]], tmp_path: Path):
    problem, runs = taught_by
    one, *two = (
        said
        for number in (1, 2)
        for said in run_ranks(taught_on_ranks, number, problem, str(tmp_path / str(number)), runs)
    )
    for other in two:
        assert np.array_equal(other["rows"], one["rows"])
        assert np.array_equal(other["items"], one["items"])
        assert other["shares"] == pytest.approx(one["shares"], abs=2e-3)
    assert two[0]["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two[0]["metrics"] == pytest.approx(one["metrics"], abs=2e-2)


def taught_on_ranks(problem: dict[str, Any], folder: str, runs: list[str]) -> dict[str, Any]:
    """Return the lists, and what a run that learns them comes to; the last batch leaves a rank without."""
    rules = {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}
    config = student(problem, folder, runs, sharding=rules)
    with process_group() as ranks:
        data = read_inputs(config).data
        uneven = config.model_copy(
            update={"train": config.train.model_copy(update={"evaluation_batch_size": 2})}
        )
        soft = soft_targets(uneven, data, RunFolder(f"{folder}-lists", "retrieve"), ranks)
        assert soft is not None
        metrics = run(config).metrics
    return {"metrics": metrics, "losses": losses_of(folder), **soft._asdict()}
