"""Config of `trec-semid rank`, the data it reads and the model it trains, before any sharding."""

from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, NonNegativeInt, model_validator

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError
from trec_semid.core.seeds import seed_everything
from trec_semid.data.features import Feature, FeaturesConfig, Representation
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.ranking import Codes, RankingData
from trec_semid.data.schema import Dataset
from trec_semid.embeddings.code_tables import CodeTable, CodeTables
from trec_semid.embeddings.collection import PooledTables
from trec_semid.embeddings.tables import TablesConfig, TableSpec
from trec_semid.jobs.training_loop import CheckpointsConfig, TrainConfig
from trec_semid.models.in_the_loop import CODE_ROLES, RankerInTheLoop, RankerInTheLoopWithLoss, TuningConfig
from trec_semid.models.live_codes import LiveCodes
from trec_semid.models.loop_prefixes import LoopPrefixes
from trec_semid.models.ppnet import PpnetConfig
from trec_semid.models.ranker import Ranker, RankerWithLoss
from trec_semid.models.table import RankerConfig, build_dense_ranker
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.semantic_ids import SemanticIds, semantic_ids_file
from trec_semid.training.optimizers import OptimizersConfig

SelectBy = Literal["auc", "gauc", "log_loss"]


class RankTrainConfig(TrainConfig):
    """Training of a ranker."""

    select_by: SelectBy = "auc"
    """Metric of the validation split (online protocol) that decides which step is best."""


class RankConfig(Config):
    """What `trec-semid rank` reads."""

    dataset: str
    """Dataset folder."""
    run: str
    """Run folder to write."""
    seed: NonNegativeInt = 0
    representation: Representation
    """What stands for an item, as target and in histories: its ID, its codes, or both."""
    semantic_ids: str | None = None
    """Run folder of `trec-semid tokenize`, or a `.parquet` file; needed unless representation is 'item'."""
    features: FeaturesConfig = FeaturesConfig()
    history: HistoryConfig = HistoryConfig.model_validate({})
    tables: TablesConfig = TablesConfig.model_validate({})
    model: RankerConfig = PpnetConfig.model_validate({})
    optimizers: OptimizersConfig = OptimizersConfig()
    train: RankTrainConfig = RankTrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig)
    start_from: str | None = None
    """A checkpoint of another run, as `runs/x/checkpoints/step-12`: training starts from its weights, its
    tokenizer and its map; optimizers begin anew."""
    tuning: TuningConfig | None = None
    """Fine-tuning of the tokenizer by the ranker's loss; codes stay as they are where not given."""

    @model_validator(mode="after")
    def _codes_where_needed(self) -> Self:
        if self.representation != "item" and not self.semantic_ids:
            raise ValueError(f"representation '{self.representation}' needs semantic_ids")
        if self.tuning and self.representation == "item":
            raise ValueError("tuning needs codes to tune: set representation to 'semantic' or 'both'")
        if self.tuning and self.tuning.warmup_epochs >= self.train.max_epochs:
            raise ValueError(
                f"tuning.warmup_epochs ({self.tuning.warmup_epochs:g}) leaves no epoch of train.max_epochs "
                f"({self.train.max_epochs}) in which the tokenizer moves"
            )
        return self


class RankInputs(NamedTuple):
    """What is read before training."""

    dataset: Dataset
    data: RankingData
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
        DataError: something is missing or does not fit together.
    """
    dataset = Dataset(config.dataset)
    semantic_ids = None
    if config.representation != "item" and config.semantic_ids:
        semantic_ids = SemanticIds.load(semantic_ids_file(config.semantic_ids), dataset.item_ids)
    codes = Codes(semantic_ids.codes, semantic_ids.sizes) if semantic_ids else None
    data = RankingData(dataset, config.features, config.history, config.representation, codes)
    return RankInputs(dataset, data, semantic_ids)


def build_tuned_model(
    config: RankConfig, inputs: RankInputs, tokenizer: LearnedTokenizer, *, world_size: int
) -> RankerInTheLoopWithLoss:
    """Return the unsharded model with a tokenizer in the loop, otherwise as `build_model`.

    Raises:
        ConfigError: tokenizer and semantic IDs do not belong together.
    """
    assert config.tuning, "asked for by the config"
    assert inputs.semantic_ids, "checked by RankConfig"
    ids, features, prefixes = inputs.semantic_ids, inputs.data.features, config.features.prefixes
    if ids.sizes != tokenizer.codebook_sizes:
        raise ConfigError(
            f"tuning: semantic IDs have {ids.sizes} codes, their tokenizer {tokenizer.codebook_sizes}. "
            "Tokenize again, with collisions = 'keep': an extra code is not the tokenizer's to learn."
        )
    if config.tuning.estimator == "gumbel" and len(tokenizer.stages) > 1:
        raise ConfigError(
            "tuning: noise on the codes of residual levels would leave later levels with residuals of other "
            "codes. Use estimator = 'straight_through', or an mmq tokenizer."
        )
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
    live = LiveCodes(tables, codes, tokenizer, config.tuning.temperature)
    in_loop = LoopPrefixes(prefixes, ids.sizes, features) if prefixes else None
    ranker = RankerInTheLoop(sparse, live, dense, features, in_loop)
    return RankerInTheLoopWithLoss(ranker, config.tuning, world_size=world_size)


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
