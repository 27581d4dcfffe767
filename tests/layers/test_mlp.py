import pytest
import torch

from trec_semid.core.errors import ConfigError
from trec_semid.layers.mlp import Mlp


def test_mlp_equals_its_formula():
    torch.manual_seed(0)
    mlp, x = Mlp(5, [4, 3]), torch.randn(7, 5)
    first, second = mlp.layers[0], mlp.layers[2]
    by_hand = torch.clamp(x @ first.weight.T + first.bias, min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(mlp(x), by_hand)
    assert (mlp.in_dim, mlp.out_dim) == (5, 3)


def test_last_layer_is_linear_unless_activated():
    torch.manual_seed(0)
    x = torch.randn(50, 5)
    assert (Mlp(5, [3])(x) < 0).any()
    assert (Mlp(5, [3], activate_last=True)(x) >= 0).all()


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    mlp, x = Mlp(5, [64, 3], dropout=0.5), torch.randn(7, 5)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))


def test_mlp_without_layers_is_refused():
    with pytest.raises(ConfigError, match="no layers"):
        Mlp(5, [])
