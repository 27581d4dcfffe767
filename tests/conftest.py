"""Fixtures that every room's tests may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def study_data() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TREC_SEMID_STUDY_DATA", default))
    if not folder.is_dir():
        pytest.skip("research datasets are not here: set TREC_SEMID_STUDY_DATA to their folder")
    return folder
