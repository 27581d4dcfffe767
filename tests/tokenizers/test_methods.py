import json
from typing import get_args

import pytest
from pydantic import TypeAdapter

from tests.tokenizers.planted import DIMS
from trec_semid.core.errors import DataError
from trec_semid.core.paths import read_bytes, write_bytes
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.cosine_rq import CosineRqConfig
from trec_semid.tokenizers.methods import (
    TOKENIZERS,
    TokenizerConfig,
    as_learned,
    build_tokenizer,
    learning_kinds,
    load_tokenizer,
)
from trec_semid.tokenizers.mhq import MhqConfig
from trec_semid.tokenizers.mmq import MmqConfig
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVaeConfig

QUICK = CodebookFitConfig(epochs=8, warmup_epochs=2, batch_size=64)
CONFIGS = {
    MmqConfig: MmqConfig(codebook_size=10, latent_dim=16, decoder_widths=(64,)),
    PublishedMmqConfig: PublishedMmqConfig(codebook_size=10, latent_dim=16, decoder_widths=(64,), fit=QUICK),
    RqVaeConfig: RqVaeConfig(codebook_size=10, levels=4, latent_dim=16, fit=QUICK),
    RqKmeansConfig: RqKmeansConfig(codebook_size=10, levels=4),
    OpqConfig: OpqConfig(codebook_size=10, subspaces=4, turns=2),
    CosineRqConfig: CosineRqConfig(codebook_size=10, levels=4),
    MhqConfig: MhqConfig(codebook_size=10, facets=2, levels=2),
}


@pytest.fixture(params=list(CONFIGS.values()), ids=lambda config: config.kind)
def saved(request, tmp_path):
    """Return the folder of a tokenizer that knows nothing yet."""
    uri = str(tmp_path / "t")
    build_tokenizer(request.param, DIMS).save(uri)
    return uri


def test_union_and_table_name_the_same_configs():
    union, _ = get_args(TokenizerConfig)
    assert set(get_args(union)) == set(TOKENIZERS) == set(CONFIGS)


def test_config_is_chosen_by_its_kind():
    adapter = TypeAdapter(TokenizerConfig)
    for kind, config in CONFIGS.items():
        assert type(adapter.validate_python(config.model_dump(mode="json"))) is kind


def test_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"config\.json: no tokenizer here\. Make one with"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 99}, r"another format \(got 99\)"),
        (
            {"config": {"kind": "mmq", "codebook": 3}},
            r"config\.json: not a tokenizer of this version: config\.codebook: unknown key; did you mean",
        ),
        ({"config": {"kind": "mqm"}}, r"config\.kind: no such kind \(got 'mqm'\); did you mean 'mmq'\?"),
        ({"modalities": {"text": 0}}, "`modalities` are no names with widths"),
        (
            {"modalities": {"text": 12, "vision": 21}},
            r"weights\.safetensors: not the weights of kind '\w+' as .*: \S+ is \(.*, not \(",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(saved, changes, problem):
    path = f"{saved}/config.json"
    write_bytes(path, json.dumps(json.loads(read_bytes(path)) | changes).encode())
    with pytest.raises(DataError, match=problem):
        load_tokenizer(saved)


def test_what_was_saved_under_a_name_that_another_method_has_now_is_said_to_be_that(tmp_path):
    path = f"{tmp_path}/config.json"
    build_tokenizer(CONFIGS[PublishedMmqConfig], DIMS).save(str(tmp_path))
    described = json.loads(read_bytes(path))
    described["config"]["kind"] = "mmq"  # as that form was called
    write_bytes(path, json.dumps(described).encode())
    with pytest.raises(DataError, match=r"num_shared: unknown key.*'mmq_published', as this version"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights\.safetensors: missing beside config\.json\. Copy"):
        load_tokenizer(str(tmp_path))


def test_state_of_another_kind_is_named_tensor_by_tensor(tmp_path):
    for config in (RqKmeansConfig, OpqConfig):
        build_tokenizer(CONFIGS[config], DIMS).save(f"{tmp_path}/{config.__name__}")
    weights = read_bytes(f"{tmp_path}/OpqConfig/weights.safetensors")
    write_bytes(f"{tmp_path}/RqKmeansConfig/weights.safetensors", weights)
    with pytest.raises(
        DataError, match=r"kind 'rq_kmeans' .*: rotations.0.matrix is no part of it; codebooks is"
    ):
        load_tokenizer(f"{tmp_path}/RqKmeansConfig")


def test_cut_off_files_are_refused(saved):
    for name, problem in (
        ("weights.safetensors", "do not fit.*Copy the folder again"),
        ("config.json", "not JSON"),
    ):
        path = f"{saved}/{name}"
        write_bytes(path, read_bytes(path)[:50])
        with pytest.raises(DataError, match=problem):
            load_tokenizer(saved)


def test_kinds_that_learn_are_those_whose_codebooks_are_parameters():
    built = {config.kind: build_tokenizer(config, DIMS) for config in CONFIGS.values()}
    with_parameters = {kind for kind, each in built.items() if "codebooks" in dict(each.named_parameters())}
    assert set(learning_kinds()) == with_parameters == {"mmq", "mmq_published", "rq_vae"}
    assert {kind for kind, each in built.items() if as_learned(each) is each} == with_parameters
