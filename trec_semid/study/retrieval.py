"""Lists of a study's retrievers under draws of users."""

import re
import tomllib
from collections.abc import Sequence

from trec_semid.core.paths import exists, join, read_bytes
from trec_semid.data.schema import Split, open_dataset
from trec_semid.evaluation.predictions import predictions_uri
from trec_semid.evaluation.strata import training_strata
from trec_semid.evaluation.target_positions import bootstrap_target_positions, read_target_positions
from trec_semid.metrics.intervals import Replicates

_KEY = re.compile(r"(?P<split>valid|test)/(?P<name>(?:recall|ndcg)@(?P<cutoff>\d+)(?:/(?P<stratum>\w+))?)")


def draw_retrieved(folder: str, metrics: Sequence[str], num_replicates: int) -> dict[str, Replicates]:
    """Return those of the metrics that the ranks of targets give, with their values under draws of users.

    Args:
        folder: finished run of `retrieve`.
        metrics: wanted, such as `test/ndcg@10/popularity_tail`.
        num_replicates: draws.

    Raises:
        DataError: ranks are absent or damaged.
    """
    wanted = [match for key in metrics if (match := _KEY.fullmatch(key))]
    found: dict[str, Replicates] = {}
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        of_split = [match for match in wanted if match["split"] == split]
        if not of_split or not exists(predictions_uri(folder, split, 0)):
            continue
        strata = None
        if any(match["stratum"] for match in of_split):
            config = tomllib.loads(read_bytes(join(folder, "config.toml")).decode())
            strata = training_strata(open_dataset(str(config["dataset"])))
        drawn = bootstrap_target_positions(
            read_target_positions(folder, split),
            strata,
            cutoffs=sorted({int(match["cutoff"]) for match in of_split}),
            num_replicates=num_replicates,
        )
        found |= {match[0]: drawn[match["name"]] for match in of_split if match["name"] in drawn}
    return found
