"""The same runs on the GPU and on the CPU, in other precisions, and with tables in host memory.

    .venv/bin/python tools/gpu/against_cpu.py OUT [--events N] [--timeout-s S]

On planted data, with one seed, dropout off. Each check prints one line of JSON as it ends, and all stand in
OUT/against_cpu.json. Weights are drawn on the CPU, so a run begins with the same numbers on both: losses of
the first steps are compared, and the metrics at its end, which rounding has had time to move. Without a GPU
both sides are the CPU, and what needs one says so. Exit code 1 where a check fails.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from whole_way import DATA, RANKER, SUMMED, Facts, Way, metrics, speed

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("out", type=Path)
PARSER.add_argument("--events", type=int, default=200_000)
PARSER.add_argument("--timeout-s", type=int, default=240, help="of one verb")

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
STEPS, LOSS, METRIC = 10, 2e-3, 0.01
"""How many first steps are compared, by what share their losses may differ, and by how much a metric."""
NAMES = {"test/auc", "test/log_loss", "test/recall@10", "test/ndcg@10", "all/reconstruction"}
"""Metrics that are compared; those of single users, as GAUC, turn with every pair of few."""
TRAIN = {"train.max_epochs": 2, "train.log_every_steps": 1, "train.batch_size": 4096}
RANK = {"dataset": "data", "semantic_ids": "mmq", "representation": "both", "model.dropout": 0.0, **TRAIN}
RETRIEVE = {"dataset": "data", **SUMMED, **TRAIN, "train.batch_size": 256}
HOST_TABLES = {"uvm": "fused_uvm", "uvm_caching": "fused_uvm_caching"}


def losses(way: Way, run: str) -> list[float]:
    """Return the loss of each step that a run logged; of a tokenizer its error, epoch by epoch."""
    said = [json.loads(line) for line in (way.out / run / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in said for key in ("train/loss", "fit/reconstruction") if key in line]


def compare(
    way: Way, run: str, other: str, facts: Facts, *, loss: float = LOSS, metric: float = METRIC
) -> None:
    """Put into the facts how far two runs are apart; raise where that is too far, or nothing tells it."""
    pairs = list(zip(losses(way, run), losses(way, other), strict=True))[:STEPS]
    mine, theirs = metrics(way, run), metrics(way, other)
    names = [name for name in mine if name in NAMES]
    if not pairs or not names:
        raise RuntimeError(f"{run} logged no loss or has no metric")
    apart = {name: abs(mine[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in names}
    worst = max(names, key=lambda name: apart[name] if math.isfinite(apart[name]) else math.inf)
    facts["losses_apart"] = max(abs(a - b) / abs(b) for a, b in pairs)
    facts["metrics_apart"], facts["metric"] = apart[worst], worst
    numbers = [number for pair in pairs for number in pair]
    # What is no number is never above a bound.
    is_sound = all(map(math.isfinite, [*numbers, *apart.values()]))
    if not (is_sound and facts["losses_apart"] <= loss and facts["metrics_apart"] <= metric):
        raise RuntimeError(f"{run} and {other} are too far apart")


def by_kernel(kernel: str) -> Facts:
    """Return the settings that place all tables by a kernel."""
    return {"sharding.tables.t_*.kernels": [kernel]}


def on_both(way: Way, verb: str, config: str, settings: Facts, name: str, facts: Facts) -> None:
    """Run a verb on the device and on the CPU, side by side, and compare."""
    runs = {f"{name}-device": {}, f"{name}-cpu": ON_CPU}
    started = [
        way.start(verb, config, settings | {"run": run}, environment=environment)
        for run, environment in runs.items()
    ]
    try:
        codes = [process.wait(way.options.timeout_s) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
        raise
    if any(codes):
        raise RuntimeError(f"{verb} ended with {codes}: {way.said(verb)}")
    on_device, on_cpu = runs
    compare(way, on_device, on_cpu, facts)


def main() -> int:
    """Run the checks."""
    way = Way(PARSER.parse_args(), "against_cpu.json")
    import torch

    has_gpu = torch.cuda.is_available()
    with way.check("prepare"):
        way.run("prepare", "configs/data/synthetic.toml", DATA | {"source.num_events": way.options.events})
    tokenizer = {"dataset": "data", "tokenizer.codebook_size": 64, "tokenizer.fit.epochs": 5}
    with way.check("tokenize on both") as facts:
        on_both(way, "tokenize", "configs/tokenizers/mmq.toml", tokenizer, "mmq", facts)
        (way.out / "mmq").symlink_to("mmq-cpu")  # all that follows reads the same codes
    with way.check("rank on both") as facts:
        on_both(way, "rank", RANKER, RANK, "rank", facts)
    with way.check("rank, tokenizer in the loop, on both") as facts:
        config = "configs/rankers/ppnet_tuned.toml"
        on_both(way, "rank", config, RANK | {"finetune.warmup_epochs": 0}, "tuned", facts)
    for kind in ("sasrec", "heterrec"):
        with way.check(f"retrieve {kind} on both") as facts:
            settings = RETRIEVE | {"model.kind": kind, "semantic_ids": "mmq"}
            on_both(way, "retrieve", "configs/quickstart/retrieve.toml", settings, f"retrieve-{kind}", facts)
    for precision, changes in {
        "bfloat16": {"train.precision": "bfloat16"},
        "tf32": {"train.matmul_precision": "high"},
    }.items():
        with way.check(f"rank in {precision}") as facts:
            run = f"rank-{precision}"
            way.run("rank", RANKER, RANK | changes | {"run": run})
            facts.update(speed(way, run) | {"float32": speed(way, "rank-device")["samples_per_s"]})
            compare(way, run, "rank-device", facts, loss=0.02, metric=0.02)
    for name, changes in {
        "pipelined": {"train.pipeline": "sparse_dist"},
        "compiled": {"train.compile": True},
    }.items():
        with way.check(f"rank, {name}") as facts:
            way.run("rank", RANKER, RANK | changes | {"run": f"rank-{name}"})
            facts.update(speed(way, f"rank-{name}") | {"plain": speed(way, "rank-device")["samples_per_s"]})
            compare(way, f"rank-{name}", "rank-device", facts)
    for name, kernel in HOST_TABLES.items():
        with way.check(f"rank, tables by {kernel}") as facts:
            if not has_gpu:
                facts["skipped"] = "needs a GPU"
                continue
            way.run("rank", RANKER, RANK | by_kernel(kernel) | {"run": f"rank-{name}"})
            facts.update(speed(way, f"rank-{name}"))
            compare(way, f"rank-{name}", "rank-device", facts)
    return 0 if all(facts["holds"] for facts in way.results) else 1


if __name__ == "__main__":
    sys.exit(main())
