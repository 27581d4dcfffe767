import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalogues import catalogues, draw_catalogue, draw_heads
from trec_semid.core.errors import ConfigError, DataError, ShapeError
from trec_semid.models.code_scores import exact_items, score_chunks, score_items

USERS = 3


def scores_by_hand(heads, codes) -> np.ndarray:
    return sum(head.numpy()[:, codes[:, position]] for position, head in enumerate(heads))


@settings(deadline=None, max_examples=40)
@given(catalogues, st.integers(0, 2**32 - 1), st.integers(1, 600))
def test_an_item_scores_the_sum_of_its_codes_whatever_the_chunk(catalogue, seed, chunk_bytes):
    heads = draw_heads(seed, USERS, catalogue.sizes)
    wanted = scores_by_hand(heads, catalogue.codes)
    np.testing.assert_array_equal(score_items(heads, catalogue.codes), wanted)
    seen = 0
    for items, scores in score_chunks(heads, torch.from_numpy(catalogue.codes), chunk_bytes):
        assert items.start == seen
        assert scores.numel() == scores.shape[0] or 4 * scores.numel() <= chunk_bytes
        np.testing.assert_array_equal(scores, wanted[:, items])
        seen = items.stop
    assert seen == len(catalogue.codes)


@settings(deadline=None, max_examples=60)
@given(
    catalogues,
    st.integers(0, 2**32 - 1),
    st.integers(1, 600),
    st.integers(1, 50),
    st.lists(st.integers(-1, 39), max_size=5),
)
def test_the_best_items_are_those_of_a_full_sort(catalogue, seed, chunk_bytes, num_items, left_out):
    heads = draw_heads(seed, USERS, catalogue.sizes)
    exclude = torch.tensor([left_out] * USERS, dtype=torch.int64).reshape(USERS, -1)
    found = exact_items(heads, catalogue.codes, num_items, exclude=exclude, chunk_bytes=chunk_bytes)
    scores = scores_by_hand(heads, catalogue.codes)
    for user in range(USERS):
        ranked = [
            item
            for item in np.argsort(-scores[user], kind="stable")
            if scores[user, item] > -np.inf and item not in left_out
        ][:num_items]
        length = int(found.lengths[user])
        assert found.items[user, :length].tolist() == ranked
        assert found.scores[user, :length].tolist() == scores[user, ranked].tolist()
        assert (found.items[user, length:] == -1).all()


def test_many_items_of_real_valued_heads_are_those_of_a_full_sort():
    catalogue = draw_catalogue(0, (20, 30, 40), 5000)
    heads = [torch.randn(9, size + 1).log_softmax(1) for size in catalogue.sizes]
    scores = score_items(heads, catalogue.codes)
    np.testing.assert_allclose(scores, scores_by_hand(heads, catalogue.codes), rtol=1e-5)
    found = exact_items(heads, catalogue.codes, 20, chunk_bytes=4 * 9 * 700)
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(found.items, order)


def test_without_a_list_to_leave_out_nothing_is_left_out():
    codes = np.array([[0], [1], [1]])
    found = exact_items([torch.tensor([[-1.0, -0.5]])], codes, 4)
    assert found.items.tolist() == [[1, 2, 0, -1]]
    assert found.lengths.tolist() == [3]


def test_heads_in_half_precision_are_summed_in_single():
    heads = [torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16)] * 2
    scores = score_items(heads, np.array([[0, 1]]))
    assert scores.dtype == torch.float32
    assert scores.item() == -3.0


def test_a_code_that_its_head_does_not_know_is_named():
    with pytest.raises(DataError, match=r"row 1, field 'codes'.*got 2.*Position 1 knows codes 0..1"):
        score_chunks([torch.zeros(1, 3), torch.zeros(1, 2)], np.array([[2, 0], [0, 2]]))


def test_an_empty_catalogue_is_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"no items.*Tokenize"):
        score_items([torch.zeros(1, 3)], np.empty((0, 1), np.int32))


def test_heads_that_do_not_fit_are_refused():
    codes = np.zeros((3, 2), np.int32)
    with pytest.raises(ShapeError, match="R = 1"):
        score_items([torch.zeros(1, 3)], codes)
    with pytest.raises(ShapeError, match="position 1"):
        score_items([torch.zeros(1, 3), torch.zeros(2, 3)], codes)
    with pytest.raises(ConfigError, match=r"users.*got 0"):
        score_items([torch.zeros(0, 3), torch.zeros(0, 3)], codes)
    with pytest.raises(ConfigError, match=r"num_items.*got 0"):
        exact_items([torch.zeros(1, 3), torch.zeros(1, 3)], codes, 0)


def test_a_score_that_is_no_number_is_named():
    heads = [torch.tensor([[0.0, -1.0], [-torch.nan, 0.0]])]
    with pytest.raises(DataError, match="row 1, field 'score'"):
        exact_items(heads, np.array([[1], [0]]), 1)
