import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datasets import write_small_dataset
from tests.report.fake_runs import write_rank_run, write_tokenize_run
from trec_semid.core.errors import DataError
from trec_semid.report.arms import group_arms
from trec_semid.report.build import KINDS
from trec_semid.report.collect import collect_runs, is_same_place, read_run


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_small_dataset(str(tmp_path / "data"), num_users=20)


@pytest.fixture
def rank_run(tmp_path: Path, dataset: str) -> str:
    return write_rank_run(str(tmp_path / "rank"), dataset)


def test_a_rank_run_brings_the_tokenize_run_it_read(tmp_path: Path, dataset: str):
    tokenizer = write_tokenize_run(str(tmp_path / "mmq"), dataset)
    for place in (tokenizer, f"{tokenizer}/semantic_ids.parquet", f"{tokenizer}/"):
        run = write_rank_run(str(tmp_path / "rank"), dataset, "both", semantic_ids=place)
        collection = collect_runs([run])
        assert [made.uri for made in collection.tokenizers] == [tokenizer]
        made = collection.tokenizer_of(collection.recommenders[0])
        assert made is not None
        assert made.uri == tokenizer


def test_a_run_given_twice_counts_once(rank_run: str):
    assert len(collect_runs([rank_run, f"{rank_run}/"]).recommenders) == 1


def test_one_folder_written_in_two_ways_is_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_same_place("runs/a", f"{tmp_path}/runs/a/")
    assert is_same_place("file:///runs/a", "/runs/a")
    assert not is_same_place("runs/a", "runs/b")


def test_a_tokenize_run_that_is_gone_is_said_in_a_note(tmp_path: Path, dataset: str):
    run = write_rank_run(str(tmp_path / "rank"), dataset, "both", semantic_ids=str(tmp_path / "gone"))
    collection = collect_runs([run])
    assert collection.tokenizers == []
    assert "gone" in collection.notes[0]


def test_a_tokenize_run_made_anew_in_place_is_not_taken_for_what_a_rank_run_read(
    tmp_path: Path, dataset: str
):
    kinds = ("mmq", "rq_kmeans")
    for kind in kinds:
        write_tokenize_run(str(tmp_path / kind), dataset, kind)
    old, same = (
        write_rank_run(str(tmp_path / f"on-{kind}"), dataset, "both", semantic_ids=str(tmp_path / kind))
        for kind in kinds
    )
    write_tokenize_run(str(tmp_path / "mmq"), dataset, "mmq", seed=9)
    collection = collect_runs([old, same])
    by_name = {run.name: collection.tokenizer_of(run) for run in collection.recommenders}
    assert by_name["on-mmq"] is None
    assert by_name["on-rq_kmeans"] is not None
    assert "on-mmq was trained with other semantic IDs than" in collection.notes[0]
    assert len(collection.notes) == 1
    assert {arm.arm.name for arm in group_arms(collection, KINDS["rank"].arms)} == {
        "both · codes since replaced",
        "both · rq_kmeans",
    }


def test_runs_on_different_datasets_are_refused_and_named(tmp_path: Path, rank_run: str):
    other = write_small_dataset(str(tmp_path / "other"), num_users=20, seed=1)
    stranger = write_rank_run(str(tmp_path / "stranger"), other)
    with pytest.raises(DataError, match=r"different datasets.*'rank'.*'stranger'") as error:
        collect_runs([rank_run, stranger])
    assert error.value.exit_code == 2


def test_a_dataset_that_the_runs_did_not_read_is_refused(tmp_path: Path, rank_run: str):
    other = write_small_dataset(str(tmp_path / "other"), num_users=20, seed=1)
    with pytest.raises(DataError, match="not the one that run 'rank' read"):
        collect_runs([rank_run], other)


def test_a_dataset_that_was_moved_is_found_where_it_is_said_to_lie(
    tmp_path: Path, dataset: str, rank_run: str
):
    moved = shutil.move(dataset, str(tmp_path / "moved"))
    with pytest.raises(DataError, match="no dataset here"):
        collect_runs([rank_run])
    assert collect_runs([rank_run], moved).dataset.uri == moved


def _without(name: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        target = run / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def _with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text(text) and None


def _with_job(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"job": "prepare"}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shutil.rmtree, "no such run folder"),
        (_without("config.toml"), "not a run folder: it has no config.toml"),
        (_without("run.json"), "not a run folder: it has no run.json"),
        (_without("metrics.json"), "not finished: it has no metrics.json"),
        (_without("predictions"), "not finished: it has no predictions"),
        (_without("plan.txt"), "not finished: it has no plan.txt"),
        (_without("log.jsonl"), "not finished: it has no log.jsonl"),
        (_with_text("metrics.json", "{"), "not JSON"),
        (_with_text("metrics.json", "{}"), "field 'dataset_checksum': missing key"),
        (_with_text("run.json", "[]"), "field 'job': missing key"),
        (_with_text("config.toml", "= 1"), "not TOML"),
        (_with_job, "another job's run"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(rank_run: str, spoil: Callable[[Path], None], told: str):
    spoil(Path(rank_run))
    with pytest.raises(DataError, match=told) as error:
        read_run(rank_run)
    assert rank_run in str(error.value)
    assert error.value.exit_code == 2


def test_an_unfinished_run_is_told_with_the_command_that_finishes_it(rank_run: str):
    Path(rank_run, "metrics.json").unlink()
    command = json.loads(Path(rank_run, "run.json").read_text())["command"]
    with pytest.raises(DataError) as error:
        read_run(rank_run)
    assert command in str(error.value)


def test_runs_are_called_by_what_their_paths_do_not_share(tmp_path: Path, dataset: str):
    places = [f"{tmp_path}/runs/{arm}/seed-{seed}" for arm in ("item", "itemised") for seed in (0, 1)]
    runs = [write_rank_run(place, dataset, label=place[-15:]) for place in places]
    names = [run.name for run in collect_runs(runs).recommenders]
    assert names == ["item/seed-0", "item/seed-1", "itemised/seed-0", "itemised/seed-1"]
    assert [run.name for run in collect_runs(runs[:1]).recommenders] == ["seed-0"]


def test_no_run_at_all_is_refused():
    with pytest.raises(DataError, match="no run to report"):
        collect_runs([])
