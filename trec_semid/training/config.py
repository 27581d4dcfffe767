"""Configs of what every verb that trains a model does."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from trec_semid.core.config import Config, Place
from trec_semid.core.identity import MayChange, SamePlace
from trec_semid.core.paths import join
from trec_semid.data.schema import DatasetConfig
from trec_semid.models.live_codes import FinetuneConfig
from trec_semid.sharding.constraints import ShardingConfig
from trec_semid.training.optimizers import OptimizersConfig
from trec_semid.training.passes import PipelineKind
from trec_semid.training.profiling.trace import ProfileConfig

AFTER = "after"
"""Folder in a run that tested, then trained: predictions of its last weights, which `export` holds a bundle
against. They are of events that were trained on, and no test."""


class TrainConfig(Config):
    """Length of training, and what is said on the way."""

    batch_size: PositiveInt = 1024
    """Rows of a global batch, over all ranks."""
    evaluation_batch_size: Annotated[PositiveInt, MayChange()] = 8192
    """The same for evaluation."""
    max_epochs: Annotated[PositiveInt, MayChange(only_up=True, reopens="larger")] = 10
    patience: Annotated[PositiveInt, MayChange(reopens="larger")] = 2
    """Evaluations without improvement after which training stops."""
    evaluate_every_steps: PositiveInt | None = None
    """Steps between evaluations; at the end of each epoch where not given."""
    log_every_steps: Annotated[PositiveInt, MayChange()] = 20
    accumulate: PositiveInt = 1
    """Batches of a step. Sharded tables take each batch's share of the gradient as it comes, everything
    else their sum."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products inside the model while it trains, by autocast; tokenizers in the loop, sums and weights
    stay in float32, and so does evaluation."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products, as torch names them: `high` is TF32 on a GPU, `medium` bfloat16."""

    pipeline: Annotated[PipelineKind, MayChange()] = "plain"
    """`sparse_dist` exchanges the ids of the next batch while one is computed; results are the same."""

    def steps_of(self, num_batches: int) -> int:
        """Return the optimizer steps of an epoch of so many batches."""
        return -(-num_batches // self.accumulate)


class CheckpointsConfig(Config):
    """When to save besides at every evaluation, and how."""

    every_steps: PositiveInt | None = None
    """Steps between checkpoints; none between evaluations where not given."""
    keep_last: PositiveInt = 2
    """Newest checkpoints to keep, each with the one that was the best then: where the newest is damaged, a
    run goes on from the one before."""
    in_background: bool = False
    """Whether training goes on while a checkpoint is written."""
    lost_best: Literal["refuse", "reselect"] = "refuse"
    """Where the best checkpoint is gone or damaged when a run goes on: stop and say so; or forget it and
    select anew, from the step that the run goes on from."""


class TrainingRunConfig(DatasetConfig):
    """What every verb that trains a model reads."""

    run: Annotated[Place, MayChange()]
    """Run folder to write."""
    seed: NonNegativeInt = 0
    semantic_ids: Annotated[Place | None, MayChange()] = None
    """Run folder of `trec-semid tokenize`, a store (its current generation, or `store@7`), or a `.parquet`
    file; items have no codes where not given. Empty text takes back what another file says:
    `--set semantic_ids=`."""
    optimizers: OptimizersConfig = OptimizersConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoints: Annotated[CheckpointsConfig, MayChange()] = Field(default_factory=CheckpointsConfig)
    start_from: Annotated[Place | None, SamePlace()] = None
    """A checkpoint of another run, as `runs/x/checkpoints/step-12`: training starts from its weights, its
    tokenizer and its map."""
    start_optimizers: bool = False
    """Whether the state of its optimizers is taken over too, that of a row with the row; otherwise they begin
    anew. Rates are those of this config."""
    start_codes: Literal["same", "anew"] = "same"
    """Which semantic IDs that run may have read: `same` for the items of both, or it is refused; `anew` where
    the codes are others: their tables begin anew, all else is taken over."""
    test_then_train: bool = False
    """Whether test events are what it trains on, once it has been evaluated on them: a day of
    `trec-semid daily`. Validation counts as training then; nothing is selected."""
    resume_from: Annotated[PositiveInt | None, MayChange(reopens="other")] = None
    """A step of this run's own checkpoints to go on from; the newest one where not given. Steps after it are
    removed once a new one is complete."""
    train: TrainConfig = TrainConfig()
    profile: Annotated[ProfileConfig | None, MayChange()] = None
    """Which steps are traced, into `profile/rank-N.json.gz`; none where not given."""
    finetune: FinetuneConfig | None = None
    """Fine-tuning of the tokenizer by the model's loss; codes stay as they are where not given."""

    @model_validator(mode="before")
    @classmethod
    def _tuning_is_finetune(cls, values: Any) -> Any:
        """Take the section under the name that it had: a run begun with `[tuning]` goes on."""
        if not isinstance(values, dict) or "tuning" not in values:
            return values
        if "finetune" in values:
            raise ValueError("tuning and finetune are one section by two names: give finetune alone")
        return {"finetune" if key == "tuning" else key: value for key, value in values.items()}

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        if self.start_from is None and (self.start_optimizers or self.start_codes != "same"):
            key = "start_optimizers" if self.start_optimizers else "start_codes"
            raise ValueError(f"{key}: there is nothing to start from: give start_from, or leave {key} out")
        if self.finetune and self.sharding.comms.backward == "fp16":
            raise ValueError(
                "sharding.comms.backward = 'fp16': all codes are looked up for every row of a batch, so that "
                "their gradients are sums already and would be cut off at its largest number: set 'bf16'"
            )
        if self.start_from and self.finetune and self.finetune.starts_from_codebooks:
            raise ValueError("start_from brings rows of codes: leave out finetune.starts_from_codebooks")
        if self.start_codes == "anew" and self.finetune:
            raise ValueError("start_codes = 'anew': a tokenizer in the loop starts with its own codes")
        if self.test_then_train and self.finetune:
            raise ValueError("test_then_train: codes that move need validation: leave [finetune] out")
        return self

    @field_validator("semantic_ids", mode="before")
    @classmethod
    def _empty_is_none(cls, place: object) -> object:
        return None if place == "" else place

    def predictions_of(self, run: str) -> str:
        """Return the folder where predictions by a run's last weights lie."""
        return join(run, AFTER) if self.test_then_train else run

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return True

    def fixed_keys(self) -> dict[str, str]:
        """Return what a learning rate that falls until the last epoch depends on."""
        if self.optimizers.dense.schedule == "cosine":
            return {"train.max_epochs": "optimizers.dense.schedule = 'cosine' depends on it"}
        return {}
