"""Being told to stop: by a signal, by a launcher that died, or by another rank that failed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trec_semid.core.errors import SemidError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What asks a process to stop: schedulers and launchers send the first, Ctrl-C the second."""
GRACE_S = 25.0
"""From the first signal to the end of the process at all costs; launchers kill after 30 s."""
_ECHO_S = 0.5
_ECHO_OF_LAUNCHER_S = 5.0
"""A signal that comes again so soon is the same one: schedulers and terminals send it to all processes, and
a launcher passes on what it got."""
_FAULT_GRACE_S = 5.0
"""From an error elsewhere to the end of a process that waits in a call of another library."""
_PARENT_POLL_S = 1.0
_WAKE = signal.SIGUSR2
"""Makes Python run in the main thread, which may sleep."""


class Stopped(SystemExit):
    """The process was asked to stop; `code` is as shells have it: 143 after SIGTERM, 130 after SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        """Name the signal."""
        return f"stopped by {signal.Signals(self.number).name}"


class _Asked:
    """What this process was asked so far."""

    def __init__(self) -> None:
        self.number, self.at = 0, 0.0
        self.deferrals = self.deferrals_before = 0
        self.error: SemidError | None = None
        self.was_raised = self.is_heeding = False


_ASKED = _Asked()


def signal_asked() -> int:
    """Return the number of the signal that asked this process to stop, or 0."""
    return _ASKED.number


def is_deferred() -> bool:
    """Return whether a signal is only noted now."""
    return _ASKED.deferrals > 0


@contextmanager
def deferring() -> Iterator[None]:
    """Only note signals inside; who defers looks at `signal_asked` and raises `Stopped` in good order.

    Raises:
        Stopped: at the end, where a signal has come and nobody has heeded it.
    """
    _ASKED.deferrals += 1
    try:
        yield
    finally:
        _ASKED.deferrals -= 1
    if _ASKED.number and not _ASKED.deferrals:
        raise Stopped(_ASKED.number)


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Turn the first SIGTERM or SIGINT into `Stopped`; a second one ends the process at once.

    Where the main thread does not come back from a call, or cleaning up takes too long, a thread ends the
    process `GRACE_S` after the signal. Only the main thread can heed signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or _ASKED.is_heeding:
        yield
        return
    ear, mouth = os.pipe()
    # Python writes to this end inside the signal handler, which must never block.
    os.set_blocking(mouth, False)
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    before[_WAKE] = signal.signal(_WAKE, _on_wake)
    wakeup_before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    _ASKED.number, _ASKED.error, _ASKED.was_raised, _ASKED.is_heeding = 0, None, False, True
    _ASKED.deferrals_before = _ASKED.deferrals
    listener = threading.Thread(target=_listen, args=(ear,), name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        _ASKED.number, _ASKED.is_heeding = 0, False
        _ASKED.deferrals = _ASKED.deferrals_before
        os.close(mouth)  # the listener reads the end of the pipe
        listener.join()
        os.close(ear)


def heed_no_more() -> None:
    """Only note signals until `heeding_signals` ends: what this process ends by is being told."""
    _ASKED.deferrals += 1


def is_interruption(error: BaseException) -> bool:
    """Return whether it is the error that `interrupt` raised here, or the same one off another rank."""
    asked = _ASKED.error
    return asked is not None and type(error) is type(asked) and str(error) == str(asked)


def interruption_in(error: BaseException) -> BaseException | None:
    """Return what asked this process to end while another error came up, which it lies under; else None.

    Libraries that close a file as they are left may fail at it, and then raise their own error.
    """
    under: BaseException | None = error
    seen: set[int] = set()
    while under is not None and id(under) not in seen:
        if is_interruption(under) or not isinstance(under, Exception):
            return under
        seen.add(id(under))
        under = under.__cause__ or under.__context__
    return None


def interrupt(error: SemidError) -> threading.Timer:
    """Raise an error in the main thread from another one, deferred or not.

    The main thread may wait in a call of another library that does not come back: some seconds later the
    process ends with the error's words and exit code, unless the timer that is returned is cancelled.
    """
    later = _end_later(_FAULT_GRACE_S, f"error: {error}", error.exit_code)
    _ASKED.error, _ASKED.was_raised = error, False
    main = threading.main_thread().ident
    if _ASKED.is_heeding and main is not None:
        signal.pthread_kill(main, _WAKE)
    return later


def heed_parent() -> None:
    """Stop when the process that started this one is gone: nobody restarts, or waits for, what we write."""
    parent = os.getppid()
    threading.Thread(target=_watch_parent, args=(parent,), name="parent", daemon=True).start()


def end_now(text: str, exit_code: int) -> None:
    """End the process whatever its main thread does."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    where = f"rank {os.environ.get('RANK', '?')}: " if several else ""
    with suppress(OSError):  # not through sys.stderr, whose lock the main thread may hold
        os.write(2, f"{where}{text}\n".encode())
    os._exit(exit_code)


def leave(exit_code: int) -> None:
    """End the process with what it said written out, but without waiting for threads of other libraries."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _ASKED.number:
        return  # the listener ends the process
    _ASKED.number = number
    if not _ASKED.deferrals:
        raise Stopped(number)


def _on_wake(number: int, frame: FrameType | None) -> None:
    # Once only: another wake-up must not break into the clean-up that the first one began.
    if _ASKED.error is not None and not _ASKED.was_raised:
        _ASKED.was_raised = True
        raise _ASKED.error


def _listen(ear: int) -> None:
    """Count signals in a thread of its own: the main thread may be deep in a call of another library."""
    first, later = 0.0, None
    echo_s = _ECHO_OF_LAUNCHER_S if "TORCHELASTIC_RUN_ID" in os.environ else _ECHO_S
    while told := os.read(ear, 1):
        number = told[0]
        # The wake-up signal comes through the same pipe, and asks nobody to stop.
        if number not in SIGNALS:
            continue
        now, name = time.monotonic(), signal.Signals(number).name
        if not first:
            first = now
            later = _end_later(GRACE_S, f"{name}: not stopped after {GRACE_S:.0f} s; ended", 128 + number)
        elif now - first > echo_s:
            end_now(f"{name} again: ended at once", 128 + number)
    if later:
        later.cancel()


def _end_later(seconds: float, text: str, exit_code: int) -> threading.Timer:
    later = threading.Timer(seconds, end_now, (text, exit_code))
    later.daemon = True
    later.start()
    return later


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    interrupt(SemidError(f"the process that started this one ({parent}) is gone: stopped"))
