"""The pipeline computes what the plain loop computes, number for number, on one rank and on several."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.jobs.ranking import rank_config, write_problem
from tests.ranks import run_ranks
from trec_semid.data.batches import RankingBatch
from trec_semid.data.ranking.source import Asked
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.sharding.apply import dense_parameters
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.sharding.tables import find_tables, table_shards
from trec_semid.training.optimizers import build_updates
from trec_semid.training.passes import PipelineKind, Trained, build_passes, plain_arguments
from trec_semid.training.placement import place_model
from trec_semid.training.ranking.setup import RankConfig, RankInputs, build_model, read_inputs
from trec_semid.training.steps import train_steps


class Case(NamedTuple):
    placement: str
    accumulate: int = 1
    evaluate_every: int | None = None
    precision: torch.dtype = torch.float32
    comms: str = "fp32"


CASES = {
    "row_wise": Case("row_wise"),
    "table_wise": Case("table_wise"),
    "column_wise": Case("column_wise"),
    "data_parallel": Case("data_parallel"),
    "two batches a step": Case("row_wise", accumulate=2),
    "evaluated in between": Case("row_wise", accumulate=2, evaluate_every=1),
    "evaluated in between, replicated": Case("data_parallel", evaluate_every=2),
    "bfloat16": Case("table_wise", precision=torch.bfloat16),
    "rounded between ranks": Case("row_wise", evaluate_every=3, comms="fp16"),
}
PER_EPOCH = 7
"""Batches, the last of fewer rows, so that ranks are filled up with rows of no weight."""


def train(
    config: RankConfig, inputs: RankInputs, ranks: Ranks, case: Case, kind: PipelineKind
) -> dict[str, Any]:
    """Train two epochs and return all that came out, and how many batches had been taken after each step."""
    asked = Asked(250, ranks.rank, ranks.world_size)
    batches = list(inputs.data.training(asked, seed=0).batches())
    model = build_model(config, inputs.data.features, world_size=ranks.world_size)
    tables = config.optimizers.tables
    plan = plan_on_ranks(model, ranks, config.sharding, batch_size=250, optimizer=tables)
    sharded = place_model(model, plan, ranks, tables, std=0.1, seed=0)
    updates = build_updates(sharded, config.optimizers, total_steps=100)
    passes = build_passes(kind, Trained(sharded, ranks, precision=case.precision))
    losses, taken, steps = [], [], []
    evaluated: list[np.ndarray] = []

    def counted() -> Iterator[RankingBatch]:
        for number, batch in enumerate(batches, 1):
            taken.append(number)
            yield batch

    for _ in range(2):
        reports = train_steps(passes, updates, counted(), steps_done=len(steps), accumulate=case.accumulate)
        for report in reports:
            losses.append(report.loss.item())
            steps.append((report.step, report.num_rows, report.num_batches, taken[-1]))
            if case.evaluate_every and report.step % case.evaluate_every == 0:
                passes.release()
                sharded.eval()
                with torch.no_grad():
                    output = sharded(*plain_arguments(batches[0], 0).positional)
                evaluated.append(output.logits.numpy().copy())
    passes.release()
    weights = sharded.state_dict()
    shards = {
        f"{table.name} {row} {column}": part.numpy().copy()
        for table in find_tables(sharded)
        for row, column, part in table_shards(weights[table.key])
    }
    dense = {name: value.detach().numpy().copy() for name, value in dense_parameters(sharded).items()}
    return {"losses": losses, "steps": steps, "evaluated": evaluated, "weights": shards | dense}


def train_both_ways(problem: dict[str, Any]) -> dict[str, dict[str, Any]]:
    with process_group() as ranks:
        facts: dict[str, dict[str, Any]] = {}
        for name, case in CASES.items():
            comms = {"forward": case.comms, "backward": case.comms}
            rules = {"tables": {"t_*": {"sharding_types": [case.placement]}}, "comms": comms}
            # Dropout: random numbers are drawn for batches in the same order.
            config = rank_config(problem, "unused", sharding=rules, model={"dropout": 0.3})
            inputs = read_inputs(config)
            facts[name] = {
                kind: train(config, inputs, ranks, case, kind) for kind in ("plain", "sparse_dist")
            }
        return facts


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("passes")))


@pytest.fixture(scope="module")
def one_rank(problem: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(train_both_ways, 1, problem)


@pytest.fixture(scope="module")
def two_ranks(problem: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(train_both_ways, 2, problem)


@pytest.fixture(scope="module")
def four_ranks(problem: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(train_both_ways, 4, problem)


@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", ["one_rank", "two_ranks", "four_ranks"])
def test_the_pipeline_equals_the_plain_loop(case: str, world: str, request: pytest.FixtureRequest):
    for facts in request.getfixturevalue(world):
        plain, piped = facts[case]["plain"], facts[case]["sparse_dist"]
        assert piped["losses"] == plain["losses"]
        assert len(set(plain["losses"])) == len(plain["losses"])
        assert [step[:3] for step in piped["steps"]] == [step[:3] for step in plain["steps"]]
        assert piped["weights"].keys() == plain["weights"].keys()
        for name, weight in plain["weights"].items():
            np.testing.assert_array_equal(piped["weights"][name], weight, err_msg=name)
        np.testing.assert_array_equal(piped["evaluated"], plain["evaluated"])
        every = CASES[case].evaluate_every
        assert len(plain["evaluated"]) == (len(plain["losses"]) // every if every else 0)


@pytest.mark.ranks
def test_the_pipeline_takes_batches_ahead_and_says_which_are_trained(two_ranks: list[dict[str, Any]]):
    for facts in two_ranks:
        plain, piped = facts["row_wise"]["plain"]["steps"], facts["row_wise"]["sparse_dist"]["steps"]
        assert [taken for *_, taken in plain] == [*range(1, PER_EPOCH + 1)] * 2
        assert [taken for *_, taken in piped] == [3, 4, 5, 6, 7, 7, 7] * 2
        groups = [trained for _, _, trained, _ in facts["two batches a step"]["sparse_dist"]["steps"]]
        assert groups == [2, 2, 2, 1] * 2
