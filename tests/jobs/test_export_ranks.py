"""Several ranks export together: the bundle of one process, byte for byte, or nothing."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tests.jobs.conftest import Bundles
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import rank_config, write_problem
from tests.ranks import run_ranks
from trec_semid.core.errors import DataError, SemidError
from trec_semid.jobs import export, rank
from trec_semid.jobs.export import ExportConfig
from trec_semid.runtime.ranks import place_among_ranks
from trec_semid.runtime.stopping import heeding_signals, leave
from trec_semid.serving.writing import tables

pytestmark = pytest.mark.ranks
Exports = dict[str, dict[str, Any]]
"""Name of the bundle to the config that it is exported by, but for where it lies."""


@pytest.fixture(scope="module")
def exports(runs: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Return a ranker, and retrievers that read IDs, fields, content and codes, in shards and whole."""
    folder = tmp_path_factory.mktemp("ranker")
    config = rank_config(write_problem(str(folder)), str(folder / "run"), train={"max_epochs": 1})
    rank.run(config)
    return {
        "ranker": {"run": config.run, "shard_rows": 7},
        "hybrid": {"run": runs("hybrid"), "shard_rows": 9},
        "of few bits": {"run": runs("hybrid"), "shard_rows": 1000, "tables": "int8"},
        "gemirec": {"run": runs("gemirec"), "shard_rows": 17},
    }


def export_all(exports: Exports, folder: str) -> None:
    # The ranker's is scored by an interpreter of its own, as outside of tests, in a launcher's environment;
    # what scores the others is a fork, since each would wait for an interpreter to import torch.
    for name, config in exports.items():
        with pytest.MonkeyPatch.context() as patch:
            export_quickly(patch, in_forks=name != "ranker")
            export.run(ExportConfig.model_validate({"out": f"{folder}/{name}", **config}))


def checksums(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def alone(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the files of all bundles, as one process without a launcher writes them."""
    folder = tmp_path_factory.mktemp("alone")
    export_all(exports, str(folder))
    return checksums(folder)


@pytest.mark.parametrize(
    ("world_size", "names"), [(2, ("ranker", "of few bits")), (3, ("hybrid", "gemirec"))]
)
def test_bundles_of_several_ranks_are_those_of_one_process(
    exports: Exports, alone: dict[str, str], tmp_path: Path, world_size: int, names: tuple[str, ...]
):
    run_ranks(export_all, world_size, {name: exports[name] for name in names}, str(tmp_path))
    expected = {file: told for file, told in alone.items() if file.split("/")[0] in names}
    assert len([file for file in expected if "/shard-" in file]) > 10
    assert checksums(tmp_path) == expected


def fail_at(rank: int, error: BaseException, config: dict[str, Any], told: str) -> None:
    """Export where one rank fails at its second shard, and end as the command line does."""
    write: Callable[..., Any] = tables.write_shard
    num_written, me = list[Any](), os.environ["RANK"]

    def failing(*asked: Any) -> Any:
        num_written.append(asked)
        if place_among_ranks()[0] == rank and len(num_written) == 2:
            raise error
        return write(*asked)

    tables.write_shard = failing
    with heeding_signals():
        try:
            export.run(ExportConfig.model_validate(config))
        except (SemidError, RuntimeError) as heard:
            Path(told, me).write_text(f"{type(heard).__name__}: {heard}")
            leave(1)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_rank_fails_all_end_and_what_was_there_before_stays(
    exports: Exports, tmp_path: Path, rank: int
):
    place, told = tmp_path / "bundles", tmp_path / "told"
    config = {**exports["hybrid"], "shard_rows": 4, "out": str(place / "out")}
    export_all({"out": config}, str(place))
    whole = checksums(place)
    new = {**config, "out": str(place / "new")}
    for error, own in (
        (DataError("no such column", file="x.parquet"), config),
        (RuntimeError("no kernel"), new),
    ):
        told.mkdir()
        with pytest.raises(ChildFailedError):
            run_ranks(fail_at, 3, rank, error, own, str(told))
        # A rank that waits for another in a library is ended by a thread of its own, and notes nothing.
        heard = {int(file.name): file.read_text() for file in told.iterdir()}
        assert heard.pop(rank) == f"{type(error).__name__}: {error}"
        assert all(each.startswith(f"PeerError: rank {rank} failed: ") for each in heard.values()), heard
        assert all(str(error) in each for each in heard.values())
        assert checksums(place) == whole
        assert [file.name for file in place.iterdir()] == ["out"]
        shutil.rmtree(told)
