"""Loading a complete step into a model and its optimizers, on the same ranks or on others."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from trec_semid.checkpoints.failures import FAILURES, expect_not_stopped, reason
from trec_semid.checkpoints.folder import (
    LOOP,
    MARKER,
    TENSORS,
    latest_step,
    read_file,
    step_fault,
    step_folder,
)
from trec_semid.checkpoints.mapped import RowMap, every_row, expect_mappable, take_rows
from trec_semid.checkpoints.placements import Shapes, as_placed_now, sources_of_state
from trec_semid.checkpoints.random_state import restore_random_state
from trec_semid.checkpoints.storage import alone_without_warning, is_alone, storage_reader
from trec_semid.checkpoints.tensors import (
    Tensors,
    Trainable,
    make_state,
    named_tensors,
    set_hyperparameters,
    shape_of,
    take_over,
)
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import join
from trec_semid.runtime.ranks import broadcast_object, gather_objects


@runtime_checkable
class Particular(Protocol):
    """A module that does not take everything of the right shape."""

    def expect_loaded(self) -> None:
        """Raise CheckpointError where what was loaded does not fit what the module was built for."""
        ...


class Loaded(NamedTuple):
    """What a checkpoint holds beside tensors."""

    step: int
    loop: dict[str, Any]
    """As given to `save`."""


def load_checkpoint(
    folder: str,
    trainable: Trainable,
    *,
    step: int | None = None,
    is_checked: bool = False,
    mapped: Mapping[str, RowMap] | None = None,
) -> Loaded:
    """Load the newest complete step, or a given one, in place; all ranks make the same call.

    Every file is checked first, by its sha256, unless `step_fault` has just said that the step `is_checked`.

    On as many ranks and with the placement it was saved with, training goes on as if it had never stopped.
    On another number of ranks the tensors are cut anew and random generators start from another rank's.
    Tables that are replicated now and were not, or the reverse, take their state over
    (`checkpoints.placements`).
    Optimizers left out of `trainable` are not loaded. A module that is `Particular` has the last word.
    Tensors that are `mapped`, by name, take over rows as told, and so does the optimizer state of their rows;
    each is read as a whole on every rank in turn.

    Raises:
        CheckpointError: there is no complete step, a file is damaged, or model and checkpoint differ.
    """
    step = broadcast_object(latest_step(folder)) if step is None else step
    if step is None:
        raise CheckpointError(f"{folder}: no complete checkpoint here (looked for step-N/{MARKER}).")
    if not is_checked:
        _expect_sound(folder, step)
    at = join(step_folder(folder, step), TENSORS)
    entries = _saved_entries(at)
    saved = _shapes_of(entries)
    # Before names are taken: a fresh optimizer has no state yet, and what has no name is not read.
    make_state(trainable, set(saved))
    tensors = named_tensors(trainable)
    shapes = _shapes_on_all_ranks(tensors)
    sources = sources_of_state(saved, shapes)
    placed = as_placed_now(saved, shapes)
    by_row = _with_state(mapped or {}, _relevant(placed, trainable))
    _expect_fit(at, placed, trainable, shapes, by_row)
    # torch loads into tensors of the saved shape; mapped ones may have other rows, and state of tables that
    # were placed otherwise another shape: these are read as a whole below. Of optimizer state a rank has that
    # of its own shards only.
    apart = {name: tensors.pop(name) for name in {**by_row, **sources} if name in tensors}
    counts = {name: tensors.pop(name) for name in [*tensors] if name not in saved}
    _read(tensors, at, alone=is_alone())
    for name, now in apart.items():
        rows = by_row.get(name) or every_row(shapes[name][0])
        source = sources.get(name, name)
        take_rows(now, _read_whole(at, source, entries[source]), rows)
    for count in counts.values():
        count.fill_(step)
    take_over(trainable, tensors | apart | counts)
    # After the mapped rows too: a module is to judge what it ends up with.
    expect_loaded(trainable.model)
    return Loaded(step, _resume_loop(folder, step, trainable))


def expect_fit(folder: str, trainable: Trainable, *, step: int, mapped: Mapping[str, RowMap]) -> None:
    """Refuse a complete step that a model could not be loaded from, by the shapes alone.

    All ranks make the same call. The model may be unsharded, and on `meta`: no number is read.

    Raises:
        CheckpointError: model and checkpoint differ, as `load_checkpoint` would say it.
    """
    at = join(step_folder(folder, step), TENSORS)
    saved = _shapes_of(_saved_entries(at))
    by_row = _with_state(mapped, _relevant(saved, trainable))
    _expect_fit(at, saved, trainable, _shapes_on_all_ranks(named_tensors(trainable)), by_row)


def read_tensors(folder: str, step: int, prefix: str) -> dict[str, Tensor]:
    """Read the whole tensors of a complete step, without a model, a process group, or torchrec's types.

    They have any shape.

    Args:
        folder: of checkpoints.
        step: a complete one.
        prefix: of the names to read, as `model/`; names come back without it.

    Raises:
        CheckpointError: a file is damaged.
    """
    _expect_sound(folder, step)
    at = join(step_folder(folder, step), TENSORS)
    entries = _saved_entries(at)
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    _read(tensors, at, alone=True)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def read_loop(folder: str, step: int) -> dict[str, Any]:
    """Read the loop values of a complete step without loading it, as given to `save`.

    Raises:
        CheckpointError: the step is not there, or the file was changed since.
    """
    return json.loads(read_file(folder, step, LOOP))["loop"]


def _resume_loop(folder: str, step: int, trainable: Trainable) -> dict[str, Any]:
    facts = json.loads(read_file(folder, step, LOOP))
    for name, optimizer in trainable.optimizers.items():
        set_hyperparameters(optimizer, facts["hyperparameters"].get(name, []))
    states = facts["random_states"]
    # Where more ranks run than saved it, they take the states in turn, so that each has one.
    restore_random_state(states[(dist.get_rank() if dist.is_initialized() else 0) % len(states)])
    return facts["loop"]


def _expect_sound(folder: str, step: int) -> None:
    fault = step_fault(folder, step)
    if fault:
        raise CheckpointError(fault)


def _read(tensors: Tensors, at: str, *, alone: bool) -> None:
    try:
        with alone_without_warning():
            load(tensors, storage_reader=storage_reader(at), no_dist=alone)
    except FAILURES as error:
        expect_not_stopped(error)
        raise CheckpointError(f"{at}: cannot load: {reason(error)}.") from error


def _saved_entries(at: str) -> Mapping[str, Any]:
    try:
        return storage_reader(at).read_metadata().state_dict_metadata
    except FAILURES as error:  # a pickle: whatever another version of torch makes of it
        raise CheckpointError(f"{at}: not readable: {reason(error)}. Load another step.") from error


def _read_whole(at: str, name: str, entry: Any) -> Tensor:
    whole: Tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
    _read(whole, at, alone=True)
    return whole[name]


def _shapes_of(entries: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(entry, "size", ())) for name, entry in entries.items()}


def _relevant(saved: Shapes, trainable: Trainable) -> dict[str, tuple[int, ...]]:
    prefixes = ("model/", *(f"optimizer/{name}/" for name in trainable.optimizers))
    return {name: shape for name, shape in saved.items() if name.startswith(prefixes)}


def _with_state(mapped: Mapping[str, RowMap], saved: Shapes) -> dict[str, RowMap]:
    """Return mapped tensors together with saved optimizer state that has a number or more for each row."""
    by_row = dict(mapped)
    for name, shape in saved.items():
        parameter = name.split("/")[2] if name.startswith("optimizer/") else ""
        rows = mapped.get(f"model/{parameter}")
        if rows and shape[:1] == (rows.num_old,):
            by_row[name] = rows
    return by_row


def expect_loaded(model: nn.Module) -> None:
    """Let every module that is `Particular` judge what was loaded into it.

    Raises:
        CheckpointError: it does not fit what the module was built for.
    """
    for module in model.modules():
        if isinstance(module, Particular):
            module.expect_loaded()


def _expect_fit(
    at: str,
    saved: Shapes,
    trainable: Trainable,
    now: Shapes,
    mapped: Mapping[str, RowMap],
) -> None:
    """Compare shapes by name; those of mapped tensors may have other rows."""
    relevant = {name: shape for name, shape in _relevant(saved, trainable).items() if name not in mapped}
    _check_fit(at, {name: shape for name, shape in now.items() if name not in mapped}, relevant)
    for name, rows in mapped.items():
        if name in now:
            expect_mappable(name, saved.get(name, ()), now[name], rows)


def _shapes_on_all_ranks(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    # A rank lists the optimizer state of its own shards only, so the model is what all ranks list together.
    mine = {name: shape_of(tensor) for name, tensor in tensors.items()}
    return {name: shape for one in gather_objects(mine) for name, shape in one.items()}


def _check_fit(at: str, shapes: Shapes, saved: Shapes) -> None:
    problems = [f"{name}: in the model, not in the checkpoint" for name in shapes if name not in saved]
    problems += [f"{name}: in the checkpoint, not in the model" for name in saved if name not in shapes]
    differing = [name for name, shape in shapes.items() if name in saved and saved[name] != shape]
    problems += [f"{name}: got {saved[name]}, the model has {shapes[name]}" for name in differing]
    if not problems:
        return
    shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
    remedy = _remedy(differing if len(differing) == len(problems) else [])
    raise CheckpointError(f"{at}: the checkpoint does not fit the model:\n  {shown}\n{remedy}")


def _remedy(differing: list[str]) -> str:
    if differing and all(name.startswith("optimizer/") for name in differing):
        return (
            "The optimizer state has another shape than this placement gives it: row-wise Adagrad under "
            "column-wise placement keeps a row state per column shard. Load on as many column shards as it "
            "was saved with, or leave the optimizer out."
        )
    return (
        "Use the config.toml of the run that saved it: tables, sizes and placement must agree. What another "
        "version of trec_semid saved is trained again."
    )
