"""Saving: every rank writes its shards, then rank 0 makes the step visible; in the background if asked."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from trec_semid.checkpoints.folder import TENSORS, begin_step, commit_step, prune, step_folder
from trec_semid.checkpoints.random_state import capture_random_state
from trec_semid.checkpoints.storage import alone_without_warning, storage_writer
from trec_semid.checkpoints.tensors import Trainable, hyperparameters, named_tensors
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import join
from trec_semid.core.ranks import broadcast_object, gather_objects


class CheckpointWriter:
    """Saves steps of one run into one folder; all ranks make the same calls.

    A step is visible once everything of it is written: a process killed in between leaves nothing that a
    reader takes for a checkpoint. In the background, training goes on as soon as the tensors are copied to
    host memory; the next `save`, or `wait`, first waits for the one before. That needs a process group, and
    without one a save is never in the background.
    """

    def __init__(self, folder: str, *, keep_last: int = 2, in_background: bool = False) -> None:
        self.folder, self.keep_last = folder, keep_last
        self._in_background = in_background and dist.is_initialized()
        self._group: dist.ProcessGroup | None = None
        if self._in_background:
            group: Any = dist.new_group(backend="gloo")
            self._group = group  # of its own: its messages must not mix with training's
        self._running: _Running | None = None

    def save(
        self,
        step: int,
        trainable: Trainable,
        *,
        loop: dict[str, Any],
        extra_files: dict[str, bytes] | None = None,
        is_best: bool = False,
    ) -> None:
        """Save one step.

        Args:
            step: its number; a step of that number already there is replaced.
            trainable: model and optimizers.
            loop: JSON values of the training loop, e.g. epoch, reader position, best metric; from rank 0.
            extra_files: name to content, kept and checked together with the tensors; from rank 0.
            is_best: keep this step until a better one comes.

        Raises:
            CheckpointError: something cannot be written; raised on every rank, and no step becomes visible.
        """
        self.wait()
        tensors = named_tensors(trainable)
        states = gather_objects(capture_random_state())
        groups = {name: hyperparameters(optimizer) for name, optimizer in trainable.optimizers.items()}
        facts = {"step": step, "loop": loop, "hyperparameters": groups, "random_states": states}
        sha256 = _on_main(lambda: begin_step(self.folder, step, facts, extra_files or {}))
        at = join(step_folder(self.folder, step), TENSORS)
        world_size = dist.get_world_size() if dist.is_initialized() else 1

        def commit() -> None:
            """Make the step visible, then remove steps beyond those to keep."""
            commit_step(self.folder, step, world_size=world_size, is_best=is_best, sha256=sha256)
            prune(self.folder, self.keep_last)

        if self._in_background:
            self._running = _Running(_start(tensors, at, self._group), commit)
            return
        try:
            with alone_without_warning():
                save(tensors, storage_writer=storage_writer(at), no_dist=not dist.is_initialized())
        except CheckpointException as error:
            raise CheckpointError(f"{at}: cannot save: {_first_line(error)}") from error
        _on_main(commit)

    def wait(self) -> None:
        """Wait for a save in the background.

        Raises:
            CheckpointError: it failed.
        """
        running, self._running = self._running, None
        if running:
            error = next((text for text in gather_objects(running.error()) if text), None)
            if error:
                raise CheckpointError(f"{self.folder}: a save in the background failed: {error}")

    def settle(self, timeout_s: float | None = None) -> None:
        """Wait for a save in the background without asking other ranks, which may be gone; nothing is raised.

        Args:
            timeout_s: the longest wait; what is not complete then never becomes visible.
        """
        running, self._running = self._running, None
        if running:
            running.error(timeout_s)


class _Running:
    """A save in the background, which rank 0 commits from the thread that wrote it."""

    def __init__(self, written: "Future[Any]", commit: Callable[[], None]) -> None:
        self._commit, self._error = commit, ""
        self._finished = threading.Event()
        written.add_done_callback(self._finish)

    def error(self, timeout_s: float | None = None) -> str:
        """Wait to the end, or so long [s], and return what went wrong, or nothing."""
        self._finished.wait(timeout_s)
        return self._error

    def _finish(self, written: "Future[Any]") -> None:
        try:
            written.result()
            if not dist.is_initialized() or dist.get_rank() == 0:
                self._commit()
        except Exception as error:  # a thread has nobody to raise to: wait() tells
            self._error = _first_line(error)
        finally:
            self._finished.set()


def _start(tensors: dict[str, Any], at: str, group: dist.ProcessGroup | None) -> "Future[Any]":
    future = async_save(
        tensors,
        storage_writer=storage_writer(at),
        process_group=group,
        async_stager=BlockingAsyncStager(),  # the default stager cannot copy sharded tables
    )
    assert isinstance(future, Future)
    return future


def _on_main(work: Callable[[], Any]) -> Any:
    """Do something on rank 0 only and return its result, or raise its error, on every rank."""
    outcome: Any = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = work()
        except Exception as error:  # whatever it is, the other ranks wait for an outcome
            outcome = CheckpointError(str(error) or type(error).__name__)
    outcome = broadcast_object(outcome)
    if isinstance(outcome, CheckpointError):
        raise outcome
    return outcome


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
