import numpy as np
import torch

from trec_semid.layers.gates import GateUnit


def test_gates_equal_the_equation_in_numpy():
    torch.manual_seed(0)
    unit, x = GateUnit(5, 7, 3, gamma=2.5), torch.randn(4, 5)
    w, b, w2, b2 = (p.detach().numpy() for p in unit.parameters())
    hidden = np.maximum(x.numpy() @ w.T + b, 0)
    expected = 2.5 / (1 + np.exp(-(hidden @ w2.T + b2)))
    np.testing.assert_allclose(unit(x).detach().numpy(), expected, rtol=1e-5)


def test_gates_start_near_one_when_gamma_is_two():
    torch.manual_seed(0)
    gates = GateUnit(16, 64, 32)(0.01 * torch.randn(100, 16))
    assert (gates - 1).abs().max() < 0.2
