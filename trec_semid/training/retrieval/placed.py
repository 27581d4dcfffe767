"""A retriever with its tables and content placed on the ranks, ready to be trained or asked."""

from typing import Any, NamedTuple

import numpy as np
from torchrec.distributed.model_parallel import DistributedModelParallel

from trec_semid.data.retrieval.dataset import RetrievalData
from trec_semid.embeddings.content_tables import PREFIX
from trec_semid.models.retrieval_model import retrieval_model_in
from trec_semid.models.retriever import Retriever
from trec_semid.runtime.ranks import Ranks
from trec_semid.runtime.runs import RunFolder
from trec_semid.sharding.plan import TablePlan, plan_on_ranks
from trec_semid.tokenizers.inputs.contents import ItemContents
from trec_semid.tokenizers.inputs.standardise import Standardiser
from trec_semid.training.placement import place_content, place_model, tell_plan
from trec_semid.training.retrieval.build import build_retriever, items_at_once
from trec_semid.training.retrieval.evaluation.asked import AskedModel
from trec_semid.training.retrieval.inputs import RetrieveInputs
from trec_semid.training.retrieval.item_feed import ItemFeed, Lookup, look_up
from trec_semid.training.retrieval.setup import RetrieveConfig


class PlacedRetriever(NamedTuple):
    """A model on its ranks."""

    model: DistributedModelParallel
    feed: ItemFeed
    """Brings items to it."""
    plan: TablePlan
    """What other tables are placed beside: of its content where it projects any, of its tables otherwise."""
    items_at_once: int
    """Items that a step lists, at most."""

    def asked(self, method: Retriever[Any], data: RetrievalData, ranks: Ranks) -> AskedModel:
        """Return what is asked for lists, of the method that built it and the data it was built for."""
        return AskedModel(method, retrieval_model_in(self.model), self.feed, data, ranks)


def place_retriever(
    config: RetrieveConfig,
    inputs: RetrieveInputs,
    folder: RunFolder,
    ranks: Ranks,
) -> PlacedRetriever:
    """Build the model, place its tables and the content it projects, and draw its weights.

    Args:
        config: of the model.
        inputs: what it is trained on.
        folder: where plans are written.
        ranks: this process among its peers.
    """
    data = inputs.data
    listed = items_at_once(config, len(data.negatives(config.loss.negatives)), ranks.world_size)
    model = build_retriever(config, inputs, world_size=ranks.world_size)
    plan = plan_on_ranks(
        model,
        ranks,
        config.sharding.part(PREFIX, is_inside=False),
        batch_size=listed,
        optimizer=config.optimizers.tables,
        mean_lengths=data.item_features.mean_lengths(),
    )
    tell_plan(folder, plan, ranks)
    tables, std = config.optimizers.tables, config.tables.init_std
    sharded = place_model(model, plan, ranks, tables, std=std, seed=config.seed)
    contents, plan = _content_lookup(config, folder, inputs, plan, ranks, batch_size=listed)
    feed = ItemFeed(data.item_features, contents, ranks)
    return PlacedRetriever(sharded, feed, plan, listed)


def _content_lookup(
    config: RetrieveConfig,
    folder: RunFolder,
    inputs: RetrieveInputs,
    plan: TablePlan,
    ranks: Ranks,
    *,
    batch_size: int,
) -> tuple[Lookup | None, TablePlan]:
    """Place the content that is projected beside the tables, standardised over items seen in training."""
    if not config.item.content:
        return None, plan
    dataset = inputs.dataset
    catalogue = ItemContents(
        {name: dataset.content(name) for name in config.item.content},
        {name: dataset.content_mask(name) for name in config.item.content},
    )
    standardiser = Standardiser(catalogue.dims).to(ranks.device)
    standardiser.fit(catalogue, np.flatnonzero(inputs.data.item_counts))
    content = place_content(
        catalogue,
        standardiser,
        config.sharding,
        ranks,
        batch_size=batch_size,
        items_per_row=1.0,
        beside=plan,
    )
    tell_plan(folder, content.plan, ranks, "content_plan")
    return look_up(content.tables), content.plan
