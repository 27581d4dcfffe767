import numpy as np
import pytest

from trec_semid.core.seeds import numpy_generator
from trec_semid.metrics.readout import MOST_FEATURES, read_out


def test_what_is_read_out_is_that_of_a_ridge_regression_on_held_out_items():
    rng = np.random.default_rng(0)
    sizes = (5, 3)
    codes = np.stack([rng.integers(size + 1, size=90) for size in sizes], 1)
    content = rng.normal(size=(90, 4)).astype(np.float32) + np.eye(6, 4)[codes[:, 0]]
    read = read_out(codes, sizes, content.astype(np.float32), seed=3, ridge=2.0)
    assert read is not None
    one_hot = np.concatenate([np.eye(6)[codes[:, 0]], np.eye(4)[codes[:, 1]]], axis=1)
    order = numpy_generator(3, "held out").permutation(90)
    held, fitted = order[:18], order[18:]
    # The same minimum, as a least-squares problem with one more row for each feature.
    rows = np.concatenate([one_hot[fitted], np.sqrt(2.0) * np.eye(10)])
    weights = np.linalg.lstsq(rows, np.concatenate([content[fitted], np.zeros((10, 4))]), rcond=None)[0]
    np.testing.assert_allclose(
        read.errors, np.square(content[held] - one_hot[held] @ weights).sum(0), rtol=1e-4
    )
    np.testing.assert_allclose(read.squares, np.square(content[held]).sum(0), rtol=1e-5)


@pytest.mark.parametrize(("num_items", "sizes"), [(1, (4,)), (50, (MOST_FEATURES, 2))])
def test_too_few_items_and_too_many_codes_are_not_read_out(num_items: int, sizes: tuple[int, ...]):
    codes = np.zeros((num_items, len(sizes)), np.int64)
    assert read_out(codes, sizes, np.ones((num_items, 2), np.float32), seed=0) is None
