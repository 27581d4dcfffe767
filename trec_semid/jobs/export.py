"""`trec-semid export`: a finished run to a bundle for serving, checked first."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from pydantic import PositiveInt

from trec_semid.checkpoints.folder import best_step, read_files
from trec_semid.checkpoints.manifest import (
    MANIFEST,
    Checked,
    FeatureFacts,
    Manifest,
    RankerFacts,
    TableType,
    write_file,
    write_manifest,
)
from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.arrays import Array
from trec_semid.core.config import Place, load_saved
from trec_semid.core.errors import CheckpointError, ConfigError, DataError
from trec_semid.core.paths import exists, join, read_bytes, shared_copy, staged_folder, write_bytes
from trec_semid.core.processes import scratch_folder
from trec_semid.data.folder import writing
from trec_semid.data.histories import may_stand_in_history
from trec_semid.data.ranking.dataset import Codes, RankingData
from trec_semid.data.schema import Dataset, VerifyConfig, open_dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.metrics.auc import auc
from trec_semid.metrics.gauc import gauc
from trec_semid.models.methods import build_dense_ranker
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.runs import RunFolder
from trec_semid.serving.card import CARD, card_of
from trec_semid.serving.check import asked_of_ranker
from trec_semid.serving.programs import write_program
from trec_semid.serving.tables import write_table
from trec_semid.serving.writing import KnownEvents, write_dataset, write_files, write_map, write_reader
from trec_semid.tokenizers.generations.manifest import GENERATION, ReadGeneration, read_before, refusal
from trec_semid.tokenizers.generations.store import resolve
from trec_semid.tokenizers.maps.record import verify_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds, semantic_ids_file
from trec_semid.training.finetune.finetuning import TOKENIZER
from trec_semid.training.matched_codes import read_semantic_ids
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.run import QUALITY

_TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.05, "int4": 1.0}
"""Largest difference of a probability to the run's own prediction; of four bits the metrics tell."""
_ROWS_AT_ONCE = 1 << 18


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
    histories: bool = True
    """Whether what users have done goes along, so that a request needs no more than the user's id."""
    check_rows: PositiveInt = 4096
    """Rows, or users, of the test split whose scores must be those of the run."""


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
    with own_folder(config.out, "export"):
        return _run(config)


def _run(config: ExportConfig) -> Exported:
    trained = RunFolder(config.run, "rank")
    _expect_rank_run(trained)
    ranked = load_saved(RankConfig, trained.path("config.toml"))
    with writing(config.out), staged_folder(config.out, MANIFEST, in_place=False) as folder:
        manifest, data = _write(config, ranked, trained, folder)
        checked = _check(config, data, folder)
        card = write_file(folder, CARD, card_of(manifest.model_copy(update={"checked": checked})).encode())
        beside = (*manifest.beside, card)
        manifest = manifest.model_copy(update={"checked": checked, "beside": beside})
        write_manifest(folder, manifest)
    num_bytes = sum(facts.num_bytes for facts in manifest.files())
    changes = ", ".join(f"{name} {change:+.5f}" for name, change in checked.change.items())
    say(
        f"{config.out}: step {manifest.step}, {len(manifest.tables)} tables ({config.tables}), "
        f"{num_bytes / 2**20:,.1f} MiB. Scores of {checked.num:,} test rows, re-loaded in a process of "
        f"its own without torchrec, differ from the run's by at most {checked.largest_difference:.1e}"
        f"{f' ({changes})' if changes else ''}."
    )
    return Exported(config.out, checked.largest_difference, num_bytes, checked.change)


def _expect_rank_run(trained: RunFolder) -> None:
    if not exists(trained.path("metrics.json")):
        raise DataError("not a finished run", file=trained.path("metrics.json"), remedy="Run it to its end")
    job = trained.read_json("run.json").get("job")
    if job != "rank":
        remedy = "Export the run of a ranker"
        raise DataError(
            "not a rank run", file=trained.path("run.json"), field="job", value=job, remedy=remedy
        )


def _write(
    config: ExportConfig, ranked: RankConfig, trained: RunFolder, folder: str
) -> tuple[Manifest, RankingData]:
    checkpoints = trained.path("checkpoints")
    step = best_step(checkpoints)
    if step is None:
        raise CheckpointError(f"{checkpoints}: no best checkpoint to export.")
    stored = read_files(checkpoints, step)
    facts, dataset = trained.read_json("metrics.json"), open_dataset(ranked.dataset, config.verify)
    if dataset.facts.checksum != facts["dataset_checksum"]:
        problem = "not the data that the run was trained on (its checksum differs)"
        raise DataError(problem, file=ranked.dataset, remedy="Prepare that data again, or rank again")
    if exists(trained.path(FILE)):
        verify_record(trained.uri)
    if exists(trained.path(QUALITY)):  # of the codes that tuning came to
        stored[QUALITY] = read_bytes(trained.path(QUALITY))
    read = read_before(trained.read_json("run.json")) if GENERATION in stored else None
    known = _map_of(config, read, stored, dataset)
    codes = Codes(known.ids.codes, known.ids.sizes) if known else None
    data = RankingData(dataset, ranked.features, ranked.history, ranked.representation, codes)
    tensors = SavedTensors(checkpoints, step, "model/")
    of_tables = {name.split(".")[-2]: name for name in tensors.names if name.endswith(".weight")}
    names = dict.fromkeys(feature.table for feature in data.features)
    manifest = Manifest(
        kind="ranker",
        method=ranked.model.kind,
        run=config.run,
        step=step,
        commit=str(facts.get("commit", "")),
        versions=facts["versions"],
        **write_dataset(folder, dataset, _known_events(config, data, ranked)),
        tables=tuple(
            write_table(
                folder,
                name,
                tensors.stretches(of_tables[name], min(config.shard_rows, _ROWS_AT_ONCE)),
                config.tables,
                shard_rows=config.shard_rows,
            )
            for name in names
        ),
        ranker=_write_ranker(folder, ranked, data, tensors),
        semantic_ids=write_map(folder, known.content, known.ids, known.read) if known else None,
        tokenizer=write_files(folder, _of_tokenizer(stored)),
        beside=(write_reader(folder),),
        metrics=facts["metrics"],
    )
    write_manifest(folder, manifest)
    return manifest, data


class _Map(NamedTuple):
    """The map that a bundle gets."""

    content: bytes
    ids: SemanticIds
    """In the order of the dataset's items."""
    read: ReadGeneration | None


def _map_of(
    config: ExportConfig, read: ReadGeneration | None, stored: Mapping[str, bytes], dataset: Dataset
) -> _Map | None:
    """Return the run's map, or a generation that adds to it; None where the run reads none."""
    if FILE not in stored:
        if config.semantic_ids:
            raise ConfigError("semantic_ids: the run reads none: leave semantic_ids out.")
        return None
    with scratch_folder() as scratch:
        write_bytes(join(scratch, FILE), stored[FILE])
        ids = SemanticIds.load(join(scratch, FILE), dataset.item_ids)
    if not config.semantic_ids:
        return _Map(stored[FILE], ids, read)
    place = resolve(config.semantic_ids)
    return _Map(read_bytes(semantic_ids_file(place)), ids, _added_to(ids, read, place, dataset))


def _added_to(ids: SemanticIds, read: ReadGeneration | None, place: str, dataset: Dataset) -> ReadGeneration:
    """Return the generation that a place names, where it only adds to what a run read."""
    now = read_semantic_ids(place, dataset)
    if read is None or now.generation is None:
        what = "the run's codes are not those of a generation" if read is None else "it is no generation"
        raise ConfigError(f"semantic_ids: {place}: {what}: leave semantic_ids out.")
    if other := refusal(read, now.generation):
        raise ConfigError(f"semantic_ids: the run was {other}")
    if now.checksum() != ids.checksum():
        raise ConfigError(f"semantic_ids: {place} has other codes for the items of {dataset.uri}.")
    return now.generation.as_read(place)


def _of_tokenizer(stored: Mapping[str, bytes]) -> dict[str, bytes]:
    return {
        name: content
        for name, content in stored.items()
        if name.startswith(f"{TOKENIZER}/") or name == QUALITY
    }


def _known_events(config: ExportConfig, data: RankingData, ranked: RankConfig) -> KnownEvents | None:
    if not config.histories or not ranked.history.max_len:
        return None
    chosen = may_stand_in_history(data.events, ranked.history)
    return KnownEvents(data.events.users[chosen], data.events.items[chosen])


def _write_ranker(folder: str, ranked: RankConfig, data: RankingData, tensors: SavedTensors) -> RankerFacts:
    dim = ranked.tables.dim
    dense = build_dense_ranker(ranked.model, data.features, dim)
    prefix = next(name for name in tensors.names if ".dense." in name).partition(".dense.")[0] + ".dense."
    own = [name for name in tensors.names if name.startswith(prefix)]
    dense.load_state_dict({name.removeprefix(prefix): tensors.whole(name) for name in own})
    rows = {0: torch.export.Dim("rows", min=1)}
    example = torch.zeros(2, len(data.features) * dim)
    return RankerFacts(
        representation=ranked.representation,
        features=tuple(FeatureFacts(**feature._asdict()) for feature in data.features),
        features_config=ranked.features,
        history=ranked.history,
        pooling=ranked.tables.pooling,
        dim=dim,
        program=write_program(folder, "programs/score.pt2", dense, [example], [rows]),
    )


def _check(config: ExportConfig, data: RankingData, folder: str) -> Checked:
    """Score test rows with the bundle alone, and compare with the run's predictions."""
    predictions = read_predictions(config.run, "test")
    number = min(config.check_rows, len(predictions.score))
    rows = data.batch_maker("test", "online").rows
    chosen = np.arange(number)
    histories = rows.histories.take(chosen) if rows.histories else None
    asked = asked_of_ranker(rows.users[:number], rows.items[:number], histories)
    scores, expected = _ask(config.out, folder, asked)["scores"], predictions.score[:number]
    difference = float(np.abs(scores - expected).max())
    if not difference <= _TOLERANCE[config.tables]:
        raise CheckpointError(
            f"{config.out}: the bundle scores {difference:.4f} away from the run's predictions "
            f"(allowed: {_TOLERANCE[config.tables]}). Nothing was written. Export as fp32, or rank again."
        )
    labels, users = rows.labels[:number], rows.users[:number]
    now, before = (_ranking_metrics(each, labels, users) for each in (scores, expected))
    change = {name: value - before[name] for name, value in now.items()}
    return Checked(num=number, largest_difference=difference, metrics=now, change=change)


def _ranking_metrics(scores: Array, labels: Array, users: Array) -> dict[str, float]:
    if labels.min() == labels.max():
        return {}
    metrics = {"auc": auc(scores, labels)}
    per_user = gauc(scores, labels, users).gauc if _share_a_user(labels, users) else None
    return metrics if per_user is None else {**metrics, "gauc": per_user}


def _share_a_user(labels: Array, users: Array) -> bool:
    return len(np.intersect1d(users[labels > 0.5], users[labels <= 0.5])) > 0


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
