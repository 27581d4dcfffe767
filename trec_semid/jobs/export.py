"""`trec-semid export`: a finished run to a bundle for serving, checked first."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor

from trec_semid.checkpoints.bundle_files import MANIFEST, write_file, write_manifest
from trec_semid.checkpoints.folder import best_step
from trec_semid.checkpoints.manifest import IndexFacts, Manifest, RetrieverFacts, TableFacts, TableType
from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.arrays import Array, Ints
from trec_semid.core.config import Place, load_saved
from trec_semid.core.errors import CheckpointError
from trec_semid.core.paths import is_local
from trec_semid.core.processes import scratch_folder
from trec_semid.data.folder import writing
from trec_semid.data.schema import Dataset, VerifyConfig
from trec_semid.metrics.retrieval import best_places, shares_listed
from trec_semid.metrics.target_positions import TopItems
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.runtime.staged import staged_by_ranks
from trec_semid.search.ann import IndexConfig, IndexSearch, NoIndexConfig
from trec_semid.serving.check import ask_alone, asked_of_ranker, asked_of_retriever
from trec_semid.serving.reader import Table
from trec_semid.serving.writing.beside import Beside, ReadMap, write_beside
from trec_semid.serving.writing.card import CARD, card_of
from trec_semid.serving.writing.comparison import (
    compare_lists,
    compare_scores,
    expect_lists,
    expect_scores,
)
from trec_semid.serving.writing.dataset import KnownEvents
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.index import expect_indexable, write_index
from trec_semid.serving.writing.rankers import RankerParts, write_ranker
from trec_semid.serving.writing.retrievers import (
    ItemRows,
    MemberParts,
    member_tables,
    vectors_of,
    write_items,
    write_member,
)
from trec_semid.serving.writing.tables import TableRows, write_tables
from trec_semid.training.finished import FinishedRun
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.inputs import read_inputs
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.run import on_main
from trec_semid.training.served.inputs import dataset_of, finished_run, map_of
from trec_semid.training.served.map import ServedMap, of_tokenizer, stored_files
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
    def forms(self) -> Forms:
        """How programs are written."""
        return Forms(self.onnx, self.compiled)


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

    Of several ranks each writes a stretch of the tables' shards, and the first all else.

    Raises:
        DataError: the run is not finished, or `out` cannot be written.
        CheckpointError: no best checkpoint, or the bundle does not score like the run.
    """
    config.forms.expect_available()
    with process_group(has_lone_work=True) as ranks:
        set_up_console(ranks)
        with own_folder(config.out, "export", ranks):
            return _run(config, ranks)


def _run(config: ExportConfig, ranks: Ranks) -> Exported:
    trained, job = finished_run(config.run)
    write_run = {"rank": _write_rank_run, "retrieve": _write_retrieve_run}[job]
    with writing(config.out), staged_by_ranks(config.out, MANIFEST, ranks) as folder:
        write = write_run(config, trained, folder, ranks)
        manifest = on_main(ranks, partial(_finish, config, folder, write))
    checked = manifest.checked
    assert checked is not None, "compared"
    num_bytes = sum(facts.num_bytes for facts in manifest.files())
    changes = ", ".join(f"{name} {change:+.5f}" for name, change in checked.change.items())
    step = "" if manifest.step is None else f"step {manifest.step}, "
    what = "test rows" if manifest.ranker else "test users"
    told = (
        f"{config.out}: {step}{len(manifest.tables)} tables ({config.tables}), "
        f"{num_bytes / 2**20:,.1f} MiB. Scores of {checked.num:,} {what}, re-loaded in a process of "
        f"its own without torchrec, differ from the run's by at most {checked.largest_difference:.1e}"
        f"{f' ({changes})' if changes else ''}."
    )
    if ranks.is_main:
        say(told)
    return Exported(config.out, checked.largest_difference, num_bytes, checked.change)


def _finish(config: ExportConfig, folder: str, write: Callable[[], "_Written"]) -> Manifest:
    """Write what tables are not, and hold the bundle against the run."""
    manifest, asked, compare = write()
    manifest = compare(manifest, ask_alone(config.out, folder, asked))
    card = write_file(folder, CARD, card_of(manifest).encode())
    manifest = manifest.model_copy(update={"beside": (*manifest.beside, card)})
    write_manifest(folder, manifest)
    return manifest


class _Written(NamedTuple):
    """A bundle that is written, and what it is held against."""

    manifest: Manifest
    asked: dict[str, Array]
    compare: Callable[[Manifest, Mapping[str, Array]], Manifest]
    """Of the manifest and what the bundle answers, to the manifest that says how good the answers are."""


def _beside(
    config: ExportConfig,
    trained: RunFolder,
    dataset: Dataset,
    events: tuple[Ints, Ints] | None,
    stored: Mapping[str, bytes],
    known: ServedMap | None,
) -> Beside:
    """Return what goes along with a model: (E,) user and item rows of histories, files of its checkpoint."""
    kept = KnownEvents(*events) if events is not None and config.histories else None
    results, own = trained.read_json("metrics.json"), None if known is None else ReadMap(*known)
    return Beside(config.run, results, dataset, kept, own, of_tokenizer(stored))


def _write_rank_run(
    config: ExportConfig, trained: RunFolder, folder: str, ranks: Ranks
) -> Callable[[], _Written]:
    """Write a ranker's tables; return what writes the rest, on one rank."""
    ranked, checkpoints = load_saved(RankConfig, trained.path("config.toml")), trained.path("checkpoints")
    step = best_step(checkpoints)
    if step is None:
        raise CheckpointError(f"{checkpoints}: no best checkpoint to export.")
    at = SavedTensors(checkpoints, step, "model/")

    @cache
    def read() -> tuple[ServedRanker, Beside]:
        """Read the data, of which tables know nothing."""
        dataset, stored = dataset_of(trained, ranked.dataset, config.verify), stored_files(trained, step)
        known = map_of(trained, stored, dataset, config.semantic_ids)
        served = ServedRanker(ranked, dataset, known.ids if known else None, at)
        return served, _beside(config, trained, dataset, served.known_events(), stored, known)

    def table_names() -> dict[str, str]:
        """Return the tables, by one rank that has read the data."""
        return read()[0].tables()

    tables = on_main(ranks, table_names)
    rows = [
        TableRows(name, at.shape(tensor)[0], config.tables, partial(at.rows, tensor))
        for name, tensor in tables.items()
    ]
    written = write_tables(folder, rows, config.shard_rows)
    return lambda: _write_ranker(config, folder, read(), step, written)


def _write_ranker(
    config: ExportConfig,
    folder: str,
    read: tuple[ServedRanker, Beside],
    step: int,
    tables: tuple[TableFacts, ...],
) -> _Written:
    served, beside = read
    ranked, dense = served.config, served.dense()
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
    )
    ranker = write_ranker(folder, parts, config.forms)
    said = write_beside(folder, beside, is_ranker=True)
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


def _write_retrieve_run(
    config: ExportConfig, trained: RunFolder, folder: str, ranks: Ranks
) -> Callable[[], _Written]:
    """Write a retriever's tables; return what writes the rest, on one rank."""
    asked_for = load_saved(RetrieveConfig, trained.path("config.toml"))
    dataset = dataset_of(trained, asked_for.dataset, config.verify)
    served = ServedRetriever(FinishedRun(config.run), asked_for, read_inputs(asked_for), ranks)
    served.place()
    rows = member_tables([_item_rows(member) for member in served.members], config.tables)
    tables = write_tables(folder, rows, config.shard_rows)
    return lambda: _write_retriever(config, trained, folder, dataset, served, tables)


def _write_retriever(
    config: ExportConfig,
    trained: RunFolder,
    folder: str,
    dataset: Dataset,
    served: ServedRetriever,
    tables: tuple[TableFacts, ...],
) -> _Written:
    stored = stored_files(trained, served.step)
    known = map_of(trained, stored, dataset, config.semantic_ids)
    with scratch_folder() as scratch:
        for number, member in enumerate(served.members):
            member.build_catalogue(scratch, number, _vectors(member, number, folder, tables))
        users = served.test_users(config.check_rows)
        _expect_indexable(config.index, served, users)  # before programs are traced, which takes a while
        written = [
            write_member(folder, number, _parts(member, served.listed_by), config.forms)
            for number, member in enumerate(served.members)
        ]
        evaluation = served.config.evaluation
        length = min(max(evaluation.cutoffs), served.data.num_items)
        top = served.lists(users, length)
        index = _write_index(config.index, folder, served, (users, top))
        retriever = RetrieverFacts(
            members=tuple(written),
            items=write_items(folder, served.data.item_counts, served.penalties()),
            index=index.facts if index else None,
            **served.ways(),
        )
        of_index = (index.search, index.lists) if index else None
        reach = reach_of_bundle(served, users, top.items.numpy(), served.data.item_ids, of_index)
        beside = _beside(config, trained, dataset, served.known_events(), stored, known)
        manifest = Manifest(
            kind="retriever",
            method=served.config.model.kind,
            step=served.step,
            retriever=retriever,
            tables=tables,
            **write_beside(folder, beside, is_ranker=False),
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


def _item_rows(member: ServedMember) -> ItemRows:
    """Return what of every item is written."""
    has_vectors = member.asked.model.has_item_vectors
    vectors = member.vectors if has_vectors else None
    return ItemRows(member.asked.data.num_items, member.tokens, member.exported.has_numbers, vectors)


def _vectors(
    member: ServedMember, number: int, folder: str, tables: Sequence[TableFacts]
) -> Callable[[int, int], Tensor]:
    """Return what gives (n, D) item vectors: those that are written, where they are so in full."""
    table = next((each for each in tables if each.name == vectors_of(number)), None)
    if table is None or table.dtype != "fp32" or not is_local(folder):
        return member.vectors
    written = Table(folder, table.model_dump())
    return lambda first, last: torch.from_numpy(written.stretch(first, last))


def _parts(member: ServedMember, listed_by: str) -> MemberParts:
    """Return what of a model is written."""
    asked, config = member.asked, member.config
    live = asked.model.items.live if asked.model.predicts_codes else None
    return MemberParts(
        run=member.run.uri,
        method=config.model.kind,
        exported=member.exported,
        token=member.token_shape,
        has_vectors=asked.model.has_item_vectors,
        codes=member.catalogue.codes,
        sizes=live.sizes if live else (),
        has_trie=listed_by in ("beam", "two_stage"),
        weighs_interests=config.evaluation.interests_of(config.retriever).merge == "weighted",
        max_len=config.sequences.max_len,
    )
