"""A catalogue whose items belong to known clusters, another clustering for each modality."""

from typing import NamedTuple

import numpy as np

from trec_semid.tokenizers.inputs.contents import ItemContents

DIMS = {"text": 12, "vision": 20}


class Planted(NamedTuple):
    """Items and what they were drawn from."""

    catalogue: ItemContents
    clusters: dict[str, np.ndarray]
    """Modality to (N,): the cluster of each item."""


def plant(
    num_items: int = 400, num_clusters: int = 8, *, missing: float = 0.0, seed: int = 0, noise: float = 0.15
) -> Planted:
    """Draw items around centres that are independent between modalities.

    A share `missing` of the items has no vision; their rows hold NaN, which nobody may read.
    """
    rng = np.random.default_rng(seed)
    vectors, present, clusters = {}, {}, {}
    for name, dim in DIMS.items():
        clusters[name] = rng.integers(num_clusters, size=num_items)
        centres = rng.normal(size=(num_clusters, dim))
        drawn = centres[clusters[name]] + noise * rng.normal(size=(num_items, dim))
        vectors[name], present[name] = drawn.astype(np.float32), np.ones(num_items, bool)
    if missing:
        present["vision"] = rng.random(num_items) >= missing
        vectors["vision"][~present["vision"]] = np.nan
    return Planted(ItemContents(vectors, present), clusters)
