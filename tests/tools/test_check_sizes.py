import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = '"""A module."""\n\n\n'
LONG = "def long():\n" + '    """Do."""\n' + "    x = 1\n" * 59


def check(folder: Path) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "tools/check_sizes.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def faults(tmp_path: Path, text: str, name: str = "module.py") -> list[str]:
    (tmp_path / name).write_text(text)
    code, said = check(tmp_path)
    lines = said.splitlines()[:-1]
    assert code == (1 if lines else 0)
    return [line.removeprefix(f"{tmp_path}/") for line in lines]


def test_sound_module_passes(tmp_path: Path):
    text = (
        HEAD
        + 'def f(a, b, c, d, e, f, g, *, h):\n    """Do."""\n\n\ndef _g():\n    def inner():\n        pass\n'
    )
    assert faults(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HEAD + "x = 1\n" * 398, "module.py:1: 401 lines, at most 400. Split it at its second idea."),
        (HEAD + LONG, "module.py:4: 'long' has 61 lines, at most 60."),
        (HEAD + "class A:\n    pass\n", "module.py:4: public 'A' has no docstring."),
        (
            HEAD + 'class A:\n    """A."""\n\n    def f(self):\n        pass\n',
            "module.py:7: public 'f' has no docstring.",
        ),
        (HEAD + "async def f():\n    pass\n", "module.py:4: public 'f' has no docstring."),
        (HEAD + "if True:\n\n    def f():\n        pass\n", "module.py:6: public 'f' has no docstring."),
        ("x = 1\n", "module.py:1: the module has no docstring."),
        (
            HEAD + "class _A:\n    def f(self, a, b, c, d, e, f, g, *, h, i):\n        pass\n",
            "module.py:5: 'f' takes 9 parameters, not 8. Take a config.",
        ),
    ],
)
def test_planted_fault_is_found_with_its_line(tmp_path: Path, text: str, fault: str):
    assert faults(tmp_path, text) == [fault]


@pytest.mark.parametrize(
    "name", ["utils.py", "data_utils.py", "helpers.py", "common.py", "misc.py", "base_model.py"]
)
def test_drawers_are_refused_by_name(tmp_path: Path, name: str):
    assert "names a drawer" in faults(tmp_path, HEAD.rstrip() + "\n", name)[0]


def test_name_that_only_contains_such_a_word_is_fine(tmp_path: Path):
    assert faults(tmp_path, '"""A."""\n', "database.py") == []


def test_all_faults_of_all_files_are_told(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.py").write_text("def f():\n    pass\n")
    assert len(faults(tmp_path, LONG)) == 4


def test_parameters_are_excused_where_ruff_is_told_why(tmp_path: Path):
    text = (
        "# ruff: noqa: PLR0913 - flags are arguments\n"
        + HEAD
        + "def _f(a, b, c, d, e, f, g, h, i):\n    pass\n"
    )
    assert faults(tmp_path, text) == []


def test_functions_of_tools_need_no_docstring(tmp_path: Path):
    (tmp_path / "tools").mkdir()
    assert faults(tmp_path, HEAD + "def f():\n    pass\n", "tools/module.py") == []


def test_files_of_tests_have_a_limit_of_their_own_and_no_other_rule(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    assert faults(tmp_path, "x = 1\n" * 400, "tests/test_a.py") == []
    assert faults(tmp_path, "x = 1\n" * 401, "tests/test_a.py") == [
        "tests/test_a.py:1: 401 lines, at most 400. Split it at its second idea."
    ]


def test_folder_of_too_many_modules_is_told_with_their_number(tmp_path: Path):
    for number in range(15):
        (tmp_path / f"a{number}.py").write_text('"""A."""\n')
    (tmp_path / "__init__.py").write_text('"""A room."""\n')
    assert check(tmp_path) == (0, "sizes: 16 files, 0 faults\n")
    (tmp_path / "one_more.py").write_text('"""A."""\n')
    code, said = check(tmp_path)
    assert (code, said.splitlines()[0]) == (
        1,
        f"{tmp_path}: 16 Python files, at most 15. Cut it where there are two ideas.",
    )


def test_folders_of_tests_follow_the_code_and_have_no_limit(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    for number in range(20):
        (tmp_path / f"tests/test_{number}.py").write_text("x = 1\n")
    assert check(tmp_path)[0] == 0


def test_a_folder_with_a_table_of_verbs_holds_a_file_for_each_and_nothing_else(tmp_path: Path):
    table = HEAD + 'JOBS = {"run": "RunConfig", "walk": "WalkConfig"}\nWITHOUT_CONFIG = ("look",)\n'
    for name in ("__init__", "run", "walk", "look"):
        (tmp_path / f"{name}.py").write_text(HEAD)
    assert faults(tmp_path, table, "verbs.py") == []
    (tmp_path / "walk.py").rename(tmp_path / "walk_steps.py")
    assert faults(tmp_path, table, "verbs.py") == [
        f"walk_steps.py: no verb of {tmp_path}/verbs.py. Move it to the room that it belongs to.",
        "verbs.py: 'walk' has no file beside it.",
    ]
