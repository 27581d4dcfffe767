import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from trec_semid.core.errors import DataError
from trec_semid.core.paths import open_file
from trec_semid.data.content import ContentConfig, write_contents

CONFIGS = TypeAdapter(dict[str, ContentConfig])


def write(configs, items, out, *, source_rows=None, cache=None, **facts):
    rows = np.arange(len(items)) if source_rows is None else np.asarray(source_rows)
    return write_contents(CONFIGS.validate_python(configs), items, rows, str(out), cache, **facts)


def load(out, name):
    with open_file(f"{out}/content/{name}.npy") as file:
        return np.load(file)


def catalogue(num_items=4):
    return pa.table(
        {
            "item_id": [f"i{row}" for row in range(num_items)],
            "vector": pa.array([[row + 1.0, -row, 0.5] for row in range(num_items)], pa.list_(pa.float32())),
            "genres": pa.array([["Drama", "War"], ["Drama"], ["War"], ["Drama"]] * (num_items // 4)),
            "has": [True, False, True, True] * (num_items // 4),
        }
    )


def test_every_modality_is_written_with_its_mask_and_told_in_the_facts(tmp_path):
    poster = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float16)
    np.save(tmp_path / "poster.npy", poster)
    configs = {
        "poster": {"kind": "npy", "file": str(tmp_path / "poster.npy"), "mask_column": "has"},
        "given": {"kind": "column", "column": "vector"},
        "genres": {"kind": "attributes", "categories": ["genres"]},
    }
    facts = write(configs, catalogue(), tmp_path / "out", num_source_rows=4)
    assert {name: (f.dim, f.dtype, f.present) for name, f in facts.items()} == {
        "poster": (6, "float16", 3),
        "given": (3, "float32", 4),
        "genres": (2, "float32", 4),
    }
    assert load(tmp_path / "out", "poster.mask").tolist() == [True, False, True, True]
    stored = load(tmp_path / "out", "poster")
    assert stored[1].tolist() == [0] * 6
    np.testing.assert_array_equal(stored[[0, 2, 3]], poster[[0, 2, 3]])


def test_the_same_files_come_out_in_any_file_system(tmp_path):
    configs = {"given": {"kind": "column", "column": "vector"}}
    write(configs, catalogue(), tmp_path)
    write(configs, catalogue(), "memory://content-test")
    np.testing.assert_array_equal(load(tmp_path, "given"), load("memory://content-test", "given"))
    np.testing.assert_array_equal(load(tmp_path, "given.mask"), load("memory://content-test", "given.mask"))


def test_written_vectors_can_be_memory_mapped(tmp_path):
    write({"given": {"kind": "column", "column": "vector"}}, catalogue(), tmp_path)
    mapped = np.load(tmp_path / "content" / "given.npy", mmap_mode="r")
    assert (mapped.shape, mapped.dtype) == ((4, 3), np.float32)


def test_each_config_lists_the_item_columns_it_reads():
    configs = CONFIGS.validate_python(
        {
            "a": {"kind": "npy", "file": "x.npy"},
            "b": {"kind": "npy", "file": "x.npy", "mask_column": "has"},
            "c": {"kind": "column", "column": "vector"},
            "d": {"kind": "text", "template": "Title: {title}; Genres: {genres}"},
            "e": {"kind": "image", "folder": "posters", "column": "poster"},
            "f": {"kind": "attributes", "categories": ["genres"], "numbers": ["price"], "years": ["year"]},
        }
    )
    columns = {name: config.columns for name, config in configs.items()}
    assert columns == {
        "a": [],
        "b": ["has"],
        "c": ["vector"],
        "d": ["title", "genres"],
        "e": ["poster"],
        "f": ["genres", "price", "year"],
    }


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(ValidationError, match="'npy', 'column', 'text', 'image', 'attributes'"):
        CONFIGS.validate_python({"a": {"kind": "sound"}})


def test_a_column_that_is_not_there_is_named_with_its_likes(tmp_path):
    with pytest.raises(DataError, match=r"items\.csv.*field 'vectr': missing column.*vector"):
        write(
            {"a": {"kind": "column", "column": "vectr"}}, catalogue(), tmp_path, items_file="data/items.csv"
        )


def test_slow_packages_are_not_imported_until_an_encoder_runs():
    code = (
        "import sys, trec_semid.data.content; "
        "print([m for m in ('torch', 'sentence_transformers', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.studydata
@pytest.mark.parametrize(("folder", "missing"), [("ml100k_mm", 358), ("ml1m_mm", 657)])
def test_posters_that_are_missing_in_the_research_data_are_masked(study_data, tmp_path, folder, missing):
    file = study_data / folder / "image_effnetlite0_1280.npy"
    items = pq.read_table(study_data / folder / "items.parquet", columns=["item_id", "has_image"])
    config = {"poster": {"kind": "npy", "file": str(file), "mask_column": "has_image"}}
    facts = write(config, items, tmp_path, num_source_rows=len(items))["poster"]
    assert len(items) - facts.present == missing
    by_zeros = {"poster": {"kind": "npy", "file": str(file), "zero_is_missing": True}}
    assert write(by_zeros, items, tmp_path / "zeros")["poster"].present == facts.present
    np.testing.assert_array_equal(load(tmp_path, "poster"), np.load(file))
    with pytest.raises(DataError, match="zeros, which has no direction"):
        write({"poster": {"kind": "npy", "file": str(file)}}, items, tmp_path / "refused")


@pytest.mark.parametrize(
    ("attributes", "columns"),
    [
        ({"numbers": ["price", "taxed"]}, {}),
        ({"numbers": ["price"], "dim": 1}, {}),
        ({"categories": ["shop"]}, {"shop": ["one"] * 8}),
    ],
)
def test_attributes_on_one_line_are_refused_without_advice_to_use_attributes(tmp_path, attributes, columns):
    price = np.arange(1.0, 9.0)
    items = pa.table({"item_id": list("abcdefgh"), "price": price, "taxed": price * 1.2, **columns})
    with pytest.raises(DataError, match=r"multiples of one.* one such number alone") as refused:
        write({"facts": {"kind": "attributes", **attributes}}, items, tmp_path)
    assert 'kind = "attributes"' not in str(refused.value)
    if len(attributes.get("numbers", [])) > 1:  # what is advised works
        assert (
            write({"facts": {"kind": "attributes", "numbers": ["price"]}}, items, tmp_path)["facts"].dim == 2
        )
