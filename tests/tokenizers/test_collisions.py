import itertools

import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.metrics.codes import count_collisions
from trec_semid.tokenizers.collisions import resolve_collisions
from trec_semid.tokenizers.encode import encode_catalogue
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.opq import Opq, OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig

NUM_ITEMS = 200


@pytest.fixture(scope="module")
def crowded():
    """Few tuples for many items: 25 tuples, 200 items."""
    catalogue = plant(NUM_ITEMS, 4, noise=0.2).catalogue
    tokenizer = Opq(OpqConfig(codebook_size=16, subspaces=2, turns=3), DIMS)
    list(tokenizer.fit(catalogue, np.arange(NUM_ITEMS), 0))
    return tokenizer, catalogue, encode_catalogue(tokenizer, catalogue)


def test_by_default_nothing_changes_and_collisions_are_counted(crowded):
    tokenizer, _, encoded = crowded
    resolved = resolve_collisions("keep", *crowded)
    assert resolved.encoded is encoded
    assert resolved.before == resolved.after == count_collisions(encoded.codes, tokenizer.codebook_sizes)
    assert resolved.before.items_in_groups > 50
    assert resolved.sizes(tokenizer) == (16, 16)


def test_extra_code_numbers_the_items_of_a_tuple_in_row_order(crowded):
    tokenizer, _, encoded = crowded
    resolved = resolve_collisions("extra_code", *crowded)
    seen: dict[tuple, int] = {}
    for row, codes in enumerate(map(tuple, encoded.codes.tolist())):
        assert resolved.codes[row].tolist() == [*codes, seen.get(codes, 0)]
        seen[codes] = seen.get(codes, 0) + 1
    assert resolved.sizes(tokenizer) == (16, 16, max(seen.values()))
    assert max(seen.values()) == resolved.before.largest_group
    assert resolved.after.unique_tuples == NUM_ITEMS
    assert resolved.codes.dtype == np.int32


def one_by_one(tokenizer, catalogue, codes) -> np.ndarray:
    """Send each later item of a tuple to the free one whose distances add up to least."""
    contents = catalogue.batch(np.arange(len(codes)))
    own = torch.from_numpy(codes).long()
    distances = [tokenizer.distances(contents, own, r).numpy() for r in range(codes.shape[1])]
    codes, seen, movers = codes.copy(), set(), []
    for row, each in enumerate(map(tuple, codes.tolist())):
        movers += [row] if each in seen else []
        seen.add(each)
    for row in movers:
        ranked = sorted(
            itertools.product(range(16), repeat=2),
            key=lambda t: sum(d[row, c] for d, c in zip(distances, t, strict=True)),
        )
        codes[row] = next(each for each in ranked if each not in seen)
        seen.add(tuple(codes[row].tolist()))
    return codes


def test_items_move_to_the_nearest_free_tuple():
    catalogue = plant(40, 30, noise=0.3, seed=2).catalogue
    tokenizer = Opq(OpqConfig(codebook_size=16, subspaces=2, turns=3), DIMS)
    list(tokenizer.fit(catalogue, np.arange(40), 0))
    encoded = encode_catalogue(tokenizer, catalogue)
    resolved = resolve_collisions("next_nearest", tokenizer, catalogue, encoded)
    expected = one_by_one(tokenizer, catalogue, encoded.codes)
    assert resolved.moved >= 3
    np.testing.assert_array_equal(resolved.codes, expected)


def test_crowd_spreads_out_until_all_tuples_differ(crowded):
    tokenizer, catalogue, encoded = crowded
    resolved = resolve_collisions("next_nearest", *crowded)
    assert resolved.after.unique_tuples == NUM_ITEMS
    assert resolved.moved == NUM_ITEMS - resolved.before.unique_tuples
    np.testing.assert_array_equal(resolved.codes, resolve_collisions("next_nearest", *crowded).codes)
    first = np.unique(encoded.codes, axis=0, return_index=True)[1]
    np.testing.assert_array_equal(resolved.codes[first], encoded.codes[first])
    rebuilt = tokenizer.reconstruct(
        catalogue.batch(np.arange(NUM_ITEMS)), torch.from_numpy(resolved.codes).long()
    )
    x = tokenizer.standardiser(catalogue.batch(np.arange(NUM_ITEMS)))
    errors = tokenizer.standardiser.errors(x, rebuilt, catalogue.batch(np.arange(NUM_ITEMS)).present)
    np.testing.assert_allclose(resolved.encoded.errors, errors.numpy(), rtol=1e-4, atol=1e-6)
    assert resolved.encoded.errors.sum() > encoded.errors.sum()


def test_equal_items_spread_out_over_the_tuples_they_try_and_the_rest_is_reported():
    catalogue = plant(300, 5).catalogue
    tokenizer = RqKmeans(RqKmeansConfig(codebook_size=50, levels=4), DIMS)
    list(tokenizer.fit(catalogue, np.arange(300), 0))
    rows = np.zeros(1000, np.int64)
    equal = ItemContents(
        {name: vectors[rows] for name, vectors in catalogue.vectors.items()},
        {name: mask[rows] for name, mask in catalogue.present.items()},
    )
    resolved = resolve_collisions("next_nearest", tokenizer, equal, encode_catalogue(tokenizer, equal))
    assert resolved.before.unique_tuples == 1
    assert resolved.moved == 512  # so many tuples an item tries
    assert resolved.after.largest_group == 1000 - 512
    assert resolved.after.unique_tuples == 513


def test_missing_codes_stay_missing():
    catalogue = plant(120, 3, missing=0.5).catalogue
    tokenizer = RqKmeans(RqKmeansConfig(codebook_size=20, levels=4, modalities="separated"), DIMS)
    list(tokenizer.fit(catalogue, np.arange(120), 0))
    encoded = encode_catalogue(tokenizer, catalogue)
    catalogue.present["text"][:4] = catalogue.present["vision"][:4] = False
    encoded.codes[:4] = 20
    resolved = resolve_collisions("next_nearest", tokenizer, catalogue, encoded)
    np.testing.assert_array_equal(resolved.codes == 20, encoded.codes == 20)
    assert resolved.after.largest_group == 4  # items without any content have nowhere to go
    assert resolved.after.items_in_groups == 4
