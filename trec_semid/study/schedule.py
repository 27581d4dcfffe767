"""Which run of a study comes next: pure bookkeeping, no processes."""

import json
from collections.abc import Iterable

from trec_semid.study.grid import PlannedRun
from trec_semid.study.workers import Look, Outcome


class Schedule:
    """The planned runs in order, those that stand, and how the others ended."""

    def __init__(self, planned: list[PlannedRun], finished: Iterable[str]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        """How every run that is over ended; finished ones are not in it."""
        self._good = set(finished)
        self._folders = {run.label: run.folder for run in planned}
        self._waiting = [run for run in planned if run.label not in self._good]

    @property
    def num_waiting(self) -> int:
        """Runs that have not been handed out."""
        return len(self._waiting)

    def next_run(self) -> PlannedRun | None:
        """Hand out the first run that has all it needs; None while every one waits for another."""
        for run in list(self._waiting):
            if all(need in self._good or need in self.outcomes for need in run.needs):
                self._waiting.remove(run)
                able = self._with_what_is_there(run)
                if able:
                    return able
        return None

    def end(self, outcome: Outcome) -> None:
        """Note how a run that was handed out ended."""
        self.outcomes[outcome.label] = outcome
        if outcome.error is None:
            self._good.add(outcome.label)

    def _with_what_is_there(self, run: PlannedRun) -> PlannedRun | None:
        """Leave failed runs out of a report; note any other run that reads one as not run."""
        lost = [need for need in run.needs if need not in self._good]
        if not lost:
            return run
        if run.verb == "report" and len(lost) < len(run.needs):
            runs = [self._folders[need] for need in run.needs if need in self._good]
            others = [text for text in run.sets if not text.startswith("runs=")]
            return run._replace(sets=(*others, f"runs={json.dumps(runs)}"))
        self.end(Outcome(run.label, f"not run: it reads {lost[0]}, which failed", 0.0))
        return None


def what_to_keep(planned: list[PlannedRun], looks: list[Look]) -> tuple[set[str], list[PlannedRun]]:
    """Return the labels of finished runs that stand, and the runs whose folders are stale.

    A folder is stale when it holds another run (of another config, data or codes), or when something it
    was computed from does not stand. A begun run whose needs all stand is neither: its job goes on from its
    own checkpoint.
    """
    finished: set[str] = set()
    stale: list[PlannedRun] = []
    for run, look in zip(planned, looks, strict=True):
        stands = all(need in finished for need in run.needs)
        if stands and look.state == "finished":
            finished.add(run.label)
        elif look.state == "other" or (not stands and look.state in ("finished", "begun")):
            stale.append(run)
    return finished, stale
