"""The checkpoint folder: which steps are complete, which to keep, what each holds.

step-N/tensors/          torch.distributed.checkpoint: every rank's shards
step-N/loop.json         step, counters, hyperparameters, random state of every rank
step-N/<extra file>      e.g. semantic_ids.parquet
step-N/checkpoint.json   written last: its presence makes the step visible
"""

import hashlib
import json
import re
from typing import Any

from trec_semid.core.config import Config
from trec_semid.core.errors import CheckpointError, ConfigError
from trec_semid.core.paths import (
    exists,
    filesystem,
    find_files,
    join,
    list_folder,
    read_bytes,
    remove,
    write_bytes,
)

MARKER = "checkpoint.json"
LOOP = "loop.json"
TENSORS = "tensors"
_STEP = re.compile(r"step-(\d+)")


class CheckpointFacts(Config):
    """`checkpoint.json`."""

    schema_version: int = 1
    step: int
    world_size: int
    """Ranks that saved it."""
    is_best: bool
    file_bytes: dict[str, int]
    """Size of every other file of the step."""
    sha256: dict[str, str]
    """Of `loop.json` and the extra files."""


def step_folder(folder: str, step: int) -> str:
    """Return the folder of a step."""
    return join(folder, f"step-{step}")


def parse_step_folder(place: str) -> tuple[str, int]:
    """Return the folder of checkpoints and the step that `.../checkpoints/step-N` names.

    Raises:
        ConfigError: it is not such a name.
    """
    folder, _, name = place.rstrip("/").rpartition("/")
    kind, _, number = name.partition("-")
    if not folder or kind != "step" or not number.isdecimal():
        remedy = "Name a folder as runs/x/checkpoints/step-12."
        raise ConfigError(f"start_from: '{place}' is no checkpoint. {remedy}")
    return folder, int(number)


def complete_steps(folder: str) -> list[int]:
    """Return the steps that were saved to their end, in rising order."""
    return [step for step in _all_steps(folder) if exists(join(step_folder(folder, step), MARKER))]


def latest_step(folder: str) -> int | None:
    """Return the newest complete step; None when there is none."""
    return max(complete_steps(folder), default=None)


def best_step(folder: str) -> int | None:
    """Return the newest complete step that was saved as the best; None when there is none."""
    return max((step for step in complete_steps(folder) if read_facts(folder, step).is_best), default=None)


def read_facts(folder: str, step: int) -> CheckpointFacts:
    """Read what a complete step says of itself.

    Raises:
        CheckpointError: the step is not there, not complete, or not readable.
    """
    path = join(step_folder(folder, step), MARKER)
    try:
        return CheckpointFacts.model_validate(json.loads(read_bytes(path)))
    except FileNotFoundError:
        have = ", ".join(map(str, complete_steps(folder))) or "none"
        raise CheckpointError(f"{path}: no complete checkpoint of step {step}. There are: {have}.") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable: {error}. Load another step.") from None


def read_file(folder: str, step: int, name: str) -> bytes:
    """Read `loop.json` or an extra file of a complete step and check that it is the one saved.

    Raises:
        CheckpointError: the step or the file is not there, or the file was changed since.
    """
    facts = read_facts(folder, step)
    path = join(step_folder(folder, step), name)
    if name not in facts.sha256:
        have = ", ".join(facts.sha256)
        raise CheckpointError(f"{path}: the checkpoint has no such file. It has: {have}.")
    content = read_bytes(path) if exists(path) else b""
    if hashlib.sha256(content).hexdigest() != facts.sha256[name]:
        raise CheckpointError(
            f"{path}: not the file that was saved (its checksum differs). Load another step."
        )
    return content


def check_files(folder: str, step: int) -> None:
    """Check that every file of a complete step is there in its full size.

    Raises:
        CheckpointError: a file is missing or was cut short.
    """
    at = step_folder(folder, step)
    sizes = _file_sizes(at)
    for name, size in read_facts(folder, step).file_bytes.items():
        if sizes.get(name) != size:
            got = "nothing" if name not in sizes else f"{sizes[name]:,} bytes"
            raise CheckpointError(
                f"{join(at, name)}: damaged (got {got}, expected {size:,} bytes). Load another step."
            )


def begin_step(folder: str, step: int, loop: dict[str, Any], extra_files: dict[str, bytes]) -> dict[str, str]:
    """Clear a step's folder, write its small files and return their checksums; the step is invisible yet."""
    drop_step(folder, step)
    files = {LOOP: (json.dumps(loop, allow_nan=False) + "\n").encode(), **extra_files}
    for name, content in files.items():
        write_bytes(join(step_folder(folder, step), name), content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def commit_step(folder: str, step: int, *, world_size: int, is_best: bool, sha256: dict[str, str]) -> None:
    """Make a fully written step visible."""
    at = step_folder(folder, step)
    facts = CheckpointFacts(
        step=step, world_size=world_size, is_best=is_best, file_bytes=_file_sizes(at), sha256=sha256
    )
    write_bytes(join(at, MARKER), (facts.model_dump_json(indent=1) + "\n").encode())


def prune(folder: str, keep_last: int) -> None:
    """Remove all but the newest complete steps and the newest best one; steps never completed go too."""
    complete = complete_steps(folder)
    kept = {*complete[-keep_last:], best_step(folder)}
    for step in _all_steps(folder):
        if step not in kept:
            drop_step(folder, step)


def drop_step(folder: str, step: int) -> None:
    """Remove a step, its marker first, so that a step half removed is not taken for a complete one."""
    at = step_folder(folder, step)
    remove(join(at, MARKER))
    remove(at)


def _all_steps(folder: str) -> list[int]:
    matches = (_STEP.fullmatch(name) for name in list_folder(folder))
    return sorted(int(match[1]) for match in matches if match)


def _file_sizes(at: str) -> dict[str, int]:
    fs, inner = filesystem(at)
    return {name: int(fs.size(join(inner, name)) or 0) for name in find_files(at) if name != MARKER}
