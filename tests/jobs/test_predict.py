"""Every row of the input is answered once, in its order, whoever answers and however often it is killed."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ranks import run_ranks
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.jobs import predict
from trec_semid.jobs.predict import PredictConfig
from trec_semid.serving.engine import RankAnswer, RankAsked, RetrieveAnswer, RetrieveAsked

ITEMS = [f"i{number}" for number in range(40)]


class ByHand:
    """An engine whose answers a person can work out: item k of a user stands at (k + len(user)) % 40."""

    version = "abc"
    manifest: Any = SimpleNamespace(dataset="drawn", dataset_checksum="d" * 64)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def retrieve(self, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        self.batches.append(len(asked))
        return [self._list(each) for each in asked]

    def _list(self, asked: RetrieveAsked) -> RetrieveAnswer:
        first = len(asked.user or "") + len(asked.history or ())
        order = [ITEMS[(first + at) % len(ITEMS)] for at in range(len(ITEMS))]
        allowed = asked.filters.allowed
        items = [item for item in order if allowed is None or item in allowed]
        items = tuple(item for item in items if item not in asked.filters.forbidden)[: asked.n]
        scores = np.arange(len(items), 0, -1, dtype=np.float32)
        return RetrieveAnswer(
            items, scores, "stored" if asked.history is None else "history", 0, np.arange(len(items))
        )

    def rank(self, asked: Sequence[RankAsked]) -> list[RankAnswer]:
        return [RankAnswer(self._scores(each), "stored", 0) for each in asked]

    def _scores(self, asked: RankAsked) -> np.ndarray[Any, Any]:
        numbers = [int(item[1:]) if item in ITEMS else np.nan for item in asked.candidates]
        return np.array(numbers, np.float32) / 40 + len(asked.user or "")

    def close(self) -> None:
        return


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ByHand:
    one = ByHand()
    monkeypatch.setattr(predict, "open_engine", lambda *_, **__: one)
    return one


def write_users(path: Path, num_users: int = 23, **options: Any) -> list[str]:
    users = ["u" * (number % 7 + 1) for number in range(num_users)]
    histories = [None if number % 3 == 0 else ITEMS[: number % 4] for number in range(num_users)]
    table = pa.table(
        {"user_id": users, "seen": pa.array(histories, pa.list_(pa.string())), "day": list(range(num_users))}
    )
    pq.write_table(table, path, **options)
    return users


def config(folder: Path, **more: Any) -> PredictConfig:
    given = {"bundle": "somewhere", "asked": str(folder / "users.parquet"), "out": str(folder / "out")}
    return PredictConfig.model_validate(given | more)


def answers(folder: Path) -> list[dict[str, Any]]:
    """All rows, in the order of files."""
    files = sorted((folder / "predictions").iterdir())
    assert [file.name for file in files] == [f"part-{number:06d}.parquet" for number in range(len(files))]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("batch_rows", [1, 4, 1000])
def test_every_row_has_its_list_whatever_the_row_groups_and_batches(
    tmp_path: Path, engine: ByHand, batch_rows
):
    users = write_users(tmp_path / "users.parquet", row_group_size=6)
    columns = {"history": "seen", "keep": ["day"]}
    done = predict.run(config(tmp_path, n=5, columns=columns, batch_rows=batch_rows))
    rows = answers(tmp_path / "out")
    assert [(row["user_id"], row["day"]) for row in rows] == list(zip(users, range(23), strict=True))
    assert len(list((tmp_path / "out/predictions").iterdir())) == 4
    for number, row in enumerate(rows):
        history = None if number % 3 == 0 else tuple(ITEMS[: number % 4])
        expected = ByHand().retrieve([RetrieveAsked(users[number], history, 5)])[0]
        assert (tuple(row["items"]), row["basis"]) == (expected.items, expected.basis)
        assert row["scores"] == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert done.counts == {"asked/rows": 23, "asked/history": 15, "asked/stored": 8}
    assert max(engine.batches) <= batch_rows


def test_lists_hold_what_filters_allow(tmp_path: Path, engine: ByHand):
    write_users(tmp_path / "users.parquet")
    pq.write_table(pa.table({"item_id": ITEMS[:10]}), tmp_path / "allowed.parquet")
    pq.write_table(pa.table({"item_id": ITEMS[3:5]}), tmp_path / "forbidden.parquet")
    filters = {name: str(tmp_path / f"{name}.parquet") for name in ("allowed", "forbidden")}
    predict.run(config(tmp_path, filters=filters))
    for row in answers(tmp_path / "out"):
        assert set(row["items"]) == {"i0", "i1", "i2", "i5", "i6", "i7", "i8", "i9"}


@pytest.mark.parametrize("lists", [False, True])
def test_items_have_probabilities_and_unknown_ones_have_none(tmp_path: Path, engine: ByHand, *, lists: bool):
    users = ["a", "a", "bb", "bb", "bb", "a"]
    items = ["i4", "i8", "nothing", "i0", "i39", "i20"]
    expected = [1.1, 1.2, None, 2.0, 2.975, 1.5]
    table = pa.table({"user_id": users, "item": [[one, "i2"] for one in items] if lists else items})
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=4)
    predict.run(config(tmp_path, columns={"candidates" if lists else "item": "item"}, batch_rows=3))
    rows = answers(tmp_path / "out")
    assert [row["user_id"] for row in rows] == users
    scores = [row["scores"][0] if lists else row["score"] for row in rows]
    assert [score is None for score in scores] == [score is None for score in expected]
    assert [s for s in scores if s is not None] == pytest.approx([e for e in expected if e is not None])
    if lists:
        assert [row["scores"][1] for row in rows] == pytest.approx([len(user) + 0.05 for user in users])


def test_a_killed_job_goes_on_with_the_files_it_lacks(tmp_path: Path, engine: ByHand, monkeypatch):
    write_users(tmp_path / "users.parquet", row_group_size=5)
    plain = ByHand.retrieve

    def dies(self: ByHand, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        if len(self.batches) == 3:
            raise KeyboardInterrupt
        return plain(self, asked)

    monkeypatch.setattr(ByHand, "retrieve", dies)
    with pytest.raises(KeyboardInterrupt):
        predict.run(config(tmp_path))
    monkeypatch.setattr(ByHand, "retrieve", plain)
    assert not (tmp_path / "out/metrics.json").exists()
    assert len(list((tmp_path / "out/predictions").glob("part-??????.parquet"))) == 3
    engine.batches.clear()
    done = predict.run(config(tmp_path))
    assert (engine.batches, done.counts["asked/rows"]) == ([5, 3], 23)
    predict.run(config(tmp_path, out=str(tmp_path / "other")))
    assert answers(tmp_path / "out") == answers(tmp_path / "other")
    engine.batches.clear()
    assert predict.run(config(tmp_path)).counts == done.counts
    assert engine.batches == []


def test_answers_to_another_input_or_bundle_are_not_mixed(tmp_path: Path, engine: ByHand):
    write_users(tmp_path / "users.parquet")
    predict.run(config(tmp_path))
    engine.version = "another"
    with pytest.raises(ConfigError, match="by another bundle"):
        predict.run(config(tmp_path))
    engine.version = "abc"
    write_users(tmp_path / "users.parquet", 9)
    with pytest.raises(ConfigError, match="another input"):
        predict.run(config(tmp_path))
    with pytest.raises(ConfigError, match="n: 100 there, 7 now"):
        predict.run(config(tmp_path, n=7))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"run": "x"}, "name one of the two"),
        ({"bundle": None}, "name one of the two"),
        ({"columns": {"item": "a", "candidates": "b"}}, "or neither for lists"),
        ({"columns": {"user": None}}, "whom is it for"),
        ({"columns": {"item": "a"}, "search": "exact"}, "are of lists"),
        ({"columns": {"item": "a"}, "filters": {"fields": {"brand": ["x"]}}}, "are of lists"),
    ],
)
def test_a_config_that_asks_for_two_things_is_refused(tmp_path: Path, given: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **given)


@pytest.mark.parametrize(
    ("table", "columns", "words"),
    [
        ({"user": ["a"]}, {}, "user_id"),
        ({"user_id": ["a"], "h": ["x"]}, {"history": "h"}, "lists of ids"),
        ({"user_id": ["a", "b"], "h": [["x"], ["y", None]]}, {"history": "h"}, "row 2, field 'h': an id"),
        ({"user_id": ["a", "b"], "h": [["x", ""], ["y"]]}, {"history": "h"}, "row 1, field 'h': an id"),
        ({"user_id": ["a", "b"], "item": ["x", None]}, {"item": "item"}, "row 2, field 'item'"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path, engine: ByHand, table, columns, words):
    pq.write_table(pa.table(table), tmp_path / "users.parquet")
    with pytest.raises(DataError, match=words):
        predict.run(config(tmp_path, columns=columns))
    assert not (tmp_path / "out/metrics.json").exists()
    assert list((tmp_path / "out").glob("predictions/part-??????.parquet")) == []


def test_null_histories_of_a_slice_stay_null(tmp_path: Path, engine: ByHand):
    lists = pa.array([["i1"], None, [], ["i2", "i3"]], pa.list_(pa.string())).slice(1)
    pq.write_table(pa.table({"user_id": ["a", "b", "c"], "h": lists}), tmp_path / "users.parquet")
    predict.run(config(tmp_path, columns={"history": "h"}))
    assert [row["basis"] for row in answers(tmp_path / "out")] == ["stored", "history", "history"]
    assert [row["items"][0] for row in answers(tmp_path / "out")] == ["i1", "i1", "i3"]


def on_ranks(folder: str) -> dict[str, int]:
    predict.open_engine = lambda *_, **__: ByHand()  # pyright: ignore[reportAttributeAccessIssue]
    return predict.run(config(Path(folder), out=f"{folder}/ranks")).counts


@pytest.mark.ranks
def test_ranks_write_what_one_writes(tmp_path: Path, engine: ByHand):
    write_users(tmp_path / "users.parquet", row_group_size=4)
    alone = predict.run(config(tmp_path)).counts
    assert run_ranks(on_ranks, 3, str(tmp_path)) == [alone] * 3
    assert answers(tmp_path / "ranks") == answers(tmp_path / "out")
