from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import write_small_dataset
from tests.report.conftest import Study
from tests.report.fake_runs import write_rank_run, write_tokenize_run
from trec_semid.core.errors import DataError
from trec_semid.report.arms import (
    ArmRuns,
    describe_retrievers,
    flatten,
    list_rule,
    retriever_config,
    tell_apart,
)
from trec_semid.report.arms import group_arms as group_arms_of_kind
from trec_semid.report.build import KINDS
from trec_semid.report.collect import Collection, FinishedRun, collect_runs


def group_arms(collection: Collection, baseline: str | None = None) -> list[ArmRuns]:
    assert collection.job is not None
    return group_arms_of_kind(collection, KINDS[collection.job].arms, baseline)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_small_dataset(str(tmp_path / "data"), num_users=20)


def test_runs_that_differ_in_seed_alone_are_one_arm_with_the_item_arm_first(study: Study):
    arms = group_arms(study.collection)
    names = ["item", "both · mmq", "both · rq_kmeans", "semantic · mmq", "semantic · rq_kmeans"]
    assert [each.arm.name for each in arms] == names
    assert [each.arm.series for each in arms] == [0, 1, 2, 3, 4]
    assert [each.arm.is_baseline for each in arms] == [True, False, False, False, False]
    assert all(each.arm.seeds == [0, 1] for each in arms)
    assert arms[0].arm.parameters == {"dense": 1234, "tables": 960}


def test_a_tokenizer_fitted_anew_for_every_seed_is_still_one_arm(tmp_path: Path, dataset: str):
    runs = []
    for seed in (0, 1):
        codes = write_tokenize_run(str(tmp_path / f"mmq-{seed}"), dataset, seed=seed)
        folder = str(tmp_path / f"rank-{seed}")
        runs.append(write_rank_run(folder, dataset, "both", semantic_ids=codes, seed=seed))
    (arm,) = group_arms(collect_runs(runs))
    assert (arm.arm.name, arm.arm.seeds) == ("both · mmq", [0, 1])


def test_arms_of_equal_name_are_told_apart_by_what_differs(tmp_path: Path, dataset: str):
    runs = [
        write_rank_run(str(tmp_path / "a"), dataset, learning_rate=0.01),
        write_rank_run(str(tmp_path / "b"), dataset, learning_rate=0.1),
    ]
    names = [each.arm.name for each in group_arms(collect_runs(runs))]
    assert names == ["item (learning_rate = 0.01)", "item (learning_rate = 0.1)"]


def test_arms_are_told_apart_by_their_tokenizers_configs(tmp_path: Path, dataset: str):
    runs = []
    for size in (16, 32):
        codes = write_tokenize_run(str(tmp_path / f"mmq-{size}"), dataset, num_codes=size)
        runs.append(write_rank_run(str(tmp_path / f"rank-{size}"), dataset, "both", semantic_ids=codes))
    names = [each.arm.name for each in group_arms(collect_runs(runs))]
    assert names == [
        "both · mmq (num_codes = 16)",
        "both · mmq (num_codes = 32)",
    ]


def test_a_label_is_part_of_the_name_and_keeps_equal_configs_apart(tmp_path: Path, dataset: str):
    runs = [
        write_rank_run(str(tmp_path / "a"), dataset),
        write_rank_run(str(tmp_path / "b"), dataset, label="again"),
    ]
    assert [each.arm.name for each in group_arms(collect_runs(runs))] == ["item", "item · again"]


def test_codes_that_an_item_arm_does_not_read_do_not_split_it(tmp_path: Path, dataset: str):
    runs = []
    for seed, kind in enumerate(("mmq", "rq_kmeans")):
        codes = write_tokenize_run(str(tmp_path / kind), dataset, kind)
        runs.append(write_rank_run(str(tmp_path / f"rank-{seed}"), dataset, semantic_ids=codes, seed=seed))
    (arm,) = group_arms(collect_runs(runs))
    assert (arm.arm.name, arm.arm.tokenizer) == ("item", None)


def test_the_same_config_and_seed_twice_is_refused(tmp_path: Path, dataset: str):
    runs = [write_rank_run(str(tmp_path / name), dataset, seed=3) for name in ("a", "b")]
    with pytest.raises(DataError, match="same config and seed as run 'a'"):
        group_arms(collect_runs(runs))


def test_the_baseline_can_be_chosen_and_a_wrong_name_lists_the_arms(study: Study):
    arms = group_arms(study.collection, "both · mmq")
    assert arms[0].arm.name == "both · mmq"
    assert arms[0].arm.is_baseline
    with pytest.raises(DataError, match=r"The arms are: both · mmq, .*item"):
        group_arms(study.collection, "bth")


def test_without_an_item_arm_the_first_by_name_is_the_baseline(study: Study):
    arms = group_arms(collect_runs(study.runs[2:]))
    assert arms[0].arm.name == "both · mmq"


LEARNED = {"counts": {"parameters/dense": 1}}


def retriever(learned: bool = True, **config: object) -> FinishedRun:
    return FinishedRun("r", "retrieve", config, {}, LEARNED if learned else {}, "r")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (retriever(learned=False, model={"kind": "ensemble", "runs": ["a", "b"]}), "2 runs"),
        (retriever(learned=False, model={"kind": "ensemble", "runs": ["runs/a"]}), "a"),
        (retriever(learned=False, model={"kind": "ensemble", "runs": ["runs/hybrid/seed-12"]}), "hybrid"),
        (retriever(learned=False, model={"kind": "popularity"}, item={"id": True}), ""),
        (retriever(model={"kind": "rpg"}, item={"id": False}, semantic_ids="codes"), "codes"),
        (retriever(item={"fields": ["brand"], "content": ["text"]}), "ID + brand + text"),
    ],
)
def test_what_an_item_is_to_a_retriever(run: FinishedRun, said: str):
    (described,) = describe_retrievers([run], [None])
    assert described.representation == said
    assert described.has_seed is (said != "")


def test_a_student_is_named_by_its_teachers_and_students_of_their_seeds_are_one_arm():
    students = [
        retriever(
            model={"kind": "sasrec"},
            loss={"teacher": {"runs": [f"runs/comirec/seed-{seed}", "runs/hybrid"], "weight": 2.0}},
        )
        for seed in (0, 1)
    ]
    described = describe_retrievers(students, [None, None])
    assert [each.parts for each in described] == 2 * [["sasrec", "ID", "taught by comirec + hybrid"]]
    one, other = map(retriever_config, students)
    assert one == other
    assert one["loss"]["teacher"] == {"runs": ["comirec", "hybrid"], "weight": 2.0}


def test_a_side_field_and_a_content_vector_of_one_name_are_told_apart_in_every_arm():
    runs = [
        retriever(item={"fields": ["class", "attributes"], "content": ["attributes"]}, semantic_ids="codes"),
        retriever(item={"fields": ["class"]}),
        retriever(item={"content": ["attributes"]}),
    ]
    described = describe_retrievers(runs, ["rq_kmeans", None, None])
    assert [each.parts for each in described] == [
        ["ID + class + attributes (field) + attributes (content) + rq_kmeans"],
        ["ID + class"],
        ["ID + attributes (content)"],
    ]


def test_what_all_arms_begin_with_is_left_out_of_names_where_it_is_long():
    items = [["text"], ["text", "image"]]
    runs = [retriever(item={"fields": ["brand"], "content": content}, semantic_ids="c") for content in items]
    popular = retriever(learned=False, model={"kind": "popularity"})
    described = describe_retrievers([*runs, popular], ["mmq", "opq", None])
    assert [each.parts for each in described] == [["… + mmq"], ["… + image + opq"], ["popularity"]]
    assert described[0].representation == "ID + brand + text + codes"
    (alone,) = describe_retrievers(runs[:1], ["mmq"])
    assert alone.parts == ["ID + brand + text + mmq"]


def test_names_are_made_of_the_fewest_keys_that_tell_arms_apart():
    full = {"train": {"lr": 0.1, "size": 1}, "tables": {"lr": 0.1}}
    configs = [
        full,
        {**full, "train": {"lr": 0.2, "size": 2}},
        {**full, "tuning": {"estimator": "soft", "weight": 1}},
        {**full, "tables": {"lr": 0.3}, "item": {"fields": [], "id": True}},
    ]
    assert tell_apart(["a"] * 4 + ["b"], [*map(flatten, configs), {}]) == [
        "a (train.lr = 0.1, tables.lr = 0.1, without tuning)",
        "a (train.lr = 0.2)",
        "a (estimator = soft)",
        "a (tables.lr = 0.3)",
        "b",
    ]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "a #2", "a (k = 1)"]),
            st.dictionaries(st.sampled_from(["k", "x.k", "x.y"]), st.sampled_from([1, "1", True, [], [1]])),
        ),
        max_size=8,
    )
)
def test_no_two_arms_have_one_name(arms: list[tuple[str, dict[str, object]]]):
    told = tell_apart([name for name, _ in arms], [config for _, config in arms])
    assert len(set(told)) == len(arms)
    assert all(after.startswith(before) for after, (before, _) in zip(told, arms, strict=True))


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({}, "every item scored, history left out"),
        ({"masks_history": False, "beam_width": 20}, "beam of 20 tuples, history kept"),
        ({"candidates": 500}, "500 candidates, by the codes of every item, scored, history left out"),
        (
            {"candidates": 500, "beam_width": 600},
            "500 candidates, by a beam of 600 tuples, scored, history left out",
        ),
        (
            {"candidates": 500, "code_prior": {"kind": "bayes", "item_share": 6.0}},
            "500 candidates, by the codes of every item, scored, codes corrected by naive Bayes "
            "(item share 6), history left out",
        ),
        (
            {"unseen_penalty": 0.5},
            "every item scored, items without a training event 0.5 lower, history left out",
        ),
    ],
)
def test_how_a_retriever_lists_the_catalogue(evaluation: dict[str, object], said: str):
    assert list_rule(FinishedRun("r", "retrieve", {"evaluation": evaluation}, {}, {}, "r")) == said


def asked_again(seed: int, of: str, penalty: float) -> FinishedRun:
    model = {"kind": "ensemble", "runs": [f"runs/{of}/seed-{seed}"]}
    config = {"model": model, "evaluation": {"unseen_penalty": penalty}, "run": f"r{seed}", "seed": seed}
    return FinishedRun("r", "retrieve", config, {}, {}, "r")


def test_seeds_of_a_run_that_is_asked_again_are_one_arm():
    config = retriever_config(asked_again(0, "hybrid", 1.0))
    assert config == retriever_config(asked_again(1, "hybrid", 1.0))
    assert config != retriever_config(asked_again(0, "narrow", 1.0))
    assert config != retriever_config(asked_again(0, "hybrid", 2.0))
