import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.core.finite import first_not_finite

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@given(data=st.data(), values=st.lists(st.lists(st.floats(width=16), max_size=5), max_size=5))
def test_the_first_tensor_that_is_not_all_numbers_is_named(data, values):
    named = [
        (str(place), torch.tensor(row, dtype=data.draw(st.sampled_from(TYPES))))
        for place, row in enumerate(values)
    ]
    wrong = [
        name for name, tensor in named if not all(math.isfinite(value) for value in tensor.double().tolist())
    ]
    assert first_not_finite(named) == (wrong[0] if wrong else "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 4999, 9999])
def test_one_number_among_many_is_enough(value, place):
    tensor = torch.zeros(100, 100)
    tensor.view(-1)[place] = value
    assert first_not_finite([("fine", torch.ones(3)), ("bad", tensor)]) == "bad"


def test_whole_numbers_and_nothing_pass():
    assert first_not_finite([]) == ""
    assert (
        first_not_finite([("codes", torch.arange(3)), ("empty", torch.zeros(0)), ("mask", torch.ones(2) > 0)])
        == ""
    )
