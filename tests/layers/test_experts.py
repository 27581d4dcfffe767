import pytest
import torch
from torch import nn

from trec_semid.layers.experts import Experts, output_overlap, weight_overlap


def test_each_expert_is_a_linear_map_of_its_own():
    torch.manual_seed(0)
    experts, x = Experts(6, 4, 3), torch.randn(5, 6)
    out = experts(x)
    assert out.shape == (5, 3, 4)
    for e in range(3):
        by_hand = x / 6**0.5 @ experts.weight[e] + experts.bias[e]
        torch.testing.assert_close(out[:, e], by_hand)


def test_hidden_width_makes_two_layers():
    torch.manual_seed(0)
    experts, x = Experts(6, 4, 3, hidden_dim=10), torch.randn(5, 6)
    out = experts(x)
    assert experts.last_weight is not None
    assert experts.last_bias is not None
    for e in range(3):
        hidden = torch.relu(x / 6**0.5 @ experts.weight[e] + experts.bias[e])
        torch.testing.assert_close(out[:, e], hidden @ experts.last_weight[e] + experts.last_bias[e])


@pytest.mark.parametrize("in_dim", [16, 1024])
def test_outputs_start_at_the_size_of_an_ordinary_linear_layer(in_dim):
    torch.manual_seed(0)
    x = torch.randn(200, in_dim)
    ratio = Experts(in_dim, 64, 4)(x).std() / nn.Linear(in_dim, 256)(x).std()
    assert 0.8 < ratio < 1.25


def test_overlap_is_zero_for_orthogonal_experts_and_counts_every_pair_twice():
    identity = torch.eye(4).reshape(4, 2, 2)
    assert weight_overlap(identity * torch.tensor([1.0, 5.0, 0.1, 2.0]).view(4, 1, 1)) == pytest.approx(0)
    same = torch.ones(3, 2, 2)  # three equal experts: six ordered pairs of cosine 1
    assert float(weight_overlap(same)) == pytest.approx(6.0, rel=1e-5)
    assert float(weight_overlap(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))) == pytest.approx(2 * 0.5, rel=1e-5)


def test_following_the_overlap_makes_experts_orthogonal():
    torch.manual_seed(0)
    experts = Experts(8, 4, 3)
    with torch.no_grad():
        experts.weight += 3.0
    before = float(experts.overlap().detach())
    optimizer = torch.optim.SGD(experts.parameters(), lr=5.0)
    for _ in range(300):
        optimizer.zero_grad()
        experts.overlap().backward()
        optimizer.step()
    assert before > 5
    assert float(experts.overlap().detach()) < 0.01


def test_outputs_overlap_by_their_correlations_and_a_rotation_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(40, 3, 4, generator=generator)
    latents[:, 2] = latents[:, 0] + 0.5 * latents[:, 2]
    expected = []
    for r, k in ((0, 1), (0, 2), (1, 2)):
        both = torch.cat([latents[:, r], latents[:, k]], dim=1).T
        expected.append(float(torch.corrcoef(both)[:4, 4:].square().sum()) / 4)
    assert float(output_overlap(latents)) == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert float(output_overlap(latents[:, :1])) == 0
    # Weights that are orthogonal, but whose outputs are the same but for a rotation.
    turned, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    whitened = torch.linalg.qr(latents[:, 0] - latents[:, 0].mean(0))[0]
    same = torch.stack([whitened, whitened @ turned], dim=1)
    assert float(output_overlap(same)) == pytest.approx(1, abs=1e-4)
