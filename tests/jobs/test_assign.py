import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datasets import write_small_dataset
from trec_semid.core.errors import ConfigError, DataError, SemidError
from trec_semid.core.ids import id_array
from trec_semid.data.schema import Dataset
from trec_semid.jobs import assign as job
from trec_semid.jobs import tokenize
from trec_semid.jobs.assign import AssignConfig, run
from trec_semid.tokenizers.collisions import resolve_collisions
from trec_semid.tokenizers.encode import encode_catalogue
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.maps.record import write_record
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.measures.quality import describe_quality
from trec_semid.tokenizers.rq_kmeans import RqKmeans, RqKmeansConfig
from trec_semid.training.matched_codes import verify_codes

WIDTHS = {"text": 16, "image": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a tokenize run over it."""
    folder = tmp_path_factory.mktemp("world")
    write_small_dataset(str(folder / "data"), num_items=200, num_users=30)
    tokenizer = {"kind": "rq_kmeans", "codebook_size": 12, "levels": 3}
    config = {"dataset": str(folder / "data"), "run": str(folder / "codes"), "tokenizer": tokenizer}
    tokenize.run(tokenize.TokenizeConfig.model_validate(config))
    return folder


def items_of(world: Path) -> dict[str, list]:
    """The catalogue's own content under new names."""
    dataset = Dataset(str(world / "data"))
    columns: dict[str, list] = {"item_id": [f"new-{number}" for number in range(200)]}
    for name in WIDTHS:
        vectors, mask = dataset.content(name).astype(np.float32), dataset.content_mask(name)
        columns[name] = [row.tolist() if has else None for row, has in zip(vectors, mask, strict=True)]
    return columns


def write(path: Path, columns: dict[str, list], *, form: str = "list", rows: int = 50) -> None:
    arrays = {"item_id": pa.array(columns["item_id"])}
    for name, width in WIDTHS.items():
        kind = {
            "list": pa.list_(pa.float32()),
            "fixed": pa.list_(pa.float32(), width),
            "large": pa.large_list(pa.float64()),
        }[form]
        arrays[name] = pa.array(columns[name], kind)
    pq.write_table(pa.table(arrays), path, row_group_size=rows)


def config(world: Path, items: Path, out: Path, **changes: object) -> AssignConfig:
    values = {"tokenizer": str(world / "codes"), "items": str(items), "out": str(out), **changes}
    return AssignConfig.model_validate(values)


@pytest.mark.parametrize("form", ["list", "fixed", "large"])
def test_known_content_under_new_ids_gets_the_codes_it_has(world: Path, tmp_path: Path, form: str):
    write(tmp_path / "new.parquet", items_of(world), form=form)
    drift = run(config(world, tmp_path / "new.parquet", tmp_path / "out")).drift
    known = SemanticIds.load(str(world / "codes/semantic_ids.parquet"))
    given = SemanticIds.load(str(tmp_path / "out/semantic_ids.parquet"))
    np.testing.assert_array_equal(given.codes, known.codes)
    assert given.item_ids.to_pylist() == [f"new-{number}" for number in range(200)]
    assert given.sizes == known.sizes
    assert drift["collisions"]["with_existing_share"] == 1
    assert drift["items"] == drift["existing_items"] == 200
    # The very items it was fitted on: no drift, and 1 % outside by definition.
    every = drift["errors"]["every_modality"]
    assert every["outside_share"] == pytest.approx(0.01, abs=0.005)
    assert every["mean"] == pytest.approx(every["training_mean"], rel=1e-5)
    assert every["divergence_bits"] < 0.01
    assert all(position["divergence_bits"] == 0 for position in drift["positions"])
    for name in WIDTHS:
        shares = drift["missing"][name]
        assert shares["new_share"] == pytest.approx(shares["existing_share"])


def test_file_is_of_the_form_that_tokenize_writes(world: Path, tmp_path: Path):
    write(tmp_path / "new.parquet", items_of(world))
    run(config(world, tmp_path / "new.parquet", tmp_path / "out"))
    schemas = [
        pq.read_schema(folder / "semantic_ids.parquet") for folder in (tmp_path / "out", world / "codes")
    ]
    assert schemas[0].equals(schemas[1], check_metadata=False)
    assert schemas[0].metadata[b"codebook_sizes"] == schemas[1].metadata[b"codebook_sizes"]
    assert verify_codes(str(tmp_path / "out")) == verify_codes(str(world / "codes"))


def test_other_content_is_seen_to_drift(world: Path, tmp_path: Path):
    columns = items_of(world)
    generator = np.random.default_rng(0)
    columns["text"] = generator.standard_normal((200, 16)).tolist()
    columns["image"] = [None] * 200
    write(tmp_path / "new.parquet", columns)
    drift = run(config(world, tmp_path / "new.parquet", tmp_path / "out")).drift
    text = drift["errors"]["modalities"]["text"]
    assert text["outside_share"] > 0.3
    assert text["divergence_bits"] > 3 * text["divergence_by_chance_bits"]
    assert drift["errors"]["modalities"]["image"] is None
    assert drift["missing"]["image"]["new_share"] == 1


def test_batches_and_files_do_not_matter(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    columns = items_of(world)
    write(tmp_path / "new.parquet", columns)
    whole = run(config(world, tmp_path / "new.parquet", tmp_path / "a")).drift
    (tmp_path / "parts").mkdir()
    for part in range(4):
        rows = slice(50 * part, 50 * part + 50)
        piece = {name: values[rows] for name, values in columns.items()}
        write(tmp_path / f"parts/{part}.parquet", piece, rows=20)
    monkeypatch.setattr(job, "_batch_rows", lambda _: 7)
    pieces = run(config(world, tmp_path / "parts", tmp_path / "b")).drift
    left, right = (SemanticIds.load(str(tmp_path / name / "semantic_ids.parquet")) for name in "ab")
    np.testing.assert_array_equal(left.codes, right.codes)
    assert left.item_ids == right.item_ids
    assert whole["positions"] == pieces["positions"]
    assert whole["collisions"] == pieces["collisions"]


def test_columns_of_other_names_are_mapped_and_others_ignored(world: Path, tmp_path: Path):
    write(tmp_path / "new.parquet", items_of(world))
    table = pq.read_table(tmp_path / "new.parquet").rename_columns(["sku", "emb", "image"])
    pq.write_table(table.append_column("price", pa.array([1.0] * 200)), tmp_path / "own.parquet")
    changes = {"item_id": "sku", "columns": {"text": "emb"}}
    drift = run(config(world, tmp_path / "own.parquet", tmp_path / "out", **changes)).drift
    assert drift["collisions"]["with_existing_share"] == 1
    with pytest.raises(ConfigError, match="did you mean 'text'"):
        run(config(world, tmp_path / "own.parquet", tmp_path / "out", columns={"texts": "emb"}))


def bad(change: str, columns: dict[str, list]) -> None:
    match change:
        case "width":
            columns["text"][120] = [1.0] * 15
        case "nan":
            columns["text"][120][3] = float("nan")
        case "infinite":
            columns["image"][120] = [1.0] * 7 + [float("inf")]
        case "null inside":
            columns["text"][120][5] = None
        case "zeros":
            columns["text"][120] = [0.0] * 16
        case "twice":
            columns["item_id"][120] = "new-3"
        case "no id":
            columns["item_id"][120] = None
        case _:
            columns["item_id"][120] = change


FAULTS = {
    "width": "row 121, field 'text': vector of another width (got 15)",
    "nan": "row 121, field 'text': not a finite number in dimension 3 (got 'nan')",
    "infinite": "row 121, field 'image': not a finite number in dimension 7 (got 'inf')",
    "null inside": "row 121, field 'text': not a finite number in dimension 5 (got 'None')",
    "zeros": "row 121, field 'text': a vector of zeros",
    "twice": "row 121, field 'item_id': duplicate item id, first seen in",
    "no id": "row 121, field 'item_id': the id is missing",
}


@pytest.mark.parametrize("change", FAULTS)
def test_bad_value_is_named_by_row_and_field_and_nothing_is_written(world: Path, tmp_path: Path, change: str):
    columns = items_of(world)
    bad(change, columns)
    write(tmp_path / "new.parquet", columns)
    with pytest.raises(DataError) as caught:
        run(config(world, tmp_path / "new.parquet", tmp_path / "out"))
    assert FAULTS[change] in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.parquet"]


def test_existing_item_is_refused_and_told_from_a_new_one(world: Path, tmp_path: Path):
    known = SemanticIds.load(str(world / "codes/semantic_ids.parquet")).item_ids[7].as_py()
    columns = items_of(world)
    bad(known, columns)
    write(tmp_path / "new.parquet", columns)
    with pytest.raises(DataError, match=r"first seen in .*codes/semantic_ids.parquet, row 8 .*leave the row"):
        run(config(world, tmp_path / "new.parquet", tmp_path / "out"))


def test_wrong_types_absent_columns_and_empty_files_are_refused(world: Path, tmp_path: Path):
    ids = pa.array(["a", "b"])
    text, image = pa.array([[1.0] * 16] * 2), pa.array([[1.0] * 8] * 2)
    tables = {
        "not a column of vectors": pa.table({"item_id": ids, "text": pa.array([1.0, 2.0]), "image": image}),
        "no such column": pa.table({"item_id": ids, "text": text}),
        "wrong type": pa.table({"item_id": pa.array([0.5, 1.5]), "text": text, "image": image}),
        "no rows": pa.table({"item_id": ids, "text": text, "image": image}).slice(0, 0),
    }
    for words, table in tables.items():
        pq.write_table(table, tmp_path / "new.parquet")
        with pytest.raises(DataError, match=words):
            run(config(world, tmp_path / "new.parquet", tmp_path / "out"))
    with pytest.raises(DataError, match="no such file"):
        run(config(world, tmp_path / "absent.parquet", tmp_path / "out"))
    (tmp_path / "new.parquet").write_text("item_id,text\n")
    with pytest.raises(DataError, match="write or download it again"):
        run(config(world, tmp_path / "new.parquet", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(0, 2**31),
    cell=st.tuples(st.sampled_from(["item_id", "text", "image"]), st.integers(0, 29)),
    value=st.one_of(
        st.none(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
        st.lists(st.floats(width=32) | st.none(), max_size=17),
    ),
    cuts=st.booleans(),
)
def test_whatever_comes_in_a_whole_result_or_a_typed_error_comes_out(
    world: Path, tmp_path: Path, length: int, cell: tuple[str, int], value: object, cuts: bool
):
    columns = {name: values[:30] for name, values in items_of(world).items()}
    name, row = cell
    if isinstance(value, list) == (name != "item_id") or value is None:
        columns[name][row] = value
    write(tmp_path / "new.parquet", columns, rows=10)
    if cuts:
        content = (tmp_path / "new.parquet").read_bytes()
        (tmp_path / "new.parquet").write_bytes(content[: length % len(content)])
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    drift, error = None, None
    try:
        drift = run(config(world, tmp_path / "new.parquet", tmp_path / "out")).drift
    except SemidError as refused:
        error = refused
    if error is not None:
        assert error.exit_code == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new.parquet"]
        return
    assert not cuts
    given = SemanticIds.load(str(tmp_path / "out/semantic_ids.parquet"))
    assert len(given.item_ids) == drift["items"] == 30
    json.loads((tmp_path / "out/drift.json").read_text())


def test_second_call_keeps_what_is_there_until_the_input_changes(world: Path, tmp_path: Path):
    write(tmp_path / "new.parquet", items_of(world))
    asked = config(world, tmp_path / "new.parquet", tmp_path / "out")
    first = run(asked)
    made = (tmp_path / "out/drift.json").stat().st_mtime_ns
    assert run(asked).drift == first.drift
    assert (tmp_path / "out/drift.json").stat().st_mtime_ns == made
    write(tmp_path / "new.parquet", {name: values[:90] for name, values in items_of(world).items()})
    assert run(asked).drift["items"] == 90


def test_fault_leaves_an_earlier_result_as_it_was_and_other_folders_alone(world: Path, tmp_path: Path):
    write(tmp_path / "new.parquet", items_of(world))
    asked = config(world, tmp_path / "new.parquet", tmp_path / "out")
    run(asked)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    columns = items_of(world)
    bad("nan", columns)
    write(tmp_path / "new.parquet", columns)
    with pytest.raises(DataError):
        run(asked)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="something else than an assign run"):
        run(config(world, tmp_path / "new.parquet", tmp_path / "mine"))


def test_tokenize_run_that_cannot_serve_is_refused(world: Path, tmp_path: Path):
    write(tmp_path / "new.parquet", items_of(world))
    shutil.copytree(world / "codes", tmp_path / "codes")
    quality = json.loads((tmp_path / "codes/quality.json").read_text())
    del quality["training_errors"]
    (tmp_path / "codes/quality.json").write_text(json.dumps(quality))
    write_record(str(tmp_path / "codes"), dataset="small", dataset_checksum="c", seed=0)
    asked = config(tmp_path, tmp_path / "new.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="older version"):
        run(asked)
    shutil.copy(world / "codes/quality.json", tmp_path / "codes")
    ids = SemanticIds.load(str(world / "codes/semantic_ids.parquet"))
    SemanticIds(ids.item_ids, ids.codes, (20, 20, 20)).save(str(tmp_path / "codes/semantic_ids.parquet"))
    write_record(str(tmp_path / "codes"), dataset="small", dataset_checksum="c", seed=0)
    with pytest.raises(DataError, match="map of other codebooks"):
        run(asked)
    (tmp_path / "codes/metrics.json").unlink()
    with pytest.raises(DataError, match="not a finished run"):
        run(asked)
    with pytest.raises(DataError, match="no such file"):
        run(config(tmp_path / "absent", tmp_path / "new.parquet", tmp_path / "out"))


def wide_codes(folder: Path, width: int) -> None:
    """A tokenize run over one wide modality, made from its parts."""
    vectors = np.random.default_rng(1).standard_normal((50, width)).astype(np.float32)
    catalogue = ItemContents({"text": vectors}, {"text": np.ones(50, bool)})
    tokenizer = RqKmeans(RqKmeansConfig(codebook_size=4, levels=2), {"text": width})
    list(tokenizer.fit(catalogue, np.arange(50), 0))
    encoded = encode_catalogue(tokenizer, catalogue)
    tokenizer.save(str(folder / "tokenizer"))
    ids = [f"old-{number}" for number in range(50)]
    SemanticIds(id_array(ids), encoded.codes, (4, 4)).save(str(folder / "semantic_ids.parquet"))
    resolved = resolve_collisions("keep", tokenizer, catalogue, encoded)
    quality = describe_quality(tokenizer, "rq_kmeans", catalogue, resolved, np.arange(50), seed=0)
    (folder / "quality.json").write_text(json.dumps(quality))
    write_record(str(folder), dataset="wide", dataset_checksum="c", seed=0)
    (folder / "metrics.json").write_text("{}")


def test_memory_does_not_grow_with_the_vectors_that_are_read(tmp_path: Path):
    width, rows = 512, 5000
    wide_codes(tmp_path / "codes", width)
    generator = np.random.default_rng(0)
    schema = pa.schema([("item_id", pa.string()), ("text", pa.list_(pa.float32(), width))])
    for name, groups in (("small", 1), ("large", 15)):
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", schema, compression="none") as writer:
            for group in range(groups):
                flat = generator.standard_normal(rows * width, np.float32)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
                ids = pa.array([f"{group}-{row}" for row in range(rows)])
                writer.write_table(pa.table([ids, vectors], schema=schema))
    program = (
        "import resource, sys\n"
        "from trec_semid.jobs import assign\n"
        "assign._batch_rows = lambda _: 1000\n"
        "for name in ('small', 'large'):\n"
        "    assign.run(assign.AssignConfig(tokenizer=sys.argv[1] + '/codes', "
        "items=f'{sys.argv[1]}/{name}.parquet', out=f'{sys.argv[1]}/{name}'))\n"
        "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    # The 70,000 items more have 143 MB of vectors.
    assert large - small < 40_000  # [KiB]


def test_subfolders_are_read_and_their_partitions_checked(world: Path, tmp_path: Path):
    columns = items_of(world)
    for number, name in enumerate(
        ("a.parquet", "day=1/a.parquet", "day=2/deep/b.parquet", "_temporary/c.parquet")
    ):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        part = {key: values[number * 50 : (number + 1) * 50] for key, values in columns.items()}
        write(tmp_path / "new" / name, part)
    with pytest.raises(
        DataError, match=r"day=1/a.parquet: lies in other partition folders than .*new/a.parquet"
    ):
        run(config(world, tmp_path / "new", tmp_path / "out"))
    (tmp_path / "new/a.parquet").unlink()
    run(config(world, tmp_path / "new", tmp_path / "out"))
    given = SemanticIds.load(str(tmp_path / "out/semantic_ids.parquet"))
    assert given.item_ids.to_pylist() == [f"new-{number}" for number in range(50, 150)]
    write(tmp_path / "new/day=2/deep/c.parquet", {key: values[:1] for key, values in columns.items()})
    assert len(run(config(world, tmp_path / "new", tmp_path / "out")).drift["inputs"]) == 4
    table = pq.read_table(tmp_path / "new/day=1/a.parquet").append_column("day", pa.array(["1"] * 49 + ["2"]))
    pq.write_table(table, tmp_path / "new/day=1/a.parquet")
    with pytest.raises(DataError, match=r"day=1/a.parquet, row 50, field 'day': another value .*got '2'"):
        run(config(world, tmp_path / "new", tmp_path / "out"))
