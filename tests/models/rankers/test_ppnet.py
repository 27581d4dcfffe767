import numpy as np
import pytest
import torch

from trec_semid.core.errors import ConfigError, ShapeError
from trec_semid.data.features import Feature
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig

DIM = 4
FEATURES = (
    Feature("user_id", "user", "t_user_id", 9),
    Feature("user_age", "user_field", "t_user_age", 9),
    Feature("item_id", "item", "t_item_id", 9),
    Feature("item_code_0", "item_code", "t_code_0", 9, 0),
    Feature("item_code_1", "item_code", "t_code_1", 9, 1),
    Feature("item_year", "item_field", "t_item_year", 9),
    Feature("history_item", "history", "t_item_id", 9),
    Feature("history_code_0", "history_code", "t_code_0", 9, 0),
    Feature("history_code_1", "history_code", "t_code_1", 9, 1),
)


def build(**config) -> Ppnet:
    torch.manual_seed(1)
    return Ppnet(PpnetConfig(layer_dims=[6, 5], gate_dim=3, **config), FEATURES, DIM)


def linear(layer, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def oracle(model: Ppnet, main: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The equations of PPNet, layer by layer, in numpy."""
    gate_input = np.concatenate([prior, main], 1)
    deltas = [
        model.config.gamma / (1 + np.exp(-linear(gate.outer, np.maximum(linear(gate.inner, gate_input), 0))))
        for gate in model.gates
    ]
    if model.config.gate == "gate_input":  # O_l = delta_l * H_l ; H_{l+1} = f(O_l W_l + b_l)
        hidden = main
        for layer, delta in zip(list(model.layers)[:-1], deltas[:-1], strict=True):
            hidden = np.maximum(linear(layer, delta * hidden), 0)
        return linear(model.layers[-1], deltas[-1] * hidden)[:, 0]
    hidden = main
    for layer, delta in zip(list(model.layers)[:-1], deltas, strict=True):
        hidden = delta * np.maximum(linear(layer, hidden), 0)
    return linear(model.layers[-1], hidden)[:, 0]


def columns(x: np.ndarray, *numbers: int) -> np.ndarray:
    return np.concatenate([x[:, n * DIM : (n + 1) * DIM] for n in numbers], 1)


@pytest.mark.parametrize("gate", ["gate_input", "gate_output"])
def test_logits_equal_the_equations_in_numpy_with_codes_side_by_side(gate):
    model, x = build(gate=gate, gamma=3.0), torch.randn(7, 9 * DIM)
    expected = oracle(model, x.numpy(), columns(x.numpy(), 0, 2, 3, 4))
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gate", ["gate_input", "gate_output"])
def test_logits_equal_the_equations_in_numpy_with_codes_added_and_another_prior(gate):
    model, x = build(gate=gate, code_fusion="sum", priors=["user_age"]), torch.randn(7, 9 * DIM)
    plain = x.numpy()
    item_codes = columns(plain, 3) + columns(plain, 4)
    history_codes = columns(plain, 7) + columns(plain, 8)
    main = np.concatenate([columns(plain, 0, 1, 2), item_codes, columns(plain, 5, 6), history_codes], 1)
    prior = np.concatenate([columns(plain, 0, 1, 2), item_codes], 1)
    np.testing.assert_allclose(model(x).detach().numpy(), oracle(model, main, prior), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config", [{}, {"gate": "gate_output"}, {"code_fusion": "sum", "priors": ["user_age"]}]
)
def test_what_reads_a_request_once_says_the_same_of_its_rows(config):
    model = build(**config).eval()
    is_shared = [feature.entity != "item" for feature in FEATURES]
    assert is_shared == [True, True, False, False, False, False, True, True, True]
    shared, own, owners = torch.randn(3, 5 * DIM), torch.randn(11, 4 * DIM), torch.arange(11) % 3
    rows = torch.cat([shared[owners][:, : 2 * DIM], own, shared[owners][:, 2 * DIM :]], 1)
    once = model.of_requests(is_shared)
    torch.testing.assert_close(once(shared, own, owners), model(rows), rtol=1e-5, atol=1e-6)
    assert model.of_requests([True] * 9) is model.of_requests([False] * 9) is None


def test_there_is_one_gate_for_each_layers_input_or_each_hidden_output():
    assert [gate.outer.out_features for gate in build(gate="gate_input").gates] == [36, 6, 5]
    assert [gate.outer.out_features for gate in build(gate="gate_output").gates] == [6, 5]


def test_gates_send_gradient_to_priors_but_not_to_the_main_input():
    # With weights of the towers cut off, whatever reaches the embeddings came through a gate.
    model, x = build(gate="gate_output"), torch.randn(7, 9 * DIM, requires_grad=True)
    with torch.no_grad():
        model.layers[0].weight.zero_()
        model.layers[0].bias.fill_(1.0)
    model(x).sum().backward()
    through = x.grad.view(7, 9, DIM).abs().sum((0, 2)) > 0
    assert through.tolist() == [True, False, True, True, True, False, False, False, False]


def test_dropout_works_in_training_only():
    model, x = build(dropout=0.5), torch.randn(7, 9 * DIM)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_an_unknown_prior_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"model.priors: no feature 'item_yaer'. Did you mean 'item_year'"):
        build(priors=["item_yaer"])


def test_input_of_another_width_is_refused():
    with pytest.raises(ShapeError, match="embedded"):
        build()(torch.zeros(2, 5))


def test_the_dense_part_can_be_exported_with_any_batch_size():
    model = build().eval()
    exported = torch.export.export(
        model, (torch.randn(3, 9 * DIM),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    ).module()
    x = torch.randn(11, 9 * DIM)
    torch.testing.assert_close(exported(x), model(x))
