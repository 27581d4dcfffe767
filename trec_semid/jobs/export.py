"""`trec-semid export`: a finished run to a bundle for serving, checked first."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.numpy
import torch
from pydantic import PositiveInt

from trec_semid.checkpoints.folder import best_step, read_files
from trec_semid.checkpoints.manifest import (
    MANIFEST,
    Checked,
    IndexFacts,
    ListedBy,
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
from trec_semid.core.paths import exists, join, read_bytes, shared_copy, staged_folder, write_bytes
from trec_semid.core.processes import scratch_folder
from trec_semid.data.folder import writing
from trec_semid.data.schema import Dataset, VerifyConfig, open_dataset
from trec_semid.metrics.target_positions import TopItems
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.ranks import process_group
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.ann import IndexConfig, NoIndexConfig
from trec_semid.search.retrieved import agreement
from trec_semid.serving.check import asked_of_ranker, asked_of_retriever
from trec_semid.serving.writing.card import CARD, card_of
from trec_semid.serving.writing.comparison import compare_lists, compare_scores
from trec_semid.serving.writing.dataset import (
    KnownEvents,
    write_dataset,
    write_files,
    write_map,
    write_reader,
)
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.index import expect_indexable, write_index
from trec_semid.serving.writing.rankers import RankerParts, write_ranker
from trec_semid.serving.writing.retrievers import MemberParts, write_items, write_member
from trec_semid.serving.writing.settings import WriteSettings
from trec_semid.tokenizers.generations.manifest import GENERATION, read_before
from trec_semid.tokenizers.maps.record import verify_record
from trec_semid.tokenizers.maps.semantic_ids import FILE
from trec_semid.training.finished import FinishedRun
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.retrieval.setup import RetrieveConfig, read_inputs
from trec_semid.training.run import QUALITY
from trec_semid.training.served.map import ServedMap, of_tokenizer, served_map
from trec_semid.training.served.ranker import ServedRanker
from trec_semid.training.served.retriever import ServedMember, ServedRetriever, TestUsers

_TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.05, "int4": 1.0}
"""Largest difference of a probability to the run's own prediction; of four bits the metrics tell."""
_OF_LISTS = 1e-4
"""The same of scores of items, of tables in full; of others the metrics tell."""


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


class _Written(NamedTuple):
    """A bundle that is written, and what it is held against."""

    manifest: Manifest
    asked: dict[str, Array]
    compare: Any
    """Of what the bundle answers, to `Checked`."""


def _run(config: ExportConfig) -> Exported:
    trained, job = _finished(config.run)
    write = {"rank": _write_rank_run, "retrieve": _write_retrieve_run}[job]
    with writing(config.out), staged_folder(config.out, MANIFEST, in_place=False) as folder:
        manifest, asked, compare = write(config, trained, folder)
        checked: Checked = compare(_ask(config.out, folder, asked))
        card = write_file(folder, CARD, card_of(manifest.model_copy(update={"checked": checked})).encode())
        beside = (*manifest.beside, card)
        manifest = manifest.model_copy(update={"checked": checked, "beside": beside})
        write_manifest(folder, manifest)
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


def _dataset(config: ExportConfig, trained: RunFolder, uri: str) -> Dataset:
    dataset = open_dataset(uri, config.verify)
    if dataset.facts.checksum != trained.read_json("metrics.json")["dataset_checksum"]:
        problem = "not the data that the run was trained on (its checksum differs)"
        raise DataError(problem, file=uri, remedy="Prepare that data again, or train again")
    return dataset


def _stored(trained: RunFolder, step: int | None) -> dict[str, bytes]:
    """Return the files beside the tensors of a checkpoint, as they were when it was the best."""
    if step is None:
        return {}
    stored = read_files(trained.path("checkpoints"), step)
    if exists(trained.path(FILE)):
        verify_record(trained.uri)
    if exists(trained.path(QUALITY)):  # of the codes that tuning came to
        stored[QUALITY] = read_bytes(trained.path(QUALITY))
    return stored


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
    }


def _write_rank_run(config: ExportConfig, trained: RunFolder, folder: str) -> _Written:
    ranked, checkpoints = load_saved(RankConfig, trained.path("config.toml")), trained.path("checkpoints")
    step = best_step(checkpoints)
    if step is None:
        raise CheckpointError(f"{checkpoints}: no best checkpoint to export.")
    dataset, stored = _dataset(config, trained, ranked.dataset), _stored(trained, step)
    known = _map(config, trained, stored, dataset)
    served = ServedRanker(
        ranked, dataset, known.ids if known else None, SavedTensors(checkpoints, step, "model/")
    )
    parts = RankerParts(
        served.data.features,
        ranked.representation,
        ranked.features,
        ranked.history,
        ranked.tables.pooling,
        ranked.tables.dim,
        served.dense(),
        served.stretches,
    )
    ranker, tables = write_ranker(folder, parts, config.settings)
    said = _said(config, trained, folder, dataset, _Beside(served.known_events(), stored, known))
    model: dict[str, Any] = {"method": ranked.model.kind, "step": step, "ranker": ranker, "tables": tables}
    manifest = Manifest(kind="ranker", **model, **said)
    write_manifest(folder, manifest)
    rows = served.test_rows(config.run, config.check_rows)

    def compare(answered: Mapping[str, Array]) -> Checked:
        """Hold (R,) probabilities against the run's own."""
        checked = compare_scores(answered["scores"], rows.predicted, rows.labels, rows.users)
        if not checked.largest_difference <= _TOLERANCE[config.tables]:
            told = f"{checked.largest_difference:.4f} away from the run's predictions"
            raise CheckpointError(
                f"{config.out}: the bundle scores {told} (allowed: {_TOLERANCE[config.tables]}). Nothing was "
                "written. Export as fp32, or rank again."
            )
        return checked

    histories = rows.history, rows.history_lengths
    return _Written(manifest, asked_of_ranker(rows.users, rows.items, histories), compare)


def _write_retrieve_run(config: ExportConfig, trained: RunFolder, folder: str) -> _Written:
    asked_for = load_saved(RetrieveConfig, trained.path("config.toml"))
    dataset = _dataset(config, trained, asked_for.dataset)
    with process_group() as ranks, scratch_folder() as plans:
        run = FinishedRun(config.run)
        served = ServedRetriever(run, asked_for, read_inputs(asked_for), ranks)
        stored = _stored(trained, served.step)
        known = _map(config, trained, stored, dataset)
        served.place(plans)
        written = [
            write_member(folder, number, _parts(member), config.settings)
            for number, member in enumerate(served.members)
        ]
        evaluation = asked_for.evaluation
        users = served.test_users(config.check_rows)
        length = min(max(evaluation.cutoffs), served.data.num_items)
        top = served.lists(users, length)
        prior = evaluation.code_prior
        has_prior = served.listed_by != "exact" and evaluation.has_code_prior and prior is not None
        retriever = RetrieverFacts(
            members=tuple(facts for facts, _ in written),
            listed_by=cast("ListedBy", served.listed_by),
            run_listed_by=served.run_listed_by,
            max_len=asked_for.sequences.max_len,
            masks_history=evaluation.masks_history,
            beam_width=evaluation.beam_width,
            candidates=evaluation.candidates,
            code_prior_share=prior.item_share if prior and has_prior else None,
            items=write_items(folder, served.data.item_counts, served.penalties()),
            index=_write_index(config.index, folder, served, (users, top)),
        )
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

    def compare(answered: Mapping[str, Array]) -> Checked:
        """Hold lists (B, N) against those of the run's model."""
        checked = compare_lists(
            (answered["items"], answered["scores"]),
            top.scores.numpy(),
            (users.targets, users.num_targets),
            users.positions,
            [cutoff for cutoff in evaluation.cutoffs if cutoff <= length],
        )
        if config.tables == "fp32" and not checked.largest_difference <= _OF_LISTS:
            raise CheckpointError(
                f"{config.out}: scores of the bundle's lists are {checked.largest_difference:.4g} from the "
                f"run's (allowed: {_OF_LISTS}). Nothing was written. It is a fault of the export: report it."
            )
        return checked

    histories, masked = (users.histories, users.history_lengths), (users.masked, users.num_masked)
    return _Written(manifest, asked_of_retriever(histories, masked, length), compare)


def _write_index(
    config: IndexConfig | None, folder: str, served: ServedRetriever, exact: tuple[TestUsers, TopItems]
) -> IndexFacts | None:
    """Write an index where one is asked for; its recall is against exact lists of some users."""
    if config is None or isinstance(config, NoIndexConfig):
        return None
    users, top = exact
    catalogues = [member.catalogue for member in served.members]
    expect_indexable(catalogues, served.listed_by, lambda: served.is_one_vector(users))
    facts, search = write_index(folder, config, catalogues[0], torch.from_numpy(served.penalties()))
    listed = served.lists(users, top.items.shape[1], search).items
    recall = {
        f"recall@{cutoff}": float(agreement(listed[:, :cutoff], top.items[:, :cutoff]).mean())
        for cutoff in served.config.evaluation.cutoffs
        if cutoff <= top.items.shape[1]
    }
    return facts.model_copy(update={"recall": recall})


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


def _ask(out: str, folder: str, asked: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the bundle alone answers, in a process of its own that must not need torchrec."""
    with shared_copy(folder) as bundle, scratch_folder() as scratch:
        place, answered = join(scratch, "asked.safetensors"), join(scratch, "answered.safetensors")
        kept = {name: np.ascontiguousarray(values) for name, values in asked.items()}
        write_bytes(place, safetensors.numpy.save(kept))
        words = ["-m", "trec_semid.serving.check", bundle, place, answered]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise CheckpointError(f"{out}: the bundle cannot be read back: {done.stderr.strip()[-500:]}")
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if said["torchrec"]:
            raise CheckpointError(f"{out}: reading the bundle needed torchrec.")
        return safetensors.numpy.load(read_bytes(answered))
