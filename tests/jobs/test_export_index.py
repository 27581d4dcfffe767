"""An index in a bundle: lists beside those of all scores, with and without filters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.jobs.exported_kinds import KINDS
from tests.jobs.exporting import export_quickly
from tests.jobs.ranking import write_problem
from tests.jobs.retrieving import retrieve_config
from trec_semid.jobs import export, retrieve
from trec_semid.jobs.export import ExportConfig
from trec_semid.metrics.target_positions import UserItems
from trec_semid.models.queries import Queries
from trec_semid.search.ann import HnswConfig, IndexSearch
from trec_semid.search.catalogue import Catalogue
from trec_semid.serving.engine import Engine, Filters, RetrieveAsked, open_engine

IDS = [f"i{row:03d}" for row in range(40)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("indexed"))
    changes = {**write_problem(folder), **KINDS["sasrec"]}
    problem = {key: changes.pop(key) for key in ("dataset", "semantic_ids")}
    retrieve.run(retrieve_config(problem, f"{folder}/run", train={"max_epochs": 1}, **changes))
    return f"{folder}/run"


def indexed(run: str, out: Path, **index: Any) -> Engine:
    """Export with an index, and open what was written."""
    config = {"run": run, "out": str(out), "index": index, "shard_rows": 17}
    with pytest.MonkeyPatch.context() as patch:
        export_quickly(patch)
        export.run(ExportConfig.model_validate(config))
    return open_engine(str(out))


def by(search: str, asked: list[RetrieveAsked]) -> list[RetrieveAsked]:
    return [each._replace(search=search) for each in asked]


def test_an_index_that_reads_all_lists_as_all_scores_do_and_filters_hold(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine, rng = indexed(run, tmp_path / "all", kind="hnsw", m=8, ef_search=200), np.random.default_rng(0)
    assert engine.manifest.retriever.index.recall == {"recall@5": 1.0, "recall@10": 1.0}
    asked = [
        RetrieveAsked(None, tuple(rng.choice(IDS, 6)), int(rng.integers(1, 45)), filters)
        for filters in (Filters(), Filters(tuple(IDS[:9]), ("i001",)), Filters((), ("i001", "i002")))
        for _ in range(4)
    ]
    for one, other in zip(engine.retrieve(by("index", asked)), engine.retrieve(asked), strict=True):
        assert one.items == other.items
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    monkeypatch.setattr(engine._listers, "_scored", None)  # a list of all items is scored without an index
    assert len(engine.retrieve(by("index", [asked[0]._replace(n=5)]))[0].items) == 5


def test_a_user_with_filters_leaves_the_lists_of_others_to_the_index(run: str, tmp_path: Path):
    engine, rng = indexed(run, tmp_path / "some", kind="ivf", nlist=3, nprobe=1), np.random.default_rng(0)
    free = [RetrieveAsked(None, tuple(rng.choice(IDS, 6, replace=False)), 3, Filters()) for _ in range(20)]
    filtered = [each._replace(filters=Filters(tuple(IDS[:9]), ())) for each in free]
    alone = [one.items for one in engine.retrieve(by("index", free))]
    together = [one.items for one in engine.retrieve(by("index", free + filtered))]
    exact = [one.items for one in engine.retrieve(by("exact", free + filtered))]
    assert together == alone + exact[len(free) :]
    assert alone != exact[: len(free)]
    (missed,) = [each for each in engine.manifest.reach.absent if each.reason == "missed"]
    assert missed.search == "index"
    assert missed.counts[5] >= len(missed.examples) > 0


def test_items_that_no_edge_of_a_graph_leads_to_are_never_listed():
    rng = np.random.default_rng(1)
    vectors = torch.from_numpy(rng.normal(size=(60, 4)).astype(np.float32))
    config, items = HnswConfig(m=4, ef_search=60), Catalogue(60, 0, vectors, None, None)
    arrays = IndexSearch(config, items, None).arrays()
    assert IndexSearch(config, items, None, arrays).reachable().tolist() == list(range(60))
    neighbours = arrays["neighbours"].copy()
    lost = np.flatnonzero(arrays["levels"] == 1)[:3].tolist()
    neighbours[np.isin(neighbours, lost)] = -1
    search = IndexSearch(config, items, None, {**arrays, "neighbours": neighbours})
    assert search.reachable().tolist() == [row for row in range(60) if row not in lost]
    nobody = UserItems(*(torch.zeros(size, dtype=torch.int64) for size in (0, 60, 0, 60)))
    listed = search.top_items([Queries(vectors, None)], nobody, 60).items.unique()
    assert set(listed.tolist()) - {-1} <= set(search.reachable().tolist())
