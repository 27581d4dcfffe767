"""What verbs that train a model do before and after: refusals, the run's first files, plans, counts."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from trec_semid.core.config import Config, config_checksum
from trec_semid.core.errors import ConfigError
from trec_semid.core.logs import CONSOLE
from trec_semid.core.paths import exists, write_bytes
from trec_semid.core.ranks import Ranks, barrier, broadcast_object
from trec_semid.core.runs import RunFolder
from trec_semid.jobs.training_loop import Training, refuse_other_inputs
from trec_semid.sharding.apply import dense_parameters
from trec_semid.sharding.plan import TablePlan
from trec_semid.sharding.tables import find_tables
from trec_semid.tokenizers.semantic_ids import FILE, SemanticIds


@contextmanager
def without_library_notices() -> Iterator[None]:
    """Keep what torch tells its own developers off the console."""
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    before = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Replicated tables on CPU: their gradient is right, as the tests of sharding show.
            warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")
            yield
    finally:
        tracing.setLevel(before)


def begin(
    folder: RunFolder,
    config: Config,
    checksums: Mapping[str, str],
    semantic_ids: SemanticIds | None,
    ranks: Ranks,
) -> None:
    """Refuse a folder of another config or of other inputs; else write the run's first files.

    Raises:
        ConfigError: the folder holds a run of another config.
        CheckpointError: its checkpoints were trained on something else.
    """
    _refuse_other_run(folder, config, ranks)
    refuse_other_inputs(folder.path("checkpoints"), dict(checksums), ranks)
    if ranks.is_main:
        folder.start(config, checksums)
        if semantic_ids:
            semantic_ids.save(folder.path(FILE))
    barrier()


def _refuse_other_run(folder: RunFolder, config: Config, ranks: Ranks) -> None:
    """Keep what another config trained: its checkpoints are not ours to go on from or to overwrite."""
    is_other = ranks.is_main and exists(folder.path("run.json")) and not _is_of(folder, config)
    if broadcast_object(is_other):
        raise ConfigError(
            f"{folder.uri}: holds a run of another config. Set another `run`, or remove that folder."
        )


def _is_of(folder: RunFolder, config: Config) -> bool:
    return folder.read_json("run.json").get("config_checksum") == config_checksum(config)


def snapshot(semantic_ids: SemanticIds | None) -> dict[str, bytes]:
    """Return what a checkpoint carries beside tensors."""
    return {FILE: semantic_ids.to_bytes()} if semantic_ids else {}


def tell_plan(folder: RunFolder, plan: TablePlan, ranks: Ranks, name: str = "plan") -> None:
    """Write a plan into the run, and print it."""
    if ranks.is_main:
        text = plan.as_text()
        write_bytes(folder.path(f"{name}.json"), plan.to_json().encode())
        write_bytes(folder.path(f"{name}.txt"), text.encode())
        CONSOLE.print(text, soft_wrap=True, highlight=False, markup=False)


def parameter_counts(training: Training) -> dict[str, int]:
    """Return how many numbers a model learns, in tables and elsewhere."""
    dense = sum(weight.numel() for weight in dense_parameters(training.model).values())
    tables = sum(table.rows * table.dim for table in find_tables(training.model))
    return {"parameters/dense": dense, "parameters/tables": tables}
