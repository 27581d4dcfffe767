"""Which metric of validation decides what step of a ranker is best, and whether its events define it."""

from typing import Literal

import numpy as np

from trec_semid.core.errors import DataError
from trec_semid.data.histories import Events
from trec_semid.data.schema import SPLITS, Dataset

SelectBy = Literal["auc", "gauc", "log_loss"]


def expect_selectable(select_by: SelectBy, events: Events, dataset: Dataset) -> None:
    """Refuse validation events that do not define the metric, before anything is trained.

    AUC needs events of both labels, GAUC a user who has both; log loss needs neither.

    Args:
        select_by: the metric.
        events: all events; validation without events, or with unknown labels, is refused elsewhere.
        dataset: that they are of.

    Raises:
        DataError: says which labels there are, and what to do.
    """
    is_valid = events.splits == SPLITS.index("valid")
    users, labels = events.users[is_valid], events.labels[is_valid]
    if select_by == "log_loss" or not len(labels) or np.isnan(labels).any():
        return
    has_both = labels.min() < labels.max()
    if has_both and (select_by == "auc" or _share_a_user(users, labels)):
        return
    if has_both:
        problem = "no user has events of both labels in the valid split, of which GAUC is made"
        remedy = "Set train.select_by = 'auc' or train.select_by = 'log_loss'"
    else:
        label, name = int(labels[0]), select_by.upper()
        problem = f"all {len(labels):,} events of the valid split have label {label}, and {name} needs both"
        remedy = "Set train.select_by = 'log_loss'"
    remedy += ", or prepare the dataset with another [split] or [label]"
    # Negatives stand beside positives, and an item holdout takes none.
    if labels.max() > 0 and not dataset.facts.split_rule.startswith("item holdout"):
        remedy += ", or with [negatives] that negatives.splits puts into 'valid'"
    raise DataError(problem, file=dataset.uri, field="train.select_by", value=str(select_by), remedy=remedy)


def _share_a_user(users: np.ndarray, labels: np.ndarray) -> bool:
    """Tell whether some user has events of both labels."""
    return len(np.intersect1d(users[labels > 0.5], users[labels <= 0.5])) > 0
