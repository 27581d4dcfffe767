"""Bundles of two exports, what changed between them, and a whole file of users answered by one."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.exported_kinds import IDS_ALONE
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import write_problem
from tests.jobs.retrieving import retrieve_config
from trec_semid.core.errors import DataError
from trec_semid.data.schema import Dataset
from trec_semid.jobs import bundle, export, predict, retrieve
from trec_semid.jobs.export import ExportConfig
from trec_semid.jobs.predict import PredictConfig
from trec_semid.serving.engine import Filters, RetrieveAsked, open_engine


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("problem")))


@pytest.fixture(autouse=True)
def bundles_are_checked_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    export_quickly(monkeypatch)


@pytest.fixture(scope="module")
def runs(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same retriever after an epoch, and after two: of yesterday and of today."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {**IDS_ALONE}
    given = problem | {"semantic_ids": changes.pop("semantic_ids")}
    places = [str(folder / str(epochs)) for epochs in (1, 2)]
    for epochs, place in enumerate(places, start=1):
        retrieve.run(retrieve_config(given, place, train={"max_epochs": epochs}, **changes))
    return places


@pytest.fixture(scope="module")
def bundles(runs: list[str]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        export_quickly(patch)
        return [export.run(ExportConfig(run=run, out=f"{run}-bundle", shard_rows=15)).out for run in runs]


def contents(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_delta_makes_the_bundle_of_today_of_that_of_yesterday(bundles: list[str], tmp_path: Path):
    told = bundle.diff(*bundles, str(tmp_path / "delta"))
    assert told.same > 3  # ids, histories and the reader stay
    assert told.num_bytes < told.target_bytes
    bundle.apply(bundles[0], str(tmp_path / "delta"), str(tmp_path / "made"))
    assert contents(str(tmp_path / "made")) == contents(bundles[1])
    made, today = open_engine(str(tmp_path / "made")), open_engine(bundles[1])
    asked = [RetrieveAsked(None, made.examples(3), 10)]
    assert made.version == today.version != open_engine(bundles[0]).version
    assert made.retrieve(asked)[0].items == today.retrieve(asked)[0].items
    assert bundle.check(str(tmp_path / "made")) == bundle.show(bundles[1])


def test_a_delta_is_a_folder_of_its_own(bundles: list[str], tmp_path: Path):
    with pytest.raises(DataError, match="lies inside the data that is read"):
        bundle.diff(*bundles, bundles[0])
    bundle.diff(*bundles, str(tmp_path / "delta"))
    with pytest.raises(DataError, match="lies inside the data that is read"):
        bundle.apply(bundles[0], str(tmp_path / "delta"), str(tmp_path / "delta"))
    bundle.diff(*reversed(bundles), str(tmp_path / "back"))
    with pytest.raises(DataError, match="this is a delta between bundles"):
        bundle.apply(bundles[0], str(tmp_path / "delta"), str(tmp_path / "back"))
    with pytest.raises(DataError, match="no delta here"):
        bundle.apply(bundles[0], bundles[1], str(tmp_path / "made"))


def answers(folder: Path) -> list[dict[str, Any]]:
    return [
        row for file in sorted((folder / "predictions").iterdir()) for row in pq.read_table(file).to_pylist()
    ]


@pytest.fixture(scope="module")
def asked(problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of the dataset, and one whom nobody knows."""
    users = Dataset(problem["dataset"]).users(["user_id"])["user_id"].to_pylist()[:30]
    place = tmp_path_factory.mktemp("asked") / "users.parquet"
    pq.write_table(pa.table({"user_id": [*users, "a stranger"]}), place, row_group_size=12)
    return place


def test_users_of_a_file_get_the_lists_of_the_engine(bundles: list[str], asked: Path, tmp_path: Path):
    forbidden = tmp_path / "forbidden.parquet"
    engine = open_engine(bundles[1])
    out = engine.examples(2)
    pq.write_table(pa.table({"item_id": list(out)}), forbidden)
    config = {"bundle": bundles[1], "asked": str(asked), "out": str(tmp_path / "out"), "n": 7}
    filters = {"forbidden": str(forbidden)}
    done = predict.run(PredictConfig.model_validate(config | {"filters": filters, "batch_rows": 5}))
    rows = answers(tmp_path / "out")
    expected = engine.retrieve(
        [RetrieveAsked(row["user_id"], None, 7, Filters(forbidden=out)) for row in rows]
    )
    assert [tuple(row["items"]) for row in rows] == [answer.items for answer in expected]
    assert [row["basis"] for row in rows] == [*["stored"] * 30, "popularity"]
    assert done.counts == {"asked/rows": 31, "asked/stored": 30, "asked/popularity": 1}
    assert not {item for row in rows for item in row["items"]} & set(out)


def test_a_run_is_exported_first(runs: list[str], bundles: list[str], asked: Path, tmp_path: Path):
    config = {"asked": str(asked), "n": 5}
    predict.run(PredictConfig.model_validate(config | {"run": runs[0], "out": str(tmp_path / "of run")}))
    predict.run(
        PredictConfig.model_validate(config | {"bundle": bundles[0], "out": str(tmp_path / "of bundle")})
    )
    assert answers(tmp_path / "of run") == answers(tmp_path / "of bundle")
    assert bundle.check(str(tmp_path / "of run-bundle")).run == runs[0]


def test_a_bundle_that_has_no_probabilities_is_refused(bundles: list[str], tmp_path: Path):
    pq.write_table(pa.table({"user_id": ["u"], "item": ["i"]}), tmp_path / "pairs.parquet")
    given = {"bundle": bundles[0], "asked": str(tmp_path / "pairs.parquet"), "out": str(tmp_path / "out")}
    with pytest.raises(Exception, match="retriever"):
        predict.run(PredictConfig.model_validate(given | {"columns": {"item": "item"}}))
