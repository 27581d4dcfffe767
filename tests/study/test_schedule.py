from pathlib import Path

from tests.jobs.studying import study
from trec_semid.study.grid import plan_runs
from trec_semid.study.schedule import Schedule, what_to_keep
from trec_semid.study.workers import Look, Outcome


def outcomes_of(schedule: Schedule, fails: set[str] = frozenset()) -> list[str]:
    order = []
    while (one := schedule.next_run()) is not None:
        order.append(one.label)
        schedule.end(Outcome(one.label, "broke" if one.label in fails else None, 1.0))
    return order


def test_schedule_runs_everything_after_what_it_needs(tmp_path: Path):
    planned = plan_runs(study(tmp_path))
    order = outcomes_of(Schedule(planned, []))
    assert order == [one.label for one in planned]
    schedule = Schedule(planned, [])
    assert schedule.next_run().label == "data"
    assert schedule.next_run() is None  # all others wait for it


def test_stale_results_spread_to_all_that_was_made_from_them(tmp_path: Path):
    planned = plan_runs(study(tmp_path))
    states = {one.label: "finished" for one in planned} | {"item-seed-1": "other", "both-seed-0": "begun"}
    kept, stale = what_to_keep(planned, [Look(one.label, None, states[one.label]) for one in planned])
    assert {one.label for one in stale} == {"item-seed-1", "report"}
    assert kept == {one.label for one in planned} - {"item-seed-1", "both-seed-0", "report"}
