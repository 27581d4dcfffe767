"""What an export reads beside weights: which run, its data, and the map of its codes."""

from collections.abc import Mapping

from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists
from trec_semid.data.schema import Dataset, open_dataset
from trec_semid.runtime.fingerprints import Verify
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.generations.manifest import GENERATION, read_before
from trec_semid.training.served.map import ServedMap, served_map


def finished_run(run: str) -> tuple[RunFolder, str]:
    """Return a finished run's folder, and its verb.

    Raises:
        DataError: it is not finished, or of another verb than `rank` and `retrieve`.
    """
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


def dataset_of(trained: RunFolder, uri: str, verify: Verify) -> Dataset:
    """Open the data that a run was trained on.

    Args:
        trained: the run.
        uri: where its config says that they lie.
        verify: how far files are compared with their checksums.

    Raises:
        DataError: they are others now.
    """
    dataset = open_dataset(uri, verify)
    if dataset.facts.checksum != trained.read_json("metrics.json")["dataset_checksum"]:
        problem = "not the data that the run was trained on (its checksum differs)"
        raise DataError(problem, file=uri, remedy="Prepare that data again, or train again")
    return dataset


def map_of(
    trained: RunFolder, stored: Mapping[str, bytes], dataset: Dataset, place: str | None
) -> ServedMap | None:
    """Return the map of a run's checkpoint, or a generation of additions to it; see `served_map`.

    Args:
        trained: the run.
        stored: files of the checkpoint.
        dataset: that it was trained on.
        place: of the generation to serve instead.
    """
    read = read_before(trained.read_json("run.json")) if GENERATION in stored else None
    return served_map(stored, dataset, read, place)
