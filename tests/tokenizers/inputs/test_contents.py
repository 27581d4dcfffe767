import numpy as np
import pytest
import torch

from tests.tokenizers.planted import plant
from trec_semid.core.errors import DataError
from trec_semid.tokenizers.inputs.contents import ItemContents, require_items


def test_batch_holds_the_rows_asked_for_in_their_order():
    catalogue = plant(20, missing=0.3).catalogue
    rows = np.array([7, 3, 3, 19])
    contents = catalogue.batch(rows)
    np.testing.assert_array_equal(contents.vectors[0].numpy(), catalogue.vectors["text"][rows])
    np.testing.assert_array_equal(contents.present[:, 1].numpy(), catalogue.present["vision"][rows])
    assert contents.vectors[1].dtype == torch.float32


def test_rows_that_are_not_present_are_zeros_whatever_the_file_holds():
    catalogue = plant(50, missing=0.5).catalogue
    contents = catalogue.batch(np.arange(50))
    absent = ~contents.present[:, 1]
    assert absent.any()
    assert not contents.vectors[1][absent].any()


def test_masks_are_matched_by_name_not_by_order():
    planted = plant(30, missing=0.4).catalogue
    swapped = ItemContents(planted.vectors, dict(reversed(list(planted.present.items()))))
    assert torch.equal(swapped.batch(np.arange(30)).present, planted.batch(np.arange(30)).present)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_present_vector_that_is_not_finite_is_refused_by_row_and_modality(bad):
    catalogue = plant(20).catalogue
    catalogue.vectors["text"][13, 2] = bad
    with pytest.raises(DataError, match="row 14, field 'text': NaN or infinite"):
        catalogue.batch(np.array([4, 13, 5]))


def test_modalities_of_unequal_length_are_refused():
    arrays = plant(20).catalogue
    with pytest.raises(DataError, match="field 'vision': vectors of 19 items, others have 20"):
        ItemContents({**arrays.vectors, "vision": arrays.vectors["vision"][:19]}, arrays.present)
    with pytest.raises(DataError, match="mask of 3 items"):
        ItemContents(arrays.vectors, {**arrays.present, "text": np.ones(3, bool)})


def test_no_modality_at_all_is_refused():
    with pytest.raises(DataError, match="no content to tokenize"):
        ItemContents({}, {})


def test_chunks_make_up_the_rows():
    catalogue = plant(23).catalogue
    chunks = list(catalogue.chunks(np.arange(23), 10))
    assert [len(rows) for rows, _ in chunks] == [10, 10, 3]
    np.testing.assert_array_equal(
        np.concatenate([contents.vectors[0].numpy() for _, contents in chunks]), catalogue.vectors["text"]
    )


def test_half_precision_files_are_read_as_float32(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float16)
    np.save(tmp_path / "text.npy", vectors)
    mapped = np.load(tmp_path / "text.npy", mmap_mode="r")
    contents = ItemContents({"text": mapped}, {"text": np.ones(9, bool)}).batch(np.arange(9))
    np.testing.assert_array_equal(contents.vectors[0].numpy(), vectors.astype(np.float32))


def test_rows_with_content_leave_out_items_that_have_nothing():
    catalogue = plant(10, missing=0.5).catalogue
    catalogue.present["text"][:5] = False
    expected = [row for row in range(10) if row >= 5 or catalogue.present["vision"][row]]
    assert catalogue.rows_with_content().tolist() == expected


def test_more_codes_than_items_are_refused_with_a_remedy():
    with pytest.raises(DataError, match=r"field 'text': a codebook of 9 codes .* \(got 8\)\. Lower"):
        require_items(8, 9, field="text")
    require_items(9, 9)


def test_present_vector_of_zeros_is_refused_and_a_missing_one_is_not():
    catalogue = plant(20).catalogue
    catalogue.vectors["text"][13] = 0
    catalogue.batch(np.arange(13))
    with pytest.raises(DataError, match=r"row 14, field 'text': a vector of zeros.*mark it as missing"):
        catalogue.batch(np.arange(20))
    catalogue.present["text"][13] = False
    assert not catalogue.batch(np.arange(20)).present[13, 0]
