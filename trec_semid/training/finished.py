"""Finished runs as people name them: `runs/x` with its best weights, or `runs/x/checkpoints/step-12`."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import nn

from trec_semid.checkpoints.folder import complete_steps, latest_step, parse_step_folder
from trec_semid.checkpoints.load import load_checkpoint, read_loop
from trec_semid.checkpoints.tensors import Trainable
from trec_semid.core.config import load_saved
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import exists, join, parent_of, read_bytes
from trec_semid.runtime.ranks import broadcast_object
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.generations.manifest import read_before, refusal
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.config import TrainingRunConfig

RunConfigT = TypeVar("RunConfigT", bound=TrainingRunConfig)


TEACHER = "teacher"
"""Among the inputs of a run: what taught it. It goes on with no other, but is asked without it."""


class FinishedRun(NamedTuple):
    """A finished run, or one step of it."""

    uri: str
    """Its folder."""
    step: int | None = None
    """Whose weights count; the best step where not given."""

    @property
    def checkpoints(self) -> str:
        """Folder of its checkpoints."""
        return join(self.uri, "checkpoints")

    @property
    def name(self) -> str:
        """How a person names it: its folder, or that of its step."""
        return self.uri if self.step is None else join(self.checkpoints, f"step-{self.step}")

    def path(self, name: str) -> str:
        """Return a path inside its folder."""
        return join(self.uri, name)


def parse_run(place: str) -> FinishedRun:
    """Return which run, and which step of it, a path names.

    Raises:
        ConfigError: it is no finished run, or the run has no such step.
    """
    checkpoints, _, step = place.rstrip("/").rpartition("/")
    is_step = checkpoints.rpartition("/")[2] == "checkpoints" and step.removeprefix("step-").isdecimal()
    run = FinishedRun(place.rstrip("/"))
    if is_step:
        run = FinishedRun(parent_of(checkpoints), parse_step_folder(place)[1])
    if not exists(run.path("metrics.json")) or not exists(run.path("run.json")):
        raise ConfigError(f"{place} is not a finished run. Run it to its end, or name its folder.")
    if run.step is not None and run.step not in (steps := complete_steps(run.checkpoints)):
        have = ", ".join(map(str, steps)) or "none"
        raise ConfigError(f"{place}: the run has no complete step {run.step}. It has: {have}.")
    return run


def job_of(run: FinishedRun) -> str:
    """Return the verb that wrote a run."""
    return str(RunFolder(run.uri, "").read_json("run.json").get("job"))


def expect_codes_are_read(configs: Iterable[TrainingRunConfig], semantic_ids: str | None) -> None:
    """Refuse a place of semantic IDs that no run reads.

    Raises:
        ConfigError: none of them does.
    """
    if semantic_ids and not any(config.semantic_ids for config in configs):
        raise ConfigError("semantic_ids: the runs read none: leave semantic_ids out.")


def config_of(kind: type[RunConfigT], run: FinishedRun, changes: Mapping[str, Any]) -> RunConfigT:
    """Return a run's config with where things lie now; codes are of those runs alone that read some.

    Args:
        kind: of its job.
        run: whose it is.
        changes: keys and values; None where nothing has changed.
    """
    config = load_saved(kind, run.path("config.toml"))
    update = {key: value for key, value in changes.items() if value is not None}
    if not config.semantic_ids:
        update.pop("semantic_ids", None)
    return config.model_copy(update=update)


def expect_same_inputs(
    run: FinishedRun, inputs: Mapping[str, str], semantic_ids: SemanticIds | None = None
) -> None:
    """Check that a run was trained on what is there now, before anything is written.

    Args:
        run: finished.
        inputs: checksums of what is there now, by name.
        semantic_ids: the map that is there now.

    Raises:
        ConfigError: its data, codes or members are others, or it cannot read the generation of its codes.
    """
    said = RunFolder(run.uri, "").read_json("run.json")
    recorded, read = _without_teacher(said.get("inputs", inputs)), read_before(said)
    now = semantic_ids and semantic_ids.generation
    if read and now and (other := refusal(read, now)):
        raise ConfigError(f"{run.uri} was {other}")
    others = {name for name in {**recorded, **inputs} if recorded.get(name) != inputs.get(name)}
    if others == {"members"}:
        raise ConfigError(f"{run.uri} is of runs that were trained anew since then. Make this ensemble anew.")
    if others:
        raise ConfigError(f"{run.uri} was trained on other data or codes than are there now.")


def expect_checkpoint(run: FinishedRun) -> None:
    """Check that a run that has learnt something still has weights.

    Raises:
        ConfigError: none are left.
    """
    if latest_step(run.checkpoints) is None:
        raise ConfigError(f"runs: {run.uri} has no checkpoint left.")


def load_weights(run: FinishedRun, model: nn.Module, inputs: dict[str, str]) -> None:
    """Load the weights of the run's step into a placed model; all ranks call it together.

    Args:
        run: whose they are.
        model: built by the run's config.
        inputs: checksums of what is there now; the run has to be trained on the same.

    Raises:
        ConfigError: the run was trained on other data or codes, or has no checkpoint left.
        CheckpointError: the checkpoint is gone or damaged.
    """
    load_checkpoint(run.checkpoints, Trainable(model), step=step_of_weights(run, inputs))


def step_of_weights(run: FinishedRun, inputs: Mapping[str, str]) -> int:
    """Return the step whose weights count: the run's, or its best one; all ranks call it together.

    Args:
        run: whose they are.
        inputs: checksums of what is there now; the run has to be trained on the same.

    Raises:
        ConfigError: the run was trained on other data or codes, or has no checkpoint left.
    """
    newest = broadcast_object(latest_step(run.checkpoints))
    if newest is None:
        raise ConfigError(f"{run.uri} has no checkpoint left.")
    loop = read_loop(run.checkpoints, newest)
    if _without_teacher(loop["inputs"]) != inputs:
        raise ConfigError(f"{run.uri} was trained on other data or codes than are there now.")
    return run.step or loop["selection"]["best_step"]


def _without_teacher(inputs: Mapping[str, str]) -> dict[str, str]:
    return {name: checksum for name, checksum in inputs.items() if name != TEACHER}


def checksum_of_results(runs: Sequence[str], *, key: str = "model.runs") -> str:
    """Return a checksum of what finished runs came to.

    Args:
        runs: their folders, or those of steps.
        key: of the config that names them, which an error names.

    Raises:
        ConfigError: one of them is not finished.
    """
    digest = hashlib.sha256()
    for run in runs:
        place = join(run, "metrics.json")
        if not exists(place):
            raise ConfigError(f"{key}: {run} is not a finished run. Run it to its end.")
        digest.update(read_bytes(place))
    return digest.hexdigest()
