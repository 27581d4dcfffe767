"""Tensors of a checkpoint a stretch of rows at a time: memory is that of a stretch and of a saved piece.

Legend: N rows of a saved tensor, n of a stretch.
"""

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from trec_semid.checkpoints.failures import FAILURES, expect_not_stopped, reason
from trec_semid.checkpoints.folder import TENSORS, step_fault, step_folder
from trec_semid.checkpoints.storage import storage_reader
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import join


@final
class SavedTensors:
    """The tensors of a complete step by name, read in stretches, without a model or a process group."""

    def __init__(self, folder: str, step: int, prefix: str) -> None:
        """Look what there is; every file is checked by its sha256 first.

        Args:
            folder: of checkpoints.
            step: a complete one.
            prefix: of the names, as `model/`; they are asked for without it.

        Raises:
            CheckpointError: a file is damaged.
        """
        if fault := step_fault(folder, step):
            raise CheckpointError(fault)
        self._at, self._prefix = join(step_folder(folder, step), TENSORS), prefix
        try:
            self._entries: dict[str, Any] = dict(storage_reader(self._at).read_metadata().state_dict_metadata)
        except FAILURES as error:  # a pickle: whatever another version of torch makes of it
            raise self._failed(error) from error

    @property
    def names(self) -> list[str]:
        """Of all tensors under the prefix."""
        found = (name for name, entry in self._entries.items() if isinstance(entry, TensorStorageMetadata))
        return [name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._entries[self._prefix + name].size)

    def whole(self, name: str) -> Tensor:
        """Return a tensor (...)."""
        shape = self.shape(name)
        return self._read(name, 0, shape[0] if shape else 1)

    def stretches(self, name: str, num_rows: int) -> Iterator[Tensor]:
        """Yield (n, ...) consecutive rows of a tensor, so many at a time."""
        total = self.shape(name)[0]
        for first in range(0, total, num_rows):
            yield self._read(name, first, min(first + num_rows, total))

    def _read(self, name: str, first: int, last: int) -> Tensor:
        entry = self._entries[self._prefix + name]
        shape = list(entry.size)
        if shape:
            shape[0] = last - first
        rows = torch.empty(shape, dtype=entry.properties.dtype)
        items = [
            item
            for number, chunk in enumerate(entry.chunks)
            if (item := _item(self._prefix + name, number, chunk, first, last)) is not None
        ]
        reader = storage_reader(self._at)
        try:
            metadata = reader.read_metadata()
            reader.set_up_storage_reader(metadata, is_coordinator=True)
            plan = reader.prepare_local_plan(LoadPlan(items))
            reader.read_data(reader.prepare_global_plan([plan])[0], _Into(rows)).wait()
        except FAILURES as error:
            expect_not_stopped(error)
            raise self._failed(error) from error
        return rows

    def _failed(self, error: BaseException) -> CheckpointError:
        return CheckpointError(f"{self._at}: not readable: {reason(error)}. Load another step.")


def _item(name: str, number: int, chunk: Any, first: int, last: int) -> ReadItem | None:
    """Return what is read of a saved piece for rows `first` up to `last`; None where it has none of them."""
    offsets, lengths = list(chunk.offsets), list(chunk.sizes)
    saved, into = [0] * len(offsets), list(offsets)
    if offsets:
        begin, end = max(first, offsets[0]), min(last, offsets[0] + lengths[0])
        if begin >= end:
            return None
        saved[0], into[0], lengths[0] = begin - offsets[0], begin - first, end - begin
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=MetadataIndex(name),
        dest_offsets=torch.Size(into),
        storage_index=MetadataIndex(name, chunk.offsets, number),
        storage_offsets=torch.Size(saved),
        lengths=torch.Size(lengths),
    )


@final
class _Into(LoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        """Nothing is planned."""

    def create_local_plan(self) -> LoadPlan:
        """Return nothing: the plan is made already."""
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Return it as it is."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Return it as it is."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Take nothing: tensors alone are asked for."""

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Return the part (...) that a piece goes to."""
        part = self._rows
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(dim, start, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Take the (...) part: it lies in the tensor already."""
