"""tools/bench/peak_memory.py on commands that hold a known amount of memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/bench/peak_memory.py"
HOLD = "held = b'1' * ({mib} << 20); import time; time.sleep(1)"
IN_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"


def measured(*command: str) -> tuple[int, float, int, str]:
    """Return exit status, peak [MiB], processes at the peak, and what the command said."""
    words = [sys.executable, str(TOOL), *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = re.search(r"^peak_memory: ([\d.]+) GiB in (\d+) processes, wall ", done.stderr, re.M)
    assert told, done.stderr
    return done.returncode, float(told[1]) * 1024, int(told[2]), done.stdout


def test_what_a_child_of_the_command_holds_counts():
    code, peak_mib, num_processes, _ = measured(sys.executable, "-c", IN_CHILD.format(mib=200))
    assert code == 0
    assert num_processes == 2
    assert peak_mib == pytest.approx(200, rel=0.25)


def test_what_processes_hold_at_the_same_time_is_summed():
    one = f'"{sys.executable}" -c "{HOLD}"'
    _, peak_mib, num_processes, _ = measured(
        "sh", "-c", f"{one.format(mib=150)} & {one.format(mib=100)}; wait"
    )
    assert num_processes == 3
    assert peak_mib == pytest.approx(250, rel=0.25)


def test_output_and_exit_status_are_those_of_the_command():
    code, _, _, said = measured("sh", "-c", "echo mine; exit 3")
    assert (code, said) == (3, "mine\n")
    assert measured("sh", "-c", "kill -9 $$")[0] == 128 + 9


def test_a_command_that_is_not_there_is_named():
    done = subprocess.run(
        [sys.executable, str(TOOL), "no-such-command"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert "no-such-command: No such file" in done.stderr
