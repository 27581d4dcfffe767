import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.checkpoints.training import assert_same, small
from trec_semid.checkpoints.folder import best_step, complete_steps, latest_step, step_fault
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.core.paths import filesystem, list_folder

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
SAVES = {
    "the step again": (3, True),
    "a next step": (4, False),
    "an earlier step": (2, False),
}


class Killed(BaseException):
    """What no code of ours catches and goes on after."""


class Countdown:
    """Raises at the n-th change of any file, and at every one after it: a dead process writes no more."""

    left = -1

    def change(self) -> None:
        if self.left < 0:
            return
        if self.left == 0:
            raise Killed
        self.left -= 1


DISK, STORE = Countdown(), Countdown()


def watch_disk(event: str, args: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if DISK.left >= 0 and (writes or event in CHANGES):
        DISK.change()


sys.addaudithook(watch_disk)  # cannot be taken back; it does nothing but while a test counts


@contextmanager
def killed_after(countdown: Countdown, num_changes: int) -> Iterator[None]:
    countdown.left = num_changes
    try:
        yield
    finally:
        countdown.left = -1


def save_three(place: str) -> None:
    """Leave steps 1 (the best then), 2 and 3 (the best now)."""
    writer = CheckpointWriter(place, keep_last=2)
    for step in (1, 2, 3):
        writer.save(step, small(steps=step), loop={"says": step}, is_best=step != 2)


def expect_whole(place: str, step: int) -> bool:
    """Check that all that is visible is sound and as it was saved; return whether the new save is visible."""
    steps = complete_steps(place)
    assert steps, "no complete step is left"
    is_new = False
    for each in steps:
        assert step_fault(place, each) is None
        fresh = small(seed=5)
        said = load_checkpoint(place, fresh, step=each, is_checked=True).loop["says"]
        is_new |= said == 9
        assert said in (each, 9)
        assert_same(fresh, small(steps=each, seed=8 if said == 9 else 0))
    # A run that went back leaves the steps beyond until its own is complete.
    assert latest_step(place) in ({step, 3} if is_new else {3})
    assert best_step(place) is not None
    return is_new


def try_every_moment(
    template: Callable[[], str], countdown: Countdown, step: int, is_best: bool
) -> list[bool]:
    seen: list[bool] = []
    for num_changes in range(500):
        place = template()
        try:
            with killed_after(countdown, num_changes):
                CheckpointWriter(place, keep_last=2).save(
                    step, small(steps=step, seed=8), loop={"says": 9}, is_best=is_best
                )
        except Killed:
            seen.append(expect_whole(place, step))
        else:
            assert num_changes > 10
            break
        if num_changes % 3:
            continue
        again = CheckpointWriter(place, keep_last=1)
        again.save(7, small(steps=7), loop={"says": 7}, is_best=True)
        assert complete_steps(place) == [7]
        assert list_folder(place) == ["step-7"], "leftovers of the killed save stay"
    return seen


@pytest.mark.parametrize("name", list(SAVES))
def test_whenever_a_save_is_killed_what_is_visible_is_whole(tmp_path: Path, name: str):
    save_three(str(tmp_path / "template"))

    def copy() -> str:
        return str(shutil.copytree(tmp_path / "template", tmp_path / uuid.uuid4().hex))

    seen = try_every_moment(copy, DISK, *SAVES[name])
    assert seen == sorted(seen), "once visible, always visible"
    assert {True, False} == set(seen), "killed before and after the step became visible"


def test_the_same_holds_on_stores_that_cannot_rename(monkeypatch: pytest.MonkeyPatch):
    def watched(method: str, *, only_writing: bool = False) -> None:
        plain = getattr(MemoryFileSystem, method)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not only_writing or "w" in str(args[1:2]) + str(kwargs.get("mode")):
                STORE.change()
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, method, call)

    for method in ("cp_file", "rm_file", "rmdir", "makedirs"):
        watched(method)
    watched("_open", only_writing=True)
    template = f"memory://killed/{uuid.uuid4().hex}"
    save_three(template)

    def copy() -> str:
        place = f"memory://killed/{uuid.uuid4().hex}"
        fs, inner = filesystem(template)
        fs.copy(inner, filesystem(place)[1], recursive=True)
        return place

    seen = try_every_moment(copy, STORE, *SAVES["the step again"])
    assert seen == sorted(seen)
    assert {True, False} == set(seen)
