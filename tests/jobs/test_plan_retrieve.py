import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.retrieving import retrieve_config
from tests.jobs.test_rank_finetune import write_problem
from trec_semid.core.config import dump_toml, load_config
from trec_semid.core.errors import ConfigError, DataError, PlanError
from trec_semid.jobs import retrieve
from trec_semid.jobs.plan import PlanConfig, Planned, run
from trec_semid.sharding.plan import TablePlan

CLUSTER = 'cluster="configs/cluster/h100_1x8.toml"'
HYBRID = ("configs/retrievers/hybrid.toml",)
LARGE = [
    "sizes.num_users=1000",
    "sizes.num_items=40_000_000",
    "sizes.codebook_sizes=[3000, 2000]",
    "sizes.content.text=384",
    "sizes.content.attributes=126",
    "item.fields=[]",
]
SAMPLED = ["sampled.num_sampled=8192", "train.batch_size=65536"]
TUNING: dict[str, Any] = {"warmup_epochs": 1, "learning_rate": 1e-3}


def plan(files: tuple[str, ...], out: Path, sets: list[str]) -> list[Planned]:
    return run(load_config(PlanConfig, list(files), [CLUSTER, f"out={out}/plan.json", *sets]))


def tables_of(plan: TablePlan) -> dict[str, tuple[int, int, str]]:
    return {table.name: (table.rows, table.dim, table.dtype) for table in plan.tables}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return write_problem(str(tmp_path_factory.mktemp("plan")))


@pytest.mark.parametrize(
    "changes", [{}, {"finetune": TUNING}, {"loss": {"negatives": "seen"}}], ids=["all", "tuned", "seen"]
)
def test_what_is_planned_is_what_a_run_places(problem, tmp_path, changes):
    config = retrieve_config(problem, str(tmp_path / "run"), **changes)
    retrieve.run(config)
    file = tmp_path / "retrieve.toml"
    file.write_text(dump_toml(config))
    planned = plan((str(file),), tmp_path, [])
    written = [
        "plan.json",
        "content_plan.json",
        *(["tokenizer_content_plan.json"] if config.finetune else []),
    ]
    assert len(planned) == len(written)
    for one, name in zip(planned, written, strict=True):
        placed = TablePlan.from_json((tmp_path / "run" / name).read_text())
        assert tables_of(one.plan) == tables_of(placed)
        assert one.plan.batch_size == placed.batch_size


def test_a_large_catalogue_is_planned_for_a_loss_over_its_seen_items(tmp_path):
    seen = ["loss.negatives='seen'", "sizes.num_seen_items=200_000"]
    tables, content = plan(HYBRID, tmp_path, [*LARGE, *seen])
    assert tables.plan.batch_size == content.plan.batch_size == 200_000
    assert tables_of(tables.plan)["t_item_id"][0] == 40_000_000


def test_a_large_catalogue_is_planned_by_its_sizes_alone(tmp_path):
    tables, content = plan(HYBRID, tmp_path, [*LARGE, *SAMPLED])
    codes = {"t_code_0": (3001, 128, "float32"), "t_code_1": (3001, 128, "float32")}
    assert tables_of(tables.plan) == {"t_item_id": (40_000_000, 128, "float32"), **codes}
    assert tables_of(content.plan) == {
        "t_content_text": (40_000_000, 384, "float16"),
        "t_content_attributes": (40_000_000, 128, "float16"),
    }
    # An eighth of the batch, each of its rows with 20 items read and one to come, and those drawn.
    assert tables.plan.batch_size == 65536 // 8 * 21 + 8192
    assert Path(content.out).name == "plan-content.json"
    fullest = max(load.hbm_bytes for load in tables.plan.rank_loads())
    left = tables.plan.cluster.hbm_bytes - fullest
    assert content.plan.cluster.hbm_bytes == pytest.approx(left, rel=1e-6)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (LARGE, r"40,000,000 items are too many.*Add \[sampled\]"),
        ([*LARGE, "loss.negatives='seen'"], "sizes.num_seen_items: not given"),
        (
            [*LARGE, "loss.negatives='seen'", "sizes.num_seen_items=2_000_000"],
            r"2,000,000 items are too many",
        ),
        (
            [*LARGE, "loss.negatives='seen'", "sizes.num_seen_items=40_000_001"],
            r"num_seen_items: 40,000,001 of 40,000,000 items",
        ),
        ([*LARGE[:3], *LARGE[4:], *SAMPLED], "item.content: the width of 'text' is not known"),
        (
            [*LARGE, *SAMPLED, "sizes.mean_lengths.item_brand=2"],
            "no feature 'item_brand'. The features are: item_id",
        ),
        ([*LARGE, *SAMPLED, "rank={representation='item', dataset='d', run='r'}"], "one of the two"),
        ([*LARGE, "representation='item'"], "representation: unknown key"),
        ([*LARGE[:-1], *SAMPLED], r"item\.fields: no field"),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path, sets, words):
    with pytest.raises(ConfigError, match=words):
        plan(HYBRID, tmp_path, sets)


def test_item_vectors_for_lists_have_to_fit_beside_the_tables(tmp_path):
    """Of 300 million items an eighth on each rank: 300e6 / 8 * 128 * 4 bytes."""
    many = ["sizes.num_items=300_000_000" if "num_items" in each else each for each in LARGE]
    with pytest.raises(PlanError, match=r"a stretch of 17\.88 GiB on every rank, and tables leave"):
        plan(HYBRID, tmp_path, [*many, *SAMPLED])
    codes = ["loss.item_weight=0", "loss.code_weight=1", "item.content=[]"]
    assert plan(HYBRID, tmp_path, [*many, *codes])


def test_interests_of_all_items_count_beside_the_tables(tmp_path):
    """Every rank keeps a number for each level of each of 750 million items: 750e6 * 4 * levels bytes."""
    sizes = ["sizes.num_users=1000", "sizes.num_items=750_000_000", *SAMPLED]
    for levels, held in ((1, "2.79"), (2, "5.59")):
        sets = [*sizes, f"model.interest.num_levels={levels}"]
        with pytest.raises(PlanError, match=rf"interests of all items take {held} GiB"):
            plan(("configs/retrievers/gemirec.toml",), tmp_path, sets)


def test_a_folder_that_is_not_there_yet_takes_the_plan(tmp_path):
    out = f"{tmp_path}/plans/of/mine/"
    planned = run(
        load_config(PlanConfig, list(HYBRID), [CLUSTER, f"out={out}", "name=hybrid", *LARGE, *SAMPLED])
    )
    assert [one.out for one in planned] == [
        f"{out}hybrid-h100_1x8.json",
        f"{out}hybrid-h100_1x8-content.json",
    ]
    assert json.loads(Path(planned[0].out).read_text())


def test_a_model_without_tables_has_no_plan(tmp_path):
    file = tmp_path / "popularity.toml"
    file.write_text('dataset = "d"\nrun = "r"\nmodel = { kind = "popularity" }\n')
    with pytest.raises(ConfigError, match="'popularity' has no tables"):
        plan((str(file),), tmp_path, LARGE[:2])


def test_keys_that_both_kinds_have_are_of_the_default_retriever(tmp_path):
    file = tmp_path / "plain.toml"
    file.write_text('dataset = "d"\nrun = "r"\ntables = { dim = 16 }\n')
    (planned,) = plan((str(file),), tmp_path, ["sizes.num_users=10", "sizes.num_items=500"])
    assert tables_of(planned.plan) == {"t_item_id": (500, 16, "float32")}


def test_sizes_that_a_map_states_wrongly_are_refused(problem, tmp_path):
    codes = pa.table({"item_id": ["a"], "codes": [[1, 2]]})
    place = str(tmp_path / "codes.parquet")
    pq.write_table(codes.replace_schema_metadata({"codebook_sizes": "3,x"}), place)
    file = tmp_path / "retrieve.toml"
    file.write_text(dump_toml(retrieve_config({**problem, "semantic_ids": place}, "r")))
    with pytest.raises(DataError, match=r"codes\.parquet, field 'codebook_sizes': not codebook sizes"):
        plan((str(file),), tmp_path, [])
