"""What every verb that trains a model does around training: refusals, first files, plans, last files."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from rich.table import Table
from torch import nn

from trec_semid.checkpoints.folder import sweep_steps
from trec_semid.core.config import Config
from trec_semid.core.errors import CheckpointError, ConfigError, DataError, SemidError
from trec_semid.core.paths import exists, is_folder, join, list_folder, read_bytes
from trec_semid.core.text_columns import as_text
from trec_semid.data.schema import Dataset, Split
from trec_semid.evaluation.ranking import Named
from trec_semid.runtime.logs import RunLog, say, set_up_console
from trec_semid.runtime.ranks import Ranks, alone, barrier, broadcast_object, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.sharding.apply import dense_parameters
from trec_semid.sharding.tables import find_tables
from trec_semid.tokenizers.generations.manifest import GENERATION, ReadGeneration, read_before, refusal
from trec_semid.tokenizers.generations.store import resolve
from trec_semid.tokenizers.maps.record import write_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds
from trec_semid.training.config import TrainConfig, TrainingRunConfig
from trec_semid.training.finetune.tokenizer import TOKENIZER
from trec_semid.training.known_rows import write_known_rows
from trec_semid.training.loop import Loop, note_time
from trec_semid.training.resume import expect_start, newest_loop, refuse_other_inputs
from trec_semid.training.start_weights import StartInputs, StartWeights, find_start_weights
from trec_semid.training.task import Task

QUALITY = "quality.json"
"""How good a map is, and what training's errors were: `assign` compares new items with these."""
_TESTED = "tested.json"
"""What a run that tests, then trains, came to before its first step."""
T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=TrainingRunConfig)
_log = logging.getLogger(__name__)


class TrainingInputs(StartInputs, Protocol):
    """What is read before training."""

    @property
    def checksums(self) -> dict[str, str]:
        """What a run is trained on: it goes on with nothing else, and its result stands for nothing else."""
        ...


class Trained(NamedTuple):
    """What a run comes to."""

    run: str
    metrics: dict[str, float]


@contextmanager
def training_ranks(train: TrainConfig) -> Iterator[Ranks]:
    """Join the ranks of a run; what it sets for the whole process is put back at its end."""
    precision = torch.get_float32_matmul_precision()
    with process_group() as ranks, _without_library_notices():
        set_up_console(ranks)
        torch.set_float32_matmul_precision(train.matmul_precision)
        try:
            yield ranks
        finally:
            torch.set_float32_matmul_precision(precision)


def with_pinned_codes(config: ConfigT, ranks: Ranks) -> ConfigT:
    """Return the config with the generation that its `semantic_ids` name now, where they name a store.

    All ranks read what rank 0 saw, and go on with it though another generation be published meanwhile.

    Raises:
        DataError: there is no such generation.
    """
    place = config.semantic_ids
    if place is None:
        return config
    return config.model_copy(update={"semantic_ids": on_main(ranks, lambda: resolve(place))})


def run_once(
    folder: RunFolder,
    config: TrainingRunConfig,
    inputs: TrainingInputs,
    ranks: Ranks,
    compute: Callable[[StartWeights | None], Named],
    *,
    build: Callable[[], nn.Module],
) -> Trained:
    """Compute, or leave a finished run as it is, and return its metrics; these are written last.

    A finished run goes on where more epochs, or an earlier step to resume from, are asked for.

    Args:
        folder: of the run.
        config: of the run.
        inputs: what it is trained on.
        ranks: this process among its peers.
        compute: trains and evaluates, going on where an interrupted run stopped; is told what weights to
            start from where the config names some and the run has no checkpoint yet.
        build: makes the unsharded model, tables without memory, that these weights must fit.

    Raises:
        ConfigError: the folder holds a run of another config.
        CheckpointError: its checkpoints were trained on something else, or `start_from` cannot be used.
    """
    done = on_main(ranks, lambda: _why_done(folder, config, inputs.checksums))
    if done:
        _log.info("%s", done)
    else:
        start = _begin(folder, config, inputs, ranks, build)
        write_results(folder, inputs.dataset, config.seed, ranks, compute(start))
    return tell_results(folder, ranks)


def write_results(folder: RunFolder, dataset: Dataset, seed: int, ranks: Ranks, results: Named) -> None:
    """Write the record of codes and, last of all, the metrics, which make the run a finished one.

    Args:
        folder: of the run.
        dataset: that it read.
        seed: of the run.
        ranks: all of them wait until the files are there.
        results: metrics and counts.
    """
    if ranks.is_main:
        metrics, counts = results
        of: dict[str, Any] = {
            "dataset": dataset.facts.name,
            "dataset_checksum": dataset.facts.checksum,
            "seed": seed,
        }
        write_record(folder.uri, **of)
        folder.write_metrics(metrics, **of, counts=counts)
    barrier()


def tell_results(folder: RunFolder, ranks: Ranks) -> Trained:
    """Print the metrics of a finished run, and return them."""
    metrics = folder.read_json("metrics.json")["metrics"]
    if ranks.is_main:
        say(summary(folder.uri, metrics))
    return Trained(folder.uri, metrics)


def summary(run: str, metrics: Mapping[str, float]) -> str:
    """Return metrics of whole splits side by side, and where all of them are.

    Args:
        run: its folder.
        metrics: by `split/metric`; those of strata, `split/metric/stratum`, are left to the file.
    """
    whole = {tuple(name.split("/")): value for name, value in metrics.items() if name.count("/") == 1}
    splits, names = (list(dict.fromkeys(key[part] for key in whole)) for part in (0, 1))
    table = Table("", *splits)
    for name in names:
        values = (whole.get((split, name)) for split in splits)
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in values))
    return f"{as_text(table)}\nall metrics: {join(run, 'metrics.json')}"


def train_and_write(
    task: Task,
    write: Callable[[RunFolder, tuple[Split, ...]], Named],
    *,
    config: TrainingRunConfig,
    start: StartWeights | None,
    folder: RunFolder,
    ranks: Ranks,
    log: RunLog,
) -> Named:
    """Train to the end, write what the best weights and the tuned tokenizer give; return metrics and counts.

    A run that tests, then trains, returns those of what it starts from, before its first step.

    Args:
        task: what is trained.
        write: evaluates its model on splits, writes predictions into a folder, returns metrics and counts.
        config: of the run.
        start: another run's weights to start from.
        folder: of the run.
        ranks: this process among its peers.
        log: of this rank.
    """
    tests_first = config.test_then_train
    splits: tuple[Split, ...] = ("test",) if tests_first else ("valid", "test")
    loop = Loop(task, config, folder, ranks, log)
    try:
        loop.resume(start)
        if tests_first and not loop.steps:  # nothing of what is asked has been seen yet
            _note_tested(write(folder, splits), folder, ranks, log)
        loop.run()
        done = write(RunFolder(config.predictions_of(folder.uri), folder.job), splits)
    finally:
        note_time(folder, ranks)
    metrics, counts = on_main(ranks, partial(_read_tested, folder)) if tests_first else done
    if task.finetuning:
        metrics = metrics | task.finetuning.write(folder)
    log.event("finish", step=loop.steps, best_step=loop.selection.best_step)
    return metrics, counts | parameter_counts(task.model)


def _note_tested(tested: Named, folder: RunFolder, ranks: Ranks, log: RunLog) -> None:
    metrics, counts = tested
    log.event("tested", step=0, **{name: value for name, value in metrics.items() if name.count("/") == 1})
    if ranks.is_main:
        folder.write_json(_TESTED, {"metrics": metrics, "counts": counts})
    barrier()


def _read_tested(folder: RunFolder) -> Named:
    tested = folder.read_json(_TESTED)
    return tested["metrics"], tested["counts"]


@contextmanager
def _without_library_notices() -> Iterator[None]:
    """Keep what torch tells its own developers off the console."""
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    before = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Replicated tables on CPU: their gradient is right, as the tests of sharding show.
            warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")
            # The compiler looks at what it is given, gradients of what is no leaf included.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            yield
    finally:
        tracing.setLevel(before)


def _why_done(folder: RunFolder, config: TrainingRunConfig, inputs: dict[str, str]) -> str | None:
    """Return why there is nothing to train; None where there is."""
    if folder.is_finished(config, inputs):
        return f"{config.run} is already done"
    if not (config.learns and folder.has_ended(config, inputs)) or config.resume_from is not None:
        return None
    newest = newest_loop(folder.path("checkpoints"))
    if newest is None:
        raise CheckpointError(
            f"{config.run}: the finished run cannot go on to {config.train.max_epochs} epochs, since its "
            "checkpoints are gone. Set another `run`, or remove that folder to train from the start."
        )
    num_waited = int(newest[1]["selection"]["num_waited"])
    if num_waited < config.train.patience:
        is_at_its_end = int(newest[1]["loader"]["epoch"]) >= config.train.max_epochs
        return f"{config.run} is already done" if is_at_its_end else None
    folder.restate(config, inputs, generation_read(_read_before(folder)))
    return (
        f"{config.run} is already done: its patience was at an end at step {newest[0]}, after {num_waited} "
        "evaluations without a better one, so more epochs change nothing. Set train.patience above "
        f"{num_waited} to go on."
    )


def _begin(
    folder: RunFolder,
    config: TrainingRunConfig,
    inputs: TrainingInputs,
    ranks: Ranks,
    build: Callable[[], nn.Module],
) -> StartWeights | None:
    """Refuse a folder of another config or of other inputs, or weights that cannot be started from.

    Otherwise write the run's first files, and return these weights.
    """
    on_main(ranks, lambda: refuse_other_run(folder, config))
    before, now = _read_before(folder), inputs.semantic_ids and inputs.semantic_ids.generation
    other = refusal(before, now) if before and now else None
    refuse_other_inputs(folder.path("checkpoints"), inputs.checksums, ranks, other)
    # Going on gives up a result that is there: what could not be resumed is refused before that.
    if broadcast_object(ranks.is_main and exists(folder.path("metrics.json"))):
        expect_start(folder.path("checkpoints"), config.resume_from, config.checkpoints)
    start = find_start_weights(config, inputs)
    if start:
        start.expect_usable(build)
    if ranks.is_main:
        sweep_steps(folder.path("checkpoints"))
        has_learnt = newest_loop(folder.path("checkpoints")) is not None
        if not (before and has_learnt):  # else what it has learnt stands for the generation that it read then
            before = now.as_read(str(config.semantic_ids)) if now else None
        goes_on = exists(folder.path("run.json"))
        folder.start(config, inputs.checksums, goes_on=goes_on, more=generation_read(before))
        if config.learns:
            write_known_rows(folder.uri, inputs.dataset)
        if inputs.semantic_ids:
            inputs.semantic_ids.save(folder.path(FILE))
    barrier()
    return start


def _read_before(folder: RunFolder) -> ReadGeneration | None:
    """Return the generation that the run that began here read."""
    return read_before(folder.read_json("run.json")) if exists(folder.path("run.json")) else None


def generation_read(read: ReadGeneration | None) -> dict[str, object]:
    """Return what `run.json` says of the generation that a run reads."""
    return {"generation": read.model_dump(mode="json")} if read else {}


def refuse_other_run(folder: RunFolder, config: Config) -> None:
    """Keep what another config trained: its checkpoints are not ours to go on from or to overwrite."""
    if not exists(folder.path("run.json")):
        return
    try:
        other = folder.other_config(config)
        fault = other and f"holds a run of another config: {other}"
    except DataError as error:
        fault = f"its run.json cannot be read ({error})"
    if fault:
        raise ConfigError(f"{folder.uri}: {fault}. Set another `run`, or remove that folder.")


def on_main(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something on rank 0 and return its result, or raise its refusal, on every rank."""
    outcome: Any = None
    if ranks.is_main:
        try:
            with alone():  # what it calls may share work among ranks, and these do not come
                outcome = work()
        except SemidError as refusal:
            # Not raised yet: the other ranks wait in the broadcast, and are to refuse the same.
            outcome = refusal
    outcome = broadcast_object(outcome)
    if isinstance(outcome, SemidError):
        raise outcome
    return outcome


def snapshot(semantic_ids: SemanticIds | None, place: str | None) -> dict[str, bytes]:
    """Return what a checkpoint carries beside tensors: the map and, where it has one, its tokenizer.

    Args:
        semantic_ids: the map.
        place: where the config says it lies; a `.parquet` file has no tokenizer beside it.
    """
    if semantic_ids is None:
        return {}
    files = {FILE: semantic_ids.to_bytes()}
    if place and not place.endswith(".parquet"):
        folder = join(place, TOKENIZER)
        names = [f"{TOKENIZER}/{name}" for name in (list_folder(folder) if is_folder(folder) else [])]
        names += [name for name in (QUALITY, GENERATION) if exists(join(place, name))]
        files |= {name: read_bytes(join(place, name)) for name in names}
    return files


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return how many numbers a model learns, in tables and elsewhere."""
    dense = sum(weight.numel() for weight in dense_parameters(model).values())
    tables = sum(table.rows * table.dim for table in find_tables(model))
    return {"parameters/dense": dense, "parameters/tables": tables}
