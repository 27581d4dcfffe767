"""Lists of interests, merged by a bundle: against one place after another in plain Python."""

from typing import Any

import numpy as np
import pytest

from tests.jobs.conftest import Bundles
from trec_semid.data.schema import Dataset
from trec_semid.serving.engine import Engine, Filters, RetrieveAsked, open_engine

LONGEST = 10
"""List of the run."""


def lists_of_interests(
    engine: Engine, history: list[int], allowed: set[int], length: int
) -> tuple[list[list[int]], np.ndarray, list[float]]:
    """Return each interest's own list, all scores (M, N), and the interests' probabilities."""
    member = engine._listers.members[0]
    said = member.read(np.array(history), np.array([len(history)]))
    scores = said["vectors"][0].numpy() @ member.catalogue.vectors.numpy().T
    scores = scores - engine._listers._penalties.numpy()
    logs = said["interest_log_probs"][0].double() if "interest_log_probs" in said else None
    probs = [1.0] * len(scores) if logs is None else logs.exp().tolist()
    rows = sorted(allowed - set(history))
    lists = [sorted(rows, key=lambda row: (-own[row], row))[:length] for own in scores]
    return [own if prob else [] for own, prob in zip(lists, probs, strict=True)], scores, probs


def by_quota(lists: list[list[int]], probs: list[float], n: int) -> list[tuple[int, int]]:
    seats, merged = [0] * len(lists), []
    while len(merged) < n:
        taken = {row for row, _ in merged}
        left = {m: [row for row in own if row not in taken] for m, own in enumerate(lists)}
        turns = [m for m in left if left[m]]
        if not turns:
            break
        m = max(turns, key=lambda m: (probs[m] / (seats[m] + 1), -m))
        merged.append((left[m][0], m))
        seats[m] += 1
    return merged


def for_variety(
    lists: list[list[int]], scores: np.ndarray, categories: list[set[int]], weight: float, n: int
) -> list[tuple[int, int]]:
    best = {}
    for row in {row for own in lists for row in own}:
        own = [m for m, each in enumerate(lists) if row in each]
        best[row] = max(own, key=lambda m: (scores[m, row], -m))
    merged: list[tuple[int, int]] = []
    while len(merged) < n and len(merged) < len(best):
        left = [row for row in best if row not in {row for row, _ in merged}]
        values = {
            row: float(scores[best[row], row])
            + weight * sum(not categories[row] & categories[other] for other, _ in merged)
            for row in left
        }
        row = max(left, key=lambda row: (values[row], -row))
        merged.append((row, best[row]))
    return merged


@pytest.mark.parametrize("name", ["comirec by quota", "gemirec by variety"])
def test_a_bundle_merges_as_a_loop_over_places_does_whatever_else_is_asked_with_it(
    bundles: Bundles, listed_problem: dict[str, Any], name: str
):
    engine, rng = open_engine(bundles(name)), np.random.default_rng(1)
    facts, ids = engine.manifest.retriever, Dataset(listed_problem["dataset"]).item_ids.to_pylist()
    assert (facts.listed_by, facts.merge.length) == ("merged", LONGEST) == (facts.run_listed_by, 10)
    genres = Dataset(listed_problem["dataset"]).items(["genres"])["genres"].to_pylist()
    categories = [{number for number in own or () if number} or {-1} for own in genres]
    asked, expected = [], []
    for _ in range(24):
        n = int(rng.choice([2, 5, 10, 14]))
        history = rng.choice(40, rng.integers(1, 9), replace=False).tolist()
        allowed = set(range(40)) if rng.random() < 0.5 else set(rng.choice(40, 15, replace=False).tolist())
        only = None if len(allowed) == 40 else tuple(ids[row] for row in allowed)
        asked.append(RetrieveAsked(None, tuple(ids[row] for row in history), n, Filters(allowed=only)))
        lists, scores, probs = lists_of_interests(engine, history, allowed, max(n, LONGEST))
        if facts.merge.kind == "quota":
            merged = by_quota(lists, probs, n)
        else:
            merged = for_variety(lists, scores, categories, facts.merge.weight, n)
        expected.append(([ids[row] for row, _ in merged], [scores[m, row] for row, m in merged]))
    for answer, (items, scores) in zip(engine.retrieve(asked), expected, strict=True):
        assert list(answer.items) == items
        np.testing.assert_allclose(answer.scores, scores, atol=1e-5)
    (exact,) = engine.retrieve([asked[0]._replace(search="exact", n=30)])
    assert exact.scores.tolist() == sorted(exact.scores.tolist(), reverse=True)
