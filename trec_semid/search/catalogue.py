"""The catalogue as a model has it at one moment: what every item is scored by.

Legend: B users, N items of the catalogue, n items at hand, R positions, K codes, D width.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from trec_semid.models.item_tokens import Listed
from trec_semid.models.retrieval_model import Queries, RetrievalModel
from trec_semid.search.code_scores import CodeScores

_CHUNK_ROWS = 65_536
"""Items whose vectors are made at once."""


class Catalogue(NamedTuple):
    """What items are scored by: vectors, codes, or both."""

    num_items: int
    """N."""
    vectors: Tensor | None
    """(N, D); None where items are not scored by vectors."""
    codes: Tensor | None
    """(N, R); None where codes are not predicted."""
    code_tables: Tensor | None
    """(R, K + 1, D): rows of the codes, which a model compares its users with."""


@torch.no_grad()
def build_catalogue(model: RetrievalModel, listed: Callable[[int, int], Listed], num_items: int) -> Catalogue:
    """Return the catalogue as the model has it now; all ranks build it together.

    Args:
        model: in evaluation mode.
        listed: gives the items from one row up to another.
        num_items: N.
    """
    vectors: list[Tensor] = []
    for first in range(0, num_items, _CHUNK_ROWS) if model.has_item_vectors else ():
        tokens = model.items(listed(first, min(first + _CHUNK_ROWS, num_items)))
        vectors.append(model.item_vectors(tokens))
    live = model.items.live if model.predicts_codes else None
    return Catalogue(
        num_items,
        torch.cat(vectors) if vectors else None,
        live.codes if live else None,
        live.tables() if live else None,
    )


@final
class CatalogueScores:
    """Scores of one batch of users for any stretch of a catalogue: q_u . v_i + sum_r l_r(c_r(i) | u).

    Memory: R K B numbers, and a stretch's scores.
    """

    def __init__(self, catalogue: Catalogue, queries: Queries) -> None:
        self._vectors, self._queries = catalogue.vectors, queries.vectors
        self._by_codes: CodeScores | None = None
        if queries.code_log_probs is not None and catalogue.codes is not None:
            self._by_codes = CodeScores(queries.code_log_probs, catalogue.codes)

    def of(self, items: slice) -> Tensor:
        """Return (B, n) float32 scores of consecutive items, in a tensor of its own."""
        by_codes = self._by_codes.of(items) if self._by_codes else None
        if self._vectors is None or self._queries is None:
            assert by_codes is not None, "items are scored by one of the two at least"
            return by_codes.contiguous()
        scores = (self._queries @ self._vectors[items].T).float()
        return scores if by_codes is None else scores.add_(by_codes)
