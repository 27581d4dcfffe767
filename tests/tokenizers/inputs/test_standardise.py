import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import ShapeError
from trec_semid.tokenizers.inputs.contents import Contents
from trec_semid.tokenizers.inputs.standardise import Standardiser

NUM_ITEMS = 60


def fitted(scaled: bool = True):
    catalogue = plant(NUM_ITEMS, missing=0.4).catalogue
    standardiser = Standardiser(DIMS, scaled=scaled)
    standardiser.fit(catalogue, np.arange(NUM_ITEMS))
    return catalogue, standardiser


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_statistics_are_those_of_unit_vectors_of_items_that_have_the_modality():
    catalogue, standardiser = fitted()
    seen = unit(catalogue.vectors["vision"][catalogue.present["vision"]].astype(np.float64))
    np.testing.assert_allclose(standardiser.mean[12:].numpy(), seen.mean(0), atol=1e-6)
    np.testing.assert_allclose(standardiser.std[12:].numpy(), seen.std(0), rtol=1e-4)


def test_standardised_content_has_mean_zero_and_deviation_one_and_is_zero_where_missing():
    catalogue, standardiser = fitted()
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    x = standardiser(contents)
    vision = x[contents.present[:, 1], 12:]
    torch.testing.assert_close(vision.mean(0), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(vision.std(0, correction=0), torch.ones(20), atol=1e-4, rtol=0)
    assert not x[~contents.present[:, 1], 12:].any()


def test_one_modality_alone_is_its_columns_of_the_whole():
    catalogue, standardiser = fitted()
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    whole = standardiser(contents)
    for place, name in enumerate(DIMS):
        alone = standardiser.modality(name, contents.vectors[place], contents.present[:, place])
        assert torch.equal(alone, whole[:, standardiser.columns(name)])


def test_length_of_the_input_does_not_matter():
    catalogue, standardiser = fitted()
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    longer = Contents(tuple(9 * part for part in contents.vectors), contents.present)
    torch.testing.assert_close(standardiser(longer), standardiser(contents))


@pytest.mark.parametrize("scaled", [True, False])
def test_errors_are_squared_distances_between_unit_vectors(scaled):
    catalogue, standardiser = fitted(scaled)
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    rebuilt = torch.randn(NUM_ITEMS, 32, generator=torch.Generator().manual_seed(0))
    errors = standardiser.errors(standardiser(contents), rebuilt, contents.present).numpy()
    guess = standardiser.mean.numpy() + standardiser.std.numpy() * rebuilt.numpy()
    text = ((unit(catalogue.vectors["text"]) - guess[:, :12]) ** 2).sum(1)
    vision = ((unit(catalogue.vectors["vision"]) - guess[:, 12:]) ** 2).sum(1)
    np.testing.assert_allclose(errors[:, 0], text, rtol=1e-4)
    np.testing.assert_allclose(
        errors[:, 1], np.where(catalogue.present["vision"], vision, 0), rtol=1e-4, atol=1e-7
    )


def test_unscaled_content_is_only_centred():
    catalogue, standardiser = fitted(scaled=False)
    x = standardiser(catalogue.batch(np.arange(NUM_ITEMS)))
    text = unit(catalogue.vectors["text"])
    np.testing.assert_allclose(x[:, :12].numpy(), text - text.mean(0), atol=1e-6)


def test_dimension_that_never_varies_stays_finite_and_small():
    catalogue = plant(NUM_ITEMS).catalogue
    catalogue.vectors["text"][:, 3] = 0.0
    standardiser = Standardiser(DIMS)
    standardiser.fit(catalogue, np.arange(NUM_ITEMS))
    x = standardiser(catalogue.batch(np.arange(NUM_ITEMS)))
    assert x.isfinite().all()
    assert not x[:, 3].any()


def test_content_of_another_width_is_refused_with_the_expected_ones():
    _, standardiser = fitted()
    contents = Contents((torch.zeros(2, 12), torch.zeros(2, 19)), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"got \(12, 19\), expected text = 12, vision = 20"):
        standardiser(contents)
