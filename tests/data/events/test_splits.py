from datetime import UTC, date, datetime
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trec_semid.core.errors import DataError
from trec_semid.data.events.splits import (
    DROPPED,
    TEST,
    TRAIN,
    VALID,
    ByDay,
    GlobalTemporal,
    ItemHoldout,
    LeaveOneOut,
    PerUserTemporal,
    SplitConfig,
    split_events,
    split_rule,
    unknown_events,
)
from trec_semid.data.raw.times import PER_SECOND, Times

AMOUNTS = st.one_of(st.integers(1, 4), st.sampled_from([0.1, 0.2, 0.25, 0.3]))
USERS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def split(config, users, times=None, items=None):
    users = np.array(users)
    items = np.zeros(len(users), int) if items is None else items
    clock = None if times is None else Times(np.asarray(times), "s")
    return split_events(config, users, items, clock, np.argsort(users, kind="stable"))


def slow_per_user(users, test, valid):
    parts = [TRAIN] * len(users)
    for user in set(users):
        mine = [i for i, other in enumerate(users) if other == user]
        taken = [a if isinstance(a, int) else floor(Fraction(str(a)) * len(mine)) for a in (test, valid)]
        if sum(taken) >= len(mine):
            continue
        for part, amount in zip((TEST, VALID), taken, strict=True):
            for _ in range(amount):
                parts[mine.pop()] = part
    return parts


@settings(deadline=None)
@given(USERS, AMOUNTS, AMOUNTS)
def test_per_user_split_equals_walking_every_user_from_the_end(users, test, valid):
    expected = slow_per_user(users, test, valid)
    config = PerUserTemporal(test=test, valid=valid)
    if set(expected) != {TRAIN, VALID, TEST}:
        with pytest.raises(DataError, match=r"is empty"):
            split(config, users)
        return
    assert split(config, users).tolist() == expected


def test_leave_one_out_takes_last_and_one_before_of_users_with_three():
    users = [0, 1, 0, 2, 0, 1, 2, 2, 2]
    expected = [TRAIN, TRAIN, VALID, TRAIN, TEST, TRAIN, TRAIN, VALID, TEST]
    assert split(LeaveOneOut(), users).tolist() == expected


def slow_global(times, first, valid):
    cut = floor(Fraction(str(first)) * len(times))
    test_from = min(i for i, time in enumerate(times) if time == times[cut])
    cut = floor((1 - Fraction(str(valid))) * test_from)
    if cut >= test_from:
        return None
    valid_from = min(i for i, time in enumerate(times) if time == times[cut])
    return [TRAIN] * valid_from + [VALID] * (test_from - valid_from) + [TEST] * (len(times) - test_from)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=60),
    st.sampled_from([0.5, 0.8, 0.9]),
    st.sampled_from([0.1, 0.2, 0.5]),
)
def test_global_split_cuts_by_count_and_keeps_equal_times_in_the_later_part(times, first, valid):
    times = np.sort(times)
    expected = slow_global(times.tolist(), first, valid)
    config = GlobalTemporal(first=first, valid=valid)
    users = np.zeros(len(times), int)
    if expected is None or set(expected) != {TRAIN, VALID, TEST}:
        with pytest.raises(DataError, match=r"is empty"):
            split(config, users, times)
        return
    parts = split(config, users, times)
    assert parts.tolist() == expected
    assert times[parts == TRAIN].max() < times[parts == VALID].min()
    assert times[parts == VALID].max() < times[parts == TEST].min()


def test_default_global_split_is_81_9_10():
    parts = split(GlobalTemporal(), np.zeros(1000, int), np.arange(1000))
    assert np.bincount(parts).tolist() == [810, 90, 100]


def test_global_split_without_times_is_refused_by_name():
    with pytest.raises(DataError, match=r"split 'global_temporal' needs timestamps.*leave_one_out"):
        split(GlobalTemporal(), [0, 1, 2])


def test_empty_part_is_refused_by_name():
    with pytest.raises(DataError, match=r"split 'valid' is empty"):
        split(LeaveOneOut(), [0, 0, 1])


def test_shares_that_leave_nothing_for_training_are_refused():
    with pytest.raises(ValidationError, match=r"leave some for training"):
        PerUserTemporal(test=0.5, valid=0.5)


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 6))
def test_folds_of_the_item_holdout_share_the_base_rules_test_events_out(seed, folds):
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 5, 200), random.integers(0, 30, 200)
    base = split(PerUserTemporal(test=0.3, valid=0.2), users, items=items)
    tested, held_by = np.zeros(200, int), np.full(30, -1)
    for fold in range(folds):
        config = ItemHoldout(folds=folds, fold=fold, seed=seed, base=PerUserTemporal(test=0.3, valid=0.2))
        parts = split(config, users, items=items)
        held = np.unique(items[parts == TEST])
        assert (held_by[held] == -1).all()
        held_by[held] = fold
        assert not np.isin(items[(parts == TRAIN) | (parts == VALID)], held).any()
        kept = parts != DROPPED
        assert (parts[kept] == base[kept]).all()
        tested += parts == TEST
    assert tested.tolist() == (base == TEST).astype(int).tolist()


def test_a_fold_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match=r"fold 5 does not exist: with folds = 5 they are 0 to 4"):
        ItemHoldout(fold=5)


@pytest.mark.parametrize("kind", ["global_temporal", "per_user_temporal", "leave_one_out", "item_holdout"])
def test_every_rule_says_itself_in_words(kind):
    config = TypeAdapter(SplitConfig).validate_python({"kind": kind})
    assert split_rule(config).replace("-", "_").replace(" ", "_").startswith(kind)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9 * 86_400), min_size=1, max_size=40),
    st.integers(1, 3),
    st.sampled_from([None, 3, 4]),
    st.sampled_from(["s", "ms", "ns"]),
)
def test_a_day_is_what_calendars_say_and_what_it_does_not_know_is_marked(seconds, num_days, known_days, unit):
    config = ByDay(day=date(1970, 1, 5), num_days=num_days, known_days=known_days)
    times = Times(np.sort(seconds) * PER_SECOND[unit], unit)
    ages = [datetime.fromtimestamp(int(one), UTC).date() - config.day for one in np.sort(seconds)]
    unknown = unknown_events(config, times)
    later = unknown["later"]
    assert later.tolist() == [age.days >= num_days for age in ages]
    assert ("earlier" in unknown) == (known_days is not None)
    if known_days:
        assert unknown["earlier"].tolist() == [age.days < -known_days for age in ages]
        later = later | unknown["earlier"]
    known = [age.days for age in ages if -(known_days or 99) <= age.days < num_days]
    expected = [TEST if age >= 0 else VALID if age >= -num_days else TRAIN for age in known]
    users = np.zeros(len(known), int)
    if TEST not in expected:
        with pytest.raises(DataError, match="split 'test' is empty"):
            split_events(config, users, users, Times(times.values[~later], unit), users)
        return
    assert split_events(config, users, users, Times(times.values[~later], unit), users).tolist() == expected
