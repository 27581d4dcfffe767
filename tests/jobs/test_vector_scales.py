"""What one verb makes of vectors, or refuses, its siblings do as well: prepare, tokenize, assign."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import write_small_dataset
from trec_semid.core.errors import DataError
from trec_semid.data.schema import Dataset
from trec_semid.jobs import assign, prepare, tokenize
from trec_semid.tokenizers.semantic_ids import SemanticIds

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
    items = pa.table({"item": ids, "vector": pa.array(rows, pa.list_(pa.from_numpy_dtype(vectors.dtype))), **columns})
    pq.write_table(items, folder / "items.parquet")
    events = pd.DataFrame({"user": np.repeat(range(40), 3), "item": ids, "time": 10**9 + np.arange(NUM_ITEMS)})
    events.to_csv(folder / "log.csv", index=False)
    config = {
        "out": str(folder / "data"),
        "events": {"path": str(folder / "log.csv"), "columns": {"user": "user", "item": "item", "timestamp": "time"}},
        "items": {"path": str(folder / "items.parquet"), "id": "item"},
        "label": {"kind": "all_positive"},
        "split": {"kind": "global_temporal"},
        "content": {"poster": content or {"kind": "column", "column": "vector"}},
    }
    prepare.run(prepare.PrepareConfig.model_validate(config))
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
