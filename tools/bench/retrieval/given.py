"""Sequences and semantic IDs that contestants are given: a dataset's, or drawn at the asked size."""

import argparse
from typing import NamedTuple

import numpy as np

from trec_semid.data.features import Feature, Sources
from trec_semid.data.histories import read_events
from trec_semid.data.ragged import Ragged
from trec_semid.data.retrieval.batches import (
    ItemFeatures,
    SequenceBatch,
    SequenceMaker,
    Window,
    history_batch,
)
from trec_semid.data.retrieval.loader import SequenceLoader
from trec_semid.data.retrieval.sequences import Sequences, SequencesConfig, build_sequences
from trec_semid.data.schema import Dataset
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file

LAST_ONLY, ALL = Window(1, True), Window(1, False)
NO_FEATURES = ItemFeatures((), Sources({}, None))


class Given(NamedTuple):
    """What all contestants are given."""

    sequences: Sequences
    """The last item of a user is the test split's, the one before it the validation split's."""
    before: Ragged
    """What each user did before it, as far as it is read."""
    codes: np.ndarray
    """(N, R) int16 or int32."""
    options: argparse.Namespace

    def id_features(self) -> ItemFeatures:
        """Return the item's own ID as its only feature."""
        return ItemFeatures((Feature("item_id", "item", "t_item_id", self.options.items),), Sources({}, None))

    def training_batches(
        self,
        features: ItemFeatures,
        batch_size: int,
        num_batches: int,
        *,
        slides: bool,
        lists_all: bool,
        sorts: bool,
    ) -> list[SequenceBatch]:
        """Return batches that stand for an epoch.

        Args:
            features: of items.
            batch_size: rows of a batch.
            num_batches: how many.
            slides: a row for each training event, predicted by those before it; else one for each user,
                all of whose positions predict.
            lists_all: whether a batch lists the whole catalogue, as a loss over all items wants.
            sorts: whether rows of like length are together, every n-th of such batches from short rows to
                long ones, for a model that fills a batch up; else the first batches of an epoch.
        """
        config = SequencesConfig(max_len=self.options.history, rows="sliding" if slides else "dense")
        maker = SequenceMaker(
            self.sequences.training_rows(config),
            features,
            LAST_ONLY if slides else ALL,
            listed=np.arange(self.options.items) if lists_all else None,
        )
        loader = SequenceLoader(maker, batch_size=batch_size, seed=0, rank=0, world_size=1)
        generator = np.random.default_rng(0)
        batches = loader.rows_of_batches(0)
        if sorts:
            order = np.argsort(maker.windows.lengths, kind="stable")
            middles = (np.arange(num_batches) + 0.5) / num_batches * (len(order) // batch_size)
            batches = [order[int(middle) * batch_size :][:batch_size] for middle in middles]
        return [maker.make(rows, maker.num_places(rows), generator) for rows in batches[:num_batches]]

    def histories(self, rows: np.ndarray, features: ItemFeatures) -> SequenceBatch:
        """Return what some users did before their last item."""
        return history_batch(self.before, rows, features, len(rows))


def given_data(options: argparse.Namespace) -> Given:
    """Return the dataset's sequences and codes where one is named, drawn ones otherwise."""
    return _read(options) if options.dataset else _draw(options)


def _read(options: argparse.Namespace) -> Given:
    """Read them; sizes that the options give are replaced by theirs."""
    dataset = Dataset(options.dataset)
    codes = SemanticIds.load(semantic_ids_file(options.codes), dataset.item_ids)
    sequences = build_sequences(read_events(dataset), SequencesConfig(), dataset.facts.num_users)
    before = sequences.evaluation_rows("test", options.history).histories
    options.items, options.users = dataset.facts.num_items, len(before.lengths)
    options.positions, options.codebook = len(codes.sizes), max(codes.sizes)
    return Given(sequences, before, codes.codes, options)


def _draw(options: argparse.Namespace) -> Given:
    """Draw users of five items or more and Zipf-like items; low codes are more common than high ones."""
    rng = np.random.default_rng(0)
    lengths = 4 + rng.geometric(1 / (options.mean_length - 4), options.users)
    items = (options.items * rng.random(lengths.sum()) ** 3).astype(np.int64)
    ones = np.ones_like(lengths)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    size = (options.items, options.positions)
    codes = (options.codebook * rng.random(size) ** 2).astype(np.int16)
    sequences = Sequences(items, starts, np.stack([lengths - 2, ones, ones], 1))
    before = sequences.evaluation_rows("test", options.history).histories
    return Given(sequences, before, codes, options)


def ended_batch(rows: list[list[int]]) -> SequenceBatch:
    """Return rows of items whose last one is to be predicted by those before."""
    lengths = np.array([len(row) for row in rows])
    windows = Ragged(np.cumsum(lengths) - lengths, lengths, np.concatenate(rows))
    maker = SequenceMaker(windows, NO_FEATURES, LAST_ONLY)
    return maker.make(np.arange(len(rows)), len(rows), np.random.default_rng(0))
