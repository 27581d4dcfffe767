"""Ranking batches from streamed row files beside those of rows in memory, at growing numbers of events.

    .venv/bin/python tools/bench/data/streamed.py [--events N ...] [--history N] [--batch N] [--json FILE]

A dataset of so many random events, with rows, is written to a temporary folder. Then each way of reading
opens it in a process of its own and makes batches for a while:

    opened     seconds until the first batch
    rows/s     of the batches after it, by the clock, and by processor seconds of all threads
    MiB        by which resident memory grew at most, beyond what imports and the smallest dataset take

Ratios are of the streamed way over the one in memory, of the same run.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from multiprocessing import get_context
from typing import Any

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--events", type=int, nargs="+", default=[500_000, 2_000_000, 8_000_000])
PARSER.add_argument("--users", type=int, default=200_000)
PARSER.add_argument("--items", type=int, default=50_000)
PARSER.add_argument("--history", type=int, default=20)
PARSER.add_argument("--batch", type=int, default=4096)
PARSER.add_argument("--window", type=int, default=4)
PARSER.add_argument("--steps", type=int, default=100, help="batches after the first")
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402

from trec_semid.core.paths import make_folder  # noqa: E402
from trec_semid.data.events.timeline import Timeline  # noqa: E402
from trec_semid.data.features import FeaturesConfig  # noqa: E402
from trec_semid.data.folder import (  # noqa: E402
    checksum,
    describe_files,
    write_description,
    write_entities,
    write_events,
)
from trec_semid.data.histories import HistoryConfig, read_events  # noqa: E402
from trec_semid.data.ranking.dataset import RankingData  # noqa: E402
from trec_semid.data.ranking.row_files import RowsConfig, write_rows  # noqa: E402
from trec_semid.data.ranking.source import Asked  # noqa: E402
from trec_semid.data.ranking.streamed import StreamConfig, StreamedData  # noqa: E402
from trec_semid.data.schema import Dataset, DatasetFacts, SplitFacts  # noqa: E402

UNSEEN = ("unseen_users", "unseen_items", "unseen_item_events")
HISTORY = HistoryConfig(max_len=OPTIONS.history, events="all")


def write(folder: str, num_events: int) -> float:
    """Write a dataset of random events and its rows; return the seconds that the rows took."""
    rng = np.random.default_rng(0)
    make_folder(folder)
    parts = np.repeat(np.arange(3, dtype=np.int8), [num_events - 20_000, 10_000, 10_000])
    timeline = Timeline(
        rng.integers(OPTIONS.users, size=num_events).astype(np.int32),
        (OPTIONS.items * rng.random(num_events) ** 3).astype(np.int32),
        (rng.random(num_events) < 0.3).astype(np.float32),
        np.arange(num_events),
        np.arange(num_events),
        parts,
        np.zeros(num_events, np.int8),
        ["event"],
        np.zeros(num_events, bool),
        0,
        0,
    )
    for entity, size in (("user", OPTIONS.users), ("item", OPTIONS.items)):
        write_entities(folder, entity, pa.array([f"{entity}{n}" for n in range(size)]), {}, {})
    write_events(folder, timeline)
    config = RowsConfig(history=HISTORY)
    facts = DatasetFacts(
        name="random",
        num_users=OPTIONS.users,
        num_items=OPTIONS.items,
        num_events=num_events,
        split_rule="by order",
        splits={
            name: SplitFacts(events=int((parts == n).sum()), users=1, items=1, **dict.fromkeys(UNSEEN, 0))
            for n, name in enumerate(("train", "valid", "test"))
        },
        tie_rule="none",
        label_rule="drawn",
        has_timestamps=True,
        timestamp_unit="s",
        rows=config.facts(),
        files=describe_files(folder),
        checksum="",
    )
    write_description(folder, facts)
    started = time.perf_counter()
    write_rows(
        folder,
        read_events(Dataset(folder)),
        config,
        num_users=OPTIONS.users,
        num_items=OPTIONS.items,
        seed=0,
        file=folder,
    )
    spent = time.perf_counter() - started
    files = describe_files(folder)
    write_description(folder, facts.model_copy(update={"files": files, "checksum": checksum(files)}))
    return spent


def read(way: str, folder: str) -> dict[str, float]:
    """Return what one way of reading costs, in this process."""
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    given = Dataset(folder), FeaturesConfig(), HISTORY, "item", None
    stream = StreamConfig(window=OPTIONS.window)
    data = RankingData(*given) if way == "memory" else StreamedData(*given, stream=stream)
    batches = data.training(Asked(OPTIONS.batch), seed=0).batches()
    next(batches)
    opened = time.perf_counter() - started
    started, used, num_rows = time.perf_counter(), time.process_time(), 0
    for _, batch in zip(range(OPTIONS.steps), batches, strict=False):
        num_rows += batch.global_size
    return {
        "opened_s": opened,
        "rows_per_s": num_rows / (time.perf_counter() - started),
        "rows_per_processor_s": num_rows / (time.process_time() - used),
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20,
    }


def main() -> None:
    """Write, read, print."""
    numbers: dict[str, Any] = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for num_events in OPTIONS.events:
            with tempfile.TemporaryDirectory() as place:
                folder = f"{place}/data"
                spent = pool.apply(write, (folder, num_events))
                told = {way: pool.apply(read, (way, folder)) for way in ("memory", "streamed")}
            numbers[str(num_events)] = told | {"write_rows_per_s": num_events / spent}
            print(f"{num_events:>11,} events; rows written at {num_events / spent:,.0f}/s")
            for way, each in told.items():
                print(
                    f"{'':11} {way:9} first batch {each['opened_s']:6.2f} s, "
                    f"{each['rows_per_s']:>9,.0f} rows/s ({each['rows_per_processor_s']:,.0f}), "
                    f"{each['mib']:,.0f} MiB"
                )
            ratio = told["streamed"]["rows_per_s"] / told["memory"]["rows_per_s"]
            print(f"{'':11} streamed / memory: {ratio:.2f} of the rows/s", flush=True)
    if OPTIONS.json:
        with open(OPTIONS.json, "w", encoding="utf-8") as file:
            json.dump(numbers, file, indent=1)


if __name__ == "__main__":
    main()
