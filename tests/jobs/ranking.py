"""A small ranking problem for tests of the rank job, also for those that run it on several ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from trec_semid.core.paths import write_bytes
from trec_semid.data.schema import Dataset
from trec_semid.jobs.rank import RankConfig, run
from trec_semid.runtime.logs import read_events
from trec_semid.tokenizers.maps.record import write_record
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training import loop as training_loop


def write_problem(folder: str) -> dict[str, Any]:
    """Write a dataset and semantic IDs that tell its item clusters; return the config keys that name them."""
    write_small_dataset(f"{folder}/data")
    return write_codes(folder)


def write_codes(folder: str) -> dict[str, Any]:
    """Write semantic IDs of the dataset that is there; return the config keys that name both."""
    dataset = Dataset(f"{folder}/data")
    rng = np.random.default_rng(1)
    clusters = [int(title.rsplit(" ", 1)[1]) for title in dataset.items(["title"])["title"].to_pylist()]
    codes = np.stack([clusters, rng.integers(0, 6, len(clusters))], 1).astype(np.int32)
    codes[3, 1] = 5  # the 'missing' code of position 1
    SemanticIds(dataset.item_ids, codes, (4, 5)).save(f"{folder}/codes.parquet")
    return {"dataset": f"{folder}/data", "semantic_ids": f"{folder}/codes.parquet"}


def mark_finished(folder: str) -> None:
    """Give a folder with semantic IDs what a finished run has besides: their record, and the mark."""
    write_record(folder, dataset="small", dataset_checksum="c", seed=0)
    write_bytes(f"{folder}/metrics.json", b"{}")


def rank_config(problem: dict[str, Any], run_folder: str, **changes: Any) -> RankConfig:
    """Return a config of a few short epochs; batches of 250 rows leave a smaller last one."""
    values: dict[str, Any] = {
        **problem,
        "run": run_folder,
        "representation": "both",
        "history": {"max_len": 8},
        "tables": {"dim": 8},
        "model": {"layer_dims": [16, 8], "gate_dim": 8},
        "optimizers": {"dense": {"learning_rate": 0.01}, "tables": {"learning_rate": 0.1}},
        "train": {"batch_size": 250, "max_epochs": 3, "log_every_steps": 1, "patience": 5},
    }
    if changes.get("representation") == "item":
        values["semantic_ids"] = ""
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return RankConfig.model_validate(values)


def losses_of(run_folder: str) -> list[float]:
    """Return the training loss of each step."""
    return [event["train/loss"] for event in read_events(f"{run_folder}/log.jsonl") if "train/loss" in event]


def train_with_plan(problem: dict[str, Any], run_folder: str, sharding_type: str) -> dict[str, Any]:
    """Run the job with all tables placed one way; return what another number of ranks must agree on."""
    rules = {"tables": {"t_*": {"sharding_types": [sharding_type]}}}
    config = rank_config(problem, run_folder, sharding=rules, train={"max_epochs": 2})
    return {"metrics": run(config).metrics, "losses": losses_of(run_folder)}


def run_until(
    monkeypatch: pytest.MonkeyPatch, config: Any, num_steps: int, verb: Callable[[Any], Any] = run
) -> None:
    """Run `rank`, or another verb that trains, and be interrupted after so many steps."""
    whole = training_loop.train_steps

    def stopping(*args: Any, **kwargs: Any) -> Any:
        for report in whole(*args, **kwargs):
            yield report
            if report.step == num_steps:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "train_steps", stopping)
        with pytest.raises(KeyboardInterrupt):
            verb(config)


def about(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return metrics as another order of the same float sums gives them.

    Areas under curves count pairs: rounding alone turns pairs of scores that are level, and of the few that a
    small split has each moves the area by its share.
    """
    return {
        name: pytest.approx(value, abs=0.02) if "auc" in name else pytest.approx(value, rel=1e-3, abs=1e-4)
        for name, value in metrics.items()
    }


def events_of(folder: Any, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in a run's log."""
    return [event for event in read_events(f"{folder}/log.jsonl") if event["event"] == kind]
