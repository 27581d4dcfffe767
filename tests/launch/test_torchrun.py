"""Runs under torchrun whose ranks are killed, told to stop, or fail: what is left, and what comes after."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import free_port, start_command
from tests.datasets import write_small_dataset
from trec_semid.checkpoints.folder import latest_step
from trec_semid.runtime.logs import read_events

ROOT = Path(__file__).resolve().parents[2]
RANK = """
representation = "item"
tables.dim = 8
history.max_len = 8
model = { layer_dims = [16, 8], gate_dim = 8, dropout = 0.1 }
optimizers.dense.learning_rate = 0.01
optimizers.tables.learning_rate = 0.1
train = { batch_size = 250, max_epochs = 3 }
"""
STEP = "trec_semid.training.steps:update"
"""7 steps are an epoch, 21 a run."""
SAVES = "checkpoints.every_steps=1"
pytestmark = [pytest.mark.ranks, pytest.mark.slow]


class Launch:
    """A rank run on two ranks under torchrun, with faults in it."""

    def __init__(self, folder: Path, faults: list[dict[str, Any]], *sets: str, restarts: int = 0) -> None:
        words = ["rank", str(folder.parent / "rank.toml"), f"--set=run={folder}"]
        words += [f"--set={each}" for each in sets]
        options = ["--nproc-per-node", "2", "--max-restarts", str(restarts), "--master-port", free_port()]
        self.log = folder.parent / f"{folder.name}.log"
        self.process = start_command(
            "tests.forking_torchrun",
            *(*options, "-m", "tests.launch.faulty", *words),
            environment={**os.environ, "FAULTS": json.dumps(faults)},
            stdout=self.log,
            stderr=self.log,
        )

    def end(self) -> tuple[int, str]:
        """Wait; return torchrun's exit code and what all processes said."""
        self.process.join(200)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode, self.log.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("torchrun")
    dataset = write_small_dataset(str(place / "dataset"))
    (place / "rank.toml").write_text(f"dataset = '{dataset}'\n{RANK}")
    code, said = Launch(place / "well", []).end()
    assert code == 0, said
    return place


def expect_same_result(run: Path, place: Path) -> None:
    """Compare with the run that nothing happened to: every metric, every score of every row."""
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (run, place / "well"))
    assert one["metrics"] == other["metrics"]
    for rank in (0, 1):
        name = f"predictions/test-rank-{rank}.parquet"
        assert (run / name).read_bytes() == (place / "well" / name).read_bytes()


def test_launcher_itself_starts_ranks_that_come_together():
    # Elsewhere its ranks are forks of what has imported everything: here they are interpreters, as outside of
    # tests, which read their environment as they start. Without a number of threads torchrun gives them one.
    command = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"]
    command += ["--master-port", free_port(), "-m", "tests.launch.gathering"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    heard = [(0, 0, "1"), (1, 1, "1")]
    assert sorted(done.stdout.splitlines()) == [f"{rank} of 2: {heard}" for rank in (0, 1)]


def test_run_that_fails_is_stopped_and_is_killed_twice_comes_to_the_same_result(place: Path):
    # The launcher is as documented, with a fixed port, and starts the ranks anew after each of these.
    deeds = ["refuse", "term", "kill", "kill"]
    faults = [
        {"rank": 1, "at": STEP, "call": 4, "do": deed, "attempts": [attempt]}
        for attempt, deed in enumerate(deeds)
    ]
    sets = (SAVES, "checkpoints.in_background=true")
    code, said = Launch(place / "faulty", faults, *sets, restarts=4).end()
    assert code == 0, said
    # Every attempt begins with its plan.
    refused, stopped, *killed = said.split("Plan for this machine")[1:]
    assert len(killed) == 3
    # An error on one rank, with a save in the background, ends the other one too, which says why unless
    # the launcher's signal was there first.
    assert "rank 1: error: x.csv, row 7: ratings are no numbers" in refused
    because = "rank 0: error: rank 1 failed: x.csv, row 7: ratings are no numbers"
    assert because in refused or "rank 0: stopped by SIGTERM" in refused, refused
    # A signal on one rank stops both after the same step, which is saved.
    assert set(re.findall(r"rank \d: stopped by SIGTERM", stopped)) == {
        "rank 0: stopped by SIGTERM",
        "rank 1: stopped by SIGTERM",
    }, stopped
    events = [(event["event"], event.get("step")) for event in read_events(str(place / "faulty/log.jsonl"))]
    stops = [step for event, step in events if event == "stop"]
    assert len(stops) == 1
    assert ("resume", stops[0]) in events
    assert len([event for event, _ in events if event == "resume"]) == 4
    expect_same_result(place / "faulty", place)


def test_launcher_that_is_killed_or_told_to_stop_takes_its_ranks_along_and_the_run_goes_on_later(place: Path):
    run = place / "preempted"
    fault = {"rank": 0, "at": STEP, "call": 5, "do": "kill-launcher"}
    launch = Launch(run, [fault, {"rank": -1, "at": STEP, "call": 2, "do": "note"}], SAVES)
    assert launch.end()[0] == -signal.SIGKILL
    ranks = [int(pid) for pid in re.findall(r"process (\d+) is here", launch.log.read_text())]
    assert len(ranks) == 2
    until = time.monotonic() + 10
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in ranks):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert "is gone: stopped" in launch.log.read_text()

    fault = {"rank": 0, "at": STEP, "call": 5, "do": "term-launcher"}
    code, said = Launch(run, [fault], SAVES).end()
    assert code != 0
    # Where rank 1 ends first, rank 0 may hear of that before it tells of its own signal; all is saved.
    assert re.search(r"rank 0: (stopped by|error: rank 1 was stopped by) SIGTERM", said)
    saved = latest_step(str(run / "checkpoints"))
    assert saved is not None
    last = read_events(str(run / "log.jsonl"))[-1]
    assert last["step"] == saved
    allowed = [("stop", 15)] if "rank 0: stopped" in said else [("stop", 15), ("checkpoint", None)]
    assert (last["event"], last.get("signal")) in allowed
    assert not (run / "metrics.json").exists()

    code, said = Launch(run, [], SAVES).end()
    assert code == 0, said
    assert f"going on from step {saved}" in said
    expect_same_result(run, place)
