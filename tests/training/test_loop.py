"""What the training loop says of its speed."""

from types import SimpleNamespace

import pytest

from trec_semid.training import loop


def test_speed_counts_all_rows_and_only_the_time_of_training(monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock.now)
    pace = loop.Pace(started=clock.now)
    pace.add(2.0, 30)
    clock.now += 3.0
    with pace.paused():
        clock.now += 50.0
    pace.add(5.0, 10)
    clock.now += 1.0
    assert pace.scalars() == {"train/loss": 2.75, "train/samples_per_s": 10.0}
