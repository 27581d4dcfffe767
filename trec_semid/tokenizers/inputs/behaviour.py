"""The behaviour view: content mapped to where items lie that users touch one after another.

Legend: B items, N items, P pairs, M modalities, H width of the view.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import numpy as np
import safetensors.torch
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from trec_semid.core.arrays import Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError, TrainingError
from trec_semid.core.finite import first_not_finite
from trec_semid.core.seeds import numpy_generator, seed_everything
from trec_semid.layers.contrastive import PairedItems, paired_info_nce
from trec_semid.layers.mlp import Mlp
from trec_semid.runtime.logs import working
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.shards import copy_from, my_rank, refusing_together
from trec_semid.tokenizers.inputs.standardise import Standardiser

BEHAVIOUR = "behaviour"
"""The view's name among the modalities of a tokenizer."""
_CHUNK_ROWS = 8192
_MOST_BYTES = 2 * 2**30
"""Of standardised content that is held in memory while the view is learnt; more is read batch by batch."""


class BehaviourConfig(Config):
    """How the view is learnt."""

    dim: PositiveInt = 64
    """H."""
    hidden_widths: tuple[PositiveInt, ...] = (256,)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    window: PositiveInt = 1
    """Two training events of a user are a pair where at most so many steps lie between them."""
    popularity_correction: float = Field(default=1.0, ge=0, le=10)
    """How much of the logarithm of an item's training events is taken off its score; 0 lets popular items be
    near everything."""
    temperature: float = Field(default=0.07, ge=0.005)
    epochs: PositiveInt = 4
    batch_size: PositiveInt = 1024
    """Pairs that are told apart in a step, at least: all are dealt to steps of about one size."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4


class TrainingPairs(NamedTuple):
    """Which items follow each other in training."""

    left: Ints
    """(P,) item rows."""
    right: Ints
    """(P,) item rows, another item than beside it."""
    counts: Ints
    """(N,) training events of each item."""


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


@final
class BehaviourView:
    """h = MLP(x) / |MLP(x)|, x the standardised content; a missing modality is taken for the average.

    L = -log softmax_j(h_i . h_j / temperature - log(events of j + 1)) over the pairs (i, j) of a batch, in
    both directions, equal items left out. It reads content alone, so new items have it; pairs are of
    training events alone; it is frozen once it is learnt.
    Source: the behaviour alignment of MMQ-v2 and QARM, 2025 and 2024, in its simplest form.
    """

    def __init__(self, config: BehaviourConfig, dims: Mapping[str, int]) -> None:
        self.config, self.dims = config, dict(dims)
        self.standardiser = Standardiser(dims)
        widths = [*config.hidden_widths, config.dim]
        self.mlp = Mlp(sum(dims.values()), widths, dropout=config.dropout).eval().requires_grad_(False)

    def fit(self, catalogue: ItemContents, rows: Ints, pairs: TrainingPairs, seed: int) -> list[float]:
        """Learn on rank 0, which hands the weights to the others; return the mean loss of every epoch.

        Args:
            catalogue: of content alone.
            rows: (n,) items whose content is standardised by.
            pairs: of training events.
            seed: of weights, batches and dropout.

        Raises:
            DataError: fewer than two pairs of items with content.
            TrainingError: what was learnt is not finite.
        """
        self.standardiser.fit(catalogue, rows)
        losses: list[float] = []
        with refusing_together():
            if my_rank() == 0:
                losses = self._learn(catalogue, pairs, seed)
        for values in self.mlp.parameters():
            values.copy_(copy_from(0, values))
        return losses

    @torch.no_grad()
    def of(self, contents: Contents) -> Tensor:
        """Return h (B, H), in half precision as it is stored; zeros where an item has no content."""
        h = normalize(self.mlp(self.standardiser(contents)), dim=1)
        return torch.where(contents.present.any(1, keepdim=True), h, 0.0).half()

    def complete(self, contents: Contents) -> Contents:
        """Return content with the view as its last modality."""
        present = torch.cat([contents.present, contents.present.any(1, keepdim=True)], dim=1)
        return Contents((*contents.vectors, self.of(contents).float()), present)

    def complete_catalogue(self, catalogue: ItemContents) -> ItemContents:
        """Return all items with the view as their last modality, 2 H bytes an item."""
        h = np.zeros((catalogue.num_items, self.config.dim), np.float16)
        for rows, contents in catalogue.chunks(catalogue.rows_with_content(), _CHUNK_ROWS):
            h[rows] = self.of(contents).numpy()
        present = np.zeros(catalogue.num_items, bool)
        present[catalogue.rows_with_content()] = True
        return ItemContents({**catalogue.vectors, BEHAVIOUR: h}, {**catalogue.present, BEHAVIOUR: present})

    def described(self) -> dict[str, Any]:
        """Return what `restored` needs beside the weights."""
        return {"modalities": self.dims, "config": self.config.model_dump(mode="json")}

    def weights(self) -> bytes:
        """Return the weights as safetensors."""
        own = {f"mlp.{name}": value for name, value in self.mlp.state_dict().items()}
        return safetensors.torch.save(own | {f"x.{k}": v for k, v in self.standardiser.state_dict().items()})

    @classmethod
    def restored(cls, described: Mapping[str, Any], weights: bytes) -> "BehaviourView":
        """Return a view that was saved; faults are those of pydantic, torch and safetensors."""
        view = cls(BehaviourConfig.model_validate(described["config"]), described["modalities"])
        stored = safetensors.torch.load(weights)
        for prefix, module in (("mlp.", view.mlp), ("x.", view.standardiser)):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
            )
        return view

    def _learn(self, catalogue: ItemContents, pairs: TrainingPairs, seed: int) -> list[float]:
        config, has = self.config, np.zeros(catalogue.num_items, bool)
        has[catalogue.rows_with_content()] = True
        usable = np.flatnonzero(has[pairs.left] & has[pairs.right])
        if len(usable) < 2:
            problem = "the behaviour view needs items with content that follow each other in training"
            remedy = "Leave [behaviour] out, or prepare a dataset with longer histories"
            raise DataError(problem, field="behaviour", value=len(usable), remedy=remedy)
        seed_everything(seed, BEHAVIOUR)
        self.mlp = Mlp(self.mlp.in_dim, [*config.hidden_widths, config.dim], dropout=config.dropout)
        optimizer = torch.optim.AdamW(
            self.mlp.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        losses, read = list[float](), self._reader(catalogue)
        with working("learn behaviour", config.epochs * len(usable)) as work:
            for epoch in range(config.epochs):
                order, total = numpy_generator(seed, BEHAVIOUR, epoch).permutation(usable), 0.0
                # A single pair has nothing to be told apart from: batches are of about one size.
                for batch in np.array_split(order, max(1, len(order) // config.batch_size)):
                    loss = self._loss(read, pairs, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach()) * len(batch)
                    work.advance(len(batch))
                losses.append(total / len(order))
        self.mlp.eval().requires_grad_(False)
        if first_not_finite(self.mlp.named_parameters()):
            raise TrainingError("behaviour view: weights are not finite. Lower behaviour.learning_rate.")
        return losses

    def _reader(self, catalogue: ItemContents) -> Callable[[Ints], Tensor]:
        """Return what gives standardised content (n, D) of (n,) item rows, until it is called again."""
        shape = (catalogue.num_items, self.mlp.in_dim)
        if 4 * shape[0] * shape[1] > _MOST_BYTES:
            return lambda rows: self.standardiser(catalogue.batch(rows))
        x = torch.zeros(shape)
        for rows, contents in catalogue.chunks(catalogue.rows_with_content(), _CHUNK_ROWS):
            x[torch.from_numpy(rows)] = self.standardiser(contents)
        # Memory that is asked for anew at every step costs more than what is copied to it.
        place = torch.empty(min(shape[0], 4 * self.config.batch_size), shape[1])
        return lambda rows: torch.index_select(x, 0, torch.from_numpy(rows), out=place[: len(rows)])

    def _loss(self, read: Callable[[Ints], Tensor], pairs: TrainingPairs, batch: Ints) -> Tensor:
        # An item of several pairs goes through the network once.
        items, places = np.unique(np.stack([pairs.left[batch], pairs.right[batch]]), return_inverse=True)
        h = normalize(self.mlp(read(items)), dim=1)
        places = torch.from_numpy(places.reshape(2, -1).astype(np.int32))
        rated = self.config.popularity_correction * torch.from_numpy(np.log1p(pairs.counts[items])).float()
        left, right = (PairedItems(h[side], side, rated[side]) for side in places)
        return paired_info_nce(left, right, temperature=self.config.temperature)
