"""A finished retriever in this process alone, whose item tables and content stay where they lie on the disk.

What is asked of some items is read for them: memory is that of the rows, however many items there are.

Legend: U items of a lookup, D table width.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from trec_semid.checkpoints.load import expect_loaded
from trec_semid.checkpoints.stretches import SavedTensors
from trec_semid.core.errors import CheckpointError
from trec_semid.models.retrieval_model import RetrieverWithLoss
from trec_semid.runtime.ranks import Ranks
from trec_semid.tokenizers.inputs.contents import ItemContents, Standardised
from trec_semid.tokenizers.inputs.standardise import Standardiser
from trec_semid.training.finished import step_of_weights
from trec_semid.training.retrieval.build import build_retriever
from trec_semid.training.retrieval.evaluation.asked import AskedModel
from trec_semid.training.retrieval.finished import Member
from trec_semid.training.retrieval.inputs import RetrieveInputs, read_inputs
from trec_semid.training.retrieval.item_feed import ItemFeed
from trec_semid.training.retrieval.setup import RetrieveConfig
from trec_semid.training.run import on_main


def place_stretched(member: Member, ranks: Ranks) -> AskedModel:
    """Return a finished run that has learnt something, with the weights that count; all ranks together.

    From then on every rank asks it alone.

    Args:
        member: the run, and its config.
        ranks: this process among its peers.

    Raises:
        ConfigError: the run was trained on other data or codes than are there now, or has no checkpoint left.
        CheckpointError: its checkpoint is gone or damaged, or does not fit the model.
    """
    run, config = member
    inputs = read_inputs(config)
    saved = SavedTensors(run.checkpoints, step_of_weights(run, inputs.checksums), "model/")
    placed = build_retriever(config, inputs, world_size=1)
    _load(placed, saved, ranks.device)
    alone = Ranks(0, 1, ranks.local_rank, ranks.device)
    content = _content(config, inputs, ranks)
    feed = ItemFeed(inputs.data.item_features, content, alone)
    return AskedModel(config.retriever, placed.retriever.eval(), feed, inputs.data, alone)


@final
class SavedBags(nn.Module):
    """Sums rows of saved tables, where a model has a collection of its own; see `embeddings.collection`."""

    def __init__(self, saved: SavedTensors, tables: Mapping[str, str], device: torch.device) -> None:
        """Take the tensors.

        Args:
            saved: of the checkpoint.
            tables: feature to the name of the tensor that it reads.
            device: where sums are wanted.
        """
        super().__init__()
        self._saved, self._tables, self._device = saved, dict(tables), device

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return (U, D) of every feature: the sum of the rows of each bag."""
        sums = [self._sums(features, name) for name in features.keys()]  # noqa: SIM118 - torchrec's, no dict
        return KeyedTensor(features.keys(), [part.shape[1] for part in sums], torch.cat(sums, 1))

    def _sums(self, features: KeyedJaggedTensor, name: str) -> Tensor:
        bags = features[name]
        ids, places = bags.values().unique(return_inverse=True)
        rows = self._saved.some(self._tables[name], ids.cpu().numpy()).to(self._device).float()
        if not len(rows):
            return rows.new_zeros(len(bags.lengths()), rows.shape[1])
        return embedding_bag(places, rows, bags.offsets(), mode="sum", include_last_offset=True)


def _load(placed: RetrieverWithLoss, saved: SavedTensors, device: torch.device) -> None:
    """Load a model; its item tables, which have no memory, make room for what reads them.

    Raises:
        CheckpointError: it does not fit.
    """
    sparse = placed.retriever.items.sparse
    apart: dict[str, str] = {}
    if sparse is not None:
        within = next(name for name, module in placed.named_modules() if module is sparse)
        of_table = {key.split(".")[-2]: f"{within}.{key}" for key in sparse.state_dict()}
        readers: Any = sparse.tables.embedding_bag_configs()
        apart = {feature: of_table[one.name] for one in readers for feature in one.feature_names}
        sparse.register_module("tables", SavedBags(saved, apart, device))
    expected, large = placed.state_dict(), set(apart.values())
    shapes = {name: tuple(one.shape) for name, one in expected.items()} | dict.fromkeys(large, None)
    have = {name: None if name in large else saved.shape(name) for name in saved.names}
    if shapes != have:
        wrong = sorted(name for name in {*shapes, *have} if shapes.get(name, ()) != have.get(name, ()))
        raise CheckpointError(
            f"the checkpoint does not fit the model ({', '.join(wrong[:3])}). Use the run's own config.toml."
        )
    weights = {name: saved.whole(name) for name in expected}
    # Tables of codes have no memory yet, and take what is loaded for theirs.
    placed.load_state_dict(weights, assign=True)
    placed.to(device)
    expect_loaded(placed)


@final
class _ContentRows:
    """Standardised content of items, read when it is asked for; a `Lookup` that keeps nothing."""

    def __init__(self, catalogue: ItemContents, standardiser: Standardiser, device: torch.device) -> None:
        self._catalogue, self._standardiser, self._device = catalogue, standardiser, device

    def __call__(self, rows: Tensor) -> Standardised:
        """Return content of (U,) item rows, rounded to half precision as tables of content have it."""
        numbers = rows.numpy(force=True)
        distinct, inverse = np.unique(numbers, return_inverse=True)
        contents = self._catalogue.batch(distinct)
        back = torch.from_numpy(inverse.reshape(-1))
        # Modality by modality, as tables of content are filled.
        parts = [
            self._standardiser.modality(name, vectors.to(self._device), present.to(self._device)).half()
            for name, vectors, present in zip(
                self._catalogue.vectors, contents.vectors, contents.present.unbind(1), strict=True
            )
        ]
        own = back.to(self._device)
        x = torch.cat(parts, 1).float()[own]
        return Standardised(x, contents.present.to(self._device)[own])


def _content(config: RetrieveConfig, inputs: RetrieveInputs, ranks: Ranks) -> _ContentRows | None:
    """Return what reads the content that is projected, standardised over items seen in training."""
    if not config.item.content:
        return None
    dataset = inputs.dataset
    catalogue = ItemContents(
        {name: dataset.content(name) for name in config.item.content},
        {name: dataset.content_mask(name) for name in config.item.content},
    )
    standardiser = Standardiser(catalogue.dims)

    def fitted() -> dict[str, Tensor]:
        """Return what is measured, by one rank: sums of several would round in another order."""
        standardiser.fit(catalogue, np.flatnonzero(inputs.data.item_counts))
        return dict(standardiser.state_dict())

    standardiser.load_state_dict(on_main(ranks, fitted))
    return _ContentRows(catalogue, standardiser.to(ranks.device), ranks.device)
