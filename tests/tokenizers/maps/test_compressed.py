"""What codes and what is stored beside them add up to, beside what each tokenizer decodes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import ConfigError
from trec_semid.core.ids import id_array
from trec_semid.models.hymirec.codebook import CodebookReader
from trec_semid.tokenizers.cosine_rq import CosineRqConfig
from trec_semid.tokenizers.generations.manifest import Generation
from trec_semid.tokenizers.maps.coefficients import Coefficients
from trec_semid.tokenizers.maps.compressed import read_compressed
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import build_tokenizer
from trec_semid.tokenizers.mmq import MmqConfig
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.tokenizer import Tokenizer

NUM_ITEMS = 80
COSINE = CosineRqConfig(codebook_size=6, levels=3)
METHODS = {
    "cosine_float16": COSINE,
    "cosine_uint4": COSINE.model_copy(update={"coefficients": "uint4"}),
    "cosine_none": COSINE.model_copy(update={"coefficients": "none"}),
    "cosine_separated": COSINE.model_copy(update={"modalities": "separated", "coefficients": "uint8"}),
    "rq_kmeans_separated": RqKmeansConfig(codebook_size=6, levels=3, modalities="separated"),
    "opq": OpqConfig(codebook_size=6, subspaces=5, turns=3),
    "opq_separated": OpqConfig(codebook_size=6, subspaces=5, turns=3, modalities="separated"),
}


def write_run(folder: str, config) -> tuple[Tokenizer, torch.Tensor, SemanticIds]:
    """Fit and save a tokenizer with the codes of some items; a third of these have one modality alone."""
    catalogue, rows = plant(NUM_ITEMS, 6, missing=0.3).catalogue, np.arange(NUM_ITEMS)
    tokenizer, contents = build_tokenizer(config, DIMS), catalogue.batch(rows)
    list(tokenizer.fit(catalogue, rows, 0))
    codes = tokenizer.encode(contents)
    beside, ids = tokenizer.coefficients(contents, codes), id_array([f"item {row}" for row in rows])
    tokenizer.save(f"{folder}/tokenizer")
    semantic_ids = SemanticIds(ids, codes.numpy().astype(np.int32), tokenizer.codebook_sizes)
    semantic_ids.save(f"{folder}/semantic_ids.parquet")
    if beside is not None:
        Coefficients(ids, beside.numpy()).save(f"{folder}/coefficients.parquet")
    open(f"{folder}/metrics.json", "w").close()
    return tokenizer, tokenizer.reconstruct(contents, codes), semantic_ids


@pytest.mark.parametrize("name", METHODS)
def test_a_reader_maps_what_the_tokenizer_decodes_item_by_item(tmp_path, name):
    _, rebuilt, ids = write_run(str(tmp_path), METHODS[name])
    order = np.random.default_rng(0).permutation(NUM_ITEMS)[:50]  # coefficients are matched by item
    compressed = read_compressed(str(tmp_path), ids.in_order(ids.item_ids.take(pa.array(order)), "map"))
    torch.manual_seed(0)
    reader = CodebookReader(compressed, 7, learns=False)
    rows = torch.tensor([3, 0, 41, 3])
    codes = torch.from_numpy(ids.codes[order])[rows].long()
    read = reader(rows, codes)
    assert not {"codewords", "stored", "grid"} & {name for name, _ in reader.named_parameters()}
    for at, row in enumerate(rows.tolist()):
        expected = reader.project(rebuilt[order[row]])
        torch.testing.assert_close(read[at], expected, atol=2e-3, rtol=0)  # half precision of coefficients


def test_a_codebook_that_learns_begins_as_it_was_fitted_and_gets_the_gradient_of_its_items(tmp_path):
    _, _, ids = write_run(str(tmp_path), COSINE)
    compressed = read_compressed(str(tmp_path), ids)
    still, tuned = (CodebookReader(compressed, 7, learns=learns) for learns in (False, True))
    tuned.project.load_state_dict(still.project.state_dict())
    rows = torch.arange(4)
    codes = torch.from_numpy(ids.codes)[rows].long()
    torch.testing.assert_close(tuned(rows, codes), still(rows, codes), rtol=0, atol=0)
    tuned(rows, codes).sum().backward()
    along = compressed.stored[rows].float()
    by_hand = torch.zeros_like(tuned.codewords)
    for item in range(4):
        for level, code in enumerate(codes[item].tolist()):
            by_hand[level, code] += along[item, level] * tuned.project.weight.sum(0)
    torch.testing.assert_close(tuned.codewords.grad, by_hand)


def test_what_has_no_codebook_that_adds_up_is_refused(tmp_path):
    _, _, ids = write_run(str(tmp_path), COSINE)
    with pytest.raises(ConfigError, match=r"no codebook .* name the run folder"):
        read_compressed(f"{tmp_path}/semantic_ids.parquet", ids)
    longer = SemanticIds(ids.item_ids, np.pad(ids.codes, ((0, 0), (0, 1))), (*ids.sizes, 3))
    with pytest.raises(ConfigError, match=r": tokenize with collisions = 'keep'"):
        read_compressed(str(tmp_path), longer)
    slotted = Generation.model_construct(collisions="slots")
    with pytest.raises(ConfigError, match=r"publish without --slots a run of collisions = 'keep'"):
        read_compressed(str(tmp_path), replace(longer, generation=slotted))
    build_tokenizer(MmqConfig(codebook_size=4), DIMS).save(f"{tmp_path}/tokenizer")
    with pytest.raises(ConfigError, match=r"'mmq' .* do not add up .* tokenize with cosine_rq"):
        read_compressed(str(tmp_path), ids)
