from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.raw_tables import T0, config
from trec_semid.core.errors import DataError
from trec_semid.data.prepare import prepare_dataset
from trec_semid.data.schema import Dataset, RowCounts
from trec_semid.jobs.prepare import summary

ROW = st.tuples(
    st.sampled_from(["u0", "u1", "u2", "u3", "ghost"]),
    st.sampled_from(["i0", "i1", "i2", "i3", "i4", "never"]),
    st.integers(1, 5),
    st.integers(0, 9),
)
LISTED_USERS, LISTED_ITEMS = ["u0", "u1", "u2", "u3", "idle"], ["i0", "i1", "i2", "i3", "i4", "shelf"]


def write(folder, log, live):
    rows = "".join(f"{user},{item},{rating},{T0 + time}\n" for user, item, rating, time in log)
    (folder / "log.csv").write_text("user,item,rating,time\n" + rows)
    items = "".join(f"{item},{int(item in live)}\n" for item in LISTED_ITEMS)
    (folder / "items.csv").write_text("item,live\n" + items)
    (folder / "users.csv").write_text("user\n" + "".join(f"{user}\n" for user in LISTED_USERS))


def dropped_in_plain_python(log, live, options):
    """What each reason drops, one row after another in the order in which reasons apply."""
    events, rows, seen = Counter(), [], set()
    for row in log:
        user, item = row[:2]
        if options["duplicates"] == "drop" and row in seen:
            events["duplicates"] += 1
        elif item not in LISTED_ITEMS:
            events["unknown_items"] += 1
        elif user not in LISTED_USERS and options["unknown_users"] == "drop":
            events["unknown_users"] += 1
        elif item not in live:
            events["keep_where"] += 1
        else:
            rows.append(row)
        seen.add(row)
    named = dict.fromkeys([*LISTED_USERS, *(row[0] for row in log)])
    users = [user for user in named if options["unknown_users"] == "keep" or user in LISTED_USERS]
    items, before = [item for item in LISTED_ITEMS if item in live], len(rows)
    while True:
        by_user, by_item = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        users_now = [user for user in users if by_user[user] >= options["min_user_events"]]
        items_now = [item for item in items if by_item[item] >= options["min_item_events"]]
        if (users_now, items_now) == (users, items):
            break
        users, items = users_now, items_now
        rows = [row for row in rows if row[0] in users and row[1] in items]
    events["too_few_events"] = before - len(rows)
    return {reason: num for reason, num in events.items() if num}, len(rows), len(users), len(items)


@settings(max_examples=30)
@given(
    st.lists(ROW, min_size=20, max_size=60),
    st.sets(st.sampled_from(LISTED_ITEMS), min_size=3),
    st.fixed_dictionaries(
        {
            "duplicates": st.sampled_from(["keep", "drop"]),
            "unknown_items": st.just("drop"),
            "unknown_users": st.sampled_from(["drop", "keep"]),
            "min_user_events": st.integers(0, 4),
            "min_item_events": st.integers(0, 3),
        }
    ),
    st.booleans(),
)
def test_what_was_read_is_what_was_written_and_what_was_dropped(
    tmp_path_factory, log, live, options, with_holdout
):
    folder = tmp_path_factory.mktemp("dropped")
    write(folder, log, live)
    loo = {"kind": "leave_one_out"}
    made = config(
        folder,
        items={"keep_where": "live"},
        users={},
        filter=options,
        label={"kind": "all_positive"},
        split={"kind": "item_holdout", "folds": 2, "base": loo} if with_holdout else loo,
    )
    reasons, num_events, num_users, num_items = dropped_in_plain_python(log, live, options)
    try:
        facts = prepare_dataset(made)
    except DataError as error:
        if "is empty" in str(error) or "no event is left" in str(error):
            return
        raise
    held_out = facts.dropped.get("item_holdout", RowCounts()).events
    assert bool(held_out) <= with_holdout
    known = {reason: each.events for reason, each in facts.dropped.items() if reason != "item_holdout"}
    assert {reason: num for reason, num in known.items() if num} == reasons
    assert (facts.num_events + held_out, facts.num_users, facts.num_items) == (
        num_events,
        num_users,
        num_items,
    )
    assert facts.duplicate_events == len(log) - len(set(log))
    assert facts.read.events == len(log)
    assert facts.read.users == len({*LISTED_USERS, *(row[0] for row in log)})
    assert facts.read.items == len({*LISTED_ITEMS, *(row[1] for row in log)})
    for name, left in (("events", num_events - held_out), ("users", num_users), ("items", num_items)):
        gone = sum(getattr(each, name) for each in facts.dropped.values())
        assert getattr(facts.read, name) == left + gone
    text = summary(facts)
    assert "filter: none" not in text or not facts.dropped
    for reason, each in facts.dropped.items():
        assert f"- {reason}" in text
        assert f"{each.events:,}" in text


def test_doubtful_rows_and_ids_are_counted_and_named(tmp_path):
    log = [("u0", f"i{n % 5}", 1 + n % 5, n) for n in range(30)] + [
        ("u1", "i1 ", 5, n // 2) for n in range(8)
    ]
    write(tmp_path, log, LISTED_ITEMS)
    source = {"kind": "tables", "interactions": config(tmp_path).source.interactions.model_dump()}
    made = config(tmp_path, source=source, items={}, users={}, split={"kind": "leave_one_out"})
    facts = prepare_dataset(made)
    assert facts.duplicate_events == 4
    assert facts.similar_ids["items"].model_dump() == {"ids": 2, "examples": [["i1", "i1 "]]}
    text = summary(facts)
    assert "duplicates: 4 rows repeat an earlier event (they stay: see filter.duplicates)" in text
    assert "ids: 2 items differ from another by blanks or Unicode form alone: 'i1' and 'i1 '" in text
    assert "filter: none" in text
    assert Dataset(made.out).facts == facts
    clean = prepare_dataset(
        made.model_copy(update={"filter": made.filter.model_copy(update={"duplicates": "drop"})})
    )
    assert clean.num_events == facts.num_events - 4
    assert "(left out)" in summary(clean)
    refused = made.model_copy(update={"filter": made.filter.model_copy(update={"duplicates": "refuse"})})
    with pytest.raises(DataError, match=r"log.csv, row 32.*log.csv, row 31 again"):
        prepare_dataset(refused)


def test_events_without_a_label_are_counted(tmp_path):
    log = "".join(f"u{n % 5},i{n % 7},{'' if n % 6 == 0 else 1 + n % 5},{T0 + n}\n" for n in range(60))
    (tmp_path / "log.csv").write_text("user,item,rating,time\n" + log)
    source = {"kind": "tables", "interactions": config(tmp_path).source.interactions.model_dump()}
    label = {"kind": "threshold", "threshold": 3, "missing": "null"}
    facts = prepare_dataset(config(tmp_path, source=source, items={}, users={}, label=label))
    assert facts.unlabelled_events == 10
    assert "label: rating > 3 (10 events without)" in summary(facts)
    labels = Dataset(str(tmp_path / "out")).events(["label"])["label"].to_numpy()
    assert np.isnan(labels).sum() == 10
