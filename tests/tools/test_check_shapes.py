import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def faults(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "module.py").write_text(text)
    command = [sys.executable, str(ROOT / "tools/check_shapes.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines.pop() == f"shapes: 1 files, {len(lines)} faults"
    assert done.returncode == (1 if lines else 0)
    return [line.removeprefix(f"{tmp_path}/") for line in lines]


def function(docstring: str, annotation: str = "Tensor") -> str:
    return f'def f(x: {annotation}) -> int:\n    """{docstring}"""\n'


@pytest.mark.parametrize(
    "docstring",
    [
        "Return () of (B, L).",
        "Do.\n\n    Args:\n        x: (N,) int64, ascending.\n    ",
        "Return (num_items, dim) float32.",
        "Take (B, R + 1) codes.",
        "Take (..., D).",
        "Take (len(rows), K).",
        "Take () alone.",
    ],
)
def test_function_that_says_a_shape_passes(tmp_path: Path, docstring: str):
    assert faults(tmp_path, function(docstring)) == []


@pytest.mark.parametrize("docstring", ["Do.", "Do (as the paper says).", "Take ids (config, modalities)."])
@pytest.mark.parametrize(
    "annotation",
    ["Tensor", "torch.Tensor | None", "dict[str, Ints]", "'Array'", "np.ndarray[Any, np.dtype[Any]]"],
)
def test_arrays_without_a_shape_are_told(tmp_path: Path, docstring: str, annotation: str):
    said = faults(tmp_path, function(docstring, annotation))
    assert said == ["module.py:1: 'f' has arrays and no shape. Say (B, L) or what they are."]


@pytest.mark.parametrize(
    "text",
    [
        "def f(x) -> Tensor:\n    pass\n",
        "def f(*x: Tensor):\n    pass\n",
        "def f(*, x: Tensor):\n    pass\n",
        "async def f(x: Tensor):\n    pass\n",
    ],
)
def test_every_place_of_an_annotation_counts(tmp_path: Path, text: str):
    assert len(faults(tmp_path, text)) == 1


def test_private_functions_and_functions_of_other_things_need_none(tmp_path: Path):
    assert faults(tmp_path, "def _f(x: Tensor):\n    pass\n\n\ndef g(x: list[int]):\n    pass\n") == []


def method(name: str, of_class: str) -> str:
    return f'class A:\n    """{of_class}"""\n\n    def {name}(self, x: Tensor):\n        """Do."""\n'


def test_methods_say_their_own_shapes_but_forward_and_init(tmp_path: Path):
    assert faults(tmp_path, method("g", "A layer (B, D).")) == [
        "module.py:4: 'A.g' has arrays and no shape. Say (B, L) or what they are."
    ]
    for name in ("forward", "__init__"):
        assert faults(tmp_path, method(name, "A layer (B, D).")) == []
        assert len(faults(tmp_path, method(name, "A layer."))) == 1


def test_the_package_passes():
    command = [sys.executable, "tools/check_shapes.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "docstring", ["Return (n,) rows.", "Take values of any shape.", "Take (stop - start, dim)."]
)
def test_lengths_of_small_letters_differences_and_any_shape_are_shapes(tmp_path: Path, docstring: str):
    assert faults(tmp_path, function(docstring)) == []


def test_letters_that_number_a_list_are_no_shape(tmp_path: Path):
    assert len(faults(tmp_path, function("Do (a) this and (b) that."))) == 1
