import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import write_small_dataset
from tests.jobs.test_assign import WIDTHS, config, items_of, write
from trec_semid.data.schema import Dataset
from trec_semid.jobs import tokenize
from trec_semid.jobs.assign import run
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.maps.coefficients import Coefficients
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.training.matched_codes import verify_codes


@pytest.mark.parametrize("kind", ["float16", "uint4"])
def test_new_items_get_coefficients_beside_their_codes_and_both_files_alone_rebuild_them(
    tmp_path: Path, kind: str
):
    write_small_dataset(str(tmp_path / "data"), num_items=200, num_users=30)
    tokenizer = {"kind": "cosine_rq", "codebook_size": 12, "levels": 3, "coefficients": kind}
    asked = {"dataset": str(tmp_path / "data"), "run": str(tmp_path / "codes"), "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate({**asked, "collisions": "next_nearest"}))
    write(tmp_path / "new.parquet", items_of(tmp_path))
    run(config(tmp_path, tmp_path / "new.parquet", tmp_path / "out"))
    method = load_tokenizer(str(tmp_path / "codes/tokenizer"))
    dataset = Dataset(str(tmp_path / "data"))
    names = list(WIDTHS)
    catalogue = ItemContents(
        {name: dataset.content(name) for name in names}, {name: dataset.content_mask(name) for name in names}
    )
    contents = catalogue.batch(np.arange(200))
    for folder in (tmp_path / "codes", tmp_path / "out"):
        ids = SemanticIds.load(str(folder / "semantic_ids.parquet"))
        beside = Coefficients.load(str(folder / "coefficients.parquet"), ids.item_ids)
        codes, values = torch.tensor(ids.codes).long(), torch.tensor(beside.values)
        rebuilt = method.reconstruct(contents, codes)
        # Products of another batch are another last bit, and half precision rounds it up or down.
        torch.testing.assert_close(method.decode(codes, values), rebuilt, atol=2e-3, rtol=0)
        verify_codes(str(folder))
    quality = json.loads((tmp_path / "codes/quality.json").read_text())
    assert quality["bytes_per_item"] == {"codes": 1.5, "coefficients": 6.0 if kind == "float16" else 1.5}
    # What no longer belongs to a run's codes may not be signed with them.
    tokenizer["coefficients"] = "none"
    tokenize.run(tokenize.TokenizeConfig.model_validate({**asked, "tokenizer": tokenizer}))
    assert not (tmp_path / "codes/coefficients.parquet").exists()
