from pathlib import Path

import pytest
from scipy import stats

from tests.datasets import write_small_dataset
from tests.report.fake_runs import write_rank_run, write_tokenize_run
from trec_semid.runtime.runs import RunFolder
from trec_semid.study.compare import compare, with_tokenizers
from trec_semid.study.summary import as_markdown, lay_out

METRICS = [
    "test/auc",
    "test/gauc",
    "test-frozen/gauc",
    "valid/auc",
    "test/gauc/popularity_head",
    "all/entropy",
]
SKILL = {"item": 0.2, "both": 1.6, "same": 0.2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("runs")
    dataset = write_small_dataset(str(folder / "data"), num_users=100, num_items=60)
    made = []
    for seed in range(3):
        codes = write_tokenize_run(str(folder / f"mmq/seed-{seed}"), dataset, seed=seed)
        made.append(("mmq", "tokenize", seed, codes))
        for step, skill in SKILL.items():
            place = str(folder / step / f"seed-{seed}")
            made.append((step, "rank", seed, write_rank_run(place, dataset, seed=seed, skill=skill)))
    return [
        {
            "step": step,
            "label": f"{step}-seed-{seed}",
            "seed": seed,
            "verb": verb,
            "folders": [place],
            "metrics": RunFolder(place, verb).read_json("metrics.json")["metrics"],
        }
        for step, verb, seed, place in made
    ]


def test_rank_steps_are_paired_over_seeds_and_users_also_in_strata(runs: list[dict]):
    found = compare(runs, METRICS, "item", 300)
    stated = next(run["metrics"] for run in runs if run["step"] == "both")
    keys = [key for key in METRICS if key in stated]
    assert {"test/auc", "test/gauc", "test-frozen/gauc"} <= set(keys)
    for key in keys:
        test = found["both"][key]
        assert test.paired_over == "seeds and users"
        assert test.seeds == 3
        own = [
            run["metrics"][key] - base["metrics"][key]
            for run in runs
            for base in runs
            if run["step"] == "both" and base["step"] == "item" and run["seed"] == base["seed"]
        ]
        assert test.difference == pytest.approx(sum(own) / 3, abs=1e-5)
    assert found["both"]["test/gauc"].verdict == "higher"
    assert found["same"]["test/gauc"].verdict == "not distinguishable"
    assert found["same"]["test/gauc"].p_holm >= found["same"]["test/gauc"].p
    assert "mmq" not in found


def test_arms_carry_the_metrics_of_the_codes_they_read(runs: list[dict]):
    needs = {(run["step"], run["seed"]): [f"mmq-seed-{run['seed']}"] for run in runs if run["step"] == "both"}
    widened = {run["label"]: run["metrics"] for run in with_tokenizers(runs, needs)}
    assert widened["both-seed-1"]["all/entropy"] == widened["mmq-seed-1"]["all/entropy"]
    assert "all/entropy" not in widened["item-seed-1"]


def test_an_evaluation_has_the_metrics_of_the_codes_of_the_run_it_asked():
    codes, tuned = {"all/entropy": 1.5, "all/churn": 0.0}, {"all/churn": 0.25, "test/auc": 0.7}
    runs = [
        {"step": step, "label": step, "seed": None, "verb": verb, "metrics": metrics}
        for step, verb, metrics in (
            ("codes", "tokenize", codes),
            ("arm", "rank", tuned),
            ("other", "rank", {}),
            ("again", "evaluate", {"test/auc": 0.8}),
            ("both", "evaluate", {"test/auc": 0.9}),
        )
    ]
    needs = {("arm", None): ["codes"], ("again", None): ["arm"], ("both", None): ["arm", "other"]}
    widened = {run["label"]: run["metrics"] for run in with_tokenizers(runs, needs)}
    assert widened["again"] == {"all/entropy": 1.5, "all/churn": 0.25, "test/auc": 0.8}
    assert widened["both"] == {"test/auc": 0.9}


def test_runs_whose_predictions_are_gone_are_compared_over_seeds(runs: list[dict], tmp_path: Path):
    moved = [{**run, "folders": [str(tmp_path / "gone")]} if run["step"] == "both" else run for run in runs]
    test = compare(moved, ["test/gauc"], "item", 200)["both"]["test/gauc"]
    assert test.paired_over == "seeds"
    only = [run for run in moved if run["seed"] == 0]
    assert compare(only, ["test/gauc"], "item", 200).get("both") is None
    users = compare([run for run in runs if run["seed"] == 0], ["test/gauc"], "item", 200)
    assert users["both"]["test/gauc"].paired_over == "users"


def over_seeds(deltas: dict[str, list[float]]) -> list[dict]:
    """Runs without predictions: of every step one value a seed, above the baseline's by so much."""
    steps = {"base": [0.0] * 4, **deltas}
    return [
        {
            "step": step,
            "label": f"{step}-{seed}",
            "seed": seed,
            "verb": "tokenize",
            "folders": [],
            "metrics": {"all/entropy": 1.0 + 0.01 * seed + delta},
        }
        for step, values in steps.items()
        for seed, delta in enumerate(values)
    ]


def test_a_verdict_needs_a_corrected_p_below_the_level():
    """Oracle: scipy's paired t-test, times the number of steps that are not smaller."""
    own = [0.010, 0.014, 0.008, 0.012]
    p = float(stats.ttest_1samp(own, 0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    others = {f"noise-{index}": [0.01, -0.012, 0.002 * index, 0.001] for index in range(20)}
    alone = compare(over_seeds({"own": own}), ["all/entropy"], "base", 100)["own"]["all/entropy"]
    assert (alone.verdict, alone.p_holm) == ("higher", pytest.approx(p))
    many = over_seeds({"own": own, **others})
    beside = compare(many, ["all/entropy"], "base", 100)["own"]["all/entropy"]
    assert beside.p == pytest.approx(p)
    assert beside.p_holm == pytest.approx(21 * p)
    assert beside.p_holm > 0.05
    assert beside.verdict == "not distinguishable"
    shown = as_markdown(
        lay_out(
            [{**run, "error": None} for run in many],
            ["all/entropy"],
            "base",
            {"own": {"all/entropy": beside}},
        )
    )
    assert "higher" not in shown
    assert f"p {beside.p_holm:.2g})" in shown


def test_there_are_draws_enough_to_tell_one_of_many_steps_apart(runs: list[dict]):
    crowd = [
        {**run, "step": f"{run['step']}-{index}"}
        for index in range(5)
        for run in runs
        if run["step"] == "both"
    ]
    found = compare([*runs, *crowd], ["test/gauc"], "item", 100)
    assert {found[step]["test/gauc"].verdict for step in found if step.startswith("both")} == {"higher"}
