"""How long a bundle's sorted tuples take to be there at a start: sorted anew, and mapped from a file.

    .venv/bin/python tools/bench/serving/tuples.py [ITEMS] [ROUNDS]

Planted codes: four positions of 256, of as many items as asked for (1,000,000). Medians over rounds, one
thread; the file is in the page cache. Mapped ones are looked through, that nothing points outside.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.serving.reader import map_tensors

SIZES = (256,) * 4


def seconds(work: Callable[[], TupleTrie], rounds: int) -> tuple[float, float]:
    """Return medians of wall and processor seconds."""
    both: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        both[0].append(time.perf_counter() - wall)
        both[1].append(time.process_time() - processor)
    return statistics.median(both[0]), statistics.median(both[1])


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    codes = np.random.default_rng(0).integers(0, 256, (items, len(SIZES))).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "trie.safetensors")
        place.write_bytes(safetensors.numpy.save(TupleTrie.build(codes, SIZES).arrays()))

        def mapped() -> TupleTrie:
            """Return the trie of the file."""
            return TupleTrie.of_arrays(map_tensors(str(place)), SIZES, items)

        for name, work in (("sorted", lambda: TupleTrie.build(codes, SIZES)), ("mapped", mapped)):
            wall, processor = seconds(work, rounds)
            print(f"{name}: {wall:.3f} s, {processor:.3f} processor s", flush=True)
        print(f"file: {place.stat().st_size / 2**20:,.1f} MiB")


if __name__ == "__main__":
    main()
