"""Options that the benchmarks beside this file share; read before torch is imported."""

import argparse
import os


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of the sizes of data and models, which are Amazon-Beauty's unless given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="prepared: its sequences and sizes instead of drawn ones")
    parser.add_argument("--codes", help="of its items: a run of `trec-semid tokenize`, or a file of codes")
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--users", type=int, default=22_363)
    parser.add_argument("--mean-length", type=float, default=8.9, help="items of a user, five at least")
    parser.add_argument("--history", type=int, default=20, help="last items that are read")
    parser.add_argument("--positions", type=int, default=4, help="codes of an item")
    parser.add_argument("--codebook", type=int, default=256)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2, help="transformer blocks of a model, an even number")
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the numbers here too")
    return parser


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and have torch and its libraries take the asked threads."""
    options = parser.parse_args()
    if (options.dataset is None) != (options.codes is None):
        parser.error("--dataset and --codes go together")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when torch is imported
    return options
