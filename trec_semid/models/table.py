"""Which models there are: unions of their configs, and the class of each."""

from collections.abc import Sequence
from typing import Annotated, get_args

from pydantic import Field

from trec_semid.core.config import Config
from trec_semid.data.features import Feature
from trec_semid.models.ensemble import EnsembleConfig
from trec_semid.models.heterrec import Heterrec, HeterrecConfig
from trec_semid.models.item_transformer import ItemTransformer, RpgConfig, SasrecConfig
from trec_semid.models.popularity import PopularityConfig
from trec_semid.models.ppnet import Ppnet, PpnetConfig
from trec_semid.models.ranker import DenseRanker
from trec_semid.models.retriever import SequenceModel
from trec_semid.models.tiger import TigerConfig

RankerConfig = PpnetConfig
"""Any ranker's config; a second ranker makes this a union told apart by `kind`."""
RANKERS: dict[type[Config], type[Ppnet]] = {PpnetConfig: Ppnet}
RetrieverConfig = Annotated[
    SasrecConfig | HeterrecConfig | RpgConfig | TigerConfig | PopularityConfig | EnsembleConfig,
    Field(discriminator="kind"),
]
"""Any retriever's config."""
RETRIEVER_KINDS = frozenset(
    config.model_fields["kind"].default for config in get_args(get_args(RetrieverConfig)[0])
)
"""What `model.kind` calls them."""


def build_dense_ranker(config: RankerConfig, features: Sequence[Feature], table_dim: int) -> DenseRanker:
    """Return the dense part of a ranker over the given features."""
    return RANKERS[type(config)](config, features, table_dim)


def build_sequence_model(
    config: SasrecConfig | HeterrecConfig | RpgConfig, *, num_tokens: int, max_len: int, dim: int
) -> SequenceModel:
    """Return the part of a retriever that reads histories.

    Args:
        config: which, and its sizes.
        num_tokens: F, tokens of an item.
        max_len: longest history.
        dim: width of tokens.
    """
    match config:
        case HeterrecConfig():
            return Heterrec(config, num_tokens=num_tokens, max_len=max_len, dim=dim)
        case RpgConfig() | SasrecConfig():
            return ItemTransformer(config, max_len=max_len, dim=dim)
