import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trec_semid.core.errors import DataError
from trec_semid.core.ids import id_array
from trec_semid.tokenizers.maps.coefficients import Coefficients, coefficient_schema

IDS = id_array(["a", "b", "c"])
VALUES = {
    np.float16: np.array([[0.5, -1.25], [3, 4], [5, 6]]),
    np.uint8: np.array([[0, 255], [3, 4], [5, 6]]),
}


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 16), (np.uint8, 8), (np.uint8, 4)])
def test_what_is_written_is_read_in_the_order_asked_for(tmp_path, dtype, bits):
    place = str(tmp_path / "coefficients.parquet")
    Coefficients(IDS, VALUES[dtype].astype(dtype)).save(place)
    assert pq.read_schema(place).equals(coefficient_schema(bits, 2))
    read = Coefficients.load(place)
    assert (read.item_ids, read.values.dtype) == (IDS, dtype)
    np.testing.assert_array_equal(read.values, VALUES[dtype])
    other = Coefficients.load(place, id_array(["c", "a"]))
    np.testing.assert_array_equal(other.values, VALUES[dtype][[2, 0]])
    with pytest.raises(DataError, match=r"item has no coefficients .*'d'.*Tokenize again"):
        Coefficients.load(place, id_array(["a", "d"]))


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"item_id": ["a"]}),
        pa.table({"item_id": ["a"], "coefficients": [1.0]}),
        pa.table({"item_id": ["a"], "coefficients": [[1.0, 2.0]]}),
    ],
)
def test_other_tables_are_refused(tmp_path, table):
    place = str(tmp_path / "coefficients.parquet")
    pq.write_table(table, place)
    with pytest.raises(DataError, match=r"coefficients\.parquet: damaged"):
        Coefficients.load(place)
    with pytest.raises(DataError, match="no coefficients here"):
        Coefficients.load(str(tmp_path / "absent.parquet"))
