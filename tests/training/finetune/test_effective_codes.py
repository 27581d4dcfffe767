"""Temperatures by the number of codes that a soft index has in effect."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.jobs.retrieving import retrieve_config
from tests.jobs.test_rank_finetune import tuned, write_problem
from trec_semid.core.errors import ConfigError
from trec_semid.data.schema import Dataset
from trec_semid.jobs import rank, retrieve
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.methods import as_learned, load_tokenizer
from trec_semid.training.finetune.effective_codes import codes_in_effect, sample_of, temperatures_of
from trec_semid.training.finetune.tokenizer import open_content


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("effective")
    write_problem(str(folder))
    return folder


@pytest.mark.parametrize("name", ["mmq", "published", "rq_vae_separated"])
@pytest.mark.parametrize("wanted", [1.2, 3.0, 5.5])
def test_at_the_temperatures_every_position_has_so_many_codes_in_effect(
    problem: Path, name: str, wanted: float
):
    tokenizer = as_learned(load_tokenizer(f"{problem}/{name}/tokenizer"))
    assert isinstance(tokenizer, LearnedTokenizer)
    sample = sample_of(open_content(Dataset(f"{problem}/data"), tokenizer), torch.device("cpu"))
    found = temperatures_of(tokenizer, sample, wanted)
    assert codes_in_effect(tokenizer, sample, found).tolist() == pytest.approx(
        [wanted] * len(tokenizer.codebook_sizes), rel=1e-3
    )


@pytest.mark.parametrize("job", ["rank", "retrieve"])
def test_as_many_codes_as_there_are_are_refused_before_anything_is_written(
    problem: Path, tmp_path: Path, job: str
):
    named = {"dataset": f"{problem}/data", "semantic_ids": f"{problem}/mmq"}
    tuning = {"warmup_epochs": 0.5, "effective_codes": 6.0}
    make: Any = tuned if job == "rank" else retrieve_config
    run: Any = rank.run if job == "rank" else retrieve.run
    config = make(named, f"{tmp_path}/run", finetune=tuning)
    with pytest.raises(ConfigError, match=r"effective_codes: 6 of 6 codes .* Set it below 6"):
        run(config)
    assert not (tmp_path / "run").exists()
