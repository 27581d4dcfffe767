"""Hold that nobody outside their room asks what kind a model or a tokenizer is; exit 1 when somebody does.

A method owns itself: what differs between kinds is a member of their role. So outside `trec_semid/models`, no
`isinstance`, `issubclass`, `type(...) is`, class pattern or dict keyed by classes may name a class of that
room, and no text is compared with, or listed as, the name of one of its kinds (`kind: Literal["..."]`). The
same for tokenizers.
Usage: python tools/check_kinds.py [PACKAGE_FOLDER]
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "trec_semid"
ROOMS = ("models", "tokenizers")
NO_KINDS = {"LiveCodes"}
"""Parts that are found in a model's tree of modules by their class; every kind of model may have one."""


def check_file(path: Path, package: Path, kinds: set[str]) -> Iterator[str]:
    """Yield one `path:line: fault` for every question about a kind.

    Args:
        path: a file of the package.
        package: the package's folder.
        kinds: names of the kinds of every room.
    """
    room = path.relative_to(package).parts[0]
    tree = ast.parse(path.read_text(), str(path))
    classes = classes_imported(tree, package.name, but=room)
    if room in ROOMS:  # may speak of its own kinds, and knows no other room's
        kinds = kinds - kinds_of(package / room)
    faults: set[tuple[int, str]] = set()
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        asked = (classes & set(classes_asked_for(node))) - NO_KINDS
        faults |= {(line, f"asks whether something is a '{name}'") for name in asked}
        faults |= {(line, f"names the kind '{kind}'") for kind in kinds & set(kinds_asked_for(node, kinds))}
    for line, fault in sorted(faults):
        yield f"{path}:{line}: {fault}. Make the answer a member of its role."


@cache
def kinds_of(room: Path) -> set[str]:
    """Return the names of a room's kinds: the text in `kind: Literal["..."]` of its classes."""
    trees = (ast.parse(path.read_text(), str(path)) for path in room.rglob("*.py"))
    fields = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
    return {
        value.value
        for field in fields
        if isinstance(field.target, ast.Name) and field.target.id == "kind"
        for value in ast.walk(field.annotation)
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def classes_imported(tree: ast.Module, package: str, *, but: str) -> set[str]:
    """Return the names under which a file has classes or modules of the rooms, its own room aside."""
    rooms = tuple(f"{package}.{room}" for room in ROOMS if room != but)
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}.".startswith(tuple(f"{room}." for room in rooms))
    }


def classes_asked_for(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node compares a class with: `tiger` of `isinstance(x, tiger.Tiger)`."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            yield from names_in(classes)
        case ast.MatchClass(cls=cls):
            yield from names_in(cls)
        case ast.Compare(left=left, comparators=others) if any(is_type(each) for each in (left, *others)):
            yield from names_in(node)
        case ast.Dict(keys=keys):
            yield from (key.id for key in keys if isinstance(key, ast.Name) and not key.id.isupper())
        case _:
            pass


def kinds_asked_for(node: ast.AST, kinds: set[str]) -> Iterator[str]:
    """Yield the kinds that a node compares a `kind` with, and those in a list of nothing but kinds."""
    match node:
        case ast.Compare(left=left, comparators=others) if any(is_kind(each) for each in (left, *others)):
            yield from texts_in(node)
        case ast.Match(subject=subject, cases=cases) if is_kind(subject):
            yield from (text for case in cases for text in texts_in(case.pattern))
        case ast.List(elts=values) | ast.Tuple(elts=values) | ast.Set(elts=values) | ast.Dict(keys=values):
            texts = [each.value for each in values if isinstance(each, ast.Constant)]
            if len(texts) == len(values) > 1 and kinds.issuperset(texts):
                yield from texts
        case _:
            pass


def is_type(node: ast.expr) -> bool:
    """Whether an expression is `type(...)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"


def is_kind(node: ast.expr) -> bool:
    """Whether an expression reads a kind: `kind`, `config.kind`, `model["kind"]`, `model.get("kind")`."""
    match node:
        case (
            ast.Name(id="kind") | ast.Attribute(attr="kind") | ast.Subscript(slice=ast.Constant(value="kind"))
        ):
            return True
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="kind"), *_]):
            return True
        case _:
            return False


def names_in(node: ast.AST) -> Iterator[str]:
    """Yield every plain name inside a node."""
    yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name))


def texts_in(node: ast.AST) -> Iterator[str]:
    """Yield every text inside a node."""
    constants = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    yield from (value for value in constants if isinstance(value, str))


def main(folders: list[str]) -> int:
    """Check the files of the package and return the exit code."""
    package = Path(*folders or [PACKAGE])
    kinds = {kind for room in ROOMS for kind in kinds_of(package / room)}
    files = sorted(package.rglob("*.py"))
    faults = [fault for path in files for fault in check_file(path, package, kinds)]
    print("\n".join([*faults, f"kinds: {len(files)} files, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
