import numpy as np
import torch
from torch.nn.functional import normalize

from trec_semid.layers.residual import project_levels


def drawn(num_points: int = 40, dim: int = 7):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(num_points, dim, generator=generator)
    return points, normalize(torch.randn(3, 9, dim, generator=generator), dim=-1)


def test_levels_take_away_the_projection_on_the_code_of_the_largest_cosine():
    points, codebooks = drawn()
    projected = project_levels(points, codebooks)
    for row, point in enumerate(points.double().numpy()):
        left = point
        for level, codebook in enumerate(codebooks.double().numpy()):
            cosines = [left @ c / np.linalg.norm(left) / np.linalg.norm(c) for c in codebook]
            best = int(np.argmax(cosines))
            assert projected.codes[row, level] == best
            along = left @ codebook[best] / (codebook[best] @ codebook[best])
            np.testing.assert_allclose(projected.coefficients[row, level], along, rtol=1e-4)
            left = left - along * codebook[best]
        np.testing.assert_allclose(projected.left[row], left, atol=1e-5)


def test_squared_lengths_fall_by_the_squares_of_coefficients():
    points, codebooks = drawn()
    projected = project_levels(points, codebooks)
    parts = projected.coefficients.square().sum(1) + projected.left.square().sum(1)
    torch.testing.assert_close(parts, points.square().sum(1))
    last = codebooks[2][projected.codes[:, 2]]
    torch.testing.assert_close((projected.left * last).sum(1), torch.zeros(40), atol=1e-5, rtol=0)


def test_given_codes_are_projected_on_as_they_are():
    points, codebooks = drawn()
    codes = torch.randint(0, 9, (40, 3), generator=torch.Generator().manual_seed(1))
    projected = project_levels(points, codebooks, codes)
    assert torch.equal(projected.codes, codes)
    rebuilt = sum(projected.coefficients[:, r, None] * codebooks[r][codes[:, r]] for r in range(3))
    torch.testing.assert_close(rebuilt + projected.left, points)
    own = project_levels(points, codebooks)
    again = project_levels(points, codebooks, own.codes)
    torch.testing.assert_close(again.coefficients, own.coefficients)
