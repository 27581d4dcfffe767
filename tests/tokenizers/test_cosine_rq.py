import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.tokenizers.planted import DIMS, plant
from trec_semid.tokenizers.cosine_rq import CosineRq, CosineRqConfig

NUM_ITEMS = 300
SMALL = CosineRqConfig(codebook_size=12, levels=3)
KINDS = ("float16", "uint8", "uint4", "none")


def fitted(config=SMALL, seed=0, **plants):
    catalogue = plant(NUM_ITEMS, 12, noise=0.4, **plants).catalogue
    tokenizer = CosineRq(config, DIMS)
    reports = list(tokenizer.fit(catalogue, np.arange(NUM_ITEMS), seed))
    return tokenizer, catalogue.batch(np.arange(NUM_ITEMS)), reports


@pytest.fixture(scope="module")
def by_kind():
    return {kind: fitted(SMALL.model_copy(update={"coefficients": kind})) for kind in KINDS}


def error(tokenizer, contents):
    rebuilt, x = tokenizer.reconstruct(contents, tokenizer.encode(contents)), tokenizer.standardiser(contents)
    return float(tokenizer.standardiser.errors(x, rebuilt, contents.present).sum(1).mean())


def test_items_are_rebuilt_from_directions_and_how_far_they_lie_along_each():
    tokenizer, contents, reports = fitted()
    codes = tokenizer.encode(contents)
    coefficients = tokenizer.coefficients(contents, codes)
    decoded = tokenizer.decode(codes, coefficients).double()
    units = [normalize(part.double(), dim=1) for part in contents.vectors]
    centred = torch.cat(units, dim=1) - torch.cat(units, dim=1).mean(0)
    for row in range(NUM_ITEMS):
        left, rebuilt = centred[row], torch.zeros(32, dtype=torch.float64)
        for level, codebook in enumerate(tokenizer.codebooks.double()):
            code = int((normalize(left, dim=0) @ codebook.T).argmax())
            assert codes[row, level] == code
            along = left @ codebook[code]
            assert coefficients[row, level] == pytest.approx(float(along), rel=2e-3, abs=1e-4)
            left, rebuilt = left - along * codebook[code], rebuilt + along * codebook[code]
        torch.testing.assert_close(decoded[row], rebuilt, atol=1e-3, rtol=0)
    torch.testing.assert_close(tokenizer.codebooks.norm(dim=2), torch.ones(3, 12))
    assert error(tokenizer, contents) == pytest.approx(reports[-1].scalars["residual"], rel=1e-3)


@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_no_cluster_that_a_level_is_fitted_with_is_larger_than_its_share_and_the_slack(slack):
    _, _, reports = fitted(SMALL.model_copy(update={"slack": slack}))
    loose = fitted(SMALL.model_copy(update={"slack": float("inf")}))[2]
    largest = [report.scalars["largest_cluster_share"] for report in reports]
    assert max(largest) * NUM_ITEMS < np.ceil((1 + slack) * NUM_ITEMS / 12) + 0.01
    assert max(report.scalars["largest_cluster_share"] for report in loose) > max(largest)


def test_without_coefficients_the_mean_over_the_items_of_a_code_stands_for_them(by_kind):
    tokenizer, contents, _ = by_kind["none"]
    exact = by_kind["float16"][0]
    codes = tokenizer.encode(contents)
    assert tokenizer.coefficients(contents, codes) is None
    along = exact.coefficients(contents, codes).double()
    rebuilt = torch.zeros(NUM_ITEMS, 32, dtype=torch.float64)
    for level in range(3):
        for code in range(12):
            has = codes[:, level] == code
            if has.any():
                rebuilt[has] += along[has, level].mean() * tokenizer.codebooks[level, code].double()
    torch.testing.assert_close(tokenizer.decode(codes, None).double(), rebuilt, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("kind", "dtype", "bits"), [("uint8", torch.uint8, 8), ("uint4", torch.uint8, 4)])
def test_a_stored_coefficient_is_half_a_step_off_at_most(by_kind, kind, dtype, bits):
    tokenizer, contents, _ = by_kind[kind]
    codes = tokenizer.encode(contents)
    stored = tokenizer.coefficients(contents, codes)
    assert (stored.dtype, tokenizer.coefficient_bits) == (dtype, bits)
    assert stored.max() == 2**bits - 1
    assert stored.min() == 0
    along = by_kind["float16"][0].coefficients(contents, codes).float()
    steps = (along.amax(0) - along.amin(0)) / (2**bits - 1)
    rebuilt = tokenizer.decode(codes, stored) - by_kind["float16"][0].decode(codes, along.half())
    assert (rebuilt.norm(dim=1) <= steps.sum() / 2 + 1e-3).all()


def test_the_more_bits_a_coefficient_has_the_smaller_is_the_error(by_kind):
    errors = [error(tokenizer, contents) for tokenizer, contents, _ in by_kind.values()]
    assert errors[0] <= errors[1] * 1.001 < errors[2] * 1.001 < errors[3]


def test_coefficients_beyond_those_that_were_fitted_are_stored_as_the_nearest_one():
    tokenizer, contents, _ = fitted(SMALL.model_copy(update={"coefficients": "uint4"}))
    codes = tokenizer.encode(contents)
    highest = tokenizer.coefficients(contents, codes) == 15
    tokenizer.grid[1] *= 0.5  # as if the largest had been half as large
    assert (tokenizer.coefficients(contents, codes)[highest] == 15).all()


def test_missing_content_has_coefficients_that_nobody_reads():
    config = SMALL.model_copy(update={"modalities": "separated", "coefficients": "uint8"})
    tokenizer, contents, _ = fitted(config, missing=0.3)
    codes = tokenizer.encode(contents)
    coefficients = tokenizer.coefficients(contents, codes)
    missing = ~contents.present[:, 1]
    assert missing.any()
    assert (codes[missing, 2] == 12).all()
    other = torch.where(codes == 12, 77, coefficients)
    assert torch.equal(tokenizer.decode(codes, other), tokenizer.decode(codes, coefficients))
    assert not tokenizer.decode(codes, coefficients)[missing][:, 12:].any()


def later(seed=5):
    """Items of another world, which lie where the fitted ones do not."""
    return plant(NUM_ITEMS, 12, noise=0.4, seed=seed).catalogue.batch(np.arange(NUM_ITEMS))


def test_an_update_moves_a_direction_towards_the_mean_direction_of_its_new_items():
    tokenizer, _, _ = fitted(SMALL.model_copy(update={"max_drift": 2.0}))
    new, before = later(), tokenizer.codebooks.clone()
    codes, left = tokenizer.encode(new), tokenizer.standardiser(new)
    tokenizer.update(new, 0.25)
    for level in range(3):
        for code in range(12):
            mine = left[codes[:, level] == code]
            expected = before[level, code]
            if len(mine):
                mean = normalize(normalize(mine, dim=1).sum(0), dim=0)
                expected = normalize(0.75 * expected + 0.25 * mean, dim=0)
            torch.testing.assert_close(tokenizer.codebooks[level, code], expected, atol=1e-5, rtol=0)
        chosen = before[level][codes[:, level]]
        left = left - (left * chosen).sum(1, keepdim=True) * chosen


@pytest.mark.parametrize("kind", KINDS)
def test_stored_codes_decode_within_the_stated_bound_after_many_updates(kind):
    tokenizer, contents, _ = fitted(SMALL.model_copy(update={"coefficients": kind, "max_drift": 0.2}))
    codes = tokenizer.encode(contents)
    stored = tokenizer.coefficients(contents, codes)
    before = tokenizer.decode(codes, stored)
    if stored is None:
        along = tokenizer.means.gather(1, codes.T).T
    else:
        along = stored.float() if kind == "float16" else tokenizer.grid[0] + stored * tokenizer.grid[1]
    for seed in range(5, 15):
        moved = tokenizer.update(later(seed), 0.3)
    apart = (tokenizer.decode(codes, stored) - before).norm(dim=1)
    assert moved.largest == pytest.approx(0.2, rel=1e-3)
    assert moved.num_at_bound > 5
    assert (apart <= 0.2 * along.abs().sum(1) + 1e-5).all()
    assert (apart <= 0.2 * 3**0.5 * tokenizer.standardiser(contents).norm(dim=1) + 1e-2).all()
    assert apart.max() > 0.05
    torch.testing.assert_close(tokenizer.codebooks.norm(dim=2), torch.ones(3, 12))


def test_updates_lower_the_error_of_later_items_as_far_as_drift_is_allowed():
    errors = {}
    for farthest in (0.0, 0.3, 2.0):
        tokenizer, _, _ = fitted(SMALL.model_copy(update={"max_drift": farthest}))
        for _ in range(10):
            tokenizer.update(later(), 0.2)
        errors[farthest] = error(tokenizer, later())
    unmoved, _, _ = fitted()
    assert errors[0.0] == pytest.approx(error(unmoved, later()), rel=1e-5)
    assert errors[2.0] < 0.97 * errors[0.3] < 0.97 * errors[0.0]


def test_codes_without_new_items_and_updates_of_rate_zero_move_nothing():
    tokenizer, contents, _ = fitted()
    before = tokenizer.codebooks.clone()
    torch.testing.assert_close(tokenizer.codebooks, before)
    tokenizer.update(contents, 0.0)
    torch.testing.assert_close(tokenizer.codebooks, before)
    one = later()
    tokenizer.update(one._replace(vectors=tuple(v[:1] for v in one.vectors), present=one.present[:1]), 0.1)
    assert (tokenizer.codebooks - before).norm(dim=2).gt(1e-6).sum() <= 3
