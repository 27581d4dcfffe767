"""tools/bench/peak_memory.py on commands that hold a known amount of memory."""

import os
import re
import subprocess
import sys
from ctypes import CDLL
from pathlib import Path
from typing import NamedTuple

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/bench/peak_memory.py"
TOLD = re.compile(r"^peak_memory: ([\d,]+) MiB in (\d+) processes, largest ([\d,]+) MiB resident", re.M)
HOLD = "held = b'1' * ({mib} << 20); import time; time.sleep(1)"
IN_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"


class Told(NamedTuple):
    code: int
    peak_mib: float
    num_processes: int
    largest_mib: float
    said: str


def measured(*command: str) -> Told:
    words = [sys.executable, str(TOOL), *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = TOLD.search(done.stderr)
    assert told, done.stderr
    peak, number, largest = (float(text.replace(",", "")) for text in told.groups())
    return Told(done.returncode, peak, int(number), largest, done.stdout)


def test_what_a_child_of_the_command_holds_counts():
    told = measured(sys.executable, "-c", IN_CHILD.format(mib=200))
    assert (told.code, told.num_processes) == (0, 2)
    assert told.peak_mib == pytest.approx(200, rel=0.25)
    assert told.largest_mib == pytest.approx(200, rel=0.25)


def test_what_processes_hold_at_the_same_time_is_summed():
    one = f'"{sys.executable}" -c "{HOLD}"'
    told = measured("sh", "-c", f"{one.format(mib=150)} & {one.format(mib=100)}; wait")
    assert told.num_processes == 3
    assert told.peak_mib == pytest.approx(250, rel=0.25)
    assert told.largest_mib == pytest.approx(150, rel=0.25)


def tells_memories_apart() -> bool:
    return os.uname().machine == "x86_64" and CDLL(None).syscall(312, os.getpid(), os.getpid(), 1, 0, 0) == 0


@pytest.mark.skipif(not tells_memories_apart(), reason="the kernel does not answer kcmp")
def test_a_child_that_has_not_left_its_parents_memory_is_not_counted_again(tmp_path: Path):
    fifo = tmp_path / "fifo"
    actions = f"[(os.POSIX_SPAWN_OPEN, 0, {str(fifo)!r}, os.O_RDONLY, 0)]"  # waits there for a writer
    spawn = f"os.posix_spawn('/bin/true', ['true'], os.environ, file_actions={actions})"
    holder = f'"{sys.executable}" -c "import os; held = b\'1\' * (200 << 20); {spawn}"'
    told = measured("sh", "-c", f"mkfifo {fifo}; (sleep 1.5; echo > {fifo}) & {holder}; wait")
    assert told.peak_mib == pytest.approx(200, rel=0.25)


def test_output_and_exit_status_are_those_of_the_command():
    told = measured("sh", "-c", "echo mine; exit 3")
    assert (told.code, told.said) == (3, "mine\n")
    assert measured("sh", "-c", "kill -9 $$").code == 128 + 9


def test_a_command_that_is_not_there_is_named():
    done = subprocess.run(
        [sys.executable, str(TOOL), "no-such-command"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert "no-such-command: No such file" in done.stderr
