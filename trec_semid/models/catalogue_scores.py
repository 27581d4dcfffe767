"""Scores of any stretch of a catalogue for a batch of users, by item vectors, by codes, or by both.

Legend: B users, N items, n of a stretch, R positions, K codes, D width.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from trec_semid.models.code_scores import CodeScores
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
        self._vectors, self._queries = catalogue.vectors, retriever.queries(states)
        share = retriever.config.code_share if retriever.scores_items else 1.0
        self._by_codes: CodeScores | None = None
        codes, tables = catalogue.codes, catalogue.code_tables
        if retriever.heads is not None and tables is not None and codes is not None and share > 0:
            self._by_codes = CodeScores(share * retriever.heads.log_probs(states, tables), codes)

    def of(self, items: slice) -> Tensor:
        """Return (B, n) float32 scores of consecutive items, in a tensor of its own."""
        by_codes = self._by_codes.of(items) if self._by_codes else None
        if self._vectors is None:
            assert by_codes is not None, "items are scored by one of the two at least"
            return by_codes.contiguous()
        scores = (self._queries @ self._vectors[items].T).float()
        return scores if by_codes is None else scores.add_(by_codes)
