"""How long these tests may take: a verb that is killed more often takes longer."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test a limit that a run which hangs reaches soon; a killed verb takes up to 30 s."""
    limit_s = 300 + 150 * int(config.getoption("--kills") or 0)
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(limit_s))
