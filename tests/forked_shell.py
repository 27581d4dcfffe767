"""Commands of bash as forks of the server of the ranks: a script is as it is, its programs import nothing."""

import json
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.commands import start_command

CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    asked = {"words": sys.argv[2:], "pid": os.getpid(), "folder": os.getcwd(), "environment": {**os.environ}}
    server.sendall(json.dumps(asked).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.makefile().read()))
"""


@contextmanager
def forked_commands(folder: Path, programs: Mapping[str, str]) -> Iterator[None]:
    """Make commands of every bash that is started forks; words, folder and exit codes are as ever.

    Args:
        folder: for what this needs.
        programs: module of each command.
    """
    (folder / "client.py").write_text(CLIENT)
    client = f"{sys.executable} -S -E {folder}/client.py {folder}/socket"
    functions = [f'{command}() {{ {client} {module} "$@"; }}\n' for command, module in programs.items()]
    (folder / "functions.sh").write_text("".join(functions))
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASH_ENV", str(folder / "functions.sh"))  # read by every bash that runs commands
        server.bind(str(folder / "socket"))
        server.listen()
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        yield
        server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, client.makefile() as words:
                asked = json.load(words)
                out, err = (Path(f"/proc/{asked['pid']}/fd/{number}") for number in (1, 2))
                process = start_command(
                    *asked["words"],
                    stdout=out,
                    stderr=err,
                    environment=asked["environment"],
                    folder=asked["folder"],
                )
                process.join()
                client.sendall(str(process.exitcode).encode())
