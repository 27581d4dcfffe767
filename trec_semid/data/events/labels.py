"""What makes an event positive."""

import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from trec_semid.core.arrays import Array, Float32s
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.data.raw.events import RawEvents
from trec_semid.data.raw.ratings import Ratings

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq,
}  # fmt: skip


class ThresholdLabel(Config):
    """Positive where the rating compares as stated, negative elsewhere."""

    kind: Literal["threshold"] = "threshold"
    op: Literal[">", ">=", "<", "<=", "=="] = ">"
    threshold: int | float
    """Compared exactly: the decimal that is written here with the one that the source has."""
    missing: Literal["refuse", "null"] = "refuse"
    """What an event without a rating becomes: an error, or an event without a label."""


class GivenLabel(Config):
    """The rating column is the label, 0 or 1."""

    kind: Literal["given"] = "given"
    missing: Literal["refuse", "null"] = "refuse"
    """What an event without a label becomes: an error, or an event without a label."""


class BehaviourLabel(Config):
    """Positive where the behaviour is one of these, negative elsewhere."""

    kind: Literal["behaviour"] = "behaviour"
    positive: list[str] = Field(min_length=1)


class AllPositive(Config):
    """Implicit feedback: every event is positive."""

    kind: Literal["all_positive"] = "all_positive"


class NoLabel(Config):
    """Sequences only: events carry no label."""

    kind: Literal["none"] = "none"


LabelConfig = Annotated[
    ThresholdLabel | GivenLabel | BehaviourLabel | AllPositive | NoLabel, Field(discriminator="kind")
]


def label_rule(config: LabelConfig) -> str:
    """Return the rule in words."""
    match config:
        case ThresholdLabel():
            return f"rating {config.op} {_number(config.threshold)}"
        case GivenLabel():
            return "given as 0 or 1"
        case BehaviourLabel():
            return f"behaviour is {' or '.join(config.positive)}"
        case AllPositive():
            return "every event is positive"
        case NoLabel():
            return "none"


def check_label_columns(config: LabelConfig, *, has_rating: bool, has_behaviour: bool) -> None:
    """Check that the source maps what the rule needs.

    Raises:
        ValueError: it does not.
    """
    kind, needs_rating = config.kind, isinstance(config, (ThresholdLabel, GivenLabel))
    if needs_rating and not has_rating:
        raise ValueError(f"label.kind '{kind}' needs a rating: map that column of the interactions")
    if isinstance(config, BehaviourLabel) and not has_behaviour:
        raise ValueError(f"label.kind '{kind}' needs a behaviour: map that column of the interactions")


def make_labels(config: LabelConfig, events: RawEvents) -> Float32s | None:
    """Return (n,) float32 labels, NaN where an event has none; None where no event has one.

    Raises:
        DataError: a rating is missing, a given label is neither 0 nor 1, or a behaviour does not occur.
    """
    match config:
        case ThresholdLabel():
            ratings = _ratings(config, events)
            return _of_events(ratings, [float(each) for each in _compare(config, ratings)])
        case GivenLabel():
            return _given(_ratings(config, events), events)
        case BehaviourLabel():
            return _from_behaviours(config, events)
        case AllPositive():
            return np.ones(len(events.users), np.float32)
        case NoLabel():
            return None


def check_classes(config: LabelConfig, labels: Float32s | None, file: str | None = None) -> None:
    """Check that a rule which tells positives from negatives gave both in (n,) labels.

    Raises:
        DataError: all labels are the same: a ranker cannot learn from them, nor any metric judge one.
    """
    if labels is None or isinstance(config, AllPositive):
        return
    known = labels[~np.isnan(labels)]
    if len(known) and known.min() == known.max():
        what = "positive" if known[0] else "negative"
        raise DataError(
            f"every one of {len(known):,} labels is {what} under '{label_rule(config)}'",
            file=file,
            field="label",
            remedy="Change [label]; where that is what you have, label.kind is 'all_positive' or 'none'",
        )


def _ratings(config: ThresholdLabel | GivenLabel, events: RawEvents) -> Ratings:
    assert events.ratings is not None, "check_label_columns comes first"
    if config.missing == "refuse":
        remedy = 'Fill it in, or set label.missing = "null"'
        _refuse("the rating is missing", events.ratings.codes < 0, events, remedy)
    return events.ratings


def _compare(config: ThresholdLabel, ratings: Ratings) -> list[bool]:
    """Return whether each distinct rating compares as stated."""
    compare, threshold = _COMPARE[config.op], config.threshold
    if not isinstance(ratings.values, list) and float(threshold) == threshold:
        return compare(ratings.values, float(threshold)).tolist()
    exact = Decimal(repr(threshold))
    return [compare(value, exact) for value in ratings.decimals()]


def _given(ratings: Ratings, events: RawEvents) -> Float32s:
    wrong = [value not in (0, 1) for value in ratings.values]
    codes = np.append(np.array(wrong, bool), False)[ratings.codes]
    _refuse("neither 0 nor 1", codes, events, 'Correct it, or use label.kind = "threshold"', ratings)
    return _of_events(ratings, [float(value) for value in ratings.values])


def _of_events(ratings: Ratings, labels: list[float]) -> Float32s:
    return np.array([*labels, np.nan], np.float32)[ratings.codes]


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if Decimal(short) == Decimal(repr(value)) else repr(value)


def _from_behaviours(config: BehaviourLabel, events: RawEvents) -> Float32s:
    assert events.behaviours is not None, "check_label_columns comes first"
    for name in config.positive:
        if name not in events.behaviour_names:
            remedy = f"It has: {', '.join(events.behaviour_names)}"
            problem = "no event has this behaviour"
            raise DataError(problem, file=events.file, field="behaviour", value=name, remedy=remedy)
    is_positive = np.array([name in config.positive for name in events.behaviour_names])
    return is_positive[events.behaviours].astype(np.float32)


def _refuse(problem: str, bad: Array, events: RawEvents, remedy: str, values: Ratings | None = None) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        file, row = events.locate(first)
        wrong = None if values is None else values.values[int(values.codes[first])]
        value = str(wrong) if isinstance(wrong, Decimal) else None if wrong is None else float(wrong)
        raise DataError(problem, file=file, row=row, field="rating", value=value, remedy=remedy)
