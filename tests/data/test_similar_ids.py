import unicodedata
from itertools import combinations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trec_semid.data.similar_ids import find_similar_ids, normal_form


@pytest.mark.parametrize(
    "other",
    [
        "cafe\u0301",
        " café",
        "café ",
        "café\t",
        "\u200bcafé",
        "ca\u200dfé",
        "\ufeffcafé",
        "café\u00a0",
        "c\u00adafé",
        "ｃafé",
    ],
)
def test_forms_of_one_id_are_named_together(other):
    similar = find_similar_ids(pa.array(["x", "café"]), pa.array([other, "x", "y"]))
    assert similar.ids == 2
    assert [sorted(group) for group in similar.examples] == [sorted(["café", other])]


@pytest.mark.parametrize("other", ["Cafe", "ca fe", "cafe1", "кафе"])
def test_ids_that_differ_in_what_is_seen_are_not_named(other):
    assert find_similar_ids(pa.array(["cafe", other])) is None


@given(st.lists(st.text("ab \u200bé\u0301e", min_size=1, max_size=3), min_size=1, max_size=8))
def test_the_number_is_that_of_ids_with_a_twin(ids):
    def plain(text):
        return "".join(c for c in unicodedata.normalize("NFKC", text) if c != "\u200b").strip()

    twins = {each for pair in combinations(set(ids), 2) if plain(pair[0]) == plain(pair[1]) for each in pair}
    similar = find_similar_ids(pa.array(ids))
    assert (similar.ids if similar else 0) == len(twins)
    for group in similar.examples if similar else []:
        assert len({normal_form(each) for each in group}) == 1
        assert len(group) > 1
