"""Items without a training event, which a loss may take for wrong answers or leave alone."""

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.retrieving import retrieve_config
from trec_semid.checkpoints.load import read_tensors
from trec_semid.data.schema import Dataset
from trec_semid.jobs.retrieve import run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {"dataset": write_small_dataset(str(tmp_path_factory.mktemp("unseen") / "data"))}


@pytest.mark.parametrize("sampled", [None, {"num_sampled": 400, "power": 0.0}])
@pytest.mark.parametrize("negatives", ["all", "seen"])
def test_ids_of_unseen_items_learn_where_they_are_wrong_answers(data, tmp_path, negatives, sampled):
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


def _learnt_ids(data, folder, epochs, negatives, sampled):
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
