"""Which rankers there are: the union of their configs and the class of each."""

from collections.abc import Sequence

from trec_semid.core.config import Config
from trec_semid.data.features import Feature
from trec_semid.models.ppnet import Ppnet, PpnetConfig
from trec_semid.models.ranker import DenseRanker

RankerConfig = PpnetConfig
"""Any ranker's config; a second ranker makes this a union told apart by `kind`."""
RANKERS: dict[type[Config], type[Ppnet]] = {PpnetConfig: Ppnet}


def build_dense_ranker(config: RankerConfig, features: Sequence[Feature], table_dim: int) -> DenseRanker:
    """Return the dense part of a ranker over the given features."""
    return RANKERS[type(config)](config, features, table_dim)
