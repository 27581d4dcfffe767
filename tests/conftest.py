"""Fixtures that every room's tests may use."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a planted proof be repeated with other seeds and rates, and verbs be killed more often."""
    parser.addoption("--planted-seed", type=int, default=0, help="seed of the planted proof of tuning")
    parser.addoption("--planted-rate", default=None, help="its learning rate, instead of the config's")
    parser.addoption("--kills", type=int, default=2, help="how often tests/reliability kills each verb")
    parser.addoption("--kill-seed", type=int, default=0, help="seed of the moments at which it does")


@pytest.fixture(scope="session")
def study_data() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TREC_SEMID_STUDY_DATA", default))
    if not folder.is_dir():
        pytest.skip("research datasets are not here: set TREC_SEMID_STUDY_DATA to their folder")
    return folder
