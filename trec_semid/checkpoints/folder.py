"""The checkpoint folder: which steps are complete, which to keep, what each holds.

step-N/tensors/          torch.distributed.checkpoint: every rank's shards
step-N/loop.json         step, counters, hyperparameters, random state of every rank
step-N/<extra file>      e.g. semantic_ids.parquet
step-N/checkpoint.json   sha256 of all of these and of itself; written last: it makes the step visible

A step that is saved again is written beside the complete one, as step-N.1, step-N.2 and so on: of several
complete folders of a step the last counts. No folder is renamed, so this holds on object stores too.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from trec_semid.core.config import Config
from trec_semid.core.errors import CheckpointError, ConfigError, DataError
from trec_semid.core.paths import exists, join, list_folder, read_bytes, remove, write_bytes
from trec_semid.runtime.fingerprints import Fingerprint, read_signed, signed_json, verify
from trec_semid.runtime.ranks import broadcast_object

MARKER = "checkpoint.json"
LOOP = "loop.json"
TENSORS = "tensors"
_STEP = re.compile(r"step-(\d+)(?:\.(\d+))?")
_VERSION = 2
_REMEDY = "Load another step"
_log = logging.getLogger(__name__)


class CheckpointFacts(Config):
    """`checkpoint.json`."""

    schema_version: int = _VERSION
    step: int
    world_size: int
    """Ranks that saved it."""
    is_best: bool
    files: dict[str, Fingerprint]
    """Every other file of the step."""


class Attempt(NamedTuple):
    """One folder of a step."""

    step: int
    number: int
    """How many complete folders of the step came before it."""

    @property
    def name(self) -> str:
        """Return its name in the folder of checkpoints."""
        return f"step-{self.step}.{self.number}" if self.number else f"step-{self.step}"


class Begun(NamedTuple):
    """A step whose small files are written; it is invisible yet."""

    at: str
    """Its folder."""
    files: dict[str, Fingerprint]


def step_folder(folder: str, step: int) -> str:
    """Return the folder of a complete step, or the one that its first save would have."""
    complete = _complete_attempts(folder, step)
    return join(folder, (complete[-1] if complete else Attempt(step, 0)).name)


def parse_step_folder(place: str) -> tuple[str, int]:
    """Return the folder of checkpoints and the step that `.../checkpoints/step-N` names.

    Raises:
        ConfigError: it is not such a name.
    """
    folder, _, name = place.rstrip("/").rpartition("/")
    match = _STEP.fullmatch(name)
    if not folder or not match:
        remedy = "Name a folder as runs/x/checkpoints/step-12."
        raise ConfigError(f"start_from: '{place}' is no checkpoint. {remedy}")
    return folder, int(match[1])


def complete_steps(folder: str) -> list[int]:
    """Return the steps that were saved to their end, in rising order."""
    return sorted({attempt.step for attempt in _complete_attempts(folder)})


def latest_step(folder: str) -> int | None:
    """Return the newest complete step; None when there is none."""
    return max(complete_steps(folder), default=None)


def best_step(folder: str) -> int | None:
    """Return the newest complete step that was saved as the best; None when there is none.

    Raises:
        CheckpointError: the marker of a newer step is damaged, and that step may have been better.
    """
    for step in reversed(complete_steps(folder)):
        if read_facts(folder, step).is_best:
            return step
    return None


def read_facts(folder: str, step: int) -> CheckpointFacts:
    """Read what a complete step says of itself.

    Raises:
        CheckpointError: the step is not there, not complete, or its marker is damaged.
    """
    return _read_facts_at(step_folder(folder, step), folder, step)


def _read_facts_at(at: str, folder: str, step: int) -> CheckpointFacts:
    path = join(at, MARKER)
    try:
        values = read_signed(read_bytes(path))
        if values.get("schema_version") != _VERSION:
            raise ValueError("saved by another version of trec_semid; train again with this one")
        return CheckpointFacts.model_validate(values)
    except FileNotFoundError:
        have = ", ".join(map(str, complete_steps(folder))) or "none"
        raise CheckpointError(f"{path}: no complete checkpoint of step {step}. There are: {have}.") from None
    except (ValueError, OSError) as error:
        text = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not readable: {text}. {_REMEDY}.") from None


def extra_files(folder: str, step: int) -> list[str]:
    """Return the names of a complete step's files beside its tensors."""
    return [name for name in read_facts(folder, step).files if not name.startswith(f"{TENSORS}/")]


def read_file(folder: str, step: int, name: str) -> bytes:
    """Read `loop.json` or an extra file of a complete step and check that it is the one saved.

    Raises:
        CheckpointError: the step or the file is not there, or the file was changed since.
    """
    return read_files(folder, step, [name])[name]


def read_files(folder: str, step: int, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """Read files of a complete step beside its tensors, all where none are named, each as `read_file` does.

    Looks once for the step's folder, which takes a listing and a question for every step there is.
    """
    at = step_folder(folder, step)
    facts = _read_facts_at(at, folder, step)
    have = [name for name in facts.files if not name.startswith(f"{TENSORS}/")]
    contents: dict[str, bytes] = {}
    for name in have if names is None else names:
        path = join(at, name)
        if name not in facts.files:
            raise CheckpointError(f"{path}: the checkpoint has no such file. It has: {', '.join(have)}.")
        contents[name] = read_bytes(path) if exists(path) else b""
        if _fingerprint_of(contents[name]) != facts.files[name]:
            raise CheckpointError(f"{path}: not the file that was saved (its checksum differs). {_REMEDY}.")
    return contents


def step_fault(folder: str, step: int) -> str | None:
    """Return what is wrong with a step, the same on every rank; None when every file is the one saved.

    All ranks of a process group ask together, and share the reading.
    """
    facts = broadcast_object(_facts_or_fault(folder, step))
    if isinstance(facts, str):
        return facts
    try:
        verify(step_folder(folder, step), facts.files, remedy=_REMEDY)
    except DataError as error:
        return str(error)
    return None


def _facts_or_fault(folder: str, step: int) -> CheckpointFacts | str:
    try:
        return read_facts(folder, step)
    except CheckpointError as error:
        return str(error)


def begin_step(folder: str, step: int, loop: Mapping[str, Any], extra: Mapping[str, bytes]) -> Begun:
    """Clear a folder for a step beside the complete one, if there is one, and write the small files."""
    complete = [attempt.number for attempt in _complete_attempts(folder, step)]
    # Never over a complete folder of the same step: it has to stand if this save fails.
    at = join(folder, Attempt(step, max(complete, default=-1) + 1).name)
    remove(at)  # never complete: left by a process that was killed
    files = {LOOP: (json.dumps(loop, allow_nan=False) + "\n").encode(), **extra}
    try:
        for name, content in files.items():
            write_bytes(join(at, name), content)
    except OSError:
        with suppress(OSError):
            remove(at)
        raise
    return Begun(at, {name: _fingerprint_of(content) for name, content in files.items()})


def commit_step(at: str, facts: CheckpointFacts) -> None:
    """Make a fully written step visible."""
    write_bytes(join(at, MARKER), signed_json(facts.model_dump()))


def prune(folder: str, keep_last: int, newest: int) -> None:
    """Remove what a run that has just saved a step needs no more.

    The last steps stay, and for each the one that was the best when it was saved: whoever goes back to it
    has the best weights too. What goes: other steps, folders never completed, folders of a step that was
    saved again, and steps beyond `newest`, which a run that went back has left behind.
    """
    best = _best_flags(folder, [step for step in complete_steps(folder) if step <= newest])
    # `best` leaves out steps whose marker is damaged: they must not take the place of a good one.
    last = list(best)[-keep_last:]
    bests = {max((one for one in best if best[one] and one <= step), default=step) for step in last}
    # Attempts come in rising order, so that of a step saved twice the last one stays.
    complete = {attempt.step: attempt for attempt in _complete_attempts(folder)}
    stay = {complete[step] for step in {*last, *bests}}
    for attempt in _all_attempts(folder):
        if attempt not in stay:
            drop(join(folder, attempt.name))


def sweep_steps(folder: str) -> list[str]:
    """Remove folders of steps that were never completed, and return them; only a run's own process may."""
    complete = _complete_attempts(folder)
    left = [join(folder, one.name) for one in _all_attempts(folder) if one not in complete]
    for at in left:
        remove(at)
    return left


def drop(at: str) -> None:
    """Remove a step's folder, its marker first: a step half removed is not taken for a complete one."""
    remove(join(at, MARKER))
    remove(at)


def _fingerprint_of(content: bytes) -> Fingerprint:
    return Fingerprint(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _best_flags(folder: str, steps: list[int]) -> dict[int, bool]:
    flags: dict[int, bool] = {}
    for step in steps:
        try:
            flags[step] = read_facts(folder, step).is_best
        except CheckpointError as error:
            _log.warning("%s It is removed.", error)
    return flags


def _all_attempts(folder: str) -> list[Attempt]:
    matches = (_STEP.fullmatch(name) for name in list_folder(folder))
    return sorted(Attempt(int(match[1]), int(match[2] or 0)) for match in matches if match)


def _complete_attempts(folder: str, step: int | None = None) -> list[Attempt]:
    """Return the complete folders of a step, or of every step."""
    asked = [one for one in _all_attempts(folder) if step is None or one.step == step]
    return [one for one in asked if exists(join(folder, one.name, MARKER))]
