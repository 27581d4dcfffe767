"""What the retrieve job refuses before anything runs."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.datasets import describe_again, write_small_dataset
from tests.jobs.retrieving import STILL, retrieve_config
from trec_semid.core.config import load_config, load_saved
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.data.features import describe_item
from trec_semid.data.schema import Dataset, FieldFacts
from trec_semid.jobs.retrieve import run
from trec_semid.runtime.runs import RunFolder
from trec_semid.search.code_prior import CodePriorConfig
from trec_semid.training.retrieval import inputs as retrieve_inputs
from trec_semid.training.retrieval.setup import RetrieveConfig

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
        ({**POPULAR, "evaluation": {"unseen_penalty": 1.0}}, "leave out evaluation.unseen_penalty"),
        (
            {"evaluation": {"unseen_penalty": -1.0}},
            r"evaluation\.unseen_penalty\n.*greater than or equal to 0",
        ),
        (
            {"evaluation": {"unseen_penalty": 1001}},
            r"evaluation\.unseen_penalty\n.*less than or equal to 1000",
        ),
        ({"evaluation": {"unseen_penalty": 1.0, "beam_width": 20}}, "off items' scores, and a beam has none"),
        ({**POPULAR, "loss": {"code_heads": "chained"}}, "leave out loss.code_heads"),
        (
            {"loss": {"code_heads": "chained"}},
            "loss.code_heads: codes are not predicted: leave out loss.code_heads",
        ),
        ({"loss": {"code_facets": 2}}, "loss.code_facets: codes are not chained: set loss.code_facets = 1"),
        (
            {"semantic_ids": "s", "loss": {"code_heads": "chained", "code_weight": 1.0}},
            "loss.code_share: chained codes .* set loss.code_share = 0, or evaluation.candidates",
        ),
        (
            {"semantic_ids": "s", "loss": {"code_heads": "chained", "code_weight": 1.0, "item_weight": 0}},
            r"loss.code_heads = 'chained' cannot score all items: set evaluation.beam_width = 10 or more",
        ),
        (
            {
                "semantic_ids": "s",
                "loss": {"code_heads": "chained", "code_weight": 1.0},
                "evaluation": {"candidates": 40},
            },
            r"loss.code_heads = 'chained' cannot score all items: set evaluation.beam_width = 40 or more",
        ),
        (
            {
                "semantic_ids": "s",
                "loss": {"code_weight": 1.0},
                "evaluation": {"candidates": 40, "beam_width": 39},
            },
            r"beam_width: 39 tuples do not propose 40 items: set evaluation.beam_width = 40 or more",
        ),
        ({"evaluation": {"candidates": 20}}, "proposed by their codes: give semantic_ids, set loss.code_w"),
        (
            {
                "semantic_ids": "s",
                "loss": {"code_weight": 1, "item_weight": 0},
                "evaluation": {"candidates": 20},
            },
            "evaluation.candidates: items have no vectors that decide among them: leave out evaluation.cand",
        ),
        (
            {"item": {"codes": False}},
            "item.codes = false: codes are not predicted either: set item.codes = true",
        ),
        (
            {"item": {"content_projection": "mixture", "content_is_unit": False}},
            "a mixture divides content by the root of its width: set item.content_is_unit = true",
        ),
        ({"evaluation": {"graph": {}}}, "evaluation.graph: is followed by scores of codes alone"),
        ({"evaluation": {"code_prior": {}}}, "evaluation.code_prior: no heads predict codes .*: leave out"),
        (
            {
                "semantic_ids": "s",
                "loss": {"code_heads": "chained", "code_weight": 1.0, "item_weight": 0},
                "evaluation": {"beam_width": 20, "code_prior": {"item_share": 2.0}},
            },
            "evaluation.code_prior: chained codes know those before them: leave out evaluation.code_prior",
        ),
        (
            {"semantic_ids": "s", "loss": {"code_weight": 1.0}, "evaluation": {"code_prior": {}}},
            "and items are scored: leave out evaluation.code_prior, or set evaluation.candidates = 500",
        ),
        ({**POPULAR, "evaluation": {"code_prior": {}}}, "learns nothing: leave out evaluation.code_prior"),
        (
            {"model": {"kind": "tiger"}, "evaluation": {"list_metrics": {"state_rank": True}}},
            "'tiger' has no one state a user: set evaluation.list_metrics.state_rank = false",
        ),
        ({**POPULAR, "evaluation": {"candidates": 20}}, "leave out evaluation.candidates"),
        ({**TOGETHER, "window": 4, "sampled": {}}, "'ensemble' learns nothing: leave out sampled, window"),
        ({**TOGETHER, "loss": {"code_weight": 1.0, "negatives": "seen"}}, "loss.negatives, loss.code_weight"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        retrieve_config({"dataset": "d"}, "r", **changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sampled": {"power": 400.0}}, "sampled.power"),
        ({"sampled": {"power": -1.0}}, "sampled.power"),
        ({"optimizers": {"dense": {"betas": [0.9, 1.0]}}}, r"optimizers.dense.betas.1"),
        ({"optimizers": {"dense": {"eps": -1e-8}}}, "optimizers.dense.eps"),
    ],
)
def test_numbers_that_no_step_could_take_are_refused(changes: dict[str, Any], key: str):
    with pytest.raises(ValueError, match=rf"{key}\n.*(greater|less) than"):
        RetrieveConfig.model_validate({"dataset": "d", "run": "r", **changes})


def comirec(**settings: Any) -> dict[str, Any]:
    return {"model": {"kind": "comirec", **settings}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            comirec(routing_iterations=5),
            "model.routing_iterations: attention .*: leave out model.routing_iterations, or set",
        ),
        (
            comirec(extractor="routing", hidden_dim=9),
            "leave out model.hidden_dim, or set model.extractor = 'att",
        ),
        (
            {**comirec(), "loss": {"code_share": 5.0}},
            "loss.code_share: .* predicts no codes: leave out loss.code_share",
        ),
        (
            {"model": {"kind": "gemirec"}, "loss": {"code_share": 5.0, "code_temperature": 9.0}},
            "leave out loss.code_share, loss.code_temperature",
        ),
        (
            {"item": {"content": ["text"], "content_experts": 7}},
            "leave out item.content_experts, or set item.content_projection = 'mixture'",
        ),
        (
            {"item": {"content_projection": "mixture", "content_hidden_dim": 7}},
            "item.content_hidden_dim: there is no content: leave out",
        ),
        (
            {
                **POPULAR,
                "item": {"codes": False, "content_projection": "mixture"},
                "loss": {"code_facets": 8, "code_share": 0.5},
            },
            "leave out item.codes, item.content_projection, loss.code_facets, loss.code_share",
        ),
        (
            {"evaluation": {"index": {"kind": "ivf", "nlist": 4, "nprobe": 100}}},
            "100 lists cannot be read of 4: set evaluation.index.nprobe = 4 or less",
        ),
        (
            {**comirec(), "evaluation": {"interests": {"diversity_weight": 9.0}}},
            "merge = 'score' counts no categories: leave out evaluation.interests.diversity_weight",
        ),
    ],
)
def test_keys_that_nothing_reads_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        RetrieveConfig.model_validate({"dataset": "d", "run": "r", **changes})


@pytest.mark.parametrize(
    "changes",
    [
        comirec(extractor="routing", routing_iterations=5),
        comirec(hidden_dim=9),
        {"semantic_ids": "s", "loss": {"code_weight": 1.0, "code_share": 5.0, "code_temperature": 9.0}},
        {"loss": {"code_share": 5.0}},
        {"item": {"content": ["text"], "content_projection": "mixture", "content_experts": 7}},
        {"evaluation": {"index": {"kind": "ivf", "nlist": 4, "nprobe": 4}}},
        {
            **comirec(),
            "evaluation": {
                "interests": {"merge": "diversity", "diversity_field": "genres", "diversity_weight": 9.0}
            },
        },
    ],
)
def test_the_same_keys_are_taken_where_they_count_and_when_all_are_written_out(changes: dict[str, Any]):
    config = RetrieveConfig.model_validate({"dataset": "d", "run": "r", **changes})
    assert RetrieveConfig.model_validate(config.model_dump()) == config


def test_what_corrects_the_codes_of_candidates_is_named_in_the_config(tmp_path: Path):
    values = {"dataset": "d", "run": "r", "semantic_ids": "s", "evaluation": {"candidates": 100}}
    apart = RetrieveConfig.model_validate({**values, "loss": {"code_weight": 1.0}})
    assert apart.evaluation.code_prior == CodePriorConfig(kind="bayes")
    run = RunFolder(str(tmp_path / "r"), "retrieve")
    run.start(apart)
    assert load_config(RetrieveConfig, [run.path("config.toml")]) == apart
    assert run.is_of(apart)
    # As a run of an older version says it: candidates were those of the sum.
    older = apart.model_copy(update={"evaluation": apart.evaluation.model_copy(update={"code_prior": None})})
    run.start(older)
    assert load_saved(RetrieveConfig, run.path("config.toml")).evaluation.code_prior == CodePriorConfig(
        kind="none"
    )
    assert run.other_config(apart) == 'evaluation.code_prior.kind: "none" there, "bayes" now'
    chained = {"loss": {"code_weight": 1.0, "code_heads": "chained"}}
    lists = {"evaluation": {"candidates": 100, "beam_width": 100}}
    assert RetrieveConfig.model_validate({**values, **chained, **lists}).evaluation.code_prior is None
    unread = {**values, "loss": {"code_weight": 1.0}, "evaluation": {}}
    assert RetrieveConfig.model_validate(unread).evaluation.code_prior is None


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


def moved(folder, split, to, *, liked_only=False):
    """Write a dataset whose events of a split, or those of them that are liked, are of another."""
    write_small_dataset(str(folder))
    place = folder / "events/part-00000.parquet"
    events = pq.read_table(place)
    moves = pc.equal(events["split"].cast(pa.string()), split)
    if liked_only:
        moves = pc.and_(moves, pc.equal(events["label"], 1.0))
    splits = pc.if_else(moves, to, events["split"].cast(pa.string())).to_pylist()
    names = ["train", "valid", "test"]
    column = pa.DictionaryArray.from_arrays(pa.array(map(names.index, splits), pa.int8()), pa.array(names))
    at = events.schema.get_field_index("split")
    pq.write_table(events.set_column(at, events.schema.field(at), column), place)
    describe_again(str(folder))
    return {"dataset": str(folder)}


@pytest.mark.parametrize(
    ("liked_only", "events", "words"),
    [
        (False, "all", r"field 'split': no validation events\. The best step .* another split rule$"),
        (False, "positives", "no validation events with label 1"),
        (True, "positives", r"no validation events with label 1\. .* set sequences\.events = 'all'"),
    ],
)
def test_data_that_no_step_can_be_selected_by_is_refused_before_training(tmp_path, liked_only, events, words):
    data = moved(tmp_path / "data", "valid", "train", liked_only=liked_only)
    config = retrieve_config(data, str(tmp_path / "r"), sequences={"events": events})
    with pytest.raises(DataError, match=words):
        run(config)
    assert not Path(config.run).exists()
    popular = retrieve_config(data, str(tmp_path / "p"), sequences={"events": events}, **POPULAR)
    assert "test/ndcg@10" in run(popular).metrics


def test_data_without_two_training_events_of_anyone_is_refused_before_training(tmp_path):
    config = retrieve_config(moved(tmp_path / "data", "train", "valid"), str(tmp_path / "r"))
    with pytest.raises(DataError, match=r"field 'split': no user with two training events"):
        run(config)
    assert not Path(config.run).exists()


def test_as_many_items_as_the_loss_is_over_may_not_be_too_many(data, tmp_path, monkeypatch):
    """Two of the forty items have no training event."""
    monkeypatch.setattr(retrieve_inputs, "MAX_SCORED_ITEMS", 38)
    config = retrieve_config(data, str(tmp_path / "all"))
    with pytest.raises(ConfigError, match=r"40 items are too many .*\(at most 38\)\. Add \[sampled\]"):
        run(config)
    seen = retrieve_config(data, "r", loss={"negatives": "seen"})
    assert retrieve_inputs.read_inputs(seen).data.num_items == 40
    monkeypatch.setattr(retrieve_inputs, "MAX_SCORED_ITEMS", 37)
    with pytest.raises(ConfigError, match="38 items are too many"):
        retrieve_inputs.read_inputs(seen)


TIGER_NEEDS = {
    "item.id": False,
    "item.fields": [],
    "item.content": [],
    "semantic_ids": "codes",
    "loss.item_weight": 0,
    "loss.code_weight": 1,
    "sequences.rows": "sliding",
    "evaluation.beam_width": 10,
}
ODD = {
    "sampled": {"num_sampled": 5},
    "window": 2,
    "evaluation.unseen_penalty": 1.0,
}
UNDONE = {"sampled": None, "window": 1, "evaluation.unseen_penalty": 0.0, "tables.dim": 12}


def with_keys(values: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    for key, value in keys.items():
        *sections, last = key.split(".")
        table = values
        for section in sections:
            table = table[section]
        table[last] = value
    return values


@pytest.mark.parametrize("odd", [{}, ODD])
def test_all_that_tiger_misses_is_told_at_once_and_doing_it_is_enough(odd):
    values = with_keys(retrieve_config({"dataset": "d"}, "r").model_dump(), odd)
    part = {**STILL, "num_heads": 3} if odd else STILL
    values["model"] = {"kind": "tiger", "encoder": part, "decoder": part}
    with pytest.raises(ValueError, match="says codes") as refused:
        RetrieveConfig.model_validate(values)
    told = str(refused.value)
    remedies = [
        "give semantic_ids, set loss.item_weight = 0, loss.code_weight = 1",
        "set item.id = false, item.fields = [], item.content = []",
        "set sequences.rows = 'sliding'",
        "set evaluation.beam_width = 10 or more",
    ]
    if odd:
        remedies += [
            "leave out sampled",
            "set window = 1",
            "set evaluation.unseen_penalty = 0",
            "model.encoder.num_heads: 3 heads do not divide width 8",
            "model.decoder.num_heads: 3 heads do not divide width 8",
        ]
    assert [remedy for remedy in remedies if remedy not in told] == []
    done = with_keys(values, {**TIGER_NEEDS, **(UNDONE if odd else {})})
    assert RetrieveConfig.model_validate(done).learns
    for key in TIGER_NEEDS.keys() - {"item.id", "item.fields", "item.content", "evaluation.beam_width"}:
        assert key.rpartition(".")[2] in told


def test_each_fault_of_a_file_has_a_line_of_its_own(tmp_path):
    file = tmp_path / "tiger.toml"
    file.write_text('dataset = "d"\nrun = "r"\n[model]\nkind = "tiger"\n')
    with pytest.raises(ConfigError) as refused:
        load_config(RetrieveConfig, [str(file)])
    first, *lines = str(refused.value).splitlines()
    assert first.endswith(f"{len(lines)} problems")
    assert len(lines) == 4
    assert all(line.startswith("  (whole config): model.kind = 'tiger' ") for line in lines)
