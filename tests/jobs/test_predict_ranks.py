"""Several ranks that open a real bundle, which they verify together, answer as one process does."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import Bundles
from tests.ranks import run_ranks
from trec_semid.jobs import predict
from trec_semid.jobs.predict import PredictConfig


def answer(bundle: str, folder: str, out: str) -> None:
    config = {"bundle": bundle, "asked": f"{folder}/users.parquet", "out": f"{folder}/{out}", "n": 5}
    predict.run(PredictConfig.model_validate(config))


@pytest.mark.ranks
def test_ranks_that_verify_a_bundle_together_write_what_one_writes(bundles: Bundles, tmp_path: Path):
    users = pa.table({"user_id": [f"u{row:03d}" for row in range(9)]})
    pq.write_table(users, tmp_path / "users.parquet", row_group_size=4)
    answer(bundles("sasrec"), str(tmp_path), "alone")
    run_ranks(answer, 2, bundles("sasrec"), str(tmp_path), "ranks")
    one, other = (pq.read_table(tmp_path / out / "predictions") for out in ("alone", "ranks"))
    assert one.num_rows == 9
    assert other.equals(one)
