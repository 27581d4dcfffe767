"""Which checkpoint a run goes on from, on which inputs, and whether the best one so far is still there."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from trec_semid.checkpoints.folder import complete_steps, step_fault, step_folder
from trec_semid.checkpoints.load import read_loop
from trec_semid.core.errors import CheckpointError
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.ranks import Ranks, broadcast_object
from trec_semid.training.config import CheckpointsConfig
from trec_semid.training.finished import TEACHER

_log = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where a run goes on."""

    step: int
    loop: dict[str, Any]
    """What the training loop saved then."""
    went_back_to: int | None
    """The step that `resume_from` has named on the way here."""
    has_best: bool
    """Whether the best step so far is there; if not, it is to be forgotten."""


def refuse_other_inputs(
    checkpoints: str, inputs: dict[str, str], ranks: Ranks, other_generation: str | None = None
) -> None:
    """Refuse to go on from a checkpoint that was trained on other data or other codes than are there now.

    Args:
        checkpoints: of the run.
        inputs: checksums of what is there now.
        ranks: all of them make the same call.
        other_generation: why the generation of semantic IDs that is there now cannot be read; None where it
            can, or none is.

    Raises:
        CheckpointError: on every rank, before anything of the run is written over.
    """
    fault = None
    if ranks.is_main:
        try:
            fault = _other_inputs(checkpoints, inputs, other_generation)
        except CheckpointError as error:
            fault = str(error)  # the other ranks wait for an answer
    fault = broadcast_object(fault)
    if fault:
        raise CheckpointError(fault)


def _other_inputs(checkpoints: str, inputs: dict[str, str], other_generation: str | None) -> str | None:
    newest = newest_loop(checkpoints)
    if newest is None:
        return None
    step, before = newest[0], newest[1]["inputs"]
    if other_generation and before["dataset"] == inputs["dataset"]:
        return f"{checkpoints}: step {step} was {other_generation}"
    if before == inputs:
        return None
    what = "other semantic IDs" if before["dataset"] == inputs["dataset"] else "other data"
    if {**before, TEACHER: ""} == {**inputs, TEACHER: ""}:
        what = "another teacher, or another state of it,"
    return (
        f"{checkpoints}: step {step} was trained on {what} than the config names now. "
        "Set another `run`, or remove that folder."
    )


def find_start(
    checkpoints: str, resume_from: int | None, saving: CheckpointsConfig, ranks: Ranks, log: RunLog
) -> Start | None:
    """Return the newest sound checkpoint, or the one asked for; None where there is none; all ranks ask.

    A damaged one is named, on the console and in the log, and the one before is taken. All files of the
    chosen one and of the best one so far are checked here.

    Raises:
        CheckpointError: the one asked for is not there or damaged, none is sound, or the best one is lost
            and the config does not say to select anew.
    """
    return _choose(checkpoints, resume_from, saving, partial(_warn, ranks, log))


def expect_start(checkpoints: str, resume_from: int | None, saving: CheckpointsConfig) -> None:
    """Raise what `find_start` would; all ranks ask, before they give up a result that is there."""
    _choose(checkpoints, resume_from, saving, lambda text, step: None)


def _choose(
    checkpoints: str, resume_from: int | None, saving: CheckpointsConfig, warn: Callable[[str, int], None]
) -> Start | None:
    # Ranks that list the folder themselves might see different steps: one listing counts for all.
    steps, own = broadcast_object(_look(checkpoints, resume_from))
    if resume_from is not None and not own and resume_from not in steps:
        have = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"resume_from: {checkpoints} has no complete step {resume_from}. It has: {have}."
        )
    # With `resume_from` still set after another stop, the run goes on from what it has trained since.
    candidates = steps if resume_from is None else sorted({*own, resume_from} & {*steps})
    step = _newest_sound(checkpoints, candidates, warn)
    if step is None:
        return None
    loop = read_loop(checkpoints, step)
    went_back_to = loop["went_back_to"] if resume_from is None else resume_from
    fault = best_fault(checkpoints, step, loop["selection"]["best_step"])
    if fault and saving.lost_best == "refuse":
        others = [one for one in candidates if one < step and _has_best(checkpoints, one)]
        raise CheckpointError(_lost(checkpoints, step, loop, fault, others))
    if fault:
        warn(f"{fault} It is forgotten: the best step is selected anew from step {step} on.", step)
    return Start(step, loop, went_back_to, has_best=not fault)


def newest_loop(checkpoints: str) -> tuple[int, dict[str, Any]] | None:
    """Return the newest step whose loop values can be read, and these; None where there are no steps.

    Raises:
        CheckpointError: they can be read of no step.
    """
    faults: list[str] = []
    for step in reversed(complete_steps(checkpoints)):
        try:
            return step, read_loop(checkpoints, step)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(_none_sound(checkpoints, faults))
    return None


def best_fault(checkpoints: str, step: int, best: int) -> str | None:
    """Return what is wrong with the best step so far; None where nothing is, or it is `step` itself."""
    return None if best in (0, step) else step_fault(checkpoints, best)


def _look(checkpoints: str, resume_from: int | None) -> tuple[list[int], list[int]]:
    """Return complete steps, and those of them that were trained after going back to `resume_from`."""
    steps = complete_steps(checkpoints)
    return steps, [step for step in steps if resume_from and _went_back_to(checkpoints, step) == resume_from]


def _went_back_to(checkpoints: str, step: int) -> int | None:
    try:
        return read_loop(checkpoints, step)["went_back_to"]
    except CheckpointError:
        return None


def _newest_sound(checkpoints: str, candidates: list[int], warn: Callable[[str, int], None]) -> int | None:
    faults: list[str] = []
    for step in reversed(candidates):
        fault = step_fault(checkpoints, step)
        if fault is None:
            if faults:
                warn(f"going back to step {step}", step)
            return step
        warn(f"step {step} cannot be used: {fault}", step)
        faults.append(fault)
    if faults:
        raise CheckpointError(_none_sound(checkpoints, faults))
    return None


def _none_sound(checkpoints: str, faults: list[str]) -> str:
    listed = "\n  ".join(faults)
    return (
        f"{checkpoints}: no checkpoint can be used:\n  {listed}\nRemove that folder to train from the start."
    )


def _has_best(checkpoints: str, step: int) -> bool:
    if step_fault(checkpoints, step):
        return False
    return best_fault(checkpoints, step, read_loop(checkpoints, step)["selection"]["best_step"]) is None


def _lost(checkpoints: str, step: int, loop: dict[str, Any], fault: str, others: list[int]) -> str:
    selection = loop["selection"]
    best = f"{selection['best_step']} ({selection['metric']} {selection['best_value']:.4f})"
    ways = [f"--set checkpoints.lost_best=reselect goes on from step {step} and selects anew from there"]
    ways += [f"--set resume_from={one} trains again from there" for one in others]
    place = step_folder(checkpoints, step)
    return f"{place}: the best step so far, {best}, is lost: {fault} Ways out: {'; '.join(ways)}."


def _warn(ranks: Ranks, log: RunLog, text: str, step: int) -> None:
    if ranks.is_main:
        _log.warning("%s", text)
    log.event("damaged", step=step, problem=text)
