import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.ranks import run_ranks
from trec_semid.metrics import exchange
from trec_semid.metrics.auc import AucAccumulator, auc
from trec_semid.metrics.binary import BinaryAccumulator, binary_metrics
from trec_semid.metrics.exchange import SortedRuns, count_pairs_over_ranks
from trec_semid.metrics.gauc import GaucAccumulator, gauc
from trec_semid.metrics.keys import pack
from trec_semid.runtime.ranks import process_group

CASES = {
    # name: (rows, users, distinct scores, max_rows, how rows fall on ranks)
    "counted by the first": (3000, 40, 700, 1 << 24, "any"),
    "spread": (30_000, 40, 700, 1 << 24, "any"),
    "few but for the last rank": (6000, 40, 700, 1 << 24, "last"),
    "spilled": (1000, 40, 300, 64, "any"),
    "one heavy user": (1000, 1, 100, 50, "any"),
    "one score": (800, 3, 1, 40, "any"),
    "all on the last rank": (500, 20, 90, 30, "last"),
    "few rows": (2, 1, 5, 10, "any"),
    "no rows": (0, 1, 1, 10, "any"),
}


def rows_of(name: str):
    num_rows, num_users, num_scores, max_rows, fall = CASES[name]
    rng = np.random.default_rng(len(name))
    scores = (rng.integers(0, num_scores, num_rows) / num_scores).astype(np.float32)
    labels = np.arange(num_rows) % 2 == 0 if num_rows < 3 else rng.random(num_rows) < 0.4
    owner = rng.integers(0, 3, num_rows) if fall == "any" else np.full(num_rows, 2)
    return scores, labels, rng.integers(0, num_users, num_rows), owner, max_rows


def accumulate_on_this_rank():
    results = {}
    with process_group() as ranks:
        for name in CASES:
            scores, labels, users, owner, max_rows = rows_of(name)
            area, group = AucAccumulator(max_rows=max_rows), GaucAccumulator(max_rows=max_rows)
            binary = BinaryAccumulator()
            for part in np.array_split(np.flatnonzero(owner == ranks.rank), 3):
                area.update(scores[part], labels[part])
                group.update(scores[part], labels[part], users[part])
                binary.update(scores[part], labels[part])
            results[name] = area.result(), tuple(group.result()), tuple(binary.result())
    return results


@pytest.fixture(scope="module")
def three_ranks():
    return run_ranks(accumulate_on_this_rank, 3)


@pytest.mark.ranks
@pytest.mark.parametrize("name", CASES)
def test_three_ranks_give_what_one_process_gives(three_ranks: Any, name: str):
    scores, labels, users, _, _ = rows_of(name)
    area, group, binary = three_ranks[0][name]
    if len(scores):
        assert area == pytest.approx(auc(scores, labels), abs=1e-15)
        assert group == pytest.approx(tuple(gauc(scores, labels, users)), abs=1e-14)
    else:
        assert np.isnan(area)
        assert np.isnan(group[0])
        assert group[2:] == (0, 0, 0)
    assert binary == pytest.approx(tuple(binary_metrics(scores, labels)), rel=1e-12, nan_ok=True)


@pytest.mark.ranks
def test_every_rank_has_the_very_same_result(three_ranks: Any):
    assert repr(three_ranks[0]) == repr(three_ranks[1]) == repr(three_ranks[2])


def test_spilled_runs_are_sorted_and_hold_every_key():
    keys = np.random.default_rng(0).integers(0, 1 << 60, 1000).astype(np.uint64)
    store = SortedRuns(max_rows=150)
    for part in np.array_split(keys, 9):
        store.append(part)
    runs = store.runs()
    assert [len(run) for run in runs] == [150] * 6 + [100]
    assert all((np.diff(run.astype(object)) >= 0).all() for run in runs)
    np.testing.assert_array_equal(np.sort(np.concatenate(runs)), np.sort(keys))


def test_spilled_runs_leave_the_disk_with_their_store(tmp_path: Path):
    with mock.patch("tempfile.tempdir", str(tmp_path)):
        store = SortedRuns(max_rows=10)
        store.append(np.arange(100, dtype=np.uint64))
        assert len(os.listdir(tmp_path)) == 1
        del store
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("num_scores", [1, 7, 100_000])
def test_counting_holds_no_more_rows_than_the_bound_at_once(num_scores: Any, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    store = SortedRuns(max_rows=1000)
    scores = rng.integers(0, num_scores, 50_000).astype(np.float32)
    for part in np.array_split(np.arange(50_000), 20):
        store.append(pack(scores[part], part % 2 == 0, np.where(part % 5 == 0, part % 31, 7)))
    held = []
    count = exchange.count_pairs
    monkeypatch.setattr(exchange, "count_pairs", lambda keys: held.append(len(keys)) or count(keys))
    counts = list(count_pairs_over_ranks(store)[0])
    assert max(held) <= 1000
    assert sum(int((each.negatives + each.positives).sum()) for each in counts) == 50_000
    users = np.concatenate([each.users for each in counts])
    assert len(users) == len(set(users.tolist())) == 31
