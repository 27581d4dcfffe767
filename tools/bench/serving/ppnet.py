"""What it saves that PPNet reads a request once: its two exported programs over one request's candidates.

Usage: python tools/bench/serving/ppnet.py [CANDIDATES]

One thread, both programs by turns. Prints the median processor time of a pass of each [ms], and their ratio.
"""

import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import torch

from trec_semid.checkpoints.manifest import ProgramFacts
from trec_semid.data.features import Feature, FeaturesConfig
from trec_semid.data.histories import HistoryConfig
from trec_semid.models.rankers.ppnet import Ppnet, PpnetConfig
from trec_semid.serving.programs import read_program
from trec_semid.serving.writing.forms import Forms
from trec_semid.serving.writing.rankers import RankerParts, write_ranker

PASSES = 300
SHAPES = ((3, 2, 16), (8, 8, 16), (8, 8, 32), (16, 8, 32))
"""Features of the item, features of the request, and the width of either."""


def features_of(num_own: int, num_shared: int) -> tuple[Feature, ...]:
    """Return so many features of an item and of a request, an id first."""
    return (
        Feature("user_id", "user", "t", 2),
        Feature("item_id", "item", "t", 2),
        *(Feature(f"item_{number}", "item_field", "t", 2) for number in range(num_own - 1)),
        *(Feature(f"user_{number}", "user_field", "t", 2) for number in range(num_shared - 1)),
    )


def median_ms(passes: Sequence[float]) -> float:
    """Return the median of seconds, in ms."""
    return 1000 * float(np.median(passes))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for num_own, num_shared, dim in SHAPES:
        torch.manual_seed(0)
        features = features_of(num_own, num_shared)
        ranker = Ppnet(PpnetConfig.model_validate({}), features, dim).eval()
        once = ranker.of_requests([feature.entity != "item" for feature in features])
        with tempfile.TemporaryDirectory() as folder:
            parts = RankerParts(
                features,
                "item",
                FeaturesConfig(),
                HistoryConfig.model_validate({}),
                np.ones(1, np.int64),
                "mean",
                dim,
                ranker,
                once,
            )
            facts = write_ranker(folder, parts, Forms())
            assert isinstance(facts.of_requests, ProgramFacts)
            plain, split = (read_program(folder, each) for each in (facts.program, facts.of_requests))
        own, shared = torch.randn(rows, num_own * dim), torch.randn(1, num_shared * dim)
        owners, pair = torch.zeros(rows, dtype=torch.int64), torch.cat([shared, shared])
        both: tuple[list[float], list[float]] = ([], [])
        for _ in range(PASSES):
            start = time.process_time()
            plain(torch.cat([shared[:, :dim].expand(rows, -1), own, shared[:, dim:].expand(rows, -1)], 1))
            both[0].append(time.process_time() - start)
            start = time.process_time()
            split(pair, own, owners)
            both[1].append(time.process_time() - start)
        before, after = (median_ms(each) for each in both)
        sizes = f"{num_shared} features of the request, {num_own} of the item, {dim} wide"
        print(f"{sizes}: {before:.2f} ms, {after:.2f} ms, ratio {before / after:.2f}", flush=True)


if __name__ == "__main__":
    main()
