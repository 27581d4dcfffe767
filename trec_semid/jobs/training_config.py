"""Configs of what every verb that trains a model does."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from trec_semid.core.config import Config
from trec_semid.models.live_codes import TuningConfig
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.training.optimizers import OptimizersConfig


class TrainConfig(Config):
    """Length of training, and what is said on the way."""

    batch_size: PositiveInt = 1024
    """Rows of a global batch, over all ranks."""
    evaluation_batch_size: PositiveInt = 8192
    """The same for evaluation."""
    max_epochs: PositiveInt = 10
    patience: PositiveInt = 2
    """Evaluations without improvement after which training stops."""
    evaluate_every_steps: PositiveInt | None = None
    """Steps between evaluations; at the end of each epoch where not given."""
    log_every_steps: PositiveInt = 20
    accumulate: PositiveInt = 1
    """Batches of a step. Sharded tables take each batch's share of the gradient as it comes, everything
    else their sum."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products inside the model while it trains, by autocast; tokenizers in the loop, sums and weights
    stay in float32, and so does evaluation."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products, as torch names them: `high` is TF32 on a GPU, `medium` bfloat16."""

    def steps_of(self, num_batches: int) -> int:
        """Return the optimizer steps of an epoch of so many batches."""
        return -(-num_batches // self.accumulate)


class CheckpointsConfig(Config):
    """When to save besides at every evaluation, and how."""

    every_steps: PositiveInt | None = None
    """Steps between checkpoints; none between evaluations where not given."""
    keep_last: PositiveInt = 1
    """Newest checkpoints to keep; the best one is always kept."""
    in_background: bool = False
    """Whether training goes on while a checkpoint is written."""


class TrainingRunConfig(Config):
    """What every verb that trains a model reads."""

    dataset: str
    """Dataset folder."""
    run: str
    """Run folder to write."""
    seed: NonNegativeInt = 0
    semantic_ids: str | None = None
    """Run folder of `trec-semid tokenize`, or a `.parquet` file; items have no codes where not given. Empty
    text takes back what another file says: `--set semantic_ids=`."""
    optimizers: OptimizersConfig = OptimizersConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig)
    start_from: str | None = None
    """A checkpoint of another run, as `runs/x/checkpoints/step-12`: training starts from its weights, its
    tokenizer and its map; optimizers begin anew."""
    tuning: TuningConfig | None = None
    """Fine-tuning of the tokenizer by the model's loss; codes stay as they are where not given."""

    @field_validator("semantic_ids", mode="before")
    @classmethod
    def _empty_is_none(cls, place: object) -> object:
        return None if place == "" else place
