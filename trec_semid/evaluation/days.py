"""What a day of daily training came to: metrics with intervals, who was new, how far codes moved."""

from typing import Any

import numpy as np
from rich.table import Column, Table

from trec_semid.core.ids import id_array, rows_of
from trec_semid.core.paths import exists, join
from trec_semid.core.text_columns import as_text
from trec_semid.data.histories import read_events
from trec_semid.data.schema import DESCRIPTION, SPLITS, Dataset, Split
from trec_semid.evaluation.resampling import Draws, RunReader, ranker_metrics
from trec_semid.metrics.intervals import interval
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds

OF_RANKERS = ("test/auc", "test/gauc", "test/log_loss", "test/calibration")
OF_RETRIEVERS = ("test/recall@10", "test/ndcg@10")


def day_metrics(run: str, verb: str, num_draws: int) -> dict[str, dict[str, float]]:
    """Return metrics of the test part with their 95 % intervals under draws of users.

    Metrics that the day's events do not define are left out. Calibration is the mean prediction divided by
    the mean label.

    Args:
        run: finished, with predictions of the test part.
        verb: that wrote it.
        num_draws: of users.

    Raises:
        DataError: predictions are absent or damaged.
    """
    draws: dict[Split, Draws] = {"test": Draws(num_draws)}
    if verb == "rank":
        drawn = RunReader().draw_rankers([run], ranker_metrics(OF_RANKERS), draws)
    else:
        drawn = RunReader().draw_retriever(run, OF_RETRIEVERS, draws)
    values = {name.partition("/")[2]: interval([each]) for name, each in drawn.items()}
    return {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in values.items()}


def day_counts(dataset: Dataset) -> dict[str, int]:
    """Return how many events, users and items the test part has, and how many had no event before."""
    events = read_events(dataset)
    happened, is_test = ~events.is_negative, events.splits == SPLITS.index("test")
    counts = {"events": int((is_test & happened).sum())}
    for name, rows, size in (
        ("users", events.users, dataset.facts.num_users),
        ("items", events.items, dataset.facts.num_items),
    ):
        now, before = (
            np.bincount(rows[chosen & happened], minlength=size) > 0 for chosen in (is_test, ~is_test)
        )
        counts |= {name: int(now.sum()), f"new_{name}": int((now & ~before).sum())}
    return counts


def gone_counts(dataset: Dataset, before: str | None) -> dict[str, int]:
    """Return how many users and items the dataset of the day before has and this one has no more.

    Empty where there is no day before, or its dataset was removed.
    """
    if before is None or not exists(join(before, DESCRIPTION)):
        return {}
    earlier = Dataset(before)
    users = [id_array(each.users(["user_id"])["user_id"]) for each in (earlier, dataset)]
    pairs = {"users": users, "items": [earlier.item_ids, dataset.item_ids]}
    return {f"gone_{name}": int((rows_of(old, new) < 0).sum()) for name, (old, new) in pairs.items()}


def moved_share(before: str, now: str) -> float | None:
    """Return the share of the items of two maps with another tuple; None where there are not two maps."""
    if not (exists(before) and exists(now)):
        return None
    old, new = SemanticIds.load(before), SemanticIds.load(now)
    rows = rows_of(new.item_ids, old.item_ids)
    both = rows >= 0
    if old.codes.shape[1] != new.codes.shape[1] or not both.any():
        return 1.0 if both.any() else 0.0
    return float((old.codes[rows[both]] != new.codes[both]).any(axis=1).mean())


def table_of_days(entries: list[dict[str, Any]], verb: str) -> str:
    """Return the days as a table to read."""
    names = [name.partition("/")[2] for name in (OF_RANKERS if verb == "rank" else OF_RETRIEVERS)]
    heads = [name.replace("_", " ").replace("calibration", "pred / obs") for name in names]
    table = Table(Column("day", no_wrap=True), "events", "new users", "new items", *heads, "codes moved", "s")
    table.caption = "tested before it was trained on; 95 % intervals in days.json"
    for entry in entries:
        if entry["state"] != "done":
            table.add_row(entry["day"], "missing")
            continue
        metrics = [entry["metrics"].get(name) for name in names]
        moved = entry.get("codes", {}).get("moved_share")
        table.add_row(
            entry["day"],
            *(f"{entry[key]:,}" for key in ("events", "new_users", "new_items")),
            *("" if each is None else f"{each['value']:.4f}" for each in metrics),
            "" if moved is None else f"{moved:.1%}",
            f"{sum(entry['seconds'].values()):.1f}",
        )
    return as_text(table)
