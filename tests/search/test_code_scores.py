import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalogues import catalogues, draw_heads, side_by_side
from trec_semid.core.errors import ShapeError
from trec_semid.search.code_scores import CodeScores

USERS = 3


@settings(deadline=None, max_examples=60)
@given(catalogues, st.integers(0, 2**32 - 1), st.integers(0, 50), st.integers(0, 50))
def test_an_item_scores_the_sum_of_its_codes_in_any_stretch(catalogue, seed, start, length):
    heads = draw_heads(seed, USERS, catalogue.sizes)
    wanted = sum(head.numpy()[:, catalogue.codes[:, position]] for position, head in enumerate(heads))
    scores = CodeScores(side_by_side(heads), torch.from_numpy(catalogue.codes))
    items = slice(start, start + length)
    np.testing.assert_array_equal(scores.of(items), wanted[:, items])


def test_heads_in_half_precision_are_summed_in_single():
    head = torch.tensor([[[-1.0, -2.0], [-1.0, -2.0]]], dtype=torch.bfloat16)
    scores = CodeScores(head, torch.tensor([[0, 1]], dtype=torch.int16)).of(slice(0, 1))
    assert scores.dtype == torch.float32
    assert scores.item() == -3.0


def test_heads_of_other_positions_than_the_codes_are_refused():
    with pytest.raises(ShapeError, match="R = 2"):
        CodeScores(torch.zeros(1, 1, 3), torch.zeros(3, 2, dtype=torch.int32))
