import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from trec_semid.core.errors import LockError
from trec_semid.core.paths import exists, find_files, join, make_folder, read_bytes, write_bytes
from trec_semid.core.processes import ProcessId, this_process
from trec_semid.runtime import locks
from trec_semid.runtime.locks import FolderLock, Owner, lock_uri, new_owner


@pytest.fixture(params=["path", "memory"])
def root(request, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SETTLE_S", 0.0)
    return str(tmp_path) if request.param == "path" else f"memory://locks-{uuid.uuid4().hex}"


def lock(folder: str, **changes) -> FolderLock:
    return FolderLock(folder, replace(new_owner("rank"), **changes))


def of_another_host(silent_s: float = 0.0, **changes) -> Owner:
    there = ProcessId("far", "ffffffff", 1, 1.0)
    now = time.time() - silent_s
    return Owner(there, "rank", since=now - 60, beat=now, **changes)


def gone() -> ProcessId:
    """Return a process that ran here, and no more."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = replace(this_process(), pid=child.pid)
    child.kill()
    child.wait()
    return identity


def test_a_lock_that_is_written_though_its_answer_was_lost_is_taken(monkeypatch):
    folder = f"memory://locks-{uuid.uuid4().hex}/run"
    write = MemoryFileSystem.pipe_file

    def lost(self, path, value, mode="overwrite", **kwargs):
        write(self, path, value, mode=mode, **kwargs)
        if mode == "create":
            raise FileExistsError(path)  # what a store says of a request that was sent again

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lost)
    lock = FolderLock(folder, new_owner("rank"))
    assert lock.take() is None
    lock.release()
    assert not exists(lock_uri(folder))


def test_second_process_is_told_who_since_when_and_what_to_do(root):
    folder = join(root, "run")
    first = lock(folder)
    first.take()
    with pytest.raises(LockError) as error:
        lock(folder).take()
    text, me = str(error.value), this_process()
    assert text.startswith(
        f"{folder}: another process works here (rank, process {me.pid} on {me.host}, since 2"
    )
    assert "Wait until it ends, stop it, or name another folder" in text
    assert error.value.exit_code == 2
    first.release()
    second = lock(folder)
    assert second.take() is None
    second.release()
    assert find_files(root) == []


@pytest.mark.parametrize(
    "spelling", ["./runs/a", "runs/a/", "runs/../runs/a", "{here}/runs/a", "link/a", "~/runs/a"]
)
def test_every_spelling_of_a_folder_is_the_same_lock(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    held = lock("runs/a")
    held.take()
    with pytest.raises(LockError):
        lock(spelling.format(here=tmp_path)).take()
    held.release()


def test_who_holds_a_folder_is_told_while_they_live(root):
    folder = join(root, "a/run")
    assert locks.holder_of(folder) is None
    held = lock(folder)
    held.take()
    assert locks.holder_of(folder) == held.owner
    held.release()
    assert locks.holder_of(folder) is None
    write_bytes(lock_uri(folder), replace(new_owner("rank"), process=gone()).to_bytes())
    assert locks.holder_of(folder) is None


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("a/.run.lock", "a/run"),
        (".run.lock", "run"),
        ("a/.lock", "a"),
        (".lock", None),
        ("a/run.lock", None),
        ("memory://a/.x.y.lock", "memory://a/x.y"),
    ],
)
def test_a_lock_names_its_folder(uri, folder):
    assert locks.folder_of(uri) == folder


def test_refusal_and_release_leave_no_folder_that_was_not_there(root):
    one = lock(join(root, "deep/er/run"))
    one.take()
    assert exists(one.uri)
    one.release()
    assert find_files(root) == []
    assert not exists(join(root, "deep")) or not root.startswith("/")


def test_lock_of_a_process_that_is_gone_is_taken_over_with_a_message(root, caplog):
    folder = join(root, "run")
    dead = replace(new_owner("tokenize"), process=gone())
    write_bytes(lock_uri(folder), dead.to_bytes())
    mine = lock(folder)
    assert mine.take() == dead
    assert f"{folder}: taken over from one that is gone (tokenize, process {dead.process.pid}" in caplog.text
    mine.release()


def test_other_process_of_the_same_number_is_another(root):
    me = this_process()
    write_bytes(
        lock_uri(join(root, "run")),
        replace(new_owner("rank"), process=replace(me, started=me.started - 50)).to_bytes(),
    )
    mine = lock(join(root, "run"))
    assert mine.take() is not None
    mine.release()


@pytest.mark.parametrize(
    ("silent_s", "is_free"), [(0, False), (locks.SILENT_S - 9, False), (locks.SILENT_S + 9, True)]
)
def test_owner_on_another_host_counts_as_gone_once_it_is_silent(root, silent_s, is_free):
    folder = join(root, "run")
    write_bytes(lock_uri(folder), of_another_host(silent_s).to_bytes())
    mine = lock(folder)
    if is_free:
        assert mine.take() is not None
        mine.release()
    else:
        with pytest.raises(
            LockError, match=rf"on far.*sign of life is \d+ s old; after {locks.SILENT_S:.0f} s"
        ):
            mine.take()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"token": 1}'])
def test_lock_whose_writer_died_while_it_wrote_is_free(tmp_path, content):
    folder = str(tmp_path / "run")
    Path(lock_uri(folder)).write_bytes(content)
    mine = lock(folder)
    assert mine.take() is None
    assert json.loads(Path(mine.uri).read_bytes())["token"] == mine.owner.token
    mine.release()


def test_owner_says_that_it_lives_and_stops_when_its_lock_is_anothers(root, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.02)
    stopped = threading.Event()
    monkeypatch.setattr(locks, "stop_at_once", lambda folder, other: stopped.set())
    mine = lock(join(root, "run"))
    mine.take()
    begun = Owner.from_bytes(read_bytes(mine.uri))
    deadline = time.monotonic() + 10
    while Owner.from_bytes(read_bytes(mine.uri)).beat == begun.beat and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Owner.from_bytes(read_bytes(mine.uri)).beat > begun.beat
    assert not stopped.is_set()
    other = of_another_host()
    write_bytes(mine.uri, other.to_bytes())
    assert stopped.wait(10)
    mine.release()
    assert Owner.from_bytes(read_bytes(mine.uri)) == other  # what is another's stays


def test_where_the_parent_cannot_be_written_the_lock_lies_inside(tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert lock_uri(str(tmp_path / "mount")) == str(tmp_path / "mount/.lock")
    assert lock_uri("s3://bucket") == "s3://bucket/.lock"
    assert lock_uri("s3://bucket/a/") == "s3://bucket/.a.lock"


def test_failed_write_leaves_no_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        lock(str(tmp_path / "a/run")).take()
    assert os.listdir(tmp_path) == []


class Locks(RuleBasedStateMachine):
    """Many processes over three folders, against a dict of who holds what."""

    processes = Bundle("processes")

    def __init__(self):
        super().__init__()
        self.root = f"memory://machine-{uuid.uuid4().hex}" if self.on_store else None
        self.alive: dict[int, bool] = {}
        self.held: dict[str, tuple[int, FolderLock]] = {}
        self.numbers = iter(range(1, 10**6))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(locks, "SETTLE_S", 0.0)
        self.patch.setattr(Owner, "is_gone", lambda owner: not self.alive[owner.process.pid])
        self.patch.setattr(
            threading, "Thread", lambda **_: SimpleNamespace(start=lambda: 0, join=lambda **_: 0)
        )
        self.scratch = None
        if not self.on_store:
            import tempfile

            self.scratch = tempfile.TemporaryDirectory()
            self.root = self.scratch.name

    on_store = False

    @rule(target=processes)
    def start(self):
        number = next(self.numbers)
        self.alive[number] = True
        return number

    @rule(process=processes, name=st.sampled_from("abc"))
    def take(self, process, name):
        if not self.alive[process]:
            return
        folder = join(self.root, name)
        one = FolderLock(folder, Owner(ProcessId("h", "m", process, 0.0), "rank", 0.0, 0.0))
        holder = self.held.get(name)
        if holder and self.alive[holder[0]]:
            with pytest.raises(LockError, match=f"process {holder[0]} on h"):
                one.take()
            return
        before = one.take()
        assert (before.process.pid if before else None) == (holder[0] if holder else None)
        self.held[name] = (process, one)

    @rule(name=st.sampled_from("abc"))
    def release(self, name):
        holder = self.held.get(name)
        if holder and self.alive[holder[0]]:
            holder[1].release()
            del self.held[name]

    @rule(process=consumes(processes))
    def kill(self, process):
        self.alive[process] = False

    @invariant()
    def files_say_who_holds_what(self):
        for name in "abc":
            uri = lock_uri(join(self.root, name))
            holder = self.held.get(name)
            assert exists(uri) == bool(holder)
            if holder:
                assert Owner.from_bytes(read_bytes(uri)).process.pid == holder[0]

    def teardown(self):
        self.patch.undo()
        if self.scratch:
            self.scratch.cleanup()


class LocksOnStore(Locks):
    on_store = True


TestLocks = Locks.TestCase
TestLocks.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestLocksOnStore = LocksOnStore.TestCase
TestLocksOnStore.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


RACER = """
import os, sys, time
from trec_semid.core.errors import LockError
from trec_semid.runtime.locks import FolderLock, new_owner
folder, rounds = sys.argv[1], int(sys.argv[2])
mark = os.path.join(folder, "inside")
for _ in range(rounds):
    lock = FolderLock(folder, new_owner("race"))
    try:
        lock.take()
    except LockError:
        time.sleep(0.001)
        continue
    number = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails where a second one is inside
    os.close(number)
    time.sleep(0.001)
    os.unlink(mark)
    lock.release()
    print("held", flush=True)
"""


def test_real_processes_that_race_are_never_inside_together(tmp_path):
    folder = make_folder(str(tmp_path / "run"))
    dead = replace(new_owner("rank"), process=gone())
    Path(lock_uri(folder)).write_bytes(dead.to_bytes())  # all see the same owner that is gone
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, folder, "60"], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    held = [racer.communicate(timeout=120)[0].count("held") for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sum(held) > 10
    assert os.listdir(folder) == []
    assert not exists(lock_uri(folder))


def _hold(folder: str, ready) -> None:
    FolderLock(folder, new_owner("rank")).take()
    ready.set()
    time.sleep(60)


def test_killed_owner_frees_its_folder_at_once_though_nobody_waited_for_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    child.start()
    assert ready.wait(60)
    mine = lock(str(tmp_path / "run"))
    with pytest.raises(LockError, match=f"process {child.pid} "):
        mine.take()
    os.kill(child.pid, signal.SIGSTOP)  # a stopped process is not gone
    with pytest.raises(LockError):
        mine.take()
    os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:  # a zombie until it is waited for
        try:
            before = mine.take()
            break
        except LockError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert before is not None
    assert before.process.pid == child.pid
    mine.release()
    child.join()


HOLDER = """
import sys, time
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.stopping import heeding_signals
with heeding_signals(), own_folder(sys.argv[1], "rank"):
    print("held", flush=True)
    if len(sys.argv) > 2:
        raise RuntimeError(sys.argv[2])
    time.sleep(60)
"""


@pytest.mark.parametrize(("way", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), ("a bug", 1)])
def test_every_end_but_a_kill_gives_the_folder_back(tmp_path, way, code):
    folder = str(tmp_path / "deep/run")
    words = [way] if isinstance(way, str) else []
    command = [sys.executable, "-c", HOLDER, folder, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    if not words:
        process.send_signal(way)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert os.listdir(tmp_path) == []
