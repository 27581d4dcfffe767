import os
import uuid

import numpy as np
import pyarrow.parquet as pq
import pytest

from trec_semid.core.errors import DataError, ShapeError
from trec_semid.evaluation.predictions import (
    PREDICTION_SCHEMA,
    PredictionWriter,
    predictions_uri,
    read_predictions,
)


def columns_of(rows):
    rng = np.random.default_rng(0)
    whole = {
        "row": np.arange(1000),
        "user_row": rng.integers(0, 9, 1000),
        "item_row": rng.integers(0, 9, 1000),
        "label": (rng.random(1000) < 0.5).astype(np.float32),
        "score": rng.random(1000, np.float32),
        "score_frozen": rng.random(1000, np.float32),
    }
    return {name: column[rows] for name, column in whole.items()}


def write(run, world_size=3, num_rows=1000, batch=70, ranks=None, leave_out=()):
    order = np.setdiff1d(np.arange(num_rows), leave_out)
    np.random.default_rng(1).shuffle(order)
    for rank in range(world_size) if ranks is None else ranks:
        with PredictionWriter(run, "test", rank=rank, world_size=world_size, num_rows=num_rows) as writer:
            mine = order[rank::world_size]
            for start in range(0, len(mine), batch):
                writer.write(**columns_of(mine[start : start + batch]))


def test_what_all_ranks_wrote_is_read_in_order_of_row(tmp_path):
    write(str(tmp_path))
    found = read_predictions(str(tmp_path), "test")
    for name, column in columns_of(np.arange(1000)).items():
        np.testing.assert_array_equal(getattr(found, name), column)


def test_predictions_live_in_memory_and_other_file_systems_too():
    run = f"memory://predictions-{uuid.uuid4().hex}"
    write(run)
    np.testing.assert_array_equal(read_predictions(run, "test").row, np.arange(1000))


def test_file_has_the_columns_and_types_of_the_contract(tmp_path):
    write(str(tmp_path), world_size=1)
    schema = pq.read_schema(tmp_path / "predictions" / "test-rank-0.parquet")
    assert schema.remove_metadata() == PREDICTION_SCHEMA
    assert [str(kind) for kind in schema.types] == ["int64"] * 3 + ["float"] * 3


def test_rows_come_to_disk_in_groups_while_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("trec_semid.evaluation.predictions._GROUP_ROWS", 100)
    write(str(tmp_path), world_size=1, batch=70)
    metadata = pq.read_metadata(tmp_path / "predictions" / "test-rank-0.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [140] * 7 + [20]


def test_a_rank_without_rows_writes_an_empty_file(tmp_path):
    write(str(tmp_path), world_size=3, num_rows=2)
    assert read_predictions(str(tmp_path), "test").row.tolist() == [0, 1]


def write_and_fail(run):
    with PredictionWriter(run, "test", rank=0, world_size=1, num_rows=1000) as writer:
        writer.write(**columns_of(np.arange(5)))
        raise RuntimeError


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        write_and_fail(str(tmp_path))
    assert os.listdir(tmp_path / "predictions") == []


def test_a_second_evaluation_replaces_the_first_even_with_fewer_ranks(tmp_path):
    write(str(tmp_path), world_size=4)
    write(str(tmp_path), world_size=2)
    np.testing.assert_array_equal(read_predictions(str(tmp_path), "test").row, np.arange(1000))


def test_rank_that_did_not_finish_is_named(tmp_path):
    write(str(tmp_path), ranks=[0, 2])
    with pytest.raises(DataError, match=r"test-rank-1\.parquet: no predictions here"):
        read_predictions(str(tmp_path), "test")


def test_row_that_is_absent_is_named(tmp_path):
    write(str(tmp_path), leave_out=[17, 20])
    with pytest.raises(DataError, match=r"there 0 times \(2 such rows\) \(got 17\)"):
        read_predictions(str(tmp_path), "test")


def test_row_that_is_there_twice_is_named(tmp_path):
    write(str(tmp_path), leave_out=[17])
    with PredictionWriter(str(tmp_path), "test", rank=0, world_size=3, num_rows=1000) as writer:
        writer.write(**columns_of(np.arange(100)))
    with pytest.raises(DataError, match="times"):
        read_predictions(str(tmp_path), "test")


def test_row_outside_the_split_is_named(tmp_path):
    with PredictionWriter(str(tmp_path), "test", rank=0, world_size=1, num_rows=5) as writer:
        writer.write(**columns_of(np.arange(7)))
    with pytest.raises(DataError, match=r"has 5 rows.*got 5"):
        read_predictions(str(tmp_path), "test")


def test_columns_must_be_those_of_the_file_and_of_one_length(tmp_path):
    with PredictionWriter(str(tmp_path), "test", rank=0, world_size=1, num_rows=5) as writer:
        with pytest.raises(ShapeError, match="expected row, user_row"):
            writer.write(row=np.arange(5))
        with pytest.raises(ShapeError, match="unequal length"):
            writer.write(**columns_of(np.arange(5)) | {"label": np.zeros(4)})


def test_file_that_is_cut_off_is_refused(tmp_path):
    write(str(tmp_path), world_size=1)
    path = predictions_uri(str(tmp_path), "test", 0)
    with open(path, "r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_predictions(str(tmp_path), "test")


def test_parquet_file_of_another_kind_is_refused(tmp_path):
    write(str(tmp_path), world_size=1)
    path = predictions_uri(str(tmp_path), "test", 0)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("score"), path)
    with pytest.raises(DataError, match="missing column"):
        read_predictions(str(tmp_path), "test")
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(DataError, match="how many ranks"):
        read_predictions(str(tmp_path), "test")
