import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.ranking import mark_finished
from trec_semid.core.config import Config
from trec_semid.core.identity import MayChange
from trec_semid.data.schema import Dataset
from trec_semid.jobs.verbs import Job
from trec_semid.runtime.runs import RunFolder
from trec_semid.study.grid import PlannedRun
from trec_semid.study.workers import devices_of, look_at
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds


class ReaderConfig(Config):
    run: Annotated[str, MayChange()]
    dataset: Annotated[str, MayChange()]
    semantic_ids: Annotated[str, MayChange()]
    rate: float = 0.1
    lines: Annotated[int, MayChange()] = 1
    epochs: Annotated[int, MayChange(only_up=True, reopens="larger")] = 2


def find(verb: str) -> Job:
    return Job(ReaderConfig, print)


@pytest.fixture
def planned(tmp_path: Path) -> PlannedRun:
    """A finished run that read a dataset and codes, both still there."""
    dataset = Dataset(write_small_dataset(str(tmp_path / "data"), num_users=20))
    ids = SemanticIds(dataset.item_ids, np.zeros((40, 2), np.int32), (3, 3))
    ids.save(str(tmp_path / "codes/semantic_ids.parquet"))
    mark_finished(str(tmp_path / "codes"))
    places = {"run": f"{tmp_path}/run", "dataset": f"{tmp_path}/data", "semantic_ids": f"{tmp_path}/codes"}
    folder = RunFolder(places["run"], "rank")
    folder.start(ReaderConfig(**places), {"dataset": dataset.facts.checksum, "semantic_ids": ids.checksum()})
    ids.save(folder.path("semantic_ids.parquet"))
    folder.write_metrics({}, seed=0, dataset="small", dataset_checksum=dataset.facts.checksum, counts={})
    sets = tuple(f"{key}={json.dumps(value)}" for key, value in places.items())
    return PlannedRun(step="r", seed=0, verb="rank", folder=places["run"], files=(), sets=sets, needs=())


def test_a_finished_run_stands_while_what_it_read_does(planned: PlannedRun):
    assert look_at(planned, find).state == "finished"
    Path(planned.folder, "metrics.json").unlink()
    assert look_at(planned, find).state == "begun"


@pytest.mark.parametrize(
    ("key", "state"),
    [("lines=5", "finished"), ("epochs=3", "begun"), ("epochs=1", "other"), ("rate=0.2", "other")],
)
def test_a_run_asked_for_in_other_words_stands_as_far_as_it_was_computed(planned: PlannedRun, key, state):
    assert look_at(planned._replace(sets=(*planned.sets, key)), find).state == state


def test_a_folder_that_moved_with_what_it_read_stands(planned: PlannedRun, tmp_path: Path):
    there = tmp_path / "moved"
    there.mkdir()
    for name in ("run", "data", "codes"):
        (tmp_path / name).rename(there / name)
    sets = tuple(text.replace(str(tmp_path), str(there)) for text in planned.sets)
    assert look_at(planned._replace(folder=f"{there}/run", sets=sets), find).state == "finished"


def test_a_run_that_tuned_its_codes_stands_on_those_it_began_with(planned: PlannedRun, tmp_path: Path):
    ids = SemanticIds.load(f"{tmp_path}/codes/semantic_ids.parquet")
    SemanticIds(ids.item_ids, ids.codes + 2, ids.sizes).save(f"{planned.folder}/semantic_ids.parquet")
    assert look_at(planned, find).state == "finished"


def test_a_run_on_codes_made_anew_since_is_another_run(planned: PlannedRun, tmp_path: Path):
    ids = SemanticIds.load(f"{tmp_path}/codes/semantic_ids.parquet")
    SemanticIds(ids.item_ids, ids.codes + 1, ids.sizes).save(f"{tmp_path}/codes/semantic_ids.parquet")
    assert look_at(planned, find).state == "other"


def test_a_run_on_a_dataset_made_anew_since_is_another_run(planned: PlannedRun, tmp_path: Path):
    write_small_dataset(str(tmp_path / "data"), num_users=20, seed=5)
    assert look_at(planned, find).state == "other"


@pytest.mark.parametrize(
    ("visible", "num_devices", "expected"),
    [
        (None, 4, ["0", "1", "2", "3", "0"]),
        ("5,7", 8, ["5", "7", "5", "7", "5"]),
        ("3", 8, [None] * 5),
        ("", 8, [None] * 5),
        (None, 0, [None] * 5),
    ],
)
def test_workers_take_turns_among_the_gpus_that_may_be_used(visible, num_devices, expected):
    assert [devices_of(number, visible, num_devices) for number in range(5)] == expected
