"""HeterRec, SASRec and TIGER of this package at the asked size, and their ways to list the catalogue."""

import argparse
from typing import Any

import torch
from contest import evaluating
from given import Given
from torch import Tensor

from trec_semid.data.retrieval.batches import ItemFeatures, SequenceBatch
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.layers.attention import TransformerConfig
from trec_semid.layers.tuple_trie import TupleTrie
from trec_semid.metrics.target_positions import UserItems, locate_targets
from trec_semid.models.content_mixture import MixtureSizes
from trec_semid.models.heads.beams import Beams, NextLogProbs
from trec_semid.models.item_tokens import ItemTokens
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.methods import retriever_of
from trec_semid.models.retrieval_model import RetrievalModel, RetrieverWithLoss
from trec_semid.models.retriever import Frame, LossConfig
from trec_semid.models.retrievers.heterrec import HeterrecConfig
from trec_semid.models.retrievers.sasrec import SasrecConfig
from trec_semid.models.retrievers.tiger import TigerConfig
from trec_semid.runtime.ranks import Ranks
from trec_semid.search.beam import beam_search
from trec_semid.search.catalogue import build_catalogue
from trec_semid.search.exact import CatalogueScores
from trec_semid.sharding.apply import shard_model
from trec_semid.sharding.constraints import ShardingConfig, TableRule
from trec_semid.sharding.initialise import initialise_tables
from trec_semid.sharding.plan import plan_on_ranks
from trec_semid.tokenizers.inputs.contents import Standardised
from trec_semid.training.optimizers import OptimizersConfig, build_updates
from trec_semid.training.passes import Arguments, PlainPasses, Trained
from trec_semid.training.retrieval.item_feed import ItemFeed, Lookup
from trec_semid.training.steps import train_steps

CONTENT_DIMS = {"text": 384, "attributes": 128}
"""Of Amazon Beauty."""
RULES = ShardingConfig(tables={"t_*": TableRule(sharding_types=["table_wise"])})


def build(kind: str, given: Given, *, device: str = "cpu") -> RetrievalModel:
    """Return a model of as many blocks as asked; HeterRec and TIGER have half of them in either part."""
    options = given.options
    torch.manual_seed(0)
    whole, half = blocks(options, options.blocks), blocks(options, options.blocks // 2)
    items = items_of(given, has_id=kind == "sasrec", has_codes=kind != "sasrec", device=device)
    if kind == "sasrec":
        config, loss = SasrecConfig.model_validate({"transformer": whole}), LossConfig()
    else:
        config = HeterrecConfig.model_validate({"tokens": half, "items": half})
        loss = LossConfig(item_weight=0.0, code_weight=1.0)
    if kind == "tiger":
        config = TigerConfig(encoder=half, decoder=half)
    frame = Frame(options.dim, options.history, loss, predicts_codes=kind != "sasrec")
    return retriever_of(config).build(items, frame)


def items_of(
    given: Given, *, has_id: bool, has_codes: bool, device: str, reads_content: bool = False
) -> ItemTokens:
    """Return items of their ID, of their codes, or of both; of content alone, codes are what is predicted."""
    options, sparse, live = given.options, None, None
    if has_id:
        tables = TablesConfig(dim=options.dim, init_std=0.02)
        spec = TableSpec("t_item_id", options.items, ("item_id",))
        sparse = PooledTables([spec], tables, ["item_id"], device=device)
    if has_codes:
        sized = [CodeTable(f"t_code_{r}", options.codebook + 1) for r in range(options.positions)]
        live = LiveCodes(CodeTables(sized, options.dim, device=device), torch.from_numpy(given.codes))
    return ItemTokens(
        sparse,
        CONTENT_DIMS if reads_content else {},
        live,
        options.dim,
        content_std=0.02,
        content_is_unit=True,
        mixture=MixtureSizes(num_experts=4, hidden_dim=128) if reads_content else None,
        reads_codes=not reads_content,
    )


def drawn_content(num_items: int) -> Lookup:
    """Return what reads drawn content of items."""
    drawn = torch.randn(num_items, sum(CONTENT_DIMS.values()), generator=torch.Generator().manual_seed(0))

    def read(rows: Tensor) -> Standardised:
        """Return content of item rows."""
        return Standardised(drawn[rows], torch.ones(len(rows), len(CONTENT_DIMS), dtype=torch.bool))

    return read


def blocks(options: argparse.Namespace, number: int) -> TransformerConfig:
    """Return so many transformer blocks."""
    return TransformerConfig.model_validate({"num_layers": number, "num_heads": options.heads})


class Contestant:
    """One model of ours, placed on one rank as `trec-semid retrieve` does."""

    def __init__(
        self,
        retrieval: RetrievalModel,
        given: Given,
        features: ItemFeatures,
        ranks: Ranks,
        contents: Lookup | None = None,
    ) -> None:
        """Place a model whose tables are on the device `meta`."""
        optimizers, num_items = OptimizersConfig(), given.options.items
        model = RetrieverWithLoss(retrieval, world_size=1)
        plan = plan_on_ranks(model, ranks, RULES, batch_size=num_items, optimizer=optimizers.tables)
        self.sharded = shard_model(model, plan, ranks, optimizers.tables)
        initialise_tables(self.sharded, std=0.02, seed=0)
        self.updates = build_updates(self.sharded, optimizers, total_steps=10**6)
        self.feed = ItemFeed(features, contents, ranks)
        self.lists = Lists(retrieval, self.feed, num_items, given.options.beams)
        self._ranks = ranks

    def train(self, batch: SequenceBatch) -> None:
        """Train on a batch."""

        def arguments(batch: Any, step: int) -> Arguments:
            return Arguments((self.feed.listed(batch), batch.places, batch.global_size), {})

        passes = PlainPasses(Trained(self.sharded, self._ranks, arguments))
        next(train_steps(passes, self.updates, [batch], steps_done=0))


class Lists:
    """The best items of users. The trie lies ready, what else scores the catalogue is made in every call."""

    def __init__(self, model: Any, feed: ItemFeed, num_items: int, length: int) -> None:
        self.model, self.feed, self._num_items, self._length = model, feed, num_items, length
        live = model.items.live
        if live is not None:
            self.trie = TupleTrie.build(live.codes, [live.tables.num_rows - 1] * live.codes.shape[1])

    @torch.no_grad()
    def by_scores(self, batch: SequenceBatch) -> Tensor:
        """Return (B, length) items by scores of the whole catalogue."""
        model = evaluating(self.model)
        alone = Ranks(0, 1, 0, torch.device("cpu"))
        catalogue = build_catalogue(model, self.feed.chunk, self._num_items, alone)
        tokens = model.items(self.feed.listed(batch))
        scores = CatalogueScores(catalogue, model.queries(tokens, batch.places))
        none = torch.zeros(len(batch.rows), dtype=torch.int64)
        nothing = UserItems(none[:0], none, none[:0], none)
        return locate_targets(scores.of, nothing, self._num_items, list_length=self._length).top_items

    @torch.no_grad()
    def by_beam(self, batch: SequenceBatch) -> Beams:
        """Return the tuples of a beam as wide as the lists are long."""
        return beam_search(self.trie, len(batch.rows), self.asked(batch), self._length)

    def asked(self, batch: SequenceBatch) -> NextLogProbs:
        """Return what a beam asks the model."""
        model = evaluating(self.model)
        tokens = model.items(self.feed.listed(batch))
        return model.next_log_probs(tokens, batch.places)
