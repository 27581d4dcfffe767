import json
import math
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from trec_semid.core.config import Config, load_config
from trec_semid.core.errors import DataError
from trec_semid.core.paths import join, read_bytes, write_bytes
from trec_semid.core.versions import code_commit, package_versions
from trec_semid.runtime import runs
from trec_semid.runtime.owners import check_owner
from trec_semid.runtime.runs import RunFolder, command_line


class Job(Config):
    run: str = "r"
    steps: int = 1


@pytest.fixture(params=["path", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "path" else f"memory://{uuid.uuid4().hex}/run"


def finish(run: RunFolder, auc: float = 0.5) -> None:
    run.write_metrics({"test/auc": auc}, seed=1, dataset="d", dataset_checksum="c", counts={"test/rows": 3})


def test_started_run_holds_its_config_and_how_it_was_made(uri: str):
    run = RunFolder(uri, "rank")
    run.start(Job(steps=5))
    assert load_config(Job, [run.path("config.toml")]) == Job(steps=5)
    made = run.read_json("run.json")
    assert made["job"] == "rank"
    assert made["versions"]["torch"]
    assert made["commit"]


def test_run_is_finished_only_after_its_metrics_and_only_for_its_config(uri: str):
    run = RunFolder(uri, "rank")
    assert not run.is_finished(Job())
    run.start(Job())
    assert not run.is_finished(Job())
    finish(run)
    assert run.is_finished(Job())
    assert not run.is_finished(Job(steps=2))


class LaterJob(Job):
    """What a later version reads, with a key more."""

    warmth: float = 0.0


def test_a_run_that_does_not_say_a_key_counts_by_the_keys_default(uri: str):
    run = RunFolder(uri, "rank")
    run.start(Job(steps=5))
    finish(run)
    assert run.is_finished(LaterJob(steps=5))
    assert not run.is_finished(LaterJob(steps=5, warmth=0.1))
    assert not run.is_finished(LaterJob(steps=4))
    write_bytes(run.path("config.toml"), b"speed = 1")
    assert not run.is_finished(LaterJob(steps=5))


def test_another_config_begun_in_the_folder_never_looks_finished(uri: str):
    run = RunFolder(uri, "rank")
    run.start(Job())
    finish(run)
    run.start(Job(steps=2))  # and is killed before it ends
    assert not run.is_finished(Job(steps=2))
    assert not run.is_finished(Job())


def test_metrics_hold_what_readers_are_promised(uri: str):
    run = RunFolder(uri, "rank")
    finish(run)
    content = run.read_json("metrics.json")
    assert set(content) == {
        "job", "dataset", "dataset_checksum", "seed", "commit", "commits", "commands", "versions", "wall_s",
        "wall_s_last", "metrics", "counts",
    }  # fmt: skip
    assert content["metrics"] == {"test/auc": 0.5}
    assert content["counts"] == {"test/rows": 3}
    assert content["wall_s"] >= 0


def test_numbers_of_numpy_are_plain_and_those_without_meaning_left_out(uri: str):
    run = RunFolder(uri, "rank")
    metrics = {"a": np.float32(0.5), "b": math.nan, "c": math.inf}
    run.write_metrics(metrics, seed=0, dataset="d", dataset_checksum="c", counts={"n": np.int64(2)})  # pyright: ignore[reportArgumentType]
    assert run.read_json("metrics.json")["metrics"] == {"a": 0.5}
    assert b'"n": 2' in read_bytes(run.path("metrics.json"))


def test_json_with_nan_is_refused_rather_than_written(uri: str):
    run = RunFolder(uri, "rank")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("x.json", {"x": math.nan})


def test_missing_and_broken_json_are_data_errors_with_the_file(uri: str):
    run = RunFolder(uri, "rank")
    with pytest.raises(DataError, match="no such file") as caught:
        run.read_json("metrics.json")
    assert caught.value.file == join(uri, "metrics.json")
    write_bytes(run.path("metrics.json"), b"{")
    with pytest.raises(DataError, match="not JSON"):
        run.read_json("metrics.json")


@pytest.mark.parametrize(
    ("program", "environment", "shown"),
    [
        ("/x/.venv/bin/trec-semid", {}, "trec-semid rank 'my file.toml'"),
        ("/x/trec_semid/cli/main.py", {}, "trec-semid rank 'my file.toml'"),
        (
            "/x/trec_semid/cli/main.py",
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc-per-node 2 -m trec_semid.cli.main rank 'my file.toml'",
        ),
        (
            "/x/trec_semid/cli/main.py",
            {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"},
            "torchrun --nnodes 2 --nproc-per-node 8 -m trec_semid.cli.main rank 'my file.toml'",
        ),
        ("mine.py", {}, "mine.py rank 'my file.toml'"),
    ],
)
def test_command_is_one_that_works_in_any_checkout(program: str, environment: dict[str, str], shown: str):
    argv = mock.patch.object(runs.sys, "argv", [program, "rank", "my file.toml"])
    with argv, mock.patch.dict(runs.os.environ, environment):
        assert command_line() == shown


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions_in(folder: Path) -> Path:
    """Put the module into another checkout and return its path."""
    target = folder / "pkg/versions.py"
    target.parent.mkdir(parents=True)
    target.write_bytes(Path(sys.modules[code_commit.__module__].__file__ or "").read_bytes())
    return target


def commit_said_by(module: Path) -> str:
    code = f"import runpy; print(runpy.run_path({str(module)!r})['code_commit']())"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commit_is_the_checkouts_and_says_when_files_differ(tmp_path: Path):
    module = versions_in(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit_said_by(module) == head
    module.write_text(module.read_text() + "\n")
    assert commit_said_by(module) == head + "+changes"


def test_package_installed_inside_somebody_elses_checkout_has_no_commit(tmp_path: Path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    assert commit_said_by(versions_in(tmp_path / ".venv")) == "unknown"


def test_versions_name_python_and_the_packages_that_change_numbers():
    versions = package_versions()
    assert {"python", "torch", "torchrec", "numpy"} <= set(versions)
    assert json.dumps(versions)


@pytest.mark.parametrize("num_writes", [0, 1, 2, 3])
@pytest.mark.parametrize("before", [None, Job(steps=1), Job(steps=2)])
def test_a_run_that_was_killed_at_its_start_can_be_started_again(
    uri: str, num_writes: int, before: Job | None, monkeypatch: pytest.MonkeyPatch
):
    if before:
        RunFolder(uri, "rank").start(before)
    left = num_writes

    def write_until_killed(place: str, content: bytes) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        write_bytes(place, content)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_bytes", write_until_killed)
        with suppress(KeyboardInterrupt):
            RunFolder(uri, "rank").start(Job(steps=2))
    check_owner(uri, "rank")
    again = RunFolder(uri, "rank")
    again.start(Job(steps=2))
    assert again.is_of(Job(steps=2))
    assert not again.is_of(Job(steps=1))
