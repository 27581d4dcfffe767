import numpy as np
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.tokenizers import encode
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig


@pytest.mark.parametrize("chunk_bytes", [64 * 2**20, 1000])
def test_catalogue_is_encoded_in_chunks_as_in_one_piece(monkeypatch, chunk_bytes):
    monkeypatch.setattr(encode, "_CHUNK_BYTES", chunk_bytes)
    catalogue = plant(130, missing=0.3).catalogue
    tokenizer = RqKmeans(RqKmeansConfig(codebook_size=9, levels=3), DIMS)
    list(tokenizer.fit(catalogue, np.arange(130), 0))
    encoded = encode.encode_catalogue(tokenizer, catalogue)
    contents = catalogue.batch(np.arange(130))
    codes = tokenizer.encode(contents)
    errors = tokenizer.standardiser.errors(
        tokenizer.standardiser(contents), tokenizer.reconstruct(contents, codes), contents.present
    )
    assert encoded.codes.dtype == np.int32
    np.testing.assert_array_equal(encoded.codes, codes.numpy())
    torch.testing.assert_close(torch.from_numpy(encoded.errors), errors)
    assert not encoded.errors[~catalogue.present["vision"], 1].any()
