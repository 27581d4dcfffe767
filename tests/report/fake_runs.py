"""Run folders as the jobs `rank` and `tokenize` write them, drawn instead of trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.datasets import write_small_dataset
from trec_semid.core.config import Config
from trec_semid.core.paths import exists, join, write_bytes
from trec_semid.data.schema import Dataset, Split
from trec_semid.evaluation.predictions import PredictionWriter, read_predictions
from trec_semid.evaluation.ranking import split_metrics
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.maps.record import write_record
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file

PLAN = """table       rows  dim  sharding     ranks
t_user_id    {rows:>4}   16  row_wise     0, 1
t_item_id     {rows:>3}   16  table_wise   0
"""


class FakeTokenizerConfig(Config):
    """As in a tokenize run."""

    kind: str
    num_codes: int = 16


class FakeTokenizeConfig(Config):
    """As in a tokenize run."""

    dataset: str
    run: str
    seed: int = 0
    tokenizer: FakeTokenizerConfig


class FakeTrainConfig(Config):
    """As in a rank run."""

    learning_rate: float = 0.01
    batch_size: int = 256


class FakeRankConfig(Config):
    """As in a rank run."""

    dataset: str
    run: str
    seed: int = 0
    representation: str = "item"
    semantic_ids: str | None = None
    label: str | None = None
    train: FakeTrainConfig = FakeTrainConfig()


def write_tokenize_run(
    folder: str,
    dataset: str,
    kind: str = "mmq",
    *,
    seed: int = 0,
    num_codes: int = 16,
    num_positions: int = 4,
) -> str:
    """Write a finished tokenize run whose codes follow a skewed distribution; return the folder."""
    rng = np.random.default_rng([seed, len(kind)])
    facts = Dataset(dataset)
    config = FakeTokenizeConfig(
        dataset=dataset, run=folder, seed=seed, tokenizer=FakeTokenizerConfig(kind=kind, num_codes=num_codes)
    )
    run = RunFolder(folder, "tokenize")
    run.start(config)
    skew = np.arange(1, num_codes + 1) ** -(0.3 if kind == "mmq" else 0.7)
    codes = rng.choice(num_codes, size=(facts.facts.num_items, num_positions), p=skew / skew.sum())
    ids = SemanticIds(facts.item_ids, codes.astype(np.int32), (num_codes,) * num_positions)
    ids.save(run.path("semantic_ids.parquet"))
    quality = _quality(kind, codes, num_codes)
    run.write_json("quality.json", quality)
    write_record(folder, dataset=facts.facts.name, dataset_checksum=facts.facts.checksum, seed=seed)
    metrics = {f"all/{key}": float(quality[key]) for key in ("reconstruction", "utilisation", "entropy")}
    run.write_metrics(
        metrics,
        seed=seed,
        dataset=facts.facts.name,
        dataset_checksum=facts.facts.checksum,
        counts={"items": facts.facts.num_items},
    )
    return folder


def write_rank_run(
    folder: str,
    dataset: str,
    representation: str = "item",
    *,
    semantic_ids: str | None = None,
    seed: int = 0,
    skill: float = 1.0,
    label: str | None = None,
    learning_rate: float = 0.01,
) -> str:
    """Write a finished rank run whose scores know the labels to the extent of `skill`; return the folder."""
    facts = Dataset(dataset).facts
    config = FakeRankConfig(
        dataset=dataset,
        run=folder,
        seed=seed,
        representation=representation,
        semantic_ids=semantic_ids,
        label=label,
        train=FakeTrainConfig(learning_rate=learning_rate),
    )
    run = RunFolder(folder, "rank")
    run.start(config)
    if semantic_ids is not None and exists(semantic_ids_file(semantic_ids)):
        SemanticIds.load(semantic_ids_file(semantic_ids)).save(run.path("semantic_ids.parquet"))
        write_record(folder, dataset=facts.name, dataset_checksum=facts.checksum, seed=seed)
    _write_log(folder, skill, seed)
    write_bytes(run.path("plan.txt"), PLAN.format(rows=facts.num_users).encode())
    run.write_json("plan.json", {"tables": []})
    rng = np.random.default_rng([seed, int(skill * 1000)])
    for split in ("valid", "test"):
        _write_predictions(folder, dataset, split, skill, rng)
    metrics, counts = split_metrics("test", read_predictions(folder, "test"))
    run.write_metrics(
        metrics,
        seed=seed,
        dataset=facts.name,
        dataset_checksum=facts.checksum,
        counts=counts | {"parameters/dense": 1234, "parameters/tables": 16 * facts.num_items},
    )
    return folder


def write_study(root: str, *, num_users: int = 60, seeds: Sequence[int] = (0, 1)) -> list[str]:
    """Write a dataset, two tokenizers and the arms item, semantic and both; return the rank runs."""
    dataset = write_small_dataset(join(root, "data"), num_users=num_users, num_items=max(40, num_users // 2))
    mmq = write_tokenize_run(join(root, "mmq"), dataset, "mmq")
    kmeans = write_tokenize_run(join(root, "rq_kmeans"), dataset, "rq_kmeans", num_codes=300)
    arms = [
        ("item", None, 1.0),
        ("semantic", mmq, 0.55),
        ("semantic", kmeans, 0.5),
        ("both", mmq, 1.5),
        ("both", kmeans, 1.05),
    ]
    runs: list[str] = []
    for number, (representation, tokenizer, skill) in enumerate(arms):
        codes = None if tokenizer is None else join(tokenizer, "semantic_ids.parquet")
        for seed in seeds:
            folder = join(root, f"rank-{number}-{representation}-seed-{seed}")
            runs.append(
                write_rank_run(folder, dataset, representation, semantic_ids=codes, seed=seed, skill=skill)
            )
    return runs


def _write_predictions(
    folder: str, dataset: str, split: Split, skill: float, rng: np.random.Generator
) -> None:
    events = Dataset(dataset).events(["user_row", "item_row", "label"], split)
    labels = np.asarray(events["label"])
    # What every run sees the same comes from a fixed stream, so that runs agree where they should.
    shared = np.random.default_rng(7).normal(size=len(labels))
    noise = rng.normal(size=len(labels))
    logits = skill * (labels - 0.5) + 0.8 * shared + 0.3 * noise
    columns: dict[str, Any] = {
        "row": np.arange(len(labels)),
        "user_row": np.asarray(events["user_row"]),
        "item_row": np.asarray(events["item_row"]),
        "label": labels,
        "score": _sigmoid(logits - 0.4),
        "score_frozen": _sigmoid(0.9 * logits + 0.2 * noise - 0.4),
    }
    for rank in range(2):
        with PredictionWriter(folder, split, rank=rank, world_size=2, num_rows=len(labels)) as writer:
            writer.write(**{name: values[rank::2] for name, values in columns.items()})


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _write_log(folder: str, skill: float, seed: int) -> None:
    rng = np.random.default_rng([seed, int(skill * 1000), 1])
    log = RunLog(folder)
    log.event("start", step=0, representation="?")
    for step in range(20, 601, 20):
        loss = 0.69 - 0.12 * skill * (1 - np.exp(-step / 150)) + 0.01 * rng.normal()
        log.scalars({"train/loss": float(loss), "train/samples_per_s": 1000.0}, step=step)
        if step % 100 == 0:
            peak = 1 - np.exp(-step / 120) - max(0, step - 400) / 3000
            values = {"auc": 0.5 + 0.2 * skill * peak, "gauc": 0.5 + 0.15 * skill * peak, "log_loss": 0.6}
            noisy = {f"valid/{name}": float(value + 0.004 * rng.normal()) for name, value in values.items()}
            log.scalars(noisy | {"epoch": step / 200}, step=step, event="evaluate")
    log.event("best", step=400)
    log.event("finish", step=600)
    log.close()


def _quality(kind: str, codes: np.ndarray, num_codes: int) -> dict[str, Any]:
    num_items, num_positions = codes.shape
    positions = []
    for index in range(num_positions):
        counts = np.bincount(codes[:, index], minlength=num_codes)
        share = counts[counts > 0] / num_items
        entropy = float(-(share * np.log(share)).sum())
        positions.append(
            {
                "name": f"shared_{index}" if index < num_positions - 1 else "text_0",
                "size": num_codes,
                "used": int((counts > 0).sum()),
                "utilisation": float((counts > 0).mean()),
                "entropy": entropy,
                "perplexity": float(np.exp(entropy)),
                "missing": 0,
                "counts": counts.tolist(),
            }
        )
    _, sizes = np.unique(codes, axis=0, return_counts=True)
    shared = [
        {"shared_codes": n, "pairs": 400 // (n + 1) ** 2, "mean_cosine": 0.1 + 0.8 * n / num_positions}
        for n in range(num_positions + 1)
    ]
    return {
        "tokenizer": kind,
        "num_items": num_items,
        "positions": positions,
        "reconstruction": 0.41 if kind == "mmq" else 0.38,
        "reconstruction_convention": "mean over items of the squared error of standardised vectors",
        "utilisation": float(np.mean([p["utilisation"] for p in positions])),
        "entropy": float(np.mean([p["entropy"] for p in positions])),
        "unique_tuples": len(sizes),
        "unique_share": len(sizes) / num_items,
        "collision_groups": int((sizes > 1).sum()),
        "items_in_collisions": int(sizes[sizes > 1].sum()),
        "largest_group": int(sizes.max()),
        "neighbour_agreement": {
            "k": 10,
            "by_shared_codes": shared,
            "mean_code_overlap_of_neighbours": 0.41,
            "mean_code_overlap_of_random_pairs": 0.12,
        },
        "modalities": {},
    }
