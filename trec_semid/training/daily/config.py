"""Config of `trec-semid daily`: which days, what is trained on them, where data and codes come from."""

from datetime import date, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from trec_semid.core.config import Config, Place
from trec_semid.core.identity import MayChange, SamePlace
from trec_semid.data.events.splits import ByDay


class FilesConfig(Config):
    """A verb's config."""

    files: list[Place] = Field(min_length=1)
    """Merged left to right."""
    set: dict[str, Any] = {}
    """What differs from the files."""


class MissingConfig(Config):
    """What happens to a day that is late."""

    sign: str | None = None
    """Path that is there once a day is complete, as `raw/day={day}/_SUCCESS`; of a step of several days, each
    has to have its own. Where not given, a step is there as soon as it has an event, or a dataset."""
    wait_s: Annotated[NonNegativeFloat, MayChange()] = 0.0
    """How long a day is waited for."""
    poll_s: Annotated[PositiveFloat, MayChange()] = 60.0
    """Time between two looks."""
    then: Annotated[Literal["skip", "stop"], MayChange()] = "skip"
    """What comes after that: the next day, or the end with exit code 2. The next command asks again for days
    that were missing with none done after them."""


class CodesConfig(Config):
    """Where semantic IDs of new items come from."""

    policy: Literal["append", "keep", "retrain"] = "append"
    """`append`: the store's tokenizer gives new items codes, and none moves. `keep`: new items have the code
    'missing' at every position. `retrain`: a new tokenizer every so often, and `append` in between; tables of
    codes begin anew then, and all else goes on."""
    store: Annotated[Place | None, SamePlace()] = None
    """Store of semantic IDs; where not given, `semantic_ids` in the run folder."""
    tokenize: FilesConfig | None = None
    """Config of `tokenize`, for a store that is not there yet, and for `retrain`."""
    slots: PositiveInt | None = None
    """Items that a tuple may have, told apart by one more code."""
    every: PositiveInt = 7
    """Days that were trained on from one tokenizer to the next, of `retrain`."""

    @model_validator(mode="after")
    def _can_retrain(self) -> Self:
        if self.policy == "retrain" and self.tokenize is None:
            raise ValueError("policy = 'retrain' needs a config of tokenize: give codes.tokenize.files")
        return self


class DailyConfig(Config):
    """What `trec-semid daily` reads."""

    run: Annotated[Place, MayChange()]
    """Folder to write: `days.json`, and a run folder and a dataset for each day."""
    first_day: date
    last_day: Annotated[date, MayChange(only_up=True, reopens="larger")]
    """The last one; it may be later the next time."""
    num_days: PositiveInt = 1
    """Days of a step, which are tested and trained together, and called by the first."""
    known_days: PositiveInt | None = None
    """Days before a step whose events are known; all of them where not given. Users and items that the filter
    of `prepare` wants more known events of are evicted."""
    verb: Literal["rank", "retrieve"] = "rank"
    train: FilesConfig
    """Config of `rank` or `retrieve`; dataset, run and where it starts are filled in."""
    prepare: FilesConfig | None = None
    """Config of `prepare`; its split and its folder are filled in. Where not given, datasets are there."""
    dataset: Annotated[Place | None, MayChange()] = None
    """Folder of a day's dataset, with `{day}` in it, as `data/{day}`; one of this run where not given."""
    start_from: Annotated[Place | None, SamePlace()] = None
    """A checkpoint that the first day starts from; it begins with fresh weights where not given."""
    codes: CodesConfig | None = None
    """Semantic IDs that grow with the catalogue; those of `train`, or none, where not given."""
    missing: MissingConfig = MissingConfig()
    keep_last: Annotated[PositiveInt, MayChange()] = 2
    """Days whose checkpoints stay."""
    num_draws: Annotated[int, Field(ge=100), MayChange()] = 200
    """Draws of users behind the intervals of a day's metrics."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.days():
            raise ValueError(
                f"last_day: no whole step of {self.num_days} days from {self.first_day} to {self.last_day}: "
                "set last_day later"
            )
        ByDay(day=self.first_day, num_days=self.num_days, known_days=self.known_days)  # has the same rules
        if self.dataset and "{day}" not in self.dataset:
            raise ValueError(f"dataset: '{self.dataset}' is one place for all days: put {{day}} into it")
        if not self.dataset and not self.prepare:
            raise ValueError("dataset: give it, or prepare.files, by which a day's dataset comes about")
        return self

    def days(self) -> list[date]:
        """Return the first day of each step; one that `last_day` cuts short is left out."""
        num_steps = ((self.last_day - self.first_day).days + 1) // self.num_days
        return [self.first_day + timedelta(days=step * self.num_days) for step in range(max(0, num_steps))]

    def signs_of(self, day: date) -> list[str]:
        """Return the paths that say that all days of a step are complete; none where no sign is given."""
        if not self.missing.sign:
            return []
        days = [str(day + timedelta(days=later)) for later in range(self.num_days)]
        return list(dict.fromkeys(self.missing.sign.replace("{day}", each) for each in days))
