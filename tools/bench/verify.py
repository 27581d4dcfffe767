"""How fast the contents of a dataset are verified by one process: `.venv/bin/python tools/bench/verify.py`.

Writes files of random bytes, reads them once so that they lie in the disk's cache, and verifies them; then
looks how long a folder with a stamp takes. Prints processor seconds, which other jobs do not change.
"""

import os
import tempfile
import time
from pathlib import Path

from trec_semid.runtime import fingerprints

NUM_FILES, FILE_BYTES, RUNS = 8, 64 << 20, 3


def main() -> None:
    """Print megabytes a processor second, and the milliseconds of a stamped folder."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(NUM_FILES):
            Path(folder, f"part-{number}.parquet").write_bytes(os.urandom(FILE_BYTES))
        known = fingerprints.fingerprints(folder)
        total = sum(each.bytes for each in known.values())
        seconds = min(_seconds(folder, known, "always") for _ in range(RUNS))
        print(f"verified: {total / 2**20:,.0f} MiB, {total / 1e6 / seconds:,.0f} MB/s")
        time.sleep(2.5)  # a file of this moment gets no stamp
        fingerprints.verify(folder, known, remedy="", mode="once")
        stamped = min(_seconds(folder, known, "once") for _ in range(RUNS))
        print(f"stamped: {1000 * stamped:,.1f} ms for {NUM_FILES} files")


def _seconds(folder: str, known: dict[str, fingerprints.Fingerprint], mode: fingerprints.Verify) -> float:
    began = time.process_time()
    fingerprints.verify(folder, known, remedy="", mode=mode)
    return time.process_time() - began


if __name__ == "__main__":
    main()
