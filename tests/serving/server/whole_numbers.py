"""A server of bundles that hold nothing but a version: `python -m ... CONFIG.toml`.

What `trec-semid serve` does, but for what opens a bundle: the version is that of an engine of whole numbers.
Versions that begin with `slow` take half a second for a batch.
"""

import sys
import time
from pathlib import Path

from tests.serving.server.engines import WholeNumbers
from trec_semid.cli.faults import complain_of
from trec_semid.core.config import load_config
from trec_semid.core.errors import DataError, SemidError
from trec_semid.runtime.logs import set_up_console
from trec_semid.runtime.stopping import heeding_signals
from trec_semid.serving.server.config import ServeConfig
from trec_semid.serving.server.start import serve


def open_numbers(uri: str) -> WholeNumbers:
    version = (Path(uri) / "manifest.json").read_text()
    if version == "endless":
        time.sleep(3600)
    if version == "broken":
        raise DataError("not the file that was exported", file=uri)
    return WholeNumbers(version, seconds=0.5 if version.startswith("slow") else 0.0)


def main() -> int:
    set_up_console()
    with heeding_signals():
        try:
            serve(load_config(ServeConfig, sys.argv[1:]), open_numbers)
        except SemidError as error:
            complain_of(error)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
