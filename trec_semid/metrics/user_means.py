"""How sure the mean over users of a per-user value is: bootstrap over users, as in `intervals`.

A replicate draws as many users as there are, with replacement, and takes the mean of the drawn users'
values; a user without a value (NaN) counts neither above nor below the line. Runs over the same users,
items and `seed` have the same draws: `intervals.difference` and `paired.paired_difference` pair them.

Legend: U users, T rows of all users, B replicates, M metrics.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from trec_semid.core.arrays import Floats
from trec_semid.core.errors import ShapeError
from trec_semid.metrics.intervals import Replicates, draw_users, fingerprint


def bootstrap_user_means(
    values: Mapping[str, ArrayLike],
    users: ArrayLike,
    items: ArrayLike,
    *,
    num_replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Replicates]:
    """Take the mean of each metric over all users and under `num_replicates` draws of them.

    Args:
        values: (U,) of each metric, such as recall@10; NaN for a user whom it does not define.
        users: (T,) and
        items: (T,) the rows that the values were made of, such as every user's targets; with U, B and
            `seed` they tell which runs can be compared.
        num_replicates: B.
        seed: of the draws; equal for runs that are to be compared.

    Returns:
        One entry a metric; a metric that no user defines is left out, and all where there are fewer than
        two users: there is nothing to draw from.

    Raises:
        ShapeError: metrics over different numbers of users.
    """
    given = {name: np.asarray(column, np.float64) for name, column in values.items()}
    defined = {name: column for name, column in given.items() if not np.isnan(column).all()}
    sizes = {column.shape for column in given.values()}
    if len(sizes) > 1:
        raise ShapeError(f"values: metrics over different users (got shapes {sorted(sizes)}).")
    if not defined or len(next(iter(defined.values()))) < 2:
        return {}
    table = np.stack(list(defined.values()), axis=1)
    counted = ~np.isnan(table)
    both = np.concatenate((np.where(counted, table, 0.0), counted), axis=1)

    def means(weights: Floats) -> Floats:
        """Return (b, M) means when user u counts weights[:, u] times; NaN where no drawn user has a value."""
        sums, numbers = np.split(weights @ both, 2, axis=1)
        with np.errstate(invalid="ignore"):
            return sums / numbers

    value = means(np.ones((1, len(table))))[0]
    draws = np.concatenate([means(weights) for weights in draw_users(len(table), num_replicates, seed)])
    mark = fingerprint(np.asarray(users), np.asarray(items), num_replicates, seed)
    return {name: Replicates(float(value[at]), draws[:, at], mark) for at, name in enumerate(defined)}
