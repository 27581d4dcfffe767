"""A watch over the ranks of a group: an error, a dead rank or a stopped one ends all of them by name.

Every rank has a thread that writes a sign of life into the group's store and reads what others wrote there.
No collective takes part in it: those wait for the very ranks that are in trouble.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from trec_semid.core.errors import PeerError, SemidError
from trec_semid.runtime import stopping

_POLL_S = 0.5
_RANKS_PER_S = 512
"""Beyond this world size polls are rarer, so that one store serves all."""
_GONE_S = 3.0
"""Silence after which a rank whose connections broke counts as gone."""
_FAULT, _SEEN, _LEFT = "fault", "seen", "left"
_WAITING_IN = (f"{os.sep}torch{os.sep}distributed{os.sep}", f"{os.sep}torchrec{os.sep}distributed{os.sep}")
_OURS = f"trec_semid{os.sep}"


class Sign(NamedTuple):
    """A rank's sign of life."""

    number: int
    process: str
    """Host and process id."""
    where: str
    """Line of this package at which its main thread is."""
    waited_s: float
    """How long it has stood in one call that waits for other ranks."""
    is_alone: bool
    """Whether it does what others have to wait for, however long it takes."""


class Fault(NamedTuple):
    """What ends a group: the first error of any rank."""

    rank: int
    text: str
    exit_code: int


class Watch:
    """This rank's part of the watch; begin it on every rank, leave it on every rank."""

    def __init__(
        self, store: Store, rank: int, world_size: int, *, patience_s: float, has_lone_work: bool
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._patience_s, self._is_alone = patience_s, has_lone_work
        # All ranks talk to one store: the more they are, the less often each talks; but never too seldom for
        # the patience.
        self._poll_s = min(max(_POLL_S, world_size / _RANKS_PER_S), patience_s / 4)
        self._over, self._count, self._alone_count = threading.Event(), 0, 0
        self._is_leaving, self._timer = False, None
        self._blamed: tuple[BaseException, PeerError | None] | None = None
        self._stand = _Stand()
        self._heard: dict[int, tuple[int, float]] = dict.fromkeys(self._watched(), (0, 0.0))
        self._talked = time.monotonic()
        self._beat()

    def begin(self) -> None:
        """Start the threads; every rank has given its first sign of life by now."""
        self._talked = time.monotonic()
        self._heard = dict.fromkeys(self._heard, (0, self._talked))
        for work in (self._talk, self._mind_the_store):
            threading.Thread(target=work, name=f"watch {work.__name__}", daemon=True).start()

    @contextmanager
    def of_job(self, *, has_lone_work: bool) -> Iterator[None]:
        """Let a job within another be watched as one of its own is."""
        before, self._is_alone = self._is_alone, has_lone_work
        try:
            yield
        finally:
            self._is_alone = before

    @contextmanager
    def lone_work(self) -> Iterator[None]:
        """Let rank 0 work alone as long as it takes; the others wait at the end, not in a collective."""
        self._alone_count += 1
        name = f"alone-{self._alone_count}"
        if self._rank == 0:
            before, self._is_alone = self._is_alone, True
            yield
            self._is_alone = before
            self._store.set(name, "over")
            return
        yield
        while not self._store.check([name]):
            time.sleep(0.05)

    def leave(self) -> None:
        """End the watch in peace; rank 0, which may hold the store, stays until all are here or one fails."""
        self._is_leaving = True
        self._store.add(_LEFT, 1)
        if self._rank == 0:
            while self._store.add(_LEFT, 0) < self._world_size and not self._store.check([_FAULT]):
                time.sleep(0.01)
        self._end()

    def blame(self, error: BaseException) -> PeerError | None:
        """Tell all ranks of an error here, and end the watch; told again it says the same.

        Returns:
            The error to raise instead, where this one is only what another rank's end looks like from here.
        """
        if self._blamed is None or self._blamed[0] is not error:
            self._blamed = error, self._tell(error)
        return self._blamed[1]

    def _tell(self, error: BaseException) -> PeerError | None:
        self._is_leaving = True
        is_own = isinstance(error, (SemidError, stopping.Stopped))
        try:
            if isinstance(error, PeerError):
                self._wait_until_seen()
                return None
            return self._blame(error, is_own=is_own)
        except RuntimeError:  # the store is gone with its host
            return _store_error("is gone") if isinstance(error, RuntimeError) and not is_own else None
        finally:
            self._end()

    def _blame(self, error: BaseException, *, is_own: bool) -> PeerError | None:
        wait_s = 1.5 if isinstance(error, RuntimeError) else 0.0  # what a broken connection raises
        other = None if is_own else self._fault_of_others(wait_s)
        if other is not None:
            return _as_error(other)
        # A broken connection may be all that others see of a rank that was killed and could tell nothing
        # itself.
        gone = self._gone() if isinstance(error, RuntimeError) and not is_own else None
        self._publish(gone or Fault(self._rank, _text_of(error), _exit_code_of(error)))
        return _as_error(gone) if gone else None

    def _publish(self, fault: Fault) -> None:
        """Write a fault unless there is one, and let every rank read it."""
        self._store.compare_set(_FAULT, "", json.dumps(fault))
        self._wait_until_seen()

    def _wait_until_seen(self) -> None:
        """Wait until every rank that lives has read the fault: rank 0 may hold the store."""
        until = time.monotonic() + 4 * self._poll_s
        while time.monotonic() < until and self._store.add(_SEEN, 0) < self._world_size:
            time.sleep(0.02)

    def _fault(self) -> Fault | None:
        return Fault(*json.loads(self._store.get(_FAULT))) if self._store.check([_FAULT]) else None

    def _fault_of_others(self, wait_s: float) -> Fault | None:
        until = time.monotonic() + wait_s
        while (fault := self._fault()) is None and time.monotonic() < until:
            time.sleep(0.05)
        return fault if fault is not None and fault.rank != self._rank else None

    def _gone(self) -> Fault | None:
        """Look whether a rank has fallen silent."""
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        first = self._signs(others)
        silent, until = others, time.monotonic() + max(_GONE_S, 3 * self._poll_s)
        while time.monotonic() < until:
            time.sleep(self._poll_s)
            silent = [rank for rank, sign in self._signs(others).items() if sign.number == first[rank].number]
            if not silent:
                return None
            if (fault := self._fault()) is not None:
                return fault
        rank = silent[0]
        return Fault(rank, f"is gone ({first[rank].process}): killed, or its host is down", 1)

    # ---- the threads ----

    def _talk(self) -> None:
        while not self._over.wait(self._poll_s):
            try:
                self._beat()
                fault = self._fault() or self._judge()
                if fault is not None:
                    self._take(fault)
                    return
            except RuntimeError:  # the store does not answer
                if time.monotonic() - self._talked > min(_GONE_S, self._patience_s) and not self._is_leaving:
                    self._give_up("is gone")
                    return
                continue
            self._talked = time.monotonic()

    def _take(self, fault: Fault) -> None:
        self._store.add(_SEEN, 1)
        if not self._is_leaving:
            self._timer = stopping.interrupt(_as_error(fault))

    def _mind_the_store(self) -> None:
        """Notice a store that takes calls but does not answer them: its process is stopped."""
        before = time.monotonic()
        while not self._over.wait(self._poll_s):
            now = time.monotonic()
            if now - before > 4 * self._poll_s + 1:  # this process itself was stopped
                self._talked = now
            before = now
            if now - self._talked > self._patience_s * 1.25 and not self._timer and not self._is_leaving:
                self._give_up(f"has not answered for {now - self._talked:.0f} s")
                return

    def _give_up(self, how: str) -> None:
        self._timer = stopping.interrupt(_store_error(how))

    def _beat(self) -> None:
        self._count += 1
        where, waited_s = self._stand.look()
        process = f"{socket.gethostname()}, process {os.getpid()}"
        sign = Sign(self._count, process, where, round(waited_s, 1), self._is_alone)
        self._store.set(_sign_of(self._rank), json.dumps(sign))

    def _watched(self) -> list[int]:
        """Rank 0 looks at all others, and these at rank 0."""
        return list(range(1, self._world_size)) if self._rank == 0 else [0]

    def _signs(self, ranks: list[int]) -> dict[int, Sign]:
        read = self._store.multi_get([_sign_of(rank) for rank in ranks])
        return {rank: Sign(*json.loads(text)) for rank, text in zip(ranks, read, strict=True)}

    def _judge(self) -> Fault | None:
        now = time.monotonic()
        if now - self._talked > 4 * self._poll_s + 1:  # we were stopped ourselves: nobody else is to blame
            self._heard = {rank: (count, now) for rank, (count, _) in self._heard.items()}
        signs = self._signs(list(self._heard))
        fault = None
        for rank, sign in signs.items():
            if sign.number != self._heard[rank][0]:
                self._heard[rank] = (sign.number, now)
            silent_s = now - self._heard[rank][1]
            # Others look at rank 0 a little longer than it looks at them: it names whom it misses first.
            if silent_s > self._patience_s * (1.0 if self._rank == 0 else 1.1):
                how = f"gives no sign of life for {silent_s:.0f} s ({sign.process}, at {sign.where})"
                fault = Fault(rank, f"{how}: stopped, or its host is down", 1)
        if fault is None and self._rank == 0:
            fault = late_rank(signs | self._signs([0]), self._patience_s)
        if fault is not None:
            self._store.compare_set(_FAULT, "", json.dumps(fault))
        return fault

    def _end(self) -> None:
        self._over.set()
        if self._timer:
            self._timer.cancel()


class _Stand:
    """Samples at which line the main thread is, and how long it has stood in one waiting call."""

    def __init__(self) -> None:
        self._at: Any = None
        self._since = 0.0

    def look(self) -> tuple[str, float]:
        """Return the line of ours that the main thread is at, and how long it has waited there [s]."""
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
        frame = frames.get(threading.main_thread().ident or 0)
        now, waits, where = time.monotonic(), False, "its start"
        at = (id(frame), frame.f_lasti) if frame else None
        while frame is not None:
            file = frame.f_code.co_filename
            if _OURS in file and os.path.basename(file) not in ("watch.py", "ranks.py"):
                where = f"{file[file.rindex(_OURS) :]}:{frame.f_lineno} ({frame.f_code.co_name})"
                break
            waits = waits or any(part in file for part in _WAITING_IN)
            frame = frame.f_back
        # The same frame at the same instruction as at the last look has not moved. Any other, or one that
        # does not wait for ranks, starts the clock anew.
        if at != self._at or not waits:
            self._at, self._since = at, now
        return where, now - self._since


def late_rank(signs: dict[int, Sign], patience_s: float) -> Fault | None:
    """Return the rank that others have waited for longer than patience, from signs of life of all ranks."""
    # While a rank works alone the others wait as they should; silence is judged elsewhere.
    if any(sign.is_alone for sign in signs.values()):
        return None
    waiting = {rank: sign for rank, sign in signs.items() if sign.waited_s > patience_s}
    if not waiting:
        return None
    # Ranks do not begin to wait at the same moment: one that waits nearly as long as the longest is a victim
    # as well. The culprit is one that has waited clearly less.
    others = [rank for rank in signs if signs[rank].waited_s < patience_s / 2]
    rank = others[0] if others else min(waiting)
    longest = max(waiting.values(), key=lambda sign: sign.waited_s)
    who = "1 rank has" if len(waiting) == 1 else f"{len(waiting)} ranks have"
    how = f"does not come to where {who} waited for it for {longest.waited_s:.0f} s"
    where = f"{signs[rank].process}, at {signs[rank].where}; they are at {longest.where}"
    return Fault(rank, f"{how} ({where})", 1)


def _sign_of(rank: int) -> str:
    return f"sign-{rank}"


def _text_of(error: BaseException) -> str:
    if isinstance(error, stopping.Stopped):
        return f"was {error}"
    return f"failed: {error}" if isinstance(error, SemidError) else f"failed: {type(error).__name__}: {error}"


def _exit_code_of(error: BaseException) -> int:
    if isinstance(error, SemidError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _as_error(fault: Fault) -> PeerError:
    return PeerError(f"rank {fault.rank} {fault.text}", fault.exit_code)


def _store_error(how: str) -> PeerError:
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    host = "the launcher" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
    return PeerError(f"{host}, which holds the ranks' store at {place}, {how}", 1)
