"""Training, validation and test events, by time, by place in each user's sequence, or by item."""

import math
from datetime import date, timedelta
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from trec_semid.core.arrays import Flags, Ints
from trec_semid.core.config import Config
from trec_semid.core.errors import DataError
from trec_semid.core.seeds import numpy_generator
from trec_semid.data.raw.times import PER_SECOND, Times, TimeUnit

TRAIN, VALID, TEST, DROPPED = 0, 1, 2, 3
Parts = np.ndarray[Any, np.dtype[np.int8]]
"""(n,) TRAIN, VALID, TEST or DROPPED of every event, in order."""
EMPTY_DAY = "split.day"
"""The field that an error names where a day has no events."""
Fraction = Annotated[float, Field(gt=0, lt=1)]
Amount = Annotated[int, Field(ge=1)] | Fraction


class GlobalTemporal(Config):
    """One point in time for all: nothing learned can come from after what is evaluated."""

    kind: Literal["global_temporal"] = "global_temporal"
    first: Fraction = 0.9
    """Share of all events, the earliest, that is training and validation; the rest is test."""
    valid: Fraction = 0.1
    """Share of these, the latest, that is validation."""


class PerUserTemporal(Config):
    """The last events of every user: each user is evaluated, and seen in training."""

    kind: Literal["per_user_temporal"] = "per_user_temporal"
    test: Amount = 0.1
    """Number of a user's last events, or share of the user's events (rounded down)."""
    valid: Amount = 0.1
    """The same for the events before those; a share is again of all events of the user."""

    @model_validator(mode="after")
    def _leaves_training(self) -> "PerUserTemporal":
        if isinstance(self.test, float) and isinstance(self.valid, float) and self.test + self.valid >= 1:
            raise ValueError("test and valid together take every event; leave some for training")
        return self


class LeaveOneOut(Config):
    """The last event of every user is test, the one before validation; under 3 events all is training."""

    kind: Literal["leave_one_out"] = "leave_one_out"


class ByDay(Config):
    """What was known when a day was over: its events are test, and whatever came later is not there.

    The stretch before is validation, all before that training; both may be empty. Of `known_days`, what came
    earlier is not there either: users who did nothing since, and items that nobody touched, are forgotten.
    """

    kind: Literal["by_day"] = "by_day"
    day: date
    """First day of the test part, in UTC."""
    num_days: PositiveInt = 1
    """Days of the test part, and of the validation part before it."""
    known_days: PositiveInt | None = None
    """Days before the test part whose events are known; all of them where not given."""

    @model_validator(mode="after")
    def _knows_days_that_there_are(self) -> "ByDay":
        if self.known_days is not None:
            if self.known_days < self.num_days:
                raise ValueError(
                    f"known_days = {self.known_days}: what a step of num_days = {self.num_days} days has "
                    "trained on would be forgotten at the next one; give as many or more"
                )
            if self.known_days >= self.day.toordinal():
                raise ValueError(f"known_days = {self.known_days}: before all calendars; leave it out")
        return self

    @property
    def known_from(self) -> date | None:
        """The first day whose events are known; None where all before are."""
        return self.day - timedelta(days=self.known_days) if self.known_days else None

    @property
    def last(self) -> date:
        """Last day of the test part."""
        return self.day + timedelta(days=self.num_days - 1)


BaseSplit = Annotated[GlobalTemporal | PerUserTemporal | LeaveOneOut, Field(discriminator="kind")]


class ItemHoldout(Config):
    """Cold start: test is about items that no earlier event touches.

    Items are dealt to `folds` parts by lot; those of part `fold` are held out. Of the base rule, test
    keeps the events on held-out items, training and validation keep those on all others, and the rest
    are dropped. The folds' test events together are the base rule's test events, each once.
    """

    kind: Literal["item_holdout"] = "item_holdout"
    folds: Annotated[int, Field(ge=2)] = 5
    fold: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the lot; equal for all folds that belong together."""
    base: BaseSplit = PerUserTemporal()

    @model_validator(mode="after")
    def _fold_exists(self) -> "ItemHoldout":
        if self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} does not exist: with folds = {self.folds} they are 0 to {self.folds - 1}"
            )
        return self


SplitConfig = Annotated[
    GlobalTemporal | PerUserTemporal | LeaveOneOut | ByDay | ItemHoldout, Field(discriminator="kind")
]


def needs_times(config: SplitConfig) -> bool:
    """Return whether the rule asks when events happened."""
    rule = config.base if isinstance(config, ItemHoldout) else config
    return isinstance(rule, GlobalTemporal | ByDay)


def unknown_events(config: SplitConfig, times: Times | None) -> dict[str, Flags]:
    """Return (n,) which events a rule does not know, as they come `later` or `earlier` than what it knows.

    Empty where it knows whatever there is.
    """
    if not isinstance(config, ByDay) or times is None:
        return {}
    unknown = {"later": times.values >= _start_of(config.last + timedelta(days=1), times.unit)}
    if config.known_from:
        unknown["earlier"] = times.values < _start_of(config.known_from, times.unit)
    return unknown


def _start_of(day: date, unit: TimeUnit) -> int:
    return (day - date(1970, 1, 1)).days * 86_400 * PER_SECOND[unit]


def split_rule(config: SplitConfig) -> str:
    """Return the rule in words."""
    match config:
        case GlobalTemporal():
            train = 100 * config.first * (1 - config.valid)
            valid = 100 * config.first * config.valid
            return (
                f"global temporal: first {train:g} % of events train, next {valid:g} % valid, rest test; "
                "events at the time of a boundary go to the later part"
            )
        case PerUserTemporal():
            return f"per-user temporal: last {_say(config.test)} test, {_say(config.valid)} before valid"
        case LeaveOneOut():
            return "leave-one-out: each user's last event test, the one before valid (from 3 events)"
        case ByDay():
            return (
                f"by day: test is {config.day} to {config.last}, valid the days before, as many, train all "
                f"before that{f' from {config.known_from}' if config.known_from else ''}; "
                f"{'earlier and ' if config.known_from else ''}later events are left out"
            )
        case ItemHoldout():
            return (
                f"item holdout, part {config.fold} of {config.folds} (seed {config.seed}): of the rule that "
                "follows, test keeps events on held-out items, train and valid those on all others; "
                f"{split_rule(config.base)}"
            )


def split_events(
    config: SplitConfig,
    users: Ints,
    items: Ints,
    times: Times | None,
    by_user: Ints,
    file: str | None = None,
) -> Parts:
    """Return (n,) the part of every event.

    Args:
        config: the rule.
        users: (n,) user rows of events in order.
        items: (n,) their item rows.
        times: n of them, not decreasing; None where unknown.
        by_user: (n,) stable argsort of `users`.
        file: where the events come from, for errors.

    Raises:
        DataError: the rule needs times that are not there, or a part comes out empty.
    """
    parts = _parts(config, users, items, times, by_user)
    sizes = np.bincount(parts, minlength=4)
    for part, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
        if isinstance(config, ByDay) and part != TEST:
            continue  # a first day has nothing before it
        if sizes[part] == 0:
            remedy = "Change [split], or filter less"
            raise DataError(
                f"split '{name}' is empty: {len(users)} events under '{split_rule(config)}'",
                file=file,
                field=EMPTY_DAY if isinstance(config, ByDay) else "split",
                remedy=remedy,
            )
    return parts


def _parts(config: SplitConfig, users: Ints, items: Ints, times: Times | None, by_user: Ints) -> Parts:
    match config:
        case GlobalTemporal():
            return _global(config, times and times.values, len(users))
        case ByDay():
            return _by_day(config, times)
        case PerUserTemporal():
            return _per_user(config.test, config.valid, users, by_user)
        case LeaveOneOut():
            return _per_user(1, 1, users, by_user)
        case ItemHoldout():
            parts = _parts(config.base, users, items, times, by_user)
            held = _held_out(config, int(items.max(initial=-1)) + 1)[items]
            # Equal where a held-out item is in test, or another item is not in test: all else is dropped.
            return np.where(held == (parts == TEST), parts, np.int8(DROPPED))


def _held_out(config: ItemHoldout, num_items: int) -> Flags:
    dealt = numpy_generator(config.seed, "item hold-out").permutation(num_items) % config.folds
    return dealt == config.fold


def _global(config: GlobalTemporal, times: Ints | None, num_events: int) -> Parts:
    if times is None:
        remedy = 'Map a timestamp, or use split.kind = "leave_one_out" or "per_user_temporal"'
        raise DataError("split 'global_temporal' needs timestamps and this data has none", remedy=remedy)
    parts = np.full(num_events, TRAIN, np.int8)
    test_from = _boundary(times, config.first)
    valid_from = _boundary(times[:test_from], 1 - config.valid)
    parts[valid_from:] = VALID
    parts[test_from:] = TEST
    return parts


def _by_day(config: ByDay, times: Times | None) -> Parts:
    assert times is not None, "the config asks for them"
    before = config.day - timedelta(days=config.num_days)
    edges = [_start_of(day, times.unit) for day in (before, config.day)]
    return np.searchsorted(edges, times.values, side="right").astype(np.int8)


def _boundary(times: Ints, share: float) -> int:
    """Return where the later part begins: at the first event as old as the one that `share` falls on."""
    cut = _floor(len(times) * share)
    return int(np.searchsorted(times, times[cut], side="left")) if cut < len(times) else len(times)


def _per_user(test: float, valid: float, users: Ints, by_user: Ints) -> Parts:
    counts = np.bincount(users)
    starts = np.cumsum(counts) - counts
    position = np.empty(len(users), np.int64)
    position[by_user] = np.arange(len(users)) - np.repeat(starts, counts)
    num_test, num_valid = _taken(counts, test), _taken(counts, valid)
    # One event at least stays for training: a user with fewer is training as a whole.
    too_few = counts <= num_test + num_valid
    num_test[too_few] = num_valid[too_few] = 0
    from_end = counts[users] - position
    parts = np.full(len(users), TRAIN, np.int8)
    parts[from_end <= (num_test + num_valid)[users]] = VALID
    parts[from_end <= num_test[users]] = TEST
    return parts


def _taken(counts: Ints, amount: float) -> Ints:
    if isinstance(amount, int):
        return np.full(len(counts), amount, np.int64)
    # The small number is that of `_floor`, for the same reason.
    return np.floor(counts * amount + 1e-9).astype(np.int64)


def _floor(value: float) -> int:
    return math.floor(value + 1e-9)  # 0.9 · 10 must be 9 whatever binary fractions say


def _say(amount: float) -> str:
    if isinstance(amount, int):
        return f"{amount} event{'s' if amount > 1 else ''}"
    return f"{100 * amount:g} %"
