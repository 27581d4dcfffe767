"""Candidates that codes propose and vectors order, beside the scores of all items, on planted catalogues.

    .venv/bin/python tools/bench/retrieval/two_stage.py [--items N ...] [--candidates C ...] [--width W]

An item's vector is the sum of the rows of its codes (residual: each level half as long) and a little noise; a
user's state points to where an item lies, with noise, and heads say of that state what a softmax over cosines
with the rows says. So codes know much of what vectors know, as where one model learns both. Naive Bayes
weighs what codes propose, of items that are alike popular. Printed for each catalogue: milliseconds a user of
exact search, of candidates by a beam, and of candidates by the codes of every item, and how much of the exact
first 10 each holds. These are processor seconds, so that other work on the machine counts little. Vectors
take 4 N D bytes: 10 million items of width 64 are 2.6 GB.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import NamedTuple

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--items", type=int, nargs="+", default=[12_101, 1_000_000])
PARSER.add_argument("--candidates", type=int, nargs="+", default=[100, 500])
PARSER.add_argument("--beam", type=int, default=500, help="tuples that the beam retains")
PARSER.add_argument("--width", type=int, default=64)
PARSER.add_argument("--users", type=int, default=64)
PARSER.add_argument("--codes", type=int, default=6, help="positions, of 256 codes each")
PARSER.add_argument("--threads", type=int, default=1)
PARSER.add_argument("--json", help="write the numbers here too")
OPTIONS = PARSER.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # read when the packages are imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import log_softmax, normalize  # noqa: E402

from trec_semid.metrics.target_positions import ListedTargets, UserItems  # noqa: E402
from trec_semid.models.heads.beams import parallel_heads  # noqa: E402
from trec_semid.models.queries import Queries, TwoStageQueries  # noqa: E402
from trec_semid.search.catalogue import Catalogue  # noqa: E402
from trec_semid.search.code_prior import CodePrior  # noqa: E402
from trec_semid.search.exact import ExactSearch  # noqa: E402
from trec_semid.search.retrieved import agreement  # noqa: E402
from trec_semid.search.two_stage import TwoStageSearch  # noqa: E402

CODES, HISTORY, LENGTH, TEMPERATURE = 256, 20, 100, 0.1


class Planted(NamedTuple):
    """A catalogue, and what is said of users."""

    codes: Tensor
    vectors: Tensor
    queries: TwoStageQueries
    users: UserItems


def plant(num_items: int) -> Planted:
    """Draw codes, vectors that follow from them, and users near items."""
    torch.manual_seed(0)
    lengths = 0.5 ** torch.arange(OPTIONS.codes)
    tables = torch.randn(OPTIONS.codes, CODES, OPTIONS.width) * lengths.view(-1, 1, 1)
    codes = torch.randint(CODES, (num_items, OPTIONS.codes), dtype=torch.int16)
    vectors = torch.empty(num_items, OPTIONS.width)
    for rows in torch.arange(num_items).split(1 << 18):
        of_rows = sum(tables[r][codes[rows, r].long()] for r in range(OPTIONS.codes))
        vectors[rows] = of_rows + 0.1 * torch.randn(len(rows), OPTIONS.width)
    targets = torch.randint(num_items, (OPTIONS.users,))
    states = vectors[targets] + 0.3 * torch.randn(OPTIONS.users, OPTIONS.width)
    cosines = torch.einsum("bd,rkd->brk", normalize(states, dim=1), normalize(tables, dim=2))
    # Later levels are shorter, and tell less of where an item lies.
    log_probs = log_softmax(cosines * lengths.view(1, -1, 1) / TEMPERATURE, dim=2)
    queries = TwoStageQueries(Queries(states, None), parallel_heads(log_probs.unbind(1)), log_probs, 0.0)
    ones = torch.ones_like(targets)
    masked = torch.randint(num_items, (OPTIONS.users * HISTORY,))
    return Planted(codes, vectors, queries, UserItems(targets, ones, masked, HISTORY * ones))


def timed(search: Callable[[], ListedTargets]) -> tuple[float, Tensor]:
    """Return processor milliseconds a user, and the lists; the second of two calls counts."""
    search()
    started = time.process_time()
    lists = search().top_items
    return 1000 * (time.process_time() - started) / OPTIONS.users, lists


def measure(num_items: int) -> list[dict[str, object]]:
    """Return a row for each way to list."""
    planted = plant(num_items)
    catalogue = Catalogue(num_items, 0, planted.vectors, None, None)
    search = ExactSearch([catalogue])
    exact_ms, exact = timed(lambda: search.places([planted.queries.of_items], planted.users, LENGTH))
    rows: list[dict[str, object]] = [{"items": num_items, "way": "exact", "ms": exact_ms, "held@10": 1.0}]
    sizes = [CODES] * OPTIONS.codes
    prior = CodePrior(torch.zeros(num_items), 1.0)
    for num_candidates in OPTIONS.candidates:
        for beam_width in (OPTIONS.beam, None):
            stages = TwoStageSearch(
                catalogue,
                planted.codes,
                sizes,
                num_candidates=num_candidates,
                beam_width=beam_width,
                prior=prior,
            )
            run = lambda stages=stages: stages.places(planted.queries, planted.users, LENGTH)  # noqa: E731
            ms, lists = timed(run)
            way = f"{num_candidates} by " + (f"a beam of {beam_width}" if beam_width else "all codes")
            held = float(agreement(lists[:, :10], exact[:, :10]).mean())
            rows.append({"items": num_items, "way": way, "ms": ms, "held@10": held, "times": exact_ms / ms})
    return rows


def main() -> None:
    """Print a row for each catalogue and way."""
    rows = [row for num_items in OPTIONS.items for row in measure(num_items)]
    print(f"{'items':>10} {'way':<28} {'ms a user':>9} {'x faster':>8} {'held@10':>7}")
    for row in rows:
        times = row.get("times", 1.0)
        print(f"{row['items']:>10,} {row['way']:<28} {row['ms']:>9.3f} {times:>8.2f} {row['held@10']:>7.3f}")
    if OPTIONS.json:
        with open(OPTIONS.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(OPTIONS), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
