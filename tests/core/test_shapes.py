import pytest
import torch

from trec_semid.core.errors import SemidError, ShapeError
from trec_semid.core.shapes import expect_shape


def test_fitting_shapes_pass():
    expect_shape(torch.zeros(2, 3), "B K", "x")
    expect_shape(torch.zeros(2, 2), "B B", "x")
    expect_shape(torch.zeros(2, 3), "B 3", "x")
    expect_shape(torch.zeros(2, 3), "B K", "x", K=3)
    expect_shape(torch.zeros(()), "", "x")


@pytest.mark.parametrize(
    ("shape", "wanted", "sizes"),
    [((2,), "B K", {}), ((2, 3), "B B", {}), ((2, 3), "B 4", {}), ((2, 3), "B K", {"K": 4}), ((1,), "", {})],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], wanted: str, sizes: dict[str, int]):
    with pytest.raises(ShapeError):
        expect_shape(torch.zeros(shape), wanted, "x", **sizes)


def test_error_says_what_was_got_and_expected():
    with pytest.raises(SemidError) as caught:
        expect_shape(torch.zeros(2, 3), "B K", "scores", K=4)
    assert str(caught.value) == "scores: wrong shape (got (2, 3), expected (B, K) with K = 4)."
