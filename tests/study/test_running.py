import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trec_semid.runtime.locks import FolderLock, holder_of, new_owner
from trec_semid.study import running
from trec_semid.study.grid import PlannedRun
from trec_semid.study.running import await_orphans


@pytest.fixture
def held(tmp_path: Path) -> Iterator[FolderLock]:
    lock = FolderLock(str(tmp_path / "arm/seed-0"), new_owner("rank"))
    lock.take()
    yield lock
    lock.release()


def planned(*folders: str) -> list[PlannedRun]:
    return [PlannedRun("arm", 0, "rank", (), (), folder, ()) for folder in folders]


def test_a_study_waits_for_workers_of_one_that_was_killed(held: FolderLock, tmp_path: Path):
    threading.Timer(0.5, held.release).start()
    before = time.monotonic()
    await_orphans(planned(str(tmp_path / "other"), held.folder))
    assert time.monotonic() - before >= 0.4
    assert holder_of(held.folder) is None


def test_it_does_not_wait_for_ever(
    held: FolderLock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(running, "GRACE_S", 0.2)
    monkeypatch.setattr(running, "_STOP_S", 0.2)
    with caplog.at_level("INFO"):
        await_orphans(planned(held.folder))
    assert holder_of(held.folder) == held.owner
    assert caplog.text.count("waiting for another process to end (rank, process") == 1
