"""Retrievers of several interests as runs: on ranks, stopped and gone on, planned, asked again, refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.ranking import losses_of, run_until
from tests.jobs.retrieving import STILL, retrieve_config, retrieve_each
from tests.jobs.test_rank_finetune import write_problem
from tests.ranks import run_ranks
from trec_semid.core.config import dump_toml, load_config
from trec_semid.jobs import evaluate, plan
from trec_semid.jobs.retrieve import run
from trec_semid.runtime.logs import read_events

COSINE = {"item_similarity_is_cosine": True, "item_temperature": 0.2, "code_weight": 0.0}
ATTENTION: dict[str, Any] = {"model": {"kind": "comirec", "num_interests": 3}, "loss": COSINE, "window": 2}
ROUTING: dict[str, Any] = {
    "model": {"kind": "comirec", "num_interests": 2, "extractor": "routing", "transformer": STILL},
    "loss": COSINE,
}
GEMIREC: dict[str, Any] = {"kind": "gemirec", "transformer": STILL, "dropout": 0.0, "num_interests": 3}
LEARNED: dict[str, Any] = {
    "model": {**GEMIREC, "interest": {"codebook_size": 6, "num_levels": 2}, "state_weight": 0.5},
    "loss": COSINE,
    "window": 2,
}
CODES: dict[str, Any] = {
    "model": {**GEMIREC, "dictionary": "codes", "interest": {"num_levels": 2}, "posterior": "decoupled"},
    "loss": COSINE,
}
FREE: dict[str, Any] = {"model": {**GEMIREC, "interests": "free"}, "loss": COSINE}
DICTIONARIES, ONE_EPOCH = ("learned", "codes"), {"train": {"max_epochs": 1}}
KINDS = {"attention": ATTENTION, "routing": ROUTING, "learned": LEARNED, "codes": CODES}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory):
    return write_problem(str(tmp_path_factory.mktemp("interests")))


@pytest.mark.ranks
@pytest.mark.parametrize(("world_size", "names"), [(2, ("attention", "codes")), (4, ("routing", "learned"))])
def test_several_ranks_train_and_retrieve_as_one(
    problem: dict[str, Any], tmp_path: Path, world_size: int, names: tuple[str, ...]
):
    # A dictionary moves with every epoch: what has none goes through one.
    kinds = {name: KINDS[name] | ({} if name in DICTIONARIES else ONE_EPOCH) for name in names}
    one = retrieve_each(problem, str(tmp_path / "one"), kinds)
    several = run_ranks(retrieve_each, world_size, problem, str(tmp_path / "several"), kinds)[0]
    for name, expected in one.items():
        found = several[name]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert found["metrics"].keys() == expected["metrics"].keys()
        assert found["metrics"]["test/ndcg@10"] == pytest.approx(
            expected["metrics"]["test/ndcg@10"], abs=0.01
        )


@pytest.mark.parametrize("name", KINDS)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    changes = {**KINDS[name], "model": {**KINDS[name]["model"], "dropout": 0.3}}
    whole = run(retrieve_config(problem, str(tmp_path / "whole"), **changes)).metrics
    stopped = retrieve_config(problem, str(tmp_path / "stopped"), checkpoints={"every_steps": 2}, **changes)
    run_until(monkeypatch, stopped, 5, run)
    assert run(stopped).metrics == whole


@pytest.mark.parametrize("name", KINDS)
def test_a_finished_run_is_planned_and_asked_again(problem: dict[str, Any], tmp_path: Path, name: str):
    config = retrieve_config(problem, str(tmp_path / "run"), **KINDS[name])
    metrics = run(config).metrics
    losses = losses_of(config.run)
    assert sum(losses[-3:]) < sum(losses[:3])
    again = {"run": str(tmp_path / "again"), "runs": [config.run]}
    assert evaluate.run(evaluate.EvaluateConfig.model_validate(again)).metrics == metrics
    file = tmp_path / "retrieve.toml"
    file.write_text(dump_toml(config))
    sets = ['cluster="configs/cluster/h100_1x8.toml"', f"out={tmp_path}/plan.json"]
    planned = plan.run(load_config(plan.PlanConfig, [str(file)], sets))
    placed = json.loads((Path(config.run) / "plan.json").read_text())
    assert {table.name for table in planned[0].plan.tables} == {one["name"] for one in placed["tables"]}


def test_gemirec_counts_probabilities_of_interests_unless_told_otherwise(
    problem: dict[str, Any], tmp_path: Path
):
    config = retrieve_config(problem, str(tmp_path / "run"), **LEARNED)
    metrics = run(config).metrics
    asked = {}
    for merge in ("weighted", "score"):
        again: dict[str, Any] = {"run": str(tmp_path / merge), "runs": [config.run]}
        again["retrieval"] = {"interests": {"merge": merge}}
        asked[merge] = evaluate.run(evaluate.EvaluateConfig.model_validate(again)).metrics
    assert asked["weighted"] == metrics
    assert asked["score"]["test/ndcg@10"] != metrics["test/ndcg@10"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": {"code_weight": 1.0}}, "predicts items, not codes: set loss.code_weight = 0"),
        (
            {"loss": {"code_weight": 1.0, "item_weight": 0.0}},
            "set loss.item_weight = 1, loss.code_weight = 0",
        ),
        ({"loss": {"code_weight": 0.0}, "evaluation": {"beam_width": 40}}, "leave out evaluation.beam_width"),
        (
            {"model": {**GEMIREC, "dictionary": "codes"}, "semantic_ids": None},
            "model.dictionary = 'codes' needs codes: give semantic_ids",
        ),
        (
            {"model": {**GEMIREC, "interest": {"codebook_size": 2}}},
            "model.num_interests: the dictionary has 2",
        ),
        (
            {"model": {**GEMIREC, "interest": {"num_levels": 2}, "interest_beam": 2}},
            "model.interest_beam: 2 prefixes are few for 3 interests",
        ),
        (
            {"model": {**GEMIREC, "interests": "free", "state_weight": 1.0, "taught": "own"}},
            "model.state_weight, model.taught: free interests are of no dictionary",
        ),
        (
            {"model": {**GEMIREC, "interests": "history", "posterior": "decoupled"}},
            "model.posterior: the interests of a history are counted, not predicted: leave out",
        ),
        (
            {"model": {**GEMIREC, "dictionary": "codes", "interest": {"decay": 0.5}}},
            "model.interest.decay: codes are read, not learnt: leave out model.interest.decay, or set model",
        ),
    ],
)
def test_what_makes_no_sense_with_interests_is_refused(
    problem: dict[str, Any], changes: dict[str, Any], words: str
):
    with pytest.raises(ValueError, match=words):
        retrieve_config(problem, "r", **{**ATTENTION, **changes})


@pytest.mark.parametrize(
    "changes", [FREE, {**LEARNED, "model": {**LEARNED["model"], "interests": "history"}}]
)
def test_the_other_arms_of_gemirec_train_and_retrieve(
    problem: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
):
    config = retrieve_config(problem, str(tmp_path / "run"), **changes)
    assert 0 < run(config).metrics["test/recall@10"] <= 1
    losses = losses_of(config.run)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_run_tells_of_its_dictionary_and_keeps_it_in_its_checkpoints(
    problem: dict[str, Any], tmp_path: Path
):
    config = retrieve_config(problem, str(tmp_path / "run"), **LEARNED)
    metrics = run(config).metrics
    assert 0 < metrics["all/interest_error"] < 1
    assert metrics["all/interest_perplexity"] > 1
    told = [event for event in read_events(f"{config.run}/log.jsonl") if "valid/interest_moved" in event]
    assert len(told) == 2
    saved = (Path(config.run) / "checkpoints").rglob("*")
    assert any(path.is_file() for path in saved)
