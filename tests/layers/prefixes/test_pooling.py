import pytest
import torch

from trec_semid.layers.prefixes.pooling import causal_softmax_pooling


def by_prefix(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax over each prefix by itself."""
    pooled = []
    for t in range(scores.shape[1]):
        shares = scores[:, : t + 1].softmax(1)
        of_heads = values if values.dim() == 4 else values.unsqueeze(2).expand(-1, -1, scores.shape[2], -1)
        pooled.append(torch.einsum("blm,blmd->bmd", shares, of_heads[:, : t + 1]))
    return torch.stack(pooled, 1)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("has_own_values", [False, True])
def test_every_prefix_is_pooled_as_if_it_stood_alone(length, has_own_values):
    generator = torch.Generator().manual_seed(length)
    scores = torch.randn(3, length, 2, dtype=torch.float32, generator=generator).requires_grad_()
    shape = (3, length, 2, 4) if has_own_values else (3, length, 4)
    values = torch.randn(shape, generator=generator).requires_grad_()
    weights = torch.randn(3, length, 2, 4, generator=generator)
    found, expected = causal_softmax_pooling(scores, values), by_prefix(scores, values)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (
        torch.autograd.grad((each * weights).sum(), [scores, values]) for each in (found, expected)
    )
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_scores_that_lie_far_apart_neither_overflow_nor_vanish():
    scores = torch.tensor([-300.0, -301.0, 500.0, 90.0]).view(1, 4, 1).requires_grad_()
    values = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    found = causal_softmax_pooling(scores, values)
    torch.testing.assert_close(found, by_prefix(scores.double(), values.double()).float())
    found.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 1].abs() > 0.01  # the first two share the second prefix
