"""Saving: every rank writes its shards, then rank 0 makes the step visible; in the background if asked."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import save

from trec_semid.checkpoints.failures import FAILURES, expect_not_stopped, reason
from trec_semid.checkpoints.folder import (
    MARKER,
    TENSORS,
    Begun,
    CheckpointFacts,
    begin_step,
    commit_step,
    drop,
    prune,
)
from trec_semid.checkpoints.random_state import capture_random_state
from trec_semid.checkpoints.storage import alone_without_warning, is_alone, storage_writer
from trec_semid.checkpoints.tensors import Tensors, Trainable, hyperparameters, named_tensors
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import exists, join
from trec_semid.runtime.fingerprints import Fingerprint
from trec_semid.runtime.ranks import broadcast_object, gather_objects

T = TypeVar("T")


class CheckpointWriter:
    """Saves steps of one run into one folder; all ranks make the same calls.

    A step is visible once everything of it is written: a process killed in between leaves nothing that a
    reader takes for a checkpoint, and what was complete before stays complete. In the background, training
    goes on as soon as the tensors are copied to host memory; the next `save`, or `wait`, first waits for the
    one before. That needs a process group, and without one a save is never in the background.
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
            step: its number; a step of that number already there stays until this one is complete.
            trainable: model and optimizers.
            loop: JSON values of the training loop, e.g. epoch, reader position, best metric; from rank 0.
            extra_files: name to content, stored and checked together with the tensors; from rank 0.
            is_best: keep this step until a better one comes.

        Raises:
            CheckpointError: something cannot be written; raised on every rank, and no step becomes visible.
        """
        # One at a time: an older save that ended last would prune the newer step as one that a run left
        # behind.
        self.wait()
        tensors = named_tensors(trainable)
        # Each rank has drawn its own numbers: all states are stored, so that as many ranks can go on exactly.
        states = gather_objects(capture_random_state())
        groups = {name: hyperparameters(optimizer) for name, optimizer in trainable.optimizers.items()}
        facts = {"step": step, "loop": loop, "hyperparameters": groups, "random_states": states}
        begun: Begun = _on_main(lambda: begin_step(self.folder, step, facts, extra_files or {}), self.folder)
        world_size = dist.get_world_size() if dist.is_initialized() else 1

        def commit(files: dict[str, Fingerprint]) -> None:
            """Make the step visible, then remove what the run needs no more."""
            every = {**begun.files, **files}
            saved = CheckpointFacts(step=step, world_size=world_size, is_best=is_best, files=every)
            commit_step(begun.at, saved)
            # Only now: until the new step is visible, the old ones are all that a restart would have.
            prune(self.folder, self.keep_last, step)

        if self._in_background:
            # Copied before this returns: the next training step changes the tensors while the thread still
            # writes.
            staged = _on_each(lambda: BlockingAsyncStager().stage(tensors), begun.at)
            self._running = _Running(staged, begun.at, self._group, commit)
            return
        try:
            files = _write(tensors, begun.at, None)
        except FAILURES as error:
            expect_not_stopped(error)
            _give_up(begun.at)
            raise CheckpointError(_cannot_save(begun.at, error)) from error
        try:
            _on_main(lambda: commit(files), begun.at)
        except CheckpointError:
            _give_up(begun.at)
            raise

    def wait(self) -> None:
        """Wait for a save in the background.

        Raises:
            CheckpointError: it failed, on whichever rank.
        """
        running, self._running = self._running, None
        if running:
            # Asked of all ranks: a fault on one must be raised on each, or the others would wait in a
            # collective.
            error = next((text for text in gather_objects(running.error()) if text), None)
            if error:
                raise CheckpointError(f"in the background: {error}")

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

    def __init__(
        self,
        staged: Tensors,
        at: str,
        group: dist.ProcessGroup | None,
        commit: Callable[[dict[str, Fingerprint]], None],
    ) -> None:
        self._staged, self._at, self._group, self._commit = staged, at, group, commit
        self._error, self._finished = "", threading.Event()
        threading.Thread(target=self._save, name="checkpoint", daemon=True).start()

    def error(self, timeout_s: float | None = None) -> str:
        """Wait to the end, or so long [s], and return what went wrong, or nothing."""
        self._finished.wait(timeout_s)
        return self._error

    def _save(self) -> None:
        try:
            files = _write(self._staged, self._at, self._group)
            if _is_main():
                self._commit(files)
        except BaseException as error:  # a thread has nobody to raise to: wait() tells
            self._error = _cannot_save(self._at, error)
            _give_up(self._at)
        finally:
            self._finished.set()


def _write(tensors: Tensors, at: str, group: dist.ProcessGroup | None) -> dict[str, Fingerprint]:
    """Write this rank's tensors; return what all ranks wrote, by its name in the step's folder."""
    writer = storage_writer(join(at, TENSORS))
    with alone_without_warning():
        save(tensors, storage_writer=writer, process_group=group, no_dist=is_alone())
    each: list[Any] = [writer.files.written]
    if not is_alone():
        # all_gather_object fills a list of that length; what stands in it before does not matter.
        each = each * dist.get_world_size()
        dist.all_gather_object(each, writer.files.written, group=group)
    return {f"{TENSORS}/{name}": known for written in each for name, known in written.items()}


def _give_up(at: str) -> None:
    """Free the space of a step that did not become complete; the fault itself is said elsewhere."""
    if _is_main():
        with suppress(Exception):
            # A fault after the marker was written, as while pruning, leaves a complete step: that one stays.
            if not exists(join(at, MARKER)):
                drop(at)


def _on_each(work: Callable[[], T], at: str) -> T:
    """Do something on every rank and return its result; an error on one rank is raised on all."""
    result, fault = None, ""
    try:
        result = work()
    except Exception as error:
        fault = _cannot_save(at, error)
    faults = [text for text in gather_objects(fault) if text]
    if faults:
        _give_up(at)
        raise CheckpointError(faults[0])
    return result  # pyright: ignore[reportReturnType] - without a fault there is a result


def _on_main(work: Callable[[], Any], at: str) -> Any:
    """Do something on rank 0 only and return its result, or raise its error, on every rank."""
    outcome: Any = None
    if _is_main():
        try:
            outcome = work()
        except Exception as error:  # whatever it is, the other ranks wait for an outcome
            outcome = CheckpointError(_cannot_save(at, error))
    outcome = broadcast_object(outcome)
    if isinstance(outcome, CheckpointError):
        raise outcome
    return outcome


def _cannot_save(at: str, error: BaseException) -> str:
    return f"{at}: cannot save: {reason(error)}. Complete steps stay as they are."


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
