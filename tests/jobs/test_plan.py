import json
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import write_small_dataset
from tests.jobs.ranking import mark_finished
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError, PlanError
from trec_semid.data.schema import Dataset
from trec_semid.jobs.plan import PlanConfig, Planned, run, sort_files
from trec_semid.sharding.plan import TablePlan
from trec_semid.sharding.topology import GIB, ClusterConfig
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds
from trec_semid.training.planning.ways_to_fit import ways_to_fit
from trec_semid.training.retrieval.setup import RetrieveConfig

INDUSTRIAL = "configs/plan/industrial.toml"


def plan(*sets: str, files: tuple[str, ...] = (INDUSTRIAL,), cluster: str = "h100_1x8") -> Planned:
    named = [f"cluster=configs/cluster/{cluster}.toml", *sets]
    (planned,) = run(load_config(PlanConfig, list(files), named))
    return planned


@pytest.fixture(autouse=True)
def in_a_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plans go below the current folder."""
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    monkeypatch.chdir(tmp_path)


def rows_of(planned: Planned) -> dict[str, int]:
    return {table.name: table.rows for table in planned.plan.tables}


@pytest.mark.parametrize(("cluster", "ranks"), [("h100_1x8", 8), ("h100_8x8", 64)])
def test_industrial_tables_are_planned_for_clusters_that_are_not_there(
    cluster: str, ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = f"{tmp_path}/plan.json"
    planned = plan(f"out={out}", cluster=cluster)
    codes = {f"t_code_{position}": 3001 for position in range(6)}
    more = {"t_prefix_2": 9_000_000, "t_prefix_3": 20_000_000}
    assert rows_of(planned) == {"t_user_id": 30_000_000, "t_item_id": 40_000_000, **codes, **more}
    loads = planned.plan.rank_loads()
    assert len(loads) == ranks
    assert max(load.hbm_bytes for load in loads) < 67.66 * GIB
    assert sum(load.hbm_bytes for load in loads) > 23 * GIB
    assert planned.plan.batch_size == 262_144 // ranks
    assert TablePlan.from_json(Path(out).read_text()) == planned.plan
    assert capsys.readouterr().out == f"{planned.plan.as_text()}\nPlan saved: {out}\n"


@pytest.mark.slow
def test_large_tables_are_planned_for_512_devices():
    planned = plan("representation=item", "semantic_ids=", cluster="h100_64x8")
    assert len(planned.plan.rank_loads()) == 512
    assert sum(table.weight_bytes for table in planned.plan.tables) == 99_000_000 * 64 * 4
    shards = [shard for table in planned.plan.tables for shard in table.shards]
    assert sum(shard.size[0] * shard.size[1] for shard in shards) == 99_000_000 * 64


def test_content_for_a_tuned_tokenizer_is_planned_into_the_memory_that_is_left(tmp_path: Path):
    sets = ["finetune.recent_items=8", "sizes.content.text=256", "sizes.content.vision=250"]
    cluster, config = "configs/cluster/h100_1x8.toml", [INDUSTRIAL]
    tables, content = run(
        load_config(PlanConfig, config, [f"cluster={cluster}", f"out={tmp_path}/plan.json", *sets])
    )
    assert [tables.out, content.out] == [f"{tmp_path}/plan.json", f"{tmp_path}/plan-content.json"]
    assert {table.name: (table.rows, table.dim, table.dtype) for table in content.plan.tables} == {
        "t_content_text": (40_000_000, 256, "float16"),
        "t_content_vision": (40_000_000, 252, "float16"),
    }
    fullest = max(load.hbm_bytes for load in tables.plan.rank_loads())
    left = tables.plan.cluster.hbm_bytes - fullest
    assert content.plan.cluster.hbm_bytes == pytest.approx(left, rel=1e-6)
    assert max(load.hbm_bytes for load in content.plan.rank_loads()) < left
    # 61 GiB a rank would fit the devices alone, but not what the tables leave: host memory takes them.
    wide = run(load_config(PlanConfig, config, [f"cluster={cluster}", *sets, "sizes.content.text=6300"]))
    assert any(load.ddr_bytes > 0 for load in wide[1].plan.rank_loads())
    assert not any(load.ddr_bytes for load in (*wide[0].plan.rank_loads(), *content.plan.rank_loads()))
    with pytest.raises(ConfigError, match=r"Give its widths as sizes\.content"):
        run(load_config(PlanConfig, config, [f"cluster={cluster}", *sets[:1]]))


@pytest.fixture
def rank_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    dataset = write_small_dataset(str(tmp_path / "dataset"))
    codes = np.zeros((40, 2), np.int32)
    SemanticIds(Dataset(dataset).item_ids, codes, (7, 9)).save(
        str(tmp_path / "codes" / "semantic_ids.parquet")
    )
    mark_finished(str(tmp_path / "codes"))
    for unneeded in ("events", "content", "items", "users"):
        monkeypatch.delattr(Dataset, unneeded)
    file = tmp_path / "rank.toml"
    file.write_text(f'''
dataset = "{dataset}"
run = "{tmp_path}/run"
representation = "both"
semantic_ids = "{tmp_path}/codes"
[tables]
dim = 8
''')
    return str(file)


def test_a_rank_configs_tables_are_planned_from_sizes_alone(rank_file: str):
    planned = plan(files=(rank_file,), cluster="laptop_cpu")
    assert rows_of(planned) == {
        "t_user_id": 60,
        "t_user_age": 5,
        "t_item_id": 40,
        "t_code_0": 8,
        "t_code_1": 10,
        "t_item_genres": 7,
        "t_item_year": 6,
    }
    assert {table.dim for table in planned.plan.tables} == {8}


def test_given_sizes_replace_those_of_the_dataset(rank_file: str):
    planned = plan(
        "sizes.num_items=1000", "sizes.codebook_sizes=[3]", files=(rank_file,), cluster="laptop_cpu"
    )
    rows = rows_of(planned)
    assert (rows["t_item_id"], rows["t_user_id"], rows["t_code_0"]) == (1000, 60, 4)
    assert "t_code_1" not in rows


def test_rank_keys_may_stand_at_the_top_or_under_rank(rank_file: str):
    at_top = plan("tables.dim=16", files=(rank_file,))
    below = plan("rank.tables.dim=16", files=(rank_file,))
    assert at_top.plan == below.plan
    assert {table.dim for table in at_top.plan.tables} == {16}


def test_histories_count_as_full_unless_told_otherwise():
    full, short = plan(), plan("sizes.mean_lengths.history_item=1")
    longest = {
        name: max(load.hbm_bytes for load in planned.plan.rank_loads())
        for name, planned in (("full", full), ("short", short))
    }
    assert longest["full"] > longest["short"]


@pytest.mark.parametrize(
    ("sets", "error", "text"),
    [
        (
            ["sizes.mean_lengths.history_itm=1"],
            ConfigError,
            "no feature 'history_itm'. The features are: user_id",
        ),
        (["reprsentation=item"], ConfigError, "unknown key; did you mean 'representation'"),
        (['sharding.tables.t_itm_id.sharding_types=["row_wise"]'], ConfigError, "did you mean 't_item_id'"),
    ],
)
def test_what_cannot_be_planned_is_refused(sets: list[str], error: type[Exception], text: str):
    with pytest.raises(error) as raised:
        plan(*sets)
    assert text in str(raised.value)


def test_codes_without_sizes_and_without_a_file_are_refused(rank_file: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"semantic_ids\.parquet: no such file"):
        plan(f"semantic_ids={tmp_path}/nowhere", files=(rank_file,))


def test_plans_for_several_clusters_are_saved_beside_each_other(
    rank_file: str, capsys: pytest.CaptureFixture[str]
):
    clusters = [f"configs/cluster/{name}.toml" for name in ("h100_1x8", "laptop_cpu")]
    sets = [f"cluster={json.dumps(clusters)}", "name=mine"]
    both = run(load_config(PlanConfig, [rank_file], sets))
    assert [planned.out for planned in both] == ["plans/mine-h100_1x8.json", "plans/mine-laptop_cpu.json"]
    printed = capsys.readouterr().out
    for planned in both:
        assert TablePlan.from_json(Path(planned.out).read_text()) == planned.plan
        assert f"Plan saved: {planned.out}" in printed
    run(load_config(PlanConfig, [rank_file], [*sets, "out=there"]))
    assert sorted(path.name for path in Path("there").iterdir()) == [
        "mine-h100_1x8.json",
        "mine-laptop_cpu.json",
    ]
    with pytest.raises(ConfigError, match="is one file for 2 plans"):
        run(load_config(PlanConfig, [rank_file], [*sets, "out=p.json"]))


def test_a_cluster_that_is_too_small_does_not_cost_the_other_plans(rank_file: str):
    clusters = [f"configs/cluster/{name}.toml" for name in ("laptop_cpu", "h100_1x8")]
    sets = [f"cluster={json.dumps(clusters)}", "sizes.num_items=400_000_000", "tables.dim=16"]
    with pytest.raises(PlanError, match="laptop_cpu: the tables cannot be placed"):
        run(load_config(PlanConfig, [rank_file], sets))
    assert Path("plans/plan-h100_1x8.json").exists()


def test_clusters_among_the_files_are_told_from_configs(rank_file: str):
    cluster = "configs/cluster/h100_1x8.toml"
    assert sort_files([cluster, rank_file, INDUSTRIAL, "nowhere.toml"]) == (
        [rank_file, INDUSTRIAL, "nowhere.toml"],
        [cluster],
    )


def test_an_unknown_cluster_file_is_refused(rank_file: str):
    with pytest.raises(ConfigError, match=r"configs/cluster/nowhere\.toml: no such file"):
        plan(files=(rank_file,), cluster="nowhere")


def test_the_same_config_gives_the_same_plan(rank_file: str):
    first, second = (plan(files=(rank_file,), cluster="h100_8x8") for _ in range(2))
    assert first.plan.to_json() == second.plan.to_json()


def test_each_way_to_fit_that_is_told_fits_and_one_step_less_does_not(rank_file: str):
    """The oracle plans what the message says, in its own words, and the next smaller step of it."""
    too_large = ["sizes.num_items=28_000_000", "tables.dim=32", "optimizers.tables.kind=adagrad"]
    too_large += ["train.batch_size=4096", 'sharding.tables.t_item_id.sharding_types=["table_wise"]']

    def fits(*sets: str) -> bool:
        try:
            plan(*too_large, *sets, files=(rank_file,), cluster="laptop_cpu")
        except PlanError:
            return False
        return True

    with pytest.raises(PlanError, match="laptop_cpu: the tables cannot be placed") as raised:
        plan(*too_large, files=(rank_file,), cluster="laptop_cpu")
    _, told = str(raised.value).split("Any one of these makes it fit; each was planned:\n")
    assert told.splitlines() == [
        "  --set tables.dim=16 (now 32)",
        "  --set optimizers.tables.kind=row_wise_adagrad (now adagrad)",
        "  without the rule [sharding.tables.'t_item_id'] (now {'sharding_types': ['table_wise']})",
    ]
    assert fits("tables.dim=16")
    assert not fits("tables.dim=20")
    assert fits("optimizers.tables.kind=row_wise_adagrad")
    assert fits('sharding.tables.t_item_id.sharding_types=["table_wise", "row_wise"]')


def test_the_smallest_cluster_that_holds_the_tables_is_told(rank_file: str, tmp_path: Path):
    sets = ["sizes.num_items=200_000_000", "tables.dim=16"]
    with pytest.raises(PlanError, match=r"num_nodes = (\d+) in the cluster's file \(now 1\)") as raised:
        plan(*sets, files=(rank_file,), cluster="laptop_cpu")
    nodes = int(re.findall(r"num_nodes = (\d+)", str(raised.value))[0])
    for number, is_enough in ((nodes, True), (nodes - 1, False)):
        file = tmp_path / "cluster.toml"
        text = Path("configs/cluster/laptop_cpu.toml").read_text()
        file.write_text(text.replace("num_nodes = 1", f"num_nodes = {number}"))
        config = load_config(PlanConfig, [rank_file], [*sets, f"cluster={file}"])
        with nullcontext() if is_enough else pytest.raises(PlanError):
            run(config)


def test_widths_that_the_model_refuses_are_passed_over():
    """Eight heads take multiples of eight; 4, the narrowest that kernels take, is none."""
    asked = list[int]()

    def place(config: RetrieveConfig, cluster: ClusterConfig) -> None:
        asked.append(config.tables.dim)
        if cluster.num_nodes > 1 or config.tables.dim % 8:
            raise ConfigError("tables.dim: 8 heads")
        if config.tables.dim > 24:
            raise PlanError("too large")

    config = RetrieveConfig.model_validate({"dataset": "d", "run": "r", "tables": {"dim": 128}})
    cluster = load_config(ClusterConfig, ["configs/cluster/laptop_cpu.toml"])
    ways = ways_to_fit(place, config, cluster)
    assert [way.change for way in ways] == ["--set tables.dim=24"]
    assert len(set(asked)) < 12


def test_what_no_single_change_helps_says_so(rank_file: str):
    with pytest.raises(PlanError) as raised:
        plan("sizes.num_items=4_000_000_000", "tables.dim=256", files=(rank_file,), cluster="laptop_cpu")
    assert "of which the largest table 't_item_id' (4,000,000,000 x 256)" in str(raised.value)
    assert "No single change of nodes, width, batch, optimizer or rules makes it fit" in str(raised.value)


def test_a_plan_says_what_differs_from_another(rank_file: str, capsys: pytest.CaptureFixture[str]):
    before = plan("out=before.json", files=(rank_file,), cluster="laptop_cpu")
    capsys.readouterr()
    plan("against=before.json", files=(rank_file,), cluster="laptop_cpu")
    assert "0 tables lie otherwise, 7 as before" in capsys.readouterr().out
    after = plan(
        "against=before.json",
        "sizes.num_items=4000",
        "representation=item",
        "semantic_ids=",
        files=(rank_file,),
        cluster="laptop_cpu",
    )
    told = capsys.readouterr().out.split("Beside the plan for laptop_cpu: ")[1]
    assert told.startswith("3 tables lie otherwise, 4 as before.")
    lines = {line.split("  ")[0]: line for line in told.splitlines()}
    assert "40 x 8 float32" in lines["t_item_id"]
    assert "4,000 x 8 float32" in lines["t_item_id"]
    assert lines["t_code_0"].endswith("  -")
    slowest = [max(load.time_ms for load in each.plan.rank_loads()) for each in (before, after)]
    assert lines["time/step, slowest"].split()[-4::2] == [f"{time:.2f}" for time in slowest]
    with pytest.raises(ConfigError, match=r"against: nowhere\.json: no such file"):
        plan("against=nowhere.json", files=(rank_file,))
    Path("no.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"against: no\.json: not a saved plan"):
        plan("against=no.json", files=(rank_file,))
