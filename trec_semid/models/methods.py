"""Which methods there are: a row each, config class to class. A new method is its file and its row here."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel

from trec_semid.core.explain import Kinds
from trec_semid.data.features import Feature
from trec_semid.models.ranker import DenseRanker, RankerConfig
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig
from trec_semid.models.retriever import Retriever, RetrieverConfig
from trec_semid.models.retrievers.asymrec import Asymrec, AsymrecConfig
from trec_semid.models.retrievers.comirec import Comirec, ComirecConfig
from trec_semid.models.retrievers.ensemble import Ensemble, EnsembleConfig
from trec_semid.models.retrievers.gemirec import Gemirec, GemirecConfig
from trec_semid.models.retrievers.heterrec import Heterrec, HeterrecConfig
from trec_semid.models.retrievers.hymirec import Hymirec, HymirecConfig
from trec_semid.models.retrievers.popularity import Popularity, PopularityConfig
from trec_semid.models.retrievers.rpg import Rpg, RpgConfig
from trec_semid.models.retrievers.sasrec import Sasrec, SasrecConfig
from trec_semid.models.retrievers.tiger import Tiger, TigerConfig

RETRIEVERS: dict[type[BaseModel], type[Retriever[Any]]] = {
    SasrecConfig: Sasrec,
    HeterrecConfig: Heterrec,
    RpgConfig: Rpg,
    TigerConfig: Tiger,
    AsymrecConfig: Asymrec,
    ComirecConfig: Comirec,
    HymirecConfig: Hymirec,
    GemirecConfig: Gemirec,
    PopularityConfig: Popularity,
    EnsembleConfig: Ensemble,
}
RANKERS: dict[type[BaseModel], Callable[[Any, Sequence[Feature], int], DenseRanker]] = {
    PpnetConfig: Ppnet,
}
RETRIEVER_KINDS = Kinds(RETRIEVERS)
RANKER_KINDS = Kinds(RANKERS, default=PpnetConfig)
"""`[model]` of a ranker may leave its kind out: there was one for long."""
AnyRetrieverConfig = Annotated[RetrieverConfig, RETRIEVER_KINDS]
"""`[model]` of a retriever, whatever its kind."""
AnyRankerConfig = Annotated[RankerConfig, RANKER_KINDS]
"""`[model]` of a ranker, whatever its kind."""


def retriever_of(config: RetrieverConfig) -> Retriever[Any]:
    """Return the method that a `[model]` asks for."""
    return RETRIEVERS[type(config)](config)


def build_dense_ranker(config: RankerConfig, features: Sequence[Feature], table_dim: int) -> DenseRanker:
    """Return the dense part of a ranker over the given features, of a table's width each."""
    return RANKERS[type(config)](config, features, table_dim)
