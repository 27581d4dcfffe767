from contextlib import suppress
from types import SimpleNamespace

import pytest

from trec_semid.training.profiling import times


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(times.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_part_inside_another_stops_the_clock_of_that_one(clock: SimpleNamespace):
    spent = times.StepTimes()
    clock.now += 50.0  # in no part
    with spent.part("backward"):
        clock.now += 1.0
        with spent.part("input"):
            clock.now += 0.25
        with spent.part("forward"), spent.part("exchange"):
            clock.now += 0.5
        clock.now += 2.0
    with spent.part("input"):
        clock.now += 0.75
    spent.end_step()
    spent.end_step()
    said = spent.read()
    assert said == {
        "time/backward_ms": 1500.0,
        "time/input_ms": 500.0,
        "time/exchange_ms": 250.0,
        "time/forward_ms": 0.0,
    }


def test_what_is_read_inside_a_part_is_the_time_until_then_and_the_rest_comes_with_the_next_look(
    clock: SimpleNamespace,
):
    spent = times.StepTimes()
    spent.end_step()
    with spent.part("between"):
        clock.now += 3.0
        assert spent.read() == {"time/between_ms": 3000.0}
        clock.now += 4.0
    spent.end_step()
    assert spent.read() == {"time/between_ms": 4000.0}
    assert spent.read() == {}


def test_a_part_that_an_error_ends_is_over(clock: SimpleNamespace):
    spent = times.StepTimes()
    with suppress(KeyError), spent.part("forward"):
        clock.now += 1.0
        raise KeyError
    clock.now += 5.0
    spent.end_step()
    assert spent.read() == {"time/forward_ms": 1000.0}
