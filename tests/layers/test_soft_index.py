import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot, softmax

from trec_semid.layers.soft_index import GumbelNoise, Similarity, effective_codes, soft_lookup

B, R, K, D, V, TEMPERATURE = 7, 3, 5, 4, 6, 0.3
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "euclidean")


def drawn(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, R, D), (R, K, D), (R, K, V))
    made = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return made[0], made[1], made[2]


def scores_by_definition(latents: Tensor, codebooks: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "cosine":
        return torch.einsum("brd,rkd->brk", normalize(latents, dim=-1), normalize(codebooks, dim=-1))
    return -(latents.unsqueeze(2) - codebooks.unsqueeze(0)).square().sum(-1)


def lookup_by_definition(
    latents: Tensor, codebooks: Tensor, values: Tensor, similarity: Similarity
) -> Tensor:
    """Equations 15 to 18 word for word, with everything in memory."""
    soft = softmax(scores_by_definition(latents, codebooks, similarity) / TEMPERATURE, dim=-1)
    hard = one_hot(soft.argmax(-1), codebooks.shape[1]).to(soft)
    ind = soft + (hard - soft).detach()
    return torch.einsum("brk,rkv->brv", ind, values)


def gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weights = torch.arange(output.numel(), dtype=output.dtype).view_as(output).sin()
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("chunk_bytes", [1, 4 * R * K * 3, 2**20])
def test_values_and_gradients_are_those_of_the_definition_whatever_the_chunks(
    similarity: Similarity, chunk_bytes: int
) -> None:
    inputs = drawn()
    expected = lookup_by_definition(*inputs, similarity)
    picked = soft_lookup(*inputs, similarity=similarity, temperature=TEMPERATURE, chunk_bytes=chunk_bytes)
    assert torch.allclose(picked.vectors, expected, atol=1e-12)
    assert torch.equal(picked.codes, scores_by_definition(inputs[0], inputs[1], similarity).argmax(-1))
    for ours, theirs in zip(gradients(picked.vectors, inputs), gradients(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)
        assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_position_may_have_a_temperature_of_its_own(similarity: Similarity) -> None:
    inputs = drawn()
    temperatures = torch.linspace(0.2, 2.0, R, dtype=inputs[0].dtype)
    whole = soft_lookup(*inputs, similarity=similarity, temperature=temperatures)
    ours = gradients(whole.vectors, inputs)
    one_by_one = [
        soft_lookup(
            inputs[0][:, [r]], inputs[1][[r]], inputs[2][[r]], similarity=similarity, temperature=float(t)
        ).vectors
        for r, t in enumerate(temperatures)
    ]
    expected = torch.cat(one_by_one, dim=1)
    assert torch.allclose(whole.vectors, expected)
    for mine, theirs in zip(ours, gradients(expected, inputs), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_noise_is_the_same_in_backward_as_it_was_in_forward() -> None:
    latents, codebooks, values = drawn()
    noise = GumbelNoise(scale=3.0, seed=11)
    chunk_bytes = 4 * R * K * 2
    picked = soft_lookup(
        latents, codebooks, values, similarity="cosine", temperature=1.0, noise=noise, chunk_bytes=chunk_bytes
    )
    calm = soft_lookup(latents, codebooks, values, similarity="cosine", temperature=1.0)
    assert not torch.equal(picked.codes, calm.codes)
    # The noise as it must have been drawn, two items at a time.
    generator = torch.Generator().manual_seed(noise.seed)
    drawn_noise = [torch.rand((R, min(2, B - start), K), generator=generator) for start in range(0, B, 2)]
    gumbel = torch.cat([-(-part.log()).log() for part in drawn_noise], dim=1).transpose(0, 1)
    scores = scores_by_definition(latents, codebooks, "cosine") + noise.scale * gumbel
    soft = softmax(scores, dim=-1)
    ind = soft + (one_hot(soft.argmax(-1), K).to(soft) - soft).detach()
    expected = torch.einsum("brk,rkv->brv", ind, values)
    assert torch.allclose(picked.vectors, expected, atol=1e-9)
    inputs = (latents, codebooks, values)
    for ours, theirs in zip(gradients(picked.vectors, inputs), gradients(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_noise_of_scale_nought_changes_nothing() -> None:
    inputs = drawn()
    with_noise = soft_lookup(
        *inputs, similarity="cosine", temperature=1.0, noise=GumbelNoise(scale=0.0, seed=1)
    )
    assert torch.equal(with_noise.codes, soft_lookup(*inputs, similarity="cosine", temperature=1.0).codes)


def test_no_tensor_of_items_by_codes_is_kept_for_backward() -> None:
    latents, codebooks, values = torch.randn(64, 2, 4), torch.randn(2, 512, 4), torch.randn(2, 512, 3)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        soft_lookup(
            latents.requires_grad_(), codebooks, values, similarity="euclidean", temperature=1.0
        ).vectors.sum()
    assert kept
    assert max(kept) < 64 * 2 * 512


def test_no_items_are_looked_up_as_well() -> None:
    _, codebooks, values = drawn()
    picked = soft_lookup(
        torch.zeros(0, R, D, dtype=torch.float64, requires_grad=True),
        codebooks,
        values,
        similarity="cosine",
        temperature=1.0,
    )
    assert picked.vectors.shape == (0, R, V)
    picked.vectors.sum().backward()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("chunk_bytes", [4 * R * K * 3, None])
def test_absent_latents_read_the_row_of_the_missing_code_and_get_no_gradient(
    similarity: Similarity, chunk_bytes: int | None
) -> None:
    latents, codebooks, _ = drawn()
    values = torch.randn(R, K + 1, V, dtype=torch.float64, requires_grad=True)
    present = torch.arange(B * R).view(B, R) % 4 != 1
    picked = soft_lookup(
        latents,
        codebooks,
        values,
        similarity=similarity,
        temperature=TEMPERATURE,
        present=present,
        chunk_bytes=chunk_bytes,
    )
    known = lookup_by_definition(latents, codebooks, values[:, :K], similarity)
    expected = torch.where(present.unsqueeze(2), known, values[:, K])
    assert torch.allclose(picked.vectors, expected, atol=1e-12)
    assert (picked.codes == K).equal(~present)
    inputs = (latents, codebooks, values)
    for ours, theirs in zip(gradients(picked.vectors, inputs), gradients(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("chunk_bytes", [1, None])
def test_codes_in_effect_are_exp_of_the_entropy_by_definition(
    similarity: Similarity, chunk_bytes: int | None
) -> None:
    latents, codebooks, _ = drawn()
    temperatures = torch.linspace(0.1, 3.0, R, dtype=latents.dtype)
    soft = softmax(scores_by_definition(latents, codebooks, similarity) / temperatures.view(1, R, 1), dim=-1)
    each = torch.exp(-(soft * soft.log()).sum(-1))
    given = {"similarity": similarity, "temperature": temperatures, "chunk_bytes": chunk_bytes}
    assert torch.allclose(effective_codes(latents, codebooks, **given).double(), each.mean(0), atol=1e-5)
    present = torch.arange(B * R).view(B, R) % 4 > 0
    present[:, 1] = False
    of_present = torch.stack([each[present[:, r], r].mean() for r in range(R)])
    of_present[1] = 1.0
    ours = effective_codes(latents, codebooks, present=present, **given)
    assert torch.allclose(ours.double(), of_present.double(), atol=1e-5)


def test_of_a_sharp_index_one_code_is_in_effect_and_of_a_flat_one_all() -> None:
    latents, codebooks, _ = drawn()
    for temperature, count in ((1e-9, 1), (1e9, K)):
        said = effective_codes(latents, codebooks, similarity="euclidean", temperature=temperature)
        assert said.tolist() == pytest.approx([count] * R, abs=1e-4)
