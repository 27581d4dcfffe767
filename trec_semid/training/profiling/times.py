"""Where the time of training goes: what the host spends in each part of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final


@final
class StepTimes:
    """Time of the host by part. A part inside another stops the clock of that one, so parts add up.

    A device is asked for nothing: where one computes, `forward` and `backward` are the time until all of it
    is asked for, and what the host then waits for is in the part that waits.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}  # [s] since the last look
        self._num_steps = 0
        self._inside: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as that of a part."""
        self._settle()
        self._inside.append(name)
        try:
            yield
        finally:
            self._settle()
            self._inside.pop()

    def end_step(self) -> None:
        """Count a step."""
        self._num_steps += 1

    def read(self) -> dict[str, float]:
        """Return `time/<part>_ms` [ms a step] since the last look, and begin anew."""
        self._settle()
        said = {
            f"time/{name}_ms": round(1e3 * spent / max(self._num_steps, 1), 3)
            for name, spent in self._spent.items()
        }
        self._spent, self._num_steps = {}, 0
        return said

    def _settle(self) -> None:
        """Give the time since the last change to the part that it was spent in."""
        now = time.perf_counter()
        if self._inside:
            name = self._inside[-1]
            self._spent[name] = self._spent.get(name, 0.0) + now - self._since
        self._since = now
