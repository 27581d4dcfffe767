"""An engine of the size of Amazon Beauty without a bundle: drawn vectors, and real matrix products in numpy.

A user is the mean of the history's vectors. A list is the product with all items and the best of it; a score
is that of a perceptron of two layers over user and item.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trec_semid.serving.engine import (
    AssignAnswer,
    AssignAsked,
    ItemFacts,
    NotServedError,
    RankAnswer,
    RankAsked,
    RetrieveAnswer,
    RetrieveAsked,
)

ITEMS, DIM, HIDDEN = 12_101, 64, 128


class NumbersEngine:
    """Answers by matrix products alone."""

    manifest: Any = None

    def __init__(self, version: str = "drawn") -> None:
        drawn = np.random.default_rng(0)
        self.version = version
        self.items = drawn.normal(size=(ITEMS, DIM)).astype(np.float32)
        self.first = drawn.normal(size=(2 * DIM, HIDDEN)).astype(np.float32) / 8
        self.last = drawn.normal(size=HIDDEN).astype(np.float32) / 8
        self.rows = {f"B{row:09d}": row for row in range(ITEMS)}
        self.ids = list(self.rows)

    def users(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Return (B, DIM) vectors."""
        return np.stack([self.items[list(rows)].mean(0) if rows else self.items[0] for rows in histories])

    def rank(self, asked: Sequence[RankAsked]) -> list[RankAnswer]:
        """Score candidates."""
        histories = [[self.rows[item] for item in each.history or ()] for each in asked]
        lengths = [len(each.candidates) for each in asked]
        candidates = np.array([self.rows[item] for each in asked for item in each.candidates])
        users = np.repeat(self.users(histories), lengths, axis=0)
        hidden = np.maximum(np.concatenate([users, self.items[candidates]], axis=1) @ self.first, 0)
        scores = (1 / (1 + np.exp(-(hidden @ self.last)))).astype(np.float32)
        parts = np.split(scores, np.cumsum(lengths)[:-1])
        return [RankAnswer(part, "history", 0) for part in parts]

    def retrieve(self, asked: Sequence[RetrieveAsked]) -> list[RetrieveAnswer]:
        """List items."""
        histories = [[self.rows[item] for item in each.history or ()] for each in asked]
        scores = self.users(histories) @ self.items.T
        answers = []
        for each, rows, own in zip(asked, histories, scores, strict=True):
            own[rows] = -np.inf
            best = np.argpartition(own, -each.n)[-each.n :]
            best = best[np.argsort(-own[best], kind="stable")]
            basis = "history" if rows else "popularity"
            answers.append(RetrieveAnswer(tuple(self.ids[row] for row in best), own[best], basis, 0, best))
        return answers

    def assign(self, asked: Sequence[AssignAsked]) -> list[AssignAnswer]:
        """Refuse."""
        raise NotServedError("drawn vectors have no tokenizer")

    def item(self, item: str) -> ItemFacts:
        """Return an item by itself."""
        return ItemFacts(item, (), (), None, {})

    def find(self, words: str, n: int) -> list[ItemFacts]:
        """Find nothing."""
        return []

    def examples(self, n: int) -> tuple[str, ...]:
        """Return the first ids."""
        return tuple(self.ids[:n])

    def close(self) -> None:
        """Do nothing."""
