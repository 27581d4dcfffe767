"""An index that was saved as arrays lists what it listed before; what no index is made of is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from trec_semid.core.errors import DataError
from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.queries import Queries
from trec_semid.search import ann
from trec_semid.search.ann import FlatConfig, HnswConfig, IndexSearch, IvfConfig
from trec_semid.search.catalogue import Catalogue

CONFIGS = {
    "flat": FlatConfig(),
    "ivf": IvfConfig(nlist=20, nprobe=3),
    "hnsw": HnswConfig(m=4, ef_search=12, ef_construction=20),
    "hnsw of products": HnswConfig(m=4, ef_search=12, space="inner_product"),
}
GENERATOR = torch.Generator().manual_seed(0)
VECTORS = torch.randn(600, 8, generator=GENERATOR)
PENALTIES = torch.rand(600, generator=GENERATOR)
CATALOGUE = Catalogue(600, 0, VECTORS, None, None)


def listed(search: IndexSearch) -> Any:
    states = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(30, dtype=torch.int64)
    masked = torch.arange(30), torch.ones(30, dtype=torch.int64)
    return search.top_items([Queries(states, None)], UserItems(nothing[:0], nothing, *masked), 15)


@pytest.mark.parametrize("few", [50_000, 0], ids=["in order of rows", "cluster by cluster"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_an_index_of_arrays_lists_bit_for_bit_as_it_did(monkeypatch: pytest.MonkeyPatch, kind: str, few: int):
    monkeypatch.setattr(ann, "_FEW_ITEMS", few)
    built = IndexSearch(CONFIGS[kind], CATALOGUE, PENALTIES)
    arrays = built.arrays()
    again = IndexSearch(CONFIGS[kind], CATALOGUE, PENALTIES, arrays)
    for one, other in zip(listed(again), listed(built), strict=True):
        assert torch.equal(one, other)
    for name, values in again.arrays().items():
        np.testing.assert_array_equal(values, arrays[name])


CHANGES: dict[str, tuple[str, Any]] = {
    "a list that is none": ("ivf", lambda arrays: arrays["lists"].__setitem__(5, 20)),
    "centres of another size": ("ivf", lambda arrays: arrays.update(centres=arrays["centres"][:, :5])),
    "not one list an item": ("ivf", lambda arrays: arrays.update(lists=arrays["lists"][1:])),
    "a level that is none": ("hnsw", lambda arrays: arrays["levels"].__setitem__(5, 10**6)),
    "offsets of another graph": ("hnsw", lambda arrays: arrays["offsets"].__setitem__(5, 10**9)),
    "another number of neighbours": ("hnsw", lambda arrays: arrays.update(neighbours=arrays["levels"])),
    "a neighbour that is none": ("hnsw", lambda arrays: arrays["neighbours"].__setitem__(5, 600)),
    "no item where walks begin": ("hnsw", lambda arrays: arrays["entry"].__setitem__(0, 600)),
    "a neighbour that is not on its level": (
        "hnsw",
        lambda arrays: arrays["neighbours"].__setitem__(
            int(arrays["offsets"][arrays["entry"][0]]) + 8, int(arrays["levels"].argmin())
        ),
    ),
    "entry": ("hnsw", lambda arrays: arrays.pop("entry")),
    "not one place an item": ("hnsw", lambda arrays: arrays.update(order=np.zeros(600, np.int64))),
}


@pytest.mark.parametrize("told", list(CHANGES))
def test_what_no_index_is_made_of_is_refused_before_faiss_walks_along_it(told: str):
    kind, change = CHANGES[told]
    arrays = {
        name: values.copy() for name, values in IndexSearch(CONFIGS[kind], CATALOGUE, None).arrays().items()
    }
    change(arrays)
    with pytest.raises(DataError, match=told):
        IndexSearch(CONFIGS[kind], CATALOGUE, None, arrays)
