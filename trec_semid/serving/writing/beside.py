"""What every bundle holds beside its model, and what its manifest says of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from trec_semid.data.schema import Dataset
from trec_semid.evaluation.evaluated import tests_then_trains
from trec_semid.serving.writing.dataset import (
    KnownEvents,
    write_dataset,
    write_files,
    write_map,
    write_reader,
)
from trec_semid.serving.writing.intervals import measured_of
from trec_semid.tokenizers.generations.manifest import ReadGeneration
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds


class ReadMap(NamedTuple):
    """An item -> code map that goes along."""

    content: bytes
    """Of its file."""
    ids: SemanticIds
    """In the order of the dataset's items."""
    read: ReadGeneration | None


class Beside(NamedTuple):
    """What goes along with a model."""

    run: str
    results: Mapping[str, Any]
    """Its `metrics.json`."""
    dataset: Dataset
    events: KnownEvents | None
    """Of histories; None leaves them out."""
    known: ReadMap | None
    tokenizer: Mapping[str, bytes]
    """Files that give codes to new items."""


def write_beside(folder: str, beside: Beside, *, is_ranker: bool) -> dict[str, Any]:
    """Write what bundles of any model hold; return what their manifest says of it.

    Args:
        folder: of the bundle.
        beside: what there is.
        is_ranker: whether the model ranks, and does not list.
    """
    results = beside.results
    return {
        "run": beside.run,
        "commit": str(results.get("commit", "")),
        "versions": results["versions"],
        **write_dataset(folder, beside.dataset, beside.events),
        "semantic_ids": write_map(folder, *beside.known) if beside.known else None,
        "tokenizer": write_files(folder, beside.tokenizer),
        "beside": (write_reader(folder),),
        "metrics": results["metrics"],
        "learnt_test": tests_then_trains(beside.run),
        "measured": measured_of(beside.run, results, is_ranker=is_ranker),
    }
