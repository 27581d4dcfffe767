import json
import multiprocessing
import os
import re
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy.stats import ttest_rel

from tests.commands import start_command
from tests.jobs.study_jobs import find
from tests.jobs.studying import GRID, study
from tests.ranks import fork_server
from trec_semid.core.errors import ConfigError, SemidError
from trec_semid.jobs.study import run
from trec_semid.study.schedule import Schedule
from trec_semid.study.workers import Outcome


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import nothing; those of `finished`, which all tests of a module share, are as ever."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork_server())


def written(folder: Path) -> dict[str, float]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("metrics.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("study")
    return folder, run(study(folder, sets=("threads=3",)), find)


def test_every_step_runs_once_for_every_seed(finished: tuple[Path, dict]):
    folder, _ = finished
    expected = {"data/metrics.json", "report/metrics.json"}
    expected |= {f"{arm}/seed-{seed}/metrics.json" for arm in ("item", "both") for seed in (0, 1, 2)}
    assert set(written(folder / "out")) == expected


def test_table_holds_mean_and_sample_deviation_over_seeds(finished: tuple[Path, dict]):
    folder, result = finished
    cell = result["table"]["both"]["test/auc"]
    assert cell["mean"] == pytest.approx(mean([0.6, 0.61, 0.62]))
    assert cell["sd"] == pytest.approx(stdev([0.6, 0.61, 0.62]))
    assert json.loads((folder / "out/study.json").read_text())["table"] == result["table"]
    assert "| both | 3     | 0.6100 ± 0.0100 |" in (folder / "out/study.md").read_text()


def test_workers_stay_alive_over_many_runs(finished: tuple[Path, dict]):
    folder, _ = finished
    pids = {file.read_text() for file in (folder / "out").rglob("pid")}
    assert 1 <= len(pids) <= 2
    assert str(os.getpid()) not in pids


def test_console_output_of_a_run_goes_to_its_log_programs_too(finished: tuple[Path, dict]):
    folder, _ = finished
    text = (folder / "out/logs/item-seed-1.log").read_text()
    assert "threads 3" in text
    assert "said by a program" in text


def test_report_reads_every_finished_run(finished: tuple[Path, dict]):
    folder, _ = finished
    assert (folder / "out/report/report.html").read_text().split() == ["seed-0", "seed-1", "seed-2"] * 2


def test_second_study_keeps_everything(finished: tuple[Path, dict]):
    folder, result = finished
    before = written(folder / "out")
    again = run(study(folder, sets=("threads=3",)), find)
    assert written(folder / "out") == before
    assert all(row["was_kept"] for row in again["runs"])
    assert again["table"] == result["table"]


def test_an_interrupted_study_leaves_a_table_of_what_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    end = Schedule.end

    def interrupting(schedule: Schedule, outcome: Outcome) -> None:
        end(schedule, outcome)
        if len(schedule.outcomes) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "end", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(study(tmp_path), find)
    left = json.loads((tmp_path / "out/study.json").read_text())
    assert len(left["runs"]) == 3
    assert "item" in left["table"]
    assert "both" not in left["table"]
    whole = run(study(tmp_path), find)
    assert sum(row["was_kept"] for row in whole["runs"]) >= 3
    assert len(whole["runs"]) == 8


def test_only_what_changed_and_what_reads_it_is_made_anew(tmp_path: Path):
    run(study(tmp_path), find)
    before = written(tmp_path / "out")
    changed = GRID.replace("gain = 0.6", "gain = 0.7")
    run(study(tmp_path, changed), find)
    after = written(tmp_path / "out")
    expected = {f"both/seed-{seed}/metrics.json" for seed in (0, 1, 2)} | {"report/metrics.json"}
    assert {name for name in after if after[name] != before[name]} == expected


def test_new_data_makes_every_run_anew_although_their_configs_did_not_change(tmp_path: Path):
    run(study(tmp_path), find)
    before = written(tmp_path / "out")
    changed = GRID.replace('name = "data"', 'name = "data"\nset = {{ value = 2.0 }}')
    run(study(tmp_path, changed), find)
    after = written(tmp_path / "out")
    assert all(after[name] != before[name] for name in after)


@pytest.mark.parametrize(("how", "word"), [("crash", "it broke"), ("refuse", "row 3"), ("die", "signal 9")])
def test_failed_run_loses_only_itself_and_is_named_with_its_log(tmp_path: Path, how: str, word: str):
    text = GRID.replace("gain = 0.5", f'gain = 0.5, how = "{how}"')
    with pytest.raises(SemidError) as caught:
        run(study(tmp_path, text, ("seeds=[0]",)), find)
    assert caught.value.exit_code == 1
    assert word in str(caught.value)
    assert "item-seed-0.log" in str(caught.value)
    table = (tmp_path / "out/study.md").read_text()
    assert "| both | 1      | 0.6000" in table
    assert "| item | 0 of 1 |" in table
    assert "Failed: item-seed-0: " in table
    assert word in table
    assert "item-seed-0" in (tmp_path / "out/study.html").read_text()
    assert (tmp_path / "out/report/report.html").read_text() == "seed-0"


def test_failed_run_is_tried_again_by_the_same_command(tmp_path: Path):
    text = GRID.replace("gain = 0.5", 'gain = 0.5, how = "crash"')
    with pytest.raises(SemidError):
        run(study(tmp_path, text, ("seeds=[0]",)), find)
    result = run(study(tmp_path, GRID, ("seeds=[0]",)), find)
    assert set(result["table"]) == {"item", "both"}
    assert (tmp_path / "out/report/report.html").read_text().split() == ["seed-0", "seed-0"]


def test_runs_that_read_a_failed_one_are_not_run_and_say_why(tmp_path: Path):
    text = GRID.replace('name = "data"', 'name = "data"\nset = {{ value = 2.0 }}').replace(
        '"prepare"', '"rank"'
    )
    text = text.replace("value = 2.0", 'how = "crash"')
    with pytest.raises(SemidError, match="item-seed-0: not run: it reads data, which failed"):
        run(study(tmp_path, text), find)


def test_all_faults_of_all_steps_are_told_before_anything_runs(tmp_path: Path):
    text = GRID.replace("gain = 0.5", 'gian = 0.5, sleep_s = "long"').replace("gain = 0.6", 'gain = "high"')
    with pytest.raises(ConfigError) as caught:
        run(study(tmp_path, text), find)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "step 'item'" in message
    assert "did you mean 'gain'" in message
    assert "sleep_s" in message
    assert "step 'both'" in message
    assert message.count("gian") == 2  # once for all three seeds: the override and the key
    assert written(tmp_path / "out") == {}


def test_folder_that_no_job_of_ours_made_is_never_removed(tmp_path: Path):
    precious = tmp_path / "out/item/seed-0"
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("mine")
    run(study(tmp_path), find)
    assert (precious / "thesis.txt").read_text() == "mine"


def start_study(tmp_path: Path, text: str) -> tuple[ForkServerProcess, int]:
    """Start a study in a process of its own; return it and the worker's process id once that is at work."""
    file = tmp_path / "study.toml"
    file.write_text(text.format(out=tmp_path / "out"))
    said = tmp_path / "said"
    process = start_command("tests.jobs.forking_study", str(file), stdout=said, stderr=said)
    log = tmp_path / "out/logs/both-seed-0.log"
    deadline = time.monotonic() + 150
    while not (log.exists() and "pid" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return process, int(log.read_text().split("pid ")[1].split()[0])


SLEEPY = GRID.replace("gain = 0.6", "gain = 0.6, sleep_s = 30.0").replace("[0, 1, 2]", "[0]")


def test_interrupted_study_stops_its_workers_and_goes_on_later(tmp_path: Path):
    process, worker = start_study(tmp_path, SLEEPY)
    process.terminate()
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    result = run(study(tmp_path, SLEEPY.replace("30.0", "0.0")), find)
    assert set(result["table"]) == {"item", "both"}


def test_workers_whose_study_is_killed_are_gone_within_seconds(tmp_path: Path):
    process, worker = start_study(tmp_path, SLEEPY)
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_no_worker_outlives_a_study(finished: tuple[Path, dict]):
    assert finished
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ('reads = "{{data}}", gain = 0.5', 'reads = "{{dat}}"'),
            "'{dat}' is no earlier step; did you mean 'data'?",
        ),
        (('name = "both"', 'name = "item"'), "are called 'item'"),
        (('name = "data"', 'name = "data"\nafter = ["item"]'), "after 'item' is no earlier step"),
        (('verb = "report"', 'verb = "rank"\nset = {{ reads = "{{item}}" }}'), "one folder a seed"),
        (
            ('verb = "report"', 'verb = "reprt"'),
            "'prepare', 'tokenize', 'rank', 'retrieve', 'evaluate' or 'report'",
        ),
    ],
)
def test_study_file_with_a_fault_is_refused(tmp_path: Path, change: tuple[str, str], words: str):
    with pytest.raises(ConfigError) as caught:
        study(tmp_path, GRID.replace(*change))
    assert words in str(caught.value)


def test_steps_are_compared_with_the_baseline_over_seeds(tmp_path: Path):
    text = GRID.replace('metrics = ["test/auc"]', 'metrics = ["test/auc"]\nbaseline = "item"')
    text = text.replace("gain = 0.6", "gain = 0.6, wobble = 0.001")
    result = run(study(tmp_path, text), find)
    test = result["comparisons"]["both"]["test/auc"]
    oracle = ttest_rel([0.6, 0.611, 0.622], [0.5, 0.51, 0.52])
    assert test["paired_over"] == "seeds"
    assert test["p"] == pytest.approx(oracle.pvalue)
    assert test["verdict"] == "higher"
    assert "item (baseline)" in result["markdown"]
    assert "higher by 0.1010" in result["markdown"]
    page = (tmp_path / "out/study.html").read_text()
    assert "higher by 0.1010" in page
    assert not re.search(r"(src|href)\s*=", page)  # nothing from outside
