"""What `/metrics` shows, of one process or of all workers together."""

import os
from collections.abc import Sequence
from typing import Any, final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    values,
)

from trec_semid.serving.engine import Engine, RetrieveAnswer
from trec_semid.serving.server.batching import Done, Kind
from trec_semid.serving.server.reach import ListedItems

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@final
class Meters:
    """Counts and times of one server."""

    def __init__(self, shared: str | None = None) -> None:
        """Make them.

        Args:
            shared: folder of files in which several processes count; None where there is only this one.
        """
        self._registry, self._shared = CollectorRegistry(), shared
        if shared is not None:
            # prometheus-client looks for the variable when it is imported, which has been.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
            values.ValueClass = values.MultiProcessValue()
        self._latency = self._histogram("request_seconds", "From arrival to answer", ["route"], _SECONDS)
        stage = self._counter("stage_seconds", "Of answered requests, by part", ["stage"])
        self._batch = self._histogram("batch_requests", "Requests of a batch", ["kind"], _SIZES)
        self._requests = self._counter("requests", "Answers", ["route", "status"])
        self._unknown = self._counter(
            "unknown_ids", "Ids of requests that the bundle does not have", ["route"]
        )
        self._empty = self._counter("empty_lists", "Lists without an item", [])
        self._basis = self._counter("basis", "Answers by what stood for the user", ["route", "basis"])
        self._swaps = self._counter("swaps", "Other bundles, by what became of them", ["outcome"])
        self._depth = self._gauge("queue_requests", "Requests that wait", [])
        self._listed = ListedItems(shared)
        self._registry.register(self._listed)
        self._version = self._gauge("bundle", "Workers that answer by a bundle", ["version"])
        self._stages = [stage.labels(name) for name in ("read", "wait", "engine", "write")]
        self._of_answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def _names(self, name: str) -> dict[str, Any]:
        return {"name": name, "namespace": "trec_semid", "registry": self._registry}

    def _histogram(self, name: str, words: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(documentation=words, labelnames=labels, buckets=buckets, **self._names(name))

    def _counter(self, name: str, words: str, labels: Sequence[str]) -> Counter:
        return Counter(documentation=words, labelnames=labels, **self._names(name))

    def _gauge(self, name: str, words: str, labels: Sequence[str]) -> Gauge:
        mode = "livesum"
        return Gauge(documentation=words, labelnames=labels, multiprocess_mode=mode, **self._names(name))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer, of any status."""
        # To look up labels takes longer than to count.
        meters = self._of_answers.get((route, status))
        if meters is None:
            meters = self._requests.labels(route, str(status)), self._latency.labels(route)
            self._of_answers[route, status] = meters
        meters[0].inc()
        meters[1].observe(seconds)

    def asked(self, route: str, done: Done) -> None:
        """Count what an answer of the engine says."""
        answer = done.answer
        if unknown := getattr(answer, "unknown", 0):
            self._unknown.labels(route).inc(unknown)
        if basis := getattr(answer, "basis", ""):
            self._basis.labels(route, basis).inc()
        if isinstance(answer, RetrieveAnswer):
            self._listed.add(done.version, answer.rows)
            if not answer.items:
                self._empty.inc()

    def stages(self, read: float, wait: float, engine: float, write: float) -> None:
        """Note how long the parts of an answer took [s]."""
        for meter, seconds in zip(self._stages, (read, wait, engine, write), strict=True):
            meter.inc(seconds)

    def waiting(self, requests: int) -> None:
        """Note how many requests wait."""
        self._depth.set(requests)

    def batched(self, kind: Kind, requests: int) -> None:
        """Note how many requests were answered together."""
        self._batch.labels(kind).observe(requests)

    def swapped(self, before: str | None, engine: Engine) -> None:
        """Note that another bundle is served."""
        self._listed.begin(engine)
        if before is not None:
            self._version.labels(before).set(0)
            self._swaps.labels("taken").inc()
        self._version.labels(engine.version).set(1)

    def not_swapped(self) -> None:
        """Note that another bundle was refused."""
        self._swaps.labels("refused").inc()

    def text(self) -> bytes:
        """Return the page."""
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, self._shared)
        registry.register(self._listed)
        return generate_latest(registry)
