"""AsymRec from config to metrics: content in, codes out, its arms, its ways to list, and several ranks."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.jobs.ranking import losses_of
from tests.jobs.retrieving import STILL, retrieve_config, retrieve_with_plan
from tests.jobs.test_rank_finetune import write_problem
from tests.ranks import run_ranks
from trec_semid.core.errors import ConfigError
from trec_semid.jobs.retrieve import run
from trec_semid.search.graph import build_all_edges
from trec_semid.training.retrieval.evaluation import listing

MIXTURE = {"content_projection": "mixture", "content_experts": 2, "content_hidden_dim": 16}
NO_CONTENT = {"content": [], "content_projection": "linear", "content_experts": 4, "content_hidden_dim": 256}
ASYMREC = {
    "model": {"kind": "asymrec", "transformer": STILL, "dropout": 0.0},
    "item": {"id": False, "fields": [], "content": ["text", "image"], "codes": False, **MIXTURE},
    "loss": {"item_weight": 0.0, "code_heads": "chained", "code_facets": 2, "code_temperature": 0.1},
    "evaluation": {"beam_width": 40, "list_metrics": {"state_rank": True}},
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("asymrec")))


def arm(**changes: dict[str, Any]) -> dict[str, Any]:
    return {**ASYMREC, **{key: {**ASYMREC[key], **change} for key, change in changes.items()}}


def test_it_learns_codes_from_content_and_a_beam_lists_them(problem, tmp_path):
    config = retrieve_config(problem, str(tmp_path / "r"), **ASYMREC, train={"max_epochs": 6})
    metrics, losses = run(config).metrics, losses_of(config.run)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert metrics["valid/beam_agreement@10"] == 1.0  # as wide as there are tuples
    assert 1 < metrics["valid/state_rank"] <= 8


@pytest.mark.parametrize(
    "changes",
    [
        {"item": {"id": True, **NO_CONTENT}},
        {"item": {"codes": True, **NO_CONTENT}},
        {"item": {"id": True, "codes": True}},
        {
            "loss": {"item_weight": 1.0, "code_weight": 0.0, "code_heads": "independent", "code_facets": 1},
            "item": {"codes": True},
            "evaluation": {"beam_width": None},
        },
        {
            "loss": {"code_heads": "independent", "code_facets": 1},
            "evaluation": {"beam_width": None, "graph": {"pool": 40, "num_edges": 30, "num_steps": 2}},
        },
    ],
    ids=["ID input", "code input", "ID, content and codes", "continuous output", "graph"],
)
def test_each_arm_is_a_config(problem, tmp_path, changes):
    values = arm(**changes)
    inputs = problem
    if changes.get("loss", {}).get("item_weight"):
        # Content alone is multiplied with states: there are no codes.
        inputs = {"dataset": problem["dataset"]}
    metrics = run(retrieve_config(inputs, str(tmp_path / "r"), **values, train={"max_epochs": 1})).metrics
    assert metrics["test/recall@10"] > 0
    assert metrics.get("valid/graph_agreement@10", 1.0) == 1.0  # everything is reached


def test_a_narrow_graph_says_what_it_misses(problem, tmp_path):
    values = arm(
        loss={"code_heads": "independent", "code_facets": 1},
        evaluation={"beam_width": None, "graph": {"pool": 10, "num_edges": 2, "num_steps": 1}},
    )
    metrics = run(retrieve_config(problem, str(tmp_path / "r"), **values, train={"max_epochs": 1})).metrics
    assert 0.1 < metrics["valid/graph_agreement@10"] < 0.99


def test_a_graph_is_built_again_only_where_codes_or_their_tables_have_moved(problem, tmp_path, monkeypatch):
    built = []

    def counted(tables, *args):
        built.append(tables.clone())
        return build_all_edges(tables, *args)

    monkeypatch.setattr(listing, "build_all_edges", counted)
    values = arm(
        loss={"code_heads": "independent", "code_facets": 1},
        evaluation={"beam_width": None, "graph": {"pool": 10, "num_edges": 4, "num_steps": 1}},
    )
    run(retrieve_config(problem, str(tmp_path / "r"), **values, train={"max_epochs": 2}))
    # An evaluation after each epoch; at the end two splits and the agreement, of one model, the best.
    assert 2 <= len(built) <= 3
    assert not any(torch.equal(one, other) for one, other in pairwise(built))


def test_facets_that_codes_do_not_make_are_refused_before_anything_is_written(problem, tmp_path):
    values = arm(loss={"code_facets": 4})
    with pytest.raises(ConfigError, match=r"loss\.code_facets: 6 codes make no 4 facets of one length"):
        run(retrieve_config(problem, str(tmp_path / "r"), **values))
    assert not (tmp_path / "r").exists()


@pytest.mark.ranks
@pytest.mark.parametrize(
    "changes",
    [
        ASYMREC,
        arm(
            loss={"code_heads": "independent", "code_facets": 1},
            evaluation={"beam_width": None, "graph": {"pool": 12, "num_edges": 4}},
        ),
    ],
    ids=["beam", "graph"],
)
def test_two_ranks_train_and_list_as_one(problem, tmp_path, changes):
    one = retrieve_with_plan(problem, str(tmp_path / "one"), "row_wise", changes)
    two = run_ranks(retrieve_with_plan, 2, problem, str(tmp_path / "two"), "row_wise", changes)[0]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["metrics"].keys() == one["metrics"].keys()
    for name in ("test/ndcg@10", "test/state_rank"):
        assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=0.02, abs=0.01)
