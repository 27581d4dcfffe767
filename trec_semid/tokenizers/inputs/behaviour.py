"""Behaviour views: content mapped to where items lie that users touch one after another.

Legend: B items, N items, M modalities, H width of a view, S views.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trec_semid.core.arrays import Ints
from trec_semid.core.seeds import seed_everything
from trec_semid.layers.mlp import Mlp
from trec_semid.tokenizers.inputs.behaviour_fit import (
    BehaviourConfig,
    Reader,
    TaughtVectors,
    TrainingPairs,
    learn,
)
from trec_semid.tokenizers.inputs.contents import Contents, ItemContents
from trec_semid.tokenizers.inputs.shards import copy_from, my_rank, refusing_together
from trec_semid.tokenizers.inputs.standardise import Standardiser

BEHAVIOUR = "behaviour"
"""The view's name among the modalities of a tokenizer, where it is the only one."""
_CHUNK_ROWS = 8192
_MOST_BYTES = 2 * 2**30
"""Of standardised content that is held in memory while views are learnt; more is read batch by batch."""


def view_names(config: BehaviourConfig) -> tuple[str, ...]:
    """Return the names of the views among the modalities of a tokenizer."""
    return tuple(f"{BEHAVIOUR}_{kind}" for kind in config.kinds) or (BEHAVIOUR,)


@final
class BehaviourView:
    """h = MLP(x) / |MLP(x)|, x the standardised content; a missing modality is taken for the average.

    L = -log softmax_j(h_i . h_j / temperature - log(events of j + 1)) over the pairs (i, j) of a batch, in
    both directions, equal items left out; or, of a teacher's item vectors v, L = 1 - h_i . v_i / |v_i|. It
    reads content alone, so new items have it; pairs are of training events alone; it is frozen once it is
    learnt. With kinds of events there are as many views, each with a network of its own.
    Source: the behaviour alignment of MMQ-v2 and QARM, 2025 and 2024, in its simplest form.
    """

    def __init__(self, config: BehaviourConfig, dims: Mapping[str, int]) -> None:
        self.config, self.dims = config, dict(dims)
        self.standardiser = Standardiser(dims)
        self.mlps = {name: self._drawn().eval().requires_grad_(False) for name in view_names(config)}

    def fit(
        self,
        catalogue: ItemContents,
        rows: Ints,
        sources: Mapping[str, TrainingPairs | TaughtVectors],
        seed: int,
    ) -> dict[str, list[float]]:
        """Learn on rank 0, which hands the weights to the others; return the mean loss of every epoch.

        Args:
            catalogue: of content alone.
            rows: (n,) items whose content is standardised by.
            sources: what each view learns from, by its name.
            seed: of weights, batches and dropout.

        Raises:
            DataError: fewer than two pairs, or items, to learn from.
            TrainingError: what was learnt is not finite.
        """
        self.standardiser.fit(catalogue, rows)
        losses: dict[str, list[float]] = {name: [] for name in self.mlps}
        with refusing_together():
            if my_rank() == 0:
                read, has = self._reader(catalogue), np.zeros(catalogue.num_items, bool)
                has[catalogue.rows_with_content()] = True
                for name, source in sources.items():
                    seed_everything(seed, name)
                    mlp = self._drawn()
                    losses[name] = learn(mlp, self.config, source, read, has, seed=seed, name=name)
                    self.mlps[name] = mlp.eval().requires_grad_(False)
        for mlp in self.mlps.values():
            for values in mlp.parameters():
                values.copy_(copy_from(0, values))
        return losses

    @torch.no_grad()
    def of(self, contents: Contents) -> tuple[Tensor, ...]:
        """Return h (B, H) of each of the S views, as half-precision numbers; zeros without content."""
        x, has = self.standardiser(contents), contents.present.any(1, keepdim=True)
        return tuple(torch.where(has, normalize(mlp(x), dim=1), 0.0).half() for mlp in self.mlps.values())

    def complete(self, contents: Contents) -> Contents:
        """Return content with the views as its last modalities."""
        own = self.of(contents)
        has = contents.present.any(1, keepdim=True).expand(-1, len(own))
        vectors = (*contents.vectors, *(h.float() for h in own))
        return Contents(vectors, torch.cat([contents.present, has], dim=1))

    def complete_catalogue(self, catalogue: ItemContents) -> ItemContents:
        """Return all items with the views as their last modalities, 2 H bytes an item and view."""
        own = {name: np.zeros((catalogue.num_items, self.config.dim), np.float16) for name in self.mlps}
        for rows, contents in catalogue.chunks(catalogue.rows_with_content(), _CHUNK_ROWS):
            for h, values in zip(own.values(), self.of(contents), strict=True):
                h[rows] = values.numpy()
        present = np.zeros(catalogue.num_items, bool)
        present[catalogue.rows_with_content()] = True
        has = dict.fromkeys(own, present)
        return ItemContents({**catalogue.vectors, **own}, {**catalogue.present, **has})

    def described(self) -> dict[str, Any]:
        """Return what `restored` needs beside the weights."""
        return {"modalities": self.dims, "config": self.config.model_dump(mode="json")}

    def weights(self) -> bytes:
        """Return the weights as safetensors."""
        stored = {f"x.{k}": v for k, v in self.standardiser.state_dict().items()}
        for name, mlp in self.mlps.items():
            stored |= {_prefix(name) + k: v for k, v in mlp.state_dict().items()}
        return safetensors.torch.save(stored)

    @classmethod
    def restored(cls, described: Mapping[str, Any], weights: bytes) -> "BehaviourView":
        """Return a view that was saved; faults are those of pydantic, torch and safetensors."""
        view = cls(BehaviourConfig.model_validate(described["config"]), described["modalities"])
        stored = safetensors.torch.load(weights)
        modules = {_prefix(name): mlp for name, mlp in view.mlps.items()} | {"x.": view.standardiser}
        for prefix, module in modules.items():
            own = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        return view

    def _drawn(self) -> Mlp:
        widths = [*self.config.hidden_widths, self.config.dim]
        return Mlp(sum(self.dims.values()), widths, dropout=self.config.dropout)

    def _reader(self, catalogue: ItemContents) -> Reader:
        shape = (catalogue.num_items, sum(self.dims.values()))
        if 4 * shape[0] * shape[1] > _MOST_BYTES:
            return lambda rows: self.standardiser(catalogue.batch(rows))
        x = torch.zeros(shape)
        for rows, contents in catalogue.chunks(catalogue.rows_with_content(), _CHUNK_ROWS):
            x[torch.from_numpy(rows)] = self.standardiser(contents)
        # Memory that is asked for anew at every step costs more than what is copied to it.
        place = torch.empty(min(shape[0], 4 * self.config.batch_size), shape[1])
        return lambda rows: torch.index_select(x, 0, torch.from_numpy(rows), out=place[: len(rows)])


def _prefix(name: str) -> str:
    return "mlp." if name == BEHAVIOUR else f"{name}/"
