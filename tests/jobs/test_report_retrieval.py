"""From the retrieve job to its report, on the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.retrieving import retrieve_config
from trec_semid.cli import main as cli
from trec_semid.jobs import retrieve, tokenize

NAMES = ["popularity", "sasrec · ID + genres + text + image + rq_kmeans"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("report_retrieval")
    problem = {"dataset": write_small_dataset(f"{root}/data"), "semantic_ids": f"{root}/codes"}
    kmeans = {"kind": "rq_kmeans", "codebook_size": 6, "levels": 3}
    fitted = {"dataset": problem["dataset"], "run": problem["semantic_ids"], "tokenizer": kmeans}
    tokenize.run(tokenize.TokenizeConfig.model_validate(fitted))
    folders = [str(root / name) for name in ("popular", "sasrec")]
    retrieve.run(retrieve_config({**problem, "semantic_ids": None}, folders[0], model={"kind": "popularity"}))
    retrieve.run(retrieve_config(problem, folders[1]))
    return folders


@pytest.fixture
def out(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "report"
    words = ["trec-semid", "report", *runs, "--out", str(place), "--set", "replicates=200"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    return place


def test_real_runs_are_reported_from_the_command_line(runs: list[str], out: Path):
    report = json.loads((out / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == NAMES
    assert (report["job"], report["baseline"]) == ("retrieve", "popularity")
    for run, name in zip(runs, NAMES, strict=True):
        stated = json.loads(Path(run, "metrics.json").read_text())["metrics"]
        found = pd.read_parquet(Path(run, "predictions", "test-rank-0.parquet"))
        hits = (found["rank"] <= 10).groupby(found.user_row).mean()
        shown = {key: each[name]["value"] for key, each in report["scores"][0]["metrics"].items()}
        assert shown == pytest.approx({key: stated[f"test/{key}"] for key in shown})
        assert shown["recall@10"] == pytest.approx(np.mean(hits))
    assert [each["arm"] for each in report["learning"]] == NAMES[1:]
    assert list(report["learning"][0]["scalars"]) == ["train/loss", "valid/recall@10", "valid/ndcg@10"]
    assert [each["arms"] for each in report["codebooks"]] == [NAMES[1:]]
    assert "t_item_id" in report["plans"][0]["text"]


def test_page_and_markdown_show_real_titles_and_metrics(out: Path):
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    report = json.loads((out / "report.json").read_text())
    for example in report["examples"]:
        assert all(title.startswith("Item ") and title in page for title in example["history"])
    assert "Recall@N" in page
    assert "Coverage@N" in markdown
    assert "GAUC" not in page
