"""Daily trainings side by side, against Student's test by scipy and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from trec_semid.core.errors import DataError
from trec_semid.jobs.report import ReportConfig, run

DAYS = [f"2024-01-0{day}" for day in range(1, 8)]


def write_daily(
    folder: Path,
    values: list[float],
    *,
    days: list[str] = DAYS,
    verb: str = "rank",
    num_events: int = 100,
    **more: int,
) -> str:
    """Write what `daily` leaves of its days; a value of NaN is a day that was missing."""
    folder.mkdir()
    (folder / "run.json").write_text('{"job": "daily"}')
    entries: list[dict[str, Any]] = []
    for day, value in zip(days, values, strict=True):
        metrics = {"auc": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        done = {"state": "done", "events": num_events, "metrics": metrics, **more}
        missing = {"state": "missing", "problem": "no event"}
        entries.append({"day": day, "last": day, **(missing if np.isnan(value) else done)})
    (folder / "days.json").write_text(json.dumps({"verb": verb, "days": entries}))
    return str(folder)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_differences_are_those_of_a_paired_test_over_the_days_in_common(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
):
    base = rng.uniform(0.6, 0.8, 7)
    better, same = base + rng.normal(0.05, 0.005, 7), base + rng.normal(0, 0.02, 7)
    better[2] = np.nan
    arms = {"base": base, "better": better, "same": same}
    runs = [write_daily(tmp_path / name, values.tolist()) for name, values in arms.items()]
    written = run(ReportConfig(runs=runs, out=str(tmp_path / "out")))
    told = json.loads(Path(written.numbers).read_text())
    assert told["days"] == [day for day in DAYS if day != DAYS[2]]
    common = ~np.isnan(better)
    p_values = {}
    for name in ("better", "same"):
        expected = ttest_rel(arms[name][common], base[common])
        one = told["comparisons"][name]["auc"]
        low, high = expected.confidence_interval()
        assert (one["low"], one["high"]) == pytest.approx((low, high))
        assert one["p"] == pytest.approx(expected.pvalue)
        assert one["difference"] == pytest.approx((arms[name] - base)[common].mean())
        p_values[name] = expected.pvalue
    assert told["comparisons"]["better"]["auc"]["p_holm"] == pytest.approx(2 * p_values["better"])
    assert told["comparisons"]["better"]["auc"]["verdict"] == "higher"
    assert told["comparisons"]["same"]["auc"]["verdict"] == "not distinguishable"
    page, markdown = Path(written.page).read_text(), Path(written.markdown).read_text()
    assert f"{np.mean(base[common]):.4f} ± {np.std(base[common], ddof=1):.4f}" in markdown
    assert markdown in capsys.readouterr().out
    assert page.count("2024-01-04") >= 3  # a dot of each arm, with what stands under the pointer
    assert DAYS[2] not in page


def test_another_baseline_turns_signs_round(tmp_path: Path):
    runs = [write_daily(tmp_path / "a", [0.5, 0.6, 0.7], days=DAYS[:3])]
    runs.append(write_daily(tmp_path / "b", [0.6, 0.7, 0.9], days=DAYS[:3]))
    told = [
        json.loads(
            Path(run(ReportConfig(runs=runs, out=str(tmp_path / "o"), baseline=one)).numbers).read_text()
        )
        for one in (None, "b")
    ]
    assert told[0]["baseline"] == "a"
    one, other = told[0]["comparisons"]["b"]["auc"], told[1]["comparisons"]["a"]["auc"]
    assert one["difference"] == pytest.approx(-other["difference"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"days": ["2025-01-01", *DAYS[1:2], "2025-01-03"]}, "1 days are done by all"),
        ({"verb": "retrieve"}, "not of one verb"),
        ({"num_events": 99}, r"2024-01-01: b was tested on others \(events 99, not 100\)"),
    ],
)
def test_trainings_that_cannot_be_compared_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str):
    runs = [write_daily(tmp_path / "a", [0.5, 0.6, 0.7], days=DAYS[:3])]
    runs.append(write_daily(tmp_path / "b", [0.5, 0.6, 0.7], **{"days": DAYS[:3], **changes}))
    with pytest.raises(DataError, match=problem):
        run(ReportConfig(runs=runs, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"nothing to compare.*days\.html"):
        run(ReportConfig(runs=[runs[0], f"{runs[0]}/"], out=str(tmp_path / "out")))
    with pytest.raises(DataError, match=r"no such arm \(got 'c'\).*Arms are: a, b"):
        run(ReportConfig(runs=runs, out=str(tmp_path / "out"), baseline="c"))


def test_lists_of_retrievers_over_other_catalogues_are_not_compared(tmp_path: Path):
    runs = [
        write_daily(tmp_path / name, [0.5, 0.6, 0.7], days=DAYS[:3], verb="retrieve", known_items=number)
        for name, number in (("a", 20), ("b", 19))
    ]
    with pytest.raises(DataError, match=r"b was tested on others \(known_items 19, not 20\)"):
        run(ReportConfig(runs=runs, out=str(tmp_path / "out")))
