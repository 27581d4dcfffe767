"""Signals, launchers that die and threads that interrupt, each in a small process of its own."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from trec_semid.runtime import stopping
from trec_semid.runtime.stopping import Stopped, deferring, heeding_signals, signal_asked

HEAD = """
import ctypes, os, signal, sys, threading, time
from trec_semid.runtime import stopping
from trec_semid.core.errors import PeerError
from trec_semid.runtime.stopping import *

def say(word):
    print(word, flush=True)

def never_comes_back():
    mutex = ctypes.create_string_buffer(64)  # in C, outside of Python, whatever the signal
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    is_told = False
    while True:
        try:
            if not is_told:
                is_told = True; say("deep")
            lock(mutex)
        except Stopped:  # a signal that came between the word and the call is one that C does not hear
            pass

"""


class Program:
    """Python code in a process, which is read word by word."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def word(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, *signals: int, pause_s: float = 0.0) -> tuple[int, str]:
        """Send signals; return exit code and what the program said on both ways."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(pause_s)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out + err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_unwinds_and_is_the_exit_code(number: int, code: int):
    program = Program(
        """
        with heeding_signals():
            try:
                say("ready"); time.sleep(60)
            finally:
                say("cleaned up")
        """
    )
    assert program.word() == "ready"
    assert program.end(number) == (code, "cleaned up\n")


def test_signal_is_not_swallowed_by_handlers_of_errors():
    program = Program(
        """
        with heeding_signals():
            try:
                say("ready"); time.sleep(60)
            except Exception:
                say("swallowed")
        """
    )
    program.word()
    assert program.end(signal.SIGTERM) == (143, "")


def test_second_signal_ends_at_once():
    program = Program(
        """
        with heeding_signals():
            try:
                say("ready"); time.sleep(60)
            finally:
                time.sleep(60)
        """
    )
    program.word()
    assert program.end(signal.SIGTERM, signal.SIGTERM, pause_s=0.7) == (
        143,
        "SIGTERM again: ended at once\n",
    )


def test_signal_that_comes_twice_at_once_is_one():
    program = Program(
        """
        with heeding_signals():
            try:
                say("ready"); time.sleep(60)
            finally:
                time.sleep(1); say("cleaned up")
        """
    )
    program.word()
    assert program.end(signal.SIGINT, signal.SIGINT, pause_s=0.05) == (130, "cleaned up\n")


def test_process_deep_in_another_library_ends_when_grace_is_over():
    program = Program("stopping.GRACE_S = 1.0\nwith heeding_signals(): never_comes_back()")
    assert program.word() == "deep"
    code, said = program.end(signal.SIGTERM)
    assert (code, said) == (143, "SIGTERM: not stopped after 1 s; ended\n")


def test_second_signal_ends_a_process_deep_in_another_library():
    program = Program("with heeding_signals(): never_comes_back()")
    program.word()
    assert program.end(signal.SIGINT, signal.SIGINT, pause_s=0.7)[0] == 130


def test_deferred_signal_is_only_noted_until_the_end():
    program = Program(
        """
        with heeding_signals():
            with deferring():
                with deferring():
                    say("ready")
                    while not signal_asked(): time.sleep(0.01)
                    say("noted")
                say("still here")
            say("too far")
        """
    )
    program.word()
    assert program.end(signal.SIGTERM) == (143, "noted\nstill here\n")


@pytest.mark.parametrize("deferred", [False, True])
def test_another_thread_interrupts_the_main_one(deferred: bool):
    wait = "with deferring(): time.sleep(60)" if deferred else "time.sleep(60)"
    program = Program(
        f"""
        with heeding_signals():
            threading.Timer(0.2, interrupt, [PeerError("rank 3 failed: bad", 2)]).start()
            try:
                {wait}
            except PeerError as error:
                say(f"{{error}}, {{error.exit_code}}")
        """
    )
    assert program.end() == (0, "rank 3 failed: bad, 2\n")


@pytest.mark.parametrize("heeds", [False, True])
def test_interrupted_process_deep_in_another_library_ends_with_the_error(heeds: bool):
    program = Program(
        f"""
        stopping._FAULT_GRACE_S = 0.5
        threading.Timer(0.2, interrupt, [PeerError("rank 3 failed: bad", 2)]).start()
        if {heeds}:
            with heeding_signals(): never_comes_back()
        never_comes_back()
        """
    )
    assert program.word() == "deep"
    assert program.end() == (2, "error: rank 3 failed: bad\n")


def test_process_whose_parent_is_killed_stops_writing(tmp_path: Path):
    child = HEAD + textwrap.dedent(
        """
        heed_parent()
        with heeding_signals(), open(sys.argv[1], "a") as file:
            try:
                while True:
                    file.write("x"); file.flush(); time.sleep(0.01)
            finally:
                file.write("cleaned up")
        """
    )
    (tmp_path / "child.py").write_text(child)
    program = Program(
        f"""
        import subprocess
        words = [sys.executable, {str(tmp_path / "child.py")!r}, {str(tmp_path / "log")!r}]
        process = subprocess.Popen(words)
        say(process.pid); process.wait()
        """
    )
    pid = int(program.word())
    while not (tmp_path / "log").exists():
        time.sleep(0.05)
    program.process.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert (tmp_path / "log").read_text().endswith("xcleaned up")


def test_nothing_is_left_behind():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with pytest.raises(Stopped) as caught, heeding_signals():
        signal.raise_signal(signal.SIGTERM)
    assert (caught.value.code, str(caught.value)) == (143, "stopped by SIGTERM")
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    with deferring():
        assert not signal_asked()
