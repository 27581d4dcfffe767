"""A finished ranker as it goes to serving: its tables stay in the checkpoint and are read in stretches.

Legend: R rows of the test split.
"""

from typing import NamedTuple, final

import numpy as np
from torch import nn

from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.arrays import Array, Ints
from trec_semid.data.histories import may_stand_in_history
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.source import Codes
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.models.methods import build_dense_ranker
from trec_semid.models.ranker import DenseRanker
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.ranking.setup import RankConfig


class TestRows(NamedTuple):
    """The first rows of the test split, with what the run predicted of them."""

    users: Ints
    """(R,) user rows."""
    items: Ints
    """(R,) item rows."""
    labels: Array
    """(R,) 0 or 1."""
    history: Ints
    """Item rows of the histories before them, one after another."""
    history_lengths: Ints
    """(R,)."""
    predicted: Array
    """(R,) probabilities."""


@final
class ServedRanker:
    """What of a finished rank run is served."""

    def __init__(
        self, config: RankConfig, dataset: Dataset, ids: SemanticIds | None, at: SavedTensors
    ) -> None:
        """Read the dataset as the run did.

        Args:
            config: of the run.
            dataset: that it was trained on.
            ids: its map, in the order of the dataset's items.
            at: tensors of its best step.
        """
        codes = Codes(ids.codes, ids.sizes) if ids else None
        self.config, self._at = config, at
        read = dataset, config.features, config.history, config.representation, codes
        # Which events count decides which items have an ID of their own.
        self.data = RankingData(*read, test_then_train=config.test_then_train)
        self._names = {name.split(".")[-2]: name for name in at.names if name.endswith(".weight")}

    def tables(self) -> dict[str, str]:
        """Return the tables that features read, by name, with the names of their tensors."""
        return {feature.table: self._names[feature.table] for feature in self.data.features}

    def dense(self) -> DenseRanker:
        """Return the part over embedded features, with its weights."""
        dense = build_dense_ranker(self.config.model, self.data.features, self.config.tables.dim)
        name = next(name for name in self._at.names if ".dense." in name)
        prefix = name.partition(".dense.")[0] + ".dense."
        own = [name for name in self._at.names if name.startswith(prefix)]
        dense.load_state_dict({name.removeprefix(prefix): self._at.whole(name) for name in own})
        return dense

    def of_requests(self, dense: DenseRanker) -> nn.Module | None:
        """Return what scores the same with what is of a request computed once; None where nothing is won."""
        return dense.of_requests([feature.entity != "item" for feature in self.data.features])

    def known_events(self) -> tuple[Ints, Ints] | None:
        """Return user and item rows (E,) of the events that histories are made of; None without histories."""
        if not self.config.history.max_len:
            return None
        chosen = may_stand_in_history(self.data.events, self.config.history)
        return self.data.events.users[chosen], self.data.events.items[chosen]

    def test_rows(self, run: str, number: int) -> TestRows:
        """Return at most so many rows, under the online protocol."""
        rows = self.data.rows("test", "online")
        predicted = read_predictions(self.config.predictions_of(run), "test").score
        chosen = np.arange(min(number, len(predicted)))
        nothing = np.zeros(0, np.int64), np.zeros(len(chosen), np.int64)
        history = rows.histories.take(chosen) if rows.histories else nothing
        labels = rows.labels[chosen]
        return TestRows(rows.users[chosen], rows.items[chosen], labels, *history, predicted[chosen])
