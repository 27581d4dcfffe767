"""The training loop of verbs that train a model: steps, log, evaluation, selection, checkpoints, resume."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from trec_semid.checkpoints.folder import latest_step, step_folder
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.placements import FUSED, REPLICATED
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.runtime.logs import RunLog, Work, working
from trec_semid.runtime.ranks import Ranks, SharedSignal, broadcast_object, leave_if_asked, signal_on_any_rank
from trec_semid.runtime.runs import RunFolder
from trec_semid.runtime.stopping import Stopped, deferring
from trec_semid.training.config import TrainingRunConfig
from trec_semid.training.finetune.finetuning import Finetuning
from trec_semid.training.finite import StepLosses, expect_finite
from trec_semid.training.passes import Trained, build_passes
from trec_semid.training.profiling.times import StepTimes
from trec_semid.training.profiling.trace import StepTrace
from trec_semid.training.resume import best_fault, find_start
from trec_semid.training.selection import Selection
from trec_semid.training.start_weights import StartWeights
from trec_semid.training.steps import train_steps
from trec_semid.training.task import Task

_log = logging.getLogger(__name__)
_NOTE_S = 10.0
"""Time between notes of how long the run has taken."""
_SETTLE_S = 10.0
"""How long an error waits for the save in the background."""


@dataclass
class Pace:
    """Loss and speed since the last line of the log."""

    loss_sum: float = 0.0
    num_rows: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, loss: float, num_rows: int) -> None:
        """Take a step: the mean over its rows, and how many."""
        self.loss_sum += loss * num_rows
        self.num_rows += num_rows

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time inside: rows from before it are still to be told."""
        began = time.monotonic()
        yield
        self.started += time.monotonic() - began

    def scalars(self) -> dict[str, float]:
        """Return what the log says, and begin anew."""
        rows, elapsed_s = max(self.num_rows, 1), max(time.monotonic() - self.started, 1e-9)
        said = {"train/loss": self.loss_sum / rows, "train/samples_per_s": round(rows / elapsed_s, 1)}
        self.loss_sum, self.num_rows, self.started = 0.0, 0, time.monotonic()
        return said


class Loop:
    """How far training is, and what happens after a step: log, evaluation, selection, checkpoint.

    `resume` comes first, then `run`. Both raise

        CheckpointError: a checkpoint does not fit, or the best one so far is lost.
        TrainingError: a loss or a weight is not finite, or the codes have collapsed.
        Stopped: a signal has come; the step is saved.
    """

    def __init__(
        self, task: Task, config: TrainingRunConfig, folder: RunFolder, ranks: Ranks, log: RunLog
    ) -> None:
        self.task, self.config, self.folder, self.ranks, self.log = task, config, folder, ranks, log
        self.checkpoints = folder.path("checkpoints")
        self.selection = Selection(task.select_by or "", config.train.patience)
        self.steps = 0  # optimizer steps done
        self._steps_per_epoch = config.train.steps_of(task.batches.steps_per_epoch)
        self._writer = CheckpointWriter(
            self.checkpoints,
            keep_last=config.checkpoints.keep_last,
            in_background=config.checkpoints.in_background,
        )
        self._times, self._trace = StepTimes(), StepTrace(config.profile, folder, ranks)
        precision = getattr(torch, config.train.precision)
        trained = Trained(task.model, ranks, task.arguments, precision, self._times)
        self._passes = build_passes(config.train.pipeline, trained)
        self._position = task.batches.state_dict()  # of the next batch to train on
        self._pace, self._losses, self._signal = Pace(), StepLosses(), SharedSignal()
        self._last_evaluated = self._known_finite = 0
        self._went_back_to: int | None = None
        self._forgot_best = False

    def resume(self, weights: StartWeights | None) -> None:
        """Go on from the newest sound checkpoint, or begin, with weights of another run where there are some.

        `refuse_other_inputs` comes first.

        Raises:
            CheckpointError: it does not fit, or the best one so far is lost.
        """
        resume_from, saving = self.config.resume_from, self.config.checkpoints
        start = find_start(self.checkpoints, resume_from, saving, self.ranks, self.log)
        if start is None:
            if weights:
                weights.load(self._trainable())
            if self.task.finetuning:
                self.task.finetuning.begin()
            return
        step, loop = start.step, start.loop
        load_checkpoint(self.checkpoints, self._trainable(), step=step, is_checked=True)
        self.steps = step
        self._position = loop["loader"]
        self.task.batches.load_state_dict(self._position)
        self.selection.load_state_dict(loop["selection"])
        self._last_evaluated = loop["last_evaluated"]
        self._went_back_to = start.went_back_to
        if not start.has_best:
            self.selection.restart()
            # Step 0 stands for none: nothing names the lost one, and an evaluation is owed at once.
            self.selection.best_step, self._forgot_best = 0, True
        if self.task.finetuning:
            self.task.finetuning.load_state_dict(loop["tuning"])
        _log.info("going on from step %d", step)
        self.log.event("resume", step=step, epoch=self.task.batches.epoch)

    def run(self) -> None:
        """Train until the last epoch or until patience is at its end, and leave the best weights in place."""
        epochs = self.config.train.max_epochs
        try:
            with (
                deferring(),
                working("training", epochs * self._steps_per_epoch, shown=self.ranks.is_main) as work,
            ):
                work.advance(self.steps)
                if self._owes_an_evaluation:
                    self._evaluate()
                while self.task.batches.epoch < epochs and not self._is_over:
                    self._train_epoch(work)
                if self.task.select_by is None and self.selection.best_step != self.steps:
                    self.selection.take(self.steps)
                    self._save(is_best=True)
                self._writer.wait()
                leave_if_asked()
                self._passes.release()
                self._trace.close()
        except BaseException:
            # A collapse names a checkpoint: it must be whole when the run ends. No collective: after an
            # error other ranks may never come to it.
            self._writer.settle(_SETTLE_S)
            self._trace.close()
            raise
        self._take_best()

    def _train_epoch(self, work: Work) -> None:
        train, self._pace = self.config.train, Pace()
        reports = train_steps(
            self._passes,
            self.task.updates,
            self.task.batches.batches(),
            steps_done=self.steps,
            accumulate=train.accumulate,
        )
        self._trace.after(self.steps)
        first, num_done = self._position["step"], 0
        for report in reports:
            self.steps = report.step
            # Batches themselves may be further: a pipeline has taken some that are not trained yet.
            num_done += report.num_batches
            self._position = {**self._position, "step": first + num_done}
            self._losses.add(report)
            if self.task.finetuning:
                self.task.finetuning.after_step(report)
                self._refresh_map(self.task.finetuning)
            work.advance()
            # Losses are read here, many at once: reading one waits for the device.
            if report.step % train.log_every_steps == 0:
                self._read_losses()
                self.log.scalars(self._pace.scalars() | self._times.read(), step=report.step)
                note_time(self.folder, self.ranks, every_s=_NOTE_S)
            # Before an evaluation that is due: the saved step owes it, and a run that goes on makes it first.
            if self._signal.is_asked():
                self._save_and_stop()
            if (
                self.task.select_by
                and train.evaluate_every_steps
                and report.step % train.evaluate_every_steps == 0
            ):
                with self._pace.paused():
                    self._evaluate()
                if self._is_over:
                    return
            # Not after an evaluation, which has saved this step already.
            elif _is_due(report.step, self.config.checkpoints.every_steps):
                self._save(is_best=False)
            self._trace.after(report.step)
        self._end_epoch()

    def _refresh_map(self, finetuning: Finetuning) -> None:
        """Refresh the item -> code map between evaluations, where that is due."""
        if finetuning.is_refresh_due(self.steps):
            # A loss that is not finite has reached the weights by now, though the log reads it later: items
            # would be given the codes of a broken tokenizer.
            self._expect_finite()
            finetuning.refresh(self.steps)

    def _end_epoch(self) -> None:
        self._position = self.task.batches.state_dict()
        self._read_losses()
        is_last = self.task.batches.epoch == self.config.train.max_epochs
        if not self.task.select_by:
            return
        if self._last_evaluated < self.steps and (is_last or not self.config.train.evaluate_every_steps):
            self._evaluate()

    @property
    def _owes_an_evaluation(self) -> bool:
        """Whether a checkpoint holds a step after which training evaluates, but not what that said.

        That at the end of an epoch may have been stopped itself.
        """
        if not self.task.select_by:
            return False
        if self._forgot_best or self._last_evaluated == self.steps:
            return self._forgot_best
        every = self.config.train.evaluate_every_steps
        at_an_end = self.task.batches.epoch > 0 and self._position["step"] == 0
        is_last = self.task.batches.epoch == self.config.train.max_epochs
        return bool(every and self.steps % every == 0) or (at_an_end and (is_last or not every))

    @property
    def _is_over(self) -> bool:
        """Whether patience is at its end; it does not end before the tokenizer has begun to move."""
        finetuning = self.task.finetuning
        return self.selection.is_over and not (finetuning and finetuning.is_ahead(self.steps))

    def _evaluate(self) -> None:
        self._forgot_best = False
        self._expect_finite()
        self._passes.release()
        if finetuning := self.task.finetuning:
            finetuning.before_evaluation(self.steps, self._last_good())
            # A tuned run stands for tuned codes: its best step is one at which they had moved.
            if finetuning.has_moved(self.steps) and not finetuning.has_moved(self.selection.best_step):
                self.selection.restart()
        try:
            with self._times.part("evaluation"):
                metrics = self.task.evaluate()
        except Stopped:  # on all ranks at once
            self._save_and_stop()
        select_by = self.task.select_by
        assert select_by, "otherwise nothing is evaluated"
        if select_by not in metrics:
            problem = f"the events of the valid split do not define {select_by}"
            remedy = "Prepare the dataset with another [split]"
            raise DataError(problem, field="train.select_by", remedy=remedy)
        self._last_evaluated = self.steps
        values = {f"valid/{name}": metrics[name] for name in self.task.shown if name in metrics}
        epoch = self.steps / self._steps_per_epoch
        self.log.scalars({"epoch": round(epoch, 4), **values}, step=self.steps, event="evaluate")
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        _log.info("step %d, epoch %.2f: %s", self.steps, epoch, shown)
        is_best = self.selection.is_better(self.steps, metrics[select_by])
        if is_best:
            self.log.event("best", step=self.steps, **{f"valid/{select_by}": metrics[select_by]})
        # After `is_better`: the checkpoint holds the selection with this evaluation in it.
        self._save(is_best=is_best)

    def _save_and_stop(self) -> NoReturn:
        """Save this very step, then end; all ranks come here together.

        Raises:
            Stopped: always.
        """
        number = signal_on_any_rank()
        self._writer.wait()
        # It is there already where the evaluation that a resumed run owed was stopped.
        if broadcast_object(latest_step(self.checkpoints)) != self.steps:
            self._save(is_best=False)
            self._writer.wait()
        self.log.event("stop", step=self.steps, signal=number)
        _log.info("saved step %d", self.steps)
        raise Stopped(number)

    def _save(self, *, is_best: bool) -> None:
        self._expect_finite()
        loop = {
            "loader": self._position,
            "selection": self.selection.state_dict(),
            "last_evaluated": self._last_evaluated,
            "inputs": self.task.inputs,
            "went_back_to": self._went_back_to,
            # The key of checkpoints from when the section was called tuning: they can still be gone on from.
            "tuning": self.task.finetuning.state_dict() if self.task.finetuning else {},
        }
        with self._times.part("checkpoint"):
            files = self.task.snapshot() if self.ranks.is_main else {}
            self._writer.save(self.steps, self._trainable(), loop=loop, extra_files=files, is_best=is_best)
        self.log.event("checkpoint", step=self.steps)
        note_time(self.folder, self.ranks)

    def _read_losses(self) -> None:
        """Take the losses of the steps since the last look; stops the run where one was not finite."""
        for loss, num_rows in self._losses.read():
            self._pace.add(loss, num_rows)

    def _expect_finite(self) -> None:
        """Stop before a step that went wrong is evaluated, saved or written as a map.

        Its loss is named before any weight.
        """
        self._read_losses()
        if self._known_finite != self.steps:
            expect_finite(self._trainable(), self.steps, self._last_good())
            self._known_finite = self.steps

    def _trainable(self) -> Trainable:
        optimizers = {FUSED: self.task.model.fused_optimizer, "dense": self.task.updates.dense}
        if self.task.updates.replicated:
            optimizers[REPLICATED] = self.task.updates.replicated
        return Trainable(self.task.model, optimizers)

    def _last_good(self) -> str | None:
        best = self.selection.best_step
        return step_folder(self.checkpoints, best) if best else None

    def _take_best(self) -> None:
        fault = best_fault(self.checkpoints, self.steps, self.selection.best_step)
        if fault:
            raise CheckpointError(f"the best step is lost: {fault} The same command again offers ways out.")
        if self.selection.best_step != self.steps:
            load_checkpoint(
                self.checkpoints, Trainable(self.task.model), step=self.selection.best_step, is_checked=True
            )


def note_time(folder: RunFolder, ranks: Ranks, *, every_s: float = 0.0) -> None:
    """Write how long the run has taken, at most every so many seconds."""
    if ranks.is_main:
        with suppress(OSError):  # a note that cannot be written stops nothing
            folder.note_time(every_s=every_s)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
