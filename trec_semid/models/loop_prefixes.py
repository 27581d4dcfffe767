"""Prefix tables of a ranker whose tokenizer moves: rows are computed from the codes just chosen.

They get the gradient of the rows that were read, as any table; none reaches the tokenizer through a hash.

Legend: B rows of the batch, U distinct items, P prefix lengths, n and m recent and older history entries.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trec_semid.data.features import Feature
from trec_semid.data.item_rows import ItemRows
from trec_semid.data.prefixes import PrefixConfig, prefix_ids
from trec_semid.embeddings.collection import keyed_jagged

PREFIX_ROLES = ("item_prefix", "history_prefix")


@final
class LoopPrefixes:
    """Adds prefix features to a batch that came without them."""

    def __init__(self, config: PrefixConfig, sizes: Sequence[int], features: Sequence[Feature]) -> None:
        self._config, self._sizes = config, tuple(sizes)
        self._features = [feature for feature in features if feature.role in PREFIX_ROLES]

    def add(
        self, features: KeyedJaggedTensor, items: ItemRows, codes: Tensor, older_codes: Tensor
    ) -> KeyedJaggedTensor:
        """Return the batch with prefix features after its own.

        Args:
            features: of B rows.
            items: targets and histories of these rows.
            codes: (U, R) of the distinct items.
            older_codes: (m, R) of the older history entries.
        """
        rows = prefix_ids(codes, self._sizes, self._config)
        older = prefix_ids(older_codes, self._sizes, self._config)
        ones = torch.ones_like(items.targets)
        lengths = items.older_lengths + items.recent_lengths
        history = in_row_order(older, items.older_lengths, rows[items.recent], items.recent_lengths)
        values, sizes = [features.values()], [features.lengths()]
        for feature in self._features:
            is_target = feature.role == "item_prefix"
            prefixes = rows[items.targets] if is_target else history
            values.append(prefixes[:, feature.position])
            sizes.append((ones if is_target else lengths).to(features.lengths().dtype))
        keys = [*features.keys(), *(feature.name for feature in self._features)]
        return keyed_jagged(keys, torch.cat(values), torch.cat(sizes))


def in_row_order(older: Tensor, older_lengths: Tensor, recent: Tensor, recent_lengths: Tensor) -> Tensor:
    """Return (m + n, P): each row's older entries, then its recent ones.

    Args:
        older: (m, P), row after row.
        older_lengths: (B,).
        recent: (n, P), row after row.
        recent_lengths: (B,).
    """
    # An entry's place: that in its own part, and the entries of the other part that stand before its row's.
    before_recent = older_lengths.cumsum(0)
    before_older = recent_lengths.cumsum(0) - recent_lengths
    places = [
        torch.arange(len(part), device=part.device) + shift.repeat_interleave(lengths)
        for part, shift, lengths in (
            (older, before_older, older_lengths),
            (recent, before_recent, recent_lengths),
        )
    ]
    joined = torch.empty(len(older) + len(recent), older.shape[1], dtype=older.dtype, device=older.device)
    joined[places[0]], joined[places[1]] = older, recent
    return joined
