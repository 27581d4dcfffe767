"""`trec-semid assign`: new items through a frozen tokenizer, in a stream.

Memory does not grow with the vectors that are read: a batch of them, 16 bytes a new item (hashes of its
id and tuple), and 16 bytes an existing one.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, field_validator, model_validator
from rich.table import Table

from trec_semid.core.config import Config, Place
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.explain import did_you_mean
from trec_semid.core.paths import arrow_filesystem, exists, join, staged_folder
from trec_semid.core.processes import scratch_folder
from trec_semid.core.text_columns import as_text
from trec_semid.data.folder import writing
from trec_semid.data.new_items import Existing, check_ids, read_existing, read_parquet, read_vectors
from trec_semid.data.raw.columns import Where, as_ids
from trec_semid.data.raw.formats.chunks import Chunk
from trec_semid.data.raw.formats.parts import find_parts
from trec_semid.data.raw.inputs import describe_inputs
from trec_semid.runtime.logs import say, set_up_console, working
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.encode import measure
from trec_semid.tokenizers.generations.drafts import appended, appended_already, batch_of
from trec_semid.tokenizers.generations.manifest import checksum_of, generation_of, tokenizer_checksum
from trec_semid.tokenizers.generations.publish import publish
from trec_semid.tokenizers.generations.store import open_store
from trec_semid.tokenizers.inputs.contents import Contents
from trec_semid.tokenizers.maps.coefficients import FILE as COEFFICIENTS
from trec_semid.tokenizers.maps.coefficients import coefficient_schema, coefficient_table
from trec_semid.tokenizers.maps.origin import Named
from trec_semid.tokenizers.maps.record import DRIFT, QUALITY, TOKENIZER, write_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, expect_finished
from trec_semid.tokenizers.measures.drift import DriftMeter
from trec_semid.tokenizers.methods import load_tokenizer
from trec_semid.tokenizers.tokenizer import Tokenizer
from trec_semid.training.matched_codes import seed_of, verify_codes

_log = logging.getLogger(__name__)
_BATCH_BYTES = 64 * 2**20


class AssignConfig(Config):
    """What `trec-semid assign` reads."""

    tokenizer: Place | None = None
    """Run folder of `tokenize` or of a tuned ranker, a bundle, or a generation of a store; its tokenizer is
    used as it is. Where not given, that of `into`."""
    items: Place
    """New items: a Parquet file, a folder of them, or a glob pattern."""
    out: Place | None = None
    """Folder to write; one that an earlier assign wrote is replaced."""
    into: Place | None = None
    """Store whose next generation the items become, instead of `out`: all of them, or none."""
    item_id: str = "item_id"
    """Column of the ids."""
    update_rate: float = Field(0.0, ge=0, le=1)
    """How far directions move towards new items once these have their codes, 0 not at all; of a tokenizer
    that moves slowly under stored codes (`cosine_rq`, as far as its `max_drift` lets it). `out` then has
    existing items with the codes that they had, new items, and the tokenizer that moved: it is the next
    `tokenizer`."""
    columns: dict[str, str] = {}
    """Modality = column of its vectors; a modality that is not named here has a column of its own name."""

    @field_validator("tokenizer", "out", "into", mode="before")
    @classmethod
    def _empty_is_none(cls, place: object) -> object:
        return None if place == "" else place

    @model_validator(mode="after")
    def _writes_one_place(self) -> Self:
        if (self.out is None) == (self.into is None):
            raise ValueError("give out, a folder to write, or into, a store to append to: one of the two")
        if self.tokenizer is None and self.into is None:
            raise ValueError("tokenizer: not given: name the run folder of trec-semid tokenize")
        if self.update_rate and self.into is not None:
            raise ValueError("update_rate: a store's tokenizer stays: set update_rate = 0, or give out")
        return self


class Assigned(NamedTuple):
    """What an assign run comes to."""

    out: str
    drift: dict[str, Any]
    """The content of `drift.json`."""


def run(config: AssignConfig) -> Assigned:
    """Write semantic IDs and the drift report of new items; what this very call wrote before stays.

    Raises:
        ConfigError: a column is mapped for a modality that the tokenizer does not read.
        DataError: input that cannot be used; nothing is written then.
    """
    set_up_console()
    if config.into is not None:
        with own_folder(config.into, "generations", inputs=[config.items]):
            return _append(config, config.into)
    out, tokenizer = str(config.out), str(config.tokenizer)
    with own_folder(out, "assign", inputs=[config.items]):
        assigned = _assign_items(config, expect_finished(tokenizer), out)
        _log.info("wrote %s", out)
        return assigned


def _append(config: AssignConfig, into: str) -> Assigned:
    """Make the items the next generation of a store; what this very call appended before stays."""
    store = open_store(into)
    seen, current = store.newest(), store.current()
    folder = store.folder(current.number)
    if config.tokenizer and config.tokenizer != into:
        used = tokenizer_checksum(join(expect_finished(config.tokenizer), TOKENIZER))
        if used != current.tokenizer:
            raise ConfigError(
                f"tokenizer: {config.tokenizer} is not that of {into}, generation {current.number}. Leave it "
                "out, or publish its run first."
            )
    items = [each["sha256"] for each in _fingerprints([config.items])]
    checksum = checksum_of([items, config.item_id, dict(config.columns)])
    done = appended_already(store, seen, current, checksum)
    if done is None:
        with scratch_folder() as scratch:
            out = _assign_items(config, folder, join(scratch, "assigned")).out
            batch = batch_of(config.items, out, join(out, FILE), checksum)
            done = publish(into, seen, appended(store, seen, batch))
        say(f"{into}: generation {done.number}, {done.change.added:,} items added to {done.items:,}")
    else:
        _log.info("generation %d of %s has these items already", done.number, into)
    place = store.folder(done.number)
    return Assigned(place, RunFolder(place, "assign").read_json(DRIFT))


def _assign_items(config: AssignConfig, folder: str, out: str) -> Assigned:
    """Write the codes of new items, by the tokenizer of a folder, into another one."""
    parts = find_parts(config.items)
    source = RunFolder(folder, "tokenize")
    of = verify_codes(_expect_folder(source))
    quality, inputs = _quality(source), _fingerprints([config.items, source.path(FILE)])
    if _is_finished(config, inputs, out):
        _log.info("%s is already done", out)
        return Assigned(out, RunFolder(out, "assign").read_json(DRIFT))
    tokenizer = load_tokenizer(source.path("tokenizer"))
    update = _Update(tokenizer, config.update_rate) if config.update_rate else None
    if update and _has_slots(folder):
        raise ConfigError(f"update_rate: {folder} has slots, which are not the tokenizer's: name its run.")
    columns = _columns(config, tokenizer)
    existing = read_existing(source.path(FILE), tokenizer.codebook_sizes, has_slots=_has_slots(folder))
    num_items = check_ids(parts, config.item_id, existing)
    with writing(out), staged_folder(out, "metrics.json") as staging:
        chunks = read_parquet(parts, [config.item_id, *columns.values()], _batch_rows(tokenizer))
        meter = DriftMeter(quality, tokenizer.codebook_sizes)
        with _writers(staging, tokenizer) as writers, working("assign", num_items) as work:
            if update:
                _copy_existing(source, writers)
            for chunk in chunks:
                contents = _contents(chunk, columns, tokenizer)
                tables = _assign(chunk, config.item_id, contents, tokenizer, meter)
                for writer, table in zip(writers, tables, strict=True):
                    writer.write_table(table)
                if update:
                    update.add(contents)
                work.advance(chunk.table.num_rows)
        about = {"tokenizer_run": folder, "tokenizer_checksum": tokenizer_checksum(source.path(TOKENIZER))}
        drift = _describe(quality, about, inputs, meter.report(existing.keys), existing)
        if update:
            drift["update"] = update.write(staging, quality)
        _finish(config, staging, folder, of, drift)
    say(summary(drift))
    return Assigned(out, drift)


def _has_slots(folder: str) -> bool:
    """Return whether codes of a folder have one more position than their tokenizer gives."""
    generation = generation_of(folder)
    return generation is not None and generation.collisions == "slots"


def _expect_folder(source: RunFolder) -> str:
    """Return the run's folder, where it has a tokenizer."""
    if not exists(source.path(FILE)) or not exists(source.path(TOKENIZER)):
        remedy = "Name the run folder of trec-semid tokenize or of a tuned ranker, or a bundle that has one"
        raise DataError("no tokenizer here: no such file", file=source.path(TOKENIZER), remedy=remedy)
    return source.uri


def _fingerprints(inputs: list[str]) -> list[dict[str, Any]]:
    """Return what identifies the files by content, whenever they were written."""
    return [{**each, "modified": None} for each in describe_inputs(inputs)]


def _quality(source: RunFolder) -> dict[str, Any]:
    quality = source.read_json("quality.json")
    if "training_errors" not in quality:
        raise DataError(
            "does not say how training's errors are distributed",
            file=source.path("quality.json"),
            field="training_errors",
            remedy="It is of an older version: tokenize again",
        )
    return quality


def _is_finished(config: AssignConfig, inputs: list[dict[str, Any]], out: str) -> bool:
    folder = RunFolder(out, "assign")
    return folder.is_finished(config) and folder.read_json(DRIFT)["inputs"] == inputs


def _columns(config: AssignConfig, tokenizer: Tokenizer) -> dict[str, str]:
    for name in config.columns:
        if name not in tokenizer.inputs:
            known = f"It reads: {', '.join(tokenizer.inputs)}."
            raise ConfigError(
                f"columns: the tokenizer reads no '{name}'{did_you_mean(name, tokenizer.inputs)}. {known}"
            )
    return {name: config.columns.get(name, name) for name in tokenizer.inputs}


def _batch_rows(tokenizer: Tokenizer) -> int:
    widest = max(sum(tokenizer.codebook_sizes), sum(tokenizer.dims.values()))
    return max(1, min(1 << 16, _BATCH_BYTES // (4 * widest)))


@contextmanager
def _writers(folder: str, tokenizer: Tokenizer) -> Iterator[list[pq.ParquetWriter]]:
    """Open the map, as `SemanticIds` reads it, and, where codes do not say all, what `Coefficients` reads."""
    sizes = ",".join(map(str, tokenizer.codebook_sizes))
    schema = pa.schema(
        [("item_id", pa.string()), ("codes", pa.list_(pa.int32()))], metadata={"codebook_sizes": sizes}
    )
    schemas = {FILE: schema}
    if bits := tokenizer.coefficient_bits:
        schemas[COEFFICIENTS] = coefficient_schema(bits, len(tokenizer.codebook_sizes))
    with ExitStack() as files:
        places = [(arrow_filesystem(join(folder, name)), schema) for name, schema in schemas.items()]
        yield [
            files.enter_context(pq.ParquetWriter(inner, schema, filesystem=fs))
            for (fs, inner), schema in places
        ]


@torch.no_grad()
def _assign(
    chunk: Chunk, id_column: str, contents: Contents, tokenizer: Tokenizer, meter: DriftMeter
) -> list[pa.Table]:
    """Return the rows of the map and, where codes do not say all, of what is stored beside them."""
    chosen = tokenizer.encode(contents)
    errors = measure(tokenizer, contents, chosen).errors
    codes = chosen.numpy().astype(np.int32)
    meter.add(codes, errors.numpy(), contents.present.numpy())
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * codes.shape[1]
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes.reshape(-1)))
    ids = as_ids(chunk.table.column(id_column), Where(chunk.origins, id_column))
    sizes = ",".join(map(str, tokenizer.codebook_sizes))
    table = pa.table({"item_id": ids, "codes": lists}, metadata={"codebook_sizes": sizes})
    beside = tokenizer.coefficients(contents, chosen)
    return [table, *([] if beside is None else [coefficient_table(ids, beside.numpy())])]


class _Update:
    """Moves a tokenizer's directions by new items, which have the codes of before."""

    def __init__(self, tokenizer: Tokenizer, rate: float) -> None:
        """Take a tokenizer that can move.

        Raises:
            ConfigError: it cannot.
        """
        self._tokenizer, self._rate = tokenizer, rate
        widths = tokenizer.dims.values()
        none = Contents(
            tuple(torch.zeros(0, width) for width in widths), torch.zeros(0, len(widths), dtype=torch.bool)
        )
        sums = tokenizer.sums_for_update(none)
        if sums is None:
            kind = tokenizer.config.model_dump()["kind"]
            raise ConfigError(
                f"update_rate: codes of '{kind}' cannot move under stored ones: set update_rate = 0, or "
                "tokenize with cosine_rq."
            )
        self._sums = sums

    def add(self, contents: Contents) -> None:
        """Take in some new items."""
        sums = self._tokenizer.sums_for_update(contents)
        assert sums is not None, "asked before"
        self._sums += sums

    def write(self, folder: str, quality: Mapping[str, Any]) -> dict[str, Any]:
        """Move, write the tokenizer and what is known of the items it was fitted on; return what moved."""
        moved = self._tokenizer.move(self._sums, self._rate)
        self._tokenizer.save(join(folder, TOKENIZER))
        told = {"rate": self._rate, **moved._asdict()}
        RunFolder(folder, "assign").write_json(QUALITY, {**quality, "update": told})
        return told


def _copy_existing(source: RunFolder, writers: Sequence[pq.ParquetWriter]) -> None:
    """Write what existing items have: their codes, and what is stored beside them, stay as they are."""
    for name, writer in zip((FILE, COEFFICIENTS), writers, strict=False):
        fs, inner = arrow_filesystem(source.path(name))
        with pq.ParquetFile(inner, filesystem=fs) as existing:
            for batch in existing.iter_batches(columns=writer.schema.names):
                writer.write_table(pa.Table.from_batches([batch]).cast(writer.schema))


def _contents(chunk: Chunk, columns: Mapping[str, str], tokenizer: Tokenizer) -> Contents:
    """Return what the tokenizer reads of a batch, modalities in its order."""
    read = [read_vectors(chunk, columns[name], dim) for name, dim in tokenizer.inputs.items()]
    vectors = tuple(torch.from_numpy(values) for values, _ in read)
    present = torch.from_numpy(np.stack([present for _, present in read], axis=1))
    return tokenizer.complete(Contents(vectors, present))


def _describe(
    quality: Mapping[str, Any],
    about: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    drift: dict[str, Any],
    existing: Existing,
) -> dict[str, Any]:
    known = {"tokenizer": quality["tokenizer"], **about}
    return {**known, "existing_items": len(existing.ids), **drift, "inputs": list(inputs)}


def _finish(config: AssignConfig, staging: str, source: str, of: Named, drift: dict[str, Any]) -> None:
    folder = RunFolder(staging, "assign")
    folder.start(config)
    folder.write_json(DRIFT, drift)
    every, collisions = drift["errors"]["every_modality"], drift["collisions"]
    metrics = {f"new/collisions/{key}": collisions[f"{key}_share"] for key in ("with_existing", "among_new")}
    if every:
        metrics |= {"new/reconstruction": every["mean"], "new/outside_share": every["outside_share"]}
    known: dict[str, Any] = {
        "seed": seed_of(source),
        "dataset": of.name,
        "dataset_checksum": of.checksum,
    }
    write_record(staging, **known)
    folder.write_metrics(
        metrics,
        **known,
        counts={"new/items": drift["items"], "existing/items": drift["existing_items"]},
    )


def summary(drift: dict[str, Any]) -> str:
    """Return `drift.json` in short: new items beside what the tokenizer was fitted on."""
    collisions = drift["collisions"]
    lines = [
        f"{drift['tokenizer']}: {drift['items']:,} new items, {drift['existing_items']:,} existing ones",
        _errors(drift),
        _positions(drift),
        f"same tuple as an existing item: {collisions['with_existing_share']:.1%}; as another new one: "
        f"{collisions['among_new_share']:.1%} (largest group {collisions['largest_new_group']:,})",
    ]
    return "\n".join(lines)


def _errors(drift: dict[str, Any]) -> str:
    table = Table("content", "items", "missing", "before", "error", "training", "outside", "shift", "chance")
    table.caption = "outside: beyond training's 99 % quantile; shift, chance: divergence [bits]"
    named = {"all of it": drift["errors"]["every_modality"], **drift["errors"]["modalities"]}
    for name, errors in named.items():
        missing = drift["missing"].get(name)
        shares = [f"{missing[key]:.1%}" for key in ("new_share", "existing_share")] if missing else ["", ""]
        if not errors:
            table.add_row(name, "0", *shares)
            continue
        numbers = [f"{errors[key]:.4f}" for key in ("mean", "training_mean")]
        numbers += [f"{errors['outside_share']:.1%}", *_bits(errors)]
        table.add_row(name, f"{errors['items']:,}", *shares, *numbers)
    return as_text(table)


def _positions(drift: dict[str, Any]) -> str:
    table = Table("position", "shift", "chance", "on unused codes", caption="use of codes, new against old")
    for use in drift["positions"]:
        table.add_row(use["name"], *_bits(use), f"{use['new_items_on_unused_codes']:,}")
    return as_text(table)


def _bits(compared: Mapping[str, float]) -> list[str]:
    """Return how far new items are from training's, and how far as many of training's would be by chance."""
    return [f"{compared[key]:.3f}" for key in ("divergence_bits", "divergence_by_chance_bits")]
