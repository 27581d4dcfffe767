"""Contestants take turns, so that a busy machine is busy for all of them; medians over turns are told."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Work = Callable[[int], int]
"""Does the work of turn number n and returns how many users or items it was for."""


class Spent(NamedTuple):
    """Seconds of one turn, for each of its users or items."""

    wall: float
    processor: float
    """Of all threads: tells more than the wall on a machine that does other things as well."""

    def times(self, factor: float) -> "Spent":
        """Return what so many cost."""
        return Spent(self.wall * factor, self.processor * factor)


def take_turns(works: Mapping[str, Work], turns: int) -> dict[str, list[Spent]]:
    """Return what each contestant spent in each turn; one turn before does not count."""
    spent: dict[str, list[Spent]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            wall, processor = time.perf_counter(), time.process_time()
            units = work(turn)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            spent[name] += [Spent(wall / units, processor / units)] if turn else []
    return spent


def tell(spent: Mapping[str, list[Spent]], unit: str, peer: str) -> None:
    """Print a table of speeds, and of times beside the peer's in the same turn."""
    print(f"| | {unit}s/s | wall ms | processor ms | wall, {peer} = 1 | processor, {peer} = 1 |")
    print("|---|---|---|---|---|---|")
    for name, turns in spent.items():
        cells = [f"{1 / statistics.median(turn.wall for turn in turns):,.0f}"]
        cells += [f"{1e3 * statistics.median(each):.3g}" for each in zip(*turns, strict=True)]
        if peer in spent:
            columns = zip(zip(*turns, strict=True), zip(*spent[peer], strict=True), strict=True)
            cells += [_beside(own, other) for own, other in columns]
        print(f"| {' | '.join([name, *cells])} |")


def _beside(own: tuple[float, ...], other: tuple[float, ...]) -> str:
    """Return the median of each turn's ratio, and its range."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def evaluating(model: Any) -> Any:
    """Put a model into evaluation mode where it is not, which takes milliseconds."""
    return model.eval() if model.training else model


def keep(path: str | None, numbers: Mapping[str, Any]) -> None:
    """Write the numbers as JSON where a path is given."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(numbers, file, indent=1)
