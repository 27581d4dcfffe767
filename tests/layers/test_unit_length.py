import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from trec_semid.layers.unit_length import direction_tolerance, off_line, unit_length

rows_of_any_scale = st.lists(
    st.tuples(
        st.lists(st.integers(-9, 9), min_size=3, max_size=3),
        st.integers(-146, 124),
        st.floats(0.5, 1, width=32),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(rows_of_any_scale)
def test_every_row_is_divided_by_its_length_as_exact_numbers_have_it(drawn):
    """The oracle works in 64 bits, where no square of a float32 over- or underflows."""
    rows = np.array([np.float32(part) * np.ldexp(row, scale) for row, scale, part in drawn], np.float32)
    given_rows = rows.astype(np.float64)
    lengths = np.sqrt((given_rows**2).sum(1, keepdims=True))
    expected = given_rows / np.where(lengths > 0, lengths, 1)
    np.testing.assert_allclose(unit_length(torch.from_numpy(rows)).numpy(), expected, atol=3e-7)


@pytest.mark.parametrize("width", [1, 2, 37, 384])
def test_ordinary_rows_come_out_to_the_last_bit_as_without_care_also_beside_extreme_ones(width):
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(500, width, generator=generator) * torch.logspace(-5, 5, 500).unsqueeze(1)
    assert torch.equal(unit_length(rows), normalize(rows, dim=1))
    extreme = torch.randn(2, width, generator=generator) * torch.tensor([[1e-40], [1e37]])
    assert torch.equal(unit_length(torch.cat([rows, extreme]))[:500], normalize(rows, dim=1))


@settings(max_examples=100, deadline=None)
@given(st.integers(-120, 120), st.integers(0, 2**32 - 1))
def test_a_power_of_two_changes_no_bit(power, seed):
    rows = torch.randn(20, 9, generator=torch.Generator().manual_seed(seed))
    scaled = (rows.double() * 2.0**power).float()
    exact = scaled.double() == rows.double() * 2.0**power  # others became subnormal
    torch.testing.assert_close(unit_length(scaled), unit_length(rows), atol=1e-6, rtol=0)
    if exact.all():
        assert torch.equal(unit_length(scaled), unit_length(rows))


def test_zeros_stay_zeros_and_no_rows_are_no_rows():
    assert unit_length(torch.tensor([[0.0, 0.0], [0.0, 3e-45]])).tolist() == [[0, 0], [0, 1]]
    assert unit_length(torch.zeros(0, 3)).shape == (0, 3)


def test_multiples_of_one_vector_lie_on_its_line_and_others_do_not():
    first = torch.tensor([[1.0, 2.0, -3.0]])
    units = unit_length(torch.cat([first, 1e-30 * first, -7 * first, first + torch.tensor([0, 0, 0.001])]))
    off = off_line(units, units[0])
    assert (off[:3] <= direction_tolerance(is_half=False)).all()
    assert off[3] > direction_tolerance(is_half=False)


@pytest.mark.parametrize("is_half", [False, True])
@pytest.mark.parametrize("width", [2, 64, 512, 4096])
def test_multiples_in_any_width_lie_on_the_line_once_rounded_and_what_differs_by_more_does_not(
    width, is_half
):
    dtype, share = (torch.float16, 2e-2) if is_half else (torch.float32, 1e-5)
    generator = torch.Generator().manual_seed(width)
    first = torch.randn(1, width, generator=generator, dtype=torch.float64)
    multiples = first * torch.linspace(0.01, 90, 200, dtype=torch.float64).unsqueeze(1)
    signs = torch.randint(0, 2, (9, width), generator=generator) * 2.0 - 1
    others = first + share * first.abs().max() * signs.double()
    units = [unit_length(rows.to(dtype).float()) for rows in (multiples, others)]
    assert (off_line(units[0], units[0][0]) <= direction_tolerance(is_half=is_half)).all()
    assert off_line(units[1], units[0][0]).max() > direction_tolerance(is_half=is_half)
