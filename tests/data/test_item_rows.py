import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.data.item_rows import find_item_rows

HISTORIES = st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=6)


@given(histories=HISTORIES, num_recent=st.one_of(st.none(), st.integers(0, 4)), num_padding=st.integers(0, 2))
def test_rows_positions_and_lengths_spell_the_batch(
    histories: list[list[int]], num_recent: int | None, num_padding: int
):
    targets = np.array([7 + len(history) for history in histories], np.int64)
    lengths = np.array([len(history) for history in histories], np.int64)
    flat = np.array([item for history in histories for item in history], np.int64)
    items = find_item_rows(targets, flat, lengths, num_recent=num_recent, num_padding=num_padding)
    assert len(set(items.rows.tolist())) == len(items.rows) >= 1
    num_rows = len(histories) + num_padding
    assert len(items.targets) == len(items.recent_lengths) == len(items.older_lengths) == num_rows
    recent = torch.split(items.rows[items.recent], items.recent_lengths.tolist())
    older = torch.split(items.older, items.older_lengths.tolist())
    for row, history in enumerate(histories):
        cut = 0 if num_recent is None else max(len(history) - num_recent, 0)
        assert items.rows[items.targets[row]] == targets[row]
        assert older[row].tolist() == history[:cut]
        assert recent[row].tolist() == history[cut:]
    if histories:
        assert set(items.rows[: items.num_targets].tolist()) == set(targets.tolist())


@pytest.mark.parametrize("num_recent", [None, 0])
def test_a_part_of_padding_alone_has_one_item(num_recent: int | None):
    nothing = np.zeros(0, np.int64)
    items = find_item_rows(nothing, nothing, nothing, num_recent=num_recent, num_padding=2)
    assert items.rows.tolist() == [0]
    assert items.num_targets == 1
    assert items.targets.tolist() == [0, 0]
    moved = items.to(torch.device("cpu"))
    assert moved.num_targets == 1
    assert moved.recent_lengths.tolist() == [0, 0]
