"""Every kind of retriever as a bundle: lists by ids are those of the run, and filters hold."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets import write_small_dataset
from tests.jobs.conftest import Bundles
from tests.jobs.exported_kinds import KINDS
from tests.jobs.exporting import export_quickly
from tests.jobs.retrieving import retrieve_config
from trec_semid.checkpoints.bundle_files import read_manifest, write_manifest
from trec_semid.core.config import load_saved
from trec_semid.core.errors import CheckpointError, ConfigError, DataError
from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.data.schema import Dataset
from trec_semid.evaluation.target_positions import distinct_targets, read_target_positions
from trec_semid.jobs import export, retrieve, tokenize
from trec_semid.jobs.export import ExportConfig, Exported
from trec_semid.jobs.retrieve import RetrieveConfig
from trec_semid.jobs.tokenize import TokenizeConfig
from trec_semid.serving.engine import Engine, Filters, NotServedError, RankAsked, RetrieveAsked, open_engine
from trec_semid.serving.opened import OpenBundle
from trec_semid.serving.reader import Reader
from trec_semid.serving.retrieving import RetrieveEngine
from trec_semid.tokenizers.inputs.behaviour_fit import principal_part
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.tokenizers.tokenizer import Tokenizer
from trec_semid.training.served.retriever import ServedMember

EVERYTHING = 40
"""Items of the planted dataset."""


@pytest.fixture(scope="module")
def problem(listed_problem: dict[str, Any]) -> dict[str, Any]:
    return listed_problem


def opened(bundle: str) -> Any:
    """Return the engine of a bundle of any kind."""
    return open_engine(bundle)


@pytest.mark.parametrize("name", list(KINDS))
def test_lists_by_ids_have_targets_where_the_run_has_them(
    runs: Bundles, bundles: Bundles, problem: dict[str, Any], name: str
):
    run, engine = runs(name), opened(bundles(name))
    config, dataset = load_saved(RetrieveConfig, f"{run}/config.toml"), Dataset(problem["dataset"])
    data = RetrievalData(dataset, config.item, config.sequences)
    rows = distinct_targets(data.sequences.evaluation_rows("test", config.sequences.max_len))
    ids = dataset.item_ids.to_pylist()
    earlier = (rows.earlier.take(np.array([row]))[0] for row in range(len(rows.users)))
    names = [tuple(ids[item] for item in items) for items in earlier]
    # Codes propose as many as the run asked them for, or as are asked for now where these are more.
    length = EVERYTHING if engine.manifest.retriever.beam_width is None else 10
    as_in_the_run = partialmethod(RetrieveEngine.lists, widens=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetrieveEngine, "lists", as_in_the_run)
        lists = engine.retrieve([RetrieveAsked(None, history, length) for history in names])
    positions, at, num_compared = read_target_positions(run, "test").position, 0, 0
    for row, answer in enumerate(lists):
        assert answer.basis == ("history" if names[row] and name != "popularity" else "popularity")
        targets = [ids[item] for item in rows.targets.take(np.array([row]))[0]]
        own, at = positions[at : at + len(targets)], at + len(targets)
        # A target of the history is listed by the run and not by a server, which moves the others.
        if name == "hybrid of candidates" or set(targets) & set(names[row]):
            continue
        for target, position in zip(targets, own.tolist(), strict=True):
            if position <= len(answer.items):
                score = answer.scores[answer.items.index(target)]
                assert abs(score - answer.scores[position - 1]) <= 1e-4
                num_compared += 1
    assert num_compared > 3 or name == "hybrid of candidates"  # all items are scored there


def brute_force(engine: Engine, problem: dict[str, Any], asked: RetrieveAsked) -> list[str]:
    """Return what may be listed in the order of a list of everything, which is asked for without filters."""
    dataset = Dataset(problem["dataset"])
    (everything,) = engine.retrieve([asked._replace(n=EVERYTHING, filters=Filters())])
    filters, genres = asked.filters, dataset.items(["genres"])["genres"].to_pylist()
    names = dataset.vocabulary("item_genres").to_pylist()
    of_item = {
        item: {names[number] for number in numbers or ()}
        for item, numbers in zip(dataset.item_ids.to_pylist(), genres, strict=True)
    }
    wanted = filters.fields.get("genres")
    return [
        item
        for item in everything.items
        if (filters.allowed is None or item in filters.allowed)
        and item not in filters.forbidden
        and (wanted is None or of_item[item] & set(wanted))
    ]


@pytest.mark.parametrize("name", ["hybrid", "comirec", "popularity", "tiger", "rpg by a beam"])
def test_filters_leave_the_best_of_what_is_allowed_and_never_fewer_than_there_are(
    bundles: Bundles, problem: dict[str, Any], name: str
):
    engine, rng = opened(bundles(name)), np.random.default_rng(3)
    ids = Dataset(problem["dataset"]).item_ids.to_pylist()
    values = [str(value) for value in Dataset(problem["dataset"]).vocabulary("item_genres").to_pylist()[1:]]
    asked = []
    for _ in range(30):
        allowed = None if rng.random() < 0.4 else tuple(rng.choice(ids, rng.integers(0, 25), replace=False))
        fields = {} if rng.random() < 0.5 else {"genres": tuple(rng.choice(values, 2, replace=False))}
        forbidden = tuple(rng.choice(ids, rng.integers(0, 8), replace=False))
        history = tuple(rng.choice(ids, rng.integers(1, 15)))
        asked.append(
            RetrieveAsked(None, history, int(rng.integers(1, 30)), Filters(allowed, forbidden, fields))
        )
    answers, is_beam = engine.retrieve(asked), engine.manifest.retriever.listed_by == "beam"
    for request, answer in zip(asked, answers, strict=True):
        best = brute_force(engine, problem, request)
        assert len(answer.items) == min(request.n, len(best)) == len(answer.scores)
        assert set(answer.items) <= set(best)
        rows = [ids.index(item) for item in answer.items]
        order = sorted(zip((-answer.scores).tolist(), rows, strict=True))
        assert order == list(zip((-answer.scores).tolist(), rows, strict=True))
        if not is_beam:  # a beam of some tuples finds some of the best
            assert list(answer.items) == best[: request.n]
        alone = engine.retrieve([request])[0]
        np.testing.assert_allclose(alone.scores, answer.scores, atol=1e-5)
    assert len({len(answer.items) for answer in answers}) > 5
    (nothing,) = engine.retrieve([RetrieveAsked(None, ("i001",), 3, Filters(allowed=()))])
    assert (nothing.items, nothing.scores.tolist()) == ((), [])


@pytest.mark.parametrize("name", ["tiger", "rpg by a beam"])
def test_a_filtered_beam_as_wide_as_there_are_tuples_is_exact(
    bundles: Bundles, problem: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
):
    engine, rng = opened(bundles(name)), np.random.default_rng(4)
    facts = engine.manifest.retriever.model_copy(update={"beam_width": 1000})
    monkeypatch.setattr(engine._listers, "_facts", facts)
    ids = Dataset(problem["dataset"]).item_ids.to_pylist()
    for _ in range(10):
        filters = Filters(tuple(rng.choice(ids, 12, replace=False)), tuple(rng.choice(ids, 4)), {})
        request = RetrieveAsked(None, tuple(rng.choice(ids, 5)), 7, filters)
        assert list(engine.retrieve([request])[0].items) == brute_force(engine, problem, request)[:7]


def test_a_known_user_is_listed_for_by_what_is_stored_and_a_strange_one_gets_what_is_popular(
    bundles: Bundles, problem: dict[str, Any]
):
    engine, reader = opened(bundles("hybrid")), Reader(bundles("hybrid"))
    history = tuple(reader.history("u003"))
    events = Dataset(problem["dataset"]).events(["user_row", "item_row", "label"])
    liked = events.to_pandas().query("user_row == 3 and label > 0.5").item_row
    assert history == tuple(f"i{row:03d}" for row in liked)
    stored, given, strange, nothing = engine.retrieve(
        [
            RetrieveAsked("u003", None, 5),
            RetrieveAsked("u003", history, 5),
            RetrieveAsked("who", None, 5),
            RetrieveAsked(None, ("no item",), 5),
        ]
    )
    assert (stored.items, stored.basis, given.basis) == (given.items, "stored", "history")
    counts = np.bincount(np.asarray(events.filter(_is_train(problem))["item_row"]), minlength=40)
    popular = np.lexsort((np.arange(40), -counts))[:5]
    assert strange.items == tuple(f"i{row:03d}" for row in popular) == nothing.items
    assert (strange.basis, strange.unknown, nothing.unknown) == ("popularity", 1, 1)
    np.testing.assert_array_equal(strange.scores, counts[popular])


def _is_train(problem: dict[str, Any]) -> Any:
    import pyarrow.compute as pc

    return pc.call_function(
        "equal", [Dataset(problem["dataset"]).events(["split"])["split"].cast("string"), "train"]
    )


def test_an_ensemble_lists_by_the_mean_of_its_members_scores(
    bundles: Bundles, problem: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export_quickly(monkeypatch)
    alone = [bundles("sasrec"), bundles("hybrid")]
    of = [read_manifest(each).run for each in alone]
    own = {"dataset": problem["dataset"]}
    model = {"kind": "ensemble", "runs": of}
    config = retrieve_config(own, str(tmp_path / "both"), model=model, item={"fields": [], "content": []})
    retrieve.run(config)
    out = str(tmp_path / "bundle")
    assert export.run(ExportConfig(run=config.run, out=out)).largest_difference <= 1e-4
    engine, asked = opened(out), RetrieveAsked("u007", None, 40)
    (mean,) = engine.retrieve([asked])
    assert len(engine.manifest.retriever.members) == 2
    parts = []
    for each in alone:
        (part,) = opened(each).retrieve([asked])
        parts.append(dict(zip(part.items, part.scores, strict=True)))
    expected = [(parts[0][item] + parts[1][item]) / 2 for item in mean.items]
    np.testing.assert_allclose(mean.scores, expected, atol=1e-5)


@pytest.fixture(scope="module")
def of_bits(runs: Bundles) -> Callable[[str], Exported]:
    """Return the export of one model with tables of a kind, done once."""

    @cache
    def exported(kind: str) -> Exported:
        config = {"run": runs("comirec"), "out": f"{runs('comirec')}-{kind}", "tables": kind}
        with pytest.MonkeyPatch.context() as patch:
            export_quickly(patch)
            return export.run(ExportConfig.model_validate({**config, "shard_rows": 17}))

    return exported


@pytest.mark.parametrize("kind", ["fp16", "int8", "int4"])
def test_the_change_in_recall_of_smaller_tables_is_measured(
    runs: Bundles, of_bits: Callable[[str], Exported], kind: str
):
    run, done = runs("comirec"), of_bits(kind)
    out = done.out
    checked = read_manifest(out).checked
    assert checked is not None
    assert checked.change == done.change
    assert done.change.keys() == {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}
    metrics = json.loads(Path(run, "metrics.json").read_text())["metrics"]
    reported = metrics["test/recall@10"]
    # Users without a history are the run's too, and get what is popular: the bundle is not held against them.
    if checked.num == json.loads(Path(run, "metrics.json").read_text())["counts"]["test/users"]:
        assert checked.metrics["recall@10"] - checked.change["recall@10"] == pytest.approx(reported)
    assert 0 < done.largest_difference < {"fp16": 0.01, "int8": 0.1, "int4": 1.5}[kind]


ALONE = """
import json, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        is_own = root in sys.stdlib_module_names or root.startswith("_sysconfigdata")
        if not is_own and root not in ("numpy", "pyarrow", "safetensors", "reader"):
            raise ImportError(name)
sys.meta_path.insert(0, Only())
folder, item, query = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, folder)
from reader import Reader
bundle = Reader(folder, verify=True)
rows = bundle.items.rows_of([item, "nobody's", item])
scores = bundle.scores(query)
best = bundle.best(scores, 6, forbidden=[item])
decoded = bundle.tables[bundle.manifest["retriever"]["members"][0]["vectors"]].rows(rows[rows >= 0])
print(json.dumps({"rows": rows.tolist(), "best": best, "history": bundle.history("u004", 3),
                  "decoded": decoded.tolist(), "codes": bundle.codes[rows[0]].tolist()}))
"""


@pytest.mark.parametrize("kind", ["fp32", "int4"])
def test_the_reader_in_the_bundle_scores_with_numpy_and_pyarrow_alone(
    bundles: Bundles, of_bits: Callable[[str], Exported], kind: str
):
    out = bundles("comirec") if kind == "fp32" else of_bits(kind).out
    engine = opened(out)
    said = engine._listers.members[0].read(np.array([3, 5, 3]), np.array([3]))
    query = said["vectors"][0]
    words = [sys.executable, "-I", "-c", ALONE, out, "i009", json.dumps(query.tolist())]
    told = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert told["rows"] == [9, -1, 9]
    vectors = engine._listers.members[0].catalogue.vectors
    np.testing.assert_array_equal(told["decoded"], vectors[[9, 9]])
    scores = (query @ vectors.T).amax(0)
    expected = [int(row) for row in scores.sort(descending=True, stable=True).indices if int(row) != 9][:6]
    assert [item for item, _ in told["best"]] == [f"i{row:03d}" for row in expected]
    np.testing.assert_allclose([score for _, score in told["best"]], scores[expected], atol=1e-5)
    assert told["history"] == Reader(out).history("u004")[-3:]
    assert told["codes"] == list(engine.item("i009").codes)


@pytest.mark.parametrize(
    ("kind", "told"),
    [("comirec", "several vectors"), ("tiger", "lists by 'beam'"), ("hybrid", "codes count")],
)
def test_what_no_index_can_list_gets_none(runs: Bundles, tmp_path: Path, kind: str, told: str):
    config = {"run": runs(kind), "out": str(tmp_path / kind), "index": {"kind": "hnsw"}}
    with pytest.raises(ConfigError, match=told):
        export.run(ExportConfig.model_validate(config))
    assert not (tmp_path / kind).exists()


def test_what_a_bundle_cannot_do_is_said(bundles: Bundles):
    engine = opened(bundles("tiger"))
    with pytest.raises(NotServedError, match="this bundle is of a retriever"):
        engine.rank([RankAsked(None, None, {}, ("i001",))])
    with pytest.raises(NotServedError, match=r"search = 'exact' is not in this bundle\. It lists by: beam"):
        engine.retrieve([RetrieveAsked(None, ("i001",), 3, search="exact")])
    with pytest.raises(NotServedError, match="has no tokenizer"):
        engine.assign([_content()])
    with pytest.raises(DataError, match="no such item in the bundle"):
        engine.item("i999")
    with pytest.raises(DataError, match="no item field of this name"):
        engine.retrieve([RetrieveAsked(None, ("i001",), 3, Filters(fields={"colour": ("red",)}))])
    assert engine.retrieve([]) == []


def _content() -> Any:
    from trec_semid.serving.engine import AssignAsked

    return AssignAsked({"text": (1.0,) * 16}, 3)


def test_facts_of_an_item_are_those_of_the_dataset(bundles: Bundles, problem: dict[str, Any]):
    engine, dataset = opened(bundles("hybrid")), Dataset(problem["dataset"])
    facts = engine.item("i004")
    assert facts.readable["title"] == dataset.items(["title"])["title"][4].as_py()
    names = dataset.vocabulary("item_genres").to_pylist()
    numbers = dataset.items(["genres"])["genres"][4].as_py() or []
    assert facts.readable["genres"] == ", ".join(names[number] for number in numbers if number)
    codes = np.asarray(Reader(bundles("hybrid")).codes)
    assert facts.codes == tuple(codes[4])
    shared = [len(codes[0]) if (row == codes[4]).all() else int(row[0] == codes[4][0]) for row in codes]
    expected = [
        row for row in np.argsort([-each for each in shared], kind="stable") if row != 4 and shared[row]
    ]
    assert facts.neighbours == tuple(f"i{row:03d}" for row in expected[:10])
    assert torch.is_tensor(engine._listers.members[0].catalogue.vectors)


def test_items_are_found_by_words_of_their_titles_best_known_first(bundles: Bundles, problem: dict[str, Any]):
    engine, dataset = opened(bundles("hybrid")), Dataset(problem["dataset"])
    titles = dataset.items(["title"])["title"].to_pylist()
    events = dataset.events(["item_row"]).filter(_is_train(problem))
    counts = np.bincount(np.asarray(events["item_row"]), minlength=40)
    order = sorted(range(40), key=lambda row: (-counts[row], row))
    found = [each.item for each in engine.find("CLUSTER 2", 100)]
    assert found == [f"i{row:03d}" for row in order if "cluster" in titles[row] and "2" in titles[row]]
    assert engine.find("CLUSTER 2", 1)[0].item == found[0]
    assert engine.find("no such words", 5) == engine.find("  ", 5) == []
    assert engine.examples(3) == tuple(f"i{row:03d}" for row in order[:3])


def test_a_bundle_that_lists_otherwise_is_not_written(
    runs: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    export_quickly(monkeypatch)
    tokens = ServedMember.tokens
    monkeypatch.setattr(ServedMember, "tokens", lambda *asked: tokens(*asked).roll(1, 2))
    with pytest.raises(CheckpointError, match=r"scores of the bundle's lists are .*\. Nothing was written"):
        export.run(ExportConfig(run=runs("sasrec"), out=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


def test_item_vectors_of_a_bundle_teach_a_view_of_content(
    bundles: Bundles, problem: dict[str, Any], tmp_path: Path
):
    def learn(run: str, **behaviour: Any) -> Tokenizer:
        tokenizer = {"kind": "rq_kmeans", "codebook_size": 8, "levels": 2}
        config = {
            "run": str(tmp_path / run),
            "behaviour": {"dropout": 0.0, **behaviour},
            "tokenizer": tokenizer,
        }
        tokenize.run(TokenizeConfig.model_validate({"dataset": problem["dataset"]} | config))
        return load_tokenizer(f"{tmp_path / run}/tokenizer")

    teacher = OpenBundle(bundles("hybrid"), verify=True)
    facts, dataset = teacher.manifest.retriever, Dataset(problem["dataset"])
    assert facts is not None
    assert facts.members[0].vectors is not None
    learnt = learn("taught", teacher=bundles("hybrid"), dim=8, epochs=150, batch_size=16)
    assert learnt.behaviour is not None
    content = ItemContents(
        {name: np.array(dataset.content(name)) for name in ("text", "image")},
        {name: np.array(dataset.content_mask(name)) for name in ("text", "image")},
    )
    h = learnt.behaviour.of(content.batch(np.arange(EVERYTHING)))[0].float().numpy()
    vectors = principal_part(teacher.reader.tables[facts.members[0].vectors].rows(np.arange(EVERYTHING)), 8)
    seen = teacher.arrays(facts.items.file)["counts"] > 0
    assert 0 < seen.sum() < EVERYTHING
    assert (h * vectors).sum(1)[seen].mean() > 0.9
    with pytest.raises(ConfigError, match="scores no items by vectors"):
        learn("none", teacher=bundles("popularity"), dim=8)
    with pytest.raises(ValueError, match=r"behaviour\.kinds: behaviour\.teacher reads no events: leave out"):
        learn("none", teacher=bundles("hybrid"), kinds=["click"])
    of_day = shutil.copytree(bundles("hybrid"), tmp_path / "of_day")
    write_manifest(str(of_day), teacher.manifest.model_copy(update={"learnt_test": True}))
    with pytest.raises(ConfigError, match="has learnt the test split of"):
        learn("none", teacher=str(of_day), dim=8)
    problem = {"dataset": write_small_dataset(str(tmp_path / "other"), seed=5)}
    with pytest.raises(ConfigError, match="was trained on other data"):
        learn("none", teacher=bundles("hybrid"), dim=8)
