"""Config of `trec-semid rank`, the data it reads and the model it trains, before any sharding."""

from typing import Literal, NamedTuple, Self

import torch
from pydantic import model_validator

from trec_semid.core.errors import DataError
from trec_semid.core.seeds import seed_everything
from trec_semid.data.features import Feature, FeaturesConfig, Representation
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.source import Codes, RankingSource
from trec_semid.data.ranking.streamed import StreamConfig, StreamedData
from trec_semid.data.schema import Dataset, open_dataset
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.models.in_the_loop import CODE_ROLES, RankerInTheLoop, RankerInTheLoopWithLoss
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.loop_prefixes import LoopPrefixes
from trec_semid.models.methods import AnyRankerConfig, build_dense_ranker
from trec_semid.models.ranker import Ranker, RankerWithLoss
from trec_semid.models.rankers.ppnet import PpnetConfig
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.config import TrainConfig, TrainingRunConfig
from trec_semid.training.finetune.tokenizer import expect_effective, load_learned
from trec_semid.training.matched_codes import read_semantic_ids

SelectBy = Literal["auc", "gauc", "log_loss"]


class RankTrainConfig(TrainConfig):
    """Training of a ranker."""

    select_by: SelectBy = "auc"
    """Metric of the validation split (online protocol) that decides which step is best."""
    compile: bool = False
    """Whether `torch.compile` makes the dense part's forward and backward while it trains."""


class RankConfig(TrainingRunConfig):
    """What `trec-semid rank` reads."""

    representation: Representation
    """What stands for an item, as target and in histories: its ID, its codes, or both."""
    features: FeaturesConfig = FeaturesConfig()
    history: HistoryConfig = HistoryConfig.model_validate({})
    stream: StreamConfig | None = None
    """Given where rows are read from the files that `prepare` writes for [rows], instead of all events being
    held in memory."""
    tables: TablesConfig = TablesConfig.model_validate({})
    model: AnyRankerConfig = PpnetConfig.model_validate({})
    # Frozen, so a narrower type is sound.
    train: RankTrainConfig = RankTrainConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _codes_where_needed(self) -> Self:
        if self.representation != "item" and not self.semantic_ids:
            raise ValueError(f"representation '{self.representation}' needs semantic_ids")
        if self.finetune and self.representation == "item":
            raise ValueError("finetune needs codes to tune: set representation to 'semantic' or 'both'")
        if self.representation == "item" and self.semantic_ids:
            raise ValueError(
                f"representation 'item' reads no semantic_ids (got '{self.semantic_ids}'): set it to "
                "'semantic' or 'both', or take them back with semantic_ids = ''"
            )
        if self.features.id_min_events and self.representation == "semantic":
            raise ValueError(
                f"features.id_min_events ({self.features.id_min_events}): representation 'semantic' reads no "
                "item IDs: set it to 'both', or leave id_min_events out"
            )
        if self.stream and self.test_then_train:
            raise ValueError("stream: test_then_train holds the events in memory: leave [stream] out")
        return self

    @model_validator(mode="after")
    def _can_finetune(self) -> Self:
        if self.finetune is None:
            return self
        if self.finetune.moves_targets:
            raise ValueError(
                "finetune.moves_targets: is of retrievers; a ranker's candidates always choose: leave it out"
            )
        if self.train.pipeline != "plain":
            raise ValueError(
                f"train.pipeline ('{self.train.pipeline}'): with [finetune] the model asks tables for codes "
                "that it chooses in the step, which cannot be asked ahead: set train.pipeline = 'plain'"
            )
        if self.finetune.warmup_epochs >= self.train.max_epochs:
            raise ValueError(
                f"finetune.warmup_epochs ({self.finetune.warmup_epochs:g}) leaves no epoch of "
                f"train.max_epochs ({self.train.max_epochs}) in which the tokenizer moves"
            )
        return self


class RankInputs(NamedTuple):
    """What is read before training."""

    dataset: Dataset
    data: RankingSource
    semantic_ids: SemanticIds | None
    """None where only item IDs stand for items."""

    @property
    def checksums(self) -> dict[str, str]:
        """What a run is trained on: it goes on with nothing else, and its result stands for nothing else."""
        codes = {"semantic_ids": self.semantic_ids.checksum()} if self.semantic_ids else {}
        return {"dataset": self.dataset.facts.checksum, **codes}


def read_inputs(config: RankConfig) -> RankInputs:
    """Read the dataset and, unless items are their IDs alone, the semantic IDs.

    Raises:
        DataError: something is missing or does not fit together, or validation cannot tell steps apart.
    """
    dataset = open_dataset(config.dataset, config.verify)
    semantic_ids = None
    if config.semantic_ids:
        semantic_ids = read_semantic_ids(config.semantic_ids, dataset)
    expect_effective(config.finetune, semantic_ids)
    codes = Codes(semantic_ids.codes, semantic_ids.sizes) if semantic_ids else None
    read = dataset, config.features, config.history, config.representation, codes
    if config.stream:
        data: RankingSource = StreamedData(*read, stream=config.stream)
    else:
        data = RankingData(*read, test_then_train=config.test_then_train)
    if not config.test_then_train:
        expect_selectable(config.train.select_by, data, dataset)
    return RankInputs(dataset, data, semantic_ids)


def expect_selectable(select_by: SelectBy, data: RankingSource, dataset: Dataset) -> None:
    """Refuse validation events that do not define the metric, before anything is trained.

    AUC needs events of both labels, GAUC a user who has both; log loss needs neither.

    Args:
        select_by: the metric.
        data: rows; validation without rows, or with unknown labels, is refused elsewhere.
        dataset: that they are of.

    Raises:
        DataError: says which labels there are, and what to do.
    """
    if select_by == "log_loss":
        return
    zeros, ones = data.label_counts("valid")
    num_zeros, num_ones = int(zeros.sum()), int(ones.sum())
    if num_zeros + num_ones < max(1, data.num_rows("valid")):
        return
    has_both = num_zeros > 0 and num_ones > 0
    if has_both and (select_by == "auc" or bool(((zeros > 0) & (ones > 0)).any())):
        return
    if has_both:
        problem = "no user has events of both labels in the valid split, so there is no GAUC"
        remedy = "Set train.select_by = 'auc' or train.select_by = 'log_loss'"
    else:
        label, name = int(num_ones > 0), select_by.upper()
        num_rows = num_zeros + num_ones
        problem = f"all {num_rows:,} events of the valid split have label {label}, and {name} needs both"
        remedy = "Set train.select_by = 'log_loss'"
    remedy += ", or prepare the dataset with another [split] or [label]"
    # Negatives stand beside positives, and an item holdout takes none.
    if num_ones and not dataset.facts.split_rule.startswith("item holdout"):
        remedy += ", or with [negatives] that negatives.splits puts into 'valid'"
    raise DataError(problem, file=dataset.uri, field="train.select_by", value=str(select_by), remedy=remedy)


def build_ranker(
    config: RankConfig, inputs: RankInputs, *, world_size: int
) -> RankerWithLoss | RankerInTheLoopWithLoss:
    """Return the unsharded model of a run, with the tokenizer in it where one learns.

    Dense weights are drawn from the seed; tables are without memory (on `meta`).

    Raises:
        ConfigError: the tokenizer cannot learn in the loop.
    """
    tokenizer = load_learned(config.finetune, config.semantic_ids, inputs.semantic_ids)
    if tokenizer is None:
        return build_model(config, inputs.data.features, world_size=world_size)
    return build_model_in_the_loop(config, inputs, tokenizer, world_size=world_size)


def build_model_in_the_loop(
    config: RankConfig, inputs: RankInputs, tokenizer: LearnedTokenizer, *, world_size: int
) -> RankerInTheLoopWithLoss:
    """Return the unsharded model with a tokenizer in the loop, otherwise as `build_model`."""
    assert config.finetune, "asked for by the config"
    assert inputs.semantic_ids, "checked by RankConfig"
    ids, features, prefixes = inputs.semantic_ids, inputs.data.features, config.features.prefixes
    seed_everything(config.seed, "dense weights")
    pooled = tuple(feature for feature in features if feature.role not in CODE_ROLES)
    sparse = PooledTables(table_specs(pooled), config.tables, [one.name for one in pooled], device="meta")
    targets = [feature for feature in features if feature.role == "item_code"]
    tables = CodeTables(
        [CodeTable(one.table, one.num_rows) for one in targets], config.tables.dim, device="meta"
    )
    dense = build_dense_ranker(config.model, features, config.tables.dim)
    fits = max(ids.sizes) < torch.iinfo(torch.int16).max
    codes = torch.from_numpy(ids.codes).to(torch.int16 if fits else torch.int32)
    live = LiveCodes(tables, codes, tokenizer, config.finetune)
    in_loop = LoopPrefixes(prefixes, ids.sizes, features) if prefixes else None
    ranker = RankerInTheLoop(sparse, live, dense, features, in_loop)
    return RankerInTheLoopWithLoss(ranker, config.finetune, world_size=world_size)


def build_model(config: RankConfig, features: tuple[Feature, ...], *, world_size: int) -> RankerWithLoss:
    """Return the unsharded model: dense weights drawn from the seed, tables without memory (on `meta`)."""
    seed_everything(config.seed, "dense weights")
    sparse = PooledTables(
        table_specs(features), config.tables, [feature.name for feature in features], device="meta"
    )
    dense = build_dense_ranker(config.model, features, config.tables.dim)
    return RankerWithLoss(Ranker(sparse, dense), world_size=world_size)


def table_specs(features: tuple[Feature, ...]) -> list[TableSpec]:
    """Return the tables that features read, in the order of their first feature."""
    names = dict.fromkeys(feature.table for feature in features)
    readers = {name: [feature for feature in features if feature.table == name] for name in names}
    return [
        TableSpec(name, of[0].num_rows, tuple(feature.name for feature in of)) for name, of in readers.items()
    ]
