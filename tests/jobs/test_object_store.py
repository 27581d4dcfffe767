"""The whole way on object stores: an S3 server inside this process, and memory."""

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import start_command
from tests.jobs.exporting import export_quickly
from tests.jobs.test_whole_way import do, write_configs, write_raw
from tests.tokenizers.generations.stores import append, retrain, tuples_of
from trec_semid.checkpoints.folder import complete_steps
from trec_semid.core.errors import DataError, LockError
from trec_semid.core.paths import (
    arrow_filesystem,
    exists,
    find_files,
    join,
    list_folder,
    read_bytes,
    staged_folder,
    write_bytes,
)
from trec_semid.data.schema import Dataset
from trec_semid.runtime import locks
from trec_semid.runtime.leftovers import is_unfinished
from trec_semid.runtime.locks import FolderLock, lock_uri, new_owner
from trec_semid.runtime.own_folder import own_folder
from trec_semid.serving.engine import open_engine
from trec_semid.tokenizers.generations.publish import roll_back
from trec_semid.tokenizers.generations.store import open_store

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        store = fsspec.filesystem("s3")
        store.mkdir("test")
        yield "s3://test"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def root(request: pytest.FixtureRequest) -> str:
    name = uuid.uuid4().hex[:8]
    return f"{request.getfixturevalue('bucket')}/{name}" if request.param == "s3" else f"memory://{name}"


def write_new_items(uri: str, dim: int) -> None:
    rng = np.random.default_rng(0)
    fs, inner = arrow_filesystem(uri)
    vectors = pa.array(list(rng.normal(size=(50, dim)).astype(np.float32)))
    with fs.open_output_stream(inner) as stream:
        pq.write_table(pa.table({"item_id": [f"new-{n}" for n in range(50)], "about": vectors}), stream)


def test_folders_replace_each_other_and_failures_leave_the_old_one(root: str):
    out = join(root, "deep/data")
    for number in range(3):
        with staged_folder(out, "dataset.json") as folder:
            write_bytes(join(folder, f"events/part-{number}.parquet"), b"x")
            write_bytes(join(folder, "dataset.json"), b"%d" % number)
        assert find_files(out) == ["dataset.json", f"events/part-{number}.parquet"]
        assert list_folder(join(root, "deep")) == ["data"]
    with pytest.raises(ZeroDivisionError), staged_folder(out, "dataset.json") as folder:
        write_bytes(join(folder, "dataset.json"), b"%d" % (1 / 0))
    assert read_bytes(join(out, "dataset.json")) == b"2"
    assert find_files(root) == ["deep/data/dataset.json", "deep/data/events/part-2.parquet"]


def test_what_another_process_writes_is_seen_at_once(bucket: str):
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    folder = f"{bucket}/seen"
    assert not exists(join(folder, "a.txt"))
    assert list_folder(folder) == []
    client.put_object(Bucket="test", Key="seen/a.txt", Body=b"1")
    assert exists(join(folder, "a.txt"))
    assert list_folder(folder) == find_files(folder) == ["a.txt"]
    client.put_object(Bucket="test", Key="seen/a.txt", Body=b"two")
    assert read_bytes(join(folder, "a.txt")) == b"two"
    client.delete_object(Bucket="test", Key="seen/a.txt")
    assert not exists(join(folder, "a.txt"))


def test_bucket_that_is_not_there_is_not_made(bucket: str):
    with (
        pytest.raises(DataError, match=r"s3://none-such/run: cannot be locked: .*bucket does not exist"),
        own_folder("s3://none-such/run", "rank"),
    ):
        pass
    assert not exists("s3://none-such")


def test_two_that_begin_at_once_are_told_apart_by_the_store(bucket: str):
    """Both see no lock; S3 creates an object only once."""
    one, other = (FolderLock(f"{bucket}/race/run", new_owner("rank")) for _ in range(2))
    hidden: Any = other
    real, answers = hidden._file.read, iter([None])
    hidden._file.read = lambda: next(answers, None) or real()
    one.take()
    with pytest.raises(LockError, match=f"process {os.getpid()} on"):
        other.take()
    one.release()
    assert not exists(lock_uri(f"{bucket}/race/run"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_raw_files_to_new_items_in_memory(tmp_path: Path):
    _whole_way(f"memory://{uuid.uuid4().hex[:8]}", tmp_path, kills=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_raw_files_to_new_items_on_s3_through_a_kill(bucket: str, tmp_path: Path):
    _whole_way(f"{bucket}/whole", tmp_path, kills=True)


@pytest.fixture(autouse=True)
def bundles_are_scored_in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    export_quickly(monkeypatch)


def _whole_way(root: str, tmp_path: Path, *, kills: bool) -> None:
    write_raw(f"{root}/raw")
    write_configs(tmp_path, f"{root}/raw")
    data, codes, ranked = f"{root}/data", f"{root}/codes", f"{root}/both"
    facts = do("prepare", [f"{tmp_path}/prepare.toml"], out=data)
    assert do("prepare", [f"{tmp_path}/prepare.toml"], out=data) == facts
    do("tokenize", [f"{tmp_path}/tokenize.toml"], dataset=data, run=codes)
    rank = {"dataset": data, "run": ranked, "representation": "both", "semantic_ids": codes}
    rank |= {"train.max_epochs": 4 if kills else 1, "train.patience": 9}
    if kills:
        _kill_after_a_checkpoint([f"{tmp_path}/rank.toml"], rank)
        assert not exists(join(ranked, "metrics.json"))
    metrics = do("rank", [f"{tmp_path}/rank.toml"], **rank).metrics
    if kills:
        never_killed = {**rank, "run": f"{tmp_path}/never-killed"}
        assert do("rank", [f"{tmp_path}/rank.toml"], **never_killed).metrics == metrics
    assert do("rank", [f"{tmp_path}/rank.toml"], **rank).metrics == metrics
    written = do("report", [], runs=[ranked], out=f"{root}/report")
    numbers = json.loads(read_bytes(written.numbers))
    assert numbers["dataset"]["checksum"] == facts.checksum
    done = do("export", [], run=ranked, out=f"{root}/bundle")
    assert done.largest_difference < 1e-4
    assert open_engine(f"{root}/bundle").manifest.dataset == "shop"
    write_new_items(f"{root}/new.parquet", Dataset(data).facts.modalities["about"].dim)
    assigned = do("assign", [], tokenizer=codes, items=f"{root}/new.parquet", out=f"{root}/new-codes")
    assert assigned.drift["items"] == 50
    files = find_files(root)
    assert not [name for name in files if name.endswith((".lock", ".unfinished")) or ".partial-" in name]
    with pytest.raises(DataError, match="this is a dataset"):
        do("tokenize", [f"{tmp_path}/tokenize.toml"], dataset=data, run=data)
    assert find_files(root) == files
    local = do("prepare", [f"{tmp_path}/prepare.toml"], out=f"{tmp_path}/data")
    assert local.checksum == facts.checksum


def _kill_after_a_checkpoint(files: list[str], values: dict[str, Any]) -> None:
    """Run `rank` in a process of its own and kill it once it has saved."""
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    nowhere = Path(os.devnull)
    process = start_command("trec_semid.cli.main", "rank", *files, *words, stdout=nowhere, stderr=nowhere)
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if complete_steps(join(values["run"], "checkpoints")):
            break
        time.sleep(0.25)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # alive, and so the folder is its own
    assert process.is_alive(), "it was over before it could be killed"
    with pytest.raises(LockError, match=f"process {process.pid} on"):
        do("rank", files, **values)
    process.kill()
    process.join()
    assert exists(lock_uri(values["run"]))


def test_generations_are_published_and_race_on_a_store_as_on_a_disk(root: str):
    uri = f"{root}/store"
    retrain(uri, {"hat": (0,)}, (3,), 2)
    seen = open_store(uri).newest()
    assert append(uri, {"cap": (0,)}).number == 2
    assert tuples_of(uri, 2)[0] == {"hat": (0, 0), "cap": (0, 1)}
    with pytest.raises(LockError, match="another process was faster"):
        roll_back(open_store(uri), seen, 1)


def test_writer_that_is_killed_leaves_nothing_that_looks_whole(root: str, monkeypatch: pytest.MonkeyPatch):
    """What a reader sees after each object that a writer in place puts there."""
    monkeypatch.setattr(locks, "SETTLE_S", 0.0)
    out = join(root, "data")
    with staged_folder(out, "dataset.json") as folder:
        for name in ("items.parquet", "events/part-00000.parquet"):
            write_bytes(join(folder, name), b"x")
            assert is_unfinished(out)
            assert not exists(join(out, "dataset.json"))
        write_bytes(join(folder, "dataset.json"), b"{}")
        assert not is_unfinished(out)
    assert not is_unfinished(out)
