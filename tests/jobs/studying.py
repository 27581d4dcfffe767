"""A small study of tiny jobs, for tests of the verb and of its schedule."""

from pathlib import Path

from trec_semid.core.config import load_config
from trec_semid.jobs.study import StudyConfig

GRID = """
out = "{out}"
seeds = [0, 1, 2]
workers = 2
metrics = ["test/auc"]
[[step]]
verb = "prepare"
name = "data"
[[step]]
verb = "rank"
name = "item"
seeds = true
set = {{ reads = "{{data}}", gain = 0.5 }}
[[step]]
verb = "rank"
name = "both"
seeds = true
set = {{ reads = "{{data}}", gain = 0.6 }}
[[step]]
verb = "report"
"""


def study(tmp_path: Path, text: str = GRID, sets: tuple[str, ...] = ()) -> StudyConfig:
    """Write the study's file, its results going to `out` beside it, and return its config."""
    file = tmp_path / "study.toml"
    file.write_text(text.format(out=tmp_path / "out"))
    return load_config(StudyConfig, [str(file)], sets)
