"""Approximate lists: an index over item vectors is asked for each query vector's best items (faiss).

On several ranks each has an index over its stretch, all search for the users of all ranks, and what each
retrieves is merged as exact lists are. A query is asked for as many items as the list has places and its
user has masked items; the latter are dropped afterwards. So `ivf` and `hnsw` miss other items with another
number of ranks: each stretch has its own centres or graph, and `nprobe` or `ef_search` counts in each. What
the index returns is scored again, by one formula for all items, so that equal items have equal scores and
stand in the order of rows.

A penalty is one more coordinate: [v, -penalty] . [q, 1] = v . q - penalty.

A graph of neighbours by inner product does badly where items come in clusters. So by default it is of
distances between [v, sqrt(max |v|^2 - |v|^2)], all of one length, to which the distances of [q, 0] are in
the order of inner products. Source: Bachrach et al., "Speeding Up the Xbox Recommender System Using a
Euclidean Transformation for Inner-Product Spaces", 2014. Where lengths of vectors differ widely the new
coordinate outweighs the others, and inner products do better. Vectors of one length, as of a model of
cosines, have one graph either way.

Legend: B users, N length of the lists, S masked items of a user, k items asked for, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, final

import faiss
import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import pad

from trec_semid.core.arrays import Array, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.metrics.target_positions import TopItems, UserItems, no_items
from trec_semid.models.queries import Queries
from trec_semid.search.ann_saved import arrays_of, fill, reachable_places
from trec_semid.search.catalogue import Catalogue
from trec_semid.search.retrieved import best_items, expect_no_nan, is_excluded, unlisted_rows
from trec_semid.search.stretches import bring_together

_FEW_ITEMS = 50_000
"""Of a graph whose items lie in the order of rows."""
_ITEMS_OF_CENTRE = 64
"""That clusters are learnt from."""
_SCORED_AT_ONCE = 1 << 24
"""Numbers of item vectors that are gathered to score candidates again: 64 MiB."""


class _IndexConfig(Config):
    """What any index may be asked."""

    def expect_fits(self, num_items: int) -> None:
        """Refuse what cannot be built over so many items.

        Args:
            num_items: of a rank, since each has an index over its stretch.

        Raises:
            ConfigError: more inverted lists than items.
        """


class NoIndexConfig(_IndexConfig):
    """Every item is scored, as without the section; for `evaluate`, of a run that had an index."""

    kind: Literal["none"] = "none"


class FlatConfig(_IndexConfig):
    """All vectors, one after another: exact, and no faster than scoring every item."""

    kind: Literal["flat"] = "flat"


class IvfConfig(_IndexConfig):
    """Inverted lists: vectors by their nearest centre; a query reads the lists of the centres near to it.

    Each rank has such lists of its stretch of the catalogue, so that what they miss differs with the ranks.
    """

    kind: Literal["ivf"] = "ivf"
    nlist: PositiveInt | None = None
    """Centres; where not given 4 times the root of the number of items of a rank."""
    nprobe: PositiveInt = 32
    """Lists that are read for a query, on each rank."""

    @model_validator(mode="after")
    def _reads_some(self) -> Self:
        if self.nlist is not None and self.nprobe > self.nlist:
            remedy = f"set evaluation.index.nprobe = {self.nlist} or less, or raise evaluation.index.nlist"
            raise ValueError(f"{self.nprobe} lists cannot be read of {self.nlist}: {remedy}")
        return self

    def expect_fits(self, num_items: int) -> None:
        """See there."""
        if self.nlist is not None and self.nlist > num_items:
            raise ConfigError(
                f"evaluation.index.nlist: {self.nlist} lists of {num_items} items of a rank. Lower it, or "
                "leave it out."
            )

    def lists_of(self, num_items: int) -> int:
        """Return the number of centres."""
        if self.nlist is not None:
            return self.nlist
        # Of few items most would be centres, and a list would hold one each.
        return max(1, min(round(4 * num_items**0.5), num_items // 4))


class HnswConfig(_IndexConfig):
    """A hierarchical graph of neighbours, walked towards the query. Source: Malkov and Yashunin, 2018.

    Each rank has one over its stretch of the catalogue, so that what it misses differs with the ranks.
    """

    kind: Literal["hnsw"] = "hnsw"
    m: int = Field(32, ge=2, le=256)
    """Neighbours of an item in the graph; twice as many on the lowest level."""
    ef_construction: PositiveInt = 80
    """Candidates looked at to place an item."""
    ef_search: PositiveInt = 128
    """Candidates looked at for a query on each rank; raised to the number of items that it asks for."""
    space: Literal["euclidean", "inner_product"] = "euclidean"
    """What neighbours are near by; see the head of this module."""


Indexed = Annotated[FlatConfig | IvfConfig | HnswConfig, Field(discriminator="kind")]
IndexConfig = Annotated[NoIndexConfig | FlatConfig | IvfConfig | HnswConfig, Field(discriminator="kind")]


class _Asked(NamedTuple):
    """Some users' questions to the index of this rank."""

    queries: Tensor
    """(B, D) float32 on the CPU."""
    masked: Tensor
    """(B, S) item rows that are not listed, filled up with -1."""


@final
class IndexSearch:
    """Lists the catalogue by an index over its item vectors, less penalties; a `VectorSearch`."""

    def __init__(
        self,
        config: FlatConfig | IvfConfig | HnswConfig,
        catalogue: Catalogue,
        penalties: Tensor | None,
        saved: Mapping[str, Array] | None = None,
    ) -> None:
        """Build the index over the items that are here.

        Args:
            config: of the index.
            catalogue: with item vectors.
            penalties: (N_all,) taken off the scores of all items; None where nothing is.
            saved: `arrays` of an index over these items, or nearly these, that is not built again.

        Raises:
            ConfigError: more lists than items.
            DataError: what is saved is no index of so many items.
        """
        assert catalogue.vectors is not None, "a config without item vectors is refused"
        self.config, self.is_shared, self._rows = config, catalogue.is_shared, catalogue.rows
        self.num_items = catalogue.num_items
        self._vectors = catalogue.vectors.float().cpu()
        self._has_penalties = penalties is not None
        if penalties is not None:
            lowered = -penalties[catalogue.rows].float().cpu()
            self._vectors = torch.cat([self._vectors, lowered.unsqueeze(1)], 1)
        self._vectors = self._vectors.contiguous()
        # A walk along a graph reads one item after another: those near each other are near in memory as well.
        if saved is None:
            self._order = nearby_order(self._vectors) if config.kind == "hnsw" else None
        else:
            self._order = _saved_order(saved, len(self._vectors))
        ordered = self._vectors if self._order is None else self._vectors[self._order]
        self._index = build_index(config, ordered, saved)

    def arrays(self) -> dict[str, Array]:
        """Return the index without the vectors: see `search.ann_saved`; `order` (n,) where items have one."""
        order = {} if self._order is None else {"order": self._order.numpy()}
        return {**arrays_of(self._index), **order}

    def reachable(self) -> Ints:
        """Return (k,) item rows, ascending, that some walk or list of the index leads to."""
        places = np.flatnonzero(reachable_places(self._index, len(self._vectors)))
        rows = places if self._order is None else np.sort(self._order.numpy()[places])
        return rows + self._rows.start

    def is_of(self, catalogue: Catalogue) -> bool:
        """Return whether these are the item vectors that it is an index of."""
        vectors = catalogue.vectors
        assert vectors is not None, "a config without item vectors is refused"
        return torch.equal(self._vectors[:, : vectors.shape[1]], vectors.float().cpu())

    def top_items(self, queries: Sequence[Queries], users: UserItems, length: int) -> TopItems:
        """Return lists of so many items, shorter where the index returns fewer; all ranks ask together.

        Args:
            queries: of one model: vectors (B, D) and nothing else.
            users: items that are not listed.
            length: of the lists.
        """
        if not self.is_shared:
            return self._here(queries[0], users, length)
        together = bring_together(queries, users)
        if not sum(together.num_users):
            return no_items(0, length, users.targets.device)
        return together.merge(self._here(together.queries[0], together.users, length))

    def _here(self, queries: Queries, users: UserItems, length: int) -> TopItems:
        """Return the best items of this rank's stretch."""
        vectors = queries.vectors
        assert vectors is not None, "a config without item vectors is refused"
        asked = vectors.float().cpu()
        if self._has_penalties:
            asked = pad(asked, (0, 1), value=1.0)
        masked = unlisted_rows(users).cpu()
        top = no_items(len(asked), length, asked.device)
        if not len(self._vectors) or not len(asked):
            return TopItems(*(part.to(vectors.device) for part in top))
        expect_no_nan(asked)
        num_masked = (masked >= 0).sum(1)
        # By powers of two of what is masked: a few users of long histories make no others wait.
        steps = torch.where(num_masked > 0, num_masked.float().log2().ceil().int() + 1, 0)
        for step in steps.unique().tolist():
            own = (steps == step).nonzero().squeeze(1)
            most = int(num_masked[own].max())
            best = self._best(_Asked(asked[own], masked[own]), length, length + most)
            top.scores[own], top.items[own] = best
        return TopItems(*(part.to(vectors.device) for part in top))

    def _best(self, asked: _Asked, length: int, num_asked: int) -> TopItems:
        """Return the first N of the items that are asked for."""
        num_asked = min(num_asked, len(self._vectors))
        here = self._retrieve(asked.queries, num_asked)
        scores = self._scores(asked.queries, here)
        lowest = scores.masked_fill(here < 0, torch.inf).amin(1)
        rows = here + self._rows.start
        dropped = (here < 0) | is_excluded(rows, asked.masked)
        scores = scores.masked_fill(dropped, -torch.inf)
        rows = _filled_up(rows, dropped)
        best = best_items(scores, rows, length)
        top = TopItems(best.scores, best.items)
        if self.config.kind != "flat" or num_asked == len(self._vectors):
            return top
        # An item that was not returned may be equal to the last one listed, and of a lower row.
        tied = (top.scores[:, -1] <= lowest).nonzero().squeeze(1)
        if len(tied):
            again = _Asked(asked.queries[tied], asked.masked[tied])
            top.scores[tied], top.items[tied] = self._best(again, length, 2 * num_asked)
        return top

    def _retrieve(self, queries: Tensor, num_asked: int) -> Tensor:
        """Return (B, k) places in this stretch, -1 where the index returns fewer."""
        parameters = None
        if self.config.kind == "hnsw":
            queries = pad(queries, (0, 1)) if self.config.space == "euclidean" else queries
            ef_search = max(self.config.ef_search, num_asked)
            parameters = cast("Any", faiss).SearchParametersHNSW(efSearch=ef_search)
        _, found = self._index.search(queries.numpy(), num_asked, params=parameters)
        places = torch.from_numpy(found)
        if self._order is None:
            return places
        return torch.where(places < 0, -1, self._order[places.clamp(min=0)])

    def _scores(self, queries: Tensor, places: Tensor) -> Tensor:
        """Return (B, k) float32 scores of the items at some places of this stretch."""
        size = max(1, _SCORED_AT_ONCE // (places.shape[1] * self._vectors.shape[1]))
        return torch.cat(
            [
                # Not a matrix product, which may round equal items differently.
                (self._vectors[own_places.clamp(min=0)] * own.unsqueeze(1)).sum(2)
                for own, own_places in zip(queries.split(size), places.split(size), strict=True)
            ]
        )


def nearby_order(vectors: Tensor) -> Tensor | None:
    """Return (n,) places of vectors (n, D) on the CPU, cluster by cluster.

    Clusters are the root of n of k-means over a sample. None of so few vectors that a cache has them anyway.
    """
    if len(vectors) < _FEW_ITEMS:
        return None
    kmeans: Any = faiss.Kmeans(vectors.shape[1], round(len(vectors) ** 0.5), niter=5, seed=0)
    kmeans.cp.min_points_per_centroid, kmeans.cp.max_points_per_centroid = 1, _ITEMS_OF_CENTRE
    kmeans.train(vectors.numpy())
    _, clusters = kmeans.index.search(vectors.numpy(), 1)
    return torch.from_numpy(clusters[:, 0]).argsort(stable=True)


def _saved_order(saved: Mapping[str, Array], count: int) -> Tensor | None:
    """Return (n,) places of vectors as they are saved.

    Raises:
        DataError: not each place once.
    """
    if "order" not in saved:
        return None
    order = np.asarray(saved["order"])
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise DataError("not an index: not one place an item", field="index")
    return torch.from_numpy(order.astype(np.int64))


def build_index(
    config: FlatConfig | IvfConfig | HnswConfig, vectors: Tensor, saved: Mapping[str, Array] | None = None
) -> Any:
    """Return a faiss index, in which items are nearest that have the largest inner products.

    Args:
        config: of the index.
        vectors: (n, D) float32 on the CPU; no index is needed, and none returned, of no items.
        saved: what was built before.

    Raises:
        ConfigError: more lists than items.
        DataError: what is saved is no such index.
    """
    if not len(vectors):
        return None
    config.expect_fits(len(vectors))
    dim, inner = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
    match config:
        case FlatConfig():
            index: Any = faiss.IndexFlatIP(dim)
        case IvfConfig():
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, config.lists_of(len(vectors)), inner)
            index.nprobe = config.nprobe
            index.cp.min_points_per_centroid = 1  # faiss would warn of few, on the console
            if saved is None:
                index.train(vectors.numpy())
        case HnswConfig():
            metric = inner
            if config.space == "euclidean":
                vectors, metric = _of_one_length(vectors), faiss.METRIC_L2
            index = faiss.IndexHNSWFlat(vectors.shape[1], config.m, metric)
            index.hnsw.efConstruction = config.ef_construction
    if saved is not None:
        fill(index, vectors, saved)
    else:
        index.add(vectors.numpy())
    return index


def _of_one_length(vectors: Tensor) -> Tensor:
    """Return (n, D + 1): vectors with one more coordinate, which brings all to the length of the longest."""
    squares = vectors.square().sum(1, keepdim=True)
    return torch.cat([vectors, (squares.max() - squares).clamp(min=0).sqrt()], 1)


def _filled_up(rows: Tensor, dropped: Tensor) -> Tensor:
    """Return (B, k) rows in which what is dropped has numbers of its own, as ties must be told apart."""
    apart = torch.arange(rows.shape[1], device=rows.device) + 2**31 - 1 - rows.shape[1]
    return torch.where(dropped, apart, rows)
