"""Errors count rows from 1, whichever layer names one: a fault in the first row is one of row 1."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trec_semid.core.errors import DataError
from trec_semid.data.encoders.arrays import NpyConfig, npy_chunks
from trec_semid.data.encoders.chunks import Items
from trec_semid.data.features import Feature, check_ids
from trec_semid.data.raw.columns import Where, as_ids
from trec_semid.data.raw.formats.chunks import FileConfig
from trec_semid.data.raw.formats.streams import read_chunks
from trec_semid.layers.tuple_trie import check_codes
from trec_semid.metrics.binary import check_probabilities
from trec_semid.metrics.keys import check_labels, check_scores, check_users
from trec_semid.search.retrieved import expect_no_nan
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds


def of_table(folder):
    (folder / "t.csv").write_text('u\n""\n')
    for chunk in read_chunks(FileConfig(path=str(folder / "t.csv")), ["u"], work="test"):
        as_ids(chunk.table["u"], Where(chunk.origins, "u"))


def of_text(folder):
    (folder / "t.csv").write_text("u,i\nx\n")
    list(read_chunks(FileConfig(path=str(folder / "t.csv")), ["u"], work="test"))


def of_json(folder):
    (folder / "t.jsonl").write_text("[]\n")
    list(read_chunks(FileConfig(path=str(folder / "t.jsonl")), ["u"], work="test"))


def of_array(folder):
    np.save(folder / "v.npy", np.zeros((1, 2), np.float32))
    items = Items(pa.table({"item_id": ["a"]}), np.array([0]), 1, "items.csv")
    list(npy_chunks(NpyConfig(file=str(folder / "v.npy")), items))


def of_map(codes):
    def read(folder):
        table = pa.table({"item_id": ["a"], "codes": codes})
        pq.write_table(table, folder / "semantic_ids.parquet")
        SemanticIds.load(str(folder / "semantic_ids.parquet"))

    return read


FAULTS = {
    "a table": of_table,
    "delimited text": of_text,
    "JSON lines": of_json,
    "an array file": of_array,
    "a map without codes": of_map(pa.array([[]], pa.list_(pa.int32()))),
    "a map with a null": of_map(pa.array([None], pa.list_(pa.int32()))),
    "a map with a code below 0": of_map([[-1]]),
    "codes": lambda folder: check_codes(np.array([[9]]), [3]),
    "probabilities": lambda folder: check_probabilities(np.float32([2]), np.array([1])),
    "scores": lambda folder: check_scores(np.float32([np.nan])),
    "labels": lambda folder: check_labels(np.array([2]), 1),
    "users": lambda folder: check_users(np.array([-1]), 1),
    "scores of items": lambda folder: expect_no_nan(torch.tensor([[torch.nan]])),
    "ids of a feature": lambda folder: check_ids(
        Feature("x", "user", "t_x", 1), np.array([5]), "items.parquet"
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_first_row_is_one_of_row_1(tmp_path, name):
    with pytest.raises(DataError) as caught:
        FAULTS[name](tmp_path)
    assert caught.value.row == 1
