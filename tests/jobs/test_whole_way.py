"""From raw files to the report, each place named by a URI."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import fork_server
from trec_semid.core.config import load_config, toml_value
from trec_semid.core.paths import exists, read_bytes, remove, write_bytes
from trec_semid.jobs.study import StudyConfig
from trec_semid.jobs.study import run as run_study
from trec_semid.jobs.verbs import job_named

PREPARE = """
name = "shop"
label = {{ kind = "given" }}
split = {{ kind = "global_temporal" }}
[source]
kind = "tables"
interactions = {{ path = "{raw}/log.csv", user = "u", item = "i", rating = "y", timestamp = "t" }}
items = {{ path = "{raw}/items.jsonl", id = "i" }}
[content.about]
kind = "attributes"
categories = ["kind", "brand"]
"""
TOKENIZE = """
[tokenizer]
kind = "rq_kmeans"
levels = 2
codebook_size = 4
"""
RANK = """
[tables]
dim = 8
[model]
layer_dims = [8]
gate_dim = 4
[train]
batch_size = 256
max_epochs = 1
"""


def write_raw(raw: str) -> None:
    rng = np.random.default_rng(0)
    items = [{"i": f"i{n}", "kind": f"k{n % 4}", "brand": f"b{n % 3}"} for n in range(24)]
    rows = [f"u{rng.integers(30)},i{rng.integers(24)},{rng.integers(2)},{10**9 + n}" for n in range(1500)]
    write_bytes(f"{raw}/items.jsonl", "\n".join(map(json.dumps, items)).encode())
    write_bytes(f"{raw}/log.csv", "\n".join(["u,i,y,t", *rows]).encode())


def write_configs(folder: Path, raw: str) -> None:
    for name, text in (("prepare", PREPARE.format(raw=raw)), ("tokenize", TOKENIZE), ("rank", RANK)):
        (folder / f"{name}.toml").write_text(text)


def do(verb: str, files: list[str], **values: object):
    job = job_named(verb)
    return job.run(
        load_config(job.config, files, [f"{key}={toml_value(each)}" for key, each in values.items()])
    )


def test_everything_can_lie_in_memory(tmp_path: Path):
    root = "memory://whole-way"
    write_raw(f"{root}/raw")
    write_configs(tmp_path, f"{root}/raw")
    data, codes, ranked = f"{root}/data", f"{root}/codes", f"{root}/both"
    facts = do("prepare", [f"{tmp_path}/prepare.toml"], out=data)
    do("tokenize", [f"{tmp_path}/tokenize.toml"], dataset=data, run=codes)
    rank = {"dataset": data, "run": ranked, "representation": "both", "semantic_ids": codes}
    metrics = do("rank", [f"{tmp_path}/rank.toml"], **rank).metrics
    written = do("report", [], runs=[ranked], out=f"{root}/report")
    numbers = json.loads(read_bytes(f"{root}/report/report.json"))
    assert numbers["dataset"]["checksum"] == facts.checksum
    (arm,) = numbers["arms"]
    assert arm["tokenizer"] == "rq_kmeans"
    (online,) = (scores for scores in numbers["scores"] if scores["protocol"] == "online")
    assert online["metrics"]["auc"][arm["name"]]["value"] == pytest.approx(metrics["test/auc"])
    assert b"</html>" in read_bytes(written.page)
    assert do("rank", [f"{tmp_path}/rank.toml"], **rank).metrics == metrics
    remove(root)


@pytest.mark.slow
def test_a_study_can_lie_behind_a_file_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork_server())
    root = f"file://{tmp_path}"
    write_raw(f"{root}/raw")
    write_configs(tmp_path, f"{root}/raw")
    (tmp_path / "study.toml").write_text(f"""
out = "{root}/study"
seeds = [0]
workers = 1
metrics = ["test/auc"]
[[step]]
name = "data"
verb = "prepare"
files = ["{tmp_path}/prepare.toml"]
[[step]]
name = "codes"
verb = "tokenize"
files = ["{tmp_path}/tokenize.toml"]
set = {{ dataset = "{{data}}" }}
[[step]]
name = "both"
verb = "rank"
seeds = true
files = ["{tmp_path}/rank.toml"]
set = {{ dataset = "{{data}}", representation = "both", semantic_ids = "{{codes}}" }}
[[step]]
name = "report"
verb = "report"
""")
    config = load_config(StudyConfig, [f"{tmp_path}/study.toml"])
    first = run_study(config)
    assert set(first["table"]) == {"both"}
    assert exists(f"{root}/study/report/report.html")
    assert (tmp_path / "study/both/seed-0/metrics.json").exists()
    assert all(row["was_kept"] for row in run_study(config)["runs"])
