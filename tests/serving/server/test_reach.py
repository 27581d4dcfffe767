"""What a server has listed, over its workers and over swaps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from trec_semid.metrics.retrieval import Absent, ReachFacts
from trec_semid.serving.server.reach import ListedItems

N = 1000
FACTS = ReachFacts(
    num_items=N,
    num_users=3,
    listed={10: 0.5},
    absent=(Absent(reason="missed", search="index", counts={5: 2, 10: 1}, examples=("i7",)),),
)


def bundle(version: str, kind: str = "retriever", facts: ReachFacts | None = None) -> Any:
    manifest = SimpleNamespace(kind=kind, items=SimpleNamespace(num_ids=N), reach=facts, semantic_ids=None)
    return SimpleNamespace(version=version, manifest=manifest)


def told(listed: ListedItems) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("trec_semid_"), *sample.labels.values()): sample.value
        for metric in listed.collect()
        for sample in metric.samples
    }


def test_workers_count_every_item_once_and_a_new_bundle_begins_anew(tmp_path: Path):
    rng, workers = np.random.default_rng(0), [ListedItems(str(tmp_path)) for _ in range(3)]
    seen: set[int] = set()
    for worker in workers:
        worker.begin(bundle("a", facts=FACTS))
    for turn in range(30):
        rows = rng.integers(0, N, 20)
        seen |= set(rows.tolist())
        workers[turn % 3].add("a", rows)
        workers[0].add("of another", np.arange(N))
    expected = {
        ("catalogue_items", "a"): N,
        ("listed_items", "a"): len(seen),
        ("absent_items", "a", "missed", "index", "5"): 2,
        ("absent_items", "a", "missed", "index", "10"): 1,
    }
    assert [told(worker) for worker in workers] == [expected] * 3
    late = ListedItems(str(tmp_path))  # a worker that takes the place of one that died
    late.begin(bundle("a", facts=FACTS))
    assert told(late) == expected

    workers[0].begin(bundle("b"))
    workers[0].add("a", np.arange(N))  # a batch that the bundle before was still at
    workers[0].add("b", np.array([4, 4, 5]))
    assert told(workers[0]) == {("catalogue_items", "b"): N, ("listed_items", "b"): 2}
    assert told(workers[1])["listed_items", "a"] == N
    workers[0].begin(bundle("c"))
    assert {each.name for each in tmp_path.iterdir()} == {"listed-b", "listed-c"}
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) == 2 * N
    workers[1].add("a", np.array([3]))  # its file is gone, and it goes on


def test_a_bundle_of_a_ranker_tells_nothing_of_lists():
    alone = ListedItems(None)
    alone.begin(bundle("a"))
    alone.add("a", np.array([1, 2]))
    assert told(alone)["listed_items", "a"] == 2
    alone.begin(bundle("b", "ranker"))
    assert told(alone) == {}


def test_the_generation_of_semantic_ids_is_that_of_the_bundle_that_is_served():
    listed, served = ListedItems(None), bundle("a")
    listed.begin(served)
    assert not any(name == "generation" for name, *_ in told(listed))
    for version, number in (("b", 3), ("c", 4)):
        again = bundle(version)
        read = SimpleNamespace(store="s1", number=number)
        again.manifest.semantic_ids = SimpleNamespace(generation=read)
        listed.begin(again)
        assert told(listed)["generation", version, "s1"] == number
        assert sum(name == "generation" for name, *_ in told(listed)) == 1
