import numpy as np
import pytest

from tests.metrics.brute import brute_auc
from trec_semid.metrics.keys import pack
from trec_semid.metrics.pairs import count_pairs


def sorted_rows(num_rows, num_users, seed=0):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 20, num_rows).astype(np.float32), rng.random(num_rows) < 0.4
    users = np.sort(rng.integers(0, num_users, num_rows))
    return scores, labels, users, np.sort(pack(scores, labels, users))


def test_counts_of_no_rows_are_empty():
    counts = count_pairs(np.empty(0, np.uint64))
    assert all(len(column) == 0 for column in counts)
    assert len(counts.auc) == 0


def test_doubled_credit_counts_two_for_an_ordered_pair_and_one_for_a_tie():
    scores, labels, users, keys = sorted_rows(300, 7)
    counts = count_pairs(keys)
    for user, negatives, positives, credit in zip(*counts, strict=True):
        up, down = (scores[(users == user) & (labels == label)] for label in (True, False))
        assert (negatives, positives) == (len(down), len(up))
        assert credit == sum(2 * (p > q) + (p == q) for p in up for q in down)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("block_rows", [1, 5, 64, 10_000])
def test_counts_do_not_depend_on_where_blocks_end(block_rows, num_threads, monkeypatch):
    scores, labels, users, keys = sorted_rows(900, 40)
    monkeypatch.setattr("trec_semid.metrics.pairs._BLOCK_ROWS", block_rows)
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    counts = count_pairs(keys)
    assert counts.users.tolist() == sorted(set(users.tolist()))
    for user, area in zip(counts.users, counts.auc, strict=True):
        own = users == user
        assert area == pytest.approx(brute_auc(scores[own].tolist(), labels[own].tolist()), nan_ok=True)
