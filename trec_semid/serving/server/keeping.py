"""Which bundle is served: opened beside the one before, checked, and only then in its place.

A config names a bundle, or a text file that names one. Where another one is found there, it is opened in a
thread while requests are answered by the one before. One that cannot be opened, or fails its check, is told
and left alone for a while: the one before stays.
"""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple, TypeVar, final

import numpy as np

from trec_semid.checkpoints.bundle_files import MANIFEST, SIGNATURE
from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, is_local, join, parent_of, read_bytes
from trec_semid.serving.engine import Engine, NotServedError, RankAsked, RetrieveAsked
from trec_semid.serving.server.batching import Batcher
from trec_semid.serving.server.metrics import Meters

_log = logging.getLogger(__name__)
T = TypeVar("T")
_LONGEST_NAME = 4096
THREAD = "bundle"
"""Name of the threads that open bundles."""
_AGAIN_S = (10.0, 600.0)
"""How soon a bundle that was refused is tried again, at first and at most: it may have been half copied."""
_EXAMPLES = 20
_MOMENT_S, _PAUSE_S = 0.0005, 0.05
"""How long the opening of a bundle goes on beside a batch at least, and waits for its end at most [s]."""


class Found(NamedTuple):
    """A bundle, and which one it is."""

    uri: str
    signature: bytes
    """Checksum of its manifest: another one where the folder was replaced."""


def find_bundle(place: str) -> Found:
    """Return the bundle at a place, or that which a text file there names; links are followed to their ends.

    Raises:
        DataError: neither is there.
    """
    uri = place.rstrip("/")
    if not exists(join(uri, MANIFEST)):
        uri = _named_by(uri)
    if is_local(uri):  # files that are opened later come from the same folder, though a link is set anew
        uri = os.path.realpath(uri.removeprefix("file://"))
    try:
        return Found(uri, read_bytes(join(uri, SIGNATURE)))
    except OSError:
        remedy = "Make one with: trec-semid export CONFIG.toml"
        raise DataError("no bundle here", file=join(uri, MANIFEST), remedy=remedy) from None


def _named_by(file: str) -> str:
    remedy = "Name a bundle, or a text file that holds the path of one"
    try:
        name = read_bytes(file)[:_LONGEST_NAME].decode().strip()
    except (OSError, UnicodeDecodeError):
        raise DataError("no bundle and no text file here", file=file, remedy=remedy) from None
    if not name or "\n" in name:
        raise DataError("does not hold one path", file=file, value=name[:80], remedy=remedy)
    return name if "://" in name or name.startswith("/") else join(parent_of(file), name)


def check_engine(engine: Engine, must: frozenset[str] = frozenset()) -> frozenset[str]:
    """Ask an engine about items of its own, and return what it can: `rank`, `retrieve` or both.

    Args:
        engine: to be asked.
        must: what it has to be able to do.

    Raises:
        DataError: its answers make no sense, or it cannot do what it must.
    """
    examples = engine.examples(_EXAMPLES)
    if not examples:
        raise DataError("the bundle has no items", value=engine.version, remedy="Export it again")
    able = frozenset(kind for kind, check in _CHECKS.items() if _passes(check, engine, examples))
    if not able or not must <= able:
        lacking = ", ".join(sorted(must - able)) or "rank and retrieve"
        remedy = "Serve bundles of one kind at one place"
        raise DataError(f"the bundle cannot {lacking}", value=engine.version, remedy=remedy)
    return able


def _passes(
    check: Callable[[Engine, tuple[str, ...]], bool], engine: Engine, examples: tuple[str, ...]
) -> bool:
    try:
        is_sane = check(engine, examples)
    except NotServedError:
        return False
    if not is_sane:
        problem = "the bundle's answers about its own items make no sense"
        raise DataError(problem, value=engine.version, remedy="Export it again")
    return True


def _ranks_sanely(engine: Engine, examples: tuple[str, ...]) -> bool:
    scores = engine.rank([RankAsked(None, examples[:3], {}, examples)])[0].scores
    return len(scores) == len(examples) and bool(((scores >= 0) & (scores <= 1)).all())


def _lists_sanely(engine: Engine, examples: tuple[str, ...]) -> bool:
    asked = [RetrieveAsked(None, history, _EXAMPLES) for history in (examples[:3], None)]
    answers = engine.retrieve(asked)
    return all(
        len(set(answer.items)) == len(answer.items) == len(answer.scores) > 0
        and bool(np.isfinite(answer.scores).all())
        for answer in answers
    )


_CHECKS = {"rank": _ranks_sanely, "retrieve": _lists_sanely}


@final
class Keeper:
    """Keeps a batcher with the engine of the bundle that is at a place."""

    def __init__(
        self, place: str, batcher: Batcher, meters: Meters, open_engine: Callable[[str], Engine]
    ) -> None:
        self._place, self._batcher, self._meters, self._open = place, batcher, meters, open_engine
        self._served: Found | None = None
        self._able: frozenset[str] = frozenset()
        self._refused: Found | None = None
        self._again_s, self._not_before = _AGAIN_S[0], 0.0
        self._nudge = asyncio.Event()
        self.problem: str | None = None
        """Why the bundle that is at the place is not the one that is served; None where it is."""

    async def open_first(self) -> None:
        """Open the first bundle.

        Raises:
            SemidError: it cannot be opened, or fails its check.
        """
        found = await _in_thread(lambda: find_bundle(self._place))
        await self._take(found)

    def nudge(self) -> None:
        """Look at once, also at what was refused before."""
        self._not_before = 0.0
        self._nudge.set()

    async def watch(self, every_s: float) -> None:
        """Look for another bundle again and again; for ever.

        Args:
            every_s: how often; 0 for whenever there is a nudge.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), every_s or None)
            self._nudge.clear()
            await self.look()

    async def look(self) -> bool:
        """Look once and return whether another bundle is served now."""
        try:
            found = await _in_thread(lambda: find_bundle(self._place))
        except Exception as error:
            self._say(f"{self._place}: {error}")
            return False
        if found == self._served:
            self.problem, self._refused = None, None
            return False
        if found != self._refused:
            self._again_s, self._not_before = _AGAIN_S[0], 0.0
        if time.monotonic() < self._not_before:
            return False
        try:
            await self._take(found)
        except Exception as error:
            self._refuse(found, error)
            return False
        return True

    async def _take(self, found: Found) -> None:
        began = time.perf_counter()
        engine, able = await _in_thread(lambda: self._opened(found))
        before = self._batcher.version
        self._batcher.use(engine)
        self._meters.swapped(before, engine)
        self._served, self._able, self._refused, self.problem = found, able, None, None
        took = time.perf_counter() - began
        _log.info("%s: version %s is served; opened in %.1f s", found.uri, engine.version, took)

    def _opened(self, found: Found) -> tuple[Engine, frozenset[str]]:
        with _giving_way(self._batcher):
            engine = self._open(found.uri)
            try:
                return engine, check_engine(engine, self._able)
            except BaseException:
                engine.close()
                raise

    def _refuse(self, found: Found, error: Exception) -> None:
        self._refused = found
        self._not_before = time.monotonic() + self._again_s
        self._meters.not_swapped()
        self._say(f"{found.uri}: refused, version {self._batcher.version} stays: {error}")
        self._again_s = min(2 * self._again_s, _AGAIN_S[1])

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("%s", problem)
        self.problem = problem


@contextmanager
def _giving_way(batcher: Batcher) -> Iterator[None]:
    """Work in this thread while no batch is with the engine, and for a moment now and then.

    A pass of a model is hundreds of small operations, and before each it may have to wait for a thread that
    runs Python: without this, passes take ten times as long while a bundle is opened. Python tells of every
    call of a function, and there this thread stops. Of a search for garbage, which nothing can break into,
    there is none meanwhile.
    """
    resumed = time.perf_counter()

    def stop_for_batch(frame: FrameType, event: str, arg: object) -> None:
        """Let a batch that waits go first, at most once a moment."""
        nonlocal resumed
        if event == "call" and time.perf_counter() - resumed > _MOMENT_S and batcher.let_pass(_PAUSE_S):
            resumed = time.perf_counter()

    gc.disable()
    sys.setprofile(stop_for_batch)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


async def _in_thread(work: Callable[[], T]) -> T:
    """Do work in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        """Hand over what came of the work, in the loop's thread."""
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType] - of T where there is no error

    def be_thread() -> None:
        """Do the work, and tell the loop where there still is one."""
        try:
            result, error = work(), None
        except BaseException as raised:
            result, error = None, raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=be_thread, name=THREAD, daemon=True).start()
    return await future
