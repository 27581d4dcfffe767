"""Run folders as the job `retrieve` writes them, drawn instead of trained."""

from typing import Any, Literal

import numpy as np

from tests.report.fake_runs import PLAN
from trec_semid.core.config import Config
from trec_semid.core.paths import write_bytes
from trec_semid.data.schema import Dataset, Split
from trec_semid.evaluation.predictions import PredictionWriter
from trec_semid.evaluation.retrieval import retrieval_metrics
from trec_semid.evaluation.strata import training_strata
from trec_semid.evaluation.target_positions import TARGET_SCHEMA, TargetPositions, read_target_positions
from trec_semid.metrics.target_positions import UNLISTED
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.maps.record import write_record
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file

COVERED = 0.25
"""What every run states as its coverage at every length of the list."""
AGREED = 0.875
"""What every run with a beam states as its agreement with exact scores."""


class FakeItemConfig(Config):
    """As in a retrieve run."""

    id: bool = True
    fields: list[str] = []
    content: list[str] = []


class FakeSequencesConfig(Config):
    """As in a retrieve run."""

    max_len: int = 50
    events: Literal["positives", "all"] = "all"


class FakeModelConfig(Config):
    """As in a retrieve run."""

    kind: str
    runs: list[str] = []


class FakeEvaluationConfig(Config):
    """As in a retrieve run."""

    cutoffs: tuple[int, ...] = (5, 10)
    masks_history: bool = True
    beam_width: int | None = None
    unseen_penalty: float = 0.0


class FakeRetrieveConfig(Config):
    """As in a retrieve run."""

    dataset: str
    run: str
    seed: int = 0
    semantic_ids: str | None = None
    item: FakeItemConfig = FakeItemConfig()
    sequences: FakeSequencesConfig = FakeSequencesConfig()
    model: FakeModelConfig
    evaluation: FakeEvaluationConfig = FakeEvaluationConfig()


def write_retrieve_run(
    folder: str, dataset: str, kind: str = "sasrec", *, skill: float = 1.0, seed: int = 0, **config: Any
) -> str:
    """Write a finished run whose targets stand further up the higher `skill`; return the folder.

    Popularity and ensembles have neither log nor plan. Targets beyond a beam's lists are in no list.
    """
    values = {"dataset": dataset, "run": folder, "seed": seed, "model": {"kind": kind}, **config}
    made = FakeRetrieveConfig.model_validate(values)
    run = RunFolder(folder, "retrieve")
    run.start(made)
    if made.semantic_ids is not None:
        SemanticIds.load(semantic_ids_file(made.semantic_ids)).save(run.path("semantic_ids.parquet"))
        write_record(folder, dataset="small", dataset_checksum=Dataset(dataset).facts.checksum, seed=seed)
    if kind not in ("popularity", "ensemble"):
        _write_log(folder, skill)
        write_bytes(run.path("plan.txt"), PLAN.format(rows=Dataset(dataset).facts.num_users).encode())
    longest = max(made.evaluation.cutoffs) if made.evaluation.beam_width else None
    rng = np.random.default_rng([seed, int(1000 * skill)])
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        write_positions(folder, split, _draw_positions(Dataset(dataset), split, skill, longest, rng))
    write_own_metrics(run, made)
    return folder


def write_positions(folder: str, split: Split, targets: TargetPositions) -> None:
    """Write the positions of a split's targets, as two ranks of a job do."""
    for rank in range(2):
        with PredictionWriter(
            folder, split, rank=rank, world_size=2, num_rows=len(targets.row), schema=TARGET_SCHEMA
        ) as writer:
            writer.write(**{name: column[rank::2] for name, column in targets.columns().items()})


def write_own_metrics(run: RunFolder, config: FakeRetrieveConfig) -> None:
    """Write `metrics.json` from the positions that lie in the folder."""
    dataset = Dataset(config.dataset)
    metrics: dict[str, float] = {}
    learns = config.model.kind not in ("popularity", "ensemble")
    counts = {"parameters/dense": 100, "parameters/tables": 2000} if learns else {}
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        found, sizes = retrieval_metrics(
            read_target_positions(run.uri, split), training_strata(dataset), cutoffs=config.evaluation.cutoffs
        )
        found |= {f"coverage@{cutoff}": COVERED for cutoff in config.evaluation.cutoffs}
        if config.evaluation.beam_width and split == "valid":
            found |= {f"beam_agreement@{cutoff}": AGREED for cutoff in config.evaluation.cutoffs}
        metrics |= {f"{split}/{name}": value for name, value in found.items()}
        counts |= {f"{split}/{name}": value for name, value in sizes.items()}
    facts = dataset.facts
    run.write_metrics(
        metrics, seed=config.seed, dataset=facts.name, dataset_checksum=facts.checksum, counts=counts
    )


def _draw_positions(
    dataset: Dataset, split: Split, skill: float, longest: int | None, rng: np.random.Generator
) -> TargetPositions:
    events = dataset.events(["user_row", "item_row"], split).to_pandas().drop_duplicates()
    events = events.sort_values("user_row", kind="stable")
    users, items = events.user_row.to_numpy(), events.item_row.to_numpy()
    positions = np.zeros(len(users), np.int64)
    likely = np.arange(1, dataset.facts.num_items + 1) ** -skill
    for user in np.unique(users):
        own = users == user
        chosen = rng.choice(len(likely), own.sum(), replace=False, p=likely / likely.sum())
        positions[own] = chosen + 1
    if longest is not None:
        positions[positions > longest] = UNLISTED
    return TargetPositions(np.arange(len(users)), users, items, positions)


def _write_log(folder: str, skill: float) -> None:
    log = RunLog(folder)
    log.event("start", step=0)
    for step in range(20, 201, 20):
        log.scalars({"train/loss": 8 - step / 100, "train/samples_per_s": 1000.0}, step=step)
        if step % 100 == 0:
            values = {"valid/recall@10": skill * step / 1000, "valid/ndcg@10": skill * step / 2000}
            log.scalars(values, step=step, event="evaluate")
    log.event("best", step=200)
    log.event("finish", step=200)
    log.close()
