import itertools

import faiss
import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.layers.product import fit_product
from trec_semid.tokenizers.opq import Opq, OpqConfig


def correlated(num_points: int, dim: int, seed: int = 0) -> np.ndarray:
    """Draw points whose directions matter unequally and lie across the axes."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    points = (rng.normal(size=(num_points, dim)) * np.exp(-np.arange(dim) / 6)) @ basis
    points += 0.3 * basis[rng.integers(min(8, dim), size=num_points)]
    return (points - points.mean(0)).astype(np.float32)


def last(points: np.ndarray, num_subspaces: int, num_codes: int, **keys):
    *_, product = fit_product(
        points, num_subspaces, num_codes, **{"turns": 12, "seed": 0, "max_dim": 512} | keys
    )
    return product


def test_error_is_at_most_that_of_the_reference_at_a_power_of_two():
    points = correlated(3000, 24)
    rotation = faiss.OPQMatrix(24, 4)
    pq = faiss.ProductQuantizer(24, 4, 5)
    rotation.pq = pq
    rotation.niter = 25
    rotation.train(points)
    rotated = rotation.apply_py(points)
    pq.train(rotated)
    reference = np.square(rotated - pq.decode(pq.compute_codes(rotated))).sum(1).mean()
    assert last(points, 4, 32).residual < 1.03 * reference


@pytest.mark.parametrize(("dim", "num_subspaces"), [(24, 4), (23, 5), (7, 6)])
def test_rotation_keeps_lengths_whatever_the_width(dim, num_subspaces):
    product = last(correlated(400, dim), num_subspaces, 100, turns=3)
    width = -(-dim // num_subspaces)
    assert product.rotation.shape == (dim, num_subspaces * width)
    assert product.codebooks.shape == (num_subspaces, 100, width)
    np.testing.assert_allclose(product.rotation @ product.rotation.T, np.eye(dim), atol=1e-4)


def test_turns_lower_the_error():
    points = correlated(1500, 24)
    residuals = [p.residual for p in fit_product(points, 4, 30, turns=10, seed=0, max_dim=512)]
    assert residuals[-1] < 0.98 * residuals[0]
    assert all(later < 1.001 * earlier for earlier, later in itertools.pairwise(residuals))


def test_directions_beyond_the_most_important_ones_are_taken_for_zero():
    points = correlated(1500, 24)
    product = last(points, 4, 30, turns=3, max_dim=10)
    assert product.rotation.shape == (24, 12)
    variances = np.linalg.eigvalsh(np.cov(points.T, bias=True))
    kept = np.square(points @ product.rotation).sum(1).mean()
    assert kept == pytest.approx(variances[-10:].sum(), rel=1e-3)


def test_codes_are_the_nearest_codewords_of_the_rotated_stretches():
    catalogue = plant(150).catalogue
    opq = Opq(OpqConfig(codebook_size=9, subspaces=5, turns=3, modalities="separated"), DIMS)
    reports = list(opq.fit(catalogue, np.arange(150), 0))
    assert opq.position_names == ("text_0", "text_1", "text_2", "vision_0", "vision_1")
    contents = catalogue.batch(np.arange(150))
    codes = opq.encode(contents)
    x, errors = opq.standardiser(contents), 0.0
    for part, index, positions in ((x[:, :12], 0, range(3)), (x[:, 12:], 1, range(3, 5))):
        rotated = part @ opq.rotations[index].matrix
        for stretch, position in zip(rotated.chunk(len(positions), dim=1), positions, strict=True):
            book = opq.codebooks[position, :, : stretch.shape[1]]
            nearest = torch.cdist(stretch, book).argmin(1)
            assert torch.equal(codes[:, position], nearest)
            errors += float((stretch - book[nearest]).square().sum())
    rebuilt = opq.reconstruct(contents, codes)
    assert float((x - rebuilt).square().sum()) == pytest.approx(errors, rel=1e-4)
    residuals = [report.scalars["residual"] for report in reports]
    assert residuals[2] + residuals[5] == pytest.approx(errors / 150, rel=1e-3)


def test_fewer_positions_than_modalities_are_refused():
    with pytest.raises(ConfigError, match=r"2 modalities need a position each \(got 1 positions\)"):
        Opq(OpqConfig(subspaces=1, modalities="separated"), DIMS)


def test_too_few_items_of_a_modality_are_refused_by_its_name():
    catalogue = plant(60).catalogue
    catalogue.present["vision"][6:] = False
    with pytest.raises(DataError, match=r"field 'vision': a codebook of 20 codes .* \(got 6\)"):
        next(Opq(OpqConfig(codebook_size=20, modalities="separated"), DIMS).fit(catalogue, np.arange(60), 0))
