"""One ranker started in four ways; how far apart are the scores, and does every restart restart?

    .venv/bin/python tools/bench/launches.py [--events N] [--epochs N] [--kills N]

On planted data, item IDs, CPU: in one process; on 2 ranks under `torchrun --nproc-per-node 2` as documented;
the same with rank 1 killed once a checkpoint is there, restarted by `torchrun`, N times over (5); and 1 + 1
ranks under two launchers (`--nnodes 2`) on this machine. Prints, of all validation and test rows and both
protocols, the largest difference between a score and that of the run it is set beside, and of the metrics,
and how many of the killed runs came to their end. The global batch is the same everywhere.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trec_semid.data.schema import Split
from trec_semid.evaluation.predictions import read_predictions

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--events", type=int, default=40_000)
PARSER.add_argument("--epochs", type=int, default=3)
PARSER.add_argument("--kills", type=int, default=5)

ROOT = Path(__file__).resolve().parents[2]
MODULE = ["-m", "trec_semid.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SPLITS: tuple[Split, ...] = ("valid", "test")
POLL_S = 0.1


def start(scratch: Path, command: list[str], name: str) -> subprocess.Popen[bytes]:
    """Start a command that writes what it says to a file."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(scratch / f"{name}.log", "ab") as log:
        return subprocess.Popen(command, cwd=scratch, env=environment, stdout=log, stderr=log)


def finish(scratch: Path, *processes: subprocess.Popen[bytes], name: str) -> None:
    """Wait, and stop with the command's own words where it failed."""
    exit_codes = [process.wait() for process in processes]
    if any(exit_codes):
        raise SystemExit(f"{name} failed:\n{(scratch / f'{name}.log').read_text()[-3000:]}")


def rank(name: str, epochs: int) -> list[str]:
    """Return the words of a rank run."""
    sets = [
        "dataset=data",
        f"run={name}",
        "representation=item",
        "semantic_ids=''",
        f"train.max_epochs={epochs}",
    ]
    sets += ["train.batch_size=512", "checkpoints.every_steps=10"]
    config = [*MODULE, "rank", str(ROOT / "configs/rankers/ppnet.toml")]
    return [*config, *(word for each in sets for word in ("--set", each))]


def kill_once(scratch: Path, launcher: int, name: str) -> None:
    """Kill rank 1 as soon as a checkpoint is there."""
    while not list((scratch / name).glob("checkpoints/*/checkpoint.json")):
        time.sleep(POLL_S)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_rank_1 = re.search(rb"(^|\0)RANK=1\0", (folder / "environ").read_bytes())
        except OSError:  # gone, or another user's
            continue
        if parent == launcher and is_rank_1:
            os.kill(int(folder.name), signal.SIGKILL)
            return
    raise SystemExit(f"{name}: over before rank 1 could be killed; give more --events")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def on_two() -> list[str]:
    """Return the words of the documented launcher; its port is free, for this machine may have others."""
    return [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "3", "--master-port", str(free_port())]


def survives(scratch: Path, name: str, epochs: int) -> bool:
    """Kill rank 1 of a run and tell whether it came to its end."""
    launcher = start(scratch, on_two() + rank(name, epochs), name)
    kill_once(scratch, launcher.pid, name)
    if launcher.wait():
        print(f"{name} died:\n{(scratch / f'{name}.log').read_text()[-2000:]}", flush=True)
        return False
    compare(scratch, name, "two-ranks")
    return True


def compare(scratch: Path, name: str, other: str) -> None:
    """Print how far two runs lie apart."""
    scores = [0.0]
    for split in SPLITS:
        one, two = (read_predictions(str(scratch / run), split) for run in (name, other))
        scores += [float(np.abs(one.score - two.score).max())]
        scores += [float(np.abs(one.score_frozen - two.score_frozen).max())]
    one, two = (json.loads((scratch / run / "metrics.json").read_text())["metrics"] for run in (name, other))
    metrics = max(abs(one[key] - two[key]) for key in one)
    print(f"{name:<14} beside {other:<12} scores {max(scores):.1e}   metrics {metrics:.1e}", flush=True)


def main() -> None:
    """Run all four and compare."""
    options = PARSER.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="trec-semid-bench-") as folder:
        scratch = Path(folder)
        sets = ["out=data", "source.folder=raw", f"source.num_events={options.events}"]
        sets += [
            "source.num_users=500",
            "content.text.file=raw/text.npy",
            "content.vision.file=raw/vision.npy",
        ]
        words = [sys.executable, *MODULE, "prepare", str(ROOT / "configs/data/synthetic.toml")]
        finish(scratch, start(scratch, words + [w for s in sets for w in ("--set", s)], "data"), name="data")

        finish(scratch, start(scratch, [sys.executable, *rank("one", options.epochs)], "one"), name="one")
        words = on_two() + rank("two-ranks", options.epochs)
        finish(scratch, start(scratch, words, "two-ranks"), name="two-ranks")
        compare(scratch, "two-ranks", "one")

        lived = sum(survives(scratch, f"killed-{number}", options.epochs) for number in range(options.kills))
        print(f"{lived} of {options.kills} killed runs were restarted and came to their end", flush=True)

        at = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "bench"]
        at += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
        at = [*TORCHRUN, *at, *rank("launchers", options.epochs)]
        both = [start(scratch, at, "launchers") for _ in range(2)]
        finish(scratch, *both, name="launchers")
        compare(scratch, "launchers", "one")


if __name__ == "__main__":
    main()
