"""Answers of a ranker's bundle: candidates of users in, probabilities out.

Legend: B requests, R rows (candidates of all requests), C candidates of one, F features, D table width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import RankerFacts
from trec_semid.core.arrays import Array, Float32s, Ints
from trec_semid.core.errors import DataError
from trec_semid.data.features import Sources
from trec_semid.data.prefixes import prefix_ids
from trec_semid.data.ranking.row_features import Bags, Entities, RowFeatures
from trec_semid.serving.engine import (
    RankAnswer,
    RankAsked,
)
from trec_semid.serving.of_bundle import BundleEngine
from trec_semid.serving.opened import OpenBundle, context_of, refusing

_ROWS_AT_ONCE = 1 << 16


class RankRows(NamedTuple):
    """Rows to score, by rows of the bundle."""

    users: Bags
    """One user row a request, or none of an unknown user."""
    histories: Bags
    """Item rows of each request, oldest first."""
    items: Ints
    """(R,) item rows."""
    owners: Ints
    """(R,) which of the B requests each is of."""
    contexts: Sequence[dict[str, int]] = ()
    """B, numbers of user fields that a request gives; none given where empty."""


@final
class RankEngine(BundleEngine):
    """Tables and program of one exported ranker; an `Engine`."""

    def __init__(self, bundle: OpenBundle) -> None:
        facts = bundle.manifest.ranker
        assert facts is not None, "opened as what the manifest says"
        super().__init__(bundle)
        self._facts = facts
        self._program: Any = bundle.program(facts.of_requests or facts.program)
        features = tuple(feature.feature() for feature in facts.features)
        self._features = RowFeatures(features, _sources(bundle, facts))
        _expect_tables(bundle, facts)

    def rank(self, asked: Sequence[RankAsked]) -> list[RankAnswer]:
        """See `Engine`; an unknown user is one of whom nothing but the history and the context is known."""
        if not asked:
            return []
        users = self.bundle.user_rows([each.user for each in asked])
        most = self._facts.history.max_len
        histories = self.bundle.histories([each.history for each in asked], users, most)
        counts = np.array([len(each.candidates) for each in asked], np.int64)
        rows = self.bundle.items.rows_of([item for each in asked for item in each.candidates])
        known = rows >= 0
        is_known_user = users >= 0
        scores = np.full(len(rows), np.nan, np.float32)
        scores[known] = self.score(
            RankRows(
                (users[is_known_user], is_known_user.astype(np.int64)),
                (histories.values, histories.lengths),
                rows[known],
                np.repeat(np.arange(len(asked)), counts)[known],
                [context_of(self.bundle, each.context) for each in asked],
            )
        )
        parts = np.split(scores, np.cumsum(counts)[:-1])
        return [
            self._answer(each, bool(is_known_user[at]), part, int(histories.unknown[at]))
            for at, (each, part) in enumerate(zip(asked, parts, strict=True))
        ]

    @torch.no_grad()
    def score(self, rows: RankRows) -> Float32s:
        """Return (R,) probabilities."""
        if not len(rows.items):
            return np.zeros(0, np.float32)
        one_each = np.ones(len(rows.items), np.int64)
        bags = self._features.of(Entities(rows.users, (rows.items, one_each), rows.histories))
        pooled: list[tuple[Tensor, bool]] = []
        for feature, own in zip(self._facts.features, bags, strict=True):
            ids, lengths = _with_context(feature.name, *own, rows.contexts)
            with refusing(self.bundle.uri):
                vectors = self.bundle.reader.tables[feature.table].rows(ids)
            # What is of the request is looked up once for all of its candidates.
            pooled.append((self._pooled(vectors, lengths), feature.feature().entity != "item"))
        owners = torch.from_numpy(rows.owners)
        scores = np.empty(len(owners), np.float32)
        run = self._by_rows if self._facts.of_requests is None else self._by_requests
        for first in range(0, len(owners), _ROWS_AT_ONCE):
            here = slice(first, first + _ROWS_AT_ONCE)
            own = [(part if is_shared else part[here], is_shared) for part, is_shared in pooled]
            scores[here] = torch.sigmoid(run(own, owners[here])).numpy()
        return scores

    def _by_requests(self, parts: Sequence[tuple[Tensor, bool]], owners: Tensor) -> Tensor:
        """Return (R,) logits of parts of features, with those of requests read once."""
        shared, own = (
            torch.cat([part for part, is_shared in parts if is_shared == kind], dim=1)
            for kind in (True, False)
        )
        # Programs take any number of requests and rows but are traced for two or more of each.
        inputs = (_two(shared), _two(own), _two(owners))
        return self._program(*inputs)[: len(owners)]

    def _by_rows(self, parts: Sequence[tuple[Tensor, bool]], owners: Tensor) -> Tensor:
        """Return (R,) logits of parts of features, row by row."""
        columns = [part[owners] if is_shared else part for part, is_shared in parts]
        return self._program(_two(torch.cat(columns, dim=1)))[: len(owners)]

    def _pooled(self, vectors: Array, lengths: Array) -> Tensor:
        if (lengths == 1).all():
            return torch.from_numpy(np.ascontiguousarray(vectors))
        each = torch.from_numpy(np.asarray(lengths, np.int64))
        pooled = torch.zeros(len(each), self._facts.dim)
        pooled.index_add_(0, torch.repeat_interleave(each), torch.from_numpy(np.ascontiguousarray(vectors)))
        return pooled / each.clamp(min=1).unsqueeze(1) if self._facts.pooling == "mean" else pooled

    def _answer(self, asked: RankAsked, is_known: bool, scores: Float32s, unknown: int) -> RankAnswer:
        basis = "history" if asked.history is not None else "stored" if is_known else "unknown_user"
        is_unknown = not is_known and asked.user is not None
        return RankAnswer(scores, basis, unknown + int(np.isnan(scores).sum()) + is_unknown)


def _two(rows: Tensor) -> Tensor:
    """Return (n, ...) rows, or the one of them twice."""
    return torch.cat([rows, rows]) if len(rows) == 1 else rows


def _sources(bundle: OpenBundle, facts: RankerFacts) -> Sources:
    fields = {
        feature.name: bundle.field(feature.role.partition("_")[0], feature.name.partition("_")[2]).column
        for feature in facts.features
        if feature.role in ("user_field", "item_field")
    }
    ids, config = bundle.manifest.semantic_ids, facts.features_config
    sources = Sources(fields, None)
    if ids is not None and facts.representation != "item":
        codes = bundle.arrays(ids.rows.file)["codes"]
        sources = Sources(fields, codes)
        if config.prefixes is not None:
            rows = prefix_ids(torch.tensor(np.asarray(codes)), ids.sizes, config.prefixes)
            sources = Sources(fields, codes, rows.numpy())
    if facts.item_counts is None:
        return sources
    return sources.gated(np.asarray(bundle.arrays(facts.item_counts.file)["counts"]), config.id_min_events)


def _with_context(name: str, ids: Array, lengths: Array, contexts: Sequence[dict[str, int]]) -> Bags:
    """Return the bags of a feature with what requests say themselves of a user field."""
    entity, _, field = name.partition("_")
    if entity != "user" or not any(field in context for context in contexts):
        return ids, lengths
    own = np.split(ids, np.cumsum(lengths)[:-1])
    said = [
        np.array([context[field]]) if field in context else part
        for context, part in zip(contexts, own, strict=True)
    ]
    return np.concatenate(said), np.array([len(part) for part in said], np.int64)


def _expect_tables(bundle: OpenBundle, facts: RankerFacts) -> None:
    """Refuse features whose tables are none, or of another size than they ask for.

    Raises:
        DataError: names the feature.
    """
    tables = {table.name: table for table in bundle.manifest.tables}
    for feature in facts.features:
        table = tables.get(feature.table)
        if table is None or (table.rows, table.dim) != (feature.num_rows, facts.dim):
            problem = f"reads table '{feature.table}' of {feature.num_rows:,} rows, which is not there"
            raise DataError(problem, file=bundle.uri, field=feature.name, remedy="Export it again")
