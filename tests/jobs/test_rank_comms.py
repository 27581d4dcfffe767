"""A run whose ranks exchange rounded values: near the exact one, and its bundle scores as it does."""

from pathlib import Path
from typing import Any

import pytest

from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import losses_of, rank_config, write_problem
from tests.ranks import run_ranks
from trec_semid.core.errors import ConfigError
from trec_semid.jobs import export, rank
from trec_semid.jobs.export import ExportConfig


def config_of(problem: dict[str, Any], folder: str, precision: str, epochs: int = 2) -> rank.RankConfig:
    by_rows = {"t_*": {"sharding_types": ["row_wise"]}}
    sharding = {"tables": by_rows, "comms": {"forward": precision, "backward": precision}}
    return rank_config(problem, folder, train={"max_epochs": epochs}, sharding=sharding)


def train(problem: dict[str, Any], folder: str) -> dict[str, list[float]]:
    """Train on this rank among others, and go on with another epoch; return the losses of all steps."""
    for precision in ("fp32", "fp16", "bf16"):
        rank.run(config_of(problem, f"{folder}/{precision}", precision))
    rank.run(config_of(problem, f"{folder}/bf16", "bf16", epochs=3))
    return {precision: losses_of(f"{folder}/{precision}") for precision in ("fp32", "fp16", "bf16")}


@pytest.mark.ranks
def test_a_rounded_run_stays_near_goes_on_and_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem = write_problem(str(tmp_path))
    losses, _ = run_ranks(train, 2, problem, str(tmp_path))
    for precision, near in {"fp16": 1e-3, "bf16": 8e-3}.items():
        assert losses[precision] != losses["fp32"]
        assert losses[precision][: len(losses["fp32"])] == pytest.approx(losses["fp32"], rel=near)
    assert len(losses["bf16"]) == 3 * len(losses["fp32"]) // 2
    # The bundle is held against the run's scores, to 1e-4: rounded ones would be further away.
    export_quickly(monkeypatch)
    export.run(ExportConfig.model_validate({"run": f"{tmp_path}/bf16", "out": f"{tmp_path}/bundle"}))
    with pytest.raises(ConfigError, match=r'sharding.comms.forward: "bf16" there, "fp32" now'):
        rank.run(config_of(problem, f"{tmp_path}/bf16", "fp32", epochs=4))
