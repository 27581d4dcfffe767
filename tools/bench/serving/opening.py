"""How long a large bundle takes to open: a bundle is copied, given a table of so many MiB, and opened.

Usage: python tools/bench/serving/opening.py BUNDLE [MIB]
"""

import shutil
import sys
import tempfile
import time
from functools import partial

import psutil
import torch

from trec_semid.checkpoints.bundle_files import read_manifest, write_manifest
from trec_semid.serving.engine import open_engine
from trec_semid.serving.writing.tables import TableRows, write_tables

WIDTH = 64


def planted(generator: torch.Generator, first: int, last: int) -> torch.Tensor:
    """Return (n, D) numbers."""
    return torch.randn(last - first, WIDTH, generator=generator)


def main() -> None:
    bundle, mib = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    num_rows = mib * 2**20 // (4 * WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        copy = f"{folder}/bundle"
        shutil.copytree(bundle, copy)
        generator = torch.Generator().manual_seed(0)
        large = TableRows("large", num_rows, "fp32", partial(planted, generator))
        (table,) = write_tables(copy, [large], shard_rows=1_000_000)
        manifest = read_manifest(copy)
        write_manifest(copy, manifest.model_copy(update={"tables": (*manifest.tables, table)}))
        open_engine(bundle).close()  # what is imported is imported now
        for verify in (False, True):
            before, start = psutil.Process().memory_info().rss, time.perf_counter()
            engine = open_engine(copy, verify=verify)
            seconds = time.perf_counter() - start
            grown = (psutil.Process().memory_info().rss - before) / 2**20
            print(f"verify={verify}: opened {mib:,} MiB in {seconds:.2f} s, {grown:,.0f} MiB more memory")
            engine.close()


if __name__ == "__main__":
    main()
