"""How much of the catalogue a server has listed since a bundle came, and what the bundle's lists lack.

A byte an item, in a file that all workers map: a store of a byte is whole, and may happen twice. Of bundles
before the last two nothing is left.

Legend: N items of the bundle, n of a list.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, final

import numpy as np
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from trec_semid.core.arrays import Bytes, Ints
from trec_semid.metrics.retrieval import ReachFacts
from trec_semid.serving.engine import Engine
from trec_semid.tokenizers.generations.manifest import ReadGeneration

_FILE = "listed-"


class _Bundle(NamedTuple):
    version: str
    listed: Bytes
    """(N,) 1 of items that were in a list."""
    facts: ReachFacts | None
    read: ReadGeneration | None
    """The generation of a store that its codes are; None of any other map, or of none."""


@final
class ListedItems(Collector):
    """Notes what lists hold, and tells how much of the catalogue that is."""

    def __init__(self, shared: str | None) -> None:
        """Note nothing yet.

        Args:
            shared: folder in which several processes note together; None where there is only this one.
        """
        self._shared = shared
        self._bundles: list[_Bundle] = []
        self._served = ""

    def begin(self, engine: Engine) -> None:
        """Another bundle is served; of one that has no lists nothing is told."""
        manifest = engine.manifest
        own: list[_Bundle] = []
        if manifest.kind == "retriever":
            listed = self._flags(engine.version, manifest.items.num_ids)
            ids = manifest.semantic_ids
            own = [_Bundle(engine.version, listed, manifest.reach, ids.generation if ids else None)]
        before = [each for each in self._bundles if each.version != engine.version]
        self._bundles, self._served = [*before[-1:], *own], engine.version
        self._forget({each.version for each in self._bundles})

    def add(self, version: str, rows: Ints) -> None:
        """Note (n,) item rows of a list that a bundle made."""
        for each in self._bundles:
            if each.version == version:
                each.listed[rows] = 1

    def collect(self) -> Iterator[Metric]:
        """Yield what `/metrics` shows, of the bundle that is served."""
        items = _gauge("catalogue_items", "Items of the bundle", ["version"])
        listed = _gauge("listed_items", "Of these, in a list of this server so far", ["version"])
        absent = _gauge(
            "absent_items",
            "Items that lists of a length lacked at export, by reason",
            ["version", "reason", "search", "length"],
        )
        generation = _gauge("generation", "Generation of the bundle's semantic IDs", ["version", "store"])
        own = [each for each in self._bundles if each.version == self._served]
        for version, flags, facts, read in own:
            if read is not None:
                generation.add_metric([version, read.store], read.number)
            items.add_metric([version], len(flags))
            listed.add_metric([version], int(np.count_nonzero(flags)))
            for each in facts.absent if facts else ():
                for length, number in each.counts.items():
                    absent.add_metric([version, each.reason, each.search, str(length)], number)
        yield from (items, listed, absent, generation)

    def _flags(self, version: str, num_items: int) -> Bytes:
        if self._shared is None or not num_items:
            return np.zeros(num_items, np.uint8)
        number = os.open(os.path.join(self._shared, _FILE + version), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(number, num_items)  # zeros where it is new
            return np.frombuffer(mmap.mmap(number, num_items), np.uint8)
        finally:
            os.close(number)

    def _forget(self, versions: set[str]) -> None:
        if self._shared is None:
            return
        for name in os.listdir(self._shared):
            if name.startswith(_FILE) and name.removeprefix(_FILE) not in versions:
                with suppress(FileNotFoundError):  # another worker was first
                    os.unlink(os.path.join(self._shared, name))


def _gauge(name: str, words: str, labels: list[str]) -> Any:
    return GaugeMetricFamily(f"trec_semid_{name}", words, labels=labels)
