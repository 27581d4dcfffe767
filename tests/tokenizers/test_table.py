import json
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import DataError
from trec_semid.core.paths import find_files, read_bytes, write_bytes
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.mmq import MmqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.table import TOKENIZERS, TokenizerConfig, build_tokenizer, load_tokenizer

NUM_ITEMS = 240
QUICK = CodebookFitConfig(epochs=8, warmup_epochs=2, batch_size=64)
CONFIGS = {
    MmqConfig: MmqConfig(codebook_size=10, latent_dim=16, decoder_widths=(64,), fit=QUICK),
    RqKmeansConfig: RqKmeansConfig(codebook_size=10, levels=4),
}


def fit(config, catalogue, seed=0):
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(config, DIMS)
    reports = list(tokenizer.fit(catalogue, catalogue.rows_with_content(), seed))
    return tokenizer.eval(), reports


@pytest.fixture(scope="module", params=list(CONFIGS.values()), ids=lambda config: config.kind)
def learned(request):
    catalogue = plant(NUM_ITEMS, 6, missing=0.2).catalogue
    tokenizer, reports = fit(request.param, catalogue)
    return request.param, catalogue, tokenizer, reports


def test_union_and_table_name_the_same_configs_and_all_are_tested_here():
    union, _ = get_args(TokenizerConfig)
    assert set(get_args(union)) == set(TOKENIZERS) == set(CONFIGS)


def test_config_is_chosen_by_its_kind():
    adapter = TypeAdapter(TokenizerConfig)
    for kind, config in CONFIGS.items():
        assert type(adapter.validate_python(config.model_dump(mode="json"))) is kind


def test_codes_lie_in_their_codebooks(learned):
    _, catalogue, tokenizer, _ = learned
    codes = tokenizer.encode(catalogue.batch(np.arange(NUM_ITEMS)))
    assert codes.dtype == torch.int64
    assert codes.shape == (NUM_ITEMS, len(tokenizer.codebook_sizes))
    assert len(tokenizer.position_names) == len(set(tokenizer.position_names)) == codes.shape[1]
    assert (codes >= 0).all()
    assert (codes <= torch.tensor(tokenizer.codebook_sizes)).all()


def test_codes_do_not_change_when_the_batch_is_permuted_or_split(learned):
    _, catalogue, tokenizer, _ = learned
    order = np.random.default_rng(1).permutation(NUM_ITEMS)
    codes = tokenizer.encode(catalogue.batch(np.arange(NUM_ITEMS)))
    assert torch.equal(tokenizer.encode(catalogue.batch(order)), codes[torch.from_numpy(order)])
    parts = [tokenizer.encode(contents) for _, contents in catalogue.chunks(np.arange(NUM_ITEMS), 7)]
    assert torch.equal(torch.cat(parts), codes)


def test_most_codes_are_used_and_reconstruction_beats_the_mean(learned):
    _, catalogue, tokenizer, _ = learned
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    codes = tokenizer.encode(contents)
    used = [len(codes[:, r][codes[:, r] < 10].unique()) / 10 for r in range(codes.shape[1])]
    assert min(used) > 0.7
    x, rebuilt = tokenizer.standardiser(contents), tokenizer.reconstruct(contents, codes)
    assert rebuilt.shape == x.shape
    mean_error = tokenizer.standardiser.errors(x, torch.zeros_like(x), contents.present).sum()
    assert tokenizer.standardiser.errors(x, rebuilt, contents.present).sum() < 0.6 * mean_error


def test_rounds_are_counted_and_measured(learned):
    _, _, _, reports = learned
    assert [report.round for report in reports] == list(range(1, len(reports) + 1))
    assert {report.num_rounds for report in reports} == {len(reports)}
    assert all(np.isfinite(list(report.scalars.values())).all() for report in reports)


def test_seed_decides_the_codes(learned):
    config, catalogue, tokenizer, _ = learned
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    again, other = (fit(config, catalogue, seed)[0] for seed in (0, 1))
    assert torch.equal(again.encode(contents), tokenizer.encode(contents))
    assert not torch.equal(other.encode(contents), tokenizer.encode(contents))


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_saved_tokenizer_gives_the_same_codes_and_reconstruction(learned, tmp_path, place):
    config, catalogue, tokenizer, _ = learned
    uri = str(tmp_path / "tokenizer") if place == "folder" else f"memory://tokenizers/{config.kind}"
    tokenizer.save(uri)
    assert find_files(uri) == ["config.json", "weights.safetensors"]
    loaded = load_tokenizer(uri)
    contents = catalogue.batch(np.arange(NUM_ITEMS))
    codes = loaded.encode(contents)
    assert torch.equal(codes, tokenizer.encode(contents))
    assert torch.equal(loaded.reconstruct(contents, codes), tokenizer.reconstruct(contents, codes))
    assert (loaded.config, loaded.dims) == (config, DIMS)
    assert not loaded.training


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"config\.json: no tokenizer here\. Make one with"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 99}, r"another format \(got 99\)"),
        ({"config": {"kind": "mmq", "codebook": 3}}, "not a tokenizer"),
        (
            {"modalities": {"text": 12, "vision": 21}},
            r"weights\.safetensors: weights do not fit config\.json",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(learned, tmp_path, changes, problem):
    _, _, tokenizer, _ = learned
    tokenizer.save(str(tmp_path / "t"))
    path = str(tmp_path / "t" / "config.json")
    write_bytes(path, json.dumps(json.loads(read_bytes(path)) | changes).encode())
    with pytest.raises(DataError, match=problem):
        load_tokenizer(str(tmp_path / "t"))


def test_cut_off_files_are_refused(learned, tmp_path):
    _, _, tokenizer, _ = learned
    tokenizer.save(str(tmp_path / "t"))
    for name, problem in (("weights.safetensors", "weights do not fit"), ("config.json", "not JSON")):
        path = str(tmp_path / "t" / name)
        write_bytes(path, read_bytes(path)[:50])
        with pytest.raises(DataError, match=problem):
            load_tokenizer(str(tmp_path / "t"))
