"""GAUC of 10 million rows and 500 thousand users: this package, polars, pandas + scikit-learn, torchrec.

    .venv/bin/python tools/bench/gauc.py [--rows N] [--users N] [--runs N] [--threads N] [--json FILE]

Rows lie in random order; user sizes fall off like a Zipf law; a fifth of the scores is rounded to three
decimals, so ties abound. Contestants take turns, so that a busy machine is busy for all of them; the
table shows medians of wall seconds and of processor seconds (all threads together). pandas +
scikit-learn calls a function per user: it runs on a sample of users, and its row shows what was measured
there and, marked "extrapolated", what that makes for all rows. torchrec gives another number on purpose:
each user counts once, and a tie counts by the order of rows.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--rows", type=int, default=10_000_000)
PARSER.add_argument("--users", type=int, default=500_000)
PARSER.add_argument("--runs", type=int, default=5)
PARSER.add_argument("--threads", type=int, default=2, help="threads of every contestant")
PARSER.add_argument("--sample-users", type=int, default=2_000, help="users that pandas + scikit-learn gets")
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
for variable in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # read when the packages are imported

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import polars as pl  # noqa: E402
import torch  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from torchrec.metrics.gauc import compute_window_auc, get_auc_states  # noqa: E402

from trec_semid.metrics.gauc import GaucAccumulator, gauc  # noqa: E402

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_rows(num_rows: int, num_users: int) -> Rows:
    """Draw float32 probabilities, bool labels and int64 users."""
    rng = np.random.default_rng(0)
    share = 1.0 / (np.arange(num_users) + 20.0) ** 0.9
    sizes = 1 + rng.multinomial(num_rows - num_users, share / share.sum())
    users = np.repeat(rng.permutation(num_users), sizes)
    users = users[rng.permutation(num_rows)]
    labels = rng.random(num_rows) < 0.2
    logits = rng.normal(-1.4, 1, num_rows) + 0.8 * labels
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    rounded = rng.random(num_rows) < 0.2
    scores[rounded] = np.round(scores[rounded], 3)
    print(f"{num_rows:,} rows, {num_users:,} users of {sizes.min()} to {sizes.max():,} rows,", end=" ")
    print(f"{labels.mean():.1%} positive, {OPTIONS.threads} threads, median of {OPTIONS.runs} runs")
    return scores, labels, users


def ours(rows: Rows) -> float:
    return gauc(*rows).gauc


def ours_accumulator(rows: Rows) -> float:
    """In updates of 64 thousand rows, as a loader gives them."""
    accumulator = GaucAccumulator()
    for start in range(0, len(rows[0]), 1 << 16):
        accumulator.update(*(column[start : start + (1 << 16)] for column in rows))
    return accumulator.result().gauc


def polars_frame(rows: Rows) -> pl.LazyFrame:
    return pl.DataFrame(dict(zip(("s", "y", "u"), rows, strict=True))).lazy()


def polars_result(per_user: pl.LazyFrame) -> float:
    """Combine n rows, p positives and r, the sum of the positives' average ranks, of each user."""
    n, p, r = (pl.col(name).cast(pl.Float64) for name in "npr")
    area = (r - p * (p + 1) / 2) / (p * (n - p))
    return per_user.filter((n > p) & (p > 0)).select((area * n).sum() / n.sum()).collect().item()


def polars_rank_by_user(rows: Rows) -> float:
    """The plain way: rank within each group."""
    ranks = pl.col("s").rank("average").filter(pl.col("y")).sum()
    frame = polars_frame(rows)
    return polars_result(frame.group_by("u").agg(n=pl.len(), p=pl.col("y").sum(), r=ranks))


def polars_packed(rows: Rows) -> float:
    """The fastest way found: our packing in polars, ranks of ties from the ends of their run."""
    bits = pl.col("s").reinterpret(dtype=pl.UInt32).cast(pl.UInt64)  # keeps the order of scores above 0
    packed = pl.col("u").cast(pl.UInt64) * (1 << 33) + bits * 2 + pl.col("y").cast(pl.UInt64)
    tie, index = pl.col("k") // 2, pl.col("i")
    frame = polars_frame(rows).select(k=packed).sort("k").with_row_index("i")
    first = pl.when((tie != tie.shift(1)).fill_null(value=True)).then(index).forward_fill()
    last = pl.when((tie != tie.shift(-1)).fill_null(value=True)).then(index).backward_fill()
    frame = frame.select(
        u=pl.col("k") // (1 << 33),
        y=pl.col("k") % 2 == 1,
        r=(first.cast(pl.Float64) + last.cast(pl.Float64)) / 2 + 1,
    )
    ranks = pl.col("r").filter(pl.col("y")).sum()
    frame = frame.group_by("u", maintain_order=True).agg(n=pl.len(), p=pl.col("y").sum(), r=ranks)
    n = pl.col("n").cast(pl.Float64)
    rows_before = n.cum_sum() - n
    return polars_result(frame.with_columns(r=pl.col("r") - rows_before * pl.col("p")))


def pandas_sklearn(rows: Rows) -> float:
    frame = pd.DataFrame(dict(zip(("s", "y", "u"), rows, strict=True)))
    total = weight = 0.0
    for _, own in frame.groupby("u", sort=False):
        if 0 < own.y.sum() < len(own):
            total += len(own) * roc_auc_score(own.y, own.s)
            weight += len(own)
    return total / weight


def torchrec_gauc(rows: Rows) -> float:
    """Call the functions of torchrec, users in groups of like size so that its padding stays below half."""
    scores, labels, users = (torch.from_numpy(column) for column in rows)
    order = torch.argsort(users)
    lengths = torch.bincount(users)
    lengths = lengths[lengths > 0]
    by_user = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    size_class = torch.ceil(torch.log2(lengths.double())).long()
    sums = {"auc_sum": torch.zeros(1), "num_samples": torch.zeros(1)}
    for size in size_class.unique():
        chosen = order[(size_class == size)[by_user]]
        columns = (labels[chosen].float()[None], scores[chosen][None], torch.ones(1, len(chosen)))
        states = get_auc_states(*columns, lengths[size_class == size])
        sums = {name: sums[name] + states[name] for name in sums}
    return compute_window_auc(sums["auc_sum"], sums["num_samples"])["gauc"].item()


def measure(contestants: dict[str, Callable[[Rows], float]], inputs: dict[str, Rows]) -> dict[str, Any]:
    """Let the contestants take turns; the first turn warms up and does not count."""
    found: dict[str, Any] = {name: {"wall_s": [], "processor_s": []} for name in contestants}
    for turn in range(OPTIONS.runs + 1):
        for name, contestant in contestants.items():
            wall, processor = time.perf_counter(), time.process_time()
            found[name]["value"] = contestant(inputs[name])
            if turn:
                found[name]["wall_s"].append(time.perf_counter() - wall)
                found[name]["processor_s"].append(time.process_time() - processor)
    return found


def main() -> None:
    rows = draw_rows(OPTIONS.rows, OPTIONS.users)
    chosen = np.random.default_rng(1).choice(OPTIONS.users, min(OPTIONS.sample_users, OPTIONS.users), False)
    in_sample = np.isin(rows[2], chosen)
    sample: Rows = (rows[0][in_sample], rows[1][in_sample], rows[2][in_sample])
    sampled = f"pandas + scikit-learn on {len(sample[0]):,} rows"
    contestants: dict[str, Callable[[Rows], float]] = {
        "trec_semid gauc()": ours,
        "trec_semid GaucAccumulator": ours_accumulator,
        "polars, packed sort": polars_packed,
        "polars, rank by user": polars_rank_by_user,
        "torchrec (another definition)": torchrec_gauc,
        sampled: pandas_sklearn,
    }
    inputs = {name: sample if name == sampled else rows for name in contestants}
    found = measure(contestants, inputs)
    values = {name: ours(inputs[name]) for name in contestants}
    first = statistics.median(found["trec_semid gauc()"]["wall_s"])
    print("| contestant | wall s | processor s | rows/s | wall, ours = 1 | GAUC | difference to ours |")
    print("|---|---|---|---|---|---|---|")
    for name, entry in found.items():
        scale = len(rows[0]) / len(inputs[name][0])
        wall, processor = (statistics.median(entry[key]) * scale for key in ("wall_s", "processor_s"))
        entry |= {"rows_per_s": len(rows[0]) / wall, "scale": scale}
        entry["difference"] = abs(entry["value"] - values[name])
        if scale == 1:
            entry["ratio"] = wall / first
            cells = f"{wall:.2f} | {processor:.2f} | {entry['rows_per_s']:,.0f} | {entry['ratio']:.1f}"
        else:
            entry["extrapolated_wall_s"] = wall
            told = f"{wall / scale:.2f} (extrapolated to all rows: {wall:,.0f})"
            cells = f"{told} | {processor / scale:.2f} | {entry['rows_per_s']:,.0f} | not measured"
        print(f"| {name} | {cells} | {entry['value']:.6f} | {entry['difference']:.1e} |")
    if OPTIONS.json:
        with open(OPTIONS.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(OPTIONS), "contestants": found}, file, indent=1)


if __name__ == "__main__":
    main()
