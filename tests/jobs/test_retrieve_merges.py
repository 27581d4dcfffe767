"""Lists of several interests and of an index, in runs and when these are asked again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.retrieving import retrieve_config
from tests.jobs.test_rank_finetune import write_problem
from tests.ranks import run_ranks
from trec_semid.core.errors import ConfigError
from trec_semid.evaluation.retrieval import retrieval_metrics
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.jobs import evaluate
from trec_semid.jobs.retrieve import run
from trec_semid.metrics.target_positions import ListedTargets, UserItems
from trec_semid.search.interests import InterestSearch
from trec_semid.training.retrieval import inputs
from trec_semid.training.retrieval.evaluation import merging

COMIREC: dict[str, Any] = {"model": {"kind": "comirec", "num_interests": 3}, "loss": {"code_weight": 0.0}}
LIST_METRICS = {"category_field": "genres", "distance": True, "num_users": 40}
OF_INTERESTS = ("interest_cosine", "interest_overlap@5", "own_interest_share@5")
OF_LISTS = ("categories@5", "list_distance@10")
DIVERSITY = {"merge": "diversity", "diversity_field": "genres", "diversity_weight": 2.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "score": {"interests": {"merge": "score"}},
    "quota": {"interests": {"merge": "quota"}},
    "diversity": {"interests": DIVERSITY},
    "flat": {"index": {"kind": "flat"}},
    "ivf": {"index": {"kind": "ivf", "nlist": 8, "nprobe": 1}},
    "quota of hnsw": {"interests": {"merge": "quota"}, "index": {"kind": "hnsw"}},
}

World = tuple[dict[str, str], str]
"""A problem, and the folder of a run of it."""
Asked = tuple[str, dict[str, dict[str, float]]]
"""A folder, and what the run's lists come to under every setting."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("merges")
    problem = write_problem(str(folder))
    evaluation = {"list_metrics": LIST_METRICS}
    run(retrieve_config(problem, str(folder / "run"), **COMIREC, evaluation=evaluation))
    return problem, str(folder / "run")


def results_of(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "metrics.json").read_text())


def shown_in(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "interests.json").read_text())


def ask(run_folder: str, folder: str) -> dict[str, dict[str, float]]:
    """Return what all settings make of a finished run, by their names."""
    metrics = {}
    for name, settings in SETTINGS.items():
        config = {"run": f"{folder}/{name}", "runs": [run_folder], "retrieval": settings}
        metrics[name] = evaluate.run(evaluate.EvaluateConfig.model_validate(config)).metrics
    return metrics


@pytest.fixture(scope="module")
def asked(world: World, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = str(tmp_path_factory.mktemp("asked"))
    return folder, ask(world[1], folder)


def test_a_run_of_several_interests_says_how_far_apart_they_are(world: World):
    results = results_of(world[1])
    for split in ("valid", "test"):
        assert results["counts"][f"{split}/list_users"] == 40
        for name in (*OF_INTERESTS, *OF_LISTS):
            assert f"{split}/{name}" in results["metrics"]
        assert -1 <= results["metrics"][f"{split}/interest_cosine"] < 1
        assert 0 < results["metrics"][f"{split}/own_interest_share@5"] <= 1
        assert results["metrics"][f"{split}/categories@5"] >= 1


def test_every_merge_and_index_is_measured_on_the_lists_it_makes(world: World, asked: Asked):
    folder, metrics = asked
    plain = results_of(world[1])["metrics"]
    for name, of_run in metrics.items():
        targets = read_target_positions(f"{folder}/{name}", "test")
        expected, _ = retrieval_metrics(targets, cutoffs=(5, 10))
        assert {key: of_run[f"test/{key}"] for key in expected} == pytest.approx(expected)
        assert of_run.keys() >= {f"test/{name}" for name in (*OF_INTERESTS, *OF_LISTS)}
    assert metrics["score"] == plain
    assert metrics["diversity"]["test/categories@10"] > plain["test/categories@10"]
    assert metrics["quota"]["test/interest_cosine"] == plain["test/interest_cosine"]


def test_an_index_is_judged_by_exact_lists(world: World, asked: Asked):
    _, metrics = asked
    plain = results_of(world[1])["metrics"]
    of_flat = {key: value for key, value in metrics["flat"].items() if "index_recall" not in key}
    assert of_flat == plain
    assert metrics["flat"]["valid/index_recall@10"] == 1.0
    assert 0.2 < metrics["ivf"]["valid/index_recall@10"] < 1.0
    assert metrics["quota of hnsw"]["valid/index_recall@5"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.ranks
def test_two_ranks_merge_and_measure_as_one(world: World, asked: Asked, tmp_path: Path):
    folder, one = asked
    two = run_ranks(ask, 2, world[1], str(tmp_path))[0]
    for name, settings in SETTINGS.items():
        assert two[name].keys() == one[name].keys()
        if "index" in settings:
            places = (f"{tmp_path}/{name}", f"{folder}/{name}")
            assert [results_of(place)["counts"]["all/index_stretches"] for place in places] == [2, 1]
        if "index" not in settings or name == "flat":
            assert two[name] == pytest.approx(one[name], abs=1e-6)
            of_two, of_one = shown_in(f"{tmp_path}/{name}"), shown_in(f"{folder}/{name}")
            for user, alone in zip(of_two["users"], of_one["users"], strict=True):
                assert user["user_row"] == alone["user_row"]
                for part in ("history", "listed"):
                    assert [item["item_row"] for item in user[part]] == [
                        item["item_row"] for item in alone[part]
                    ]
                assert np.abs(np.subtract(user["paths"], alone["paths"])).max() < 1e-3


def test_few_users_are_merged_together_where_memory_is_little(
    world: World, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    together: list[int] = []

    def places(search: InterestSearch, queries: Any, users: UserItems, length: int) -> ListedTargets:
        together.append(len(users.num_targets))
        return search_places(search, queries, users, length)

    search_places = InterestSearch.places
    monkeypatch.setattr(merging, "_NUMBERS_AT_ONCE", 900)
    monkeypatch.setattr(InterestSearch, "places", places)
    config = {"run": f"{tmp_path}/few", "runs": [world[1]], "retrieval": SETTINGS["diversity"]}
    metrics = evaluate.run(evaluate.EvaluateConfig.model_validate(config)).metrics
    assert 5 <= max(together) <= 10  # of 3 interests, lists of 10, 3 places or 3 categories of each item
    assert metrics == pytest.approx(asked[1]["diversity"])


def test_lists_of_all_methods_can_be_told_apart_by_categories(world: World, tmp_path: Path):
    problem, comirec = world
    bare = {"dataset": problem["dataset"]}
    popular = retrieve_config(
        bare,
        str(tmp_path / "popular"),
        model={"kind": "popularity"},
        evaluation={"list_metrics": {"category_field": "genres", "num_users": 40}},
    )
    metrics = run(popular).metrics
    assert 1 <= metrics["test/categories@5"] <= metrics["test/categories@10"]
    assert not any("distance" in key or "interest" in key for key in metrics)
    one = {**COMIREC, "model": {"kind": "comirec", "num_interests": 1}}
    single = retrieve_config(problem, str(tmp_path / "one"), **one, evaluation={"list_metrics": LIST_METRICS})
    of_one = run(single).metrics
    assert of_one.keys() >= {f"test/{name}" for name in OF_LISTS}
    assert not any("interest" in key for key in of_one)
    of_several = results_of(comirec)["metrics"]
    assert np.isfinite([of_one["test/list_distance@10"], of_several["test/list_distance@10"]]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"kind": "comirec", "num_interests": 1}, "evaluation": {"interests": {}}},
            r"evaluation\.interests: model\.kind = 'comirec' has one interest a user: leave out",
        ),
        (
            {"evaluation": {"interests": {"merge": "diversity"}}},
            r"give evaluation\.interests\.diversity_field",
        ),
        (
            {"evaluation": {"interests": {"diversity_field": "genres"}}},
            r"merge = 'score' reads no categories: leave it out, or set evaluation\.interests\.merge",
        ),
        (
            {"evaluation": {"interests": {"merge": "weighted"}}},
            r"model\.kind = 'comirec' have none: set evaluation\.interests\.merge = 'score'",
        ),
        (
            {
                "model": {"kind": "gemirec", "interests": "free"},
                "evaluation": {"interests": {"merge": "weighted"}},
            },
            r"model\.kind = 'gemirec' have none: set evaluation\.interests\.merge = 'score'",
        ),
        (
            {"evaluation": {"interests": {"merge": "quota", "diversity_weight": 9.0}}},
            r"merge = 'quota' counts no categories: leave out evaluation\.interests\.diversity_weight, or",
        ),
        (
            {
                "model": {"kind": "sasrec"},
                "loss": {"code_weight": 1.0},
                "evaluation": {"index": {"kind": "hnsw"}},
            },
            r"set loss\.code_share = 0, or leave out evaluation\.index",
        ),
        (
            {
                "model": {"kind": "sasrec"},
                "loss": {"code_weight": 1.0, "item_weight": 0.0},
                "evaluation": {"beam_width": 20, "index": {"kind": "flat"}},
            },
            r"a beam makes the lists: leave out evaluation\.index",
        ),
        (
            {
                "model": {"kind": "sasrec"},
                "loss": {"code_weight": 1.0, "item_weight": 0.0},
                "evaluation": {"index": {"kind": "flat"}, "list_metrics": {"distance": True}},
            },
            r"(?s)items have none: leave out evaluation\.index.*set evaluation\.list_metrics\.distance = f",
        ),
        (
            {
                "model": {"kind": "popularity"},
                "semantic_ids": None,
                "evaluation": {"index": {"kind": "flat"}, "interests": {}},
            },
            r"leave out evaluation\.interests, evaluation\.index",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(world: World, changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        retrieve_config(world[0], "r", **{**COMIREC, **changes})


def test_a_field_that_items_do_not_have_is_refused_before_anything_is_written(world: World, tmp_path: Path):
    problem, _ = world
    for field, key, evaluation in (
        ("genre", "list_metrics.category_field", {"list_metrics": {"category_field": "genre"}}),
        (
            "genre",
            "interests.diversity_field",
            {"interests": {"merge": "diversity", "diversity_field": "genre"}},
        ),
        ("year", "list_metrics.category_field", {"list_metrics": {"category_field": "year"}}),
        (
            "year",
            "interests.diversity_field",
            {"interests": {"merge": "diversity", "diversity_field": "year"}},
        ),
    ):
        told = {
            "genre": "no field 'genre'.*Did you mean 'genres'",
            "year": "'year' is a field of numbers.*Name one of categories: genres",
        }[field]
        config = retrieve_config(problem, str(tmp_path / "r"), **COMIREC, evaluation=evaluation)
        with pytest.raises(ConfigError, match=rf"evaluation\.{key}: {told}"):
            run(config)
    assert not (tmp_path / "r").exists()


def test_a_finished_run_without_probabilities_is_not_asked_to_weigh(world: World, tmp_path: Path):
    settings = {"interests": {"merge": "weighted"}}
    config = {"run": str(tmp_path / "r"), "runs": [world[1]], "retrieval": settings}
    with pytest.raises(ConfigError, match=r"set evaluation\.interests\.merge = 'score'"):
        evaluate.run(evaluate.EvaluateConfig.model_validate(config))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("ranks", "nlist", "told"), [(1, 10_000, "10000 lists of 40 items"), (4, 20, "20 lists of 10 items")]
)
def test_more_lists_of_an_index_than_items_of_a_rank_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, nlist: int, told: str
):
    monkeypatch.setattr(inputs, "num_ranks", lambda: ranks)
    settings = {"index": {"kind": "ivf", "nlist": nlist, "nprobe": 1}}
    config = {"run": str(tmp_path / "r"), "runs": [world[1]], "retrieval": settings}
    with pytest.raises(ConfigError, match=rf"evaluation\.index\.nlist: {told} of a rank"):
        evaluate.run(evaluate.EvaluateConfig.model_validate(config))
    assert not (tmp_path / "r").exists()


def test_a_few_users_are_written_for_the_report(world: World):
    shown = shown_in(world[1])
    assert (shown["split"], shown["num_interests"], len(shown["users"])) == ("valid", 3, 4)
    for user in shown["users"]:
        assert len(user["listed"]) == 10
        assert [len(path) for path in user["paths"]] == [10, 10, 10]
        assert 0 < user["explained"] <= 1
        assert {item["interest"] for item in user["listed"]} <= {0, 1, 2}
        rows = [item["item_row"] for item in user["history"]]
        assert not set(rows) & {item["item_row"] for item in user["listed"]} - set(user["targets"])
