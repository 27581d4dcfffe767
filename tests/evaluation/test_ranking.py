import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests.metrics.brute import brute_gauc
from trec_semid.core.errors import DataError
from trec_semid.evaluation.predictions import Predictions
from trec_semid.evaluation.ranking import (
    RANK_COUNTS,
    RANK_METRICS,
    RankAccumulator,
    rank_metrics,
    split_metrics,
)
from trec_semid.evaluation.strata import STRATA, strata_of_counts
from trec_semid.metrics.bootstrap import USER_METRICS


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 25, 1500), rng.integers(0, 40, 1500)
    labels = (rng.random(1500) < 0.4).astype(np.float32)
    labels[users == 3] = 0
    scores = np.round(np.clip(0.3 * labels + 0.7 * rng.random(1500), 0.01, 0.99), 2).astype(np.float32)
    return scores, labels, users, items


@pytest.fixture
def strata():
    rng = np.random.default_rng(1)
    user_events = rng.integers(1, 9, 25)
    user_events[3] = 0  # the one unseen user has only negatives
    return strata_of_counts(rng.integers(0, 9, 40), user_events)


def check(metrics, counts, suffix, rows):
    scores, labels, users = rows
    gauc, user_mean, gauc_users, one_class, _ = brute_gauc(scores.tolist(), labels.tolist(), users.tolist())
    share = labels.mean()
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    loss = log_loss(labels, scores.astype(np.float64))
    wanted = {
        "auc": roc_auc_score(labels, scores),
        "gauc": gauc,
        "gauc_user_mean": user_mean,
        "log_loss": loss,
        "normalised_entropy": loss / entropy,
        "calibration": scores.sum(dtype=np.float64) / labels.sum(),
    }
    assert {name: metrics[name + suffix] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    sizes = len(scores), labels.sum(), gauc_users + one_class, gauc_users
    assert tuple(counts[name + suffix] for name in RANK_COUNTS) == sizes


def test_every_metric_and_count_is_its_definition_overall_and_per_stratum(rows, strata):
    metrics, counts = rank_metrics(*rows, strata)
    check(metrics, counts, "", rows[:3])
    for name, mask in strata.masks(rows[2], rows[3]):
        if name != "user_unseen":
            check(metrics, counts, f"/{name}", [column[mask] for column in rows[:3]])


def test_metrics_of_a_stratum_with_one_class_are_left_out_but_its_rows_are_counted(rows, strata):
    metrics, counts = rank_metrics(*rows, strata)
    left = {name for name in metrics if name.endswith("/user_unseen")}
    assert left == {"log_loss/user_unseen"}
    assert counts["rows/user_unseen"] == (rows[2] == 3).sum() > 0
    assert counts["positives/user_unseen"] == counts["gauc_users/user_unseen"] == 0
    assert counts["users/user_unseen"] == 1


def test_empty_stratum_is_counted_as_empty(rows):
    seen = strata_of_counts(np.ones(40), np.ones(25))
    metrics, counts = rank_metrics(*rows, seen)
    assert counts["rows/popularity_unseen"] == counts["users/popularity_unseen"] == 0
    assert not [name for name in metrics if name.endswith("popularity_unseen")]


def test_without_strata_there_are_the_overall_numbers_only(rows):
    metrics, counts = rank_metrics(*rows[:3])
    assert tuple(metrics) == RANK_METRICS == USER_METRICS
    assert tuple(counts) == RANK_COUNTS


def test_all_values_are_plain_numbers_for_json(rows, strata):
    metrics, counts = rank_metrics(*rows, strata)
    assert {type(value) for value in metrics.values()} == {float}
    assert {type(value) for value in counts.values()} == {int}
    assert set(counts) == {n + s for n in RANK_COUNTS for s in ("", *(f"/{name}" for name in STRATA))}


@pytest.mark.parametrize("max_rows", [1 << 24, 50])
def test_accumulator_gives_the_same_as_all_rows_at_once(rows, strata, max_rows):
    accumulator = RankAccumulator(strata, max_rows=max_rows)
    for part in np.array_split(np.random.default_rng(2).permutation(1500), 11):
        accumulator.update(*(column[part] for column in rows))
    found, wanted = accumulator.result(), rank_metrics(*rows, strata)
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    assert found[1] == wanted[1]


def test_split_metrics_name_both_protocols(rows, strata):
    scores, labels, users, items = rows
    frozen = scores[::-1].copy()
    predictions = Predictions(np.arange(1500), users, items, labels, scores, frozen)
    metrics, counts = split_metrics("valid", predictions, strata)
    assert metrics["valid/gauc"] == rank_metrics(scores, labels, users)[0]["gauc"]
    assert metrics["valid-frozen/gauc"] == rank_metrics(frozen, labels, users)[0]["gauc"]
    tail = "auc/popularity_tail"
    assert metrics[f"valid-frozen/{tail}"] == rank_metrics(frozen, labels, users, items, strata)[0][tail]
    assert counts["valid/rows"] == 1500
    assert all(name.startswith("valid/") for name in counts)


def test_strata_need_items(rows, strata):
    with pytest.raises(DataError, match="item_row"):
        rank_metrics(*rows[:3], strata=strata)


def test_scores_that_are_not_finite_are_refused(rows):
    scores, labels, users, _ = rows
    scores[7] = np.nan
    with pytest.raises(DataError, match="row 8"):
        rank_metrics(scores, labels, users)


def test_wrong_users_are_not_mistaken_for_an_undefined_metric(rows):
    scores, labels, users, _ = rows
    with pytest.raises(Exception, match="users"):
        rank_metrics(scores, labels, users[:-1])
