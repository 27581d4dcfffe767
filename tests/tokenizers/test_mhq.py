import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import ConfigError
from trec_semid.tokenizers.averages import Averages, moving_averages
from trec_semid.tokenizers.facet_fit import FacetFitConfig, quantize_facets
from trec_semid.tokenizers.mhq import Mhq, MhqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig

NUM_ITEMS = 300
STILL = FacetFitConfig(epochs=0)
SMALL = MhqConfig(
    codebook_size=8, facets=4, levels=2, fit=FacetFitConfig(epochs=8, batch_size=100, decay=0.8)
)


def fitted(config=SMALL, seed=0, *, kind=Mhq):
    catalogue = plant(NUM_ITEMS, 12, noise=0.4).catalogue
    tokenizer = kind(config, DIMS)
    reports = list(tokenizer.fit(catalogue, np.arange(NUM_ITEMS), seed))
    return tokenizer, catalogue.batch(np.arange(NUM_ITEMS)), reports


def changed(**fit):
    return SMALL.model_copy(update={"fit": SMALL.fit.model_copy(update=fit)})


def error(tokenizer, contents):
    rebuilt, x = tokenizer.reconstruct(contents, tokenizer.encode(contents)), tokenizer.standardiser(contents)
    return float(tokenizer.standardiser.errors(x, rebuilt, contents.present).sum(1).mean())


def test_one_facet_as_it_starts_is_residual_kmeans():
    one, contents, reports = fitted(MhqConfig(codebook_size=8, facets=1, levels=3, fit=STILL))
    kmeans, _, levels = fitted(RqKmeansConfig(codebook_size=8, levels=3, iterations=20), kind=RqKmeans)
    assert (one.encode(contents) == kmeans.encode(contents)).float().mean() > 0.99
    rebuilt = [each.reconstruct(contents, each.encode(contents)) for each in (one, kmeans)]
    assert (rebuilt[0] - rebuilt[1]).norm(dim=1).median() < 1e-4
    assert error(one, contents) == pytest.approx(error(kmeans, contents), rel=2e-3)
    assert reports[0].scalars["reconstruction"] == pytest.approx(levels[-1].scalars["residual"], rel=2e-3)


def test_codes_are_the_nearest_codewords_of_each_facet_level_by_level():
    tokenizer, contents, _ = fitted()
    codes, projected = tokenizer.encode(contents), tokenizer.project(contents)
    assert tokenizer.position_names == tuple(f"facet{m}_{level}" for m in range(4) for level in range(2))
    rebuilt = torch.zeros_like(projected)
    for facet in range(4):
        own = slice(8 * facet, 8 * facet + 8)
        left = projected[:, own]
        for level in range(2):
            book = tokenizer.codebooks[2 * facet + level]
            nearest = torch.cdist(left, book).argmin(1)
            assert torch.equal(codes[:, 2 * facet + level], nearest)
            left = left - book[nearest]
        rebuilt[:, own] = projected[:, own] - left
    expected = rebuilt @ torch.linalg.pinv(tokenizer.projection)
    torch.testing.assert_close(tokenizer.reconstruct(contents, codes), expected, atol=1e-4, rtol=0)


def test_a_step_of_the_moving_averages_is_that_of_counting_by_hand():
    generator = torch.Generator().manual_seed(0)
    before = Averages(torch.rand(2, 5, generator=generator), torch.randn(2, 5, 3, generator=generator))
    points = torch.randn(40, 2, 3, generator=generator)
    codes = torch.randint(0, 4, (40, 2), generator=generator)  # code 4 meets nobody
    after = moving_averages(before, points, codes, 0.9)
    for position in range(2):
        for code in range(5):
            mine = points[codes[:, position] == code, position]
            count = 0.9 * before.counts[position, code] + 0.1 * len(mine)
            torch.testing.assert_close(after.counts[position, code], count)
            sums = 0.9 * before.sums[position, code] + 0.1 * mine.sum(0)
            torch.testing.assert_close(after.sums[position, code], sums)
    forgetting = moving_averages(before, points, codes, 0.0)  # a Lloyd step
    mean = points[codes[:, 1] == 2, 1].mean(0)
    torch.testing.assert_close(forgetting.sums[1, 2] / forgetting.counts[1, 2], mean)


def test_the_projection_stays_orthogonal_or_nearly_so():
    for orthogonality, most in (("exact", 1e-4), ("penalty", 0.3)):
        tokenizer, _, reports = fitted(changed(orthogonality=orthogonality, learning_rate=1e-2))
        strayed = tokenizer.projection.T @ tokenizer.projection - torch.eye(32)
        assert strayed.square().sum() < most
        assert reports[-1].scalars["orthogonality"] < most
        assert not torch.equal(tokenizer.projection, fitted(changed(epochs=0))[0].projection)
    with_penalty = fitted(changed(orthogonality="penalty", learning_rate=1e-2))[2]
    without = fitted(changed(orthogonality="penalty", orthogonality_weight=0.0, learning_rate=1e-2))[2]
    assert without[-1].scalars["orthogonality"] > 2 * with_penalty[-1].scalars["orthogonality"] > 0


def unlike(tokenizer, contents):
    energies = tokenizer.project(contents).unflatten(1, (4, -1)).square().sum(2).mean(0)
    return float((energies - energies.mean()).abs().mean())


def test_what_is_learnt_lowers_the_error_and_the_weight_of_balance_makes_energies_alike():
    start, contents, _ = fitted(changed(epochs=0))
    fast = {"learning_rate": 1e-2, "epochs": 30}
    learnt, _, reports = fitted(changed(**fast, balance_weight=0.0))
    assert error(learnt, contents) < 0.9 * error(start, contents)
    balanced, _, _ = fitted(changed(**fast, balance_weight=10.0))
    assert unlike(balanced, contents) < 0.7 * unlike(learnt, contents)
    assert all(1 <= report.scalars["effective_rank"] <= 32 for report in reports)


def test_codes_that_nothing_chose_are_revived():
    reports = fitted(changed(decay=0.0, batch_size=10, epochs=8, revive_every=1))[2]
    assert sum(report.scalars.get("revived_codes", 0) for report in reports) > 0
    assert all(report.scalars["revived_codes"] == 0 for report in reports[6:])


def test_whitened_directions_have_one_variance_and_come_back():
    config = SMALL.model_copy(update={"is_whitened": True, "dim": 16, "fit": STILL})
    tokenizer, contents, reports = fitted(config)
    covariance = torch.cov(tokenizer.project(contents).T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(16), atol=2e-3, rtol=0)
    assert reports[0].scalars["effective_rank"] == pytest.approx(16, rel=1e-4)
    x = tokenizer.standardiser(contents)
    _, _, directions = torch.linalg.svd(x, full_matrices=False)
    widest = x @ directions[:16].T @ directions[:16]
    torch.testing.assert_close(tokenizer.project(contents) @ tokenizer.back, widest, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dim", "facets", "width"), [(512, 5, 30), (20, 8, 16)])
def test_width_is_that_of_the_content_or_less_and_a_multiple_of_the_facets(dim, facets, width):
    tokenizer = Mhq(MhqConfig(codebook_size=8, facets=facets, levels=1, dim=dim, fit=STILL), DIMS)
    assert tokenizer.projection.shape == (32, width)
    assert quantize_facets(torch.zeros(3, width), tokenizer.codebooks, facets).codes.shape == (3, facets)


def test_more_facets_than_dimensions_are_refused():
    with pytest.raises(
        ConfigError, match=r"33 facets share 32 dimensions\. Set tokenizer\.facets = 32 or less"
    ):
        Mhq(MhqConfig(facets=33), DIMS)
