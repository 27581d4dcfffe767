"""How good a bundle's model is: what its run measured, and what the bundle was held against."""

from pydantic import NonNegativeInt, PositiveInt

from trec_semid.core.config import Config


class Checked(Config):
    """What the bundle was held against before it was there."""

    num: NonNegativeInt
    """Rows, or users, of the test split."""
    largest_difference: float
    """Of a ranker's probability, or of a retriever's scores, to the run's own."""
    metrics: dict[str, float]
    """Of the bundle, over these."""
    change: dict[str, float]
    """The same less the run's own."""


class Measured(Config):
    """How sure the run's own metrics are."""

    split: str
    num_users: NonNegativeInt
    """Whose rows or lists the metrics are of."""
    seeds: tuple[int, ...]
    """Of the training: with one, intervals speak of other users and not of another training."""
    draws: PositiveInt
    """Of users with replacement, behind every interval."""
    intervals: dict[str, tuple[float, float]]
    """Name of a metric in `metrics` -> its 95 % interval; none of fewer than ten users."""
