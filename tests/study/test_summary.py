import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from trec_semid.core.config import load_config
from trec_semid.jobs.rank import RankConfig
from trec_semid.jobs.study import StudyConfig
from trec_semid.study.grid import plan_runs
from trec_semid.study.summary import as_markdown, lay_out, tabulate


def row(step: str, metrics: dict[str, float], seed: int = 0, error: str | None = None) -> dict:
    label = f"{step}-seed-{seed}"
    return {"step": step, "seed": seed, "label": label, "metrics": metrics, "error": error}


def test_table_leaves_out_steps_without_the_metrics_and_marks_single_seeds():
    runs = [
        row("codes", {"all/entropy": 1.0}),
        row("item", {"test/auc": 0.5, "test/gauc": 0.25}),
        row("both", {"test/auc": 0.75}),
        row("both", {}, 1, "it | broke\nbadly"),
    ]
    wanted = ["test/gauc", "test/auc"]
    assert list(tabulate(runs, wanted)) == ["item", "both"]
    assert as_markdown(lay_out(runs, wanted, None, {})).splitlines() == [
        "| run  | seeds  | test/gauc | test/auc |",
        "|------|--------|-----------|----------|",
        "| item | 1      | 0.2500    | 0.5000   |",
        "| both | 1 of 2 |           | 0.7500   |",
        "",
        "Failed: both-seed-1: it \\| broke badly",
    ]


BLOCKS = """
out = "o"
seeds = [0, 1]
[[step]]
verb = "prepare"
name = "data"
"""
COMPACT = (
    BLOCKS
    + """
[[step]]
verb = "tokenize"
name = "{tokenizer}"
seeds = true
grid = { tokenizer = ["mmq", "opq"] }
files = ["tokenize_{tokenizer}.toml"]
set = { dataset = "{data}" }
[[step]]
verb = "rank"
name = "{arm}-{tokenizer}-{levels}"
seeds = true
after = ["{tokenizer}"]
set = { dataset = "{data}", arm = "{arm}", codes = "{{tokenizer}}", model = { levels = "{levels}", a = 1 } }
[step.grid]
arm = ["semantic", "both"]
levels = [6, 12]
tokenizer.mmq = {}
tokenizer.opq = { model = { a = 2 }, note = "o-{arm}" }
"""
)


def written_out() -> str:
    """The same, block by block, made by loops of plain text."""
    text = BLOCKS
    for tokenizer in ("mmq", "opq"):
        text += f"""
[[step]]
verb = "tokenize"
name = "{tokenizer}"
seeds = true
files = ["tokenize_{tokenizer}.toml"]
set = {{ dataset = "{{data}}" }}
"""
    for arm in ("semantic", "both"):
        for levels in (6, 12):
            for tokenizer, a, more in (("mmq", 1, ""), ("opq", 2, f'note = "o-{arm}"')):
                text += f"""
[[step]]
verb = "rank"
name = "{arm}-{tokenizer}-{levels}"
seeds = true
after = ["{tokenizer}"]
[step.set]
dataset = "{{data}}"
arm = "{arm}"
codes = "{{{tokenizer}}}"
model = {{ levels = {levels}, a = {a} }}
{more}
"""
    return text


def test_grid_makes_the_runs_of_its_blocks_written_out():
    compact, blocks = (
        plan_runs(StudyConfig.model_validate(tomllib.loads(text))) for text in (COMPACT, written_out())
    )
    assert compact == blocks
    assert len(compact) == 1 + 2 * (2 + 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{tokenizer}-{levels}", "x"), "put '{levels}' into its name"),
        (("[6, 12]", "[]"), "grid.levels has no values"),
        (('"{arm}-{tok', '"{arms}-{arm}-{tok'), "its grid has no such axis"),
        (('"{{tokenizer}}"', '"{{tokeniser}}"'), "is no earlier step"),
        (("levels = [6, 12]", "seed = [6, 12]"), "'seed' is reserved for the study"),
        (("seeds = [0, 1]", 'seeds = [0, 1]\nbaseline = "both-mmq"'), "did you mean 'both-mmq-"),
    ],
)
def test_grid_with_a_fault_is_refused(change: tuple[str, str], words: str):
    with pytest.raises(ValidationError) as caught:
        StudyConfig.model_validate(tomllib.loads(COMPACT.replace(*change)))
    assert words in str(caught.value)


RANKING = Path(__file__).parents[2] / "configs/studies/ranking"


@pytest.mark.parametrize("name", ["ml100k_global", "ml100k_per_user", "ml1m_implicit"])
def test_ranking_studies_have_the_arms_their_results_name(name: str):
    planned = plan_runs(load_config(StudyConfig, [str(RANKING / f"{name}.toml")]))
    arms = [f"{arm}-{codes}" for arm in ("semantic", "both") for codes in ("mmq", "rq_kmeans")]
    assert list(dict.fromkeys(run.step for run in planned)) == [
        "data", "mmq", "rq_kmeans", "item", *arms, "report",
    ]  # fmt: skip
    last = next(run for run in planned if run.label == "both-mmq-seed-1")
    assert last.sets == (
        f"run=runs/{name}/both-mmq/seed-1",
        "seed=1",
        f"dataset=runs/{name}/data",
        "representation=both",
        f"semantic_ids=runs/{name}/mmq/seed-1",
    )


STUDIES = [*RANKING.parent.glob("*/*.toml"), *(RANKING.parents[1] / "quickstart").glob("*.toml")]


@pytest.mark.parametrize(
    "file", [file for file in STUDIES if 'verb = "rank"' in file.read_text()], ids=lambda file: file.stem
)
def test_every_ranker_of_the_studies_reads_semantic_ids_just_where_its_items_have_codes(file: Path):
    planned = [run for run in plan_runs(load_config(StudyConfig, [str(file)])) if run.verb == "rank"]
    configs = [load_config(RankConfig, run.files, run.sets) for run in planned]
    assert configs
    assert all((config.semantic_ids is None) == (config.representation == "item") for config in configs)
