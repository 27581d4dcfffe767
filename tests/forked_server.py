"""The fork server as a fork of a test worker: what both need is imported once, at 6 s of a processor."""

import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
import warnings
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from typing import Any

_SERVER: Any = vars(forkserver)["_forkserver"]
"""What multiprocessing knows of the server that it forks from."""


def fork_server_pid() -> int | None:
    """Return the server's number; None before it is started."""
    return _SERVER._forkserver_pid


def fork_this_process() -> None:
    """Make a fork of this process the server that multiprocessing forks from, instead of a new interpreter.

    Call it before pytest has collected: later on logs are caught, and torch may have threads, which a fork
    does not take along.
    """
    import_module("tests.preloaded")
    resource_tracker.ensure_running()
    with socket.socket(socket.AF_UNIX) as listener:
        address = import_module("multiprocessing.connection").arbitrary_address("AF_UNIX")
        listener.bind(address)
        listener.listen()
        alive_read, alive_write = os.pipe()
        pid = os.fork()
        if not pid:
            _serve(listener.detach(), alive_read)
        os.close(alive_read)
    _SERVER._forkserver_address = address
    _SERVER._forkserver_alive_fd = alive_write
    _SERVER._forkserver_pid = pid


def forget_files(*kept: int) -> None:
    """Let go of all open files of the process that this one is a fork of, but for the standard ones.

    Others notice when that process is gone. The numbers stay taken, by what swallows all that is written:
    Python's objects, such as handlers of logs that were made while pytest caught the standard error, go on
    writing to them, and a number that was free would come to mean a socket of gloo, or the pipe whose first
    byte ends the fork server.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number > 2 and number not in (nowhere, *kept):
            os.dup2(nowhere, number)
    os.close(nowhere)


def _serve(listener: int, alive: int) -> None:
    """Serve until the last client is gone, without pytest's pipes, streams and signals."""
    try:
        faulthandler.disable()  # it would write to pytest's copy of the standard error
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        forget_files(listener, alive)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
        _warn_as_a_new_interpreter()
        gc.enable()  # the worker does so after collection
        sys.modules["torch"].set_num_threads(1)  # as OMP_NUM_THREADS asks of a server that starts anew
        sys.argv = ["fork-server"]
        forkserver.main(listener, alive, [])
    except BaseException as error:
        if not isinstance(error, SystemExit):  # the last client is gone
            os.write(2, f"the fork server of the tests ends:\n{traceback.format_exc()}".encode())
    finally:
        os._exit(0)


def _warn_as_a_new_interpreter() -> None:
    """Undo pytest's filters, under which a warning of torch in a rank would be an error."""
    warnings.resetwarnings()
    for category in (ResourceWarning, ImportWarning, PendingDeprecationWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
