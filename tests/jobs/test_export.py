import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import rank_config, write_problem
from tests.jobs.test_rank_finetune import tuned
from tests.jobs.test_rank_finetune import write_problem as write_tuned_problem
from tests.ranks import run_ranks
from trec_semid.checkpoints.bundle_files import read_manifest
from trec_semid.core.config import load_saved
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.source import Codes
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.jobs import assign, export, rank
from trec_semid.jobs.export import ExportConfig
from trec_semid.jobs.rank import RankConfig
from trec_semid.serving.engine import AssignAsked, RankAsked, open_engine
from trec_semid.serving.reader import Reader
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.training.matched_codes import verify_codes


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("export")))


@pytest.fixture(scope="module")
def run_folder(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    features = {"id_min_events": 42}  # which a third of the items have
    config = rank_config(problem, str(tmp_path_factory.mktemp("runs") / "both"), features=features)
    rank.run(config)
    return config.run


@pytest.fixture(scope="module")
def bundle(run_folder: str) -> str:
    out = f"{run_folder}-bundle"
    with pytest.MonkeyPatch.context() as patch:
        # This ranker is scored by an interpreter of its own, which has no torchrec.
        export_quickly(patch, in_forks=False)
        done = export.run(ExportConfig(run=run_folder, out=out, shard_rows=25))
    assert done.largest_difference < 1e-5
    return out


@pytest.fixture(autouse=True)
def bundles_are_checked_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of `test_export_retrievers.py` is scored by an interpreter of its own."""
    export_quickly(monkeypatch)


def rows_of_test(problem: dict[str, Any], run_folder: str) -> RankingData:
    ranked = load_saved(RankConfig, f"{run_folder}/config.toml")
    dataset = Dataset(problem["dataset"])
    ids = SemanticIds.load(problem["semantic_ids"], dataset.item_ids)
    codes = Codes(ids.codes, ids.sizes)
    return RankingData(dataset, ranked.features, ranked.history, ranked.representation, codes)


def test_requests_by_ids_score_like_the_run(bundle: str, run_folder: str, problem: dict[str, Any]):
    predicted = read_predictions(run_folder, "test")
    rows = rows_of_test(problem, run_folder).rows("test", "online")
    items, users = (
        Dataset(problem["dataset"]).item_ids,
        Dataset(problem["dataset"]).users(["user_id"])["user_id"],
    )
    asked = []
    for row in range(len(rows.labels)):
        history, _ = rows.histories.take(np.array([row]))
        names = tuple(items[int(item)].as_py() for item in history)
        candidate = items[int(rows.items[row])].as_py()
        # An id that nobody knows stands between, and counts for nothing but itself.
        asked.append(RankAsked(users[int(rows.users[row])].as_py(), names, {}, ("nobody's", candidate)))
    answers = open_engine(bundle).rank(asked)
    np.testing.assert_allclose([answer.scores[1] for answer in answers], predicted.score, atol=1e-4)
    assert len(answers) > 100
    assert predicted.score.std() > 0.05
    assert all(np.isnan(answer.scores[0]) and answer.unknown == 1 for answer in answers)
    assert {answer.basis for answer in answers} == {"history"}


def test_a_known_user_needs_no_history_and_an_unknown_one_is_said(
    bundle: str, run_folder: str, problem: dict[str, Any]
):
    data, engine = rows_of_test(problem, run_folder), open_engine(bundle)
    events, items = data.events, tuple(Dataset(problem["dataset"]).item_ids.to_pylist())
    liked = [items[row] for row in events.items[(events.users == 5) & (events.labels > 0.5)]]
    stored, given = engine.rank(
        [RankAsked("u005", None, {}, items), RankAsked("u005", tuple(liked[-8:]), {}, items)]
    )
    # A place in a batch may round otherwise, as matrix products add in another order there.
    np.testing.assert_allclose(stored.scores, given.scores, rtol=1e-6)
    assert (stored.basis, given.basis, stored.unknown) == ("stored", "history", 0)
    strange, nobody = engine.rank([RankAsked("who", None, {}, items), RankAsked(None, None, {}, items)])
    np.testing.assert_allclose(strange.scores, nobody.scores, rtol=1e-6)
    assert (strange.basis, strange.unknown, nobody.unknown) == ("unknown_user", 1, 0)
    assert np.abs(strange.scores - stored.scores).max() > 0.01


def test_context_stands_for_what_is_stored_of_a_user(bundle: str, problem: dict[str, Any]):
    engine = open_engine(bundle)
    values = engine.bundle.field("user", "age").values.ids_of(range(4))
    ages = Dataset(problem["dataset"]).users(["age"])["age"].to_pylist()
    user = next(row for row, age in enumerate(ages) if age)
    own, name = ages[user], f"u{user:03d}"
    asked = [RankAsked(name, None, {"age": value}, ("i001", "i002")) for value in values]
    plain, *answers = engine.rank([RankAsked(name, None, {}, ("i001", "i002")), *asked])
    # Number 0 is what is missing, so value k - 1 has number k.
    np.testing.assert_allclose(answers[own - 1].scores, plain.scores, rtol=1e-6)
    assert len({tuple(answer.scores) for answer in answers}) > 1
    with pytest.raises(DataError, match=r"field 'context.height': no user field.*\. There are: age"):
        engine.rank([RankAsked("u005", None, {"height": "tall"}, ("i001",))])


def test_requests_are_answered_alike_together_and_alone(bundle: str):
    engine = open_engine(bundle)
    asked = [
        RankAsked("u001", None, {}, ("i003",)),
        RankAsked(None, ("i001",), {}, ()),
        RankAsked("u002", ("i004", "i005"), {}, ("i001", "i009")),
    ]
    together = engine.rank(asked)
    for request, answer in zip(asked, together, strict=True):
        np.testing.assert_allclose(engine.rank([request])[0].scores, answer.scores, atol=1e-6)
    assert engine.rank([]) == []


def test_shards_hold_the_rows_the_manifest_says(bundle: str):
    manifest = read_manifest(bundle)
    users = next(table for table in manifest.tables if table.name == "t_user_id")
    assert [(shard.first_row, shard.num_rows) for shard in users.shards] == [(0, 25), (25, 25), (50, 10)]
    rows = [safetensors.torch.load_file(f"{bundle}/{shard.file}")["weight"] for shard in users.shards]
    table = Reader(bundle).tables["t_user_id"]
    np.testing.assert_array_equal(table.rows(np.arange(60)), torch.cat(rows).numpy())
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


@pytest.mark.parametrize(
    ("kind", "levels", "most"), [("fp16", 1024, 1e-3), ("int8", 255, 0.02), ("int4", 15, 0.2)]
)
def test_smaller_tables_are_close_and_their_change_is_said(
    run_folder: str, bundle: str, tmp_path: Path, kind: Any, levels: int, most: float
):
    out = str(tmp_path / kind)
    done = export.run(ExportConfig(run=run_folder, out=out, tables=kind))
    assert 0 < done.largest_difference < most
    small, full = (Reader(each).tables["t_item_id"] for each in (out, bundle))
    rows = full.rows(np.arange(40))
    spread = np.abs(rows).max() if kind == "fp16" else rows.max(1) - rows.min(1)
    error = np.abs(small.rows(np.arange(40)) - rows).max(1)
    assert (error <= spread / levels * 0.5001 + 1e-7).all()
    predicted, checked = read_predictions(run_folder, "test"), read_manifest(out).checked
    assert checked is not None
    assert checked.num == len(predicted.score)
    before = roc_auc_score(predicted.label, predicted.score)
    assert checked.metrics["auc"] - checked.change["auc"] == pytest.approx(before, abs=1e-9)
    assert done.change == checked.change


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
        open_engine(str(copy))


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
            open_engine(bundle)
        with pytest.raises(DataError):
            verify_codes(bundle)  # what assign and rankers ask
    finally:
        file.write_bytes(content)
    assert read_manifest(bundle)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_shard_is_refused_by_name(bundle: str, tmp_path: Path, damage: str):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    shard = copy / "tables/t_item_id/shard-00001.safetensors"
    shard.unlink() if damage == "gone" else shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match="shard-00001"):
        open_engine(str(copy), verify=False)


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
    with pytest.raises(DataError, match="not a finished run"):
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


class WithTokenizer(NamedTuple):
    """A bundle without histories, of a ranker over the codes of a tokenizer."""

    dataset: Dataset
    bundle: str


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WithTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    problem = write_tuned_problem(str(folder / "problem"))
    config = rank_config(problem, str(folder / "run"), train={"max_epochs": 1})
    rank.run(config)
    with pytest.MonkeyPatch.context() as patch:
        export_quickly(patch)
        export.run(ExportConfig(run=config.run, out=str(folder / "bundle"), histories=False))
    return WithTokenizer(Dataset(problem["dataset"]), str(folder / "bundle"))


def test_frozen_codes_bring_the_tokenizer_that_gave_them_and_assign_takes_the_bundle(
    with_tokenizer: WithTokenizer, tmp_path: Path
):
    dataset, out = with_tokenizer
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
    with pytest.raises(DataError, match="not a run of rank or retrieve"):
        export.run(ExportConfig(run=str(copy), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_content_gets_the_codes_of_the_tokenizer_and_its_nearest_items(with_tokenizer: WithTokenizer):
    dataset, out = with_tokenizer
    engine, tokenizer = open_engine(out), load_tokenizer(f"{out}/tokenizer")
    catalogue = ItemContents(
        {name: dataset.content(name) for name in tokenizer.dims},
        {name: dataset.content_mask(name) for name in tokenizer.dims},
    )
    rows = np.array([0, 1, 4, 9])
    asked = [
        AssignAsked(
            {
                name: tuple(np.asarray(dataset.content(name)[row], np.float32).tolist())
                for name in tokenizer.dims
                if dataset.content_mask(name)[row]
            },
            5,
        )
        for row in rows
    ]
    contents = catalogue.batch(rows)
    with torch.no_grad():
        codes = tokenizer.encode(contents)
        each = [tokenizer.distances(contents, codes, r) for r in range(codes.shape[1])]
    of_items = SemanticIds.load(f"{out}/semantic_ids.parquet", dataset.item_ids).codes
    for at, answer in enumerate(engine.assign(asked)):
        assert answer.codes == tuple(codes[at].tolist())
        distances = []
        for item in of_items:
            far = 0.0
            for r, own in enumerate(codes[at].tolist()):
                if own < len(each[r][at]):
                    code = int(item[r])
                    to = each[r][at][code] if code < len(each[r][at]) else each[r][at].max()
                    far += float(to - each[r][at][own])
            distances.append(far)
        best = sorted(range(len(distances)), key=lambda row: (round(distances[row], 4), row))[:5]
        np.testing.assert_allclose(answer.distances, [distances[row] for row in best], atol=1e-3)
        assert answer.distances[0] <= 1e-5 or rows[at] not in best
    with pytest.raises(DataError, match="field 'sound': no such modality"):
        engine.assign([AssignAsked({"sound": (1.0,)}, 1)])
    with pytest.raises(DataError, match="field 'text': a vector of 2 numbers"):
        engine.assign([AssignAsked({"text": (1.0, 2.0)}, 1)])
    assert engine.manifest.histories is None
    assert engine.rank([RankAsked("u001", None, {}, ("i001",))])[0].basis == "stored"
