"""`trec-semid export`: a finished run to a bundle for serving, checked first."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pydantic import PositiveInt

from trec_semid.checkpoints.folder import best_step
from trec_semid.checkpoints.manifest import (
    MANIFEST,
    IndexFacts,
    Manifest,
    RetrieverFacts,
    TableType,
    write_file,
    write_manifest,
)
from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.arrays import Array
from trec_semid.core.config import Place, load_saved
from trec_semid.core.errors import CheckpointError, DataError
from trec_semid.core.paths import exists, staged_folder
from trec_semid.core.processes import scratch_folder
from trec_semid.data.folder import writing
from trec_semid.data.schema import Dataset, VerifyConfig, open_dataset
from trec_semid.evaluation.evaluated import tests_then_trains
from trec_semid.metrics.retrieval import best_places, shares_listed
from trec_semid.metrics.target_positions import TopItems
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.ann import IndexConfig, IndexSearch, NoIndexConfig
from trec_semid.serving.check import ask_alone, asked_of_ranker, asked_of_retriever
from trec_semid.serving.writing.card import CARD, card_of
from trec_semid.serving.writing.comparison import (
    compare_lists,
    compare_scores,
    expect_lists,
    expect_scores,
)
from trec_semid.serving.writing.dataset import (
    KnownEvents,
    write_dataset,
    write_files,
    write_map,
    write_reader,
)
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.index import expect_indexable, write_index
from trec_semid.serving.writing.intervals import measured_of
from trec_semid.serving.writing.rankers import RankerParts, write_ranker
from trec_semid.serving.writing.retrievers import MemberParts, write_items, write_member
from trec_semid.serving.writing.settings import WriteSettings
from trec_semid.tokenizers.generations.manifest import GENERATION, read_before
from trec_semid.training.finished import FinishedRun
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.setup import RetrieveConfig, read_inputs
from trec_semid.training.served.map import ServedMap, of_tokenizer, served_map, stored_files
from trec_semid.training.served.ranker import ServedRanker
from trec_semid.training.served.reach import reach_of_bundle
from trec_semid.training.served.retriever import ServedMember, ServedRetriever, TestUsers


class ExportConfig(VerifyConfig):
    """What `trec-semid export` reads."""

    run: Place
    """Run folder of a finished `trec-semid rank` or `trec-semid retrieve`."""
    out: Place
    """Bundle folder to write."""
    semantic_ids: Place | None = None
    """Map that the bundle gets: a generation of only additions to the one that the run read, as `store` or
    `store@7`, so that items added since can be looked up; the run's own map where not given."""
    tables: TableType = "fp32"
    """`fp16` keeps 16 bits a number; `int8` and `int4` 8 and 4, with a scale and a low for each row."""
    shard_rows: PositiveInt = 1_000_000
    """Of a file of a table; memory is that of one."""
    onnx: bool = False
    """Whether programs are written as ONNX as well, for other runtimes, where their operations allow."""
    compiled: bool = False
    """Whether they are written as machine code as well (AOTInductor), for processors like this one. It is run
    only by who asks for it (`serve` with `compiled = true`); others run the portable program."""
    index: IndexConfig | None = None
    """Index over item vectors, for requests that say `search = "index"`; lists with filters are exact."""
    histories: bool = True
    """Whether what users have done goes along, so that a request needs no more than the user's id."""
    check_rows: PositiveInt = 4096
    """Rows, or users, of the test split whose scores must be those of the run."""

    @property
    def settings(self) -> WriteSettings:
        """How models are written."""
        return WriteSettings(self.tables, self.shard_rows, Forms(self.onnx, self.compiled))


class Exported(NamedTuple):
    """What an export comes to."""

    out: str
    largest_difference: float
    """Of a probability, or of an item's score, over what was checked."""
    num_bytes: int
    change: dict[str, float]
    """Of metrics over what was checked, the bundle's less the run's."""


def run(config: ExportConfig) -> Exported:
    """Write the bundle, re-load it in a clean process, compare its scores with the run's; or write nothing.

    Raises:
        DataError: the run is not finished, or `out` cannot be written.
        CheckpointError: no best checkpoint, or the bundle does not score like the run.
    """
    set_up_console()
    config.settings.forms.expect_available()
    with own_folder(config.out, "export"):
        return _run(config)


def _run(config: ExportConfig) -> Exported:
    trained, job = _finished(config.run)
    write = {"rank": _write_rank_run, "retrieve": _write_retrieve_run}[job]
    with writing(config.out), staged_folder(config.out, MANIFEST, in_place=False) as folder:
        manifest, asked, compare = write(config, trained, folder)
        manifest = compare(manifest, ask_alone(config.out, folder, asked))
        card = write_file(folder, CARD, card_of(manifest).encode())
        manifest = manifest.model_copy(update={"beside": (*manifest.beside, card)})
        write_manifest(folder, manifest)
    checked = manifest.checked
    assert checked is not None, "compared"
    num_bytes = sum(facts.num_bytes for facts in manifest.files())
    changes = ", ".join(f"{name} {change:+.5f}" for name, change in checked.change.items())
    step = "" if manifest.step is None else f"step {manifest.step}, "
    what = "test rows" if manifest.ranker else "test users"
    say(
        f"{config.out}: {step}{len(manifest.tables)} tables ({config.tables}), "
        f"{num_bytes / 2**20:,.1f} MiB. Scores of {checked.num:,} {what}, re-loaded in a process of "
        f"its own without torchrec, differ from the run's by at most {checked.largest_difference:.1e}"
        f"{f' ({changes})' if changes else ''}."
    )
    return Exported(config.out, checked.largest_difference, num_bytes, checked.change)


def _finished(run: str) -> tuple[RunFolder, str]:
    """Return a finished run's folder, and its verb."""
    trained = RunFolder(run, "rank")
    if not exists(trained.path("metrics.json")):
        problem, remedy = "not a finished run", "Run it to its end"
        raise DataError(problem, file=trained.path("metrics.json"), remedy=remedy)
    job = str(trained.read_json("run.json").get("job"))
    if job not in ("rank", "retrieve"):
        remedy = "Export the run of a ranker or a retriever"
        problem = "not a run of rank or retrieve"
        raise DataError(problem, file=trained.path("run.json"), field="job", value=job, remedy=remedy)
    return trained, job


class _Written(NamedTuple):
    """A bundle that is written, and what it is held against."""

    manifest: Manifest
    asked: dict[str, Array]
    compare: Callable[[Manifest, Mapping[str, Array]], Manifest]
    """Of the manifest and what the bundle answers, to the manifest that says how good the answers are."""


def _dataset(config: ExportConfig, trained: RunFolder, uri: str) -> Dataset:
    dataset = open_dataset(uri, config.verify)
    if dataset.facts.checksum != trained.read_json("metrics.json")["dataset_checksum"]:
        problem = "not the data that the run was trained on (its checksum differs)"
        raise DataError(problem, file=uri, remedy="Prepare that data again, or train again")
    return dataset


def _map(
    config: ExportConfig, trained: RunFolder, stored: Mapping[str, bytes], dataset: Dataset
) -> ServedMap | None:
    read = read_before(trained.read_json("run.json")) if GENERATION in stored else None
    return served_map(stored, dataset, read, config.semantic_ids)


class _Beside(NamedTuple):
    """What goes along with a model."""

    events: tuple[Array, Array] | None
    """User and item rows (E,) of histories; None without any."""
    stored: Mapping[str, bytes]
    """Files of its checkpoint."""
    known: ServedMap | None


def _said(
    config: ExportConfig, trained: RunFolder, folder: str, dataset: Dataset, beside: _Beside
) -> dict[str, Any]:
    """Write what bundles of any model hold; return what their manifest says of it."""
    facts, (events, stored, known) = trained.read_json("metrics.json"), beside
    kept = KnownEvents(*events) if events is not None and config.histories else None
    return {
        "run": config.run,
        "commit": str(facts.get("commit", "")),
        "versions": facts["versions"],
        **write_dataset(folder, dataset, kept),
        "semantic_ids": write_map(folder, known.content, known.ids, known.read) if known else None,
        "tokenizer": write_files(folder, of_tokenizer(stored)),
        "beside": (write_reader(folder),),
        "metrics": facts["metrics"],
        "learnt_test": tests_then_trains(config.run),
        "measured": measured_of(config.run, facts, is_ranker=trained.read_json("run.json")["job"] == "rank"),
    }


def _write_rank_run(config: ExportConfig, trained: RunFolder, folder: str) -> _Written:
    ranked, checkpoints = load_saved(RankConfig, trained.path("config.toml")), trained.path("checkpoints")
    step = best_step(checkpoints)
    if step is None:
        raise CheckpointError(f"{checkpoints}: no best checkpoint to export.")
    dataset, stored = _dataset(config, trained, ranked.dataset), stored_files(trained, step)
    known = _map(config, trained, stored, dataset)
    served = ServedRanker(
        ranked, dataset, known.ids if known else None, SavedTensors(checkpoints, step, "model/")
    )
    dense = served.dense()
    parts = RankerParts(
        served.data.features,
        ranked.representation,
        ranked.features,
        ranked.history,
        served.data.train_counts()[1],
        ranked.tables.pooling,
        ranked.tables.dim,
        dense,
        served.of_requests(dense),
        served.stretches,
    )
    ranker, tables = write_ranker(folder, parts, config.settings)
    said = _said(config, trained, folder, dataset, _Beside(served.known_events(), stored, known))
    model: dict[str, Any] = {"method": ranked.model.kind, "step": step, "ranker": ranker, "tables": tables}
    manifest = Manifest(kind="ranker", **model, **said)
    write_manifest(folder, manifest)
    rows = served.test_rows(config.run, config.check_rows)

    def compare(manifest: Manifest, answered: Mapping[str, Array]) -> Manifest:
        """Hold (R,) probabilities against the run's own."""
        checked = compare_scores(answered["scores"], rows.predicted, rows.labels, rows.users)
        expect_scores(config.out, config.tables, checked)
        return manifest.model_copy(update={"checked": checked})

    histories = rows.history, rows.history_lengths
    return _Written(manifest, asked_of_ranker(rows.users, rows.items, histories), compare)


def _write_retrieve_run(config: ExportConfig, trained: RunFolder, folder: str) -> _Written:
    asked_for = load_saved(RetrieveConfig, trained.path("config.toml"))
    dataset = _dataset(config, trained, asked_for.dataset)
    with process_group() as ranks, scratch_folder() as plans:
        run = FinishedRun(config.run)
        served = ServedRetriever(run, asked_for, read_inputs(asked_for), ranks)
        stored = stored_files(trained, served.step)
        known = _map(config, trained, stored, dataset)
        served.place(plans)
        users = served.test_users(config.check_rows)
        _expect_indexable(config.index, served, users)  # before programs are traced, which takes a while
        written = [
            write_member(folder, number, _parts(member), config.settings)
            for number, member in enumerate(served.members)
        ]
        evaluation = asked_for.evaluation
        length = min(max(evaluation.cutoffs), served.data.num_items)
        top = served.lists(users, length)
        index = _write_index(config.index, folder, served, (users, top))
        retriever = RetrieverFacts(
            members=tuple(facts for facts, _ in written),
            items=write_items(folder, served.data.item_counts, served.penalties()),
            index=index.facts if index else None,
            **served.ways(),
        )
        of_index = (index.search, index.lists) if index else None
        reach = reach_of_bundle(served, users, top.items.numpy(), served.data.item_ids, of_index)
        said = _said(config, trained, folder, dataset, _Beside(served.known_events(), stored, known))
        manifest = Manifest(
            kind="retriever",
            method=asked_for.model.kind,
            step=served.step,
            retriever=retriever,
            tables=tuple(table for _, tables in written for table in tables),
            **said,
        )
        write_manifest(folder, manifest)

    def compare(manifest: Manifest, answered: Mapping[str, Array]) -> Manifest:
        """Hold lists (B, N) against those of the run's model."""
        checked = compare_lists(
            (answered["items"], answered["scores"]),
            top.scores.numpy(),
            (users.targets, users.num_targets),
            users.positions,
            [cutoff for cutoff in evaluation.cutoffs if cutoff <= length],
        )
        expect_lists(config.out, config.tables, checked)
        if reach is None:
            return manifest.model_copy(update={"checked": checked})
        listed = shares_listed(best_places(answered["items"], reach.num_items), reach.listed)
        own = reach.model_copy(update={"listed": listed})
        return manifest.model_copy(update={"checked": checked, "reach": own})

    histories, masked = (users.histories, users.history_lengths), (users.masked, users.num_masked)
    return _Written(manifest, asked_of_retriever(histories, masked, length), compare)


class _Indexed(NamedTuple):
    """An index that is written."""

    facts: IndexFacts
    search: IndexSearch
    lists: TopItems
    """(B, N) of the users that the bundle is held against."""


def _expect_indexable(config: IndexConfig | None, served: ServedRetriever, users: TestUsers) -> None:
    if config is not None and not isinstance(config, NoIndexConfig):
        catalogues = [member.catalogue for member in served.members]
        expect_indexable(catalogues, served.listed_by, lambda: served.is_one_vector(users))


def _write_index(
    config: IndexConfig | None, folder: str, served: ServedRetriever, exact: tuple[TestUsers, TopItems]
) -> _Indexed | None:
    """Write an index where one is asked for; its recall is against exact lists of some users."""
    if config is None or isinstance(config, NoIndexConfig):
        return None
    users, top = exact
    catalogue = served.members[0].catalogue
    facts, search = write_index(folder, config, catalogue, torch.from_numpy(served.penalties()))
    lists = served.lists(users, top.items.shape[1], search)
    recall = served.shares_of(lists, top)
    return _Indexed(facts.model_copy(update={"recall": recall}), search, lists)


def _parts(member: ServedMember) -> MemberParts:
    """Return what of a model is written."""
    asked, config = member.asked, member.config
    live = asked.model.items.live if asked.model.predicts_codes else None
    return MemberParts(
        run=member.run.uri,
        method=config.model.kind,
        exported=member.exported,
        tokens=member.tokens(),
        vectors=member.catalogue.vectors,
        codes=member.catalogue.codes,
        sizes=live.sizes if live else (),
        weighs_interests=config.evaluation.interests_of(config.retriever).merge == "weighted",
        max_len=config.sequences.max_len,
    )
