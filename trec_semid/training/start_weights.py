"""`start_from`: the weights of another run, their rows matched by what they stand for."""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from torch import nn

from trec_semid.checkpoints.folder import (
    extra_files,
    latest_step,
    parse_step_folder,
    read_file,
    step_fault,
    step_folder,
)
from trec_semid.checkpoints.load import expect_fit, load_checkpoint, read_loop
from trec_semid.checkpoints.mapped import RowMap
from trec_semid.checkpoints.tensors import Trainable, hyperparameters, set_hyperparameters
from trec_semid.core.errors import CheckpointError
from trec_semid.core.ids import rows_of
from trec_semid.core.paths import join, parent_of
from trec_semid.data.features import Feature
from trec_semid.data.schema import Dataset
from trec_semid.models.live_codes import LiveCodes
from trec_semid.runtime.ranks import broadcast_object
from trec_semid.sharding.tables import find_tables
from trec_semid.tokenizers.generations.manifest import GENERATION, read_generation
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds
from trec_semid.training.config import TrainingRunConfig
from trec_semid.training.known_rows import kind_of_rows, map_rows, read_known_rows

_log = logging.getLogger(__name__)


class Featured(Protocol):
    """Data that knows its features."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """Which there are, and their tables."""
        ...


class StartInputs(Protocol):
    """What is read before training."""

    @property
    def dataset(self) -> Dataset:
        """Events and items."""
        ...

    @property
    def data(self) -> Featured:
        """Rows with features."""
        ...

    @property
    def semantic_ids(self) -> SemanticIds | None:
        """The map; None where items have no codes."""
        ...


class StartWeights(NamedTuple):
    """Where training starts from."""

    folder: str
    """Of checkpoints."""
    step: int
    tables: dict[str, RowMap]
    """By table; empty where all rows are what they were."""
    items: RowMap | None
    """Of item rows, for the item -> code map of the model."""
    told: tuple[str, ...] = ()
    """What is said once the weights are loaded: how many rows are taken over, of what."""
    with_optimizers: bool = False
    """Whether the state of the optimizers is taken over too."""
    without_codes: frozenset[str] | None = None
    """Given where codes are others: the tables that are of ids and values. All others begin anew."""

    def expect_usable(self, build: Callable[[], nn.Module]) -> None:
        """Read every file of the checkpoint and compare shapes; all ranks make the same call.

        Args:
            build: makes the unsharded model, tables without memory; asked once the files are the saved ones.

        Raises:
            CheckpointError: a file is missing or not the one that was saved, or the model has other shapes.
        """
        fault = step_fault(self.folder, self.step)
        if fault:
            raise CheckpointError(f"start_from: {fault}")
        model = build()
        expect_fit(self.folder, Trainable(model), step=self.step, mapped=self._mapped(model))

    def load(self, trainable: Trainable) -> None:
        """Load the weights, which `expect_usable` has checked, and optimizer state where that is asked for.

        Rates stay those of the optimizers. All ranks make the same call.

        Raises:
            CheckpointError: they do not fit the model.
        """
        started = trainable if self.with_optimizers else Trainable(trainable.model)
        rates = {name: hyperparameters(optimizer) for name, optimizer in started.optimizers.items()}
        mapped = self._mapped(started.model)
        load_checkpoint(self.folder, started, step=self.step, is_checked=True, mapped=mapped)
        for name, optimizer in started.optimizers.items():
            set_hyperparameters(optimizer, rates[name])
        for each in self.told:
            _log.info("%s", each)

    def _mapped(self, model: nn.Module) -> dict[str, RowMap]:
        """Return how rows are matched, by the names that checkpoints give tensors."""
        mapped = {
            f"model/{one.key}": self.tables[one.name] for one in find_tables(model) if one.name in self.tables
        }
        if self.without_codes is not None:
            of_codes = (one for one in find_tables(model) if one.name not in self.without_codes)
            mapped |= {f"model/{one.key}": _all_anew(one.rows, one.rows) for one in of_codes}
        if self.items is not None:
            maps = [module.codes.data_ptr() for module in model.modules() if isinstance(module, LiveCodes)]
            state = model.state_dict()
            names = [name for name in state if name.endswith(".codes") and state[name].data_ptr() in maps]
            mapped |= {f"model/{name}": self.items for name in names}
        return mapped


def find_start_weights(config: TrainingRunConfig, inputs: StartInputs) -> StartWeights | None:
    """Return where a run starts from; None where it begins anew or has a checkpoint of its own to go on from.

    In a process group every rank must call this.

    On the dataset of that run rows stay where they are. On another one, rows of items, users and values of
    side fields are taken over by what they stand for; new ones begin anew, and those that are gone are left.

    Raises:
        ConfigError: `start_from` names no checkpoint.
        CheckpointError: it is not there or damaged, or its items have other codes.
        DataError: it is of another dataset, and does not say what its rows stand for.
    """
    own = join(config.run, "checkpoints")
    if config.start_from is None or broadcast_object(latest_step(own)) is not None:
        return None  # the other run may be gone by now
    folder, step = parse_step_folder(config.start_from)
    before = read_loop(folder, step)["inputs"]
    is_anew = config.start_codes == "anew"
    if inputs.semantic_ids and config.finetune is None and not is_anew:
        _refuse_other_codes(config.start_from, inputs.semantic_ids)
    start = StartWeights(folder, step, {}, None, with_optimizers=config.start_optimizers)
    kinds = {feature.table: kind for feature in inputs.data.features if (kind := kind_of_rows(feature))}
    if before.get("dataset") != inputs.dataset.facts.checksum:
        run = parent_of(folder)
        known = read_known_rows(run)
        maps = map_rows(run, known, inputs.dataset, dict.fromkeys([*kinds.values(), "items"]))
        named = known.dataset, inputs.dataset.facts.name
        start = start._replace(
            tables={table: maps[kind] for table, kind in kinds.items()},
            items=maps["items"],
            told=tuple(_counts(kind, rows, *named) for kind, rows in maps.items()),
        )
    return _with_other_codes(start, kinds, inputs) if is_anew else start


def _with_other_codes(start: StartWeights, kinds: Mapping[str, str], inputs: StartInputs) -> StartWeights:
    """Return a start that leaves tables of codes, and the codes of items, as they are made now."""
    num_items = inputs.dataset.facts.num_items
    items = _all_anew(num_items, start.items.num_old if start.items else num_items)
    told = (*start.told, "start_from: other codes: their tables begin anew")
    return start._replace(items=items, told=told, without_codes=frozenset(kinds))


def _all_anew(num_rows: int, num_old: int) -> RowMap:
    return RowMap(np.full(num_rows, -1), num_old)


def _counts(kind: str, rows: RowMap, before: str, now: str) -> str:
    new, gone = len(rows.old_rows) - rows.num_taken, rows.num_old - rows.num_taken
    return (
        f"start_from: {kind} of '{before}' and '{now}' matched by what they stand for: "
        f"{rows.num_taken:,} taken over, {new:,} new, {gone:,} gone"
    )


def _refuse_other_codes(checkpoint: str, ids: SemanticIds) -> None:
    """Refuse weights that belong to other codes of the same items: tables of codes would mean nothing."""
    folder, step = parse_step_folder(checkpoint)
    if FILE not in extra_files(folder, step):
        return
    read_file(folder, step, FILE)  # its checksum first
    place = join(step_folder(folder, step), FILE)
    before = SemanticIds.load(place)
    old = rows_of(ids.item_ids, before.item_ids)
    both = old >= 0
    if before.sizes != ids.sizes or not np.array_equal(before.codes[old[both]], ids.codes[both]):
        generations = ""
        if ids.generation and GENERATION in extra_files(folder, step):
            then = read_generation(step_folder(folder, step)).number
            generations = f" (generation {then}; now generation {ids.generation.number})"
        raise CheckpointError(
            f"start_from: {checkpoint} was trained on another map than semantic_ids names{generations}. "
            f"Set semantic_ids = '{place}'; or start_codes = 'anew', and tables of codes begin anew."
        )
