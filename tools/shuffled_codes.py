"""Deals the semantic IDs of a tokenize run to other items: a control whose codes say nothing of content.

    .venv/bin/python tools/shuffled_codes.py RUN OUT.parquet [--seed N]

Codebooks, tuples and how many items share one are what they were; which items share one is by lot. What a
model gains by real codes over these it gains by what they say, and not by having more rows to learn.
"""

import argparse

from trec_semid.core.seeds import numpy_generator
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds, semantic_ids_file

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("run", help="folder of a tokenize run, or a file of codes")
PARSER.add_argument("out", help="file of codes to write")
PARSER.add_argument("--seed", type=int, default=0)


def main() -> None:
    """Write the file and say how many items have other codes than before."""
    options = PARSER.parse_args()
    ids = SemanticIds.load(semantic_ids_file(options.run))
    order = numpy_generator(options.seed, "shuffled codes").permutation(len(ids.codes))
    dealt = SemanticIds(ids.item_ids, ids.codes[order], ids.sizes)
    dealt.save(options.out)
    moved = int((dealt.codes != ids.codes).any(1).sum())
    print(f"{options.out}: {moved:,} of {len(order):,} items have others' codes")


if __name__ == "__main__":
    main()
