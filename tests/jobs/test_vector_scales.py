"""What one verb makes of vectors, or refuses, its siblings do as well: prepare, tokenize, assign."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import describe_again, write_small_dataset
from trec_semid.core.errors import DataError
from trec_semid.data.prepare import PrepareConfig
from trec_semid.data.schema import Dataset
from trec_semid.jobs import assign, prepare, tokenize
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds

NUM_ITEMS, WIDTH = 120, 6
TOKENIZER = {"kind": "rq_kmeans", "codebook_size": 8, "levels": 3}


def vectors_of(seed: int = 0) -> np.ndarray:
    """Clusters far from each other: no code is a near tie."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, WIDTH))
    return centres[rng.integers(8, size=NUM_ITEMS)] + 0.05 * rng.normal(size=(NUM_ITEMS, WIDTH))


def prepared(folder: Path, vectors: np.ndarray, content: dict | None = None, **columns: object) -> str:
    """Prepare a dataset of these vectors, in a list column, or of another kind of content."""
    folder.mkdir(parents=True)
    ids = [f"i{row}" for row in range(NUM_ITEMS)]
    rows = [list(row) if len(row) else None for row in vectors]
    items = pa.table(
        {"item": ids, "vector": pa.array(rows, pa.list_(pa.from_numpy_dtype(vectors.dtype))), **columns}
    )
    pq.write_table(items, folder / "items.parquet")
    events = pd.DataFrame(
        {"user": np.repeat(range(40), 3), "item": ids, "time": 10**9 + np.arange(NUM_ITEMS)}
    )
    events.to_csv(folder / "log.csv", index=False)
    config = {
        "name": "scales",
        "out": str(folder / "data"),
        "source": {
            "kind": "tables",
            "interactions": {
                "path": str(folder / "log.csv"),
                "user": "user",
                "item": "item",
                "timestamp": "time",
            },
            "items": {"path": str(folder / "items.parquet"), "id": "item"},
        },
        "label": {"kind": "all_positive"},
        "split": {"kind": "global_temporal"},
        "content": {"poster": content or {"kind": "column", "column": "vector"}},
    }
    prepare.run(PrepareConfig.model_validate(config))
    return str(folder / "data")


def tokenized(dataset: str, run: Path) -> SemanticIds:
    config = {"dataset": dataset, "run": str(run), "tokenizer": TOKENIZER}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    return SemanticIds.load(str(run / "semantic_ids.parquet"))


def assigned(run: Path, vectors: np.ndarray, folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    ids = [f"new{row}" for row in range(len(vectors))]
    rows = pa.array([list(row) for row in vectors], pa.list_(pa.from_numpy_dtype(vectors.dtype)))
    pq.write_table(pa.table({"item_id": ids, "poster": rows}), folder / "new.parquet")
    asked = {"tokenizer": str(run), "items": str(folder / "new.parquet"), "out": str(folder / "out")}
    assign.run(assign.AssignConfig.model_validate(asked))
    return SemanticIds.load(str(folder / "out/semantic_ids.parquet")).codes


def codes_by_item(ids: SemanticIds) -> dict[str, tuple[int, ...]]:
    return {
        item: tuple(codes) for item, codes in zip(ids.item_ids.to_pylist(), ids.codes.tolist(), strict=True)
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A tokenize run over vectors of ordinary length, and its codes."""
    folder = tmp_path_factory.mktemp("scales")
    ids = tokenized(prepared(folder / "plain", vectors_of()), folder / "codes")
    return folder, codes_by_item(ids)


SCALES = {
    "1e-30": 1e-30,
    "1e-20": 1e-20,
    "1e-14": 1e-14,
    "1e20": 1e20,
    "1e30": 1e30,
    "beyond float32": 1e-60,
    "subnormal": 1e-40,
    "mixed": np.geomspace(1e-30, 1e30, NUM_ITEMS).reshape(-1, 1),
}


@pytest.mark.parametrize("scale", list(SCALES))
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_codes_are_those_of_the_unscaled_vectors_when_fitted_on_any_scale(world, tmp_path, scale, dtype):
    _, codes = world
    content = {"kind": "column", "column": "vector", "dtype": dtype}
    factor = np.asarray(SCALES[scale])
    if dtype == "float16":  # rounded to 11 bits, alike where scales are powers of two
        factor = np.exp2(np.round(np.log2(factor)))
        codes = codes_by_item(
            tokenized(prepared(tmp_path / "half", vectors_of(), content), tmp_path / "half_codes")
        )
    dataset = prepared(tmp_path / "scaled", vectors_of() * factor, content)
    assert codes_by_item(tokenized(dataset, tmp_path / "codes")) == codes


@settings(max_examples=25, deadline=None)
@given(exponent=st.floats(-30, 30), dtype=st.sampled_from([np.float32, np.float64]), is_mixed=st.booleans())
def test_new_items_of_any_scale_get_the_codes_of_the_unscaled_ones(
    world, tmp_path_factory, exponent, dtype, is_mixed
):
    folder, codes = world
    scale = 10.0 ** (
        exponent * np.random.default_rng(1).uniform(-1, 1, (NUM_ITEMS, 1)) if is_mixed else exponent
    )
    given_codes = assigned(
        folder / "codes", (vectors_of() * scale).astype(dtype), tmp_path_factory.mktemp("n") / "x"
    )
    assert [tuple(row) for row in given_codes.tolist()] == [codes[f"i{row}"] for row in range(NUM_ITEMS)]


def by_prepare(world: Path, folder: Path, vectors: np.ndarray) -> None:
    prepared(folder / "given", vectors)


def by_tokenize(world: Path, folder: Path, vectors: np.ndarray) -> None:
    """What another program, or an older version, could have left in a dataset folder."""
    dataset = write_small_dataset(str(folder / "data"), num_items=NUM_ITEMS)
    content = np.zeros((NUM_ITEMS, 16), np.float32)
    content[:, :WIDTH] = vectors
    np.save(folder / "data/content/text.npy", content)
    describe_again(dataset)
    config = {"dataset": dataset, "run": str(folder / "run"), "modalities": ["text"], "tokenizer": TOKENIZER}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))


def by_assign(world: Path, folder: Path, vectors: np.ndarray) -> None:
    assigned(world / "codes", vectors, folder / "new")


VERBS = {"prepare": by_prepare, "tokenize": by_tokenize, "assign": by_assign}


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_vector_without_direction_is_refused_by_each_verb_with_its_row(world, tmp_path, verb, value):
    vectors = vectors_of()
    vectors[41, slice(None) if value == 0 else 2] = value
    with pytest.raises(DataError, match=r"row 42, field") as refused:
        VERBS[verb](world[0], tmp_path, vectors)
    assert ("vector of zeros" if value == 0 else "finite") in str(refused.value)


@pytest.mark.parametrize("scale", [1e-40, 1e-14, 1e20])
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_short_or_long_vector_is_taken_by_each_verb(world, tmp_path, verb, scale):
    VERBS[verb](world[0], tmp_path, vectors_of() * scale)


@pytest.mark.parametrize("verb", ["prepare", "tokenize"])
@pytest.mark.parametrize("kind", ["one positive number", "one number", "parallel"])
def test_content_that_tells_no_items_apart_is_refused_where_it_is_learnt_from(world, tmp_path, verb, kind):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(3, size=(NUM_ITEMS, 1)) * (
        rng.choice([-1, 1], (NUM_ITEMS, 1)) if kind == "one number" else 1
    )
    vectors = np.zeros((NUM_ITEMS, WIDTH))
    vectors[:, :1] = lengths
    if kind == "parallel":
        vectors = lengths * rng.normal(size=WIDTH)
    with pytest.raises(DataError, match=r"multiples of one.*attributes"):
        VERBS[verb](world[0], tmp_path, vectors)
    assert not (tmp_path / "run/metrics.json").exists()


def test_prices_given_as_attributes_get_tuples_of_their_own_and_near_ones_share_codes(tmp_path):
    prices = np.random.default_rng(0).lognormal(3, size=NUM_ITEMS).round(2)
    dataset = prepared(
        tmp_path / "given", vectors_of(), {"kind": "attributes", "numbers": ["price"]}, price=prices
    )
    ids = tokenized(dataset, tmp_path / "codes")
    assert len(np.unique(ids.codes, axis=0)) > 60
    by_item = codes_by_item(ids)
    first = [by_item[f"i{row}"][0] for row in np.argsort(prices)]
    assert sum(one != other for one, other in itertools.pairwise(first)) == 7  # each of 8 codes is one range
    assert Dataset(dataset).facts.modalities["poster"].dim == 2
