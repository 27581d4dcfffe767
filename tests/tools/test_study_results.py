"""Finished runs of a study become rows of a file of results."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import study_results
from tools.tables import Results

WORDS = ["--command", "trec-semid study x.toml", "--dataset", "a=A", "--dataset", "a-long=B"]


def write_run(folder: Path, *, job: str = "retrieve", commit: str = "abc1234def", **metrics: float) -> None:
    folder.mkdir(parents=True)
    done: dict[str, Any] = {"job": job, "dataset_checksum": "d" * 64, "seed": int(folder.name[5:] or 0)}
    done |= {"commits": [commit], "wall_s": 120.0, "counts": {"parameters/dense": 7, "test/users": 3}}
    (folder / "metrics.json").write_text(json.dumps(done | {"metrics": metrics}))
    if job == "evaluate":  # writes no log
        return
    log = [
        {"step": 20, "train/samples_per_s": 10.0},
        {"step": 20, "epoch": 2.0, "valid/ndcg@10": 0.5},
        {"step": 40, "train/samples_per_s": 30.0},
        {"event": "finish", "step": 40, "best_step": 20},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


def test_rows_are_means_over_seeds_with_what_their_lists_say(tmp_path: Path):
    for seed, value in enumerate([0.1, 0.3]):
        write_run(tmp_path / f"s/a-x/seed-{seed}", **{"test/recall@10": value, "test/other": 1.0})
        write_run(tmp_path / f"s/a-x-lists/seed-{seed}", job="evaluate", **{"test/categories@10": 4.0})
    write_run(tmp_path / "s/a-long-y/seed-0", **{"test/recall@10": 0.9})
    (tmp_path / "s/a-long-y/seed-0/log.jsonl").unlink()
    write_run(tmp_path / "s/a-codes/seed-0", job="tokenize", **{"test/recall@10": 0.9})
    file = tmp_path / "r.json"
    before = {"label": "X", "source": "an earlier one"}
    old = {"schema_version": 1, "title": "T", "origins": {}, "rows": {"gone": before}, "tables": {}}
    file.write_text(json.dumps(old))
    assert study_results.main([str(tmp_path / "s"), str(file), *WORDS]) == 0
    results = Results.model_validate_json(file.read_text())
    assert set(results.rows) == {"gone", "a-x", "a-long-y"}
    row = results.rows["a-x"]
    assert row.seeds == [0, 1]
    assert row.metrics["test/recall@10"].mean == pytest.approx(0.2)
    assert row.metrics["test/recall@10"].sd == pytest.approx(0.02**0.5)
    told = {key: metric.mean for key, metric in row.metrics.items() if key != "test/recall@10"}
    costs = {"minutes": 2.0, "samples_per_s": 20.0, "best_epoch": 2.0, "parameters/dense": 7.0}
    assert told == {"test/categories@10": 4.0, **costs}
    assert results.origins[row.origin or ""].dataset == "A"
    assert set(results.rows["a-long-y"].metrics) == {"test/recall@10", "minutes", "parameters/dense"}
    assert results.origins[results.rows["a-long-y"].origin or ""].dataset == "B"


def test_lists_of_other_seeds_are_left_out_and_other_data_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for seed in (0, 1):
        write_run(tmp_path / f"s/a-x/seed-{seed}", **{"test/recall@10": 0.1})
    write_run(tmp_path / "s/a-x-lists/seed-1", job="evaluate", **{"test/categories@10": 4.0})
    file = tmp_path / "r.json"
    study_results.main([str(tmp_path / "s"), str(file), *WORDS])
    assert "other seeds than a-x" in capsys.readouterr().err
    assert "test/categories@10" not in Results.model_validate_json(file.read_text()).rows["a-x"].metrics
    other = tmp_path / "s/a-x/seed-1/metrics.json"
    other.write_text(other.read_text().replace("d" * 64, "e" * 64))
    with pytest.raises(SystemExit, match="several data sets"):
        study_results.main([str(tmp_path / "s"), str(file), *WORDS])


def test_a_row_names_all_commits_of_its_runs_and_needs_a_data_set(tmp_path: Path):
    for seed, commit in enumerate(["fed4321aa", "abc1234bb"]):
        write_run(tmp_path / f"s/a-x/seed-{seed}", commit=commit, **{"test/recall@10": 0.1})
    file = tmp_path / "r.json"
    with pytest.raises(SystemExit, match="give --dataset a-x=TEXT"):
        study_results.main([str(tmp_path / "s"), str(file), "--command", "c", "--dataset", "b=B"])
    assert not file.exists()
    study_results.main([str(tmp_path / "s"), str(file), *WORDS])
    assert [each.commit for each in Results.model_validate_json(file.read_text()).origins.values()] == [
        "abc1234, fed4321"
    ]
