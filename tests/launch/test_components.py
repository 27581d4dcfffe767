import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torchx.runner import get_runner
from torchx.specs import AppDef
from torchx.specs.file_linter import validate

from launch import components
from tests.datasets import write_small_dataset
from trec_semid.checkpoints.folder import latest_step, read_facts
from trec_semid.data.schema import SPLITS, Dataset
from trec_semid.sharding.plan import TablePlan
from trec_semid.tokenizers.semantic_ids import SemanticIds

ROOT = Path(__file__).resolve().parents[2]
FILE = "launch/components.py"
TOKENIZE = """
[tokenizer]
kind = "rq_kmeans"
codebook_size = 4
levels = 2
"""
RANK = """
representation = "both"
tables.dim = 8
history.max_len = 8
model = { layer_dims = [16, 8], gate_dim = 8 }
optimizers.dense.learning_rate = 0.01
optimizers.tables.learning_rate = 0.1
train = { batch_size = 250, max_epochs = 3 }
"""
SCHEDULER_FILES = sorted(ROOT.glob("configs/torchx/*.torchxconfig"))


def command_of(app: AppDef) -> str:
    return app.roles[0].args[1]


@pytest.mark.parametrize("verb", ["tokenize", "rank"])
def test_torchx_accepts_the_component_and_describes_every_flag(verb: str):
    assert validate(str(ROOT / FILE), verb) == []


@pytest.mark.parametrize("verb", ["tokenize", "rank"])
def test_a_component_runs_its_verb_under_torchrun_with_the_arguments_as_they_stand(verb: str):
    app = getattr(components, verb)("a.toml", "b.toml", "--set", "note=two words", j="2x8", gpu=8)
    assert command_of(app).endswith(
        f"--nnodes 2 --nproc_per_node 8 --tee 3 --role '' "
        f"-m trec_semid.cli.main {verb} a.toml b.toml --set 'note=two words'"
    )
    role = app.roles[0]
    assert (app.name, role.name, role.num_replicas, role.resource.gpu) == (verb, verb, 2, 8)


def test_ranks_have_one_thread_and_a_store_of_their_own_unless_told_otherwise():
    plain = components.rank("a.toml").roles[0].env
    assert (plain["OMP_NUM_THREADS"], plain["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"]) == ("1", "1")
    own = components.rank("a.toml", env={"OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO"}).roles[0].env
    assert (own["OMP_NUM_THREADS"], own["NCCL_DEBUG"]) == ("4", "INFO")
    assert "NCCL_DEBUG" not in components.RANK_ENVIRONMENT


def test_resources_retries_and_mounts_reach_the_role():
    role = components.rank(
        "a.toml", cpu=96, mem_mb=1000, max_retries=3, mounts=["type=bind", "src=/data", "dst=/d", "readonly"]
    ).roles[0]
    assert (role.resource.cpu, role.resource.memMB, role.max_retries) == (96, 1000, 3)
    assert [(mount.src_path, mount.dst_path, mount.read_only) for mount in role.mounts] == [
        ("/data", "/d", True)
    ]


def dry_run(scheduler: str, options: dict[str, Any], *flags: str) -> str:
    with get_runner("tests") as runner:
        info = runner.dryrun_component(f"{ROOT}/{FILE}:rank", [*flags, "--", "a.toml"], scheduler, options)
    return str(info)


def test_slurm_gets_one_torchrun_a_node():
    script = dry_run("slurm", {"partition": "gpu"}, "-j", "3x8", "--gpu", "8")
    assert script.count("--gpus-per-task=8") == 3
    assert script.count("--nnodes 3 --nproc_per_node 8") == 3
    assert "OMP_NUM_THREADS=1" in script


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes") is None, reason='needs pip install "torchx[kubernetes]"'
)
def test_kubernetes_gets_one_pod_a_node():
    manifest = dry_run("kubernetes", {"queue": "default"}, "-j", "2x8", "--gpu", "8")
    assert manifest.count("nvidia.com/gpu") >= 2


@pytest.mark.parametrize("file", [path.name for path in SCHEDULER_FILES])
def test_scheduler_files_name_flags_that_the_component_has(file: str):
    import configparser

    settings = configparser.ConfigParser()
    settings.read(ROOT / "configs/torchx" / file)
    flags = set(components.rank.__annotations__) - {"args", "return"}
    assert set(settings["component:launch/components.py:rank"]) <= flags


def run_torchx(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["torchx", "run", "-s", "local_cwd", "-cfg", f"log_dir={folder}", *words],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.ranks
@pytest.mark.slow
def test_torchx_runs_tokenize_and_then_rank_on_two_ranks(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "dataset"))
    tokenize, rank = tmp_path / "tokenize.toml", tmp_path / "rank.toml"
    tokenize.write_text(TOKENIZE)
    rank.write_text(RANK)
    for verb, file, more in (
        ("tokenize", tokenize, []),
        ("rank", rank, [f"--set=semantic_ids={tmp_path}/tokenize", "--set=seed=3"]),
    ):
        paths = [f"--set=dataset={dataset}", f"--set=run={tmp_path}/{verb}"]
        done = run_torchx(f"{FILE}:{verb}", "-j", "1x2", "--", str(file), *paths, *more, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]

    codes = SemanticIds.load(f"{tmp_path}/tokenize/semantic_ids.parquet")
    assert (codes.codes.shape, codes.sizes) == ((40, 2), (4, 4))
    plan = TablePlan.from_json((tmp_path / "rank" / "plan.json").read_text())
    assert plan.cluster.world_size == 2
    finished = json.loads((tmp_path / "rank" / "metrics.json").read_text())
    for split in SPLITS[1:]:
        parts = [tmp_path / "rank" / "predictions" / f"{split}-rank-{number}.parquet" for number in (0, 1)]
        rows = sorted(row for part in parts for row in pq.read_table(part)["row"].to_pylist())
        assert rows == list(range(Dataset(dataset).facts.splits[split].events))
        assert 0 < finished["metrics"][f"{split}/auc"] < 1
    step = latest_step(f"{tmp_path}/rank/checkpoints")
    assert step is not None
    assert read_facts(f"{tmp_path}/rank/checkpoints", step).world_size == 2


@pytest.mark.ranks
def test_a_job_that_fails_under_torchx_fails_the_command_and_says_why(tmp_path: Path):
    failed = run_torchx(f"{FILE}:tokenize", "-j", "1x1", "--", "no-such.toml", folder=tmp_path)
    assert failed.returncode != 0
    assert "no-such.toml: no such file" in failed.stderr + failed.stdout
