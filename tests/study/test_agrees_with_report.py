"""A study's table and a report on the same run folders say the same of every arm."""

from pathlib import Path

import pytest

from tests.datasets import write_small_dataset
from tests.report.fake_retrieval import write_retrieve_run
from tests.report.fake_runs import write_rank_run
from trec_semid.evaluation.comparison import Comparison
from trec_semid.report import content
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.runtime.runs import RunFolder
from trec_semid.study.compare import compare

NUM_DRAWS = 300
PARTS = {"online": "test", "frozen": "test-frozen", "catalogue": "test"}


def study_runs(verb: str, folders: dict[str, dict[int, str]]) -> list[dict]:
    """Describe runs, step -> seed -> folder, as a study does."""
    return [
        {
            "step": step,
            "label": f"{step}-seed-{seed}",
            "seed": seed,
            "verb": verb,
            "folders": [folder],
            "metrics": RunFolder(folder, verb).read_json("metrics.json")["metrics"],
        }
        for step, seeds in folders.items()
        for seed, folder in seeds.items()
    ]


def name_of(each: content.Comparison) -> str:
    return f"{PARTS[each.protocol]}/{each.metric}" + (f"/{each.stratum}" if each.stratum else "")


def expect_agreement(verb: str, folders: dict[str, dict[int, str]]) -> list[Comparison]:
    """Report the folders, compare the same ones as a study does, and set both side by side."""
    given = [folder for seeds in folders.values() for folder in seeds.values()]
    report = build_report(collect_runs(given), num_replicates=NUM_DRAWS)
    step_of = {
        arm.name: next(step for step in folders if arm.runs[0].startswith(f"{step}-")) for arm in report.arms
    }
    assert report.baseline is not None
    names = list(dict.fromkeys(name_of(each) for each in report.comparisons))
    found = compare(study_runs(verb, folders), names, step_of[report.baseline], NUM_DRAWS)
    assert sum(len(metrics) for metrics in found.values()) == len(report.comparisons) > 0
    for each in report.comparisons:
        own = found[step_of[each.arm]][name_of(each)]
        for field in ("difference", "low", "high", "p", "p_holm", "smallest_detectable"):
            assert getattr(own, field) == pytest.approx(getattr(each, field), rel=1e-12, abs=1e-15), field
        higher_is_better = "log_loss" not in each.metric
        words = {True: "better", False: "worse"}
        verdict = own.verdict
        told = verdict if verdict.startswith("not") else words[(verdict == "higher") == higher_is_better]
        assert told == each.verdict
    return [comparison for metrics in found.values() for comparison in metrics.values()]


def test_of_rankers_over_the_same_seeds_and_over_others(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=80, num_items=60)
    skills = {
        "item": (0.4, (0, 1, 2)),
        "better": (1.4, (0, 1, 2)),
        "same": (0.4, (0, 2)),
        "late": (1.0, (5, 6)),
    }
    folders = {
        step: {
            seed: write_rank_run(
                str(tmp_path / f"{step}-{seed}"), dataset, seed=seed, skill=skill, label=step
            )
            for seed in seeds
        }
        for step, (skill, seeds) in skills.items()
    }
    found = expect_agreement("rank", folders)
    assert {each.paired_over for each in found} == {"seeds and users", "users"}
    assert {"higher", "not distinguishable"} <= {each.verdict for each in found}


def test_of_retrievers_one_of_which_has_a_single_run(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=120, num_items=90)
    arms = {
        "far": ("sasrec", 0.3, (0, 1)),
        "near": ("tiger", 1.3, (0, 1)),
        "popular": ("popularity", 0.6, (0,)),
    }
    folders = {
        step: {
            seed: write_retrieve_run(str(tmp_path / f"{step}-{seed}"), dataset, kind, seed=seed, skill=skill)
            for seed in seeds
        }
        for step, (kind, skill, seeds) in arms.items()
    }
    found = expect_agreement("retrieve", folders)
    assert {each.paired_over for each in found} == {"seeds and users", "users"}
    assert "higher" in {each.verdict for each in found}
