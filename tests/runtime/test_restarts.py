"""Restarts by torchrun: ranks must meet again though the launcher's store still has all keys from before."""

import os
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.commands import free_port, start_command

SHARING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def launch(folder: Path, kills: int, *options: str, shares: bool) -> ForkServerProcess:
    program = [str(Path(__file__).with_name("restarted.py")), str(folder), str(kills)]
    return start_command(
        "tests.forking_torchrun",
        *("--max-restarts", "3", *options, *program),
        environment={**os.environ, SHARING: "01"[not shares]},
        stdout=folder / "said",
        stderr=folder / "said",
    )


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("kind", ["static", "standalone", "two launchers"])
def test_ranks_that_are_started_anew_twice_meet_again(tmp_path: Path, kind: str, shares: bool):
    options = {
        "static": ["--nproc-per-node", "2", "--master-port", free_port()],
        "standalone": ["--nproc-per-node", "2", "--standalone"],
        "two launchers": [
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            "x",
        ],
    }[kind]
    options += ["--rdzv-endpoint", f"localhost:{free_port()}"] if kind == "two launchers" else []
    launches = [
        launch(tmp_path, 2, *options, shares=shares) for _ in range(2 if kind == "two launchers" else 1)
    ]
    for each in launches:
        each.join(120)
        assert each.exitcode == 0, (tmp_path / "said").read_text()
    assert len(list(tmp_path.glob("killed-*"))) == 2
    assert {path.name: path.read_text() for path in tmp_path.glob("total-*")} == {
        f"total-{rank}-{turn}": "3.0" for rank in (0, 1) for turn in (0, 1)
    }
