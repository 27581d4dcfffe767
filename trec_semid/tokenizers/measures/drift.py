"""How new items differ from what a tokenizer was fitted on: errors, use of codes, collisions.

Errors ||e_m - e_hat_m||² (see `standardise`) are stored of training as 20 bins with equally many items and
the 99 % quantile; new items beyond it are outside of what the codebooks were fitted to. 1 % of the fitted
items lie there, and somewhat more of other items, even without any drift, as codebooks fit best what they
were fitted on. Use of codes is compared by the Jensen-Shannon divergence in bits, 0 = equal, 1 = nothing
in common (Lin, "Divergence Measures Based on the Shannon Entropy", 1991):

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2,   m = (p + q) / 2

Few items diverge from any distribution by chance, so what 95 % of equally many draws from training's own
distribution stay below stands beside it.

Legend: B items, R positions, M modalities, K codebook size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from trec_semid.core.arrays import Array
from trec_semid.core.hashing import tuple_keys
from trec_semid.core.seeds import numpy_generator

NUM_BINS = 20
OUTSIDE = 0.99
"""Quantile of training's errors beyond which an item counts as outside."""
_CHANCE_DRAWS = 100


def describe_errors(errors: Array, present: Array, names: Sequence[str]) -> dict[str, Any]:
    """Return how the errors of items are distributed, as `quality.json` keeps it.

    Args:
        errors: (N, M) squared errors, 0 where the modality is missing.
        present: (N, M) bool.
        names: the modalities.

    Returns:
        Of each modality over the items that have it, and of their sum over the items that have all;
        None where no item does.
    """
    complete = present.all(axis=1)
    every = _describe(errors[complete].sum(1, dtype=np.float64))
    each = {name: _describe(errors[present[:, m], m].astype(np.float64)) for m, name in enumerate(names)}
    return {"every_modality": every, "modalities": each}


def _describe(values: Array) -> dict[str, Any] | None:
    if not len(values):
        return None
    edges = np.quantile(values, np.linspace(0, 1, NUM_BINS + 1))
    return {
        "items": len(values),
        "mean": float(values.mean()),
        "quantile_99": float(np.quantile(values, OUTSIDE)),
        "edges": edges.tolist(),
        "counts": _bin(values, edges).tolist(),
    }


def _bin(values: Array, edges: Array) -> Array:
    """Count values between the inner edges; the first and last bin are open."""
    return np.bincount(np.searchsorted(edges[1:-1], values, side="right"), minlength=NUM_BINS)


def divergence(first: Array, second: Array) -> float:
    """Return the Jensen-Shannon divergence of two histograms (K,) [bits]; 0 where one is empty."""
    if not first.sum() or not second.sum():
        return 0.0
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    # p is 0 wherever the middle is.
    both = sum(float((d[d > 0] * np.log2(d[d > 0] / middle[d > 0])).sum()) for d in (p, q))
    return max(both / 2, 0.0)


def divergence_by_chance(counts: Array, num_items: int, *purpose: str) -> float:
    """Return what 95 % of draws of `num_items` from counts (K,) stay below in `divergence` from them."""
    if not counts.sum() or not num_items:
        return 0.0
    # A fixed seed: the same items get the same report.
    generator = numpy_generator(0, "divergence by chance", *purpose)
    draws = generator.multinomial(num_items, counts / counts.sum(), size=_CHANCE_DRAWS)
    return float(np.quantile([divergence(counts, drawn) for drawn in draws], 0.95))


@final
class DriftMeter:
    """Counts new items batch by batch and sets them against training.

    Memory: 8 bytes an item for the key of its tuple, and a few histograms.
    """

    def __init__(self, quality: Mapping[str, Any], sizes: Sequence[int]) -> None:
        self._quality, self._sizes = quality, tuple(sizes)
        self._modalities: dict[str, Any] = dict(quality["modalities"])
        trained = quality["training_errors"]
        self._errors = [_Errors(trained["every_modality"])]
        self._errors += [_Errors(trained["modalities"][name]) for name in self._modalities]
        self._codes = [np.zeros(size + 1, np.int64) for size in self._sizes]
        self._present = np.zeros(len(self._modalities), np.int64)
        self._keys: list[Array] = []
        self.num_items = 0

    def add(self, codes: Array, errors: Array, present: Array) -> None:
        """Count a batch.

        Args:
            codes: (B, R).
            errors: (B, M) squared errors.
            present: (B, M) bool.
        """
        self.num_items += len(codes)
        self._present += present.sum(0)
        self._errors[0].add(errors[present.all(1)].sum(1, dtype=np.float64))
        for m, known in enumerate(self._errors[1:]):
            known.add(errors[present[:, m], m].astype(np.float64))
        for r, size in enumerate(self._sizes):
            self._codes[r] += np.bincount(codes[:, r], minlength=size + 1)
        self._keys.append(tuple_keys(codes, self._sizes))

    def report(self, existing_keys: Array) -> dict[str, Any]:
        """Return what `drift.json` says.

        Args:
            existing_keys: (n,) `tuple_keys` of the items that have semantic IDs already.
        """
        every, each = self._errors[0], self._errors[1:]
        return {
            "items": self.num_items,
            "errors": {
                "every_modality": every.report("every modality"),
                "modalities": {
                    name: known.report(name) for name, known in zip(self._modalities, each, strict=True)
                },
            },
            "positions": [self._position(r) for r in range(len(self._sizes))],
            "missing": {
                name: {
                    "new_share": 1 - int(self._present[m]) / max(self.num_items, 1),
                    "existing_share": 1 - modality["present"] / self._quality["num_items"],
                }
                for m, (name, modality) in enumerate(self._modalities.items())
            },
            "collisions": self._collisions(existing_keys),
        }

    def _position(self, r: int) -> dict[str, Any]:
        described = self._quality["positions"][r]
        # 'Missing' counts as one more code, as in `add`.
        known, new = np.array([*described["counts"], described["missing"]]), self._codes[r]
        return {
            "name": described["name"],
            "divergence_bits": divergence(known, new),
            "divergence_by_chance_bits": divergence_by_chance(known, self.num_items, described["name"]),
            "new_items_on_unused_codes": int(new[known == 0].sum()),
        }

    def _collisions(self, existing_keys: Array) -> dict[str, Any]:
        keys = np.concatenate(self._keys) if self._keys else np.zeros(0, np.uint64)
        taken = int(np.isin(keys, existing_keys).sum())
        _, times = np.unique(keys, return_counts=True)
        among = int(times[times > 1].sum())
        return {
            "with_existing_items": taken,
            "with_existing_share": taken / max(self.num_items, 1),
            "among_new_items": among,
            "among_new_share": among / max(self.num_items, 1),
            "largest_new_group": int(times.max(initial=0)),
        }


@final
class _Errors:
    """Errors of new items beside training's."""

    def __init__(self, trained: Mapping[str, Any] | None) -> None:
        self._trained = trained
        self._counts = np.zeros(NUM_BINS, np.int64)
        self._num_items = self._num_outside = 0
        self._sum = 0.0

    def add(self, values: Array) -> None:
        """Take (n,) reconstruction errors of new items."""
        self._num_items += len(values)
        self._sum += float(values.sum())
        if self._trained:
            self._num_outside += int((values > self._trained["quantile_99"]).sum())
            self._counts += _bin(values, np.asarray(self._trained["edges"]))

    def report(self, name: str) -> dict[str, Any] | None:
        """Return the comparison; None where there is nothing on one of the two sides."""
        if not self._trained or not self._num_items:
            return None
        trained = np.asarray(self._trained["counts"])
        return {
            "items": self._num_items,
            "mean": self._sum / self._num_items,
            "training_mean": self._trained["mean"],
            "training_quantile_99": self._trained["quantile_99"],
            "outside_share": self._num_outside / self._num_items,
            "counts_in_training_bins": self._counts.tolist(),
            "divergence_bits": divergence(trained, self._counts),
            "divergence_by_chance_bits": divergence_by_chance(trained, self._num_items, "errors", name),
        }
