import errno
import io

import numpy as np
import pyarrow as pa
import pytest

from trec_semid.core.errors import DataError
from trec_semid.core.paths import list_folder
from trec_semid.data.encoders import store
from trec_semid.data.encoders.chunks import Chunk, Items, spread
from trec_semid.data.encoders.store import store_content


def keep(vectors, out, *, present=None, dtype=None, cuts=()):
    vectors = np.asarray(vectors)
    present = np.ones(len(vectors), bool) if present is None else np.asarray(present)
    rows = np.arange(len(vectors)) + 99  # which messages count from 1
    items = Items(pa.table({"item_id": rows.astype(str)}), rows, None, "items.csv")
    pairs = zip(np.split(vectors, cuts), np.split(present, cuts), strict=True)
    chunks = (Chunk(part, mask) for part, mask in pairs)
    return store_content("poster", chunks, items, str(out), dtype=dtype, source="test")


def test_what_is_stored_does_not_depend_on_the_chunks(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    for cuts in ((), (1, 2, 9), (5, 5)):
        facts = keep(vectors, tmp_path / str(cuts), cuts=cuts)
        np.testing.assert_array_equal(np.load(tmp_path / str(cuts) / "content" / "poster.npy"), vectors)
        assert (facts.dim, facts.dtype, facts.present) == (3, "float32", 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(tmp_path, value):
    vectors = np.ones((6, 2), np.float32)
    vectors[0, 0] = 2
    vectors[4, 1] = value
    with pytest.raises(
        DataError, match=rf"items\.csv, row 104, field 'poster': .*dimension 1 for item '103' \(got {value}\)"
    ):
        keep(vectors, tmp_path, cuts=(3,))


def test_what_a_missing_row_holds_does_not_matter(tmp_path):
    vectors = np.array([[1.0, 2.0], [np.nan, np.inf], [3.0, 4.0]], np.float32)
    assert keep(vectors, tmp_path, present=[True, False, True]).present == 2
    stored = np.load(tmp_path / "content" / "poster.npy")
    assert stored.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
    assert np.load(tmp_path / "content" / "poster.mask.npy").tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float16", 1e5), ("float16", 1e-9), (None, 1e300), (None, 1e-300)]
)
def test_a_vector_that_the_type_cannot_hold_keeps_its_direction(tmp_path, dtype, scale):
    vectors = np.random.default_rng(0).normal(size=(20, 6))
    keep(vectors, tmp_path / "plain", dtype=dtype)
    vectors[::3] *= scale
    keep(vectors, tmp_path / "scaled", dtype=dtype, cuts=(7,))
    plain, scaled = (
        np.load(tmp_path / name / "content" / "poster.npy").astype(np.float64) for name in ("plain", "scaled")
    )
    assert np.array_equal(plain[1::3], scaled[1::3])
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (plain, scaled)]
    np.testing.assert_allclose(units[0], units[1], atol=1e-3 if dtype else 1e-6)


def test_float_types_are_kept_or_narrowed_as_told(tmp_path):
    vectors = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert keep(vectors.astype(np.float16), tmp_path).dtype == "float16"
    assert keep(vectors, tmp_path).dtype == "float32"
    assert keep(vectors, tmp_path, dtype="float16").dtype == "float16"
    assert np.load(tmp_path / "content" / "poster.npy").dtype == np.float16


def test_equal_vectors_everywhere_are_refused_whatever_the_missing_rows_are(tmp_path):
    vectors = np.ones((5, 2), np.float32)
    vectors[2, 1] = 7
    with pytest.raises(DataError, match=r"field 'poster': tells no items apart: the vectors of all 4 items"):
        keep(vectors, tmp_path, present=[True, True, False, True, True], cuts=(2,))
    assert keep(vectors, tmp_path, cuts=(2,)).present == 5
    assert keep(vectors[:1], tmp_path).present == 1


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-44])
def test_vectors_whose_squares_leave_float32_are_stored_as_they_are(tmp_path, scale):
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    vectors[3] *= np.float32(scale)
    keep(vectors, tmp_path, cuts=(2,))
    assert np.array_equal(np.load(tmp_path / "content" / "poster.npy"), vectors)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("is_signed", [False, True])
def test_multiples_of_one_vector_are_refused_with_what_to_do(tmp_path, dtype, width, is_signed):
    rng = np.random.default_rng(0)
    lengths = rng.uniform(1, 90, 80) * (rng.choice([-1, 1], 80) if is_signed else 1)
    vectors = (lengths[:, None] * rng.normal(size=width)).astype(dtype)
    with pytest.raises(DataError, match=r"multiples of one.*kind = \"attributes\"") as refused:
        keep(vectors, tmp_path, cuts=(20, 50))
    assert "[content.poster]" in str(refused.value)


def test_a_vector_of_zeros_that_is_said_to_be_there_is_refused(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    vectors[4] = 0
    with pytest.raises(DataError, match=r"row 104, field 'poster': a vector of zeros"):
        keep(vectors, tmp_path, cuts=(2,))


@pytest.mark.parametrize("offset", [1.0, 1000.0])
def test_vectors_that_differ_by_rounding_alone_are_constant(tmp_path, offset):
    noise = np.random.default_rng(0).normal(size=(50, 8)) * 1e-7
    with pytest.raises(DataError, match="multiples of one, up to rounding"):
        keep((offset * (1 + noise)).astype(np.float32), tmp_path, cuts=(20,))
    assert keep((offset * (1 + 1e4 * noise)).astype(np.float32), tmp_path, cuts=(20,)).present == 50


def test_content_that_nobody_has_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"field 'poster': no item has this content.*\[content\.poster\]"):
        keep(np.ones((3, 2), np.float32), tmp_path, present=[False] * 3)
    with pytest.raises(DataError, match="no item has this content"):
        keep(np.ones((3, 0), np.float32), tmp_path, present=[False] * 3)


def test_chunks_without_content_take_the_width_of_the_others(tmp_path):
    rows = np.arange(6)
    items = Items(pa.table({"item_id": rows.astype(str)}), rows)

    def chunks():
        yield from spread(None, np.zeros(2, bool))
        yield from spread(np.array([[1.0, 2.0, 3.0]], np.float32), np.array([False, True]))
        yield from spread(None, np.zeros(1, bool))
        yield from spread(np.array([[4.0, 5.0, 6.0]], np.float32), np.array([True]))

    facts = store_content("text", chunks(), items, str(tmp_path), dtype=None, source="test")
    assert (facts.dim, facts.present) == (3, 2)
    stored = np.load(tmp_path / "content" / "text.npy")
    assert stored[[3, 5]].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert not stored[[0, 1, 2, 4]].any()


def test_a_full_disk_is_said_and_no_mask_is_written(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "open_file", lambda uri, mode: Full())
    with pytest.raises(DataError, match=r"poster\.npy: the disk is full.*Free some space"):
        keep(np.array([[1.0], [2.0]], np.float32), tmp_path)
    assert list_folder(str(tmp_path / "content")) == []
