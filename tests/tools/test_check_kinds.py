import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = """
from typing import Literal


class TigerConfig:
    kind: Literal["tiger"] = "tiger"


class SasrecConfig:
    kind: Literal["sasrec"] = "sasrec"


class Tiger:
    pass
"""
IMPORTS = """from trec_semid.models.methods import Tiger, TigerConfig as Config
from trec_semid.models import methods
"""


def faults(tmp_path: Path, text: str, place: str = "jobs/retrieve.py") -> list[str]:
    package = tmp_path / "trec_semid"
    for name, content in {"models/methods.py": MODELS, "tokenizers/methods.py": "", place: text}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    command = [sys.executable, str(ROOT / "tools/check_kinds.py"), str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines.pop().endswith(f" {len(lines)} faults")
    assert done.returncode == (1 if lines else 0)
    return [line.removeprefix(f"{package}/") for line in lines]


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("isinstance(x, Tiger)", "Tiger"),
        ("issubclass(x, int | Tiger)", "Tiger"),
        ("isinstance(x, (int, Config))", "Config"),
        ("isinstance(x, methods.Tiger)", "methods"),
        ("type(x) is Tiger", "Tiger"),
        ("{Tiger: 1}", "Tiger"),
        ("[1 for y in x if not isinstance(y, Tiger)]", "Tiger"),
    ],
)
def test_question_for_a_class_of_models_is_told(tmp_path: Path, question: str, name: str):
    assert faults(tmp_path, f"{IMPORTS}y = {question}\n") == [
        f"jobs/retrieve.py:3: asks whether something is a '{name}'. Make the answer a member of its role."
    ]


def test_class_pattern_is_told(tmp_path: Path):
    said = faults(tmp_path, f"{IMPORTS}match x:\n    case Config():\n        pass\n")
    assert [line.split(".")[1] for line in said] == ["py:4: asks whether something is a 'Config'"]


@pytest.mark.parametrize(
    "question",
    [
        "kind == 'tiger'",
        "config.kind in {'tiger'}",
        "config['kind'] != 'tiger'",
        "config.get('kind') == 'tiger'",
    ],
)
def test_text_compared_with_a_kind_is_told(tmp_path: Path, question: str):
    assert faults(tmp_path, f"y = {question}\n") == [
        "jobs/retrieve.py:1: names the kind 'tiger'. Make the answer a member of its role."
    ]


@pytest.mark.parametrize("texts", ["('tiger', 'sasrec')", "{'tiger': 1, 'sasrec': 2}", "['tiger', 'sasrec']"])
def test_list_of_kinds_is_told(tmp_path: Path, texts: str):
    assert len(faults(tmp_path, f"y = {texts}\n")) == 2


def test_match_on_a_kind_is_told(tmp_path: Path):
    assert len(faults(tmp_path, "match x.kind:\n    case 'tiger':\n        pass\n")) == 1


def test_a_room_may_ask_for_its_own_kinds_and_not_for_those_of_another(tmp_path: Path):
    text = f"{IMPORTS}y = isinstance(x, Tiger) or kind == 'tiger'\n"
    assert faults(tmp_path, text, "models/tiger.py") == []
    assert len(faults(tmp_path, text, "tokenizers/mmq.py")) == 2


@pytest.mark.parametrize(
    "text",
    [
        f"{IMPORTS}y = Tiger(Config())\n",
        "from trec_semid.core.config import Config\ny = isinstance(x, Config)\n",
        "y = part == 'tiger'\n",
        "y = {'tiger': 'an animal', 'lion': 'another'}\n",
        f"{IMPORTS}y = {{Config.kind: Tiger}}\n",
    ],
)
def test_other_uses_of_classes_and_words_pass(tmp_path: Path, text: str):
    assert faults(tmp_path, text) == []


def test_the_package_passes():
    command = [sys.executable, "tools/check_kinds.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
