"""What a study shows while it runs: a bar over all runs with an ETA, and one line a running job."""

import logging
import time
from statistics import fmean
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trec_semid.runtime.logs import CONSOLE
from trec_semid.study.grid import PlannedRun
from trec_semid.study.workers import Outcome

log = logging.getLogger(__name__)


class StudyProgress:
    """Bars on a terminal; elsewhere one line for every run that ends."""

    def __init__(self, waiting: list[PlannedRun], num_workers: int) -> None:
        self._left = {run.label: run for run in waiting}
        self._total, self._num_workers = len(waiting), num_workers
        self._took: dict[str, list[float]] = {}
        self._began: dict[str, float] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=CONSOLE, transient=True)
        self._bars.disable = not CONSOLE.is_terminal
        self._rows: dict[str, TaskID] = {}
        self._whole = self._bars.add_task("study", total=self._total, note="")

    def __enter__(self) -> "StudyProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __contains__(self, label: str) -> bool:
        return label in self._left

    def begin(self, run: PlannedRun) -> None:
        """Show a run as running."""
        self._began[run.label] = time.monotonic()
        self._rows[run.label] = self._bars.add_task(f"  {run.label}", total=None, note="")

    def end(self, outcome: Outcome, log_file: str) -> None:
        """Take a run away and say how it ended."""
        run = self._left.pop(outcome.label)
        self._began.pop(outcome.label, None)
        if outcome.label in self._rows:
            self._bars.remove_task(self._rows.pop(outcome.label))
        if outcome.error is None:
            self._took.setdefault(run.verb, []).append(outcome.wall_s)
        count = f"{self._total - len(self._left)}/{self._total}"
        if outcome.error:
            log.error("%s %s FAILED: %s (log: %s)", count, run.label, outcome.error, log_file)
        else:
            log.info("%s %s took %.1f s%s", count, run.label, outcome.wall_s, self._note(", "))
        self.tick()

    def tick(self) -> None:
        """Move the bar and its ETA."""
        self._bars.update(self._whole, completed=self._total - len(self._left), note=self._note(""))

    def seconds_left(self) -> float | None:
        """Estimate from the runs of the same verb, else from all; None before any has ended."""
        took = [seconds for verb in self._took.values() for seconds in verb]
        if not took:
            return None
        now = time.monotonic()
        left = 0.0
        for label, run in self._left.items():
            expected = fmean(self._took.get(run.verb, took))
            left += max(expected - (now - self._began[label]), 0) if label in self._began else expected
        return left / self._num_workers

    def _note(self, before: str) -> str:
        left = self.seconds_left()
        return "" if left is None or not self._left else f"{before}about {left:.0f} s left"
