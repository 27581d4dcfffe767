import math

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from scipy.sparse import csr_array

from trec_semid.core.errors import ConfigError
from trec_semid.data.encoders import attributes
from trec_semid.data.encoders.attributes import AttributesConfig, attribute_chunks, leading_directions
from trec_semid.data.encoders.chunks import Items


def encode(columns, **config):
    table = pa.table(columns)
    chunks = list(attribute_chunks(AttributesConfig(**config), Items(table, np.arange(len(table)))))
    return np.concatenate([c.vectors for c in chunks]), np.concatenate([c.present for c in chunks])


GENRES = ["Drama|War", "Drama", None, "War", "Drama|Drama", "Opera", ""]


def test_categories_are_features_by_falling_count_and_rare_ones_are_unknown():
    vectors, present = encode({"g": GENRES}, categories=["g"], separator="|", weighting="none")
    half = 1 / math.sqrt(2)
    assert present.tolist() == [True, True, False, True, True, False, False]
    np.testing.assert_allclose(
        vectors, [[half, half], [1, 0], [0, 0], [0, 1], [1, 0], [0, 0], [0, 0]], rtol=1e-6
    )


def test_rare_values_weigh_more():
    vectors, _ = encode({"g": GENRES}, categories=["g"], separator="|", min_count=1)
    drama, war = (math.log(8 / (1 + count)) + 1 for count in (3, 2))
    np.testing.assert_allclose(vectors[0, :2], np.array([drama, war]) / math.hypot(drama, war), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 1, 3, 4, 5]], axis=1), 1, rtol=1e-6)


def test_no_more_values_than_asked_for_are_kept_the_most_frequent():
    vectors, present = encode({"g": ["a", "b", "b", "c", "c", "c"]}, categories=["g"], max_values=2)
    assert vectors.shape[1] == 2
    assert present.tolist() == [False] + [True] * 5


def test_numbers_are_standard_scores_and_neutral_where_missing():
    price = [1.0, 3.0, None, 5.0]
    vectors, present = encode({"p": price, "g": ["x"] * 4}, numbers=["p"], categories=["g"])
    known = np.array([1.0, 3.0, 5.0])
    np.testing.assert_allclose(vectors[[0, 1, 3], 1], (known - 3) / known.std(), rtol=1e-6)
    assert vectors[2, 1] == 0
    assert present.all()


def test_far_numbers_are_cut_and_a_constant_column_is_zero():
    columns = {"p": [0.0] * 99 + [1e9], "q": [7] * 100, "r": range(100)}
    vectors, _ = encode(columns, numbers=["p", "q", "r"])
    assert vectors[99, :2].tolist() == [5.0, 0.0]


def test_years_are_shared_between_the_two_decades_nearest_to_them():
    vectors, present = encode({"y": [1990, 1995, None, 2002, 1990]}, years=["y"])
    shares = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0], [0, 0.8, 0.2], [1, 0, 0]])
    norms = np.linalg.norm(shares, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, shares / np.where(norms > 0, norms, 1), atol=1e-6)
    assert present.tolist() == [True, True, False, True, True]


def test_an_item_with_any_attribute_is_present_and_without_all_is_missing():
    columns = {"g": [None, "a", None, "a"], "y": [1990, None, None, 1991], "p": [None, None, None, 2.0]}
    _, present = encode(columns, categories=["g"], years=["y"], numbers=["p"])
    assert present.tolist() == [True, True, False, True]


def catalogue(num_items=300, seed=0):
    draw = np.random.default_rng(seed)
    genres = [
        list(draw.choice(list("abcdefghij"), draw.integers(0, 4), replace=False)) for _ in range(num_items)
    ]
    years = [int(y) if draw.random() > 0.1 else None for y in draw.integers(1950, 2010, num_items)]
    return {"g": pa.array(genres, pa.list_(pa.string())), "y": years, "p": draw.normal(size=num_items)}


NAMES = {"categories": ["g"], "years": ["y"], "numbers": ["p"]}


def test_the_order_of_the_items_does_not_matter(monkeypatch):
    monkeypatch.setattr(attributes, "_CHUNK", 64)
    columns = catalogue()
    order = np.random.default_rng(1).permutation(300)
    turned = {name: pa.array(values).take(pa.array(order)) for name, values in columns.items()}
    for more in ({}, {"dim": 5}, {"dim": 5, "reduction": "random"}):
        vectors, present = encode(columns, **NAMES, **more)
        again, present_again = encode(turned, **NAMES, **more)
        np.testing.assert_allclose(again, vectors[order], atol=1e-5)
        np.testing.assert_array_equal(present_again, present[order])


def test_the_projection_keeps_as_much_as_numpys_singular_vectors():
    columns = catalogue()
    full, present = encode(columns, **NAMES)
    reduced, _ = encode(columns, **NAMES, dim=6)
    _, singular, right = np.linalg.svd(full[present], full_matrices=False)
    expected = full @ right[:6].T
    np.testing.assert_allclose(np.abs(reduced), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=0), singular[:6], rtol=1e-4)


@pytest.mark.parametrize(("num_items", "rank", "dim"), [(200, 12, 5), (200, 3, 6), (8, 8, 10), (9, 4, 9)])
def test_directions_are_those_of_the_gram_matrix_also_of_low_rank_and_of_few_items(num_items, rank, dim):
    rng = np.random.default_rng(num_items + rank)
    rows = (rng.standard_normal((num_items, rank)) @ rng.standard_normal((rank, 12))).astype(np.float32)
    found = leading_directions(csr_array(rows), dim).astype(np.float64)
    assert found.shape == (12, dim)
    np.testing.assert_allclose(found.T @ found, np.eye(dim), atol=1e-5)
    exact = rows.astype(np.float64)
    _, vectors = np.linalg.eigh(exact.T @ exact)
    told = min(dim, rank, num_items)
    for place in range(told):  # distinct singular values: the direction is one, its sign by convention
        assert abs(found[:, place] @ vectors[:, -1 - place]) == pytest.approx(1, abs=1e-5)
        assert found[np.abs(found[:, place]).argmax(), place] > 0
    np.testing.assert_array_equal(found, leading_directions(csr_array(rows), dim))


def test_a_random_projection_keeps_distances_roughly():
    columns = {"g": [f"v{row % 200}" for row in range(400)], "h": [f"w{row % 7}" for row in range(400)]}
    full, _ = encode(columns, categories=["g", "h"])
    reduced, _ = encode(columns, categories=["g", "h"], dim=128, reduction="random")
    pairs = np.random.default_rng(0).integers(0, 400, (2, 500))
    before = np.linalg.norm(full[pairs[0]] - full[pairs[1]], axis=1)
    after = np.linalg.norm(reduced[pairs[0]] - reduced[pairs[1]], axis=1)
    kept = after[before > 0] / before[before > 0]
    assert abs(kept.mean() - 1) < 0.1
    assert kept.std() < 0.15


def test_a_width_that_the_features_do_not_fill_is_refused():
    with pytest.raises(ConfigError, match=r"dim = 2, but g give 2 features\. Leave dim out"):
        encode({"g": GENRES}, categories=["g"], separator="|", dim=2)


@pytest.mark.parametrize("columns", [{}, {"categories": ["a"], "years": ["a"]}])
def test_no_column_or_one_named_twice_is_refused(columns):
    with pytest.raises(ValidationError, match="names"):
        AttributesConfig(**columns)


@pytest.mark.parametrize(
    "beside", [{}, {"q": ("numbers", [7] * 80)}, {"g": ("categories", [f"only {row}" for row in range(80)])}]
)
def test_a_number_that_is_alone_tells_items_apart_by_direction_in_its_order(beside):
    price = np.random.default_rng(0).lognormal(3, size=80)
    price[11] = price[40]
    config = {"numbers": ["p"], "categories": []}
    for name, (kind, _) in beside.items():
        config[kind] = [*config[kind], name]
    vectors, present = encode(
        {"p": price, **{name: values for name, (_, values) in beside.items()}}, **config
    )
    angles = np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0]))
    shares = [
        (sum(other < one for other in price) + sum(other <= one for other in price)) / 160 for one in price
    ]
    np.testing.assert_allclose(angles, 180 * np.array(shares), atol=1e-3)
    assert present.all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


def test_an_item_at_every_mean_has_no_direction_and_counts_as_missing():
    vectors, present = encode({"p": [1.0, 2.0, 3.0], "q": [5.0, 4.0, 3.0]}, numbers=["p", "q"])
    assert present.tolist() == [True, False, True]
    assert not vectors[1].any()


def test_items_that_are_known_by_one_number_alone_are_counted(caplog):
    price = [1.0, 2.0, 4.0, 8.0, 16.0, None]
    vectors, _ = encode(
        {"p": price, "g": ["a", "a", None, "only", None, "a"]}, numbers=["p"], categories=["g"]
    )
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert len(np.unique(units[[2, 3, 4]], axis=0)) == 2
    assert "3 of 6 items have nothing but one number" in caplog.text
    caplog.clear()
    encode({"p": price, "g": ["a", "a", "b", "b", "a", "a"]}, numbers=["p"], categories=["g"])
    encode({"p": price}, numbers=["p"])
    assert not caplog.text
