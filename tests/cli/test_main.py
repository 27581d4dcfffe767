import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.commands import run_command
from trec_semid import __version__
from trec_semid.cli import main as cli
from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, DataError, TrainingError
from trec_semid.jobs import verbs
from trec_semid.jobs.verbs import JOBS, WITHOUT_CONFIG, Job, job_named

COMMAND = "trec_semid.cli.main"
VERBS = [*WITHOUT_CONFIG, *JOBS, "config"]


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", COMMAND, *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


class FakeConfig(Config):
    size: int = 1
    out: str | None = None
    runs: list[str] = []
    title: str | None = None
    dataset: str | None = None
    cluster: list[str] = []
    name: str | None = None
    train: dict[str, int] = {}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[FakeConfig]:
    """Replace every job by one that notes its config."""
    configs: list[FakeConfig] = []
    monkeypatch.setattr(verbs, "job_named", lambda verb: Job(FakeConfig, configs.append))
    return configs


def main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["trec-semid", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(config: FakeConfig) -> None:
        raise error

    monkeypatch.setattr(verbs, "job_named", lambda verb: Job(FakeConfig, fail))


SLOW = ("torch", "torchrec", "polars", "pyarrow", "scipy", "matplotlib", "faiss", "numpy")


def test_help_lists_every_verb_and_comes_without_torch():
    # All help in one process: what any of it imports is there in the end.
    code = (
        "import sys; from trec_semid.cli import main as m\n"
        f"for verb in [[], *([verb] for verb in {sorted(VERBS)!r})]:\n"
        "    sys.argv = ['trec-semid', *verb, '--help']\n"
        "    try: m.main()\n    except SystemExit: pass\n"
        f"print('slow:', [name for name in {SLOW!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "slow: []" in done.stdout
    assert done.stdout.count("Example:") >= len(VERBS)
    assert all(f"  {verb}" in done.stdout for verb in VERBS)
    assert "Exit code" in done.stdout


def processor_s(start: Callable[[], object]) -> float:
    """The least of three runs: others may share the machine."""
    took = []
    for _ in range(3):
        before = os.times()
        start()
        after = os.times()
        took.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return min(took)


@pytest.mark.parametrize("words", [["--help"], ["rank", "--help"], ["plan", "--help"]])
def test_help_is_quick(words: list[str]):
    """Below .4 s; on a slow or busy processor, within four times what the library of the words takes."""
    library = processor_s(lambda: subprocess.run([sys.executable, "-c", "import typer"], check=True))
    assert processor_s(lambda: call(*words)) < max(0.4, 4 * library)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_teaches_by_example(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(monkeypatch, verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f"Example:  trec-semid {verb}" in shown
    if verb != "config":
        assert "Reads:" in shown


@pytest.mark.parametrize(
    "verb",
    [verb for verb in VERBS if verb not in ("doctor", "config", "report", "plan", "generations", "bundle")],
)
def test_example_of_a_verb_names_files_that_exist(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    main(monkeypatch, verb, "--help")
    words = capsys.readouterr().out.split()
    named = [word for word in words if word.startswith("configs/")]
    assert named
    assert all((Path(__file__).parents[2] / name).is_file() for name in named)


def test_version_is_printed():
    assert call("--version").stdout.strip() == __version__


@pytest.mark.parametrize("verb", ["prepare", "tokenize", "rank", "study"])
def test_config_verbs_merge_files_and_sets(
    verb: str, monkeypatch: pytest.MonkeyPatch, ran: list[FakeConfig], tmp_path: Path
):
    (tmp_path / "a.toml").write_text("size = 2\nout = 'a'")
    (tmp_path / "b.toml").write_text("size = 3")
    words = [
        str(tmp_path / "a.toml"),
        str(tmp_path / "b.toml"),
        "--set",
        "train.steps=4",
        "--set",
        "train.more=5",
    ]
    assert main(monkeypatch, verb, *words) == 0
    assert ran == [FakeConfig(size=3, out="a", train={"steps": 4, "more": 5})]


def test_report_takes_folders_and_options(monkeypatch: pytest.MonkeyPatch, ran: list[FakeConfig]):
    words = ["a/1", "a b", "--out", "there", "--title", 'It is "so" é😀', "--dataset", "d", "--set", "size=2"]
    assert main(monkeypatch, "report", *words) == 0
    title = 'It is "so" é😀'
    assert ran == [FakeConfig(runs=["a/1", "a b"], out="there", title=title, dataset="d", size=2)]


def test_plan_takes_a_cluster_and_a_place(
    monkeypatch: pytest.MonkeyPatch, ran: list[FakeConfig], tmp_path: Path
):
    (tmp_path / "a.toml").write_text("size = 2")
    words = [str(tmp_path / "a.toml"), "--cluster", "c.toml", "--out", "p.json", "--set", "train.steps=4"]
    assert main(monkeypatch, "plan", *words) == 0
    assert ran == [FakeConfig(size=2, cluster=["c.toml"], name="a", out="p.json", train={"steps": 4})]


def test_plan_takes_a_pattern_that_the_shell_expanded(
    monkeypatch: pytest.MonkeyPatch, ran: list[FakeConfig], tmp_path: Path
):
    (tmp_path / "a.toml").write_text("size = 2")
    clusters = sorted(map(str, (Path(__file__).parents[2] / "configs/cluster").glob("*.toml")))
    assert main(monkeypatch, "plan", str(tmp_path / "a.toml"), "--cluster", *clusters) == 0
    assert ran == [FakeConfig(size=2, cluster=clusters, name="a")]


def test_bad_config_is_exit_code_2_without_a_traceback(tmp_path: Path):
    (tmp_path / "a.toml").write_text("ot = 'x'")
    done = run_command(COMMAND, "study", str(tmp_path / "a.toml"))
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "did you mean 'out'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["nothing"], ["rank"], ["rank", "a.toml", "--sett", "x=1"], ["plan", "a.toml"], ["report"]]
)
def test_wrong_use_is_exit_code_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(monkeypatch, *words) == 2
    assert "Error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("c"), 2), (DataError("d", file="x"), 2), (TrainingError("t"), 1)]
)
def test_refusals_exit_with_their_code_and_message_only(
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    failing_with(monkeypatch, error)
    (tmp_path / "a.toml").touch()
    assert main(monkeypatch, "rank", str(tmp_path / "a.toml")) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_is_exit_code_1_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    failing_with(monkeypatch, ZeroDivisionError("bug"))
    (tmp_path / "a.toml").touch()
    assert main(monkeypatch, "rank", str(tmp_path / "a.toml")) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.rstrip().endswith("ZeroDivisionError: bug")


@pytest.mark.parametrize(("number", "words"), [(28, "disk is full"), (13, "choose another")])
def test_place_that_cannot_be_written_is_told_without_a_traceback(
    number: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    failing_with(monkeypatch, OSError(number, "No", "runs/x"))
    (tmp_path / "a.toml").touch()
    assert main(monkeypatch, "rank", str(tmp_path / "a.toml")) == 1
    shown = capsys.readouterr().err
    assert "runs/x" in shown
    assert words in shown
    assert "Traceback" not in shown


def test_ctrl_c_is_exit_code_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    failing_with(monkeypatch, KeyboardInterrupt())
    (tmp_path / "a.toml").touch()
    assert main(monkeypatch, "rank", str(tmp_path / "a.toml")) == 130
    assert "interrupted" in capsys.readouterr().err


def test_several_ranks_say_which_of_them_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    failing_with(monkeypatch, DataError("bad"))
    (tmp_path / "a.toml").touch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli, "leave", sys.exit)  # or the process of the tests ends here
    assert main(monkeypatch, "rank", str(tmp_path / "a.toml")) == 2
    assert capsys.readouterr().err == "rank 1: error: bad\n"


def test_torchrun_learns_what_happened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    failing_with(monkeypatch, DataError("bad"))
    (tmp_path / "a.toml").touch()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    main(monkeypatch, "rank", str(tmp_path / "a.toml"))
    assert "bad" in json.dumps(json.loads((tmp_path / "error.json").read_text()))


def test_config_shows_what_a_file_resolves_to(tmp_path: Path):
    (tmp_path / "a.toml").write_text("out = 'x'\n[[step]]\nverb = 'report'")
    done = run_command(COMMAND, "config", "study", str(tmp_path / "a.toml"), "--set", "workers=3")
    shown = tomllib.loads(done.stdout)
    assert (shown["out"], shown["workers"], shown["seeds"]) == ("x", 3, [0])


def test_config_shows_the_schema_of_a_verb():
    done = run_command(COMMAND, "config", "study", "--schema")
    assert "description" in json.loads(done.stdout)["properties"]["workers"]


def test_config_of_no_verb_is_refused_with_a_guess():
    done = run_command(COMMAND, "config", "stduy")
    assert done.returncode == 2
    assert "did you mean 'study'?" in done.stderr


@pytest.mark.parametrize("verb", JOBS)
def test_every_row_of_the_table_has_a_config_and_a_run(verb: str):
    job = job_named(verb)
    assert issubclass(job.config, Config)
    assert callable(job.run)


def test_finished_is_taken_from_the_jobs_that_say_it_themselves(monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(RankConfig=FakeConfig, run=print, finished=bool)
    monkeypatch.setattr(verbs, "import_module", lambda name: module)
    assert job_named("rank").finished is bool
    del module.finished
    assert job_named("rank").finished is None
