"""Hold the house's size rules that ruff does not know; print every fault, exit 1 when there is one.

Files have at most 400 lines, those of tests no other rule but that; functions have at
most 60 lines and 8 parameters (unless the file tells ruff why not); modules have docstrings, public classes
and functions too, those of tools aside; no module is a drawer of odds and ends. Folders have at most 15
Python files, `__init__.py` and tests aside. A folder with a table of verbs (`verbs.py`) holds a file for each
of them and nothing else.
Usage: python tools/check_sizes.py [FOLDER...]
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("trec_semid", "launch", "tools", "tests")
MAX_FILE_LINES = 400
MAX_FOLDER_FILES = 15
LARGER_FOLDERS = {
    "trec_semid/jobs": 20,  # one file a verb, which `check_verbs` holds
    "trec_semid/layers": 17,  # one small module a layer, each known by its name: a cut would only hide them
}
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
VERBS, VERB_TABLES = "verbs.py", ("JOBS", "WITHOUT_CONFIG")
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_file(path: Path) -> Iterator[str]:
    """Yield one `path:line: fault` for every broken rule."""
    text = path.read_text()
    lines = text.count("\n")
    is_test = "tests" in path.parts
    if lines > MAX_FILE_LINES:
        yield f"{path}:1: {lines} lines, at most {MAX_FILE_LINES}. Split it at its second idea."
    if is_test:
        return
    if set(path.stem.lower().split("_")) & DRAWERS:
        yield f"{path}:1: '{path.stem}' names a drawer, not an idea. Name the module after what it holds."
    tree = ast.parse(text, str(path))
    if lines and not ast.get_docstring(tree):
        yield f"{path}:1: the module has no docstring."
    excused = "noqa: " in text and "PLR0913" in text  # said to ruff, with its reason
    for fault in check_scope(tree, public="tools" not in path.parts):
        if not (excused and "parameters" in fault):
            yield f"{path}:{fault}"


def check_folders(files: list[Path]) -> Iterator[str]:
    """Yield one `path: fault` for every folder with too many files; those of tests follow the code's."""
    modules = [path for path in files if path.name != "__init__.py" and "tests" not in path.parts]
    for folder, count in sorted(Counter(path.parent for path in modules).items()):
        limit = LARGER_FOLDERS.get(str(folder), MAX_FOLDER_FILES)
        if count > limit:
            yield f"{folder}: {count} Python files, at most {limit}. Cut it where there are two ideas."


def check_verbs(files: list[Path]) -> Iterator[str]:
    """Yield one `path: fault` for every file beside a table of verbs that is no verb's, and the other way."""
    for table in (path for path in files if path.name == VERBS):
        modules = {path.stem for path in files if path.parent == table.parent} - {"__init__", table.stem}
        verbs = set(verbs_of(ast.parse(table.read_text())))
        for name in sorted(modules - verbs):
            yield f"{table.parent}/{name}.py: no verb of {table}. Move it to the room that it belongs to."
        for name in sorted(verbs - modules):
            yield f"{table}: '{name}' has no file beside it."


def verbs_of(tree: ast.Module) -> Iterator[str]:
    """Yield the verbs that a table names: the keys of a dict, the elements of a tuple."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in VERB_TABLES:
            names = node.value.keys if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            yield from (name.value for name in names if isinstance(name, ast.Constant))


def check_scope(scope: ast.AST, *, public: bool) -> Iterator[str]:
    """Yield `line: fault` for the functions and classes inside a module, class or function."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, Function | ast.ClassDef):
            seen = public and not node.name.startswith("_")
            if seen and not ast.get_docstring(node):
                yield f"{node.lineno}: public '{node.name}' has no docstring."
            if isinstance(node, Function):
                yield from check_function(node)
            # What a function defines inside itself is nobody's interface.
            yield from check_scope(node, public=seen and isinstance(node, ast.ClassDef))
        else:
            yield from check_scope(node, public=public)


def check_function(node: Function) -> Iterator[str]:
    """Yield the faults of one function's size."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > MAX_FUNCTION_LINES:
        yield f"{node.lineno}: '{node.name}' has {lines} lines, at most {MAX_FUNCTION_LINES}."
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = len([name for name in names if name not in ("self", "cls")])
    if count > MAX_PARAMETERS:
        yield f"{node.lineno}: '{node.name}' takes {count} parameters, not {MAX_PARAMETERS}. Take a config."


def main(folders: list[str]) -> int:
    """Check every Python file below the folders."""
    files = sorted(file for folder in folders or FOLDERS for file in Path(folder).rglob("*.py"))
    faults = [fault for file in files for fault in check_file(file)]
    faults += [*check_folders(files), *check_verbs(files)]
    for fault in faults:
        print(fault)
    print(f"sizes: {len(files)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
