import numpy as np
import pytest

from tests.evaluation.retrieval_runs import RANDOM_STRATA, random_targets, write_targets
from trec_semid.core.errors import DataError
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.sequences import EvaluationRows
from trec_semid.evaluation.predictions import PredictionWriter, read_predictions
from trec_semid.evaluation.target_positions import (
    TARGET_SCHEMA,
    bootstrap_target_positions,
    distinct_targets,
    read_target_positions,
)
from trec_semid.metrics.bootstrap import draw_users


def test_what_all_ranks_wrote_is_read_in_order_of_row(tmp_path):
    targets = random_targets()
    write_targets(str(tmp_path), targets, world_size=3)
    for found, wanted in zip(read_target_positions(str(tmp_path), "test"), targets, strict=True):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("rank", 0, r"row 8, field 'rank': ranks start at 1 \(got 0\)"), ("user_row", 9999, "user after user")],
)
def test_files_that_cannot_be_right_are_refused(tmp_path, field, value, told):
    targets = random_targets()
    targets.columns()[field][7] = value
    write_targets(str(tmp_path), targets)
    with pytest.raises(DataError, match=told):
        read_target_positions(str(tmp_path), "test")


def test_a_ranking_run_is_not_taken_for_a_retrieval_run_nor_the_other_way_round(tmp_path):
    write_targets(str(tmp_path), random_targets())
    with pytest.raises(DataError, match="field 'label': missing column"):
        read_predictions(str(tmp_path), "test")
    with PredictionWriter(str(tmp_path), "valid", rank=0, world_size=1, num_rows=0):
        pass
    with pytest.raises(DataError, match="field 'rank': missing column"):
        read_target_positions(str(tmp_path), "valid")


def test_a_rank_without_targets_writes_an_empty_file(tmp_path):
    with PredictionWriter(str(tmp_path), "test", rank=0, world_size=1, num_rows=0, schema=TARGET_SCHEMA):
        pass
    assert len(read_target_positions(str(tmp_path), "test").row) == 0


def test_an_item_that_a_user_meets_twice_is_one_target():
    values = np.array([9, 4, 4, 7, 4, 9, 9, 3])
    rows = EvaluationRows(
        np.array([2, 5, 8]),
        Ragged(np.zeros(3, int), np.zeros(3, int), values),
        Ragged(np.array([0, 1, 5]), np.array([1, 4, 2]), values),
        Ragged(np.zeros(3, int), np.zeros(3, int), values),
    )
    found = distinct_targets(rows)
    items, lengths = found.targets.take(np.arange(3))
    assert items.tolist() == [9, 4, 7, 9]
    assert lengths.tolist() == [1, 2, 1]
    assert found.users.tolist() == [2, 5, 8]


def test_bootstrap_is_that_of_a_plain_loop_over_drawn_users():
    targets = random_targets(num_users=30)
    found = bootstrap_target_positions(targets, RANDOM_STRATA, cutoffs=(5, 10), num_replicates=20, seed=4)
    users = np.unique(targets.user_row)
    in_tail = RANDOM_STRATA.items[targets.item_row] == 2
    assert {name.partition("/")[0] for name in found} == {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}
    for name, chosen in (("recall@10", np.ones(len(in_tail), bool)), ("recall@10/popularity_tail", in_tail)):
        recalls = []
        for user in users:
            own = targets.position[(targets.user_row == user) & chosen]
            recalls.append(np.mean(own <= 10) if len(own) else None)
        for draw, times in zip(
            found[name].draws, np.concatenate(list(draw_users(len(users), 20, 4))), strict=True
        ):
            picked = [
                recall
                for recall, often in zip(recalls, times, strict=True)
                for _ in range(int(often))
                if recall is not None
            ]
            assert draw == pytest.approx(np.mean(picked))
