"""One process at a time on a folder: a lock file beside it that says who holds it, and since when.

`.NAME.lock` beside the folder, or `.lock` in it where its parent cannot be written. A lock is free again
once its owner is gone: at once where its process can be looked up, else when it was silent for `SILENT_S`.
Clocks of hosts that share a folder must agree within half of that.
"""

import errno
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

from trec_semid.core.errors import LockError
from trec_semid.core.paths import (
    exists,
    filesystem,
    is_local,
    join,
    make_folder,
    parent_of,
    read_bytes,
    remove,
)
from trec_semid.core.processes import ProcessId, this_process
from trec_semid.runtime.stopping import end_now

BEAT_S = 10.0
"""How often an owner says that it lives [s]."""
SILENT_S = 60.0
"""An owner on another host that was silent for so long counts as gone [s]."""
SETTLE_S = 1.0
"""After a take-over on an object store: how long another one that saw the same dead owner may need [s]."""
_GUARD_S = 5.0
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: the content of its file."""

    process: ProcessId
    verb: str
    since: float
    """When it was taken [s since epoch]."""
    beat: float
    """When the owner last said that it lives [s since epoch]."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells two owners apart, even in one process."""

    def is_gone(self) -> bool:
        """Return whether its lock may be taken over."""
        # A process of this host is looked up, not judged by its beat: one that was merely suspended still
        # owns its files.
        if self.process.is_here():
            return not self.process.is_alive()
        return time.time() - self.beat > SILENT_S

    def described(self) -> str:
        """Return who it is, in words."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"{self.verb}, process {self.process.pid} on {self.process.host}, since {since}"

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> "Owner | None":
        """Read a file's content; None where its writer died while it wrote."""
        try:
            values: dict[str, Any] = json.loads(content)
            values["process"] = ProcessId(**values["process"])
            return Owner(**values)
        except (ValueError, TypeError, KeyError):
            return None


def new_owner(verb: str) -> Owner:
    """Return this process as the owner of a lock that it has yet to take."""
    now = time.time()
    return Owner(this_process(), verb, since=now, beat=now)


class FolderLock:
    """The lock of one folder; `take` it, then `release` it, or let this process end."""

    def __init__(self, folder: str, owner: Owner) -> None:
        self.folder, self.owner = folder, owner
        self.uri = lock_uri(folder)
        self._file = _LocalFile(self.uri) if is_local(folder) else _StoreObject(self.uri)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._new_folders: list[str] = []

    def take(self) -> Owner | None:
        """Take the lock; return the owner that was gone and from whom it was taken over, if any.

        Raises:
            LockError: another process holds it.
            OSError: the lock cannot be written.
        """
        self._new_folders = _make_parents(parent_of(self.uri))
        try:
            before = self._file.claim(self.owner)
        except _HeldError as held:
            self._remove_new_folders()
            raise _refusal(self.folder, self.uri, held.owner) from None
        except BaseException:
            self._remove_new_folders()
            raise
        if before:
            _log.warning("%s: taken over from one that is gone (%s)", self.folder, before.described())
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return before

    def release(self) -> None:
        """Give the lock back, where it is still this owner's."""
        self._over.set()
        if self._thread:
            self._thread.join(timeout=5)
        with suppress(OSError):
            self._file.drop(self.owner)
        self._remove_new_folders()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                other = self._file.refresh(replace(self.owner, beat=time.time()))
            except Exception:  # noqa: S112 - a store that is away for a while; the next beat tells
                continue
            if other:
                stop_at_once(self.folder, other)

    def _remove_new_folders(self) -> None:
        for folder in reversed(self._new_folders):
            with suppress(OSError):
                os.rmdir(folder)


def lock_uri(folder: str) -> str:
    """Return where the lock of a folder lies, however the folder is spelled."""
    if not is_local(folder):
        place = folder.rstrip("/")
        parent = parent_of(place)
        inside = parent in (place, f"{place.partition('://')[0]}://")  # a bucket has nothing beside it
    else:
        place = os.path.realpath(filesystem(folder)[1])
        parent = os.path.dirname(place)
        inside = os.path.isdir(place) and not os.access(parent, os.W_OK)
    return join(place, ".lock") if inside else join(parent, f".{place.rsplit('/', 1)[-1]}.lock")


def holder_of(folder: str) -> Owner | None:
    """Return who works on a folder now; None where nobody does who still lives."""
    uri = lock_uri(folder)
    owner = (_LocalFile(uri) if is_local(folder) else _StoreObject(uri)).read()
    return owner if owner and not owner.is_gone() else None


def folder_of(uri: str) -> str | None:
    """Return which folder a lock is of, as the lock's own path is spelled; None where it is no lock."""
    parent, _, name = uri.rpartition("/")
    named = re.fullmatch(r"\.(?:(?P<name>.+)\.)?lock", name)
    return "/".join(part for part in (parent, named["name"]) if part) or None if named else None


def stop_at_once(folder: str, other: Owner) -> None:
    """End this process, which was taken for dead: two that write would spoil each other's files."""
    end_now(f"error: {folder} now belongs to another ({other.described()}): this process stops at once", 1)


class _HeldError(Exception):
    """Another one holds the lock; `owner` is None while it just takes it."""

    def __init__(self, owner: Owner | None) -> None:
        super().__init__()
        self.owner = owner


def _refusal(folder: str, uri: str, held: Owner | None) -> LockError:
    who, waits = "one that just begins", ""
    if held:
        who = held.described()
        if not held.process.is_here():
            silent = max(0.0, time.time() - held.beat)
            waits = (
                f" Its last sign of life is {silent:.0f} s old; after {SILENT_S:.0f} s without one it counts "
                "as gone."
            )
    remedy = "Wait until it ends, stop it, or name another folder."
    return LockError(f"{folder}: another process works here ({who}).{waits} {remedy} (Its lock: {uri})")


def _make_parents(folder: str) -> list[str]:
    """Make a folder; return those that were not there, so that a refusal leaves nothing behind."""
    if not is_local(folder):
        return []
    inner, absent = filesystem(folder)[1], list[str]()
    while inner and not os.path.exists(inner):
        absent.append(inner)
        inner = os.path.dirname(inner)
    make_folder(folder)
    return absent[::-1]


class _LocalFile:
    """A lock file on a disk: read and written under `flock`, which the kernel drops when a process dies."""

    def __init__(self, uri: str) -> None:
        self.uri, self._path = uri, filesystem(uri)[1]

    def claim(self, owner: Owner) -> Owner | None:
        """Write the owner unless another one lives; return the one before."""
        with self._guarded() as number:
            before = Owner.from_bytes(_content(number))
            if before and before.token != owner.token and not before.is_gone():
                raise _HeldError(before)
            try:
                _overwrite(number, owner.to_bytes())
            except OSError:  # a full disk
                os.unlink(self._path)
                raise
            return before

    def read(self) -> Owner | None:
        """Return the owner that the file names, if any."""
        try:
            with open(self._path, "rb") as file:
                return Owner.from_bytes(file.read())
        except OSError:
            return None

    def refresh(self, owner: Owner) -> Owner | None:
        """Write a sign of life; return another owner where there is one by now."""
        with self._guarded() as number:
            now = Owner.from_bytes(_content(number))
            if now and now.token != owner.token:
                return now
            _overwrite(number, owner.to_bytes())
            return None

    def drop(self, owner: Owner) -> None:
        """Remove the file where it is this owner's."""
        if not os.path.exists(self._path):
            return
        with self._guarded() as number:
            now = Owner.from_bytes(_content(number))
            # Under the guard nobody is half-way through writing, so content that names no owner protects
            # none.
            if now is None or now.token == owner.token:
                os.unlink(self._path)

    @contextmanager
    def _guarded(self) -> Iterator[int]:
        """Open the file so that no other process reads or writes it meanwhile."""
        deadline = time.monotonic() + _GUARD_S
        while True:
            number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                # A lock on a file that its owner has just unlinked guards nothing: the next process would
                # lock a new file of that name.
                if _flock(number) and _is_at(number, self._path):
                    yield number
                    return
            finally:
                os.close(number)
            if time.monotonic() > deadline:
                raise _HeldError(None)
            time.sleep(0.01)


def _flock(number: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a disk without flock: what is left is that the file is written at once
    return True


def _is_at(number: int, path: str) -> bool:
    """Return whether an open file is still the one of that name: its owner may just have removed it."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(number)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _content(number: int) -> bytes:
    return os.pread(number, 1 << 16, 0)


def _overwrite(number: int, content: bytes) -> None:
    # One write, padded with blanks (which JSON ignores) over a longer old text: cutting the file first would
    # take a second call, and dying between the two would leave no owner.
    os.pwrite(number, content.ljust(os.fstat(number).st_size), 0)


class _StoreObject:
    """A lock on an object store: created only where there is none, and read back."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def claim(self, owner: Owner) -> Owner | None:
        """Write the owner unless another one lives; return the one before."""
        before = self.read()
        if before:
            if not before.is_gone():
                raise _HeldError(before)
            remove(self.uri)
        # Created only where there is none: of two processes that find the lock free at once, one fails here.
        self._create(owner)
        if before:
            time.sleep(SETTLE_S)  # another one that saw the same dead owner may have removed ours
        now = self.read()
        if now is None or now.token != owner.token:
            raise _HeldError(now)
        return before

    def refresh(self, owner: Owner) -> Owner | None:
        """Write a sign of life; return another owner where there is one by now."""
        now = self.read()
        if now and now.token != owner.token:
            return now
        fs, inner = filesystem(self.uri)
        fs.pipe_file(inner, owner.to_bytes())
        return None

    def drop(self, owner: Owner) -> None:
        """Remove the object where it is this owner's."""
        now = self.read()
        if now and now.token == owner.token:
            remove(self.uri)

    def read(self) -> Owner | None:
        """Return the owner that the object names, if any."""
        try:
            return Owner.from_bytes(read_bytes(self.uri)) if exists(self.uri) else None
        except FileNotFoundError:
            return None

    def _create(self, owner: Owner) -> None:
        fs, inner = filesystem(self.uri)
        make_folder(parent_of(self.uri))
        try:
            fs.pipe_file(inner, owner.to_bytes(), mode="create")
        except OSError:  # FileExistsError, or what the store says of two at once
            now = self.read()
            if now is None:
                raise
            if now.token != owner.token:  # else it is written, and only the answer was lost
                raise _HeldError(now) from None


def cannot_lock(error: OSError) -> bool:
    """Return whether a lock cannot be written because nothing there can: then nothing needs one."""
    return error.errno in _NO_RIGHT
