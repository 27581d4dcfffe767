import pickle

import pytest

from trec_semid.core import errors
from trec_semid.core.errors import DataError, PeerError, SemidError


def test_data_error_names_file_row_field_value_and_remedy():
    error = DataError("not a number", file="x.csv", row=7, field="rating", value="five", remedy="Use digits")
    assert str(error) == "x.csv, row 7, field 'rating': not a number (got 'five'). Use digits"
    assert (error.file, error.row, error.field, error.value) == ("x.csv", 7, "rating", "five")


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({}, "wrong"),
        ({"row": 0}, "row 0: wrong"),
        ({"value": 0}, "wrong (got 0)"),
        ({"field": "a"}, "field 'a': wrong"),
    ],
)
def test_data_error_leaves_out_what_is_not_known(details: dict, text: str):
    assert str(DataError("wrong", **details)) == text


def test_every_error_has_an_exit_code_of_the_command_line():
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SemidError)
    ]
    assert len(kinds) >= 8
    assert {kind.exit_code for kind in kinds} == {1, 2}


def test_what_another_rank_ended_by_is_the_same_error_once_it_was_sent():
    sent = pickle.loads(pickle.dumps(PeerError("rank 1 failed: x.csv, row 7", 2)))
    assert (type(sent), str(sent), sent.exit_code) == (PeerError, "rank 1 failed: x.csv, row 7", 2)
