import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

from tests.report.fake_runs import write_study
from trec_semid.core.config import load_config
from trec_semid.core.errors import ConfigError, DataError
from trec_semid.core.paths import find_files, join, read_bytes
from trec_semid.jobs.report import ReportConfig, default_folder, run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_study(str(tmp_path_factory.mktemp("report_job")), num_users=40, seeds=(0,))


def test_a_report_is_a_page_markdown_and_json_in_one_folder(runs: list[str], tmp_path: Path):
    written = run(ReportConfig(runs=runs, out=str(tmp_path / "out"), title="My title", replicates=100))
    assert find_files(str(tmp_path / "out")) == ["report.html", "report.json", "report.md"]
    assert "<h1>My title</h1>" in Path(written.page).read_text()
    assert Path(written.markdown).read_text().startswith("# My title\n")
    assert json.loads(Path(written.numbers).read_text())["title"] == "My title"


def test_the_answer_and_the_place_are_printed(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    written = run(ReportConfig(runs=runs[:2], out=str(tmp_path / "out"), replicates=100))
    assert capsys.readouterr().out == f"{written.report.headline[0]}\nreport: {written.page}\n"


def test_the_same_runs_give_the_same_bytes(runs: list[str], tmp_path: Path):
    pages = [
        run(ReportConfig(runs=runs, out=str(tmp_path / name), replicates=100)).page for name in ("a", "b")
    ]
    assert Path(pages[0]).read_bytes() == Path(pages[1]).read_bytes()


def test_a_refused_report_leaves_nothing_behind(runs: list[str], tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no such run folder") as error:
        run(ReportConfig(runs=[*runs, str(tmp_path / "none")], out=str(out)))
    assert error.value.exit_code == 2
    assert not out.exists()


def test_a_damaged_dataset_is_refused(runs: list[str], tmp_path: Path):
    data = shutil.copytree(Path(runs[0]).parent / "data", tmp_path / "data")
    file = data / "items.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"items.parquet: damaged: its content is not what was written"):
        run(ReportConfig(runs=runs, dataset=str(data), out=str(out), replicates=100))
    assert not out.exists()


def test_a_report_that_names_no_place_goes_beside_its_runs():
    assert default_folder(["runs/a"]) == "runs/a"
    assert default_folder(["runs/a/", "runs/a"]) == "runs/a"
    assert default_folder(["runs/a", "runs/b"]) == "runs/report"
    assert default_folder(["a", "b"]) == "report"
    assert default_folder(["/a", "/b"]) == "/report"
    assert default_folder(["s3://bucket/runs/a", "s3://bucket/runs/b"]) == "s3://bucket/runs/report"


def test_runs_and_report_may_lie_behind_uris():
    root = "memory://report-job"
    places = write_study(root, num_users=30, seeds=(0,))
    written = run(ReportConfig(runs=places[:2], replicates=100))
    assert written.page == join(root, "report", "report.html")
    assert b"</html>" in read_bytes(written.page)
    assert json.loads(read_bytes(written.numbers))["codebooks"][0]["name"] == "mmq"


def test_no_run_is_a_fault_of_the_config():
    with pytest.raises(ConfigError, match="runs"):
        load_config(ReportConfig, [], ["runs=[]"])


def test_templates_lie_in_the_package():
    folder = resources.files("trec_semid.report").joinpath("templates")
    assert {each.name for each in folder.iterdir()} >= {"report.html.j2", "style.css"}
