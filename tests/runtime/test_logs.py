import io
import json
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trec_semid.core.paths import exists, join, list_folder, read_bytes
from trec_semid.runtime import logs
from trec_semid.runtime.logs import RunLog, read_events, say, set_up_console, track, working
from trec_semid.runtime.ranks import Ranks


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(logs, "CONSOLE", Console(file=out, width=200))
    return out


@pytest.fixture
def package_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("trec_semid")
    kept = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = kept


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}
    return join(where[request.param], "run")


def test_every_line_has_time_event_and_values(folder: str):
    log = RunLog(folder)
    log.event("start", dataset="d")
    log.scalars({"train/loss": 0.5}, step=3)
    log.close()
    first, second = read_events(join(folder, "log.jsonl"))
    assert first["event"] == "start"
    assert first["dataset"] == "d"
    assert first["time"] > 1.7e9
    assert "step" not in first
    assert (second["event"], second["step"], second["train/loss"]) == ("scalars", 3, 0.5)


def test_each_rank_has_its_own_file(folder: str):
    for rank in (0, 1):
        log = RunLog(folder, rank)
        log.event("start", mine=rank)
        log.close()
    assert list_folder(folder) == ["log.jsonl", "log.rank-1.jsonl"]
    assert read_events(join(folder, "log.rank-1.jsonl"))[0]["mine"] == 1


def test_resumed_run_appends(folder: str):
    for step in (1, 2):
        log = RunLog(folder)
        log.event("step", step=step)
        log.close()
    assert [event["step"] for event in read_events(join(folder, "log.jsonl"))] == [1, 2]


def test_lines_are_on_disk_at_once(tmp_path: Path):
    log = RunLog(str(tmp_path))
    log.event("start")
    assert len(read_events(str(tmp_path / "log.jsonl"))) == 1
    log.close()


def test_remote_lines_are_visible_after_flush():
    folder = f"memory://{uuid.uuid4().hex}"
    log = RunLog(folder)
    log.event("start")
    assert not exists(join(folder, "log.jsonl"))
    log.flush()
    assert len(read_events(join(folder, "log.jsonl"))) == 1


def test_line_cut_off_by_a_crash_is_left_out_and_swallows_no_later_one(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"time": 1, "event": "a"}\n{"time": 2, "ev')
    log = RunLog(str(tmp_path))
    log.event("b")
    log.event("c")
    log.close()
    assert [event["event"] for event in read_events(str(tmp_path / "log.jsonl"))] == ["a", "b", "c"]


def test_values_that_json_does_not_know_become_text(tmp_path: Path):
    log = RunLog(str(tmp_path))
    log.event("start", device=torch.device("cpu"))
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text())["device"] == "cpu"


def test_scalars_reach_tensorboard_from_rank_0_only(tmp_path: Path):
    for rank in (0, 1):
        log = RunLog(f"file://{tmp_path}", rank, tensorboard=True)
        log.scalars({"train/loss": 0.25}, step=7)
        log.close()
    assert len(list(tmp_path.glob("events.*"))) == 1
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")] == [(7, 0.25)]


def test_scalars_of_a_remote_run_reach_tensorboard_and_its_log_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = f"memory://{uuid.uuid4().hex}"
    log = RunLog(folder, tensorboard=True)
    log.scalars({"train/loss": 0.25}, step=7)
    assert not exists(f"{folder}/log.jsonl")
    monkeypatch.setattr(logs, "_FLUSH_S", -1.0)
    log.event("later")
    assert [event["event"] for event in read_events(f"{folder}/log.jsonl")] == ["scalars", "later"]
    log.close()
    (name,) = (name for name in list_folder(folder) if name.startswith("events."))
    (tmp_path / name).write_bytes(read_bytes(f"{folder}/{name}"))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")] == [(7, 0.25)]


@pytest.mark.parametrize(("rank", "shown"), [(0, ["one", "two"]), (1, ["rank 1: two"])])
def test_other_ranks_show_only_warnings_and_say_who_they_are(
    console: io.StringIO, package_logger: logging.Logger, rank: int, shown: list[str]
):
    set_up_console(Ranks(rank, 2, rank, torch.device("cpu")))
    logging.getLogger("trec_semid.jobs.x").info("one")
    logging.getLogger("trec_semid.jobs.x").warning("two")
    lines = console.getvalue().splitlines()
    assert [
        line.split(maxsplit=1)[1] if ":" in line[:8] else line.strip() for line in map(str.rstrip, lines)
    ] == shown


def test_setting_up_the_console_twice_says_nothing_twice(
    console: io.StringIO, package_logger: logging.Logger
):
    set_up_console()
    set_up_console()
    package_logger.info("once")
    assert console.getvalue().count("once") == 1


def test_short_work_is_silent(console: io.StringIO):
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert console.getvalue() == ""


def test_long_work_off_a_terminal_says_how_much_is_left(
    console: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    with working("counting", 1000) as work:
        for _ in range(3):
            now[0] += 11
            work.advance(100)
    lines = console.getvalue().splitlines()
    assert lines[0] == "counting: 100 of 1,000, about 99 s left"
    assert len(lines) == 3


def test_work_of_unknown_size_says_how_much_is_done(console: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    with working("reading") as work:
        now[0] += 20
        work.advance(5)
    assert console.getvalue() == "reading: 5 in 20 s\n"


def test_long_work_on_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    monkeypatch.setattr(logs, "CONSOLE", Console(file=out, force_terminal=True, width=100))
    monkeypatch.setattr(logs, "_QUIET_S", -1.0)
    for _ in track([1, 2], "counting"):
        pass
    assert "counting" in out.getvalue()


def test_one_long_step_shows_a_bar_before_it_ends(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    monkeypatch.setattr(logs, "CONSOLE", Console(file=out, force_terminal=True, width=100))
    monkeypatch.setattr(logs, "_QUIET_S", 0.02)
    monkeypatch.setattr(logs, "_TICK_S", 0.01)
    with working("sorting"):
        until = time.monotonic() + 10
        while "sorting" not in out.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert "sorting" in out.getvalue()


def test_work_inside_work_leaves_the_bar_to_the_outer_one(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    monkeypatch.setattr(logs, "CONSOLE", Console(file=out, force_terminal=True, width=100))
    monkeypatch.setattr(logs, "_QUIET_S", -1.0)
    with working("outer", 1) as outer:
        outer.advance(0)
        with working("inner", 1) as inner:
            inner.advance()
    assert "outer" in out.getvalue()
    assert "inner" not in out.getvalue()


def test_hidden_work_shows_nothing_however_long(console: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    with working("counting", 10, shown=False) as work:
        now[0] += 100
        work.advance()
    assert console.getvalue() == ""


def test_bar_is_taken_away_when_the_work_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "CONSOLE", Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(logs, "_QUIET_S", -1.0)
    with pytest.raises(ZeroDivisionError), working("counting", 2) as work:
        work.advance(1 // (work.advance() or 0))
    with working("again", 1) as work:  # rich refuses a second live display
        work.advance()


def test_results_go_to_standard_output(capsys: pytest.CaptureFixture[str]):
    say("result")
    assert capsys.readouterr() == ("result\n", "")
