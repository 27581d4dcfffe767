"""Scores of any stretch of a catalogue for a batch of users, by item vectors, by codes, or by both.

Legend: B users, N items, n of a stretch, R positions, K codes, D width.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from trec_semid.models.item_tokens import Listed
from trec_semid.models.retriever import Retriever

_CHUNK_ROWS = 65_536
"""Items whose vectors are made at once."""


class CatalogueParts(NamedTuple):
    """What a catalogue is scored by."""

    vectors: Tensor | None
    """(N, D); None where items are not scored by their vectors."""
    codes: Tensor | None
    """(N, R); None where codes are not predicted."""
    code_tables: Tensor | None
    """(R, K + 1, D)."""


def build_catalogue(
    retriever: Retriever, listed: Callable[[int, int], Listed], num_items: int
) -> CatalogueParts:
    """Return the catalogue as the model has it now; all ranks build it together.

    Args:
        retriever: in evaluation mode.
        listed: gives the items from one row up to another.
        num_items: N.
    """
    vectors: list[Tensor] = []
    tables, live = None, retriever.items.live
    if retriever.scores_items:
        for first in range(0, num_items, _CHUNK_ROWS):
            tokens = retriever.items(listed(first, min(first + _CHUNK_ROWS, num_items)))
            vectors.append(retriever.item_vectors(tokens))
    if retriever.heads is not None and live is not None:
        tables = live.tables()
    codes = None if tables is None or live is None else live.codes
    return CatalogueParts(torch.cat(vectors) if vectors else None, codes, tables)


@final
class CatalogueScores:
    """Scores of one batch of users: score(u, i) = q_u . v_i + code_share * sum_r log p_r(c_r(i) | u).

    Either term is left out where it is not learnt; codes alone count whole. Memory: R K B numbers, and a
    stretch's scores.
    """

    def __init__(self, retriever: Retriever, catalogue: CatalogueParts, states: Tensor) -> None:
        self._catalogue = catalogue
        self._queries = retriever.queries(states)
        self._share = retriever.config.code_share if retriever.scores_items else 1.0
        self._table: Tensor | None = None
        if retriever.heads is not None and catalogue.code_tables is not None and self._share > 0:
            log_probs = retriever.heads.log_probs(states, catalogue.code_tables)
            # An item is a bag of R rows of one table: a fused kernel adds them up for all users at once.
            self._table = (self._share * log_probs).flatten(1).T.contiguous()
            rows = torch.arange(log_probs.shape[1], device=states.device, dtype=torch.int32)
            self._firsts = rows * log_probs.shape[2]

    def of(self, items: slice) -> Tensor:
        """Return (B, n) float32 scores of consecutive items, in a tensor of its own."""
        scores = None
        if self._catalogue.vectors is not None:
            scores = self._queries @ self._catalogue.vectors[items].T
        if self._table is None or self._catalogue.codes is None:
            assert scores is not None, "items are scored by one of the two at least"
            return scores.float()
        rows = self._catalogue.codes[items].to(torch.int32) + self._firsts
        by_codes = embedding_bag(rows, self._table, mode="sum").T
        return by_codes.contiguous() if scores is None else scores.float().add_(by_codes)
