"""Tables of documents are what docs/results says, and docs/results is what the commands wrote."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from tools import tables

ROOT = Path(__file__).resolve().parents[2]
RAW = ROOT / "docs/results/raw"
ORIGIN = {"command": "trec-semid rank x.toml", "commit": "abc1234", "dataset": "d", "dataset_checksum": None}
COLUMNS = [
    {"title": "row", "cell": "{label}"},
    {"title": "seeds", "cell": "{seeds}"},
    {"title": "R / N", "cell": "{test/recall@10:.4f} / {test/ndcg@10:.4f}"},
]


def planted(**row: object) -> dict[str, tables.Results]:
    """Results with one row in one table."""
    data = {
        "schema_version": 1,
        "title": "Planted",
        "origins": {"here": ORIGIN},
        "rows": {"a": {"label": "A", "origin": "here", **row}},
        "tables": {"t": {"columns": COLUMNS, "rows": ["a"], "leading_zero": False}},
    }
    return {"planted": tables.Results.model_validate(data)}


def test_documents_show_what_the_results_say(capsys: pytest.CaptureFixture[str]):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_number_changed_by_hand_is_seen():
    path = ROOT / "docs/results/ml1m_retrieval.md"
    changed = path.read_text().replace(".1598", ".1698")
    assert changed != path.read_text()
    assert tables.write_tables(changed, tables.read_results()) == path.read_text()


def test_every_file_of_results_is_shown_and_every_table_of_it():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {found for path in documents for found in re.findall(r"<!-- table: (\S+) -->", path.read_text())}
    written = {f"{file}/{name}" for file, result in tables.read_results().items() for name in result.tables}
    assert shown == written


def test_mean_and_spread_print_without_a_leading_zero():
    metrics = {"test/recall@10": {"mean": 0.1036, "sd": 0.0006}, "test/ndcg@10": {"mean": 0.061}}
    text = tables.render_table(planted(seeds=[0, 1, 2], metrics=metrics), "planted", "t")
    assert text.splitlines()[2] == "| A | 3 | .1036 ± .0006 / .0610 |"


def test_what_a_row_lacks_is_empty_or_a_dash_beside_others():
    text = tables.render_table(planted(metrics={"test/ndcg@10": {"mean": 0.0464}}), "planted", "t")
    assert text.splitlines()[2] == "| A | | – / .0464 |"
    assert tables.render_table(planted(), "planted", "t").splitlines()[2] == "| A | | |"


@pytest.mark.parametrize(
    ("metric", "part", "how", "said"),
    [
        ({"mean": 23557}, "", ",.0f", "23,557"),
        ({"mean": 1.7, "low": 1.6, "high": 2.1}, "", ".1f", "1.7 (1.6 to 2.1)"),
        ({"mean": -0.0118, "low": -0.02, "high": 0.5}, "low", "+.4f", "−0.0200"),
        ({"mean": 0.988}, "", ".1%", "98.8 %"),
        ({"mean": 10.5, "sd": 0.25}, "", ".2f", "10.50 ± 0.25"),
    ],
)
def test_metrics_print_as_their_format_says(metric: dict[str, float], part: str, how: str, said: str):
    got = tables.render_metric(tables.Metric.model_validate(metric), part, how, leading_zero=True)
    assert got == said


@pytest.mark.parametrize(
    "row",
    [
        {"source": "a paper"},
        {"origin": None},
        {"origin": "nowhere"},
        {"metrics": {"x": {"value": 1}}},
        {"seed": 0},
    ],
)
def test_rows_without_one_known_origin_or_with_unknown_keys_are_refused(row: dict[str, object]):
    with pytest.raises(ValidationError):
        planted(**row)


def test_a_commit_that_was_not_recorded_is_null_and_prints_as_nothing():
    origin = {"here": {**ORIGIN, "commit": None}}
    data = {
        "schema_version": 1,
        "title": "Planted",
        "origins": origin,
        "rows": {
            "a": {"label": "A", "origin": "here"},
            "b": {"label": "B", "origin": "here", "commit": "abc"},
        },
        "tables": {"t": {"columns": [{"title": "commit", "cell": "{commit}"}], "rows": ["a", "b"]}},
    }
    text = tables.render_table({"planted": tables.Results.model_validate(data)}, "planted", "t")
    assert text.splitlines()[2:] == ["| |", "| abc |"]


def test_unknown_tables_are_named():
    with pytest.raises(SystemExit, match="planted/gone"):
        tables.write_tables("<!-- table: planted/gone -->\n<!-- end of table -->", planted())


def same(printed: tables.Metric, mean: float, sd: float | None) -> bool:
    """Whether four printed decimals are those of what a command wrote."""
    half = 0.5e-4 + 1e-6
    return abs(printed.mean - mean) <= half and (
        printed.sd is None or (sd is not None and abs(printed.sd - sd) <= half)
    )


@pytest.mark.parametrize(
    ("table", "study", "least"),
    [
        ("table-1a", "table1_ml100k", 51),
        ("table-1a-ml1m", "table1_ml1m", 36),
        ("cold-start", "cold_start_ml100k", 15),
    ],
)
def test_the_study_of_mmq_wrote_these_numbers(table: str, study: str, least: int):
    wrote = json.loads((RAW / "mmq.json").read_text())[study]["table"]
    compared = 0
    for name, row in tables.read_results()["mmq"].rows.items():
        if not name.startswith(f"{table}/"):
            continue
        step = name.removeprefix(f"{table}/")
        for tokenizer in ("ma_rq_vae", "ms_rq_vae", "ma_rq_kmeans", "ms_rq_kmeans", "ma_opq", "ms_opq"):
            step = step.replace(tokenizer.replace("_", "-"), tokenizer)
        metrics = wrote[step]
        for key in {key for key in row.metrics if key.startswith(("test/", "valid/"))}:
            assert same(row.metrics[key], metrics[key]["mean"], metrics[key]["sd"]), (name, key)
            compared += 1
    assert compared >= least


@pytest.mark.parametrize(
    ("table", "report"),
    [("global", "ml100k_global"), ("per-user", "ml100k_per_user"), ("implicit", "ml1m_implicit")],
)
def test_the_report_of_the_ranking_study_wrote_these_numbers(table: str, report: str):
    online = json.loads((RAW / "ml100k_ranking.json").read_text())[report]["scores"][0]["metrics"]
    compared = 0
    for name, row in tables.read_results()["ml100k_ranking"].rows.items():
        if name.startswith(f"{table}/"):
            arm = row.label.lower().replace("rq-kmeans", "rq_kmeans")
            for metric in ("auc", "gauc"):
                wrote = online[metric][arm]
                assert same(row.metrics[f"test/{metric}"], wrote["value"], wrote["sd"]), (name, metric)
                compared += 1
            assert same(row.metrics["valid/gauc"], online["gauc"][arm]["valid"], None), name
    assert compared == 10


@pytest.mark.parametrize("document", ["README.md", "docs/methods.md"])
def test_figures_in_sentences_are_figures_of_the_results(document: str):
    sentences = re.sub(
        r"<!-- table:.*?<!-- end of table -->|`[^`]*`", "", (ROOT / document).read_text(), flags=re.S
    )
    figures = {float(figure) for figure in re.findall(r"(?<![\d.])0?\.\d{4}\b", sentences)}
    measured = {
        round(number, 4)
        for result in tables.read_results().values()
        for row in result.rows.values()
        for metric in row.metrics.values()
        for number in metric.model_dump().values()
        if number is not None
    }
    assert figures <= measured
    assert figures or document != "README.md"
