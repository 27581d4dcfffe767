import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, softmax

from trec_semid.layers.attention import Transformer, TransformerConfig, block_causal_mask

DIM, HEADS = 8, 2


def made(dropout: float = 0.0, of_attention: float | None = None) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=2, num_heads=HEADS, dropout=dropout, attention_dropout=of_attention, init_std=0.3
    )
    return Transformer(DIM, config).double()


def by_hand(model: Transformer, x: torch.Tensor, may_look) -> torch.Tensor:
    """Run every block token by token and head by head."""
    num_tokens, width = x.shape[0], DIM // HEADS
    for block in model.blocks:
        normed = layer_norm(x, (DIM,), block.attention_norm.weight, block.attention_norm.bias)
        q, k, v = block.project(normed).split(DIM, dim=1)
        rows = []
        for i in range(num_tokens):
            seen = [j for j in range(num_tokens) if may_look(i, j)]
            heads = []
            for h in range(HEADS):
                own = slice(h * width, (h + 1) * width)
                scores = torch.stack([q[i, own] @ k[j, own] for j in seen]) / math.sqrt(width)
                heads.append(softmax(scores, dim=0) @ v[seen][:, own])
            rows.append(torch.cat(heads))
        x = x + block.merge(torch.stack(rows))
        normed = layer_norm(x, (DIM,), block.feed_norm.weight, block.feed_norm.bias)
        x = x + block.narrow(gelu(block.widen(normed)))
    return layer_norm(x, (DIM,), model.norm.weight, model.norm.bias)


@pytest.mark.parametrize("block", [1, 3])
def test_it_equals_attention_token_by_token(block):
    model = made()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    mask = None if block == 1 else block_causal_mask(2, block)
    out = model(x, mask)
    for row in range(2):
        expected = by_hand(model, x[row], lambda i, j: j // block <= i // block)
        torch.testing.assert_close(out[row], expected)


def test_what_fills_a_sequence_up_changes_nothing_before_it():
    model = made()
    x = torch.randn(1, 5, DIM, dtype=torch.float64)
    longer = torch.cat([x, torch.randn(1, 3, DIM, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(model(longer)[:, :5], model(x))


def test_dropout_is_for_training_alone():
    model = made(dropout=0.5)
    x = torch.randn(1, 4, DIM, dtype=torch.float64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_weights_start_as_wide_as_asked():
    torch.manual_seed(0)
    model = Transformer(64, TransformerConfig(num_layers=2, init_std=0.05))
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert [one.weight.std().item() for one in linear] == pytest.approx([0.05] * len(linear), rel=0.05)


def test_blocks_start_near_what_they_read():
    torch.manual_seed(0)
    read = 0.02 * (math.sqrt(64) * torch.randn(64, 20, 64) + torch.randn(64, 20, 64))  # items, positions
    added = {}
    for start in ("ours", "torch's"):
        model = Transformer(64, TransformerConfig(num_layers=2, dropout=0.0), has_last_norm=False)
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        assert not any(module.bias.any() for module in linear)
        if start == "torch's":
            for module in linear:
                module.reset_parameters()
        with torch.no_grad():
            added[start] = ((model(read) - read).norm() / read.norm()).item()
    assert added["ours"] == pytest.approx(0.25, abs=0.02)
    assert added["torch's"] == pytest.approx(2.6, abs=0.2)


@pytest.mark.parametrize(
    ("dropout", "of_attention", "drops"),
    [(0.0, None, False), (0.5, None, True), (0.5, 0.0, False), (0.0, 0.5, True)],
)
def test_attention_drops_at_a_rate_of_its_own(dropout, of_attention, drops):
    model = made(dropout, of_attention).train()
    for block in model.blocks:
        block.drop = torch.nn.Identity()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    assert torch.equal(model(x), model.eval()(x)) != drops
