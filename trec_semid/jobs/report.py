"""`trec-semid report RUN...`: one page, Markdown and JSON from finished runs."""

from typing import NamedTuple

from pydantic import Field

from trec_semid.core.config import Place
from trec_semid.core.paths import join, write_files
from trec_semid.data.schema import VerifyConfig
from trec_semid.report.build import build_report
from trec_semid.report.collect import collect_runs
from trec_semid.report.content import Report
from trec_semid.report.day_arms import (
    DayArms,
    are_daily,
    as_json,
    as_markdown,
    compare_days,
    render_day_arms,
)
from trec_semid.report.render import all_sections, render_json, render_markdown, render_page
from trec_semid.runtime.logs import say, set_up_console
from trec_semid.runtime.own_folder import own_folder


class ReportConfig(VerifyConfig):
    """What to report, and where to."""

    runs: list[Place] = Field(min_length=1)
    """Run folders of `rank` or `retrieve`, and of `tokenize`; tokenizers that the former read are added. Or
    of `daily` alone, which are compared day by day."""
    out: Place | None = None
    """Folder for the report; None = the run's own folder for one run, `report` beside the first for more."""
    title: str | None = None
    """Title of the page; None = from the dataset's name."""
    baseline: str | None = None
    """Arm that others are compared with; None = the ranker that reads item IDs alone, or the first run's."""
    dataset: Place | None = None
    """Dataset folder, where it no longer lies where the runs read it."""
    replicates: int = Field(1000, ge=100)
    """Draws of users behind every interval."""
    seed: int = 0
    """Seed of these draws."""


class WrittenReport(NamedTuple):
    """Where the report lies, and what it says."""

    page: str
    markdown: str
    numbers: str
    report: Report | DayArms


def run(config: ReportConfig) -> WrittenReport:
    """Write `report.html`, `report.md` and `report.json`.

    Raises:
        DataError: a folder is no finished run, files of it are missing or do not fit, or the runs read
            different datasets or are of both kinds; nothing is written then.
    """
    set_up_console()
    folder = config.out or default_folder(config.runs)
    with own_folder(folder, "report", beside=config.runs):
        return _run_days(config, folder) if are_daily(config.runs) else _run(config, folder)


def _run(config: ReportConfig, folder: str) -> WrittenReport:
    report = build_report(
        collect_runs(config.runs, config.dataset, config.verify),
        title=config.title,
        baseline=config.baseline,
        num_replicates=config.replicates,
        seed=config.seed,
    )
    sections = all_sections(report)
    files = {
        "report.json": render_json(report),
        "report.md": render_markdown(report, sections),
        "report.html": render_page(report, sections),
    }
    return _written(folder, files, report.headline[0] + "\n", report)


def _run_days(config: ReportConfig, folder: str) -> WrittenReport:
    arms = compare_days(config.runs, config.baseline)
    files = {
        "report.json": as_json(arms),
        "report.md": as_markdown(arms),
        "report.html": render_day_arms(arms, config.title),
    }
    return _written(folder, files, files["report.md"], arms)


def _written(folder: str, files: dict[str, str], answer: str, report: Report | DayArms) -> WrittenReport:
    write_files(folder, {name: text.encode() for name, text in files.items()})
    page, markdown, numbers = (join(folder, f"report.{kind}") for kind in ("html", "md", "json"))
    say(f"{answer}report: {page}")
    return WrittenReport(page, markdown, numbers, report)


def default_folder(runs: list[str]) -> str:
    """Return where a report goes that names no place."""
    first = runs[0].rstrip("/")
    if len({each.rstrip("/") for each in runs}) == 1:
        return first
    parent, slash, _ = first.rpartition("/")
    return join(parent, "report") if parent else f"{slash}report"
