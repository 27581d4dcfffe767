import numpy as np
import pytest
from sklearn.decomposition import PCA

from trec_semid.evaluation.shown_interests import UserVectors, align_interests, draw_user, fit_plane

RNG = np.random.default_rng(0)


def test_the_plane_is_that_of_principal_components():
    vectors = RNG.normal(size=(12, 5))
    plane, pca = fit_plane(vectors), PCA(2).fit(vectors)
    np.testing.assert_allclose(np.abs(plane.of(vectors)), np.abs(pca.transform(vectors)), atol=1e-4)
    assert plane.explained == pytest.approx(pca.explained_variance_ratio_.sum())


def test_one_item_lies_in_the_middle():
    plane = fit_plane(np.ones((1, 3)))
    assert plane.of(np.ones((1, 3))).tolist() == [[0, 0]]
    assert plane.explained == 1.0


def test_interests_that_change_places_are_followed():
    now = np.eye(3, 4)
    before = now[[2, 0, 1]] + 0.05
    earliest = now[[1, 2, 0]]
    aligned = align_interests(np.stack([earliest, before, now]))
    np.testing.assert_allclose(aligned, np.stack([now, now + 0.05, now]))


def test_a_user_has_items_with_their_interests_and_ways_in_one_plane():
    interests = np.stack([np.eye(2, 3), np.full((2, 3), np.nan)])[[1, 0]]
    interests[:, 1] = np.nan  # the second is absent, the first was absent before
    items = np.array([[2.0, 0, 0], [0, 3, 0], [1, 1, 0]])
    user = UserVectors(7, np.array([4]), np.array([1, 2]), np.array([3]), np.array([0]), items, interests)
    drawn = draw_user(user)
    assert [item["item_row"] for item in drawn["history"]] == [1, 2]
    assert [item["interest"] for item in drawn["history"]] == [0, 0]
    assert drawn["listed"][0]["item_row"] == 3
    assert drawn["paths"][1] == [None, None]
    assert drawn["paths"][0][0] is None
    # The interest points where the first item is, whatever the item's length.
    first = drawn["history"][0]
    assert drawn["paths"][0][1] == pytest.approx([first["x"], first["y"]])
