"""The training loop of verbs that train a model: steps, log, evaluation, selection, checkpoints, resume."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from trec_semid.checkpoints.folder import latest_step, step_folder
from trec_semid.checkpoints.load import load_checkpoint
from trec_semid.checkpoints.save import CheckpointWriter
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.runtime.logs import RunLog, Work, working
from trec_semid.runtime.ranks import Ranks, broadcast_object, leave_if_asked, signal_on_any_rank
from trec_semid.runtime.stopping import Stopped, deferring
from trec_semid.training.config import CheckpointsConfig, TrainConfig
from trec_semid.training.finetune.finetuning import Tuning
from trec_semid.training.finite import expect_finite
from trec_semid.training.optimizers import Updates
from trec_semid.training.resume import best_fault, find_start, newest_loop
from trec_semid.training.selection import Selection
from trec_semid.training.start_weights import StartWeights
from trec_semid.training.steps import Arguments, StepReport, train_steps

_log = logging.getLogger(__name__)
_NOTE_S = 10.0
"""Time between notes of how long the run has taken."""
_SETTLE_S = 10.0
"""How long an error waits for the save in the background."""


class Batches(Protocol):
    """Training batches that know where they are."""

    epoch: int

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        ...

    def batches(self) -> Iterator[Any]:
        """Yield what is left of this epoch."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        ...


@dataclass
class Pace:
    """Loss and speed since the last line of the log."""

    loss_sum: float = 0.0
    num_rows: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, report: StepReport) -> None:
        """Take a step."""
        self.loss_sum += report.loss * report.num_rows
        self.num_rows += report.num_rows

    def scalars(self) -> dict[str, float]:
        """Return what the log says, and begin anew."""
        rows, elapsed_s = max(self.num_rows, 1), max(time.monotonic() - self.started, 1e-9)
        said = {"train/loss": self.loss_sum / rows, "train/samples_per_s": round(rows / elapsed_s, 1)}
        self.loss_sum, self.num_rows, self.started = 0.0, 0, time.monotonic()
        return said


@dataclass
class Training:
    """Everything that takes part in the loop, and how far it is."""

    config: TrainConfig
    saving: CheckpointsConfig
    select_by: str
    """Metric of the validation split that decides which step is best."""
    shown: tuple[str, ...]
    """Metrics that the log and the console say."""
    ranks: Ranks
    log: RunLog
    model: DistributedModelParallel
    updates: Updates
    loader: Batches
    arguments: Callable[[Any, int], Arguments]
    """Of the model, from a batch and the number of its step."""
    evaluate: Callable[[], dict[str, float]]
    """Returns metrics of the validation split over all ranks, without the split's name."""
    checkpoints: str
    """Folder of checkpoints."""
    snapshot: Callable[[], dict[str, bytes]]
    """Makes what every checkpoint carries beside tensors: the semantic IDs, and the tokenizer in the loop."""
    inputs: dict[str, str]
    """Checksums of what it is trained on."""
    tuning: Tuning | None = None
    """Where a tokenizer is in the loop."""
    start_from: Callable[[], StartWeights | None] = lambda: None
    """Finds another run's weights to start from; asked where there is no step of this run to go on from."""
    resume_from: int | None = None
    """Step of this run to go on from; the newest one where not given."""
    note_time: Callable[[float], None] = lambda every_s: None
    """Told at every checkpoint, and at lines of the log, at most every so many seconds."""
    steps: int = 0
    """Optimizer steps done."""

    def __post_init__(self) -> None:
        self.selection = Selection(self.select_by, self.config.patience)
        self._writer = CheckpointWriter(
            self.checkpoints, keep_last=self.saving.keep_last, in_background=self.saving.in_background
        )
        self._last_evaluated = self._known_finite = 0
        self._went_back_to: int | None = None
        self._forgot_best = False

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, or begin; `refuse_other_inputs` comes first.

        Raises:
            CheckpointError: it does not fit, or the best one so far is lost.
        """
        start = find_start(self.checkpoints, self.resume_from, self.saving, self.ranks, self.log)
        if start is None:
            self._begin()
            return
        step, loop = start.step, start.loop
        load_checkpoint(self.checkpoints, self._trainable(), step=step, is_checked=True)
        self.steps = step
        self.loader.load_state_dict(loop["loader"])
        self.selection.load_state_dict(loop["selection"])
        self._last_evaluated = loop["last_evaluated"]
        self._went_back_to = start.went_back_to
        if not start.has_best:
            self.selection.restart()
            self.selection.best_step, self._forgot_best = 0, True
        if self.tuning:
            self.tuning.load_state_dict(loop["tuning"])
        _log.info("going on from step %d", step)
        self.log.event("resume", step=step, epoch=self.loader.epoch)

    def _begin(self) -> None:
        start = self.start_from()
        if start is not None:
            start.load(self.model)

    def run(self) -> None:
        """Train until the last epoch or until patience is at its end, and leave the best weights in place."""
        epochs, steps = self.config.max_epochs, self.config.steps_of(self.loader.steps_per_epoch)
        try:
            with (
                deferring(),
                working("training", epochs * steps, shown=self.ranks.is_main) as work,
            ):
                work.advance(self.steps)
                if self._owes_an_evaluation:
                    self._evaluate()
                while self.loader.epoch < epochs and not self._is_over:
                    self._train_epoch(work)
                self._writer.wait()
                leave_if_asked()
        except BaseException:
            # A collapse names a checkpoint: it must be whole when the run ends. No collective: after an
            # error other ranks may never come to it.
            self._writer.settle(_SETTLE_S)
            raise
        self._take_best()

    def _train_epoch(self, work: Work) -> None:
        train, pace = self.config, Pace()
        reports = train_steps(
            self.model,
            self.updates,
            self.loader.batches(),
            steps_done=self.steps,
            ranks=self.ranks,
            arguments=self.arguments,
            accumulate=train.accumulate,
            precision=getattr(torch, train.precision),
        )
        for report in reports:
            self.steps = report.step
            pace.add(report)
            if self.tuning:
                self.tuning.after_step(report)
            work.advance()
            if report.step % train.log_every_steps == 0:
                self.log.scalars(pace.scalars(), step=report.step)
                self.note_time(_NOTE_S)
            if report.must_stop:
                self._save_and_stop()
            if train.evaluate_every_steps and report.step % train.evaluate_every_steps == 0:
                self._evaluate()
                pace.started = time.monotonic()
                if self._is_over:
                    return
            elif _is_due(report.step, self.saving.every_steps):
                self._save(is_best=False)
        self._end_epoch()

    def _end_epoch(self) -> None:
        is_last = self.loader.epoch == self.config.max_epochs
        if self._last_evaluated < self.steps and (is_last or not self.config.evaluate_every_steps):
            self._evaluate()

    @property
    def _owes_an_evaluation(self) -> bool:
        """Whether a checkpoint holds a step after which training evaluates, but not what that said.

        A last step of fewer batches than the others takes the last of the epoch before it is done.
        """
        if self._forgot_best or self._last_evaluated == self.steps:
            return self._forgot_best
        every = self.config.evaluate_every_steps
        at_an_end = self.loader.epoch > 0 and self.loader.state_dict()["step"] == 0
        is_last = self.loader.epoch == self.config.max_epochs
        return bool(every and self.steps % every == 0) or (at_an_end and (is_last or not every))

    @property
    def _is_over(self) -> bool:
        """Whether patience is at its end; it does not end before the tokenizer has begun to move."""
        return self.selection.is_over and not (self.tuning and self.tuning.is_ahead(self.steps))

    def _evaluate(self) -> None:
        self._forgot_best = False
        self._expect_finite()
        if self.tuning:
            self.tuning.before_evaluation(self.steps, self._last_good())
            # A tuned run stands for tuned codes: its best step is one at which they had moved.
            if self.tuning.moves(self.steps) and not self.tuning.moves(self.selection.best_step):
                self.selection.restart()
        try:
            metrics = self.evaluate()
        except Stopped:  # on all ranks at once
            self._save_and_stop()
        if self.select_by not in metrics:
            problem = f"the events of the valid split do not define {self.select_by}"
            remedy = "Prepare the dataset with another [split]"
            raise DataError(problem, field="train.select_by", remedy=remedy)
        self._last_evaluated = self.steps
        values = {f"valid/{name}": metrics[name] for name in self.shown if name in metrics}
        epoch = self.steps / self.config.steps_of(self.loader.steps_per_epoch)
        self.log.scalars({"epoch": round(epoch, 4), **values}, step=self.steps, event="evaluate")
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        _log.info("step %d, epoch %.2f: %s", self.steps, epoch, shown)
        is_best = self.selection.is_better(self.steps, metrics[self.select_by])
        if is_best:
            self.log.event("best", step=self.steps, **{f"valid/{self.select_by}": metrics[self.select_by]})
        self._save(is_best=is_best)

    def _save_and_stop(self) -> NoReturn:
        """Save this very step, then end; all ranks come here together.

        Raises:
            Stopped: always.
        """
        number = signal_on_any_rank()
        self._writer.wait()
        if broadcast_object(latest_step(self.checkpoints)) != self.steps:
            self._save(is_best=False)
            self._writer.wait()
        self.log.event("stop", step=self.steps, signal=number)
        _log.info("saved step %d", self.steps)
        raise Stopped(number)

    def _save(self, *, is_best: bool) -> None:
        self._expect_finite()
        loop = {
            "loader": self.loader.state_dict(),
            "selection": self.selection.state_dict(),
            "last_evaluated": self._last_evaluated,
            "inputs": self.inputs,
            "went_back_to": self._went_back_to,
            "tuning": self.tuning.state_dict() if self.tuning else {},
        }
        files = self.snapshot() if self.ranks.is_main else {}
        self._writer.save(self.steps, self._trainable(), loop=loop, extra_files=files, is_best=is_best)
        self.log.event("checkpoint", step=self.steps)
        self.note_time(0.0)

    def _expect_finite(self) -> None:
        if self._known_finite != self.steps:
            expect_finite(self._trainable(), self.steps, self._last_good())
            self._known_finite = self.steps

    def _trainable(self) -> Trainable:
        optimizers = {"fused": self.model.fused_optimizer, "dense": self.updates.dense}
        if self.updates.replicated:
            optimizers["replicated"] = self.updates.replicated
        return Trainable(self.model, optimizers)

    def _last_good(self) -> str:
        best = self.selection.best_step
        return step_folder(self.checkpoints, best) if best else "none: it was the first evaluation"

    def _take_best(self) -> None:
        fault = best_fault(self.checkpoints, self.steps, self.selection.best_step)
        if fault:
            raise CheckpointError(f"the best step is lost: {fault} The same command again offers ways out.")
        if self.selection.best_step != self.steps:
            load_checkpoint(
                self.checkpoints, Trainable(self.model), step=self.selection.best_step, is_checked=True
            )


def refuse_other_inputs(checkpoints: str, inputs: dict[str, str], ranks: Ranks) -> None:
    """Refuse to go on from a checkpoint that was trained on other data or other codes than are there now.

    Raises:
        CheckpointError: on every rank, before anything of the run is written over.
    """
    fault = None
    if ranks.is_main:
        try:
            fault = _other_inputs(checkpoints, inputs)
        except CheckpointError as error:
            fault = str(error)  # the other ranks wait for an answer
    fault = broadcast_object(fault)
    if fault:
        raise CheckpointError(fault)


def _other_inputs(checkpoints: str, inputs: dict[str, str]) -> str | None:
    newest = newest_loop(checkpoints)
    if newest is None:
        return None
    step, before = newest[0], newest[1]["inputs"]
    if before == inputs:
        return None
    what = "other semantic IDs" if before["dataset"] == inputs["dataset"] else "other data"
    return (
        f"{checkpoints}: step {step} was trained on {what} than the config names now. "
        "Set another `run`, or remove that folder."
    )


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
