"""`daily`: a day is tested before it is learnt, nothing of a later day counts, and it goes on as it was."""

import csv
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from tests.data.test_by_day import DAY_S, FIRST
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import about, run_until
from tests.ranks import run_ranks
from trec_semid.checkpoints.folder import best_step
from trec_semid.checkpoints.load import read_tensors
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.evaluation.resampling import Draws, RunReader, ranker_metrics
from trec_semid.evaluation.strata import training_strata
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.jobs import daily, export, rank
from trec_semid.jobs.daily import DailyConfig
from trec_semid.jobs.export import ExportConfig
from trec_semid.metrics.intervals import interval
from trec_semid.serving.engine import RankAsked, RetrieveAsked, open_engine
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds

RANK = {
    "representation": "item",
    "history": {"max_len": 5},
    "tables": {"dim": 4},
    "model": {"layer_dims": [8], "gate_dim": 4, "dropout": 0.1},
    "optimizers": {"tables": {"learning_rate": 0.1}},
    "train": {"batch_size": 40, "max_epochs": 2},
    "checkpoints": {"every_steps": 2},
}
RETRIEVE = {
    "sequences": {"max_len": 6},
    "tables": {"dim": 8},
    "model": {"kind": "sasrec"},
    "train": {"batch_size": 8, "max_epochs": 2},
}
STILL = {"dense": {"learning_rate": 1e-30}, "tables": {"learning_rate": 1e-30}}


def write_log(folder: Path, *, has_future: bool = False, without: int | None = None) -> None:
    """Write 8 days of a shop that grows by two items and a user a day; a future is all else."""
    rng = np.random.default_rng(3)
    items = [(f"i{row}", float(rng.lognormal(2)), rng.normal(size=6)) for row in range(30)]
    events = []
    for second in np.sort(rng.integers(0, 8 * DAY_S, 900)):
        item = rng.integers(10 + 2 * (second // DAY_S))
        user = rng.integers(8 + second // DAY_S)
        if second // DAY_S != without:
            events.append((f"u{user}", f"i{item}", int((user + item) % 3 == 0), FIRST + second))
    if has_future:
        items.insert(4, ("future", 1e9, rng.normal(size=6)))
        events += [(f"u{at % 9}", "future", at % 2, FIRST + 7 * DAY_S + at) for at in range(90)]
        events.insert(0, ("new", "i2", 1, FIRST + 7 * DAY_S))
    folder.mkdir(exist_ok=True)
    with (folder / "events.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("user", "sku", "label", "time"), *events])
    columns = [pa.array(column) for column in list(zip(*items, strict=True))[:2]]
    vectors = pa.array([each[2] for each in items], pa.list_(pa.float32()))
    pq.write_table(pa.table([*columns, vectors], ["sku", "price", "vector"]), folder / "items.parquet")


def write_config(folder: Path, name: str, values: dict[str, Any]) -> list[str]:
    (folder / f"{name}.toml").write_text(tomli_w.dumps(values))
    return [str(folder / f"{name}.toml")]


def config_of(folder: Path, run: str = "run", **changes: Any) -> DailyConfig:
    columns = {"user": "user", "item": "sku", "rating": "label", "timestamp": "time"}
    prepare = {
        "name": "shop",
        "source": {
            "kind": "tables",
            "interactions": {"path": f"{folder}/events.csv", **columns},
            "items": {"path": f"{folder}/items.parquet", "id": "sku"},
        },
        "items": {"fields": {"price": {"kind": "number", "column": "price", "edges": [5.0, 10.0]}}},
        "filter": {"min_item_events": 1},
        "label": {"kind": "given"},
        "content": {"vector": {"kind": "column", "column": "vector"}},
    }
    verb = changes.get("verb", "rank")
    more = changes.pop("more", {})
    trained = {**(RANK if verb == "rank" else RETRIEVE), **more}
    values: dict[str, Any] = {
        "run": str(folder / run),
        "first_day": "2024-01-05",
        "last_day": "2024-01-07",
        "prepare": {"files": write_config(folder, "prepare", prepare)},
        "train": {"files": write_config(folder, f"{verb}-{run}", trained)},
        "num_draws": 100,
    }
    return DailyConfig.model_validate(values | changes)


def told(run: str) -> list[dict[str, Any]]:
    """Return the days without what no two runs have in common."""
    days = json.loads(Path(run, "days.json").read_text())["days"]
    return [{key: value for key, value in day.items() if key not in ("seconds", "waited_s")} for day in days]


def last_state(run: str) -> dict[str, np.ndarray]:
    checkpoint = Path(told(run)[-1]["checkpoint"])
    step = int(checkpoint.name.removeprefix("step-"))
    return {name: value.numpy() for name, value in read_tensors(str(checkpoint.parent), step, "").items()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("daily")
    write_log(folder)
    daily.run(config_of(folder))
    return folder


def test_nothing_of_a_later_day_changes_a_number(shop: Path, tmp_path: Path):
    days, state = told(str(shop / "run")), last_state(str(shop / "run"))
    assert [day["day"] for day in days] == ["2024-01-05", "2024-01-06", "2024-01-07"]
    assert [day["new_items"] for day in days] == [2, 2, 2]
    # The same place, since a dataset says where it lies: what differs is the log alone.
    shutil.copytree(shop, tmp_path / "before")
    for day in ("2024-01-06", "2024-01-07"):
        shutil.rmtree(shop / "run/data" / day)
    shutil.rmtree(shop / "run/days")
    (shop / "run/days.json").unlink()
    write_log(shop, has_future=True)
    try:
        daily.run(config_of(shop))
        assert told(str(shop / "run")) == days
        after = last_state(str(shop / "run"))
        assert all((after[name] == value).all() for name, value in state.items())
        assert after.keys() == state.keys()
    finally:
        write_log(shop)


def test_a_day_is_tested_with_the_model_of_the_day_before(shop: Path, tmp_path: Path):
    days = told(str(shop / "run"))
    values = {
        **RANK,
        "dataset": days[2]["dataset"],
        "run": str(tmp_path / "still"),
        "start_from": days[1]["checkpoint"],
        "optimizers": STILL,
        "train": {"max_epochs": 1, "batch_size": 500},
    }
    rank.run(rank.RankConfig.model_validate(values))
    expected, ours = (read_predictions(run, "test") for run in (values["run"], days[2]["run"]))
    np.testing.assert_allclose(ours.score, expected.score, atol=1e-6)
    assert (ours.item_row == expected.item_row).all()
    assert days[2]["start_from"] == days[1]["checkpoint"]
    calibration = days[2]["metrics"]["calibration"]
    assert calibration["value"] == pytest.approx(ours.score.mean() / ours.label.mean(), rel=1e-5)
    assert calibration["low"] < calibration["value"] < calibration["high"]
    assert {"auc", "gauc", "log_loss"} <= days[2]["metrics"].keys()


def test_slices_of_a_day_count_all_that_came_before_it(shop: Path):
    day = told(str(shop / "run"))[0]
    metrics = json.loads(Path(day["run"], "metrics.json").read_text())["metrics"]
    names = [name for name in metrics if name.startswith("test/auc/")]
    drawn = RunReader().draw_rankers([day["run"]], ranker_metrics(names), {"test": Draws(100)})
    assert {"test/auc/popularity_tail", "test/auc/activity_low"} <= drawn.keys()
    for name, each in drawn.items():  # but for slices of so few users that a draw may have none
        assert interval([each]).value == pytest.approx(metrics[name], rel=1e-5), name
    dataset = Dataset(day["dataset"])
    with_valid, without = training_strata(dataset, test_then_train=True), training_strata(dataset)
    assert (with_valid.items != without.items).any()


@pytest.fixture(scope="module")
def gated_run(shop: Path) -> str:
    more = {"features": {"id_min_events": 3}}  # items of the day before have as many, but none further back
    daily.run(config_of(shop, "gated", more=more, last_day="2024-01-05"))
    return told(str(shop / "gated"))[-1]["run"]


def test_an_exported_ranker_scores_with_the_weights_and_the_gate_after_the_day(
    gated_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export_quickly(monkeypatch)
    assert export.run(ExportConfig(run=gated_run, out=str(tmp_path / "bundle"))).largest_difference < 1e-5
    config = load_config(rank.RankConfig, [f"{gated_run}/config.toml"], of_run=True)
    dataset = Dataset(config.dataset)
    read = dataset, config.features, config.history, config.representation, None
    data = RankingData(*read, test_then_train=True)
    assert (data.train_counts()[1] >= 3).sum() > (RankingData(*read).train_counts()[1] >= 3).sum()
    rows, items = data.rows("test", "online"), dataset.item_ids.to_pylist()
    users = dataset.users(["user_id"])["user_id"].to_pylist()
    assert rows.histories
    asked = [
        RankAsked(
            users[user],
            tuple(items[each] for each in rows.histories.take(np.array([row]))[0]),
            {},
            (items[item],),
        )
        for row, (user, item) in enumerate(zip(rows.users, rows.items, strict=True))
    ]
    answers = open_engine(str(tmp_path / "bundle")).rank(asked)
    after, before = (read_predictions(run, "test").score for run in (f"{gated_run}/after", gated_run))
    np.testing.assert_allclose([answer.scores[0] for answer in answers], after, atol=1e-5)
    assert abs(after - before).max() > 1e-3


def test_an_exported_retriever_lists_as_it_did_after_the_day(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export_quickly(monkeypatch)
    daily.run(config_of(shop, "short", verb="retrieve", last_day="2024-01-05"))
    retrieve_run = told(str(shop / "short"))[-1]["run"]
    out = str(tmp_path / "bundle")
    assert export.run(ExportConfig(run=retrieve_run, out=out)).largest_difference <= 1e-4
    (listed,) = open_engine(out).retrieve([RetrieveAsked(None, ("i1", "i2"), 5)])
    assert len(listed.items) == 5
    after, before = (read_target_positions(run, "test") for run in (f"{retrieve_run}/after", retrieve_run))
    assert (after[-1] != before[-1]).any()


def test_a_run_that_is_stopped_on_a_day_goes_on_as_if_it_had_not(shop: Path, monkeypatch: pytest.MonkeyPatch):
    config = config_of(shop, "stopped")
    daily.run(config.model_copy(update={"last_day": date(2024, 1, 5)}))
    run_until(monkeypatch, config, 5, daily.run)  # on the second day, after a checkpoint
    assert [day["day"] for day in told(config.run)] == ["2024-01-05"]
    daily.run(config)
    names = ("events", "new_users", "new_items", "metrics", "known_items", "known_users")
    pairs = zip(told(str(shop / "stopped")), told(str(shop / "run")), strict=True)
    for ours, theirs in pairs:
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    expected, state = last_state(str(shop / "run")), last_state(str(shop / "stopped"))
    assert all((state[name] == value).all() for name, value in expected.items())
    page = (shop / "stopped/days.html").read_text()
    assert page.count("2024-01-06: ") == len(told(config.run)[1]["metrics"])
    # The same command once more changes nothing; a later last day goes on.
    before = (shop / "stopped/days.json").read_bytes()
    daily.run(config)
    assert (shop / "stopped/days.json").read_bytes() == before
    assert best_step(f"{shop}/stopped/days/2024-01-05/checkpoints") is None  # keep_last = 2


def test_a_missing_day_is_skipped_by_name_or_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_log(tmp_path, without=5)  # 2024-01-06
    daily.run(config_of(tmp_path))
    days = told(str(tmp_path / "run"))
    assert [day["state"] for day in days] == ["done", "missing", "done"]
    assert "no event" in days[1]["problem"]
    assert days[2]["start_from"] == days[0]["checkpoint"]
    assert '"event": "missing", "day": "2024-01-06"' in (tmp_path / "run/log.jsonl").read_text()
    stop = config_of(tmp_path, "other", missing={"then": "stop"}, first_day="2024-01-06")
    with pytest.raises(DataError, match=r"2024-01-06 is missing: .*missing.then = 'skip'"):
        daily.run(stop)
    sign = tmp_path / "2024-01-06.done"
    waits = {"then": "stop", "sign": f"{tmp_path}/{{day}}.done", "wait_s": 60, "poll_s": 1}
    slept: list[float] = []

    def arrive(seconds: float) -> None:
        slept.append(seconds)
        write_log(tmp_path)
        sign.touch()

    monkeypatch.setattr(daily.time, "sleep", arrive)
    daily.run(config_of(tmp_path, "late", missing=waits, first_day="2024-01-06", last_day="2024-01-06"))
    assert slept == [1]
    assert [day["state"] for day in told(str(tmp_path / "late"))] == ["done"]


def test_days_missing_at_the_end_are_asked_again_and_a_step_needs_every_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_log(tmp_path)
    slept: list[float] = []
    monkeypatch.setattr(daily.time, "sleep", slept.append)
    signs = {"sign": f"{tmp_path}/{{day}}.done"}
    asked = {"first_day": "2024-01-03", "last_day": "2024-01-08", "num_days": 2}
    (tmp_path / "2024-01-03.done").touch()
    config = config_of(tmp_path, missing=signs, **asked)
    daily.run(config)  # a sign of the first day alone
    assert [day["state"] for day in told(config.run)] == ["missing"] * 3
    assert f"{tmp_path}/2024-01-04.done is not there" in told(config.run)[0]["problem"]
    for day in ("05", "06"):
        (tmp_path / f"2024-01-{day}.done").touch()
    daily.run(config_of(tmp_path, missing={**signs, "wait_s": 0.01, "poll_s": 60}, **asked))
    assert [day["state"] for day in told(config.run)] == ["missing", "done", "missing"]
    assert 0 < min(slept) <= max(slept) <= 0.01  # less than a poll, but not nothing
    for day in ("04", "07", "08"):
        (tmp_path / f"2024-01-{day}.done").touch()
    daily.run(config)
    assert [day["state"] for day in told(config.run)] == ["missing", "done", "done"]


def test_a_copy_goes_on_in_its_own_folder_and_with_its_own_configs(shop: Path):
    began = config_of(shop, "began", last_day="2024-01-05", keep_last=1)
    daily.run(began)
    shutil.copytree(began.run, shop / "copy")
    before = sorted(str(path) for path in Path(began.run).rglob("*"))
    files = {"train": {"files": began.train.files}, "keep_last": 1, "last_day": "2024-01-06"}
    daily.run(config_of(shop, "copy", **files))
    assert sorted(str(path) for path in Path(began.run).rglob("*")) == before
    for entry in told(str(shop / "copy")):
        assert all(entry[key].startswith(f"{shop}/copy/") for key in ("run", "checkpoint", "dataset"))
    assert best_step(f"{shop}/copy/days/2024-01-05/checkpoints") is None
    assert told(str(shop / "copy"))[1]["metrics"] == told(str(shop / "run"))[1]["metrics"]
    write_config(
        shop, "rank-began", {**RANK, "tables": {"dim": 8}, "train": {"batch_size": 40, "max_epochs": 3}}
    )
    with pytest.raises(ConfigError, match=r"rank: tables.dim: 4 there, 8 now; .*max_epochs: 2 there, 3 now"):
        daily.run(config_of(shop, "copy", **{**files, "last_day": "2024-01-07"}))


def codes_of(folder: Path, policy: str) -> dict[str, Any]:
    tokenizer = {"tokenizer": {"kind": "rq_kmeans", "codebook_size": 4, "levels": 2}}
    return {"policy": policy, "tokenize": {"files": write_config(folder, "tokenize", tokenizer)}, "every": 2}


@pytest.mark.parametrize("policy", ["keep", "retrain"])  # which appends on the second day
def test_codes_of_new_items_come_as_the_policy_says(shop: Path, policy: str):
    daily.run(config_of(shop, policy, codes=codes_of(shop, policy), more={"representation": "both"}))
    days = told(str(shop / policy))
    maps = [SemanticIds.load(f"{day['run']}/semantic_ids.parquet") for day in days]
    added = [len(maps[at + 1].item_ids) - len(maps[at].item_ids) for at in range(2)]
    assert added == [2, 2]
    assert days[0]["codes"]["moved_share"] is None
    assert days[1]["codes"]["moved_share"] == 0
    new = ~np.isin(maps[1].item_ids.to_pylist(), maps[0].item_ids.to_pylist())
    is_missing = (maps[1].codes == np.array(maps[1].sizes)).all(1)
    assert (is_missing == (new & (policy == "keep"))).all()
    assert [day["codes"]["generation"] for day in days] == {
        "keep": [1, 1, 1],
        "retrain": [1, 2, 3],
    }[policy]
    assert days[2]["codes"]["tables"] == ("begun anew" if policy == "retrain" else "same")
    assert (days[2]["codes"]["moved_share"] > 0) == (policy == "retrain")


def test_retrievers_go_through_days_as_well(shop: Path):
    daily.run(config_of(shop, "retrieve", verb="retrieve"))
    days = told(str(shop / "retrieve"))
    assert [day["state"] for day in days] == ["done"] * 3
    for day in days:
        assert 0 <= day["metrics"]["recall@10"]["low"] <= day["metrics"]["recall@10"]["value"] <= 1
    assert days[0]["metrics"]["recall@10"]["value"] < days[2]["metrics"]["recall@10"]["value"]


def test_a_day_of_new_users_alone_teaches_a_retriever_nothing_and_is_skipped(tmp_path: Path):
    write_log(tmp_path, without=5)
    with (tmp_path / "events.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("nobody", "i1", 1, FIRST + 5 * DAY_S))
    daily.run(config_of(tmp_path, verb="retrieve", first_day="2024-01-06"))
    first, second = told(str(tmp_path / "run"))
    assert first["state"] == "missing"
    assert "no user of the day has an event before it" in first["problem"]
    assert second["state"] == "done"


def on_rank(config: DailyConfig) -> None:
    daily.run(config)


@pytest.mark.ranks
def test_two_ranks_come_to_what_one_does(shop: Path):
    row_wise = {"sharding": {"tables": {"t_*": {"sharding_types": ["row_wise"]}}}}
    model = {**RANK["model"], "dropout": 0.0}
    asked: dict[str, Any] = {"codes": codes_of(shop, "append"), "last_day": "2024-01-06"}
    more = {"model": model, "representation": "both"}
    one = config_of(shop, "one", more=more, **asked)
    daily.run(one)
    two = config_of(shop, "two", more={**more, **row_wise}, **asked)
    run_ranks(on_rank, 2, two)
    for days in zip(told(two.run), told(one.run), strict=True):
        ours, theirs = ({name: each["value"] for name, each in day["metrics"].items()} for day in days)
        assert ours == about(theirs)


def test_configs_that_cannot_be_used_are_told_before_a_day_begins(shop: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"rank-bad.toml: representatoin: .*did you mean"):
        daily.run(config_of(shop, "bad", more={"representatoin": "item"}))
    assert not (shop / "bad").exists() or not [*(shop / "bad").glob("*.json")]
    with pytest.raises(ValueError, match=r"put \{day\} into it"):
        config_of(shop, dataset="data/one")
    with pytest.raises(ValueError, match="set last_day later"):
        config_of(shop, last_day="2024-01-04")
    (tmp_path / "x").mkdir()
    elsewhere = config_of(shop, "elsewhere", prepare=None, dataset=f"{shop}/run/data/{{day}}", num_days=2)
    with pytest.raises(DataError, match=r"not the dataset of 2024-01-05.*num_days = 2"):
        daily.run(elsewhere)
