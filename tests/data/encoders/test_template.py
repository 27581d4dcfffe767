import numpy as np
import pyarrow as pa
import pytest

from trec_semid.data.encoders.chunks import Items
from trec_semid.data.encoders.template import fill_template, template_columns


def films():
    table = pa.table(
        {
            "title": ["Heat", "Alien", None, " "],
            "genres": pa.array([["Crime", "Drama"], None, [], None], pa.list_(pa.string())),
            "year": pa.array([1995.0, None, 1979.0, None], pa.float32()),
        }
    )
    return Items(table, np.arange(4))


def test_one_piece_writes_missing_columns_as_nothing():
    texts = fill_template(["Title: {title}; Genres: {genres} ({year})"], films(), 0, 4)
    assert texts == [
        "Title: Heat; Genres: Crime, Drama (1995)",
        "Title: Alien; Genres:  ()",
        "Title: ; Genres:  (1979)",
        "",
    ]


def test_pieces_with_a_missing_column_are_left_out():
    texts = fill_template(["{title} ({year})", "Genres: {genres}", "{title}"], films(), 0, 4)
    assert texts == ["Heat (1995); Genres: Crime, Drama; Heat", "Alien", "", ""]


def test_a_part_of_the_items_gives_the_same_texts():
    pieces = ["Title: {title}", "Genres: {genres}"]
    whole = fill_template(pieces, films(), 0, 4)
    assert [fill_template(pieces, films(), at, at + 1)[0] for at in range(4)] == whole


def test_columns_are_named_once_in_the_order_of_the_template():
    assert template_columns(["{b} {a}", "{b}", "{{no column}}", "{c d}"]) == ["b", "a", "c d"]
    assert fill_template(["{{{title}}}"], films(), 0, 1) == ["{Heat}"]


@pytest.mark.parametrize(
    ("piece", "problem"),
    [
        ("{title", "expected '}'"),
        ("title}", "Single '}'"),
        ("{}", "write a column name"),
        ("{title:>10}", "write a column name"),
        ("{title!r}", "write a column name"),
        ("no column", "names no column"),
    ],
)
def test_a_template_that_names_no_plain_column_is_refused(piece, problem):
    with pytest.raises(ValueError, match=problem):
        template_columns([piece])
