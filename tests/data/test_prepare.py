import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.raw_tables import ITEMS, LOG, T0, USERS, config, write
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.features import FeaturesConfig
from trec_semid.data.histories import HistoryConfig
from trec_semid.data.prepare import PrepareConfig, prepare_dataset
from trec_semid.data.ranking.dataset import RankingData
from trec_semid.data.ranking.row_files import RowFiles
from trec_semid.data.ranking.rows import joined
from trec_semid.data.schema import SPLITS, Dataset, RowFacts


def test_folder_holds_what_the_schema_says(tmp_path):
    write(tmp_path)
    facts = prepare_dataset(config(tmp_path))
    data = Dataset(str(tmp_path / "out"))
    assert data.facts == facts
    items, users, events = data.items(), data.users(), data.events()
    assert items.column_names == ["item_id", "row", "title", "genres", "year"]
    assert items["item_id"].to_pylist() == [f"i{n}" for n in range(10)]
    assert items["row"].to_pylist() == list(range(10))
    assert users["gender"].to_pylist() == [1, 2, 1, 2, 1]
    assert facts.item_fields["genres"].size == 4
    assert events["order"].to_pylist() == list(range(60))
    assert events["timestamp"].to_pylist() == [T0 + 1000 + n for n in range(60)]
    assert events["user_row"].to_pylist() == [n % 5 for n in range(60)]
    assert events["item_row"].to_pylist() == [(n * 7) % 10 for n in range(60)]
    assert events["label"].to_pylist() == [float(n % 5 > 2) for n in range(60)]
    assert set(events["behaviour"].to_pylist()) == {"event"}
    assert [data.events(split=part).num_rows for part in SPLITS] == [48, 6, 6]
    vocabulary = pq.read_table(tmp_path / "out/fields/item_genres.parquet").to_pydict()
    assert vocabulary["id"] == [1, 2, 3]
    assert data.vocabulary("item_genres").to_pylist() == [None, *vocabulary["value"]]
    for name, field in {**facts.item_fields, **facts.user_fields}.items():
        entity = "item" if name in facts.item_fields else "user"
        assert len(data.vocabulary(f"{entity}_{name}")) == field.size
    assert [file["size"] for file in facts.source["files"]] == [len(LOG), len(ITEMS), len(USERS)]


def as_lists(columns) -> list:
    return [np.asarray(column).tolist() for column in columns]


@pytest.mark.parametrize("negatives", [None, {"per_positive": 1}])
def test_rows_to_stream_are_those_of_the_events(tmp_path, negatives):
    write(tmp_path)
    rows = {"history": {"max_len": 3}, "rows_per_group": 7, "rows_per_file": 20}
    facts = prepare_dataset(config(tmp_path, rows=rows, negatives=negatives))
    data, history = Dataset(str(tmp_path / "out")), HistoryConfig(max_len=3)
    assert facts.rows == RowFacts(max_len=3, events="positives")
    whole, files = RankingData(data, FeaturesConfig(), history, "item", None), RowFiles(data, history)
    for split, protocol in (("train", "frozen"), ("valid", "online"), ("test", "frozen"), ("test", "online")):
        read = joined([files.read(group, protocol) for group in files.groups(split)])
        assert read.numbers is not None
        assert len(read.labels) == files.num_rows(split) == whole.num_rows(split)
        expected = whole.rows(split, protocol).take(np.arange(len(read.labels)))
        for ours, theirs in zip(read.take(np.argsort(read.numbers)), expected, strict=True):
            assert as_lists(ours) == as_lists(theirs)
    ours, theirs = files.train_counts(), whole.train_counts()
    assert [counts.tolist() for counts in ours] == [counts.tolist() for counts in theirs]


@pytest.mark.parametrize("title", [{"v": 1}, [["a"]], [{"v": 1}]])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_readable_columns_hold_no_structures_in_any_format(tmp_path, title, form):
    write(tmp_path)
    rows = [{"item": f"i{n}", "title": title} for n in range(10)]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    else:
        (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = config(tmp_path).source.model_dump()
    source["items"] = {"path": str(tmp_path / f"list.{form}"), "id": "item"}
    items = {"readable": {"title": "title"}}
    with pytest.raises(
        DataError, match=rf"list\.{form}.*field 'title'.*(Write text|Write values of one type)"
    ):
        prepare_dataset(config(tmp_path, source=source, items=items, content={}))


def test_same_input_config_and_seed_give_the_same_checksum_anywhere(tmp_path):
    write(
        tmp_path,
        log="user,item,rating,time\n"
        + "".join(f"u{n % 5},i{n % 10},{1 + n % 5},{T0 + n // 9}\n" for n in range(60)),
    )
    first = prepare_dataset(config(tmp_path))
    again = prepare_dataset(config(tmp_path, out=str(tmp_path / "again")))
    other = prepare_dataset(config(tmp_path, seed=1))
    assert first.checksum == again.checksum != other.checksum
    assert first.tied_events == 50  # 8 of each 9 events at one time, 2 of the last 6


def test_datasets_can_live_behind_uris(tmp_path):
    write(tmp_path)
    facts = prepare_dataset(config(tmp_path, out="memory://prepared/tiny"))
    data = Dataset("memory://prepared/tiny")
    assert data.events().num_rows == facts.num_events == 60
    assert facts.checksum == prepare_dataset(config(tmp_path)).checksum


def slow_dataset(log, min_user, min_item):
    """K-core, dense rows by first appearance, labels and leave-one-out, in plain Python."""
    kept = list(range(len(log)))
    while True:
        users, items = [log[i][0] for i in kept], [log[i][1] for i in kept]
        left = [i for i in kept if users.count(log[i][0]) >= min_user and items.count(log[i][1]) >= min_item]
        if left == kept:
            break
        kept = left
    in_time = sorted(kept, key=lambda i: (log[i][3], i))
    users = [u for u in dict.fromkeys(row[0] for row in log) if any(log[i][0] == u for i in kept)]
    items = [j for j in dict.fromkeys(row[1] for row in log) if any(log[i][1] == j for i in kept)]
    parts = {}
    for user in users:
        mine = [i for i in in_time if log[i][0] == user]
        for position, i in enumerate(mine):
            from_end = len(mine) - position
            parts[i] = "train" if len(mine) < 3 or from_end > 2 else ("test", "valid")[from_end - 1]
    return [
        (users.index(log[i][0]), items.index(log[i][1]), float(log[i][2] > 3), T0 + log[i][3], parts[i])
        for i in in_time
    ]


ROW = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5), st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 3))
def test_whole_preparation_equals_plain_python(tmp_path_factory, log, min_user, min_item):
    folder = tmp_path_factory.mktemp("whole")
    lines = "".join(f"{u},{i},{r},{T0 + t}\n" for u, i, r, t in log)
    write(folder, log="user,item,rating,time\n" + lines)
    source = {"kind": "tables", "interactions": config(folder).source.interactions.model_dump()}
    made = config(
        folder,
        source=source,
        items={},
        users={},
        ties="published",
        split={"kind": "leave_one_out"},
        filter={"min_user_events": min_user, "min_item_events": min_item},
    )
    expected = slow_dataset(log, min_user, min_item)
    if {row[-1] for row in expected} != set(SPLITS):
        with pytest.raises(
            DataError, match=r"log.csv, field '(split|filter)': .*(is empty|no event is left)"
        ):
            prepare_dataset(made)
        assert not (folder / "out").exists()
        return
    if len({row[2] for row in expected}) == 1:
        with pytest.raises(DataError, match="field 'label': every one of"):
            prepare_dataset(made)
        return
    prepare_dataset(made)
    events = Dataset(made.out).events(["user_row", "item_row", "label", "timestamp", "split"])
    assert [tuple(row.values()) for row in events.to_pylist()] == expected


def test_order_alone_defines_the_sequence(tmp_path):
    write(tmp_path)
    made = config(tmp_path).model_dump()
    made["source"]["interactions"] |= {"timestamp": None, "order": "time"}
    with pytest.raises(ValueError, match="split 'global_temporal' needs timestamps"):
        PrepareConfig.model_validate(made)
    made["split"] = {"kind": "leave_one_out"}
    facts = prepare_dataset(PrepareConfig.model_validate(made))
    assert (facts.tie_rule, facts.tied_events, facts.has_timestamps) == ("ties unknown", None, False)
    events = Dataset(made["out"]).events()
    assert events["timestamp"].null_count == 60
    assert events["user_row"].to_pylist() == [n % 5 for n in range(60)]


def test_behaviours_missing_labels_and_negatives_reach_the_folder(tmp_path):
    log = "user,item,rating,time,kind\n" + "".join(
        f"u{n % 5},i{(n * 3) % 7},{n % 2 if n != 4 else ''},{T0 + n},{'click' if n % 3 else 'view'}\n"
        for n in range(60)
    )
    write(tmp_path, log=log)
    made = config(tmp_path).model_dump()
    made["source"]["interactions"]["behaviour"] = "kind"
    made |= {
        "label": {"kind": "given", "missing": "null"},
        "negatives": {"per_positive": 2, "strategy": "uniform", "splits": ["train", "test"]},
    }
    facts = prepare_dataset(PrepareConfig.model_validate(made))
    events = Dataset(made["out"]).events().to_pylist()
    observed = [event for event in events if event["behaviour"] != "negative"]
    assert [event["behaviour"] for event in observed] == ["click" if n % 3 else "view" for n in range(60)]
    assert [event["label"] for event in observed] == [n % 2 if n != 4 else None for n in range(60)]
    touched = {(event["user_row"], event["item_row"]) for event in observed}
    negatives = [event for event in events if event["behaviour"] == "negative"]
    assert not touched & {(event["user_row"], event["item_row"]) for event in negatives}
    positives = facts.splits["train"].positives + facts.splits["test"].positives
    assert len(negatives) == 2 * positives
    assert "2 sampled negative(s) a positive in train and test, by uniform" in facts.label_rule


def test_content_follows_the_items_that_stay(tmp_path):
    live = ITEMS.replace("1993,1", "1993,0")
    log = "".join(line + "\n" for line in LOG.splitlines() if ",i3," not in line)
    write(tmp_path, items=live, log=log)
    vectors = np.arange(40, dtype=np.float32).reshape(10, 4) + 1
    np.save(tmp_path / "x.npy", vectors)
    made = config(
        tmp_path,
        items={"keep_where": "live"},
        content={
            "x": {"kind": "npy", "file": str(tmp_path / "x.npy")},
            "about": {"kind": "attributes", "categories": ["genres"], "separator": "|"},
        },
    )
    facts = prepare_dataset(made)
    data = Dataset(made.out)
    np.testing.assert_array_equal(data.content("x"), np.delete(vectors, 3, axis=0))
    assert data.content_mask("about").all()
    assert facts.num_items == 9
    assert facts.filter_rule == "items where live"
    np.save(tmp_path / "x.npy", vectors[:9])
    with pytest.raises(DataError, match="row counts disagree"):
        prepare_dataset(made)
    assert Dataset(made.out).facts == facts, "a failed run leaves the old dataset alone"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"label": {"kind": "behaviour", "positive": ["x"]}}, "needs a behaviour"),
        ({"items": {"readable": {"row": "title"}}}, "reserved for the dataset itself: row"),
        ({"items": {"readable": {"Title!": "title"}}}, "should match pattern"),
        ({"label": {"kind": "none"}, "negatives": {}}, "negatives need positives"),
        (
            {"split": {"kind": "item_holdout"}, "negatives": {}},
            "'item_holdout' holds out; use a label with both",
        ),
        ({"split": {"kind": "by_moon"}}, "global_temporal"),
        ({"filter": {"min_user_events": -3}}, "greater than or equal to 0"),
    ],
)
def test_configs_that_cannot_work_are_refused_before_reading(tmp_path, more, problem):
    with pytest.raises(ValueError, match=problem):
        config(tmp_path, **more)


def test_example_configs_are_valid():
    folder = os.path.join(os.path.dirname(__file__), "../../configs/data")
    names = sorted(os.listdir(folder))
    assert len(names) >= 5
    for name in names:
        load_config(PrepareConfig, [os.path.join(folder, name)])


def test_typos_are_named_with_what_was_meant(tmp_path):
    (tmp_path / "c.toml").write_text(
        'name = "x"\nout = "y"\n[source]\nkind = "movielens"\nfolder = "z"\nreleas = "1m"\n'
    )
    with pytest.raises(ConfigError, match="did you mean 'release'"):
        load_config(PrepareConfig, [str(tmp_path / "c.toml")])


@pytest.mark.studydata
def test_study_data_prepares_to_its_published_counts(study_data, tmp_path):
    base = study_data / "ml100k_mm"
    made = config(
        tmp_path,
        source={
            "kind": "tables",
            "interactions": {
                "path": str(base / "interactions.parquet"),
                "user": "user_id",
                "item": "item_id",
                "rating": "rating",
                "timestamp": "timestamp",
            },
            "items": {"path": str(base / "items.parquet"), "id": "item_id"},
        },
        users={},
        content={
            "vision": {
                "kind": "npy",
                "file": str(base / "image_effnetlite0_1280.npy"),
                "mask_column": "has_image",
            }
        },
    )
    facts = prepare_dataset(made)
    assert (facts.num_users, facts.num_items, facts.num_events) == (943, 1682, 100_000)
    assert facts.modalities["vision"].present == 1324
    assert [facts.splits[part].events for part in SPLITS] == [81_000, 9_000, 10_000]
