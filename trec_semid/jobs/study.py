"""`trec-semid study`: a grid of jobs over seeds, side by side, with one table at the end.

Nothing starts before the config of every run is valid. Finished runs stay; a run is computed anew when
its config changed or when something it reads is computed anew. A failed run costs only the runs that read it.
"""

import json
import logging
import shlex
import sys
import time
from typing import Any

from trec_semid.core.errors import SemidError
from trec_semid.core.paths import exists, join, make_folder, read_bytes, write_files
from trec_semid.core.versions import code_commit, package_versions
from trec_semid.jobs.verbs import job_named
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.owners import refuse_private
from trec_semid.runtime.runs import RunFolder
from trec_semid.runtime.stopping import Stopped
from trec_semid.study.compare import compare, with_tokenizers
from trec_semid.study.grid import PlannedRun, StudyConfig, plan_runs
from trec_semid.study.pools import pool_runs
from trec_semid.study.running import await_orphans, look_at_all, remove_stale, run_all, started_workers
from trec_semid.study.schedule import Schedule
from trec_semid.study.summary import as_markdown, lay_out, render_study, tabulate
from trec_semid.study.workers import FindJob, Outcome

__all__ = ["StudyConfig", "run"]
log = logging.getLogger(__name__)


def run(config: StudyConfig, find_job: FindJob = job_named) -> dict[str, Any]:
    """Run what is not finished yet, write `study.json`, `study.md` and `study.html`, and print the table.

    Args:
        config: the grid.
        find_job: gives a verb's job; must be picklable, since workers call it.

    Returns:
        The content of `study.json`.

    Raises:
        ConfigError: configs of the grid have faults; all are listed and nothing ran.
        SemidError: runs failed; all others ran, and the table has them.
    """
    set_up_console()
    refuse_private(config.out, 1 + config.workers)
    with own_folder(config.out, "study"):
        return _run(config, find_job)


def _run(config: StudyConfig, find_job: FindJob) -> dict[str, Any]:
    started = time.monotonic()
    planned = plan_runs(config)
    make_folder(join(config.out, "logs"))
    # Says whose the folder is, long before there is a table.
    RunFolder(config.out, "study").write_json("run.json", {"job": "study", "command": shlex.join(sys.argv)})
    with started_workers(config, find_job, len(planned)) as workers:
        await_orphans(planned)
        finished = remove_stale(planned, look_at_all(planned, workers))
        schedule = Schedule(planned, finished)
        waiting = [one for one in planned if one.label not in finished]
        try:
            run_all(config.out, schedule, waiting, workers)
        except (KeyboardInterrupt, Stopped):
            for worker in workers:
                worker.ask_to_stop()
            ended = [one for one in planned if one.label in finished or one.label in schedule.outcomes]
            _write_results(config, ended, schedule.outcomes, time.monotonic() - started)
            log.warning("interrupted: the table has %d of %d runs", len(ended), len(planned))
            raise
    result = _write_results(config, planned, schedule.outcomes, time.monotonic() - started)
    _tell(config, planned, schedule.outcomes, result)
    return result


def _write_results(
    config: StudyConfig, planned: list[PlannedRun], outcomes: dict[str, Outcome], wall_s: float
) -> dict[str, Any]:
    rows = [_row(one, outcomes.get(one.label)) for one in planned]
    needs = {(one.step, one.seed): one.needs for one in planned}
    shown = pool_runs(with_tokenizers(rows, needs), config.pools, config.metrics)
    good = [row for row in shown if not row["error"]]
    compared = compare(good, config.metrics, config.baseline, config.replicates) if config.baseline else {}
    spreads = tabulate(good, config.metrics)
    summary = lay_out(shown, config.metrics, config.baseline, compared)
    result: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "commit": code_commit(),
        "versions": package_versions(),
        "wall_s": round(wall_s, 3),
        "seeds": config.seeds,
        "baseline": config.baseline,
        "table": {step: {key: cell._asdict() for key, cell in row.items()} for step, row in spreads.items()},
        "comparisons": {
            step: {key: test._asdict() for key, test in row.items()} for step, row in compared.items()
        },
        "runs": rows,
        "markdown": as_markdown(summary),
    }
    page = render_study(summary, title=config.out.rstrip("/").rpartition("/")[2], result=result)
    files = {
        "study.json": json.dumps(result, indent=1) + "\n",
        "study.md": result["markdown"] + "\n",
        "study.html": page,
    }
    write_files(config.out, {name: text.encode() for name, text in files.items()})
    return result


def _row(one: PlannedRun, outcome: Outcome | None) -> dict[str, Any]:
    file = join(one.folder, "metrics.json")
    error = outcome.error if outcome else None
    written: dict[str, Any] = json.loads(read_bytes(file)) if error is None and exists(file) else {}
    return {
        "step": one.step,
        "label": one.label,
        "seed": one.seed,
        "verb": one.verb,
        "folder": one.folder,
        "folders": [one.folder],
        "error": error,
        "was_kept": outcome is None,
        "wall_s": written.get("wall_s", round(outcome.wall_s, 3) if outcome else None),
        "metrics": written.get("metrics", {}),
    }


def _tell(
    config: StudyConfig, planned: list[PlannedRun], outcomes: dict[str, Outcome], result: dict[str, Any]
) -> None:
    say(result["markdown"])
    say(f"\ntable: {join(config.out, 'study.md')}, {join(config.out, 'study.html')}")
    reports = [one.folder for one in planned if one.verb == "report"]
    for folder in reports:
        say(f"report: {join(folder, 'report.html')}")
    failed = {label: outcome.error for label, outcome in outcomes.items() if outcome.error}
    if failed:
        lines = [
            f"  {label}: {error} (log: {join(config.out, 'logs', label)}.log)"
            for label, error in failed.items()
        ]
        raise SemidError(f"{len(failed)} of {len(planned)} runs failed:\n" + "\n".join(lines))
