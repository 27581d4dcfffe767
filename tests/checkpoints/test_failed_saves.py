import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import staging
from torch.distributed.checkpoint.api import CheckpointException

from tests.checkpoints.training import assert_same, contents, save_checkpoint, set_up, small, train
from tests.ranks import run_ranks
from trec_semid.checkpoints import storage
from trec_semid.checkpoints.failures import reason
from trec_semid.checkpoints.folder import complete_steps, step_fault
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.errors import CheckpointError, PeerError, TrainingError
from trec_semid.core.paths import list_folder
from trec_semid.runtime import stopping
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.runtime.stopping import Stopped, heeding_signals
from trec_semid.sharding.tables import table_shards
from trec_semid.training.config import CheckpointsConfig
from trec_semid.training.finite import expect_finite
from trec_semid.training.resume import find_start


def large() -> Trainable:
    return Trainable(nn.Linear(300, 300))


@contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to write more into any file; Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_within(limit: int, writer: CheckpointWriter, step: int) -> None:
    with no_file_larger_than(limit):
        writer.save(step, large(), loop={})
        writer.wait()


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("limit", [100_000, 3_000, 100])
def test_a_file_that_may_not_grow_fails_the_save_and_frees_its_space(tmp_path: Path, in_background, limit):
    folder = str(tmp_path / "c")
    with process_group():
        writer = CheckpointWriter(folder, in_background=in_background)
        writer.save(1, large(), loop={})
        writer.wait()
        with pytest.raises(CheckpointError, match="cannot save") as error:
            save_within(limit, writer, 2)
        assert "the disk is full, or a file may not grow further (ulimit -f)" in str(error.value)
        assert "inline_container" not in str(error.value)
        assert list_folder(folder) == ["step-1"]
        assert step_fault(folder, 1) is None
        writer.save(2, large(), loop={})
        writer.wait()
    assert complete_steps(folder) == [1, 2]


class FullDisk:
    """A file on a disk that takes so many bytes more."""

    def __init__(self, raw: Any, room: int) -> None:
        self._raw, self._room = raw, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def write(self, content: Any) -> int:
        self._room -= memoryview(content).nbytes
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._raw.write(content)


@pytest.mark.parametrize("room", [0, 500, 5_000, 360_000])
def test_a_full_disk_is_called_a_full_disk_wherever_in_a_tensor_file_it_happens(tmp_path, monkeypatch, room):
    folder = str(tmp_path / "c")
    plain = storage._HashingStream.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            storage._HashingStream,
            "__init__",
            lambda self, raw, on_fault: plain(self, FullDisk(raw, room), on_fault),
        )
        with pytest.raises(
            CheckpointError, match=r"cannot save: the disk is full\. Free some space\. Complete"
        ):
            save_checkpoint(folder, 1, large())
    assert list_folder(folder) == []


def test_a_reason_is_one_line_and_names_the_rank_where_there_are_several():
    inner = OSError(errno.ENOSPC, "No space left on device")
    assert reason(inner).startswith("the disk is full")
    assert reason(CheckpointException("write", {0: (inner, [])})).startswith("the disk is full")  # pyright: ignore[reportArgumentType]
    in_torchs_words = RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed")
    assert reason(in_torchs_words) == "the disk is full. Free some space"
    assert reason(OSError(errno.EDQUOT, "x")).startswith("the disk is full: your quota")
    assert reason(ValueError("first\nsecond line.\n")) == "second line"
    assert reason(MemoryError()) == "MemoryError"


class Interrupt(BaseException):
    """As Ctrl-C, or a signal's handler."""


def test_an_interrupt_while_saving_is_not_taken_for_a_failed_save(tmp_path, monkeypatch):
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise Interrupt

    monkeypatch.setattr(storage.FileSystemWriter, "write_data", interrupted)
    with pytest.raises(Interrupt):
        save_checkpoint(str(tmp_path / "c"), 1, small())


class InterruptedFile:
    """A file in whose nth write this process is asked to end."""

    def __init__(self, raw: Any, nth: int, ask: Callable[[], None]) -> None:
        self._raw, self._nth, self._ask = raw, nth, ask

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def write(self, content: Any) -> int:
        self._nth -= 1
        if self._nth == 0:
            self._ask()
        return self._raw.write(content)


def told_by_signal() -> None:
    signal.raise_signal(signal.SIGTERM)


def told_by_terminal() -> None:
    raise KeyboardInterrupt


def told_by_peer() -> None:
    error = PeerError("rank 1 failed: x.csv, row 7: no numbers", 2)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: stopping.interrupt(error).cancel())
        time.sleep(1)  # the signal comes to this thread before this is over


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize(
    ("tell", "kind"),
    [(told_by_signal, Stopped), (told_by_terminal, KeyboardInterrupt), (told_by_peer, PeerError)],
)
def test_an_interruption_in_the_middle_of_a_tensor_file_is_not_called_a_full_disk(
    tmp_path, monkeypatch, nth, tell, kind
):
    plain = storage._HashingStream.__init__
    monkeypatch.setattr(
        storage._HashingStream,
        "__init__",
        lambda self, raw, on_fault: plain(self, InterruptedFile(raw, nth, tell), on_fault),
    )
    with heeding_signals(), pytest.raises(kind):
        save_checkpoint(str(tmp_path / "c"), 1, large())


def test_a_failed_copy_to_host_memory_fails_the_save(tmp_path, monkeypatch):
    def no_memory(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("cannot allocate 7 GiB")

    monkeypatch.setattr(staging.BlockingAsyncStager, "stage", no_memory)
    with process_group():
        writer = CheckpointWriter(str(tmp_path / "c"), in_background=True)
        with pytest.raises(CheckpointError, match="cannot allocate 7 GiB"):
            writer.save(1, small(), loop={})
    assert list_folder(str(tmp_path / "c")) == []


def on_two_ranks(folder: str) -> dict[str, Any]:
    said: dict[str, Any] = {}
    with process_group() as ranks:
        torch.manual_seed(ranks.rank)
        setup = set_up(ranks)
        train(setup, ranks, 0, 2)
        for in_background in (False, True):
            place = f"{folder}/{in_background}"
            writer = CheckpointWriter(place, in_background=in_background)
            writer.save(1, setup.trainable, loop={})
            writer.wait()
            try:
                # Only files of rank 1 are refused.
                with no_file_larger_than(2_000 if ranks.rank == 1 else resource.RLIM_INFINITY):
                    writer.save(2, setup.trainable, loop={})
                    writer.wait()
            except CheckpointError as error:
                said[f"{in_background}"] = str(error)
            torch.distributed.barrier()  # rank 0 has cleared the folder
            said[f"{in_background} left"] = list_folder(place)
            if ranks.rank == 1:
                staging_of = staging.BlockingAsyncStager.stage
                staging.BlockingAsyncStager.stage = lambda *args: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
            try:
                writer.save(3, setup.trainable, loop={})
                writer.wait()
            except CheckpointError as error:
                said[f"{in_background} staging"] = str(error)
            if ranks.rank == 1:
                staging.BlockingAsyncStager.stage = staging_of
            writer.save(4, setup.trainable, loop={})
            writer.wait()
            again = set_up(ranks, seed=2)
            said[f"{in_background} loads"] = load_checkpoint(place, again.trainable).step
            said[f"{in_background} same"] = all(
                (contents(again)["dense"] == contents(setup)["dense"]).tolist()
            )
        said["finite"] = not_finite_on_one(setup, ranks.is_main)
        said |= starts_of(f"{folder}/starts", ranks)
        said["damage"] = damaged_on_one(f"{folder}/False", setup, ranks.is_main)
    return said


def not_finite_on_one(setup: Any, is_main: bool) -> str:
    """Return what a rank says when one number of rank 1's part of one table is wrong."""
    expect_finite(setup.trainable, 2, "step-1")
    tables = setup.trainable.model.state_dict()
    if not is_main:
        rows = next(
            part for key, value in tables.items() for *_, part in table_shards(value) if "t_user" in key
        )
        rows[-1, -1] = float("inf")
    try:
        expect_finite(setup.trainable, 2, "step-1")
    except TrainingError as error:
        return str(error)
    return "fine"


def starts_of(folder: str, ranks: Ranks) -> dict[str, Any]:
    """Return where a run would go on as steps are lost one by one, as a rank sees it."""
    said: dict[str, Any] = {}
    writer, log = CheckpointWriter(folder, keep_last=3), RunLog(folder, ranks.rank)
    for step, best in ((2, 2), (4, 4), (6, 4)):
        selection = {"metric": "auc", "best_step": best, "best_value": 0.5, "num_waited": 0}
        writer.save(step, small(), loop={"selection": selection, "went_back_to": None}, is_best=step == best)
    find = partial(find_start, folder, ranks=ranks, log=log)
    said["newest"] = find(None, CheckpointsConfig())
    said["named"] = find(2, CheckpointsConfig())
    torch.distributed.barrier()
    if ranks.is_main:
        flip(Path(folder, "step-4/tensors/__0_0.distcp"))
    torch.distributed.barrier()
    try:
        find(None, CheckpointsConfig())
    except CheckpointError as error:
        said["lost best"] = str(error)
    said["anew"] = find(None, CheckpointsConfig(lost_best="reselect"))
    torch.distributed.barrier()
    if ranks.is_main:
        flip(Path(folder, "step-6/checkpoint.json"))
    torch.distributed.barrier()
    said["before"] = find(None, CheckpointsConfig())
    log.close()
    return said


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def damaged_on_one(place: str, setup: Any, is_main: bool) -> list[str]:
    """Return what a rank says of each file that is damaged in turn."""
    said = []
    for name in (
        "tensors/__0_0.distcp",
        "tensors/__1_0.distcp",
        "tensors/.metadata",
        "loop.json",
        "checkpoint.json",
    ):
        path = Path(place, "step-4", name)
        torch.distributed.barrier()
        content = path.read_bytes()
        torch.distributed.barrier()
        if is_main:
            flip(path)
        torch.distributed.barrier()
        try:
            load_checkpoint(place, setup.trainable)
            said.append("loaded")
        except CheckpointError as error:
            said.append(str(error))
        torch.distributed.barrier()
        if is_main:
            path.write_bytes(content)
    return said


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(on_two_ranks, 2, str(tmp_path_factory.mktemp("failed")))


@pytest.mark.ranks
@pytest.mark.parametrize("in_background", [False, True])
def test_a_save_that_fails_on_one_rank_fails_on_all_and_the_next_one_works(two_ranks, in_background):
    for said in two_ranks:
        assert "rank 1: the disk is full, or a file may not grow further" in said[f"{in_background}"]
        assert said[f"{in_background} left"] == ["step-1"]
        assert said[f"{in_background} loads"] == 4
        assert said[f"{in_background} same"]


@pytest.mark.ranks
def test_a_failed_copy_on_one_rank_fails_the_save_on_all(two_ranks):
    for said in two_ranks:
        assert "division by zero" in said["True staging"]
        assert "False staging" not in said  # nothing is copied first


@pytest.mark.ranks
def test_a_number_that_is_not_finite_on_one_rank_is_named_on_all(two_ranks):
    for said in two_ranks:
        assert "step 2: model/" in said["finite"]
        assert "t_user" in said["finite"]


@pytest.mark.ranks
def test_ranks_agree_where_a_run_goes_on_whatever_is_lost(two_ranks):
    for said in two_ranks:
        assert (said["newest"].step, said["newest"].has_best) == (6, True)
        assert (said["named"].step, said["named"].went_back_to) == (2, 2)
        assert "step-4/tensors/__0_0.distcp" in said["lost best"]
        assert "--set resume_from=2 trains" in said["lost best"]
        assert (said["anew"].step, said["anew"].has_best) == (6, False)
        assert said["before"].step == 2


@pytest.mark.ranks
def test_damage_in_any_ranks_file_is_named_on_every_rank(two_ranks):
    names = ["__0_0.distcp", "__1_0.distcp", ".metadata", "loop.json", "checkpoint.json"]
    for said in two_ranks:
        assert said["damage"] == two_ranks[0]["damage"]
        assert all(name in text for name, text in zip(names, said["damage"], strict=True))


def test_what_was_there_before_a_failed_save_still_loads(tmp_path):
    folder = str(tmp_path / "c")
    save_checkpoint(folder, 1, small(steps=1))
    with no_file_larger_than(2_000), pytest.raises(CheckpointError):
        save_checkpoint(folder, 1, small(steps=4))
    fresh = small(seed=3)
    load_checkpoint(folder, fresh)
    assert_same(fresh, small(steps=1))
