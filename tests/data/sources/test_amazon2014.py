import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trec_semid.core.errors import DataError, SemidError
from trec_semid.data.sources.amazon2014 import Amazon2014Config, read_amazon2014
from trec_semid.data.sources.source import Needs

REVIEW = {
    "reviewerID": "A1YJEY40YUW4SE", "asin": "7806397051", "reviewerName": "Andrea", "helpful": [3, 4],
    "reviewText": "Very oily\n and creamy.", "overall": 1.0, "summary": "Don't", "unixReviewTime": 1391040000,
    "reviewTime": "01 30, 2014",
}  # fmt: skip
PRODUCT = {
    "asin": "7806397051", "description": 'Say "it\'s" \\d', "title": "WAWO 15 Color", "price": 10.44,
    "brand": "COKA", "imUrl": "http://x/y.jpg", "salesRank": {"Beauty": 10486},
    "related": {"also_bought": ["B1"]}, "categories": [["Beauty", "Makeup", "Face"], ["Beauty", "Palettes"]],
}  # fmt: skip


def write(folder, reviews=None, products=None):
    lines = reviews or [json.dumps(REVIEW)]
    (folder / "reviews_X.json.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    lines = products or [repr(PRODUCT)]
    (folder / "meta_X.json.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))


def read(folder):
    config = Amazon2014Config(reviews=str(folder / "reviews_X.json.gz"), meta=str(folder / "meta_X.json.gz"))
    return read_amazon2014(config, Needs([], []))


@pytest.mark.parametrize("written", [repr, json.dumps])
def test_products_are_python_literals_or_json(tmp_path, written):
    bare = {"asin": "B000000001"}
    write(tmp_path, products=[written(PRODUCT), "", written(bare)])
    source = read(tmp_path)
    assert source.items.table.to_pylist() == [
        {
            "asin": "7806397051",
            "title": "WAWO 15 Color",
            "brand": "COKA",
            "description": 'Say "it\'s" \\d',
            "categories": "Beauty | Makeup | Face | Palettes",
            "price": 10.44,
            "image_url": "http://x/y.jpg",
            "sales_rank": 10486,
            "sales_type": "Beauty",
        },
        dict.fromkeys(source.items.table.column_names) | bare,
    ]


def test_reviews_are_events(tmp_path):
    write(tmp_path, reviews=[json.dumps(REVIEW), json.dumps(REVIEW | {"overall": 5.0})])
    events = read(tmp_path).events
    assert events.user_ids.to_pylist() == ["A1YJEY40YUW4SE"]
    assert events.item_ids.to_pylist() == ["7806397051"]
    assert events.ratings.numbers().tolist() == [1, 5]
    assert events.times.values.tolist() == [1391040000] * 2


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': 'x', 'title': 3}",
        "{'asin': 'x', 'price': 'cheap'}",
        "{'asin': 'x', 'salesRank': 7}",
        "{'asin': 'x', 'salesRank': {'Beauty': 1e99}}",
        "{'asin': __import__('os')}",
        "{'asin': 'x'",
        "[1, 2]",
        "(" * 5000,
        "{'asin': '\\ud800'}",
    ],
)
def test_products_of_another_form_are_refused_by_row(tmp_path, line):
    write(tmp_path, products=[repr(PRODUCT), line])
    with pytest.raises(DataError, match=r"meta_X.json.gz"):
        read(tmp_path)


def test_product_without_id_and_truncated_files_are_refused(tmp_path):
    write(tmp_path, products=["{'title': 'x'}"])
    with pytest.raises(DataError, match=r"row 1, field 'asin': the id is missing"):
        read(tmp_path)
    for name in ("meta_X.json.gz", "reviews_X.json.gz"):
        write(tmp_path, [json.dumps(REVIEW)] * 500, [repr(PRODUCT | {"asin": str(i)}) for i in range(500)])
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-30])
        with pytest.raises(DataError, match=f"{name}: truncated or damaged gzip"):
            read(tmp_path)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(st.text(), st.text(alphabet="{}[]()'\":, ax1", max_size=40), st.just(repr(PRODUCT))), st.data()
)
def test_any_line_is_a_product_or_refused(tmp_path_factory, line, data):
    folder = tmp_path_factory.mktemp("fuzz")
    cut = data.draw(st.integers(0, len(line)))
    write(folder, products=[line[:cut] + data.draw(st.text(max_size=2)) + line[cut:]])
    assert "meta_X.json.gz" in refusal(folder)


def refusal(folder):
    try:
        read(folder)
    except SemidError as error:
        return str(error)
    return "meta_X.json.gz is fine"
