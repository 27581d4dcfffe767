"""Who am I among the processes, and the process group around a job."""

import os
import pickle
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from trec_semid.core.errors import ConfigError, StackError
from trec_semid.core.processes import scratch_prefix
from trec_semid.runtime import stopping
from trec_semid.runtime.watch import Watch

PATIENCE = "TREC_SEMID_PATIENCE_S"
"""Environment variable: after how many seconds without a sign of life a rank counts as stopped."""
_PATIENCE_S = 600.0
_JOIN_S = 600.0
"""How long ranks wait at least for all to come: hosts start at different times."""
_ANY_TIME_S = 30 * 86_400.0
"""Time-out of collectives where rank 0 works alone: the watch ends such waits, not the clock."""
_STORES: dict[str, Store] = {}
"""Of the launches that this process was part of, by address."""
_WATCHES: list[Watch] = []
"""Of the group that this process is in."""
_MESSAGE_BYTES, _LENGTH_BYTES = 1024, 8
"""What an object may have to go in one message, and its length before it."""
_ALONE: list[bool] = []
"""Not empty while this rank does what a single process would."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes what is written once."""
        return self.rank == 0


@contextmanager
def process_group(*, patience_s: float | None = None, has_lone_work: bool = False) -> Iterator[Ranks]:
    """Join the process group that torchrun describes, or make one of a single process.

    Uses NCCL when every local rank has a GPU of its own and gloo otherwise. A group that is there
    already is used and left as it was, so jobs can run one after another in one process. An error on one
    rank, or the end of one, ends all of them with that error within seconds.

    Args:
        patience_s: after how long a rank that is stopped, or that others wait for, is named and all end;
            `TREC_SEMID_PATIENCE_S` where not given, else ten minutes.
        has_lone_work: rank 0 may work alone for any time while others wait; only silence counts then.

    Raises:
        PeerError: another rank failed, was stopped or is gone.
        ConfigError: `TREC_SEMID_PATIENCE_S` is no number of seconds.
        StackError: not all ranks came.
    """
    patience_s = patience_s or _patience_s()
    me = _this_rank()
    if dist.is_initialized():
        # A job within another: while it lasts, whether ranks may wait for long is for it to say.
        with _WATCHES[-1].of_job(has_lone_work=has_lone_work) if _WATCHES and not _ALONE else nullcontext():
            yield Ranks(*place_among_ranks(), me.local_rank, me.device)
        return
    backend = "cpu:gloo,cuda:nccl" if me.device.type == "cuda" else "gloo"
    # Longer than the patience: the watch, which can name the rank that is missing, is to speak first.
    timeout_s = _ANY_TIME_S if has_lone_work else 2 * patience_s + 60
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
        watch = None
        if "MASTER_ADDR" in os.environ and "RANK" in os.environ:
            until = time.monotonic() + max(patience_s, _JOIN_S)
            store = _join(me, until)
            if me.world_size > 1:
                watch = _begin_watch(store, me, patience_s, has_lone_work, until)
        else:
            # No launcher: a process alone meets itself over a file, for which no port has to be free.
            store = FileStore(f"{scratch}/store", me.world_size)
        timeout = timedelta(seconds=timeout_s)
        with _watched(watch):
            dist.init_process_group(
                backend, timeout=timeout, store=store, rank=me.rank, world_size=me.world_size
            )
            yield me


def _this_rank() -> Ranks:
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    # Asked of the node, not of this rank: every rank must choose the same backend.
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    with_gpu = torch.cuda.is_available() and on_node <= torch.cuda.device_count()
    device = torch.device("cuda", local_rank) if with_gpu else torch.device("cpu")
    if with_gpu:
        torch.cuda.set_device(device)
    return Ranks(rank, int(os.environ.get("WORLD_SIZE", "1")), local_rank, device)


def _patience_s() -> float:
    given = os.environ.get(PATIENCE)
    with suppress(ValueError):
        if given is None or float(given) >= 1:
            return float(given or _PATIENCE_S)
    raise ConfigError(f"{PATIENCE}: not a number of seconds from 1 up (got '{given}')")


def _join(me: Ranks, until: float) -> Store:
    """Return the ranks' store below a prefix that only this very group has.

    torchrun's store outlives a group and every restart of the ranks, and no number that a rank knows tells
    restarts apart on all nodes (torchrun counts on each by itself). So rank 0 draws the prefix and answers
    whoever asks now: what an earlier group asked or answered is of other words.
    """
    root = _root_store(me, until)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if me.world_size == 1:
        return PrefixStore(f"group-{restarts}-{uuid.uuid4().hex}", root)
    if me.rank == 0:
        name = f"group-{restarts}-{uuid.uuid4().hex}"
        for rank in range(1, me.world_size):
            _answer(root, rank, name, until)
        return PrefixStore(name, root)
    question = uuid.uuid4().hex
    root.set(f"ask-{me.rank}", question)
    while not root.check([question]):
        _wait(until, "rank 0")
    name = root.get(question).decode()
    root.set(f"{name}-{me.rank}", "here")
    return PrefixStore(name, root)


def _root_store(me: Ranks, until: float) -> Store:
    """Connect to the store of the launch, once a process: rank 0, which may hold it, ends it with itself."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if place not in _STORES:
        try:
            _STORES[place], _, _ = next(
                rendezvous("env://", timeout=timedelta(seconds=until - time.monotonic()))
            )
        except dist.DistError as error:
            raise StackError(f"not all {me.world_size} ranks came together at {place}: {error}") from error
    return _STORES[place]


def _answer(root: Store, rank: int, name: str, until: float) -> None:
    answered = None
    # Until it says that it is here: a rank that asked may have died and come again with another question.
    while not root.check([f"{name}-{rank}"]):
        if root.check([f"ask-{rank}"]) and (question := root.get(f"ask-{rank}").decode()) != answered:
            # The question itself is the key, new in every process: a rank can only read the answer to its
            # own.
            root.set(question, name)
            answered = question
        _wait(until, f"rank {rank}")


def _wait(until: float, rank: str) -> None:
    if time.monotonic() > until:
        raise StackError(f"{rank} did not come. Are all launchers started, with the same --nnodes?")
    time.sleep(0.02)


def _begin_watch(store: Store, me: Ranks, patience_s: float, has_lone_work: bool, until: float) -> Watch:
    # A connection of its own: one that waits for a key holds up everything else on it.
    own = PrefixStore("watch", store.clone())  # pyright: ignore[reportAttributeAccessIssue]
    watch = Watch(own, me.rank, me.world_size, patience_s=patience_s, has_lone_work=has_lone_work)
    own.add("here", 1)
    while own.add("here", 0) < me.world_size:
        _wait(until, "a rank")
    watch.begin()
    return watch


@contextmanager
def _watched(watch: Watch | None) -> Iterator[None]:
    """Tell all ranks of an error in here, and leave the process group in any case."""
    if watch:
        _WATCHES.append(watch)
    try:
        yield
    except BaseException as error:
        instead = watch.blame(error) if watch else None
        _end_group(in_peace=watch is None)
        if instead is not None:
            raise instead from error
        raise
    else:
        if watch:
            watch.leave()
        _end_group(in_peace=True)
    finally:
        if watch:
            _WATCHES.remove(watch)


def _end_group(*, in_peace: bool) -> None:
    if not dist.is_initialized():
        return
    if in_peace:
        dist.destroy_process_group()
        return
    # Other ranks may never answer: what a collective of ours waits for must not hold us up.
    ending = threading.Thread(target=_destroy_quietly, daemon=True)
    ending.start()
    ending.join(timeout=2.0)


def _destroy_quietly() -> None:
    with suppress(RuntimeError):
        dist.destroy_process_group()


@contextmanager
def lone_work() -> Iterator[None]:
    """Surround what rank 0 does alone for any time; the others wait at its end, without a collective."""
    if not _WATCHES:
        yield
        return
    with _WATCHES[-1].lone_work():
        yield


def tell_ranks(error: BaseException) -> None:
    """Let all ranks hear of an error of this one, and end, before what they work on is taken away.

    The error is to be raised out of the group's block next.
    """
    if _WATCHES and not _ALONE:
        _WATCHES[-1].blame(error)


def signal_on_any_rank() -> int:
    """Return the number of a signal that asked any rank to stop, the same on each, or 0; all ranks ask."""
    mine = stopping.signal_asked()
    if num_ranks() == 1:
        return mine
    asked = torch.tensor([mine])
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    return int(asked.item())


class SharedSignal:
    """Tells all ranks at the same step that a signal has come to one of them, and waits for nobody.

    The exchange goes on beside the step, over hosts alone, and is looked at a step later: by then it is over.
    """

    def __init__(self) -> None:
        self._asked, self._work = torch.zeros(1, dtype=torch.int64), None

    def is_asked(self) -> bool:
        """Return whether a signal had come to any rank by the call before; all ranks ask in every step."""
        mine = stopping.signal_asked()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return mine > 0
        # Begun a step ago, so this seldom waits; all ranks read the same maximum, and so stop at the same
        # step.
        if self._work is not None:
            self._work.wait()
        was_asked = self._asked.numpy()[0] > 0  # a plain read: the tensor lies on the host
        self._asked = torch.tensor([mine])
        self._work = dist.all_reduce(self._asked, op=dist.ReduceOp.MAX, async_op=True)
        return bool(was_asked)


def leave_if_asked() -> None:
    """Raise `Stopped` on all ranks together where stopping is deferred and a signal has asked one of them.

    Between collectives of long work that is done anew after a restart. Where stopping is not deferred the
    signal itself has raised it.
    """
    if stopping.is_deferred() and (number := signal_on_any_rank()):
        raise stopping.Stopped(number)


@contextmanager
def alone() -> Iterator[None]:
    """Let this rank do inside what a single process does: nothing is exchanged, and no other need come."""
    _ALONE.append(True)
    try:
        yield
    finally:
        _ALONE.pop()


def place_among_ranks() -> tuple[int, int]:
    """Return which of the processes that work together this is, and how many they are; (0, 1) alone."""
    return (0, 1) if _ALONE or not dist.is_initialized() else (dist.get_rank(), dist.get_world_size())


def num_ranks() -> int:
    """Return how many processes work together; 1 where no group was joined."""
    return place_among_ranks()[1]


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value, on every rank; [value] outside a process group.

    What is short goes in one message: torch's own sends the lengths ahead.
    """
    if num_ranks() == 1:
        return [value]
    content = pickle.dumps(value)
    boxes = _gathered(content, _MESSAGE_BYTES)
    longest = max(map(_length_of, boxes))
    if longest > _MESSAGE_BYTES:
        boxes = _gathered(content, longest)
    return [pickle.loads(_content_of(box)) for box in boxes]  # noqa: S301 - of our own ranks


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if num_ranks() == 1:
        return value
    content = pickle.dumps(value) if dist.get_rank() == 0 else b""
    box = _box(content, _MESSAGE_BYTES)
    dist.broadcast(box, src=0)
    if _length_of(box) > _MESSAGE_BYTES:
        box = _box(content, _length_of(box))
        dist.broadcast(box, src=0)
    return pickle.loads(_content_of(box))  # noqa: S301 - of our own ranks


def _box(content: bytes, num_bytes: int) -> Tensor:
    """Return the length of a content, and the content where it has room in so many bytes."""
    box = np.zeros(_LENGTH_BYTES + num_bytes, np.uint8)
    box[:_LENGTH_BYTES] = np.frombuffer(len(content).to_bytes(_LENGTH_BYTES, "little"), np.uint8)
    if len(content) <= num_bytes:
        box[_LENGTH_BYTES : _LENGTH_BYTES + len(content)] = np.frombuffer(content, np.uint8)
    return torch.from_numpy(box)


def _length_of(box: Tensor) -> int:
    return int.from_bytes(box[:_LENGTH_BYTES].numpy().tobytes(), "little")


def _content_of(box: Tensor) -> bytes:
    return box[_LENGTH_BYTES : _LENGTH_BYTES + _length_of(box)].numpy().tobytes()


def _gathered(content: bytes, num_bytes: int) -> list[Tensor]:
    """Return what every rank has, each in a box of so many bytes."""
    mine = _box(content, num_bytes)
    boxes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(boxes, mine)
    return boxes


def barrier() -> None:
    """Wait until every rank is here."""
    if num_ranks() > 1:
        dist.barrier()
