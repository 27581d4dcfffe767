"""Retrievers of every kind, trained and exported once for all tests that ask bundles, on all workers."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.exported_kinds import KINDS, MERGED
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import write_problem
from tests.jobs.retrieving import retrieve_config
from trec_semid.jobs import export, retrieve
from trec_semid.jobs.export import ExportConfig

Bundles = Callable[[str], str]
"""Name of a kind to the place of its run, or of its bundle."""


@pytest.fixture(scope="session")
def kinds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of all workers: what one of them has trained or exported, the others find."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kinds"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def made_once(place: str, mark: str) -> Iterator[bool]:
    """Yield whether a folder is still to be made: the first that comes makes it, and others wait."""
    with Path(f"{place}.taken").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield not Path(place, mark).exists()


@pytest.fixture(scope="session")
def listed_problem(kinds_folder: Path) -> dict[str, Any]:
    place = str(kinds_folder / "problem")
    with made_once(place, "codes.parquet") as is_first:
        if is_first:
            write_problem(place)
    return {"dataset": f"{place}/data", "semantic_ids": f"{place}/codes.parquet"}


@pytest.fixture(scope="session")
def runs(listed_problem: dict[str, Any], kinds_folder: Path) -> Bundles:
    """Return the run of a kind, trained once."""

    def run(name: str) -> str:
        place = str(kinds_folder / name.replace(" ", "-"))
        with made_once(place, "metrics.json") as is_first:
            if is_first:
                changes = {**(KINDS | MERGED)[name]}
                own = {
                    **listed_problem,
                    **{key: changes.pop(key) for key in ("semantic_ids",) if key in changes},
                }
                retrieve.run(retrieve_config(own, place, train={"max_epochs": 1}, **changes))
        return place

    return run


@pytest.fixture(scope="session")
def bundles(runs: Bundles) -> Bundles:
    """Return the bundle of a kind, exported once; it has been held against the run then.

    That of a decoder in steps was scored by an interpreter that never had torchrec.
    """

    def bundle(name: str) -> str:
        place = f"{runs(name)}-bundle"
        with made_once(place, "manifest.json") as is_first:
            if is_first:
                with pytest.MonkeyPatch.context() as patch:
                    export_quickly(patch, in_forks=name != "tiger")
                    done = export.run(ExportConfig(run=runs(name), out=place, shard_rows=17))
                assert done.largest_difference <= 1e-4
        return place

    return bundle
