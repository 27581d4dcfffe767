"""How sure the metrics of a run are: 95 % intervals by draws of its test users, as reports have them."""

from collections.abc import Mapping
from typing import Any

from trec_semid.checkpoints.measured import Measured
from trec_semid.evaluation.comparison import MIN_USERS
from trec_semid.evaluation.predictions import read_predictions
from trec_semid.evaluation.resampling import Draws, RunReader, choose_draws, ranker_metrics
from trec_semid.evaluation.target_positions import read_target_positions
from trec_semid.metrics.intervals import interval

_DRAWS = 1000


def measured_of(run: str, result: Mapping[str, Any], *, is_ranker: bool) -> Measured:
    """Return intervals of those metrics of the test split that are means over users or taken from rows.

    Args:
        run: finished.
        result: its `metrics.json`.
        is_ranker: whether it ranks, and does not list.

    Raises:
        DataError: what it wrote of the split is absent or damaged.
    """
    names = [name for name in result["metrics"] if name.startswith("test/") and name.count("/") == 1]
    reader, seed = RunReader(), result["seed"]
    if is_ranker:
        draws = Draws(choose_draws(_DRAWS, len(read_predictions(run, "test").label), 1))
        drawn = reader.draw_rankers([run], ranker_metrics(names), {"test": draws})
    else:
        draws = Draws(choose_draws(_DRAWS, len(read_target_positions(run, "test").row), 1))
        drawn = reader.draw_retriever(run, names, {"test": draws})
    enough = {name: each for name, each in drawn.items() if each.num_users >= MIN_USERS}
    ends = {name: interval([each]) for name, each in enough.items()}
    return Measured(
        split="test",
        num_users=max((each.num_users for each in drawn.values()), default=0),
        seeds=() if seed is None else (int(seed),),
        draws=draws.number,
        intervals={name: (each.low, each.high) for name, each in ends.items()},
    )
