import numpy as np
import torch

from trec_semid.models.loop_prefixes import in_row_order


def test_older_entries_of_each_row_come_before_its_recent_ones():
    rng = np.random.default_rng(0)
    older_lengths, recent_lengths = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    older = torch.from_numpy(rng.integers(0, 99, (older_lengths.sum(), 2)))
    recent = torch.from_numpy(rng.integers(100, 199, (recent_lengths.sum(), 2)))
    joined = in_row_order(older, torch.from_numpy(older_lengths), recent, torch.from_numpy(recent_lengths))
    expected, o, r = [], 0, 0
    for num_older, num_recent in zip(older_lengths, recent_lengths, strict=True):
        expected += older[o : o + num_older].tolist() + recent[r : r + num_recent].tolist()
        o, r = o + num_older, r + num_recent
    assert joined.tolist() == expected
    assert 0 in older_lengths
    assert 0 in recent_lengths
