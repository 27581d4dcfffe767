"""The behaviour view on its whole way: learnt by `tokenize` from training events, had by new items."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import read_bytes
from trec_semid.data.schema import EVENT_SCHEMA, Dataset
from trec_semid.jobs import assign, tokenize
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.training.finetune.tokenizer import open_content
from trec_semid.training.matched_codes import read_semantic_ids

VIEW = {"dim": 6, "hidden_widths": [12], "epochs": 2, "batch_size": 64}
FIT = {"epochs": 2, "warmup_epochs": 0, "batch_size": 64}
KINDS: dict[str, dict[str, Any]] = {
    "rq_kmeans": {"kind": "rq_kmeans", "codebook_size": 12, "levels": 3},
    "mmq": {
        "kind": "mmq",
        "codebook_size": 8,
        "latent_dim": 8,
        "decoder_widths": [8],
        "positions": ["shared", "behaviour", "text"],
        "fit": FIT,
    },
}


def learn(data: Path, run: Path, kind: str, **behaviour: Any) -> dict[str, Any]:
    view = {**VIEW, **behaviour}
    config = {"dataset": str(data), "run": str(run), "behaviour": view, "tokenizer": KINDS[kind]}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    return json.loads(read_bytes(f"{run}/quality.json"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_small_dataset(str(folder / "data"), num_items=200, num_users=30)
    for kind in KINDS:
        learn(folder / "data", folder / kind, kind)
    return folder


def altered(world: Path, folder: Path, change: Any) -> Path:
    """Copy the dataset and change its events; `change` gets and returns columns as lists."""
    shutil.copytree(world / "data", folder)
    place = f"{folder}/events/part-00000.parquet"
    columns = pq.read_table(place).cast(EVENT_SCHEMA).to_pydict()
    arrays = {
        field.name: pa.array(values).dictionary_encode().cast(field.type)
        if pa.types.is_dictionary(field.type)
        else pa.array(values, field.type)
        for field, values in zip(EVENT_SCHEMA, change(columns).values(), strict=True)
    }
    pq.write_table(pa.table(arrays, schema=EVENT_SCHEMA), place)
    describe_again(str(folder))
    return folder


def test_no_event_of_validation_or_test_and_none_that_was_not_liked_enters(world: Path, tmp_path: Path):
    def planted(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rng = np.random.default_rng(0)
        for at, (split, label) in enumerate(zip(columns["split"], columns["label"], strict=True)):
            if split != "train" or not label:
                columns["item_row"][at] = int(rng.integers(198))
                columns["user_row"][at] = int(rng.integers(28))
        for at in range(0, len(columns["split"]), 7):  # what is of training and liked stays where it was
            if columns["split"][at] == "train" and not columns["label"][at]:
                columns["behaviour"][at] = "negative"
        return columns

    def other(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        at = next(i for i, label in enumerate(columns["label"]) if label)
        columns["item_row"][at] = (columns["item_row"][at] + 1) % 198
        return columns

    learn(altered(world, tmp_path / "planted", planted), tmp_path / "a", "rq_kmeans")
    learn(altered(world, tmp_path / "other", other), tmp_path / "b", "rq_kmeans")
    own, same, moved = (
        read_bytes(f"{run}/tokenizer/behaviour.safetensors")
        for run in (world / "rq_kmeans", tmp_path / "a", tmp_path / "b")
    )
    assert own == same
    assert own != moved  # one training event is another one: it does enter
    first, second = (
        SemanticIds.load(f"{run}/semantic_ids.parquet") for run in (world / "rq_kmeans", tmp_path / "a")
    )
    np.testing.assert_array_equal(first.codes, second.codes)


@pytest.mark.parametrize("kind", list(KINDS))
def test_new_items_have_it_of_the_content_that_they_bring(world: Path, tmp_path: Path, kind: str):
    dataset = Dataset(str(world / "data"))
    columns: dict[str, pa.Array] = {"item_id": pa.array([f"new-{number}" for number in range(200)])}
    for name in ("text", "image"):
        vectors, mask = dataset.content(name), dataset.content_mask(name)
        rows = [row.tolist() if has else None for row, has in zip(vectors, mask, strict=True)]
        columns[name] = pa.array(rows, pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    asked = {
        "tokenizer": str(world / kind),
        "items": str(tmp_path / "new.parquet"),
        "out": str(tmp_path / "out"),
    }
    drift = assign.run(assign.AssignConfig.model_validate(asked)).drift
    known, given = (
        SemanticIds.load(f"{place}/semantic_ids.parquet") for place in (world / kind, tmp_path / "out")
    )
    np.testing.assert_array_equal(given.codes, known.codes)
    assert set(drift["errors"]["modalities"]) == {"text", "image", "behaviour"}


def test_codes_are_of_the_content_and_whoever_tunes_the_tokenizer_reads_the_view(world: Path):
    dataset = Dataset(str(world / "data"))
    ids = read_semantic_ids(str(world / "mmq"), dataset)
    assert ids.origin is not None
    assert set(ids.origin.content) == {"text", "image"}
    tokenizer = load_tokenizer(f"{world}/mmq/tokenizer")
    assert tokenizer.inputs == {"text": 16, "image": 8}
    catalogue = open_content(dataset, tokenizer)  # pyright: ignore[reportArgumentType]
    assert catalogue.dims == tokenizer.dims == {"text": 16, "image": 8, "behaviour": 6}
    np.testing.assert_array_equal(tokenizer.encode(catalogue.batch(np.arange(200))).numpy(), ids.codes)
    assert tokenizer.position_names == ("shared_0", "behaviour_0", "text_0")


def test_each_kind_of_events_is_a_view_that_the_others_do_not_touch(world: Path, tmp_path: Path):
    def bought(columns: dict[str, list[Any]], moved: int = 0) -> dict[str, list[Any]]:
        for at, (split, user) in enumerate(zip(columns["split"], columns["user_row"], strict=True)):
            if split == "train":
                columns["behaviour"][at] = "purchase" if (at + user) % 3 == 0 else "click"
                if columns["behaviour"][at] == "purchase" and at < moved:
                    columns["item_row"][at] = (columns["item_row"][at] + 1) % 198
        return columns

    named = {"kinds": ["click", "purchase"]}
    learn(altered(world, tmp_path / "data", bought), tmp_path / "a", "rq_kmeans", **named)
    learn(altered(world, tmp_path / "other", lambda c: bought(c, 50)), tmp_path / "b", "rq_kmeans", **named)
    own, other = (
        safetensors.torch.load(read_bytes(f"{tmp_path / run}/tokenizer/behaviour.safetensors"))
        for run in "ab"
    )
    changed = {name for name, values in own.items() if not torch.equal(values, other[name])}
    assert changed == {name for name in own if name.startswith("behaviour_purchase/")}
    tokenizer = load_tokenizer(f"{tmp_path}/a/tokenizer")
    assert tokenizer.dims == {"text": 16, "image": 8, "behaviour_click": 6, "behaviour_purchase": 6}
    dataset = Dataset(str(tmp_path / "data"))
    content = {name: np.array(dataset.content(name)) for name in ("text", "image")}
    masks = {name: np.array(dataset.content_mask(name)) for name in content}
    completed = tokenizer.complete(ItemContents(content, masks).batch(np.arange(200)))
    codes = SemanticIds.load(f"{tmp_path}/a/semantic_ids.parquet").codes
    np.testing.assert_array_equal(tokenizer.encode(completed).numpy(), codes)
    with pytest.raises(
        ConfigError, match=r"is a 'clik'; did you mean 'click'\?\. There are: click, purchase"
    ):
        learn(tmp_path / "data", tmp_path / "c", "rq_kmeans", kinds=["clik"])
    with pytest.raises(ValueError, match="one of them is there twice"):
        learn(tmp_path / "data", tmp_path / "c", "rq_kmeans", kinds=["click", "click"])
