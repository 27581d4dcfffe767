import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from torchx.specs import AppDef, BindMount, macros
from torchx.specs.file_linter import get_fn_docstring, validate

from launch import components
from tests.datasets import write_small_dataset
from tests.forked_shell import forked_commands
from tests.launch.golden import CASES, golden, golden_file
from trec_semid.checkpoints.folder import latest_step, read_facts
from trec_semid.data.schema import SPLITS, Dataset
from trec_semid.jobs.verbs import JOBS, is_left_to_the_first
from trec_semid.sharding.plan import TablePlan
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds

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


ON_RANKS = ["tokenize", "rank", "retrieve", "daily", "evaluate", "export", "predict"]
IN_ONE_PROCESS = ["prepare", "assign", "serve", "report", "plan", "study"]


def test_every_verb_that_a_config_runs_has_a_component():
    assert {*ON_RANKS, *IN_ONE_PROCESS} == set(JOBS)


@pytest.mark.parametrize("verb", [*ON_RANKS, *IN_ONE_PROCESS])
def test_torchx_accepts_the_component_and_describes_every_flag(verb: str):
    assert validate(str(ROOT / FILE), verb) == []
    component = getattr(components, verb)
    what, flags = get_fn_docstring(component)
    assert what.endswith(".")
    assert set(flags) == set(inspect.signature(component).parameters)
    assert all(text.strip() for text in flags.values())
    assert {"j", "port", "max_restarts"} & set(flags) == (
        {"j", "port", "max_restarts"} if verb in ON_RANKS else set()
    )


@pytest.mark.parametrize("verb", ON_RANKS)
def test_a_verb_on_ranks_runs_under_torchrun_with_the_arguments_as_they_stand(verb: str):
    app = getattr(components, verb)("a.toml", "b.toml", "--set", "note=two words", j="2x8", gpu=8)
    assert command_of(app).startswith("torchrun --max-restarts 3 --rdzv_backend c10d ")
    assert command_of(app).endswith(
        f"--nnodes 2 --nproc_per_node 8 --tee 3 --role '' "
        f"-m trec_semid.cli.main {verb} a.toml b.toml --set 'note=two words'"
    )
    role = app.roles[0]
    assert (app.name, role.name, role.num_replicas, role.resource.gpu) == (verb, verb, 2, 8)
    assert " --max-restarts 0 " in command_of(getattr(components, verb)("a.toml", max_restarts=0))


@pytest.mark.parametrize("verb", IN_ONE_PROCESS)
def test_a_verb_of_one_process_runs_once_with_the_arguments_as_they_stand(verb: str):
    app = getattr(components, verb)("a.toml", "--set", "note=two words", name="mine/first", cpu=8)
    role = app.roles[0]
    assert (role.entrypoint, role.args) == (
        "python",
        ["-m", "trec_semid.cli.main", verb, "a.toml", "--set", "note=two words"],
    )
    assert (app.name, role.name, role.num_replicas, role.resource.cpu) == ("first", verb, 1, 8)
    assert getattr(components, verb)("a.toml").name == verb


@pytest.mark.filterwarnings("ignore::UserWarning")  # TorchX advises about sites' settings
@pytest.mark.parametrize(("scheduler", "verb"), CASES)
def test_what_would_be_submitted_is_as_agreed(scheduler: str, verb: str):
    # `python -m tests.launch.golden` writes the files anew.
    assert golden(scheduler, verb) == golden_file(scheduler, verb).read_text()


def test_a_pipeline_runs_its_steps_in_order_each_with_a_port_of_its_own():
    app = components.pipeline(
        "prepare=a.toml", "rank=b.toml,c.toml", "export=d.toml", j="2x8", max_restarts=1
    )
    steps = command_of(app).partition("; step ")[2].split(" && step ")
    assert [step.partition(" -m trec_semid.cli.main ")[2] for step in steps] == [
        "prepare a.toml",
        "rank b.toml c.toml",
        "export d.toml",
    ]
    assert all(step.startswith("torchrun --rdzv_conf join_timeout=86400,") for step in steps)
    assert all("--max-restarts 1 " in step and "--nnodes 2" in step for step in steps)
    assert [re.findall(r":(\d+) ", step) for step in steps] == [["29500"], ["29501"], ["29502"]]
    assert (app.name, app.roles[0].name, app.roles[0].num_replicas) == ("pipeline", "pipeline", 2)
    assert validate(str(ROOT / FILE), "pipeline") == []
    _, flags = get_fn_docstring(components.pipeline)
    assert "VERB=CONFIG" in flags["args"]
    assert set(flags) == set(inspect.signature(components.pipeline).parameters)


def test_the_first_rank_alone_does_a_verb_of_one_process(monkeypatch: pytest.MonkeyPatch):
    for rank, verb, is_left in (("0", "report", False), ("1", "report", True), ("1", "export", False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert is_left_to_the_first(verb) == is_left
        assert ("WORLD_SIZE" in os.environ) == (verb == "export")  # the first is no rank of others then


def test_a_pipeline_that_is_told_to_stop_lets_its_step_stop_first(tmp_path: Path):
    """In place of torchrun stands a program that notes its calls, and ends a while after it is told to."""
    stand_in = tmp_path / "torchrun"
    stand_in.write_text(
        f"""#!{sys.executable}
import signal, sys, time
note = open({str(tmp_path / "note")!r}, "a", buffering=1)
def stop(*_):
    time.sleep(0.2)
    note.write("stopped\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
note.write(sys.argv[-2] + "\\n")
time.sleep(0 if "prepare" in sys.argv else 60)
"""
    )
    stand_in.chmod(0o755)
    app = components.pipeline("prepare=a.toml", "rank=b.toml", "export=c.toml", j="1x2")
    command = macros.Values("", "", "id", "0").apply(app.roles[0]).args
    note, path = tmp_path / "note", f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    job = subprocess.Popen(["bash", *command], env={**os.environ, "PATH": path})
    deadline = time.monotonic() + 60
    while not note.exists() or "rank" not in note.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.terminate()
    assert job.wait(60) == 143
    assert note.read_text().splitlines() == ["prepare", "rank", "stopped"]


@pytest.mark.parametrize("word", ["rank", "rank=", "study=a.toml", "renk=a.toml"])
def test_a_word_that_is_no_step_is_refused(word: str):
    with pytest.raises(
        ValueError, match=r"is no step \(expected VERB=CONFIG with a verb of: prepare, tokenize"
    ):
        components.pipeline("prepare=a.toml", word)
    with pytest.raises(ValueError, match="no step"):
        components.pipeline()


def test_ranks_have_one_thread_and_a_store_of_their_own_unless_told_otherwise():
    plain = components.rank("a.toml").roles[0].env
    assert (plain["OMP_NUM_THREADS"], plain["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"]) == ("1", "1")
    own = components.rank("a.toml", env={"OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO"}).roles[0].env
    assert (own["OMP_NUM_THREADS"], own["NCCL_DEBUG"]) == ("4", "INFO")
    assert "NCCL_DEBUG" not in components.RANK_ENVIRONMENT
    assert components.study("a.toml").roles[0].env == {"OMP_NUM_THREADS": "1"}


def test_resources_retries_and_mounts_reach_the_role():
    role = components.rank(
        "a.toml", cpu=96, mem_mb=1000, max_retries=3, mounts=["type=bind", "src=/data", "dst=/d", "readonly"]
    ).roles[0]
    assert (role.resource.cpu, role.resource.memMB, role.max_retries) == (96, 1000, 3)
    assert role.mounts == [BindMount(src_path="/data", dst_path="/d", read_only=True)]


@pytest.mark.parametrize("file", [path.name for path in SCHEDULER_FILES])
def test_scheduler_files_name_flags_that_the_component_has(file: str):
    import configparser

    settings = configparser.ConfigParser()
    settings.read(ROOT / "configs/torchx" / file)
    sections = [name for name in settings.sections() if name.startswith("component:")]
    assert sections
    for section in sections:
        component = getattr(components, section.rpartition(":")[2])
        assert set(settings[section]) <= set(inspect.signature(component).parameters) - {"args"}


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
def test_a_pipeline_on_two_ranks_does_what_comes_before_a_step_that_fails(tmp_path: Path):
    dataset = write_small_dataset(str(tmp_path / "dataset"))
    files = {verb: tmp_path / f"{verb}.toml" for verb in ("tokenize", "rank", "export")}
    files["tokenize"].write_text(f'dataset = "{dataset}"\nrun = "{tmp_path}/codes"\n{TOKENIZE}')
    files["rank"].write_text(
        f'dataset = "{dataset}"\nrun = "{tmp_path}/run"\nsemantic_ids = "{tmp_path}/codes"\n{RANK}'
    )
    files["export"].write_text(f'run = "{tmp_path}/nowhere"\nout = "{tmp_path}/bundle"\n')
    words = ["-j", "1x2", "--max_restarts", "0", "--", *(f"{verb}={file}" for verb, file in files.items())]
    with forked_commands(tmp_path, {"torchrun": "tests.forking_torchrun"}):
        broken = run_torchx(f"{FILE}:pipeline", *words, folder=tmp_path)
    assert broken.returncode != 0
    assert "nowhere" in broken.stderr + broken.stdout

    codes = SemanticIds.load(f"{tmp_path}/codes/semantic_ids.parquet")
    assert (codes.codes.shape, codes.sizes) == ((40, 2), (4, 4))
    plan = TablePlan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.cluster.world_size == 2
    finished = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for split in SPLITS[1:]:
        parts = [tmp_path / "run" / "predictions" / f"{split}-rank-{number}.parquet" for number in (0, 1)]
        rows = sorted(row for part in parts for row in pq.read_table(part)["row"].to_pylist())
        assert rows == list(range(Dataset(dataset).facts.splits[split].events))
        assert 0 < finished["metrics"][f"{split}/auc"] < 1
    step = latest_step(f"{tmp_path}/run/checkpoints")
    assert step is not None
    assert read_facts(f"{tmp_path}/run/checkpoints", step).world_size == 2
