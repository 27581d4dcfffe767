"""`trec-semid predict`: lists or probabilities of a bundle for every row of Parquet files, for nightly jobs.

Memory is that of the bundle and of one batch of rows, whatever the input.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import PositiveInt, model_validator

from trec_semid.core.config import Config, Place
from trec_semid.core.errors import ConfigError
from trec_semid.core.identity import MayChange, SamePlace
from trec_semid.core.paths import arrow_filesystem, exists, make_folder, move, partial_name
from trec_semid.data.new_items import read_parquet
from trec_semid.data.raw.columns import Where, as_ids
from trec_semid.data.raw.formats.parts import find_parts
from trec_semid.data.raw.inputs import describe_inputs
from trec_semid.jobs.verbs import job_named
from trec_semid.runtime.logs import say, set_up_console, working
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import Ranks, barrier, gather_objects, process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.serving.batch import (
    AskedColumns,
    Piece,
    find_pieces,
    lists_asked,
    read_piece,
    scores_asked,
    table_of_lists,
    table_of_scores,
)
from trec_semid.serving.engine import Engine, Filters, Search, open_engine
from trec_semid.tokenizers.generations.manifest import checksum_of
from trec_semid.training.run import on_main, refuse_other_run

ANSWERS = "predictions"
_ID_ROWS = 1 << 16


class FiltersConfig(Config):
    """Which items a list may hold."""

    allowed: Annotated[Place | None, SamePlace()] = None
    """Parquet whose column `item_id` names all that may be listed; every item where not given."""
    forbidden: Annotated[Place | None, SamePlace()] = None
    """The same of items that may not be."""
    fields: dict[str, tuple[str, ...]] = {}
    """Item field to values, of which a listed item must have one."""


class PredictConfig(Config):
    """What `trec-semid predict` reads."""

    bundle: Annotated[Place | None, MayChange()] = None
    """Bundle of `trec-semid export`; what it holds counts, wherever it lies."""
    run: Annotated[Place | None, SamePlace()] = None
    """Finished run of `rank` or `retrieve` instead, which is exported to OUT-bundle first."""
    asked: Annotated[Place, SamePlace()]
    """Parquet: a file, a folder or a pattern. A row is a user whose list is asked for, or items of a user
    whose probabilities are."""
    out: Annotated[Place, MayChange()]
    """Folder to write: `predictions/part-*.parquet`, one for each row group of the input, in its order."""
    columns: AskedColumns = AskedColumns()
    """What columns are called; `item` or `candidates` ask for probabilities."""
    n: PositiveInt = 100
    """Items of a list."""
    search: Search | None = None
    """How lists are made; the bundle's own way where not given."""
    filters: FiltersConfig = FiltersConfig()
    """Of lists."""
    batch_rows: Annotated[PositiveInt, MayChange()] = 1024
    """Rows that are answered together."""

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.bundle is None) == (self.run is None):
            raise ValueError("bundle, run: name one of the two")
        if self.columns.item is not None and self.columns.candidates is not None:
            raise ValueError("columns.item, columns.candidates: name one of the two, or neither for lists")
        if self.columns.user is None and self.columns.history is None:
            raise ValueError("columns.user, columns.history: name one at least: whom is it for?")
        if self.columns.asks_for_scores and (self.search or self.filters != FiltersConfig()):
            raise ValueError("search, filters: are of lists: leave them out where items are given")
        return self


class Predicted(NamedTuple):
    """What a job came to."""

    out: str
    counts: dict[str, int]


def run(config: PredictConfig) -> Predicted:
    """Answer every row, or leave a finished job as it is; a killed one goes on with the pieces it lacks.

    Raises:
        SemidError: bundle, input or folder that cannot be used.
    """
    set_up_console()
    with process_group() as ranks, own_folder(config.out, "predict", ranks):
        bundle = config.bundle or on_main(ranks, partial(_exported, config))
        engine = open_engine(bundle)  # ranks share the reading of what is verified: all of them call
        try:
            return _answer_all(config, engine, ranks)
        finally:
            engine.close()


def _exported(config: PredictConfig) -> str:
    """Return the bundle of a run, written beside the answers where it is not there already."""
    place = f"{config.out.rstrip('/')}-bundle"
    job = job_named("export")
    job.run(job.config.model_validate({"run": config.run, "out": place}))
    return place


def _answer_all(config: PredictConfig, engine: Engine, ranks: Ranks) -> Predicted:
    folder = RunFolder(config.out, "predict")
    inputs = on_main(ranks, partial(_checksums, config, engine))
    if on_main(ranks, partial(folder.is_finished, config, inputs)):
        if ranks.is_main:
            say(f"{config.out} is already done")
        return Predicted(config.out, folder.read_json("metrics.json")["counts"])
    pieces = on_main(ranks, partial(_begin, config, folder, inputs))
    filters = _filters(config.filters)
    own = list(enumerate(pieces))[ranks.rank :: ranks.world_size]
    counts: Counter[str] = Counter()
    with working("predict", sum(piece.num_rows for _, piece in own), shown=ranks.is_main) as work:
        for number, piece in own:
            counts += _answer(config, engine, filters, folder.path(*_place(number)), piece)
            work.advance(piece.num_rows)
    total = sum((Counter(each) for each in gather_objects(dict(counts))), Counter[str]())
    if ranks.is_main:
        facts = engine.manifest
        told = {f"asked/{name}": total[name] for name in sorted({"rows", *total})}
        folder.write_metrics(
            {}, seed=0, dataset=facts.dataset, dataset_checksum=facts.dataset_checksum, counts=told
        )
        say(_summary(config, len(pieces), total))
    barrier()
    return Predicted(config.out, folder.read_json("metrics.json")["counts"])


def _checksums(config: PredictConfig, engine: Engine) -> dict[str, str]:
    """Return what the answers depend on, by content."""
    places = [config.asked, config.filters.allowed, config.filters.forbidden]
    read = describe_inputs([place for place in places if place is not None])
    return {"bundle": engine.version, "asked": checksum_of([[each["file"], each["sha256"]] for each in read])}


def _begin(config: PredictConfig, folder: RunFolder, inputs: dict[str, str]) -> list[Piece]:
    """Return all pieces, and say whose folder it is; answers of another config or input are not mixed in."""
    pieces = find_pieces(find_parts(config.asked), config.columns)
    refuse_other_run(folder, config)
    if exists(folder.path("run.json")) and folder.read_json("run.json").get("inputs") != inputs:
        raise ConfigError(
            f"{folder.uri}: holds answers to another input, or by another bundle. Set another `out`, or "
            "remove that folder."
        )
    goes_on = exists(folder.path("run.json"))
    folder.start(config, inputs, goes_on=goes_on)
    make_folder(folder.path(ANSWERS))
    return pieces


def _place(number: int) -> tuple[str, str]:
    return ANSWERS, f"part-{number:06d}.parquet"


def _answer(
    config: PredictConfig, engine: Engine, filters: Filters, place: str, piece: Piece
) -> Counter[str]:
    """Write the answers of a piece at once, where they are not there already; return what is counted."""
    if exists(place):
        with _parquet(place) as written:
            return _counted(written.read(columns=["basis"]))
    partial_place, counts = partial_name(place), Counter[str]()
    fs, inner = arrow_filesystem(partial_place)
    writer: pq.ParquetWriter | None = None
    try:
        for table in _tables(config, engine, filters, piece):
            writer = writer or pq.ParquetWriter(inner, table.schema, filesystem=fs)
            writer.write_table(table)
            counts += _counted(table)
    finally:
        if writer:
            writer.close()
    move(partial_place, place)
    return counts


def _tables(config: PredictConfig, engine: Engine, filters: Filters, piece: Piece) -> Iterator[pa.Table]:
    """Yield the answers of a piece, batch by batch."""
    columns = config.columns
    for chunk in read_piece(piece, columns, config.batch_rows):
        if columns.asks_for_scores:
            asked = scores_asked(chunk, columns)
            yield table_of_scores(chunk, columns, asked, engine.rank(asked.asked))
        else:
            lists = lists_asked(chunk, columns, n=config.n, filters=filters, search=config.search)
            yield table_of_lists(chunk, columns, engine.retrieve(lists))


def _counted(table: pa.Table) -> Counter[str]:
    counted: Any = table.column("basis").value_counts().to_pylist()
    return Counter({"rows": table.num_rows}) + Counter({each["values"]: each["counts"] for each in counted})


def _parquet(place: str) -> pq.ParquetFile:
    fs, inner = arrow_filesystem(place)
    return pq.ParquetFile(inner, filesystem=fs)


def _filters(config: FiltersConfig) -> Filters:
    allowed = None if config.allowed is None else _items_of(config.allowed)
    forbidden = () if config.forbidden is None else _items_of(config.forbidden)
    return Filters(allowed, forbidden, config.fields)


def _items_of(place: str) -> tuple[str, ...]:
    """Return the item ids of a Parquet file."""
    chunks = read_parquet(find_parts(place), ["item_id"], _ID_ROWS)
    ids = [as_ids(chunk.table.column("item_id"), Where(chunk.origins, "item_id")) for chunk in chunks]
    return tuple(item for each in ids for item in each.to_pylist())


def _summary(config: PredictConfig, num_pieces: int, counts: Counter[str]) -> str:
    bases = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts) if name != "rows")
    return f"{config.out}: {counts['rows']:,} rows in {num_pieces:,} files ({bases})"
