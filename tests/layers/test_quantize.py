import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize, one_hot

from trec_semid.layers.quantize import (
    nearest_codes,
    pick_codewords,
    quantize_soft_index,
    quantize_straight_through,
)

B, R, K, D = 9, 3, 5, 4


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(B, R, D, generator=generator, dtype=torch.float64, requires_grad=True)
    codebooks = torch.randn(R, K, D, generator=generator, dtype=torch.float64, requires_grad=True)
    return latents, codebooks


SIMILARITIES = pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
LENGTH = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)


def score(latent: torch.Tensor, codeword: torch.Tensor, similarity: str) -> torch.Tensor:
    if similarity == "cosine":
        return cosine_similarity(latent, codeword, dim=-1)
    return -(latent - codeword).square().sum(-1)


@SIMILARITIES
def test_nearest_code_is_the_most_similar_of_all(similarity):
    latents, codebooks = (drawn.detach() for drawn in draw())
    codes = nearest_codes(latents, codebooks, similarity)
    for b in range(B):
        for r in range(R):
            scores = [float(score(latents[b, r], codebooks[r, k], similarity)) for k in range(K)]
            assert int(codes[b, r]) == scores.index(max(scores))


def test_codes_know_nothing_of_length():
    latents, codebooks = draw()
    longer = latents * torch.linspace(0.1, 9, B * R, dtype=torch.float64).view(B, R, 1)
    stretched = codebooks * torch.linspace(0.1, 9, R * K, dtype=torch.float64).view(R, K, 1)
    assert torch.equal(nearest_codes(longer, stretched), nearest_codes(latents, codebooks))


def test_picked_codewords_are_the_rows_of_their_codebook():
    _, codebooks = draw()
    codes = torch.randint(K, (B, R), generator=torch.Generator().manual_seed(1))
    picked = pick_codewords(codebooks, codes)
    by_hand = torch.stack([torch.stack([codebooks[r, codes[b, r]] for r in range(R)]) for b in range(B)])
    assert torch.equal(picked, by_hand)


@SIMILARITIES
def test_both_modes_choose_the_nearest_code_and_hand_on_its_codeword(similarity):
    latents, codebooks = draw()
    codes = nearest_codes(latents, codebooks, similarity)
    expected = pick_codewords(codebooks, codes)
    soft = quantize_soft_index(latents, codebooks, temperature=0.1, similarity=similarity, length=LENGTH)
    straight = quantize_straight_through(latents, codebooks, similarity=similarity, length=LENGTH)
    for quantized in (soft, straight):
        assert torch.equal(quantized.codes, codes)
        torch.testing.assert_close(quantized.vectors, expected)
        assert quantized.loss.shape == (B, R)


def by_formula(latents, codebooks, similarity):
    """Return (B, R, K) soft and hard index, and how vectors are made comparable."""
    comparable = {"cosine": lambda x: normalize(x, dim=-1), "euclidean": lambda x: x / LENGTH}[similarity]
    words = comparable(codebooks.transpose(0, 1)).transpose(0, 1)
    scores = score(comparable(latents).unsqueeze(2), words.unsqueeze(0), similarity)
    hard = one_hot(scores.argmax(-1), K).double()
    return torch.softmax(scores / 0.3, dim=-1), hard, comparable


@SIMILARITIES
def test_soft_index_has_the_gradients_of_the_printed_formula(similarity):
    latents, codebooks = draw()
    target = torch.randn(B, R, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    how = {"temperature": 0.3, "similarity": similarity, "length": LENGTH}
    (quantize_soft_index(latents, codebooks, **how).vectors * target).sum().backward()
    ours = latents.grad, codebooks.grad

    latents, codebooks = draw()
    soft, hard, _ = by_formula(latents, codebooks, similarity)
    index = soft + (hard - soft).detach()
    (torch.einsum("brk,rkd->brd", index, codebooks) * target).sum().backward()
    torch.testing.assert_close(ours, (latents.grad, codebooks.grad))


@SIMILARITIES
def test_double_loss_has_the_value_and_gradients_of_its_formula(similarity):
    latents, codebooks = draw()
    how = {"temperature": 0.3, "similarity": similarity, "length": LENGTH}
    value = quantize_soft_index(latents, codebooks, **how).loss.sum()
    value.backward()
    ours = latents.grad, codebooks.grad

    latents, codebooks = draw()
    soft, hard, comparable = by_formula(latents, codebooks, similarity)
    index = soft + (hard - soft).detach()
    soft_chosen = comparable(torch.einsum("brk,rkd->brd", index, codebooks))
    chosen, unit = comparable(torch.einsum("brk,rkd->brd", hard, codebooks)), comparable(latents)
    loss = (soft_chosen - unit).square().sum() + (chosen.detach() - unit).square().sum()
    loss = loss + 0.25 * (chosen - unit.detach()).square().sum()
    loss.backward()
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(ours, (latents.grad, codebooks.grad))


def test_soft_index_reaches_codewords_that_were_not_chosen():
    latents, codebooks = draw()
    quantized = quantize_soft_index(latents, codebooks, temperature=0.3)
    (quantized.vectors * torch.arange(float(D))).sum().backward()
    assert codebooks.grad is not None
    assert (codebooks.grad.abs().sum(-1) > 0).all()


def test_straight_through_hands_the_gradient_to_the_latent_and_moves_codewords_by_the_loss_alone():
    latents, codebooks = draw()
    quantized = quantize_straight_through(latents, codebooks)
    quantized.vectors.sum().backward(retain_graph=True)
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))
    assert codebooks.grad is None or not codebooks.grad.any()
    quantized.loss.sum().backward()
    assert codebooks.grad is not None
    chosen = one_hot(quantized.codes, K).sum(0) > 0
    assert torch.equal(codebooks.grad.abs().sum(-1) > 0, chosen)


@pytest.mark.parametrize("mode", ["soft index", "straight through"])
def test_loss_alone_draws_random_codebooks_to_the_latents(mode):
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(2, K, D, generator=generator)
    latents = centres[:, torch.arange(200) % K].transpose(0, 1)
    latents = latents + 0.1 * torch.randn(200, 2, D, generator=generator)
    codebooks = (centres + torch.randn(2, K, D, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([codebooks], lr=0.05)
    errors: list[float] = []
    for _ in range(60):
        if mode == "soft index":
            quantized = quantize_soft_index(latents, codebooks, temperature=0.1)
        else:
            quantized = quantize_straight_through(latents, codebooks)
        optimizer.zero_grad()
        quantized.loss.mean().backward()
        optimizer.step()
        chosen = pick_codewords(codebooks, quantized.codes)
        errors.append(float((1 - cosine_similarity(latents, chosen, dim=-1)).mean().detach()))
    assert errors[-1] < 0.5 * errors[0]
