"""The item -> code map that goes to serving with a run: its own, or a generation that only adds to it."""

from collections.abc import Mapping
from typing import NamedTuple

from trec_semid.checkpoints.folder import read_files
from trec_semid.core.errors import ConfigError
from trec_semid.core.paths import exists, join, read_bytes, write_bytes
from trec_semid.core.processes import scratch_folder
from trec_semid.data.schema import Dataset
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.generations.manifest import ReadGeneration, refusal
from trec_semid.tokenizers.generations.store import resolve
from trec_semid.tokenizers.maps.record import verify_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds, semantic_ids_file
from trec_semid.training.finetune.finetuning import TOKENIZER
from trec_semid.training.matched_codes import read_semantic_ids
from trec_semid.training.run import QUALITY


class ServedMap(NamedTuple):
    """A map as it is served."""

    content: bytes
    """Of its file."""
    ids: SemanticIds
    """In the order of the dataset's items."""
    read: ReadGeneration | None
    """Which generation it is; None of any other map."""


def served_map(
    stored: Mapping[str, bytes], dataset: Dataset, read: ReadGeneration | None, place: str | None
) -> ServedMap | None:
    """Return the map of a checkpoint, or a generation of additions to it; None where the run reads none.

    Args:
        stored: files of the checkpoint.
        dataset: that the run was trained on.
        read: the generation that the run read.
        place: of the generation to serve instead.

    Raises:
        ConfigError: a place where the run reads no codes, or that is no generation of additions.
        DataError: an item of the dataset has no code.
    """
    if FILE not in stored:
        if place:
            raise ConfigError("semantic_ids: the run reads none: leave semantic_ids out.")
        return None
    with scratch_folder() as scratch:
        write_bytes(join(scratch, FILE), stored[FILE])
        ids = SemanticIds.load(join(scratch, FILE), dataset.item_ids)
    if not place:
        return ServedMap(stored[FILE], ids, read)
    at = resolve(place)
    return ServedMap(read_bytes(semantic_ids_file(at)), ids, _added_to(ids, read, at, dataset))


def stored_files(trained: RunFolder, step: int | None) -> dict[str, bytes]:
    """Return the files beside the tensors of a checkpoint, as they were when it was the best.

    Args:
        trained: the run.
        step: of the checkpoint; None of what learns nothing, which has none.
    """
    if step is None:
        return {}
    stored = read_files(trained.path("checkpoints"), step)
    if exists(trained.path(FILE)):
        verify_record(trained.uri)
    if exists(trained.path(QUALITY)):  # of the codes that tuning came to
        stored[QUALITY] = read_bytes(trained.path(QUALITY))
    return stored


def of_tokenizer(stored: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a checkpoint that give codes to new items."""
    of_tokenizer = (name for name in stored if name.startswith(f"{TOKENIZER}/") or name == QUALITY)
    return {name: stored[name] for name in of_tokenizer}


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
