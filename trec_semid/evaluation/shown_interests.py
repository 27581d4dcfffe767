"""`interests.json` of a run: a few users' interests, histories and lists in a plane, for the report.

    split, num_interests
    users, each with
        user_row, targets   row of the user, item rows of what came next
        explained           share of the variance of the user's items that the plane has, 0 to 1
        history, listed     items: item_row, x, y, and the interest that is nearest, or that listed it
        paths               of every interest: x, y after each of the last events; null where absent

All vectors are brought to unit length; the plane is that of the two largest principal components of the items
of the user's history and list. Events come oldest first. Where models number interests anew after every
event, paths follow the nearest one.

Legend: H items of a history, N of a list, M interests, T times, D width.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from trec_semid.core.arrays import Floats, Ints

SHOWN_INTERESTS = "interests.json"
_DIGITS = 5


class UserVectors(NamedTuple):
    """What one user's picture is made of."""

    user_row: int
    targets: Ints
    """(t,) item rows."""
    history: Ints
    """(H,) item rows, oldest first."""
    listed: Ints
    """(N,) item rows, best first."""
    listed_by: Ints
    """(N,) number of the interest of each."""
    items: Floats
    """(H + N, D) vectors of these items."""
    interests: Floats
    """(T, M, D) after each of the last events, oldest first; NaN where an interest is absent."""


def draw_user(user: UserVectors) -> dict[str, Any]:
    """Return what the file says of a user."""
    items, interests = _unit(user.items), align_interests(_unit(user.interests))
    plane = fit_plane(items)
    # Interests are numbered as now: only what came before is put in their order.
    nearest = np.argmax(np.nan_to_num(items @ interests[-1].T, nan=-2.0), axis=1)
    num_history = len(user.history)
    points = plane.of(items)
    rows = np.concatenate((user.history, user.listed))
    owners = np.concatenate((nearest[:num_history], user.listed_by))
    shown = [
        {"item_row": int(row), "x": x, "y": y, "interest": int(owner)}
        for row, (x, y), owner in zip(rows, points.tolist(), owners, strict=True)
    ]
    paths = plane.of(interests).transpose(1, 0, 2)
    return {
        "user_row": user.user_row,
        "targets": user.targets.tolist(),
        "explained": round(plane.explained, _DIGITS),
        "history": shown[:num_history],
        "listed": shown[num_history:],
        "paths": [[None if np.isnan(point).any() else point.tolist() for point in path] for path in paths],
    }


class Plane(NamedTuple):
    """Two directions through the mean of some vectors."""

    mean: Floats
    """(D,)"""
    directions: Floats
    """(2, D)"""
    explained: float
    """Share of the vectors' variance, 0 to 1."""

    def of(self, vectors: Floats) -> Floats:
        """Return the (..., 2) coordinates of (..., D) vectors, rounded."""
        return np.round((vectors - self.mean) @ self.directions.T, _DIGITS)


def fit_plane(vectors: Floats) -> Plane:
    """Return the plane of the two largest principal components; each points to where most of its weight is.

    Args:
        vectors: (n, D)
    """
    mean = vectors.mean(0)
    _, sizes, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    # Fewer than two directions, as of one item, are filled up with none.
    first = np.zeros((2, vectors.shape[1]))
    first[: len(directions[:2])] = directions[:2]
    first *= np.where(first.sum(1, keepdims=True) < 0, -1, 1)
    total = float((sizes**2).sum())
    return Plane(mean, first, float((sizes[:2] ** 2).sum()) / total if total else 1.0)


def align_interests(interests: Floats) -> Floats:
    """Return interests of all times in the order of the last, from each to the one before by cosines.

    Args:
        interests: (T, M, D) of unit length; NaN where an interest is absent, which goes with what is left.
    """
    aligned = interests.copy()
    for time in range(len(interests) - 2, -1, -1):
        cosines = np.nan_to_num(aligned[time + 1] @ interests[time].T, nan=-2.0)
        _, order = linear_sum_assignment(cosines, maximize=True)
        aligned[time] = interests[time][order]
    return aligned


def _unit(vectors: Floats) -> Floats:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
