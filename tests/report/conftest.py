from dataclasses import dataclass

import pytest

from tests.report.fake_runs import write_study
from trec_semid.report.build import build_report
from trec_semid.report.collect import Collection, collect_runs
from trec_semid.report.content import Report


@dataclass(frozen=True)
class Study:
    root: str
    runs: list[str]
    collection: Collection
    report: Report


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = str(tmp_path_factory.mktemp("report_study"))
    runs = write_study(root, num_users=120, seeds=(0, 1))
    collection = collect_runs(runs)
    return Study(root, runs, collection, build_report(collection, num_replicates=100))
