"""What the retrieve job refuses before anything runs."""

import pytest

from tests.datasets import write_small_dataset
from tests.jobs.retrieving import retrieve_config
from trec_semid.core.errors import DataError
from trec_semid.data.features import describe_item
from trec_semid.data.schema import Dataset, FieldFacts

POPULAR = {"model": {"kind": "popularity"}}
TOGETHER = {"model": {"kind": "ensemble", "runs": ["a", "b"]}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {"dataset": write_small_dataset(str(tmp_path_factory.mktemp("setup") / "data"))}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation": {"cutoffs": []}}, r"evaluation\.cutoffs\n.*at least 1 item"),
        ({**POPULAR, "evaluation": {"cutoffs": []}}, r"evaluation\.cutoffs\n.*at least 1 item"),
        ({**TOGETHER, "evaluation": {"cutoffs": []}}, r"evaluation\.cutoffs\n.*at least 1 item"),
        ({"item": {"fields": ["genres", "genres"]}}, r"item\.fields\n.*'genres' is named twice"),
        ({"item": {"content": ["text", "image", "text"]}}, r"item\.content\n.*'text' is named twice"),
        (
            {"loss": {"code_weight": 1.0}},
            "loss.code_weight: there are no codes to predict: give semantic_ids",
        ),
        ({**POPULAR, "window": 4}, "'popularity' learns nothing: leave out window"),
        ({**POPULAR, "loss": {"negatives": "seen"}}, "learns nothing: leave out loss.negatives"),
        ({**TOGETHER, "window": 4, "sampled": {}}, "'ensemble' learns nothing: leave out sampled, window"),
        ({**TOGETHER, "loss": {"code_weight": 1.0, "negatives": "seen"}}, "loss.negatives, loss.code_weight"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        retrieve_config({"dataset": "d"}, "r", **changes)


def test_what_studies_share_is_taken_by_models_that_learn_nothing():
    shared = {"loss": {"item_similarity_is_cosine": True, "item_temperature": 0.07}, "tables": {"dim": 64}}
    assert retrieve_config({"dataset": "d"}, "r", **POPULAR, **shared).loss.item_temperature == 0.07


def test_a_field_with_the_name_of_the_id_is_refused(data):
    dataset = Dataset(data["dataset"])
    fields = {"id": FieldFacts(kind="category", size=3)}
    named = Dataset(dataset.uri, dataset.facts.model_copy(update={"item_fields": fields}))
    with pytest.raises(DataError, match="field 'item_id': two features have one name"):
        describe_item(named, ["id"], has_id=True)
    assert len(describe_item(named, ["id"], has_id=False)) == 1
