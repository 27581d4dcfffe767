"""Hold that every public function of arrays or tensors says their shapes; exit 1 when one does not.

A function's annotations tell whether it takes or returns arrays. Its docstring must then hold a shape such as
`(B, L)`, `(num_items, dim)`, `(N,)`, `()`, or `(...)` where any will do; for `forward` and `__init__` that
of the class will do.
Usage: python tools/check_shapes.py [FOLDER...]
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("trec_semid",)
ARRAYS = {
    *("Tensor", "Array", "Ints", "Int32s", "AnyInts", "Floats", "Float32s", "Flags", "Bytes", "Hashes"),
    *("ndarray", "NDArray"),
}
OF_THE_CLASS = {"forward", "__init__"}
"""Methods whose shapes may stand in the docstring of their class."""
SHAPE = re.compile(r"\(\)|\((?P<sizes>[^()\n]+(?:\([^()\n]*\)[^()\n]*)*)\)")
SIZE = re.compile(
    r"\.\.\.|\*?(\d+|[A-Z]\w*|num_\w+|\w*(dim|size|rows|width|lengths)\w*|len\(\w+\)|[a-z])( ?[-+*/] ?\w+)*"
    r"|\w+ [-+*/] \w+|sum of \w+"
)
ANY_SHAPE = re.compile(r"\bany (other )?shape\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_file(path: Path) -> Iterator[str]:
    """Yield one `path:line: fault` for every function without a shape."""
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield from (f"{path}:{fault}" for fault in check_function(node, ast.get_docstring(node)))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (f"{path}:{fault}" for fault in check_class(node))


def check_class(node: ast.ClassDef) -> Iterator[str]:
    """Yield `line: fault` for the public methods of a class."""
    for method in node.body:
        if not isinstance(method, Function):
            continue
        if method.name in OF_THE_CLASS:
            both = f"{ast.get_docstring(node)}\n{ast.get_docstring(method)}"
            yield from check_function(method, both, f"{node.name}.")
        elif not method.name.startswith("_"):
            yield from check_function(method, ast.get_docstring(method), f"{node.name}.")


def check_function(node: Function, docstring: str | None, owner: str = "") -> Iterator[str]:
    """Yield `line: fault` where a function's annotations name arrays and its docstring has no shape."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg]
    annotations = [argument.annotation for argument in arguments if argument] + [node.returns]
    named = [name for annotation in annotations if annotation for name in names_in(annotation)]
    if ARRAYS.intersection(named) and not has_shape(docstring or ""):
        yield f"{node.lineno}: '{owner}{node.name}' has arrays and no shape. Say (B, L) or what they are."


def names_in(annotation: ast.expr) -> Iterator[str]:
    """Yield the last part of every name in an annotation, quoted ones too."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\w+", node.value)


def has_shape(text: str) -> bool:
    """Whether a text holds a shape: sizes in brackets, not a remark."""
    shapes = (match["sizes"] for match in SHAPE.finditer(text))
    return bool(ANY_SHAPE.search(text)) or any(sizes is None or is_shape(sizes) for sizes in shapes)


def is_shape(sizes: str) -> bool:
    """Whether what stands between brackets is sizes; one small letter alone, as in (a) and (b), is none."""
    named = [size.strip() for size in sizes.rstrip(", ").split(",")]
    return all(SIZE.fullmatch(size) for size in named) and not re.fullmatch(r"[a-z]", sizes)


def main(folders: list[str]) -> int:
    """Check the files in these folders and return the exit code."""
    files = [path for folder in folders or FOLDERS for path in sorted(Path(folder).rglob("*.py"))]
    faults = [fault for path in files for fault in check_file(path)]
    print("\n".join([*faults, f"shapes: {len(files)} files, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
