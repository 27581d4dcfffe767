import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.catalogues import (
    Catalogue,
    autoregressive,
    catalogues,
    draw_catalogue,
    draw_heads,
    owned_by_hand,
    prefix_log_probs,
    searched_by_hand,
)
from trec_semid.core.errors import ConfigError, DataError, ShapeError
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.models.heads.beams import parallel_heads
from trec_semid.search import beam
from trec_semid.search.beam import beam_search, decode_items
from trec_semid.search.retrieved import agreement, best_items

USERS = 3
widths = st.one_of(st.just(1), st.integers(2, 6), st.just(1000))


def trie_of(catalogue: Catalogue) -> TupleTrie:
    return TupleTrie.build(catalogue.codes, catalogue.sizes)


def as_step(heads):
    return lambda user, prefix, num_codes: heads[len(prefix)][user].tolist()


def found_beams(beams, user: int):
    pairs = zip(beams.scores[user].tolist(), beams.codes[user].tolist(), strict=True)
    return [(score, tuple(codes)) for score, codes in pairs if score > -np.inf]


def found_items(retrieved, user: int):
    length = int(retrieved.lengths[user])
    assert (retrieved.items[user, length:] == -1).all()
    assert (retrieved.scores[user, length:] == -torch.inf).all()
    pairs = zip(retrieved.scores[user].tolist(), retrieved.items[user].tolist(), strict=True)
    return list(pairs)[:length]


@settings(deadline=None, max_examples=60)
@given(catalogues, widths, st.integers(0, 2**32 - 1))
def test_parallel_heads_are_searched_as_by_hand_at_every_width(catalogue, width, seed):
    heads = draw_heads(seed, USERS, catalogue.sizes)
    beams = beam_search(trie_of(catalogue), USERS, parallel_heads(heads), width)
    for user in range(USERS):
        assert found_beams(beams, user) == searched_by_hand(catalogue, user, width, as_step(heads))


@settings(deadline=None, max_examples=40)
@given(catalogues, widths)
def test_a_model_that_reads_its_prefix_is_searched_as_by_hand_at_every_width(catalogue, width):
    beams = beam_search(trie_of(catalogue), USERS, autoregressive(catalogue.sizes), width)
    for user in range(USERS):
        assert found_beams(beams, user) == searched_by_hand(catalogue, user, width, prefix_log_probs)


@settings(deadline=None, max_examples=40)
@given(catalogues)
def test_a_beam_as_wide_as_the_catalogue_ranks_every_tuple_of_an_autoregressive_model(catalogue):
    tuples = sorted(set(catalogue.tuples))
    beams = beam_search(trie_of(catalogue), USERS, autoregressive(catalogue.sizes), len(tuples))
    for user in range(USERS):
        scores = [
            sum(
                prefix_log_probs(user, found[:position], size + 1)[found[position]]
                for position, size in enumerate(catalogue.sizes)
            )
            for found in tuples
        ]
        ranked = sorted(zip(scores, tuples, strict=True), key=lambda pair: (-pair[0], pair[1]))
        assert found_beams(beams, user) == [pair for pair in ranked if pair[0] > -np.inf]


@settings(deadline=None, max_examples=60)
@given(catalogues, widths, st.integers(1, 50), st.lists(st.integers(-1, 39), max_size=6), st.data())
def test_items_are_those_of_the_tuples_found_in_the_stated_order(catalogue, width, num_items, left_out, data):
    heads = draw_heads(data.draw(st.integers(0, 2**32 - 1)), USERS, catalogue.sizes)
    exclude = torch.tensor([left_out] * USERS, dtype=torch.int64).reshape(USERS, -1)
    retrieved = decode_items(
        trie_of(catalogue), USERS, parallel_heads(heads), width=width, num_items=num_items, exclude=exclude
    )
    assert retrieved.items.shape == retrieved.scores.shape == (USERS, num_items)
    for user in range(USERS):
        beams = searched_by_hand(catalogue, user, width, as_step(heads), tuple(left_out))
        wanted = owned_by_hand(catalogue, beams, tuple(left_out))[:num_items]
        assert found_items(retrieved, user) == wanted


@pytest.mark.parametrize(("sizes", "num_tuples"), [((100,) * 6, 3000), ((20, 30, 20), 300), ((3, 4), 12)])
@pytest.mark.parametrize("width", [1, 5, 20])
def test_lists_are_as_long_as_the_beam_is_wide_after_any_history(sizes, num_tuples, width):
    catalogue = draw_catalogue(1, sizes, num_tuples + num_tuples // 10, num_tuples)
    generator = torch.Generator().manual_seed(3)
    heads = [torch.randn(4, size + 1, generator=generator).log_softmax(1) for size in catalogue.sizes]
    trie = trie_of(catalogue)
    everything = exact_items(heads, catalogue.codes, len(catalogue.codes)).items
    history = everything[:, : len(catalogue.codes) // 3]  # the best items, where the beam would go
    rest = decode_items(trie, 4, parallel_heads(heads), width=width, num_items=width, exclude=history)
    assert rest.lengths.tolist() == [min(width, len(catalogue.codes) - history.shape[1])] * 4
    for user in range(4):
        assert not set(rest.items[user].tolist()) & set(history[user].tolist())


def test_a_wide_beam_of_many_items_is_looked_at_a_few_users_at_a_time(monkeypatch):
    catalogue = draw_catalogue(4, (3, 4), 500)
    heads = draw_heads(1, 16, catalogue.sizes)
    trie, steps = trie_of(catalogue), parallel_heads(heads)
    whole = decode_items(trie, 16, steps, width=12, num_items=40)
    monkeypatch.setattr(beam, "_CHUNK_BYTES", {"cpu": 1})
    torch.testing.assert_close(tuple(decode_items(trie, 16, steps, width=12, num_items=40)), tuple(whole))


def exact_items(heads, codes, num_items):
    scores = torch.stack([head[:, codes[:, position]] for position, head in enumerate(heads)]).sum(0)
    return best_items(scores, torch.arange(len(codes)), num_items)


@settings(deadline=None, max_examples=40)
@given(catalogues, st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_a_beam_as_wide_as_the_catalogue_is_exact_scoring(catalogue, seed, num_items):
    heads = draw_heads(seed, USERS, catalogue.sizes)
    width = len(set(catalogue.tuples))
    found = decode_items(trie_of(catalogue), USERS, parallel_heads(heads), width=width, num_items=num_items)
    exact = exact_items(heads, catalogue.codes, num_items)
    torch.testing.assert_close(tuple(found), tuple(exact), rtol=0, atol=0)


@pytest.mark.parametrize("width", [1, 2, 10, 100, 5000])
def test_every_tuple_returned_at_any_width_is_an_item(width):
    catalogue = draw_catalogue(1, (20, 30, 20), 2000, 1500)
    heads = [torch.randn(64, size + 1).log_softmax(1) for size in catalogue.sizes]
    beams = beam_search(trie_of(catalogue), 64, parallel_heads(heads), width)
    assert (beams.scores > -torch.inf).any(1).all()
    returned = beams.codes[beams.scores > -torch.inf].tolist()
    assert {tuple(codes) for codes in returned} <= set(catalogue.tuples)
    scores = torch.stack([heads[r].gather(1, beams.codes[:, :, r]) for r in range(3)]).sum(0)
    torch.testing.assert_close(beams.scores.exp(), scores.exp().where(beams.scores > -torch.inf, 0.0))


def test_agreement_with_the_exact_list_grows_with_the_width_up_to_all_of_it():
    catalogue = draw_catalogue(2, (30, 30, 30, 30), 3000)
    generator = torch.Generator().manual_seed(2)
    heads = [(3 * torch.randn(50, size + 1, generator=generator)).log_softmax(1) for size in catalogue.sizes]
    exact = exact_items(heads, catalogue.codes, 10)
    trie = trie_of(catalogue)
    shares = [
        agreement(decode_items(trie, 50, parallel_heads(heads), width=width, num_items=10).items, exact.items)
        .mean()
        .item()
        for width in (1, 10, 100, trie.num_tuples)
    ]
    assert shares[0] < 0.5 < shares[2]
    assert shares[-1] == 1.0


def test_a_cache_kept_by_parents_alone_follows_the_beams():
    catalogue = draw_catalogue(3, (6, 6, 6, 6), 300)
    model, kept = autoregressive(catalogue.sizes), []

    def watched(position, beams):
        if position:
            users = torch.arange(USERS).unsqueeze(1)
            kept[:] = [past[users, beams.parents] for past in kept]
            kept.append(beams.codes[:, :, -1])
            torch.testing.assert_close(torch.stack(kept, 2), beams.codes)
        else:
            assert beams.codes.shape == (USERS, 1, 0)
            assert beams.parents.tolist() == [[0]] * USERS
        return model(position, beams)

    beam_search(trie_of(catalogue), USERS, watched, 7)
    assert len(kept) == 3


def test_one_row_for_all_prefixes_says_the_same_as_a_row_for_each():
    catalogue = draw_catalogue(4, (6, 9, 6), 200)
    heads = [torch.randn(USERS, size + 1).log_softmax(1) for size in catalogue.sizes]
    trie = trie_of(catalogue)
    once = beam_search(trie, USERS, parallel_heads(heads), 8)
    each = beam_search(
        trie, USERS, lambda r, beams: heads[r].unsqueeze(1).expand(-1, beams.scores.shape[1], -1), 8
    )
    torch.testing.assert_close(tuple(once), tuple(each), rtol=0, atol=0)


def test_users_searched_in_parts_get_the_same(monkeypatch):
    catalogue = draw_catalogue(5, (6, 9, 6), 200)
    heads = [torch.randn(17, size + 1).log_softmax(1) for size in catalogue.sizes]
    whole = beam_search(trie_of(catalogue), 17, parallel_heads(heads), 8)
    monkeypatch.setattr(beam, "_CHUNK_BYTES", {"cpu": 8 * 9 * 64 * 3})
    parts = beam_search(trie_of(catalogue), 17, parallel_heads(heads), 8)
    torch.testing.assert_close(tuple(whole), tuple(parts), rtol=0, atol=0)


def test_equal_scores_go_to_the_lower_tuple():
    codes = np.array([[2, 0], [0, 1], [1, 1], [0, 0]])
    heads = [torch.zeros(1, 4), torch.zeros(1, 3)]
    beams = beam_search(TupleTrie.build(codes, (3, 2)), 1, parallel_heads(heads), 3)
    assert beams.codes.tolist() == [[[0, 0], [0, 1], [1, 1]]]


def test_items_of_one_tuple_are_all_returned_in_row_order_up_to_the_asked_number():
    codes = np.array([[1, 1], [0, 0], [1, 1], [1, 1], [0, 0]])
    heads = [torch.tensor([[-2.0, -1.0]]), torch.tensor([[0.0, 0.0]])]
    trie = TupleTrie.build(codes, (1, 1))
    for num_items, wanted in ((2, [0, 2]), (4, [0, 2, 3, 1]), (6, [0, 2, 3, 1, 4, -1])):
        retrieved = decode_items(trie, 1, parallel_heads(heads), width=2, num_items=num_items)
        assert retrieved.items.tolist() == [wanted]
    narrow = decode_items(trie, 1, parallel_heads(heads), width=1, num_items=6)
    assert narrow.items.tolist() == [[0, 2, 3, -1, -1, -1]]
    assert narrow.lengths.tolist() == [3]


def test_equal_scores_of_two_tuples_go_by_item_row():
    codes = np.array([[1], [0], [1], [0]])
    retrieved = decode_items(
        TupleTrie.build(codes, (1,)), 1, parallel_heads([torch.zeros(1, 2)]), width=2, num_items=3
    )
    assert retrieved.items.tolist() == [[0, 1, 2]]


def test_one_item_is_found_by_one_user():
    trie = TupleTrie.build(np.array([[3, 1]]), (3, 4))
    heads = [torch.zeros(1, 4), torch.full((1, 2), -0.5)]
    retrieved = decode_items(trie, 1, parallel_heads(heads), width=9, num_items=2)
    assert found_items(retrieved, 0) == [(-0.5, 0)]


def test_what_the_model_calls_impossible_is_not_returned():
    trie = TupleTrie.build(np.array([[0], [1]]), (2,))
    heads = [torch.tensor([[-torch.inf, -1.0], [-torch.inf, -torch.inf]])]
    retrieved = decode_items(trie, 2, parallel_heads(heads), width=2, num_items=2)
    assert retrieved.items.tolist() == [[1, -1], [-1, -1]]
    assert retrieved.lengths.tolist() == [1, 0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_log_probability_that_is_no_number_is_named(sign):
    heads = [torch.tensor([[0.0, -1.0], [0.0, -1.0]])]
    heads[0][1, 1] = torch.tensor(torch.nan).copysign(torch.tensor(sign))
    trie = TupleTrie.build(np.array([[0], [1]]), (2,))
    with pytest.raises(DataError, match="row 2, field 'score': score is NaN"):
        beam_search(trie, 2, parallel_heads(heads), 1)


@pytest.mark.parametrize("shape", [(2, 1, 2), (2, 1, 5), (3, 1, 4), (2, 2, 4), (2, 4)])
def test_log_probabilities_of_another_shape_are_refused(shape):
    trie = TupleTrie.build(np.array([[0], [2]]), (3,))
    with pytest.raises(ShapeError, match=r"position 0: wrong shape.*expected \(2, 1 or 1, 3 to 4\)"):
        beam_search(trie, 2, lambda position, beams: torch.zeros(shape), 2)


def test_a_search_of_nothing_is_refused():
    trie = TupleTrie.build(np.array([[0], [1]]), (2,))
    step = parallel_heads([torch.zeros(1, 2)])
    with pytest.raises(ConfigError, match=r"width.*got 0"):
        beam_search(trie, 1, step, 0)
    with pytest.raises(ConfigError, match=r"num_users.*got 0"):
        beam_search(trie, 0, step, 1)
    with pytest.raises(ConfigError, match=r"num_items.*got 0"):
        decode_items(trie, 1, step, width=1, num_items=0)


@settings(deadline=None, max_examples=60)
@given(catalogues, widths, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_what_may_be_listed_is_found_as_if_all_else_were_left_out(catalogue, width, seed, share):
    trie, heads = trie_of(catalogue), parallel_heads(draw_heads(seed, USERS, catalogue.sizes))
    num_items = len(catalogue.codes)
    may = torch.rand(USERS, num_items, generator=torch.Generator().manual_seed(seed % 2**31)) < share
    before = torch.nn.functional.pad(may[:, trie.items].cumsum(1, dtype=torch.int32), (1, 0))
    others = torch.arange(num_items).masked_fill(may, -1)
    asked = {"width": width, "num_items": 4}
    allowed = decode_items(trie, USERS, heads, **asked, allowed=before)
    left_out = decode_items(trie, USERS, heads, **asked, exclude=others)
    for user in range(USERS):
        assert found_items(allowed, user) == found_items(left_out, user)
