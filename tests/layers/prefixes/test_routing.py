import pytest
import torch

from trec_semid.layers.prefixes.routing import causal_routing, squash


def routed_alone(told: torch.Tensor, num_iterations: int) -> torch.Tensor:
    """One prefix (S, M, D) to its capsules (M, D), number by number as the published code has it."""
    num_told, num_capsules, _ = told.shape
    logits = [[0.0] * num_told for _ in range(num_capsules)]
    capsules: list[torch.Tensor] = []
    for iteration in range(num_iterations):
        is_last = iteration == num_iterations - 1
        says = told if is_last else told.detach()
        weights = torch.tensor(logits).softmax(0)
        sums = [sum(weights[m, s] * says[s, m] for s in range(num_told)) for m in range(num_capsules)]
        capsules = []
        for total in sums:
            square = (total * total).sum()
            capsules.append(square / (1 + square) * total / (square + 1e-9).sqrt())
        if not is_last:
            for m in range(num_capsules):
                for s in range(num_told):
                    logits[m][s] += float(told[s, m].detach() @ capsules[m].detach())
    return torch.stack(capsules)


@pytest.mark.parametrize("logits_at_once", [None, 60, 1])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_every_prefix_is_routed_as_if_it_stood_alone(logits_at_once, num_iterations):
    told = (2 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))).requires_grad_()
    found = causal_routing(told, num_iterations, logits_at_once=logits_at_once)
    expected = torch.stack(
        [torch.stack([routed_alone(row[: t + 1], num_iterations) for t in range(5)]) for row in told]
    )
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    grads = [torch.autograd.grad((each * weights).sum(), told)[0] for each in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-4)


def test_squash_keeps_directions_and_stays_below_one():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]])
    torch.testing.assert_close(squash(vectors)[0], torch.tensor([0.6, 0.8]) * 25 / 26)
    assert (squash(vectors)[1] == 0).all()
    assert squash(vectors).norm(dim=1).max() < 1
