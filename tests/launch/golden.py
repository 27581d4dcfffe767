"""What TorchX would submit for each scheduler, as files that tests compare with.

    python -m tests.launch.golden

writes them anew after a change that is meant; look at the difference before you commit it.
"""

import re
from pathlib import Path
from typing import Any

from torchx.runner import get_runner

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("golden")
SCHEDULERS: dict[str, dict[str, Any]] = {
    "slurm": {"partition": "gpu", "time": "24:00:00"},
    "kubernetes": {"queue": "default", "namespace": "default"},
    "aws_batch": {"queue": "gpu"},
}
MOUNT = "type=bind,src=/mnt/data,dst=/data,readonly"
IMAGE = "registry.example.com/trec-semid:0.1.0"
JOBS = {
    "rank": ["-j", "2x8", "--gpu", "8", "--cpu", "96", "--mem_mb", "1048576", "--max_restarts", "5"],
    "study": ["--gpu", "8", "--cpu", "96"],
}
"""A verb of each kind, and flags."""
CASES = [(scheduler, verb) for scheduler in SCHEDULERS for verb in JOBS]


def dry_run(scheduler: str, verb: str, flags: list[str], words: list[str]) -> str:
    """Return what would be submitted, without what differs from call to call."""
    component = f"{ROOT}/launch/components.py:{verb}"
    with get_runner("tests") as runner:
        info = runner.dryrun_component(component, [*flags, "--", *words], scheduler, SCHEDULERS[scheduler])
    text = re.sub(rf"\b{verb}-[a-z0-9]{{10,}}", f"{verb}-ID", str(info))
    text = re.sub(r"(TorchX |/version: )\d+\.\d+\.\d+\w*", r"\1VERSION", text)
    text = re.sub(r"(/user: ).*", r"\1USER", text)
    # How a long command is wrapped depends on the length of its random name.
    text = re.sub(r"(?m)^( *)- torchrun .*(?:\n\1 +\S.*)*", _on_one_line, text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _on_one_line(command: re.Match[str]) -> str:
    return re.sub(r"\n +", " ", command[0])


def golden(scheduler: str, verb: str) -> str:
    """Return one case's text."""
    flags = [*JOBS[verb], "--image", IMAGE, "--max_retries", "3", "--mounts", MOUNT, "--env", "A=B"]
    return dry_run(scheduler, verb, flags, ["a.toml", "--set=seed=1"])


def golden_file(scheduler: str, verb: str) -> Path:
    """Return where a case's text lies."""
    return FOLDER / f"{scheduler}-{verb}.txt"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        golden_file(*case).write_text(golden(*case))
