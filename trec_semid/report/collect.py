"""Reads finished run folders and refuses what cannot stand side by side in one report."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trec_semid.core.errors import DataError
from trec_semid.core.paths import exists, filesystem, is_folder, join, read_bytes
from trec_semid.data.schema import Dataset, open_dataset
from trec_semid.evaluation.evaluated import EVALUATED
from trec_semid.report.content import Job, RunFacts
from trec_semid.runtime.fingerprints import Verify
from trec_semid.runtime.logs import read_events
from trec_semid.tokenizers.generations.manifest import generation_of
from trec_semid.tokenizers.maps.record import verify_record
from trec_semid.tokenizers.maps.semantic_ids import FILE, holds_same_codes

FILES_OF_JOB = {
    "rank": ("log.jsonl", "plan.txt", "predictions"),
    "retrieve": ("predictions",),
    "tokenize": ("quality.json", FILE),
    "evaluate": ("predictions",),
}
"""What a finished run of each job holds besides its metrics; a retriever that learns nothing has no log."""
_RESULT_KEYS = ("dataset_checksum", "seed", "commit", "versions", "wall_s", "metrics")


@dataclass(frozen=True)
class FinishedRun:
    """The small files of one run folder."""

    uri: str
    job: str
    config: dict[str, Any]
    """`config.toml`."""
    start: dict[str, Any]
    """`run.json`: command, commit, versions."""
    result: dict[str, Any]
    """`metrics.json`."""
    name: str
    """What the report calls it: its path below the folder that holds all runs."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.result["seed"])

    @property
    def checksum(self) -> str:
        """Checksum of the dataset that the run read."""
        return str(self.result["dataset_checksum"])

    def json(self, name: str) -> Any:
        """Read a JSON file of the folder."""
        return _read_json(join(self.uri, name))

    def text(self, name: str) -> str:
        """Read a text file of the folder."""
        return read_bytes(join(self.uri, name)).decode()

    def has(self, name: str) -> bool:
        """Tell whether a file is in the folder."""
        return exists(join(self.uri, name))

    def events(self) -> list[dict[str, Any]]:
        """Read what rank 0 logged."""
        return read_events(join(self.uri, "log.jsonl"))

    def facts(self, arm: str) -> RunFacts:
        """Return the command, versions and machine of the run."""
        return RunFacts(
            run=self.name,
            job=self.job,
            arm=arm,
            seed=self.seed,
            command=str(self.start["command"]),
            commit=", ".join(self.result.get("commits", [self.result["commit"]])),
            versions=dict(self.result["versions"]),
            wall_s=float(self.result["wall_s"]),
            config_checksum=str(self.start["config_checksum"]),
            dataset_checksum=self.checksum,
        )


@dataclass(frozen=True)
class Collection:
    """Every run of a report, and the one dataset all of them read."""

    dataset: Dataset
    recommenders: list[FinishedRun]
    """Rank runs, or retrieve runs, in the order in which they were given."""
    tokenizers: list[FinishedRun]
    """Those given and those that a recommender's `semantic_ids` points to."""
    notes: list[str]
    on_other_codes: frozenset[str] = frozenset()
    """Recommenders whose tokenize run holds other codes by now than they were trained with."""

    @property
    def job(self) -> Job | None:
        """Which kind the recommenders are; None where there are none."""
        jobs: dict[str, Job] = {"rank": "rank", "retrieve": "retrieve"}
        return jobs[self.recommenders[0].job] if self.recommenders else None

    def tokenizer_of(self, run: FinishedRun) -> FinishedRun | None:
        """Return the tokenize run whose codes a recommender was trained with; None where there is none."""
        place = tokenizer_place(run)
        if place is None or run.uri in self.on_other_codes:
            return None
        return next((fit for fit in self.tokenizers if is_same_place(fit.uri, place)), None)


def collect_runs(uris: Sequence[str], dataset: str | None = None, mode: Verify = "once") -> Collection:
    """Read run folders of the jobs `rank` or `retrieve`, and `tokenize`.

    Args:
        uris: run folders; one given twice counts once.
        dataset: where the dataset lies now; None = where the first run read it.
        mode: whether its contents are read anew, as `open_dataset` says.

    Raises:
        DataError: the dataset is damaged, a folder is no finished run of these jobs, a file of it is missing,
            or the runs read different datasets or are of both `rank` and `retrieve`.
    """
    if not uris:
        raise DataError("no run to report", remedy="Name at least one run folder")
    runs = [read_run(uri) for uri in _distinct([uri.rstrip("/") for uri in uris])]
    recommenders = [run for run in runs if run.job != "tokenize"]
    _check_one_kind(recommenders)
    tokenizers = [run for run in runs if run.job == "tokenize"]
    notes: list[str] = []
    for place in _distinct([place for run in recommenders if (place := tokenizer_place(run))]):
        if any(is_same_place(run.uri, place) for run in tokenizers):
            continue
        if exists(join(place, "run.json")):
            tokenizers.append(read_run(place))
        else:
            told = "holds a generation, not a tokenize run" if generation_of(place) else "is not there"
            notes.append(f"{place} {told}, so its codebooks are not shown.")
    named = _name_apart([*recommenders, *tokenizers])
    _check_one_dataset(named)
    first, num_first = named[0], len(recommenders)
    opened = open_dataset(dataset or _string(first, "dataset"), mode)
    if opened.facts.checksum != first.checksum:
        raise DataError(
            f"this dataset is not the one that run '{first.name}' read, whose checksum is {first.checksum}",
            file=join(opened.uri, "dataset.json"),
            field="checksum",
            value=opened.facts.checksum,
            remedy="Name the right one with --dataset FOLDER, or run the jobs again on this one",
        )
    recommenders, tokenizers = named[:num_first], named[num_first:]
    other = [run for run in recommenders if _reads_other_codes(run, tokenizers)]
    notes += [
        f"Run {run.name} was trained with other semantic IDs than {tokenizer_place(run)} holds now: what is "
        "shown of that tokenizer says nothing about this run. Run it again in another folder to compare it."
        for run in other
    ]
    return Collection(opened, recommenders, tokenizers, notes, frozenset(run.uri for run in other))


def _reads_other_codes(run: FinishedRun, tokenizers: Sequence[FinishedRun]) -> bool:
    place, copy = tokenizer_place(run), join(run.uri, FILE)
    if place is None or not exists(copy):
        return False
    fits = [fit for fit in tokenizers if is_same_place(fit.uri, place)]
    began = run.start.get("inputs", {}).get("semantic_ids")
    return any(not holds_same_codes(copy, join(fit.uri, FILE), began) for fit in fits)


def is_finetuned(run: FinishedRun) -> bool:
    """Tell whether a recommender tuned its tokenizer, and so holds a map and a quality file of its own."""
    named = (run.config.get(section) for section in ("finetune", "tuning"))  # the latter in older runs
    finetune = next((one for one in named if one), {"estimator": "frozen"})
    return finetune.get("estimator") != "frozen" and exists(join(run.uri, "quality.json"))


def read_run(uri: str) -> FinishedRun:
    """Read one finished run folder.

    Raises:
        DataError: not a run folder, not finished, of another job, lacking a file of its job, or with semantic
            IDs that are not what was written.
    """
    if not is_folder(uri):
        raise DataError("no such run folder", file=uri)
    for name in ("config.toml", "run.json"):
        if not exists(join(uri, name)):
            remedy = "A run folder is what `trec-semid rank`, `retrieve` and `tokenize` write"
            raise DataError(f"not a run folder: it has no {name}", file=uri, remedy=remedy)
    start = _read_json(join(uri, "run.json"), "job", "command", "config_checksum")
    job = str(start["job"])
    if job == "evaluate":
        return _read_evaluation(uri, start)
    if job not in FILES_OF_JOB:
        remedy = (
            "Report daily trainings by themselves: they are compared day by day"
            if job == "daily"
            else "Only runs of the jobs rank, retrieve and tokenize can be reported"
        )
        raise DataError(
            "another job's run", file=join(uri, "run.json"), field="job", value=job, remedy=remedy
        )
    _expect_files(uri, job, str(start["command"]))
    result = _read_json(join(uri, "metrics.json"), *_RESULT_KEYS)
    try:
        config = tomllib.loads(read_bytes(join(uri, "config.toml")).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not TOML: {error}", file=join(uri, "config.toml")) from None
    if config.get("test_then_train"):
        raise DataError(
            "a run that was tested before it was trained validates nothing, and a report needs that",
            file=join(uri, "config.toml"),
            field="test_then_train",
            value=True,
            remedy="Report the folder of the daily training, or read metrics.json",
        )
    return FinishedRun(uri, job, config, start, result, uri.rstrip("/").rpartition("/")[2])


def _read_evaluation(uri: str, start: dict[str, Any]) -> FinishedRun:
    """Read what `evaluate` wrote: a run of the kind that it asked, with the config that this amounts to."""
    place = join(uri, EVALUATED)
    asked = _read_json(place, "job", "config", "splits")
    _expect_files(uri, "evaluate", str(start["command"]))
    whole = {"splits": ["test", "valid"], "protocols": ["frozen", "online"]}
    here = {"splits": asked["splits"], "protocols": asked["config"].get("evaluation", {}).get("protocols")}
    for key, values in here.items():
        if values is not None and sorted(values) != whole[key]:
            remedy = f"Evaluate with {' and '.join(whole[key])}"
            raise DataError(
                f"a report is of both {key}", file=place, field=key, value=", ".join(values), remedy=remedy
            )
    result = _read_json(join(uri, "metrics.json"), *_RESULT_KEYS)
    return FinishedRun(
        uri, str(asked["job"]), asked["config"], start, result, uri.rstrip("/").rpartition("/")[2]
    )


def _expect_files(uri: str, job: str, command: str) -> None:
    for name in ("metrics.json", *FILES_OF_JOB[job]):
        if not exists(join(uri, name)):
            remedy = f"Let it run to its end: {command}"
            raise DataError(f"the run is not finished: it has no {name}", file=uri, remedy=remedy)
    if exists(join(uri, FILE)):
        verify_record(uri)


def tokenizer_place(run: FinishedRun) -> str | None:
    """Return the tokenize run folder that a recommender's `semantic_ids` names: the folder or a file in it.

    None where the run reads no codes, whatever its config names.
    """
    place = run.config.get("semantic_ids")
    if not isinstance(place, str) or not place or run.config.get("representation") == "item":
        return None
    place = place.rstrip("/")
    return place.rpartition("/")[0] if place.endswith(".parquet") else place


def is_same_place(uri: str, other: str) -> bool:
    """Return whether two paths or URIs name one folder, such as `runs/a` and `./runs/a/`."""
    return filesystem(uri)[1].rstrip("/") == filesystem(other)[1].rstrip("/")


def _distinct(uris: Sequence[str]) -> list[str]:
    return list({filesystem(uri)[1].rstrip("/"): uri for uri in reversed(uris)}.values())[::-1]


def _name_apart(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Call runs by the part of their paths in which they differ: `item/seed-0`, `both/seed-0`."""
    if len(runs) < 2:
        return list(runs)
    parts = [filesystem(run.uri)[1].rstrip("/").split("/") for run in runs]
    levels = enumerate(zip(*parts, strict=False))
    common = next((depth for depth, names in levels if len(set(names)) > 1), min(map(len, parts)))
    return [
        replace(run, name="/".join(part[common:]) or part[-1]) for run, part in zip(runs, parts, strict=True)
    ]


def _check_one_kind(runs: Sequence[FinishedRun]) -> None:
    for run in runs[1:]:
        if run.job != runs[0].job:
            raise DataError(
                f"rankers and retrievers cannot be compared: '{runs[0].uri}' is a {runs[0].job} run",
                file=join(run.uri, "run.json"),
                field="job",
                value=run.job,
                remedy="Report them apart",
            )


def _check_one_dataset(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.checksum != first.checksum:
            raise DataError(
                f"runs on different datasets cannot be compared: run '{first.name}' read "
                f"'{first.result.get('dataset')}' with checksum {first.checksum}, "
                f"run '{run.name}' read '{run.result.get('dataset')}'",
                file=join(run.uri, "metrics.json"),
                field="dataset_checksum",
                value=run.checksum,
                remedy="Report them apart, or run both on the same dataset",
            )


def _string(run: FinishedRun, key: str) -> str:
    value = run.config.get(key)
    if not isinstance(value, str):
        file = join(run.uri, "config.toml")
        raise DataError("missing or not text", file=file, field=key, remedy="Name it with --dataset FOLDER")
    return value


def _read_json(uri: str, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(uri))
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=uri, remedy="Run the job again") from None
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise DataError("missing key", file=uri, field=absent[0], remedy="Run the job again")
    return content
