"""Rows/s and peak memory of `prepare` beside the same work in plain pandas.

    python tools/bench/prepare.py                      20 million interactions as Parquet
    python tools/bench/prepare.py --events 1000000 --format csv

Work of both: read the interactions, replace ids by integers, drop users and items with fewer than 5 events
until none is left, label by rating > 3, sort by time, split globally by time, write Parquet. Ours checks
every value, shuffles ties, counts what training never saw, reads items, and writes checksums besides.
Each runs in a process of its own; peak memory is the largest resident size the kernel saw.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_USERS, NUM_ITEMS = 500_000, 200_000
_ROWS = 1 << 20


def make_data(folder: Path, num_events: int, form: str) -> None:
    """Write interactions with Zipf-like items and users, and the items that occur."""
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    scale = min(1.0, num_events / 20_000_000)
    num_users, num_items = max(100, int(NUM_USERS * scale)), max(100, int(NUM_ITEMS * scale))
    schema = pa.schema(
        [("user", pa.string()), ("item", pa.string()), ("rating", pa.float32()), ("time", pa.int64())]
    )
    path = folder / f"interactions.{form}"
    writer = pq.ParquetWriter(path, schema) if form == "parquet" else pacsv.CSVWriter(path, schema)
    with writer:
        for start in range(0, num_events, _ROWS):
            rows = min(_ROWS, num_events - start)
            users = (num_users * rng.random(rows) ** 1.5).astype(np.int64)
            items = (num_items * rng.random(rows) ** 2).astype(np.int64)
            columns = [
                pa.array(np.char.add("user_", users.astype("U8"))),
                pa.array(np.char.add("item_", items.astype("U8"))),
                pa.array(rng.integers(1, 6, rows), pa.float32()),
                pa.array(1_500_000_000 + rng.integers(0, 100_000_000, rows)),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    ids = pa.array([f"item_{item}" for item in range(num_items)])
    pq.write_table(pa.table({"item": ids}), folder / "items.parquet")


def prepare_ours(folder: Path, form: str) -> None:
    """Prepare with trec_semid."""
    from trec_semid.data.prepare import PrepareConfig, prepare_dataset

    interactions = {
        "path": str(folder / f"interactions.{form}"),
        "user": "user",
        "item": "item",
        "rating": "rating",
        "timestamp": "time",
    }
    items = {"path": str(folder / "items.parquet"), "id": "item"}
    config = PrepareConfig.model_validate(
        {
            "name": "bench",
            "out": str(folder / "ours"),
            "source": {"kind": "tables", "interactions": interactions, "items": items},
            "filter": {"min_user_events": 5, "min_item_events": 5},
            "label": {"kind": "threshold", "threshold": 3},
            "split": {"kind": "global_temporal"},
        }
    )
    prepare_dataset(config)


def prepare_pandas(folder: Path, form: str) -> None:
    """Do the same in plain pandas, as one writes it."""
    import pandas as pd

    path = folder / f"interactions.{form}"
    events = pd.read_parquet(path) if form == "parquet" else pd.read_csv(path)
    while True:
        before = len(events)
        events = events[events.groupby("user")["item"].transform("size") >= 5]
        events = events[events.groupby("item")["user"].transform("size") >= 5]
        if len(events) == before:
            break
    events["user_row"], users = pd.factorize(events["user"])
    events["item_row"], items = pd.factorize(events["item"])
    events["label"] = (events["rating"] > 3).astype("float32")
    events = events.sort_values("time", kind="stable")
    first = int(len(events) * 0.9)
    events["split"] = "train"
    events.iloc[int(first * 0.9) : first, events.columns.get_loc("split")] = "valid"
    events.iloc[first:, events.columns.get_loc("split")] = "test"
    out = folder / "pandas"
    out.mkdir()
    columns = ["user_row", "item_row", "label", "time", "split"]
    events[columns].to_parquet(out / "events.parquet", index=False)
    pd.DataFrame({"user_id": users}).to_parquet(out / "users.parquet")
    pd.DataFrame({"item_id": items}).to_parquet(out / "items.parquet")


def measure(name: str, folder: Path, form: str, num_events: int) -> dict[str, float]:
    """Run one way in a process of its own."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--only", name, "--folder", str(folder), "--format", form]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    if status:
        raise SystemExit(f"{name} failed with status {status}")
    return {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "rows_per_s": round(num_events / wall_s),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),  # Linux counts KiB
    }


def main() -> None:
    """Make the data, run both ways, print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--only", choices=["ours", "pandas"], help="run one way on --folder, unmeasured")
    parser.add_argument("--folder", type=Path, help="where the data lies")
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_args()
    if arguments.only:
        ways = {"ours": prepare_ours, "pandas": prepare_pandas}
        ways[arguments.only](arguments.folder, arguments.format)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"making {arguments.events:,} interactions as {arguments.format} ...", flush=True)
        make_data(folder, arguments.events, arguments.format)
        results = {}
        for name in ("ours", "pandas"):
            results[name] = measure(name, folder, arguments.format, arguments.events)
            print(name, json.dumps(results[name]), flush=True)
    speed = results["ours"]["rows_per_s"] / results["pandas"]["rows_per_s"]
    memory = results["ours"]["peak_gib"] / results["pandas"]["peak_gib"]
    print(f"ours: {speed:.2f} x the rows/s of pandas with {memory:.2f} x its peak memory")
    limits = {"events": arguments.events, "format": arguments.format, "cores": os.cpu_count()}
    if arguments.json:
        arguments.json.write_text(json.dumps({**limits, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
