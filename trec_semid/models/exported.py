"""What of a model goes to serving: programs over what it reads of items, which need no table and no torchrec.

Legend: B users, L longest history, F tokens of an item, W beams, r position, K codes, D width.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from trec_semid.models.queries import Queries

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_OF_ITEMS = frozenset(("items", "source"))
"""Parts that are large as the catalogue is."""
OF_QUERIES = Queries._fields
"""Names of outputs that score items; any other is what steps read."""


class HistoryProgram(nn.Module, ABC):
    """Reads histories by what a model reads of items, and returns what `outputs` names.

    In evaluation mode, and of histories of one item at least.
    """

    outputs: tuple[str, ...]
    least_length: int = 2
    """L that histories are filled up to, where `max_len` allows it."""

    @abstractmethod
    def forward(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor a name, its first size B.

        Args:
            histories: (B, L, F, D), oldest first; filled up at the end with whatever.
            lengths: (B,) int64, 1 to L.
        """


class StepProgram(nn.Module, ABC):
    """What a beam asks at one position."""

    @abstractmethod
    def forward(self, codes: Tensor, *said: Tensor) -> Tensor:
        """Return (B, W, K) log-probabilities of the next code, or (B, 1, K) where codes before do not count.

        Args:
            codes: (B, W, r) int64, what beams have said.
            said: what the history program has said, without what scores items.
        """


class Exported(NamedTuple):
    """Programs of one model."""

    user: HistoryProgram
    steps: Sequence[StepProgram] = ()
    """One a position; none where no beam asks."""
    code_share: float = 0.0
    """Of log p(codes) in the score of an item."""
    has_numbers: bool = False
    """Whether what is read of items holds whole numbers, which may not be rounded."""


def without_items(model: ModuleT) -> ModuleT:
    """Return a model that shares all parts but its items, whose tables stay behind."""
    parts = copy.copy(model)
    parts._modules = {name: part for name, part in model._modules.items() if name not in _OF_ITEMS}  # pyright: ignore[reportPrivateUsage]
    return parts


def of_last(states: Tensor, lengths: Tensor) -> Tensor:
    """Return (B, ...): what stands at the last item of each history, of states (B, L, ...)."""
    # `len` would fix the number of users in an export.
    return states[torch.arange(lengths.shape[0], device=lengths.device), lengths - 1]
