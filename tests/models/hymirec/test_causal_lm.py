import json
from pathlib import Path

import pytest
import torch

from trec_semid.models.hymirec.causal_lm import CausalLm, CausalLmConfig
from trec_semid.models.hymirec.refined_half import RefinedHalf, recent_places

SIZES = {
    "qwen2": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 2, "vocab_size": 11, "max_position_embeddings": 64},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 64}
    | {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
}


@pytest.fixture(scope="module", params=SIZES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "config.json").write_text(json.dumps({"model_type": request.param, **SIZES[request.param]}))
    return str(folder)


def half(path: str, **settings: object) -> RefinedHalf:
    torch.manual_seed(0)
    config = CausalLmConfig.model_validate({"path": path, "pretrained": False, **settings})
    return RefinedHalf(CausalLm(8, 10, config), 8, 3, 5, 0.0)


def test_a_short_history_is_read_alike_in_a_batch_of_long_ones_and_alone(path: str):
    refined = half(path).eval()
    items, coarse = torch.randn(3, 5, 8), torch.randn(3, 2, 8)
    lengths = [5, 2, 0]
    is_there = recent_places(torch.tensor(lengths), 5).is_there
    together = refined(items, is_there, coarse)
    for user, length in enumerate(lengths):
        own = slice(user, user + 1)
        alone = refined(items[own, 5 - length :], torch.ones(1, length, dtype=torch.bool), coarse[own])
        torch.testing.assert_close(together[own], alone, atol=1e-5, rtol=1e-4)


def test_layers_computed_again_in_backward_give_the_same_gradients(path: str):
    items, coarse = torch.randn(2, 5, 8), torch.randn(2, 2, 8)
    is_there = torch.ones(2, 5, dtype=torch.bool)
    gradients = []
    for again in (False, True):
        refined = half(path, checkpoints_gradients=again).train()
        refined(items, is_there, coarse).square().sum().backward()
        gradients.append([each.grad for each in refined.parameters() if each.requires_grad])
    assert all(gradient is not None for gradient in gradients[0])
    for first, other in zip(*gradients, strict=True):
        torch.testing.assert_close(first, other)


def test_with_small_additions_the_language_model_stays_as_it_is(path: str):
    refined = half(path, lora_rank=2)
    learning = {name for name, weight in refined.named_parameters() if weight.requires_grad}
    parts = {"lora_A", "lora_B", "into", "out", "queries"}
    assert {next(part for part in parts if part in name) for name in learning} == parts
    refined(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 2, 8)).sum().backward()
    assert [
        name for name, weight in refined.named_parameters() if name in learning and weight.grad is None
    ] == []


def test_a_pretrained_model_is_the_folder_s_and_small_additions_begin_at_nothing(path: str, tmp_path: Path):
    """Also where layers are computed again in backward."""
    import transformers  # takes a second, which collecting all tests need not

    torch.manual_seed(7)
    saved = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(path))
    saved.save_pretrained(tmp_path)
    plain = half(str(tmp_path), pretrained=True)
    added = half(str(tmp_path), pretrained=True, lora_rank=2, checkpoints_gradients=True)
    for part in ("into", "out"):
        getattr(added.backbone, part).load_state_dict(getattr(plain.backbone, part).state_dict())
    with torch.no_grad():
        added.queries.copy_(plain.queries)
    own = plain.backbone.model.state_dict()
    weights = {name: each for name, each in saved.state_dict().items() if name in own and "wte" not in name}
    compared = {name for name in weights if "embed_tokens" not in name}
    assert len(compared) > 10
    for name in compared:
        torch.testing.assert_close(own[name], weights[name], rtol=0, atol=0)
    inputs = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 2, 8)
    torch.testing.assert_close(added.train()(*inputs), plain.train()(*inputs))
    added(*inputs).square().sum().backward()
    learning = [weight.grad for name, weight in added.named_parameters() if "lora_B" in name]
    assert learning
    assert all(gradient is not None and gradient.any() for gradient in learning)
