from pathlib import Path

import pytest

from tests.datasets import write_small_dataset
from tests.report.conftest import Study
from tests.report.fake_runs import write_rank_run, write_tokenize_run
from trec_semid.core.errors import DataError
from trec_semid.report.arm_names import own_config, representation
from trec_semid.report.arms import group_arms, list_rule
from trec_semid.report.collect import FinishedRun, collect_runs


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_small_dataset(str(tmp_path / "data"), num_users=20)


def test_runs_that_differ_in_seed_alone_are_one_arm_with_the_item_arm_first(study: Study):
    arms = group_arms(study.collection)
    names = ["item", "both · mmq", "both · rq_kmeans", "semantic · mmq", "semantic · rq_kmeans"]
    assert [each.arm.name for each in arms] == names
    assert [each.arm.series for each in arms] == [0, 1, 2, 3, 4]
    assert [each.arm.is_baseline for each in arms] == [True, False, False, False, False]
    assert all(each.arm.seeds == [0, 1] for each in arms)
    assert arms[0].arm.parameters == {"dense": 1234, "tables": 960}


def test_a_tokenizer_fitted_anew_for_every_seed_is_still_one_arm(tmp_path: Path, dataset: str):
    runs = []
    for seed in (0, 1):
        codes = write_tokenize_run(str(tmp_path / f"mmq-{seed}"), dataset, seed=seed)
        folder = str(tmp_path / f"rank-{seed}")
        runs.append(write_rank_run(folder, dataset, "both", semantic_ids=codes, seed=seed))
    (arm,) = group_arms(collect_runs(runs))
    assert (arm.arm.name, arm.arm.seeds) == ("both · mmq", [0, 1])


def test_arms_of_equal_name_are_told_apart_by_what_differs(tmp_path: Path, dataset: str):
    runs = [
        write_rank_run(str(tmp_path / "a"), dataset, learning_rate=0.01),
        write_rank_run(str(tmp_path / "b"), dataset, learning_rate=0.1),
    ]
    names = [each.arm.name for each in group_arms(collect_runs(runs))]
    assert names == ["item (train.learning_rate = 0.01)", "item (train.learning_rate = 0.1)"]


def test_arms_are_told_apart_by_their_tokenizers_configs(tmp_path: Path, dataset: str):
    runs = []
    for size in (16, 32):
        codes = write_tokenize_run(str(tmp_path / f"mmq-{size}"), dataset, num_codes=size)
        runs.append(write_rank_run(str(tmp_path / f"rank-{size}"), dataset, "both", semantic_ids=codes))
    names = [each.arm.name for each in group_arms(collect_runs(runs))]
    assert names == [
        "both · mmq (tokenize.tokenizer.num_codes = 16)",
        "both · mmq (tokenize.tokenizer.num_codes = 32)",
    ]


def test_a_label_is_part_of_the_name_and_keeps_equal_configs_apart(tmp_path: Path, dataset: str):
    runs = [
        write_rank_run(str(tmp_path / "a"), dataset),
        write_rank_run(str(tmp_path / "b"), dataset, label="again"),
    ]
    assert [each.arm.name for each in group_arms(collect_runs(runs))] == ["item", "item · again"]


def test_codes_that_an_item_arm_does_not_read_do_not_split_it(tmp_path: Path, dataset: str):
    runs = []
    for seed, kind in enumerate(("mmq", "rq_kmeans")):
        codes = write_tokenize_run(str(tmp_path / kind), dataset, kind)
        runs.append(write_rank_run(str(tmp_path / f"rank-{seed}"), dataset, semantic_ids=codes, seed=seed))
    (arm,) = group_arms(collect_runs(runs))
    assert (arm.arm.name, arm.arm.tokenizer) == ("item", None)


def test_the_same_config_and_seed_twice_is_refused(tmp_path: Path, dataset: str):
    runs = [write_rank_run(str(tmp_path / name), dataset, seed=3) for name in ("a", "b")]
    with pytest.raises(DataError, match="same config and seed as run 'a'"):
        group_arms(collect_runs(runs))


def test_the_baseline_can_be_chosen_and_a_wrong_name_lists_the_arms(study: Study):
    arms = group_arms(study.collection, "both · mmq")
    assert arms[0].arm.name == "both · mmq"
    assert arms[0].arm.is_baseline
    with pytest.raises(DataError, match=r"The arms are: both · mmq, .*item"):
        group_arms(study.collection, "bth")


def test_without_an_item_arm_the_first_by_name_is_the_baseline(study: Study):
    arms = group_arms(collect_runs(study.runs[2:]))
    assert arms[0].arm.name == "both · mmq"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model": {"kind": "ensemble", "runs": ["a", "b"]}}, "2 runs"),
        ({"model": {"kind": "ensemble", "runs": ["runs/a"]}}, "a"),
        ({"model": {"kind": "ensemble", "runs": ["runs/hybrid/seed-12"]}}, "hybrid"),
        ({"model": {"kind": "popularity"}}, ""),
        ({"model": {"kind": "rpg"}, "item": {"id": False}, "semantic_ids": "codes"}, "codes"),
        ({"item": {"fields": ["brand"], "content": ["text"]}}, "ID + brand + text"),
    ],
)
def test_what_an_item_is_to_a_retriever(config: dict[str, object], said: str):
    assert representation(FinishedRun("r", "retrieve", config, {}, {}, "r")) == said


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({}, "every item scored, history left out"),
        ({"masks_history": False, "beam_width": 20}, "beam of 20 tuples, history kept"),
        (
            {"unseen_penalty": 0.5},
            "every item scored, items without a training event 0.5 lower, history left out",
        ),
    ],
)
def test_how_a_retriever_lists_the_catalogue(evaluation: dict[str, object], said: str):
    assert list_rule(FinishedRun("r", "retrieve", {"evaluation": evaluation}, {}, {}, "r")) == said


def asked_again(seed: int, of: str, penalty: float) -> FinishedRun:
    model = {"kind": "ensemble", "runs": [f"runs/{of}/seed-{seed}"]}
    config = {"model": model, "evaluation": {"unseen_penalty": penalty}, "run": f"r{seed}", "seed": seed}
    return FinishedRun("r", "retrieve", config, {}, {}, "r")


def test_seeds_of_a_run_that_is_asked_again_are_one_arm():
    config = own_config(asked_again(0, "hybrid", 1.0))
    assert config == own_config(asked_again(1, "hybrid", 1.0))
    assert config != own_config(asked_again(0, "narrow", 1.0))
    assert config != own_config(asked_again(0, "hybrid", 2.0))
