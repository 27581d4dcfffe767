"""`trec-semid export`: the best checkpoint of a rank run to a bundle for serving, checked first."""

import io
import json
import logging
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from trec_semid.checkpoints.folder import best_step, read_files
from trec_semid.checkpoints.load import read_tensors
from trec_semid.checkpoints.manifest import (
    MANIFEST,
    FeatureFacts,
    FileFacts,
    Manifest,
    MapFacts,
    TableType,
    file_facts,
    write_manifest,
)
from trec_semid.core.config import Place, load_saved
from trec_semid.core.errors import CheckpointError, ConfigError, DataError
from trec_semid.core.paths import exists, join, read_bytes, shared_copy, staged_folder, write_bytes
from trec_semid.data.folder import writing
from trec_semid.data.ranking.dataset import Codes, RankingData
from trec_semid.data.schema import Dataset, VerifyConfig, open_dataset
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.models.methods import build_dense_ranker
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder
from trec_semid.runtime.runs import RunFolder
from trec_semid.serving.tables import write_table
from trec_semid.tokenizers.generations.manifest import GENERATION, ReadGeneration, read_before, refusal
from trec_semid.tokenizers.generations.store import resolve
from trec_semid.tokenizers.maps.record import verify_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds, semantic_ids_file
from trec_semid.training.finetune.finetuning import TOKENIZER
from trec_semid.training.matched_codes import read_semantic_ids
from trec_semid.training.ranking.setup import RankConfig
from trec_semid.training.run import QUALITY

_log = logging.getLogger(__name__)
_PROGRAM = "dense/program.pt2"
_TOLERANCE = {"fp32": 1e-4, "int8": 0.05}
"""Largest difference of a probability to the run's own prediction."""


class ExportConfig(VerifyConfig):
    """What `trec-semid export` reads."""

    run: Place
    """Run folder of a finished `trec-semid rank`."""
    out: Place
    """Bundle folder to write."""
    semantic_ids: Place | None = None
    """Map that the bundle gets: a generation of only additions to the one that the run read, as `store` or
    `store@7`, so that items added since can be looked up; the run's own map where not given."""
    tables: TableType = "fp32"
    """`int8` keeps 8 bits a number, with a scale and a low for each row."""
    shard_rows: PositiveInt = 1_000_000
    check_rows: PositiveInt = 4096
    """Test rows whose scores must be those of the run."""


class Exported(NamedTuple):
    """What an export comes to."""

    out: str
    largest_difference: float
    """Of a probability, over the checked rows."""
    num_bytes: int


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
        manifest = _write(config, ranked, trained, folder)
        num_rows, difference = _check(config, ranked, folder)
    num_bytes = sum(facts.num_bytes for facts in manifest.files())
    say(
        f"{config.out}: step {manifest.step}, {len(manifest.tables)} tables ({config.tables}), "
        f"{num_bytes / 2**20:,.1f} MiB. Scores of {num_rows:,} test rows, re-loaded in a process of "
        f"its own without torchrec, differ from the run's by at most {difference:.1e}."
    )
    return Exported(config.out, difference, num_bytes)


def _expect_rank_run(trained: RunFolder) -> None:
    if not exists(trained.path("metrics.json")):
        raise DataError(
            "not a finished rank run", file=trained.path("metrics.json"), remedy="Run it to its end"
        )
    job = trained.read_json("run.json").get("job")
    if job != "rank":
        remedy = "Export the run of a ranker"
        raise DataError(
            "not a rank run", file=trained.path("run.json"), field="job", value=job, remedy=remedy
        )


def _write(config: ExportConfig, ranked: RankConfig, trained: RunFolder, folder: str) -> Manifest:
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
    ids = _write_map(config, read, folder, stored, dataset)
    codes = Codes(ids[1].codes, ids[1].sizes) if ids else None
    data = RankingData(dataset, ranked.features, ranked.history, ranked.representation, codes)
    tensors = read_tensors(checkpoints, step, "model/")
    names = dict.fromkeys(feature.table for feature in data.features)
    manifest = Manifest(
        run=config.run,
        step=step,
        commit=str(facts.get("commit", "")),
        versions=facts["versions"],
        dataset=dataset.facts.name,
        dataset_checksum=dataset.facts.checksum,
        representation=ranked.representation,
        features=tuple(FeatureFacts(**feature._asdict()) for feature in data.features),
        features_config=ranked.features,
        history=ranked.history,
        pooling=ranked.tables.pooling,
        dim=ranked.tables.dim,
        tables=tuple(
            write_table(folder, name, _table(tensors, name), config.tables, shard_rows=config.shard_rows)
            for name in names
        ),
        dense=_write_dense(folder, ranked, data, tensors),
        semantic_ids=ids[0] if ids else None,
        tokenizer=tuple(
            _write_file(folder, name, content)
            for name, content in stored.items()
            if name.startswith(f"{TOKENIZER}/") or name == QUALITY
        ),
        metrics=facts["metrics"],
    )
    write_manifest(folder, manifest)
    return manifest


def _write_map(
    config: ExportConfig, read: ReadGeneration | None, folder: str, stored: dict[str, bytes], dataset: Dataset
) -> tuple[MapFacts, SemanticIds] | None:
    """Write the run's map, or a generation that adds to it; return it in the dataset's order."""
    if FILE not in stored:
        if config.semantic_ids:
            raise ConfigError("semantic_ids: the run reads none: leave semantic_ids out.")
        return None
    known = _write_file(folder, FILE, stored[FILE])
    ids = SemanticIds.load(join(folder, FILE), dataset.item_ids)
    if config.semantic_ids:
        place = resolve(config.semantic_ids)
        read = _added_to(ids, read, place, dataset)
        known = _write_file(folder, FILE, read_bytes(semantic_ids_file(place)))
    return MapFacts(**known.model_dump(), checksum=ids.checksum(), sizes=ids.sizes, generation=read), ids


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


def _write_dense(folder: str, ranked: RankConfig, data: RankingData, tensors: dict[str, Tensor]) -> FileFacts:
    dense = build_dense_ranker(ranked.model, data.features, ranked.tables.dim)
    prefix = next(name for name in tensors if ".dense." in name).partition(".dense.")[0] + ".dense."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    dense.load_state_dict(own)
    example = torch.zeros(2, len(data.features) * ranked.tables.dim)
    rows = torch.export.Dim("rows", min=1)
    program = torch.export.export(dense.eval(), (example,), dynamic_shapes=({0: rows},))
    # Examples are the only part of the file that would be a pickle.
    program._example_inputs = None  # pyright: ignore[reportPrivateUsage]
    content = io.BytesIO()
    torch.export.save(program, content)
    return _write_file(folder, _PROGRAM, content.getvalue())


def _write_file(folder: str, name: str, content: bytes) -> FileFacts:
    write_bytes(join(folder, name), content)
    return file_facts(name, content)


def _table(tensors: dict[str, Tensor], name: str) -> Tensor:
    return next(value for key, value in tensors.items() if key.endswith(f".{name}.weight"))


def _check(config: ExportConfig, ranked: RankConfig, folder: str) -> tuple[int, float]:
    """Score test rows with the bundle alone; return how many, and how far the run's predictions are."""
    with shared_copy(folder) as bundle, shared_copy(ranked.dataset) as dataset:
        words = ["-m", "trec_semid.serving.check", bundle, dataset, str(config.check_rows)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise CheckpointError(f"{config.out}: the bundle cannot be read back: {done.stderr.strip()[-500:]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if said["torchrec"]:
        raise CheckpointError(f"{config.out}: reading the bundle needed torchrec.")
    expected = read_predictions(config.run, "test").score[: config.check_rows]
    difference = float(np.abs(np.asarray(said["scores"]) - expected).max())
    if not difference <= _TOLERANCE[config.tables]:
        raise CheckpointError(
            f"{config.out}: the bundle scores {difference:.4f} away from the run's predictions "
            f"(allowed: {_TOLERANCE[config.tables]}). Nothing was written. Export as fp32, or rank again."
        )
    return len(expected), difference
