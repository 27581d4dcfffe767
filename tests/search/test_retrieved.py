import torch
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.search.retrieved import agreement, best_items, is_excluded, top_places

INF = float("inf")
scores = st.one_of(
    st.sampled_from([0.0, -0.0, -INF, INF, 1e-45, -1e-45, 3.4e38, -3.4e38]),
    st.floats(width=32, allow_nan=False),
)


@given(st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=20), st.data())
def test_places_go_by_score_then_by_tie(pairs, data):
    values = [pair[0] for pair in pairs]
    ties = [*data.draw(st.permutations(range(len(values) - 1))), 2**31 - 1]
    k = data.draw(st.integers(0, len(values)))
    wanted = sorted(range(len(values)), key=lambda place: (-values[place], ties[place]))[:k]
    assert top_places(torch.tensor([values]), torch.tensor(ties), k).tolist() == [wanted]


def test_lists_longer_than_the_candidates_are_filled_up():
    found = best_items(torch.tensor([[-1.0, -INF, 2.0]]), torch.tensor([5, 6, 7]), 4)
    assert found.items.tolist() == [[7, 5, -1, -1]]
    assert found.scores.tolist() == [[2.0, -1.0, -INF, -INF]]
    assert found.lengths.tolist() == [2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.lists(st.integers(-1, 9), max_size=6))
def test_excluded_items_are_those_named(rows, left_out):
    exclude = torch.tensor([left_out], dtype=torch.int64)
    assert is_excluded(torch.tensor([rows]), exclude).tolist() == [[row in left_out for row in rows]]


def test_agreement_is_the_share_of_the_exact_list_that_was_found():
    found = torch.tensor([[3, 1, 2], [7, 8, -1], [-1, -1, -1], [4, -1, -1]])
    exact = torch.tensor([[1, 2, 3], [8, 9, 5], [-1, -1, -1], [4, -1, -1]])
    torch.testing.assert_close(agreement(found, exact), torch.tensor([1.0, 1 / 3, 1.0, 1.0]))
