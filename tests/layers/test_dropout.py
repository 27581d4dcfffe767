"""Dropout: how much is kept, that nothing is added, and that gradients meet the same mask."""

import pytest
import torch

from trec_semid.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_keeps_its_share_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(1_000_003))
    dropped = round(p * 256) / 256
    assert (out == 0).double().mean().item() == pytest.approx(dropped, abs=2e-3)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / (1 - dropped)]))


def test_elements_fall_independently() -> None:
    torch.manual_seed(1)
    kept = Dropout(0.5)(torch.ones(400_000)).bool().double() - 0.5
    for step in (1, 7, 8, 64):  # 8 elements share one random word
        assert abs((kept[step:] * kept[:-step]).mean().item()) < 0.25 * 0.01
    assert torch.equal(Dropout(0.5).eval()(kept), kept)


def test_lower_precision_keeps_its_type_and_nearly_the_mean() -> None:
    torch.manual_seed(5)
    out = Dropout(0.2)(torch.ones(400_000, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.double().mean().item() == pytest.approx(1, abs=5e-3)


def test_gradient_is_that_of_the_mask_drawn() -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(out, x * x.grad)
    assert 0 < (x.grad == 0).sum().item() < x.numel()


def test_same_seed_same_mask_and_no_dropout_is_the_input() -> None:
    x = torch.randn(9, 4)
    torch.manual_seed(3)
    first = Dropout(0.4)(x)
    torch.manual_seed(3)
    torch.testing.assert_close(Dropout(0.4)(x), first, rtol=0, atol=0)
    assert Dropout(0.0)(x) is x


def test_shares_below_one_in_512_are_drawn_by_torch() -> None:
    torch.manual_seed(4)
    out = Dropout(0.001)(torch.ones(200_000))
    assert 0 < (out == 0).sum().item() < 400
