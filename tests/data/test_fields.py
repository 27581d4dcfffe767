import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError
from trec_semid.data.fields import CategoryField, NumberField, build_field
from trec_semid.data.raw.entities import Entities


def entities(**columns):
    table = pa.table(columns)
    ids = pa.array([str(i) for i in range(table.num_rows)])
    return Entities("item", ids, table, [(0, "items.csv", 1, None)])


def build(config, source, rows=None):
    rows = np.arange(len(source.ids)) if rows is None else np.array(rows)
    return build_field(config, source, rows)


def words(field):
    names = dict(zip(field.vocabulary["id"].to_pylist(), field.vocabulary["value"].to_pylist(), strict=True))
    return [
        [names[i] for i in entry] if isinstance(entry, list) else names.get(entry)
        for entry in field.ids.to_pylist()
    ]


def test_single_categories_count_sorted_values_from_1_and_keep_0_for_missing():
    field = build(CategoryField(column="brand"), entities(brand=["b", None, "a", "", " b "]))
    assert field.ids.to_pylist() == [2, 0, 1, 0, 2]
    assert field.ids.type == pa.int32()
    assert field.facts.model_dump() == {"kind": "category", "size": 3, "is_list": False}
    assert words(field) == ["b", None, "a", None, "b"]


def test_separated_texts_become_lists_without_repeats_in_their_order():
    field = build(CategoryField(column="genres", separator="|"), entities(genres=["x|a|x", "", None, "a| "]))
    assert words(field) == [["x", "a"], [], [], ["a"]]
    assert field.ids.type == pa.list_(pa.int32())
    assert field.facts.is_list


def test_list_columns_need_no_separator():
    field = build(CategoryField(column="tags"), entities(tags=[["b", "a"], [], None, ["a", None]]))
    assert words(field) == [["b", "a"], [], [], ["a"]]


@pytest.mark.parametrize("tags", [[["a"]], [{"v": 1}], [1.5], [b"x"]])
def test_lists_of_what_no_category_is_are_refused(tags):
    with pytest.raises(DataError, match=r"items\.csv, field 'tags': wrong type .*lists of text or integers"):
        build(CategoryField(column="tags"), entities(tags=[tags, None]))


def test_integers_and_booleans_are_categories_too():
    assert words(build(CategoryField(column="c"), entities(c=[3, None, 10]))) == ["3", None, "10"]
    assert words(build(CategoryField(column="c"), entities(c=[True, None, False]))) == ["true", None, "false"]


def test_rare_values_become_unknown():
    field = build(CategoryField(column="c", min_count=2), entities(c=["a", "b", "a"]))
    assert words(field) == ["a", None, "a"]
    many = build(CategoryField(column="c", separator=",", min_count=2), entities(c=["a,b", "a", "c,c"]))
    assert words(many) == [["a"], ["a"], []]


def test_vocabulary_comes_from_the_items_that_stay():
    field = build(CategoryField(column="c"), entities(c=["gone", "b", "a"]), rows=[2, 1])
    assert words(field) == ["a", "b"]
    assert field.facts.size == 3


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(-50, 50), st.floats(-1e6, 1e6)), min_size=1, max_size=60),
    st.integers(2, 12),
)
def test_buckets_hold_what_their_edges_say(numbers, buckets):
    field = build(NumberField(column="x", buckets=buckets), entities(x=pa.array(numbers, pa.float64())))
    vocabulary = {row["id"]: row for row in field.vocabulary.to_pylist()}
    assert field.facts.size == len(vocabulary) + 1 <= buckets + 1
    for number, entry in zip(numbers, field.ids.to_pylist(), strict=True):
        if number is None:
            assert entry == 0
            continue
        low, high = vocabulary[entry]["low"], vocabulary[entry]["high"]
        assert low is None or number >= low
        assert high is None or number < high
    assert {entry for entry in field.ids.to_pylist() if entry} == set(vocabulary)


def test_even_numbers_fall_into_even_buckets():
    field = build(NumberField(column="x", buckets=4), entities(x=list(range(100))))
    assert np.bincount(field.ids.to_numpy())[1:].tolist() == [25, 25, 25, 25]


def test_faults_name_file_row_and_remedy():
    with pytest.raises(DataError, match=r"items.csv, row 2, field 'x': not a number \(got 'abc'\)"):
        build(NumberField(column="x"), entities(x=["1", "abc"]))
    with pytest.raises(DataError, match=r"not a finite number"):
        build(NumberField(column="x"), entities(x=[1.0, float("inf")]))
    with pytest.raises(DataError, match=r"no such item column.*Map one of: x"):
        build(NumberField(column="y"), entities(x=[1.0]))
    with pytest.raises(DataError, match=r"wrong type.*text or integers"):
        build(CategoryField(column="x"), entities(x=[1.5]))
