"""Who may write where, what a full disk says, and what is left: the same for every verb."""

import resource
import signal
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import rank_config, write_problem
from tests.jobs.retrieving import retrieve_config
from tests.occupants import VERBS, contents, occupy
from tests.ranks import run_ranks
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, DataError, LockError, SemidError
from trec_semid.core.paths import exists, find_files, join, write_bytes
from trec_semid.jobs.verbs import job_named
from trec_semid.runtime.locks import FolderLock, lock_uri, new_owner
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import gather_objects, process_group

TOKENIZER = {"kind": "rq_kmeans", "codebook_size": 6, "levels": 2}
PREPARE = {
    "name": "shop",
    "label": {"kind": "given"},
    "split": {"kind": "global_temporal"},
    "content": {"about": {"kind": "attributes", "categories": ["kind"]}},
}


def config_of(verb: str, out: str, places: dict[str, str]) -> Config:
    """Return a config of the verb that writes `out`."""
    if verb == "rank":
        return rank_config(
            {"dataset": places["dataset"], "semantic_ids": places["codes"]}, out, train={"max_epochs": 1}
        )
    if verb == "retrieve":
        changes: dict[str, Any] = {"train": {"max_epochs": 1}}
        return retrieve_config({"dataset": places["dataset"]}, out, **changes)
    raw = places["raw"]
    tables = {
        "kind": "tables",
        "interactions": {"path": f"{raw}/log.csv", "user": "u", "item": "i", "rating": "y", "timestamp": "t"},
        "items": {"path": f"{raw}/items.csv", "id": "i"},
    }
    values: dict[str, Any] = {
        "prepare": {**PREPARE, "source": tables, "out": out},
        "tokenize": {"dataset": places["dataset"], "run": out, "tokenizer": TOKENIZER},
        "assign": {"tokenizer": places["codes"], "items": places["new"], "out": out},
        "export": {"run": places["run"], "out": out, "shard_rows": 10_000},
        "report": {"runs": [places["run"]], "out": out, "replicates": 100},
        "study": {"out": out, "step": [{"verb": "prepare", "set": {"source": tables, **PREPARE}}]},
    }[verb]
    return job_named(verb).config.model_validate(values)


def run(verb: str, out: str, places: dict[str, str]) -> Any:
    return job_named(verb).run(config_of(verb, out, places))


NOWHERE = dict.fromkeys(("dataset", "codes", "new", "run", "raw"), "nowhere/at/all")


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_writes_into_a_folder_of_another_kind_and_nothing_changes(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    for kind in VERBS:
        occupy(str(tmp_path / kind), kind)
    before = contents(str(tmp_path))
    for kind in [kind for kind in VERBS if kind != verb]:
        # Nothing of what is to be read is there: a verb that asks first does not get so far.
        with pytest.raises(DataError, match=r"something else than an? .*: this is an? ") as error:
            run(verb, str(tmp_path / kind), NOWHERE)
        assert error.value.exit_code == 2
        assert error.value.file == str(tmp_path / kind)
    for kind in ("prepare", "assign", "export"):
        with pytest.raises(DataError, match="lies inside"):
            run(verb, str(tmp_path / kind / "deep/x"), NOWHERE)
    assert contents(str(tmp_path)) == before


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_works_where_another_process_does(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "out")
    occupy(out, verb)
    held = FolderLock(out, new_owner("rank"))
    held.take()
    before = contents(str(tmp_path))
    with pytest.raises(LockError, match=r"out/?: another process works here \(rank, process \d+"):
        run(verb, "./out/", NOWHERE)
    assert contents(str(tmp_path)) == before
    held.release()


@pytest.mark.parametrize("verb", VERBS)
def test_failure_gives_the_folder_back_and_leaves_nothing_half_written(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SemidError):
        run(verb, str(tmp_path / "deep/out"), NOWHERE)
    assert not exists(lock_uri(str(tmp_path / "deep/out")))
    written = {name for name in find_files(str(tmp_path)) if not name.endswith((".log", ".json", ".toml"))}
    assert written <= {"deep/out/study.md", "deep/out/study.html"}


def test_prepare_does_not_write_into_the_data_that_it_reads(tmp_path):
    raw = str(tmp_path / "raw")
    write_bytes(f"{raw}/log.csv", b"u,i,y,t\n")
    write_bytes(f"{raw}/items.csv", b"i,kind\n")
    config = config_of("prepare", f"{raw}/data", {**NOWHERE, "raw": raw})
    inside = config.model_copy(
        update={
            "source": config.source.model_copy(
                update={"interactions": config.source.interactions.model_copy(update={"path": raw})}
            )
        }
    )
    with pytest.raises(DataError, match="lies inside the data that is read"):
        job_named("prepare").run(inside)
    assert find_files(str(tmp_path)) == ["raw/items.csv", "raw/log.csv"]


def test_study_in_memory_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="memory:// is private to a process, and several write here"):
        run("study", f"memory://study-{uuid.uuid4().hex}", NOWHERE)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    """What every verb reads, large enough that what it writes outgrows a small disk."""
    folder = str(tmp_path_factory.mktemp("world"))
    problem = write_problem(folder)
    places = {
        **NOWHERE,
        "dataset": problem["dataset"],
        "codes": f"{folder}/codes",
        "raw": f"{folder}/raw",
        "new": f"{folder}/new",
    }
    run("tokenize", places["codes"], places)
    rng = np.random.default_rng(0)
    rows = [f"u{rng.integers(400)},i{rng.integers(90)},{rng.integers(2)},{10**9 + n}" for n in range(9000)]
    write_bytes(f"{folder}/raw/log.csv", "\n".join(["u,i,y,t", *rows]).encode())
    write_bytes(
        f"{folder}/raw/items.csv", "\n".join(["i,kind", *(f"i{n},k{n % 7}" for n in range(90))]).encode()
    )
    ids = pa.array([f"new-{n}" for n in range(4000)])
    vectors = {
        name: pa.array(list(rng.normal(size=(4000, dim)))) for name, dim in (("text", 16), ("image", 8))
    }
    pq.write_table(pa.table({"item_id": ids, **vectors}), f"{folder}/new.parquet")
    places |= {"new": f"{folder}/new.parquet", "run": f"{folder}/run"}
    run("rank", places["run"], places)
    return places


@contextmanager
def files_end_at(num_bytes: int):
    """Let no file of this process grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("verb", ["prepare", "tokenize", "assign", "rank", "retrieve", "export", "report"])
def test_every_verb_says_that_the_disk_is_full_and_works_once_it_is_not(tmp_path, world, monkeypatch, verb):
    export_quickly(monkeypatch)
    out = str(tmp_path / "out")
    limit = 1500 if verb == "tokenize" else 8 << 10
    with files_end_at(limit), pytest.raises(SemidError, match=r"the disk is full.*(Free|free)") as error:
        run(verb, out, world)
    assert error.value.exit_code == 2
    assert not any(".partial-" in name or name.endswith(".lock") for name in find_files(str(tmp_path)))
    assert not {"metrics.json", "dataset.json", "manifest.json", "report.json"} & set(find_files(out))
    run(verb, out, world)
    before = contents(str(tmp_path))
    if verb not in ("prepare", "assign", "export", "report"):
        return
    # These replace what is there, and it stays when they cannot.
    changed = {**world, "run": world["run"] + "/"}
    config = config_of(verb, out, changed)
    keys = {"prepare": {"seed": 5}, "assign": {"columns": {"text": "text"}}, "export": {"check_rows": 99}}
    config = config.model_copy(update=keys.get(verb, {"title": "Another"}))
    with files_end_at(8 << 10), pytest.raises(SemidError, match="the disk is full"):
        job_named(verb).run(config)
    assert contents(str(tmp_path)) == before


def refusals(folder: str) -> list[Any]:
    """Ask for folders that are not to be had, and for one that is, on every rank."""
    said: list[Any] = []
    with process_group() as ranks:
        if ranks.is_main:
            held = FolderLock(join(folder, "held"), replace(new_owner("rank"), token="other"))
            held.take()
            occupy(join(folder, "data"), "prepare")
        gather_objects(None)
        for place in (join(folder, "held"), join(folder, "data"), "memory://private"):
            try:
                with own_folder(place, "rank", ranks):
                    said.append("inside")
            except SemidError as error:
                said.append((type(error).__name__, error.exit_code, str(error)))
        with own_folder(join(folder, "free"), "rank", ranks):
            gather_objects(None)
            said.append(exists(lock_uri(join(folder, "free"))))
            gather_objects(None)
        gather_objects(None)
        said.append(exists(lock_uri(join(folder, "free"))))
    return said


@pytest.mark.ranks
def test_every_rank_hears_the_verdict_of_rank_0(tmp_path):
    first, second = run_ranks(refusals, 2, str(tmp_path))
    assert first == second
    assert [each[:2] for each in first[:3]] == [("LockError", 2), ("DataError", 2), ("ConfigError", 2)]
    assert "this is a dataset" in first[1][2]
    assert first[3:] == [True, False]


def test_a_run_asked_for_in_a_folder_that_cannot_be_locked_still_tells_that_it_is_finished(
    world, monkeypatch
):
    def forbid(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FolderLock, "take", forbid)
    before = contents(world["run"])
    assert run("rank", world["run"], world).metrics
    assert contents(world["run"]) == before


def test_path_of_the_home_folder_and_of_variables(tmp_path, monkeypatch, world):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OUT", "$HOME")  # what a variable holds is not read again
    config = config_of("report", "~/x/report", world)
    assert config.model_dump()["out"] == str(tmp_path / "x/report")
    assert Path(job_named("report").run(config).page).exists()
