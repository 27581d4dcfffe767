"""The kinds of raw data there are: a tagged union of configs, and who reads each."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from trec_semid.core.config import Config
from trec_semid.data.sources.amazon2014 import Amazon2014Config, read_amazon2014
from trec_semid.data.sources.movielens import MovielensConfig, read_movielens
from trec_semid.data.sources.own_files import OwnFilesConfig, read_own_files
from trec_semid.data.sources.recbole_atomic import RecboleConfig, read_recbole
from trec_semid.data.sources.source import Needs, Source
from trec_semid.data.sources.synthetic import read_synthetic
from trec_semid.data.synthetic.world import SyntheticConfig

SourceConfig = Annotated[
    OwnFilesConfig | MovielensConfig | RecboleConfig | Amazon2014Config | SyntheticConfig,
    Field(discriminator="kind"),
]
READERS: dict[type[Config], Callable[[Any, Needs], Source]] = {
    OwnFilesConfig: read_own_files,     # own Parquet, CSV, TSV, JSON-lines
    MovielensConfig: read_movielens,    # GroupLens folders
    RecboleConfig: read_recbole,        # atomic files, also from an installed package
    Amazon2014Config: read_amazon2014,  # reviews_*.json.gz and meta_*.json.gz
    SyntheticConfig: read_synthetic,    # drawn, with known truth beside
}  # fmt: skip


def read_source(config: SourceConfig, needs: Needs) -> Source:
    """Read raw data of any kind.

    Raises:
        ConfigError: a package that carries the data is not installed.
        DataError: a file or a value that cannot be used.
    """
    return READERS[type(config)](config, needs)
