"""Scores rows of the test part with a bundle alone, in a process of its own: `python -m ... BUNDLE DATASET`.

Prints JSON: the scores of the first rows of the split, and whether torchrec was needed.
"""

import json
import sys

import numpy as np

from trec_semid.core.errors import SemidError
from trec_semid.data.ranking.dataset import Codes, RankingData
from trec_semid.data.schema import Dataset
from trec_semid.serving.reader import Bundle

_ROWS_AT_ONCE = 1024


def score_rows(bundle_uri: str, dataset_uri: str, num_rows: int) -> list[float]:
    """Return the probabilities of the first rows of the test part, online protocol."""
    bundle, dataset = Bundle(bundle_uri), Dataset(dataset_uri)
    manifest = bundle.manifest
    ids = bundle.semantic_ids(dataset.item_ids)
    codes = Codes(ids.codes, ids.sizes) if ids else None
    data = RankingData(dataset, manifest.features_config, manifest.history, manifest.representation, codes)
    maker = data.batch_maker("test", "online")
    rows = np.arange(min(num_rows, len(maker.rows.labels)))
    parts = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    return [score for part in parts for score in bundle.scores(maker.make(part, len(part)).features).tolist()]


def main() -> None:
    """Print the scores of BUNDLE on DATASET."""
    bundle, dataset, num_rows = sys.argv[1:4]
    try:
        scores = score_rows(bundle, dataset, int(num_rows))
    except SemidError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps({"scores": scores, "torchrec": "torchrec" in sys.modules}) + "\n")


if __name__ == "__main__":
    main()
