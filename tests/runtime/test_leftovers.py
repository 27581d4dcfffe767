import os
import subprocess
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from trec_semid.core import paths
from trec_semid.core.paths import (
    exists,
    find_files,
    is_local,
    join,
    remove,
    staged_folder,
    unfinished_note,
    write_bytes,
)
from trec_semid.core.processes import ProcessId, scratch_folder, scratch_prefix, sweep_scratch
from trec_semid.runtime.leftovers import is_unfinished, sweep
from trec_semid.runtime.locks import FolderLock, lock_uri, new_owner
from trec_semid.runtime.own_folder import own_folder

LEFT = [
    "metrics.json.partial-0a1b2c3d",
    "config.json.partial-0a1b2c3d",
    "predictions/test-rank-3.parquet.partial-12345678",
    "checkpoints/step-4/loop.json.partial-deadbeef",
    "tokenizer.partial-0a1b2c3d/weights.safetensors",
    "tokenizer.partial-0a1b2c3d-old/weights.safetensors",
    "log.rank-1.jsonl.partial-00000000",
    "days.json.partial-0a1b2c3d",
    "days.html.partial-0a1b2c3d",
    "profile/rank-0.json.gz.partial-0a1b2c3d",
    "known_users.parquet.partial-0a1b2c3d",
]
FOREIGN = [
    "notes.txt.partial-0a1b2c3d",
    "metrics.json.partial-draft",
    "metrics.json.partial-0a1b2c3d4",
    "metrics.json.partial-0A1B2C3D",
    "metrics-old",
    "run-old/metrics.json",
    "predictions/mine.partial-12345678",
    "metrics.json",
    "checkpoints/step-4/loop.json",
    "x.partial-1/y",
]


@pytest.fixture(params=["path", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "path" else f"memory://left-{uuid.uuid4().hex}"


def fill(folder: str, names: list[str]) -> None:
    for name in names:
        write_bytes(join(folder, name), b"x")


def test_next_owner_removes_what_jobs_left_and_nothing_that_only_looks_like_it(root):
    run = join(root, "run")
    fill(run, LEFT + FOREIGN)
    beside = ["run.partial-0a1b2c3d/a", "run.partial-x/a", "other.partial-0a1b2c3d/a", "run-old/a"]
    fill(root, beside)
    with own_folder(run, "rank", beside=[run]):
        assert find_files(run) == sorted(FOREIGN)
    assert find_files(root) == sorted([*(f"run/{name}" for name in FOREIGN), *beside[1:]])


def test_who_does_not_hold_the_lock_removes_nothing(root):
    run = join(root, "run")
    fill(run, LEFT)
    held = FolderLock(run, new_owner("rank"))
    held.take()
    with pytest.raises(Exception, match="another process works here"), own_folder(run, "rank", beside=[run]):
        pass
    held.release()
    write_bytes(join(run, "run.json"), b'{"job": "retrieve"}')
    with pytest.raises(Exception, match="this is a retrieve run"), own_folder(run, "rank"):
        pass
    assert find_files(run) == sorted([*LEFT, "run.json"])


@pytest.mark.parametrize("inner", ["run", "arm/seed-0"])
@pytest.mark.parametrize("is_alive", [True, False])
def test_what_others_below_still_write_is_left_and_what_dead_ones_left_is_not(root, inner, is_alive):
    study = join(root, "study")
    fill(study, ["study.json.partial-0a1b2c3d", *(f"{inner}/{name}" for name in LEFT), f"{inner}2/{LEFT[0]}"])
    owner = new_owner("rank")
    if not is_alive:
        owner = replace(owner, process=ProcessId("far", "ffffffff", 1, 1.0), beat=0.0)
    write_bytes(lock_uri(join(study, inner)), owner.to_bytes())
    with own_folder(study, "study", beside=[study]):
        left = [name for name in find_files(study) if not name.endswith(".lock")]
    assert left == (sorted(f"{inner}/{name}" for name in LEFT) if is_alive else [])


def test_folder_that_was_being_replaced_comes_back(tmp_path):
    out = str(tmp_path / "data")
    fill(str(tmp_path), ["data.partial-0a1b2c3d-old/dataset.json", "data.partial-0a1b2c3d/dataset.json"])
    sweep(out)
    assert find_files(str(tmp_path)) == ["data/dataset.json"]


@pytest.mark.parametrize("killed_at", ["begin", "replacing", "end"])
@pytest.mark.parametrize("replaces", [False, True])
def test_folder_written_in_place_is_whole_or_free_whenever_its_writer_was_killed(killed_at, replaces):
    root = f"memory://left-{uuid.uuid4().hex}"
    out = join(root, "data")
    if replaces:
        fill(out, ["dataset.json", "old.txt"])
    # A writer that is killed runs no clean-up: what it wrote by then is written here by hand.
    if killed_at == "begin":
        staging = join(root, "data.partial-0a1b2c3d") if replaces else out
        fill(staging, ["items.parquet"])
        if not replaces:
            write_bytes(unfinished_note(out), b"dataset.json")
    elif killed_at == "replacing":
        fill(join(root, "data.partial-0a1b2c3d"), ["dataset.json", "items.parquet"])
        write_bytes(unfinished_note(out), b"dataset.json")
        remove(join(out, "dataset.json"))
        fill(out, ["items.parquet"])
    else:
        fill(out, ["dataset.json", "items.parquet"])
        write_bytes(unfinished_note(out), b"dataset.json")
    is_whole = exists(join(out, "dataset.json"))
    assert is_unfinished(out) == (not is_whole)
    with own_folder(out, "prepare", beside=[out]):
        assert exists(join(out, "dataset.json")) == is_whole
        assert is_whole or not find_files(out)
        assert [name for name in find_files(root) if not name.startswith("data/")] == [".data.lock"]


def test_writing_in_place_marks_last_and_unmarks_first(monkeypatch):
    out, seen, real = f"memory://left-{uuid.uuid4().hex}/data", [], paths._copy_object

    def noting(source: str, target: str) -> None:
        seen.append((target.rsplit("/", 1)[1], exists(join(out, "dataset.json"))))
        real(source, target)

    monkeypatch.setattr(paths, "_copy_object", noting)
    for is_second in (False, True):
        with staged_folder(out, "dataset.json") as folder:
            write_bytes(join(folder, "items.parquet"), b"x")
            assert is_unfinished(out) != is_second
            write_bytes(join(folder, "dataset.json"), b"")
        assert not is_unfinished(out)
        assert find_files(out) == ["dataset.json", "items.parquet"]
    assert seen == [("items.parquet", False), ("dataset.json", False)]
    assert not exists(unfinished_note(out))


def test_temporary_folders_of_killed_processes_are_swept_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal, tempfile; from trec_semid.core.processes import scratch_prefix;"
        f"print(tempfile.mkdtemp(prefix=scratch_prefix(), dir={str(tmp_path)!r}), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    left = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    Path(left, "store").write_text("x")
    others = ["trec-semid-mine", "trec-semid-0123abcd-1-1-abc", f"{scratch_prefix()}x", "trec-semid-x-1-1-a"]
    for name in others:
        (tmp_path / name).mkdir()
    with scratch_folder() as alive:
        assert sweep_scratch() == [left]
        assert sorted(os.listdir(tmp_path)) == sorted([*others, os.path.basename(alive)])


def test_staged_folders_never_leave_a_moment_without_one(tmp_path):
    out = str(tmp_path / "data")
    for content in (b"1", b"2"):
        with staged_folder(out) as folder:
            write_bytes(join(folder, "x"), content)
    assert is_local(out)
    assert find_files(str(tmp_path)) == ["data/x"]
    assert (tmp_path / "data/x").read_bytes() == b"2"
