import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import DataError
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig

SMALL = RqKmeansConfig(codebook_size=7, levels=4)


def fitted(catalogue, config=SMALL, seed=0):
    tokenizer = RqKmeans(config, DIMS)
    reports = list(tokenizer.fit(catalogue, np.arange(catalogue.num_items), seed))
    return tokenizer, reports


def test_codes_are_the_nearest_centroid_of_what_is_left_over():
    catalogue = plant(120).catalogue
    tokenizer, _ = fitted(catalogue)
    contents = catalogue.batch(np.arange(120))
    codes = tokenizer.encode(contents).numpy()
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in catalogue.vectors.values()]
    residual = np.concatenate(units, axis=1)
    residual = residual - residual.mean(0)
    for level, codebook in enumerate(tokenizer.codebooks.numpy()):
        nearest = ((residual[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(codes[:, level], nearest)
        residual = residual - codebook[nearest]
    rebuilt = tokenizer.reconstruct(contents, torch.from_numpy(codes))
    x = tokenizer.standardiser(contents)
    torch.testing.assert_close(x - rebuilt, torch.from_numpy(residual), atol=1e-5, rtol=0)


def test_every_level_lowers_the_error_and_the_last_is_the_reported_one():
    catalogue = plant(300, 12, noise=0.4).catalogue
    tokenizer, reports = fitted(catalogue)
    residuals = [report.scalars["residual"] for report in reports]
    assert residuals == sorted(residuals, reverse=True)
    assert [(report.round, report.num_rounds) for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    contents = catalogue.batch(np.arange(300))
    rebuilt = tokenizer.reconstruct(contents, tokenizer.encode(contents))
    errors = tokenizer.standardiser.errors(tokenizer.standardiser(contents), rebuilt, contents.present)
    assert float(errors.sum(1).mean()) == pytest.approx(residuals[-1], rel=1e-3)


def test_missing_modality_is_taken_for_the_average():
    planted = plant(200, missing=0.3)
    tokenizer, _ = fitted(planted.catalogue)
    contents = planted.catalogue.batch(np.arange(200))
    assert not tokenizer.standardiser(contents)[~contents.present[:, 1], 12:].any()
    codes = tokenizer.encode(contents)
    assert codes.min() >= 0
    assert codes.max() < 7


def test_first_level_follows_the_planted_clusters():
    planted = plant(300, 4)
    tokenizer, _ = fitted(planted.catalogue, RqKmeansConfig(codebook_size=40, levels=2))
    codes = tokenizer.encode(planted.catalogue.batch(np.arange(300))).numpy()
    together = planted.clusters["text"] * 4 + planted.clusters["vision"]
    pure = sum(np.bincount(together[codes[:, 0] == code]).max() for code in np.unique(codes[:, 0]))
    assert pure / 300 > 0.9


def test_clusters_can_be_fitted_on_a_sample():
    catalogue = plant(300).catalogue
    tokenizer, _ = fitted(catalogue, RqKmeansConfig(codebook_size=7, levels=2, items_per_code=10))
    assert tokenizer.encode(catalogue.batch(np.arange(300))).shape == (300, 2)


def test_more_codes_than_items_are_refused():
    with pytest.raises(DataError, match=r"a codebook of 7 codes .* \(got 5\)"):
        next(RqKmeans(SMALL, DIMS).fit(plant(20).catalogue, np.arange(5), 0))
