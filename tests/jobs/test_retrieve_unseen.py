"""Items without a training event, which a loss may take for wrong answers or leave alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.retrieving import STILL, retrieve_config
from trec_semid.checkpoints.load import read_tensors
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.jobs import evaluate
from trec_semid.jobs.retrieve import run

SASREC = {"kind": "sasrec", "transformer": STILL, "dropout": 0.0}
HETERREC = {"kind": "heterrec", "tokens": STILL, "items": STILL, "dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    return {"dataset": write_small_dataset(str(tmp_path_factory.mktemp("unseen") / "data"))}


@pytest.mark.parametrize("sampled", [None, {"num_sampled": 400, "power": 0.0}])
@pytest.mark.parametrize("negatives", ["all", "seen"])
def test_ids_of_unseen_items_learn_where_they_are_wrong_answers(
    data: Any, tmp_path: Path, negatives: Any, sampled: Any
):
    before, after = (
        _learnt_ids(data, str(tmp_path / str(epochs)), epochs, negatives, sampled) for epochs in (1, 2)
    )
    has_learnt = np.any(before != after, axis=1)
    counts = np.bincount(
        Dataset(data["dataset"]).events(split="train")["item_row"].to_numpy(), minlength=len(before)
    )
    assert (counts == 0).sum() == 2
    assert has_learnt[counts > 0].all()
    assert has_learnt[counts == 0].all() == (negatives == "all")
    assert has_learnt[counts == 0].any() == (negatives == "all")


def _learnt_ids(data: Any, folder: str, epochs: Any, negatives: Any, sampled: Any):
    config = retrieve_config(
        data,
        folder,
        loss={"negatives": negatives, "code_weight": 0.0},
        sampled=sampled,
        train={"max_epochs": epochs},
    )
    run(config)
    steps = 3 * epochs
    (table,) = [
        values
        for name, values in read_tensors(f"{folder}/checkpoints", steps, "model/").items()
        if "t_item_id" in name
    ]
    return table.numpy()


def test_users_without_a_history_get_the_most_popular_items(data: Any, tmp_path: Path):
    loss = {"code_weight": 0.0}
    popular = retrieve_config(data, str(tmp_path / "popular"), model={"kind": "popularity"}, loss=loss)
    learned = retrieve_config(data, str(tmp_path / "learned"), loss=loss, train={"max_epochs": 1})
    for config in (popular, learned):
        run(config)
    found, expected = (read_target_positions(config.run, "valid") for config in (learned, popular))
    all_rows = RetrievalData(Dataset(data["dataset"]), learned.item, learned.sequences).sequences
    rows = all_rows.evaluation_rows("valid", 12)
    is_new = np.isin(found.user_row, rows.users[rows.histories.lengths == 0])
    assert is_new.sum() >= 2
    assert found.position[is_new].tolist() == expected.position[is_new].tolist()
    assert found.position[~is_new].tolist() != expected.position[~is_new].tolist()


@pytest.mark.parametrize("kind", ["sasrec", "heterrec"])
def test_unseen_items_are_found_by_their_content_where_they_are_no_wrong_answers(tmp_path: Path, kind: Any):
    dataset = {"dataset": write_small_dataset(str(tmp_path / "data"), num_users=500)}
    found = {}
    for negatives in ("all", "seen"):
        config = retrieve_config(
            dataset,
            str(tmp_path / negatives),
            model={"sasrec": SASREC, "heterrec": HETERREC}[kind],
            loss={"negatives": negatives, "code_weight": 0.0},
            train={"batch_size": 50, "max_epochs": 6, "evaluate_every_steps": 1000},  # once, at the end
            evaluation={"masks_history": False},
        )
        found[negatives] = run(config).metrics["test/recall@10/popularity_unseen"]
    assert found["seen"] > found["all"] + 0.2


@pytest.fixture(scope="module")
def seen_only(data: Any, tmp_path_factory: pytest.TempPathFactory):
    """A run that took no unseen item for a wrong answer."""
    folder = str(tmp_path_factory.mktemp("seen"))
    config = retrieve_config(
        data, folder, loss={"negatives": "seen"}, evaluation={"masks_history": False}, train={"max_epochs": 1}
    )
    return config, run(config).metrics


def asked_again(folder: Path | str, config: Any, penalty: Any):
    values = {"run": str(folder), "runs": [config.run], "retrieval": {"unseen_penalty": penalty}}
    return evaluate.run(evaluate.EvaluateConfig.model_validate(values)).metrics


def test_a_finished_run_lists_fewer_unseen_items_the_higher_their_penalty(
    data: Any, tmp_path: Path, seen_only: Any
):
    config, found = seen_only
    same, none = (asked_again(tmp_path / str(penalty), config, penalty) for penalty in (0.0, 1e3))
    assert same == pytest.approx(found, abs=1e-6)
    assert found["test/recall@10/popularity_unseen"] > 0
    assert none["test/recall@10/popularity_unseen"] == 0
    ranks = read_target_positions(str(tmp_path / "1000.0"), "test")
    unseen = np.flatnonzero(
        RetrievalData(Dataset(data["dataset"]), config.item, config.sequences).item_counts == 0
    )
    assert ranks.position[np.isin(ranks.item_row, unseen)].min() > 40 - len(unseen)
    known = [f"test/recall@10/popularity_{name}" for name in ("head", "middle", "tail")]
    assert all(none[name] >= found[name] for name in known)
    assert any(none[name] > found[name] for name in known)


def test_asked_again_a_run_has_the_penalty_of_the_asking(data: Any, tmp_path: Path, seen_only: Any):
    config, found = seen_only
    lowered = config.model_copy(
        update={
            "run": str(tmp_path / "lowered"),
            "evaluation": config.evaluation.model_copy(update={"unseen_penalty": 1e3}),
        }
    )
    assert run(lowered).metrics["test/recall@10/popularity_unseen"] == 0
    again = asked_again(tmp_path / "again", lowered, 0.0)
    assert again == pytest.approx(found, abs=1e-6)


def test_a_run_with_a_penalty_is_the_run_without_asked_again_with_it(
    data: Any, tmp_path: Path, seen_only: Any
):
    config, _ = seen_only
    lowered = retrieve_config(
        data,
        str(tmp_path / "lowered"),
        loss={"negatives": "seen"},
        evaluation={"masks_history": False, "unseen_penalty": 0.05},
        train={"max_epochs": 1},
    )
    again = asked_again(tmp_path / "again", config, 0.05)
    assert run(lowered).metrics == pytest.approx(again, abs=1e-6)
