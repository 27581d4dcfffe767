"""Writes an index over item vectors, where an export asks for one.

Legend: N items.
"""

from collections.abc import Callable

from torch import Tensor

from trec_semid.checkpoints.manifest import IndexFacts
from trec_semid.core.errors import ConfigError
from trec_semid.search.ann import FlatConfig, HnswConfig, IndexSearch, IvfConfig
from trec_semid.search.catalogue import Catalogue
from trec_semid.serving.writing.ids import write_arrays

FILE = "items/index.safetensors"


def expect_indexable(catalogues: list[Catalogue], listed_by: str, is_one_vector: Callable[[], bool]) -> None:
    """Refuse an index over what is not listed by one vector a user and item alone.

    Args:
        catalogues: of the members.
        listed_by: how the bundle lists.
        is_one_vector: whether a user is one vector; asked where users have any.

    Raises:
        ConfigError: says why.
    """
    remedy = "Leave `index` out"
    if listed_by != "exact" or len(catalogues) != 1:
        raise ConfigError(f"index: the bundle lists by '{listed_by}', of {len(catalogues)} models. {remedy}.")
    if catalogues[0].vectors is None or catalogues[0].codes is not None:
        raise ConfigError(f"index: codes count in the scores of items. {remedy}.")
    if not is_one_vector():
        raise ConfigError(f"index: a user has several vectors here. {remedy}.")


def write_index(
    folder: str, config: FlatConfig | IvfConfig | HnswConfig, catalogue: Catalogue, penalties: Tensor
) -> tuple[IndexFacts, IndexSearch]:
    """Write an index; return it, and its facts without the recall.

    Args:
        folder: of the bundle.
        config: of the index.
        catalogue: with item vectors.
        penalties: (N,) taken off scores.
    """
    search = IndexSearch(config, catalogue, penalties)
    known = write_arrays(folder, FILE, search.arrays())
    return IndexFacts(**known.model_dump(), settings=config.model_dump(), recall={}), search
