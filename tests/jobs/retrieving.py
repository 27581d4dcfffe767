"""A small retrieval problem for tests of the retrieve job, also for those that run it on several ranks."""

from typing import Any

from tests.jobs.ranking import losses_of
from trec_semid.jobs.retrieve import RetrieveConfig, run

STILL = {"num_layers": 1, "num_heads": 2, "dropout": 0.0}


def retrieve_config(problem: dict[str, Any], run_folder: str, **changes: Any) -> RetrieveConfig:
    """Return a config of two short epochs; batches of 25 users leave a smaller last one."""
    predicts_codes = problem.get("semantic_ids") and changes.get("loss", {}).get("code_weight") != 0
    values: dict[str, Any] = {
        **problem,
        "run": run_folder,
        "item": {"fields": ["genres"], "content": ["text", "image"]},
        "sequences": {"max_len": 12, "events": "positives"},
        "tables": {"dim": 8, "init_std": 0.1},
        "model": {"kind": "sasrec", "transformer": STILL, "dropout": 0.0},
        "optimizers": {"dense": {"learning_rate": 0.01}, "tables": {"learning_rate": 0.1}},
        "train": {"batch_size": 25, "max_epochs": 2, "log_every_steps": 1, "patience": 5},
        "evaluation": {"cutoffs": [5, 10]},
        "loss": {"code_weight": 1.0, "code_share": 1.0} if predicts_codes else {},
    }
    for key, value in changes.items():
        is_part = isinstance(values.get(key), dict) and key != "model"
        values[key] = {**values[key], **value} if is_part else value
    return RetrieveConfig.model_validate(values)


def retrieve_with_plan(
    problem: dict[str, Any], run_folder: str, sharding_type: str, changes: dict[str, Any]
) -> dict[str, Any]:
    """Run the job with all tables placed one way; return what another number of ranks must agree on."""
    rules = {"tables": {"t_*": {"sharding_types": [sharding_type]}}}
    config = retrieve_config(problem, run_folder, sharding=rules, **changes)
    return {"metrics": run(config).metrics, "losses": losses_of(run_folder)}


def retrieve_each(
    problem: dict[str, Any], folder: str, kinds: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Run all kinds one after another, row-wise, so that ranks start once."""
    return {
        name: retrieve_with_plan(problem, f"{folder}/{name}", "row_wise", changes)
        for name, changes in kinds.items()
    }
