"""How much memory it takes to export a retriever, beside the size of its item table.

    .venv/bin/python tools/bench/serving/retriever_memory.py [--items N] [--width D] [--shards N]

A planted run of SASRec over N items of few users is trained a step or two, in a process of its own. Another
process imports what `export` does, and exports the run, in shards of equal size. Printed: what it held at
most beyond what it held before (resident, pages of mapped files among them; and anonymous alone, looked at
every 10 ms), and how long it took [processor s]. The process that checks the bundle is not counted.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--items", type=int, default=1_000_000)
PARSER.add_argument("--width", type=int, default=64)
PARSER.add_argument("--shards", type=int, default=20)
PARSER.add_argument("--users", type=int, default=500)
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from trec_semid.jobs.verbs import job_named  # noqa: E402

EVENTS = 8
"""Of a user."""


def plant(folder: str, items: int, width: int, users: int) -> None:
    """Write and prepare a log, and train."""
    rng = np.random.default_rng(0)
    ids = pa.array([f"item{number}" for number in range(items)])
    pq.write_table(pa.table({"item_id": ids}), f"{folder}/items.parquet")
    owners, times = np.repeat(np.arange(users), EVENTS), 1_700_000_000 + np.tile(np.arange(EVENTS), users)
    chosen = pa.array(rng.integers(0, items, len(owners)))
    log = {"user_id": pa.array(owners).cast(pa.string()), "item_id": ids.take(chosen), "timestamp": times}
    pq.write_table(pa.table(log), f"{folder}/log.parquet")
    do(
        "prepare",
        name="planted",
        out=f"{folder}/data",
        source={
            "kind": "tables",
            "interactions": {
                "path": f"{folder}/log.parquet",
                "user": "user_id",
                "item": "item_id",
                "timestamp": "timestamp",
                "timestamp_unit": "s",
            },
            "items": {"path": f"{folder}/items.parquet", "id": "item_id"},
        },
        label={"kind": "all_positive"},
        split={"kind": "leave_one_out"},
    )
    do(
        "retrieve",
        dataset=f"{folder}/data",
        run=f"{folder}/run",
        tables={"dim": width},
        model={"kind": "sasrec", "transformer": {"num_layers": 1, "num_heads": 2}},
        sequences={"max_len": EVENTS},
        sampled={"num_sampled": 100},
        train={"batch_size": users, "max_epochs": 1},
        evaluation={"cutoffs": [10]},
    )


def do(verb: str, **config: object) -> None:
    """Run a verb."""
    job = job_named(verb)
    job.run(job.config.model_validate(config))


def measure(folder: str, rows: int, width: int, shards: int) -> None:
    """Export, and print what it took."""
    job = job_named("export")
    Path("/proc/self/clear_refs").write_text("5")  # what was held before counts no more as the most
    before, anonymous, start = told("VmHWM"), told("RssAnon"), time.process_time()
    most, is_over = [anonymous], threading.Event()

    def look() -> None:
        while not is_over.wait(0.01):
            most[0] = max(most[0], told("RssAnon"))

    watching = threading.Thread(target=look)
    watching.start()
    config = {"run": f"{folder}/run", "out": f"{folder}/bundle", "shard_rows": -(-rows // shards)}
    job.run(job.config.model_validate(config))
    is_over.set()
    watching.join()
    size, took = rows * width * 4 / 2**20, time.process_time() - start
    held = f"{told('VmHWM') - before:,.0f} MiB more resident, {most[0] - anonymous:,.0f} MiB of it anonymous"
    print(f"table of {size:,.0f} MiB: {held}, {took:.1f} processor s", flush=True)


def told(name: str) -> float:
    """Return a number of this process [MiB]."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{name}:")) / 1024


def main() -> None:
    """Plant, and measure, each in a process of its own."""
    options = PARSER.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = options.items, options.width
        for work, more in ((plant, options.users), (measure, options.shards)):
            worker = multiprocessing.get_context("spawn").Process(target=work, args=(folder, *sizes, more))
            worker.start()
            worker.join()
            if worker.exitcode:
                raise SystemExit(worker.exitcode)


if __name__ == "__main__":
    main()
