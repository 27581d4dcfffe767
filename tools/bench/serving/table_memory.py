"""How much memory it takes to write a table of a checkpoint into a bundle, beside the table's size.

Usage: python tools/bench/serving/table_memory.py [ROWS]

Saves a planted table of one process, in one piece as runs of one process do, and in another process writes it
in shards of a twentieth. Prints the table's size, what that process held at most beyond what it held before,
and how long it took [processor s].
"""

import multiprocessing
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_saver import save

from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.serving.writing.tables import TableRows, write_tables

WIDTH = 64


def write(folder: str, rows: int) -> None:
    """Write the table, and print what it took."""
    torch.set_num_threads(1)
    saved = SavedTensors.of_tensors(folder, "")
    Path("/proc/self/clear_refs").write_text("5")  # what was held before counts no more as the most
    before, start = _peak_mib(), time.process_time()
    table = TableRows("t", rows, "fp32", partial(saved.rows, "table"))
    write_tables(folder, [table], rows // 20)
    held, took = _peak_mib() - before, time.process_time() - start
    size = rows * WIDTH * 4 / 2**20
    print(f"table of {size:,.0f} MiB: {held:,.0f} MiB more held, {took:.1f} processor s", flush=True)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Plant, and measure in a process of its own."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as folder:
        planted = {"table": torch.randn(rows, WIDTH)}
        save(planted, checkpoint_id=folder, no_dist=True)
        del planted
        worker = multiprocessing.get_context("spawn").Process(target=write, args=(folder, rows))
        worker.start()
        worker.join()


if __name__ == "__main__":
    main()
