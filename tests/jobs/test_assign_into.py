"""New items straight into a store, as `assign` writes them into a folder, with slots counted one by one."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.datasets import write_small_dataset
from tests.jobs.test_assign import config, items_of, write
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import find_files
from trec_semid.jobs import generations, tokenize
from trec_semid.jobs.assign import AssignConfig, run
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.matched_codes import verify_codes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a tokenize run over it."""
    folder = tmp_path_factory.mktemp("world")
    write_small_dataset(f"{folder}/data", num_items=200, num_users=30)
    tokenizer = {"kind": "rq_kmeans", "codebook_size": 12, "levels": 3}
    values = {"dataset": f"{folder}/data", "run": f"{folder}/codes", "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate(values))
    return folder


def test_items_become_the_next_generation_of_a_store(world: Path, tmp_path: Path):
    store, columns = str(tmp_path / "store"), items_of(world)
    write(tmp_path / "new.parquet", columns)
    generations.add(store, str(world / "codes"), slots=200)
    values: dict[str, Any] = {"items": str(tmp_path / "new.parquet"), "into": store}
    into = AssignConfig.model_validate(values)
    done, beside = run(into), run(config(world, tmp_path / "new.parquet", tmp_path / "out"))
    about = ("tokenizer_run", "inputs")
    left, right = ({key: one.drift[key] for key in one.drift if key not in about} for one in (done, beside))
    assert left == right
    # The catalogue again, under other names: each tuple's items twice, one after the other in its slots.
    known = SemanticIds.load(str(world / "codes/semantic_ids.parquet")).codes.tolist()
    seen, expected = Counter[tuple[int, ...]](), list[list[int]]()
    for codes in [*known, *known]:
        expected.append([*codes, seen[tuple(codes)]])
        seen[tuple(codes)] += 1
    given = SemanticIds.load(f"{store}/generation-2/semantic_ids.parquet")
    assert given.codes.tolist() == expected
    assert given.sizes == (12, 12, 12, 200)
    assert verify_codes(f"{store}/generation-2") == verify_codes(str(world / "codes"))
    files = find_files(store)
    assert run(into).out == f"{store}/generation-2"
    assert find_files(store) == files
    with pytest.raises(DataError, match="has a semantic ID already"):
        run(AssignConfig.model_validate({**values, "item_id": "item_id", "columns": {"text": "text"}}))
    other = {"kind": "rq_kmeans", "codebook_size": 4, "levels": 2}
    tokenize.run(
        tokenize.TokenizeConfig.model_validate(
            {"dataset": str(world / "data"), "run": str(tmp_path / "other"), "tokenizer": other}
        )
    )
    write(tmp_path / "more.parquet", {**columns, "item_id": [f"more-{number}" for number in range(200)]})
    with pytest.raises(ValidationError, match=r"update_rate: a store's tokenizer stays"):
        AssignConfig.model_validate({**values, "update_rate": 0.1})
    more = {**values, "items": str(tmp_path / "more.parquet")}
    with pytest.raises(ConfigError, match=r"tokenizer: .*other is not that of .*generation 2\. Leave it out"):
        run(AssignConfig.model_validate({**more, "tokenizer": str(tmp_path / "other")}))
    run(config(world, tmp_path / "more.parquet", tmp_path / "more", tokenizer=str(tmp_path / "other")))
    with pytest.raises(DataError, match="not of the tokenizer of generation 2"):
        generations.add(store, str(tmp_path / "more"))
    generations.add(str(tmp_path / "tight"), str(world / "codes"), slots=max(seen.values()) - 1)
    with pytest.raises(DataError, match=r"new\.parquet.*slots of its tuple are taken"):
        run(AssignConfig.model_validate({**values, "into": str(tmp_path / "tight")}))
    assert find_files(store) == files
