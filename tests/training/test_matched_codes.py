"""Semantic IDs of one dataset meet another one: mapped by item id, or refused before anything is trained."""

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets import write_small_dataset
from tests.jobs.other_datasets import changed, rearranged
from tests.jobs.ranking import rank_config
from tests.jobs.retrieving import retrieve_config
from tests.tokenizers.generations.stores import append
from trec_semid.core.config import load_config
from trec_semid.core.errors import DataError, SemidError
from trec_semid.core.ids import id_array
from trec_semid.core.paths import find_files
from trec_semid.data.schema import Dataset
from trec_semid.jobs import assign, generations, plan, rank, retrieve, tokenize
from trec_semid.report.collect import read_run
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training import matched_codes
from trec_semid.training.matched_codes import read_semantic_ids, verify_codes

TOKENIZER = {"kind": "rq_kmeans", "codebook_size": 6, "levels": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a finished tokenize run over it."""
    folder = tmp_path_factory.mktemp("matched")
    dataset = write_small_dataset(str(folder / "data"))
    config = {"dataset": dataset, "run": str(folder / "codes"), "tokenizer": TOKENIZER}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    return folder


def codes_by_item(ids: SemanticIds) -> dict[str, tuple[int, ...]]:
    return {
        item: tuple(codes) for item, codes in zip(ids.item_ids.to_pylist(), ids.codes.tolist(), strict=True)
    }


@pytest.mark.parametrize("change", ["order", "nothing"])
def test_the_same_items_and_content_in_any_order_are_mapped_by_id(world: Path, tmp_path: Path, change: str):
    make = rearranged if change == "order" else partial(changed, change=change)
    dataset = Dataset(make(str(world / "data"), tmp_path / "other"))
    ids = read_semantic_ids(str(world / "codes"), dataset)
    assert ids.item_ids == dataset.item_ids
    assert (ids.item_ids != Dataset(str(world / "data")).item_ids) == (change == "order")
    assert codes_by_item(ids) == codes_by_item(SemanticIds.load(str(world / "codes/semantic_ids.parquet")))


def test_a_grown_dataset_reads_the_generation_that_its_new_items_were_added_to(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, first = f"{tmp_path}/store", Dataset(str(world / "data"))
    generations.add(store, str(world / "codes"))
    grown = Dataset(rearranged(first.uri, tmp_path / "grown", num_new=2))
    new = sorted({*grown.item_ids.to_pylist()} - {*first.item_ids.to_pylist()})
    with pytest.raises(DataError, match=r"generation 1 has no semantic ID for 2 items .* it was never added"):
        read_semantic_ids(store, grown)
    append(store, {new[0]: (0, 1), new[1]: (0, 1)})
    ids, before = read_semantic_ids(store, grown), read_semantic_ids(str(world / "codes"), first)
    assert codes_by_item(ids) == codes_by_item(before) | dict.fromkeys(new, (0, 1))
    assert ids.generation is not None
    assert (ids.generation.number, ids.origin) == (2, None)
    same = read_semantic_ids(store, first)
    assert (same.checksum(), same.origin) == (before.checksum(), before.origin)
    other = Dataset(changed(first.uri, tmp_path / "other", "content"))
    with pytest.raises(DataError, match="their content 'text' is another under the same item ids"):
        read_semantic_ids(store, other)
    # The checksum is of all items of the first generation together: without one, nothing can be compared.
    more = [*before.item_ids.to_pylist(), "more"]
    codes = np.concatenate([before.codes, before.codes[:1]])
    SemanticIds(id_array(more), codes, before.sizes, before.origin).save(f"{tmp_path}/more.parquet")
    generations.add(f"{tmp_path}/larger", f"{tmp_path}/more.parquet")
    warned: list[str] = []
    monkeypatch.setattr(matched_codes._log, "warning", lambda told, *of: warned.append(told % of))
    read_semantic_ids(f"{tmp_path}/larger", other)
    (told,) = warned
    assert "lacks items of" in told
    assert "content is not compared" in told


def by_rank(places: dict[str, Any], run: str) -> None:
    rank.run(rank_config(places, run))


def by_retrieve(places: dict[str, Any], run: str) -> None:
    retrieve.run(retrieve_config(places, run))


def by_plan(places: dict[str, Any], run: str) -> None:
    keys = [f"{key}={json.dumps(value)}" for key, value in places.items()]
    sets = [
        "cluster=configs/cluster/laptop_cpu.toml",
        f"run={run}",
        "representation=both",
        f"out={run}/p.json",
        *keys,
    ]
    plan.run(load_config(plan.PlanConfig, [], sets))


VERBS = {"rank": by_rank, "retrieve": by_retrieve, "plan": by_plan}
TOLD = {
    "content": "their content 'text' is another under the same item ids",
    "mask": "their content 'image' is another under the same item ids",
    "ids": "1 items have no semantic ID, the first 'someone else'",
}


@pytest.mark.parametrize("change", list(TOLD))
@pytest.mark.parametrize("verb", list(VERBS))
def test_codes_of_other_items_or_other_content_are_refused_before_anything_is_written(
    world: Path, tmp_path: Path, verb: str, change: str
):
    places = {
        "dataset": changed(str(world / "data"), tmp_path / "other", change),
        "semantic_ids": str(world / "codes"),
    }
    for named in (places, {**places, "semantic_ids": f"{world}/codes/semantic_ids.parquet"}):
        with pytest.raises(DataError) as refused:
            VERBS[verb](named, str(tmp_path / "run"))
        told = str(refused.value)
        assert TOLD[change] in told
        assert f"of dataset 'small' (checksum {Dataset(str(world / 'data')).facts.checksum[:12]})" in told
        assert f"not of 'other {change}'" in told
        assert "Tokenize" in told
        assert not (tmp_path / "run/config.toml").exists()


def test_items_that_the_dataset_does_not_have_are_refused_where_codes_say_whose_they_are(
    world: Path, tmp_path: Path
):
    dataset = Dataset(str(world / "data"))
    ids = SemanticIds.load(str(world / "codes/semantic_ids.parquet"))
    more = SemanticIds(
        id_array([*ids.item_ids.to_pylist(), "more"]),
        np.concatenate([ids.codes, ids.codes[:1]]),
        ids.sizes,
        ids.origin,
    )
    more.save(str(tmp_path / "more.parquet"))
    with pytest.raises(DataError, match="1 items are not in the dataset, the first 'more'"):
        read_semantic_ids(str(tmp_path / "more.parquet"), dataset)


def test_codes_that_do_not_say_whose_they_are_are_matched_by_id_with_a_message(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    dataset = Dataset(changed(str(world / "data"), tmp_path / "other", "content"))
    ids = SemanticIds.load(str(world / "codes/semantic_ids.parquet"))
    file = str(tmp_path / "published.parquet")
    SemanticIds(
        id_array([*ids.item_ids[::-1].to_pylist(), "more"]),
        np.concatenate([ids.codes[::-1], ids.codes[:1]]),
        ids.sizes,
    ).save(file)
    with caplog.at_level(logging.INFO):
        matched = read_semantic_ids(file, dataset)
    assert codes_by_item(matched) == codes_by_item(ids)
    assert "by item ids alone; 1 items of the file are not in it" in caplog.text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**40), flip=st.integers(1, 255), pick=st.integers(0, 2**20))
def test_any_flipped_byte_of_a_tokenize_runs_codes_is_refused_by_each_reader(
    world: Path, place: int, flip: int, pick: int
):
    folder = world / "codes"
    names = ["semantic_ids.parquet", "quality.json", "codes.json", "config.toml", "run.json"]
    names += ["tokenizer/config.json", "tokenizer/weights.safetensors"]
    assert set(names) <= set(find_files(str(folder)))
    file = folder / names[pick % len(names)]
    content = file.read_bytes()
    at = place % len(content)
    dataset = Dataset(str(world / "data"))
    asked = {
        "tokenizer": str(folder),
        "items": str(folder / "semantic_ids.parquet"),
        "out": str(world / "new"),
    }
    try:
        file.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        readers = (
            lambda: read_semantic_ids(str(folder), dataset),
            lambda: read_semantic_ids(str(folder / "semantic_ids.parquet"), dataset),
            lambda: assign.run(assign.AssignConfig.model_validate(asked)),
            lambda: read_run(str(folder)),
        )
        for read in readers:
            with pytest.raises(SemidError) as refused:
                read()
            assert refused.value.exit_code == 2
            assert file.name in str(refused.value)
    finally:
        file.write_bytes(content)
    assert verify_codes(str(folder)).name == "small"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**40), flip=st.integers(1, 255))
def test_a_copy_of_the_map_alone_is_refused_or_says_what_was_written(
    world: Path, tmp_path: Path, place: int, flip: int
):
    content = (world / "codes/semantic_ids.parquet").read_bytes()
    at = place % len(content)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
    known = SemanticIds.load(str(world / "codes/semantic_ids.parquet"))
    try:
        read = SemanticIds.load(str(copy))
    except DataError:
        return
    assert read.checksum() == known.checksum()


def test_a_run_without_its_record_is_refused_with_what_to_do(world: Path, tmp_path: Path):
    shutil.copytree(world / "codes", tmp_path / "codes")
    (tmp_path / "codes/codes.json").unlink()
    with pytest.raises(DataError, match=r"codes\.json: the record .* is missing.*Run it again"):
        read_semantic_ids(str(tmp_path / "codes"), Dataset(str(world / "data")))
