import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs.exporting import IN_FORKS
from tests.jobs.ranking import rank_config, write_problem
from tests.jobs.test_rank_finetune import tuned
from tests.jobs.test_rank_finetune import write_problem as write_tuned_problem
from tests.ranks import run_ranks
from trec_semid.checkpoints.manifest import read_manifest
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.data.batches import Jagged
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.jobs import assign, export, rank
from trec_semid.jobs.export import ExportConfig
from trec_semid.serving.check import score_rows
from trec_semid.serving.reader import Bundle
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.training.matched_codes import verify_codes


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("export")))


@pytest.fixture(scope="module")
def run_folder(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    config = rank_config(problem, str(tmp_path_factory.mktemp("runs") / "both"))
    rank.run(config)
    return config.run


@pytest.fixture(scope="module")
def bundle(run_folder: str) -> str:
    out = f"{run_folder}-bundle"
    done = export.run(ExportConfig(run=run_folder, out=out, shard_rows=25))
    assert done.largest_difference < 1e-5
    return out


@pytest.fixture(autouse=True)
def bundles_are_checked_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bundle` above comes before this: it is scored by an interpreter of its own."""
    monkeypatch.setattr(export, "subprocess", IN_FORKS)


def test_the_bundle_alone_scores_like_the_run(bundle: str, run_folder: str, problem: dict[str, Any]):
    scores = score_rows(bundle, problem["dataset"], 10_000)
    predicted = read_predictions(run_folder, "test").score
    assert len(scores) == len(predicted) > 100
    np.testing.assert_allclose(scores, predicted, atol=1e-5)
    assert predicted.std() > 0.05


def test_shards_hold_the_rows_the_manifest_says(bundle: str):
    manifest = read_manifest(bundle)
    users = next(table for table in manifest.tables if table.name == "t_user_id")
    assert [(shard.first_row, shard.num_rows) for shard in users.shards] == [(0, 25), (25, 25), (50, 10)]
    rows = [safetensors.torch.load_file(f"{bundle}/{shard.file}")["weight"] for shard in users.shards]
    table = Bundle(bundle).tables["t_user_id"]
    assert torch.equal(table.rows(torch.arange(60)), torch.cat(rows))
    listed = {facts.file for facts in manifest.files()} | {"manifest.json", "manifest.json.sha256"}
    assert listed == {str(file.relative_to(bundle)) for file in Path(bundle).rglob("*") if file.is_file()}


def test_nothing_in_the_bundle_is_a_pickle(bundle: str):
    for file in (file for file in Path(bundle).rglob("*") if file.is_file()):
        contents = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents = [archive.read(name) for name in archive.namelist()]
        # Every pickle protocol from 2 on starts so; torch.save makes zip files with a data.pkl inside.
        assert not any(
            content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" for content in contents if content
        )
        assert b"data.pkl" not in b"".join(contents)


def test_tables_of_eight_bits_are_a_quarter_and_close(run_folder: str, bundle: str, tmp_path: Path):
    out = str(tmp_path / "int8")
    done = export.run(ExportConfig(run=run_folder, out=out, tables="int8"))
    assert 0 < done.largest_difference < 0.02
    small, full = Bundle(out).tables["t_item_id"], Bundle(bundle).tables["t_item_id"]
    rows = full.rows(torch.arange(40))
    step = (rows.amax(1) - rows.amin(1)) / 255
    error = (small.rows(torch.arange(40)) - rows).abs().amax(1)
    assert (error <= step * 0.5001 + 1e-7).all()
    codes = safetensors.torch.load_file(f"{out}/tables/t_item_id/shard-00000.safetensors")
    assert codes["codes"].dtype == torch.uint8


def test_the_map_is_that_of_the_checkpoint_and_a_changed_one_is_refused(
    bundle: str, problem: dict[str, Any], tmp_path: Path
):
    manifest = read_manifest(bundle)
    ids = SemanticIds.load(problem["semantic_ids"])
    assert manifest.semantic_ids is not None
    assert manifest.semantic_ids.checksum == ids.checksum()
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    SemanticIds(ids.item_ids, ids.codes[::-1].copy(), ids.sizes).save(f"{copy}/semantic_ids.parquet")
    with pytest.raises(DataError, match=r"semantic_ids\.parquet: damaged"):
        score_rows(str(copy), problem["dataset"], 10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2**40), flip=st.integers(1, 255), pick=st.integers(0, 2**20))
def test_any_flipped_byte_of_any_file_is_refused_when_the_bundle_is_opened(
    bundle: str, tmp_path: Path, place: int, flip: int, pick: int
):
    names = sorted(str(file.relative_to(bundle)) for file in Path(bundle).rglob("*") if file.is_file())
    file = Path(bundle, names[pick % len(names)])
    content = file.read_bytes()
    at = place % len(content)
    try:
        file.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        with pytest.raises(DataError):
            Bundle(bundle)
        with pytest.raises(DataError):
            verify_codes(bundle)  # what assign and rankers ask
    finally:
        file.write_bytes(content)
    assert read_manifest(bundle)


def features_of(bundle: Bundle, num_rows: int = 3, ids_each: int = 2) -> Jagged:
    names = tuple(feature.name for feature in bundle.manifest.features)
    values = torch.ones(len(names) * num_rows * ids_each, dtype=torch.int64)
    return Jagged(names, values, torch.full((len(names) * num_rows,), ids_each, dtype=torch.int32))


def with_value(features: Jagged, at: int, value: int) -> Jagged:
    values = features.values.clone()
    values[at] = value
    return features._replace(values=values)


WRONG = {
    "floats": (lambda f: f._replace(values=f.values.float()), "'values': not a list of whole.*torch.float32"),
    "nan": (lambda f: f._replace(values=f.values / 0 * 0), "'values': not a list of whole numbers"),
    "booleans": (lambda f: f._replace(values=f.values.bool()), "'values': not a list of whole numbers"),
    "bytes": (lambda f: f._replace(values=f.values.to(torch.uint8)), "'values': not a list of.*torch.uint8"),
    "unsigned": (
        lambda f: f._replace(values=f.values.to(torch.uint64)),
        "'values': not a list.*torch.uint64",
    ),
    "no tensor": (lambda f: f._replace(values=f.values.tolist()), r"'values': not a list.*\(got 'list'\)"),
    "a matrix": (lambda f: f._replace(values=f.values.view(-1, 2)), "'values': not a list of whole numbers"),
    "float lengths": (
        lambda f: f._replace(lengths=f.lengths.float()),
        "'lengths': not a list of whole numbers",
    ),
    "fewer ids": (lambda f: f._replace(values=f.values[:-1]), "'lengths': .* do not cut"),
    "more ids": (
        lambda f: f._replace(values=torch.cat([f.values, f.values[:1]])),
        "'lengths': .* do not cut",
    ),
    "a row too few": (lambda f: f._replace(lengths=f.lengths[:-1]), "'lengths': .* do not cut"),
    "negative length": (
        lambda f: f._replace(lengths=torch.cat([f.lengths[:-2], torch.tensor([5, -1], dtype=torch.int32)])),
        "'lengths': .* do not cut",
    ),
    "other features": (lambda f: f._replace(keys=f.keys[::-1]), "features differ from the bundle's"),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_batches_that_are_no_ids_are_refused_by_name(bundle: str, kind: str):
    opened = Bundle(bundle)
    break_it, told = WRONG[kind]
    with pytest.raises(DataError, match=told):
        opened.scores(break_it(features_of(opened)))


def test_as_many_bytes_as_a_table_has_rows_are_not_taken_for_a_mask_of_them(bundle: str):
    table = Bundle(bundle).tables["t_user_id"]
    with pytest.raises(DataError, match=r"'t_user_id': not a list of whole numbers.*torch\.uint8"):
        table.rows(torch.ones(table.facts.rows, dtype=torch.uint8))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    feature=st.integers(0, 30),
    row=st.integers(0, 2),
    beyond=st.sampled_from([-(2**63), -7, -1, 0, 1, 2**40, 2**62]),
    kind=st.sampled_from([torch.int64, torch.int32]),
)
def test_an_id_outside_its_table_is_refused_with_feature_row_and_value(bundle, feature, row, beyond, kind):
    opened = OPENED.setdefault(bundle, Bundle(bundle)) if bundle not in OPENED else OPENED[bundle]
    place = feature % len(opened.manifest.features)
    facts = opened.manifest.features[place]
    value = beyond if beyond < 0 else facts.num_rows + beyond
    if kind == torch.int32 and not -(2**31) <= value < 2**31:
        return
    features = features_of(opened)
    features = with_value(features._replace(values=features.values.to(kind)), 6 * place + 2 * row + 1, value)
    with pytest.raises(DataError, match=rf"row {row + 1}, field '{facts.name}': .*\(got {value}\)"):
        opened.scores(features)
    with pytest.raises(DataError, match=rf"row 2, field '{facts.table}': .*\(got {value}\)"):
        opened.tables[facts.table].rows(torch.tensor([0, value]))


OPENED: dict[str, Bundle] = {}


def test_first_and_last_rows_no_ids_and_no_rows_are_taken(bundle: str):
    opened = Bundle(bundle)
    features = features_of(opened)
    for place, facts in enumerate(opened.manifest.features):
        features = with_value(with_value(features, 6 * place, 0), 6 * place + 1, facts.num_rows - 1)
    assert opened.scores(features).isfinite().all()
    assert opened.scores(features_of(opened, 3, 0)).shape == (3,)
    assert opened.scores(features_of(opened, 0)).shape == (0,)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_shard_is_refused_by_name(bundle: str, tmp_path: Path, damage: str):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    shard = copy / "tables/t_item_id/shard-00001.safetensors"
    shard.unlink() if damage == "gone" else shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match="shard-00001"):
        Bundle(str(copy))


def test_a_manifest_of_another_version_is_refused(bundle: str, tmp_path: Path):
    content = json.loads(Path(bundle, "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(DataError, match=r"another version \(got 99\)"):
        read_manifest(str(tmp_path))


def test_a_bundle_that_scores_otherwise_is_not_written(run_folder: str, tmp_path: Path):
    copy, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run_folder, copy)
    file = next((copy / "predictions").glob("test-*"))
    table = pq.read_table(file)
    at = table.schema.get_field_index("score")
    moved = table.set_column(at, table.schema.field(at), [table["score"].to_numpy() * np.float32(0.9)])
    pq.write_table(moved, file)
    with pytest.raises(CheckpointError, match="away from the run's predictions"):
        export.run(ExportConfig(run=str(copy), out=str(out)))
    assert not out.exists()
    assert not [name for name in tmp_path.iterdir() if name.name not in ("run",)]


def test_a_damaged_dataset_is_refused_before_anything_is_written(
    run_folder: str, problem: dict[str, Any], tmp_path: Path
):
    out, file = tmp_path / "out", Path(problem["dataset"], "content/text.npy")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=r"text.npy: damaged"):
            export.run(ExportConfig(run=run_folder, out=str(out)))
    finally:
        file.write_bytes(content)
    assert not out.exists()


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="not a finished rank run"):
        export.run(ExportConfig(run=str(tmp_path), out=str(tmp_path / "out")))


def test_item_ids_alone_need_no_map(problem: dict[str, Any], tmp_path: Path):
    config = rank_config(problem, str(tmp_path / "item"), representation="item", train={"max_epochs": 1})
    rank.run(config)
    export.run(ExportConfig(run=config.run, out=str(tmp_path / "bundle")))
    assert read_manifest(str(tmp_path / "bundle")).semantic_ids is None


def on_two_ranks(problem: dict[str, Any], folder: str) -> None:
    rules = {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}
    rank.run(tuned(problem, folder, train={"max_epochs": 2}, sharding=rules))


@pytest.mark.ranks
def test_a_tuned_run_of_two_ranks_exports_its_own_tokenizer_and_map(tmp_path: Path):
    problem = write_tuned_problem(str(tmp_path / "problem"))
    run_ranks(on_two_ranks, 2, problem, str(tmp_path / "run"))
    out = str(tmp_path / "bundle")
    assert export.run(ExportConfig(run=str(tmp_path / "run"), out=out)).largest_difference < 1e-5
    ids = SemanticIds.load(f"{out}/semantic_ids.parquet")
    assert ids.checksum() == SemanticIds.load(f"{tmp_path}/run/semantic_ids.parquet").checksum()
    assert load_tokenizer(f"{out}/tokenizer").codebook_sizes == ids.sizes
    assert {"quality.json", "tokenizer/config.json"} <= {facts.file for facts in read_manifest(out).tokenizer}


def test_frozen_codes_bring_the_tokenizer_that_gave_them_and_assign_takes_the_bundle(tmp_path: Path):
    problem = write_tuned_problem(str(tmp_path / "problem"))
    config = rank_config(problem, str(tmp_path / "run"), train={"max_epochs": 1})
    rank.run(config)
    out = str(tmp_path / "bundle")
    export.run(ExportConfig(run=config.run, out=out))
    dataset = Dataset(problem["dataset"])
    columns: dict[str, Any] = {"item_id": [f"new-{row}" for row in range(dataset.facts.num_items)]}
    for name in ("text", "image"):
        pairs = zip(dataset.content(name).astype(np.float32), dataset.content_mask(name), strict=True)
        columns[name] = pa.array([row if has else None for row, has in pairs], pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    asked = {"tokenizer": out, "items": str(tmp_path / "new.parquet"), "out": str(tmp_path / "new")}
    assign.run(assign.AssignConfig.model_validate(asked))
    given = SemanticIds.load(str(tmp_path / "new/semantic_ids.parquet")).codes
    np.testing.assert_array_equal(given, SemanticIds.load(f"{out}/semantic_ids.parquet").codes)


@pytest.mark.parametrize("place", ["run", "above"])
def test_a_folder_of_something_else_is_not_replaced(run_folder: str, place: str):
    out = run_folder if place == "run" else str(Path(run_folder).parent)
    with pytest.raises(DataError, match="something else than a bundle"):
        export.run(ExportConfig(run=run_folder, out=out))
    assert Path(run_folder, "metrics.json").exists()


def test_a_run_of_another_job_and_other_data_are_refused(run_folder: str, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text(json.dumps({**metrics, "dataset_checksum": "other"}))
    with pytest.raises(DataError, match="not the data that the run was trained on"):
        export.run(ExportConfig(run=str(copy), out=str(tmp_path / "out")))
    made = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**made, "job": "tokenize"}))
    with pytest.raises(DataError, match="not a rank run"):
        export.run(ExportConfig(run=str(copy), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
