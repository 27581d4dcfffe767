"""Numbers of the report against plain loops over the prediction files."""

import glob
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.datasets import write_small_dataset
from tests.report.conftest import Study
from tests.report.fake_runs import write_rank_run, write_study, write_tokenize_run
from trec_semid.core.errors import DataError
from trec_semid.evaluation.predictions import PredictionWriter, read_predictions
from trec_semid.evaluation.resampling import MIN_DRAWS, choose_draws
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import NOT_DISTINGUISHABLE, Report, RowCounts
from trec_semid.report.learning import MAX_POINTS
from trec_semid.runtime.logs import RunLog


def read_frame(run: str, split: str = "test") -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in glob.glob(f"{run}/predictions/{split}-*.parquet")])


def slow_auc(scores: list[float], labels: list[float]) -> float:
    positives = [score for score, label in zip(scores, labels, strict=True) if label == 1]
    negatives = [score for score, label in zip(scores, labels, strict=True) if label == 0]
    if not positives or not negatives:
        return math.nan
    wins = sum((high > low) + 0.5 * (high == low) for high in positives for low in negatives)
    return wins / (len(positives) * len(negatives))


def slow_metrics(frame: pd.DataFrame, column: str) -> dict[str, float]:
    scores, labels = frame[column].tolist(), frame["label"].tolist()
    groups: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for user, score, label in zip(frame["user_row"], scores, labels, strict=True):
        groups[user][0].append(score)
        groups[user][1].append(label)
    areas = [(len(own), slow_auc(own, truth)) for own, truth in groups.values()]
    areas = [(rows, area) for rows, area in areas if not math.isnan(area)]
    losses = [-math.log(p if y == 1 else 1 - p) for p, y in zip(scores, labels, strict=True)]
    share = sum(labels) / len(labels)
    entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    return {
        "auc": slow_auc(scores, labels),
        "gauc": sum(rows * area for rows, area in areas) / sum(rows for rows, _ in areas),
        "gauc_user_mean": sum(area for _, area in areas) / len(areas),
        "log_loss": sum(losses) / len(losses),
        "normalised_entropy": sum(losses) / len(losses) / entropy,
        "calibration": sum(scores) / sum(labels),
    }


@pytest.mark.parametrize(("protocol", "column"), [("online", "score"), ("frozen", "score_frozen")])
def test_every_metric_of_every_arm_is_the_mean_over_seeds_of_plain_loops(
    study: Study, protocol: str, column: str
):
    (scores,) = [each for each in study.report.scores if each.protocol == protocol]
    for arm in study.report.arms:
        tests = [slow_metrics(read_frame(f"{study.root}/{run}"), column) for run in arm.runs]
        valids = [slow_metrics(read_frame(f"{study.root}/{run}", "valid"), column) for run in arm.runs]
        for name in tests[0]:
            found = scores.metrics[name][arm.name]
            values = [each[name] for each in tests]
            assert found.value == pytest.approx(np.mean(values), abs=1e-6)
            assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-6)
            assert found.by_seed == pytest.approx(values, abs=1e-6)
            assert found.valid == pytest.approx(np.mean([each[name] for each in valids]), abs=1e-6)
            assert found.low is not None
            assert found.high is not None
            assert found.value is not None
            assert found.low <= found.value <= found.high


def test_differences_are_those_of_the_arms_means_and_verdicts_follow_the_smallest_detectable(study: Study):
    for each in study.report.comparisons:
        if each.stratum is not None:
            continue
        (scores,) = [part for part in study.report.scores if part.protocol == each.protocol]
        values = scores.metrics[each.metric]
        arm, base = values[each.arm].value, values["item"].value
        assert arm is not None
        assert base is not None
        assert each.difference == pytest.approx(arm - base, abs=1e-9)
        is_sure = abs(each.difference) >= each.smallest_detectable and (each.low > 0 or each.high < 0)
        if not is_sure or not each.p_holm < 0.05:
            assert each.verdict == NOT_DISTINGUISHABLE
        else:
            rises = each.difference > 0
            assert each.verdict == ("better" if rises == (each.metric != "log_loss") else "worse")


def test_an_arm_is_marked_best_only_if_it_beats_every_other(tmp_path: Path):
    runs = write_study(str(tmp_path), num_users=120, seeds=(0, 1, 2))  # two seeds tell hardly anything apart
    values = build_report(collect_runs(runs), num_replicates=100).scores[0].metrics["auc"]
    assert [name for name, each in values.items() if each.is_best] == ["both · mmq"]


def test_slices_hold_the_rows_of_their_items_and_users(study: Study):
    events = study.collection.dataset.events(["user_row", "item_row", "split"]).to_pandas()
    train = events[events.split == "train"]
    counts = train.groupby("item_row").size()
    order = sorted(counts.index, key=lambda item: (counts[item], item))
    head = set(order[len(order) - len(order) // 4 :])
    frame = read_frame(f"{study.root}/{study.report.arms[0].runs[0]}")
    rows = frame[frame.item_row.isin(head)]
    (found,) = [each for each in study.report.strata if each.key == "popularity_head"]
    assert isinstance(found.counts, RowCounts)
    assert (found.counts.rows, found.counts.positives) == (len(rows), int(rows.label.sum()))
    assert found.counts.users == rows.user_row.nunique()
    tests = [read_frame(f"{study.root}/{run}") for run in study.report.arms[0].runs]
    areas = [slow_metrics(test[test.item_row.isin(head)], "score")["auc"] for test in tests]
    assert found.metrics["auc"]["item"].value == pytest.approx(np.mean(areas), abs=1e-6)
    unseen = frame[~frame.user_row.isin(set(train.user_row))]
    (found,) = [each for each in study.report.strata if each.key == "user_unseen"]
    assert isinstance(found.counts, RowCounts)
    assert found.counts.rows == len(unseen)


def test_too_few_users_give_a_value_but_neither_interval_nor_verdict(study: Study):
    (found,) = [each for each in study.report.strata if each.key == "user_unseen"]
    assert found.counts.users < 10
    assert all(each.low is None and not each.is_best for each in found.metrics["auc"].values())
    assert not [each for each in study.report.comparisons if each.stratum == "user_unseen"]


def test_intervals_stay_within_what_a_metric_can_be(study: Study):
    for stratum in study.report.strata:
        for values in stratum.metrics.values():
            for each in values.values():
                assert each.low is None or each.low >= 0
                assert each.high is None or each.high <= 1


def test_calibration_and_roc_agree_with_the_rows(study: Study):
    for arm, curves in zip(study.report.arms, study.report.curves, strict=True):
        frame = pd.concat([read_frame(f"{study.root}/{run}") for run in arm.runs])
        rows = np.array([part.rows for part in curves.calibration])
        assert rows.sum() == len(frame)
        predicted = np.array([part.predicted for part in curves.calibration])
        observed = np.array([part.observed for part in curves.calibration])
        assert (rows @ predicted) == pytest.approx(frame.score.sum(), rel=1e-5)
        assert (rows @ observed) == pytest.approx(frame.label.sum())
        assert len(curves.true_positive_rate) <= 200
        area = np.trapezoid(curves.true_positive_rate, curves.false_positive_rate)
        assert area == pytest.approx(slow_auc(frame.score.tolist(), frame.label.tolist()), abs=0.01)


def test_two_arms_with_the_same_predictions_differ_by_nothing(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=60)
    runs = [
        write_rank_run(str(tmp_path / "a"), dataset),
        write_rank_run(str(tmp_path / "b"), dataset, label="b"),
    ]
    report = build_report(collect_runs(runs), num_replicates=100)
    assert report.comparisons
    for each in report.comparisons:
        assert (each.difference, each.low, each.high, each.p) == (0, 0, 0, 1)
        assert each.verdict == NOT_DISTINGUISHABLE
    assert "not distinguishable from item" in report.headline[0]
    assert not any(each.is_best for part in report.scores for each in part.metrics["gauc"].values())


def test_one_run_alone_gives_a_report_without_comparisons(study: Study):
    report = build_report(collect_runs(study.runs[:1]), num_replicates=100)
    assert report.comparisons == []
    assert "nothing to compare" in report.headline[0]
    assert report.scores[0].metrics["auc"]["item"].sd is None


def test_tokenize_runs_alone_give_a_report_of_their_codebooks(study: Study):
    places = [f"{study.root}/mmq", f"{study.root}/rq_kmeans"]
    report = build_report(collect_runs(places))
    assert report.arms == []
    assert [each.name for each in report.codebooks] == ["mmq", "rq_kmeans"]
    assert "says nothing about recommendation" in report.headline[1]


def test_codebooks_name_their_readers_and_plans_are_shown_once(study: Study):
    readers = {each.name: each.arms for each in study.report.codebooks}
    assert readers == {
        "mmq": ["both · mmq", "semantic · mmq"],
        "rq_kmeans": ["both · rq_kmeans", "semantic · rq_kmeans"],
    }
    (plan,) = study.report.plans
    assert len(plan.runs) == 10
    assert "t_user_id" in plan.text


def test_runs_tell_how_they_were_made(study: Study):
    made = {each.run: each for each in study.report.runs}
    assert len(made) == 12
    for name, each in made.items():
        stated = json.loads(Path(study.root, name, "run.json").read_text())
        assert (each.command, each.config_checksum) == (stated["command"], stated["config_checksum"])
        assert each.versions["torch"]


def test_after_a_restart_the_later_line_of_a_step_counts(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=30)
    run = write_rank_run(str(tmp_path / "a"), dataset)
    log = RunLog(run)
    log.scalars({"train/loss": 0.123}, step=600)
    for step in range(1000, 3001):
        log.scalars({"train/loss": 0.2}, step=step)
    log.event("best", step=500)
    log.close()
    (learning,) = build_report(collect_runs([run]), num_replicates=100).learning
    points = dict(learning.scalars["train/loss"])
    assert learning.best_step == 500
    assert len(points) <= MAX_POINTS + 1
    assert dict(learning.scalars["valid/auc"]).keys() == {100, 200, 300, 400, 500, 600}
    assert points[max(points)] == 0.2


def test_predictions_that_do_not_fit_the_metrics_beside_them_are_refused(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=30)
    good = write_rank_run(str(tmp_path / "good"), dataset)
    other = write_rank_run(str(tmp_path / "other"), dataset, skill=0.1, label="other")
    shutil.rmtree(f"{other}/predictions")
    shutil.copytree(f"{good}/predictions", f"{other}/predictions")
    with pytest.raises(DataError, match="metrics and predictions are not of one run") as error:
        build_report(collect_runs([other]), num_replicates=100)
    assert f"{other}/metrics.json" in str(error.value)


def test_predictions_on_other_rows_are_refused_and_the_run_is_named(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=30)
    runs = [write_rank_run(str(tmp_path / name), dataset, label=name) for name in ("a", "b")]
    columns = read_predictions(runs[1], "test")._asdict()
    columns["label"] = 1 - columns["label"]
    with PredictionWriter(runs[1], "test", rank=0, world_size=1, num_rows=len(columns["row"])) as writer:
        writer.write(**columns)
    with pytest.raises(DataError, match="not those of run 'a'") as error:
        build_report(collect_runs(runs), num_replicates=100)
    assert error.value.field == "label"


def test_absent_predictions_of_one_rank_are_refused(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=30)
    run = write_rank_run(str(tmp_path / "a"), dataset)
    Path(run, "predictions", "test-rank-1.parquet").unlink()
    with pytest.raises(DataError, match=r"test-rank-1\.parquet"):
        build_report(collect_runs([run]), num_replicates=100)


def test_draws_are_fewer_when_the_test_part_is_large():
    assert choose_draws(1000, 10_000, 15) == 1000
    assert choose_draws(1000, 200_000, 15) == 333
    assert choose_draws(1000, 50_000_000, 15) == MIN_DRAWS
    assert choose_draws(150, 50_000_000, 15) == 150


def test_codebooks_of_a_second_seed_are_in_the_content(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "data"), num_users=30)
    places = [write_tokenize_run(str(tmp_path / f"mmq-{seed}"), dataset, seed=seed) for seed in (1, 0)]
    report: Report = build_report(collect_runs(places))
    assert [(each.name, each.seed) for each in report.codebooks] == [("mmq", 0), ("mmq", 1)]
