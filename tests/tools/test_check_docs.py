import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked_shell import forked_commands
from trec_semid import __version__

ROOT = Path(__file__).resolve().parents[2]
FENCE = "```"


def check(*words: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "tools/check_docs.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def document(tmp_path: Path, text: str) -> str:
    path = tmp_path / "page.md"
    path.write_text(text.replace("FENCE", FENCE))
    return str(path)


def test_marked_blocks_run_in_order_in_one_folder(tmp_path: Path):
    text = f"""
<!-- run -->
FENCEsh
echo one > {tmp_path}/said; pwd > first
FENCE
Text.

<!-- run -->
FENCEsh
cat first >> {tmp_path}/said
trec-semid --version >> {tmp_path}/said
ls configs > /dev/null
FENCE
"""
    code, said = check(document(tmp_path, text))
    assert code == 0, said
    one, folder, version = (tmp_path / "said").read_text().splitlines()
    assert one == "one"
    assert not Path(folder).exists()
    assert version


def test_files_shown_in_a_document_are_the_ones_its_commands_read(tmp_path: Path):
    text = f"""
<!-- file: mine/a.toml -->
FENCEtoml
x = 1
FENCE

<!-- run -->
FENCEsh
cp mine/a.toml {tmp_path}/a.toml
FENCE
"""
    assert check(document(tmp_path, text))[0] == 0
    assert (tmp_path / "a.toml").read_text() == "x = 1\n"


def test_unmarked_blocks_are_left_alone(tmp_path: Path):
    assert check(document(tmp_path, "FENCEsh\nexit 3\nFENCE\n"))[0] == 0


@pytest.mark.parametrize("command", ["false", "false | cat", "echo $never_set"])
def test_failing_command_is_named_with_its_line_and_words(tmp_path: Path, command: str):
    text = f"Text.\n\n<!-- run -->\nFENCEsh\necho before\n{command}\nFENCE\n"
    code, said = check(document(tmp_path, text))
    assert code == 1
    assert "page.md:5: exit code 1" in said
    assert "before" in said


def test_blocks_after_a_failed_one_do_not_run(tmp_path: Path):
    text = f"<!-- run -->\nFENCEsh\nfalse\nFENCE\n<!-- run -->\nFENCEsh\ntouch {tmp_path}/late\nFENCE\n"
    check(document(tmp_path, text))
    assert not (tmp_path / "late").exists()


def test_links_that_lead_nowhere_are_found(tmp_path: Path):
    (tmp_path / "there.md").touch()
    text = "[a](there.md) [b](there.md#part) [c](gone.md) [d](https://example.org) `[e](code.md)`\n[f](#here)"
    code, said = check("--links-only", document(tmp_path, text))
    assert code == 1
    assert said.count("leads nowhere") == 1
    assert "gone.md" in said


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ("`core/errors.py`, `errors.py`, `tests/tools/test_check_docs.py::FENCE`, `make_shop.py`", None),
        ("`core/errors.py::ConfigError`, `training/steps.py`", None),
        ("`core/mistakes.py`", "core/mistakes.py is no file"),
        ("`ore/errors.py`", "ore/errors.py is no file"),
        ("`core/errors.py::Mistake`", "core/errors.py defines no Mistake"),
        ("`layers/mlp.py::Mlp.backwards`", "layers/mlp.py defines no Mlp.backwards"),
        ("`layers/mlp.py::Mlp.forward`", None),
    ],
)
def test_files_and_names_of_code_have_to_be_there(tmp_path: Path, named: str, fault: str | None):
    text = f"<!-- file: make_shop.py -->\nFENCEpython\nx = 1\nFENCE\n{named}\n"
    code, said = check("--links-only", document(tmp_path, text))
    assert (code, fault is None or fault in said) == (0 if fault is None else 1, True), said


def test_documents_of_this_house_link_to_and_name_what_exists():
    code, said = check("--links-only")
    assert code == 0, said


@pytest.fixture
def forked_command(tmp_path: Path) -> Iterator[None]:
    # What the launcher itself starts, tests/launch/test_torchrun.py looks at.
    programs = {"trec-semid": "trec_semid.cli.main", "torchrun": "tests.forking_torchrun"}
    with forked_commands(tmp_path, programs):
        yield


@pytest.mark.slow
@pytest.mark.timeout(1200)  # every worked example, one after another: two minutes of a processor
@pytest.mark.usefixtures("forked_command")
def test_commands_of_this_house_s_documents_work():
    code, said = check()
    assert code == 0, said


@pytest.mark.usefixtures("forked_command")
def test_a_forked_command_works_in_its_folder_and_fails_as_ever(tmp_path: Path):
    commands = ["trec-semid --version > here", "type -t trec-semid >> here", f"cp here {tmp_path}"]
    text = "\n".join(["<!-- run -->", "FENCEsh", *commands, "trec-semid no", "FENCE", ""])
    code, said = check(document(tmp_path, text))
    assert code == 1
    assert "page.md:3: exit code 2" in said
    assert "No such command 'no'" in said
    assert (tmp_path / "here").read_text().split() == [__version__, "function"]
