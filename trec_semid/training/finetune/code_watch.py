"""What becomes of the item -> code map while a tokenizer is tuned, and when that is a collapse.

Legend: N items, R positions, K codes of a codebook.
"""

from typing import NamedTuple, final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.metrics.codes import code_usage


class CodeHealth(NamedTuple):
    """One look at the map."""

    entropy: float
    """Mean over positions [nats]."""
    utilisation: float
    """Mean over positions: share of codes that some item has."""
    dead_codes: int
    """Codes of all positions that no item has."""
    churn: float
    """Share of items whose tuple is not the one they started with."""
    churn_by_position: tuple[float, ...]
    """Share of items whose code at a position is not the one they started with."""
    churn_since_last: float
    """Share of items whose tuple changed since the look before."""

    def scalars(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return what the log says, positions by name."""
        said = {
            "codes/entropy": self.entropy,
            "codes/utilisation": self.utilisation,
            "codes/dead": float(self.dead_codes),
            "codes/churn": self.churn,
            "codes/churn_since_last": self.churn_since_last,
        }
        by_name = zip(names, self.churn_by_position, strict=True)
        return said | {f"codes/churn/{name}": value for name, value in by_name}


@final
class CodeWatch:
    """Compares the map (N, R) with the one the run started from.

    A collapse is a mean entropy, or a share of used codes, below `floor` times that of the start: items
    that had different codes have come to share them.
    """

    def __init__(self, start: Array, sizes: tuple[int, ...], *, floor: float) -> None:
        self._start, self.last, self._sizes, self._floor = start, start, sizes, floor
        self.first = self.look(start)

    def look(self, codes: Array) -> CodeHealth:
        """Measure a map (N, R)."""
        usage = code_usage(codes, self._sizes)
        moved = codes != self._start
        since_last, self.last = (codes != self.last).any(1).mean(), codes.copy()
        return CodeHealth(
            entropy=float(np.mean([one.entropy for one in usage])),
            utilisation=float(np.mean([one.utilisation for one in usage])),
            dead_codes=sum(int((one.counts == 0).sum()) for one in usage),
            churn=float(moved.any(1).mean()),
            churn_by_position=tuple(moved.mean(0).tolist()),
            churn_since_last=float(since_last),
        )

    def collapse(self, health: CodeHealth) -> str | None:
        """Say what has collapsed, or nothing."""
        if health.entropy < self._floor * self.first.entropy:
            return f"entropy {health.entropy:.2f} of {self.first.entropy:.2f} nats at the start"
        if health.utilisation < self._floor * self.first.utilisation:
            return f"{health.utilisation:.0%} of codes in use, {self.first.utilisation:.0%} at the start"
        return None
