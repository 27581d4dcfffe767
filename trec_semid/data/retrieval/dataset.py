"""A dataset as sequences and items for retrieval."""

from typing import Literal, NoReturn, final

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.events.splits import EMPTY_DAY
from trec_semid.data.features import Feature, check_ids, describe_item, read_sources
from trec_semid.data.histories import as_of_test, read_events
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SampledItems,
    SequenceMaker,
    Window,
    sampled_by_popularity,
)
from trec_semid.data.retrieval.sequences import SequencesConfig, build_sequences
from trec_semid.data.retrieval.soft_targets import SoftTargets
from trec_semid.data.schema import SPLITS, Dataset

Negatives = Literal["all", "seen"]
"""Which items a loss over items takes for wrong answers: all, or those with a training event."""


class ItemConfig(Config):
    """What stands for an item beside its semantic ID, as input and as what is retrieved."""

    id: bool = True
    """The item's own row in a table."""
    id_min_events: NonNegativeInt = 0
    """Items of fewer training events are without it: they are known by all else alone."""
    fields: list[str] = []
    """Side fields, a table each; several values of a field are pooled."""
    content: list[str] = []
    """Modalities whose vectors are projected."""
    content_is_unit: bool = True
    """Divide these vectors by the root of their width; as they are, they learn many times as fast as IDs."""
    content_projection: Literal["linear", "mixture"] = "linear"
    """One matrix a modality, or a gated mixture of two-layer experts."""
    content_experts: PositiveInt = 4
    """Of a mixture."""
    content_hidden_dim: PositiveInt = 256
    """Of each expert of a mixture."""
    codes: bool = True
    """Whether the codes of `semantic_ids` are read; otherwise they are predicted alone."""

    @field_validator("fields", "content")
    @classmethod
    def _names_each_once(cls, names: list[str]) -> list[str]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is named twice")
        return names


class SampledConfig(Config):
    """Items drawn to stand for all others in the loss, where a catalogue is too large to score."""

    num_sampled: PositiveInt = 8192
    """Drawn for each rank's batch."""
    power: float = Field(0.75, ge=0, le=2)
    """Items are drawn by (training events + 1) to this power."""


@final
class RetrievalData:
    """Sequences of all users, features of all items. Every id is checked here, once."""

    def __init__(
        self,
        dataset: Dataset,
        item: ItemConfig,
        sequences: SequencesConfig,
        *,
        test_then_train: bool = False,
    ) -> None:
        """Read a dataset; with `test_then_train` its test events are trained on, all before them is known."""
        self.features: tuple[Feature, ...] = describe_item(dataset, item.fields, has_id=item.id)
        self.num_items, self.num_users = dataset.facts.num_items, dataset.facts.num_users
        self._config, self._uri, self._dataset = sequences, dataset.uri, dataset
        events = as_of_test(read_events(dataset)) if test_then_train else read_events(dataset)
        check_ids(Feature("user_row", "user", "t_user_id", self.num_users), events.users, dataset.uri)
        check_ids(Feature("item_row", "item", "t_item_id", self.num_items), events.items, dataset.uri)
        self.sequences = build_sequences(events, sequences, self.num_users)
        self._tests_first = test_then_train
        knows = (events.splits == 0) & ~events.is_negative
        self.item_counts = np.bincount(events.items[knows], minlength=self.num_items)
        self.user_counts = np.bincount(events.users[knows], minlength=self.num_users)
        # What a loss counts: with `test_then_train` it knows test events, which evaluation does not.
        happened = events.items[~events.is_negative]
        self._loss_counts = (
            np.bincount(happened, minlength=self.num_items) if test_then_train else self.item_counts
        )
        sources = read_sources(dataset, self.features, None).gated(self.item_counts, item.id_min_events)
        self.item_features = ItemFeatures(self.features, sources)

    def negatives(self, which: Negatives) -> Array:
        """Return (n,) the item rows that a loss takes for wrong answers, ascending."""
        return np.arange(self.num_items) if which == "all" else np.flatnonzero(self._loss_counts)

    def item_ids(self, rows: Ints) -> list[str]:
        """Return the ids of (n,) item rows."""
        return self._dataset.item_ids.take(pa.array(rows)).to_pylist()

    def categories(self, field: str, key: str = "item.fields") -> Array:
        """Return (num_items, V) int64 categories of items, by a side field; -1 where an item has fewer.

        Args:
            field: its name; its id 0, of what is missing or rare, is no category.
            key: of the config, that an error names.

        Raises:
            ConfigError: an unknown field.
            DataError: an id outside its table.
        """
        features = describe_item(self._dataset, [field], has_id=False, key=key)
        ids = read_sources(self._dataset, features, None).fields[features[0].name]
        values, lengths = ids.take(np.arange(self.num_items))
        table = np.full((self.num_items, max(1, int(lengths.max(initial=0)))), -1)
        table[np.arange(table.shape[1]) < lengths[:, None]] = np.where(values > 0, values, -1)
        return table

    def expect_learnable(self) -> None:
        """Refuse data that nothing can be learnt from, or that cannot tell which step of training is best.

        Raises:
            DataError: no user has two training events, or none one of the validation split in its sequence.
        """
        training, validation = self.sequences.counts[:, 0], self.sequences.counts[:, SPLITS.index("valid")]
        if self._tests_first:
            validation = self.sequences.counts[:, SPLITS.index("test")]
            training = self.sequences.counts.sum(1) * (validation > 0)
            if not (training > 1).any():
                problem = "no user of the day has an event before it" + self._of_liked
                raise DataError(problem, file=self._uri, field=EMPTY_DAY, remedy="Take more days at a time")
        if not (training > 1).any():
            self._refuse("no user with two training events", "What comes after the first is learnt")
        if not validation.any():
            self._refuse("no validation events", "The best step is chosen by them")

    def _refuse(self, problem: str, reason: str) -> NoReturn:
        remedy = f"{reason}: prepare the dataset with another split rule"
        raise DataError(
            problem + self._of_liked,
            file=self._uri,
            field="split",
            remedy=remedy + (", or set sequences.events = 'all'" if self._of_liked else ""),
        )

    @property
    def _of_liked(self) -> str:
        return " with label 1" if self._config.events == "positives" else ""

    def maker(
        self,
        *,
        num_targets: int,
        listed: Array | None,
        sampled: SampledConfig | None,
        negatives: Negatives,
        soft: SoftTargets | None = None,
        num_in_full: int | None = None,
        finds_named: bool = False,
        pinned: bool = False,
    ) -> SequenceMaker:
        """Return what makes training batches.

        Args:
            num_targets: the next so many items are targets of a position.
            listed: (n,) item rows that every batch lists; those it names where not given.
            sampled: how items are drawn to stand for all others; none where not given.
            negatives: of which items these are drawn.
            soft: what a teacher lists after every event of `sequences.items`; nothing where not given.
            num_in_full: last items of a history that are listed, and codes alone are read of others; all are
                listed where not given.
            finds_named: whether batches say which listed items they name, for a tokenizer in the loop.
            pinned: whether batches lie in page-locked memory, from which a GPU copies without blocking.
        """
        drawn: SampledItems | None = None
        if sampled:
            drawn = sampled_by_popularity(
                self._loss_counts, sampled.num_sampled, sampled.power, draws_unseen=negatives == "all"
            )
        taught: Array | None = None
        if self._tests_first:
            windows, taught = self.sequences.rows_of_test(self._config, num_targets)
        else:
            windows = self.sequences.training_rows(self._config, num_targets)
        return SequenceMaker(
            windows,
            self.item_features,
            Window(num_targets, self._config.rows == "sliding", taught, self._config.augment, soft),
            listed=listed,
            sampled=drawn,
            num_in_full=num_in_full,
            finds_named=finds_named,
            pinned=pinned,
        )
