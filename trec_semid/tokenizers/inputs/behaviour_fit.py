"""How behaviour views are learnt: from items that follow each other in training, or from item vectors.

Legend: N items, P pairs, H width of the view, V width of a teacher's vectors.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from trec_semid.core.arrays import Array, Flags, Ints
from trec_semid.core.config import Config, Place, faults_of_unread
from trec_semid.core.errors import DataError, TrainingError
from trec_semid.core.finite import first_not_finite
from trec_semid.core.seeds import numpy_generator
from trec_semid.layers.contrastive import PairedItems, paired_info_nce
from trec_semid.layers.mlp import Mlp
from trec_semid.runtime.logs import working

_EPOCHS_OF_PAIRS, _EPOCHS_OF_VECTORS = 4, 60
Reader = Callable[[Ints], Tensor]
"""Standardised content (n, D) of (n,) item rows, until it is called again."""


class BehaviourConfig(Config):
    """How the view is learnt."""

    dim: PositiveInt = 64
    """H."""
    hidden_widths: tuple[PositiveInt, ...] = (256,)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    kinds: tuple[str, ...] = ()
    """Kinds of events, such as `click` and `purchase`, each a view of its own, `behaviour_<kind>`, whatever
    the labels. Where not given there is one view, `behaviour`, of all events that were liked."""
    teacher: Place | None = None
    """Bundle of a retriever: the view rebuilds its item vectors from content, and reads no events."""
    window: PositiveInt = 1
    """Two training events of a user are a pair where at most so many steps lie between them."""
    popularity_correction: float = Field(default=1.0, ge=0, le=10)
    """How much of the logarithm of an item's training events is taken off its score; 0 lets popular items be
    near everything."""
    reliability: NonNegativeFloat = 0.0
    """k of the weight n / (n + k) of what n training events say: of a pair by its rarer item, of a teacher's
    vector by its own. 0 weighs all alike."""
    temperature: float = Field(default=0.07, ge=0.005)
    epochs: PositiveInt | None = None
    """4 over pairs and 60 over items, where not given."""
    batch_size: PositiveInt = 1024
    """Pairs that are told apart in a step, at least: all are dealt to steps of about one size. Items of a
    teacher likewise."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4

    @model_validator(mode="after")
    def _reads_what_it_names(self) -> Self:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"behaviour.kinds: {', '.join(self.kinds)}: one of them is there twice")
        of_events = ("kinds", "window", "popularity_correction", "temperature")
        if self.teacher and (
            faults := faults_of_unread(self, "behaviour", of_events, "behaviour.teacher reads no events")
        ):
            raise ValueError("\n".join(faults))
        return self

    @property
    def num_epochs(self) -> int:
        """Of the one or the other."""
        return self.epochs or (_EPOCHS_OF_VECTORS if self.teacher else _EPOCHS_OF_PAIRS)


class TrainingPairs(NamedTuple):
    """Which items follow each other in training."""

    left: Ints
    """(P,) item rows."""
    right: Ints
    """(P,) item rows, another item than beside it."""
    counts: Ints
    """(N,) training events of each item."""


class TaughtVectors(NamedTuple):
    """What a teacher knows of items."""

    vectors: Array
    """(N, V)."""
    counts: Ints
    """(N,) training events of each item; nothing is learnt of items without."""


def training_pairs(users: Ints, items: Ints, num_items: int, window: int) -> TrainingPairs:
    """Return the pairs of different items at most `window` steps apart among a user's events.

    Args:
        users: (E,) of training events, in their order.
        items: (E,) item rows.
        num_items: N.
        window: at least 1.
    """
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    steps = range(1, min(window, max(len(items) - 1, 0)) + 1)
    left = [items[:-step][users[:-step] == users[step:]] for step in steps]
    right = [items[step:][users[:-step] == users[step:]] for step in steps]
    pairs = np.stack([np.concatenate([[], *side]).astype(np.int64) for side in (left, right)])
    pairs = pairs[:, pairs[0] != pairs[1]]
    return TrainingPairs(pairs[0], pairs[1], np.bincount(items, minlength=num_items))


def learn(
    mlp: Mlp,
    config: BehaviourConfig,
    source: TrainingPairs | TaughtVectors,
    read: Reader,
    has: Flags,
    *,
    seed: int,
    name: str,
) -> list[float]:
    """Fit a view's network on one process; return the mean loss of every epoch.

    Args:
        mlp: from standardised content (n, D) to (n, H); drawn already.
        config: of the view.
        source: what it learns from.
        read: gives content.
        has: (N,) which items have some.
        seed: of batches and dropout.
        name: of the view.

    Raises:
        DataError: fewer than two pairs, or items, to learn from.
        TrainingError: what was learnt is not finite.
    """
    if isinstance(source, TrainingPairs):
        usable, what = (
            np.flatnonzero(has[source.left] & has[source.right]),
            "that follow each other in training",
        )
        loss = _loss_of_pairs(mlp, config, source, read)
    else:
        usable, what = np.flatnonzero(has & (source.counts > 0)), "that its teacher has seen in training"
        loss = _loss_of_vectors(mlp, config, source, read)
    if len(usable) < 2:
        problem = f"the behaviour view needs items with content {what}"
        remedy = "Leave [behaviour] out, or prepare a dataset with longer histories"
        raise DataError(problem, field=name, value=len(usable), remedy=remedy)
    optimizer = torch.optim.AdamW(
        mlp.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    losses = list[float]()
    with working(f"learn {name}", config.num_epochs * len(usable)) as work:
        for epoch in range(config.num_epochs):
            order, total = numpy_generator(seed, name, epoch).permutation(usable), 0.0
            # A single pair has nothing to be told apart from: batches are of about one size.
            for batch in np.array_split(order, max(1, len(order) // config.batch_size)):
                value = loss(batch)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += float(value.detach()) * len(batch)
                work.advance(len(batch))
            losses.append(total / len(order))
    if first_not_finite(mlp.named_parameters()):
        raise TrainingError("behaviour view: weights are not finite. Lower behaviour.learning_rate.")
    return losses


def principal_part(vectors: Array, dim: int) -> Array:
    """Return (N, dim) of unit length: the vectors (N, V), at unit length, along their first directions.

    These are the rows of the best approximation of rank dim of all vectors' cosines (Eckart and Young, 1936).

    Raises:
        DataError: the vectors are narrower than that.
    """
    if vectors.shape[1] < dim:
        remedy = f"Set behaviour.dim = {vectors.shape[1]} or less"
        problem = f"the teacher's item vectors are {vectors.shape[1]} wide"
        raise DataError(problem, field="behaviour.dim", value=dim, remedy=remedy)
    unit = normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)
    if dim < unit.shape[1]:
        _, directions = torch.linalg.eigh(unit.T @ unit)  # ascending
        unit = normalize(unit @ directions[:, -dim:].flip(1), dim=1)
    return unit.numpy()


def _weights(counts: Ints, config: BehaviourConfig) -> Tensor:
    """Return n / (n + k) of (...) training events n; ones where k is 0."""
    shares = counts / np.maximum(counts + config.reliability, 1e-12)
    return torch.from_numpy(shares if config.reliability else np.ones(counts.shape)).float()


def _loss_of_pairs(
    mlp: Mlp, config: BehaviourConfig, pairs: TrainingPairs, read: Reader
) -> Callable[[Ints], Tensor]:
    weights = _weights(np.minimum(pairs.counts[pairs.left], pairs.counts[pairs.right]), config)

    def loss(batch: Ints) -> Tensor:
        """Return () the mean over (B,) pairs."""
        # An item of several pairs goes through the network once.
        items, places = np.unique(np.stack([pairs.left[batch], pairs.right[batch]]), return_inverse=True)
        h = normalize(mlp(read(items)), dim=1)
        places = torch.from_numpy(places.reshape(2, -1).astype(np.int32))
        rated = config.popularity_correction * torch.from_numpy(np.log1p(pairs.counts[items])).float()
        left, right = (PairedItems(h[side], side, rated[side]) for side in places)
        own = weights[torch.from_numpy(batch)]
        return paired_info_nce(left, right, temperature=config.temperature, weights=own)

    return loss


def _loss_of_vectors(
    mlp: Mlp, config: BehaviourConfig, taught: TaughtVectors, read: Reader
) -> Callable[[Ints], Tensor]:
    vectors = torch.from_numpy(principal_part(taught.vectors, config.dim))
    weights = _weights(taught.counts, config)

    def loss(batch: Ints) -> Tensor:
        """Return () the weighted mean of 1 - cosine over (B,) items."""
        rows = torch.from_numpy(batch)
        cosines = (normalize(mlp(read(batch)), dim=1) * vectors[rows]).sum(1)
        own = weights[rows]
        return ((1 - cosines) * own).sum() / own.sum()

    return loss
