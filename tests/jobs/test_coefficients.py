import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.datasets import write_small_dataset
from tests.jobs.test_assign import WIDTHS, config, items_of, write
from trec_semid.core.errors import ConfigError
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


def test_directions_follow_new_items_from_one_assign_to_the_next_and_stored_codes_keep_their_meaning(
    tmp_path: Path,
):
    """Two waves of new items, of content that moved; each wave's `out` is the tokenizer of the next."""
    write_small_dataset(str(tmp_path / "data"), num_items=200, num_users=30)
    tokenizer = {"kind": "cosine_rq", "codebook_size": 12, "levels": 3, "max_drift": 0.15}
    asked = {"dataset": str(tmp_path / "data"), "run": str(tmp_path / "codes"), "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate(asked))
    ids = SemanticIds.load(str(tmp_path / "codes/semantic_ids.parquet"))
    stored = Coefficients.load(str(tmp_path / "codes/coefficients.parquet"), ids.item_ids)
    codes, values = torch.tensor(ids.codes).long(), torch.tensor(stored.values)
    first = load_tokenizer(str(tmp_path / "codes/tokenizer"))
    place, errors = tmp_path / "codes", []
    for wave in ("a", "b"):
        columns = items_of(tmp_path)
        columns["item_id"] = [f"{wave}-{number}" for number in range(200)]
        for name in WIDTHS:
            columns[name] = [row and [2.0 + x for x in row] for row in columns[name]]
        write(tmp_path / f"{wave}.parquet", columns)
        given = config(
            tmp_path, tmp_path / f"{wave}.parquet", tmp_path / wave, tokenizer=str(place), update_rate=0.5
        )
        drift = run(given).drift
        place = tmp_path / wave
        errors.append(drift["errors"]["every_modality"]["mean"])
        assert 0.05 < drift["update"]["largest"] <= 0.15 + 1e-4
        assert drift["update"]["num_moved"] > 0
        verify_codes(str(place))
    assert errors[1] < errors[0]
    every = SemanticIds.load(str(place / "semantic_ids.parquet"))
    assert every.item_ids.to_pylist()[:200] == ids.item_ids.to_pylist()
    assert every.item_ids.to_pylist()[200::200] == ["a-0", "b-0"]
    now = every.in_order(ids.item_ids, "map").codes
    np.testing.assert_array_equal(now, ids.codes)
    beside = Coefficients.load(str(place / "coefficients.parquet"), ids.item_ids)
    np.testing.assert_array_equal(beside.values, stored.values)
    moved = load_tokenizer(str(place / "tokenizer"))
    apart = (moved.decode(codes, values) - first.decode(codes, values)).norm(dim=1)
    assert (apart <= 0.15 * values.float().abs().sum(1) + 1e-3).all()
    assert apart.max() > 0.01


def test_a_tokenizer_whose_codes_cannot_move_is_not_updated(tmp_path: Path):
    write_small_dataset(str(tmp_path / "data"), num_items=60, num_users=10)
    tokenizer = {"kind": "rq_kmeans", "codebook_size": 6, "levels": 2}
    asked = {"dataset": str(tmp_path / "data"), "run": str(tmp_path / "codes"), "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate(asked))
    new = pa.table({"item_id": ["new"], "text": [[0.0] * 16], "image": [[0.0] * 8]})
    pq.write_table(new, tmp_path / "new.parquet")
    with pytest.raises(ConfigError, match=r"'rq_kmeans' cannot move .* set update_rate = 0"):
        run(config(tmp_path, tmp_path / "new.parquet", tmp_path / "out", update_rate=0.1))
    assert not (tmp_path / "out").exists()
