"""Retrievers of every kind, trained and exported once for all tests that ask bundles."""

from collections.abc import Callable
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
def listed_problem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(str(tmp_path_factory.mktemp("retrievers")))


@pytest.fixture(scope="session")
def runs(listed_problem: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Return the run of a kind, trained once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str) -> str:
        place = str(folder / name.replace(" ", "-"))
        if not Path(place, "metrics.json").exists():
            changes = {**(KINDS | MERGED)[name]}
            own = {**listed_problem, **{key: changes.pop(key) for key in ("semantic_ids",) if key in changes}}
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
        if not Path(place, "manifest.json").exists():
            with pytest.MonkeyPatch.context() as patch:
                export_quickly(patch, in_forks=name != "tiger")
                done = export.run(ExportConfig(run=runs(name), out=place, shard_rows=17))
            assert done.largest_difference <= 1e-4
        return place

    return bundle
